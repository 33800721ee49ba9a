//! A server of one test and a client that lets no reply pass which the contract does not promise.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::contract::CONTRACT;

/// A running server on a database of its own.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Where it speaks gRPC.
    pub(crate) grpc: SocketAddr,
    /// Where it tells of its health and its metrics alone.
    pub(crate) metrics: SocketAddr,
    client: reqwest::Client,
    directory: tempfile::TempDir,
    adjust: fn(&mut lsqd::config::Config),
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Server {
    /// Starts one on an empty database.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts one whose settings differ from the defaults.
    pub(crate) async fn start_with(adjust: fn(&mut lsqd::config::Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { address: nowhere, grpc: nowhere, metrics: nowhere, client, directory, adjust, running: None };
        server.run().await;
        server
    }

    async fn run(&mut self) {
        if let Ok(filter) = std::env::var("LSQD_TEST_LOG") {
            lsqd::telemetry::log(lsqd::config::LogFormat::Text, &filter).unwrap();
        }
        let bind = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            (listener.local_addr().unwrap(), listener)
        };
        let (http, grpc, metrics);
        (self.address, http) = bind();
        (self.grpc, grpc) = bind();
        (self.metrics, metrics) = bind();
        let mut config = lsqd::config::Config::with_database(&self.directory.path().join("lsqd.db")).unwrap();
        (self.adjust)(&mut config);
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            // A runtime of its own, as a process has; a dropped sender stops the server as a sent word does.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = |listener| tokio::net::TcpListener::from_std(listener).unwrap();
                let listeners =
                    lsqd::server::Listeners { http: listener(http), grpc: Some(listener(grpc)), metrics: Some(listener(metrics)) };
                lsqd::run(config, listeners, async { _ = stopped.await }).await.unwrap();
            });
        });
        self.running = Some((stop, thread));
        for _ in 0..2000 {
            if self.get("/readyz").send().await.status == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the server did not become ready");
    }

    /// Stops it in an orderly way and starts it again on the same database.
    pub(crate) async fn restart(&mut self) {
        let (stop, thread) = self.running.take().unwrap();
        drop(stop);
        tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
        self.run().await;
    }

    /// The database file.
    pub(crate) fn database(&self) -> std::path::PathBuf {
        self.directory.path().join("lsqd.db")
    }

    /// Makes a key over HTTP, with the key that is given if the server asks for one: its id and the whole of it.
    pub(crate) async fn make_key(&self, with: Option<&str>, grant: Value) -> (String, String) {
        let request = self.post("/v1/keys").json(&grant);
        let made = match with {
            Some(key) => request.key(key),
            None => request,
        };
        let made = made.expect(201).await.json();
        (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
    }

    /// The database file, with what is not folded into it yet.
    pub(crate) fn bytes_of_the_database(&self) -> Vec<u8> {
        let read = |name: &str| std::fs::read(self.directory.path().join(name)).unwrap_or_default();
        [read("lsqd.db"), read("lsqd.db-wal")].concat()
    }

    pub(crate) fn request(&self, method: &'static str, path: impl Into<String>) -> Request<'_> {
        Request { server: self, method, path: path.into(), headers: Vec::new(), body: None }
    }

    pub(crate) fn get(&self, path: impl Into<String>) -> Request<'_> {
        self.request("GET", path)
    }

    pub(crate) fn put(&self, path: impl Into<String>) -> Request<'_> {
        self.request("PUT", path)
    }

    pub(crate) fn post(&self, path: impl Into<String>) -> Request<'_> {
        self.request("POST", path)
    }

    pub(crate) fn delete(&self, path: impl Into<String>) -> Request<'_> {
        self.request("DELETE", path)
    }

    /// Stores a CSV table as a new or replaced dataset.
    pub(crate) async fn table(&self, name: &str, csv: &str) {
        let reply = self.put(format!("/v1/datasets/{name}")).csv(csv).send().await;
        assert!(matches!(reply.status, 200 | 201), "{}", reply.text());
    }

    /// The same where a key is needed.
    pub(crate) async fn table_with(&self, key: &str, name: &str, csv: &str) {
        let reply = self.put(format!("/v1/datasets/{name}")).key(key).csv(csv).send().await;
        assert!(matches!(reply.status, 200 | 201), "{}", reply.text());
    }

    /// Fits and returns the version's document.
    pub(crate) async fn fit(&self, model: &str, specification: Value) -> Value {
        self.post(format!("/v1/models/{model}/fits")).header("prefer", "wait=60").json(&specification).expect(201).await.json()
    }

    /// Answers for a JSON question.
    pub(crate) async fn predict(&self, model: &str, question: Value) -> Value {
        self.post(format!("/v1/models/{model}/predict")).json(&question).expect(200).await.json()
    }

    /// Learns rows and returns the reply.
    pub(crate) async fn learn(&self, model: &str, rows: Value) -> Value {
        self.post(format!("/v1/models/{model}/updates")).json(&rows).expect(200).await.json()
    }
}

