//! The triangle behind an information, and the sweeps that put a row into it or take one out. Not what the numbers mean: rows come in the
//! system's coordinates, and responses as what the origin leaves of them.
//!
//! The triangle is held as X̃ᵀX̃ = R̄ᵀDR̄ with a unit upper triangular R̄ beside its response columns Z̄, and R̄Δ = Z̄: Givens rotations
//! without square roots (Gentleman, *Least squares computations by Givens transformations without square roots*, 1973; Algorithm AS 75,
//! 1974). With v the row that comes in, weight w and forgetting factor λ, pivot k does, starting from σ² = λ/w,
//!
//! ```text
//! x = v_k          σ'² = σ² + x²/d          d' = λ(d + x²/σ²)
//! v ← v − x·r̄      r̄ ← r̄ + x/(dσ'²)·v
//! ```
//!
//! The row is not scaled on its way, so that what is left of its responses is the a-priori innovation itself, and σ² − λ/w its leverage:
//! both come out of the rotation with the accuracy of a forward substitution. Forgetting touches nothing but D. Two multiply-adds a cell,
//! and neither a root nor a division on the way from one pivot to the next.
//!
//! Where a row carries much more than what was known (σ'² ≫ σ²), r̄ ← (σ²/σ'²)·r̄ + x/(dσ'²)·v before v moves, which is as stable as a
//! rotation by an angle however large; where d is zero or a square overflows, pivots are taken one by one in the form with 1/σ².
//!
//! A row is taken out from the last pivot to the first, as LINPACK's `dchdd` does: the row is put together again from its parts, so that the
//! only cancellation is in α² = 1 − w·leverage (Stewart, *The effects of rounding error on an algorithm for downdating a Cholesky
//! factorization*, 1979).

use faer::{Mat, MatRef};
use pulp::{Simd, WithSimd};

/// Columns of a block: rows begin at a multiple of it. As many as the widest registers hold.
pub(super) const LANES: usize = 8;
/// Pivots that are taken at once.
const PANEL: usize = 4;
/// What is left of a row's cell after elimination, relative to the row, below which it is rounding and not a sign of anything.
const NOISE: f64 = 8.0 * f64::EPSILON;
/// ρ: part of a column's own sum of squares below which its pivot does not fall by forgetting.
const TRACE: f64 = 1e-14;
/// The same, whatever the column.
const LEAST_INFORMATION: f64 = 1e-200;
/// σ² past which pivots are taken one by one.
const LARGEST_SQUARE: f64 = 1e200;
/// Growth of σ² within a panel past which r̄ is averaged rather than corrected.
const STEEP: f64 = 16.0;

/// D, R̄ and Z̄.
#[derive(Clone, Debug)]
pub(super) struct Factor {
    /// m.
    width: usize,
    /// q.
    responses: usize,
    /// Columns of the first row: m up to a whole panel, q, and zeros up to a whole block.
    padded: usize,
    /// D, up to a whole block, with ones past m.
    pub(super) diagonal: Vec<f64>,
    /// Σwx̃² of each column, with what was forgotten left out: what D is judged by.
    pub(super) energy: Vec<f64>,
    /// R̄ and Z̄ row by row, each from the block of its pivot on: zeros, one, R̄, zeros, Z̄, zeros.
    rows: Vec<f64>,
    /// The row on its way, with 1/D behind it.
    scratch: Vec<f64>,
    arch: pulp::Arch,
}

/// How a row is put in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) weight: f64,
    pub(super) forgetting_factor: f64,
}

/// What a sweep found out about its row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Swept {
    /// x̃ᵀ(X̃ᵀX̃)⁻¹x̃ before the row.
    pub(super) leverage: f64,
    /// 1/σ² at the end: what the square of an innovation adds to the residual sum of squares, before λ.
    pub(super) share: f64,
}

/// Where the sweep is: before pivot `next`.
#[derive(Clone, Copy)]
struct Progress {
    next: usize,
    square: f64,
    leverage: f64,
}

/// Where the first cell of a row lies among the rows, and how many columns are left out before it.
#[inline(always)]
fn place_of(padded: usize, row: usize) -> (usize, usize) {
    let before = row / LANES;
    let skipped = before * LANES;
    // Blocks of rows of padded, padded − 8, … columns.
    (LANES * (before * padded - LANES * (before * before.saturating_sub(1) / 2)) + (row - skipped) * (padded - skipped), skipped)
}

