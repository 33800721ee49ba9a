//! Jobs: fits and predictions of datasets that are waiting, running or done; their progress is in memory, their outcome in the database.
//!
//! A job's arithmetic runs on a bounded pool. What it makes and its own end are one transaction, which is its work's; how it failed is stored here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::audit;
use super::error::ServiceError;
use super::{IdempotencyKey, Replayable, Service};
use crate::frame::Fault;
use crate::store::idempotency::About;
use crate::store::{self, Connection, Store};
use crate::telemetry;

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Waiting for a free thread of the pool.
    Queued,
    /// Being computed.
    Running,
    /// What it was to make is made.
    Succeeded,
    /// It could not be done.
    Failed,
    /// The caller ended it.
    Cancelled,
    /// The server ended first.
    Interrupted,
}

impl JobState {
    /// As the contract and the database say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "queued" => Self::Queued,
            "running" => Self::Running,
            "succeeded" => Self::Succeeded,
            "cancelled" => Self::Cancelled,
            "interrupted" => Self::Interrupted,
            _ => Self::Failed,
        }
    }

    /// Whether nothing more will happen to it.
    #[must_use]
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// What a job does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// Fits a version.
    Fit,
    /// Predicts a dataset.
    Predictions {
        /// The dataset that it makes.
        dataset: String,
    },
}

impl JobKind {
    /// As the contract and the database say it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Fit => "fit",
            Self::Predictions { .. } => "predictions",
        }
    }

    /// The dataset that it makes.
    #[must_use]
    pub fn dataset(&self) -> Option<&str> {
        match self {
            Self::Fit => None,
            Self::Predictions { dataset } => Some(dataset),
        }
    }
}

/// A job as it stands.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// The model it fits, or that predicts.
    pub model: String,
    /// How far it is.
    pub state: JobState,
    /// What it is doing: `reading`, `solving`, `predicting`, `storing`.
    pub stage: &'static str,
    /// Rows visited in this stage.
    pub done: u64,
    /// Rows to visit in this stage.
    pub total: u64,
    /// The loss after the last epoch of gradient descent.
    pub loss: Option<f64>,
    /// The version it made, or that predicted.
    pub version: Option<u64>,
    /// What went wrong.
    pub problem: Option<ServiceError>,
}

impl Job {
    fn queued(id: &str, kind: JobKind, model: &str) -> Self {
        Self {
            id: id.to_owned(),
            kind,
            model: model.to_owned(),
            state: JobState::Queued,
            stage: "queued",
            done: 0,
            total: 0,
            loss: None,
            version: None,
            problem: None,
        }
    }
}

/// A running job's own handle.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) state: watch::Sender<Job>,
    cancelled: AtomicBool,
}

impl Running {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub(crate) fn progress(&self, stage: &'static str, done: u64, total: u64) {
        self.state.send_modify(|job| (job.stage, job.done, job.total) = (stage, done, total));
    }

    /// An epoch of gradient descent is done.
    pub(crate) fn descend(&self, epoch: u64, epochs: u64, loss: f64) {
        self.state.send_modify(|job| (job.stage, job.done, job.total, job.loss) = ("descending", epoch, epochs, Some(loss)));
    }

    /// A handle of no job: for work that nobody waits for by name.
    pub(crate) fn nameless() -> Self {
        Self { state: watch::Sender::new(Job::queued("", JobKind::Fit, "")), cancelled: AtomicBool::new(false) }
    }

    pub(crate) fn enter(&self, state: JobState) {
        self.state.send_modify(|job| job.state = state);
    }
}

/// Finished jobs kept in memory for those who are still watching; the rest is read from the database.
const KEPT: usize = 1024;

/// The jobs of this process.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    entries: Mutex<HashMap<String, Arc<Running>>>,
    counter: std::sync::atomic::AtomicU64,
}

impl Jobs {
    /// An id that no other job of this database has: time and a counter.
    fn new_id(&self) -> String {
        let micros = jiff::Timestamp::now().as_microsecond();
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        format!("{micros:x}-{count:x}")
    }

