//! Bytes that were spoilt behind the server's back. Whatever they are, there is no panic and no wrong prediction: an answer is to the last bit
//! the one of the version and sequence that it names, or there is an error that says what it is.
//!
//! The quick form spoils a hundred databases; for two thousand: `LSQD_MUTATIONS=2000 cargo test --test faults spoilt -- --nocapture`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::disk::Disk;
use crate::server::Server;
use crate::{DATABASE, PANICS, TABLE, cells, copy, row, setting};

/// Spoilt databases unless `LSQD_MUTATIONS` says otherwise.
const MUTATIONS: u64 = 100;
/// Bytes of a page of the database.
const PAGE: usize = 8192;
/// What is asked, and at which sequence.
const QUESTIONS: [(&str, Option<u64>); 8] = [
    ("long", None),
    ("long", Some(7)),
    ("erased", None),
    ("erased", Some(30)),
    ("kinds", None),
    ("kinds@1", None),
    ("kinds@then", None),
    ("still", None),
];
/// What may be said instead of an answer.
const REFUSALS: [&str; 4] = ["quarantined", "model_not_found", "version_not_found", "alias_not_found"];

/// Lets a model learn rows, so many in a record of its log.
async fn learn(server: &Server, model: &str, rows: std::ops::Range<u64>, each: usize) {
    let rows: Vec<Value> = rows.map(|number| row(cells(3, number))).collect();
    for rows in rows.chunks(each) {
        server.ask("POST", &format!("/v1/models/{model}/updates"), Some(json!({"rows": rows}).to_string())).await;
    }
}

/// A server on a database that has something of everything that predictions are made of.
async fn prepared(database: &Path) -> Server {
    let server = Server::start(database).await.unwrap();
    server.ask("PUT", "/v1/datasets/t", Some(TABLE.to_owned())).await;
    let kinds: String = (0..60).map(|n| format!("{n},{},{}\n", ["a", "b", "c"][n % 3], (n * n) % 17)).collect();
    server.ask("PUT", "/v1/datasets/kinds", Some(format!("x,kind,y\n{kinds}"))).await;
    let fit = async |model: &str, dataset: &str| {
        let body = json!({"dataset": dataset, "target": "y"}).to_string();
        let reply = server.send_with("POST", &format!("/v1/models/{model}/fits"), &[("prefer", "wait=30")], Some(body)).await;
        assert_eq!(reply.unwrap().0, 201);
    };
    for (model, dataset) in [("long", "t"), ("erased", "t"), ("still", "t"), ("kinds", "kinds"), ("kinds", "kinds")] {
        fit(model, dataset).await;
    }
    // Far enough for a snapshot.
    learn(&server, "long", 0..10_050, 700).await;
    learn(&server, "erased", 0..60, 4).await;
    server.ask("DELETE", "/v1/models/erased/updates/17", None).await;
    for number in 0..20_u64 {
        let kind = ["a", "b", "c"][usize::try_from(number % 3).unwrap()];
        let row = json!({"x": number, "kind": kind, "y": number % 7});
        for version in [1, 2] {
            server.ask("POST", &format!("/v1/models/kinds@{version}/updates"), Some(json!({"rows": [row]}).to_string())).await;
        }
    }
    server.ask("PUT", "/v1/models/kinds/aliases/then", Some(json!({"version": 2, "sequence": 9}).to_string())).await;
    server
}

/// Asks for predictions with everything that is said beside them.
async fn ask(server: &Server, reference: &str, sequence: Option<u64>) -> Option<(u16, Value)> {
    let row = |x: i32| {
        let x = f64::from(x);
        if reference.starts_with("kinds") { json!({"x": x, "kind": "b"}) } else { json!({"x": x * 1.7, "z": x * x - 2.5}) }
    };
    let rows: Vec<Value> = (-2..3).map(row).collect();
    let mut question = json!({"rows": rows, "interval": {"kind": "prediction", "level": 0.9}, "explain": true});
    if let Some(sequence) = sequence {
        question["at"] = json!({"sequence": sequence});
    }
    server.send("POST", &format!("/v1/models/{reference}/predict"), Some(question.to_string())).await
}

