//! What a dataset's description says of its columns: counts, extremes, moments, a sample. Made column-wise from finished frames, and
//! merged when rows are appended. Not here: anything that looks at a single cell while it is parsed.
//!
//! Mean and sum of squared deviations are taken in two passes over each frame and merged pairwise, so that an offset of the numbers that is
//! large beside their spread costs no digits: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", Am. Stat. 37 (1983).

use std::collections::BTreeSet;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array as _, ArrayRef};
use arrow_schema::DataType;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Frame;
use super::infer::{LEVELS, instant_text};
use super::schema::{ColumnType, Schema};

/// Values shown as a sample.
const SAMPLE: usize = 5;
/// Longest text in a sample, in characters.
const SAMPLE_TEXT: usize = 100;
/// Bytes of distinct texts that are kept of a column.
const LEVEL_BYTES: usize = 256 << 10;
/// Distinct values that are kept of all columns together in a finished summary: bounds what is stored beside the dataset.
const ALL_LEVELS: usize = 200_000;
/// Independent sums of a pass, so that it runs at the speed of the vector units.
const LANES: usize = 8;

/// A table described.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Names and types.
    pub schema: Schema,
    /// Rows in all.
    pub rows: u64,
    columns: Vec<ColumnSummary>,
}

/// The schemas do not agree, so the rows are not of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rows have other columns than the dataset")]
pub struct Disagreement;

impl Summary {
    pub(super) fn new(schema: Schema, rows: u64, columns: Vec<ColumnSummary>) -> Self {
        let mut summary = Self { schema, rows, columns };
        summary.bound();
        summary
    }

    /// Of a table without rows.
    #[must_use]
    pub fn empty(schema: Schema) -> Self {
        let columns = vec![ColumnSummary::default(); schema.columns.len()];
        Self { schema, rows: 0, columns }
    }

    /// Takes in stored rows that come after these. The types of columns stay.
    pub fn add_rows(&mut self, frame: &Frame) {
        self.add(0, &frame.columns);
        self.rows += frame.rows as u64;
        self.bound();
    }

    /// Takes in the summary of rows that come after these. A column of integers becomes one of numbers, and one of categories one of texts,
    /// where the other has it so.
    ///
    /// # Errors
    /// The columns have other names or types; nothing was changed then.
    pub fn merge(&mut self, later: &Self) -> Result<(), Disagreement> {
        let (mine, theirs) = (&self.schema.columns, &later.schema.columns);
        if mine.len() != theirs.len() || self.columns.len() != mine.len() || later.columns.len() != theirs.len() {
            return Err(Disagreement);
        }
        let kinds = mine
            .iter()
            .zip(theirs)
            .map(|(mine, theirs)| mine.kind.widened(theirs.kind).filter(|_| mine.name == theirs.name).ok_or(Disagreement))
            .collect::<Result<Vec<_>, _>>()?;
        for (index, kind) in kinds.into_iter().enumerate() {
            let mut other = later.columns[index].clone();
            if kind == ColumnType::Number {
                for (column, schema) in [(&mut self.columns[index], &self.schema), (&mut other, &later.schema)] {
                    if schema.columns[index].kind == ColumnType::Integer {
                        column.widen_to_numbers();
                    }
                }
            }
            self.schema.columns[index].kind = kind;
            self.columns[index].merge(other);
        }
        self.rows += later.rows;
        self.bound();
        Ok(())
    }

    /// The share of rows in which a column is missing, by its place.
    #[must_use]
    pub fn missing(&self, column: usize) -> f64 {
        #[allow(clippy::cast_precision_loss)] // row counts
        self.columns.get(column).map_or(0.0, |column| column.missing as f64 / self.rows.max(1) as f64)
    }

    /// The summary of a table of as many rows that has some of these columns and `fresh` ones beside them, of which nothing is known yet.
    #[must_use]
    pub fn beside(&self, kept: &[usize], fresh: Schema) -> Self {
        let mut schema = Schema { columns: kept.iter().map(|&index| self.schema.columns[index].clone()).collect() };
        let mut columns: Vec<ColumnSummary> = kept.iter().map(|&index| self.columns[index].clone()).collect();
        columns.resize_with(kept.len() + fresh.columns.len(), ColumnSummary::default);
        schema.columns.extend(fresh.columns);
        Self { schema, rows: self.rows, columns }
    }

