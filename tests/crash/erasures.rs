//! Rows of a dataset are erased while others are learnt, and the server is killed in the middle of it: a row is gone from the table and from
//! what the version knows, or from neither.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::rounds::write;
use crate::server::{Server, cells, log, row, send};

/// Kills unless `LSQD_CRASH_ERASURES` says otherwise.
const KILLS: u64 = 12;
const ROWS: u64 = 60;

/// The table without the first rows.
fn table(erased: u64) -> String {
    let row = |number: u64| {
        let [x, z, y] = cells(9, number);
        format!("{number},{x},{z},{y}\n")
    };
    "number,x,z,y\n".to_owned() + &(erased..ROWS).map(row).collect::<String>()
}

async fn fit(server: &Server, rows: String) {
    server.ask("PUT", "/v1/datasets/d", Some(rows)).await;
    let body = json!({"dataset": "d", "target": "y", "features": ["x", "z"], "online": {"forgetting_factor": 0.999}});
    server.ask("POST", "/v1/models/m/fits", Some(body.to_string())).await;
}

/// Erases one row after another from `first` on until the server is gone; how many were acknowledged in all.
async fn erase(client: reqwest::Client, url: String, first: u64, stop: Arc<AtomicBool>) -> u64 {
    let mut erased = first;
    while erased < ROWS / 2 && !stop.load(Ordering::Relaxed) {
        match send(&client, &url, "DELETE", &format!("/v1/datasets/d/rows?column=number&value={erased}"), None, None).await {
            Some((200, _)) => erased += 1,
            Some((503, _)) | None => break,
            Some((status, problem)) => panic!("{status}: {}", String::from_utf8_lossy(&problem)),
        }
    }
    erased
}

/// The numbers of all coefficients, standard errors and predictions.
async fn figures(server: &Server) -> Vec<f64> {
    let document = server.ask("GET", "/v1/models/m", None).await;
    let question = json!({"rows": [{"x": -2.0, "z": 1.0}, {"x": 9.0, "z": -0.5}], "interval": {"kind": "prediction", "level": 0.9}});
    let answer = server.ask("POST", "/v1/models/m/predict", Some(question.to_string())).await;
    let coefficients =
        document["coefficients"].as_array().unwrap().iter().flat_map(|coefficient| [&coefficient["estimate"], &coefficient["std_error"]]);
    let answers = ["predictions", "lower", "upper"].map(|name| answer[name].as_array().unwrap()).into_iter().flatten();
    coefficients.chain(answers).map(|number| number.as_f64().unwrap()).collect()
}

/// How many rows are gone from the table, and those that are left.
async fn stored(server: &Server) -> (u64, String) {
    let listed = server.client.get(format!("{}/v1/datasets/d/rows", server.url)).header("accept", "text/csv").send().await.unwrap();
    let text = listed.text().await.unwrap();
    (ROWS + 1 - text.lines().count() as u64, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_an_erasure_leaves_a_row_everywhere_or_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let witness = Server::start(&folder.path().join("witness.db")).await;
    let kills = std::env::var("LSQD_CRASH_ERASURES").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let (mut acknowledged, mut landed) = (0, 0);
    for round in 0..kills {
        let mut random = StdRng::seed_from_u64(round);
        let database = folder.path().join(format!("{round}.db"));
        let server = Server::start(&database).await;
        fit(&server, table(0)).await;
        let stop = Arc::new(AtomicBool::new(false));
        let eraser = tokio::spawn(erase(server.client.clone(), server.url.clone(), 0, stop.clone()));
        let writers: Vec<_> =
            (0..3).map(|writer| tokio::spawn(write(server.client.clone(), server.url.clone(), "m", writer, stop.clone()))).collect();
        tokio::time::sleep(Duration::from_micros(random.random_range(5_000..150_000))).await;
        server.kill();
        let erased = eraser.await.unwrap();
        let mut known = 0;
        for writer in writers {
            known += writer.await.unwrap().acknowledged.len();
        }
        let restarted = Server::start(&database).await;
        let (gone, text) = stored(&restarted).await;
        assert!((erased..=erased + 1).contains(&gone), "round {round}: {erased} erasures were acknowledged, {gone} rows are gone");
        let unlearnt = restarted.ask("GET", "/v1/models/m", None).await["unlearnt"]["rows"].as_u64().unwrap_or(0);
        assert_eq!(unlearnt, gone, "round {round}: the table and the version disagree");
        let (says, own) = (restarted.says("m").await, figures(&restarted).await);
        restarted.kill();
        let rows = log(&database, "m").await.unwrap();
        assert!(rows.len() >= known && says.0 == rows.len() as u64, "round {round}: {known} acknowledged, {} learnt", rows.len());
        // One that never saw the rows, and was never killed.
        fit(&witness, table(gone)).await;
        if !rows.is_empty() {
            let body = json!({"rows": rows.iter().copied().map(row).collect::<Vec<Value>>()}).to_string();
            witness.ask("POST", "/v1/models/m/updates", Some(body)).await;
        }
        let (_, never) = stored(&witness).await;
        assert_eq!(text, never, "round {round}");
        for (one, other) in own.iter().zip(figures(&witness).await) {
            assert!((one - other).abs() <= 1e-9 * other.abs().max(1e-3), "round {round}: {one} is not {other}, as if never seen");
        }
        let again = Server::start(&database).await;
        assert_eq!(again.says("m").await, says, "round {round}: two starts on one file differ");
        again.kill();
        acknowledged += erased;
        landed += gone - erased;
    }
    assert!(acknowledged >= kills, "only {acknowledged} rows were erased");
    eprintln!("{kills} kills, {acknowledged} rows erased, all gone; {landed} erasures landed without their answer");
}
