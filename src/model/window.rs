//! The rows of a sliding window: design rows as they were learnt, so that the oldest can be taken out again and the fit made anew from all.
//!
//! Rows lie in blocks that are shared between copies of a state; a copy costs a pointer a block, and a new row at the most one block.

use std::collections::VecDeque;
use std::sync::Arc;

use faer::Mat;

use super::bytes::{Reader, Writer};
use super::state::StateError;
use crate::lsq;

/// Rows of a block.
const BLOCK: usize = 256;

/// The last rows, oldest first.
#[derive(Clone, Debug)]
pub struct Window {
    /// Cells of a row: design (p), what rounding it left (p, or none), responses (q), weight.
    predictors: usize,
    responses: usize,
    low: bool,
    /// Rows at the most.
    size: usize,
    blocks: VecDeque<Arc<Vec<f64>>>,
    /// Rows of the first block that are gone.
    gone: usize,
    rows: usize,
}

/// A row of the window.
#[derive(Clone, Copy, Debug)]
pub(super) struct WindowRow<'a> {
    pub(super) row: lsq::Row<'a>,
    pub(super) response: &'a [f64],
    pub(super) weight: f64,
}

impl Window {
    /// An empty one for `size` rows; `low` is whether design rows have low parts.
    #[must_use]
    pub fn new(predictors: usize, responses: usize, low: bool, size: u64) -> Self {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        Self { predictors, responses, low, size, blocks: VecDeque::new(), gone: 0, rows: 0 }
    }

    fn width(&self) -> usize {
        self.predictors * (1 + usize::from(self.low)) + self.responses + 1
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows >= self.size
    }

    pub(super) fn len(&self) -> usize {
        self.rows
    }

    /// Takes a row in: p, q and its weight. Nothing goes out by itself.
    pub fn push(&mut self, row: lsq::Row<'_>, response: &[f64], weight: f64) {
        let width = self.width();
        if self.blocks.back().is_none_or(|block| block.len() >= BLOCK * width) {
            self.blocks.push_back(Arc::new(Vec::with_capacity(BLOCK * width)));
        }
        let Some(last) = self.blocks.back_mut() else { return };
        let last = Arc::make_mut(last);
        last.extend_from_slice(row.high);
        if self.low {
            match row.low {
                Some(low) => last.extend_from_slice(low),
                None => last.resize(last.len() + self.predictors, 0.0),
            }
        }
        last.extend_from_slice(response);
        last.push(weight);
        self.rows += 1;
    }

    fn cells<'a>(&self, cells: &'a [f64]) -> WindowRow<'a> {
        let (high, rest) = cells.split_at(self.predictors);
        let (low, rest) = rest.split_at(if self.low { self.predictors } else { 0 });
        let (response, weight) = rest.split_at(self.responses);
        WindowRow { row: lsq::Row { high, low: self.low.then_some(low) }, response, weight: weight.first().copied().unwrap_or(1.0) }
    }

    /// The oldest row.
    pub(super) fn oldest(&self) -> Option<WindowRow<'_>> {
        let width = self.width();
        self.blocks.front().and_then(|block| block.get(self.gone * width..(self.gone + 1) * width)).map(|cells| self.cells(cells))
    }

    pub(super) fn drop_oldest(&mut self) {
        if self.rows == 0 {
            return;
        }
        self.rows -= 1;
        self.gone += 1;
        if self.gone == BLOCK {
            self.blocks.pop_front();
            self.gone = 0;
        }
    }

    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        (self.gone, self.rows) = (0, 0);
    }

    fn each(&self) -> impl Iterator<Item = WindowRow<'_>> {
        let width = self.width();
        self.blocks.iter().flat_map(move |block| block.chunks_exact(width)).skip(self.gone).map(|cells| self.cells(cells))
    }

    /// The fit of all its rows.
    ///
    /// # Errors
    /// As [`lsq::fit`].
    pub fn fit(&self, specification: &lsq::Specification<'_>) -> Result<lsq::Fit, lsq::Error> {
        let mut design = Mat::zeros(self.rows, self.predictors);
        let mut low = if self.low { Mat::zeros(self.rows, self.predictors) } else { Mat::new() };
        let mut response = Mat::zeros(self.rows, self.responses);
        let mut weights = Vec::with_capacity(self.rows);
        for (place, row) in self.each().enumerate() {
            for (column, value) in row.row.high.iter().enumerate() {
                design[(place, column)] = *value;
            }
            for (column, value) in row.row.low.into_iter().flatten().enumerate() {
                low[(place, column)] = *value;
            }
            for (column, value) in row.response.iter().enumerate() {
                response[(place, column)] = *value;
            }
            weights.push(row.weight);
        }
        let block = lsq::Block {
            design: design.as_ref(),
            design_low: self.low.then_some(low.as_ref()),
            response: response.as_ref(),
            weights: weights.iter().any(|weight| *weight != 1.0).then_some(&weights),
        };
        lsq::fit(&mut lsq::OneBlock(block), specification)
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        out.whole(self.predictors as u64).whole(self.responses as u64).byte(u8::from(self.low)).whole(self.size as u64);
        out.whole(self.rows as u64);
        for row in self.each() {
            row.row.high.iter().for_each(|value| _ = out.float(*value));
            row.row.low.into_iter().flatten().for_each(|value| _ = out.float(*value));
            row.response.iter().for_each(|value| _ = out.float(*value));
            out.float(row.weight);
        }
    }

    pub(super) fn decode(input: &mut Reader<'_>) -> Result<Self, StateError> {
        let (predictors, responses) = (input.length(usize::MAX)?, input.length(usize::MAX)?);
        let low = input.byte()? == 1;
        let mut window = Self::new(predictors, responses, low, input.whole()?);
        let rows = input.length(usize::MAX)?;
        let width = window.width();
        let mut cells = Vec::with_capacity(width);
        for _ in 0..rows {
            cells.clear();
            for _ in 0..width {
                cells.push(input.float()?);
            }
            let (high, rest) = cells.split_at(predictors);
            let (low, rest) = rest.split_at(if window.low { predictors } else { 0 });
            let low = window.low.then_some(low);
            window.push(lsq::Row { high, low }, &rest[..responses], rest[responses]);
        }
        Ok(window)
    }
}
