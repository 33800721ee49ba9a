//! The models in memory, read without a lock.
//!
//! The map of models sits behind an atomic pointer, and so does each version's state: a prediction loads two pointers and never waits,
//! whatever is being fitted or learnt. Only the writer publishes, after its commit; it copies the small parts of the map that change.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::OnceCell;

use super::error::ServiceError;
use super::events::Channel;
use super::inputs::Watch;
use super::learn;
use super::traffic::Traffic;
use crate::features::{Design, RawColumn};
use crate::frame::{Input, InputKind, InputSchema, Unseen};
use crate::model::{Document, Estimator, Memory, Penalty, State, name};
use crate::store::models::{AliasRow, ModelRow, VersionRow};
use crate::store::traffic::TrafficRow;
use crate::store::{self, Store, StoreError};

/// The alias behind `/v1/models/{name}`.
pub(crate) const SERVED: &str = "served";
/// Always the newest version; not stored and not to be moved.
pub(crate) const LATEST: &str = "latest";

/// How damage to a version's document is named.
const DOCUMENT: &str = "what was fitted, and how,";

/// Records of the log that are read at once.
const RECORDS: u32 = 256;
/// States of the past that a version keeps in memory.
const PAST: usize = 8;

/// A version as it is served.
pub struct Version {
    pub(crate) id: i64,
    /// The model's name.
    pub model: String,
    /// Its number.
    pub number: u64,
    /// When it was stored.
    pub created_at: String,
    /// What was fitted and how.
    pub document: Document,
    /// Cells of a row to a row of X.
    pub design: Design,
    /// What a row to predict holds: one cell a column of the design.
    pub inputs: InputSchema,
    /// What a row to learn from holds: the features, the targets, and a weight when the fit had one.
    pub update_inputs: InputSchema,
    /// What a step of a forecast holds: what a row to predict does, past values apart, and columns of which only past values are taken;
    /// nothing where no past values are taken.
    pub(crate) forecast_inputs: InputSchema,
    /// By column of which past values are taken, its place among the cells of a row to learn from.
    lagged: Vec<usize>,
    /// Who is told what it learns.
    pub(crate) events: Arc<Channel>,
    /// What changes of it.
    live: Arc<Live>,
    /// What it was asked to predict, from the first row on, if that is watched.
    pub(super) watch: OnceLock<Option<Arc<Watch>>>,
}

/// What changes of a version. It is shared with the version that takes its place when it has unlearnt rows of its dataset, so that a request
/// which holds the old one learns and reads the same state.
#[derive(Default)]
struct Live {
    /// Loaded at start for versions behind an alias, on first use for the others.
    state: OnceCell<ArcSwap<State>>,
    /// What of it is damaged, so that there is no state; found when it was to be loaded.
    damage: OnceLock<&'static str>,
    past: Mutex<Past>,
    /// One erasure at a time.
    erasing: Arc<tokio::sync::Mutex<()>>,
}

/// States of the past that were asked for.
#[derive(Default)]
struct Past {
    /// The latest last.
    states: VecDeque<Arc<State>>,
    /// How often they were forgotten: one that was being loaded meanwhile is not to be kept.
    forgotten: u64,
}

impl std::fmt::Debug for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Version").field("model", &self.model).field("number", &self.number).finish_non_exhaustive()
    }
}

impl Version {
    pub(crate) fn new(model: &str, row: &VersionRow, state: Option<State>, events: Arc<Channel>) -> Result<Self, ServiceError> {
        let document = row.document.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let document: Document = document.ok_or(StoreError::Corrupt(DOCUMENT))?;
        let state = state.map_or_else(OnceCell::new, |state| OnceCell::new_with(Some(ArcSwap::from_pointee(state))));
        let live = Arc::new(Live { state, ..Live::default() });
        Ok(Self::of((row.id, row.version), model, &row.created_at, document, events, live))
    }

