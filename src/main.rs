//! The `lsqd` binary.
fn main() {}
