//! `/v1/models/{name}/traffic`: how a model's requests are shared out between its versions, and how those compare.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Map, Value, json};

use super::error::{ApiError, Code};
use super::extract::Path;
use super::wire::{Fields, refuse};
use super::{App, extract, models};
use crate::frame::Fault;
use crate::model::score::{self, LEVEL};
use crate::model::{Better, Difference, Paired, Plan, Scores, Tally};
use crate::service::{Holder, Member, Role, ServiceError, SetTraffic, SplitSet, Traffic};

pub(super) async fn show(State(app): State<App>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let (model, traffic, scores) = app.service.traffic(&name).await?;
    let mut page = settings(&model.name, traffic.plan(), traffic.since());
    let targets = &traffic.champion().version.document.target;
    let alpha = score::alpha(traffic.members().len(), targets.len());
    page.insert("level".to_owned(), json!(LEVEL));
    page.insert("arms".to_owned(), traffic.members().iter().map(|member| arm(member, &traffic, &scores, targets, alpha)).collect());
    let mut response = Json(page).into_response();
    response.headers_mut().insert(header::ETAG, extract::etag(&traffic.tag()));
    Ok(response)
}

pub(super) async fn set(
    State(app): State<App>,
    Path(model): Path<String>,
    holder: Holder,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (body, idempotency) = extract::keyed_body(&holder, &headers, body, app.body_limit, &["traffic", &model]).await?;
    let (plan, split) = plan(Fields::parse(&body)?)?;
    let set = app.service.set_traffic(SetTraffic { model, plan, split, if_match: extract::if_match(&headers), idempotency }).await?;
    let SplitSet { model, created, plan, tag, since } = set.value;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = (status, Json(settings(&model, &plan, &since))).into_response();
    response.headers_mut().insert(header::ETAG, extract::etag(&tag));
    if set.replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

pub(super) async fn end(State(app): State<App>, Path(model): Path<String>, headers: HeaderMap) -> Result<StatusCode, ApiError> {
    app.service.end_traffic(&model, extract::if_match(&headers)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A plan, and where in the request its arms stand. With an object under `split` it is the full form; else all members are arms.
fn plan(mut fields: Fields) -> Result<(Plan, &'static str), ApiError> {
    let mut faults = Vec::new();
    let (arms, place, shadows, champion, header) = match fields.object_if_one("split") {
        None => (shares(fields, "", &mut faults), "", Vec::new(), None, None),
        Some(split) => {
            let arms = shares(split, "/split", &mut faults);
            let shadows = names(&mut fields);
            let champion = fields.string("champion");
            let mut header = None;
            if let Some(mut sticky) = fields.object("sticky") {
                header = Some(sticky.required_string("header"));
                faults.extend(sticky.into_faults());
            }
            faults.extend(fields.into_faults());
            (arms, "/split", shadows, champion, header)
        }
    };
    match Plan::new(place, arms, shadows, champion, header) {
        Ok(plan) if faults.is_empty() => Ok((plan, place)),
        found => {
            // What could not be read at all is told once.
            let others = found.err().unwrap_or_default().into_iter();
            let known: Vec<String> = faults.iter().map(|fault| fault.pointer.clone()).collect();
            faults.extend(others.filter(|fault| !known.contains(&fault.pointer)));
            refuse(Code::InvalidRequest, faults)?;
            Err(ServiceError::Internal("a split without a fault was refused").into())
        }
    }
}

/// Names with their shares.
fn shares(fields: Fields, place: &str, faults: &mut Vec<Fault>) -> Vec<(String, f64)> {
    let share = |(name, value): (String, Value)| match value.as_f64() {
        Some(share) => (name, share),
        None => {
            let pointer = format!("{place}/{}", crate::frame::escaped(&name));
            faults.push(Fault { pointer, detail: "a share is a number above 0".to_owned() });
            (name, 1.0)
        }
    };
    fields.into_members().into_iter().map(share).collect()
}

/// `shadow`: a list of names.
fn names(fields: &mut Fields) -> Vec<String> {
    let listed = match fields.take("shadow") {
        None => return Vec::new(),
        Some(Value::Array(items)) => items,
        Some(_) => {
            fields.fault("shadow", "`shadow` is a list of aliases or versions");
            return Vec::new();
        }
    };
    let mut found = Vec::with_capacity(listed.len());
    for (place, item) in listed.into_iter().enumerate() {
        match item {
            Value::String(name) => found.push(name),
            _ => {
                let detail = "a shadow is the name of an alias, or a version's number as text".to_owned();
                fields.faults.push(Fault { pointer: format!("/shadow/{place}"), detail });
                // Stands in until the request is refused, so that those after it keep their places.
                found.push(format!("(shadow {place})"));
            }
        }
    }
    found
}

/// What was asked for, in the full form.
fn settings(model: &str, plan: &Plan, since: &str) -> Map<String, Value> {
    let split: Map<String, Value> = plan.arms.iter().map(|arm| (arm.name.clone(), models::number(arm.share))).collect();
    let sticky = plan.header.as_ref().map(|header| json!({"header": header}));
    Map::from_iter(
        [
            ("model", json!(model)),
            ("split", Value::Object(split)),
            ("champion", json!(plan.champion)),
            ("shadow", json!(plan.shadows)),
            ("sticky", json!(sticky)),
            ("since", json!(since)),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}

fn arm(member: &Member, traffic: &Traffic, scores: &Scores, targets: &[String], alpha: f64) -> Value {
    let counted = member.count.now();
    let (role, shadow) = match member.role {
        Role::Champion => ("champion", false),
        Role::Challenger => ("challenger", false),
        Role::Shadow => ("shadow", true),
    };
    let none = vec![Tally::default(); targets.len()];
    let mut view = by_target(targets, scores.of(member.identity()).unwrap_or(&none), figures);
    let disagreement = (shadow && !counted.disagreement.is_empty()).then(|| {
        by_target(targets, &counted.disagreement, |tally| {
            Map::from_iter([("rms".to_owned(), json!(tally.rmse())), ("mean_absolute".to_owned(), json!(tally.mae()))])
        })
    });
    let champion = traffic.champion().identity();
    let against = (member.role != Role::Champion).then(|| {
        let none = vec![Paired::default(); targets.len()];
        by_target(targets, scores.between(champion, member.identity()).unwrap_or(&none), |paired| {
            comparison(paired, traffic, member, alpha)
        })
    });
    for (name, value) in [
        ("name", json!(*member.name)),
        ("role", json!(role)),
        ("share", json!(member.share)),
        ("version", json!(member.version.number)),
        ("held_at", json!(member.sequence())),
        ("requests", json!(counted.requests)),
        ("rows", json!(counted.rows)),
        ("unseen", json!(counted.unseen)),
        ("dropped", json!(counted.dropped)),
        ("disagreement", json!(disagreement)),
        ("against_champion", json!(against)),
    ] {
        view.insert(name.to_owned(), value);
    }
    Value::Object(view)
}

/// For one target its figures stand flat; for several they are listed by target.
fn by_target<T>(targets: &[String], items: &[T], view: impl Fn(&T) -> Map<String, Value>) -> Map<String, Value> {
    if let ([_], [item]) = (targets, items) {
        return view(item);
    }
    let listed = targets.iter().zip(items).map(|(target, item)| {
        let mut view = view(item);
        view.insert("target".to_owned(), json!(target));
        Value::Object(view)
    });
    Map::from_iter([("targets".to_owned(), listed.collect())])
}

fn figures(tally: &Tally) -> Map<String, Value> {
    Map::from_iter(
        [("labelled", json!(tally.rows)), ("rmse", json!(tally.rmse())), ("mae", json!(tally.mae()))]
            .map(|(name, value)| (name.to_owned(), value)),
    )
}

/// A challenger beside the champion, on the rows that both predicted.
fn comparison(paired: &Paired, traffic: &Traffic, member: &Member, alpha: f64) -> Map<String, Value> {
    let better = paired.better(alpha);
    let winner = better.map(|better| match better {
        Better::Champion => &traffic.champion().name,
        Better::Challenger => &member.name,
    });
    let difference = |difference: Option<Difference>| {
        difference.map(|found| {
            let limits = found.limits.unzip();
            json!({"difference": found.value, "lower": limits.0, "upper": limits.1})
        })
    };
    Map::from_iter(
        [
            ("labelled", json!(paired.rows)),
            ("rmse", json!(difference(paired.rmse(alpha)))),
            ("mse", json!(difference(paired.mse(alpha)))),
            ("decided", json!(better.is_some())),
            ("better", json!(winner.map(|name| &**name))),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}