impl Factor {
    /// Of nothing: D and R̄ are zero but for R̄'s diagonal.
    pub(super) fn empty(width: usize, responses: usize) -> Self {
        let padded = (width.next_multiple_of(PANEL) + responses).next_multiple_of(LANES);
        let height = width.next_multiple_of(PANEL);
        let mut diagonal = vec![1.0; height.next_multiple_of(LANES)];
        diagonal[..width].fill(0.0);
        let (cells, _) = place_of(padded, height);
        let mut factor = Self {
            width,
            responses,
            padded,
            energy: vec![0.0; width],
            rows: vec![0.0; cells],
            scratch: vec![0.0; padded + diagonal.len()],
            diagonal,
            arch: pulp::Arch::new(),
        };
        for row in 0..height {
            let (begin, skipped) = place_of(padded, row);
            factor.rows[begin + row - skipped] = 1.0;
        }
        factor
    }

    /// Of R (m×m or less, upper triangular), with Z = 0.
    pub(super) fn of(triangle: &Mat<f64>, width: usize, responses: usize) -> Self {
        let mut factor = Self::empty(width, responses);
        let height = triangle.nrows().min(width);
        for row in 0..height {
            for column in row..width {
                factor.energy[column] += triangle[(row, column)].powi(2);
            }
            let pivot = triangle[(row, row)];
            if pivot * pivot > f64::MIN_POSITIVE {
                factor.diagonal[row] = pivot * pivot;
                for (offset, cell) in factor.right_of_mut(row).iter_mut().enumerate() {
                    *cell = triangle[(row, row + 1 + offset)] / pivot;
                }
            }
        }
        // Rows without a pivot are rows as any other.
        for row in (0..height).filter(|row| triangle[(*row, *row)].powi(2) <= f64::MIN_POSITIVE) {
            let (incoming, rest) = factor.incoming();
            incoming.iter_mut().enumerate().for_each(|(column, cell)| *cell = if column < row { 0.0 } else { triangle[(row, column)] });
            rest.fill(0.0);
            factor.carefully(Progress { next: row, square: 1.0, leverage: 0.0 }, Step { weight: 1.0, forgetting_factor: 1.0 }, 0.0);
        }
        factor
    }

    /// D and R̄ row by row, each beginning with its d; and Z̄, m×q row by row.
    pub(super) fn packed(&self) -> (Vec<f64>, Vec<f64>) {
        let mut triangle = Vec::with_capacity(self.width * (self.width + 1) / 2);
        let mut moments = Vec::with_capacity(self.width * self.responses);
        for row in 0..self.width {
            triangle.push(self.diagonal[row]);
            triangle.extend_from_slice(self.right_of(row));
            moments.extend_from_slice(self.moments(row));
        }
        (triangle, moments)
    }

    /// The inverse of `packed`; lists of the right lengths.
    pub(super) fn unpacked(width: usize, responses: usize, triangle: &[f64], moments: &[f64], energy: Vec<f64>) -> Self {
        let mut factor = Self::empty(width, responses);
        let mut begin = 0;
        for row in 0..width {
            let end = begin + width - row;
            factor.diagonal[row] = triangle[begin];
            factor.right_of_mut(row).copy_from_slice(&triangle[begin + 1..end]);
            factor.moments_mut(row).copy_from_slice(&moments[row * responses..(row + 1) * responses]);
            begin = end;
        }
        factor.energy = energy;
        factor
    }

    /// Whether nothing is below zero that is a sum of squares.
    pub(super) fn is_positive(&self) -> bool {
        self.diagonal.iter().chain(&self.energy).all(|value| *value >= 0.0)
    }

    /// Column of the first response.
    fn first_response(&self) -> usize {
        self.width.next_multiple_of(PANEL)
    }

    pub(super) fn arch(&self) -> pulp::Arch {
        self.arch
    }

    /// The rows it stands for, √(kept·D)·(R̄, Z̄), column by column (m×(m + q)).
    pub(super) fn write_rows(&self, kept: f64, columns: &mut [f64]) {
        let (width, first) = (self.width, self.first_response());
        for row in 0..width {
            let (begin, skipped) = place_of(self.padded, row);
            let cells = &self.rows[begin..begin + self.padded - skipped];
            let root = (kept * self.diagonal[row]).sqrt();
            for (column, cell) in (row..width).zip(&cells[row - skipped..]) {
                columns[column * width + row] = root * cell;
            }
            for (column, cell) in (width..width + self.responses).zip(&cells[first - skipped..]) {
                columns[column * width + row] = root * cell;
            }
        }
    }

