//! Least squares with bounds: minimise Σ wᵢ(yᵢ − α − xᵢᵀβ)² subject to lower ≤ β ≤ upper, slope by slope; nonnegative least squares is
//! lower = 0, upper = ∞. The intercept is free.
//!
//! An active-set method on the Gram matrix. A few sweeps of coordinate descent guess which slopes are at a bound; then the free ones are
//! solved exactly, the step is cut where it first meets a bound, and once it meets none the slope whose multiplier has the wrong sign by
//! most is set free (Lawson & Hanson, *Solving Least Squares Problems*, 1974, ch. 23; on the Gram matrix: Bro & de Jong, *A fast
//! non-negativity-constrained least squares algorithm*, 1997; with bounds on both sides: Stark & Parker, *Bounded-variable least squares*,
//! 1995). A slope that steps out at once, or whose column depends on the free ones, is not tried again until the objective has fallen:
//! collinear columns do not make it loop.
//!
//! Where the Gram matrix leaves fewer than 13 digits, the free slopes are then refined against the rows with residuals in twice the
//! precision, and the multipliers are judged again by what that finds. Columns nearer than about 3·10⁻⁷ of their size to the span of the
//! free ones count as dependent on them; they keep the value they have, which changes the fit by nothing that the rows could tell.

use faer::linalg::solvers::Llt;
use faer::{Mat, Par, Side};

use super::Error;
use super::coordinates::Coordinates;
use super::double_double::Double;
use super::gram::{self, Scan};
use super::problem::RowSource;
use super::refine::{self, DoubleMatrix, Outcome, Task};

/// Unit roundoff.
const ROUNDOFF: f64 = f64::EPSILON / 2.0;
/// Pivot of a Gram matrix, relative to its diagonal, that is nothing but rounding.
const DEPENDENT: f64 = 1e-13;
/// Relative pivot from which the Gram matrix alone leaves 13 digits.
const SOUND: f64 = 1e-3;
/// Rows × columns² up to which rows are always looked at again: a fraction of a second.
const PRECISE_WORK: f64 = 1e8;
/// Passes of refinement at the most.
const PASSES: usize = 20;
/// Relative size of a multiplier that is taken for zero.
const MULTIPLIER: f64 = 1e-13;

/// Bounds of the slopes, one a predictor; infinite where there is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds {
    /// The least value of each slope.
    pub lower: Vec<f64>,
    /// The greatest.
    pub upper: Vec<f64>,
}

impl Bounds {
    /// All of p slopes at least zero.
    #[must_use]
    pub fn nonnegative(predictors: usize) -> Self {
        Self { lower: vec![0.0; predictors], upper: vec![f64::INFINITY; predictors] }
    }

    fn check(&self, predictors: usize) -> Result<(), Error> {
        if self.lower.len() != predictors || self.upper.len() != predictors {
            return Err(Error::Solver("there must be as many bounds as predictors"));
        }
        let sound = |(lower, upper): (&f64, &f64)| *lower <= *upper && *lower < f64::INFINITY && *upper > f64::NEG_INFINITY;
        if !self.lower.iter().zip(&self.upper).all(sound) {
            return Err(Error::Solver("a lower bound is above its upper bound, or a bound is not a number"));
        }
        Ok(())
    }
}

/// A fit within bounds.
#[derive(Clone, Debug)]
pub struct BoundedFit {
    /// Slopes, p×q; one at a bound equals it exactly.
    pub slopes: Mat<f64>,
    /// One a response; empty without an intercept.
    pub intercepts: Vec<f64>,
    /// Whether each slope lies strictly between its bounds, for one response at least.
    pub active: Vec<bool>,
    /// Systems that were solved.
    pub iterations: u64,
    /// Rows of positive weight.
    pub observations: u64,
    /// Σw.
    pub weight: f64,
}

