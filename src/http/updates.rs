//! `POST /v1/models/{name}/updates`.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;

use super::error::{ApiError, Code};
use super::extract::Path;
use super::predict::{Dialect, off_thread, push_rows};
use super::wire::{Fields, refuse};
use super::{App, extract};
use crate::frame::reply::push_json_string;
use crate::frame::rows::{Rows, RowsOptions, parse_csv, parse_document, parse_ndjson};
use crate::service::{ServiceError, Update};

/// Bodies larger than this leave the async threads.
const LARGE: usize = 64 * 1024;

const OPTIONS: RowsOptions = RowsOptions { allow_id: true, max_rows: 1_000_000 };

pub(super) async fn learn(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let dialect = Dialect::of(&headers)?;
    let version = app.service.learner(&name).await?;
    let body = extract::whole(body, app.body_limit).await?;
    let idempotency = extract::idempotency(&headers, &["updates", &name])?.map(|(key, mut fingerprint)| {
        fingerprint.add(&body);
        fingerprint.key(&key)
    });
    let learning = version.clone();
    let large = body.len() > LARGE;
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
        }
        Ok(rows)
    };
    let rows = if large { off_thread(parse).await? } else { parse()? };
    let if_match = extract::if_match(&headers);
    let learnt = app.service.update(Update { version: version.clone(), rows, if_match, idempotency }).await?;
    let reply = learnt.value;
    let mut out = b"{\"model\":".to_vec();
    push_json_string(&mut out, &version.model);
    out.extend_from_slice(
        format!(",\"version\":{},\"sequence\":{},\"accepted\":{},\"predictions\":", reply.version, reply.sequence, reply.accepted)
            .as_bytes(),
    );
    push_rows(&mut out, &version.document.target, &reply.predictions);
    out.extend_from_slice(b",\"errors\":");
    push_rows(&mut out, &version.document.target, &reply.errors);
    out.push(b'}');
    let mut response = Response::new(Body::from(out));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::ETAG, extract::etag(&format!("{}-{}", reply.version, reply.sequence)));
    if learnt.replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}
