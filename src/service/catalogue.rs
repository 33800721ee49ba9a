//! The models in memory, read without a lock.
//!
//! The map of models sits behind an atomic pointer, and so does each version's state: a prediction loads two pointers and never waits,
//! whatever is being fitted or learnt. Only the writer publishes, after its commit; it copies the small parts of the map that change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::OnceCell;

use super::error::ServiceError;
use super::learn;
use crate::features::Design;
use crate::frame::{Input, InputKind, InputSchema};
use crate::model::{Document, State, name};
use crate::store::models::{AliasRow, ModelRow, VersionRow};
use crate::store::{self, Store};

/// The alias behind `/v1/models/{name}`.
pub(crate) const SERVED: &str = "served";
/// Always the newest version; not stored and not to be moved.
pub(crate) const LATEST: &str = "latest";

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
    /// What a row to predict holds: one cell a feature.
    pub inputs: InputSchema,
    /// What a row to learn from holds: the features, the targets, and a weight when the fit had one.
    pub update_inputs: InputSchema,
    /// Loaded at start for versions behind an alias, on first use for the others.
    state: OnceCell<ArcSwap<State>>,
}

impl std::fmt::Debug for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Version").field("model", &self.model).field("number", &self.number).finish_non_exhaustive()
    }
}

impl Version {
    pub(crate) fn new(model: &str, row: &VersionRow, state: Option<State>) -> Result<Self, ServiceError> {
        let document: Document =
            serde_json::from_str(&row.document).map_err(|_| ServiceError::Internal("a stored version does not decode"))?;
        let design = document.design();
        let features: Vec<Input> = document.features.iter().map(crate::features::Feature::input).collect();
        let mut learning = features.clone();
        learning.extend(document.target.iter().map(|name| Input { name: name.clone(), kind: InputKind::Number, required: true }));
        if let Some(weights) = &document.weights {
            learning.push(Input { name: weights.clone(), kind: InputKind::Number, required: false });
        }
        Ok(Self {
            id: row.id,
            model: model.to_owned(),
            number: row.version,
            created_at: row.created_at.clone(),
            design,
            inputs: InputSchema::new(features),
            update_inputs: InputSchema::new(learning),
            document,
            state: state.map_or_else(OnceCell::new, |state| OnceCell::new_with(Some(ArcSwap::from_pointee(state)))),
        })
    }

    /// The state as it stands now; what is returned does not change under the reader.
    pub(crate) async fn state(&self, store: &Store) -> Result<Arc<State>, ServiceError> {
        if let Some(state) = self.state.get() {
            return Ok(state.load_full());
        }
        let cell = self
            .state
            .get_or_try_init(async || {
                let mut connection = store.read().await?;
                Ok::<_, ServiceError>(ArcSwap::from_pointee(load(&mut connection, self).await?))
            })
            .await?;
        Ok(cell.load_full())
    }

    /// The state, loading it through the writer's own connection if it is not in memory.
    pub(crate) async fn state_in(&self, connection: &mut store::Connection) -> Result<Arc<State>, ServiceError> {
        let cell = self.state.get_or_try_init(async || Ok::<_, ServiceError>(ArcSwap::from_pointee(load(connection, self).await?))).await?;
        Ok(cell.load_full())
    }

    /// Makes a state the one that is read. Only after it is on disk.
    pub(crate) fn publish(&self, state: State) {
        if let Some(cell) = self.state.get() {
            cell.store(Arc::new(state));
        }
    }

    /// The inner text of its ETag, if its state is in memory.
    pub(crate) fn tag_now(&self) -> Option<String> {
        self.state.get().map(|state| super::models::tag(self.number, state.load().sequence()))
    }

    /// Cells of a row to learn from: features, targets, weight.
    pub(crate) fn learning_width(&self) -> usize {
        self.document.features.len() + self.document.target.len() + 1
    }
}

