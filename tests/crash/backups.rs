//! Backups of the real program while it is written, and what becomes of them.
//!
//! The quick form makes ten; `LSQD_BACKUPS=200 cargo test --test crash backups -- --nocapture` makes two hundred and says how fast it was
//! written meanwhile.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{self, Server, cells, row};

/// Updates a second that arrive while backups are made.
const RATE: u64 = 1_000;
/// Writers that share them.
const WRITERS: u64 = 4;

/// Runs a command of the program on a database.
pub(crate) fn lsqd(database: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lsqd"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LSQD_")) {
        command.env_remove(name);
    }
    command.current_dir(database.parent().unwrap()).args(arguments).arg("--database").arg(database).output().unwrap()
}

/// What a command said, which must have ended so.
#[track_caller]
pub(crate) fn said(output: &Output, code: i32) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

/// The sequence that a backup says a model stands at.
fn sequence(said: &str, model: &str) -> u64 {
    let line = said.lines().find_map(|line| line.strip_prefix(&format!("{model}@1 at sequence ")));
    line.unwrap_or_else(|| panic!("nothing of {model} in {said}")).parse().unwrap()
}

/// Sends updates to two models at a steady pace until it is told to stop; how many were learnt.
async fn write(server: Arc<Server>, writer: u64, stop: Arc<AtomicBool>, learnt: Arc<AtomicU64>, slowest: Arc<AtomicU64>) {
    let begun = Instant::now();
    let model = ["a", "b"][usize::try_from(writer % 2).unwrap()];
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // One row a request, as they would arrive; those that are late are not left out.
        let due = begun + Duration::from_micros(number * 1_000_000 * WRITERS / RATE);
        tokio::time::sleep_until(due.into()).await;
        let body = json!({"rows": [row(cells(usize::try_from(writer).unwrap(), number))]}).to_string();
        let sent = Instant::now();
        server.ask("POST", &format!("/v1/models/{model}/updates"), Some(body)).await;
        learnt.fetch_add(1, Ordering::Relaxed);
        slowest.fetch_max(u64::try_from(sent.elapsed().as_micros()).unwrap(), Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_made_under_updates_are_the_models_of_their_sequences() {
    let count = std::env::var("LSQD_BACKUPS").ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(10);
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("lsqd.db");
    let source = Arc::new(Server::start(&database).await);
    for model in ["a", "b"] {
        source.fit(model).await;
    }
    let (stop, learnt, slowest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write(source.clone(), writer, stop.clone(), learnt.clone(), slowest.clone()))).collect();
    let begun = Instant::now();
    let (mut longest_log, mut moved) = (0, 0);
    for number in 0..count {
        tokio::time::sleep(Duration::from_millis(20 + number * 7 % 60)).await;
        let (backup, restored) = (folder.path().join("backup.db"), folder.path().join("restored.db"));
        let before = learnt.load(Ordering::Relaxed);
        if number % 2 == 0 {
            said(&lsqd(&database, &["backup", backup.to_str().unwrap()]), 0);
        } else {
            let (status, bytes) = server::send(&source.client, &source.url, "POST", "/v1/backup", None, None).await.unwrap();
            assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
            std::fs::write(&backup, bytes).unwrap();
        }
        moved += u64::from(learnt.load(Ordering::Relaxed) > before);
        longest_log = longest_log.max(std::fs::metadata(folder.path().join("lsqd.db-wal")).map_or(0, |metadata| metadata.len()));
        let text = said(&lsqd(&restored, &["restore", backup.to_str().unwrap()]), 0);
        let copy = Server::start(&restored).await;
        for model in ["a", "b"] {
            // The source as it stood then, by an alias that holds it there.
            let at = sequence(&text, model);
            let held = json!({"version": 1, "sequence": at}).to_string();
            source.ask("PUT", &format!("/v1/models/{model}/aliases/then"), Some(held)).await;
            let (stands, says) = copy.says(model).await;
            assert_eq!(stands, at, "backup {number} of {model}");
            assert_eq!(source.says(&format!("{model}@then")).await, (at, says), "backup {number} of {model}");
        }
        if number == 0 {
            copy.ask("POST", "/v1/models/a/updates", Some(json!({"rows": [row(cells(9, 0))]}).to_string())).await;
        }
        copy.kill();
        for ending in ["", "-wal", "-shm", "-lock"] {
            let _ = std::fs::remove_file(folder.path().join(format!("restored.db{ending}")));
        }
        std::fs::remove_file(backup).unwrap();
    }
    let seconds = begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    // Nobody waited for a backup: rows were acknowledged while most of them were made.
    assert!(moved * 2 > count, "rows were learnt during {moved} of {count} backups");
    eprintln!(
        "{count} backups in {seconds:.1} s beside {} updates ({:.0} a second), the slowest {:.1} ms; the log was {} KiB at the most",
        learnt.load(Ordering::Relaxed),
        learnt.load(Ordering::Relaxed) as f64 / seconds,
        slowest.load(Ordering::Relaxed) as f64 / 1e3,
        longest_log >> 10,
    );
    let mut left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort_unstable();
    assert_eq!(left, ["lsqd.db", "lsqd.db-lock", "lsqd.db-shm", "lsqd.db-wal"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_made_of_what_a_killed_server_left_and_nothing_is_changed_there() {
    let folder = tempfile::tempdir().unwrap();
    let (database, backup, restored) = (folder.path().join("lsqd.db"), folder.path().join("backup.db"), folder.path().join("restored.db"));
    let server = Server::start(&database).await;
    server.fit("a").await;
    server.ask("POST", "/v1/models/a/updates", Some(json!({"rows": [row(cells(0, 0)), row(cells(0, 1))]}).to_string())).await;
    let says = server.says("a").await;
    server.kill();
    let log = std::fs::read(folder.path().join("lsqd.db-wal")).unwrap();
    assert!(!log.is_empty());
    said(&lsqd(&database, &["backup", "backup.db"]), 0);
    assert_eq!(std::fs::read(folder.path().join("lsqd.db-wal")).unwrap(), log);
    assert!(said(&lsqd(&database, &["backup", "backup.db"]), 1).contains("--force"));
    said(&lsqd(&database, &["backup", "backup.db", "--force"]), 0);
    assert!(said(&lsqd(&database, &["backup", "lsqd.db", "--force"]), 1).contains("there is a file already"));
    said(&lsqd(&restored, &["restore", backup.to_str().unwrap()]), 0);
    let copy = Server::start(&restored).await;
    assert_eq!(copy.says("a").await, says);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_replaces_nothing_unasked_and_puts_nothing_damaged_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let (database, backup) = (folder.path().join("lsqd.db"), folder.path().join("backup.db"));
    let server = Server::start(&database).await;
    server.fit("a").await;
    let before = server.says("a").await;
    said(&lsqd(&database, &["backup", "backup.db"]), 0);
    server.ask("POST", "/v1/models/a/updates", Some(json!({"rows": [row(cells(0, 0))]}).to_string())).await;
    let after = server.says("a").await;
    let path = backup.to_str().unwrap();
    assert!(said(&lsqd(&database, &["restore", path, "--force"]), 1).contains("another lsqd has this database open"));
    server.kill();
    assert!(said(&lsqd(&database, &["restore", path]), 1).contains("--force"));
    let whole = std::fs::read(&backup).unwrap();
    // A state whose bits were bent, a file that was cut off, one of a newer lsqd, and things that are no backup.
    let mut connection = server::open(&backup).await;
    sqlx::query("UPDATE versions SET state = CAST(x'00' || substr(state, 2) AS BLOB)").execute(&mut connection).await.unwrap();
    drop(connection);
    assert!(said(&lsqd(&database, &["restore", path, "--force"]), 1).contains("model \"a\", version 1"));
    std::fs::write(&backup, &whole[..whole.len() / 2]).unwrap();
    said(&lsqd(&database, &["restore", path, "--force"]), 1);
    std::fs::write(&backup, &whole).unwrap();
    let mut connection = server::open(&backup).await;
    let newer = "INSERT INTO _sqlx_migrations SELECT 9999, description, installed_on, success, checksum, execution_time FROM _sqlx_migrations LIMIT 1";
    sqlx::query(newer).execute(&mut connection).await.unwrap();
    drop(connection);
    assert!(said(&lsqd(&database, &["restore", path, "--force"]), 1).contains("newer lsqd (schema 9999)"));
    std::fs::write(&backup, b"x,y\n1,2\n").unwrap();
    said(&lsqd(&database, &["restore", path, "--force"]), 1);
    assert!(said(&lsqd(&database, &["restore", "nothing.db", "--force"]), 1).contains("there is no such file"));
    assert!(said(&lsqd(&database, &["restore", "lsqd.db", "--force"]), 1).contains("there is a file already"));
    // All that left the database as it was.
    let server = Server::start(&database).await;
    assert_eq!(server.says("a").await, after);
    server.kill();
    std::fs::write(&backup, &whole).unwrap();
    said(&lsqd(&database, &["restore", path, "--force"]), 0);
    assert!(!folder.path().join("lsqd.db-wal").exists(), "a log that is not its own");
    let server = Server::start(&database).await;
    assert_eq!(server.says("a").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_a_backup_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("lsqd.db");
    let server = Server::start(&database).await;
    let table: String =
        std::iter::once("x,z,y\n".to_owned()).chain((0..200_000).map(|row| format!("{row},{},{}\n", row % 97, row % 13))).collect();
    server.ask("PUT", "/v1/datasets/big", Some(table)).await;
    let (client, url) = (server.client.clone(), server.url.clone());
    let asked = tokio::spawn(async move { server::send(&client, &url, "POST", "/v1/backup", None, None).await });
    let copy = folder.path().join("lsqd.db-copy");
    let begun = Instant::now();
    while !copy.exists() && !asked.is_finished() && begun.elapsed() < Duration::from_secs(10) {
        tokio::task::yield_now().await;
    }
    server.kill();
    let met = copy.exists();
    let _ = asked.await;
    // The start sweeps it away, whether the kill met the copy or came too late.
    std::fs::write(&copy, b"half of a copy").unwrap();
    let server = Server::start(&database).await;
    assert!(!copy.exists(), "the copy of the killed server is still there (the kill met it: {met})");
    let (status, bytes) = server::send(&server.client, &server.url, "POST", "/v1/backup", None, None).await.unwrap();
    assert!(status == 200 && bytes.starts_with(b"SQLite format 3\0"));
    // A command that was killed is taken over by the next one.
    std::fs::write(folder.path().join("backup.db-partial"), b"half of a copy").unwrap();
    said(&lsqd(&database, &["backup", "backup.db"]), 0);
    assert!(!folder.path().join("backup.db-partial").exists());
    let report: Value = serde_json::from_str(&said(&lsqd(&folder.path().join("backup.db"), &["check", "--json"]), 0)).unwrap();
    assert_eq!((&report["whole"], &report["looked_at"]["datasets"]), (&json!(true), &json!(1)));
}