/// A request being put together.
pub(crate) struct Request<'a> {
    server: &'a Server,
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
}

impl Request<'_> {
    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Shows a key.
    pub(crate) fn key(self, key: &str) -> Self {
        self.header("authorization", format!("Bearer {key}"))
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    pub(crate) fn typed(self, media: &str, body: impl Into<Vec<u8>>) -> Self {
        self.header("content-type", media).body(body)
    }

    pub(crate) fn json(self, value: &Value) -> Self {
        self.typed("application/json", value.to_string())
    }

    pub(crate) fn csv(self, text: &str) -> Self {
        self.typed("text/csv", text)
    }

    pub(crate) fn ndjson(self, text: &str) -> Self {
        self.typed("application/x-ndjson", text)
    }

    /// Sends it and checks the reply against the contract.
    pub(crate) async fn send(self) -> Reply {
        let (place, reply) = self.exchange().await;
        CONTRACT.check(place.0, &place.1, reply.status, &reply.headers, &reply.body);
        reply
    }

    async fn exchange(self) -> ((&'static str, String), Reply) {
        let url = format!("http://{}{}", self.server.address, self.path);
        let mut request = self.server.client.request(self.method.parse().unwrap(), url);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if let Some(body) = self.body {
            request = request.body(body);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.unwrap().to_vec();
        ((self.method, self.path), Reply { status, headers, body })
    }

    /// Sends it and demands a status, of a reply that is packed and so cannot be checked against the contract.
    pub(crate) async fn expect_raw(self, status: u16) -> Reply {
        let reply = self.exchange().await.1;
        assert_eq!(reply.status, status);
        reply
    }

    /// Sends it and demands a status.
    pub(crate) async fn expect(self, status: u16) -> Reply {
        let place = format!("{} {}", self.method, self.path);
        let reply = self.send().await;
        assert_eq!(reply.status, status, "{place}: {}", reply.text());
        reply
    }

    /// Sends it and demands a refusal with this code.
    pub(crate) async fn refused(self, status: u16, code: &str) -> Reply {
        let reply = self.expect(status).await;
        assert_eq!(reply.code(), code, "{}", reply.text());
        reply
    }
}

/// A reply that has passed the contract.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn etag(&self) -> String {
        self.header("etag").expect("an ETag").to_owned()
    }

    pub(crate) fn replayed(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The pointers of the faults in a problem.
    pub(crate) fn pointers(&self) -> Vec<String> {
        let problem = self.json();
        problem["errors"].as_array().unwrap().iter().map(|fault| fault["pointer"].as_str().unwrap().to_owned()).collect()
    }
}

/// The numbers of a JSON list.
pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}")).iter().map(|value| value.as_f64().unwrap()).collect()
}

/// Decimal digits in which a value agrees with what it should be: −log₁₀ of the relative error, 17 at the most.
pub(crate) fn digits(value: f64, wanted: f64) -> f64 {
    let error = if wanted == 0.0 { value.abs() } else { ((value - wanted) / wanted).abs() };
    if error == 0.0 { 17.0 } else { (-error.log10()).min(17.0) }
}

/// Asserts agreement of two lists to a number of digits.
#[track_caller]
pub(crate) fn agree(values: &[f64], wanted: &[f64], least: f64) {
    assert_eq!(values.len(), wanted.len(), "{values:?} against {wanted:?}");
    for (value, wanted) in values.iter().zip(wanted) {
        assert!(digits(*value, *wanted) >= least, "{value} against {wanted}: {} digits, not {least}", digits(*value, *wanted));
    }
}

/// The coefficients of a version's document in order, one figure of each.
pub(crate) fn coefficients(version: &Value, figure: &str) -> Vec<f64> {
    version["coefficients"].as_array().unwrap().iter().map(|line| line[figure].as_f64().unwrap_or(f64::NAN)).collect()
}

/// The names of the coefficients of a version's document.
pub(crate) fn names(version: &Value) -> Vec<String> {
    version["coefficients"].as_array().unwrap().iter().map(|line| line["name"].as_str().unwrap().to_owned()).collect()
}

/// A fixed sequence of numbers in [−1, 1) without pattern (SplitMix64, Steele et al. 2014).
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        (word >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}
