//! What a model is: what was asked for, the version that came of it, its state as it learns, and the answers it gives. Pure; nothing here
//! waits for anything.

pub mod answers;
mod bytes;
pub mod classifier;
mod drift;
pub mod history;
pub mod inputs;
pub mod key;
pub mod monitor;
pub mod name;
pub mod prediction;
pub mod prediction_id;
pub mod score;
pub mod specification;
pub mod split;
pub mod state;
pub mod version;
mod window;

pub use answers::{Figure, Wanted};
pub use classifier::{Calibration, Calibrator, Classifier, Judging};
pub use history::History;
pub use prediction::{Answer, IntervalKind, Question};
pub use prediction_id::PredictionId;
pub use score::{Better, Difference, Judged, Paired, Scores, Tally};
pub use specification::{
    Auto, Choice, Constraint, Covariance, Detector, DriftAction, DriftWatch, Estimator, FeatureSpecification, Form, InformationKind,
    Online, Penalty, Prior, Retention, Specification, Strength, Validation, usual_rounds,
};
pub use split::{Arm, Plan, Split};
pub use state::{Memory, State};
pub use version::{
    Descent, Document, FitRecord, FoldRecord, LabelFold, LabelRecord, LastValueRecord, Moved, PathRecord, Refit, Selection, StepRecord,
    TargetRecord, ValidationRecord,
};
pub use window::Window;
