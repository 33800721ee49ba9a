//! The second and last pass over the rows of a large and well-conditioned problem: residuals, their gradient, and the largest leverage, at
//! the speed at which rows can be read. `refine` has the passes for all other problems, which cost as much as a matrix product or more.
//!
//! Where the Gram matrix alone gives (X̃ᵀX̃)⁻¹ = TTᵀ to 13 digits, nothing else is missing from the first pass. One step of refinement takes
//! two dot products a row.
//!
//! For the largest leverage 1/Σw + ‖Tᵀx̃‖² most rows need not be whitened. With D the norms of the columns, ‖Tᵀx̃‖² is at most ‖D⁻¹x̃‖²
//! divided by the least eigenvalue of D⁻¹X̃ᵀX̃D⁻¹, their correlations; rows that this bound puts above the largest leverage so far are
//! whitened in single precision, at twice the speed; and those that are above it even so, by more than the error of that, in double
//! precision. A row that is left out cannot have the largest.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::Llt;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use pulp::{Simd, WithSimd};

use super::Error;
use super::coordinates::{Coordinates, SystemColumn, column, in_parts, part_count, power_of_two_below_inverse};
use super::double_double::Double;
use super::ordinary::spectral_norm;
use super::problem::{Block, RowSource};
use super::refine::{DoubleMatrix, Outcome};

/// What is to be computed.
pub(super) struct Sweep<'a> {
    pub(super) coordinates: &'a Coordinates,
    /// k columns of the system, in the order of T and of the coefficients.
    pub(super) order: &'a [usize],
    /// k×q.
    pub(super) coefficients: &'a DoubleMatrix,
    /// Σw. The column of ones, if there is one, is orthogonal to all others.
    pub(super) weight: f64,
    pub(super) leverage: &'a Leverage,
}

/// What leverages are found with, for the columns of the system without the column of ones.
pub(super) struct Leverage {
    /// D⁻¹.
    size: Vec<f64>,
    /// DT, upper triangular.
    root: Mat<f64>,
    /// At least the square of its 2-norm, and little more.
    reach: f64,
}

impl Leverage {
    /// From the Gram matrix of so many rows and T.
    pub(super) fn of(gram: &Mat<f64>, inverse: MatRef<'_, f64>, rows: u64) -> Self {
        let k = gram.nrows();
        let size: Vec<f64> = (0..k).map(|place| gram[(place, place)].sqrt().recip()).collect();
        let root = Mat::from_fn(k, k, |row, column| inverse[(row, column)] / size[row]);
        let mut reach = root.squared_norm_l2();
        if rows < FEW * k as u64 {
            return Self { size, root, reach };
        }
        let below = spectral_norm(root.transpose(), |_| {}, |_| {}).powi(2);
        for above in [1.1, 1.5, 2.5] {
            // That the correlations less 1/reach are positive definite proves it.
            let found = above * below;
            let less = |row: usize, column: usize| if row == column { found.recip() } else { 0.0 };
            let rest = Mat::from_fn(k, k, |row, column| gram[(row, column)] * size[row] * size[column] - less(row, column));
            if k > 0 && found < reach && Llt::new(rest.as_ref(), Side::Lower).is_ok() {
                reach = found;
                break;
            }
        }
        Self { size, root, reach }
    }
}

/// Responses up to which they are looked at one by one; a matrix product is faster with more.
pub(super) const RESPONSES: usize = 4;
/// Cells of a chunk, which stay in a core's own second-level cache; its rows at the least; and at the most, so that residuals stay in the
/// first-level cache.
const CHUNK_CELLS: usize = 48 * 1024;
const CHUNK_ROWS: std::ops::RangeInclusive<usize> = 64..=512;
/// The same for rows that wait to be whitened: many enough for a matrix product.
const WAITING_ROWS: std::ops::RangeInclusive<usize> = 384..=512;
/// Rows a column below which proving a better bound costs more than it saves: correlations of few rows are far from one another, and no bound
/// rules many of them out.
const FEW: u64 = 50;
/// What the rounding of a bound is smaller than, relative to it.
const SLACK: f64 = 1e-9;

