//! What a version's own predictions were worth: each row is predicted before it is learnt from (*prequential*, A. P. Dawid, JRSS A 147,
//! 1984), and its error is counted here, over all rows and over the latest; beside it whether a drift was found, and how the coefficients
//! went. All of it is part of the state: it is replayed with the log, and the same rows give the same figures.

use std::collections::VecDeque;

use super::bytes::{Reader, Writer};
use super::drift::Watch;
use super::specification::{DriftWatch, Online};
use super::state::StateError;
use crate::lsq::Information;
use crate::lsq::inference::student_t_quantile;

/// The level of the intervals whose coverage is counted.
pub const LEVEL: f64 = 0.95;
/// Rows of a block, and whole blocks that the figures of the latest rows span beside the one being filled.
const BLOCK: u64 = 100;
const BLOCKS: usize = 10;
/// Marks of drift that are kept, the latest.
const MARKS: usize = 100;
/// Points of the coefficient path at the most; past that every second one is dropped.
const POINTS: usize = 64;
/// Degrees of freedom up to which the quantile is computed for each row; beyond, once in a while.
const FEW_DEGREES: f64 = 200.0;

/// Sums over rows of one target.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    rows: u64,
    absolute: f64,
    squares: f64,
    /// Rows that had an interval, and of those the ones inside.
    judged: u64,
    covered: u64,
    /// Mean of the responses, and Σ(y − mean)².
    mean: f64,
    spread: f64,
}

impl Sums {
    fn count(&mut self, response: f64, error: f64, half: f64) {
        self.rows += 1;
        self.absolute += error.abs();
        self.squares += error * error;
        if half.is_finite() {
            self.judged += 1;
            self.covered += u64::from(error.abs() <= half);
        }
        let away = response - self.mean;
        self.mean += away / self.rows as f64;
        self.spread += away * (response - self.mean);
    }

    /// The sums over both (Chan, Golub & LeVeque 1983).
    fn and(&self, other: &Self) -> Self {
        let rows = self.rows + other.rows;
        if rows == 0 {
            return *self;
        }
        let (own, others, all) = (self.rows as f64, other.rows as f64, rows as f64);
        let away = other.mean - self.mean;
        Self {
            rows,
            absolute: self.absolute + other.absolute,
            squares: self.squares + other.squares,
            judged: self.judged + other.judged,
            covered: self.covered + other.covered,
            mean: self.mean + away * others / all,
            spread: self.spread + other.spread + away * away * own * others / all,
        }
    }

    fn figures(&self) -> Figures {
        let rows = self.rows as f64;
        let known = |value: f64| value.is_finite().then_some(value);
        Figures {
            rows: self.rows,
            mae: known(self.absolute / rows),
            rmse: known((self.squares / rows).sqrt()),
            r2: known(1.0 - self.squares / self.spread),
            coverage: known(self.covered as f64 / self.judged as f64),
        }
    }

    fn encode(&self, out: &mut Writer) {
        out.whole(self.rows).float(self.absolute).float(self.squares).whole(self.judged).whole(self.covered);
        out.float(self.mean).float(self.spread);
    }

    fn decode(input: &mut Reader<'_>) -> Result<Self, StateError> {
        Ok(Self {
            rows: input.whole()?,
            absolute: input.float()?,
            squares: input.float()?,
            judged: input.whole()?,
            covered: input.whole()?,
            mean: input.float()?,
            spread: input.float()?,
        })
    }
}

/// What a-priori predictions were worth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Rows that were predicted and then learnt.
    pub rows: u64,
    /// Mean absolute error.
    pub mae: Option<f64>,
    /// Root mean squared error.
    pub rmse: Option<f64>,
    /// 1 − Σe²/Σ(y − ȳ)².
    pub r2: Option<f64>,
    /// Share of the rows inside their 95% prediction interval.
    pub coverage: Option<f64>,
}

/// A drift that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    /// The row that gave it away.
    pub sequence: u64,
    /// Rows, that one included, which the detector takes to be of the time after.
    pub recent: u64,
}

/// The coefficients at some sequence: intercepts (q, if there are any), then slopes (p×q, column by column).
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// After which row.
    pub sequence: u64,
    /// Their values.
    pub coefficients: Vec<f64>,
}

/// The figures of a version as it learns.
#[derive(Clone, Debug, PartialEq)]
pub struct Monitor {
    /// Residual standard deviation of the fit, one a target: the unit of what the detector sees.
    unit: Vec<f64>,
    /// One a response, and of a classifier one for the labels, whose errors are 0 and 1.
    all: Vec<Sums>,
    /// Blocks of rows, oldest first, of the same; the last one is being filled.
    blocks: VecDeque<Vec<Sums>>,
    watch: Option<Watch>,
    marks: VecDeque<Mark>,
    found: u64,
    path: Vec<Point>,
    stride: u64,
    /// The quantile, and the degrees of freedom it is of.
    quantile: (f64, f64),
}

