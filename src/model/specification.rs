//! What is asked of a fit, checked for its form; whether the columns exist is the dataset's to say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::classifier::Calibration;
use crate::features::{Encoding, Unseen};
use crate::lsq::Solver;

/// A number, given or to be chosen by the data: a penalty, a learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Penalty {
    /// ≥ 0, in the units of the objective.
    Fixed(f64),
    /// Chosen by the data.
    Chosen(Auto),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// The only one.
    #[default]
    Auto,
}

/// How a penalty is chosen by cross-validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// At least 2.
    pub folds: u32,
    /// Another seed deals the rows out anew.
    pub seed: u64,
    /// Whether the largest penalty within one standard error of the best is taken, rather than the best.
    pub one_standard_error: bool,
}

impl Default for Choice {
    fn default() -> Self {
        Self { folds: 5, seed: 1, one_standard_error: false }
    }
}

/// How the coefficients are estimated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Estimator {
    /// Ordinary (or, with weights, weighted) least squares.
    Ols,
    /// ‖y − Xw‖² + penalty·‖w‖², the intercept not penalised.
    Ridge {
        /// A number, or chosen by exact leave-one-out.
        penalty: Penalty,
        /// What to choose among; a grid of its own when empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        penalties: Vec<f64>,
    },
    /// 1/(2n)·‖y − Xw‖² + penalty·‖w‖₁.
    Lasso {
        /// A number, or chosen by cross-validation.
        penalty: Penalty,
        /// How it is chosen.
        #[serde(flatten)]
        choice: Choice,
        /// Whether coefficients below zero are ruled out.
        positive: bool,
    },
    /// 1/(2n)·‖y − Xw‖² + penalty·(l1_ratio·‖w‖₁ + ½(1 − l1_ratio)·‖w‖²).
    ElasticNet {
        /// A number, or chosen by cross-validation.
        penalty: Penalty,
        /// In [0, 1].
        l1_ratio: f64,
        /// How the penalty is chosen.
        #[serde(flatten)]
        choice: Choice,
        /// Whether coefficients below zero are ruled out.
        positive: bool,
    },
    /// Huber's M-estimator.
    Huber {
        /// In units of the scale of the residuals.
        threshold: f64,
        /// Rounds of reweighting at the most.
        #[serde(default = "usual_rounds")]
        rounds: u64,
    },
    /// Tukey's bisquare M-estimator.
    Bisquare {
        /// In units of the scale of the residuals.
        threshold: f64,
        /// Rounds of reweighting at the most.
        #[serde(default = "usual_rounds")]
        rounds: u64,
    },
    /// Least squares with coefficients that are not negative, or within bounds.
    Nnls {
        /// Lower bounds by feature; others are 0.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        lower: BTreeMap<String, f64>,
        /// Upper bounds by feature; others have none.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        upper: BTreeMap<String, f64>,
    },
    /// Gradient descent, from zero or from a pretrained model.
    Gradient {
        /// A number in raw units, or by the largest eigenvalue.
        learning_rate: Penalty,
        /// Of the step before, in [0, 1).
        momentum: f64,
        /// Rows of a step; all of them when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        batch_size: Option<u64>,
        /// So many passes at the most.
        epochs: u64,
        /// Relative size of the gradient at which it ends.
        tolerance: f64,
        /// Of the order of batches.
        seed: u64,
    },
    /// Regression on principal components.
    Pca {
        /// How many.
        components: u64,
        /// Whether columns are brought to the same variance first.
        standardise: bool,
        /// Whether the components are found by random directions, without the p×p matrix.
        sketch: bool,
    },
}

/// Rounds of a robust estimator when nothing is said of them, as in versions from before they could be asked for.
#[must_use]
pub fn usual_rounds() -> u64 {
    50
}

impl Estimator {
    /// Whether its fitted values are a linear map of the response, with leverages and all that follows from them.
    #[must_use]
    pub fn is_linear_in_the_response(&self) -> bool {
        matches!(self, Self::Ols | Self::Ridge { .. })
    }

