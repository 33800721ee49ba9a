//! Bodies that are more than they look: a few bytes that unpack to very many, and JSON of a form that is dear to read. They are refused, in
//! little memory.

use futures_util::StreamExt as _;

use crate::pack::pack;
use crate::server::{JSON, Server};
use crate::setting;

/// Most MiB that a body may take beside what the server has anyway.
const MOST: f64 = 64.0;
/// What one packed piece unpacks to, in MiB.
const PIECE: usize = 256;

/// So many MiB of a row, packed.
async fn packed(encoding: &str, row: &[u8]) -> Vec<u8> {
    let rows = bytes::Bytes::from(row.repeat((1 << 20) / row.len()));
    let rows = futures_util::stream::repeat(rows).take(PIECE).map(Ok::<_, std::io::Error>);
    pack(encoding, tokio_util::io::StreamReader::new(rows)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_ends_at_its_limit_and_costs_little() {
    let server = Server::start(&[]);
    // Pieces follow each other in one body, as gzip and zstd have it; of zlib there is one piece.
    let pieces = setting("LSQD_BOMB_GIGABYTES").map_or(1, |gigabytes| (gigabytes << 10).div_ceil(PIECE));
    // With a target, to be learnt or stored, and without, to be answered.
    let mut bombs = Vec::new();
    for encoding in ["gzip", "deflate", "zstd"] {
        for row in [&b"{\"x\":1.5,\"y\":1.5}\n"[..], b"{\"x\":1.5}\n"] {
            let piece = packed(encoding, row).await;
            bombs.push((encoding, if encoding == "deflate" { piece } else { piece.repeat(pieces) }));
        }
    }
    let (begun, mut grown) = (server.memory("VmRSS:"), 0.0_f64);
    for (place, (encoding, bomb)) in bombs.iter().enumerate() {
        let learnt = place % 2 == 0;
        for (what, accept) in [
            ("PUT /v1/datasets/bomb", "*/*"),
            ("POST /v1/models/line/predict", "*/*"),
            ("POST /v1/models/line/updates", JSON),
            ("POST /v1/models/line/updates", "application/x-ndjson"),
            ("POST /v1/models/line/fits", "*/*"),
        ] {
            if learnt == what.contains("predict") {
                continue;
            }
            let headers = format!(
                "content-type: application/x-ndjson\r\ncontent-encoding: {encoding}\r\naccept: {accept}\r\ncontent-length: {}",
                bomb.len()
            );
            server.forget_peak();
            let before = server.memory("VmRSS:");
            let reply = server.ask_with(what, &headers, bomb);
            grown = grown.max(server.memory("VmHWM:") - before);
            let told = reply.contains("\"status\":413") && reply.contains("unpacks to more than 200 times its length");
            assert!(told, "{encoding} {what}: {}", &reply[reply.len().saturating_sub(600)..]);
        }
        assert!(server.ask("GET /v1/datasets/bomb", "", b"").starts_with("HTTP/1.1 404"));
    }
    assert!(grown < MOST, "it took {grown} MiB more");
    // Nor does it add up from body to body.
    let kept = server.memory("VmRSS:") - begun;
    assert!(kept < 2.0 * MOST, "after all of them it keeps {kept} MiB more");
    let sizes: Vec<String> = bombs.iter().map(|(encoding, bomb)| format!("{encoding} {:.1}", bomb.len() as f64 / 1e6)).collect();
    eprintln!("bombs of {} MiB, packed to so many MB: {}; {grown:.1} MiB more resident at the most", pieces * PIECE, sizes.join(", "));
}

#[test]
fn json_of_an_unusual_form_is_refused_and_costs_little() {
    let server = Server::start(&[]);
    let keys = |count: usize, value: &str| (0..count).map(|key| format!("\"k{key}\":{value}")).collect::<Vec<_>>().join(",");
    let long = "n".repeat(8 << 20);
    let deep = "[".repeat(8 << 20);
    let bodies = [
        ("deep", deep.clone()),
        ("deep in a row", format!("{{\"rows\":[{{\"x\":{deep}")),
        ("a long value", format!("{{\"dataset\":\"t\",\"target\":\"{long}\",\"solver\":\"{long}\"}}")),
        ("deep objects", "{\"rows\":".repeat(1 << 20)),
        ("a long name", format!("{{\"{long}\":1}}")),
        ("a long name in a row", format!("{{\"rows\":[{{\"{long}\":1}}]}}")),
        ("a long name of escapes", format!("{{\"rows\":[{{\"{}\":1}}]}}", "\\u0061".repeat(1 << 20))),
        ("a long text", format!("{{\"rows\":[{{\"x\":\"{long}\"}}]}}")),
        ("a long number", format!("{{\"rows\":[{{\"x\":1{}}}]}}", "0".repeat(8 << 20))),
        ("a million names", format!("{{{}}}", keys(1_000_000, "1"))),
        ("a million names in a row", format!("{{\"rows\":[{{{}}}]}}", keys(1_000_000, "1"))),
        ("a million names of objects", format!("{{\"rows\":[{{{}}}]}}", keys(1_000_000, "{}"))),
        ("the same name a million times", format!("{{\"rows\":[{{{}}}]}}", vec!["\"x\":1"; 1_000_000].join(","))),
        ("a million empty rows", format!("{{\"rows\":[{}]}}", vec!["{}"; 1_000_000].join(","))),
        ("a million columns", format!("{{\"columns\":[{}],\"data\":[]}}", vec!["\"x\""; 1_000_000].join(","))),
        ("a million nothings", format!("{{\"rows\":[{}]}}", vec!["null"; 1_000_000].join(","))),
    ];
    let mut most = (0.0, String::new());
    for what in ["POST /v1/models/line/predict", "POST /v1/models/line/updates", "POST /v1/models/line/fits", "PUT /v1/datasets/bomb"] {
        for (name, body) in &bodies {
            let before = server.memory("VmHWM:");
            let reply = server.ask(what, JSON, body.as_bytes());
            // A table may have a long text in it, or a name; nothing else has a use.
            let stored = what.starts_with("PUT") && reply.starts_with("HTTP/1.1 20");
            assert!(reply.starts_with("HTTP/1.1 4") || stored, "{what}, {name}: {}", &reply[..reply.len().min(600)]);
            assert!(reply.len() < 20_000, "{what}, {name}: an answer of {} bytes", reply.len());
            let grown = server.memory("VmHWM:") - before;
            if grown > most.0 {
                most = (grown, format!("{what}, {name}"));
            }
            assert!(grown < MOST, "{what}, {name}: {grown} MiB more for {} bytes", body.len());
        }
    }
    eprintln!("{} forms of JSON, 4 ways each: at the most {:.1} MiB more resident, by {}", bodies.len(), most.0, most.1);
}
