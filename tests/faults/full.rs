//! A disk that is full and has room again, time after time: what is asked to predict is answered throughout, what is to be written is refused
//! by name while there is no room and goes well as soon as there is, without a restart, and nothing that was acknowledged is lost.
//!
//! `LSQD_FULL_DISK_CYCLES=100 cargo test --test faults full:: -- --nocapture` for as many times, on the disk that [`crate::disk`] plays and on
//! a real small file system, which takes the right to mount one.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::disk::Disk;
use crate::ledger::{Fact, Ledger, Mark};
use crate::server::Server;
use crate::{DATABASE, cells, ledger, prepared, row, setting};

/// Times that it is filled unless `LSQD_FULL_DISK_CYCLES` says otherwise.
const CYCLES: u64 = 10;
/// Bytes that there is room for at most when a cycle begins; so many different amounts, from none at all.
const ROOM: u64 = 300_000;

/// What happened.
#[derive(Debug, Default)]
struct Account {
    facts: Vec<Fact>,
    refused: usize,
    predicted: usize,
}

/// Sends a request that may find the disk full, and nothing else may happen to it.
async fn send(server: &Server, method: &str, path: &str, body: Option<String>) -> Option<serde_json::Value> {
    let (status, reply) = server.send(method, path, body).await.unwrap_or_else(|| panic!("{method} {path}: no answer"));
    assert!(status < 300 || status == 507 && reply["code"] == "disk_full", "{method} {path} -> {status}: {reply}");
    (status < 300).then_some(reply)
}

async fn learn(server: &Server, number: u64, account: &mut Account) -> bool {
    let cells = cells(7, number);
    let reply = send(server, "POST", "/v1/models/m/updates", Some(json!({"rows": [row(cells)]}).to_string())).await;
    match &reply {
        Some(reply) => account.facts.push(Fact::row("m", reply["sequence"].as_u64().unwrap(), &cells)),
        None => account.refused += 1,
    }
    reply.is_some()
}

/// Fills the disk with updates and tables until both are refused, or tables again and again, frees it, and sees that both go well at once.
async fn fill_and_free(server: &Server, cycles: u64, mut squeeze: impl FnMut(u64), mut free: impl FnMut()) -> Account {
    let table =
        |rows: usize| "x,z,y\n".to_owned() + &(0..rows).map(|row| format!("{row}.25,{}.5,{row}\n", row * 7919 % 9973)).collect::<String>();
    let (over, mut account, mut number) = (AtomicBool::new(false), Account::default(), 0);
    let predicting = async {
        let question = json!({"rows": [{"x": 1, "z": 2}]}).to_string();
        let mut predicted = 0;
        while !over.load(Ordering::Relaxed) {
            let reply = server.send("POST", "/v1/models/m/predict", Some(question.clone())).await;
            assert!(reply.as_ref().is_some_and(|(status, _)| *status == 200), "a prediction: {reply:?}");
            predicted += 1;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        predicted
    };
    let writing = async {
        for cycle in 0..cycles {
            squeeze(ROOM * (cycle % 7) / 7);
            let (mut refused, mut attempts) = ([0; 2], 0);
            // A row may find room where a table finds none: what a refused table took of the log is given back before the next commit.
            while refused[1] == 0 || refused.iter().sum::<i32>() < 4 || refused[0] == 0 && attempts < 40 {
                number += 1;
                refused[0] += i32::from(!learn(server, number, &mut account).await);
                let stored = send(server, "PUT", "/v1/datasets/large", Some(table(3000 * (1 + attempts)))).await;
                refused[1] += i32::from(stored.is_none());
                account.refused += usize::from(stored.is_none());
                attempts += 1;
                assert!(attempts < 500, "cycle {cycle}: the disk is not full after {attempts} attempts: {refused:?}");
            }
            free();
            number += 1;
            assert!(learn(server, number, &mut account).await, "cycle {cycle}: there is room, and an update is refused");
            assert!(send(server, "PUT", "/v1/datasets/large", Some(table(3000))).await.is_some(), "cycle {cycle}: a table is refused");
            assert_eq!(server.ask("GET", "/readyz", None).await["ready"], true);
        }
        over.store(true, Ordering::Relaxed);
    };
    let (predicted, ()) = futures_util::future::join(predicting, writing).await;
    account.predicted = predicted;
    account
}

fn told(account: &Account, cycles: u64, what: &str) {
    assert!(account.predicted > 0 && account.refused > 0);
    eprintln!(
        "{what}: full {cycles} times; {} writes refused, {} rows acknowledged, all there; {} predictions, none failed",
        account.refused,
        account.facts.len(),
        account.predicted
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_again_and_again_loses_nothing() {
    let cycles = setting("LSQD_FULL_DISK_CYCLES", CYCLES);
    let (template, marks) = prepared().await;
    let disk = Disk::under(template.path());
    let server = Server::start(&template.path().join(DATABASE)).await.unwrap();
    let account = fill_and_free(
        &server,
        cycles,
        |room| {
            disk.limit(template.path(), 0);
            disk.limit(template.path(), disk.taken() + room);
        },
        || disk.limit(template.path(), u64::MAX),
    )
    .await;
    server.stop().await.unwrap();
    account.facts.iter().for_each(|fact| disk.mark(Mark::Acknowledged(fact.clone())));
    ledger(&marks, &disk).check(&template.path().join(DATABASE)).await.unwrap();
    told(&account, cycles, "a disk with a quota");
}

/// A small file system; gone when dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// One of so many bytes, if this process may mount it.
    fn new(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, for when a test fails while its server runs.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Leaves so many bytes of a small file system free.
fn fill(path: &Path, room: u64) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(room)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_system_that_is_full_again_and_again_loses_nothing() {
    // Only when it is asked for: a test that mounts something is not for everybody.
    let Some(cycles) = std::env::var("LSQD_FULL_DISK_CYCLES").ok().and_then(|text| text.parse().ok()) else { return };
    // The tables that are stored until there is no room make the file larger each time; what is let go has to be room all the same.
    let Some(mounted) = Mounted::new((32 << 20) + cycles * (4 << 20)) else {
        eprintln!("a small file system cannot be mounted here; nothing was tried");
        return;
    };
    let (template, marks) = prepared().await;
    let (database, filler) = (mounted.0.path().join(DATABASE), mounted.0.path().join("filler"));
    crate::copy(template.path(), mounted.0.path());
    let server = Server::start(&database).await.unwrap();
    let account = fill_and_free(&server, cycles, |room| fill(&filler, room), || std::fs::remove_file(&filler).unwrap()).await;
    // A log that is folded into the file only when it is long would fill a small disk by itself.
    let log = std::fs::metadata(mounted.0.path().join("lsqd.db-wal")).unwrap().len();
    assert!(log < 8 << 20, "the log takes {log} bytes");
    server.stop().await.unwrap();
    let mut all = Ledger::default();
    marks.iter().for_each(|mark| all.enter(mark));
    account.facts.iter().for_each(|fact| all.enter(&Mark::Acknowledged(fact.clone())));
    all.check(&database).await.unwrap();
    told(&account, cycles, "a small file system");
}
