//! A server's life: the database is opened, connections are served until somebody asks for the end, and everything ends in order.
//!
//! Connections and the threads that serve them are in `connections`, what one connection is held to in `guard`. What a request means is not
//! known here: that is `http`.

mod busy_poll;
mod connections;
mod files;
mod grpc;
mod guard;
mod probe;
mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

pub use connections::Application;
pub use files::allow_files;
pub use guard::{Arriving, BodyTimeout};
pub use probe::probe;
pub use tls::TlsFault;

use crate::config::{Config, reachable};
use crate::http::{self, App, Concurrency, Cors, Entrance, Overload, PackedLimits, Site};
use crate::service::{Closing, Rate, Service, ServiceError, Settings};
use crate::telemetry;
use connections::Connections;
use tls::Tls;

/// How long the database may take to close. Whatever was acknowledged is on disk by then; what is left is housekeeping.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(4);

/// Why a server ended otherwise than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is nothing to encrypt connections with, though there should be.
    #[error("connections cannot be encrypted: {0}")]
    Tls(#[from] TlsFault),
    /// The database could not be opened.
    #[error("the database cannot be opened: {0}")]
    Open(#[source] ServiceError),
    /// The models could not be brought back.
    #[error("the models in the database cannot be loaded: {0}")]
    Replay(#[source] ServiceError),
    /// A write or a sync failed; after that nobody can tell what is on disk, so nothing more is acknowledged.
    #[error("the database can no longer be written; the server ended rather than acknowledge what may be lost")]
    Disk,
    /// Others could reach it, and nothing would keep them from anything.
    #[error(
        "{0} can be reached by other machines, and no key was made: whoever reaches it could read, change and delete everything. Make a key \
         first (lsqd key create --scopes admin), or listen on 127.0.0.1:{port}, or, if the network itself keeps strangers out, say so with \
         --insecure (LSQD_INSECURE=true)",
        port = .0.port()
    )]
    Unguarded(SocketAddr),
    /// A fault of our own.
    #[error("{0}")]
    Internal(&'static str),
}

/// The sockets that a server accepts connections on.
#[derive(Debug)]
pub struct Listeners {
    /// For HTTP.
    pub http: TcpListener,
    /// For gRPC, if it is spoken.
    pub grpc: Option<TcpListener>,
    /// For health and metrics by themselves, if they are asked there.
    pub metrics: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    fn from(http: TcpListener) -> Self {
        Self { http, grpc: None, metrics: None }
    }
}

/// A server whose database is open, and whose listeners are bound.
#[derive(Debug)]
pub struct Server {
    config: Config,
    listeners: Listeners,
    tls: Option<Arc<Tls>>,
    service: Arc<Service>,
    closing: Closing,
}

impl Server {
    /// Opens the database, making or migrating it if need be. Clients can connect already, and are answered once [`Server::run`] runs.
    ///
    /// # Errors
    /// The certificate and the key cannot be used; the database cannot be opened; or other machines can reach the server, nobody needs a
    /// key, and the settings do not say that this is meant.
    pub async fn open(config: Config, listeners: impl Into<Listeners>) -> Result<Self, Failure> {
        telemetry::install();
        let tls = config.tls.as_ref().map(Tls::open).transpose()?.map(Arc::new);
        let settings = Settings {
            compute_threads: config.compute_threads,
            readers: config.readers,
            fit_queue: config.fit_queue,
            remember_ttl: config.remember_ttl,
            watch_inputs: config.watch_inputs,
            key_rate: config.key_rate.map(|(rate, burst)| Rate::new(rate, burst)),
            storage_limit: config.storage_limit,
        };
        let (service, closing) = Service::open(&config.database, settings).await.map_err(Failure::Open)?;
        let listeners = listeners.into();
        for listener in std::iter::once(&listeners.http).chain(&listeners.grpc).chain(&listeners.metrics) {
            let address = listener.local_addr().map_err(|_| Failure::Internal("the address that is listened on is not known"))?;
            if address.ip().to_canonical().is_loopback() {
                continue;
            }
            if !config.insecure && service.keyring().is_empty() {
                drop(service);
                closing.wait().await;
                return Err(Failure::Unguarded(address));
            }
            if tls.is_none() {
                tracing::warn!(%address, "other machines can reach this address, and what is said there is not encrypted");
            }
        }
        Ok(Self { config, listeners, tls, service, closing })
    }

    /// Answers until `shutdown` resolves, then lets open requests end and closes the database.
    ///
    /// `/livez` answers from the beginning; `/readyz` and the rest say 503 until every model is loaded and its log replayed.
    ///
    /// # Errors
    /// The models could not be loaded, or the database could no longer be written.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Failure> {
        let Self { config, listeners: Listeners { http: listener, grpc, metrics }, tls, service, closing } = self;
        let app = App {
            service: service.clone(),
            body_limit: config.body_limit,
            upload_limit: config.upload_limit,
            packed: PackedLimits { bytes: config.packed_limit, ratio: config.unpack_ratio },
            overload: Arc::new(Overload::new(Concurrency {
                predictions: config.concurrent_predictions,
                updates: config.concurrent_updates,
                streams: config.concurrent_streams,
                fits: config.concurrent_fits,
                uploads: config.concurrent_uploads,
                threads: config.serving_threads.max(1),
            })),
            default_model: config.default_model.as_deref().map(Arc::from),
            cors: Arc::new(Cors::new(&config.cors_origins)),
            site: Arc::new(Site { encrypted: tls.is_some(), names: config.hosts.clone() }),
            metrics: telemetry::render,
        };
        let calling = grpc.map(|listener| grpc::Calling::start(&config, listener, http::grpc(app.clone()), tls.clone()));
        let threads = |_| Failure::Internal("the threads that serve could not be started");
        let watching = metrics.map(|listener| Watching::start(&config, listener, http::watch(app.clone()), tls.clone()));
        let watching = watching.transpose().map_err(threads)?;
        let mut connections = Connections::new(&config, Entrance::new(app), tls.clone()).map_err(threads)?;
        let mut background = JoinSet::new();
        background.spawn(telemetry::upkeep());
        if let Some(tls) = tls {
            background.spawn(tls.renew(Hangups::listen()));
        }
        let replaying = service.clone();
        let mut replay = tokio::spawn(async move { replaying.replay().await });

        let end = async {
            let mut shutdown = pin!(shutdown);
            let mut failed = pin!(service.until_failed());
            let mut replayed = false;
            loop {
                tokio::select! {
                    biased;
                    () = &mut shutdown => return Ok(()),
                    () = &mut failed => return Err(Failure::Disk),
                    end = &mut replay, if !replayed => match end {
                        Ok(Ok(())) => replayed = true,
                        Ok(Err(error)) => return Err(Failure::Replay(error)),
                        Err(_) => return Err(Failure::Internal("loading the models panicked")),
                    },
                }
            }
        };
        let outcome = connections.accept_until(listener, end).await;
        match &outcome {
            Ok(()) => tracing::info!("stopping"),
            Err(failure) => tracing::error!(error = %failure, "stopping"),
        }

        // Connecting is refused by now, so that whoever balances the load goes elsewhere at once.
        service.stop();
        replay.abort();
        let calls = async {
            if let Some(calling) = calling {
                calling.drain(config.drain_timeout).await;
            }
        };
        tokio::join!(connections.drain(config.drain_timeout), calls);
        background.shutdown().await;
        // To the end it says that the server is not ready.
        if let Some(watching) = watching {
            watching.end().await;
        }
        // What cannot be written by then is the count of some seconds.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, service.write_counts()).await;
        // The writer ends with the last handle on the service; this is ours.
        drop(service);
        if tokio::time::timeout(CLOSE_TIMEOUT, closing.wait()).await.is_err() {
            tracing::warn!("the database was not closed in time; what was acknowledged is on disk, and the next start tidies up");
        }
        if outcome.is_ok() {
            tracing::info!("stopped");
        }
        outcome
    }
}

