//! Datasets: upload, append, describe, read, delete.
//!
//! An upload runs in three places at once: the body arrives on the async threads, is parsed and encoded on a blocking thread, and is written
//! chunk by chunk by the writer, into a segment that belongs to nobody. One last transaction makes the segment part of the dataset. If that
//! never comes (bad row, cut body, crash), nothing was changed, and the segment is swept away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

use super::audit::Changed;
use super::error::ServiceError;
use super::predict_dataset::Origin;
use super::{Fingerprint, Replayable, Service};
use crate::frame::{ColumnType, Format, Frame, ReadOptions, Reader, Summary, codec};
use crate::model::name;
use crate::store::datasets::{ChunkRow, DatasetRow, Landing};
use crate::store::idempotency::About;
use crate::store::{self, Connection, Store, StoreError};
use crate::telemetry;

/// Pieces of a body, and chunks to be written, that may wait between the three places: bounds memory.
const PIECES: usize = 16;
pub(super) const CHUNKS: usize = 4;
/// Chunks of one upload that the writer has at the most: few enough that an update beside it does not wait long for the commit before its own.
const TOGETHER: usize = 4;
/// Chunks freed in one step of the sweeper.
const SWEEP: u32 = 32;
/// How long the sweeper waits where there was no room even to free some.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// A dataset as it is described.
#[derive(Clone, Debug)]
pub struct Description {
    /// Name, rows, bytes, times.
    pub row: DatasetRow,
    /// Schema and columns.
    pub summary: Summary,
}

impl Description {
    pub(super) fn of(row: DatasetRow) -> Result<Self, ServiceError> {
        let summary = serde_json::from_str(&row.summary).map_err(|_| StoreError::Corrupt("the summary of a dataset"))?;
        Ok(Self { row, summary })
    }

    /// What made it, if a job did.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        serde_json::from_str(self.row.origin.as_deref()?).ok()
    }

    /// Its ETag's inner text.
    #[must_use]
    pub fn tag(&self) -> String {
        tag(self.row.id, self.row.revision)
    }
}

pub(super) fn tag(id: i64, revision: i64) -> String {
    format!("{id}-{revision}")
}

/// The dataset's identity and revision in the inner text of an ETag.
pub(super) fn in_tag(tag: &str) -> Option<(i64, i64)> {
    let (id, revision) = tag.split_once('-')?;
    Some((id.parse().ok()?, revision.parse().ok()?))
}

/// What came of an upload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Landed {
    /// Whether the dataset is new.
    pub created: bool,
    /// The dataset as the upload left it. Kept with the key, so that a repeat is told the same whatever came later, an erasure excepted.
    pub(super) dataset: DatasetRow,
}

impl Landed {
    async fn of(writer: &mut Connection, name: &str, created: bool) -> Result<Self, ServiceError> {
        let dataset = store::datasets::find(writer, name).await?;
        Ok(Self { created, dataset: dataset.ok_or(ServiceError::Internal("a dataset is not there that was just written"))? })
    }

    /// The dataset as the upload left it.
    ///
    /// # Errors
    /// What is stored does not decode.
    pub fn description(self) -> Result<Description, ServiceError> {
        Description::of(self.dataset)
    }
}

/// How an upload is to be taken.
#[derive(Debug, Default)]
pub struct Upload {
    /// The dataset's name.
    pub name: String,
    /// The format, if the caller said; else the first bytes tell.
    pub format: Option<Format>,
    /// Types forced by the caller.
    pub types: Vec<(String, ColumnType)>,
    /// ETags of which the dataset must carry one.
    pub if_match: Option<Vec<String>>,
    /// The key, and the fingerprint of what is known before the body.
    pub idempotency: Option<(String, Fingerprint)>,
    /// The most bytes to be taken; 0 is no limit.
    pub limit: u64,
}

/// Segments that must not be swept: uploads under way, and those a fit is reading.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    held: Mutex<HashMap<i64, usize>>,
    /// Rung when something may be swept, and when the service stops.
    pub(crate) released: Notify,
    stopped: AtomicBool,
}

/// Holds segments until dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Pins>,
    segments: BTreeSet<i64>,
}

