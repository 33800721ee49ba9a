//! Least squares with linear equality constraints: minimise Σ wᵢ(yᵢ − α − xᵢᵀβ)² subject to C·(α, β) = d.
//!
//! The null-space method (Golub & Van Loan, *Matrix Computations*, 4th ed., §6.2): pivoted QR of Cᵀ in centred, scaled coordinates splits
//! the coefficients into θ = θ₀ + Z·v, with θ₀ of smallest norm among those that meet the constraints and Z an orthonormal basis of their
//! null space. v solves an unconstrained problem, by the eigenvalues of Zᵀ·X̃ᵀX̃·Z where its condition allows, else by the singular values of
//! R·Z with R the triangular factor of the rows. Both give F with F·Fᵀ = Z(ZᵀX̃ᵀX̃Z)⁺Zᵀ, which is the covariance of the coefficients divided
//! by σ², and the step of refinement against the rows, δ = F·Fᵀ·X̃ᵀ(y − X̃θ), with residuals in twice the precision.
//!
//! Directions in which neither the constraints nor the rows say anything are left at zero, so that the coefficients are those of smallest
//! norm in scaled coordinates. In the end what rounding left of C·(α, β) − d is taken out in the coefficients as given.

use faer::linalg::solvers::{ColPivQr, SelfAdjointEigen, Svd};
use faer::{Mat, Par, Side};

use super::Error;
use super::coordinates::{Coordinates, SystemColumn};
use super::double_double::Double;
use super::gram::{self, Scan};
use super::nonnegative::against_rows;
use super::problem::RowSource;
use super::qr;
use super::refine::DoubleMatrix;

/// Square of a size, relative to its terms, below which it is their rounding.
const ROUNDED: f64 = 1e-28;
/// Relative size below which a constraint is a combination of others.
const DEPENDENT: f64 = 1e-12;
/// Relative size above which what is left of a dependent constraint contradicts the others.
const CONTRADICTION: f64 = 1e-9;
/// Relative eigenvalue of the reduced Gram matrix below which the rows themselves are factored.
const GRAM_EIGENVALUE: f64 = 1e-8;
/// Relative singular value of the rows that is nothing but rounding.
const NOTHING: f64 = 1e-13;
/// Corrections of the constraints in the end.
const CORRECTIONS: usize = 3;

/// C·(α, β) = d.
#[derive(Clone, Debug)]
pub struct Constraints {
    /// What C says of the slopes, r×p.
    pub slopes: Mat<f64>,
    /// What it says of the intercept, r; `None` is zeros.
    pub intercept: Option<Vec<f64>>,
    /// d, r×q, or r×1 for all responses alike.
    pub values: Mat<f64>,
}

/// A fit that meets constraints.
#[derive(Clone, Debug)]
pub struct ConstrainedFit {
    /// Slopes, p×q.
    pub slopes: Mat<f64>,
    /// One a response; empty without an intercept.
    pub intercepts: Vec<f64>,
    /// Z(ZᵀXᵀXZ)⁺Zᵀ, m×m, the intercept first if there is one: the covariance of the coefficients divided by the residual variance.
    pub unscaled_covariance: Mat<f64>,
    /// Parameters that were free and that the rows determine.
    pub rank: usize,
    /// Constraints that are not combinations of others.
    pub constraints: usize,
    /// Σwr² of each response.
    pub residual_sum_of_squares: Vec<f64>,
    /// Rows of positive weight.
    pub observations: u64,
    /// Σw.
    pub weight: f64,
    /// Rows of positive weight less the rank.
    pub degrees_of_freedom: f64,
}

impl Constraints {
    /// Constraints there are, r.
    fn count(&self) -> usize {
        self.slopes.nrows()
    }

    fn check(&self, predictors: usize, responses: usize, intercept: bool) -> Result<(), Error> {
        if self.slopes.ncols() != predictors {
            return Err(Error::Solver("a constraint must have a number for each predictor"));
        }
        if self.intercept.as_ref().is_some_and(|column| column.len() != self.count()) {
            return Err(Error::Solver("there must be a number for the intercept in each constraint, or in none"));
        }
        if self.intercept.as_ref().is_some_and(|column| !intercept && column.iter().any(|value| *value != 0.0)) {
            return Err(Error::Solver("a constraint names the intercept of a model that has none"));
        }
        if self.values.nrows() != self.count() || (self.values.ncols() != 1 && self.values.ncols() != responses) {
            return Err(Error::Solver("there must be one value for each constraint, or one for each response"));
        }
        let all = self.slopes.col_iter().chain(self.values.col_iter()).flat_map(|column| column.iter().copied().collect::<Vec<f64>>());
        if !all.chain(self.intercept.iter().flatten().copied()).all(f64::is_finite) {
            return Err(Error::Solver("a constraint is not finite"));
        }
        Ok(())
    }

