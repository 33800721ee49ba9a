//! Passes over the rows once a preconditioner is known: whitening, residuals, gradients.
//!
//! With T an approximate inverse of the triangular factor, *whitening* forms W = X̃·T and its Gram matrix G = WᵀW, so that
//! (X̃ᵀX̃)⁻¹ = T·G⁻¹·Tᵀ with G near the identity. In twice the precision this holds to rounding however ill-conditioned X̃ is, and so does a
//! step of refinement δ = T·G⁻¹·Tᵀ·X̃ᵀ(y − X̃β) with the residual formed in twice the precision: the error shrinks each time by about the
//! unit roundoff times the condition of W, not of X̃. (Yamamoto, Nakatsukasa, Yanagisawa & Fukaya, *Roundoff error analysis of the
//! CholeskyQR2 algorithm*, 2015; Demmel, Hida, Li & Riedy, *Extra-precise iterative refinement for overdetermined least squares
//! problems*, 2009.)

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};

use super::Error;
use super::coordinates::{Coordinates, SystemColumn, column, in_parts, part_count};
use super::double_double::{self as dd, Column, ColumnMut, Double};
use super::gram::{mirror, symmetric_product};
use super::problem::{Block, RowSource};

/// A matrix of doubles, rows×columns, column by column.
#[derive(Clone, Debug, Default)]
pub(super) struct DoubleMatrix {
    rows: usize,
    values: Vec<Double>,
}

impl DoubleMatrix {
    pub(super) fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, values: vec![Double::ZERO; rows * columns] }
    }

    pub(super) fn get(&self, row: usize, column: usize) -> Double {
        self.values[column * self.rows + row]
    }

    pub(super) fn set(&mut self, row: usize, column: usize, value: Double) {
        self.values[column * self.rows + row] = value;
    }

    pub(super) fn column(&self, column: usize) -> &[Double] {
        &self.values[column * self.rows..(column + 1) * self.rows]
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (own, other) in self.values.iter_mut().zip(&other.values) {
            *own += *other;
        }
    }
}

/// What a pass is to compute.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) coordinates: &'a Coordinates,
    /// k columns of the system, in the order of T and of the coefficients.
    pub(super) order: &'a [usize],
    /// d columns of the system that are fitted as responses, after the q responses.
    pub(super) dependent: &'a [usize],
    /// T, k×k upper triangular, when whitening is wanted.
    pub(super) whiten: Option<MatRef<'a, f64>>,
    /// k×(q + d).
    pub(super) coefficients: &'a DoubleMatrix,
    /// Whether W and G are formed in twice the precision.
    pub(super) precise_whitening: bool,
    /// Whether residuals and gradients are.
    pub(super) precise_residuals: bool,
}

/// What came of it; sums are weighted.
pub(super) struct Outcome {
    /// G, k×k, both triangles; empty without whitening.
    pub(super) gram: Mat<f64>,
    /// The largest squared norm of a row of W.
    pub(super) largest: f64,
    /// X̃ᵀ(y − X̃β), k×(q + d).
    pub(super) gradient: DoubleMatrix,
    /// Σ(y − X̃β)² of each of the q + d.
    pub(super) residual_squares: Vec<Double>,
    /// Σy of each response about its centre.
    pub(super) sums: Vec<Double>,
    /// Σy² of each response about its centre.
    pub(super) squares: Vec<Double>,
    /// Σy² of each response as it is: the size against which a residual is rounding.
    pub(super) raw_squares: Vec<f64>,
}

impl Outcome {
    /// Nothing yet, for k columns, of which `whitened` (k or none) are whitened, and q + d columns fitted on them.
    pub(super) fn empty(k: usize, whitened: usize, all: usize, responses: usize) -> Self {
        Self {
            gram: Mat::zeros(whitened, whitened),
            largest: 0.0,
            gradient: DoubleMatrix::zeros(k, all),
            residual_squares: vec![Double::ZERO; all],
            sums: vec![Double::ZERO; responses],
            squares: vec![Double::ZERO; responses],
            raw_squares: vec![0.0; responses],
        }
    }

