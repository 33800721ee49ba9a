//! Gradient descent on the mean squared error, as one writes it down first: w ← w − rate·(1/Σu)·Xᵀu(Xw + b − y), and the same for b. Not
//! the way to a least-squares solution, which [`fit`](super::fit) finds at once: it is here to be watched, to be stopped early, and to go
//! on from given coefficients.
//!
//! The loss is 1/(2Σu)·Σuᵢ(yᵢ − b − xᵢᵀw)², summed over responses, with u the rows' weights.
//!
//! A *number* for the learning rate means the raw columns: the iterates are those of the formula. The *automatic* rate is 1/L on columns
//! that are centred and scaled to unit variance, L the largest eigenvalue of their second moments by power iteration.
//!
//! With full batches one pass over the rows forms the second moments, and every epoch then costs p²·q whatever n is: the gradient is
//! (1/n)(XᵀX·w − Xᵀy), the same numbers but for rounding. Moments are kept about the means, so that a large offset cancels nothing.
//!
//! Mini-batches are runs of consecutive rows of the blocks that the source gives; within a block their order is drawn anew each epoch from
//! the seed. With a number for the rate that is all, and what is left of the batches' noise in the end is in proportion to the rate. With
//! the automatic rate the noise is taken out: a batch tells how the gradient changed since the beginning of the epoch, where the gradient
//! of all rows is known (Johnson & Zhang, *Accelerating stochastic gradient descent using predictive variance reduction*, 2013). The rate
//! is (1 − momentum)/(2ℒ) with the expected smoothness ℒ = n(b−1)/(b(n−1))·L + (n−b)/(b(n−1))·max‖x̃ᵢ‖² of batches of b rows (Gower et al.,
//! *SGD: general analysis and improved rates*, 2019); an epoch that raised the loss is taken back and the rate halved.
//!
//! | momentum | step |
//! |---|---|
//! | heavy ball | v ← μv − rate·∇(w), w ← w + v (Polyak, 1964) |
//! | Nesterov | v ← μv − rate·∇(w + μv), w ← w + v |
//! | accelerated | Nesterov with μ from his sequence, begun again when v points uphill |
//!
//! The sequence and its restarts: O'Donoghue & Candès, *Adaptive restart for accelerated gradient schemes*, 2015.

use std::ops::ControlFlow;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use super::Error;
use super::coordinates::column;
use super::double_double::Double;
use super::gram::{self, Scan};
use super::problem::{Block, RowSource};
use super::validation::mix;

/// How far a step goes along the gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LearningRate {
    /// As far as is safe, on columns that are centred and scaled.
    #[default]
    Auto,
    /// This far, on the columns as they are.
    Fixed(f64),
}

/// What is kept of the step before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Momentum {
    /// Nothing.
    #[default]
    None,
    /// This part of it, 0 ≤ μ < 1.
    HeavyBall(f64),
    /// This part of it, 0 ≤ μ < 1, with the gradient where it leads.
    Nesterov(f64),
    /// As much as serves; needs full batches.
    Accelerated,
}

impl Momentum {
    fn factor(self) -> f64 {
        match self {
            Self::None | Self::Accelerated => 0.0,
            Self::HeavyBall(factor) | Self::Nesterov(factor) => factor,
        }
    }

    /// Largest stable rate times L.
    fn stability(self) -> f64 {
        match self {
            Self::None => 2.0,
            Self::HeavyBall(factor) => 2.0 * (1.0 + factor),
            Self::Nesterov(factor) => 2.0 * (1.0 + factor) / 2.0f64.mul_add(factor, 1.0),
            Self::Accelerated => 1.0,
        }
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<'a> {
    /// Whether there is an intercept.
    pub intercept: bool,
    /// How far a step goes.
    pub learning_rate: LearningRate,
    /// What is kept of the step before.
    pub momentum: Momentum,
    /// Rows of a mini-batch; all rows when there is none.
    pub batch_size: Option<usize>,
    /// Epochs at the most.
    pub epochs: usize,
    /// The end is reached when the gradient in standardised columns is this small against the responses' standard deviation.
    pub tolerance: f64,
    /// Of the order of mini-batches.
    pub seed: u64,
    /// Where to start: raw slopes (p×q) and intercepts (q; empty for zero). Without it at zero.
    pub start: Option<(MatRef<'a, f64>, &'a [f64])>,
}

impl Default for Gradient<'_> {
    fn default() -> Self {
        Self {
            intercept: true,
            learning_rate: LearningRate::Auto,
            momentum: Momentum::None,
            batch_size: None,
            epochs: 1000,
            tolerance: 1e-8,
            seed: 0,
            start: None,
        }
    }
}

