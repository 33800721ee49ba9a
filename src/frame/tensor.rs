//! Rows of requests that come as tensors, as the Open Inference Protocol has them: one tensor of n×p numbers, or one tensor of n elements a
//! column. Sizes are held against the bytes that are there before anything is allocated. Not here: the JSON around them.

use std::borrow::Cow;

use super::fault::{Fault, Faults, escaped};
use super::input::{InputKind, InputSchema};
use super::rows::{
    MISSING, NO_BOOLEAN, NO_NUMBER, NO_TIMESTAMP, NOT_FINITE, ParseError, Refusal, Rows, missing, most_rows, of_limited, too_many_rows,
};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the protocol's own names
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bytes,
    Bf16,
}

impl Datatype {
    /// The type of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "BOOL" => Self::Bool,
            "UINT8" => Self::Uint8,
            "UINT16" => Self::Uint16,
            "UINT32" => Self::Uint32,
            "UINT64" => Self::Uint64,
            "INT8" => Self::Int8,
            "INT16" => Self::Int16,
            "INT32" => Self::Int32,
            "INT64" => Self::Int64,
            "FP16" => Self::Fp16,
            "FP32" => Self::Fp32,
            "FP64" => Self::Fp64,
            "BYTES" => Self::Bytes,
            "BF16" => Self::Bf16,
            _ => return None,
        })
    }

    /// Bytes of an element; `None` where elements differ.
    fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

/// The elements of a tensor, row by row.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements<'a> {
    /// Little-endian; of `BYTES`, each element's length as a u32 before it.
    Binary(&'a [u8]),
    /// Numbers of JSON; NaN is null.
    Numbers(Vec<f64>),
    /// Booleans of JSON.
    Booleans(Vec<bool>),
    /// Strings of JSON.
    Texts(Vec<String>),
    /// Texts where they came.
    Slices(Vec<&'a [u8]>),
}

impl Elements<'_> {
    /// How many there are; of binary ones, bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Binary(bytes) => bytes.len(),
            Self::Numbers(values) => values.len(),
            Self::Booleans(values) => values.len(),
            Self::Texts(values) => values.len(),
            Self::Slices(values) => values.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An input tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: String,
    /// Its extents.
    pub shape: Vec<u64>,
    /// What its elements are.
    pub datatype: Datatype,
    /// Its elements.
    pub elements: Elements<'a>,
}

/// Takes the rows of tensors; returns how many there are in `rows.count`.
///
/// # Errors
/// [`ParseError::Syntax`] for tensors that are not what they say or do not go together, [`ParseError::Faults`] for cells; `rows` is empty
/// then.
pub fn parse_tensors(tensors: &[Tensor<'_>], schema: &InputSchema, max_rows: usize, rows: &mut Rows) -> Result<(), ParseError> {
    rows.values.clear();
    rows.ids.clear();
    rows.count = 0;
    let result = parse(tensors, schema, max_rows, rows);
    if result.is_err() {
        rows.values.clear();
        rows.count = 0;
    }
    result
}

fn malformed<T>(place: usize, member: &str, detail: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError::Syntax(Fault { pointer: format!("/inputs/{place}/{member}"), detail: detail.into() }))
}

