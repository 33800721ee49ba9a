//! What the rows of training looked like, and how far other rows are from that: the population stability index of each feature.
//!
//! A feature's values fall into bins: numbers into those between quantiles of the training sample, categories into one a level, values that
//! are missing or were never seen into bins of their own. With p the shares of the rows that are watched (n of them) and q those of the sample
//! (m rows), both taken as (count + ½)/(rows + B/2) so that an empty bin has a logarithm, the index is
//!
//! PSI = Σ (p − q)·ln(p/q)
//!
//! over the B bins that hold anything. It is the symmetric divergence of Kullback & Leibler, "On Information and Sufficiency", Ann. Math.
//! Stat. 22 (1951), eq. 2.6; as an index of credit scoring, with 0.1 and 0.25 as the usual limits of a moderate and a major shift, see
//! Siddiqi, *Credit Risk Scorecards* (2006). Where nothing has shifted, PSI/(1/n + 1/m) is distributed as χ² with B − 1 degrees of freedom
//! (Yurdakul, *Statistical Properties of the Population Stability Index*, 2018): few rows alone give an index of (B − 1)(1/n + 1/m).
//!
//! Not here: who counts rows, and for how long.

use serde::{Deserialize, Serialize};

use super::State;
use super::version::finite;
use crate::features::{Design, RowBuffer, scattered};
use crate::lsq::Gathered;
use crate::lsq::inference::chi_squared_quantile;

/// An index from which a shift is called moderate, and a feature `shifted`.
pub const MODERATE: f64 = 0.1;
/// An index from which a shift is called major.
pub const MAJOR: f64 = 0.25;
/// The index, less its noise, below which a feature that has shifted is steady again.
const RETURNED: f64 = 0.05;
/// Rows that an index needs to be judged.
pub const FEWEST: u64 = 100;
/// Training rows that a reference needs to be judged against.
const FEWEST_OF_TRAINING: u64 = 10;
/// The chance that noise alone passes the critical value, in any feature of a version, at one look.
const CHANCE: f64 = 0.001;
/// Features that are watched: the first of a version.
pub const WATCHED: usize = 1000;

/// Training rows that are looked at: all where there are no more.
const SAMPLE: usize = 4096;
/// Cells that the sample holds at the most.
const SAMPLE_CELLS: usize = 2 << 20;
/// Rows of a sample at the least, however wide they are.
const NARROWEST: usize = 256;
/// Multiplications spent on the leverage of the sample.
const LEVERAGE_WORK: usize = 20_000_000;
/// Bins between quantiles.
const QUANTILES: usize = 10;
/// Rows of the sample that a bin between quantiles holds at the least.
const ROWS_A_BIN: usize = 20;
/// Levels with a bin of their own.
const LEVELS: usize = 20;
/// The share of the sample below which a level goes in with the other rare ones.
const RARE: f64 = 0.01;

/// What is known of the inputs that a version was fitted on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inputs {
    /// Nothing: the version is older than the question.
    #[default]
    Unknown,
    /// Nothing: the fit was asked not to look.
    Off,
    /// What a sample of its rows looked like.
    Known(Box<Reference>),
}

impl Inputs {
    /// Whether nothing was ever asked.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

/// A sample of the rows of a fit, summed up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// Rows of the fit.
    pub rows: u64,
    /// Those of them that were looked at.
    pub sampled: u64,
    /// The columns that rows hold in their order, the first [`WATCHED`].
    pub features: Vec<Values>,
    /// Leverage of the sample's rows, as rows to predict.
    pub leverage: Leverages,
    /// By feature, the share of the dataset's rows in which it is missing.
    pub missing: Vec<f64>,
}

/// The values of one feature in the sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Values {
    /// Of numbers.
    Number {
        /// The least value, quantiles in rising order, the greatest value.
        edges: Vec<f64>,
        /// Rows between each two of them, the upper one included.
        counts: Vec<u64>,
    },
    /// Of a category.
    Category {
        /// Rows of each level.
        counts: Vec<u64>,
    },
}

