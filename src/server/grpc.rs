//! Connections that speak gRPC, on an address of their own: HTTP/2, on which many calls are under way at the same time.
//!
//! What holds a connection of HTTP/1 to its limits does not fit here: bytes that come and go say nothing, since pings are bytes, and a client
//! takes a reply by opening a window and not by reading the socket. So each connection is watched by its calls: bytes come within
//! `header_timeout`, and where connections are encrypted a handshake ends within as much again; a connection without a call for `idle_timeout`
//! is asked to go, and cut if it does not; the message of a call never pauses for more than `body_timeout` (the handler sees
//! [`super::BodyTimeout`]); and no reply waits for longer than `answer_timeout` until the client takes some of it, or the
//! connection is cut with all its calls. What a call means is not known here: that is `http`.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::connections::{HEADER_LIMIT, Open, accept};
use super::guard::{Arriving, Limits};
use super::tls::{Speaks, Tls};
use crate::config::Config;

/// Calls of a connection that are answered at the same time.
const CALLS: u32 = 128;
/// Bytes of a reply that are handed on at once, when the client has room for some.
const PIECE: usize = 64 << 10;

/// Accepts connections until it is told to end.
#[derive(Debug)]
pub(super) struct Calling {
    end: watch::Sender<()>,
    task: JoinHandle<JoinSet<()>>,
}

impl Calling {
    pub(super) fn start(config: &Config, listener: TcpListener, router: Router, tls: Option<Arc<Tls>>) -> Self {
        let limits = Limits::of(config);
        let slots = Arc::new(Semaphore::new(config.max_connections));
        let (end, mut ended) = watch::channel(());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    biased;
                    _ = ended.changed() => return connections,
                    Some(outcome) = connections.join_next() => {
                        if let Err(error) = outcome {
                            tracing::error!(%error, "a connection's task panicked");
                        }
                    }
                    (stream, permit) = accept(&listener, &slots) => {
                        let (router, tls, ended) = (router.clone(), tls.clone(), ended.clone());
                        connections.spawn(async move {
                            let _open = Open::new(permit, Arc::default());
                            serve(stream, router, tls, limits, ended).await;
                        });
                    }
                }
            }
        });
        Self { end, task }
    }

    /// Refuses connections and calls from now on, and lets those that are under way end, for at most `timeout`; then cuts them.
    pub(super) async fn drain(self, timeout: Duration) {
        self.end.send_replace(());
        let Ok(mut connections) = self.task.await else { return };
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(timeout, all).await.is_err() {
            tracing::warn!(seconds = timeout.as_secs_f64(), "some calls did not end in time and were cut");
        }
        connections.shutdown().await;
    }
}

/// Serves a connection to its end.
async fn serve(stream: TcpStream, router: Router, tls: Option<Arc<Tls>>, limits: Limits, mut ended: watch::Receiver<()>) {
    // Answers are small and latency is the product: never wait for a full packet.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was not taken");
    }
    // The client speaks first. Who says nothing is not an idle client but no client.
    if !matches!(tokio::time::timeout(limits.header, stream.peek(&mut [0])).await, Ok(Ok(1..))) {
        return;
    }
    let Some(tls) = tls else { return hold(stream, router, limits, ended).await };
    let agreed = tokio::select! {
        biased;
        agreed = tls.accept(Speaks::Http2, stream, limits.header) => agreed,
        _ = ended.changed() => return,
    };
    match agreed {
        Ok(stream) => hold(stream, router, limits, ended).await,
        Err(error) => tracing::debug!(%error, "a connection ended early"),
    }
}

/// Answers the calls that come over `stream`.
async fn hold<S>(stream: S, router: Router, limits: Limits, mut ended: watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let calls = Arc::new(Calls::default());
    let watched = calls.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let call = Call::begin(&watched);
        let request = request.map(|body| Body::new(Arriving::new(body, Arc::default(), limits)));
        let answer = router.clone().oneshot(request);
        async move { answer.await.map(|response: Response<Body>| response.map(|body| Leaving::new(body, call))) }
    });
    let mut protocol = http2::Builder::new(TokioExecutor::new());
    protocol.timer(TokioTimer::new()).max_concurrent_streams(CALLS).max_header_list_size(HEADER_LIMIT as u32);
    let mut connection = pin!(protocol.serve_connection(TokioIo::new(stream), service));
    let (mut asked_to_go, mut next) = (None, Instant::now() + limits.idle);
    loop {
        tokio::select! {
            biased;
            outcome = &mut connection => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "a connection ended early");
                }
                return;
            }
            _ = ended.changed(), if asked_to_go.is_none() => {
                connection.as_mut().graceful_shutdown();
                asked_to_go = Some(Instant::now());
            }
            () = tokio::time::sleep_until(next) => next = match calls.standing(limits, Instant::now()) {
                Standing::Well(until) => until,
                Standing::Idle => match asked_to_go {
                    None => {
                        connection.as_mut().graceful_shutdown();
                        *asked_to_go.insert(Instant::now()) + limits.header
                    }
                    Some(_) => return,
                },
                Standing::Stuck => {
                    tracing::debug!("a reply was not taken in time");
                    return;
                }
            },
        }
    }
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing is overdue before that.
    Well(Instant),
    /// There was no call for too long.
    Idle,
    /// A reply waits for too long.
    Stuck,
}

/// The calls of a connection.
#[derive(Debug, Default)]
struct Calls(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    /// How many there ever were.
    begun: u64,
    open: usize,
    /// Since when there is none.
    idle: Option<Instant>,
    /// Replies by the number of their call: since when the client has taken nothing of it.
    leaving: BTreeMap<u64, Instant>,
}

impl Calls {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self, limits: Limits, now: Instant) -> Standing {
        let book = self.book();
        if let Some(since) = book.leaving.values().min() {
            let due = *since + limits.answer;
            return if due <= now { Standing::Stuck } else { Standing::Well(due) };
        }
        if book.open > 0 {
            // Whatever begins to wait in the meantime is not due before then.
            return Standing::Well(now + limits.answer.min(limits.idle));
        }
        // Where nothing was ever called, the connection has been open for as long as an idle one may be, or it would not be looked at.
        let due = book.idle.map(|since| since + limits.idle);
        due.filter(|due| *due > now).map_or(Standing::Idle, Standing::Well)
    }
}

/// A call that is under way; over when dropped.
#[derive(Debug)]
struct Call {
    calls: Arc<Calls>,
    number: u64,
}

impl Call {
    fn begin(calls: &Arc<Calls>) -> Self {
        let mut book = calls.book();
        book.begun += 1;
        book.open += 1;
        book.idle = None;
        Self { calls: calls.clone(), number: book.begun }
    }

    /// The client has taken all that there was of the reply so far.
    fn waits(&self) {
        self.calls.book().leaving.insert(self.number, Instant::now());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut book = self.calls.book();
        book.leaving.remove(&self.number);
        book.open -= 1;
        if book.open == 0 {
            book.idle = Some(Instant::now());
        }
    }
}

/// A reply, in pieces: the next is asked for when the client has room for some of it.
struct Leaving {
    body: Body,
    piece: Bytes,
    call: Call,
}

impl Leaving {
    fn new(body: Body, call: Call) -> Self {
        call.waits();
        Self { body, piece: Bytes::new(), call }
    }
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if this.piece.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.piece = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        this.call.waits();
        Poll::Ready(Some(Ok(Frame::data(this.piece.split_to(this.piece.len().min(PIECE))))))
    }

    fn is_end_stream(&self) -> bool {
        self.piece.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let held = self.piece.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + held);
        }
        hint.set_lower(hint.lower() + held);
        hint
    }
}
