//! CSV by RFC 4180: a flat scan over complete records where they lie. Not here: what the cells mean.
//!
//! A piece of text is cut after its last complete record; only what follows is copied and waits for the next piece. A quote opens a quoted
//! cell only where a cell begins. Lines end with LF or CRLF, the last one need not; blank lines are skipped. A comma separates cells, or a
//! semicolon or tab where the header has no comma. Cells of number columns go straight from text into the column.

use std::borrow::Cow;

use memchr::{memchr, memchr_iter, memchr2, memrchr};

use super::table::Table;
use super::{Emit, HEAD_BYTES, LONGEST_ROW, ReadError, ReadOptions, WIDEST, empty};
use crate::frame::Summary;
use crate::frame::infer::{self, CellKind, Evidence, leading_whole_number};

/// Reads CSV.
#[derive(Debug)]
pub(super) struct CsvReader {
    options: ReadOptions,
    delimiter: Option<u8>,
    /// A record that has begun and not ended.
    tail: Vec<u8>,
    scan: Scan,
    /// Complete records that are held back until there are enough to infer types from.
    head: Vec<u8>,
    head_records: usize,
    table: Option<Table>,
    /// The line at which the next record begins, from 1.
    line: u64,
}

/// How far the tail was searched for its end.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    at: usize,
    quoted: bool,
}

impl Scan {
    /// Goes on over `text`, which begins with a record, and gives the end of the last complete record in it, if there is one in what was
    /// not yet searched.
    fn last_end(&mut self, text: &[u8], delimiter: u8) -> Option<usize> {
        let mut end = None;
        loop {
            if self.quoted {
                let Some(found) = memchr(b'"', &text[self.at..]) else {
                    self.at = text.len();
                    return end;
                };
                let quote = self.at + found;
                match text.get(quote + 1) {
                    None => {
                        self.at = quote; // whether it is the closing one, the next byte tells
                        return end;
                    }
                    Some(b'"') => self.at = quote + 2,
                    Some(_) => {
                        self.quoted = false;
                        self.at = quote + 1;
                    }
                }
            } else {
                let quote = memchr(b'"', &text[self.at..]).map(|found| self.at + found);
                let stop = quote.unwrap_or(text.len());
                if let Some(found) = memrchr(b'\n', &text[self.at..stop]) {
                    end = Some(self.at + found + 1);
                }
                let Some(quote) = quote else {
                    self.at = text.len();
                    return end;
                };
                self.quoted = quote == 0 || text[quote - 1] == delimiter || text[quote - 1] == b'\n';
                self.at = quote + 1;
            }
        }
    }
}

/// A cell as it stands in the text.
struct Cell<'t> {
    text: Cow<'t, [u8]>,
    quoted: bool,
    /// Where the next one begins.
    next: usize,
    /// Whether the record ends with it.
    last: bool,
    /// Line ends inside it.
    lines: u64,
}

/// The cell at `at` of complete records; none when its quotes do not close.
fn cell(records: &[u8], at: usize, delimiter: u8) -> Option<Cell<'_>> {
    let rest = &records[at..];
    if rest.first() != Some(&b'"') {
        let length = memchr2(delimiter, b'\n', rest).unwrap_or(rest.len());
        let last = rest.get(length) != Some(&delimiter);
        let text = &rest[..length];
        let text = if last { text.strip_suffix(b"\r").unwrap_or(text) } else { text };
        return Some(Cell { text: Cow::Borrowed(text), quoted: false, next: (at + length + 1).min(records.len()), last, lines: 0 });
    }
    let mut text = Cow::Borrowed(&rest[..0]);
    let mut begin = 1;
    let close = loop {
        let quote = begin + memchr(b'"', &rest[begin..])?;
        if rest.get(quote + 1) != Some(&b'"') {
            if text.is_empty() {
                text = Cow::Borrowed(&rest[begin..quote]);
            } else {
                text.to_mut().extend_from_slice(&rest[begin..quote]);
            }
            break quote;
        }
        text.to_mut().extend_from_slice(&rest[begin..=quote]);
        begin = quote + 2;
    };
    let lines = memchr_iter(b'\n', &rest[..close]).count() as u64;
    let after = close + 1;
    let length = after + memchr2(delimiter, b'\n', &rest[after..]).unwrap_or(rest.len() - after);
    let last = rest.get(length) != Some(&delimiter);
    let more = &rest[after..length];
    let more = if last { more.strip_suffix(b"\r").unwrap_or(more) } else { more };
    if !more.is_empty() {
        text.to_mut().extend_from_slice(more);
    }
    Some(Cell { text, quoted: true, next: (at + length + 1).min(records.len()), last, lines })
}

/// Bytes of the blank line at `at`; 0 when the line is not blank.
#[inline]
fn blank(records: &[u8], at: usize) -> usize {
    match records[at] {
        b'\n' => 1,
        b'\r' if records.get(at + 1) == Some(&b'\n') => 2,
        _ => 0,
    }
}

