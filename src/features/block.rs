//! Frames of a stored dataset to blocks of the design: X (n×p), Y (n×q) and weights (n), column by column, without the whole matrix.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use faer::MatRef;

use super::encoding::powers;
use super::{Design, Encoding, RawColumn};

/// The columns that a fit reads, in the order in which their arrays are handed to [`assemble`]: those of the design, targets, weights.
#[derive(Clone, Copy, Debug)]
pub struct Roles<'a> {
    /// What the first columns become.
    pub design: &'a Design,
    /// How many targets.
    pub targets: usize,
    /// The classes of the target, when there is one and it has classes: each is a response then, 1 in its rows and 0 elsewhere.
    pub classes: Option<&'a [String]>,
    /// Whether a weights column follows.
    pub weighted: bool,
}

/// A block of rows, reused from one call to the next.
#[derive(Debug, Default)]
pub struct Block {
    rows: usize,
    columns: usize,
    responses: usize,
    design: Vec<f64>,
    design_low: Vec<f64>,
    response: Vec<f64>,
    weights: Vec<f64>,
    kept: Vec<usize>,
    /// Cells of features that are more than a copy of theirs.
    raw: Vec<Vec<f64>>,
}

impl Block {
    /// Rows in it: those of the frame in which nothing is missing.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// X, rows×p.
    #[must_use]
    pub fn design(&self) -> MatRef<'_, f64> {
        MatRef::from_column_major_slice(&self.design, self.rows, self.columns)
    }

    /// What rounding X to floats left behind, rows×p, for designs that know it.
    #[must_use]
    pub fn design_low(&self) -> Option<MatRef<'_, f64>> {
        (!self.design_low.is_empty()).then(|| MatRef::from_column_major_slice(&self.design_low, self.rows, self.columns))
    }

    /// Y, rows×q.
    #[must_use]
    pub fn response(&self) -> MatRef<'_, f64> {
        MatRef::from_column_major_slice(&self.response, self.rows, self.responses)
    }

    /// The weights, when there are any.
    #[must_use]
    pub fn weights(&self) -> Option<&[f64]> {
        (!self.weights.is_empty()).then_some(&self.weights)
    }
}

/// A stored column that does not fit its role.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlockError {
    /// The array is not of a kind that the role can read.
    #[error("a stored column has changed its type since the fit began")]
    Type,
    /// A category that the first pass over the same rows did not meet.
    #[error("a stored category was not seen in the first pass")]
    Level,
    /// A weight below zero, by its row in the frame.
    #[error("a weight is negative")]
    NegativeWeight(usize),
}

/// Whether nothing that must be there is missing in a row.
fn is_complete(design: &Design, arrays: &[ArrayRef], row: usize) -> bool {
    arrays.iter().enumerate().all(|(index, array)| array.is_valid(row) || is_optional(design, index))
}

/// Whether cells of an array may be missing.
fn is_optional(design: &Design, index: usize) -> bool {
    design.columns().get(index).is_some_and(|column| !column.required)
}

/// The complete rows of a range.
fn keep(design: &Design, arrays: &[ArrayRef], rows: std::ops::Range<usize>, kept: &mut Vec<usize>) {
    kept.clear();
    if arrays.iter().enumerate().all(|(index, array)| array.null_count() == 0 || is_optional(design, index)) {
        kept.extend(rows);
    } else {
        kept.extend(rows.filter(|&row| is_complete(design, arrays, row)));
    }
}

