//! Eight writers on three models, a kill at a random moment, a look; again, on a new file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::server::{Server, cells, log, row, send};

/// Rounds unless `LSQD_CRASH_ROUNDS` says otherwise.
const ROUNDS: u64 = 30;
pub(crate) const WRITERS: usize = 8;
const MODELS: [&str; 3] = ["a", "b", "c"];

/// What a writer knows when the server is gone: its acknowledged rows by sequence, and the one that was on its way.
pub(crate) struct Account {
    pub(crate) acknowledged: BTreeMap<u64, [f64; 3]>,
    pub(crate) pending: Option<[f64; 3]>,
}

/// Sends rows one after another until the server no longer answers, or `stop` is set: plain ones, ones with an `_id`, and ones with a key.
pub(crate) async fn write(client: reqwest::Client, url: String, model: &'static str, writer: usize, stop: Arc<AtomicBool>) -> Account {
    let mut account = Account { acknowledged: BTreeMap::new(), pending: None };
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let cells = cells(writer, number);
        let mut row = row(cells);
        if number % 3 == 1 {
            row["_id"] = json!(format!("{writer}-{number}"));
        }
        let key = (number % 3 == 2).then(|| format!("{writer}-{number}"));
        let body = json!({"rows": [row]}).to_string();
        match send(&client, &url, "POST", &format!("/v1/models/{model}/updates"), key.as_deref(), Some(body)).await {
            Some((200, reply)) => {
                let reply: Value = serde_json::from_slice(&reply).unwrap();
                assert!(account.acknowledged.insert(reply["sequence"].as_u64().unwrap(), cells).is_none());
            }
            Some((503, _)) => break,
            Some((status, problem)) => panic!("{status}: {}", String::from_utf8_lossy(&problem)),
            None => {
                account.pending = Some(cells);
                break;
            }
        }
    }
    account
}

/// Whether two rows have the same bits.
fn same(one: &[f64; 3], other: &[f64; 3]) -> bool {
    one.map(f64::to_bits) == other.map(f64::to_bits)
}

/// Lets writers write, kills the server, and looks at one model after another.
///
/// # Errors
/// What was promised and is not so.
async fn round(round: u64, folder: &Path, witness: &Server, planted: Option<&str>) -> Result<(usize, usize), String> {
    let mut random = StdRng::seed_from_u64(round);
    let database = folder.join(format!("{round}.db"));
    let server = Server::start_with(&database, planted).await;
    for model in MODELS {
        server.fit(model).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(server.client.clone(), server.url.clone(), MODELS[writer % MODELS.len()], writer, stop.clone())))
        .collect();
    tokio::time::sleep(Duration::from_micros(random.random_range(1_000..120_000))).await;
    server.kill();
    let mut known: [BTreeMap<u64, [f64; 3]>; MODELS.len()] = Default::default();
    let mut pending: [Vec<[f64; 3]>; MODELS.len()] = Default::default();
    for (writer, task) in writers.into_iter().enumerate() {
        let account = task.await.unwrap();
        for (sequence, row) in account.acknowledged {
            if known[writer % MODELS.len()].insert(sequence, row).is_some() {
                return Err(format!("sequence {sequence} was answered twice"));
            }
        }
        pending[writer % MODELS.len()].extend(account.pending);
    }

    let restarted = Server::start(&database).await;
    let mut said = Vec::new();
    for model in MODELS {
        said.push(restarted.says(model).await);
    }
    restarted.kill();
    let (mut learnt, mut landed) = (0, 0);
    for (place, model) in MODELS.into_iter().enumerate() {
        let rows = log(&database, model).await?;
        if rows.len() as u64 != said[place].0 {
            return Err(format!("{model} is at {}, its log at {}", said[place].0, rows.len()));
        }
        for (sequence, row) in &known[place] {
            match rows.get(usize::try_from(*sequence).unwrap() - 1) {
                Some(found) if same(found, row) => {}
                found => return Err(format!("{model} acknowledged {row:?} at {sequence}; there is {found:?}")),
            }
        }
        let mut left = pending[place].clone();
        for (sequence, row) in (1..).zip(&rows).filter(|(sequence, _)| !known[place].contains_key(sequence)) {
            let Some(found) = left.iter().position(|sent| same(sent, row)) else {
                return Err(format!("{model} has learnt {row:?} at {sequence}, which was not on its way"));
            };
            left.swap_remove(found);
            landed += 1;
        }
        learnt += known[place].len();
        // Another process, never killed, learns the rows of the log and must say the same to the last bit.
        witness.fit(model).await;
        if !rows.is_empty() {
            let body = json!({"rows": rows.iter().copied().map(row).collect::<Vec<_>>()}).to_string();
            witness.ask("POST", &format!("/v1/models/{model}/updates"), Some(body)).await;
        }
        if witness.says(model).await != said[place] {
            return Err(format!("{model}: the replay of {} rows gives other bits", rows.len()));
        }
    }
    // Two starts on one file agree, and it goes on learning where it stopped.
    let restarted = Server::start(&database).await;
    for (place, model) in MODELS.into_iter().enumerate() {
        if restarted.says(model).await != said[place] {
            return Err(format!("{model}: two starts on one file differ"));
        }
        let body = json!({"rows": [row(cells(WRITERS, 1))]}).to_string();
        let reply = restarted.ask("POST", &format!("/v1/models/{model}/updates"), Some(body)).await;
        if reply["sequence"] != said[place].0 + 1 {
            return Err(format!("{model} goes on at {} after {}", reply["sequence"], said[place].0));
        }
    }
    restarted.kill();
    for ending in ["", "-wal", "-shm", "-lock"] {
        // Which of them there are depends on the moment; the folder goes in the end.
        let _ = std::fs::remove_file(folder.join(format!("{round}.db{ending}")));
    }
    Ok((learnt, landed))
}

/// So many rounds, on a server with a planted bug if one is named.
///
/// # Errors
/// The first round in which something is not as promised.
async fn play(rounds: u64, planted: Option<&str>) -> Result<(usize, usize), String> {
    let folder = tempfile::tempdir().unwrap();
    let witness = Server::start(&folder.path().join("witness.db")).await;
    let (mut learnt, mut landed) = (0, 0);
    for number in 0..rounds {
        let (known, unknown) = round(number, folder.path(), &witness, planted).await.map_err(|fault| format!("round {number}: {fault}"))?;
        learnt += known;
        landed += unknown;
    }
    Ok((learnt, landed))
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_rows_survive_kills_at_random_moments() {
    let begun = std::time::Instant::now();
    let rounds = std::env::var("LSQD_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let (learnt, landed) = play(rounds, None).await.unwrap();
    assert!(rounds < 10 || learnt > 0, "no round acknowledged a row");
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("{rounds} kills, {learnt} acknowledged rows, all there; {landed} rows landed without their answer: {seconds:.1} s");
}

#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread")]
async fn the_kills_find_a_reply_before_the_commit() {
    let fault = play(ROUNDS, Some("reply-before-commit")).await.unwrap_err();
    assert!(fault.contains("acknowledged"), "{fault}");
}