/// What separates the cells of a header line.
fn delimiter_of(header: &[u8]) -> u8 {
    let (mut commas, mut semicolons, mut tabs, mut quoted) = (0_usize, 0_usize, 0_usize, false);
    for byte in header {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => commas += 1,
            b';' if !quoted => semicolons += 1,
            b'\t' if !quoted => tabs += 1,
            _ => {}
        }
    }
    match (commas, semicolons, tabs) {
        (0, semicolons, tabs) if semicolons > tabs => b';',
        (0, _, tabs) if tabs > 0 => b'\t',
        _ => b',',
    }
}

impl CsvReader {
    pub(super) fn new(options: ReadOptions) -> Self {
        Self { options, delimiter: None, tail: Vec::new(), scan: Scan::default(), head: Vec::new(), head_records: 0, table: None, line: 1 }
    }

    pub(super) fn push(&mut self, piece: &[u8], emit: Emit<'_>) -> Result<(), ReadError> {
        match self.delimiter {
            Some(delimiter) => self.split(piece, delimiter, emit),
            None => {
                // The header line must be whole before its delimiter is known.
                let mut piece = piece;
                if self.tail.is_empty() {
                    let begin = piece.iter().position(|byte| !matches!(byte, b'\n' | b'\r')).unwrap_or(piece.len());
                    self.line += memchr_iter(b'\n', &piece[..begin]).count() as u64;
                    piece = &piece[begin..];
                }
                let Some(end) = memchr(b'\n', piece) else {
                    self.tail.extend_from_slice(piece);
                    return self.bound();
                };
                self.tail.extend_from_slice(&piece[..=end]);
                let delimiter = delimiter_of(&self.tail);
                self.delimiter = Some(delimiter);
                let opening = std::mem::take(&mut self.tail);
                self.split(&opening, delimiter, emit)?;
                self.split(&piece[end + 1..], delimiter, emit)
            }
        }
    }

    pub(super) fn finish(mut self, emit: Emit<'_>) -> Result<Summary, ReadError> {
        let mut tail = std::mem::take(&mut self.tail);
        let delimiter = self.delimiter.unwrap_or_else(|| delimiter_of(&tail));
        if !tail.is_empty() {
            tail.push(b'\n');
            self.records(&tail, delimiter, emit)?;
        }
        if self.table.is_none() {
            self.start(delimiter, emit)?;
        }
        match self.table {
            Some(table) => table.finish(emit),
            None => Err(empty()),
        }
    }

    fn bound(&self) -> Result<(), ReadError> {
        if self.tail.len() > LONGEST_ROW { Err(ReadError::LongRow) } else { Ok(()) }
    }

    /// Cuts a piece after its last complete record.
    fn split(&mut self, piece: &[u8], delimiter: u8, emit: Emit<'_>) -> Result<(), ReadError> {
        let mut piece = piece;
        while !self.tail.is_empty() && !piece.is_empty() {
            // Up to the next line end, which is where the record ends unless it lies within quotes.
            let length = memchr(b'\n', piece).map_or(piece.len(), |found| found + 1);
            self.tail.extend_from_slice(&piece[..length]);
            piece = &piece[length..];
            if let Some(end) = self.scan.last_end(&self.tail, delimiter) {
                let mut records = std::mem::take(&mut self.tail);
                self.scan = Scan::default();
                self.records(&records[..end], delimiter, emit)?;
                records.drain(..end);
                self.tail = records;
            }
            self.bound()?;
        }
        if !piece.is_empty() {
            let end = Scan::default().last_end(piece, delimiter).unwrap_or(0);
            self.records(&piece[..end], delimiter, emit)?;
            self.tail.extend_from_slice(&piece[end..]);
            self.scan = Scan::default();
            self.bound()?;
        }
        Ok(())
    }

    /// Takes complete records.
    fn records(&mut self, records: &[u8], delimiter: u8, emit: Emit<'_>) -> Result<(), ReadError> {
        if self.table.is_some() {
            return self.parse(records, delimiter, emit);
        }
        // Held back record by record, so that the head ends at the same one however the text was cut into pieces.
        let mut at = 0;
        while at < records.len() {
            let begin = at;
            at += blank(records, at);
            if at == begin {
                loop {
                    let cell = cell(records, at, delimiter).ok_or_else(|| self.open_quote())?;
                    at = cell.next;
                    if cell.last {
                        break;
                    }
                }
                if at - begin > LONGEST_ROW {
                    return Err(ReadError::LongRow);
                }
                self.head_records += 1;
            }
            self.head.extend_from_slice(&records[begin..at]);
            if self.head_records > self.options.head_rows || self.head.len() >= HEAD_BYTES {
                self.start(delimiter, emit)?;
                return self.parse(&records[at..], delimiter, emit);
            }
        }
        Ok(())
    }

    fn open_quote(&self) -> ReadError {
        match &self.table {
            Some(table) => {
                let (pointer, place) = table.place();
                ReadError::syntax(pointer, format!("{place}: a quoted cell does not end"))
            }
            None => ReadError::syntax("", "a quoted cell does not end"),
        }
    }