    /// The same for more rows.
    pub(super) fn add(&mut self, other: &Self) {
        self.gram += &other.gram;
        self.largest = self.largest.max(other.largest);
        self.gradient.add(&other.gradient);
        for (own, other) in
            [(&mut self.residual_squares, &other.residual_squares), (&mut self.sums, &other.sums), (&mut self.squares, &other.squares)]
        {
            own.iter_mut().zip(other).for_each(|(own, other)| *own += *other);
        }
        self.raw_squares.iter_mut().zip(&other.raw_squares).for_each(|(own, other)| *own += other);
    }
}

/// One thread's share.
struct Part {
    outcome: Outcome,
    hi: Vec<f64>,
    lo: Vec<f64>,
    white_hi: Vec<f64>,
    white_lo: Vec<f64>,
    residual_hi: Vec<f64>,
    residual_lo: Vec<f64>,
}

/// Cells of a buffer in ordinary precision, and rows of one in twice the precision.
const BUFFER_CELLS: usize = 32 * 1024;
const PRECISE_CELLS: usize = 8 * 1024;
/// Rows of a buffer of a wide matrix in ordinary precision, whose product is read and written once a buffer.
const PRODUCT_ROWS: usize = 256;

/// Makes one pass.
pub(super) fn pass(source: &mut dyn RowSource, task: &Task<'_>) -> Result<Outcome, Error> {
    let k = task.order.len();
    let responses = task.coordinates.responses();
    let all = responses + task.dependent.len();
    let empty = || Outcome::empty(k, task.whiten.map_or(0, |inverse| inverse.ncols()), all, responses);
    let mut parts: Vec<Part> = (0..part_count())
        .map(|_| Part {
            outcome: empty(),
            hi: Vec::new(),
            lo: Vec::new(),
            white_hi: Vec::new(),
            white_lo: Vec::new(),
            residual_hi: Vec::new(),
            residual_lo: Vec::new(),
        })
        .collect();
    let arch = pulp::Arch::new();
    let floats = Mat::from_fn(k, all, |row, column| task.coefficients.get(row, column).to_f64());
    let cells = if task.precise_residuals || task.precise_whitening { PRECISE_CELLS } else { BUFFER_CELLS };
    let least = if task.precise_residuals || task.precise_whitening { 32 } else { PRODUCT_ROWS };
    let at_once = (cells / (k + all).max(1)).max(least).next_multiple_of(16);
    source.pass(&mut |block| {
        in_parts(block, k + all, &mut parts, |part, range| {
            let mut begin = range.start;
            while begin < range.end {
                let end = range.end.min(begin + at_once);
                rows(arch, task, floats.as_ref(), part, block, begin..end);
                begin = end;
            }
        });
        Ok(())
    })?;
    let mut parts = parts.into_iter().map(|part| part.outcome);
    let mut total = parts.next().unwrap_or_else(empty);
    for part in parts {
        total.add(&part);
    }
    mirror(&mut total.gram);
    Ok(total)
}

