//! What one connection is held to.
//!
//! `axum::serve` sets no timers, so a client that sends a byte an hour would hold a connection for good. Here each connection is held to
//! four limits: the first byte of a request comes within `idle_timeout`, its header ends within `header_timeout` of that, its body never
//! pauses for more than `body_timeout` (the handler sees [`BodyTimeout`] and answers 408), and the client takes the response without a
//! pause of more than `answer_timeout`. Where connections are encrypted, all of this is about
//! encrypted bytes, and the handshake has `header_timeout` for itself.
//!
//! A byte now and then is no pause, and would hold a connection for good as well. So what moves more slowly than `min_body_rate` uses up its
//! time: what was waited for counts, and every byte gives back what it may take. Streams of rows are let off this, since they may have
//! nothing to say for long (`http` knows which these are).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::config::Config;

/// How long a client that is still sending, though its request was answered, is listened to, so that it gets to read the answer: closing
/// a socket with unread bytes resets the connection, and the answer is lost with it.
const LINGER: Duration = Duration::from_secs(2);

/// Bytes of a body that nobody wants which are there already as a rule, since they came with the header: hyper reads once, and goes on with the
/// connection if that was the rest of it.
const PASSED_OVER: u64 = 4 << 10;

/// A request's body did not go on arriving in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the body did not go on arriving in time")]
pub struct BodyTimeout;

/// The timeouts of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) idle: Duration,
    pub(super) header: Duration,
    pub(super) body: Duration,
    pub(super) answer: Duration,
    /// Bytes a second below which a body or an answer uses up its time; 0 is any.
    pub(super) rate: u64,
}

impl Limits {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            idle: config.idle_timeout,
            header: config.header_timeout,
            body: config.body_timeout,
            answer: config.answer_timeout,
            rate: config.min_body_rate,
        }
    }
}

/// How far a connection is; shared by its socket, its request's body and its response's body.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Requests whose header was read.
    begun: AtomicU64,
    /// Whether one of them is being answered.
    answering: AtomicBool,
    /// Whether a request's body was given up before its end.
    unread: AtomicBool,
    /// Whether more was left of it than is passed over on the way to the next request.
    parting: AtomicBool,
    /// Whether all connections are to end.
    ending: AtomicBool,
}

impl Progress {
    /// Whether the connection ends with the answer, of which the client is told: it would send its next request into a closed one.
    pub(super) fn is_parting(&self) -> bool {
        self.parting.load(Ordering::Relaxed) || self.ending.load(Ordering::Relaxed)
    }

    /// The connection ends with the next answer.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }
}

/// One request and its response; over when dropped.
pub(super) struct Exchange(Arc<Progress>);

impl Exchange {
    pub(super) fn begin(progress: &Arc<Progress>) -> Self {
        progress.begun.fetch_add(1, Ordering::Relaxed);
        progress.unread.store(false, Ordering::Relaxed);
        progress.parting.store(false, Ordering::Relaxed);
        progress.answering.store(true, Ordering::Relaxed);
        Self(progress.clone())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.answering.store(false, Ordering::Relaxed);
    }
}

/// A timer that runs while something is waited for.
///
/// Waits are many and short, and hardly any comes to its end: so the system's timer is left standing when a wait is over, and set anew only
/// when it goes off, or when the next wait ends before that.
#[derive(Debug, Default)]
struct Patience {
    /// Since when there is a wait.
    since: Option<Instant>,
    /// What earlier waits have used up of the limit.
    spent: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// Ready when the wait, begun by the first of these calls, has taken what is left of `limit`.
    fn poll(&mut self, limit: Duration, context: &mut Context<'_>) -> Poll<()> {
        let due = *self.since.get_or_insert_with(Instant::now) + limit.saturating_sub(self.spent);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if due < timer.deadline() {
            timer.as_mut().reset(due);
        }
        loop {
            ready!(timer.as_mut().poll(context));
            if due <= timer.deadline() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }

    /// What was waited for is here, and with it the whole of the limit again.
    fn reset(&mut self) {
        (self.since, self.spent) = (None, Duration::ZERO);
    }

    /// The wait is over: so many bytes have moved, of what should be `rate` a second at least.
    fn moved(&mut self, bytes: usize, rate: u64) {
        self.grant(bytes, rate);
        self.since = None;
    }

    /// Gives back time for so many bytes, to a wait that goes on.
    fn grant(&mut self, bytes: usize, rate: u64) {
        let waited = self.since.as_mut().map_or(Duration::ZERO, |since| {
            let now = Instant::now();
            now - std::mem::replace(since, now)
        });
        // Without a minimum, a byte is as good as many.
        let granted = (bytes as u64).saturating_mul(1_000_000).checked_div(rate).map_or(Duration::MAX, Duration::from_micros);
        self.spent = (self.spent + waited).saturating_sub(granted);
    }
}

/// A request's body that fails with [`BodyTimeout`] when it stops arriving, or trickles. The time runs only while the handler waits for bytes.
#[derive(Debug)]
pub struct Arriving {
    body: Incoming,
    progress: Arc<Progress>,
    limit: Duration,
    rate: u64,
    patience: Patience,
    ended: bool,
}

impl Arriving {
    pub(super) fn new(body: Incoming, progress: Arc<Progress>, limits: Limits) -> Self {
        Self { body, progress, limit: limits.body, rate: limits.rate, patience: Patience::default(), ended: false }
    }

