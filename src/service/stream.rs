//! Updates as a stream: rows of any number, learnt batch by batch while they arrive, each batch acknowledged when it is on disk.
//!
//! A stream is driven by whoever takes its acknowledgements: when those are not taken, no more of the body is read, so that a slow reader
//! slows the sender and memory stays bounded. While some batches are on their way to the disk, the next one is gathered and parsed. A batch
//! goes when it is full, or when nothing more has arrived and there is room for it: a client that pauses waits for nothing. The first
//! thing that goes wrong ends the stream; what was acknowledged before stays, and of the rest nothing is learnt.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{oneshot, watch};

use super::arriving::{LARGE, Reading, by_line, receive};
use super::catalogue::Version;
use super::error::ServiceError;
use super::idempotency::Mark;
use super::learn::{Reply, UpdateRequest, Waiting};
use super::update::{check_learns, expected_sequence, with_weights};
use super::{Fingerprint, IdempotencyKey, Replayable, Service};
use crate::frame::rows::{Rows, RowsOptions};
use crate::frame::{Batch, Batches, Full, Lines};

/// Batches of one stream that may be on their way to the disk: enough that several share a commit while the next is parsed.
const IN_FLIGHT: usize = 4;

const OPTIONS: RowsOptions = RowsOptions { allow_id: true, max_rows: 1_000_000 };

/// A stream of rows to learn from, as it is asked for.
#[derive(Debug)]
pub struct StreamedUpdate {
    /// The model, `name@alias` or `name@version`. What it means is settled when the stream begins.
    pub reference: String,
    /// What its lines are.
    pub lines: Lines,
    /// ETags of which the version must carry one when the first batch is learnt.
    pub if_match: Option<Vec<String>>,
    /// The key with the fingerprint of the route.
    pub idempotency: Option<(String, Fingerprint)>,
}

/// What became of some lines.
#[derive(Debug)]
pub struct Acknowledgement {
    /// The first of them. After an error, nothing from here on was learnt.
    pub first_line: u64,
    /// The last of them; `None` where the error is not about lines that were read.
    pub last_line: Option<u64>,
    /// What was learnt; an error is the last of the stream.
    pub outcome: Result<Replayable<Reply>, ServiceError>,
}

