//! `POST /v1/models/{name}/fits`.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

use super::error::{ApiError, Code};
use super::extract::Path;
use super::wire::{Fields, refuse};
use super::{App, extract, features, jobs, models};
use crate::features::Unseen;
use crate::frame::Fault;
use crate::lsq::Solver;
use crate::model::{
    Auto, Calibration, Choice, Constraint, Covariance, Detector, DriftAction, DriftWatch, Estimator, InformationKind, Online, Penalty,
    Prior, Retention, Specification, Strength, Validation, usual_rounds,
};
use crate::service::{Holder, JobState, ServiceError};

pub(super) async fn create(
    State(app): State<App>,
    Path(name): Path<String>,
    holder: Holder,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (body, idempotency) = extract::keyed_body(&holder, &headers, body, app.body_limit, &["fits", &name]).await?;
    let specification = read(&body)?;
    if !holder.sees_dataset(&specification.dataset) {
        return Err(ServiceError::FitDatasetNotFound.into());
    }
    if specification.prior.as_ref().is_some_and(|prior| !holder.sees_model(&prior.model)) {
        return Err(ServiceError::prior_not_found().into());
    }
    let wait = extract::wait(&headers);
    let fitted = app.service.fit(&name, specification, wait, extract::if_match(&headers), idempotency).await?;
    let job = fitted.value;
    let mut response = match (job.state, job.problem.clone()) {
        // Who does not wait is told of the job, even if it is over by now.
        _ if wait.is_zero() => jobs::accepted(&job),
        (JobState::Queued | JobState::Running, _) => jobs::accepted(&job),
        (_, Some(problem)) => ApiError::from(problem).into_response(),
        (_, None) => {
            let number = job.version.unwrap_or_default().to_string();
            let mut response = models::document(&app, &holder, &job.model, Some(&number), &headers).await?;
            *response.status_mut() = StatusCode::CREATED;
            let location = format!("/v1/models/{}/versions/{number}", models::path_segment(&job.model));
            if let Ok(location) = HeaderValue::from_str(&location) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            response
        }
    };
    if fitted.replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response.into_response())
}