    /// Takes in the cells of columns from `first` on.
    pub fn add(&mut self, first: usize, arrays: &[ArrayRef]) {
        for ((column, summary), array) in self.schema.columns[first..].iter().zip(&mut self.columns[first..]).zip(arrays) {
            summary.add(column.kind, array);
        }
    }

    /// Ends the taking in: bounds what is kept of the columns.
    pub fn finish(&mut self) {
        self.bound();
    }

    /// The columns as a reply shows them.
    #[must_use]
    pub fn columns_json(&self) -> Value {
        self.schema
            .columns
            .iter()
            .zip(&self.columns)
            .map(|(column, summary)| {
                let mut shown = json!({"name": column.name, "type": column.kind.as_str(), "missing": summary.missing});
                if let Some(distinct) = summary.distinct.count() {
                    shown["distinct"] = distinct.into();
                }
                let [minimum, maximum] = summary.shown_extremes(column.kind);
                shown["min"] = minimum;
                shown["max"] = maximum;
                let (mean, deviation) = summary.shown_moments(column.kind);
                shown["mean"] = mean.into();
                shown["std"] = deviation.into();
                shown["sample"] = Value::Array(summary.sample.clone());
                shown
            })
            .collect()
    }

    fn bound(&mut self) {
        let mut left = ALL_LEVELS;
        for column in &mut self.columns {
            let count = column.distinct.count().unwrap_or(0);
            if count > left {
                column.distinct = Distinct::Many;
            } else {
                left -= count;
            }
        }
    }
}

/// The least or the greatest value: exact for whole numbers (and for booleans as 0 and 1, timestamps as microseconds).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Extreme {
    Integer(i64),
    Number(f64),
}

#[allow(clippy::cast_precision_loss)] // an extreme of a column that holds floats too
fn wide(extreme: Extreme) -> f64 {
    match extreme {
        Extreme::Integer(value) => value as f64,
        Extreme::Number(value) => value,
    }
}

/// The distinct values, as long as they are few.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Distinct {
    #[default]
    None,
    /// Integers and floats by their bits; 0.0 and −0.0 are one.
    Bits(BTreeSet<u64>),
    Texts(BTreeSet<String>),
    /// Too many to count.
    Many,
}

impl Distinct {
    fn count(&self) -> Option<usize> {
        match self {
            Self::None => Some(0),
            Self::Bits(bits) => Some(bits.len()),
            Self::Texts(texts) => Some(texts.len()),
            Self::Many => None,
        }
    }

    fn add_bits(&mut self, values: impl Iterator<Item = u64>) {
        if matches!(self, Self::None) {
            *self = Self::Bits(BTreeSet::new());
        }
        let Self::Bits(bits) = self else { return };
        // Most values of a column with few distinct ones were met a moment ago.
        let mut recent = vec![None; 1024];
        for value in values {
            let slot = usize::try_from(value.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54).unwrap_or(0);
            if recent[slot] != Some(value) {
                recent[slot] = Some(value);
                bits.insert(value);
                if bits.len() > LEVELS {
                    *self = Self::Many;
                    return;
                }
            }
        }
    }

    fn add_texts<'t>(&mut self, values: impl Iterator<Item = &'t str>) {
        if matches!(self, Self::None) {
            *self = Self::Texts(BTreeSet::new());
        }
        let Self::Texts(texts) = self else { return };
        let mut bytes: usize = texts.iter().map(String::len).sum();
        for value in values {
            if !texts.contains(value) {
                bytes += value.len();
                if texts.len() == LEVELS || bytes > LEVEL_BYTES {
                    *self = Self::Many;
                    return;
                }
                texts.insert(value.to_owned());
            }
        }
    }
}

/// A column described.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ColumnSummary {
    missing: u64,
    /// Values that are not missing.
    count: u64,
    mean: f64,
    /// Sum of squared deviations from the mean; `f64::MAX` when it is beyond that.
    squares: f64,
    minimum: Option<Extreme>,
    maximum: Option<Extreme>,
    distinct: Distinct,
    sample: Vec<Value>,
}

impl ColumnSummary {
    /// Whether there are more distinct values than are counted.
    pub(super) fn has_many(&self) -> bool {
        self.distinct == Distinct::Many
    }

