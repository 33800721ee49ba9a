//! What handlers take from a request beside its path: bodies, paging, tags, preferences, keys.

use std::pin::pin;
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use bytes::BytesMut;
use futures_util::{Stream, StreamExt as _};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use super::access::Ended;
use super::error::{ApiError, Code};
use super::packed::Refused;
use crate::frame::Fault;
use crate::server::BodyTimeout;
use crate::service::{Fingerprint, Holder, IdempotencyKey, ServiceError};

/// Bodies of more bytes leave the threads that serve connections, and take long enough for their key to be revoked meanwhile.
pub(super) const LARGE: usize = 64 * 1024;
/// Pieces of a body that are shorter are copied, and longer ones kept as they came.
const SMALL: usize = 1024;
/// Longest wait that `Prefer: wait=N` may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// The wait when nothing is asked for.
const USUAL_WAIT: Duration = Duration::from_secs(5);

/// A whole body of at most `limit` bytes.
pub(super) async fn whole<B>(body: B, limit: usize) -> Result<Bytes, ApiError>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>>,
{
    let too_large = || ApiError::new(Code::PayloadTooLarge, format!("the body is larger than {limit} bytes"));
    let mut body = pin!(body);
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let mut first = Bytes::new();
    let (mut rest, mut tail, mut length) = (Vec::new(), BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| body_error(error.into().as_ref()))?;
        let Ok(piece) = frame.into_data() else { continue };
        length += piece.len();
        if length > limit {
            return Err(too_large());
        }
        if !first.is_empty() {
            // Put together at the end only, in memory that has its size: most bodies that are too long never get there. But chunks of a byte
            // would take many times their length each.
            if piece.len() < SMALL {
                tail.extend_from_slice(&piece);
            }
            if !tail.is_empty() && (tail.len() >= LARGE || piece.len() >= SMALL) {
                rest.push(tail.split().freeze());
            }
            if piece.len() >= SMALL {
                rest.push(piece);
            }
            continue;
        }
        first = piece;
        // Mostly that is all of it, and nothing has to be copied.
        if body.is_end_stream() {
            break;
        }
    }
    if first.len() == length {
        return Ok(first);
    }
    rest.push(tail.freeze());
    let mut all = Vec::with_capacity(length);
    all.extend_from_slice(&first);
    rest.iter().for_each(|piece| all.extend_from_slice(piece));
    Ok(all.into())
}

/// A body as a stream.
pub(super) fn stream(body: Body) -> impl Stream<Item = Result<Bytes, ServiceError>> + Unpin {
    body.into_data_stream().map(|piece| piece.map_err(|error| body_error(&error)))
}

/// Why a body stopped: a timeout or a limit of ours, or the other end.
fn body_error(error: &(dyn std::error::Error + 'static)) -> ServiceError {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<BodyTimeout>() {
            return ServiceError::BodyTimeout;
        }
        if error.is::<Ended>() {
            return ServiceError::KeyEnded;
        }
        match error.downcast_ref::<Refused>() {
            Some(Refused::Malformed) => {
                return ServiceError::Syntax(Fault { pointer: String::new(), detail: Refused::Malformed.to_string() });
            }
            Some(refused) => return ServiceError::TooLarge(refused.to_string()),
            None => {}
        }
        // What an error of a reader holds is not its source, but that one's source is.
        cause = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    ServiceError::BodyCut
}

/// The media type of a header, without parameters, in lower case.
pub(super) fn media_type(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    let media = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    (!media.is_empty()).then_some(media)
}

/// Whether `Accept` asks for `wanted` before JSON.
pub(super) fn accepts(headers: &HeaderMap, wanted: &str) -> bool {
    let Some(text) = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()) else { return false };
    for entry in text.split(',') {
        let media = entry.split(';').next().unwrap_or_default().trim();
        if media.eq_ignore_ascii_case(wanted) {
            return true;
        }
        if media.eq_ignore_ascii_case("application/json") || media == "*/*" {
            return false;
        }
    }
    false
}

/// The parameters of the path. Axum's own extractor refuses in plain text; this one with a problem.
#[derive(Debug)]
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(parameters)) => Ok(Self(parameters)),
            Err(_) => Err(ApiError::new(Code::BadSyntax, "the address is not UTF-8")),
        }
    }
}

/// `?limit=&after=`.
#[derive(Debug)]
pub(super) struct Page {
    /// At least 1, at most 1000, usually 100.
    pub(super) limit: u32,
    /// Empty for the first page.
    pub(super) after: String,
}

impl Page {
    /// Cuts what was read, one item more than the page holds, to the page; its `next`, if there is more.
    pub(super) fn cut<T>(&self, items: &mut Vec<T>, next: impl FnOnce(&T) -> String) -> Option<String> {
        let more = items.len() > self.limit as usize;
        items.truncate(self.limit as usize);
        if more { items.last().map(next) } else { None }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Page {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let Query(pairs) =
            Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map_err(|_| ServiceError::request("", "the query cannot be read"))?;
        let mut page = Self { limit: 100, after: String::new() };
        let mut faults = Vec::new();
        for (name, value) in pairs {
            match (name.as_str(), value.parse::<u32>()) {
                ("limit", Ok(limit @ 1..=1000)) => page.limit = limit,
                ("limit", _) => faults.push(Fault { pointer: "/limit".to_owned(), detail: "`limit` is from 1 to 1000".to_owned() }),
                ("after", _) => page.after = value,
                _ => {
                    let detail = "there is no such parameter; there are `limit` and `after`".to_owned();
                    faults.push(Fault { pointer: format!("/{}", crate::frame::escaped(&name)), detail });
                }
            }
        }
        super::wire::refuse(Code::InvalidRequest, faults)?;
        Ok(page)
    }
}

/// The names and values of a query.
pub(super) fn pairs(query: Option<&str>) -> Result<Vec<(String, String)>, ApiError> {
    let uri = axum::http::Uri::builder().path_and_query(format!("/?{}", query.unwrap_or_default())).build();
    let unreadable = || ServiceError::request("", "the query cannot be read");
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&uri.map_err(|_| unreadable())?).map_err(|_| unreadable())?;
    Ok(pairs)
}