/// Fits within bounds; several responses are fitted each by itself.
///
/// # Errors
/// [`Error::Solver`] for bounds that no slope can meet; otherwise see [`Error`]. Collinear columns are not an error.
pub fn bounded(source: &mut dyn RowSource, intercept: bool, bounds: &Bounds) -> Result<BoundedFit, Error> {
    bounds.check(source.predictors())?;
    let scan = gram::scan(source, intercept)?;
    let coordinates = &scan.coordinates;
    let (predictors, responses) = (coordinates.predictors(), coordinates.responses());
    // β̃ = β/s; the divisions are exact.
    let scaled = |bounds: &[f64]| bounds.iter().zip(&coordinates.scale).map(|(bound, scale)| bound / scale).collect::<Vec<f64>>();
    let limits = Bounds { lower: scaled(&bounds.lower), upper: scaled(&bounds.upper) };
    let mut states: Vec<State> = (0..responses).map(|response| State::solved(&scan, response, &limits)).collect();
    let weakest = states.iter_mut().map(|state| state.factored(&scan).weakest).fold(1.0, f64::min);
    #[allow(clippy::cast_precision_loss)]
    let work = scan.rows as f64 * (predictors as f64).powi(2);
    let mut intercepts: Vec<f64> = Vec::new();
    if predictors > 0 && (weakest < SOUND || work <= PRECISE_WORK) {
        let levels = refined(source, &scan, &limits, &mut states)?;
        if intercept {
            intercepts.extend(
                states
                    .iter()
                    .zip(&levels)
                    .enumerate()
                    .map(|(response, (state, level))| raw_intercept(coordinates, response, *level, |predictor| state.values[predictor])),
            );
        }
    } else if intercept {
        intercepts.extend(
            states
                .iter()
                .enumerate()
                .map(|(response, state)| raw_intercept(coordinates, response, Double::ZERO, |predictor| state.values[predictor])),
        );
    }
    let inside = |predictor: usize, state: &State| {
        let value = state.values[predictor].to_f64();
        limits.lower[predictor] < value && value < limits.upper[predictor]
    };
    Ok(BoundedFit {
        slopes: Mat::from_fn(predictors, responses, |row, column| states[column].values[row].to_f64() * coordinates.scale[row]),
        intercepts,
        active: (0..predictors).map(|predictor| states.iter().any(|state| inside(predictor, state))).collect(),
        iterations: states.iter().map(|state| state.iterations).sum(),
        observations: scan.rows,
        weight: scan.weight,
    })
}

/// The intercept of the rows as they are, from the level of centred ones: α = ȳ + level − Σ c·s·β̃.
pub(super) fn raw_intercept(coordinates: &Coordinates, response: usize, level: Double, slope: impl Fn(usize) -> Double) -> f64 {
    let mut sum = level + Double::from(coordinates.response_centre[response]);
    for predictor in 0..coordinates.predictors() {
        sum += -(slope(predictor) * coordinates.scale[predictor] * coordinates.centre[predictor]);
    }
    sum.to_f64()
}

/// L of G = LLᵀ for those columns of a Gram matrix that do not depend on the ones before them.
pub(super) struct Factor {
    /// k×k, lower triangular.
    pub(super) lower: Mat<f64>,
    /// Places of the k independent columns in the list that was given.
    pub(super) kept: Vec<usize>,
    /// The smallest pivot relative to its diagonal: about the inverse of the largest variance inflation.
    pub(super) weakest: f64,
}

impl Factor {
    /// Of the matrix of `size` columns with these entries.
    pub(super) fn of(size: usize, entry: impl Fn(usize, usize) -> f64) -> Self {
        let gram = Mat::from_fn(size, size, &entry);
        if size > 0
            && let Ok(llt) = Llt::new(gram.as_ref(), Side::Lower)
        {
            let lower = llt.L();
            let weakest = (0..size).map(|place| lower[(place, place)].powi(2) / gram[(place, place)]).fold(1.0, f64::min);
            if weakest > DEPENDENT {
                let lower = Mat::from_fn(size, size, |row, column| if row >= column { lower[(row, column)] } else { 0.0 });
                return Self { lower, kept: (0..size).collect(), weakest };
            }
        }
        // Column by column, leaving out what depends on those before.
        let mut rows: Vec<Vec<f64>> = Vec::new();
        let mut kept: Vec<usize> = Vec::new();
        let mut weakest = 1.0_f64;
        for place in 0..size {
            let mut row: Vec<f64> = Vec::with_capacity(kept.len() + 1);
            for (before, &other) in kept.iter().enumerate() {
                let inner: f64 = row.iter().zip(&rows[before]).map(|(a, b)| a * b).sum();
                row.push((gram[(place, other)] - inner) / rows[before][before]);
            }
            let diagonal = gram[(place, place)];
            let pivot = diagonal - row.iter().map(|value| value * value).sum::<f64>();
            if pivot > DEPENDENT * diagonal {
                weakest = weakest.min(pivot / diagonal);
                row.push(pivot.sqrt());
                rows.push(row);
                kept.push(place);
            }
        }
        let lower = Mat::from_fn(kept.len(), kept.len(), |row, column| if row >= column { rows[row][column] } else { 0.0 });
        Self { lower, kept, weakest }
    }

