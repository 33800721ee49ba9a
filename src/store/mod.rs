//! The database: one SQLite file, opened the only way in which "acknowledged" means "on disk".
//!
//! WAL with `synchronous = FULL` (NORMAL may lose acknowledged commits in a power cut), foreign keys on, schema not trusted. One connection
//! writes ([`Store::open`] hands it to the writer, which alone runs checkpoints); readers come from a pool and can never write.
//! One file a table family; every function takes the connection it works on, so that the caller decides what is one transaction.
//! This is not the place where things are ordered or published: that is `service`.

pub mod audit;
pub mod backup;
pub mod check;
pub mod datasets;
pub mod error;
pub mod idempotency;
pub mod jobs;
pub mod keys;
pub mod models;
pub mod remembered;
pub mod traffic;
pub mod updates;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection as _, SqlitePool};

pub use error::StoreError;

use crate::planted::{self, Bug};

/// A connection to the database; transactions are begun and ended by its owner.
pub type Connection = sqlx::SqliteConnection;

/// A reader's connection, returned to its pool on drop.
pub type Reader = sqlx::pool::PoolConnection<sqlx::Sqlite>;

/// The oldest SQLite whose WAL mode is safe: 3.51.3 mends a race between checkpoint and write that can corrupt a database.
const OLDEST_SQLITE: i32 = 3_051_003;
/// How long a statement waits for those who hold the file.
const PATIENCE: Duration = Duration::from_secs(5);

/// What stands behind the database's name while a server makes a copy of it, and while it is restored.
pub const COPY: &str = "-copy";
/// See [`COPY`].
pub const RESTORED: &str = "-restored";

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// The readers' side of an opened database.
#[derive(Clone, Debug)]
pub struct Store {
    readers: SqlitePool,
    /// Readers of long computations. A connection has a thread of its own, which on Linux stands behind others as far as the one that opened it:
    /// these are opened by threads that give way.
    behind: SqlitePool,
    path: Arc<Path>,
    reading: SqliteConnectOptions,
    /// Held for as long as the database is open: two servers on one file would each keep models in memory that the other changes.
    _lock: Arc<std::fs::File>,
}

impl Store {
    /// Opens (or creates) the file, migrates it, and returns the readers' side and the one connection that may write.
    ///
    /// # Errors
    /// The file cannot be opened, is held by another process, was written by a newer lsqd, or the linked SQLite is too old to be trusted.
    pub async fn open(path: &Path, readers: u32) -> Result<(Self, Connection), StoreError> {
        let lock = lock(path)?;
        // What a killed process left of copies that it was making.
        for ending in [COPY, RESTORED] {
            let _ = std::fs::remove_file(beside(path, ending));
        }
        let options = options(path);
        let mut writer = options.clone().pragma("wal_autocheckpoint", "4000").connect().await?;
        let (version,): (String,) = sqlx::query_as("SELECT sqlite_version()").fetch_one(&mut writer).await?;
        if version_number(&version) < OLDEST_SQLITE {
            return Err(StoreError::OldSqlite(version));
        }
        bring_up_to_date(&mut writer).await?;
        let reading = options.pragma("wal_autocheckpoint", "0").pragma("query_only", "ON");
        let pool = SqlitePoolOptions::new().max_connections(readers.max(1)).acquire_timeout(Duration::from_secs(30));
        let behind = pool.clone().connect_lazy_with(reading.clone());
        let readers = pool.connect_with(reading.clone()).await?;
        Ok((Self { readers, behind, path: path.into(), reading, _lock: Arc::new(lock) }, writer))
    }

    /// A reader's connection.
    ///
    /// # Errors
    /// None came free within 30 s, or the file cannot be opened any more.
    pub async fn read(&self) -> Result<Reader, StoreError> {
        Ok(self.readers.acquire().await?)
    }

