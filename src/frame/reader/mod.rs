//! The bytes of an upload, piece by piece, to frames of bounded size.
//!
//! The first chunk of rows is held back until it is large enough to infer each column's type from; from then on complete rows are parsed
//! where they lie, and only the cut-off last row of a piece is copied. How the bytes are cut into pieces never changes the frames.
//! Not here: requests for predictions and updates, which know their columns beforehand (see [`super::rows`]).

mod csv;
mod json;
mod table;
mod token;

use super::Frame;
use super::fault::{Fault, Faults};
use super::schema::{ColumnType, Schema};
use super::summary::Summary;

/// Most columns of a table.
const WIDEST: usize = 10_000;
/// Longest row, in bytes of text.
const LONGEST_ROW: usize = 16 << 20;
/// Bytes of text that are held back at most before types are inferred.
const HEAD_BYTES: usize = 4 << 20;

/// Where frames go.
type Emit<'e> = &'e mut dyn FnMut(Frame) -> Result<(), ReadError>;

/// How a table is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values with a header line (semicolons and tabs are noticed).
    Csv,
    /// One JSON object a line.
    Ndjson,
    /// `{"rows":[{…}]}`, `{"columns":[…],"data":[[…]]}` or `[{…}]`.
    Json,
    /// Apache Parquet.
    Parquet,
    /// An Apache Arrow IPC stream.
    ArrowStream,
}

impl Format {
    /// The format of a body that begins with these bytes.
    #[must_use]
    pub fn sniff(head: &[u8]) -> Self {
        if head.starts_with(b"PAR1") {
            return Self::Parquet;
        }
        if head.starts_with(&[0xff; 4]) {
            return Self::ArrowStream;
        }
        let text = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head).trim_ascii_start();
        match text.first() {
            Some(b'[') => Self::Json,
            Some(b'{') if is_document(&text[1..]) => Self::Json,
            Some(b'{') => Self::Ndjson,
            _ => Self::Csv,
        }
    }
}

/// Whether an object that goes on like this is a whole table rather than a row: its first member is one of ours, and a list.
fn is_document(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    [&b"\"rows\""[..], b"\"columns\"", b"\"data\""].iter().any(|key| {
        let value = text.strip_prefix(*key).map(<[u8]>::trim_ascii_start).and_then(|rest| rest.strip_prefix(b":"));
        value.is_some_and(|value| value.trim_ascii_start().first() == Some(&b'['))
    })
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a reader is told beforehand.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// The columns that the rows must have, in any order; frames come in this order.
    pub expect: Option<Schema>,
    /// Types by column name that are not to be inferred.
    pub types: Vec<(String, ColumnType)>,
    /// Rows from which types are inferred.
    pub head_rows: usize,
    /// Most rows of a frame; frames of wide tables have fewer.
    pub frame_rows: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { expect: None, types: Vec::new(), head_rows: 8192, frame_rows: 8192 }
    }
}

/// Why rows cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Rows, cells or columns that cannot be taken.
    #[error("{0}")]
    Faults(Faults),
    /// The text is not of its format.
    #[error("{}", .0.detail)]
    Syntax(Fault),
    /// More columns than are taken.
    #[error("the table has more than {WIDEST} columns")]
    TooWide,
    /// A row that is longer than is taken.
    #[error("a row is longer than {} MiB", LONGEST_ROW >> 20)]
    LongRow,
}

impl ReadError {
    fn syntax(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Syntax(Fault { pointer: pointer.into(), detail: detail.into() })
    }

    fn fault(pointer: String, detail: String) -> Self {
        let mut faults = Faults::default();
        faults.push(|| pointer, || detail);
        Self::Faults(faults)
    }
}

/// Reads one table.
#[derive(Debug)]
pub struct Reader {
    /// The first bytes, until it is known whether they are a byte order mark; none after that.
    opening: Option<Vec<u8>>,
    machine: Machine,
}

#[derive(Debug)]
enum Machine {
    Csv(Box<csv::CsvReader>),
    Lines(Box<json::LinesReader>),
    Document(Box<json::DocumentReader>),
    Unread,
}