/// The state of a version from its stored form: the newest snapshot (or the fit), then the log after it.
async fn load(connection: &mut store::Connection, version: &Version) -> Result<State, ServiceError> {
    let decode = |bytes: &[u8]| State::decode(bytes).map_err(|_| ServiceError::Internal("a stored state does not decode"));
    let mut state = match store::updates::snapshot(connection, version.id).await? {
        Some((_, bytes)) => decode(&bytes)?,
        None => decode(&store::models::state(connection, version.id).await?)?,
    };
    loop {
        let records = store::updates::after(connection, version.id, state.sequence(), 256).await?;
        if records.is_empty() {
            return Ok(state);
        }
        for record in records {
            learn::replay(version, &mut state, &record)?;
        }
    }
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
    pub aliases: BTreeMap<String, u64>,
}

impl Model {
    /// The version behind `/v1/models/{name}`.
    #[must_use]
    pub fn served(&self) -> Option<&Arc<Version>> {
        self.aliases.get(SERVED).and_then(|number| self.versions.get(number))
    }

    /// Names that point at a version, `latest` among them.
    #[must_use]
    pub fn aliases_of(&self, number: u64) -> Vec<String> {
        let mut names: Vec<String> = self.aliases.iter().filter(|(_, target)| **target == number).map(|(alias, _)| alias.clone()).collect();
        if self.versions.last_key_value().is_some_and(|(last, _)| *last == number) {
            names.push(LATEST.to_owned());
        }
        names.sort_unstable();
        names
    }

    /// The version that `alias` or a number in text names.
    pub(crate) fn find(&self, reference: &str) -> Result<&Arc<Version>, ServiceError> {
        if let Ok(number) = reference.parse::<u64>() {
            return self.versions.get(&number).ok_or(ServiceError::VersionNotFound);
        }
        if reference == LATEST {
            return self.versions.last_key_value().map(|(_, version)| version).ok_or(ServiceError::VersionNotFound);
        }
        let number = self.aliases.get(reference).ok_or(ServiceError::AliasNotFound)?;
        self.versions.get(number).ok_or(ServiceError::VersionNotFound)
    }
}

/// All models by name.
#[derive(Debug, Default)]
pub struct Catalogue {
    models: ArcSwap<BTreeMap<String, Arc<Model>>>,
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

    /// The model and version that `name`, `name@alias` or `name@version` means.
    pub(crate) fn resolve(&self, reference: &str) -> Result<(Arc<Model>, Arc<Version>), ServiceError> {
        let (text, which) = reference.rsplit_once('@').map_or((reference, SERVED), |(text, which)| (text, which));
        let model = self.model(text)?;
        let version = match model.find(which) {
            // A model whose served version was deleted has no version to answer with, rather than a missing alias.
            Err(ServiceError::AliasNotFound) if which == SERVED => return Err(ServiceError::VersionNotFound),
            other => other?.clone(),
        };
        Ok((model, version))
    }

    /// Puts the map in place that the database holds.
    pub(crate) fn fill(&self, models: Vec<ModelRow>, versions: Vec<VersionRow>, aliases: Vec<AliasRow>) -> Result<(), ServiceError> {
        let mut by_id: HashMap<i64, Model> = models
            .into_iter()
            .map(|row| {
                let model =
                    Model { id: row.id, name: row.name, created_at: row.created_at, versions: BTreeMap::new(), aliases: BTreeMap::new() };
                (row.id, model)
            })
            .collect();
        for row in versions {
            if let Some(model) = by_id.get_mut(&row.model) {
                let version = Version::new(&model.name, &row, None)?;
                model.versions.insert(row.version, Arc::new(version));
            }
        }
        for row in aliases {
            if let Some(model) = by_id.get_mut(&row.model) {
                model.aliases.insert(row.alias, row.version);
            }
        }
        self.models.store(Arc::new(by_id.into_values().map(|model| (model.name.clone(), Arc::new(model))).collect()));
        Ok(())
    }

    /// Changes one model (`None`: it is not there; return `None` to remove it). Only the writer calls this.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(Option<Model>) -> Option<Model>) {
        let mut models = BTreeMap::clone(&self.models.load());
        let changed = change(models.remove(name).map(|model| Model::clone(&model)));
        if let Some(model) = changed {
            models.insert(name.to_owned(), Arc::new(model));
        }
        self.models.store(Arc::new(models));
    }
}
