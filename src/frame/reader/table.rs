//! The table as it grows: typed columns of the frame under way, what is wrong so far, and the summary. Not here: any syntax.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};

use super::token::Token;
use super::{Emit, ReadError, ReadOptions, WIDEST};
use crate::frame::Frame;
use crate::frame::fault::{Faults, escaped};
use crate::frame::infer::{self, CellKind};
use crate::frame::schema::{self, Column, ColumnType, Schema};
use crate::frame::summary::{ColumnSummary, Summary};

/// Bytes of the cells of a frame at most.
const FRAME_BYTES: usize = 4 << 20;

/// Why a cell cannot be taken, in words that follow the place.
pub(super) type Complaint = &'static str;

const NOT_TEXT: Complaint = "not valid UTF-8";

/// The cells of a column in the frame under way. A missing cell has a placeholder here.
#[derive(Debug)]
pub(super) enum Values {
    /// Every cell so far was missing: the type is that of the first value to come.
    Undecided,
    Number(Vec<f64>),
    Integer(Vec<i64>),
    Boolean(Vec<bool>),
    Category(Categories),
    Text(Texts),
    Timestamp(Vec<i64>),
}

/// Texts end to end, as Arrow holds them.
#[derive(Debug)]
pub(super) struct Texts {
    bytes: Vec<u8>,
    offsets: Vec<i32>,
}

impl Default for Texts {
    fn default() -> Self {
        Self { bytes: Vec::new(), offsets: vec![0] }
    }
}

impl Texts {
    fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        // A frame's text is cut off after a few megabytes and one row: far below 2³¹.
        self.offsets.push(i32::try_from(self.bytes.len()).unwrap_or(i32::MAX));
    }

    fn into_array(self, nulls: Option<NullBuffer>) -> StringArray {
        StringArray::new(OffsetBuffer::new(ScalarBuffer::from(self.offsets)), Buffer::from_vec(self.bytes), nulls)
    }
}

/// Codes, and the distinct texts that they stand for; the texts are those of one frame.
#[derive(Debug, Default)]
pub(super) struct Categories {
    codes: Vec<i32>,
    lookup: HashMap<String, i32>,
    levels: Texts,
}

impl Categories {
    fn push(&mut self, text: &str) -> usize {
        if let Some(code) = self.lookup.get(text) {
            self.codes.push(*code);
            return 0;
        }
        let code = i32::try_from(self.lookup.len()).unwrap_or(i32::MAX);
        self.levels.push(text);
        self.lookup.insert(text.to_owned(), code);
        self.codes.push(code);
        text.len()
    }
}

impl Values {
    fn of(kind: Option<ColumnType>, capacity: usize) -> Self {
        match kind {
            None => Self::Undecided,
            Some(ColumnType::Number) => Self::Number(Vec::with_capacity(capacity)),
            Some(ColumnType::Integer) => Self::Integer(Vec::with_capacity(capacity)),
            Some(ColumnType::Boolean) => Self::Boolean(Vec::with_capacity(capacity)),
            Some(ColumnType::Category) => Self::Category(Categories { codes: Vec::with_capacity(capacity), ..Categories::default() }),
            Some(ColumnType::Text) => Self::Text(Texts::default()),
            Some(ColumnType::Timestamp) => Self::Timestamp(Vec::with_capacity(capacity)),
        }
    }

    fn kind(&self) -> Option<ColumnType> {
        match self {
            Self::Undecided => None,
            Self::Number(_) => Some(ColumnType::Number),
            Self::Integer(_) => Some(ColumnType::Integer),
            Self::Boolean(_) => Some(ColumnType::Boolean),
            Self::Category(_) => Some(ColumnType::Category),
            Self::Text(_) => Some(ColumnType::Text),
            Self::Timestamp(_) => Some(ColumnType::Timestamp),
        }
    }

    fn push_placeholder(&mut self) {
        match self {
            Self::Undecided => {}
            Self::Number(values) => values.push(0.0),
            Self::Integer(values) | Self::Timestamp(values) => values.push(0),
            Self::Boolean(values) => values.push(false),
            Self::Category(categories) => categories.codes.push(0),
            Self::Text(texts) => texts.push(""),
        }
    }
}

/// One column of the table.
#[derive(Debug)]
pub(super) struct Growing {
    name: String,
    pub(super) values: Values,
    /// Rows of the frame under way in which the cell is missing, ascending.
    missing: Vec<u32>,
    /// The caller named the type: texts and numbers are read as it from whatever scalar they come as.
    forced: bool,
    /// The type stays, however many categories there are.
    fixed: bool,
    summary: ColumnSummary,
}

