//! Models, versions and aliases.

use sqlx::Row as _;

use super::{Connection, StoreError, checksum, now, seal, unseal};

/// A model and what points into it.
#[derive(Clone, Debug)]
pub struct ModelRow {
    /// Identity.
    pub id: i64,
    /// The name in its address.
    pub name: String,
    /// When it was created.
    pub created_at: String,
}

/// A version without its state.
#[derive(Clone, Debug)]
pub struct VersionRow {
    /// Identity.
    pub id: i64,
    /// Its model.
    pub model: i64,
    /// Its number.
    pub version: u64,
    /// What was fitted and how, JSON; nothing if it is not what was written.
    pub document: Option<String>,
    /// When it was stored.
    pub created_at: String,
}

/// An alias.
#[derive(Clone, Debug)]
pub struct AliasRow {
    /// Its model.
    pub model: i64,
    /// Its name.
    pub alias: String,
    /// What it points to.
    pub version: u64,
    /// The sequence at which it is held.
    pub sequence: Option<u64>,
    /// Whether it is not what was written.
    pub damaged: bool,
}

/// All models, by name.
pub async fn all(connection: &mut Connection) -> Result<Vec<ModelRow>, StoreError> {
    let rows = sqlx::query("SELECT id, name, created_at FROM models ORDER BY name").fetch_all(connection).await?;
    rows.iter().map(|row| Ok(ModelRow { id: row.try_get(0)?, name: row.try_get(1)?, created_at: row.try_get(2)? })).collect()
}

/// All versions of all models, oldest first.
pub async fn all_versions(connection: &mut Connection) -> Result<Vec<VersionRow>, StoreError> {
    let rows = sqlx::query(
        "SELECT versions.id, model_id, version, document, versions.created_at, coalesce(name, '')
         FROM versions LEFT JOIN models ON models.id = model_id ORDER BY model_id, version",
    )
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let (id, number, model): (i64, i64, &str) = (row.try_get(0)?, row.try_get(2)?, row.try_get(5)?);
            Ok(VersionRow {
                id,
                model: row.try_get(1)?,
                version: number.unsigned_abs(),
                // Bytes that are not UTF-8 any more are no document either.
                document: row.try_get(3).ok().and_then(|text| unseal_text(text, model, id, number)).map(str::to_owned),
                created_at: row.try_get(4)?,
            })
        })
        .collect()
}

/// All aliases of all models.
pub async fn all_aliases(connection: &mut Connection) -> Result<Vec<AliasRow>, StoreError> {
    let query = "SELECT model_id, alias, version, sequence, checksum FROM aliases ORDER BY model_id, alias";
    let rows = sqlx::query(query).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let (model, alias): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
            let (version, sequence): (i64, Option<i64>) = (row.try_get(2)?, row.try_get(3)?);
            let known: Option<i64> = row.try_get(4)?;
            let damaged = known.is_some_and(|known| known != alias_checksum(model, &alias, version, sequence));
            Ok(AliasRow { model, alias, version: version.unsigned_abs(), sequence: sequence.map(i64::unsigned_abs), damaged })
        })
        .collect()
}

fn alias_checksum(model: i64, alias: &str, version: i64, sequence: Option<i64>) -> i64 {
    i64::from(checksum(alias.as_bytes(), &[model, version, i64::from(sequence.is_some()), sequence.unwrap_or(0)], &[]))
}

/// What stands between a document and its checksum.
const SEAL: &str = "\ncrc32 ";

/// A document with a checksum at its end, which is of the version's name and numbers too.
fn seal_text(document: &str, model: &str, version: i64, number: i64) -> String {
    let checksum = checksum(document.as_bytes(), &[version, number], model.as_bytes());
    format!("{document}{SEAL}{checksum:08x}")
}

/// The document in a text, if it is the one that was written for this version. One from before there were checksums is taken as it is.
fn unseal_text<'a>(text: &'a str, model: &str, version: i64, number: i64) -> Option<&'a str> {
    let Some((document, seal)) = text.rsplit_once(SEAL) else { return Some(text) };
    let checksum = checksum(document.as_bytes(), &[version, number], model.as_bytes());
    (seal == format!("{checksum:08x}")).then_some(document)
}

/// The state of a version as it was fitted (sequence 0).
pub async fn state(connection: &mut Connection, version: i64) -> Result<Vec<u8>, StoreError> {
    let (bytes,): (Vec<u8>,) = sqlx::query_as("SELECT state FROM versions WHERE id = ?").bind(version).fetch_one(connection).await?;
    Ok(unseal(&bytes, &[version], "the state of a version")?.to_vec())
}

/// Puts another document, and another state as it was fitted, in the place of a version's.
pub async fn set_fit(writer: &mut Connection, version: i64, document: &str, state: Option<Vec<u8>>) -> Result<(), StoreError> {
    let (model, number): (String, i64) =
        sqlx::query_as("SELECT name, version FROM versions JOIN models ON models.id = model_id WHERE versions.id = ?")
            .bind(version)
            .fetch_one(&mut *writer)
            .await?;
    sqlx::query("UPDATE versions SET document = ?, state = coalesce(?, state) WHERE id = ?")
        .bind(seal_text(document, &model, version, number))
        .bind(state.map(|state| seal(state, &[version])))
        .bind(version)
        .execute(writer)
        .await?;
    Ok(())
}

