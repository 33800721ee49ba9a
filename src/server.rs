//! The accept loop, and what guards it: timeouts, a limit on connections, an orderly end.
//!
//! `axum::serve` sets no timers, so a client that sends a byte an hour would hold a connection for good. Here each connection is held to
//! four limits: the first byte of a request comes within `idle_timeout`, its header ends within `header_timeout` of that, its body never
//! pauses for more than `body_timeout` (the handler sees [`BodyTimeout`] and answers 408), and the client takes the response without such
//! a pause either. What a request means is not known here: that is `http`. Connections that speak gRPC have limits of their own, in `grpc`.

mod grpc;

use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tower::ServiceExt as _;

use crate::config::{Config, reachable};
use crate::http::{self, App, Cors, PackedLimits, router};
use crate::service::{Closing, Service, ServiceError, Settings};
use crate::telemetry;

/// Largest header of a request.
const HEADER_LIMIT: usize = 64 << 10;
/// How long accepting pauses when the system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long a client that is still sending, though its request was answered, is listened to, so that it gets to read the answer: closing
/// a socket with unread bytes resets the connection, and the answer is lost with it.
const LINGER: Duration = Duration::from_secs(2);
/// How long the database may take to close. Whatever was acknowledged is on disk by then; what is left is housekeeping.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long [`probe`] waits, in all.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A request's body did not go on arriving in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the body did not go on arriving in time")]
pub struct BodyTimeout;

/// Why a server ended otherwise than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The database could not be opened.
    #[error("the database cannot be opened: {0}")]
    Open(#[source] ServiceError),
    /// The models could not be brought back.
    #[error("the models in the database cannot be loaded: {0}")]
    Replay(#[source] ServiceError),
    /// A write or a sync failed; after that nobody can tell what is on disk, so nothing more is acknowledged.
    #[error("the database can no longer be written; the server ended rather than acknowledge what may be lost")]
    Disk,
    /// Others could reach it, and nothing would keep them from anything.
    #[error(
        "{0} can be reached by other machines, and no key was made: whoever reaches it could read, change and delete everything. Make a key \
         first (lsqd key create --scopes admin), or listen on 127.0.0.1:{port}, or, if the network itself keeps strangers out, say so with \
         --insecure (LSQD_INSECURE=true)",
        port = .0.port()
    )]
    Unguarded(SocketAddr),
    /// A fault of our own.
    #[error("{0}")]
    Internal(&'static str),
}

/// The sockets that a server accepts connections on.
#[derive(Debug)]
pub struct Listeners {
    /// For HTTP.
    pub http: TcpListener,
    /// For gRPC, if it is spoken.
    pub grpc: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    fn from(http: TcpListener) -> Self {
        Self { http, grpc: None }
    }
}

/// A server whose database is open, and whose listeners are bound.
#[derive(Debug)]
pub struct Server {
    config: Config,
    listeners: Listeners,
    service: Arc<Service>,
    closing: Closing,
}

impl Server {
    /// Opens the database, making or migrating it if need be. Clients can connect already, and are answered once [`Server::run`] runs.
    ///
    /// # Errors
    /// The database cannot be opened; or other machines can reach the server, nobody needs a key, and the settings do not say that this is
    /// meant.
    pub async fn open(config: Config, listeners: impl Into<Listeners>) -> Result<Self, Failure> {
        telemetry::install();
        let settings = Settings {
            compute_threads: config.compute_threads,
            readers: config.readers,
            fit_queue: config.fit_queue,
            remember_ttl: config.remember_ttl,
            watch_inputs: config.watch_inputs,
        };
        let (service, closing) = Service::open(&config.database, settings).await.map_err(Failure::Open)?;
        let listeners = listeners.into();
        for listener in std::iter::once(&listeners.http).chain(&listeners.grpc) {
            let address = listener.local_addr().map_err(|_| Failure::Internal("the address that is listened on is not known"))?;
            if !config.insecure && service.keyring().is_empty() && !address.ip().to_canonical().is_loopback() {
                drop(service);
                closing.wait().await;
                return Err(Failure::Unguarded(address));
            }
        }
        Ok(Self { config, listeners, service, closing })
    }

