//! The audit log: who asked for a change, and what it was.
//!
//! Who asks is known where the request comes in, and what changes where it is done, many calls below. In between it is carried by the task
//! ([`by`]), and by a job that outlives its request. `keep` is where a record is written: in the transaction of the change, so
//! that there is no change without a record, and no record without a change. The writer calls it for all that somebody asked a server for;
//! what is done at the command line does so for itself.

use std::future::Future;

use serde_json::json;

use super::catalogue::SERVED;
use super::{Service, ServiceError};
pub use crate::store::audit::Entry;
use crate::store::{self, Connection, StoreError};

/// Who asks for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The id of a key; `anonymous` where none is asked for, `local` at the command line, `lsqd` for what the server does by itself.
    pub who: String,
    /// The id of the request.
    pub request: String,
}

impl Actor {
    /// Somebody with a key, or nobody in particular.
    #[must_use]
    pub fn new(key: Option<&str>, request: &str) -> Self {
        Self { who: key.unwrap_or("anonymous").to_owned(), request: request.to_owned() }
    }

    /// Somebody who has the file.
    pub(crate) fn at_the_command_line() -> Self {
        Self { who: "local".to_owned(), request: String::new() }
    }

    /// Who asks for what this task does; the server itself if nobody does.
    pub(crate) fn current() -> Self {
        ACTOR.try_with(Self::clone).unwrap_or_else(|_| Self { who: "lsqd".to_owned(), request: String::new() })
    }
}

tokio::task_local! {
    static ACTOR: Actor;
}

/// Does something in somebody's name.
pub fn by<F: Future>(actor: Actor, work: F) -> impl Future<Output = F::Output> {
    ACTOR.scope(actor, work)
}

/// What a change comes to, and what is written of it.
#[derive(Debug)]
pub(crate) struct Changed<T> {
    /// What it comes to.
    pub(crate) value: T,
    /// What is written of it; nothing if nothing was changed, as when an earlier reply is given again.
    pub(crate) record: Option<store::audit::Change>,
}

impl<T> Changed<T> {
    /// Something was changed.
    pub(crate) fn new(
        value: T,
        action: &'static str,
        subject: &str,
        before: Option<serde_json::Value>,
        after: Option<serde_json::Value>,
    ) -> Self {
        let text = |value: Option<serde_json::Value>| value.map(|value| value.to_string());
        let record = store::audit::Change { action, subject: subject.to_owned(), before: text(before), after: text(after) };
        Self { value, record: Some(record) }
    }

    /// The same, coming to something else.
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Changed<U> {
        Changed { value: change(self.value), record: self.record }
    }

    /// Nothing was.
    pub(crate) fn nothing(value: T) -> Self {
        Self { value, record: None }
    }
}

/// Writes what is to be written of a change, in its transaction.
pub(crate) async fn keep<T>(writer: &mut Connection, actor: &Actor, changed: Changed<T>) -> Result<T, ServiceError> {
    let Changed { value, record } = changed;
    if let Some(record) = record {
        store::audit::add(writer, &actor.who, &actor.request, &record).await?;
    }
    Ok(value)
}

/// Writes what somebody who has the file did to the whole of it.
pub(crate) async fn by_hand(connection: &mut Connection, action: &'static str, after: serde_json::Value) -> Result<(), StoreError> {
    let Actor { who, request } = Actor::at_the_command_line();
    let record = store::audit::Change { action, subject: String::new(), before: None, after: Some(after.to_string()) };
    store::audit::add(connection, &who, &request, &record).await
}

/// The version behind a model's plain name before a fit, as the audit log has it.
pub(crate) async fn served(connection: &mut Connection, model: i64) -> Result<Option<serde_json::Value>, ServiceError> {
    let served = store::models::alias(connection, model, SERVED).await?;
    Ok(served.map(|(version, sequence)| json!({"served": version, "sequence": sequence})))
}

/// What a fit leaves, as the audit log has it.
pub(crate) fn fitted(version: u64, serve: bool) -> serde_json::Value {
    json!({"version": version, "served": serve})
}

impl Service {
    /// Records of the audit log after `after`, in order, at most `limit`.
    ///
    /// # Errors
    /// The database's.
    pub async fn audit(&self, after: u64, limit: u32) -> Result<Vec<Entry>, ServiceError> {
        Ok(store::audit::list(&mut *self.store.read().await?, after, limit).await?)
    }
}