    /// Lets it arrive as slowly as its sender likes, as long as it does not pause.
    pub(crate) fn at_any_rate(&mut self) {
        self.rate = 0;
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(frame) => {
                let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
                this.patience.moved(bytes, this.rate);
                this.ended = frame.is_none();
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                ready!(this.patience.poll(this.limit, context));
                Poll::Ready(Some(Err(BodyTimeout.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if !self.ended && !self.body.is_end_stream() {
            self.progress.unread.store(true, Ordering::Relaxed);
            let parting = self.body.size_hint().exact().is_none_or(|left| left > PASSED_OVER);
            self.progress.parting.store(parting, Ordering::Relaxed);
        }
    }
}

/// A response's body; when it is gone, the connection is between two requests again.
pub(super) struct Leaving {
    pub(super) body: Body,
    pub(super) _exchange: Exchange,
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that fails when the other side takes too long: to begin a request, to end its header, or to take a response.
#[derive(Debug)]
pub(super) struct Guarded {
    socket: TcpStream,
    progress: Arc<Progress>,
    limits: Limits,
    /// Requests that were begun when the timers were last set.
    begun: u64,
    /// Whether the next request has begun to arrive. A new connection owes a request at once.
    header_begun: bool,
    reading: Patience,
    writing: Patience,
    lingering: Patience,
    /// Whether our side of the connection is closed.
    closed: bool,
}

impl Guarded {
    pub(super) fn new(socket: TcpStream, progress: Arc<Progress>, limits: Limits) -> Self {
        Self {
            socket,
            progress,
            limits,
            begun: 0,
            header_begun: true,
            reading: Patience::default(),
            writing: Patience::default(),
            lingering: Patience::default(),
            closed: false,
        }
    }

    /// The client and the server have agreed on how the connection is encrypted, and the first request has all its time.
    pub(super) fn agreed(&mut self) {
        self.reading.reset();
    }

    fn written(&mut self, outcome: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(outcome) => {
                self.writing.moved(outcome.as_ref().copied().unwrap_or_default(), self.limits.rate);
                if !self.header_begun {
                    // The end of a response is still being taken; only then the wait for the next request begins. It begins here, because the
                    // socket may not be looked at before something arrives.
                    self.reading.reset();
                    if !self.progress.answering.load(Ordering::Relaxed) {
                        let _ = self.reading.poll(self.limits.idle, context);
                    }
                }
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                ready!(self.writing.poll(self.limits.answer, context));
                Poll::Ready(Err(timed_out("the response was not taken in time")))
            }
        }
    }
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let begun = this.progress.begun.load(Ordering::Relaxed);
        if begun != this.begun {
            this.begun = begun;
            this.header_begun = false;
            this.reading.reset();
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut this.socket).poll_read(context, buffer);
        let arrived = buffer.filled().len() - before;
        if arrived > 0 {
            // Many send everything before they read: whoever is at the one is not late with the other.
            this.writing.grant(arrived, this.limits.rate);
        }
        if this.progress.answering.load(Ordering::Relaxed) {
            // A request's body: its own time runs where it is waited for.
            return outcome;
        }
        match outcome {
            Poll::Ready(outcome) => {
                if arrived > 0 && !this.header_begun {
                    this.header_begun = true;
                    this.reading.reset();
                }
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                let (limit, what) = if this.header_begun {
                    (this.limits.header, "the header of a request did not arrive in time")
                } else {
                    (this.limits.idle, "the connection was idle")
                };
                ready!(this.reading.poll(limit, context));
                Poll::Ready(Err(timed_out(what)))
            }
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.socket).poll_write(context, bytes);
        this.written(outcome, context)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, pieces: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.socket).poll_write_vectored(context, pieces);
        this.written(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed {
            ready!(Pin::new(&mut this.socket).poll_shutdown(context))?;
            this.closed = true;
        }
        if !this.progress.unread.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        // The timer first: a fast sender would otherwise leave it no turn.
        if this.lingering.poll(LINGER, context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut scratch = [0; 16 << 10];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            // Whatever ends the reading ends the waiting; there is nobody to tell.
            match ready!(Pin::new(&mut this.socket).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
