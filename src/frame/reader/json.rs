//! NDJSON and JSON documents: rows are cut out of the text as it comes, and handed on whole. Not here: the grammar inside a row.
//!
//! Columns of rows that are objects are the keys of the first chunk in order of first appearance; a key that a row lacks is a missing cell,
//! and a key that comes up later is a fault.

use std::collections::HashMap;

use memchr::{memchr, memrchr};

use super::table::{Complaint, Table, shown};
use super::token::{Item, Mistake, Nesting, elements, members, whole_string};
use super::{Emit, HEAD_BYTES, LONGEST_ROW, ReadError, ReadOptions, WIDEST, empty};
use crate::frame::infer::Evidence;
use crate::frame::schema;
use crate::frame::{Summary, escaped};

/// Bytes of a piece that are looked at together: bounds what is copied of it.
const SLICE: usize = 256 << 10;
const NESTED: Complaint = "a list or an object where a single value belongs";

/// What the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Objects,
    Lists,
}

/// Complete rows to a table.
#[derive(Debug)]
struct Rows {
    options: ReadOptions,
    shape: Shape,
    /// The columns by name as the text has them.
    keys: Vec<String>,
    places: HashMap<String, usize>,
    /// For each column, the last row that had a cell of it.
    met: Vec<u64>,
    count: u64,
    /// Rows that are held back, with the end of each and the line on which it stands.
    head: Vec<u8>,
    ends: Vec<(usize, Option<u64>)>,
    table: Option<Table>,
}

impl Rows {
    fn new(options: ReadOptions) -> Self {
        Self {
            options,
            shape: Shape::Objects,
            keys: Vec::new(),
            places: HashMap::new(),
            met: Vec::new(),
            count: 0,
            head: Vec::new(),
            ends: Vec::new(),
            table: None,
        }
    }

    fn take(&mut self, row: &[u8], line: Option<u64>, emit: Emit<'_>) -> Result<(), ReadError> {
        if row.len() > LONGEST_ROW {
            return Err(ReadError::LongRow);
        }
        if self.table.is_some() {
            return self.parse(row, line, emit);
        }
        self.head.extend_from_slice(row);
        self.ends.push((self.head.len(), line));
        if self.ends.len() >= self.options.head_rows || self.head.len() >= HEAD_BYTES { self.start(emit) } else { Ok(()) }
    }

    /// Infers the columns and their types from the head, then parses it.
    fn start(&mut self, emit: Emit<'_>) -> Result<(), ReadError> {
        let head = std::mem::take(&mut self.head);
        let ends = std::mem::take(&mut self.ends);
        let rows = || {
            let begins = std::iter::once(0).chain(ends.iter().map(|(end, _)| *end));
            begins.zip(&ends).map(|(begin, (end, line))| (&head[begin..*end], *line))
        };
        if let (Shape::Objects, Some(expected)) = (self.shape, &self.options.expect) {
            self.keys = expected.columns.iter().map(|column| column.name.clone()).collect();
        }
        let open = self.shape == Shape::Objects && self.options.expect.is_none();
        let mut evidence: Vec<Evidence> = self.keys.iter().map(|_| Evidence::default()).collect();
        let mut places: HashMap<String, usize> = self.keys.iter().cloned().zip(0..).collect();
        for (index, (row, line)) in rows().enumerate() {
            let mut place = 0;
            let outcome = match self.shape {
                Shape::Objects => members(row, |key, item| {
                    // Keys mostly come in the same order in every row.
                    if self.keys.get(place).is_none_or(|known| *known != key) {
                        place = match places.get(key.as_ref()) {
                            Some(known) => *known,
                            None if open && self.keys.len() <= WIDEST => {
                                let fresh = self.keys.len();
                                places.insert(key.clone().into_owned(), fresh);
                                self.keys.push(key.into_owned());
                                evidence.push(Evidence::default());
                                fresh
                            }
                            None => return,
                        };
                    }
                    note(&mut evidence[place], &item);
                    place += 1;
                }),
                Shape::Lists => elements(row, |item| {
                    if let Some(evidence) = evidence.get_mut(place) {
                        note(evidence, &item);
                    }
                    place += 1;
                }),
            };
            outcome.map_err(|mistake| bad_json(index as u64, line, mistake))?;
        }
        let table = Table::new(&self.keys, |place| evidence[place].verdict(), &self.options)?;
        self.met = vec![u64::MAX; self.keys.len()];
        self.places = places;
        self.table = Some(table);
        rows().try_for_each(|(row, line)| self.parse(row, line, emit))
    }

