//! Replies already given, by `Idempotency-Key`.

use super::{Connection, StoreError, now};

/// A remembered reply.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// SHA-256 of route and body: the same key with another request is a caller's mistake.
    pub fingerprint: Vec<u8>,
    /// The reply as the service encoded it.
    pub reply: String,
}

/// What was answered to that key.
pub async fn find(connection: &mut Connection, key: &str) -> Result<Option<Remembered>, StoreError> {
    let row: Option<(Vec<u8>, String)> =
        sqlx::query_as("SELECT fingerprint, reply FROM idempotency WHERE key = ?").bind(key).fetch_optional(connection).await?;
    Ok(row.map(|(fingerprint, reply)| Remembered { fingerprint, reply }))
}

/// What a reply tells of, so that it can be found when that is erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// Nothing that can be erased.
    Nothing,
    /// Rows that a version learnt.
    Rows {
        /// The version.
        version: i64,
        /// The first sequence among them.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// A dataset.
    Dataset(i64),
}

/// Remembers a reply, in the transaction of its effect.
pub async fn remember(writer: &mut Connection, key: &str, fingerprint: &[u8], reply: &str, about: About) -> Result<(), StoreError> {
    let (version, first, last, dataset) = match about {
        About::Nothing => (None, None, None, None),
        About::Rows { version, first, last } => (Some(version), Some(first.cast_signed()), Some(last.cast_signed()), None),
        About::Dataset(dataset) => (None, None, None, Some(dataset)),
    };
    sqlx::query(
        "INSERT INTO idempotency (key, fingerprint, reply, created_at, version_id, first_sequence, last_sequence, dataset_id)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(key)
    .bind(fingerprint)
    .bind(reply)
    .bind(now())
    .bind(version)
    .bind(first)
    .bind(last)
    .bind(dataset)
    .execute(writer)
    .await?;
    Ok(())
}

/// Keys and replies that may tell of a row of a version.
pub async fn of_row(connection: &mut Connection, version: i64, sequence: u64) -> Result<Vec<(String, String)>, StoreError> {
    let query = "SELECT key, reply FROM idempotency WHERE version_id = ?1 AND last_sequence >= ?2 AND first_sequence <= ?2";
    Ok(sqlx::query_as(query).bind(version).bind(sequence.cast_signed()).fetch_all(connection).await?)
}

/// Keys and replies that tell of a dataset.
pub async fn of_dataset(connection: &mut Connection, dataset: i64) -> Result<Vec<(String, String)>, StoreError> {
    Ok(sqlx::query_as("SELECT key, reply FROM idempotency WHERE dataset_id = ?").bind(dataset).fetch_all(connection).await?)
}

/// Puts another reply in the place of the one that is kept; it stays as old as it was.
pub async fn replace(writer: &mut Connection, key: &str, reply: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE idempotency SET reply = ? WHERE key = ?").bind(reply).bind(key).execute(writer).await?;
    Ok(())
}

/// Remembers a reply in the place of an earlier one.
pub async fn renew(writer: &mut Connection, key: &str, fingerprint: &[u8], reply: &str) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO idempotency (key, fingerprint, reply, created_at) VALUES (?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET reply = excluded.reply, created_at = excluded.created_at",
    )
    .bind(key)
    .bind(fingerprint)
    .bind(reply)
    .bind(now())
    .execute(writer)
    .await?;
    Ok(())
}

/// Forgets replies older than `before` (RFC 3339 text).
pub async fn forget(writer: &mut Connection, before: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM idempotency WHERE created_at < ?").bind(before).execute(writer).await?;
    Ok(())
}