/// How things stand after an epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epoch {
    /// From 1.
    pub index: usize,
    /// Mean squared error / 2 over all rows, summed over responses.
    pub loss: f64,
    /// Euclidean norm of its gradient in the columns in which the descent goes.
    pub gradient_norm: f64,
    /// The rate of this epoch.
    pub learning_rate: f64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct GradientFit {
    /// Raw slopes, p×q.
    pub slopes: Mat<f64>,
    /// Raw intercepts, q; empty without an intercept.
    pub intercepts: Vec<f64>,
    /// Epochs that were made.
    pub epochs: usize,
    /// Whether they were enough for the tolerance.
    pub converged: bool,
    /// The loss in the end.
    pub loss: f64,
    /// The loss after each epoch.
    pub losses: Vec<f64>,
    /// The rate in the end.
    pub learning_rate: f64,
}

/// Descends; `report` sees every epoch and may end the descent with an error of its own.
///
/// # Errors
/// See [`Error`]; [`Error::Diverged`] for a rate that is too large.
pub fn gradient(
    source: &mut dyn RowSource,
    gradient: &Gradient<'_>,
    report: &mut dyn FnMut(Epoch) -> Result<(), Error>,
) -> Result<GradientFit, Error> {
    check(source, gradient)?;
    let scan = gram::scan(source, gradient.intercept)?;
    let problem = Moments::new(source, &scan, gradient)?;
    let mut point = problem.start(gradient);
    let sharpness = problem.sharpness();
    let batch = gradient.batch_size.filter(|size| (*size as u64) < scan.rows);
    let automatic = gradient.learning_rate == LearningRate::Auto;
    let rate = match (gradient.learning_rate, batch) {
        (LearningRate::Fixed(rate), _) => rate,
        (LearningRate::Auto, None) => sharpness.recip(),
        (LearningRate::Auto, Some(size)) => {
            #[allow(clippy::cast_precision_loss)]
            let (rows, size) = (scan.rows as f64, size as f64);
            let expected = (rows * (size - 1.0)).mul_add(sharpness, (rows - size) * problem.largest_row) / (size * (rows - 1.0));
            0.5 * (1.0 - gradient.momentum.factor()) / expected
        }
    };
    let mut here = problem.slope(&point);
    let beginning = problem.loss(&point, &here);
    let mut watch = Watch {
        problem: &problem,
        report,
        tolerance: gradient.tolerance,
        stable: gradient.momentum.stability() / sharpness,
        // Far above what momentum overshoots by, far below what floats hold.
        ceiling: 1e6 * beginning.max(0.5 * problem.squares.iter().sum::<f64>()).max(f64::MIN_POSITIVE),
        losses: Vec::new(),
        last: beginning,
    };
    let mut converged = problem.is_flat(&point, &here, gradient.tolerance);
    let mut descent = Descent { problem: &problem, momentum: gradient.momentum, rate, velocity: Point::zeros(&problem), sequence: 1.0 };
    if !converged {
        let mut before: Option<Mat<f64>> = None;
        let mut level_before = point.level.clone();
        for epoch in 1..=gradient.epochs {
            let loss = watch.last;
            match batch {
                None => {
                    let now = (here.clone(), point.level.clone());
                    let look = descent.look_ahead();
                    // The gradient is affine, so that the one ahead follows from this and the last.
                    let (ahead, level) = match &before {
                        Some(before) if look > 0.0 => (
                            Mat::from_fn(here.nrows(), here.ncols(), |i, j| look.mul_add(here[(i, j)] - before[(i, j)], here[(i, j)])),
                            point.level.iter().zip(&level_before).map(|(now, before)| look.mul_add(now - before, *now)).collect(),
                        ),
                        _ => now.clone(),
                    };
                    let factor = if gradient.momentum == Momentum::Accelerated { look } else { gradient.momentum.factor() };
                    descent.step(&mut point, &ahead, &level, factor);
                    (before, level_before) = (Some(now.0), now.1);
                }
                Some(size) => {
                    let anchor = automatic.then(|| Anchor { point: point.clone(), slope: here.clone() });
                    descent.batches(source, &mut point, size, mix(gradient.seed ^ mix(epoch as u64)), anchor.as_ref())?;
                    // Of all rows, not of the last batch.
                    here = problem.slope(&point);
                    let now = problem.loss(&point, &here);
                    if let Some(anchor) = anchor
                        && (now.is_nan() || now > loss * (1.0 + 1e-12))
                    {
                        descent.rate *= 0.5;
                        descent.velocity = Point::zeros(&problem);
                        (point, here) = (anchor.point, anchor.slope);
                    }
                }
            }
            if batch.is_none() {
                here = problem.slope(&point);
            }
            if watch.after(epoch, descent.rate, &point, &here)?.is_break() {
                converged = true;
                break;
            }
        }
    }
    let (slopes, intercepts) = problem.raw(&point);
    Ok(GradientFit {
        slopes,
        intercepts,
        epochs: watch.losses.len(),
        converged,
        loss: watch.last,
        losses: watch.losses,
        learning_rate: descent.rate,
    })
}

