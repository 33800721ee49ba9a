//! Stored frames back to text: CSV, NDJSON, and one row as a JSON object. Not here: replies to predictions.
//!
//! Floats are written as the shortest decimal that reads back to the same bits; a missing cell is an empty one, or null. A column may hold
//! arrays of a narrower kind in its earlier frames (integers before numbers, categories before texts), so each array is asked, not the schema.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow_schema::{DataType, TimeUnit};

use super::Frame;
use super::infer::{instant_text, is_missing};
use super::reply::{push_integer, push_json_string, push_number};
use super::schema::Schema;

/// The header line.
pub fn csv_header(out: &mut Vec<u8>, schema: &Schema) {
    for (index, column) in schema.columns.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_csv_text(out, &column.name);
    }
    out.push(b'\n');
}

/// A line a row.
pub fn csv_rows(out: &mut Vec<u8>, _schema: &Schema, frame: &Frame) {
    let columns: Vec<Cells<'_>> = frame.columns.iter().map(Cells::of).collect();
    for row in 0..frame.rows {
        let begin = out.len();
        for (index, column) in columns.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            match column.cell(row) {
                Cell::Missing => {}
                Cell::Number(value) => push_number(out, value),
                Cell::Integer(value) => push_integer(out, value),
                Cell::Boolean(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
                Cell::Text(text) => push_csv_text(out, text),
                Cell::Instant(text) => out.extend_from_slice(text.as_bytes()),
            }
        }
        if out.len() == begin && !columns.is_empty() {
            // An empty line would be read as no row at all.
            out.extend_from_slice(b"\"\"");
        }
        out.push(b'\n');
    }
}

/// An object a line.
pub fn ndjson_rows(out: &mut Vec<u8>, schema: &Schema, frame: &Frame) {
    let keys = keys(schema);
    let columns: Vec<Cells<'_>> = frame.columns.iter().map(Cells::of).collect();
    for row in 0..frame.rows {
        push_object(out, &keys, &columns, row);
        out.push(b'\n');
    }
}

/// Row `row` of the frame as an object.
pub fn json_row(out: &mut Vec<u8>, schema: &Schema, frame: &Frame, row: usize) {
    let columns: Vec<Cells<'_>> = frame.columns.iter().map(Cells::of).collect();
    push_object(out, &keys(schema), &columns, row);
}

/// Each name as the start of a member: `"name":`.
fn keys(schema: &Schema) -> Vec<Vec<u8>> {
    let key = |name: &str| {
        let mut key = Vec::with_capacity(name.len() + 3);
        push_json_string(&mut key, name);
        key.push(b':');
        key
    };
    schema.columns.iter().map(|column| key(&column.name)).collect()
}

fn push_object(out: &mut Vec<u8>, keys: &[Vec<u8>], columns: &[Cells<'_>], row: usize) {
    out.push(b'{');
    for (index, (key, column)) in keys.iter().zip(columns).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(key);
        match column.cell(row) {
            Cell::Missing => out.extend_from_slice(b"null"),
            Cell::Number(value) => push_number(out, value),
            Cell::Integer(value) => push_integer(out, value),
            Cell::Boolean(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
            Cell::Text(text) => push_json_string(out, text),
            Cell::Instant(text) => push_json_string(out, &text),
        }
    }
    out.push(b'}');
}

/// An array by its kind, found once a frame.
enum Cells<'f> {
    Number(&'f Float64Array),
    Integer(&'f Int64Array),
    Boolean(&'f BooleanArray),
    Category(&'f DictionaryArray<Int32Type>, &'f StringArray),
    Text(&'f StringArray),
    Timestamp(&'f TimestampMicrosecondArray),
    /// No kind that a frame holds.
    Other,
}

enum Cell<'f> {
    Missing,
    Number(f64),
    Integer(i64),
    Boolean(bool),
    Text(&'f str),
    Instant(String),
}

impl<'f> Cells<'f> {
    fn of(array: &'f ArrayRef) -> Self {
        match array.data_type() {
            DataType::Float64 => array.as_primitive_opt::<Float64Type>().map(Self::Number),
            DataType::Int64 => array.as_primitive_opt::<Int64Type>().map(Self::Integer),
            DataType::Boolean => array.as_boolean_opt().map(Self::Boolean),
            DataType::Utf8 => array.as_string_opt::<i32>().map(Self::Text),
            DataType::Timestamp(TimeUnit::Microsecond, _) => array.as_primitive_opt::<TimestampMicrosecondType>().map(Self::Timestamp),
            DataType::Dictionary(..) => array
                .as_dictionary_opt::<Int32Type>()
                .and_then(|dictionary| Some(Self::Category(dictionary, dictionary.values().as_string_opt::<i32>()?))),
            _ => None,
        }
        .unwrap_or(Self::Other)
    }

    fn cell(&self, row: usize) -> Cell<'f> {
        match self {
            Self::Number(array) if array.is_valid(row) && array.value(row).is_finite() => Cell::Number(array.value(row)),
            Self::Integer(array) if array.is_valid(row) => Cell::Integer(array.value(row)),
            Self::Boolean(array) if array.is_valid(row) => Cell::Boolean(array.value(row)),
            Self::Text(array) if array.is_valid(row) => Cell::Text(array.value(row)),
            Self::Category(array, levels) => array.key(row).map_or(Cell::Missing, |code| Cell::Text(levels.value(code))),
            Self::Timestamp(array) if array.is_valid(row) => instant_text(array.value(row)).map_or(Cell::Missing, Cell::Instant),
            _ => Cell::Missing,
        }
    }
}

/// A text as a CSV cell, quoted where reading it back would otherwise give something else.
fn push_csv_text(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let quoted = bytes.iter().any(|byte| matches!(byte, b',' | b';' | b'\t' | b'"' | b'\n' | b'\r'))
        || bytes.is_empty()
        || bytes.trim_ascii().len() < bytes.len()
        || is_missing(bytes)
        || text.starts_with('\u{feff}');
    if !quoted {
        out.extend_from_slice(bytes);
        return;
    }
    out.push(b'"');
    for &byte in bytes {
        if byte == b'"' {
            out.push(b'"');
        }
        out.push(byte);
    }
    out.push(b'"');
}
