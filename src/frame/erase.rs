//! Rows that are to go: found by what a cell says, and left out of a frame, so that nothing of them stays in it. Not here: where frames are
//! stored.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow_schema::DataType;

use super::{Frame, infer};

impl Frame {
    /// The frame without some of its rows. A category that none of the others has is not among its levels either.
    ///
    /// # Panics
    /// When a column is of a type that no frame holds.
    #[must_use]
    pub fn without(&self, rows: &BTreeSet<usize>) -> Self {
        let kept: Vec<usize> = (0..self.rows).filter(|row| !rows.contains(row)).collect();
        Self { columns: self.columns.iter().map(|column| select(column, &kept)).collect(), rows: kept.len() }
    }
}

/// The cells of some rows.
fn select(array: &ArrayRef, kept: &[usize]) -> ArrayRef {
    // What stands under a missing cell is not taken along.
    let present = |row: &usize| array.is_valid(*row).then_some(*row);
    match array.data_type() {
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>();
            Arc::new(kept.iter().map(|row| present(row).map(|row| values.value(row))).collect::<Float64Array>())
        }
        DataType::Int64 => {
            let values = array.as_primitive::<Int64Type>();
            Arc::new(kept.iter().map(|row| present(row).map(|row| values.value(row))).collect::<Int64Array>())
        }
        DataType::Timestamp(..) => {
            let values = array.as_primitive::<TimestampMicrosecondType>();
            let kept: TimestampMicrosecondArray = kept.iter().map(|row| present(row).map(|row| values.value(row))).collect();
            Arc::new(kept.with_timezone("UTC"))
        }
        DataType::Boolean => {
            let values = array.as_boolean();
            Arc::new(kept.iter().map(|row| present(row).map(|row| values.value(row))).collect::<BooleanArray>())
        }
        DataType::Utf8 => {
            let values = array.as_string::<i32>();
            Arc::new(kept.iter().map(|row| present(row).map(|row| values.value(row))).collect::<StringArray>())
        }
        DataType::Dictionary(..) => {
            let values = array.as_dictionary::<Int32Type>();
            let texts = values.values().as_string::<i32>();
            let (mut levels, mut codes) = (Vec::new(), HashMap::new());
            let selected: Int32Array = kept
                .iter()
                .map(|row| {
                    let level = values.key(*row)?;
                    Some(*codes.entry(level).or_insert_with(|| {
                        levels.push(texts.value(level));
                        i32::try_from(levels.len() - 1).unwrap_or(i32::MAX)
                    }))
                })
                .collect();
            Arc::new(DictionaryArray::<Int32Type>::new(selected, Arc::new(StringArray::from(levels))))
        }
        other => unreachable!("a frame holds no array of type {other}"),
    }
}

/// The rows in which a column says what `text` says in the column's own type.
#[must_use]
pub fn rows_where(array: &ArrayRef, text: &str) -> Vec<usize> {
    let bytes = text.as_bytes();
    let rows = 0..array.len();
    let present = rows.filter(|row| array.is_valid(*row));
    match array.data_type() {
        DataType::Float64 => {
            let (values, wanted) = (array.as_primitive::<Float64Type>(), infer::number(bytes));
            present.filter(|row| wanted == Some(values.value(*row))).collect()
        }
        DataType::Int64 => {
            let (values, wanted) = (array.as_primitive::<Int64Type>(), infer::whole_number(bytes));
            #[allow(clippy::cast_precision_loss)] // a column of numbers may have whole ones in its earlier frames
            let near = infer::number(bytes).filter(|_| wanted.is_none());
            present.filter(|row| wanted == Some(values.value(*row)) || near == Some(values.value(*row) as f64)).collect()
        }
        DataType::Timestamp(..) => {
            let (values, wanted) = (array.as_primitive::<TimestampMicrosecondType>(), infer::instant(bytes));
            present.filter(|row| wanted == Some(values.value(*row))).collect()
        }
        DataType::Boolean => {
            let (values, wanted) = (array.as_boolean(), infer::truth(bytes));
            present.filter(|row| wanted == Some(values.value(*row))).collect()
        }
        DataType::Utf8 => {
            let values = array.as_string::<i32>();
            present.filter(|row| values.value(*row) == text).collect()
        }
        DataType::Dictionary(..) => {
            let values = array.as_dictionary::<Int32Type>();
            let levels = values.values().as_string::<i32>();
            present.filter(|row| values.key(*row).is_some_and(|level| levels.value(level) == text)).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::frame::codec;

    fn frame() -> Frame {
        let levels = Arc::new(StringArray::from(vec!["south", "only here", "north"]));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Float64Array::from(vec![Some(1.5), None, Some(-0.0), Some(4.0)])),
            Arc::new(Int64Array::from(vec![7, i64::MAX, 9, 7])),
            Arc::new(BooleanArray::from(vec![Some(true), Some(false), None, Some(true)])),
            Arc::new(TimestampMicrosecondArray::from(vec![0, 1_500_000, 3, 4]).with_timezone("UTC")),
            Arc::new(StringArray::from(vec![Some("a"), Some("secret"), Some(""), None])),
            Arc::new(DictionaryArray::<Int32Type>::new(Int32Array::from(vec![Some(0), Some(1), Some(2), None]), levels)),
        ];
        Frame { columns, rows: 4 }
    }

    #[test]
    fn what_is_left_out_is_nowhere_in_the_stored_form() {
        let frame = frame();
        let left = frame.without(&BTreeSet::from([1]));
        assert_eq!(left.rows, 3);
        for (before, after) in frame.columns.iter().zip(&left.columns) {
            let bytes = codec::encode(after);
            for text in ["secret", "only here"] {
                assert!(!bytes.windows(text.len()).any(|window| window == text.as_bytes()));
            }
            assert_eq!(codec::decode(&bytes).unwrap().data_type(), before.data_type());
            let same = |row: usize, new: usize| {
                let texts = |array: &ArrayRef, row: usize| rows_where(array, "7").contains(&row);
                before.is_valid(row) == after.is_valid(new) && texts(before, row) == texts(after, new)
            };
            assert!(same(0, 0) && same(2, 1) && same(3, 2));
        }
        assert_eq!(rows_where(&left.columns[5], "north"), [1]);
        assert_eq!(frame.without(&(0..4).collect()).columns[5].len(), 0);
    }

    #[test]
    fn rows_are_found_by_the_value_and_not_by_its_spelling() {
        let frame = frame();
        for (column, text, rows) in [
            (0, "1.50", vec![0]),
            (0, "0", vec![2]),
            (0, "x", vec![]),
            (1, "7", vec![0, 3]),
            (1, "7.0", vec![0, 3]),
            (1, "9223372036854775807", vec![1]),
            (2, "true", vec![0, 3]),
            (3, "1970-01-01T00:00:01.5Z", vec![1]),
            (4, "", vec![2]),
            (5, "only here", vec![1]),
        ] {
            assert_eq!(rows_where(&frame.columns[column], text), rows, "{text} in column {column}");
        }
    }
}