    /// The same version with another document: its features and targets are those of this one.
    pub(crate) fn with_document(&self, document: Document) -> Self {
        let same = document.inputs == self.document.inputs;
        let changed = Self::of((self.id, self.number), &self.model, &self.created_at, document, self.events.clone(), self.live.clone());
        // Beside other rows of training everything is counted anew.
        if same && let Some(watch) = self.watch.get() {
            return Self { watch: watch.clone().into(), ..changed };
        }
        changed
    }

    fn of((id, number): (i64, u64), model: &str, created_at: &str, document: Document, events: Arc<Channel>, live: Arc<Live>) -> Self {
        let design = document.design();
        let features: Vec<Input> = design.columns().iter().map(RawColumn::input).collect();
        let mut learning = features.clone();
        // Later rows take values of columns that are themselves no features, nor targets.
        let series = |name: &String, required| Input { name: name.clone(), kind: InputKind::Number, required };
        let known = |name: &&String| features.iter().all(|input| input.name != **name) && !document.target.contains(name);
        let carried: Vec<&String> = design.lagged().iter().filter(known).collect();
        learning.extend(carried.iter().map(|name| series(name, true)));
        let own = features[..design.own_columns()].iter().cloned();
        let forecast = own.chain(carried.iter().map(|name| series(name, false))).filter(|_| !design.past().is_empty()).collect();
        let kind = match &document.classifier {
            None => InputKind::Number,
            Some(classifier) if classifier.boolean => InputKind::Boolean,
            Some(classifier) => {
                InputKind::Category { levels: classifier.classes.iter().cloned().zip(0..).collect(), unseen: Unseen::Error }
            }
        };
        learning.extend(document.target.iter().map(|name| Input { name: name.clone(), kind: kind.clone(), required: true }));
        if let Some(weights) = &document.weights {
            learning.push(Input { name: weights.clone(), kind: InputKind::Number, required: false });
        }
        let place = |name: &String| learning.iter().position(|input| input.name == *name).unwrap_or_default();
        Self {
            id,
            model: model.to_owned(),
            number,
            created_at: created_at.to_owned(),
            lagged: design.lagged().iter().map(place).collect(),
            design,
            inputs: InputSchema::new(features),
            forecast_inputs: InputSchema::new(forecast),
            update_inputs: InputSchema::new(learning),
            document,
            events,
            live,
            watch: OnceLock::new(),
        }
    }

    /// The state as it stands now; what is returned does not change under the reader.
    pub(crate) async fn state(&self, store: &Store) -> Result<Arc<State>, ServiceError> {
        if let Some(state) = self.live.state.get() {
            return Ok(state.load_full());
        }
        self.check_damage()?;
        let cell = self
            .live
            .state
            .get_or_try_init(async || {
                let mut connection = store.read().await?;
                Ok::<_, ServiceError>(ArcSwap::from_pointee(load(&mut connection, self, None).await?))
            })
            .await;
        Ok(self.note_damage(cell)?.load_full())
    }

