//! Lasso and elastic net: minimise 1/(2n)·Σ wᵢ(yᵢ − α − xᵢᵀβ)² + penalty·(l1_ratio·‖β‖₁ + ½(1 − l1_ratio)·‖β‖²) with n = Σw, in the
//! coordinates of X as given; the intercept α is never penalised.
//!
//! 1. One pass forms the Gram matrix of (1, X, Y), one for each fold when the penalty is chosen by cross-validation. The rows are not
//!    needed again: the Gram matrix of all folds but one gives that fold's path, and its own gives the squared error of every point of it.
//! 2. Cyclic coordinate descent with covariance updates (Friedman, Hastie & Tibshirani, *Regularization paths for generalized linear
//!    models via coordinate descent*, 2010), each penalty beginning where the one before ended, over the predictors that the sequential
//!    strong rule lets in (Tibshirani et al., *Strong rules for discarding predictors in lasso-type problems*, 2012). The rule can be
//!    wrong: predictors that violate the optimality conditions are added until there are none.
//! 3. Now and then the system of the nonzero slopes with their present signs is solved exactly, and the step towards its solution is cut
//!    where a slope first changes sign (Lee, Battle, Raina & Ng, *Efficient sparse coding algorithms*, 2007). Both kinds of step only ever
//!    lower the objective; the second ends what the first approaches, however ill-conditioned the columns are.
//! 4. It stops when the duality gap is below a tolerance times ‖y‖²/n. The slopes of the penalty that was asked for, or chosen, are always
//!    carried on to the exact solution of 3., and refined against the rows where the Gram matrix leaves fewer than 13 digits.
//!
//! The effective number of parameters is tr(X(XᵀX + n·penalty·(1 − l1_ratio))⁻¹Xᵀ) over the nonzero slopes, one more for the intercept;
//! for the lasso this is their number (Zou, Hastie & Tibshirani, *On the degrees of freedom of the lasso*, 2007; Tibshirani & Taylor,
//! *Degrees of freedom in lasso problems*, 2012).

use faer::{Mat, MatRef};
use rayon::prelude::*;

use super::Error;
use super::coordinates::{Coordinates, column, in_parts, part_count, power_of_two_below_inverse};
use super::double_double::Double;
use super::gram::{mirror, provisional, symmetric_product};
use super::nonnegative::{Factor, against_rows, raw_intercept};
use super::problem::{Block, RowSource};
use super::refine::DoubleMatrix;
use super::validation::fold_of;

/// Unit roundoff.
const ROUNDOFF: f64 = f64::EPSILON / 2.0;
/// Duality gap, relative to ‖y‖²/n, at which a point of the path ends, and one of a fold's path.
const PATH_GAP: f64 = 1e-14;
const FOLD_GAP: f64 = 1e-10;
/// The same for points on the way to a fixed penalty.
const WAY_GAP: f64 = 1e-3;
/// Squared change of the fit, relative to ‖y‖²/n, that is nothing but rounding.
const NOTHING: f64 = 1e-30;
/// Sweeps at one penalty at the most: only systems at the end of what floats can say come near it.
const SWEEPS: u64 = 20_000;
/// Slopes that an exact solution may set to zero one after the other before coordinate descent has its turn again.
const CUTS: usize = 16;
/// Relative spread about the mean, squared, of a column that does not vary.
const CONSTANT: f64 = 1e-12;
/// Validation error relative to that of the mean below which it is the rounding of its own computation.
const VALIDATION_FLOOR: f64 = 1e-14;
/// Relative pivot from which the Gram matrix alone leaves 13 digits.
const SOUND: f64 = 1e-3;
/// Rows × columns² up to which rows are always looked at again: a fraction of a second.
const PRECISE_WORK: f64 = 1e8;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ElasticNet {
    /// The penalty, or how to choose it.
    pub penalty: ElasticPenalty,
    /// In 0..=1; 1 is the lasso, 0 a ridge whose penalty is n times as large.
    pub l1_ratio: f64,
    /// Whether there is an intercept.
    pub intercept: bool,
    /// Whether slopes must not be negative.
    pub positive: bool,
}

/// How strong the penalty is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ElasticPenalty {
    /// This one.
    Fixed(f64),
    /// The one of the least mean squared error in cross-validation.
    Auto {
        /// Folds, at least 2; the fold of a row is [`super::validation::fold_of`].
        folds: u32,
        /// Seed of the folds.
        seed: u64,
        /// Whether to take the largest penalty within one standard error of the least mean instead.
        one_standard_error: bool,
        /// Points of the path, usually 100.
        points: usize,
        /// The last penalty relative to the first, which is the least that makes every slope zero; usually 1e-3.
        smallest: f64,
    },
}

/// A point of the path.
#[derive(Clone, Debug, PartialEq)]
pub struct PathPoint {
    /// Its penalty.
    pub penalty: f64,
    /// Slopes that are not zero.
    pub nonzero: usize,
    /// Mean squared error on held-out rows, folds weighted by their Σw.
    pub validation_mean: Option<f64>,
    /// Its standard error, from the differences between folds.
    pub validation_std_error: Option<f64>,
    /// Slopes, p.
    pub slopes: Vec<f64>,
}

/// A fit.
#[derive(Clone, Debug)]
pub struct ElasticNetFit {
    /// The penalty, as given or as chosen.
    pub penalty: f64,
    /// Slopes, p×q; exactly zero where they are not part of the model.
    pub slopes: Mat<f64>,
    /// One a response; empty without an intercept.
    pub intercepts: Vec<f64>,
    /// Whether each slope is not zero, for one response at least.
    pub active: Vec<bool>,
    /// The path from the largest penalty down; empty with a fixed penalty.
    pub path: Vec<PathPoint>,
    /// How far the objective is from its minimum at the most, in squared units of the response; the largest of all responses.
    pub duality_gap: f64,
    /// Sweeps of coordinate descent, those of all folds included.
    pub sweeps: u64,
    /// Effective number of parameters, the intercept counted; the largest of all responses.
    pub effective_parameters: f64,
    /// Rows of positive weight.
    pub observations: u64,
    /// Σw.
    pub weight: f64,
}

