//! What the rows of a finished fit say about it: leverages, residuals, the influence of each row, and tests of what least squares
//! supposes. One pass; of n-sized things only the residuals themselves are kept, for quantiles and moments.
//!
//! With r = √w(y − ŷ), h the leverage, s² = RSS/ν, ν the degrees of freedom and m the coefficients:
//!
//! | figure of a row | formula |
//! |---|---|
//! | `standardised` (internally studentised) | r/(s√(1 − h)) |
//! | `studentised` (externally) | r/(s₍ᵢ₎√(1 − h)), s₍ᵢ₎² = (RSS − r²/(1 − h))/(ν − 1) |
//! | `cooks_distance` | standardised²·h/(1 − h)/m |
//! | `dffits` | studentised·√(h/(1 − h)) |
//! | DFBETAS | (β̂ − β̂₍ᵢ₎)ⱼ/(s₍ᵢ₎√((XᵀX)⁻¹)ⱼⱼ) |
//!
//! (Belsley, Kuh & Welsch, *Regression diagnostics*, 1980; Cook & Weisberg, *Residuals and influence in regression*, 1982.) They are
//! those of the fit without the row, without any refit; under a ridge penalty the leverages are the ridge fit's, and s₍ᵢ₎ is approximate.
//!
//! A robust fit is not linear in its response, so that there is no such short way to the fit without a row. What it says of its rows is
//! w(r/σ), the weight that it left each; r/σ, which may be as large as it likes where the weight is 0; and the leverage in the weighted
//! least squares that it ended with.
//!
//! Tests: Durbin & Watson (1950) for correlation between neighbours, Jarque & Bera (1980) and D'Agostino & Pearson (1973) for normality,
//! Breusch & Pagan (1979), in Koenker's form (1981), for a variance that depends on the predictors. Not here: variance inflation, which
//! is a figure of the fit.

use faer::{Mat, MatRef, Side};

use super::Error;
use super::coordinates::{in_parts, part_count};
use super::gram::{mirror, symmetric_product};
use super::inference::chi_squared_p;
use super::ordinary::Fit;
use super::problem::{Block, RowSource};
use super::robust::RobustFit;
use super::whitened::{Chunk, FREE, Whitening};

/// What is asked of the rows beside the figures of the whole.
#[derive(Clone, Copy, Debug)]
pub struct Questions<'a> {
    /// How many rows of the largest leverage, Cook's distance and studentised residual are named.
    pub outstanding: usize,
    /// Levels, in [0, 1], of the quantiles of the residuals.
    pub quantiles: &'a [f64],
    /// Rows, by their place in the source, whose effect on each coefficient is wanted.
    pub effects_of: &'a [u64],
}

impl Default for Questions<'_> {
    fn default() -> Self {
        Self { outstanding: 10, quantiles: &[0.0, 0.25, 0.5, 0.75, 1.0], effects_of: &[] }
    }
}

/// Some consecutive rows. A figure that a row has not (its leverage is 1, or nothing is left of the residuals) is NaN.
#[derive(Clone, Debug, Default)]
pub struct RowDiagnostics {
    /// The place of the first of them in the source.
    pub first: u64,
    /// h, one a row; 0 for a row without weight.
    pub leverage: Vec<f64>,
    /// What a robust fit left of the row's own weight, in [0, 1]; empty for other fits.
    pub weight: Vec<f64>,
    /// One a response.
    pub responses: Vec<RowFigures>,
}

/// Figures of rows for one response; each list has one number a row.
#[derive(Clone, Debug, Default)]
pub struct RowFigures {
    /// y − ŷ.
    pub residual: Vec<f64>,
    /// Internally studentised residual; of a robust fit, r/σ, which is not finite where σ is 0.
    pub standardised: Vec<f64>,
    /// Externally studentised residual: Student's t with ν − 1 degrees of freedom.
    pub studentised: Vec<f64>,
    /// Cook's distance.
    pub cooks_distance: Vec<f64>,
    /// DFFITS.
    pub dffits: Vec<f64>,
}

