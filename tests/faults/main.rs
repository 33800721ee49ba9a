//! What was acknowledged survives a disk that fails and a power that is cut. The server runs in this process, on a disk that [`disk`] plays.
//!
//! - [`each_operation_of_the_disk_may_fail`] fails every operation in turn that a life of the server does on its disk. The quick form takes
//!   one in so many; `LSQD_FAULT_STRIDE=1 cargo test --test faults each_operation -- --nocapture` takes them all.
//! - [`acknowledged_facts_survive_power_cuts`] cuts the power at random places of a busy life and looks at what may be left. For ten
//!   thousand images: `LSQD_POWER_CUTS=10000 cargo test --test faults power_cuts -- --nocapture`.
//! - [`damage`] spoils the files behind the server's back.
//! - [`full`] fills the disk and frees it, again and again.
//!
//! Kills of the real process are in `tests/crash`. What is promised and how it is shown: `docs/reliability.md`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod damage;
mod disk;
mod full;
mod ledger;
mod migrations;
mod power;
mod server;

use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

use futures_util::StreamExt as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use disk::{Disk, Event, Fault, Plan};
use ledger::{Fact, Ledger, Mark};
use power::Folder;
use server::Server;

/// The rows that every model here is fitted on.
const TABLE: &str = "x,z,y\n1,0.5,1\n2,-1,2.5\n3,0.25,2.75\n4,2,4\n5,-0.125,5.5\n";
const DATABASE: &str = "lsqd.db";
/// Rows that the prepared model has learnt: a few more, and a snapshot of its state is due.
const LEARNT: u64 = 9_990;
/// One in so many operations is failed unless `LSQD_FAULT_STRIDE` says otherwise.
const STRIDE: usize = 24;
/// Images of power cuts unless `LSQD_POWER_CUTS` says otherwise.
const CUTS: u64 = 200;
/// Images that are made from one life of a server.
const CUTS_OF_A_LIFE: u64 = 500;
const WRITERS: u64 = 8;

/// Panics of the program under test, which its own nets may have caught: there must be none.
static PANICS: LazyLock<Mutex<Vec<String>>> = LazyLock::new(|| {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.location().is_none_or(|location| !location.file().starts_with("tests/")) {
            PANICS.lock().unwrap().push(panic.to_string());
        }
        usual(panic);
    }));
    Mutex::default()
});

