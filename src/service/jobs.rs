//! Jobs: fits that are waiting, running or done; their progress is in memory, their outcome in the database.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::error::ServiceError;
use crate::store::{self, Store};

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Waiting for a free thread of the pool.
    Queued,
    /// Being computed.
    Running,
    /// A version came of it.
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

/// A job as it stands.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// The model it fits.
    pub model: String,
    /// How far it is.
    pub state: JobState,
    /// What it is doing: `reading`, `solving`, `storing`.
    pub stage: &'static str,
    /// Rows visited in this stage.
    pub done: u64,
    /// Rows to visit in this stage.
    pub total: u64,
    /// The loss after the last epoch of gradient descent.
    pub loss: Option<f64>,
    /// The version it made.
    pub version: Option<u64>,
    /// What went wrong.
    pub problem: Option<ServiceError>,
}

impl Job {
    fn queued(id: &str, model: &str) -> Self {
        Self {
            id: id.to_owned(),
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
        Self { state: watch::Sender::new(Job::queued("", "")), cancelled: AtomicBool::new(false) }
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
    pub(crate) fn new_id(&self) -> String {
        let micros = jiff::Timestamp::now().as_microsecond();
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        format!("{micros:x}-{count:x}")
    }

    pub(crate) fn insert(&self, id: &str, model: &str) -> Arc<Running> {
        let job = Job::queued(id, model);
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
    pub(crate) fn active(&self) -> usize {
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
        let problem = match state {
            JobState::Failed => Some(ServiceError::Fit(row.problem.unwrap_or_default())),
            JobState::Cancelled => Some(ServiceError::Cancelled),
            JobState::Interrupted => Some(ServiceError::Interrupted),
            JobState::Queued | JobState::Running | JobState::Succeeded => None,
        };
        Ok(Job { id: row.id, model: row.model, state, stage: "done", done: 0, total: 0, loss: None, version: row.version, problem })
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
