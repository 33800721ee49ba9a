//! What was acknowledged survives: the real binary as a child process, killed at seeded random moments and started again on its file.
//!
//! - [`rounds`]: after a kill, the log is dense, holds every acknowledged row at the sequence that was answered, and replays to the same
//!   bits each time, the same bits as the same rows give on a server that was never killed. Rows that were on their way may have landed or
//!   not. A thousand kills: `LSQD_CRASH_ROUNDS=1000 cargo test --test crash random_moments -- --nocapture`.
//! - [`repeats`]: what is sent again has one effect and one reply. A hundred thousand operations:
//!   `LSQD_CRASH_OPERATIONS=100000 cargo test --test crash repeated_requests -- --nocapture`.
//! - [`erasures`]: a row of a dataset that is erased when the server is killed is gone from the table and from what a version knows, or from
//!   neither.
//! - [`backups`]: a backup that is made while rows are learnt is, once restored, the models of its sequences to the last bit.
//! - [`audit`]: each change is there with its record in the audit log, or neither is.
//!
//! A disk that fails and a power that is cut are in `tests/faults`. What is promised and how it is shown: `docs/reliability.md`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod audit;
mod backups;
mod erasures;
mod repeats;
mod rounds;
mod server;

use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use rounds::{WRITERS, write};
use server::{Server, TABLE, cells, copy, log, open, row, version};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_acknowledged_rows_are_all_there_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    let server = Server::start(&database).await;
    server.fit("m").await;
    for number in 0..1000 {
        let reply = server.ask("POST", "/v1/models/m/updates", Some(json!({"rows": [row(cells(0, number))]}).to_string())).await;
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
        request.body(json!({"rows": [row(cells(0, 1))]}).to_string()).send()
    };
    let mut event = row(cells(0, 2));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_series_goes_on_from_its_last_rows_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    let lags = json!({"column": "y", "as": "lag", "lags": [1, 3]});
    let fit = json!({"dataset": "s", "target": "y", "features": [lags, {"column": "z", "as": "difference", "lag": 1}]}).to_string();
    let table: String = (0..40).map(|number| cells(1, number)).map(|[_, z, y]| format!("{z},{y}\n")).collect();
    let rows = |from: u64, to: u64| {
        let row = |number| cells(1, number);
        json!({"rows": (from..to).map(row).map(|[_, z, y]| json!({"z": z, "y": y})).collect::<Vec<_>>()}).to_string()
    };
    let question = json!({"steps": 6, "rows": [{"z": 1}, {"z": 0}, {"z": 2}, {"z": 0}, {"z": 0}, {"z": 0}], "interval": {}}).to_string();
    let says = async |server: &Server| {
        let document = server.ask("GET", "/v1/models/s", None).await;
        let forecast = server.ask("POST", "/v1/models/s/forecast", Some(question.clone())).await;
        format!("{forecast} {} {}", document["coefficients"], document["fit"])
    };
    let server = Server::start(&database).await;
    server.ask("PUT", "/v1/datasets/s", Some(format!("z,y\n{table}"))).await;
    server.ask("POST", "/v1/models/s/fits", Some(fit)).await;
    let mut server = server;
    // Kills between updates, and between a start and the first one after it.
    for (from, to) in [(40, 41), (41, 70), (70, 71), (71, 300)] {
        server.ask("POST", "/v1/models/s/updates", Some(rows(from, to))).await;
        let before = says(&server).await;
        for _ in 0..2 {
            server.kill();
            server = Server::start(&database).await;
            assert_eq!(says(&server).await, before, "after row {to}");
        }
    }
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
    let text = |from: u64, to: u64| (from..to).map(|number| format!("{}\n", row(cells(0, number)))).collect::<String>();
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
    let rows: Vec<Value> = (0..total).map(|number| row(cells(0, number))).collect();
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
async fn predictions_of_a_dataset_that_a_kill_cuts_off_leave_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    let server = Server::start(&database).await;
    server.fit("m").await;
    server.ask("PUT", "/v1/datasets/long", Some("x,z\n".to_owned() + &"1.25,2.5\n".repeat(500_000))).await;
    let asked = json!({"dataset": "long", "into": "answers", "interval": {}, "explain": true}).to_string();
    let request = server.client.post(format!("{}/v1/models/m/predictions", server.url)).header("prefer", "respond-async");
    let response = request.header("idempotency-key", "p").body(asked.clone()).send().await.unwrap();
    assert_eq!(response.status(), 202);
    let job: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    tokio::time::sleep(Duration::from_millis(40)).await;
    server.kill();
    let server = Server::start(&database).await;
    let job = server.ask("GET", &path, None).await;
    assert_eq!((&job["state"], &job["problem"]["code"]), (&json!("interrupted"), &json!("interrupted")), "{job}");
    assert_eq!(server.send("GET", "/v1/datasets/answers", None).await.unwrap().0, 404);
    // Asked again, it is done.
    let done = server.ask("POST", "/v1/models/m/predictions", Some(asked)).await;
    assert_eq!((&done["name"], &done["rows"]), (&json!("answers"), &json!(500_000)));
    assert_eq!(server.ask("GET", "/v1/datasets/answers", None).await["rows"], 500_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_under_load_ends_it_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    let mut server = Server::start(&database).await;
    server.fit("m").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write(server.client.clone(), server.url.clone(), "m", writer, stop.clone()))).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(Command::new("kill").args(["-TERM", &server.child.id().to_string()]).status().unwrap().success());
    let status = server.end().await;
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

