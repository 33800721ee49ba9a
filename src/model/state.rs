//! The state of a version as it learns: the square-root information, the response's own moments, the rows of a window, what its predictions
//! were worth, and how many updates it has seen.
//!
//! The moments follow West's weighted recurrence (D. H. D. West, *Updating mean and variance estimates*, CACM 22, 1979), with everything
//! learnt so far multiplied by the forgetting factor first; they give the total sum of squares of R² and F.

use super::bytes::{Reader, Writer};
use super::history::History;
use super::monitor::{self, Adaptive, Mark, Monitor};
use super::specification::{DriftAction, Online};
use super::version::{FitRecord, TargetRecord, finite};
use super::window::Window;
use crate::features::Design;
use crate::lsq::inference::f_p;
use crate::lsq::{self, Block, Information, Row};

/// Weighted moments of one target.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Moments {
    mean: f64,
    /// Σw(y − ȳ)² with an intercept, Σwy² without.
    squares: f64,
}

impl Moments {
    /// With another value of weight w, after which all weights are `total`; the old ones count λ times as much.
    fn with(self, value: f64, weight: f64, total: f64, forgetting_factor: f64, with_intercept: bool) -> Self {
        let kept = forgetting_factor * self.squares;
        if with_intercept && total > 0.0 {
            let step = value - self.mean;
            let mean = self.mean + step * (weight / total);
            Self { mean, squares: kept + weight * step * (value - mean) }
        } else {
            Self { mean: self.mean, squares: kept + weight * value * value }
        }
    }

    fn is_finite(self) -> bool {
        self.mean.is_finite() && self.squares.is_finite()
    }
}

/// How a version remembers: what its specification says, and the penalty that a fit of its window takes.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    /// How it goes on learning.
    pub online: &'a Online,
    /// λ of ridge, 0 without one.
    pub penalty: f64,
}

/// A version's state after `sequence` updates.
#[derive(Clone, Debug)]
pub struct State {
    sequence: u64,
    /// Σw.
    weight: f64,
    /// Σ log w, of the weighted log-likelihood.
    log_weight: f64,
    moments: Vec<Moments>,
    adaptive: Adaptive,
    monitor: Monitor,
    window: Option<Window>,
    /// The last rows, where later ones take values of them.
    history: Option<History>,
    /// Whether the window began anew after a drift, and what was known before is to go when it is full.
    beginning: bool,
    /// Residual variances before the row at hand; empty between rows.
    variances: Vec<f64>,
    information: Information,
}

/// A stored state that does not decode.
#[derive(Debug, thiserror::Error)]
#[error("a stored model state does not decode")]
pub struct StateError;

const LAYOUT: u8 = 2;
/// Added to it where the last rows are in it.
const WITH_HISTORY: u8 = 1;
/// Added to it where there is what the labels of a classifier were worth.
const WITH_LABELS: u8 = 2;
/// Rows a coefficient that what is known counts for after a reset: it has a say only where no new row has one.
const LEFT_BY_RESET: f64 = 1e-6;
/// Relative error of the coefficients, by their own estimate, past which a window's fit is made anew.
const LOST: f64 = 1e-11;

impl State {
    /// The state that a fit leaves, at sequence 0.
    #[must_use]
    pub fn of(fit: &lsq::Fit) -> Self {
        let unit =
            fit.statistics.iter().map(|statistics| statistics.residual_std).map(|unit| if unit > 0.0 { unit } else { 1.0 }).collect();
        let mut state = Self {
            sequence: 0,
            weight: 0.0,
            log_weight: 0.0,
            moments: Vec::new(),
            adaptive: Adaptive::new(),
            monitor: Monitor::new(unit, false),
            window: None,
            history: None,
            beginning: false,
            variances: Vec::new(),
            information: fit.information.clone(),
        };
        state.take_over(fit);
        state
    }

    /// The same of a classifier, whose labels are counted too.
    #[must_use]
    pub fn with_labels(mut self) -> Self {
        self.monitor = self.monitor.with_labels();
        self
    }