impl Growing {
    fn push_missing(&mut self, row: usize) {
        self.missing.push(u32::try_from(row).unwrap_or(u32::MAX));
        self.values.push_placeholder();
    }

    /// A cell of text; gives the bytes of text that the frame has grown by.
    fn push_text_cell(&mut self, row: usize, cell: &[u8], quoted: bool) -> Result<usize, Complaint> {
        let trimmed = cell.trim_ascii();
        let textual = matches!(self.values, Values::Category(_) | Values::Text(_));
        let literal = textual && quoted && !cell.is_empty();
        if !literal && (trimmed.is_empty() || infer::is_missing(trimmed)) {
            self.push_missing(row);
            return Ok(0);
        }
        if matches!(self.values, Values::Undecided) {
            self.adopt(row, infer::classify(trimmed));
        }
        let textual = matches!(self.values, Values::Category(_) | Values::Text(_));
        self.push_value(if textual { cell } else { trimmed })
    }

    /// A cell of JSON.
    fn push_token(&mut self, row: usize, token: &Token<'_>) -> Result<usize, Complaint> {
        if matches!(self.values, Values::Undecided) {
            self.adopt(row, token.kind());
        }
        let text = match (token, &self.values) {
            (Token::Null, _) => {
                self.push_missing(row);
                return Ok(0);
            }
            (Token::Number(text), Values::Number(_) | Values::Integer(_)) => text,
            (Token::Boolean(_), Values::Boolean(_)) | (Token::Text(_), Values::Category(_) | Values::Text(_) | Values::Timestamp(_)) => {
                token.text()
            }
            _ if self.forced => token.text().trim_ascii(),
            // A dataset's categories may have been forced out of numbers once, and go on as such.
            (Token::Number(_) | Token::Boolean(_), Values::Category(_)) if self.fixed => token.text(),
            (_, values) => return Err(complaint(values)),
        };
        self.push_value(text)
    }

    /// A value that is there.
    fn push_value(&mut self, text: &[u8]) -> Result<usize, Complaint> {
        match &mut self.values {
            Values::Undecided => return Err(NOT_TEXT),
            Values::Number(values) => values.push(finite(text)?),
            Values::Integer(values) => match infer::whole_number(text) {
                Some(value) => values.push(value),
                None => {
                    let value = finite(text)?;
                    if self.forced {
                        return Err("not a whole number of 64 bits");
                    }
                    #[allow(clippy::cast_precision_loss)] // the column turns out to be one of floats
                    let mut widened: Vec<f64> = values.iter().map(|value| *value as f64).collect();
                    widened.push(value);
                    self.values = Values::Number(widened);
                    self.summary.widen_to_numbers();
                }
            },
            Values::Boolean(values) => values.push(infer::truth(text).ok_or("not a boolean")?),
            Values::Timestamp(values) => values.push(infer::instant(text).ok_or("not a timestamp")?),
            Values::Category(categories) => return Ok(categories.push(std::str::from_utf8(text).map_err(|_| NOT_TEXT)?)),
            Values::Text(texts) => {
                texts.push(std::str::from_utf8(text).map_err(|_| NOT_TEXT)?);
                return Ok(text.len());
            }
        }
        Ok(0)
    }

    /// The first value of a column settles its type.
    fn adopt(&mut self, row: usize, kind: CellKind) {
        let kind = match kind {
            CellKind::Missing => return,
            CellKind::Integer => ColumnType::Integer,
            CellKind::Number => ColumnType::Number,
            CellKind::Boolean => ColumnType::Boolean,
            CellKind::Timestamp => ColumnType::Timestamp,
            CellKind::Text => ColumnType::Category,
        };
        self.values = Values::of(Some(kind), row + 1);
        for _ in 0..row {
            self.values.push_placeholder();
        }
    }