    /// What of it is damaged, as far as that was found: then it answers nothing.
    #[must_use]
    pub fn damage(&self) -> Option<&'static str> {
        self.live.damage.get().copied()
    }

    fn check_damage(&self) -> Result<(), ServiceError> {
        self.damage().map_or(Ok(()), |what| Err(ServiceError::Quarantined(what)))
    }

    /// Puts the version into quarantine if what failed is what is stored of it.
    fn note_damage<T>(&self, loaded: Result<T, ServiceError>) -> Result<T, ServiceError> {
        loaded.map_err(|error| match error.damage() {
            Some(what) => {
                if self.live.damage.set(what).is_ok() {
                    tracing::error!(model = self.model, version = self.number, %error, "a version is damaged and was put into quarantine");
                }
                ServiceError::Quarantined(what)
            }
            None => error,
        })
    }

    /// The state, loading it through the writer's own connection if it is not in memory.
    pub(crate) async fn state_in(&self, connection: &mut store::Connection) -> Result<Arc<State>, ServiceError> {
        if self.live.state.get().is_none() {
            self.check_damage()?;
        }
        let load = async || Ok::<_, ServiceError>(ArcSwap::from_pointee(load(connection, self, None).await?));
        Ok(self.note_damage(self.live.state.get_or_try_init(load).await)?.load_full())
    }

    /// The state as it stood after update `sequence`.
    ///
    /// # Errors
    /// It has not learnt so many rows yet, or the log of that time is gone.
    pub(crate) async fn state_at(&self, store: &Store, sequence: u64) -> Result<Arc<State>, ServiceError> {
        let now = self.state(store).await?;
        if now.sequence() == sequence {
            return Ok(now);
        }
        if now.sequence() < sequence {
            let detail = format!("the version has learnt {} rows, not {sequence}", now.sequence());
            return Err(ServiceError::request("/at/sequence", detail));
        }
        let forgotten = {
            let past = self.past();
            if let Some(known) = past.states.iter().find(|state| state.sequence() == sequence) {
                return Ok(known.clone());
            }
            past.forgotten
        };
        let mut connection = store.read().await?;
        let state = Arc::new(load(&mut connection, self, Some(sequence)).await?);
        let mut past = self.past();
        // A row may have been erased meanwhile: then this is the last time it is seen.
        if past.forgotten == forgotten {
            past.states.push_back(state.clone());
            if past.states.len() > PAST {
                past.states.pop_front();
            }
        }
        Ok(state)
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.live.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets states of the past: a row in them was erased.
    pub(crate) fn forget_past(&self) {
        let mut past = self.past();
        past.states.clear();
        past.forgotten += 1;
    }

    /// Holds off other erasures until it is dropped.
    pub(crate) async fn erasing(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.live.erasing.clone().lock_owned().await
    }

    /// How it remembers.
    pub(crate) fn memory(&self) -> Memory<'_> {
        let penalty = match self.document.estimator {
            Estimator::Ridge { penalty: Penalty::Fixed(penalty), .. } => penalty,
            _ => 0.0,
        };
        Memory { online: &self.document.online, penalty }
    }

    /// Makes a state the one that is read. Only after it is on disk.
    pub(crate) fn publish(&self, state: State) {
        if let Some(cell) = self.live.state.get() {
            cell.store(Arc::new(state));
        }
    }

    /// The state as it stands now, if it is in memory.
    pub(crate) fn state_now(&self) -> Option<Arc<State>> {
        self.live.state.get().map(ArcSwap::load_full)
    }

    /// The inner text of its ETag, if its state is in memory.
    pub(crate) fn tag_now(&self) -> Option<String> {
        self.live.state.get().map(|state| super::models::tag(self.number, state.load().sequence()))
    }

    /// Cells of a row to learn from: the columns of the design, those of which only past values are taken, targets, weight.
    pub(crate) fn learning_width(&self) -> usize {
        self.update_inputs.len() + usize::from(self.document.weights.is_none())
    }

    /// Rows of `width` cells with the past values in them that they do not give themselves, each as if it came `ahead` rows after the last
    /// one that the state knows.
    pub(crate) fn recalled<'c>(&self, state: &State, ahead: usize, cells: &'c [f64], width: usize) -> Cow<'c, [f64]> {
        if self.design.past().is_empty() {
            return Cow::Borrowed(cells);
        }
        let mut cells = cells.to_vec();
        cells.chunks_exact_mut(width).for_each(|row| state.recall(&self.design, ahead, row));
        Cow::Owned(cells)
    }

    /// Of a row to learn from, the targets and the weight.
    pub(crate) fn observed<'c>(&self, cells: &'c [f64]) -> (&'c [f64], f64) {
        let (before, weight) = cells.split_at(self.learning_width() - 1);
        (&before[before.len() - self.document.target.len()..], weight[0])
    }

    /// Of a row to learn from, what later rows take of it.
    pub(crate) fn remembered<'c>(&'c self, cells: &'c [f64]) -> impl Iterator<Item = f64> + 'c {
        self.lagged.iter().map(|place| cells[*place])
    }

    /// Refuses a row in which a past value is not known.
    pub(crate) fn check_past(&self, cells: &[f64], row: usize) -> Result<(), ServiceError> {
        let Some(gap) = self.design.past().iter().find(|past| cells[past.place].is_nan()) else { return Ok(()) };
        let name = &self.design.columns()[gap.place].name;
        let detail = format!("row {}: the rows before do not hold the past value {name:?}; give it in the row", row + 1);
        Err(ServiceError::request(format!("/rows/{row}"), detail))
    }
}