    /// Whether it weighs rows by their residuals.
    #[must_use]
    pub fn is_robust(&self) -> bool {
        matches!(self, Self::Huber { .. } | Self::Bisquare { .. })
    }

    /// Whether it takes a pretrained model to start from.
    #[must_use]
    pub fn takes_prior(&self) -> bool {
        matches!(self, Self::Ols | Self::Gradient { .. })
    }

    /// Whether it fits several responses at once.
    #[must_use]
    pub fn takes_several_responses(&self) -> bool {
        match self {
            Self::Huber { .. } | Self::Bisquare { .. } => false,
            Self::Lasso { penalty, .. } | Self::ElasticNet { penalty, .. } => !matches!(penalty, Penalty::Chosen(_)),
            Self::Ols | Self::Ridge { .. } | Self::Nnls { .. } | Self::Gradient { .. } | Self::Pca { .. } => true,
        }
    }

    /// Its name in the contract.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ols => "ols",
            Self::Ridge { .. } => "ridge",
            Self::Lasso { .. } => "lasso",
            Self::ElasticNet { .. } => "elastic_net",
            Self::Huber { .. } => "huber",
            Self::Bisquare { .. } => "bisquare",
            Self::Nnls { .. } => "nnls",
            Self::Gradient { .. } => "gradient",
            Self::Pca { .. } => "pca",
        }
    }

    /// Whether rows learnt one by one lead where a fit of all rows would: the objective is a sum of squares and nothing else.
    #[must_use]
    pub fn learns(&self) -> bool {
        matches!(self, Self::Ols | Self::Ridge { .. } | Self::Gradient { .. })
    }
}

/// What is supposed of the errors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Covariance {
    /// One variance, independent.
    #[default]
    Classical,
    /// Any variances (White).
    Hc0,
    /// With degrees of freedom made good.
    Hc1,
    /// With leverages made good.
    Hc2,
    /// Close to the jackknife.
    Hc3,
    /// Correlated in time (Newey and West).
    Hac {
        /// Rows apart at the most.
        lags: u64,
    },
    /// Correlated within groups.
    Cluster {
        /// The column that names the group.
        column: String,
    },
}

/// Which rows are held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Validation {
    /// Each fold once.
    KFold {
        /// At least 2.
        folds: u32,
        /// Another seed deals the rows out anew.
        seed: u64,
    },
    /// Each row once.
    Loo,
    /// A part, drawn at random.
    Holdout {
        /// In (0, 1).
        fraction: f64,
        /// Another seed draws other rows.
        seed: u64,
    },
    /// Later rows after all earlier ones.
    Time {
        /// What orders the rows; their order in the dataset when absent.
        #[serde(default)]
        column: Option<String>,
        /// At least 1.
        folds: u32,
        /// Of a model of past values of its target: steps of the forecasts that are judged; its horizon when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        steps: Option<u32>,
    },
}

impl Validation {
    /// What is done where held-out rows are needed and nothing is said of them.
    #[must_use]
    pub fn usual() -> Self {
        Self::KFold { folds: 5, seed: 1 }
    }
}

/// How strongly a pretrained model pulls.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Strength {
    /// strength·‖w − w₀‖².
    Number(f64),
    /// The pretrained model's own information, as if its rows were here too.
    Information {
        /// Always `information`.
        kind: InformationKind,
    },
}

/// The word `information`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InformationKind {
    /// The only one.
    #[default]
    Information,
}

/// A pretrained model to start from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prior {
    /// Its name, or name@alias, or name@version.
    pub model: String,
    /// Its version; the served one when absent.
    pub version: Option<u64>,
    /// How strongly it pulls.
    pub strength: Strength,
}

/// Σ coefficient·β = value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Constraint {
    /// By the design column's name; `(intercept)` is one.
    pub coefficients: BTreeMap<String, f64>,
    /// The right-hand side.
    pub value: f64,
}

/// A test of whether the mean of the errors has risen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "detector", rename_all = "snake_case")]
pub enum Detector {
    /// A window that is cut where its parts differ.
    Adwin {
        /// Chance of a false alarm at each look.
        delta: f64,
    },
    /// A cumulative sum.
    PageHinkley {
        /// Rise of the mean that is tolerated, in residual standard deviations of the fit.
        delta: f64,
        /// Sum of rises beyond it at which the alarm is raised, in the same unit.
        threshold: f64,
    },
}

