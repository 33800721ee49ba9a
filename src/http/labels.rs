//! `POST /v1/models/{name}/labels`.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::Value;

use super::error::{ApiError, Code};
use super::extract::Path;
use super::updates::{learnt_response, wanted};
use super::wire::{Fields, refuse};
use super::{App, extract};
use crate::frame::Fault;
use crate::model::PredictionId;
use crate::service::{Holder, Label, Labels, Observed};

pub(super) async fn learn(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    holder: Holder,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let wanted = wanted(query.as_deref())?;
    let (body, idempotency) = extract::keyed_body(&holder, &headers, body, app.body_limit, &["labels", &name]).await?;
    let labels = labels(Fields::parse(&body)?)?;
    let asked = Labels { reference: name, labels, if_match: extract::if_match(&headers), idempotency };
    let (version, learnt) = app.service.label(asked).await?;
    Ok(learnt_response(&version, &learnt.value, learnt.replayed, wanted))
}

fn labels(mut fields: Fields) -> Result<Vec<Label>, ApiError> {
    let mut labels = Vec::new();
    match fields.take("labels") {
        Some(Value::Array(items)) if !items.is_empty() => {
            for (place, item) in items.into_iter().enumerate() {
                let Value::Object(item) = item else {
                    fields
                        .faults
                        .push(Fault { pointer: format!("/labels/{place}"), detail: format!("label {} is not an object", place + 1) });
                    continue;
                };
                let mut item = Fields::nested(format!("/labels/{place}"), item);
                labels.push(label(&mut item));
                fields.faults.extend(item.into_faults());
            }
        }
        _ => fields.fault("labels", "`labels` is a list of at least one label"),
    }
    refuse(Code::InvalidRequest, fields.into_faults())?;
    Ok(labels)
}

/// One label; what is wrong with it is noted, and the request refused in the end.
fn label(item: &mut Fields) -> Label {
    let prediction = PredictionId::parse(&item.required_string("prediction_id"));
    let value = match item.take("value") {
        Some(Value::Number(number)) => match number.as_f64().filter(|value| value.is_finite()) {
            Some(value) => Observed::One(value),
            None => no_value(item),
        },
        Some(Value::String(class)) => Observed::Class(class),
        Some(Value::Bool(value)) => Observed::Boolean(value),
        Some(Value::Object(by_target)) => {
            let mut found = BTreeMap::new();
            for (target, value) in by_target {
                match value.as_f64().filter(|value| value.is_finite()) {
                    Some(value) => {
                        found.insert(target, value);
                    }
                    None => item.fault("value", "`value` by target is an object of finite numbers"),
                }
            }
            Observed::ByTarget(found)
        }
        _ => no_value(item),
    };
    let weight = item.number("weight").unwrap_or(1.0);
    if weight < 0.0 {
        item.fault("weight", "`weight` is not negative");
    }
    Label { prediction, value, weight }
}

/// Notes that there is no value; the number stands in until the request is refused.
fn no_value(item: &mut Fields) -> Observed {
    item.fault("value", "`value` is a finite number, for several targets an object of such by target, or for a classifier the class");
    Observed::One(0.0)
}