/// The state of a version from its stored form, as it stands or as it stood at a sequence: the newest snapshot before that (or the fit), then
/// the log after it.
async fn load(connection: &mut store::Connection, version: &Version, until: Option<u64>) -> Result<State, ServiceError> {
    // Only a version that lets go of its log may lack some of it, and nothing that the present state is made of.
    let kept = until.is_none() || version.document.online.retention.is_none();
    let lacking = || match kept {
        true => ServiceError::from(StoreError::Corrupt("the update log")),
        false => ServiceError::Conflict("the update log of that time is no longer kept"),
    };
    let until = until.unwrap_or(u64::MAX);
    let mut state = starting_at(connection, version, until).await?;
    let known = state.sequence();
    while state.sequence() < until {
        let records = store::updates::after(connection, version.id, state.sequence(), RECORDS).await?;
        let Some(first) = records.first() else { break };
        if state.sequence() == known && first.first_sequence > known + 1 {
            return Err(lacking());
        }
        for record in records.iter().take_while(|record| record.first_sequence <= until) {
            learn::replay(version, &mut state, record, until)?;
        }
        if records.len() < RECORDS as usize {
            break;
        }
    }
    if until != u64::MAX && state.sequence() < until {
        return Err(lacking());
    }
    Ok(state)
}

/// The newest stored state at or before a sequence.
pub(super) async fn starting_at(connection: &mut store::Connection, version: &Version, sequence: u64) -> Result<State, ServiceError> {
    let bytes = match store::updates::snapshot(connection, version.id, sequence).await? {
        Some((_, bytes)) => bytes,
        None => store::models::state(connection, version.id).await?,
    };
    let state = State::decode(&bytes).map_err(|_| StoreError::Corrupt("the state of a version"))?;
    let (information, document) = (state.information(), &version.document);
    // Whatever it is the state of, this is not the version.
    let remembers = (version.design.reach() > 0).then(|| (version.design.lagged().len(), version.design.reach()));
    if information.responses() != document.responses().len()
        || information.predictors() != version.design.width()
        || state.history().map(crate::model::History::shape) != remembers
    {
        return Err(StoreError::Corrupt("the state of a version").into());
    }
    Ok(state)
}

/// What an alias points to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The version's number.
    pub version: u64,
    /// The state in which it is held, if it is.
    pub(crate) held: Option<Arc<State>>,
    /// What keeps the state in which it is held from being made again.
    pub(crate) damage: Option<&'static str>,
}

impl Target {
    /// A version as it stands.
    pub(crate) fn of(version: u64) -> Self {
        Self { version, held: None, damage: None }
    }

    /// The sequence at which the version is held, if it is.
    #[must_use]
    pub fn sequence(&self) -> Option<u64> {
        self.held.as_ref().map(|state| state.sequence())
    }
}

/// A version whose document is damaged, so that nothing is known of it but its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Its identity.
    pub(crate) id: i64,
    /// What is damaged.
    pub(crate) damage: &'static str,
}

/// A model and its versions.
#[derive(Clone, Debug)]
pub struct Model {
    pub(crate) id: i64,
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created_at: String,
    /// Versions by number.
    pub versions: BTreeMap<u64, Arc<Version>>,
    /// Aliases that are stored, `served` among them.
    pub aliases: BTreeMap<String, Target>,
    /// How its requests are shared out, if they are.
    pub(crate) traffic: Option<Arc<Traffic>>,
    /// Versions of which nothing can be told.
    pub(crate) lost: BTreeMap<u64, Lost>,
    /// Why its plain name is not answered: how its requests are shared out is damaged.
    pub(crate) damage: Option<&'static str>,
}

impl Model {
    /// The version behind `/v1/models/{name}`.
    #[must_use]
    pub fn served(&self) -> Option<&Arc<Version>> {
        self.aliases.get(SERVED).and_then(|target| self.versions.get(&target.version))
    }

