//! Rows that come as Arrow: a stream (IPC) in one piece or in many, or the columns of a stored frame; and tables of answers that go as a
//! stream. Columns of any number type, texts, dictionaries of texts and booleans are taken, each by the kind of its input. Not here: uploads.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, RecordBatchOptions, StringArray};
use arrow_buffer::Buffer;
use arrow_ipc::Message;
use arrow_ipc::reader::{StreamDecoder, StreamReader};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;

use super::fault::{Fault, Faults, Lack, escaped};
use super::input::{InputKind, InputSchema};
use super::rows::{
    ID, LONGEST, MISSING, NO_ID, NO_TIMESTAMP, ParseError, Refusal, Rows, RowsOptions, missing, of_instant, repeatable, too_many_rows,
};
use super::tensor::{MOST_EMPTY_ROWS, of_boolean, of_number};

/// Cells of a batch at the most: a longer one is taken in parts.
const CELLS: usize = 128 << 10;
/// Rows that are gone through column by column before the next: what is written stays near.
const NEAR: usize = 128;

/// Where a column goes.
#[derive(Clone, Copy, Debug)]
enum Target {
    Input(usize),
    Id,
}

/// Takes the rows of an Arrow stream.
///
/// # Errors
/// The body is no such stream, columns or cells are wrong, or there are too many rows; `rows` is empty then.
pub fn parse_arrow(body: &[u8], schema: &InputSchema, options: &RowsOptions, rows: &mut Rows) -> Result<(), ParseError> {
    guarded(rows, |rows| parse(body, schema, options, rows))
}

fn parse(body: &[u8], schema: &InputSchema, options: &RowsOptions, rows: &mut Rows) -> Result<(), ParseError> {
    check(body, |message, length| is_sized(message, length, !schema.is_empty()))?;
    let reader = StreamReader::try_new(body, None).map_err(|error| broken(&error))?;
    let columns = reader.schema();
    let targets = targets(&columns, schema, options)?;
    check(body, |message, _| is_whole(message, &columns))?;
    let most = if schema.is_empty() { options.max_rows.min(MOST_EMPTY_ROWS) } else { options.most_rows(schema.len()) };
    let options = RowsOptions { max_rows: most, ..*options };
    let mut faults = Faults::default();
    for batch in reader {
        let batch = batch.map_err(|error| broken(&error))?;
        take(batch.columns(), batch.num_rows(), &targets, 0, schema, &options, rows, &mut faults)?;
    }
    if faults.is_empty() { Ok(()) } else { Err(ParseError::Faults(faults)) }
}

/// Takes rows from columns that stand in the order of the schema's inputs; `first_row` is the number of the first, from 0, for faults.
///
/// # Errors
/// Cells are wrong; `rows` is empty then.
pub fn parse_columns(columns: &[ArrayRef], count: usize, first_row: u64, schema: &InputSchema, rows: &mut Rows) -> Result<(), ParseError> {
    guarded(rows, |rows| {
        let targets: Vec<Target> = (0..schema.len()).map(Target::Input).collect();
        let options = RowsOptions { allow_id: false, max_rows: usize::MAX };
        let mut faults = Faults::default();
        take(columns, count, &targets, first_row, schema, &options, rows, &mut faults)?;
        if faults.is_empty() { Ok(()) } else { Err(ParseError::Faults(faults)) }
    })
}

/// Clears the rows before, and after a failure.
fn guarded(rows: &mut Rows, parse: impl FnOnce(&mut Rows) -> Result<(), ParseError>) -> Result<(), ParseError> {
    rows.clear();
    let result = unpanicked(|| parse(rows));
    if result.is_err() {
        rows.clear();
    }
    result
}

/// The reader trusts what a stream says of its own offsets. Where that is not held against the bytes first ([`check`]), or a lie gets past, it
/// panics: the request is refused all the same, and nothing of ours is half done, because the rows are cleared.
fn unpanicked<T>(read: impl FnOnce() -> Result<T, ParseError>) -> Result<T, ParseError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_else(|_| Err(broken(&ArrowError::ParseError(String::new()))))
}

/// An Arrow stream that arrives piece by piece. What is held is at most one of its batches, which has a limit, and the last piece.
#[derive(Debug)]
pub struct ArrowPieces {
    decoder: StreamDecoder,
    pieces: VecDeque<Buffer>,
    /// Bytes that arrived since the last batch was whole.
    since: usize,
    limit: usize,
    targets: Option<Arc<[Target]>>,
    batch: Option<RecordBatch>,
    next_row: u64,
    ended: bool,
}

/// Some rows of an Arrow stream.
#[derive(Clone, Debug)]
pub struct ArrowBatch {
    columns: RecordBatch,
    targets: Arc<[Target]>,
    /// The number of the first row, from 0.
    pub first_row: u64,
}

