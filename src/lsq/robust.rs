//! Robust regression: coefficients that a minority of wild responses cannot pull away. Not a defence against wild *predictors*: a row with
//! an extreme x has leverage that no weight on its residual takes away.
//!
//! An M-estimate solves Σ uᵢ ψ(rᵢ/σ) x̃ᵢ = 0 with rᵢ = yᵢ − α − xᵢᵀβ and uᵢ the row's own weight (1 without weights). With w(z) = ψ(z)/z
//! these are the normal equations of a weighted least squares, which are solved, reweighted and solved again (Holland & Welsch, *Robust
//! regression using iteratively reweighted least-squares*, 1977). The start is ordinary least squares. The scale is, after each round,
//! σ = median(|rᵢ|) / Φ⁻¹(¾), the median weighted by uᵢ, so that a row of weight 2 counts as two rows.
//!
//! | loss | ψ(z) | up to |
//! |---|---|---|
//! | Huber | z, then t·sign z | t = 1.345 |
//! | bisquare | z(1 − (z/c)²)², then 0 | c = 4.685 |
//!
//! Reweighting alone gains a digit or so a round. Once a round moves little against σ, the same equations are solved by Newton's method,
//! whose matrix X̃ᵀdiag(uψ′)X̃ is kept for as long as it serves: a round is then two visits of the rows without any matrix product. A
//! step that grows sends it back to reweighting. A design whose Gram matrix is ill-conditioned or deficient is reweighted through
//! [`fit`] in every round, slower and as exact as `fit` is; its solution is then the one of smallest norm.
//!
//! The covariance is Huber's: k²·[Σuψ²/(n − rank)]·σ²/m² · (XᵀUX)⁻¹ with m the mean of ψ′, k = 1 + (rank/n)·var(ψ′)/m² (Huber, *Robust
//! Statistics*, 1981, §7.6, (6.5)); n counts rows of positive weight and means are weighted.
//!
//! Memory: two numbers a row (residual and a copy for the median), three with weights.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::{DenseSolveCore as _, Llt, Solve as _, Svd};
use faer::{Accum, Mat, MatRef, Par, Side};

use super::coordinates::{Coordinates, column, in_parts, part_count};
use super::gram::{self, Scan, mirror};
use super::problem::{Block, RowSource, Specification};
use super::{Error, Fit, fit, qr};

/// What a residual costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Squared up to the threshold, linear beyond it. Convex: one solution, of 95 % efficiency on Gaussian errors at 1.345.
    Huber {
        /// In units of the scale.
        threshold: f64,
    },
    /// Tukey's: constant beyond the threshold, so that far rows have no say at all; 95 % efficiency at 4.685. Not convex: the solution is
    /// the one that reweighting reaches from ordinary least squares.
    Bisquare {
        /// In units of the scale.
        threshold: f64,
    },
}

impl Loss {
    /// Huber's loss at its usual threshold.
    pub const HUBER: Self = Self::Huber { threshold: 1.345 };
    /// Tukey's loss at its usual threshold.
    pub const BISQUARE: Self = Self::Bisquare { threshold: 4.685 };

    fn threshold(self) -> f64 {
        match self {
            Self::Huber { threshold } | Self::Bisquare { threshold } => threshold,
        }
    }

    /// w(z) = ψ(z)/z.
    #[inline(always)]
    fn weight(self, z: f64) -> f64 {
        match self {
            Self::Huber { threshold } => {
                let z = z.abs();
                if z <= threshold { 1.0 } else { threshold / z }
            }
            Self::Bisquare { threshold } => {
                let rest = (1.0 - (z / threshold).powi(2)).max(0.0);
                rest * rest
            }
        }
    }

