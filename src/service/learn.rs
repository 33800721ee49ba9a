//! Learning rows: test, then train, then to disk, then the reply.
//!
//! Requests that wait together are committed together: for each version the rows are learnt on a copy of its published state in the order
//! in which they came, written as one record of the log, and the copy is published after the commit. A group that cannot be committed
//! leaves no trace, neither on disk nor in memory. At start the log is replayed by the same function, so the bits are the same.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::Replayable;
use super::catalogue::Version;
use super::error::ServiceError;
use super::label::{Compared, Labelling};
use super::refit::Drifted;
use super::update::check_learns;
use crate::features::RowBuffer;
use crate::lsq;
use crate::model::classifier::largest;
use crate::model::monitor::Mark;
use crate::model::{DriftAction, State};
use crate::planted;
use crate::store::idempotency::About;
use crate::store::updates::LogRecord;
use crate::store::{self, Connection, StoreError};
use crate::telemetry;

/// Rows learnt since the last snapshot after which a new one is taken: bounds the replay at start.
const SNAPSHOT_EVERY: u64 = 10_000;
/// Snapshots that are kept; past twice as many, every second one goes.
const SNAPSHOTS: u64 = 32;

/// What an update is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The version that learnt.
    pub version: u64,
    /// Its sequence after these rows.
    pub sequence: u64,
    /// Rows learnt now; rows whose `_id` was known are not learnt again.
    pub accepted: u64,
    /// n×t a-priori predictions, of a classifier the places of labels among its classes; NaN of rows that were erased.
    #[serde(with = "gaps")]
    pub predictions: Vec<f64>,
    /// n×t a-priori errors, observation − prediction; of a classifier 1 where the label was wrong, 0 where it was right.
    #[serde(with = "gaps")]
    pub errors: Vec<f64>,
    /// Rows that were known, by their place among the n, and the sequence with which each was learnt; 0 where that was not written down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) known: Vec<(u64, u64)>,
}

impl Reply {
    /// Answers a row that is known: as it was answered then, or with nothing if it was erased.
    fn again(&mut self, row: usize, sequence: Option<u64>, answer: &[f64], targets: usize) {
        self.known.push((row as u64, sequence.unwrap_or(0)));
        let (predictions, errors) = answer.split_at(answer.len() / 2);
        let erased = if answer.is_empty() { targets } else { 0 };
        for (all, own) in [(&mut self.predictions, predictions), (&mut self.errors, errors)] {
            all.extend_from_slice(own);
            all.resize(all.len() + erased, f64::NAN);
        }
    }

    /// What it tells of; `version` is the version's identity.
    fn about(&self, version: i64) -> About {
        let known = || self.known.iter().map(|(_, sequence)| *sequence).filter(|sequence| *sequence > 0);
        let fresh = (self.accepted > 0).then_some((self.sequence + 1 - self.accepted, self.sequence));
        let first = known().chain(fresh.map(|(first, _)| first)).min();
        let last = known().chain(fresh.map(|(_, last)| last)).max();
        first.zip(last).map_or(About::Nothing, |(first, last)| About::Rows { version, first, last })
    }

    /// Forgets what was answered to the row of this sequence; rows have so many targets.
    pub(crate) fn forget(&mut self, sequence: u64, targets: usize) {
        let known: HashMap<u64, u64> = self.known.iter().copied().collect();
        let mut fresh = self.sequence - self.accepted;
        for row in 0..self.predictions.len() / targets.max(1) {
            let own = known.get(&(row as u64)).copied().unwrap_or_else(|| {
                fresh += 1;
                fresh
            });
            if own == sequence {
                self.predictions[row * targets..(row + 1) * targets].fill(f64::NAN);
                self.errors[row * targets..(row + 1) * targets].fill(f64::NAN);
            }
        }
    }
}

/// Lists of floats in which NaN, which JSON does not have, is null.
mod gaps {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|value| value.is_finite().then_some(*value)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
        let values = Vec::<Option<f64>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
    }
}