/// Some rows of a block, few enough to stay in the cache.
fn rows(arch: pulp::Arch, task: &Task<'_>, floats: MatRef<'_, f64>, part: &mut Part, block: &Block<'_>, range: std::ops::Range<usize>) {
    let count = range.len();
    let k = task.order.len();
    let all = floats.ncols();
    let precise = task.precise_residuals || task.precise_whitening;
    for buffer in [&mut part.hi, &mut part.lo] {
        buffer.resize(count * k, 0.0);
    }
    for (place, &system) in task.order.iter().enumerate() {
        let cells = place * count..(place + 1) * count;
        fill(arch, task.coordinates, block, system, range.clone(), &mut part.hi[cells.clone()], &mut part.lo[cells], precise);
    }
    let weights = block.weights.map(|weights| &weights[range.clone()]);
    if let Some(inverse) = task.whiten {
        part.white_hi.resize(count * k, 0.0);
        whiten(arch, task, inverse, part, count);
        let outcome = &mut part.outcome;
        let mut norms = vec![0.0; count];
        for column in part.white_hi.chunks_exact(count.max(1)) {
            for (norm, value) in norms.iter_mut().zip(column) {
                *norm += value * value;
            }
        }
        outcome.largest = norms.iter().copied().fold(outcome.largest, f64::max);
        if let Some(weights) = weights {
            for column in part.white_hi.chunks_exact_mut(count.max(1)) {
                for (value, weight) in column.iter_mut().zip(weights) {
                    *value *= weight.sqrt();
                }
            }
        }
        symmetric_product(outcome.gram.as_mut(), MatRef::from_column_major_slice(&part.white_hi, count, k));
    }
    // Responses about their centres; dependent columns in coordinates.
    for buffer in [&mut part.residual_hi, &mut part.residual_lo] {
        buffer.resize(count * all, 0.0);
    }
    let responses = task.coordinates.responses();
    for index in 0..all {
        let cells = index * count..(index + 1) * count;
        let (hi, lo) = (&mut part.residual_hi[cells.clone()], &mut part.residual_lo[cells]);
        if index < responses {
            let values = &column(block.response, index)[range.clone()];
            dd::centre(arch, values, None, task.coordinates.response_centre[index], 1.0, ColumnMut { hi, lo });
            let outcome = &mut part.outcome;
            outcome.raw_squares[index] += match weights {
                Some(weights) => values.iter().zip(weights).map(|(value, weight)| value * value * weight).sum::<f64>(),
                None => values.iter().map(|value| value * value).sum::<f64>(),
            };
            moments(task.precise_residuals, hi, lo, weights, &mut outcome.sums[index], &mut outcome.squares[index]);
        } else {
            fill(arch, task.coordinates, block, task.dependent[index - responses], range.clone(), hi, lo, precise);
        }
    }
    if task.precise_residuals {
        precise_residuals(arch, task, part, weights, count);
    } else {
        plain_residuals(floats, part, weights, count, k, all);
    }
}

/// A column of the system.
#[allow(clippy::too_many_arguments)] // one place, hot; a struct of these would only rename them
fn fill(
    arch: pulp::Arch,
    coordinates: &Coordinates,
    block: &Block<'_>,
    system: usize,
    range: std::ops::Range<usize>,
    hi: &mut [f64],
    lo: &mut [f64],
    precise: bool,
) {
    match coordinates.column(system) {
        SystemColumn::Ones => {
            hi.fill(1.0);
            lo.fill(0.0);
        }
        SystemColumn::Predictor(predictor) => {
            let values = &column(block.design, predictor)[range.clone()];
            let (centre, scale) = (coordinates.centre[predictor], coordinates.scale[predictor]);
            if precise {
                let low = block.design_low.map(|low| &column(low, predictor)[range]);
                dd::centre(arch, values, low, centre, scale, ColumnMut { hi, lo });
            } else {
                for (out, value) in hi.iter_mut().zip(values) {
                    *out = (value - centre) * scale;
                }
            }
        }
    }
}

/// Sums of y and y² about the centre.
fn moments(precise: bool, hi: &[f64], lo: &[f64], weights: Option<&[f64]>, sum: &mut Double, squares: &mut Double) {
    let weight = |row: usize| weights.map_or(1.0, |weights| weights[row]);
    if precise {
        let (mut total, mut square) = (Double::ZERO, Double::ZERO);
        for row in 0..hi.len() {
            let value = Double { hi: hi[row], lo: lo[row] };
            let weighted = value * weight(row);
            total += weighted;
            square += weighted * value;
        }
        *sum += total;
        *squares += square;
    } else {
        let (mut total, mut square) = (0.0, 0.0);
        match weights {
            Some(weights) => {
                for (value, weight) in hi.iter().zip(weights) {
                    total += value * weight;
                    square += value * value * weight;
                }
            }
            None => {
                for value in hi {
                    total += value;
                    square += value * value;
                }
            }
        }
        *sum += Double::from(total);
        *squares += Double::from(square);
    }
}