/// Fills `block` with the complete rows of `rows` (a range of the frame): rows in which nothing that must be there is missing.
/// Returns how many rows were left out.
///
/// # Errors
/// See [`BlockError`].
pub fn assemble(roles: Roles<'_>, arrays: &[ArrayRef], rows: std::ops::Range<usize>, block: &mut Block) -> Result<usize, BlockError> {
    let mut kept = std::mem::take(&mut block.kept);
    keep(roles.design, arrays, rows.clone(), &mut kept);
    let count = kept.len();
    block.rows = count;
    block.columns = roles.design.width();
    block.responses = roles.classes.map_or(roles.targets, <[String]>::len);
    block.design.clear();
    block.design.resize(count * block.columns, 0.0);
    block.design_low.clear();
    block.design_low.resize(if roles.design.is_extended() { count * block.columns } else { 0 }, 0.0);
    let columns = roles.design.columns();
    let mut result = Ok(());
    for (index, feature) in roles.design.features().iter().enumerate() {
        let (places, own) = (roles.design.places(index), roles.design.columns_of(index));
        let out = &mut block.design[own.start * count..own.end * count];
        result = result.and(match &feature.encoding {
            Encoding::Identity => numbers(&arrays[places[0]], &kept, out),
            Encoding::Polynomial { degree } => {
                let low = &mut block.design_low[own.start * count..own.end * count];
                numbers(&arrays[places[0]], &kept, &mut out[..count]).map(|()| raise(*degree as usize, count, out, low))
            }
            Encoding::Onehot { levels, drop_first, .. } => indicators(&arrays[places[0]], levels, *drop_first, &kept, out),
            encoding => {
                block.raw.resize_with(places.len().max(block.raw.len()), Vec::new);
                let mut read = Ok(());
                for (raw, &place) in block.raw.iter_mut().zip(places) {
                    read = read.and(cells(&arrays[place], &columns[place], &kept, raw));
                }
                read.map(|()| {
                    let mut row = vec![0.0; own.len()];
                    for position in 0..count {
                        row.fill(0.0);
                        encoding.encode(|part| block.raw[part][position], &mut row, &mut []);
                        row.iter().enumerate().for_each(|(column, value)| out[column * count + position] = *value);
                    }
                })
            }
        });
    }
    block.response.clear();
    block.response.resize(count * block.responses, 0.0);
    if let Some(classes) = roles.classes {
        result = result.and(indicators(&arrays[columns.len()], classes, false, &kept, &mut block.response));
    } else {
        for (target, array) in arrays[columns.len()..].iter().take(roles.targets).enumerate() {
            result = result.and(numbers(array, &kept, &mut block.response[target * count..(target + 1) * count]));
        }
    }
    block.weights.clear();
    if roles.weighted {
        block.weights.resize(count, 0.0);
        result = result.and(numbers(&arrays[columns.len() + roles.targets], &kept, &mut block.weights));
        if let Some(position) = block.weights.iter().position(|weight| *weight < 0.0) {
            result = result.and(Err(BlockError::NegativeWeight(kept[position])));
        }
    }
    block.kept = kept;
    result.map(|()| rows.len() - count)
}

/// The cells of complete rows, column by column, as a request would hold them.
#[derive(Debug, Default)]
pub struct Cells {
    kept: Vec<usize>,
    columns: Vec<Vec<f64>>,
}

impl Cells {
    /// Reads the complete rows of a range of a frame.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn read(&mut self, design: &Design, arrays: &[ArrayRef], rows: std::ops::Range<usize>) -> Result<(), BlockError> {
        keep(design, arrays, rows, &mut self.kept);
        self.columns.resize_with(design.columns().len(), Vec::new);
        let columns = design.columns().iter().zip(arrays).zip(&mut self.columns);
        columns.into_iter().try_for_each(|((column, array), out)| cells(array, column, &self.kept, out))
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.kept.len()
    }

    /// Where a row stands in its frame.
    #[must_use]
    pub fn place(&self, row: usize) -> usize {
        self.kept[row]
    }

    /// A cell.
    #[must_use]
    pub fn cell(&self, row: usize, column: usize) -> f64 {
        self.columns[column][row]
    }
}

/// The cells of a column in some rows: numbers, a level's index, a timestamp's microseconds; NaN where it is missing.
fn cells(array: &ArrayRef, column: &RawColumn, kept: &[usize], out: &mut Vec<f64>) -> Result<(), BlockError> {
    out.clear();
    out.resize(kept.len(), f64::NAN);
    if array.null_count() == array.len() {
        return Ok(());
    }
    if let Some((levels, _)) = &column.levels {
        let found = level_texts(array)?;
        let places: std::collections::HashMap<&str, usize> = (0..).zip(levels).map(|(index, level)| (level.as_str(), index)).collect();
        let places: Vec<Option<usize>> = found.texts.iter().map(|text| places.get(text.as_str()).copied()).collect();
        for (out, &row) in out.iter_mut().zip(kept) {
            let level = places.get(found.codes[row]).copied().flatten().ok_or(BlockError::Level)?;
            #[allow(clippy::cast_precision_loss)] // a level's index
            {
                *out = level as f64;
            }
        }
        return Ok(());
    }
    if let DataType::Timestamp(..) = array.data_type() {
        let values = array.as_primitive::<TimestampMicrosecondType>().values();
        for (out, &row) in out.iter_mut().zip(kept) {
            #[allow(clippy::cast_precision_loss)] // exact for three centuries around 1970
            {
                *out = values[row] as f64;
            }
        }
    } else {
        numbers(array, kept, out)?;
    }
    if array.null_count() > 0 {
        out.iter_mut().zip(kept).filter(|(_, row)| array.is_null(**row)).for_each(|(out, _)| *out = f64::NAN);
    }
    Ok(())
}

