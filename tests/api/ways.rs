//! The two ways of a request: predictions and small updates are answered past the routes, and nobody can tell. Whatever is sent, a reply on
//! the short way is, byte for byte, what the routes reply; and what comes over a connection is told apart by its framing alone.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Noise, Server};

/// How a model is named so that the routes are taken: they know how an address is decoded.
const ROUTED: &str = "l%69ne";
const SHORT: &str = "line";

/// A request, `{model}` where its model goes.
struct Asked {
    line: &'static str,
    headers: Vec<String>,
    body: Vec<u8>,
}

fn asked(line: &'static str, headers: &[&str], body: impl Into<Vec<u8>>) -> Asked {
    Asked { line, headers: headers.iter().map(|&header| header.to_owned()).collect(), body: body.into() }
}

const PREDICT: &str = "POST /v1/models/{model}/predict HTTP/1.1";
const UPDATES: &str = "POST /v1/models/{model}/updates HTTP/1.1";
const JSON: &str = "content-type: application/json";

async fn served() -> Server {
    let server = Server::start_with(|config| config.body_limit = 300_000).await;
    let mut noise = Noise(11);
    let rows: Vec<String> = (0..60)
        .map(|_| {
            let (x, z) = (noise.next(), noise.next());
            format!("{x},{z},{}", 2.0 * x - z + 0.1 * noise.next())
        })
        .collect();
    server.table("t", &format!("x,z,y\n{}\n", rows.join("\n"))).await;
    server.fit("line", json!({"dataset": "t", "target": "y", "features": ["x", "z"]})).await;
    server.fit("line", json!({"dataset": "t", "target": "y", "features": ["x"], "serve": false})).await;
    server.fit("line", json!({"dataset": "t", "target": "y", "features": ["z"], "serve": false})).await;
    for (alias, version) in [("other", 2), ("unseen", 3)] {
        server.put(format!("/v1/models/line/aliases/{alias}")).json(&json!({"version": version})).expect(201).await;
    }
    server
}

fn long(rows: usize) -> Vec<u8> {
    let rows: Vec<Value> = (0..rows).map(|row| json!({"x": row as f64 / 7.0, "z": -(row as f64)})).collect();
    json!({"rows": rows, "interval": {"level": 0.5}, "explain": true}).to_string().into_bytes()
}

/// A body in chunks.
fn chunked(body: &str) -> Vec<u8> {
    let pieces: String =
        body.as_bytes().chunks(9).map(|piece| format!("{:x};a=b\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).unwrap())).collect();
    format!("{pieces}0\r\nx-trailer: late\r\n\r\n").into_bytes()
}

fn packed(text: &str) -> Vec<u8> {
    // Stored, as RFC 1951 and 1952 have it; the checksum of gzip is that of Ethernet.
    let body = text.as_bytes();
    let crc = !body.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    });
    let length = u16::try_from(body.len()).unwrap();
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&(!length).to_le_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&u32::from(length).to_le_bytes());
    out
}

const ROW: &str = r#"{"rows":[{"x":0.25,"z":-1}]}"#;
const LEARN: &str = r#"{"rows":[{"x":0.25,"z":-1,"y":1.5}]}"#;