/// Health and metrics on a listener of their own, by a thread of their own: no queue and no limit of other requests is before them.
#[derive(Debug)]
struct Watching {
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Watching {
    /// Connections there at the same time: those who watch are few.
    const CONNECTIONS: usize = 64;
    /// How long what is being told at the end may take.
    const DRAIN: Duration = Duration::from_millis(500);

    fn start(config: &Config, listener: TcpListener, router: Router, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let config = Config { max_connections: Self::CONNECTIONS, serving_threads: 1, ..config.clone() };
        let mut connections = Connections::new(&config, router, tls)?;
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(async move {
            let _ = connections.accept_until(listener, ended).await;
            connections.drain(Self::DRAIN).await;
        });
        Ok(Self { end, task })
    }

    async fn end(self) {
        drop(self.end);
        let _ = self.task.await;
    }
}

/// Resolves at the first SIGTERM or SIGINT after this call.
///
/// # Errors
/// The system does not let this process listen to signals.
#[cfg(unix)]
pub fn signalled() -> io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Resolves when the process is asked to end.
///
/// # Errors
/// None on this system; a process that cannot be asked never ends by itself.
#[cfg(not(unix))]
pub fn signalled() -> io::Result<impl Future<Output = ()> + Send> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// The signals SIGHUP from its making on, by which daemons are told to read their files again.
#[derive(Debug)]
struct Hangups {
    #[cfg(unix)]
    signals: Option<tokio::signal::unix::Signal>,
}

impl Hangups {
    fn listen() -> Self {
        Self {
            #[cfg(unix)]
            signals: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok(),
        }
    }

