//! The last rows of a series: the values that later rows take as past ones.

use std::collections::VecDeque;

use super::bytes::{Reader, Writer};
use super::state::StateError;

/// The last values of some columns.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    columns: usize,
    depth: usize,
    /// `depth` rows of `columns` values, the oldest first; NaN where one is missing.
    values: VecDeque<f64>,
}

impl History {
    /// The last `depth` rows of `columns` columns, by column and rows back from the next row (at least 1).
    #[must_use]
    pub fn of(columns: usize, depth: usize, value: impl Fn(usize, usize) -> f64) -> Self {
        let value = &value;
        let values = (1..=depth).rev().flat_map(|back| (0..columns).map(move |column| value(column, back))).collect();
        Self { columns, depth, values }
    }

    /// Columns and rows that it holds.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.columns, self.depth)
    }

    /// The value of a column so many rows before the next one: the last row's is 1 back. NaN where it is not known.
    #[must_use]
    pub fn back(&self, column: usize, rows: usize) -> f64 {
        let place = self.depth.checked_sub(rows).map(|row| row * self.columns + column);
        place.and_then(|place| self.values.get(place)).copied().unwrap_or(f64::NAN)
    }

    /// Takes in the next row, one value a column; the oldest goes.
    pub fn push(&mut self, row: impl Iterator<Item = f64>) {
        self.values.extend(row);
        self.values.drain(..self.values.len().saturating_sub(self.columns * self.depth));
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        out.whole(self.columns as u64).whole(self.depth as u64);
        self.values.iter().for_each(|value| _ = out.float(*value));
    }

    pub(super) fn decode(input: &mut Reader<'_>) -> Result<Self, StateError> {
        let (columns, depth) = (input.length(usize::MAX)?, input.length(usize::MAX)?);
        let count = columns.checked_mul(depth).filter(|count| *count > 0).ok_or(StateError)?;
        let values = (0..count).map(|_| input.float()).collect::<Result<_, StateError>>()?;
        Ok(Self { columns, depth, values })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_last_rows_stay_in_their_order_and_survive_storage() {
        let mut history = History::of(2, 3, |column, back| (10 * column + back) as f64);
        assert_eq!([1, 2, 3].map(|back| history.back(0, back)), [1.0, 2.0, 3.0]);
        assert_eq!(history.back(1, 3), 13.0);
        history.push([100.0, f64::NAN].into_iter());
        assert_eq!([1, 2, 3].map(|back| history.back(0, back)), [100.0, 1.0, 2.0]);
        assert!(history.back(1, 1).is_nan() && history.back(1, 2) == 11.0);
        assert!(history.back(0, 4).is_nan());
        let mut out = Writer::default();
        history.encode(&mut out);
        let bytes = out.into_bytes();
        let read = History::decode(&mut Reader::new(&bytes)).unwrap();
        assert_eq!((read.shape(), read.back(0, 1), read.back(1, 1).is_nan()), ((2, 3), 100.0, true));
        assert!(History::decode(&mut Reader::new(&bytes[..bytes.len() - 1])).is_err());
    }
}
