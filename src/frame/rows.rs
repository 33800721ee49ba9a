//! Rows of requests, from JSON, NDJSON or CSV straight into one row-major buffer of floats.
//!
//! No tree and no map is built: the text is scanned once, and each cell goes to its place in the buffer. The names in a row of JSON are
//! expected in the spelling and order of the row before it (those of the first row in the order of the inputs), and are looked up only where
//! they differ. All faults of a request are collected; if there is any, no row is kept. Not here: uploads of datasets, which have no schema to be read by.

use std::borrow::Cow;

use super::fault::{Fault, Faults, Lack, escaped};
use super::infer::instant;
use super::input::{InputKind, InputSchema, Spelling, Unseen};
use super::scan::{Broken, Literal, Scan, plain_decimal};

/// The member or column that holds a row's event id.
pub(super) const ID: &str = "_id";

/// Longest name of the caller's that a fault repeats, and longest id, in characters.
pub(super) const LONGEST: usize = 128;

/// Rows of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// Row-major, one cell an input. A category is its level's index, or −1 when it was not seen in training; NaN is missing.
    pub values: Vec<f64>,
    /// The event id of each row; empty when no row has one.
    pub ids: Vec<Option<String>>,
    /// How many rows there are, which `values` cannot tell when there are no inputs.
    pub count: usize,
    /// The line on which each row begins; of a batch of a stream only.
    pub lines: Vec<u64>,
}

impl Rows {
    pub(super) fn clear(&mut self) {
        self.values.clear();
        self.ids.clear();
        self.lines.clear();
        self.count = 0;
    }
}

/// What a request may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowsOptions {
    /// Whether a row may carry `_id`.
    pub allow_id: bool,
    /// Most rows.
    pub max_rows: usize,
}

/// Most cells of a request, rows times inputs, 8 bytes each. A row of a few bytes may stand for very many, where a model can do without them.
pub(super) const MOST_CELLS: usize = 1 << 26;

impl RowsOptions {
    /// Most rows of so many inputs.
    pub(super) fn most_rows(&self, inputs: usize) -> usize {
        most_rows(self.max_rows, inputs)
    }
}

/// Most rows of so many inputs, where there may be `max_rows` of few.
pub(super) fn most_rows(max_rows: usize, inputs: usize) -> usize {
    max_rows.min((MOST_CELLS / inputs.max(1)).max(1))
}

/// What is told to who sends more rows.
pub(super) fn too_many_rows(most: usize) -> String {
    format!("a request holds at most {most} rows")
}

/// Why rows cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The body is not of its format.
    #[error("{}", .0.detail)]
    Syntax(Fault),
    /// Rows or cells are wrong.
    #[error("{0}")]
    Faults(Faults),
    /// Too many rows.
    #[error("{0}")]
    TooLarge(String),
}

/// A top-level member of a JSON body beside its rows: its name and its text.
pub type Member<'a> = (Cow<'a, str>, &'a [u8]);

/// Takes the rows of `{"rows": [{…}, …], …}` or `{"columns": […], "data": [[…], …], …}`; returns the other members, unparsed but known to
/// be JSON, in their order.
///
/// # Errors
/// The body is no JSON, rows or cells are wrong, or there are too many; `rows` is empty then.
pub fn parse_document<'a>(
    body: &'a [u8],
    schema: &InputSchema,
    options: &RowsOptions,
    rows: &mut Rows,
) -> Result<Vec<Member<'a>>, ParseError> {
    let mut intake = Intake::new(schema, options, rows);
    let result = document(&mut intake, &mut Scan::new(without_mark(body)));
    intake.end(without_mark(body), result)
}

/// Takes the rows of `[{…}, …]`, which is known to be an array of JSON.
///
/// # Errors
/// Rows or cells are wrong (`/rows/{row}/{name}`), or there are too many; `rows` is empty then.
pub fn parse_objects(json: &[u8], schema: &InputSchema, options: &RowsOptions, rows: &mut Rows) -> Result<(), ParseError> {
    let mut intake = Intake::new(schema, options, rows);
    let result = objects(&mut intake, &mut Scan::new(json));
    intake.end(json, result)
}

/// Takes the rows of `[[…], …]`, which is known to be an array of JSON; each row holds every cell in the order of the schema.
///
/// # Errors
/// Rows or cells are wrong (`/data/{row}/{position}`), or there are too many; `rows` is empty then.
pub fn parse_arrays(json: &[u8], schema: &InputSchema, options: &RowsOptions, rows: &mut Rows) -> Result<(), ParseError> {
    let mut intake = Intake::new(schema, options, rows);
    let targets: Vec<Target> = (0..schema.len()).map(Target::Input).collect();
    let result = arrays(&mut intake, &mut Scan::new(json), &targets);
    intake.end(json, result)
}

/// Takes rows of one JSON object a line; blank lines are skipped. `first_line` is the number of the first line, for faults.
///
/// # Errors
/// Lines or cells are wrong, or there are too many; `rows` is empty then.
pub fn parse_ndjson(body: &[u8], first_line: u64, schema: &InputSchema, options: &RowsOptions, rows: &mut Rows) -> Result<(), ParseError> {
    let mut intake = Intake::new(schema, options, rows);
    let result = lines(&mut intake, without_mark(body), first_line);
    intake.end(body, result)
}

/// Takes rows of CSV (RFC 4180) under a header line. A cell that is empty, `NA`, `N/A`, `NaN`, `null` or `None` is missing.
///
/// # Errors
/// A quote is not closed, the header, rows or cells are wrong, or there are too many rows; `rows` is empty then.
pub fn parse_csv(body: &[u8], schema: &InputSchema, options: &RowsOptions, rows: &mut Rows) -> Result<(), ParseError> {
    let mut intake = Intake::new(schema, options, rows);
    let result = table(&mut intake, &mut Records { text: without_mark(body), at: 0, line: 1, buffer: Vec::new() });
    intake.end(body, result)
}

/// Takes some lines of a longer NDJSON body, of which the first is number `first_line`; faults are named by line (`/lines/{line}/{name}`).
///
/// # Errors
/// As [`parse_ndjson`].
pub fn parse_ndjson_batch(
    batch: &[u8],
    first_line: u64,
    schema: &InputSchema,
    options: &RowsOptions,
    rows: &mut Rows,
) -> Result<(), ParseError> {
    let mut intake = Intake::new(schema, options, rows);
    intake.form = Form::Lines;
    let result = lines(&mut intake, if first_line == 1 { without_mark(batch) } else { batch }, first_line);
    intake.end(batch, result)
}

/// Takes some records of a longer CSV body under its header line, which begins on line `header_line`; the first record begins on or after
/// line `first_line`. Faults are named by line.
///
/// # Errors
/// As [`parse_csv`].
pub fn parse_csv_batch(
    (header, header_line): (&[u8], u64),
    (batch, first_line): (&[u8], u64),
    schema: &InputSchema,
    options: &RowsOptions,
    rows: &mut Rows,
) -> Result<(), ParseError> {
    let mut intake = Intake::new(schema, options, rows);
    intake.form = Form::Lines;
    let header = if header_line == 1 { without_mark(header) } else { header };
    let mut head = Records { text: header, at: 0, line: header_line, buffer: Vec::new() };
    let mut body = Records { text: batch, at: 0, line: first_line, buffer: Vec::new() };
    let result = table_header(&mut intake, &mut head).and_then(|targets| table_rows(&mut intake, &mut body, &targets));
    intake.end(batch, result)
}

/// The text without the byte order mark that some editors and shells put first.
fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

/// What stands for a row where a header's columns are marked as seen.
const HEADER: usize = usize::MAX;

/// Most members of a JSON body beside its rows: more than any request has, few enough to compare each with each.
const MOST_MEMBERS: usize = 64;

/// What ends the reading early.
enum Stop {
    /// The text is not JSON.
    Broken(Broken),
    /// The text is not of its format in another way.
    Syntax(String),
    /// No more faults are kept.
    Full,
    /// Too many rows.
    TooLarge,
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// Where a cell goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Input(usize),
    Id,
    /// A column that is not known, already told in the header.
    Nowhere,
}

/// A cell of JSON.
enum Cell<'a> {
    Number(f64, &'a [u8]),
    Text(Cow<'a, str>),
    Boolean(bool),
    Null,
    Nested,
}

/// What is wrong with a cell, in words; never the value.
pub(super) type Refusal = &'static str;

pub(super) const MISSING: Refusal = "is missing";
pub(super) const NO_NUMBER: Refusal = "is not a number";
pub(super) const NO_TIMESTAMP: Refusal = "is not a timestamp in the form of ISO 8601";
pub(super) const NO_LOGARITHM: Refusal = "is too small: the model takes its logarithm, and with the offset it is not above 0";
pub(super) const NOT_FINITE: Refusal = "is not a finite number";
pub(super) const NO_BOOLEAN: Refusal = "is not true or false";
const NO_TEXT: Refusal = "is not text";
const NESTED: Refusal = "is an array or an object, not one value";
const UNSEEN: Refusal = "this category was not seen in training";
const TWICE: Refusal = "stands twice in the row";
pub(super) const NO_ID: Refusal = "is not text of 1 to 128 characters";
const NO_UTF8: Refusal = "is not UTF-8";
const AFTER_QUOTE: Refusal = "has text after its closing quote";

impl Faults {
    /// Notes what the cell of an input lacks, if it is refused for that.
    pub(super) fn note(&mut self, place: usize, what: Refusal) {
        match what {
            MISSING => self.lack(place, Lack::Missing),
            UNSEEN => self.lack(place, Lack::Unseen),
            _ => {}
        }
    }
}

/// How the place of a cell is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `/rows/{row}/{name}`
    Rows,
    /// `/data/{row}/{position}`
    Data,
    /// `/lines/{line}/{name}`
    Lines,
}

