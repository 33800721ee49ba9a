//! Questions as streams: answered in kind while they arrive, in order, in bounded memory.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{ArrayRef, Float64Array, RecordBatch};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::client::{Noise, Server};

/// A line through four points.
async fn line() -> Server {
    let server = Server::start().await;
    server.table("t", "x,y\n1,1\n2,2.5\n3,2.75\n4,4\n").await;
    server.fit("line", json!({"dataset": "t", "target": "y"})).await;
    server
}

/// A question whose body is written piece by piece while its answers are read.
struct Asking {
    pieces: Option<mpsc::Sender<Result<Bytes, std::io::Error>>>,
    response: reqwest::Response,
    received: Vec<u8>,
}

impl Asking {
    async fn begin(server: &Server, query: &str, media: &str) -> Self {
        let (pieces, mut arriving) = mpsc::channel(1);
        let body = reqwest::Body::wrap_stream(futures_util::stream::poll_fn(move |context| arriving.poll_recv(context)));
        let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        let url = format!("http://{}/v1/models/line/predict{query}", server.address);
        let response = client.post(url).header("content-type", media).body(body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        Self { pieces: Some(pieces), response, received: Vec::new() }
    }

    async fn send(&self, piece: impl Into<Bytes>) {
        // A server that has ended the stream takes no more.
        let _ = self.pieces.as_ref().unwrap().send(Ok(piece.into())).await;
    }

    /// The next line of the answer; `None` at its end, an error where it is cut off.
    async fn line(&mut self) -> Result<Option<String>, reqwest::Error> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(Some(String::from_utf8(line).unwrap().trim_end().to_owned()));
            }
            match tokio::time::timeout(Duration::from_secs(30), self.response.chunk()).await.expect("a line in time")? {
                Some(piece) => self.received.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_answered_while_they_arrive() {
    let server = line().await;
    let said = server.predict("line", json!({"rows": [{"x": 5}, {"x": 6}, {"x": 7}]})).await;
    let said: Vec<f64> = said["predictions"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    for (media, head, rows, row) in
        [("application/x-ndjson", "", "{\"x\":5}\n\n{\"x\":6}\n{\"x\":", "7}\n"), ("text/csv", "\nx\n", "5\n\n\"6\"\n", "7\n")]
    {
        let mut asking = Asking::begin(&server, "?fields=predictions", media).await;
        assert_eq!(asking.response.headers()["lsqd-version-sequence"], "1-0");
        asking.send(head).await;
        for _ in 0..3 {
            asking.send(rows).await;
            let mut answers = Vec::new();
            while answers.len() < 2 {
                let line = asking.line().await.unwrap().unwrap();
                // The header of the answers comes once, before all.
                if line != "prediction" {
                    answers.push(number(&line));
                }
            }
            assert_eq!(answers, said[..2], "{media}");
            asking.send(row).await;
            assert_eq!(number(&asking.line().await.unwrap().unwrap()), said[2]);
        }
        asking.pieces = None;
        assert_eq!(asking.line().await.unwrap(), None);
    }
}

/// The prediction on a line of NDJSON or CSV.
fn number(line: &str) -> f64 {
    match serde_json::from_str::<Value>(line).unwrap() {
        Value::Number(number) => number.as_f64().unwrap(),
        line => line["prediction"].as_f64().unwrap_or_else(|| panic!("{line}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_line_is_named_and_ends_the_answers() {
    let server = line().await;
    let (good, many) = ("{\"x\":5}\n".repeat(100_000), "5\n".repeat(300_000));
    // In the first batch it has a status.
    for (media, text, pointer) in [
        ("application/x-ndjson", format!("{{\"x\":1}}\n{{\"x\":\"one\"}}\n{good}"), "/lines/2/x"),
        ("application/x-ndjson", format!("{{\"x\":1}}\n\n{{\"x\":1\n{good}"), "/lines/3"),
        ("text/csv", format!("x\n1\none\n{many}"), "/lines/3/x"),
        ("text/csv", format!("x\n1\n1e300000\n{many}"), "/lines/3/x"),
        ("text/csv", format!("z\n1\n{many}"), "/columns/0"),
    ] {
        let reply = server.post("/v1/models/line/predict").typed(media, text).expect(422).await;
        assert_eq!(reply.pointers()[0], pointer);
    }
    // Later, NDJSON says it in its last line, and what came before is answered.
    let text = format!("{good}{{\"x\":1e308}}\n{{\"x\":null}}\n{good}");
    let reply = server.post("/v1/models/line/predict").ndjson(&text).expect(200).await.text();
    let lines: Vec<Value> = reply.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, answers) = lines.split_last().unwrap();
    assert_eq!(last["error"]["errors"][0]["pointer"], "/lines/100002/x", "{last}");
    assert_eq!(last["first_line"].as_u64().unwrap(), answers.len() as u64 + 1);
    assert!(answers.iter().all(|line| line["prediction"].is_number()));
    // CSV cannot: the connection breaks off, and the last that is seen says why.
    let mut asking = Asking::begin(&server, "", "text/csv").await;
    asking.send(format!("x\n{many}")).await;
    asking.send("north\n").await;
    asking.pieces = None;
    let (mut count, mut last) = (0, String::new());
    let cut = loop {
        match asking.line().await {
            Ok(Some(line)) => (count, last) = (count + 1, line),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(cut, "a part of the answers ends as all of them do");
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(last["error"]["errors"][0]["pointer"], "/lines/300002/x", "{last}");
    // Beside the answers, the header and the last line.
    assert_eq!(last["first_line"].as_u64().unwrap(), count, "a header line went before on either side");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_are_answered_as_short_ones_are() {
    let server = line().await;
    let mut noise = Noise(7);
    let numbers: Vec<f64> = (0..30_000).map(|_| noise.next() * 10.0).collect();
    let ndjson: Vec<String> = numbers.iter().map(|x| format!("{{\"x\":{x}}}\n")).collect();
    let csv: Vec<String> = numbers.iter().map(|x| format!("\"{x}\"\r\n")).collect();
    let query = "?interval=prediction&explain=true";
    let short = async |media: &'static str, head: &str, rows: &[String]| {
        let mut text = String::new();
        for part in rows.chunks(5_000) {
            let reply =
                server.post(format!("/v1/models/line/predict{query}")).typed(media, head.to_owned() + &part.concat()).expect(200).await;
            let answer = reply.text();
            text.push_str(if head.is_empty() || text.is_empty() { &answer } else { answer.split_once('\n').unwrap().1 });
        }
        text
    };
    for (media, head, rows) in [("application/x-ndjson", "", &ndjson), ("text/csv", "x\r\n", &csv)] {
        let reply = server.post(format!("/v1/models/line/predict{query}")).typed(media, head.to_owned() + &rows.concat()).expect(200).await;
        assert_eq!(reply.header("lsqd-version-sequence"), Some("1-0"));
        assert!(reply.text() == short(media, head, rows).await, "{media}: not the same answers");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_state_answers_the_whole_stream() {
    let server = line().await;
    let mut asking = Asking::begin(&server, "?fields=predictions,version", "application/x-ndjson").await;
    asking.send("{\"x\":5}\n").await;
    let first = asking.line().await.unwrap().unwrap();
    server.learn("line", json!({"rows": [{"x": 5, "y": 50}]})).await;
    server.fit("line", json!({"dataset": "t", "target": "y"})).await;
    asking.send("{\"x\":5}\n").await;
    assert_eq!(asking.line().await.unwrap().unwrap(), first);
    assert!(first.contains("\"version\":1,\"sequence\":0"), "{first}");
    let past = Asking::begin(&server, "?sequence=0", "text/csv").await;
    assert_eq!(past.response.headers()["lsqd-version-sequence"], "2-0");
}

#[tokio::test(flavor = "multi_thread")]
async fn arrow_is_answered_batch_by_batch() {
    let server = line().await;
    let mut noise = Noise(11);
    let numbers: Vec<f64> = (0..150_000).map(|_| noise.next()).collect();
    let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Float64, true)]));
    let table = |values: &[f64]| {
        let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
        for part in values.chunks(40_000) {
            let column: ArrayRef = Arc::new(Float64Array::from(part.to_vec()));
            writer.write(&RecordBatch::try_new(schema.clone(), vec![column]).unwrap()).unwrap();
        }
        writer.into_inner().unwrap()
    };
    let ask = |body: Vec<u8>| {
        server
            .post("/v1/models/line/predict?interval=prediction&fields=predictions,upper,extrapolates,version")
            .typed("application/vnd.apache.arrow.stream", body)
    };
    let answers = |body: &[u8]| {
        let reader = StreamReader::try_new(body, None).unwrap();
        assert_eq!(reader.schema().metadata()["lsqd-version-sequence"], "1-0");
        let names: Vec<String> = reader.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, ["prediction", "upper", "extrapolates", "version", "sequence"]);
        let mut rows = Vec::new();
        for batch in reader.map(Result::unwrap) {
            let number = |column: usize, row: usize| batch.column(column).as_primitive::<Float64Type>().value(row).to_bits();
            let whole = |column: usize, row: usize| batch.column(column).as_primitive::<Int64Type>().value(row);
            let outside = |row: usize| batch.column(2).as_boolean().value(row);
            rows.extend((0..batch.num_rows()).map(|row| (number(0, row), number(1, row), outside(row), whole(3, row), whole(4, row))));
        }
        rows
    };
    let long = answers(&ask(table(&numbers)).expect(200).await.body);
    assert_eq!(long.len(), numbers.len());
    assert!(long.iter().all(|row| (row.3, row.4) == (1, 0)));
    for begin in (0..numbers.len()).step_by(30_000) {
        let short = answers(&ask(table(&numbers[begin..begin + 30_000])).expect(200).await.body);
        assert!(short == long[begin..begin + 30_000], "another answer in a stream");
    }
    let mut bad = numbers.clone();
    bad[7] = f64::INFINITY;
    assert_eq!(ask(table(&bad)).refused(422, "invalid_rows").await.pointers(), ["/rows/7/x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_row_late_in_an_arrow_stream_breaks_the_answers_off() {
    let server = line().await;
    let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Float64, true)]));
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
    let batch = |values: Vec<f64>| RecordBatch::try_new(schema.clone(), vec![Arc::new(Float64Array::from(values)) as ArrayRef]).unwrap();
    (0..12).for_each(|part| writer.write(&batch((0..25_000).map(|row| f64::from(part * 25_000 + row)).collect())).unwrap());
    let good = std::mem::take(writer.get_mut());
    writer.write(&batch(vec![1.0, f64::NAN])).unwrap();
    let bad = writer.into_inner().unwrap();
    let mut asking = Asking::begin(&server, "?fields=predictions", "application/vnd.apache.arrow.stream").await;
    asking.send(good).await;
    // It is answered before the bad row has even been sent.
    while asking.received.len() < 100_000 {
        let piece = tokio::time::timeout(Duration::from_secs(30), asking.response.chunk()).await.expect("answers in time");
        asking.received.extend_from_slice(&piece.unwrap().unwrap());
    }
    asking.send(bad).await;
    asking.pieces = None;
    let cut = loop {
        match tokio::time::timeout(Duration::from_secs(30), asking.response.chunk()).await.expect("an end in time") {
            Ok(Some(piece)) => asking.received.extend_from_slice(&piece),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(cut, "a part of the answers ends as all of them do");
    // What came before is whole, and right.
    let exact = server.predict("line", json!({"rows": [{"x": 0}, {"x": 1000}]})).await;
    let [start, later] = [0, 1].map(|row| exact["predictions"][row].as_f64().unwrap());
    let mut row = 0;
    for batch in StreamReader::try_new(asking.received.as_slice(), None).unwrap().map_while(Result::ok) {
        for &prediction in batch.column(0).as_primitive::<Float64Type>().values() {
            let expected = start + (later - start) / 1000.0 * f64::from(row);
            assert!((prediction - expected).abs() <= 1e-12 * expected.abs().max(1.0), "row {row}: {prediction}, not {expected}");
            row += 1;
        }
    }
    assert!((1..=300_000).contains(&row), "{row} rows were answered");
}

/// Writes `piece` over and over until the other side takes no more for a second, or until `most` bytes are written.
fn press(socket: &mut TcpStream, piece: &[u8], most: usize) -> usize {
    socket.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut written = 0;
    while written < most {
        match socket.write(&piece[written % piece.len()..]) {
            Ok(count) => written += count,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => break,
            Err(error) => panic!("{error}"),
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_answers_is_held_back_and_who_sends_little_is_not() {
    let server = line().await;
    let head = "POST /v1/models/line/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n";
    let address = server.address;
    tokio::task::spawn_blocking(move || {
        let text = "{\"x\":0.12345678}\n".repeat(1000);
        let mut socket = TcpStream::connect(address).unwrap();
        write!(socket, "{head}transfer-encoding: chunked\r\n\r\n").unwrap();
        let written = press(&mut socket, format!("{:x}\r\n{text}\r\n", text.len()).as_bytes(), 256 << 20);
        assert!(written < 64 << 20, "{written} bytes were taken without an answer read");
        // A client that reads only when it has sent all is answered, as long as its body is one that could be held in memory.
        let mut socket = TcpStream::connect(address).unwrap();
        let length = text.len() * 1000;
        write!(socket, "{head}content-length: {length}\r\nconnection: close\r\n\r\n").unwrap();
        assert_eq!(press(&mut socket, text.as_bytes(), length), length);
        let mut reply = String::new();
        socket.read_to_string(&mut reply).unwrap();
        assert_eq!(reply.matches("\"prediction\"").count(), 1_000_000);
    })
    .await
    .unwrap();
}

/// A server in a process of its own, whose memory can be told.
pub(crate) struct Alone {
    process: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Alone {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_lsqd"))
            .args(["--listen", "127.0.0.1:0", "--database"])
            .arg(folder.path().join("lsqd.db"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let address = first.trim_end().rsplit_once("http://").unwrap().1.to_owned();
        let server = Self { process, address, _folder: folder };
        let begun = Instant::now();
        while !server.ask("GET /readyz", "", b"").starts_with("HTTP/1.1 200") {
            assert!(begun.elapsed() < Duration::from_secs(30), "the server did not become ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        server.ask("PUT /v1/datasets/t", "text/csv", b"x,y\n1,1\n2,2.5\n3,2.75\n4,4\n");
        server.ask("POST /v1/models/line/fits", "application/json", b"{\"dataset\":\"t\",\"target\":\"y\"}");
        server
    }

    pub(crate) fn ask(&self, what: &str, media: &str, body: &[u8]) -> String {
        self.ask_with(what, media, &format!("content-length: {}", body.len()), body)
    }

    pub(crate) fn ask_with(&self, what: &str, media: &str, headers: &str, body: &[u8]) -> String {
        let mut socket = self.send(what, media, headers);
        // A server that has answered takes no more.
        let _ = socket.write_all(body);
        let mut reply = String::new();
        socket.read_to_string(&mut reply).unwrap();
        reply
    }

    fn send(&self, what: &str, media: &str, headers: &str) -> TcpStream {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        write!(socket, "{what} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {media}\r\n{headers}\r\n\r\n").unwrap();
        socket
    }

    /// The largest resident set so far, in MiB.
    #[cfg(target_os = "linux")]
    pub(crate) fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn two_hundred_megabytes_are_answered_in_little_memory() {
    let server = Alone::start();
    let before = server.memory();
    for (media, head, row) in [("text/csv", "x\n", "1.2345678901234567\n"), ("application/x-ndjson", "", "{\"x\":1.2345678901234567}\n")] {
        let text = row.repeat(50_000);
        let times = (100 << 20) / text.len();
        let headers = format!("content-length: {}", head.len() + times * text.len());
        let mut socket = server.send("POST /v1/models/line/predict?fields=predictions", media, &headers);
        let reading = socket.try_clone().unwrap();
        let reader =
            std::thread::spawn(move || BufReader::new(reading).lines().map_while(Result::ok).filter(|line| line.contains('.')).count());
        socket.write_all(head.as_bytes()).unwrap();
        for _ in 0..times {
            socket.write_all(text.as_bytes()).unwrap();
        }
        // The line with the status has a dot too.
        assert_eq!(reader.join().unwrap(), times * 50_000 + 1, "{media}");
    }
    let grown = server.memory() - before;
    assert!(grown < 64.0, "it took {grown} MiB more");
}