/// What is done about a drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftAction {
    /// It is told.
    Warn,
    /// What was learnt before it is all but forgotten.
    Reset,
    /// A new version is fitted on the rows since it began.
    Refit,
}

impl DriftAction {
    /// The name in a request.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warn => "warn",
            Self::Reset => "reset",
            Self::Refit => "refit",
        }
    }
}

/// A watch over the a-priori errors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriftWatch {
    /// How it is found.
    #[serde(flatten)]
    pub detector: Detector,
    /// What then.
    pub action: DriftAction,
}

/// How much of the update log is kept; all of it when both are absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// The last so many rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Rows of the last so many days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<u64>,
}

/// How the version goes on learning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Online {
    /// λ in (0, 1]: the weight of everything learnt so far is multiplied by λ with each new row. 1 forgets nothing.
    pub forgetting_factor: f64,
    /// Only the last so many rows count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
    /// Whether λ follows the errors.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adaptive: bool,
    /// A watch over the errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftWatch>,
    /// How much of the log is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

impl Online {
    /// Whether all rows count alike for ever.
    #[must_use]
    pub fn forgets_nothing(&self) -> bool {
        self.forgetting_factor >= 1.0
            && self.window.is_none()
            && !self.adaptive
            && !self.drift.is_some_and(|watch| watch.action == DriftAction::Reset)
    }
}

impl Default for Online {
    fn default() -> Self {
        Self { forgetting_factor: 1.0, window: None, adaptive: false, drift: None, retention: None }
    }
}

/// What a column is to become.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// As its type has it.
    Usual,
    /// One 0/1 column a level.
    Onehot,
    /// By this encoding, with what is given of it; the training rows say the rest.
    Encoded(Encoding),
}

/// An entry of `features`.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureSpecification {
    /// The column, or several.
    pub columns: Vec<String>,
    /// What it is to become.
    pub form: Form,
    /// Whether the first of the indicators has no column, where there are some; by default as there is an intercept.
    pub drop_first: Option<bool>,
    /// What an unseen level does; by default the specification's.
    pub unseen: Option<Unseen>,
}

/// What is asked of a fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Specification {
    /// The dataset's name.
    pub dataset: String,
    /// The columns to predict, at least one.
    pub target: Vec<String>,
    /// The columns to predict from; `None` is every other one.
    pub features: Option<Vec<FeatureSpecification>>,
    /// A column of weights ≥ 0.
    pub weights: Option<String>,
    /// Whether there is an intercept.
    pub intercept: bool,
    /// How the coefficients are estimated.
    pub estimator: Estimator,
    /// How the problem is solved.
    pub solver: Solver,
    /// How the version goes on learning.
    pub online: Online,
    /// What an unseen level does.
    pub unseen: Unseen,
    /// Whether the new version becomes the served one.
    pub serve: bool,
    /// A pretrained model to start from.
    pub prior: Option<Prior>,
    /// Which rows are held out to see what the fit is worth.
    pub validation: Option<Validation>,
    /// How a classifier is to make probabilities of scores.
    pub calibration: Option<Calibration>,
    /// What is supposed of the errors.
    pub covariance: Covariance,
    /// Equations that the coefficients must satisfy.
    pub constraints: Vec<Constraint>,
    /// Whether what the version is asked to predict is compared with what it was trained on.
    pub watch_inputs: bool,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::Estimator;

    #[test]
    fn a_robust_estimator_stored_without_rounds_had_fifty() {
        let read = |text| serde_json::from_str::<Estimator>(text).unwrap();
        assert_eq!(read(r#"{"kind":"huber","threshold":1.345}"#), Estimator::Huber { threshold: 1.345, rounds: 50 });
        assert_eq!(read(r#"{"kind":"bisquare","threshold":4.685,"rounds":7}"#), Estimator::Bisquare { threshold: 4.685, rounds: 7 });
    }
}
