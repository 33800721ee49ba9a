//! Traffic shared out between versions: the split in force, who answers in it, shadows, and what is counted.
//!
//! A split hangs on its model in the catalogue, with its members resolved to versions, and moves with it atomically: whoever answers a request
//! holds one such model and sees one state of aliases. Without a split the cost is the look at one pointer. Rows for shadows go
//! through a bounded queue to a thread of their own; where it is full they are dropped and counted, and no reply waits. Figures of labels are
//! written in the transaction of the label; counts of requests and rows are kept in memory, and written now and then and at the end.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

use super::audit::Changed;
use super::catalogue::{Model, Version};
use super::error::ServiceError;
use super::{IdempotencyKey, Replayable, Service};
use crate::frame::rows::Rows;
use crate::frame::{Fault, Input, InputKind, InputSchema, Unseen};
use crate::model::prediction::{Question, answer};
use crate::model::{Plan, Scores, Split, State, Tally};
use crate::store::idempotency::About;
use crate::store::traffic::TrafficRow;
use crate::store::{self, Connection, StoreError};
use crate::telemetry;

/// Requests that may wait for the shadows.
const QUEUE: usize = 1024;
/// Cells that may wait for the shadows: 32 MiB.
const QUEUED_CELLS: usize = 1 << 22;
/// How often counts are written.
const EVERY: Duration = Duration::from_secs(10);

/// What the database holds of a split, beside what is counted.
#[derive(Debug)]
pub(crate) struct Stored {
    plan: Plan,
    experiment: u64,
    revision: u64,
    since: String,
}

impl Stored {
    fn of(row: &TrafficRow) -> Result<Self, ServiceError> {
        let plan = serde_json::from_str(&row.plan).map_err(|_| StoreError::Corrupt("a split of traffic"))?;
        Ok(Self { plan, experiment: row.experiment, revision: row.revision, since: row.since.clone() })
    }

    fn tag(&self) -> String {
        format!("{}-{}", self.experiment, self.revision)
    }
}

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Answers, and is what the others are compared with.
    Champion,
    /// Answers.
    Challenger,
    /// Sees every row and answers nobody.
    Shadow,
}

/// A member of a split.
#[derive(Debug)]
pub struct Member {
    /// Its alias or number, as the plan has it.
    pub name: Arc<str>,
    /// What it does.
    pub role: Role,
    /// Its share of the requests, of 1; 0 for a shadow.
    pub share: f64,
    /// What it means now.
    pub version: Arc<Version>,
    held: Option<Arc<State>>,
    /// What stands under the same is the same model: a version, or a version held at a sequence.
    identity: String,
    /// What was counted of it.
    pub count: Arc<Count>,
    /// Of an arm: what rows that it answers may hold, its own features first; `None` when no other member takes more.
    inputs: Option<InputSchema>,
    /// Of an arm: how each member sees rows that it answers; `None` where it cannot.
    views: Vec<Option<View>>,
}

impl Member {
    /// The sequence at which it is held, if it is.
    #[must_use]
    pub fn sequence(&self) -> Option<u64> {
        self.held.as_ref().map(|state| state.sequence())
    }

    /// What it is to the figures of labels: a version, or a version held at a sequence.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The state by which it answers now.
    fn state(&self) -> Result<Arc<State>, ServiceError> {
        let now = || self.version.state_now().ok_or(ServiceError::Internal("a member of a split is not in memory"));
        self.held.clone().map_or_else(now, Ok)
    }
}

/// What was counted of a member since the split began.
#[derive(Debug, Default)]
pub struct Count {
    requests: AtomicU64,
    rows: AtomicU64,
    dropped: AtomicU64,
    unseen: AtomicU64,
    /// Of a shadow: what it would have answered less what was answered, one tally a target.
    disagreement: Mutex<Vec<Tally>>,
}

/// A [`Count`] at a moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// Requests for which it was chosen.
    pub requests: u64,
    /// Rows answered, or seen by a shadow.
    pub rows: u64,
    /// Rows that a shadow did not see because its queue was full.
    pub dropped: u64,
    /// Rows that a shadow could not predict: a feature of its own was missing, or held what it does not know.
    pub unseen: u64,
    /// Of a shadow: what it would have answered less what was answered, one tally a target.
    pub disagreement: Vec<Tally>,
}

impl Count {
    fn of(counted: Counted) -> Self {
        Self {
            requests: counted.requests.into(),
            rows: counted.rows.into(),
            dropped: counted.dropped.into(),
            unseen: counted.unseen.into(),
            disagreement: Mutex::new(counted.disagreement),
        }
    }

