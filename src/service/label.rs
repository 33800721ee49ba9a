//! Labels that come late: a prediction is remembered with its row, and learnt from when its label arrives.
//!
//! What is remembered is on disk before the prediction is answered. A label is learnt by the version that predicted, once, through the same
//! path as an update; that it was learnt, and what was answered, is noted in the same transaction. The same label again is answered alike,
//! another one is refused. What is not labelled within its time is forgotten.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;

use super::catalogue::Version;
use super::error::ServiceError;
use super::learn::{Reply, UpdateRequest, Waiting};
use super::predict::{Kept, Predicted};
use super::traffic::{Remembered, read_scores};
use super::update::{check_learns, expected_sequence};
use super::writer::Writer;
use super::{IdempotencyKey, Replayable, Service};
use crate::frame::Fault;
use crate::model::{Judged, PredictionId, Scores};
use crate::store::{self, Connection};

/// Rows that one request may have remembered, and labels that one may bring: more would keep everybody waiting for the writer.
const MOST: usize = 10_000;
/// Faults reported at the most.
const REPORTED: usize = 20;
/// Predictions forgotten in one step.
const SWEEP: u32 = 1_000;
/// How often it is looked for what has expired. Nobody sees it before that either.
const EVERY: Duration = Duration::from_secs(600);

/// What was observed.
#[derive(Clone, Debug, PartialEq)]
pub enum Observed {
    /// Of a model of one target.
    One(f64),
    /// By target.
    ByTarget(BTreeMap<String, f64>),
    /// The class, of a classifier.
    Class(String),
    /// The same of a classifier of a boolean.
    Boolean(bool),
}

/// The label of a prediction.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// The prediction's id, if it has the form of one.
    pub prediction: Option<PredictionId>,
    /// What was observed.
    pub value: Observed,
    /// The weight of the row.
    pub weight: f64,
}

/// Labels to learn, all or none.
#[derive(Debug)]
pub struct Labels {
    /// The model, or the version of it that must have predicted.
    pub reference: String,
    /// The labels, in the order of learning.
    pub labels: Vec<Label>,
    /// ETags of which the version must carry one.
    pub if_match: Option<Vec<String>>,
    /// The key with the request's fingerprint.
    pub idempotency: Option<IdempotencyKey>,
}

/// The labels of an update on its way: the rows are in the database, and are looked up in the transaction that learns them.
#[derive(Debug)]
pub(crate) struct Labelling {
    /// Ids with targets and weight.
    labels: Vec<(PredictionId, Vec<f64>)>,
    /// Versions that the address means; a prediction of any other is not there.
    meant: Vec<i64>,
}

/// The rows of a labelling: what is to be learnt, and what was answered to those that are learnt already.
pub(crate) struct Opened {
    /// n × (features, targets, weight).
    pub(crate) cells: Vec<f64>,
    /// One a row: with which sequence it was learnt, if that is known, and what was answered; nothing if it was erased.
    pub(crate) answers: Vec<Option<(Option<u64>, Vec<f64>)>>,
    /// One a row: what the members of a split predicted.
    pub(crate) judged: Vec<Option<Remembered>>,
}

/// What labels did to the comparison of versions, to be told after the commit.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Labels that counted.
    pub(crate) labels: u64,
    /// Comparisons that were decided, or no longer are.
    pub(crate) changes: Vec<serde_json::Value>,
}

impl Service {
    /// Remembers rows that were predicted to be remembered, for their labels; when this returns, they are on disk.
    ///
    /// # Errors
    /// The version does not learn; there are too many rows; the database.
    pub async fn remember(&self, predicted: &mut Predicted) -> Result<Option<Vec<PredictionId>>, ServiceError> {
        let Some(Kept { cells, rows, judged }) = predicted.kept.take() else { return Ok(None) };
        let version = &predicted.version;
        check_rememberable(version, rows, judged.is_some())?;
        if rows == 0 {
            return Ok(Some(Vec::new()));
        }
        let id = version.id;
        let now = jiff::Timestamp::now();
        let expires = now + self.remember_ttl;
        self.writer
            .run(
                async move |writer: &mut Connection| {
                    if !store::models::version_exists(writer, id).await? {
                        return Err(ServiceError::VersionNotFound);
                    }
                    let random = store::remembered::random(writer, 10 * rows).await?;
                    let milliseconds = now.as_millisecond().unsigned_abs();
                    let ids: Vec<_> = random.as_chunks().0.iter().map(|random| PredictionId::new(milliseconds, *random)).collect();
                    let bytes: Vec<[u8; 16]> = ids.iter().map(|id| *id.bytes()).collect();
                    let times = (store::moment(now), store::moment(expires));
                    let judged = judged.as_ref().map(|(members, predictions)| (members.as_str(), predictions.as_slice()));
                    store::remembered::add(writer, id, &bytes, &cells, judged, (&times.0, &times.1)).await?;
                    Ok(Some(ids))
                },
                |_| {},
            )
            .await
    }

