//! Keys: who asks, what they may do, which names they see; and making, listing and revoking them.
//!
//! The keys are in memory, since every request asks for them. They change in the database alone, by this process or from the command line
//! beside it; a look at a count of the changes, several times a second, brings them here. So a key that is revoked opens nothing within a
//! second, wherever that was done. Until the first key is made, everybody may do everything; from then on nobody without one, also when all
//! are revoked.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;

use super::audit::{self, Actor, Changed};
use super::error::ServiceError;
use super::rate::{Bucket, Rate};
use super::{IdempotencyKey, Replayable, Service};
use crate::frame::Fault;
use crate::model::key::{self, DIGEST, Digester, Grant, KeyError, Names, Scopes, Token};
use crate::store::idempotency::About;
use crate::store::keys::{Beside, KeyRow};
use crate::store::{self, Connection, StoreError};

/// How often it is looked whether the keys have changed.
const LOOK: Duration = Duration::from_millis(200);

/// A key as it is told of.
#[derive(Clone, Debug)]
pub struct Key {
    /// The part of it that may be seen.
    pub id: String,
    /// What it allows.
    pub grant: Grant,
    /// When it was made.
    pub created_at: String,
    /// When it was revoked, if it was.
    pub revoked_at: Option<String>,
    digest: [u8; DIGEST],
    /// What may be sent with it, for as long as this process knows it.
    bucket: Arc<Bucket>,
}

impl Key {
    fn of(row: KeyRow) -> Result<Self, ServiceError> {
        let corrupt = |_| StoreError::Corrupt("a key");
        let names = |text: Option<String>| -> Result<Names, ServiceError> {
            let Some(text) = text else { return Ok(Names::All) };
            let patterns: Vec<String> = serde_json::from_str(&text).map_err(|_| StoreError::Corrupt("a key"))?;
            Ok(Names::new(Some(&patterns)).map_err(corrupt)?)
        };
        let expires_at = row.expires_at.map(|text| text.parse()).transpose().map_err(|_| StoreError::Corrupt("a key"))?;
        let scopes = Scopes::parse(&row.scopes).map_err(corrupt)?;
        let grant = Grant { name: row.name, scopes, models: names(row.models)?, datasets: names(row.datasets)?, expires_at };
        Ok(Self {
            id: row.id,
            grant,
            created_at: row.created_at,
            revoked_at: row.revoked_at,
            digest: row.digest,
            bucket: Arc::new(Bucket::new()),
        })
    }

    /// Whether it opens anything now.
    #[must_use]
    pub fn is_alive(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && !self.grant.has_expired(now)
    }
}

/// A key that was made.
#[derive(Debug)]
pub struct Made {
    /// The key.
    pub key: Key,
    /// It with its secret: now or never.
    pub token: Option<Token>,
}

/// The keys that there are.
#[derive(Debug, Default)]
pub struct Keyring {
    known: ArcSwap<Known>,
    /// What each key may send; without it, whatever it likes.
    rate: Option<Rate>,
    /// One reads them at a time, so that what was read earlier does not take the place of what was read later.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    generation: i64,
    /// There is none before the first key.
    digester: Option<Digester>,
    keys: HashMap<String, Arc<Key>>,
}

impl Keyring {
    /// No keys yet; each may send so much.
    #[must_use]
    pub fn new(rate: Option<Rate>) -> Self {
        Self { rate, ..Self::default() }
    }