fn read(body: &[u8]) -> Result<Specification, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut later = Vec::new();
    let dataset = fields.required_string("dataset");
    let target = match fields.take("target") {
        Some(Value::String(target)) => vec![target],
        Some(Value::Array(targets)) if !targets.is_empty() && targets.iter().all(Value::is_string) => {
            targets.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        Some(_) => {
            fields.fault("target", "`target` is a column or a list of columns");
            Vec::new()
        }
        None => {
            fields.fault("target", "`target` is required");
            Vec::new()
        }
    };
    let features = match fields.take("features") {
        None => None,
        Some(Value::Array(entries)) => Some(
            entries
                .into_iter()
                .enumerate()
                .filter_map(|(index, entry)| features::feature(format!("/features/{index}"), entry, &mut fields.faults, &mut later))
                .collect(),
        ),
        Some(_) => {
            fields.fault("features", "`features` is a list");
            None
        }
    };
    let weights = fields.string("weights");
    let intercept = fields.boolean("intercept").unwrap_or(true);
    let serve = fields.boolean("serve").unwrap_or(true);
    let estimator = fields.object("estimator").map_or(Estimator::Ols, |estimator| estimator_of(estimator, &mut fields.faults, &mut later));
    let solver = fields.string("solver").map_or(Solver::Auto, |text| {
        Solver::parse(&text).unwrap_or_else(|| {
            fields.fault("solver", "`solver` is auto, cholesky, qr, svd or exact");
            Solver::Auto
        })
    });
    let unseen = unseen(&mut fields).unwrap_or_default();
    let watch_inputs = fields.boolean("watch_inputs").unwrap_or(true);
    let online = fields.object("online").map_or_else(Online::default, |online| online_of(online, &mut fields.faults));
    let covariance = match fields.take("covariance") {
        None => Covariance::Classical,
        Some(Value::String(kind)) => covariance_of(&kind).unwrap_or_else(|| {
            fields.fault("covariance", "`covariance` is classical, hc0, hc1, hc2, hc3, or an object of kind hac or cluster");
            Covariance::Classical
        }),
        Some(Value::Object(map)) => sandwich_of(Fields::nested("/covariance".to_owned(), map), &mut fields.faults),
        Some(_) => {
            fields.fault("covariance", "`covariance` is a word or an object");
            Covariance::Classical
        }
    };
    let prior = fields.object("prior").map(|prior| prior_of(prior, &mut fields.faults));
    let validation = fields.object("validation").and_then(|validation| validation_of(validation, &mut fields.faults));
    let calibration = match fields.string("calibration").as_deref() {
        None => None,
        Some("temperature") => Some(Calibration::Temperature),
        Some("isotonic") => Some(Calibration::Isotonic),
        Some(_) => {
            fields.fault("calibration", "`calibration` is temperature or isotonic");
            None
        }
    };
    let constraints = constraints_of(&mut fields);
    let only_ols = estimator == Estimator::Ols;
    if prior.is_some() && !estimator.takes_prior() {
        fields.fault("prior", "`prior` goes with the estimators `ols` and `gradient`");
    }
    if let Estimator::Pca { .. } = estimator {
        if !intercept {
            fields.fault("intercept", "`pca` needs an intercept");
        }
        if covariance != Covariance::Classical {
            fields.fault("covariance", "with `pca` the covariance is `classical`");
        }
    }
    if !constraints.is_empty() && (!only_ols || prior.is_some()) {
        fields.fault("constraints", "`constraints` go with the estimator `ols`, without a `prior`");
    }
    if !constraints.is_empty() && covariance != Covariance::Classical {
        fields.fault("covariance", "with `constraints` the covariance is `classical`");
    }
    if estimator.is_robust() {
        if covariance != Covariance::Classical {
            fields.fault("covariance", "a robust estimator has a covariance of its own");
        }
        if target.len() > 1 {
            fields.fault("target", "a robust estimator takes one target");
        }
    }
    if target.len() > 1
        && matches!(
            estimator,
            Estimator::Lasso { penalty: Penalty::Chosen(_), .. } | Estimator::ElasticNet { penalty: Penalty::Chosen(_), .. }
        )
    {
        fields.fault("target", "a penalty is chosen for one target");
    }
    if online.window.is_some() {
        if !matches!(estimator, Estimator::Ols | Estimator::Ridge { .. }) || prior.is_some() || !constraints.is_empty() {
            fields.fault("online", "a `window` goes with the estimators `ols` and `ridge`, without `prior` and `constraints`");
        }
        if !matches!(covariance, Covariance::Classical) {
            fields.fault("covariance", "with a `window` the covariance is `classical`");
        }
        if matches!(validation, Some(Validation::Time { .. })) {
            fields.fault("validation", "with a `window` rows are not validated by time");
        }
    }
    refuse(Code::InvalidRequest, fields.into_faults())?;
    refuse(Code::NotSupported, later)?;
    Ok(Specification {
        dataset,
        target,
        features,
        weights,
        intercept,
        estimator,
        solver,
        online,
        unseen,
        serve,
        prior,
        validation,
        calibration,
        covariance,
        constraints,
        watch_inputs,
    })
}

fn covariance_of(kind: &str) -> Option<Covariance> {
    Some(match kind {
        "classical" => Covariance::Classical,
        "hc0" => Covariance::Hc0,
        "hc1" => Covariance::Hc1,
        "hc2" => Covariance::Hc2,
        "hc3" => Covariance::Hc3,
        _ => return None,
    })
}

/// `covariance` as an object.
fn sandwich_of(mut fields: Fields, faults: &mut Vec<Fault>) -> Covariance {
    let kind = fields.required_string("kind");
    let covariance = match kind.as_str() {
        "hac" => Covariance::Hac { lags: fields.whole("lags", 0, 1_000_000).unwrap_or_else(|| fields.lacks("lags")) },
        "cluster" => Covariance::Cluster { column: fields.required_string("column") },
        "" => Covariance::Classical,
        kind => covariance_of(kind).unwrap_or_else(|| {
            fields.fault("kind", "`kind` is classical, hc0, hc1, hc2, hc3, hac or cluster");
            Covariance::Classical
        }),
    };
    faults.extend(fields.into_faults());
    covariance
}