/// The columns, place by place.
struct Plan<'a> {
    sweep: &'a Sweep<'a>,
    /// Predictors, their places in the order, centres c and scales s.
    predictors: Vec<usize>,
    places: Vec<usize>,
    centre: Vec<f64>,
    scale: Vec<f64>,
    /// −β of raw columns, one list a response.
    slopes: Vec<Vec<f64>>,
    /// What is predicted at the centre, less the response's centre.
    level: Vec<f64>,
    /// Leverage of the column of ones.
    ones: f64,
    /// s/D.
    relative: Vec<f64>,
    /// DT times `unit`, a power of two, in single precision.
    single: Mat<f32>,
    unit: f64,
    /// Most that ‖Tᵀx̃‖ is off in single precision, relative to ‖D⁻¹x̃‖.
    error: f64,
    /// Rows that may wait.
    waiting: usize,
}

/// One thread's share.
struct Part {
    outcome: Outcome,
    residual: Vec<f64>,
    norms: Vec<f64>,
    gradient: Vec<f64>,
    /// Rows of a chunk that may have the largest leverage.
    chosen: Vec<usize>,
    /// Rows that wait to be whitened, `waiting`×k without the column of ones, of which `held` are there, and their norms.
    waiting: Vec<f64>,
    held: usize,
    lengths: Vec<f64>,
    single: Vec<f32>,
    single_white: Vec<f32>,
    double: Vec<f64>,
    double_white: Vec<f64>,
}

/// Makes the pass.
pub(super) fn sweep(source: &mut dyn RowSource, sweep: &Sweep<'_>) -> Result<Outcome, Error> {
    let plan = Plan::new(sweep);
    let responses = sweep.coordinates.responses();
    let k = sweep.order.len();
    let mut parts: Vec<Part> = (0..part_count())
        .map(|_| Part {
            outcome: Outcome::empty(k, 0, responses, responses),
            residual: Vec::new(),
            norms: Vec::new(),
            gradient: Vec::new(),
            chosen: Vec::new(),
            waiting: Vec::new(),
            held: 0,
            lengths: Vec::new(),
            single: Vec::new(),
            single_white: Vec::new(),
            double: Vec::new(),
            double_white: Vec::new(),
        })
        .collect();
    let arch = pulp::Arch::new();
    let at_once = (CHUNK_CELLS / k.max(1)).clamp(*CHUNK_ROWS.start(), *CHUNK_ROWS.end()).next_multiple_of(16);
    source.pass(&mut |block| {
        in_parts(block, k + responses, &mut parts, |part, range| {
            let mut begin = range.start;
            while begin < range.end {
                let end = range.end.min(begin + at_once);
                plan.rows(arch, part, block, begin..end);
                begin = end;
            }
        });
        Ok(())
    })?;
    let mut total = Outcome::empty(k, 0, responses, responses);
    for part in &mut parts {
        plan.whiten(part);
        total.add(&part.outcome);
    }
    Ok(total)
}