fn predictions() -> Vec<Asked> {
    let mut table = Vec::new();
    for body in [
        ROW,
        r#"{"columns":["z","x"],"data":[[1,2],[3,4]]}"#,
        r#"{"rows":[{"x":1,"z":2}],"interval":{}}"#,
        r#"{"rows":[{"x":1e3,"z":2},{"x":0,"z":0}],"interval":{"kind":"confidence","level":0.9},"explain":true}"#,
        r#"{"rows":[{"x":1,"z":2}],"at":{"sequence":0}}"#,
        r#"{"rows":[{"x":1,"z":2}],"at":{"sequence":99}}"#,
        r#"{"rows":[{"x":1,"z":2}],"at":{}}"#,
        r#"{"rows":[{"x":1,"z":2}],"remember":true}"#,
        r#"{"rows":[{"x":1,"z":2}],"remember":1,"interval":{"level":2},"other":null}"#,
        r#"{"rows":[{"x":1,"y":2},{"x":"a"},{}]}"#,
        r#"{"rows":[{"x":1e308,"z":-1e308}]}"#,
        r#"{"rows":[]}"#,
        r#"{"rows":[{"x":1"#,
        "null",
        "",
        "\u{0}",
    ] {
        table.push(asked(PREDICT, &[JSON], body));
    }
    for line in [
        "POST /v1/models/{model}/predict?fields= HTTP/1.1",
        "POST /v1/models/{model}/predict?fields=predictions,leverage HTTP/1.1",
        "POST /v1/models/{model}/predict?fields=none HTTP/1.1",
        "POST /v1/models/{model}/predict?interval=prediction HTTP/1.1",
        "POST /v1/models/{model}/predict?key=anna HTTP/1.1",
        "POST /v1/models/{model}/predict?key=bob&key=%ff HTTP/1.1",
        "POST /v1/models/{model}/predict? HTTP/1.1",
        "POST /v1/models/{model}@1/predict HTTP/1.1",
        "POST /v1/models/{model}@other/predict HTTP/1.1",
        "POST /v1/models/{model}@4/predict HTTP/1.1",
        "POST /v1/models/{model}@/predict HTTP/1.1",
        "POST /v1/models/{model}@a@b/predict HTTP/1.1",
        "POST /v1/models/x{model}/predict HTTP/1.1",
        "POST /v1/models/{model}/predict/ HTTP/1.1",
        "POST /v1/models//{model}/predict HTTP/1.1",
        "POST http://elsewhere/v1/models/{model}/predict HTTP/1.1",
        "POST http://elsewhere.example/v1/models/{model}/predict HTTP/1.1",
        "POST /v1/models/{model}/predict HTTP/1.0",
        "PUT /v1/models/{model}/predict HTTP/1.1",
        "GET /v1/models/{model}/predict HTTP/1.1",
        "HEAD /v1/models/{model}/predict HTTP/1.1",
        "OPTIONS /v1/models/{model}/predict HTTP/1.1",
        "post /v1/models/{model}/predict HTTP/1.1",
    ] {
        table.push(asked(line, &[JSON], ROW));
    }
    for header in [
        "content-type: application/json; charset=utf-8",
        "content-type: APPLICATION/JSON",
        "content-type: application/x-www-form-urlencoded",
        "content-type: text/plain",
        "content-type: ;",
        "content-type: \u{e9}",
        "x-nothing: 1",
        "content-encoding: identity",
        "content-encoding: rot13",
        "content-encoding: gzip",
        "accept: text/html",
        "accept-encoding: gzip, zstd, br",
        "user: anna",
        "user: bob",
        "expect: 100-continue",
        "if-match: \"1-0\"",
        "idempotency-key: once",
        "origin: http://here",
        "origin: https://elsewhere.example",
        "origin: null",
    ] {
        table.push(asked(PREDICT, &[header], ROW));
    }
    table.push(asked(PREDICT, &[JSON, "content-type: text/csv"], ROW));
    table.push(asked(PREDICT, &["content-encoding: gzip"], packed(ROW)));
    table.push(asked(PREDICT, &[JSON, "transfer-encoding: chunked"], chunked(ROW)));
    table.push(asked(PREDICT, &[JSON, "transfer-encoding: chunked"], "5\r\n{\"row\r\nx\r\n"));
    for encodings in [&[][..], &["gzip"], &["zstd;q=0.5, gzip;q=0.1"], &["identity"], &["*;q=0"], &["br", "gzip"], &["nothing"]] {
        let headers: Vec<String> = encodings.iter().map(|encoding| format!("accept-encoding: {encoding}")).collect();
        // About the size from which answers are packed, well over it, larger than what is parsed where it arrives, and larger than the limit.
        for rows in [1, 5, 6, 7, 8, 9, 10, 40, 2500, 20_000] {
            let headers: Vec<&str> = headers.iter().map(String::as_str).chain([JSON]).collect();
            table.push(asked(PREDICT, &headers, long(rows)));
        }
    }
    table
}