/// The snapshot of the state that a model stores at its ten-thousandth row is the witness: bytes, not what they lead to.
#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_a_state_are_those_of_a_replay_in_a_fresh_process() {
    const ROWS: u64 = 10_000;
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    let learn = async |server: &Server, numbers: std::ops::Range<u64>| {
        let rows: Vec<Value> = numbers.map(|number| row(cells(0, number))).collect();
        server.ask("POST", "/v1/models/m/updates", Some(json!({"rows": rows}).to_string())).await;
    };
    let stored = async |database: &std::path::Path| {
        let mut connection = open(database).await;
        let version = version(&mut connection, "m").await;
        lsqd::store::updates::snapshot(&mut connection, version, u64::MAX).await.unwrap()
    };
    let mut server = Server::start(&database).await;
    server.fit("m").await;
    for part in 0..9 {
        learn(&server, part * 1111..(part + 1) * 1111).await;
        if part % 3 == 1 {
            server.kill();
            server = Server::start(&database).await;
        }
    }
    // The server waits; what it has on disk is whole.
    let replayed = directory.path().join("replayed.db");
    copy(&database, &replayed);
    assert_eq!(stored(&replayed).await, None);
    learn(&server, ROWS - 1..ROWS).await;
    server.kill();
    let fresh = Server::start(&replayed).await;
    learn(&fresh, ROWS - 1..ROWS).await;
    fresh.kill();
    let (live, again) = (stored(&database).await.unwrap(), stored(&replayed).await.unwrap());
    assert_eq!((live.0, again.0), (ROWS, ROWS));
    assert!(live.1 == again.1, "the bytes of the states differ");
}

/// A limit on the size of files makes the real system refuse a write.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_ends_the_process_with_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("lsqd.db");
    // Room for the migrations, which grow in number, and for some updates.
    let mut server = Server::start_with_small_files(&database, 2_400).await;
    server.fit("m").await;
    let mut acknowledged = 0;
    let refusal = loop {
        match server.send("POST", "/v1/models/m/updates", Some(json!({"rows": [row(cells(0, acknowledged))]}).to_string())).await {
            Some((200, _)) => acknowledged += 1,
            other => break other,
        }
        assert!(acknowledged < 10_000, "no write failed");
    };
    assert!(refusal.is_none_or(|(status, _)| status >= 500));
    assert_eq!(server.end().await.code(), Some(1));
    assert!(acknowledged > 0);
    let rows = log(&database, "m").await.unwrap();
    assert!(rows.len() as u64 >= acknowledged, "{acknowledged} acknowledged, {} there", rows.len());
    assert!((0..).zip(&rows).all(|(number, row)| *row == cells(0, number)));
}