impl Reader {
    /// A reader of this format.
    #[must_use]
    pub fn new(format: Format, options: ReadOptions) -> Self {
        let machine = match format {
            Format::Csv => Machine::Csv(Box::new(csv::CsvReader::new(options))),
            Format::Ndjson => Machine::Lines(Box::new(json::LinesReader::new(options))),
            Format::Json => Machine::Document(Box::new(json::DocumentReader::new(options))),
            Format::Parquet | Format::ArrowStream => Machine::Unread,
        };
        Self { opening: Some(Vec::new()), machine }
    }

    /// Takes the next piece of the text and emits the frames that it completes.
    ///
    /// # Errors
    /// The text is not of its format, a limit is passed, so many rows are bad that no more would be told, or `emit` failed.
    /// After an error the reader is of no more use. Fewer bad rows are told by [`Reader::finish`].
    pub fn push(&mut self, piece: &[u8], emit: &mut dyn FnMut(Frame) -> Result<(), ReadError>) -> Result<(), ReadError> {
        let mut piece = piece;
        if let Some(opening) = &mut self.opening {
            let (mark, rest) = piece.split_at(piece.len().min(BYTE_ORDER_MARK.len() - opening.len()));
            opening.extend_from_slice(mark);
            piece = rest;
            if opening.len() < BYTE_ORDER_MARK.len() {
                return Ok(());
            }
            self.open(emit)?;
        }
        self.feed(piece, emit)
    }

    /// Takes the end of the text, emits the last frame and describes the table.
    ///
    /// # Errors
    /// As [`Reader::push`]; bad rows; the text ends too early or is empty.
    pub fn finish(mut self, emit: &mut dyn FnMut(Frame) -> Result<(), ReadError>) -> Result<Summary, ReadError> {
        self.open(emit)?;
        match self.machine {
            Machine::Csv(reader) => reader.finish(emit),
            Machine::Lines(reader) => reader.finish(emit),
            Machine::Document(reader) => reader.finish(emit),
            Machine::Unread => Err(unread()),
        }
    }

    fn open(&mut self, emit: Emit<'_>) -> Result<(), ReadError> {
        match self.opening.take() {
            Some(opening) if opening != BYTE_ORDER_MARK => self.feed(&opening, emit),
            _ => Ok(()),
        }
    }

    fn feed(&mut self, piece: &[u8], emit: Emit<'_>) -> Result<(), ReadError> {
        match &mut self.machine {
            Machine::Csv(reader) => reader.push(piece, emit),
            Machine::Lines(reader) => reader.push(piece, emit),
            Machine::Document(reader) => reader.push(piece, emit),
            Machine::Unread => Err(unread()),
        }
    }
}

fn unread() -> ReadError {
    ReadError::syntax("", "Parquet and Arrow are not read here")
}

