//! Many rows at once, of which nobody asks what each was worth: their Gram matrix, at the speed of a matrix product, is added to that of
//! the triangle, and the sum is factored. That takes one multiply-add a row and cell of the triangle where the sweep takes two, and none of
//! them waits for another.
//!
//! A Gram matrix loses twice the digits that a triangle does, so the sum A is factored only where that costs little: where the variance
//! inflation A_jj(A⁻¹)_jj of no column passes a bound, and where what is left of the responses is no small part of them. The first is 1/(1 −
//! R²) of the column on all the others and says how many times larger, relative to the column, the errors of the Gram matrix are in its
//! coefficient (Stewart, *Collinearity and least squares regression*, 1987, whose collinearity index is its root); it is computed, not
//! estimated. Rows that do not pass, and few ones, go one after the other: a block never knows less than its rows.
//!
//! With a forgetting factor λ, row i of n counts λⁿ⁻ⁱ of its weight and the triangle λⁿ.

use std::ops::Range;

use faer::linalg::solvers::Llt;
use faer::linalg::triangular_inverse::{invert_lower_triangular, invert_upper_triangular};
use faer::{Mat, MatMut, MatRef, Par, Side};

use super::{Error, Information, Row};
use crate::lsq::coordinates::column;
use crate::lsq::problem::Block;
use crate::lsq::product::symmetric_product;
use crate::lsq::sweep::product;

/// Variance inflation up to which at least twelve digits are left.
const INFLATION: f64 = 1e3;
/// Part of the sum of squares of a response that has to be left of it, by the same measure.
const LEFT: f64 = 1e-3;
/// Sums of squares that are neither too large nor too small to be multiplied.
const ORDINARY: std::ops::RangeInclusive<f64> = 1e-60..=1e60;
/// Rows of a buffer: few enough for seven of its columns to stay in a core's first-level cache. Not a power of two: columns would begin in
/// the same places of a cache.
const BUFFER_ROWS: usize = 496;

impl Information {
    /// Learns the rows of a block as [`Self::update`] would one after the other, up to rounding: coefficients, variances and counts are the
    /// same to ten digits or better. A-priori errors and leverages of single rows are not found, and [`Self::maximum_leverage`] is only
    /// thinned by the new rows: [`Self::raise_maximum_leverage`] takes theirs into account. The same blocks give the same bits, rows that
    /// are cut into other blocks other last digits. O(nm² + m³).
    ///
    /// # Errors
    /// A number is too large or not finite; nothing was changed.
    pub fn update_block(&mut self, block: &Block<'_>, forgetting_factor: f64) -> Result<(), Error> {
        if self.together(block, forgetting_factor) {
            return Ok(());
        }
        let before = self.clone();
        let outcome = self.one_by_one(block, forgetting_factor);
        if outcome.is_err() {
            *self = before;
        }
        outcome
    }

    /// Makes the largest leverage at least that of the rows of a block which was learnt, as they are known now. O(nm²).
    pub fn raise_maximum_leverage(&mut self, block: &Block<'_>) {
        let (rows, width) = (block.rows(), self.width());
        // Directions that are not known yet come in one by one, which counts the leverages too.
        if self.rank < width {
            return;
        }
        let mut inverse = Mat::zeros(width, width);
        invert_upper_triangular(inverse.as_mut(), self.triangle().as_ref(), Par::Seq);
        let mut buffer = vec![0.0; BUFFER_ROWS.min(rows) * (width + self.responses())];
        let mut white = vec![0.0; BUFFER_ROWS.min(rows) * width];
        let mut leverages = vec![0.0; BUFFER_ROWS.min(rows)];
        for begin in (0..rows).step_by(BUFFER_ROWS) {
            let own = begin..rows.min(begin + BUFFER_ROWS);
            let count = own.len();
            let white = &mut white[..count * width];
            self.arrive_together(block, own.clone(), &mut buffer);
            product(
                MatMut::from_column_major_slice_mut(white, count, width),
                MatRef::from_column_major_slice(&buffer[..count * width], count, width),
                inverse.as_ref(),
            );
            leverages[..count].fill(0.0);
            for cells in white.chunks_exact(count) {
                leverages.iter_mut().zip(cells).for_each(|(leverage, cell)| *leverage += cell * cell);
            }
            for (row, leverage) in own.zip(&leverages) {
                if weight_of(block, row) > 0.0 && leverage.is_finite() {
                    self.maximum_leverage = self.maximum_leverage.max(*leverage);
                }
            }
        }
    }