impl<'a> Plan<'a> {
    fn new(sweep: &'a Sweep<'a>) -> Self {
        let coordinates = sweep.coordinates;
        let responses = coordinates.responses();
        let (mut predictors, mut places) = (Vec::new(), Vec::new());
        let mut level = vec![0.0; responses];
        let mut ones = 0.0;
        for (place, &system) in sweep.order.iter().enumerate() {
            match coordinates.column(system) {
                SystemColumn::Predictor(predictor) => {
                    predictors.push(predictor);
                    places.push(place);
                }
                SystemColumn::Ones => {
                    ones = sweep.weight.recip();
                    for (response, level) in level.iter_mut().enumerate() {
                        *level = sweep.coefficients.get(place, response).to_f64();
                    }
                }
            }
        }
        let scale: Vec<f64> = predictors.iter().map(|predictor| coordinates.scale[*predictor]).collect();
        let slope = |response: usize| {
            places.iter().zip(&scale).map(|(place, scale)| -sweep.coefficients.get(*place, response).to_f64() * scale).collect()
        };
        let root = &sweep.leverage.root;
        let unit = power_of_two_below_inverse(root.norm_max());
        #[allow(clippy::cast_possible_truncation)] // rounded on purpose
        let single = Mat::from_fn(places.len(), places.len(), |row, column| (root[(row, column)] * unit) as f32);
        // A sum of k products, each of them and both factors rounded.
        #[allow(clippy::cast_precision_loss)]
        let error = 1.01 * (places.len() + 8) as f64 * f64::from(f32::EPSILON) * root.norm_l2();
        Self {
            slopes: (0..responses).map(slope).collect(),
            centre: predictors.iter().map(|predictor| coordinates.centre[*predictor]).collect(),
            relative: scale.iter().zip(&sweep.leverage.size).map(|(scale, size)| scale * size).collect(),
            single,
            unit,
            error,
            waiting: (CHUNK_CELLS / sweep.order.len().max(1)).clamp(*WAITING_ROWS.start(), *WAITING_ROWS.end()),
            sweep,
            predictors,
            places,
            scale,
            level,
            ones,
        }
    }

    /// Some rows of a block, few enough to stay in the cache.
    fn rows(&self, arch: pulp::Arch, part: &mut Part, block: &Block<'_>, range: std::ops::Range<usize>) {
        let count = range.len();
        let columns: Vec<&[f64]> = self.predictors.iter().map(|predictor| &column(block.design, *predictor)[range.clone()]).collect();
        let weights = block.weights.map(|weights| &weights[range.clone()]);
        part.residual.resize(count, 0.0);
        part.norms.clear();
        part.norms.resize(count, 0.0);
        part.gradient.resize(columns.len(), 0.0);
        for response in 0..self.level.len() {
            let values = &column(block.response, response)[range.clone()];
            let visit = Visit {
                columns: &columns,
                centre: &self.centre,
                slopes: &self.slopes[response],
                relative: &self.relative,
                values,
                weights,
                shift: self.sweep.coordinates.response_centre[response],
                level: self.level[response],
                norms: (response == 0).then_some(&mut part.norms[..]),
                residual: &mut part.residual,
                gradient: &mut part.gradient,
            };
            let sums = arch.dispatch(visit);
            let outcome = &mut part.outcome;
            outcome.sums[response] += Double::from(sums.sum);
            outcome.squares[response] += Double::from(sums.square);
            outcome.raw_squares[response] += sums.raw_square;
            outcome.residual_squares[response] += Double::from(sums.residual_square);
            let add = |gradient: &mut DoubleMatrix, place: usize, value: f64| {
                gradient.set(place, response, gradient.get(place, response) + Double::from(value));
            };
            if self.places.len() < self.sweep.order.len() {
                add(&mut outcome.gradient, 0, sums.residual);
            }
            for ((place, scale), sum) in self.places.iter().zip(&self.scale).zip(&part.gradient) {
                add(&mut outcome.gradient, *place, sum * scale);
            }
        }
        let mut first = 0;
        while first < count {
            first = self.choose(part, &columns, first);
        }
    }

    /// ‖D⁻¹x̃‖² below which a row cannot have the largest leverage.
    fn below(&self, part: &Part) -> f64 {
        (part.outcome.largest * (1.0 - SLACK) - self.ones) / self.sweep.leverage.reach
    }

