//! Held-out rows: which fold a row belongs to, and what a fit is worth on rows it has not seen.
//!
//! [`validate`] asks any estimator: for each fold it hands over a source of the training rows only, and scores what comes back on the rows
//! held out, all folds in one more pass. [`validate_least_squares`] gives the same figures for ordinary and ridge fits from two passes: one
//! adds up the Gram matrix of each group of rows, so that a fold's training rows have the sum over their groups; the other scores. A fold
//! that is ill-conditioned, or lacks rank, is fitted as usual from its rows. Leaving one out needs no folds at all: the error of a row is
//! r/(1 − h) with its leverage h (Allen, *The relationship between variable selection and data augmentation*, 1974).

use faer::linalg::solvers::{DenseSolveCore as _, Llt, Solve as _};
use faer::{Mat, MatRef, Par, Side};

use super::Error;
use super::coordinates::{column, in_parts, part_count};
use super::gram::{self, mirror, symmetric_product};
use super::ordinary::{Fit, fit};
use super::problem::{Block, RowSource, Specification};
use super::whitened::{Chunk, FREE, Whitening};

/// Which rows are held out, and which rows the fit learns from that is asked about them. Rows count in the order of the source.
#[derive(Clone, Copy)]
pub enum Plan<'a> {
    /// Each fold once, after the others.
    KFold {
        /// At least 2.
        folds: u32,
        /// Another seed deals the rows out anew.
        seed: u64,
    },
    /// Each row once, after all others.
    LeaveOneOut,
    /// A part of the rows, drawn at random.
    HoldOut {
        /// In (0, 1).
        fraction: f64,
        /// Another seed draws other rows.
        seed: u64,
    },
    /// Later rows after all earlier ones, the window growing fold by fold.
    Time {
        /// At least 1.
        folds: u32,
        /// The segment of time, in 0..=`folds`, of the row at a place; fold k learns from segments 0..=k and is asked about segment k + 1.
        segment: &'a (dyn Fn(u64) -> u32 + Sync),
    },
}

impl std::fmt::Debug for Plan<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::KFold { folds, seed } => formatter.debug_struct("KFold").field("folds", folds).field("seed", seed).finish(),
            Self::LeaveOneOut => formatter.write_str("LeaveOneOut"),
            Self::HoldOut { fraction, seed } => formatter.debug_struct("HoldOut").field("fraction", fraction).field("seed", seed).finish(),
            Self::Time { folds, .. } => formatter.debug_struct("Time").field("folds", folds).finish_non_exhaustive(),
        }
    }
}

/// Errors of one response on rows that were held out, weighted as the rows are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FoldScore {
    /// Rows of positive weight.
    pub rows: u64,
    /// √(Σwe²/Σw).
    pub rmse: f64,
    /// Σw|e|/Σw.
    pub mae: f64,
    /// 1 − Σwe²/Σw(y − ȳ)², ȳ the mean of the rows held out; NaN where they do not vary.
    pub r2: f64,
}

/// A figure over the folds that have one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Its mean.
    pub mean: f64,
    /// Its standard deviation between folds; NaN for a single one.
    pub std: f64,
}

/// What held-out rows say of one response.
#[derive(Clone, Debug, PartialEq)]
pub struct Validation {
    /// One a fold; none when rows are left out one by one.
    pub folds: Vec<FoldScore>,
    /// All held-out rows together.
    pub pooled: FoldScore,
    /// Over folds; of `pooled` when there are none.
    pub rmse: Spread,
    /// The same.
    pub mae: Spread,
    /// The same.
    pub r2: Spread,
}

/// Rows as they were predicted, by a fit that had not seen them when they were held out.
#[derive(Clone, Copy, Debug)]
pub struct HeldOut<'a> {
    /// The fold that was asked; 0 where there are none.
    pub fold: usize,
    /// Their places among the rows of the source (r).
    pub rows: &'a [u64],
    /// r×q.
    pub predicted: MatRef<'a, f64>,
    /// r×q.
    pub response: MatRef<'a, f64>,
    /// r; each is 1 when absent.
    pub weights: Option<&'a [f64]>,
}