/// A row and a figure of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outstanding {
    /// Its place in the source.
    pub row: u64,
    /// The figure.
    pub value: f64,
}

/// A test: large values of the statistic speak against what is supposed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Test {
    /// Its value.
    pub statistic: f64,
    /// The probability of one as large if what is supposed is true.
    pub p: f64,
}

/// How the coefficients move when one row is put back.
#[derive(Clone, Debug)]
pub struct Effects {
    /// The row's place in the source.
    pub row: u64,
    /// DFBETAS, m×q, the intercept first.
    pub dfbetas: Mat<f64>,
}

impl Effects {
    /// DFBETAS of one response, the intercept first.
    pub fn of(&self, response: usize) -> impl Iterator<Item = f64> {
        self.dfbetas.col(response).iter().copied()
    }
}

/// What the rows say about a fit.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    /// One a response.
    pub responses: Vec<ResponseDiagnostics>,
    /// Rows of the largest leverage, largest first.
    pub leverages: Vec<Outstanding>,
    /// Rows of leverage 1, through which the fit passes: nothing can be said of the fit without them.
    pub decisive: u64,
    /// Of the rows asked for, in the order of the source; none of a robust fit.
    pub effects: Vec<Effects>,
    /// Rows of the smallest weight in a robust fit, smallest first: those of the largest |r|. None for other fits.
    pub weights: Vec<Outstanding>,
}

/// What the rows say about the fit of one response. Residuals are √w(y − ŷ) throughout; rows without weight take no part.
#[derive(Clone, Debug)]
pub struct ResponseDiagnostics {
    /// Σ(r/(1 − h))²: the squared errors of predicting each row by all others (rows of leverage 1 aside).
    pub press: f64,
    /// 1 − PRESS/TSS.
    pub predicted_r2: f64,
    /// Σ(rᵢ − rᵢ₋₁)²/Σr²: 2 without correlation of neighbours, 0 with all, 4 with alternation.
    pub durbin_watson: f64,
    /// Third moment of the residuals over that of their spread.
    pub skewness: f64,
    /// Fourth, 3 for a normal distribution.
    pub kurtosis: f64,
    /// Normality, by skewness and kurtosis.
    pub jarque_bera: Test,
    /// The same, closer to its distribution where rows are few; NaN below eight rows.
    pub omnibus: Test,
    /// Whether the variance depends on the predictors.
    pub breusch_pagan: Test,
    /// Quantiles of the residuals at the levels asked for, interpolated linearly.
    pub quantiles: Vec<f64>,
    /// Rows of the largest Cook's distance, largest first.
    pub cooks_distances: Vec<Outstanding>,
    /// Rows of the largest |studentised residual|, largest first; values have their sign.
    pub studentised: Vec<Outstanding>,
}

