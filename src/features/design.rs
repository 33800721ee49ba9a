//! Features and the design columns they make.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::frame::{ColumnType, Input, InputKind};
use crate::lsq::Row;
use crate::lsq::double_double::Double;

/// What to do with a category that training never saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unseen {
    /// Refuse the row and name the column.
    #[default]
    Error,
    /// All indicators zero: the row is predicted as the dropped level would be (or as none, when no level was dropped).
    Baseline,
}

/// How a column enters the design.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "as", rename_all = "lowercase")]
pub enum Encoding {
    /// Its number; booleans are 0 and 1.
    Identity,
    /// Its powers from the first to the `degree`th, formed in twice the working precision.
    Polynomial {
        /// At least 1.
        degree: u32,
    },
    /// One 0/1 column a level.
    Onehot {
        /// The levels in order; a cell holds an index into this list.
        levels: Vec<String>,
        /// Whether the first level has no column of its own (it is what the intercept stands for).
        drop_first: bool,
        /// A level that is not in the list.
        unseen: Unseen,
    },
}

/// A column of the table and its encoding, fitted on the training rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// The column's name.
    pub name: String,
    /// Its type in the training table.
    #[serde(rename = "type")]
    pub kind: ColumnType,
    /// What becomes of it.
    #[serde(flatten)]
    pub encoding: Encoding,
}

impl Feature {
    /// Design columns it makes.
    #[must_use]
    pub fn width(&self) -> usize {
        match &self.encoding {
            Encoding::Identity => 1,
            Encoding::Polynomial { degree } => *degree as usize,
            Encoding::Onehot { levels, drop_first, .. } => levels.len() - usize::from(*drop_first && !levels.is_empty()),
        }
    }

    /// What a row of a request must hold for it.
    #[must_use]
    pub fn input(&self) -> Input {
        let kind = match (&self.encoding, self.kind) {
            (Encoding::Onehot { levels, unseen, .. }, _) => InputKind::Category {
                levels: (0..).zip(levels).map(|(index, level)| (level.clone(), index)).collect::<HashMap<String, u32>>(),
                unseen: match unseen {
                    Unseen::Error => crate::frame::Unseen::Error,
                    Unseen::Baseline => crate::frame::Unseen::Baseline,
                },
            },
            (_, ColumnType::Boolean) => InputKind::Boolean,
            (_, ColumnType::Integer) => InputKind::Integer,
            (_, _) => InputKind::Number,
        };
        Input { name: self.name.clone(), kind, required: true }
    }
}

/// The features of a model in order: cells of a row (one a feature) to a row of X (p values).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Design {
    features: Vec<Feature>,
    /// First design column of each feature, and p at the end.
    offsets: Vec<usize>,
    /// Whether every feature is a single number, so that cells are the design row.
    plain: bool,
    /// Whether some feature makes powers.
    extended: bool,
}

/// Buffers of [`Design::row`].
#[derive(Clone, Debug, Default)]
pub struct RowBuffer {
    high: Vec<f64>,
    low: Vec<f64>,
}

impl Design {
    /// A design of these features.
    #[must_use]
    pub fn new(features: Vec<Feature>) -> Self {
        let mut offsets = Vec::with_capacity(features.len() + 1);
        let mut width = 0;
        for feature in &features {
            offsets.push(width);
            width += feature.width();
        }
        offsets.push(width);
        let plain = features.iter().all(|feature| feature.encoding == Encoding::Identity);
        let extended = features.iter().any(|feature| matches!(feature.encoding, Encoding::Polynomial { .. }));
        Self { features, offsets, plain, extended }
    }

    /// The features.
    #[must_use]
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// p, the number of design columns without an intercept.
    #[must_use]
    pub fn width(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// The design columns of a feature.
    #[must_use]
    pub fn columns_of(&self, feature: usize) -> std::ops::Range<usize> {
        self.offsets[feature]..self.offsets[feature + 1]
    }

    /// The cell of a feature from a row of X, whose columns `x` tells: what [`Design::row`] made the row from.
    #[must_use]
    pub fn cell(&self, feature: usize, x: impl Fn(usize) -> f64) -> f64 {
        let mut columns = self.columns_of(feature);
        match &self.features[feature].encoding {
            Encoding::Identity | Encoding::Polynomial { .. } => x(columns.start),
            Encoding::Onehot { drop_first, .. } => {
                let shift = usize::from(*drop_first);
                let first = columns.start;
                #[allow(clippy::cast_precision_loss)] // a level's index
                columns
                    .find(|column| x(*column) > 0.0)
                    .map_or(f64::from(u8::from(*drop_first)) - 1.0, |column| (column - first + shift) as f64)
            }
        }
    }

    /// Whether columns are known better than to a float, so that their rounding errors go with them.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.extended
    }

