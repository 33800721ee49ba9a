//! Around every request: its id, its log line, its metrics, and the body of its error. A panic in one request is a 500 for that one.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;

use super::error::{self, ApiError, Code};
use super::headers::ForBrowsers;
use super::overload::{self, Class};
use super::{App, access};
use crate::service::Holder;
use crate::service::audit::{self, Actor};
use crate::telemetry;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request, for replies that name it otherwise than in their header.
#[derive(Clone, Debug)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    /// The caller's own if it is fit to be repeated, else one that no other request has.
    fn of<B>(request: &Request<B>) -> Self {
        if let Some(given) = request.headers().get(REQUEST_ID)
            && (1..=128).contains(&given.len())
            && given.as_bytes().iter().all(u8::is_ascii_graphic)
        {
            return Self(given.clone());
        }
        static BEGUN: OnceLock<i64> = OnceLock::new();
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let begun = BEGUN.get_or_init(|| jiff::Timestamp::now().as_microsecond());
        let mut text = [0; 33];
        let length = hexadecimal(&mut text, begun.unsigned_abs(), COUNTER.fetch_add(1, Ordering::Relaxed));
        Self(HeaderValue::from_bytes(&text[..length]).unwrap_or_else(|_| HeaderValue::from_static("unknown")))
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or("unknown")
    }
}

/// The id of a request, for the head of its reply.
pub(super) fn request_id<B>(request: &Request<B>) -> HeaderValue {
    RequestId::of(request).0
}

/// Writes two numbers and a dash between them; how long that is.
fn hexadecimal(text: &mut [u8; 33], first: u64, second: u64) -> usize {
    let mut length = 0;
    for (place, number) in [first, second].into_iter().enumerate() {
        if place > 0 {
            text[length] = b'-';
            length += 1;
        }
        for digit in (0..(64 - number.leading_zeros()).div_ceil(4).max(1)).rev() {
            text[length] = b"0123456789abcdef"[(number >> (4 * digit) & 15) as usize];
            length += 1;
        }
    }
    length
}

/// The handles of a route's metrics, which are looked up once.
#[derive(Debug)]
pub(super) struct Tally {
    route: &'static str,
    seconds: OnceLock<metrics::Histogram>,
    /// Of what is answered 200 to a `POST`.
    well: OnceLock<metrics::Counter>,
}

impl Tally {
    pub(super) const fn new(route: &'static str) -> Self {
        Self { route, seconds: OnceLock::new(), well: OnceLock::new() }
    }
}

/// What is counted of a request once it is answered.
pub(super) trait Count {
    /// The route's template.
    fn route(&self) -> &str;

    fn count(&self, method: &Method, status: StatusCode, seconds: f64) {
        counter(self.route(), method, status).increment(1);
        histogram(self.route()).record(seconds);
    }
}

impl Count for &'static Tally {
    fn route(&self) -> &str {
        self.route
    }

    fn count(&self, method: &Method, status: StatusCode, seconds: f64) {
        if status == StatusCode::OK && method == Method::POST {
            self.well.get_or_init(|| counter(self.route, method, status)).increment(1);
        } else {
            counter(self.route, method, status).increment(1);
        }
        self.seconds.get_or_init(|| histogram(self.route)).record(seconds);
    }
}

impl Count for Option<MatchedPath> {
    fn route(&self) -> &str {
        self.as_ref().map_or("unmatched", MatchedPath::as_str)
    }
}

fn counter(route: &str, method: &Method, status: StatusCode) -> metrics::Counter {
    metrics::counter!(telemetry::REQUESTS, "route" => route.to_owned(), "method" => word(method).to_owned(), "status" => status.as_u16().to_string())
}

/// The word of a method; one of the caller's own invention is neither a label nor a word for a log.
fn word(method: &Method) -> &str {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS];
    if known.contains(method) { method.as_str() } else { "other" }
}

fn histogram(route: &str) -> metrics::Histogram {
    metrics::histogram!(telemetry::REQUEST_SECONDS, "route" => route.to_owned())
}

/// A request that was read as far as its header.
pub(super) struct Seen {
    pub(super) begun: Instant,
    pub(super) id: RequestId,
    method: Method,
    browsers: ForBrowsers,
    /// Why it is not answered at all, whoever asks.
    refusal: Option<ApiError>,
}

