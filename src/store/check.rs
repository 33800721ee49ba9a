//! What `lsqd check` reads: every row with its bytes as they stand, damaged or not, and what SQLite says of its own structure.

use futures_util::TryStreamExt as _;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Row as _};

use super::updates::LogRecord;
use super::{Connection, MIGRATIONS, StoreError, datasets, models, unseal};

/// Faults of one kind that are listed.
const LISTED: u32 = 100;

/// Opens a database to mend it. Its lock must be held.
///
/// # Errors
/// It cannot be opened.
pub async fn open(path: &std::path::Path) -> Result<Connection, StoreError> {
    let options = SqliteConnectOptions::new().filename(path).foreign_keys(true).pragma("trusted_schema", "OFF");
    Ok(options.pragma("secure_delete", "ON").disable_statement_logging().connect().await?)
}

/// The schema of a database that is older than the one of this lsqd.
///
/// # Errors
/// The database's.
pub async fn older_schema(connection: &mut Connection) -> Result<Option<i64>, StoreError> {
    let (schema,): (i64,) = sqlx::query_as("SELECT coalesce(max(version), 0) FROM _sqlx_migrations").fetch_one(connection).await?;
    Ok(MIGRATIONS.iter().any(|migration| migration.version > schema).then_some(schema))
}

/// What SQLite finds wrong with the structure of its file.
///
/// # Errors
/// The database's.
pub async fn structure(connection: &mut Connection) -> Result<Vec<String>, StoreError> {
    let rows: Vec<(String,)> = sqlx::query_as("PRAGMA integrity_check(100)").fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(fault,)| fault).filter(|fault| fault != "ok").collect())
}

/// Makes every index anew from its table.
///
/// # Errors
/// The database's.
pub async fn reindex(writer: &mut Connection) -> Result<(), StoreError> {
    sqlx::query("REINDEX").execute(writer).await?;
    Ok(())
}

/// Rows that point at rows which are not there.
///
/// # Errors
/// The database's.
pub async fn dangling(connection: &mut Connection) -> Result<Vec<String>, StoreError> {
    let rows: Vec<(String, String, i64)> =
        sqlx::query_as("SELECT \"table\", parent, count(*) FROM pragma_foreign_key_check GROUP BY 1, 2 LIMIT ?")
            .bind(LISTED)
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().map(|(table, parent, count)| format!("{count} row(s) of {table} belong to nothing in {parent}")).collect())
}

/// The stored state of a version, unsealed; the outer error is the database's.
///
/// # Errors
/// The database's.
pub async fn state(connection: &mut Connection, version: i64) -> Result<Result<Vec<u8>, StoreError>, StoreError> {
    split(models::state(connection, version).await)
}

/// Tells damage of one row from a database that cannot be read.
fn split<T>(found: Result<T, StoreError>) -> Result<Result<T, StoreError>, StoreError> {
    match found {
        Err(error @ StoreError::Corrupt(_)) => Ok(Err(error)),
        Err(error) => Err(error),
        Ok(value) => Ok(Ok(value)),
    }
}

/// The sequences of a version's snapshots.
///
/// # Errors
/// The database's.
pub async fn snapshots(connection: &mut Connection, version: i64) -> Result<Vec<u64>, StoreError> {
    let rows: Vec<(i64,)> =
        sqlx::query_as("SELECT sequence FROM snapshots WHERE version_id = ? ORDER BY sequence").bind(version).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(sequence,)| sequence.unsigned_abs()).collect())
}

/// One snapshot, unsealed.
///
/// # Errors
/// The database's.
pub async fn snapshot(connection: &mut Connection, version: i64, sequence: u64) -> Result<Result<Vec<u8>, StoreError>, StoreError> {
    let found = super::updates::snapshot(connection, version, sequence).await;
    split(found.and_then(|found| match found {
        Some((at, state)) if at == sequence => Ok(state),
        _ => Err(StoreError::Corrupt("a snapshot")),
    }))
}

/// A record of the log as it stands.
#[derive(Debug)]
pub struct Logged {
    /// Its first sequence.
    pub first: u64,
    /// Rows it says it has.
    pub rows: u64,
    /// What it holds, if its checksum agrees.
    pub record: Result<LogRecord, StoreError>,
}

/// Shows the records of a version's log one after another, in order.
///
/// # Errors
/// The database's.
pub async fn log(connection: &mut Connection, version: i64, mut show: impl FnMut(Logged)) -> Result<(), StoreError> {
    let query = "SELECT first_sequence, rows, payload, erased FROM update_log WHERE version_id = ? ORDER BY first_sequence";
    let mut rows = sqlx::query(query).bind(version).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let first: i64 = row.try_get(0)?;
        let rows: i64 = row.try_get(1)?;
        let record = LogRecord::of(version, first, rows, row.try_get(2)?, row.try_get(3)?);
        show(Logged { first: first.unsigned_abs(), rows: rows.unsigned_abs(), record });
    }
    Ok(())
}

/// How many rows a version's log says were erased, and how many are noted as such and still in the log.
///
/// # Errors
/// The database's.
pub async fn erasures(connection: &mut Connection, version: i64) -> Result<Vec<u64>, StoreError> {
    let rows: Vec<(i64,)> =
        sqlx::query_as("SELECT sequence FROM erasures WHERE version_id = ? ORDER BY sequence").bind(version).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(sequence,)| sequence.unsigned_abs()).collect())
}

/// A kept row that is damaged, and where to find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The answer to an event of a version.
    Event(i64, String),
    /// A remembered prediction.
    Prediction(Vec<u8>),
    /// A reply behind an `Idempotency-Key`.
    Reply(String),
}

