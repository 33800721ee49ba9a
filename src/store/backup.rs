//! Copies of the database, made while it is written, and the way back.
//!
//! A copy is made by `VACUUM INTO`: one read transaction over the whole file, written to another one. So it is the database of one moment,
//! whatever is committed meanwhile; what was erased is not in it; memory stays at SQLite's page cache; and nobody waits for it. What it costs
//! is that the log cannot be folded away while it is made, which is as long as the disk takes and does not depend on who reads the copy. A
//! log that outgrows the database meanwhile ends the attempt. SQLite's other way, the backup API, begins anew with each commit of another
//! connection, which at a thousand commits a second is always; on the writer's own connection it would hold up the writer.
//!
//! Everything is written beside its place under another name, synced, and renamed: what bears the name is whole.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _};

use super::{Connection, MIGRATIONS, StoreError, beside, bring_up_to_date, now};

/// Bytes by which the log may outgrow the database while a copy of that is made.
const LOG_GROWTH: u64 = 1 << 30;
/// Steps of SQLite's machine between two looks at whether to go on: some rows.
const STEPS: i32 = 64;
/// Between two looks at the length of the log.
const LOOK: Duration = Duration::from_millis(100);

/// At which sequence a version stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The model's name.
    pub model: String,
    /// The version's number.
    pub version: u64,
    /// Updates it has learnt.
    pub sequence: u64,
}

/// What a copy says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// When it was made.
    pub made_at: String,
    /// Its versions, by model and number.
    pub versions: Vec<Standing>,
}

/// A file that is being written beside the place it is meant for. Only one process writes it, and it goes when this does, unless it was put
/// in its place. What a killed process leaves is taken over by the next attempt.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    file: std::fs::File,
}

impl Partial {
    /// An empty file at `target` with `ending` behind its name.
    ///
    /// # Errors
    /// It cannot be made, or another process is at it.
    pub fn of(target: &Path, ending: &str) -> Result<Self, StoreError> {
        let path = beside(target, ending);
        let fault = |error| StoreError::File("a file beside it cannot be made", error);
        let file = std::fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(fault)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(StoreError::Busy),
            Err(std::fs::TryLockError::Error(error)) => return Err(fault(error)),
        }
        file.set_len(0).map_err(fault)?;
        Ok(Self { path, file })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes its name away, and returns the file and how many bytes it holds: when it is closed, it is gone, whatever happens.
    ///
    /// # Errors
    /// The system's.
    pub fn into_nameless(self) -> Result<(std::fs::File, u64), StoreError> {
        let fault = |error| StoreError::File("the copy cannot be read", error);
        let file = std::fs::File::open(&self.path).map_err(fault)?;
        let bytes = file.metadata().map_err(fault)?.len();
        Ok((file, bytes))
    }

