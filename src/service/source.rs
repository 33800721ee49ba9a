//! The chunks of a dataset as rows of a problem: read again and again, only the columns that are needed, ahead of the arithmetic.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow_array::Array as _;

use super::ahead::Ahead;
use super::datasets::Opened;
use super::error::ServiceError;
use super::jobs::Running;
use crate::features::{self, Block, BlockError, Cells, Design, Feature, Lagged, Learning, Read, Roles};
use crate::frame::{ColumnType, Fault, Frame};
use crate::lsq::{self, RowSource};
use crate::model::classifier::MOST_CLASSES;
use crate::model::inputs::Sample;
use crate::model::{Document, History};

/// Cells of a block of X: bounds memory for wide designs.
const BLOCK_CELLS: usize = 512 * 1024;
/// Decoded columns that a fit may keep between passes.
const CACHE_BYTES: usize = 32 << 20;

/// Rows of a series in memory: those in which nothing is missing, in their order.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// Cells of a row.
    pub(super) width: usize,
    /// The number of each row in the dataset.
    pub(super) numbers: Vec<u64>,
    /// n×width.
    pub(super) cells: Vec<f64>,
    /// n×q.
    pub(super) responses: Vec<f64>,
    /// n.
    pub(super) weights: Vec<f64>,
}