/// Quantiles of leverage; `None` where they are not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Leverages {
    /// The median.
    pub p50: Option<f64>,
    /// Nine in ten are below.
    pub p90: Option<f64>,
    /// 99 in a hundred are below.
    pub p99: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
}

/// A sample of training rows, gathered while they are read: one row, drawn by a hash of its number, from each of equal stretches.
#[derive(Debug)]
pub struct Sample {
    width: usize,
    cells: Vec<f64>,
    stretch: u64,
    rows: u64,
    next: u64,
}

impl Sample {
    /// A sample of at most `rows` rows of `width` cells (one a column) that are to come.
    #[must_use]
    pub fn of(width: usize, rows: u64) -> Self {
        let most = (SAMPLE_CELLS / width.max(1)).clamp(NARROWEST, SAMPLE) as u64;
        let mut sample = Self { width, cells: Vec::new(), stretch: rows.div_ceil(most).max(1), rows: 0, next: 0 };
        sample.next = sample.drawn(0);
        sample
    }

    /// Forgets all it has seen.
    pub fn clear(&mut self) {
        self.cells.clear();
        self.rows = 0;
        self.next = self.drawn(0);
    }

    fn rows_taken(&self) -> usize {
        self.cells.len().checked_div(self.width).unwrap_or(0)
    }

    /// Whether it has seen nothing yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The row that is taken of the stretch that begins at a row.
    fn drawn(&self, begin: u64) -> u64 {
        begin + scattered(begin) % self.stretch
    }

    /// Looks at so many more rows, of which `cell` tells the row and the feature.
    pub fn see(&mut self, rows: usize, cell: impl Fn(usize, usize) -> f64) {
        let end = self.rows + rows as u64;
        while self.next < end {
            // Within the block, whose length is a usize.
            let row = usize::try_from(self.next - self.rows).unwrap_or(usize::MAX);
            self.cells.extend((0..self.width).map(|feature| cell(row, feature)));
            let stretch = self.next / self.stretch;
            self.next = self.drawn((stretch + 1) * self.stretch);
        }
        self.rows = end;
    }
}

impl Reference {
    /// Sums up a sample; `missing` is the share of the dataset's rows in which each feature is missing.
    #[must_use]
    pub fn of(sample: Sample, design: &Design, state: &State, missing: Vec<f64>) -> Self {
        let width = sample.width;
        let rows = sample.rows_taken();
        let mut column = Vec::with_capacity(rows);
        // Past values are not drawn anew for each row: those of an hour are never spread as those of the training rows are.
        let features = design.columns().iter().take(WATCHED.min(design.own_columns())).enumerate().map(|(place, raw)| {
            column.clear();
            column.extend(sample.cells.iter().skip(place).step_by(width.max(1)));
            match &raw.levels {
                Some((levels, _)) => {
                    let mut counts = vec![0; levels.len()];
                    for &cell in &column {
                        if let Some(count) = level(cell).and_then(|level| counts.get_mut(level)) {
                            *count += 1;
                        }
                    }
                    Values::Category { counts }
                }
                None => {
                    column.retain(|cell| !cell.is_nan());
                    numbers(&mut column)
                }
            }
        });
        let features = features.collect();
        let leverage = leverages(&sample, design, state);
        Self { rows: sample.rows, sampled: rows as u64, features, leverage, missing }
    }
}

/// The index of a level in its cell.
fn level(cell: f64) -> Option<usize> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a level's index: small, whole, not negative
    (cell >= 0.0).then_some(cell as usize)
}

