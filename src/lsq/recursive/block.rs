//! Many rows at once: eight rows go through the triangle together, so that its cells are loaded and stored once for all of them. Not another
//! algorithm: each row meets the triangle as the row before has left it, and has the leverage and the innovations of a row that comes alone.
//! Since the arithmetic is the same, so is the rate, but for wide triangles, which leave the first-level cache.
//!
//! The pivots of a panel are found row after row with 1/σ² carried along rather than σ², which takes one division a pivot; the columns right
//! of it then take 4×8 corrections from registers. Rows whose numbers are so large or small that the products of two squares could overflow
//! go one by one.

use pulp::{Simd, WithSimd};

use super::arrival::Arrival;
use super::factor::{LANES, NOISE, PANEL, STEEP, Step, place_of};
use super::{Error, Information, Row};

/// Rows of a tile.
const TILE: usize = 8;
/// Squares that are neither too large nor too small to be multiplied.
const ORDINARY: std::ops::RangeInclusive<f64> = 1e-60..=1e60;

impl Information {
    /// Learns n rows as [`Self::update`] would one after the other, to rounding, in one call: `design` (n×p) and `response` (n×q) row
    /// by row, `weights` (n). `innovations` (n×q) receives the a-priori errors of each row after the rows before it, `leverages` (n) its
    /// leverage then. The result depends on where blocks begin, in the last digits; the same blocks give the same bits.
    ///
    /// # Errors
    /// A number is too large or not finite; nothing was changed.
    pub fn update_block(
        &mut self,
        design: &[f64],
        response: &[f64],
        weights: &[f64],
        forgetting_factor: f64,
        innovations: &mut [f64],
        leverages: &mut [f64],
    ) -> Result<(), Error> {
        let before = self.clone();
        let outcome = self.tiles(design, response, weights, forgetting_factor, innovations, leverages);
        if outcome.is_err() {
            *self = before;
        }
        outcome
    }

    fn tiles(
        &mut self,
        design: &[f64],
        response: &[f64],
        weights: &[f64],
        forgetting_factor: f64,
        innovations: &mut [f64],
        leverages: &mut [f64],
    ) -> Result<(), Error> {
        let (predictors, responses) = (self.predictors(), self.responses());
        // Each row is answered by the rows before it, of this block too.
        self.moved_on();
        let mut tile = Tile::new(self.factor.padded());
        let mut begin = 0;
        while begin < weights.len() {
            let count = TILE.min(weights.len() - begin);
            let rows = begin..begin + count;
            let design = &design[rows.start * predictors..rows.end * predictors];
            let response = &response[rows.start * responses..rows.end * responses];
            let innovations = &mut innovations[rows.start * responses..rows.end * responses];
            let (weights, leverages) = (&weights[rows.clone()], &mut leverages[rows]);
            if count < TILE || !self.tile(&mut tile, design, response, weights, forgetting_factor, innovations, leverages)? {
                for row in 0..count {
                    let x = Row { high: &design[row * predictors..(row + 1) * predictors], low: None };
                    let own = row * responses..(row + 1) * responses;
                    leverages[row] = self.update(x, &response[own.clone()], weights[row], forgetting_factor, &mut innovations[own])?;
                }
            }
            begin += count;
        }
        Ok(())
    }

