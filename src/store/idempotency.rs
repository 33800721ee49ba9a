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

/// Remembers a reply, in the transaction of its effect.
pub async fn remember(writer: &mut Connection, key: &str, fingerprint: &[u8], reply: &str) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO idempotency (key, fingerprint, reply, created_at) VALUES (?, ?, ?, ?)")
        .bind(key)
        .bind(fingerprint)
        .bind(reply)
        .bind(now())
        .execute(writer)
        .await?;
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
