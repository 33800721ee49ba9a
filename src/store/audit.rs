//! The audit log: who changed what. It is only ever added to; triggers refuse all else.

use sha2::{Digest as _, Sha256};
use sqlx::Row as _;

use super::{Connection, StoreError, now};

/// What is written of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What was done, such as `alias.set`.
    pub action: &'static str,
    /// The name of a dataset or model, or the id of a key; empty for the whole database.
    pub subject: String,
    /// What stood there, JSON.
    pub before: Option<String>,
    /// What stands there, JSON.
    pub after: Option<String>,
}

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1.
    pub id: u64,
    /// When.
    pub at: String,
    /// Who.
    pub who: String,
    /// In which request; empty for what nobody asked.
    pub request: String,
    /// What was done.
    pub action: String,
    /// The name of a dataset or model, or the id of a key; empty for the whole database.
    pub subject: String,
    /// What stood there, JSON.
    pub before: Option<String>,
    /// What stands there, JSON.
    pub after: Option<String>,
    /// SHA-256 over all of that and the seal of the record before.
    pub seal: Vec<u8>,
}

impl Entry {
    /// The seal that the record has if nothing of it was changed, after one with the seal `previous`.
    fn sealed(&self, previous: &[u8]) -> Vec<u8> {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(previous);
        part(&self.id.to_le_bytes());
        for text in [&self.at, &self.who, &self.request, &self.action, &self.subject] {
            part(text.as_bytes());
        }
        for text in [&self.before, &self.after] {
            part(&[u8::from(text.is_some())]);
            part(text.as_deref().unwrap_or_default().as_bytes());
        }
        hash.finalize().to_vec()
    }
}

/// What stands before the first record.
const BEGINNING: [u8; 32] = [0; 32];

fn entry(row: &sqlx::sqlite::SqliteRow) -> Result<Entry, StoreError> {
    Ok(Entry {
        id: row.try_get::<i64, _>(0)?.unsigned_abs(),
        at: row.try_get(1)?,
        who: row.try_get(2)?,
        request: row.try_get(3)?,
        action: row.try_get(4)?,
        subject: row.try_get(5)?,
        before: row.try_get(6)?,
        after: row.try_get(7)?,
        seal: row.try_get(8)?,
    })
}

/// Adds a record, in the transaction of the change.
pub async fn add(writer: &mut Connection, who: &str, request: &str, change: &Change) -> Result<(), StoreError> {
    let last: Option<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT id, seal FROM audit ORDER BY id DESC LIMIT 1").fetch_optional(&mut *writer).await?;
    let (last, previous) = last.unwrap_or_else(|| (0, BEGINNING.to_vec()));
    let mut entry = Entry {
        id: last.unsigned_abs() + 1,
        at: now(),
        who: who.to_owned(),
        request: request.to_owned(),
        action: change.action.to_owned(),
        subject: change.subject.clone(),
        before: change.before.clone(),
        after: change.after.clone(),
        seal: Vec::new(),
    };
    entry.seal = entry.sealed(&previous);
    sqlx::query("INSERT INTO audit (id, at, who, request, action, subject, before, after, seal) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(entry.id.cast_signed())
        .bind(entry.at)
        .bind(entry.who)
        .bind(entry.request)
        .bind(entry.action)
        .bind(entry.subject)
        .bind(entry.before)
        .bind(entry.after)
        .bind(entry.seal)
        .execute(writer)
        .await?;
    Ok(())
}

/// Records after `after`, in order, at most `limit`.
pub async fn list(connection: &mut Connection, after: u64, limit: u32) -> Result<Vec<Entry>, StoreError> {
    let rows = sqlx::query("SELECT id, at, who, request, action, subject, before, after, seal FROM audit WHERE id > ? ORDER BY id LIMIT ?")
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(limit)
        .fetch_all(connection)
        .await?;
    rows.iter().map(entry).collect()
}

/// Where the log is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Records that are not there: the first and the last of them.
    Missing(u64, u64),
    /// A record that was changed, or does not follow the one before it.
    Changed(u64),
}

/// Records that are looked at at once.
const STEP: u32 = 1_000;

/// How many records there are, and every place where the log is not what was written. What was taken off its end cannot be told.
pub async fn verify(connection: &mut Connection) -> Result<(u64, Vec<Broken>), StoreError> {
    let (mut looked, mut last, mut previous, mut broken) = (0, 0, BEGINNING.to_vec(), Vec::new());
    loop {
        let entries = list(connection, last, STEP).await?;
        if entries.is_empty() {
            return Ok((looked, broken));
        }
        for entry in entries {
            looked += 1;
            if entry.id != last + 1 {
                // What the record behind a gap followed is not known; the next ones follow it.
                broken.push(Broken::Missing(last + 1, entry.id - 1));
            } else if entry.seal != entry.sealed(&previous) {
                broken.push(Broken::Changed(entry.id));
            }
            (last, previous) = (entry.id, entry.seal);
        }
    }
}

