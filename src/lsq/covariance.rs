//! Covariances of the coefficients that do not suppose errors of one variance, independent of one another: (XᵀX)⁻¹·S·(XᵀX)⁻¹ with S made
//! of the scores x·r of the rows ("sandwich"). Not for choosing among them, and not for tests: callers take square roots of diagonals.
//!
//! | [`Covariance`] | S, of scores u = w·r·x and leverages h |
//! |---|---|
//! | `Classical` | σ̂²·XᵀX |
//! | `Hc0` | Σ uuᵀ (White, 1980) |
//! | `Hc1` | that, times n/(n − k) |
//! | `Hc2` | Σ uuᵀ/(1 − h) (MacKinnon & White, 1985) |
//! | `Hc3` | Σ uuᵀ/(1 − h)² |
//! | `Hac` | Σ over pairs of rows at most `lags` apart, with Bartlett's weights 1 − l/(lags + 1) (Newey & West, 1987) |
//! | `Cluster` | Σ over groups g of (Σ_g u)(Σ_g u)ᵀ, times G/(G − 1)·(n − 1)/(n − k) (Liang & Zeger, 1986) |
//!
//! All are formed with whitened rows (`whitened`), so that an ill-conditioned design loses no digits to the two outer inverses. Bartlett's
//! weights are those of moving sums: with v_s = Σ_{t=s−L..s} u_t, S = Σ v_s v_sᵀ/(L + 1), which costs one product whatever L is and is
//! positive semidefinite by its form.

use faer::{Mat, MatRef};

use super::Error;
use super::coordinates::{in_parts, part_count};
use super::gram::{mirror, symmetric_product};
use super::ordinary::Fit;
use super::problem::{Block, RowSource};
use super::whitened::{Chunk, FREE, Whitening};

/// What is supposed of the errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covariance<'a> {
    /// One variance, independent.
    Classical,
    /// Any variances, independent.
    Hc0,
    /// As `Hc0`, with the degrees of freedom made good.
    Hc1,
    /// As `Hc0`, each residual with its leverage made good: unbiased when the variances are one after all.
    Hc2,
    /// As `Hc2`, and more cautious: close to the jackknife. A row of leverage 1 has no residual and adds nothing.
    Hc3,
    /// Any variances, and correlation between rows at most `lags` apart; rows are in order of time.
    Hac {
        /// Fewer than there are rows. Scores of this many rows are held at a time.
        lags: usize,
    },
    /// Any variances and any correlation within groups, none between them.
    Cluster {
        /// The group of each row, in the order in which rows are visited: codes below the number of rows.
        groups: &'a [u32],
    },
}

/// Cells of the sums of groups that are held at a time.
const GROUP_CELLS: usize = 4 << 20;

/// Covariances of β̂ in raw coordinates, m×m, the intercept first, one a response; `source` gives the rows of which `fit` was made, and
/// is visited once (`Cluster`: once for each four million cells of groups × coefficients; once more where the rank is deficient).
///
/// Residuals and leverages are those of the fit, ridge penalty included; n counts rows of positive weight.
///
/// # Errors
/// The source's; `lags` or `groups` that do not fit the rows; fewer than two groups.
pub fn covariance(source: &mut dyn RowSource, fit: &Fit, kind: Covariance<'_>) -> Result<Vec<Mat<f64>>, Error> {
    Ok(with_degrees(source, fit, kind)?.0)
}