    /// The same for a computation that gives way to those who serve; to be called on its thread.
    ///
    /// # Errors
    /// None came free within 30 s, or the file cannot be opened any more.
    pub async fn read_behind(&self) -> Result<Reader, StoreError> {
        Ok(self.behind.acquire().await?)
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A reading connection of the caller's own, for what must not wait until others have read. Whoever asks for it closes it.
    ///
    /// # Errors
    /// The file cannot be opened any more.
    pub async fn connect(&self) -> Result<Connection, StoreError> {
        Ok(self.reading.connect().await?)
    }

    /// Closes the readers. The writer's connection is closed by its owner.
    pub async fn close(&self) {
        self.readers.close().await;
        self.behind.close().await;
    }
}

/// Brings a file up to this version's schema, in one transaction: whatever comes between leaves it as it was, and the older program that made it
/// still reads it.
///
/// # Errors
/// It is of a newer schema, or cannot be written.
async fn bring_up_to_date(writer: &mut Connection) -> Result<(), StoreError> {
    let mut transaction = writer.begin().await?;
    MIGRATIONS.run(&mut *transaction).await.map_err(StoreError::from_migration)?;
    Ok(transaction.commit().await?)
}

/// How the file is opened, whoever does it.
fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .page_size(8192) // column chunks are long blobs; updates are short: a compromise between overflow chains and bytes per commit
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(if planted::has(Bug::SynchronousNormal) { SqliteSynchronous::Normal } else { SqliteSynchronous::Full })
        .foreign_keys(true)
        .busy_timeout(PATIENCE)
        .pragma("trusted_schema", "OFF")
        .pragma("cell_size_check", "ON")
        // What is erased is overwritten, not only let go of.
        .pragma("secure_delete", "ON")
        .pragma("journal_size_limit", "67108864")
        .disable_statement_logging()
}

/// Opens a file that a server has, to write a little beside it.
///
/// # Errors
/// The file cannot be opened, or is not of this version's schema.
async fn connect_beside(path: &Path) -> Result<Connection, StoreError> {
    let mut connection = options(path).create_if_missing(false).pragma("wal_autocheckpoint", "0").connect().await?;
    let applied: Vec<(i64,)> = sqlx::query_as("SELECT version FROM _sqlx_migrations ORDER BY version").fetch_all(&mut connection).await?;
    if applied.into_iter().map(|(version,)| version).eq(MIGRATIONS.iter().map(|migration| migration.version)) {
        Ok(connection)
    } else {
        Err(StoreError::OtherSchema)
    }
}

/// Closes a connection.
pub async fn close(connection: Connection) -> Result<(), StoreError> {
    Ok(connection.close().await?)
}

/// Begins a write transaction. `IMMEDIATE`: the lock is taken now, not at the first write, so it cannot fail half-way.
pub async fn begin(writer: &mut Connection) -> Result<(), StoreError> {
    sqlx::query("BEGIN IMMEDIATE").execute(writer).await?;
    Ok(())
}

/// Begins a transaction that only reads: all of it sees the database of one moment.
pub async fn begin_reading(connection: &mut Connection) -> Result<(), StoreError> {
    sqlx::query("BEGIN").execute(connection).await?;
    Ok(())
}

/// Commits: when this returns `Ok`, the transaction is on disk.
pub async fn commit(writer: &mut Connection) -> Result<(), StoreError> {
    sqlx::query("COMMIT").execute(writer).await?;
    Ok(())
}

/// Rolls the transaction back, whatever state it is in.
pub async fn rollback(writer: &mut Connection) -> Result<(), StoreError> {
    sqlx::query("ROLLBACK").execute(writer).await?;
    Ok(())
}

/// Makes the commit of this transaction fail, and nothing before it.
#[cfg(test)]
pub(crate) async fn doom(writer: &mut Connection) -> Result<(), StoreError> {
    sqlx::query("PRAGMA defer_foreign_keys = ON").execute(&mut *writer).await?;
    sqlx::query("INSERT INTO aliases (model_id, alias, version) VALUES (-1, 'of nothing', 1)").execute(writer).await?;
    Ok(())
}

/// Opens a savepoint inside the transaction, so that one operation of a group can fail alone.
pub async fn savepoint(writer: &mut Connection) -> Result<(), StoreError> {
    sqlx::query("SAVEPOINT operation").execute(writer).await?;
    Ok(())
}

