//! Predictions: a version's state is loaded once for the whole request, so all its rows are answered by one version at one sequence.

use std::sync::Arc;

use super::Service;
use super::catalogue::Version;
use super::error::ServiceError;
use super::inputs::Watch;
use crate::frame::InputSchema;
use crate::frame::rows::Rows;
use crate::model::State;
use crate::model::prediction::{Answer, Question, answer};
use crate::telemetry;

/// Who answers a request: settled once, before its rows are read, for every dialect.
#[derive(Debug)]
pub struct Answerer {
    /// The version.
    pub version: Arc<Version>,
    /// Its state, which does not change while the request is answered.
    pub(crate) state: Arc<State>,
    /// What counts its rows, if they are watched.
    watch: Option<Arc<Watch>>,
}

impl Answerer {
    /// What rows may hold.
    #[must_use]
    pub fn inputs(&self) -> &InputSchema {
        &self.version.inputs
    }

    /// The sequence of its state.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.state.sequence()
    }

    /// The answer to rows, all of it finite.
    pub(super) fn answer(&self, rows: &Rows, question: Question) -> Result<Answer, ServiceError> {
        let answer = answer(&self.state, &self.version.design, rows.count, &rows.values, question);
        let targets = self.version.document.target.len().max(1);
        if let Some(place) = answer.predictions.iter().position(|value| !value.is_finite()) {
            let row = place / targets;
            return Err(ServiceError::request(
                format!("/rows/{row}"),
                format!("row {}: the prediction is not a finite number; its values are too large", row + 1),
            ));
        }
        if let Some(watch) = &self.watch {
            watch.count(&self.version.design, &self.state, &rows.values, rows.count, &answer);
        }
        metrics::counter!(telemetry::PREDICTIONS).increment(rows.count as u64);
        Ok(answer)
    }

    /// Counts a request that is refused for its rows; the error is returned.
    pub fn refused(&self, error: impl Into<ServiceError>) -> ServiceError {
        let error = error.into();
        if let (ServiceError::Rows(faults), Some(watch)) = (&error, &self.watch) {
            watch.refuse(faults.lacks());
        }
        error
    }

    /// Degrees of freedom of the residual variance.
    #[must_use]
    pub fn degrees_of_freedom(&self) -> f64 {
        self.state.information().degrees_of_freedom()
    }
}

/// Rows answered, and by what.
#[derive(Debug)]
pub struct Predicted {
    /// The version that answered.
    pub version: Arc<Version>,
    /// Its sequence.
    pub sequence: u64,
    /// The answers.
    pub answer: Answer,
    /// The rows, if they are to be remembered.
    pub(crate) kept: Option<Kept>,
}

/// Rows that are to be remembered.
#[derive(Debug)]
pub(crate) struct Kept {
    /// One cell a feature of the version.
    pub(crate) cells: Vec<f64>,
    pub(crate) rows: usize,
}

impl Service {
    /// Who answers what `name`, `name@alias` or `name@version` is asked.
    ///
    /// # Errors
    /// There is no such version.
    pub async fn answerer(&self, reference: &str) -> Result<Answerer, ServiceError> {
        let (_, version, state) = self.version(reference).await?;
        Ok(self.answering(version, state))
    }

    /// Who answers for a version that the address names by itself, by number or alias.
    ///
    /// # Errors
    /// There is no such version.
    pub async fn answerer_of(&self, model: &str, which: &str) -> Result<Answerer, ServiceError> {
        let (_, version, state) = self.version_of(model, which).await?;
        Ok(self.answering(version, state))
    }

    fn answering(&self, version: Arc<Version>, state: Arc<State>) -> Answerer {
        let watch = self.watching.of(&version).cloned();
        Answerer { version, state, watch }
    }

    /// The same version as it stood after update `sequence`.
    ///
    /// # Errors
    /// It has not learnt so many rows yet, or the log of that time is no longer kept.
    pub async fn answerer_at(&self, mut answerer: Answerer, sequence: u64) -> Result<Answerer, ServiceError> {
        answerer.state = answerer.version.state_at(&self.store, sequence).await?;
        Ok(answerer)
    }

    /// Answers rows that were parsed by [`Answerer::inputs`]; with `remember` they are kept for [`Service::remember`].
    ///
    /// # Errors
    /// A prediction is not finite.
    pub fn predict(&self, answerer: Answerer, rows: Rows, question: Question, remember: bool) -> Result<Predicted, ServiceError> {
        let answer = answerer.answer(&rows, question)?;
        let Answerer { version, state, .. } = answerer;
        let kept = remember.then_some(Kept { cells: rows.values, rows: rows.count });
        Ok(Predicted { sequence: state.sequence(), version, answer, kept })
    }
}