impl ArrowPieces {
    /// Nothing has arrived yet. A batch of the stream may be `limit` bytes long.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            decoder: StreamDecoder::new(),
            pieces: VecDeque::new(),
            since: 0,
            limit,
            targets: None,
            batch: None,
            next_row: 0,
            ended: false,
        }
    }

    /// Takes a piece that has arrived.
    pub fn push(&mut self, piece: Bytes) {
        self.pieces.push_back(Buffer::from(piece));
    }

    /// Says that the stream has ended.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The number of the first row that was not taken, from 0.
    #[must_use]
    pub fn next_row(&self) -> u64 {
        self.next_row
    }

    /// Takes rows that are there; `None` when more has to arrive first, or nothing more comes.
    ///
    /// # Errors
    /// It is no such stream, has other columns than the schema, or a batch that is too long.
    pub fn take(&mut self, schema: &InputSchema) -> Result<Option<ArrowBatch>, ParseError> {
        while self.batch.is_none() {
            let Some(piece) = self.pieces.front_mut() else {
                if self.ended {
                    let ended = self.decoder.finish().map_err(|error| broken(&error));
                    // A stream of nothing is none.
                    return ended.and(if self.targets.is_some() { Ok(None) } else { Err(broken(&ArrowError::ParseError(String::new()))) });
                }
                return Ok(None);
            };
            let before = piece.len();
            let decoder = &mut self.decoder;
            let batch = unpanicked(|| decoder.decode(piece).map_err(|error| broken(&error)))?;
            self.since += before - piece.len();
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            if self.targets.is_none()
                && let Some(columns) = self.decoder.schema()
            {
                let options = RowsOptions { allow_id: false, max_rows: usize::MAX };
                self.targets = Some(targets(&columns, schema, &options)?.into());
            }
            if self.since > self.limit {
                let detail = format!("a batch of the stream is longer than {} bytes; write it in batches of fewer rows", self.limit);
                return Err(ParseError::TooLarge(detail));
            }
            if let Some(batch) = batch {
                // Rows of which nothing came would be answered for as long as somebody reads.
                if schema.is_empty() && batch.num_rows() > MOST_EMPTY_ROWS {
                    return Err(ParseError::TooLarge(format!("a batch without columns holds at most {MOST_EMPTY_ROWS} rows")));
                }
                if !schema.is_empty() && batch.num_rows() / 8 > self.since {
                    return Err(lies());
                }
                self.since = 0;
                self.batch = Some(batch).filter(|batch| batch.num_rows() > 0);
            }
        }
        let (Some(batch), Some(targets)) = (self.batch.take(), self.targets.clone()) else { return Ok(None) };
        let most = (CELLS / schema.len().max(1)).max(1);
        let count = batch.num_rows().min(most);
        let columns = batch.slice(0, count);
        if count < batch.num_rows() {
            self.batch = Some(batch.slice(count, batch.num_rows() - count));
        }
        let first_row = self.next_row;
        self.next_row += count as u64;
        Ok(Some(ArrowBatch { columns, targets, first_row }))
    }
}

impl ArrowBatch {
    /// How many rows it has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.columns.num_rows()
    }

    /// Takes its rows.
    ///
    /// # Errors
    /// Cells are wrong; `rows` is empty then.
    pub fn parse(&self, schema: &InputSchema, rows: &mut Rows) -> Result<(), ParseError> {
        let options = RowsOptions { allow_id: false, max_rows: usize::MAX };
        guarded(rows, |rows| {
            let mut faults = Faults::default();
            take(self.columns.columns(), self.count(), &self.targets, self.first_row, schema, &options, rows, &mut faults)?;
            if faults.is_empty() { Ok(()) } else { Err(ParseError::Faults(faults)) }
        })
    }
}

fn broken(error: &ArrowError) -> ParseError {
    // The texts of these errors name offsets and types of the caller's stream, never its values; but only what is known is promised.
    let detail = match error {
        ArrowError::NotYetImplemented(_) => "the stream uses a part of the Arrow format that is not read here, such as compressed buffers",
        _ => "the body is not an Arrow stream",
    };
    ParseError::Syntax(Fault { pointer: String::new(), detail: detail.to_owned() })
}

fn lies() -> ParseError {
    broken(&ArrowError::ParseError(String::new()))
}

/// What stands before the length of a message's metadata, in streams since Arrow 0.15.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// Buffers of a message begin at multiples of so many bytes: the reader takes for granted that they do.
const ALIGNMENT: i64 = 8;

