//! Predictions as a stream: rows of any number, answered batch by batch while they arrive, in their order, by one version at one sequence.
//!
//! While some batches are parsed, answered and written on blocking threads, the next one is gathered. A batch goes when it is full, or
//! when nothing is in flight and nothing more has arrived: a client that pauses waits for nothing. Answers wait for a client that does not
//! take them up to a number of bytes; past that no more of the body is read, so that a slow reader slows the sender and memory stays bounded.
//! The first thing that goes wrong ends the stream.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::Service;
use super::arriving::{LARGE, Reading, by_line, by_row, receive};
use super::error::ServiceError;
use super::predict::Answerer;
use crate::frame::arrow_stream::{ArrowBatch, ArrowPieces};
use crate::frame::rows::{Rows, RowsOptions};
use crate::frame::{Batch, Batches, Full, InputSchema, Lines};
use crate::model::{Answer, Question};

/// Batches of one stream that may be worked on: enough that no core waits for the next while another is being gathered.
const IN_FLIGHT: usize = 4;

const OPTIONS: RowsOptions = RowsOptions { allow_id: false, max_rows: 1_000_000 };

/// How the rows of a stream come.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// As lines.
    Lines(Lines),
    /// As an Arrow stream, whose batches have this many bytes at the most.
    Arrow(usize),
}

/// Where a stream ended before its time.
#[derive(Clone, Debug)]
pub struct Broken {
    /// The first line (of Arrow: row, from 1) that is not answered; nothing from here on was.
    pub first: u64,
    /// The last that was looked at; `None` where the error is not about what was read.
    pub last: Option<u64>,
    /// Why.
    pub error: ServiceError,
}

/// Answers of a stream, as they were written; an error is the last of them.
pub type Answers = BoxStream<Result<Bytes, Broken>>;

type BoxStream<T> = std::pin::Pin<Box<dyn Stream<Item = T> + Send>>;

impl Service {
    /// Answers the rows of a body; `write` turns answers into bytes. About `ahead` bytes of answers may wait to be taken.
    pub fn predict_stream<B, W>(&self, answerer: Answerer, question: Question, form: Form, body: B, ahead: usize, write: W) -> Answers
    where
        B: Stream<Item = Result<Bytes, ServiceError>> + Send + Unpin + 'static,
        W: Fn(&Answer, &mut Vec<u8>) -> Result<(), ServiceError> + Send + Sync + 'static,
    {
        let source = match form {
            Form::Lines(lines) => Source::Lines(Batches::new(lines, Full::ANSWERED)),
            Form::Arrow(limit) => Source::Arrow(Box::new(ArrowPieces::new(limit)), true),
        };
        let lines = if let Form::Lines(lines) = form { lines } else { Lines::Plain };
        let mut flow = Flow {
            stopping: self.stopping.subscribe(),
            answering: Arc::new(Answering { answerer, question, write }),
            body,
            source,
            reading: Reading::new(lines, OPTIONS),
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            ended: false,
            failure: None,
            over: false,
        };
        flow.source.set_single(flow.reading.awaits_header());
        let waiting = Arc::new(Semaphore::new(ahead.min(Semaphore::MAX_PERMITS)));
        let (sender, receiver) = mpsc::unbounded_channel::<(Result<Bytes, Broken>, Option<OwnedSemaphorePermit>)>();
        tokio::spawn(async move {
            let gone = sender.clone();
            let run = async {
                loop {
                    // Without a word, answers that break off would be taken for all of them.
                    let told = AssertUnwindSafe(flow.next()).catch_unwind().await;
                    let Some(told) = told.unwrap_or_else(|_| Some(Err(flow.panicked()))) else { return };
                    let bytes = told.as_ref().map_or(0, Bytes::len).min(ahead);
                    // The semaphore is never closed.
                    let room = waiting.clone().acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await.ok();
                    if sender.send((told, room)).is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = run => {}
                // Nobody wants to know any more.
                () = gone.closed() => {}
            }
        });
        Box::pin(futures_util::stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|(told, _room)| (told, receiver))))
    }
}

/// What every batch is answered by.
struct Answering<W> {
    answerer: Answerer,
    question: Question,
    write: W,
}