/// Fills the columns of the second and higher powers from the first, with what rounding leaves behind.
fn raise(degree: usize, count: usize, high: &mut [f64], low: &mut [f64]) {
    for row in 0..count {
        for (power, value) in powers(high[row]).take(degree).enumerate() {
            (high[power * count + row], low[power * count + row]) = (value.hi, value.lo);
        }
    }
}

/// A column's cells as numbers, NaN where they are missing.
pub(super) fn numbers_or_missing(array: &ArrayRef, out: &mut Vec<f64>) -> Result<(), BlockError> {
    out.clear();
    out.resize(array.len(), f64::NAN);
    // A stretch of rows before the column's first value has no type yet.
    if array.null_count() < array.len() {
        let rows: Vec<usize> = (0..array.len()).collect();
        numbers(array, &rows, out)?;
        out.iter_mut().enumerate().filter(|(row, _)| array.is_null(*row)).for_each(|(_, out)| *out = f64::NAN);
    }
    Ok(())
}

fn numbers(array: &ArrayRef, kept: &[usize], out: &mut [f64]) -> Result<(), BlockError> {
    let contiguous =
        kept.first().zip(kept.last()).filter(|(first, last)| *last - *first + 1 == kept.len()).map(|(first, last)| *first..*last + 1);
    match array.data_type() {
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>().values();
            if let Some(range) = contiguous {
                out.copy_from_slice(&values[range]);
            } else {
                for (out, &row) in out.iter_mut().zip(kept) {
                    *out = values[row];
                }
            }
        }
        DataType::Int64 => {
            let values = array.as_primitive::<Int64Type>().values();
            for (out, &row) in out.iter_mut().zip(kept) {
                #[allow(clippy::cast_precision_loss)] // an integer column is a number column to the fit
                {
                    *out = values[row] as f64;
                }
            }
        }
        DataType::Boolean => {
            let values = array.as_boolean();
            for (out, &row) in out.iter_mut().zip(kept) {
                *out = f64::from(u8::from(values.value(row)));
            }
        }
        _ => return Err(BlockError::Type),
    }
    Ok(())
}

/// The level of a cell as text: what the dictionary says, or the canonical text of a whole number or boolean.
pub(crate) fn level_texts(array: &ArrayRef) -> Result<Levels, BlockError> {
    match array.data_type() {
        DataType::Dictionary(..) => {
            let dictionary = array.as_dictionary_opt::<Int32Type>().ok_or(BlockError::Type)?;
            let texts = dictionary.values().as_string_opt::<i32>().ok_or(BlockError::Type)?;
            Ok(Levels {
                texts: texts.iter().map(|text| text.unwrap_or_default().to_owned()).collect(),
                codes: dictionary.keys().values().iter().map(|code| usize::try_from(*code).unwrap_or(0)).collect(),
            })
        }
        DataType::Utf8 => {
            let texts = array.as_string_opt::<i32>().ok_or(BlockError::Type)?;
            Ok(Levels::collect(texts.iter().map(|text| text.unwrap_or_default().to_owned())))
        }
        // A stretch of rows before the column's first value: there was nothing yet to tell its type by.
        _ if array.null_count() == array.len() => Ok(Levels { texts: vec![String::new()], codes: vec![0; array.len()] }),
        DataType::Int64 => Ok(Levels::collect(array.as_primitive::<Int64Type>().values().iter().map(i64::to_string))),
        DataType::Boolean => Ok(Levels::collect(array.as_boolean().iter().map(|value| value.unwrap_or_default().to_string()))),
        _ => Err(BlockError::Type),
    }
}

/// A column of categories: distinct texts, and for each row which.
pub(crate) struct Levels {
    pub(crate) texts: Vec<String>,
    pub(crate) codes: Vec<usize>,
}