    fn of_intercept(&self, row: usize) -> f64 {
        self.intercept.as_ref().map_or(0.0, |column| column[row])
    }

    fn value(&self, row: usize, response: usize) -> f64 {
        self.values[(row, response.min(self.values.ncols() - 1))]
    }
}

/// Fits under constraints.
///
/// # Errors
/// [`Error::Solver`] for constraints of the wrong shape and for such as contradict one another; otherwise see [`Error`]. Neither collinear
/// columns nor repeated constraints are an error.
pub fn constrained(source: &mut dyn RowSource, intercept: bool, constraints: &Constraints) -> Result<ConstrainedFit, Error> {
    let (predictors, responses) = (source.predictors(), source.responses());
    constraints.check(predictors, responses, intercept)?;
    let scan = gram::scan(source, intercept)?;
    let coordinates = &scan.coordinates;
    let width = coordinates.width();
    let split = Split::of(coordinates, constraints);
    let mut coefficients = DoubleMatrix::zeros(width, responses);
    for response in 0..responses {
        let start = split.particular(coordinates, constraints, response)?;
        start.into_iter().enumerate().for_each(|(place, value)| coefficients.set(place, response, Double::from(value)));
    }
    let root = root(source, &scan, &split.free)?;
    let order: Vec<usize> = (0..width).collect();
    // What a coefficient is measured by: how much of the response's spread it moves, since columns have about unit spread.
    let outcome = against_rows(source, coordinates, &order, &mut coefficients, |outcome, coefficients| {
        let mut worst = 0.0_f64;
        for response in 0..responses {
            let gradient = Mat::from_fn(width, 1, |row, _| outcome.gradient.get(row, response).to_f64());
            let steps = &root * (root.transpose() * gradient);
            let largest = (0..width).map(|place| coefficients.get(place, response).hi.abs()).fold(0.0, f64::max);
            for place in 0..width {
                let step = steps[(place, 0)];
                let next = coefficients.get(place, response) + Double::from(step);
                coefficients.set(place, response, next);
                if step != 0.0 {
                    worst = worst.max(step.abs() / next.hi.abs().max(1e-3 * largest).max(f64::MIN_POSITIVE));
                }
            }
        }
        worst
    })?;
    let mut slopes = Mat::zeros(predictors, responses);
    let mut intercepts = Vec::with_capacity(responses);
    for response in 0..responses {
        let raw = split.corrected(coordinates, constraints, response, &coefficients);
        let mut raw = raw.into_iter();
        if intercept {
            intercepts.extend(raw.next());
        }
        slopes.col_as_slice_mut(response).iter_mut().zip(raw).for_each(|(slope, raw)| *slope = raw);
    }
    // Raw coefficients are B·θ: β = s·β̃, α = α̃ − Σ c·s·β̃.
    let mut factor = Mat::<f64>::zeros(width, root.ncols());
    let (mut found, mut size) = (0.0, 0.0);
    for column in 0..root.ncols() {
        let (mut level, mut terms) = (Double::ZERO, 0.0);
        for place in 0..width {
            match coordinates.column(place) {
                SystemColumn::Ones => {
                    level += Double::from(root[(place, column)]);
                    terms += root[(place, column)].abs();
                }
                SystemColumn::Predictor(predictor) => {
                    factor[(place, column)] = coordinates.scale[predictor] * root[(place, column)];
                    level += -Double::product(coordinates.centre[predictor], factor[(place, column)]);
                    terms += (coordinates.centre[predictor] * factor[(place, column)]).abs();
                }
            }
        }
        if intercept {
            factor[(0, column)] = level.to_f64();
            found += factor[(0, column)].powi(2);
            size += terms * terms;
        }
    }
    // A coefficient that the equations determine has no error: what is left is the rounding of terms that cancel.
    let determined = |place: usize| match coordinates.column(place) {
        SystemColumn::Ones => found <= ROUNDED * size,
        SystemColumn::Predictor(_) => (0..split.free.ncols()).map(|column| split.free[(place, column)].powi(2)).sum::<f64>() <= ROUNDED,
    };
    for place in (0..width).filter(|place| determined(*place)) {
        for column in 0..root.ncols() {
            factor[(place, column)] = 0.0;
        }
    }
    let rank = root.ncols();
    #[allow(clippy::cast_precision_loss)]
    let degrees = (scan.rows as f64 - rank as f64).max(0.0);
    Ok(ConstrainedFit {
        slopes,
        intercepts,
        unscaled_covariance: &factor * factor.transpose(),
        rank,
        constraints: split.rank,
        residual_sum_of_squares: outcome.residual_squares.iter().map(|square| square.to_f64().max(0.0)).collect(),
        observations: scan.rows,
        weight: scan.weight,
        degrees_of_freedom: degrees,
    })
}

