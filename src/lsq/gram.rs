//! The first pass: the Gram matrix of everything, centred and scaled, in blocks at matrix-multiply speed.
//!
//! The columns (1, X, Y) are shifted by the means of the first block and multiplied into one symmetric product; the shift is then moved
//! to the means of all rows by algebra: Σ(x−c−δ)(z−d−ε) = Σ(x−c)(z−d) − δΣ(z−d) − εΣ(x−c) + nδε. The first block's means take out any
//! offset that is large against the spread, so nothing is lost by cancellation (Chan, Golub & LeVeque, *Algorithms for computing the
//! sample variance*, 1983).

use faer::Mat;

use super::Error;
use super::coordinates::{Coordinates, column, in_parts, part_count, power_of_two_below_inverse};
use super::problem::{Block, RowSource};
pub(super) use super::product::symmetric_product;

/// What the first pass finds.
pub(super) struct Scan {
    pub(super) coordinates: Coordinates,
    /// Rows of positive weight.
    pub(super) rows: u64,
    /// Σw.
    pub(super) weight: f64,
    /// Σ log w over rows of positive weight.
    pub(super) log_weight: f64,
    /// Predictors that hold one value only (with an intercept), or zeros only (without).
    pub(super) constant: Vec<bool>,
    /// Predictors that an estimator holds where they are: they take no part in solving.
    pub(super) held: Vec<bool>,
    /// Gram matrix of the p predictors in coordinates, both triangles.
    pub(super) gram: Mat<f64>,
    /// Predictors against responses, p×q.
    pub(super) cross: Mat<f64>,
    /// The largest Σw(x − first mean)² of a predictor relative to its Σw(x − mean)²: the rounding of the Gram matrix in units of its own.
    pub(super) cancellation: f64,
}

/// One thread's share.
struct Part {
    buffer: Vec<f64>,
    roots: Vec<f64>,
    product: Mat<f64>,
    rows: u64,
    log_weight: f64,
    /// Columns in which two different values were met.
    varied: Vec<bool>,
}

/// Rows of a buffer: few enough for seven columns to stay in a core's first-level cache, and a hundred in its second; many enough for a wide
/// product, which is read and written once a buffer. Not a power of two: columns would begin in the same places of a cache.
const BUFFER_ROWS: usize = 496;
/// The same for a product that no cache holds.
const WIDE_BUFFER_ROWS: usize = 1008;
/// Columns from which that is so.
const WIDE: usize = 1000;

/// Makes the first pass.
pub(super) fn scan(source: &mut dyn RowSource, intercept: bool) -> Result<Scan, Error> {
    let (predictors, responses) = (source.predictors(), source.responses());
    let width = 1 + predictors + responses;
    let mut parts: Vec<Part> = (0..part_count())
        .map(|_| Part {
            buffer: Vec::new(),
            roots: Vec::new(),
            product: Mat::zeros(width, width),
            rows: 0,
            log_weight: 0.0,
            varied: vec![false; predictors],
        })
        .collect();
    let mut first: Option<(Vec<f64>, Vec<f64>, Vec<f64>)> = None;
    source.pass(&mut |block| {
        if block.rows() == 0 {
            return Ok(());
        }
        let (shift, scale, opening) = first.get_or_insert_with(|| provisional(block, intercept));
        in_parts(block, width, &mut parts, |part, range| accumulate(part, block, range, shift, scale, opening));
        Ok(())
    })?;
    let Some((shift, scale, opening)) = first else { return Err(Error::NoRows) };
    let mut parts = parts.into_iter();
    let Some(mut total) = parts.next() else { return Err(Error::NoRows) };
    for part in parts {
        total.product += &part.product;
        total.rows += part.rows;
        total.log_weight += part.log_weight;
        total.varied.iter_mut().zip(part.varied).for_each(|(total, part)| *total |= part);
    }
    finish(total, intercept, predictors, responses, &shift, &scale, &opening)
}

/// Shift and scale of every column of (X, Y) by the first block, and its first row, against which "constant" is judged.
pub(super) fn provisional(block: &Block<'_>, intercept: bool) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let columns = (0..block.design.ncols()).map(|index| column(block.design, index));
    let responses = (0..block.response.ncols()).map(|index| column(block.response, index));
    let (mut shift, mut scale, mut opening) = (Vec::new(), Vec::new(), Vec::new());
    for values in columns.chain(responses) {
        let head = &values[..values.len().min(4096)];
        #[allow(clippy::cast_precision_loss)] // at most 4096
        let count = head.len() as f64;
        // Divided first: the sum of large finite values need not be finite.
        let mean = if intercept { head.iter().map(|value| value / count).sum::<f64>() } else { 0.0 };
        let size = head.iter().fold(0.0_f64, |size, value| size.max((value - mean).abs()));
        shift.push(mean);
        scale.push(power_of_two_below_inverse(if size > 0.0 { size } else { mean.abs() }));
        opening.push(values.first().copied().unwrap_or(0.0));
    }
    (shift, scale, opening)
}

