//! Ordinary, weighted and ridge least squares over rows that are visited again and again and never held: minimise
//! Σ wᵢ(yᵢ − α − xᵢᵀβ)² + penalty·‖β − β₀‖².
//!
//! 1. One pass forms the Gram matrix (`gram`), and its Cholesky factor is the preconditioner if the condition estimate allows it;
//!    otherwise a second pass factors the rows themselves (`qr`), with column pivoting.
//! 2. A whitening pass (`refine`) measures how good the preconditioner is, gives (XᵀX)⁻¹, the leverages, and the numerical rank. A large
//!    problem whose Gram matrix leaves nothing to be measured is spared it: one sweep (`sweep`) refines, and finds the largest leverage.
//! 3. Refinement until a step no longer changes the coefficients; in twice the working precision wherever ordinary precision would cost
//!    digits, which on small problems is everywhere.
//!
//! A column is *dependent* when its distance from the span of the others is of the size of rounding: the relative distance is below
//! 2u√m for the unit roundoff u. Dependent columns are fitted on the others to twice the precision, which gives the null space N, and the
//! coefficients are then those of smallest norm, β − N(NᵀN)⁻¹Nᵀβ (Golub & Van Loan, *Matrix Computations*, 4th ed., §5.5).

use faer::linalg::solvers::{Llt, Solve as _, Svd};
use faer::{Mat, MatRef, Side};

use super::Error;
use super::coordinates::{Coordinates, SystemColumn};
use super::double_double::Double;
use super::gram::{self, Scan};
use super::inference::f_p;
use super::problem::{RowSource, Solver, Specification};
use super::qr;
use super::recursive::{Information, Origin};
use super::refine::{self, DoubleMatrix, Outcome, Task};
use super::sweep::{self, Leverage, Sweep};

/// Unit roundoff.
const ROUNDOFF: f64 = f64::EPSILON / 2.0;
/// Rows × columns² up to which every pass is made in twice the precision: a fraction of a second.
const PRECISE_WORK: f64 = 1e7;
/// Scaled condition up to which the Gram matrix is a good preconditioner: the first error of refinement is its square times u.
const GRAM_CONDITION: f64 = 1e5;
/// Scaled condition up to which ordinary precision throughout leaves 13 digits.
const PLAIN_CONDITION: f64 = 32.0;
/// Squared scaled condition, times what the shift of the first pass costs, up to which the Gram matrix itself gives (XᵀX)⁻¹ to 13 digits.
const SOUND: f64 = 100.0;
/// Relative size below which a result of twice the precision is its rounding: far below what any datum says, far above 2⁻¹⁰⁶.
const NOTHING: f64 = 1e-26;
/// Steps of refinement at the most; problems that need more than four are at the end of what floats can say.
const STEPS: usize = 12;

/// A fitted problem of n rows, p predictors and q responses.
#[derive(Clone, Debug)]
pub struct Fit {
    /// Coefficients and what is needed to answer rows and to learn more of them.
    pub information: Information,
    /// Figures of each response.
    pub statistics: Vec<Statistics>,
    /// Rows of positive weight.
    pub observations: u64,
    /// Σw.
    pub weight: f64,
    /// Σ log w.
    pub log_weight: f64,
    /// Numerical rank of the design, the intercept counted.
    pub rank: usize,
    /// n − effective parameters.
    pub degrees_of_freedom: f64,
    /// Trace of the hat matrix: the rank without a penalty.
    pub effective_parameters: f64,
    /// 2-norm condition number of the design as given, the column of ones and weights included; infinite when rank deficient.
    pub condition_number: f64,
    /// Decimal digits of the worst coefficient that are right, estimated.
    pub digits: f64,
    /// Predictors that do not vary (with an intercept), or are zero (without).
    pub constant: Vec<usize>,
    /// Groups of predictors that are linear combinations of one another.
    pub collinear: Vec<Vec<usize>>,
    /// Whether the residuals of a response are nothing but rounding.
    pub exact_fit: Vec<bool>,
    /// Variance inflation factor of each predictor; infinite for dependent ones.
    pub variance_inflation: Vec<f64>,
    /// The solver that was used.
    pub solver: Solver,
}

/// Figures of one response.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Σwr².
    pub residual_sum_of_squares: f64,
    /// Σw(y − ȳ)² with an intercept, Σwy² without.
    pub total_sum_of_squares: f64,
    /// √(RSS / degrees of freedom), in the response's units.
    pub residual_std: f64,
    /// 1 − RSS/TSS.
    pub r2: f64,
    /// 1 − (1 − R²)(n − 1)/(degrees of freedom), n instead of n − 1 without an intercept.
    pub adjusted_r2: f64,
    /// F statistic of all predictors together.
    pub f: f64,
    /// Its p-value.
    pub f_p: f64,
    /// 2·rank − 2·log-likelihood.
    pub aic: f64,
    /// rank·ln n − 2·log-likelihood.
    pub bic: f64,
    /// Gaussian log-likelihood at the maximum-likelihood variance RSS/n.
    pub log_likelihood: f64,
}

/// Fits.
///
/// # Errors
/// See [`Error`]; rank deficiency is not one.
pub fn fit(source: &mut dyn RowSource, specification: &Specification<'_>) -> Result<Fit, Error> {
    let scan = gram::scan(source, specification.intercept)?;
    // A penalty on a column of almost nothing: in the column's own units it leaves the range of floats.
    if scan.coordinates.scale.iter().any(|scale| !(specification.penalty * scale * scale).is_finite()) {
        return Err(Error::Overflow);
    }
    let start = Preconditioner::choose(source, &scan, specification)?;
    let solution = solve(source, &scan, specification, start)?;
    conclude(&scan, specification, solution, None)
}

/// Coefficients that another estimator found.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// p×q, raw.
    pub slopes: MatRef<'a, f64>,
    /// q; ignored without an intercept.
    pub intercepts: &'a [f64],
    /// Predictors that take part; the others are held at their value.
    pub active: &'a [bool],
    /// Parameters the estimator is to be charged with, the intercept counted.
    pub effective_parameters: f64,
}

