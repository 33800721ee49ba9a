//! Recursive least squares in square-root information form: what a fit leaves, and how it learns row by row.
//!
//! The state is the triangle of X̃ᵀX̃ + penalty and Z with RΔ = Z, where Δ is how far the coefficients have moved from the fit's (the
//! *origin*). A new row is rotated into them ([`factor`] has the rotations, [`block`] takes many rows at once); what is left of its response
//! is its share of the residual sum of squares. The information is symmetric and positive by its form, whatever rounding does. Because Δ
//! starts at zero, the digits of the fit are kept.
//!
//! A forgetting factor λ < 1 empties every direction that no row excites. Where a pivot d of D has fallen below ρ = 1e-14 of its column's
//! own sum of squares it falls no further. To raise a pivot is to learn rows that say of its direction what is believed already: no
//! coefficient moves, and as R̄ stays, directions keep their meaning (Gunnarsson, *Combining tracking and regularization in recursive least
//! squares identification*, CDC 1996, adds the same trace along the axes, where it makes the coefficients wander). What is excited with a
//! condition number up to about 1e6 is left alone: there, forgetting is the exponentially weighted fit.

mod arrival;
mod block;
mod factor;

use std::sync::OnceLock;

use faer::{Mat, MatRef};

use self::arrival::Arrival;
use self::factor::{Factor, LANES, Step};
use super::Error;
use super::double_double::Double;
use super::problem::Row;

/// The coefficients a fit found, in the coordinates in which learning goes on.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) intercept: bool,
    /// c, p.
    pub(super) centre: Vec<f64>,
    /// s, p, powers of two.
    pub(super) scale: Vec<f64>,
    /// Predicted response at x = c, q (0 without an intercept).
    pub(super) level: Vec<f64>,
    /// Raw slopes, p×q.
    pub(super) slopes: Mat<f64>,
    /// What rounding them to floats left behind, p×q: rows that are known better than to a float are answered better too.
    pub(super) slopes_low: Mat<f64>,
    /// Raw intercepts, q; empty without an intercept.
    pub(super) intercepts: Vec<f64>,
    /// √ of the diagonal of (XᵀX + penalty)⁻¹, raw, p: computed with more care than R would give them.
    pub(super) slope_roots: Vec<f64>,
    /// The same of the intercept.
    pub(super) intercept_root: f64,
}

/// Coefficients as they stand after the updates so far.
#[derive(Clone, Debug)]
struct Current {
    level: Vec<f64>,
    slopes: Mat<f64>,
    intercepts: Vec<f64>,
}

/// Coefficients with all that is needed to answer rows and to learn more of them.
#[derive(Clone, Debug)]
pub struct Information {
    origin: Origin,
    /// The triangle, and Z beside it.
    factor: Factor,
    /// Residual sums of squares, q.
    residual: Vec<f64>,
    /// Rows learnt from.
    observations: u64,
    /// The same, with what was forgotten left out.
    effective: f64,
    rank: usize,
    /// Effective parameters of the fit less its rank: 0 without a penalty.
    spent: f64,
    /// λ of λ‖β − β₀‖², with what was forgotten left out; 0 without a penalty.
    penalty: f64,
    /// β₀, p×q column by column; empty where it is zero.
    prior: Vec<f64>,
    maximum_leverage: f64,
    updates: u64,
    /// Σ1/α⁴ over the rows taken out, of which each cost 1/α² roundings.
    removal_cost: f64,
    /// Covariances of the coefficients in the system's coordinates, one a response, where they are not s²(X̃ᵀX̃)⁻¹; given up at the first
    /// update, which knows nothing of them.
    covariance: Vec<Mat<f64>>,
    /// Degrees of freedom of tests and limits under those covariances, where they are not the fit's; 0 where they are.
    covariance_degrees: f64,
    /// √ of the diagonals of those covariances in raw coordinates, m each, the intercept first: not to be had again from rounded ones.
    covariance_errors: Vec<f64>,
    current: OnceLock<Current>,
    /// Effective parameters less the rank as they are after the updates so far.
    spent_now: OnceLock<f64>,
}

/// Rows whose leverage is asked, in the system's coordinates.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Of as many rows as there are lanes the first cells, then their second ones, and so on; then those of the next rows.
    cells: Vec<f64>,
    count: usize,
}