    /// Whether no key was ever made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.load().keys.is_empty()
    }

    /// Who asks, by what they show.
    ///
    /// # Errors
    /// A key is needed, and this is none that is good now.
    pub fn holder(self: &Arc<Self>, shown: Option<&str>) -> Result<Holder, Unknown> {
        let known = self.known.load();
        if known.keys.is_empty() {
            return Ok(Holder { who: Who::Anybody, ring: self.clone() });
        }
        let token = Token::parse(shown.ok_or(Unknown::NotShown)?).ok_or(Unknown::NotGood)?;
        let key = known.keys.get(token.id());
        // Of an id that nobody has as much is computed as of one that somebody has.
        let digest = key.map_or([0; DIGEST], |key| key.digest);
        let same = known.digester.as_ref().is_some_and(|digester| digester.is_of(&digest, &token));
        match key.filter(|key| same && key.is_alive(Timestamp::now())) {
            Some(key) => Ok(Holder { who: Who::Key(key.clone()), ring: self.clone() }),
            None => Err(Unknown::NotGood),
        }
    }

    /// Somebody who asks for what is everybody's.
    #[must_use]
    pub fn nobody(self: &Arc<Self>) -> Holder {
        Holder { who: Who::Nobody, ring: self.clone() }
    }

    /// Reads the keys again, if they have changed.
    async fn renew(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        let _alone = self.reading.lock().await;
        // Before the keys: what changes between these reads is seen by the generation the next time.
        let generation = store::keys::generation(connection).await?;
        if generation == self.known.load().generation {
            return Ok(());
        }
        let digester = store::keys::pepper(connection).await?.as_ref().map(Digester::new);
        let rows = store::keys::all(connection).await?;
        let mut keys = HashMap::with_capacity(rows.len());
        let before = self.known.load();
        for row in rows {
            let mut key = Key::of(row)?;
            if let Some(same) = before.keys.get(&key.id) {
                // What was sent with it stays sent.
                key.bucket = same.bucket.clone();
            }
            keys.insert(key.id.clone(), Arc::new(key));
        }
        self.known.store(Arc::new(Known { generation, digester, keys }));
        Ok(())
    }
}

/// Why nobody is known by what was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Nothing was.
    NotShown,
    /// It is no key, or not one of these, or not any more.
    NotGood,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Holder {
    who: Who,
    ring: Arc<Keyring>,
}

#[derive(Clone, Debug)]
enum Who {
    /// Everybody may do everything, while there are no keys.
    Anybody,
    /// Somebody without a key, where there are some.
    Nobody,
    Key(Arc<Key>),
}

impl Holder {
    /// The id of the key, for logs and records; there is none where none was asked for.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match &self.who {
            Who::Key(key) => Some(&key.id),
            Who::Anybody | Who::Nobody => None,
        }
    }

    /// Takes one of the requests that their key may send.
    ///
    /// # Errors
    /// There is none left for so long.
    pub fn take_turn(&self, now: Instant) -> Result<(), Duration> {
        match (&self.who, self.ring.rate) {
            (Who::Key(key), Some(rate)) => key.bucket.take(rate, now),
            _ => Ok(()),
        }
    }

    /// Whether one of these scopes is theirs.
    #[must_use]
    pub fn may(&self, needed: Scopes) -> bool {
        match &self.who {
            Who::Anybody => true,
            Who::Nobody => false,
            Who::Key(key) => key.grant.scopes.meet(needed),
        }
    }

    /// Whether models of this name are there for them; `name@alias` is of the name.
    #[must_use]
    pub fn sees_model(&self, reference: &str) -> bool {
        self.sees(|grant| &grant.models, reference.rsplit_once('@').map_or(reference, |(name, _)| name))
    }

    /// Whether datasets of this name are there for them.
    #[must_use]
    pub fn sees_dataset(&self, name: &str) -> bool {
        self.sees(|grant| &grant.datasets, name)
    }

    /// Whether every name is.
    #[must_use]
    pub fn sees_all(&self) -> bool {
        match &self.who {
            Who::Anybody => true,
            Who::Nobody => false,
            Who::Key(key) => key.grant.models == Names::All && key.grant.datasets == Names::All,
        }
    }

    fn sees(&self, names: impl Fn(&Grant) -> &Names, name: &str) -> bool {
        match &self.who {
            Who::Anybody => true,
            Who::Nobody => false,
            Who::Key(key) => names(&key.grant).have(name),
        }
    }

    /// Whether they still may what they might when they asked: what takes long looks again.
    #[must_use]
    pub fn stands(&self) -> bool {
        match &self.who {
            Who::Anybody => self.ring.is_empty(),
            Who::Nobody => true,
            Who::Key(key) => self.ring.known.load().keys.get(&key.id).is_some_and(|key| key.is_alive(Timestamp::now())),
        }
    }
}