fn check(source: &dyn RowSource, gradient: &Gradient<'_>) -> Result<(), Error> {
    if let LearningRate::Fixed(rate) = gradient.learning_rate
        && !(rate > 0.0 && rate.is_finite())
    {
        return Err(Error::Solver("a learning rate is a positive number"));
    }
    if !(0.0..1.0).contains(&gradient.momentum.factor()) {
        return Err(Error::Solver("momentum is at least 0 and less than 1"));
    }
    if gradient.batch_size == Some(0) {
        return Err(Error::Solver("a batch has at least one row"));
    }
    if gradient.batch_size.is_some() && gradient.momentum == Momentum::Accelerated {
        return Err(Error::Solver("accelerated descent takes all rows at once: leave out the batch size"));
    }
    if let Some((slopes, intercepts)) = gradient.start
        && (slopes.shape() != (source.predictors(), source.responses())
            || !(intercepts.is_empty() || intercepts.len() == source.responses()))
    {
        return Err(Error::Solver("the coefficients to start from do not fit the design"));
    }
    Ok(())
}

/// Coefficients on their way. Predictions are ȳ + level + Σ zⱼ·slopeⱼ with zⱼ = (xⱼ − cⱼ)·unitⱼ.
#[derive(Clone, Debug)]
struct Point {
    /// q. In a velocity: of the intercept parameter.
    level: Vec<f64>,
    /// p×q.
    slopes: Mat<f64>,
}

impl Point {
    fn zeros(problem: &Moments<'_>) -> Self {
        let (predictors, responses) = problem.cross.shape();
        Self { level: vec![0.0; responses], slopes: Mat::zeros(predictors, responses) }
    }
}

/// Where an epoch of mini-batches began, and the gradient of all rows there, about the centre.
struct Anchor {
    point: Point,
    slope: Mat<f64>,
}

/// The loss as a quadratic form.
struct Moments<'a> {
    scan: &'a Scan,
    /// Of a column: 1 raw, 1/standard deviation standardised (0 where there is none).
    unit: Vec<f64>,
    /// Standard deviation of z; 0 where it does not vary.
    spread: Vec<f64>,
    /// How far the origin of the parameters lies from the centre: c for raw columns with an intercept, else zero.
    offset: Vec<f64>,
    /// (1/Σu)·ZᵀuZ, p×p, about the centre.
    second: Mat<f64>,
    /// (1/Σu)·Zᵀu(y − ȳ), p×q.
    cross: Mat<f64>,
    /// (1/Σu)·Σu(y − ȳ)², q.
    squares: Vec<f64>,
    /// Largest 1 + ‖z‖² of a row, when batches need it.
    largest_row: f64,
}