fn parse(tensors: &[Tensor<'_>], schema: &InputSchema, max_rows: usize, rows: &mut Rows) -> Result<(), ParseError> {
    let mut views = Vec::with_capacity(tensors.len());
    for (place, tensor) in tensors.iter().enumerate() {
        views.push(View::of(place, tensor)?);
    }
    // One table of all columns, unless its name says that it is one of them.
    if let ([tensor], [view]) = (tensors, views.as_slice())
        && (schema.place_of(&tensor.name).is_none()
            || matches!(*tensor.shape, [_, columns] if columns > 1 && [schema.len(), required(schema)].contains(&(columns as usize))))
    {
        return table(tensor, view, schema, max_rows, rows);
    }
    let mut places = vec![None; schema.len()];
    let mut count = None;
    for (index, (tensor, view)) in tensors.iter().zip(&views).enumerate() {
        let Some(place) = schema.place_of(&tensor.name) else {
            return malformed(index, "name", format!("the model has no input of this name; it takes {}", names(schema)));
        };
        if !(tensor.shape.len() == 1 || tensor.shape.len() == 2 && tensor.shape[1] == 1) {
            return malformed(index, "shape", format!("input {:?} is one column: its shape is [n] or [n, 1]", schema.inputs()[place].name));
        }
        if places[place].replace(view).is_some() {
            return malformed(index, "name", "this input stands twice");
        }
        if *count.get_or_insert(view.count) != view.count {
            return malformed(index, "shape", "all inputs have the same number of rows");
        }
    }
    let count = count.unwrap_or(0);
    check_rows(count, schema, max_rows)?;
    for (input, place) in schema.inputs().iter().zip(&places) {
        if input.required && place.is_none() {
            let detail =
                format!("the input {:?} is missing; the model takes {}, or one tensor [n, {}]", input.name, names(schema), schema.len());
            return Err(ParseError::Syntax(Fault { pointer: "/inputs".to_owned(), detail }));
        }
    }
    rows.values.resize(count * schema.len(), f64::NAN);
    let mut faults = Faults::default();
    for (place, view) in places.iter().enumerate() {
        let Some(view) = view else { continue };
        for row in 0..count {
            match view.cell(row, place, schema) {
                Ok(value) => rows.values[row * schema.len() + place] = value,
                Err(what) => refuse(&mut faults, schema, row, place, what),
            }
        }
    }
    end(faults, count, rows)
}

/// How many inputs a row must hold, where those stand before what it may hold; else all of them.
fn required(schema: &InputSchema) -> usize {
    let first = schema.inputs().iter().take_while(|input| input.required).count();
    if schema.inputs()[first..].iter().any(|input| input.required) { schema.len() } else { first }
}

/// A table of all inputs, or of those that a row must hold; the others are missing then.
fn table(tensor: &Tensor<'_>, view: &View<'_>, schema: &InputSchema, max_rows: usize, rows: &mut Rows) -> Result<(), ParseError> {
    let whole = schema.len();
    let width = if tensor.shape.last() == Some(&(whole as u64)) { whole } else { required(schema) };
    let count = match tensor.shape.as_slice() {
        [rows, columns] if *columns as usize == width => *rows as usize,
        // One row of all columns.
        [columns] if *columns as usize == width && width > 1 => 1,
        [rows] if width == 1 => *rows as usize,
        _ => {
            return malformed(
                0,
                "shape",
                format!("the model has {width} inputs: the shape is [n, {width}], or there is one tensor for each of {}", names(schema)),
            );
        }
    };
    check_rows(count, schema, max_rows)?;
    let mut faults = Faults::default();
    let plain = schema.inputs().iter().all(|input| matches!(input.kind, InputKind::Number | InputKind::Integer));
    if let (true, Datatype::Fp64, Elements::Binary(bytes)) = (plain, tensor.datatype, &tensor.elements) {
        rows.values.extend(bytes.as_chunks().0.iter().map(|word| f64::from_le_bytes(*word)));
        let wrong = |(place, value): (usize, &f64)| !(value.is_finite() || value.is_nan() && !schema.inputs()[place % width].required);
        if let Some(place) = rows.values.iter().enumerate().position(wrong) {
            let what = if rows.values[place].is_nan() { MISSING } else { NOT_FINITE };
            refuse(&mut faults, schema, place / width, place % width, what);
        }
        widen(&mut rows.values, width, whole);
        return end(faults, count, rows);
    }
    rows.values.reserve(count * width);
    for row in 0..count {
        for place in 0..width {
            match view.cell(row * width + place, place, schema) {
                Ok(value) => rows.values.push(value),
                Err(what) => {
                    rows.values.push(f64::NAN);
                    refuse(&mut faults, schema, row, place, what);
                }
            }
        }
    }
    widen(&mut rows.values, width, whole);
    end(faults, count, rows)
}

/// Makes rows of `whole` cells of rows of fewer.
fn widen(values: &mut Vec<f64>, width: usize, whole: usize) {
    if width < whole && width > 0 {
        let missing = std::iter::repeat_n(f64::NAN, whole - width);
        *values = values.chunks_exact(width).flat_map(|row| row.iter().copied().chain(missing.clone())).collect();
    }
}

/// Most rows of a model without inputs: they have no cells, so a few bytes could ask for any number of answers.
pub(super) const MOST_EMPTY_ROWS: usize = 1 << 16;

fn check_rows(count: usize, schema: &InputSchema, max_rows: usize) -> Result<(), ParseError> {
    let most = if schema.is_empty() { max_rows.min(MOST_EMPTY_ROWS) } else { most_rows(max_rows, schema.len()) };
    if count > most { Err(ParseError::TooLarge(too_many_rows(most))) } else { Ok(()) }
}

fn refuse(faults: &mut Faults, schema: &InputSchema, row: usize, place: usize, what: Refusal) {
    let name = &schema.inputs()[place].name;
    faults.note(place, what);
    faults.push(|| format!("/rows/{row}/{}", escaped(name)), || format!("row {}, column {name:?}: {what}", row + 1));
}

fn end(faults: Faults, count: usize, rows: &mut Rows) -> Result<(), ParseError> {
    rows.count = count;
    if faults.is_empty() { Ok(()) } else { Err(ParseError::Faults(faults)) }
}

/// The inputs, some of them, for a message.
fn names(schema: &InputSchema) -> String {
    const TOLD: usize = 8;
    let mut names: Vec<String> = schema.inputs().iter().take(TOLD).map(|input| format!("{:?}", input.name)).collect();
    if schema.len() > TOLD {
        names.push("…".to_owned());
    }
    names.join(", ")
}

/// A tensor whose elements are all there.
struct View<'a> {
    datatype: Datatype,
    elements: &'a Elements<'a>,
    count: usize,
    /// Where the texts of a binary `BYTES` tensor begin and end.
    texts: Vec<&'a [u8]>,
}

