//! Headers that every reply carries for the sake of browsers: an answer is what its type says, is no page to be framed, loads nothing, and
//! where somebody came from is told to nobody. A reply that says one of them itself, as a page must, keeps its own.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

const FOR_BROWSERS: [(HeaderName, HeaderValue); 3] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
];

/// Adds those that the reply does not say itself.
pub(super) fn add(headers: &mut HeaderMap) {
    for (name, value) in FOR_BROWSERS {
        headers.entry(name).or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_keeps_the_policy_of_its_own() {
        let own = HeaderValue::from_static("default-src 'self'");
        let mut headers = HeaderMap::from_iter([(header::CONTENT_SECURITY_POLICY, own.clone())]);
        add(&mut headers);
        assert_eq!(headers.get_all(header::CONTENT_SECURITY_POLICY).iter().collect::<Vec<_>>(), [&own]);
        assert_eq!(headers.len(), FOR_BROWSERS.len());
    }
}