/// The fit whose coefficients are given, its figures and its information those of the active predictors under `specification`.
///
/// # Errors
/// As [`fit`].
pub fn around(source: &mut dyn RowSource, specification: &Specification<'_>, given: &Given<'_>) -> Result<Fit, Error> {
    let mut scan = gram::scan(source, specification.intercept)?;
    scan.held = given.active.iter().map(|active| !active).collect();
    let start = Preconditioner::choose(source, &scan, specification)?;
    let mut solution = solve(source, &scan, specification, start)?;
    // Residuals at the given coefficients, over all columns: a held one need not be zero.
    let coordinates = &scan.coordinates;
    let order: Vec<usize> = (0..coordinates.width()).collect();
    let mut coefficients = DoubleMatrix::zeros(order.len(), coordinates.responses());
    let level = given_level(coordinates, given);
    for response in 0..coordinates.responses() {
        for &system in &order {
            let value = match coordinates.column(system) {
                SystemColumn::Ones => level[response] - Double::from(coordinates.response_centre[response]),
                SystemColumn::Predictor(predictor) => Double::from(given.slopes[(predictor, response)] / coordinates.scale[predictor]),
            };
            coefficients.set(system, response, value);
        }
    }
    let task = Task {
        coordinates,
        order: &order,
        dependent: &[],
        whiten: None,
        coefficients: &coefficients,
        precise_whitening: false,
        precise_residuals: true,
    };
    let outcome = refine::pass(source, &task)?;
    solution.outcome.residual_squares = outcome.residual_squares;
    solution.precise = true;
    conclude(&scan, specification, solution, Some(given))
}

/// The prediction at the centre: intercept + Σcβ.
fn given_level(coordinates: &Coordinates, given: &Given<'_>) -> Vec<Double> {
    (0..coordinates.responses())
        .map(|response| {
            let mut level = Double::ZERO;
            if coordinates.intercept {
                level = Double::from(given.intercepts[response]);
                for predictor in 0..coordinates.predictors() {
                    level += Double::product(coordinates.centre[predictor], given.slopes[(predictor, response)]);
                }
            }
            level
        })
        .collect()
}

/// An order of columns and an approximate triangular factor of them.
struct Preconditioner {
    solver: Solver,
    /// Independent columns of the system, in order.
    order: Vec<usize>,
    /// Columns that depend on them.
    dependent: Vec<usize>,
    /// R, k×k.
    triangle: Mat<f64>,
    /// T = R⁻¹.
    inverse: Mat<f64>,
    /// Estimate of the condition of R.
    condition: f64,
    /// First coefficients, k×q, if any are known.
    first: Option<Mat<f64>>,
}

impl Preconditioner {
    fn choose(source: &mut dyn RowSource, scan: &Scan, specification: &Specification<'_>) -> Result<Self, Error> {
        let coordinates = &scan.coordinates;
        let varying: Vec<usize> = (0..coordinates.predictors())
            .filter(|place| !scan.constant[*place] && !scan.held[*place])
            .map(|place| coordinates.place(place))
            .collect();
        let ones = coordinates.intercept.then_some(0);
        let columns: Vec<usize> = ones.into_iter().chain(varying).collect();
        if matches!(specification.solver, Solver::Auto | Solver::Cholesky) {
            let limit = if specification.solver == Solver::Auto { GRAM_CONDITION } else { 1e7 };
            match Self::from_gram(scan, specification, &columns) {
                Some(found) if found.condition <= limit => return Ok(found),
                _ if specification.solver == Solver::Cholesky => {
                    return Err(Error::Solver("the problem is too ill-conditioned for `cholesky`: ask for `auto`, `qr` or `exact`"));
                }
                _ => {}
            }
        }
        Self::from_rows(source, coordinates, specification, &columns)
    }

    /// By Cholesky factorisation of the Gram matrix; `None` where it is not positive definite.
    fn from_gram(scan: &Scan, specification: &Specification<'_>, columns: &[usize]) -> Option<Self> {
        let coordinates = &scan.coordinates;
        let penalty = specification.penalty;
        #[allow(clippy::cast_possible_truncation)]
        if penalty == 0.0 && columns.len() as u64 > scan.rows {
            return None;
        }
        let ones = usize::from(coordinates.intercept);
        let slopes: Vec<usize> = columns.iter().filter_map(|system| coordinates.column(*system).predictor()).collect();
        let size = slopes.len();
        let gram = penalised_gram(scan, penalty, &slopes);
        let mut triangle = Mat::zeros(columns.len(), columns.len());
        if ones == 1 {
            triangle[(0, 0)] = scan.weight.sqrt();
        }
        if size > 0 {
            let llt = Llt::new(gram.as_ref(), Side::Lower).ok()?;
            let lower = llt.L();
            for column in 0..size {
                for row in 0..=column {
                    triangle[(ones + row, ones + column)] = lower[(column, row)];
                }
            }
        }
        let diagonal = |place: usize| triangle[(place, place)];
        if (ones..columns.len()).any(|place| !(diagonal(place) > 1e-7 * gram[(place - ones, place - ones)].sqrt())) {
            return None;
        }
        let inverse = inverse_of(&triangle);
        let condition = condition(&triangle, &inverse);
        let responses = coordinates.responses();
        let mut first = Mat::zeros(columns.len(), responses);
        let right = Mat::from_fn(size, responses, |i, j| {
            let scale = coordinates.scale[slopes[i]];
            scan.cross[(slopes[i], j)] + specification.prior.map_or(0.0, |prior| penalty * scale * prior[(slopes[i], j)])
        });
        let slopes_inverse = inverse.submatrix(ones, ones, size, size);
        let solved = slopes_inverse * (slopes_inverse.transpose() * right);
        first.submatrix_mut(ones, 0, size, responses).copy_from(&solved);
        Some(Self {
            solver: Solver::Cholesky,
            order: columns.to_vec(),
            dependent: Vec::new(),
            triangle,
            inverse,
            condition,
            first: Some(first),
        })
    }

    /// By QR of the rows.
    fn from_rows(
        source: &mut dyn RowSource,
        coordinates: &Coordinates,
        specification: &Specification<'_>,
        columns: &[usize],
    ) -> Result<Self, Error> {
        let triangle = qr::triangle(source, coordinates, columns, specification.penalty)?;
        let (mut triangle, places) = qr::pivoted(triangle.as_ref(), usize::from(coordinates.intercept));
        let mut size = triangle.nrows();
        if specification.solver == Solver::Svd && size > 0 {
            let square = triangle.submatrix(0, 0, size, size);
            let svd = Svd::new(square).map_err(|_| Error::Solver("the singular value decomposition did not converge: ask for `auto`"))?;
            let values = svd.S().column_vector();
            let tolerance = rank_tolerance(size) * values[0];
            size = (0..size).filter(|place| values[*place] > tolerance).count();
        }
        let order = places[..size].iter().map(|place| columns[*place]).collect();
        let dependent = places[size..].iter().map(|place| columns[*place]).collect();
        triangle = triangle.submatrix(0, 0, size, size).to_owned();
        let solver = if specification.solver == Solver::Auto { Solver::Qr } else { specification.solver };
        Ok(Self::of_triangle(solver, order, dependent, triangle))
    }

