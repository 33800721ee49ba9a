//! `Idempotency-Key`: the same key and request give the same reply and have one effect, also across a crash.
//!
//! The reply is stored in the transaction of its effect, and looked for in that same transaction: two requests with one key cannot both pass.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::error::ServiceError;
use crate::store::{Connection, StoreError, idempotency};

/// A key and what it was used for.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    key: String,
    fingerprint: Vec<u8>,
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
        IdempotencyKey { key: key.to_owned(), fingerprint: self.0.finalize().to_vec() }
    }
}

impl IdempotencyKey {
    /// The reply once given, if there was one.
    pub(crate) async fn replay<T: DeserializeOwned>(&self, connection: &mut Connection) -> Result<Option<Replayable<T>>, ServiceError> {
        let Some(found) = idempotency::find(connection, &self.key).await? else { return Ok(None) };
        if found.fingerprint != self.fingerprint {
            return Err(ServiceError::IdempotencyMismatch);
        }
        let value = serde_json::from_str(&found.reply).map_err(|_| StoreError::Corrupt("a remembered reply"))?;
        Ok(Some(Replayable { value, replayed: true }))
    }

    /// Remembers a reply, in the transaction of its effect.
    pub(crate) async fn remember<T: Serialize>(&self, connection: &mut Connection, reply: &T) -> Result<(), ServiceError> {
        let reply = serde_json::to_string(reply).map_err(|_| ServiceError::Internal("a reply does not encode"))?;
        Ok(idempotency::remember(connection, &self.key, &self.fingerprint, &reply).await?)
    }
}