fn prior_of(mut fields: Fields, faults: &mut Vec<Fault>) -> Prior {
    let model = fields.required_string("model");
    let version = fields.whole("version", 1, u64::MAX);
    let strength = match fields.take("strength") {
        Some(Value::Number(number)) if number.as_f64().is_some_and(|number| number >= 0.0 && number.is_finite()) => {
            Strength::Number(number.as_f64().unwrap_or_default())
        }
        Some(Value::Object(map)) => {
            let mut inner = Fields::nested("/prior/strength".to_owned(), map);
            if inner.required_string("kind") != "information" {
                inner.fault("kind", "`kind` is information");
            }
            fields.faults.extend(inner.into_faults());
            Strength::Information { kind: InformationKind::Information }
        }
        Some(_) => {
            fields.fault("strength", "`strength` is a number of at least 0, or {\"kind\": \"information\"}");
            Strength::Number(0.0)
        }
        None => Strength::Number(fields.lacks("strength")),
    };
    faults.extend(fields.into_faults());
    Prior { model, version, strength }
}

fn validation_of(mut fields: Fields, faults: &mut Vec<Fault>) -> Option<Validation> {
    let folds = |fields: &mut Fields, least| fields.whole("folds", least, 1000).map_or(5, |folds| u32::try_from(folds).unwrap_or(5));
    let validation = match fields.required_string("kind").as_str() {
        "kfold" => Some(Validation::KFold { folds: folds(&mut fields, 2), seed: fields.whole("seed", 0, u64::MAX).unwrap_or(1) }),
        "loo" => Some(Validation::Loo),
        "holdout" => {
            let fraction = fields.number("fraction").unwrap_or(0.2);
            if !(fraction > 0.0 && fraction < 1.0) {
                fields.fault("fraction", "`fraction` is between 0 and 1");
            }
            Some(Validation::Holdout { fraction, seed: fields.whole("seed", 0, u64::MAX).unwrap_or(1) })
        }
        "time" => Some(Validation::Time {
            column: fields.string("column"),
            folds: folds(&mut fields, 1),
            steps: fields.whole("steps", 1, 1000).and_then(|steps| u32::try_from(steps).ok()),
        }),
        "" => None,
        _ => {
            fields.fault("kind", "`kind` is kfold, loo, holdout or time");
            None
        }
    };
    faults.extend(fields.into_faults());
    validation
}

/// `constraints`: a list of `{"coefficients": {name: number, …}, "value": number}`.
fn constraints_of(fields: &mut Fields) -> Vec<Constraint> {
    let entries = match fields.take("constraints") {
        None => return Vec::new(),
        Some(Value::Array(entries)) => entries,
        Some(_) => {
            fields.fault("constraints", "`constraints` is a list");
            return Vec::new();
        }
    };
    let mut constraints = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let pointer = format!("/constraints/{index}");
        let Value::Object(map) = entry else {
            fields.faults.push(Fault { pointer, detail: "a constraint is an object".to_owned() });
            continue;
        };
        let mut inner = Fields::nested(pointer, map);
        let value = inner.number("value").unwrap_or(0.0);
        let coefficients = inner.numbers("coefficients");
        if coefficients.values().all(|coefficient| *coefficient == 0.0) {
            inner.fault("coefficients", "`coefficients` names at least one coefficient, with a number that is not 0");
        }
        fields.faults.extend(inner.into_faults());
        constraints.push(Constraint { coefficients, value });
    }
    constraints
}

pub(super) fn unseen(fields: &mut Fields) -> Option<Unseen> {
    match fields.string("unseen")?.as_str() {
        "error" => Some(Unseen::Error),
        "baseline" => Some(Unseen::Baseline),
        _ => {
            fields.fault("unseen", "`unseen` is error or baseline");
            None
        }
    }
}

