//! Rows before a row: columns of a table beside the same columns so many rows back, whatever frames the table is cut into.
//!
//! A row counts whether or not something is missing in it, so that a lag is a number of rows of the table and not of those that a fit keeps.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array};

use super::block::numbers_or_missing;
use super::{BlockError, Design};
use crate::frame::Frame;

/// What is read of a table: a column, so many rows back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The column's index.
    pub column: usize,
    /// 0 is the row itself.
    pub lag: usize,
}

impl Read {
    /// The columns of a design, of a table whose columns have these indices.
    pub fn all_of<'d>(design: &'d Design, index_of: impl Fn(&str) -> Option<usize> + 'd) -> impl Iterator<Item = Option<Self>> + 'd {
        design.columns().iter().map(move |column| match &column.past {
            Some(past) => index_of(&past.column).map(|column| Self { column, lag: past.lag }),
            None => index_of(&column.name).map(Self::from),
        })
    }
}

impl From<usize> for Read {
    fn from(column: usize) -> Self {
        Self { column, lag: 0 }
    }
}

/// Frames of a table, to be handed over in their order, as frames of what is read of it.
#[derive(Clone, Debug)]
pub struct Lagged {
    reads: Vec<Read>,
    /// The table's columns that are needed: one an own column, in the order of the reads, then those of which only past values are.
    columns: Vec<usize>,
    /// By column that is needed, its last values; as many as the longest lag of it.
    last: Vec<(usize, VecDeque<f64>)>,
}

impl Lagged {
    /// What is needed for these reads.
    #[must_use]
    pub fn new(reads: Vec<Read>) -> Self {
        let mut columns: Vec<usize> = reads.iter().filter(|read| read.lag == 0).map(|read| read.column).collect();
        for read in reads.iter().filter(|read| read.lag > 0) {
            if !columns.contains(&read.column) {
                columns.push(read.column);
            }
        }
        let reach = |column: &usize| reads.iter().filter(|read| read.column == *column).map(|read| read.lag).max().unwrap_or(0);
        let last = columns.iter().map(reach).map(|reach| (reach, VecDeque::with_capacity(reach))).collect();
        Self { reads, columns, last }
    }

    /// The table's columns that are to be read, in the order in which frames hold them.
    #[must_use]
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// The next frame.
    ///
    /// # Errors
    /// A column of which past values are taken does not hold numbers.
    pub fn next(&mut self, frame: Frame) -> Result<Frame, BlockError> {
        if self.reads.iter().all(|read| read.lag == 0) {
            return Ok(frame);
        }
        let mut numbers: Vec<Vec<f64>> = vec![Vec::new(); self.columns.len()];
        for ((numbers, array), (reach, _)) in numbers.iter_mut().zip(&frame.columns).zip(&self.last) {
            if *reach > 0 {
                numbers_or_missing(array, numbers)?;
            }
        }
        let mut own = frame.columns.iter();
        let mut columns = Vec::with_capacity(self.reads.len());
        for read in &self.reads {
            if read.lag == 0 {
                columns.extend(own.next().cloned());
                continue;
            }
            let Some(place) = self.columns.iter().position(|column| *column == read.column) else { continue };
            let (values, (_, last)) = (&numbers[place], &self.last[place]);
            let value = |row: usize| match row.checked_sub(read.lag) {
                Some(before) => Some(values[before]),
                None => (last.len() + row).checked_sub(read.lag).map(|before| last[before]),
            };
            let array: Float64Array = (0..frame.rows).map(|row| value(row).filter(|value| !value.is_nan())).collect();
            columns.push(Arc::new(array) as ArrayRef);
        }
        for (values, (reach, last)) in numbers.iter().zip(&mut self.last) {
            last.extend(&values[values.len().saturating_sub(*reach)..]);
            last.drain(..last.len().saturating_sub(*reach));
        }
        Ok(Frame { columns, rows: frame.rows })
    }

    /// The value of a column so many rows before the next one; NaN where it is missing, or before the first row.
    #[must_use]
    pub fn back(&self, column: usize, lag: usize) -> f64 {
        let last = self.columns.iter().position(|known| *known == column).map(|place| &self.last[place].1);
        last.and_then(|last| last.get(last.len().checked_sub(lag)?)).copied().unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use arrow_array::Int64Array;
    use arrow_array::cast::AsArray as _;
    use arrow_array::types::Float64Type;

    use super::*;

    fn cells(array: &ArrayRef) -> Vec<Option<f64>> {
        array.as_primitive::<Float64Type>().iter().collect()
    }

    #[test]
    fn past_values_are_the_same_however_a_table_is_cut() {
        let y: Vec<Option<f64>> = (0..11).map(|row| (row != 4).then_some(f64::from(row) + 0.5)).collect();
        let reads = [Read::from(7), Read { column: 7, lag: 1 }, Read { column: 9, lag: 3 }, Read { column: 7, lag: 4 }];
        for cut in 1..=11 {
            let mut lagged = Lagged::new(reads.to_vec());
            assert_eq!(lagged.columns(), [7, 9]);
            let mut found = vec![Vec::new(); 4];
            for begin in (0..11).step_by(cut) {
                let end = 11.min(begin + cut);
                let other: Int64Array = (begin..end).map(|row| Some(row as i64 * 10)).collect();
                let own: Float64Array = y[begin..end].iter().copied().collect();
                let frame = Frame { columns: vec![Arc::new(own), Arc::new(other)], rows: end - begin };
                let frame = lagged.next(frame).unwrap();
                found.iter_mut().zip(&frame.columns).for_each(|(found, array)| found.extend(cells(array)));
            }
            let back = |lag: usize| (0..11).map(|row: usize| row.checked_sub(lag).and_then(|before| y[before])).collect::<Vec<_>>();
            assert_eq!(found[0], y);
            assert_eq!(found[1], back(1));
            assert_eq!(found[2], (0..11).map(|row| (row >= 3).then(|| f64::from(row - 3) * 10.0)).collect::<Vec<_>>());
            assert_eq!(found[3], back(4));
            // The rows after the last one have these.
            assert_eq!([lagged.back(7, 1), lagged.back(7, 4), lagged.back(9, 3)], [10.5, 7.5, 80.0], "cut into {cut}");
            assert!(lagged.back(7, 5).is_nan());
        }
    }
}