/// Shows each message of a stream, with the length of its body; one that is refused, or lies about its own length, refuses the stream. A stream
/// that is merely cut off is left to the reader.
///
/// Source: Apache Arrow, *Columnar Format*, "Encapsulated message format" and "IPC Streaming Format".
fn check(mut rest: &[u8], takes: impl Fn(&Message<'_>, usize) -> bool) -> Result<(), ParseError> {
    loop {
        let Some((mut word, mut tail)) = rest.split_first_chunk::<4>() else { return Ok(()) };
        if *word == CONTINUATION {
            let Some(next) = tail.split_first_chunk() else { return Ok(()) };
            (word, tail) = next;
        }
        let length = usize::try_from(i32::from_le_bytes(*word)).map_err(|_| lies())?;
        if length == 0 {
            return Ok(());
        }
        let (metadata, tail) = tail.split_at_checked(length).ok_or_else(lies)?;
        // A copy, because metadata are verified with their alignment, and a body may begin anywhere.
        let metadata = metadata.to_vec();
        let message = arrow_ipc::root_as_message(&metadata).map_err(|_| lies())?;
        let body = usize::try_from(message.bodyLength()).map_err(|_| lies())?;
        rest = tail.get(body..).ok_or_else(lies)?;
        if !takes(&message, body) {
            return Err(lies());
        }
    }
}

/// Whether what a message says of its sizes can be: every buffer lies in its body, no length is negative, and a batch has no more rows than its
/// bytes have bits, so that a small body cannot ask for a large table.
fn is_sized(message: &Message<'_>, body: usize, rows_have_cells: bool) -> bool {
    let dictionary = message.header_as_dictionary_batch().and_then(|dictionary| dictionary.data());
    let Some(batch) = message.header_as_record_batch().or(dictionary) else { return true };
    let inside = |offset: i64, length: i64| -> Option<bool> {
        let end = usize::try_from(offset).ok()?.checked_add(usize::try_from(length).ok()?)?;
        Some(end <= body && offset % ALIGNMENT == 0)
    };
    let Ok(count) = usize::try_from(batch.length()) else { return false };
    let lengths = batch.nodes().into_iter().flatten().all(|node| (0..=node.length()).contains(&node.null_count()));
    let buffers = batch.buffers().into_iter().flatten().all(|buffer| inside(buffer.offset(), buffer.length()) == Some(true));
    lengths && buffers && !(rows_have_cells && count / 8 > body)
}

/// Whether the buffers that the reader takes for lists of whole numbers are as long as some of these: the offsets of texts, and keys.
fn is_whole(message: &Message<'_>, schema: &Schema) -> bool {
    let values = |field: &Arc<Field>| match field.data_type() {
        DataType::Dictionary(_, values) => Some(values.as_ref().clone()),
        _ => None,
    };
    if let Some(batch) = message.header_as_dictionary_batch().and_then(|dictionary| dictionary.data()) {
        // Which column's it is does not matter, unless they differ.
        let mut kinds = schema.fields().iter().filter_map(values);
        let wide = schema.fields().iter().filter_map(values).all(|kind| kind == DataType::LargeUtf8);
        let kind = if wide { DataType::LargeUtf8 } else { DataType::Utf8 };
        return kinds.next().is_none() || whole_buffers(&batch, [kind].iter());
    }
    let Some(batch) = message.header_as_record_batch() else { return true };
    whole_buffers(&batch, schema.fields().iter().map(|field| field.data_type()))
}

fn whole_buffers<'a>(batch: &arrow_ipc::RecordBatch<'_>, kinds: impl Iterator<Item = &'a DataType>) -> bool {
    let mut buffers = batch.buffers().into_iter().flatten();
    let mut parts = batch.variadicBufferCounts().into_iter().flatten();
    for kind in kinds {
        // After the one that says what is null: bytes of a number in the next, and how many buffers come after that.
        let (width, more) = match kind {
            DataType::Null => continue,
            DataType::Utf8 => (4, 1),
            DataType::LargeUtf8 => (8, 1),
            DataType::Utf8View => (16, parts.next().unwrap_or(0)),
            DataType::Dictionary(keys, _) => (keys.primitive_width().unwrap_or(1), 0),
            _ => (1, 0),
        };
        if buffers.nth(1).is_some_and(|buffer| buffer.length() % width as i64 != 0) {
            return false;
        }
        for _ in 0..more {
            if buffers.next().is_none() {
                // The reader misses it as well.
                return true;
            }
        }
    }
    true
}