    /// Resolves at the next one; where there are none, never.
    async fn next(&mut self) {
        #[cfg(unix)]
        if let Some(signals) = &mut self.signals
            && signals.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}

/// What the server says on stdout when it listens: where, and three commands that work as they are from the root of the repository.
#[must_use]
pub fn banner(listen: SocketAddr, grpc: Option<SocketAddr>, metrics: Option<SocketAddr>, encrypted: bool) -> String {
    let scheme = if encrypted { "https" } else { "http" };
    let grpc = grpc.map_or_else(String::new, |grpc| format!("gRPC (Open Inference Protocol) on {}\n", reachable(grpc)));
    let metrics = metrics.map_or_else(String::new, |metrics| format!("health and metrics on {scheme}://{}\n", reachable(metrics)));
    let url = format!("{scheme}://{}", reachable(listen));
    format!(
        r#"lsqd {version} listens on {url}
{grpc}{metrics}
Upload, fit, predict:

  curl -T examples/longley.csv {url}/v1/datasets/longley
  curl -X POST {url}/v1/models/employment/fits -H 'content-type: application/json' -d '{{"dataset":"longley","target":"employed"}}'
  curl -X POST {url}/v1/models/employment/predict -H 'content-type: application/json' -d '{{"rows":[{{"gnp_deflator":116.9,"gnp":554894,"unemployed":4007,"armed_forces":2827,"population":130081,"year":1962}}]}}'
"#,
        version = env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_banner_can_be_pasted() {
        let text = banner("0.0.0.0:9090".parse().unwrap(), "0.0.0.0:9091".parse().ok(), None, false);
        assert!(text.lines().nth(1).unwrap().ends_with(" 127.0.0.1:9091"));
        assert_eq!(text.matches("http://127.0.0.1:9090").count(), 4);
        for line in text.lines().filter(|line| line.contains(" -d ")) {
            let body = line.split_once("-d '").unwrap().1.trim_end_matches('\'');
            serde_json::from_str::<serde_json::Value>(body).unwrap();
        }
        let text = banner("127.0.0.1:9090".parse().unwrap(), None, "127.0.0.1:9092".parse().ok(), true);
        assert!(!text.contains("http://") && text.matches("https://127.0.0.1:909").count() == 5, "{text}");
    }
}
