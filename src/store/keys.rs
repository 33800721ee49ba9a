//! Keys: digests and what they allow. Secrets never come here.
//!
//! Whoever administers keys from the command line may do so beside a running server ([`Beside`]); that one sees it by the generation.

use std::path::Path;

use sqlx::Row as _;

use super::{Connection, Store, StoreError, begin, close_writer, commit, now, rollback};
use crate::model::key::{DIGEST, PEPPER};

/// A key as stored.
#[derive(Clone, Debug)]
pub struct KeyRow {
    /// The part of it that may be seen.
    pub id: String,
    /// What people call it.
    pub name: Option<String>,
    /// Of id and secret.
    pub digest: [u8; DIGEST],
    /// Words with commas between them.
    pub scopes: String,
    /// Patterns of models, JSON; `None` is all.
    pub models: Option<String>,
    /// Patterns of datasets, JSON; `None` is all.
    pub datasets: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// When it ends by itself.
    pub expires_at: Option<String>,
    /// When it was revoked.
    pub revoked_at: Option<String>,
}

macro_rules! select_keys {
    ($rest:literal) => {
        concat!("SELECT id, name, digest, scopes, models, datasets, created_at, expires_at, revoked_at FROM keys ", $rest)
    };
}

fn key(row: &sqlx::sqlite::SqliteRow) -> Result<KeyRow, StoreError> {
    let digest: Vec<u8> = row.try_get("digest")?;
    Ok(KeyRow {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        digest: digest.try_into().map_err(|_| StoreError::Corrupt("the digest of a key"))?,
        scopes: row.try_get("scopes")?,
        models: row.try_get("models")?,
        datasets: row.try_get("datasets")?,
        created_at: row.try_get("created_at")?,
        expires_at: row.try_get("expires_at")?,
        revoked_at: row.try_get("revoked_at")?,
    })
}

/// Counts the changes of the keys; 0 before the first.
pub async fn generation(connection: &mut Connection) -> Result<i64, StoreError> {
    let row: Option<(i64,)> = sqlx::query_as("SELECT generation FROM keyring").fetch_optional(connection).await?;
    Ok(row.map_or(0, |(generation,)| generation))
}

/// The pepper of this database; there is none before the first key.
pub async fn pepper(connection: &mut Connection) -> Result<Option<[u8; PEPPER]>, StoreError> {
    let row: Option<(Vec<u8>,)> = sqlx::query_as("SELECT pepper FROM keyring").fetch_optional(connection).await?;
    row.map(|(pepper,)| pepper.try_into().map_err(|_| StoreError::Corrupt("the pepper of the keys"))).transpose()
}

/// The pepper of this database, which is this one from now on if there was none.
pub async fn pepper_or(writer: &mut Connection, new: &[u8; PEPPER]) -> Result<[u8; PEPPER], StoreError> {
    sqlx::query("INSERT INTO keyring (id, pepper, generation) VALUES (1, ?, 0) ON CONFLICT DO NOTHING")
        .bind(&new[..])
        .execute(&mut *writer)
        .await?;
    pepper(writer).await?.ok_or(StoreError::Corrupt("the pepper of the keys"))
}

/// Keeps a new key.
pub async fn add(writer: &mut Connection, key: &KeyRow) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO keys (id, name, digest, scopes, models, datasets, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(&key.id)
        .bind(&key.name)
        .bind(&key.digest[..])
        .bind(&key.scopes)
        .bind(&key.models)
        .bind(&key.datasets)
        .bind(&key.created_at)
        .bind(&key.expires_at)
        .execute(writer)
        .await?;
    Ok(())
}

/// Revokes a key; one that is revoked already stays so since then. Returns whether there is one of this id.
pub async fn revoke(writer: &mut Connection, id: &str) -> Result<bool, StoreError> {
    sqlx::query("UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL").bind(now()).bind(id).execute(&mut *writer).await?;
    Ok(find(writer, id).await?.is_some())
}

/// The key of that id.
pub async fn find(connection: &mut Connection, id: &str) -> Result<Option<KeyRow>, StoreError> {
    sqlx::query(select_keys!("WHERE id = ?")).bind(id).fetch_optional(connection).await?.as_ref().map(key).transpose()
}

/// Every key, those that are revoked or over included, by age.
pub async fn all(connection: &mut Connection) -> Result<Vec<KeyRow>, StoreError> {
    sqlx::query(select_keys!("ORDER BY created_at, id")).fetch_all(connection).await?.iter().map(key).collect()
}

/// A connection that may write keys, also while a server has the database.
#[derive(Debug)]
pub struct Beside {
    connection: Connection,
    /// Held while no server has it.
    alone: Option<Store>,
}