    /// Lets rows from `first` on wait that may have the largest leverage, as many as there is room for; the row to go on with.
    fn choose(&self, part: &mut Part, columns: &[&[f64]], first: usize) -> usize {
        let (room, below) = (self.waiting - part.held, self.below(part));
        part.chosen.clear();
        // Written so that a bound that is no number lets its row in.
        let found = part.norms.iter().enumerate().skip(first).filter(|(_, norm)| !(**norm < below)).map(|(row, _)| row);
        part.chosen.extend(found.take(room));
        let Some(last) = part.chosen.last() else { return part.norms.len() };
        let next = last + 1;
        part.waiting.resize(self.waiting * columns.len(), 0.0);
        part.lengths.truncate(part.held);
        part.lengths.extend(part.chosen.iter().map(|row| part.norms[*row].sqrt()));
        for (index, column) in columns.iter().enumerate() {
            let (centre, scale) = (self.centre[index], self.relative[index]);
            for (out, row) in part.waiting[index * self.waiting + part.held..].iter_mut().zip(&part.chosen) {
                *out = (column[*row] - centre) * scale;
            }
        }
        part.held += part.chosen.len();
        if part.held == self.waiting {
            self.whiten(part);
        }
        next
    }

    /// The leverages of the rows that wait, as far as they may be the largest.
    fn whiten(&self, part: &mut Part) {
        let (held, k) = (std::mem::take(&mut part.held), self.places.len());
        if held == 0 {
            return;
        }
        if k == 0 {
            part.outcome.largest = part.outcome.largest.max(self.ones);
            return;
        }
        part.single.resize(self.waiting * k, 0.0);
        part.single_white.resize(self.waiting * k, 0.0);
        for (single, double) in part.single.chunks_exact_mut(self.waiting).zip(part.waiting.chunks_exact(self.waiting)) {
            #[allow(clippy::cast_possible_truncation)] // rounded on purpose
            single[..held].iter_mut().zip(double).for_each(|(single, double)| *single = *double as f32);
        }
        let single = MatRef::from_column_major_slice(&part.single, self.waiting, k).subrows(0, held);
        let white = MatMut::from_column_major_slice_mut(&mut part.single_white, self.waiting, k).subrows_mut(0, held);
        product(white, single, self.single.as_ref());
        // Upper bounds of ‖Tᵀx̃‖.
        let mut bounds = vec![0.0; held];
        for column in part.single_white.chunks_exact(self.waiting) {
            bounds.iter_mut().zip(column).for_each(|(bound, value)| *bound += f64::from(*value) * f64::from(*value));
        }
        for (bound, length) in bounds.iter_mut().zip(&part.lengths) {
            *bound = bound.sqrt() / self.unit + self.error * length;
        }
        // The row of the largest bound first: it rules most others out.
        let largest = (0..held).fold(0, |best, row| if bounds[row] > bounds[best] { row } else { best });
        part.chosen.clear();
        part.chosen.push(largest);
        self.exact(part);
        let below = (part.outcome.largest * (1.0 - SLACK) - self.ones).max(0.0).sqrt();
        part.chosen.clear();
        part.chosen.extend((0..held).filter(|row| *row != largest && !(bounds[*row] < below)));
        self.exact(part);
    }

    /// The leverages of the chosen ones of the rows that wait.
    fn exact(&self, part: &mut Part) {
        let (count, k) = (part.chosen.len(), self.places.len());
        if count == 0 {
            return;
        }
        part.double.resize(count * k, 0.0);
        part.double_white.resize(count * k, 0.0);
        for (out, column) in part.double.chunks_exact_mut(count).zip(part.waiting.chunks_exact(self.waiting)) {
            out.iter_mut().zip(&part.chosen).for_each(|(out, row)| *out = column[*row]);
        }
        let double = MatRef::from_column_major_slice(&part.double, count, k);
        product(MatMut::from_column_major_slice_mut(&mut part.double_white, count, k), double, self.sweep.leverage.root.as_ref());
        let mut norms = vec![self.ones; count];
        for column in part.double_white.chunks_exact(count) {
            norms.iter_mut().zip(column).for_each(|(norm, value)| *norm += value * value);
        }
        part.outcome.largest = norms.into_iter().fold(part.outcome.largest, f64::max);
    }
}

/// W ← XT for an upper triangular T.
pub(super) fn product<T: faer::traits::ComplexField>(white: MatMut<'_, T>, rows: MatRef<'_, T>, inverse: MatRef<'_, T>) {
    triangular::matmul(
        white,
        BlockStructure::Rectangular,
        Accum::Replace,
        rows,
        BlockStructure::Rectangular,
        inverse,
        BlockStructure::TriangularUpper,
        T::one_impl(),
        Par::Seq,
    );
}