    fn insert(&self, id: &str, kind: JobKind, model: &str) -> Arc<Running> {
        let job = Job::queued(id, kind, model);
        let running = Arc::new(Running { state: watch::Sender::new(job), cancelled: AtomicBool::new(false) });
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= KEPT {
            entries.retain(|_, entry| !entry.state.borrow().state.is_over());
        }
        entries.insert(id.to_owned(), running.clone());
        running
    }

    fn get(&self, id: &str) -> Option<Arc<Running>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Jobs that are waiting or running.
    fn active(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).values().filter(|entry| !entry.state.borrow().state.is_over()).count()
    }

    pub(crate) fn cancel_all(&self) {
        for entry in self.entries.lock().unwrap_or_else(PoisonError::into_inner).values() {
            entry.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// The job as it stands.
    pub(crate) async fn find(&self, store: &Store, id: &str) -> Result<Job, ServiceError> {
        if let Some(running) = self.get(id) {
            return Ok(running.state.borrow().clone());
        }
        let row = store::jobs::find(&mut *store.read().await?, id).await?.ok_or(ServiceError::JobNotFound)?;
        let state = JobState::parse(&row.state);
        let kind = match row.dataset {
            Some(dataset) if row.kind == "predictions" => JobKind::Predictions { dataset },
            _ => JobKind::Fit,
        };
        let text = row.problem.unwrap_or_default();
        let problem = match state {
            JobState::Failed if kind == JobKind::Fit => Some(ServiceError::Fit(text)),
            JobState::Failed => Some(ServiceError::Request(vec![Fault { pointer: "/dataset".to_owned(), detail: text }])),
            JobState::Cancelled => Some(ServiceError::Cancelled),
            JobState::Interrupted => Some(ServiceError::Interrupted),
            JobState::Queued | JobState::Running | JobState::Succeeded => None,
        };
        Ok(Job { id: row.id, kind, model: row.model, state, stage: "done", done: 0, total: 0, loss: None, version: row.version, problem })
    }

    /// Its changes from now on; `None` when it is over and no longer in memory.
    pub(crate) fn watch(&self, id: &str) -> Option<watch::Receiver<Job>> {
        self.get(id).map(|running| running.state.subscribe())
    }

    /// Asks a job to end. A job that is over stays as it is.
    pub(crate) fn cancel(&self, id: &str) {
        if let Some(running) = self.get(id) {
            running.cancelled.store(true, Ordering::Relaxed);
            // Wakes a job that is waiting for a thread.
            running.state.send_modify(|_| {});
        }
    }
}

/// What a caller of a job is answered by under its key: the job, over or not.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Asked {
    job: String,
}

impl Service {
    /// The job that was begun under this key before, if one was.
    pub(super) async fn replayed_job(&self, key: Option<&IdempotencyKey>, wait: Duration) -> Result<Option<Replayable<Job>>, ServiceError> {
        let Some(key) = key else { return Ok(None) };
        let Some(replayed) = key.replay::<Asked>(&mut *self.store.read().await?).await? else { return Ok(None) };
        Ok(Some(Replayable { value: self.wait_for(&replayed.value.job, wait).await?, replayed: true }))
    }

    /// Queues a job under its key, if it has one, and waits for it at most `wait`. What `work` makes it stores in one transaction with
    /// the end of the job; it returns the version that the job is about.
    pub(super) async fn begin_job<W, F>(
        self: &Arc<Self>,
        kind: JobKind,
        model: &str,
        key: Option<IdempotencyKey>,
        wait: Duration,
        work: W,
    ) -> Result<Replayable<Job>, ServiceError>
    where
        W: FnOnce(Arc<Self>, Arc<Running>) -> F + Send + 'static,
        F: Future<Output = Result<u64, ServiceError>> + Send + 'static,
    {
        if self.jobs.active() >= self.fit_queue {
            return Err(ServiceError::QueueFull);
        }
        let id = self.jobs.new_id();
        let (row_id, row_kind, row_model) = (id.clone(), kind.clone(), model.to_owned());
        let asked = self
            .writer
            .run(
                async move |writer: &mut Connection| {
                    if let Some(key) = &key
                        && let Some(replayed) = key.replay::<Asked>(writer).await?
                    {
                        return Ok(replayed);
                    }
                    store::jobs::create(writer, &row_id, row_kind.as_str(), &row_model, row_kind.dataset()).await?;
                    let asked = Asked { job: row_id };
                    if let Some(key) = &key {
                        key.remember(writer, &asked, About::Nothing).await?;
                    }
                    Ok(Replayable::fresh(asked))
                },
                |_| {},
            )
            .await?;
        if asked.replayed {
            return Ok(Replayable { value: self.wait_for(&asked.value.job, wait).await?, replayed: true });
        }
        let running = self.jobs.insert(&id, kind, model);
        // What it changes, it changes in the name of who asked for it.
        tokio::spawn(audit::by(audit::Actor::current(), run(self.clone(), running, work)));
        Ok(Replayable::fresh(self.wait_for(&id, wait).await?))
    }