fn accumulate(part: &mut Part, block: &Block<'_>, range: std::ops::Range<usize>, shift: &[f64], scale: &[f64], opening: &[f64]) {
    let arch = pulp::Arch::new();
    let (predictors, responses) = (block.design.ncols(), block.response.ncols());
    let width = 1 + predictors + responses;
    let at_once = if width < WIDE { BUFFER_ROWS } else { WIDE_BUFFER_ROWS };
    let mut begin = range.start;
    while begin < range.end {
        let end = range.end.min(begin + at_once);
        let rows = end - begin;
        part.buffer.resize(rows * width, 0.0);
        let buffer = &mut part.buffer[..rows * width];
        match block.weights {
            Some(weights) => {
                part.roots.clear();
                part.roots.extend(weights[begin..end].iter().map(|weight| weight.sqrt()));
                for weight in weights[begin..end].iter().filter(|weight| **weight > 0.0) {
                    part.rows += 1;
                    part.log_weight += weight.ln();
                }
                buffer[..rows].copy_from_slice(&part.roots);
            }
            None => {
                part.rows += rows as u64;
                buffer[..rows].fill(1.0);
            }
        }
        for index in 0..predictors + responses {
            let values = if index < predictors { column(block.design, index) } else { column(block.response, index - predictors) };
            let values = &values[begin..end];
            if index < predictors && !part.varied[index] {
                let opening = opening[index];
                part.varied[index] = match block.weights {
                    // A row without weight says nothing.
                    Some(weights) => values.iter().zip(&weights[begin..end]).any(|(value, weight)| *weight > 0.0 && *value != opening),
                    None => values.iter().any(|value| *value != opening),
                };
            }
            let out = &mut buffer[(1 + index) * rows..(2 + index) * rows];
            let (shift, scale) = (shift[index], scale[index]);
            let roots = block.weights.map(|_| part.roots.as_slice());
            arch.dispatch(
                #[inline(always)]
                || {
                    for (out, value) in out.iter_mut().zip(values) {
                        *out = (value - shift) * scale;
                    }
                    if let Some(roots) = roots {
                        for (out, root) in out.iter_mut().zip(roots) {
                            *out *= root;
                        }
                    }
                },
            );
        }
        let matrix = faer::MatRef::from_column_major_slice(buffer, rows, width);
        symmetric_product(part.product.as_mut(), matrix);
        begin = end;
    }
}

/// Copies the lower triangle to the upper one.
pub(super) fn mirror(matrix: &mut Mat<f64>) {
    for column in 0..matrix.ncols() {
        for row in column + 1..matrix.nrows() {
            matrix[(column, row)] = matrix[(row, column)];
        }
    }
}

fn finish(
    total: Part,
    intercept: bool,
    predictors: usize,
    responses: usize,
    shift: &[f64],
    scale: &[f64],
    opening: &[f64],
) -> Result<Scan, Error> {
    let mut product = total.product;
    mirror(&mut product);
    for index in 0..product.nrows() {
        if product[(index, index)].is_nan() {
            return Err(Error::NonFinite);
        }
        if product[(index, index)].is_infinite() {
            return Err(Error::Overflow);
        }
    }
    let weight = product[(0, 0)];
    if total.rows == 0 || weight <= 0.0 {
        return Err(Error::NoWeight);
    }
    let all = predictors + responses;
    // How far each centre lies from the shift, in scaled units, as the rounded centre has it.
    let mut centre = vec![0.0; all];
    let mut moved = vec![0.0; all];
    if intercept {
        for index in 0..all {
            let varied = index >= predictors || total.varied[index];
            centre[index] = if varied { shift[index] + product[(0, 1 + index)] / weight / scale[index] } else { opening[index] };
            moved[index] = (centre[index] - shift[index]) * scale[index];
        }
    }
    let about = |i: usize, j: usize| {
        product[(1 + i, 1 + j)] - moved[i] * product[(0, 1 + j)] - moved[j] * product[(0, 1 + i)] + weight * moved[i] * moved[j]
    };
    let mut own_scale = vec![1.0; predictors];
    let mut cancellation = 1.0_f64;
    for (index, own) in own_scale.iter_mut().enumerate() {
        // So that the columns of X̃ have a norm between 1 and 2 times √Σw.
        let square = about(index, index).max(0.0);
        if total.varied[index] {
            cancellation = cancellation.max(product[(1 + index, 1 + index)] / square);
        }
        let size = (square / weight).sqrt() / scale[index];
        *own = power_of_two_below_inverse(if total.varied[index] && size > 0.0 { size } else { opening[index].abs() });
    }
    let ratio = |index: usize| own_scale[index] / scale[index];
    let gram = Mat::from_fn(predictors, predictors, |i, j| about(i, j) * ratio(i) * ratio(j));
    let cross = Mat::from_fn(predictors, responses, |i, j| about(i, predictors + j) * ratio(i) / scale[predictors + j]);
    let constant = (0..predictors).map(|index| !total.varied[index] && (intercept || opening[index] == 0.0)).collect();
    let coordinates =
        Coordinates { intercept, centre: centre[..predictors].to_vec(), scale: own_scale, response_centre: centre[predictors..].to_vec() };
    Ok(Scan {
        coordinates,
        rows: total.rows,
        weight,
        log_weight: total.log_weight,
        constant,
        held: vec![false; predictors],
        gram,
        cross,
        cancellation,
    })
}