/// Takes `count` rows of columns behind those that are there.
#[allow(clippy::too_many_arguments)] // what is read, how, and where to
fn take(
    columns: &[ArrayRef],
    count: usize,
    targets: &[Target],
    first_row: u64,
    schema: &InputSchema,
    options: &RowsOptions,
    rows: &mut Rows,
    faults: &mut Faults,
) -> Result<(), ParseError> {
    if count > options.max_rows - rows.count {
        return Err(ParseError::TooLarge(too_many_rows(options.max_rows)));
    }
    let width = schema.len();
    let start = rows.values.len();
    rows.values.resize(start + count * width, f64::NAN);
    let columns: Vec<Column<'_>> = columns.iter().map(Column::of).collect();
    for begin in (0..count).step_by(NEAR) {
        let end = count.min(begin + NEAR);
        for (column, target) in columns.iter().zip(targets) {
            if let Target::Input(place) = target
                && let InputKind::Number | InputKind::Integer = schema.inputs()[*place].kind
                && let Some(values) = column.finite(begin..end)
            {
                let cells = rows.values[start + begin * width + place..].iter_mut().step_by(width);
                cells.zip(values).for_each(|(cell, value)| *cell = *value);
                continue;
            }
            for row in begin..end {
                let (name, what) = match target {
                    Target::Input(place) => match column.cell(row, *place, schema) {
                        Ok(value) => {
                            rows.values[start + row * width + place] = value;
                            continue;
                        }
                        Err(what) => (schema.inputs()[*place].name.as_str(), what),
                    },
                    Target::Id => match column.text(row) {
                        None if column.is_null(row) => continue,
                        Some(text) if !text.is_empty() && repeatable(text) && text.chars().count() <= LONGEST => {
                            rows.ids.resize(rows.count + row, None);
                            rows.ids.push(Some(text.to_owned()));
                            continue;
                        }
                        _ => (ID, NO_ID),
                    },
                };
                if let Target::Input(input) = *target {
                    faults.note(input, what);
                }
                let place = first_row + (rows.count + row) as u64;
                faults.push(|| format!("/rows/{place}/{}", escaped(name)), || format!("row {}, column {name:?}: {what}", place + 1));
                if faults.is_full() {
                    return Err(ParseError::Faults(std::mem::take(faults)));
                }
            }
        }
    }
    rows.count += count;
    if !rows.ids.is_empty() {
        rows.ids.resize(rows.count, None);
    }
    Ok(())
}

/// Where each column goes; columns that are not known, stand twice or are not there are faults.
fn targets(stream: &Schema, schema: &InputSchema, options: &RowsOptions) -> Result<Vec<Target>, ParseError> {
    let mut faults = Faults::default();
    let mut targets = Vec::with_capacity(stream.fields().len());
    let mut seen = vec![false; schema.len()];
    for (position, field) in stream.fields().iter().enumerate() {
        let name = field.name();
        let mut refuse = |what: &str| {
            let shown = if repeatable(name) { format!("column {name:?}") } else { format!("column {}", position + 1) };
            faults.push(|| format!("/columns/{position}"), || format!("{shown}: {what}"));
        };
        match schema.place_of(name) {
            Some(place) if std::mem::replace(&mut seen[place], true) => refuse("stands twice"),
            found if !is_read(field.data_type(), found.map(|place| &schema.inputs()[place].kind)) => {
                refuse("is of a type that is not read here");
            }
            Some(place) => targets.push(Target::Input(place)),
            None if options.allow_id && name == ID => targets.push(Target::Id),
            None => refuse("there is no such feature"),
        }
    }
    for (place, (input, seen)) in schema.inputs().iter().zip(seen).enumerate() {
        if input.required && !seen {
            faults.lack(place, Lack::Missing);
            faults.push(|| "/columns".to_owned(), || format!("column {:?}: {MISSING}", input.name));
        }
    }
    if faults.is_empty() { Ok(targets) } else { Err(ParseError::Faults(faults)) }
}

/// Whether cells of the type can be read where this belongs, or are all null. Columns of other types are refused before any of their buffers
/// is looked at.
fn is_read(kind: &DataType, input: Option<&InputKind>) -> bool {
    match kind {
        DataType::Timestamp(..) => input == Some(&InputKind::Timestamp),
        DataType::Null | DataType::Boolean | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => matches!(values.as_ref(), DataType::Utf8 | DataType::LargeUtf8),
        // Of floating numbers, decimals are none.
        other => other.is_integer() || other.is_floating(),
    }
}