/// Answers that are kept and damaged, and how many were looked at.
///
/// # Errors
/// The database's.
pub async fn kept(connection: &mut Connection) -> Result<(u64, Vec<Kept>), StoreError> {
    let (mut looked, mut damaged) = (0, Vec::new());
    let whole = |bytes: &[u8]| bytes.len().is_multiple_of(8);
    let mut rows = sqlx::query("SELECT version_id, event, answer FROM events").fetch(&mut *connection);
    while let Some(row) = rows.try_next().await? {
        looked += 1;
        if !whole(row.try_get(2)?) {
            damaged.push(Kept::Event(row.try_get(0)?, row.try_get(1)?));
        }
    }
    drop(rows);
    let mut rows = sqlx::query("SELECT id, cells, label, answer, predictions, version_id FROM remembered").fetch(&mut *connection);
    while let Some(row) = rows.try_next().await? {
        looked += 1;
        let (cells, label, answer): (&[u8], Option<&[u8]>, Option<&[u8]>) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let predictions: Option<&[u8]> = row.try_get(4)?;
        let erased = cells.is_empty() && answer.is_some_and(<[u8]>::is_empty);
        let version: i64 = row.try_get(5)?;
        let sealed = |bytes: &[u8]| unseal(bytes, &[version], "a remembered prediction").is_ok_and(whole);
        let good = (erased || sealed(cells)) && predictions.is_none_or(sealed) && label.is_none_or(whole) && answer.is_none_or(whole);
        if !good {
            damaged.push(Kept::Prediction(row.try_get(0)?));
        }
    }
    drop(rows);
    let mut rows = sqlx::query("SELECT key, reply FROM idempotency").fetch(&mut *connection);
    while let Some(row) = rows.try_next().await? {
        looked += 1;
        if serde_json::from_str::<serde::de::IgnoredAny>(row.try_get(1)?).is_err() {
            damaged.push(Kept::Reply(row.try_get(0)?));
        }
    }
    Ok((looked, damaged))
}

/// Drops a kept row; an event stays known, as one whose answer was erased.
///
/// # Errors
/// The database's.
pub async fn drop_kept(writer: &mut Connection, kept: &Kept) -> Result<(), StoreError> {
    match kept {
        Kept::Event(version, event) => {
            sqlx::query("UPDATE events SET answer = x'' WHERE version_id = ? AND event = ?").bind(version).bind(event).execute(writer)
        }
        Kept::Prediction(id) => sqlx::query("DELETE FROM remembered WHERE id = ?").bind(id.as_slice()).execute(writer),
        Kept::Reply(key) => sqlx::query("DELETE FROM idempotency WHERE key = ?").bind(key).execute(writer),
    }
    .await?;
    Ok(())
}

/// A chunk as it stands.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// Identity.
    pub id: i64,
    /// The place of its segment in the dataset.
    pub segment: i64,
    /// Its own place in the segment.
    pub position: i64,
    /// Where it says it begins in the segment.
    pub first_row: i64,
    /// Rows it says it has.
    pub rows: i64,
    /// Rows that its segment says it has.
    pub segment_rows: i64,
    /// Columns it has.
    pub columns: i64,
}

/// The chunks of a dataset in order.
///
/// # Errors
/// The database's.
pub async fn chunks(connection: &mut Connection, dataset: i64) -> Result<Vec<Chunk>, StoreError> {
    let rows = sqlx::query(
        "SELECT chunks.id, segments.position, chunks.position, chunks.first_row, chunks.rows, segments.rows,
         (SELECT count(*) FROM column_chunks WHERE chunk_id = chunks.id)
         FROM segments JOIN chunks ON chunks.segment_id = segments.id
         WHERE segments.dataset_id = ? ORDER BY segments.position, chunks.position",
    )
    .bind(dataset)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Chunk {
                id: row.try_get(0)?,
                segment: row.try_get(1)?,
                position: row.try_get(2)?,
                first_row: row.try_get(3)?,
                rows: row.try_get(4)?,
                segment_rows: row.try_get(5)?,
                columns: row.try_get(6)?,
            })
        })
        .collect()
}

/// All datasets.
///
/// # Errors
/// The database's.
pub async fn all_datasets(connection: &mut Connection) -> Result<Vec<datasets::DatasetRow>, StoreError> {
    datasets::list(connection, "", u32::MAX).await
}

/// Puts what a dataset says of itself right.
///
/// # Errors
/// The database's.
pub async fn set_dataset(writer: &mut Connection, id: i64, rows: u64, bytes: u64, summary: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE datasets SET rows = ?, bytes = ?, summary = ? WHERE id = ?")
        .bind(rows.cast_signed())
        .bind(bytes.cast_signed())
        .bind(summary)
        .bind(id)
        .execute(writer)
        .await?;
    Ok(())
}

/// Drops a snapshot.
///
/// # Errors
/// The database's.
pub async fn drop_snapshot(writer: &mut Connection, version: i64, sequence: u64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM snapshots WHERE version_id = ? AND sequence = ?")
        .bind(version)
        .bind(sequence.cast_signed())
        .execute(writer)
        .await?;
    Ok(())
}

/// The path of the file that a connection has open.
///
/// # Errors
/// The database's.
pub async fn length(connection: &mut Connection) -> Result<u64, StoreError> {
    let (bytes,): (i64,) =
        sqlx::query_as("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetch_one(connection).await?;
    Ok(bytes.unsigned_abs())
}