    /// As it stands.
    #[must_use]
    pub fn now(&self) -> Counted {
        Counted {
            requests: self.requests.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            unseen: self.unseen.load(Ordering::Relaxed),
            disagreement: self.disagreement.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Counts rows that a shadow was shown, beside what was answered.
    fn shadowed(&self, shadow: &[f64], answered: &[f64], targets: usize, error: impl Fn(f64, f64) -> f64) {
        let mut seen = 0;
        let mut tallies = self.disagreement.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.resize(targets, Tally::default());
        for (shadow, answered) in shadow.chunks_exact(targets).zip(answered.chunks_exact(targets)) {
            if shadow.iter().all(|value| value.is_finite()) {
                seen += 1;
                for ((tally, shadow), answered) in tallies.iter_mut().zip(shadow).zip(answered) {
                    tally.count(error(*shadow, *answered));
                }
            }
        }
        drop(tallies);
        let rows = (answered.len() / targets) as u64;
        self.rows.fetch_add(seen, Ordering::Relaxed);
        self.unseen.fetch_add(rows - seen, Ordering::Relaxed);
        metrics::counter!(telemetry::SHADOW_ROWS).increment(seen);
    }
}

/// What an experiment counts; it outlives changes of the plan and moves of aliases.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Requests without a key so far.
    turn: AtomicU64,
    members: Mutex<BTreeMap<String, Arc<Count>>>,
    /// What was last written.
    written: Mutex<String>,
}

impl Counters {
    fn read(text: &str) -> Result<Self, ServiceError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let counted: BTreeMap<String, Counted> =
            serde_json::from_str(text).map_err(|_| StoreError::Corrupt("the counts of a split of traffic"))?;
        let turn = counted.values().map(|counted| counted.requests).sum::<u64>();
        let members = counted.into_iter().map(|(name, counted)| (name, Arc::new(Count::of(counted)))).collect();
        Ok(Self { turn: turn.into(), members: Mutex::new(members), written: Mutex::new(text.to_owned()) })
    }

    fn of(&self, name: &str, identity: &str) -> Arc<Count> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).entry(format!("{name} {identity}")).or_default().clone()
    }

    /// The counts as text, unless they are what was last written.
    fn changed(&self) -> Option<String> {
        let counted: BTreeMap<String, Counted> =
            self.members.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(name, count)| (name.clone(), count.now())).collect();
        let text = serde_json::to_string(&counted).ok()?;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        (*written != text).then(|| {
            written.clone_from(&text);
            text
        })
    }
}

/// A split with its members as they stand.
#[derive(Debug)]
pub struct Traffic {
    stored: Arc<Stored>,
    counters: Arc<Counters>,
    split: Split,
    /// Arms in the order of the plan, then shadows.
    members: Vec<Member>,
    /// The champion's place.
    champion: usize,
}

impl Traffic {
    /// The split of a model that was read from the database.
    pub(crate) fn read(model: &Model, row: &TrafficRow) -> Result<Option<Self>, ServiceError> {
        Ok(Self::resolved(model, Arc::new(Stored::of(row)?), Arc::new(Counters::read(&row.counts)?)))
    }

    /// The same split when an alias may have moved.
    pub(crate) fn again(&self, model: &Model) -> Option<Self> {
        Self::resolved(model, self.stored.clone(), self.counters.clone())
    }

    /// The members of a plan as the model's aliases stand. `None` if one is not there, which no change of the database leaves.
    fn resolved(model: &Model, stored: Arc<Stored>, counters: Arc<Counters>) -> Option<Self> {
        let (plan, split) = (&stored.plan, Split::new(&model.name, &stored.plan));
        let champion = plan.arms.iter().position(|arm| arm.name == plan.champion)?;
        let mut members = Vec::new();
        for (place, name) in plan.names().enumerate() {
            let found = model.find(name).map(|(version, held)| (version.clone(), held));
            let Ok((version, held)) = found else {
                tracing::error!(model = model.name, member = name, "a split names a version that is not there; it is not in force");
                return None;
            };
            let identity = match &held {
                Some(state) => format!("{}@{}", version.number, state.sequence()),
                None => version.number.to_string(),
            };
            let arm = place < plan.arms.len();
            let role = if place == champion { Role::Champion } else { [Role::Shadow, Role::Challenger][usize::from(arm)] };
            let share = if arm { split.share(place) } else { 0.0 };
            let count = counters.of(name, &identity);
            members.push(Member { name: name.into(), role, share, version, held, identity, count, inputs: None, views: Vec::new() });
        }
        for arm in 0..plan.arms.len() {
            let inputs = inputs_of(arm, &members);
            let row = inputs.as_ref().unwrap_or(&members[arm].version.inputs);
            let answering = &members[arm].version.document;
            let view = |member: &Member| {
                member.version.document.predicts_as(answering).then(|| View::of(row, &member.version.inputs).ok()).flatten()
            };
            members[arm].views = members.iter().map(view).collect();
            members[arm].inputs = inputs;
        }
        Some(Self { stored, counters, split, members, champion })
    }

