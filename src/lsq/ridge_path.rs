//! Many ridge penalties at once: the exact leave-one-out error and the generalised cross-validation of each, from one eigendecomposition.
//!
//! With XᵀWX = V·diag(d)·Vᵀ for the centred columns and z = Vᵀ(x − x̄), a penalty λ on the raw slopes, ‖y − Xβ‖² + λ‖β‖², gives
//! the leverages h = w(1/Σw + Σ z_k²/(d_k + λ)) and the residuals r = y − ȳ − Σ z_k·(VᵀXᵀWy)_k/(d_k + λ): for a block of rows and all
//! penalties two matrix products. The error of predicting a row by all others is r/(1 − h) (Golub, Heath & Wahba, *Generalized
//! cross-validation as a method for choosing a good ridge parameter*, 1979). Without an intercept nothing is centred and 1/Σw is absent.
//!
//! Where the smallest d + λ would drown in the rounding of the Gram matrix, d and V come from the singular values of the rows' own
//! triangular factor instead. The fit itself is `fit`'s, with the penalty chosen here.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};

use super::Error;
use super::coordinates::{Coordinates, SystemColumn, column, in_parts, part_count, power_of_two_below_inverse};
use super::gram::{self, Scan};
use super::problem::{Block, RowSource};
use super::qr;
use super::whitened::FREE;

/// A penalty and what it is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PathPoint {
    /// As in a specification: on raw slopes, not divided by the rows.
    pub penalty: f64,
    /// Trace of the hat matrix, the intercept included.
    pub effective_parameters: f64,
    /// Σw(r/(1 − h))²/Σw, the mean over responses. Rows through which the fit passes make it infinite.
    pub leave_one_out: f64,
    /// Σwr²/Σw/(1 − effective parameters/n)², the mean over responses.
    pub generalised_cross_validation: f64,
}

/// Penalties, in the order in which they were asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct RidgePath {
    /// One a penalty.
    pub points: Vec<PathPoint>,
    /// The point of the smallest leave-one-out error.
    pub best: usize,
}

/// Penalties of the grid that is made when none are given.
const GRID: usize = 100;
/// (d + λ)/d₁ below which the Gram matrix is not accurate enough.
const GRAM_LIMIT: f64 = 1e-7;
/// Cells of a buffer that stay in a core's own cache.
const BUFFER_CELLS: usize = 48 * 1024;

/// Leave-one-out errors for each of some penalties ≥ 0; without any, for a hundred of them from 10⁻⁹ to 10² times the largest eigenvalue,
/// evenly on a logarithmic scale. Two passes, three where the rows are ill-conditioned.
///
/// # Errors
/// The source's; a penalty that is negative or not finite.
pub fn ridge_path(source: &mut dyn RowSource, intercept: bool, penalties: &[f64]) -> Result<RidgePath, Error> {
    if penalties.iter().any(|penalty| !(penalty.is_finite() && *penalty >= 0.0)) {
        return Err(Error::Solver("a penalty is negative or not finite"));
    }
    let scan = gram::scan(source, intercept)?;
    let basis = Basis::of(source, &scan, penalties)?;
    let penalties = if penalties.is_empty() { basis.grid() } else { penalties.to_vec() };
    let path = Path::new(&scan, &basis, &penalties);
    path.walk(source)
}

/// Eigenvectors of the centred, penalised problem. Slopes are raw ones times `unit`, a power of two for all.
struct Basis {
    unit: f64,
    /// d, in units.
    values: Vec<f64>,
    /// From scaled columns to z: diag(unit/s)·V, p×k.
    rotation: Mat<f64>,
}

