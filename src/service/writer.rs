//! The one writer: a thread that owns the only connection that may write, and commits in groups.
//!
//! Whatever is waiting when a commit ends goes into the next one together, so that one `fsync` serves many requests. Inside a group each
//! operation has a savepoint of its own and fails alone; if the commit fails, everyone in the group is told so and nothing happened.
//! Results become visible (`publish`) after the commit and before the reply: what was answered is on disk, and what is on disk is served.
//! A failed write or sync ends all writing for good: after it nobody can tell what is on disk, so nothing more is acknowledged.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use super::audit::{self, Actor, Changed};
use super::error::ServiceError;
use super::learn::{self, UpdateRequest};
use super::refit::Drifted;
use crate::planted::{self, Bug};
use crate::store::{self, Connection, StoreError};
use crate::telemetry;

/// Operations that share a commit at the most. They may carry a chunk of a dataset each, about a megabyte.
const OPERATIONS: usize = 32;
/// Update requests that share a commit at the most.
const UPDATES: usize = 4096;
/// Messages that may wait; past that, callers do.
const QUEUE: usize = 1024;
/// Longest wait for those who were in the last group to come again, whatever a commit takes.
const LONGEST_GATHERING: Duration = Duration::from_millis(5);
/// Between two looks at the queue while gathering.
const LOOK: Duration = Duration::from_micros(20);

/// Something to be done inside a write transaction.
trait Operation: Send {
    fn apply<'a>(&'a mut self, writer: &'a mut Connection) -> LocalBoxFuture<'a, Result<(), ServiceError>>;
    /// Whether nothing else may share its commit: updates in it would start from a state that it is about to replace.
    fn is_alone(&self) -> bool;
    /// Called once, after the commit (`Ok`) or when it is known that nothing happened (`Err`).
    fn settle(self: Box<Self>, outcome: Result<(), ServiceError>);
}

enum Message {
    Operation(Box<dyn Operation>),
    Update(Box<UpdateRequest>),
    /// Folds the WAL into the file between two commits.
    Checkpoint(oneshot::Sender<Result<(), ServiceError>>),
}

/// A handle on the writer. The writer ends when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Message>,
    broken: Arc<AtomicBool>,
}

struct Once<F, T, P> {
    work: Option<F>,
    result: Option<T>,
    publish: P,
    alone: bool,
    reply: oneshot::Sender<Result<T, ServiceError>>,
}

impl<F, T, P> Operation for Once<F, T, P>
where
    F: AsyncFnOnce(&mut Connection) -> Result<T, ServiceError> + Send,
    T: Send,
    P: FnOnce(&T) + Send,
{
    fn apply<'a>(&'a mut self, writer: &'a mut Connection) -> LocalBoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(async move {
            let work = self.work.take().ok_or(ServiceError::Internal("an operation was applied twice"))?;
            self.result = Some(work(writer).await?);
            Ok(())
        })
    }

    fn is_alone(&self) -> bool {
        self.alone
    }

    fn settle(self: Box<Self>, outcome: Result<(), ServiceError>) {
        let this = *self;
        let outcome = outcome.and_then(|()| this.result.ok_or(ServiceError::Internal("an operation left no result")));
        if let Ok(result) = &outcome {
            (this.publish)(result);
        }
        // The caller may have gone away; what was done stays done.
        let _ = this.reply.send(outcome);
    }
}

impl Writer {
    /// Starts the writer's thread on a connection. Drifts that ask for a refit go to `drifts`. The receiver turns to `true` when a write or sync has failed for good.
    pub(crate) fn start(
        connection: Connection,
        drifts: mpsc::UnboundedSender<Drifted>,
    ) -> Result<(Self, std::thread::JoinHandle<()>, watch::Receiver<bool>), std::io::Error> {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let broken = Arc::new(AtomicBool::new(false));
        let (alarm, alarmed) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let flag = broken.clone();
        let thread = std::thread::Builder::new().name("lsqd-writer".to_owned()).spawn(move || {
            let writing = AssertUnwindSafe(|| runtime.block_on(run(connection, receiver, &flag, &alarm, &drifts)));
            if catch_unwind(writing).is_err() {
                // Nobody would write any more, and nobody would know.
                flag.store(true, Ordering::Release);
                alarm.send_replace(true);
            }
        })?;
        Ok((Self { queue, broken }, thread, alarmed))
    }

    /// Runs `work` in a write transaction; when that is committed, `publish` sees the result, and then the caller does.
    ///
    /// # Errors
    /// Those of `work`, or the database's; in both cases nothing was changed.
    pub(crate) async fn run<T, F, P>(&self, work: F, publish: P) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: AsyncFnOnce(&mut Connection) -> Result<T, ServiceError> + Send + 'static,
        P: FnOnce(&T) + Send + 'static,
    {
        self.queue(false, work, publish).await
    }

