//! Least squares, and nothing else: no input or output, no waiting, no serialisation framework. Written as if it were a crate of its own.
//!
//! [`fit`] takes rows from a [`RowSource`], visits them as often as it needs, and never holds them all; what it finds is a [`Fit`] with an
//! [`Information`] that answers rows and goes on learning. [`Matrices`] is the source for rows in memory.
//!
//! ```
//! use faer::mat;
//! use lsqd::lsq::{fit, Matrices, Specification};
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
//! | `qr` | the triangular factor of the rows, block by block |
//! | `refine` | passes in once or twice the working precision |
//! | `ordinary` | chooses among them; rank, minimum norm, figures of the fit |
//! | `recursive` | the square-root information that learns row by row |
//! | `inference` | Student's and Fisher's distributions |
//! | `double_double` | twice the working precision |

mod coordinates;
pub mod double_double;
mod error;
mod gram;
pub mod inference;
mod ordinary;
mod problem;
mod qr;
mod recursive;
mod refine;

pub use error::Error;
pub use ordinary::{Fit, Statistics, fit};
pub use problem::{Block, Matrices, Row, RowSource, Solver, Specification};
pub use recursive::Information;
