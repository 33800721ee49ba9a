//! `POST /v1/models/{name}/updates`: one request answered as a whole, or a stream answered batch by batch.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use axum::{BoxError, Extension};
use futures_util::StreamExt as _;

use super::answers::{push_predictions, push_rows};
use super::error::{ApiError, Code};
use super::extract::Path;
use super::middleware::RequestId;
use super::packed::streamed;
use super::predict::{Dialect, off_thread};
use super::wire::{Fields, refuse};
use super::{App, extract};
use crate::frame::arrow_stream::parse_arrow;
use crate::frame::reply::{push_json_string, push_whole};
use crate::frame::rows::{Rows, RowsOptions, parse_csv, parse_document, parse_ndjson};
use crate::frame::{Fault, Lines};
use crate::service::{Acknowledgement, Holder, ServiceError, StreamedUpdate, Update, UpdateReply, Version};

/// NDJSON longer than this is a stream unless the caller wants JSON; the size at which a batch is full.
const STREAMED: u64 = 256 * 1024;

/// A stream that ends early leaves the rest of its body unread, after which a connection cannot be used again; the client is told beforehand.
pub(super) const CLOSE: HeaderValue = HeaderValue::from_static("close");

const OPTIONS: RowsOptions = RowsOptions { allow_id: true, max_rows: 1_000_000 };

/// Members of the answer, so that a caller can ask for less.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    predictions: bool,
    errors: bool,
}

pub(super) async fn learn(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    Extension(id): Extension<RequestId>,
    holder: Holder,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let dialect = Dialect::of(&headers)?;
    match lines(dialect, &headers, &body) {
        Some(lines) => {
            let wanted = wanted(query.as_deref())?;
            let asked = StreamedUpdate {
                if_match: extract::if_match(&headers),
                idempotency: extract::idempotency(&holder, &headers, &["updates", "stream", &name])?,
                reference: name,
                lines,
            };
            stream(app, asked, wanted, id, headers, body).await
        }
        None => answer(&app, &name, dialect, query.as_deref(), &holder, &headers, body).await,
    }
}

/// What the lines of a stream are; `None` when the request is to be answered as a whole.
fn lines(dialect: Dialect, headers: &HeaderMap, body: &Body) -> Option<Lines> {
    let lines = match dialect {
        Dialect::Json | Dialect::Arrow => return None,
        Dialect::Ndjson => Lines::Plain,
        Dialect::Csv => Lines::Records,
    };
    let streamed = if extract::accepts(headers, "application/x-ndjson") {
        true
    } else if extract::accepts(headers, "application/json") {
        false
    } else {
        body.size_hint().exact().is_none_or(|length| lines == Lines::Plain && length > STREAMED)
    };
    streamed.then_some(lines)
}

/// The query: `fields`, of which parts of the answer are wanted.
pub(super) fn wanted(query: Option<&str>) -> Result<Wanted, ApiError> {
    let mut wanted = Wanted { predictions: true, errors: true };
    let mut faults = Vec::new();
    let mut fault = |pointer: &str, detail: &str| faults.push(Fault { pointer: pointer.to_owned(), detail: detail.to_owned() });
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("fields", value) => {
                wanted = Wanted { predictions: false, errors: false };
                for field in value.split(',').flat_map(|part| part.split("%2C")) {
                    match field {
                        "predictions" => wanted.predictions = true,
                        "errors" => wanted.errors = true,
                        "sequence" | "accepted" => {}
                        _ => fault("/fields", "`fields` lists sequence, accepted, predictions, errors"),
                    }
                }
            }
            _ => fault("/", "the query has an unknown parameter"),
        }
    }
    refuse(Code::InvalidRequest, faults)?;
    Ok(wanted)
}

