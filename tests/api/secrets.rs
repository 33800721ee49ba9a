//! Secrets that are planted wherever a server meets them come out nowhere: not in its log at its loudest, not in metrics, not in errors.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::json;

/// Begins everything that is planted; each has something of its own behind it.
const PLANTED: &str = "planted7c1d";

/// A server in a process of its own, whatever it writes, and whatever it answers with an error.
struct Loud {
    process: Child,
    url: String,
    written: Arc<Mutex<Vec<u8>>>,
    errors: Mutex<String>,
    client: reqwest::Client,
}

impl Drop for Loud {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Loud {
    fn start(database: &std::path::Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_lsqd"))
            .args(["--log-level", "trace", "--log-format", "json", "--listen", "127.0.0.1:0", "--database"])
            .arg(database)
            .env("DATABASE_PASSWORD", format!("{PLANTED}-environment"))
            .env("LSQD_CORS_ORIGINS", format!("https://{PLANTED}-setting.example"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut out = BufReader::new(process.stdout.take().unwrap());
        let mut banner = String::new();
        out.read_line(&mut banner).unwrap();
        written.lock().unwrap().extend_from_slice(banner.as_bytes());
        let sources: [Box<dyn std::io::Read + Send>; 2] = [Box::new(out), Box::new(process.stderr.take().unwrap())];
        for mut source in sources {
            let written = written.clone();
            std::thread::spawn(move || {
                let mut piece = [0; 4096];
                while let Ok(count @ 1..) = source.read(&mut piece) {
                    written.lock().unwrap().extend_from_slice(&piece[..count]);
                }
            });
        }
        Self {
            process,
            url: banner.trim_end().rsplit_once(' ').unwrap().1.to_owned(),
            written,
            errors: Mutex::default(),
            client: reqwest::Client::new(),
        }
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<String>) -> (u16, String) {
        let mut request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.url)).body(body.into());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let reply = request.send().await.unwrap();
        let (status, headers) = (reply.status().as_u16(), format!("{:?}", reply.headers()));
        let text = reply.text().await.unwrap();
        if status >= 400 {
            self.errors.lock().unwrap().push_str(&format!("{method} {path}: {headers} {text}\n"));
        }
        (status, text)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_planted_comes_out_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lsqd.db");
    let make = |scopes: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_lsqd")).args(["key", "create", "--scopes", scopes, "--database"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    let (admin, weak) = (make("admin"), make("predict"));
    let server = Loud::start(&path);
    for _ in 0..2000 {
        match server.client.get(format!("{}/readyz", server.url)).send().await {
            Ok(reply) if reply.status() == 200 => break,
            _ => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    }
    let (bearer, weak_bearer) = (format!("Bearer {admin}"), format!("Bearer {weak}"));
    let mut wrong = bearer.clone();
    let last = if wrong.pop() == Some('0') { '1' } else { '0' };
    wrong.push(last);
    let cookie = format!("session={PLANTED}-cookie");
    let basic = format!("Basic {PLANTED}-basic");
    let strange = format!("Bearer {PLANTED}-bearer");
    let key = format!("{PLANTED}-idempotency");
    let own: &[(&str, &str)] = &[("authorization", &bearer), ("cookie", &cookie), ("x-api-key", &key), ("idempotency-key", &key)];
    let csv: &[(&str, &str)] = &[("authorization", &bearer), ("content-type", "text/csv")];
    let json: &[(&str, &str)] = &[("authorization", &bearer), ("content-type", "application/json")];
    let lines: &[(&str, &str)] = &[("authorization", &bearer), ("content-type", "application/x-ndjson")];
    let cell = format!("{PLANTED}-cell");
    let table = format!("x,who,y\n1,{cell}-a,1\n2,{cell}-b,2.5\n3,{cell}-a,3\n4,{cell}-b,4.5\n5,{cell}-b,5\n");
    let good = [
        server.send("PUT", "/v1/datasets/t", csv, table.clone()).await,
        server.send("POST", "/v1/models/m/fits", json, r#"{"dataset":"t","target":"y"}"#).await,
        server
            .send(
                "POST",
                "/v1/models/m/predict?key=planted7c1d-query",
                own,
                json!({"rows": [{"x": 1, "who": format!("{cell}-a")}]}).to_string(),
            )
            .await,
        server.send("POST", "/v1/models/m/predict", csv, format!("x,who\n1,{cell}-a\n")).await,
        server
            .send(
                "POST",
                "/v1/models/m/updates",
                own,
                json!({"rows": [{"_id": cell, "x": 1, "who": format!("{cell}-a"), "y": 1}]}).to_string(),
            )
            .await,
        server.send("POST", "/v1/models/m/updates", lines, format!("{{\"x\":1,\"who\":\"{cell}-b\",\"y\":1}}\n")).await,
        server.send("GET", "/v1/models/m", json, "").await,
        server.send("POST", "/v1/keys", json, format!(r#"{{"scopes":["read"],"name":"{PLANTED}-name"}}"#)).await,
    ];
    assert!(good.iter().all(|(status, _)| *status < 300), "{good:?}");
    // What nobody may ask, cannot be read, or is not so.
    let bad = [
        server.send("GET", "/v1/models", &[("authorization", &basic)], "").await,
        server.send("GET", "/v1/models", &[("authorization", &strange)], "").await,
        server.send("GET", "/v1/models", &[("authorization", &wrong)], "").await,
        server.send("GET", "/v1/models", &[("authorization", &weak_bearer)], "").await,
        server.send("POST", "/v1/models/m/predict", &[("authorization", &wrong)], format!(r#"{{"rows":[{{"x":"{cell}"}}]}}"#)).await,
        server.send("POST", "/v1/models/m/predict", json, format!(r#"{{"rows":[{{"x":"{cell}","who":"{cell}"}}]}}"#)).await,
        server.send("POST", "/v1/models/m/predict", json, format!(r#"{{"rows":[{{"x":{cell}"#)).await,
        server.send("POST", "/v1/models/m/predict", csv, format!("x,who\n{cell},{cell}\n")).await,
        server.send("POST", "/v1/models/m/predict", lines, format!("{{\"x\":\"{cell}\",\"who\":\"{cell}\"}}\n")).await,
        server.send("POST", "/v1/models/m/updates", json, format!(r#"{{"rows":[{{"x":1,"who":"{cell}","y":"{cell}"}}]}}"#)).await,
        server.send("POST", "/v1/models/m/labels", json, format!(r#"{{"labels":[{{"prediction_id":"{cell}","value":1}}]}}"#)).await,
        server.send("PUT", "/v1/datasets/t?types=x:number", csv, format!("x\n{cell}\n")).await,
        server.send("PUT", "/v1/datasets/t", json, format!(r#"{{"rows":[{cell}"#)).await,
        server.send("DELETE", &format!("/v1/datasets/t/rows?column=who&value={cell}-nobody"), json, "").await,
        server.send("POST", "/v1/models/m/fits", json, format!(r#"{{"dataset":"{cell}","target":"y"}}"#)).await,
        server.send("POST", "/v1/models/m/fits", json, format!(r#"{{"dataset":"t","target":"y","solver":"{cell}"}}"#)).await,
        server.send("POST", "/v1/keys", json, format!(r#"{{"scopes":["{cell}"],"expires_at":"{cell}"}}"#)).await,
        server.send("GET", &format!("/v1/models/{cell}"), json, "").await,
        server.send("GET", &format!("/{cell}?{cell}={cell}"), json, "").await,
        server.send(PLANTED, "/v1/models", json, "").await,
        server.send("POST", "/v1/models/m/updates", own, json!({"rows": [{"x": 2, "who": format!("{cell}-a"), "y": 1}]}).to_string()).await,
    ];
    assert!(bad.iter().all(|(status, _)| (400..500).contains(status)), "{bad:?}");
    // What is broken off is worth a line only when everything is written.
    let mut socket = std::net::TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    std::io::Write::write_all(&mut socket, format!("POST /v1/models/m/updates HTTP/1.1\r\n{PLANTED}").as_bytes()).unwrap();
    drop(socket);
    let (status, metrics) = server.send("GET", "/metrics", json, "").await;
    assert!(status == 200 && metrics.contains("lsqd_requests_total"));
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;

    let written = String::from_utf8_lossy(&server.written.lock().unwrap()).into_owned();
    let errors = server.errors.lock().unwrap().clone();
    assert!(written.contains("\"DEBUG\""), "the server was not loud: {written}");
    // The id of a key is there to be seen.
    let id = admin.strip_prefix("lsqd_").unwrap().split_once('.').unwrap().0;
    assert!(written.contains(id), "nobody can tell who asked");
    // A path that somebody asks for is their own; the test wrote it before what was answered.
    let answered: String = errors.lines().filter_map(|line| line.split_once(": ")).map(|(_, said)| format!("{said}\n")).collect();
    let secrets = [&admin, &weak].map(|key| key.split_once('.').unwrap().1);
    for (place, text) in [("the log", &written), ("the metrics", &metrics), ("errors", &answered)] {
        for secret in secrets.iter().chain([&PLANTED]) {
            assert_eq!(text.lines().find(|line| line.contains(secret)), None, "{place} tells {secret}");
        }
    }
}