    /// The job, when it is over or `wait` has passed.
    async fn wait_for(&self, id: &str, wait: Duration) -> Result<Job, ServiceError> {
        if let Some(mut watch) = self.jobs.watch(id) {
            // Running out of time is an answer here: the job as it stands.
            let _ = tokio::time::timeout(wait, watch.wait_for(|job| job.state.is_over())).await;
        }
        self.jobs.find(&self.store, id).await
    }
}

/// One job from the queue to its end.
async fn run<W, F>(service: Arc<Service>, running: Arc<Running>, work: W)
where
    W: FnOnce(Arc<Service>, Arc<Running>) -> F,
    F: Future<Output = Result<u64, ServiceError>>,
{
    let begun = Instant::now();
    let outcome = take_turn(&service, &running, work).await;
    let (id, kind) = {
        let job = running.state.borrow();
        (job.id.clone(), job.kind.clone())
    };
    let (state, version, problem) = match outcome {
        Ok(version) => (JobState::Succeeded, Some(version), None),
        Err(ServiceError::Cancelled) if service.is_stopping() => (JobState::Interrupted, None, Some(ServiceError::Interrupted)),
        Err(ServiceError::Cancelled) => (JobState::Cancelled, None, Some(ServiceError::Cancelled)),
        Err(error) => (JobState::Failed, None, Some(error)),
    };
    if let Some(problem) = &problem {
        if let ServiceError::Store(_) | ServiceError::Internal(_) = problem {
            tracing::error!(error = %problem, job = %id, "a job failed");
        }
        let text = match problem {
            ServiceError::Store(_) | ServiceError::Internal(_) => "the job failed by a fault of the server".to_owned(),
            other => other.to_string(),
        };
        let row = id.clone();
        let stored = service
            .writer
            .run(
                async move |writer: &mut Connection| Ok(store::jobs::finish(writer, &row, state.as_str(), None, Some(&text)).await?),
                |()| {},
            )
            .await;
        if let Err(error) = stored {
            tracing::error!(%error, job = %id, "the end of a job could not be stored");
        }
    }
    if kind == JobKind::Fit {
        metrics::counter!(telemetry::FITS, "state" => state.as_str()).increment(1);
        metrics::histogram!(telemetry::FIT_SECONDS).record(begun.elapsed().as_secs_f64());
    }
    running.state.send_modify(|job| {
        job.state = state;
        job.version = version;
        job.problem = problem;
        job.stage = "done";
    });
}

/// Waits for a place in the pool and works there.
async fn take_turn<W, F>(service: &Arc<Service>, running: &Arc<Running>, work: W) -> Result<u64, ServiceError>
where
    W: FnOnce(Arc<Service>, Arc<Running>) -> F,
    F: Future<Output = Result<u64, ServiceError>>,
{
    let permit = {
        let mut watch = running.state.subscribe();
        tokio::select! {
            permit = service.pool.acquire() => permit.map_err(|_| ServiceError::Cancelled)?,
            () = async { while !running.is_cancelled() { if watch.changed().await.is_err() { break; } } } => return Err(ServiceError::Cancelled),
        }
    };
    running.enter(JobState::Running);
    let outcome = work(service.clone(), running.clone()).await;
    drop(permit);
    outcome
}
