//! Requests that may be sent again are, one to five times, with kills between: each has one effect and one reply.

use std::collections::{BTreeSet, HashMap, VecDeque};
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

/// Something that is to be done once.
struct Operation {
    kind: Kind,
    path: String,
    body: String,
    key: Option<String>,
    /// Replies that are still to be asked for.
    left: u32,
    answer: Option<(u16, Vec<u8>)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A row with an `_id` for a model.
    Event,
    /// A row for a model, the request with a key.
    Keyed,
    /// A row for the dataset, with a key.
    Append,
    /// A fit, with a key.
    Fit,
}

impl Operation {
    fn new(number: u64, random: &mut StdRng, expected: &mut Expected) -> Self {
        let kind = match random.random_range(0..128) {
            0 => Kind::Fit,
            1..=16 => Kind::Append,
            17..=72 => Kind::Keyed,
            _ => Kind::Event,
        };
        let cells = cells(0, number);
        let (path, body) = match kind {
            Kind::Event | Kind::Keyed => {
                let model = MODELS[random.random_range(0..MODELS.len())];
                expected.rows.entry(model).or_default().push(cells.map(f64::to_bits));
                let mut row = row(cells);
                if kind == Kind::Event {
                    row["_id"] = json!(format!("e{number}"));
                }
                (format!("/v1/models/{model}/updates"), json!({"rows": [row]}).to_string())
            }
            Kind::Append => {
                expected.appended += 1;
                ("/v1/datasets/log/rows".to_owned(), format!("n\n{number}\n"))
            }
            Kind::Fit => ("/v1/models/fitted/fits".to_owned(), json!({"dataset": "t", "target": "y"}).to_string()),
        };
        let key = (kind != Kind::Event).then(|| format!("k{number}"));
        Self { kind, path, body, key, left: random.random_range(1..=5), answer: None }
    }

    /// Takes a reply in; whether it was one, and the operation is not to be sent again at once.
    fn answered(&mut self, status: u16, reply: &[u8]) -> Result<bool, String> {
        let value: Value = serde_json::from_slice(reply).unwrap_or_default();
        match (status, self.kind) {
            // A job that runs is no end; one that a kill has cut is, and stays so.
            (202, Kind::Fit) => return Ok(false),
            (503, Kind::Fit) if value["code"] == "interrupted" => {}
            (503, _) => return Ok(false),
            (200 | 201, _) => {}
            _ => return Err(format!("{} {} -> {status}: {}", self.path, self.body, String::from_utf8_lossy(reply))),
        }
        self.left -= 1;
        let Some((first_status, first)) = &self.answer else {
            self.answer = Some((status, reply.to_vec()));
            return Ok(true);
        };
        let before: Value = serde_json::from_slice(first).unwrap_or_default();
        let same = |members: &[&str]| *first_status == status && members.iter().all(|member| before[*member] == value[*member]);
        let fault = match self.kind {
            Kind::Event if value["accepted"] != 0 => "one event, learnt from twice",
            // The sequence is that of the moment.
            Kind::Event if !same(&["model", "version", "predictions", "errors"]) => "one event, two replies",
            // So are the aliases of a version, and each reply has a request of its own.
            Kind::Fit if !same(&["version", "coefficients", "created_at", "code"]) => "one key, two fits",
            Kind::Keyed | Kind::Append if *first != reply => "one key, two replies",
            _ => return Ok(true),
        };
        Err(format!("{fault}: {} then {}", String::from_utf8_lossy(first), String::from_utf8_lossy(reply)))
    }
}

/// What must be there in the end.
#[derive(Default)]
struct Expected {
    rows: HashMap<&'static str, Vec<[u64; 3]>>,
    appended: u64,
}

/// Carries out the operations of one writer, wherever the server is at the moment. Returns the requests that were sent and the versions
/// that were fitted.
async fn carry_out(
    operations: VecDeque<Operation>,
    mut server: watch::Receiver<Option<String>>,
    seed: u64,
) -> Result<(u64, BTreeSet<u64>), String> {
    let mut random = StdRng::seed_from_u64(seed);
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
    let (mut fresh, mut again, mut sent) = (operations, VecDeque::<Operation>::new(), 0);
    let mut fitted = BTreeSet::new();
    loop {
        let old = fresh.is_empty() || again.len() > 20 || random.random_bool(0.5);
        let Some(mut operation) = (if old { again.pop_front().or_else(|| fresh.pop_front()) } else { fresh.pop_front() }) else {
            return Ok((sent, fitted));
        };
        loop {
            let url = server.wait_for(Option::is_some).await.map_err(|_| "no server comes back")?.clone().unwrap_or_default();
            sent += 1;
            match send(&client, &url, "POST", &operation.path, operation.key.as_deref(), Some(operation.body.clone())).await {
                Some((status, reply)) if operation.answered(status, &reply)? => break,
                // It is not done yet, or the server was killed while this was on its way and nobody knows: it is sent again.
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        if operation.kind == Kind::Fit
            && let Some((201, reply)) = &operation.answer
        {
            fitted.insert(serde_json::from_slice::<Value>(reply).unwrap()["version"].as_u64().unwrap());
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
    server.ask("PUT", "/v1/datasets/log", Some("n\n-1\n".to_owned())).await;
    let (place, watched) = watch::channel(Some(server.url.clone()));
    let mut random = StdRng::seed_from_u64(operations);
    let mut queues: Vec<VecDeque<Operation>> = (0..WRITERS).map(|_| VecDeque::new()).collect();
    let mut expected = Expected::default();
    for (number, queue) in (0..operations).zip((0..queues.len()).cycle()) {
        queues[queue].push_back(Operation::new(number, &mut random, &mut expected));
    }
    let mut writers = tokio::task::JoinSet::new();
    for (seed, queue) in (0..).zip(queues) {
        writers.spawn(carry_out(queue, watched.clone(), seed));
    }
    let (mut sent, mut kills, mut fitted) = (0, 0, Vec::new());
    while !writers.is_empty() {
        let wait = Duration::from_millis(random.random_range(20..400));
        match tokio::time::timeout(wait, writers.join_next()).await {
            Ok(Some(done)) => {
                let (requests, versions) = done.unwrap()?;
                sent += requests;
                fitted.extend(versions);
            }
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
    let versions = count(&server, "/v1/models/fitted/versions").await;
    // Two operations cannot have made one version, and no version was made without being told of.
    fitted.sort_unstable();
    if fitted.len() as u64 != versions || fitted.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(format!("{versions} versions, but {fitted:?} were fitted"));
    }
    let rows = server.ask("GET", "/v1/datasets/log", None).await["rows"].as_u64().unwrap();
    if rows != expected.appended + 1 {
        return Err(format!("{} rows were appended to one, there are {rows}", expected.appended));
    }
    server.kill();
    check(&database, expected.rows).await?;
    Ok(Told { sent, kills })
}

/// How many entries a paged list has.
async fn count(server: &Server, path: &str) -> u64 {
    let (mut count, mut after) = (0, String::new());
    loop {
        let page = server.ask("GET", &format!("{path}?limit=100{after}"), None).await;
        count += page["items"].as_array().unwrap().len() as u64;
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return count,
        }
    }
}

/// Whether each row to learn is in the log, once.
async fn check(database: &Path, expected: HashMap<&'static str, Vec<[u64; 3]>>) -> Result<(), String> {
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