/// A column of a batch, by what its cells are.
enum Column<'a> {
    /// Doubles of which none is null.
    Doubles(&'a [f64]),
    Floats(&'a dyn Array, Box<dyn Fn(usize) -> f64 + 'a>),
    Wholes(&'a dyn Array, Box<dyn Fn(usize) -> i128 + 'a>),
    Booleans(&'a BooleanArray),
    Texts(&'a dyn Array, Box<dyn Fn(usize) -> &'a str + 'a>),
    /// Points in time: the integers, and how many microseconds one of them is, or how many of them one microsecond.
    Times(&'a dyn Array, &'a [i64], Unit),
    /// All null, or of a type that no cell has.
    Other(&'a dyn Array),
}

/// The unit of a column of points in time.
#[derive(Clone, Copy)]
enum Unit {
    /// So many microseconds.
    Long(i64),
    /// So many are a microsecond.
    Short(i64),
}

impl<'a> Column<'a> {
    fn of(array: &'a ArrayRef) -> Self {
        macro_rules! whole {
            ($kind:ty) => {{
                let values = array.as_primitive::<$kind>().values();
                Self::Wholes(array, Box::new(move |row| i128::from(values[row])))
            }};
        }
        match array.data_type() {
            DataType::Float64 if array.null_count() == 0 => Self::Doubles(array.as_primitive::<Float64Type>().values()),
            DataType::Float64 => {
                let values = array.as_primitive::<Float64Type>().values();
                Self::Floats(array, Box::new(move |row| values[row]))
            }
            DataType::Float32 => {
                let values = array.as_primitive::<Float32Type>().values();
                Self::Floats(array, Box::new(move |row| f64::from(values[row])))
            }
            DataType::Float16 => {
                let values = array.as_primitive::<Float16Type>().values();
                Self::Floats(array, Box::new(move |row| values[row].to_f64()))
            }
            DataType::Int8 => whole!(Int8Type),
            DataType::Int16 => whole!(Int16Type),
            DataType::Int32 => whole!(Int32Type),
            DataType::Int64 => whole!(Int64Type),
            DataType::UInt8 => whole!(UInt8Type),
            DataType::UInt16 => whole!(UInt16Type),
            DataType::UInt32 => whole!(UInt32Type),
            DataType::UInt64 => whole!(UInt64Type),
            DataType::Boolean => Self::Booleans(array.as_boolean()),
            DataType::Timestamp(unit, _) => match unit {
                TimeUnit::Second => Self::Times(array, array.as_primitive::<TimestampSecondType>().values(), Unit::Long(1_000_000)),
                TimeUnit::Millisecond => Self::Times(array, array.as_primitive::<TimestampMillisecondType>().values(), Unit::Long(1000)),
                TimeUnit::Microsecond => Self::Times(array, array.as_primitive::<TimestampMicrosecondType>().values(), Unit::Long(1)),
                TimeUnit::Nanosecond => Self::Times(array, array.as_primitive::<TimestampNanosecondType>().values(), Unit::Short(1000)),
            },
            DataType::Utf8 => {
                let texts = array.as_string::<i32>();
                Self::Texts(array, Box::new(move |row| texts.value(row)))
            }
            DataType::LargeUtf8 => {
                let texts = array.as_string::<i64>();
                Self::Texts(array, Box::new(move |row| texts.value(row)))
            }
            DataType::Utf8View => {
                let texts = array.as_string_view();
                Self::Texts(array, Box::new(move |row| texts.value(row)))
            }
            DataType::Dictionary(..) => {
                let dictionary = array.as_any_dictionary();
                match dictionary.values().data_type() {
                    // Keys that lead nowhere were refused when the stream was read.
                    DataType::Utf8 => {
                        let (keys, texts) = (dictionary.normalized_keys(), dictionary.values().as_string::<i32>());
                        Self::Texts(array, Box::new(move |row| texts.value(keys[row])))
                    }
                    DataType::LargeUtf8 => {
                        let (keys, texts) = (dictionary.normalized_keys(), dictionary.values().as_string::<i64>());
                        Self::Texts(array, Box::new(move |row| texts.value(keys[row])))
                    }
                    _ => Self::Other(array),
                }
            }
            _ => Self::Other(array),
        }
    }

    /// Some of the values, where they are doubles, all there and all finite.
    fn finite(&self, rows: std::ops::Range<usize>) -> Option<&'a [f64]> {
        let Self::Doubles(values) = self else { return None };
        let values = values.get(rows)?;
        values.iter().fold(true, |good, value| good & value.is_finite()).then_some(values)
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Floats(array, _) | Self::Wholes(array, _) | Self::Texts(array, _) | Self::Times(array, ..) | Self::Other(array) => {
                array.is_null(row)
            }
            Self::Booleans(array) => array.is_null(row),
            Self::Doubles(_) => false,
        }
    }

    fn text(&self, row: usize) -> Option<&'a str> {
        match self {
            Self::Texts(array, value) if !array.is_null(row) => Some(value(row)),
            _ => None,
        }
    }

    fn cell(&self, row: usize, place: usize, schema: &InputSchema) -> Result<f64, Refusal> {
        if self.is_null(row) || matches!(self, Self::Other(array) if *array.data_type() == DataType::Null) {
            return missing(schema.inputs()[place].required);
        }
        match self {
            Self::Doubles(values) => of_number(values[row], None, place, schema),
            Self::Floats(_, value) => of_number(value(row), None, place, schema),
            Self::Wholes(_, value) => {
                let whole = value(row);
                of_number(whole as f64, Some(whole), place, schema)
            }
            Self::Booleans(values) => of_boolean(values.value(row), place, schema),
            Self::Texts(_, value) => schema.value_of_text(place, value(row).as_bytes()),
            Self::Times(_, values, unit) if schema.inputs()[place].kind == InputKind::Timestamp => {
                let microseconds = match unit {
                    Unit::Long(microseconds) => values[row].checked_mul(*microseconds),
                    Unit::Short(parts) => Some(values[row].div_euclid(*parts)),
                };
                microseconds.map(of_instant).ok_or(NO_TIMESTAMP)
            }
            Self::Times(..) | Self::Other(_) => Err("its column is of a type that is not read here"),
        }
    }
}