fn whiten(arch: pulp::Arch, task: &Task<'_>, inverse: MatRef<'_, f64>, part: &mut Part, count: usize) {
    let k = task.order.len();
    if !task.precise_whitening {
        let mut white = faer::MatMut::from_column_major_slice_mut(&mut part.white_hi, count, k);
        triangular::matmul(
            white.as_mut(),
            BlockStructure::Rectangular,
            Accum::Replace,
            MatRef::from_column_major_slice(&part.hi, count, k),
            BlockStructure::Rectangular,
            inverse,
            BlockStructure::TriangularUpper,
            1.0,
            Par::Seq,
        );
        return;
    }
    part.white_lo.resize(count * k, 0.0);
    part.white_hi.fill(0.0);
    part.white_lo.fill(0.0);
    for column in 0..k {
        let cells = column * count..(column + 1) * count;
        for row in 0..=column {
            let factor = inverse[(row, column)];
            if factor == 0.0 {
                continue;
            }
            let from = row * count..(row + 1) * count;
            let x = Column { hi: &part.hi[from.clone()], lo: &part.lo[from] };
            let out = ColumnMut { hi: &mut part.white_hi[cells.clone()], lo: &mut part.white_lo[cells.clone()] };
            dd::axpy(arch, Double::from(factor), x, out);
        }
        for (hi, lo) in part.white_hi[cells.clone()].iter_mut().zip(&part.white_lo[cells]) {
            *hi += lo;
        }
    }
}

fn precise_residuals(arch: pulp::Arch, task: &Task<'_>, part: &mut Part, weights: Option<&[f64]>, count: usize) {
    let k = task.order.len();
    let all = part.outcome.residual_squares.len();
    for response in 0..all {
        let cells = response * count..(response + 1) * count;
        for (place, coefficient) in task.coefficients.column(response).iter().enumerate() {
            if *coefficient == Double::ZERO {
                continue;
            }
            let from = place * count..(place + 1) * count;
            let x = Column { hi: &part.hi[from.clone()], lo: &part.lo[from] };
            let out = ColumnMut { hi: &mut part.residual_hi[cells.clone()], lo: &mut part.residual_lo[cells.clone()] };
            dd::axpy(arch, -*coefficient, x, out);
        }
        let own = (part.residual_hi[cells.clone()].to_vec(), part.residual_lo[cells.clone()].to_vec());
        if let Some(weights) = weights {
            for ((hi, lo), weight) in part.residual_hi[cells.clone()].iter_mut().zip(&mut part.residual_lo[cells.clone()]).zip(weights) {
                let weighted = Double { hi: *hi, lo: *lo } * *weight;
                (*hi, *lo) = (weighted.hi, weighted.lo);
            }
        }
        let weighted = Column { hi: &part.residual_hi[cells.clone()], lo: &part.residual_lo[cells.clone()] };
        part.outcome.residual_squares[response] += dd::dot(arch, weighted, Column { hi: &own.0, lo: &own.1 });
        for place in 0..k {
            let from = place * count..(place + 1) * count;
            let x = Column { hi: &part.hi[from.clone()], lo: &part.lo[from] };
            let sum = part.outcome.gradient.get(place, response) + dd::dot(arch, x, weighted);
            part.outcome.gradient.set(place, response, sum);
        }
    }
}

fn plain_residuals(floats: MatRef<'_, f64>, part: &mut Part, weights: Option<&[f64]>, count: usize, k: usize, all: usize) {
    let x = MatRef::from_column_major_slice(&part.hi, count, k);
    let mut residual = faer::MatMut::from_column_major_slice_mut(&mut part.residual_hi, count, all);
    matmul(residual.as_mut(), Accum::Add, x, floats, -1.0, Par::Seq);
    for response in 0..all {
        let cells = response * count..(response + 1) * count;
        let values = &mut part.residual_hi[cells];
        let mut square = 0.0;
        match weights {
            Some(weights) => {
                for (value, weight) in values.iter_mut().zip(weights) {
                    square += *value * *value * weight;
                    *value *= weight;
                }
            }
            None => square += values.iter().map(|value| value * value).sum::<f64>(),
        }
        part.outcome.residual_squares[response] += Double::from(square);
    }
    let residual = MatRef::from_column_major_slice(&part.residual_hi, count, all);
    let mut gradient = Mat::<f64>::zeros(k, all);
    matmul(gradient.as_mut(), Accum::Replace, x.transpose(), residual, 1.0, Par::Seq);
    for response in 0..all {
        for place in 0..k {
            let sum = part.outcome.gradient.get(place, response) + Double::from(gradient[(place, response)]);
            part.outcome.gradient.set(place, response, sum);
        }
    }
}
