//! Backups of a database, whether its server runs or not, and the way back from one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::json;

use super::check::{self, Report};
use super::{Service, ServiceError, audit};
use crate::store::backup::{self, Partial};
pub use crate::store::backup::{Label, Standing};
use crate::store::{self, StoreError};

/// What stands behind the name of a backup while it is made.
const PARTIAL: &str = "-partial";

/// A backup to be read: a file without a name, which is gone when it is closed.
#[derive(Debug)]
pub struct Backup {
    /// The file.
    pub file: std::fs::File,
    /// How many bytes it holds.
    pub bytes: u64,
    /// When it was made, and where its versions stand.
    pub label: Label,
    /// To be held until it has been read: each backup needs room on the disk, so there is one at a time.
    pub only: tokio::sync::OwnedMutexGuard<()>,
}

/// Tells a copy under way that nobody waits for it any more.
struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Service {
    /// Makes a backup of the database as it stands. Nobody waits for that: neither who writes nor who reads.
    ///
    /// # Errors
    /// Another one is under way, the disk is full, or the database failed.
    pub async fn backup(&self) -> Result<Backup, ServiceError> {
        let only = self.backing_up.clone().try_lock_owned().map_err(|_| ServiceError::Unavailable("another backup is under way"))?;
        let begun = Instant::now();
        let partial = Partial::of(self.store.path(), store::COPY)?;
        let wanted = Arc::new(AtomicBool::new(true));
        let _wanted = Wanted(wanted.clone());
        let stopping = self.stopping.subscribe();
        let go_on = move || wanted.load(Ordering::Relaxed) && !*stopping.borrow();
        let copied = backup::copy(self.store.path(), partial.path(), go_on).await;
        let labelled = match copied {
            Ok(()) => backup::label(partial.path()).await,
            Err(error) => Err(error),
        };
        let label = labelled.map_err(|error| match error {
            full if full.is_full() => ServiceError::DiskFull,
            StoreError::Stopped => ServiceError::Unavailable("the server is stopping"),
            StoreError::Outgrown => {
                ServiceError::Unavailable("the database changes faster than it can be copied; try again when it is calmer")
            }
            other => other.into(),
        })?;
        let (file, bytes) = partial.into_nameless()?;
        tracing::info!(bytes, versions = label.versions.len(), seconds = begun.elapsed().as_secs_f64(), "a backup was made");
        Ok(Backup { file, bytes, label, only })
    }
}

/// Writes a backup of a database to a file, whether its server runs or not.
///
/// # Errors
/// There is no such database; the file is there and is not to be replaced; the disk is full.
pub async fn write(database: &Path, to: &Path, force: bool) -> Result<Label, StoreError> {
    if to.exists() && (!force || same(database, to)) {
        return Err(StoreError::Exists);
    }
    let partial = Partial::of(to, PARTIAL)?;
    backup::copy(database, partial.path(), || true).await?;
    let label = backup::label(partial.path()).await?;
    partial.place(to)?;
    Ok(label)
}

fn same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// What became of a backup that was to be restored.
#[derive(Debug)]
pub enum Restored {
    /// It is the database now.
    Done {
        /// What it said of itself; nothing if it was copied otherwise.
        label: Option<Label>,
        /// Where its versions stand.
        standings: Vec<backup::Standing>,
    },
    /// It is damaged, and was not put in place.
    Damaged(Report),
}

/// Puts a backup in the place of a database whose server does not run: it is copied beside it, brought to the schema of this lsqd, checked,
/// and renamed. Until then the database that was there is as it was.
///
/// # Errors
/// There is a database already and it is not to be replaced; a server has it; the backup is none; the disk is full.
pub async fn restore(from: &Path, database: &Path, force: bool) -> Result<Restored, StoreError> {
    let _lock = store::lock(database)?;
    if database.exists() && (!force || same(from, database)) {
        return Err(StoreError::Exists);
    }
    let partial = Partial::of(database, store::RESTORED)?;
    backup::copy(from, partial.path(), || true).await?;
    backup::migrate(partial.path()).await?;
    let report = check::check(partial.path()).await?;
    if !report.is_whole() {
        return Ok(Restored::Damaged(report));
    }
    let mut copy = backup::open_partial(partial.path()).await?;
    let (label, standings) = (backup::read_label(&mut copy).await?, backup::standings(&mut copy).await?);
    let after = json!({"made_at": label.as_ref().map(|label| &label.made_at), "replaced": database.exists()});
    audit::by_hand(&mut copy, "restore", after).await?;
    store::close(copy).await?;
    backup::fold_away(database).await?;
    partial.place(database)?;
    Ok(Restored::Done { label, standings })
}
