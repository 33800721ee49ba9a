//! `POST /v1/models/{name}/predict` with a body of any length: answered in kind while it arrives. Not here: questions that are held in memory.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;

use super::answers::Writer;
use super::error::ApiError;
use super::middleware::RequestId;
use super::packed::streamed;
use super::predict::{Asked, Dialect, something, stamp};
use super::updates::CLOSE;
use super::{App, extract};
use crate::frame::Lines;
use crate::service::{Answers, Broken, Caller, Form};

/// A body longer than this is a stream.
const STREAMED: u64 = 256 * 1024;
/// How long the head of the reply waits for the first answers, so that what is wrong with the first rows has a status.
const HEAD_WAIT: Duration = Duration::from_millis(250);
/// Bytes of answers that wait for a client which sends all before it reads, as many do. Those to a body that would have been held in
/// memory whole may all wait.
const AHEAD: usize = 16 << 20;
/// How long the connection stays whole after the line that says what went wrong, so that it gets out: there may be megabytes of answers before
/// it, which a client on a busy machine takes its time to read.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whether a question is answered while it arrives. Rows that are to be remembered are few.
pub(super) fn is_stream(dialect: Dialect, asked: &Asked, body: &Body) -> bool {
    dialect != Dialect::Json && !asked.remember && body.size_hint().exact().is_none_or(|length| length > STREAMED)
}

pub(super) async fn stream(
    app: App,
    name: String,
    dialect: Dialect,
    asked: Asked,
    id: RequestId,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let Asked { mut question, mut wanted, at, key, .. } = asked;
    let caller = Caller { key: key.as_deref(), header: &extract::header_of(&headers) };
    let mut answerer = app.service.answerer(&name, caller).await?;
    wanted.meet(&mut question, &answerer.version.document);
    something(wanted)?;
    if let Some(sequence) = at {
        answerer = app.service.answerer_at(answerer, sequence).await?;
    }
    let (number, sequence, arm) = (answerer.version.number, answerer.sequence(), answerer.arm());
    let writer = Arc::new(Writer::new(dialect, answerer.version.clone(), sequence, wanted, false)?);
    let form = match dialect {
        Dialect::Csv => Form::Lines(Lines::Records),
        Dialect::Arrow => Form::Arrow(app.body_limit),
        Dialect::Ndjson | Dialect::Json => Form::Lines(Lines::Plain),
    };
    let length = body.size_hint().exact();
    let ahead = if length.is_some_and(|length| length <= app.body_limit as u64) { usize::MAX } else { AHEAD };
    let writing = writer.clone();
    let write = move |answer: &_, out: &mut _| writing.rows(out, answer, None);
    let mut told = app.service.predict_stream(answerer, question, form, extract::stream(body), ahead, write).fuse();

    // Who sends a body of known length does not wait for the head of the reply, and who waits to be told to continue would not be told any
    // more once it is out; who sends piece by piece may be waiting for it.
    let waits = length.is_some() || headers.contains_key(header::EXPECT);
    let first = if waits { told.next().await } else { tokio::time::timeout(HEAD_WAIT, told.next()).await.unwrap_or(None) };
    if let Some(Err(broken)) = first {
        let mut response = ApiError::from(broken.error).into_response();
        response.headers_mut().insert(header::CONNECTION, CLOSE);
        return Ok(response);
    }
    let mut head = Vec::new();
    writer.head(&mut head);
    if let Some(Ok(bytes)) = &first {
        head.extend_from_slice(bytes);
    }
    let reply = Reply { told: Box::pin(told), head: head.into(), dialect, end: writer.end(), id, stage: Stage::Head };
    let pieces = futures_util::stream::unfold(reply, async |mut reply| reply.next().await.map(|piece| (piece, reply)));
    let mut response = Response::new(streamed(pieces.filter(|piece| std::future::ready(!matches!(piece, Ok(piece) if piece.is_empty())))));
    response.headers_mut().insert(header::CONTENT_TYPE, dialect.media());
    response.headers_mut().insert(header::CONNECTION, CLOSE);
    stamp(&mut response, number, sequence);
    extract::name_arm(response.headers_mut(), arm.as_deref());
    Ok(response)
}

/// The connection is cut, so that nobody takes a part of the answers for all of them.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the answers to a stream broke off")]
struct Cut;

/// The body of a reply, piece by piece.
struct Reply {
    told: Answers,
    head: Bytes,
    dialect: Dialect,
    end: &'static [u8],
    id: RequestId,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Head,
    Answers,
    /// What went wrong is said.
    Broken,
    Over,
}

impl Reply {
    async fn next(&mut self) -> Option<Result<Bytes, Cut>> {
        match self.stage {
            Stage::Head => {
                self.stage = Stage::Answers;
                Some(Ok(std::mem::take(&mut self.head)))
            }
            Stage::Answers => match self.told.next().await {
                Some(Ok(bytes)) => Some(Ok(bytes)),
                Some(Err(broken)) => {
                    let line = self.last_line(broken);
                    // Lines of JSON can say what went wrong, and the reply ends there. CSV cannot, so that the connection has to; what is
                    // said all the same is for who looks. An Arrow stream has no place for it at all.
                    self.stage = if self.dialect == Dialect::Ndjson { Stage::Over } else { Stage::Broken };
                    Some(Ok(if self.dialect == Dialect::Arrow { Bytes::new() } else { line }))
                }
                None => {
                    self.stage = Stage::Over;
                    Some(Ok(Bytes::from_static(self.end)))
                }
            },
            Stage::Broken => {
                self.stage = Stage::Over;
                tokio::time::sleep(FAREWELL).await;
                Some(Err(Cut))
            }
            Stage::Over => None,
        }
    }

    /// The line that says why the stream ended before its time.
    fn last_line(&self, broken: Broken) -> Bytes {
        let error = ApiError::from(broken.error);
        let id = self.id.as_str();
        error.log(id);
        // A struct of strings and numbers always encodes.
        let problem = serde_json::to_string(&error.problem(id)).unwrap_or_default();
        tracing::info!(target: "lsqd::http", request_id = id, problem, "a stream broke off");
        let last = broken.last.map_or_else(|| "null".to_owned(), |line| line.to_string());
        format!("{{\"error\":{problem},\"first_line\":{},\"last_line\":{last}}}\n", broken.first).into()
    }
}
