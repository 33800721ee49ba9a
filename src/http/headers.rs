//! Headers for the sake of browsers. Every reply says that it is what its type says, is no page to be framed, loads nothing, and that where
//! somebody came from is told to nobody; one that says such a thing itself, as a page must, keeps its own. And pages of origins that are
//! named in the settings may read replies, those of others may not. Where connections are encrypted, a reply says that they always are.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;

const FOR_BROWSERS: [(HeaderName, HeaderValue); 3] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
];

/// A year, in which a browser that was here asks for nothing in the clear (RFC 6797). Names below this one are not ours to speak for.
const ENCRYPTED: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// How long a browser may remember what it was told it may ask, in seconds.
const REMEMBERED: &str = "600";

/// Origins whose pages may ask and read replies. A key is sent as a header, which only a page that has it can; cookies there are none, and so
/// credentials are never allowed.
#[derive(Clone, Debug, Default)]
pub struct Cors {
    any: bool,
    origins: Vec<HeaderValue>,
}

impl Cors {
    /// Of a list of origins, or of `*`.
    #[must_use]
    pub fn new(origins: &[String]) -> Self {
        let values = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
        Self { any: origins.iter().any(|origin| origin == "*"), origins: values.collect() }
    }

    fn is_off(&self) -> bool {
        self.origins.is_empty()
    }

    /// The origin of a request, if its pages may read.
    pub(super) fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        headers.get(header::ORIGIN).filter(|origin| self.any || self.origins.contains(origin)).cloned()
    }

    /// The answer to a browser that asks what a page of an origin that is allowed may ask. It asks without a key.
    pub(super) fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Response> {
        if method != Method::OPTIONS || !headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
            return None;
        }
        self.allowed(headers)?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let told = response.headers_mut();
        told.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, PUT, POST, DELETE"));
        told.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(REMEMBERED));
        if let Some(asked) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            told.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        Some(response)
    }

    /// What a reply to a request says to browsers.
    pub(super) fn of(&self, request: &HeaderMap, encrypted: bool) -> ForBrowsers {
        ForBrowsers { readable: self.allowed(request), varies: !self.is_off() && !self.any, encrypted }
    }
}

/// What a reply says to browsers.
#[derive(Clone, Debug)]
pub(super) struct ForBrowsers {
    /// The origin whose pages may read it.
    readable: Option<HeaderValue>,
    /// Whether another origin would be told otherwise.
    varies: bool,
    /// Whether the connection is encrypted.
    encrypted: bool,
}

impl ForBrowsers {
    /// Adds what the reply does not say itself.
    pub(super) fn add_to(self, headers: &mut HeaderMap) {
        for (name, value) in FOR_BROWSERS {
            headers.entry(name).or_insert(value);
        }
        if self.encrypted {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, ENCRYPTED);
        }
        if self.varies {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
        if let Some(origin) = self.readable {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_page_keeps_the_policy_of_its_own() {
        let own = HeaderValue::from_static("default-src 'self'");
        let mut headers = HeaderMap::from_iter([(header::CONTENT_SECURITY_POLICY, own.clone())]);
        Cors::default().of(&HeaderMap::new(), false).add_to(&mut headers);
        assert_eq!(headers.get_all(header::CONTENT_SECURITY_POLICY).iter().collect::<Vec<_>>(), [&own]);
        assert_eq!(headers.len(), FOR_BROWSERS.len());
    }

    #[test]
    fn origins_that_are_named_may_read_and_others_may_not() {
        let asked = |origin: &str| HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_str(origin).unwrap())]);
        let told = |cors: &Cors, origin: &str| {
            let mut headers = HeaderMap::new();
            cors.of(&asked(origin), false).add_to(&mut headers);
            (headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).cloned(), headers.contains_key(header::VARY))
        };
        let (here, there) = ("https://here.example", "https://there.example");
        let named = Cors::new(&[here.to_owned()]);
        assert_eq!(told(&named, here), (Some(HeaderValue::from_static(here)), true));
        assert_eq!(told(&named, there), (None, true));
        assert_eq!(told(&Cors::default(), here), (None, false));
        assert_eq!(told(&Cors::new(&["*".to_owned()]), there), (Some(HeaderValue::from_static(there)), false));

        let mut asking = asked(here);
        assert!(named.preflight(&Method::OPTIONS, &asking).is_none(), "no page asks so");
        asking.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PUT"));
        asking.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("authorization"));
        let answer = named.preflight(&Method::OPTIONS, &asking).unwrap();
        assert_eq!(answer.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS], "authorization");
        assert!(named.preflight(&Method::GET, &asking).is_none());
        assert!(Cors::default().preflight(&Method::OPTIONS, &asking).is_none());
        asking.insert(header::ORIGIN, HeaderValue::from_static(there));
        assert!(named.preflight(&Method::OPTIONS, &asking).is_none());
    }
}