/// Cells larger than this could overflow when squared and summed.
const LARGEST: f64 = 1e140;
/// Roundings that taking a row out costs even where all columns are orthogonal.
const REMOVAL: f64 = 8.0;
/// α² below which a row is not taken out: the digits lost are −log₁₀α².
const FREE: f64 = 1e-8;
/// Leverage past which a row shows a direction of which nothing was known.
const NEW_DIRECTION: f64 = 1e8;
const LAYOUT: u8 = 4;
/// The layout before, which knew of no degrees of freedom of covariances.
const WITHOUT_DEGREES: u8 = 3;

impl Information {
    pub(super) fn new(
        origin: Origin,
        triangle: &Mat<f64>,
        residual: Vec<f64>,
        observations: u64,
        rank: usize,
        spent: f64,
        maximum_leverage: f64,
    ) -> Result<Self, Error> {
        let responses = origin.level.len();
        let factor = Factor::of(triangle, origin.width(), responses);
        #[allow(clippy::cast_precision_loss)]
        let (effective, rank_as_float) = (observations as f64, rank as f64);
        let information = Self {
            factor,
            residual,
            observations,
            effective,
            rank,
            spent: spent - rank_as_float,
            penalty: 0.0,
            prior: Vec::new(),
            spent_now: OnceLock::new(),
            maximum_leverage,
            updates: 0,
            removal_cost: 0.0,
            covariance: Vec::new(),
            covariance_degrees: 0.0,
            covariance_errors: Vec::new(),
            current: OnceLock::new(),
            origin,
        };
        if information.is_finite() { Ok(information) } else { Err(Error::Overflow) }
    }

    /// The same for a fit with a penalty λ‖β − β₀‖² on raw slopes; β₀ is p×q.
    pub(super) fn penalised(mut self, penalty: f64, prior: Option<MatRef<'_, f64>>) -> Self {
        self.penalty = penalty;
        self.prior =
            prior.map_or_else(Vec::new, |prior| prior.col_iter().flat_map(|column| column.iter().copied().collect::<Vec<_>>()).collect());
        self
    }

    /// λ‖β − β₀‖² of a response now, less that of the fit's coefficients: what of the growth of the objective is not residuals'.
    fn pulled(&self, response: usize) -> f64 {
        if self.penalty == 0.0 || self.updates == 0 {
            return 0.0;
        }
        let now = self.current().slopes.col_as_slice(response);
        let then = self.origin.slopes.col_as_slice(response);
        let prior = |place: usize| self.prior.get(response * now.len() + place).copied().unwrap_or(0.0);
        // a² − b² = (a − b)(a + b).
        let moved = now.iter().zip(then).enumerate().map(|(place, (now, then))| (now - then) * (now + then - 2.0 * prior(place)));
        self.penalty * moved.sum::<f64>()
    }

    fn is_finite(&self) -> bool {
        let finite = |matrix: &Mat<f64>| matrix.col_iter().all(|column| column.iter().all(|value| value.is_finite()));
        let slopes = finite(&self.origin.slopes) && finite(&self.origin.slopes_low);
        let lists = [
            &self.residual,
            &self.origin.level,
            &self.origin.centre,
            &self.origin.scale,
            &self.origin.intercepts,
            &self.origin.slope_roots,
        ];
        slopes
            && self.covariance.iter().all(finite)
            && self.covariance_errors.iter().all(|error| error.is_finite())
            && lists.into_iter().flatten().chain(self.factor.all()).all(|value| value.is_finite())
            && self.factor.is_positive()
            && self.removal_cost.is_finite()
            && self.maximum_leverage.is_finite()
            && self.effective.is_finite()
            && self.origin.intercept_root.is_finite()
    }

    /// Puts another covariance of the raw coefficients (m×m, the intercept first; one a response) in the place of s²(XᵀX)⁻¹, and other degrees
    /// of freedom for Student's t, if the covariance has its own.
    ///
    /// # Errors
    /// It is not finite.
    pub fn set_raw_covariance(&mut self, covariance: &[Mat<f64>], degrees: Option<f64>) -> Result<(), Error> {
        let ones = usize::from(self.origin.intercept);
        let width = self.width();
        // B maps raw coefficients to the system's: α̃ = α + Σcβ, β̃ = β/s. Then V becomes B·V·Bᵀ.
        let change = Mat::from_fn(width, width, |row, column| match (row < ones, column < ones) {
            (true, true) => 1.0,
            (true, false) => self.origin.centre[column - ones],
            (false, true) => 0.0,
            (false, false) if row == column => 1.0 / self.origin.scale[row - ones],
            (false, false) => 0.0,
        });
        let changed = covariance.iter().map(|covariance| &change * covariance * change.transpose()).collect();
        let errors = covariance.iter().flat_map(|covariance| (0..width).map(|place| covariance[(place, place)].max(0.0).sqrt())).collect();
        let before = (std::mem::replace(&mut self.covariance, changed), std::mem::replace(&mut self.covariance_errors, errors));
        if self.is_finite() {
            self.covariance_degrees = degrees.unwrap_or(0.0);
            return Ok(());
        }
        (self.covariance, self.covariance_errors) = before;
        Err(Error::Overflow)
    }