    /// Names that point at a version, `latest` among them.
    #[must_use]
    pub fn aliases_of(&self, number: u64) -> Vec<String> {
        let mut names: Vec<String> =
            self.aliases.iter().filter(|(_, target)| target.version == number).map(|(alias, _)| alias.clone()).collect();
        if self.latest() == Some(number) {
            names.push(LATEST.to_owned());
        }
        names.sort_unstable();
        names
    }

    /// The number of the newest version, whether it can be told of or not.
    fn latest(&self) -> Option<u64> {
        let (whole, lost) = (self.versions.last_key_value(), self.lost.last_key_value());
        whole.map(|(number, _)| *number).max(lost.map(|(number, _)| *number))
    }

    /// What of it is damaged, as far as that was found: versions with what is damaged of them, and `None` for the model itself.
    #[must_use]
    pub fn damages(&self) -> Vec<(Option<u64>, &'static str)> {
        let lost = self.lost.iter().map(|(number, lost)| (*number, lost.damage));
        let states = self.versions.iter().filter_map(|(number, version)| Some((*number, version.damage()?)));
        let held = self.aliases.values().filter_map(|target| Some((target.version, target.damage?)));
        let mut versions: Vec<_> = lost.chain(states).chain(held).map(|(number, damage)| (Some(number), damage)).collect();
        versions.sort_unstable();
        versions.dedup();
        self.damage.into_iter().map(|damage| (None, damage)).chain(versions).collect()
    }

    /// The version that `alias` or a number in text names, and the state in which the alias holds it.
    pub(crate) fn find(&self, reference: &str) -> Result<(&Arc<Version>, Option<Arc<State>>), ServiceError> {
        let number = |number: u64| match (self.versions.get(&number), self.lost.get(&number)) {
            (Some(version), _) => Ok(version),
            (None, Some(lost)) => Err(ServiceError::Quarantined(lost.damage)),
            (None, None) => Err(ServiceError::VersionNotFound),
        };
        if let Ok(reference) = reference.parse::<u64>() {
            return Ok((number(reference)?, None));
        }
        if reference == LATEST {
            return Ok((number(self.latest().ok_or(ServiceError::VersionNotFound)?)?, None));
        }
        let target = self.aliases.get(reference).ok_or(ServiceError::AliasNotFound)?;
        if let Some(damage) = target.damage {
            return Err(ServiceError::Quarantined(damage));
        }
        Ok((number(target.version)?, target.held.clone()))
    }

    /// The version that an address names, by what stands after its `@` or as the one that is served.
    pub(crate) fn named(&self, which: Option<&str>) -> Result<(&Arc<Version>, Option<Arc<State>>), ServiceError> {
        if let (None, Some(damage)) = (which, self.damage) {
            return Err(ServiceError::Quarantined(damage));
        }
        match self.find(which.unwrap_or(SERVED)) {
            // A model whose served version was deleted has no version to answer with, rather than a missing alias.
            Err(ServiceError::AliasNotFound) if which.is_none_or(|which| which == SERVED) => Err(ServiceError::VersionNotFound),
            other => other,
        }
    }
}

/// A model, a version of it, and the state in which an alias holds that.
pub(crate) type Resolved = (Arc<Model>, Arc<Version>, Option<Arc<State>>);

/// All models by name.
#[derive(Debug, Default)]
pub struct Catalogue {
    models: ArcSwap<BTreeMap<String, Arc<Model>>>,
    channels: Mutex<HashMap<String, Arc<Channel>>>,
}

impl Catalogue {
    /// All models as they stand now.
    pub(crate) fn all(&self) -> Arc<BTreeMap<String, Arc<Model>>> {
        self.models.load_full()
    }

    /// The model of that name.
    pub(crate) fn model(&self, text: &str) -> Result<Arc<Model>, ServiceError> {
        self.models.load().get(text).cloned().map_or_else(|| self.model_normalised(text), Ok)
    }

