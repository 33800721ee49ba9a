//! The program `lsqd`: reads its settings, binds its addresses, and hands over to the library.
//!
//! Exit codes: 0 for an orderly end, 1 for a failure or a database that is not whole, 2 for settings that cannot be taken.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use lsqd::config::{self, Command, Config, KeyCommand};
use lsqd::server::{self, Listeners, Server};
use lsqd::service::{backup, check};
use lsqd::telemetry;
use tokio::net::TcpListener;

fn main() -> ExitCode {
    let outcome = match config::read() {
        Ok(Command::Serve(config)) => serve(*config).map(|()| ExitCode::SUCCESS),
        Ok(Command::Health { authority, path, certificate }) => {
            server::probe(&authority, &path, certificate.as_deref()).map(|()| ExitCode::SUCCESS)
        }
        Ok(Command::Backup { database, to, force }) => alone(async move {
            let label = backup::write(&database, &to, force).await.map_err(|error| format!("no backup was written: {error}"))?;
            Ok((format!("{} was written\n{}", to.display(), sequences(&label.versions)), ExitCode::SUCCESS))
        }),
        Ok(Command::Restore { from, database, force }) => alone(async move {
            let restored = backup::restore(&from, &database, force).await;
            match restored.map_err(|error| format!("nothing was restored: {error}"))? {
                backup::Restored::Done { standings, .. } => {
                    let said = format!("{} is the database {} now\n{}", from.display(), database.display(), sequences(&standings));
                    Ok((said, ExitCode::SUCCESS))
                }
                backup::Restored::Damaged(report) => Err(format!("nothing was restored: {} is damaged\n{report}", from.display())),
            }
        }),
        Ok(Command::Check { database, repair, json }) => alone(async move {
            let report = if repair { check::repair(&database).await } else { check::check(&database).await };
            let report = report.map_err(|error| format!("{} was not checked: {error}", database.display()))?;
            let said = if json { report.to_json() } else { report.to_string() };
            Ok((said, if report.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
        }),
        Ok(Command::Key { database, command }) => key(&database, &command),
        Err(refusal) => {
            eprintln!("{refusal}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command that is not the server, and says on stdout what came of it.
fn alone(work: impl Future<Output = Result<(String, ExitCode), String>>) -> Result<ExitCode, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let (said, code) = runtime.block_on(work)?;
    // Nobody may be reading.
    let _ = writeln!(std::io::stdout(), "{}", said.trim_end());
    Ok(code)
}

/// Where the versions of a backup stand.
fn sequences(versions: &[backup::Standing]) -> String {
    versions.iter().map(|at| format!("{}@{} at sequence {}\n", at.model, at.version, at.sequence)).collect()
}

fn key(database: &Path, command: &KeyCommand) -> Result<ExitCode, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let said = runtime.block_on(lsqd::command::key(database, command))?;
    let written = std::io::stderr().write_all(said.remark.as_bytes()).and_then(|()| std::io::stdout().write_all(said.result.as_bytes()));
    written.map_err(|error| format!("what was done could not be told: {error}"))?;
    Ok(ExitCode::SUCCESS)
}

fn serve(config: Config) -> Result<(), String> {
    telemetry::log(config.log_format, &config.log_level).map_err(|error| error.to_string())?;
    server::allow_files(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| error.to_string())?;
    let outcome = runtime.block_on(async {
        // Before anything is opened, so that a signal at any time ends things in order.
        let signalled = server::signalled().map_err(|error| format!("signals cannot be listened to: {error}"))?;
        let http = bind(config.listen, "--listen").await?;
        let grpc = match config.grpc_listen {
            Some(listen) => Some(bind(listen, "--grpc-listen").await?),
            None => None,
        };
        let metrics = match config.metrics_listen {
            Some(listen) => Some(bind(listen, "--metrics-listen").await?),
            None => None,
        };
        let address = http.local_addr().map_err(|error| error.to_string())?;
        let grpc_address = grpc.as_ref().map(TcpListener::local_addr).transpose().map_err(|error| error.to_string())?;
        let metrics_address = metrics.as_ref().map(TcpListener::local_addr).transpose().map_err(|error| error.to_string())?;
        let encrypted = config.tls.is_some();
        let server = Server::open(config, Listeners { http, grpc, metrics }).await.map_err(|failure| failure.to_string())?;
        // Nobody may be reading; that is no reason not to serve.
        let _ = write!(std::io::stdout(), "{}", server::banner(address, grpc_address, metrics_address, encrypted))
            .and_then(|()| std::io::stdout().flush());
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
