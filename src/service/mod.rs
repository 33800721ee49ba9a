//! The use cases, one file each, and what they share: the store's readers, the one writer, the models in memory, the pool for arithmetic.
//!
//! Here stands in which order things happen and what is one transaction. Not here: status codes and headers (`http`), SQL (`store`),
//! matrices (`lsq`).

mod ahead;
mod arriving;
mod aside;
pub mod audit;
pub mod backup;
mod catalogue;
pub mod check;
mod columns;
mod datasets;
mod diagnose;
mod erase;
mod error;
mod estimate;
mod events;
mod fit;
mod forecast;
mod idempotency;
mod inputs;
mod jobs;
pub mod keys;
mod label;
mod learn;
mod models;
mod predict;
mod predict_dataset;
mod predict_stream;
mod rate;
mod refit;
mod rolling;
mod source;
mod stream;
mod traffic;
mod unlearn;
mod update;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

pub use catalogue::{Catalogue, Model, Target, Version};
pub use datasets::{Description, Landed, Upload};
pub use diagnose::{Findings, LEVELS, Wanted};
pub use erase::{Erased, Row};
pub use error::ServiceError;
pub use events::{Channel, Event, Listening};
pub use forecast::{Forecast, ForecastQuestion, Steps};
pub use idempotency::{Fingerprint, IdempotencyKey, Replayable};
pub use inputs::{Looked, Span, Unwatched, Watched};
pub use jobs::{Job, JobKind, JobState};
pub use keys::{Holder, Key, Keyring, Made, Unknown};
pub use label::{Label, Labels, Observed};
pub use learn::Reply as UpdateReply;
pub use predict::{Answerer, Caller, Predicted};
pub use predict_dataset::{DatasetQuestion, Origin};
pub use predict_stream::{Answers, Broken, Form};
pub use rate::Rate;
pub use stream::{Acknowledgement, StreamedUpdate};
pub use traffic::{Count, Counted, Member, Role, SetTraffic, SplitSet, Traffic};
pub use unlearn::{ErasedRows, Erasure, Rows as RowsToErase};
pub use update::Update;

use crate::store::{self, Store};
use crate::telemetry;

/// How long replies stay behind their `Idempotency-Key`, and ended jobs behind their id.
const KEPT: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);

/// Targets of models that metrics tell of at the most.
const FIGURES: usize = 1_000;

/// How long it takes at the most to ask the database for what metrics tell of it.
const GAUGING: Duration = Duration::from_millis(250);

/// Versions that are loaded at start over one reading connection before it goes back to its pool, where another loader may wait for it.
const VERSIONS_AT_ONCE: usize = 64;

/// Settings of the service.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Fits that are computed at the same time.
    pub compute_threads: usize,
    /// Reading connections.
    pub readers: u32,
    /// Fits that may be waiting or running; past that a fit is refused.
    pub fit_queue: usize,
    /// How long a prediction waits for its label.
    pub remember_ttl: Duration,
    /// Whether what versions are asked to predict is watched.
    pub watch_inputs: bool,
    /// What each key may send; without it, whatever it likes.
    pub key_rate: Option<Rate>,
    /// Bytes that the database may take; 0 is no limit.
    pub storage_limit: u64,
}

/// The service: every use case is a method.
pub struct Service {
    store: Store,
    writer: writer::Writer,
    catalogue: Catalogue,
    keyring: Arc<Keyring>,
    jobs: jobs::Jobs,
    pool: Semaphore,
    pins: Arc<datasets::Pins>,
    shadows: Arc<traffic::Shadows>,
    fit_queue: usize,
    remember_ttl: Duration,
    watching: inputs::Watching,
    /// One erasure of a dataset's rows at a time.
    erasing: tokio::sync::Mutex<()>,
    /// One backup at a time.
    backing_up: Arc<tokio::sync::Mutex<()>>,
    /// Read by every request, hence without a lock.
    ready: AtomicBool,
    ending: AtomicBool,
    stopping: watch::Sender<bool>,
    /// Turns to `true` when nothing can be written any more.
    failed: watch::Receiver<bool>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Service").finish_non_exhaustive()
    }
}

/// What is left to be waited for when the last handle on the service is gone.
#[derive(Debug)]
pub struct Closing {
    store: Store,
    writer: std::thread::JoinHandle<()>,
    keys: keys::Following,
}

impl Closing {
    /// Waits until everything queued is on disk and the file is closed. All handles on the service must be dropped before.
    pub async fn wait(self) {
        self.keys.stop().await;
        self.store.close().await;
        // A writer that panicked has logged it; there is nothing more to close.
        let _ = tokio::task::spawn_blocking(move || self.writer.join()).await;
    }
}

