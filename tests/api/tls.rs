//! Encrypted connections: what they are encrypted with, how that changes while the server runs, and that nothing else is different on them.

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use crate::grpc::{Grpc, asked, field, input};

const TABLE: &str = "x,y\n1,1\n2,2.5\n3,3\n4,4.5\n";
const QUESTION: &str = r#"{"rows":[{"x":2.5}]}"#;

/// A certificate that somebody made for themselves, and its key.
struct Made {
    der: CertificateDer<'static>,
    certificate: String,
    key: String,
}

impl Made {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        Self { der: made.cert.der().clone(), certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }
}

/// A running server that encrypts.
struct Encrypted {
    http: SocketAddr,
    grpc: SocketAddr,
    metrics: SocketAddr,
    folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Encrypted {
    async fn start(made: &Made) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let bind = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            (listener.local_addr().unwrap(), listener)
        };
        let [(http, http_listener), (grpc, grpc_listener), (metrics, metrics_listener)] = [bind(), bind(), bind()];
        let mut server = Self { http, grpc, metrics, folder, stop: Some(stop), thread: None };
        server.replace(made);
        let mut config = lsqd::config::Config::with_database(&server.folder.path().join("lsqd.db")).unwrap();
        config.tls = Some(lsqd::config::TlsFiles { certificate: server.certificate(), key: server.key() });
        server.thread = Some(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = |listener| tokio::net::TcpListener::from_std(listener).unwrap();
                let listeners = lsqd::server::Listeners {
                    http: listener(http_listener),
                    grpc: Some(listener(grpc_listener)),
                    metrics: Some(listener(metrics_listener)),
                };
                lsqd::run(config, listeners, async { _ = stopped.await }).await.unwrap();
            });
        }));
        let begun = Instant::now();
        while server.ask(&[made], "GET", "/readyz", "").await.0 != 200 {
            assert!(begun.elapsed() < Duration::from_secs(10), "the server did not become ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server
    }

    /// The same with a model `m`.
    async fn with_model(made: &Made) -> Self {
        let server = Self::start(made).await;
        assert_eq!(server.ask(&[made], "PUT", "/v1/datasets/t", TABLE).await.0, 201);
        assert_eq!(server.ask(&[made], "POST", "/v1/models/m/fits", r#"{"dataset":"t","target":"y"}"#).await.0, 201);
        server
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// Puts others in the place of the files, one after the other, as tools do that fetch them.
    fn replace(&self, made: &Made) {
        for (path, text) in [(self.certificate(), &made.certificate), (self.key(), &made.key)] {
            let new = path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, &path).unwrap();
        }
    }

    /// One request on a connection of its own.
    async fn ask(&self, trusted: &[&Made], method: &str, path: &str, body: &str) -> (u16, hyper::HeaderMap, String) {
        Speaking::over(connect(self.http, trusted, &[b"http/1.1"]).await).await.ask(method, path, body).await
    }

    /// Stops it in an orderly way; how long that took.
    async fn stop(mut self) -> Duration {
        let begun = Instant::now();
        drop(self.stop.take());
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
        begun.elapsed()
    }
}

fn connector(trusted: &[&Made], versions: &[&'static SupportedProtocolVersion], protocols: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for made in trusted {
        roots.add(made.der.clone()).unwrap();
    }
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_protocol_versions(versions).unwrap();
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Arc::new(client).into()
}

async fn connect_by(connector: &TlsConnector, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    connector.connect("localhost".try_into().unwrap(), TcpStream::connect(address).await?).await
}

async fn connect(address: SocketAddr, trusted: &[&Made], protocols: &[&[u8]]) -> TlsStream<TcpStream> {
    connect_by(&connector(trusted, &[&TLS13], protocols), address).await.unwrap()
}

/// The certificate that the server showed.
fn shown(stream: &TlsStream<TcpStream>) -> &CertificateDer<'static> {
    &stream.get_ref().1.peer_certificates().unwrap()[0]
}

/// A connection over which requests go.
struct Speaking(http1::SendRequest<Full<Bytes>>);

impl Speaking {
    async fn over(stream: TlsStream<TcpStream>) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn ask(&mut self, method: &str, path: &str, body: &str) -> (u16, hyper::HeaderMap, String) {
        let media = if body.starts_with('{') { "application/json" } else { "text/csv" };
        let request = hyper::Request::builder().method(method).uri(path).header("host", "localhost").header("content-type", media);
        let request = request.body(Full::from(body.to_owned())).unwrap();
        self.0.ready().await.unwrap();
        let reply = self.0.send_request(request).await.unwrap();
        let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        (status, headers, String::from_utf8_lossy(&body).into_owned())
    }
}

/// Runs the program to its end: its exit code and what it said on stderr.
fn run(arguments: &[&str], files: Option<(&Path, &Path)>) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lsqd"));
    command.args(arguments).stdin(Stdio::null());
    if let Some((certificate, key)) = files {
        command.env("LSQD_TLS_CERTIFICATE", certificate).env("LSQD_TLS_KEY", key);
    }
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_over_both_versions_of_tls() {
    let made = Made::new();
    let server = Encrypted::with_model(&made).await;
    let mut answers = Vec::new();
    for version in [&TLS12, &TLS13] {
        for protocols in [&[&b"http/1.1"[..]][..], &[b"h2", b"http/1.1"], &[]] {
            let stream = connect_by(&connector(&[&made], &[version], protocols), server.http).await.unwrap();
            let agreed = stream.get_ref().1;
            assert_eq!(agreed.protocol_version(), Some(version.version));
            assert_eq!(agreed.alpn_protocol(), (!protocols.is_empty()).then_some(&b"http/1.1"[..]));
            let mut speaking = Speaking::over(stream).await;
            // The short way, and the routes.
            for path in ["/v1/models/m/predict", "/v1/models/%6d/predict"] {
                let (status, headers, answer) = speaking.ask("POST", path, QUESTION).await;
                assert_eq!(status, 200, "{answer}");
                assert_eq!(headers["strict-transport-security"], "max-age=31536000");
                answers.push(answer);
            }
        }
    }
    assert_eq!(answers.len(), 12);
    assert!(answers[0].contains("predictions") && answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    // Who speaks nothing that is spoken here hears so in the handshake.
    assert!(connect_by(&connector(&[&made], &[&TLS13], &[b"h2"]), server.http).await.is_err());
    // Large bodies in both directions.
    let rows = "1.25\n".repeat(200_000);
    let (status, _, told) = server.ask(&[&made], "PUT", "/v1/datasets/large", &format!("x\n{rows}")).await;
    assert_eq!(status, 201, "{told}");
    let (_, _, read) = server.ask(&[&made], "POST", "/v1/models/m/predict", &format!("x\n{rows}")).await;
    assert_eq!(read.lines().count(), 200_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listener_is_encrypted() {
    let made = Made::new();
    let server = Encrypted::with_model(&made).await;
    for address in [server.http, server.grpc, server.metrics] {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut reply = Vec::new();
        // Closed or reset, and soon.
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut reply)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(!reply.windows(4).any(|part| part == b"HTTP"), "{}", String::from_utf8_lossy(&reply));
    }
    let (status, _, text) = Speaking::over(connect(server.metrics, &[&made], &[]).await).await.ask("GET", "/metrics", "").await;
    assert!(status == 200 && text.contains("\nlsqd_tls_certificate_not_after_seconds "), "{text}");

    let message = asked("m", &[input("input", "FP64", &[1, 1], &field(7, &2.5_f64.to_le_bytes()))]);
    for protocols in [&[&b"h2"[..]][..], &[]] {
        let stream = connect(server.grpc, &[&made], protocols).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), protocols.first().copied());
        let reply = Grpc::over(stream, 1 << 20).await.infer(&message).await;
        assert!(reply.status == 0 && !reply.message.is_empty(), "{reply:?}");
    }
    assert!(connect_by(&connector(&[&made], &[&TLS13], &[b"http/1.1"]), server.grpc).await.is_err());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_change_are_taken_while_nothing_fails() {
    let (old, new) = (Made::new(), Made::new());
    let server = Encrypted::with_model(&old).await;
    let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let trusting = connector(&[&old, &new], &[&TLS12, &TLS13], &[]);
    // On connections that stay, and on one after the other, with sessions that are taken up again.
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let (end, answered, connector, address) = (end.clone(), answered.clone(), trusting.clone(), server.http);
            tokio::spawn(async move {
                let mut speaking = Speaking::over(connect_by(&connector, address).await.unwrap()).await;
                while !end.load(Ordering::Relaxed) {
                    if client % 2 == 0 {
                        speaking = Speaking::over(connect_by(&connector, address).await.unwrap()).await;
                    }
                    let (status, _, answer) = speaking.ask("POST", "/v1/models/m/predict", QUESTION).await;
                    assert_eq!(status, 200, "{answer}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    assert_eq!(*shown(&connect(server.http, &[&old, &new], &[]).await), old.der);
    server.replace(&new);
    let begun = Instant::now();
    let taken = async |address, protocols| *shown(&connect(address, &[&old, &new], protocols).await) == new.der;
    while !taken(server.http, &[]).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "the new certificate was not taken");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(taken(server.grpc, &[b"h2"]).await && taken(server.metrics, &[]).await);
    // A session of before is not taken up either, or its client would see the old one.
    assert_eq!(*shown(&connect_by(&trusting, server.http).await.unwrap()), new.der);
    let so_far = answered.load(Ordering::Relaxed);
    while answered.load(Ordering::Relaxed) < so_far + 40 {
        assert!(begun.elapsed() < Duration::from_secs(40), "nothing is answered any more");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    end.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_pair_keeps_the_old_one() {
    let (old, new) = (Made::new(), Made::new());
    let server = Encrypted::start(&old).await;
    let refused = async || {
        let (_, _, text) = Speaking::over(connect(server.metrics, &[&old, &new], &[]).await).await.ask("GET", "/metrics", "").await;
        text.contains("\nlsqd_tls_certificate_refused 1\n")
    };
    fs::write(server.certificate(), &new.certificate).unwrap();
    let begun = Instant::now();
    // Other tests of this process say that theirs are taken; it is said again at the next look.
    while !refused().await {
        assert!(begun.elapsed() < Duration::from_secs(20), "nobody says that a certificate has no key");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(*shown(&connect(server.http, &[&old, &new], &[]).await), old.der);
    fs::write(server.key(), &new.key).unwrap();
    while *shown(&connect(server.http, &[&old, &new], &[]).await) != new.der {
        assert!(begun.elapsed() < Duration::from_secs(40), "a pair is not taken after a bad one");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_server_without_a_good_pair_does_not_start() {
    let (made, other) = (Made::new(), Made::new());
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let (certificate, key) = (write("c.pem", &made.certificate), write("k.pem", &made.key));
    let foreign = write("other.pem", &other.key);
    let database = folder.path().join("lsqd.db");
    let serve = ["serve", "--listen", "127.0.0.1:0", "--database", database.to_str().unwrap()];
    let (code, told) = run(&serve, Some((&certificate, &foreign)));
    assert!(code == 1 && told.contains("other.pem is not that of the first certificate in "), "{code} {told}");
    let (code, told) = run(&serve, Some((&folder.path().join("none.pem"), &key)));
    assert!(code == 1 && told.contains("none.pem cannot be read"), "{code} {told}");
    let (code, told) = run(&[&serve[..], &["--tls-key", key.to_str().unwrap()]].concat(), None);
    assert!(code == 2 && told.contains("--tls-key is set, and --tls-certificate is not"), "{code} {told}");
    assert!(!database.exists(), "a database was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_to_who_knows_the_certificate() {
    let (made, other) = (Made::new(), Made::new());
    let server = Encrypted::start(&made).await;
    let foreign = server.folder.path().join("other.pem");
    fs::write(&foreign, &other.certificate).unwrap();
    let key = server.key();
    let health = async |arguments: &[&str], certificate: &Path| {
        let arguments: Vec<String> = ["health"].iter().chain(arguments).map(|argument| (*argument).to_owned()).collect();
        let (certificate, key) = (certificate.to_owned(), key.clone());
        let ended =
            tokio::task::spawn_blocking(move || run(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), Some((&certificate, &key))));
        ended.await.unwrap()
    };
    let listen = server.http.to_string();
    assert_eq!(health(&["--listen", &listen], &server.certificate()).await, (0, String::new()));
    assert_eq!(health(&["--metrics-listen", &server.metrics.to_string()], &server.certificate()).await.0, 0);
    assert_eq!(health(&["--url", &format!("https://{listen}/livez")], &server.certificate()).await.0, 0);
    assert_eq!(health(&["--url", &format!("https://{listen}/nothing")], &server.certificate()).await.0, 1);
    assert_eq!(health(&["--url", &format!("http://{listen}/livez")], &server.certificate()).await.0, 1);
    let (code, told) = health(&["--listen", &listen], &foreign).await;
    assert!(code == 1 && told.contains("certificate"), "{told}");
}

/// The program in a process of its own, as an operator has it.
#[cfg(unix)]
#[test]
fn a_signal_ends_encrypted_connections_in_order_and_another_takes_new_files() {
    use std::io::{BufRead as _, BufReader};
    let (old, new) = (Made::new(), Made::new());
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key, database] = ["c.pem", "k.pem", "lsqd.db"].map(|name| folder.path().join(name));
    let write = |made: &Made| {
        fs::write(&certificate, &made.certificate).unwrap();
        fs::write(&key, &made.key).unwrap();
    };
    write(&old);
    let mut process = Command::new(env!("CARGO_BIN_EXE_lsqd"))
        .args(["--listen", "localhost:0", "--database"])
        .arg(&database)
        .env("LSQD_TLS_CERTIFICATE", &certificate)
        .env("LSQD_TLS_KEY", &key)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut banner = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut banner).unwrap();
    let address: SocketAddr = banner.trim_end().rsplit_once(" https://").unwrap().1.parse().unwrap();
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &process.id().to_string()]).status().unwrap().success());
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut idle = runtime.block_on(async {
        let mut idle = connect(address, &[&old], &[]).await;
        idle.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut piece = [0; 4096];
        assert!(idle.read(&mut piece).await.unwrap() > 0);
        idle
    });
    write(&new);
    signal("-HUP");
    let begun = Instant::now();
    while *shown(&runtime.block_on(connect(address, &[&old, &new], &[]))) != new.der {
        assert!(begun.elapsed() < Duration::from_secs(20), "the new certificate was not taken");
        std::thread::sleep(Duration::from_millis(20));
    }
    signal("-TERM");
    // What is left on the way, and then the end of the stream, which is not only that of the socket.
    let mut rest = Vec::new();
    runtime.block_on(idle.read_to_end(&mut rest)).unwrap();
    let mut log = String::new();
    process.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(process.wait().unwrap().success(), "{log}");
    assert_eq!(log.matches("connections are encrypted with this certificate").count(), 2, "{log}");
    assert!(log.contains("every user of this machine can read the private key"), "{log}");
}
