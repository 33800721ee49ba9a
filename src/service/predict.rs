//! Predictions: a version's state is loaded once for the whole request, so all its rows are answered by one version at one sequence.

use std::borrow::Cow;
use std::sync::Arc;

use super::Service;
use super::catalogue::Version;
use super::error::ServiceError;
use super::inputs::Watch;
use super::traffic::{Shadows, Traffic};
use crate::frame::InputSchema;
use crate::frame::rows::Rows;
use crate::model::State;
use crate::model::prediction::{Answer, IntervalKind, Question, answer};
use crate::planted;
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
    /// The split that chose it.
    split: Option<Chosen>,
}

/// An arm that a split has chosen.
#[derive(Debug)]
pub(super) struct Chosen {
    traffic: Arc<Traffic>,
    arm: usize,
    shadows: Arc<Shadows>,
}

/// By what a request is known again: a key of its own, or a header.
#[allow(missing_debug_implementations)] // a function has none
pub struct Caller<'a> {
    /// The key, if the request carries one by itself.
    pub key: Option<&'a [u8]>,
    /// The value of a header.
    pub header: &'a (dyn Fn(&str) -> Option<Vec<u8>> + Sync),
}

impl Caller<'_> {
    fn arm(&self, traffic: &Traffic) -> usize {
        match self.key {
            Some(key) => traffic.arm(Some(key)),
            None => traffic.arm(traffic.header().and_then(|header| (self.header)(header)).as_deref()),
        }
    }
}

impl Answerer {
    /// What rows may hold.
    #[must_use]
    pub fn inputs(&self) -> &InputSchema {
        self.split.as_ref().map_or(&self.version.inputs, |chosen| chosen.traffic.inputs(chosen.arm))
    }

    /// The arm that a split of traffic has chosen.
    #[must_use]
    pub fn arm(&self) -> Option<Arc<str>> {
        self.split.as_ref().map(|chosen| chosen.traffic.name(chosen.arm))
    }

    /// The cells of the version's own features.
    fn own<'a>(&self, rows: &'a Rows) -> Cow<'a, [f64]> {
        match &self.split {
            None => Cow::Borrowed(&rows.values),
            Some(chosen) => chosen.traffic.own(chosen.arm, rows),
        }
    }

    /// Shows rows that were answered to the shadows of the split, if there are any.
    pub(super) fn show(&self, rows: &Rows, answer: &Answer) {
        if let Some(Chosen { traffic, arm, shadows }) = &self.split {
            shadows.show(traffic, *arm, rows, &answer.predictions);
        }
    }

    /// The sequence of its state.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.state.sequence()
    }

    /// The same cells with the past values in them that rows do not give themselves: each row is the first that can be predicted.
    fn with_past(&self, cells: &[f64]) -> Result<Vec<f64>, ServiceError> {
        let version = &self.version;
        let width = version.design.columns().len();
        let cells = version.recalled(&self.state, version.design.horizon(), cells, width);
        cells.chunks_exact(width).enumerate().try_for_each(|(row, cells)| version.check_past(cells, row))?;
        Ok(cells.into_owned())
    }

    /// The answer to rows, all of it finite.
    pub(super) fn answer(&self, rows: &Rows, question: Question) -> Result<Answer, ServiceError> {
        planted::stumble(&self.version.model, "predicting");
        let document = &self.version.document;
        if document.classifier.is_some() && question.interval.is_some_and(|(kind, _)| kind == IntervalKind::Prediction) {
            return Err(ServiceError::request(
                "/interval/kind",
                "a class is no number that lies between two others: of a classifier ask for `confidence`, which is about its scores",
            ));
        }
        let own = self.own(rows);
        let own = match self.version.design.past() {
            [] => own,
            _ => Cow::Owned(self.with_past(&own)?),
        };
        let answer = answer(&self.state, &self.version.design, document.classifier.as_ref(), rows.count, &own, question);
        let responses = document.responses().len().max(1);
        if let Some(place) = answer.estimates().iter().position(|value| !value.is_finite()) {
            let row = place / responses;
            return Err(ServiceError::request(
                format!("/rows/{row}"),
                format!("row {}: the prediction is not a finite number; its values are too large", row + 1),
            ));
        }
        if let Some(watch) = &self.watch {
            watch.count(&self.version.design, &self.state, &own, rows.count, &answer);
        }
        metrics::counter!(telemetry::PREDICTIONS).increment(rows.count as u64);
        if let Some(chosen) = &self.split {
            chosen.traffic.answered(chosen.arm, rows.count);
        }
        Ok(answer)
    }

    /// Multiplications, about, that the answer to so many rows takes.
    #[must_use]
    pub fn work(&self, rows: usize, question: Question) -> usize {
        let width = self.version.design.width();
        let responses = self.version.document.responses().len();
        let leverage = if question.leverage || question.interval.is_some() { width * width / 2 } else { 0 };
        let each = if question.explain { 2 } else { 1 };
        rows.saturating_mul(leverage + each * responses * width)
    }

    /// Counts a request that is refused for its rows; the error is returned.
    pub fn refused(&self, error: impl Into<ServiceError>) -> ServiceError {
        let error = error.into();
        if let (ServiceError::Rows(faults), Some(watch)) = (&error, &self.watch) {
            watch.refuse(faults.lacks());
        }
        error
    }

    /// Degrees of freedom of Student's t in its limits.
    #[must_use]
    pub fn degrees_of_freedom(&self) -> f64 {
        self.state.information().inference_degrees()
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
    /// The arm that answered, in a split of traffic.
    pub arm: Option<Arc<str>>,
    /// The rows, if they are to be remembered.
    pub(crate) kept: Option<Kept>,
}