/// Quantiles of some numbers, which are sorted for it, and how many lie between them.
fn numbers(values: &mut [f64]) -> Values {
    values.sort_unstable_by(f64::total_cmp);
    let (Some(&least), Some(&greatest)) = (values.first(), values.last()) else {
        return Values::Number { edges: Vec::new(), counts: Vec::new() };
    };
    let bins = (values.len() / ROWS_A_BIN).clamp(2, QUANTILES);
    let mut edges = vec![least];
    for bin in 1..bins {
        let edge = values[(bin * values.len()).div_ceil(bins) - 1];
        // Of the same value again and again one edge is enough; the least may be a bin of its own.
        if edge < greatest && (edges.len() == 1 || edges.last().is_some_and(|last| edge > *last)) {
            edges.push(edge);
        }
    }
    edges.push(greatest);
    let mut below = 0;
    let counts = edges[1..].iter().map(|edge| {
        let up_to = values.partition_point(|value| value <= edge);
        let count = up_to - below;
        below = up_to;
        count as u64
    });
    let counts = counts.collect();
    Values::Number { edges, counts }
}

fn leverages(sample: &Sample, design: &Design, state: &State) -> Leverages {
    let information = state.information();
    let square = (design.width() + 1).pow(2);
    let rows = sample.rows_taken();
    let wanted = (LEVERAGE_WORK / square).clamp(32, SAMPLE).min(rows);
    let (mut buffer, mut together, mut found) = (RowBuffer::default(), Gathered::default(), Vec::with_capacity(wanted));
    for row in (0..wanted).map(|index| index * rows / wanted) {
        information.gather(design.row(&sample.cells[row * sample.width..(row + 1) * sample.width], &mut buffer), &mut together);
    }
    information.leverages(&mut together, &mut found);
    found.sort_unstable_by(f64::total_cmp);
    let quantile = |share: f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a place in the list
        let place = (share * found.len() as f64).ceil() as usize;
        found.get(place.max(1) - 1).copied().and_then(finite)
    };
    Leverages { p50: quantile(0.5), p90: quantile(0.9), p99: quantile(0.99), max: finite(information.maximum_leverage()) }
}

/// Cuts of a feature of numbers, more than any has, so that all are compared alike.
const CUTS: usize = 12;
/// The bin of a number that is missing.
const MISSING: usize = CUTS;

/// What counts the values of one feature.
#[derive(Clone, Debug)]
enum Bins {
    /// As many cuts as are below a number; the first is just below the least of training, the last its greatest, the rest are infinite.
    Number([f64; CUTS]),
    /// The bin of each level; after those come the bins of what is missing and of what was not seen in training.
    Category { of_level: Box<[u8]>, bins: usize },
}

/// The bins of one feature, and the first of its counters.
#[derive(Clone, Debug)]
struct Counted {
    bins: Bins,
    first: usize,
}

/// The bins of all features of a version: which counter each cell adds to.
#[derive(Clone, Debug)]
pub struct Binning {
    features: Vec<Counted>,
    counters: usize,
    /// Cells of a row.
    width: usize,
}

impl Binning {
    /// The bins of a reference, for rows of `width` cells.
    #[must_use]
    pub fn of(reference: &Reference, width: usize) -> Self {
        let mut counters = 0;
        let features = reference.features.iter().map(|values| {
            let bins = match values {
                Values::Number { edges, .. } => {
                    let mut cuts = [f64::INFINITY; CUTS];
                    for (cut, edge) in cuts.iter_mut().zip(edges) {
                        *cut = *edge;
                    }
                    // Equal to the least is not below it.
                    cuts[0] = cuts[0].next_down();
                    Bins::Number(cuts)
                }
                Values::Category { counts } => {
                    let of_level: Box<[u8]> = bins_of_levels(counts).into();
                    let bins = of_level.iter().max().map_or(0, |last| usize::from(*last) + 1);
                    Bins::Category { of_level, bins }
                }
            };
            let first = counters;
            counters += match &bins {
                Bins::Number(_) => CUTS + 1,
                Bins::Category { bins, .. } => bins + 2,
            };
            Counted { bins, first }
        });
        let features = features.collect();
        Self { features, counters, width }
    }

    /// How many counters there are.
    #[must_use]
    pub fn counters(&self) -> usize {
        self.counters
    }

    /// Features that are counted.
    #[must_use]
    pub fn features(&self) -> usize {
        self.features.len()
    }

