//! Diagnostics of a version: its rows are read again, the fit is made again, and each row is held against it.
//!
//! The fit is made again because a stored version keeps its information, not its rows; the same rows and the same arithmetic give the same
//! fit. A dataset that has changed since has other rows, and is refused.

use std::sync::Arc;

use super::aside::aside;
use super::catalogue::Version;
use super::error::ServiceError;
use super::estimate::{self, Refit};
use super::jobs::Running;
use super::{Service, source};
use crate::lsq;
use crate::model::{Document, Strength};

/// Which rows' own figures are wanted beside those of the whole.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The first row, counted from 0 among those that the fit used.
    pub first: u64,
    /// How many at the most.
    pub limit: usize,
}

/// DFBETAS on a page at the most: a wide design has one for each of its coefficients in every row.
const MOST_EFFECTS: usize = 1_000_000;

impl Wanted {
    /// As many rows as a page can hold when each has so many DFBETAS.
    fn bounded(self, effects: usize) -> Self {
        Self { limit: self.limit.min(MOST_EFFECTS / effects.max(1)).max(1), ..self }
    }

    fn end(self) -> u64 {
        self.first.saturating_add(self.limit as u64)
    }
}

/// Whether the fit of a version has these figures.
fn check(document: &Document) -> Result<(), ServiceError> {
    let known = match (&document.estimator, &document.prior) {
        _ if !document.constraints.is_empty() => false,
        (_, Some(prior)) if matches!(prior.strength, Strength::Information { .. }) => {
            return Err(ServiceError::Conflict(
                "this version holds the information of the model it began from, whose rows are not at hand; diagnostics need every row",
            ));
        }
        (estimator, _) => estimator.is_linear_in_the_response() || estimator.is_robust(),
    };
    if known {
        Ok(())
    } else {
        Err(ServiceError::Conflict(
            "diagnostics are of least squares, with weights, a ridge penalty or a prior, and of robust fits: those of other estimators are not defined",
        ))
    }
}

/// What is found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The version.
    pub version: Arc<Version>,
    /// Figures of the whole.
    pub diagnostics: lsq::Diagnostics,
    /// Rows that the fit used.
    pub rows: u64,
    /// The figures of the rows that were asked for.
    pub page: lsq::RowDiagnostics,
}

/// Levels of the quantiles of the residuals.
pub const LEVELS: [f64; 7] = [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0];

impl Service {
    /// Leverages, residuals, influence and robust weights of the rows that a version was fitted on.
    ///
    /// # Errors
    /// There is no such version; its dataset is gone or has changed; its estimator has no such figures.
    pub async fn diagnose(&self, model: &str, which: &str, wanted: Wanted) -> Result<Findings, ServiceError> {
        let (_, version, _) = self.version_of(model, which).await?;
        if version.document.refit.is_some() {
            return Err(ServiceError::Conflict("this version was fitted on updates after a drift, not on its dataset"));
        }
        check(&version.document)?;
        let opened = self.open_dataset(&version.document.dataset).await.map_err(|error| match error {
            ServiceError::DatasetNotFound => ServiceError::Conflict("the dataset of this version is gone; its rows are needed"),
            other => other,
        })?;
        if opened.description.tag() != version.document.dataset_tag {
            return Err(ServiceError::Conflict("the dataset has changed since this version was fitted; fit it again"));
        }
        let _permit = self.pool.acquire().await.map_err(|_| ServiceError::Cancelled)?;
        let (handle, asked) = (tokio::runtime::Handle::current(), version.clone());
        let wanted = wanted.bounded((version.design.width() + 1) * version.document.responses().len());
        let work = move || {
            let running = Running::nameless();
            let mut rows = source::Source::again(&handle, &running, Arc::new(opened), &asked.document)?;
            let refit = estimate::again(&mut rows, &asked.document)?;
            let mut page = lsq::RowDiagnostics::default();
            let effects_of: Vec<u64> = (wanted.first..wanted.end()).collect();
            let questions = lsq::Questions { quantiles: &LEVELS, effects_of: &effects_of, ..lsq::Questions::default() };
            let mut seen = 0;
            let mut visit = |block: &lsq::RowDiagnostics| {
                let count = block.leverage.len() as u64;
                let (begin, end) = (wanted.first.max(seen), wanted.end().min(seen + count));
                if begin < end {
                    #[allow(clippy::cast_possible_truncation)] // inside the block
                    block.copy_rows((begin - seen) as usize..(end - seen) as usize, &mut page);
                }
                seen += count;
                Ok(())
            };
            let diagnostics = match refit {
                Refit::Linear(fit) => lsq::diagnose(&mut rows, &fit, &questions, &mut visit),
                Refit::Robust(fit) => lsq::diagnose_robust(&mut rows, &fit, &questions, &mut visit),
            }?;
            Ok(Findings { version: asked, diagnostics, rows: seen, page })
        };
        aside(work, "the diagnostics of a version panicked").await
    }
}

#[cfg(test)]
mod tests {
    use super::Wanted;

    #[test]
    fn a_page_of_a_wide_design_has_fewer_rows_and_never_none() {
        let wanted = |effects| Wanted { first: 7, limit: 1000 }.bounded(effects);
        assert_eq!((wanted(4).limit, wanted(1000).limit, wanted(8193).limit, wanted(9_000_000).limit), (1000, 1000, 122, 1));
        assert_eq!(wanted(8193).end(), 129);
        assert_eq!(Wanted { first: u64::MAX, limit: 1000 }.end(), u64::MAX);
    }
}
