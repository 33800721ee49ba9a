//! Rows of requests that come as an Arrow stream (IPC), and tables of answers that go as one. Columns of any number type, texts, dictionaries of
//! texts and booleans are taken, each by the kind of its input. Not here: uploads.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, BooleanArray, Float64Array, RecordBatch, RecordBatchOptions, StringArray};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema};

use super::fault::{Fault, Faults};
use super::input::InputSchema;
use super::rows::{ID, LONGEST, MISSING, NO_ID, ParseError, Refusal, Rows, RowsOptions, escaped, missing, repeatable};
use super::tensor::{of_boolean, of_number};

/// Where a column goes.
enum Target {
    Input(usize),
    Id,
}

/// Takes the rows of an Arrow stream.
///
/// # Errors
/// The body is no such stream, columns or cells are wrong, or there are too many rows; `rows` is empty then.
pub fn parse_arrow(body: &[u8], schema: &InputSchema, options: &RowsOptions, rows: &mut Rows) -> Result<(), ParseError> {
    rows.values.clear();
    rows.ids.clear();
    rows.count = 0;
    // The reader panics at some streams that lie about their offsets. Nothing of ours is half done then: the rows are cleared.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| parse(body, schema, options, rows)))
        .unwrap_or_else(|_| Err(broken(&ArrowError::ParseError(String::new()))));
    if result.is_err() {
        rows.values.clear();
        rows.ids.clear();
        rows.count = 0;
    }
    result
}

fn broken(error: &ArrowError) -> ParseError {
    // The texts of these errors name offsets and types of the caller's stream, never its values; but only what is known is promised.
    let detail = match error {
        ArrowError::NotYetImplemented(_) => "the stream uses a part of the Arrow format that is not read here, such as compressed buffers",
        _ => "the body is not an Arrow stream",
    };
    ParseError::Syntax(Fault { pointer: String::new(), detail: detail.to_owned() })
}

fn parse(body: &[u8], schema: &InputSchema, options: &RowsOptions, rows: &mut Rows) -> Result<(), ParseError> {
    let reader = StreamReader::try_new(body, None).map_err(|error| broken(&error))?;
    let mut faults = Faults::default();
    let targets = targets(&reader.schema(), schema, options, &mut faults);
    if !faults.is_empty() {
        return Err(ParseError::Faults(faults));
    }
    let width = schema.len();
    for batch in reader {
        let batch = batch.map_err(|error| broken(&error))?;
        let count = batch.num_rows();
        if rows.count + count > options.max_rows {
            return Err(ParseError::TooLarge(format!("a request holds at most {} rows", options.max_rows)));
        }
        let start = rows.values.len();
        rows.values.resize(start + count * width, f64::NAN);
        for (column, target) in batch.columns().iter().zip(&targets) {
            let column = Column::of(column);
            for row in 0..count {
                let refused = match target {
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
                let (name, what) = refused;
                let place = rows.count + row;
                faults.push(|| format!("/rows/{place}/{}", escaped(name)), || format!("row {}, column {name:?}: {what}", place + 1));
                if faults.is_full() {
                    return Err(ParseError::Faults(faults));
                }
            }
        }
        rows.count += count;
    }
    if !rows.ids.is_empty() {
        rows.ids.resize(rows.count, None);
    }
    if faults.is_empty() { Ok(()) } else { Err(ParseError::Faults(faults)) }
}

/// Where each column goes; columns that are not known, stand twice or are not there are faults.
fn targets(stream: &Schema, schema: &InputSchema, options: &RowsOptions, faults: &mut Faults) -> Vec<Target> {
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
            Some(place) => targets.push(Target::Input(place)),
            None if options.allow_id && name == ID => targets.push(Target::Id),
            None => refuse("there is no such feature"),
        }
    }
    for (input, seen) in schema.inputs().iter().zip(seen) {
        if input.required && !seen {
            faults.push(|| "/columns".to_owned(), || format!("column {:?}: {MISSING}", input.name));
        }
    }
    targets
}