/// The same, with the degrees of freedom of Student's t where they are not the fit's: as many independent scores as there are groups, less
/// one (Cameron & Miller, *A practitioner's guide to cluster-robust inference*, Journal of Human Resources 50, 2015, section VI.D).
fn with_degrees(source: &mut dyn RowSource, fit: &Fit, kind: Covariance<'_>) -> Result<(Vec<Mat<f64>>, Option<f64>), Error> {
    let whitening = Whitening::of(source, fit)?;
    #[allow(clippy::cast_precision_loss)]
    let observations = fit.observations as f64;
    let made_good = observations / fit.degrees_of_freedom;
    let mut degrees = None;
    let (middles, factor) = match kind {
        Covariance::Classical => {
            let variances = fit.statistics.iter().map(|figures| figures.residual_std.powi(2));
            (
                variances
                    .map(|variance| Mat::from_fn(whitening.rank(), whitening.rank(), |i, j| if i == j { variance } else { 0.0 }))
                    .collect(),
                1.0,
            )
        }
        Covariance::Hc0 => (independent(source, &whitening, |_| 1.0)?, 1.0),
        Covariance::Hc1 => (independent(source, &whitening, |_| 1.0)?, made_good),
        Covariance::Hc2 => (independent(source, &whitening, |leverage| free(leverage).sqrt())?, 1.0),
        Covariance::Hc3 => (independent(source, &whitening, free)?, 1.0),
        Covariance::Hac { lags } => (in_time(source, &whitening, lags, fit.observations)?, 1.0),
        Covariance::Cluster { groups } => {
            let (middles, count) = in_groups(source, &whitening, groups)?;
            degrees = Some(count - 1.0);
            (middles, count / (count - 1.0) * (observations - 1.0) / observations * made_good)
        }
    };
    let scaled = |middle: Mat<f64>| {
        let mut whole = whitening.covariance_of(middle.as_ref());
        whole *= faer::Scale(factor);
        whole
    };
    Ok((middles.into_iter().map(scaled).collect(), degrees))
}

impl Fit {
    /// Takes another covariance of the coefficients than the classical one, from the rows it was made of.
    ///
    /// # Errors
    /// As [`covariance`].
    pub fn assume(&mut self, source: &mut dyn RowSource, kind: Covariance<'_>) -> Result<(), Error> {
        let (covariances, degrees) = with_degrees(source, self, kind)?;
        self.information.set_raw_covariance(&covariances, degrees)
    }
}

/// 1/(1 − h), and 0 for a row through which the fit passes.
fn free(leverage: f64) -> f64 {
    let rest = 1.0 - leverage;
    if rest > FREE { 1.0 / rest } else { 0.0 }
}

/// One thread's share.
struct Part {
    chunk: Chunk,
    scores: Vec<f64>,
    middles: Vec<Mat<f64>>,
}

impl Part {
    fn all(whitening: &Whitening<'_>) -> Vec<Self> {
        let zero = || Mat::zeros(whitening.rank(), whitening.rank());
        (0..part_count())
            .map(|_| Self { chunk: Chunk::default(), scores: Vec::new(), middles: (0..whitening.responses()).map(|_| zero()).collect() })
            .collect()
    }

    /// The sum of all, both triangles.
    fn total(parts: Vec<Self>) -> Vec<Mat<f64>> {
        let mut parts = parts.into_iter().map(|part| part.middles);
        let mut total = parts.next().unwrap_or_default();
        for part in parts {
            total.iter_mut().zip(&part).for_each(|(total, part)| *total += part);
        }
        total.iter_mut().for_each(mirror);
        total
    }
}

/// Σ (φ(h)·r)²·wwᵀ over whitened rows w.
fn independent(source: &mut dyn RowSource, whitening: &Whitening<'_>, factor: impl Fn(f64) -> f64 + Sync) -> Result<Vec<Mat<f64>>, Error> {
    let mut parts = Part::all(whitening);
    source.pass(&mut |block| {
        in_parts(block, whitening.width(), &mut parts, |part, range| {
            let Part { chunk, scores, middles } = part;
            whitening.visit(block, range, whitening.rows_at_once(), chunk, |chunk, _| {
                let rows = chunk.rows();
                chunk.leverage.iter_mut().for_each(|leverage| *leverage = factor(*leverage));
                for (response, middle) in middles.iter_mut().enumerate() {
                    let factors: Vec<f64> = (0..rows).map(|row| chunk.leverage[row] * score_factor(chunk, response, row)).collect();
                    scores.resize(rows * whitening.rank(), 0.0);
                    for (place, out) in scores.chunks_exact_mut(rows).enumerate() {
                        scaled(out, chunk.white_column(place), &factors);
                    }
                    symmetric_product(middle.as_mut(), MatRef::from_column_major_slice(scores, rows, whitening.rank()));
                }
            });
        });
        Ok(())
    })?;
    Ok(Part::total(parts))
}