fn updates() -> Vec<Asked> {
    let mut table = Vec::new();
    for body in [
        LEARN,
        r#"{"columns":["z","x","y"],"data":[[1,2,3],[3,4,5]]}"#,
        r#"{"rows":[{"x":1,"z":2,"y":0.5,"_id":"a"},{"x":1,"z":2,"y":0.5,"_id":"b"}]}"#,
        r#"{"rows":[{"x":1,"z":2,"y":0.5,"_id":"b"},{"x":1,"z":2,"y":0.5,"_id":"c"}]}"#,
        r#"{"rows":[{"x":1,"z":2}]}"#,
        r#"{"rows":[{"x":1,"z":2,"y":"?"}],"interval":{}}"#,
        r#"{"rows":[{"x":1e300,"z":2,"y":1}]}"#,
        r#"{"rows":[]}"#,
        "[",
        "",
    ] {
        table.push(asked(UPDATES, &[JSON], body));
    }
    for headers in [
        &["idempotency-key: one"][..],
        &["idempotency-key: one"],
        &["idempotency-key: \u{e9}"],
        &["if-match: \"1-3\""],
        &["if-match: \"9-9\", \"1-4\""],
        &["if-match: *"],
        &["accept: application/x-ndjson"],
        &["content-type: application/x-ndjson", "accept: application/json"],
        &["content-encoding: gzip"],
        &["prefer: return=minimal"],
        &["origin: http://here"],
        &["origin: https://elsewhere.example"],
    ] {
        table.push(asked(UPDATES, headers, LEARN));
    }
    table.push(asked(UPDATES, &["idempotency-key: one"], LEARN.replace("1.5", "2.5")));
    table.push(asked(UPDATES, &["content-encoding: gzip"], packed(LEARN)));
    table.push(asked(UPDATES, &["transfer-encoding: chunked"], chunked(LEARN)));
    for line in [
        "POST /v1/models/{model}/updates?fields=errors HTTP/1.1",
        "POST /v1/models/{model}/updates?fields=leverage HTTP/1.1",
        "POST /v1/models/{model}@other/updates HTTP/1.1",
        "POST /v1/models/{model}@7/updates HTTP/1.1",
        "POST /v1/models/no{model}/updates HTTP/1.1",
    ] {
        table.push(asked(line, &[JSON], LEARN));
    }
    let many: Vec<Value> = (0..3000).map(|row| json!({"x": f64::from(row % 17), "z": f64::from(row % 5), "y": 1.0})).collect();
    table.push(asked(UPDATES, &[JSON, "accept-encoding: gzip"], json!({"rows": many}).to_string()));
    table.push(asked(PREDICT, &[JSON], ROW));
    table
}

/// What a server replies to bytes until it closes the connection; the lines of each header sorted, without its date.
fn exchange(server: &Server, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The server may refuse before it has read all.
    let _ = stream.write_all(request);
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    let (told, reply) = match reply.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n") {
        Some(rest) => ("told to continue\n", rest),
        None => ("", reply.as_slice()),
    };
    let end = reply.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(reply.len());
    let (head, body) = reply.split_at(end);
    let mut lines: Vec<String> = String::from_utf8_lossy(head).lines().map(str::to_owned).collect();
    lines.retain(|line| !line.starts_with("date:"));
    lines[1..].sort();
    format!("{told}{}{}", lines.join("\n"), body.iter().map(|byte| byte.escape_ascii().to_string()).collect::<String>())
}

