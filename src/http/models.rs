//! `/v1/models`: versions, aliases, documents.

use std::ops::Bound;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::error::{ApiError, Code};
use super::extract::{Page, Path};
use super::wire::{Fields, refuse};
use super::{App, extract};
use crate::lsq::inference::{student_t_p, student_t_quantile};
use crate::model::version::finite;
use crate::model::{
    Classifier, Covariance, Document, FitRecord, FoldRecord, LabelFold, LabelRecord, State as ModelState, TargetRecord, ValidationRecord,
};
use crate::service::{Holder, Model, ServiceError, Target, Version};

/// The level of the confidence limits in a version.
const LEVEL: f64 = 0.95;
/// Past this many coefficients their standard errors are computed off the async threads.
const LARGE: usize = 128;

pub(super) async fn list(State(app): State<App>, holder: Holder, page: Page) -> Result<Response, ApiError> {
    let models = app.service.catalogue().all();
    let after = models.range::<str, _>((Bound::Excluded(page.after.as_str()), Bound::Unbounded)).map(|(_, model)| model);
    let mut after = after.filter(|model| holder.sees_model(&model.name));
    let items: Vec<_> = after.by_ref().take(page.limit as usize).cloned().collect();
    let next = after.next().is_some().then(|| items.last().map(|model| model.name.clone())).flatten();
    let items: Vec<Value> = items
        .iter()
        .map(|model| {
            let served = model.served();
            let damages = model.damages();
            json!({
                "name": model.name, "created_at": model.created_at,
                "served": served.map(|version| version.number),
                "latest": model.versions.last_key_value().map(|(number, _)| number),
                "versions": model.versions.len(),
                "target": served.map(|version| &version.document.target),
                "aliases": model.aliases.iter().map(|(alias, target)| (alias.clone(), target.version.into())).collect::<serde_json::Map<_, _>>(),
                "state": if damages.is_empty() { "ready" } else { "quarantined" },
                "quarantined": damages.iter().map(|(version, damage)| json!({"version": version, "damaged": damage})).collect::<Vec<_>>(),
            })
        })
        .collect();
    Ok(Json(json!({"items": items, "next": next})).into_response())
}

pub(super) async fn show(
    State(app): State<App>,
    Path(name): Path<String>,
    holder: Holder,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    document(&app, &holder, &name, None, &headers).await
}

pub(super) async fn version(
    State(app): State<App>,
    Path((name, version)): Path<(String, String)>,
    holder: Holder,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    document(&app, &holder, &name, Some(&version), &headers).await
}

pub(super) async fn versions(State(app): State<App>, Path(name): Path<String>, page: Page) -> Result<Response, ApiError> {
    let after = match page.after.as_str() {
        "" => 0,
        text => text.parse::<u64>().map_err(|_| ServiceError::request("/after", "`after` is the `next` of an earlier page"))?,
    };
    let model = app.service.catalogue().model(&name)?;
    let mut rest = model.versions.range((Bound::Excluded(after), Bound::Unbounded)).map(|(_, version)| version);
    let items: Vec<_> = rest.by_ref().take(page.limit as usize).cloned().collect();
    let next = rest.next().is_some().then(|| items.last().map(|version| version.number.to_string())).flatten();
    let items: Vec<Value> = items
        .iter()
        .map(|version| {
            json!({
                "model": model.name, "version": version.number, "aliases": model.aliases_of(version.number),
                "estimator": version.document.estimator, "solver": version.document.solver, "target": version.document.target,
                "classes": classes_view(&version.document), "fit": fit_view(&version.document, &version.document.fit), "created_at": version.created_at,
            })
        })
        .collect();
    Ok(Json(json!({"items": items, "next": next})).into_response())
}