    /// Adds a column of a stored frame, which may be of a narrower kind than the table's.
    fn add(&mut self, kind: ColumnType, array: &ArrayRef) {
        self.add_missing(array.null_count());
        // Of a stretch of missing cells before a column's first value, the type is not the column's.
        if array.null_count() == array.len() {
            return;
        }
        match array.data_type() {
            DataType::Float64 => self.add_numbers(&array.as_primitive::<Float64Type>().iter().flatten().collect::<Vec<_>>()),
            DataType::Int64 => {
                let values = array.as_primitive::<Int64Type>().iter().flatten();
                if kind == ColumnType::Number {
                    #[allow(clippy::cast_precision_loss)] // a column of floats
                    self.add_numbers(&values.map(|value| value as f64).collect::<Vec<_>>());
                } else {
                    self.add_integers(&values.collect::<Vec<_>>());
                }
            }
            DataType::Boolean => self.add_booleans(&array.as_boolean().iter().flatten().collect::<Vec<_>>()),
            DataType::Timestamp(..) => {
                self.add_timestamps(&array.as_primitive::<TimestampMicrosecondType>().iter().flatten().collect::<Vec<_>>());
            }
            DataType::Utf8 => {
                let texts = || array.as_string::<i32>().iter().flatten();
                self.add_texts(array.len() - array.null_count(), texts(), texts());
            }
            DataType::Dictionary(..) => {
                let (dictionary, count) = (array.as_dictionary::<Int32Type>(), array.len() - array.null_count());
                let levels = dictionary.values().as_string::<i32>();
                let texts = dictionary.keys().iter().flatten().filter_map(|code| usize::try_from(code).ok()).map(|code| levels.value(code));
                self.add_texts(count, levels.iter().flatten(), texts);
            }
            _ => {}
        }
    }

    pub(super) fn add_missing(&mut self, count: usize) {
        self.missing += count as u64;
    }

    /// Adds floats, none of them missing.
    pub(super) fn add_numbers(&mut self, values: &[f64]) {
        self.add_moments(values, Extreme::Number);
        self.distinct.add_bits(values.iter().map(|value| number_bits(*value)));
        self.add_sample(values.iter().map(|value| (*value).into()));
    }

    /// Adds whole numbers, none of them missing.
    pub(super) fn add_integers(&mut self, values: &[i64]) {
        #[allow(clippy::cast_precision_loss)] // for the moments; the extremes are exact
        let floats: Vec<f64> = values.iter().map(|value| *value as f64).collect();
        self.add_moments(&floats, |_| Extreme::Integer(0));
        self.add_whole_extremes(values);
        self.distinct.add_bits(values.iter().map(|value| value.cast_unsigned()));
        self.add_sample(values.iter().map(|value| (*value).into()));
    }

    /// Adds booleans, none of them missing.
    pub(super) fn add_booleans(&mut self, values: &[bool]) {
        let floats: Vec<f64> = values.iter().map(|value| f64::from(u8::from(*value))).collect();
        self.add_moments(&floats, |_| Extreme::Integer(0));
        let whole: Vec<i64> = values.iter().map(|value| i64::from(*value)).collect();
        self.add_whole_extremes(&whole);
        self.distinct.add_bits(whole.iter().map(|value| value.cast_unsigned()));
        self.add_sample(values.iter().map(|value| (*value).into()));
    }

    /// Adds points in time in microseconds, none of them missing.
    pub(super) fn add_timestamps(&mut self, values: &[i64]) {
        self.count += values.len() as u64;
        self.add_whole_extremes(values);
        self.distinct.add_bits(values.iter().map(|value| value.cast_unsigned()));
        self.add_sample(values.iter().map(|value| instant_text(*value).into()));
    }

