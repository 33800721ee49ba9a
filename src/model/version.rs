//! A version: what was fitted and how, as it is stored beside its state.

use serde::{Deserialize, Serialize};

use super::classifier::Classifier;
use super::inputs::Inputs;
use super::specification::{Constraint, Covariance, Estimator, Online, Prior, Specification, Validation};
use crate::features::{Design, Feature, Unseen};
use crate::lsq;

/// The stored part of a version that never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// The dataset it was fitted on.
    pub dataset: String,
    /// The dataset's ETag then.
    pub dataset_tag: String,
    /// How the coefficients were estimated.
    pub estimator: Estimator,
    /// The solver that was used.
    pub solver: String,
    /// The target columns.
    pub target: Vec<String>,
    /// The classes of the target, if that is what it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier: Option<Classifier>,
    /// The features in order, with what training fixed of them.
    pub features: Vec<Feature>,
    /// Whether there is an intercept.
    pub intercept: bool,
    /// The column of weights.
    pub weights: Option<String>,
    /// How it goes on learning.
    pub online: Online,
    /// Variance inflation factor of each design column; `None` where it is infinite or undefined.
    pub variance_inflation: Vec<Option<f64>>,
    /// The fit's figures at sequence 0.
    pub fit: FitRecord,
    /// What is supposed of the errors.
    pub covariance: Covariance,
    /// How a penalty was chosen.
    pub selection: Option<Selection>,
    /// How gradient descent went.
    pub descent: Option<Descent>,
    /// What held-out rows say.
    pub validation: Option<ValidationRecord>,
    /// The pretrained model it started from.
    pub prior: Option<Prior>,
    /// How far each coefficient moved from the pretrained model's.
    pub moved: Vec<Moved>,
    /// Equations that the coefficients satisfy.
    pub constraints: Vec<Constraint>,
    /// What a reader must know before trusting it.
    pub warnings: Vec<String>,
    /// Seconds from the first row read to the last figure.
    pub fit_seconds: f64,
    /// The updates that it was fitted on in the place of the dataset, after a drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refit: Option<Refit>,
    /// What its training rows looked like.
    #[serde(default, skip_serializing_if = "Inputs::is_unknown")]
    pub inputs: Inputs,
    /// Rows of its dataset that were erased since it was fitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlearnt: Option<Unlearnt>,
}

/// Rows of a dataset that were erased after a version was fitted on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlearnt {
    /// How many it has unlearnt.
    pub rows: u64,
    /// How many it still knows, because it could not.
    pub kept: u64,
    /// When rows were erased last.
    pub at: String,
}

/// Updates of an older version that a version was fitted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refit {
    /// The older version.
    pub version: u64,
    /// The first row.
    pub first_sequence: u64,
    /// The last one.
    pub last_sequence: u64,
}

impl Document {
    /// The design that rows of requests go through.
    #[must_use]
    pub fn design(&self) -> Design {
        Design::new(self.features.clone())
    }

    /// The responses that are fitted: the targets, or of a classifier its classes.
    #[must_use]
    pub fn responses(&self) -> &[String] {
        self.classifier.as_ref().map_or(&self.target, |classifier| &classifier.classes)
    }

    /// The responses (q) of a row whose targets have these values: their own, or of a classifier's class the indicators.
    #[must_use]
    pub fn response<'a>(&self, targets: &'a [f64], buffer: &'a mut Vec<f64>) -> &'a [f64] {
        match (&self.classifier, targets) {
            (Some(classifier), [class]) => {
                classifier.indicate(*class, buffer);
                buffer
            }
            _ => targets,
        }
    }

    /// Whether what it predicts is of the same targets, and of the same classes where it has some, as another's.
    #[must_use]
    pub fn predicts_as(&self, other: &Self) -> bool {
        self.target == other.target && self.classifier.is_some() == other.classifier.is_some() && self.responses() == other.responses()
    }

    /// Observation less prediction in one target; of labels, 1 where they differ and 0 where they are the same.
    #[must_use]
    pub fn error(&self, observed: f64, predicted: f64) -> f64 {
        if self.classifier.is_some() { f64::from(u8::from(observed != predicted)) } else { observed - predicted }
    }

    /// What would be asked of a fit that is to give this version again, of the same design and with the penalty that was chosen.
    #[must_use]
    pub fn specification(&self) -> Specification {
        let validation = self.validation.as_ref().map(|validation| validation.plan.clone());
        // Leaving rows out one by one is for a solver of the fit's own choosing, and that is how it was asked for.
        let chosen = matches!(validation, Some(Validation::Loo));
        Specification {
            dataset: self.dataset.clone(),
            target: self.target.clone(),
            features: None,
            weights: self.weights.clone(),
            intercept: self.intercept,
            estimator: self.estimator.clone(),
            solver: lsq::Solver::parse(&self.solver).filter(|_| !chosen).unwrap_or_default(),
            online: self.online,
            unseen: Unseen::default(),
            serve: false,
            prior: self.prior.clone(),
            validation,
            calibration: self.classifier.as_ref().and_then(Classifier::calibration),
            covariance: self.covariance.clone(),
            constraints: self.constraints.clone(),
            watch_inputs: self.inputs != Inputs::Off,
        }
    }
}

/// A penalty that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathRecord {
    /// The penalty.
    pub penalty: f64,
    /// Mean squared error on rows that were held out.
    pub score: Option<f64>,
    /// Its standard error over folds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std_error: Option<f64>,
    /// Generalised cross-validation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gcv: Option<f64>,
    /// Trace of the hat matrix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_parameters: Option<f64>,
    /// Coefficients that are not zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonzero: Option<u64>,
}