fn estimator_of(mut fields: Fields, faults: &mut Vec<Fault>, later: &mut Vec<Fault>) -> Estimator {
    let kind = fields.required_string("kind");
    let estimator = match kind.as_str() {
        "ols" | "" => Estimator::Ols,
        "ridge" => {
            let penalty = penalty_of(&mut fields, "penalty");
            let penalties = match fields.take("penalties") {
                None => Vec::new(),
                Some(Value::Array(list)) => list.iter().map(|entry| entry.as_f64().unwrap_or(f64::NAN)).collect(),
                Some(_) => vec![f64::NAN],
            };
            if penalties.iter().any(|penalty| !(*penalty > 0.0 && penalty.is_finite())) || penalties.len() > 10_000 {
                fields.fault("penalties", "`penalties` is a list of numbers above 0");
            }
            Estimator::Ridge { penalty, penalties }
        }
        "lasso" => Estimator::Lasso {
            penalty: penalty_of(&mut fields, "penalty"),
            choice: choice_of(&mut fields),
            positive: fields.boolean("positive").unwrap_or(false),
        },
        "elastic_net" => {
            let l1_ratio = fields.number("l1_ratio").unwrap_or(0.5);
            if !(0.0..=1.0).contains(&l1_ratio) {
                fields.fault("l1_ratio", "`l1_ratio` is from 0 to 1");
            }
            Estimator::ElasticNet {
                penalty: penalty_of(&mut fields, "penalty"),
                l1_ratio,
                choice: choice_of(&mut fields),
                positive: fields.boolean("positive").unwrap_or(false),
            }
        }
        "huber" => Estimator::Huber { threshold: fields.positive("threshold", 1.345), rounds: rounds(&mut fields) },
        "bisquare" => Estimator::Bisquare { threshold: fields.positive("threshold", 4.685), rounds: rounds(&mut fields) },
        "nnls" => {
            let lower = fields.numbers("lower");
            let upper = fields.numbers("upper");
            for (name, upper) in &upper {
                if lower.get(name).copied().unwrap_or(0.0) > *upper {
                    fields.fault("upper", "an upper bound is below its lower bound; a lower bound that is not given is 0");
                }
            }
            Estimator::Nnls { lower, upper }
        }
        "gradient" => {
            let learning_rate =
                if fields.has("learning_rate") { penalty_of(&mut fields, "learning_rate") } else { Penalty::Chosen(Auto::Auto) };
            if learning_rate == Penalty::Fixed(0.0) {
                fields.fault("learning_rate", "`learning_rate` is above 0, or \"auto\"");
            }
            let momentum = fields.number("momentum").unwrap_or(0.0);
            if !(0.0..1.0).contains(&momentum) {
                fields.fault("momentum", "`momentum` is at least 0 and less than 1");
            }
            Estimator::Gradient {
                learning_rate,
                momentum,
                batch_size: fields.whole("batch_size", 1, u64::MAX),
                epochs: fields.whole("epochs", 1, 1_000_000).unwrap_or(1000),
                tolerance: fields.positive("tolerance", 1e-8),
                seed: fields.whole("seed", 0, u64::MAX).unwrap_or(1),
            }
        }
        "pca" => Estimator::Pca {
            components: fields.whole("components", 1, 8192).unwrap_or_else(|| fields.lacks("components")),
            standardise: fields.boolean("standardise").unwrap_or(false),
            sketch: fields.boolean("sketch").unwrap_or(false),
        },
        "als" | "stack" => {
            later.push(Fault { pointer: "/estimator/kind".to_owned(), detail: "this version does not do this estimator".to_owned() });
            return Estimator::Ols;
        }
        _ => {
            fields.fault("kind", "there is no such estimator");
            Estimator::Ols
        }
    };
    faults.extend(fields.into_faults());
    estimator
}

/// Rounds of a robust estimator at the most.
fn rounds(fields: &mut Fields) -> u64 {
    fields.whole("rounds", 1, 10_000).unwrap_or_else(usual_rounds)
}