    /// ψ′(z).
    #[inline(always)]
    fn slope(self, z: f64) -> f64 {
        match self {
            Self::Huber { threshold } => f64::from(u8::from(z.abs() <= threshold)),
            Self::Bisquare { threshold } => {
                let square = (z / threshold).powi(2);
                if square <= 1.0 { (1.0 - square) * 5.0f64.mul_add(-square, 1.0) } else { 0.0 }
            }
        }
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Robust {
    /// What a residual costs.
    pub loss: Loss,
    /// Whether there is an intercept.
    pub intercept: bool,
    /// Rounds at the most.
    pub rounds: usize,
    /// The end is reached when neither the scale nor any coefficient's effect moved by more than this part of the scale.
    pub tolerance: f64,
}

impl Default for Robust {
    fn default() -> Self {
        Self { loss: Loss::HUBER, intercept: true, rounds: 50, tolerance: 1e-10 }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct RobustFit {
    /// Raw slopes, p×1.
    pub slopes: Mat<f64>,
    /// Raw intercept, 0 without one.
    pub intercept: f64,
    /// Of the raw coefficients, m×m, the intercept first if there is one; NaN where no degrees of freedom are left.
    pub covariance: Mat<f64>,
    /// σ, in the response's units; 0 where at least half of the rows lie on the fitted plane.
    pub scale: f64,
    /// w(r/σ), one a row in the order of the source, the row's own weight not included.
    pub weights: Vec<f64>,
    /// Rounds that were made.
    pub rounds: usize,
    /// Whether they were enough.
    pub converged: bool,
    /// The last weighted least squares. Its own figures take the weights as known; for errors of coefficients see `covariance`.
    pub fit: Fit,
}

impl RobustFit {
    /// Visits the rows of which the fit was made: each block as it is, with w(r/σ) of its rows and with their own weights times that.
    pub(super) fn pass(
        &self,
        source: &mut dyn RowSource,
        mut visit: impl FnMut(&Block<'_>, &[f64], &[f64]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (mut first, mut product) = (0, Vec::new());
        source.pass(&mut |block| {
            let factors = factors_of(&self.weights, first, block)?;
            first += block.rows();
            visit(block, factors, multiplied(block, factors, &mut product))
        })
    }

    /// The same rows as those of a weighted least squares, that of [`RobustFit::fit`].
    pub(super) fn reweighted<'a>(&'a self, source: &'a mut dyn RowSource) -> impl RowSource + 'a {
        Reweighted { source, factors: &self.weights, product: Vec::new() }
    }

    /// The last weighted least squares with the errors of the robust estimate: its scale and its asymptotic covariance. Figures that
    /// belong to a sum of squares alone (R², F, likelihood) are NaN.
    ///
    /// # Errors
    /// [`Error::Overflow`] where the covariance is not finite though degrees of freedom are left.
    pub fn into_fit(self) -> Result<Fit, Error> {
        let mut fit = self.fit;
        fit.information.set_residual_variance(&[self.scale * self.scale]);
        if self.covariance.norm_max().is_finite() {
            fit.information.set_raw_covariance(&[self.covariance], None)?;
        }
        for figures in &mut fit.statistics {
            *figures = super::ordinary::Statistics {
                residual_std: self.scale,
                r2: f64::NAN,
                adjusted_r2: f64::NAN,
                f: f64::NAN,
                f_p: f64::NAN,
                aic: f64::NAN,
                bic: f64::NAN,
                log_likelihood: f64::NAN,
                ..*figures
            };
        }
        Ok(fit)
    }
}

/// Φ⁻¹(¾): the median of |z| under the Gaussian.
const MEDIAN_OF_GAUSSIAN: f64 = 0.674_489_750_196_081_7;
/// Scale, relative to the size of the responses, below which residuals are rounding.
const NOTHING: f64 = 1e-14;
/// Distance of a column from the others, relative to its size, down to which the Gram matrix serves.
const INDEPENDENT: f64 = 1e-4;

/// Fits one response robustly.
///
/// # Errors
/// See [`Error`]; [`Error::Solver`] for more than one response or a threshold that is not positive. Rank deficiency is not an error, nor
/// are rounds that do not suffice: see [`RobustFit::converged`].
pub fn robust(source: &mut dyn RowSource, robust: &Robust) -> Result<RobustFit, Error> {
    if source.responses() != 1 {
        return Err(Error::Solver("a robust fit takes one response"));
    }
    if !(robust.loss.threshold() > 0.0 && robust.loss.threshold().is_finite()) {
        return Err(Error::Solver("the threshold of a robust loss is a positive number"));
    }
    let scan = gram::scan(source, robust.intercept)?;
    let system = System::new(&scan);
    let mut rows = Rows::default();
    let mut descent = Descent { coordinates: &scan.coordinates, predictors: &system.predictors, robust, rounds: 0, converged: false };
    let mut rank = system.width();
    let mut plain = None;
    let done = match system.start(&scan) {
        Some(start) => descent.on_gram(source, &mut rows, start)?,
        None => false,
    };
    if !done {
        let first = fit(source, &Specification { intercept: robust.intercept, ..Specification::default() })?;
        rank = first.rank;
        descent.through_fits(source, &mut rows, &first)?;
        plain = Some(qr::triangle(source, &scan.coordinates, &(0..scan.coordinates.width()).collect::<Vec<_>>(), 0.0)?);
    }
    let (rounds, converged) = (descent.rounds, descent.converged);
    let floored = rows.scale.max(rows.floor);
    let factor = rows.factor(robust, rank, scan.rows);
    let scale = rows.scale;
    let mut weights = rows.residuals;
    for residual in &mut weights {
        *residual = if floored > 0.0 { robust.loss.weight(*residual / floored) } else { 1.0 };
    }
    let last = reweighted(source, &weights, robust.intercept)?;
    let covariance = covariance(&scan, &system, plain.as_ref(), rank, factor);
    Ok(RobustFit {
        slopes: last.information.coefficients().to_owned(),
        intercept: last.information.intercept().first().copied().unwrap_or(0.0),
        covariance,
        scale,
        weights,
        rounds,
        converged,
        fit: last,
    })
}

/// Least squares with each row's weight multiplied.
fn reweighted(source: &mut dyn RowSource, factors: &[f64], intercept: bool) -> Result<Fit, Error> {
    let specification = Specification { intercept, ..Specification::default() };
    fit(&mut Reweighted { source, factors, product: Vec::new() }, &specification)
}

/// The rows of another source, each weight multiplied by a factor.
struct Reweighted<'a> {
    source: &'a mut dyn RowSource,
    factors: &'a [f64],
    product: Vec<f64>,
}

impl RowSource for Reweighted<'_> {
    fn predictors(&self) -> usize {
        self.source.predictors()
    }

    fn responses(&self) -> usize {
        self.source.responses()
    }

    fn pass(&mut self, visit: &mut dyn FnMut(&Block<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let (factors, product) = (self.factors, &mut self.product);
        let mut first = 0;
        self.source.pass(&mut |block| {
            let factors = factors_of(factors, first, block)?;
            first += block.rows();
            visit(&Block { weights: Some(multiplied(block, factors, product)), ..*block })
        })
    }
}

/// The factors of a block's rows, the first of which has the place `first`.
fn factors_of<'a>(factors: &'a [f64], first: usize, block: &Block<'_>) -> Result<&'a [f64], Error> {
    factors.get(first..first + block.rows()).ok_or_else(changed)
}

/// The weights of a block's rows times their factors.
fn multiplied<'a>(block: &Block<'_>, factors: &'a [f64], product: &'a mut Vec<f64>) -> &'a [f64] {
    let Some(weights) = block.weights else { return factors };
    product.clear();
    product.extend(weights.iter().zip(factors).map(|(weight, factor)| weight * factor));
    product
}

fn changed() -> Error {
    Error::Source("the rows changed between two passes".to_owned())
}

/// What is kept of every row.
#[derive(Default)]
struct Rows {
    residuals: Vec<f64>,
    /// u; empty when every row weighs 1.
    weights: Vec<f64>,
    /// Scale that is nothing but rounding.
    floor: f64,
    scale: f64,
    seen: bool,
    bits: Vec<u64>,
}

impl Rows {
    /// Residuals at the given coefficients, and their scale. `level` is what is predicted at the centre, less the response's centre.
    fn measure(&mut self, source: &mut dyn RowSource, coordinates: &Coordinates, level: f64, slopes: &[f64]) -> Result<(), Error> {
        /// Rows whose residuals stay in the nearest cache.
        const ROWS_AT_ONCE: usize = 1024;
        let arch = pulp::Arch::new();
        let mut first = 0;
        let mut squares = 0.0;
        let shift = coordinates.response_centre[0] + level;
        source.pass(&mut |block| {
            let rows = block.rows();
            if !self.seen {
                self.residuals.resize(first + rows, 0.0);
                squares += column(block.response, 0).iter().map(|value| value * value).sum::<f64>();
                if let Some(weights) = block.weights {
                    self.weights.resize(first, 1.0);
                    self.weights.extend_from_slice(weights);
                }
            }
            let residuals = self.residuals.get_mut(first..first + rows).ok_or_else(changed)?;
            first += rows;
            let fill = |out: &mut [f64], begin: usize| arch.dispatch(Fill { coordinates, block, level, slopes, begin, out });
            let workers = part_count();
            let each = rows.div_ceil(workers).next_multiple_of(ROWS_AT_ONCE);
            let share = |out: &mut [f64], begin: usize| {
                for (index, out) in out.chunks_mut(ROWS_AT_ONCE).enumerate() {
                    fill(out, begin + index * ROWS_AT_ONCE);
                }
            };
            if rows <= each {
                share(residuals, 0);
            } else {
                rayon::scope(|scope| {
                    for (index, out) in residuals.chunks_mut(each).enumerate() {
                        let share = &share;
                        scope.spawn(move |_| share(out, index * each));
                    }
                });
            }
            Ok(())
        })?;
        if first != self.residuals.len() || !shift.is_finite() {
            return Err(if shift.is_finite() { changed() } else { Error::Overflow });
        }
        if !self.seen {
            self.seen = true;
            #[allow(clippy::cast_precision_loss)]
            let mean_square = squares / first as f64;
            self.floor = NOTHING * mean_square.sqrt();
            if !self.weights.is_empty() {
                self.weights.resize(first, 1.0);
            }
        }
        self.scale = self.median() / MEDIAN_OF_GAUSSIAN;
        if !self.scale.is_finite() {
            return Err(Error::Overflow);
        }
        if self.scale <= self.floor {
            self.scale = 0.0;
        }
        Ok(())
    }

    /// The median of |r|: of an even number the mean of the two in the middle.
    fn median(&mut self) -> f64 {
        if !self.weights.is_empty() {
            return weighted_median(self.residuals.iter().zip(&self.weights).map(|(residual, weight)| (residual.abs(), *weight)).collect());
        }
        // Floats that are not negative are ordered as their bits are.
        self.bits.clear();
        self.bits.extend(self.residuals.iter().map(|residual| residual.abs().to_bits()));
        let count = self.bits.len();
        if count == 0 {
            return 0.0;
        }
        let (below, middle, _) = self.bits.select_nth_unstable(count / 2);
        let middle = f64::from_bits(*middle);
        match below.iter().max() {
            Some(other) if count.is_multiple_of(2) => middle.midpoint(f64::from_bits(*other)),
            _ => middle,
        }
    }

    /// k²·[Σuψ²/(n − rank)]·σ²/m².
    fn factor(&self, robust: &Robust, rank: usize, observations: u64) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let (rows, rank) = (observations as f64, rank as f64);
        if rows <= rank {
            return f64::NAN;
        }
        if self.scale == 0.0 {
            return 0.0;
        }
        let terms = || {
            self.residuals.iter().enumerate().map(|(row, residual)| {
                let z = residual / self.scale;
                (self.weights.get(row).copied().unwrap_or(1.0), robust.loss.weight(z) * z, robust.loss.slope(z))
            })
        };
        let (mut weight, mut psi, mut slope) = (0.0, 0.0, 0.0);
        for (own, value, derivative) in terms() {
            weight += own;
            psi += own * value * value;
            slope += own * derivative;
        }
        let mean = slope / weight;
        let variance = terms().map(|(own, _, derivative)| own * (derivative - mean).powi(2)).sum::<f64>() / weight;
        let k = (rank / rows).mul_add(variance / (mean * mean), 1.0);
        let factor = k * k * (psi / (rows - rank)) * self.scale.powi(2) / (mean * mean);
        if factor.is_finite() { factor } else { f64::NAN }
    }
}

/// The value at which half of the weight is reached; where it is reached exactly, the mean of that and the next.
fn weighted_median(mut pairs: Vec<(f64, f64)>) -> f64 {
    pairs.retain(|(_, weight)| *weight > 0.0);
    let half = 0.5 * pairs.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut rest = pairs.as_mut_slice();
    let mut before = 0.0;
    // The next larger value outside of `rest`.
    let mut above = None;
    while rest.len() > 1 {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by(middle, |one, other| one.0.total_cmp(&other.0));
        let (low, high) = rest.split_at_mut(middle);
        let low_weight = before + low.iter().map(|(_, weight)| weight).sum::<f64>();
        if low_weight >= half {
            above = high.first().map(|(value, _)| *value);
            rest = low;
        } else {
            before = low_weight;
            rest = high;
        }
    }
    match (rest.first(), above) {
        (Some((value, weight)), Some(above)) if before + weight == half => value.midpoint(above),
        (Some((value, _)), _) => *value,
        (None, _) => 0.0,
    }
}

/// The columns that can be told apart from the intercept.
struct System {
    intercept: bool,
    /// Predictors that vary.
    predictors: Vec<usize>,
}

/// Ordinary least squares from the Gram matrix: level and raw slopes.
struct Start {
    level: f64,
    slopes: Vec<f64>,
}

impl System {
    fn new(scan: &Scan) -> Self {
        let predictors = (0..scan.coordinates.predictors()).filter(|place| !scan.constant[*place]).collect();
        Self { intercept: scan.coordinates.intercept, predictors }
    }