impl Monitor {
    /// For responses whose fit left these residual standard deviations; with `labels`, those of a classifier.
    pub(super) fn new(unit: Vec<f64>, labels: bool) -> Self {
        let counted = unit.len() + usize::from(labels);
        Self {
            unit,
            all: vec![Sums::default(); counted],
            blocks: VecDeque::from([vec![Sums::default(); counted]]),
            watch: None,
            marks: VecDeque::new(),
            found: 0,
            path: Vec::new(),
            stride: 1,
            quantile: (f64::NAN, f64::NAN),
        }
    }

    /// The same, of a classifier; before anything is counted.
    pub(super) fn with_labels(self) -> Self {
        Self::new(self.unit, true)
    }

    /// Whether it counts labels.
    pub(super) fn counts_labels(&self) -> bool {
        self.all.len() > self.unit.len()
    }

    /// Counts whether a label was right, of the row that was counted last.
    pub(super) fn count_label(&mut self, right: bool) {
        let error = f64::from(u8::from(!right));
        let labels = self.unit.len();
        let block = self.blocks.back_mut().and_then(|block| block.get_mut(labels));
        self.all.get_mut(labels).into_iter().chain(block).for_each(|sums| sums.count(0.0, error, f64::NAN));
    }

    /// Half the width, in standard errors of a prediction, of its interval.
    pub(super) fn quantile(&mut self, degrees: f64) -> f64 {
        let (quantile, of) = self.quantile;
        // dq/dν is about q(q² + 1)/4ν²: a hundredth of many degrees does not show.
        if of == degrees || degrees > FEW_DEGREES && (of - degrees).abs() < 0.01 * degrees {
            return quantile;
        }
        self.quantile = (if degrees > 0.0 { student_t_quantile(LEVEL, degrees) } else { f64::NAN }, degrees);
        self.quantile.0
    }

    /// Counts a row: its responses, a-priori errors and half-widths of intervals (q each). Returns a drift it gives away.
    pub(super) fn count(
        &mut self,
        sequence: u64,
        response: &[f64],
        errors: &[f64],
        halves: &[f64],
        watched: Option<&DriftWatch>,
    ) -> Option<Mark> {
        let full = self.blocks.back().is_none_or(|block| block.first().is_some_and(|sums| sums.rows >= BLOCK));
        if full {
            self.blocks.push_back(vec![Sums::default(); self.all.len()]);
            if self.blocks.len() > BLOCKS + 1 {
                self.blocks.pop_front();
            }
        }
        let mut size = 0.0;
        for (target, ((&response, &error), &half)) in response.iter().zip(errors).zip(halves).enumerate() {
            self.all[target].count(response, error, half);
            if let Some(block) = self.blocks.back_mut() {
                block[target].count(response, error, half);
            }
            size += error.abs() / self.unit[target];
        }
        let watched = watched?;
        let size = size / self.unit.len() as f64;
        let watch = self.watch.get_or_insert_with(|| Watch::new(watched));
        let recent = watch.observe(if size.is_finite() { size.min(1e100) } else { 1e100 })?;
        let mark = Mark { sequence, recent: recent.max(1) };
        self.found += 1;
        self.marks.push_back(mark);
        if self.marks.len() > MARKS {
            self.marks.pop_front();
        }
        Some(mark)
    }

    /// Notes the coefficients, if it is time.
    pub(super) fn note(&mut self, sequence: u64, information: &Information) {
        if !sequence.is_multiple_of(self.stride) {
            return;
        }
        let slopes = information.coefficients();
        let coefficients =
            information.intercept().iter().copied().chain(slopes.col_iter().flat_map(|column| column.iter().copied().collect::<Vec<_>>()));
        self.path.push(Point { sequence, coefficients: coefficients.collect() });
        if self.path.len() > POINTS {
            self.stride *= 2;
            let stride = self.stride;
            self.path.retain(|point| point.sequence.is_multiple_of(stride));
        }
    }

    /// Whether the next row's coefficients will be noted.
    pub(super) fn is_due(&self, sequence: u64) -> bool {
        sequence.is_multiple_of(self.stride)
    }

    /// Begins to watch anew: what is known of the errors is of a time that is over.
    pub(super) fn forget_errors(&mut self, watched: &DriftWatch) {
        self.watch = Some(Watch::new(watched));
    }

    /// Figures over all rows, one a response.
    #[must_use]
    pub fn figures(&self) -> Vec<Figures> {
        self.all[..self.unit.len()].iter().map(Sums::figures).collect()
    }

