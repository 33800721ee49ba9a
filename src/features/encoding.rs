//! What becomes of the cells of a feature: the columns of X that it makes, and their names.
//!
//! Each encoding is a function of one row, with parameters that were fixed when the version was fitted. One and the same function makes the
//! rows of training, of predictions and of updates.

use serde::{Deserialize, Serialize};

use super::calendar::{Part, Season, moment};
use super::{fourier, spline};
use crate::frame::ColumnType;
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

/// What stands in for a number that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filling {
    /// The mean of the training rows.
    Mean,
    /// Their median.
    Median,
    /// A number that was given.
    Constant,
}

/// One column of a product.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Factor {
    /// The levels of a category; absent for a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub levels: Option<Vec<String>>,
    /// Whether the first level has no column.
    pub drop_first: bool,
}

impl Factor {
    /// Columns that it alone would make.
    fn width(&self) -> usize {
        self.levels.as_ref().map_or(1, |levels| indicators(levels, self.drop_first))
    }

    /// The name of one of them.
    fn name(&self, column: &str, place: usize) -> String {
        match &self.levels {
            None => column.to_owned(),
            Some(levels) => {
                format!("{column}={}", levels.get(place + usize::from(self.drop_first)).map_or("", String::as_str))
            }
        }
    }

    /// The one of them that is not zero, and its value.
    fn value(&self, cell: f64) -> Option<(usize, f64)> {
        match &self.levels {
            None => Some((0, cell)),
            Some(_) => level(cell, self.drop_first).map(|place| (place, 1.0)),
        }
    }
}

/// How columns of a table enter the design.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "as", rename_all = "snake_case")]
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
    /// (x − mean)/standard deviation.
    Standardise {
        /// Of the training rows.
        mean: f64,
        /// Of the training rows, by n − 1.
        standard_deviation: f64,
    },
    /// ln(x + offset).
    Log {
        /// What is added first.
        offset: f64,
    },
    /// x, or a number in its place where it is missing.
    Impute {
        /// What the number is.
        with: Filling,
        /// The number.
        value: f64,
        /// Whether a column of zeros and ones says where it is missing.
        indicator: bool,
    },
    /// The products of columns: of each level of a category with the others.
    Interaction {
        /// One a column.
        factors: Vec<Factor>,
        /// A level that is not in its list.
        unseen: Unseen,
    },
    /// One 0/1 column for each stretch between two edges.
    Bins {
        /// How many stretches of about as many training rows each; absent where the edges were given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        quantiles: Option<u32>,
        /// In rising order. What lies beyond the outermost belongs to the stretch next to it.
        edges: Vec<f64>,
        /// Whether the first stretch has no column.
        drop_first: bool,
    },
    /// A natural cubic spline.
    Spline {
        /// How many columns; absent where the knots were given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        df: Option<u32>,
        /// The knots within the data, in rising order.
        knots: Vec<f64>,
        /// The least and the greatest value of the training rows: beyond them the spline is a line.
        boundary: [f64; 2],
    },
    /// Parts of a point in time, and waves of given periods.
    Calendar {
        /// The parts.
        parts: Vec<Part>,
        /// Whether each value of a part has a 0/1 column of its own.
        onehot: bool,
        /// Whether the first value of each part has no column then.
        drop_first: bool,
        /// The waves.
        seasonality: Vec<Season>,
    },
    /// Random Fourier features of a Gaussian kernel.
    RandomFourier(Box<fourier::Waves>),
    /// Values of rows before: one column a lag.
    Lag {
        /// Rows back, in rising order, with a horizon of 1.
        lags: Vec<u32>,
        /// Rows by which all lags are longer, and one more.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        horizon: u32,
    },
    /// (1 − B^period)^order·x, with B the value one row before, of x so many rows back.
    Difference {
        /// Rows back of its first value, with a horizon of 1; 0 is the row itself.
        lag: u32,
        /// How often it is taken.
        order: u32,
        /// Rows between two values of which it is taken.
        period: u32,
        /// Rows by which `lag` is longer, and one more.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        horizon: u32,
    },
}

fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_one(value: &u32) -> bool {
    *value == 1
}