/// What a whitened row is multiplied with to be its score.
fn score_factor(chunk: &Chunk, response: usize, row: usize) -> f64 {
    let root = chunk.roots[row];
    // A row without weight has no score, whatever its response is.
    if root > 0.0 { root * chunk.residual(response)[row] } else { 0.0 }
}

fn scaled(out: &mut [f64], values: &[f64], factors: &[f64]) {
    for ((out, value), factor) in out.iter_mut().zip(values).zip(factors) {
        *out = value * factor;
    }
}

/// S of rows in order of time.
fn in_time(source: &mut dyn RowSource, whitening: &Whitening<'_>, lags: usize, observations: u64) -> Result<Vec<Mat<f64>>, Error> {
    if lags as u64 >= observations {
        return Err(Error::Solver("as many lags as rows, or more: ask for fewer"));
    }
    let (size, responses) = (whitening.rank(), whitening.responses());
    let at_once = whitening.rows_at_once().max(lags);
    let mut parts = Part::all(whitening);
    // Scores of the last rows of the blocks so far, lags×(k·q); zeros stand before the first row.
    let mut tail = Mat::<f64>::zeros(lags, size * responses);
    source.pass(&mut |block| {
        let before = &tail;
        in_parts(block, whitening.width(), &mut parts, |part, range| moving_sums(part, whitening, block, range, at_once, before));
        let next = last_scores(&mut parts[0].chunk, whitening, block, at_once, &tail);
        tail = next;
        Ok(())
    })?;
    // The sums that run past the last row.
    let mut ends = Mat::zeros(lags, size);
    for response in 0..responses {
        for place in 0..size {
            let values = tail.col_as_slice(response * size + place);
            let mut sum = 0.0;
            for row in (0..lags).rev() {
                sum += values[row];
                ends[(row, place)] = sum;
            }
        }
        symmetric_product(parts[0].middles[response].as_mut(), ends.as_ref());
    }
    let mut total = Part::total(parts);
    #[allow(clippy::cast_precision_loss)]
    total.iter_mut().for_each(|middle| *middle *= faer::Scale(1.0 / (lags + 1) as f64));
    Ok(total)
}

/// Adds vvᵀ for the moving sums v that end at the rows of a range.
fn moving_sums(
    part: &mut Part,
    whitening: &Whitening<'_>,
    block: &Block<'_>,
    range: std::ops::Range<usize>,
    at_once: usize,
    tail: &Mat<f64>,
) {
    if range.is_empty() {
        return;
    }
    let (size, responses, lags) = (whitening.rank(), whitening.responses(), tail.nrows());
    let Part { chunk, scores, middles } = part;
    // Scores of the `lags` rows before the next, lags×(k·q).
    let mut held = Mat::<f64>::zeros(lags, size * responses);
    let missing = lags.saturating_sub(range.start);
    held.subrows_mut(0, missing).copy_from(tail.subrows(lags - missing, missing));
    let start = range.start - (lags - missing);
    let mut place = missing;
    whitening.visit(block, start..range.start, at_once, chunk, |chunk, _| {
        write_scores(chunk, whitening, &mut held, place);
        place += chunk.rows();
    });
    let mut next = Mat::<f64>::zeros(lags + at_once, size * responses);
    whitening.visit(block, range, at_once, chunk, |chunk, _| {
        let rows = chunk.rows();
        next.subrows_mut(0, lags).copy_from(&held);
        write_scores(chunk, whitening, &mut next, lags);
        for (response, middle) in middles.iter_mut().enumerate() {
            scores.resize(rows * size, 0.0);
            for (place, out) in scores.chunks_exact_mut(rows).enumerate() {
                let values = next.col_as_slice(response * size + place);
                let mut sum: f64 = values[..lags].iter().sum();
                for (row, out) in out.iter_mut().enumerate() {
                    sum += values[lags + row];
                    *out = sum;
                    sum -= values[row];
                }
            }
            symmetric_product(middle.as_mut(), MatRef::from_column_major_slice(scores, rows, size));
        }
        held.copy_from(next.subrows(rows, lags));
    });
}

