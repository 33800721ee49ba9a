//! The Open Inference Protocol over gRPC, by its bytes: frames and messages are put together here, so that those can be sent which no client
//! would. A stock client speaks it in `tests/clients`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;

use crate::client::{Server, numbers};
use crate::inference::models;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// A connection that calls.
pub(crate) struct Grpc(http2::SendRequest<Full<Bytes>>);

/// The end of a call.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The status; 0 is well.
    pub(crate) status: u16,
    /// What the status says.
    pub(crate) detail: String,
    /// The stable code.
    pub(crate) code: String,
    /// The arm of a split that answered.
    pub(crate) arm: Option<String>,
    /// The reply.
    pub(crate) message: Vec<u8>,
}

impl Grpc {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, 1 << 20).await
    }

    /// Connects as a client that takes so many bytes of each reply.
    async fn connect_with(address: SocketAddr, window: u32) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), window).await
    }

    /// Speaks on a connection of any kind.
    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, window: u32) -> Self {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = builder.initial_stream_window_size(window).handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// Calls with a message as it should be framed.
    pub(crate) async fn call(&self, method: &str, message: &[u8]) -> Ended {
        self.send(method, &[], framed(0, message)).await
    }

    pub(crate) async fn infer(&self, message: &[u8]) -> Ended {
        self.call(INFER, message).await
    }

    /// Calls with whatever body.
    pub(crate) async fn send(&self, method: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Ended {
        let mut request =
            hyper::Request::post(format!("http://lsqd{method}")).header("content-type", "application/grpc").header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut sender = self.0.clone();
        sender.ready().await.unwrap();
        let response = sender.send_request(request.body(Full::from(body)).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.headers().contains_key("x-request-id"));
        let head = response.headers().clone();
        let body = response.into_body().collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        let said = |name: &str| trailers.get(name).or_else(|| head.get(name)).map(|value| value.to_str().unwrap().to_owned());
        let body = body.to_bytes();
        let message = body.get(5..).unwrap_or_default().to_vec();
        Ended {
            status: said("grpc-status").unwrap().parse().unwrap(),
            detail: unescaped(&said("grpc-message").unwrap_or_default()),
            code: said("lsqd-code").unwrap_or_default(),
            arm: said("lsqd-arm"),
            message,
        }
    }
}

/// Undoes the escapes of a status's message.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).unwrap()
}