/// Visits the rows of which `fit` was made once more (twice where the rank is deficient). `visit` receives every row's figures, in order.
///
/// # Errors
/// The source's and the visitor's.
pub fn diagnose(
    source: &mut dyn RowSource,
    fit: &Fit,
    questions: &Questions<'_>,
    visit: &mut dyn FnMut(&RowDiagnostics) -> Result<(), Error>,
) -> Result<Diagnostics, Error> {
    let whitening = Whitening::of(source, fit)?;
    let mut asked = questions.effects_of.to_vec();
    asked.sort_unstable();
    asked.dedup();
    let study = Study::new(&whitening, fit, asked);
    let responses = whitening.responses();
    let mut parts: Vec<Part> = (0..part_count()).map(|_| Part::new(&study)).collect();
    let mut kept: Vec<Vec<f64>> = vec![Vec::new(); responses];
    let mut best = Outstandings::new(responses, questions.outstanding);
    let mut rows = RowDiagnostics { responses: vec![RowFigures::default(); responses], ..RowDiagnostics::default() };
    let mut first = 0_u64;
    source.pass(&mut |block| {
        parts.iter_mut().for_each(|part| part.rows.clear());
        in_parts(block, whitening.width(), &mut parts, |part, range| {
            let Part { chunk, scratch, rows, sums, effects } = part;
            whitening.visit(block, range, whitening.rows_at_once(), chunk, |chunk, range| {
                study.judge(chunk, first + range.start as u64, scratch, rows, sums, effects);
            });
        });
        rows.clear();
        rows.first = first;
        for part in &parts {
            rows.append(&part.rows);
        }
        for (kept, figures) in kept.iter_mut().zip(&rows.responses) {
            keep(block, &figures.residual, kept);
        }
        best.look(&rows, |row| takes_part(block, row));
        first += block.rows() as u64;
        visit(&rows)
    })?;
    let mut parts = parts.into_iter().map(|part| (part.sums, part.effects));
    let (mut sums, mut effects) = parts.next().unwrap_or_else(|| (Sums::new(&study), Vec::new()));
    for (part, others) in parts {
        sums.add(&part);
        effects.extend(others);
    }
    effects.sort_by_key(|effect| effect.row);
    let found = kept
        .into_iter()
        .enumerate()
        .map(|(response, kept)| {
            let total = fit.statistics[response].total_sum_of_squares;
            let press = sums.press[response];
            let moments = Moments::of(&kept);
            ResponseDiagnostics {
                press,
                predicted_r2: if total > 0.0 { 1.0 - press / total } else { f64::NAN },
                durbin_watson: durbin_watson(&kept),
                skewness: moments.skewness,
                kurtosis: moments.kurtosis,
                jarque_bera: moments.jarque_bera(),
                omnibus: moments.omnibus(),
                breusch_pagan: study.breusch_pagan(&sums, response),
                quantiles: quantiles(kept, questions.quantiles),
                cooks_distances: std::mem::take(&mut best.cooks_distances[response].rows),
                studentised: std::mem::take(&mut best.studentised[response].rows),
            }
        })
        .collect();
    Ok(Diagnostics { responses: found, leverages: best.leverages.rows, decisive: sums.decisive, effects, weights: Vec::new() })
}

/// Visits the rows of which a robust fit was made once more (twice where the rank is deficient). `visit` receives every row's figures, in
/// order. Figures that are about the fit without a row, and the test of Breusch and Pagan, are NaN.
///
/// # Errors
/// The source's and the visitor's.
pub fn diagnose_robust(
    source: &mut dyn RowSource,
    robust: &RobustFit,
    questions: &Questions<'_>,
    visit: &mut dyn FnMut(&RowDiagnostics) -> Result<(), Error>,
) -> Result<Diagnostics, Error> {
    let whitening = Whitening::of(&mut robust.reweighted(source), &robust.fit)?;
    let mut rows = RowDiagnostics { responses: vec![RowFigures::default()], ..RowDiagnostics::default() };
    let (mut chunk, mut kept, mut decisive) = (Chunk::default(), Vec::new(), 0);
    let (mut leverages, mut wildest) = (Top::new(questions.outstanding), Top::new(questions.outstanding));
    robust.pass(source, |block, factors, weights| {
        rows.first += rows.leverage.len() as u64;
        rows.clear();
        let figures = &mut rows.responses[0];
        let reweighted = Block { weights: Some(weights), ..*block };
        whitening.visit(&reweighted, 0..block.rows(), whitening.rows_at_once(), &mut chunk, |chunk, _| {
            rows.leverage.extend_from_slice(&chunk.leverage);
            figures.residual.extend_from_slice(chunk.residual(0));
        });
        rows.weight.extend_from_slice(factors);
        figures.standardised.extend(figures.residual.iter().map(|residual| residual / robust.scale));
        for unknown in [&mut figures.studentised, &mut figures.cooks_distance, &mut figures.dffits] {
            unknown.resize(block.rows(), f64::NAN);
        }
        decisive += rows.leverage.iter().filter(|leverage| 1.0 - **leverage <= FREE).count() as u64;
        keep(block, &figures.residual, &mut kept);
        for index in (0..block.rows()).filter(|index| takes_part(block, *index)) {
            let row = rows.first + index as u64;
            leverages.offer(row, rows.leverage[index]);
            // Not by r/σ: σ may be 0.
            wildest.offer(row, figures.residual[index]);
        }
        visit(&rows)
    })?;
    #[allow(clippy::cast_possible_truncation)] // a row of which the weight is in memory
    let weights = wildest.rows.iter().map(|found| Outstanding { row: found.row, value: robust.weights[found.row as usize] }).collect();
    let moments = Moments::of(&kept);
    let unknown = Test { statistic: f64::NAN, p: f64::NAN };
    let response = ResponseDiagnostics {
        press: f64::NAN,
        predicted_r2: f64::NAN,
        durbin_watson: durbin_watson(&kept),
        skewness: moments.skewness,
        kurtosis: moments.kurtosis,
        jarque_bera: moments.jarque_bera(),
        omnibus: moments.omnibus(),
        breusch_pagan: unknown,
        quantiles: quantiles(kept, questions.quantiles),
        cooks_distances: Vec::new(),
        studentised: Vec::new(),
    };
    Ok(Diagnostics { responses: vec![response], leverages: leverages.rows, decisive, effects: Vec::new(), weights })
}