/// Who is told of each row that was held out, once, in no particular order.
pub type Listener<'a> = Option<&'a mut dyn FnMut(&HeldOut<'_>)>;

/// Rows of one fold that are to be told of.
struct Told {
    fold: usize,
    rows: Vec<u64>,
    predicted: Mat<f64>,
    response: Mat<f64>,
    weights: Option<Vec<f64>>,
}

impl Told {
    fn tell(&self, listener: &mut dyn FnMut(&HeldOut<'_>)) {
        listener(&HeldOut {
            fold: self.fold,
            rows: &self.rows,
            predicted: self.predicted.as_ref(),
            response: self.response.as_ref(),
            weights: self.weights.as_deref(),
        });
    }
}

/// Rows are in groups: a fold learns from some and is asked about one.
struct Layout<'a> {
    plan: Plan<'a>,
    /// Rows, when each is a group.
    rows: u64,
}

impl<'a> Layout<'a> {
    fn new(plan: Plan<'a>, rows: u64) -> Result<Self, Error> {
        match plan {
            Plan::KFold { folds: 0 | 1, .. } => Err(Error::Solver("validation needs two folds at the least")),
            Plan::Time { folds: 0, .. } => Err(Error::Solver("validation needs one fold at the least")),
            Plan::Time { folds: u32::MAX, .. } => Err(Error::Solver("there are too many folds")),
            Plan::HoldOut { fraction, .. } if !(fraction > 0.0 && fraction < 1.0) => {
                Err(Error::Solver("the fraction of rows held out has to lie between 0 and 1"))
            }
            Plan::LeaveOneOut if rows >= u64::from(u32::MAX) => Err(Error::Solver("there are too many rows to leave each of them out")),
            _ => Ok(Self { plan, rows }),
        }
    }

    fn folds(&self) -> usize {
        match self.plan {
            Plan::KFold { folds, .. } | Plan::Time { folds, .. } => folds as usize,
            Plan::HoldOut { .. } => 1,
            #[allow(clippy::cast_possible_truncation)] // checked
            Plan::LeaveOneOut => self.rows as usize,
        }
    }

    fn groups(&self) -> usize {
        match self.plan {
            Plan::KFold { .. } | Plan::LeaveOneOut => self.folds(),
            Plan::HoldOut { .. } | Plan::Time { .. } => self.folds() + 1,
        }
    }

    /// Whether a fold learns from a group.
    fn learns(&self, fold: usize, group: usize) -> bool {
        match self.plan {
            Plan::KFold { .. } | Plan::LeaveOneOut => group != fold,
            Plan::HoldOut { .. } | Plan::Time { .. } => group <= fold,
        }
    }

    /// The fold that is asked about a group.
    fn asked(&self, group: usize) -> Option<usize> {
        match self.plan {
            Plan::KFold { .. } | Plan::LeaveOneOut => Some(group),
            Plan::HoldOut { .. } | Plan::Time { .. } => group.checked_sub(1),
        }
    }

    /// Groups of consecutive rows.
    fn groups_of(&self, first: u64, count: usize, out: &mut Vec<usize>) {
        out.clear();
        let rows = first..first + count as u64;
        match self.plan {
            Plan::KFold { folds, seed } => {
                let (mut order, mut known) = (Vec::new(), None);
                out.extend(rows.map(|row| {
                    let (run, place) = (row / u64::from(folds), row % u64::from(folds));
                    if known != Some(run) {
                        deal(run, folds, seed, folds - 1, &mut order);
                        known = Some(run);
                    }
                    #[allow(clippy::cast_possible_truncation)] // below the number of folds
                    let fold = order[place as usize] as usize;
                    fold
                }));
            }
            #[allow(clippy::cast_possible_truncation)] // checked
            Plan::LeaveOneOut => out.extend(rows.map(|row| row as usize)),
            Plan::HoldOut { fraction, seed } => {
                // 2⁶⁴·fraction; a fraction below 1 stays below 2⁶⁴.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let below = (fraction * 18_446_744_073_709_551_616.0) as u64;
                out.extend(rows.map(|row| usize::from(mix(seed ^ mix(row)) < below)));
            }
            Plan::Time { segment, .. } => out.extend(rows.map(|row| segment(row) as usize)),
        }
    }
}

/// The rows of a source that are kept, in blocks of their own.
struct Kept<'a> {
    source: &'a mut dyn RowSource,
    layout: &'a Layout<'a>,
    fold: usize,
}

impl RowSource for Kept<'_> {
    fn predictors(&self) -> usize {
        self.source.predictors()
    }

    fn responses(&self) -> usize {
        self.source.responses()
    }

    fn pass(&mut self, visit: &mut dyn FnMut(&Block<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let (layout, fold) = (self.layout, self.fold);
        let (mut groups, mut kept) = (Vec::new(), Vec::new());
        let mut compact = Compact::default();
        let mut first = 0;
        self.source.pass(&mut |block| {
            layout.groups_of(first, block.rows(), &mut groups);
            first += block.rows() as u64;
            kept.clear();
            kept.extend((0..block.rows()).filter(|row| layout.learns(fold, groups[*row])));
            if kept.len() == block.rows() {
                return visit(block);
            }
            if kept.is_empty() {
                return Ok(());
            }
            compact.fill(block, &kept);
            visit(&compact.block(block, kept.len()))
        })
    }
}