fn setting<T: std::str::FromStr>(name: &str, usual: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// The numbers of a row; no two are alike.
fn cells(series: u64, number: u64) -> [f64; 3] {
    let x = number as f64 * 0.37 + series as f64;
    [x, (x * 1.3).sin(), 1.1 * x + (x * 7.0).cos()]
}

fn row([x, z, y]: [f64; 3]) -> Value {
    json!({"x": x, "z": z, "y": y})
}

fn copy(from: &Path, to: &Path) {
    // Without the shared memory: the next start reads the files as after a crash.
    for name in [DATABASE, "lsqd.db-wal", "lsqd.db-journal"] {
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

/// A client that enters what it is told into the disk's record.
struct Client<'a> {
    server: &'a Server,
    disk: &'a Disk,
}

impl Client<'_> {
    /// Sends a request. A refusal must be one that a failed disk explains.
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<String>) -> Option<Value> {
        let (status, value) = self.server.send_with(method, path, headers, body).await?;
        // Not found and unprocessable: what an earlier request was to make is not there.
        assert!(matches!(status, 200..300 | 404 | 422 | 500 | 503 | 507), "{method} {path} -> {status}: {value}");
        assert!(status < 300 || value["code"].is_string(), "{method} {path} -> {status}: {value}");
        (status < 300).then_some(value)
    }

    fn acknowledged(&self, fact: Fact) {
        self.disk.mark(Mark::Acknowledged(fact));
    }

    async fn upload(&self, name: &str) {
        if let Some(reply) = self.send("PUT", &format!("/v1/datasets/{name}"), &[], Some(TABLE.to_owned())).await {
            self.acknowledged(Fact::Dataset { name: name.to_owned(), rows: reply["rows"].as_i64().unwrap() });
        }
    }

    async fn fit(&self, model: &str) {
        let body = json!({"dataset": "t", "target": "y"}).to_string();
        // A fit that takes longer is answered with its job, which says nothing about a version.
        if let Some(reply) = self.send("POST", &format!("/v1/models/{model}/fits"), &[("prefer", "wait=30")], Some(body)).await
            && let Some(version) = reply["version"].as_i64()
        {
            self.acknowledged(Fact::Version { model: model.to_owned(), version });
        }
    }

    async fn learn(&self, model: &str, rows: &[[f64; 3]], headers: &[(&str, &str)]) -> Option<Value> {
        let body = json!({"rows": rows.iter().copied().map(row).collect::<Vec<_>>()}).to_string();
        let reply = self.send("POST", &format!("/v1/models/{model}/updates"), headers, Some(body)).await?;
        let last = reply["sequence"].as_u64().unwrap();
        for (place, row) in (last + 1 - rows.len() as u64..).zip(rows) {
            self.acknowledged(Fact::row(model, place, row));
        }
        Some(reply)
    }

    /// Has a prediction remembered, and sends its label twice.
    async fn label(&self, model: &str, row: [f64; 3]) {
        let question = json!({"rows": [{"x": row[0], "z": row[1]}], "remember": true}).to_string();
        let remembered = self.send("POST", &format!("/v1/models/{model}/predict"), &[], Some(question)).await;
        let Some(id) = remembered.map(|reply| reply["prediction_ids"][0].clone()) else { return };
        let labels = json!({"labels": [{"prediction_id": id, "value": row[2]}]}).to_string();
        let mut told: Option<Value> = None;
        for _ in 0..2 {
            let reply = self.send("POST", &format!("/v1/models/{model}/labels"), &[], Some(labels.clone())).await;
            match (&told, reply) {
                (_, None) => {}
                (None, Some(reply)) => {
                    // Unless an earlier try was learnt that nobody was told of.
                    if reply["accepted"] == 1 {
                        self.acknowledged(Fact::row(model, reply["sequence"].as_u64().unwrap(), &row));
                    }
                    told = Some(reply);
                }
                (Some(first), Some(again)) => {
                    assert_eq!((&again["predictions"], &again["accepted"]), (&first["predictions"], &json!(0)), "one label, two replies");
                }
            }
        }
    }

    /// Unlearns a row.
    async fn erase(&self, model: &str, sequence: u64) {
        self.disk.mark(Mark::Erasing { model: model.to_owned(), sequence });
        if self.send("DELETE", &format!("/v1/models/{model}/updates/{sequence}"), &[], None).await.is_some() {
            self.acknowledged(Fact::Erased { model: model.to_owned(), sequence });
        }
    }

    async fn drop_dataset(&self, name: &str) {
        self.disk.mark(Mark::Withdrawn(name.to_owned()));
        if self.send("DELETE", &format!("/v1/datasets/{name}"), &[], None).await.is_some() {
            self.acknowledged(Fact::NoDataset { name: name.to_owned() });
        }
    }

    async fn drop_model(&self, model: &str) {
        self.disk.mark(Mark::Withdrawn(model.to_owned()));
        if self.send("DELETE", &format!("/v1/models/{model}"), &[], None).await.is_some() {
            self.acknowledged(Fact::NoModel { model: model.to_owned() });
        }
    }
}

/// What the disk's record says was acknowledged, after what was before.
fn ledger(before: &[Mark], disk: &Disk) -> Ledger {
    let mut ledger = Ledger::default();
    before.iter().for_each(|mark| ledger.enter(mark));
    for event in disk.trace() {
        if let Event::Mark(mark) = &event {
            ledger.enter(mark);
        }
    }
    ledger
}

/// A folder with a database that has something of everything.
async fn prepared() -> (tempfile::TempDir, Vec<Mark>) {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::under(folder.path());
    let server = Server::start(&folder.path().join(DATABASE)).await.unwrap();
    let client = Client { server: &server, disk: &disk };
    for name in ["t", "old"] {
        client.upload(name).await;
    }
    for model in ["m", "gone"] {
        client.fit(model).await;
    }
    let rows: Vec<[f64; 3]> = (0..LEARNT).map(|number| cells(0, number)).collect();
    client.learn("m", &rows, &[]).await.unwrap();
    server.stop().await.unwrap();
    let marks = disk.trace().into_iter().filter_map(|event| if let Event::Mark(mark) = event { Some(mark) } else { None }).collect();
    (folder, marks)
}