/// A chunk of rows and one response.
struct Visit<'a> {
    columns: &'a [&'a [f64]],
    centre: &'a [f64],
    slopes: &'a [f64],
    /// s/D.
    relative: &'a [f64],
    values: &'a [f64],
    weights: Option<&'a [f64]>,
    shift: f64,
    level: f64,
    /// ‖D⁻¹x̃‖², where it is wanted.
    norms: Option<&'a mut [f64]>,
    residual: &'a mut [f64],
    /// Σw(x − c)r.
    gradient: &'a mut [f64],
}

/// Weighted sums of a chunk: of y and y² about the centre, of y² as it is, of r and r².
struct Sums {
    sum: f64,
    square: f64,
    raw_square: f64,
    residual: f64,
    residual_square: f64,
}

/// Columns that are visited together, so that a residual is read once for all of them.
const TOGETHER: usize = 4;

impl WithSimd for Visit<'_> {
    type Output = Sums;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Sums {
        let Self { columns, centre, slopes, relative, values, weights, shift, level, mut norms, residual, gradient } = self;
        for (out, value) in residual.iter_mut().zip(values) {
            *out = value - shift;
        }
        let (sum, square) = weighted(residual, weights);
        let (_, raw_square) = weighted(values, weights);
        for out in residual.iter_mut() {
            *out -= level;
        }
        let mut first = 0;
        while first < columns.len() {
            let wide = first + TOGETHER <= columns.len();
            match (&mut norms, wide) {
                (Some(norms), true) => subtract::<S, TOGETHER, true>(simd, columns, centre, slopes, relative, first, residual, norms),
                (Some(norms), false) => subtract::<S, 1, true>(simd, columns, centre, slopes, relative, first, residual, norms),
                (None, true) => subtract::<S, TOGETHER, false>(simd, columns, centre, slopes, relative, first, residual, &mut []),
                (None, false) => subtract::<S, 1, false>(simd, columns, centre, slopes, relative, first, residual, &mut []),
            }
            first += if wide { TOGETHER } else { 1 };
        }
        let (residual_sum, residual_square) = weighted(residual, weights);
        if let Some(weights) = weights {
            for (out, weight) in residual.iter_mut().zip(weights) {
                *out *= weight;
            }
        }
        let mut first = 0;
        while first < columns.len() {
            if first + TOGETHER <= columns.len() {
                gradient[first..first + TOGETHER].copy_from_slice(&along::<S, TOGETHER>(simd, columns, centre, first, residual));
                first += TOGETHER;
            } else {
                gradient[first] = along::<S, 1>(simd, columns, centre, first, residual)[0];
                first += 1;
            }
        }
        Sums { sum, square, raw_square, residual: residual_sum, residual_square }
    }
}

/// Independent partial sums: enough to fill the widest registers.
const LANES: usize = 8;