impl Levels {
    fn collect(cells: impl Iterator<Item = String>) -> Self {
        let mut seen = std::collections::HashMap::new();
        let mut texts = Vec::new();
        let codes = cells
            .map(|cell| {
                *seen.entry(cell).or_insert_with_key(|cell| {
                    texts.push(cell.clone());
                    texts.len() - 1
                })
            })
            .collect();
        Self { texts, codes }
    }
}

fn indicators(array: &ArrayRef, levels: &[String], drop_first: bool, kept: &[usize], out: &mut [f64]) -> Result<(), BlockError> {
    let found = level_texts(array)?;
    // Each chunk has a dictionary of its own: map its entries to the version's levels once, not row by row.
    let places: std::collections::HashMap<&str, usize> = levels.iter().enumerate().map(|(index, level)| (level.as_str(), index)).collect();
    let places: Vec<Option<usize>> = found.texts.iter().map(|text| places.get(text.as_str()).copied()).collect();
    for (position, &row) in kept.iter().enumerate() {
        let level = places.get(found.codes[row]).copied().flatten().ok_or(BlockError::Level)?;
        if let Some(column) = level.checked_sub(usize::from(drop_first)) {
            out[column * kept.len() + position] = 1.0;
        }
    }
    Ok(())
}

/// Adds to `levels` those of column `index` that occur in complete rows.
///
/// # Errors
/// The column is not one of categories.
pub fn levels_of_complete_rows(
    design: &Design,
    arrays: &[ArrayRef],
    index: usize,
    levels: &mut std::collections::BTreeSet<String>,
) -> Result<(), BlockError> {
    let found = level_texts(&arrays[index])?;
    let mut met = vec![false; found.texts.len()];
    for (row, code) in found.codes.iter().enumerate() {
        if let Some(met) = met.get_mut(*code)
            && !*met
            && is_complete(design, arrays, row)
        {
            *met = true;
        }
    }
    levels.extend(found.texts.into_iter().zip(met).filter(|(_, met)| *met).map(|(text, _)| text));
    Ok(())
}

/// Rows in which nothing that must be there is missing.
fn complete_rows<'a>(design: &'a Design, arrays: &'a [ArrayRef]) -> impl Iterator<Item = usize> + 'a {
    let rows = arrays.first().map_or(0, |array| array.len());
    (0..rows).filter(|row| is_complete(design, arrays, *row))
}

/// Adds a code for each complete row, the same for the same value of column `index`; `known` holds the codes given so far.
///
/// # Errors
/// The column is of a kind that has no groups.
pub fn codes_of_complete_rows(
    design: &Design,
    arrays: &[ArrayRef],
    index: usize,
    known: &mut std::collections::HashMap<String, u32>,
    codes: &mut Vec<u32>,
) -> Result<(), BlockError> {
    let array = &arrays[index];
    let found = match array.data_type() {
        DataType::Float64 if array.null_count() < array.len() => {
            Levels::collect(array.as_primitive::<Float64Type>().values().iter().map(|value| format!("{:x}", value.to_bits())))
        }
        DataType::Timestamp(..) => Levels::collect(array.as_primitive::<TimestampMicrosecondType>().values().iter().map(i64::to_string)),
        _ => level_texts(array)?,
    };
    for row in complete_rows(design, arrays) {
        let text = found.texts.get(found.codes[row]).ok_or(BlockError::Level)?;
        let next = u32::try_from(known.len()).map_err(|_| BlockError::Level)?;
        codes.push(match known.get(text) {
            Some(code) => *code,
            None => *known.entry(text.clone()).or_insert(next),
        });
    }
    Ok(())
}

/// Adds column `index` of each complete row as a number; timestamps as microseconds since 1970.
///
/// # Errors
/// The column is not one of numbers or timestamps.
pub fn numbers_of_complete_rows(design: &Design, arrays: &[ArrayRef], index: usize, out: &mut Vec<f64>) -> Result<(), BlockError> {
    let kept: Vec<usize> = complete_rows(design, arrays).collect();
    let begin = out.len();
    out.resize(begin + kept.len(), 0.0);
    let array = &arrays[index];
    if let DataType::Timestamp(..) = array.data_type() {
        let values = array.as_primitive::<TimestampMicrosecondType>().values();
        for (out, &row) in out[begin..].iter_mut().zip(&kept) {
            #[allow(clippy::cast_precision_loss)] // exact for three centuries around 1970
            {
                *out = values[row] as f64;
            }
        }
        return Ok(());
    }
    numbers(array, &kept, &mut out[begin..])
}
