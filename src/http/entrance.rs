//! Where requests come in: what is asked thousands of times a second is answered at once, on the thread of its connection; everything else goes
//! through the routes, on the threads of the runtime, so that nothing long keeps a thread from its other connections.
//!
//! The short way knows nothing that the routes do not: the same functions answer, and the same is seen to around them.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderValue, Method, Request, header};
use axum::response::{IntoResponse as _, Response};
use http_body_util::Full;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tower::{Layer as _, ServiceExt as _};

use super::middleware::{Seen, Tally};
use super::overload::{self, Class};
use super::predict::Dialect;
use super::{App, Needs, PACKET, access, error, extract, predict, updates};
use crate::model::key::{Scope, Scopes};
use crate::server::{Application, Arriving};
use crate::service::Holder;

static PREDICT: Tally = Tally::new("/v1/models/{name}/predict");
static LEARN: Tally = Tally::new("/v1/models/{name}/updates");

/// The application as the server calls it.
#[derive(Clone, Debug)]
pub struct Entrance(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    app: App,
    routes: Router,
    /// Where the routes are gone through.
    runtime: Handle,
}

/// What is answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Short {
    Predict,
    Learn,
}

impl Short {
    /// What it needs, as its route does.
    const fn needs(self) -> Needs {
        Needs::OneOf(Scopes::of(&[match self {
            Self::Predict => Scope::Predict,
            Self::Learn => Scope::Update,
        }]))
    }

    /// What it takes, as its route does.
    const fn class(self) -> Class {
        match self {
            Self::Predict => Class::Predict,
            Self::Learn => Class::Update,
        }
    }

    /// The model of a path, and what is asked of it.
    fn named(path: &str) -> Option<(&str, Self)> {
        let (name, action) = path.strip_prefix("/v1/models/")?.split_once('/')?;
        let short = match action {
            "predict" => Self::Predict,
            "updates" => Self::Learn,
            _ => return None,
        };
        Some((name, short))
    }

    /// What a request is, if it is short, and the model that it names.
    fn of<B: HttpBody>(request: &Request<B>) -> Option<(Self, &str)> {
        if request.method() != Method::POST || request.headers().contains_key(header::CONTENT_ENCODING) {
            return None;
        }
        // What arrives for a while is looked after while it does.
        if request.body().size_hint().exact().is_none_or(|length| length > extract::LARGE as u64) {
            return None;
        }
        let (name, short) = Self::named(request.uri().path())?;
        // Lines and tables may be a stream, which is answered while it arrives.
        if !Dialect::of(request.headers()).is_ok_and(|dialect| dialect == Dialect::Json) {
            return None;
        }
        // The routes know how an address is decoded.
        (!name.is_empty() && !name.contains('%')).then_some((short, name))
    }
}

/// Whether rows may come when there are some: nobody has said how many they are, and each is answered, or learnt, by itself.
fn is_stream_of_rows<B: HttpBody>(request: &Request<B>) -> bool {
    request.method() == Method::POST
        && request.body().size_hint().exact().is_none()
        && Short::named(request.uri().path()).is_some()
        && Dialect::of(request.headers()).is_ok_and(|dialect| dialect != Dialect::Json)
}

impl Entrance {
    /// The application; called within the runtime that goes through the routes.
    #[must_use]
    pub fn new(app: App) -> Self {
        Self(Arc::new(Inner { routes: super::router(app.clone()), app, runtime: Handle::current() }))
    }

    /// Through the routes.
    async fn routed(&self, mut request: Request<Arriving>) -> Response {
        if is_stream_of_rows(&request) {
            request.body_mut().at_any_rate();
        }
        let Inner { routes, runtime, .. } = &*self.0;
        // Ends with this future, if the client goes away.
        let mut task = JoinSet::new();
        task.spawn_on(routes.clone().oneshot(request.map(Body::new)), runtime);
        match task.join_next().await {
            Some(Ok(answer)) => answer.unwrap_or_else(|never: Infallible| match never {}),
            Some(Err(_)) | None => error::gone(),
        }
    }
}

impl Application for Entrance {
    async fn answer(&self, request: Request<Arriving>) -> Response {
        let app = &self.0.app;
        let Some((short, _)) = Short::of(&request) else { return self.routed(request).await };
        let seen = Seen::of(app, &request);
        let (mut parts, body) = request.into_parts();
        let name = parts.uri.path().split('/').nth(3).unwrap_or_default();
        let admitted = access::authorise_for(app, &mut parts.headers, short.needs(), name);
        let (headers, query) = (&parts.headers, parts.uri.query());
        let placed = overload::short(&*app.overload, short.class(), body, app.body_limit, seen.begun);
        let response = match short {
            Short::Predict => {
                let answer = async |_| {
                    let (body, _slot) = placed.await?;
                    predict::document(app, name, query, headers, Full::new(body)).await
                };
                seen.answered(&PREDICT, admitted, async |holder| answer(holder).await.into_response()).await
            }
            Short::Learn => {
                let answer = async |holder: Holder| {
                    let (body, _slot) = placed.await?;
                    updates::answer(app, name, Dialect::Json, query, &holder, headers, Full::new(body)).await
                };
                seen.answered(&LEARN, admitted, async |holder| answer(holder).await.into_response()).await
            }
        };
        // Whoever takes nothing as it is gets to hear that, however short the answer.
        let refuses = |value: &HeaderValue| value.as_bytes().windows(3).any(|part| part == b"q=0");
        let short = response.body().size_hint().lower() < PACKET.into();
        if short && !headers.get_all(header::ACCEPT_ENCODING).iter().any(refuses) { response } else { packed(headers, response).await }
    }
}

