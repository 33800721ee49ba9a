//! Tables: Arrow columns with a schema, read from and written to CSV, NDJSON and JSON, all streaming; and the rows of requests.
//!
//! Two ways in. A [`Reader`] takes the bytes of an upload piece by piece, infers each column's type and emits frames of bounded size
//! with a [`Summary`] in the end. The functions of [`rows`] parse a request's rows straight into a row-major buffer of floats by an
//! [`InputSchema`]. Faults name the row and the column. Not here: storage, HTTP, anything that solves.

pub mod arrow_stream;
mod batches;
pub mod codec;
mod erase;
mod fault;
mod infer;
mod input;
pub mod nested;
mod reader;
pub mod reply;
pub mod rows;
mod scan;
mod schema;
pub mod serving;
mod summary;
pub mod tensor;
pub mod write;

pub use batches::{Batch, Batches, Full, LineTooLong, Lines};
pub use erase::rows_where;
pub(crate) use fault::escaped;
pub use fault::{Fault, Faults, Lack};
pub use input::{Input, InputKind, InputSchema, Unseen};
pub use reader::{Format, ReadError, ReadOptions, Reader};
pub use schema::{Column, ColumnType, Schema};
pub use summary::Summary;

/// Rows of a table: one array a column, all of the same length.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The columns: `Float64`, `Int64`, `Boolean`, `Dictionary<Int32, Utf8>` (category), `Utf8` (text) or `Timestamp(Microsecond, "UTC")`.
    pub columns: Vec<arrow_array::ArrayRef>,
    /// Rows in it.
    pub rows: usize,
}
