//! Least squares, and nothing else: no input or output, no waiting, no serialisation framework. Written as if it were a crate of its own.
//!
//! [`fit`] takes rows from a [`RowSource`], visits them as often as it needs, and never holds them all; what it finds is a [`Fit`] with an
//! [`Information`] that answers rows and goes on learning. [`Matrices`] is the source for rows in memory.
//!
//! ```
//! use faer::mat;
//! use lsqd::lsq::{fit, Matrices, OneBlock, Specification};
//!
//! let design = mat![[1.0], [2.0], [3.0], [4.0]];
//! let response = mat![[1.0], [2.0], [3.0], [4.0]];
//! let mut rows = Matrices { design: design.as_ref(), response: response.as_ref(), weights: None };
//! let fit = fit(&mut rows, &Specification::default())?;
//! assert_eq!(fit.information.coefficients()[(0, 0)], 1.0);
//! assert_eq!(fit.information.intercept(), [0.0]);
//! # Ok::<(), lsqd::lsq::Error>(())
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `gram` | first pass: the centred, scaled Gram matrix in blocks |
//! | `product` | AᵀA of a tall and narrow A |
//! | `qr` | the triangular factor of the rows, block by block |
//! | `refine` | passes in once or twice the working precision |
//! | `sweep` | the one pass that a well-conditioned problem needs |
//! | `ordinary` | ordinary, weighted and ridge least squares; rank, minimum norm, figures of the fit |
//! | `ridge_path` | a path of ridge penalties with exact leave-one-out |
//! | `elastic_net` | lasso and elastic net by coordinate descent |
//! | `nonnegative` | coefficients within bounds |
//! | `constrained` | coefficients that satisfy equations |
//! | `gradient` | gradient descent |
//! | `reduction` | principal components, exact or sketched |
//! | `robust` | Huber's and Tukey's M-estimators |
//! | `recursive` | the square-root information that learns row by row |
//! | `whitened` | rows as a finished fit sees them |
//! | `covariance` | sandwich covariances |
//! | `diagnostics` | leverage, residuals, influence, tests of what was supposed |
//! | `validation` | held-out rows |
//! | `autoregression` | the errors of forecasts of several steps |
//! | `isotonic` | the rising function nearest to points |
//! | `inference` | Student's and Fisher's distributions |
//! | `double_double` | twice the working precision |

mod autoregression;
mod constrained;
mod coordinates;
mod covariance;
mod diagnostics;
pub mod double_double;
mod elastic_net;
mod error;
mod gradient;
mod gram;
pub mod inference;
mod isotonic;
mod nonnegative;
mod ordinary;
mod problem;
mod product;
mod qr;
mod recursive;
mod reduction;
mod refine;
mod ridge_path;
mod robust;
mod sweep;
mod validation;
mod whitened;

pub use autoregression::moving_average;
pub use constrained::{ConstrainedFit, Constraints, constrained};
pub use covariance::{Covariance, covariance};
pub use diagnostics::{
    Diagnostics, Effects, Outstanding, Questions, ResponseDiagnostics, RowDiagnostics, RowFigures, Test, diagnose, diagnose_robust,
};
pub use elastic_net::{ElasticNet, ElasticNetFit, ElasticPenalty, PathPoint, elastic_net};
pub use error::Error;
pub use gradient::{Epoch, Gradient, GradientFit, LearningRate, Momentum, gradient};
pub use isotonic::{Isotonic, interpolated, isotonic};
pub use nonnegative::{BoundedFit, Bounds, bounded};
pub use ordinary::{Fit, Given, Statistics, around, fit};
pub use problem::{Block, Matrices, OneBlock, Row, RowSource, Solver, Specification};
pub use recursive::{Gathered, Information};
pub use reduction::{ComponentRegression, Components, Keep, Reduction, Sketch, component_regression, principal_components};
pub use ridge_path::{PathPoint as RidgePathPoint, RidgePath, ridge_path};
pub use robust::{Loss, Robust, RobustFit, robust};
pub(crate) use validation::Errors;
pub use validation::{
    Estimate, FoldScore, HeldOut, Listener, Plan, Remade, Spread, Training, Validation, fold_of, predict, validate, validate_least_squares,
    validate_remade,
};