    /// Answers until `shutdown` resolves, then lets open requests end and closes the database.
    ///
    /// `/livez` answers from the beginning; `/readyz` and the rest say 503 until every model is loaded and its log replayed.
    ///
    /// # Errors
    /// The models could not be loaded, or the database could no longer be written.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Failure> {
        let Self { config, listeners: Listeners { http: listener, grpc }, service, closing } = self;
        let app = App {
            service: service.clone(),
            body_limit: config.body_limit,
            upload_limit: config.upload_limit,
            packed: PackedLimits { bytes: config.packed_limit, ratio: config.unpack_ratio },
            default_model: config.default_model.as_deref().map(Arc::from),
            cors: Arc::new(Cors::new(&config.cors_origins)),
            metrics: telemetry::render,
        };
        let calling = grpc.map(|listener| grpc::Calling::start(&config, listener, http::grpc(app.clone())));
        let mut connections = Connections::new(&config, router(app));
        let mut background = JoinSet::new();
        background.spawn(telemetry::upkeep());
        let replaying = service.clone();
        let mut replay = tokio::spawn(async move { replaying.replay().await });

        let end = async {
            let mut shutdown = pin!(shutdown);
            let mut failed = pin!(service.until_failed());
            let mut replayed = false;
            loop {
                tokio::select! {
                    biased;
                    () = &mut shutdown => return Ok(()),
                    () = &mut failed => return Err(Failure::Disk),
                    end = &mut replay, if !replayed => match end {
                        Ok(Ok(())) => replayed = true,
                        Ok(Err(error)) => return Err(Failure::Replay(error)),
                        Err(_) => return Err(Failure::Internal("loading the models panicked")),
                    },
                }
            }
        };
        let outcome = connections.accept_until(&listener, end).await;
        match &outcome {
            Ok(()) => tracing::info!("stopping"),
            Err(failure) => tracing::error!(error = %failure, "stopping"),
        }

        // From here on connecting is refused, so that whoever balances the load goes elsewhere at once.
        drop(listener);
        service.stop();
        replay.abort();
        let calls = async {
            if let Some(calling) = calling {
                calling.drain(config.drain_timeout).await;
            }
        };
        tokio::join!(connections.drain(config.drain_timeout), calls);
        background.shutdown().await;
        // What cannot be written by then is the count of some seconds.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, service.write_counts()).await;
        // The writer ends with the last handle on the service; this is ours.
        drop(service);
        if tokio::time::timeout(CLOSE_TIMEOUT, closing.wait()).await.is_err() {
            tracing::warn!("the database was not closed in time; what was acknowledged is on disk, and the next start tidies up");
        }
        if outcome.is_ok() {
            tracing::info!("stopped");
        }
        outcome
    }
}

/// Waits for a free slot, then for a connection. Nothing that happens to a connection or to the system ends the loop.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        // The semaphore is never closed; if it were, there would be nothing to wait for.
        let Ok(permit) = slots.clone().acquire_owned().await else { return std::future::pending().await };
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            // The client had gone before it was its turn.
            Err(error) if is_of_the_client(&error) => tracing::debug!(%error, "a connection was gone before it was accepted"),
            // Out of file descriptors or memory: a new attempt at once would fail as well, and burn a core.
            Err(error) => {
                tracing::error!(%error, "no connection can be accepted; trying again in a second");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused)
}

/// The open connections.
struct Connections {
    slots: Arc<Semaphore>,
    tasks: JoinSet<()>,
    graceful: GracefulShutdown,
    protocol: http1::Builder,
    router: Router,
    limits: Limits,
}

/// The timeouts of a connection.
#[derive(Clone, Copy, Debug)]
struct Limits {
    idle: Duration,
    header: Duration,
    body: Duration,
}