impl<'a> Moments<'a> {
    fn new(source: &mut dyn RowSource, scan: &'a Scan, gradient: &Gradient<'_>) -> Result<Self, Error> {
        let coordinates = &scan.coordinates;
        let (predictors, responses) = (coordinates.predictors(), coordinates.responses());
        let standardised = gradient.learning_rate == LearningRate::Auto;
        let deviation: Vec<f64> = (0..predictors)
            .map(
                |own| if scan.constant[own] { 0.0 } else { (scan.gram[(own, own)].max(0.0) / scan.weight).sqrt() / coordinates.scale[own] },
            )
            .collect();
        let unit: Vec<f64> = deviation
            .iter()
            .map(|deviation| match (standardised, *deviation > 0.0) {
                (false, _) => 1.0,
                (true, true) => deviation.recip(),
                (true, false) => 0.0,
            })
            .collect();
        let ratio = |own: usize| unit[own] / coordinates.scale[own];
        let second = Mat::from_fn(predictors, predictors, |i, j| scan.gram[(i, j)] / scan.weight * ratio(i) * ratio(j));
        let cross = Mat::from_fn(predictors, responses, |i, j| scan.cross[(i, j)] / scan.weight * ratio(i));
        let offset = if standardised || !coordinates.intercept { vec![0.0; predictors] } else { coordinates.centre.clone() };
        let mut squares = vec![0.0; responses];
        let mut largest_row: f64 = 0.0;
        let wanted = standardised && gradient.batch_size.is_some();
        let mut norms = Vec::new();
        source.pass(&mut |block| {
            for (response, square) in squares.iter_mut().enumerate() {
                let centre = coordinates.response_centre[response];
                let values = column(block.response, response);
                *square += match block.weights {
                    Some(weights) => values.iter().zip(weights).map(|(value, weight)| weight * (value - centre).powi(2)).sum::<f64>(),
                    None => values.iter().map(|value| (value - centre).powi(2)).sum(),
                };
            }
            if wanted {
                norms.clear();
                norms.resize(block.rows(), f64::from(u8::from(coordinates.intercept)));
                for predictor in 0..predictors {
                    let (centre, unit) = (coordinates.centre[predictor], unit[predictor]);
                    for (norm, value) in norms.iter_mut().zip(column(block.design, predictor)) {
                        let own = (value - centre) * unit;
                        *norm = own.mul_add(own, *norm);
                    }
                }
                largest_row = norms.iter().fold(largest_row, |largest, norm| largest.max(*norm));
            }
            Ok(())
        })?;
        squares.iter_mut().for_each(|square| *square /= scan.weight);
        let finite = |matrix: &Mat<f64>| matrix.col_iter().all(|column| column.iter().all(|value| value.is_finite()));
        if !(finite(&second) && finite(&cross) && squares.iter().all(|square| square.is_finite())) {
            return Err(Error::Overflow);
        }
        let spread = deviation.iter().zip(&unit).map(|(deviation, unit)| deviation * unit).collect();
        Ok(Self { scan, unit, spread, offset, second, cross, squares, largest_row })
    }

    fn start(&self, gradient: &Gradient<'_>) -> Point {
        let coordinates = &self.scan.coordinates;
        let (predictors, responses) = self.cross.shape();
        let mut point = Point::zeros(self);
        for response in 0..responses {
            let mut level = Double::ZERO;
            if let Some((slopes, intercepts)) = gradient.start {
                level += Double::from(intercepts.get(response).copied().unwrap_or(0.0));
                for predictor in 0..predictors {
                    let slope = slopes[(predictor, response)];
                    level += Double::product(slope, coordinates.centre[predictor]);
                    // A column that does not vary keeps its slope out of the level only.
                    point.slopes[(predictor, response)] = if self.unit[predictor] > 0.0 { slope / self.unit[predictor] } else { 0.0 };
                }
            }
            if coordinates.intercept {
                point.level[response] = (level + Double::from(-coordinates.response_centre[response])).to_f64();
            }
        }
        point
    }