/// What follows the keys of the database, until it is ended.
#[derive(Debug)]
pub(super) struct Following {
    end: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Following {
    /// Reads the keys, and begins to look whether they change.
    pub(super) async fn start(ring: Arc<Keyring>, mut connection: Connection) -> Result<Self, ServiceError> {
        ring.renew(&mut connection).await?;
        let (end, mut ended) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut failing = false;
            while tokio::time::timeout(LOOK, &mut ended).await.is_err() {
                let renewed = ring.renew(&mut connection).await;
                // Once, and not several times a second.
                if let (Err(error), false) = (&renewed, failing) {
                    tracing::error!(%error, "the keys cannot be read: those that were known are taken until they can");
                }
                failing = renewed.is_err();
            }
            if let Err(error) = store::close(connection).await {
                tracing::debug!(%error, "the connection of the keys did not close");
            }
        });
        Ok(Self { end, task })
    }

    pub(super) async fn stop(self) {
        drop(self.end);
        let _ = self.task.await;
    }
}

/// A row for a key that may be made, and the key with its secret, which is in no row.
async fn new_row(writer: &mut Connection, grant: &Grant) -> Result<(KeyRow, Token), ServiceError> {
    let pepper = store::keys::pepper_or(writer, &key::random().map_err(refused)?).await?;
    let token = Token::random().map_err(refused)?;
    let names = |names: &Names| {
        let patterns = names.patterns().map(|patterns| serde_json::to_string(&patterns)).transpose();
        patterns.map_err(|_| ServiceError::Internal("patterns do not encode"))
    };
    let row = KeyRow {
        id: token.id().to_owned(),
        name: grant.name.clone(),
        digest: Digester::new(&pepper).digest(&token),
        scopes: grant.scopes.to_string(),
        models: names(&grant.models)?,
        datasets: names(&grant.datasets)?,
        created_at: store::now(),
        expires_at: grant.expires_at.map(store::moment),
        revoked_at: None,
    };
    store::keys::add(writer, &row).await?;
    Ok((row, token))
}

/// A key that was made, and its record: what it allows.
fn made(row: KeyRow, token: Token) -> Changed<(KeyRow, Token)> {
    let patterns = |text: &Option<String>| text.as_deref().and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let after = json!({
        "scopes": row.scopes, "models": patterns(&row.models), "datasets": patterns(&row.datasets), "expires_at": row.expires_at,
    });
    let id = row.id.clone();
    Changed::new((row, token), "key.make", &id, None, Some(after))
}

/// Revokes a key; one that was revoked before stays as it is.
async fn revoke(writer: &mut Connection, id: &str) -> Result<Changed<()>, ServiceError> {
    let before = store::keys::find(writer, id).await?.ok_or(ServiceError::KeyNotFound)?;
    store::keys::revoke(writer, id).await?;
    if before.revoked_at.is_some() {
        return Ok(Changed::nothing(()));
    }
    Ok(Changed::new((), "key.revoke", id, Some(json!({"scopes": before.scopes})), None))
}

/// Where in a request the fault is.
fn refused(error: KeyError) -> ServiceError {
    let pointer = match error {
        KeyError::Scope | KeyError::NoScope | KeyError::AdminSeesAll => "/scopes",
        KeyError::Pattern => "/models",
        KeyError::Name => "/name",
        KeyError::Past => "/expires_at",
        KeyError::Random => return ServiceError::Internal("the system gives no random bytes"),
    };
    ServiceError::Request(vec![Fault { pointer: pointer.to_owned(), detail: error.to_string() }])
}

/// What is kept of the reply that made a key: never its secret.
#[derive(Debug, Serialize, Deserialize)]
struct MadeBefore {
    key: String,
}