fn empty() -> ReadError {
    ReadError::syntax("", "the body is empty")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow_array::Array as _;
    use arrow_array::cast::AsArray as _;
    use arrow_array::types::{Float64Type, Int32Type, Int64Type};
    use arrow_schema::DataType;
    use serde_json::json;

    use super::*;
    use crate::frame::{Column, write};

    fn read_pieces<'p>(
        format: Format,
        options: &ReadOptions,
        pieces: impl IntoIterator<Item = &'p [u8]>,
    ) -> Result<(Summary, Vec<Frame>), ReadError> {
        let mut reader = Reader::new(format, options.clone());
        let mut frames = Vec::new();
        let mut emit = |frame: Frame| {
            frames.push(frame);
            Ok(())
        };
        for piece in pieces {
            reader.push(piece, &mut emit)?;
        }
        let summary = reader.finish(&mut emit)?;
        Ok((summary, frames))
    }

    fn read_with(format: Format, options: &ReadOptions, text: &[u8]) -> Result<(Summary, Vec<Frame>), ReadError> {
        read_pieces(format, options, [text])
    }

    fn read(format: Format, text: impl AsRef<[u8]>) -> (Summary, Vec<Frame>) {
        read_with(format, &ReadOptions::default(), text.as_ref()).unwrap()
    }

    fn faults(format: Format, options: &ReadOptions, text: impl AsRef<[u8]>) -> Vec<(String, String)> {
        match read_with(format, options, text.as_ref()).unwrap_err() {
            ReadError::Faults(faults) => faults.into_vec().into_iter().map(|fault| (fault.pointer, fault.detail)).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn csv_faults(text: impl AsRef<[u8]>) -> Vec<(String, String)> {
        faults(Format::Csv, &ReadOptions::default(), text)
    }

    fn kinds(summary: &Summary) -> Vec<(&str, &str)> {
        summary.schema.columns.iter().map(|column| (column.name.as_str(), column.kind.as_str())).collect()
    }

    /// The rows as JSON, whatever kinds the arrays are of.
    fn rows(summary: &Summary, frames: &[Frame]) -> Vec<serde_json::Value> {
        let mut text = Vec::new();
        frames.iter().for_each(|frame| write::ndjson_rows(&mut text, &summary.schema, frame));
        String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn shown(frames: &[Frame]) -> String {
        frames.iter().map(|frame| format!("{} {:?}\n", frame.rows, frame.columns)).collect()
    }

    fn options(head_rows: usize, frame_rows: usize) -> ReadOptions {
        ReadOptions { head_rows, frame_rows, ..ReadOptions::default() }
    }

    #[test]
    fn types_are_inferred_from_text() {
        let (summary, frames) = read(
            Format::Csv,
            "n,i,b,t,c,m\n1.5,1,true,2024-01-02,north,\n2,-7,FALSE,2024-01-02T03:04:05Z,south,NA\n,NaN,,null,north,None\n1e3,9,True,,N/A,\n",
        );
        assert_eq!(
            kinds(&summary),
            [("n", "number"), ("i", "integer"), ("b", "boolean"), ("t", "timestamp"), ("c", "category"), ("m", "number")]
        );
        assert_eq!(summary.rows, 4);
        assert_eq!(
            rows(&summary, &frames)[1],
            json!({"n": 2.0, "i": -7, "b": false, "t": "2024-01-02T03:04:05Z", "c": "south", "m": null})
        );
        let columns = summary.columns_json();
        assert_eq!(columns[0]["missing"], 1);
        assert_eq!(columns[0]["max"], 1000.0);
        assert_eq!(columns[1]["mean"], 1.0);
        assert_eq!(columns[4]["distinct"], 2);
        assert_eq!(columns[5]["missing"], 4);
        assert_eq!(columns[3]["min"], "2024-01-02T00:00:00Z");
        assert_eq!(columns[0]["sample"], json!([1.5, 2.0, 1000.0]));
    }

    #[test]
    fn quotes_line_ends_and_a_missing_last_line_end_are_read_by_the_rfc() {
        let text = "\"a,\"\"1\"\"\",b\r\n\"x, \"\"y\"\"\nz\",\"1\"\r\n\r\nplain \"quote\",2\r\n\"\"\"\",\"3\"";
        let (summary, frames) = read(Format::Csv, text);
        assert_eq!(kinds(&summary), [("a,\"1\"", "category"), ("b", "integer")]);
        let found: Vec<String> = rows(&summary, &frames).iter().map(|row| row["a,\"1\""].as_str().unwrap().to_owned()).collect();
        assert_eq!(found, ["x, \"y\"\nz", "plain \"quote\"", "\""]);
        assert_eq!(read(Format::Csv, text.replace("\r\n", "\n")).0, summary);
    }

    #[test]
    fn a_quoted_cell_that_does_not_end_is_a_syntax_error() {
        for text in ["a,b\n1,\"x\n", "a,\"b", "a\n\"x\"\"\n"] {
            let error = read_with(Format::Csv, &ReadOptions::default(), text.as_bytes()).unwrap_err();
            assert!(matches!(error, ReadError::Syntax(_)), "{error:?}");
        }
    }

    #[test]
    fn how_the_text_is_cut_changes_nothing() {
        let csv = "\u{feff}n,i,\"t\"\"x\",c\r\n1.5,1,\"a\nb\",x\n2,2,\"q\"\"\",y\r\n,3.25,\"\",x\n-4e-2,4, z ,\"x\"\n\n5,5,\"a,b\"\"\",y\n6,6,last,z";
        let ndjson = "{\"a\":1,\"b\":\"x\\\"}\"}\n\n{\"b\":\"\\u00e9\",\"a\":2.5}\r\n{\"a\":null}\n{\"a\":4,\"b\":\"y\"}";
        let document = " {\"rows\" : [ {\"a\":1,\"b\":\"x\\\"}\"} , {\"b\":\"\\\\\",\"a\":2.5},{\n\"a\":null}\n,{\"a\":4,\"b\":\"]\"} ] } ";
        let columns = "{\"columns\":[\"a\",\"b]\\\"\"],\"data\":[[1,\"x\"],[2.5,null],[3,\"]\"]]}";
        for (format, text) in [
            (Format::Csv, csv),
            (Format::Csv, &csv.replace(',', ";")),
            (Format::Ndjson, ndjson),
            (Format::Json, document),
            (Format::Json, columns),
        ] {
            for options in [options(8192, 8192), options(1, 1), options(2, 3)] {
                let bytes = text.as_bytes();
                let (summary, frames) = read_with(format, &options, bytes).unwrap();
                assert!(frames.len() <= 6 && summary.rows >= 3, "{text}");
                for cut in 0..=bytes.len() {
                    let (left, right) = bytes.split_at(cut);
                    let (other, others) = read_pieces(format, &options, [left, right]).unwrap();
                    assert_eq!((&other, shown(&others)), (&summary, shown(&frames)), "{format:?} cut at {cut}");
                }
                let (other, others) = read_pieces(format, &options, bytes.chunks(1)).unwrap();
                assert_eq!((&other, shown(&others)), (&summary, shown(&frames)), "{format:?} byte by byte");
            }
        }
    }

    #[test]
    fn faults_too_do_not_depend_on_how_the_text_is_cut() {
        let text = "a,b\n1,\"x\ny\"\n2\n3,\"p\"\"\",4\nx,\"\n\n\"\n5,u\n6,v\n7,w\n8,x\n9,y\n";
        let expected = csv_faults(text);
        assert_eq!(expected.len(), 3);
        for cut in 0..=text.len() {
            let (left, right) = text.as_bytes().split_at(cut);
            let error = read_pieces(Format::Csv, &ReadOptions::default(), [left, right]).unwrap_err();
            let ReadError::Faults(found) = error else { panic!("{error:?}") };
            let found: Vec<_> = found.into_vec().into_iter().map(|fault| (fault.pointer, fault.detail)).collect();
            assert_eq!(found, expected, "cut at {cut}");
        }
    }

    #[test]
    fn an_integer_column_widens_to_numbers_midway() {
        let text = "x,y\n1,9007199254740993\n2,2\n3,3\n4.5,4\n5,5\n";
        let (summary, frames) = read_with(Format::Csv, &options(2, 2), text.as_bytes()).unwrap();
        assert_eq!(kinds(&summary), [("x", "number"), ("y", "integer")]);
        let types: Vec<_> = frames.iter().map(|frame| frame.columns[0].data_type().clone()).collect();
        assert_eq!(types, [DataType::Int64, DataType::Float64, DataType::Float64]);
        assert_eq!(frames[1].columns[0].as_primitive::<Float64Type>().values(), &[3.0, 4.5]);
        assert_eq!(frames[0].columns[1].as_primitive::<Int64Type>().value(0), (1 << 53) + 1);
        let columns = summary.columns_json();
        assert_eq!((&columns[0]["min"], &columns[0]["max"], &columns[0]["mean"]), (&json!(1.0), &json!(5.0), &json!(3.1)));
    }

    #[test]
    fn beyond_64_bits_an_integer_is_a_number() {
        assert_eq!(kinds(&read(Format::Csv, "x\n1\n9223372036854775808\n").0), [("x", "number")]);
        assert_eq!(kinds(&read(Format::Ndjson, "{\"x\":9223372036854775808}").0), [("x", "number")]);
    }

    #[test]
    fn a_column_that_begins_with_missing_cells_takes_the_type_of_its_first_value() {
        for (value, kind) in [("7", "integer"), ("7.5", "number"), ("true", "boolean"), ("2024-01-01", "timestamp"), ("abc", "category")] {
            let text = format!("x,y\n,1\n,2\n,3\n{value},4\n,5\n");
            let (summary, frames) = read_with(Format::Csv, &options(2, 3), text.as_bytes()).unwrap();
            assert_eq!(kinds(&summary)[0], ("x", kind));
            assert_eq!(frames.iter().map(|frame| frame.columns[0].null_count()).sum::<usize>(), 4);
            assert!(!rows(&summary, &frames)[3]["x"].is_null());
        }
    }

    #[test]
    fn categories_that_become_too_many_go_on_as_texts() {
        let mut text = "x\n".to_owned();
        for index in 0..3000 {
            text += &format!("t{}\n", if index < 100 { index % 3 } else { index });
        }
        let (summary, frames) = read_with(Format::Csv, &options(50, 500), text.as_bytes()).unwrap();
        assert_eq!(kinds(&summary), [("x", "text")]);
        assert!(matches!(frames[0].columns[0].data_type(), DataType::Dictionary(..)));
        assert_eq!(frames[5].columns[0].data_type(), &DataType::Utf8);
        assert_eq!(rows(&summary, &frames)[2999]["x"], "t2999");
        assert!(summary.columns_json()[0].get("distinct").is_none());
    }

    #[test]
    fn bad_cells_are_named_by_row_line_and_column_and_not_repeated() {
        let mut text = "name,age\n\n".to_owned();
        for row in 1..=30 {
            text += &format!("\"a\nb\",{}\n", if row == 17 { "secret".to_owned() } else { row.to_string() });
        }
        let faults = csv_faults(&text);
        assert_eq!(faults, [("/rows/16/age".to_owned(), "row 17 (line 35), column \"age\": not a number".to_owned())]);
        let infinite = csv_faults("x~y\n1\n2\n1e400\ninf\n-Infinity\n");
        assert_eq!(infinite.len(), 3);
        assert_eq!(infinite[0], ("/rows/2/x~0y".to_owned(), "row 3 (line 4), column \"x~y\": not a finite 64-bit number".to_owned()));
    }

    #[test]
    fn uneven_rows_are_told_with_both_counts() {
        let found = csv_faults("a,b,c\n1,2,3\n1,2\n1,2,3,4\n\"1\",2,3\n1,2,3,\n");
        let details: Vec<&str> = found.iter().map(|(_, detail)| detail.as_str()).collect();
        assert_eq!(
            details,
            [
                "row 2 (line 3): 2 cells where the header has 3",
                "row 3 (line 4): 4 cells where the header has 3",
                "row 5 (line 6): 4 cells where the header has 3"
            ]
        );
    }

    #[test]
    fn the_reading_stops_after_twenty_faults() {
        let mut text = "x\n".to_owned() + &"1\n".repeat(1000);
        text += &"z\n".repeat(100);
        let mut reader = Reader::new(Format::Csv, ReadOptions::default());
        let outcome = reader.push(text.as_bytes(), &mut |_| Ok(())).and_then(|()| reader.finish(&mut |_| Ok(())).map(|_| ()));
        let Err(ReadError::Faults(faults)) = outcome else { panic!() };
        assert_eq!(faults.into_vec().len(), 20);
    }

    #[test]
    fn names_that_are_none_are_faults_by_column() {
        assert_eq!(
            csv_faults("a,,a\n1,2,3\n").iter().map(|(pointer, _)| pointer.as_str()).collect::<Vec<_>>(),
            ["/columns/1", "/columns/2"]
        );
        assert_eq!(csv_faults("cafe\u{301},caf\u{e9}\n1,2\n")[0].0, "/columns/1");
        assert_eq!(csv_faults(b"a,\xff\n1,2\n")[0].0, "/columns/1");
        assert_eq!(csv_faults(b"a,b\nx,1\n\xff,2\n")[0].1, "row 2 (line 3), column \"a\": not valid UTF-8");
    }

    #[test]
    fn empty_bodies_are_syntax_errors_and_empty_tables_are_tables() {
        for (format, text) in [
            (Format::Csv, ""),
            (Format::Csv, "\n\r\n"),
            (Format::Csv, "\u{feff}"),
            (Format::Ndjson, "\n"),
            (Format::Json, " "),
            (Format::Json, "{}"),
            (Format::Json, "[]"),
            (Format::Json, "{\"rows\":[]}"),
        ] {
            let error = read_with(format, &ReadOptions::default(), text.as_bytes()).unwrap_err();
            assert!(matches!(error, ReadError::Syntax(_)), "{text:?} {error:?}");
        }
        for (format, text) in
            [(Format::Csv, "a,b"), (Format::Csv, "a,b\r\n\r\n"), (Format::Json, "{\"columns\":[\"a\",\"b\"],\"data\":[]}")]
        {
            let (summary, frames) = read(format, text);
            assert_eq!((kinds(&summary), summary.rows, frames.len()), (vec![("a", "number"), ("b", "number")], 0, 0));
        }
    }

    #[test]
    fn semicolons_and_tabs_are_noticed_in_the_header() {
        assert_eq!(kinds(&read(Format::Csv, "a;b\n1;2,5\n1;x\n").0), [("a", "integer"), ("b", "category")]);
        assert_eq!(kinds(&read(Format::Csv, "a\tb\n1\t2\n").0).len(), 2);
        assert_eq!(kinds(&read(Format::Csv, "\"a;b\"\n1\n").0), [("a;b", "integer")]);
    }

    #[test]
    fn forced_types_hold_and_unknown_columns_in_them_are_faults() {
        let forced = |types: &[(&str, ColumnType)]| ReadOptions {
            types: types.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect(),
            ..ReadOptions::default()
        };
        let types = forced(&[("z", ColumnType::Category), ("i", ColumnType::Number), ("t", ColumnType::Text)]);
        let text = "z,i,t\n01,1,5\n02,2,6\n01,3,\n";
        let (summary, frames) = read_with(Format::Csv, &types, text.as_bytes()).unwrap();
        assert_eq!(kinds(&summary), [("z", "category"), ("i", "number"), ("t", "text")]);
        assert_eq!(frames[0].columns[0].as_dictionary::<Int32Type>().values().as_string::<i32>().value(0), "01");
        assert_eq!(frames[0].columns[1].data_type(), &DataType::Float64);
        let json = "[{\"z\":1,\"i\":\"2\",\"t\":true},{\"z\":2,\"i\":3,\"t\":4.50}]";
        let (summary, frames) = read_with(Format::Json, &types, json.as_bytes()).unwrap();
        assert_eq!(rows(&summary, &frames)[1], json!({"z": "2", "i": 3.0, "t": "4.50"}));
        let unknown = faults(Format::Csv, &forced(&[("q", ColumnType::Text)]), "a\n1\n");
        assert_eq!(unknown[0].0, "/types/0");
        assert_eq!(faults(Format::Csv, &forced(&[("a", ColumnType::Integer)]), "a\n1.5\n").len(), 1);
    }

    #[test]
    fn appended_rows_must_have_the_columns_in_any_order() {
        let column = |name: &str, kind| Column { name: name.to_owned(), kind };
        let schema =
            Schema { columns: vec![column("n", ColumnType::Number), column("i", ColumnType::Integer), column("c", ColumnType::Category)] };
        let expect = ReadOptions { expect: Some(schema.clone()), ..ReadOptions::default() };
        let (summary, frames) = read_with(Format::Csv, &expect, b"c,i,n\nx,1,2\n7,2,3.5\n").unwrap();
        assert_eq!(summary.schema, schema);
        assert_eq!(frames[0].columns[0].as_primitive::<Float64Type>().values(), &[2.0, 3.5]);
        assert_eq!(rows(&summary, &frames)[1]["c"], "7");
        let (widened, _) = read_with(Format::Csv, &expect, b"c,i,n\nx,1.5,2\n").unwrap();
        let mut merged = summary.clone();
        merged.merge(&widened).unwrap();
        assert_eq!((kinds(&merged)[1], merged.rows), (("i", "number"), 3));
        assert_eq!(faults(Format::Csv, &expect, "c,i\nx,1\n")[0].1, "column \"n\" is missing");
        assert_eq!(faults(Format::Csv, &expect, "c,i,n,z\nx,1,2,3\n")[0].0, "/columns/3");
        assert_eq!(faults(Format::Csv, &expect, "c,i,n\nx,1,oops\n")[0].0, "/rows/0/n");
        let (summary, frames) = read_with(Format::Ndjson, &expect, b"{\"i\":1,\"c\":\"x\"}").unwrap();
        assert_eq!(rows(&summary, &frames)[0], json!({"n": null, "i": 1, "c": "x"}));
        assert_eq!(faults(Format::Ndjson, &expect, "{\"i\":1,\"q\":2}")[0].0, "/rows/0/q");
        assert_eq!(read_with(Format::Json, &expect, b"{\"rows\":[]}").unwrap().0.rows, 0);
    }

    #[test]
    fn json_columns_are_the_union_of_the_first_keys() {
        let (summary, frames) = read(Format::Ndjson, "{\"a\":1,\"b\":\"x\"}\n{\"c\":true,\"a\":2.5}\n{\"b\":null,\"t\":\"2024-01-01\"}\n");
        assert_eq!(kinds(&summary), [("a", "number"), ("b", "category"), ("c", "boolean"), ("t", "timestamp")]);
        assert_eq!(rows(&summary, &frames)[1], json!({"a": 2.5, "b": null, "c": true, "t": null}));
    }

    #[test]
    fn bad_rows_of_json_are_named() {
        let short = options(1, 10);
        let one = |text: &str| faults(Format::Ndjson, &short, text).remove(0);
        assert_eq!(
            one("{\"a\":1}\n\n{\"a\":1,\"new\":2}\n"),
            ("/rows/1/new".to_owned(), "row 2 (line 3): there is no column \"new\"".to_owned())
        );
        assert_eq!(one("{\"a\":1}\n{\"a\":[1]}").1, "row 2 (line 2), column \"a\": a list or an object where a single value belongs");
        assert_eq!(one("{\"a\":1}\n{\"a\":\"secret\"}").1, "row 2 (line 2), column \"a\": not a number");
        assert_eq!(one("{\"a\":\"x\"}\n{\"a\":5}").1, "row 2 (line 2), column \"a\": not a text");
        assert_eq!(one("{\"a\":1}\n{\"a\":1,\"a\":2}").1, "row 2 (line 2): the key \"a\" occurs twice");
        assert_eq!(one("{\"a\":1}\n{\"a\":1e999}").1, "row 2 (line 2), column \"a\": not a finite 64-bit number");
        assert_eq!(faults(Format::Json, &short, "{\"columns\":[\"a\",\"b\"],\"data\":[[1,2],[1],[1,2,3]]}").len(), 2);
        assert_eq!(faults(Format::Json, &short, "{\"rows\":[{\"a\":1}],\"more\":1}")[0].0, "/more");
        for text in [
            "[1]",
            "[{\"a\":1}",
            "[{\"a\":1}]]",
            "[{\"a\":1},]",
            "[{\"a\":1} {\"a\":1}]",
            "[{\"a\":1]]",
            "{\"rows\":{}}",
            "{\"rows\":[{\"a\":1}],}",
            "{\"data\":[[1]],\"columns\":[\"a\"]}",
            "{\"columns\":[\"a\"]}",
            "5",
        ] {
            let error = read_with(Format::Json, &short, text.as_bytes()).unwrap_err();
            assert!(matches!(error, ReadError::Syntax(_)), "{text} {error:?}");
        }
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        assert!(matches!(read_with(Format::Ndjson, &short, deep.as_bytes()), Err(ReadError::Syntax(_))));
        assert!(matches!(read_with(Format::Json, &short, format!("[{deep}").as_bytes()), Err(ReadError::Syntax(_))));
    }

    #[test]
    fn rows_beyond_the_limit_are_refused() {
        let long = "x".repeat(LONGEST_ROW + 10);
        for (format, text) in [
            (Format::Csv, format!("a\n{long}\n")),
            (Format::Ndjson, format!("{{\"a\":\"{long}\"}}\n")),
            (Format::Json, format!("[{{\"a\":\"{long}\"}}]")),
        ] {
            assert_eq!(read_pieces(format, &ReadOptions::default(), text.as_bytes().chunks(1 << 20)).unwrap_err(), ReadError::LongRow);
            assert_eq!(read_with(format, &ReadOptions::default(), text.as_bytes()).unwrap_err(), ReadError::LongRow);
        }
    }

    #[test]
    fn the_first_bytes_tell_the_format() {
        for (head, format) in [
            (&b"a,b\n1,2"[..], Format::Csv),
            (b"", Format::Csv),
            (b"\xef\xbb\xbf {\"rows\" : [", Format::Json),
            (b"{\"columns\":[\"a\"],\"data\":[]}", Format::Json),
            (b"{\"rows\":3}\n{\"rows\":4}", Format::Ndjson),
            (b"{\"a\":1}\n", Format::Ndjson),
            (b"\n[{\"a\":1}]", Format::Json),
            (b"PAR1\x15", Format::Parquet),
            (b"\xff\xff\xff\xff\x10", Format::ArrowStream),
        ] {
            assert_eq!(Format::sniff(head), format, "{head:?}");
        }
        assert!(matches!(read_with(Format::Parquet, &ReadOptions::default(), b"PAR1"), Err(ReadError::Syntax(_))));
    }

    #[test]
    fn what_is_written_reads_back_to_the_bit() {
        let numbers = [0.1, -0.0, f64::from_bits(1), f64::MIN_POSITIVE, f64::MAX, -1.0 / 3.0, 1e22, 123_456_789.0];
        let texts = ["", "NA", " padded ", "a,b", "q\"q", "line\nend", "é;\t", "plain"];
        let name = "odd, \"name\"; é~";
        let mut document = format!("{{\"columns\":[{},\"x\",\"when\"],\"data\":[", serde_json::to_string(name).unwrap()).into_bytes();
        for (index, (number, text)) in numbers.iter().zip(texts).enumerate() {
            let row = json!([text, number, if index % 2 == 0 { Some("2024-01-01T00:00:00.5Z") } else { None }]);
            document.extend_from_slice(if index == 0 { b"" } else { b"," });
            document.extend_from_slice(row.to_string().as_bytes());
        }
        document.extend_from_slice(b"]}");
        let (summary, frames) = read(Format::Json, &document);
        assert_eq!(kinds(&summary), [(name, "category"), ("x", "number"), ("when", "timestamp")]);
        let bits = |frames: &[Frame]| {
            frames[0].columns[1].as_primitive::<Float64Type>().values().iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(bits(&frames), numbers.map(f64::to_bits));
        let (mut csv, mut ndjson) = (Vec::new(), Vec::new());
        write::csv_header(&mut csv, &summary.schema);
        write::csv_rows(&mut csv, &summary.schema, &frames[0]);
        write::ndjson_rows(&mut ndjson, &summary.schema, &frames[0]);
        let (from_ndjson, ndjson_frames) = read(Format::Ndjson, &ndjson);
        assert_eq!((&from_ndjson, shown(&ndjson_frames)), (&summary, shown(&frames)));
        assert_eq!(bits(&ndjson_frames), bits(&frames));
        let (from_csv, csv_frames) = read(Format::Csv, &csv);
        assert_eq!(from_csv.schema, summary.schema);
        assert_eq!(bits(&csv_frames), bits(&frames));
        let expected = rows(&summary, &frames);
        let found = rows(&from_csv, &csv_frames);
        assert!(found[0][name].is_null(), "CSV cannot tell an empty text from a missing cell");
        assert_eq!(found[1..], expected[1..]);
        let mut row = Vec::new();
        write::json_row(&mut row, &summary.schema, &frames[0], 3);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&row).unwrap(), expected[3]);
    }

    #[test]
    fn a_missing_cell_of_an_only_column_is_not_lost_in_csv() {
        let (summary, frames) = read(Format::Ndjson, "{\"a\":1}\n{}\n{\"a\":3}\n");
        let mut csv = Vec::new();
        write::csv_header(&mut csv, &summary.schema);
        write::csv_rows(&mut csv, &summary.schema, &frames[0]);
        assert_eq!(csv, b"a\n1\n\"\"\n3\n");
        assert_eq!(read(Format::Csv, &csv).0, summary);
    }
}