/// Whether a row of a block has a weight of its own.
fn takes_part(block: &Block<'_>, row: usize) -> bool {
    block.weights.is_none_or(|weights| weights[row] > 0.0)
}

/// Appends √w·r of the rows that have a weight.
fn keep(block: &Block<'_>, residual: &[f64], kept: &mut Vec<f64>) {
    match block.weights {
        None => kept.extend_from_slice(residual),
        Some(weights) => {
            let roots = residual.iter().zip(weights).filter(|(_, weight)| **weight > 0.0);
            kept.extend(roots.map(|(residual, weight)| residual * weight.sqrt()));
        }
    }
}

/// What is known before the pass.
struct Study<'a> {
    whitening: &'a Whitening<'a>,
    observations: f64,
    degrees: f64,
    coefficients: f64,
    /// RSS, q.
    residual: Vec<f64>,
    /// √ of the diagonal of (XᵀX)⁻¹, m.
    unscaled_errors: Vec<f64>,
    /// Rows whose effects are wanted, in order.
    asked: Vec<u64>,
    /// Whether the whitened rows are orthonormal columns that span the ones: the auxiliary regression then needs no Gram matrix.
    orthonormal: bool,
}

/// One thread's share.
struct Part {
    chunk: Chunk,
    scratch: Vec<f64>,
    rows: RowDiagnostics,
    sums: Sums,
    effects: Vec<Effects>,
}

/// Sums over rows.
struct Sums {
    press: Vec<f64>,
    decisive: u64,
    /// Gram matrix of the auxiliary regressors; empty where they are orthonormal.
    gram: Mat<f64>,
    /// Auxiliary regressors against r² − RSS/n, a×q.
    cross: Mat<f64>,
    /// Σ(r² − RSS/n)², q.
    squares: Vec<f64>,
    /// Σ(r² − RSS/n), q: nothing but rounding.
    levels: Vec<f64>,
}

impl Part {
    fn new(study: &Study<'_>) -> Self {
        let responses = vec![RowFigures::default(); study.residual.len()];
        let rows = RowDiagnostics { responses, ..RowDiagnostics::default() };
        Self { chunk: Chunk::default(), scratch: Vec::new(), rows, sums: Sums::new(study), effects: Vec::new() }
    }
}

impl Sums {
    fn new(study: &Study<'_>) -> Self {
        let (responses, size) = (study.residual.len(), study.regressors());
        Self {
            press: vec![0.0; responses],
            decisive: 0,
            gram: if study.orthonormal { Mat::new() } else { Mat::zeros(size, size) },
            cross: Mat::zeros(size, responses),
            squares: vec![0.0; responses],
            levels: vec![0.0; responses],
        }
    }