/// Rows to learn, checked for their form.
#[derive(Debug)]
pub(crate) struct UpdateRequest {
    pub(crate) version: Arc<Version>,
    /// n × (features, targets, weight).
    pub(crate) cells: Vec<f64>,
    /// One a row, or none at all.
    pub(crate) events: Vec<Option<String>>,
    /// The sequence the caller believes in.
    pub(crate) expected_sequence: Option<u64>,
    /// Key and fingerprint.
    pub(crate) idempotency: Option<super::IdempotencyKey>,
    /// Of a batch of a stream: whether an earlier batch of it has failed. Then this one must not be learnt.
    pub(crate) stream: Option<Arc<AtomicBool>>,
    /// Labels of remembered predictions, whose rows are in the database; there are no `cells` then.
    pub(crate) labels: Option<Labelling>,
    pub(crate) reply: Waiting,
}

type Outcome = Result<Replayable<Reply>, ServiceError>;
type Answer = oneshot::Sender<Outcome>;

/// Whoever waits for the answer to an update, and the threads on which that is.
#[derive(Debug)]
pub(crate) struct Waiting {
    answer: Answer,
    home: Handle,
}

impl Waiting {
    /// For the caller, who waits on the threads on which it calls.
    pub(crate) fn here() -> (Self, oneshot::Receiver<Outcome>) {
        let (answer, receiver) = oneshot::channel();
        (Self { answer, home: Handle::current() }, receiver)
    }
}

/// Answers a group: everybody who waits on the same thread is woken by one call of the system, not by one each.
fn answer(group: impl Iterator<Item = (Waiting, Outcome)>) {
    let mut homes: Vec<(Handle, Vec<(Answer, Outcome)>)> = Vec::new();
    for (Waiting { answer, home }, outcome) in group {
        match homes.iter_mut().find(|(known, _)| known.id() == home.id()) {
            Some((_, answers)) => answers.push((answer, outcome)),
            None => homes.push((home, vec![(answer, outcome)])),
        }
    }
    for (home, answers) in homes {
        // Who has gone away is not told.
        let tell = move || answers.into_iter().for_each(|(answer, outcome)| _ = answer.send(outcome));
        drop(home.spawn(async { tell() }));
    }
}

impl UpdateRequest {
    /// Lets the batches behind this one know that it failed.
    fn note<T>(&self, outcome: &Result<T, ServiceError>) {
        if let (Some(failed), Err(_)) = (&self.stream, outcome) {
            failed.store(true, Ordering::Relaxed);
        }
    }

    fn follows_a_failure(&self) -> bool {
        self.stream.as_ref().is_some_and(|failed| failed.load(Ordering::Relaxed))
    }

    fn settled(self, outcome: Outcome) -> (Waiting, Outcome) {
        self.note(&outcome);
        (self.reply, outcome)
    }
}

/// What a group learnt, to be published and answered after the commit.
pub(crate) struct Learnt {
    groups: Vec<Group>,
    compared: Vec<(Arc<Version>, Compared)>,
    outcomes: Vec<Outcome>,
}

/// What one version learnt.
struct Group {
    version: Arc<Version>,
    state: State,
    first_sequence: u64,
    marks: Vec<Mark>,
}

impl Group {
    fn tell(&self) {
        let (sequence, number) = (self.state.sequence(), self.version.number);
        let mut updates = json!({
            "version": number, "first_sequence": self.first_sequence, "sequence": sequence, "rows": sequence + 1 - self.first_sequence,
        });
        if let Some((_, accuracy)) = self.state.monitor().accuracy() {
            updates["accuracy"] = json!(accuracy);
        } else {
            let rmse: Vec<_> = self.state.monitor().latest().iter().map(|figures| figures.rmse).collect();
            updates["rmse"] = if let [single] = rmse.as_slice() { json!(single) } else { json!(rmse) };
        }
        self.version.events.send("updates", &updates);
        let action = self.version.document.online.drift.map(|watch| watch.action.as_str());
        for mark in &self.marks {
            let drift = json!({"version": number, "sequence": mark.sequence, "recent_rows": mark.recent, "action": action});
            self.version.events.send("drift", &drift);
        }
    }
}

