//! Datasets, their segments and chunks.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;

use super::{Connection, StoreError, now};

/// A dataset as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatasetRow {
    /// Identity; a replaced dataset gets a new revision, not a new identity.
    pub id: i64,
    /// The name in its address.
    pub name: String,
    /// Grows with each change.
    pub revision: i64,
    /// Rows in all segments.
    pub rows: u64,
    /// Bytes of all encoded chunks.
    pub bytes: u64,
    /// When it was first created.
    pub created_at: String,
    /// Schema and column summaries, JSON.
    pub summary: String,
    /// What made it, JSON; none where it was uploaded.
    #[serde(default)]
    pub origin: Option<String>,
    /// Rows that were ever erased from it.
    #[serde(default)]
    pub erased: u64,
}

/// What [`dataset`] reads.
macro_rules! select_datasets {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, revision, rows, bytes, created_at, summary, origin,
             (SELECT coalesce(sum(rows), 0) FROM dataset_erasures WHERE dataset_id = datasets.id) AS erased FROM datasets ",
            $rest
        )
    };
}

/// A chunk to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRow {
    /// Identity of the chunk.
    pub id: i64,
    /// The segment it belongs to.
    pub segment: i64,
    /// The dataset's revision with which its segment came.
    pub revision: i64,
    /// Rows in it.
    pub rows: u64,
    /// Index of its first row in the dataset.
    pub first_row: u64,
}

fn dataset(row: &sqlx::sqlite::SqliteRow) -> Result<DatasetRow, sqlx::Error> {
    Ok(DatasetRow {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        revision: row.try_get("revision")?,
        rows: row.try_get::<i64, _>("rows")?.unsigned_abs(),
        bytes: row.try_get::<i64, _>("bytes")?.unsigned_abs(),
        created_at: row.try_get("created_at")?,
        summary: row.try_get("summary")?,
        origin: row.try_get("origin")?,
        erased: row.try_get::<i64, _>("erased")?.unsigned_abs(),
    })
}

/// The dataset of that name.
pub async fn find(connection: &mut Connection, name: &str) -> Result<Option<DatasetRow>, StoreError> {
    let row = sqlx::query(select_datasets!("WHERE name = ?")).bind(name).fetch_optional(connection).await?;
    Ok(row.as_ref().map(dataset).transpose()?)
}

/// Datasets by name, after `after`, at most `limit`.
pub async fn list(connection: &mut Connection, after: &str, limit: u32) -> Result<Vec<DatasetRow>, StoreError> {
    let rows = sqlx::query(select_datasets!("WHERE name > ? ORDER BY name LIMIT ?")).bind(after).bind(limit).fetch_all(connection).await?;
    Ok(rows.iter().map(dataset).collect::<Result<_, _>>()?)
}

/// How many datasets there are.
pub async fn count(connection: &mut Connection) -> Result<u64, StoreError> {
    let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM datasets").fetch_one(connection).await?;
    Ok(count.unsigned_abs())
}

/// Begins a segment that belongs to nobody yet.
pub async fn create_segment(writer: &mut Connection) -> Result<i64, StoreError> {
    Ok(sqlx::query("INSERT INTO segments (dataset_id, position, rows) VALUES (NULL, 0, 0)").execute(writer).await?.last_insert_rowid())
}

/// Adds a chunk to a segment: one encoded payload a column.
pub async fn add_chunk(
    writer: &mut Connection,
    segment: i64,
    position: u32,
    first_row: u64,
    rows: u64,
    payloads: Vec<Vec<u8>>,
) -> Result<(), StoreError> {
    let chunk = sqlx::query("INSERT INTO chunks (segment_id, position, first_row, rows) VALUES (?, ?, ?, ?)")
        .bind(segment)
        .bind(position)
        .bind(first_row.cast_signed())
        .bind(rows.cast_signed())
        .execute(&mut *writer)
        .await?
        .last_insert_rowid();
    for (column, payload) in (0_i64..).zip(payloads) {
        sqlx::query("INSERT INTO column_chunks (chunk_id, position, payload) VALUES (?, ?, ?)")
            .bind(chunk)
            .bind(column)
            .bind(payload)
            .execute(&mut *writer)
            .await?;
    }
    Ok(())
}

/// What a finished upload puts in place.
#[derive(Clone, Debug)]
pub struct Landing<'a> {
    /// The segment that was filled.
    pub segment: i64,
    /// Rows in that segment.
    pub rows: u64,
    /// Encoded bytes of that segment.
    pub bytes: u64,
    /// Schema and summaries of the whole dataset after the change, JSON.
    pub summary: &'a str,
    /// What made it, JSON; none where somebody uploads it.
    pub origin: Option<&'a str>,
}