impl Pins {
    /// Ends the sweeper, which would keep the writer alive.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.released.notify_one();
    }

    fn hold(self: &Arc<Self>, segments: BTreeSet<i64>) -> Pin {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for segment in &segments {
            *held.entry(*segment).or_default() += 1;
        }
        Pin { pins: self.clone(), segments }
    }

    fn all(&self) -> Vec<i64> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut held = self.pins.held.lock().unwrap_or_else(PoisonError::into_inner);
        for segment in &self.segments {
            if let Some(count) = held.get_mut(segment) {
                *count -= 1;
                if *count == 0 {
                    held.remove(segment);
                }
            }
        }
        drop(held);
        self.pins.released.notify_one();
    }
}

/// A chunk on its way to the writer.
pub(super) struct Encoded {
    pub(super) rows: u64,
    pub(super) payloads: Vec<Vec<u8>>,
}

/// The dataset as it stands, its chunks held against the sweeper for as long as this lives.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) description: Description,
    pub(crate) chunks: Vec<ChunkRow>,
    /// Rows that are passed over, by their places in their chunk; what is said of rows elsewhere does not count them.
    passed_over: Arc<BTreeMap<i64, BTreeSet<usize>>>,
    store: Store,
    pin: Arc<Pin>,
}

impl Opened {
    /// Some columns of a chunk, decoded.
    pub(crate) async fn frame(&self, chunk: &ChunkRow, columns: &[usize]) -> Result<Frame, ServiceError> {
        self.frame_by(&mut *self.store.read().await?, chunk, columns).await
    }

    /// The same for whoever gives way to those who serve, on such a thread.
    pub(crate) async fn frame_behind(&self, chunk: &ChunkRow, columns: &[usize]) -> Result<Frame, ServiceError> {
        self.frame_by(&mut *self.store.read_behind().await?, chunk, columns).await
    }

    async fn frame_by(&self, reader: &mut Connection, chunk: &ChunkRow, columns: &[usize]) -> Result<Frame, ServiceError> {
        let payloads = store::datasets::payloads(reader, chunk.id, columns).await?;
        let payloads = payloads.ok_or(ServiceError::Conflict("rows of the dataset were erased while it was being read; ask again"))?;
        let rows = usize::try_from(chunk.rows).unwrap_or(usize::MAX);
        match self.passed_over.get(&chunk.id) {
            None => decode(&payloads, rows),
            Some(passed_over) => Ok(decode(&payloads, rows + passed_over.len())?.without(passed_over)),
        }
    }

    /// The places of these rows in their chunks; rows that there are none of have none.
    pub(crate) fn places(&self, rows: &BTreeSet<u64>) -> BTreeMap<i64, BTreeSet<usize>> {
        let of = |chunk: &ChunkRow| {
            let places = rows.range(chunk.first_row..chunk.first_row + chunk.rows);
            (chunk.id, places.map(|row| usize::try_from(row - chunk.first_row).unwrap_or(usize::MAX)).collect::<BTreeSet<_>>())
        };
        self.chunks.iter().map(of).filter(|(_, places)| !places.is_empty()).collect()
    }

    /// The rows that came up to a revision, and of those the ones that are not to be passed over.
    pub(crate) fn up_to(&self, revision: i64, passed_over: &Arc<BTreeMap<i64, BTreeSet<usize>>>) -> Self {
        let mut description = self.description.clone();
        description.row.rows = 0;
        let mut chunks = Vec::new();
        for chunk in self.chunks.iter().filter(|chunk| chunk.revision <= revision) {
            let rows = chunk.rows - passed_over.get(&chunk.id).map_or(0, |places| places.len() as u64);
            chunks.push(ChunkRow { rows, first_row: description.row.rows, ..*chunk });
            description.row.rows += rows;
        }
        Self { description, chunks, passed_over: passed_over.clone(), store: self.store.clone(), pin: self.pin.clone() }
    }
}

pub(super) fn decode(payloads: &[Bytes], rows: usize) -> Result<Frame, ServiceError> {
    let columns = payloads
        .iter()
        .map(|payload| codec::decode(payload).map_err(|_| StoreError::Corrupt("a column chunk")))
        .collect::<Result<Vec<_>, _>>()?;
    if columns.iter().any(|column| arrow_array::Array::len(column) != rows) {
        return Err(StoreError::Corrupt("a column chunk has another length than its chunk").into());
    }
    Ok(Frame { columns, rows })
}

