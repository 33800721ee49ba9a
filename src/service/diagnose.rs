//! Diagnostics of a version: its rows are read again, the fit is made again, and each row is held against it.
//!
//! The fit is made again because a stored version keeps its information, not its rows; the same rows and the same arithmetic give the same
//! fit. A dataset that has changed since has other rows, and is refused.

use std::sync::Arc;

use super::catalogue::Version;
use super::error::ServiceError;
use super::estimate;
use super::jobs::Running;
use super::{Service, source};
use crate::lsq;

/// Which rows' own figures are wanted beside those of the whole.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The first row, counted from 0 among those that the fit used.
    pub first: u64,
    /// How many at the most.
    pub limit: usize,
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
    /// Leverages, residuals and influence of the rows that a version was fitted on.
    ///
    /// # Errors
    /// There is no such version; its dataset is gone or has changed; its estimator has no such figures.
    pub async fn diagnose(&self, model: &str, which: &str, wanted: Wanted) -> Result<Findings, ServiceError> {
        let (_, version, _) = self.version_of(model, which).await?;
        if !version.document.estimator.is_linear_in_the_response()
            || !version.document.constraints.is_empty()
            || version.document.prior.is_some()
        {
            return Err(ServiceError::Conflict("these diagnostics are of ordinary, weighted and ridge least squares"));
        }
        if version.document.refit.is_some() {
            return Err(ServiceError::Conflict("this version was fitted on updates after a drift, not on its dataset"));
        }
        let opened = self.open_dataset(&version.document.dataset).await.map_err(|error| match error {
            ServiceError::DatasetNotFound => ServiceError::Conflict("the dataset of this version is gone; its rows are needed"),
            other => other,
        })?;
        if opened.description.tag() != version.document.dataset_tag {
            return Err(ServiceError::Conflict("the dataset has changed since this version was fitted; fit it again"));
        }
        let _permit = self.pool.acquire().await.map_err(|_| ServiceError::Cancelled)?;
        let (handle, asked) = (tokio::runtime::Handle::current(), version.clone());
        tokio::task::spawn_blocking(move || {
            let running = Running::nameless();
            let mut rows = source::Source::again(&handle, &running, Arc::new(opened), &asked.document)?;
            let fit = estimate::again(&mut rows, &asked.document)?;
            let mut page = lsq::RowDiagnostics::default();
            let questions = lsq::Questions { quantiles: &LEVELS, ..lsq::Questions::default() };
            let mut seen = 0;
            let diagnostics = lsq::diagnose(&mut rows, &fit, &questions, &mut |block| {
                let count = block.leverage.len() as u64;
                let (begin, end) = (wanted.first.max(seen), (wanted.first.saturating_add(wanted.limit as u64)).min(seen + count));
                if begin < end {
                    #[allow(clippy::cast_possible_truncation)] // inside the block
                    block.copy_rows((begin - seen) as usize..(end - seen) as usize, &mut page);
                }
                seen += count;
                Ok(())
            })?;
            Ok(Findings { version: asked, diagnostics, rows: seen, page })
        })
        .await
        .map_err(|_| ServiceError::Internal("the diagnostics of a version panicked"))?
    }
}