/// Writes the scores of a chunk from a row on, the columns of each response beside one another.
fn write_scores(chunk: &Chunk, whitening: &Whitening<'_>, out: &mut Mat<f64>, from: usize) {
    let (rows, size) = (chunk.rows(), whitening.rank());
    for response in 0..whitening.responses() {
        let factors: Vec<f64> = (0..rows).map(|row| score_factor(chunk, response, row)).collect();
        for place in 0..size {
            let out = &mut out.col_as_slice_mut(response * size + place)[from..from + rows];
            scaled(out, chunk.white_column(place), &factors);
        }
    }
}

/// The scores of the last rows, once a block is behind.
fn last_scores(chunk: &mut Chunk, whitening: &Whitening<'_>, block: &Block<'_>, at_once: usize, tail: &Mat<f64>) -> Mat<f64> {
    let (lags, rows) = (tail.nrows(), block.rows());
    let fresh = lags.min(rows);
    let mut next = Mat::<f64>::zeros(lags, tail.ncols());
    next.subrows_mut(0, lags - fresh).copy_from(tail.subrows(fresh, lags - fresh));
    let mut place = lags - fresh;
    whitening.visit(block, rows - fresh..rows, at_once, chunk, |chunk, _| {
        write_scores(chunk, whitening, &mut next, place);
        place += chunk.rows();
    });
    next
}

/// S of rows in groups, and the number of groups.
fn in_groups(source: &mut dyn RowSource, whitening: &Whitening<'_>, groups: &[u32]) -> Result<(Vec<Mat<f64>>, f64), Error> {
    const MISFIT: Error = Error::Solver("there is not one group for each row, or a code of a group is not below the number of rows");
    let (size, responses) = (whitening.rank(), whitening.responses());
    let codes = groups.iter().map(|code| *code as usize + 1).max().unwrap_or(0);
    if codes > groups.len() {
        return Err(MISFIT);
    }
    let mut seen = vec![false; codes];
    let mut middles: Vec<Mat<f64>> = (0..responses).map(|_| Mat::zeros(size, size)).collect();
    let at_once = (GROUP_CELLS / (part_count() * size * responses).max(1)).clamp(1, codes.max(1));
    let mut first = 0;
    while first < codes {
        let count = at_once.min(codes - first);
        let mut parts: Vec<(Chunk, Mat<f64>)> =
            (0..part_count()).map(|_| (Chunk::default(), Mat::zeros(count, size * responses))).collect();
        let mut passed = 0;
        source.pass(&mut |block| {
            let own = groups.get(passed..passed + block.rows()).ok_or(MISFIT)?;
            passed += block.rows();
            if first == 0 {
                for (row, code) in own.iter().enumerate() {
                    seen[*code as usize] |= block.weights.is_none_or(|weights| weights[row] > 0.0);
                }
            }
            in_parts(block, whitening.width(), &mut parts, |(chunk, sums), range| {
                whitening.visit(block, range, whitening.rows_at_once(), chunk, |chunk, range| {
                    let own = &own[range];
                    for response in 0..responses {
                        let factors: Vec<f64> = (0..chunk.rows()).map(|row| score_factor(chunk, response, row)).collect();
                        for place in 0..size {
                            let sums = sums.col_as_slice_mut(response * size + place);
                            for ((code, value), factor) in own.iter().zip(chunk.white_column(place)).zip(&factors) {
                                if let Some(sum) = (*code as usize).checked_sub(first).and_then(|code| sums.get_mut(code)) {
                                    *sum += value * factor;
                                }
                            }
                        }
                    }
                });
            });
            Ok(())
        })?;
        if passed != groups.len() {
            return Err(MISFIT);
        }
        let mut parts = parts.into_iter().map(|(_, sums)| sums);
        let mut total = parts.next().unwrap_or_else(|| Mat::zeros(count, size * responses));
        parts.for_each(|part| total += part);
        for (response, middle) in middles.iter_mut().enumerate() {
            symmetric_product(middle.as_mut(), total.subcols(response * size, size));
        }
        first += count;
    }
    middles.iter_mut().for_each(mirror);
    let count = seen.iter().filter(|seen| **seen).count();
    if count < 2 {
        return Err(Error::Solver("a covariance by groups needs two groups at the least"));
    }
    #[allow(clippy::cast_precision_loss)]
    Ok((middles, count as f64))
}