    /// x of G·x = right, over the kept columns.
    pub(super) fn solve(&self, right: &[f64]) -> Vec<f64> {
        let mut solution = Mat::from_fn(right.len(), 1, |row, _| right[row]);
        if !right.is_empty() {
            faer::linalg::triangular_solve::solve_lower_triangular_in_place(self.lower.as_ref(), solution.as_mut(), Par::Seq);
            faer::linalg::triangular_solve::solve_upper_triangular_in_place(self.lower.transpose(), solution.as_mut(), Par::Seq);
        }
        solution.col_as_slice(0).to_vec()
    }
}

/// Refinement against the rows. Each pass finds residuals and gradients in twice the precision for the coefficients (k×q, of the columns
/// in `order`), and `step` improves them and says by how much, relative to their size. Ends when a step changes nothing, or changes no
/// less than the one before.
pub(super) fn against_rows(
    source: &mut dyn RowSource,
    coordinates: &Coordinates,
    order: &[usize],
    coefficients: &mut DoubleMatrix,
    mut step: impl FnMut(&Outcome, &mut DoubleMatrix) -> f64,
) -> Result<Outcome, Error> {
    let mut last = f64::INFINITY;
    let mut pass = 0;
    loop {
        let task =
            Task { coordinates, order, dependent: &[], whiten: None, coefficients, precise_whitening: false, precise_residuals: true };
        let outcome = refine::pass(source, &task)?;
        finite(&outcome)?;
        let before = coefficients.clone();
        let change = step(&outcome, coefficients);
        pass += 1;
        if change > last {
            // At the end of what the preconditioner can do: the step before was the better one.
            *coefficients = before;
            return Ok(outcome);
        }
        // What the next step would still change, at the rate seen.
        let error = if pass == 1 { change } else { change * (change / last) };
        if error < 0.25 * ROUNDOFF || (pass > 1 && change > 0.5 * last) || pass >= PASSES {
            return Ok(outcome);
        }
        last = change;
    }
}

fn finite(outcome: &Outcome) -> Result<(), Error> {
    match outcome.residual_squares.iter().position(|square| !square.to_f64().is_finite()) {
        None => Ok(()),
        Some(response) if outcome.raw_squares.get(response).is_some_and(|square| square.is_nan()) => Err(Error::NonFinite),
        Some(_) => Err(Error::Overflow),
    }
}

/// The slopes of one response, in coordinates.
struct State {
    values: Vec<Double>,
    /// Predictors that are free, in the order in which they became so.
    free: Vec<usize>,
    /// Predictors that take no part: they do not vary.
    constant: Vec<bool>,
    iterations: u64,
}

impl State {
    /// The solution as the Gram matrix has it.
    fn solved(scan: &Scan, response: usize, limits: &Bounds) -> Self {
        let predictors = scan.coordinates.predictors();
        let start = |predictor: usize| 0.0_f64.clamp(limits.lower[predictor], limits.upper[predictor]);
        let mut values: Vec<f64> = (0..predictors).map(start).collect();
        let cross = scan.cross.col_as_slice(response);
        descend(scan, cross, limits, &mut values);
        let inside = |predictor: &usize| {
            !scan.constant[*predictor] && limits.lower[*predictor] < values[*predictor] && values[*predictor] < limits.upper[*predictor]
        };
        let free = (0..predictors).filter(inside).collect();
        let mut state =
            Self { values: values.into_iter().map(Double::from).collect(), free, constant: scan.constant.clone(), iterations: 0 };
        state.exchange(scan, cross, limits);
        state
    }

    /// The factor of the free columns; those that depend on others are no longer free.
    fn factored(&mut self, scan: &Scan) -> Factor {
        let factor = Factor::of(self.free.len(), |row, column| scan.gram[(self.free[row], self.free[column])]);
        if factor.kept.len() < self.free.len() {
            self.free = factor.kept.iter().map(|place| self.free[*place]).collect();
        }
        factor
    }

    /// Moves the free slopes by `steps` until the first of them meets a bound; those that do stay there. Returns how far it went, of 1.
    fn advance(&mut self, steps: &[f64], limits: &Bounds) -> f64 {
        let meets = |predictor: usize, step: f64| {
            let room = if step > 0.0 { limits.upper[predictor] } else { limits.lower[predictor] };
            let room = (Double::from(room) - self.values[predictor]).to_f64();
            if step == 0.0 || room.is_infinite() || room.is_nan() { f64::INFINITY } else { (room / step).max(0.0) }
        };
        let reach: Vec<f64> = self.free.iter().zip(steps).map(|(predictor, step)| meets(*predictor, *step)).collect();
        let length = reach.iter().copied().fold(1.0, f64::min);
        let mut staying = Vec::with_capacity(self.free.len());
        for ((&predictor, step), reach) in self.free.iter().zip(steps).zip(&reach) {
            if *reach <= length && length < 1.0 {
                self.values[predictor] = Double::from(if *step > 0.0 { limits.upper[predictor] } else { limits.lower[predictor] });
            } else {
                self.values[predictor] += Double::product(length, *step);
                staying.push(predictor);
            }
        }
        self.free = staying;
        length
    }

