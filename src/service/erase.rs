//! Exact unlearning: a row is taken out of the update log, and the state is what it would be had the row never come.
//!
//! The log is learnt again from the snapshot before the row, with the row passed over; everything that came of it goes too: later snapshots,
//! states of the past, what was answered to it wherever that is kept. Most of that is done while updates go on; only the last of the log is
//! learnt inside the write transaction. The sequence numbers of other rows stay.

use std::sync::Arc;

use serde_json::json;

use super::audit::Changed;
use super::catalogue::{Target, Version, starting_at};
use super::error::ServiceError;
use super::{Service, idempotency, learn};
use crate::model::State;
use crate::store::{self, Connection, StoreError};

/// Why versions of past values do not unlearn.
pub(super) const PAST: &str = "a row of this version is a past value of the rows after it, so it cannot be unlearnt alone; fit anew without it, and delete this version";

/// Which row is to be erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// By its sequence.
    Sequence(u64),
    /// By its `_id`.
    Event(String),
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Erased {
    /// The version that unlearnt.
    pub version: Arc<Version>,
    /// The row.
    pub erased: u64,
    /// The version's sequence, which does not change.
    pub sequence: u64,
}

impl Service {
    /// Erases a row of the update log.
    ///
    /// # Errors
    /// There is no such model or row; it was erased already; the log of that time is no longer kept; the version is one of past values.
    pub async fn erase(self: &Arc<Self>, reference: &str, row: Row) -> Result<Erased, ServiceError> {
        let version = self.learner(reference).await?;
        if !version.design.past().is_empty() {
            return Err(ServiceError::Conflict(PAST));
        }
        let _alone = version.erasing().await;
        let mut connection = self.store.read().await?;
        let sequence = match row {
            Row::Sequence(sequence) => sequence,
            Row::Event(event) => {
                let found = store::updates::event(&mut connection, version.id, &event).await?;
                found.map(|(sequence, _)| sequence).ok_or(ServiceError::UpdateNotFound)?
            }
        };
        let now = version.state(&self.store).await?.sequence();
        if sequence == 0 || sequence > now {
            return Err(ServiceError::UpdateNotFound);
        }
        let record = store::updates::holding(&mut connection, version.id, sequence).await?;
        let mut record = record.ok_or(ServiceError::Conflict("the update log of that time is no longer kept"))?;
        let place = u32::try_from(sequence - record.first_sequence).map_err(|_| StoreError::Corrupt("a record of the update log"))?;
        if record.erased.contains(&place) {
            return Err(ServiceError::Conflict("this row was erased before"));
        }
        record.erased.push(place);
        record.erased.sort_unstable();
        let width = version.learning_width();
        record.values[place as usize * width..(place as usize + 1) * width].fill(0.0);
        // Up to where the log stands now, while updates go on.
        let mut state = starting_at(&mut connection, &version, sequence - 1).await?;
        learn_again(&mut connection, &version, &mut state, Some(&record)).await?;
        drop(connection);
        let (learning, publisher) = (version.clone(), version.clone());
        let now = self
            .writer
            .change_alone(
                async move |writer: &mut Connection| {
                    if !store::models::version_exists(writer, learning.id).await? {
                        return Err(ServiceError::VersionNotFound);
                    }
                    // And the rows that came meanwhile.
                    learn_again(writer, &learning, &mut state, Some(&record)).await?;
                    store::updates::erase(writer, learning.id, sequence, &record).await?;
                    store::remembered::erase(writer, learning.id, sequence).await?;
                    let kept = store::idempotency::of_row(writer, learning.id, sequence).await?;
                    let targets = learning.document.target.len();
                    idempotency::change(writer, kept, |reply: &mut learn::Reply| reply.forget(sequence, targets)).await?;
                    store::updates::drop_snapshots(writer, learning.id, sequence).await?;
                    learn::snapshot(writer, &learning, &state).await?;
                    let at = json!({"version": learning.number, "sequence": sequence});
                    Ok(Changed::new((state.sequence(), state), "update.erase", &learning.model, Some(at), None))
                },
                move |(_, state): &(u64, State)| {
                    state.information().settle();
                    publisher.forget_past();
                    publisher.events.forget(publisher.number, sequence);
                    publisher.events.send("erased", &json!({"version": publisher.number, "erased": sequence}));
                    publisher.publish(state.clone());
                },
            )
            .await?
            .0;
        self.hold_again(&version, sequence).await?;
        self.writer.checkpoint().await?;
        Ok(Erased { version: version.clone(), erased: sequence, sequence: now })
    }

    /// Makes anew the states in which aliases hold the version at or after a row that was erased.
    pub(super) async fn hold_again(self: &Arc<Self>, version: &Arc<Version>, erased: u64) -> Result<(), ServiceError> {
        let Ok(model) = self.catalogue.model(&version.model) else { return Ok(()) };
        for (alias, target) in &model.aliases {
            let Some(sequence) = target.sequence().filter(|sequence| target.version == version.number && *sequence >= erased) else {
                continue;
            };
            let state = version.state_at(&self.store, sequence).await?;
            let (publisher, name, alias) = (self.clone(), model.name.clone(), alias.clone());
            let publish = move |(): &()| {
                publisher.catalogue.change(&name, |model| {
                    model.map(|mut model| {
                        if let Some(target) = model.aliases.get_mut(&alias).filter(|target| target.sequence() == Some(sequence)) {
                            *target = Target { version: target.version, held: Some(state), damage: None };
                        }
                        model
                    })
                });
            };
            self.writer.run(async |_: &mut Connection| Ok(()), publish).await?;
        }
        Ok(())
    }
}

/// Learns what the log holds after the state; one record, if it is given, as it is to be.
pub(super) async fn learn_again(
    connection: &mut Connection,
    version: &Version,
    state: &mut State,
    changed: Option<&store::updates::LogRecord>,
) -> Result<(), ServiceError> {
    let first = state.sequence();
    loop {
        let records = store::updates::after(connection, version.id, state.sequence(), 256).await?;
        if records.is_empty() {
            return Ok(());
        }
        for record in &records {
            if state.sequence() == first && record.first_sequence > first + 1 {
                return Err(ServiceError::Conflict("the update log of that time is no longer kept"));
            }
            let record = changed.filter(|changed| changed.first_sequence == record.first_sequence).unwrap_or(record);
            learn::replay(version, state, record, u64::MAX)?;
        }
    }
}
