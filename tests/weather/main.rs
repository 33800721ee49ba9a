//! Hard weather: clients that are slow, silent, dishonest or too many, bodies that are larger than they look, signals and panics under load.
//! The real binary in a process of its own, so that what it takes can be measured.
//!
//! - [`crowds`]: connections that hold what they get. `LSQD_CROWD=3000 cargo test --release --test weather crowds -- --nocapture --test-threads 1`
//!   is two thousand that never end their header, 500 that say nothing and 500 that take next to nothing of their answers, and measures
//!   predictions meanwhile; with `LSQD_IDLE=10000` beside it, so many connections that wait between two requests.
//! - [`bombs`]: bodies that unpack to much, or are JSON of an unusual form. `LSQD_BOMB_GIGABYTES=10` for the size that they unpack to.
//! - [`framing`]: requests that two readers could take for different ones, lengths that are lies, chunks without an end.
//! - [`signals`]: SIGTERM under load. `LSQD_SIGNALS=500 cargo test --release --test weather signals -- --nocapture`.
//! - [`panics`]: a panic in the midst of one request's work.
//!
//! Overload is a benchmark, `benches/overload.rs`. What is promised and how it is shown: `docs/reliability.md`.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(target_os = "linux")]

mod bombs;
mod crowds;
mod framing;
#[path = "../shared/pack.rs"]
mod pack;
#[cfg(debug_assertions)]
mod panics;
mod server;
mod signals;

/// The number that an environment variable asks for.
fn setting(name: &str) -> Option<usize> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}