impl Service {
    /// Creates the dataset or replaces all of it.
    ///
    /// # Errors
    /// A bad row, named; a body that is cut off; a limit; the database. Nothing is changed then.
    pub async fn put_dataset(
        &self,
        upload: Upload,
        body: impl Stream<Item = Result<Bytes, ServiceError>> + Unpin,
    ) -> Result<Replayable<Landed>, ServiceError> {
        let name = name::dataset(&upload.name)?;
        self.upload(
            upload,
            body,
            ("dataset.put", name.clone()),
            None,
            async move |writer: &mut Connection, landing: Landing<'_>, _: &Summary, tags: &Option<Vec<String>>| {
                check_replaced(writer, &name, tags.as_deref()).await?;
                let created = store::datasets::replace(writer, &name, &landing).await?;
                Landed::of(writer, &name, created).await
            },
        )
        .await
    }

    /// Appends rows to a dataset; they must have its columns.
    ///
    /// # Errors
    /// As [`Service::put_dataset`], and when there is no such dataset.
    pub async fn append_rows(
        &self,
        upload: Upload,
        body: impl Stream<Item = Result<Bytes, ServiceError>> + Unpin,
    ) -> Result<Replayable<Landed>, ServiceError> {
        let name = name::dataset(&upload.name).map_err(|_| ServiceError::DatasetNotFound)?;
        let schema = self.describe_dataset(&name).await?.summary.schema;
        self.upload(
            upload,
            body,
            ("dataset.append", name.clone()),
            Some(schema),
            async move |writer: &mut Connection, landing: Landing<'_>, summary: &Summary, tags: &Option<Vec<String>>| {
                let existing = store::datasets::find(writer, &name).await?.ok_or(ServiceError::DatasetNotFound)?;
                let existing = Description::of(existing)?;
                check_tags(tags.as_deref(), Some(&existing))?;
                let mut merged = existing.summary;
                merged.merge(summary).map_err(|_| ServiceError::Conflict("the dataset was replaced while rows were being appended"))?;
                let text = encode_summary(&merged)?;
                store::datasets::append(writer, existing.row.id, &Landing { summary: &text, ..landing }).await?;
                Landed::of(writer, &name, false).await
            },
        )
        .await
    }

    /// A segment that belongs to nobody yet, held against the sweeper.
    pub(super) async fn begin_segment(&self) -> Result<(i64, Pin), ServiceError> {
        let pins = self.pins.clone();
        let create = async move |writer: &mut Connection| {
            let segment = store::datasets::create_segment(writer).await?;
            // Held before the next operation of the writer, which may be the sweeper's: to it, the segment belongs to nobody.
            Ok((segment, pins.hold(BTreeSet::from([segment]))))
        };
        self.writer.run(create, |_| {}).await
    }

    /// Gives up a segment whose chunks could not be stored. Where there was no room, what had been stored of it is in everybody's way: it is gone
    /// before anybody hears of the error.
    pub(super) async fn give_up(&self, pin: Pin, error: ServiceError) -> ServiceError {
        drop(pin);
        if error.is_full() {
            // Chunks that were under way with the one that failed come before this, and would take it with them in one commit.
            while let Ok(true) = self.writer.run_alone(some_swept(&self.pins)).await {}
        }
        error
    }

    async fn upload<F>(
        &self,
        upload: Upload,
        mut body: impl Stream<Item = Result<Bytes, ServiceError>> + Unpin,
        (action, name): (&'static str, String),
        expect: Option<crate::frame::Schema>,
        land: F,
    ) -> Result<Replayable<Landed>, ServiceError>
    where
        F: for<'l> AsyncFnOnce(&mut Connection, Landing<'l>, &Summary, &Option<Vec<String>>) -> Result<Landed, ServiceError>
            + Send
            + 'static,
    {
        let (segment, pin) = self.begin_segment().await?;
        let (pieces, incoming) = mpsc::channel(PIECES);
        let (encoded, chunks) = mpsc::channel(CHUNKS);
        let options = ReadOptions { expect, types: upload.types, ..ReadOptions::default() };
        let format = upload.format;
        let parser = tokio::task::spawn_blocking(move || parse(format, options, incoming, &encoded));

        let storing = store_chunks(self.writer.clone(), segment, chunks);
        let mut fingerprint = upload.idempotency.as_ref().map(|(_, fingerprint)| fingerprint.clone());
        let limit = if upload.limit == 0 { u64::MAX } else { upload.limit };
        let receiving = async move {
            let mut total = 0_u64;
            while let Some(piece) = body.next().await {
                let piece = piece?;
                total += piece.len() as u64;
                if total > limit {
                    return Err(ServiceError::upload_too_large());
                }
                if let Some(fingerprint) = &mut fingerprint {
                    fingerprint.add(&piece);
                }
                if pieces.send(piece).await.is_err() {
                    break; // the parser gave up and will say why
                }
            }
            Ok(fingerprint)
        };
        // A body that fails must not be mistaken for one that ended: its error goes first, and the parser's result is not used.
        let (received, stored) = tokio::join!(receiving, storing);
        let parsed = parser.await.map_err(|_| ServiceError::Internal("the parser of an upload panicked"))?;
        let fingerprint = received?;
        let summary = parsed?;
        let (rows, bytes) = match stored {
            Ok(stored) => stored,
            Err(error) => return Err(self.give_up(pin, error).await),
        };
        let key = upload.idempotency.zip(fingerprint).map(|((key, _), fingerprint)| fingerprint.key(&key));
        let tags = upload.if_match;
        let landed = self
            .writer
            .change(
                async move |writer: &mut Connection| {
                    if let Some(key) = &key
                        && let Some(replayed) = key.replay(writer).await?
                    {
                        return Ok(Changed::nothing(replayed));
                    }
                    let text = encode_summary(&summary)?;
                    let before = store::datasets::find(writer, &name).await?;
                    let landed = land(writer, Landing { segment, rows, bytes, summary: &text, origin: None }, &summary, &tags).await?;
                    if let Some(key) = &key {
                        key.remember(writer, &landed, About::Dataset(landed.dataset.id)).await?;
                    }
                    let after = standing(&landed.dataset);
                    Ok(Changed::new(Replayable::fresh(landed), action, &name, before.as_ref().map(standing), Some(after)))
                },
                |_| {},
            )
            .await?;
        drop(pin);
        metrics::counter!(telemetry::UPLOAD_ROWS).increment(if landed.replayed { 0 } else { rows });
        Ok(landed)
    }

    /// The dataset's schema and columns.
    ///
    /// # Errors
    /// There is none of this name.
    pub async fn describe_dataset(&self, name: &str) -> Result<Description, ServiceError> {
        let name = name::dataset(name).map_err(|_| ServiceError::DatasetNotFound)?;
        let row = store::datasets::find(&mut *self.store.read().await?, &name).await?.ok_or(ServiceError::DatasetNotFound)?;
        Description::of(row)
    }

    /// Datasets by name after `after`, at most `limit`.
    ///
    /// # Errors
    /// The database's.
    pub async fn list_datasets(&self, after: &str, limit: u32, seen: impl Fn(&str) -> bool) -> Result<Vec<Description>, ServiceError> {
        let mut connection = self.store.read().await?;
        let (mut after, mut found) = (after.to_owned(), Vec::new());
        loop {
            let rows = store::datasets::list(&mut connection, &after, limit).await?;
            let last = rows.last().map(|row| row.name.clone()).filter(|_| rows.len() == limit as usize);
            found.extend(rows.into_iter().filter(|row| seen(&row.name)));
            found.truncate(limit as usize);
            match last {
                Some(last) if found.len() < limit as usize => after = last,
                _ => return found.into_iter().map(Description::of).collect(),
            }
        }
    }

    /// Deletes a dataset. Models fitted on it stay.
    ///
    /// # Errors
    /// There is none of this name, or it has another ETag.
    pub async fn delete_dataset(&self, name: &str, if_match: Option<Vec<String>>) -> Result<(), ServiceError> {
        let name = name::dataset(name).map_err(|_| ServiceError::DatasetNotFound)?;
        self.writer
            .change(
                async move |writer: &mut Connection| {
                    let existing = store::datasets::find(writer, &name).await?.ok_or(ServiceError::DatasetNotFound)?;
                    let existing = Description::of(existing)?;
                    check_tags(if_match.as_deref(), Some(&existing))?;
                    store::datasets::delete(writer, existing.row.id).await?;
                    Ok(Changed::new((), "dataset.delete", &name, Some(standing(&existing.row)), None))
                },
                |()| {},
            )
            .await?;
        self.pins.released.notify_one();
        Ok(())
    }

    /// Rows from `first` on, at most `limit`, with the dataset's schema.
    ///
    /// # Errors
    /// There is no such dataset, or it is damaged.
    pub async fn rows_page(
        &self,
        name: &str,
        first: u64,
        limit: usize,
    ) -> Result<(Description, Vec<(Frame, std::ops::Range<usize>)>), ServiceError> {
        let opened = self.open_dataset(name).await?;
        let columns: Vec<usize> = (0..opened.description.summary.schema.columns.len()).collect();
        let mut left = limit as u64;
        let mut page = Vec::new();
        for chunk in &opened.chunks {
            let end = chunk.first_row + chunk.rows;
            if left == 0 || end <= first {
                continue;
            }
            let begin = first.max(chunk.first_row) - chunk.first_row;
            let take = left.min(chunk.rows - begin);
            left -= take;
            let range = usize::try_from(begin).unwrap_or(usize::MAX)..usize::try_from(begin + take).unwrap_or(usize::MAX);
            page.push((opened.frame(chunk, &columns).await?, range));
        }
        Ok((opened.description.clone(), page))
    }

    /// All rows, frame by frame; what is read is the dataset as it stands now.
    ///
    /// # Errors
    /// There is no such dataset.
    pub async fn all_rows(
        &self,
        name: &str,
    ) -> Result<(Description, impl Stream<Item = Result<Frame, ServiceError>> + Send + 'static), ServiceError> {
        let opened = self.open_dataset(name).await?;
        let description = opened.description.clone();
        let columns: Vec<usize> = (0..description.summary.schema.columns.len()).collect();
        let frames = futures_util::stream::unfold((opened, columns, 0), async |(opened, columns, next)| {
            let chunk = *opened.chunks.get(next)?;
            let frame = opened.frame(&chunk, &columns).await;
            Some((frame, (opened, columns, next + 1)))
        });
        Ok((description, frames))
    }

    /// Opens a dataset for reading it all, its chunks held.
    pub(crate) async fn open_dataset(&self, name: &str) -> Result<Opened, ServiceError> {
        let name = name::dataset(name).map_err(|_| ServiceError::DatasetNotFound)?;
        let mut connection = self.store.read().await?;
        loop {
            let row = store::datasets::find(&mut connection, &name).await?.ok_or(ServiceError::DatasetNotFound)?;
            let description = Description::of(row)?;
            let chunks = store::datasets::chunks(&mut connection, description.row.id).await?;
            let pin = self.pins.hold(chunks.iter().map(|chunk| chunk.segment).collect());
            // Between listing and holding, the dataset may have been replaced and swept: hold first, then see that it is still the same.
            let again = store::datasets::find(&mut connection, &name).await?.ok_or(ServiceError::DatasetNotFound)?;
            if again.id == description.row.id && again.revision == description.row.revision {
                let pin = Arc::new(pin);
                return Ok(Opened { description, chunks, passed_over: Arc::default(), store: self.store.clone(), pin });
            }
        }
    }
}