    /// Learns labels, all or none, by the version that predicted. When this returns `Ok`, they are on disk.
    ///
    /// # Errors
    /// A prediction is not remembered, was labelled otherwise, or is of another version than the first one's; a label does not fit the
    /// targets; the version has another ETag. Nothing was learnt then.
    pub async fn label(&self, asked: Labels) -> Result<(Arc<Version>, Replayable<Reply>), ServiceError> {
        let (name, only) = match asked.reference.rsplit_once('@') {
            Some((name, _)) => (name, Some(self.catalogue.resolve(&asked.reference)?.1)),
            None => (asked.reference.as_str(), None),
        };
        let model = self.catalogue.model(name)?;
        if asked.labels.len() > MOST {
            return Err(ServiceError::TooLarge(format!("a request holds at most {MOST} labels")));
        }
        let mut connection = self.store.read().await?;
        if let Some(key) = &asked.idempotency
            && let Some(replayed) = key.replay::<Reply>(&mut connection).await?
        {
            // What it was about may be forgotten by now.
            let version = model.versions.get(&replayed.value.version).ok_or(ServiceError::VersionNotFound)?;
            return Ok((version.clone(), replayed));
        }
        // The first that is known says which version learns; that the others are its own is seen when they are looked up. In a split a
        // version may predict and not learn; its labels are for the comparison alone.
        let meant: Vec<_> = model.versions.values().filter(|version| only.as_ref().is_none_or(|only| only.id == version.id)).collect();
        let now = store::now();
        let (mut first, mut judged) = (None, false);
        for id in asked.labels.iter().filter_map(|label| label.prediction) {
            let found = store::remembered::find(&mut connection, id.bytes(), &now).await?;
            judged = found.as_ref().is_some_and(|found| found.judged.is_some());
            first = found.and_then(|found| meant.iter().find(|version| version.id == found.version));
            if first.is_some() {
                break;
            }
        }
        drop(connection);
        let Some(version) = first.map(|version| Arc::clone(version)) else {
            return Err(ServiceError::PredictionNotFound((0..asked.labels.len().min(REPORTED)).map(unknown).collect()));
        };
        if !judged {
            check_learns(&version)?;
        }
        let labelling = Labelling::of(&version, asked.labels, meant.iter().map(|version| version.id).collect())?;
        let expected_sequence = expected_sequence(asked.if_match.as_deref(), &version)?;
        // The writer may have to load the state; better here than while everybody waits.
        version.state(&self.store).await?;
        let (reply, answer) = Waiting::here();
        let request = UpdateRequest {
            version: version.clone(),
            cells: Vec::new(),
            events: Vec::new(),
            expected_sequence,
            idempotency: asked.idempotency,
            stream: None,
            labels: Some(labelling),
            reply,
        };
        self.writer.update(request).await?;
        let reply = answer.await.map_err(|_| ServiceError::Unavailable("the server is stopping"))?;
        Ok((version, reply.map_err(by_label)?))
    }
}

/// Refuses to remember what could never be learnt from, nor compared with.
///
/// # Errors
/// The version does not learn and is in no split, or there are too many rows.
fn check_rememberable(version: &Version, rows: usize, judged: bool) -> Result<(), ServiceError> {
    if !judged {
        check_learns(version)?;
    }
    if rows > MOST {
        return Err(ServiceError::TooLarge(format!("a request has at most {MOST} rows remembered")));
    }
    Ok(())
}

fn unknown(place: usize) -> Fault {
    Fault {
        pointer: format!("/labels/{place}/prediction_id"),
        detail: format!("label {}: no prediction of this model is remembered under this id; it may have expired", place + 1),
    }
}

