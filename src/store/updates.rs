//! The update log, its snapshots and the ids of events already learnt from.

use sqlx::Row as _;

use super::{Connection, StoreError, checksum, now, seal, unseal, unseal_with};

/// One record of the log: rows of one version that were committed together.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRecord {
    /// Sequence of its first row; the first row ever is 1.
    pub first_sequence: u64,
    /// Rows × width cells, row by row.
    pub values: Vec<f64>,
    /// Places of rows that were erased; their cells are zeros.
    pub erased: Vec<u32>,
}

const WHAT: &str = "a record of the update log";

impl LogRecord {
    pub(super) fn of(version: i64, first_sequence: i64, rows: i64, payload: &[u8], erased: Option<&[u8]>) -> Result<Self, StoreError> {
        let payload = unseal_with(payload, &[version, first_sequence, rows], erased.unwrap_or_default(), WHAT)?;
        let (words, rest) = erased.unwrap_or_default().as_chunks::<4>();
        if !rest.is_empty() {
            return Err(StoreError::Corrupt(WHAT));
        }
        Ok(Self {
            first_sequence: first_sequence.unsigned_abs(),
            values: floats_from_bytes(payload, WHAT)?,
            erased: words.iter().map(|word| u32::from_le_bytes(*word)).collect(),
        })
    }
}

/// Appends a record. The primary key refuses a sequence that was already given out.
pub async fn append(writer: &mut Connection, version: i64, first_sequence: u64, rows: u64, values: &[f64]) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO update_log (version_id, first_sequence, rows, payload, created_at) VALUES (?, ?, ?, ?, ?)")
        .bind(version)
        .bind(first_sequence.cast_signed())
        .bind(rows.cast_signed())
        .bind(seal(floats_to_bytes(values), &[version, first_sequence.cast_signed(), rows.cast_signed()]))
        .bind(now())
        .execute(writer)
        .await?;
    Ok(())
}

/// Records after `sequence`, in order, at most `limit`.
pub async fn after(connection: &mut Connection, version: i64, sequence: u64, limit: u32) -> Result<Vec<LogRecord>, StoreError> {
    let rows = sqlx::query(
        "SELECT first_sequence, rows, payload, erased FROM update_log
         WHERE version_id = ? AND first_sequence > ? ORDER BY first_sequence LIMIT ?",
    )
    .bind(version)
    .bind(sequence.cast_signed())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| LogRecord::of(version, row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)).collect()
}

/// The record that holds a sequence.
pub async fn holding(connection: &mut Connection, version: i64, sequence: u64) -> Result<Option<LogRecord>, StoreError> {
    let row = sqlx::query(
        "SELECT first_sequence, rows, payload, erased FROM update_log
         WHERE version_id = ?1 AND first_sequence <= ?2 AND first_sequence + rows > ?2 ORDER BY first_sequence DESC LIMIT 1",
    )
    .bind(version)
    .bind(sequence.cast_signed())
    .fetch_optional(connection)
    .await?;
    row.map(|row| LogRecord::of(version, row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)).transpose()
}

/// Puts a record in the place of the one with its first sequence, and writes down that a row of it was erased.
pub async fn erase(writer: &mut Connection, version: i64, sequence: u64, record: &LogRecord) -> Result<(), StoreError> {
    let erased: Vec<u8> = record.erased.iter().flat_map(|place| place.to_le_bytes()).collect();
    let (rows,): (i64,) = sqlx::query_as("SELECT rows FROM update_log WHERE version_id = ? AND first_sequence = ?")
        .bind(version)
        .bind(record.first_sequence.cast_signed())
        .fetch_one(&mut *writer)
        .await?;
    // Which rows are passed over is sealed with the cells.
    let mut payload = floats_to_bytes(&record.values);
    let seal = checksum(&payload, &[version, record.first_sequence.cast_signed(), rows], &erased);
    payload.extend_from_slice(&seal.to_le_bytes());
    sqlx::query("UPDATE update_log SET payload = ?, erased = ? WHERE version_id = ? AND first_sequence = ?")
        .bind(payload)
        .bind(erased)
        .bind(version)
        .bind(record.first_sequence.cast_signed())
        .execute(&mut *writer)
        .await?;
    sqlx::query("UPDATE events SET answer = x'' WHERE version_id = ? AND sequence = ?")
        .bind(version)
        .bind(sequence.cast_signed())
        .execute(&mut *writer)
        .await?;
    sqlx::query("INSERT INTO erasures (version_id, sequence, created_at) VALUES (?, ?, ?)")
        .bind(version)
        .bind(sequence.cast_signed())
        .bind(now())
        .execute(writer)
        .await?;
    Ok(())
}

/// How many rows of a version were erased.
pub async fn erasures(connection: &mut Connection, version: i64) -> Result<u64, StoreError> {
    let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM erasures WHERE version_id = ?").bind(version).fetch_one(connection).await?;
    Ok(count.unsigned_abs())
}

