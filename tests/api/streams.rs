//! Updates as a stream: acknowledged while they arrive, in bounded memory, once each.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::client::{Noise, Server, coefficients};
use crate::contract::CONTRACT;

/// A request whose body is written piece by piece while its reply is read.
struct Streaming {
    pieces: Option<mpsc::Sender<Result<Bytes, std::io::Error>>>,
    response: reqwest::Response,
    received: Vec<u8>,
}

impl Streaming {
    async fn begin(server: &Server, path: &str, media: &str, headers: &[(&str, &str)]) -> Self {
        let (pieces, mut arriving) = mpsc::channel(1);
        let body = reqwest::Body::wrap_stream(futures_util::stream::poll_fn(move |context| arriving.poll_recv(context)));
        let client = reqwest::Client::builder().timeout(Duration::from_secs(120)).build().unwrap();
        let mut request = client.post(format!("http://{}{path}", server.address)).header("content-type", media).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        Self { pieces: Some(pieces), response, received: Vec::new() }
    }

    async fn rows(server: &Server, headers: &[(&str, &str)]) -> Self {
        let streaming = Self::begin(server, "/v1/models/line/updates", "application/x-ndjson", headers).await;
        assert_eq!(streaming.response.status(), 200);
        assert_eq!(streaming.response.headers()["content-type"], "application/x-ndjson");
        streaming
    }

    async fn send(&self, text: impl Into<String>) {
        // A server that has ended the stream takes no more.
        let _ = self.pieces.as_ref().unwrap().send(Ok(Bytes::from(text.into()))).await;
    }

    fn end(&mut self) {
        self.pieces = None;
    }

    /// Breaks the connection off in the middle of the body.
    async fn cut(self) {
        self.pieces.unwrap().send(Err(std::io::Error::other("cut"))).await.unwrap();
    }

    /// The next line of the reply, checked against the contract; `None` at its end.
    async fn line(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let line: Value = serde_json::from_slice(&line).unwrap();
                let faults = CONTRACT.faults(&json!({"$ref": "#/components/schemas/Acknowledgement"}), &line);
                assert!(faults.is_empty(), "{faults:?}: {line}");
                return Some(line);
            }
            match tokio::time::timeout(Duration::from_secs(30), self.response.chunk()).await.expect("a line in time").unwrap() {
                Some(piece) => self.received.extend_from_slice(&piece),
                None => {
                    assert!(self.received.is_empty(), "a line without its end");
                    return None;
                }
            }
        }
    }

    async fn rest(&mut self) -> Vec<Value> {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await {
            lines.push(line);
        }
        lines
    }
}

/// A line through four points, at sequence 0.
async fn line() -> Server {
    let server = Server::start().await;
    server.table("t", "x,y\n1,1\n2,2.5\n3,2.75\n4,4\n").await;
    server.fit("line", json!({"dataset": "t", "target": "y"})).await;
    server
}

async fn sequence(server: &Server) -> u64 {
    server.get("/v1/models/line").expect(200).await.json()["sequence"].as_u64().unwrap()
}

/// The lines `from..to` of a long body, one row each.
fn rows(from: u64, to: u64) -> String {
    (from..to)
        .map(|number| {
            let mut noise = Noise(number);
            format!("{{\"x\":{},\"y\":{}}}\n", noise.next(), noise.next())
        })
        .collect()
}