impl Service {
    /// Begins a stream. Each item of what is returned is a batch that is on disk; the last may be an error instead.
    ///
    /// # Errors
    /// There is no such model; its version does not learn, or has another ETag; the key was used with another request.
    pub async fn update_stream<B>(
        self: &Arc<Self>,
        asked: StreamedUpdate,
        body: B,
    ) -> Result<(Arc<Version>, impl Stream<Item = Acknowledgement> + Send + 'static + use<B>), ServiceError>
    where
        B: Stream<Item = Result<Bytes, ServiceError>> + Send + Unpin + 'static,
    {
        let (model, mut version, held) = self.catalogue.resolve(&asked.reference)?;
        if held.is_some() {
            return Err(ServiceError::Conflict(super::models::HELD));
        }
        let mut batches = Batches::new(asked.lines, Full::LEARNT);
        let mut keyed = None;
        if let Some((key, fingerprint)) = asked.idempotency {
            let key = fingerprint.key(&key);
            let known = key.mark(&mut *self.store.read().await?).await?;
            if let Some(mark) = &known {
                // The version that learnt the beginning learns the rest, whatever is served by now.
                version = model.versions.get(&mark.version).ok_or(ServiceError::VersionNotFound)?.clone();
                batches.set_border(mark.lines);
            }
            keyed = Some(Keyed { key, so_far: Fingerprint::new(&[]), done: known.as_ref().map_or(0, |mark| mark.lines), known });
        }
        check_learns(&version)?;
        let state = version.state(&self.store).await?;
        let resumed = keyed.as_ref().is_some_and(|keyed| keyed.known.is_some());
        let expected_sequence = if resumed { None } else { expected_sequence(asked.if_match.as_deref(), &version)? };
        if expected_sequence.is_some_and(|sequence| sequence != state.sequence()) {
            return Err(ServiceError::Precondition);
        }
        let reading = Reading::new(asked.lines, OPTIONS);
        batches.set_single(reading.awaits_header());
        let flow = Flow {
            service: self.clone(),
            stopping: self.stopping.subscribe(),
            version: version.clone(),
            body,
            reading,
            batches,
            in_flight: VecDeque::new(),
            ended: false,
            failure: None,
            over: false,
            failed: Arc::default(),
            expected_sequence,
            keyed,
        };
        Ok((version, futures_util::stream::unfold(flow, async |mut flow| flow.next().await.map(|told| (told, flow)))))
    }
}

/// A batch on its way to the disk.
struct InFlight {
    first_line: u64,
    last_line: u64,
    /// The line of each row.
    lines: Vec<u64>,
    answer: oneshot::Receiver<Result<Replayable<Reply>, ServiceError>>,
}

/// What a stream with an `Idempotency-Key` knows of itself.
struct Keyed {
    key: IdempotencyKey,
    /// All lines that were taken.
    so_far: Fingerprint,
    /// Lines that are done, or will be when what is in flight has landed.
    done: u64,
    /// How far an earlier try has come, until this one is there too.
    known: Option<Mark>,
}

/// A stream under way.
struct Flow<B> {
    service: Arc<Service>,
    stopping: watch::Receiver<bool>,
    version: Arc<Version>,
    body: B,
    reading: Reading,
    batches: Batches,
    in_flight: VecDeque<InFlight>,
    /// Whether the body has ended.
    ended: bool,
    /// What went wrong, told when everything before it is.
    failure: Option<Acknowledgement>,
    over: bool,
    /// Shared with the writer: whether a batch has failed, so that none behind it may be learnt.
    failed: Arc<AtomicBool>,
    expected_sequence: Option<u64>,
    keyed: Option<Keyed>,
}

impl<B: Stream<Item = Result<Bytes, ServiceError>> + Unpin> Flow<B> {
    async fn next(&mut self) -> Option<Acknowledgement> {
        while !self.over {
            let reads_on = !self.ended && self.failure.is_none();
            let room = self.in_flight.len() < IN_FLIGHT && self.failure.is_none();
            if room && (self.batches.is_full() || self.ended && !self.batches.is_empty()) {
                if let Some(told) = self.send().await {
                    return Some(told);
                }
                continue;
            }
            if self.in_flight.is_empty() && !reads_on {
                self.over = true;
                return self.failure.take().or_else(|| self.lacking());
            }
            let more = reads_on && !self.batches.is_full();
            tokio::select! {
                biased;
                answer = async { (&mut self.in_flight[0].answer).await }, if !self.in_flight.is_empty() => {
                    let answer = answer.unwrap_or(Err(ServiceError::Unavailable("the server is stopping")));
                    return self.answered(answer);
                }
                piece = receive(&mut self.body, &mut self.stopping), if more => match piece {
                    Ok(Some(piece)) => self.batches.push(&piece),
                    Ok(None) => {
                        self.ended = true;
                        self.batches.end();
                    }
                    Err(error) => self.fail(None, error),
                },
                // Nothing more has arrived by now.
                () = std::future::ready(()), if room && !self.batches.is_empty() => {
                    if let Some(told) = self.send().await {
                        return Some(told);
                    }
                }
            }
        }
        None
    }

    /// Notes what went wrong from the first line on that was not taken.
    fn fail(&mut self, last_line: Option<u64>, error: ServiceError) {
        self.failure = Some(Acknowledgement { first_line: self.batches.next_line(), last_line, outcome: Err(error) });
    }

    /// What an ended body should have held and did not.
    fn lacking(&self) -> Option<Acknowledgement> {
        let error = if self.keyed.as_ref().is_some_and(|keyed| keyed.known.is_some()) {
            ServiceError::IdempotencyMismatch
        } else if self.ended {
            self.reading.lacking()?
        } else {
            return None;
        };
        Some(Acknowledgement { first_line: self.batches.next_line(), last_line: None, outcome: Err(error) })
    }