/// Keeps (`true`) or undoes (`false`) what was done since [`savepoint`].
pub async fn end_savepoint(writer: &mut Connection, keep: bool) -> Result<(), StoreError> {
    if !keep {
        sqlx::query("ROLLBACK TO operation").execute(&mut *writer).await?;
    }
    sqlx::query("RELEASE operation").execute(writer).await?;
    Ok(())
}

/// Folds the WAL into the file and empties it, as far as readers allow: what was overwritten is gone from both.
pub async fn checkpoint(writer: &mut Connection) -> Result<(), StoreError> {
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(writer).await?;
    Ok(())
}

/// Folds the WAL into the file and empties it, if nobody reads just now: nobody is waited for. Whether it is empty.
pub async fn fold(writer: &mut Connection) -> Result<bool, StoreError> {
    sqlx::query("PRAGMA busy_timeout = 0").execute(&mut *writer).await?;
    let folded: Result<(i64, i64, i64), _> = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *writer).await;
    let patience = format!("PRAGMA busy_timeout = {}", PATIENCE.as_millis());
    sqlx::query(sqlx::AssertSqlSafe(patience)).execute(&mut *writer).await?;
    let (busy, ..) = folded?;
    Ok(busy == 0)
}

/// Folds the WAL into the file and closes the writer.
pub async fn close_writer(mut writer: Connection) -> Result<(), StoreError> {
    checkpoint(&mut writer).await?;
    writer.close().await?;
    Ok(())
}

/// Holds the database to a size: what would take more fails as on a full disk, and changes nothing. 0 is no limit. What is larger already
/// grows no more.
pub async fn limit(writer: &mut Connection, bytes: u64) -> Result<(), StoreError> {
    if bytes == 0 {
        return Ok(());
    }
    let (page,): (i64,) = sqlx::query_as("PRAGMA page_size").fetch_one(&mut *writer).await?;
    let pages = bytes / u64::try_from(page).unwrap_or(1).max(1);
    // A pragma takes no parameters; this is a number.
    let sql = format!("PRAGMA max_page_count = {}", pages.clamp(1, u64::from(u32::MAX - 1)));
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(writer).await?;
    Ok(())
}

/// Bytes of the database, pages included that are free again.
pub async fn size(connection: &mut Connection) -> Result<u64, StoreError> {
    let (pages,): (i64,) = sqlx::query_as("PRAGMA page_count").fetch_one(&mut *connection).await?;
    let (page,): (i64,) = sqlx::query_as("PRAGMA page_size").fetch_one(connection).await?;
    Ok(pages.unsigned_abs().saturating_mul(page.unsigned_abs()))
}

/// A path with more behind its name.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// A lock on `{path}-lock`, not on the file itself: SQLite loses its own locks when any handle on the file is closed.
///
/// # Errors
/// Another process holds it, or it cannot be made.
pub fn lock(path: &Path) -> Result<std::fs::File, StoreError> {
    let name = beside(path, "-lock");
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(name).map_err(StoreError::Lock)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::InUse),
        Err(std::fs::TryLockError::Error(error)) => Err(StoreError::Lock(error)),
    }
}