    fn width(&self) -> usize {
        self.predictors.len() + usize::from(self.intercept)
    }

    /// Where the Gram matrix serves, the coefficients of least squares.
    fn start(&self, scan: &Scan) -> Option<Start> {
        if self.width() as u64 >= scan.rows {
            return None;
        }
        let mut slopes = vec![0.0; scan.coordinates.predictors()];
        if !self.predictors.is_empty() {
            let factor = cholesky(self.gram(scan).as_ref())?;
            let solution = factor.solve(Mat::from_fn(self.predictors.len(), 1, |place, _| scan.cross[(self.predictors[place], 0)]));
            for (place, &predictor) in self.predictors.iter().enumerate() {
                slopes[predictor] = solution[(place, 0)] * scan.coordinates.scale[predictor];
            }
        }
        Some(Start { level: 0.0, slopes })
    }

    /// Gram matrix of the varying predictors.
    fn gram(&self, scan: &Scan) -> Mat<f64> {
        let size = self.predictors.len();
        Mat::from_fn(size, size, |i, j| scan.gram[(self.predictors[i], self.predictors[j])])
    }
}

/// The factor of a matrix that is well enough conditioned to be trusted.
fn cholesky(matrix: MatRef<'_, f64>) -> Option<Llt<f64>> {
    let factor = Llt::new(matrix, Side::Lower).ok()?;
    let lower = factor.L();
    (0..matrix.nrows()).all(|place| lower[(place, place)] > INDEPENDENT * matrix[(place, place)].sqrt()).then_some(factor)
}

/// What a round solves with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Curvature {
    /// X̃ᵀdiag(uw)X̃: reweighted least squares.
    Weights,
    /// X̃ᵀdiag(uψ′)X̃: Newton.
    Slopes,
    /// That of the round before.
    Kept,
}

