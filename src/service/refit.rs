//! What a drift sets off when its action is `refit`: a new version, fitted on the rows of the update log since the drift began, and served where
//! the old one was served. It is fitted in the background; the old version learns and answers on meanwhile.

use std::sync::Arc;

use super::Service;
use super::aside::aside;
use super::audit::{self, Changed};
use super::catalogue::{SERVED, Target, Version};
use super::error::ServiceError;
use crate::features::RowBuffer;
use crate::lsq;
use crate::model::classifier::largest;
use crate::model::inputs::{Inputs, Reference, Sample};
use crate::model::monitor::Mark;
use crate::model::version::finite;
use crate::model::{Classifier, Document, FitRecord, Refit, State, Window};
use crate::store::{self, Connection};

/// A drift that asks for a refit.
#[derive(Debug)]
pub(crate) struct Drifted {
    pub(crate) version: Arc<Version>,
    pub(crate) mark: Mark,
}

/// Rows a coefficient at the least: with fewer, rows from before the drift are better than none.
const ROWS_A_COEFFICIENT: u64 = 5;
/// Cells of X at the most.
const CELLS: u64 = 1 << 26;

/// Fits anew for each drift that asks for it, until the service ends.
pub(crate) async fn follow(service: std::sync::Weak<Service>, mut drifts: tokio::sync::mpsc::UnboundedReceiver<Drifted>) {
    while let Some(drifted) = drifts.recv().await {
        let Some(service) = service.upgrade() else { return };
        let (model, number) = (drifted.version.model.clone(), drifted.version.number);
        match refit(&service, drifted).await {
            Ok(fitted) => tracing::info!(model, version = number, fitted, "a drift led to a new version"),
            Err(error) => tracing::warn!(model, version = number, %error, "a drift did not lead to a new version"),
        }
    }
}

async fn refit(service: &Arc<Service>, drifted: Drifted) -> Result<u64, ServiceError> {
    let Drifted { version, mark } = drifted;
    let width = version.design.width() as u64 + u64::from(version.document.intercept);
    let wanted = mark.recent.max(ROWS_A_COEFFICIENT * width).max(10).min(CELLS / width.max(1));
    let wanted = version.document.online.window.map_or(wanted, |window| wanted.min(window));
    let mut connection = service.store.read().await?;
    let first = store::updates::first(&mut connection, version.id).await?.unwrap_or(u64::MAX);
    let begin = mark.sequence.saturating_sub(wanted - 1).max(first);
    let rows = rows(&mut connection, &version, begin, mark.sequence).await?;
    drop(connection);
    let history = match version.design.past() {
        [] => None,
        _ => version.state_at(&service.store, mark.sequence).await?.history().cloned(),
    };
    let _permit = service.pool.acquire().await.map_err(|_| ServiceError::Cancelled)?;
    let fitting = version.clone();
    let (document, state) = aside(move || fitted(&fitting, &rows, begin, mark.sequence), "a refit panicked").await?;
    let state = state.with_history(history);
    let text = serde_json::to_string(&document).map_err(|_| ServiceError::Internal("a version does not encode"))?;
    let (bytes, name, old) = (state.encode(), version.model.clone(), version.clone());
    let (publisher, events) = (service.clone(), version.events.clone());
    let added = service
        .writer
        .change(
            async move |writer: &mut Connection| {
                if !store::models::version_exists(writer, old.id).await? {
                    return Err(ServiceError::VersionNotFound);
                }
                let added = store::models::add_version(writer, &name, &text, bytes).await?;
                let before = audit::served(writer, added.model.id).await?;
                let serve = store::models::serves(writer, added.model.id, SERVED, old.number).await?;
                if serve {
                    store::models::set_alias(writer, added.model.id, SERVED, added.version.version, None).await?;
                }
                let version = Arc::new(Version::new(&name, &added.version, Some(state), events)?);
                let after = audit::fitted(version.number, serve);
                Ok(Changed::new((version, serve), "refit", &name, before, Some(after)))
            },
            move |(version, serve)| {
                publisher.catalogue.change(&version.model, |model| {
                    model.map(|mut model| {
                        model.versions.insert(version.number, version.clone());
                        if *serve {
                            model.aliases.insert(SERVED.to_owned(), Target::of(version.number));
                        }
                        model
                    })
                });
                version.events.send("version", &serde_json::json!({"version": version.number, "served": serve}));
            },
        )
        .await?;
    Ok(added.0.number)
}

