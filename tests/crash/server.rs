//! The real binary as a child process, and a look into its file while it does not run.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

/// The rows that every model here is fitted on.
pub(crate) const TABLE: &str = "x,z,y\n1,0.5,1\n2,-1,2.5\n3,0.25,2.75\n4,2,4\n5,-0.125,5.5\n";

/// A child process that serves.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
}

impl Server {
    /// Starts the binary on a database and waits until it is ready.
    pub(crate) async fn start(database: &Path) -> Self {
        Self::start_as(Command::new(env!("CARGO_BIN_EXE_lsqd")), database, None).await
    }

    /// Starts the binary with one of the bugs that a debug build can be asked for.
    pub(crate) async fn start_with(database: &Path, planted: Option<&str>) -> Self {
        Self::start_as(Command::new(env!("CARGO_BIN_EXE_lsqd")), database, planted).await
    }

    /// Starts the binary so that no file that it writes can grow past `blocks` of 512 bytes.
    pub(crate) async fn start_with_small_files(database: &Path, blocks: u32) -> Self {
        let mut command = Command::new("sh");
        // The signal that comes with a write past the limit is ignored, so that the write fails instead.
        command.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_lsqd")]);
        Self::start_as(command, database, None).await
    }

    async fn start_as(mut command: Command, database: &Path, planted: Option<&str>) -> Self {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LSQD_")) {
            command.env_remove(name);
        }
        if let Some(bug) = planted {
            command.env("LSQD_PLANTED_FAULT", bug);
        }
        command.current_dir(database.parent().unwrap()).args(["--listen", "127.0.0.1:0", "--log-level", "off", "--database"]).arg(database);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(url.starts_with("http://"), "the first line does not name an address: {line:?}");
        let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
        let server = Self { child, url, client };
        let begun = Instant::now();
        while server.send("GET", "/readyz", None).await.is_none_or(|(status, _)| status != 200) {
            assert!(begun.elapsed() < Duration::from_secs(30), "the server did not become ready");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        server
    }

    /// Ends it without a chance to tidy up.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for it to end by itself.
    pub(crate) async fn end(&mut self) -> std::process::ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(25), "it did not end within 25 s");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a request; `None` when the server is gone.
    pub(crate) async fn send(&self, method: &str, path: &str, body: Option<String>) -> Option<(u16, Value)> {
        let (status, body) = send(&self.client, &self.url, method, path, None, body).await?;
        Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    /// Sends a request that must succeed.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<String>) -> Value {
        let (status, value) = self.send(method, path, body).await.expect("an answer");
        assert!(status < 300, "{method} {path} -> {status}: {value}");
        value
    }

    /// Stores the table and fits `model` on it.
    pub(crate) async fn fit(&self, model: &str) {
        if self.send("GET", "/v1/datasets/t", None).await.unwrap().0 == 404 {
            self.ask("PUT", "/v1/datasets/t", Some(TABLE.to_owned())).await;
        }
        let body = json!({"dataset": "t", "target": "y", "online": {"forgetting_factor": 0.999}});
        self.ask("POST", &format!("/v1/models/{model}/fits"), Some(body.to_string())).await;
    }

    /// Everything the model says, as text: sequence, predictions, limits, leverage and coefficients of this moment.
    pub(crate) async fn says(&self, model: &str) -> (u64, String) {
        let rows: Vec<Value> = (-3..4).map(|x| json!({"x": f64::from(x) * 1.7, "z": f64::from(x * x) - 2.5})).collect();
        let question = json!({"rows": rows, "interval": {"kind": "prediction", "level": 0.9}, "explain": true});
        let mut answer = self.ask("POST", &format!("/v1/models/{model}/predict"), Some(question.to_string())).await;
        let document = self.ask("GET", &format!("/v1/models/{model}"), None).await;
        let sequence = answer["sequence"].as_u64().unwrap();
        assert_eq!(document["sequence"], sequence);
        for place in ["model", "version"] {
            answer[place] = Value::Null;
        }
        (sequence, format!("{answer} {} {}", document["coefficients"], document["fit"]))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test that fails must not leave its server behind; one that ended is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a request, with an `Idempotency-Key` if there is one; `None` when the server is gone before the whole reply came.
pub(crate) async fn send(
    client: &reqwest::Client,
    url: &str,
    method: &str,
    path: &str,
    key: Option<&str>,
    body: Option<String>,
) -> Option<(u16, Vec<u8>)> {
    let mut request = client.request(method.parse().unwrap(), format!("{url}{path}"));
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    if let Some(body) = body {
        request = request.body(body);
    }
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.bytes().await.ok()?.to_vec()))
}

/// The numbers x, z and y of the row `number` of a series: no two are alike.
pub(crate) fn cells(series: usize, number: u64) -> [f64; 3] {
    let x = number as f64 * 0.37 + series as f64;
    [x, (x * 1.3).sin(), 1.1 * x + (x * 7.0).cos()]
}

/// A row as it is sent.
pub(crate) fn row([x, z, y]: [f64; 3]) -> Value {
    json!({"x": x, "z": z, "y": y})
}

/// A database whose server does not run.
pub(crate) async fn open(database: &Path) -> sqlx::SqliteConnection {
    SqliteConnectOptions::new().filename(database).disable_statement_logging().connect().await.unwrap()
}

/// The id of the first version of a model.
pub(crate) async fn version(connection: &mut sqlx::SqliteConnection, model: &str) -> i64 {
    let (id,): (i64,) =
        sqlx::query_as("SELECT versions.id FROM versions JOIN models ON models.id = model_id WHERE name = ? AND version = 1")
            .bind(model)
            .fetch_one(connection)
            .await
            .unwrap();
    id
}

/// The rows that the first version of a model has learnt, from the log on disk.
///
/// # Errors
/// The log has a gap.
pub(crate) async fn log(database: &Path, model: &str) -> Result<Vec<[f64; 3]>, String> {
    use sqlx::Connection as _;
    let mut connection = open(database).await;
    let version = version(&mut connection, model).await;
    let records = lsqd::store::updates::after(&mut connection, version, 0, u32::MAX).await.map_err(|error| error.to_string())?;
    connection.close().await.unwrap();
    let mut rows = Vec::new();
    for record in records {
        if record.first_sequence != rows.len() as u64 + 1 {
            return Err(format!("the log of {model} goes on at {} after {}", record.first_sequence, rows.len()));
        }
        // The last cell is the weight.
        rows.extend(record.values.chunks_exact(4).map(|cells| [cells[0], cells[1], cells[2]]));
    }
    Ok(rows)
}

/// Copies a database whose server does not run.
pub(crate) fn copy(database: &Path, to: &Path) {
    for ending in ["", "-wal"] {
        let with = |path: &Path| PathBuf::from(format!("{}{ending}", path.display()));
        if with(database).exists() {
            std::fs::copy(with(database), with(to)).unwrap();
        }
    }
}