    /// Puts it in its place, in one step that a power cut leaves done or not done.
    ///
    /// # Errors
    /// It cannot be synced or renamed.
    pub fn place(mut self, target: &Path) -> Result<(), StoreError> {
        let fault = |error| StoreError::File("it cannot be put in its place", error);
        self.file.sync_all().map_err(fault)?;
        std::fs::rename(&self.path, target).map_err(fault)?;
        // What may stand at that path by now is somebody else's.
        self.path.clear();
        sync_folder(target)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // The next attempt takes over what cannot be removed.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Makes what was renamed or removed in the folder of `path` last.
fn sync_folder(path: &Path) -> Result<(), StoreError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fault = |error| StoreError::File("the folder cannot be synced", error);
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(fault)
}

/// Opens a database to look at it: nothing is written, not even what a crash left in the log is folded in.
///
/// # Errors
/// It is not there, is no database of lsqd, or was written by a newer one.
pub async fn look(path: &Path) -> Result<Connection, StoreError> {
    if !path.is_file() {
        return Err(StoreError::NotThere);
    }
    let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(Duration::from_secs(5));
    let mut connection =
        options.pragma("trusted_schema", "OFF").pragma("cell_size_check", "ON").disable_statement_logging().connect().await?;
    let known = sqlx::query("SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations'").fetch_optional(&mut connection).await?;
    if known.is_none() {
        return Err(StoreError::NotOurs);
    }
    let (schema,): (Option<i64>,) = sqlx::query_as("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut connection).await?;
    match schema {
        Some(schema) if MIGRATIONS.iter().all(|known| known.version != schema) => Err(StoreError::Newer(schema)),
        Some(_) => Ok(connection),
        None => Err(StoreError::NotOurs),
    }
}

/// Copies a database to an empty file. `go_on` is asked now and then.
///
/// # Errors
/// The database cannot be read, the copy cannot be written (a full disk), the log grows too fast, or it is not to go on.
pub async fn copy(from: &Path, to: &Path, go_on: impl Fn() -> bool + Send + 'static) -> Result<(), StoreError> {
    let mut source = look(from).await?;
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let log = beside(from, "-wal");
    let most = length(from).saturating_add(length(&log)).saturating_add(LOG_GROWTH);
    let outgrown = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (note, mut looked) = (outgrown.clone(), Instant::now());
    source.lock_handle().await?.set_progress_handler(STEPS, move || {
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            note.store(length(&log) > most, std::sync::atomic::Ordering::Relaxed);
        }
        go_on() && !note.load(std::sync::atomic::Ordering::Relaxed)
    });
    let text = to.to_str().ok_or(StoreError::Path)?;
    let copied = sqlx::query("VACUUM INTO ?").bind(text).execute(&mut source).await.map_err(StoreError::from);
    source.close().await?;
    match copied {
        Ok(_) => Ok(()),
        Err(error) if error.primary_code() == Some(INTERRUPT) => {
            Err(if outgrown.load(std::sync::atomic::Ordering::Relaxed) { StoreError::Outgrown } else { StoreError::Stopped })
        }
        Err(error) => Err(error),
    }
}

/// What SQLite says when the progress handler says no.
const INTERRUPT: i32 = 9;

/// Opens a file that nobody else knows of yet to write it: a power cut may spoil it, for it has not got its name.
///
/// # Errors
/// The database's.
pub async fn open_partial(path: &Path) -> Result<Connection, StoreError> {
    let options = SqliteConnectOptions::new().filename(path).journal_mode(SqliteJournalMode::Memory).synchronous(SqliteSynchronous::Off);
    Ok(options.pragma("trusted_schema", "OFF").pragma("secure_delete", "ON").disable_statement_logging().connect().await?)
}

/// Writes into a copy that nobody else knows of what it is.
///
/// # Errors
/// The database's.
pub async fn label(copy: &Path) -> Result<Label, StoreError> {
    let mut connection = open_partial(copy).await?;
    let versions = standings(&mut connection).await?;
    let label = Label { made_at: now(), versions };
    sqlx::raw_sql(
        "DROP TABLE IF EXISTS backup_versions;
         DROP TABLE IF EXISTS backup;
         CREATE TABLE backup (made_at TEXT NOT NULL, lsqd TEXT NOT NULL) STRICT;
         CREATE TABLE backup_versions (
             model    TEXT    NOT NULL,
             version  INTEGER NOT NULL,
             sequence INTEGER NOT NULL,
             PRIMARY KEY (model, version)
         ) STRICT, WITHOUT ROWID;",
    )
    .execute(&mut connection)
    .await?;
    sqlx::query("BEGIN").execute(&mut connection).await?;
    sqlx::query("INSERT INTO backup (made_at, lsqd) VALUES (?, ?)")
        .bind(&label.made_at)
        .bind(env!("CARGO_PKG_VERSION"))
        .execute(&mut connection)
        .await?;
    for Standing { model, version, sequence } in &label.versions {
        sqlx::query("INSERT INTO backup_versions (model, version, sequence) VALUES (?, ?, ?)")
            .bind(model)
            .bind(version.cast_signed())
            .bind(sequence.cast_signed())
            .execute(&mut connection)
            .await?;
    }
    sqlx::query("COMMIT").execute(&mut connection).await?;
    connection.close().await?;
    Ok(label)
}

/// What a copy says of itself; nothing of a database that is none.
///
/// # Errors
/// The database's.
pub async fn read_label(connection: &mut Connection) -> Result<Option<Label>, StoreError> {
    let labelled = sqlx::query("SELECT 1 FROM sqlite_schema WHERE name = 'backup_versions'").fetch_optional(&mut *connection).await?;
    if labelled.is_none() {
        return Ok(None);
    }
    let Some((made_at,)) = sqlx::query_as("SELECT made_at FROM backup").fetch_optional(&mut *connection).await? else { return Ok(None) };
    let rows: Vec<(String, i64, i64)> =
        sqlx::query_as("SELECT model, version, sequence FROM backup_versions ORDER BY model, version").fetch_all(connection).await?;
    Ok(Some(Label { made_at, versions: rows.into_iter().map(standing).collect() }))
}

fn standing((model, version, sequence): (String, i64, i64)) -> Standing {
    Standing { model, version: version.unsigned_abs(), sequence: sequence.unsigned_abs() }
}

/// The sequence of a version: where its log or its newest snapshot ends.
macro_rules! sequence_of {
    ($version:literal) => {
        concat!(
            "max(coalesce((SELECT max(sequence) FROM snapshots WHERE version_id = ",
            $version,
            "), 0), coalesce((SELECT first_sequence + rows - 1 FROM update_log WHERE version_id = ",
            $version,
            " ORDER BY first_sequence DESC LIMIT 1), 0))"
        )
    };
}

/// At which sequence a version stands.
///
/// # Errors
/// The database's.
pub async fn standing_of(connection: &mut Connection, version: i64) -> Result<u64, StoreError> {
    let (sequence,): (i64,) = sqlx::query_as(concat!("SELECT ", sequence_of!("?1"))).bind(version).fetch_one(connection).await?;
    Ok(sequence.unsigned_abs())
}

/// At which sequence each version stands. The tables it looks at have been there since the first schema.
///
/// # Errors
/// The database's.
pub async fn standings(connection: &mut Connection) -> Result<Vec<Standing>, StoreError> {
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(concat!(
        "SELECT models.name, versions.version, ",
        sequence_of!("versions.id"),
        " FROM versions JOIN models ON models.id = versions.model_id ORDER BY models.name, versions.version"
    ))
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(standing).collect())
}

/// Brings a copy that nobody else knows of to the schema of this lsqd.
///
/// # Errors
/// The database's.
pub async fn migrate(copy: &Path) -> Result<(), StoreError> {
    let mut connection = open_partial(copy).await?;
    bring_up_to_date(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// Takes away a database whose server does not run, but for its name: its log is folded in as far as it can be, and is gone. What takes its
/// place must not find a log that is not its own.
///
/// # Errors
/// A file of it cannot be removed.
pub async fn fold_away(path: &Path) -> Result<(), StoreError> {
    if path.is_file() {
        // A file that is damaged may not let itself be opened; that may be why another one is to take its place.
        if let Ok(mut connection) = SqliteConnectOptions::new().filename(path).disable_statement_logging().connect().await {
            let _ = super::checkpoint(&mut connection).await;
            let _ = connection.close().await;
        }
    }
    for ending in ["-wal", "-shm", "-journal"] {
        match std::fs::remove_file(beside(path, ending)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::File("the log of the database that was there cannot be removed", error)),
        }
    }
    sync_folder(path)
}