    /// The finished cells as an array, and into the summary; leaves room for the next frame.
    fn take(&mut self, rows: usize, capacity: usize) -> ArrayRef {
        let missing = std::mem::take(&mut self.missing);
        let next = Values::of(self.values.kind(), capacity);
        self.summary.add_missing(missing.len());
        let nulls = (!missing.is_empty()).then(|| {
            let mut bits = vec![0xff_u8; rows.div_ceil(8)];
            for &row in &missing {
                bits[row as usize / 8] &= !(1 << (row % 8));
            }
            NullBuffer::new(BooleanBuffer::new(Buffer::from_vec(bits), 0, rows))
        });
        let array: ArrayRef = match std::mem::replace(&mut self.values, next) {
            Values::Undecided => Arc::new(Float64Array::new_null(rows)),
            Values::Number(values) => {
                self.summary.add_numbers(&present(&values, &missing));
                Arc::new(Float64Array::new(values.into(), nulls))
            }
            Values::Integer(values) => {
                self.summary.add_integers(&present(&values, &missing));
                Arc::new(Int64Array::new(values.into(), nulls))
            }
            Values::Boolean(values) => {
                self.summary.add_booleans(&present(&values, &missing));
                Arc::new(BooleanArray::new(BooleanBuffer::from(values), nulls))
            }
            Values::Timestamp(values) => {
                self.summary.add_timestamps(&present(&values, &missing));
                Arc::new(TimestampMicrosecondArray::new(values.into(), nulls).with_timezone("UTC"))
            }
            Values::Text(texts) => {
                let array = texts.into_array(nulls);
                self.summary.add_texts(rows - missing.len(), array.iter().flatten(), array.iter().flatten());
                Arc::new(array)
            }
            Values::Category(Categories { codes, levels, .. }) => {
                let levels = levels.into_array(None);
                let array = DictionaryArray::<Int32Type>::new(Int32Array::new(codes.into(), nulls), Arc::new(levels.clone()));
                let first = array.keys().iter().flatten().filter_map(|code| usize::try_from(code).ok()).map(|code| levels.value(code));
                self.summary.add_texts(rows - missing.len(), levels.iter().flatten(), first);
                if self.summary.has_many() && !self.fixed {
                    self.values = Values::Text(Texts::default());
                }
                Arc::new(array)
            }
        };
        array
    }
}

/// The values without those of missing cells.
fn present<'v, T: Copy>(values: &'v [T], missing: &[u32]) -> Cow<'v, [T]> {
    if missing.is_empty() {
        return Cow::Borrowed(values);
    }
    let mut kept = Vec::with_capacity(values.len() - missing.len());
    let mut begin = 0;
    for &row in missing {
        kept.extend_from_slice(&values[begin..row as usize]);
        begin = row as usize + 1;
    }
    kept.extend_from_slice(&values[begin..]);
    Cow::Owned(kept)
}

fn finite(text: &[u8]) -> Result<f64, Complaint> {
    let value = infer::number(text).ok_or("not a number")?;
    if value.is_finite() { Ok(value) } else { Err("not a finite 64-bit number") }
}

fn complaint(values: &Values) -> Complaint {
    match values {
        Values::Number(_) | Values::Integer(_) => "not a number",
        Values::Boolean(_) => "not a boolean",
        Values::Timestamp(_) => "not a timestamp",
        Values::Undecided | Values::Category(_) | Values::Text(_) => "not a text",
    }
}

/// The table under way.
#[derive(Debug)]
pub(super) struct Table {
    /// The columns in the order of the text.
    pub(super) columns: Vec<Growing>,
    /// For each column of a frame, its place in the text.
    order: Vec<usize>,
    /// Rows of the frame under way.
    pub(super) row: usize,
    rows: u64,
    frame_rows: usize,
    text_bytes: usize,
    faults: Faults,
    /// Whether the row stands on a line that can be named, and on which.
    pub(super) line: Option<u64>,
}