    fn one_by_one(&mut self, block: &Block<'_>, forgetting_factor: f64) -> Result<(), Error> {
        let fill = |cells: &mut Vec<f64>, matrix: MatRef<'_, f64>, row: usize| {
            cells.clear();
            cells.extend((0..matrix.ncols()).map(|column| matrix[(row, column)]));
        };
        let (mut x, mut low, mut y) = (Vec::new(), Vec::new(), Vec::new());
        let mut innovations = vec![0.0; self.responses()];
        for row in 0..block.rows() {
            fill(&mut x, block.design, row);
            fill(&mut y, block.response, row);
            if let Some(rest) = block.design_low {
                fill(&mut low, rest, row);
            }
            let x = Row { high: &x, low: block.design_low.map(|_| low.as_slice()) };
            self.update(x, &y, weight_of(block, row), forgetting_factor, &mut innovations)?;
        }
        Ok(())
    }

    /// Learns a block by its Gram matrix; false, and nothing changed, where that is not sound.
    fn together(&mut self, block: &Block<'_>, forgetting_factor: f64) -> bool {
        let (rows, width) = (block.rows(), self.width());
        if rows < width || self.rank < width || block.design_low.is_some() {
            return false;
        }
        #[allow(clippy::cast_precision_loss)]
        let kept = forgetting_factor.powf(rows as f64);
        let gram = self.gram(block, forgetting_factor, kept);
        // Written so that what is no number is not in range.
        if !(0..gram.nrows()).all(|place| ORDINARY.contains(&gram[(place, place)])) {
            return false;
        }
        let Ok(factored) = Llt::new(gram.as_ref(), Side::Lower) else { return false };
        let lower = factored.L();
        let mut inverse = Mat::zeros(width, width);
        invert_lower_triangular(inverse.as_mut(), lower.submatrix(0, 0, width, width), Par::Seq);
        let sound = (0..width).all(|place| {
            let own: f64 = inverse.col_as_slice(place)[place..].iter().map(|cell| cell * cell).sum();
            own * gram[(place, place)] <= INFLATION
        });
        // What no column explains, and what was left of the rows before.
        let rest = |place: usize| (width..=place).map(|column| lower[(place, column)].powi(2)).sum::<f64>();
        let residual: Vec<f64> =
            self.residual.iter().enumerate().map(|(response, residual)| kept * residual + rest(width + response)).collect();
        let clear = residual.iter().zip(width..).all(|(residual, place)| *residual >= LEFT * gram[(place, place)]);
        if !(sound && clear) {
            return false;
        }
        self.residual = residual;
        self.factor.replace(lower, &gram);
        for row in 0..rows {
            self.count(weight_of(block, row), 0.0, forgetting_factor);
        }
        if forgetting_factor < 1.0 {
            self.factor.keep_a_trace();
        }
        self.moved_on();
        true
    }

    /// The Gram matrix (m + q columns, lower triangle) of x̃ and what the origin leaves of the responses, of the rows that are known and of
    /// those of the block.
    fn gram(&self, block: &Block<'_>, forgetting_factor: f64, kept: f64) -> Mat<f64> {
        let (rows, width) = (block.rows(), self.width());
        let all = width + self.responses();
        let mut gram = Mat::zeros(all, all);
        let mut buffer = vec![0.0; BUFFER_ROWS.max(width) * all];
        self.factor.write_rows(kept, &mut buffer[..width * all]);
        symmetric_product(gram.as_mut(), MatRef::from_column_major_slice(&buffer[..width * all], width, all));
        let mut roots = vec![1.0; BUFFER_ROWS];
        for begin in (0..rows).step_by(BUFFER_ROWS) {
            let own = begin..rows.min(begin + BUFFER_ROWS);
            let count = own.len();
            let buffer = &mut buffer[..count * all];
            self.arrive_together(block, own.clone(), buffer);
            if forgetting_factor < 1.0 || block.weights.is_some() {
                #[allow(clippy::cast_precision_loss)]
                let mut left = forgetting_factor.powf((rows - own.end) as f64);
                for (root, row) in roots.iter_mut().zip(own).rev() {
                    *root = (weight_of(block, row) * left).sqrt();
                    left *= forgetting_factor;
                }
                for cells in buffer.chunks_exact_mut(count) {
                    cells.iter_mut().zip(&roots).for_each(|(cell, root)| *cell *= root);
                }
            }
            symmetric_product(gram.as_mut(), MatRef::from_column_major_slice(buffer, count, all));
        }
        gram
    }

    /// Rows of a block in the system's coordinates, and what the origin leaves of their responses: column by column (m + q) in a buffer.
    fn arrive_together(&self, block: &Block<'_>, rows: Range<usize>, buffer: &mut [f64]) {
        let (origin, width, responses) = (&self.origin, self.width(), self.responses());
        let (count, arch) = (rows.len(), self.factor.arch());
        let (system, rest) = buffer.split_at_mut(count * width);
        let rest = &mut rest[..count * responses];
        for (response, rest) in rest.chunks_exact_mut(count).enumerate() {
            let observed = &column(block.response, response)[rows.clone()];
            rest.iter_mut().zip(observed).for_each(|(rest, observed)| *rest = observed - origin.level[response]);
        }
        let (ones, system) = system.split_at_mut(count * (width - self.predictors()));
        ones.fill(1.0);
        for (predictor, own) in system.chunks_exact_mut(count).enumerate() {
            let x = &column(block.design, predictor)[rows.clone()];
            let (centre, scale) = (origin.centre[predictor], origin.scale[predictor]);
            for (response, rest) in rest.chunks_exact_mut(count).enumerate() {
                let slope = origin.slopes[(predictor, response)];
                arch.dispatch(
                    #[inline(always)]
                    || {
                        for ((own, rest), x) in own.iter_mut().zip(rest).zip(x) {
                            let distance = x - centre;
                            *own = distance * scale;
                            *rest = (-slope).mul_add(distance, *rest);
                        }
                    },
                );
            }
        }
    }
}

/// 1 where rows have no weights.
fn weight_of(block: &Block<'_>, row: usize) -> f64 {
    block.weights.map_or(1.0, |weights| weights[row])
}