    fn parse(&mut self, row: &[u8], line: Option<u64>, emit: Emit<'_>) -> Result<(), ReadError> {
        let Some(table) = &mut self.table else { return Ok(()) };
        let count = self.count;
        table.line = line;
        let (mut place, mut found) = (0, 0);
        let outcome = match self.shape {
            Shape::Objects => members(row, |key, item| {
                if self.keys.get(place).is_none_or(|known| *known != key) {
                    // A key in another Unicode form is the same key.
                    let known = self.places.get(key.as_ref()).or_else(|| self.places.get(&schema::normalised(&key)));
                    let Some(known) = known else {
                        table.bad_row(Some(&key), || format!("there is no column {}", shown(&key)));
                        return;
                    };
                    place = *known;
                }
                if self.met[place] == count {
                    table.bad_row(Some(&key), || format!("the key {} occurs twice", shown(&key)));
                } else {
                    self.met[place] = count;
                    found += 1;
                    cell(table, place, &item);
                }
                place += 1;
            }),
            Shape::Lists => elements(row, |item| {
                if place < table.columns.len() {
                    self.met[place] = count;
                    found += 1;
                    cell(table, place, &item);
                }
                place += 1;
            }),
        };
        outcome.map_err(|mistake| bad_json(count, line, mistake))?;
        let width = table.columns.len();
        if self.shape == Shape::Lists && place != width {
            table.bad_row(None, || format!("{place} cells where `columns` has {width}"));
        }
        if found < width {
            for (column, met) in self.met.iter().enumerate() {
                if *met != count {
                    table.missing_cell(column);
                }
            }
        }
        self.count += 1;
        table.end_row(emit)?;
        table.stop_if_full()
    }

    fn finish(mut self, emit: Emit<'_>) -> Result<Summary, ReadError> {
        if self.table.is_none() {
            self.start(emit)?;
        }
        match self.table {
            Some(table) if !self.keys.is_empty() => table.finish(emit),
            _ => Err(ReadError::syntax("", "there are no columns")),
        }
    }
}

fn note(evidence: &mut Evidence, item: &Item<'_>) {
    if let Item::Scalar(token) = item {
        evidence.note(token.kind(), token.text());
    }
}

fn cell(table: &mut Table, column: usize, item: &Item<'_>) {
    match item {
        Item::Scalar(token) => table.token_cell(column, token),
        Item::Nested => table.bad_cell(column, NESTED),
    }
}

fn bad_json(row: u64, line: Option<u64>, mistake: Mistake) -> ReadError {
    let line = line.map(|line| format!(" (line {line})")).unwrap_or_default();
    ReadError::syntax(format!("/rows/{row}"), format!("row {}{line}: {mistake}", row + 1))
}

/// Reads NDJSON: an object a line, blank lines skipped.
#[derive(Debug)]
pub(super) struct LinesReader {
    rows: Rows,
    tail: Vec<u8>,
    line: u64,
}

impl LinesReader {
    pub(super) fn new(options: ReadOptions) -> Self {
        Self { rows: Rows::new(options), tail: Vec::new(), line: 1 }
    }

    pub(super) fn push(&mut self, piece: &[u8], emit: Emit<'_>) -> Result<(), ReadError> {
        let mut piece = piece;
        if !self.tail.is_empty() {
            let Some(end) = memchr(b'\n', piece) else { return self.keep(piece) };
            let mut tail = std::mem::take(&mut self.tail);
            tail.extend_from_slice(&piece[..=end]);
            self.lines(&tail, emit)?;
            piece = &piece[end + 1..];
        }
        let end = memrchr(b'\n', piece).map_or(0, |end| end + 1);
        self.lines(&piece[..end], emit)?;
        self.keep(&piece[end..])
    }