impl<'a> View<'a> {
    fn of(place: usize, tensor: &'a Tensor<'a>) -> Result<Self, ParseError> {
        let count = tensor.shape.iter().try_fold(1_u64, |count, extent| count.checked_mul(*extent));
        let Some(count) = count.and_then(|count| usize::try_from(count).ok()) else {
            return malformed(place, "shape", "the shape has more elements than any machine holds");
        };
        let mut texts = Vec::new();
        let there = match &tensor.elements {
            elements @ (Elements::Numbers(_) | Elements::Booleans(_) | Elements::Texts(_) | Elements::Slices(_)) => elements.len(),
            Elements::Binary(bytes) => match tensor.datatype.size() {
                Some(size) => {
                    if Some(bytes.len()) != count.checked_mul(size) {
                        let detail = format!("the shape says {count} elements of {size} bytes, and there are {} bytes", bytes.len());
                        return malformed(place, "shape", detail);
                    }
                    count
                }
                None => {
                    let mut rest = *bytes;
                    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
                        let length = u32::from_le_bytes(*length) as usize;
                        let Some((text, tail)) = tail.split_at_checked(length) else {
                            return malformed(
                                place,
                                "data",
                                format!("element {} says {length} bytes, and there are {}", texts.len(), tail.len()),
                            );
                        };
                        texts.push(text);
                        rest = tail;
                    }
                    if !rest.is_empty() {
                        return malformed(place, "data", "the elements end within a length");
                    }
                    texts.len()
                }
            },
        };
        if there != count {
            return malformed(place, "shape", format!("the shape says {count} elements, and there are {there}"));
        }
        let fits = match (&tensor.elements, tensor.datatype) {
            (Elements::Binary(_), _) => true,
            (Elements::Numbers(values), Datatype::Bytes) => values.is_empty(),
            (Elements::Booleans(_), datatype) => datatype == Datatype::Bool,
            (Elements::Numbers(_), _) => true,
            (Elements::Texts(_) | Elements::Slices(_), datatype) => datatype == Datatype::Bytes,
        };
        if !fits {
            return malformed(place, "data", "the data are not of the datatype");
        }
        Ok(Self { datatype: tensor.datatype, elements: &tensor.elements, count, texts })
    }

    /// The value of an element in a column.
    fn cell(&self, index: usize, place: usize, schema: &InputSchema) -> Result<f64, Refusal> {
        match self.elements {
            Elements::Texts(texts) => schema.value_of_text(place, texts[index].as_bytes()),
            Elements::Slices(texts) => schema.value_of_text(place, texts[index]),
            Elements::Booleans(values) => of_boolean(values[index], place, schema),
            Elements::Numbers(values) if self.datatype == Datatype::Bool => of_boolean(values[index] != 0.0, place, schema),
            Elements::Numbers(values) => of_number(values[index], None, place, schema),
            Elements::Binary(_) if self.datatype == Datatype::Bytes => schema.value_of_text(place, self.texts[index]),
            Elements::Binary(bytes) => match binary(self.datatype, bytes, index) {
                Number::Boolean(value) => of_boolean(value, place, schema),
                Number::Whole(value) => of_number(value as f64, Some(value), place, schema),
                Number::Float(value) => of_number(value, None, place, schema),
            },
        }
    }
}