impl Learnt {
    /// Publishes the states, then answers the requests, in that order: who has an answer can read its effect.
    pub(crate) fn settle(self, requests: impl Iterator<Item = UpdateRequest>, drifts: &mpsc::UnboundedSender<Drifted>) {
        // Counted before anybody is answered: who has an answer finds it in the metrics too.
        let rows = self.outcomes.iter().flatten().filter(|reply| !reply.replayed).map(|reply| reply.value.accepted).sum();
        metrics::counter!(telemetry::UPDATES).increment(rows);
        for group in self.groups {
            // The coefficients are worked out here, not by the first reader.
            group.state.information().settle();
            group.tell();
            let Group { version, state, marks, .. } = group;
            version.publish(state);
            if let Some(mark) = marks.last() {
                metrics::counter!(telemetry::DRIFTS).increment(marks.len() as u64);
                if version.document.online.drift.is_some_and(|watch| watch.action == DriftAction::Refit) {
                    // After the state is there: the fit may ask for the last rows that it knows. The receiver is gone only when the service is.
                    let _ = drifts.send(Drifted { version, mark: *mark });
                }
            }
        }
        for (version, compared) in self.compared {
            metrics::counter!(telemetry::SPLIT_LABELS).increment(compared.labels);
            for change in compared.changes {
                tracing::info!(model = version.model, comparison = %change, "a comparison of versions is decided otherwise than before");
                version.events.send("comparison", &change);
            }
        }
        answer(requests.zip(self.outcomes).map(|(request, outcome)| request.settled(outcome)));
    }
}

/// Tells all requests of a group that nothing happened.
pub(crate) fn fail(requests: impl Iterator<Item = UpdateRequest>, error: &ServiceError) {
    answer(requests.map(|request| request.settled(Err(error.clone()))));
}

/// A version being learnt by a group: its state so far and the cells that go to the log.
struct Working {
    version: Arc<Version>,
    state: State,
    first_sequence: u64,
    log: Vec<f64>,
    marks: Vec<Mark>,
    /// Sequences of events of this group and answers to them, not yet in the database.
    events: HashMap<String, (u64, Vec<f64>)>,
    compared: Vec<Compared>,
}

/// Applies a group of requests inside the open transaction.
///
/// # Errors
/// The database failed: the whole group is to be rolled back. A request that fails by its own fault has that as its outcome.
pub(crate) async fn apply(connection: &mut Connection, requests: &mut [UpdateRequest]) -> Result<Learnt, ServiceError> {
    // Not there: the version was deleted before the group reached it, or is in quarantine.
    let mut working: HashMap<i64, Result<Working, ServiceError>> = HashMap::new();
    let mut outcomes = Vec::with_capacity(requests.len());
    for request in requests {
        let version = &request.version;
        let place = match working.entry(version.id) {
            Entry::Occupied(place) => place.into_mut(),
            Entry::Vacant(place) => place.insert(match begin(connection, version).await {
                Err(error @ ServiceError::Store(_)) => return Err(error),
                begun => begun,
            }),
        };
        let outcome = match place {
            _ if request.follows_a_failure() => Err(ServiceError::Unavailable("an earlier batch of the stream failed")),
            Ok(working) => one(connection, working, request).await,
            Err(error) => Err(error.clone()),
        };
        request.note(&outcome);
        match outcome {
            Err(ServiceError::Store(error)) => return Err(ServiceError::Store(error)),
            outcome => outcomes.push(outcome),
        }
    }
    let mut groups = Vec::with_capacity(working.len());
    let mut compared = Vec::new();
    for mut done in working.into_values().flatten() {
        compared.extend(done.compared.drain(..).map(|compared| (done.version.clone(), compared)));
        if done.log.is_empty() {
            continue;
        }
        let Working { version, state, first_sequence, log, marks, .. } = done;
        let sequence = state.sequence();
        store::updates::append(connection, version.id, first_sequence, sequence + 1 - first_sequence, &log).await?;
        if sequence / SNAPSHOT_EVERY > (first_sequence - 1) / SNAPSHOT_EVERY {
            snapshot(connection, &version, &state).await?;
        }
        groups.push(Group { version, state, first_sequence, marks });
    }
    Ok(Learnt { groups, compared, outcomes })
}