/// The tags of `If-Match`; `None` without the header.
pub(super) fn if_match(headers: &HeaderMap) -> Option<Vec<String>> {
    let mut tags = Vec::new();
    let mut found = false;
    for value in headers.get_all(header::IF_MATCH) {
        found = true;
        tags.extend(value.to_str().unwrap_or_default().split(',').map(|tag| tag.trim().trim_matches('"').to_owned()));
    }
    found.then_some(tags)
}

/// A strong ETag.
pub(super) fn etag(tag: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{tag}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// How long a fit may be waited for: `Prefer: wait=N`, `respond-async`.
pub(super) fn wait(headers: &HeaderMap) -> Duration {
    let mut wait = USUAL_WAIT;
    for value in headers.get_all("prefer") {
        for preference in value.to_str().unwrap_or_default().split(',') {
            let preference = preference.trim();
            if preference.eq_ignore_ascii_case("respond-async") {
                return Duration::ZERO;
            }
            if let Some(seconds) = preference.strip_prefix("wait=").and_then(|seconds| seconds.trim().parse::<u64>().ok()) {
                wait = Duration::from_secs(seconds).min(LONGEST_WAIT);
            }
        }
    }
    wait
}

/// The `Idempotency-Key`, with a fingerprint that begins with the route. It is the holder's own: what another one sent under the same is
/// neither answered nor in the way.
pub(super) fn idempotency(holder: &Holder, headers: &HeaderMap, route: &[&str]) -> Result<Option<(String, Fingerprint)>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=255).contains(&key.len()) => {
            // No header has a line end in it, so that nobody sends what another one's key is kept under.
            let own = holder.id().map_or_else(|| key.to_owned(), |id| format!("{id}\n{key}"));
            Ok(Some((own, Fingerprint::new(route))))
        }
        _ => Err(ServiceError::Request(vec![Fault {
            pointer: "/Idempotency-Key".to_owned(),
            detail: "an Idempotency-Key has 1 to 255 printable ASCII characters".to_owned(),
        }])
        .into()),
    }
}

/// A whole body of at most `limit` bytes, and the `Idempotency-Key` with the fingerprint of the route and of that body.
pub(super) async fn keyed_body<B>(
    holder: &Holder,
    headers: &HeaderMap,
    body: B,
    limit: usize,
    route: &[&str],
) -> Result<(Bytes, Option<IdempotencyKey>), ApiError>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>>,
{
    let body = whole(body, limit).await?;
    let key = idempotency(holder, headers, route)?.map(|(key, mut fingerprint)| {
        fingerprint.add(&body);
        fingerprint.key(&key)
    });
    Ok((body, key))
}

/// A value of a query, its percent signs and pluses undone.
pub(super) fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |place: usize| after.get(place).and_then(|byte| char::from(*byte).to_digit(16));
        rest = after;
        match (byte, digit(0), digit(1)) {
            #[allow(clippy::cast_possible_truncation)] // two hexadecimal digits
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    bytes
}

/// By what a split of traffic knows the caller again: a key of the request's own, or a header.
pub(super) fn header_of(headers: &HeaderMap) -> impl Fn(&str) -> Option<Vec<u8>> + Sync + '_ {
    |name| headers.get(name).map(|value| value.as_bytes().to_vec())
}

/// The arm of a split that answered, as a header.
pub(super) fn name_arm(headers: &mut HeaderMap, arm: Option<&str>) {
    if let Some(arm) = arm
        && let Ok(value) = HeaderValue::from_str(&super::models::path_segment(arm))
    {
        headers.insert("lsqd-arm", value);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_body_is_what_came_in_whatever_pieces() {
        let all: Vec<u8> = (0..300_000_u32).map(|place| (place % 251) as u8).collect();
        let cuts: [&[usize]; 6] = [&[300_000], &[1], &[1, 5000], &[1023, 1024, 1025], &[70_000, 1, 1, 3000], &[0, 7]];
        for cuts in cuts {
            let mut pieces = Vec::new();
            let mut left = all.as_slice();
            for cut in cuts.iter().cycle() {
                let (piece, rest) = left.split_at((*cut).min(left.len()));
                pieces.push(Bytes::copy_from_slice(piece));
                left = rest;
                if left.is_empty() {
                    break;
                }
            }
            let body = || Body::from_stream(futures_util::stream::iter(pieces.clone().into_iter().map(Ok::<_, std::io::Error>)));
            assert!(whole(body(), all.len()).await.unwrap() == all, "{cuts:?}");
            assert!(whole(body(), all.len() - 1).await.is_err(), "{cuts:?}");
        }
    }

    #[test]
    fn escapes_of_a_query_are_undone() {
        for (text, wanted) in [("user-1", "user-1"), ("a%20b+c%2B", "a b c+"), ("%c3%A9", "\u{e9}"), ("100%", "100%"), ("%zz", "%zz")] {
            assert_eq!(unescaped(text), wanted.as_bytes(), "{text}");
        }
    }
}