/// Rows on their way in: the row being read, and the faults so far.
struct Intake<'s, 'r> {
    schema: &'s InputSchema,
    options: RowsOptions,
    rows: &'r mut Rows,
    faults: Faults,
    form: Form,
    /// The line of the row in the body, where rows are lines.
    line: Option<u64>,
    /// The first cell of the row in `rows.values`.
    start: usize,
    /// Of each input, the last row (from 1) that held it.
    seen: Vec<usize>,
    id_seen: usize,
    /// Inputs that the row held.
    filled: usize,
}

impl<'s, 'r> Intake<'s, 'r> {
    fn new(schema: &'s InputSchema, options: &RowsOptions, rows: &'r mut Rows) -> Self {
        rows.clear();
        let seen = vec![0; schema.len()];
        Self {
            schema,
            options: RowsOptions { max_rows: options.most_rows(schema.len()), ..*options },
            rows,
            faults: Faults::default(),
            form: Form::Rows,
            line: None,
            start: 0,
            seen,
            id_seen: 0,
            filled: 0,
        }
    }

    /// The result of the whole, and no rows unless it is a good one.
    fn end<T>(self, body: &[u8], result: Result<T, Stop>) -> Result<T, ParseError> {
        let error = match result {
            Ok(value) if self.faults.is_empty() => return Ok(value),
            Ok(_) | Err(Stop::Full) => ParseError::Faults(self.faults),
            Err(Stop::Broken(broken)) => {
                let (line, column) = broken.line_and_column(body);
                syntax(format!("the body is not JSON: line {line}, column {column}: {}", broken.why.text()))
            }
            Err(Stop::Syntax(detail)) => syntax(detail),
            Err(Stop::TooLarge) => ParseError::TooLarge(too_many_rows(self.options.max_rows)),
        };
        self.rows.clear();
        Err(error)
    }

    /// The row being read, from 1.
    fn number(&self) -> usize {
        self.rows.count + 1
    }

    /// Makes room for a row whose cells are all missing.
    #[inline]
    fn begin_row(&mut self) -> Result<(), Stop> {
        if self.rows.count >= self.options.max_rows {
            return Err(Stop::TooLarge);
        }
        if !self.faults.is_empty() {
            // Nothing of a bad request is kept.
            self.rows.values.clear();
        }
        self.start = self.rows.values.len();
        self.rows.values.resize(self.start + self.schema.len(), f64::NAN);
        self.filled = 0;
        Ok(())
    }

    /// Ends the row; what it should have held and did not is a fault.
    #[inline]
    fn end_row(&mut self) -> Result<(), Stop> {
        if self.filled < self.schema.len() {
            self.refuse_missing()?;
        }
        self.count_row();
        Ok(())
    }

    #[inline]
    fn count_row(&mut self) {
        self.rows.count += 1;
        if self.form == Form::Lines {
            self.rows.lines.push(self.line.unwrap_or_default());
        }
        if !self.rows.ids.is_empty() && self.rows.ids.len() < self.rows.count {
            self.rows.ids.push(None);
        }
    }

    #[cold]
    fn refuse_missing(&mut self) -> Result<(), Stop> {
        let schema = self.schema;
        for (place, input) in schema.inputs().iter().enumerate() {
            if input.required && self.seen[place] != self.number() {
                self.faults.lack(place, Lack::Missing);
                self.refuse_cell(&input.name, place, MISSING)?;
            }
        }
        Ok(())
    }

    /// Room for the rows to come, if they are like the first, which took `taken` bytes of the text.
    fn reserve(&mut self, taken: usize, left: usize) {
        if self.faults.is_empty() && taken > 0 {
            let more = (left / taken + 1).min(self.options.max_rows);
            self.rows.values.reserve(more.saturating_mul(self.schema.len()));
        }
    }

    /// Keeps a fault; stops when no more are kept.
    #[cold]
    fn refuse(&mut self, pointer: impl FnOnce() -> String, detail: impl FnOnce() -> String) -> Result<(), Stop> {
        self.faults.push(pointer, detail);
        if self.faults.is_full() { Err(Stop::Full) } else { Ok(()) }
    }

    /// `row 3`, or `row 3 (line 4)`.
    fn row_in_words(&self) -> String {
        match self.line {
            Some(line) if self.form == Form::Lines => format!("line {line}"),
            Some(line) => format!("row {} (line {line})", self.number()),
            None => format!("row {}", self.number()),
        }
    }

    /// The pointer to the row.
    fn row_pointer(&self) -> String {
        match self.form {
            Form::Rows => format!("/rows/{}", self.rows.count),
            Form::Data => format!("/data/{}", self.rows.count),
            Form::Lines => format!("/lines/{}", self.line.unwrap_or_default()),
        }
    }

    /// A fault of the row as a whole.
    #[cold]
    fn refuse_row(&mut self, what: &str) -> Result<(), Stop> {
        let (pointer, words) = (self.row_pointer(), self.row_in_words());
        self.refuse(|| pointer, || format!("{words}: {what}"))
    }

    /// A fault of the cell under a name of ours; `position` is its column in the request.
    #[cold]
    fn refuse_cell(&mut self, name: &str, position: usize, what: Refusal) -> Result<(), Stop> {
        let (row, words) = (self.row_pointer(), self.row_in_words());
        let pointer = match self.form {
            Form::Rows | Form::Lines => format!("{row}/{}", escaped(name)),
            Form::Data => format!("{row}/{position}"),
        };
        let detail = format!("{words}, column {name:?}: {what}");
        self.refuse(|| pointer, || detail)
    }

    #[cold]
    fn refuse_target(&mut self, target: Target, position: usize, what: Refusal) -> Result<(), Stop> {
        let schema = self.schema;
        match target {
            Target::Input(place) => {
                self.faults.note(place, what);
                self.refuse_cell(&schema.inputs()[place].name, position, what)
            }
            Target::Id => self.refuse_cell(ID, position, what),
            Target::Nowhere => Ok(()),
        }
    }

    /// A name of the caller's in a row that is none of ours.
    #[cold]
    fn refuse_name(&mut self, name: &str) -> Result<(), Stop> {
        if !repeatable(name) {
            return self.refuse_row("holds a name that is too long for any feature");
        }
        let (row, words) = (self.row_pointer(), self.row_in_words());
        self.refuse(|| format!("{row}/{}", escaped(name)), || format!("{words}: there is no feature {name:?}"))
    }

    /// The target of a name, if it has one.
    fn target(&self, name: &str) -> Option<Target> {
        match self.schema.place_of(name) {
            Some(place) => Some(Target::Input(place)),
            None => (self.options.allow_id && name == ID).then_some(Target::Id),
        }
    }

    /// Marks the target as held by the row; false if it was before.
    #[inline]
    fn mark(&mut self, target: Target) -> bool {
        let row = self.number();
        match target {
            Target::Input(place) => {
                let fresh = std::mem::replace(&mut self.seen[place], row) != row;
                self.filled += usize::from(fresh);
                fresh
            }
            Target::Id => std::mem::replace(&mut self.id_seen, row) != row,
            Target::Nowhere => true,
        }
    }

    /// Takes a value of JSON as the cell of `target`; `open` arrays and objects are open around it.
    #[inline(always)]
    fn take(&mut self, scan: &mut Scan<'_>, target: Target, position: usize, open: u32) -> Result<(), Stop> {
        if let Target::Input(place) = target
            && let InputKind::Number | InputKind::Integer = self.schema.inputs()[place].kind
            && let Some(value) = scan.plain_number()
        {
            self.rows.values[self.start + place] = value;
            return Ok(());
        }
        self.take_other(scan, target, position, open)
    }

    /// The same for whatever is not a common number where one belongs.
    #[inline(never)]
    fn take_other(&mut self, scan: &mut Scan<'_>, target: Target, position: usize, open: u32) -> Result<(), Stop> {
        let cell = cell(scan, open)?;
        match target {
            Target::Input(place) => match self.value(place, &cell) {
                Ok(value) => {
                    self.rows.values[self.start + place] = value;
                    Ok(())
                }
                Err(refusal) => self.refuse_target(target, position, refusal),
            },
            Target::Id => {
                let text = match &cell {
                    Cell::Null => return Ok(()),
                    Cell::Text(text) => text,
                    Cell::Number(_, text) => std::str::from_utf8(text).unwrap_or_default(),
                    Cell::Boolean(_) | Cell::Nested => "",
                };
                self.take_id(text, position)
            }
            Target::Nowhere => Ok(()),
        }
    }

    fn take_id(&mut self, text: &str, position: usize) -> Result<(), Stop> {
        if text.is_empty() || !repeatable(text) {
            return self.refuse_target(Target::Id, position, NO_ID);
        }
        // Rows before the first id have none.
        self.rows.ids.resize(self.rows.count, None);
        self.rows.ids.push(Some(text.to_owned()));
        Ok(())
    }