impl ElasticNet {
    fn check(&self, responses: usize) -> Result<(), Error> {
        if !(0.0..=1.0).contains(&self.l1_ratio) {
            return Err(Error::Solver("`l1_ratio` must lie between 0 and 1"));
        }
        match self.penalty {
            ElasticPenalty::Fixed(penalty) if !(penalty >= 0.0 && penalty.is_finite()) => {
                Err(Error::Solver("the penalty must be finite and not negative"))
            }
            ElasticPenalty::Auto { .. } if responses != 1 => Err(Error::Solver("a penalty can be chosen for one response only")),
            ElasticPenalty::Auto { folds, .. } if folds < 2 => Err(Error::Solver("cross-validation needs two folds or more")),
            ElasticPenalty::Auto { points: 0, .. } => Err(Error::Solver("a path needs one point or more")),
            ElasticPenalty::Auto { smallest, .. } if !(smallest > 0.0 && smallest < 1.0) => {
                Err(Error::Solver("the smallest penalty must lie between 0 and 1, relative to the largest"))
            }
            _ => Ok(()),
        }
    }
}

/// Fits. Several responses are fitted each by itself.
///
/// # Errors
/// [`Error::Solver`] for a specification that makes no sense; otherwise see [`Error`].
pub fn elastic_net(source: &mut dyn RowSource, specification: &ElasticNet) -> Result<ElasticNetFit, Error> {
    specification.check(source.responses())?;
    let (folds, seed) = match specification.penalty {
        ElasticPenalty::Fixed(_) => (1, 0),
        ElasticPenalty::Auto { folds, seed, .. } => (folds, seed),
    };
    let moments = Moments::of(source, specification.intercept, folds, seed)?;
    let whole = moments.without(None);
    let mut sweeps = 0;
    let mut path = Vec::new();
    let mut descents = Vec::new();
    let responses = moments.coordinates.responses();
    let quadratics: Vec<Quadratic> = (0..responses).map(|response| moments.quadratic(&whole, response)).collect();
    let penalty = match specification.penalty {
        ElasticPenalty::Fixed(penalty) => {
            for (response, quadratic) in quadratics.iter().enumerate() {
                let scales = Scales { predictors: &moments.coordinates.scale, response: moments.response_scale[response] };
                let mut descent = Descent::new(quadratic, specification.positive);
                approach(&mut descent, specification, &scales, penalty);
                descents.push(descent);
            }
            penalty
        }
        ElasticPenalty::Auto { one_standard_error, points, smallest, .. } => {
            let quadratic = &quadratics[0];
            let (found, best, descent) = choose(&moments, quadratic, specification, points, smallest, one_standard_error, &mut sweeps)?;
            path = found;
            descents.push(descent);
            path[best].penalty
        }
    };
    let mut gap = 0.0_f64;
    let mut spent = 0.0_f64;
    let mut weakest = 1.0_f64;
    let mut finals = Vec::with_capacity(responses);
    for (response, descent) in descents.iter_mut().enumerate() {
        let scales = Scales { predictors: &moments.coordinates.scale, response: moments.response_scale[response] };
        let level = scales.level(specification, penalty);
        descent.solve(&level, None, NOTHING, true);
        gap = gap.max(descent.gap(&level).max(0.0) / scales.response / scales.response);
        sweeps += descent.sweeps;
        let last = Final::of(descent, &level);
        spent = spent.max(last.spent + f64::from(u8::from(specification.intercept)));
        weakest = weakest.min(last.factor.weakest);
        finals.push(last);
    }
    let predictors = moments.coordinates.predictors();
    let active: Vec<bool> = (0..predictors).map(|predictor| descents.iter().any(|descent| descent.values[predictor] != 0.0)).collect();
    #[allow(clippy::cast_precision_loss)]
    let work = moments.rows as f64 * (active.iter().filter(|active| **active).count() as f64).powi(2);
    let refine = weakest < SOUND || work <= PRECISE_WORK;
    let (slopes, levels) = if refine && active.contains(&true) {
        polished(source, &moments, specification, penalty, &descents, &finals, &active)?
    } else {
        let slopes = (0..responses)
            .map(|response| descents[response].values.iter().map(|value| Double::from(value / moments.response_scale[response])).collect());
        (slopes.collect(), vec![Double::ZERO; responses])
    };
    let intercepts = if specification.intercept {
        (0..responses)
            .map(|response| raw_intercept(&moments.coordinates, response, levels[response], |predictor| slopes[response][predictor]))
            .collect()
    } else {
        Vec::new()
    };
    let raw = |predictor: usize, response: usize| slopes[response][predictor].to_f64() * moments.coordinates.scale[predictor];
    Ok(ElasticNetFit {
        penalty,
        slopes: Mat::from_fn(predictors, responses, raw),
        intercepts,
        active,
        path,
        duality_gap: gap,
        sweeps,
        effective_parameters: spent,
        observations: moments.rows,
        weight: whole[(0, 0)],
    })
}

/// Sums of weighted products of (1, X, Y) about one shift, in scaled units, fold by fold.
struct Moments {
    /// Centres are the means of all rows.
    coordinates: Coordinates,
    response_scale: Vec<f64>,
    /// (1 + p + q)², both triangles, one a fold.
    folds: Vec<Mat<f64>>,
    /// Rows of positive weight.
    rows: u64,
}

/// One thread's share of the first pass.
struct Part {
    buffer: Vec<f64>,
    roots: Vec<f64>,
    order: Vec<u32>,
    products: Vec<Mat<f64>>,
    rows: u64,
}