/// The constraints in the system's coordinates, C̃·θ = d̃, each divided by its norm, and the directions they leave free.
struct Split {
    /// Norms of the rows of C̃, 1 for a row of zeros.
    norms: Vec<f64>,
    /// C̃, r×m, rows of norm 1.
    rows: Mat<f64>,
    /// Order of the rows after pivoting.
    order: Vec<usize>,
    /// Independent rows.
    rank: usize,
    /// R₁ of C̃ᵀP = Q₁R₁, rank×rank upper triangular.
    triangle: Mat<f64>,
    /// Q₁, m×rank.
    bound: Mat<f64>,
    /// Z, m×(m − rank).
    free: Mat<f64>,
}

impl Split {
    fn of(coordinates: &Coordinates, constraints: &Constraints) -> Self {
        let (width, count) = (coordinates.width(), constraints.count());
        let mut rows = Mat::<f64>::from_fn(count, width, |row, place| match coordinates.column(place) {
            SystemColumn::Ones => constraints.of_intercept(row),
            SystemColumn::Predictor(predictor) => {
                let moved = Double::product(constraints.of_intercept(row), coordinates.centre[predictor]);
                (Double::from(constraints.slopes[(row, predictor)]) - moved).to_f64() * coordinates.scale[predictor]
            }
        });
        let mut norms = vec![1.0; count];
        for (row, norm) in norms.iter_mut().enumerate() {
            let own = rows.row(row).norm_l2();
            if own > 0.0 && own.is_finite() {
                *norm = own;
                (0..width).for_each(|place| rows[(row, place)] /= own);
            }
        }
        if count == 0 || width == 0 {
            return Self {
                norms,
                rows,
                order: (0..count).collect(),
                rank: 0,
                triangle: Mat::zeros(0, 0),
                bound: Mat::zeros(width, 0),
                free: Mat::identity(width, width),
            };
        }
        let qr = ColPivQr::new(rows.transpose());
        let upper = qr.thin_R();
        let size = count.min(width);
        let rank = (0..size).take_while(|place| upper[(*place, *place)].abs() > DEPENDENT).count();
        let orthogonal = qr.compute_Q();
        let (forward, _) = qr.P().arrays();
        Self {
            order: forward.to_vec(),
            rank,
            triangle: Mat::from_fn(rank, rank, |row, column| if row <= column { upper[(row, column)] } else { 0.0 }),
            bound: orthogonal.subcols(0, rank).to_owned(),
            free: orthogonal.subcols(rank, width - rank).to_owned(),
            norms,
            rows,
        }
    }

    /// The θ of smallest norm with C̃₁θ = the values of the independent rows: Q₁·R₁⁻ᵀ·values.
    fn smallest(&self, values: impl Fn(usize) -> f64) -> Mat<f64> {
        let mut right = Mat::from_fn(self.rank, 1, |place, _| values(self.order[place]) / self.norms[self.order[place]]);
        if self.rank > 0 {
            faer::linalg::triangular_solve::solve_lower_triangular_in_place(self.triangle.transpose(), right.as_mut(), Par::Seq);
        }
        &self.bound * right
    }

    /// θ₀ for one response.
    fn particular(&self, coordinates: &Coordinates, constraints: &Constraints, response: usize) -> Result<Vec<f64>, Error> {
        // The response is centred too, and with it the intercept.
        let centred = |row: usize| {
            let moved = Double::product(constraints.of_intercept(row), coordinates.response_centre[response]);
            (Double::from(constraints.value(row, response)) - moved).to_f64()
        };
        let start = self.smallest(centred);
        for &row in &self.order[self.rank..] {
            let mut left = -centred(row) / self.norms[row];
            let mut size = left.abs();
            for place in 0..coordinates.width() {
                let term = self.rows[(row, place)] * start[(place, 0)];
                left += term;
                size += term.abs();
            }
            size += (constraints.of_intercept(row) * coordinates.response_centre[response] / self.norms[row]).abs();
            if left.abs() > CONTRADICTION * size {
                return Err(Error::Solver("the constraints contradict one another"));
            }
        }
        Ok((0..coordinates.width()).map(|place| start[(place, 0)]).collect())
    }