    /// The arm of a request: by its key, if it has one, else in turn.
    pub(crate) fn arm(&self, key: Option<&[u8]>) -> usize {
        match key {
            Some(key) => self.split.of_key(key),
            None => self.split.of_turn(self.counters.turn.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// The header that holds a request's key.
    #[must_use]
    pub fn header(&self) -> Option<&str> {
        self.stored.plan.header.as_deref()
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.stored.plan
    }

    /// When the split began.
    #[must_use]
    pub fn since(&self) -> &str {
        &self.stored.since
    }

    /// The inner text of its ETag.
    #[must_use]
    pub fn tag(&self) -> String {
        self.stored.tag()
    }

    /// Arms in the order of the plan, then shadows.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The champion.
    #[must_use]
    pub fn champion(&self) -> &Member {
        &self.members[self.champion]
    }

    /// The version behind an arm that was chosen for a request, and the state by which it answers now.
    pub(crate) fn chosen(&self, arm: usize) -> Result<(Arc<Version>, Arc<State>), ServiceError> {
        let member = &self.members[arm];
        member.count.requests.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(telemetry::SPLIT_REQUESTS).increment(1);
        Ok((member.version.clone(), member.state()?))
    }

    pub(crate) fn inputs(&self, arm: usize) -> &InputSchema {
        self.members[arm].inputs.as_ref().unwrap_or(&self.members[arm].version.inputs)
    }

    /// The cells of an arm's own features.
    pub(crate) fn own<'a>(&self, arm: usize, rows: &'a Rows) -> Cow<'a, [f64]> {
        let (own, width) = (self.members[arm].version.inputs.len(), self.inputs(arm).len());
        if own == width {
            return Cow::Borrowed(&rows.values);
        }
        Cow::Owned(rows.values.chunks_exact(width).flat_map(|row| &row[..own]).copied().collect())
    }

    pub(crate) fn name(&self, arm: usize) -> Arc<str> {
        self.members[arm].name.clone()
    }

    /// Counts rows that an arm has answered.
    pub(crate) fn answered(&self, arm: usize, rows: usize) {
        self.members[arm].count.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    fn shadows(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.members.iter().enumerate().filter(|(_, member)| member.role == Role::Shadow)
    }

    /// What a member predicts for rows that an arm answers: n×q, NaN for a row that it cannot see.
    fn predicted(&self, arm: usize, member: usize, values: &[f64], rows: usize) -> Result<Option<Vec<f64>>, ServiceError> {
        let Some(view) = &self.members[arm].views[member] else { return Ok(None) };
        let (member, width) = (&self.members[member], self.inputs(arm).len());
        let state = member.state()?;
        let targets = member.version.document.target.len().max(1);
        let mut cells = Vec::with_capacity(rows * member.version.inputs.len());
        let seen: Vec<bool> = (0..rows).map(|row| view.cells(&values[row * width..(row + 1) * width], &mut cells)).collect();
        let shown = seen.iter().filter(|seen| **seen).count();
        let version = &member.version;
        let cells = version.recalled(&state, version.design.horizon(), &cells, version.inputs.len());
        let answer = answer(&state, &version.design, version.document.classifier.as_ref(), shown, &cells, Question::default());
        let mut answers = answer.predictions.chunks_exact(targets);
        let mut predictions = Vec::with_capacity(rows * targets);
        for seen in seen {
            match seen.then(|| answers.next()).flatten() {
                Some(row) => predictions.extend_from_slice(row),
                None => predictions.extend(std::iter::repeat_n(f64::NAN, targets)),
            }
        }
        Ok(Some(predictions))
    }

    /// What all members predict for rows that an arm has answered, to be remembered: who they are, and n×m×q predictions. Shadows have
    /// seen the rows then.
    pub(crate) fn judged(&self, arm: usize, values: &[f64], rows: usize, answered: &[f64]) -> Result<(String, Vec<f64>), ServiceError> {
        let targets = self.members[arm].version.document.target.len().max(1);
        let own = &self.members[arm].identity;
        // The champion stands first, whether it could predict the rows or not: the others are compared with it.
        let order = std::iter::once(self.champion).chain((0..self.members.len()).filter(|member| *member != self.champion));
        let mut found: Vec<(&str, Vec<f64>)> = Vec::with_capacity(self.members.len());
        for place in order {
            let member = &self.members[place];
            // What stands under two names is one, and predicts once.
            if found.iter().all(|(identity, _)| *identity != member.identity) {
                let predictions = match self.predicted(arm, place, values, rows)? {
                    _ if member.identity == *own => answered.to_vec(),
                    Some(predictions) => predictions,
                    None => vec![f64::NAN; answered.len()],
                };
                found.push((&member.identity, predictions));
            }
            if member.role == Role::Shadow
                && let Some((_, predictions)) = found.iter().find(|(identity, _)| *identity == member.identity)
            {
                let error = |shadow, answered| member.version.document.error(shadow, answered);
                member.count.shadowed(predictions, answered, targets, error);
            }
        }
        let identities: Vec<&str> = found.iter().map(|(identity, _)| *identity).collect();
        let own = identities.iter().position(|identity| identity == own).unwrap_or_default();
        let mut predictions = Vec::with_capacity(rows * found.len() * targets);
        for row in 0..rows {
            found.iter().for_each(|(_, all)| predictions.extend_from_slice(&all[row * targets..(row + 1) * targets]));
        }
        Ok((format!("{}:{own}:{}", self.stored.experiment, identities.join(",")), predictions))
    }
}

/// What rows that an arm answers may hold: its own features, and those that only other members take, which may be missing.
fn inputs_of(arm: usize, members: &[Member]) -> Option<InputSchema> {
    let own = &members[arm].version.inputs;
    let mut inputs = own.inputs().to_vec();
    for input in members.iter().flat_map(|member| member.version.inputs.inputs()) {
        if inputs.iter().all(|known| known.name != input.name) {
            let kind = match &input.kind {
                InputKind::Category { levels, .. } => InputKind::Category { levels: levels.clone(), unseen: Unseen::Baseline },
                // What no feature of the arm minds is no reason to refuse a row.
                InputKind::Above(_) => InputKind::Number,
                kind => kind.clone(),
            };
            inputs.push(Input { name: input.name.clone(), kind, required: false });
        }
    }
    (inputs.len() > own.len()).then(|| InputSchema::new(inputs))
}

/// How a member's cells are made from a row that was parsed for another.
#[derive(Debug)]
struct View(Vec<(Cell, Required)>);

/// Whether a member cannot see a row without a cell.
type Required = bool;

#[derive(Debug)]
enum Cell {
    /// The same number, if it is above what it has to be.
    Number { place: usize, above: Option<f64> },
    /// The level of the same text; NaN where there is none.
    Level {
        place: usize,
        levels: Vec<f64>,
        /// What becomes of a level that was not known when the row was parsed.
        unknown: f64,
    },
    /// The row does not hold it.
    Absent,
}

impl View {
    /// How a member of `inputs` sees rows of `row`.
    ///
    /// # Errors
    /// The name of a column that is a category to one and a number to the other.
    fn of(row: &InputSchema, inputs: &InputSchema) -> Result<Self, String> {
        let cell = |input: &Input| {
            let Some(place) = row.place_of(&input.name) else { return Ok(Cell::Absent) };
            match (&row.inputs()[place].kind, &input.kind) {
                (InputKind::Category { levels: given, .. }, InputKind::Category { levels: own, unseen }) => {
                    let baseline = if *unseen == Unseen::Baseline { -1.0 } else { f64::NAN };
                    let mut levels = vec![baseline; given.len()];
                    for (level, index) in given {
                        if let (Some(cell), Some(own)) = (levels.get_mut(*index as usize), own.get(level)) {
                            *cell = f64::from(*own);
                        }
                    }
                    // A level that the parser did not know may be one that this member does.
                    let unknown = if own.keys().all(|level| given.contains_key(level)) { baseline } else { f64::NAN };
                    Ok(Cell::Level { place, levels, unknown })
                }
                (InputKind::Timestamp, InputKind::Timestamp) => Ok(Cell::Number { place, above: None }),
                (InputKind::Category { .. } | InputKind::Timestamp, _) | (_, InputKind::Category { .. } | InputKind::Timestamp) => {
                    Err(input.name.clone())
                }
                (_, InputKind::Above(above)) => Ok(Cell::Number { place, above: Some(*above) }),
                (_, _) => Ok(Cell::Number { place, above: None }),
            }
        };
        inputs.inputs().iter().map(|input| Ok((cell(input)?, input.required))).collect::<Result<_, _>>().map(Self)
    }

    /// Adds the member's cells; adds none, and `false`, when it cannot see the row.
    fn cells(&self, row: &[f64], cells: &mut Vec<f64>) -> bool {
        let start = cells.len();
        for (cell, required) in &self.0 {
            let value = match cell {
                Cell::Number { place, above: Some(above) } if row[*place] <= *above => {
                    cells.truncate(start);
                    return false;
                }
                Cell::Number { place, .. } => row[*place],
                Cell::Level { place, levels, unknown } => match row[*place] {
                    index if index.is_nan() => index,
                    index if index < 0.0 => *unknown,
                    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a level's index: small, whole, not negative
                    index => levels.get(index as usize).copied().unwrap_or(f64::NAN),
                },
                Cell::Absent => f64::NAN,
            };
            if value.is_nan() && *required {
                cells.truncate(start);
                return false;
            }
            cells.push(value);
        }
        true
    }
}

/// Rows on their way to the shadows.
struct Shown {
    traffic: Arc<Traffic>,
    arm: usize,
    values: Vec<f64>,
    rows: usize,
    answered: Vec<f64>,
}

/// The queue of the shadows, and the thread behind it.
#[derive(Debug)]
pub(crate) struct Shadows {
    queue: SyncSender<Shown>,
    cells: Arc<AtomicUsize>,
}

impl Shadows {
    /// Starts the thread; it ends when the handle is dropped.
    pub(crate) fn start() -> Result<Self, std::io::Error> {
        let (queue, shown) = std::sync::mpsc::sync_channel::<Shown>(QUEUE);
        let cells = Arc::new(AtomicUsize::new(0));
        let waiting = cells.clone();
        std::thread::Builder::new().name("lsqd-shadows".to_owned()).spawn(move || {
            for Shown { traffic, arm, values, rows, answered } in shown {
                let document = &traffic.members[arm].version.document;
                for (place, shadow) in traffic.shadows() {
                    // A shadow in which something fails has not seen the rows; nobody waits for it.
                    let predicted = traffic.predicted(arm, place, &values, rows).ok().flatten();
                    let predicted = predicted.unwrap_or_else(|| vec![f64::NAN; answered.len()]);
                    let error = |shadow, answered| document.error(shadow, answered);
                    shadow.count.shadowed(&predicted, &answered, document.target.len().max(1), error);
                }
                waiting.fetch_sub(values.len() + answered.len(), Ordering::Relaxed);
            }
        })?;
        Ok(Self { queue, cells })
    }

    /// Shows rows that an arm has answered to the shadows of its split, later; drops them when too much waits.
    pub(crate) fn show(&self, traffic: &Arc<Traffic>, arm: usize, rows: &Rows, answered: &[f64]) {
        if traffic.shadows().next().is_none() || rows.count == 0 {
            return;
        }
        let size = rows.values.len() + answered.len();
        let fits = self.cells.fetch_add(size, Ordering::Relaxed) + size <= QUEUED_CELLS;
        let shown = || Shown { traffic: traffic.clone(), arm, values: rows.values.clone(), rows: rows.count, answered: answered.to_vec() };
        // Neither waits: a queue that is full says so.
        if fits && self.queue.try_send(shown()).is_ok() {
            return;
        }
        self.cells.fetch_sub(size, Ordering::Relaxed);
        for (_, shadow) in traffic.shadows() {
            shadow.count.dropped.fetch_add(rows.count as u64, Ordering::Relaxed);
        }
        metrics::counter!(telemetry::SHADOW_DROPPED).increment(rows.count as u64);
    }
}

/// A split to be put in force.
#[derive(Debug)]
pub struct SetTraffic {
    /// The model.
    pub model: String,
    /// Members and shares.
    pub plan: Plan,
    /// Where in the request the arms stand, for faults.
    pub split: &'static str,
    /// ETags of which the split in force must carry one.
    pub if_match: Option<Vec<String>>,
    /// The key with the request's fingerprint.
    pub idempotency: Option<IdempotencyKey>,
}

/// A split that was put in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitSet {
    /// The model.
    pub model: String,
    /// Whether there was none before.
    pub created: bool,
    /// Members and shares.
    pub plan: Plan,
    /// The inner text of its ETag.
    pub tag: String,
    /// When it began.
    pub since: String,
}

impl Service {
    /// Puts a split in force, or changes the one that is. All its members are in memory then, and the next request is answered by it.
    ///
    /// # Errors
    /// No such model; a member is not there, or cannot be compared with the champion; the split has another ETag.
    pub async fn set_traffic(self: &Arc<Self>, asked: SetTraffic) -> Result<Replayable<SplitSet>, ServiceError> {
        let SetTraffic { model, plan, split, if_match, idempotency } = asked;
        let model = self.catalogue.model(&model)?;
        check_members(&model, &plan, split)?;
        for name in plan.names() {
            model.find(name)?.0.state(&self.store).await?;
        }
        let publisher = self.clone();
        self.writer
            .change(
                async move |writer: &mut Connection| {
                    if let Some(key) = &idempotency
                        && let Some(replayed) = key.replay::<SplitSet>(writer).await?
                    {
                        return Ok(Changed::nothing((replayed, None)));
                    }
                    let before = store::traffic::find(writer, model.id).await?;
                    check_tag(before.as_ref(), if_match.as_deref())?;
                    // What was there a moment ago may be gone.
                    for (place, name) in plan.names().enumerate() {
                        if !is_there(writer, model.id, name).await? {
                            return Err(ServiceError::Request(vec![absent(&plan, split, place)]));
                        }
                    }
                    let text = serde_json::to_string(&plan).map_err(|_| ServiceError::Internal("a split does not encode"))?;
                    let row = store::traffic::put(writer, model.id, &text).await?;
                    let tag = Stored::of(&row)?.tag();
                    let set = SplitSet { model: model.name.clone(), created: before.is_none(), plan, tag, since: row.since.clone() };
                    if let Some(key) = &idempotency {
                        key.remember(writer, &set, About::Nothing).await?;
                    }
                    let (name, before, after) = (model.name.clone(), before.as_ref().map(planned), planned(&row));
                    Ok(Changed::new((Replayable::fresh(set), Some(row)), "traffic.set", &name, before, Some(after)))
                },
                move |(set, row)| {
                    let Some(row) = row else { return };
                    publisher.catalogue.change(&set.value.model, |model| {
                        model.map(|mut model| {
                            // What was counted goes on.
                            let stored = Stored::of(row).map(Arc::new);
                            let counters = model.traffic.as_ref().map(|traffic| traffic.counters.clone()).unwrap_or_default();
                            model.traffic = stored.ok().and_then(|stored| Traffic::resolved(&model, stored, counters)).map(Arc::new);
                            model.damage = None;
                            model
                        })
                    });
                    let plan = &set.value.plan;
                    let arms: serde_json::Map<_, _> = plan.arms.iter().map(|arm| (arm.name.clone(), json!(arm.share))).collect();
                    let told = json!({"split": arms, "shadow": plan.shadows, "champion": plan.champion});
                    tracing::info!(model = set.value.model, split = %told, "a split of traffic is in force");
                    publisher.catalogue.channel(&set.value.model).send("traffic", &told);
                },
            )
            .await
            .map(|(set, _)| set)
    }