    fn of_triangle(solver: Solver, order: Vec<usize>, dependent: Vec<usize>, mut triangle: Mat<f64>) -> Self {
        let size = triangle.nrows();
        let largest = (0..size).map(|place| triangle[(place, place)].abs()).fold(0.0, f64::max);
        // A pivot that is nothing but rounding is lifted to rounding's size, so that T is finite; whitening tells whether the column counts.
        let floor = ROUNDOFF * largest;
        for place in 0..size {
            if triangle[(place, place)].abs() < floor {
                triangle[(place, place)] = floor.max(f64::MIN_POSITIVE);
            }
        }
        let inverse = inverse_of(&triangle);
        let condition = condition(&triangle, &inverse);
        Self { solver, order, dependent, triangle, inverse, condition, first: None }
    }

    /// The same without the columns at some places, which depend on those before them.
    fn without(&self, places: &[usize]) -> Self {
        let kept: Vec<usize> = (0..self.order.len()).filter(|place| !places.contains(place)).collect();
        let columns = Mat::from_fn(self.triangle.nrows(), kept.len(), |row, column| self.triangle[(row, kept[column])]);
        let order = kept.iter().map(|place| self.order[*place]).collect();
        let mut dependent = self.dependent.clone();
        dependent.extend(places.iter().map(|place| self.order[*place]));
        Self::of_triangle(self.solver, order, dependent, qr::factor(columns.as_ref()))
    }
}

/// Gram matrix of some predictors, their penalty added.
fn penalised_gram(scan: &Scan, penalty: f64, predictors: &[usize]) -> Mat<f64> {
    Mat::from_fn(predictors.len(), predictors.len(), |i, j| {
        let own = if i == j { penalty * scan.coordinates.scale[predictors[i]].powi(2) } else { 0.0 };
        scan.gram[(predictors[i], predictors[j])] + own
    })
}

fn inverse_of(triangle: &Mat<f64>) -> Mat<f64> {
    let size = triangle.nrows();
    let mut inverse = Mat::zeros(size, size);
    if size > 0 {
        faer::linalg::triangular_inverse::invert_upper_triangular(inverse.as_mut(), triangle.as_ref(), faer::get_global_parallelism());
    }
    inverse
}

/// Relative distance from the others below which a column of m is dependent on them.
fn rank_tolerance(size: usize) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    {
        2.0 * ROUNDOFF * (size as f64).sqrt()
    }
}

/// 2-norm condition number of R.
fn condition(triangle: &Mat<f64>, inverse: &Mat<f64>) -> f64 {
    spectral_norm(triangle.as_ref(), |_| {}, |_| {}) * spectral_norm(inverse.transpose(), |_| {}, |_| {})
}

/// 2-norm of AB by the Lanczos process on (AB)ᵀAB, from below, and close: its largest Ritz value (Golub & Van Loan, *Matrix Computations*,
/// section 10.1). `before` multiplies by B, `after` by its transpose. 1 where there is nothing.
pub(super) fn spectral_norm(matrix: MatRef<'_, f64>, before: impl Fn(&mut [f64]), after: impl Fn(&mut [f64])) -> f64 {
    let size = matrix.ncols();
    if size == 0 {
        return 1.0;
    }
    let steps = if size <= 200 { size.min(40) } else { 10 };
    let norm = |vector: &[f64]| vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    // Any vector that is not orthogonal to the answer; a low-discrepancy sequence is no column of anybody's design.
    #[allow(clippy::cast_precision_loss)]
    let mut vector: Vec<f64> = (0..size).map(|place| 0.5 + (place as f64 * 0.618_033_988_749_895).fract()).collect();
    let mut known: Vec<Vec<f64>> = Vec::with_capacity(steps);
    let (mut diagonal, mut beside) = (Vec::with_capacity(steps), Vec::with_capacity(steps));
    let mut length = norm(&vector);
    for step in 0..steps {
        if !(length > 0.0 && length.is_finite()) {
            return f64::INFINITY;
        }
        vector.iter_mut().for_each(|x| *x /= length);
        known.push(vector.clone());
        before(&mut vector);
        let product = matrix * faer::ColRef::from_slice(&vector);
        let back = matrix.transpose() * &product;
        vector.iter_mut().zip(back.iter()).for_each(|(x, back)| *x = *back);
        after(&mut vector);
        diagonal.push(vector.iter().zip(&known[step]).map(|(x, y)| x * y).sum::<f64>());
        // Against all that went before, twice: few steps, and no ghosts.
        for other in known.iter().chain(&known) {
            let along: f64 = vector.iter().zip(other).map(|(x, y)| x * y).sum();
            vector.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
        }
        length = norm(&vector);
        // What is left is rounding: the vectors span all that the first one has a part in.
        if length <= 1e-14 * diagonal.iter().fold(0.0, |largest: f64, value| largest.max(*value)) {
            break;
        }
        beside.push(length);
    }
    let reached = diagonal.len();
    let ritz = Mat::from_fn(reached, reached, |row, column| match row.abs_diff(column) {
        0 => diagonal[row],
        1 => beside[row.min(column)],
        _ => 0.0,
    });
    if !ritz.norm_max().is_finite() {
        return f64::INFINITY;
    }
    let largest = ritz.self_adjoint_eigenvalues(Side::Lower).ok().and_then(|values| values.last().copied());
    largest.filter(|value| *value > 0.0).map_or(f64::INFINITY, f64::sqrt)
}

/// L of G = LLᵀ, lower triangular: what whitening found to be missing from R, which is LᵀR then.
#[derive(Clone)]
enum Missing {
    /// L is the identity.
    Nothing,
    Factor(Mat<f64>),
}

impl Missing {
    /// A ← L⁻¹A.
    fn solve(&self, matrix: faer::MatMut<'_, f64>) {
        if let Self::Factor(lower) = self
            && lower.nrows() > 0
        {
            faer::linalg::triangular_solve::solve_lower_triangular_in_place(lower.as_ref(), matrix, faer::Par::Seq);
        }
    }

    /// A ← L⁻ᵀA.
    fn solve_transposed(&self, matrix: faer::MatMut<'_, f64>) {
        if let Self::Factor(lower) = self
            && lower.nrows() > 0
        {
            faer::linalg::triangular_solve::solve_upper_triangular_in_place(lower.transpose(), matrix, faer::Par::Seq);
        }
    }

    /// T·L⁻ᵀ for upper triangular T; nothing where that is T.
    fn inverse_of(&self, inverse: &Mat<f64>) -> Option<Mat<f64>> {
        let Self::Factor(_) = self else { return None };
        // (T·L⁻ᵀ)ᵀ = L⁻¹·Tᵀ.
        let mut result = inverse.transpose().to_owned();
        self.solve(result.as_mut());
        Some(result.transpose().to_owned())
    }