    /// Knows what a fit knows, and nothing else.
    fn take_over(&mut self, fit: &lsq::Fit) {
        self.information = fit.information.clone();
        self.moments = fit
            .statistics
            .iter()
            .enumerate()
            .map(|(target, statistics)| Moments { mean: self.information.baseline(target), squares: statistics.total_sum_of_squares })
            .collect();
        (self.weight, self.log_weight) = (fit.weight, fit.log_weight);
    }

    /// The same with a window of `size` rows, whose first rows are those of the fit; `low` is whether design rows have low parts.
    ///
    /// # Errors
    /// The rows cannot be read.
    pub fn with_window(self, rows: &mut dyn lsq::RowSource, low: bool, size: u64) -> Result<Self, lsq::Error> {
        let (predictors, responses) = (rows.predictors(), rows.responses());
        let mut window = Window::new(predictors, responses, low, size);
        let (mut high, mut rest, mut response) = (vec![0.0; predictors], vec![0.0; predictors], vec![0.0; responses]);
        rows.pass(&mut |block| {
            for row in 0..block.rows() {
                high.iter_mut().enumerate().for_each(|(column, cell)| *cell = block.design[(row, column)]);
                if let Some(low) = block.design_low {
                    rest.iter_mut().enumerate().for_each(|(column, cell)| *cell = low[(row, column)]);
                }
                response.iter_mut().enumerate().for_each(|(column, cell)| *cell = block.response[(row, column)]);
                let low = block.design_low.map(|_| rest.as_slice());
                window.push(Row { high: &high, low }, &response, block.weights.map_or(1.0, |weights| weights[row]));
            }
            Ok(())
        })?;
        Ok(self.windowed(window))
    }

    /// The same with these rows as its window.
    #[must_use]
    pub fn windowed(mut self, window: Window) -> Self {
        self.window = Some(window);
        self
    }

    /// The same with these rows as its last.
    #[must_use]
    pub fn with_history(mut self, history: Option<History>) -> Self {
        self.history = history;
        self
    }

    /// The last rows, where later ones take values of them.
    #[must_use]
    pub fn history(&self) -> Option<&History> {
        self.history.as_ref()
    }

    /// Puts past values into the cells of a row that does not give them itself; the row comes `ahead` rows after the last one (1 is the
    /// next). A value that is not known stays NaN.
    pub fn recall(&self, design: &Design, ahead: usize, cells: &mut [f64]) {
        let Some(history) = &self.history else { return };
        for past in design.past().iter().filter(|past| past.lag >= ahead) {
            if cells[past.place].is_nan() {
                cells[past.place] = history.back(past.column, past.lag + 1 - ahead);
            }
        }
    }

    /// Takes in what later rows take of the next one: one value a column.
    pub fn remember(&mut self, row: impl Iterator<Item = f64>) {
        if let Some(history) = &mut self.history {
            history.push(row);
        }
    }

    /// The same knowledge as a version of its own, at sequence 0.
    #[must_use]
    pub fn afresh(&self) -> Self {
        let variances = self.information.residual_variance();
        let unit = variances.iter().map(|variance| if *variance > 0.0 { variance.sqrt() } else { 1.0 }).collect();
        Self {
            sequence: 0,
            monitor: Monitor::new(unit, self.monitor.counts_labels()),
            window: None,
            adaptive: Adaptive::new(),
            ..self.clone()
        }
    }

    /// Updates learnt since the fit.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The information that answers rows.
    #[must_use]
    pub fn information(&self) -> &Information {
        &self.information
    }

    /// What its predictions were worth.
    #[must_use]
    pub fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// λ of the next row.
    #[must_use]
    pub fn forgetting_factor(&self, online: &Online) -> f64 {
        monitor::factor(online, self.adaptive)
    }

    /// Rows in the window.
    #[must_use]
    pub fn window_rows(&self) -> Option<usize> {
        self.window.as_ref().map(Window::len)
    }

    /// Passes over a row that was erased.
    pub fn skip(&mut self) {
        self.sequence += 1;
    }

