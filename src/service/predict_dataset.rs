//! Predictions of a whole dataset: a stored table to a new one, as a job.
//!
//! One version at one sequence answers every row, of the dataset as it stood when the job was asked for. Frames are read, answered and written
//! one after the other, so that memory does not grow with the rows. What is written is a segment that belongs to nobody until one last
//! transaction makes it the dataset and ends the job: nobody sees a part, and a job that fails changes nothing.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::types::Int32Type;
use arrow_array::{Array as _, ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, StringArray};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::ahead::Ahead;
use super::arriving::numbered;
use super::aside::aside;
use super::audit::Changed;
use super::datasets::{self, CHUNKS, Encoded, Opened};
use super::error::ServiceError;
use super::jobs::{Job, JobKind, JobState, Running};
use super::predict::Answerer;
use super::{IdempotencyKey, Replayable, Service};
use crate::features::{Lagged, Read};
use crate::frame::arrow_stream::parse_columns;
use crate::frame::rows::Rows;
use crate::frame::{Column, ColumnType, Fault, Frame, Input, InputKind, InputSchema, Schema, Summary, codec};
use crate::model::{Answer, Classifier, Figure, Question, Wanted, name};
use crate::store::datasets::Landing;
use crate::store::{self, Connection};

/// Cells that are answered at once: bounds memory for wide models.
const CELLS: usize = 1 << 20;

/// What is asked of a dataset.
#[derive(Clone, Debug)]
pub struct DatasetQuestion {
    /// The model, `name@alias` or `name@version`.
    pub reference: String,
    /// The dataset whose rows are predicted.
    pub dataset: String,
    /// The dataset that is made of the answers; one of that name is replaced.
    pub into: String,
    /// Columns that go along.
    pub columns: Vec<String>,
    /// Intervals and contributions.
    pub question: Question,
    /// What is answered.
    pub wanted: Wanted,
    /// The sequence at which it is answered; as the version stands, otherwise.
    pub at: Option<u64>,
    /// Whether a row in which a feature is missing is answered by nothing, and not the end of the job.
    pub skip_missing: bool,
    /// ETags of which the dataset that is replaced must carry one.
    pub if_match: Option<Vec<String>>,
}

/// What a dataset was made by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The model that predicted.
    pub model: String,
    /// Its version.
    pub version: u64,
    /// The sequence of the version.
    pub sequence: u64,
    /// The dataset that was predicted.
    pub dataset: String,
    /// Its ETag then.
    pub dataset_tag: String,
}

/// A job that is ready to run.
struct Plan {
    answerer: Answerer,
    question: Question,
    figures: Vec<Figure>,
    /// What a row must hold, its past values too: the dataset's own rows before it have them.
    needed: Vec<Input>,
    /// The same; where missing cells are allowed, nothing.
    inputs: InputSchema,
    opened: Opened,
    /// Columns of the dataset, so many rows back: the features in the model's order, then those that go along.
    columns: Vec<Read>,
    kept: usize,
    /// Of the dataset that is made, before a row of it is.
    summary: Summary,
    into: String,
    if_match: Option<Vec<String>>,
    origin: Origin,
}

impl Service {
    /// Queues the predictions of a dataset and waits for them at most `wait`. The job tells how far they came.
    ///
    /// # Errors
    /// There is no such model, version or dataset; the dataset lacks features, or holds something else under their names; too many jobs are
    /// waiting; the database.
    pub async fn predict_dataset(
        self: &Arc<Self>,
        asked: DatasetQuestion,
        wait: Duration,
        key: Option<IdempotencyKey>,
    ) -> Result<Replayable<Job>, ServiceError> {
        if let Some(replayed) = self.replayed_job(key.as_ref(), wait).await? {
            return Ok(replayed);
        }
        let plan = self.plan_predictions(asked).await?;
        let (model, into) = (plan.answerer.version.model.clone(), plan.into.clone());
        self.begin_job(JobKind::Predictions { dataset: into }, &model, key, wait, move |service, running| async move {
            let version = plan.answerer.version.number;
            predict_and_store(&service, &running, plan).await.map(|()| version)
        })
        .await
    }