    /// The predictor that is not free but would lower the objective by most if it were: its gradient points into the bounds.
    fn candidate(
        &self,
        gram: &Mat<f64>,
        limits: &Bounds,
        blocked: &[bool],
        gradient: &[f64],
        size: impl Fn(usize) -> f64,
    ) -> Option<usize> {
        let mut best = None;
        let mut most = 0.0;
        let mut taken = self.constant.clone();
        self.free.iter().for_each(|predictor| taken[*predictor] = true);
        for predictor in (0..gradient.len()).filter(|predictor| !taken[*predictor] && !blocked[*predictor]) {
            let value = self.values[predictor].to_f64();
            let slope = gradient[predictor];
            let inwards = (slope > 0.0 && value < limits.upper[predictor]) || (slope < 0.0 && value > limits.lower[predictor]);
            let gain = slope.abs() / gram[(predictor, predictor)].sqrt();
            if inwards && gain > most && slope.abs() > size(predictor) {
                most = gain;
                best = Some(predictor);
            }
        }
        best
    }

    /// The active-set method.
    fn exchange(&mut self, scan: &Scan, cross: &[f64], limits: &Bounds) {
        let predictors = cross.len();
        let mut blocked = vec![false; predictors];
        // Each exchange lowers the objective; the limit is for rounding alone.
        let limit = 1000 + 30 * predictors as u64;
        while self.iterations < limit {
            self.iterations += 1;
            let newest = self.free.last().copied();
            let factor = self.factored(scan);
            let (gradient, size) = gradient(scan, cross, &self.values);
            let right: Vec<f64> = self.free.iter().map(|predictor| gradient[*predictor]).collect();
            let steps = factor.solve(&right);
            let gain: f64 = right.iter().zip(&steps).map(|(right, step)| right * step).sum();
            let length = self.advance(&steps, limits);
            let scale: f64 = cross.iter().zip(&self.values).map(|(cross, value)| (cross * value.to_f64()).abs()).sum();
            if length * gain > 64.0 * ROUNDOFF * scale && length > 0.0 {
                blocked.fill(false);
            }
            if let Some(newest) = newest
                && !self.free.contains(&newest)
            {
                blocked[newest] = true;
            }
            if length < 1.0 {
                continue;
            }
            let (after, _) = self::gradient(scan, cross, &self.values);
            match self.candidate(&scan.gram, limits, &blocked, &after, |predictor| 16.0 * ROUNDOFF * size[predictor]) {
                Some(predictor) => self.free.push(predictor),
                None => return,
            }
        }
    }
}

/// Coordinate descent within the bounds: a guess.
fn descend(scan: &Scan, cross: &[f64], limits: &Bounds, values: &mut [f64]) {
    /// Sweeps at the most; the active-set method ends what they begin.
    const SWEEPS: usize = 60;
    let start: Vec<Double> = values.iter().copied().map(Double::from).collect();
    let (mut left, _) = gradient(scan, cross, &start);
    let (mut steady, mut pattern) = (0, Vec::new());
    for _ in 0..SWEEPS {
        let mut next = Vec::with_capacity(values.len());
        for predictor in 0..values.len() {
            let diagonal = scan.gram[(predictor, predictor)];
            if scan.constant[predictor] || diagonal <= 0.0 {
                continue;
            }
            let old = values[predictor];
            let new = (old + left[predictor] / diagonal).clamp(limits.lower[predictor], limits.upper[predictor]);
            if new != old {
                let step = new - old;
                left.iter_mut().zip(scan.gram.col_as_slice(predictor)).for_each(|(left, gram)| *left -= step * gram);
                values[predictor] = new;
            }
            next.push(limits.lower[predictor] < new && new < limits.upper[predictor]);
        }
        steady = if next == pattern { steady + 1 } else { 0 };
        if steady == 3 {
            return;
        }
        pattern = next;
    }
}