impl Table {
    /// A table of columns with these names, which the text gives in this order, and of the types that `verdict` infers.
    pub(super) fn new(names: &[String], verdict: impl Fn(usize) -> Option<ColumnType>, options: &ReadOptions) -> Result<Self, ReadError> {
        if names.len() > WIDEST {
            return Err(ReadError::TooWide);
        }
        let names = checked_names(names)?;
        let places: HashMap<&str, usize> = names.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
        let mut faults = Faults::default();
        let mut forced = vec![None; names.len()];
        for (index, (name, kind)) in options.types.iter().enumerate() {
            match places.get(schema::normalised(name).as_str()) {
                Some(place) => forced[*place] = Some(*kind),
                None => faults.push(|| format!("/types/{index}"), || format!("`types` names a column {} that is not there", shown(name))),
            }
        }
        let order = match &options.expect {
            None => (0..names.len()).collect(),
            Some(expected) => {
                let order: Vec<usize> = expected
                    .columns
                    .iter()
                    .filter_map(|column| {
                        let place = places.get(column.name.as_str()).copied();
                        if place.is_none() {
                            faults.push(|| "/columns".to_owned(), || format!("column {} is missing", shown(&column.name)));
                        }
                        place
                    })
                    .collect();
                let wanted: HashMap<&str, ColumnType> = expected.columns.iter().map(|column| (column.name.as_str(), column.kind)).collect();
                for (place, name) in names.iter().enumerate() {
                    match (wanted.get(name.as_str()), &mut forced[place]) {
                        (None, _) => faults.push(
                            || format!("/columns/{place}"),
                            || format!("column {}: the dataset has no column {}", place + 1, shown(name)),
                        ),
                        (Some(kind), Some(forced)) if forced != kind => faults.push(
                            || format!("/columns/{place}"),
                            || format!("column {}: column {} is of type {} in the dataset", place + 1, shown(name), kind.as_str()),
                        ),
                        (Some(_), _) => {}
                    }
                }
                order
            }
        };
        if !faults.is_empty() {
            return Err(ReadError::Faults(faults));
        }
        // Cells of 8 bytes; texts are counted as they come.
        let frame_rows = (FRAME_BYTES / (8 * names.len().max(1))).clamp(1, options.frame_rows.max(1));
        let columns = names
            .into_iter()
            .enumerate()
            .map(|(place, name)| {
                let expected = options.expect.as_ref().and_then(|schema| schema.columns.iter().find(|column| column.name == name));
                let kind = forced[place].or(expected.map(|column| column.kind)).or_else(|| verdict(place));
                Growing {
                    name,
                    values: Values::of(kind, frame_rows),
                    missing: Vec::new(),
                    forced: forced[place].is_some(),
                    fixed: forced[place].is_some() || expected.is_some(),
                    summary: ColumnSummary::default(),
                }
            })
            .collect();
        Ok(Self { columns, order, row: 0, rows: 0, frame_rows, text_bytes: 0, faults: Faults::default(), line: None })
    }

    /// Takes a cell of text.
    pub(super) fn text_cell(&mut self, column: usize, cell: &[u8], quoted: bool) {
        let outcome = self.columns[column].push_text_cell(self.row, cell, quoted);
        self.settle(column, outcome);
    }

    /// Takes a cell of JSON.
    pub(super) fn token_cell(&mut self, column: usize, token: &Token<'_>) {
        let outcome = self.columns[column].push_token(self.row, token);
        self.settle(column, outcome);
    }

    /// Takes a cell that is not there.
    pub(super) fn missing_cell(&mut self, column: usize) {
        self.columns[column].push_missing(self.row);
    }

    /// Takes a cell that cannot be one.
    pub(super) fn bad_cell(&mut self, column: usize, complaint: Complaint) {
        self.settle(column, Err(complaint));
    }

    fn settle(&mut self, column: usize, outcome: Result<usize, Complaint>) {
        match outcome {
            Ok(bytes) => self.text_bytes += bytes,
            Err(complaint) => {
                let growing = &mut self.columns[column];
                growing.push_missing(self.row);
                let (rows, line, name) = (self.rows, self.line, &growing.name);
                self.faults.push(
                    || format!("/rows/{rows}/{}", escaped(name)),
                    || format!("{}, column {}: {complaint}", place(rows, line), shown(name)),
                );
            }
        }
    }

    /// Something is wrong with the whole row under way, or with a member of it.
    pub(super) fn bad_row(&mut self, member: Option<&str>, complaint: impl FnOnce() -> String) {
        let (rows, line) = (self.rows, self.line);
        self.faults.push(
            || {
                let member = member.map(|member| format!("/{}", escaped(clipped(member))));
                format!("/rows/{rows}{}", member.unwrap_or_default())
            },
            || format!("{}: {}", place(rows, line), complaint()),
        );
    }

    /// What to call the row under way.
    pub(super) fn place(&self) -> (String, String) {
        (format!("/rows/{}", self.rows), place(self.rows, self.line))
    }

    /// The row is complete: every column has a cell of it.
    #[inline]
    pub(super) fn end_row(&mut self, emit: Emit<'_>) -> Result<(), ReadError> {
        self.row += 1;
        self.rows += 1;
        if self.row == self.frame_rows || self.text_bytes >= FRAME_BYTES {
            self.flush(emit)?;
        }
        Ok(())
    }

