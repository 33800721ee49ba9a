//! Who may do what: what a route needs, who asks, and which names are there for them.
//!
//! All of it is asked for here, before a handler runs: no key or none that is good is 401, a key without the scope 403, and a model or dataset
//! that the key does not show is not there, in the words in which one is not there that nobody has. Handlers see to the names that stand
//! elsewhere than in the address: those of bodies, lists and jobs.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::error::{ApiError, Code};
use super::{App, ROUTES, extract, segments};
use crate::model::key::Scopes;
use crate::service::{Holder, ServiceError, Unknown};

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: it is everybody's.
    Nothing,
    /// A key that has one of these scopes, or `admin`.
    OneOf(Scopes),
}

impl Needs {
    /// The words of the scopes, of which one is enough; none where no key is needed.
    #[must_use]
    pub fn words(self) -> Vec<&'static str> {
        match self {
            Self::Nothing => Vec::new(),
            Self::OneOf(scopes) => scopes.iter().map(crate::model::key::Scope::as_str).collect(),
        }
    }
}

/// What is asked by those who watch.
const METRICS: &str = "/metrics";

/// What a name in an address names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Model,
    Dataset,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    needs: Needs,
    named: Option<Named>,
    /// What stands behind the name in its segment, with its colon.
    verb: &'static str,
}

/// The rows of the table of routes, by method and address.
static ROWS: LazyLock<HashMap<(&str, &str), Row>> = LazyLock::new(|| {
    let row = |&(method, path, needs): &(&'static str, &'static str, Needs)| {
        let verb = path.split_once("{name}").map_or("", |(_, rest)| rest).split('/').next().unwrap_or_default();
        ((method, segments(path)), Row { needs, named: named(path), verb })
    };
    ROUTES.iter().map(row).collect()
});

/// What `{name}` is in an address.
fn named(path: &str) -> Option<Named> {
    if path.contains("/models/{name}") {
        Some(Named::Model)
    } else if path.contains("/datasets/{name}") {
        Some(Named::Dataset)
    } else {
        None
    }
}

/// Who asks for something that needs this, by the headers of the request.
pub(super) fn authorise(app: &App, headers: &mut HeaderMap, needs: Needs) -> Result<Holder, ApiError> {
    if let Some(shown) = headers.get_mut(header::AUTHORIZATION) {
        // Whatever writes headers down from here on leaves it out.
        shown.set_sensitive(true);
    }
    let keyring = app.service.keyring();
    let Needs::OneOf(scopes) = needs else { return Ok(keyring.nobody()) };
    let holder = known(app, headers)?;
    take_turn(&holder)?;
    allowed(holder, scopes)
}

/// The same of somebody who looks after the server, and is not to be kept from that by how much is asked of it.
fn authorise_watch(app: &App, headers: &mut HeaderMap, scopes: Scopes) -> Result<Holder, ApiError> {
    if let Some(shown) = headers.get_mut(header::AUTHORIZATION) {
        shown.set_sensitive(true);
    }
    allowed(known(app, headers)?, scopes)
}

fn take_turn(holder: &Holder) -> Result<(), ApiError> {
    holder.take_turn(Instant::now()).map_err(|wait| {
        ApiError::new(Code::RateLimited, "more requests came with this key than it may send; Retry-After says when the next may")
            .after(wait)
    })
}

/// Who shows a key, if one is needed.
fn known(app: &App, headers: &HeaderMap) -> Result<Holder, ApiError> {
    app.service.keyring().holder(shown(headers)).map_err(|unknown| {
        let detail = match unknown {
            Unknown::NotShown => "this needs a key: Authorization: Bearer lsqd_…",
            Unknown::NotGood => "this key is not known here, was revoked, or has expired",
        };
        ApiError::new(Code::Unauthorized, detail)
    })
}

fn allowed(holder: Holder, scopes: Scopes) -> Result<Holder, ApiError> {
    if holder.may(scopes) { Ok(holder) } else { Err(ApiError::new(Code::Forbidden, "the scopes of this key do not allow that")) }
}

/// Who asks for something of a model that needs this.
pub(super) fn authorise_for(app: &App, headers: &mut HeaderMap, needs: Needs, reference: &str) -> Result<Holder, ApiError> {
    let holder = authorise(app, headers, needs)?;
    model(&holder, reference)?;
    Ok(holder)
}

