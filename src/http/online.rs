//! How a model fares as it learns: `…/online`, `…/events`, and rows that it is to unlearn.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::error::{ApiError, Code};
use super::extract::{self, Path};
use super::wire::refuse;
use super::{App, models};
use crate::frame::Fault;
use crate::model::State as ModelState;
use crate::model::monitor::{Figures, LEVEL, MEMORY};
use crate::service::{Channel, Event, Holder, Row, ServiceError, Version};

/// How long a stream may be silent before a comment keeps it open.
const SILENCE: Duration = Duration::from_secs(15);
/// How often a silent stream looks whether the server is stopping.
const LOOK: Duration = Duration::from_millis(500);

pub(super) async fn show(State(app): State<App>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let (_, version, state) = app.service.version(&name).await?;
    let (first, erased) = app.service.log(&version).await?;
    let mut view = view(&version, &state);
    view["log"] = json!({"first_sequence": first, "erased": erased});
    let mut response = Json(view).into_response();
    response.headers_mut().insert(header::ETAG, extract::etag(&format!("{}-{}", version.number, state.sequence())));
    Ok(response)
}

/// What a-priori predictions were worth: of one target flat, of several a list.
fn figures(targets: &[String], figures: &[Figures]) -> Value {
    let one = |figures: &Figures| {
        let coverage = json!({"level": LEVEL, "share": figures.coverage});
        Map::from_iter(
            [
                ("rows", json!(figures.rows)),
                ("mae", json!(figures.mae)),
                ("rmse", json!(figures.rmse)),
                ("r2", json!(figures.r2)),
                ("coverage", coverage),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        )
    };
    match figures {
        [single] => Value::Object(one(single)),
        several => {
            let listed = targets.iter().zip(several).map(|(target, figures)| {
                let mut entry = one(figures);
                entry.insert("target".to_owned(), json!(target));
                Value::Object(entry)
            });
            json!({"rows": several.first().map(|figures| figures.rows), "targets": listed.collect::<Vec<_>>()})
        }
    }
}

fn view(version: &Version, state: &ModelState) -> Value {
    let (document, monitor) = (&version.document, state.monitor());
    let online = &document.online;
    let mut prequential = figures(document.responses(), &monitor.figures());
    prequential["window"] = figures(document.responses(), &monitor.latest());
    if let Some((all, latest)) = monitor.accuracy() {
        prequential["accuracy"] = json!(all);
        prequential["window"]["accuracy"] = json!(latest);
    }
    let drift = online.drift.map(|watch| {
        let marks = monitor.marks();
        let (error, rows) = monitor.present().unwrap_or((f64::NAN, 0));
        json!({
            "detector": watch.detector, "action": watch.action, "found": monitor.found(),
            "marks": marks.iter().map(|mark| json!({"sequence": mark.sequence, "recent_rows": mark.recent})).collect::<Vec<_>>(),
            "error": error.is_finite().then_some(error), "rows": rows,
        })
    });
    let names = version.design.column_names();
    let mut columns: Vec<String> = Vec::new();
    for target in document.responses() {
        let named = |column: &str| if document.responses().len() == 1 { column.to_owned() } else { format!("{target}: {column}") };
        columns.extend(document.intercept.then(|| named("(intercept)")));
        columns.extend(names.iter().map(|column| named(column)));
    }
    // A point lists intercepts first and then slopes target by target; the columns here stand target by target.
    let (targets, width, ones) = (document.responses().len(), names.len(), usize::from(document.intercept));
    let path: Map<String, Value> = columns
        .iter()
        .enumerate()
        .map(|(place, name)| {
            let (target, within) = (place / (width + ones).max(1), place % (width + ones).max(1));
            let source = if within < ones { target } else { ones * targets + target * width + within - ones };
            (name.clone(), monitor.path().iter().map(|point| json!(point.coefficients.get(source))).collect())
        })
        .collect();
    let information = state.information();
    json!({
        "model": version.model, "version": version.number, "sequence": state.sequence(),
        "online": online, "forgetting_factor": state.forgetting_factor(online),
        "memory": online.adaptive.then_some(MEMORY), "window_rows": state.window_rows(),
        "effective_rows": information.effective_observations(), "observations": information.observations(),
        "degrees_of_freedom": information.degrees_of_freedom(),
        "prequential": prequential, "drift": drift,
        "path": {"sequences": monitor.path().iter().map(|point| point.sequence).collect::<Vec<_>>(), "coefficients": path},
        "coefficients": models::coefficients(version, state).iter().map(|line| {
            json!({"target": line.target, "name": line.name, "estimate": line.estimate, "std_error": line.std_error})
        }).collect::<Vec<_>>(),
    })
}

pub(super) async fn erase(State(app): State<App>, Path((name, sequence)): Path<(String, String)>) -> Result<Response, ApiError> {
    let sequence = sequence.parse::<u64>().map_err(|_| ServiceError::UpdateNotFound)?;
    erased(&app, &name, Row::Sequence(sequence)).await
}

pub(super) async fn erase_event(State(app): State<App>, Path((name, event)): Path<(String, String)>) -> Result<Response, ApiError> {
    erased(&app, &name, Row::Event(event)).await
}

async fn erased(app: &App, name: &str, row: Row) -> Result<Response, ApiError> {
    let erased = app.service.erase(name, row).await?;
    let mut response = Json(json!({
        "model": erased.version.model, "version": erased.version.number, "erased": erased.erased, "sequence": erased.sequence,
    }))
    .into_response();
    response.headers_mut().insert(header::ETAG, extract::etag(&format!("{}-{}", erased.version.number, erased.sequence)));
    Ok(response)
}

fn block(holder: &Holder, event: &Event) -> Bytes {
    Bytes::from(format!("id: {}\nevent: {}\ndata: {}\n\n", event.id(), event.kind, told(holder, event)))
}

/// What happened, without the name of a dataset that is not there for them.
fn told<'a>(holder: &Holder, event: &'a Event) -> Cow<'a, str> {
    if event.kind == "erased"
        && !holder.sees_all()
        && let Ok(mut data) = serde_json::from_str::<Value>(&event.data)
        && data["dataset"].as_str().is_some_and(|dataset| !holder.sees_dataset(dataset))
    {
        data["dataset"] = Value::Null;
        return Cow::Owned(data.to_string());
    }
    Cow::Borrowed(&event.data)
}