    /// Takes over (R, Z)ᵀ (m + q or more rows), whose Gram matrix is `gram`.
    pub(super) fn replace(&mut self, lower: MatRef<'_, f64>, gram: &Mat<f64>) {
        let width = self.width;
        for row in 0..width {
            let own = lower.col(row);
            let pivot = own[row];
            self.energy[row] = gram[(row, row)];
            self.diagonal[row] = pivot * pivot;
            let inverse = pivot.recip();
            for (offset, cell) in self.right_of_mut(row).iter_mut().enumerate() {
                *cell = own[row + 1 + offset] * inverse;
            }
            for (response, cell) in self.moments_mut(row).iter_mut().enumerate() {
                *cell = own[width + response] * inverse;
            }
        }
    }

    /// R̄ of a row right of its diagonal, m − row − 1.
    pub(super) fn right_of(&self, row: usize) -> &[f64] {
        let (begin, skipped) = place_of(self.padded, row);
        &self.rows[begin + row + 1 - skipped..begin + self.width - skipped]
    }

    fn right_of_mut(&mut self, row: usize) -> &mut [f64] {
        let (begin, skipped) = place_of(self.padded, row);
        &mut self.rows[begin + row + 1 - skipped..begin + self.width - skipped]
    }

    /// Z̄ of a row, q.
    pub(super) fn moments(&self, row: usize) -> &[f64] {
        let (begin, skipped) = place_of(self.padded, row);
        let first = begin + self.first_response() - skipped;
        &self.rows[first..first + self.responses]
    }

    fn moments_mut(&mut self, row: usize) -> &mut [f64] {
        let (begin, skipped) = place_of(self.padded, row);
        let first = begin + self.first_response() - skipped;
        &mut self.rows[first..first + self.responses]
    }

    /// The row that is to come in: x̃ (m) and the responses (q), and room for zeros between and behind them.
    pub(super) fn incoming(&mut self) -> (&mut [f64], &mut [f64]) {
        let first = self.width.next_multiple_of(PANEL);
        self.scratch[self.width..first].fill(0.0);
        let (row, rest) = self.scratch.split_at_mut(first);
        (&mut row[..self.width], &mut rest[..self.responses])
    }