    /// Puts another residual variance (q) in the place of RSS over the degrees of freedom.
    pub(super) fn set_residual_variance(&mut self, variance: &[f64]) {
        let degrees = self.degrees_of_freedom();
        self.residual = variance.iter().map(|variance| variance * degrees).collect();
    }

    /// The variance of the mean response at x (p) for each response (q, in the place of what `variances` held), from the leverage of x
    /// where the covariance is s²(X̃ᵀX̃)⁻¹.
    pub fn mean_variances<'r>(&self, x: impl Into<Row<'r>>, leverage: f64, residual_variance: &[f64], variances: &mut Vec<f64>) {
        variances.clear();
        if self.covariance.is_empty() {
            variances.extend(residual_variance.iter().map(|variance| variance * leverage));
            return;
        }
        let mut row = Vec::new();
        self.system_row(x.into().high, &mut row);
        variances.extend(self.covariance.iter().map(|covariance| quadratic_form(covariance, &row)));
    }

    /// m: the predictors, and the intercept if there is one.
    fn width(&self) -> usize {
        self.origin.width()
    }

    /// The coordinates in which learning goes on, and the coefficients of the fit.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// R, m×m.
    pub(super) fn triangle(&self) -> Mat<f64> {
        let width = self.width();
        let mut triangle = Mat::zeros(width, width);
        for row in 0..width {
            let root = self.factor.diagonal[row].sqrt();
            triangle[(row, row)] = root;
            for (offset, cell) in self.factor.right_of(row).iter().enumerate() {
                triangle[(row, row + 1 + offset)] = root * cell;
            }
        }
        triangle
    }

    /// p.
    #[must_use]
    pub fn predictors(&self) -> usize {
        self.origin.centre.len()
    }

    /// q.
    #[must_use]
    pub fn responses(&self) -> usize {
        self.residual.len()
    }

    /// Whether there is an intercept.
    #[must_use]
    pub fn has_intercept(&self) -> bool {
        self.origin.intercept
    }

    /// Rows learnt from, those of the fit and those since.
    #[must_use]
    pub fn observations(&self) -> u64 {
        self.observations
    }

    /// Numerical rank, the intercept counted.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Effective rows less effective parameters, at least 0.
    #[must_use]
    pub fn degrees_of_freedom(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        (self.effective - self.effective_parameters()).max(0.0)
    }

    /// Degrees of freedom of Student's t in tests and limits of coefficients and means: those of the fit, unless the covariance has its own.
    #[must_use]
    pub fn inference_degrees(&self) -> f64 {
        if self.covariance_degrees > 0.0 && !self.covariance.is_empty() { self.covariance_degrees } else { self.degrees_of_freedom() }
    }

    /// Trace of the hat matrix: the rank without a penalty. With one, the first call after an update is O(m³).
    #[must_use]
    pub fn effective_parameters(&self) -> f64 {
        let less = if self.penalty == 0.0 || self.updates == 0 {
            self.spent
        } else {
            // tr(X̃ᵀX̃(X̃ᵀX̃ + λ)⁻¹) = m − λ·tr(X̃ᵀX̃ + λ)⁻¹.
            *self.spent_now.get_or_init(|| -self.penalty * self.unscaled_std_errors().0.iter().map(|root| root * root).sum::<f64>())
        };
        #[allow(clippy::cast_precision_loss)]
        let rank = self.rank as f64;
        rank + less
    }

    /// RSS over the degrees of freedom, q; NaN where none are left.
    #[must_use]
    pub fn residual_variance(&self) -> Vec<f64> {
        let degrees = self.degrees_of_freedom();
        let variance = |(response, residual): (usize, &f64)| {
            if degrees > 0.0 { (residual - self.pulled(response)).max(0.0) / degrees } else { f64::NAN }
        };
        self.residual.iter().enumerate().map(variance).collect()
    }

    /// The largest leverage of a row learnt from. After updates: of the newest rows, and of older ones as if each new row had thinned them
    /// evenly.
    #[must_use]
    pub fn maximum_leverage(&self) -> f64 {
        self.maximum_leverage
    }

    /// Rows learnt from, with what was forgotten left out.
    #[must_use]
    pub fn effective_observations(&self) -> f64 {
        self.effective
    }

    /// The degrees of freedom, and RSS over them (q, appended to a list; NaN where none are left), at no cost: with a penalty, with the
    /// parameters that the fit spent, and with the growth of the whole objective.
    #[must_use]
    pub fn nominal_variances(&self, variances: &mut Vec<f64>) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let degrees = (self.effective - self.rank as f64 - self.spent).max(0.0);
        variances.extend(self.residual.iter().map(|residual| if degrees > 0.0 { residual / degrees } else { f64::NAN }));
        degrees
    }

    /// Multiplies the weight of everything known by `factor` in (0, 1]; the coefficients stay.
    pub fn discount(&mut self, factor: f64) {
        self.factor.discount(factor);
        self.residual.iter_mut().for_each(|residual| *residual *= factor);
        self.effective *= factor;
        self.penalty *= factor;
        self.spent_now = OnceLock::new();
        self.covariance.clear();
        self.covariance_errors.clear();
    }

    fn current(&self) -> &Current {
        self.current.get_or_init(|| self.solve())
    }

    /// Computes the coefficients now rather than at the first question.
    pub fn settle(&self) {
        self.current();
    }

    /// Δ by back-substitution, and the coefficients that follow.
    fn solve(&self) -> Current {
        let (width, predictors, responses) = (self.width(), self.predictors(), self.responses());
        let mut moved = Mat::zeros(width, responses);
        let origin = &self.origin;
        if self.updates == 0 {
            return Current { level: origin.level.clone(), slopes: origin.slopes.clone(), intercepts: origin.intercepts.clone() };
        }
        for row in (0..width).rev() {
            let cells = self.factor.right_of(row);
            for response in 0..responses {
                let moved = moved.col_as_slice_mut(response);
                let known = cells.iter().zip(&moved[row + 1..]).fold(0.0, |sum, (cell, moved)| sum + cell * moved);
                moved[row] = self.factor.moments(row)[response] - known;
            }
        }
        let ones = usize::from(origin.intercept);
        let slopes = Mat::from_fn(predictors, responses, |row, response| {
            moved[(ones + row, response)].mul_add(origin.scale[row], origin.slopes[(row, response)])
        });
        let mut level = origin.level.clone();
        let mut intercepts = origin.intercepts.clone();
        if origin.intercept {
            for response in 0..responses {
                level[response] += moved[(0, response)];
                let shifted: f64 = (0..predictors).map(|row| origin.centre[row] * origin.scale[row] * moved[(1 + row, response)]).sum();
                intercepts[response] += moved[(0, response)] - shifted;
            }
        }
        Current { level, slopes, intercepts }
    }

    /// Raw intercepts, q; empty without an intercept.
    #[must_use]
    pub fn intercept(&self) -> &[f64] {
        &self.current().intercepts
    }

    /// Raw slopes, p×q.
    #[must_use]
    pub fn coefficients(&self) -> MatRef<'_, f64> {
        self.current().slopes.as_ref()
    }

    /// The prediction at the centre of the training rows, to which contributions add.
    #[must_use]
    pub fn baseline(&self, response: usize) -> f64 {
        self.current().level[response]
    }

    /// Predicts one row x (p) for all responses (q).
    pub fn predict<'r>(&self, x: impl Into<Row<'r>>, predicted: &mut [f64]) {
        let (x, current) = (x.into(), self.current());
        for (response, predicted) in predicted.iter_mut().enumerate() {
            *predicted = self.level_and_slopes(x, response, current.level[response], &current.slopes);
        }
    }

    /// level + Σ(x − c)β for one response.
    fn level_and_slopes(&self, x: Row<'_>, response: usize, level: f64, slopes: &Mat<f64>) -> f64 {
        let slopes = slopes.col_as_slice(response);
        let centre = &self.origin.centre;
        let Some(low) = x.low else {
            return level + x.high.iter().zip(centre).zip(slopes).fold(0.0, |sum, ((x, centre), slope)| sum + (x - centre) * slope);
        };
        // Powers cancel in a high-degree polynomial: x and β are doubles, and so is their sum.
        let mut sum = Double::from(level);
        for (place, slope_low) in self.origin.slopes_low.col_as_slice(response).iter().enumerate() {
            let distance = Double::sum(x.high[place], -centre[place]) + Double::from(low[place]);
            sum += distance * Double::sum(slopes[place], *slope_low);
        }
        sum.to_f64()
    }

    /// What each predictor of x (p) adds to the baseline of a response: (x − c)·β.
    pub fn contributions<'r>(&self, response: usize, x: impl Into<Row<'r>>, parts: &mut [f64]) {
        let x = x.into();
        let slopes = self.current().slopes.col_as_slice(response);
        for (((part, x), centre), slope) in parts.iter_mut().zip(x.high).zip(&self.origin.centre).zip(slopes) {
            *part = (x - centre) * slope;
        }
    }

    /// Puts a row x (p) beside those whose leverage is asked.
    pub fn gather<'r>(&self, x: impl Into<Row<'r>>, rows: &mut Gathered) {
        let width = self.width();
        if rows.count.is_multiple_of(LANES) {
            rows.cells.resize(rows.cells.len() + width * LANES, 0.0);
        }
        let begin = rows.cells.len() - width * LANES + rows.count % LANES;
        let mut lane = rows.cells[begin..].iter_mut().step_by(LANES);
        rows.count += 1;
        if self.origin.intercept
            && let Some(cell) = lane.next()
        {
            *cell = 1.0;
        }
        for (((cell, x), centre), scale) in lane.zip(x.into().high).zip(&self.origin.centre).zip(&self.origin.scale) {
            *cell = (x - centre) * scale;
        }
    }

    /// h = x̃ᵀ(X̃ᵀX̃ + penalty)⁻¹x̃ of each row that was gathered, by forward substitution with Rᵀ; `rows` is empty then.
    pub fn leverages(&self, rows: &mut Gathered, leverages: &mut Vec<f64>) {
        let wanted = leverages.len() + rows.count;
        for cells in rows.cells.chunks_exact_mut((self.width() * LANES).max(1)) {
            leverages.extend_from_slice(&self.factor.leverages(cells));
        }
        // A model of nothing has no cells.
        leverages.resize(wanted, 0.0);
        rows.cells.clear();
        rows.count = 0;
    }

    /// The leverage of one row x (p); `rows` holds no others.
    #[must_use]
    pub fn leverage<'r>(&self, x: impl Into<Row<'r>>, rows: &mut Gathered) -> f64 {
        self.gather(x, rows);
        let mut leverage = Vec::with_capacity(LANES);
        self.leverages(rows, &mut leverage);
        leverage[0]
    }

    /// The row in the system's coordinates.
    fn system_row(&self, x: &[f64], row: &mut Vec<f64>) {
        row.clear();
        if self.origin.intercept {
            row.push(1.0);
        }
        row.extend(x.iter().zip(&self.origin.centre).zip(&self.origin.scale).map(|((x, centre), scale)| (x - centre) * scale));
    }

    /// Standard errors of the intercept (q; empty without one) and of the slopes (p×q); NaN where no degrees of freedom are left.
    #[must_use]
    pub fn std_errors(&self) -> (Vec<f64>, Mat<f64>) {
        if !self.covariance.is_empty() {
            let (ones, width) = (usize::from(self.origin.intercept), self.width());
            let error = |response: usize, place: usize| self.covariance_errors[response * width + place];
            let intercepts =
                (0..if self.origin.intercept { self.covariance.len() } else { 0 }).map(|response| error(response, 0)).collect();
            let slopes = Mat::from_fn(self.predictors(), self.covariance.len(), |row, response| error(response, ones + row));
            return (intercepts, slopes);
        }
        let deviations: Vec<f64> = self.residual_variance().iter().map(|variance| variance.sqrt()).collect();
        let (roots, intercept_root) = self.unscaled_std_errors();
        let intercepts =
            if self.origin.intercept { deviations.iter().map(|deviation| deviation * intercept_root).collect() } else { Vec::new() };
        (intercepts, Mat::from_fn(self.predictors(), deviations.len(), |row, response| roots[row] * deviations[response]))
    }

    /// √ of the diagonal of (XᵀX + penalty)⁻¹: slopes and intercept.
    fn unscaled_std_errors(&self) -> (Vec<f64>, f64) {
        if self.updates == 0 {
            return (self.origin.slope_roots.clone(), self.origin.intercept_root);
        }
        // The variance of a slope is the leverage of a unit vector, and that of the intercept the leverage of a row of zeros.
        let ones = usize::from(self.origin.intercept);
        let mut roots = Vec::with_capacity(self.predictors() + LANES);
        let mut cells = vec![0.0; self.width() * LANES];
        for first in (0..self.predictors()).step_by(LANES) {
            cells.fill(0.0);
            for (lane, predictor) in (first..self.predictors()).take(LANES).enumerate() {
                cells[(ones + predictor) * LANES + lane] = self.origin.scale[predictor];
            }
            roots.extend(self.factor.leverages(&mut cells).map(f64::sqrt));
        }
        roots.truncate(self.predictors());
        if !self.origin.intercept {
            return (roots, 0.0);
        }
        let intercept = self.leverage(vec![0.0; self.predictors()].as_slice(), &mut Gathered::default()).sqrt();
        (roots, intercept)
    }

    /// Learns one row: x (p), y (q), a weight ≥ 0; everything known so far counts λ times as much as before. `innovations` (q) receives
    /// the a-priori errors y − ŷ; the leverage xᵀ(X̃ᵀX̃)⁻¹x before the row is returned. O(m² + mq); the result does not depend on how updates
    /// were grouped.
    ///
    /// # Errors
    /// A number is too large or not finite; nothing was changed.
    pub fn update<'r>(
        &mut self,
        x: impl Into<Row<'r>>,
        y: &[f64],
        weight: f64,
        forgetting_factor: f64,
        innovations: &mut [f64],
    ) -> Result<f64, Error> {
        let x = x.into();
        let square = self.arrive(x, y, weight)?;
        let swept = self.factor.learn(Step { weight, forgetting_factor }, square);
        innovations.copy_from_slice(self.factor.innovations());
        for (residual, innovation) in self.residual.iter_mut().zip(&*innovations) {
            *residual = forgetting_factor * (*residual + innovation * innovation * swept.share);
        }
        self.count(weight, swept.leverage, forgetting_factor);
        if forgetting_factor < 1.0 {
            self.factor.keep_a_trace();
        }
        self.moved_on();
        Ok(swept.leverage)
    }

    /// Makes a row the incoming one; its squared norm in the system's coordinates.
    fn arrive(&mut self, x: Row<'_>, y: &[f64], weight: f64) -> Result<f64, Error> {
        let arch = self.factor.arch();
        let (row, rest) = self.factor.incoming();
        // Against the origin, whose coefficients do not move: the same numbers live and at replay.
        let squares = arch.dispatch(Arrival { origin: &self.origin, x: x.high, y, row, rest });
        if x.low.is_some() {
            for (response, observed) in y.iter().enumerate() {
                let origin = &self.origin;
                let rest = observed - self.level_and_slopes(x, response, origin.level[response], &origin.slopes);
                self.factor.incoming().1[response] = rest;
            }
        }
        let responses = self.factor.innovations().iter().fold(0.0, |sum, rest| sum + rest * rest);
        Self::in_range(squares + responses, weight)?;
        Ok(squares)
    }

    /// Whether a row with this sum of squares can be learnt.
    fn in_range(squares: f64, weight: f64) -> Result<(), Error> {
        // Written so that what is no number is refused too.
        if squares * weight.max(1.0) < LARGEST * LARGEST { Ok(()) } else { Err(Error::Overflow) }
    }

    /// Counts a row that was learnt.
    fn count(&mut self, weight: f64, leverage: f64, forgetting_factor: f64) {
        self.effective *= forgetting_factor;
        self.penalty *= forgetting_factor;
        if weight > 0.0 {
            if leverage > NEW_DIRECTION && self.rank < self.width() {
                self.rank += 1;
            }
            self.observations += 1;
            let share = self.effective / (self.effective + 1.0);
            self.maximum_leverage = (self.maximum_leverage * share).max(leverage / (1.0 + leverage));
            self.effective += 1.0;
        }
        self.updates += 1;
    }

    /// What was known of the coefficients holds no longer.
    fn moved_on(&mut self) {
        self.covariance.clear();
        self.covariance_errors.clear();
        self.current = OnceLock::new();
        self.spent_now = OnceLock::new();
    }

    /// Takes a row out that was learnt before: x (p), y (q), and the weight it has now, which is the one it came with times what
    /// forgetting left of it, `remaining` (λᵏ after k more updates; 1 where nothing is forgotten). O(m² + mq).
    ///
    /// Digits are lost where the rest says little about what this row says: in proportion to 1/α² with α² = 1 − weight·leverage. See
    /// [`Self::removal_loss`].
    ///
    /// # Errors
    /// α² is below 1e-8, or the row was never learnt: the rows that are left are to be fitted afresh. A number is too large or not finite.
    /// Nothing was changed.
    pub fn downdate<'r>(&mut self, x: impl Into<Row<'r>>, y: &[f64], weight: f64, remaining: f64) -> Result<(), Error> {
        if !(weight > 0.0) {
            return Ok(());
        }
        self.arrive(x.into(), y, weight)?;
        let mut errors = vec![0.0; self.responses()];
        let free = self.factor.remove(weight, FREE, &mut errors).ok_or(Error::Removal)?;
        for (residual, error) in self.residual.iter_mut().zip(&errors) {
            *residual = (*residual - weight * error * error / free).max(0.0);
        }
        self.observations = self.observations.saturating_sub(1);
        let fewer = (self.effective - remaining).max(0.0);
        // Those that are left have more, as if evenly.
        if fewer > 0.0 {
            self.maximum_leverage = (self.maximum_leverage * (self.effective / fewer)).min(1.0);
        }
        self.effective = fewer;
        self.removal_cost += free.powi(-2);
        self.updates += 1;
        self.moved_on();
        Ok(())
    }

    /// About how large the errors are, at the most, that taking rows out has left in the coefficients, relative to them or to their standard
    /// errors: roundings of 1/α² a row, which add up as random ones do, times the condition number that the pivots show. Where it passes what
    /// can be borne, the rows that are left are to be fitted afresh. O(m).
    #[must_use]
    pub fn removal_loss(&self) -> f64 {
        if self.removal_cost == 0.0 {
            return 0.0;
        }
        let width = self.width();
        let ratio = self
            .factor
            .energy
            .iter()
            .zip(&self.factor.diagonal[..width])
            .fold(1.0, |worst: f64, (energy, known)| worst.max(energy / known));
        f64::EPSILON * self.removal_cost.sqrt() * (REMOVAL + ratio.sqrt())
    }

    /// Little-endian bytes; the same information always gives the same bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let origin = &self.origin;
        let mut bytes = vec![LAYOUT, u8::from(origin.intercept)];
        for whole in [
            self.predictors() as u64,
            self.responses() as u64,
            self.observations,
            self.rank as u64,
            self.updates,
            self.covariance.len() as u64,
            self.prior.len() as u64,
        ] {
            bytes.extend_from_slice(&whole.to_le_bytes());
        }
        let slopes: Vec<f64> = origin.slopes.col_iter().flat_map(|column| column.iter().copied().collect::<Vec<_>>()).collect();
        let single = [
            self.effective,
            self.spent,
            self.maximum_leverage,
            origin.intercept_root,
            self.removal_cost,
            self.penalty,
            self.covariance_degrees,
        ];
        let (triangle, moments) = self.factor.packed();
        let slopes_low: Vec<f64> = origin.slopes_low.col_iter().flat_map(|column| column.iter().copied().collect::<Vec<_>>()).collect();
        let lists: [&[f64]; 13] = [
            &single,
            &origin.centre,
            &origin.scale,
            &origin.level,
            &slopes,
            &slopes_low,
            &origin.intercepts,
            &origin.slope_roots,
            &triangle,
            &moments,
            &self.factor.energy,
            &self.residual,
            &self.prior,
        ];
        for value in lists.into_iter().flatten() {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        let covariance = self.covariance.iter().flat_map(|covariance| covariance.col_iter()).flat_map(|column| column.iter().copied());
        for value in covariance.chain(self.covariance_errors.iter().copied()) {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// The information of those bytes.
    ///
    /// # Errors
    /// They are not the encoding of one.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (&[layout, intercept], mut rest) = bytes.split_first_chunk::<2>().ok_or(Error::Encoding)?;
        if ![WITHOUT_DEGREES, LAYOUT].contains(&layout) || intercept > 1 {
            return Err(Error::Encoding);
        }
        let intercept = intercept == 1;
        let mut word = || -> Result<[u8; 8], Error> {
            let (word, tail) = rest.split_first_chunk::<8>().ok_or(Error::Encoding)?;
            rest = tail;
            Ok(*word)
        };
        let predictors = usize::try_from(u64::from_le_bytes(word()?)).map_err(|_| Error::Encoding)?;
        let responses = usize::try_from(u64::from_le_bytes(word()?)).map_err(|_| Error::Encoding)?;
        let observations = u64::from_le_bytes(word()?);
        let rank = usize::try_from(u64::from_le_bytes(word()?)).map_err(|_| Error::Encoding)?;
        let updates = u64::from_le_bytes(word()?);
        let covariances = usize::try_from(u64::from_le_bytes(word()?)).map_err(|_| Error::Encoding)?;
        if covariances != 0 && covariances != responses {
            return Err(Error::Encoding);
        }
        let priors = usize::try_from(u64::from_le_bytes(word()?)).map_err(|_| Error::Encoding)?;
        let width = predictors.checked_add(usize::from(intercept)).ok_or(Error::Encoding)?;
        // Sizes are held against what is there before anything is allocated.
        let cells =
            |rows: usize, columns: usize| rows.checked_mul(columns).filter(|cells| *cells <= bytes.len() / 8).ok_or(Error::Encoding);
        let packed = cells(width, width + 1).or_else(|_| cells(width, width.div_ceil(2) + 1)).map(|_| width * (width + 1) / 2)?;
        let slopes = cells(predictors, responses)?;
        if priors != 0 && priors != slopes {
            return Err(Error::Encoding);
        }
        let lengths = [
            if layout == LAYOUT { 7 } else { 6 },
            predictors,
            predictors,
            responses,
            slopes,
            slopes,
            if intercept { responses } else { 0 },
            predictors,
            packed,
            cells(width, responses)?,
            width,
            responses,
            priors,
        ];
        let mut lists = Vec::with_capacity(lengths.len());
        for length in lengths {
            let mut list = Vec::with_capacity(length.min(bytes.len() / 8));
            for _ in 0..length {
                list.push(f64::from_le_bytes(word()?));
            }
            lists.push(list);
        }
        let mut covariance = Vec::new();
        if covariances > 0 {
            cells(cells(width, width)?, covariances)?;
            for _ in 0..covariances {
                let mut matrix = Mat::zeros(width, width);
                for column in 0..width {
                    for row in 0..width {
                        matrix[(row, column)] = f64::from_le_bytes(word()?);
                    }
                }
                covariance.push(matrix);
            }
        }
        let mut covariance_errors = Vec::with_capacity(covariance.len() * width);
        for _ in 0..covariance.len() * width {
            covariance_errors.push(f64::from_le_bytes(word()?));
        }
        if !rest.is_empty() || rank > width {
            return Err(Error::Encoding);
        }
        let mut lists = lists.into_iter();
        let mut next = || lists.next().ok_or(Error::Encoding);
        let single = next()?;
        let (centre, scale, level, slopes, slopes_low) = (next()?, next()?, next()?, next()?, next()?);
        let (intercepts, slope_roots) = (next()?, next()?);
        let matrix = |list: &[f64]| Mat::from_fn(predictors, responses, |row, column| list[column * predictors + row]);
        let origin = Origin {
            intercept,
            centre,
            scale,
            level,
            slopes: matrix(&slopes),
            slopes_low: matrix(&slopes_low),
            intercepts,
            slope_roots,
            intercept_root: single[3],
        };
        let factor = Factor::unpacked(width, responses, &next()?, &next()?, next()?);
        let information = Self {
            origin,
            factor,
            residual: next()?,
            observations,
            effective: single[0],
            rank,
            spent: single[1],
            penalty: single[5],
            prior: next()?,
            spent_now: OnceLock::new(),
            maximum_leverage: single[2],
            updates,
            removal_cost: single[4],
            covariance,
            covariance_degrees: single.get(6).copied().unwrap_or(0.0),
            covariance_errors,
            current: OnceLock::new(),
        };
        if information.is_finite() { Ok(information) } else { Err(Error::Encoding) }
    }
}

/// vᵀMv, not below zero.
fn quadratic_form(matrix: &Mat<f64>, vector: &[f64]) -> f64 {
    let product = matrix * faer::ColRef::from_slice(vector);
    product.iter().zip(vector).map(|(product, cell)| product * cell).sum::<f64>().max(0.0)
}

impl Origin {
    fn width(&self) -> usize {
        self.centre.len() + usize::from(self.intercept)
    }
}