    /// Adds `count` texts of which `levels` has the distinct ones and `first` the first few in order.
    pub(super) fn add_texts<'t>(&mut self, count: usize, levels: impl Iterator<Item = &'t str>, first: impl Iterator<Item = &'t str>) {
        self.count += count as u64;
        self.distinct.add_texts(levels);
        self.add_sample(first.map(|text| text.chars().take(SAMPLE_TEXT).collect::<String>().into()));
    }

    /// What was counted of integers becomes what it would be of numbers.
    pub(super) fn widen_to_numbers(&mut self) {
        if let Distinct::Bits(bits) = &mut self.distinct {
            #[allow(clippy::cast_precision_loss)] // the column holds floats from here on
            let floats = bits.iter().map(|bits| number_bits(bits.cast_signed() as f64)).collect();
            *bits = floats;
        }
        for extreme in [&mut self.minimum, &mut self.maximum] {
            *extreme = extreme.map(|extreme| Extreme::Number(wide(extreme)));
        }
    }

    fn add_whole_extremes(&mut self, values: &[i64]) {
        let range = values.iter().copied().min().zip(values.iter().copied().max());
        if let Some((low, high)) = range {
            let known = |extreme: Option<Extreme>, fresh: i64| match extreme {
                Some(Extreme::Integer(value)) => value,
                _ => fresh,
            };
            self.minimum = Some(Extreme::Integer(known(self.minimum, low).min(low)));
            self.maximum = Some(Extreme::Integer(known(self.maximum, high).max(high)));
        }
    }

    /// Adds the moments, and the extremes where `extreme` gives numbers.
    fn add_moments(&mut self, values: &[f64], extreme: impl Fn(f64) -> Extreme) {
        if values.is_empty() {
            return;
        }
        let frame = Moments::of(values);
        if let (Extreme::Number(low), Extreme::Number(high)) = (extreme(frame.low), extreme(frame.high)) {
            self.minimum = Some(Extreme::Number(self.minimum.map_or(low, |known| wide(known).min(low))));
            self.maximum = Some(Extreme::Number(self.maximum.map_or(high, |known| wide(known).max(high))));
        }
        self.merge_moments(values.len() as u64, frame.mean, frame.squares);
    }

    fn merge_moments(&mut self, count: u64, mean: f64, squares: f64) {
        let total = self.count + count;
        if total == 0 {
            return;
        }
        #[allow(clippy::cast_precision_loss)] // row counts
        let (before, share) = (self.count as f64, count as f64 / total as f64);
        let difference = mean - self.mean;
        if self.count == 0 {
            self.mean = mean;
            self.squares = squares;
        } else {
            self.mean = if difference.is_finite() { self.mean + difference * share } else { self.mean * (1.0 - share) + mean * share };
            self.squares += squares + difference * difference * before * share;
        }
        self.squares = if self.squares.is_finite() { self.squares } else { f64::MAX };
        self.count = total;
    }

    fn add_sample(&mut self, values: impl Iterator<Item = Value>) {
        self.sample.extend(values.take(SAMPLE - self.sample.len().min(SAMPLE)));
    }

    fn merge(&mut self, later: Self) {
        self.missing += later.missing;
        self.merge_moments(later.count, later.mean, later.squares);
        let pick = |mine: Option<Extreme>, theirs: Option<Extreme>, least: bool| match (mine, theirs) {
            (Some(Extreme::Integer(mine)), Some(Extreme::Integer(theirs))) => {
                Some(Extreme::Integer(if least { mine.min(theirs) } else { mine.max(theirs) }))
            }
            (Some(mine), Some(theirs)) => {
                let (mine, theirs) = (wide(mine), wide(theirs));
                Some(Extreme::Number(if least { mine.min(theirs) } else { mine.max(theirs) }))
            }
            (mine, theirs) => mine.or(theirs),
        };
        self.minimum = pick(self.minimum, later.minimum, true);
        self.maximum = pick(self.maximum, later.maximum, false);
        match later.distinct {
            Distinct::None => {}
            Distinct::Bits(bits) => self.distinct.add_bits(bits.into_iter()),
            Distinct::Texts(texts) => self.distinct.add_texts(texts.iter().map(String::as_str)),
            Distinct::Many => self.distinct = Distinct::Many,
        }
        self.add_sample(later.sample.into_iter());
    }

    fn shown_extremes(&self, kind: ColumnType) -> [Value; 2] {
        [self.minimum, self.maximum].map(|extreme| match (kind, extreme) {
            (ColumnType::Boolean, Some(Extreme::Integer(value))) => (value != 0).into(),
            (ColumnType::Timestamp, Some(Extreme::Integer(value))) => instant_text(value).into(),
            (ColumnType::Integer, Some(Extreme::Integer(value))) => value.into(),
            (ColumnType::Integer | ColumnType::Number, Some(value)) => wide(value).into(),
            _ => Value::Null,
        })
    }

    fn shown_moments(&self, kind: ColumnType) -> (Option<f64>, Option<f64>) {
        if !matches!(kind, ColumnType::Number | ColumnType::Integer | ColumnType::Boolean) || self.count == 0 {
            return (None, None);
        }
        #[allow(clippy::cast_precision_loss)] // a row count
        let deviation = (self.count > 1 && self.squares < f64::MAX).then(|| (self.squares / (self.count - 1) as f64).sqrt());
        (Some(self.mean), deviation)
    }
}

fn number_bits(value: f64) -> u64 {
    (value + 0.0).to_bits()
}