    /// After a sweep: the a-priori innovations.
    pub(super) fn innovations(&self) -> &[f64] {
        &self.scratch[self.first_response()..self.first_response() + self.responses]
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &f64> {
        self.rows.iter().chain(&self.diagonal).chain(&self.energy)
    }

    /// Puts the incoming row in, whose squared norm is `square`. Without weight, nothing is learnt and nothing is forgotten but by λ.
    pub(super) fn learn(&mut self, step: Step, square: f64) -> Swept {
        let noise = NOISE * square.sqrt();
        count_energy(&mut self.energy, &self.scratch, step);
        let padded = self.padded;
        let (row, inverse) = self.scratch.split_at_mut(padded);
        let progress = self.arch.dispatch(Sweep {
            height: self.width,
            padded,
            rows: &mut self.rows,
            diagonal: &mut self.diagonal,
            row,
            inverse,
            step,
            noise,
        });
        let swept = self.carefully(progress, step, noise);
        self.restore_padding();
        swept
    }

    /// What forgetting took from the ones past m.
    fn restore_padding(&mut self) {
        self.diagonal[self.width..].fill(1.0);
    }

    /// The pivots from `next` on, one by one, however large or small the numbers are.
    fn carefully(&mut self, progress: Progress, step: Step, noise: f64) -> Swept {
        let mut leverage = progress.leverage;
        let mut share = if step.weight > 0.0 { progress.square.recip() } else { 0.0 };
        for pivot in progress.next..self.width {
            let (begin, skipped) = place_of(self.padded, pivot);
            let cells = &mut self.rows[begin..begin + self.padded - skipped];
            let row = &mut self.scratch[skipped..self.padded];
            let (known, x) = (self.diagonal[pivot], row[pivot - skipped]);
            let here = pivot - skipped + 1;
            row[pivot - skipped] = 0.0;
            self.diagonal[pivot] = known * step.forgetting_factor;
            if x == 0.0 {
                continue;
            }
            let counts = x.abs() > noise;
            if counts && known > 0.0 {
                leverage = (leverage + x * (x / known)).min(f64::MAX);
            }
            let weighted = share * x;
            let together = known + weighted * x;
            if counts && together > known {
                let (kept, gain) = (known / together, weighted / together);
                for (own, cell) in cells[here..].iter_mut().zip(&mut row[here..]) {
                    let before = *own;
                    *own = kept * before + gain * *cell;
                    *cell -= x * before;
                }
                self.diagonal[pivot] = together * step.forgetting_factor;
                share *= kept;
            } else {
                for (own, cell) in cells[here..].iter().zip(&mut row[here..]) {
                    *cell -= x * own;
                }
            }
        }
        Swept { leverage, share }
    }

    /// Multiplies X̃ᵀX̃ by a factor.
    pub(super) fn discount(&mut self, factor: f64) {
        self.diagonal[..self.width].iter_mut().chain(&mut self.energy).for_each(|value| *value *= factor);
    }

    /// Lets no pivot that was ever there fall below a trace.
    pub(super) fn keep_a_trace(&mut self) {
        for (known, energy) in self.diagonal.iter_mut().zip(&self.energy) {
            let trace = (TRACE * energy).max(LEAST_INFORMATION);
            *known = if *known > 0.0 && *known < trace { trace } else { *known };
        }
    }

    /// The leverages of as many rows as there are lanes, destroying them: cells of the system's coordinates, m×lanes. What a row is given
    /// does not depend on the others.
    pub(super) fn leverages(&self, cells: &mut [f64]) -> [f64; LANES] {
        let Self { width, padded, rows, diagonal, .. } = self;
        self.arch.dispatch(Leverages { width: *width, padded: *padded, rows, diagonal, cells })
    }

    /// Takes the incoming row out again, which was put in with this weight. `errors` (q) receives y − ŷ of the model that still has it. α² = 1 − w·leverage; `None`, and nothing changed, if it is less than `least`.
    pub(super) fn remove(&mut self, weight: f64, least: f64, errors: &mut [f64]) -> Option<f64> {
        let padded = self.padded;
        let (row, inverse) = self.scratch.split_at_mut(padded);
        let energies: Vec<f64> = row[..self.width].iter().map(|cell| weight * cell * cell).collect();
        let removed = self.arch.dispatch(Remove {
            width: self.width,
            first_response: self.width.next_multiple_of(PANEL),
            padded,
            rows: &mut self.rows,
            diagonal: &mut self.diagonal,
            row,
            pivots: inverse,
            weight,
            least,
            errors,
        })?;
        for ((energy, gone), known) in self.energy.iter_mut().zip(energies).zip(&self.diagonal) {
            *energy = (*energy - gone).max(*known);
        }
        Some(removed)
    }
}

fn count_energy(energy: &mut [f64], row: &[f64], step: Step) {
    for (energy, cell) in energy.iter_mut().zip(row) {
        *energy = *energy * step.forgetting_factor + step.weight * (cell * cell);
    }
}

/// The pivots from the first on, as far as they can be taken in panels.
struct Sweep<'a> {
    height: usize,
    padded: usize,
    rows: &'a mut [f64],
    diagonal: &'a mut [f64],
    row: &'a mut [f64],
    inverse: &'a mut [f64],
    step: Step,
    noise: f64,
}