/// A short life with every kind of change in it. Whatever fails, it goes on.
async fn live(server: &Server, disk: &Disk) {
    let client = Client { server, disk };
    client.learn("m", &[cells(1, 0)], &[]).await;
    client.upload("new").await;
    client.fit("n").await;
    let first = client.learn("m", &[cells(1, 1)], &[("idempotency-key", "k")]).await;
    let again = client.learn("m", &[cells(1, 1)], &[("idempotency-key", "k")]).await;
    if first.is_some() && again.is_some() {
        assert_eq!(first, again, "one key, two replies");
    }
    let mut event = row(cells(1, 2));
    event["_id"] = json!("e");
    let event = json!({"rows": [event]}).to_string();
    for _ in 0..2 {
        client.send("POST", "/v1/models/m/updates", &[], Some(event.clone())).await;
    }
    // The state is stored with these.
    client.learn("m", &(3..15).map(|number| cells(1, number)).collect::<Vec<_>>(), &[]).await;
    client.label("m", cells(3, 0)).await;
    client.drop_dataset("old").await;
    client.erase("m", LEARNT - 5).await;
    client.drop_model("gone").await;
    client.learn("n", &[cells(2, 0)], &[]).await;
    client.send("POST", "/v1/models/m/predict", &[], Some(json!({"rows": [{"x": 1, "z": 2}]}).to_string())).await;
    client.learn("m", &[cells(1, 15)], &[]).await;
}

/// Starts a server on what is left, lets `model` learn a row more, and looks again.
///
/// # Errors
/// It does not start, or something is missing afterwards.
async fn go_on(database: &Path, model: &str, disk: &Disk, mut ledger: Ledger) -> Result<(), String> {
    let server = Server::start(database).await?;
    let reply = Client { server: &server, disk }.learn(model, &[cells(99, 0)], &[]).await;
    server.stop().await?;
    let sequence = reply.ok_or("it does not learn")?["sequence"].as_u64().unwrap();
    ledger.enter(&Mark::Acknowledged(Fact::row(model, sequence, &cells(99, 0))));
    ledger.check(database).await
}