    /// Ends the split of a model: `served` answers everything again. What was counted goes with it.
    ///
    /// # Errors
    /// No such model; it has no split, or that has another ETag.
    pub async fn end_traffic(self: &Arc<Self>, model: &str, if_match: Option<Vec<String>>) -> Result<(), ServiceError> {
        let model = self.catalogue.model(model)?;
        let publisher = self.clone();
        self.writer
            .change(
                async move |writer: &mut Connection| {
                    let before = store::traffic::find(writer, model.id).await?;
                    check_tag(before.as_ref(), if_match.as_deref())?;
                    let before = before.ok_or(ServiceError::TrafficNotFound)?;
                    store::traffic::remove(writer, model.id).await?;
                    let name = model.name.clone();
                    Ok(Changed::new(name.clone(), "traffic.end", &name, Some(planned(&before)), None))
                },
                move |name| {
                    publisher.catalogue.change(name, |model| {
                        model.map(|mut model| {
                            model.traffic = None;
                            model.damage = None;
                            model
                        })
                    });
                    tracing::info!(model = name, "a split of traffic has ended");
                    publisher.catalogue.channel(name).send("traffic", &json!({"split": null, "shadow": [], "champion": null}));
                },
            )
            .await?;
        Ok(())
    }

    /// The split of a model as it stands, and what the labels say.
    ///
    /// # Errors
    /// No such model, or it has no split.
    pub async fn traffic(&self, model: &str) -> Result<(Arc<Model>, Arc<Traffic>, Scores), ServiceError> {
        let model = self.catalogue.model(model)?;
        let traffic = model.traffic.clone().ok_or(ServiceError::TrafficNotFound)?;
        let mut connection = self.store.read().await?;
        let scores = store::traffic::scores(&mut connection, traffic.stored.experiment).await?;
        Ok((model, traffic, read_scores(scores.as_deref().unwrap_or_default())?))
    }