    pub(super) fn finish(mut self, emit: Emit<'_>) -> Result<Summary, ReadError> {
        let tail = std::mem::take(&mut self.tail);
        self.lines(&tail, emit)?;
        if self.rows.count == 0 && self.rows.ends.is_empty() {
            return Err(empty());
        }
        self.rows.finish(emit)
    }

    fn keep(&mut self, rest: &[u8]) -> Result<(), ReadError> {
        self.tail.extend_from_slice(rest);
        if self.tail.len() > LONGEST_ROW { Err(ReadError::LongRow) } else { Ok(()) }
    }

    fn lines(&mut self, text: &[u8], emit: Emit<'_>) -> Result<(), ReadError> {
        let mut rest = text;
        while !rest.is_empty() {
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            let line = rest[..end].trim_ascii();
            if !line.is_empty() {
                self.rows.take(line, Some(self.line), emit)?;
            }
            self.line += 1;
            rest = &rest[(end + 1).min(rest.len())..];
        }
        Ok(())
    }
}

/// Where in a document the reading stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was read.
    Start,
    /// Before a member's key; the object may end here only when it is empty.
    Key { first: bool },
    /// After a member's key.
    Colon(Member),
    /// Before a member's value.
    Value(Member),
    /// After a member.
    Member,
    /// Before a row; the list may end here only when it is empty.
    Row { first: bool },
    /// After a row.
    Comma,
    /// After the document.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Rows,
    Columns,
    Data,
}

/// Reads a JSON document: an object of `rows`, or of `columns` and `data`, or a bare list of rows.
#[derive(Debug)]
pub(super) struct DocumentReader {
    rows: Rows,
    stage: Stage,
    /// The list of rows is the whole document.
    bare: bool,
    has_columns: bool,
    has_rows: bool,
    pending: Vec<u8>,
    nesting: Nesting,
}

impl DocumentReader {
    pub(super) fn new(options: ReadOptions) -> Self {
        Self {
            rows: Rows::new(options),
            stage: Stage::Start,
            bare: false,
            has_columns: false,
            has_rows: false,
            pending: Vec::new(),
            nesting: Nesting::default(),
        }
    }

    pub(super) fn push(&mut self, piece: &[u8], emit: Emit<'_>) -> Result<(), ReadError> {
        for slice in piece.chunks(SLICE) {
            self.pending.extend_from_slice(slice);
            let text = std::mem::take(&mut self.pending);
            let mut at = 0;
            while self.step(&text, &mut at, emit)? {}
            self.pending = text;
            self.pending.drain(..at);
            if self.pending.len() > LONGEST_ROW {
                return Err(ReadError::LongRow);
            }
        }
        Ok(())
    }

    pub(super) fn finish(self, emit: Emit<'_>) -> Result<Summary, ReadError> {
        match self.stage {
            Stage::Start => Err(empty()),
            Stage::End if self.has_rows => self.rows.finish(emit),
            Stage::End => Err(ReadError::syntax("", "the document has neither `rows` nor `columns` and `data`")),
            _ => Err(ReadError::syntax(
                "",
                format!("the document ends too early, after {} rows", self.rows.count + self.rows.ends.len() as u64),
            )),
        }
    }

