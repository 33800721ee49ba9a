//! What is asked of a fit, checked for its form; whether the columns exist is the dataset's to say.

use serde::{Deserialize, Serialize};

use crate::features::Unseen;
use crate::lsq::Solver;

/// How the coefficients are estimated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Estimator {
    /// Ordinary (or, with weights, weighted) least squares.
    Ols,
    /// ‖y − Xw‖² + penalty·‖w‖², the intercept not penalised.
    Ridge {
        /// ≥ 0, in the units of the objective.
        penalty: f64,
    },
}

impl Estimator {
    /// The ridge penalty; 0 for ordinary least squares.
    #[must_use]
    pub fn penalty(self) -> f64 {
        match self {
            Self::Ols => 0.0,
            Self::Ridge { penalty } => penalty,
        }
    }
}

/// How the version goes on learning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Online {
    /// λ in (0, 1]: the weight of everything learnt so far is multiplied by λ with each new row. 1 forgets nothing.
    pub forgetting_factor: f64,
}

impl Default for Online {
    fn default() -> Self {
        Self { forgetting_factor: 1.0 }
    }
}

/// An entry of `features`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureSpecification {
    /// The column.
    pub column: String,
    /// `Some(true)`: one-hot asked for; `None`: as the column's type has it.
    pub onehot: Option<bool>,
    /// Of a one-hot entry: whether the first level has no column; by default as there is an intercept.
    pub drop_first: Option<bool>,
    /// Of a one-hot entry: what an unseen level does; by default the specification's.
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
}