    /// Learns a tile; false, and nothing changed, if its rows have to go one by one.
    #[allow(clippy::too_many_arguments)] // the rows of a tile, as those of a block
    fn tile(
        &mut self,
        tile: &mut Tile,
        design: &[f64],
        response: &[f64],
        weights: &[f64],
        forgetting_factor: f64,
        innovations: &mut [f64],
        leverages: &mut [f64],
    ) -> Result<bool, Error> {
        let (width, predictors, responses) = (self.width(), self.predictors(), self.responses());
        let (padded, first) = (self.factor.padded(), self.factor.first_response());
        let arch = self.factor.arch();
        let mut ordinary = self.factor.diagonal[..width].iter().fold(true, |all, known| all & ORDINARY.contains(known));
        for row in 0..TILE {
            let cells = &mut tile.cells[row * padded..(row + 1) * padded];
            let (system, rest) = cells.split_at_mut(first);
            system[width..].fill(0.0);
            rest[responses..].fill(0.0);
            let (system, rest) = (&mut system[..width], &mut rest[..responses]);
            let x = &design[row * predictors..(row + 1) * predictors];
            let y = &response[row * responses..(row + 1) * responses];
            let square = arch.dispatch(Arrival { origin: &self.origin, x, y, row: system, rest });
            let squares = rest.iter().fold(square, |sum, rest| sum + rest * rest);
            Self::in_range(squares, weights[row])?;
            let share = weights[row] / forgetting_factor;
            ordinary &= squares < *ORDINARY.end() && (weights[row] == 0.0 || ORDINARY.contains(&share));
            tile.shares[row] = share;
            tile.noise[row] = NOISE * square.sqrt();
        }
        if !ordinary {
            return Ok(false);
        }
        for (row, weight) in weights.iter().enumerate() {
            self.factor.count_energy(&tile.cells[row * padded..(row + 1) * padded], Step { weight: *weight, forgetting_factor });
        }
        tile.leverages = [0.0; TILE];
        let (rows, diagonal) = self.factor.rows_mut();
        arch.dispatch(Tiles { width, padded, rows, diagonal, tile, factor: forgetting_factor });
        self.factor.restore_padding();
        for row in 0..TILE {
            let found = &tile.cells[row * padded + first..][..responses];
            innovations[row * responses..(row + 1) * responses].copy_from_slice(found);
            for (residual, innovation) in self.residual.iter_mut().zip(found) {
                *residual = forgetting_factor * (*residual + innovation * innovation * tile.shares[row]);
            }
            leverages[row] = tile.leverages[row];
            self.count(weights[row], tile.leverages[row], forgetting_factor);
        }
        if forgetting_factor < 1.0 {
            self.factor.keep_a_trace();
        }
        Ok(true)
    }
}

/// Eight rows on their way.
struct Tile {
    /// As the factor's incoming row, one after the other.
    cells: Vec<f64>,
    /// 1/σ².
    shares: [f64; TILE],
    noise: [f64; TILE],
    leverages: [f64; TILE],
}

impl Tile {
    fn new(padded: usize) -> Self {
        Self { cells: vec![0.0; TILE * padded], shares: [0.0; TILE], noise: [0.0; TILE], leverages: [0.0; TILE] }
    }
}

/// What a panel's pivots found in the rows of a tile.
struct Pivots {
    diagonal: [f64; PANEL],
    shares: [f64; TILE],
    leverages: [f64; TILE],
    /// x, the part of r̄ that is kept, and the gain of each row at each pivot.
    x: [[f64; PANEL]; TILE],
    kept: [[f64; PANEL]; TILE],
    gains: [[f64; PANEL]; TILE],
    /// Whether a row carries much more than was known.
    steep: bool,
}

/// Takes a tile through all panels.
struct Tiles<'a> {
    width: usize,
    padded: usize,
    rows: &'a mut [f64],
    diagonal: &'a mut [f64],
    tile: &'a mut Tile,
    factor: f64,
}