/// Cells of a buffer that stay in a core's second-level cache: longer runs of each fold make its products faster.
const BUFFER_CELLS: usize = 48 * 1024;
/// Cells of all threads' products together, beyond which fewer threads share the pass; and of the folds' products at the most, 2 GiB.
const PRODUCT_CELLS: usize = 1 << 26;
const MOST_CELLS: usize = 1 << 28;

impl Moments {
    /// Makes the pass.
    fn of(source: &mut dyn RowSource, intercept: bool, folds: u32, seed: u64) -> Result<Self, Error> {
        let (predictors, responses) = (source.predictors(), source.responses());
        let width = 1 + predictors + responses;
        let cells = (folds as usize).saturating_mul(width.saturating_mul(width));
        if folds > 1 && cells > MOST_CELLS {
            return Err(Error::Solver("there are too many folds for so many columns"));
        }
        let threads = (PRODUCT_CELLS / cells).clamp(1, part_count());
        let mut parts: Vec<Part> = (0..threads)
            .map(|_| Part {
                buffer: Vec::new(),
                roots: Vec::new(),
                order: Vec::new(),
                products: (0..folds).map(|_| Mat::zeros(width, width)).collect(),
                rows: 0,
            })
            .collect();
        let mut first: Option<(Vec<f64>, Vec<f64>, Vec<f64>)> = None;
        let mut before = 0;
        source.pass(&mut |block| {
            if block.rows() == 0 {
                return Ok(());
            }
            let (shift, scale, _) = first.get_or_insert_with(|| provisional(block, intercept));
            in_parts(block, width, &mut parts, |part, range| accumulate(part, block, range, shift, scale, before, seed));
            before += block.rows() as u64;
            Ok(())
        })?;
        let Some((shift, scale, _)) = first else { return Err(Error::NoRows) };
        let mut parts = parts.into_iter();
        let Some(Part { mut products, mut rows, .. }) = parts.next() else { return Err(Error::NoRows) };
        for part in parts {
            products.iter_mut().zip(&part.products).for_each(|(total, product)| *total += product);
            rows += part.rows;
        }
        products.iter_mut().for_each(mirror);
        for product in &products {
            if (0..width).any(|place| product[(place, place)].is_nan()) {
                return Err(Error::NonFinite);
            }
            if (0..width).any(|place| product[(place, place)].is_infinite()) {
                return Err(Error::Overflow);
            }
        }
        let mut moments = Self { coordinates: Coordinates::default(), response_scale: scale[predictors..].to_vec(), folds: products, rows };
        moments.settle(intercept, predictors, &shift, &scale)?;
        Ok(moments)
    }

    /// Chooses the final coordinates and brings the sums into their scale.
    fn settle(&mut self, intercept: bool, predictors: usize, shift: &[f64], scale: &[f64]) -> Result<(), Error> {
        let total = self.without(None);
        let weight = total[(0, 0)];
        if self.rows == 0 || weight <= 0.0 {
            return Err(Error::NoWeight);
        }
        let moved = means(&total, intercept);
        let centre: Vec<f64> = shift
            .iter()
            .zip(scale)
            .zip(&moved)
            .map(|((shift, scale), moved)| if intercept { shift + moved / scale } else { 0.0 })
            .collect();
        let mut ratio = vec![1.0; total.nrows()];
        let mut own = scale[..predictors].to_vec();
        for index in 0..predictors {
            let square = about(&total, &moved, index, index);
            if varies(square, total[(1 + index, 1 + index)]) {
                own[index] = power_of_two_below_inverse((square / weight).sqrt() / scale[index]);
                ratio[1 + index] = own[index] / scale[index];
            }
        }
        for product in &mut self.folds {
            for column in 0..ratio.len() {
                for row in 0..ratio.len() {
                    product[(row, column)] *= ratio[row] * ratio[column];
                }
            }
        }
        self.coordinates =
            Coordinates { intercept, centre: centre[..predictors].to_vec(), scale: own, response_centre: centre[predictors..].to_vec() };
        Ok(())
    }

    /// The sums of all folds but one. Added up rather than subtracted from the total: nothing cancels.
    fn without(&self, fold: Option<usize>) -> Mat<f64> {
        let width = self.folds.first().map_or(0, Mat::nrows);
        let mut total = Mat::zeros(width, width);
        for (_, product) in self.folds.iter().enumerate().filter(|(index, _)| Some(*index) != fold) {
            total += product;
        }
        total
    }

    /// The problem of one response on some rows.
    fn quadratic(&self, product: &Mat<f64>, response: usize) -> Quadratic {
        let predictors = self.coordinates.predictors();
        let moved = means(product, self.coordinates.intercept);
        let weight = product[(0, 0)];
        let own = predictors + response;
        let constant: Vec<bool> =
            (0..predictors).map(|index| !varies(about(product, &moved, index, index), product[(1 + index, 1 + index)])).collect();
        let entry = |row: usize, column: usize| {
            if constant[row] || constant[column] { 0.0 } else { about(product, &moved, row, column) / weight }
        };
        Quadratic {
            gram: Mat::from_fn(predictors, predictors, entry),
            cross: (0..predictors).map(|row| if constant[row] { 0.0 } else { about(product, &moved, row, own) / weight }).collect(),
            square: about(product, &moved, own, own).max(0.0) / weight,
            means: moved,
        }
    }
}

/// Means of (X, Y) about the shift; zero without an intercept.
fn means(product: &Mat<f64>, intercept: bool) -> Vec<f64> {
    (1..product.nrows()).map(|index| if intercept { product[(0, index)] / product[(0, 0)] } else { 0.0 }).collect()
}

