//! Classifiers: a target of k classes as k responses, each 1 in the rows of its class and 0 elsewhere, fitted by least squares.
//!
//! The fitted responses are the scores of the classes. They estimate the chances of the classes at a row, and with an intercept they add up to 1
//! (Hastie, Tibshirani & Friedman, *The Elements of Statistical Learning*, 2nd ed., §4.2); but they are those of a straight line, and may
//! lie outside [0, 1]. The label is the class of the largest score, the first of equal ones. It is the label that a coding by −1 and 1 gives, since
//! that takes every score s to 2s − c, with c what the model fits to a response of ones.
//!
//! Probabilities come of scores by what rows say that the fit has not seen:
//!
//! - *temperature*: p = softmax(s/T), with the T that makes the observed classes likeliest (Guo, Pleiss, Sun & Weinberger, *On calibration of modern
//!   neural networks*, ICML 2017). Labels stay as they are.
//! - *isotonic*: for each class the rising function of its score nearest to its indicator, brought to a sum of 1 (Zadrozny & Elkan, *Transforming
//!   classifier scores into accurate multiclass probability estimates*, KDD 2002).

use serde::{Deserialize, Serialize};

use super::version::{LabelFold, LabelRecord, finite};
use crate::features::scattered;
use crate::lsq::{self, HeldOut, interpolated};

/// Classes at the most: each is a response of its own.
pub const MOST_CLASSES: usize = 1000;

/// How probabilities are to be made of scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calibration {
    /// softmax(s/T).
    Temperature,
    /// A rising function for each class.
    Isotonic,
}

/// A rising function through knots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Scores, rising.
    pub scores: Vec<f64>,
    /// What each of them is worth.
    pub probabilities: Vec<f64>,
}

/// How probabilities are made of scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Calibrator {
    /// softmax(s/T).
    Temperature {
        /// T.
        temperature: f64,
    },
    /// One curve a class; their values are brought to a sum of 1.
    Isotonic {
        /// In the order of the classes.
        curves: Vec<Curve>,
    },
}

/// What a version that is a classifier knows of its target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Classifier {
    /// The classes, sorted by code point; of a boolean `false` and `true`.
    pub classes: Vec<String>,
    /// Whether they are those of a boolean column.
    pub boolean: bool,
    /// How probabilities are made of scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibrator: Option<Calibrator>,
}

/// The place of the largest score, the first of equal ones.
#[must_use]
pub fn largest(scores: impl IntoIterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (place, score) in scores.into_iter().enumerate() {
        if score > best.1 {
            best = (place, score);
        }
    }
    best.0
}

impl Classifier {
    /// The class that a cell of a row to learn from names, by its place.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a place, as it was parsed
    pub fn class(cell: f64) -> usize {
        cell as usize
    }

    /// The name of the class at a place.
    #[must_use]
    pub fn name(&self, cell: f64) -> &str {
        self.classes.get(Self::class(cell)).map_or("", String::as_str)
    }

    /// The place of the class of that name.
    #[must_use]
    pub fn place_of(&self, name: &str) -> Option<usize> {
        self.classes.iter().position(|class| class == name)
    }

    /// The responses of a row of that class: 1 for its own, 0 for the others.
    pub fn indicate(&self, cell: f64, out: &mut Vec<f64>) {
        out.clear();
        out.resize(self.classes.len(), 0.0);
        if let Some(own) = out.get_mut(Self::class(cell)) {
            *own = 1.0;
        }
    }

    /// How it was calibrated.
    #[must_use]
    pub fn calibration(&self) -> Option<Calibration> {
        self.calibrator.as_ref().map(|calibrator| match calibrator {
            Calibrator::Temperature { .. } => Calibration::Temperature,
            Calibrator::Isotonic { .. } => Calibration::Isotonic,
        })
    }
}