impl WithSimd for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { width, padded, rows, diagonal, tile, factor } = self;
        let mut pivots = Pivots {
            diagonal: [0.0; PANEL],
            shares: [0.0; TILE],
            leverages: [0.0; TILE],
            x: [[0.0; PANEL]; TILE],
            kept: [[0.0; PANEL]; TILE],
            gains: [[0.0; PANEL]; TILE],
            steep: false,
        };
        for next in (0..width).step_by(PANEL) {
            let (begin, skipped) = place_of(padded, next);
            let length = padded - skipped;
            let here = next - skipped;
            let panel = &mut rows[begin..begin + PANEL * length];
            let triangle = [
                panel[here + 1],
                panel[here + 2],
                panel[here + 3],
                panel[length + here + 2],
                panel[length + here + 3],
                panel[2 * length + here + 3],
            ];
            let known: [f64; PANEL] = *diagonal[next..].first_chunk().unwrap_or(&[1.0; PANEL]);
            find::<false>(&mut pivots, tile, padded, next, known, triangle, factor);
            if pivots.steep {
                find::<true>(&mut pivots, tile, padded, next, known, triangle, factor);
                average(simd, panel, length, &mut tile.cells, padded, skipped, &pivots);
                for pivot in 0..PANEL {
                    panel[pivot * length..pivot * length + here + pivot].fill(0.0);
                    panel[pivot * length + here + pivot] = 1.0;
                }
                for row in 0..TILE {
                    tile.cells[row * padded + skipped..row * padded + next + PANEL].fill(0.0);
                }
            } else {
                correct(simd, panel, length, &mut tile.cells, padded, skipped, &pivots);
            }
            diagonal[next..next + PANEL].copy_from_slice(&pivots.diagonal);
            tile.shares = pivots.shares;
            tile.leverages = pivots.leverages;
        }
    }
}

/// The pivots of a panel for all rows of a tile: the same operations on the cells of R̄ as the columns to the right see.
#[inline(always)]
fn find<const AVERAGE: bool>(
    found: &mut Pivots,
    tile: &Tile,
    padded: usize,
    next: usize,
    known: [f64; PANEL],
    triangle: [f64; 6],
    factor: f64,
) {
    let (mut diagonal, mut shares, mut leverages) = (known, tile.shares, tile.leverages);
    let mut cells = [[0.0; PANEL]; TILE];
    for (row, cells) in cells.iter_mut().enumerate() {
        *cells = *tile.cells[row * padded + next..].first_chunk().unwrap_or(&[0.0; PANEL]);
    }
    let [r01, r02, r03, r12, r13, r23] = triangle;
    let mut own = [[0.0, r01, r02, r03], [0.0, 0.0, r12, r13], [0.0, 0.0, 0.0, r23], [0.0; PANEL]];
    // Along the diagonals of rows and pivots, which wait for one another no longer than they must.
    for step in 0..TILE + PANEL - 1 {
        for pivot in 0..PANEL {
            let row = step.wrapping_sub(pivot);
            if row < TILE {
                let x = cells[row][pivot];
                let counted = if x.abs() > tile.noise[row] { x } else { 0.0 };
                let before = diagonal[pivot];
                let weighted = shares[row] * counted;
                let together = weighted.mul_add(counted, before);
                // Both reciprocals by one division.
                let inverse = (before * together).recip();
                let of_together = inverse * before;
                leverages[row] = (counted * counted).mul_add(inverse * together, leverages[row]);
                let (kept, gain) = (before * of_together, weighted * of_together);
                shares[row] *= kept;
                diagonal[pivot] = factor * together;
                found.x[row][pivot] = x;
                found.kept[row][pivot] = kept;
                found.gains[row][pivot] = gain;
                for column in pivot + 1..PANEL {
                    meet::<AVERAGE>(kept, gain, x, &mut own[pivot][column], &mut cells[row][column]);
                }
            }
        }
    }
    (found.diagonal, found.shares, found.leverages) = (diagonal, shares, leverages);
    found.steep = found.kept.iter().flatten().fold(1.0_f64, |least, kept| least.min(*kept)) * STEEP < 1.0;
}

/// A row's cell meets the one of R̄ above it.
#[inline(always)]
fn meet<const AVERAGE: bool>(kept: f64, gain: f64, x: f64, own: &mut f64, cell: &mut f64) {
    if AVERAGE {
        let before = *own;
        *own = kept.mul_add(before, gain * *cell);
        *cell = (-x).mul_add(before, *cell);
    } else {
        *cell = (-x).mul_add(*own, *cell);
        *own = gain.mul_add(*cell, *own);
    }
}

