//! Predictions that wait for their labels.

use super::updates::{floats_from_bytes, floats_to_bytes};
use super::{Connection, StoreError, seal, unseal};

/// A remembered prediction.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    /// The version that predicted.
    pub version: i64,
    /// One cell a feature.
    pub cells: Vec<f64>,
    /// In a split: who predicted the row, and what; nothing once the row was erased.
    pub judged: Option<(String, Vec<f64>)>,
    /// What was learnt of it, once it was.
    pub learnt: Option<Learnt>,
}

/// What was learnt of a remembered prediction.
#[derive(Clone, Debug, PartialEq)]
pub struct Learnt {
    /// The sequence with which it was learnt; not known of those from before that was written down, and none where the version does not learn.
    pub sequence: Option<u64>,
    /// Targets, then weight; empty when the row was erased, as the cells are then.
    pub label: Vec<f64>,
    /// Predictions, then errors; empty when the row was erased.
    pub answer: Vec<f64>,
}

/// Random bytes from SQLite's generator, which the system seeds.
pub async fn random(connection: &mut Connection, count: usize) -> Result<Vec<u8>, StoreError> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let (bytes,): (Vec<u8>,) = sqlx::query_as("SELECT randomblob(?)").bind(count).fetch_one(connection).await?;
    Ok(bytes)
}

/// Remembers rows of one version: `ids` are 16 bytes a row, `cells` as many a row as there are. In a split, `judged` is who predicted the rows,
/// and what they predicted, row by row.
pub async fn add(
    writer: &mut Connection,
    version: i64,
    ids: &[[u8; 16]],
    cells: &[f64],
    judged: Option<(&str, &[f64])>,
    (created_at, expires_at): (&str, &str),
) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    // All of a width, so that the statement can cut them apart again.
    let rows = |values: &[f64]| -> Vec<u8> {
        let width = values.len() / ids.len();
        (0..ids.len()).flat_map(|row| seal(floats_to_bytes(&values[row * width..(row + 1) * width]), &[version])).collect()
    };
    let sealed = rows(cells);
    let predictions = judged.map(|(_, predictions)| rows(predictions));
    // One statement for all rows: thousands of them would keep everybody waiting for the writer.
    sqlx::query(
        "WITH RECURSIVE rows (place) AS (SELECT 0 UNION ALL SELECT place + 1 FROM rows WHERE place + 1 < ?1)
         INSERT INTO remembered (id, version_id, cells, created_at, expires_at, members, predictions)
         SELECT substr(?2, place * 16 + 1, 16), ?3, substr(?4, place * ?5 + 1, ?5), ?6, ?7, ?8, substr(?9, place * ?10 + 1, ?10) FROM rows",
    )
    .bind(ids.len() as i64)
    .bind(ids.concat())
    .bind(version)
    .bind(sealed.as_slice())
    .bind((sealed.len() / ids.len()) as i64)
    .bind(created_at)
    .bind(expires_at)
    .bind(judged.map(|(members, _)| members))
    .bind(predictions.as_deref())
    .bind(predictions.as_ref().map(|predictions| (predictions.len() / ids.len()) as i64))
    .execute(writer)
    .await?;
    Ok(())
}

/// The prediction of that id, unless it has expired at `now`.
pub async fn find(connection: &mut Connection, id: &[u8; 16], now: &str) -> Result<Option<Remembered>, StoreError> {
    type Row = (i64, Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>, Option<i64>, Option<String>, Option<Vec<u8>>);
    let row: Option<Row> = sqlx::query_as(
        "SELECT version_id, cells, label, answer, sequence, members, predictions FROM remembered WHERE id = ? AND expires_at > ?",
    )
    .bind(id.as_slice())
    .bind(now)
    .fetch_optional(connection)
    .await?;
    let Some((version, cells, label, answer, sequence, members, predictions)) = row else { return Ok(None) };
    let what = "a remembered prediction";
    let floats = |bytes: Vec<u8>| floats_from_bytes(&bytes, what);
    let learnt = label.zip(answer).map(|(label, answer)| {
        Ok::<_, StoreError>(Learnt { sequence: sequence.map(i64::unsigned_abs), label: floats(label)?, answer: floats(answer)? })
    });
    let learnt = learnt.transpose()?;
    let opened = |bytes: &[u8]| floats_from_bytes(unseal(bytes, &[version], what)?, what);
    let judged =
        members.zip(predictions).map(|(members, predictions)| Ok::<_, StoreError>((members, opened(&predictions)?))).transpose()?;
    let erased = learnt.as_ref().is_some_and(|learnt| learnt.answer.is_empty());
    let cells = if erased { Vec::new() } else { opened(&cells)? };
    Ok(Some(Remembered { version, cells, judged, learnt }))
}

/// Notes the label, with which sequence it was learnt if it was, and what was answered.
pub async fn set_label(
    writer: &mut Connection,
    id: &[u8; 16],
    sequence: Option<u64>,
    label: &[f64],
    answer: &[f64],
) -> Result<(), StoreError> {
    sqlx::query("UPDATE remembered SET sequence = ?, label = ?, answer = ? WHERE id = ?")
        .bind(sequence.map(u64::cast_signed))
        .bind(floats_to_bytes(label))
        .bind(floats_to_bytes(answer))
        .bind(id.as_slice())
        .execute(writer)
        .await?;
    Ok(())
}

