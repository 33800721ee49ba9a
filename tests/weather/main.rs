//! Hard weather: clients that are slow, silent, dishonest or too many, bodies that are larger than they look, signals and panics under load.
//! The real binary in a process of its own, so that what it takes can be measured.
//!
//! - [`bombs`]: bodies that unpack to much, or are JSON of an unusual form. `LSQD_BOMB_GIGABYTES=10` for the size that they unpack to.
//! - [`framing`]: requests that two readers could take for different ones, lengths that are lies, chunks without an end.
//! - [`panics`]: a panic in the midst of one request's work.
//!
//! What is promised and how it is shown: `docs/reliability.md`.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(target_os = "linux")]

mod bombs;
mod framing;
#[cfg(debug_assertions)]
mod panics;
mod server;

/// The number that an environment variable asks for.
fn setting(name: &str) -> Option<usize> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}