    fn add(&mut self, other: &Self) {
        self.decisive += other.decisive;
        self.gram += &other.gram;
        self.cross += &other.cross;
        let own = self.press.iter_mut().chain(&mut self.squares).chain(&mut self.levels);
        own.zip(other.press.iter().chain(&other.squares).chain(&other.levels)).for_each(|(own, other)| *own += other);
    }
}

impl RowDiagnostics {
    fn clear(&mut self) {
        self.leverage.clear();
        self.weight.clear();
        for figures in &mut self.responses {
            for list in figures.lists_mut() {
                list.clear();
            }
        }
    }

    /// Appends some of its rows to another, whose `first` becomes that of the first row appended.
    pub fn copy_rows(&self, rows: std::ops::Range<usize>, to: &mut Self) {
        if to.leverage.is_empty() {
            to.first = self.first + rows.start as u64;
            to.responses.resize_with(self.responses.len(), RowFigures::default);
        }
        to.leverage.extend_from_slice(&self.leverage[rows.clone()]);
        to.weight.extend_from_slice(self.weight.get(rows.clone()).unwrap_or_default());
        for (to, own) in to.responses.iter_mut().zip(&self.responses) {
            for (to, own) in to.lists_mut().into_iter().zip(own.lists()) {
                to.extend_from_slice(&own[rows.clone()]);
            }
        }
    }

    fn append(&mut self, other: &Self) {
        self.leverage.extend_from_slice(&other.leverage);
        for (own, other) in self.responses.iter_mut().zip(&other.responses) {
            for (own, other) in own.lists_mut().into_iter().zip(other.lists()) {
                own.extend_from_slice(other);
            }
        }
    }
}

impl RowFigures {
    fn lists_mut(&mut self) -> [&mut Vec<f64>; 5] {
        [&mut self.residual, &mut self.standardised, &mut self.studentised, &mut self.cooks_distance, &mut self.dffits]
    }

    fn lists(&self) -> [&Vec<f64>; 5] {
        [&self.residual, &self.standardised, &self.studentised, &self.cooks_distance, &self.dffits]
    }
}

impl<'a> Study<'a> {
    fn new(whitening: &'a Whitening<'a>, fit: &Fit, asked: Vec<u64>) -> Self {
        let raw = whitening.raw();
        #[allow(clippy::cast_precision_loss)]
        let (observations, coefficients, rank) = (fit.observations as f64, whitening.rank() as f64, fit.rank as f64);
        let weighted = fit.log_weight != 0.0 || fit.weight != observations;
        Self {
            whitening,
            observations,
            degrees: fit.degrees_of_freedom,
            coefficients,
            residual: fit.statistics.iter().map(|figures| figures.residual_sum_of_squares).collect(),
            unscaled_errors: (0..raw.nrows()).map(|row| raw.row(row).norm_l2()).collect(),
            asked,
            orthonormal: whitening.intercept() && !weighted && fit.effective_parameters == rank,
        }
    }

    /// Columns of the auxiliary regression.
    fn regressors(&self) -> usize {
        self.whitening.rank() + usize::from(!self.orthonormal)
    }