impl Connections {
    fn new(config: &Config, router: Router) -> Self {
        let limits = Limits { idle: config.idle_timeout, header: config.header_timeout, body: config.body_timeout };
        let mut protocol = http1::Builder::new();
        // The protocol's own timer does not tell an idle connection from a slow header: it is the backstop of both, ours are exact.
        let backstop = limits.idle.saturating_add(limits.header).saturating_add(Duration::from_secs(1));
        protocol.timer(TokioTimer::new()).header_read_timeout(backstop).max_header_size(HEADER_LIMIT);
        let slots = Arc::new(Semaphore::new(config.max_connections));
        Self { slots, tasks: JoinSet::new(), graceful: GracefulShutdown::new(), protocol, router, limits }
    }

    /// Accepts and serves until `end` resolves.
    async fn accept_until<T>(&mut self, listener: &TcpListener, end: impl Future<Output = T>) -> T {
        let slots = self.slots.clone();
        let mut end = pin!(end);
        loop {
            tokio::select! {
                biased;
                outcome = &mut end => return outcome,
                () = self.ended() => {}
                (stream, permit) = accept(listener, &slots) => self.serve(stream, permit),
            }
        }
    }

    fn serve(&mut self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        // Answers are small and latency is the product: never wait for a full packet.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was not taken");
        }
        let (router, limits) = (self.router.clone(), self.limits);
        let progress = Arc::new(Progress::default());
        let io = TokioIo::new(Guarded::new(stream, progress.clone(), limits));
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let exchange = Exchange::begin(&progress);
            let request = request.map(|body| Body::new(Arriving::new(body, progress.clone(), limits.body)));
            let answer = router.clone().oneshot(request);
            async move { answer.await.map(|response: Response<Body>| response.map(|body| Leaving { body, _exchange: exchange })) }
        });
        let connection = self.graceful.watch(self.protocol.serve_connection(io, service));
        self.tasks.spawn(async move {
            metrics::gauge!(telemetry::CONNECTIONS).increment(1.0);
            let _open = Open;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(permit);
        });
    }

    /// Resolves when a connection has ended; with none open, never.
    async fn ended(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::error!(%error, "a connection's task panicked"),
            None => std::future::pending().await,
        }
    }

    /// Lets requests that are under way end, for at most `timeout`; then cuts them.
    async fn drain(self, timeout: Duration) {
        let Self { mut tasks, graceful, .. } = self;
        let open = graceful.count();
        if open > 0 {
            tracing::info!(connections = open, "waiting for open connections");
        }
        if tokio::time::timeout(timeout, graceful.shutdown()).await.is_err() {
            tracing::warn!(seconds = timeout.as_secs_f64(), "some requests did not end in time and were cut");
        }
        tasks.shutdown().await;
    }
}

/// Counts a connection out, also when its task is cut.
struct Open;

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!(telemetry::CONNECTIONS).decrement(1.0);
    }
}

/// How far a connection is; shared by its socket, its request's body and its response's body.
#[derive(Debug, Default)]
struct Progress {
    /// Requests whose header was read.
    begun: AtomicU64,
    /// Whether one of them is being answered.
    answering: AtomicBool,
    /// Whether a request's body was given up before its end.
    unread: AtomicBool,
}

/// One request and its response; over when dropped.
struct Exchange(Arc<Progress>);