    /// (1/Σu)·Zᵀu(prediction − y) about the centre, p×q.
    fn slope(&self, point: &Point) -> Mat<f64> {
        /// Cells from which a product is worth sharing out.
        const WORTH_SHARING: usize = 1 << 18;
        let mut slope = self.cross.clone();
        let parallel = if self.second.nrows() * self.second.ncols() >= WORTH_SHARING { faer::get_global_parallelism() } else { Par::Seq };
        slope.col_iter_mut().for_each(|column| column.iter_mut().for_each(|value| *value = -*value));
        matmul(slope.as_mut(), Accum::Add, self.second.as_ref(), point.slopes.as_ref(), 1.0, parallel);
        slope
    }

    /// ½Σ(level² + ȳ² − 2θᵀh + θᵀHθ) with Hθ − h given.
    fn loss(&self, point: &Point, slope: &Mat<f64>) -> f64 {
        let mut total = 0.0;
        for (response, square) in self.squares.iter().enumerate() {
            let columns =
                point.slopes.col_as_slice(response).iter().zip(self.cross.col_as_slice(response)).zip(slope.col_as_slice(response));
            let along: f64 = columns.map(|((own, cross), slope)| own * (slope - cross)).sum();
            // Rounding may take a perfect fit below zero.
            total += point.level[response].mul_add(point.level[response], (square + along).max(0.0));
        }
        0.5 * total
    }

    /// Norm of the gradient in the parameters.
    fn norm(&self, point: &Point, slope: &Mat<f64>) -> f64 {
        let mut total = 0.0;
        for (response, level) in point.level.iter().enumerate() {
            total += level * level;
            for (value, offset) in slope.col_as_slice(response).iter().zip(&self.offset) {
                total += offset.mul_add(*level, *value).powi(2);
            }
        }
        total.sqrt()
    }

    fn is_flat(&self, point: &Point, slope: &Mat<f64>, tolerance: f64) -> bool {
        let mut total = 0.0;
        for (response, level) in point.level.iter().enumerate() {
            total += level * level;
            for (value, spread) in slope.col_as_slice(response).iter().zip(&self.spread) {
                if *spread > 0.0 {
                    total += (value / spread).powi(2);
                }
            }
        }
        total.sqrt() <= tolerance * self.squares.iter().sum::<f64>().sqrt()
    }

    /// L: the largest eigenvalue of the second moments of (1, z), by power iteration.
    fn sharpness(&self) -> f64 {
        let (predictors, intercept) = (self.cross.nrows(), self.scan.coordinates.intercept);
        #[allow(clippy::cast_precision_loss)]
        let mut vector = Mat::from_fn(predictors, 1, |place, _| 0.5 + (place as f64 * 0.618_033_988_749_895).fract());
        let mut level = f64::from(u8::from(intercept));
        let mut value = 0.0;
        for _ in 0..500 {
            let norm = vector.squared_norm_l2().sqrt().hypot(level);
            if !(norm > 0.0 && norm.is_finite()) {
                break;
            }
            vector.col_mut(0).iter_mut().for_each(|entry| *entry /= norm);
            level /= norm;
            let mut next = &self.second * &vector;
            if intercept {
                let sum = level + vector.col_as_slice(0).iter().zip(&self.offset).map(|(own, offset)| own * offset).sum::<f64>();
                next.col_mut(0).iter_mut().zip(&self.offset).for_each(|(own, offset)| *own = offset.mul_add(sum, *own));
                level = sum;
            }
            let last = value;
            value = next.squared_norm_l2().sqrt().hypot(level);
            vector = next;
            if (value - last).abs() <= 1e-9 * value {
                break;
            }
        }
        // From below, and close.
        if value > 0.0 { value * (1.0 + 1e-6) } else { 1.0 }
    }