    /// Infers the types from the head, then parses it.
    fn start(&mut self, delimiter: u8, emit: Emit<'_>) -> Result<(), ReadError> {
        let head = std::mem::take(&mut self.head);
        let mut at = 0;
        while at < head.len() && blank(&head, at) > 0 {
            at += blank(&head, at);
            self.line += 1;
        }
        if at == head.len() {
            return Err(empty());
        }
        let mut names = Vec::new();
        loop {
            let cell = cell(&head, at, delimiter).ok_or_else(|| self.open_quote())?;
            at = cell.next;
            let text = if cell.quoted { &cell.text } else { cell.text.trim_ascii() };
            names.push(std::str::from_utf8(text).map(str::to_owned).map_err(|_| {
                let detail = format!("column {} (line {}): the name is not valid UTF-8", names.len() + 1, self.line);
                ReadError::fault(format!("/columns/{}", names.len()), detail)
            })?);
            self.line += cell.lines;
            if names.len() > WIDEST {
                return Err(ReadError::TooWide);
            }
            if cell.last {
                break;
            }
        }
        self.line += 1;
        let rows = &head[at..];
        let mut evidence: Vec<Evidence> = names.iter().map(|_| Evidence::default()).collect();
        if self.options.expect.is_none() {
            let (mut at, mut column) = (0, 0);
            while at < rows.len() {
                if column == 0 && blank(rows, at) > 0 {
                    at += blank(rows, at);
                    continue;
                }
                let cell = cell(rows, at, delimiter).ok_or_else(|| self.open_quote())?;
                if let Some(evidence) = evidence.get_mut(column) {
                    let text = cell.text.trim_ascii();
                    let kind = if text.is_empty() { CellKind::Missing } else { infer::classify(text) };
                    evidence.note(kind, text);
                }
                at = cell.next;
                column = if cell.last { 0 } else { column + 1 };
            }
        }
        self.table = Some(Table::new(&names, |place| evidence[place].verdict(), &self.options)?);
        self.parse(rows, delimiter, emit)
    }

    /// Parses complete records into the table.
    fn parse(&mut self, records: &[u8], delimiter: u8, emit: Emit<'_>) -> Result<(), ReadError> {
        let Some(table) = &mut self.table else { return Ok(()) };
        let mut at = 0;
        let mut clean = true;
        while at < records.len() {
            let skipped = blank(records, at);
            if skipped > 0 {
                at += skipped;
                self.line += 1;
                continue;
            }
            table.line = Some(self.line);
            match row(table, records, at, delimiter) {
                Some(Row { next, lines, good }) => {
                    if next - at > LONGEST_ROW {
                        return Err(ReadError::LongRow);
                    }
                    at = next;
                    self.line += lines;
                    clean &= good;
                }
                None => return Err(self.open_quote()),
            }
            table.end_row(emit)?;
            if !clean {
                table.stop_if_full()?;
            }
        }
        Ok(())
    }
}

/// A record that was parsed.
struct Row {
    /// Where the next one begins.
    next: usize,
    /// Lines it takes.
    lines: u64,
    /// Whether every cell was a plain number.
    good: bool,
}

/// Parses the record at `begin`; none when a quoted cell in it does not end.
#[inline]
fn row(table: &mut Table, records: &[u8], begin: usize, delimiter: u8) -> Option<Row> {
    let count = table.columns.len();
    let mut at = begin;
    let mut row = Row { next: begin, lines: 1, good: true };
    for index in 0..count {
        let last = index + 1 == count;
        let stop = if last { b'\n' } else { delimiter };
        let rest = &records[at..];
        match &mut table.columns[index].values {
            super::table::Values::Number(values) => {
                if let Ok((value, length)) = fast_float2::parse_partial::<f64, _>(rest)
                    && rest.get(length) == Some(&stop)
                    && value.is_finite()
                {
                    values.push(value);
                    at += length + 1;
                    continue;
                }
            }
            super::table::Values::Integer(values) => {
                if let Some((value, length)) = leading_whole_number(rest)
                    && rest.get(length) == Some(&stop)
                {
                    values.push(value);
                    at += length + 1;
                    continue;
                }
            }
            _ => {}
        }
        row.good = false;
        let cell = cell(records, at, delimiter)?;
        at = cell.next;
        row.lines += cell.lines;
        table.text_cell(index, &cell.text, cell.quoted);
        if cell.last != last {
            uneven(table, records, &mut at, &mut row, index + 1, cell.last, delimiter)?;
            break;
        }
    }
    row.next = at;
    Some(row)
}

/// A record with more or fewer cells than the header: told once, and brought to the right length.
#[cold]
fn uneven(table: &mut Table, records: &[u8], at: &mut usize, row: &mut Row, taken: usize, ended: bool, delimiter: u8) -> Option<()> {
    let expected = table.columns.len();
    let mut found = taken;
    let mut ended = ended;
    while !ended {
        let cell = cell(records, *at, delimiter)?;
        *at = cell.next;
        row.lines += cell.lines;
        found += 1;
        ended = cell.last;
    }
    for column in taken..expected {
        table.missing_cell(column);
    }
    table.bad_row(None, || format!("{found} cells where the header has {expected}"));
    Some(())
}