impl<W: Fn(&Answer, &mut Vec<u8>) -> Result<(), ServiceError>> Answering<W> {
    /// Parses a batch into a buffer that is used again, answers it and writes the answers.
    fn work(&self, part: &Part, reading: &Reading, rows: &mut Rows) -> Result<Bytes, ServiceError> {
        match part {
            Part::Lines(batch) => reading.parse(batch, self.answerer.inputs(), rows).map_err(|error| self.answerer.refused(error))?,
            Part::Arrow(batch) => batch.parse(self.answerer.inputs(), rows).map_err(|error| self.answerer.refused(error))?,
        }
        if rows.count == 0 {
            return Ok(Bytes::new());
        }
        let answer = self.answerer.answer(rows, self.question).map_err(|error| match part {
            Part::Lines(_) => by_line(error, &rows.lines),
            Part::Arrow(batch) => by_row(error, batch.first_row),
        })?;
        let mut out = Vec::with_capacity(64 + answer.predictions.len() * 24);
        (self.write)(&answer, &mut out)?;
        self.answerer.show(rows, &answer);
        Ok(out.into())
    }
}

/// What has arrived and was not taken.
enum Source {
    Lines(Batches),
    /// With whether there may be rows to take.
    Arrow(Box<ArrowPieces>, bool),
}

/// Some rows that have arrived.
enum Part {
    Lines(Batch),
    Arrow(ArrowBatch),
}

impl Part {
    /// Their first and last line, or row from 1.
    fn span(&self) -> (u64, u64) {
        match self {
            Self::Lines(batch) => (batch.first_line, batch.last_line),
            Self::Arrow(batch) => (batch.first_row + 1, batch.first_row + batch.count() as u64),
        }
    }

    fn is_large(&self, schema: &InputSchema) -> bool {
        match self {
            Self::Lines(batch) => batch.text.len() > LARGE,
            Self::Arrow(batch) => batch.count() * schema.len() > LARGE / size_of::<f64>(),
        }
    }
}

impl Source {
    fn set_single(&mut self, single: bool) {
        if let Self::Lines(batches) = self {
            batches.set_single(single);
        }
    }

    fn push(&mut self, piece: Bytes) {
        match self {
            Self::Lines(batches) => batches.push(&piece),
            Self::Arrow(pieces, some) => {
                pieces.push(piece);
                *some = true;
            }
        }
    }

    fn end(&mut self) {
        match self {
            Self::Lines(batches) => batches.end(),
            Self::Arrow(pieces, some) => {
                pieces.end();
                *some = true;
            }
        }
    }

    /// Whether as much has arrived as is taken at once.
    fn is_full(&self) -> bool {
        match self {
            Self::Lines(batches) => batches.is_full(),
            Self::Arrow(_, some) => *some,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Lines(batches) => batches.is_empty(),
            Self::Arrow(_, some) => !some,
        }
    }

    /// The first line, or row from 1, that was not taken.
    fn next(&self) -> u64 {
        match self {
            Self::Lines(batches) => batches.next_line(),
            Self::Arrow(pieces, _) => pieces.next_row() + 1,
        }
    }

    fn take(&mut self, schema: &InputSchema) -> Result<Option<Part>, Broken> {
        let first = self.next();
        match self {
            Self::Lines(batches) => match batches.take() {
                Ok(batch) => Ok(batch.map(Part::Lines)),
                Err(error) => Err(Broken { first, last: Some(error.0), error: ServiceError::TooLarge(error.to_string()) }),
            },
            Self::Arrow(pieces, some) => {
                let batch = pieces.take(schema).map_err(|error| Broken { first, last: None, error: error.into() })?;
                *some = batch.is_some();
                Ok(batch.map(Part::Arrow))
            }
        }
    }
}

/// What is told of work that panicked.
const PANICKED: ServiceError = ServiceError::Internal("the work on a stream panicked");

/// A batch that is being answered.
struct InFlight {
    span: (u64, u64),
    /// The answers, and the buffer of rows to be used again.
    work: BoxFuture<'static, (Result<Bytes, ServiceError>, Rows)>,
}