impl Calibrator {
    /// The probabilities of scores (k), added to `out`.
    pub fn probabilities(&self, scores: &[f64], out: &mut Vec<f64>) {
        let begin = out.len();
        match self {
            Self::Temperature { temperature } => softmax(scores, 1.0 / temperature, out),
            Self::Isotonic { curves } => {
                out.extend(scores.iter().zip(curves).map(|(score, curve)| interpolated(&curve.scores, &curve.probabilities, *score)));
                let own = &mut out[begin..];
                let total: f64 = own.iter().sum();
                // Where no class is likely at all, none is likelier than another.
                #[allow(clippy::cast_precision_loss)]
                let equal = 1.0 / own.len() as f64;
                own.iter_mut().for_each(|value| *value = if total > 0.0 { *value / total } else { equal });
            }
        }
    }
}

/// softmax(βs), added to `out`.
fn softmax(scores: &[f64], slope: f64, out: &mut Vec<f64>) {
    let begin = out.len();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    out.extend(scores.iter().map(|score| (slope * (score - top)).exp()));
    let total: f64 = out[begin..].iter().sum();
    out[begin..].iter_mut().for_each(|value| *value /= total);
}

/// Scores that are kept for a calibration at the most; of more rows an even share is drawn.
const MOST_SCORES: u64 = 1 << 23;

/// A row that is kept for the calibration.
#[derive(Clone, Copy, Debug)]
struct KeptRow {
    /// Its place in the source.
    row: u64,
    fold: usize,
    class: usize,
    weight: f64,
    /// Where its scores begin.
    scores: usize,
}

/// Sums over the rows of a fold.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    rows: u64,
    weight: f64,
    right: f64,
}

impl Sums {
    fn accuracy(&self) -> Option<f64> {
        finite(self.right / self.weight)
    }
}

/// What is counted of labels that were predicted, and the scores that a calibration is made of.
#[derive(Clone, Debug)]
pub struct Judging {
    classes: usize,
    folds: Vec<Sums>,
    /// Rows by observed and predicted class (k×k, observed by observed).
    confusion: Vec<u64>,
    calibration: Option<Calibration>,
    /// A row is kept if its hash is not above this.
    share: u64,
    kept: Vec<KeptRow>,
    scores: Vec<f64>,
}

impl Judging {
    /// Of that many classes, among at most that many rows.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // saturates, as it should
    pub fn of(classes: usize, rows: u64, calibration: Option<Calibration>) -> Self {
        let fits = MOST_SCORES as f64 / (rows as f64 * classes as f64);
        let share = if fits < 1.0 { (fits * u64::MAX as f64) as u64 } else { u64::MAX };
        Self { classes, folds: Vec::new(), confusion: vec![0; classes * classes], calibration, share, kept: Vec::new(), scores: Vec::new() }
    }

    /// Counts rows that were predicted.
    pub fn hear(&mut self, told: &HeldOut<'_>) {
        self.folds.resize(self.folds.len().max(told.fold + 1), Sums::default());
        for (place, &row) in told.rows.iter().enumerate() {
            let weight = told.weights.map_or(1.0, |weights| weights[place]);
            if weight <= 0.0 {
                continue;
            }
            let class = largest(told.response.row(place).iter().copied());
            let label = largest(told.predicted.row(place).iter().copied());
            let sums = &mut self.folds[told.fold];
            sums.rows += 1;
            sums.weight += weight;
            sums.right += if class == label { weight } else { 0.0 };
            self.confusion[class * self.classes + label] += 1;
            if self.calibration.is_some() && scattered(row) <= self.share {
                self.kept.push(KeptRow { row, fold: told.fold, class, weight, scores: self.scores.len() });
                self.scores.extend(told.predicted.row(place).iter());
            }
        }
    }