/// Some rows of a block, beside one another.
#[derive(Default)]
struct Compact {
    design: Vec<f64>,
    design_low: Vec<f64>,
    response: Vec<f64>,
    weights: Vec<f64>,
}

impl Compact {
    fn fill(&mut self, block: &Block<'_>, rows: &[usize]) {
        let gather = |matrix: MatRef<'_, f64>, out: &mut Vec<f64>| {
            out.clear();
            for index in 0..matrix.ncols() {
                let values = column(matrix, index);
                out.extend(rows.iter().map(|row| values[*row]));
            }
        };
        gather(block.design, &mut self.design);
        if let Some(low) = block.design_low {
            gather(low, &mut self.design_low);
        }
        gather(block.response, &mut self.response);
        if let Some(weights) = block.weights {
            self.weights.clear();
            self.weights.extend(rows.iter().map(|row| weights[*row]));
        }
    }

    fn block(&self, of: &Block<'_>, rows: usize) -> Block<'_> {
        let predictors = of.design.ncols();
        Block {
            design: MatRef::from_column_major_slice(&self.design, rows, predictors),
            design_low: of.design_low.map(|_| MatRef::from_column_major_slice(&self.design_low, rows, predictors)),
            response: MatRef::from_column_major_slice(&self.response, rows, of.response.ncols()),
            weights: of.weights.map(|_| self.weights.as_slice()),
        }
    }
}

/// Rows whose columns are made anew from the training rows of each fold.
pub trait Remade: RowSource {
    /// Makes its columns as these training rows say; all its rows are passed with them from now on.
    ///
    /// # Errors
    /// The rows cannot be read, or do not say it.
    fn remake(&mut self, training: &Training<'_>) -> Result<(), Error>;
}

/// Which rows a fold learns from.
pub struct Training<'a> {
    layout: &'a Layout<'a>,
    fold: usize,
}

impl std::fmt::Debug for Training<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Training").field("plan", &self.layout.plan).field("fold", &self.fold).finish()
    }
}

impl Training<'_> {
    /// Whether it learns from each of `count` rows, of which the first is the `first`.
    pub fn of(&self, first: u64, count: usize, out: &mut Vec<bool>) {
        let mut groups = Vec::new();
        self.layout.groups_of(first, count, &mut groups);
        out.clear();
        out.extend(groups.into_iter().map(|group| self.layout.learns(self.fold, group)));
    }
}

/// Slopes (p×q) and intercepts (q; or none) that an estimator found.
pub type Estimate = (Mat<f64>, Vec<f64>);

/// Asks an estimator about rows it has not seen: `estimate` is called once a fold with its training rows. One result a response.
///
/// Each fold costs what the estimator's passes cost; one pass over all rows scores them. `listener` hears of each row.
///
/// # Errors
/// The source's, the estimator's, and a plan without folds.
pub fn validate(
    source: &mut dyn RowSource,
    plan: Plan<'_>,
    estimate: &mut dyn FnMut(&mut dyn RowSource) -> Result<Estimate, Error>,
    listener: Listener<'_>,
) -> Result<Vec<Validation>, Error> {
    let rows = if matches!(plan, Plan::LeaveOneOut) { count(source)? } else { 0 };
    let layout = Layout::new(plan, rows)?;
    let mut found = Vec::with_capacity(layout.folds());
    for fold in 0..layout.folds() {
        found.push(estimate(&mut Kept { source: &mut *source, layout: &layout, fold })?);
    }
    score(source, &layout, &found, listener)
}

/// [`validate`] where the columns, too, are made of the training rows: before each fold they are made anew, and the rows that are held out are
/// scored in the columns that their fold made. A fold costs two passes beside those of the estimator.
///
/// # Errors
/// Those of [`validate`] and of [`Remade::remake`].
pub fn validate_remade(
    source: &mut dyn Remade,
    plan: Plan<'_>,
    estimate: &mut dyn FnMut(&mut dyn RowSource) -> Result<Estimate, Error>,
    mut listener: Listener<'_>,
) -> Result<Vec<Validation>, Error> {
    let rows = if matches!(plan, Plan::LeaveOneOut) { count(source)? } else { 0 };
    let layout = Layout::new(plan, rows)?;
    let responses = source.responses();
    let mut all = Vec::with_capacity(layout.folds() * responses);
    for fold in 0..layout.folds() {
        source.remake(&Training { layout: &layout, fold })?;
        let found = estimate(&mut Kept { source: &mut *source, layout: &layout, fold })?;
        all.extend(errors(source, &layout, fold..fold + 1, &[found], &mut listener)?);
    }
    Ok(concluded(&all, &layout, responses))
}