    /// Adds the rows of a chunk, the first of which has the place `first`.
    fn judge(
        &self,
        chunk: &Chunk,
        first: u64,
        scratch: &mut Vec<f64>,
        out: &mut RowDiagnostics,
        sums: &mut Sums,
        effects: &mut Vec<Effects>,
    ) {
        let rows = chunk.rows();
        out.leverage.extend_from_slice(&chunk.leverage);
        sums.decisive += chunk.leverage.iter().filter(|leverage| 1.0 - **leverage <= FREE).count() as u64;
        let size = self.regressors();
        let responses = self.residual.len();
        // Columns: the regressors (where they are not W itself), then r² − RSS/n for each response.
        let own = if self.orthonormal { 0 } else { size };
        scratch.resize(rows * (own + responses), 0.0);
        let (regressors, excess) = scratch.split_at_mut(rows * own);
        for (response, out) in out.responses.iter_mut().enumerate() {
            let excess = &mut excess[response * rows..(response + 1) * rows];
            self.figures(chunk, response, out, excess, sums);
        }
        if !self.orthonormal {
            let level = 1.0 / self.observations.sqrt();
            for (place, out) in regressors.chunks_exact_mut(rows).enumerate() {
                for (row, out) in out.iter_mut().enumerate() {
                    let root = chunk.roots[row];
                    *out = match place {
                        _ if root <= 0.0 => 0.0,
                        0 => level,
                        _ => chunk.white_column(place - 1)[row] / root,
                    };
                }
            }
            symmetric_product(sums.gram.as_mut(), MatRef::from_column_major_slice(regressors, rows, size));
        }
        let excess = MatRef::from_column_major_slice(excess, rows, responses);
        let against = if self.orthonormal { chunk.white() } else { MatRef::from_column_major_slice(regressors, rows, size) };
        faer::linalg::matmul::matmul(sums.cross.as_mut(), faer::Accum::Add, against.transpose(), excess, 1.0, faer::Par::Seq);
        let begin = self.asked.partition_point(|row| *row < first);
        let end = self.asked.partition_point(|row| *row < first + rows as u64);
        for row in &self.asked[begin..end] {
            #[allow(clippy::cast_possible_truncation)] // below the rows of a chunk
            effects.push(self.effects(chunk, (row - first) as usize, *row));
        }
    }

    fn figures(&self, chunk: &Chunk, response: usize, out: &mut RowFigures, excess: &mut [f64], sums: &mut Sums) {
        let total = self.residual[response];
        let (variance, mean) = (total / self.degrees, total / self.observations);
        let residual = chunk.residual(response);
        out.residual.extend_from_slice(residual);
        for (row, excess) in excess.iter_mut().enumerate() {
            let (root, leverage) = (chunk.roots[row], chunk.leverage[row]);
            let own = if root > 0.0 { residual[row] * root } else { 0.0 };
            let rest = if 1.0 - leverage > FREE { 1.0 - leverage } else { f64::NAN };
            let standardised = own / (variance * rest).sqrt();
            let studentised = own / (self.variance_without(total, own, rest) * rest).sqrt();
            out.standardised.push(standardised);
            out.studentised.push(studentised);
            out.cooks_distance.push(standardised * standardised * leverage / rest / self.coefficients);
            out.dffits.push(studentised * (leverage / rest).sqrt());
            if rest > 0.0 {
                sums.press[response] += (own / rest).powi(2);
            }
            *excess = if root > 0.0 { own * own - mean } else { 0.0 };
            sums.squares[response] += *excess * *excess;
            sums.levels[response] += *excess;
        }
    }

    /// s₍ᵢ₎²; NaN where no degrees of freedom are left without the row.
    fn variance_without(&self, total: f64, own: f64, rest: f64) -> f64 {
        let degrees = self.degrees - 1.0;
        if degrees > 0.0 { (total - own * own / rest).max(0.0) / degrees } else { f64::NAN }
    }

    fn effects(&self, chunk: &Chunk, row: usize, place: u64) -> Effects {
        let raw = self.whitening.raw();
        let white: Vec<f64> = (0..self.whitening.rank()).map(|column| chunk.white_column(column)[row]).collect();
        let direction = raw * faer::ColRef::from_slice(&white);
        let rest = if 1.0 - chunk.leverage[row] > FREE { 1.0 - chunk.leverage[row] } else { f64::NAN };
        let dfbetas = Mat::from_fn(raw.nrows(), self.residual.len(), |coefficient, response| {
            let own = if chunk.roots[row] > 0.0 { chunk.residual(response)[row] * chunk.roots[row] } else { 0.0 };
            let deviation = self.variance_without(self.residual[response], own, rest).sqrt();
            direction[coefficient] * own / rest / (deviation * self.unscaled_errors[coefficient])
        });
        Effects { row: place, dfbetas }
    }