    /// Coefficients as given, the intercept first, from those of the system; what they leave of the constraints is taken out.
    fn corrected(&self, coordinates: &Coordinates, constraints: &Constraints, response: usize, coefficients: &DoubleMatrix) -> Vec<f64> {
        let width = coordinates.width();
        let mut raw = vec![Double::ZERO; width];
        for place in 0..width {
            match coordinates.column(place) {
                SystemColumn::Ones => {
                    raw[0] += coefficients.get(place, response) + Double::from(coordinates.response_centre[response]);
                }
                SystemColumn::Predictor(predictor) => {
                    raw[place] = coefficients.get(place, response) * coordinates.scale[predictor];
                    if coordinates.intercept {
                        let moved = raw[place] * coordinates.centre[predictor];
                        raw[0] += -moved;
                    }
                }
            }
        }
        for _ in 0..CORRECTIONS {
            let left: Vec<f64> = (0..constraints.count())
                .map(|row| {
                    let mut left = Double::from(constraints.value(row, response));
                    for (place, raw) in raw.iter().enumerate() {
                        left += -(*raw
                            * match coordinates.column(place) {
                                SystemColumn::Ones => constraints.of_intercept(row),
                                SystemColumn::Predictor(predictor) => constraints.slopes[(row, predictor)],
                            });
                    }
                    left.to_f64()
                })
                .collect();
            let steps = self.smallest(|row| left[row]);
            for place in 0..width {
                match coordinates.column(place) {
                    SystemColumn::Ones => raw[0] += Double::from(steps[(place, 0)]),
                    SystemColumn::Predictor(predictor) => {
                        let step = steps[(place, 0)] * coordinates.scale[predictor];
                        raw[place] += Double::from(step);
                        if coordinates.intercept {
                            raw[0] += -Double::product(step, coordinates.centre[predictor]);
                        }
                    }
                }
            }
        }
        raw.into_iter().map(Double::to_f64).collect()
    }
}

/// F, m×rank, with F·Fᵀ = Z(ZᵀX̃ᵀX̃Z)⁺Zᵀ.
fn root(source: &mut dyn RowSource, scan: &Scan, free: &Mat<f64>) -> Result<Mat<f64>, Error> {
    let coordinates = &scan.coordinates;
    let (width, size) = free.shape();
    if size == 0 {
        return Ok(Mat::zeros(width, 0));
    }
    // A constant column says nothing; its entries are rounding.
    let constant = |place: usize| match coordinates.column(place) {
        SystemColumn::Ones => false,
        SystemColumn::Predictor(predictor) => scan.constant[predictor],
    };
    let ones = usize::from(coordinates.intercept);
    let system = Mat::from_fn(width, width, |row, column| match (coordinates.column(row), coordinates.column(column)) {
        (SystemColumn::Ones, SystemColumn::Ones) => scan.weight,
        (SystemColumn::Predictor(i), SystemColumn::Predictor(j)) if !scan.constant[i] && !scan.constant[j] => scan.gram[(i, j)],
        // Centred columns are orthogonal to that of ones.
        _ => 0.0,
    });
    let reduced = free.transpose() * (&system * free);
    let eigen = SelfAdjointEigen::new(reduced.as_ref(), Side::Lower)
        .map_err(|_| Error::Solver("the eigenvalues of the reduced Gram matrix did not converge"))?;
    let values = eigen.S().column_vector();
    let largest = (0..size).map(|place| values[place]).fold(0.0, f64::max);
    if (0..size).all(|place| values[place] > GRAM_EIGENVALUE * largest) {
        let mut root = free * eigen.U();
        for place in 0..size {
            let scale = values[place].sqrt();
            root.col_as_slice_mut(place).iter_mut().for_each(|value| *value /= scale);
        }
        return Ok(root);
    }
    let varying: Vec<usize> = (0..width).filter(|place| !constant(*place)).collect();
    if varying.len() == ones && ones == 0 {
        return Ok(Mat::zeros(width, 0));
    }
    let triangle = qr::triangle(source, coordinates, &varying, 0.0)?;
    let kept = Mat::from_fn(varying.len(), size, |row, column| free[(varying[row], column)]);
    let product = &triangle * kept;
    let svd =
        Svd::new(product.as_ref()).map_err(|_| Error::Solver("the singular value decomposition of the reduced rows did not converge"))?;
    let values = svd.S().column_vector();
    let count = product.nrows().min(size);
    // Z may hide large columns from the rows: what is rounding is measured by the rows themselves.
    let largest = triangle.col_iter().map(|column| column.norm_l2()).fold(0.0, f64::max);
    let rank = (0..count).take_while(|place| values[*place] > NOTHING * largest).count();
    let mut root = free * svd.V().subcols(0, rank);
    for place in 0..rank {
        let scale = values[place];
        root.col_as_slice_mut(place).iter_mut().for_each(|value| *value /= scale);
    }
    Ok(root)
}