/// Tells of each row of a source what an estimate predicts for it. One pass.
///
/// # Errors
/// The source's.
pub fn predict(source: &mut dyn RowSource, estimate: &Estimate, listener: &mut dyn FnMut(&HeldOut<'_>)) -> Result<(), Error> {
    let (slopes, intercepts) = estimate;
    let mut first = 0;
    let mut rows = Vec::new();
    source.pass(&mut |block| {
        rows.clear();
        rows.extend(first..first + block.rows() as u64);
        first += block.rows() as u64;
        let mut predicted = Mat::from_fn(block.rows(), slopes.ncols(), |_, response| intercepts.get(response).copied().unwrap_or(0.0));
        faer::linalg::matmul::matmul(predicted.as_mut(), faer::Accum::Add, block.design, slopes.as_ref(), 1.0, Par::Seq);
        listener(&HeldOut { fold: 0, rows: &rows, predicted: predicted.as_ref(), response: block.response, weights: block.weights });
        Ok(())
    })
}

fn count(source: &mut dyn RowSource) -> Result<u64, Error> {
    let mut rows = 0;
    source.pass(&mut |block| {
        rows += block.rows() as u64;
        Ok(())
    })?;
    Ok(rows)
}

/// Sums over held-out rows of one response.
#[derive(Clone, Copy, Default)]
pub(crate) struct Errors {
    rows: u64,
    weight: f64,
    squares: f64,
    sizes: f64,
    /// Σw(y − shift) and Σw(y − shift)².
    level: f64,
    spread: f64,
}

impl Errors {
    /// Counts a row, of which `shifted` is the response less something near its mean; a row without weight is none.
    pub(crate) fn learn(&mut self, error: f64, shifted: f64, weight: f64) {
        if weight > 0.0 {
            self.rows += 1;
            self.weight += weight;
            self.squares += weight * error * error;
            self.sizes += weight * error.abs();
            self.level += weight * shifted;
            self.spread += weight * shifted * shifted;
        }
    }

    fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.weight += other.weight;
        self.squares += other.squares;
        self.sizes += other.sizes;
        self.level += other.level;
        self.spread += other.spread;
    }

    /// What they say; NaN where there is nothing to say it by.
    pub(crate) fn score(&self) -> FoldScore {
        let total = self.spread - self.level * self.level / self.weight;
        // Below this nothing but rounding is left of the responses' own spread.
        let varies = total > 1e-14 * self.spread;
        FoldScore {
            rows: self.rows,
            rmse: (self.squares / self.weight).sqrt(),
            mae: self.sizes / self.weight,
            r2: if varies { 1.0 - self.squares / total } else { f64::NAN },
        }
    }
}

/// Scores all folds in one pass.
fn score(
    source: &mut dyn RowSource,
    layout: &Layout<'_>,
    found: &[Estimate],
    mut listener: Listener<'_>,
) -> Result<Vec<Validation>, Error> {
    Ok(concluded(&errors(source, layout, 0..found.len(), found, &mut listener)?, layout, source.responses()))
}

