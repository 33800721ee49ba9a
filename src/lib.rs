//! lsqd: a least-squares prediction service.