/// The first sequence that the log still holds, if it holds any.
pub async fn first(connection: &mut Connection, version: i64) -> Result<Option<u64>, StoreError> {
    let (first,): (Option<i64>,) =
        sqlx::query_as("SELECT min(first_sequence) FROM update_log WHERE version_id = ?").bind(version).fetch_one(connection).await?;
    Ok(first.map(i64::unsigned_abs))
}

/// Drops records of which all rows are at or before `sequence`, or older than `moment`, but none after `kept`.
pub async fn trim(writer: &mut Connection, version: i64, sequence: Option<u64>, moment: Option<&str>, kept: u64) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM update_log WHERE version_id = ?1 AND first_sequence + rows - 1 <= ?4
         AND (first_sequence + rows - 1 <= ?2 OR created_at < ?3)",
    )
    .bind(version)
    .bind(sequence.map(u64::cast_signed))
    .bind(moment)
    .bind(kept.cast_signed())
    .execute(writer)
    .await?;
    Ok(())
}

/// The newest snapshot of a version at or before a sequence: its own sequence and the state.
pub async fn snapshot(connection: &mut Connection, version: i64, sequence: u64) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
    let row: Option<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT sequence, state FROM snapshots WHERE version_id = ? AND sequence <= ? ORDER BY sequence DESC LIMIT 1")
            .bind(version)
            .bind(i64::try_from(sequence).unwrap_or(i64::MAX))
            .fetch_optional(connection)
            .await?;
    row.map(|(sequence, state)| Ok((sequence.unsigned_abs(), unseal(&state, &[version, sequence], "a snapshot")?.to_vec()))).transpose()
}

/// Adds a snapshot, and thins out older ones: of those taken every `every` rows, those stay that are a multiple of `stride` times that.
pub async fn add_snapshot(
    writer: &mut Connection,
    version: i64,
    sequence: u64,
    state: Vec<u8>,
    every: u64,
    stride: u64,
) -> Result<(), StoreError> {
    set_snapshot(writer, version, sequence, state).await?;
    sqlx::query("DELETE FROM snapshots WHERE version_id = ?1 AND sequence < ?2 AND (sequence / ?3) % ?4 <> 0")
        .bind(version)
        .bind(sequence.cast_signed())
        .bind(every.cast_signed())
        .bind(stride.cast_signed())
        .execute(writer)
        .await?;
    Ok(())
}

/// Puts a snapshot in its place.
pub async fn set_snapshot(writer: &mut Connection, version: i64, sequence: u64, state: Vec<u8>) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO snapshots (version_id, sequence, state) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET state = excluded.state")
        .bind(version)
        .bind(sequence.cast_signed())
        .bind(seal(state, &[version, sequence.cast_signed()]))
        .execute(writer)
        .await?;
    Ok(())
}

/// Removes the snapshots at or after a sequence.
pub async fn drop_snapshots(writer: &mut Connection, version: i64, sequence: u64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM snapshots WHERE version_id = ? AND sequence >= ?")
        .bind(version)
        .bind(sequence.cast_signed())
        .execute(writer)
        .await?;
    Ok(())
}

/// The answer once given to an event, if it was learnt from: its sequence, then predictions and errors.
pub async fn event(connection: &mut Connection, version: i64, event: &str) -> Result<Option<(u64, Vec<f64>)>, StoreError> {
    let row: Option<(i64, Vec<u8>)> = sqlx::query_as("SELECT sequence, answer FROM events WHERE version_id = ? AND event = ?")
        .bind(version)
        .bind(event)
        .fetch_optional(connection)
        .await?;
    row.map(|(sequence, answer)| Ok((sequence.unsigned_abs(), floats_from_bytes(&answer, "the answer to an event")?))).transpose()
}

/// Remembers an event and the answer it was given.
pub async fn add_event(writer: &mut Connection, version: i64, event: &str, sequence: u64, answer: &[f64]) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO events (version_id, event, sequence, answer) VALUES (?, ?, ?, ?)")
        .bind(version)
        .bind(event)
        .bind(sequence.cast_signed())
        .bind(floats_to_bytes(answer))
        .execute(writer)
        .await?;
    Ok(())
}

pub(super) fn floats_to_bytes(values: &[f64]) -> Vec<u8> {
    // Room for a checksum too; word by word, since an iterator of bytes does not say how many there are.
    let mut bytes = Vec::with_capacity(size_of_val(values) + size_of::<u32>());
    for value in values {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

pub(super) fn floats_from_bytes(bytes: &[u8], what: &'static str) -> Result<Vec<f64>, StoreError> {
    let (words, rest) = bytes.as_chunks::<8>();
    if rest.is_empty() { Ok(words.iter().map(|word| f64::from_le_bytes(*word)).collect()) } else { Err(StoreError::Corrupt(what)) }
}