    /// LᵀR.
    fn applied_to(&self, triangle: Mat<f64>) -> Mat<f64> {
        match self {
            Self::Nothing => triangle,
            Self::Factor(lower) => lower.transpose() * triangle,
        }
    }
}

/// A solved problem, before its figures.
struct Solution {
    basis: Preconditioner,
    missing: Missing,
    /// k×(q + d).
    coefficients: DoubleMatrix,
    outcome: Outcome,
    largest_leverage: f64,
    /// Relative error of the worst coefficient, estimated.
    error: f64,
    precise: bool,
}

fn solve(source: &mut dyn RowSource, scan: &Scan, specification: &Specification<'_>, mut basis: Preconditioner) -> Result<Solution, Error> {
    let coordinates = &scan.coordinates;
    let responses = coordinates.responses();
    #[allow(clippy::cast_precision_loss)]
    let work = |columns: usize| scan.rows as f64 * (columns as f64).powi(2);
    'basis: loop {
        let size = basis.order.len();
        let exact = specification.solver == Solver::Exact;
        let small = work(size) <= PRECISE_WORK;
        // A rank that is in doubt is decided in twice the precision, whatever it costs.
        let doubtful = basis.solver != Solver::Cholesky && basis.condition > 1e9;
        let precise_whitening = exact || small || doubtful || !basis.dependent.is_empty();
        let mut precise_residuals = precise_whitening || basis.condition > PLAIN_CONDITION;
        let sound = basis.solver == Solver::Cholesky && !precise_residuals && basis.condition.powi(2) * scan.cancellation <= SOUND;
        let swept = (sound && responses <= sweep::RESPONSES).then(|| {
            let slopes: Vec<usize> = basis.order.iter().filter_map(|system| coordinates.column(*system).predictor()).collect();
            let ones = size - slopes.len();
            let inverse = basis.inverse.submatrix(ones, ones, slopes.len(), slopes.len());
            Leverage::of(&penalised_gram(scan, specification.penalty, &slopes), inverse, scan.rows)
        });
        let all = responses + basis.dependent.len();
        let mut coefficients = DoubleMatrix::zeros(size, all);
        if let Some(first) = &basis.first {
            for response in 0..responses {
                for place in 0..size {
                    coefficients.set(place, response, Double::from(first[(place, response)]));
                }
            }
        }
        let mut known = swept.as_ref().map(|_| Missing::Nothing);
        let mut whitened = 0;
        let mut largest_leverage = 0.0;
        let mut last = f64::INFINITY;
        let mut step = 0;
        loop {
            let task = Task {
                coordinates,
                order: &basis.order,
                dependent: &basis.dependent,
                whiten: known.is_none().then_some(basis.inverse.as_ref()),
                coefficients: &coefficients,
                precise_whitening: precise_whitening && known.is_none(),
                precise_residuals,
            };
            let mut outcome = match &swept {
                Some(leverage) if !precise_residuals => {
                    let (order, weight) = (&basis.order, scan.weight);
                    let outcome = sweep::sweep(source, &Sweep { coordinates, order, coefficients: &coefficients, weight, leverage })?;
                    largest_leverage = outcome.largest;
                    outcome
                }
                _ => refine::pass(source, &task)?,
            };
            if let Some(place) = outcome.residual_squares.iter().position(|square| !square.to_f64().is_finite()) {
                return Err(if outcome.raw_squares.get(place).is_some_and(|square| square.is_nan()) {
                    Error::NonFinite
                } else {
                    Error::Overflow
                });
            }
            if !(0..outcome.gram.ncols()).all(|place| outcome.gram[(place, place)].is_finite()) {
                return Err(Error::Overflow);
            }
            penalise(&mut outcome, &task, &basis.inverse, specification);
            let mut improve = false;
            let missing = match known.take() {
                Some(missing) => missing,
                None => {
                    let (factor, dependent) = cholesky(&outcome.gram, &basis.triangle);
                    if !dependent.is_empty() {
                        basis = basis.without(&dependent);
                        continue 'basis;
                    }
                    largest_leverage = outcome.largest;
                    whitened += 1;
                    improve = precise_whitening && whitened < 3 && departure(&outcome.gram) > 1e-9;
                    Missing::Factor(factor)
                }
            };
            let change = correct(&basis, &missing, &outcome, &mut coefficients, coordinates);
            let missing = if improve {
                // T ← T·L⁻ᵀ, R ← Lᵀ·R: whitened again in the next pass, G will be the identity.
                if let Some(inverse) = missing.inverse_of(&basis.inverse) {
                    basis.inverse = inverse;
                }
                basis.triangle = missing.applied_to(basis.triangle);
                Missing::Nothing
            } else {
                missing
            };
            let rate = (change / last).min(1.0);
            let error = if step == 0 { change } else { change * rate };
            let stalled = step > 0 && change > 0.5 * last;
            step += 1;
            last = change;
            let done = if precise_residuals {
                !improve && (change == 0.0 || (step > 1 && error < 0.25 * ROUNDOFF) || stalled || step >= STEPS)
            } else {
                // Residuals of no coefficients at all are the responses.
                basis.first.is_some() || step > 1
            };
            if !done {
                known = (!improve).then_some(missing);
                continue;
            }
            // Residuals that are lost in rounding are looked at again, in twice the precision.
            if !precise_residuals
                && (0..responses).any(|response| outcome.residual_squares[response].to_f64() < 1e-20 * outcome.raw_squares[response])
            {
                precise_residuals = true;
                known = Some(missing);
                continue;
            }
            let error = if precise_residuals { error } else { 2.0 * ROUNDOFF * basis.condition };
            return Ok(Solution { basis, missing, coefficients, outcome, largest_leverage, error, precise: precise_residuals });
        }
    }
}

/// Columns from which a product of square matrices is worth sharing out.
const WORTH_SHARING: usize = 256;