/// Writes chunks into a segment as they come; returns its rows and bytes.
pub(super) async fn store_chunks(
    writer: super::writer::Writer,
    segment: i64,
    mut chunks: mpsc::Receiver<Encoded>,
) -> Result<(u64, u64), ServiceError> {
    let (mut position, mut first_row, mut bytes) = (0_u32, 0_u64, 0_u64);
    let arriving = futures_util::stream::poll_fn(|context| chunks.poll_recv(context));
    // Some chunks are under way together, so that they share a commit and its `fsync`; those of an unfinished segment depend on nothing.
    let mut stored = arriving
        .map(|Encoded { rows, payloads }| {
            let (this_position, this_first_row) = (position, first_row);
            position += 1;
            first_row += rows;
            bytes += payloads.iter().map(|payload| payload.len() as u64).sum::<u64>();
            let add = async move |writer: &mut Connection| {
                Ok(store::datasets::add_chunk(writer, segment, this_position, this_first_row, rows, payloads).await?)
            };
            let writer = &writer;
            async move { writer.run(add, |()| {}).await }
        })
        .buffer_unordered(TOGETHER);
    while let Some(outcome) = stored.next().await {
        outcome?;
    }
    drop(stored);
    Ok((first_row, bytes))
}

/// Frees a little of what belongs to nobody; whether there was some.
fn some_swept(pins: &Arc<Pins>) -> impl AsyncFnOnce(&mut Connection) -> Result<bool, ServiceError> + Send + 'static {
    let held = pins.clone();
    async move |writer: &mut Connection| Ok(store::datasets::sweep(writer, &held.all(), SWEEP).await?)
}