    /// Counts a row of cells: `add` is told the counter of each.
    #[inline]
    pub fn count(&self, cells: &[f64], mut add: impl FnMut(usize)) {
        debug_assert_eq!(cells.len(), self.width);
        for (feature, &cell) in self.features.iter().zip(cells) {
            let bin = match &feature.bins {
                Bins::Number(cuts) => {
                    let below: u64 = cuts.iter().map(|cut| u64::from(cell > *cut)).sum();
                    // What is not a number is above no cut.
                    #[allow(clippy::cast_possible_truncation)] // at most the number of cuts
                    (below as usize + usize::from(cell.is_nan()) * MISSING)
                }
                Bins::Category { of_level, bins } => match level(cell).and_then(|level| of_level.get(level)) {
                    Some(bin) => usize::from(*bin),
                    None => bins + usize::from(!cell.is_nan()),
                },
            };
            add(feature.first + bin);
        }
    }

    /// The counters of a feature.
    fn counters_of(&self, feature: usize) -> std::ops::Range<usize> {
        let end = self.features.get(feature + 1).map_or(self.counters, |next| next.first);
        self.features[feature].first..end
    }

    /// What the counters say of a feature beside its reference.
    #[must_use]
    pub fn compare(&self, reference: &Reference, feature: usize, counters: &[u64]) -> Comparison {
        let counts = &counters[self.counters_of(feature)];
        let rows: u64 = counts.iter().sum();
        let (training, served, outside, missing, unseen) = match &reference.features[feature] {
            Values::Number { counts: training, .. } => {
                let (inner, above) = (training.len(), training.len() + 1);
                // Without any edge there is no training to compare with, and all is below the first cut.
                let above_all = counts.get(above).copied().unwrap_or(0);
                let mut served: Vec<u64> = counts[1..=inner].to_vec();
                let mut training = training.clone();
                if inner > 1 {
                    // The first and the last bin have no end.
                    served[0] += counts[0];
                    served[inner - 1] += above_all;
                } else {
                    // Where training had one value, another one is a shift: nothing else would show it.
                    served.extend([counts[0], above_all]);
                    training.extend([0, 0]);
                }
                (training, served, Some(counts[0] + above_all), counts[MISSING], None)
            }
            Values::Category { counts: levels } => {
                let bins = counts.len() - 2;
                let mut training = vec![0; bins];
                if let Bins::Category { of_level, .. } = &self.features[feature].bins {
                    levels.iter().zip(of_level).for_each(|(count, bin)| training[usize::from(*bin)] += count);
                }
                (training, counts[..bins].to_vec(), None, counts[bins], Some(counts[bins + 1]))
            }
        };
        let mut comparison = Comparison { rows, training, served, missing, unseen, outside, ..Comparison::default() };
        comparison.weigh(self.features.len());
        comparison
    }

    /// The names of a feature's bins, in the order of [`Comparison::training`]; `levels` are those of a category.
    #[must_use]
    pub fn labels(&self, reference: &Reference, feature: usize, levels: &[String]) -> Vec<Label> {
        match (&reference.features[feature], &self.features[feature].bins) {
            (Values::Number { edges, counts }, _) if counts.len() > 1 => {
                let last = counts.len() - 1;
                (0..=last)
                    .map(|bin| Label::Range { over: (bin > 0).then(|| edges[bin]), up_to: (bin < last).then(|| edges[bin + 1]) })
                    .collect()
            }
            (Values::Number { edges, .. }, _) => match edges.first() {
                Some(&only) => vec![Label::Value(only), Label::Below(only), Label::Range { over: Some(only), up_to: None }],
                None => Vec::new(),
            },
            (Values::Category { .. }, Bins::Category { of_level, bins }) => (0..*bins)
                .map(|bin| {
                    let mut own = levels.iter().zip(of_level).filter(|(_, of)| usize::from(**of) == bin).map(|(level, _)| level);
                    match (own.next(), own.count()) {
                        (Some(level), 0) => Label::Level(level.clone()),
                        (_, others) => Label::Levels(others + 1),
                    }
                })
                .collect(),
            (Values::Category { .. }, Bins::Number(_)) => Vec::new(),
        }
    }
}

