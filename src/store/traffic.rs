//! Splits of traffic between versions. What stands in their texts is the service's.

use sqlx::Row as _;

use super::{Connection, StoreError, now};

/// The split of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficRow {
    /// The model.
    pub model: i64,
    /// Which experiment it is; no other has this number.
    pub experiment: u64,
    /// Counts the changes of the plan.
    pub revision: u64,
    /// Members and shares, JSON.
    pub plan: String,
    /// Requests and rows of each member, JSON.
    pub counts: String,
    /// When it began.
    pub since: String,
}

fn read(row: &sqlx::sqlite::SqliteRow) -> Result<TrafficRow, StoreError> {
    Ok(TrafficRow {
        model: row.try_get(0)?,
        experiment: row.try_get::<i64, _>(1)?.unsigned_abs(),
        revision: row.try_get::<i64, _>(2)?.unsigned_abs(),
        plan: row.try_get(3)?,
        counts: row.try_get(4)?,
        since: row.try_get(5)?,
    })
}

/// The splits of all models.
pub async fn all(connection: &mut Connection) -> Result<Vec<TrafficRow>, StoreError> {
    let rows = sqlx::query("SELECT model_id, experiment, revision, plan, counts, since FROM traffic ORDER BY model_id")
        .fetch_all(connection)
        .await?;
    rows.iter().map(read).collect()
}

/// The split of a model, if there is one.
pub async fn find(connection: &mut Connection, model: i64) -> Result<Option<TrafficRow>, StoreError> {
    let row = sqlx::query("SELECT model_id, experiment, revision, plan, counts, since FROM traffic WHERE model_id = ?")
        .bind(model)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// Begins a split, or changes its plan; what was counted stays.
pub async fn put(writer: &mut Connection, model: i64, plan: &str) -> Result<TrafficRow, StoreError> {
    let row = sqlx::query(
        "INSERT INTO traffic (model_id, experiment, revision, plan, scores, counts, since)
         VALUES (?1, max(?2, (SELECT coalesce(max(experiment), 0) + 1 FROM traffic)), 1, ?3, '', '', ?4)
         ON CONFLICT (model_id) DO UPDATE SET revision = revision + 1, plan = excluded.plan 
         RETURNING model_id, experiment, revision, plan, counts, since",
    )
    .bind(model)
    .bind(jiff::Timestamp::now().as_microsecond())
    .bind(plan)
    .bind(now())
    .fetch_one(writer)
    .await?;
    read(&row)
}

/// Ends the split of a model.
pub async fn remove(writer: &mut Connection, model: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM traffic WHERE model_id = ?").bind(model).execute(writer).await?;
    Ok(())
}

/// What the labels say in an experiment, if it goes on.
pub async fn scores(connection: &mut Connection, experiment: u64) -> Result<Option<String>, StoreError> {
    let row: Option<(String,)> =
        sqlx::query_as("SELECT scores FROM traffic WHERE experiment = ?").bind(experiment.cast_signed()).fetch_optional(connection).await?;
    Ok(row.map(|(scores,)| scores))
}

/// Writes what the labels say.
pub async fn set_scores(writer: &mut Connection, experiment: u64, scores: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE traffic SET scores = ? WHERE experiment = ?").bind(scores).bind(experiment.cast_signed()).execute(writer).await?;
    Ok(())
}

/// Writes what was counted.
pub async fn set_counts(writer: &mut Connection, experiment: u64, counts: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE traffic SET counts = ? WHERE experiment = ?").bind(counts).bind(experiment.cast_signed()).execute(writer).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::store::{Store, models};

    #[tokio::test]
    async fn a_split_changes_in_place_and_ends_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let (_store, mut writer) = Store::open(&folder.path().join("lsqd.db"), 1).await.unwrap();
        let one = models::add_version(&mut writer, "one", "{}", vec![1]).await.unwrap().model.id;
        let other = models::add_version(&mut writer, "other", "{}", vec![1]).await.unwrap().model.id;
        let first = put(&mut writer, one, "a").await.unwrap();
        set_scores(&mut writer, first.experiment, "[1]").await.unwrap();
        set_counts(&mut writer, first.experiment, "[2]").await.unwrap();
        let second = put(&mut writer, one, "b").await.unwrap();
        assert_eq!((second.experiment, second.revision, second.plan.as_str(), second.counts.as_str()), (first.experiment, 2, "b", "[2]"));
        assert_eq!(scores(&mut writer, first.experiment).await.unwrap().as_deref(), Some("[1]"));
        assert_ne!(put(&mut writer, other, "c").await.unwrap().experiment, first.experiment);
        assert_eq!(all(&mut writer).await.unwrap().len(), 2);
        remove(&mut writer, one).await.unwrap();
        assert_eq!((find(&mut writer, one).await.unwrap(), scores(&mut writer, first.experiment).await.unwrap()), (None, None));
        let again = put(&mut writer, one, "a").await.unwrap();
        assert!(again.experiment > first.experiment && again.revision == 1 && again.counts.is_empty());
        models::delete(&mut writer, other).await.unwrap();
        assert_eq!(all(&mut writer).await.unwrap(), [again]);
    }
}