/// Frees what belongs to nobody, a little at a time, for as long as the service lives.
pub(crate) async fn sweep(writer: super::writer::Writer, pins: Arc<Pins>) {
    while !pins.stopped.load(Ordering::Acquire) {
        match writer.run(some_swept(&pins), |_| {}).await {
            Ok(true) => tokio::task::yield_now().await,
            Ok(false) => pins.released.notified().await,
            Err(ServiceError::Unavailable(_)) => return,
            // There may be room again, or it was for another write of the same commit that there was none.
            Err(error) if error.is_full() => _ = tokio::time::timeout(FULL_PAUSE, pins.released.notified()).await,
            Err(error) => {
                tracing::error!(%error, "sweeping failed");
                pins.released.notified().await;
            }
        }
    }
}

fn parse(
    format: Option<Format>,
    options: ReadOptions,
    mut pieces: mpsc::Receiver<Bytes>,
    chunks: &mpsc::Sender<Encoded>,
) -> Result<Summary, ServiceError> {
    // What was read before the format is known: enough to tell, whatever the size of the first piece.
    let mut head = Vec::new();
    let format = match format {
        Some(format) => format,
        None => {
            while head.len() < 4096 {
                let Some(piece) = pieces.blocking_recv() else { break };
                head.extend_from_slice(&piece);
            }
            Format::sniff(&head)
        }
    };
    match format {
        Format::Parquet | Format::ArrowStream => {
            return Err(ServiceError::MediaType("this version reads CSV, NDJSON and JSON; convert Parquet and Arrow first"));
        }
        Format::Csv | Format::Ndjson | Format::Json => {}
    }
    let mut reader = Reader::new(format, options);
    let mut gone = false;
    let mut emit = |frame: Frame| {
        if !gone {
            let payloads = frame.columns.iter().map(codec::encode).collect();
            // The storing side stops listening only when it failed; it says why itself.
            gone = chunks.blocking_send(Encoded { rows: frame.rows as u64, payloads }).is_err();
        }
        Ok(())
    };
    if !head.is_empty() {
        reader.push(&head, &mut emit)?;
    }
    while let Some(piece) = pieces.blocking_recv() {
        reader.push(&piece, &mut emit)?;
    }
    Ok(reader.finish(&mut emit)?)
}

/// What a dataset is, as the audit log has it.
pub(super) fn standing(row: &DatasetRow) -> serde_json::Value {
    serde_json::json!({"revision": row.revision, "rows": row.rows, "bytes": row.bytes})
}

pub(super) fn encode_summary(summary: &Summary) -> Result<String, ServiceError> {
    serde_json::to_string(summary).map_err(|_| ServiceError::Internal("a summary does not encode"))
}

/// Checks the tags of a dataset that is about to be made or replaced.
pub(super) async fn check_replaced(writer: &mut Connection, name: &str, tags: Option<&[String]>) -> Result<(), ServiceError> {
    let existing = store::datasets::find(writer, name).await?.map(Description::of).transpose()?;
    check_tags(tags, existing.as_ref())
}

/// `If-Match`: `*` is any existing one.
pub(super) fn check_tags(tags: Option<&[String]>, existing: Option<&Description>) -> Result<(), ServiceError> {
    let Some(tags) = tags else { return Ok(()) };
    match existing {
        Some(existing) if tags.iter().any(|tag| tag == "*" || *tag == existing.tag()) => Ok(()),
        _ => Err(ServiceError::Precondition),
    }
}