impl Service {
    /// Opens the database and starts the writer. The service answers from now on, but is not ready before [`Service::replay`] is done.
    ///
    /// # Errors
    /// The database cannot be opened.
    pub async fn open(path: &Path, settings: Settings) -> Result<(Arc<Self>, Closing), ServiceError> {
        let (store, mut connection) = Store::open(path, settings.readers).await?;
        store::begin(&mut connection).await?;
        let interrupted = store::jobs::interrupt_all(&mut connection).await?;
        let expired = (jiff::Timestamp::now() - KEPT).to_string();
        store::jobs::forget(&mut connection, &expired).await?;
        store::idempotency::forget(&mut connection, &expired).await?;
        store::commit(&mut connection).await?;
        // Not before: whoever lowers the limit under what there is must be able to start, and to delete.
        store::limit(&mut connection, settings.storage_limit).await?;
        if interrupted > 0 {
            tracing::warn!(jobs = interrupted, "jobs were interrupted by the end of the last process");
        }
        let keyring = Arc::new(Keyring::new(settings.key_rate));
        let keys = keys::Following::start(keyring.clone(), store.connect().await?).await?;
        aside::prepare();
        let (drifts, drifted) = tokio::sync::mpsc::unbounded_channel();
        let (writer, thread, failed) =
            writer::Writer::start(connection, drifts).map_err(|_| ServiceError::Internal("the writer's thread could not be started"))?;
        let shadows = traffic::Shadows::start().map_err(|_| ServiceError::Internal("the shadows' thread could not be started"))?;
        let service = Arc::new(Self {
            store: store.clone(),
            writer,
            catalogue: Catalogue::default(),
            keyring,
            jobs: jobs::Jobs::default(),
            pool: Semaphore::new(settings.compute_threads.max(1)),
            pins: Arc::default(),
            shadows: Arc::new(shadows),
            fit_queue: settings.fit_queue.max(1),
            remember_ttl: settings.remember_ttl,
            watching: inputs::Watching::new(settings.watch_inputs),
            erasing: tokio::sync::Mutex::default(),
            backing_up: Arc::default(),
            ready: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            stopping: watch::Sender::new(false),
            failed,
        });
        tokio::spawn(refit::follow(Arc::downgrade(&service), drifted));
        if settings.watch_inputs {
            tokio::spawn(inputs::follow(Arc::downgrade(&service)));
        }
        Ok((service, Closing { store, writer: thread, keys }))
    }

    /// Loads the models and replays the log of every version behind an alias; then the service is ready.
    ///
    /// # Errors
    /// The database failed or is damaged.
    pub async fn replay(self: &Arc<Self>) -> Result<(), ServiceError> {
        let begun = std::time::Instant::now();
        let mut connection = self.store.read().await?;
        let models = store::models::all(&mut connection).await?;
        let versions = store::models::all_versions(&mut connection).await?;
        let aliases = store::models::all_aliases(&mut connection).await?;
        let splits = store::traffic::all(&mut connection).await?;
        drop(connection);
        let held: Vec<_> = aliases
            .iter()
            .filter(|row| !row.damaged)
            .filter_map(|row| Some((row.model, row.alias.clone(), row.version, row.sequence?)))
            .collect();
        self.catalogue.fill(models, versions, aliases, &splits)?;
        let models = self.catalogue.all();
        let loaded = self.load(&models).await?;
        for (id, alias, number, sequence) in held {
            let Some(model) = models.values().find(|model| model.id == id) else { continue };
            let Some(version) = model.versions.get(&number) else { continue };
            let target = match version.state_at(&self.store, sequence).await {
                Ok(state) => Target { version: number, held: Some(state), damage: None },
                Err(error) => {
                    // A log of that time that is gone is no different from one that cannot be read: an alias that holds kept it.
                    let gone = matches!(error, ServiceError::Conflict(_) | ServiceError::Request(_)).then_some("the update log");
                    let damage = error.damage().or(gone).ok_or(error)?;
                    tracing::error!(model = model.name, alias, damage, "what an alias holds is damaged and was put into quarantine");
                    Target { version: number, held: None, damage: Some(damage) }
                }
            };
            self.catalogue.change(&model.name, |model| {
                model.map(|mut model| {
                    model.aliases.insert(alias, target);
                    model
                })
            });
        }
        self.ready.store(true, Ordering::Release);
        tracing::info!(models = models.len(), versions = loaded, seconds = begun.elapsed().as_secs_f64(), "ready");
        // Not tied to the service's life: it ends with the writer.
        tokio::spawn(datasets::sweep(self.writer.clone(), self.pins.clone()));
        tokio::spawn(label::sweep(self.writer.clone(), self.stopping.subscribe()));
        tokio::spawn(traffic::follow(Arc::downgrade(self), self.stopping.subscribe()));
        Ok(())
    }