    /// Writes what was counted since the last time.
    pub async fn write_counts(&self) {
        for model in self.catalogue.all().values() {
            let Some(traffic) = &model.traffic else { continue };
            let Some(text) = traffic.counters.changed() else { continue };
            let experiment = traffic.stored.experiment;
            let written = self
                .writer
                .run(async move |writer: &mut Connection| Ok(store::traffic::set_counts(writer, experiment, &text).await?), |()| {})
                .await;
            if let Err(error) = written {
                // They are written with the next ones; what is lost by a crash is the count of some seconds.
                tracing::warn!(model = model.name, %error, "the counts of a split could not be written");
            }
        }
    }
}

/// Writes counts now and then, for as long as there is a service. The last ones are written by who ends it.
pub(crate) async fn follow(service: Weak<Service>, mut stopping: watch::Receiver<bool>) {
    loop {
        // A word that never comes, because the service is gone, is an end as well.
        if tokio::time::timeout(EVERY, stopping.wait_for(|stopping| *stopping)).await.is_ok() {
            return;
        }
        let Some(service) = service.upgrade() else { return };
        service.write_counts().await;
    }
}

/// The members of a plan are there, and can be compared with the champion on the same rows.
fn check_members(model: &Model, plan: &Plan, split: &str) -> Result<(), ServiceError> {
    let mut faults = Vec::new();
    let champion = model.find(&plan.champion).ok().map(|(version, _)| version.clone());
    for (place, name) in plan.names().enumerate() {
        let Ok((version, _)) = model.find(name) else {
            faults.push(absent(plan, split, place));
            continue;
        };
        let Some(champion) = &champion else { continue };
        let pointer = pointer(plan, split, place);
        if !version.document.predicts_as(&champion.document) {
            faults.push(Fault { pointer, detail: format!("{name:?} does not predict what {:?} does", plan.champion) });
        } else if let Err(column) = View::of(&champion.inputs, &version.inputs) {
            let detail = format!("{column:?} is a category to one of {name:?} and {:?}, and a number to the other", plan.champion);
            faults.push(Fault { pointer, detail });
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(ServiceError::Request(faults)) }
}

fn pointer(plan: &Plan, split: &str, place: usize) -> String {
    match plan.arms.get(place) {
        Some(arm) => format!("{split}/{}", crate::frame::escaped(&arm.name)),
        None => format!("/shadow/{}", place - plan.arms.len()),
    }
}

fn absent(plan: &Plan, split: &str, place: usize) -> Fault {
    let name = plan.names().nth(place).unwrap_or_default();
    Fault { pointer: pointer(plan, split, place), detail: format!("the model has no alias or version {name:?}") }
}

async fn is_there(connection: &mut Connection, model: i64, name: &str) -> Result<bool, ServiceError> {
    Ok(match name.parse::<u64>() {
        Ok(number) => store::models::has_version(connection, model, number).await?,
        Err(_) => store::models::alias_exists(connection, model, name).await?,
    })
}

fn check_tag(row: Option<&TrafficRow>, if_match: Option<&[String]>) -> Result<(), ServiceError> {
    let Some(tags) = if_match else { return Ok(()) };
    let current = row.map(Stored::of).transpose()?.map(|stored| stored.tag());
    match current {
        Some(current) if tags.iter().any(|tag| tag == "*" || *tag == current) => Ok(()),
        _ => Err(ServiceError::Precondition),
    }
}

/// Refuses to let go of an alias or a version that the model's split names.
pub(super) async fn check_unnamed(connection: &mut Connection, model: i64, name: &str) -> Result<(), ServiceError> {
    let Some(row) = store::traffic::find(connection, model).await? else { return Ok(()) };
    if Stored::of(&row)?.plan.has(name) {
        return Err(ServiceError::Conflict("the model's split of traffic names it; change or end the split first"));
    }
    Ok(())
}

/// A split, as the audit log has it.
fn planned(row: &TrafficRow) -> serde_json::Value {
    json!({"revision": row.revision, "plan": serde_json::from_str::<serde_json::Value>(&row.plan).unwrap_or_default()})
}

/// What the labels say, from its stored form.
pub(super) fn read_scores(text: &str) -> Result<Scores, ServiceError> {
    if text.is_empty() {
        return Ok(Scores::default());
    }
    Ok(serde_json::from_str(text).map_err(|_| StoreError::Corrupt("the scores of a split of traffic"))?)
}

/// What the members of a split predicted for a remembered row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Remembered {
    /// The experiment in which they did.
    pub(crate) experiment: u64,
    /// Who, the champion first.
    pub(crate) members: Vec<String>,
    /// m×q.
    pub(crate) predictions: Vec<f64>,
    /// The place of the one that answered.
    answered: usize,
}

impl Remembered {
    /// From its stored form, as [`Traffic::judged`] made it.
    pub(crate) fn read((text, predictions): (String, Vec<f64>), targets: usize) -> Result<Self, ServiceError> {
        let mut parts = text.splitn(3, ':');
        let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok());
        let (experiment, answered) = (number(), number());
        let members: Vec<String> = parts.next().unwrap_or_default().split(',').map(str::to_owned).collect();
        match (experiment, answered.and_then(|place| usize::try_from(place).ok())) {
            (Some(experiment), Some(answered)) if answered < members.len() && predictions.len() == members.len() * targets => {
                Ok(Self { experiment, members, predictions, answered })
            }
            _ => Err(StoreError::Corrupt("the predictions of a split of traffic").into()),
        }
    }

