//! Limits on what is under way, on what a key may send and on what the database may take: past them a request is told so before its body is
//! read, and everything else goes on.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Reply, Server};
use crate::grpc::{Grpc, asked, field, framed, input};

const TABLE: &str = "x,y\n1,1\n2,2.5\n3,3\n4,4.5\n";
const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

async fn with_model(adjust: fn(&mut lsqd::config::Config)) -> Server {
    let server = Server::start_with(adjust).await;
    server.table("t", TABLE).await;
    server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    server
}

/// Sends the header of a request and no body; what the server says to that, if it says something.
fn begin(server: &Server, header: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(format!("{header}\r\nhost: a\r\nexpect: 100-continue\r\n\r\n").as_bytes()).unwrap();
    let mut piece = [0; 4096];
    let count = stream.read(&mut piece).unwrap();
    let said = String::from_utf8_lossy(&piece[..count]).into_owned();
    (stream, said)
}

fn is_overloaded(reply: &Reply) -> bool {
    if reply.status == 503 {
        assert_eq!((reply.code().as_str(), reply.header("retry-after")), ("overloaded", Some("1")), "{}", reply.text());
    }
    reply.status == 503
}

/// The sum of a metric's lines that have this in them.
async fn metric(server: &Server, name: &str, part: &str) -> f64 {
    let text = server.get("/metrics").expect(200).await.text();
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(part));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_past_a_limit_hears_so_before_the_body_and_nobody_else_does() {
    let server = with_model(|config| {
        config.concurrent_streams = 1;
        config.concurrent_uploads = 1;
        config.concurrent_fits = 1;
    })
    .await;
    for (class, header) in [
        ("stream", "POST /v1/models/m/updates HTTP/1.1\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked"),
        ("stream", "POST /v1/models/m/predict HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 1000000"),
        ("upload", "PUT /v1/datasets/u HTTP/1.1\r\ncontent-type: text/csv\r\ntransfer-encoding: chunked"),
        ("fit", "POST /v1/models/f/fits HTTP/1.1\r\ncontent-type: application/json\r\ntransfer-encoding: chunked"),
    ] {
        let refused = metric(&server, "lsqd_requests_shed_total", class).await;
        let (held, said) = begin(&server, header);
        assert!(said.starts_with("HTTP/1.1 100"), "{class}: {said}");
        let (_, said) = begin(&server, header);
        assert!(said.starts_with("HTTP/1.1 503") && said.contains("\"overloaded\""), "{class}: {said}");
        assert!(said.to_ascii_lowercase().contains("retry-after: 1"), "{class}: {said}");
        // Other tests of this process count too.
        assert!(metric(&server, "lsqd_requests_shed_total", class).await > refused);
        assert!(metric(&server, "lsqd_requests_under_way", class).await >= 1.0);
        for path in ["/livez", "/readyz", "/metrics", "/v2/health/ready", "/v1/models/m"] {
            server.get(path).expect(200).await;
        }
        server.predict("m", json!({"rows": [{"x": 1}]})).await;
        server.learn("m", json!({"rows": [{"x": 1, "y": 2}]})).await;
        drop(held);
        // The place is free when the server has seen that the client is gone.
        let begun = Instant::now();
        while begin(&server, header).1.starts_with("HTTP/1.1 503") {
            assert!(begun.elapsed() < Duration::from_secs(20), "{class}: a place was not given back");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn predictions_past_their_limit_are_refused_over_http_and_grpc() {
    let server = with_model(|config| config.concurrent_predictions = Some(1)).await;
    let rows: Vec<_> = (0..4000).map(|x| json!({"x": x})).collect();
    let large = json!({"rows": rows[..], "explain": true});
    let (mut taken, mut refused) = (0, 0);
    let begun = Instant::now();
    while taken == 0 || refused == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{taken} were answered and {refused} refused");
        let replies = futures_util::future::join_all((0..32).map(|_| server.post("/v1/models/m/predict").json(&large).send())).await;
        for reply in &replies {
            assert!(is_overloaded(reply) || reply.status == 200, "{}", reply.text());
        }
        refused += replies.iter().filter(|reply| reply.status == 503).count();
        taken += replies.iter().filter(|reply| reply.status == 200).count();
    }
    // Nothing is left behind.
    server.predict("m", json!({"rows": [{"x": 1}]})).await;

    let numbers: Vec<u8> = (0..20_000).flat_map(|x| f64::from(x).to_le_bytes()).collect();
    let message = asked("m", &[input("x", "FP64", &[20_000], &[]), field(7, &numbers)]);
    let (mut taken, mut refused) = (0, 0);
    let calling = [Grpc::connect(server.grpc).await, Grpc::connect(server.grpc).await];
    while taken == 0 || refused == 0 {
        assert!(begun.elapsed() < Duration::from_secs(120), "{taken} calls were answered and {refused} refused");
        for ended in futures_util::future::join_all((0..32).map(|call| calling[call % 2].infer(&message))).await {
            match ended.status {
                0 => taken += 1,
                14 => {
                    assert_eq!(ended.code, "overloaded");
                    refused += 1;
                }
                _ => panic!("{ended:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_sends_too_much_is_told_when_to_come_again_and_others_are_not() {
    let server = with_model(|config| config.key_rate = Some((1, 5))).await;
    let (_, admin) = server.make_key(None, json!({"scopes": ["admin"]})).await;
    let (_, busy) = server.make_key(Some(&admin), json!({"scopes": ["read", "predict"]})).await;
    let ask = || server.post("/v1/models/m/predict").key(&busy).json(&json!({"rows": [{"x": 1}]})).send();
    let mut taken = 0;
    let refused = loop {
        let reply = ask().await;
        if reply.status != 200 {
            break reply;
        }
        taken += 1;
        assert!(taken < 100, "nothing was refused");
    };
    assert!(taken >= 5, "{taken} of a burst of 5");
    assert_eq!((refused.status, refused.code().as_str(), refused.header("retry-after")), (429, "rate_limited", Some("1")));
    // Those who watch are not kept from it, nor those with another key; and that there is a new key gives nobody a new burst.
    server.get("/readyz").expect(200).await;
    server.get("/metrics").key(&busy).expect(200).await;
    let (_, other) = server.make_key(Some(&admin), json!({"scopes": ["read", "predict"]})).await;
    server.get("/v1/models").key(&other).expect(200).await;
    let mut attempts = 0;
    while server.get("/v1/models").key(&busy).send().await.status == 200 {
        attempts += 1;
        assert!(attempts < 5, "the new key filled the bucket of another");
    }
    let bearer = format!("Bearer {busy}");
    let message = asked("m", &[input("x", "FP64", &[1], &[]), field(7, &1.0_f64.to_le_bytes())]);
    let grpc = Grpc::connect(server.grpc).await;
    let mut ended = grpc.send(INFER, &[("authorization", &bearer)], framed(0, &message)).await;
    for _ in 0..100 {
        if ended.status != 0 {
            break;
        }
        ended = grpc.send(INFER, &[("authorization", &bearer)], framed(0, &message)).await;
    }
    assert_eq!((ended.status, ended.code.as_str()), (8, "rate_limited"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_as_large_as_it_may_be_takes_no_more_and_goes_on() {
    let server = with_model(|config| config.storage_limit = 4 << 20).await;
    let rows = |count: u32| {
        (0..count).fold("x,y\n".to_owned(), |text, row| text + &format!("{}.{row:06},{row}\n", row.wrapping_mul(2_654_435_761)))
    };
    let large = rows(400_000);
    let refused = server.put("/v1/datasets/large").csv(&large).refused(507, "disk_full").await;
    assert!(refused.header("retry-after").is_none());
    server.get("/v1/datasets/large").refused(404, "dataset_not_found").await;
    server.get("/readyz").expect(200).await;
    server.learn("m", json!({"rows": [{"x": 1, "y": 2}]})).await;
    server.table("small", &rows(1000)).await;
    assert!(std::fs::metadata(server.database()).unwrap().len() <= 4 << 20);
    assert!(metric(&server, "lsqd_database_bytes", "").await > 0.0);
}

/// Asks for a path where health and metrics are by themselves; the status and the whole of the answer.
fn watched(server: &Server, path: &str, header: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server.metrics).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{header}\r\n").as_bytes()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    (said[9..12].parse().unwrap(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_answer_by_themselves_while_nobody_else_gets_in() {
    // One connection is all there is, and the client of this test keeps it open: who comes now waits for good.
    let server = Server::start_with(|config| config.max_connections = 1).await;
    assert_eq!(server.get("/v1/models").expect(200).await.json()["items"], json!([]));
    let mut waiting = TcpStream::connect(server.address).unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    waiting.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert!(waiting.read(&mut [0; 512]).is_err(), "there was room for another connection");
    for path in ["/livez", "/readyz"] {
        assert_eq!(watched(&server, path, "").0, 200, "{path}");
    }
    let (status, metrics) = watched(&server, "/metrics", "");
    assert!(status == 200 && metrics.contains("lsqd_requests_under_way{class=\"predict\"}"), "{metrics}");
    for path in ["/v1/models", "/", "/openapi.yaml"] {
        let (status, said) = watched(&server, path, "");
        assert!(status == 404 && said.contains("\"not_found\""), "{path}: {said}");
    }
    server.get("/livez").expect(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_by_themselves_ask_for_a_key_as_they_do_elsewhere() {
    let server = Server::start().await;
    assert_eq!(watched(&server, "/metrics", "").0, 200);
    let (_, admin) = server.make_key(None, json!({"scopes": ["admin"]})).await;
    let (_, predicting) = server.make_key(Some(&admin), json!({"scopes": ["predict"]})).await;
    let status = |key: &str| watched(&server, "/metrics", &format!("authorization: Bearer {key}\r\n")).0;
    assert_eq!((watched(&server, "/metrics", "").0, status(&predicting), status(&admin)), (401, 403, 200));
    assert_eq!(watched(&server, "/readyz", "").0, 200);
}