    /// n·R² of the regression of r² on the predictors, χ² with as many degrees of freedom as there are independent predictors.
    fn breusch_pagan(&self, sums: &Sums, response: usize) -> Test {
        let cross = sums.cross.col_as_slice(response);
        let level = sums.levels[response].powi(2) / self.observations;
        let total = sums.squares[response] - level;
        let (explained, rank) = if self.orthonormal {
            (cross.iter().map(|value| value * value).sum::<f64>(), cross.len())
        } else {
            let mut gram = sums.gram.clone();
            mirror(&mut gram);
            // Columns of one length, so that a dependency shows in the eigenvalues.
            let scale: Vec<f64> =
                (0..gram.nrows()).map(|place| gram[(place, place)]).map(|own| if own > 0.0 { own.sqrt().recip() } else { 0.0 }).collect();
            let gram = Mat::from_fn(gram.nrows(), gram.nrows(), |i, j| gram[(i, j)] * scale[i] * scale[j]);
            let Ok(eigen) = gram.self_adjoint_eigen(Side::Lower) else { return Test { statistic: f64::NAN, p: f64::NAN } };
            let (mut explained, mut rank) = (0.0, 0);
            for place in 0..gram.nrows() {
                let value = eigen.S().column_vector()[place];
                if value > 1e-11 {
                    let along: f64 = (0..gram.nrows()).map(|row| eigen.U()[(row, place)] * cross[row] * scale[row]).sum();
                    explained += along * along / value;
                    rank += 1;
                }
            }
            (explained, rank)
        };
        let statistic = self.observations * (explained - level).max(0.0) / total;
        #[allow(clippy::cast_precision_loss)]
        let p = if rank > 1 { chi_squared_p(statistic, (rank - 1) as f64) } else { f64::NAN };
        Test { statistic: if rank > 1 { statistic } else { f64::NAN }, p }
    }
}

/// Largest first; at most so many.
struct Top {
    count: usize,
    rows: Vec<Outstanding>,
}

impl Top {
    fn new(count: usize) -> Self {
        Self { count, rows: Vec::new() }
    }

    /// Takes a value in, by its size; the earlier row stands before the later one of the same size.
    fn offer(&mut self, row: u64, value: f64) {
        let size = value.abs();
        if size.is_nan()
            || self.count == 0
            || (self.rows.len() == self.count && self.rows.last().is_some_and(|last| last.value.abs() >= size))
        {
            return;
        }
        self.rows.truncate(self.count - 1);
        let place = self.rows.partition_point(|other| other.value.abs() >= size);
        self.rows.insert(place, Outstanding { row, value });
    }
}

struct Outstandings {
    leverages: Top,
    cooks_distances: Vec<Top>,
    studentised: Vec<Top>,
}

impl Outstandings {
    fn new(responses: usize, count: usize) -> Self {
        let all = || (0..responses).map(|_| Top::new(count)).collect();
        Self { leverages: Top::new(count), cooks_distances: all(), studentised: all() }
    }

    fn look(&mut self, rows: &RowDiagnostics, takes_part: impl Fn(usize) -> bool) {
        for (index, leverage) in rows.leverage.iter().enumerate().filter(|(index, _)| takes_part(*index)) {
            let row = rows.first + index as u64;
            self.leverages.offer(row, *leverage);
            for (response, figures) in rows.responses.iter().enumerate() {
                self.cooks_distances[response].offer(row, figures.cooks_distance[index]);
                self.studentised[response].offer(row, figures.studentised[index]);
            }
        }
    }
}

fn durbin_watson(residuals: &[f64]) -> f64 {
    let total: f64 = residuals.iter().map(|residual| residual * residual).sum();
    let moved: f64 = residuals.windows(2).map(|pair| (pair[1] - pair[0]).powi(2)).sum();
    moved / total
}