/// Whether the version is still there.
pub async fn version_exists(connection: &mut Connection, version: i64) -> Result<bool, StoreError> {
    Ok(sqlx::query("SELECT 1 FROM versions WHERE id = ?").bind(version).fetch_optional(connection).await?.is_some())
}

/// Whether a model still has a version of that number.
pub async fn has_version(connection: &mut Connection, model: i64, version: u64) -> Result<bool, StoreError> {
    let found = sqlx::query("SELECT 1 FROM versions WHERE model_id = ? AND version = ?")
        .bind(model)
        .bind(version.cast_signed())
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

/// Whether an alias points at a version.
pub async fn has_alias(connection: &mut Connection, model: i64, version: u64) -> Result<bool, StoreError> {
    let found = sqlx::query("SELECT 1 FROM aliases WHERE model_id = ? AND version = ?")
        .bind(model)
        .bind(version.cast_signed())
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

/// Whether a model has an alias of that name.
pub async fn alias_exists(connection: &mut Connection, model: i64, alias: &str) -> Result<bool, StoreError> {
    let found =
        sqlx::query("SELECT 1 FROM aliases WHERE model_id = ? AND alias = ?").bind(model).bind(alias).fetch_optional(connection).await?;
    Ok(found.is_some())
}

/// Whether an alias points at a version as it stands.
pub async fn serves(connection: &mut Connection, model: i64, alias: &str, version: u64) -> Result<bool, StoreError> {
    let found = sqlx::query("SELECT 1 FROM aliases WHERE model_id = ? AND alias = ? AND version = ? AND sequence IS NULL")
        .bind(model)
        .bind(alias)
        .bind(version.cast_signed())
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

/// What [`add_version`] stored.
#[derive(Clone, Debug)]
pub struct Added {
    /// The model, created if it was new.
    pub model: ModelRow,
    /// The version.
    pub version: VersionRow,
}

/// Stores a new version under the model's next number; the model is created when it is new.
pub async fn add_version(writer: &mut Connection, model: &str, document: &str, state: Vec<u8>) -> Result<Added, StoreError> {
    let moment = now();
    let row = sqlx::query(
        "INSERT INTO models (name, last_version, created_at) VALUES (?, 1, ?)
         ON CONFLICT (name) DO UPDATE SET last_version = last_version + 1 RETURNING id, last_version, created_at",
    )
    .bind(model)
    .bind(&moment)
    .fetch_one(&mut *writer)
    .await?;
    let model = ModelRow { id: row.try_get(0)?, name: model.to_owned(), created_at: row.try_get(2)? };
    let number: i64 = row.try_get(1)?;
    // The one that the table would give out; the seals need it before.
    let (id,): (i64,) = sqlx::query_as(
        "SELECT 1 + max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'versions'), 0), coalesce((SELECT max(id) FROM versions), 0))",
    )
    .fetch_one(&mut *writer)
    .await?;
    sqlx::query("INSERT INTO versions (id, model_id, version, document, state, created_at) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(id)
        .bind(model.id)
        .bind(number)
        .bind(seal_text(document, &model.name, id, number))
        .bind(seal(state, &[id]))
        .bind(&moment)
        .execute(&mut *writer)
        .await?;
    let document = Some(document.to_owned());
    let version = VersionRow { id, model: model.id, version: number.unsigned_abs(), document, created_at: moment };
    Ok(Added { model, version })
}

/// Points an alias at a version, as it stands or as it stood at a sequence.
pub async fn set_alias(writer: &mut Connection, model: i64, alias: &str, version: u64, sequence: Option<u64>) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO aliases (model_id, alias, version, sequence, checksum) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET version = excluded.version, sequence = excluded.sequence, checksum = excluded.checksum",
    )
    .bind(model)
    .bind(alias)
    .bind(version.cast_signed())
    .bind(sequence.map(u64::cast_signed))
    .bind(alias_checksum(model, alias, version.cast_signed(), sequence.map(u64::cast_signed)))
    .execute(writer)
    .await?;
    Ok(())
}

/// What an alias points at, and the sequence at which it is held.
pub async fn alias(connection: &mut Connection, model: i64, alias: &str) -> Result<Option<(u64, Option<u64>)>, StoreError> {
    let row: Option<(i64, Option<i64>)> = sqlx::query_as("SELECT version, sequence FROM aliases WHERE model_id = ? AND alias = ?")
        .bind(model)
        .bind(alias)
        .fetch_optional(connection)
        .await?;
    Ok(row.map(|(version, sequence)| (version.unsigned_abs(), sequence.map(i64::unsigned_abs))))
}

/// Removes an alias.
pub async fn delete_alias(writer: &mut Connection, model: i64, alias: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM aliases WHERE model_id = ? AND alias = ?").bind(model).bind(alias).execute(writer).await?;
    Ok(())
}

/// Deletes a version with its log.
pub async fn delete_version(writer: &mut Connection, version: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM versions WHERE id = ?").bind(version).execute(writer).await?;
    Ok(())
}

/// Deletes a model with all its versions.
pub async fn delete(writer: &mut Connection, model: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM models WHERE id = ?").bind(model).execute(writer).await?;
    Ok(())
}