/// A dataset as a source of blocks.
pub(super) struct Source<'a> {
    pub(super) runtime: &'a tokio::runtime::Handle,
    pub(super) running: &'a Running,
    pub(super) dataset: Arc<Opened>,
    /// Dataset columns, so many rows back: those of the design, targets, weights, and one more whose gaps leave rows out as theirs do.
    pub(super) columns: Vec<Read>,
    pub(super) design: Design,
    pub(super) targets: usize,
    /// The classes of the one target, if it has some.
    pub(super) classes: Option<Vec<String>>,
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
    /// What the first pass left of the last rows.
    pub(super) last: Option<Lagged>,
    /// Of a design of past values, what each fold of a validation made of it.
    pub(super) remade: Vec<Design>,
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
        let design = document.design();
        let names = document.target.iter().chain(&document.weights);
        let columns = Read::all_of(&design, |name| schema.index_of(name))
            .chain(names.map(|name| schema.index_of(name).map(Read::from)))
            .map(|read| read.ok_or(ServiceError::Internal("a version's column is not in its dataset")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            runtime,
            running,
            columns,
            design,
            targets: document.target.len(),
            classes: document.classifier.as_ref().map(|classifier| classifier.classes.clone()),
            weighted: document.weights.is_some(),
            cache: None,
            passes: 0,
            skipped: 0,
            first: first_row(&dataset, document.online.window),
            sample: None,
            last: None,
            remade: Vec::new(),
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
        let mut lagged = Lagged::new(self.columns.clone());
        let mut frames = Ahead::of(self.runtime, self.dataset.clone(), lagged.columns().to_vec());
        while let Some(frame) = frames.next() {
            let frame = lagged.next(frame?.0).map_err(block_error)?;
            advance(&frame)?;
            if let Some(kept) = &mut kept {
                kept.push(frame);
            }
        }
        self.cache = kept;
        self.last = Some(lagged);
        Ok(())
    }

    /// First pass, when there are categories: the levels that occur in complete rows, sorted (numbers by size, texts by code point).
    fn find_levels(&mut self, features: &mut [Feature]) -> Result<(), ServiceError> {
        let design = Design::new(features.to_vec());
        if design.columns().iter().all(|column| column.levels.is_none()) {
            return Ok(());
        }
        let mut found = vec![BTreeSet::new(); design.columns().len()];
        self.frames(|frame, _| {
            for (index, levels) in found.iter_mut().enumerate().filter(|(index, _)| design.columns()[*index].levels.is_some()) {
                features::levels_of_complete_rows(&design, &frame.columns, index, levels).map_err(block_error)?;
            }
            Ok(())
        })?;
        let sorted = |(found, kind): (BTreeSet<String>, ColumnType)| {
            let mut levels: Vec<String> = found.into_iter().collect();
            if kind == ColumnType::Integer {
                levels.sort_by_key(|level| level.parse::<i64>().unwrap_or(i64::MAX));
            }
            levels
        };
        let found: HashMap<&str, Vec<String>> =
            design.columns().iter().zip(found).map(|(column, levels)| (column.name.as_str(), sorted((levels, column.kind)))).collect();
        for feature in features {
            let names: Vec<String> = feature.sources().map(|(name, _)| name.to_owned()).collect();
            for (part, name) in names.iter().enumerate() {
                if let (Some(levels), Some(found)) = (feature.encoding.levels_mut(part), found.get(name.as_str())) {
                    levels.clone_from(found);
                }
            }
        }
        Ok(())
    }

    /// The classes of the target: those of complete rows, and those that are `known` already.
    ///
    /// # Errors
    /// There are fewer than two of them, or too many.
    pub(super) fn find_classes(&mut self, known: &[String]) -> Result<(), ServiceError> {
        let index = self.design.columns().len();
        let design = self.design.clone();
        let mut found: BTreeSet<String> = known.iter().cloned().collect();
        self.frames(|frame, _| features::levels_of_complete_rows(&design, &frame.columns, index, &mut found).map_err(block_error))?;
        let refused = |detail: String| Err(ServiceError::request("/target", detail));
        match found.len() {
            0 => refused("there is no row in which nothing is missing".to_owned()),
            1 => refused("the target has the same class in every row in which nothing is missing; a classifier needs two".to_owned()),
            count if count > MOST_CLASSES => refused(format!("the target has {count} classes, more than {MOST_CLASSES}")),
            _ => {
                self.classes = Some(found.into_iter().collect());
                Ok(())
            }
        }
    }

    /// Makes a design of features as the training rows have it: the levels of categories, then what else the features learn of rows.
    pub(super) fn make_design(&mut self, mut features: Vec<Feature>) -> Result<(), ServiceError> {
        self.find_levels(&mut features)?;
        self.design = Design::new(features);
        self.design = self.learnt(None)?;
        Ok(())
    }

    /// The design as the training rows have it, or those of them that a fold learns from.
    fn learnt(&mut self, training: Option<&lsq::Training<'_>>) -> Result<Design, ServiceError> {
        let design = self.design.clone();
        let Some(mut learning) = Learning::of(&design, self.total_rows().saturating_sub(self.first)) else { return Ok(design) };
        let (first, mut rows) = (self.first, 0);
        let (mut cells, mut taken) = (Cells::default(), Vec::new());
        self.frames(|frame, first_row| {
            let begin = usize::try_from(first.saturating_sub(first_row)).unwrap_or(usize::MAX).min(frame.rows);
            cells.read(&design, &frame.columns, begin..frame.rows).map_err(block_error)?;
            match training {
                Some(training) => training.of(rows, cells.rows(), &mut taken),
                None => {
                    taken.clear();
                    taken.resize(cells.rows(), true);
                }
            }
            rows += cells.rows() as u64;
            learning.see(&cells, |row| taken[row]).map_err(|(row, column)| {
                let name = &design.columns()[column].name;
                let limit = |feature: &Feature| feature.encoding.above().is_some() && feature.sources().any(|(source, _)| source == name);
                let place = design.features().iter().position(limit).unwrap_or_default();
                let row = first_row + cells.place(row) as u64 + 1;
                let detail = format!("row {row}, column {name:?}: the value has no logarithm; with `offset` it has to be above 0");
                ServiceError::request(format!("/features/{place}"), detail)
            })
        })?;
        let unfit = |unfit: features::Unfit| {
            ServiceError::Request(vec![Fault { pointer: format!("/features/{}", unfit.feature), detail: unfit.detail }])
        };
        learning.finish().map(Design::new).map_err(unfit)
    }
}

impl lsq::Remade for Source<'_> {
    fn remake(&mut self, training: &lsq::Training<'_>) -> Result<(), lsq::Error> {
        let before = self.design.width();
        let design = self.learnt(Some(training)).map_err(|error| match error {
            ServiceError::Cancelled => lsq::Error::Interrupted,
            ServiceError::Request(faults) => {
                let details: Vec<String> = faults.into_iter().map(|fault| fault.detail).collect();
                lsq::Error::Source(format!("on the training rows of a fold, {}", details.join("; ")))
            }
            other => lsq::Error::Source(other.to_string()),
        })?;
        if design.width() != before {
            return Err(lsq::Error::Source(
                "the training rows of a fold make another number of columns; give the edges of bins".to_owned(),
            ));
        }
        if !design.past().is_empty() {
            self.remade.push(design.clone());
        }
        self.design = design;
        Ok(())
    }
}