    /// Brings the states of the versions behind aliases and in splits into memory, shared out between the cores: replaying a log is mostly arithmetic.
    async fn load(&self, models: &BTreeMap<String, Arc<Model>>) -> Result<usize, ServiceError> {
        let pointed = |model: &Arc<Model>| -> Vec<_> {
            let behind = model.aliases.values().filter_map(|target| model.versions.get(&target.version).cloned());
            let split = model.traffic.iter().flat_map(|traffic| traffic.members().iter().map(|member| member.version.clone()));
            behind.chain(split).collect()
        };
        let versions: Vec<Arc<Version>> = models.values().flat_map(pointed).collect();
        let loaders = self.pool.available_permits().max(1);
        let mut loading = tokio::task::JoinSet::new();
        for loader in 0..loaders {
            let (store, share) = (self.store.clone(), versions.iter().skip(loader).step_by(loaders).cloned().collect::<Vec<_>>());
            loading.spawn(async move {
                for some in share.chunks(VERSIONS_AT_ONCE) {
                    let mut connection = store.read().await?;
                    for version in some {
                        match version.state_in(&mut connection).await {
                            // It was put into quarantine; the others are served.
                            Ok(_) | Err(ServiceError::Quarantined(_)) => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                Ok::<_, ServiceError>(())
            });
        }
        while let Some(loaded) = loading.join_next().await {
            loaded.map_err(|_| ServiceError::Internal("loading a version was broken off"))??;
        }
        Ok(versions.len())
    }

    /// Whether requests can be answered: migrated, replayed, the disk written without fault, and not stopping.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.writer.is_broken() && !self.is_stopping()
    }

    /// Resolves when nothing can be written any more.
    pub async fn until_failed(&self) {
        let mut failed = self.failed.clone();
        if failed.wait_for(|failed| *failed).await.is_err() {
            // The writer ended in an orderly way; that is not a failure.
            std::future::pending::<()>().await;
        }
    }

    /// Begins to stop: no longer ready, running fits are told to end.
    pub fn stop(&self) {
        self.ending.store(true, Ordering::Release);
        self.stopping.send_replace(true);
        self.jobs.cancel_all();
        self.pins.stop();
    }

    /// Whether it is about to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// The models in memory.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// How served versions fare that have learnt something, as Prometheus text: the first ones by name, up to 1,000 targets in all.
    #[must_use]
    pub fn model_metrics(&self) -> String {
        let (mut lines, mut series, mut others) = (telemetry::Lines::default(), 0, 0);
        for model in self.catalogue.all().values() {
            let Some((version, state)) = model.served().and_then(|version| Some((version, version.state_now()?))) else { continue };
            if state.sequence() == 0 {
                continue;
            }
            let targets = &version.document.target;
            series += targets.len();
            if series > FIGURES {
                others += 1;
                continue;
            }
            let of_model = ("model", model.name.as_str());
            lines.push(telemetry::MODEL_VERSION, &[of_model], version.number as f64);
            lines.push(telemetry::MODEL_SEQUENCE, &[of_model], state.sequence() as f64);
            lines.push(telemetry::MODEL_ROWS, &[of_model], state.information().effective_observations());
            lines.push(telemetry::MODEL_DRIFTS, &[of_model], state.monitor().found() as f64);
            // Of a classifier the label counts, and not the scores of its many classes.
            if let Some((_, accuracy)) = state.monitor().accuracy() {
                accuracy.into_iter().for_each(|accuracy| lines.push(telemetry::MODEL_ACCURACY, &[of_model], accuracy));
                continue;
            }
            for (target, latest) in targets.iter().zip(state.monitor().latest()) {
                for (family, figure) in [(telemetry::MODEL_RMSE, latest.rmse), (telemetry::MODEL_COVERAGE, latest.coverage)] {
                    if let Some(figure) = figure {
                        lines.push(family, &[of_model, ("target", target)], figure);
                    }
                }
            }
        }
        lines.push(telemetry::MODELS_LEFT_OUT, &[], f64::from(others));
        lines.into_text()
    }

    /// Sets the gauges that are read only when somebody looks.
    pub async fn gauge(&self) {
        let models = self.catalogue.all();
        metrics::gauge!(telemetry::MODELS).set(models.len() as f64);
        metrics::gauge!(telemetry::QUARANTINED).set(models.values().filter(|model| !model.damages().is_empty()).count() as f64);
        // Where all connections are taken for long, the figures of before stand: who asks how things are is not made to wait for them.
        if let Ok(Ok(mut connection)) = tokio::time::timeout(GAUGING, self.store.read()).await
            && let Ok(count) = store::datasets::count(&mut connection).await
        {
            metrics::gauge!(telemetry::DATASETS).set(count as f64);
            if let Ok(bytes) = store::size(&mut connection).await {
                metrics::gauge!(telemetry::DATABASE_BYTES).set(bytes as f64);
            }
        }
    }

    /// The job as it stands.
    ///
    /// # Errors
    /// There is none of this id.
    pub async fn job(&self, id: &str) -> Result<Job, ServiceError> {
        self.jobs.find(&self.store, id).await
    }

    /// A job and its changes, if it is still in memory.
    ///
    /// # Errors
    /// There is none of this id.
    pub async fn watch_job(&self, id: &str) -> Result<(Job, Option<watch::Receiver<Job>>), ServiceError> {
        let watch = self.jobs.watch(id);
        Ok((self.job(id).await?, watch))
    }

    /// Asks a job to end, and returns it as it then stands.
    ///
    /// # Errors
    /// There is none of this id.
    pub async fn cancel_job(&self, id: &str) -> Result<Job, ServiceError> {
        self.job(id).await?;
        self.jobs.cancel(id);
        self.job(id).await
    }
}
