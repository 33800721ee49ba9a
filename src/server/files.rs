//! How many files the process may have open. A connection is one, and what systems give a process by default (1,024, often) is for programs
//! that have few.

use crate::config::Config;

/// Files beside connections and what reads the database: listeners, event loops, logs, the writer's own.
const BESIDE: u64 = 128;
/// A connection to the database opens its file, the log beside it, and the memory that they share.
const OF_A_READER: u64 = 3;

/// Asks the system for as many as it grants, and says in the log if those are too few for the connections that the settings allow.
pub fn allow_files(config: &Config) {
    let wanted = wanted(config);
    match raise() {
        Some(allowed) if allowed < wanted => tracing::warn!(
            allowed,
            wanted,
            max_connections = config.max_connections,
            "the system allows fewer open files than --max-connections needs; past that, connections wait to be accepted"
        ),
        Some(allowed) => tracing::debug!(allowed, wanted, "open files"),
        None => {}
    }
}

/// Files that are open when all connections are.
fn wanted(config: &Config) -> u64 {
    let listeners = 1 + u64::from(config.grpc_listen.is_some());
    let connections = (config.max_connections as u64).saturating_mul(listeners);
    connections.saturating_add(OF_A_READER * u64::from(config.readers)).saturating_add(BESIDE)
}

/// Raises the limit to what the process may raise it to; what it is then, if it is known and there is one.
#[cfg(target_os = "linux")]
fn raise() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::debug!(%error, "the limit of open files was not raised");
            current
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn raise() -> Option<u64> {
    None
}