    fn raw(&self, point: &Point) -> (Mat<f64>, Vec<f64>) {
        let coordinates = &self.scan.coordinates;
        let (predictors, responses) = self.cross.shape();
        let slopes = Mat::from_fn(predictors, responses, |row, response| point.slopes[(row, response)] * self.unit[row]);
        if !coordinates.intercept {
            return (slopes, Vec::new());
        }
        let intercepts = (0..responses)
            .map(|response| {
                let mut sum = Double::sum(point.level[response], coordinates.response_centre[response]);
                for row in 0..predictors {
                    sum += -Double::product(slopes[(row, response)], coordinates.centre[row]);
                }
                sum.to_f64()
            })
            .collect();
        (slopes, intercepts)
    }
}

/// Looks at every epoch.
struct Watch<'a> {
    problem: &'a Moments<'a>,
    report: &'a mut dyn FnMut(Epoch) -> Result<(), Error>,
    tolerance: f64,
    /// Rate up to which full batches do not diverge.
    stable: f64,
    /// Loss above which the descent goes nowhere but up.
    ceiling: f64,
    losses: Vec<f64>,
    last: f64,
}

impl Watch<'_> {
    fn after(&mut self, index: usize, learning_rate: f64, point: &Point, slope: &Mat<f64>) -> Result<ControlFlow<()>, Error> {
        let (loss, gradient_norm) = (self.problem.loss(point, slope), self.problem.norm(point, slope));
        if !(loss.is_finite() && gradient_norm.is_finite() && loss <= self.ceiling) {
            return Err(Error::Diverged(format!("{:.3e}", self.stable)));
        }
        self.last = loss;
        self.losses.push(loss);
        (self.report)(Epoch { index, loss, gradient_norm, learning_rate })?;
        let flat = self.problem.is_flat(point, slope, self.tolerance);
        Ok(if flat { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

struct Descent<'a> {
    problem: &'a Moments<'a>,
    momentum: Momentum,
    rate: f64,
    /// The last step of the parameters.
    velocity: Point,
    /// tₖ of Nesterov's sequence.
    sequence: f64,
}

impl Descent<'_> {
    /// How far ahead along the velocity the gradient is wanted, as a part of it.
    fn look_ahead(&mut self) -> f64 {
        match self.momentum {
            Momentum::None | Momentum::HeavyBall(_) => 0.0,
            Momentum::Nesterov(factor) => factor,
            Momentum::Accelerated => {
                let next = 0.5 * (1.0 + 4.0f64.mul_add(self.sequence * self.sequence, 1.0).sqrt());
                let factor = (self.sequence - 1.0) / next;
                self.sequence = next;
                factor
            }
        }
    }

    /// One step that keeps the part `factor` of the last, given the gradient about the centre and that of the level.
    fn step(&mut self, point: &mut Point, slope: &Mat<f64>, level: &[f64], factor: f64) {
        let intercept = self.problem.scan.coordinates.intercept;
        let mut uphill = 0.0;
        for (response, own_level) in point.level.iter_mut().enumerate() {
            let pull = if intercept { level[response] } else { 0.0 };
            let velocity = &mut self.velocity;
            if intercept {
                velocity.level[response] = factor.mul_add(velocity.level[response], -self.rate * pull);
                uphill += pull * velocity.level[response];
                *own_level += velocity.level[response];
            }
            let own = point.slopes.col_as_slice_mut(response).iter_mut();
            let moves = velocity.slopes.col_as_slice_mut(response).iter_mut();
            for (((own, moved), slope), offset) in own.zip(moves).zip(slope.col_as_slice(response)).zip(&self.problem.offset) {
                let gradient = offset.mul_add(pull, *slope);
                *moved = factor.mul_add(*moved, -self.rate * gradient);
                uphill += gradient * *moved;
                *own += *moved;
                if intercept {
                    *own_level += offset * *moved;
                }
            }
        }
        if self.momentum == Momentum::Accelerated && uphill > 0.0 {
            self.sequence = 1.0;
            self.velocity = Point::zeros(self.problem);
        }
    }

    /// One epoch of mini-batches.
    fn batches(
        &mut self,
        source: &mut dyn RowSource,
        point: &mut Point,
        size: usize,
        seed: u64,
        anchor: Option<&Anchor>,
    ) -> Result<(), Error> {
        let mut blocks = 0;
        let mut order: Vec<usize> = Vec::new();
        let mut residual = Vec::new();
        let mut slope = Mat::zeros(point.slopes.nrows(), point.slopes.ncols());
        source.pass(&mut |block| {
            let count = block.rows().div_ceil(size);
            order.clear();
            order.extend(0..count);
            let mut state = mix(seed ^ mix(blocks));
            blocks += 1;
            for index in 1..count {
                state = mix(state);
                #[allow(clippy::cast_possible_truncation)] // at most `index`
                order.swap(index, (state % (index as u64 + 1)) as usize);
            }
            for &batch in &order {
                let range = batch * size..((batch + 1) * size).min(block.rows());
                let factor = self.momentum.factor();
                let ahead = if let Momentum::Nesterov(_) = self.momentum { factor } else { 0.0 };
                if let Some(level) = self.batch(point, block, range, ahead, anchor, &mut residual, &mut slope) {
                    self.step(point, &slope, &level, factor);
                }
            }
            Ok(())
        })
    }

    /// The gradient of one batch, `ahead` of the point: about the centre (into `slope`), and of the level.
    #[allow(clippy::too_many_arguments)] // buffers are handed in, so that a batch allocates next to nothing
    fn batch(
        &self,
        point: &Point,
        block: &Block<'_>,
        range: std::ops::Range<usize>,
        ahead: f64,
        anchor: Option<&Anchor>,
        residual: &mut Vec<f64>,
        slope: &mut Mat<f64>,
    ) -> Option<Vec<f64>> {
        let coordinates = &self.problem.scan.coordinates;
        let predictors = coordinates.predictors();
        let weights = block.weights.map(|weights| &weights[range.clone()]);
        #[allow(clippy::cast_precision_loss)]
        let total = weights.map_or(range.len() as f64, |weights| weights.iter().sum());
        if total <= 0.0 {
            return None;
        }
        let velocity = &self.velocity;
        let mut levels = Vec::with_capacity(point.level.len());
        for (response, level) in point.level.iter().enumerate() {
            let moved = velocity.slopes.col_as_slice(response);
            let mut level = *level;
            if coordinates.intercept && ahead > 0.0 {
                let along: f64 = moved.iter().zip(&self.problem.offset).map(|(moved, offset)| moved * offset).sum();
                level = ahead.mul_add(velocity.level[response] + along, level);
            }
            residual.clear();
            match anchor {
                // Of a difference of predictions there is no response.
                Some(anchor) => residual.resize(range.len(), level - anchor.point.level[response]),
                None => {
                    let centre = coordinates.response_centre[response];
                    residual.extend(column(block.response, response)[range.clone()].iter().map(|value| level - (value - centre)));
                }
            }
            for (predictor, moved) in moved.iter().enumerate() {
                let from = anchor.map_or(0.0, |anchor| anchor.point.slopes[(predictor, response)]);
                let own = ahead.mul_add(*moved, point.slopes[(predictor, response)] - from) * self.problem.unit[predictor];
                let centre = coordinates.centre[predictor];
                for (residual, value) in residual.iter_mut().zip(&column(block.design, predictor)[range.clone()]) {
                    *residual = (value - centre).mul_add(own, *residual);
                }
            }
            for (index, residual) in residual.iter_mut().enumerate() {
                *residual *= weights.map_or(1.0, |weights| weights[index]) / total;
            }
            levels.push(residual.iter().sum::<f64>() + anchor.map_or(0.0, |anchor| anchor.point.level[response]));
            for predictor in 0..predictors {
                let centre = coordinates.centre[predictor];
                let values = &column(block.design, predictor)[range.clone()];
                let sum: f64 = values.iter().zip(residual.iter()).map(|(value, residual)| (value - centre) * residual).sum();
                slope[(predictor, response)] =
                    sum.mul_add(self.problem.unit[predictor], anchor.map_or(0.0, |anchor| anchor.slope[(predictor, response)]));
            }
        }
        Some(levels)
    }
}