/// The errors of some folds, found in one pass: by fold and response.
fn errors(
    source: &mut dyn RowSource,
    layout: &Layout<'_>,
    asked: std::ops::Range<usize>,
    found: &[Estimate],
    listener: &mut Listener<'_>,
) -> Result<Vec<Errors>, Error> {
    let responses = source.responses();
    let folds = found.len();
    struct Part {
        compact: Compact,
        errors: Vec<Errors>,
        told: Vec<Told>,
    }
    let part = |_| Part { compact: Compact::default(), errors: vec![Errors::default(); folds * responses], told: Vec::new() };
    let mut parts: Vec<Part> = (0..part_count()).map(part).collect();
    let listening = listener.is_some();
    let mut groups = Vec::new();
    let mut first = 0;
    let mut shift: Option<Vec<f64>> = None;
    source.pass(&mut |block| {
        if block.rows() == 0 {
            return Ok(());
        }
        let shift = &*shift.get_or_insert_with(|| (0..responses).map(|response| block.response[(0, response)]).collect());
        layout.groups_of(first, block.rows(), &mut groups);
        let begin = first;
        first += block.rows() as u64;
        let groups = &groups;
        in_parts(block, block.design.ncols() + responses, &mut parts, |part, range| {
            for (group, rows) in by_group(groups, range) {
                let Some(fold) = layout.asked(group).filter(|fold| asked.contains(fold)) else { continue };
                let fold = fold - asked.start;
                part.compact.fill(block, &rows);
                let held_out = part.compact.block(block, rows.len());
                let (slopes, intercepts) = &found[fold];
                let mut predicted = Mat::<f64>::zeros(rows.len(), responses);
                faer::linalg::matmul::matmul(predicted.as_mut(), faer::Accum::Replace, held_out.design, slopes.as_ref(), 1.0, Par::Seq);
                for (response, shift) in shift.iter().enumerate() {
                    let errors = &mut part.errors[fold * responses + response];
                    let intercept = intercepts.get(response).copied().unwrap_or(0.0);
                    let values = column(held_out.response, response);
                    for (row, (value, predicted)) in values.iter().zip(predicted.col_as_slice_mut(response)).enumerate() {
                        let weight = held_out.weights.map_or(1.0, |weights| weights[row]);
                        *predicted += intercept;
                        errors.learn(value - *predicted, value - shift, weight);
                    }
                }
                if listening {
                    part.told.push(Told {
                        fold: asked.start + fold,
                        rows: rows.iter().map(|row| begin + *row as u64).collect(),
                        predicted,
                        response: held_out.response.to_owned(),
                        weights: held_out.weights.map(<[f64]>::to_vec),
                    });
                }
            }
        });
        if let Some(listener) = listener {
            parts.iter_mut().flat_map(|part| part.told.drain(..)).for_each(|told| told.tell(listener));
        }
        Ok(())
    })?;
    let mut errors = vec![Errors::default(); folds * responses];
    for part in &parts {
        errors.iter_mut().zip(&part.errors).for_each(|(own, other)| own.add(other));
    }
    Ok(errors)
}

/// What the errors of all folds say, one result a response.
fn concluded(errors: &[Errors], layout: &Layout<'_>, responses: usize) -> Vec<Validation> {
    // Each row was left out in a fold of its own: the folds say nothing one by one.
    let separate = !matches!(layout.plan, Plan::LeaveOneOut);
    let of = |response: usize| errors.iter().skip(response).step_by(responses.max(1)).copied().collect::<Vec<_>>();
    (0..responses).map(|response| conclude(&of(response), separate)).collect()
}

/// The rows of a range by their group, groups in ascending order.
fn by_group(groups: &[usize], range: std::ops::Range<usize>) -> Vec<(usize, Vec<usize>)> {
    let mut order: Vec<usize> = range.collect();
    order.sort_by_key(|row| groups[*row]);
    order.chunk_by(|one, other| groups[*one] == groups[*other]).map(|rows| (groups[rows[0]], rows.to_vec())).collect()
}

fn conclude(errors: &[Errors], separate: bool) -> Validation {
    let mut all = Errors::default();
    errors.iter().for_each(|errors| all.add(errors));
    let pooled = all.score();
    let folds: Vec<FoldScore> = if separate { errors.iter().map(Errors::score).collect() } else { Vec::new() };
    let spread = |figure: fn(&FoldScore) -> f64| {
        if folds.is_empty() {
            return Spread { mean: figure(&pooled), std: f64::NAN };
        }
        let values: Vec<f64> = folds.iter().map(figure).filter(|value| !value.is_nan()).collect();
        #[allow(clippy::cast_precision_loss)]
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Spread { mean, std: if count > 1.0 { (squares / (count - 1.0)).sqrt() } else { f64::NAN } }
    };
    let (rmse, mae, r2) = (spread(|score| score.rmse), spread(|score| score.mae), spread(|score| score.r2));
    Validation { folds, pooled, rmse, mae, r2 }
}

/// What [`validate`] says of [`fit`] with a specification, to ten digits, in two passes wherever the rows are well-conditioned.
///
/// Rows of leverage 1, when each row is left out, are predicted by a fit of the others.
///
/// # Errors
/// The source's, those of [`fit`], and a plan without folds.
pub fn validate_least_squares(
    source: &mut dyn RowSource,
    plan: Plan<'_>,
    specification: &Specification<'_>,
    listener: Listener<'_>,
) -> Result<Vec<Validation>, Error> {
    if matches!(plan, Plan::LeaveOneOut) {
        return leave_one_out(source, specification, listener);
    }
    let layout = Layout::new(plan, 0)?;
    let mut found = Vec::with_capacity(layout.folds());
    let sums = GroupSums::of(source, &layout, specification.intercept)?;
    for fold in 0..layout.folds() {
        let known = sums.as_ref().and_then(|sums| sums.solve(&layout, fold, specification));
        found.push(match known {
            Some(known) => known,
            None => estimate(&fit(&mut Kept { source: &mut *source, layout: &layout, fold }, specification)?),
        });
    }
    score(source, &layout, &found, listener)
}

