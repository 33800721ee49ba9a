//! `Idempotency-Key`: the same key and request give the same reply and have one effect, also across a crash.
//!
//! The reply is stored in the transaction of its effect, and looked for in that same transaction: two requests with one key cannot both pass.
//! A stream has no one reply: under its key stands a mark, how far it has come and what was sent up to there, which moves with each batch.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::ServiceError;
use crate::store::idempotency::About;
use crate::store::{Connection, StoreError, idempotency};

/// A key and what it was used for.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    key: String,
    fingerprint: Vec<u8>,
    /// Of a batch of a stream: the lines before it, and the mark that it leaves.
    step: Option<(u64, Mark)>,
}

/// How far a stream has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// The version that learns.
    pub(crate) version: u64,
    /// Lines that are done with.
    pub(crate) lines: u64,
    /// SHA-256 of those lines.
    pub(crate) digest: Vec<u8>,
}

/// A value that was made now, or was made before and is answered again.
#[derive(Clone, Debug, PartialEq)]
pub struct Replayable<T> {
    /// The value.
    pub value: T,
    /// Whether it is an earlier reply.
    pub replayed: bool,
}

impl<T> Replayable<T> {
    /// A value made now.
    pub(crate) fn fresh(value: T) -> Self {
        Self { value, replayed: false }
    }
}

/// The fingerprint of a request, built up as its body arrives.
#[derive(Clone, Debug)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// Begins with the route and what else the reply depends on.
    #[must_use]
    pub fn new(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        Self(hash)
    }

    /// Adds a piece of the body.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The key with the fingerprint of the whole request.
    #[must_use]
    pub fn key(self, key: &str) -> IdempotencyKey {
        IdempotencyKey { key: key.to_owned(), fingerprint: self.digest(), step: None }
    }

    /// SHA-256 of everything so far.
    pub(crate) fn digest(&self) -> Vec<u8> {
        self.0.clone().finalize().to_vec()
    }
}

impl IdempotencyKey {
    /// The key as it goes with one batch of a stream: `lines` were done before, and `mark` is left after.
    pub(crate) fn step(&self, lines: u64, mark: Mark) -> Self {
        Self { step: Some((lines, mark)), ..self.clone() }
    }

    /// How far the stream of this key has come, if it ever began.
    pub(crate) async fn mark(&self, connection: &mut Connection) -> Result<Option<Mark>, ServiceError> {
        let Some(found) = idempotency::find(connection, &self.key).await? else { return Ok(None) };
        if found.fingerprint != self.fingerprint {
            return Err(ServiceError::IdempotencyMismatch);
        }
        Ok(Some(serde_json::from_str(&found.reply).map_err(|_| StoreError::Corrupt("the mark of a stream"))?))
    }

    /// The reply once given, if there was one. A batch of a stream has none, but must follow on what is done.
    pub(crate) async fn replay<T: DeserializeOwned>(&self, connection: &mut Connection) -> Result<Option<Replayable<T>>, ServiceError> {
        if let Some((lines, _)) = &self.step {
            let done = self.mark(connection).await?.map_or(0, |mark| mark.lines);
            let conflict = ServiceError::Conflict("another try of this stream, under the same Idempotency-Key, is at work; send it again");
            return if done == *lines { Ok(None) } else { Err(conflict) };
        }
        let Some(found) = idempotency::find(connection, &self.key).await? else { return Ok(None) };
        if found.fingerprint != self.fingerprint {
            return Err(ServiceError::IdempotencyMismatch);
        }
        let value = serde_json::from_str(&found.reply).map_err(|_| StoreError::Corrupt("a remembered reply"))?;
        Ok(Some(Replayable { value, replayed: true }))
    }

    /// Remembers a reply, in the transaction of its effect.
    pub(crate) async fn remember<T: Serialize>(&self, connection: &mut Connection, reply: &T, about: About) -> Result<(), ServiceError> {
        if let Some((_, mark)) = &self.step {
            return Ok(idempotency::renew(connection, &self.key, &self.fingerprint, &encoded(mark)?).await?);
        }
        Ok(idempotency::remember(connection, &self.key, &self.fingerprint, &encoded(reply)?, about).await?)
    }
}

/// Changes kept replies, in the transaction that erases what they tell of.
pub(crate) async fn change<T: DeserializeOwned + Serialize>(
    connection: &mut Connection,
    kept: Vec<(String, String)>,
    mut change: impl FnMut(&mut T),
) -> Result<(), ServiceError> {
    for (key, reply) in kept {
        let mut reply: T = serde_json::from_str(&reply).map_err(|_| StoreError::Corrupt("a remembered reply"))?;
        change(&mut reply);
        idempotency::replace(connection, &key, &encoded(&reply)?).await?;
    }
    Ok(())
}

fn encoded<T: Serialize>(reply: &T) -> Result<String, ServiceError> {
    serde_json::to_string(reply).map_err(|_| ServiceError::Internal("a reply does not encode"))
}