enum Number {
    Boolean(bool),
    Whole(i128),
    Float(f64),
}

/// An element of a tensor of numbers, whose length was checked.
fn binary(datatype: Datatype, bytes: &[u8], index: usize) -> Number {
    fn word<const N: usize>(bytes: &[u8], index: usize) -> [u8; N] {
        bytes.as_chunks::<N>().0[index]
    }
    match datatype {
        Datatype::Bool => Number::Boolean(bytes[index] != 0),
        Datatype::Uint8 => Number::Whole(bytes[index].into()),
        Datatype::Int8 => Number::Whole(i8::from_le_bytes(word(bytes, index)).into()),
        Datatype::Uint16 => Number::Whole(u16::from_le_bytes(word(bytes, index)).into()),
        Datatype::Int16 => Number::Whole(i16::from_le_bytes(word(bytes, index)).into()),
        Datatype::Uint32 => Number::Whole(u32::from_le_bytes(word(bytes, index)).into()),
        Datatype::Int32 => Number::Whole(i32::from_le_bytes(word(bytes, index)).into()),
        Datatype::Uint64 => Number::Whole(u64::from_le_bytes(word(bytes, index)).into()),
        Datatype::Int64 => Number::Whole(i64::from_le_bytes(word(bytes, index)).into()),
        Datatype::Fp16 => Number::Float(half(u16::from_le_bytes(word(bytes, index)))),
        Datatype::Bf16 => Number::Float(f32::from_bits(u32::from(u16::from_le_bytes(word(bytes, index))) << 16).into()),
        Datatype::Fp32 => Number::Float(f32::from_le_bytes(word(bytes, index)).into()),
        Datatype::Fp64 | Datatype::Bytes => Number::Float(f64::from_le_bytes(word(bytes, index))),
    }
}

/// An IEEE 754 binary16.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = ((bits >> 10) & 0x1f, f64::from(bits & 0x3ff));
    let size = match exponent {
        0 => fraction * 2.0_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2.0_f64.powi(i32::from(exponent) - 15),
    };
    if bits & 0x8000 == 0 { size } else { -size }
}

/// A number as the cell of an input; `exact` is the whole number that it was.
pub(super) fn of_number(value: f64, exact: Option<i128>, place: usize, schema: &InputSchema) -> Result<f64, Refusal> {
    let input = &schema.inputs()[place];
    if value.is_nan() {
        return missing(input.required);
    }
    match &input.kind {
        InputKind::Number | InputKind::Integer if value.is_finite() => Ok(value),
        InputKind::Number | InputKind::Integer => Err(NOT_FINITE),
        InputKind::Above(above) => of_limited(value, *above),
        InputKind::Timestamp => Err(NO_TIMESTAMP),
        InputKind::Boolean if value == 0.0 || value == 1.0 => Ok(value.abs()),
        InputKind::Boolean => Err(NO_BOOLEAN),
        InputKind::Category { .. } => {
            let text: Cow<'_, str> = match exact {
                Some(whole) => whole.to_string().into(),
                // A whole number has no fraction in its level's text.
                None => value.to_string().into(),
            };
            schema.value_of_text(place, text.as_bytes())
        }
    }
}

