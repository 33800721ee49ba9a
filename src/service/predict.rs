//! Predictions: a version's state is loaded once for the whole request, so all its rows are answered by one version at one sequence.

use std::sync::Arc;

use super::Service;
use super::catalogue::Version;
use super::error::ServiceError;
use crate::frame::rows::Rows;
use crate::model::State;
use crate::model::prediction::{Answer, Question, answer};
use crate::telemetry;

/// Rows answered, and by what.
#[derive(Debug)]
pub struct Predicted {
    /// The version that answered.
    pub version: Arc<Version>,
    /// Its sequence.
    pub sequence: u64,
    /// The answers.
    pub answer: Answer,
}

impl Service {
    /// Answers rows that were parsed by the version's own input schema, by one of its states.
    ///
    /// # Errors
    /// A prediction is not finite.
    pub fn predict(&self, version: Arc<Version>, state: &State, rows: Rows, question: Question) -> Result<Predicted, ServiceError> {
        let answer = answer(state, &version.design, rows.count, &rows.values, question);
        let targets = version.document.target.len().max(1);
        if let Some(place) = answer.predictions.iter().position(|value| !value.is_finite()) {
            let row = place / targets;
            return Err(ServiceError::request(
                format!("/rows/{row}"),
                format!("row {}: the prediction is not a finite number; its values are too large", row + 1),
            ));
        }
        metrics::counter!(telemetry::PREDICTIONS).increment((answer.predictions.len() / targets) as u64);
        Ok(Predicted { sequence: state.sequence(), version, answer })
    }
}