impl Exchange {
    fn begin(progress: &Arc<Progress>) -> Self {
        progress.begun.fetch_add(1, Ordering::Relaxed);
        progress.unread.store(false, Ordering::Relaxed);
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
#[derive(Debug, Default)]
struct Patience(Option<Pin<Box<Sleep>>>);

impl Patience {
    /// Ready when the timer, started by the first of these calls, has run for `limit`.
    fn poll(&mut self, limit: Duration, context: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        sleep.as_mut().poll(context)
    }

    fn reset(&mut self) {
        self.0 = None;
    }
}

/// A request's body that fails with [`BodyTimeout`] when it stops arriving. The time runs only while the handler waits for bytes.
struct Arriving {
    body: Incoming,
    progress: Arc<Progress>,
    limit: Duration,
    patience: Patience,
    ended: bool,
}

impl Arriving {
    fn new(body: Incoming, progress: Arc<Progress>, limit: Duration) -> Self {
        Self { body, progress, limit, patience: Patience::default(), ended: false }
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(frame) => {
                this.patience.reset();
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
        }
    }
}

/// A response's body; when it is gone, the connection is between two requests again.
struct Leaving {
    body: Body,
    _exchange: Exchange,
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
struct Guarded {
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
    fn new(socket: TcpStream, progress: Arc<Progress>, limits: Limits) -> Self {
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

    fn written(&mut self, outcome: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(outcome) => {
                self.writing.reset();
                if !self.header_begun {
                    // The end of a response is still being taken; only then the wait for the next request begins.
                    self.reading.reset();
                }
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                ready!(self.writing.poll(self.limits.body, context));
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
        if this.progress.answering.load(Ordering::Relaxed) {
            // A request's body: its own time runs where it is waited for.
            return outcome;
        }
        match outcome {
            Poll::Ready(outcome) => {
                if buffer.filled().len() > before && !this.header_begun {
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

/// Resolves at the first SIGTERM or SIGINT after this call.
///
/// # Errors
/// The system does not let this process listen to signals.
#[cfg(unix)]
pub fn signalled() -> io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Resolves when the process is asked to end.
///
/// # Errors
/// None on this system; a process that cannot be asked never ends by itself.
#[cfg(not(unix))]
pub fn signalled() -> io::Result<impl Future<Output = ()> + Send> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// What the server says on stdout when it listens: where, and three commands that work as they are from the root of the repository.
#[must_use]
pub fn banner(listen: SocketAddr, grpc: Option<SocketAddr>) -> String {
    let grpc = grpc.map_or_else(String::new, |grpc| format!("gRPC (Open Inference Protocol) on {}\n", reachable(grpc)));
    let url = format!("http://{}", reachable(listen));
    format!(
        r#"lsqd {version} listens on {url}
{grpc}
Upload, fit, predict:

  curl -T examples/longley.csv {url}/v1/datasets/longley
  curl -X POST {url}/v1/models/employment/fits -H 'content-type: application/json' -d '{{"dataset":"longley","target":"employed"}}'
  curl -X POST {url}/v1/models/employment/predict -H 'content-type: application/json' -d '{{"rows":[{{"gnp_deflator":116.9,"gnp":554894,"unemployed":4007,"armed_forces":2827,"population":130081,"year":1962}}]}}'
"#,
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// Asks a server whether it is well, over plain HTTP: for a health check on a machine that has no client of its own.
///
/// # Errors
/// It cannot be reached, does not answer within two seconds, or answers with another status than 200.
pub fn probe(authority: &str, path: &str) -> Result<(), String> {
    let begun = Instant::now();
    // At least a moment: a timeout of zero is an error of its own.
    let left = || PROBE_TIMEOUT.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
    let attempt = || -> io::Result<String> {
        let mut stream = Err(io::Error::from(io::ErrorKind::NotFound));
        for address in authority.to_socket_addrs()? {
            stream = std::net::TcpStream::connect_timeout(&address, left());
            if stream.is_ok() {
                break;
            }
        }
        let mut stream = stream?;
        stream.set_write_timeout(Some(left()))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n").as_bytes())?;
        let mut head = Vec::new();
        let mut piece = [0; 1024];
        while !head.contains(&b'\n') && head.len() < piece.len() && begun.elapsed() < PROBE_TIMEOUT {
            stream.set_read_timeout(Some(left()))?;
            match stream.read(&mut piece)? {
                0 => break,
                count => head.extend_from_slice(&piece[..count]),
            }
        }
        Ok(String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned())
    };
    match attempt() {
        Ok(line) if line.starts_with("HTTP/1.1 200 ") => Ok(()),
        Ok(line) if line.is_empty() => Err(format!("{authority} closed the connection without an answer")),
        Ok(line) => Err(format!("{authority} answered {line}")),
        Err(error) => Err(format!("{authority} did not answer: {error}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::routing::{get, post};
    use futures_util::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;

    /// A server of the test's own routes, with short limits; it ends when the sender is dropped or used.
    async fn start(adjust: impl FnOnce(&mut Config)) -> (SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<Duration>) {
        let mut config = Config::with_database(std::path::Path::new("./lsqd.db")).unwrap();
        config.idle_timeout = Duration::from_millis(900);
        config.header_timeout = Duration::from_millis(300);
        config.body_timeout = Duration::from_millis(300);
        config.drain_timeout = Duration::from_secs(5);
        adjust(&mut config);
        let router = Router::new()
            .route("/", get(async || "home"))
            .route("/slow", get(async || tokio::time::sleep(Duration::from_millis(700)).await))
            .route("/stuck", get(std::future::pending::<()>))
            .route("/refuse", post(async || axum::http::StatusCode::PAYLOAD_TOO_LARGE))
            .route(
                "/endless",
                get(async || {
                    Body::from_stream(futures_util::stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(&[b'x'; 65536]))))
                }),
            )
            .route(
                "/length",
                post(async |body: Body| {
                    let mut length = 0;
                    let mut pieces = body.into_data_stream();
                    while let Some(piece) = pieces.next().await {
                        match piece {
                            Ok(piece) => length += piece.len(),
                            Err(error) => {
                                let cause = std::error::Error::source(&error).unwrap();
                                return format!("timeout {}", cause.is::<BodyTimeout>());
                            }
                        }
                    }
                    format!("length {length}")
                }),
            );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut connections = Connections::new(&config, router);
            let _ = connections.accept_until(&listener, stopped).await;
            drop(listener);
            let begun = Instant::now();
            connections.drain(config.drain_timeout).await;
            begun.elapsed()
        });
        (address, stop, task)
    }

    /// Everything that arrives until the server closes the connection, and how long that took.
    async fn rest(stream: &mut TcpStream) -> (String, Duration) {
        let begun = Instant::now();
        let mut bytes = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes)).await.unwrap();
        (String::from_utf8_lossy(&bytes).into_owned(), begun.elapsed())
    }

    /// Sends a request and reads until the reply holds `part`.
    async fn ask(stream: &mut TcpStream, request: &str, part: &str) -> String {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        let mut piece = [0; 4096];
        while !reply.contains(part) {
            let count = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut piece)).await.unwrap().unwrap();
            assert!(count > 0, "closed after {reply:?}");
            reply.push_str(std::str::from_utf8(&piece[..count]).unwrap());
        }
        reply
    }

    const HOME: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    fn between(elapsed: Duration, from: u64, to: u64) {
        assert!((from..to).contains(&(elapsed.as_millis() as u64)), "{elapsed:?} is not from {from} to {to} ms");
    }

    #[tokio::test]
    async fn a_new_connection_owes_a_header_soon() {
        let (address, _stop, _task) = start(|_| {}).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
        between(rest(&mut silent).await.1, 200, 800);
        between(rest(&mut slow).await.1, 0, 300);
    }

    #[tokio::test]
    async fn an_idle_connection_is_kept_longer_than_a_slow_header() {
        let (address, _stop, _task) = start(|_| {}).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        for pause in [0, 600, 600] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            ask(&mut stream, HOME, "home").await;
        }
        between(rest(&mut stream).await.1, 800, 1500);
        let mut stream = TcpStream::connect(address).await.unwrap();
        ask(&mut stream, HOME, "home").await;
        stream.write_all(b"GET / HT").await.unwrap();
        between(rest(&mut stream).await.1, 200, 700);
    }

    #[tokio::test]
    async fn a_slow_answer_is_nobodys_timeout() {
        let (address, _stop, _task) = start(|config| config.idle_timeout = Duration::from_millis(300)).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        ask(&mut stream, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n", "content-length: 0").await;
        ask(&mut stream, HOME, "home").await;
    }

    #[tokio::test]
    async fn a_body_that_stops_arriving_is_a_timeout_and_a_slow_one_is_not() {
        let (address, _stop, _task) = start(|_| {}).await;
        let head = "POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\n";
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        for letter in [b"a", b"b", b"c", b"d", b"e"] {
            tokio::time::sleep(Duration::from_millis(150)).await;
            stream.write_all(letter).await.unwrap();
        }
        ask(&mut stream, "f", "length 6").await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"abc").await.unwrap();
        let begun = Instant::now();
        ask(&mut stream, "", "timeout true").await;
        between(begun.elapsed(), 200, 800);
    }

    #[tokio::test]
    async fn a_response_that_is_not_taken_ends_the_connection() {
        let (address, stop, task) = start(|_| {}).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        stop.send(()).unwrap();
        between(task.await.unwrap(), 0, 100);
    }

    #[tokio::test]
    async fn an_answer_before_the_end_of_an_upload_is_read() {
        let (address, _stop, _task) = start(|_| {}).await;
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let sending = tokio::spawn(async move {
            let _ = writer.write_all(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 16777216\r\n\r\n").await;
            let piece = vec![b'x'; 1 << 20];
            for sent in 0..16 {
                if writer.write_all(&piece).await.is_err() {
                    return sent;
                }
            }
            16
        });
        // A client that reads only when it has sent everything, as many do: a reset on the way would be all it sees.
        assert_eq!(sending.await.unwrap(), 16);
        let mut reply = Vec::new();
        reader.read_to_end(&mut reply).await.unwrap();
        assert!(reply.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&reply));
    }

    #[tokio::test]
    async fn past_the_limit_connections_wait() {
        let (address, _stop, _task) = start(|config| config.max_connections = 1).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        ask(&mut first, HOME, "home").await;
        let mut second = TcpStream::connect(address).await.unwrap();
        second.write_all(HOME.as_bytes()).await.unwrap();
        let mut piece = [0; 64];
        assert!(tokio::time::timeout(Duration::from_millis(200), second.read(&mut piece)).await.is_err());
        drop(first);
        assert!(tokio::time::timeout(Duration::from_secs(2), second.read(&mut piece)).await.unwrap().unwrap() > 0);
    }

    #[tokio::test]
    async fn the_end_waits_for_requests_but_not_for_idle_connections() {
        let (address, stop, task) = start(|_| {}).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        ask(&mut idle, HOME, "home").await;
        let mut busy = TcpStream::connect(address).await.unwrap();
        busy.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.send(()).unwrap();
        let (reply, elapsed) = rest(&mut idle).await;
        assert!(reply.is_empty());
        between(elapsed, 0, 300);
        assert!(rest(&mut busy).await.0.starts_with("HTTP/1.1 200"));
        between(task.await.unwrap(), 300, 1500);
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn the_end_does_not_wait_for_ever() {
        let (address, stop, task) = start(|config| config.drain_timeout = Duration::from_millis(300)).await;
        let mut stuck = TcpStream::connect(address).await.unwrap();
        stuck.write_all(b"GET /stuck HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.send(()).unwrap();
        between(task.await.unwrap(), 250, 1000);
        assert!(rest(&mut stuck).await.0.is_empty());
    }

    #[tokio::test]
    async fn the_probe_tells_well_from_ill_from_gone() {
        let (address, stop, task) = start(|_| {}).await;
        let probe = async |path: &'static str| tokio::task::spawn_blocking(move || super::probe(&address.to_string(), path)).await.unwrap();
        assert_eq!(probe("/").await, Ok(()));
        assert!(probe("/nothing").await.unwrap_err().contains("404"));
        let begun = Instant::now();
        assert!(probe("/stuck").await.is_err());
        between(begun.elapsed(), 1900, 2900);
        stop.send(()).unwrap();
        task.await.unwrap();
        assert!(probe("/").await.unwrap_err().contains("did not answer"));
    }

    #[test]
    fn the_banner_can_be_pasted() {
        let text = banner("0.0.0.0:9090".parse().unwrap(), "0.0.0.0:9091".parse().ok());
        assert!(text.lines().nth(1).unwrap().ends_with(" 127.0.0.1:9091"));
        assert_eq!(text.matches("http://127.0.0.1:9090").count(), 4);
        for line in text.lines().filter(|line| line.contains(" -d ")) {
            let body = line.split_once("-d '").unwrap().1.trim_end_matches('\'');
            serde_json::from_str::<serde_json::Value>(body).unwrap();
        }
    }
}