/// Σwv and Σwv².
#[inline(always)]
fn weighted(values: &[f64], weights: Option<&[f64]>) -> (f64, f64) {
    let (mut sums, mut squares) = ([0.0; LANES], [0.0; LANES]);
    let (chunks, rest) = values.as_chunks::<LANES>();
    let done = values.len() - rest.len();
    match weights {
        None => {
            for chunk in chunks {
                for lane in 0..LANES {
                    sums[lane] += chunk[lane];
                    squares[lane] = chunk[lane].mul_add(chunk[lane], squares[lane]);
                }
            }
        }
        Some(weights) => {
            for (chunk, weights) in chunks.iter().zip(weights.as_chunks::<LANES>().0) {
                for lane in 0..LANES {
                    let weighted = chunk[lane] * weights[lane];
                    sums[lane] += weighted;
                    squares[lane] = chunk[lane].mul_add(weighted, squares[lane]);
                }
            }
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        let weighted = value * weights.map_or(1.0, |weights| weights[done + lane]);
        sums[lane] += weighted;
        squares[lane] += value * weighted;
    }
    (sums.iter().sum(), squares.iter().sum())
}

/// r ← r − (x − c)β for some columns, and ‖D⁻¹x̃‖² ← ‖D⁻¹x̃‖² + ((x − c)s/D)².
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the innermost loop: a struct of these would only rename them
fn subtract<S: Simd, const C: usize, const NORMS: bool>(
    simd: S,
    columns: &[&[f64]],
    centre: &[f64],
    slopes: &[f64],
    relative: &[f64],
    first: usize,
    residual: &mut [f64],
    norms: &mut [f64],
) {
    let rows = residual.len();
    let (columns, centre, slopes, relative) = (&columns[first..], &centre[first..], &slopes[first..], &relative[first..]);
    let (residual_whole, residual_rest) = S::as_mut_simd_f64s(residual);
    let (norms_whole, norms_rest) = S::as_mut_simd_f64s(norms);
    let whole = residual_whole.len();
    let mut columns_whole: [&[S::f64s]; C] = [&[]; C];
    let nothing = [simd.splat_f64s(0.0); C];
    let (mut centres, mut slopes_wide, mut relatives) = (nothing, nothing, nothing);
    for index in 0..C {
        columns_whole[index] = &S::as_simd_f64s(&columns[index][..rows]).0[..whole];
        centres[index] = simd.splat_f64s(centre[index]);
        slopes_wide[index] = simd.splat_f64s(slopes[index]);
        relatives[index] = simd.splat_f64s(relative[index]);
    }
    for row in 0..whole {
        let mut left = residual_whole[row];
        let mut norm = if NORMS { norms_whole[row] } else { simd.splat_f64s(0.0) };
        for index in 0..C {
            let value = simd.sub_f64s(columns_whole[index][row], centres[index]);
            left = simd.mul_add_e_f64s(value, slopes_wide[index], left);
            if NORMS {
                let scaled = simd.mul_f64s(value, relatives[index]);
                norm = simd.mul_add_e_f64s(scaled, scaled, norm);
            }
        }
        residual_whole[row] = left;
        if NORMS {
            norms_whole[row] = norm;
        }
    }
    let done = rows - residual_rest.len();
    for row in 0..residual_rest.len() {
        for index in 0..C {
            let value = columns[index][done + row] - centre[index];
            residual_rest[row] = value.mul_add(slopes[index], residual_rest[row]);
            if NORMS {
                let scaled = value * relative[index];
                norms_rest[row] = scaled.mul_add(scaled, norms_rest[row]);
            }
        }
    }
}

/// Σ(x − c)r for some columns.
#[inline(always)]
fn along<S: Simd, const C: usize>(simd: S, columns: &[&[f64]], centre: &[f64], first: usize, residual: &[f64]) -> [f64; C] {
    let rows = residual.len();
    let (columns, centre) = (&columns[first..], &centre[first..]);
    let (residual_whole, residual_rest) = S::as_simd_f64s(residual);
    let whole = residual_whole.len();
    let mut columns_whole: [&[S::f64s]; C] = [&[]; C];
    let mut centres = [simd.splat_f64s(0.0); C];
    for index in 0..C {
        columns_whole[index] = &S::as_simd_f64s(&columns[index][..rows]).0[..whole];
        centres[index] = simd.splat_f64s(centre[index]);
    }
    let mut sums = [simd.splat_f64s(0.0); C];
    for row in 0..whole {
        let left = residual_whole[row];
        for index in 0..C {
            sums[index] = simd.mul_add_e_f64s(simd.sub_f64s(columns_whole[index][row], centres[index]), left, sums[index]);
        }
    }
    let mut totals = [0.0; C];
    let done = rows - residual_rest.len();
    for index in 0..C {
        totals[index] = simd.reduce_sum_f64s(sums[index]);
        for (row, left) in residual_rest.iter().enumerate() {
            totals[index] = (columns[index][done + row] - centre[index]).mul_add(*left, totals[index]);
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use faer::Mat;

    use super::super::{Fit, Matrices, Solver, Specification, fit};

    /// Rows × columns² of this size are past the point up to which every pass is made in twice the precision.
    const ROWS: usize = 30_000;
    const COLUMNS: usize = 60;

    /// Numbers in (−1, 1) (Knuth's 64-bit linear congruence).
    fn numbers(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            #[allow(clippy::cast_precision_loss)]
            let unit = (state >> 11) as f64 / (1_u64 << 53) as f64;
            2.0 * unit - 1.0
        }
    }

    /// Columns of different size and offset, correlated, with some rows far out.
    fn problem(responses: usize) -> (Mat<f64>, Mat<f64>) {
        let mut next = numbers(7);
        let mut design = Mat::from_fn(ROWS, COLUMNS, |_, _| next());
        for column in 1..COLUMNS {
            for row in 0..ROWS {
                design[(row, column)] += 0.3 * design[(row, column - 1)];
            }
        }
        for (row, column, value) in [(17, 3, 9.0), (ROWS / 2, 40, -30.0), (ROWS - 1, 59, 12.0)] {
            design[(row, column)] = value;
        }
        for column in 0..COLUMNS {
            #[allow(clippy::cast_precision_loss)]
            let (size, offset) = (1.7_f64.powi(column as i32 % 7), 10.0 * column as f64);
            for row in 0..ROWS {
                design[(row, column)] = design[(row, column)].mul_add(size, offset);
            }
        }
        let slopes = Mat::from_fn(COLUMNS, responses, |_, _| next());
        let response = &design * slopes + Mat::from_fn(ROWS, responses, |_, _| next());
        (design, response)
    }

    fn agree(specification: Specification<'_>, responses: usize, weights: Option<&[f64]>) {
        let (design, response) = problem(responses);
        let by = |solver: Solver| -> Fit {
            let specification = Specification { solver, ..specification };
            fit(&mut Matrices { design: design.as_ref(), response: response.as_ref(), weights }, &specification).unwrap()
        };
        // The rows' own triangular factor, and rows that are all whitened.
        let (found, expected) = (by(Solver::Auto), by(Solver::Qr));
        assert_eq!((found.solver, expected.solver), (Solver::Cholesky, Solver::Qr));
        let near = |what: &str, one: f64, other: f64| {
            assert!((one - other).abs() <= 1e-12 * other.abs(), "{what}: {one} is not {other}");
        };
        near("leverage", found.information.maximum_leverage(), expected.information.maximum_leverage());
        let (intercepts, errors) = found.information.std_errors();
        let (expected_intercepts, expected_errors) = expected.information.std_errors();
        for response in 0..responses {
            for row in 0..COLUMNS {
                near("slope", found.information.coefficients()[(row, response)], expected.information.coefficients()[(row, response)]);
                near("error of a slope", errors[(row, response)], expected_errors[(row, response)]);
            }
            if specification.intercept {
                near("intercept", found.information.intercept()[response], expected.information.intercept()[response]);
                near("error of an intercept", intercepts[response], expected_intercepts[response]);
            }
            near(
                "residual sum of squares",
                found.statistics[response].residual_sum_of_squares,
                expected.statistics[response].residual_sum_of_squares,
            );
            near(
                "total sum of squares",
                found.statistics[response].total_sum_of_squares,
                expected.statistics[response].total_sum_of_squares,
            );
        }
    }

    #[test]
    fn one_sweep_finds_what_whitening_all_rows_finds() {
        agree(Specification::default(), 1, None);
    }

    #[test]
    fn so_it_does_with_weights_several_responses_and_a_penalty() {
        let mut next = numbers(3);
        let weights: Vec<f64> = (0..ROWS).map(|row| if row % 100 == 5 { 0.0 } else { next().abs() }).collect();
        agree(Specification { penalty: 50.0, ..Specification::default() }, 2, Some(&weights));
    }
}