/// Takes a snapshot, and lets go of as much of the log as the version's retention says.
pub(super) async fn snapshot(connection: &mut Connection, version: &Version, state: &State) -> Result<(), ServiceError> {
    let sequence = state.sequence();
    let stride = (sequence / SNAPSHOT_EVERY / SNAPSHOTS).max(1).next_power_of_two();
    store::updates::add_snapshot(connection, version.id, sequence, state.encode(), SNAPSHOT_EVERY, stride).await?;
    if let Some(retention) = version.document.online.retention {
        let rows = retention.rows.map(|rows| sequence.saturating_sub(rows));
        let hours = retention.days.map(|days| i64::try_from(days.saturating_mul(24)).unwrap_or(i64::MAX).min(1 << 20));
        let moment = hours.map(|hours| store::moment(jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours)));
        store::updates::trim(connection, version.id, rows, moment.as_deref(), sequence).await?;
    }
    Ok(())
}

async fn begin(connection: &mut Connection, version: &Arc<Version>) -> Result<Working, ServiceError> {
    if !store::models::version_exists(connection, version.id).await? {
        return Err(ServiceError::VersionNotFound);
    }
    let state = State::clone(&*version.state_in(connection).await?);
    Ok(Working {
        version: version.clone(),
        first_sequence: state.sequence() + 1,
        state,
        log: Vec::new(),
        marks: Vec::new(),
        events: HashMap::new(),
        compared: Vec::new(),
    })
}

/// Learns the rows of one request, or none of them.
async fn one(connection: &mut Connection, working: &mut Working, request: &UpdateRequest) -> Result<Replayable<Reply>, ServiceError> {
    if let Some(key) = &request.idempotency
        && let Some(replayed) = key.replay(connection).await?
    {
        return Ok(replayed);
    }
    if request.expected_sequence.is_some_and(|sequence| sequence != working.state.sequence()) {
        return Err(ServiceError::Precondition);
    }
    let version = working.version.clone();
    let targets = version.document.target.len();
    let width = version.learning_width();
    let opened = match &request.labels {
        Some(labels) => Some(labels.open(connection, &version).await?),
        None => None,
    };
    let learns = check_learns(&version).is_ok();
    let all_cells = opened.as_ref().map_or(&request.cells, |opened| &opened.cells);
    let rows = all_cells.len() / width;
    // One row leaves the state alone when it fails; several, and a window that slides, need a way back.
    let before = (rows > 1 || version.document.online.window.is_some()).then(|| working.state.clone());
    let (logged, marked, mut fresh) = (working.log.len(), working.marks.len(), Vec::new());
    let mut reply = Reply {
        version: version.number,
        sequence: 0,
        accepted: 0,
        predictions: Vec::with_capacity(rows * targets),
        errors: Vec::with_capacity(rows * targets),
        known: Vec::new(),
    };
    let mut scratch = Scratch::default();
    for (row, cells) in all_cells.chunks_exact(width).enumerate() {
        if let Some((sequence, answer)) = opened.as_ref().and_then(|opened| opened.answers[row].as_ref()) {
            reply.again(row, *sequence, answer, targets);
            continue;
        }
        // A version that does not learn is compared all the same, by what it answered.
        if let Some(judged) = opened.as_ref().filter(|_| !learns).and_then(|opened| opened.judged[row].as_ref()) {
            let (observed, _) = version.observed(cells);
            reply.predictions.extend_from_slice(judged.answered());
            let error = |(observed, answered): (&f64, &f64)| version.document.error(*observed, *answered);
            reply.errors.extend(observed.iter().zip(judged.answered()).map(error));
            continue;
        }
        let event = request.events.get(row).and_then(Option::as_ref);
        if let Some(event) = event {
            let known = match working.events.get(event) {
                Some(answer) => Some(answer.clone()),
                None => store::updates::event(connection, version.id, event).await?,
            };
            if let Some((sequence, answer)) = known {
                reply.again(row, Some(sequence), &answer, targets);
                continue;
            }
        }
        planted::stumble(&version.model, "learning");
        // Past values are those of the rows before, of this request too.
        let cells = version.recalled(&working.state, 1, cells, width);
        let learnt = version.check_past(&cells, row).and_then(|()| {
            step(&version, &mut working.state, &cells, &mut scratch)
                .map_err(|error| ServiceError::request(format!("/rows/{row}"), format!("row {}: {error}", row + 1)))
        });
        match learnt {
            Ok(mark) => working.marks.extend(mark),
            Err(error) => {
                if let Some(before) = before {
                    working.state = before;
                }
                working.log.truncate(logged);
                working.marks.truncate(marked);
                for event in fresh {
                    working.events.remove(&event);
                }
                return Err(error);
            }
        }
        working.log.extend_from_slice(&cells);
        reply.accepted += 1;
        let (observed, _) = version.observed(&cells);
        match (scratch.label, observed) {
            (Some(label), [class]) => {
                reply.predictions.push(label);
                reply.errors.push(version.document.error(*class, label));
            }
            _ => {
                reply.predictions.extend(observed.iter().zip(&scratch.innovations).map(|(observed, error)| observed - error));
                reply.errors.extend_from_slice(&scratch.innovations);
            }
        }
        if let Some(event) = event {
            let place = reply.predictions.len() - targets;
            let answer = [&reply.predictions[place..], &reply.errors[place..]].concat();
            working.events.insert(event.clone(), (working.state.sequence(), answer));
            fresh.push(event.clone());
        }
    }
    reply.sequence = working.state.sequence();
    for event in &fresh {
        if let Some((sequence, answer)) = working.events.get(event) {
            store::updates::add_event(connection, version.id, event, *sequence, answer).await?;
        }
    }
    if let (Some(labels), Some(opened)) = (&request.labels, &opened) {
        working.compared.push(labels.keep(connection, &version, opened, &reply).await?);
    }
    if let Some(key) = &request.idempotency {
        key.remember(connection, &reply, reply.about(version.id)).await?;
    }
    Ok(Replayable::fresh(reply))
}