/// Adds what the penalty contributes to G and to the gradient.
fn penalise(outcome: &mut Outcome, task: &Task<'_>, inverse: &Mat<f64>, specification: &Specification<'_>) {
    let penalty = specification.penalty;
    if penalty == 0.0 {
        return;
    }
    let coordinates = task.coordinates;
    if task.whiten.is_some() {
        // Tᵀ·diag(λs²)·T.
        let own: Vec<f64> = task
            .order
            .iter()
            .map(|system| coordinates.column(*system).predictor().map_or(0.0, |predictor| penalty * coordinates.scale[predictor].powi(2)))
            .collect();
        let penalised = Mat::from_fn(inverse.nrows(), inverse.ncols(), |row, column| own[row] * inverse[(row, column)]);
        let parallel = if penalised.nrows() >= WORTH_SHARING { faer::get_global_parallelism() } else { faer::Par::Seq };
        faer::linalg::matmul::matmul(outcome.gram.as_mut(), faer::Accum::Add, inverse.transpose(), &penalised, 1.0, parallel);
    }
    for (place, &system) in task.order.iter().enumerate() {
        let SystemColumn::Predictor(predictor) = coordinates.column(system) else { continue };
        let own = penalty * coordinates.scale[predictor].powi(2);
        for response in 0..coordinates.responses() {
            // In the system's coordinates the prior is w₀/s; the division is exact.
            let prior = specification.prior.map_or(0.0, |prior| prior[(predictor, response)] / coordinates.scale[predictor]);
            let pulled = outcome.gradient.get(place, response) - (task.coefficients.get(place, response) - Double::from(prior)) * own;
            outcome.gradient.set(place, response, pulled);
        }
    }
}

/// max |G − I|.
fn departure(gram: &Mat<f64>) -> f64 {
    let mut largest = 0.0_f64;
    for column in 0..gram.ncols() {
        for row in 0..gram.nrows() {
            largest = largest.max((gram[(row, column)] - f64::from(u8::from(row == column))).abs());
        }
    }
    largest
}

/// L of G = LLᵀ, and the places whose column depends on those before it: its distance from their span, √pivot·|R_kk|, is rounding.
fn cholesky(gram: &Mat<f64>, triangle: &Mat<f64>) -> (Mat<f64>, Vec<usize>) {
    let size = gram.nrows();
    if departure(gram) < 0.1
        && size > 0
        && let Ok(llt) = Llt::new(gram.as_ref(), Side::Lower)
        && (0..size).all(|place| triangle[(place, place)].abs() > 1e-12 * column_norm(triangle, place))
    {
        return (Mat::from_fn(size, size, |row, column| if row >= column { llt.L()[(row, column)] } else { 0.0 }), Vec::new());
    }
    let tolerance = rank_tolerance(size);
    let mut lower = Mat::<f64>::zeros(size, size);
    let mut dependent = Vec::new();
    for place in 0..size {
        for before in 0..place {
            let mut sum = gram[(place, before)];
            for inner in 0..before {
                sum -= lower[(place, inner)] * lower[(before, inner)];
            }
            lower[(place, before)] = if lower[(before, before)] > 0.0 { sum / lower[(before, before)] } else { 0.0 };
        }
        let mut pivot = gram[(place, place)];
        for inner in 0..place {
            pivot -= lower[(place, inner)] * lower[(place, inner)];
        }
        let distance = pivot.max(0.0).sqrt() * triangle[(place, place)].abs();
        if distance > tolerance * column_norm(triangle, place) {
            lower[(place, place)] = pivot.sqrt();
        } else {
            dependent.push(place);
            // The column takes no further part.
            for before in 0..place {
                lower[(place, before)] = 0.0;
            }
        }
    }
    (lower, dependent)
}

