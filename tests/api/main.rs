//! Black-box tests of the HTTP interface: a server in this process on a real socket, a real client, and `openapi.yaml` as the judge of
//! every reply. Not here: the arithmetic by itself (`tests/numerics`) and crashes (`tests/crash`).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod audit;
mod backup;
mod classifiers;
mod client;
mod contract;
mod datasets;
mod diagnostics;
mod estimators;
mod features;
mod fits;
mod grpc;
mod hostile;
mod inference;
mod inputs;
mod keys;
mod labels;
mod limits;
mod malformed;
mod online;
mod operations;
#[path = "../shared/pack.rs"]
mod pack;
mod packed;
mod predict;
mod predict_stream;
mod predictions;
mod secrets;
mod series;
mod serving;
mod streams;
mod tls;
mod traffic;
mod updates;
mod ways;