    /// The value of a cell of JSON.
    fn value(&self, place: usize, cell: &Cell<'_>) -> Result<f64, Refusal> {
        let input = &self.schema.inputs()[place];
        match (&input.kind, cell) {
            (_, Cell::Null) => missing(input.required),
            (_, Cell::Nested) => Err(NESTED),
            (InputKind::Number | InputKind::Integer, Cell::Number(value, _)) if value.is_finite() => Ok(*value),
            (InputKind::Number | InputKind::Integer, Cell::Number(..)) => Err(NOT_FINITE),
            (InputKind::Number | InputKind::Integer, _) => Err(NO_NUMBER),
            (InputKind::Above(above), Cell::Number(value, _)) => of_limited(*value, *above),
            (InputKind::Above(_), _) => Err(NO_NUMBER),
            (InputKind::Timestamp, Cell::Text(text)) => instant(text.as_bytes()).map(of_instant).ok_or(NO_TIMESTAMP),
            (InputKind::Timestamp, _) => Err(NO_TIMESTAMP),
            (InputKind::Boolean, Cell::Boolean(value)) => Ok(f64::from(u8::from(*value))),
            (InputKind::Boolean, Cell::Number(value, _)) if *value == 0.0 || *value == 1.0 => Ok(value.abs()),
            (InputKind::Boolean, _) => Err(NO_BOOLEAN),
            (InputKind::Category { levels, unseen }, cell) => {
                let spelling = self.schema.spelling(place);
                let (level, own) = match cell {
                    Cell::Text(text) => (levels.get(text.as_ref()), true),
                    Cell::Boolean(value) => (levels.get(if *value { "true" } else { "false" }), spelling == Spelling::Booleans),
                    Cell::Number(value, text) => {
                        let text = std::str::from_utf8(text).unwrap_or_default();
                        let level = levels.get(text).or_else(|| levels.get(&whole(*value, text)?.to_string()));
                        (level, spelling == Spelling::Integers)
                    }
                    Cell::Null | Cell::Nested => (None, false),
                };
                match level {
                    Some(level) => Ok(f64::from(*level)),
                    None if !own => Err(NO_TEXT),
                    None => unseen_level(*unseen),
                }
            }
        }
    }

    /// The target of the column at `position` (from 0) of a header, which stands at `words`; a name that is not known or stands twice is
    /// a fault.
    fn column(&mut self, target: Option<Target>, name: &str, position: usize, words: impl Fn(usize) -> String) -> Result<Target, Stop> {
        let seen = match target {
            Some(Target::Input(place)) => Some(&mut self.seen[place]),
            Some(Target::Id) => Some(&mut self.id_seen),
            Some(Target::Nowhere) | None => None,
        };
        let fresh = seen.is_some_and(|seen| std::mem::replace(seen, HEADER) != HEADER);
        if let (Some(target), true) = (target, fresh) {
            return Ok(target);
        }
        let detail = match target {
            Some(_) => "stands twice".to_owned(),
            None if repeatable(name) => format!("there is no feature {name:?}"),
            None => "its name is too long for any feature".to_owned(),
        };
        self.refuse(|| format!("/columns/{position}"), || format!("{}: {detail}", words(position)))?;
        Ok(Target::Nowhere)
    }

    /// Ends a header; a column that must be there and is not is a fault.
    fn end_header(&mut self) -> Result<(), Stop> {
        let schema = self.schema;
        for (place, input) in schema.inputs().iter().enumerate() {
            if input.required && self.seen[place] != HEADER {
                self.faults.lack(place, Lack::Missing);
                self.refuse(|| "/columns".to_owned(), || format!("column {:?}: {MISSING}", input.name))?;
            }
        }
        Ok(())
    }
}

impl InputSchema {
    /// The value of a cell that is text, whatever the column holds: a cell of CSV, an element of a tensor of texts.
    pub(super) fn value_of_text(&self, place: usize, text: &[u8]) -> Result<f64, Refusal> {
        let input = &self.inputs()[place];
        match &input.kind {
            InputKind::Number | InputKind::Integer => {
                let text = text.trim_ascii();
                match fast_float2::parse::<f64, _>(text) {
                    Ok(value) if value.is_finite() => Ok(value),
                    _ if is_missing(text) => missing(input.required),
                    Ok(value) if value.is_infinite() => Err(NOT_FINITE),
                    _ => Err(NO_NUMBER),
                }
            }
            InputKind::Above(above) => {
                let text = text.trim_ascii();
                match fast_float2::parse::<f64, _>(text) {
                    Ok(value) if !value.is_nan() => of_limited(value, *above),
                    _ if is_missing(text) => missing(input.required),
                    _ => Err(NO_NUMBER),
                }
            }
            InputKind::Timestamp => match instant(text.trim_ascii()) {
                Some(instant) => Ok(of_instant(instant)),
                None if is_missing(text.trim_ascii()) => missing(input.required),
                None => Err(NO_TIMESTAMP),
            },
            InputKind::Boolean => match text.trim_ascii() {
                b"1" => Ok(1.0),
                b"0" => Ok(0.0),
                word if word.eq_ignore_ascii_case(b"true") => Ok(1.0),
                word if word.eq_ignore_ascii_case(b"false") => Ok(0.0),
                word if is_missing(word) => missing(input.required),
                _ => Err(NO_BOOLEAN),
            },
            InputKind::Category { levels, unseen } => {
                let text = std::str::from_utf8(text).map_err(|_| NO_UTF8)?;
                let other = || match self.spelling(place) {
                    Spelling::Text => None,
                    Spelling::Booleans => levels.get(&text.trim().to_ascii_lowercase()),
                    Spelling::Integers => levels.get(&text.trim().parse::<i64>().ok()?.to_string()),
                };
                // A level that is spelt like a missing cell is a level.
                match levels.get(text).or_else(other) {
                    Some(level) => Ok(f64::from(*level)),
                    None if is_missing(text.as_bytes()) => missing(input.required),
                    None => unseen_level(*unseen),
                }
            }
        }
    }
}

fn syntax(detail: String) -> ParseError {
    ParseError::Syntax(Fault { pointer: String::new(), detail })
}

/// Whether text of the caller's is short enough.
pub(super) fn repeatable(text: &str) -> bool {
    // A character has at most four bytes.
    text.len() <= LONGEST || (text.len() <= 4 * LONGEST && text.chars().count() <= LONGEST)
}

pub(super) fn missing(required: bool) -> Result<f64, Refusal> {
    if required { Err(MISSING) } else { Ok(f64::NAN) }
}

/// A number that has to be above another one.
pub(super) fn of_limited(value: f64, above: f64) -> Result<f64, Refusal> {
    if !value.is_finite() {
        return Err(NOT_FINITE);
    }
    if value > above { Ok(value) } else { Err(NO_LOGARITHM) }
}

/// A point in time as a cell.
#[allow(clippy::cast_precision_loss)] // exact for three centuries around 1970
pub(super) fn of_instant(microseconds: i64) -> f64 {
    microseconds as f64
}

fn unseen_level(unseen: Unseen) -> Result<f64, Refusal> {
    match unseen {
        Unseen::Error => Err(UNSEEN),
        Unseen::Baseline => Ok(-1.0),
    }
}

fn is_missing(text: &[u8]) -> bool {
    matches!(text, b"" | b"NA" | b"N/A" | b"NaN" | b"nan" | b"null" | b"NULL" | b"None")
}

/// The integer that a JSON number is: `7`, `-0` and `7.0`, not `7.5` and nothing that an f64 may have rounded.
fn whole(value: f64, text: &str) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    text.parse().ok().or_else(|| (value.fract() == 0.0 && value.abs() < EXACT).then_some(value as i64))
}

/// Takes one value of JSON; of an array or object only that it is one.
fn cell<'a>(scan: &mut Scan<'a>, open: u32) -> Result<Cell<'a>, Broken> {
    let start = scan.at();
    Ok(match scan.peek() {
        Some(b'"') => Cell::Text(scan.string()?),
        Some(b'-' | b'0'..=b'9') => {
            let value = scan.number()?;
            Cell::Number(value, scan.since(start))
        }
        Some(b'{' | b'[') => {
            scan.skip_value(open)?;
            Cell::Nested
        }
        _ => match scan.literal()? {
            Literal::True => Cell::Boolean(true),
            Literal::False => Cell::Boolean(false),
            Literal::Null => Cell::Null,
        },
    })
}

/// Passes `,` (true) or `close` (false), one of which must come next, and the whitespace around it.
#[inline]
fn goes_on(scan: &mut Scan<'_>, close: u8) -> Result<bool, Broken> {
    scan.skip_whitespace();
    if scan.take(b',') {
        scan.skip_whitespace();
        return Ok(true);
    }
    scan.expect(close)?;
    Ok(false)
}

/// Passes `open` and, if it comes right after it, `close`; says whether anything stands between them.
fn opens(scan: &mut Scan<'_>, open: u8, close: u8) -> Result<bool, Broken> {
    scan.expect(open)?;
    scan.skip_whitespace();
    Ok(!scan.take(close))
}

/// The names of a row of JSON as the row before spelt them, from the opening quote to the value; `None` where the name was not known.
type Template<'a> = Vec<Option<(&'a [u8], Target)>>;

/// The names as they are expected in the first row.
fn template(schema: &InputSchema) -> Template<'_> {
    let expected = |place| Some(schema.spelt(place)).filter(|spelt| !spelt.is_empty()).map(|spelt| (spelt, Target::Input(place)));
    (0..schema.len()).map(expected).collect()
}

/// Takes the members of one row, which is an object.
fn object<'t, 'a: 't>(intake: &mut Intake<'_, '_>, scan: &mut Scan<'a>, template: &mut Template<'t>, open: u32) -> Result<(), Stop> {
    if !opens(scan, b'{', b'}')? {
        return Ok(());
    }
    let mut position = 0;
    loop {
        let target = match template.get(position) {
            Some(&Some((spelt, target))) if scan.take_all(spelt) => target,
            _ => name(intake, scan, template, position)?,
        };
        scan.skip_whitespace();
        if intake.mark(target) {
            intake.take(scan, target, position, open + 1)?;
        } else {
            scan.skip_value(open + 1)?;
            intake.refuse_target(target, position, TWICE)?;
        }
        if !goes_on(scan, b'}')? {
            return Ok(());
        }
        position += 1;
    }
}

