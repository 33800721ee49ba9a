//! Rows seen from a finished fit: whitened, with their leverages and residuals, block by block.
//!
//! With RᵀR = X̃ᵀX̃ + penalty and M = R⁻¹, a row of W = √w·X̃·M has the squared norm h = w·x̃ᵀ(X̃ᵀX̃ + penalty)⁻¹x̃, its *leverage*, and
//! every quadratic form in β̂'s covariance is one in W: J·(Wᵀ·…·W)·Jᵀ, where J takes M back to raw coordinates, the intercept first.
//! Where the design is rank deficient, M spans as many columns as there is rank, and J leaves out the directions in which the rows say
//! nothing, as the coefficients of smallest norm do.

use std::ops::Range;

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::{Llt, Solve as _};
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};

use super::Error;
use super::coordinates::{Coordinates, SystemColumn, column};
use super::ordinary::Fit;
use super::problem::{Block, Row, RowSource};
use super::qr;
use super::recursive::Information;

/// Cells of a buffer that stay in a core's own cache.
const BUFFER_CELLS: usize = 32 * 1024;

/// Free part 1 − h of a row below which the fit passes through it: nothing is known of its residual.
pub(super) const FREE: f64 = 1e-9;

/// The map from rows to whitened rows.
pub(super) struct Whitening<'a> {
    information: &'a Information,
    coordinates: Coordinates,
    /// q.
    level: Vec<f64>,
    /// Slopes of the system's columns, m×q; zero in the column of ones.
    slopes: Mat<f64>,
    /// M, m×k.
    root: Mat<f64>,
    /// Whether M is upper triangular.
    triangular: bool,
    /// J, m×k.
    raw: Mat<f64>,
}

/// Some whitened rows.
#[derive(Default)]
pub(super) struct Chunk {
    rows: usize,
    system: Vec<f64>,
    white: Vec<f64>,
    /// √w.
    pub(super) roots: Vec<f64>,
    pub(super) leverage: Vec<f64>,
    /// y − ŷ, rows×q.
    residual: Vec<f64>,
}

impl Chunk {
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// W, rows×k.
    pub(super) fn white(&self) -> MatRef<'_, f64> {
        MatRef::from_column_major_slice(&self.white, self.rows, self.white.len().checked_div(self.rows).unwrap_or(0))
    }

    /// A column of W.
    pub(super) fn white_column(&self, index: usize) -> &[f64] {
        &self.white[index * self.rows..(index + 1) * self.rows]
    }

    /// Residuals of a response, as they are.
    pub(super) fn residual(&self, response: usize) -> &[f64] {
        &self.residual[response * self.rows..(response + 1) * self.rows]
    }
}

impl<'a> Whitening<'a> {
    /// For the rows of which `fit` was made; they are visited only where the design is rank deficient.
    pub(super) fn of(source: &mut dyn RowSource, fit: &'a Fit) -> Result<Self, Error> {
        let information = &fit.information;
        let origin = information.origin();
        let (predictors, responses) = (origin.centre.len(), origin.level.len());
        let coordinates = Coordinates {
            intercept: origin.intercept,
            centre: origin.centre.clone(),
            scale: origin.scale.clone(),
            response_centre: vec![0.0; responses],
        };
        let width = coordinates.width();
        // A coefficient without any error is that of a constant, or was held where it is.
        let varies = |place: usize| match coordinates.column(place) {
            SystemColumn::Ones => true,
            SystemColumn::Predictor(predictor) => origin.slope_roots[predictor] != 0.0,
        };
        let columns: Vec<usize> = (0..width).filter(|place| varies(*place)).collect();
        let (mut order, mut null) = (columns.clone(), None);
        let triangle = if fit.rank < columns.len() {
            let triangle = qr::triangle(source, &coordinates, &columns, 0.0)?;
            let (triangle, places) = qr::pivoted(triangle.as_ref(), usize::from(coordinates.intercept));
            let size = fit.rank.min(triangle.nrows());
            order = places[..size].iter().map(|place| columns[*place]).collect();
            let dependent: Vec<usize> = places[size..].iter().map(|place| columns[*place]).collect();
            let related = triangle.submatrix(0, size, size, dependent.len()).to_owned();
            null = Some((dependent, related));
            triangle.submatrix(0, 0, size, size).to_owned()
        } else if columns.len() < width {
            let whole = information.triangle();
            qr::factor(Mat::from_fn(width, columns.len(), |row, place| whole[(row, columns[place])]).as_ref())
        } else {
            information.triangle()
        };
        let size = order.len();
        let mut inverse = Mat::zeros(size, size);
        if size > 0 {
            faer::linalg::triangular_inverse::invert_upper_triangular(inverse.as_mut(), triangle.as_ref(), Par::Seq);
        }
        if !inverse.col_iter().all(|column| column.iter().all(|value| value.is_finite())) {
            return Err(Error::Overflow);
        }
        let mut root = Mat::zeros(width, size);
        for (place, &system) in order.iter().enumerate() {
            for column in place..size {
                root[(system, column)] = inverse[(place, column)];
            }
        }
        let relations = null.map(|(dependent, related)| (dependent, &inverse * related));
        let raw = to_raw(&coordinates, &root, &order, relations);
        let found = information.coefficients();
        let ones = usize::from(coordinates.intercept);
        let slopes =
            Mat::from_fn(
                width,
                responses,
                |row, response| {
                    if row < ones { 0.0 } else { found[(row - ones, response)] / coordinates.scale[row - ones] }
                },
            );
        let level = (0..responses).map(|response| information.baseline(response)).collect();
        debug_assert_eq!(raw.nrows(), predictors + ones);
        Ok(Self { information, level, slopes, triangular: size == width, root, raw, coordinates })
    }

