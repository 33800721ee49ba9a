//! What a model is: what was asked for, the version that came of it, its state as it learns, and the answers it gives. Pure; nothing here
//! waits for anything.

pub mod name;
pub mod prediction;
pub mod prediction_id;
pub mod specification;
pub mod state;
pub mod version;

pub use prediction::{Answer, IntervalKind, Question};
pub use prediction_id::PredictionId;
pub use specification::{
    Auto, Choice, Constraint, Covariance, Estimator, FeatureSpecification, Form, InformationKind, Online, Penalty, Prior, Specification,
    Strength, Validation,
};
pub use state::State;
pub use version::{Descent, Document, FitRecord, FoldRecord, Moved, PathRecord, Selection, TargetRecord, ValidationRecord};