impl Service {
    /// The keys that there are.
    #[must_use]
    pub fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    /// Makes a key. Under an `Idempotency-Key` that made one before, it is that one, without its secret.
    ///
    /// # Errors
    /// A key cannot be made so; the database.
    pub async fn make_key(&self, grant: Grant, idempotency: Option<IdempotencyKey>) -> Result<Replayable<Made>, ServiceError> {
        grant.check(Timestamp::now()).map_err(refused)?;
        let work = async move |writer: &mut Connection| {
            if let Some(key) = &idempotency
                && let Some(before) = key.replay::<MadeBefore>(writer).await?
            {
                let row = store::keys::find(writer, &before.value.key).await?.ok_or(ServiceError::KeyNotFound)?;
                return Ok(Changed::nothing((row, None)));
            }
            let (row, token) = new_row(writer, &grant).await?;
            if let Some(key) = &idempotency {
                key.remember(writer, &MadeBefore { key: row.id.clone() }, About::Nothing).await?;
            }
            Ok(made(row, token).map(|(row, token)| (row, Some(token))))
        };
        let (row, token) = self.writer.change(work, |_| {}).await?;
        self.renew_keys().await?;
        let replayed = token.is_none();
        Ok(Replayable { value: Made { key: Key::of(row)?, token }, replayed })
    }

    /// Every key, by age, those that are over included.
    ///
    /// # Errors
    /// The database.
    pub async fn keys(&self) -> Result<Vec<Key>, ServiceError> {
        store::keys::all(&mut *self.store.read().await?).await?.into_iter().map(Key::of).collect()
    }

    /// A key.
    ///
    /// # Errors
    /// There is none of this id.
    pub async fn key(&self, id: &str) -> Result<Key, ServiceError> {
        Key::of(store::keys::find(&mut *self.store.read().await?, id).await?.ok_or(ServiceError::KeyNotFound)?)
    }

    /// Revokes a key: when this returns, it opens nothing any more.
    ///
    /// # Errors
    /// There is none of this id.
    pub async fn revoke_key(&self, id: String) -> Result<(), ServiceError> {
        self.writer.change(async move |writer: &mut Connection| revoke(writer, &id).await, |()| {}).await?;
        self.renew_keys().await
    }

    /// What was changed here counts at once.
    async fn renew_keys(&self) -> Result<(), ServiceError> {
        self.keyring.renew(&mut *self.store.read().await?).await
    }
}

/// Makes a key in a database that a server may have.
///
/// # Errors
/// A key cannot be made so; the database.
pub async fn make_in(database: &Path, grant: &Grant) -> Result<(Key, Token), ServiceError> {
    grant.check(Timestamp::now()).map_err(refused)?;
    let mut beside = Beside::open(database).await?;
    let work = async |writer: &mut Connection| {
        let (row, token) = new_row(writer, grant).await?;
        audit::keep(writer, &Actor::at_the_command_line(), made(row, token)).await
    };
    let (row, token) = beside.run(work).await?;
    beside.close().await?;
    Ok((Key::of(row)?, token))
}

/// The keys of a database that a server may have.
///
/// # Errors
/// The database.
pub async fn all_in(database: &Path) -> Result<Vec<Key>, ServiceError> {
    let mut beside = Beside::open(database).await?;
    let rows = beside.run(async |writer: &mut Connection| store::keys::all(writer).await).await?;
    beside.close().await?;
    rows.into_iter().map(Key::of).collect()
}

/// Revokes a key of a database that a server may have; that one sees it within a second.
///
/// # Errors
/// There is none of this id; the database.
pub async fn revoke_in(database: &Path, id: &str) -> Result<(), ServiceError> {
    let mut beside = Beside::open(database).await?;
    let work = async |writer: &mut Connection| {
        let revoked = revoke(writer, id).await?;
        audit::keep(writer, &Actor::at_the_command_line(), revoked).await
    };
    let revoked = beside.run(work).await;
    beside.close().await?;
    revoked
}