    /// k.
    pub(super) fn rank(&self) -> usize {
        self.root.ncols()
    }

    /// q.
    pub(super) fn responses(&self) -> usize {
        self.level.len()
    }

    /// Whether there is an intercept.
    pub(super) fn intercept(&self) -> bool {
        self.coordinates.intercept
    }

    /// Cells that a row takes.
    pub(super) fn width(&self) -> usize {
        self.coordinates.width() + self.rank() + self.responses()
    }

    /// Rows of a chunk that stays in a core's own cache.
    pub(super) fn rows_at_once(&self) -> usize {
        (BUFFER_CELLS / self.width().max(1)).max(48).next_multiple_of(16)
    }

    /// J, m×k.
    pub(super) fn raw(&self) -> MatRef<'_, f64> {
        self.raw.as_ref()
    }

    /// J·S·Jᵀ for a symmetric S, k×k.
    pub(super) fn covariance_of(&self, middle: MatRef<'_, f64>) -> Mat<f64> {
        let half = &self.raw * middle;
        let whole = half * self.raw.transpose();
        Mat::from_fn(whole.nrows(), whole.ncols(), |row, column| 0.5 * (whole[(row, column)] + whole[(column, row)]))
    }

    /// Visits rows of a block, some at a time, in order.
    pub(super) fn visit(
        &self,
        block: &Block<'_>,
        rows: Range<usize>,
        at_once: usize,
        chunk: &mut Chunk,
        mut each: impl FnMut(&mut Chunk, Range<usize>),
    ) {
        let mut begin = rows.start;
        while begin < rows.end {
            let end = rows.end.min(begin + at_once);
            self.fill(block, begin..end, chunk);
            each(chunk, begin..end);
            begin = end;
        }
    }

    fn fill(&self, block: &Block<'_>, range: Range<usize>, chunk: &mut Chunk) {
        let rows = range.len();
        let (width, size, responses) = (self.coordinates.width(), self.rank(), self.responses());
        chunk.rows = rows;
        chunk.system.resize(rows * width, 0.0);
        chunk.white.resize(rows * size, 0.0);
        chunk.residual.resize(rows * responses, 0.0);
        chunk.roots.clear();
        match block.weights {
            Some(weights) => chunk.roots.extend(weights[range.clone()].iter().map(|weight| weight.sqrt())),
            None => chunk.roots.resize(rows, 1.0),
        }
        for (place, out) in chunk.system.chunks_exact_mut(rows).enumerate() {
            match self.coordinates.column(place) {
                SystemColumn::Ones => out.fill(1.0),
                SystemColumn::Predictor(predictor) => {
                    let (centre, scale) = (self.coordinates.centre[predictor], self.coordinates.scale[predictor]);
                    for (out, value) in out.iter_mut().zip(&column(block.design, predictor)[range.clone()]) {
                        *out = (value - centre) * scale;
                    }
                    if let Some(low) = block.design_low {
                        for (out, low) in out.iter_mut().zip(&column(low, predictor)[range.clone()]) {
                            *out += low * scale;
                        }
                    }
                }
            }
        }
        let system = MatRef::from_column_major_slice(&chunk.system, rows, width);
        let white = MatMut::from_column_major_slice_mut(&mut chunk.white, rows, size);
        if size > 0 {
            let shape = if self.triangular { BlockStructure::TriangularUpper } else { BlockStructure::Rectangular };
            let all = BlockStructure::Rectangular;
            triangular::matmul(white, all, Accum::Replace, system, all, self.root.as_ref(), shape, 1.0, Par::Seq);
        }
        if block.weights.is_some() {
            for column in chunk.white.chunks_exact_mut(rows) {
                column.iter_mut().zip(&chunk.roots).for_each(|(cell, root)| *cell *= root);
            }
        }
        chunk.leverage.clear();
        chunk.leverage.resize(rows, 0.0);
        for column in chunk.white.chunks_exact(rows) {
            chunk.leverage.iter_mut().zip(column).for_each(|(sum, cell)| *sum += cell * cell);
        }
        self.residuals(block, range, chunk);
    }

    fn residuals(&self, block: &Block<'_>, range: Range<usize>, chunk: &mut Chunk) {
        let (rows, width, responses) = (chunk.rows, self.coordinates.width(), self.responses());
        if let Some(low) = block.design_low {
            // Rows known to more than a float are answered in twice the precision, one by one.
            let gather =
                |matrix: MatRef<'_, f64>, row: usize| -> Vec<f64> { (0..matrix.ncols()).map(|place| matrix[(row, place)]).collect() };
            let mut predicted = vec![0.0; responses];
            for (index, row) in range.enumerate() {
                let (high, low) = (gather(block.design, row), gather(low, row));
                self.information.predict(Row { high: &high, low: Some(&low) }, &mut predicted);
                for (response, predicted) in predicted.iter().enumerate() {
                    chunk.residual[response * rows + index] = block.response[(row, response)] - predicted;
                }
            }
            return;
        }
        for (response, out) in chunk.residual.chunks_exact_mut(rows).enumerate() {
            for (out, value) in out.iter_mut().zip(&column(block.response, response)[range.clone()]) {
                *out = value - self.level[response];
            }
        }
        if width > 0 && responses > 0 {
            let system = MatRef::from_column_major_slice(&chunk.system, rows, width);
            let residual = MatMut::from_column_major_slice_mut(&mut chunk.residual, rows, responses);
            faer::linalg::matmul::matmul(residual, Accum::Add, system, self.slopes.as_ref(), -1.0, Par::Seq);
        }
    }
}