fn version_number(text: &str) -> i32 {
    let mut parts = text.split('.').map(|part| part.parse::<i32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    next() * 1_000_000 + next() * 1_000 + next()
}

/// Seals bytes with a CRC-32 at their end, which is of `place` too: the numbers that say what they belong to. So bytes that turn up elsewhere,
/// because a row's key was spoilt, are noticed like bytes that were spoilt themselves.
#[must_use]
pub fn seal(mut bytes: Vec<u8>, place: &[i64]) -> Vec<u8> {
    let checksum = checksum(&bytes, place, &[]);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Opens bytes that were sealed in this place; `what` names them in the error. Those that were sealed before places counted are opened too.
///
/// # Errors
/// The checksum does not agree: the bytes are not the ones that were written there.
pub fn unseal<'a>(bytes: &'a [u8], place: &[i64], what: &'static str) -> Result<&'a [u8], StoreError> {
    unseal_with(bytes, place, &[], what)
}

/// The same of bytes to which others belong that stand beside them.
fn unseal_with<'a>(bytes: &'a [u8], place: &[i64], beside: &[u8], what: &'static str) -> Result<&'a [u8], StoreError> {
    let (body, tail) = bytes.split_last_chunk::<4>().ok_or(StoreError::Corrupt(what))?;
    let known = u32::from_le_bytes(*tail);
    if known == checksum(body, place, beside) || known == crc32fast::hash(body) { Ok(body) } else { Err(StoreError::Corrupt(what)) }
}

fn checksum(bytes: &[u8], place: &[i64], beside: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(bytes);
    hash.update(beside);
    place.iter().for_each(|number| hash.update(&number.to_le_bytes()));
    hash.finalize()
}

/// The present moment as RFC 3339 text in UTC, microseconds kept.
#[must_use]
pub fn now() -> String {
    moment(jiff::Timestamp::now())
}

/// A moment in the same form; such texts are ordered as their moments are.
#[must_use]
pub fn moment(timestamp: jiff::Timestamp) -> String {
    timestamp.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version_number("3.51.3") >= OLDEST_SQLITE);
        assert!(version_number("3.51.2") < OLDEST_SQLITE);
        assert!(version_number("3.9.99") < OLDEST_SQLITE);
        assert!(version_number("4.0.0") > OLDEST_SQLITE);
    }

    #[test]
    fn a_seal_notices_each_flipped_bit() {
        let sealed = seal(b"state of a model".to_vec(), &[7, 2]);
        assert_eq!(unseal(&sealed, &[7, 2], "state").unwrap(), b"state of a model");
        for elsewhere in [&[7, 3][..], &[2, 7], &[7], &[7, 2, 0], &[]] {
            assert!(unseal(&sealed, elsewhere, "state").is_err(), "{elsewhere:?}");
        }
        // As it was done before places counted.
        let old = [&b"state"[..], &crc32fast::hash(b"state").to_le_bytes()].concat();
        assert_eq!(unseal(&old, &[7, 2], "state").unwrap(), b"state");
        for bit in 0..sealed.len() * 8 {
            let mut bent = sealed.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(&bent, &[7, 2], "state").is_err(), "bit {bit}");
        }
        assert!(unseal(&[1, 2, 3], &[], "state").is_err());
    }

    #[tokio::test]
    async fn a_second_server_on_the_same_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lsqd.db");
        let (first, writer) = Store::open(&path, 1).await.unwrap();
        assert!(matches!(Store::open(&path, 1).await, Err(StoreError::InUse)));
        first.close().await;
        close_writer(writer).await.unwrap();
        drop(first);
        assert!(Store::open(&path, 1).await.is_ok());
    }

    #[tokio::test]
    async fn the_file_is_opened_as_promised() {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut writer) = Store::open(&folder.path().join("lsqd.db"), 2).await.unwrap();
        let pragma = async |connection: &mut Connection, sql: &'static str| -> String {
            let row = sqlx::query(sql).fetch_one(connection).await.unwrap();
            use sqlx::Row as _;
            row.try_get::<String, _>(0).unwrap_or_else(|_| row.try_get::<i64, _>(0).unwrap().to_string())
        };
        assert_eq!(pragma(&mut writer, "PRAGMA journal_mode").await, "wal");
        assert_eq!(pragma(&mut writer, "PRAGMA synchronous").await, "2");
        assert_eq!(pragma(&mut writer, "PRAGMA foreign_keys").await, "1");
        assert_eq!(pragma(&mut writer, "PRAGMA trusted_schema").await, "0");
        let mut reader = store.read().await.unwrap();
        assert_eq!(pragma(&mut reader, "PRAGMA query_only").await, "1");
        assert_eq!(pragma(&mut reader, "PRAGMA wal_autocheckpoint").await, "0");
        assert!(sqlx::query("DELETE FROM models").execute(&mut *reader).await.is_err(), "a reader wrote");
    }
}