/// A number of at least 0, or `auto`.
fn penalty_of(fields: &mut Fields, field: &str) -> Penalty {
    match fields.take(field) {
        Some(Value::Number(penalty)) if penalty.as_f64().is_some_and(|penalty| penalty >= 0.0 && penalty.is_finite()) => {
            Penalty::Fixed(penalty.as_f64().unwrap_or_default())
        }
        Some(Value::String(auto)) if auto == "auto" => Penalty::Chosen(Auto::Auto),
        Some(_) => {
            fields.fault(field, format!("`{field}` is a number of at least 0, or \"auto\""));
            Penalty::Fixed(0.0)
        }
        None => Penalty::Fixed(fields.lacks(field)),
    }
}

fn choice_of(fields: &mut Fields) -> Choice {
    let usual = Choice::default();
    Choice {
        folds: fields.whole("folds", 2, 1000).map_or(usual.folds, |folds| u32::try_from(folds).unwrap_or(usual.folds)),
        seed: fields.whole("seed", 0, u64::MAX).unwrap_or(usual.seed),
        one_standard_error: fields.boolean("one_standard_error").unwrap_or(usual.one_standard_error),
    }
}

fn online_of(mut fields: Fields, faults: &mut Vec<Fault>) -> Online {
    /// Most rows of a window: they are kept in memory.
    const WIDEST: u64 = 10_000_000;
    let mut online = Online::default();
    let factor = fields.number("forgetting_factor");
    if let Some(factor) = factor {
        if factor > 0.0 && factor <= 1.0 {
            online.forgetting_factor = factor;
        } else {
            fields.fault("forgetting_factor", "`forgetting_factor` is above 0 and at most 1");
        }
    }
    online.window = fields.whole("window", 2, WIDEST);
    online.adaptive = fields.boolean("adaptive").unwrap_or(false);
    let ways = [factor.is_some_and(|factor| factor < 1.0), online.window.is_some(), online.adaptive];
    if ways.into_iter().filter(|way| *way).count() > 1 {
        fields.fault("", "old rows lose their say in one way: by `forgetting_factor`, `window` or `adaptive`");
    }
    if let Some(drift) = fields.object("drift") {
        online.drift = drift_of(drift, &mut fields.faults);
    }
    if let Some(mut retention) = fields.object("retention") {
        let kept = Retention { rows: retention.whole("rows", 1, u64::MAX >> 1), days: retention.whole("days", 1, 36_500) };
        if kept.rows.is_none() && kept.days.is_none() && retention.faults.is_empty() {
            retention.fault("", "`retention` has `rows` or `days`");
        }
        online.retention = Some(kept);
        fields.faults.extend(retention.into_faults());
    }
    faults.extend(fields.into_faults());
    online
}

fn drift_of(mut fields: Fields, faults: &mut Vec<Fault>) -> Option<DriftWatch> {
    let action = match fields.string("action").as_deref() {
        None | Some("warn") => DriftAction::Warn,
        Some("reset") => DriftAction::Reset,
        Some("refit") => DriftAction::Refit,
        Some(_) => {
            fields.fault("action", "`action` is warn, reset or refit");
            DriftAction::Warn
        }
    };
    let detector = fields.string("detector");
    let detector = match detector.as_deref() {
        None | Some("adwin") => {
            let delta = fields.number("delta").unwrap_or(0.002);
            if !(delta > 0.0 && delta < 1.0) {
                fields.fault("delta", "`delta` of adwin is between 0 and 1");
            }
            Some(Detector::Adwin { delta })
        }
        Some("page_hinkley") => {
            let (delta, threshold) = (fields.number("delta").unwrap_or(0.1), fields.number("threshold").unwrap_or(50.0));
            if !(delta >= 0.0 && delta.is_finite()) {
                fields.fault("delta", "`delta` of page_hinkley is at least 0");
            }
            if !(threshold > 0.0 && threshold.is_finite()) {
                fields.fault("threshold", "`threshold` is above 0");
            }
            Some(Detector::PageHinkley { delta, threshold })
        }
        Some(_) => {
            fields.fault("detector", "`detector` is adwin or page_hinkley");
            None
        }
    };
    faults.extend(fields.into_faults());
    detector.map(|detector| DriftWatch { detector, action })
}