/// Columns of registers that are taken at once, and when there are fewer.
const ABREAST: usize = 4;
const FEW: usize = 2;

/// All columns of a panel, corrected by all rows of a tile.
#[inline(always)]
fn correct<S: Simd>(simd: S, panel: &mut [f64], length: usize, cells: &mut [f64], padded: usize, skipped: usize, pivots: &Pivots) {
    let registers = length / S::F64_LANES;
    let (many, whole) = (registers / ABREAST * ABREAST, registers / FEW * FEW);
    for first in (0..many).step_by(ABREAST) {
        correct_some::<S, ABREAST>(simd, panel, length, cells, padded, skipped, first, pivots);
    }
    for first in (many..whole).step_by(FEW) {
        correct_some::<S, FEW>(simd, panel, length, cells, padded, skipped, first, pivots);
    }
    for first in whole..registers {
        correct_some::<S, 1>(simd, panel, length, cells, padded, skipped, first, pivots);
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)] // the innermost loop
fn correct_some<S: Simd, const C: usize>(
    simd: S,
    panel: &mut [f64],
    length: usize,
    cells: &mut [f64],
    padded: usize,
    skipped: usize,
    first: usize,
    pivots: &Pivots,
) {
    let mut own = [[simd.splat_f64s(0.0); C]; PANEL];
    for pivot in 0..PANEL {
        let lanes = &S::as_simd_f64s(&panel[pivot * length..(pivot + 1) * length]).0[first..first + C];
        own[pivot].copy_from_slice(lanes);
    }
    for row in 0..TILE {
        let lanes = &mut S::as_mut_simd_f64s(&mut cells[row * padded + skipped..(row + 1) * padded]).0[first..first + C];
        let mut cell = [simd.splat_f64s(0.0); C];
        cell.copy_from_slice(lanes);
        for pivot in 0..PANEL {
            let x = simd.splat_f64s(pivots.x[row][pivot]);
            let gain = simd.splat_f64s(pivots.gains[row][pivot]);
            for column in 0..C {
                cell[column] = simd.negate_mul_add_e_f64s(x, own[pivot][column], cell[column]);
                own[pivot][column] = simd.mul_add_e_f64s(gain, cell[column], own[pivot][column]);
            }
        }
        lanes.copy_from_slice(&cell);
    }
    for pivot in 0..PANEL {
        let lanes = &mut S::as_mut_simd_f64s(&mut panel[pivot * length..(pivot + 1) * length]).0[first..first + C];
        lanes.copy_from_slice(&own[pivot]);
    }
}

/// The same as averages.
#[inline(always)]
fn average<S: Simd>(simd: S, panel: &mut [f64], length: usize, cells: &mut [f64], padded: usize, skipped: usize, pivots: &Pivots) {
    for row in 0..TILE {
        let lanes = S::as_mut_simd_f64s(&mut cells[row * padded + skipped..(row + 1) * padded]).0;
        for pivot in 0..PANEL {
            let x = simd.splat_f64s(pivots.x[row][pivot]);
            let kept = simd.splat_f64s(pivots.kept[row][pivot]);
            let gain = simd.splat_f64s(pivots.gains[row][pivot]);
            let own = S::as_mut_simd_f64s(&mut panel[pivot * length..(pivot + 1) * length]).0;
            for (own, cell) in own.iter_mut().zip(lanes.iter_mut()) {
                let before = *own;
                *own = simd.mul_add_e_f64s(kept, before, simd.mul_f64s(gain, *cell));
                *cell = simd.negate_mul_add_e_f64s(x, before, *cell);
            }
        }
    }
}

const _: () = assert!(LANES.is_multiple_of(PANEL) && TILE == LANES);