/// The key that a request shows; what is none, or one of two, is shown as nothing that could be one.
fn shown(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let first = values.next()?;
    if values.next().is_some() {
        return Some("");
    }
    let (scheme, key) = first.to_str().ok()?.split_once(' ').unwrap_or_default();
    Some(if scheme.eq_ignore_ascii_case("bearer") { key.trim() } else { "" })
}

/// Refuses the name of a model that is not there for them.
pub(super) fn model(holder: &Holder, reference: &str) -> Result<(), ServiceError> {
    if holder.sees_model(reference) { Ok(()) } else { Err(ServiceError::ModelNotFound) }
}

/// Refuses the name of a dataset that is not there for them.
pub(super) fn dataset(holder: &Holder, name: &str) -> Result<(), ServiceError> {
    if holder.sees_dataset(name) { Ok(()) } else { Err(ServiceError::DatasetNotFound) }
}

/// Who asks for what a request asks for, its address looked at.
pub(super) async fn admit(app: &App, parts: &mut Parts) -> Result<Holder, ApiError> {
    let method = if parts.method == Method::HEAD { Method::GET } else { parts.method.clone() };
    let path = parts.extensions.get::<MatchedPath>().cloned();
    let row = path.as_ref().and_then(|path| ROWS.get(&(method.as_str(), path.as_str())));
    // What is not there is told to whoever has a key.
    let holder = match row.map_or(Needs::OneOf(Scopes::ALL), |row| row.needs) {
        Needs::OneOf(scopes) if path.as_ref().is_some_and(|path| path.as_str() == METRICS) => {
            authorise_watch(app, &mut parts.headers, scopes)?
        }
        needs => authorise(app, &mut parts.headers, needs)?,
    };
    if let Some(named) = row.and_then(|row| row.named)
        && !holder.sees_all()
    {
        let parameters = RawPathParams::from_request_parts(parts, &()).await;
        let parameters = parameters.map_err(|_| ApiError::new(Code::BadSyntax, "the address is not UTF-8"))?;
        let name = parameters.iter().find_map(|(parameter, value)| (parameter == "name").then_some(value));
        let name = name.ok_or(ServiceError::Internal("an address lacks its name"))?;
        let name = row.and_then(|row| name.strip_suffix(row.verb)).unwrap_or(name);
        match named {
            Named::Model => model(&holder, name)?,
            Named::Dataset => dataset(&holder, name)?,
        }
    }
    Ok(holder)
}

impl<S: Sync> FromRequestParts<S> for Holder {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        // Every route is behind `admit`.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ServiceError::Internal("nobody asked who asks").into())
    }
}

/// The key of a request ended while its body or its reply was on the way.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the key of this request was revoked meanwhile, or has expired")]
pub(super) struct Ended;

/// A body that goes on only for as long as its key is good.
struct Guarded {
    body: Body,
    holder: Holder,
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(Pin::new(&mut this.body).poll_frame(context)) {
            Some(Ok(_)) if !this.holder.stands() => Some(Err(Ended.into())),
            other => other.map(|frame| frame.map_err(Into::into)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request that arrives only for as long as its key is good.
pub(super) fn arriving(holder: &Holder, body: Body) -> Body {
    let long = body.size_hint().exact().is_none_or(|length| length > extract::LARGE as u64);
    if long { Body::new(Guarded { body, holder: holder.clone() }) } else { body }
}

/// A reply that goes out only for as long as its key is good, if it takes its time.
pub(super) fn leaving(holder: Holder, response: Response) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| Body::new(Guarded { body, holder }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn every_name_in_an_address_is_known_for_what_it_names() {
        for (method, path, needs) in ROUTES {
            assert_eq!(path.contains("{name}"), named(path).is_some(), "{method} {path}");
            assert!(named(path).is_none() || *needs != Needs::Nothing, "{method} {path} names something and is everybody's");
        }
        assert_eq!(ROWS.len(), ROUTES.len());
    }

    #[test]
    fn one_bearer_is_a_key_and_everything_else_is_none() {
        let shown = |values: &[&str]| {
            let values = values.iter().map(|value| (header::AUTHORIZATION, HeaderValue::from_str(value).unwrap()));
            super::shown(&values.collect()).map(str::to_owned)
        };
        assert_eq!(shown(&[]), None);
        assert_eq!(shown(&["Bearer a"]).as_deref(), Some("a"));
        assert_eq!(shown(&["bearer  a "]).as_deref(), Some("a"));
        for bad in [&["a"][..], &["Basic a"], &["Bearer a", "Bearer a"], &[""]] {
            assert_eq!(shown(bad).as_deref(), Some(""), "{bad:?}");
        }
    }
}