/// One life on a disk that fails, from the start of the server to its end, and a look at what is left.
async fn life(template: &Path, marks: &[Mark], plan: Option<Plan>) -> (usize, Arc<Disk>) {
    let folder = tempfile::tempdir().unwrap();
    copy(template, folder.path());
    let mut cut = Folder::of(folder.path());
    let disk = Disk::under(folder.path());
    disk.record();
    if let Some(plan) = plan {
        disk.plan(plan);
    }
    // A server that does not start has acknowledged nothing, and says why.
    if let Ok(server) = Server::start(&folder.path().join(DATABASE)).await {
        live(&server, &disk).await;
        // The outcome tells whether the disk failed for good; what was acknowledged does not depend on it.
        let _ = server.stop().await;
    }
    let struck = disk.struck();
    disk.heal();
    disk.trace().iter().for_each(|event| cut.step(event));
    let ledger = ledger(marks, &disk);
    for seed in 0..2 {
        let image = tempfile::tempdir().unwrap();
        let _working = Disk::under(image.path());
        cut.cut(seed, image.path());
        ledger.check(&image.path().join(DATABASE)).await.unwrap_or_else(|fault| panic!("{plan:?}, then a power cut {seed}: {fault}"));
    }

    let after = tempfile::tempdir().unwrap();
    let working = Disk::under(after.path());
    copy(folder.path(), after.path());
    let database = after.path().join(DATABASE);
    ledger.check(&database).await.unwrap_or_else(|fault| panic!("{plan:?}: {fault}"));
    go_on(&database, "m", &working, ledger).await.unwrap_or_else(|fault| panic!("{plan:?}, going on: {fault}"));
    (struck, disk)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_of_the_disk_may_fail() {
    LazyLock::force(&PANICS);
    let begun = std::time::Instant::now();
    let stride = setting("LSQD_FAULT_STRIDE", STRIDE).max(1);
    let (template, marks) = prepared().await;
    let (_, disk) = life(template.path(), &marks, None).await;
    let mut plans = Vec::new();
    for fault in Fault::ALL {
        let count = disk.count(fault);
        assert!(count > 0, "{fault:?} cannot hit anything");
        // Syncs are few.
        let step = if fault == Fault::Sync { stride.div_ceil(4) } else { stride };
        for after in (0..count).step_by(step) {
            plans.extend([false, true].map(|lasting| Plan { fault, after, lasting }));
        }
    }
    let lives = plans.len();
    let (template, marks) = (template.path(), &marks);
    let struck = futures_util::stream::iter(plans)
        .map(|plan| async move { usize::from(life(template, marks, Some(plan)).await.0 > 0) })
        .buffer_unordered(4)
        .fold(0, |sum, struck| async move { sum + struck })
        .await;
    assert!(struck * 10 >= lives * 9, "{struck} of {lives} faults struck");
    assert_eq!(PANICS.lock().unwrap().as_slice(), [] as [&str; 0]);
    eprintln!(
        "{lives} lives, {struck} of them with a failed operation ({} operations in a life, {} writes, {} syncs): {:.1} s",
        disk.count(Fault::Io),
        disk.count(Fault::Full),
        disk.count(Fault::Sync),
        begun.elapsed().as_secs_f64()
    );
}

/// A busy life: writers on several models, uploads, fits and removals beside them, checkpoints, and a restart in the middle.
async fn busy(folder: &Path, disk: &Disk, seed: u64) {
    let database = folder.join(DATABASE);
    for part in 0..2_u64 {
        let server = Server::start(&database).await.unwrap();
        let client = Client { server: &server, disk };
        if part == 0 {
            client.upload("t").await;
            for model in ["a", "b", "c"] {
                client.fit(model).await;
            }
        }
        let writers = futures_util::future::join_all((0..WRITERS).map(|writer| {
            let client = &client;
            async move {
                let model = ["a", "b", "c"][usize::try_from(writer).unwrap() % 3];
                client.label(model, cells(seed * 100 + part * 10 + writer, 100)).await;
                for number in 0..12 {
                    let key = format!("{part}-{writer}-{number}");
                    let keyed = [("idempotency-key", key.as_str())];
                    let headers = if number % 3 == 0 { &keyed[..] } else { &[] };
                    client.learn(model, &[cells(seed * 100 + part * 10 + writer, number)], headers).await.unwrap();
                }
            }
        }));
        let others = async {
            let name = format!("d{part}");
            client.upload(&name).await;
            client.fit(&format!("f{part}")).await;
            client.drop_dataset(&name).await;
            client.drop_model(&format!("f{part}")).await;
            if part > 0 {
                // A row of the first part, so that nobody is still being told of it.
                client.erase("a", 2).await;
            }
        };
        // The server folds its log into the file after some thousand pages; a life as short as this would never see it.
        let checkpoints = async {
            use sqlx::{ConnectOptions as _, Connection as _};
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&database).synchronous(sqlx::sqlite::SqliteSynchronous::Full);
            let mut connection = options.busy_timeout(std::time::Duration::from_secs(5)).connect().await.unwrap();
            let mut folded = 0;
            for _ in 0..4 {
                tokio::time::sleep(std::time::Duration::from_millis(15)).await;
                let (_, _, pages): (i64, i64, i64) =
                    sqlx::query_as("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(&mut connection).await.unwrap();
                folded += pages;
            }
            assert!(folded > 0, "no checkpoint folded anything");
            connection.close().await.unwrap();
        };
        futures_util::future::join3(writers, others, checkpoints).await;
        server.stop().await.unwrap();
    }
}

/// Builds images of power cuts and checks each.
///
/// # Errors
/// The first image that lacks something.
async fn cut_power(cuts: u64, first_life: u64) -> Result<(usize, usize), String> {
    let (mut events, mut facts) = (0, 0);
    let mut left = cuts;
    let mut seed = first_life;
    while left > 0 {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::under(folder.path());
        disk.record();
        busy(folder.path(), &disk, seed).await;
        let trace = disk.trace();
        events += trace.len();
        let mut random = StdRng::seed_from_u64(seed);
        let count = left.min(CUTS_OF_A_LIFE);
        let mut places: Vec<usize> = (0..count).map(|_| random.random_range(0..=trace.len())).collect();
        places.sort_unstable();
        let (mut state, mut ledger, mut at) = (Folder::default(), Ledger::default(), 0);
        for place in places {
            for event in &trace[at..place] {
                state.step(event);
                if let Event::Mark(mark) = event {
                    ledger.enter(mark);
                }
            }
            at = place;
            let image = tempfile::tempdir().unwrap();
            let working = Disk::under(image.path());
            let choice = random.random_range(0..u64::MAX);
            state.cut(choice, image.path());
            let database = image.path().join(DATABASE);
            let told = |fault: String| format!("life {seed}, event {place} of {}, choice {choice}: {fault}", trace.len());
            if ledger.len() == 0 {
                // There may be no tables yet, but a server must start on it.
                Server::start(&database).await.map_err(told)?.stop().await.map_err(told)?;
            } else {
                ledger.check(&database).await.map_err(told)?;
                // A start takes longer than a look.
                if ledger.has_version("a") && choice % 25 == 0 {
                    go_on(&database, "a", &working, ledger.clone()).await.map_err(told)?;
                }
            }
            facts += ledger.len();
        }
        left -= count;
        seed += 1;
    }
    Ok((events, facts))
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_facts_survive_power_cuts() {
    LazyLock::force(&PANICS);
    let begun = std::time::Instant::now();
    let cuts = setting("LSQD_POWER_CUTS", CUTS);
    let (events, facts) = cut_power(cuts, 1).await.unwrap();
    assert!(facts > 0);
    assert_eq!(PANICS.lock().unwrap().as_slice(), [] as [&str; 0]);
    eprintln!("{cuts} power cuts in {events} events; {facts} facts asked for, all there: {:.1} s", begun.elapsed().as_secs_f64());
}

/// Runs one test of this file again in a process that has a planted bug, and returns what it said when it failed.
#[cfg(debug_assertions)]
fn fails_with(bug: &str, test: &str) -> String {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("LSQD_PLANTED_FAULT", bug)
        .env("LSQD_POWER_CUTS", "500")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{test} passes with {bug}: {said}");
    said
}

#[cfg(debug_assertions)]
#[test]
fn power_cuts_find_a_database_that_does_not_wait_for_the_disk() {
    let said = fails_with("synchronous-normal", "acknowledged_facts_survive_power_cuts");
    assert!(said.contains("acknowledged, but not there"), "{said}");
}

#[cfg(debug_assertions)]
#[test]
fn power_cuts_find_a_reply_before_the_commit() {
    let said = fails_with("reply-before-commit", "acknowledged_facts_survive_power_cuts");
    assert!(said.contains("acknowledged, but not there"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_failed_sync_ends_all_acknowledging_and_the_server() {
    let (template, marks) = prepared().await;
    for writers in [1, WRITERS] {
        let folder = tempfile::tempdir().unwrap();
        copy(template.path(), folder.path());
        let disk = Disk::under(folder.path());
        let server = Server::start(&folder.path().join(DATABASE)).await.unwrap();
        let client = Client { server: &server, disk: &disk };
        client.learn("m", &[cells(1, 0)], &[]).await.unwrap();
        // One sync fails; all the later ones would go well.
        disk.plan(Plan { fault: Fault::Sync, after: 0, lasting: false });
        let replies = futures_util::future::join_all((0..writers).map(|writer| {
            let client = &client;
            async move {
                let mut replies = Vec::new();
                for number in 0..5 {
                    replies.push(client.learn("m", &[cells(2 + writer, number)], &[]).await);
                }
                replies
            }
        }))
        .await;
        assert!(disk.struck() > 0);
        assert!(replies.iter().flatten().all(Option::is_none), "{writers} writers: a reply after a failed sync: {replies:?}");
        let end = server.end().await.unwrap_err();
        assert!(end.contains("can no longer be written"), "{end}");

        let after = tempfile::tempdir().unwrap();
        copy(folder.path(), after.path());
        ledger(&marks, &disk).check(&after.path().join(DATABASE)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_that_has_room_again_is_written_again() {
    let (template, marks) = prepared().await;
    let disk = Disk::under(template.path());
    let server = Server::start(&template.path().join(DATABASE)).await.unwrap();
    let client = Client { server: &server, disk: &disk };
    disk.plan(Plan { fault: Fault::Full, after: 0, lasting: true });
    for number in 0..3 {
        assert!(client.learn("m", &[cells(1, number)], &[]).await.is_none());
        client.upload("new").await;
    }
    disk.heal();
    assert_eq!(server.ask("GET", "/readyz", None).await["ready"], true);
    for number in 0..3 {
        assert!(client.learn("m", &[cells(2, number)], &[]).await.is_some());
    }
    server.stop().await.unwrap();
    ledger(&marks, &disk).check(&template.path().join(DATABASE)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_finds_the_disk_full_says_so_and_leaves_nothing_behind() {
    let (template, _) = prepared().await;
    let disk = Disk::under(template.path());
    let server = Server::start(&template.path().join(DATABASE)).await.unwrap();
    for after in [0, 3] {
        disk.plan(Plan { fault: Fault::Full, after, lasting: true });
        let (status, problem) = server.send("POST", "/v1/backup", None).await.unwrap();
        assert_eq!((status, &problem["code"]), (507, &json!("disk_full")), "{problem}");
        assert!(disk.struck() > 0);
        disk.heal();
        assert!(!template.path().join("lsqd.db-copy").exists());
    }
    // The server is as well as it was, and the next backup is made.
    let client = Client { server: &server, disk: &disk };
    assert!(client.learn("m", &[cells(1, 0)], &[]).await.is_some());
    assert_eq!(server.send("POST", "/v1/backup", None).await.unwrap().0, 200);
    server.stop().await.unwrap();
}

/// The application without its accept loop, which would be gone before it could be asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_turns_readiness_off() {
    use axum::body::Body;
    use axum::http::Request;
    use lsqd::service::{Service, Settings};
    use tower::ServiceExt as _;

    let (template, _) = prepared().await;
    let disk = Disk::under(template.path());
    let settings = Settings {
        compute_threads: 1,
        readers: 2,
        fit_queue: 8,
        remember_ttl: std::time::Duration::from_secs(3600),
        watch_inputs: true,
        key_rate: None,
        storage_limit: 0,
    };
    let (service, closing) = Service::open(&template.path().join(DATABASE), settings).await.unwrap();
    service.replay().await.unwrap();
    let app = lsqd::http::App {
        service: service.clone(),
        body_limit: 1 << 20,
        upload_limit: 0,
        packed: lsqd::http::PackedLimits { bytes: 0, ratio: 0 },
        overload: std::sync::Arc::default(),
        default_model: None,
        cors: std::sync::Arc::default(),
        site: std::sync::Arc::default(),
        metrics: String::new,
    };
    let router = lsqd::http::router(app);
    let ask = async |method: &str, path: &str, body: String| {
        let request = Request::builder().method(method).uri(path).header("host", "a").body(Body::from(body)).unwrap();
        router.clone().oneshot(request).await.unwrap().status().as_u16()
    };
    let update = || json!({"rows": [row(cells(1, 0))]}).to_string();
    assert_eq!(ask("GET", "/readyz", String::new()).await, 200);
    assert_eq!(ask("POST", "/v1/models/m/updates", update()).await, 200);
    disk.plan(Plan { fault: Fault::Sync, after: 0, lasting: false });
    assert!(ask("POST", "/v1/models/m/updates", update()).await >= 500);
    tokio::time::timeout(std::time::Duration::from_secs(10), service.until_failed()).await.unwrap();
    assert_eq!(ask("GET", "/readyz", String::new()).await, 503);
    assert_eq!(ask("GET", "/livez", String::new()).await, 200);
    assert_eq!(ask("POST", "/v1/models/m/updates", update()).await, 503);
    assert_eq!(ask("PUT", "/v1/datasets/new", TABLE.to_owned()).await, 503);
    service.stop();
    drop((router, service));
    closing.wait().await;
}