/// J = B·M with raw slopes s·β̃ and the raw intercept α̃ − Σc·s·β̃; with the null space N of a deficient design projected out,
/// J ← J − N(NᵀN)⁻¹NᵀJ over the slopes.
fn to_raw(coordinates: &Coordinates, root: &Mat<f64>, order: &[usize], relations: Option<(Vec<usize>, Mat<f64>)>) -> Mat<f64> {
    let (predictors, size) = (coordinates.predictors(), root.ncols());
    let ones = usize::from(coordinates.intercept);
    let mut slopes = Mat::from_fn(predictors, size, |row, column| coordinates.scale[row] * root[(ones + row, column)]);
    let mut level: Vec<f64> = (0..size).map(|column| if ones == 1 { root[(0, column)] } else { 0.0 }).collect();
    if let Some((dependent, related)) = relations {
        let mut null = Mat::<f64>::zeros(predictors, dependent.len());
        let mut along = vec![0.0; dependent.len()];
        for (index, &system) in dependent.iter().enumerate() {
            let SystemColumn::Predictor(own) = coordinates.column(system) else { continue };
            null[(own, index)] = 1.0;
            for (place, &other) in order.iter().enumerate() {
                let value = related[(place, index)];
                match coordinates.column(other) {
                    SystemColumn::Ones => along[index] = -value / coordinates.scale[own],
                    SystemColumn::Predictor(other) => {
                        if value.abs() > 1e-9 {
                            null[(other, index)] = -value * coordinates.scale[other] / coordinates.scale[own];
                        }
                    }
                }
            }
        }
        if let Ok(gram) = Llt::new((null.transpose() * &null).as_ref(), Side::Lower) {
            let steps = gram.solve(null.transpose() * &slopes);
            slopes -= &null * &steps;
            for (column, level) in level.iter_mut().enumerate() {
                *level -= along.iter().enumerate().map(|(index, along)| along * steps[(index, column)]).sum::<f64>();
            }
        }
    }
    Mat::from_fn(ones + predictors, size, |row, column| {
        if row >= ones {
            slopes[(row - ones, column)]
        } else {
            level[column] - (0..predictors).map(|predictor| coordinates.centre[predictor] * slopes[(predictor, column)]).sum::<f64>()
        }
    })
}