    /// The share of the rows whose label was right, by weight.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        self.pooled().accuracy()
    }

    fn pooled(&self) -> Sums {
        self.folds.iter().fold(Sums::default(), |all, own| Sums {
            rows: all.rows + own.rows,
            weight: all.weight + own.weight,
            right: all.right + own.right,
        })
    }

    /// What was counted, fold by fold if they are `separate`, and the calibration of the kept rows, if it was asked for.
    #[must_use]
    pub fn conclude(mut self, separate: bool) -> (LabelRecord, Option<Calibrator>) {
        // Whichever thread told of a row first.
        self.kept.sort_unstable_by_key(|kept| kept.row);
        let calibrator = self.calibration.and_then(|calibration| self.calibrated(calibration, |_, _| true));
        let losses = self.losses();
        let loss = |fold: Option<usize>| {
            let own = losses.iter().filter(|(of, ..)| fold.is_none_or(|fold| *of == fold));
            let (sum, weight) = own.fold((0.0, 0.0), |(sum, weight), (_, own, by)| (sum + own, weight + by));
            finite(sum / weight)
        };
        let record = |sums: &Sums, fold| LabelFold { rows: sums.rows, accuracy: sums.accuracy(), log_loss: loss(fold) };
        let labels = LabelRecord {
            folds: if separate { self.folds.iter().enumerate().map(|(fold, sums)| record(sums, Some(fold))).collect() } else { Vec::new() },
            pooled: record(&self.pooled(), None),
            confusion: self.confusion.chunks_exact(self.classes.max(1)).map(<[u64]>::to_vec).collect(),
        };
        (labels, calibrator)
    }

    /// By fold, Σ −w·ln p of the observed classes, and Σw: each row judged by a calibration of other folds than its own; of a single one, by
    /// one of its other half.
    fn losses(&self) -> Vec<(usize, f64, f64)> {
        let Some(calibration) = self.calibration else { return Vec::new() };
        let several = self.kept.iter().any(|kept| kept.fold != self.kept[0].fold);
        let group = |place: usize, kept: &KeptRow| if several { kept.fold } else { place % 2 };
        let groups = if several { self.folds.len() } else { 2 };
        let mut losses = Vec::new();
        let mut probabilities = Vec::new();
        for own in 0..groups {
            let Some(calibrator) = self.calibrated(calibration, |place, kept| group(place, kept) != own) else { continue };
            for (_, kept) in self.kept.iter().enumerate().filter(|(place, kept)| group(*place, kept) == own) {
                probabilities.clear();
                calibrator.probabilities(self.scores_of(kept), &mut probabilities);
                // As scikit-learn has it: what was held to be impossible counts as the smallest float above 0 beside 1.
                let loss = -probabilities[kept.class].max(f64::EPSILON).ln();
                losses.push((kept.fold, kept.weight * loss, kept.weight));
            }
        }
        losses
    }

    fn scores_of(&self, kept: &KeptRow) -> &[f64] {
        &self.scores[kept.scores..kept.scores + self.classes]
    }

    /// The calibration of some of the kept rows; nothing where there are none.
    fn calibrated(&self, calibration: Calibration, takes: impl Fn(usize, &KeptRow) -> bool) -> Option<Calibrator> {
        let rows: Vec<&KeptRow> = self.kept.iter().enumerate().filter(|(place, kept)| takes(*place, kept)).map(|(_, kept)| kept).collect();
        if rows.is_empty() {
            return None;
        }
        Some(match calibration {
            Calibration::Temperature => Calibrator::Temperature { temperature: 1.0 / self.sharpness(&rows) },
            Calibration::Isotonic => {
                let curve = |class: usize| {
                    let indicator = |kept: &KeptRow| f64::from(u8::from(kept.class == class));
                    let mut points: Vec<_> = rows.iter().map(|kept| (self.scores_of(kept)[class], indicator(kept), kept.weight)).collect();
                    let found = lsq::isotonic(&mut points);
                    Curve { scores: found.x, probabilities: found.y }
                };
                Calibrator::Isotonic { curves: (0..self.classes).map(curve).collect() }
            }
        })
    }

    /// β = 1/T that minimises Σ w(ln Σₖ exp(βsₖ) − βs_y), which is convex in β: by Newton's method within a bracket.
    fn sharpness(&self, rows: &[&KeptRow]) -> f64 {
        /// Where all labels are right by a margin no β is large enough, and where scores say nothing none is small enough.
        const RANGE: (f64, f64) = (1e-3, 1e3);
        let mut probabilities = Vec::new();
        let mut slope_and_curvature = |sharpness: f64| {
            let (mut slope, mut curvature) = (0.0, 0.0);
            for kept in rows {
                let scores = self.scores_of(kept);
                probabilities.clear();
                softmax(scores, sharpness, &mut probabilities);
                // About the observed class's own score, so that nothing large cancels.
                let away = |score: &f64| score - scores[kept.class];
                let mean: f64 = scores.iter().zip(&probabilities).map(|(score, chance)| chance * away(score)).sum();
                let squares: f64 = scores.iter().zip(&probabilities).map(|(score, chance)| chance * (away(score) - mean).powi(2)).sum();
                slope += kept.weight * mean;
                curvature += kept.weight * squares;
            }
            (slope, curvature)
        };
        let (mut low, mut high) = RANGE;
        if slope_and_curvature(low).0 >= 0.0 {
            return low;
        }
        if slope_and_curvature(high).0 <= 0.0 {
            return high;
        }
        let mut sharpness = 1.0;
        for _ in 0..200 {
            let (slope, curvature) = slope_and_curvature(sharpness);
            if slope < 0.0 {
                low = sharpness;
            } else {
                high = sharpness;
            }
            let next = sharpness - slope / curvature;
            let next = if next > low && next < high { next } else { (low * high).sqrt() };
            let settled = (next - sharpness).abs() <= 1e-13 * sharpness;
            sharpness = next;
            if settled || high - low <= 1e-15 * high {
                break;
            }
        }
        sharpness
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use faer::Mat;

    use super::*;

    /// Some hundred rows of three scores, and the class of each, which is usually that of the largest; told in pieces, the later ones first.
    fn judging(rows: u64, calibration: Option<Calibration>) -> (Judging, Vec<([f64; 3], usize)>) {
        let number = |row: u64, place: u64| scattered(row * 7 + place) as f64 / u64::MAX as f64;
        let row = |row: u64| {
            let scores = [number(row, 0), number(row, 1), number(row, 2)];
            let class = if number(row, 3) < 0.7 { largest(scores) } else { (number(row, 4) * 3.0) as usize };
            (scores, class)
        };
        let all: Vec<_> = (0..rows).map(row).collect();
        let mut judging = Judging::of(3, rows, calibration);
        for begin in (0..rows as usize).step_by(50).rev() {
            let own = &all[begin..(begin + 50).min(all.len())];
            judging.hear(&HeldOut {
                fold: begin / 50 % 2,
                rows: &(begin as u64..(begin + own.len()) as u64).collect::<Vec<_>>(),
                predicted: Mat::from_fn(own.len(), 3, |row, column| own[row].0[column]).as_ref(),
                response: Mat::from_fn(own.len(), 3, |row, column| f64::from(u8::from(own[row].1 == column))).as_ref(),
                weights: None,
            });
        }
        (judging, all)
    }

    fn loss(rows: &[([f64; 3], usize)], calibrator: &Calibrator) -> f64 {
        let mut out = Vec::new();
        let mut one = |(scores, class): &([f64; 3], usize)| {
            out.clear();
            calibrator.probabilities(scores, &mut out);
            assert!((out.iter().sum::<f64>() - 1.0).abs() < 1e-14);
            -out[*class].ln()
        };
        rows.iter().map(&mut one).sum::<f64>() / rows.len() as f64
    }

    #[test]
    fn no_temperature_makes_the_classes_likelier() {
        let (judging, rows) = judging(400, Some(Calibration::Temperature));
        let (record, calibrator) = judging.conclude(true);
        let Some(Calibrator::Temperature { temperature }) = calibrator else { panic!() };
        let at = |temperature| loss(&rows, &Calibrator::Temperature { temperature });
        let least = at(temperature);
        assert!(least < at(temperature * 1.001) && least < at(temperature * 0.999), "{temperature}");
        // Of two halves each is judged by the temperature of the other, which cannot be better than its own.
        let pooled = record.pooled.log_loss.unwrap();
        assert!(pooled >= least && pooled < least + 0.05, "{pooled} {least}");
        assert_eq!((record.folds.len(), record.pooled.rows, record.confusion.concat().iter().sum::<u64>()), (2, 400, 400));
        let right: u64 = (0..3).map(|place| record.confusion[place][place]).sum();
        assert_eq!(record.pooled.accuracy, Some(right as f64 / 400.0));
    }

    #[test]
    fn a_temperature_stays_in_its_range_where_every_label_is_right_or_scores_say_nothing() {
        for (scores, expected) in [([0.9, 0.1], 1e-3), ([0.5, 0.5], 1e3), ([0.1, 0.9], 1e3)] {
            let mut judging = Judging::of(2, 10, Some(Calibration::Temperature));
            judging.hear(&HeldOut {
                fold: 0,
                rows: &(0..10).collect::<Vec<_>>(),
                predicted: Mat::from_fn(10, 2, |_, column| scores[column]).as_ref(),
                response: Mat::from_fn(10, 2, |_, column| [1.0, 0.0][column]).as_ref(),
                weights: None,
            });
            assert_eq!(judging.conclude(false).1, Some(Calibrator::Temperature { temperature: expected }), "{scores:?}");
        }
    }

    #[test]
    fn curves_are_brought_to_a_sum_of_one() {
        let (judging, rows) = judging(400, Some(Calibration::Isotonic));
        let (record, calibrator) = judging.conclude(false);
        let calibrator = calibrator.unwrap();
        assert!(loss(&rows, &calibrator) < 3f64.ln());
        assert!(record.folds.is_empty());
        let curve = |value| Curve { scores: vec![0.0, 1.0], probabilities: vec![0.0, value] };
        let calibrator = Calibrator::Isotonic { curves: vec![curve(0.5), curve(1.0)] };
        let mut out = Vec::new();
        calibrator.probabilities(&[1.0, 0.5], &mut out);
        calibrator.probabilities(&[-1.0, -2.0], &mut out);
        assert_eq!(out, [0.5, 0.5, 0.5, 0.5]);
        let read: Calibrator = serde_json::from_str(&serde_json::to_string(&calibrator).unwrap()).unwrap();
        assert_eq!(read, calibrator);
    }

    #[test]
    fn of_many_rows_an_even_share_is_kept_whoever_tells_of_them_first() {
        let (mut judging, _) = judging(1000, Some(Calibration::Temperature));
        assert_eq!(judging.kept.len(), 1000);
        judging = Judging { kept: Vec::new(), scores: Vec::new(), share: u64::MAX / 4, ..judging };
        for row in 0..1000 {
            let (predicted, response) = (Mat::from_fn(1, 3, |_, _| 0.3), Mat::from_fn(1, 3, |_, column| [0.0, 1.0, 0.0][column]));
            judging.hear(&HeldOut { fold: 0, rows: &[row], predicted: predicted.as_ref(), response: response.as_ref(), weights: None });
        }
        assert!((200..300).contains(&judging.kept.len()), "{}", judging.kept.len());
    }

    #[test]
    fn the_label_is_the_first_of_the_largest_scores() {
        assert_eq!([largest([0.2, 0.5, 0.5]), largest([0.0; 3]), largest([f64::NAN, -1.0])], [1, 0, 1]);
        let classifier = Classifier { classes: vec!["a".to_owned(), "b".to_owned()], boolean: false, calibrator: None };
        let mut out = vec![9.0; 5];
        classifier.indicate(1.0, &mut out);
        assert_eq!((out, classifier.name(1.0), classifier.place_of("b"), classifier.place_of("c")), (vec![0.0, 1.0], "b", Some(1), None));
    }
}