/// Σ(x − x̄)(z − z̄) from sums about the shift, for means or any other centre.
fn about(product: &Mat<f64>, moved: &[f64], i: usize, j: usize) -> f64 {
    let sum = |index: usize| product[(0, 1 + index)];
    product[(1 + i, 1 + j)] - moved[i] * sum(j) - moved[j] * sum(i) + product[(0, 0)] * moved[i] * moved[j]
}

/// Whether a column varies: its squares about the mean are more than the rounding of those about the shift.
fn varies(square: f64, about_shift: f64) -> bool {
    square > CONSTANT * about_shift
}

/// Some rows, sorted by fold, into the products of their folds.
fn accumulate(part: &mut Part, block: &Block<'_>, range: std::ops::Range<usize>, shift: &[f64], scale: &[f64], before: u64, seed: u64) {
    let (predictors, responses) = (block.design.ncols(), block.response.ncols());
    let width = 1 + predictors + responses;
    let folds = part.products.len();
    #[allow(clippy::cast_possible_truncation)] // a u32 when it was given
    let fold_count = folds as u32;
    let at_once = (BUFFER_CELLS / width).max(48).next_multiple_of(16);
    let mut fold_of_row: Vec<u32> = Vec::new();
    let mut ends: Vec<usize> = Vec::new();
    let mut begin = range.start;
    while begin < range.end {
        let end = range.end.min(begin + at_once);
        let rows = end - begin;
        // A counting sort of the rows by fold.
        fold_of_row.clear();
        ends.clear();
        ends.resize(folds + 1, 0);
        part.order.clear();
        part.order.resize(rows, 0);
        for row in 0..rows {
            let fold = if folds == 1 { 0 } else { fold_of(before + (begin + row) as u64, fold_count, seed) };
            fold_of_row.push(fold);
            ends[fold as usize + 1] += 1;
        }
        for fold in 0..folds {
            ends[fold + 1] += ends[fold];
        }
        let mut next = ends.clone();
        for (row, fold) in fold_of_row.iter().enumerate() {
            let place = &mut next[*fold as usize];
            #[allow(clippy::cast_possible_truncation)] // below the rows of a buffer
            {
                part.order[*place] = row as u32;
            }
            *place += 1;
        }
        part.buffer.resize(rows * width, 0.0);
        let buffer = &mut part.buffer[..rows * width];
        let order = &part.order[..rows];
        match block.weights {
            Some(weights) => {
                let weights = &weights[begin..end];
                part.rows += weights.iter().filter(|weight| **weight > 0.0).count() as u64;
                part.roots.clear();
                part.roots.extend(order.iter().map(|row| weights[*row as usize].sqrt()));
                buffer[..rows].copy_from_slice(&part.roots);
            }
            None => {
                part.rows += rows as u64;
                buffer[..rows].fill(1.0);
            }
        }
        for index in 0..predictors + responses {
            let values = if index < predictors { column(block.design, index) } else { column(block.response, index - predictors) };
            let values = &values[begin..end];
            let out = &mut buffer[(1 + index) * rows..(2 + index) * rows];
            let (shift, scale) = (shift[index], scale[index]);
            if folds == 1 {
                out.iter_mut().zip(values).for_each(|(out, value)| *out = (value - shift) * scale);
            } else {
                out.iter_mut().zip(order).for_each(|(out, row)| *out = (values[*row as usize] - shift) * scale);
            }
            if block.weights.is_some() {
                out.iter_mut().zip(&part.roots).for_each(|(out, root)| *out *= root);
            }
        }
        let matrix = MatRef::from_column_major_slice(buffer, rows, width);
        for (fold, product) in part.products.iter_mut().enumerate() {
            let (first, count) = (ends[fold], ends[fold + 1] - ends[fold]);
            if count > 0 {
                symmetric_product(product.as_mut(), matrix.subrows(first, count));
            }
        }
        begin = end;
    }
}

/// ½β̃ᵀQβ̃ − cᵀβ̃ + ½·square, all divided by Σw: half the mean squared residual of one response, in scaled units.
struct Quadratic {
    /// Q, p×p; rows and columns of constant predictors are zero.
    gram: Mat<f64>,
    /// c, p.
    cross: Vec<f64>,
    square: f64,
    /// Means of (X, Y) about the shift.
    means: Vec<f64>,
}

/// The units in which a problem is solved.
struct Scales<'a> {
    predictors: &'a [f64],
    response: f64,
}

impl Scales<'_> {
    /// A penalty in these units.
    fn level(&self, specification: &ElasticNet, penalty: f64) -> Level {
        let (first, second) = (penalty * specification.l1_ratio, penalty * (1.0 - specification.l1_ratio));
        Level {
            first: self.predictors.iter().map(|scale| first * scale * self.response).collect(),
            second: self.predictors.iter().map(|scale| second * scale * scale).collect(),
        }
    }

    /// The least penalty that makes every slope zero.
    fn largest(&self, specification: &ElasticNet, cross: &[f64]) -> f64 {
        let size = |cross: f64| if specification.positive { cross } else { cross.abs() };
        let raw = |(cross, scale): (&f64, &f64)| size(*cross) / scale / self.response;
        let largest = cross.iter().zip(self.predictors).map(raw).fold(0.0, f64::max);
        // A pure ridge has none; a thousandth of lasso gives its path a beginning.
        let largest = largest / specification.l1_ratio.max(1e-3);
        // A few roundings more, so that none of them leaves a slope of their size.
        if largest > 0.0 && largest.is_finite() { largest * (1.0 + 8.0 * f64::EPSILON) } else { f64::EPSILON }
    }

    /// Slopes of X as given.
    fn raw(&self, values: &[f64]) -> Vec<f64> {
        values.iter().zip(self.predictors).map(|(value, scale)| value * scale / self.response).collect()
    }
}

/// A penalty: Σ first·|β̃| + ½Σ second·β̃².
struct Level {
    first: Vec<f64>,
    second: Vec<f64>,
}