/// Asserts that acknowledgements tell of every line from `first` to `last`, in order, and returns the rows that were accepted.
fn whole(lines: &[Value], first: u64, last: u64) -> u64 {
    let mut next = first;
    let mut accepted = 0;
    for line in lines {
        assert_eq!(line["first_line"], next, "{line}");
        next = line["last_line"].as_u64().unwrap() + 1;
        accepted += line["accepted"].as_u64().unwrap_or_else(|| panic!("{line}"));
        if line["replayed"] != true {
            assert_eq!(line["predictions"].as_array().unwrap().len() as u64, next - line["first_line"].as_u64().unwrap());
        }
    }
    assert_eq!(next, last + 1);
    accepted
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_acknowledged_while_the_body_arrives() {
    let server = line().await;
    let mut stream = Streaming::rows(&server, &[]).await;
    for round in 0..3 {
        let said = server.predict("line", json!({"rows": [{"x": 5}]})).await["predictions"][0].as_f64().unwrap();
        // A line that is not whole yet waits for its end, and holds up nobody.
        stream.send("{\"x\":5,\"y\":5.5}\n\n{\"x\":6,\"y\":6}\n{\"x\":").await;
        let first = stream.line().await.unwrap();
        assert_eq!((&first["first_line"], &first["last_line"]), (&json!(round * 4 + 1), &json!(round * 4 + 3)));
        assert_eq!((&first["accepted"], &first["sequence"]), (&json!(2), &json!(round * 3 + 2)));
        assert!((first["predictions"][0].as_f64().unwrap() - said).abs() < 1e-12);
        assert_eq!(sequence(&server).await, round * 3 + 2, "what is acknowledged is read");
        stream.send("7,\"y\":7}\n").await;
        assert_eq!(stream.line().await.unwrap()["sequence"], round * 3 + 3);
    }
    stream.send("{\"x\":1,\"y\":1}").await;
    stream.end();
    let last = stream.rest().await;
    assert_eq!((last.len(), &last[0]["first_line"], &last[0]["sequence"]), (1, &json!(13), &json!(10)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_rejects_its_batch_and_ends_the_stream() {
    let mut server = line().await;
    let negative = "{\"x\":2,\"y\":\"north\"}";
    for (bad, code, pointer) in [
        (negative, "invalid_rows", "/lines/4/y"),
        ("{\"x\":2,\"y\":1", "invalid_rows", "/lines/4"),
        ("[1]", "invalid_rows", "/lines/4"),
        ("{\"x\":2,\"y\":1,\"colour\":3}", "invalid_rows", "/lines/4/colour"),
        // Well formed, but its square is not a finite number: the writer refuses it.
        ("{\"x\":1e308,\"y\":-1e308}", "invalid_request", "/lines/4"),
    ] {
        let before = sequence(&server).await;
        let mut stream = Streaming::rows(&server, &[]).await;
        stream.send("{\"x\":5,\"y\":5.5}\n").await;
        assert_eq!(stream.line().await.unwrap()["sequence"], before + 1);
        stream.send(format!("{{\"x\":6,\"y\":6}}\n\n{bad}\n{{\"x\":7,\"y\":7}}\n")).await;
        let told = stream.line().await.unwrap();
        assert_eq!((&told["first_line"], &told["last_line"]), (&json!(2), &json!(5)), "{told}");
        assert_eq!(told["error"]["code"], code, "{told}");
        assert_eq!((&told["error"]["errors"][0]["pointer"], &told["error"]["errors"][0]["line"]), (&json!(pointer), &json!(4)));
        assert!(told["error"]["detail"].as_str().unwrap().starts_with("line 4"), "{told}");
        assert!(stream.line().await.is_none(), "the stream goes on after an error");
        assert_eq!(sequence(&server).await, before + 1, "the batch is refused whole, what came before is kept");
    }
    let document = server.get("/v1/models/line").expect(200).await.body;
    server.restart().await;
    assert_eq!(server.get("/v1/models/line").expect(200).await.body, document);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_behind_a_refused_one_are_not_learnt() {
    let server = line().await;
    // Several full batches at once; a row of the second cannot be learnt, which only the writer finds out.
    let body = rows(0, 1500) + "{\"x\":1e308,\"y\":1e308}\n" + &rows(1500, 20_000);
    let mut stream = Streaming::rows(&server, &[]).await;
    stream.send(body).await;
    let mut lines = stream.rest().await;
    let error = lines.pop().unwrap();
    assert_eq!(error["error"]["errors"][0]["pointer"], "/lines/1501", "{error}");
    let learnt = whole(&lines, 1, error["first_line"].as_u64().unwrap() - 1);
    assert_eq!(sequence(&server).await, learnt);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_without_end_is_refused_by_its_number() {
    let server = line().await;
    let mut stream = Streaming::rows(&server, &[]).await;
    stream.send("{\"x\":5,\"y\":5.5}\n").await;
    stream.send("x".repeat(3 << 20)).await;
    let lines = stream.rest().await;
    assert_eq!((lines.len(), &lines[0]["accepted"]), (2, &json!(1)), "{lines:?}");
    assert_eq!((&lines[1]["error"]["status"], &lines[1]["first_line"]), (&json!(413), &json!(2)));
    assert!(lines[1]["error"]["detail"].as_str().unwrap().contains("line 2"), "{}", lines[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_rows_teach_as_they_do_in_requests() {
    let mut server = line().await;
    let total = 100_000;
    let body = rows(0, total);
    let reply = server.post("/v1/models/line/updates").ndjson(&body).expect(200).await;
    assert_eq!(reply.header("content-type"), Some("application/x-ndjson"), "a long body is a stream");
    let lines: Vec<Value> = reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(whole(&lines, 1, total), total);
    assert!(lines.len() >= 100 && lines.iter().all(|line| line["accepted"].as_u64().unwrap() <= 1000));
    server.fit("other", json!({"dataset": "t", "target": "y"})).await;
    let request = server.post("/v1/models/other/updates").header("accept", "application/json").ndjson(&body);
    assert_eq!(request.expect(200).await.json()["sequence"], total);
    server.restart().await;
    let (streamed, at_once) =
        (server.get("/v1/models/line").expect(200).await.json(), server.get("/v1/models/other").expect(200).await.json());
    assert_eq!((&streamed["sequence"], &streamed["fit"]["observations"]), (&json!(total), &json!(total + 4)));
    for figure in ["estimate", "std_error"] {
        assert_eq!(coefficients(&streamed, figure), coefficients(&at_once, figure), "not the same bits");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_answered_as_a_whole_and_who_line_by_line() {
    let server = line().await;
    let one = "{\"x\":5,\"y\":5.5}\n";
    let send = |accept: Option<&'static str>, media: &str, text: &str| {
        let request = server.post("/v1/models/line/updates").typed(media, text);
        match accept {
            Some(accept) => request.header("accept", accept),
            None => request,
        }
    };
    for (accept, media, text, wanted) in [
        (None, "application/x-ndjson", one.to_owned(), "application/json"),
        (Some("*/*"), "application/x-ndjson", one.to_owned(), "application/json"),
        (Some("application/x-ndjson"), "application/x-ndjson", one.to_owned(), "application/x-ndjson"),
        (Some("application/x-ndjson"), "text/csv", "y,x\n5,5.5\n".to_owned(), "application/x-ndjson"),
        (Some("application/x-ndjson"), "application/json", "{\"rows\":[]}".to_owned(), "application/json"),
        (None, "application/x-ndjson", one.repeat(20_000), "application/x-ndjson"),
        (Some("application/json, */*"), "application/x-ndjson", one.repeat(20_000), "application/json"),
        (None, "text/csv", format!("x,y\n{}", "5,5.5\n".repeat(50_000)), "application/json"),
    ] {
        let reply = send(accept, media, &text).expect(200).await;
        assert_eq!(reply.header("content-type"), Some(wanted), "{accept:?} {media}");
        assert_eq!(reply.header("etag").is_some(), wanted == "application/json");
    }
    // The head of a reply to a body with a length waits for the first batch; what is wrong with that one has a status.
    for (accept, text) in [(None, "{\"x\":5}\n".repeat(50_000)), (Some("application/x-ndjson"), "{\"x\":5}\n".to_owned())] {
        let reply = send(accept, "application/x-ndjson", &text).refused(422, "invalid_rows").await;
        assert_eq!(reply.pointers()[0], "/lines/1/y");
    }
    let late = one.repeat(1_000) + "{\"x\":5}\n" + &one.repeat(20_000);
    let late = send(None, "application/x-ndjson", &late).expect(200).await.text();
    let mut told: Vec<Value> = late.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let error = told.pop().unwrap();
    assert_eq!(error["error"]["errors"][0]["line"], 1001, "{error}");
    assert!(whole(&told, 1, error["first_line"].as_u64().unwrap() - 1) > 0);
    let streamed = || send(Some("application/x-ndjson"), "application/x-ndjson", one);
    assert_eq!(streamed().body("").expect(200).await.body, b"", "no rows, no lines");
    streamed().header("if-match", "\"1-0\"").refused(412, "precondition_failed").await;
    let tag = server.get("/v1/models/line").expect(200).await.etag();
    streamed().header("if-match", tag).expect(200).await;
    let few = server.post("/v1/models/line/updates?fields=accepted").header("accept", "application/x-ndjson").ndjson(one).expect(200).await;
    assert_eq!((&few.json()["predictions"], &few.json()["accepted"]), (&Value::Null, &json!(1)));
    let few = server.post("/v1/models/line/updates?fields=errors").ndjson(one).expect(200).await.json();
    assert!(few["predictions"].is_null() && few["errors"].is_array());
    server.post("/v1/models/line/updates?fields=colour&x=1").ndjson(one).refused(422, "invalid_request").await;
    server.post("/v1/models/none/updates").header("accept", "application/x-ndjson").ndjson(one).refused(404, "model_not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csv_is_streamed_too() {
    let server = line().await;
    let mut stream = Streaming::begin(&server, "/v1/models/line/updates", "text/csv", &[]).await;
    stream.send("\ny,x,_id\n5,5.5,\"a\nb\"\n").await;
    let first = stream.line().await.unwrap();
    assert_eq!((&first["first_line"], &first["last_line"], &first["accepted"]), (&json!(3), &json!(4), &json!(1)), "{first}");
    stream.send("6,6,\n5,5.5,\"a\nb\"\n").await;
    let second = stream.line().await.unwrap();
    assert_eq!((&second["last_line"], &second["accepted"], &second["sequence"]), (&json!(7), &json!(1), &json!(2)));
    assert_eq!(second["predictions"][1], first["predictions"][0]);
    stream.send("7,7,\n8,north,\n").await;
    let bad = stream.rest().await;
    assert_eq!(bad[0]["error"]["errors"][0]["pointer"], "/lines/9/x", "{bad:?}");
    for (text, pointer) in [("x,z\n1,2\n", "/columns/1"), ("", ""), ("\n\n", "")] {
        let mut stream = Streaming::begin(&server, "/v1/models/line/updates", "text/csv", &[]).await;
        stream.send(text).await;
        stream.end();
        let lines = stream.rest().await;
        assert_eq!((lines.len(), &lines[0]["error"]["errors"][0]["pointer"]), (1, &json!(pointer)), "{text:?}");
    }
    assert_eq!(sequence(&server).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_stays_when_the_client_goes_away() {
    let server = line().await;
    let mut stream = Streaming::rows(&server, &[]).await;
    stream.send(rows(0, 100)).await;
    let mut accepted = 0;
    while accepted < 100 {
        accepted += stream.line().await.unwrap()["accepted"].as_u64().unwrap();
    }
    stream.send("{\"x\":1,\"y\":1}").await;
    stream.cut().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(sequence(&server).await, 100, "a line that was cut off is no row");
    server.learn("line", json!({"rows": [{"x": 1, "y": 1}]})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_sent_again_under_its_key_has_every_row_once() {
    let mut server = line().await;
    let key = [("idempotency-key", "long")];
    let total = 5_000;
    let mut stream = Streaming::rows(&server, &key).await;
    stream.send(rows(0, 2_345)).await;
    let mut accepted = 0;
    while accepted < 1_000 {
        accepted += stream.line().await.unwrap()["accepted"].as_u64().unwrap();
    }
    stream.cut().await;
    server.restart().await;
    let landed = sequence(&server).await;
    assert!((1_000..=2_345).contains(&landed), "{landed}");
    // Meanwhile another version is served; the stream goes on with its own.
    server.fit("line", json!({"dataset": "t", "target": "y"})).await;
    for (try_number, new) in [(2, total - landed), (3, 0)] {
        let mut stream = Streaming::rows(&server, &key).await;
        for from in (0..total).step_by(700) {
            stream.send(rows(from, (from + 700).min(total))).await;
        }
        stream.end();
        let lines = stream.rest().await;
        assert_eq!((&lines[0]["replayed"], &lines[0]["accepted"]), (&json!(true), &json!(0)), "try {try_number}");
        assert_eq!(lines[0]["last_line"], if new > 0 { landed } else { total });
        assert_eq!(whole(&lines, 1, total), new, "try {try_number}");
        assert!(lines.iter().all(|line| line["version"] == 1));
    }
    let after = server.get("/v1/models/line@1").expect(200).await.json();
    server.fit("once", json!({"dataset": "t", "target": "y"})).await;
    server.post("/v1/models/once/updates").header("accept", "application/json").ndjson(&rows(0, total)).expect(200).await;
    let once = server.get("/v1/models/once").expect(200).await.json();
    assert_eq!(coefficients(&after, "estimate"), coefficients(&once, "estimate"), "not the same bits");
    // Another body under the key, or a shorter one, is told as such and teaches nothing.
    for body in ["{\"x\":9,\"y\":9}\n".repeat(6_000), rows(0, 100)] {
        let mut stream = Streaming::rows(&server, &key).await;
        stream.send(body).await;
        stream.end();
        assert_eq!(stream.rest().await.last().unwrap()["error"]["code"], "idempotency_mismatch");
    }
    let request = server.post("/v1/models/line@1/updates").header("idempotency-key", "long").json(&json!({"rows": []}));
    request.refused(422, "idempotency_mismatch").await;
    assert_eq!(server.get("/v1/models/line@1").expect(200).await.json()["sequence"], total);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tries_of_a_stream_at_once_teach_no_row_twice() {
    let server = line().await;
    let key = [("idempotency-key", "twice")];
    let mut first = Streaming::rows(&server, &key).await;
    first.send(rows(0, 10)).await;
    assert_eq!(first.line().await.unwrap()["accepted"], 10);
    let mut second = Streaming::rows(&server, &key).await;
    second.send(rows(0, 20)).await;
    second.end();
    let lines = second.rest().await;
    assert_eq!((whole(&lines, 1, 20), &lines[0]["replayed"]), (10, &json!(true)));
    // The first try still hangs on; what it sends now is learnt already.
    first.send(rows(10, 20)).await;
    let told = first.rest().await;
    assert_eq!((told.len(), &told[0]["error"]["code"], &told[0]["first_line"]), (1, &json!("conflict"), &json!(11)), "{told:?}");
    assert_eq!(sequence(&server).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_ends_its_streams_in_order() {
    let mut server = line().await;
    let mut stream = Streaming::rows(&server, &[]).await;
    stream.send("{\"x\":5,\"y\":5.5}\n{\"x\":").await;
    stream.line().await.unwrap();
    let begun = Instant::now();
    let told = tokio::spawn(async move { (stream.rest().await, stream) });
    server.restart().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?} to stop", begun.elapsed());
    let (lines, _stream) = told.await.unwrap();
    assert_eq!((lines.len(), &lines[0]["error"]["code"]), (1, &json!("unavailable")), "{lines:?}");
    assert_eq!((&lines[0]["first_line"], &lines[0]["last_line"]), (&json!(2), &Value::Null));
    assert_eq!(sequence(&server).await, 1);
}

/// Writes rows in chunks until the other side takes no more for a second, or until `most` bytes are written.
fn press(socket: &mut std::net::TcpStream, most: usize) -> usize {
    let text = rows(0, 1_000);
    let chunk = format!("{:x}\r\n{text}\r\n", text.len()).into_bytes();
    socket.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut written = 0;
    while written < most {
        match socket.write(&chunk[written % chunk.len()..]) {
            Ok(count) => written += count,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => break,
            Err(error) => panic!("{error}"),
        }
    }
    written
}

fn connect(server: &Server, query: &str) -> std::net::TcpStream {
    let mut socket = std::net::TcpStream::connect(server.address).unwrap();
    let head = format!("POST /v1/models/line/updates{query} HTTP/1.1\r\nhost: x\r\n");
    write!(socket, "{head}content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_acknowledgements_is_held_back() {
    let server = line().await;
    let mut socket = connect(&server, "");
    let most = 256 << 20;
    let (written, mut socket) = tokio::task::spawn_blocking(move || (press(&mut socket, most), socket)).await.unwrap();
    // What is under way is in the buffers of two sockets, each some megabytes at the most, and in a few batches.
    assert!(written < 64 << 20, "{written} bytes were taken without an acknowledgement read");
    // What was taken is learnt, and then no more is.
    let mut stuck = 0;
    let begun = Instant::now();
    while stuck != sequence(&server).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "it goes on learning though nobody listens");
        stuck = sequence(&server).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // Once they are taken, it goes on.
    let mut piece = vec![0; 1 << 20];
    tokio::task::spawn_blocking(move || {
        for _ in 0..8 {
            assert!(socket.read(&mut piece).unwrap() > 0);
        }
    })
    .await
    .unwrap();
    let begun = Instant::now();
    while sequence(&server).await <= stuck {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not go on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_little_may_write_much_before_reading() {
    let server = line().await;
    let mut socket = connect(&server, "?fields=accepted");
    let most = 16 << 20;
    let (written, _socket) = tokio::task::spawn_blocking(move || (press(&mut socket, most), socket)).await.unwrap();
    assert!(written >= most, "{written} bytes were taken");
}