    /// The same in a commit of its own, which fails for no reason but its own.
    ///
    /// # Errors
    /// As [`Writer::run`].
    pub(crate) async fn run_alone<T, F>(&self, work: F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: AsyncFnOnce(&mut Connection) -> Result<T, ServiceError> + Send + 'static,
    {
        self.queue(true, work, |_| {}).await
    }

    /// As [`Writer::run`], for what somebody asked for and may have to answer for: what `work` says of it goes into the audit log, in the same
    /// transaction.
    ///
    /// # Errors
    /// As [`Writer::run`].
    pub(crate) async fn change<T, F, P>(&self, work: F, publish: P) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: AsyncFnOnce(&mut Connection) -> Result<Changed<T>, ServiceError> + Send + 'static,
        P: FnOnce(&T) + Send + 'static,
    {
        self.queue(false, audited(work), publish).await
    }

    /// The same in a commit of its own, which no update shares.
    ///
    /// # Errors
    /// As [`Writer::run`].
    pub(crate) async fn change_alone<T, F, P>(&self, work: F, publish: P) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: AsyncFnOnce(&mut Connection) -> Result<Changed<T>, ServiceError> + Send + 'static,
        P: FnOnce(&T) + Send + 'static,
    {
        self.queue(true, audited(work), publish).await
    }

    async fn queue<T, F, P>(&self, alone: bool, work: F, publish: P) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: AsyncFnOnce(&mut Connection) -> Result<T, ServiceError> + Send + 'static,
        P: FnOnce(&T) + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Operation(Box::new(Once { work: Some(work), result: None, publish, alone, reply }))).await?;
        answer.await.map_err(|_| ServiceError::Unavailable("the server is stopping"))?
    }

    /// Folds the WAL into the file, as far as readers allow.
    pub(crate) async fn checkpoint(&self) -> Result<(), ServiceError> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Checkpoint(reply)).await?;
        answer.await.map_err(|_| ServiceError::Unavailable("the server is stopping"))?
    }

    /// Queues an update; its own channel brings the answer.
    pub(crate) async fn update(&self, mut request: UpdateRequest) -> Result<(), ServiceError> {
        if planted::has(Bug::NoDeduplication) {
            request.events.clear();
            request.idempotency = None;
        }
        self.send(Message::Update(Box::new(request))).await
    }

    /// Whether nothing can be written any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    async fn send(&self, message: Message) -> Result<(), ServiceError> {
        if self.is_broken() {
            return Err(ServiceError::Unavailable("the database can no longer be written"));
        }
        self.queue.send(message).await.map_err(|_| ServiceError::Unavailable("the server is stopping"))
    }
}

/// Work that leaves its record in the audit log, in the name of who asks for it now.
fn audited<T, F>(work: F) -> impl AsyncFnOnce(&mut Connection) -> Result<T, ServiceError> + Send + 'static
where
    T: Send + 'static,
    F: AsyncFnOnce(&mut Connection) -> Result<Changed<T>, ServiceError> + Send + 'static,
{
    let actor = Actor::current();
    async move |writer: &mut Connection| {
        let changed = work(writer).await?;
        audit::keep(writer, &actor, changed).await
    }
}

