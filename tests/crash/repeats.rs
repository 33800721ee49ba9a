//! Requests that may be sent again are, one to five times, with kills between: each has one effect and one reply.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::server::{Server, cells, log, row, send};

/// Operations unless `LSQD_CRASH_OPERATIONS` says otherwise.
const OPERATIONS: u64 = 600;
const WRITERS: u64 = 8;
const MODELS: [&str; 3] = ["a", "b", "c"];

/// A row that is to be learnt once.
struct Operation {
    model: &'static str,
    cells: [f64; 3],
    body: String,
    key: Option<String>,
    /// Replies that are still to be asked for.
    left: u32,
    answer: Option<Vec<u8>>,
}

impl Operation {
    fn new(number: u64, random: &mut StdRng) -> Self {
        let cells = cells(0, number);
        let mut row = row(cells);
        // One half says with the row that it is one event, the other with the request that it is one request.
        let key = (number / WRITERS).is_multiple_of(2).then(|| format!("k{number}"));
        if key.is_none() {
            row["_id"] = json!(format!("e{number}"));
        }
        let model = MODELS[random.random_range(0..MODELS.len())];
        Self { model, cells, body: json!({"rows": [row]}).to_string(), key, left: random.random_range(1..=5), answer: None }
    }

    /// Takes a reply in.
    fn answered(&mut self, reply: Vec<u8>) -> Result<(), String> {
        self.left -= 1;
        let Some(first) = &self.answer else {
            self.answer = Some(reply);
            return Ok(());
        };
        let told = |what: &str| Err(format!("{what}: {} then {}", String::from_utf8_lossy(first), String::from_utf8_lossy(&reply)));
        if self.key.is_some() {
            return if *first == reply { Ok(()) } else { told("one key, two replies") };
        }
        let (before, now): (Value, Value) = (serde_json::from_slice(first).unwrap(), serde_json::from_slice(&reply).unwrap());
        if now["accepted"] != 0 {
            return told("one event, learnt from twice");
        }
        // The sequence is that of the moment.
        let same = ["model", "version", "predictions", "errors"].into_iter().all(|member| before[member] == now[member]);
        if same { Ok(()) } else { told("one event, two replies") }
    }
}

/// Carries out the operations of one writer, wherever the server is at the moment. Returns requests that were sent.
async fn carry_out(operations: VecDeque<Operation>, mut server: watch::Receiver<Option<String>>, seed: u64) -> Result<u64, String> {
    let mut random = StdRng::seed_from_u64(seed);
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
    let (mut fresh, mut again, mut sent) = (operations, VecDeque::<Operation>::new(), 0);
    loop {
        let old = fresh.is_empty() || again.len() > 20 || random.random_bool(0.5);
        let Some(mut operation) = (if old { again.pop_front().or_else(|| fresh.pop_front()) } else { fresh.pop_front() }) else {
            return Ok(sent);
        };
        let path = format!("/v1/models/{}/updates", operation.model);
        loop {
            let url = server.wait_for(Option::is_some).await.map_err(|_| "no server comes back")?.clone().unwrap_or_default();
            sent += 1;
            match send(&client, &url, "POST", &path, operation.key.as_deref(), Some(operation.body.clone())).await {
                Some((200, reply)) => {
                    operation.answered(reply)?;
                    break;
                }
                // It was killed while this was on its way: nobody knows, so it is sent again.
                Some((503, _)) | None => tokio::time::sleep(Duration::from_millis(1)).await,
                Some((status, problem)) => return Err(format!("{status}: {}", String::from_utf8_lossy(&problem))),
            }
        }
        if operation.left > 0 {
            again.push_back(operation);
        }
    }
}

/// What happened.
#[derive(Debug)]
struct Told {
    sent: u64,
    kills: u64,
}

/// Carries out so many operations on a server that is killed again and again.
///
/// # Errors
/// An operation had no effect, more than one, or two replies.
async fn play(operations: u64, planted: Option<&str>) -> Result<Told, String> {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("lsqd.db");
    let mut server = Server::start_with(&database, planted).await;
    for model in MODELS {
        server.fit(model).await;
    }
    let (place, watched) = watch::channel(Some(server.url.clone()));
    let mut random = StdRng::seed_from_u64(operations);
    let mut queues: Vec<VecDeque<Operation>> = (0..WRITERS).map(|_| VecDeque::new()).collect();
    let mut expected: HashMap<&str, Vec<[u64; 3]>> = HashMap::new();
    for (number, queue) in (0..operations).zip((0..queues.len()).cycle()) {
        let operation = Operation::new(number, &mut random);
        expected.entry(operation.model).or_default().push(operation.cells.map(f64::to_bits));
        queues[queue].push_back(operation);
    }
    let mut writers = tokio::task::JoinSet::new();
    for (seed, queue) in (0..).zip(queues) {
        writers.spawn(carry_out(queue, watched.clone(), seed));
    }
    let (mut sent, mut kills) = (0, 0);
    while !writers.is_empty() {
        let wait = Duration::from_millis(random.random_range(20..400));
        match tokio::time::timeout(wait, writers.join_next()).await {
            Ok(Some(done)) => sent += done.unwrap()?,
            Ok(None) => break,
            Err(_) => {
                place.send_replace(None);
                server.kill();
                kills += 1;
                server = Server::start_with(&database, planted).await;
                place.send_replace(Some(server.url.clone()));
            }
        }
    }
    server.kill();
    check(&database, expected).await?;
    Ok(Told { sent, kills })
}

/// Whether each operation is in the log, once.
async fn check(database: &Path, expected: HashMap<&str, Vec<[u64; 3]>>) -> Result<(), String> {
    for (model, mut expected) in expected {
        let mut found: Vec<[u64; 3]> = log(database, model).await?.iter().map(|row| row.map(f64::to_bits)).collect();
        if found.len() != expected.len() {
            return Err(format!("{model}: {} operations, {} rows learnt", expected.len(), found.len()));
        }
        found.sort_unstable();
        expected.sort_unstable();
        if found != expected {
            return Err(format!("{model} has learnt other rows than it was sent"));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_requests_have_one_effect_and_one_reply_across_kills() {
    let begun = std::time::Instant::now();
    let operations = std::env::var("LSQD_CRASH_OPERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(OPERATIONS);
    let Told { sent, kills } = play(operations, None).await.unwrap();
    assert!(kills > 0, "it was over before the first kill");
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("{operations} operations, {sent} requests, {kills} kills; each had one effect and one reply: {seconds:.1} s");
}

#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread")]
async fn the_repeats_find_that_nothing_is_remembered() {
    let fault = play(100, Some("no-deduplication")).await.unwrap_err();
    assert!(fault.contains("one key, two replies") || fault.contains("one event, learnt from twice"), "{fault}");
}