    /// Learns one row: a design row (p), its responses (q) and its weight. `innovations` (q) receives the a-priori errors y − ŷ. Returns a
    /// drift that the row gives away.
    ///
    /// # Errors
    /// The result would not be finite. The state is as it was, unless it has a window.
    pub fn learn(
        &mut self,
        row: Row<'_>,
        response: &[f64],
        weight: f64,
        memory: Memory<'_>,
        innovations: &mut [f64],
    ) -> Result<Option<Mark>, lsq::Error> {
        let forgetting_factor = self.forgetting_factor(memory.online);
        let with_intercept = self.information.has_intercept();
        let total = forgetting_factor.mul_add(self.weight, weight);
        let mut next = [Moments::default(); 8];
        let overflow = response.len() > next.len();
        let mut many = Vec::new();
        let next: &mut [Moments] = if overflow {
            many.resize(response.len(), Moments::default());
            &mut many
        } else {
            &mut next[..response.len()]
        };
        for ((next, moments), &y) in next.iter_mut().zip(&self.moments).zip(response) {
            *next = moments.with(y, weight, total, forgetting_factor, with_intercept);
            if !next.is_finite() {
                return Err(lsq::Error::Overflow);
            }
        }
        self.variances.clear();
        let degrees = self.information.nominal_variances(&mut self.variances);
        let quantile = self.monitor.quantile(degrees);
        let leverage = self.information.update(row, response, weight, forgetting_factor, innovations)?;
        self.moments.copy_from_slice(next);
        self.weight = total;
        if weight > 0.0 {
            self.log_weight += weight.ln();
        }
        self.sequence += 1;
        if self.window.is_some() {
            self.slide(row, response, weight, memory)?;
        }
        // From variances to half-widths of intervals.
        let spread = 1.0 / weight + leverage;
        let mut surprise = 0.0;
        for (variance, error) in self.variances.iter_mut().zip(innovations.iter()) {
            let own = *variance * spread;
            surprise += if own > 0.0 { error * error / own } else { 1.0 };
            *variance = quantile * own.sqrt();
        }
        if memory.online.adaptive {
            self.adaptive.observe(surprise / response.len() as f64);
        }
        let mark = self.monitor.count(self.sequence, response, innovations, &self.variances, memory.online.drift.as_ref());
        if let (Some(_), Some(watch)) = (mark, &memory.online.drift)
            && watch.action == DriftAction::Reset
        {
            self.reset();
            self.monitor.forget_errors(watch);
        }
        if self.monitor.is_due(self.sequence) {
            self.monitor.note(self.sequence, &self.information);
        }
        Ok(mark)
    }

    /// Counts whether the label was right that was predicted for the row just learnt.
    pub fn count_label(&mut self, right: bool) {
        self.monitor.count_label(right);
    }

    /// Learns the rows of a block, of which nothing is forgotten and nobody asks what was predicted: errors and drift are not watched, and
    /// there is no window.
    ///
    /// # Errors
    /// The result would not be finite. The state is as it was.
    pub fn learn_block(&mut self, block: &Block<'_>) -> Result<(), lsq::Error> {
        let with_intercept = self.information.has_intercept();
        let weight_of = |row: usize| block.weights.map_or(1.0, |weights| weights[row]);
        let mut moments = self.moments.clone();
        let (mut total, mut log_weight) = (self.weight, self.log_weight);
        for row in 0..block.rows() {
            let weight = weight_of(row);
            total += weight;
            if weight > 0.0 {
                log_weight += weight.ln();
            }
            for (response, moments) in moments.iter_mut().enumerate() {
                *moments = moments.with(block.response[(row, response)], weight, total, 1.0, with_intercept);
            }
        }
        if !moments.iter().all(|moments| moments.is_finite()) {
            return Err(lsq::Error::Overflow);
        }
        self.information.update_block(block, 1.0)?;
        self.information.raise_maximum_leverage(block);
        (self.moments, self.weight, self.log_weight) = (moments, total, log_weight);
        self.sequence += block.rows() as u64;
        Ok(())
    }

