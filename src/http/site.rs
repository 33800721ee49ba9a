//! Which site the server is, as browsers understand it.

/// How the server is reached.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// Whether connections are encrypted.
    pub encrypted: bool,
}