impl Basis {
    fn of(source: &mut dyn RowSource, scan: &Scan, penalties: &[f64]) -> Result<Self, Error> {
        let coordinates = &scan.coordinates;
        let predictors = coordinates.predictors();
        // The largest raw deviation is taken to the size of √Σw.
        let smallest =
            (0..predictors).filter(|place| !scan.constant[*place]).map(|place| coordinates.scale[place]).fold(f64::INFINITY, f64::min);
        let unit = if smallest.is_finite() { power_of_two_below_inverse(smallest.recip()) } else { 1.0 };
        let raw: Vec<f64> = (0..predictors).map(|place| if scan.constant[place] { 0.0 } else { unit / coordinates.scale[place] }).collect();
        let gram = Mat::from_fn(predictors, predictors, |i, j| scan.gram[(i, j)] * raw[i] * raw[j]);
        const FAILED: Error = Error::Solver("the eigendecomposition did not converge");
        let (mut values, mut vectors) = if predictors == 0 {
            (Vec::new(), Mat::zeros(0, 0))
        } else {
            let eigen = gram.self_adjoint_eigen(Side::Lower).map_err(|_| FAILED)?;
            (eigen.S().column_vector().iter().map(|value| value.max(0.0)).collect::<Vec<f64>>(), eigen.U().to_owned())
        };
        let largest = values.iter().copied().fold(0.0, f64::max);
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let penalty = penalties.iter().copied().fold(f64::INFINITY, f64::min);
        let penalty = if penalty.is_finite() { penalty * unit * unit } else { 0.0 };
        if largest > 0.0 && least + penalty < GRAM_LIMIT * largest {
            let columns: Vec<usize> = (0..coordinates.width()).collect();
            // The system's own column of ones takes what centring left.
            let triangle = qr::triangle(source, coordinates, &columns, 0.0)?;
            let ones = usize::from(coordinates.intercept);
            let rows = triangle.nrows().saturating_sub(ones);
            let raw_triangle =
                Mat::from_fn(
                    rows.max(1),
                    predictors,
                    |row, place| {
                        if row < rows { triangle[(ones + row, ones + place)] * raw[place] } else { 0.0 }
                    },
                );
            let svd = raw_triangle.thin_svd().map_err(|_| FAILED)?;
            let singular = svd.S().column_vector();
            let cut = f64::EPSILON * singular[0];
            values = singular.iter().map(|value| if *value > cut { value * value } else { 0.0 }).collect();
            vectors = svd.V().to_owned();
        }
        let rotation = Mat::from_fn(predictors, values.len(), |row, place| raw[row] * vectors[(row, place)]);
        Ok(Self { unit, values, rotation })
    }

    fn grid(&self) -> Vec<f64> {
        let largest = self.values.iter().copied().fold(0.0, f64::max);
        let largest = if largest > 0.0 { largest / self.unit / self.unit } else { 1.0 };
        #[allow(clippy::cast_precision_loss)]
        (0..GRID).map(|place| largest * 10_f64.powf(-9.0 + 11.0 * place as f64 / (GRID - 1) as f64)).collect()
    }
}

/// What is the same for every row.
struct Path<'a> {
    scan: &'a Scan,
    basis: &'a Basis,
    penalties: &'a [f64],
    /// 1/(d + λ), k×l.
    shrunk: Mat<f64>,
    effective: Vec<f64>,
}

/// One thread's share.
struct Part {
    scaled: Vec<f64>,
    rotated: Vec<f64>,
    squares: Vec<f64>,
    leverage: Vec<f64>,
    residual: Vec<f64>,
    /// Σ(√w·r/(1 − h))², l×q.
    left_out: Vec<f64>,
    /// Σwr², l×q.
    squared: Vec<f64>,
}

impl<'a> Path<'a> {
    fn new(scan: &'a Scan, basis: &'a Basis, penalties: &'a [f64]) -> Self {
        let unit = basis.unit * basis.unit;
        let inverse = |place: usize, penalty: f64| {
            let whole = basis.values[place] + penalty * unit;
            if whole > 0.0 { whole.recip() } else { 0.0 }
        };
        let shrunk = Mat::from_fn(basis.values.len(), penalties.len(), |place, point| inverse(place, penalties[point]));
        let ones = f64::from(u8::from(scan.coordinates.intercept));
        let effective = (0..penalties.len())
            .map(|point| ones + (0..basis.values.len()).map(|place| basis.values[place] * shrunk[(place, point)]).sum::<f64>())
            .collect();
        Self { scan, basis, penalties, shrunk, effective }
    }