impl WithSimd for Sweep<'_> {
    type Output = Progress;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Progress {
        let Self { height, padded, rows, diagonal, row, inverse, step, noise } = self;
        let factor = step.forgetting_factor;
        let learns = step.weight > 0.0;
        let mut square = if learns { factor / step.weight } else { 1.0 };
        let mut share = square.recip();
        let mut leverage = 0.0;
        for (inverse, known) in inverse.iter_mut().zip(diagonal.iter()) {
            *inverse = known.recip();
        }
        let mut next = 0;
        let mut rest = rows;
        while next < height {
            let skipped = next / LANES * LANES;
            let length = padded - skipped;
            let (panel, behind) = rest.split_at_mut(PANEL * length);
            let (first, panel) = panel.split_at_mut(length);
            let (second, panel) = panel.split_at_mut(length);
            let (third, fourth) = panel.split_at_mut(length);
            let cells = &mut row[skipped..padded];
            let here = next - skipped;
            let known: [f64; PANEL] = *diagonal[next..].first_chunk().unwrap_or(&[1.0; PANEL]);
            let inverse: [f64; PANEL] = *inverse[next..].first_chunk().unwrap_or(&[1.0; PANEL]);
            let mut x: [f64; PANEL] = *cells[here..].first_chunk().unwrap_or(&[0.0; PANEL]);
            x[1] = (-x[0]).mul_add(first[here + 1], x[1]);
            x[2] = (-x[1]).mul_add(second[here + 2], (-x[0]).mul_add(first[here + 2], x[2]));
            x[3] = (-x[2]).mul_add(third[here + 3], (-x[1]).mul_add(second[here + 3], (-x[0]).mul_add(first[here + 3], x[3])));
            let mut counted = [0.0; PANEL];
            for place in 0..PANEL {
                counted[place] = if x[place].abs() > noise { x[place] } else { 0.0 };
            }
            let mut relative = [0.0; PANEL];
            for place in 0..PANEL {
                relative[place] = counted[place] * inverse[place];
            }
            let mut squares = [square; PANEL];
            let mut found = leverage;
            let mut sum = square;
            for place in 0..PANEL {
                let own = counted[place] * relative[place];
                found += own;
                sum += own;
                squares[place] = sum;
            }
            // Not a number where a pivot is zero.
            if !(squares[PANEL - 1] < LARGEST_SQUARE) {
                break;
            }
            let mut shares = [0.0; PANEL];
            for place in 0..PANEL {
                shares[place] = squares[place].recip();
            }
            let befores = [share, shares[0], shares[1], shares[2]];
            let mut gains = [0.0; PANEL];
            if learns {
                for place in 0..PANEL {
                    gains[place] = relative[place] * shares[place];
                    diagonal[next + place] = factor * (counted[place] * counted[place]).mul_add(befores[place], known[place]);
                }
            } else {
                for place in 0..PANEL {
                    diagonal[next + place] = factor * known[place];
                }
            }
            if learns && squares[PANEL - 1] > STEEP * square {
                let kept = [square * shares[0], squares[0] * shares[1], squares[1] * shares[2], squares[2] * shares[3]];
                average(simd, [first, second, third, fourth], cells, here, x, kept, gains);
            } else {
                correct(simd, [first, second, third, fourth], cells, x, gains);
            }
            square = squares[PANEL - 1];
            share = shares[PANEL - 1];
            leverage = found;
            next += PANEL;
            rest = behind;
        }
        Progress { next, square, leverage }
    }
}

/// v ← v − x·r̄ and r̄ ← r̄ + g·v for the four rows of a panel.
#[inline(always)]
fn correct<S: Simd>(simd: S, panel: [&mut [f64]; PANEL], cells: &mut [f64], x: [f64; PANEL], gains: [f64; PANEL]) {
    let [first, second, third, fourth] = panel;
    let cells = S::as_mut_simd_f64s(cells).0;
    let count = cells.len();
    let (first, second) = (&mut S::as_mut_simd_f64s(first).0[..count], &mut S::as_mut_simd_f64s(second).0[..count]);
    let (third, fourth) = (&mut S::as_mut_simd_f64s(third).0[..count], &mut S::as_mut_simd_f64s(fourth).0[..count]);
    let (x0, x1, x2, x3) = (simd.splat_f64s(x[0]), simd.splat_f64s(x[1]), simd.splat_f64s(x[2]), simd.splat_f64s(x[3]));
    let (g0, g1, g2, g3) = (simd.splat_f64s(gains[0]), simd.splat_f64s(gains[1]), simd.splat_f64s(gains[2]), simd.splat_f64s(gains[3]));
    for place in 0..count {
        let (r0, r1, r2, r3) = (first[place], second[place], third[place], fourth[place]);
        let v0 = simd.negate_mul_add_e_f64s(x0, r0, cells[place]);
        let v1 = simd.negate_mul_add_e_f64s(x1, r1, v0);
        let v2 = simd.negate_mul_add_e_f64s(x2, r2, v1);
        let v3 = simd.negate_mul_add_e_f64s(x3, r3, v2);
        cells[place] = v3;
        first[place] = simd.mul_add_e_f64s(g0, v0, r0);
        second[place] = simd.mul_add_e_f64s(g1, v1, r1);
        third[place] = simd.mul_add_e_f64s(g2, v2, r2);
        fourth[place] = simd.mul_add_e_f64s(g3, v3, r3);
    }
}

/// The same as averages, r̄ ← k·r̄ + g·v with v as it comes: for rows that carry more than was known.
#[inline(always)]
fn average<S: Simd>(
    simd: S,
    panel: [&mut [f64]; PANEL],
    cells: &mut [f64],
    here: usize,
    x: [f64; PANEL],
    kept: [f64; PANEL],
    gains: [f64; PANEL],
) {
    let lanes = S::as_mut_simd_f64s(cells).0;
    for (pivot, own) in panel.into_iter().enumerate() {
        let (x, kept, gain) = (simd.splat_f64s(x[pivot]), simd.splat_f64s(kept[pivot]), simd.splat_f64s(gains[pivot]));
        for (own, cell) in S::as_mut_simd_f64s(own).0.iter_mut().zip(lanes.iter_mut()) {
            let before = *own;
            *own = simd.mul_add_e_f64s(kept, before, simd.mul_f64s(gain, *cell));
            *cell = simd.negate_mul_add_e_f64s(x, before, *cell);
        }
        own[here + pivot] = 1.0;
    }
}

