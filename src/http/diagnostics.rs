//! `GET /v1/models/{name}/versions/{version}/diagnostics`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Map, Value, json};

use super::App;
use super::error::ApiError;
use super::extract::{Page, Path};
use crate::lsq::{Outstanding, Test};
use crate::service::{Findings, LEVELS, ServiceError, Wanted};

pub(super) async fn show(State(app): State<App>, Path((name, version)): Path<(String, String)>, page: Page) -> Result<Response, ApiError> {
    let first = match page.after.as_str() {
        "" => 0,
        text => text.parse::<u64>().map_err(|_| ServiceError::request("/after", "`after` is the `next` of an earlier page"))?,
    };
    let found = app.service.diagnose(&name, &version, Wanted { first, limit: page.limit as usize }).await?;
    Ok(Json(view(&found)).into_response())
}

/// Rows count from 1, as everywhere people read of them.
fn outstanding(rows: &[Outstanding]) -> Vec<Value> {
    rows.iter().map(|entry| json!({"row": entry.row + 1, "value": entry.value})).collect()
}

fn test(test: Test) -> Value {
    json!({"statistic": test.statistic, "p": test.p})
}

fn view(found: &Findings) -> Value {
    let document = &found.version.document;
    let targets: Vec<Value> = document
        .responses()
        .iter()
        .zip(&found.diagnostics.responses)
        .map(|(target, figures)| {
            let quantiles: Vec<Value> =
                LEVELS.iter().zip(&figures.quantiles).map(|(level, value)| json!({"level": level, "value": value})).collect();
            json!({
                "target": target, "press": figures.press, "predicted_r2": figures.predicted_r2, "durbin_watson": figures.durbin_watson,
                "skewness": figures.skewness, "kurtosis": figures.kurtosis, "jarque_bera": test(figures.jarque_bera),
                "omnibus": test(figures.omnibus), "breusch_pagan": test(figures.breusch_pagan), "residual_quantiles": quantiles,
                "cooks_distances": outstanding(&figures.cooks_distances), "studentised": outstanding(&figures.studentised),
            })
        })
        .collect();
    let rows = &found.page;
    let mut names = found.version.design.column_names();
    if document.intercept {
        names.insert(0, "(intercept)".to_owned());
    }
    let items: Vec<Value> = (0..rows.leverage.len())
        .map(|place| {
            let targets: Vec<Value> = document
                .responses()
                .iter()
                .zip(&rows.responses)
                .enumerate()
                .map(|(response, (target, figures))| {
                    let effects = found.diagnostics.effects.get(place).map(|effects| {
                        names.iter().zip(effects.of(response)).map(|(name, value)| (name.clone(), json!(value))).collect::<Map<_, _>>()
                    });
                    json!({
                        "target": target, "residual": figures.residual[place], "standardised": figures.standardised[place],
                        "studentised": figures.studentised[place], "cooks_distance": figures.cooks_distance[place],
                        "dffits": figures.dffits[place], "dfbetas": effects,
                    })
                })
                .collect();
            let mut item = json!({"row": rows.first + place as u64 + 1, "leverage": rows.leverage[place], "targets": targets});
            if let Some(weight) = rows.weight.get(place) {
                item["weight"] = json!(weight);
            }
            item
        })
        .collect();
    let end = rows.first + rows.leverage.len() as u64;
    let next = (!items.is_empty() && end < found.rows).then(|| end.to_string());
    let mut view = json!({
        "model": found.version.model, "version": found.version.number, "rows": found.rows, "decisive": found.diagnostics.decisive,
        "leverages": outstanding(&found.diagnostics.leverages), "targets": targets, "items": items, "next": next,
    });
    if document.estimator.is_robust() {
        view["weights"] = json!(outstanding(&found.diagnostics.weights));
    }
    view
}