/// A message with its prefix.
pub(crate) fn framed(packed: u8, message: &[u8]) -> Vec<u8> {
    [&[packed][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

pub(crate) fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A field of bytes, text or a message.
pub(crate) fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// A tensor without its elements, or with a list of them.
pub(crate) fn input(name: &str, datatype: &str, shape: &[i64], contents: &[u8]) -> Vec<u8> {
    let extents: Vec<u8> = shape.iter().flat_map(|extent| varint(extent.cast_unsigned())).collect();
    let contents = if contents.is_empty() { Vec::new() } else { field(5, contents) };
    field(5, &[field(1, name.as_bytes()), field(2, datatype.as_bytes()), field(3, &extents), contents].concat())
}

/// A question to a model.
pub(crate) fn asked(model: &str, parts: &[Vec<u8>]) -> Vec<u8> {
    [field(1, model.as_bytes()), parts.concat()].concat()
}

fn doubles(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn output(name: &str) -> Vec<u8> {
    field(6, &field(1, name.as_bytes()))
}

fn parameter(name: &str, choice: u64, value: &[u8]) -> Vec<u8> {
    field(4, &[field(1, name.as_bytes()), field(2, &field(choice, value))].concat())
}

/// The fields of a message that holds integers and bytes: an integer as it is written.
fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn take(message: &mut &[u8]) -> u64 {
        let length = message.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let value = message[..length].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
        *message = &message[length..];
        value
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = take(&mut message);
        let value = take(&mut message);
        if key & 7 == 0 {
            found.push((key >> 3, varint(value)));
        } else {
            assert_eq!(key & 7, 2);
            found.push((key >> 3, message[..value as usize].to_vec()));
            message = &message[value as usize..];
        }
    }
    found
}

/// All of a field's contents.
fn all(message: &[u8], number: u64) -> Vec<Vec<u8>> {
    fields(message).into_iter().filter(|(found, _)| *found == number).map(|(_, bytes)| bytes).collect()
}

/// Names, shapes and elements of the outputs.
fn outputs(reply: &Ended) -> Vec<(String, Vec<u8>, Vec<f64>)> {
    assert_eq!(reply.status, 0, "{reply:?}");
    let (heads, raw) = (all(&reply.message, 5), all(&reply.message, 6));
    assert_eq!(heads.len(), raw.len());
    heads
        .iter()
        .zip(raw)
        .map(|(head, raw)| {
            let name = String::from_utf8(all(head, 1).remove(0)).unwrap();
            (name, all(head, 3).remove(0), raw.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_are_answered_as_predict_answers() {
    let server = models().await;
    let grpc = Grpc::connect(server.grpc).await;
    let question = json!({"rows": [{"a": 2.5, "b": 4}, {"a": 7, "b": -1}], "interval": {"kind": "confidence", "level": 0.9}});
    let own = server.predict("plane", question).await;
    let data = doubles(&[2.5, 4.0, 7.0, -1.0]);
    let rest: Vec<u8> = ["predict", "lower", "upper", "leverage"].iter().flat_map(|name| output(name)).collect();
    // The level is a double, and so has eight bytes and no length.
    let level = field(4, &[field(1, b"level"), field(2, &[&[4 << 3 | 1][..], &0.9_f64.to_le_bytes()].concat())].concat());
    let rest = [field(3, b"17"), parameter("interval", 3, b"confidence"), level, rest].concat();
    for parts in [
        [input("input", "FP64", &[2, 2], &[]), rest.clone(), field(7, &data)],
        [input("anything", "FP64", &[2, 2], &field(7, &data)), rest.clone(), Vec::new()],
    ] {
        let reply = grpc.infer(&asked("plane", &parts)).await;
        let found = outputs(&reply);
        for (place, member) in ["predictions", "lower", "upper", "leverage"].into_iter().enumerate() {
            assert_eq!(found[place].2, numbers(&own[member]), "{member}");
            assert_eq!(found[place].1, [2], "{member}");
        }
        let said = |number| String::from_utf8(all(&reply.message, number).remove(0)).unwrap();
        assert_eq!((said(1), said(2), said(3)), ("plane".to_owned(), "1".to_owned(), "17".to_owned()));
        let sequence = all(&reply.message, 4).remove(0);
        assert_eq!((all(&sequence, 1).remove(0), all(&sequence, 2).remove(0)), (b"sequence".to_vec(), vec![2 << 3, 0]));
    }
    let own = server.predict("mixed", json!({"rows": [{"x": 2, "region": "south", "flag": true}]})).await;
    let tensors = [
        input("region", "BYTES", &[1, 1], &field(8, b"south")),
        input("x", "INT64", &[1, 1], &field(3, &[2])),
        input("flag", "BOOL", &[1], &field(1, &[1])),
    ];
    assert_eq!(outputs(&grpc.infer(&asked("mixed", &tensors)).await)[0].2, numbers(&own["predictions"]));
    let version = [field(2, b"1"), tensors.concat()];
    assert_eq!(outputs(&grpc.infer(&asked("mixed", &version)).await)[0].2, numbers(&own["predictions"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_metadata_and_the_list_of_models_are_told() {
    let server = models().await;
    let grpc = Grpc::connect(server.grpc).await;
    let service = |method: &str| format!("/inference.GRPCInferenceService/{method}");
    for method in [service("ServerLive"), service("ServerReady"), "/grpc.health.v1.Health/Check".to_owned()] {
        assert_eq!(grpc.call(&method, b"").await.message, [1 << 3, 1], "{method}");
    }
    for (name, version, ready) in [("plane", "", true), ("plane", "1", true), ("plane", "9", false), ("none", "", false)] {
        let message = [field(1, name.as_bytes()), field(2, version.as_bytes())].concat();
        let reply = grpc.call(&service("ModelReady"), &message).await;
        assert_eq!((reply.status, reply.message), (0, if ready { vec![1 << 3, 1] } else { Vec::new() }), "{name} {version}");
    }
    let server_metadata = grpc.call(&service("ServerMetadata"), b"").await.message;
    assert_eq!(all(&server_metadata, 1), [b"lsqd"]);
    let plane = grpc.call(&service("ModelMetadata"), &field(1, b"plane")).await.message;
    assert_eq!((all(&plane, 1), all(&plane, 2)), (vec![b"plane".to_vec()], vec![b"1".to_vec()]));
    let tensor = all(&plane, 4).remove(0);
    let extents: Vec<u8> = [varint(u64::MAX), varint(2)].concat();
    assert_eq!((all(&tensor, 1), all(&tensor, 2), all(&tensor, 3)), (vec![b"input".to_vec()], vec![b"FP64".to_vec()], vec![extents]));
    let index = grpc.call(&service("RepositoryIndex"), b"").await.message;
    let names: Vec<Vec<u8>> = all(&index, 1).iter().map(|entry| all(entry, 1).remove(0)).collect();
    assert_eq!(names, [&b"mixed"[..], b"plane", b"two"]);
    let missing = grpc.call(&service("ModelMetadata"), &field(1, b"none")).await;
    assert_eq!((missing.status, missing.code.as_str()), (5, "model_not_found"));
    assert_eq!(grpc.call(&service("ModelConfig"), b"").await.status, 12);
    assert_eq!(grpc.call("/other.Service/Call", b"").await.status, 12);
    let plain = hyper::Request::post(format!("http://lsqd{INFER}")).body(Full::from("{}")).unwrap();
    let mut sender = grpc.0.clone();
    assert_eq!(sender.send_request(plain).await.unwrap().status(), 415);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_the_status_and_the_words_of_their_kind() {
    let server = models().await;
    let grpc = Grpc::connect(server.grpc).await;
    let row = || [input("input", "FP64", &[1, 2], &field(7, &doubles(&[1.0, 2.0])))];
    for (message, status, code, word) in [
        (asked("none", &row()), 5, "model_not_found", "no model"),
        (asked("plane", &[row().concat(), field(2, b"9")]), 5, "version_not_found", "version"),
        (asked("plane", &[input("input", "FP64", &[1, 2], &field(7, &doubles(&[1.0, f64::NAN])))]), 3, "invalid_rows", "missing"),
        (asked("plane", &[row().concat(), output("score")]), 3, "bad_syntax", "no such output"),
        (asked("plane", &[row().concat(), output("lower"), output("lower")]), 3, "bad_syntax", "twice"),
        (asked("plane", &[row().concat(), parameter("interval", 3, b"wide")]), 3, "bad_syntax", "prediction or confidence"),
    ] {
        let refused = grpc.infer(&message).await;
        assert_eq!((refused.status, refused.code.as_str()), (status, code), "{refused:?}");
        assert!(refused.detail.contains(word), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_of_traffic_and_the_watch_on_inputs_see_every_dialect() {
    let server = models().await;
    server.fit("plane", json!({"dataset": "p", "target": "y", "features": ["a"], "serve": false})).await;
    for (alias, version) in [("champion", 1), ("challenger", 2)] {
        server.put(format!("/v1/models/plane/aliases/{alias}")).json(&json!({"version": version})).expect(201).await;
    }
    let split = json!({"split": {"champion": 50, "challenger": 50}, "sticky": {"header": "x-user-id"}});
    server.put("/v1/models/plane/traffic").json(&split).expect(201).await;
    let grpc = Grpc::connect(server.grpc).await;
    let mut arms = std::collections::BTreeSet::new();
    for user in 0..40 {
        let user = format!("user-{user}");
        let request = |path: &str| server.post(path).header("x-user-id", user.as_str());
        let own = request("/v1/models/plane/predict").json(&json!({"rows": [{"a": 2, "b": 3}]})).expect(200).await;
        let arm = own.header("lsqd-arm").unwrap().to_owned();
        let wanted = numbers(&own.json()["predictions"]);
        let asked_now = asked("plane", &[input("input", "FP64", &[1, 2], &field(7, &doubles(&[2.0, 3.0])))]);
        let reply = grpc.send(INFER, &[("x-user-id", &user)], framed(0, &asked_now)).await;
        assert_eq!((outputs(&reply)[0].2.clone(), reply.arm.as_deref()), (wanted.clone(), Some(arm.as_str())), "{user}");
        let named: Vec<Vec<u8>> =
            all(&reply.message, 4).iter().filter(|entry| all(entry, 1)[0] == b"arm").map(|entry| all(entry, 2).remove(0)).collect();
        assert_eq!(named, [field(3, arm.as_bytes())]);
        for (path, body) in [
            ("/v1/models/plane/invocations", json!({"dataframe_records": [{"a": 2, "b": 3}]})),
            ("/v1/models/plane:predict", json!({"instances": [[2, 3]]})),
        ] {
            let reply = request(path).json(&body).expect(200).await;
            assert_eq!((reply.header("lsqd-arm"), numbers(&reply.json()["predictions"])), (Some(arm.as_str()), wanted.clone()), "{path}");
        }
        arms.insert(arm);
    }
    assert_eq!(arms.len(), 2);
    // Of 40 users each asked four times, and every row was counted.
    let rows = async |version: u64| {
        let page = server.get(format!("/v1/models/plane@{version}/inputs")).expect(200).await.json();
        page["total"]["rows"].as_u64().unwrap_or_else(|| panic!("{page}"))
    };
    assert_eq!(rows(1).await + rows(2).await, 160);
}

/// Packs bytes as gzip.
async fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    async_compression::tokio::bufread::GzipEncoder::new(plain).read_to_end(&mut out).await.unwrap();
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_messages_go_by_the_limits_of_packed_bodies() {
    let server = models().await;
    let grpc = Grpc::connect(server.grpc).await;
    let question = asked("plane", &[input("input", "FP64", &[1, 2], &field(7, &doubles(&[1.0, 2.0])))]);
    let plain = outputs(&grpc.infer(&question).await);
    let packed = gzip(&question).await;
    let reply = grpc.send(INFER, &[("grpc-encoding", "gzip"), ("grpc-accept-encoding", "identity,gzip")], framed(1, &packed)).await;
    // The reply is packed as well.
    assert_eq!((reply.status, reply.message.starts_with(&[0x1f, 0x8b])), (0, true));
    let reply = grpc.send(INFER, &[("grpc-encoding", "gzip")], framed(0, &question)).await;
    assert_eq!(reply.status, 0);
    assert_eq!(plain.len(), 1);
    let bomb = gzip(&vec![0; 40 << 20]).await;
    let refused = grpc.send(INFER, &[("grpc-encoding", "gzip")], framed(1, &bomb)).await;
    assert_eq!((refused.status, refused.code.as_str()), (8, "payload_too_large"), "{refused:?}");
    for bad in [&packed[..packed.len() - 3], b"no gzip", b""] {
        let refused = grpc.send(INFER, &[("grpc-encoding", "gzip")], framed(1, bad)).await;
        assert_eq!(refused.status, 3, "{refused:?}");
    }
    // As the protocol wants it.
    for (encoding, flag, status) in [(Some("br"), 1, 12), (None, 1, 13), (None, 2, 13)] {
        let headers: Vec<(&str, &str)> = encoding.map(|encoding| ("grpc-encoding", encoding)).into_iter().collect();
        let refused = grpc.send(INFER, &headers, framed(flag, &question)).await;
        assert_eq!((refused.status, refused.detail.is_empty()), (status, false), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_one_whole_frame_is_refused() {
    let server = models().await;
    let grpc = Grpc::connect(server.grpc).await;
    let question = asked("plane", &[input("input", "FP64", &[1, 2], &field(7, &doubles(&[1.0, 2.0])))]);
    let whole = framed(0, &question);
    let longer = [&[0][..], &u32::MAX.to_be_bytes(), &question].concat();
    for body in [&whole[..0], &whole[..3], &whole[..5], &whole[..whole.len() - 1], &whole.repeat(2), &longer] {
        let refused = grpc.send(INFER, &[], body.to_vec()).await;
        assert_eq!((refused.status, refused.code.as_str()), (3, "bad_syntax"), "{refused:?}");
        assert!(refused.detail.contains("cut off"), "{refused:?}");
    }
    // Every message that is cut is refused or, cut between two fields, is another question; the connection lives on.
    for end in 0..question.len() {
        let refused = grpc.infer(&question[..end]).await;
        assert!(matches!(refused.status, 3 | 5), "{end}: {refused:?}");
    }
    assert_eq!(grpc.infer(&question).await.status, 0);
}

fn between(elapsed: Duration, from: u64, to: u64) {
    assert!((from..to).contains(&(elapsed.as_millis() as u64)), "{elapsed:?} is not from {from} to {to} ms");
}

/// A server with short timeouts.
async fn impatient() -> Server {
    let server = Server::start_with(|config| {
        config.header_timeout = Duration::from_millis(300);
        config.body_timeout = Duration::from_millis(500);
        config.answer_timeout = Duration::from_millis(500);
        config.idle_timeout = Duration::from_millis(900);
    })
    .await;
    server.table("p", "a,b,y\n1,2,3.5\n2,1,4\n3,5,9.25\n4,3,8\n5,9,16.5\n").await;
    server.fit("plane", json!({"dataset": "p", "target": "y"})).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_say_nothing_or_nothing_more_are_left() {
    let server = impatient().await;
    let mut silent = TcpStream::connect(server.grpc).await.unwrap();
    let begun = Instant::now();
    let mut piece = [0; 64];
    assert_eq!(silent.read(&mut piece).await.unwrap_or(0), 0);
    between(begun.elapsed(), 200, 800);

    // One that called is kept for longer, and one that never calls but is alive is no client either.
    let grpc = Grpc::connect(server.grpc).await;
    let never = Grpc::connect(server.grpc).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(grpc.call("/grpc.health.v1.Health/Check", b"").await.status, 0);
    }
    assert!(never.0.is_closed());
    let begun = Instant::now();
    while !grpc.0.is_closed() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(begun.elapsed() < Duration::from_secs(5), "it was never closed");
    }
    between(begun.elapsed(), 700, 1600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_opens_its_window_is_cut() {
    let server = impatient().await;
    for window in [0, 7] {
        let grpc = Grpc::connect_with(server.grpc, window).await;
        let rows = 20_000;
        let data = doubles(&vec![1.0; rows * 2]);
        let question = asked("plane", &[input("input", "FP64", &[rows as i64, 2], &[]), field(7, &data)]);
        let request = hyper::Request::post(format!("http://lsqd{INFER}")).header("content-type", "application/grpc");
        let mut sender = grpc.0.clone();
        let response = sender.send_request(request.body(Full::from(framed(0, &question))).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        // The head of the reply is there; nobody reads on, so that the window stays as it was.
        let begun = Instant::now();
        while !grpc.0.is_closed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(begun.elapsed() < Duration::from_secs(5), "it was never closed");
        }
        between(begun.elapsed(), 300, 1500);
        drop(response);
    }
    // A client that takes what it is given is not.
    let grpc = Grpc::connect_with(server.grpc, 1 << 10).await;
    let data = doubles(&vec![1.0; 40_000]);
    let question = asked("plane", &[input("input", "FP64", &[20_000, 2], &[]), field(7, &data)]);
    assert_eq!(outputs(&grpc.infer(&question).await)[0].2.len(), 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_stops_arriving_is_a_deadline_exceeded() {
    let server = impatient().await;
    let stream = TcpStream::connect(server.grpc).await.unwrap();
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let piece = futures_util::stream::iter([Ok::<_, std::io::Error>(hyper::body::Frame::data(Bytes::from_static(b"\0\0\0\0\xff")))]);
    let body = http_body_util::StreamBody::new(futures_util::StreamExt::chain(piece, futures_util::stream::pending()));
    let request =
        hyper::Request::post(format!("http://lsqd{INFER}")).header("content-type", "application/grpc").body(Box::pin(body)).unwrap();
    let begun = Instant::now();
    let response = sender.send_request(request).await.unwrap();
    between(begun.elapsed(), 400, 1500);
    assert_eq!(response.headers()["grpc-status"], "4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_rows_are_the_same_over_both_transports() {
    let server = models().await;
    let grpc = Grpc::connect(server.grpc).await;
    let rows: Vec<Vec<f64>> = (0..1000).map(|row| vec![f64::from(row) / 7.0, f64::from(row % 13)]).collect();
    let data = doubles(&rows.concat());
    let reply = grpc.infer(&asked("plane", &[input("input", "FP64", &[1000, 2], &[]), field(7, &data)])).await;
    let own: Value = server.predict("plane", json!({"columns": ["a", "b"], "data": rows})).await;
    assert_eq!(outputs(&reply)[0].2, numbers(&own["predictions"]));
}