impl Source<'_> {
    /// The last rows, as far as later ones take values of them; after the first pass.
    pub(super) fn history(&self) -> Option<History> {
        let (last, lagged) = (self.last.as_ref()?, self.design.lagged());
        let schema = &self.dataset.description.summary.schema;
        let column = |place: usize| schema.index_of(&lagged[place]).unwrap_or(usize::MAX);
        (!lagged.is_empty()).then(|| History::of(lagged.len(), self.design.reach(), |place, back| last.back(column(place), back)))
    }

    /// The complete rows, each with its number in the dataset.
    pub(super) fn series(&mut self) -> Result<Series, ServiceError> {
        let design = self.design.clone();
        let (width, targets, weighted) = (design.columns().len(), self.targets, self.weighted);
        let mut series = Series { width, ..Series::default() };
        let (mut cells, mut observed) = (Cells::default(), vec![Vec::new(); targets + usize::from(weighted)]);
        self.frames(|frame, first_row| {
            cells.read(&design, &frame.columns, 0..frame.rows).map_err(block_error)?;
            for (place, column) in observed.iter_mut().enumerate() {
                column.clear();
                features::numbers_of_complete_rows(&design, &frame.columns, width + place, column).map_err(block_error)?;
            }
            for row in 0..cells.rows() {
                series.numbers.push(first_row + cells.place(row) as u64);
                series.cells.extend((0..width).map(|column| cells.cell(row, column)));
                series.responses.extend(observed[..targets].iter().map(|column| column[row]));
                series.weights.push(if weighted { observed[targets][row] } else { 1.0 });
            }
            Ok(())
        })?;
        Ok(series)
    }

    /// The row of the dataset, from 1, whose last column is less than that of the row before, if there is one.
    pub(super) fn out_of_order(&mut self) -> Result<Option<u64>, ServiceError> {
        let index = self.columns.len() - 1;
        let (mut before, mut found, mut values) = (f64::NEG_INFINITY, None, Vec::new());
        self.frames(|frame, first_row| {
            values.clear();
            // Of no design, so that only rows without a moment are passed over.
            let moments = std::slice::from_ref(&frame.columns[index]);
            features::numbers_of_complete_rows(&Design::default(), moments, 0, &mut values).map_err(block_error)?;
            let rows = (0..frame.rows).filter(|row| moments[0].is_valid(*row));
            for (row, moment) in rows.zip(&values) {
                if *moment < before && found.is_none() {
                    found = Some(first_row + row as u64 + 1);
                }
                before = *moment;
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// A code for each complete row, equal where the last column's values are.
    pub(super) fn groups(&mut self) -> Result<Vec<u32>, ServiceError> {
        let index = self.columns.len() - 1;
        let (mut known, mut codes) = (HashMap::new(), Vec::new());
        let design = self.design.clone();
        self.frames(|frame, _| {
            features::codes_of_complete_rows(&design, &frame.columns, index, &mut known, &mut codes).map_err(block_error)
        })?;
        Ok(codes)
    }

    /// The last column of each complete row as a number; a timestamp as its microseconds.
    pub(super) fn moments(&mut self) -> Result<Vec<f64>, ServiceError> {
        let index = self.columns.len() - 1;
        let mut moments = Vec::new();
        let design = self.design.clone();
        self.frames(|frame, _| features::numbers_of_complete_rows(&design, &frame.columns, index, &mut moments).map_err(block_error))?;
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
        self.classes.as_ref().map_or(self.targets, Vec::len)
    }

    fn pass(&mut self, visit: &mut dyn FnMut(&lsq::Block<'_>) -> Result<(), lsq::Error>) -> Result<(), lsq::Error> {
        let design = self.design.clone();
        let classes = self.classes.clone();
        let roles = Roles { design: &design, targets: self.targets, classes: classes.as_deref(), weighted: self.weighted };
        let rows_at_once = (BLOCK_CELLS / design.width().max(1)).clamp(64, 8192);
        let (mut block, mut cells) = (Block::default(), Cells::default());
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
                if let Some(sample) = &mut sample {
                    cells.read(&design, &frame.columns, begin..end).map_err(block_error)?;
                    sample.see(cells.rows(), |row, column| cells.cell(row, column));
                }
                begin = end;
                if block.rows() == 0 {
                    continue;
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