/// Creates the dataset, or replaces all of it, with one filled segment. Returns whether it is new.
pub async fn replace(writer: &mut Connection, name: &str, landing: &Landing<'_>) -> Result<bool, StoreError> {
    let moment = now();
    let existing = find(writer, name).await?;
    let id = if let Some(existing) = &existing {
        sqlx::query("UPDATE segments SET dataset_id = NULL WHERE dataset_id = ?").bind(existing.id).execute(&mut *writer).await?;
        sqlx::query(
            "UPDATE datasets SET revision = revision + 1, rows = ?, bytes = ?, summary = ?, origin = ?, updated_at = ? WHERE id = ?",
        )
        .bind(landing.rows.cast_signed())
        .bind(landing.bytes.cast_signed())
        .bind(landing.summary)
        .bind(landing.origin)
        .bind(&moment)
        .bind(existing.id)
        .execute(&mut *writer)
        .await?;
        existing.id
    } else {
        // By the number of its first segment, which is never given out again: who knows the ETag of a dataset that was deleted does not take
        // another one for it.
        sqlx::query(
            "INSERT INTO datasets (id, name, revision, rows, bytes, created_at, updated_at, summary, origin) VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?)",
        )
        .bind(landing.segment)
        .bind(name)
        .bind(landing.rows.cast_signed())
        .bind(landing.bytes.cast_signed())
        .bind(&moment)
        .bind(&moment)
        .bind(landing.summary)
        .bind(landing.origin)
        .execute(&mut *writer)
        .await?
        .last_insert_rowid()
    };
    adopt(writer, id, landing).await?;
    Ok(existing.is_none())
}

/// Appends a filled segment to a dataset.
pub async fn append(writer: &mut Connection, id: i64, landing: &Landing<'_>) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE datasets SET revision = revision + 1, rows = rows + ?, bytes = bytes + ?, summary = ?, origin = ?, updated_at = ? WHERE id = ?",
    )
    .bind(landing.rows.cast_signed())
    .bind(landing.bytes.cast_signed())
    .bind(landing.summary)
    .bind(landing.origin)
    .bind(now())
    .bind(id)
    .execute(&mut *writer)
    .await?;
    adopt(writer, id, landing).await
}

async fn adopt(writer: &mut Connection, dataset: i64, landing: &Landing<'_>) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE segments SET dataset_id = ?1, rows = ?2, revision = (SELECT revision FROM datasets WHERE id = ?1),
         position = (SELECT coalesce(max(position), -1) + 1 FROM segments WHERE dataset_id = ?1) WHERE id = ?3",
    )
    .bind(dataset)
    .bind(landing.rows.cast_signed())
    .bind(landing.segment)
    .execute(writer)
    .await?;
    Ok(())
}

/// Deletes a dataset; its segments are left to [`sweep`].
pub async fn delete(writer: &mut Connection, id: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM datasets WHERE id = ?").bind(id).execute(writer).await?;
    Ok(())
}

/// The chunks of a dataset in order.
pub async fn chunks(connection: &mut Connection, dataset: i64) -> Result<Vec<ChunkRow>, StoreError> {
    let rows = sqlx::query(
        "SELECT chunks.id, chunks.segment_id, chunks.rows, segments.revision FROM segments JOIN chunks ON chunks.segment_id = segments.id
         WHERE segments.dataset_id = ? ORDER BY segments.position, chunks.position",
    )
    .bind(dataset)
    .fetch_all(connection)
    .await?;
    let mut first_row = 0;
    rows.iter()
        .map(|row| {
            let rows = row.try_get::<i64, _>(2)?.unsigned_abs();
            let chunk = ChunkRow { id: row.try_get(0)?, segment: row.try_get(1)?, revision: row.try_get(3)?, rows, first_row };
            first_row += rows;
            Ok(chunk)
        })
        .collect()
}

/// Puts other rows in the place of a chunk's: those that are left when some are erased. The chunk gets another identity, so that who reads it
/// column by column meanwhile gets all of the old one or nothing.
pub async fn replace_chunk(writer: &mut Connection, chunk: i64, rows: u64, payloads: Vec<Vec<u8>>) -> Result<(), StoreError> {
    let found = sqlx::query("SELECT segment_id, position, first_row, rows FROM chunks WHERE id = ?").bind(chunk).fetch_one(&mut *writer);
    let found = found.await?;
    let (segment, position, first_row, before): (i64, u32, i64, i64) =
        (found.try_get(0)?, found.try_get(1)?, found.try_get(2)?, found.try_get(3)?);
    sqlx::query("DELETE FROM column_chunks WHERE chunk_id = ?").bind(chunk).execute(&mut *writer).await?;
    sqlx::query("DELETE FROM chunks WHERE id = ?").bind(chunk).execute(&mut *writer).await?;
    let fewer = before - rows.cast_signed();
    sqlx::query("UPDATE segments SET rows = rows - ? WHERE id = ?").bind(fewer).bind(segment).execute(&mut *writer).await?;
    sqlx::query("UPDATE chunks SET first_row = first_row - ? WHERE segment_id = ? AND position > ?")
        .bind(fewer)
        .bind(segment)
        .bind(position)
        .execute(&mut *writer)
        .await?;
    if rows > 0 {
        add_chunk(writer, segment, position, first_row.unsigned_abs(), rows, payloads).await?;
    }
    Ok(())
}