    /// The share of labels that were right, over all rows and over the latest ones; nothing where there are none.
    #[must_use]
    pub fn accuracy(&self) -> Option<(Option<f64>, Option<f64>)> {
        let right = |sums: Sums| sums.figures().mae.map(|wrong| 1.0 - wrong);
        self.counts_labels().then(|| (right(self.all[self.unit.len()]), right(self.lately(self.unit.len()))))
    }

    /// The same over the latest 1,000 to 1,100 rows.
    #[must_use]
    pub fn latest(&self) -> Vec<Figures> {
        (0..self.unit.len()).map(|response| self.lately(response).figures()).collect()
    }

    fn lately(&self, place: usize) -> Sums {
        self.blocks.iter().fold(Sums::default(), |sums, block| sums.and(&block[place]))
    }

    /// Drifts that were found, the latest hundred, oldest first.
    #[must_use]
    pub fn marks(&self) -> Vec<Mark> {
        self.marks.iter().copied().collect()
    }

    /// How many were found in all.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found
    }

    /// Mean size of the errors, in residual standard deviations of the fit, over the rows that the detector takes to be of the present.
    #[must_use]
    pub fn present(&self) -> Option<(f64, u64)> {
        self.watch.as_ref().map(Watch::present)
    }

    /// Points of the coefficient path.
    #[must_use]
    pub fn path(&self) -> &[Point] {
        &self.path
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        out.floats(&self.unit);
        self.all.iter().for_each(|sums| sums.encode(out));
        out.whole(self.blocks.len() as u64);
        self.blocks.iter().flatten().for_each(|sums| sums.encode(out));
        match &self.watch {
            None => _ = out.byte(0),
            Some(watch) => {
                out.byte(1);
                watch.encode(out);
            }
        }
        out.whole(self.found).whole(self.marks.len() as u64);
        for mark in &self.marks {
            out.whole(mark.sequence).whole(mark.recent);
        }
        out.whole(self.stride).whole(self.path.len() as u64);
        for point in &self.path {
            out.whole(point.sequence).floats(&point.coefficients);
        }
        out.float(self.quantile.0).float(self.quantile.1);
    }

    pub(super) fn decode(input: &mut Reader<'_>, labels: bool) -> Result<Self, StateError> {
        let unit = input.floats()?;
        let counted = unit.len() + usize::from(labels);
        let sums = |input: &mut Reader<'_>| (0..counted).map(|_| Sums::decode(input)).collect::<Result<Vec<_>, _>>();
        let all = sums(input)?;
        let blocks = input.length(BLOCKS + 1)?;
        let blocks = (0..blocks).map(|_| sums(input)).collect::<Result<VecDeque<_>, _>>()?;
        let watch = if input.byte()? == 0 { None } else { Some(Watch::decode(input)?) };
        let found = input.whole()?;
        let marks = input.length(MARKS)?;
        let marks = (0..marks).map(|_| Ok(Mark { sequence: input.whole()?, recent: input.whole()? })).collect::<Result<_, StateError>>()?;
        let stride = input.whole()?.max(1);
        let points = input.length(POINTS)?;
        let path = (0..points)
            .map(|_| Ok(Point { sequence: input.whole()?, coefficients: input.floats()? }))
            .collect::<Result<_, StateError>>()?;
        let quantile = (input.float()?, input.float()?);
        Ok(Self { unit, all, blocks, watch, marks, found, path, stride, quantile })
    }
}

/// λ that follows the errors. With z² the a-priori error squared over its variance, smoothed over some ten rows, λ = 1 − z̄²/N with
/// N = [`MEMORY`]: where the model is right z̄² is about 1 and the memory about N rows, and an error that is many times what it should be
/// shortens it at once (T. R. Fortescue, L. S. Kershenbaum & B. E. Ydstie, *Implementation of self-tuning regulators with variable
/// forgetting factors*, Automatica 17, 1981).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Adaptive {
    surprise: f64,
}

/// N.
pub const MEMORY: f64 = 1000.0;
/// Weight of a new row in z̄².
const SMOOTHING: f64 = 0.1;
/// λ at the least.
const LEAST: f64 = 0.8;

impl Adaptive {
    pub(super) fn new() -> Self {
        Self { surprise: 1.0 }
    }

    pub(super) fn of(surprise: f64) -> Self {
        Self { surprise }
    }

    pub(super) fn surprise(self) -> f64 {
        self.surprise
    }

    pub(super) fn factor(self) -> f64 {
        (1.0 - self.surprise / MEMORY).clamp(LEAST, 1.0)
    }

    /// Takes in a row's squared standardised error, averaged over targets.
    pub(super) fn observe(&mut self, squared: f64) {
        if squared.is_finite() {
            self.surprise += SMOOTHING * (squared.min(1e6) - self.surprise);
        }
    }
}

/// The forgetting factor of the next row.
pub(super) fn factor(online: &Online, adaptive: Adaptive) -> f64 {
    if online.adaptive { adaptive.factor() } else { online.forgetting_factor }
}
