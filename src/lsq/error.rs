//! What data can do to a fit. What only our own code could break is asserted instead.

/// Why least squares has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is not a single row to learn from.
    #[error("there is no complete row to learn from")]
    NoRows,
    /// A number of the data, or of what follows from it, leaves the range of finite floats.
    #[error("the numbers are too large: a sum of squares overflows")]
    Overflow,
    /// A cell is NaN or infinite.
    #[error("a number is not finite")]
    NonFinite,
    /// All weights are zero.
    #[error("all weights are zero")]
    NoWeight,
    /// A solver was asked for that cannot solve this problem.
    #[error("{0}")]
    Solver(&'static str),
    /// Gradient descent went up and away; the text is the rate below which it does not.
    #[error("gradient descent diverged: the learning rate is too large; with all rows at once it is stable below {0}")]
    Diverged(String),
    /// The visitor of rows asked for the end.
    #[error("interrupted")]
    Interrupted,
    /// The rows could not be read.
    #[error("{0}")]
    Source(String),
    /// A row cannot be taken out of what was learnt from it without losing too many digits.
    #[error("too little would be left without this row to take it out; the rows that are left have to be fitted afresh")]
    Removal,
    /// Stored bytes are not the encoding of an information.
    #[error("stored bytes do not decode")]
    Encoding,
}
