//! Forecasts: the rows after the last one that a version knows, each predicted from those before it, predictions standing for the past values
//! of the target that are not there yet.
//!
//! The forecast of k steps is ŷ + t·s·√(Σ_{j<k} ψ_j²) at its limits, with the weights ψ of the moving average that the autoregression is
//! (`lsq::moving_average`), s² the residual variance and t Student's quantile of the fit's degrees of freedom: the variance of statsmodels'
//! `AutoReg`, which puts the normal quantile in the place of t and divides the squares of the residuals by their number. That the
//! coefficients are estimates is not in it, nor that the other columns of the steps may be forecasts themselves.

use std::sync::Arc;

use super::catalogue::Version;
use super::error::ServiceError;
use super::{Service, rolling};
use crate::features::RowBuffer;
use crate::frame::rows::Rows;
use crate::frame::{Fault, Faults, InputSchema, escaped};
use crate::lsq;
use crate::lsq::inference::student_t_quantile;
use crate::model::State;
use crate::telemetry;

/// Who forecasts: settled before the rows are read.
#[derive(Debug)]
pub struct Steps {
    /// The version.
    pub version: Arc<Version>,
    state: Arc<State>,
}

impl Steps {
    /// What the row of a step may hold.
    #[must_use]
    pub fn row_inputs(&self) -> &InputSchema {
        &self.version.forecast_inputs
    }

    /// Multiplications, about, that so many steps take.
    #[must_use]
    pub fn work(&self, steps: usize) -> usize {
        let design = &self.version.design;
        steps.saturating_mul(design.width() + design.columns().len())
    }
}

/// What is asked of a forecast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForecastQuestion {
    /// How many steps, at least 1.
    pub steps: usize,
    /// The level of the limits, in (0, 1).
    pub level: Option<f64>,
}

/// Forecasts, one a step.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// The version that answered.
    pub version: Arc<Version>,
    /// Its sequence.
    pub sequence: u64,
    /// The forecasts.
    pub predictions: Vec<f64>,
    /// Standard errors; NaN where the degrees of freedom are spent.
    pub std_errors: Vec<f64>,
    /// Lower and upper limits. Empty when not asked for.
    pub limits: (Vec<f64>, Vec<f64>),
}

impl Service {
    /// Who forecasts for what `name`, `name@alias` or `name@version` means, as it stands or as it stood after update `sequence`. A split of
    /// traffic does not share forecasts out: the served version answers.
    ///
    /// # Errors
    /// There is no such version, or it takes no past values of its one target.
    pub async fn forecaster(&self, reference: &str, sequence: Option<u64>) -> Result<Steps, ServiceError> {
        let (_, version, mut state) = self.version(reference).await?;
        let target = match version.document.target.as_slice() {
            [target] => target,
            _ => return Err(ServiceError::NotASeries("a forecast is of one target, and this version has several")),
        };
        if !version.design.lagged().contains(target) {
            let detail = "this version takes no past values of its target: fit it with a `lag` of the target, or ask `predict`";
            return Err(ServiceError::NotASeries(detail));
        }
        if let Some(sequence) = sequence {
            state = version.state_at(&self.store, sequence).await?;
        }
        Ok(Steps { version, state })
    }

    /// Forecasts the steps after the last row; `rows`, parsed by [`Steps::row_inputs`], are one a step, or none at all.
    ///
    /// # Errors
    /// A column is missing at a step that needs it, a past value is not known, or a forecast is not finite.
    pub fn forecast(&self, forecaster: Steps, rows: Option<&Rows>, asked: ForecastQuestion) -> Result<Forecast, ServiceError> {
        let Steps { version, state } = forecaster;
        let rows = known(&version, rows, asked.steps)?;
        let predictions = iterated(&version, &state, &rows, asked.steps)?;
        let design = &version.design;
        let information = state.information();
        let coefficient = |(lag, column, weight): (usize, usize, f64)| (lag, weight * information.coefficients()[(column, 0)]);
        let lags: Vec<(usize, f64)> = design.weights_of_past(&version.document.target[0]).into_iter().map(coefficient).collect();
        let variance = information.residual_variance().first().copied().unwrap_or(f64::NAN);
        let degrees = information.inference_degrees();
        let squares = lsq::moving_average(&lags, asked.steps).into_iter().scan(0.0, |sum, weight| {
            *sum += weight * weight;
            Some(*sum)
        });
        let std_errors: Vec<f64> = squares.map(|sum| if degrees > 0.0 { (variance * sum).sqrt() } else { f64::NAN }).collect();
        let mut limits = (Vec::new(), Vec::new());
        if let Some(level) = asked.level {
            let quantile = if degrees > 0.0 { student_t_quantile(level, degrees) } else { f64::NAN };
            let at = |sign: f64| predictions.iter().zip(&std_errors).map(|(mean, error)| mean + sign * quantile * error).collect();
            limits = (at(-1.0), at(1.0));
        }
        metrics::counter!(telemetry::PREDICTIONS).increment(asked.steps as u64);
        Ok(Forecast { sequence: state.sequence(), version, predictions, std_errors, limits })
    }
}