/// Notes that rows of a dataset were erased, and what it is like now.
pub async fn erase(writer: &mut Connection, id: i64, erased: u64, bytes: u64, summary: &str) -> Result<(), StoreError> {
    let moment = now();
    sqlx::query("UPDATE datasets SET revision = revision + 1, rows = rows - ?, bytes = ?, summary = ?, updated_at = ? WHERE id = ?")
        .bind(erased.cast_signed())
        .bind(bytes.cast_signed())
        .bind(summary)
        .bind(&moment)
        .bind(id)
        .execute(&mut *writer)
        .await?;
    sqlx::query(
        "INSERT INTO dataset_erasures (dataset_id, revision, rows, created_at) SELECT id, revision, ?, ? FROM datasets WHERE id = ?",
    )
    .bind(erased.cast_signed())
    .bind(&moment)
    .bind(id)
    .execute(writer)
    .await?;
    Ok(())
}

/// Whether rows of a dataset were erased after a revision, also if it was deleted since.
pub async fn erased_since(connection: &mut Connection, id: i64, revision: i64) -> Result<bool, StoreError> {
    let found = sqlx::query("SELECT 1 FROM dataset_erasures WHERE dataset_id = ? AND revision > ?")
        .bind(id)
        .bind(revision)
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

/// The payloads of some columns of a chunk, in the order asked for; nothing if the chunk is gone, because rows of it were erased.
pub async fn payloads(connection: &mut Connection, chunk: i64, columns: &[usize]) -> Result<Option<Vec<Bytes>>, StoreError> {
    // One statement for all of them: each is a walk from this thread to the connection's and back.
    let positions = serde_json::to_string(columns).map_err(|_| StoreError::Corrupt("positions of columns that cannot be written"))?;
    let mut rows =
        sqlx::query_as("SELECT position, payload FROM column_chunks WHERE chunk_id = ? AND position IN (SELECT value FROM json_each(?))")
            .bind(chunk)
            .bind(positions)
            .fetch(&mut *connection);
    let mut found = HashMap::with_capacity(columns.len());
    while let Some((position, payload)) = rows.try_next().await? {
        let (position, payload): (i64, Vec<u8>) = (position, payload);
        found.insert(position, Bytes::from(payload));
    }
    drop(rows);
    let payloads: Option<Vec<Bytes>> =
        columns.iter().map(|&column| found.get(&i64::try_from(column).unwrap_or(i64::MAX)).cloned()).collect();
    if payloads.is_none() {
        let there = sqlx::query("SELECT 1 FROM chunks WHERE id = ?").bind(chunk).fetch_optional(connection).await?.is_some();
        return if there { Err(StoreError::Corrupt("a column chunk is missing")) } else { Ok(None) };
    }
    Ok(payloads)
}

/// Frees a bounded part of the segments that belong to nobody, except those in `pinned` (an upload under way, or a fit still reading).
/// Returns whether anything is left to do.
pub async fn sweep(writer: &mut Connection, pinned: &[i64], chunks: u32) -> Result<bool, StoreError> {
    let orphans: Vec<(i64,)> =
        sqlx::query_as("SELECT id FROM segments WHERE dataset_id IS NULL ORDER BY id").fetch_all(&mut *writer).await?;
    let Some(&(segment,)) = orphans.iter().find(|(id,)| !pinned.contains(id)) else { return Ok(false) };
    let doomed: Vec<(i64,)> =
        sqlx::query_as("SELECT id FROM chunks WHERE segment_id = ? LIMIT ?").bind(segment).bind(chunks).fetch_all(&mut *writer).await?;
    for (chunk,) in &doomed {
        sqlx::query("DELETE FROM column_chunks WHERE chunk_id = ?").bind(chunk).execute(&mut *writer).await?;
        sqlx::query("DELETE FROM chunks WHERE id = ?").bind(chunk).execute(&mut *writer).await?;
    }
    if doomed.is_empty() {
        sqlx::query("DELETE FROM segments WHERE id = ?").bind(segment).execute(&mut *writer).await?;
    }
    Ok(true)
}
