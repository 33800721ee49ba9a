//! The update log, its snapshots and the ids of events already learnt from.

use sqlx::Row as _;

use super::{Connection, StoreError, now, seal, unseal};

/// One record of the log: rows of one version that were committed together.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRecord {
    /// Sequence of its first row; the first row ever is 1.
    pub first_sequence: u64,
    /// Rows × width cells, row by row.
    pub values: Vec<f64>,
}

/// Appends a record. The primary key refuses a sequence that was already given out.
pub async fn append(writer: &mut Connection, version: i64, first_sequence: u64, rows: u64, values: &[f64]) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO update_log (version_id, first_sequence, rows, payload, created_at) VALUES (?, ?, ?, ?, ?)")
        .bind(version)
        .bind(first_sequence.cast_signed())
        .bind(rows.cast_signed())
        .bind(seal(floats_to_bytes(values)))
        .bind(now())
        .execute(writer)
        .await?;
    Ok(())
}

/// Records after `sequence`, in order, at most `limit`.
pub async fn after(connection: &mut Connection, version: i64, sequence: u64, limit: u32) -> Result<Vec<LogRecord>, StoreError> {
    let rows = sqlx::query(
        "SELECT first_sequence, payload FROM update_log WHERE version_id = ? AND first_sequence > ? ORDER BY first_sequence LIMIT ?",
    )
    .bind(version)
    .bind(sequence.cast_signed())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let payload: &[u8] = row.try_get(1)?;
            Ok(LogRecord {
                first_sequence: row.try_get::<i64, _>(0)?.unsigned_abs(),
                values: floats_from_bytes(unseal(payload, "a record of the update log")?, "a record of the update log")?,
            })
        })
        .collect()
}

/// The newest snapshot of a version: sequence and state.
pub async fn snapshot(connection: &mut Connection, version: i64) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
    let row: Option<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT sequence, state FROM snapshots WHERE version_id = ?").bind(version).fetch_optional(connection).await?;
    row.map(|(sequence, state)| Ok((sequence.unsigned_abs(), unseal(&state, "a snapshot")?.to_vec()))).transpose()
}

/// Replaces the snapshot of a version.
pub async fn set_snapshot(writer: &mut Connection, version: i64, sequence: u64, state: Vec<u8>) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO snapshots (version_id, sequence, state) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET sequence = excluded.sequence, state = excluded.state")
        .bind(version)
        .bind(sequence.cast_signed())
        .bind(seal(state))
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
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(super) fn floats_from_bytes(bytes: &[u8], what: &'static str) -> Result<Vec<f64>, StoreError> {
    let (words, rest) = bytes.as_chunks::<8>();
    if rest.is_empty() { Ok(words.iter().map(|word| f64::from_le_bytes(*word)).collect()) } else { Err(StoreError::Corrupt(what)) }
}
