//! Jobs: what was asked, what became of it.

use sqlx::Row as _;

use super::{Connection, StoreError, now};

/// A job as stored; progress lives in memory only.
#[derive(Clone, Debug)]
pub struct JobRow {
    /// Its id.
    pub id: String,
    /// What it does: `fit` or `predictions`.
    pub kind: String,
    /// The model it fits, or that predicts.
    pub model: String,
    /// `queued`, `running`, `succeeded`, `failed`, `cancelled` or `interrupted`.
    pub state: String,
    /// The version it made, or that predicted.
    pub version: Option<u64>,
    /// The dataset it makes.
    pub dataset: Option<String>,
    /// What went wrong, JSON.
    pub problem: Option<String>,
}

/// Stores a queued job.
pub async fn create(writer: &mut Connection, id: &str, kind: &str, model: &str, dataset: Option<&str>) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO jobs (id, kind, model, dataset, state, created_at) VALUES (?, ?, ?, ?, 'queued', ?)")
        .bind(id)
        .bind(kind)
        .bind(model)
        .bind(dataset)
        .bind(now())
        .execute(writer)
        .await?;
    Ok(())
}

/// Ends a job.
pub async fn finish(writer: &mut Connection, id: &str, state: &str, version: Option<u64>, problem: Option<&str>) -> Result<(), StoreError> {
    sqlx::query("UPDATE jobs SET state = ?, version = ?, problem = ?, finished_at = ? WHERE id = ?")
        .bind(state)
        .bind(version.map(u64::cast_signed))
        .bind(problem)
        .bind(now())
        .bind(id)
        .execute(writer)
        .await?;
    Ok(())
}

/// The job of that id.
pub async fn find(connection: &mut Connection, id: &str) -> Result<Option<JobRow>, StoreError> {
    let row = sqlx::query("SELECT id, model, state, version, problem, kind, dataset FROM jobs WHERE id = ?")
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.map(|row| {
        Ok(JobRow {
            id: row.try_get(0)?,
            model: row.try_get(1)?,
            state: row.try_get(2)?,
            version: row.try_get::<Option<i64>, _>(3)?.map(i64::unsigned_abs),
            problem: row.try_get(4)?,
            kind: row.try_get(5)?,
            dataset: row.try_get(6)?,
        })
    })
    .transpose()
}

/// At start: whatever was under way when the process ended did not finish.
pub async fn interrupt_all(writer: &mut Connection) -> Result<u64, StoreError> {
    let done = sqlx::query("UPDATE jobs SET state = 'interrupted', finished_at = ? WHERE state IN ('queued', 'running')")
        .bind(now())
        .execute(writer)
        .await?;
    Ok(done.rows_affected())
}

/// Forgets jobs that ended before that moment.
pub async fn forget(writer: &mut Connection, before: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM jobs WHERE finished_at < ?").bind(before).execute(writer).await?;
    Ok(())
}
