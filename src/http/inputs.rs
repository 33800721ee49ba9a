//! `GET /v1/models/{name}/inputs`: what a version is asked to predict, beside what it was fitted on.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::extract::Path;
use crate::features::RawColumn;
use crate::model::inputs::{Comparison, FEWEST, Label, MAJOR, MODERATE, Standing};
use crate::service::{Span, Unwatched, Version, Watched};

pub(super) async fn show(State(app): State<App>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let (version, watched) = app.service.inputs(&name)?;
    let view = match watched {
        Ok(watched) => view(&version, &watched),
        Err(reason) => nothing(&version, reason),
    };
    Ok(Json(view).into_response())
}

/// The document of a version that is not watched.
fn nothing(version: &Version, reason: Unwatched) -> Value {
    let reason = match reason {
        Unwatched::Setting => "the server was started with --watch-inputs=false",
        Unwatched::Fit => "the fit said \"watch_inputs\": false",
        Unwatched::NoReference => "this version was fitted before inputs were watched, and knows nothing of its training rows; fit it anew",
    };
    json!({
        "model": version.model, "version": version.number, "watched": false, "reason": reason, "state": null, "training": null, "total": null,
        "window": null, "limits": limits(), "leverage": null, "features": [],
    })
}

fn limits() -> Value {
    json!({"moderate": MODERATE, "major": MAJOR, "fewest_rows": FEWEST})
}

fn view(version: &Version, watched: &Watched) -> Value {
    let (reference, looked) = (watched.reference(), &watched.looked);
    let features = version.design.columns().iter().take(reference.features.len()).enumerate();
    let features: Vec<Value> = features.map(|(place, column)| one(watched, place, column)).collect();
    let any = |standing| looked.standings.contains(&standing);
    let state = if any(Standing::Shifted) {
        Standing::Shifted
    } else if any(Standing::Steady) {
        Standing::Steady
    } else {
        Standing::TooFewRows
    };
    json!({
        "model": version.model, "version": version.number, "watched": true, "reason": null, "state": state.as_str(),
        "training": {"rows": reference.rows, "sampled": reference.sampled},
        "total": span(&looked.total), "window": span(&looked.window), "limits": limits(),
        "leverage": {"training": reference.leverage, "total": leverage(&looked.total), "window": leverage(&looked.window)},
        "features": features,
    })
}

fn span(span: &Span) -> Value {
    json!({"since": span.since.to_string(), "rows": span.seen(), "counted": span.rows(), "refused_requests": span.refused()})
}

fn leverage(span: &Span) -> Value {
    json!({
        "counted": span.leverages(), "p50": span.leverage(0.5), "p90": span.leverage(0.9), "p99": span.leverage(0.99),
        "extrapolates": span.extrapolating(),
    })
}

fn one(watched: &Watched, place: usize, column: &RawColumn) -> Value {
    let (reference, looked) = (watched.reference(), &watched.looked);
    let (total, window) = (watched.compare(place, &looked.total), watched.compare(place, &looked.window));
    let levels = column.levels.as_ref().map_or(&[][..], |(levels, _)| levels.as_slice());
    let labels = watched.binning().labels(reference, place, levels);
    let bins: Vec<Value> = labels.iter().enumerate().map(|(bin, label)| shares(label, bin, &total, &window)).collect();
    json!({
        "name": column.name, "type": column.kind.as_str(), "state": looked.standings[place].as_str(),
        "missing_in_training": reference.missing.get(place),
        "total": figures(&total, watched.refused_cells(place, &looked.total)),
        "window": figures(&window, watched.refused_cells(place, &looked.window)),
        "bins": bins,
    })
}

#[allow(clippy::cast_precision_loss)] // counts of rows
fn share(count: u64, rows: u64) -> Option<f64> {
    (rows > 0).then(|| count as f64 / rows as f64)
}

fn figures(comparison: &Comparison, (missing, unseen): (u64, u64)) -> Value {
    let rows = comparison.rows;
    json!({
        "counted": rows, "psi": comparison.psi, "psi_adjusted": comparison.adjusted(), "noise": comparison.noise,
        "critical": comparison.critical, "missing": share(comparison.missing, rows),
        "unseen": comparison.unseen.and_then(|unseen| share(unseen, rows)),
        "outside": comparison.outside.and_then(|outside| share(outside, rows)),
        "refused_cells": {"missing": missing, "unseen": unseen},
    })
}

fn shares(label: &Label, bin: usize, total: &Comparison, window: &Comparison) -> Value {
    let mut shown = match label {
        Label::Range { over, up_to } => json!({"over": over, "up_to": up_to}),
        Label::Value(value) => json!({"value": value}),
        Label::Below(limit) => json!({"below": limit}),
        Label::Level(level) => json!({"level": level}),
        Label::Levels(count) => json!({"other_levels": count}),
    };
    shown["training"] = json!(share(total.training[bin], total.training.iter().sum()));
    shown["total"] = json!(share(total.served[bin], total.rows));
    shown["window"] = json!(share(window.served[bin], window.rows));
    shown
}
