//! The chunks of a dataset as rows of a problem: read again and again, only the columns that are needed, ahead of the arithmetic.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::ahead::Ahead;
use super::datasets::Opened;
use super::error::ServiceError;
use super::jobs::Running;
use crate::features::{self, Block, BlockError, Design, Encoding, Feature, Roles};
use crate::frame::{ColumnType, Frame};
use crate::lsq::{self, RowSource};
use crate::model::Document;
use crate::model::inputs::Sample;

/// Cells of a block of X: bounds memory for wide designs.
const BLOCK_CELLS: usize = 512 * 1024;
/// Decoded columns that a fit may keep between passes.
const CACHE_BYTES: usize = 32 << 20;

/// A dataset as a source of blocks.
pub(super) struct Source<'a> {
    pub(super) runtime: &'a tokio::runtime::Handle,
    pub(super) running: &'a Running,
    pub(super) dataset: Arc<Opened>,
    /// Indices of dataset columns: features, targets, weights, and one more whose gaps leave rows out as theirs do.
    pub(super) columns: Vec<usize>,
    pub(super) design: Design,
    pub(super) targets: usize,
    pub(super) weighted: bool,
    /// All frames, once a pass has shown that they are small.
    pub(super) cache: Option<Vec<Frame>>,
    pub(super) passes: u64,
    /// Rows that the last pass left out.
    pub(super) skipped: u64,
    /// Rows at the beginning that take no part: those before a window.
    pub(super) first: u64,
    /// Rows that are kept of the first pass, if they are wanted.
    pub(super) sample: Option<Sample>,
}

impl<'a> Source<'a> {
    /// The rows that a stored version was fitted on, from its dataset as it was.
    pub(super) fn again(
        runtime: &'a tokio::runtime::Handle,
        running: &'a Running,
        dataset: Arc<Opened>,
        document: &Document,
    ) -> Result<Self, ServiceError> {
        let schema = &dataset.description.summary.schema;
        let names = document.features.iter().map(|feature| &feature.name).chain(&document.target).chain(&document.weights);
        let columns = names
            .map(|name| schema.index_of(name).ok_or(ServiceError::Internal("a version's column is not in its dataset")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            runtime,
            running,
            columns,
            design: document.design(),
            targets: document.target.len(),
            weighted: document.weights.is_some(),
            cache: None,
            passes: 0,
            skipped: 0,
            first: first_row(&dataset, document.online.window),
            sample: None,
            dataset,
        })
    }
}

/// The row of a dataset, counted from 0, with which a window of its last rows begins.
pub(super) fn first_row(dataset: &Opened, window: Option<u64>) -> u64 {
    window.map_or(0, |window| dataset.description.row.rows.saturating_sub(window))
}

impl Source<'_> {
    pub(super) fn total_rows(&self) -> u64 {
        self.dataset.description.row.rows
    }

    /// Every frame in order.
    fn frames(&mut self, mut visit: impl FnMut(&Frame, u64) -> Result<(), ServiceError>) -> Result<(), ServiceError> {
        self.passes += 1;
        let total = self.total_rows();
        let stage = if self.passes == 1 { "reading" } else { "solving" };
        let mut done = 0;
        let mut advance = |frame: &Frame| -> Result<(), ServiceError> {
            if self.running.is_cancelled() {
                return Err(ServiceError::Cancelled);
            }
            visit(frame, done)?;
            done += frame.rows as u64;
            self.running.progress(stage, done, total);
            Ok(())
        };
        if let Some(frames) = &self.cache {
            return frames.iter().try_for_each(advance);
        }
        let bytes = usize::try_from(total).unwrap_or(usize::MAX).saturating_mul(8 * self.columns.len());
        let mut kept = (bytes <= CACHE_BYTES).then(Vec::new);
        let mut frames = Ahead::of(self.runtime, self.dataset.clone(), self.columns.clone());
        while let Some(frame) = frames.next() {
            let (frame, _) = frame?;
            advance(&frame)?;
            if let Some(kept) = &mut kept {
                kept.push(frame);
            }
        }
        self.cache = kept;
        Ok(())
    }

    /// First pass, when there are categories: the levels that occur in complete rows, sorted (numbers by size, texts by code point).
    pub(super) fn find_levels(&mut self, features: &mut [Feature]) -> Result<(), ServiceError> {
        let categorical = |feature: &Feature| matches!(feature.encoding, Encoding::Onehot { .. });
        if !features.iter().any(categorical) {
            return Ok(());
        }
        let mut found = vec![BTreeSet::new(); features.len()];
        let kinds: Vec<bool> = features.iter().map(categorical).collect();
        self.frames(|frame, _| {
            for (index, levels) in found.iter_mut().enumerate().filter(|(index, _)| kinds[*index]) {
                features::levels_of_complete_rows(&frame.columns, index, levels).map_err(block_error)?;
            }
            Ok(())
        })?;
        for (feature, found) in features.iter_mut().zip(found) {
            if let Encoding::Onehot { levels, .. } = &mut feature.encoding {
                *levels = found.into_iter().collect();
                if feature.kind == ColumnType::Integer {
                    levels.sort_by_key(|level| level.parse::<i64>().unwrap_or(i64::MAX));
                }
            }
        }
        Ok(())
    }
}

