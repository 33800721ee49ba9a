//! A row as it arrives: in the system's coordinates, and its responses as what the origin's coefficients leave of them.

use pulp::{Simd, WithSimd};

use super::Origin;
use super::factor::LANES;

/// One row and where it goes.
pub(super) struct Arrival<'a> {
    pub(super) origin: &'a Origin,
    /// x, p.
    pub(super) x: &'a [f64],
    /// y, q.
    pub(super) y: &'a [f64],
    /// Receives x̃, m.
    pub(super) row: &'a mut [f64],
    /// Receives y − ŷ, q.
    pub(super) rest: &'a mut [f64],
}

impl WithSimd for Arrival<'_> {
    /// ‖x̃‖².
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let Self { origin, x, y, row, rest } = self;
        let ones = usize::from(origin.intercept);
        let predictors = origin.centre.len();
        if let (true, Some(first)) = (origin.intercept, row.first_mut()) {
            *first = 1.0;
        }
        let row = &mut row[ones..ones + predictors];
        let x = &x[..predictors];
        let (centre, scale) = (&origin.centre[..predictors], &origin.scale[..predictors]);
        for place in 0..predictors {
            row[place] = (x[place] - centre[place]) * scale[place];
        }
        let mut squares = [0.0; LANES];
        let (whole, tail) = row.as_chunks::<LANES>();
        for cells in whole {
            for lane in 0..LANES {
                squares[lane] = cells[lane].mul_add(cells[lane], squares[lane]);
            }
        }
        for (square, cell) in squares.iter_mut().zip(tail) {
            *square = cell.mul_add(*cell, *square);
        }
        for (response, rest) in rest.iter_mut().enumerate() {
            let slopes = &origin.slopes.col_as_slice(response)[..predictors];
            let mut sums = [0.0; LANES];
            let (x_whole, x_tail) = x.as_chunks::<LANES>();
            let (centre_whole, centre_tail) = centre.as_chunks::<LANES>();
            let (slopes_whole, slopes_tail) = slopes.as_chunks::<LANES>();
            for block in 0..x_whole.len() {
                let (x, centre, slopes) = (&x_whole[block], &centre_whole[block], &slopes_whole[block]);
                for lane in 0..LANES {
                    sums[lane] = (x[lane] - centre[lane]).mul_add(slopes[lane], sums[lane]);
                }
            }
            for lane in 0..x_tail.len() {
                sums[lane] = (x_tail[lane] - centre_tail[lane]).mul_add(slopes_tail[lane], sums[lane]);
            }
            *rest = y[response] - (origin.level[response] + total(sums));
        }
        #[allow(clippy::cast_precision_loss)] // 0 or 1
        {
            total(squares) + ones as f64
        }
    }
}

/// The sum, by halves.
#[inline(always)]
fn total(lanes: [f64; LANES]) -> f64 {
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}
