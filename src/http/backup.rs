//! `POST /v1/backup`: the database of one moment, as a file.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::StreamExt as _;
use tokio_util::io::ReaderStream;

use super::App;
use super::error::ApiError;
use crate::service::backup::Backup;

/// Bytes that are read from the file at once.
const PIECE: usize = 256 << 10;

pub(super) async fn create(State(app): State<App>) -> Result<Response, ApiError> {
    let Backup { file, bytes, label, only } = app.service.backup().await?;
    let name = format!("attachment; filename=\"lsqd-{}.db\"", label.made_at.replace(':', ""));
    let pieces = ReaderStream::with_capacity(tokio::fs::File::from_std(file), PIECE).map(move |piece| {
        // Held until the last piece, or until nobody wants any more.
        let _held = &only;
        piece
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.sqlite3"));
    // Who is cut off on the way can tell.
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(name) = HeaderValue::from_str(&name) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}
