//! Features and the design columns they make.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::encoding::{Encoding, Unseen, past_name};
use crate::frame::{Column, ColumnType, Input, InputKind};
use crate::lsq::Row;

/// A feature as it was asked for, with what the training rows fixed of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// Its name: that of its column, unless several features are of the same.
    pub name: String,
    /// The type of its column in the training table; of several columns, of what it makes.
    #[serde(rename = "type")]
    pub kind: ColumnType,
    /// The columns that it is made of, unless that is the one of its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<Column>,
    /// What becomes of them.
    #[serde(flatten)]
    pub encoding: Encoding,
}

impl Feature {
    /// A feature of one column, under its name.
    #[must_use]
    pub fn of(name: impl Into<String>, kind: ColumnType, encoding: Encoding) -> Self {
        Self { name: name.into(), kind, columns: Vec::new(), encoding }
    }

    /// Its columns: name and type.
    pub fn sources(&self) -> impl Iterator<Item = (&str, ColumnType)> {
        let own = self.columns.is_empty().then_some((self.name.as_str(), self.kind));
        own.into_iter().chain(self.columns.iter().map(|column| (column.name.as_str(), column.kind)))
    }

    /// Design columns it makes.
    #[must_use]
    pub fn width(&self) -> usize {
        self.encoding.width()
    }
}

/// A column that a row holds, whatever number of features is made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct RawColumn {
    /// Its name.
    pub name: String,
    /// Its type in the training table.
    pub kind: ColumnType,
    /// Its levels, if it is read as a category, and what becomes of another one.
    pub levels: Option<(Vec<String>, Unseen)>,
    /// What its numbers have to be above.
    pub above: Option<f64>,
    /// Whether a row must hold it.
    pub required: bool,
    /// The column of whose rows before it holds a value. A row of a request need not hold that: it is known from the last rows.
    pub past: Option<Past>,
}

/// Where a past value is taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// The column.
    pub column: String,
    /// Rows back, at least 1.
    pub lag: usize,
}

impl RawColumn {
    /// What a row of a request must hold for it.
    #[must_use]
    pub fn input(&self) -> Input {
        let kind = match (&self.levels, self.kind, self.above) {
            (Some((levels, unseen)), ..) => InputKind::Category {
                levels: (0..).zip(levels).map(|(index, level)| (level.clone(), index)).collect::<HashMap<String, u32>>(),
                unseen: match unseen {
                    Unseen::Error => crate::frame::Unseen::Error,
                    Unseen::Baseline => crate::frame::Unseen::Baseline,
                },
            },
            (None, ColumnType::Timestamp, _) => InputKind::Timestamp,
            (None, _, Some(above)) => InputKind::Above(above),
            (None, ColumnType::Boolean, None) => InputKind::Boolean,
            (None, ColumnType::Integer, None) => InputKind::Integer,
            (None, _, None) => InputKind::Number,
        };
        Input { name: self.name.clone(), kind, required: self.required && self.past.is_none() }
    }
}

/// The features of a model in order: cells of a row (one a raw column) to a row of X (p values).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Design {
    features: Vec<Feature>,
    /// The columns that rows hold, in the order in which features first name them, past values after all others.
    columns: Vec<RawColumn>,
    /// By feature, the places of its columns.
    places: Vec<Vec<usize>>,
    /// First design column of each feature, and p at the end.
    offsets: Vec<usize>,
    /// Whether every feature is a single number, so that cells are the design row.
    plain: bool,
    /// Whether some feature makes powers.
    extended: bool,
    /// Columns of which past values are taken, in the order in which features first name them.
    lagged: Vec<String>,
    /// The cells of past values.
    past: Vec<PastCell>,
}