fn estimate(fit: &Fit) -> Estimate {
    (fit.information.coefficients().to_owned(), fit.information.intercept().to_vec())
}

/// Cells of the Gram matrices of all groups that are held at the most.
const GRAM_CELLS: usize = 8 << 20;
/// Rows that are sorted by group at a time: enough that each group has a product worth making.
const ROWS_AT_ONCE: usize = 4096;

/// The Gram matrix of (1, X, Y) for each group of rows, about one shift and in one scale.
struct GroupSums {
    shift: Vec<f64>,
    scale: Vec<f64>,
    products: Vec<Mat<f64>>,
    predictors: usize,
    responses: usize,
}

impl GroupSums {
    /// `None` where there are so many groups, or columns, that fits one by one are the better way, or rows are known to more than a float.
    fn of(source: &mut dyn RowSource, layout: &Layout<'_>, intercept: bool) -> Result<Option<Self>, Error> {
        let (predictors, responses) = (source.predictors(), source.responses());
        let width = 1 + predictors + responses;
        let count = layout.groups();
        if count.saturating_mul(part_count()).saturating_mul(width * width) > GRAM_CELLS {
            return Ok(None);
        }
        let mut parts: Vec<(Vec<f64>, Vec<Mat<f64>>)> =
            (0..part_count()).map(|_| (Vec::new(), (0..count).map(|_| Mat::zeros(width, width)).collect())).collect();
        let mut provisional: Option<(Vec<f64>, Vec<f64>)> = None;
        let mut groups = Vec::new();
        let mut first = 0;
        let mut exact = false;
        source.pass(&mut |block| {
            exact |= block.design_low.is_some();
            if block.rows() == 0 || exact {
                return Ok(());
            }
            let (shift, scale) = &*provisional.get_or_insert_with(|| {
                let (shift, scale, _) = gram::provisional(block, intercept);
                (shift, scale)
            });
            layout.groups_of(first, block.rows(), &mut groups);
            first += block.rows() as u64;
            let groups = &groups;
            in_parts(block, width, &mut parts, |(buffer, products), range| {
                let mut begin = range.start;
                while begin < range.end {
                    let end = range.end.min(begin + ROWS_AT_ONCE);
                    for (group, rows) in by_group(groups, begin..end) {
                        let Some(product) = products.get_mut(group) else { continue };
                        gather(buffer, block, &rows, shift, scale);
                        symmetric_product(product.as_mut(), MatRef::from_column_major_slice(buffer, rows.len(), width));
                    }
                    begin = end;
                }
            });
            Ok(())
        })?;
        let (Some((shift, scale)), false) = (provisional, exact) else { return Ok(None) };
        let mut parts = parts.into_iter().map(|(_, products)| products);
        let mut products = parts.next().unwrap_or_default();
        for part in parts {
            products.iter_mut().zip(&part).for_each(|(own, other)| *own += other);
        }
        products.iter_mut().for_each(mirror);
        Ok(Some(Self { shift, scale, products, predictors, responses }))
    }