/// Mean, sum of squared deviations from it, least and greatest of some values.
struct Moments {
    mean: f64,
    squares: f64,
    low: f64,
    high: f64,
}

impl Moments {
    fn of(values: &[f64]) -> Self {
        #[allow(clippy::cast_precision_loss)] // rows of a frame
        let count = values.len() as f64;
        let (mut sums, mut lows, mut highs) = ([0.0; LANES], [f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES]);
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                let value = chunk[lane];
                sums[lane] += value;
                lows[lane] = if value < lows[lane] { value } else { lows[lane] };
                highs[lane] = if value > highs[lane] { value } else { highs[lane] };
            }
        }
        let mut mean = (sums.iter().sum::<f64>() + rest.iter().sum::<f64>()) / count;
        if !mean.is_finite() {
            mean = values.iter().map(|value| value / count).sum();
        }
        let (mut offs, mut squares) = ([0.0; LANES], [0.0; LANES]);
        for chunk in chunks {
            for lane in 0..LANES {
                let off = chunk[lane] - mean;
                offs[lane] += off;
                squares[lane] += off * off;
            }
        }
        let (mut off, mut square) = (offs.iter().sum::<f64>(), squares.iter().sum::<f64>());
        for value in rest {
            off += value - mean;
            square += (value - mean) * (value - mean);
        }
        // The first mean is rounded; what it is off by is known now.
        let (correction, excess) = (off / count, off * off / count);
        if correction.is_finite() && excess.is_finite() {
            mean += correction;
            square = (square - excess).max(0.0);
        }
        let low = lows.iter().chain(rest).copied().fold(f64::INFINITY, f64::min);
        let high = highs.iter().chain(rest).copied().fold(f64::NEG_INFINITY, f64::max);
        Self { mean, squares: square, low, high }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::frame::Column;

    fn summary(kind: ColumnType, column: ColumnSummary) -> Summary {
        let rows = column.count + column.missing;
        Summary::new(Schema { columns: vec![Column { name: "x".into(), kind }] }, rows, vec![column])
    }

    fn numbers(values: &[f64]) -> ColumnSummary {
        let mut column = ColumnSummary::default();
        for frame in values.chunks(97) {
            column.add_numbers(frame);
        }
        column
    }

    #[test]
    fn a_large_offset_costs_no_digits() {
        let values: Vec<f64> = (0..10_000).map(|index| 1e9 + f64::from(index % 4)).collect();
        let column = numbers(&values);
        assert!((column.mean - (1e9 + 1.5)).abs() <= 2e-7, "mean {}", column.mean);
        let exact = 1.25 * 10_000.0; // the variance of 0, 1, 2, 3 in equal parts, times the count
        assert!((column.squares / exact - 1.0).abs() < 1e-9, "squares {}", column.squares);
        assert_eq!(column.distinct.count(), Some(4));
    }

    #[test]
    fn numbers_near_the_largest_do_not_overflow_the_mean() {
        let column = numbers(&[f64::MAX, f64::MAX, -f64::MAX]);
        assert!((column.mean / (f64::MAX / 3.0) - 1.0).abs() < 1e-12);
        let shown = summary(ColumnType::Number, column).columns_json();
        assert_eq!(shown[0]["std"], Value::Null);
        assert_eq!(shown[0]["max"], f64::MAX);
    }

    #[test]
    fn merging_equals_summarising_at_once() {
        let values: Vec<f64> = (0..1500_i32).map(|index| f64::from(index * 7919 % 1009) / 3.0).collect();
        let whole = summary(ColumnType::Number, numbers(&values));
        let mut merged = summary(ColumnType::Number, numbers(&values[..333]));
        merged.merge(&summary(ColumnType::Number, numbers(&values[333..]))).unwrap();
        assert_eq!(merged.rows, whole.rows);
        assert_eq!(merged.columns[0].minimum, whole.columns[0].minimum);
        assert_eq!(merged.columns[0].sample, whole.columns[0].sample);
        assert!((merged.columns[0].mean - whole.columns[0].mean).abs() < 1e-10);
        assert!((merged.columns[0].squares / whole.columns[0].squares - 1.0).abs() < 1e-12);
        assert!(whole.columns[0].has_many() && merged.columns[0].has_many());
    }

    #[test]
    fn integers_merge_with_numbers_into_numbers() {
        let mut integers = ColumnSummary::default();
        integers.add_integers(&[1, 2, i64::MAX]);
        integers.add_missing(1);
        let mut merged = summary(ColumnType::Integer, integers);
        assert_eq!(merged.columns_json()[0]["max"], i64::MAX);
        merged.merge(&summary(ColumnType::Number, numbers(&[2.0, 2.5]))).unwrap();
        assert_eq!(merged.schema.columns[0].kind, ColumnType::Number);
        assert_eq!(merged.rows, 6);
        assert_eq!(merged.columns[0].distinct.count(), Some(4));
        assert_eq!(merged.columns[0].missing, 1);
    }

    #[test]
    fn a_summary_made_anew_of_stored_frames_is_the_one_of_the_upload() {
        let mut text = "t,n,c,s,w\n".to_owned();
        for row in 0..3000_u32 {
            let number = if row < 1500 { row.to_string() } else { format!("{row}.5") };
            let category = if row < 5 { String::new() } else { format!("level {}", row % 7) };
            text.push_str(&format!("2026-01-01T00:00:{:02}Z,{number},{category},text {row},{}\n", row % 60, row % 2 == 0));
        }
        let mut frames = Vec::new();
        let options = crate::frame::ReadOptions { frame_rows: 700, ..Default::default() };
        let mut reader = crate::frame::Reader::new(crate::frame::Format::Csv, options);
        let mut emit = |frame: Frame| {
            frames.push(frame);
            Ok(())
        };
        reader.push(text.as_bytes(), &mut emit).unwrap();
        let known = reader.finish(&mut emit).unwrap();
        let mut anew = Summary::empty(known.schema.clone());
        frames.iter().for_each(|frame| anew.add_rows(frame));
        assert!(frames.len() > 3);
        let moments = |summary: &Summary| summary.columns.iter().map(|column| (column.mean, column.squares)).collect::<Vec<_>>();
        for (one, other) in moments(&anew).into_iter().zip(moments(&known)) {
            assert!((one.0 - other.0).abs() <= 1e-12 * other.0.abs() && (one.1 - other.1).abs() <= 1e-12 * other.1, "{one:?} {other:?}");
        }
        for (one, other) in anew.columns.iter_mut().zip(&known.columns) {
            (one.mean, one.squares) = (other.mean, other.squares);
        }
        assert_eq!(anew, known);
    }

    #[test]
    fn other_columns_are_a_disagreement_and_change_nothing() {
        let mut mine = summary(ColumnType::Number, numbers(&[1.0]));
        let before = mine.clone();
        let mut other = summary(ColumnType::Number, numbers(&[1.0]));
        other.schema.columns[0].name = "y".into();
        assert_eq!(mine.merge(&other), Err(Disagreement));
        assert_eq!(mine.merge(&summary(ColumnType::Text, ColumnSummary::default())), Err(Disagreement));
        assert_eq!(mine, before);
    }

    #[test]
    fn a_summary_survives_its_storage() {
        let mut texts = ColumnSummary::default();
        texts.add_texts(3, ["a", "b"].into_iter(), ["a", "b", "a"].into_iter());
        let mut times = ColumnSummary::default();
        times.add_timestamps(&[0, 1_500_000]);
        let mut truths = ColumnSummary::default();
        truths.add_booleans(&[true, false, true]);
        for (kind, column) in [
            (ColumnType::Category, texts),
            (ColumnType::Timestamp, times),
            (ColumnType::Boolean, truths),
            (ColumnType::Number, numbers(&[0.1, -0.0, f64::from_bits(1), f64::MAX, -f64::MAX])),
        ] {
            let summary = summary(kind, column);
            let back: Summary = serde_json::from_str(&serde_json::to_string(&summary).unwrap()).unwrap();
            assert_eq!(back, summary);
            assert_eq!(back.columns_json(), summary.columns_json());
        }
    }

    #[test]
    fn values_are_shown_as_their_type() {
        let mut times = ColumnSummary::default();
        times.add_timestamps(&[1_500_000, 0]);
        let shown = summary(ColumnType::Timestamp, times).columns_json();
        assert_eq!(shown[0]["min"], "1970-01-01T00:00:00Z");
        assert_eq!(shown[0]["max"], "1970-01-01T00:00:01.5Z");
        assert_eq!(shown[0]["mean"], Value::Null);
        let mut truths = ColumnSummary::default();
        truths.add_booleans(&[true, false]);
        let shown = summary(ColumnType::Boolean, truths).columns_json();
        assert_eq!((&shown[0]["min"], &shown[0]["max"], &shown[0]["mean"]), (&json!(false), &json!(true), &json!(0.5)));
    }
}