/// Rows that are to be remembered.
#[derive(Debug)]
pub(crate) struct Kept {
    /// One cell a feature of the version.
    pub(crate) cells: Vec<f64>,
    pub(crate) rows: usize,
    /// In a split: who predicted the rows, and what.
    pub(crate) judged: Option<(String, Vec<f64>)>,
}

impl Service {
    /// Who answers what `name`, `name@alias` or `name@version` is asked. A plain name is shared out by the model's split, if it has one.
    ///
    /// # Errors
    /// There is no such version.
    pub async fn answerer(&self, reference: &str, caller: Caller<'_>) -> Result<Answerer, ServiceError> {
        let (model, which) = self.catalogue.addressed(reference)?;
        if let (None, Some(traffic)) = (which, &model.traffic) {
            let arm = caller.arm(traffic);
            let (version, state) = traffic.chosen(arm)?;
            let chosen = Chosen { traffic: traffic.clone(), arm, shadows: self.shadows.clone() };
            return Ok(self.answering(version, state, Some(chosen)));
        }
        let (version, held) = model.named(which)?;
        let state = self.state_of(version, held).await?;
        Ok(self.answering(version.clone(), state, None))
    }

    /// Who answers for a version that the address names by itself, by number or alias.
    ///
    /// # Errors
    /// There is no such version.
    pub async fn answerer_of(&self, model: &str, which: &str) -> Result<Answerer, ServiceError> {
        let (_, version, state) = self.version_of(model, which).await?;
        Ok(self.answering(version, state, None))
    }

    pub(super) fn answering(&self, version: Arc<Version>, state: Arc<State>, split: Option<Chosen>) -> Answerer {
        let watch = self.watching.of(&version).cloned();
        Answerer { version, state, watch, split }
    }

    /// The same version as it stood after update `sequence`.
    ///
    /// # Errors
    /// It has not learnt so many rows yet, or the log of that time is no longer kept; a split chose the version.
    pub async fn answerer_at(&self, mut answerer: Answerer, sequence: u64) -> Result<Answerer, ServiceError> {
        if answerer.split.is_some() {
            // The same sequence is another moment to another version.
            return Err(ServiceError::Conflict("a split of traffic is in force: a sequence is asked of `name@version` or `name@alias`"));
        }
        answerer.state = answerer.version.state_at(&self.store, sequence).await?;
        Ok(answerer)
    }

    /// Answers rows that were parsed by [`Answerer::inputs`]; with `remember` they are kept for [`Service::remember`].
    ///
    /// # Errors
    /// A prediction is not finite; a past value is not known; rows of a model of past values are to be remembered.
    pub fn predict(&self, answerer: Answerer, rows: Rows, question: Question, remember: bool) -> Result<Predicted, ServiceError> {
        if remember && !answerer.version.design.past().is_empty() {
            let detail = "a model of past values learns rows in their order, which labels do not keep: send the rows to `updates`";
            return Err(ServiceError::request("/remember", detail));
        }
        let answer = answerer.answer(&rows, question)?;
        let (mut kept, arm) = (None, answerer.arm());
        match (&answerer.split, remember) {
            (None, false) => {}
            (None, true) => kept = Some(Kept { cells: rows.values, rows: rows.count, judged: None }),
            (Some(_), false) => answerer.show(&rows, &answer),
            (Some(Chosen { traffic, arm, .. }), true) => {
                let judged = traffic.judged(*arm, &rows.values, rows.count, &answer.predictions)?;
                kept = Some(Kept { cells: answerer.own(&rows).into_owned(), rows: rows.count, judged: Some(judged) });
            }
        }
        let Answerer { version, state, .. } = answerer;
        Ok(Predicted { sequence: state.sequence(), version, answer, arm, kept })
    }
}
