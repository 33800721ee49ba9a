//! Packed bodies, unpacked as they arrive. What bombs cost is measured in `tests/weather`.

use serde_json::json;

use crate::client::{Request, Server};
use crate::pack::pack;

/// A request whose body is packed.
fn packed_by<'a>(encoding: &'static str, request: Request<'a>) -> Request<'a> {
    request.header("content-encoding", encoding)
}

const ENCODINGS: [&str; 3] = ["gzip", "deflate", "zstd"];

async fn line() -> Server {
    let server = Server::start_with(|config| config.packed_limit = 3 << 20).await;
    server.table("t", "x,y\n1,1\n2,2.5\n3,2.75\n4,4\n").await;
    server.fit("line", json!({"dataset": "t", "target": "y"})).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_bodies_do_what_plain_ones_do() {
    let server = line().await;
    let mut csv = "x,y\n".to_owned();
    (0..60_000).for_each(|row| csv.push_str(&format!("{row},{}.5\n", row * 7 % 1000)));
    let questions: String = (0..60_000).map(|row| format!("{{\"x\":{row}}}\n")).collect();
    server.table("plain", &csv).await;
    let plain = server.get("/v1/datasets/plain").expect(200).await.json();
    for encoding in ENCODINGS {
        let body = pack(encoding, csv.as_bytes()).await;
        let uploaded =
            packed_by(encoding, server.put(format!("/v1/datasets/{encoding}")).typed("text/csv", body.clone())).expect(201).await.json();
        assert_eq!((&uploaded["columns"], &uploaded["bytes"]), (&plain["columns"], &plain["bytes"]), "{encoding}");
        // Asked anew, since the model has learnt a row meanwhile.
        let answers = server.post("/v1/models/line/predict").ndjson(&questions).expect(200).await.body;
        let packed = pack(encoding, questions.as_bytes()).await;
        let reply = packed_by(encoding, server.post("/v1/models/line/predict").typed("application/x-ndjson", packed)).expect(200).await;
        assert!(reply.body == answers, "{encoding}: other answers");
        let row = pack(encoding, &b"{\"rows\":[{\"x\":5,\"y\":5.5}]}"[..]).await;
        packed_by(encoding, server.post("/v1/models/line/updates").typed("application/json", row)).expect(200).await;
        // Answers are packed too, streams of lines among them.
        for path in ["/v1/datasets/plain/rows", "/openapi.yaml"] {
            let reply = server.get(path).header("accept-encoding", encoding).header("accept", "application/x-ndjson").expect_raw(200).await;
            assert_eq!(reply.header("content-encoding"), Some(encoding), "{path}");
        }
        // What fits into one packet of the network is not.
        assert_eq!(server.get("/livez").header("accept-encoding", encoding).expect(200).await.header("content-encoding"), None);
        for (bent, code) in [(b"not packed at all".to_vec(), "bad_syntax"), (body[..body.len() / 2].to_vec(), "body_cut")] {
            let reply = packed_by(encoding, server.put("/v1/datasets/bent").typed("text/csv", bent.clone())).refused(400, code).await;
            assert!(reply.json()["detail"].as_str().unwrap().contains("body"));
            let half = pack(encoding, questions.as_bytes()).await;
            let bent = if code == "body_cut" { half[..half.len() / 2].to_vec() } else { bent };
            let reply = packed_by(encoding, server.post("/v1/models/line/predict").typed("application/x-ndjson", bent)).send().await;
            // What was unpacked before the fault may have been answered already; then the last line says so.
            let last = reply.text().lines().last().map(str::to_owned).unwrap_or_default();
            assert!(if reply.status == 200 { last.contains(code) } else { reply.code() == code }, "{}: {last}", reply.status);
        }
    }
    server.get("/v1/datasets/bent").refused(404, "dataset_not_found").await;
    let unknown = server.put("/v1/datasets/bent").header("content-encoding", "br").csv("x\n1\n");
    unknown.refused(415, "unsupported_media_type").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_length_as_it_comes_has_a_limit_of_its_own() {
    let server = line().await;
    // Digits without a pattern hardly pack.
    let mut noise = crate::client::Noise(1);
    let csv: String = std::iter::once("x\n".to_owned()).chain((0..400_000).map(|_| format!("{}\n", noise.next()))).collect();
    for encoding in ENCODINGS {
        let body = pack(encoding, csv.as_bytes()).await;
        assert!(body.len() > 3 << 20);
        let reply =
            server.put("/v1/datasets/long").header("content-encoding", encoding).typed("text/csv", body).refused(413, "payload_too_large");
        assert!(reply.await.json()["detail"].as_str().unwrap().contains("packed"));
    }
    server.table("long", &csv).await;
}