    /// Checks a question against the dataset's columns. All faults are reported together.
    async fn plan_predictions(&self, asked: DatasetQuestion) -> Result<Plan, ServiceError> {
        // One version answers the whole dataset: a split of traffic is for requests.
        let (_, version, state) = self.version(&asked.reference).await?;
        let mut answerer = self.answering(version, state, None);
        if let Some(sequence) = asked.at {
            answerer = self.answerer_at(answerer, sequence).await?;
        }
        let into = name::dataset(&asked.into)?;
        let opened = self.open_dataset(&asked.dataset).await.map_err(|error| match error {
            ServiceError::DatasetNotFound => ServiceError::FitDatasetNotFound,
            other => other,
        })?;
        let (mut question, mut wanted) = (asked.question, asked.wanted);
        wanted.meet(&mut question, &answerer.version.document);
        let table = &opened.description.summary;
        let (mut unknown, mut faults) = (Vec::new(), Vec::new());
        let mut columns = Vec::new();
        for (input, raw) in answerer.inputs().inputs().iter().zip(answerer.version.design.columns()) {
            let (name, lag) = raw.past.as_ref().map_or((&input.name, 0), |past| (&past.column, past.lag));
            match table.schema.index_of(name) {
                None => unknown.push(Fault {
                    pointer: "/dataset".to_owned(),
                    detail: format!("the dataset has no column {name:?}, which is a feature of the model"),
                }),
                Some(index) if !holds(table.schema.columns[index].kind, &input.kind) => faults.push(Fault {
                    pointer: "/dataset".to_owned(),
                    detail: format!(
                        "column {name:?} of the dataset is of type {}, which is not what the model's feature of that name holds",
                        table.schema.columns[index].kind.as_str()
                    ),
                }),
                Some(column) => columns.push(Read { column, lag }),
            }
        }
        let answered: Vec<(Column, Figure)> = wanted
            .columns(&answerer.version.document)
            .into_iter()
            .map(|(name, figure)| (Column { name, kind: kind_of(figure) }, figure))
            .collect();
        if answered.is_empty() {
            faults.push(Fault { pointer: "/fields".to_owned(), detail: "`fields` lists nothing that is asked for".to_owned() });
        }
        let mut kept = Vec::new();
        for (place, column) in asked.columns.iter().enumerate() {
            let pointer = format!("/columns/{place}");
            match table.schema.index_of(column) {
                None => unknown.push(Fault { pointer, detail: format!("the dataset has no column {column:?}") }),
                Some(index) if kept.contains(&index) => {
                    faults.push(Fault { pointer, detail: format!("column {column:?} is kept twice") });
                }
                Some(_) if answered.iter().any(|(answered, _)| answered.name == *column) => {
                    faults.push(Fault { pointer, detail: format!("column {column:?} would stand beside an answer of that name") });
                }
                Some(index) => kept.push(index),
            }
        }
        if !unknown.is_empty() {
            unknown.extend(faults);
            return Err(ServiceError::UnknownColumn(unknown));
        }
        if !faults.is_empty() {
            return Err(ServiceError::Request(faults));
        }
        let mut needed = answerer.inputs().inputs().to_vec();
        needed.iter_mut().zip(answerer.version.design.columns()).for_each(|(input, raw)| input.required = raw.required);
        let mut inputs = needed.clone();
        inputs.iter_mut().for_each(|input| input.required &= !asked.skip_missing);
        let (fresh, figures) = answered.into_iter().unzip();
        let summary = table.beside(&kept, Schema { columns: fresh });
        let origin = Origin {
            model: answerer.version.model.clone(),
            version: answerer.version.number,
            sequence: answerer.sequence(),
            dataset: opened.description.row.name.clone(),
            dataset_tag: opened.description.tag(),
        };
        columns.extend(kept.iter().copied().map(Read::from));
        let (kept, inputs) = (kept.len(), InputSchema::new(inputs));
        Ok(Plan { answerer, question, figures, needed, inputs, opened, columns, kept, summary, into, if_match: asked.if_match, origin })
    }
}

/// Whether a column of that type can hold what a feature is of. Whether each of its cells does, is seen when they are read.
fn holds(column: ColumnType, input: &InputKind) -> bool {
    match input {
        InputKind::Number | InputKind::Integer | InputKind::Above(_) => matches!(column, ColumnType::Number | ColumnType::Integer),
        InputKind::Boolean => matches!(column, ColumnType::Boolean | ColumnType::Number | ColumnType::Integer),
        InputKind::Category { .. } => column != ColumnType::Timestamp,
        InputKind::Timestamp => column == ColumnType::Timestamp,
    }
}

fn kind_of(figure: Figure) -> ColumnType {
    match figure {
        Figure::Extrapolates | Figure::Label { boolean: true } => ColumnType::Boolean,
        Figure::Label { boolean: false } => ColumnType::Category,
        Figure::Version | Figure::Sequence => ColumnType::Integer,
        _ => ColumnType::Number,
    }
}