/// A cell of a past value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastCell {
    /// Its place among the cells of a row.
    pub place: usize,
    /// The place of its column among those of which past values are taken.
    pub column: usize,
    /// Rows back, at least 1.
    pub lag: usize,
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
        let mut width = 0_usize;
        let mut columns: Vec<RawColumn> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut places = Vec::with_capacity(features.len());
        for feature in &features {
            offsets.push(width);
            width = width.saturating_add(feature.width());
            let now = feature.encoding.past().first().is_none_or(|(lag, ..)| *lag == 0);
            let own = feature.sources().filter(|_| now).enumerate().map(|(part, (name, kind))| {
                let place = *known.entry(name.to_owned()).or_insert_with(|| {
                    columns.push(RawColumn { name: name.to_owned(), kind, levels: None, above: None, required: false, past: None });
                    columns.len() - 1
                });
                let column = &mut columns[place];
                column.required |= !feature.encoding.takes_missing();
                if let Some(above) = feature.encoding.above() {
                    column.above = Some(column.above.map_or(above, |before| before.max(above)));
                }
                if let Some((levels, unseen)) = feature.encoding.levels(part) {
                    // Who minds a level that was never seen is heard first.
                    match &mut column.levels {
                        Some((_, before)) if unseen == Unseen::Error => *before = unseen,
                        Some(_) => {}
                        none => *none = Some((levels.to_vec(), unseen)),
                    }
                }
                place
            });
            places.push(own.collect::<Vec<usize>>());
        }
        // Rows of a request need not hold past values: those that they must hold stand together.
        let (mut lagged, mut past, mut known) = (Vec::new(), Vec::new(), HashMap::new());
        for (feature, places) in features.iter().zip(&mut places) {
            let Some((source, _)) = feature.sources().next() else { continue };
            for (lag, ..) in feature.encoding.past().into_iter().filter(|(lag, ..)| *lag > 0) {
                let column = lagged.iter().position(|column| column == source).unwrap_or_else(|| {
                    lagged.push(source.to_owned());
                    lagged.len() - 1
                });
                places.push(*known.entry((column, lag)).or_insert_with(|| {
                    let (name, lag) = (past_name(source, lag), lag as usize);
                    past.push(PastCell { place: columns.len(), column, lag });
                    let past = Some(Past { column: source.to_owned(), lag });
                    columns.push(RawColumn { name, kind: ColumnType::Number, levels: None, above: None, required: true, past });
                    columns.len() - 1
                }));
            }
        }
        offsets.push(width);
        let plain = features.iter().all(|feature| feature.encoding == Encoding::Identity) && columns.len() == features.len();
        let extended = features.iter().any(|feature| matches!(feature.encoding, Encoding::Polynomial { .. }));
        Self { features, columns, places, offsets, plain, extended, lagged, past }
    }

    /// The features.
    #[must_use]
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// The columns that rows hold, one a cell.
    #[must_use]
    pub fn columns(&self) -> &[RawColumn] {
        &self.columns
    }

    /// The columns of which past values are taken; none for most designs.
    #[must_use]
    pub fn lagged(&self) -> &[String] {
        &self.lagged
    }

    /// The cells of past values.
    #[must_use]
    pub fn past(&self) -> &[PastCell] {
        &self.past
    }

    /// Rows back of the oldest value that is taken; 0 where none is.
    #[must_use]
    pub fn reach(&self) -> usize {
        self.past.iter().map(|cell| cell.lag).max().unwrap_or(0)
    }

    /// Rows from the last one that is known to the one that is predicted.
    #[must_use]
    pub fn horizon(&self) -> usize {
        self.features.iter().find_map(|feature| feature.encoding.horizon()).unwrap_or(1) as usize
    }

    /// The linear part that past values of a column have in the response: rows back, design column and weight of each.
    #[must_use]
    pub fn weights_of_past(&self, column: &str) -> Vec<(usize, usize, f64)> {
        let of = |(_, feature): &(usize, &Feature)| feature.sources().next().is_some_and(|(source, _)| source == column);
        let weights = |(index, feature): (usize, &Feature)| {
            let begin = self.offsets[index];
            feature.encoding.past().into_iter().map(move |(lag, own, weight)| (lag as usize, begin + own, weight))
        };
        self.features.iter().enumerate().filter(of).flat_map(weights).filter(|(lag, ..)| *lag > 0).collect()
    }

    /// How many columns rows must hold, or may: those that are no past values, which stand first.
    #[must_use]
    pub fn own_columns(&self) -> usize {
        self.columns.len() - self.past.len()
    }

    /// By part of a feature, the place of its column.
    pub(super) fn places(&self, feature: usize) -> &[usize] {
        &self.places[feature]
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

    /// Whether columns are known better than to a float, so that their rounding errors go with them.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.extended
    }

    /// Whether the training rows fix parameters of some feature, beside the levels of categories.
    #[must_use]
    pub fn learns(&self) -> bool {
        self.features.iter().any(|feature| feature.encoding.learns())
    }

    /// Readable names of the p design columns: `x`, `x^2`, `region=north`. Where two features make a column of one name, that of the
    /// second stands in brackets after its feature's.
    #[must_use]
    pub fn column_names(&self) -> Vec<String> {
        let mut taken = HashSet::new();
        let mut names = Vec::with_capacity(self.width());
        for feature in &self.features {
            let columns: Vec<&str> = feature.sources().map(|(name, _)| name).collect();
            for mut name in feature.encoding.names(&columns) {
                if !taken.insert(name.clone()) {
                    name = format!("{}[{name}]", feature.name);
                    taken.insert(name.clone());
                }
                names.push(name);
            }
        }
        names
    }

    /// A row of X (p values) from a row of cells (one a raw column; a category cell holds its level's index, −1 for an unseen one; one
    /// that may be missing NaN). Borrows the cells where they already are the row.
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
        for (index, feature) in self.features.iter().enumerate() {
            let (places, columns) = (&self.places[index], self.columns_of(index));
            let low = if self.extended { &mut low[columns.clone()] } else { &mut [][..] };
            feature.encoding.encode(|part| cells[places[part]], &mut high[columns], low);
        }
        Row { high, low: self.extended.then_some(low) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{Factor, Filling};

    fn region(drop_first: bool) -> Feature {
        let levels = vec!["east".into(), "north".into(), "west".into()];
        Feature::of("region", ColumnType::Category, Encoding::Onehot { levels, drop_first, unseen: Unseen::Baseline })
    }

    fn size() -> Feature {
        Feature::of("size", ColumnType::Number, Encoding::Identity)
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
    fn powers_carry_their_rounding() {
        let feature = Feature::of("x", ColumnType::Number, Encoding::Polynomial { degree: 3 });
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

    fn of_column(label: &str, column: &str, encoding: Encoding) -> Feature {
        let columns = if label == column { Vec::new() } else { vec![Column { name: column.into(), kind: ColumnType::Number }] };
        Feature { columns, ..Feature::of(label, ColumnType::Number, encoding) }
    }

    #[test]
    fn one_column_feeds_several_features_and_stands_once_in_a_row() {
        let levels = Some(vec!["east".into(), "north".into(), "west".into()]);
        let factors = vec![Factor::default(), Factor { levels, drop_first: true }];
        let column = |name: &str, kind| Column { name: name.into(), kind };
        let columns = vec![column("size", ColumnType::Number), column("region", ColumnType::Category)];
        let product = Encoding::Interaction { factors, unseen: Unseen::Error };
        let design = Design::new(vec![
            size(),
            of_column("polynomial(size)", "size", Encoding::Polynomial { degree: 2 }),
            region(true),
            Feature { columns, ..Feature::of("size:region", ColumnType::Number, product) },
        ]);
        let names: Vec<&str> = design.columns().iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["size", "region"]);
        assert_eq!(
            design.column_names(),
            ["size", "polynomial(size)[size]", "size^2", "region=north", "region=west", "size:region=north", "size:region=west"]
        );
        let mut buffer = RowBuffer::default();
        assert_eq!(design.row(&[3.0, 2.0], &mut buffer).high, [3.0, 3.0, 9.0, 0.0, 1.0, 0.0, 3.0]);
        assert_eq!(design.row(&[3.0, 0.0], &mut buffer).high, [3.0, 3.0, 9.0, 0.0, 0.0, 0.0, 0.0]);
        // Of two features of one column, the one that minds a new level is heard.
        assert_eq!(design.columns()[1].levels.as_ref().map(|(_, unseen)| *unseen), Some(Unseen::Error));
    }

    #[test]
    fn a_cell_may_be_missing_where_every_feature_of_it_says_so() {
        let impute = Encoding::Impute { with: Filling::Constant, value: 4.0, indicator: true };
        let alone = Design::new(vec![of_column("size", "size", impute.clone())]);
        assert!(!alone.columns()[0].required);
        assert_eq!(alone.column_names(), ["size", "size:missing"]);
        let mut buffer = RowBuffer::default();
        assert_eq!(alone.row(&[f64::NAN], &mut buffer).high, [4.0, 1.0]);
        assert_eq!(alone.row(&[7.0], &mut buffer).high, [7.0, 0.0]);
        assert!(Design::new(vec![of_column("impute(size)", "size", impute), size()]).columns()[0].required);
    }

    #[test]
    fn each_value_has_its_bin_and_what_lies_beyond_the_edges_the_outermost() {
        let bins = |drop_first| {
            let encoding = Encoding::Bins { quantiles: None, edges: vec![0.0, 10.0, 20.5], drop_first };
            Design::new(vec![of_column("age", "age", encoding)])
        };
        assert_eq!(bins(false).column_names(), ["age[0,10)", "age[10,20.5]"]);
        assert_eq!(bins(true).column_names(), ["age[10,20.5]"]);
        let mut buffer = RowBuffer::default();
        for (age, bin) in [(-5.0, 0.0), (0.0, 0.0), (9.9, 0.0), (10.0, 1.0), (20.5, 1.0), (99.0, 1.0)] {
            assert_eq!(bins(true).row(&[age], &mut buffer).high, [bin], "{age}");
            assert_eq!(bins(false).row(&[age], &mut buffer).high, [1.0 - bin, bin], "{age}");
        }
    }

    #[test]
    fn past_values_are_cells_after_all_others_and_each_there_once() {
        let lag = |lags: &[u32], horizon| of_column("lag(y)", "y", Encoding::Lag { lags: lags.to_vec(), horizon });
        let difference = |lag, order, period| {
            let encoding = Encoding::Difference { lag, order, period, horizon: 1 };
            of_column("difference(x)", "x", encoding)
        };
        let design = Design::new(vec![lag(&[1, 3], 1), difference(0, 2, 3), size(), lag(&[3], 1)]);
        let names: Vec<&str> = design.columns().iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["x", "size", "y:lag1", "y:lag3", "x:lag3", "x:lag6"]);
        assert_eq!((design.own_columns(), design.reach(), design.lagged()), (2, 6, &["y".to_owned(), "x".to_owned()][..]));
        assert_eq!(design.column_names(), ["y:lag1", "y:lag3", "difference(x,order=2,period=3)", "size", "lag(y)[y:lag3]"]);
        let mut buffer = RowBuffer::default();
        assert_eq!(design.row(&[10.0, 7.0, 1.0, 3.0, 4.0, 9.0], &mut buffer).high, [1.0, 3.0, 10.0 - 8.0 + 9.0, 7.0, 3.0]);
        assert_eq!(design.weights_of_past("y"), [(1, 0, 1.0), (3, 1, 1.0), (3, 4, 1.0)]);
        assert_eq!(design.weights_of_past("x"), [(3, 2, -2.0), (6, 2, 1.0)]);
        // A row to predict need not hold them, one of training must.
        let held: Vec<bool> = design.columns().iter().map(|column| column.input().required).collect();
        assert_eq!(held, [true, true, false, false, false, false]);
        assert!(design.columns().iter().all(|column| column.required));
        let far = Design::new(vec![lag(&[1, 2], 3)]);
        assert_eq!((far.column_names(), far.horizon(), far.reach()), (vec!["y:lag3".to_owned(), "y:lag4".to_owned()], 3, 4));
    }

    #[test]
    fn stored_features_read_back_bit_by_bit_and_old_ones_are_of_the_column_of_their_name() {
        let spline = Encoding::Spline { df: Some(3), knots: vec![0.1 + 0.2, 1.0 / 3.0], boundary: [-1e-300, 1.0] };
        let feature = of_column("spline(x)", "x", spline);
        let text = serde_json::to_string(&feature).unwrap_or_default();
        assert_eq!(serde_json::from_str::<Feature>(&text).ok(), Some(feature), "{text}");
        let waves = super::super::Waves::asked(2, 3, None, 1, true);
        let feature = of_column("w", "x", Encoding::RandomFourier(Box::new(waves)));
        let text = serde_json::to_string(&feature).unwrap_or_default();
        assert_eq!(serde_json::from_str::<Feature>(&text).ok(), Some(feature), "{text}");
        let old = r#"{"name":"x","type":"number","as":"polynomial","degree":3}"#;
        let read: Option<Feature> = serde_json::from_str(old).ok();
        assert_eq!(read, Some(Feature::of("x", ColumnType::Number, Encoding::Polynomial { degree: 3 })));
        assert_eq!(serde_json::to_string(&read).ok().as_deref(), Some(old));
    }
}