    /// Ends the reading where nothing more would be told.
    pub(super) fn stop_if_full(&mut self) -> Result<(), ReadError> {
        if self.faults.is_full() { Err(ReadError::Faults(std::mem::take(&mut self.faults))) } else { Ok(()) }
    }

    /// The last frame, and the description of all.
    pub(super) fn finish(mut self, emit: Emit<'_>) -> Result<Summary, ReadError> {
        self.flush(emit)?;
        if !self.faults.is_empty() {
            return Err(ReadError::Faults(self.faults));
        }
        let mut columns: Vec<Option<Growing>> = self.columns.into_iter().map(Some).collect();
        let (mut schema, mut summaries) = (Schema::default(), Vec::new());
        for place in self.order {
            if let Some(column) = columns[place].take() {
                schema.columns.push(Column { kind: column.values.kind().unwrap_or(ColumnType::Number), name: column.name });
                summaries.push(column.summary);
            }
        }
        Ok(Summary::new(schema, self.rows, summaries))
    }

    fn flush(&mut self, emit: Emit<'_>) -> Result<(), ReadError> {
        let (rows, capacity) = (self.row, self.frame_rows);
        self.row = 0;
        self.text_bytes = 0;
        if rows == 0 {
            return Ok(());
        }
        let arrays: Vec<ArrayRef> = self.columns.iter_mut().map(|column| column.take(rows, capacity)).collect();
        if !self.faults.is_empty() {
            return Ok(()); // nothing will come of this table
        }
        emit(Frame { columns: self.order.iter().map(|place| arrays[*place].clone()).collect(), rows })
    }
}

fn place(rows: u64, line: Option<u64>) -> String {
    match line {
        Some(line) => format!("row {} (line {line})", rows + 1),
        None => format!("row {}", rows + 1),
    }
}

/// A name as it stands in a message: quoted, and not longer than a name can be.
pub(super) fn shown(name: &str) -> String {
    format!("{:?}", clipped(name))
}

fn clipped(name: &str) -> &str {
    name.char_indices().nth(128).map_or(name, |(end, _)| &name[..end])
}

fn checked_names(names: &[String]) -> Result<Vec<String>, ReadError> {
    let mut faults = Faults::default();
    let mut seen = HashSet::new();
    let mut checked = Vec::with_capacity(names.len());
    for (place, name) in names.iter().enumerate() {
        let complaint = match schema::column_name(name) {
            Ok(name) if seen.insert(name.clone()) => {
                checked.push(name);
                continue;
            }
            Ok(name) => format!("the name {} occurs twice", shown(&name)),
            Err(complaint) => complaint.to_owned(),
        };
        faults.push(|| format!("/columns/{place}"), || format!("column {}: {complaint}", place + 1));
    }
    if faults.is_empty() { Ok(checked) } else { Err(ReadError::Faults(faults)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn table(kinds: &[Option<ColumnType>], frame_rows: usize) -> Table {
        let names: Vec<String> = (0..kinds.len()).map(|index| format!("c{index}")).collect();
        Table::new(&names, |place| kinds[place], &ReadOptions { frame_rows, ..ReadOptions::default() }).unwrap()
    }

    #[test]
    fn frames_of_wide_tables_have_fewer_rows() {
        assert_eq!(table(&[None; 20], 8192).frame_rows, 8192);
        assert_eq!(table(&[None; 10_000], 8192).frame_rows, 52);
    }

    #[test]
    fn missing_cells_are_left_out_of_the_values() {
        assert_eq!(present(&[1, 2, 3, 4], &[0, 2]).as_ref(), [2, 4]);
        assert_eq!(present(&[1, 2], &[0, 1]).as_ref(), [0; 0]);
        assert_eq!(present(&[1, 2], &[]).as_ref(), [1, 2]);
    }

    #[test]
    fn a_name_is_told_only_once_it_is_checked() {
        let names: Vec<String> = ["a", "", "a", "b/c"].iter().map(|&name| name.to_owned()).collect();
        let ReadError::Faults(faults) = checked_names(&names).unwrap_err() else { panic!() };
        let pointers: Vec<String> = faults.into_vec().into_iter().map(|fault| fault.pointer).collect();
        assert_eq!(pointers, ["/columns/1", "/columns/2", "/columns/3"]);
    }

    #[test]
    fn more_columns_than_are_taken_are_refused() {
        let names: Vec<String> = (0..=WIDEST).map(|index| format!("c{index}")).collect();
        assert_eq!(Table::new(&names, |_| None, &ReadOptions::default()).unwrap_err(), ReadError::TooWide);
    }
}