async fn predict_and_store(service: &Arc<Service>, running: &Arc<Running>, plan: Plan) -> Result<(), ServiceError> {
    let (segment, pin) = service.begin_segment().await?;
    let (encoded, chunks) = mpsc::channel(CHUNKS);
    let storing = datasets::store_chunks(service.writer.clone(), segment, chunks);
    let (worker, runtime) = (running.clone(), tokio::runtime::Handle::current());
    let answering = aside(move || answer_dataset(&runtime, &worker, plan, &encoded), "the predictions of a dataset panicked");
    let (answered, stored) = tokio::join!(answering, storing);
    let (rows, bytes) = match stored {
        Ok(stored) => stored,
        Err(error) => return Err(service.give_up(pin, error).await),
    };
    let Finished { summary, into, if_match, origin } = answered?;
    if running.is_cancelled() {
        return Err(ServiceError::Cancelled);
    }
    running.progress("storing", 0, 1);
    let job = running.state.borrow().id.clone();
    let version = origin.version;
    service
        .writer
        .change(
            async move |writer: &mut Connection| {
                let before = store::datasets::find(writer, &into).await?;
                datasets::check_replaced(writer, &into, if_match.as_deref()).await?;
                let summary = datasets::encode_summary(&summary)?;
                let origin = serde_json::to_string(&origin).map_err(|_| ServiceError::Internal("an origin does not encode"))?;
                store::datasets::replace(writer, &into, &Landing { segment, rows, bytes, summary: &summary, origin: Some(&origin) })
                    .await?;
                store::jobs::finish(writer, &job, JobState::Succeeded.as_str(), Some(version), None).await?;
                let after = store::datasets::find(writer, &into).await?;
                let (before, after) = (before.as_ref().map(datasets::standing), after.as_ref().map(datasets::standing));
                Ok(Changed::new((), "dataset.predictions", &into, before, after))
            },
            |()| {},
        )
        .await?;
    drop(pin);
    Ok(())
}

/// What is left of a plan when its rows are answered.
struct Finished {
    summary: Summary,
    into: String,
    if_match: Option<Vec<String>>,
    origin: Origin,
}

/// Answers frame by frame, with the next one read ahead.
fn answer_dataset(
    runtime: &tokio::runtime::Handle,
    running: &Running,
    plan: Plan,
    chunks: &mpsc::Sender<Encoded>,
) -> Result<Finished, ServiceError> {
    let Plan { answerer, question, figures, needed, inputs, opened, columns, kept, mut summary, into, if_match, origin } = plan;
    let total = opened.description.row.rows;
    let features = columns.len() - kept;
    let mut lagged = Lagged::new(columns);
    let mut frames = Ahead::of(runtime, Arc::new(opened), lagged.columns().to_vec());
    let answering = Answering { answerer: &answerer, question, figures: &figures, needed: &needed, inputs: &inputs };
    let mut done = 0;
    while let Some(frame) = frames.next() {
        if running.is_cancelled() {
            return Err(ServiceError::Cancelled);
        }
        let (frame, first_row) = frame?;
        let frame = lagged.next(frame).map_err(|_| ServiceError::Internal("a stored dataset changed while it was predicted"))?;
        let Frame { columns: mut arrays, rows } = frame;
        let carried = arrays.split_off(features);
        let answers = answering.frame(&arrays, rows, first_row)?;
        summary.add(kept, &answers);
        let payloads = carried.iter().chain(&answers).map(codec::encode).collect();
        done += rows as u64;
        running.progress("predicting", done, total);
        if chunks.blocking_send(Encoded { rows: rows as u64, payloads }).is_err() {
            // The storing side stops listening only when it failed, and says why itself.
            return Err(ServiceError::Internal("the predictions of a dataset could not be stored"));
        }
    }
    summary.finish();
    Ok(Finished { summary, into, if_match, origin })
}

/// What every frame is answered by.
struct Answering<'p> {
    answerer: &'p Answerer,
    question: Question,
    figures: &'p [Figure],
    needed: &'p [Input],
    inputs: &'p InputSchema,
}

impl Answering<'_> {
    /// The columns of answers to a frame's features.
    fn frame(&self, features: &[ArrayRef], rows: usize, first_row: u64) -> Result<Vec<ArrayRef>, ServiceError> {
        let mut columns: Vec<Growing> = self.figures.iter().map(|figure| Growing::of(*figure, rows)).collect();
        let width = self.inputs.len();
        let most = (CELLS / width.max(1)).max(1);
        let mut parsed = Rows::default();
        for begin in (0..rows).step_by(most) {
            let count = most.min(rows - begin);
            let part: Vec<ArrayRef> = features.iter().map(|feature| feature.slice(begin, count)).collect();
            let first = first_row + begin as u64;
            parse_columns(&part, count, first, self.inputs, &mut parsed)?;
            let complete = complete(&mut parsed, self.needed);
            let number = |row: usize| first + complete.as_ref().map_or(row, |complete| complete[row]) as u64;
            let answer = self.answerer.answer(&parsed, self.question).map_err(|error| numbered(error, number))?;
            let parts = (self.answerer.version.document.features.len() + 1) * self.answerer.version.document.responses().len();
            for column in &mut columns {
                column.extend(&answer, complete.as_deref(), count, self.answerer, parts);
            }
        }
        let classifier = self.answerer.version.document.classifier.as_ref();
        Ok(columns.into_iter().map(|column| column.finish(classifier)).collect())
    }
}