/// A stream under way.
struct Flow<B, W> {
    stopping: watch::Receiver<bool>,
    answering: Arc<Answering<W>>,
    body: B,
    source: Source,
    reading: Reading,
    in_flight: VecDeque<InFlight>,
    spare: Vec<Rows>,
    /// Whether the body has ended.
    ended: bool,
    /// What went wrong, told when everything before it is.
    failure: Option<Broken>,
    over: bool,
}

impl<B, W> Flow<B, W>
where
    B: Stream<Item = Result<Bytes, ServiceError>> + Unpin,
    W: Fn(&Answer, &mut Vec<u8>) -> Result<(), ServiceError> + Send + Sync + 'static,
{
    async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        while !self.over {
            let reads_on = !self.ended && self.failure.is_none();
            let room = self.in_flight.len() < IN_FLIGHT && self.failure.is_none();
            if room && (self.source.is_full() || self.ended && !self.source.is_empty()) {
                self.send();
                continue;
            }
            if self.in_flight.is_empty() && !reads_on {
                self.over = true;
                let lacking = || Some(Broken { first: self.source.next(), last: None, error: self.reading.lacking()? });
                return self.failure.take().or_else(lacking).map(Err);
            }
            let more = reads_on && !self.source.is_full();
            tokio::select! {
                biased;
                (outcome, rows) = async { (&mut self.in_flight[0].work).await }, if !self.in_flight.is_empty() => {
                    let span = self.in_flight.pop_front().map(|done| done.span);
                    self.spare.push(rows);
                    match outcome {
                        Ok(bytes) if bytes.is_empty() => {}
                        Ok(bytes) => return Some(Ok(bytes)),
                        Err(error) => {
                            self.over = true;
                            let (first, last) = span.unwrap_or_default();
                            return Some(Err(Broken { first, last: Some(last), error }));
                        }
                    }
                }
                piece = receive(&mut self.body, &mut self.stopping), if more => match piece {
                    Ok(Some(piece)) => self.source.push(piece),
                    Ok(None) => {
                        self.ended = true;
                        self.source.end();
                    }
                    Err(error) => self.failure = Some(Broken { first: self.source.next(), last: None, error }),
                },
                // Nothing more has arrived by now.
                () = std::future::ready(()), if self.in_flight.is_empty() && !self.source.is_empty() => self.send(),
            }
        }
        None
    }

    /// What is told of a panic, after which nothing goes on: what was told before it was answered, and nothing else.
    fn panicked(&mut self) -> Broken {
        self.over = true;
        Broken { first: self.in_flight.front().map_or_else(|| self.source.next(), |waiting| waiting.span.0), last: None, error: PANICKED }
    }

    /// Takes a batch and has it answered.
    fn send(&mut self) {
        if let Err(broken) = self.try_send() {
            self.failure = Some(broken);
        }
    }

    fn try_send(&mut self) -> Result<(), Broken> {
        let schema = self.answering.answerer.inputs();
        let Some(part) = self.source.take(schema)? else { return Ok(()) };
        let span = part.span();
        let broken = |error| Broken { first: span.0, last: Some(span.1), error };
        let part = match part {
            Part::Lines(batch) if self.reading.awaits_header() => {
                self.reading.take_header(batch, schema).map_err(broken)?;
                self.source.set_single(self.reading.awaits_header());
                return Ok(());
            }
            part => part,
        };
        let mut rows = self.spare.pop().unwrap_or_default();
        let work = if part.is_large(schema) {
            let (answering, reading) = (self.answering.clone(), self.reading.clone());
            let work = move || {
                let outcome = answering.work(&part, &reading, &mut rows);
                (outcome, rows)
            };
            tokio::task::spawn_blocking(work).map(|done| done.unwrap_or_else(|_| (Err(PANICKED), Rows::default()))).boxed()
        } else {
            let work = AssertUnwindSafe(|| self.answering.work(&part, &self.reading, &mut rows));
            let outcome = std::panic::catch_unwind(work).unwrap_or(Err(PANICKED));
            std::future::ready((outcome, rows)).boxed()
        };
        self.in_flight.push_back(InFlight { span, work });
        Ok(())
    }
}