/// The bin of each level: the most frequent ones have their own, the rest share the last.
fn bins_of_levels(counts: &[u64]) -> Vec<u8> {
    #[allow(clippy::cast_precision_loss)] // rows of a sample
    let least = RARE * counts.iter().sum::<u64>() as f64;
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|level| std::cmp::Reverse(counts[*level]));
    #[allow(clippy::cast_precision_loss)]
    let own = order.iter().take(LEVELS).take_while(|level| counts[**level] as f64 >= least).count();
    #[allow(clippy::cast_possible_truncation)] // at most LEVELS
    let mut bins = vec![own as u8; counts.len()];
    // In the order of the levels, which is the one people know.
    let mut chosen = order[..own].to_vec();
    chosen.sort_unstable();
    for (bin, level) in (0..).zip(chosen) {
        bins[level] = bin;
    }
    bins
}

/// What falls into a bin.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// Numbers above one and up to another; without a limit at the ends.
    Range {
        /// They are greater than this.
        over: Option<f64>,
        /// And not greater than this.
        up_to: Option<f64>,
    },
    /// Exactly one number.
    Value(f64),
    /// Numbers less than one.
    Below(f64),
    /// One level.
    Level(String),
    /// So many rare levels.
    Levels(usize),
}

/// A feature of some rows beside training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Rows that were counted.
    pub rows: u64,
    /// Rows of the training sample by bin.
    pub training: Vec<u64>,
    /// Rows that were counted, by the same bins.
    pub served: Vec<u64>,
    /// Rows in which it is missing.
    pub missing: u64,
    /// Rows whose category was not seen in training; `None` for numbers.
    pub unseen: Option<u64>,
    /// Rows whose number is less than the least of the sample or greater than its greatest; `None` for categories.
    pub outside: Option<u64>,
    /// The population stability index; `None` without rows.
    pub psi: Option<f64>,
    /// What noise alone makes of it in the mean.
    pub noise: Option<f64>,
    /// What noise alone hardly ever exceeds.
    pub critical: Option<f64>,
}

/// How a feature stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Too few rows to tell.
    #[default]
    TooFewRows,
    /// As in training.
    Steady,
    /// No longer as in training.
    Shifted,
}

impl Standing {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooFewRows => "too_few_rows",
            Self::Steady => "steady",
            Self::Shifted => "shifted",
        }
    }
}

impl Comparison {
    #[allow(clippy::cast_precision_loss)] // counts of rows
    fn weigh(&mut self, features: usize) {
        let sampled: u64 = self.training.iter().sum();
        if self.rows == 0 || sampled == 0 {
            return;
        }
        let own = self.training.iter().copied().zip(self.served.iter().copied());
        let pairs: Vec<(u64, u64)> =
            own.chain([(0, self.missing), (0, self.unseen.unwrap_or(0))]).filter(|(training, served)| training + served > 0).collect();
        let bins = pairs.len() as f64;
        let (n, m) = (self.rows as f64, sampled as f64);
        let share = |count: u64, rows: f64| (count as f64 + 0.5) / (rows + 0.5 * bins);
        let index = pairs.iter().map(|&(training, served)| {
            let (p, q) = (share(served, n), share(training, m));
            (p - q) * (p / q).ln()
        });
        let unit = 1.0 / n + 1.0 / m;
        self.psi = Some(index.sum());
        self.noise = Some((bins - 1.0) * unit);
        self.critical = Some(if bins > 1.0 { unit * chi_squared_quantile(CHANCE / features.max(1) as f64, bins - 1.0) } else { 0.0 });
    }

    /// The index less its noise, at least 0.
    #[must_use]
    pub fn adjusted(&self) -> Option<f64> {
        Some((self.psi? - self.noise?).max(0.0))
    }