/// Erases cells, label, answer and what the members of a split predicted of the prediction that was learnt with this sequence, if one was.
pub async fn erase(writer: &mut Connection, version: i64, sequence: u64) -> Result<(), StoreError> {
    sqlx::query("UPDATE remembered SET cells = x'', label = x'', answer = x'', members = NULL, predictions = NULL WHERE version_id = ? AND sequence = ?")
        .bind(version)
        .bind(sequence.cast_signed())
        .execute(writer)
        .await?;
    Ok(())
}

/// Forgets at most `limit` predictions that have expired at `now`; whether there may be more.
pub async fn forget(writer: &mut Connection, now: &str, limit: u32) -> Result<bool, StoreError> {
    let gone = sqlx::query("DELETE FROM remembered WHERE id IN (SELECT id FROM remembered WHERE expires_at <= ? LIMIT ?)")
        .bind(now)
        .bind(limit)
        .execute(writer)
        .await?;
    Ok(gone.rows_affected() == u64::from(limit))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::store::{Store, models};

    #[tokio::test]
    async fn rows_come_back_until_they_expire_or_their_version_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (_store, mut writer) = Store::open(&folder.path().join("lsqd.db"), 1).await.unwrap();
        let version = models::add_version(&mut writer, "m", "{}", vec![1]).await.unwrap().version.id;
        let ids: Vec<[u8; 16]> = (0..3).map(|number| [number; 16]).collect();
        let cells = [1.0, 2.0, 3.0, f64::MIN_POSITIVE, -0.0, 6.5];
        add(&mut writer, version, &ids, &cells, None, ("2026-01-01", "2026-01-02")).await.unwrap();
        // A model of the intercept alone has no cells.
        add(&mut writer, version, &[[9; 16]], &[], Some(("7:0:1,2", &[0.5, f64::NAN])), ("2026-01-01", "2026-01-03")).await.unwrap();
        for (id, cells) in ids.iter().zip(cells.chunks(2)) {
            let found = find(&mut writer, id, "2026-01-01").await.unwrap().unwrap();
            assert_eq!((found.version, found.cells.as_slice(), found.learnt, found.judged), (version, cells, None, None));
        }
        set_label(&mut writer, &ids[1], Some(7), &[5.0, 1.0], &[4.0, 1.0]).await.unwrap();
        let found = find(&mut writer, &ids[1], "2026-01-01").await.unwrap().unwrap();
        assert_eq!(found.learnt, Some(Learnt { sequence: Some(7), label: vec![5.0, 1.0], answer: vec![4.0, 1.0] }));
        erase(&mut writer, version, 8).await.unwrap();
        assert_eq!(find(&mut writer, &ids[1], "2026-01-01").await.unwrap(), Some(found));
        erase(&mut writer, version, 7).await.unwrap();
        let learnt = Some(Learnt { sequence: Some(7), label: Vec::new(), answer: Vec::new() });
        let found = find(&mut writer, &ids[1], "2026-01-01").await.unwrap();
        assert_eq!(found, Some(Remembered { version, cells: Vec::new(), judged: None, learnt }));
        add(&mut writer, version, &[[8; 16]], &[4.0], Some(("7:0:1,2", &[0.5, 1.5])), ("2026-01-01", "2026-01-03")).await.unwrap();
        set_label(&mut writer, &[8; 16], Some(9), &[5.0, 1.0], &[4.0, 1.0]).await.unwrap();
        assert!(find(&mut writer, &[8; 16], "2026-01-01").await.unwrap().unwrap().judged.is_some());
        erase(&mut writer, version, 9).await.unwrap();
        let found = find(&mut writer, &[8; 16], "2026-01-01").await.unwrap().unwrap();
        assert_eq!((found.cells, found.judged), (Vec::new(), None), "what the members of a split predicted is erased too");
        assert_eq!(find(&mut writer, &ids[0], "2026-01-02").await.unwrap(), None, "expired");
        assert!(forget(&mut writer, "2026-01-02", 2).await.unwrap());
        assert!(!forget(&mut writer, "2026-01-02", 2).await.unwrap());
        let found = find(&mut writer, &[9; 16], "2026-01-02").await.unwrap().unwrap();
        let (members, predictions) = found.judged.unwrap();
        assert!(found.cells.is_empty() && members == "7:0:1,2" && predictions[0] == 0.5 && predictions[1].is_nan());
        models::delete_version(&mut writer, version).await.unwrap();
        assert_eq!(find(&mut writer, &[9; 16], "2026-01-02").await.unwrap(), None);
    }

    #[tokio::test]
    async fn random_bytes_are_not_twice_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (_store, mut writer) = Store::open(&folder.path().join("lsqd.db"), 1).await.unwrap();
        let (first, second) = (random(&mut writer, 32).await.unwrap(), random(&mut writer, 32).await.unwrap());
        assert_eq!((first.len(), first == second), (32, false));
    }
}