/// Server-sent events, or by polling (`Accept: application/json`) those after the one named in `after`.
pub(super) async fn events(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    holder: Holder,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let mut after = headers.get("last-event-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("after", id)) => after = Some(id.to_owned()),
            _ => {
                let detail = "there is no such parameter; there is `after`, the id of an event".to_owned();
                refuse(Code::InvalidRequest, vec![Fault { pointer: "/".to_owned(), detail }])?;
            }
        }
    }
    let channel = app.service.events(&name)?;
    if extract::media_type(&headers, header::ACCEPT).as_deref() == Some("application/json") {
        return Ok(poll(&holder, &channel, after.as_deref()).into_response());
    }
    let listening = channel.listen(after.as_deref());
    let mut first: Vec<Bytes> = Vec::new();
    if listening.gap {
        first.push(Bytes::from_static(b"event: gap\ndata: {}\n\n"));
    } else if after.is_none() {
        // A place to come back to, before anything has happened.
        first.push(Bytes::from(format!("id: {}\nevent: open\ndata: {{}}\n\n", channel.newest())));
    }
    first.extend(listening.missed.iter().map(|event| block(&holder, event)));
    let service = app.service.clone();
    let over = listening.missed.iter().any(|event| event.kind == "deleted");
    let rest = futures_util::stream::unfold((listening.next, over), move |(mut next, over)| {
        let (service, holder) = (service.clone(), holder.clone());
        async move {
            let mut silent = Duration::ZERO;
            while !over && !service.is_stopping() && holder.stands() {
                let event = match tokio::time::timeout(LOOK, next.recv()).await {
                    Ok(Ok(event)) => (block(&holder, &event), event.kind == "deleted"),
                    Ok(Err(RecvError::Lagged(_))) => (Bytes::from_static(b"event: gap\ndata: {}\n\n"), false),
                    Ok(Err(RecvError::Closed)) => return None,
                    Err(_) if silent < SILENCE => {
                        silent += LOOK;
                        continue;
                    }
                    Err(_) => (Bytes::from_static(b": still here\n\n"), false),
                };
                return Some((event.0, (next, event.1)));
            }
            None
        }
    });
    let body = futures_util::stream::iter(first).chain(rest).map(Ok::<_, Infallible>);
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn poll(holder: &Holder, channel: &Arc<Channel>, after: Option<&str>) -> Json<Value> {
    let newest = channel.newest();
    let listening = channel.listen(after);
    let items: Vec<Value> = listening
        .missed
        .iter()
        .map(|event| {
            let data: Value = serde_json::from_str(&told(holder, event)).unwrap_or_default();
            json!({"id": event.id(), "event": event.kind, "data": data})
        })
        .collect();
    let next = listening.missed.last().map_or(newest, |event| event.id());
    Json(json!({"items": items, "next": next, "gap": listening.gap}))
}