/// A column of an answer.
#[derive(Clone, Debug)]
pub enum Answered<'a> {
    /// Numbers; NaN is null.
    Numbers(Cow<'a, [f64]>),
    /// Booleans.
    Booleans(Cow<'a, [bool]>),
    /// Texts.
    Texts(Vec<String>),
    /// The same whole number in every row.
    Whole(u64),
}

/// What a column of an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnsweredKind {
    /// Numbers or null.
    Number,
    /// Booleans.
    Boolean,
    /// Texts.
    Text,
    /// Whole numbers.
    Whole,
}

/// Writes columns of answers as an Arrow stream: its head, batches, its end.
#[derive(Clone, Debug)]
pub struct ArrowWriter {
    schema: SchemaRef,
    head: Vec<u8>,
}

impl ArrowWriter {
    /// A writer of these columns; `metadata` goes with their schema.
    ///
    /// # Errors
    /// The schema cannot be written.
    pub fn new(
        columns: impl IntoIterator<Item = (String, AnsweredKind)>,
        metadata: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ArrowError> {
        let field = |(name, kind)| {
            let kind = match kind {
                AnsweredKind::Number => DataType::Float64,
                AnsweredKind::Boolean => DataType::Boolean,
                AnsweredKind::Text => DataType::Utf8,
                AnsweredKind::Whole => DataType::Int64,
            };
            Field::new(name, kind, true)
        };
        let fields: Vec<Field> = columns.into_iter().map(field).collect();
        let schema = Arc::new(Schema::new_with_metadata(fields, metadata.into_iter().collect::<std::collections::HashMap<_, _>>()));
        let head = StreamWriter::try_new(Vec::new(), &schema)?.get_ref().clone();
        Ok(Self { schema, head })
    }

    /// What the stream begins with.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Appends a batch.
    ///
    /// # Errors
    /// Only where the columns are not those of the writer, of `rows` rows each.
    pub fn batch(&self, columns: Vec<Answered<'_>>, rows: usize, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        let array = |column| -> ArrayRef {
            match column {
                Answered::Numbers(values) if values.iter().any(|value| value.is_nan()) => {
                    Arc::new(values.iter().map(|value| (!value.is_nan()).then_some(*value)).collect::<Float64Array>())
                }
                Answered::Numbers(values) => Arc::new(Float64Array::from(values.into_owned())),
                Answered::Booleans(values) => Arc::new(BooleanArray::from(values.into_owned())),
                Answered::Texts(values) => Arc::new(StringArray::from(values)),
                Answered::Whole(value) => Arc::new(Int64Array::from_value(value.cast_signed(), rows)),
            }
        };
        let arrays = columns.into_iter().map(array).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)?;
        // Every writer begins with the schema; of this one only what comes after it is wanted.
        let mut writer = StreamWriter::try_new(Vec::with_capacity(self.head.len() + 1024 + batch.get_array_memory_size()), &self.schema)?;
        writer.write(&batch)?;
        out.extend_from_slice(writer.get_ref().get(self.head.len()..).unwrap_or_default());
        Ok(())
    }

    /// What the stream ends with: a message of no length.
    #[must_use]
    pub fn end() -> &'static [u8] {
        &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::input::{Input, InputKind, Unseen};
    use super::*;

    const OPTIONS: RowsOptions = RowsOptions { allow_id: true, max_rows: 100 };

    fn schema() -> InputSchema {
        let levels = [("north", 0), ("south", 1)].map(|(level, index)| (level.to_owned(), index)).into();
        let input = |name: &str, kind| Input { name: name.to_owned(), kind, required: true };
        InputSchema::new(vec![input("x", InputKind::Number), input("region", InputKind::Category { levels, unseen: Unseen::Error })])
    }

    fn stream(columns: Vec<(String, Answered<'_>)>, rows: usize) -> Vec<u8> {
        batches(columns, rows, 1)
    }

    /// A stream of the same batch some times.
    fn batches(columns: Vec<(String, Answered<'_>)>, rows: usize, times: usize) -> Vec<u8> {
        let kind = |column: &Answered<'_>| match column {
            Answered::Numbers(_) => AnsweredKind::Number,
            Answered::Booleans(_) => AnsweredKind::Boolean,
            Answered::Texts(_) => AnsweredKind::Text,
            Answered::Whole(_) => AnsweredKind::Whole,
        };
        let writer = ArrowWriter::new(columns.iter().map(|(name, column)| (name.clone(), kind(column))), []).unwrap();
        let mut out = writer.head().to_vec();
        for _ in 0..times {
            writer.batch(columns.iter().map(|(_, column)| column.clone()).collect(), rows, &mut out).unwrap();
        }
        out.extend_from_slice(ArrowWriter::end());
        out
    }

    fn numbers(values: &[f64]) -> Answered<'_> {
        Answered::Numbers(values.into())
    }

    fn texts(values: &[&str]) -> Answered<'static> {
        Answered::Texts(values.iter().map(|value| (*value).to_owned()).collect())
    }

    #[test]
    fn a_stream_is_taken_column_by_column() {
        let body = stream(
            vec![
                ("region".to_owned(), texts(&["south", "north"])),
                ("_id".to_owned(), texts(&["a", "b"])),
                ("x".to_owned(), numbers(&[1.5, -2.0])),
            ],
            2,
        );
        let mut rows = Rows::default();
        parse_arrow(&body, &schema(), &OPTIONS, &mut rows).unwrap();
        assert_eq!(rows.values, [1.5, 1.0, -2.0, 0.0]);
        assert_eq!(rows.ids, [Some("a".to_owned()), Some("b".to_owned())]);
    }

    #[test]
    fn what_is_wrong_is_named_by_row_and_column() {
        let faults = |columns: Vec<(String, Answered<'_>)>, rows: usize| {
            let mut taken = Rows::default();
            match parse_arrow(&stream(columns, rows), &schema(), &OPTIONS, &mut taken) {
                Err(ParseError::Faults(faults)) => faults.into_vec().into_iter().map(|fault| fault.pointer).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        };
        let good = ("region".to_owned(), texts(&["south"]));
        assert_eq!(faults(vec![good.clone(), ("x".to_owned(), numbers(&[f64::NAN]))], 1), ["/rows/0/x"]);
        assert_eq!(faults(vec![good.clone(), ("x".to_owned(), texts(&["one"]))], 1), ["/rows/0/x"]);
        assert_eq!(faults(vec![("region".to_owned(), texts(&["east"])), ("x".to_owned(), numbers(&[1.0]))], 1), ["/rows/0/region"]);
        assert_eq!(faults(vec![good, ("z".to_owned(), numbers(&[1.0]))], 1), ["/columns/1", "/columns"]);
    }

    /// Streams of the kinds of columns that are read, in several batches.
    fn streams() -> Vec<Vec<u8>> {
        use arrow_array::types::Int8Type;
        use arrow_array::{DictionaryArray, Int64Array, NullArray, StringViewArray};
        let written = |columns: Vec<(&str, ArrayRef)>| {
            let batch = RecordBatch::try_from_iter(columns).unwrap();
            let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
            writer.write(&batch).unwrap();
            writer.write(&batch.slice(1, 1)).unwrap();
            writer.finish().unwrap();
            writer.into_inner().unwrap()
        };
        let regions: DictionaryArray<Int8Type> = vec!["south", "north"].into_iter().collect();
        vec![
            written(vec![("region", Arc::new(regions)), ("x", Arc::new(Float64Array::from(vec![Some(1.0), None])))]),
            written(vec![
                ("region", Arc::new(StringArray::from(vec!["south", "north"]))),
                ("x", Arc::new(Int64Array::from(vec![1, 2]))),
                ("_id", Arc::new(StringViewArray::from(vec![Some("a name longer than twelve bytes"), None]))),
            ]),
            written(vec![("region", Arc::new(BooleanArray::from(vec![true, false]))), ("x", Arc::new(NullArray::new(2)))]),
        ]
    }

    #[test]
    fn every_cut_or_bent_stream_is_refused_or_taken_without_a_panic() {
        let mut rows = Rows::default();
        for body in streams() {
            for end in 0..body.len() {
                // A stream may end without its mark. Not `parse_arrow`, which would catch a panic.
                let _ = parse(&body[..end], &schema(), &OPTIONS, &mut Rows::default());
            }
            for (place, mask) in (0..body.len()).flat_map(|place| [0x01, 0x10, 0x55, 0x80, 0xff].map(|mask| (place, mask))) {
                let mut bent = body.clone();
                bent[place] ^= mask;
                let _ = parse(&bent, &schema(), &OPTIONS, &mut Rows::default());
            }
        }
        let long = vec![1.0; 101];
        let many = stream(vec![("region".to_owned(), texts(&["south"; 101])), ("x".to_owned(), numbers(&long))], 101);
        assert!(matches!(parse_arrow(&many, &schema(), &OPTIONS, &mut rows), Err(ParseError::TooLarge(_))));
    }

    #[test]
    fn a_stream_in_pieces_gives_the_rows_of_the_whole() {
        let long: Vec<f64> = (0..200).map(f64::from).collect();
        let columns = || vec![("region".to_owned(), texts(&["south"; 200])), ("x".to_owned(), numbers(&long))];
        let body = batches(columns(), 200, 3);
        for size in [1, 7, 64, 1000, usize::MAX] {
            let mut pieces = ArrowPieces::new(1 << 20);
            let (mut values, mut next, mut rows) = (Vec::new(), 0, Rows::default());
            let mut drain = |pieces: &mut ArrowPieces| {
                while let Some(batch) = pieces.take(&schema()).unwrap() {
                    assert_eq!(batch.first_row, next);
                    next += batch.count() as u64;
                    batch.parse(&schema(), &mut rows).unwrap();
                    values.extend_from_slice(&rows.values);
                }
            };
            for piece in body.chunks(size.min(body.len())) {
                pieces.push(Bytes::copy_from_slice(piece));
                drain(&mut pieces);
            }
            pieces.end();
            drain(&mut pieces);
            let expected: Vec<f64> = (0..3).flat_map(|_| long.iter().flat_map(|x| [*x, 1.0])).collect();
            assert_eq!(values, expected, "pieces of {size}");
        }
    }

    #[test]
    fn a_batch_past_the_limit_and_a_cut_stream_are_refused_in_pieces_too() {
        let long = vec![1.0; 4000];
        let body = stream(vec![("region".to_owned(), texts(&vec!["south"; 4000])), ("x".to_owned(), numbers(&long))], 4000);
        let mut pieces = ArrowPieces::new(8 << 10);
        let mut refused = None;
        for piece in body.chunks(1 << 10) {
            pieces.push(Bytes::copy_from_slice(piece));
            if let Err(error) = pieces.take(&schema()) {
                refused = Some((error, pieces.since));
                break;
            }
        }
        let (error, held) = refused.unwrap();
        assert!(matches!(error, ParseError::TooLarge(_)) && held < 10 << 10, "{error:?} after {held} bytes");
        let mut cut = ArrowPieces::new(1 << 20);
        cut.push(Bytes::copy_from_slice(&body[..body.len() / 2]));
        assert!(cut.take(&schema()).unwrap().is_none());
        cut.end();
        assert!(matches!(cut.take(&schema()), Err(ParseError::Syntax(_))));
        let mut nothing = ArrowPieces::new(1 << 20);
        nothing.end();
        assert!(matches!(nothing.take(&schema()), Err(ParseError::Syntax(_))));
    }

    #[test]
    fn a_value_that_is_not_finite_is_named_among_thousands() {
        let mut long = vec![1.0; 1000];
        long[777] = f64::INFINITY;
        let columns = [Arc::new(Float64Array::from(long)) as ArrayRef];
        let schema = InputSchema::new(vec![Input { name: "x".to_owned(), kind: InputKind::Number, required: true }]);
        let mut rows = Rows::default();
        let Err(ParseError::Faults(faults)) = parse_columns(&columns, 1000, 5000, &schema, &mut rows) else { panic!("it was taken") };
        assert_eq!(faults.into_vec()[0].pointer, "/rows/5777/x");
    }

    #[test]
    fn a_batch_has_no_more_rows_than_its_bytes_could_hold() {
        let nothing: ArrayRef = Arc::new(arrow_array::NullArray::new(5_000_000));
        let batch = RecordBatch::try_from_iter([("x", nothing)]).unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        let body = writer.into_inner().unwrap();
        assert!(body.len() < 1000);
        let optional = InputSchema::new(vec![Input { name: "x".to_owned(), kind: InputKind::Number, required: false }]);
        let options = RowsOptions { allow_id: false, max_rows: 10_000_000 };
        let mut rows = Rows::default();
        assert!(matches!(parse_arrow(&body, &optional, &options, &mut rows), Err(ParseError::Syntax(_))));
        assert_eq!(rows.values.capacity(), 0, "nothing was made ready for them");
        let in_pieces = |body: &[u8], schema: &InputSchema| {
            let mut pieces = ArrowPieces::new(1 << 20);
            pieces.push(Bytes::copy_from_slice(body));
            pieces.take(schema).map(|batch| batch.map(|batch| batch.count()))
        };
        assert!(matches!(in_pieces(&body, &optional), Err(ParseError::Syntax(_))));
        let count = RecordBatchOptions::new().with_row_count(Some(5_000_000));
        let batch = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &count).unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        let body = writer.into_inner().unwrap();
        assert!(matches!(parse_arrow(&body, &InputSchema::default(), &options, &mut rows), Err(ParseError::TooLarge(_))));
        assert!(matches!(in_pieces(&body, &InputSchema::default()), Err(ParseError::TooLarge(_))));
    }
}