    fn model_normalised(&self, text: &str) -> Result<Arc<Model>, ServiceError> {
        let name = name::model(text).map_err(|_| ServiceError::ModelNotFound)?;
        self.models.load().get(&name).cloned().ok_or(ServiceError::ModelNotFound)
    }

    /// The channel of a model's events.
    pub(crate) fn channel(&self, model: &str) -> Arc<Channel> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).entry(model.to_owned()).or_default().clone()
    }

    /// The model that `name`, `name@alias` or `name@version` is about, and what stands after the `@`.
    pub(crate) fn addressed<'a>(&self, reference: &'a str) -> Result<(Arc<Model>, Option<&'a str>), ServiceError> {
        let (text, which) = reference.rsplit_once('@').map_or((reference, None), |(text, which)| (text, Some(which)));
        Ok((self.model(text)?, which))
    }

    /// The model and version that `name`, `name@alias` or `name@version` means, and the state in which the alias holds it.
    pub(crate) fn resolve(&self, reference: &str) -> Result<Resolved, ServiceError> {
        let (model, which) = self.addressed(reference)?;
        let (version, held) = model.named(which)?;
        let version = version.clone();
        Ok((model, version, held))
    }

    /// Puts the map in place that the database holds.
    pub(crate) fn fill(
        &self,
        models: Vec<ModelRow>,
        versions: Vec<VersionRow>,
        aliases: Vec<AliasRow>,
        splits: &[TrafficRow],
    ) -> Result<(), ServiceError> {
        let mut by_id: HashMap<i64, Model> = models
            .into_iter()
            .map(|row| {
                let model = Model {
                    id: row.id,
                    name: row.name,
                    created_at: row.created_at,
                    versions: BTreeMap::new(),
                    aliases: BTreeMap::new(),
                    traffic: None,
                    lost: BTreeMap::new(),
                    damage: None,
                };
                (row.id, model)
            })
            .collect();
        for row in versions {
            if let Some(model) = by_id.get_mut(&row.model) {
                match Version::new(&model.name, &row, None, self.channel(&model.name)) {
                    Ok(version) => _ = model.versions.insert(row.version, Arc::new(version)),
                    Err(error) => {
                        let damage = error.damage().ok_or(error)?;
                        tracing::error!(
                            model = model.name,
                            version = row.version,
                            damage,
                            "a version is damaged and was put into quarantine"
                        );
                        model.lost.insert(row.version, Lost { id: row.id, damage });
                    }
                }
            }
        }
        for row in aliases {
            if let Some(model) = by_id.get_mut(&row.model) {
                let damage = row.damaged.then_some("an alias");
                if let Some(damage) = damage {
                    tracing::error!(model = model.name, alias = row.alias, damage, "an alias is damaged and was put into quarantine");
                }
                model.aliases.insert(row.alias, Target { damage, ..Target::of(row.version) });
            }
        }
        for row in splits {
            if let Some(model) = by_id.get_mut(&row.model) {
                match Traffic::read(model, row) {
                    Ok(traffic) => model.traffic = traffic.map(Arc::new),
                    Err(error) => {
                        let damage = error.damage().ok_or(error)?;
                        tracing::error!(
                            model = model.name,
                            damage,
                            "how requests are shared out is damaged; the plain name is not answered"
                        );
                        model.damage = Some(damage);
                    }
                }
            }
        }
        self.models.store(Arc::new(by_id.into_values().map(|model| (model.name.clone(), Arc::new(model))).collect()));
        Ok(())
    }

    /// Changes one model (`None`: it is not there; return `None` to remove it). Only the writer calls this.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(Option<Model>) -> Option<Model>) {
        let mut models = BTreeMap::clone(&self.models.load());
        let changed = change(models.remove(name).map(|model| Model::clone(&model)));
        if let Some(mut model) = changed {
            // Its members are what the aliases of this moment mean.
            if let Some(traffic) = model.traffic.take() {
                model.traffic = traffic.again(&model).map(Arc::new);
            }
            models.insert(name.to_owned(), Arc::new(model));
        }
        self.models.store(Arc::new(models));
    }
}