/// The answer packed, if it is worth that and the client takes it.
async fn packed(headers: &HeaderMap, response: Response) -> Response {
    let mut request = Request::new(());
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter();
    *request.headers_mut() = accepted.map(|value| (header::ACCEPT_ENCODING, value.clone())).collect();
    let mut response = Some(response);
    let answer = tower::service_fn(move |_: Request<()>| std::future::ready(Ok::<_, Infallible>(response.take().unwrap_or_default())));
    super::compression().layer(answer).oneshot(request).await.map_or_else(|never| match never {}, |response| response.map(Body::new))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::middleware::Count as _;
    use super::*;

    #[test]
    fn what_is_short_needs_and_takes_what_its_route_does() {
        for (short, tally) in [(Short::Predict, &PREDICT), (Short::Learn, &LEARN)] {
            let row = super::super::ROUTES.iter().find(|(method, path, _)| (*method, *path) == ("POST", (&tally).route()));
            assert_eq!(row.unwrap().2, short.needs(), "{short:?}");
            assert_eq!(Class::of(&Method::POST, (&tally).route()), Some(short.class()));
        }
    }

    #[test]
    fn only_predictions_and_small_updates_are_short() {
        let of = |method: &str, path: &str, header: Option<(&str, &str)>, body: Body| {
            let mut request = Request::builder().method(method).uri(path);
            if let Some((name, value)) = header {
                request = request.header(name, value);
            }
            Short::of(&request.body(body).unwrap()).map(|(short, name)| (short, name.to_owned()))
        };
        let short = |method: &str, path: &str, header| of(method, path, header, Body::empty());
        assert_eq!(short("POST", "/v1/models/a@2/predict?fields=", None), Some((Short::Predict, "a@2".to_owned())));
        assert_eq!(
            short("POST", "/v1/models/a/predict", Some(("content-type", "application/json"))),
            Some((Short::Predict, "a".to_owned()))
        );
        assert_eq!(short("POST", "/v1/models/a/updates", Some(("content-type", "application/json"))), Some((Short::Learn, "a".to_owned())));
        for (method, path, header) in [
            ("GET", "/v1/models/a/predict", None),
            ("POST", "/v1/models/a/predict", Some(("content-encoding", "gzip"))),
            ("POST", "/v1/models/a/predict", Some(("content-type", "text/csv"))),
            ("POST", "/v1/models/caf%C3%A9/predict", None),
            ("POST", "/v1/models//predict", None),
            ("POST", "/v1/models/a/predict/", None),
            ("POST", "/v1/models/a/updates", Some(("content-type", "application/x-ndjson"))),
            ("POST", "/v1/models/a/fits", None),
        ] {
            assert_eq!(short(method, path, header), None, "{method} {path}");
        }
        let short_enough = |length: usize| of("POST", "/v1/models/a/predict", None, Body::from(vec![b' '; length])).is_some();
        assert_eq!([extract::LARGE, extract::LARGE + 1].map(short_enough), [true, false]);
        let unsized_body = Body::from_stream(futures_util::stream::empty::<Result<axum::body::Bytes, Infallible>>());
        assert_eq!(of("POST", "/v1/models/a/predict", None, unsized_body), None);
    }

    #[test]
    fn only_rows_of_unknown_number_may_come_as_slowly_as_they_like() {
        let open = || Body::from_stream(futures_util::stream::empty::<Result<axum::body::Bytes, Infallible>>());
        for (path, media, body, slow) in [
            ("/v1/models/a/updates", "application/x-ndjson", open(), true),
            ("/v1/models/a%20b/predict", "text/csv", open(), true),
            ("/v1/models/a/updates", "application/x-ndjson", Body::from("{}"), false),
            ("/v1/models/a/updates", "application/json", open(), false),
            ("/v1/models/a/labels", "application/x-ndjson", open(), false),
            ("/v1/datasets/a/rows", "text/csv", open(), false),
        ] {
            let request = Request::builder().method("POST").uri(path).header("content-type", media).body(body).unwrap();
            assert_eq!(is_stream_of_rows(&request), slow, "{path} {media}");
        }
    }
}
