//! The connections, and the threads that serve them.
//!
//! Each of these threads waits for its own connections and answers what is short by itself: nothing is handed from thread to thread on the
//! way from a request to its answer, and nobody has to be woken for it. A new connection goes to the thread that has the fewest.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use super::busy_poll::BusyPoll;
use super::guard::{Arriving, Exchange, Guarded, Leaving, Limits, Progress};
use super::tls::{Speaks, Tls};
use crate::config::Config;
use crate::telemetry;

/// Largest header of a request.
pub(super) const HEADER_LIMIT: usize = 64 << 10;
/// How long what is between two requests is kept when the connections are to end. Who asks within it is answered, and told that the connection
/// ends; to close at once would be to close on requests that have arrived and were not looked at.
const FAREWELL: Duration = Duration::from_millis(50);
/// How long accepting pauses when the system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What requests are answered by.
pub trait Application: Clone + Send + Sync + 'static {
    /// Answers a request, on the thread of its connection.
    fn answer(&self, request: Request<Arriving>) -> impl Future<Output = Response<Body>> + Send;
}

impl Application for Router {
    async fn answer(&self, request: Request<Arriving>) -> Response<Body> {
        let answer: Result<_, Infallible> = self.clone().oneshot(request.map(Body::new)).await;
        answer.unwrap_or_else(|never| match never {})
    }
}

/// Waits for a free slot, then for a connection. Nothing that happens to a connection or to the system ends the loop.
pub(super) async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
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

/// A thread that serves connections.
struct Worker {
    handle: Handle,
    /// Held by each of its connections as well.
    share: Arc<()>,
    poll: Arc<BusyPoll>,
    /// The thread ends when this is dropped.
    _end: oneshot::Sender<Infallible>,
}

impl Worker {
    fn start(number: usize, patience: Duration) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<Infallible>();
        let poll = Arc::new(BusyPoll::default());
        let polling = poll.clone();
        std::thread::Builder::new().name(format!("lsqd-serve-{number}")).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = ended => {}
                    () = polling.run(patience) => {}
                }
            });
            // Large bodies are parsed beside this thread; nobody waits for them any more.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, share: Arc::default(), poll, _end: end })
    }
}

/// The open connections.
pub(super) struct Connections<A> {
    slots: Arc<Semaphore>,
    workers: Vec<Worker>,
    tasks: JoinSet<()>,
    /// Changes when the connections are to end; each holds a receiver until it has.
    end: watch::Sender<()>,
    protocol: http1::Builder,
    application: A,
    limits: Limits,
    tls: Option<Arc<Tls>>,
}

impl<A: Application> Connections<A> {
    pub(super) fn new(config: &Config, application: A, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let limits = Limits::of(config);
        let mut protocol = http1::Builder::new();
        // The socket is guarded by timers of ours, which tell an idle connection from a slow header.
        protocol.header_read_timeout(None).max_header_size(HEADER_LIMIT);
        let slots = Arc::new(Semaphore::new(config.max_connections));
        let start = |number| Worker::start(number, config.busy_poll);
        let workers = (0..config.serving_threads.max(1)).map(start).collect::<io::Result<_>>()?;
        Ok(Self { slots, workers, tasks: JoinSet::new(), end: watch::Sender::new(()), protocol, application, limits, tls })
    }

    /// Accepts and serves until `end` resolves; from then on connecting is refused.
    pub(super) async fn accept_until<T>(&mut self, listener: TcpListener, end: impl Future<Output = T>) -> T {
        let slots = self.slots.clone();
        let mut end = pin!(end);
        loop {
            tokio::select! {
                biased;
                outcome = &mut end => {
                    if let Err(error) = self.accept_waiting(listener) {
                        tracing::debug!(%error, "connections that waited were not accepted");
                    }
                    return outcome;
                }
                () = self.ended() => {}
                (stream, permit) = accept(&listener, &slots) => {
                    // It is waited for by a thread of its own from now on.
                    if let Err(error) = stream.into_std().and_then(|stream| self.serve(stream, permit)) {
                        tracing::debug!(%error, "a connection could not be served");
                    }
                }
            }
        }
    }