/// X̃ᵀ(y − X̃β̃) and, entry by entry, the size of what it is the difference of.
fn gradient(scan: &Scan, cross: &[f64], values: &[Double]) -> (Vec<f64>, Vec<f64>) {
    let mut left = cross.to_vec();
    let mut size: Vec<f64> = cross.iter().map(|cross| cross.abs()).collect();
    for (predictor, value) in values.iter().enumerate().filter(|(_, value)| **value != Double::ZERO) {
        let value = value.to_f64();
        for ((left, size), gram) in left.iter_mut().zip(&mut size).zip(scan.gram.col_as_slice(predictor)) {
            *left -= value * gram;
            *size += (value * gram).abs();
        }
    }
    (left, size)
}

/// Refines all responses against the rows, multipliers judged by the precise gradient. Returns the level of centred ones.
fn refined(source: &mut dyn RowSource, scan: &Scan, limits: &Bounds, states: &mut [State]) -> Result<Vec<Double>, Error> {
    let coordinates = &scan.coordinates;
    let ones = usize::from(coordinates.intercept);
    let order: Vec<usize> = (0..coordinates.width()).collect();
    let mut coefficients = DoubleMatrix::zeros(order.len(), states.len());
    for (response, state) in states.iter().enumerate() {
        state.values.iter().enumerate().for_each(|(predictor, value)| coefficients.set(ones + predictor, response, *value));
    }
    let mut factors: Vec<Factor> = states.iter_mut().map(|state| state.factored(scan)).collect();
    let mut blocked = vec![vec![false; coordinates.predictors()]; states.len()];
    // Exchanges are rare here, and each of them begins the refinement again.
    let mut exchanges = 0;
    loop {
        let mut exchanged = false;
        against_rows(source, coordinates, &order, &mut coefficients, |outcome, coefficients| {
            let mut worst = 0.0_f64;
            exchanged = false;
            for (response, state) in states.iter_mut().enumerate() {
                if ones == 1 {
                    let step = outcome.gradient.get(0, response).to_f64() / scan.weight;
                    let level = coefficients.get(0, response) + Double::from(step);
                    coefficients.set(0, response, level);
                    let size = level.to_f64().abs() + outcome.squares[response].to_f64().sqrt() / scan.weight.sqrt();
                    worst = worst.max(if step == 0.0 { 0.0 } else { step.abs() / size });
                }
                let gradient: Vec<f64> =
                    (0..coordinates.predictors()).map(|predictor| outcome.gradient.get(ones + predictor, response).to_f64()).collect();
                let right: Vec<f64> = state.free.iter().map(|predictor| gradient[*predictor]).collect();
                let steps = factors[response].solve(&right);
                let largest = state.values.iter().map(|value| value.hi.abs()).fold(0.0, f64::max);
                let change = state
                    .free
                    .iter()
                    .zip(&steps)
                    .map(|(predictor, step)| (*step, state.values[*predictor].hi.abs().max(1e-10 * largest)))
                    .map(|(step, size)| if step == 0.0 { 0.0 } else { step.abs() / size })
                    .fold(0.0, f64::max);
                worst = worst.max(change);
                state.iterations += 1;
                let newest = state.free.last().copied();
                let mut moved = state.advance(&steps, limits) < 1.0;
                if moved
                    && let Some(newest) = newest
                    && !state.free.contains(&newest)
                {
                    blocked[response][newest] = true;
                }
                // Multipliers mean something once the free slopes stand still.
                if !moved && change < 1e-9 {
                    let residual = outcome.residual_squares[response].to_f64().max(0.0).sqrt();
                    let size = |predictor: usize| MULTIPLIER * scan.gram[(predictor, predictor)].sqrt() * residual;
                    if let Some(predictor) = state.candidate(&scan.gram, limits, &blocked[response], &gradient, size) {
                        state.free.push(predictor);
                        moved = true;
                    }
                }
                if moved {
                    let newest = state.free.last().copied();
                    factors[response] = state.factored(scan);
                    if let Some(newest) = newest
                        && !state.free.contains(&newest)
                    {
                        blocked[response][newest] = true;
                    }
                    exchanged = true;
                }
                state.values.iter().enumerate().for_each(|(predictor, value)| coefficients.set(ones + predictor, response, *value));
            }
            // Nothing more is asked of this round once the set has changed.
            if exchanged { 0.0 } else { worst }
        })?;
        exchanges += 1;
        // The step before may have been the better one.
        for (response, state) in states.iter_mut().enumerate() {
            for predictor in 0..coordinates.predictors() {
                state.values[predictor] = coefficients.get(ones + predictor, response);
            }
        }
        if !exchanged || exchanges > PASSES {
            return Ok((0..states.len()).map(|response| if ones == 1 { coefficients.get(0, response) } else { Double::ZERO }).collect());
        }
    }
}