struct Descent<'a> {
    coordinates: &'a Coordinates,
    /// Those that vary.
    predictors: &'a [usize],
    robust: &'a Robust,
    rounds: usize,
    converged: bool,
}

/// One thread's share of a round.
struct Part {
    buffer: Vec<f64>,
    scaled: Vec<f64>,
    /// u·w·r of each row, and its curvature.
    pull: Vec<f64>,
    curvature: Vec<f64>,
    gradient: Vec<f64>,
    gram: Mat<f64>,
}

impl Descent<'_> {
    /// Rounds with the Gram matrix; false where it no longer serves.
    fn on_gram(&mut self, source: &mut dyn RowSource, rows: &mut Rows, start: Start) -> Result<bool, Error> {
        let Start { mut level, mut slopes } = start;
        rows.measure(source, self.coordinates, level, &slopes)?;
        // Newton's method is trusted where a reweighted step is this small against the scale.
        let near = match self.robust.loss {
            Loss::Huber { .. } => 0.1,
            Loss::Bisquare { .. } => 0.02,
        };
        let ones = usize::from(self.coordinates.intercept);
        let mut curvature = Curvature::Weights;
        let mut factor: Option<Llt<f64>> = None;
        let mut last = f64::INFINITY;
        let mut strikes = 0;
        while self.rounds < self.robust.rounds {
            if rows.scale == 0.0 {
                self.converged = true;
                break;
            }
            self.rounds += 1;
            let (gram, gradient) = self.derivatives(source, rows, curvature)?;
            if let Some(gram) = gram {
                factor = cholesky(gram.as_ref());
            }
            let Some(solver) = &factor else {
                if curvature == Curvature::Weights {
                    return Ok(false);
                }
                (curvature, strikes) = (Curvature::Weights, 2);
                continue;
            };
            let step = solver.solve(gradient);
            let size = step.col(0).iter().fold(0.0_f64, |size, value| size.max(value.abs()));
            if !size.is_finite() {
                return Err(Error::Overflow);
            }
            if curvature != Curvature::Weights && size > 2.0 * last {
                (curvature, strikes) = (Curvature::Weights, strikes + 1);
                continue;
            }
            if ones == 1 {
                level += step[(0, 0)];
            }
            let mut effect = level.abs();
            for (place, &predictor) in self.predictors.iter().enumerate() {
                let scale = self.coordinates.scale[predictor];
                slopes[predictor] += step[(ones + place, 0)] * scale;
                effect = effect.max((slopes[predictor] / scale).abs());
            }
            let before = rows.scale;
            rows.measure(source, self.coordinates, level, &slopes)?;
            let moved = size.max((rows.scale - before).abs());
            if moved <= (self.robust.tolerance * rows.scale).max(4.0 * f64::EPSILON * effect) {
                self.converged = true;
                break;
            }
            let rate = moved / last;
            last = moved;
            curvature = match curvature {
                Curvature::Weights if strikes < 2 && size <= near * rows.scale => Curvature::Slopes,
                Curvature::Weights => Curvature::Weights,
                Curvature::Slopes if rate > 0.9 => {
                    strikes += 1;
                    if strikes < 2 { Curvature::Slopes } else { Curvature::Weights }
                }
                Curvature::Slopes => Curvature::Kept,
                Curvature::Kept if rate <= 0.1 => Curvature::Kept,
                Curvature::Kept => Curvature::Slopes,
            };
        }
        Ok(true)
    }

    /// Gram matrix with the curvature asked for, and X̃ᵀ(u·w·r), in the order (1, predictors that vary).
    fn derivatives(&self, source: &mut dyn RowSource, rows: &Rows, curvature: Curvature) -> Result<(Option<Mat<f64>>, Mat<f64>), Error> {
        /// Cells of a buffer that stay in a core's own cache.
        const BUFFER_CELLS: usize = 16 * 1024;
        let ones = usize::from(self.coordinates.intercept);
        let width = ones + self.predictors.len();
        let formed = curvature != Curvature::Kept;
        let mut parts: Vec<Part> = (0..part_count())
            .map(|_| Part {
                buffer: Vec::new(),
                scaled: Vec::new(),
                pull: Vec::new(),
                curvature: Vec::new(),
                gradient: vec![0.0; width],
                gram: if formed { Mat::zeros(width, width) } else { Mat::new() },
            })
            .collect();
        let at_once = (BUFFER_CELLS / (2 * width.max(1))).max(48).next_multiple_of(16);
        let arch = pulp::Arch::new();
        let (loss, inverse_scale) = (self.robust.loss, rows.scale.recip());
        let mut first = 0;
        source.pass(&mut |block| {
            let residuals = rows.residuals.get(first..first + block.rows()).ok_or_else(changed)?;
            first += block.rows();
            in_parts(block, width, &mut parts, |part, range| {
                let mut begin = range.start;
                while begin < range.end {
                    let end = range.end.min(begin + at_once);
                    let residuals = &residuals[begin..end];
                    let (predictors, coordinates) = (self.predictors, self.coordinates);
                    arch.dispatch(Share {
                        part,
                        block,
                        range: begin..end,
                        residuals,
                        coordinates,
                        predictors,
                        curvature,
                        loss,
                        inverse_scale,
                    });
                    if formed {
                        let count = end - begin;
                        let rows = MatRef::from_column_major_slice(&part.buffer[..count * width], count, width);
                        let scaled = MatRef::from_column_major_slice(&part.scaled[..count * width], count, width);
                        triangular::matmul(
                            part.gram.as_mut(),
                            BlockStructure::TriangularLower,
                            Accum::Add,
                            scaled.transpose(),
                            BlockStructure::Rectangular,
                            rows,
                            BlockStructure::Rectangular,
                            1.0,
                            Par::Seq,
                        );
                    }
                    begin = end;
                }
            });
            Ok(())
        })?;
        let mut gradient = Mat::zeros(width, 1);
        let mut gram = Mat::zeros(if formed { width } else { 0 }, if formed { width } else { 0 });
        for part in &parts {
            for (place, value) in part.gradient.iter().enumerate() {
                gradient[(place, 0)] += value;
            }
            gram += &part.gram;
        }
        mirror(&mut gram);
        Ok((formed.then_some(gram), gradient))
    }

    /// Rounds of [`fit`], for designs that need its care.
    fn through_fits(&mut self, source: &mut dyn RowSource, rows: &mut Rows, first: &Fit) -> Result<(), Error> {
        let place = |fit: &Fit| {
            let slopes: Vec<f64> = fit.information.coefficients().col(0).iter().copied().collect();
            // `fit` has centres of its own, by its own weights.
            let origin = fit.information.origin();
            let moved: f64 = (0..slopes.len()).map(|own| (self.coordinates.centre[own] - origin.centre[own]) * slopes[own]).sum();
            let level =
                if self.coordinates.intercept { fit.information.baseline(0) - self.coordinates.response_centre[0] + moved } else { 0.0 };
            (level, slopes)
        };
        (self.rounds, self.converged) = (0, false);
        let (level, slopes) = place(first);
        rows.measure(source, self.coordinates, level, &slopes)?;
        let mut before = Vec::new();
        let mut factors = Vec::new();
        while self.rounds < self.robust.rounds {
            if rows.scale == 0.0 {
                self.converged = true;
                break;
            }
            self.rounds += 1;
            let scale = rows.scale;
            factors.clear();
            factors.extend(rows.residuals.iter().map(|residual| self.robust.loss.weight(residual / scale)));
            before.clone_from(&rows.residuals);
            let next = reweighted(source, &factors, self.coordinates.intercept)?;
            let (level, slopes) = place(&next);
            rows.measure(source, self.coordinates, level, &slopes)?;
            let moved =
                before.iter().zip(&rows.residuals).fold((rows.scale - scale).abs(), |moved, (before, now)| moved.max((before - now).abs()));
            if moved <= (self.robust.tolerance * rows.scale).max(rows.floor) {
                self.converged = true;
                break;
            }
        }
        Ok(())
    }
}