impl Source<'_> {
    /// A code for each complete row, equal where the last column's values are.
    pub(super) fn groups(&mut self) -> Result<Vec<u32>, ServiceError> {
        let index = self.columns.len() - 1;
        let (mut known, mut codes) = (HashMap::new(), Vec::new());
        self.frames(|frame, _| features::codes_of_complete_rows(&frame.columns, index, &mut known, &mut codes).map_err(block_error))?;
        Ok(codes)
    }

    /// The last column of each complete row as a number; a timestamp as its microseconds.
    pub(super) fn moments(&mut self) -> Result<Vec<f64>, ServiceError> {
        let index = self.columns.len() - 1;
        let mut moments = Vec::new();
        self.frames(|frame, _| features::numbers_of_complete_rows(&frame.columns, index, &mut moments).map_err(block_error))?;
        Ok(moments)
    }
}

fn block_error(error: BlockError) -> ServiceError {
    match error {
        BlockError::NegativeWeight(_) => ServiceError::Fit(error.to_string()),
        BlockError::Type | BlockError::Level => ServiceError::Internal("a stored dataset changed under a fit"),
    }
}

impl RowSource for Source<'_> {
    fn predictors(&self) -> usize {
        self.design.width()
    }

    fn responses(&self) -> usize {
        self.targets
    }

    fn pass(&mut self, visit: &mut dyn FnMut(&lsq::Block<'_>) -> Result<(), lsq::Error>) -> Result<(), lsq::Error> {
        let design = self.design.clone();
        let roles = Roles { design: &design, targets: self.targets, weighted: self.weighted };
        let rows_at_once = (BLOCK_CELLS / design.width().max(1)).clamp(64, 8192);
        let mut block = Block::default();
        let mut skipped = 0;
        let mut refused = None;
        let first = self.first;
        // Only the first pass that comes to its end sees to it.
        let mut sample = self.sample.take_if(|sample| sample.is_empty());
        let outcome = self.frames(|frame, first_row| {
            let mut begin = usize::try_from(first.saturating_sub(first_row)).unwrap_or(usize::MAX).min(frame.rows);
            while begin < frame.rows {
                let end = frame.rows.min(begin + rows_at_once);
                skipped += features::assemble(roles, &frame.columns, begin..end, &mut block).map_err(|error| match error {
                    BlockError::NegativeWeight(row) => {
                        ServiceError::Fit(format!("row {}: the weight is negative", first_row + row as u64 + 1))
                    }
                    other => block_error(other),
                })? as u64;
                begin = end;
                if block.rows() == 0 {
                    continue;
                }
                if let Some(sample) = &mut sample {
                    let x = block.design();
                    sample.see(block.rows(), |row, feature| design.cell(feature, |column| x[(row, column)]));
                }
                let rows = lsq::Block {
                    design: block.design(),
                    design_low: block.design_low(),
                    response: block.response(),
                    weights: block.weights(),
                };
                if let Err(error) = visit(&rows) {
                    refused = Some(error);
                    return Err(ServiceError::Cancelled);
                }
            }
            Ok(())
        });
        self.skipped = skipped;
        if let Some(mut sample) = sample {
            if outcome.is_err() {
                sample.clear();
            }
            self.sample = Some(sample);
        }
        match (refused, outcome) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => Ok(()),
            (None, Err(ServiceError::Cancelled)) => Err(lsq::Error::Interrupted),
            (None, Err(error)) => Err(lsq::Error::Source(error.to_string())),
        }
    }
}