fn column_norm(triangle: &Mat<f64>, place: usize) -> f64 {
    triangle.col_as_slice(place)[..=place].iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// One step: β ← β + T·G⁻¹·Tᵀ·gradient. Returns the largest relative change of a coefficient, in raw coordinates.
fn correct(
    basis: &Preconditioner,
    missing: &Missing,
    outcome: &Outcome,
    coefficients: &mut DoubleMatrix,
    coordinates: &Coordinates,
) -> f64 {
    let size = basis.order.len();
    let all = outcome.residual_squares.len();
    let mut projected = Mat::zeros(size, all);
    for response in 0..all {
        let gradient = outcome.gradient.column(response);
        for column in 0..size {
            let mut sum = Double::ZERO;
            for (row, gradient) in gradient[..=column].iter().enumerate() {
                sum += *gradient * basis.inverse[(row, column)];
            }
            projected[(column, response)] = sum.to_f64();
        }
    }
    missing.solve(projected.as_mut());
    missing.solve_transposed(projected.as_mut());
    let mut worst = 0.0_f64;
    for response in 0..all {
        let mut steps = vec![Double::ZERO; size];
        for column in 0..size {
            let step = projected[(column, response)];
            for (sum, value) in steps.iter_mut().zip(&basis.inverse.col_as_slice(column)[..=column]) {
                *sum += Double::product(*value, step);
            }
        }
        // The raw intercept is the centred one less Σ c·s·β̃.
        let (mut intercept, mut intercept_step) = (Double::ZERO, Double::ZERO);
        let largest = (0..size).map(|place| (coefficients.get(place, response) + steps[place]).to_f64().abs()).fold(0.0, f64::max);
        for (place, &system) in basis.order.iter().enumerate() {
            let next = coefficients.get(place, response) + steps[place];
            coefficients.set(place, response, next);
            match coordinates.column(system) {
                SystemColumn::Ones => {
                    let centre = coordinates.response_centre.get(response).copied().unwrap_or(0.0);
                    intercept += next + Double::from(centre);
                    intercept_step += steps[place];
                }
                SystemColumn::Predictor(predictor) => {
                    let factor = coordinates.centre[predictor] * coordinates.scale[predictor];
                    intercept += -(next * factor);
                    intercept_step += -(steps[place] * factor);
                    // A coefficient far below all others is measured against them: it may be zero.
                    worst = worst.max(ratio(steps[place].to_f64(), next.to_f64().abs().max(1e-10 * largest)));
                }
            }
        }
        if coordinates.intercept && response < coordinates.responses() {
            worst = worst.max(ratio(intercept_step.to_f64(), intercept.to_f64().abs().max(1e-10 * largest)));
        }
    }
    worst
}

fn ratio(step: f64, size: f64) -> f64 {
    if step == 0.0 { 0.0 } else { (step / size).abs() }
}

/// Figures and information of a solved problem.
fn conclude(scan: &Scan, specification: &Specification<'_>, solution: Solution, given: Option<&Given<'_>>) -> Result<Fit, Error> {
    let coordinates = &scan.coordinates;
    let Solution { mut basis, missing, coefficients, outcome, largest_leverage, error, precise } = solution;
    let (predictors, responses) = (coordinates.predictors(), coordinates.responses());
    let size = basis.order.len();
    let ones = usize::from(coordinates.intercept);
    // (X̃ᵀX̃ + penalty)⁻¹ = M·Mᵀ.
    let own = missing.inverse_of(&basis.inverse);
    let root = own.as_ref().unwrap_or(&basis.inverse);
    let mut diagonal = vec![0.0; size];
    for column in 0..size {
        diagonal.iter_mut().zip(&root.col_as_slice(column)[..=column]).for_each(|(sum, value)| *sum += value * value);
    }
    let triangle = missing.applied_to(std::mem::replace(&mut basis.triangle, Mat::new()));
    let penalty = specification.penalty;
    let spent: f64 = basis
        .order
        .iter()
        .enumerate()
        .map(|(place, &system)| match coordinates.column(system) {
            SystemColumn::Ones => 1.0,
            SystemColumn::Predictor(predictor) => 1.0 - penalty * coordinates.scale[predictor].powi(2) * diagonal[place],
        })
        .sum();
    let spent = given.map_or(spent, |given| given.effective_parameters);
    #[allow(clippy::cast_precision_loss)]
    let rows = scan.rows as f64;
    let degrees = (rows - spent).max(0.0);
    let degrees = if penalty == 0.0 { degrees.round() } else { degrees };

    let null = NullSpace::of(&basis, &coefficients, coordinates);
    // Slopes in the system's coordinates, p×q, and the centred intercept.
    let mut slopes = DoubleMatrix::zeros(predictors, responses);
    let mut level = vec![Double::ZERO; responses];
    for (place, &system) in basis.order.iter().enumerate() {
        for (response, level) in level.iter_mut().enumerate() {
            let value = coefficients.get(place, response);
            match coordinates.column(system) {
                SystemColumn::Ones => *level = value,
                SystemColumn::Predictor(predictor) => slopes.set(predictor, response, value * coordinates.scale[predictor]),
            }
        }
    }
    null.smallest_norm(&mut slopes, &mut level);
    if precise {
        drop_rounding(&mut slopes, coordinates);
    }

    for (response, level) in level.iter_mut().enumerate() {
        *level += Double::from(coordinates.response_centre[response]);
    }
    if let Some(given) = given {
        level = given_level(coordinates, given);
        for response in 0..responses {
            for predictor in 0..predictors {
                slopes.set(predictor, response, Double::from(given.slopes[(predictor, response)]));
            }
        }
    }
    let mut intercepts = Vec::new();
    for (response, level) in level.iter_mut().enumerate() {
        let mut intercept = *level;
        let mut size = level.hi.abs();
        for predictor in 0..predictors {
            let part = slopes.get(predictor, response) * coordinates.centre[predictor];
            size += part.hi.abs();
            intercept += -part;
        }
        if intercept.hi.abs() < NOTHING * size {
            intercept = Double::ZERO;
        }
        if coordinates.intercept {
            intercepts.push(intercept.to_f64());
        }
    }
    let (slope_roots, intercept_root) = null.unscaled_errors(&basis, root, &diagonal, &missing, coordinates);

    let mut statistics = Vec::with_capacity(responses);
    let mut exact_fit = Vec::with_capacity(responses);
    for response in 0..responses {
        let total = if coordinates.intercept {
            outcome.squares[response] - (outcome.sums[response] * outcome.sums[response]).divide(Double::from(scan.weight))
        } else {
            outcome.squares[response]
        };
        // What rounding the responses to floats alone leaves.
        let rounding = if precise { 2.0 } else { 8.0 } * ROUNDOFF;
        let residual = outcome.residual_squares[response].to_f64();
        let exact = residual <= rounding * rounding * outcome.raw_squares[response];
        exact_fit.push(exact && degrees > 0.0);
        let residual = if exact { 0.0 } else { residual };
        statistics.push(figures(residual, total.to_f64().max(0.0), rows, degrees, size, ones, spent, scan.log_weight));
    }
    if statistics.iter().any(|figures| !figures.total_sum_of_squares.is_finite()) {
        return Err(Error::Overflow);
    }
    let involved = null.involved(predictors);
    let mut variance_inflation = vec![f64::INFINITY; predictors];
    for (place, &system) in basis.order.iter().enumerate() {
        if let SystemColumn::Predictor(predictor) = coordinates.column(system)
            && !involved[predictor]
        {
            variance_inflation[predictor] = diagonal[place] * scan.gram[(predictor, predictor)];
        }
    }
    let deficient = !basis.dependent.is_empty() || scan.constant.iter().zip(&scan.held).any(|(constant, held)| *constant && !held);
    let condition_number = if deficient { f64::INFINITY } else { raw_condition(&basis, root, &triangle, coordinates) };
    let triangle = null.whole_triangle(&basis, &triangle, coordinates, scan);
    let origin = Origin {
        intercept: coordinates.intercept,
        centre: coordinates.centre.clone(),
        scale: coordinates.scale.clone(),
        level: level.iter().map(|level| level.to_f64()).collect(),
        slopes: Mat::from_fn(predictors, responses, |row, column| slopes.get(row, column).hi),
        slopes_low: Mat::from_fn(predictors, responses, |row, column| slopes.get(row, column).lo),
        intercepts,
        slope_roots,
        intercept_root,
    };
    let residual: Vec<f64> = statistics.iter().map(|figures| figures.residual_sum_of_squares).collect();
    let digits = (-error.max(ROUNDOFF).log10()).clamp(0.0, 15.9);
    let mut information = Information::new(origin, &triangle, residual, scan.rows, size, spent, largest_leverage)?;
    if given.is_none() {
        information = information.penalised(penalty, specification.prior);
    }
    Ok(Fit {
        information,
        statistics,
        observations: scan.rows,
        weight: scan.weight,
        log_weight: scan.log_weight,
        rank: size,
        degrees_of_freedom: degrees,
        effective_parameters: spent,
        condition_number,
        digits,
        constant: (0..predictors).filter(|predictor| scan.constant[*predictor]).collect(),
        collinear: null.groups(predictors),
        exact_fit,
        variance_inflation,
        solver: basis.solver,
    })
}

#[allow(clippy::too_many_arguments)] // the figures of one response; named once
fn figures(residual: f64, total: f64, rows: f64, degrees: f64, rank: usize, ones: usize, spent: f64, log_weight: f64) -> Statistics {
    #[allow(clippy::cast_precision_loss)]
    let (rank, ones) = (rank as f64, ones as f64);
    let variance = if degrees > 0.0 { residual / degrees } else { f64::NAN };
    let r2 = if total > 0.0 { 1.0 - residual / total } else { f64::NAN };
    let regressors = rank - ones;
    let f = (total - residual) / regressors / variance;
    let log_likelihood = -0.5 * rows * ((std::f64::consts::TAU * residual / rows).ln() + 1.0) + 0.5 * log_weight;
    Statistics {
        residual_sum_of_squares: residual,
        total_sum_of_squares: total,
        residual_std: variance.sqrt(),
        r2,
        adjusted_r2: 1.0 - (1.0 - r2) * (degrees + spent - ones) / degrees,
        f,
        f_p: if regressors > 0.0 && degrees > 0.0 { f_p(f, regressors, degrees) } else { f64::NAN },
        aic: 2.0f64.mul_add(rank, -2.0 * log_likelihood),
        bic: rank.mul_add(rows.ln(), -2.0 * log_likelihood),
        log_likelihood,
    }
}

/// Sets slopes to zero that are nothing but the rounding of twice the precision, measured by their effect on scaled columns.
fn drop_rounding(slopes: &mut DoubleMatrix, coordinates: &Coordinates) {
    for response in 0..coordinates.responses() {
        let effect = |slopes: &DoubleMatrix, row: usize| slopes.get(row, response).hi.abs() / coordinates.scale[row];
        let largest = (0..coordinates.predictors()).map(|row| effect(slopes, row)).fold(0.0, f64::max);
        for row in 0..coordinates.predictors() {
            if effect(slopes, row) < NOTHING * largest {
                slopes.set(row, response, Double::ZERO);
            }
        }
    }
}

/// The condition number of the design as it was given: with B the change from raw coefficients to the system's, ‖RB‖·‖(RB)⁻¹‖.
fn raw_condition(basis: &Preconditioner, root: &Mat<f64>, triangle: &Mat<f64>, coordinates: &Coordinates) -> f64 {
    let ones = basis.order.iter().position(|system| coordinates.column(*system) == SystemColumn::Ones);
    let own = |place: usize| match coordinates.column(basis.order[place]) {
        SystemColumn::Ones => (0.0, 1.0),
        SystemColumn::Predictor(predictor) => (coordinates.centre[predictor], coordinates.scale[predictor]),
    };
    let slopes: Vec<usize> = (0..basis.order.len()).filter(|place| Some(*place) != ones).collect();
    // B: α̃ = α + Σcβ, β̃ = β/s. Its transpose: (Bᵀv)_β = v_β/s + c·v_α. The inverses: β = sβ̃, α = α̃ − Σc·sβ̃.
    let forward = |vector: &mut [f64]| {
        for &place in &slopes {
            let (centre, scale) = own(place);
            if let Some(ones) = ones {
                vector[ones] += centre * vector[place];
            }
            vector[place] /= scale;
        }
    };
    let forward_transposed = |vector: &mut [f64]| {
        for &place in &slopes {
            let (centre, scale) = own(place);
            vector[place] = vector[place] / scale + ones.map_or(0.0, |ones| centre * vector[ones]);
        }
    };
    let backward = |vector: &mut [f64]| {
        for &place in &slopes {
            let (centre, scale) = own(place);
            vector[place] *= scale;
            if let Some(ones) = ones {
                vector[ones] -= centre * vector[place];
            }
        }
    };
    let backward_transposed = |vector: &mut [f64]| {
        for &place in &slopes {
            let (centre, scale) = own(place);
            vector[place] = scale * (vector[place] - ones.map_or(0.0, |ones| centre * vector[ones]));
        }
    };
    let top = spectral_norm(triangle.as_ref(), forward, forward_transposed);
    // (RB)⁻¹ = B⁻¹M; its norm is that of MᵀB⁻ᵀ.
    let bottom = spectral_norm(root.transpose(), backward_transposed, backward);
    top * bottom
}

/// The directions in which the rows say nothing: for each dependent column d, x_d = Σ C x_b, so that e_d − Σ C e_b has no effect.
struct NullSpace {
    /// N, p×(d + constant), raw coordinates.
    vectors: Mat<f64>,
    /// How the centred intercept moves along each: usually rounding.
    level: Vec<f64>,
    /// Which basis predictors each dependent one depends on, itself first.
    groups: Vec<Vec<usize>>,
    /// NᵀN, factored.
    gram: Option<Llt<f64>>,
    /// C in the system's coordinates, k×d.
    relations: Mat<f64>,
}

impl NullSpace {
    fn of(basis: &Preconditioner, coefficients: &DoubleMatrix, coordinates: &Coordinates) -> Self {
        let (predictors, responses) = (coordinates.predictors(), coordinates.responses());
        let count = basis.dependent.len();
        let mut vectors = Mat::zeros(predictors, count);
        let mut level = vec![0.0; count];
        let mut groups = Vec::with_capacity(count);
        let mut relations = Mat::zeros(basis.order.len(), count);
        for (index, &system) in basis.dependent.iter().enumerate() {
            // Ones come first in every order and depend on nothing.
            let SystemColumn::Predictor(own) = coordinates.column(system) else { continue };
            vectors[(own, index)] = 1.0;
            let mut group = vec![own];
            for (place, &other) in basis.order.iter().enumerate() {
                let value = coefficients.get(place, responses + index).to_f64();
                relations[(place, index)] = value;
                match coordinates.column(other) {
                    SystemColumn::Ones => level[index] = -value / coordinates.scale[own],
                    SystemColumn::Predictor(other) => {
                        if value.abs() > 1e-9 {
                            vectors[(other, index)] = -value * coordinates.scale[other] / coordinates.scale[own];
                            group.push(other);
                        }
                    }
                }
            }
            groups.push(group);
        }
        let gram = (count > 0).then(|| Llt::new((vectors.transpose() * &vectors).as_ref(), Side::Lower).ok()).flatten();
        Self { vectors, level, groups, gram, relations }
    }

    /// β ← β − N(NᵀN)⁻¹Nᵀβ, twice, so that what rounding left of the first is taken out too.
    fn smallest_norm(&self, slopes: &mut DoubleMatrix, level: &mut [Double]) {
        let Some(gram) = &self.gram else { return };
        for _ in 0..2 {
            for (response, level) in level.iter_mut().enumerate() {
                let mut along = Mat::zeros(self.vectors.ncols(), 1);
                for index in 0..self.vectors.ncols() {
                    let mut sum = Double::ZERO;
                    for row in 0..self.vectors.nrows() {
                        sum += slopes.get(row, response) * self.vectors[(row, index)];
                    }
                    along[(index, 0)] = sum.to_f64();
                }
                let steps = gram.solve(&along);
                for index in 0..self.vectors.ncols() {
                    let step = steps[(index, 0)];
                    for row in 0..self.vectors.nrows() {
                        let next = slopes.get(row, response) + -Double::product(step, self.vectors[(row, index)]);
                        slopes.set(row, response, next);
                    }
                    *level += -Double::product(step, self.level[index]);
                }
            }
        }
    }

    /// √ of the diagonal of the (pseudo-)inverse of XᵀX + penalty in raw coordinates: one a predictor, and the intercept's.
    fn unscaled_errors(
        &self,
        basis: &Preconditioner,
        root: &Mat<f64>,
        diagonal: &[f64],
        missing: &Missing,
        coordinates: &Coordinates,
    ) -> (Vec<f64>, f64) {
        let (predictors, size) = (coordinates.predictors(), basis.order.len());
        if let Some(gram) = &self.gram {
            let mut whole = Mat::zeros(predictors, size);
            let mut level = vec![0.0; size];
            for (place, &system) in basis.order.iter().enumerate() {
                for column in place..size {
                    match coordinates.column(system) {
                        SystemColumn::Ones => level[column] = root[(place, column)],
                        SystemColumn::Predictor(predictor) => {
                            whole[(predictor, column)] = root[(place, column)] * coordinates.scale[predictor]
                        }
                    }
                }
            }
            whole -= &self.vectors * gram.solve(self.vectors.transpose() * &whole);
            let norms = (0..predictors).map(|row| (0..size).map(|column| whole[(row, column)].powi(2)).sum::<f64>().sqrt()).collect();
            let intercept: f64 = (0..size)
                .map(|column| level[column] - (0..predictors).map(|row| coordinates.centre[row] * whole[(row, column)]).sum::<f64>())
                .map(|value| value * value)
                .sum();
            return (norms, intercept.sqrt());
        }
        let mut norms = vec![0.0; predictors];
        // The raw intercept is aᵀβ̃ with a = (1, −c·s): its variance is ‖L⁻¹Tᵀa‖², Tᵀa in twice the precision because it cancels.
        let mut direction = vec![0.0; size];
        for (place, &system) in basis.order.iter().enumerate() {
            match coordinates.column(system) {
                SystemColumn::Ones => direction[place] = 1.0,
                SystemColumn::Predictor(predictor) => {
                    direction[place] = -coordinates.centre[predictor] * coordinates.scale[predictor];
                    norms[predictor] = coordinates.scale[predictor] * diagonal[place].sqrt();
                }
            }
        }
        if !coordinates.intercept {
            return (norms, 0.0);
        }
        let mut projected = Mat::zeros(size, 1);
        for column in 0..size {
            let mut sum = Double::ZERO;
            for (row, direction) in direction[..=column].iter().enumerate() {
                sum += Double::product(*direction, basis.inverse[(row, column)]);
            }
            projected[(column, 0)] = sum.to_f64();
        }
        missing.solve(projected.as_mut());
        (norms, projected.norm_l2())
    }

    /// Whether each predictor takes part in a dependency.
    fn involved(&self, predictors: usize) -> Vec<bool> {
        let mut involved = vec![false; predictors];
        self.groups.iter().flatten().for_each(|predictor| involved[*predictor] = true);
        involved
    }

    /// Groups that share a predictor are one.
    fn groups(&self, predictors: usize) -> Vec<Vec<usize>> {
        let mut leader: Vec<usize> = (0..predictors).collect();
        fn find(leader: &mut [usize], mut of: usize) -> usize {
            while leader[of] != of {
                leader[of] = leader[leader[of]];
                of = leader[of];
            }
            of
        }
        for group in &self.groups {
            for &member in group {
                let (one, other) = (find(&mut leader, group[0]), find(&mut leader, member));
                leader[one.max(other)] = one.min(other);
            }
        }
        let mut found = std::collections::BTreeMap::<usize, Vec<usize>>::new();
        for (predictor, involved) in self.involved(predictors).into_iter().enumerate() {
            if involved {
                let group = find(&mut leader, predictor);
                found.entry(group).or_default().push(predictor);
            }
        }
        found.into_values().collect()
    }

    /// The square-root information of the whole system, m×m upper triangular, in its own order. Directions in which the rows say nothing
    /// get a weight of 1e-16 of theirs, so that learning can go on in them.
    fn whole_triangle(&self, basis: &Preconditioner, triangle: &Mat<f64>, coordinates: &Coordinates, scan: &Scan) -> Mat<f64> {
        let (size, width) = (basis.order.len(), coordinates.width());
        let mut stacked = Mat::zeros(size, width);
        for (place, &system) in basis.order.iter().enumerate() {
            for row in 0..=place {
                stacked[(row, system)] = triangle[(row, place)];
            }
        }
        let related = triangle * &self.relations;
        for (index, &system) in basis.dependent.iter().enumerate() {
            for row in 0..size {
                stacked[(row, system)] = related[(row, index)];
            }
        }
        let constant: Vec<usize> = (0..coordinates.predictors()).filter(|predictor| scan.constant[*predictor]).collect();
        // A held predictor is as if known for certain: it has no leverage, and does not move.
        let held: Vec<usize> =
            (0..coordinates.predictors()).filter(|predictor| scan.held[*predictor] && !scan.constant[*predictor]).collect();
        if !held.is_empty() {
            let mut more = Mat::zeros(size + held.len(), width);
            more.subrows_mut(0, size).copy_from(&stacked);
            for (index, &predictor) in held.iter().enumerate() {
                more[(size + index, coordinates.place(predictor))] = 1e8 * scan.weight.sqrt();
            }
            stacked = more;
        }
        if size == width && basis.order.is_sorted() {
            return stacked;
        }
        let known = stacked.nrows();
        let unknown = self.vectors.ncols() + constant.len();
        if unknown == 0 {
            return qr::factor(stacked.as_ref());
        }
        // Rows N̂ᵀ·diag(s) with N̂ an orthonormal basis of the null space in raw coordinates.
        let mut directions = Mat::<f64>::zeros(unknown, width);
        if self.vectors.ncols() > 0 {
            let orthonormal = faer::linalg::solvers::Qr::new(self.vectors.as_ref()).compute_thin_Q();
            for index in 0..self.vectors.ncols() {
                for predictor in 0..coordinates.predictors() {
                    directions[(index, coordinates.place(predictor))] = orthonormal[(predictor, index)] * coordinates.scale[predictor];
                }
            }
        }
        for (index, &predictor) in constant.iter().enumerate() {
            directions[(self.vectors.ncols() + index, coordinates.place(predictor))] = coordinates.scale[predictor];
        }
        let largest = (0..unknown)
            .map(|row| (0..width).map(|column| directions[(row, column)].powi(2)).sum::<f64>().sqrt())
            .fold(f64::MIN_POSITIVE, f64::max);
        let weight = 1e-8 * scan.weight.sqrt() / largest;
        let mut whole = Mat::zeros(known + unknown, width);
        whole.subrows_mut(0, known).copy_from(&stacked);
        for row in 0..unknown {
            for column in 0..width {
                whole[(known + row, column)] = weight * directions[(row, column)];
            }
        }
        qr::factor(whole.as_ref())
    }
}