/// Spoils bytes of a file; what was done.
fn spoil(bytes: &mut Vec<u8>, random: &mut StdRng) -> String {
    let length = bytes.len();
    // Half of them at the beginning of a page, where its structure is.
    let place = match random.random_range(0..2) {
        0 => random.random_range(0..length),
        _ => (random.random_range(0..length.div_ceil(PAGE)) * PAGE + random.random_range(0..120)).min(length - 1),
    };
    let page = |random: &mut StdRng| random.random_range(0..length.div_ceil(PAGE)) * PAGE;
    match random.random_range(0..8) {
        0 | 1 => {
            let bit = random.random_range(0..8);
            bytes[place] ^= 1 << bit;
            format!("bit {bit} of byte {place} flipped")
        }
        2 => {
            bytes[place] = bytes[place].wrapping_add(random.random_range(1..=255));
            format!("byte {place} changed")
        }
        3 => {
            let end = (place + random.random_range(2..=16)).min(length);
            random.fill(&mut bytes[place..end]);
            format!("bytes {place}..{end} drawn at random")
        }
        4 => {
            let (from, to) = (place / 512 * 512, (place / 512 * 512 + 512).min(length));
            bytes[from..to].fill(0);
            format!("bytes {from}..{to} zeroed")
        }
        5 | 6 => {
            let (one, other) = (page(random), page(random));
            let size = PAGE.min(length - one).min(length - other);
            let (first, second) = (bytes[one..one + size].to_vec(), bytes[other..other + size].to_vec());
            bytes[other..other + size].copy_from_slice(&first);
            let swap = random.random_bool(0.5);
            if swap {
                bytes[one..one + size].copy_from_slice(&second);
            }
            format!("page at {one} {} the one at {other}", if swap { "swapped with" } else { "written over" })
        }
        _ => {
            let cut = if random.random_bool(0.5) { place } else { place / PAGE * PAGE };
            bytes.truncate(cut);
            format!("cut off at {cut}")
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spoilt_databases_give_the_truth_or_a_named_error() {
    std::sync::LazyLock::force(&PANICS);
    let begun = std::time::Instant::now();
    let mutations = setting("LSQD_MUTATIONS", MUTATIONS);
    let source = tempfile::tempdir().unwrap();
    let _disk = Disk::under(source.path());
    let truth = prepared(&source.path().join(DATABASE)).await;
    // What a kill would leave, with much of it in the log; and what an orderly end leaves.
    let templates = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    copy(source.path(), templates[0].path());
    assert!(templates[0].path().join("lsqd.db-wal").exists());
    copy(source.path(), templates[1].path());
    Server::start(&templates[1].path().join(DATABASE)).await.unwrap().stop().await.unwrap();
    assert!(!templates[1].path().join("lsqd.db-wal").exists());
    let mut true_answers: HashMap<(String, u64), Value> = HashMap::new();
    let mut latest = HashMap::new();
    for (reference, sequence) in QUESTIONS {
        latest.insert((reference, sequence), ask(&truth, reference, sequence).await.unwrap().1);
    }

    let mut outcomes: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut unnoticed = Vec::new();
    for seed in 0..mutations {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        let of_a_kill = seed % 2 == 0;
        copy(templates[usize::from(!of_a_kill)].path(), folder.path());
        let in_the_log = of_a_kill && random.random_bool(0.7);
        let file = folder.path().join(if in_the_log { "lsqd.db-wal" } else { DATABASE });
        let mut bytes = std::fs::read(&file).unwrap();
        let what = format!("seed {seed}, {}: {}", file.file_name().unwrap().display(), spoil(&mut bytes, &mut random));
        std::fs::write(&file, bytes).unwrap();
        let database = folder.path().join(DATABASE);
        let whole = match lsqd::service::check::check(&database).await {
            Ok(report) => report.is_whole(),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                false
            }
        };
        *outcomes.entry(if whole { "check: whole" } else { "check: damaged" }).or_default() += 1;
        let server = match Server::start(&database).await {
            Ok(server) => server,
            Err(reason) => {
                assert!(!reason.is_empty(), "{what}: it does not start, and does not say why");
                *outcomes.entry("not started").or_default() += 1;
                continue;
            }
        };
        for (reference, sequence) in QUESTIONS {
            let Some((status, answer)) = ask(&server, reference, sequence).await else {
                panic!("{what}: no answer for {reference}");
            };
            if status != 200 {
                let code = answer["code"].as_str().unwrap_or_default();
                // A sequence that was lost with the newest commits, or a version that is not the one that can be asked so, is told of.
                let unreached = sequence.is_some() && code == "invalid_request";
                assert!(REFUSALS.contains(&code) || unreached, "{what}: {reference} is refused with {status}: {answer}");
                *outcomes.entry("refused").or_default() += 1;
                if whole && !in_the_log {
                    unnoticed.push(format!("{what}: {reference} {sequence:?} refused: {}", answer["detail"]));
                }
                continue;
            }
            if answer == latest[&(reference, sequence)] {
                *outcomes.entry("as it was").or_default() += 1;
                continue;
            }
            // Not what the intact one says now: then what it says of the version and sequence that are named.
            let named = format!("{}@{}", reference.split('@').next().unwrap(), answer["version"]);
            let at = answer["sequence"].as_u64().unwrap();
            let key = (named.clone(), at);
            if !true_answers.contains_key(&key) {
                let (status, answer) = ask(&truth, &named, Some(at)).await.unwrap();
                assert_eq!(status, 200, "{what}: {reference} is answered as {named} at {at}, which never was: {answer}");
                true_answers.insert(key.clone(), answer);
            }
            assert_eq!(answer, true_answers[&key], "{what}: {reference} is answered wrongly");
            *outcomes.entry("as an earlier state was").or_default() += 1;
            if whole && !in_the_log {
                unnoticed.push(format!("{what}: {reference} {sequence:?} at version {} sequence {at}", answer["version"]));
            }
        }
        // Whatever comes of learning on, it does not end in a panic.
        server.send("POST", "/v1/models/erased/updates", Some(json!({"rows": [row(cells(9, 0))]}).to_string())).await;
        server.send("GET", "/v1/datasets/kinds/rows", None).await;
        let _ = server.stop().await;
    }
    truth.stop().await.unwrap();
    assert_eq!(PANICS.lock().unwrap().as_slice(), [] as [&str; 0]);
    eprintln!("{mutations} spoilt databases: {outcomes:?}: {:.1} s", begun.elapsed().as_secs_f64());
    assert!(unnoticed.is_empty(), "`lsqd check` finds nothing:\n{}", unnoticed.join("\n"));
    assert!(outcomes.contains_key("refused") && outcomes.contains_key("as it was"));
}