/// Some residuals, to be compiled for the widest registers: a type, because a closure of this size is not always inlined there.
struct Fill<'a> {
    coordinates: &'a Coordinates,
    block: &'a Block<'a>,
    level: f64,
    slopes: &'a [f64],
    begin: usize,
    out: &'a mut [f64],
}

impl pulp::NullaryFnOnce for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { coordinates, block, level, slopes, begin, out } = self;
        let end = begin + out.len();
        // The level is taken off after the centre: near the plane the difference then is exact.
        let centre = coordinates.response_centre[0];
        for (out, value) in out.iter_mut().zip(&column(block.response, 0)[begin..end]) {
            *out = (value - centre) - level;
        }
        for (predictor, slope) in slopes.iter().enumerate() {
            if *slope != 0.0 {
                let centre = coordinates.centre[predictor];
                for (out, value) in out.iter_mut().zip(&column(block.design, predictor)[begin..end]) {
                    *out = (value - centre).mul_add(-slope, *out);
                }
            }
        }
    }
}

/// What some rows add to the gradient, and their share of the buffers, compiled in the same way.
struct Share<'a> {
    part: &'a mut Part,
    block: &'a Block<'a>,
    range: std::ops::Range<usize>,
    residuals: &'a [f64],
    coordinates: &'a Coordinates,
    predictors: &'a [usize],
    curvature: Curvature,
    loss: Loss,
    inverse_scale: f64,
}

