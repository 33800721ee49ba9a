//! A problem: rows that can be visited again and again, and what is asked about them.

use faer::MatRef;

use super::Error;

/// Some consecutive rows of the problem.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// X, rows×p, column-major, without a column for the intercept.
    pub design: MatRef<'a, f64>,
    /// What rounding X to floats left behind (rows×p), where it is known: X is `design` + `design_low`.
    pub design_low: Option<MatRef<'a, f64>>,
    /// Y, rows×q, column-major.
    pub response: MatRef<'a, f64>,
    /// Weights ≥ 0, one a row; without them every row weighs 1.
    pub weights: Option<&'a [f64]>,
}

/// One block as a source of rows.
#[derive(Clone, Copy, Debug)]
pub struct OneBlock<'a>(pub Block<'a>);

impl RowSource for OneBlock<'_> {
    fn predictors(&self) -> usize {
        self.0.design.ncols()
    }

    fn responses(&self) -> usize {
        self.0.response.ncols()
    }

    fn pass(&mut self, visit: &mut dyn FnMut(&Block<'_>) -> Result<(), Error>) -> Result<(), Error> {
        visit(&self.0)
    }
}

impl Block<'_> {
    /// Rows in it.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.response.nrows()
    }
}

/// One row of X.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// p values.
    pub high: &'a [f64],
    /// What rounding them to floats left behind, where it is known.
    pub low: Option<&'a [f64]>,
}

impl<'a> From<&'a [f64]> for Row<'a> {
    fn from(high: &'a [f64]) -> Self {
        Self { high, low: None }
    }
}

impl<'a> From<&'a Vec<f64>> for Row<'a> {
    fn from(high: &'a Vec<f64>) -> Self {
        Self { high, low: None }
    }
}

impl<'a, const P: usize> From<&'a [f64; P]> for Row<'a> {
    fn from(high: &'a [f64; P]) -> Self {
        Self { high, low: None }
    }
}

/// Where rows come from. A fit visits them several times, in the same order each time, and never holds them all.
pub trait RowSource {
    /// p, the columns of X.
    fn predictors(&self) -> usize;

    /// q, the columns of Y.
    fn responses(&self) -> usize;

    /// Visits all rows once, block by block.
    ///
    /// # Errors
    /// The visitor's, or the source's own.
    fn pass(&mut self, visit: &mut dyn FnMut(&Block<'_>) -> Result<(), Error>) -> Result<(), Error>;
}

/// Rows in memory.
#[derive(Clone, Copy, Debug)]
pub struct Matrices<'a> {
    /// X, n×p.
    pub design: MatRef<'a, f64>,
    /// Y, n×q.
    pub response: MatRef<'a, f64>,
    /// Weights, n.
    pub weights: Option<&'a [f64]>,
}

/// Rows of a block of [`Matrices`]: many enough to be shared out between threads.
const ROWS_AT_ONCE: usize = 1 << 15;

impl RowSource for Matrices<'_> {
    fn predictors(&self) -> usize {
        self.design.ncols()
    }

    fn responses(&self) -> usize {
        self.response.ncols()
    }

    fn pass(&mut self, visit: &mut dyn FnMut(&Block<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let rows = self.response.nrows();
        let mut first = 0;
        while first < rows {
            let count = ROWS_AT_ONCE.min(rows - first);
            visit(&Block {
                design: self.design.subrows(first, count),
                design_low: None,
                response: self.response.subrows(first, count),
                weights: self.weights.map(|weights| &weights[first..first + count]),
            })?;
            first += count;
        }
        Ok(())
    }
}

/// How a problem is solved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Solver {
    /// As the data needs it.
    #[default]
    Auto,
    /// Cholesky factorisation of the Gram matrix.
    Cholesky,
    /// Householder QR, block by block.
    Qr,
    /// Singular value decomposition of the triangular factor of QR.
    Svd,
    /// QR, and every pass over the data in twice the working precision, whatever it costs.
    Exact,
}

impl Solver {
    /// The solver of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "auto" => Self::Auto,
            "cholesky" => Self::Cholesky,
            "qr" => Self::Qr,
            "svd" => Self::Svd,
            "exact" => Self::Exact,
            _ => return None,
        })
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cholesky => "cholesky",
            Self::Qr => "qr",
            Self::Svd => "svd",
            Self::Exact => "exact",
        }
    }
}

/// What is asked of a fit.
#[derive(Clone, Copy, Debug)]
pub struct Specification<'a> {
    /// Whether there is an intercept, which is never penalised.
    pub intercept: bool,
    /// Ridge penalty ≥ 0: ‖y − Xw‖² + penalty·‖w − w₀‖².
    pub penalty: f64,
    /// w₀, p×q, towards which the penalty pulls; zero when there is none.
    pub prior: Option<MatRef<'a, f64>>,
    /// How to solve it.
    pub solver: Solver,
}

impl Default for Specification<'_> {
    fn default() -> Self {
        Self { intercept: true, penalty: 0.0, prior: None, solver: Solver::Auto }
    }
}