/// Takes a name that the row before did not have here, and remembers it for the next.
fn name<'t, 'a: 't>(
    intake: &mut Intake<'_, '_>,
    scan: &mut Scan<'a>,
    template: &mut Template<'t>,
    position: usize,
) -> Result<Target, Stop> {
    let start = scan.at();
    let name = scan.string()?;
    scan.colon()?;
    let target = intake.target(&name);
    let expected = target.map(|target| (scan.since(start), target));
    match template.get_mut(position) {
        Some(place) => *place = expected,
        None => template.push(expected),
    }
    match target {
        Some(target) => Ok(target),
        None => {
            intake.refuse_name(&name)?;
            Ok(Target::Nowhere)
        }
    }
}

/// Takes `[{…}, …]`.
fn objects(intake: &mut Intake<'_, '_>, scan: &mut Scan<'_>) -> Result<(), Stop> {
    intake.form = Form::Rows;
    if scan.peek() != Some(b'[') {
        scan.skip_value(1)?;
        return intake.refuse(|| "/rows".to_owned(), || "`rows` is an array of objects".to_owned());
    }
    if !opens(scan, b'[', b']')? {
        return Ok(());
    }
    let mut template = template(intake.schema);
    loop {
        let start = scan.at();
        intake.begin_row()?;
        if scan.peek() == Some(b'{') {
            object(intake, scan, &mut template, 2)?;
            intake.end_row()?;
        } else {
            scan.skip_value(2)?;
            intake.refuse_row("is not an object")?;
            intake.count_row();
        }
        if intake.rows.count == 1 {
            intake.reserve(scan.at() - start, scan.left());
        }
        if !goes_on(scan, b']')? {
            return Ok(());
        }
    }
}

/// Takes `[[…], …]`.
fn arrays(intake: &mut Intake<'_, '_>, scan: &mut Scan<'_>, targets: &[Target]) -> Result<(), Stop> {
    intake.form = Form::Data;
    if scan.peek() != Some(b'[') {
        scan.skip_value(1)?;
        return intake.refuse(|| "/data".to_owned(), || "`data` is an array of arrays".to_owned());
    }
    if !opens(scan, b'[', b']')? {
        return Ok(());
    }
    loop {
        let start = scan.at();
        intake.begin_row()?;
        if scan.peek() == Some(b'[') {
            let held = array(intake, scan, targets)?;
            if held != targets.len() {
                intake.refuse_row(&format!("has {held} values, not {}", targets.len()))?;
            }
        } else {
            scan.skip_value(2)?;
            intake.refuse_row("is not an array")?;
        }
        intake.count_row();
        if intake.rows.count == 1 {
            intake.reserve(scan.at() - start, scan.left());
        }
        if !goes_on(scan, b']')? {
            return Ok(());
        }
    }
}

/// Takes the cells of one row, which is an array; returns how many it held.
fn array(intake: &mut Intake<'_, '_>, scan: &mut Scan<'_>, targets: &[Target]) -> Result<usize, Stop> {
    if !opens(scan, b'[', b']')? {
        return Ok(0);
    }
    let mut position = 0;
    loop {
        match targets.get(position) {
            Some(target) => intake.take(scan, *target, position, 3)?,
            None => scan.skip_value(3)?,
        }
        position += 1;
        if !goes_on(scan, b']')? {
            return Ok(position);
        }
    }
}

/// Takes the array of names in `columns`; an element that is no text is a fault.
fn columns(intake: &mut Intake<'_, '_>, scan: &mut Scan<'_>) -> Result<Vec<Target>, Stop> {
    if scan.peek() != Some(b'[') {
        scan.skip_value(1)?;
        intake.refuse(|| "/columns".to_owned(), || "`columns` is an array of names".to_owned())?;
        return Ok(Vec::new());
    }
    let mut targets = Vec::new();
    if opens(scan, b'[', b']')? {
        loop {
            let position = targets.len();
            if scan.peek() == Some(b'"') {
                let name = scan.string()?;
                let target = intake.target(&name);
                targets.push(intake.column(target, &name, position, |position| format!("column {}", position + 1))?);
            } else {
                scan.skip_value(2)?;
                targets.push(Target::Nowhere);
                intake.refuse(|| format!("/columns/{position}"), || format!("column {}: a name is text", position + 1))?;
            }
            if !goes_on(scan, b']')? {
                break;
            }
        }
    }
    intake.end_header()?;
    Ok(targets)
}

/// Takes a whole JSON body.
fn document<'a>(intake: &mut Intake<'_, '_>, scan: &mut Scan<'a>) -> Result<Vec<Member<'a>>, Stop> {
    scan.skip_whitespace();
    if scan.peek() != Some(b'{') {
        scan.skip_value(0)?;
        scan.end()?;
        intake.refuse(String::new, || "the body is a JSON object with `rows`, or with `columns` and `data`".to_owned())?;
        return Ok(Vec::new());
    }
    let mut members: Vec<Member<'a>> = Vec::new();
    let (mut rows, mut targets, mut arrays_at, mut arrays_done) = (false, None, None, false);
    if opens(scan, b'{', b'}')? {
        loop {
            let name = scan.string()?;
            scan.colon()?;
            let start = scan.at();
            let twice = match name.as_ref() {
                "rows" => std::mem::replace(&mut rows, true),
                "columns" => targets.is_some(),
                "data" => arrays_at.is_some(),
                _ => members.iter().any(|(other, _)| *other == name),
            };
            if twice {
                let shown = if repeatable(&name) { format!(" {name:?}") } else { String::new() };
                return Err(Stop::Syntax(format!("the body has a member{shown} twice")));
            }
            match name.as_ref() {
                // Rows in both forms: only whether they are JSON matters now.
                "rows" if arrays_at.is_some() || targets.is_some() => scan.skip_value(1)?,
                "rows" => objects(intake, scan)?,
                "columns" if rows => {
                    scan.skip_value(1)?;
                    targets = Some(Vec::new());
                }
                "columns" => targets = Some(columns(intake, scan)?),
                "data" => {
                    arrays_at = Some(start);
                    match &targets {
                        Some(targets) if !rows => {
                            arrays(intake, scan, targets)?;
                            arrays_done = true;
                        }
                        // What its cells are is not known before the columns are.
                        _ => scan.skip_value(1)?,
                    }
                }
                _ if members.len() == MOST_MEMBERS => {
                    return Err(Stop::Syntax(format!("the body has more than {MOST_MEMBERS} members beside its rows")));
                }
                _ => {
                    scan.skip_value(1)?;
                    members.push((name, scan.since(start)));
                }
            }
            if !goes_on(scan, b'}')? {
                break;
            }
        }
    }
    scan.end()?;
    match (rows, targets, arrays_at) {
        (true, None, None) => {}
        (true, ..) => intake.refuse(|| "/rows".to_owned(), || "`rows` and `columns` with `data` are two forms; send one".to_owned())?,
        (false, Some(targets), Some(start)) if !arrays_done => {
            scan.return_to(start);
            arrays(intake, scan, &targets)?;
        }
        (false, Some(_), Some(_)) => {}
        (false, Some(_), None) => intake.refuse(|| "/data".to_owned(), || "`data` is required beside `columns`".to_owned())?,
        (false, None, Some(_)) => intake.refuse(|| "/columns".to_owned(), || "`columns` is required beside `data`".to_owned())?,
        (false, None, None) => intake.refuse(|| "/rows".to_owned(), || "`rows` (or `columns` and `data`) is required".to_owned())?,
    }
    Ok(members)
}

/// Takes lines of objects.
fn lines(intake: &mut Intake<'_, '_>, body: &[u8], first_line: u64) -> Result<(), Stop> {
    let mut template = template(intake.schema);
    let mut rest = body;
    let mut line = first_line;
    while !rest.is_empty() {
        let length = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let text = &rest[..length];
        rest = rest.get(length + 1..).unwrap_or_default();
        let mut scan = Scan::new(text);
        scan.skip_whitespace();
        if scan.left() > 0 {
            intake.line = Some(line);
            intake.begin_row()?;
            match one_line(intake, &mut scan, &mut template) {
                Ok(()) => {}
                // Lines stand for themselves: the next one may be good, and its faults are told too.
                Err(Stop::Broken(broken)) => {
                    let (_, column) = broken.line_and_column(text);
                    intake.refuse_row(&format!("is not JSON: column {column}: {}", broken.why.text()))?;
                    intake.count_row();
                }
                Err(stop) => return Err(stop),
            }
            if intake.rows.count == 1 {
                intake.reserve(length + 1, rest.len());
            }
        }
        line += 1;
    }
    Ok(())
}

fn one_line<'t, 'a: 't>(intake: &mut Intake<'_, '_>, scan: &mut Scan<'a>, template: &mut Template<'t>) -> Result<(), Stop> {
    if scan.peek() == Some(b'{') {
        object(intake, scan, template, 0)?;
        scan.end()?;
        return intake.end_row();
    }
    scan.skip_value(0)?;
    scan.end()?;
    intake.refuse_row("is not an object")?;
    intake.count_row();
    Ok(())
}

/// Fields of CSV, one after the other.
struct Records<'a> {
    text: &'a [u8],
    at: usize,
    /// The line of the position, from 1.
    line: u64,
    /// The inside of a field in quotes.
    buffer: Vec<u8>,
}

/// What follows a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Field,
    Record,
}