impl pulp::NullaryFnOnce for Share<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { part, block, range, residuals, coordinates, predictors, curvature, loss, inverse_scale } = self;
        let rows = range.len();
        let ones = usize::from(coordinates.intercept);
        let width = ones + predictors.len();
        part.pull.resize(rows, 0.0);
        part.curvature.resize(rows, 0.0);
        let (pull, bend) = (&mut part.pull[..rows], &mut part.curvature[..rows]);
        for ((pull, bend), residual) in pull.iter_mut().zip(bend.iter_mut()).zip(residuals) {
            let z = residual * inverse_scale;
            let weight = loss.weight(z);
            *pull = weight * residual;
            *bend = if curvature == Curvature::Weights { weight } else { loss.slope(z) };
        }
        if let Some(weights) = block.weights {
            for ((pull, bend), weight) in pull.iter_mut().zip(bend.iter_mut()).zip(&weights[range.clone()]) {
                *pull *= weight;
                *bend *= weight;
            }
        }
        let formed = curvature != Curvature::Kept;
        if formed {
            part.buffer.resize(rows * width, 0.0);
            part.scaled.resize(rows * width, 0.0);
        }
        if ones == 1 {
            part.gradient[0] += pull.iter().sum::<f64>();
            if formed {
                part.buffer[..rows].fill(1.0);
                part.scaled[..rows].copy_from_slice(bend);
            }
        }
        for (place, &predictor) in predictors.iter().enumerate() {
            let values = &column(block.design, predictor)[range.clone()];
            let (centre, scale) = (coordinates.centre[predictor], coordinates.scale[predictor]);
            part.gradient[ones + place] += scale * centred_dot(values, centre, pull);
            if formed {
                let cells = (ones + place) * rows..(ones + place + 1) * rows;
                let (buffer, scaled) = (&mut part.buffer[cells.clone()], &mut part.scaled[cells]);
                for (((buffer, scaled), value), bend) in buffer.iter_mut().zip(scaled).zip(values).zip(bend.iter()) {
                    let own = (value - centre) * scale;
                    *buffer = own;
                    *scaled = own * bend;
                }
            }
        }
    }
}