impl Seen {
    pub(super) fn of<B>(app: &App, request: &Request<B>) -> Self {
        let encoded = request.headers().get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
        let path = request.uri().path();
        let foreign = if app.service.keyring().is_empty() { app.site.refusal(&app.cors, request) } else { None };
        let refusal = if foreign.is_some() {
            foreign
        } else if encoded {
            Some(ApiError::new(Code::UnsupportedMediaType, "a body comes as it is, or packed by gzip, deflate or zstd"))
        } else if ["/v1/", "/v2/models", "/invocations"].iter().any(|before| path.starts_with(before)) && !app.service.is_ready() {
            // Before the models are loaded, "no such model" would be a lie.
            Some(ApiError::new(Code::Unavailable, "the server is starting or stopping; try again in a moment"))
        } else {
            None
        };
        let browsers = app.cors.of(request.headers(), app.site.encrypted);
        Self { begun: Instant::now(), id: RequestId::of(request), method: request.method().clone(), browsers, refusal }
    }

    /// Answers whoever is admitted, and sees to all that an answer has to have.
    pub(super) async fn answered<F: Future<Output = Response>>(
        self,
        route: impl Count,
        admitted: Result<Holder, ApiError>,
        answer: impl FnOnce(Holder) -> F,
    ) -> Response {
        let Self { begun, id, method, browsers, refusal } = self;
        let holder = admitted.as_ref().ok().cloned();
        let mut response = match (admitted, refusal) {
            (Err(refusal), _) | (Ok(_), Some(refusal)) => refusal.into_response(),
            (Ok(holder), None) => AssertUnwindSafe(answer(holder)).catch_unwind().await.unwrap_or_else(error::from_panic),
        };
        if let Some(error) = response.extensions_mut().remove::<Arc<ApiError>>() {
            let headers = std::mem::take(response.headers_mut());
            response = error.render(id.as_str());
            // What a fallback already said, such as Allow.
            for (name, value) in headers {
                if let Some(name) = name
                    && !response.headers().contains_key(&name)
                    && name != header::CONTENT_LENGTH
                {
                    response.headers_mut().insert(name, value);
                }
            }
        }
        let (status, seconds) = (response.status(), begun.elapsed().as_secs_f64());
        route.count(&method, status, seconds);
        log(&id, holder.as_ref().and_then(Holder::id), &method, route.route(), status, seconds);
        response.headers_mut().insert(REQUEST_ID, id.0);
        browsers.add_to(response.headers_mut());
        response
    }
}

/// What went well is a line for who looks for it; what did not, one for everybody, and a fault of the server a warning.
fn log(id: &RequestId, key: Option<&str>, method: &Method, route: &str, status: StatusCode, seconds: f64) {
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: "lsqd::http", request_id = id.as_str(), key, method = word(method), route, status = status.as_u16(), seconds, "answered"
            )
        };
    }
    if status.is_server_error() {
        line!(warn);
    } else if status.is_client_error() {
        line!(info);
    } else {
        line!(debug);
    }
}

pub(super) async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    let seen = Seen::of(&app, &request);
    let route = request.extensions().get::<MatchedPath>().cloned();
    if let Some(told) = app.cors.preflight(request.method(), request.headers()) {
        return seen.answered(route, Ok(app.service.keyring().nobody()), |_| std::future::ready(told)).await;
    }
    let (mut parts, body) = request.into_parts();
    let admitted = access::admit(&app, &mut parts).await;
    let id = seen.id.clone();
    parts.extensions.insert(id.clone());
    let class = route.as_ref().and_then(|route| Class::of(&parts.method, route.as_str()));
    let begun = seen.begun;
    let answer = async |holder: Holder| {
        parts.extensions.insert(holder.clone());
        let actor = Actor::new(holder.id(), id.as_str());
        let body = access::arriving(&holder, body);
        let Some(class) = class else {
            return access::leaving(holder, audit::by(actor, next.run(Request::from_parts(parts, body))).await);
        };
        match overload::place(app.overload, class, body, app.body_limit, begun).await {
            Ok((body, slot)) => {
                let response = audit::by(actor, next.run(Request::from_parts(parts, body))).await;
                overload::leaving(access::leaving(holder, response), slot)
            }
            Err(refusal) => refusal.into_response(),
        }
    };
    seen.answered(route, admitted, answer).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_are_two_numbers_in_hexadecimal() {
        for (first, second) in [(0, 0), (1, 16), (0xdead_beef, u64::MAX), (u64::MAX, u64::MAX)] {
            let mut text = [0; 33];
            let length = hexadecimal(&mut text, first, second);
            assert_eq!(std::str::from_utf8(&text[..length]).unwrap(), format!("{first:x}-{second:x}"));
        }
    }

    #[test]
    fn an_id_of_the_callers_is_kept_and_others_differ() {
        let request = |id: Option<&str>| {
            let builder = Request::builder();
            id.map_or(Request::builder(), |id| builder.header("x-request-id", id)).body(()).unwrap()
        };
        assert_eq!(RequestId::of(&request(Some("mine"))).as_str(), "mine");
        let (first, second) = (RequestId::of(&request(None)), RequestId::of(&request(Some("not mine"))));
        assert_ne!(first.as_str(), second.as_str());
    }
}