async fn run(
    mut connection: Connection,
    mut queue: mpsc::Receiver<Message>,
    broken: &AtomicBool,
    alarm: &watch::Sender<bool>,
    drifts: &mpsc::UnboundedSender<Drifted>,
) {
    let mut operations = Vec::new();
    let mut updates = Vec::new();
    let mut held = None;
    let mut pace = Pace::default();
    // Whether the disk was full, and the log has not been folded into the file since.
    let mut full = false;
    loop {
        let Some(first) = (match held.take() {
            Some(message) => Some(message),
            None => queue.recv().await,
        }) else {
            break;
        };
        let mut next = Some(first);
        let begun = Instant::now();
        while let Some(message) = next.take() {
            match message {
                Message::Operation(operation) if operation.is_alone() && operations.is_empty() && updates.is_empty() => {
                    operations.push(operation);
                    break;
                }
                Message::Operation(operation) if operations.len() < OPERATIONS && !operation.is_alone() => operations.push(operation),
                Message::Checkpoint(reply) if operations.is_empty() && updates.is_empty() => {
                    let folded = store::checkpoint(&mut connection).await;
                    if let Err(cause) = &folded
                        && is_final(cause)
                    {
                        tracing::error!(error = %cause, "the log could not be folded into the file");
                        broken.store(true, Ordering::Release);
                        alarm.send_replace(true);
                    }
                    let _ = reply.send(folded.map_err(Into::into));
                    break;
                }
                Message::Update(update) if updates.len() < UPDATES => updates.push(*update),
                full => {
                    held = Some(full);
                    break;
                }
            }
            next = queue.try_recv().ok();
            while next.is_none() && operations.is_empty() && pace.gathers(updates.len(), begun.elapsed()) {
                // The thread is the writer's own: nobody else waits for it.
                std::thread::sleep(LOOK);
                next = queue.try_recv().ok();
            }
        }
        if operations.is_empty() && updates.is_empty() {
            continue;
        }
        if full && !broken.load(Ordering::Acquire) {
            // The log may be what takes the room, and it is let to grow long: folded, it takes none. As soon as there is room for that, and
            // nobody reads; until then it is tried before every commit.
            match store::fold(&mut connection).await {
                Ok(empty) => full = !empty,
                Err(error) => note(&error.into(), broken, alarm),
            }
        }
        let (size, begun) = (updates.len(), Instant::now());
        let outcome = if broken.load(Ordering::Acquire) {
            Err(ServiceError::Unavailable("the database can no longer be written"))
        } else {
            commit_group(&mut connection, &mut operations, &mut updates, drifts).await
        };
        pace = Pace { updates: size, commit: begun.elapsed() };
        // One of them panicked: each by itself now, so that only that one fails.
        let again = if outcome.is_ok() { std::mem::take(&mut updates) } else { Vec::new() };
        for update in again {
            let mut alone = vec![update];
            let outcome = if size > 1 { commit_group(&mut connection, &mut operations, &mut alone, drifts).await } else { Ok(()) };
            let error = outcome.err().unwrap_or(PANICKED);
            if !alone.is_empty() {
                note(&error, broken, alarm);
                learn::fail(alone.drain(..), &error);
            }
        }
        if let Err(error) = outcome {
            note(&error, broken, alarm);
            full |= error.is_full();
            for operation in operations.drain(..) {
                operation.settle(Err(error.clone()));
            }
            learn::fail(updates.drain(..), &error);
        }
    }
    if let Err(error) = store::close_writer(connection).await {
        tracing::error!(%error, "closing the database failed");
    }
}

/// What the last group was like. Many who update do so again as soon as they are answered: the first of them would have a commit of its own
/// while the others wait for it. So the next group waits for as many as there were in the last, but no longer than a commit takes; who
/// updates alone is never made to wait.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    updates: usize,
    commit: Duration,
}

impl Pace {
    /// Whether a group of so many updates, gathered for so long, waits for more.
    fn gathers(self, updates: usize, waited: Duration) -> bool {
        updates < self.updates && waited < self.commit.min(LONGEST_GATHERING)
    }
}

/// Says that a write failed, and stops all writing if nobody knows what is on disk now.
fn note(error: &ServiceError, broken: &AtomicBool, alarm: &watch::Sender<bool>) {
    let ServiceError::Store(cause) = error else { return };
    tracing::error!(error = %cause, "a write failed; nothing in it was acknowledged");
    if is_final(cause) {
        broken.store(true, Ordering::Release);
        alarm.send_replace(true);
    }
}

/// A full disk may clear; after a failed write or sync nobody knows what is on disk.
fn is_final(error: &StoreError) -> bool {
    error.is_storage_failure() && !error.is_full()
}

/// What is told of work that panicked.
const PANICKED: ServiceError = ServiceError::Internal("a change panicked");