/// Penalties from the largest down, in equal steps of their logarithm.
fn penalties(largest: f64, smallest: f64, points: usize) -> Vec<f64> {
    #[allow(clippy::cast_precision_loss)]
    let step = if points > 1 { smallest.ln() / (points - 1) as f64 } else { 0.0 };
    #[allow(clippy::cast_precision_loss)]
    (0..points).map(|point| largest * (step * point as f64).exp()).collect()
}

/// Goes down to a fixed penalty by a few rough solutions, each of which lets few new predictors in.
fn approach(descent: &mut Descent<'_>, specification: &ElasticNet, scales: &Scales<'_>, penalty: f64) {
    /// Between one penalty on the way and the next.
    const STEP: f64 = 0.25;
    let mut last = scales.largest(specification, &descent.problem.cross);
    for _ in 0..8 {
        let next = last * STEP;
        if next <= penalty {
            break;
        }
        descent.solve(&scales.level(specification, next), Some(&scales.level(specification, last)), WAY_GAP, false);
        last = next;
    }
    descent.solve(&scales.level(specification, penalty), None, FOLD_GAP, false);
}

/// The path on all rows, judged on held-out ones; which of its points is best, and the state of the descent there.
fn choose<'a>(
    moments: &Moments,
    quadratic: &'a Quadratic,
    specification: &ElasticNet,
    points: usize,
    smallest: f64,
    one_standard_error: bool,
    sweeps: &mut u64,
) -> Result<(Vec<PathPoint>, usize, Descent<'a>), Error> {
    let scales = Scales { predictors: &moments.coordinates.scale, response: moments.response_scale[0] };
    let penalties = penalties(scales.largest(specification, &quadratic.cross), smallest, points);
    let levels: Vec<Level> = penalties.iter().map(|penalty| scales.level(specification, *penalty)).collect();
    // Folds that hold no rows have no say.
    let held: Vec<usize> = (0..moments.folds.len()).filter(|fold| moments.folds[*fold][(0, 0)] > 0.0).collect();
    if held.len() < 2 {
        return Err(Error::Solver("there are too few rows for cross-validation: two folds or more must hold some"));
    }
    let walk = |problem: &Quadratic, tolerance: f64| {
        let mut descent = Descent::new(problem, specification.positive);
        let mut found = Mat::zeros(problem.cross.len(), points);
        for (point, level) in levels.iter().enumerate() {
            descent.solve(level, point.checked_sub(1).map(|before| &levels[before]), tolerance, false);
            found.col_as_slice_mut(point).copy_from_slice(&descent.values);
        }
        (found, descent.sweeps)
    };
    let tasks: Vec<Option<usize>> = std::iter::once(None).chain(held.iter().copied().map(Some)).collect();
    let results: Vec<(Mat<f64>, Vec<f64>, u64)> = tasks
        .into_par_iter()
        .map(|task| match task {
            None => {
                let (found, sweeps) = walk(quadratic, PATH_GAP);
                (found, Vec::new(), sweeps)
            }
            Some(fold) => {
                let training = moments.quadratic(&moments.without(Some(fold)), 0);
                let (found, sweeps) = walk(&training, FOLD_GAP);
                let errors = held_out(&moments.folds[fold], &training.means, &found);
                (found, errors, sweeps)
            }
        })
        .collect();
    let total: f64 = held.iter().map(|fold| moments.folds[*fold][(0, 0)]).sum();
    let share: Vec<f64> = held.iter().map(|fold| moments.folds[*fold][(0, 0)] / total).collect();
    *sweeps += results.iter().map(|(_, _, sweeps)| sweeps).sum::<u64>();
    let unit = scales.response * scales.response;
    let mut path = Vec::with_capacity(points);
    for (point, penalty) in penalties.iter().enumerate() {
        let errors = results[1..].iter().map(|(_, errors, _)| errors[point] / unit);
        let mean: f64 = errors.clone().zip(&share).map(|(error, share)| error * share).sum();
        let spread: f64 = errors.zip(&share).map(|(error, share)| (error - mean).powi(2) * share).sum();
        #[allow(clippy::cast_precision_loss)]
        let std_error = (spread / (held.len() - 1) as f64).sqrt();
        let values = results[0].0.col_as_slice(point);
        path.push(PathPoint {
            penalty: *penalty,
            nonzero: values.iter().filter(|value| **value != 0.0).count(),
            validation_mean: Some(mean),
            validation_std_error: Some(std_error),
            slopes: scales.raw(values),
        });
    }
    let mean = |point: usize| path[point].validation_mean.unwrap_or(f64::INFINITY);
    // The first of equals: the largest penalty.
    let mut best = (0..points).fold(0, |best, point| if mean(point) < mean(best) { point } else { best });
    if one_standard_error {
        let limit = mean(best) + path[best].validation_std_error.unwrap_or(0.0);
        best = (0..=best).find(|point| mean(*point) <= limit).unwrap_or(best);
    }
    let mut descent = Descent::new(quadratic, specification.positive);
    descent.values.copy_from_slice(results[0].0.col_as_slice(best));
    descent.refresh();
    Ok((path, best, descent))
}

/// Mean squared errors on the rows of a fold, of every column of slopes (p×points) that were fitted on rows of these means, in scaled units:
/// Σw(y − xᵀβ̃)² = Σwy² − 2β̃ᵀΣwxy + β̃ᵀ(Σwxxᵀ)β̃. What cancels is the part that the slopes explain: of the error of a fit that explains all
/// but a fraction f of the response, 16 + log₁₀ f digits are left.
fn held_out(product: &Mat<f64>, means: &[f64], slopes: &Mat<f64>) -> Vec<f64> {
    let (predictors, weight) = (slopes.nrows(), product[(0, 0)]);
    let gram = Mat::from_fn(predictors, predictors, |row, column| about(product, means, row, column));
    let cross: Vec<f64> = (0..predictors).map(|row| about(product, means, row, predictors)).collect();
    let square = about(product, means, predictors, predictors);
    let image = &gram * slopes;
    (0..slopes.ncols())
        .map(|point| {
            let terms = slopes.col_as_slice(point).iter().zip(image.col_as_slice(point)).zip(&cross);
            let change: f64 = terms.map(|((slope, image), cross)| slope * (image - 2.0 * cross)).sum();
            (square + change).max(VALIDATION_FLOOR * square) / weight
        })
        .collect()
}

