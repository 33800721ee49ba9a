//! What was acknowledged survives: the real binary as a child process, killed at seeded random moments and started again on its file.
//!
//! After a kill, the log is dense, holds every acknowledged row at the sequence that was answered, and replays to the same bits each time,
//! the same bits as the same rows give on a server that was never killed. Rows that were on their way may have landed or not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

/// Rounds of [`acknowledged_rows_survive_kills_at_random_moments`] unless `LSQD_CRASH_ROUNDS` says otherwise.
const ROUNDS: u64 = 50;
const WRITERS: usize = 4;
/// The rows that every model here is fitted on.
const TABLE: &str = "x,z,y\n1,0.5,1\n2,-1,2.5\n3,0.25,2.75\n4,2,4\n5,-0.125,5.5\n";

/// A child process that serves.
struct Server {
    child: Child,
    url: String,
    client: reqwest::Client,
}

impl Server {
    /// Starts the binary on a database and waits until it is ready.
    async fn start(database: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lsqd"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LSQD_")) {
            command.env_remove(name);
        }
        command
            .current_dir(database.parent().unwrap())
            .args(["--listen", "127.0.0.1:0", "--log-level", "error", "--database"])
            .arg(database);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(url.starts_with("http://"), "the first line does not name an address: {line:?}");
        let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
        let server = Self { child, url, client };
        let begun = Instant::now();
        while server.send("GET", "/readyz", None).await.is_none_or(|(status, _)| status != 200) {
            assert!(begun.elapsed() < Duration::from_secs(30), "the server did not become ready");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        server
    }

    /// Ends it without a chance to tidy up.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a request; `None` when the server is gone.
    async fn send(&self, method: &str, path: &str, body: Option<String>) -> Option<(u16, Value)> {
        send(&self.client, &self.url, method, path, body).await
    }

    /// Sends a request that must succeed.
    async fn ask(&self, method: &str, path: &str, body: Option<String>) -> Value {
        let (status, value) = self.send(method, path, body).await.expect("an answer");
        assert!(status < 300, "{method} {path} -> {status}: {value}");
        value
    }

    /// Stores the table and fits `model` on it.
    async fn fit(&self, model: &str) {
        if self.send("GET", "/v1/datasets/t", None).await.unwrap().0 == 404 {
            self.ask("PUT", "/v1/datasets/t", Some(TABLE.to_owned())).await;
        }
        let body = json!({"dataset": "t", "target": "y", "online": {"forgetting_factor": 0.999}});
        self.ask("POST", &format!("/v1/models/{model}/fits"), Some(body.to_string())).await;
    }

    /// Everything the model says, as text: sequence, predictions, limits, leverage and coefficients of this moment.
    async fn says(&self, model: &str) -> (u64, String) {
        let rows: Vec<Value> = (-3..4).map(|x| json!({"x": f64::from(x) * 1.7, "z": f64::from(x * x) - 2.5})).collect();
        let question = json!({"rows": rows, "interval": {"kind": "prediction", "level": 0.9}, "explain": true});
        let mut answer = self.ask("POST", &format!("/v1/models/{model}/predict"), Some(question.to_string())).await;
        let document = self.ask("GET", &format!("/v1/models/{model}"), None).await;
        let sequence = answer["sequence"].as_u64().unwrap();
        assert_eq!(document["sequence"], sequence);
        for place in ["model", "version"] {
            answer[place] = Value::Null;
        }
        (sequence, format!("{answer} {} {}", document["coefficients"], document["fit"]))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test that fails must not leave its server behind; one that ended is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn send(client: &reqwest::Client, url: &str, method: &str, path: &str, body: Option<String>) -> Option<(u16, Value)> {
    let mut request = client.request(method.parse().unwrap(), format!("{url}{path}"));
    if let Some(body) = body {
        request = request.body(body);
    }
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    let body = response.bytes().await.ok()?;
    Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

/// A row of writer `writer`, its `number`th: no two are alike.
fn row(writer: usize, number: u64) -> Value {
    let x = number as f64 * 0.37 + writer as f64;
    json!({"x": x, "z": (x * 1.3).sin(), "y": 1.1 * x + (x * 7.0).cos()})
}

/// What a writer knows when the server is gone: its acknowledged rows by sequence, and the one that was on its way.
struct Account {
    acknowledged: BTreeMap<u64, Value>,
    pending: Option<Value>,
}

/// Sends rows one after another until the server no longer answers, or `stop` is set.
async fn write(client: reqwest::Client, url: String, writer: usize, stop: Arc<AtomicBool>) -> Account {
    let mut account = Account { acknowledged: BTreeMap::new(), pending: None };
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let row = row(writer, number);
        match send(&client, &url, "POST", "/v1/models/m/updates", Some(json!({"rows": [row]}).to_string())).await {
            Some((200, reply)) => assert!(account.acknowledged.insert(reply["sequence"].as_u64().unwrap(), row).is_none()),
            Some((503, _)) => break,
            Some((status, problem)) => panic!("{status}: {problem}"),
            None => {
                account.pending = Some(row);
                break;
            }
        }
    }
    account
}

/// All ways to fill `places` with different ones of `rows`.
fn arrangements(rows: &[Value], places: usize) -> Vec<Vec<Value>> {
    if places == 0 {
        return vec![Vec::new()];
    }
    let mut found = Vec::new();
    for chosen in 0..rows.len() {
        let mut rest = rows.to_vec();
        let first = rest.remove(chosen);
        for mut tail in arrangements(&rest, places - 1) {
            tail.insert(0, first.clone());
            found.push(tail);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_rows_survive_kills_at_random_moments() {
    let rounds = std::env::var("LSQD_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let directory = tempfile::tempdir().unwrap();
    let witness = Server::start(&directory.path().join("witness.db")).await;
    let (mut learnt, mut landed) = (0, 0);
    for round in 0..rounds {
        let mut random = StdRng::seed_from_u64(round);
        let database = directory.path().join(format!("{round}.db"));
        let server = Server::start(&database).await;
        server.fit("m").await;
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| tokio::spawn(write(server.client.clone(), server.url.clone(), writer, stop.clone()))).collect();
        tokio::time::sleep(Duration::from_micros(random.random_range(1_000..120_000))).await;
        server.kill();
        let (mut known, mut pending) = (BTreeMap::new(), Vec::new());
        for writer in writers {
            let account = writer.await.unwrap();
            for (sequence, row) in account.acknowledged {
                assert!(known.insert(sequence, row).is_none(), "round {round}: sequence {sequence} was answered twice");
            }
            pending.extend(account.pending);
        }

        let restarted = Server::start(&database).await;
        let (sequence, said) = restarted.says("m").await;
        restarted.kill();
        let last = known.last_key_value().map_or(0, |(last, _)| *last);
        assert!(
            sequence >= last && sequence >= known.len() as u64,
            "round {round}: {sequence} rows are left of {} acknowledged",
            known.len()
        );
        let missing: Vec<u64> = (1..=sequence).filter(|place| !known.contains_key(place)).collect();
        assert!(missing.len() <= pending.len(), "round {round}: rows at {missing:?} were never sent");
        let restarted = Server::start(&database).await;
        assert_eq!(restarted.says("m").await, (sequence, said.clone()), "round {round}: two starts on one file differ");

        // The sequences tell the order of the log, but for the rows on their way that landed: one of their orders must give the same bits.
        let mut agreed = false;
        for tail in arrangements(&pending, missing.len()) {
            let mut order = known.clone();
            order.extend(missing.iter().copied().zip(tail));
            witness.fit("m").await;
            let rows: Vec<Value> = order.into_values().collect();
            witness.ask("POST", "/v1/models/m/updates", Some(json!({"rows": rows}).to_string())).await;
            agreed = witness.says("m").await == (sequence, said.clone());
            if agreed {
                break;
            }
        }
        assert!(agreed, "round {round}: the replay of {sequence} rows gives other bits");

        // It goes on learning where it stopped.
        let reply = restarted.ask("POST", "/v1/models/m/updates", Some(json!({"rows": [row(9, 1)]}).to_string())).await;
        assert_eq!(reply["sequence"], sequence + 1);
        learnt += known.len();
        landed += missing.len();
    }
    assert!(rounds < 10 || learnt > 0, "no round acknowledged a row");
    eprintln!("{rounds} kills, {learnt} acknowledged rows, all there; {landed} rows landed without their answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_acknowledged_rows_are_all_there_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    let server = Server::start(&database).await;
    server.fit("m").await;
    for number in 0..1000 {
        let reply = server.ask("POST", "/v1/models/m/updates", Some(json!({"rows": [row(0, number)]}).to_string())).await;
        assert_eq!((&reply["sequence"], &reply["accepted"]), (&json!(number + 1), &json!(1)));
    }
    let before = server.says("m").await;
    assert_eq!(before.0, 1000);
    server.kill();
    let server = Server::start(&database).await;
    assert_eq!(server.says("m").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_events_are_remembered_across_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    let server = Server::start(&database).await;
    server.fit("m").await;
    let keyed = |server: &Server| {
        let request = server.client.post(format!("{}/v1/models/m/updates", server.url)).header("idempotency-key", "k");
        request.body(json!({"rows": [row(0, 1)]}).to_string()).send()
    };
    let mut event = row(0, 2);
    event["_id"] = json!("e");
    let event = json!({"rows": [event]}).to_string();
    let first = keyed(&server).await.unwrap().bytes().await.unwrap();
    let learnt = server.ask("POST", "/v1/models/m/updates", Some(event.clone())).await;
    let before = server.says("m").await;
    server.kill();
    let server = Server::start(&database).await;
    assert_eq!(keyed(&server).await.unwrap().bytes().await.unwrap(), first);
    let again = server.ask("POST", "/v1/models/m/updates", Some(event)).await;
    assert_eq!((&again["accepted"], &again["predictions"]), (&json!(0), &learnt["predictions"]));
    assert_eq!(server.says("m").await, before);
}

/// Sends a body without a length under a key, piece by piece, and reads acknowledgements until `enough` rows are told of; then kills, or
/// reads to the end.
async fn stream(server: Server, pieces: Vec<String>, enough: u64) -> (Option<Server>, Vec<Value>) {
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>)));
    let request = server.client.post(format!("{}/v1/models/m/updates", server.url)).header("content-type", "application/x-ndjson");
    let mut response = request.header("idempotency-key", "stream").body(body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let (mut text, mut told) = (Vec::new(), Vec::<Value>::new());
    while let Ok(Some(piece)) = response.chunk().await {
        text.extend_from_slice(&piece);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            told.push(serde_json::from_slice(&text.drain(..=end).collect::<Vec<u8>>()).unwrap());
        }
        if told.iter().map(|line| line["accepted"].as_u64().unwrap()).sum::<u64>() >= enough {
            server.kill();
            return (None, told);
        }
    }
    (Some(server), told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_cut_by_a_kill_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    let (total, each) = (60_000_u64, 250_u64);
    let text = |from: u64, to: u64| (from..to).map(|number| format!("{}\n", row(0, number))).collect::<String>();
    let pieces: Vec<String> = (0..total / each).map(|piece| text(piece * each, (piece + 1) * each)).collect();
    let server = Server::start(&database).await;
    server.fit("m").await;
    let (mut running, mut kills) = (Some(server), 0);
    let mut told = Vec::new();
    for enough in [2_000, 9_000, u64::MAX] {
        (running, told) = stream(running.take().unwrap(), pieces.clone(), enough).await;
        if running.is_none() {
            kills += 1;
            let server = Server::start(&database).await;
            let acknowledged = told.last().unwrap()["last_line"].as_u64().unwrap();
            let (sequence, _) = server.says("m").await;
            assert!(sequence >= acknowledged, "{sequence} rows are left of {acknowledged} acknowledged");
            running = Some(server);
        }
    }
    let server = running.unwrap();
    assert_eq!((kills, &told[0]["replayed"], &told.last().unwrap()["last_line"]), (2, &json!(true), &json!(total)));
    let once = server.says("m").await;
    assert_eq!(once.0, total);
    let witness = Server::start(&directory.path().join("witness.db")).await;
    witness.fit("m").await;
    let rows: Vec<Value> = (0..total).map(|number| row(0, number)).collect();
    witness.ask("POST", "/v1/models/m/updates", Some(json!({"rows": rows}).to_string())).await;
    assert_eq!(witness.says("m").await, once, "the replay gives other bits");
}

#[tokio::test(flavor = "multi_thread")]
async fn predictions_and_their_labels_are_remembered_across_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    let server = Server::start(&database).await;
    server.fit("m").await;
    let question = json!({"rows": [{"x": 1.5, "z": 0.5}, {"x": 2.5, "z": -0.5}], "remember": true});
    let ids = server.ask("POST", "/v1/models/m/predict", Some(question.to_string())).await["prediction_ids"].clone();
    server.kill();
    let server = Server::start(&database).await;
    let label = json!({"labels": [{"prediction_id": ids[0], "value": 1.75}]}).to_string();
    let learnt = server.ask("POST", "/v1/models/m/labels", Some(label.clone())).await;
    assert_eq!((&learnt["accepted"], &learnt["sequence"]), (&json!(1), &json!(1)));
    let before = server.says("m").await;
    server.kill();
    let server = Server::start(&database).await;
    assert_eq!(server.says("m").await, before);
    let again = server.ask("POST", "/v1/models/m/labels", Some(label)).await;
    assert_eq!((&again["accepted"], &again["errors"]), (&json!(0), &learnt["errors"]));
    let other = json!({"labels": [{"prediction_id": ids[1], "value": 2.5}]}).to_string();
    assert_eq!(server.ask("POST", "/v1/models/m/labels", Some(other)).await["sequence"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_cut_by_a_kill_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    let server = Server::start(&database).await;
    server.ask("PUT", "/v1/datasets/kept", Some(TABLE.to_owned())).await;
    let kept = server.ask("GET", "/v1/datasets/kept", None).await;
    let mut streams = Vec::new();
    for path in ["PUT /v1/datasets/new", "PUT /v1/datasets/kept", "POST /v1/datasets/kept/rows"] {
        let mut stream = std::net::TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
        write!(stream, "{path} HTTP/1.1\r\nhost: a\r\ncontent-type: text/csv\r\ncontent-length: 99999999\r\n\r\nx,z,y\n").unwrap();
        // Several chunks are stored before the end.
        stream.write_all("1.25,2.5,3\n".repeat(300_000).as_bytes()).unwrap();
        streams.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.kill();
    drop(streams);
    let server = Server::start(&database).await;
    assert_eq!(server.send("GET", "/v1/datasets/new", None).await.unwrap().0, 404);
    assert_eq!(server.ask("GET", "/v1/datasets/kept", None).await, kept);
    assert_eq!(server.ask("GET", "/v1/datasets", None).await["items"].as_array().unwrap().len(), 1);
    server.fit("m").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fit_that_runs_when_the_server_is_killed_is_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    let server = Server::start(&database).await;
    let columns = 60;
    let mut random = StdRng::seed_from_u64(1);
    let mut csv = (0..columns).map(|column| format!("x{column},")).collect::<String>() + "y\n";
    for _ in 0..10_000 {
        (0..columns).for_each(|_| csv.push_str(&format!("{:.5},", random.random_range(-1.0..1.0))));
        csv.push_str("1\n");
    }
    server.ask("PUT", "/v1/datasets/large", Some(csv)).await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        let body = json!({"dataset": "large", "target": "y", "solver": "exact"}).to_string();
        let request = server.client.post(format!("{}/v1/models/m/fits", server.url)).header("prefer", "respond-async").body(body);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 202);
        let job: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        jobs.push(job["id"].as_str().unwrap().to_owned());
    }
    server.kill();
    let server = Server::start(&database).await;
    let mut interrupted = 0;
    for id in jobs {
        let job = server.ask("GET", &format!("/v1/jobs/{id}"), None).await;
        match job["state"].as_str() {
            Some("interrupted") => {
                assert_eq!(job["problem"]["code"], "interrupted");
                interrupted += 1;
            }
            // It was over before the kill; then its version is there.
            Some("succeeded") => assert!(server.send("GET", &format!("/v1/models/m@{}", job["version"]), None).await.unwrap().0 == 200),
            _ => panic!("{job}"),
        }
    }
    assert!(interrupted > 0, "no fit was running when the server was killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_under_load_ends_it_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    let mut server = Server::start(&database).await;
    server.fit("m").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write(server.client.clone(), server.url.clone(), writer, stop.clone()))).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    assert!(Command::new("kill").args(["-TERM", &server.child.id().to_string()]).status().unwrap().success());
    let status = loop {
        match server.child.try_wait().unwrap() {
            Some(status) => break status,
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        assert!(begun.elapsed() < Duration::from_secs(25), "it did not end within 25 s");
    };
    assert!(status.success(), "{status}");
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = 0;
    for writer in writers {
        acknowledged += writer.await.unwrap().acknowledged.len() as u64;
    }
    assert!(acknowledged > 0);
    let server = Server::start(&database).await;
    let (sequence, _) = server.says("m").await;
    assert!((acknowledged..=acknowledged + WRITERS as u64).contains(&sequence), "{acknowledged} acknowledged, {sequence} there");
}
