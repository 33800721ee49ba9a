//! A panic in the midst of the work on one request is a 500 for that one: whatever was asked for, and whoever else is under way.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::server::{Client, JSON, Server};

/// How often each of them panics.
const TIMES: usize = 10;
/// Who learns rows meanwhile, in the same commits as those that panic.
const OTHERS: usize = 4;

#[test]
fn a_panic_stays_inside_its_request() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lsqd"));
    command.env("LSQD_PLANTED_FAULT", "stumble");
    let mut server = Server::start_by(command, &[]);
    for model in ["stumbles-predicting", "stumbles-learning"] {
        server.fit(model, 201);
    }
    let rows = |row: &str, count: usize| format!("{{\"rows\":[{}]}}", vec![row; count].join(","));
    let (short, long, lines) = (rows("{\"x\":2.5}", 1), rows("{\"x\":2.5}", 20_000), "{\"x\":2.5}\n".repeat(60_000));
    let update = rows("{\"x\":2.5,\"y\":2.5}", 1);
    let update_lines = "{\"x\":2.5,\"y\":2.5}\n".repeat(60_000);
    let lines_of = "application/x-ndjson";
    let requests = [
        ("POST /v1/models/stumbles-predicting/predict", JSON, short.as_str()),
        ("POST /v1/models/stumbles-predicting/predict", JSON, &long),
        ("POST /v1/models/stumbles-predicting/predict", lines_of, &lines),
        ("POST /v1/models/stumbles-predicting/predictions", JSON, "{\"dataset\":\"t\",\"into\":\"answers\"}"),
        ("POST /v1/models/stumbles-learning/updates", JSON, &update),
        ("POST /v1/models/stumbles-learning/updates", lines_of, &update_lines),
        ("POST /v1/models/stumbles-fitting/fits", JSON, "{\"dataset\":\"t\",\"target\":\"y\"}"),
    ];
    let mut client = Client::connect(&server);
    let (at_work, learnt) = (AtomicUsize::new(requests.len()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (server, at_work, learnt, update) = (&server, &at_work, &learnt, &update);
        for _ in 0..OTHERS {
            scope.spawn(move || {
                while at_work.load(Ordering::Relaxed) > 0 {
                    let reply = server.ask("POST /v1/models/line/updates", JSON, update.as_bytes());
                    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
                    learnt.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for (what, media, body) in requests {
            scope.spawn(move || {
                // Also when it fails, so that the others end.
                let replies: Vec<_> = (0..TIMES).map(|_| server.ask(what, media, body.as_bytes())).collect();
                at_work.fetch_sub(1, Ordering::Relaxed);
                for reply in replies {
                    assert!(reply.starts_with("HTTP/1.1 500") && reply.contains("\"internal\""), "{what} {media}: {reply}");
                    assert!(!reply.contains("planted"), "the cause was told: {reply}");
                }
            });
        }
        while at_work.load(Ordering::Relaxed) > 0 {
            client.predict_somehow();
        }
    });
    // What was acknowledged was learnt, what panicked was not, and everything goes on.
    let sequence = |model: &str, sequence: usize| {
        let document = server.ask(&format!("GET /v1/models/{model}"), "", b"");
        assert!(document.contains(&format!("\"sequence\":{sequence},")), "{model}, {sequence}: {document}");
    };
    let learnt = learnt.into_inner();
    assert!(learnt > 0);
    sequence("line", learnt);
    sequence("stumbles-learning", 0);
    assert!(server.ask("GET /readyz", "", b"").starts_with("HTTP/1.1 200"));
    server.fit("new", 201);
    assert!(server.log().matches("a panic that was planted").count() > TIMES);
    server.terminate();
    assert!(server.end(std::time::Duration::from_secs(25)).is_some_and(|status| status.success()));
}