/// Buffers of [`step`].
#[derive(Default)]
struct Scratch {
    design_row: RowBuffer,
    innovations: Vec<f64>,
    /// The responses of a row of a class, and the scores that were predicted for it.
    indicators: Vec<f64>,
    scores: Vec<f64>,
    /// The label that was predicted, of a classifier.
    label: Option<f64>,
}

/// Learns one row of cells: the one way in, live and at replay.
fn step(version: &Version, state: &mut State, cells: &[f64], scratch: &mut Scratch) -> Result<Option<Mark>, lsq::Error> {
    let row = version.design.row(&cells[..version.design.columns().len()], &mut scratch.design_row);
    let (observed, weight) = version.observed(cells);
    let response = version.document.response(observed, &mut scratch.indicators);
    scratch.innovations.resize(response.len(), 0.0);
    // What an innovation says of a score is rounded otherwise for the class that was observed, which scores that are equal must not depend on.
    scratch.label = version.document.classifier.as_ref().map(|_| {
        scratch.scores.resize(response.len(), 0.0);
        state.information().predict(row, &mut scratch.scores);
        largest(scratch.scores.iter().copied()) as f64
    });
    let mark = state.learn(row, response, weight, version.memory(), &mut scratch.innovations)?;
    if let Some(label) = scratch.label {
        state.count_label(observed == [label]);
    }
    state.remember(version.remembered(cells));
    Ok(mark)
}

/// Learns a record of the log again, no further than `until`.
///
/// # Errors
/// The record does not follow on the state: the log is damaged.
pub(crate) fn replay(version: &Version, state: &mut State, record: &LogRecord, until: u64) -> Result<(), ServiceError> {
    let width = version.learning_width();
    if record.first_sequence != state.sequence() + 1 || !record.values.len().is_multiple_of(width) {
        return Err(StoreError::Corrupt("the update log has a gap").into());
    }
    let mut scratch = Scratch::default();
    for (place, cells) in record.values.chunks_exact(width).enumerate() {
        if state.sequence() >= until {
            break;
        }
        if record.erased.iter().any(|erased| *erased as usize == place) {
            state.skip();
            continue;
        }
        step(version, state, cells, &mut scratch).map_err(|_| StoreError::Corrupt("a record of the update log cannot be learnt"))?;
    }
    Ok(())
}