/// One transaction: operations in their order, each in a savepoint, then the updates; on success everything is settled and drained, but for
/// the updates if one of them panicked: then nothing was done of them.
async fn commit_group(
    connection: &mut Connection,
    operations: &mut Vec<Box<dyn Operation>>,
    updates: &mut Vec<UpdateRequest>,
    drifts: &mpsc::UnboundedSender<Drifted>,
) -> Result<(), ServiceError> {
    store::begin(connection).await?;
    let applied = apply_group(connection, operations, updates).await;
    let (outcomes, mut learnt) = match applied {
        Ok(applied) => applied,
        Err(error) => {
            // The rollback's own failure says nothing new.
            let _ = store::rollback(connection).await;
            return Err(error);
        }
    };
    if planted::has(Bug::ReplyBeforeCommit)
        && let Some(learnt) = learnt.take()
    {
        learnt.settle(updates.drain(..), drifts);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    if let Err(error) = store::commit(connection).await {
        let _ = store::rollback(connection).await;
        return Err(error.into());
    }
    metrics::counter!(telemetry::COMMITS).increment(1);
    for (operation, outcome) in operations.drain(..).zip(outcomes) {
        operation.settle(outcome);
    }
    if let Some(learnt) = learnt {
        learnt.settle(updates.drain(..), drifts);
    }
    Ok(())
}

async fn apply_group(
    connection: &mut Connection,
    operations: &mut [Box<dyn Operation>],
    updates: &mut [UpdateRequest],
) -> Result<(Vec<Result<(), ServiceError>>, Option<learn::Learnt>), ServiceError> {
    let mut outcomes = Vec::with_capacity(operations.len());
    for operation in operations {
        store::savepoint(connection).await?;
        // What panics has shared nothing with others yet: what it did is undone, and what it held is dropped.
        let outcome = AssertUnwindSafe(operation.apply(connection)).catch_unwind().await.unwrap_or(Err(PANICKED));
        if let Err(ServiceError::Store(cause)) = &outcome
            && cause.is_storage_failure()
        {
            return Err(ServiceError::Store(cause.clone()));
        }
        store::end_savepoint(connection, outcome.is_ok()).await?;
        outcomes.push(outcome);
    }
    // Where there is nothing but updates, all of the transaction can be undone.
    let beside = !outcomes.is_empty() && !updates.is_empty();
    if beside {
        store::savepoint(connection).await?;
    }
    let learnt = match AssertUnwindSafe(learn::apply(connection, updates)).catch_unwind().await {
        Ok(learnt) => Some(learnt?),
        Err(_) if beside => None,
        Err(_) => {
            store::rollback(connection).await?;
            store::begin(connection).await?;
            None
        }
    };
    if beside {
        store::end_savepoint(connection, learnt.is_some()).await?;
    }
    Ok((outcomes, learnt))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::Store;
    use crate::store::datasets::Landing;

    /// What a piece of work does besides its change.
    #[derive(Clone, Copy)]
    enum Besides {
        Nothing,
        /// Its commit fails.
        Doom,
        /// It says afterwards that it is not to be.
        Refusal,
    }

    async fn put(writer: &Writer, name: &'static str, besides: Besides) -> Result<(), ServiceError> {
        let work = async move |writer: &mut Connection| {
            let segment = store::datasets::create_segment(writer).await?;
            store::datasets::replace(writer, name, &Landing { segment, rows: 0, bytes: 0, summary: "{}", origin: None }).await?;
            match besides {
                Besides::Nothing => {}
                Besides::Doom => store::doom(writer).await?,
                Besides::Refusal => return Err(ServiceError::DatasetNotFound),
            }
            Ok(Changed::new((), "dataset.put", name, None, None))
        };
        writer.change(work, |()| {}).await
    }

    #[tokio::test]
    async fn a_change_and_its_record_are_there_both_or_neither() {
        let folder = tempfile::tempdir().unwrap();
        let (store, connection) = Store::open(&folder.path().join("lsqd.db"), 2).await.unwrap();
        let (writer, thread, _alarm) = Writer::start(connection, mpsc::unbounded_channel().0).unwrap();
        let there = async || {
            let mut reader = store.read().await.unwrap();
            let names: Vec<_> = store::datasets::list(&mut reader, "", 9).await.unwrap().into_iter().map(|row| row.name).collect();
            let records: Vec<_> =
                store::audit::list(&mut reader, 0, 9).await.unwrap().into_iter().map(|entry| (entry.id, entry.subject)).collect();
            (names, records)
        };
        put(&writer, "a", Besides::Nothing).await.unwrap();
        assert!(put(&writer, "b", Besides::Doom).await.is_err());
        assert!(put(&writer, "c", Besides::Refusal).await.is_err());
        put(&writer, "d", Besides::Nothing).await.unwrap();
        let both = (vec!["a".to_owned(), "d".to_owned()], vec![(1, "a".to_owned()), (2, "d".to_owned())]);
        assert_eq!(there().await, both);
        // Where no record can be written, nothing can be changed.
        writer.run(async |writer: &mut Connection| Ok(store::audit::refuse_records(writer).await?), |()| {}).await.unwrap();
        assert!(put(&writer, "e", Besides::Nothing).await.is_err());
        assert_eq!(there().await, both);
        drop(writer);
        store.close().await;
        tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
    }

    #[test]
    fn a_group_waits_for_those_of_the_last_but_not_longer_than_a_commit() {
        let millis = Duration::from_millis;
        let pace = Pace { updates: 64, commit: millis(2) };
        assert!(pace.gathers(1, millis(0)) && pace.gathers(63, millis(1)));
        assert!(!pace.gathers(64, millis(0)), "all are there");
        assert!(!pace.gathers(1, millis(2)), "a commit would have been over");
        let slow = Pace { updates: 64, commit: millis(900) };
        assert!(slow.gathers(1, millis(4)) && !slow.gathers(1, LONGEST_GATHERING));
        let alone = Pace { updates: 1, commit: millis(2) };
        assert!(!alone.gathers(1, millis(0)), "who updates alone was made to wait");
        assert!(!Pace::default().gathers(0, millis(0)));
    }
}