/// Takes a row out.
struct Remove<'a> {
    width: usize,
    first_response: usize,
    padded: usize,
    rows: &'a mut [f64],
    diagonal: &'a mut [f64],
    row: &'a mut [f64],
    /// m cells for what each pivot saw of the row.
    pivots: &'a mut [f64],
    weight: f64,
    least: f64,
    /// q.
    errors: &'a mut [f64],
}

/// Forward substitution of several rows at once.
struct Leverages<'a> {
    width: usize,
    padded: usize,
    rows: &'a [f64],
    diagonal: &'a [f64],
    cells: &'a mut [f64],
}

impl WithSimd for Leverages<'_> {
    type Output = [f64; LANES];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [f64; LANES] {
        let Self { width, padded, rows, diagonal, cells } = self;
        let mut leverages = [0.0; LANES];
        for pivot in 0..width {
            let (before, behind) = cells.split_at_mut((pivot + 1) * LANES);
            let x = S::as_simd_f64s(&before[pivot * LANES..]).0;
            if diagonal[pivot] > 0.0 {
                let inverse = simd.splat_f64s(diagonal[pivot].recip());
                for (sum, x) in S::as_mut_simd_f64s(&mut leverages).0.iter_mut().zip(x) {
                    *sum = simd.mul_add_e_f64s(*x, simd.mul_f64s(*x, inverse), *sum);
                }
            }
            let (begin, skipped) = place_of(padded, pivot);
            let own = &rows[begin + pivot + 1 - skipped..begin + width - skipped];
            for (own, cells) in own.iter().zip(behind.chunks_exact_mut(LANES)) {
                let own = simd.splat_f64s(*own);
                for (cell, x) in S::as_mut_simd_f64s(cells).0.iter_mut().zip(x) {
                    *cell = simd.negate_mul_add_e_f64s(own, *x, *cell);
                }
            }
        }
        leverages
    }
}

impl WithSimd for Remove<'_> {
    type Output = Option<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Option<f64> {
        let Self { width, first_response, padded, rows, diagonal, row, pivots, weight, least, errors } = self;
        let mut leverage = 0.0;
        for pivot in 0..width {
            let (begin, skipped) = place_of(padded, pivot);
            let x = row[pivot];
            pivots[pivot] = x;
            if x == 0.0 {
                continue;
            }
            leverage += x * (x / diagonal[pivot]);
            let x = simd.splat_f64s(x);
            let cells = S::as_mut_simd_f64s(&mut row[skipped..padded]).0;
            for (own, cell) in S::as_simd_f64s(&rows[begin..begin + padded - skipped]).0.iter().zip(cells) {
                *cell = simd.negate_mul_add_e_f64s(x, *own, *cell);
            }
        }
        let free = (-weight).mul_add(leverage, 1.0);
        // Written so that a zero pivot, which makes it no number, is refused too.
        if !(free >= least) {
            return None;
        }
        errors.copy_from_slice(&row[first_response..first_response + errors.len()]);
        // The row is put together again from its end: nothing but its responses is there yet.
        row[..first_response].fill(0.0);
        let mut square = free / weight;
        for pivot in (0..width).rev() {
            let (begin, skipped) = place_of(padded, pivot);
            let (x, known) = (pivots[pivot], diagonal[pivot]);
            if x == 0.0 {
                continue;
            }
            let relative = x / known;
            let gain = simd.splat_f64s(relative / square);
            let part = simd.splat_f64s(x);
            let own = S::as_mut_simd_f64s(&mut rows[begin..begin + padded - skipped]).0;
            let cells = S::as_mut_simd_f64s(&mut row[skipped..padded]).0;
            for (own, cell) in own.iter_mut().zip(cells) {
                let before = *own;
                *own = simd.negate_mul_add_e_f64s(gain, *cell, before);
                *cell = simd.mul_add_e_f64s(part, before, *cell);
            }
            let with = x.mul_add(relative, square);
            diagonal[pivot] = known * (square / with);
            square = with;
        }
        Some(free)
    }
}