impl Labelling {
    /// The labels in the order of the version's targets.
    fn of(version: &Version, labels: Vec<Label>, meant: Vec<i64>) -> Result<Self, ServiceError> {
        let targets = &version.document.target;
        let (mut faults, mut missing) = (Vec::new(), Vec::new());
        let mut places = HashMap::new();
        let mut found = Vec::with_capacity(labels.len());
        for (place, label) in labels.into_iter().enumerate() {
            let pointer = format!("/labels/{place}");
            let mut fault = |member: &str, what: &str| {
                faults.push(Fault { pointer: format!("{pointer}/{member}"), detail: format!("label {}: {what}", place + 1) });
            };
            let mut values = match (label.value, &version.document.classifier) {
                (value, Some(classifier)) => {
                    let name = match value {
                        Observed::Class(name) if !classifier.boolean => Some(name),
                        Observed::Boolean(value) if classifier.boolean => Some(value.to_string()),
                        _ => None,
                    };
                    #[allow(clippy::cast_precision_loss)] // a class's place
                    let class = name.and_then(|name| classifier.place_of(&name)).map(|class| class as f64);
                    if class.is_none() {
                        let kind = if classifier.boolean { "true or false" } else { "one of the model's `classes`" };
                        fault("value", &format!("`value` is {kind}"));
                    }
                    class.into_iter().collect()
                }
                (Observed::Class(_) | Observed::Boolean(_), None) => {
                    fault(
                        "value",
                        "`value` is a class only for a classifier; here it is a finite number, or for several targets an object of such",
                    );
                    Vec::new()
                }
                (Observed::One(value), None) if targets.len() == 1 => vec![value],
                (Observed::One(_), None) => {
                    fault("value", "the model has several targets: `value` is an object of numbers by target");
                    Vec::new()
                }
                (Observed::ByTarget(by_target), None) => {
                    if by_target.len() != targets.len() || !targets.iter().all(|target| by_target.contains_key(target)) {
                        fault("value", "`value` has every target of the model and nothing else");
                    }
                    targets.iter().filter_map(|target| by_target.get(target).copied()).collect()
                }
            };
            values.push(label.weight);
            let Some(id) = label.prediction else {
                missing.push(unknown(place));
                continue;
            };
            if places.insert(id, place).is_some() {
                fault("prediction_id", "this prediction stands twice in the request");
            }
            found.push((id, values));
        }
        if !faults.is_empty() {
            faults.truncate(REPORTED);
            return Err(ServiceError::Request(faults));
        }
        if !missing.is_empty() {
            missing.truncate(REPORTED);
            return Err(ServiceError::PredictionNotFound(missing));
        }
        Ok(Self { labels: found, meant })
    }

    /// Looks up the rows, in the transaction that learns them.
    ///
    /// # Errors
    /// A prediction is not there, is another version's, or was labelled otherwise.
    pub(crate) async fn open(&self, connection: &mut Connection, version: &Version) -> Result<Opened, ServiceError> {
        let now = store::now();
        let mut opened =
            Opened { cells: Vec::with_capacity(self.labels.len() * version.learning_width()), answers: Vec::new(), judged: Vec::new() };
        let (mut missing, mut conflicts) = (Vec::new(), Vec::new());
        for (place, (id, label)) in self.labels.iter().enumerate() {
            let found = store::remembered::find(connection, id.bytes(), &now).await?;
            let Some(found) = found.filter(|found| self.meant.contains(&found.version)) else {
                missing.push(unknown(place));
                continue;
            };
            let mut conflict = |what: &str| {
                conflicts.push(Fault { pointer: format!("/labels/{place}"), detail: format!("label {}: {what}", place + 1) });
            };
            if found.version != version.id {
                conflict("another version made this prediction than the first one of the request; send its labels apart");
                continue;
            }
            let same = |before: &[f64]| before.iter().map(|value| value.to_bits()).eq(label.iter().map(|value| value.to_bits()));
            let erased = found.learnt.as_ref().is_some_and(|learnt| learnt.answer.is_empty());
            if found.learnt.as_ref().is_some_and(|learnt| !erased && !same(&learnt.label)) {
                conflict("this prediction was labelled before, with another value or weight");
                continue;
            }
            opened.cells.extend_from_slice(&found.cells);
            if erased {
                // They hold the place of a row that is not learnt again.
                opened.cells.resize(opened.cells.len() + version.design.columns().len(), 0.0);
            }
            opened.cells.extend_from_slice(label);
            opened.answers.push(found.learnt.map(|learnt| (learnt.sequence, learnt.answer)));
            opened.judged.push(found.judged.map(|judged| Remembered::read(judged, version.document.target.len())).transpose()?);
        }
        let kind = if missing.is_empty() { ServiceError::LabelConflict } else { ServiceError::PredictionNotFound };
        let mut faults = missing;
        faults.append(&mut conflicts);
        faults.truncate(REPORTED);
        if faults.is_empty() { Ok(opened) } else { Err(kind(faults)) }
    }

