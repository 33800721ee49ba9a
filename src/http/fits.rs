//! `POST /v1/models/{name}/fits`.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

use super::error::{ApiError, Code};
use super::extract::Path;
use super::wire::{Fields, refuse};
use super::{App, extract, jobs, models};
use crate::features::Unseen;
use crate::frame::Fault;
use crate::lsq::Solver;
use crate::model::{Estimator, FeatureSpecification, Online, Specification};
use crate::service::JobState;

pub(super) async fn create(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let body = extract::whole(body, app.body_limit).await?;
    let mut idempotency = extract::idempotency(&headers, &["fits", &name])?;
    if let Some((_, fingerprint)) = &mut idempotency {
        fingerprint.add(&body);
    }
    let specification = read(&body)?;
    let fitted = app.service.fit(&name, specification, extract::wait(&headers), extract::if_match(&headers), idempotency).await?;
    let job = fitted.value;
    let mut response = match (job.state, job.problem.clone()) {
        (JobState::Queued | JobState::Running, _) => jobs::accepted(&job),
        (_, Some(problem)) => ApiError::from(problem).into_response(),
        (_, None) => {
            let number = job.version.unwrap_or_default().to_string();
            let mut response = models::document(&app, &job.model, Some(&number), &headers).await?;
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

/// What the contract names and this version does not do yet: refused by name rather than ignored.
fn unsupported(fields: &mut Fields, field: &str, faults: &mut Vec<Fault>) {
    if fields.take(field).is_some() {
        faults.push(Fault { pointer: format!("/{field}"), detail: format!("`{field}` is not done by this version; leave it out") });
    }
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
                .filter_map(|(index, entry)| feature(format!("/features/{index}"), entry, &mut fields.faults, &mut later))
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
    let online = fields.object("online").map_or_else(Online::default, |online| online_of(online, &mut fields.faults, &mut later));
    match fields.take("covariance") {
        None => {}
        Some(Value::String(kind)) if kind == "classical" => {}
        Some(_) => later.push(Fault { pointer: "/covariance".to_owned(), detail: "this version does `classical` only".to_owned() }),
    }
    for field in ["prior", "validation"] {
        unsupported(&mut fields, field, &mut later);
    }
    refuse(Code::InvalidRequest, fields.into_faults())?;
    refuse(Code::NotSupported, later)?;
    Ok(Specification { dataset, target, features, weights, intercept, estimator, solver, online, unseen, serve })
}

fn unseen(fields: &mut Fields) -> Option<Unseen> {
    match fields.string("unseen")?.as_str() {
        "error" => Some(Unseen::Error),
        "baseline" => Some(Unseen::Baseline),
        _ => {
            fields.fault("unseen", "`unseen` is error or baseline");
            None
        }
    }
}

fn feature(pointer: String, entry: Value, faults: &mut Vec<Fault>, later: &mut Vec<Fault>) -> Option<FeatureSpecification> {
    match entry {
        Value::String(column) => Some(FeatureSpecification { column, onehot: None, drop_first: None, unseen: None }),
        Value::Object(map) => {
            let mut fields = Fields::nested(pointer.clone(), map);
            let onehot = match fields.string("as").as_deref() {
                None => Some(None),
                Some("onehot") => Some(Some(true)),
                Some(_) => {
                    later.push(Fault { pointer: format!("{pointer}/as"), detail: "this version does `onehot` only".to_owned() });
                    None
                }
            };
            let Some(onehot) = onehot else { return None };
            let column = fields.required_string("column");
            let drop_first = fields.boolean("drop_first");
            let unseen = unseen(&mut fields);
            faults.extend(fields.into_faults());
            Some(FeatureSpecification { column, onehot, drop_first, unseen })
        }
        _ => {
            faults.push(Fault { pointer, detail: "a feature is a column's name or an object".to_owned() });
            None
        }
    }
}

fn estimator_of(mut fields: Fields, faults: &mut Vec<Fault>, later: &mut Vec<Fault>) -> Estimator {
    let kind = fields.required_string("kind");
    let mut estimator = Estimator::Ols;
    match kind.as_str() {
        "ols" | "" => {}
        "ridge" => match fields.take("penalty") {
            Some(Value::Number(penalty)) if penalty.as_f64().is_some_and(|penalty| penalty >= 0.0 && penalty.is_finite()) => {
                estimator = Estimator::Ridge { penalty: penalty.as_f64().unwrap_or_default() };
            }
            Some(Value::String(auto)) if auto == "auto" => {
                later.push(Fault { pointer: "/estimator/penalty".to_owned(), detail: "this version needs a number; it does not choose one".to_owned() });
            }
            Some(_) => fields.fault("penalty", "`penalty` is a number of at least 0"),
            None => fields.fault("penalty", "`penalty` is required"),
        },
        "lasso" | "elastic_net" | "huber" | "bisquare" | "nnls" | "gradient" | "als" | "stack" => {
            later.push(Fault { pointer: "/estimator/kind".to_owned(), detail: "this version does `ols` and `ridge`".to_owned() });
            return estimator;
        }
        _ => fields.fault("kind", "there is no such estimator; this version does `ols` and `ridge`"),
    }
    faults.extend(fields.into_faults());
    estimator
}

fn online_of(mut fields: Fields, faults: &mut Vec<Fault>, later: &mut Vec<Fault>) -> Online {
    let mut online = Online::default();
    if let Some(factor) = fields.number("forgetting_factor") {
        if factor > 0.0 && factor <= 1.0 {
            online.forgetting_factor = factor;
        } else {
            fields.fault("forgetting_factor", "`forgetting_factor` is above 0 and at most 1");
        }
    }
    for field in ["window", "adaptive", "drift"] {
        if fields.take(field).is_some() {
            later.push(Fault { pointer: format!("/online/{field}"), detail: format!("`{field}` is not done by this version; leave it out") });
        }
    }
    faults.extend(fields.into_faults());
    online
}