/// Leaves the rows in which nothing is missing that must be there, and tells which they are, unless they are all.
fn complete(rows: &mut Rows, inputs: &[Input]) -> Option<Vec<usize>> {
    if !rows.values.iter().any(|value| value.is_nan()) {
        return None;
    }
    let width = inputs.len();
    let there = |row: &usize| {
        let cells = &rows.values[row * width..(row + 1) * width];
        cells.iter().zip(inputs).all(|(value, input)| !(value.is_nan() && input.required))
    };
    let kept: Vec<usize> = (0..rows.count).filter(there).collect();
    for (to, &from) in kept.iter().enumerate() {
        rows.values.copy_within(from * width..(from + 1) * width, to * width);
    }
    rows.values.truncate(kept.len() * width);
    rows.count = kept.len();
    Some(kept)
}

/// A column of answers under way; a row that is not answered is missing.
enum Growing {
    /// NaN is missing.
    Numbers(Figure, Vec<f64>),
    Booleans(Vec<Option<bool>>),
    Wholes(Figure, Vec<Option<i64>>),
    /// Places of classes; whether they are a boolean's.
    Labels(bool, Vec<Option<i32>>),
}

impl Growing {
    fn of(figure: Figure, rows: usize) -> Self {
        if let Figure::Label { boolean } = figure {
            return Self::Labels(boolean, Vec::with_capacity(rows));
        }
        match kind_of(figure) {
            ColumnType::Boolean => Self::Booleans(Vec::with_capacity(rows)),
            ColumnType::Integer => Self::Wholes(figure, Vec::with_capacity(rows)),
            _ => Self::Numbers(figure, Vec::with_capacity(rows)),
        }
    }

    /// Adds `count` rows, of which those of `complete` (or all) are in the answer.
    fn extend(&mut self, answer: &Answer, complete: Option<&[usize]>, count: usize, answerer: &Answerer, parts: usize) {
        match self {
            Self::Numbers(figure, column) => {
                let Some((values, first, step)) = answer.numbers(*figure, answerer.version.document.responses().len(), parts) else {
                    return;
                };
                spread(column, values.iter().skip(first).step_by(step).copied(), complete, count, f64::NAN);
            }
            Self::Booleans(column) => spread(column, answer.extrapolates.iter().copied().map(Some), complete, count, None),
            Self::Labels(_, column) => {
                #[allow(clippy::cast_possible_truncation)] // a class's place
                let labels = answer.predictions.iter().map(|label| Some(*label as i32));
                spread(column, labels, complete, count, None);
            }
            Self::Wholes(figure, column) => {
                let value = if *figure == Figure::Version { answerer.version.number } else { answerer.sequence() };
                spread(column, std::iter::repeat(Some(value.cast_signed())), complete, count, None);
            }
        }
    }

    fn finish(self, classifier: Option<&Classifier>) -> ArrayRef {
        match self {
            Self::Labels(true, places) => Arc::new(places.into_iter().map(|place| place.map(|place| place == 1)).collect::<BooleanArray>()),
            Self::Labels(false, places) => {
                let classes = classifier.map_or(&[][..], |classifier| &classifier.classes);
                Arc::new(DictionaryArray::<Int32Type>::new(Int32Array::from(places), Arc::new(StringArray::from_iter_values(classes))))
            }
            Self::Numbers(_, values) if values.iter().any(|value| !value.is_finite()) => {
                Arc::new(values.into_iter().map(|value| value.is_finite().then_some(value)).collect::<Float64Array>())
            }
            Self::Numbers(_, values) => Arc::new(Float64Array::from(values)),
            Self::Booleans(values) => Arc::new(BooleanArray::from(values)),
            Self::Wholes(_, values) => Arc::new(Int64Array::from(values)),
        }
    }
}

/// Appends `count` values: where `complete` names rows, each to its own and `otherwise` to the rest.
fn spread<T: Copy>(column: &mut Vec<T>, values: impl Iterator<Item = T>, complete: Option<&[usize]>, count: usize, otherwise: T) {
    let Some(complete) = complete else {
        column.extend(values.take(count));
        return;
    };
    let start = column.len();
    column.resize(start + count, otherwise);
    for (row, value) in complete.iter().zip(values) {
        column[start + row] = value;
    }
}
