//! Forecasts from a rolling origin: what a model of past values is worth several steps ahead.
//!
//! The rows are cut into segments of time as the validation has them, and the model of each fold, which has learnt from the segments before,
//! forecasts the rows of the next: from every row of it (and the last one before) as many steps as there are, its own predictions standing
//! for the past values of the target that are not known there; other columns are those that were recorded. So no forecast, and no
//! coefficient behind it, has seen a row after its origin. Beside it stands the forecast of no change: the value at the origin.
//!
//! Tashman, *Out-of-sample tests of forecasting accuracy*, International Journal of Forecasting 16 (2000).

use super::error::ServiceError;
use super::jobs::Running;
use super::source::Series;
use crate::features::{Design, RowBuffer};
use crate::lsq;
use crate::model::version::finite;
use crate::model::{LastValueRecord, StepRecord};

/// Multiplications at the most: some tens of seconds.
const WORK: u64 = 20_000_000_000;
/// Cells of a series at the most: half a gigabyte.
pub(super) const CELLS: u64 = 1 << 26;

/// What the model of one fold is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fold<'a> {
    /// Its design.
    pub(super) design: &'a Design,
    /// Slopes (p×q) and intercepts (q).
    pub(super) estimate: &'a lsq::Estimate,
}

/// Scores of the forecasts of 1 to `steps` steps, by target. `segments` has the segment of time of each row, and fold k forecasts segment
/// k + 1; `targets` names the q targets.
///
/// # Errors
/// It would take too long; the job was cancelled.
pub(super) fn scores(
    running: &Running,
    series: &Series,
    segments: &[u32],
    folds: &[Fold<'_>],
    targets: &[String],
    steps: u32,
) -> Result<Vec<Vec<StepRecord>>, ServiceError> {
    let (count, responses) = (series.numbers.len(), targets.len());
    let width = folds.first().map_or(0, |fold| fold.design.width());
    if (count as u64).saturating_mul(u64::from(steps)).saturating_mul((width * responses) as u64) > WORK {
        return Err(ServiceError::request("/validation/steps", "forecasts of so many steps from every row take too long: ask for fewer"));
    }
    let steps = steps as usize;
    let mut own = vec![lsq::Errors::default(); steps * responses];
    let mut last = own.clone();
    let (mut buffer, mut cells) = (RowBuffer::default(), Vec::new());
    for (fold, segment) in folds.iter().zip(1..) {
        let fed: Vec<(usize, usize, usize)> = fed(fold.design, targets);
        let (slopes, intercepts) = fold.estimate;
        let first = segments.iter().position(|own| *own == segment).unwrap_or(count);
        let end = segments.iter().rposition(|own| *own == segment).map_or(first, |place| place + 1);
        for begin in first.max(1)..end {
            if begin % 256 == 0 && running.is_cancelled() {
                return Err(ServiceError::Cancelled);
            }
            let (origin, mut path) = (begin - 1, Vec::with_capacity(steps * responses));
            for (step, row) in (begin..end.min(begin + steps)).enumerate() {
                // A row that is not there, or in another segment, ends the path.
                if segments[row] != segment || series.numbers[row] != series.numbers[origin] + step as u64 + 1 {
                    break;
                }
                cells.clear();
                cells.extend_from_slice(&series.cells[row * series.width..(row + 1) * series.width]);
                for &(place, target, lag) in fed.iter().filter(|(.., lag)| *lag <= step) {
                    cells[place] = path[(step - lag) * responses + target];
                }
                let x = fold.design.row(&cells, &mut buffer).high;
                let weight = series.weights[row];
                for target in 0..responses {
                    let linear: f64 = x.iter().zip(slopes.col_as_slice(target)).map(|(x, slope)| x * slope).sum();
                    let predicted = linear + intercepts.get(target).copied().unwrap_or(0.0);
                    path.push(predicted);
                    let observed = series.responses[row * responses + target];
                    let unchanged = series.responses[origin * responses + target];
                    own[target * steps + step].learn(observed - predicted, observed - unchanged, weight);
                    last[target * steps + step].learn(observed - unchanged, observed - unchanged, weight);
                }
            }
        }
    }
    let record = |(step, (own, last)): (u32, (&lsq::Errors, &lsq::Errors))| {
        let (own, last) = (own.score(), last.score());
        let last_value = LastValueRecord { rmse: finite(last.rmse), mae: finite(last.mae) };
        StepRecord { step, rows: own.rows, rmse: finite(own.rmse), mae: finite(own.mae), last_value }
    };
    Ok(own.chunks(steps).zip(last.chunks(steps)).map(|(own, last)| (1..).zip(own.iter().zip(last)).map(record).collect()).collect())
}

/// Cells of past values of the targets: place, which target, and rows back.
pub(super) fn fed(design: &Design, targets: &[String]) -> Vec<(usize, usize, usize)> {
    let target = |column: usize| targets.iter().position(|target| *target == design.lagged()[column]);
    design.past().iter().filter_map(|past| Some((past.place, target(past.column)?, past.lag))).collect()
}
