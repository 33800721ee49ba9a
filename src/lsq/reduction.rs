//! Principal components of the predictors, and regression on them: fewer directions than columns, in the order of how much the rows vary
//! along them. Not a selection by what predicts the response, which the components know nothing of.
//!
//! With Z the columns centred (and divided by their standard deviations when that is asked), the components are the eigenvectors of
//! C = ZᵀuZ·n/((n − 1)Σu), n the rows of positive weight. Their signs are fixed so that the largest entry of each is positive.
//!
//! *Exactly*: one pass forms C, and its eigenvectors follow. *By a sketch*, for columns in the thousands, C is never formed: a block of
//! k + oversampling random directions Ω is multiplied by C in one pass over the rows, Y = Zᵀu(ZΩ), made orthonormal and multiplied again
//! (subspace iteration), and the leading components are those of the small matrix QᵀCQ; the multiplications end when the residual
//! ‖Cv − λv‖ of every component that is asked for is small against its eigenvalue (Halko, Martinsson & Tropp, *Finding structure with
//! randomness*, 2011, algorithms 4.4 and 5.3; Saad, *Numerical Methods for Large Eigenvalue Problems*, 2nd ed., §5.2).
//!
//! The coefficient of a component is vᵀc/λ, with c the covariances of Z with the response; the slopes of raw columns follow by going back.

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{Qr, SelfAdjointEigen};
use faer::{Accum, Mat, MatRef, Par, Side};

use super::Error;
use super::coordinates::{Coordinates, column, in_parts, part_count};
use super::double_double::Double;
use super::gram::{self, provisional};
use super::problem::RowSource;
use super::validation::mix;

/// How many components are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// So many, or as many as the rows have.
    Count(usize),
    /// The fewest that explain this part of the variance, in (0, 1].
    Variance(f64),
}

/// Random directions instead of the whole matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sketch {
    /// Directions beyond the components asked for.
    pub oversampling: usize,
    /// Passes over the rows at the most, after the one that finds means and deviations.
    pub passes: usize,
    /// Residual of a component relative to its eigenvalue at which the passes end.
    pub tolerance: f64,
    /// Of the directions.
    pub seed: u64,
}