/// A boolean as the cell of an input.
pub(super) fn of_boolean(value: bool, place: usize, schema: &InputSchema) -> Result<f64, Refusal> {
    match &schema.inputs()[place].kind {
        InputKind::Number | InputKind::Integer | InputKind::Above(_) => Err(NO_NUMBER),
        InputKind::Timestamp => Err(NO_TIMESTAMP),
        InputKind::Boolean => Ok(f64::from(u8::from(value))),
        InputKind::Category { .. } => schema.value_of_text(place, if value { b"true" } else { b"false" }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::input::{Input, Unseen};
    use super::*;

    fn schema() -> InputSchema {
        let levels = [("north", 0), ("south", 1)].map(|(level, index)| (level.to_owned(), index)).into();
        let input = |name: &str, kind| Input { name: name.to_owned(), kind, required: true };
        InputSchema::new(vec![
            input("x", InputKind::Number),
            input("flag", InputKind::Boolean),
            input("region", InputKind::Category { levels, unseen: Unseen::Error }),
        ])
    }

    fn numbers(width: usize) -> InputSchema {
        InputSchema::new((0..width).map(|place| Input { name: format!("c{place}"), kind: InputKind::Number, required: true }).collect())
    }

    fn tensor<'a>(name: &str, shape: &[u64], datatype: Datatype, elements: Elements<'a>) -> Tensor<'a> {
        Tensor { name: name.to_owned(), shape: shape.to_vec(), datatype, elements }
    }

    fn taken(tensors: &[Tensor<'_>], schema: &InputSchema) -> Result<Vec<f64>, ParseError> {
        let mut rows = Rows::default();
        parse_tensors(tensors, schema, 1000, &mut rows).map(|()| rows.values)
    }

    #[test]
    fn a_table_of_numbers_comes_in_every_type() {
        let schema = numbers(2);
        let values = [1.0, 2.0, -3.0, 4.0];
        let bytes = |encode: fn(f64) -> Vec<u8>| values.iter().flat_map(|value| encode(*value)).collect::<Vec<u8>>();
        for (datatype, bytes) in [
            (Datatype::Fp64, bytes(|value| value.to_le_bytes().to_vec())),
            (Datatype::Fp32, bytes(|value| (value as f32).to_le_bytes().to_vec())),
            (Datatype::Int64, bytes(|value| (value as i64).to_le_bytes().to_vec())),
            (Datatype::Int32, bytes(|value| (value as i32).to_le_bytes().to_vec())),
            (Datatype::Int16, bytes(|value| (value as i16).to_le_bytes().to_vec())),
            (Datatype::Int8, bytes(|value| (value as i8).to_le_bytes().to_vec())),
            (Datatype::Bf16, bytes(|value| ((value as f32).to_bits() >> 16).to_le_bytes()[..2].to_vec())),
            (Datatype::Fp16, vec![0x00, 0x3c, 0x00, 0x40, 0x00, 0xc2, 0x00, 0x44]),
        ] {
            assert_eq!(taken(&[tensor("input", &[2, 2], datatype, Elements::Binary(&bytes))], &schema).unwrap(), values, "{datatype:?}");
        }
        assert_eq!(taken(&[tensor("input", &[2, 2], Datatype::Fp64, Elements::Numbers(values.to_vec()))], &schema).unwrap(), values);
        assert_eq!(half(0x0001), 2.0_f64.powi(-24));
        assert_eq!((half(0xfc00), half(0x7e00).is_nan()), (f64::NEG_INFINITY, true));
    }

    #[test]
    fn columns_come_each_in_a_tensor() {
        let texts = b"\x05\0\0\0south\x05\0\0\0north";
        let found = taken(
            &[
                tensor("region", &[2, 1], Datatype::Bytes, Elements::Binary(texts)),
                tensor("flag", &[2], Datatype::Bool, Elements::Binary(&[1, 0])),
                tensor("x", &[2], Datatype::Int64, Elements::Numbers(vec![7.0, 8.0])),
            ],
            &schema(),
        );
        assert_eq!(found.unwrap(), [7.0, 1.0, 1.0, 8.0, 0.0, 0.0]);
    }

    #[test]
    fn a_table_may_leave_out_what_a_row_need_not_hold() {
        let input = |name: &str, required| Input { name: name.to_owned(), kind: InputKind::Number, required };
        let schema = InputSchema::new(vec![input("a", true), input("b", true), input("c", false)]);
        let bytes: Vec<u8> = [1.0_f64, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        for elements in [Elements::Numbers(vec![1.0, 2.0, 3.0, 4.0]), Elements::Binary(&bytes)] {
            let values = taken(&[tensor("input", &[2, 2], Datatype::Fp64, elements)], &schema).unwrap();
            assert!(values[2].is_nan() && values[5].is_nan() && [values[0], values[1], values[3], values[4]] == [1.0, 2.0, 3.0, 4.0]);
        }
        assert!(taken(&[tensor("input", &[4, 1], Datatype::Fp64, Elements::Numbers(vec![1.0; 4]))], &schema).is_err());
        let columns = [("a", 1.0), ("b", 2.0)].map(|(name, value)| tensor(name, &[1], Datatype::Fp64, Elements::Numbers(vec![value])));
        assert!(taken(&columns, &schema).unwrap()[2].is_nan());
        // What may be missing may stand before what must be there: then the table has all columns, and NaN where a number is missing.
        let schema = InputSchema::new(vec![input("c", false), input("a", true)]);
        for (values, good) in [([f64::NAN, 1.0], true), ([1.0, f64::NAN], false), ([f64::INFINITY, 1.0], false)] {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!(taken(&[tensor("input", &[1, 2], Datatype::Fp64, Elements::Binary(&bytes))], &schema).is_ok(), good, "{values:?}");
        }
        assert!(taken(&[tensor("input", &[1, 1], Datatype::Fp64, Elements::Numbers(vec![1.0]))], &schema).is_err());
    }

    #[test]
    fn tensors_that_lie_are_refused_by_place() {
        let eight = [0_u8; 8];
        for (tensors, pointer) in [
            (vec![tensor("t", &[1, 3], Datatype::Fp64, Elements::Binary(&eight))], "/inputs/0/shape"),
            (vec![tensor("t", &[u64::MAX, 2], Datatype::Fp64, Elements::Binary(&eight))], "/inputs/0/shape"),
            (vec![tensor("t", &[1 << 40, 1 << 20], Datatype::Fp64, Elements::Binary(&eight))], "/inputs/0/shape"),
            (vec![tensor("t", &[1, 2], Datatype::Fp32, Elements::Binary(&eight))], "/inputs/0/shape"),
            (vec![tensor("t", &[1, 3], Datatype::Bytes, Elements::Binary(b"\xff\xff\xff\xff"))], "/inputs/0/data"),
            (vec![tensor("t", &[1, 3], Datatype::Bytes, Elements::Binary(b"\x01\0"))], "/inputs/0/data"),
            (vec![tensor("t", &[1, 3], Datatype::Fp64, Elements::Numbers(vec![1.0]))], "/inputs/0/shape"),
            (vec![tensor("x", &[1], Datatype::Fp64, Elements::Texts(vec!["1".to_owned()]))], "/inputs/0/data"),
            (vec![tensor("x", &[1], Datatype::Fp64, Elements::Binary(&eight))], "/inputs"),
            (
                vec![
                    tensor("x", &[1], Datatype::Fp64, Elements::Binary(&eight)),
                    tensor("z", &[1], Datatype::Bool, Elements::Binary(&[1])),
                ],
                "/inputs/1/name",
            ),
            (
                vec![
                    tensor("x", &[1], Datatype::Fp64, Elements::Binary(&eight)),
                    tensor("x", &[1], Datatype::Fp64, Elements::Binary(&eight)),
                ],
                "/inputs/1/name",
            ),
            (
                vec![
                    tensor("x", &[1], Datatype::Fp64, Elements::Binary(&eight)),
                    tensor("flag", &[2], Datatype::Bool, Elements::Binary(&[1, 0])),
                ],
                "/inputs/1/shape",
            ),
        ] {
            match taken(&tensors, &schema()) {
                Err(ParseError::Syntax(fault)) => assert_eq!(fault.pointer, pointer, "{}", fault.detail),
                other => panic!("{tensors:?} gave {other:?}"),
            }
        }
        let nan = f64::NAN.to_le_bytes();
        for elements in [Elements::Binary(&nan), Elements::Numbers(vec![f64::NAN])] {
            let refused = taken(&[tensor("c0", &[1, 1], Datatype::Fp64, elements)], &numbers(1));
            assert!(matches!(refused, Err(ParseError::Faults(_))), "{refused:?}");
        }
        assert!(matches!(
            taken(&[tensor("c", &[1001], Datatype::Bool, Elements::Booleans(vec![true; 1001]))], &numbers(1)),
            Err(ParseError::TooLarge(_))
        ));
    }
}
