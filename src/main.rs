//! The program `lsqd`: reads its settings, binds its addresses, and hands over to the library.
//!
//! Exit codes: 0 for an orderly end, 1 for a failure, 2 for settings that cannot be taken.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use lsqd::config::{self, Command, Config};
use lsqd::server::{self, Listeners, Server};
use lsqd::telemetry;
use tokio::net::TcpListener;

fn main() -> ExitCode {
    let outcome = match config::read() {
        Ok(Command::Serve(config)) => serve(*config),
        Ok(Command::Health { authority, path }) => server::probe(&authority, &path),
        Err(refusal) => {
            eprintln!("{refusal}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config) -> Result<(), String> {
    telemetry::log(config.log_format, &config.log_level).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| error.to_string())?;
    let outcome = runtime.block_on(async {
        // Before anything is opened, so that a signal at any time ends things in order.
        let signalled = server::signalled().map_err(|error| format!("signals cannot be listened to: {error}"))?;
        let http = bind(config.listen, "--listen").await?;
        let grpc = match config.grpc_listen {
            Some(listen) => Some(bind(listen, "--grpc-listen").await?),
            None => None,
        };
        let address = http.local_addr().map_err(|error| error.to_string())?;
        let grpc_address = grpc.as_ref().map(TcpListener::local_addr).transpose().map_err(|error| error.to_string())?;
        let server = Server::open(config, Listeners { http, grpc }).await.map_err(|failure| failure.to_string())?;
        // Nobody may be reading; that is no reason not to serve.
        let _ = write!(std::io::stdout(), "{}", server::banner(address, grpc_address)).and_then(|()| std::io::stdout().flush());
        server.run(signalled).await.map_err(|failure| failure.to_string())
    });
    // A fit that does not notice in time that it is not wanted must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(500));
    outcome
}

async fn bind(listen: SocketAddr, flag: &str) -> Result<TcpListener, String> {
    TcpListener::bind(listen).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => format!("{listen} is in use by another program; choose another address with {flag}"),
        _ => format!("{listen} cannot be listened on: {error}"),
    })
}