    /// The writer has answered for the oldest batch in flight.
    fn answered(&mut self, answer: Result<Replayable<Reply>, ServiceError>) -> Option<Acknowledgement> {
        let batch = self.in_flight.pop_front()?;
        self.over = answer.is_err();
        let outcome = answer.map_err(|error| by_line(error, &batch.lines));
        Some(Acknowledgement { first_line: batch.first_line, last_line: Some(batch.last_line), outcome })
    }

    /// Takes a batch and sends it to the writer; returns what can be told at once.
    async fn send(&mut self) -> Option<Acknowledgement> {
        let batch = match self.batches.take() {
            Ok(batch) => batch?,
            Err(error) => {
                self.fail(Some(error.0), ServiceError::TooLarge(error.to_string()));
                return None;
            }
        };
        let (first_line, last_line) = (batch.first_line, batch.last_line);
        match self.try_send(batch).await {
            Ok(told) => told,
            Err(error) => {
                self.failure = Some(Acknowledgement { first_line, last_line: Some(last_line), outcome: Err(error) });
                None
            }
        }
    }

    async fn try_send(&mut self, batch: Batch) -> Result<Option<Acknowledgement>, ServiceError> {
        if let Some(keyed) = &mut self.keyed {
            keyed.so_far.add(&batch.text);
        }
        if self.reading.awaits_header() {
            self.reading.take_header(batch, &self.version.update_inputs)?;
            self.batches.set_single(self.reading.awaits_header());
            return Ok(None);
        }
        if let Some(keyed) = &mut self.keyed
            && let Some(mark) = &keyed.known
        {
            if batch.last_line < mark.lines {
                return Ok(None);
            }
            if batch.last_line != mark.lines || keyed.so_far.digest() != mark.digest {
                return Err(ServiceError::IdempotencyMismatch);
            }
            keyed.known = None;
            self.batches.set_border(u64::MAX);
            let sequence = self.version.state(&self.service.store).await?.sequence();
            let version = self.version.number;
            let reply = Reply { version, sequence, accepted: 0, predictions: Vec::new(), errors: Vec::new(), known: Vec::new() };
            let outcome = Ok(Replayable { value: reply, replayed: true });
            return Ok(Some(Acknowledgement { first_line: 1, last_line: Some(batch.last_line), outcome }));
        }
        let (first_line, last_line) = (batch.first_line, batch.last_line);
        let rows = parse_batch(&self.reading, self.version.clone(), batch).await?;
        if rows.count == 0 {
            return Ok(None);
        }
        let cells = with_weights(&self.version, &rows)?;
        let idempotency = self.keyed.as_mut().map(|keyed| {
            let mark = Mark { version: self.version.number, lines: last_line, digest: keyed.so_far.digest() };
            keyed.key.step(std::mem::replace(&mut keyed.done, last_line), mark)
        });
        let (reply, answer) = Waiting::here();
        let request = UpdateRequest {
            version: self.version.clone(),
            cells,
            events: rows.ids,
            expected_sequence: self.expected_sequence.take(),
            idempotency,
            stream: Some(self.failed.clone()),
            labels: None,
            reply,
        };
        self.service.writer.update(request).await?;
        self.in_flight.push_back(InFlight { first_line, last_line, lines: rows.lines, answer });
        Ok(None)
    }
}

/// The rows of a batch, where it is large on a thread that may be kept busy.
async fn parse_batch(reading: &Reading, version: Arc<Version>, batch: Batch) -> Result<Rows, ServiceError> {
    let large = batch.text.len() > LARGE;
    let reading = reading.clone();
    let work = move || {
        let mut rows = Rows::default();
        reading.parse(&batch, &version.update_inputs, &mut rows)?;
        Ok(rows)
    };
    if !large {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| ServiceError::Internal("the parser of a stream panicked"))?
}
