//! lsqd: a least-squares prediction service.

pub mod store;
