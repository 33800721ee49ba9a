//! The triangular factor of the system by Householder QR, block by block, and its column-pivoted form.
//!
//! Each block of rows is stacked under the triangle so far and factored again (Golub & Van Loan, *Matrix Computations*, 4th ed., §6.5.3;
//! Demmel, Grigori, Hoemmen & Langou, *Communication-optimal parallel and sequential QR*, 2012). Threads keep a triangle each; the
//! triangles are factored together in the end. A ridge penalty enters as rows √penalty·e below the data.

use faer::linalg::solvers::{ColPivQr, Qr};
use faer::{Mat, MatRef};

use super::Error;
use super::coordinates::{Coordinates, SystemColumn, column, in_parts, part_count};
use super::problem::RowSource;

struct Part {
    triangle: Mat<f64>,
}

/// The upper triangular factor R (m×m; fewer rows when the data has fewer) of some columns of the system, weights included.
pub(super) fn triangle(source: &mut dyn RowSource, coordinates: &Coordinates, columns: &[usize], penalty: f64) -> Result<Mat<f64>, Error> {
    let width = columns.len();
    let mut parts: Vec<Part> = (0..part_count()).map(|_| Part { triangle: Mat::zeros(0, width) }).collect();
    // A factorisation costs 2·(rows + m)·m²: blocks much longer than the triangle waste little on it.
    let at_once = (3 * width).max(256);
    source.pass(&mut |block| {
        in_parts(block, width, &mut parts, |part, range| {
            let mut begin = range.start;
            while begin < range.end {
                let end = range.end.min(begin + at_once);
                let above = part.triangle.nrows();
                let mut stacked = Mat::zeros(above + end - begin, width);
                stacked.subrows_mut(0, above).copy_from(&part.triangle);
                for (place, &system) in columns.iter().enumerate() {
                    let out = &mut stacked.col_as_slice_mut(place)[above..];
                    match coordinates.column(system) {
                        SystemColumn::Ones => out.fill(1.0),
                        SystemColumn::Predictor(predictor) => {
                            let (centre, scale) = (coordinates.centre[predictor], coordinates.scale[predictor]);
                            for (out, value) in out.iter_mut().zip(&column(block.design, predictor)[begin..end]) {
                                *out = (value - centre) * scale;
                            }
                        }
                    }
                    if let Some(weights) = block.weights {
                        for (out, weight) in out.iter_mut().zip(&weights[begin..end]) {
                            *out *= weight.sqrt();
                        }
                    }
                }
                part.triangle = factor(stacked.as_ref());
                begin = end;
            }
        });
        Ok(())
    })?;
    let penalised: Vec<usize> = if penalty > 0.0 {
        (0..width).filter(|place| coordinates.column(columns[*place]) != SystemColumn::Ones).collect()
    } else {
        Vec::new()
    };
    let rows: usize = parts.iter().map(|part| part.triangle.nrows()).sum();
    let mut stacked = Mat::zeros(rows + penalised.len(), width);
    let mut above = 0;
    for part in &parts {
        let count = part.triangle.nrows();
        stacked.subrows_mut(above, count).copy_from(&part.triangle);
        above += count;
    }
    for place in penalised {
        stacked[(above, place)] = penalty.sqrt() * coordinates.scale_of(columns[place]);
        above += 1;
    }
    Ok(factor(stacked.as_ref()))
}

/// The upper triangular factor of a small matrix, min(rows, columns) × columns.
pub(super) fn factor(matrix: MatRef<'_, f64>) -> Mat<f64> {
    let size = matrix.nrows().min(matrix.ncols());
    if size == 0 {
        return Mat::zeros(0, matrix.ncols());
    }
    let qr = Qr::new(matrix);
    let triangle = qr.thin_R();
    Mat::from_fn(size, matrix.ncols(), |row, column| if row <= column { triangle[(row, column)] } else { 0.0 })
}

/// The column-pivoted triangle of a small matrix and which of its columns stands at each place. Columns before `fixed` keep their place.
pub(super) fn pivoted(triangle: MatRef<'_, f64>, fixed: usize) -> (Mat<f64>, Vec<usize>) {
    let (rows, columns) = triangle.shape();
    let tail = triangle.submatrix(fixed.min(rows), fixed, rows - fixed.min(rows), columns - fixed);
    let size = tail.nrows().min(tail.ncols());
    let mut order: Vec<usize> = (0..fixed).collect();
    if size == 0 {
        order.extend(fixed..columns);
        return (triangle.to_owned(), order);
    }
    let qr = ColPivQr::new(tail);
    let (forward, _) = qr.P().arrays();
    order.extend(forward.iter().map(|place| fixed + place));
    let pivoted = qr.thin_R();
    let mut result = Mat::zeros(fixed.min(rows) + size, columns);
    for (place, &from) in order.iter().enumerate() {
        for row in 0..fixed.min(rows).min(if place < fixed { place + 1 } else { usize::MAX }) {
            result[(row, place)] = triangle[(row, from)];
        }
        if place >= fixed {
            for row in 0..size.min(place - fixed + 1) {
                result[(fixed + row, place)] = pivoted[(row, place - fixed)];
            }
        }
    }
    (result, order)
}
