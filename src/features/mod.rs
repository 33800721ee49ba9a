//! Columns to design matrix: what each column of a table becomes in X (n×p), the same in training, prediction and update.
//!
//! A [`Feature`] is one column, or several, and their encoding, fixed by the training rows (the levels of a category, a mean, knots) and stored
//! with the version. A [`Design`] is the list of them, with readable names for the design columns, and tells which columns rows hold: each
//! once, whatever number of features is made of it. What training rows fix is gathered by [`Learning`]. Not here: anything that solves.

mod block;
mod calendar;
mod design;
mod encoding;
mod fourier;
mod lagged;
mod learning;
mod spline;

pub use block::{Block, BlockError, Cells, Roles, assemble, codes_of_complete_rows, levels_of_complete_rows, numbers_of_complete_rows};
pub use calendar::{Part, Season};
pub use design::{Design, Feature, Past, PastCell, RawColumn, RowBuffer};
pub use encoding::{Encoding, Factor, Filling, Unseen};
pub use fourier::{MOST_COLUMNS, MOST_FREQUENCIES, Waves};
pub use lagged::{Lagged, Read};
pub use learning::{EXACT, Learning, Unfit, scattered};
