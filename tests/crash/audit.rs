//! Datasets, aliases and keys are changed and the server is killed in the middle of it: each change is there with its record in the audit log,
//! or neither is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lsqd::store::audit::Entry;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::server::{Server, open, send};

/// Kills unless `LSQD_CRASH_RECORDS` says otherwise.
const KILLS: u64 = 15;

/// Changes something again and again until the server is gone; how many changes were acknowledged.
async fn change(client: reqwest::Client, url: String, what: &str, acknowledged: Arc<AtomicU64>) {
    for number in 0_u64.. {
        let (method, path, body) = match what {
            "rows" => ("POST", "/v1/datasets/d/rows", "x,y\n1,1\n".to_owned()),
            "alias" => ("PUT", "/v1/models/m/aliases/a", json!({"version": number % 2 + 1}).to_string()),
            _ => ("PUT", "/v1/datasets/e", format!("x\n{number}\n")),
        };
        match send(&client, &url, method, path, None, Some(body)).await {
            Some((200 | 201, _)) => _ = acknowledged.fetch_add(1, Ordering::Relaxed),
            Some((503, _)) | None => return,
            Some((status, problem)) => panic!("{status}: {}", String::from_utf8_lossy(&problem)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_leaves_a_change_and_its_record_or_neither() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("lsqd.db");
    let kills = std::env::var("LSQD_CRASH_RECORDS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let server = Server::start(&database).await;
    server.ask("PUT", "/v1/datasets/d", Some("x,y\n1,1\n2,2.5\n3,3\n".to_owned())).await;
    for _ in 0..2 {
        server.ask("POST", "/v1/models/m/fits", Some(json!({"dataset": "d", "target": "y"}).to_string())).await;
    }
    server.kill();
    let acknowledged: BTreeMap<&str, Arc<AtomicU64>> = ["rows", "alias", "table"].map(|what| (what, Arc::default())).into();
    let mut landed = 0;
    for round in 0..kills {
        let mut random = StdRng::seed_from_u64(round);
        let server = Server::start(&database).await;
        let changing: Vec<_> = acknowledged
            .iter()
            .map(|(what, count)| tokio::spawn(change(server.client.clone(), server.url.clone(), what, count.clone())))
            .collect();
        tokio::time::sleep(Duration::from_micros(random.random_range(2_000..80_000))).await;
        server.kill();
        for task in changing {
            task.await.unwrap();
        }
        let report = lsqd::service::check::check(&database).await.unwrap();
        assert!(report.is_whole(), "round {round}: {report}");
        let mut connection = open(&database).await;
        let records = lsqd::store::audit::list(&mut connection, 0, u32::MAX).await.unwrap();
        let of = |action: &str, subject: &str| -> Vec<&Entry> {
            records.iter().filter(|record| record.action == action && record.subject == subject).collect()
        };
        let after =
            |record: Option<&&Entry>| record.map_or(Value::Null, |record| serde_json::from_str(record.after.as_ref().unwrap()).unwrap());
        let mut known = 0;
        for (name, action) in [("d", "dataset.append"), ("e", "dataset.put")] {
            let changes = of(action, name);
            known += changes.len() as u64;
            // Records that were left behind by a change that is not there, or none of one that is, would not meet in the revision.
            let stands = lsqd::store::datasets::find(&mut connection, name).await.unwrap();
            let stands = stands.map_or(Value::Null, |row| json!({"revision": row.revision, "rows": row.rows, "bytes": row.bytes}));
            if !changes.is_empty() || name == "e" {
                assert_eq!(after(changes.last()), stands, "round {round}: {name}");
            }
            assert_eq!(stands["revision"].as_u64().unwrap_or(0), changes.len() as u64 + u64::from(name == "d"), "round {round}: {name}");
        }
        let changes = of("alias.set", "m");
        known += changes.len() as u64;
        let aliases = lsqd::store::models::all_aliases(&mut connection).await.unwrap();
        let stands = aliases.iter().find(|row| row.alias == "a");
        let stands = stands.map_or(Value::Null, |row| json!({"alias": "a", "version": row.version, "sequence": null}));
        assert_eq!(after(changes.last()), stands, "round {round}");
        assert_eq!(records.len() as u64, known + 3, "round {round}");
        let told: u64 = acknowledged.values().map(|count| count.load(Ordering::Relaxed)).sum();
        // One of each kind may have landed without its answer, in every round.
        assert!((told..=told + 3 * (round + 1)).contains(&known), "round {round}: {told} were acknowledged, {known} are there");
        landed = known - told;
    }
    let told: u64 = acknowledged.values().map(|count| count.load(Ordering::Relaxed)).sum();
    assert!(told >= kills, "only {told} changes were made");
    eprintln!("{kills} kills, {told} changes, each with its record; {landed} landed without their answer");
}
