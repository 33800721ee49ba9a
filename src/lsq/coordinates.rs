//! The coordinates in which a problem is solved: columns centred (with an intercept) and scaled by powers of two.
//!
//! A column of the *system* is one of X, or the column of ones that stands first when there is an intercept. With centre c and scale s
//! (a power of two, so that scaling is exact), the system's column j is x̃ = (x − c)·s, formed exactly in twice the precision. Centres
//! need not be exact means, since the column of ones stays in the system.

use super::problem::Block;

/// Centres and scales.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Coordinates {
    pub(super) intercept: bool,
    /// c, one a predictor; zero without an intercept.
    pub(super) centre: Vec<f64>,
    /// s, one a predictor.
    pub(super) scale: Vec<f64>,
    /// One a response.
    pub(super) response_centre: Vec<f64>,
}

/// A column of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SystemColumn {
    Ones,
    Predictor(usize),
}

impl SystemColumn {
    /// Which predictor it is.
    pub(super) fn predictor(self) -> Option<usize> {
        match self {
            Self::Ones => None,
            Self::Predictor(predictor) => Some(predictor),
        }
    }
}

impl Coordinates {
    pub(super) fn predictors(&self) -> usize {
        self.centre.len()
    }

    pub(super) fn responses(&self) -> usize {
        self.response_centre.len()
    }

    /// Columns of the system, m.
    pub(super) fn width(&self) -> usize {
        self.predictors() + usize::from(self.intercept)
    }

    pub(super) fn column(&self, system: usize) -> SystemColumn {
        match (self.intercept, system) {
            (true, 0) => SystemColumn::Ones,
            (true, _) => SystemColumn::Predictor(system - 1),
            (false, _) => SystemColumn::Predictor(system),
        }
    }

    /// The place of a predictor in the system.
    pub(super) fn place(&self, predictor: usize) -> usize {
        predictor + usize::from(self.intercept)
    }

    /// The scale of a column of the system.
    pub(super) fn scale_of(&self, system: usize) -> f64 {
        match self.column(system) {
            SystemColumn::Ones => 1.0,
            SystemColumn::Predictor(predictor) => self.scale[predictor],
        }
    }
}

/// The power of two nearest below 1/`size`, kept well inside the range of floats; 1 for a size that says nothing.
pub(super) fn power_of_two_below_inverse(size: f64) -> f64 {
    if size > 0.0 && size.is_finite() {
        let exponent = size.log2().floor().clamp(-900.0, 900.0);
        (-exponent).exp2()
    } else {
        1.0
    }
}

/// A column of a matrix that is stored column by column.
pub(super) fn column(matrix: faer::MatRef<'_, f64>, index: usize) -> &[f64] {
    matrix.col(index).try_as_col_major().map_or(&[], faer::col::ColRef::as_slice)
}

/// The rows of a block cut into as many consecutive parts as there are accumulators; `visit` runs on them in parallel when they are large.
pub(super) fn in_parts<T: Send>(block: &Block<'_>, width: usize, parts: &mut [T], visit: impl Fn(&mut T, std::ops::Range<usize>) + Sync) {
    /// Cells below which handing work to another thread costs more than it saves.
    const WORTH_SHARING: usize = 1 << 15;
    let rows = block.rows();
    if parts.len() < 2 || rows * width < WORTH_SHARING {
        if let Some(first) = parts.first_mut() {
            visit(first, 0..rows);
        }
        return;
    }
    let each = rows.div_ceil(parts.len());
    rayon::scope(|scope| {
        let visit = &visit;
        for (index, part) in parts.iter_mut().enumerate() {
            let range = (index * each).min(rows)..((index + 1) * each).min(rows);
            scope.spawn(move |_| visit(part, range));
        }
    });
}

/// Accumulators to be filled in parallel.
pub(super) fn part_count() -> usize {
    rayon::current_num_threads().clamp(1, 16)
}