/// Coordinate descent on one problem; state is kept from one penalty to the next.
struct Descent<'a> {
    problem: &'a Quadratic,
    positive: bool,
    /// β̃, p.
    values: Vec<f64>,
    /// c − Qβ̃, p.
    gradient: Vec<f64>,
    /// Predictors that take part.
    members: Vec<usize>,
    member: Vec<bool>,
    /// Their part of Q, column by column.
    packed: Vec<f64>,
    sweeps: u64,
}

impl<'a> Descent<'a> {
    fn new(problem: &'a Quadratic, positive: bool) -> Self {
        let size = problem.cross.len();
        Self {
            problem,
            positive,
            values: vec![0.0; size],
            gradient: problem.cross.clone(),
            members: Vec::new(),
            member: vec![false; size],
            packed: Vec::new(),
            sweeps: 0,
        }
    }

    /// Solves at one penalty, from where the one `before` ended, until the duality gap is below `tolerance`·‖y‖²/n. When `exact`, the end
    /// is a solution of the equations themselves, if they have one.
    fn solve(&mut self, level: &Level, before: Option<&Level>, tolerance: f64, exact: bool) {
        let square = self.problem.square;
        self.screen(level, before);
        let mut threshold = 0.1 * tolerance * square;
        let begin = self.sweeps;
        loop {
            let nonzero = self.values.iter().filter(|value| **value != 0.0).count();
            // An exact solution costs k³/3, a sweep about k²: neither may be much more than the other in the end.
            let budget = if exact { 1 } else { (nonzero as u64 / 8).max(3) };
            let moved = self.sweep(level, budget, threshold);
            self.refresh();
            let added = self.admit(level);
            if !exact && self.gap(level) <= tolerance * square {
                return;
            }
            let reached = self.equations(level, if exact { usize::MAX } else { CUTS });
            let violated = self.admit(level) || self.violated(level);
            if (reached && !violated) || (moved <= NOTHING * square && !added) {
                return;
            }
            if moved <= threshold {
                threshold *= 0.1;
            }
            if self.sweeps - begin > SWEEPS {
                return;
            }
        }
    }

    /// How far the gradient reaches in the direction in which a slope may leave zero.
    fn pull(&self, predictor: usize) -> f64 {
        if self.positive { self.gradient[predictor] } else { self.gradient[predictor].abs() }
    }

    /// Rounding of the gradient.
    fn slack(&self, predictor: usize) -> f64 {
        16.0 * ROUNDOFF * (self.problem.square * self.problem.gram[(predictor, predictor)]).sqrt()
    }

    /// Chooses who takes part: nonzero slopes, and those the strong rule does not rule out.
    fn screen(&mut self, level: &Level, before: Option<&Level>) {
        self.members.clear();
        for predictor in 0..self.values.len() {
            let now = level.first[predictor];
            let bar = before.map_or(now, |before| 2.0 * now - before.first[predictor]);
            let varies = self.problem.gram[(predictor, predictor)] > 0.0;
            let takes_part = varies && (self.values[predictor] != 0.0 || self.pull(predictor) >= bar);
            self.member[predictor] = takes_part;
            if takes_part {
                self.members.push(predictor);
            }
        }
        self.pack();
    }

    /// Adds those that violate the optimality conditions; whether there were any.
    fn admit(&mut self, level: &Level) -> bool {
        let count = self.members.len();
        for predictor in 0..self.values.len() {
            let wanted = self.pull(predictor) > level.first[predictor] + self.slack(predictor);
            if wanted && !self.member[predictor] && self.problem.gram[(predictor, predictor)] > 0.0 {
                self.member[predictor] = true;
                self.members.push(predictor);
            }
        }
        let added = self.members.len() > count;
        if added {
            self.pack();
        }
        added
    }

    /// Whether a zero slope wants to leave zero.
    fn violated(&self, level: &Level) -> bool {
        let wants = |predictor: &usize| self.pull(*predictor) > level.first[*predictor] + self.slack(*predictor);
        self.members.iter().any(|predictor| self.values[*predictor] == 0.0 && wants(predictor))
    }

    fn pack(&mut self) {
        self.packed.clear();
        for &other in &self.members {
            let from = self.problem.gram.col_as_slice(other);
            self.packed.extend(self.members.iter().map(|member| from[*member]));
        }
    }