impl Default for Sketch {
    fn default() -> Self {
        Self { oversampling: 10, passes: 20, tolerance: 1e-8, seed: 0 }
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reduction {
    /// How many components are kept.
    pub keep: Keep,
    /// Whether columns are divided by their standard deviations.
    pub standardise: bool,
    /// A sketch, or the exact components when there is none. A sketch keeps a count of components, not a part of the variance.
    pub sketch: Option<Sketch>,
}

/// Principal components.
#[derive(Clone, Debug)]
pub struct Components {
    /// Means, p.
    pub centre: Vec<f64>,
    /// What centred columns are divided by: standard deviations (of n, not n − 1), or 1; 1 for a column that does not vary.
    pub scale: Vec<f64>,
    /// Orthonormal directions, p×k.
    pub loadings: Mat<f64>,
    /// Variances along them (of n − 1), k, falling.
    pub variances: Vec<f64>,
    /// Which part of the whole variance each explains, k.
    pub explained: Vec<f64>,
    /// Passes over the rows that were made.
    pub passes: usize,
    /// Whether a sketch reached its tolerance; the exact way always does.
    pub converged: bool,
}

impl Components {
    /// k.
    #[must_use]
    pub fn count(&self) -> usize {
        self.variances.len()
    }

    /// Places of a row x (p) along the components (k).
    pub fn project(&self, x: &[f64], along: &mut [f64]) {
        for (index, along) in along.iter_mut().enumerate().take(self.count()) {
            let loadings = self.loadings.col_as_slice(index);
            let columns = x.iter().zip(&self.centre).zip(&self.scale).zip(loadings);
            *along = columns.map(|(((x, centre), scale), loading)| (x - centre) / scale * loading).sum();
        }
    }
}

/// Regression on principal components.
#[derive(Clone, Debug)]
pub struct ComponentRegression {
    /// What the regression is on.
    pub components: Components,
    /// Of the components, k×q.
    pub coefficients: Mat<f64>,
    /// Raw slopes, p×q.
    pub slopes: Mat<f64>,
    /// Raw intercepts, q.
    pub intercepts: Vec<f64>,
}

/// Finds the principal components of the predictors.
///
/// # Errors
/// See [`Error`].
pub fn principal_components(source: &mut dyn RowSource, reduction: &Reduction) -> Result<Components, Error> {
    reduce(source, reduction).map(|reduced| reduced.components)
}

/// Regresses the responses on the principal components of the predictors, with an intercept.
///
/// # Errors
/// See [`Error`].
pub fn component_regression(source: &mut dyn RowSource, reduction: &Reduction) -> Result<ComponentRegression, Error> {
    let Reduced { components, along, response_centre } = reduce(source, reduction)?;
    let (predictors, responses) = (components.centre.len(), response_centre.len());
    let coefficients =
        Mat::from_fn(components.count(), responses, |place, response| along[(place, response)] / components.variances[place]);
    let mut slopes = &components.loadings * &coefficients;
    for response in 0..responses {
        for (slope, scale) in slopes.col_as_slice_mut(response).iter_mut().zip(&components.scale) {
            *slope /= scale;
        }
    }
    let intercepts = (0..responses)
        .map(|response| {
            let mut sum = Double::from(response_centre[response]);
            for predictor in 0..predictors {
                sum += -Double::product(slopes[(predictor, response)], components.centre[predictor]);
            }
            sum.to_f64()
        })
        .collect();
    Ok(ComponentRegression { components, coefficients, slopes, intercepts })
}

struct Reduced {
    components: Components,
    /// Covariances (of n − 1) of the components with the responses, k×q.
    along: Mat<f64>,
    response_centre: Vec<f64>,
}

fn reduce(source: &mut dyn RowSource, reduction: &Reduction) -> Result<Reduced, Error> {
    match (reduction.keep, reduction.sketch) {
        (Keep::Variance(part), _) if !(part > 0.0 && part <= 1.0) => Err(Error::Solver("the part of the variance to keep lies in (0, 1]")),
        (Keep::Count(0), _) => Err(Error::Solver("at least one component is kept")),
        (_, None) => exact(source, reduction),
        (Keep::Count(count), Some(sketch)) => sketched(source, count, reduction.standardise, &sketch),
        (Keep::Variance(_), Some(_)) => Err(Error::Solver("a sketch keeps a count of components, not a part of the variance")),
    }
}

/// n/((n − 1)Σu): from sums of products to covariances.
fn divisor(rows: u64, weight: f64) -> Result<f64, Error> {
    if rows < 2 {
        return Err(Error::Solver("principal components take at least two rows"));
    }
    #[allow(clippy::cast_precision_loss)]
    let rows = rows as f64;
    Ok(rows / (rows - 1.0) / weight)
}

fn exact(source: &mut dyn RowSource, reduction: &Reduction) -> Result<Reduced, Error> {
    let scan = gram::scan(source, true)?;
    let coordinates = &scan.coordinates;
    let (predictors, responses) = (coordinates.predictors(), coordinates.responses());
    let divisor = divisor(scan.rows, scan.weight)?;
    let deviations: Vec<f64> =
        (0..predictors).map(|own| (scan.gram[(own, own)].max(0.0) / scan.weight).sqrt() / coordinates.scale[own]).collect();
    let scale: Vec<f64> = (0..predictors).map(|own| unit(reduction.standardise, scan.constant[own], deviations[own])).collect();
    let factor = |own: usize| if scan.constant[own] { 0.0 } else { (coordinates.scale[own] * scale[own]).recip() };
    let covariance = Mat::from_fn(predictors, predictors, |i, j| scan.gram[(i, j)] * divisor * factor(i) * factor(j));
    let cross = Mat::from_fn(predictors, responses, |i, j| scan.cross[(i, j)] * divisor * factor(i));
    let total: f64 = (0..predictors).map(|own| covariance[(own, own)]).sum();
    if !(total.is_finite() && finite(cross.as_ref())) {
        return Err(Error::Overflow);
    }
    let (values, vectors) = eigen(covariance.as_ref())?;
    let rank = numerical_rank(&values, predictors, scan.rows);
    let kept = match reduction.keep {
        Keep::Count(count) => count.min(rank),
        Keep::Variance(part) => {
            let mut sum = 0.0;
            // A sum of parts may stay a rounding below the whole.
            let enough = part * total * (1.0 - 1e-12);
            values[..rank].iter().position(|value| (sum += value, sum >= enough).1).map_or(rank, |last| last + 1)
        }
    };
    let loadings = oriented(vectors.subcols(0, kept));
    let along = loadings.transpose() * &cross;
    let variances = values[..kept].to_vec();
    let explained = variances.iter().map(|variance| variance / total).collect();
    let components = Components { centre: coordinates.centre.clone(), scale, loadings, variances, explained, passes: 1, converged: true };
    Ok(Reduced { components, along, response_centre: coordinates.response_centre.clone() })
}

fn unit(standardise: bool, constant: bool, deviation: f64) -> f64 {
    if standardise && !constant && deviation > 0.0 { deviation } else { 1.0 }
}

fn finite(matrix: MatRef<'_, f64>) -> bool {
    matrix.col_iter().all(|column| column.iter().all(|value| value.is_finite()))
}

/// Eigenvalues, falling, and their vectors.
fn eigen(matrix: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>), Error> {
    let size = matrix.nrows();
    if size == 0 {
        return Ok((Vec::new(), Mat::new()));
    }
    let found = SelfAdjointEigen::new(matrix, Side::Lower)
        .map_err(|_| Error::Solver("the eigenvalues of the predictors' covariance did not converge"))?;
    let (values, vectors) = (found.S().column_vector(), found.U());
    let falling = (0..size).rev().map(|place| values[place].max(0.0)).collect();
    Ok((falling, Mat::from_fn(size, size, |row, place| vectors[(row, size - 1 - place)])))
}

/// Components whose variance is more than rounding.
fn numerical_rank(values: &[f64], predictors: usize, rows: u64) -> usize {
    #[allow(clippy::cast_precision_loss)]
    let nothing = values.first().copied().unwrap_or(0.0) * f64::EPSILON * predictors.max(8) as f64;
    let most = usize::try_from(rows - 1).unwrap_or(usize::MAX).min(values.len());
    values[..most].iter().take_while(|value| **value > nothing).count()
}

/// With the largest entry of each column positive; the first of equals decides.
fn oriented(vectors: MatRef<'_, f64>) -> Mat<f64> {
    let mut vectors = vectors.to_owned();
    for place in 0..vectors.ncols() {
        let own = vectors.col_as_slice_mut(place);
        let largest = own.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        // Entries that are equal but for rounding count as equal, so that the sign does not hang on it.
        let leading = own.iter().find(|value| value.abs() >= largest * (1.0 - 1e-9)).copied().unwrap_or(1.0);
        if leading < 0.0 {
            own.iter_mut().for_each(|value| *value = -*value);
        }
    }
    vectors
}

/// Means and deviations of all columns.
struct Summary {
    coordinates: Coordinates,
    deviations: Vec<f64>,
    rows: u64,
    weight: f64,
    constant: Vec<bool>,
}

/// One thread's share of the first pass.
struct Sums {
    rows: u64,
    weight: f64,
    first: Vec<f64>,
    second: Vec<f64>,
    varied: Vec<bool>,
}

/// The pass that finds means and deviations without any product of columns.
fn summarise(source: &mut dyn RowSource) -> Result<Summary, Error> {
    let (predictors, responses) = (source.predictors(), source.responses());
    let all = predictors + responses;
    let mut parts: Vec<Sums> = (0..part_count())
        .map(|_| Sums { rows: 0, weight: 0.0, first: vec![0.0; all], second: vec![0.0; all], varied: vec![false; predictors] })
        .collect();
    let mut opening: Option<(Vec<f64>, Vec<f64>, Vec<f64>)> = None;
    source.pass(&mut |block| {
        if block.rows() == 0 {
            return Ok(());
        }
        let (shift, scale, opening) = opening.get_or_insert_with(|| provisional(block, true));
        in_parts(block, all, &mut parts, |part, range| {
            let weights = block.weights.map(|weights| &weights[range.clone()]);
            match weights {
                None => {
                    part.rows += range.len() as u64;
                    #[allow(clippy::cast_precision_loss)]
                    let rows = range.len() as f64;
                    part.weight += rows;
                }
                Some(weights) => {
                    part.rows += weights.iter().filter(|weight| **weight > 0.0).count() as u64;
                    part.weight += weights.iter().sum::<f64>();
                }
            }
            for index in 0..all {
                let values = if index < predictors { column(block.design, index) } else { column(block.response, index - predictors) };
                let values = &values[range.clone()];
                let weight = |row: usize| weights.map_or(1.0, |weights| weights[row]);
                if index < predictors && !part.varied[index] {
                    part.varied[index] = values.iter().enumerate().any(|(row, value)| *value != opening[index] && weight(row) > 0.0);
                }
                let (mut first, mut second) = (0.0, 0.0);
                for (row, value) in values.iter().enumerate() {
                    let own = (value - shift[index]) * scale[index];
                    let weighted = own * weight(row);
                    first += weighted;
                    second += weighted * own;
                }
                part.first[index] += first;
                part.second[index] += second;
            }
        });
        Ok(())
    })?;
    let Some((shift, scale, opening)) = opening else { return Err(Error::NoRows) };
    let mut parts = parts.into_iter();
    let Some(mut total) = parts.next() else { return Err(Error::NoRows) };
    for part in parts {
        total.rows += part.rows;
        total.weight += part.weight;
        total.first.iter_mut().zip(part.first).for_each(|(total, part)| *total += part);
        total.second.iter_mut().zip(part.second).for_each(|(total, part)| *total += part);
        total.varied.iter_mut().zip(part.varied).for_each(|(total, part)| *total |= part);
    }
    if total.second.iter().any(|sum| sum.is_nan()) {
        return Err(Error::NonFinite);
    }
    if total.second.iter().any(|sum| sum.is_infinite()) {
        return Err(Error::Overflow);
    }
    if total.weight <= 0.0 {
        return Err(Error::NoWeight);
    }
    let mean = |index: usize| total.first[index] / total.weight;
    let centre: Vec<f64> = (0..all)
        .map(|index| if index >= predictors || total.varied[index] { shift[index] + mean(index) / scale[index] } else { opening[index] })
        .collect();
    let deviations =
        (0..predictors).map(|index| (total.second[index] / total.weight - mean(index).powi(2)).max(0.0).sqrt() / scale[index]).collect();
    let constant = total.varied.iter().map(|varied| !varied).collect();
    let coordinates = Coordinates {
        intercept: true,
        centre: centre[..predictors].to_vec(),
        scale: scale[..predictors].to_vec(),
        response_centre: centre[predictors..].to_vec(),
    };
    Ok(Summary { coordinates, deviations, rows: total.rows, weight: total.weight, constant })
}

fn sketched(source: &mut dyn RowSource, count: usize, standardise: bool, sketch: &Sketch) -> Result<Reduced, Error> {
    let summary = summarise(source)?;
    let predictors = summary.coordinates.predictors();
    let divisor = divisor(summary.rows, summary.weight)?;
    let scale: Vec<f64> = (0..predictors).map(|own| unit(standardise, summary.constant[own], summary.deviations[own])).collect();
    let factor: Vec<f64> = (0..predictors).map(|own| if summary.constant[own] { 0.0 } else { scale[own].recip() }).collect();
    #[allow(clippy::cast_precision_loss)]
    let total: f64 = (0..predictors).map(|own| (summary.deviations[own] * factor[own]).powi(2)).sum::<f64>() * divisor * summary.weight;
    let most = usize::try_from(summary.rows - 1).unwrap_or(usize::MAX).min(predictors);
    let asked = count.min(most);
    let width = asked.saturating_add(sketch.oversampling).min(predictors);
    let mut random = Gaussian { state: mix(sketch.seed), spare: None };
    let mut basis = orthonormal(Mat::from_fn(predictors, width, |_, _| random.next()).as_ref());
    let mut passes = 1;
    loop {
        let (mut product, mut cross) = multiply(source, &summary, &factor, basis.as_ref())?;
        passes += 1;
        for matrix in [&mut product, &mut cross] {
            matrix.col_iter_mut().for_each(|column| column.iter_mut().for_each(|value| *value *= divisor));
        }
        if !(finite(product.as_ref()) && finite(cross.as_ref())) {
            return Err(Error::Overflow);
        }
        let small = basis.transpose() * &product;
        let small = Mat::from_fn(width, width, |i, j| 0.5 * (small[(i, j)] + small[(j, i)]));
        let (values, turned) = eigen(small.as_ref())?;
        let kept = asked.min(numerical_rank(&values, predictors, summary.rows));
        let turned = turned.subcols(0, kept);
        let vectors = &basis * turned;
        let images = &product * turned;
        let converged = (0..kept).all(|place| {
            let pairs = images.col_as_slice(place).iter().zip(vectors.col_as_slice(place));
            let rest: f64 = pairs.map(|(image, vector)| values[place].mul_add(-vector, *image).powi(2)).sum();
            rest.sqrt() <= sketch.tolerance * values[place]
        });
        if converged || passes > sketch.passes.max(1) {
            let loadings = oriented(vectors.as_ref());
            // The covariances of the components are those of the basis, turned; their signs are the loadings'.
            let mut along = turned.transpose() * &cross;
            for place in 0..kept {
                let same: f64 = loadings.col_as_slice(place).iter().zip(vectors.col_as_slice(place)).map(|(one, other)| one * other).sum();
                if same < 0.0 {
                    along.row_mut(place).iter_mut().for_each(|value| *value = -*value);
                }
            }
            let variances = values[..kept].to_vec();
            let explained = variances.iter().map(|variance| variance / total).collect();
            let components = Components { centre: summary.coordinates.centre, scale, loadings, variances, explained, passes, converged };
            return Ok(Reduced { components, along, response_centre: summary.coordinates.response_centre });
        }
        basis = orthonormal(product.as_ref());
    }
}

/// An orthonormal basis of the columns.
fn orthonormal(matrix: MatRef<'_, f64>) -> Mat<f64> {
    Qr::new(matrix).compute_thin_Q()
}

/// One thread's share of a multiplication.
struct Part {
    rows: Vec<f64>,
    /// Zᵀu(ZQ), p×l.
    product: Mat<f64>,
    /// (ZQ)ᵀu(y − ȳ), l×q.
    cross: Mat<f64>,
}

/// Zᵀu(ZQ) and (ZQ)ᵀu(y − ȳ) in one pass.
fn multiply(source: &mut dyn RowSource, summary: &Summary, factor: &[f64], basis: MatRef<'_, f64>) -> Result<(Mat<f64>, Mat<f64>), Error> {
    /// Rows at once: many enough for products to run at speed, few enough to stay in the cache.
    const ROWS_AT_ONCE: usize = 128;
    let coordinates = &summary.coordinates;
    let (predictors, responses, width) = (coordinates.predictors(), coordinates.responses(), basis.ncols());
    let mut parts: Vec<Part> = (0..part_count())
        .map(|_| Part { rows: Vec::new(), product: Mat::zeros(predictors, width), cross: Mat::zeros(width, responses) })
        .collect();
    source.pass(&mut |block| {
        in_parts(block, predictors, &mut parts, |part, range| {
            let mut begin = range.start;
            while begin < range.end {
                let end = range.end.min(begin + ROWS_AT_ONCE);
                let count = end - begin;
                part.rows.resize(count * predictors, 0.0);
                let buffer = &mut part.rows[..count * predictors];
                for predictor in 0..predictors {
                    let (centre, factor) = (coordinates.centre[predictor], factor[predictor]);
                    let out = &mut buffer[predictor * count..(predictor + 1) * count];
                    for (out, value) in out.iter_mut().zip(&column(block.design, predictor)[begin..end]) {
                        *out = (value - centre) * factor;
                    }
                }
                let rows = MatRef::from_column_major_slice(buffer, count, predictors);
                let mut along = Mat::zeros(count, width);
                matmul(along.as_mut(), Accum::Replace, rows, basis, 1.0, Par::Seq);
                if let Some(weights) = block.weights {
                    for place in 0..width {
                        along.col_as_slice_mut(place).iter_mut().zip(&weights[begin..end]).for_each(|(value, weight)| *value *= weight);
                    }
                }
                matmul(part.product.as_mut(), Accum::Add, rows.transpose(), along.as_ref(), 1.0, Par::Seq);
                let centred = Mat::from_fn(count, responses, |row, response| {
                    column(block.response, response)[begin + row] - coordinates.response_centre[response]
                });
                matmul(part.cross.as_mut(), Accum::Add, along.transpose(), centred.as_ref(), 1.0, Par::Seq);
                begin = end;
            }
        });
        Ok(())
    })?;
    let mut parts = parts.into_iter();
    let (mut product, mut cross) = parts.next().map_or_else(|| (Mat::new(), Mat::new()), |part| (part.product, part.cross));
    for part in parts {
        product += &part.product;
        cross += &part.cross;
    }
    Ok((product, cross))
}

/// Standard Gaussian numbers by the polar method (Marsaglia & Bray, *A convenient method for generating normal variables*, 1964).
struct Gaussian {
    state: u64,
    spare: Option<f64>,
}

impl Gaussian {
    fn uniform(&mut self) -> f64 {
        self.state = mix(self.state);
        #[allow(clippy::cast_precision_loss)] // 53 bits
        let unit = (self.state >> 11) as f64 / (1_u64 << 53) as f64;
        2.0f64.mul_add(unit, -1.0)
    }

    fn next(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (one, other) = (self.uniform(), self.uniform());
            let square = one.mul_add(one, other * other);
            if square > 0.0 && square < 1.0 {
                let factor = (-2.0 * square.ln() / square).sqrt();
                self.spare = Some(other * factor);
                return one * factor;
            }
        }
    }
}