/// A column of a batch, by what its cells are.
enum Column<'a> {
    Floats(&'a dyn Array, Box<dyn Fn(usize) -> f64 + 'a>),
    Wholes(&'a dyn Array, Box<dyn Fn(usize) -> i128 + 'a>),
    Booleans(&'a BooleanArray),
    Texts(&'a dyn Array, Box<dyn Fn(usize) -> &'a str + 'a>),
    /// All null, or of a type that no cell has.
    Other(&'a dyn Array),
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

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Floats(array, _) | Self::Wholes(array, _) | Self::Texts(array, _) | Self::Other(array) => array.is_null(row),
            Self::Booleans(array) => array.is_null(row),
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
            Self::Floats(_, value) => of_number(value(row), None, place, schema),
            Self::Wholes(_, value) => {
                let whole = value(row);
                of_number(whole as f64, Some(whole), place, schema)
            }
            Self::Booleans(values) => of_boolean(values.value(row), place, schema),
            Self::Texts(_, value) => schema.value_of_text(place, value(row).as_bytes()),
            Self::Other(_) => Err("its column is of a type that is not read here"),
        }
    }
}

/// A column of an answer.
#[derive(Clone, Debug)]
pub enum Answered<'a> {
    /// Numbers; NaN is null.
    Numbers(&'a [f64]),
    /// Booleans.
    Booleans(&'a [bool]),
    /// Texts.
    Texts(Vec<String>),
}

/// Columns of equal length as an Arrow stream of one batch; `metadata` goes with its schema.
///
/// # Errors
/// Only where the columns are not of `rows` rows each.
pub fn write_arrow(
    columns: Vec<(String, Answered<'_>)>,
    rows: usize,
    metadata: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<u8>, ArrowError> {
    let (mut fields, mut arrays) = (Vec::new(), Vec::<ArrayRef>::new());
    for (name, column) in columns {
        let array: ArrayRef = match column {
            Answered::Numbers(values) => Arc::new(values.iter().map(|value| (!value.is_nan()).then_some(*value)).collect::<Float64Array>()),
            Answered::Booleans(values) => Arc::new(BooleanArray::from(values.to_vec())),
            Answered::Texts(values) => Arc::new(StringArray::from(values)),
        };
        fields.push(Field::new(name, array.data_type().clone(), true));
        arrays.push(array);
    }
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata.into_iter().collect::<std::collections::HashMap<_, _>>()));
    let batch = RecordBatch::try_new_with_options(schema.clone(), arrays, &RecordBatchOptions::new().with_row_count(Some(rows)))?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    writer.write(&batch)?;
    writer.finish()?;
    writer.into_inner()
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
        write_arrow(columns, rows, []).unwrap()
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
                ("x".to_owned(), Answered::Numbers(&[1.5, -2.0])),
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
        assert_eq!(faults(vec![good.clone(), ("x".to_owned(), Answered::Numbers(&[f64::NAN]))], 1), ["/rows/0/x"]);
        assert_eq!(faults(vec![good.clone(), ("x".to_owned(), texts(&["one"]))], 1), ["/rows/0/x"]);
        assert_eq!(
            faults(vec![("region".to_owned(), texts(&["east"])), ("x".to_owned(), Answered::Numbers(&[1.0]))], 1),
            ["/rows/0/region"]
        );
        assert_eq!(faults(vec![good, ("z".to_owned(), Answered::Numbers(&[1.0]))], 1), ["/columns/1", "/columns"]);
    }

    #[test]
    fn every_cut_or_bent_stream_is_refused_or_taken_without_a_panic() {
        let body = stream(vec![("region".to_owned(), texts(&["south"])), ("x".to_owned(), Answered::Numbers(&[1.0]))], 1);
        let mut rows = Rows::default();
        for end in 0..body.len() {
            // A stream may end without its mark.
            let _ = parse_arrow(&body[..end], &schema(), &OPTIONS, &mut rows);
        }
        for place in 0..body.len() {
            let mut bent = body.clone();
            bent[place] ^= 0x55;
            let _ = parse_arrow(&bent, &schema(), &OPTIONS, &mut rows);
        }
        let long = vec![1.0; 101];
        let many = stream(vec![("region".to_owned(), texts(&["south"; 101])), ("x".to_owned(), Answered::Numbers(&long))], 101);
        assert!(matches!(parse_arrow(&many, &schema(), &OPTIONS, &mut rows), Err(ParseError::TooLarge(_))));
    }
}