    /// What was answered, one value a target.
    pub(crate) fn answered(&self) -> &[f64] {
        let targets = self.predictions.len() / self.members.len().max(1);
        &self.predictions[self.answered * targets..(self.answered + 1) * targets]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn number(name: &str) -> Input {
        Input { name: name.to_owned(), kind: InputKind::Number, required: true }
    }

    fn category(name: &str, levels: &[&str], unseen: Unseen) -> Input {
        let levels = (0..).zip(levels).map(|(index, level)| ((*level).to_owned(), index)).collect();
        Input { name: name.to_owned(), kind: InputKind::Category { levels, unseen }, required: true }
    }

    #[test]
    fn a_member_sees_a_row_by_the_names_and_levels_it_knows() {
        let row = InputSchema::new(vec![number("x"), category("c", &["a", "b", "d"], Unseen::Baseline), number("z")]);
        let own = InputSchema::new(vec![category("c", &["b", "a"], Unseen::Error), number("x")]);
        let lenient = InputSchema::new(vec![category("c", &["b", "a"], Unseen::Baseline)]);
        let wider = InputSchema::new(vec![category("c", &["b", "e"], Unseen::Baseline)]);
        let cells = |inputs: &InputSchema, values: &[f64]| {
            let mut cells = vec![9.0];
            let seen = View::of(&row, inputs).unwrap().cells(values, &mut cells);
            assert_eq!(cells.len() > 1, seen);
            cells.split_off(1)
        };
        assert_eq!(cells(&own, &[7.0, 0.0, 1.0]), [1.0, 7.0]);
        assert_eq!(cells(&own, &[7.0, 1.0, f64::NAN]), [0.0, 7.0]);
        assert_eq!((cells(&own, &[7.0, 2.0, 1.0]), cells(&own, &[7.0, -1.0, 1.0])), (vec![], vec![]), "a level that it does not know");
        assert_eq!((cells(&lenient, &[7.0, 2.0, 1.0]), cells(&lenient, &[7.0, -1.0, 1.0])), (vec![-1.0], vec![-1.0]));
        assert_eq!(cells(&wider, &[7.0, -1.0, 1.0]), [0.0; 0], "the text may be a level of its own");
        assert_eq!(cells(&InputSchema::new(vec![number("y")]), &[7.0, 0.0, 1.0]), [0.0; 0]);
        assert_eq!(View::of(&row, &InputSchema::new(vec![number("c")])).unwrap_err(), "c");
        let of = |kind, required| InputSchema::new(vec![Input { name: "x".to_owned(), kind, required }]);
        let above = of(InputKind::Above(1.0), true);
        assert_eq!((cells(&above, &[7.0, 0.0, 1.0]), cells(&above, &[1.0, 0.0, 1.0])), (vec![7.0], vec![]), "a number without a logarithm");
        assert_eq!(cells(&of(InputKind::Number, true), &[f64::NAN, 0.0, 1.0]), [0.0; 0]);
        assert!(cells(&of(InputKind::Number, false), &[f64::NAN, 0.0, 1.0])[0].is_nan(), "what it fills in by itself");
        assert_eq!(View::of(&row, &of(InputKind::Timestamp, true)).unwrap_err(), "x");
    }

    #[test]
    fn what_was_remembered_reads_back() {
        let read = |text: &str, values: &[f64]| Remembered::read((text.to_owned(), values.to_vec()), 2);
        let found = read("17:1:3,2@5", &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(
            (found.experiment, found.answered(), found.members.as_slice()),
            (17, &[3.0, 4.0][..], &["3".to_owned(), "2@5".to_owned()][..])
        );
        for (text, values) in [("17:2:3,2", &[1.0, 2.0, 3.0, 4.0][..]), ("17:0:3", &[1.0]), ("x:0:3", &[1.0, 2.0]), ("", &[1.0, 2.0])] {
            assert!(read(text, values).is_err(), "{text}");
        }
    }

    #[test]
    fn counts_are_written_when_they_change_and_come_back() {
        let counters = Counters::default();
        let count = counters.of("challenger", "2");
        count.requests.fetch_add(3, Ordering::Relaxed);
        count.shadowed(&[1.0, f64::NAN], &[0.5, 1.0], 1, |shadow, answered| shadow - answered);
        let text = counters.changed().unwrap();
        assert_eq!(counters.changed(), None);
        let again = Counters::read(&text).unwrap();
        assert_eq!((again.changed(), again.turn.load(Ordering::Relaxed)), (None, 3));
        let counted = again.of("challenger", "2").now();
        assert_eq!((counted.requests, counted.rows, counted.unseen, counted.disagreement[0].rows), (3, 1, 1, 1));
        assert_eq!(again.of("challenger", "3").now(), Counted::default());
    }
}
