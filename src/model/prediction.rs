//! Answers to rows: predictions, intervals, leverage, whether a row lies outside what was seen, and contributions that add up.
//!
//! With x̃ the row in centred coordinates, h = x̃ᵀ(X̃ᵀWX̃)⁻¹x̃ its leverage, s² the residual variance and t the Student quantile of the
//! degrees of freedom: confidence interval ŷ ± t·s·√h (of the mean response), prediction interval ŷ ± t·s·√(1 + h) (of one new
//! observation of weight 1). Draper & Smith, *Applied Regression Analysis*, 3rd ed., §3.1.
//!
//! Of a classifier all this is about the scores of its classes; its predictions are labels.

use super::State;
use super::classifier::{Classifier, largest};
use crate::features::{Design, RowBuffer};
use crate::lsq::inference::student_t_quantile;
use crate::lsq::{Gathered, Information};

/// What an interval is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntervalKind {
    /// The mean response at the row.
    Confidence,
    /// One new observation at the row.
    Prediction,
}

/// What is asked beside the predictions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Question {
    /// An interval of this kind at this level in (0, 1).
    pub interval: Option<(IntervalKind, f64)>,
    /// Leverage, and whether it exceeds the training rows'.
    pub leverage: bool,
    /// Contributions of the features.
    pub explain: bool,
    /// Probabilities of the classes, of a classifier that is calibrated.
    pub probabilities: bool,
}

/// Answers to n rows for q responses of a model of m features, row by row; t targets are q responses, but for a classifier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// n×t; of a classifier the place of each row's label among its classes.
    pub predictions: Vec<f64>,
    /// n×q, of a classifier. Empty otherwise.
    pub scores: Vec<f64>,
    /// n×q, of a classifier that is calibrated. Empty when not asked for.
    pub probabilities: Vec<f64>,
    /// n×q lower limits; NaN where the degrees of freedom are spent. Empty when not asked for.
    pub lower: Vec<f64>,
    /// n×q upper limits.
    pub upper: Vec<f64>,
    /// n. Empty when not asked for.
    pub leverage: Vec<f64>,
    /// n.
    pub extrapolates: Vec<bool>,
    /// n×q×(1 + m): the baseline, then one value a feature; they add up to the prediction. Empty when not asked for.
    pub contributions: Vec<f64>,
}

impl Answer {
    /// n×q: what was computed, whatever the predictions are.
    #[must_use]
    pub fn estimates(&self) -> &[f64] {
        if self.scores.is_empty() { &self.predictions } else { &self.scores }
    }
}

/// Rows whose leverages are computed together: a model of a few hundred columns stays in the nearest caches with them.
const TOGETHER: usize = 64;

/// Leverage above the largest training leverage by rounding alone is not extrapolation.
const ROUNDING: f64 = 1e-9;

/// The leverage above which a row lies farther out than any that was learnt from.
#[must_use]
pub fn ceiling(information: &Information) -> f64 {
    information.maximum_leverage() * (1.0 + ROUNDING) + f64::EPSILON
}

/// Answers n rows of cells (one a column of the design; none for a model of the intercept alone).
#[must_use]
pub fn answer(state: &State, design: &Design, classifier: Option<&Classifier>, rows: usize, cells: &[f64], question: Question) -> Answer {
    let information = state.information();
    let (inputs, responses) = (design.columns().len(), information.responses());
    let mut answer = Answer { predictions: vec![0.0; rows * responses], ..Answer::default() };
    let degrees = information.inference_degrees();
    let variance = if question.interval.is_some() { information.residual_variance() } else { Vec::new() };
    let quantile =
        question.interval.map_or(f64::NAN, |(_, level)| if degrees > 0.0 { student_t_quantile(level, degrees) } else { f64::NAN });
    let ceiling = ceiling(information);
    let mut design_row = RowBuffer::default();
    let row_of = |row: usize| &cells[row * inputs..(row + 1) * inputs];
    for row in 0..rows {
        let predicted = &mut answer.predictions[row * responses..(row + 1) * responses];
        information.predict(design.row(row_of(row), &mut design_row), predicted);
    }
    if question.leverage || question.interval.is_some() {
        let mut together = Gathered::default();
        answer.leverage.reserve(rows);
        for first in (0..rows).step_by(TOGETHER) {
            (first..rows).take(TOGETHER).for_each(|row| information.gather(design.row(row_of(row), &mut design_row), &mut together));
            information.leverages(&mut together, &mut answer.leverage);
        }
    }
    if let Some((kind, _)) = question.interval {
        let own = match kind {
            IntervalKind::Confidence => 0.0,
            IntervalKind::Prediction => 1.0,
        };
        let mut means = Vec::with_capacity(responses);
        answer.lower.reserve(rows * responses);
        answer.upper.reserve(rows * responses);
        for (row, predicted) in answer.predictions.chunks_exact(responses).enumerate() {
            let x = design.row(row_of(row), &mut design_row);
            information.mean_variances(x, answer.leverage[row], &variance, &mut means);
            for ((&predicted, &variance), mean) in predicted.iter().zip(&variance).zip(&means) {
                let half = quantile * variance.mul_add(own, *mean).sqrt();
                answer.lower.push(predicted - half);
                answer.upper.push(predicted + half);
            }
        }
    }
    if question.leverage {
        answer.extrapolates = answer.leverage.iter().map(|leverage| *leverage > ceiling).collect();
    } else {
        answer.leverage.clear();
    }
    if question.explain {
        let mut parts = vec![0.0; design.width()];
        for row in 0..rows {
            let x = design.row(row_of(row), &mut design_row);
            for response in 0..responses {
                information.contributions(response, x, &mut parts);
                answer.contributions.push(information.baseline(response));
                answer
                    .contributions
                    .extend((0..design.features().len()).map(|feature| parts[design.columns_of(feature)].iter().sum::<f64>()));
            }
        }
    }
    if let Some(classifier) = classifier {
        classify(classifier, responses, question, &mut answer);
    }
    answer
}

/// From scores to labels.
fn classify(classifier: &Classifier, responses: usize, question: Question, answer: &mut Answer) {
    let scores = std::mem::take(&mut answer.predictions);
    answer.predictions = scores.chunks_exact(responses).map(|scores| largest(scores.iter().copied()) as f64).collect();
    if let Some(calibrator) = classifier.calibrator.as_ref().filter(|_| question.probabilities) {
        answer.probabilities.reserve(scores.len());
        scores.chunks_exact(responses).for_each(|scores| calibrator.probabilities(scores, &mut answer.probabilities));
    }
    answer.scores = scores;
}