    /// Takes a row into the window, and the oldest one out of it and of what is known.
    fn slide(&mut self, row: Row<'_>, response: &[f64], weight: f64, memory: Memory<'_>) -> Result<(), lsq::Error> {
        let Some(window) = &mut self.window else { return Ok(()) };
        let full = window.is_full();
        window.push(row, response, weight);
        let mut anew = false;
        if full && let Some(oldest) = window.oldest() {
            anew = self.information.downdate(oldest.row, oldest.response, oldest.weight, 1.0).is_err()
                || self.information.removal_loss() > LOST;
            let left = self.weight - oldest.weight;
            for (moments, &y) in self.moments.iter_mut().zip(oldest.response) {
                if self.information.has_intercept() && left > 0.0 {
                    let mean = moments.mean - (y - moments.mean) * (oldest.weight / left);
                    moments.squares = (moments.squares - oldest.weight * (y - moments.mean) * (y - mean)).max(0.0);
                    moments.mean = mean;
                } else {
                    moments.squares = (moments.squares - oldest.weight * y * y).max(0.0);
                }
            }
            self.weight = left;
            if oldest.weight > 0.0 {
                self.log_weight -= oldest.weight.ln();
            }
            window.drop_oldest();
        } else if self.beginning && window.is_full() {
            (anew, self.beginning) = (true, false);
        }
        if anew {
            let intercept = self.information.has_intercept();
            let specification = lsq::Specification { intercept, penalty: memory.penalty, ..lsq::Specification::default() };
            let fit = window.fit(&specification)?;
            self.take_over(&fit);
        }
        Ok(())
    }

    /// All but forgets what was learnt so far.
    fn reset(&mut self) {
        let known = self.information.effective_observations();
        let left = self.information.rank() as f64 * LEFT_BY_RESET;
        if let Some(window) = &mut self.window {
            window.clear();
            self.beginning = true;
        }
        if known > left {
            let factor = left / known;
            self.information.discount(factor);
            self.weight *= factor;
            self.moments.iter_mut().for_each(|moments| moments.squares *= factor);
        }
    }

    /// The figures of the fit as they stand now. At sequence 0 they are those that were stored, which were computed with more care.
    #[must_use]
    pub fn record(&self, stored: &FitRecord, online: &Online) -> FitRecord {
        if self.sequence == 0 {
            return stored.clone();
        }
        let information = &self.information;
        let (rank, degrees) = (information.rank(), information.degrees_of_freedom());
        let spent = information.effective_parameters();
        let observations = information.observations();
        let regressors = rank as f64 - f64::from(u8::from(information.has_intercept()));
        let targets = information
            .residual_variance()
            .iter()
            .zip(&self.moments)
            .map(|(&variance, moments)| {
                if degrees <= 0.0 {
                    return TargetRecord::default();
                }
                let residual = variance * degrees;
                let total = moments.squares;
                let r2 = 1.0 - residual / total;
                let base = degrees + spent - f64::from(u8::from(information.has_intercept()));
                let f = (total - residual) / regressors / variance;
                let mut record = TargetRecord {
                    residual_std: finite(variance.sqrt()),
                    r2: finite(r2),
                    adjusted_r2: finite(1.0 - (1.0 - r2) * base / degrees),
                    f: finite(f),
                    f_p: finite(if regressors > 0.0 { f_p(f, regressors, degrees) } else { f64::NAN }),
                    ..TargetRecord::default()
                };
                // A likelihood of rows that are half forgotten is not one.
                if online.forgets_nothing() || online.window.is_some() && !self.beginning {
                    #[allow(clippy::cast_precision_loss)]
                    let n = observations as f64;
                    let likelihood = -0.5 * n * ((std::f64::consts::TAU * residual / n).ln() + 1.0) + 0.5 * self.log_weight;
                    record.log_likelihood = finite(likelihood);
                    record.aic = finite(2.0f64.mul_add(rank as f64, -2.0 * likelihood));
                    record.bic = finite((rank as f64).mul_add(n.ln(), -2.0 * likelihood));
                }
                record
            })
            .collect();
        FitRecord {
            observations,
            rank,
            degrees_of_freedom: degrees,
            effective_parameters: spent,
            condition_number: stored.condition_number,
            digits: stored.digits,
            accuracy: None,
            targets,
        }
    }