/// The cells of the steps, NaN where nothing is given.
fn known(version: &Version, rows: Option<&Rows>, steps: usize) -> Result<Vec<f64>, ServiceError> {
    let inputs = &version.forecast_inputs;
    match rows {
        Some(rows) if rows.count == steps => Ok(rows.values.clone()),
        Some(rows) => {
            let detail = format!("`rows` are one a step: there are {} for {steps} steps", rows.count);
            Err(ServiceError::request("/rows", detail))
        }
        None => {
            let needed = inputs.inputs().iter().filter(|input| input.required);
            let fault = |name: &String| Fault {
                pointer: "/rows".to_owned(),
                detail: format!("column {name:?} is needed at each step: give it in `rows`, one a step"),
            };
            let faults: Vec<Fault> = needed.map(|input| fault(&input.name)).take(20).collect();
            if faults.is_empty() { Ok(vec![f64::NAN; inputs.len() * steps]) } else { Err(ServiceError::Request(faults)) }
        }
    }
}

/// The predictions of the steps, each made with those before it. `rows` are steps × the columns of [`Steps::row_inputs`].
fn iterated(version: &Version, state: &State, rows: &[f64], steps: usize) -> Result<Vec<f64>, ServiceError> {
    let (design, inputs) = (&version.design, &version.forecast_inputs);
    let own = design.own_columns();
    let fed = rolling::fed(design, &version.document.target);
    // Past values that are not the target's stand in the rows of the steps before.
    let carried: Vec<(usize, usize, usize)> = design
        .past()
        .iter()
        .filter(|past| fed.iter().all(|(place, ..)| *place != past.place))
        .filter_map(|past| Some((past.place, inputs.place_of(&design.lagged()[past.column])?, past.lag)))
        .collect();
    let mut predictions: Vec<f64> = Vec::with_capacity(steps);
    let (mut buffer, mut cells, mut predicted) = (RowBuffer::default(), Vec::new(), [0.0]);
    let mut faults = Faults::default();
    for step in 0..steps {
        cells.clear();
        cells.extend_from_slice(&rows[step * inputs.len()..step * inputs.len() + own]);
        cells.resize(design.columns().len(), f64::NAN);
        state.recall(design, step + 1, &mut cells);
        for &(place, _, lag) in fed.iter().filter(|(.., lag)| *lag <= step) {
            cells[place] = predictions[step - lag];
        }
        for &(place, input, lag) in carried.iter().filter(|(.., lag)| *lag <= step) {
            let row = step - lag;
            cells[place] = rows[row * inputs.len() + input];
            if cells[place].is_nan() {
                let name = &inputs.inputs()[input].name;
                let pointer = || format!("/rows/{row}/{}", escaped(name));
                faults.push(pointer, || {
                    format!("row {}, column {name:?}: is missing, and step {} takes it as a past value", row + 1, step + 1)
                });
            }
        }
        let gap = design.past().iter().find(|past| past.lag > step && cells[past.place].is_nan());
        if let Some(gap) = gap {
            let name = &design.columns()[gap.place].name;
            let detail = format!("step {}: the rows that the version knows lack the past value {name:?}", step + 1);
            return Err(ServiceError::request("/steps", detail));
        }
        state.information().predict(design.row(&cells, &mut buffer), &mut predicted);
        if faults.is_empty() && !predicted[0].is_finite() {
            let detail = format!("step {}: the forecast is not a finite number; the autoregression explodes", step + 1);
            return Err(ServiceError::request("/steps", detail));
        }
        predictions.push(predicted[0]);
    }
    if faults.is_empty() { Ok(predictions) } else { Err(ServiceError::Rows(faults)) }
}