/// Cells of the rows from one sequence to another, erased ones left out.
async fn rows(connection: &mut Connection, version: &Version, begin: u64, end: u64) -> Result<Vec<f64>, ServiceError> {
    let width = version.learning_width();
    let mut cells = Vec::new();
    let mut record = store::updates::holding(connection, version.id, begin).await?;
    while let Some(found) = record.take() {
        let rows = (found.values.len() / width) as u64;
        for (place, row) in found.values.chunks_exact(width).enumerate() {
            let sequence = found.first_sequence + place as u64;
            if (begin..=end).contains(&sequence) && !found.erased.iter().any(|erased| *erased as usize == place) {
                cells.extend_from_slice(row);
            }
        }
        let next = found.first_sequence + rows;
        if next <= end {
            record = store::updates::holding(connection, version.id, next).await?;
        }
    }
    Ok(cells)
}

fn fitted(version: &Version, cells: &[f64], first: u64, last: u64) -> Result<(Document, State), ServiceError> {
    let begun = std::time::Instant::now();
    let columns = version.design.columns().len();
    let width = version.learning_width();
    let extended = version.design.is_extended();
    let memory = version.memory();
    let rows = (cells.len() / width) as u64;
    let responses = version.document.responses().len();
    let mut window = Window::new(version.design.width(), responses, extended, memory.online.window.unwrap_or(rows));
    let (mut buffer, mut indicators) = (RowBuffer::default(), Vec::new());
    let mut sample = Sample::of(columns, rows);
    sample.see(usize::try_from(rows).unwrap_or(0), |row, column| cells[row * width + column]);
    for row in cells.chunks_exact(width) {
        let (observed, weight) = version.observed(row);
        let response = version.document.response(observed, &mut indicators);
        window.push(version.design.row(&row[..columns], &mut buffer), response, weight);
    }
    let fit = window.fit(&lsq::Specification { intercept: version.document.intercept, penalty: memory.penalty, ..Default::default() })?;
    let (mut state, mut record) = (State::of(&fit), FitRecord::of(&fit));
    if let Some(classifier) = &version.document.classifier {
        state = state.with_labels();
        record.accuracy = accuracy(version, classifier, &state, cells);
    }
    if memory.online.window.is_some() {
        state = state.windowed(window);
    }
    let inputs = match version.document.inputs {
        Inputs::Off => Inputs::Off,
        Inputs::Unknown | Inputs::Known(_) => {
            Inputs::Known(Box::new(Reference::of(sample, &version.design, &state, missing(cells, width, columns))))
        }
    };
    let number = version.number;
    let mut warnings = vec![format!("fitted after a drift on the updates {first} to {last} of version {number}, and not on the dataset")];
    if version.document.classifier.as_ref().is_some_and(|classifier| classifier.calibrator.is_some()) {
        warnings.push(format!("probabilities are made of scores as those of version {number} were: fit anew to calibrate them"));
    }
    let document = Document {
        solver: fit.solver.as_str().to_owned(),
        variance_inflation: fit.variance_inflation.iter().map(|factor| finite(*factor)).collect(),
        fit: record,
        covariance: crate::model::Covariance::Classical,
        selection: None,
        descent: None,
        validation: None,
        prior: None,
        moved: Vec::new(),
        warnings,
        fit_seconds: begun.elapsed().as_secs_f64(),
        refit: Some(Refit { version: version.number, first_sequence: first, last_sequence: last }),
        inputs,
        unlearnt: None,
        ..version.document.clone()
    };
    Ok((document, state))
}

/// The share of the rows, by weight, whose label a state gives.
fn accuracy(version: &Version, classifier: &Classifier, state: &State, cells: &[f64]) -> Option<f64> {
    let (columns, width) = (version.design.columns().len(), version.learning_width());
    let (mut buffer, mut scores) = (RowBuffer::default(), vec![0.0; classifier.classes.len()]);
    let (mut right, mut all) = (0.0, 0.0);
    for row in cells.chunks_exact(width) {
        state.information().predict(version.design.row(&row[..columns], &mut buffer), &mut scores);
        let weight = row[width - 1];
        all += weight;
        right += if largest(scores.iter().copied()) == Classifier::class(row[columns]) { weight } else { 0.0 };
    }
    finite(right / all)
}

/// By column, the share of the rows in which it is missing.
#[allow(clippy::cast_precision_loss)] // counts of rows
fn missing(cells: &[f64], width: usize, columns: usize) -> Vec<f64> {
    let rows = cells.len() / width;
    (0..columns).map(|column| cells.iter().skip(column).step_by(width).filter(|cell| cell.is_nan()).count() as f64 / rows as f64).collect()
}
