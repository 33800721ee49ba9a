//! lsqd: a least-squares prediction service. One binary takes tables over HTTP, fits linear models to them, keeps everything in one
//! SQLite file, predicts with honest intervals, and learns row by row.
//!
//! # The house, floor by floor
//!
//! A request goes down and its answer comes up: bytes → [`http`] (wire structs) → [`service`] (a use case) → [`frame`] (a checked table)
//! → [`features`] (the design matrix, block by block) → [`lsq`] (the fit) → [`model`] (a version) → [`store`] (rows on disk). A prediction
//! goes the same way and stops at [`model`]. No module knows the ones above it, and a test holds them to that.
//!
//! | module | what it is | may use | never names |
//! |---|---|---|---|
//! | [`lsq`] | least squares and its statistics, as if it were a crate of its own | the linear algebra | any other module, serde, tokio |
//! | [`frame`] | tables with a schema, read and written as streams | `lsq`, arrow | axum, sqlx |
//! | [`features`] | columns of a table → columns of a design matrix | `lsq`, `frame` | axum, sqlx |
//! | [`model`] | what a model, a version and a prediction are; pure | `lsq`, `frame`, `features` | axum, sqlx, tokio |
//! | [`store`] | the database: SQL, and the layout of bytes | `model`, sqlx | axum, `service` |
//! | [`service`] | the use cases: what happens in which order, and what is one transaction | all of the above | axum, SQL |
//! | [`http`] | routes, wire structs, status codes | `service`, `model`, axum | faer, sqlx, `store` |
//! | [`server`] | the accept loop: sockets, TLS, timeouts, the orderly end | `http`, `service`, `config` | what a request means |
//! | [`command`] | what the program does beside serving: keys | `service`, `model`, `config` | what a request means |
//! | [`config`] | flags, environment and file, checked once | nothing of the above | |
//! | [`telemetry`] | log lines, and the names of the metrics | `config` | |
//! | `planted` | bugs that tests of crashes ask for; not in a release build | nothing of the above | |
//!
//! To find a line: a status code or a JSON field is in `http`; an order of events in `service`; a rule for names, ranges or rows in `model`
//! and `frame`; a matrix in `lsq`; SQL in `store`; the environment in `config`.
//!
//! # In a process of one's own
//!
//! [`run`] serves on a listener until a future resolves; the binary is a shim around it, and tests start servers with it.

#![forbid(unsafe_code)]

pub mod command;
pub mod config;
pub mod features;
pub mod frame;
pub mod http;
pub mod lsq;
pub mod model;
mod planted;
pub mod server;
pub mod service;
pub mod store;
pub mod telemetry;

/// Opens the database of `config` and answers on `listeners` until `shutdown` resolves; then lets open requests end and closes everything.
///
/// `listeners` are the caller's, so that a test can bind port 0 and know the port: one for HTTP, or a second for gRPC beside it.
/// [`config::Config::listen`] and [`config::Config::grpc_listen`] are not looked at.
///
/// # Errors
/// The database cannot be opened, its models cannot be loaded, or it can no longer be written.
pub async fn run(
    config: config::Config,
    listeners: impl Into<server::Listeners>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), server::Failure> {
    server::Server::open(config, listeners).await?.run(shutdown).await
}