    fn walk(&self, source: &mut dyn RowSource) -> Result<RidgePath, Error> {
        let coordinates = &self.scan.coordinates;
        let (responses, points, size) = (coordinates.responses(), self.penalties.len(), self.basis.values.len());
        let along = self.basis.rotation.transpose() * &self.scan.cross;
        // Coefficients of z for each response and penalty, negated: k×(l·q).
        let slopes = Mat::from_fn(size, points * responses, |place, column| {
            -along[(place, column / points)] * self.shrunk[(place, column % points)]
        });
        let mut parts: Vec<Part> = (0..part_count())
            .map(|_| Part {
                scaled: Vec::new(),
                rotated: Vec::new(),
                squares: Vec::new(),
                leverage: Vec::new(),
                residual: Vec::new(),
                left_out: vec![0.0; points * responses],
                squared: vec![0.0; points * responses],
            })
            .collect();
        let width = coordinates.predictors() + 2 * size + 2 * points;
        let at_once = (BUFFER_CELLS / width.max(1)).max(64).next_multiple_of(16);
        source.pass(&mut |block| {
            in_parts(block, width, &mut parts, |part, range| {
                let mut begin = range.start;
                while begin < range.end {
                    let end = range.end.min(begin + at_once);
                    self.rows(block, begin..end, slopes.as_ref(), part);
                    begin = end;
                }
            });
            Ok(())
        })?;
        #[allow(clippy::cast_precision_loss)]
        let observations = self.scan.rows as f64;
        #[allow(clippy::cast_precision_loss)]
        let mean = |figure: fn(&Part) -> &[f64], point: usize| {
            let all = parts.iter().flat_map(|part| (0..responses).map(move |response| figure(part)[response * points + point]));
            all.sum::<f64>() / self.scan.weight / responses as f64
        };
        let found: Vec<PathPoint> = (0..points)
            .map(|point| {
                let free = 1.0 - self.effective[point] / observations;
                PathPoint {
                    penalty: self.penalties[point],
                    effective_parameters: self.effective[point],
                    leave_one_out: mean(|part| &part.left_out, point),
                    generalised_cross_validation: if free > FREE {
                        mean(|part| &part.squared, point) / (free * free)
                    } else {
                        f64::INFINITY
                    },
                }
            })
            .collect();
        if found.iter().any(|point| point.leave_one_out.is_nan()) {
            return Err(Error::NonFinite);
        }
        let best = (0..points).min_by(|one, other| found[*one].leave_one_out.total_cmp(&found[*other].leave_one_out)).unwrap_or(0);
        Ok(RidgePath { points: found, best })
    }