    /// Whether there are rows enough to judge by.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.rows >= FEWEST && self.training.iter().sum::<u64>() >= FEWEST_OF_TRAINING
    }

    /// How the feature stands, which is a matter of how it stood before: it has shifted when its index less its noise is at least
    /// [`MODERATE`] and the index more than noise, and is steady again when that is less than half of it.
    #[must_use]
    pub fn standing(&self, before: Standing) -> Standing {
        let (true, Some(psi), Some(critical), Some(adjusted)) = (self.is_enough(), self.psi, self.critical, self.adjusted()) else {
            return Standing::TooFewRows;
        };
        let shifted = if before == Standing::Shifted { adjusted >= RETURNED } else { adjusted >= MODERATE && psi > critical };
        if shifted { Standing::Shifted } else { Standing::Steady }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::features::{Encoding, Feature, Unseen};
    use crate::frame::ColumnType;
    use crate::lsq;
    use faer::Mat;

    /// Uniform numbers in [0, 1).
    struct Noise(u64);

    impl Noise {
        fn uniform(&mut self) -> f64 {
            self.0 += 1;
            (scattered(self.0) >> 11) as f64 / (1_u64 << 53) as f64
        }

        fn normal(&mut self) -> f64 {
            (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
        }

        /// A number of each kind and a category; `shift` moves the second.
        fn row(&mut self, shift: f64) -> [f64; 3] {
            let level = self.uniform();
            [self.normal(), -(1.0 - self.uniform()).ln() + shift, if level < 0.5 { 0.0 } else { f64::from(u8::from(level > 0.9)) + 1.0 }]
        }
    }

    fn design() -> Design {
        let number = |name: &str| Feature::of(name, ColumnType::Number, Encoding::Identity);
        let levels = ["x", "y", "z"].map(str::to_owned).to_vec();
        let encoding = Encoding::Onehot { levels, drop_first: true, unseen: Unseen::Baseline };
        Design::new(vec![number("a"), number("b"), Feature::of("c", ColumnType::Category, encoding)])
    }

    fn reference(rows: &[[f64; 3]]) -> Reference {
        let design = design();
        let mut buffer = RowBuffer::default();
        let matrix: Vec<Vec<f64>> = rows.iter().map(|row| design.row(row, &mut buffer).high.to_vec()).collect();
        let x = Mat::from_fn(rows.len(), design.width(), |row, column| matrix[row][column]);
        let y = Mat::from_fn(rows.len(), 1, |row, _| rows[row][0] + (row % 7) as f64);
        let mut source = lsq::Matrices { design: x.as_ref(), response: y.as_ref(), weights: None };
        let fit = lsq::fit(&mut source, &lsq::Specification::default()).unwrap();
        let mut sample = Sample::of(3, rows.len() as u64);
        for block in rows.chunks(100) {
            sample.see(block.len(), |row, feature| block[row][feature]);
        }
        Reference::of(sample, &design, &State::of(&fit), vec![0.0; 3])
    }

    fn counted(binning: &Binning, rows: impl Iterator<Item = [f64; 3]>) -> Vec<u64> {
        let mut counters = vec![0; binning.counters()];
        rows.for_each(|row| binning.count(&row, |counter| counters[counter] += 1));
        counters
    }

    /// How the features of so many rows stand, looked at after each hundred.
    fn standings(training: usize, rows: usize, shift: f64, seed: u64) -> Vec<Vec<Standing>> {
        let mut noise = Noise(seed << 32);
        let reference = reference(&(0..training).map(|_| noise.row(0.0)).collect::<Vec<_>>());
        let binning = Binning::of(&reference, 3);
        let mut counters = vec![0; binning.counters()];
        let mut now = vec![Standing::default(); 3];
        let mut path = Vec::new();
        for _ in 0..rows / 100 {
            for (sum, count) in counters.iter_mut().zip(counted(&binning, (0..100).map(|_| noise.row(shift)))) {
                *sum += count;
            }
            now = now.iter().enumerate().map(|(place, before)| binning.compare(&reference, place, &counters).standing(*before)).collect();
            path.push(now.clone());
        }
        path
    }

    #[test]
    fn a_shift_of_one_feature_is_found_and_no_other_accused() {
        for seed in 0..50 {
            // Half a standard deviation of an exponential variable.
            let path = standings(3000, 2000, 0.5, seed);
            let last = path.last().unwrap();
            assert_eq!(last[1], Standing::Shifted, "seed {seed}");
            assert!(path.iter().all(|now| now[0] == Standing::Steady && now[2] == Standing::Steady), "seed {seed}: {path:?}");
        }
    }

    #[test]
    fn without_a_shift_nothing_is_accused_at_any_of_many_looks() {
        for (training, rows) in [(3000, 3000), (300, 2000), (60, 1000), (20_000, 300)] {
            let alarms = (100..200).filter(|seed| standings(training, rows, 0.0, *seed).concat().contains(&Standing::Shifted)).count();
            assert!(alarms <= 5, "{alarms} of 100 with {training} rows of training");
        }
    }

    #[test]
    fn the_index_without_a_shift_is_the_noise_it_is_said_to_be() {
        let mut noise = Noise(7);
        let (mut index, mut expected, mut beyond) = (0.0, 0.0, 0);
        for _ in 0..200 {
            let reference = reference(&(0..1000).map(|_| noise.row(0.0)).collect::<Vec<_>>());
            let binning = Binning::of(&reference, 3);
            let comparison = binning.compare(&reference, 0, &counted(&binning, (0..500).map(|_| noise.row(0.0))));
            index += comparison.psi.unwrap();
            expected += comparison.noise.unwrap();
            beyond += usize::from(comparison.psi > comparison.critical);
        }
        // 200 values whose relative standard deviation is √(2/9) have a mean good to 3.3 %: three of those.
        assert!((index / expected - 1.0).abs() < 0.1, "{index} for {expected}");
        assert!(beyond <= 1, "{beyond} of 200 beyond a value that one in 3000 exceeds");
    }

    #[test]
    fn a_small_sample_is_all_of_the_rows() {
        let rows: Vec<[f64; 3]> = (0..1000).map(|row| [f64::from(row), f64::from(row % 2), f64::from(row % 3)]).collect();
        let reference = reference(&rows);
        assert_eq!((reference.rows, reference.sampled), (1000, 1000));
        let Values::Number { edges, counts } = &reference.features[0] else { panic!() };
        assert_eq!(edges, &[0.0, 99.0, 199.0, 299.0, 399.0, 499.0, 599.0, 699.0, 799.0, 899.0, 999.0]);
        assert_eq!(counts, &[100; 10]);
        assert_eq!(reference.features[1], Values::Number { edges: vec![0.0, 0.0, 1.0], counts: vec![500, 500] });
        assert_eq!(reference.features[2], Values::Category { counts: vec![334, 333, 333] });
        let leverage = reference.leverage;
        assert!(leverage.p50 <= leverage.p90 && leverage.p90 <= leverage.p99 && leverage.p99 <= leverage.max, "{leverage:?}");
    }

    #[test]
    fn a_large_sample_takes_one_row_of_each_stretch_however_blocks_are_cut() {
        let rows = 100_000;
        let of = |block: usize| {
            let mut sample = Sample::of(1, rows as u64);
            for begin in (0..rows).step_by(block) {
                sample.see(block.min(rows - begin), |row, _| (begin + row) as f64);
            }
            sample
        };
        let (one, other) = (of(1000), of(777));
        assert_eq!(one.cells, other.cells);
        let stretch = one.stretch as f64;
        assert_eq!(stretch, (rows as f64 / 4096.0).ceil());
        for (place, row) in one.cells.iter().enumerate() {
            assert_eq!((row / stretch).floor(), place as f64);
        }
        // Not each time the same of a stretch, which rows in a rhythm would be seen one-sidedly by.
        let mean = one.cells.iter().map(|row| row % stretch).sum::<f64>() / one.cells.len() as f64;
        assert!((mean / (0.5 * (stretch - 1.0)) - 1.0).abs() < 0.05, "{mean}");
    }

    #[test]
    fn each_value_falls_into_its_bin() {
        let rows: Vec<[f64; 3]> = (0..1000).map(|row| [f64::from(row), 5.0, f64::from(u8::from(row > 0))]).collect();
        let reference = reference(&rows);
        let binning = Binning::of(&reference, 3);
        let cells = [
            [-1.0, 5.0, 0.0],
            [0.0, 5.0, 1.0],
            [99.0, 4.9, -1.0],
            [99.5, 5.1, -1.0],
            [999.0, 5.0, 2.0],
            [1000.0, 5.0, 1.0],
            [f64::NAN, 5.0, f64::NAN],
        ];
        let counters = counted(&binning, cells.into_iter());
        let first = binning.compare(&reference, 0, &counters);
        assert_eq!(first.served, [3, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!((first.rows, first.missing, first.outside, first.unseen), (7, 1, Some(2), None));
        // Where training had one value, what is less or greater has bins of its own.
        let second = binning.compare(&reference, 1, &counters);
        assert_eq!((second.training, second.served), (vec![1000, 0, 0], vec![5, 1, 1]));
        let labels = binning.labels(&reference, 1, &[]);
        assert_eq!(labels, [Label::Value(5.0), Label::Below(5.0), Label::Range { over: Some(5.0), up_to: None }]);
        // Two levels of three are rare and share a bin.
        let third = binning.compare(&reference, 2, &counters);
        assert_eq!((third.training, third.served), (vec![999, 1], vec![2, 2]));
        assert_eq!((third.missing, third.unseen, third.outside), (1, Some(2), None));
        let levels = ["x", "y", "z"].map(str::to_owned);
        assert_eq!(binning.labels(&reference, 2, &levels), [Label::Level("y".into()), Label::Levels(2)]);
    }

    #[test]
    fn unseen_and_missing_values_are_a_shift() {
        let mut noise = Noise(3);
        let reference = reference(&(0..2000).map(|_| noise.row(0.0)).collect::<Vec<_>>());
        let binning = Binning::of(&reference, 3);
        for (place, gap) in [(2, -1.0), (2, f64::NAN), (0, f64::NAN)] {
            let rows: Vec<[f64; 3]> = (0..1000)
                .map(|index| {
                    let mut row = noise.row(0.0);
                    row[place] = if index % 10 == 0 { gap } else { row[place] };
                    row
                })
                .collect();
            let comparison = binning.compare(&reference, place, &counted(&binning, rows.into_iter()));
            assert_eq!(comparison.missing + comparison.unseen.unwrap_or(0), 100);
            assert_eq!(comparison.standing(Standing::Steady), Standing::Shifted, "{comparison:?}");
        }
    }

    #[test]
    fn a_feature_returns_later_than_it_went() {
        let mut comparison = Comparison {
            rows: 1000,
            training: vec![500, 500],
            psi: Some(0.08),
            noise: Some(0.003),
            critical: Some(0.05),
            ..Comparison::default()
        };
        assert_eq!(comparison.standing(Standing::Steady), Standing::Steady);
        assert_eq!(comparison.standing(Standing::Shifted), Standing::Shifted);
        comparison.psi = Some(0.04);
        assert_eq!(comparison.standing(Standing::Shifted), Standing::Steady);
        comparison.rows = FEWEST - 1;
        assert_eq!(comparison.standing(Standing::Shifted), Standing::TooFewRows);
    }

    #[test]
    fn a_reference_survives_its_storage_and_older_versions_have_none() {
        let mut noise = Noise(9);
        let inputs = Inputs::Known(Box::new(reference(&(0..200).map(|_| noise.row(0.0)).collect::<Vec<_>>())));
        for inputs in [inputs, Inputs::Off, Inputs::Unknown] {
            assert_eq!(serde_json::from_str::<Inputs>(&serde_json::to_string(&inputs).unwrap()).unwrap(), inputs);
        }
        assert_eq!(Inputs::default(), Inputs::Unknown);
    }
}