    /// Little-endian bytes. The same state always gives the same bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        let history = if self.history.is_some() { WITH_HISTORY } else { 0 };
        let labels = if self.monitor.counts_labels() { WITH_LABELS } else { 0 };
        out.byte(LAYOUT + history + labels).whole(self.sequence).float(self.weight).float(self.log_weight);
        out.whole(self.moments.len() as u64);
        for moments in &self.moments {
            out.float(moments.mean).float(moments.squares);
        }
        out.float(self.adaptive.surprise()).byte(u8::from(self.beginning));
        self.monitor.encode(&mut out);
        match &self.window {
            None => _ = out.byte(0),
            Some(window) => {
                out.byte(1);
                window.encode(&mut out);
            }
        }
        if let Some(history) = &self.history {
            history.encode(&mut out);
        }
        out.rest(&self.information.encode());
        out.into_bytes()
    }

    /// The state of those bytes.
    ///
    /// # Errors
    /// They are not the encoding of a state.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut input = Reader::new(bytes);
        let kind = input.byte()?.checked_sub(LAYOUT).filter(|kind| *kind <= WITH_HISTORY + WITH_LABELS).ok_or(StateError)?;
        let (remembers, labels) = (kind & WITH_HISTORY != 0, kind & WITH_LABELS != 0);
        let (sequence, weight, log_weight) = (input.whole()?, input.float()?, input.float()?);
        let targets = input.length(usize::MAX)?;
        let moments =
            (0..targets).map(|_| Ok(Moments { mean: input.float()?, squares: input.float()? })).collect::<Result<Vec<_>, StateError>>()?;
        let (adaptive, beginning) = (Adaptive::of(input.float()?), input.byte()? == 1);
        let monitor = Monitor::decode(&mut input, labels)?;
        let window = if input.byte()? == 0 { None } else { Some(Window::decode(&mut input)?) };
        let history = if remembers { Some(History::decode(&mut input)?) } else { None };
        let information = Information::decode(input.rest()).map_err(|_| StateError)?;
        if moments.len() == information.responses() && monitor.figures().len() == moments.len() {
            Ok(Self {
                sequence,
                weight,
                log_weight,
                moments,
                adaptive,
                monitor,
                window,
                history,
                beginning,
                variances: Vec::new(),
                information,
            })
        } else {
            Err(StateError)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use faer::Mat;

    use super::*;

    #[test]
    fn a_block_leaves_the_figures_that_its_rows_leave() {
        let design = Mat::from_fn(120, 2, |row, column| ((row * (7 + 4 * column)) % 23) as f64 / 23.0);
        let response = Mat::from_fn(120, 1, |row, _| 1.0 + design[(row, 0)] + ((row * 5) % 17) as f64 / 17.0);
        let weights: Vec<f64> = (0..120).map(|row| (row % 4) as f64).collect();
        for (intercept, weights) in [(true, None), (false, None), (true, Some(weights.as_slice()))] {
            let block = |begin: usize, rows: usize| Block {
                design: design.subrows(begin, rows),
                design_low: None,
                response: response.subrows(begin, rows),
                weights: weights.map(|weights| &weights[begin..begin + rows]),
            };
            let specification = lsq::Specification { intercept, ..lsq::Specification::default() };
            let fit = lsq::fit(&mut lsq::OneBlock(block(0, 20)), &specification).unwrap();
            let (mut together, mut single) = (State::of(&fit), State::of(&fit));
            together.learn_block(&block(20, 100)).unwrap();
            let online = Online::default();
            for row in 20..120 {
                let x = [design[(row, 0)], design[(row, 1)]];
                let weight = weights.map_or(1.0, |weights| weights[row]);
                single.learn((&x).into(), &[response[(row, 0)]], weight, Memory { online: &online, penalty: 0.0 }, &mut [0.0]).unwrap();
            }
            let figures = |state: &State| {
                let record = state.record(&FitRecord::of(&fit), &online);
                let target = &record.targets[0];
                [target.residual_std, target.r2, target.adjusted_r2, target.f, target.log_likelihood, target.aic].map(Option::unwrap)
            };
            for (one, other) in figures(&together).into_iter().zip(figures(&single)) {
                assert!((one - other).abs() < 1e-11 * other.abs().max(1.0), "{one} is not {other}");
            }
            assert_eq!((together.sequence(), together.weight), (single.sequence(), single.weight));
            let before = together.clone();
            let bad = Mat::from_fn(5, 1, |row, _| if row == 3 { f64::NAN } else { 1.0 });
            assert!(together.learn_block(&Block { response: bad.as_ref(), weights: None, ..block(0, 5) }).is_err());
            assert_eq!((together.information.encode(), together.moments), (before.information.encode(), before.moments));
        }
    }
}