    fn rows(&self, block: &Block<'_>, range: std::ops::Range<usize>, slopes: MatRef<'_, f64>, part: &mut Part) {
        let coordinates = &self.scan.coordinates;
        let rows = range.len();
        let (predictors, responses) = (coordinates.predictors(), coordinates.responses());
        let (size, points) = (self.basis.values.len(), self.penalties.len());
        let weights = block.weights.map(|weights| &weights[range.clone()]);
        scaled_columns(coordinates, block, &range, &mut part.scaled);
        part.rotated.resize(rows * size, 0.0);
        part.leverage.resize(rows * points, 0.0);
        part.residual.resize(rows * points, 0.0);
        let scaled = MatRef::from_column_major_slice(&part.scaled, rows, predictors);
        let rotated = MatMut::from_column_major_slice_mut(&mut part.rotated, rows, size);
        matmul(rotated, Accum::Replace, scaled, self.basis.rotation.as_ref(), 1.0, Par::Seq);
        part.squares.clear();
        part.squares.extend(part.rotated.iter().map(|value| value * value));
        let squares = MatRef::from_column_major_slice(&part.squares, rows, size);
        let leverage = MatMut::from_column_major_slice_mut(&mut part.leverage, rows, points);
        matmul(leverage, Accum::Replace, squares, self.shrunk.as_ref(), 1.0, Par::Seq);
        let level = if coordinates.intercept { self.scan.weight.recip() } else { 0.0 };
        for response in 0..responses {
            let values = &column(block.response, response)[range.clone()];
            let centre = if coordinates.intercept { coordinates.response_centre[response] } else { 0.0 };
            for out in part.residual.chunks_exact_mut(rows) {
                out.iter_mut().zip(values).for_each(|(out, value)| *out = value - centre);
            }
            let rotated = MatRef::from_column_major_slice(&part.rotated, rows, size);
            let residual = MatMut::from_column_major_slice_mut(&mut part.residual, rows, points);
            matmul(residual, Accum::Add, rotated, slopes.subcols(response * points, points), 1.0, Par::Seq);
            for (point, (residual, leverage)) in part.residual.chunks_exact(rows).zip(part.leverage.chunks_exact(rows)).enumerate() {
                let (squared, left_out) = match weights {
                    None => sums(residual, leverage, level),
                    Some(weights) => weighted_sums(residual, leverage, weights, level),
                };
                part.squared[response * points + point] += squared;
                part.left_out[response * points + point] += left_out;
            }
        }
    }
}

/// (x − c)·s.
fn scaled_columns(coordinates: &Coordinates, block: &Block<'_>, range: &std::ops::Range<usize>, out: &mut Vec<f64>) {
    out.resize(range.len() * coordinates.predictors(), 0.0);
    for (predictor, out) in out.chunks_exact_mut(range.len()).enumerate() {
        debug_assert_eq!(coordinates.column(coordinates.place(predictor)), SystemColumn::Predictor(predictor));
        let (centre, scale) = (coordinates.centre[predictor], coordinates.scale[predictor]);
        for (out, value) in out.iter_mut().zip(&column(block.design, predictor)[range.clone()]) {
            *out = (value - centre) * scale;
        }
    }
}

/// Independent partial sums: enough to fill the widest registers.
const LANES: usize = 8;

/// Σr² and Σ(r/(1 − h))² with h = `level` + the leverage of the slopes.
fn sums(residual: &[f64], leverage: &[f64], level: f64) -> (f64, f64) {
    let (mut squared, mut left_out) = ([0.0; LANES], [0.0; LANES]);
    let (residuals, rest) = residual.as_chunks::<LANES>();
    let (leverages, leverage_rest) = leverage.as_chunks::<LANES>();
    for (residual, leverage) in residuals.iter().zip(leverages) {
        for lane in 0..LANES {
            let error = residual[lane] / free(1.0 - (level + leverage[lane]));
            squared[lane] += residual[lane] * residual[lane];
            left_out[lane] += error * error;
        }
    }
    for (residual, leverage) in rest.iter().zip(leverage_rest) {
        let error = residual / free(1.0 - (level + leverage));
        squared[0] += residual * residual;
        left_out[0] += error * error;
    }
    (squared.iter().sum(), left_out.iter().sum())
}

/// The same with weights; a row without any takes no part.
fn weighted_sums(residual: &[f64], leverage: &[f64], weights: &[f64], level: f64) -> (f64, f64) {
    let (mut squared, mut left_out) = (0.0, 0.0);
    for ((residual, leverage), weight) in residual.iter().zip(leverage).zip(weights) {
        if *weight > 0.0 {
            let error = residual / free(1.0 - weight * (level + leverage));
            squared += weight * residual * residual;
            left_out += weight * error * error;
        }
    }
    (squared, left_out)
}

/// 1 − h, and 0 where it is rounding: the error of such a row has no bound.
fn free(rest: f64) -> f64 {
    if rest > FREE { rest } else { 0.0 }
}