/// From now on no record can be written.
#[cfg(test)]
pub(crate) async fn refuse_records(writer: &mut Connection) -> Result<(), StoreError> {
    let trigger = "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT raise(ABORT, 'no record'); END";
    sqlx::query(trigger).execute(writer).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sqlx::{ConnectOptions as _, Connection as _};

    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn records_are_only_added_and_each_change_of_one_shows() {
        let folder = tempfile::tempdir().unwrap();
        let (_store, mut writer) = Store::open(&folder.path().join("lsqd.db"), 1).await.unwrap();
        assert_eq!(verify(&mut writer).await.unwrap(), (0, Vec::new()));
        for number in 0..5 {
            let after = (number % 2 == 0).then(|| format!("{{\"version\":{number}}}"));
            let change = Change { action: "fit", subject: format!("m{number}"), before: None, after };
            add(&mut writer, "anonymous", "r-1", &change).await.unwrap();
        }
        assert_eq!(verify(&mut writer).await.unwrap(), (5, Vec::new()));
        let page = list(&mut writer, 2, 2).await.unwrap();
        assert_eq!(page.iter().map(|entry| (entry.id, entry.subject.as_str())).collect::<Vec<_>>(), [(3, "m2"), (4, "m3")]);
        for statement in ["UPDATE audit SET who = 'somebody' WHERE id = 3", "DELETE FROM audit WHERE id = 3", "DELETE FROM audit"] {
            let refused = sqlx::query(statement).execute(&mut writer).await.unwrap_err().to_string();
            assert!(refused.contains("only ever added to"), "{refused}");
        }
        // Who takes the triggers away can change a record, but not unseen.
        for trigger in ["audit_is_not_changed", "audit_is_not_shortened"] {
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP TRIGGER {trigger}"))).execute(&mut writer).await.unwrap();
        }
        for (column, value) in [
            ("at", "'x'"),
            ("who", "'x'"),
            ("request", "''"),
            ("action", "'x'"),
            ("subject", "'x'"),
            ("before", "''"),
            ("after", "NULL"),
            ("seal", "x'00'"),
        ] {
            sqlx::query("SAVEPOINT s").execute(&mut writer).await.unwrap();
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("UPDATE audit SET {column} = {value} WHERE id = 3")))
                .execute(&mut writer)
                .await
                .unwrap();
            let (looked, broken) = verify(&mut writer).await.unwrap();
            // The next one follows the seal that stands there.
            let wanted: &[Broken] = if column == "seal" { &[Broken::Changed(3), Broken::Changed(4)] } else { &[Broken::Changed(3)] };
            assert_eq!((looked, broken.as_slice()), (5, wanted), "{column}");
            sqlx::query("ROLLBACK TO s").execute(&mut writer).await.unwrap();
        }
        use Broken::{Changed, Missing};
        let tampered: [(&str, &'static [&'static str], u64, &[Broken]); 6] = [
            ("taken out", &["DELETE FROM audit WHERE id = 3"], 4, &[Missing(3, 3)]),
            ("the first taken out", &["DELETE FROM audit WHERE id < 3"], 3, &[Missing(1, 2)]),
            (
                "taken out and the gap closed",
                &["DELETE FROM audit WHERE id = 3", "UPDATE audit SET id = id - 1 WHERE id > 3"],
                4,
                &[Changed(3), Changed(4)],
            ),
            (
                "two that changed places",
                &["UPDATE audit SET id = 99 WHERE id = 3", "UPDATE audit SET id = 3 WHERE id = 4", "UPDATE audit SET id = 4 WHERE id = 99"],
                5,
                &[Changed(3), Changed(4), Changed(5)],
            ),
            (
                "put in between",
                &[
                    "UPDATE audit SET id = id + 10 WHERE id > 2",
                    "INSERT INTO audit SELECT 3, at, who, request, action, subject, before, after, seal FROM audit WHERE id = 2",
                    "UPDATE audit SET id = id - 9 WHERE id > 10",
                ],
                6,
                &[Changed(3), Changed(4), Changed(5), Changed(6)],
            ),
            ("moved to the end", &["UPDATE audit SET id = 9 WHERE id = 3"], 5, &[Missing(3, 3), Missing(6, 8)]),
        ];
        for (what, statements, records, places) in tampered {
            sqlx::query("SAVEPOINT s").execute(&mut writer).await.unwrap();
            for statement in statements {
                sqlx::query(*statement).execute(&mut writer).await.unwrap();
            }
            assert_eq!(verify(&mut writer).await.unwrap(), (records, places.to_vec()), "{what}");
            sqlx::query("ROLLBACK TO s").execute(&mut writer).await.unwrap();
        }
        assert_eq!(verify(&mut writer).await.unwrap(), (5, Vec::new()));
    }

    #[tokio::test]
    async fn a_database_of_an_earlier_schema_begins_an_empty_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lsqd.db");
        let earlier = super::super::MIGRATIONS.iter().filter(|migration| migration.version < 11).cloned().collect();
        let mut old = super::super::options(&path).connect().await.unwrap();
        sqlx::migrate::Migrator::with_migrations(earlier).run(&mut old).await.unwrap();
        sqlx::query("INSERT INTO models (name, last_version, created_at) VALUES ('m', 1, '2026-01-01T00:00:00Z')")
            .execute(&mut old)
            .await
            .unwrap();
        old.close().await.unwrap();
        let (_store, mut writer) = Store::open(&path, 1).await.unwrap();
        assert_eq!(crate::store::models::all(&mut writer).await.unwrap().len(), 1, "what was there is gone");
        assert_eq!(verify(&mut writer).await.unwrap(), (0, Vec::new()));
        let change = Change { action: "model.delete", subject: "m".to_owned(), before: None, after: None };
        add(&mut writer, "anonymous", "r-1", &change).await.unwrap();
        assert_eq!((list(&mut writer, 0, 9).await.unwrap()[0].id, verify(&mut writer).await.unwrap()), (1, (1, Vec::new())));
    }
}