async fn stream(
    app: App,
    asked: StreamedUpdate,
    wanted: Wanted,
    id: RequestId,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let sized = body.size_hint().exact().is_some();
    let (version, told) = app.service.update_stream(asked, extract::stream(body)).await?;
    let mut told = Box::pin(told.fuse());
    // Who sends a body of known length does not wait for the head of the reply, and who waits to be told to continue would not be told any
    // more once it is out: they get it with the first batch, and then what was refused before anything was learnt has its status.
    let first = if sized || headers.contains_key(header::EXPECT) { told.next().await } else { None };
    if let Some(Acknowledgement { outcome: Err(error), .. }) = &first {
        let mut response = ApiError::from(error.clone()).into_response();
        response.headers_mut().insert(header::CONNECTION, CLOSE);
        return Ok(response);
    }
    let lines = futures_util::stream::iter(first).chain(told).map(move |told| {
        let mut line = Vec::new();
        write_line(&mut line, &version, &told, wanted, &id);
        Ok::<_, std::convert::Infallible>(Bytes::from(line))
    });
    let mut response = Response::new(streamed(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, Dialect::Ndjson.media());
    response.headers_mut().insert(header::CONNECTION, CLOSE);
    Ok(response)
}

/// Learns the rows of a body, answered as a whole.
pub(super) async fn answer<B>(
    app: &App,
    name: &str,
    dialect: Dialect,
    query: Option<&str>,
    holder: &Holder,
    headers: &HeaderMap,
    body: B,
) -> Result<Response, ApiError>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>>,
{
    let wanted = wanted(query)?;
    let version = app.service.learner(name).await?;
    let (body, idempotency) = extract::keyed_body(holder, headers, body, app.body_limit, &["updates", name]).await?;
    let learning = version.clone();
    let large = body.len() > extract::LARGE;
    let parse = move || -> Result<Rows, ApiError> {
        let mut rows = Rows::default();
        match dialect {
            Dialect::Json => {
                let members = parse_document(&body, &learning.update_inputs, &OPTIONS, &mut rows).map_err(ServiceError::from)?;
                let mut unknown = Fields::nested(String::new(), serde_json::Map::new());
                for (name, _) in &members {
                    unknown.fault(name, "there is no such field");
                }
                refuse(Code::InvalidRequest, unknown.into_faults())?;
            }
            Dialect::Ndjson => parse_ndjson(&body, 1, &learning.update_inputs, &OPTIONS, &mut rows).map_err(ServiceError::from)?,
            Dialect::Csv => parse_csv(&body, &learning.update_inputs, &OPTIONS, &mut rows).map_err(ServiceError::from)?,
            Dialect::Arrow => parse_arrow(&body, &learning.update_inputs, &OPTIONS, &mut rows).map_err(ServiceError::from)?,
        }
        Ok(rows)
    };
    let rows = if large { off_thread(parse).await? } else { parse()? };
    let if_match = extract::if_match(headers);
    let learnt = app.service.update(Update { version: version.clone(), rows, if_match, idempotency }).await?;
    Ok(learnt_response(&version, &learnt.value, learnt.replayed, wanted))
}

/// The answer to a request as a whole.
pub(super) fn learnt_response(version: &Version, reply: &UpdateReply, replayed: bool, wanted: Wanted) -> Response {
    let mut out = Vec::with_capacity(128 + reply.predictions.len() * 40);
    write_learnt(&mut out, version, reply, wanted);
    out.push(b'}');
    let mut response = Response::new(Body::from(out));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::ETAG, extract::etag(&format!("{}-{}", reply.version, reply.sequence)));
    if replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    response
}

/// What was learnt, without the closing brace.
fn write_learnt(out: &mut Vec<u8>, version: &Version, reply: &UpdateReply, wanted: Wanted) {
    out.extend_from_slice(b"{\"model\":");
    push_json_string(out, &version.model);
    for (name, count) in [(&b",\"version\":"[..], reply.version), (b",\"sequence\":", reply.sequence), (b",\"accepted\":", reply.accepted)]
    {
        out.extend_from_slice(name);
        push_whole(out, count);
    }
    out.extend_from_slice(b",\"predictions\":");
    if wanted.predictions {
        push_predictions(out, &version.document, &reply.predictions);
    } else {
        out.extend_from_slice(b"null");
    }
    out.extend_from_slice(b",\"errors\":");
    if wanted.errors {
        push_rows(out, &version.document.target, &reply.errors);
    } else {
        out.extend_from_slice(b"null");
    }
}

/// One line of a stream's answer.
fn write_line(out: &mut Vec<u8>, version: &Version, told: &Acknowledgement, wanted: Wanted, id: &RequestId) {
    let mut replayed = false;
    match &told.outcome {
        Ok(reply) => {
            write_learnt(out, version, &reply.value, wanted);
            replayed = reply.replayed;
        }
        Err(error) => {
            let error = ApiError::from(error.clone());
            error.log(id.as_str());
            out.extend_from_slice(b"{\"error\":");
            // A struct of strings and numbers always encodes.
            out.extend_from_slice(&serde_json::to_vec(&error.problem(id.as_str())).unwrap_or_default());
        }
    }
    let last = told.last_line.map_or_else(|| "null".to_owned(), |line| line.to_string());
    out.extend_from_slice(format!(",\"first_line\":{},\"last_line\":{last}", told.first_line).as_bytes());
    if replayed {
        out.extend_from_slice(b",\"replayed\":true");
    }
    out.extend_from_slice(b"}\n");
}