pub(super) async fn delete(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Result<StatusCode, ApiError> {
    app.service.delete_model(&name, extract::if_match(&headers)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn delete_version(State(app): State<App>, Path((name, version)): Path<(String, String)>) -> Result<StatusCode, ApiError> {
    app.service.delete_version(&name, &version).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn aliases(State(app): State<App>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let model = app.service.catalogue().model(&name)?;
    let item = |(alias, target): (&String, &Target)| json!({"alias": alias, "version": target.version, "sequence": target.sequence()});
    let items: Vec<Value> = model.aliases.iter().map(item).collect();
    Ok(Json(json!({"items": items, "next": null})).into_response())
}

pub(super) async fn set_alias(
    State(app): State<App>,
    Path((name, alias)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let body = extract::whole(body, app.body_limit).await?;
    let mut fields = Fields::parse(&body)?;
    let version = match fields.take("version").as_ref().map(Value::as_u64) {
        Some(Some(version)) => version,
        Some(None) => {
            fields.fault("version", "`version` is a version's number");
            0
        }
        None => {
            fields.fault("version", "`version` is required");
            0
        }
    };
    let sequence = fields.whole("sequence", 0, u64::MAX);
    refuse(Code::InvalidRequest, fields.into_faults())?;
    let created = app.service.set_alias(&name, &alias, version, sequence, extract::if_match(&headers)).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(json!({"alias": alias, "version": version, "sequence": sequence}))).into_response())
}

pub(super) async fn delete_alias(State(app): State<App>, Path((name, alias)): Path<(String, String)>) -> Result<StatusCode, ApiError> {
    app.service.delete_alias(&name, &alias).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The document of a version (`None`: the one behind the name), with its ETag.
pub(super) async fn document(
    app: &App,
    holder: &Holder,
    name: &str,
    which: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let (model, version, state) = match which {
        Some(which) => app.service.version_of(name, which).await?,
        None => app.service.version(name).await?,
    };
    let tag = extract::etag(&format!("{}-{}", version.number, state.sequence()));
    let summary = extract::accepts(headers, "text/plain");
    let large = version.design.width() * version.document.responses().len() > LARGE;
    let holder = holder.clone();
    let write = move || {
        if summary { super::summary::table(&holder, &version, &state) } else { view(&holder, &model, &version, &state).to_string() }
    };
    let body = if large {
        tokio::task::spawn_blocking(write).await.map_err(|_| ServiceError::Internal("a version could not be written"))?
    } else {
        write()
    };
    let mut response = Response::new(Body::from(body));
    let media = if summary { "text/plain; charset=utf-8" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

/// A line of the coefficient table.
pub(super) struct Coefficient {
    pub(super) target: String,
    pub(super) name: String,
    pub(super) estimate: f64,
    pub(super) std_error: Option<f64>,
    pub(super) t: Option<f64>,
    pub(super) p: Option<f64>,
    pub(super) lower: Option<f64>,
    pub(super) upper: Option<f64>,
    pub(super) vif: Option<f64>,
}

/// The coefficients of a version as they stand, responses in order, the intercept first.
pub(super) fn coefficients(version: &Version, state: &ModelState) -> Vec<Coefficient> {
    let information = state.information();
    let degrees = information.inference_degrees();
    let quantile = if degrees > 0.0 { student_t_quantile(LEVEL, degrees) } else { f64::NAN };
    let (intercepts, slopes) = (information.intercept(), information.coefficients());
    let (intercept_errors, slope_errors) = information.std_errors();
    let names = version.design.column_names();
    let mut lines = Vec::new();
    for (place, target) in version.document.responses().iter().enumerate() {
        let mut line = |name: &str, estimate: f64, error: f64, vif: Option<f64>| {
            // A coefficient held at its value has no error of its own.
            let error = if error == 0.0 && estimate == 0.0 { f64::NAN } else { error };
            let half = quantile * error;
            let t = estimate / error;
            lines.push(Coefficient {
                target: target.clone(),
                name: name.to_owned(),
                estimate,
                std_error: finite(error),
                t: finite(t),
                p: finite(t).and_then(|t| if degrees > 0.0 { finite(student_t_p(t, degrees)) } else { None }),
                lower: finite(estimate - half),
                upper: finite(estimate + half),
                vif,
            });
        };
        if let (Some(&intercept), Some(&error)) = (intercepts.get(place), intercept_errors.get(place)) {
            line("(intercept)", intercept, error, None);
        }
        for (column, name) in names.iter().enumerate() {
            let vif = version.document.variance_inflation.get(column).copied().flatten();
            line(name, slopes[(column, place)], slope_errors[(column, place)], vif);
        }
    }
    lines
}

/// The figures of a fit as they stand, in the contract's words.
pub(super) fn fit_now(version: &Version, state: &ModelState) -> FitRecord {
    state.record(&version.document.fit, &version.document.online)
}

fn target_view(record: &TargetRecord) -> [(&'static str, Option<f64>); 8] {
    [
        ("residual_std", record.residual_std),
        ("r2", record.r2),
        ("adjusted_r2", record.adjusted_r2),
        ("f", record.f),
        ("f_p", record.f_p),
        ("aic", record.aic),
        ("bic", record.bic),
        ("log_likelihood", record.log_likelihood),
    ]
}

/// `fit`: for one response its figures stand flat; for several they are listed by target, and the flat ones are null.
fn fit_view(document: &Document, record: &FitRecord) -> Value {
    let targets = document.responses();
    let mut view = serde_json::Map::new();
    view.insert("observations".to_owned(), record.observations.into());
    view.insert("rank".to_owned(), record.rank.into());
    view.insert("degrees_of_freedom".to_owned(), number(record.degrees_of_freedom));
    view.insert("effective_parameters".to_owned(), number(record.effective_parameters));
    let single = match record.targets.as_slice() {
        [single] => single.clone(),
        _ => TargetRecord::default(),
    };
    for (name, value) in target_view(&single) {
        view.insert(name.to_owned(), json!(value));
    }
    view.insert("condition_number".to_owned(), json!(record.condition_number));
    view.insert("digits".to_owned(), json!(record.digits));
    if document.classifier.is_some() {
        view.insert("accuracy".to_owned(), json!(record.accuracy));
    }
    if targets.len() > 1 {
        let listed: Vec<Value> = targets
            .iter()
            .zip(&record.targets)
            .map(|(target, record)| {
                let mut entry = serde_json::Map::from_iter([("target".to_owned(), json!(target))]);
                entry.extend(target_view(record).map(|(name, value)| (name.to_owned(), json!(value))));
                Value::Object(entry)
            })
            .collect();
        view.insert("targets".to_owned(), Value::Array(listed));
    }
    Value::Object(view)
}

/// A whole number is written as one: `9`, not `9.0`.
pub(super) fn number(value: f64) -> Value {
    #[allow(clippy::cast_possible_truncation)] // whole and small
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// A word where a word says it all, as it was asked for.
fn covariance_view(covariance: &Covariance) -> Value {
    match covariance {
        Covariance::Hac { .. } | Covariance::Cluster { .. } => json!(covariance),
        _ => json!(covariance).get("kind").cloned().unwrap_or_default(),
    }
}

fn moved_view(document: &Document) -> Value {
    if document.prior.is_some() { json!(document.moved) } else { Value::Null }
}

/// The classes of a classifier; those of a boolean are `false` and `true`.
fn classes_view(document: &Document) -> Value {
    let classifier = document.classifier.as_ref();
    classifier.map_or(Value::Null, |classifier| classifier.classes.iter().map(|class| class_view(classifier, class)).collect())
}

fn class_view(classifier: &Classifier, class: &str) -> Value {
    if classifier.boolean { json!(class == "true") } else { json!(class) }
}

/// What held-out rows say of a classifier's labels.
fn labels_view(classifier: &Classifier, validation: &ValidationRecord, labels: &LabelRecord) -> Value {
    let list = |figure: fn(&LabelFold) -> Option<f64>| labels.folds.iter().map(figure).collect::<Vec<_>>();
    let mean = |figure: fn(&LabelFold) -> Option<f64>| {
        if labels.folds.is_empty() {
            return figure(&labels.pooled);
        }
        let known: Vec<f64> = labels.folds.iter().filter_map(figure).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    };
    let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let by_class = classifier.classes.iter().enumerate().map(|(place, class)| {
        let (right, observed) = (labels.confusion[place][place], labels.confusion[place].iter().sum());
        let predicted = labels.confusion.iter().map(|row| row[place]).sum();
        json!({"class": class_view(classifier, class), "rows": observed, "precision": share(right, predicted), "recall": share(right, observed)})
    });
    json!({
        "metric": "accuracy", "mean": mean(|fold| fold.accuracy), "folds": list(|fold| fold.accuracy),
        "rows": labels.folds.iter().map(|fold| fold.rows).collect::<Vec<_>>(),
        "log_loss": classifier.calibrator.as_ref().map(|_| json!({"mean": mean(|fold| fold.log_loss), "folds": list(|fold| fold.log_loss)})),
        "pooled": labels.pooled, "confusion": labels.confusion, "classes": by_class.collect::<Vec<_>>(), "plan": validation.plan,
    })
}

/// For one target its figures stand flat; for several they are listed by target, and the flat ones are null.
fn validation_view(document: &Document, validation: &ValidationRecord) -> Value {
    if let (Some(classifier), Some(labels)) = (&document.classifier, &validation.labels) {
        return labels_view(classifier, validation, labels);
    }
    let entry = |place: usize| {
        let folds = validation.folds.get(place).map_or(&[][..], Vec::as_slice);
        let pooled = validation.pooled.get(place);
        let list = |figure: fn(&FoldRecord) -> Option<f64>| folds.iter().map(figure).collect::<Vec<_>>();
        let mean = |figure: fn(&FoldRecord) -> Option<f64>| {
            if folds.is_empty() {
                return pooled.and_then(figure);
            }
            let known: Vec<f64> = folds.iter().filter_map(figure).collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        let mut view = json!({
            "metric": "rmse", "mean": mean(|fold| fold.rmse), "folds": list(|fold| fold.rmse), "rows": folds.iter().map(|fold| fold.rows).collect::<Vec<_>>(),
            "mae": {"mean": mean(|fold| fold.mae), "folds": list(|fold| fold.mae)}, "r2": {"mean": mean(|fold| fold.r2), "folds": list(|fold| fold.r2)},
            "pooled": pooled, "plan": validation.plan,
        });
        if let Some(steps) = validation.steps.get(place) {
            view["steps"] = json!(steps);
        }
        view
    };
    match document.target.as_slice() {
        [_] => entry(0),
        targets => {
            let mut view = json!({"metric": "rmse", "mean": null, "folds": [], "plan": validation.plan});
            view["targets"] = targets
                .iter()
                .enumerate()
                .map(|(place, target)| {
                    let mut entry = entry(place);
                    entry["target"] = json!(target);
                    entry
                })
                .collect();
            view
        }
    }
}

/// The dataset that a version was fitted on, unless it is not there for them.
pub(super) fn dataset<'a>(holder: &Holder, document: &'a Document) -> Option<&'a str> {
    holder.sees_dataset(&document.dataset).then_some(&document.dataset)
}

fn view(holder: &Holder, model: &Model, version: &Version, state: &ModelState) -> Value {
    let document = &version.document;
    let prior = document.prior.as_ref().filter(|prior| holder.sees_model(&prior.model));
    let lines: Vec<Value> = coefficients(version, state)
        .iter()
        .map(|line| {
            json!({
                "target": line.target, "name": line.name, "estimate": line.estimate, "std_error": line.std_error, "t": line.t, "p": line.p,
                "lower": line.lower, "upper": line.upper, "vif": line.vif,
            })
        })
        .collect();
    json!({
        "model": version.model, "version": version.number, "aliases": model.aliases_of(version.number),
        "dataset": dataset(holder, document), "estimator": document.estimator, "solver": document.solver,
        "target": document.target, "classes": classes_view(document),
        "calibration": document.classifier.as_ref().and_then(|classifier| classifier.calibrator.as_ref()), "features": document.features, "weights": document.weights, "intercept": document.intercept,
        "online": document.online, "covariance": covariance_view(&document.covariance), "prior": prior, "moved": moved_view(document),
        "constraints": document.constraints, "selection": document.selection, "descent": document.descent,
        "coefficients": lines, "fit": fit_view(document, &fit_now(version, state)),
        "validation": document.validation.as_ref().map(|validation| validation_view(document, validation)),
        "warnings": document.warnings, "sequence": state.sequence(), "created_at": version.created_at, "fit_seconds": document.fit_seconds,
        "refit": document.refit, "unlearnt": document.unlearnt,
    })
}

/// A name as a path segment.
pub(super) fn path_segment(name: &str) -> String {
    let mut segment = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}