    /// The estimate of a fold, where its conditioning leaves it ten digits.
    fn solve(&self, layout: &Layout<'_>, fold: usize, specification: &Specification<'_>) -> Option<Estimate> {
        /// Condition of the normal equations up to which they lose six digits at the most.
        const HARMLESS: f64 = 1e6;
        let (predictors, responses) = (self.predictors, self.responses);
        let width = 1 + predictors + responses;
        let mut product = Mat::<f64>::zeros(width, width);
        for (group, own) in self.products.iter().enumerate() {
            if layout.learns(fold, group) {
                product += own;
            }
        }
        let weight = product[(0, 0)];
        if weight.is_nan() || weight <= 0.0 {
            return None;
        }
        let moved: Vec<f64> = (1..width).map(|place| if specification.intercept { product[(0, place)] / weight } else { 0.0 }).collect();
        let about = |i: usize, j: usize| product[(1 + i, 1 + j)] - moved[i] * moved[j] * weight;
        let penalty = |place: usize| specification.penalty * self.scale[place].powi(2);
        let mut size = Vec::with_capacity(predictors);
        for place in 0..predictors {
            let own = about(place, place);
            // A column that hardly varies about its mean in these rows is not known well enough from here.
            if !own.is_finite() || own <= 1e-6 * product[(1 + place, 1 + place)] {
                return None;
            }
            size.push((own + penalty(place)).sqrt().recip());
        }
        let gram = Mat::from_fn(predictors, predictors, |i, j| (about(i, j) + if i == j { penalty(i) } else { 0.0 }) * size[i] * size[j]);
        let right = Mat::from_fn(predictors, responses, |i, j| {
            let prior =
                specification.prior.map_or(0.0, |prior| specification.penalty * self.scale[i] * prior[(i, j)] * self.scale[predictors + j]);
            (about(i, predictors + j) + prior) * size[i]
        });
        let mut slopes = Mat::<f64>::zeros(predictors, responses);
        if predictors > 0 {
            let llt = Llt::new(gram.as_ref(), Side::Lower).ok()?;
            let condition = gram.norm_l2() * llt.inverse().norm_l2();
            if condition.is_nan() || condition > HARMLESS {
                return None;
            }
            slopes = llt.solve(&right);
        }
        for response in 0..responses {
            for place in 0..predictors {
                slopes[(place, response)] *= size[place] * self.scale[place] / self.scale[predictors + response];
            }
        }
        let mean = |place: usize| self.shift[place] + moved[place] / self.scale[place];
        let intercepts = if specification.intercept {
            let below = |response: usize| (0..predictors).map(|place| slopes[(place, response)] * mean(place)).sum::<f64>();
            (0..responses).map(|response| mean(predictors + response) - below(response)).collect()
        } else {
            Vec::new()
        };
        let finite = slopes.col_iter().all(|column| column.iter().all(|value| value.is_finite()))
            && intercepts.iter().all(|value| value.is_finite());
        finite.then_some((slopes, intercepts))
    }
}

/// (1, X, Y)·√w for some rows of a block.
fn gather(buffer: &mut Vec<f64>, block: &Block<'_>, rows: &[usize], shift: &[f64], scale: &[f64]) {
    buffer.clear();
    let root = |row: usize| block.weights.map_or(1.0, |weights| weights[row].sqrt());
    buffer.extend(rows.iter().map(|row| root(*row)));
    let predictors = block.design.ncols();
    for index in 0..shift.len() {
        let values = if index < predictors { column(block.design, index) } else { column(block.response, index - predictors) };
        let (shift, scale) = (shift[index], scale[index]);
        buffer.extend(rows.iter().map(|row| (values[*row] - shift) * scale));
        if block.weights.is_some() {
            let (roots, own) = buffer.split_at_mut((1 + index) * rows.len());
            own.iter_mut().zip(&*roots).for_each(|(cell, root)| *cell *= root);
        }
    }
}