/// How a penalty was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// `leave_one_out` or `cross_validation`.
    pub by: String,
    /// The one that was taken.
    pub penalty: f64,
    /// All that were tried.
    pub path: Vec<PathRecord>,
}

/// How gradient descent went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Descent {
    /// Epochs that were made.
    pub epochs: u64,
    /// Whether they were enough for the tolerance.
    pub converged: bool,
    /// The rate in the end.
    pub learning_rate: f64,
    /// Half of the mean squared error after each epoch, the first thousand.
    pub losses: Vec<f64>,
}

/// What one fold says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoldRecord {
    /// Rows held out.
    pub rows: u64,
    /// √ of the mean squared error.
    pub rmse: Option<f64>,
    /// Mean absolute error.
    pub mae: Option<f64>,
    /// 1 − RSS/TSS on the held-out rows.
    pub r2: Option<f64>,
}

/// What held-out rows say, one entry a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationRecord {
    /// Which rows were held out.
    pub plan: Validation,
    /// By target: fold by fold; empty when rows are left out one by one.
    pub folds: Vec<Vec<FoldRecord>>,
    /// By target: all held-out rows together.
    pub pooled: Vec<FoldRecord>,
    /// Of a model of past values, by target: forecasts from every held-out row, one entry a step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Vec<StepRecord>>,
    /// What they say of the labels of a classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<LabelRecord>,
}

/// What forecasts of so many steps were worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps ahead, from 1.
    pub step: u32,
    /// Forecasts that were judged.
    pub rows: u64,
    /// √ of the mean squared error.
    pub rmse: Option<f64>,
    /// Mean absolute error.
    pub mae: Option<f64>,
    /// The same of the last value that was known, taken as the forecast.
    pub last_value: LastValueRecord,
}

/// What the last value that was known is worth as a forecast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LastValueRecord {
    /// √ of the mean squared error.
    pub rmse: Option<f64>,
    /// Mean absolute error.
    pub mae: Option<f64>,
}

/// What one fold says of labels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelFold {
    /// Rows held out.
    pub rows: u64,
    /// The share of them whose label was right, by weight.
    pub accuracy: Option<f64>,
    /// Mean of −ln p of the observed classes, by probabilities that were calibrated on other rows; none without a calibration.
    pub log_loss: Option<f64>,
}

/// What held-out rows say of labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelRecord {
    /// Fold by fold; empty when rows are left out one by one.
    pub folds: Vec<LabelFold>,
    /// All held-out rows together.
    pub pooled: LabelFold,
    /// Rows by class: a list an observed one, of how many were predicted to be each.
    pub confusion: Vec<Vec<u64>>,
}

/// How far a coefficient moved from the pretrained model's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// Its target.
    pub target: String,
    /// The design column.
    pub name: String,
    /// Where it stood; `None` where the pretrained model has no such column.
    pub from: Option<f64>,
    /// Where it stands.
    pub to: f64,
}

/// Figures of a fit that all targets share, and those of each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitRecord {
    /// Rows learnt from.
    pub observations: u64,
    /// Rank of the design, the intercept counted.
    pub rank: usize,
    /// n − rank (n − effective parameters for ridge).
    pub degrees_of_freedom: f64,
    /// Trace of the hat matrix.
    pub effective_parameters: f64,
    /// 2-norm condition number of the raw design; `None` when rank deficient.
    pub condition_number: Option<f64>,
    /// Decimal digits of the worst coefficient that are right, estimated.
    pub digits: Option<f64>,
    /// The share of the training rows whose label is right, by weight; none where it is no classifier, or has learnt since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// One a response.
    pub targets: Vec<TargetRecord>,
}

/// Figures of one target; `None` where they are not finite or not defined.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// s, in the target's units.
    pub residual_std: Option<f64>,
    /// 1 − RSS/TSS.
    pub r2: Option<f64>,
    /// The same with degrees of freedom.
    pub adjusted_r2: Option<f64>,
    /// F statistic of the regression.
    pub f: Option<f64>,
    /// Its p-value.
    pub f_p: Option<f64>,
    /// Akaike's criterion.
    pub aic: Option<f64>,
    /// Schwarz's criterion.
    pub bic: Option<f64>,
    /// Gaussian log-likelihood at the estimate.
    pub log_likelihood: Option<f64>,
}

/// A float, if it is one that JSON can say.
#[must_use]
pub fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

impl FitRecord {
    /// The record of a fit.
    #[must_use]
    pub fn of(fit: &lsq::Fit) -> Self {
        Self {
            observations: fit.observations,
            rank: fit.rank,
            degrees_of_freedom: fit.degrees_of_freedom,
            effective_parameters: fit.effective_parameters,
            condition_number: finite(fit.condition_number),
            digits: finite(fit.digits),
            accuracy: None,
            targets: fit.statistics.iter().map(TargetRecord::of).collect(),
        }
    }
}

impl TargetRecord {
    /// The record of a target's statistics.
    #[must_use]
    pub fn of(statistics: &lsq::Statistics) -> Self {
        Self {
            residual_std: finite(statistics.residual_std),
            r2: finite(statistics.r2),
            adjusted_r2: finite(statistics.adjusted_r2),
            f: finite(statistics.f),
            f_p: finite(statistics.f_p),
            aic: finite(statistics.aic),
            bic: finite(statistics.bic),
            log_likelihood: finite(statistics.log_likelihood),
        }
    }
}