    /// Reads one thing at `at`; false when more text is needed for that.
    fn step(&mut self, text: &[u8], at: &mut usize, emit: Emit<'_>) -> Result<bool, ReadError> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = text.get(*at) {
            *at += 1;
        }
        let rest = &text[*at..];
        let Some(&byte) = rest.first() else { return Ok(false) };
        let mut length = 1;
        let next = match (&self.stage, byte) {
            (Stage::Start, b'[') => {
                self.bare = true;
                self.has_rows = true;
                Stage::Row { first: true }
            }
            (Stage::Start, b'{') => Stage::Key { first: true },
            (Stage::Start, _) => return Err(ReadError::syntax("", "a table is an object or a list of objects")),
            (Stage::Key { first: true } | Stage::Member, b'}') => Stage::End,
            (Stage::Key { .. }, b'"') => {
                let Some(end) = string_end(rest) else { return Ok(false) };
                length = end;
                Stage::Colon(self.member(&whole_string(&rest[..end]).map_err(|mistake| ReadError::syntax("", mistake))?)?)
            }
            (Stage::Colon(member), b':') => Stage::Value(*member),
            (Stage::Value(Member::Columns), b'[') => {
                let Some(end) = self.nesting.end(rest).map_err(|mistake| ReadError::syntax("/columns", mistake))? else { return Ok(false) };
                self.nesting = Nesting::default();
                length = end;
                self.rows.keys = columns(&rest[..end])?;
                Stage::Member
            }
            (Stage::Value(Member::Rows | Member::Data), b'[') => Stage::Row { first: true },
            (Stage::Value(_), _) => return Err(ReadError::syntax("", "`rows`, `columns` and `data` are lists")),
            (Stage::Member, b',') => Stage::Key { first: false },
            (Stage::Row { first: true } | Stage::Comma, b']') => {
                if self.bare {
                    Stage::End
                } else {
                    Stage::Member
                }
            }
            (Stage::Comma, b',') => Stage::Row { first: false },
            (Stage::Row { .. }, b'{' | b'[') => {
                let row = self.rows.count + self.rows.ends.len() as u64;
                let Some(end) = self.nesting.end(rest).map_err(|mistake| bad_json(row, None, mistake))? else { return Ok(false) };
                self.nesting = Nesting::default();
                if (byte == b'{') != (self.rows.shape == Shape::Objects) {
                    return Err(bad_json(row, None, if byte == b'{' { "a row of `data` is a list" } else { "a row is an object" }));
                }
                length = end;
                self.rows.take(&rest[..end], None, emit)?;
                Stage::Comma
            }
            (Stage::Row { .. } | Stage::Comma, _) => {
                let row = self.rows.count + self.rows.ends.len() as u64;
                return Err(bad_json(row, None, "there is something else where a row belongs"));
            }
            _ => return Err(ReadError::syntax("", "the document is not valid JSON outside its rows")),
        };
        self.stage = next;
        *at += length;
        Ok(true)
    }

    fn member(&mut self, key: &str) -> Result<Member, ReadError> {
        let member = match key {
            "rows" => Member::Rows,
            "columns" => Member::Columns,
            "data" => Member::Data,
            _ => {
                let pointer = format!("/{}", escaped(&key.chars().take(128).collect::<String>()));
                return Err(ReadError::fault(pointer, "a table has `rows`, or `columns` and `data`, and nothing else".to_owned()));
            }
        };
        match member {
            Member::Rows | Member::Data if self.has_rows => {
                return Err(ReadError::syntax(format!("/{key}"), "the document has its rows twice"));
            }
            Member::Rows if self.has_columns => return Err(ReadError::syntax("/rows", "rows beside `columns` stand in `data`")),
            Member::Columns if self.has_columns => return Err(ReadError::syntax("/columns", "the document has `columns` twice")),
            Member::Columns if self.has_rows => return Err(ReadError::syntax("/columns", "`columns` go with `data`, and come before it")),
            Member::Data if !self.has_columns => return Err(ReadError::syntax("/data", "`columns` must come before `data`")),
            Member::Rows => self.has_rows = true,
            Member::Columns => {
                self.has_columns = true;
                self.rows.shape = Shape::Lists;
            }
            Member::Data => self.has_rows = true,
        }
        Ok(member)
    }
}

/// The end of the string that `text` begins with, if it has ended.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    text.iter().enumerate().skip(1).find_map(|(place, byte)| {
        let closes = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        closes.then_some(place + 1)
    })
}

/// The names in `columns`.
fn columns(text: &[u8]) -> Result<Vec<String>, ReadError> {
    let (mut names, mut wrong, mut count) = (Vec::new(), None, 0);
    elements(text, |item| {
        match item {
            // A name takes more as one than in the text, so no more are kept than a table can have.
            Item::Scalar(super::token::Token::Text(name)) if count < WIDEST => names.push(name.into_owned()),
            Item::Scalar(super::token::Token::Text(_)) => {}
            _ => wrong = wrong.or(Some(count)),
        }
        count += 1;
    })
    .map_err(|mistake| ReadError::syntax("/columns", mistake))?;
    match wrong {
        Some(place) => Err(ReadError::fault(format!("/columns/{place}"), format!("column {}: the name is not a text", place + 1))),
        None if count > WIDEST => Err(ReadError::TooWide),
        None => Ok(names),
    }
}
