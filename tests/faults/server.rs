//! A server of this process, so that it runs on the disk that the test holds.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

/// A server on a runtime of its own.
pub(crate) struct Server {
    url: String,
    client: reqwest::Client,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), String>>,
}

impl Server {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// It ended before: the reason.
    pub(crate) async fn start(database: &Path) -> Result<Self, String> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
        let config = lsqd::config::Config::with_database(database).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let outcome = runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                lsqd::run(config, listener, async { _ = stopped.await }).await.map_err(|failure| failure.to_string())
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
            outcome
        });
        let server = Self { url, client, stop, thread };
        for _ in 0..10_000 {
            if server.thread.is_finished() {
                return Err(server.stop().await.unwrap_err());
            }
            match server.send("GET", "/readyz", None).await {
                Some((200, _)) => return Ok(server),
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
        panic!("the server did not become ready, nor did it end");
    }

    /// Sends a request with these headers; `None` when there is no whole reply.
    pub(crate) async fn send_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<String>) -> Option<(u16, Value)> {
        let mut request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        let body = response.bytes().await.ok()?;
        Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    /// Sends a request; `None` when there is no whole reply.
    pub(crate) async fn send(&self, method: &str, path: &str, body: Option<String>) -> Option<(u16, Value)> {
        self.send_with(method, path, &[], body).await
    }

    /// Sends a request that must succeed.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<String>) -> Value {
        let (status, value) = self.send(method, path, body).await.expect("an answer");
        assert!(status < 300, "{method} {path} -> {status}: {value}");
        value
    }

    /// Asks it to stop, if it has not, and waits for its end.
    ///
    /// # Errors
    /// It ended otherwise than by being asked to: the reason.
    pub(crate) async fn stop(self) -> Result<(), String> {
        drop(self.stop);
        Self::ended(self.thread).await
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// The reason.
    pub(crate) async fn end(self) -> Result<(), String> {
        let Self { thread, stop, .. } = self;
        let outcome = Self::ended(thread).await;
        drop(stop);
        outcome
    }

    async fn ended(thread: JoinHandle<Result<(), String>>) -> Result<(), String> {
        let joined = tokio::task::spawn_blocking(move || thread.join());
        tokio::time::timeout(Duration::from_secs(60), joined).await.expect("an end").unwrap().expect("no panic")
    }
}