/// What one server replies on the short way is what another, which has seen the same, replies through the routes.
fn the_same(short: &Server, routed: &Server, asked: &Asked, different: &mut Vec<String>) {
    let write = |model: &str| {
        let sized = asked.headers.iter().any(|header| header.starts_with("transfer-encoding"));
        let length = if sized { String::new() } else { format!("content-length: {}\r\n", asked.body.len()) };
        let headers: String = asked.headers.iter().map(|header| format!("{header}\r\n")).collect();
        let line = asked.line.replace("{model}", model);
        let head = format!("{line}\r\nhost: here\r\nconnection: close\r\nx-request-id: told\r\n{headers}{length}\r\n");
        [head.as_bytes(), &asked.body].concat()
    };
    let mut replies = [exchange(short, &write(SHORT)), exchange(routed, &write(ROUTED))];
    for reply in &mut replies {
        // Each prediction that is remembered has an id of its own.
        if let Some((before, id)) = reply.split_once("\\\"prediction_ids\\\":[") {
            *reply = format!("{before}{}", id.split_once(']').unwrap().1);
        }
    }
    let shown = String::from_utf8_lossy(&asked.body[..asked.body.len().min(80)]).into_owned();
    if replies[0] != replies[1] {
        let replies = replies.map(|reply| reply.chars().take(1000).collect::<String>());
        different.push(format!("{} {:?} {shown}\n{}\nis not\n{}\n", asked.line, asked.headers, replies[0], replies[1]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_short_way_replies_what_the_routes_reply() {
    let (short, routed) = (served().await, served().await);
    let mut different = Vec::new();
    for asked in predictions().iter().chain(&updates()) {
        the_same(&short, &routed, asked, &mut different);
    }
    // And in a split, with a shadow beside it: the same arm, by header, by key and by turn, and the same is counted.
    for server in [&short, &routed] {
        let split = json!({"split": {"served": 60, "other": 40}, "shadow": ["unseen"], "sticky": {"header": "user"}});
        server.put("/v1/models/line/traffic").json(&split).expect(201).await;
    }
    for asked in predictions() {
        the_same(&short, &routed, &asked, &mut different);
    }
    assert!(different.is_empty(), "{} replies differ:\n{}", different.len(), different.join("\n"));
    let mut counted = (Vec::new(), Vec::new());
    for _ in 0..200 {
        counted = (figures(&short).await, figures(&routed).await);
        if counted.0 == counted.1 {
            break;
        }
        // The shadow sees what was answered a little later.
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!(counted.0, counted.1);
    assert!(counted.0[0].as_u64() > Some(1000) && counted.0[1].as_u64() > Some(2), "{counted:?}");
}

/// What was counted of the inputs of a version, and in a split.
async fn figures(server: &Server) -> Vec<Value> {
    let inputs = server.get("/v1/models/line@1/inputs").expect(200).await.json();
    let traffic = server.get("/v1/models/line/traffic").expect(200).await.json();
    vec![inputs["total"]["rows"].clone(), inputs["total"]["refused_requests"].clone(), traffic["arms"].clone()]
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_one_piece_are_answered_in_order_and_framed_as_they_say() {
    let server = served().await;
    let post = |rest: &str, body: &str| format!("POST /v1/models/line/predict HTTP/1.1\r\nhost: here\r\n{rest}\r\n\r\n{body}");
    let last = post(&format!("connection: close\r\ncontent-length: {}", ROW.len()), ROW);
    let one = post(&format!("content-length: {}", ROW.len()), ROW);
    // Both ways on one connection, all of it sent at once.
    let mixed: String = [one.as_str(), "GET /livez HTTP/1.1\r\nhost: here\r\n\r\n", &one.replace("line", ROUTED), &one, &last].concat();
    let reply = exchange(&server, mixed.as_bytes());
    assert_eq!(reply.matches("HTTP/1.1 200 OK").count(), 5, "{reply}");
    assert_eq!(reply.matches("predictions").count(), 4);
    // Both a length and chunks: the chunks count, and nothing behind them does, whatever it is taken for on the way here.
    for both in ["content-length: 4\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 4"] {
        let body = String::from_utf8(chunked(ROW)).unwrap();
        let reply = exchange(&server, (post(both, &body) + &last).as_bytes());
        assert!(reply.starts_with("HTTP/1.1 200 OK") && reply.contains("connection: close"), "{both}: {reply}");
        assert_eq!(reply.matches("HTTP/1.1").count(), 1, "{both}: {reply}");
    }
    // Who says it otherwise than everybody reads it is refused, and nothing behind it is looked at.
    for framing in [
        "content-length: 4\r\ncontent-length: 28",
        "content-length: +28",
        "content-length: 28, 28",
        "content-length: 0x1c",
        "content-length: 99999999999999999999",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: xchunked",
        "transfer-encoding : chunked",
        "content-length : 28",
    ] {
        let reply = exchange(&server, (post(framing, ROW) + &last).as_bytes());
        assert!(reply.starts_with("HTTP/1.1 400"), "{framing}: {reply}");
        assert_eq!(reply.matches("HTTP/1.1").count(), 1, "{framing}: {reply}");
    }
    for chunks in ["1c \u{b}\r\n", "-1\r\n", "0x1c\r\n", "ffffffffffffffff1\r\n"] {
        let reply = exchange(&server, (post("transfer-encoding: chunked", chunks) + &last).as_bytes());
        assert!(!reply.contains("200 OK"), "{chunks:?}: {reply}");
    }
    // More than was said: the rest is another request, which is none.
    let reply = exchange(&server, post("content-length: 28", &format!("{ROW}{{\"rows\":[]}}\r\n\r\n")).as_bytes());
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("HTTP/1.1 400"), "{reply}");
}