impl Encoding {
    /// Its name in a request.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Polynomial { .. } => "polynomial",
            Self::Onehot { .. } => "onehot",
            Self::Standardise { .. } => "standardise",
            Self::Log { .. } => "log",
            Self::Impute { .. } => "impute",
            Self::Interaction { .. } => "interaction",
            Self::Bins { .. } => "bins",
            Self::Spline { .. } => "spline",
            Self::Calendar { .. } => "calendar",
            Self::RandomFourier(_) => "random_fourier",
            Self::Lag { .. } => "lag",
            Self::Difference { .. } => "difference",
        }
    }

    /// Of features of past values: the weight in its design columns of the value so many rows back, as (rows back, its column, weight);
    /// one entry a part, and none for other features.
    #[must_use]
    pub fn past(&self) -> Vec<(u32, usize, f64)> {
        match self {
            Self::Lag { lags, horizon } => lags.iter().enumerate().map(|(column, lag)| (lag + horizon - 1, column, 1.0)).collect(),
            Self::Difference { lag, order, period, horizon } => {
                let first = if *lag == 0 { 0 } else { lag + horizon - 1 };
                (0..).zip(differences(*order)).map(|(step, weight)| (first + step * period, 0, weight)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Of features of past values: rows from the last one that is known to the one that is predicted.
    #[must_use]
    pub fn horizon(&self) -> Option<u32> {
        if let Self::Lag { horizon, .. } | Self::Difference { horizon, .. } = self { Some(*horizon) } else { None }
    }

    /// Design columns it makes.
    #[must_use]
    pub fn width(&self) -> usize {
        match self {
            Self::Identity | Self::Standardise { .. } | Self::Log { .. } | Self::Difference { .. } => 1,
            Self::Polynomial { degree } => *degree as usize,
            Self::Onehot { levels, drop_first, .. } => indicators(levels, *drop_first),
            Self::Impute { indicator, .. } => 1 + usize::from(*indicator),
            Self::Interaction { factors, .. } => factors.iter().map(Factor::width).fold(1, usize::saturating_mul),
            Self::Bins { edges, drop_first, .. } => edges.len().saturating_sub(1 + usize::from(*drop_first)),
            Self::Spline { knots, .. } => knots.len() + 1,
            Self::Calendar { parts, onehot, drop_first, seasonality } => {
                let part = |part: &Part| if *onehot { part.values() - usize::from(*drop_first) } else { 1 };
                parts.iter().map(part).sum::<usize>() + seasonality.iter().map(Season::width).sum::<usize>()
            }
            Self::RandomFourier(waves) => waves.width(),
            Self::Lag { lags, .. } => lags.len(),
        }
    }

    /// Whether the training rows fix parameters of it, beside the levels of categories.
    #[must_use]
    pub fn learns(&self) -> bool {
        match self {
            Self::Standardise { .. } | Self::Spline { .. } => true,
            Self::Impute { with, .. } => *with != Filling::Constant,
            Self::Bins { quantiles, .. } => quantiles.is_some(),
            Self::RandomFourier(waves) => waves.learns(),
            Self::Identity
            | Self::Polynomial { .. }
            | Self::Onehot { .. }
            | Self::Log { .. }
            | Self::Interaction { .. }
            | Self::Calendar { .. }
            | Self::Lag { .. }
            | Self::Difference { .. } => false,
        }
    }

    /// Whether a cell of it may be missing.
    #[must_use]
    pub fn takes_missing(&self) -> bool {
        matches!(self, Self::Impute { .. })
    }

    /// The number that its cell has to be above.
    #[must_use]
    pub fn above(&self) -> Option<f64> {
        if let Self::Log { offset } = self { Some(-offset) } else { None }
    }

    /// The levels of one of its columns, if that is one of categories, and what becomes of another level.
    #[must_use]
    pub fn levels(&self, part: usize) -> Option<(&[String], Unseen)> {
        match self {
            Self::Onehot { levels, unseen, .. } => Some((levels, *unseen)),
            Self::Interaction { factors, unseen } => factors.get(part)?.levels.as_ref().map(|levels| (levels.as_slice(), *unseen)),
            _ => None,
        }
    }

    /// The same, to be filled in when they are found.
    pub fn levels_mut(&mut self, part: usize) -> Option<&mut Vec<String>> {
        match self {
            Self::Onehot { levels, .. } => Some(levels),
            Self::Interaction { factors, .. } => factors.get_mut(part)?.levels.as_mut(),
            _ => None,
        }
    }

    /// Whether a column of this type can be the one at `part`.
    #[must_use]
    pub fn fits(&self, kind: ColumnType) -> bool {
        let number = matches!(kind, ColumnType::Number | ColumnType::Integer);
        match self {
            Self::Polynomial { .. }
            | Self::Standardise { .. }
            | Self::Log { .. }
            | Self::Impute { .. }
            | Self::Bins { .. }
            | Self::Spline { .. }
            | Self::RandomFourier(_)
            | Self::Lag { .. }
            | Self::Difference { .. } => number,
            Self::Identity => number || kind == ColumnType::Boolean,
            Self::Onehot { .. } => !matches!(kind, ColumnType::Number | ColumnType::Timestamp),
            Self::Interaction { .. } => kind != ColumnType::Timestamp,
            Self::Calendar { .. } => kind == ColumnType::Timestamp,
        }
    }

    /// Readable names of the columns that it makes of columns of these names.
    #[must_use]
    pub fn names(&self, columns: &[&str]) -> Vec<String> {
        let name = columns.first().copied().unwrap_or_default();
        match self {
            Self::Identity => vec![name.to_owned()],
            Self::Standardise { .. } => vec![format!("standardise({name})")],
            Self::Log { offset } if *offset > 0.0 => vec![format!("log({name}+{offset})")],
            Self::Log { offset } if *offset < 0.0 => vec![format!("log({name}{offset})")],
            Self::Log { .. } => vec![format!("log({name})")],
            Self::Impute { indicator, .. } => {
                let mut names = vec![name.to_owned()];
                names.extend(indicator.then(|| format!("{name}:missing")));
                names
            }
            Self::Polynomial { degree } => {
                (1..=*degree).map(|power| if power == 1 { name.to_owned() } else { format!("{name}^{power}") }).collect()
            }
            Self::Onehot { levels, drop_first, .. } => {
                levels.iter().skip(usize::from(*drop_first)).map(|level| format!("{name}={level}")).collect()
            }
            Self::Interaction { factors, .. } => {
                let mut names = vec![String::new()];
                for (factor, column) in factors.iter().zip(columns) {
                    let colon = |name: &String| if name.is_empty() { String::new() } else { format!("{name}:") };
                    let with =
                        |name: &String| (0..factor.width()).map(|place| colon(name) + &factor.name(column, place)).collect::<Vec<_>>();
                    names = names.iter().flat_map(with).collect();
                }
                names
            }
            Self::Bins { edges, drop_first, .. } => {
                let last = edges.len().saturating_sub(2);
                let named =
                    |(place, edge): (usize, &[f64])| format!("{name}[{},{}{}", edge[0], edge[1], if place == last { ']' } else { ')' });
                edges.windows(2).enumerate().map(named).skip(usize::from(*drop_first)).collect()
            }
            Self::Spline { .. } => (1..=self.width()).map(|place| format!("{name}:ns{place}")).collect(),
            Self::Calendar { parts, onehot, drop_first, seasonality } => {
                let part = |part: &Part| {
                    if *onehot {
                        (usize::from(*drop_first)..part.values())
                            .map(|value| format!("{name}:{}={}", part.as_str(), part.name(value)))
                            .collect()
                    } else {
                        vec![format!("{name}:{}", part.as_str())]
                    }
                };
                parts.iter().flat_map(part).chain(seasonality.iter().flat_map(|season| season.names(name))).collect()
            }
            Self::RandomFourier(_) => {
                let of = columns.join(",");
                (1..=self.width()).map(|place| format!("random_fourier({of}):{place}")).collect()
            }
            Self::Lag { .. } => self.past().into_iter().map(|(lag, ..)| past_name(name, lag)).collect(),
            Self::Difference { order, period, .. } => {
                let mut of = self.past().first().map_or_else(String::new, |(lag, ..)| past_name(name, *lag));
                for (word, value) in [("order", order), ("period", period)].into_iter().filter(|(_, value)| **value > 1) {
                    of = format!("{of},{word}={value}");
                }
                vec![format!("difference({of})")]
            }
        }
    }

    /// Fills `out`, which is zero, with the columns that it makes of its cells; `low` (as long, or empty) with what rounding them leaves.
    /// A category's cell holds its level's index, −1 for an unseen one; a timestamp's the microseconds since 1970.
    pub(super) fn encode(&self, cell: impl Fn(usize) -> f64, out: &mut [f64], low: &mut [f64]) {
        let x = cell(0);
        match self {
            Self::Identity => out[0] = x,
            Self::Polynomial { degree } => {
                for (power, value) in powers(x).take(*degree as usize).enumerate() {
                    (out[power], low[power]) = (value.hi, value.lo);
                }
            }
            Self::Onehot { drop_first, .. } => {
                if let Some(place) = level(x, *drop_first) {
                    out[place] = 1.0;
                }
            }
            Self::Standardise { mean, standard_deviation } => out[0] = (x - mean) / standard_deviation,
            Self::Log { offset } => out[0] = (x + offset).ln(),
            Self::Impute { value, indicator, .. } => {
                out[0] = if x.is_nan() { *value } else { x };
                if *indicator {
                    out[1] = f64::from(u8::from(x.is_nan()));
                }
            }
            Self::Interaction { factors, .. } => {
                let mut found = Some((0, 1.0));
                for (part, factor) in factors.iter().enumerate() {
                    found = found
                        .zip(factor.value(cell(part)))
                        .map(|((place, product), (own, value))| (place * factor.width() + own, product * value));
                }
                if let Some((place, product)) = found {
                    out[place] = product;
                }
            }
            Self::Bins { edges, drop_first, .. } => {
                let inner = edges.get(1..edges.len().saturating_sub(1)).unwrap_or_default();
                let place = inner.partition_point(|edge| *edge <= x);
                if let Some(place) = place.checked_sub(usize::from(*drop_first)) {
                    out[place] = 1.0;
                }
            }
            Self::Spline { knots, boundary, .. } => spline::natural(x, knots, *boundary, out),
            Self::Calendar { parts, onehot, drop_first, seasonality } => {
                let moment = moment(x);
                let mut rest = out;
                for part in parts {
                    let value = part.of(&moment);
                    let width = if *onehot { part.values() - usize::from(*drop_first) } else { 1 };
                    let (own, after) = rest.split_at_mut(width);
                    if !onehot {
                        own[0] = part.number(value);
                    } else if let Some(place) = value.checked_sub(usize::from(*drop_first)) {
                        own[place] = 1.0;
                    }
                    rest = after;
                }
                for season in seasonality {
                    let (own, after) = rest.split_at_mut(season.width());
                    season.waves(x, own);
                    rest = after;
                }
            }
            Self::RandomFourier(waves) => waves.at(cell, out),
            Self::Lag { .. } => out.iter_mut().enumerate().for_each(|(part, out)| *out = cell(part)),
            Self::Difference { order, .. } => {
                let weights = differences(*order).enumerate();
                out[0] = weights.map(|(part, weight)| weight * cell(part)).sum();
            }
        }
    }
}

/// The coefficients of (1 − B)^order.
fn differences(order: u32) -> impl Iterator<Item = f64> {
    (0..=order).scan(1.0, move |next, step| {
        let weight = *next;
        *next *= -f64::from(order - step) / f64::from(step + 1);
        Some(weight)
    })
}

/// The name of a column's value so many rows back.
pub(super) fn past_name(column: &str, lag: u32) -> String {
    if lag == 0 { column.to_owned() } else { format!("{column}:lag{lag}") }
}

/// Columns of 0 and 1 that levels make.
fn indicators(levels: &[String], drop_first: bool) -> usize {
    levels.len() - usize::from(drop_first && !levels.is_empty())
}

/// The indicator that a level's index sets, if it has one.
fn level(cell: f64, drop_first: bool) -> Option<usize> {
    let shifted = cell - f64::from(u8::from(drop_first));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a level's index: small, whole, not negative
    (shifted >= 0.0).then_some(shifted as usize)
}

/// x, x², x³, … to about 31 digits.
pub(super) fn powers(x: f64) -> impl Iterator<Item = Double> {
    std::iter::successors(Some(Double::from(x)), move |power| Some(*power * x))
}