    /// c − Qβ̃ afresh.
    fn refresh(&mut self) {
        let Self { problem, values, gradient, .. } = self;
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                gradient.copy_from_slice(&problem.cross);
                for (predictor, value) in values.iter().enumerate() {
                    if *value != 0.0 {
                        for (gradient, gram) in gradient.iter_mut().zip(problem.gram.col_as_slice(predictor)) {
                            *gradient = (-*value).mul_add(*gram, *gradient);
                        }
                    }
                }
            },
        );
    }

    /// Sweeps over the members until one moves the fit by no more than `threshold`, or `budget` of them are made. Returns by how much the
    /// last one moved it: the largest Qδ² of a step.
    fn sweep(&mut self, level: &Level, budget: u64, threshold: f64) -> f64 {
        let size = self.members.len();
        let pick = |from: &[f64]| self.members.iter().map(|member| from[*member]).collect::<Vec<f64>>();
        let (mut values, mut gradient) = (pick(&self.values), pick(&self.gradient));
        let (first, second) = (pick(&level.first), pick(&level.second));
        let lowest = if self.positive { 0.0 } else { f64::NEG_INFINITY };
        let packed = &self.packed;
        let mut made = 0;
        let moved = pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                let mut moved = 0.0_f64;
                while made < budget {
                    moved = 0.0;
                    made += 1;
                    for (place, own) in packed.chunks_exact(size.max(1)).enumerate() {
                        let (diagonal, old) = (own[place], values[place]);
                        let wanted = diagonal.mul_add(old, gradient[place]);
                        let shrunk = (wanted.abs() - first[place]).max(0.0).copysign(wanted) / (diagonal + second[place]);
                        let new = shrunk.max(lowest);
                        if new != old {
                            let step = new - old;
                            for (gradient, gram) in gradient.iter_mut().zip(own) {
                                *gradient = (-step).mul_add(*gram, *gradient);
                            }
                            values[place] = new;
                            moved = moved.max(diagonal * step * step);
                        }
                    }
                    if moved <= threshold {
                        break;
                    }
                }
                moved
            },
        );
        for (member, value) in self.members.iter().zip(&values) {
            // Not a negative zero.
            self.values[*member] = value + 0.0;
        }
        self.sweeps += made;
        moved
    }

    /// Nonzero slopes, which are held to their signs unless nothing pulls them to zero.
    fn nonzero(&self) -> Vec<usize> {
        (0..self.values.len()).filter(|predictor| self.values[*predictor] != 0.0).collect()
    }

    fn factor(&self, nonzero: &[usize], level: &Level) -> Factor {
        Factor::of(nonzero.len(), |row, column| {
            let own = if row == column { level.second[nonzero[row]] } else { 0.0 };
            self.problem.gram[(nonzero[row], nonzero[column])] + own
        })
    }

    /// The derivative of the objective along a nonzero slope, with its sign changed.
    fn remainder(&self, predictor: usize, level: &Level) -> f64 {
        let value = self.values[predictor];
        self.gradient[predictor] - level.first[predictor].copysign(value) - level.second[predictor] * value
    }

    /// Solves for the nonzero slopes with their signs. Where a slope changes sign on the way it stays at zero and the rest is solved again,
    /// `cuts` times at the most; whether a solution was reached. Keeps the gradient up to date.
    fn equations(&mut self, level: &Level, cuts: usize) -> bool {
        let mut made = 0;
        loop {
            let nonzero = self.nonzero();
            let factor = self.factor(&nonzero, level);
            let right: Vec<f64> = nonzero.iter().map(|predictor| self.remainder(*predictor, level)).collect();
            let dependent = (0..nonzero.len()).find(|place| factor.kept.get(*place) != Some(place));
            let (steps, furthest) = match dependent {
                None => (factor.solve(&right), 1.0),
                Some(place) => self.flat(&nonzero, &factor, place, &right),
            };
            let reach = |predictor: usize, step: f64| {
                let (value, signed) = (self.values[predictor], self.positive || level.first[predictor] > 0.0);
                if signed && step * value < 0.0 { -value / step } else { f64::INFINITY }
            };
            let reaches: Vec<f64> = nonzero.iter().zip(&steps).map(|(predictor, step)| reach(*predictor, *step)).collect();
            let length = reaches.iter().copied().fold(furthest, f64::min);
            if length.is_infinite() {
                // Nothing holds the slopes but the rows, and these say nothing: without a penalty there are many solutions.
                return false;
            }
            let mut cut = false;
            for ((predictor, step), reach) in nonzero.into_iter().zip(steps).zip(reaches) {
                if reach <= length {
                    self.values[predictor] = 0.0;
                    cut = true;
                } else {
                    self.values[predictor] += length * step;
                }
            }
            self.refresh();
            if !cut {
                return true;
            }
            made += 1;
            if made > cuts {
                return false;
            }
        }
    }

    /// A direction in which the fit stays as it is, because the column at one place depends on those before it, and how far one may go:
    /// until a slope is zero. Of its two senses, the one in which the penalty falls.
    fn flat(&self, nonzero: &[usize], factor: &Factor, place: usize, right: &[f64]) -> (Vec<f64>, f64) {
        let kept: Vec<usize> = factor.kept.iter().copied().filter(|kept| *kept < place).collect();
        let before = Factor { lower: factor.lower.submatrix(0, 0, kept.len(), kept.len()).to_owned(), kept, weakest: factor.weakest };
        let column = self.problem.gram.col_as_slice(nonzero[place]);
        let related = before.solve(&before.kept.iter().map(|kept| column[nonzero[*kept]]).collect::<Vec<f64>>());
        let mut steps = vec![0.0; nonzero.len()];
        steps[place] = 1.0;
        before.kept.iter().zip(related).for_each(|(kept, related)| steps[*kept] = -related);
        let gain: f64 = steps.iter().zip(right).map(|(step, right)| step * right).sum();
        // Where it falls in neither, the one in which this slope shrinks.
        let sense = if gain == 0.0 { -self.values[nonzero[place]].signum() } else { gain.signum() };
        steps.iter_mut().for_each(|step| *step *= sense);
        (steps, f64::INFINITY)
    }

    /// The duality gap: of the dual points in the direction of the residual, the nearest that is feasible. Without an ℓ₁ part the dual is
    /// not constrained, and this is the bound that strong convexity gives, ½Σ remainder²/second; with no penalty at all, an estimate.
    fn gap(&self, level: &Level) -> f64 {
        let mut largest = 0.0_f64;
        let mut smooth = 0.0;
        let (mut explained, mut left) = (0.0, 0.0);
        let (mut first, mut second) = (0.0, 0.0);
        for predictor in 0..self.values.len() {
            let value = self.values[predictor];
            explained += self.problem.cross[predictor] * value;
            left += self.gradient[predictor] * value;
            first += level.first[predictor] * value.abs();
            second += level.second[predictor] * value * value;
            let own = self.gradient[predictor] - level.second[predictor] * value;
            if level.first[predictor] > 0.0 {
                largest = largest.max(if self.positive { own } else { own.abs() } / level.first[predictor]);
            } else if !(self.positive && value == 0.0 && own < 0.0) {
                let curvature =
                    if level.second[predictor] > 0.0 { level.second[predictor] } else { self.problem.gram[(predictor, predictor)] };
                if curvature > 0.0 {
                    smooth += 0.5 * own * own / curvature;
                }
            }
        }
        if level.first.iter().all(|first| *first == 0.0) {
            return smooth;
        }
        let residual = self.problem.square - explained - left;
        let factor = if largest > 1.0 { 1.0 / largest } else { 1.0 };
        let squares = 0.5 * (1.0 + factor * factor);
        squares * (residual + second) - factor * (self.problem.square - explained) + first
    }
}

