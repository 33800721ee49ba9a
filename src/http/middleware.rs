//! Around every request: its id, its log line, its metrics, and the body of its error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::error::{ApiError, Code};
use super::{App, access};
use crate::telemetry;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A request's id: the caller's own if it is fit to be repeated, else one that no other request has.
pub(super) fn request_id(request: &Request) -> HeaderValue {
    if let Some(given) = request.headers().get("x-request-id")
        && (1..=128).contains(&given.len())
        && given.as_bytes().iter().all(u8::is_ascii_graphic)
    {
        return given.clone();
    }
    let micros = jiff::Timestamp::now().as_microsecond();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    HeaderValue::from_str(&format!("{micros:x}-{count:x}")).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// The id of a request, for replies that name it otherwise than in their header.
#[derive(Clone, Debug)]
pub(super) struct RequestId(pub(super) HeaderValue);

impl RequestId {
    pub(super) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or("unknown")
    }
}

pub(super) async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request_id(&request);
    let browsers = app.cors.of(request.headers());
    let preflight = app.cors.preflight(request.method(), request.headers());
    let (mut parts, body) = request.into_parts();
    let admitted = access::admit(&app, &mut parts).await;
    let key = admitted.as_ref().ok().and_then(|holder| holder.id().map(str::to_owned));
    parts.extensions.insert(RequestId(id.clone()));
    let mut request = Request::from_parts(parts, body);
    // A method of the caller's own invention is neither a label nor a word for a log.
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS];
    let method = known.into_iter().find(|known| known == request.method()).map_or_else(|| "other".to_owned(), |method| method.to_string());
    let route = request.extensions().get::<MatchedPath>().cloned();
    // Before the models are loaded, "no such model" would be a lie.
    let encoded = request.headers().get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
    let mut response = match admitted {
        _ if preflight.is_some() => preflight.unwrap_or_default(),
        Err(refusal) => refusal.into_response(),
        Ok(_) if encoded => {
            ApiError::new(Code::UnsupportedMediaType, "a body comes as it is, or packed by gzip, deflate or zstd").into_response()
        }
        Ok(_)
            if ["/v1/", "/v2/models", "/invocations"].iter().any(|path| request.uri().path().starts_with(path))
                && !app.service.is_ready() =>
        {
            ApiError::new(Code::Unavailable, "the server is starting or stopping; try again in a moment").into_response()
        }
        Ok(holder) => {
            request.extensions_mut().insert(holder.clone());
            let request = request.map(|body| access::arriving(&holder, body));
            access::leaving(holder, next.run(request).await)
        }
    };
    if let Some(error) = response.extensions_mut().remove::<Arc<ApiError>>() {
        let headers = std::mem::take(response.headers_mut());
        response = error.render(id.to_str().unwrap_or("unknown"));
        // What a fallback already said, such as Allow.
        for (name, value) in headers {
            if let Some(name) = name
                && !response.headers().contains_key(&name)
                && name != axum::http::header::CONTENT_LENGTH
            {
                response.headers_mut().insert(name, value);
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str).to_owned();
    let status = response.status().as_u16();
    tracing::info!(target: "lsqd::http", request_id = id.to_str().unwrap_or("unknown"), key, method, route, status, seconds, "answered");
    metrics::counter!(telemetry::REQUESTS, "route" => route.clone(), "method" => method, "status" => status.to_string()).increment(1);
    metrics::histogram!(telemetry::REQUEST_SECONDS, "route" => route).record(seconds);
    response.headers_mut().insert("x-request-id", id);
    browsers.add_to(response.headers_mut());
    response
}