    /// Readable names of the p design columns: `x`, `x^2`, `region=north`.
    #[must_use]
    pub fn column_names(&self) -> Vec<String> {
        self.features
            .iter()
            .flat_map(|feature| match &feature.encoding {
                Encoding::Identity => vec![feature.name.clone()],
                Encoding::Polynomial { degree } => {
                    (1..=*degree).map(|power| if power == 1 { feature.name.clone() } else { format!("{}^{power}", feature.name) }).collect()
                }
                Encoding::Onehot { levels, drop_first, .. } => {
                    levels.iter().skip(usize::from(*drop_first)).map(|level| format!("{}={level}", feature.name)).collect()
                }
            })
            .collect()
    }

    /// A row of X (p values) from a row of cells (one a feature; a category cell holds its level's index, −1 for an unseen one).
    /// Borrows the cells where they already are the row.
    #[must_use]
    pub fn row<'a>(&self, cells: &'a [f64], buffer: &'a mut RowBuffer) -> Row<'a> {
        if self.plain {
            return cells.into();
        }
        let RowBuffer { high, low } = buffer;
        high.clear();
        high.resize(self.width(), 0.0);
        low.clear();
        low.resize(if self.extended { self.width() } else { 0 }, 0.0);
        for (index, (feature, &cell)) in self.features.iter().zip(cells).enumerate() {
            let offset = self.offsets[index];
            match &feature.encoding {
                Encoding::Identity => high[offset] = cell,
                Encoding::Polynomial { degree } => {
                    for (power, value) in powers(cell).take(*degree as usize).enumerate() {
                        (high[offset + power], low[offset + power]) = (value.hi, value.lo);
                    }
                }
                Encoding::Onehot { drop_first, .. } => {
                    let shifted = cell - f64::from(u8::from(*drop_first));
                    if shifted >= 0.0 {
                        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a level's index: small, whole, not negative
                        let level = shifted as usize;
                        high[offset + level] = 1.0;
                    }
                }
            }
        }
        Row { high, low: self.extended.then_some(low) }
    }
}

/// x, x², x³, … to about 31 digits.
pub(crate) fn powers(x: f64) -> impl Iterator<Item = Double> {
    std::iter::successors(Some(Double::from(x)), move |power| Some(*power * x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(drop_first: bool) -> Feature {
        Feature {
            name: "region".into(),
            kind: ColumnType::Category,
            encoding: Encoding::Onehot { levels: vec!["east".into(), "north".into(), "west".into()], drop_first, unseen: Unseen::Baseline },
        }
    }

    fn size() -> Feature {
        Feature { name: "size".into(), kind: ColumnType::Number, encoding: Encoding::Identity }
    }

    #[test]
    fn a_dropped_level_and_an_unseen_one_have_no_indicator() {
        let design = Design::new(vec![region(true), size()]);
        assert_eq!(design.column_names(), ["region=north", "region=west", "size"]);
        let mut buffer = RowBuffer::default();
        assert_eq!(design.row(&[0.0, 7.0], &mut buffer).high, [0.0, 0.0, 7.0]);
        assert_eq!(design.row(&[2.0, 7.0], &mut buffer).high, [0.0, 1.0, 7.0]);
        assert_eq!(design.row(&[-1.0, 7.0], &mut buffer).high, [0.0, 0.0, 7.0]);
    }

    #[test]
    fn without_dropping_every_level_has_its_column() {
        let design = Design::new(vec![size(), region(false)]);
        assert_eq!(design.column_names(), ["size", "region=east", "region=north", "region=west"]);
        assert_eq!(design.columns_of(1), 1..4);
        let mut buffer = RowBuffer::default();
        assert_eq!(design.row(&[7.0, 0.0], &mut buffer).high, [7.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_cell_is_what_its_row_was_made_from() {
        for drop_first in [true, false] {
            let design = Design::new(vec![size(), region(drop_first)]);
            let mut buffer = RowBuffer::default();
            for cells in [[7.0, 0.0], [-3.0, 1.0], [0.5, 2.0]] {
                let row = design.row(&cells, &mut buffer).high.to_vec();
                assert_eq!([0, 1].map(|feature| design.cell(feature, |column| row[column])), cells);
            }
        }
    }

    #[test]
    fn powers_carry_their_rounding() {
        let feature = Feature { name: "x".into(), kind: ColumnType::Number, encoding: Encoding::Polynomial { degree: 3 } };
        let design = Design::new(vec![size(), feature]);
        assert_eq!(design.column_names(), ["size", "x", "x^2", "x^3"]);
        let mut buffer = RowBuffer::default();
        let row = design.row(&[1.0, 0.1], &mut buffer);
        assert_eq!(row.high, [1.0, 0.1, 0.1 * 0.1, 0.1 * 0.1 * 0.1]);
        // 0.1f64 squared is not a float; the rest is what a fused multiply-add would leave.
        assert_eq!(row.low.map(|low| low[2]), Some(0.1f64.mul_add(0.1, -(0.1 * 0.1))));
    }

    #[test]
    fn numbers_alone_are_borrowed() {
        let design = Design::new(vec![size()]);
        let cells = [3.5];
        let mut buffer = RowBuffer::default();
        assert!(std::ptr::eq(design.row(&cells, &mut buffer).high, &cells[..]));
    }
}