    /// Notes what was learnt and answered, and what it says of the members of a split, in the transaction that learns it.
    pub(crate) async fn keep(
        &self,
        connection: &mut Connection,
        version: &Version,
        opened: &Opened,
        reply: &Reply,
    ) -> Result<Compared, ServiceError> {
        // The figures of the experiments that go on, as the transaction has them.
        let mut experiments: HashMap<u64, Option<Scores>> = HashMap::new();
        let mut compared = Compared::default();
        let targets = reply.predictions.len() / self.labels.len().max(1);
        // A version that does not learn answers all the same.
        let learnt = reply.accepted > 0;
        let mut sequence = reply.sequence - reply.accepted;
        for (row, (id, label)) in self.labels.iter().enumerate() {
            if opened.answers.get(row).is_some_and(Option::is_none) {
                sequence += 1;
                let range = row * targets..(row + 1) * targets;
                let answer = [&reply.predictions[range.clone()], &reply.errors[range]].concat();
                store::remembered::set_label(connection, id.bytes(), learnt.then_some(sequence), label, &answer).await?;
                let Some(judged) = opened.judged.get(row).and_then(Option::as_ref) else { continue };
                let scores = match experiments.entry(judged.experiment) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => {
                        let text = store::traffic::scores(connection, judged.experiment).await?;
                        place.insert(text.as_deref().map(read_scores).transpose()?)
                    }
                };
                // One that has ended learns nothing more.
                let Some(scores) = scores else { continue };
                // Of labels it counts whether they were right; what a member could not predict stays NaN.
                let errors: Vec<f64>;
                let (predictions, observed) = match (&version.document.classifier, &label[..targets]) {
                    (Some(_), [class]) => {
                        let error = |label: &f64| if label.is_nan() { *label } else { version.document.error(*class, *label) };
                        errors = judged.predictions.iter().map(error).collect();
                        (&errors, &[0.0][..])
                    }
                    (_, observed) => (&judged.predictions, observed),
                };
                let row = Judged { members: &judged.members, predictions, observed };
                compared.labels += 1;
                compared.changes.extend(scores.count(row).into_iter().map(|change| {
                    let better = change.better;
                    json!({"champion": judged.members[0], "challenger": change.challenger, "target": change.target, "better": better})
                }));
            }
        }
        for (experiment, scores) in experiments {
            let Some(scores) = scores else { continue };
            let text = serde_json::to_string(&scores).map_err(|_| ServiceError::Internal("the scores of a split do not encode"))?;
            store::traffic::set_scores(connection, experiment, &text).await?;
        }
        Ok(compared)
    }
}

/// A row that could not be learnt, named by its label.
fn by_label(error: ServiceError) -> ServiceError {
    let ServiceError::Request(mut faults) = error else { return error };
    for fault in &mut faults {
        if let Some(row) = fault.pointer.strip_prefix("/rows/") {
            fault.pointer = format!("/labels/{row}");
            fault.detail = fault.detail.replacen("row", "label", 1);
        }
    }
    ServiceError::Request(faults)
}

/// Forgets what has expired, at once and then now and again, until the service stops.
pub(crate) async fn sweep(writer: Writer, mut stopping: watch::Receiver<bool>) {
    while !*stopping.borrow() {
        let more =
            writer.run(async |writer: &mut Connection| Ok(store::remembered::forget(writer, &store::now(), SWEEP).await?), |_| {}).await;
        match more {
            Ok(true) => {
                tokio::task::yield_now().await;
                continue;
            }
            Ok(false) => {}
            Err(ServiceError::Unavailable(_)) => return,
            Err(error) => tracing::error!(%error, "forgetting expired predictions failed"),
        }
        // A word that never comes, because the service is gone, is an end as well.
        if tokio::time::timeout(EVERY, stopping.wait_for(|stopping| *stopping)).await.is_ok() {
            return;
        }
    }
}