/// The end of a descent: its system, for refinement, and what it spends.
struct Final {
    nonzero: Vec<usize>,
    factor: Factor,
    spent: f64,
}

impl Final {
    fn of(descent: &Descent<'_>, level: &Level) -> Self {
        let nonzero = descent.nonzero();
        let factor = descent.factor(&nonzero, level);
        #[allow(clippy::cast_precision_loss)]
        let mut spent = factor.kept.len() as f64;
        if nonzero.iter().any(|predictor| level.second[*predictor] > 0.0) && !factor.kept.is_empty() {
            // tr(Q(Q + Λ)⁻¹) = k − tr(Λ(Q + Λ)⁻¹).
            let size = factor.kept.len();
            let mut inverse = Mat::<f64>::identity(size, size);
            faer::linalg::triangular_solve::solve_lower_triangular_in_place(factor.lower.as_ref(), inverse.as_mut(), faer::Par::Seq);
            for place in 0..size {
                let diagonal: f64 = inverse.col_as_slice(place).iter().map(|value| value * value).sum();
                spent -= level.second[nonzero[factor.kept[place]]] * diagonal;
            }
        }
        Self { nonzero, factor, spent }
    }
}

/// Refines the nonzero slopes against the rows, their signs given. Returns slopes in coordinates and in units of the response, and the
/// levels of centred ones.
#[allow(clippy::type_complexity)] // two lists, by response
fn polished(
    source: &mut dyn RowSource,
    moments: &Moments,
    specification: &ElasticNet,
    penalty: f64,
    descents: &[Descent<'_>],
    finals: &[Final],
    active: &[bool],
) -> Result<(Vec<Vec<Double>>, Vec<Double>), Error> {
    let coordinates = &moments.coordinates;
    let ones = usize::from(coordinates.intercept);
    let members: Vec<usize> = (0..active.len()).filter(|predictor| active[*predictor]).collect();
    let order: Vec<usize> = (0..ones).chain(members.iter().map(|predictor| coordinates.place(*predictor))).collect();
    let place = |predictor: usize| ones + members.partition_point(|member| *member < predictor);
    let weight = moments.folds.iter().map(|product| product[(0, 0)]).sum::<f64>();
    let mut coefficients = DoubleMatrix::zeros(order.len(), descents.len());
    for (response, descent) in descents.iter().enumerate() {
        for &predictor in &finals[response].nonzero {
            coefficients.set(place(predictor), response, Double::from(descent.values[predictor] / moments.response_scale[response]));
        }
    }
    // Here the response has its own units.
    let level = Scales { predictors: &coordinates.scale, response: 1.0 }.level(specification, penalty);
    against_rows(source, coordinates, &order, &mut coefficients, |outcome, coefficients| {
        let mut worst = 0.0_f64;
        for (response, last) in finals.iter().enumerate() {
            if ones == 1 {
                let step = outcome.gradient.get(0, response).to_f64() / weight;
                coefficients.set(0, response, coefficients.get(0, response) + Double::from(step));
                let size = (outcome.squares[response].to_f64() / weight).sqrt();
                worst = worst.max(if step == 0.0 { 0.0 } else { step.abs() / size });
            }
            if last.factor.kept.len() < last.nonzero.len() {
                // Dependent columns share what they explain as the descent left it.
                continue;
            }
            let right: Vec<f64> = last
                .nonzero
                .iter()
                .map(|&predictor| {
                    let value = coefficients.get(place(predictor), response);
                    let pulled = Double::from(level.first[predictor].copysign(descents[response].values[predictor]));
                    let gradient = outcome.gradient.get(place(predictor), response).divide(Double::from(weight));
                    (gradient - pulled - value * level.second[predictor]).to_f64()
                })
                .collect();
            let steps = last.factor.solve(&right);
            let sizes = last.nonzero.iter().map(|predictor| coefficients.get(place(*predictor), response).hi.abs());
            let largest = sizes.clone().fold(0.0, f64::max);
            let changes =
                steps.iter().zip(sizes).map(|(step, size)| if *step == 0.0 { 0.0 } else { step.abs() / size.max(1e-6 * largest) });
            worst = changes.fold(worst, f64::max);
            for (&predictor, step) in last.nonzero.iter().zip(&steps) {
                let next = coefficients.get(place(predictor), response) + Double::from(*step);
                coefficients.set(place(predictor), response, next);
            }
        }
        worst
    })?;
    let slopes = descents
        .iter()
        .enumerate()
        .map(|(response, descent)| {
            let at = |(predictor, value): (usize, &f64)| {
                if *value == 0.0 { Double::ZERO } else { coefficients.get(place(predictor), response) }
            };
            descent.values.iter().enumerate().map(at).collect()
        })
        .collect();
    let levels = (0..descents.len()).map(|response| if ones == 1 { coefficients.get(0, response) } else { Double::ZERO }).collect();
    Ok((slopes, levels))
}