impl Records<'_> {
    /// Passes blank lines; whether a record follows.
    #[inline]
    fn begins(&mut self) -> bool {
        loop {
            match self.text.get(self.at) {
                Some(b'\n') => self.line += 1,
                Some(b'\r') if matches!(self.text.get(self.at + 1), Some(b'\n') | None) => {}
                Some(_) => return true,
                None => return false,
            }
            self.at += 1;
        }
    }

    /// Passes what ends a field, if it stands here.
    #[inline]
    fn separator(&mut self) -> Option<After> {
        match self.text.get(self.at) {
            Some(b',') => {
                self.at += 1;
                Some(After::Field)
            }
            Some(b'\n') => {
                self.at += 1;
                self.line += 1;
                Some(After::Record)
            }
            Some(b'\r') => match self.text.get(self.at + 1) {
                Some(b'\n') => {
                    self.at += 2;
                    self.line += 1;
                    Some(After::Record)
                }
                None => {
                    self.at += 1;
                    Some(After::Record)
                }
                Some(_) => None,
            },
            Some(_) => None,
            None => Some(After::Record),
        }
    }

    /// Takes a number that stands alone in its field, without looking for the field's end first; `None` leaves the position alone.
    #[inline]
    fn number(&mut self) -> Option<(f64, After)> {
        let start = self.at;
        // A quote, a word and an empty field go the long way; so do `inf` and `nan`, which fast-float knows.
        if !matches!(self.text.get(start), Some(b'-' | b'+' | b'.' | b'0'..=b'9')) {
            return None;
        }
        let rest = &self.text[start..];
        let (value, length) = match plain_decimal(rest) {
            Some(found) => found,
            None => fast_float2::parse_partial::<f64, _>(rest).ok()?,
        };
        self.at += length;
        match self.separator() {
            Some(after) if value.is_finite() => Some((value, after)),
            _ => {
                // The separator moved the line too, if it was one; the long way does it again.
                self.line -= u64::from(self.text[start + length..self.at].contains(&b'\n'));
                self.at = start;
                None
            }
        }
    }

    /// Takes a field, without its quotes, and whether it is one by RFC 4180.
    fn field(&mut self) -> Result<(&[u8], After, bool), Stop> {
        if self.text.get(self.at) != Some(&b'"') {
            let start = self.at;
            loop {
                let rest = &self.text[self.at..];
                self.at += memchr::memchr3(b',', b'\n', b'\r', rest).unwrap_or(rest.len());
                let end = self.at;
                if let Some(after) = self.separator() {
                    return Ok((&self.text[start..end], after, true));
                }
                // A carriage return within a line is text.
                self.at += 1;
            }
        }
        let opened = self.line;
        self.at += 1;
        self.buffer.clear();
        loop {
            let rest = &self.text[self.at..];
            let Some(length) = memchr::memchr(b'"', rest) else {
                return Err(Stop::Syntax(format!("the body is not CSV: a quote that opens on line {opened} is not closed")));
            };
            self.line += memchr::memchr_iter(b'\n', &rest[..length]).count() as u64;
            self.buffer.extend_from_slice(&rest[..length]);
            self.at += length + 1;
            if self.text.get(self.at) != Some(&b'"') {
                break;
            }
            self.buffer.push(b'"');
            self.at += 1;
        }
        let mut good = true;
        loop {
            if let Some(after) = self.separator() {
                return Ok((&self.buffer, after, good));
            }
            good = false;
            self.at += 1;
        }
    }
}

/// Takes a whole CSV body.
fn table(intake: &mut Intake<'_, '_>, records: &mut Records<'_>) -> Result<(), Stop> {
    let targets = table_header(intake, records)?;
    table_rows(intake, records, &targets)
}

/// Takes the header line of CSV.
fn table_header(intake: &mut Intake<'_, '_>, records: &mut Records<'_>) -> Result<Vec<Target>, Stop> {
    if !records.begins() {
        return Err(Stop::Syntax("the body is not CSV: it has no header line".to_owned()));
    }
    let line = records.line;
    let words = |position| format!("line {line}, column {}", position + 1);
    let mut targets = Vec::new();
    loop {
        let (text, after, good) = records.field()?;
        let position = targets.len();
        let refusal = match std::str::from_utf8(text) {
            Ok(name) if good => {
                // Written by hand, a header often has spaces after its commas.
                let target = intake.target(name).or_else(|| intake.target(name.trim()));
                targets.push(intake.column(target, name, position, words)?);
                None
            }
            Ok(_) => Some(AFTER_QUOTE),
            Err(_) => Some(NO_UTF8),
        };
        if let Some(refusal) = refusal {
            targets.push(Target::Nowhere);
            intake.refuse(|| format!("/columns/{position}"), || format!("{}: {refusal}", words(position)))?;
        }
        if after == After::Record {
            break;
        }
    }
    intake.end_header()?;
    Ok(targets)
}

/// Takes the records under a header.
fn table_rows(intake: &mut Intake<'_, '_>, records: &mut Records<'_>, targets: &[Target]) -> Result<(), Stop> {
    while records.begins() {
        let start = records.at;
        intake.line = Some(records.line);
        intake.begin_row()?;
        record(intake, records, targets)?;
        intake.count_row();
        if intake.rows.count == 1 {
            intake.reserve(records.at - start, records.text.len() - records.at);
        }
    }
    Ok(())
}

/// Takes one record.
fn record(intake: &mut Intake<'_, '_>, records: &mut Records<'_>, targets: &[Target]) -> Result<(), Stop> {
    let mut position = 0;
    loop {
        let target = targets.get(position).copied().unwrap_or(Target::Nowhere);
        let after = field(intake, records, target, position)?;
        position += 1;
        if after == After::Record {
            break;
        }
    }
    if position == targets.len() {
        return Ok(());
    }
    intake.refuse_row(&format!("has {position} cells, not {}", targets.len()))
}

