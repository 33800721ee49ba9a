//! `POST /v1/models/{name}/forecast`: the steps after the last row that a version knows.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::error::{ApiError, Code};
use super::extract::Path;
use super::predict::{MUCH, moment_of, off_thread};
use super::wire::{Fields, refuse};
use super::{App, extract};
use crate::frame::rows::{Rows, RowsOptions, parse_document};
use crate::model::version::finite;
use crate::service::{Forecast, ForecastQuestion, ServiceError};

/// Steps at the most.
const STEPS: u64 = 10_000;

const OPTIONS: RowsOptions = RowsOptions { allow_id: false, max_rows: STEPS as usize };

pub(super) async fn forecast(State(app): State<App>, Path(name): Path<String>, body: Body) -> Result<Response, ApiError> {
    let body = extract::whole(body, app.body_limit).await?;
    let mut fields = Fields::parse(&body)?;
    let steps = fields.whole("steps", 1, STEPS).unwrap_or_else(|| fields.lacks("steps"));
    let level = level_of(&mut fields);
    let at = moment_of(&mut fields);
    // They are read again, as rows.
    let given = ["rows", "columns", "data"].map(|member| fields.take(member).is_some()).contains(&true);
    refuse(Code::InvalidRequest, fields.into_faults())?;
    let asked = ForecastQuestion { steps: usize::try_from(steps).unwrap_or(usize::MAX), level };
    let forecaster = app.service.forecaster(&name, at).await?;
    let service = app.service.clone();
    let large = body.len() > extract::LARGE || forecaster.work(asked.steps) > MUCH;
    let work = move || -> Result<Forecast, ApiError> {
        let mut rows = Rows::default();
        if given {
            parse_document(&body, forecaster.row_inputs(), &OPTIONS, &mut rows).map_err(ServiceError::from)?;
        }
        Ok(service.forecast(forecaster, given.then_some(&rows), asked)?)
    };
    let found = if large { off_thread(work).await? } else { work()? };
    Ok(Json(view(&found, asked)).into_response())
}

/// `"interval": {"level"}`: limits are of the observation that is to come.
fn level_of(fields: &mut Fields) -> Option<f64> {
    let mut interval = fields.object("interval")?;
    if interval.string("kind").is_some_and(|kind| kind != "prediction") {
        interval.fault("kind", "the limits of a forecast are of kind prediction");
    }
    let level = interval.number("level").unwrap_or(0.95);
    if !(level > 0.0 && level < 1.0) {
        interval.fault("level", "`level` is between 0 and 1");
    }
    fields.faults.extend(interval.into_faults());
    Some(level)
}

fn view(found: &Forecast, asked: ForecastQuestion) -> Value {
    let list = |values: &[f64]| values.iter().map(|value| finite(*value)).collect::<Vec<_>>();
    let limits = asked.level.map(|_| (list(&found.limits.0), list(&found.limits.1))).unzip();
    json!({
        "model": found.version.model, "version": found.version.number, "sequence": found.sequence, "target": found.version.document.target[0],
        "predictions": list(&found.predictions), "std_error": list(&found.std_errors), "lower": limits.0, "upper": limits.1,
    })
}