/// Σ (x − c)v in independent partial sums.
#[inline(always)]
fn centred_dot(values: &[f64], centre: f64, by: &[f64]) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0.0; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    let (by_whole, by_rest) = by.as_chunks::<LANES>();
    for (values, by) in whole.iter().zip(by_whole) {
        for lane in 0..LANES {
            sums[lane] = (values[lane] - centre).mul_add(by[lane], sums[lane]);
        }
    }
    let tail: f64 = rest.iter().zip(by_rest).map(|(value, by)| (value - centre) * by).sum();
    sums.iter().sum::<f64>() + tail
}

/// factor·(XᵀUX)⁻¹ of the raw coefficients, the intercept first; the pseudo-inverse of the slopes' part where it is deficient.
fn covariance(scan: &Scan, system: &System, triangle: Option<&Mat<f64>>, rank: usize, factor: f64) -> Mat<f64> {
    let coordinates = &scan.coordinates;
    let (predictors, ones) = (coordinates.predictors(), usize::from(coordinates.intercept));
    let mut slopes = Mat::<f64>::zeros(predictors, predictors);
    let mut centre = coordinates.centre.clone();
    match triangle {
        None => {
            if let Some(factored) = cholesky(system.gram(scan).as_ref()) {
                let inverse = factored.inverse();
                for (j, &column) in system.predictors.iter().enumerate() {
                    for (i, &row) in system.predictors.iter().enumerate() {
                        slopes[(row, column)] = inverse[(i, j)] * coordinates.scale[row] * coordinates.scale[column];
                    }
                }
            }
        }
        Some(triangle) => {
            let kept = rank.saturating_sub(ones).min(predictors);
            let below = triangle.nrows().saturating_sub(ones);
            if ones == 1 && triangle.nrows() > 0 && triangle[(0, 0)] != 0.0 {
                for (predictor, centre) in centre.iter_mut().enumerate() {
                    *centre += triangle[(0, 1 + predictor)] / triangle[(0, 0)] / coordinates.scale[predictor];
                }
            }
            let varies = |predictor: usize| if scan.constant[predictor] { 0.0 } else { 1.0 };
            let deficient = kept < predictors;
            // Without deficiency the scaled columns are the better ones to invert; with it, the smallest norm is that of the raw ones.
            let unit = |predictor: usize| if deficient { coordinates.scale[predictor] } else { 1.0 };
            let tail = Mat::from_fn(below, predictors, |row, column| triangle[(ones + row, ones + column)] * varies(column) / unit(column));
            if let Ok(svd) = Svd::new_thin(tail.as_ref()) {
                let (values, vectors) = (svd.S().column_vector(), svd.V());
                let roots = Mat::from_fn(predictors, kept.min(values.nrows()), |row, place| {
                    vectors[(row, place)] / values[place] * coordinates.scale[row] / unit(row)
                });
                slopes = &roots * roots.transpose();
            } else {
                slopes.fill(f64::NAN);
            }
        }
    }
    let mut covariance = Mat::zeros(ones + predictors, ones + predictors);
    covariance.submatrix_mut(ones, ones, predictors, predictors).copy_from(&slopes);
    if ones == 1 {
        let mut level = scan.weight.recip();
        for row in 0..predictors {
            let along: f64 = (0..predictors).map(|column| slopes[(row, column)] * centre[column]).sum();
            level += along * centre[row];
            covariance[(0, 1 + row)] = -along;
            covariance[(1 + row, 0)] = -along;
        }
        covariance[(0, 0)] = level;
    }
    for column in 0..covariance.ncols() {
        for row in 0..covariance.nrows() {
            covariance[(row, column)] *= factor;
        }
    }
    covariance
}