/// Every row by all others, from one fit.
fn leave_one_out(
    source: &mut dyn RowSource,
    specification: &Specification<'_>,
    mut listener: Listener<'_>,
) -> Result<Vec<Validation>, Error> {
    let whole = fit(source, specification)?;
    let whitening = Whitening::of(source, &whole)?;
    let responses = whitening.responses();
    struct Part {
        chunk: Chunk,
        errors: Vec<Errors>,
        /// Rows of leverage 1.
        decisive: Vec<u64>,
        told: Vec<Told>,
    }
    let part = |_| Part { chunk: Chunk::default(), errors: vec![Errors::default(); responses], decisive: Vec::new(), told: Vec::new() };
    let mut parts: Vec<Part> = (0..part_count()).map(part).collect();
    let listening = listener.is_some();
    let mut first = 0_u64;
    let mut shift: Option<Vec<f64>> = None;
    source.pass(&mut |block| {
        if block.rows() == 0 {
            return Ok(());
        }
        let shift = &*shift.get_or_insert_with(|| (0..responses).map(|response| block.response[(0, response)]).collect());
        in_parts(block, whitening.width(), &mut parts, |part, range| {
            let Part { chunk, errors, decisive, told } = part;
            whitening.visit(block, range, whitening.rows_at_once(), chunk, |chunk, range| {
                for (index, row) in range.enumerate() {
                    let weight = block.weights.map_or(1.0, |weights| weights[row]);
                    let rest = 1.0 - chunk.leverage[index];
                    if rest <= FREE {
                        decisive.push(first + row as u64);
                        continue;
                    }
                    for (response, errors) in errors.iter_mut().enumerate() {
                        let value = block.response[(row, response)] - shift[response];
                        errors.learn(chunk.residual(response)[index] / rest, value, weight);
                    }
                    if listening {
                        let response = Mat::from_fn(1, responses, |_, response| block.response[(row, response)]);
                        told.push(Told {
                            fold: 0,
                            rows: vec![first + row as u64],
                            predicted: Mat::from_fn(1, responses, |_, column| response[(0, column)] - chunk.residual(column)[index] / rest),
                            response,
                            weights: Some(vec![weight]),
                        });
                    }
                }
            });
        });
        if let Some(listener) = &mut listener {
            parts.iter_mut().flat_map(|part| part.told.drain(..)).for_each(|told| told.tell(listener));
        }
        first += block.rows() as u64;
        Ok(())
    })?;
    let mut errors = vec![Errors::default(); responses];
    let mut decisive = Vec::new();
    for part in parts {
        errors.iter_mut().zip(&part.errors).for_each(|(own, other)| own.add(other));
        decisive.extend(part.decisive);
    }
    let layout = Layout::new(Plan::LeaveOneOut, first)?;
    let shift = shift.unwrap_or_default();
    for row in decisive {
        #[allow(clippy::cast_possible_truncation)] // checked
        let without = fit(&mut Kept { source: &mut *source, layout: &layout, fold: row as usize }, specification)?;
        let mut begin = 0_u64;
        let mut predicted = vec![0.0; responses];
        source.pass(&mut |block| {
            if let Some(place) = row.checked_sub(begin).and_then(|place| usize::try_from(place).ok()).filter(|place| *place < block.rows())
            {
                let gather = |matrix: MatRef<'_, f64>| (0..matrix.ncols()).map(|index| matrix[(place, index)]).collect::<Vec<f64>>();
                let (high, low) = (gather(block.design), block.design_low.map(gather));
                without.information.predict(super::problem::Row { high: &high, low: low.as_deref() }, &mut predicted);
                let weight = block.weights.map_or(1.0, |weights| weights[place]);
                for (response, errors) in errors.iter_mut().enumerate() {
                    let value = block.response[(place, response)];
                    errors.learn(value - predicted[response], value - shift[response], weight);
                }
                if let Some(listener) = &mut listener {
                    listener(&HeldOut {
                        fold: 0,
                        rows: &[row],
                        predicted: MatRef::from_row_major_slice(&predicted, 1, responses),
                        response: block.response.subrows(place, 1),
                        weights: Some(&[weight]),
                    });
                }
            }
            begin += block.rows() as u64;
            Ok(())
        })?;
    }
    Ok(errors.iter().map(|errors| conclude(std::slice::from_ref(errors), false)).collect())
}

/// The fold, in 0..`folds`, of a row by its place in the data: each run of `folds` consecutive rows is dealt out to all folds in an order
/// of its own, so that folds are balanced, need no memory, and are the same in every pass.
#[must_use]
pub fn fold_of(row: u64, folds: u32, seed: u64) -> u32 {
    let folds = folds.max(1);
    let (run, place) = (row / u64::from(folds), row % u64::from(folds));
    let mut order = Vec::new();
    #[allow(clippy::cast_possible_truncation)] // below the number of folds
    let place = place as u32;
    deal(run, folds, seed, place, &mut order);
    order[place as usize]
}

/// A random permutation of one run, right up to a place: Fisher and Yates.
fn deal(run: u64, folds: u32, seed: u64, up_to: u32, order: &mut Vec<u32>) {
    order.clear();
    order.extend(0..folds);
    let mut state = mix(seed ^ mix(run));
    for index in 0..=u64::from(up_to) {
        state = mix(state);
        #[allow(clippy::cast_possible_truncation)] // below the number of folds
        let (index, other) = (index as usize, (index + state % (u64::from(folds) - index)) as usize);
        order.swap(index, other);
    }
}

/// The finaliser of SplitMix64 (Steele, Lea & Flood, *Fast splittable pseudorandom number generators*, 2014).
pub(super) fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::fold_of;

    #[test]
    fn folds_are_balanced_and_mixed() {
        let mut counts = [0; 5];
        let mut moved = 0;
        for row in 0..1000 {
            let fold = fold_of(row, 5, 1);
            counts[fold as usize] += 1;
            moved += u32::from(u64::from(fold) != row % 5);
        }
        assert_eq!(counts, [200; 5]);
        assert!(moved > 700);
        assert_ne!((0..50).map(|row| fold_of(row, 5, 1)).collect::<Vec<_>>(), (0..50).map(|row| fold_of(row, 5, 2)).collect::<Vec<_>>());
    }
}