/// Linear interpolation between order statistics (Hyndman & Fan, *Sample quantiles in statistical packages*, 1996, definition 7).
fn quantiles(mut values: Vec<f64>, levels: &[f64]) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return vec![f64::NAN; levels.len()] };
    levels
        .iter()
        .map(|level| {
            if !(0.0..=1.0).contains(level) {
                return f64::NAN;
            }
            #[allow(clippy::cast_precision_loss)]
            let place = level * last as f64;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within the list
            let below = (place.floor() as usize).min(last);
            let above = (below + 1).min(last);
            values[below] + (values[above] - values[below]) * place.fract()
        })
        .collect()
}

/// Moments of the residuals about their mean.
struct Moments {
    count: f64,
    skewness: f64,
    kurtosis: f64,
}

impl Moments {
    fn of(residuals: &[f64]) -> Self {
        #[allow(clippy::cast_precision_loss)]
        let count = residuals.len() as f64;
        let mean = residuals.iter().sum::<f64>() / count;
        // Scaled, so that no fourth power leaves the range of floats.
        let size = residuals.iter().map(|residual| (residual - mean).abs()).fold(0.0, f64::max);
        let (mut second, mut third, mut fourth) = (0.0, 0.0, 0.0);
        for residual in residuals {
            let own = (residual - mean) / size;
            let square = own * own;
            second += square;
            third += square * own;
            fourth += square * square;
        }
        let variance = second / count;
        Self { count, skewness: third / count / variance.powf(1.5), kurtosis: fourth / count / (variance * variance) }
    }

    fn jarque_bera(&self) -> Test {
        let statistic = self.count / 6.0 * (self.skewness.powi(2) + 0.25 * (self.kurtosis - 3.0).powi(2));
        Test { statistic, p: (-0.5 * statistic).exp() }
    }

    /// Each moment taken to a normal variable, squared and added (D'Agostino, 1970, for the third; Anscombe & Glynn, 1983, for the fourth).
    fn omnibus(&self) -> Test {
        let n = self.count;
        if n < 8.0 {
            return Test { statistic: f64::NAN, p: f64::NAN };
        }
        let y = self.skewness * ((n + 1.0) * (n + 3.0) / (6.0 * (n - 2.0))).sqrt();
        let shape = 3.0 * (n * n + 27.0 * n - 70.0) * (n + 1.0) * (n + 3.0) / ((n - 2.0) * (n + 5.0) * (n + 7.0) * (n + 9.0));
        let square = (2.0 * (shape - 1.0)).sqrt() - 1.0;
        let third = (y * (0.5 * (square - 1.0)).sqrt()).asinh() / (0.5 * square.ln()).sqrt();
        let expected = 3.0 * (n - 1.0) / (n + 1.0);
        let variance = 24.0 * n * (n - 2.0) * (n - 3.0) / ((n + 1.0).powi(2) * (n + 3.0) * (n + 5.0));
        let x = (self.kurtosis - expected) / variance.sqrt();
        let lean =
            6.0 * (n * n - 5.0 * n + 2.0) / ((n + 7.0) * (n + 9.0)) * (6.0 * (n + 3.0) * (n + 5.0) / (n * (n - 2.0) * (n - 3.0))).sqrt();
        let degrees = 6.0 + 8.0 / lean * (2.0 / lean + (1.0 + 4.0 / (lean * lean)).sqrt());
        let spread = 2.0 / (9.0 * degrees);
        let denominator = 1.0 + x * (2.0 / (degrees - 4.0)).sqrt();
        let fourth = (1.0 - spread - denominator.signum() * ((1.0 - 2.0 / degrees) / denominator.abs()).cbrt()) / spread.sqrt();
        let statistic = third * third + fourth * fourth;
        Test { statistic, p: (-0.5 * statistic).exp() }
    }
}
