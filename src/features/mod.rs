//! Columns to design matrix: what each column of a table becomes in X (n×p), the same in training, prediction and update.
//!
//! A [`Feature`] is one column and its encoding, fixed by the training rows (the levels of a category, say) and stored with the version.
//! A [`Design`] is the list of them, with readable names for the design columns. Not here: anything that solves.

mod block;
mod design;

pub use block::{Block, BlockError, Roles, assemble, codes_of_complete_rows, levels_of_complete_rows, numbers_of_complete_rows};
pub use design::{Design, Encoding, Feature, RowBuffer, Unseen};