    /// Takes the connections that the system has accepted already: to close the listener would reset them, and what was sent by them.
    fn accept_waiting(&mut self, listener: TcpListener) -> io::Result<()> {
        let listener = listener.into_std()?;
        while let Ok(permit) = self.slots.clone().try_acquire_owned() {
            match listener.accept() {
                Ok((stream, _)) => self.serve(stream, permit)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn serve(&mut self, stream: std::net::TcpStream, permit: OwnedSemaphorePermit) -> io::Result<()> {
        // Answers are small and latency is the product: never wait for a full packet.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was not taken");
        }
        let Some(worker) = self.workers.iter().min_by_key(|worker| Arc::strong_count(&worker.share)) else { return Ok(()) };
        let (share, poll) = (worker.share.clone(), worker.poll.clone());
        stream.set_nonblocking(true)?;
        let progress = Arc::new(Progress::default());
        let (application, protocol, limits, tls) = (self.application.clone(), self.protocol.clone(), self.limits, self.tls.clone());
        let conversation = Conversation { application, protocol, limits, poll, progress };
        let mut end = self.end.subscribe();
        let serving = async move {
            let _open = Open::new(permit, share);
            let served = async {
                let socket = Guarded::new(TcpStream::from_std(stream)?, conversation.progress.clone(), limits);
                let Some(tls) = tls else { return conversation.hold(socket, &mut end).await };
                let mut stream = tokio::select! {
                    biased;
                    stream = tls.accept(Speaks::Http1, socket, limits.header) => stream?,
                    // Who has not come that far has asked for nothing.
                    _ = end.changed() => return Ok(()),
                };
                stream.get_mut().0.agreed();
                conversation.hold(stream, &mut end).await
            };
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection ended early");
            }
        };
        self.tasks.spawn_on(serving, &worker.handle);
        Ok(())
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
    pub(super) async fn drain(self, timeout: Duration) {
        let Self { mut tasks, end, .. } = self;
        let open = end.receiver_count();
        if open > 0 {
            tracing::info!(connections = open, "waiting for open connections");
        }
        end.send_replace(());
        if tokio::time::timeout(timeout, end.closed()).await.is_err() {
            tracing::warn!(seconds = timeout.as_secs_f64(), "some requests did not end in time and were cut");
        }
        tasks.shutdown().await;
    }
}

/// What is needed to answer the requests of one connection.
struct Conversation<A> {
    application: A,
    protocol: http1::Builder,
    limits: Limits,
    poll: Arc<BusyPoll>,
    progress: Arc<Progress>,
}

impl<A: Application> Conversation<A> {
    /// Answers what comes over `stream` until it is closed, or until the connections are to end and what has come by then, and in a moment
    /// more, is answered.
    async fn hold<S>(&self, stream: S, end: &mut watch::Receiver<()>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let Self { application, protocol, limits, poll, progress } = self;
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let exchange = Exchange::begin(progress);
            let request = request.map(|body| Arriving::new(body, progress.clone(), *limits));
            let (application, poll) = (application.clone(), poll.clone());
            async move {
                let mut answer = application.answer(request).await;
                poll.answered();
                if progress.is_parting() {
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer.map(|body| Leaving { body, _exchange: exchange }))
            }
        });
        let mut connection = pin!(protocol.serve_connection(TokioIo::new(stream), service));
        let asked = async {
            // The sender outlives its connections.
            let _ = end.changed().await;
            progress.end();
            // A timer goes off only after the sockets were looked at. To yield is not enough: the task may have been woken twice.
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended.map_err(io::Error::other),
            () = asked => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await.map_err(io::Error::other)
    }
}

/// Counts a connection in and, also when its task is cut, out.
pub(super) struct Open {
    _permit: OwnedSemaphorePermit,
    _share: Arc<()>,
}

impl Open {
    pub(super) fn new(permit: OwnedSemaphorePermit, share: Arc<()>) -> Self {
        metrics::gauge!(telemetry::CONNECTIONS).increment(1.0);
        Self { _permit: permit, _share: share }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!(telemetry::CONNECTIONS).decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::SocketAddr;
    use std::time::Instant;

    use axum::body::Bytes;
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
        config.answer_timeout = Duration::from_millis(300);
        config.min_body_rate = 0;
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
                                return format!("timeout {}", cause.is::<crate::server::BodyTimeout>());
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
            let tls = config.tls.as_ref().map(|files| Arc::new(Tls::open(files).unwrap()));
            let mut connections = Connections::new(&config, router, tls).unwrap();
            let _ = connections.accept_until(listener, stopped).await;
            let begun = Instant::now();
            connections.drain(config.drain_timeout).await;
            begun.elapsed()
        });
        (address, stop, task)
    }

    /// Everything that arrives until the server closes the connection, and how long that took.
    async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> (String, Duration) {
        let begun = Instant::now();
        let mut bytes = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes)).await.unwrap();
        (String::from_utf8_lossy(&bytes).into_owned(), begun.elapsed())
    }

    /// Sends a request and reads until the reply holds `part`.
    async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str, part: &str) -> String {
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
    async fn a_body_that_trickles_uses_up_its_time() {
        let (address, _stop, _task) = start(|config| config.min_body_rate = 1000).await;
        let head = "POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n";
        // Never a pause of 300 ms, but 20 bytes a second: after a while, and whatever came at once before.
        for start in [1, 5000] {
            let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
            writer.write_all(head.as_bytes()).await.unwrap();
            writer.write_all(&vec![b'a'; start]).await.unwrap();
            let begun = Instant::now();
            let trickle = async {
                while writer.write_all(b"a").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let mut piece = [0; 512];
            let answer = async { reader.read(&mut piece).await.unwrap() };
            tokio::select! {
                () = trickle => panic!("closed without an answer"),
                count = answer => assert!(String::from_utf8_lossy(&piece[..count]).ends_with("timeout true")),
                () = tokio::time::sleep(Duration::from_secs(5)) => panic!("a body of 20 bytes a second is still waited for"),
            }
            between(begun.elapsed(), 250, 1500);
        }
        // 50 ms for 100 bytes are twice the rate, however many they are.
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.replace("100000", "2000").as_bytes()).await.unwrap();
        for _ in 0..19 {
            stream.write_all(&[b'a'; 100]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ask(&mut stream, &"a".repeat(100), "length 2000").await;
    }

    #[tokio::test]
    async fn an_answer_that_is_taken_in_drops_uses_up_its_time() {
        let (address, stop, task) = start(|config| config.min_body_rate = 1 << 30).await;
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let begun = Instant::now();
        let mut piece = [0; 4096];
        // Far less than a gigabyte a second, without a pause.
        while stream.read(&mut piece).await.is_ok_and(|count| count > 0) {
            assert!(begun.elapsed() < Duration::from_secs(5), "it is still being answered");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.send(()).unwrap();
        between(task.await.unwrap(), 0, 300);
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
        let reply = String::from_utf8(reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 413") && reply.contains("connection: close\r\n"), "{reply}");
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
    async fn what_was_sent_before_the_end_is_answered() {
        let (address, stop, task) = start(|_| {}).await;
        let mut known = Vec::new();
        for _ in 0..40 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            ask(&mut stream, HOME, "home").await;
            known.push(stream.into_std().unwrap());
        }
        // Nothing below waits, so that neither the known connections nor the new ones are looked at before the end is asked for.
        let mut new: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        for stream in known.iter_mut().chain(&mut new) {
            io::Write::write_all(stream, HOME.as_bytes()).unwrap();
        }
        stop.send(()).unwrap();
        for stream in known.into_iter().chain(new) {
            stream.set_nonblocking(true).unwrap();
            let (reply, _) = rest(&mut TcpStream::from_std(stream).unwrap()).await;
            assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with("home"), "{reply:?}");
        }
        between(task.await.unwrap(), 0, 1000);
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

    /// A server whose connections are encrypted, and how to connect to it.
    struct Encrypted {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        task: tokio::task::JoinHandle<Duration>,
        connector: tokio_rustls::TlsConnector,
        _folder: tempfile::TempDir,
    }

    impl Encrypted {
        async fn start(adjust: impl FnOnce(&mut Config)) -> Self {
            use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let files = crate::config::TlsFiles { certificate: folder.path().join("c.pem"), key: folder.path().join("k.pem") };
            std::fs::write(&files.certificate, made.cert.pem()).unwrap();
            std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(made.cert.der().clone()).unwrap();
            let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
            let client = client.unwrap().with_root_certificates(roots).with_no_client_auth();
            let (address, stop, task) = start(|config| {
                config.tls = Some(files);
                adjust(config);
            })
            .await;
            Self { address, stop, task, connector: Arc::new(client).into(), _folder: folder }
        }

        async fn connect(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
            let stream = TcpStream::connect(self.address).await.unwrap();
            self.connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
        }
    }

    #[tokio::test]
    async fn an_encrypted_connection_is_held_to_the_same_limits() {
        let server = Encrypted::start(|_| {}).await;
        // Nothing, half of a handshake, a handshake and nothing, and half of a header.
        for sent in [&b""[..], b"\x16\x03\x01\x00\xff\x01"] {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(sent).await.unwrap();
            between(rest(&mut stream).await.1, 200, 800);
        }
        for sent in ["", "GET / HTTP/1.1\r\nhost:"] {
            let mut stream = server.connect().await;
            stream.write_all(sent.as_bytes()).await.unwrap();
            between(rest(&mut stream).await.1, 200, 800);
        }
        // Between requests there is more time.
        let mut stream = server.connect().await;
        for pause in [0, 600, 600] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            ask(&mut stream, HOME, "home").await;
        }
        between(rest(&mut stream).await.1, 800, 1500);
        let head = "POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\n";
        let mut stream = server.connect().await;
        stream.write_all(format!("{head}abc").as_bytes()).await.unwrap();
        let begun = Instant::now();
        ask(&mut stream, "", "timeout true").await;
        between(begun.elapsed(), 200, 800);
    }

    #[tokio::test]
    async fn a_connection_without_a_handshake_is_one_of_those_that_may_be_open() {
        let server = Encrypted::start(|config| {
            config.max_connections = 1;
            config.header_timeout = Duration::from_millis(600);
        })
        .await;
        let silent = TcpStream::connect(server.address).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let begun = Instant::now();
        ask(&mut server.connect().await, HOME, "home").await;
        between(begun.elapsed(), 400, 1500);
        drop(silent);
    }

    #[tokio::test]
    async fn an_encrypted_answer_is_taken_in_time_and_read_to_its_end() {
        let server = Encrypted::start(|_| {}).await;
        let mut stuck = server.connect().await;
        stuck.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        // An answer before the end of an upload, by a client that reads when it has sent everything.
        let mut early = server.connect().await;
        early.write_all(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 16777216\r\n\r\n").await.unwrap();
        for _ in 0..16 {
            early.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
        }
        assert!(rest(&mut early).await.0.starts_with("HTTP/1.1 413"));
        drop(early);
        tokio::time::sleep(Duration::from_millis(1000)).await;
        server.stop.send(()).unwrap();
        between(server.task.await.unwrap(), 0, 100);
    }

    #[tokio::test]
    async fn the_end_closes_encrypted_connections_in_their_own_way() {
        let server = Encrypted::start(|_| {}).await;
        let mut idle = server.connect().await;
        ask(&mut idle, HOME, "home").await;
        let mut busy = server.connect().await;
        busy.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.stop.send(()).unwrap();
        // The end of the stream, and not of the socket alone, which would be an error.
        assert_eq!(idle.read(&mut [0; 16]).await.unwrap(), 0);
        let mut reply = Vec::new();
        busy.read_to_end(&mut reply).await.unwrap();
        assert!(reply.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&reply));
        assert!(rest(&mut silent).await.0.is_empty());
        between(server.task.await.unwrap(), 300, 1500);
    }

    #[tokio::test]
    async fn the_probe_tells_well_from_ill_from_gone() {
        let (address, stop, task) = start(|_| {}).await;
        let probe = async |path: &'static str| {
            tokio::task::spawn_blocking(move || crate::server::probe(&address.to_string(), path, None)).await.unwrap()
        };
        assert_eq!(probe("/").await, Ok(()));
        assert!(probe("/nothing").await.unwrap_err().contains("404"));
        let begun = Instant::now();
        assert!(probe("/stuck").await.is_err());
        between(begun.elapsed(), 1900, 2900);
        stop.send(()).unwrap();
        task.await.unwrap();
        assert!(probe("/").await.unwrap_err().contains("did not answer"));
    }
}