impl Beside {
    /// Opens the file as a server would, if none has it; else beside that server, without changing its form.
    ///
    /// # Errors
    /// The file cannot be opened, or the server that has it is of another schema.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        match Store::open(path, 1).await {
            Ok((store, connection)) => Ok(Self { connection, alone: Some(store) }),
            Err(StoreError::InUse) => Ok(Self { connection: super::connect_beside(path).await?, alone: None }),
            Err(error) => Err(error),
        }
    }

    /// Does something in a transaction of its own.
    ///
    /// # Errors
    /// Those of `work`, or the database's; in both cases nothing was changed.
    pub async fn run<T, E: From<StoreError>>(&mut self, work: impl AsyncFnOnce(&mut Connection) -> Result<T, E>) -> Result<T, E> {
        begin(&mut self.connection).await?;
        match work(&mut self.connection).await {
            Ok(done) => commit(&mut self.connection).await.map(|()| done).map_err(E::from),
            Err(error) => {
                // The rollback's own failure says nothing new.
                let _ = rollback(&mut self.connection).await;
                Err(error)
            }
        }
    }

    /// Closes it; what was done is on disk already.
    ///
    /// # Errors
    /// The database.
    pub async fn close(self) -> Result<(), StoreError> {
        match self.alone {
            Some(store) => {
                store.close().await;
                close_writer(self.connection).await
            }
            None => super::close(self.connection).await,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row(id: &str) -> KeyRow {
        let (models, name) = (Some("[\"a*\"]".to_owned()), Some("of tests".to_owned()));
        let (expires_at, revoked_at) = (Some(now()), None);
        KeyRow {
            id: id.to_owned(),
            name,
            digest: [7; DIGEST],
            scopes: "read".to_owned(),
            models,
            datasets: None,
            created_at: now(),
            expires_at,
            revoked_at,
        }
    }

    #[tokio::test]
    async fn keys_are_changed_beside_a_server_which_sees_the_generation_move() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lsqd.db");
        let (server, writer) = Store::open(&path, 1).await.unwrap();
        let mut watching = server.connect().await.unwrap();
        assert_eq!(generation(&mut watching).await.unwrap(), 0);

        let mut beside = Beside::open(&path).await.unwrap();
        assert!(beside.alone.is_none());
        beside
            .run(async |writer: &mut Connection| {
                assert_eq!(pepper_or(writer, &[1; PEPPER]).await?, [1; PEPPER]);
                assert_eq!(pepper_or(writer, &[2; PEPPER]).await?, [1; PEPPER], "the pepper changed");
                add(writer, &row("k")).await
            })
            .await
            .unwrap();
        assert_eq!((generation(&mut watching).await.unwrap(), all(&mut watching).await.unwrap().len()), (1, 1));
        let undone = beside.run(async |writer: &mut Connection| {
            add(writer, &row("l")).await?;
            Err::<(), _>(StoreError::InUse)
        });
        assert!(undone.await.is_err());
        assert_eq!(generation(&mut watching).await.unwrap(), 1);
        assert!(beside.run(async |writer: &mut Connection| revoke(writer, "k").await).await.unwrap());
        let revoked = find(&mut watching, "k").await.unwrap().unwrap().revoked_at.unwrap();
        assert!(beside.run(async |writer: &mut Connection| revoke(writer, "k").await).await.unwrap());
        assert_eq!(find(&mut watching, "k").await.unwrap().unwrap().revoked_at.unwrap(), revoked, "revoked twice");
        assert!(!beside.run(async |writer: &mut Connection| revoke(writer, "none").await).await.unwrap());
        assert_eq!(generation(&mut watching).await.unwrap(), 2);
        beside.close().await.unwrap();

        sqlx::Connection::close(watching).await.unwrap();
        server.close().await;
        close_writer(writer).await.unwrap();
        drop(server);
        let alone = Beside::open(&path).await.unwrap();
        assert!(alone.alone.is_some(), "a lock is held that nobody needs");
        alone.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_file_of_another_schema_is_not_touched_beside_its_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lsqd.db");
        let (server, mut writer) = Store::open(&path, 1).await.unwrap();
        sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 10").execute(&mut writer).await.unwrap();
        assert!(matches!(Beside::open(&path).await, Err(StoreError::OtherSchema)));
        sqlx::query("INSERT INTO _sqlx_migrations SELECT 999999, description, installed_on, success, checksum, execution_time FROM _sqlx_migrations LIMIT 1")
            .execute(&mut writer)
            .await
            .unwrap();
        assert!(matches!(Beside::open(&path).await, Err(StoreError::OtherSchema)));
        server.close().await;
        close_writer(writer).await.unwrap();
    }
}
