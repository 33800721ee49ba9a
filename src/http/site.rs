//! Which site the server is, as browsers understand it, and what pages of other sites may ask of it.
//!
//! Where keys are needed a page can do nothing without one. A server that asks nobody who they are is protected by who can reach it, and a
//! browser can: whatever page it shows may send requests to any address, and may even read the replies once the name of its own site is made to
//! lead there (DNS rebinding). So while there is no key, what changes something is refused to pages of other origins, and everything to those
//! who ask under a name that is not the server's.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::http::{HeaderMap, Method, Request, header};

use super::error::{ApiError, Code};
use super::headers::Cors;
use super::{Needs, ROUTES};

/// How the server is reached.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// Whether connections are encrypted.
    pub encrypted: bool,
    /// Its names, in lower case, beside addresses, `localhost` and names without a dot.
    pub names: Vec<String>,
}

impl Site {
    /// Why a request is not answered while nobody needs a key.
    pub(super) fn refusal<B>(&self, cors: &Cors, request: &Request<B>) -> Option<ApiError> {
        let authority = authority(request);
        // Who sends no name at all is no browser.
        if authority.is_some_and(|authority| !self.is_own(authority)) && !is_everybodys(request.uri().path()) {
            let detail = "nobody needs a key here, and the server does not know itself by the name that it was asked under: ask it by an \
                          address or as localhost, or start it with --hosts and the name, or make a key";
            return Some(ApiError::new(Code::UnknownHost, detail));
        }
        if [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method()) || self.is_at_home(cors, authority, request.headers()) {
            return None;
        }
        let detail = "nobody needs a key here, and a page of another site asks: start the server with --cors-origins and its origin, or make \
                      a key";
        Some(ApiError::new(Code::ForeignOrigin, detail))
    }

    /// Whether nobody but the server answers to a name. Names without a dot are not those of sites: they are of this machine, of a container, of
    /// a local network.
    fn is_own(&self, authority: &str) -> bool {
        let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) => return address.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || port.starts_with(':')),
            None => authority.split_once(':').map_or(authority, |(host, _)| host),
        };
        if host.parse::<Ipv4Addr>().is_ok() {
            return true;
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        !host.contains('.') || host.ends_with(".localhost") || self.names.contains(&host)
    }

    /// Whether no page asks, or one of this server, or one that may.
    fn is_at_home(&self, cors: &Cors, authority: Option<&str>, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return true };
        let own = || {
            let (scheme, host) = origin.to_str().ok()?.split_once("://")?;
            // What stands in front of a server that does not encrypt may do so.
            Some((scheme == "https" || !self.encrypted) && host.eq_ignore_ascii_case(authority?))
        };
        cors.allowed(headers).is_some() || own().unwrap_or(false)
    }
}

/// Host and port that a request was sent to, as the client calls them; what is no text is no name.
fn authority<B>(request: &Request<B>) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("?.")),
    }
}

/// Whether a path is answered to everybody, also where keys are needed.
fn is_everybodys(path: &str) -> bool {
    ROUTES.iter().any(|(_, known, needs)| *needs == Needs::Nothing && *known == path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told(site: &Site, method: &str, path: &str, headers: &[(&str, &str)]) -> Option<&'static str> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let cors = Cors::new(&["https://friend.example".to_owned()]);
        site.refusal(&cors, &request.body(()).unwrap()).map(|refusal| refusal.told().1)
    }

    #[test]
    fn a_server_answers_to_its_own_names_alone() {
        let site = Site { encrypted: false, names: vec!["lsqd.example.com".to_owned()] };
        for host in [
            "127.0.0.1:8080",
            "10.1.2.3",
            "[::1]:8080",
            "[fe80::1]",
            "localhost:8080",
            "LOCALHOST",
            "localhost.:80",
            "a.localhost:1",
            "lsqd:8080",
            "LSQD.example.com:443",
            "lsqd.example.com.",
        ] {
            assert_eq!(told(&site, "GET", "/v1/models", &[("host", host)]), None, "{host}");
        }
        let unknown = Some("unknown_host");
        for host in ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "xlsqd.example.com", "[::1].evil.example", "1.2.3.4.5"]
        {
            assert_eq!(told(&site, "GET", "/v1/models", &[("host", host)]), unknown, "{host}");
            assert_eq!(told(&site, "GET", "/readyz", &[("host", host)]), None, "{host}");
        }
        assert_eq!(told(&site, "GET", "http://evil.example/v1/models", &[("host", "localhost")]), unknown);
        assert_eq!(told(&site, "GET", "/v1/models", &[]), None);
    }

    #[test]
    fn pages_of_other_sites_change_nothing() {
        let site = Site::default();
        let here = ("host", "localhost:8080");
        for (origin, welcome) in [
            ("http://localhost:8080", true),
            ("https://localhost:8080", true),
            ("http://LOCALHOST:8080", true),
            ("https://friend.example", true),
            ("http://localhost:8081", false),
            ("http://127.0.0.1:8080", false),
            ("https://elsewhere.example", false),
            ("null", false),
            ("", false),
        ] {
            for method in ["PUT", "POST", "DELETE", "PATCH"] {
                let wanted = (!welcome).then_some("foreign_origin");
                assert_eq!(told(&site, method, "/v1/models/m/fits", &[here, ("origin", origin)]), wanted, "{method} {origin}");
            }
            for method in ["GET", "HEAD", "OPTIONS"] {
                assert_eq!(told(&site, method, "/v1/models", &[here, ("origin", origin)]), None, "{method} {origin}");
            }
        }
        let encrypted = Site { encrypted: true, ..site };
        let of = |origin| told(&encrypted, "POST", "/v1/models/m/predict", &[here, ("origin", origin)]);
        assert_eq!(of("https://localhost:8080"), None);
        assert_eq!(of("http://localhost:8080"), Some("foreign_origin"), "whoever is on the way could have written that page");
    }
}