/// Takes one field as the cell of `target`.
#[inline]
fn field(intake: &mut Intake<'_, '_>, records: &mut Records<'_>, target: Target, position: usize) -> Result<After, Stop> {
    if let Target::Input(place) = target
        && let InputKind::Number | InputKind::Integer = intake.schema.inputs()[place].kind
        && let Some((value, after)) = records.number()
    {
        intake.rows.values[intake.start + place] = value;
        return Ok(after);
    }
    let (text, after, good) = records.field()?;
    if !good {
        intake.refuse_target(target, position, AFTER_QUOTE)?;
        return Ok(after);
    }
    match target {
        Target::Input(place) => match intake.schema.value_of_text(place, text) {
            Ok(value) => intake.rows.values[intake.start + place] = value,
            Err(refusal) => intake.refuse_target(target, position, refusal)?,
        },
        Target::Id => match std::str::from_utf8(text) {
            Ok("") => {}
            Ok(text) => intake.take_id(text, position)?,
            Err(_) => intake.refuse_target(target, position, NO_UTF8)?,
        },
        Target::Nowhere => {}
    }
    Ok(after)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::input::Input;
    use super::*;

    const LEARN: RowsOptions = RowsOptions { allow_id: true, max_rows: 1_000 };
    const PREDICT: RowsOptions = RowsOptions { allow_id: false, max_rows: 1_000 };

    fn input(name: &str, kind: InputKind, required: bool) -> Input {
        Input { name: name.to_owned(), kind, required }
    }

    fn category(levels: &[&str], unseen: Unseen) -> InputKind {
        InputKind::Category { levels: (0..).zip(levels).map(|(index, level)| ((*level).to_owned(), index)).collect(), unseen }
    }

    /// A number, an integer, a boolean, a category, and a weight that may be missing.
    fn schema() -> InputSchema {
        InputSchema::new(vec![
            input("age", InputKind::Number, true),
            input("n/m", InputKind::Integer, true),
            input("member", InputKind::Boolean, true),
            input("region", category(&["north", "south"], Unseen::Error), true),
            input("weight", InputKind::Number, false),
        ])
    }

    fn numbers(names: &[&str]) -> InputSchema {
        InputSchema::new(names.iter().map(|name| input(name, InputKind::Number, true)).collect())
    }

    fn json(body: &str, schema: &InputSchema, options: &RowsOptions) -> Result<Rows, ParseError> {
        let mut rows = Rows { values: vec![9.0], ids: vec![None], count: 1, lines: vec![1] };
        let result = parse_document(body.as_bytes(), schema, options, &mut rows);
        if result.is_err() {
            assert_eq!(rows, Rows::default(), "a refused request leaves no rows");
        }
        result.map(|_| rows)
    }

    fn ndjson(body: &str, schema: &InputSchema, options: &RowsOptions) -> Result<Rows, ParseError> {
        let mut rows = Rows::default();
        parse_ndjson(body.as_bytes(), 1, schema, options, &mut rows).map(|()| rows)
    }

    fn csv(body: &str, schema: &InputSchema, options: &RowsOptions) -> Result<Rows, ParseError> {
        let mut rows = Rows::default();
        parse_csv(body.as_bytes(), schema, options, &mut rows).map(|()| rows)
    }

    /// `pointer detail` of each fault.
    fn faults(result: Result<Rows, ParseError>) -> Vec<String> {
        let list = match result.unwrap_err() {
            ParseError::Syntax(fault) => vec![fault],
            ParseError::Faults(faults) => faults.into_vec(),
            ParseError::TooLarge(detail) => return vec![format!("too large: {detail}")],
        };
        list.into_iter().map(|fault| format!("{} {}", fault.pointer, fault.detail)).collect()
    }

    fn bits(values: &[f64]) -> Vec<u64> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state ^ (*state >> 31)
    }

    #[test]
    fn every_form_gives_the_same_rows() {
        let expected = [1.5, 3.0, 1.0, 1.0, 2.0, -2e3, 4.5, 0.0, 0.0, 0.25];
        let rows = [
            json(
                r#"{"rows":[{"age":1.5,"n/m":3,"member":true,"region":"south","weight":2},
                   { "region" : "north" , "age" : -2e3, "weight":0.25,"member":0,"n/m":4.5 } ]}"#,
                &schema(),
                &PREDICT,
            ),
            json(
                r#"{"columns":["weight","region","member","n/m","age"],"data":[[2,"south",true,3,1.5], [0.25,"north",false,4.5,-2000]]}"#,
                &schema(),
                &PREDICT,
            ),
            json(
                r#"{"data":[[2,"south",true,3,1.5],[0.25,"north",false,4.5,-2000]],"columns":["weight","region","member","n/m","age"]}"#,
                &schema(),
                &PREDICT,
            ),
            ndjson(
                "\n{\"age\":1.5,\"n/m\":3,\"member\":1,\"region\":\"south\",\"weight\":2}\r\n  \n\
                 {\"age\":-2000,\"n\\/m\":4.5,\"member\":false,\"region\":\"n\\u006frth\",\"weight\":0.25}",
                &schema(),
                &PREDICT,
            ),
            csv("age,\"n/m\", member,region,weight\r\n1.5,3,TRUE,south,2\r\n\r\n-2e3,\"4.5\",0,\"north\", .25 \r\n", &schema(), &PREDICT),
            csv("\u{feff}region,member,age,n/m,weight\nsouth,true,1.5,3,2\nnorth,False,-2000,4.5,0.25", &schema(), &PREDICT),
        ];
        for (form, rows) in rows.into_iter().enumerate() {
            let rows = rows.unwrap();
            assert_eq!(rows.values, expected, "form {form}");
            assert_eq!((rows.count, rows.ids.len()), (2, 0), "form {form}");
        }
    }

    #[test]
    fn no_rows_are_no_fault() {
        for body in [r#"{"rows":[]}"#, r#"{"rows": [ ] , "x":1}"#, r#"{"columns":["a"],"data":[]}"#, r#"{"data":[],"columns":["a"]}"#] {
            assert_eq!(json(body, &numbers(&["a"]), &PREDICT).unwrap(), Rows::default(), "{body}");
        }
        assert_eq!(ndjson("", &numbers(&["a"]), &PREDICT).unwrap(), Rows::default());
        assert_eq!(csv("a\n", &numbers(&["a"]), &PREDICT).unwrap(), Rows::default());
        assert_eq!(json(r#"{"rows":[{},{}]}"#, &numbers(&[]), &PREDICT).unwrap().count, 2);
    }

    #[test]
    fn what_may_be_missing_is_nan() {
        let rows = json(
            r#"{"rows":[{"age":1,"n/m":1,"member":true,"region":"north"},{"weight":null,"age":1,"n/m":1,"member":true,"region":"north"}]}"#,
            &schema(),
            &PREDICT,
        );
        let rows = rows.unwrap();
        assert!(rows.values[4].is_nan() && rows.values[9].is_nan());
        let rows = csv("age,n/m,member,region\n1,1,true,north", &schema(), &PREDICT).unwrap();
        assert!(rows.values[4].is_nan());
        for cell in ["", "NA", "NaN", "null", "\"\""] {
            let rows = csv(&format!("age,n/m,member,region,weight\n1,1,true,north,{cell}"), &schema(), &PREDICT).unwrap();
            assert!(rows.values[4].is_nan(), "{cell}");
        }
    }

    #[test]
    fn faults_are_named_by_row_and_column() {
        let good = r#"{"age":1,"n/m":1,"member":true,"region":"north"}"#;
        for (row, expected) in [
            (
                r#"{"age":1,"n/m":1,"member":true,"region":"west"}"#,
                "/rows/2/region row 3, column \"region\": this category was not seen in training",
            ),
            (r#"{"age":1,"n/m":1,"member":true,"region":7}"#, "/rows/2/region row 3, column \"region\": is not text"),
            (r#"{"n/m":1,"member":true,"region":"north"}"#, "/rows/2/age row 3, column \"age\": is missing"),
            (r#"{"age":null,"n/m":1,"member":true,"region":"north"}"#, "/rows/2/age row 3, column \"age\": is missing"),
            (r#"{"age":"1","n/m":1,"member":true,"region":"north"}"#, "/rows/2/age row 3, column \"age\": is not a number"),
            (r#"{"age":true,"n/m":1,"member":true,"region":"north"}"#, "/rows/2/age row 3, column \"age\": is not a number"),
            (r#"{"age":1,"n/m":"x","member":true,"region":"north"}"#, "/rows/2/n~1m row 3, column \"n/m\": is not a number"),
            (r#"{"age":-1e400,"n/m":1,"member":true,"region":"north"}"#, "/rows/2/age row 3, column \"age\": is not a finite number"),
            (r#"{"age":1,"n/m":1,"member":2,"region":"north"}"#, "/rows/2/member row 3, column \"member\": is not true or false"),
            (r#"{"age":1,"n/m":1,"member":"true","region":"north"}"#, "/rows/2/member row 3, column \"member\": is not true or false"),
            (
                r#"{"age":[1],"n/m":1,"member":true,"region":"north"}"#,
                "/rows/2/age row 3, column \"age\": is an array or an object, not one value",
            ),
            (r#"{"age":1,"n/m":1,"member":true,"region":"north","agee":2}"#, "/rows/2/agee row 3: there is no feature \"agee\""),
            (r#"{"age":1,"n/m":1,"member":true,"region":"north","a~/b":{}}"#, "/rows/2/a~0~1b row 3: there is no feature \"a~/b\""),
            (r#"{"age":1,"n/m":1,"member":true,"region":"north","_id":"x"}"#, "/rows/2/_id row 3: there is no feature \"_id\""),
            (r#"{"age":1,"n/m":1,"age":3,"member":true,"region":"north"}"#, "/rows/2/age row 3, column \"age\": stands twice in the row"),
            (
                r#"{"age":1,"n/m":1,"\u0061ge":3,"member":true,"region":"north"}"#,
                "/rows/2/age row 3, column \"age\": stands twice in the row",
            ),
            ("[1,1,true]", "/rows/2 row 3: is not an object"),
            ("7", "/rows/2 row 3: is not an object"),
        ] {
            let found = faults(json(&format!(r#"{{"rows":[{good},{good},{row},{good}]}}"#), &schema(), &PREDICT));
            assert_eq!(found, [expected], "{row}");
            if row.starts_with('{') {
                let found = faults(ndjson(&format!("{good}\n{good}\n\n{row}\n{good}\n"), &schema(), &PREDICT));
                assert_eq!(found, [expected.replacen("row 3", "row 3 (line 4)", 1)], "{row}");
            }
        }
        let long = "é".repeat(129);
        let found = faults(json(&format!(r#"{{"rows":[{{"{long}":1}}]}}"#), &numbers(&[]), &PREDICT));
        assert_eq!(found, ["/rows/0 row 1: holds a name that is too long for any feature"]);
        let found = faults(json(&format!(r#"{{"rows":[{{"{}":1}}]}}"#, "é".repeat(128)), &numbers(&[]), &PREDICT));
        assert!(found[0].contains("éé"));
    }

    #[test]
    fn faults_of_columns_and_cells_are_named_by_position() {
        for (body, expected) in [
            (r#"{"columns":["a","b"],"data":[[1,2],[1,"x"]]}"#, &["/data/1/1 row 2, column \"b\": is not a number"][..]),
            (r#"{"columns":["b","a"],"data":[[null,2]]}"#, &["/data/0/0 row 1, column \"b\": is missing"]),
            (
                r#"{"columns":["a","b"],"data":[[1],[1,2,3],[],7]}"#,
                &[
                    "/data/0 row 1: has 1 values, not 2",
                    "/data/1 row 2: has 3 values, not 2",
                    "/data/2 row 3: has 0 values, not 2",
                    "/data/3 row 4: is not an array",
                ],
            ),
            (r#"{"columns":["a","b","c"],"data":[[1,2,3]]}"#, &["/columns/2 column 3: there is no feature \"c\""]),
            (r#"{"columns":["a","b","a"],"data":[[1,2,3]]}"#, &["/columns/2 column 3: stands twice"]),
            (r#"{"columns":["a"],"data":[[1]]}"#, &["/columns column \"b\": is missing"]),
            (r#"{"columns":["a","b",7],"data":[]}"#, &["/columns/2 column 3: a name is text"]),
            (r#"{"columns":"a","data":[]}"#, &["/columns `columns` is an array of names"]),
            (r#"{"columns":["a","b"],"data":{}}"#, &["/data `data` is an array of arrays"]),
            (r#"{"columns":["a","b"]}"#, &["/data `data` is required beside `columns`"]),
            (r#"{"data":[[1,2]]}"#, &["/columns `columns` is required beside `data`"]),
            (r#"{"rows":{}}"#, &["/rows `rows` is an array of objects"]),
            (r#"{"interval":{}}"#, &["/rows `rows` (or `columns` and `data`) is required"]),
            (r#"{"rows":[],"columns":["a"],"data":[[1]]}"#, &["/rows `rows` and `columns` with `data` are two forms; send one"]),
            (r#"{"data":[[1]],"rows":[{"zzz":1}]}"#, &["/rows `rows` and `columns` with `data` are two forms; send one"]),
            ("[]", &[" the body is a JSON object with `rows`, or with `columns` and `data`"]),
            ("7", &[" the body is a JSON object with `rows`, or with `columns` and `data`"]),
        ] {
            assert_eq!(faults(json(body, &numbers(&["a", "b"]), &PREDICT)), expected, "{body}");
        }
    }

    #[test]
    fn faults_are_collected_up_to_twenty() {
        let some = faults(json(r#"{"rows":[{"a":"x","c":1},{},{"a":1}]}"#, &numbers(&["a"]), &PREDICT));
        assert_eq!(some.len(), 3);
        let body = format!(r#"{{"rows":[{}]}}"#, ["{\"a\":\"x\"}"; 100].join(","));
        assert_eq!(faults(json(&body, &numbers(&["a"]), &PREDICT)).len(), 20);
        let body = format!(r#"{{"rows":[{{{}}}]}}"#, (0..100).map(|index| format!("\"b{index}\":1")).collect::<Vec<_>>().join(","));
        assert_eq!(faults(json(&body, &numbers(&["a"]), &PREDICT)).len(), 20);
    }

    #[test]
    fn what_is_not_json_is_told_by_line_and_column() {
        for (body, expected) in [
            ("", " the body is not JSON: line 1, column 1: it ends too early"),
            ("{\"rows\":[{\"a\":NaN}]}", " the body is not JSON: line 1, column 15: NaN and infinity are not JSON"),
            ("{\"rows\":[{\"a\":-Infinity}]}", " the body is not JSON: line 1, column 15: NaN and infinity are not JSON"),
            ("{\"rows\":[\n {\"a\":01}]}", " the body is not JSON: line 2, column 7: a number has no leading zeros"),
            ("{\"rows\":[{\"a\":1}]} x", " the body is not JSON: line 1, column 20: text follows the end"),
            ("{\"rows\":[{\"a\":1}],}", " the body is not JSON: line 1, column 19: something else belongs here"),
            ("{\"rows\":[{\"a\":1e}]}", " the body is not JSON: line 1, column 16: something else belongs here"),
            ("{\"x\":1,\"x\":2,\"rows\":[]}", " the body has a member \"x\" twice"),
            ("{\"rows\":[],\"rows\":[]}", " the body has a member \"rows\" twice"),
            ("{\"columns\":[\"a\"],\"columns\":[\"a\"],\"data\":[]}", " the body has a member \"columns\" twice"),
        ] {
            assert_eq!(faults(json(body, &numbers(&["a"]), &PREDICT)), [expected], "{body}");
        }
        for levels in [129, 10_001, 1_000_000] {
            for body in [
                format!("{}{}", "[".repeat(levels), "]".repeat(levels)),
                format!(r#"{{"rows":[{{"a":{}{}}}]}}"#, "[".repeat(levels), "]".repeat(levels)),
                format!(r#"{{"x":{}1{},"rows":[]}}"#, "{\"a\":".repeat(levels), "}".repeat(levels)),
                format!(r#"{{"rows":{}"#, "[".repeat(levels)),
                "{\"rows\":".repeat(levels),
            ] {
                let found = faults(json(&body, &numbers(&["a"]), &PREDICT));
                assert!(found[0].starts_with(" the body is not JSON") || found[0].starts_with("/rows"), "{}", found[0]);
            }
        }
        let many: Vec<String> = (0..100).map(|index| format!("\"m{index}\":1")).collect();
        let found = faults(json(&format!("{{{}}}", many.join(",")), &numbers(&["a"]), &PREDICT));
        assert_eq!(found, [" the body has more than 64 members beside its rows"]);
    }

    #[test]
    fn lines_that_are_not_json_are_faults_among_others() {
        let body = "{\"a\":1}\n{\"a\":\n{\"a\":\"x\"}\n{\"a\":1} 2\nnull\n{\"a\":NaN}\n{\"a\":2}\n";
        assert_eq!(
            faults(ndjson(body, &numbers(&["a"]), &PREDICT)),
            [
                "/rows/1 row 2 (line 2): is not JSON: column 6: it ends too early",
                "/rows/2/a row 3 (line 3), column \"a\": is not a number",
                "/rows/3 row 4 (line 4): is not JSON: column 9: text follows the end",
                "/rows/4 row 5 (line 5): is not an object",
                "/rows/5 row 6 (line 6): is not JSON: column 6: NaN and infinity are not JSON",
            ]
        );
        let mut rows = Rows::default();
        let error = parse_ndjson(b"\n{}", 41, &numbers(&["a"]), &PREDICT, &mut rows).unwrap_err();
        assert_eq!(error.to_string(), "row 1 (line 42), column \"a\": is missing");
    }

    #[test]
    fn batches_of_a_stream_name_lines_alone() {
        let (schema, mut rows) = (numbers(&["a", "b"]), Rows::default());
        parse_ndjson_batch(b"{\"a\":1,\"b\":2}\n \n{\"b\":4,\"a\":3}\n", 7, &schema, &LEARN, &mut rows).unwrap();
        assert_eq!((rows.values.as_slice(), rows.lines.as_slice()), (&[1.0, 2.0, 3.0, 4.0][..], &[7, 9][..]));
        let error = parse_ndjson_batch(b"{\"a\":1,\"b\":2}\n\n{\"a\":\"x\",\"c\":1}\n[]\n", 7, &schema, &LEARN, &mut rows);
        assert_eq!(
            faults(error.map(|()| Rows::default())),
            [
                "/lines/9/a line 9, column \"a\": is not a number",
                "/lines/9/c line 9: there is no feature \"c\"",
                "/lines/9/b line 9, column \"b\": is missing",
                "/lines/10 line 10: is not an object",
            ]
        );
        let header: (&[u8], u64) = (b"b,a,_id\r\n", 1);
        parse_csv_batch(header, (b"2,1,\"x\ny\"\n\n4,3,\n", 2), &schema, &LEARN, &mut rows).unwrap();
        assert_eq!((rows.values.as_slice(), rows.lines.as_slice()), (&[1.0, 2.0, 3.0, 4.0][..], &[2, 5][..]));
        assert_eq!(rows.ids, [Some("x\ny".to_owned()), None]);
        let error = parse_csv_batch(header, (b"2,1,\n4,z,\n", 12), &schema, &LEARN, &mut rows);
        assert_eq!(faults(error.map(|()| Rows::default())), ["/lines/13/a line 13, column \"a\": is not a number"]);
        let error = parse_csv_batch((b"a,c\n", 3), (b"", 4), &schema, &LEARN, &mut rows);
        assert_eq!(
            faults(error.map(|()| Rows::default())),
            ["/columns/1 line 3, column 2: there is no feature \"c\"", "/columns column \"b\": is missing"]
        );
    }

    #[test]
    fn csv_faults_name_line_and_column() {
        for (body, expected) in [
            ("a,b\n1,2\n\n1,x\n", &["/rows/1/b row 2 (line 4), column \"b\": is not a number"][..]),
            (
                "a,b\n\"1\",\"2\n3\"\n1,\n",
                &["/rows/0/b row 1 (line 2), column \"b\": is not a number", "/rows/1/b row 2 (line 4), column \"b\": is missing"],
            ),
            (
                "a,b\n1,inf\n1,1e999\n1,-Infinity",
                &[
                    "/rows/0/b row 1 (line 2), column \"b\": is not a finite number",
                    "/rows/1/b row 2 (line 3), column \"b\": is not a finite number",
                    "/rows/2/b row 3 (line 4), column \"b\": is not a finite number",
                ],
            ),
            ("a,b\n1\n1,2,3\n1,2", &["/rows/0 row 1 (line 2): has 1 cells, not 2", "/rows/1 row 2 (line 3): has 3 cells, not 2"]),
            ("a,b\n1,\"2\"3\n", &["/rows/0/b row 1 (line 2), column \"b\": has text after its closing quote"]),
            ("a,c\n1,2\n", &["/columns/1 line 1, column 2: there is no feature \"c\"", "/columns column \"b\": is missing"]),
            ("\na,b,a\n1,2,3\n", &["/columns/2 line 2, column 3: stands twice"]),
            ("a,b\n1,\"2\n", &[" the body is not CSV: a quote that opens on line 2 is not closed"]),
            ("", &[" the body is not CSV: it has no header line"]),
            ("\r\n\n", &[" the body is not CSV: it has no header line"]),
        ] {
            assert_eq!(faults(csv(body, &numbers(&["a", "b"]), &PREDICT)), expected, "{body}");
        }
        let mut rows = Rows::default();
        let error = parse_csv(b"age,n/m,member,region\n1,1,1,\xff\n", &schema(), &PREDICT, &mut rows).unwrap_err();
        assert_eq!(error.to_string(), "row 1 (line 2), column \"region\": is not UTF-8");
        assert!(matches!(parse_csv(b"\xff\n", &schema(), &PREDICT, &mut rows), Err(ParseError::Faults(_))));
        assert_eq!(csv("a,b\r\n1,2\r", &numbers(&["a", "b"]), &PREDICT).unwrap().values, [1.0, 2.0]);
    }

    #[test]
    fn a_request_holds_so_many_cells_however_few_bytes_a_row_has() {
        assert_eq!(PREDICT.most_rows(10), 1_000);
        assert_eq!(most_rows(10_000_000, 1_000), MOST_CELLS / 1_000);
        assert_eq!((most_rows(10, 0), most_rows(10, MOST_CELLS + 1)), (10, 1));
    }

    #[test]
    fn rows_past_the_limit_are_too_large() {
        let few = RowsOptions { allow_id: false, max_rows: 2 };
        let schema = numbers(&["a"]);
        let expected = ["too large: a request holds at most 2 rows"];
        assert_eq!(json(r#"{"rows":[{"a":1},{"a":1}]}"#, &schema, &few).unwrap().count, 2);
        assert_eq!(faults(json(r#"{"rows":[{"a":1},{"a":1},{"a":1}]}"#, &schema, &few)), expected);
        assert_eq!(faults(json(r#"{"columns":["a"],"data":[[1],[1],[1]]}"#, &schema, &few)), expected);
        assert_eq!(faults(ndjson("{\"a\":1}\n{\"a\":1}\n{\"a\":1}", &schema, &few)), expected);
        assert_eq!(faults(csv("a\n1\n1\n1", &schema, &few)), expected);
    }

    #[test]
    fn levels_are_found_by_text_and_canonical_value() {
        let of = |levels: &[&str], unseen| InputSchema::new(vec![input("c", category(levels, unseen), true)]);
        let integers = of(&["-1", "0", "7"], Unseen::Baseline);
        let booleans = of(&["false", "true"], Unseen::Error);
        let texts = of(&["a", "7", ""], Unseen::Baseline);
        let json_of = |cell: &str, schema: &InputSchema| {
            json(&format!(r#"{{"rows":[{{"c":{cell}}}]}}"#), schema, &PREDICT).ok().map(|rows| rows.values[0])
        };
        for (cell, schema, expected) in [
            ("7", &integers, Some(2.0)),
            ("\"7\"", &integers, Some(2.0)),
            ("7.0", &integers, Some(2.0)),
            ("-0", &integers, Some(1.0)),
            ("-1", &integers, Some(0.0)),
            ("8", &integers, Some(-1.0)),
            ("7.5", &integers, Some(-1.0)),
            ("1e400", &integers, Some(-1.0)),
            ("true", &integers, None),
            ("null", &integers, None),
            ("true", &booleans, Some(1.0)),
            ("\"false\"", &booleans, Some(0.0)),
            ("\"maybe\"", &booleans, None),
            ("1", &booleans, None),
            ("7", &texts, Some(1.0)),
            ("8", &texts, None),
            ("\"\"", &texts, Some(2.0)),
            ("\"zzz\"", &texts, Some(-1.0)),
        ] {
            assert_eq!(json_of(cell, schema), expected, "{cell}");
        }
        let csv_of = |cell: &str, schema: &InputSchema| csv(&format!("c\n{cell}\n"), schema, &PREDICT).ok().map(|rows| rows.values[0]);
        for (cell, schema, expected) in [
            ("7", &integers, Some(2.0)),
            ("+7", &integers, Some(2.0)),
            ("007", &integers, Some(2.0)),
            ("8", &integers, Some(-1.0)),
            ("NA", &integers, None),
            ("TRUE", &booleans, Some(1.0)),
            ("yes", &booleans, None),
            ("07", &texts, Some(-1.0)),
            ("\"\"", &texts, Some(2.0)),
        ] {
            assert_eq!(csv_of(cell, schema), expected, "{cell}");
        }
    }

    #[test]
    fn ids_go_with_their_rows() {
        let schema = numbers(&["a"]);
        let id = |text: &str| Some(text.to_owned());
        let rows = json(r#"{"rows":[{"a":1},{"_id":"x","a":2},{"a":3,"_id":17},{"a":4,"_id":null}]}"#, &schema, &LEARN).unwrap();
        assert_eq!(rows.ids, [None, id("x"), id("17"), None]);
        assert_eq!(rows.values, [1.0, 2.0, 3.0, 4.0]);
        let rows = json(r#"{"columns":["_id","a"],"data":[["é",1],[null,2]]}"#, &schema, &LEARN).unwrap();
        assert_eq!(rows.ids, [id("é"), None]);
        let rows = csv("a,_id\n1,\n2,\"q\"\"\"\n3,", &schema, &LEARN).unwrap();
        assert_eq!(rows.ids, [None, id("q\""), None]);
        let rows = ndjson("{\"a\":1}\n{\"a\":2,\"_id\":\"z\"}\n", &schema, &LEARN).unwrap();
        assert_eq!(rows.ids, [None, id("z")]);
        let long = "\"".to_owned() + &"é".repeat(129) + "\"";
        for bad in ["\"\"", "true", "{}", long.as_str()] {
            let found = faults(json(&format!(r#"{{"rows":[{{"a":1,"_id":{bad}}}]}}"#), &schema, &LEARN));
            assert_eq!(found, ["/rows/0/_id row 1, column \"_id\": is not text of 1 to 128 characters"]);
        }
        let found = faults(json(r#"{"rows":[{"_id":"x","a":1,"_id":"y"}]}"#, &schema, &LEARN));
        assert_eq!(found, ["/rows/0/_id row 1, column \"_id\": stands twice in the row"]);
        let found = faults(csv("a,_id\n1,x\n", &schema, &PREDICT));
        assert_eq!(found, ["/columns/1 line 1, column 2: there is no feature \"_id\""]);
        // A feature of that name comes first.
        assert_eq!(json(r#"{"rows":[{"_id":5}]}"#, &numbers(&["_id"]), &LEARN).unwrap().values, [5.0]);
    }

    #[test]
    fn other_members_come_back_in_order_as_they_stood() {
        let mut rows = Rows::default();
        let body = br#" {"interval": {"kind":"prediction"} ,"rows":[{"a":1}],"expl\u0061in":true,"z":[ 1, "x" ]} "#;
        let members = parse_document(body, &numbers(&["a"]), &PREDICT, &mut rows).unwrap();
        let members: Vec<(&str, &[u8])> = members.iter().map(|(name, text)| (name.as_ref(), *text)).collect();
        assert_eq!(members, [("interval", &br#"{"kind":"prediction"}"#[..]), ("explain", b"true"), ("z", br#"[ 1, "x" ]"#)]);
        assert_eq!(rows.values, [1.0]);
    }

    #[test]
    fn names_are_compared_without_their_escapes() {
        let schema = numbers(&["naïve \"q\"", "😀"]);
        let rows = json(
            r#"{"rows":[{"naïve \"q\"":1,"😀":2},{"na\u00efve \u0022q\u0022":3,"\ud83d\ude00":4},{"nai\u0308ve \"q\"":5,"😀":6}]}"#,
            &schema,
            &PREDICT,
        );
        assert_eq!(rows.unwrap().values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let rows = csv("😀,\"naïve \"\"q\"\"\"\n2,1\n", &schema, &PREDICT).unwrap();
        assert_eq!(rows.values, [1.0, 2.0]);
    }

    #[test]
    fn rows_may_change_the_order_of_their_names() {
        let schema = numbers(&["a", "ab", "abc"]);
        let body = r#"{"rows":[{"a":1,"ab":2,"abc":3},{"abc":3,"ab":2,"a":1},{"ab":2,"a":1,"abc":3},{"a" : 1,"ab":2, "abc":3}]}"#;
        assert_eq!(json(body, &schema, &PREDICT).unwrap().values, [1.0, 2.0, 3.0].repeat(4));
    }

    #[test]
    fn every_prefix_is_an_error() {
        let schema = schema();
        for body in [
            r#"{"x":"\ud83d\ude00","rows":[{"age":-1.5e3,"n/m":12,"member":true,"region":"north","weight":null}],"y":[{}]}"#,
            r#"{"data":[[1.25,2,false,"south"]],"columns":["age","n\/m","member","region"]}"#,
        ] {
            assert!(json(body, &schema, &PREDICT).is_ok());
            for length in 0..body.len() {
                assert!(matches!(json(&body[..length], &schema, &PREDICT), Err(ParseError::Syntax(_))), "{length}");
            }
        }
    }

    #[test]
    fn changed_bytes_never_panic_and_never_pass_as_json_when_they_are_not() {
        let schema = schema();
        let body = br#"{"rows":[{"age":-1.5e3,"n/m":12,"member":true,"region":"n\u006frth"},
            {"age":0,"n/m":1,"member":0,"region":"south","weight":2}],"y":[1]}"#;
        let table = b"age,n/m,member,region,weight\r\n1,\"2\",true,north,\n3,4,0,\"so\"\"uth\",1.5\n";
        let mut state = 11;
        let mut rows = Rows::default();
        for _ in 0..20_000 {
            let mut changed = body.to_vec();
            let mut changed_table = table.to_vec();
            for _ in 0..=random(&mut state) % 3 {
                let pool = b"{}[],:\"\\u0123e.-+ tfn\r\n\xff";
                let byte = pool[random(&mut state) as usize % pool.len()];
                let place = random(&mut state) as usize;
                let length = changed.len();
                changed[place % length] = byte;
                let length = changed_table.len();
                changed_table[place % length] = byte;
            }
            let valid = serde_json::from_slice::<serde_json::Value>(&changed).is_ok();
            let found = parse_document(&changed, &schema, &PREDICT, &mut rows);
            assert!(valid || found.is_err(), "{}", String::from_utf8_lossy(&changed));
            assert_eq!(found.is_ok(), rows.count > 0 || !rows.values.is_empty(), "{}", String::from_utf8_lossy(&changed));
            let _ = parse_ndjson(&changed, 1, &schema, &LEARN, &mut rows);
            let _ = parse_csv(&changed_table, &schema, &LEARN, &mut rows);
            assert_eq!(rows.values.len(), rows.count * schema.len());
            assert!(rows.values.iter().all(|value| !value.is_infinite()));
        }
    }

    #[test]
    fn random_numbers_come_back_bitwise_in_every_form() {
        let names: Vec<String> = (0..7).map(|index| format!("x{index}")).collect();
        let schema = numbers(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let mut state = 5;
        let values: Vec<f64> = std::iter::repeat_with(|| match random(&mut state) % 3 {
            0 => f64::from_bits(random(&mut state)),
            1 => (random(&mut state) >> 11) as f64 / 9_007_199_254_740_992.0,
            _ => (random(&mut state) as i64 >> (random(&mut state) % 63)) as f64,
        })
        .filter(|value| value.is_finite())
        .take(7 * 500)
        .collect();
        let lists: Vec<Vec<serde_json::Value>> = values.chunks(7).map(|row| row.iter().map(|value| (*value).into()).collect()).collect();
        let document = serde_json::json!({"columns": names, "data": lists}).to_string();
        assert_eq!(bits(&json(&document, &schema, &PREDICT).unwrap().values), bits(&values));
        let objects: Vec<serde_json::Value> =
            lists.iter().map(|row| serde_json::Value::Object(names.iter().cloned().zip(row.iter().cloned()).collect())).collect();
        let document = serde_json::to_string_pretty(&serde_json::json!({"rows": objects})).unwrap();
        assert_eq!(bits(&json(&document, &schema, &PREDICT).unwrap().values), bits(&values));
        let lines: String = objects.iter().map(|row| format!("{row}\n")).collect();
        assert_eq!(bits(&ndjson(&lines, &schema, &PREDICT).unwrap().values), bits(&values));
        let mut table = names.join(",") + "\n";
        for row in values.chunks(7) {
            table += &(row.iter().map(|value| format!("{value:?}")).collect::<Vec<_>>().join(",") + "\n");
        }
        assert_eq!(bits(&csv(&table, &schema, &PREDICT).unwrap().values), bits(&values));
    }
}
