//! Inputs that nobody sends by mistake, and some that many do: each has a refusal with a place or a defined answer, never a 500, and leaves
//! the state bitwise as it was.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use serde_json::json;

use crate::client::Server;

const JSON: &str = "application/json";
const CSV: &str = "text/csv";
const LINES: &str = "application/x-ndjson";

/// A model of one number, one of a category, and the dataset behind both.
async fn models() -> Server {
    let server = Server::start().await;
    server.table("t", "x,region,y\n1,a,1\n2,b,2.5\n3,a,2.75\n4,b,4\n").await;
    server.fit("line", json!({"dataset": "t", "target": "y", "features": ["x"]})).await;
    server.fit("mixed", json!({"dataset": "t", "target": "y"})).await;
    server.learn("line", json!({"rows": [{"x": 5, "y": 5.5}]})).await;
    server
}

/// Everything that a client can see of the state.
async fn state(server: &Server) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    for path in [
        "/v1/datasets",
        "/v1/datasets/t",
        "/v1/datasets/t/rows",
        "/v1/models",
        "/v1/models/line",
        "/v1/models/mixed",
        "/v1/models/line/versions",
    ] {
        let reply = server.get(path).expect(200).await;
        seen.push(reply.body.clone());
        seen.push(reply.header("etag").unwrap_or_default().as_bytes().to_vec());
    }
    for x in [0.1, 1e9] {
        seen.push(server.predict("line", json!({"rows": [{"x": x}], "interval": {}, "explain": true})).await.to_string().into_bytes());
    }
    seen
}

fn deep(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

/// Bodies of rows for a model of the feature `x`; with `target`, each row has a `y` too. The flag says whether the body may be taken.
fn rows_bodies(target: bool) -> Vec<(&'static str, Vec<u8>, bool)> {
    let y = if target { ",\"y\":1" } else { "" };
    let (head, cell) = if target { ("x,y", ",1") } else { ("x", "") };
    let json = |text: String| (JSON, text.into_bytes(), false);
    let mut bodies = vec![];
    for number in ["NaN", "nan", "Infinity", "-Infinity", "1e400", "-1e400", "0x10", "1_000", "01", "+1", ".5", "1.", "1e", "--1", "١"] {
        bodies.push(json(format!("{{\"rows\":[{{\"x\":1{y}}},{{\"x\":{number}{y}}}]}}")));
        bodies.push((LINES, format!("{{\"x\":1{y}}}\n{{\"x\":{number}{y}}}\n").into_bytes(), false));
    }
    for text in ["\"NaN\"", "\"1\"", "\"\"", "null", "[1]", "{\"x\":1}", "\"\\ud800\"", "\"\\u0000\""] {
        bodies.push(json(format!("{{\"rows\":[{{\"x\":{text}{y}}}]}}")));
    }
    for number in ["NaN", "inf", "-inf", "Infinity", "1e400", "0x10", "1 000", "\"1", "1;2", "x"] {
        bodies.push((CSV, format!("{head}\n1{cell}\n{number}{cell}\n").into_bytes(), false));
    }
    for body in [
        "",
        " ",
        "{",
        "[]",
        "null",
        "3",
        "\"rows\"",
        "{}",
        "{\"rows\":null}",
        "{\"rows\":3}",
        "{\"rows\":{}}",
        "{\"rows\":[3]}",
        "{\"rows\":[[1]]}",
        "{\"rows\":[null]}",
        "{\"rows\":[{}]}",
        "{\"rows\":[{\"x\":1}",
        "{\"rows\":[{\"x\":1}]",
        "{\"rows\":[{\"x\":1}]}}",
        "{\"rows\":[{\"x\":1,}]}",
        "{\"rows\":[{\"x\":1}],}",
        "{'rows':[]}",
        "{\"columns\":[\"x\"]}",
        "{\"data\":[[1]]}",
        "{\"columns\":[\"x\"],\"data\":[[1],[1,2]]}",
        "{\"columns\":[\"x\",\"x\"],\"data\":[[1,1]]}",
        "{\"columns\":[],\"data\":[[]]}",
        "{\"columns\":[3],\"data\":[[1]]}",
        "{\"columns\":[\"x\"],\"data\":[3]}",
        "{\"columns\":\"x\",\"data\":[[1]]}",
        "{\"rows\":[],\"columns\":[\"x\"],\"data\":[]}",
        "{\"rows\":[{\"x\":1,\"x\":2}]}",
        "{\"rows\":[{\"x\":1}],\"rows\":[{\"x\":2}]}",
        "{\"rows\":[{\"\":1}]}",
        "{\"rows\":[{\"x\":1,\"__proto__\":1}]}",
    ] {
        bodies.push(json(body.to_owned()));
    }
    for (body, taken) in [
        ("", true),
        ("{", false),
        ("[1]\n", false),
        ("3\n", false),
        ("{\"x\":1", false),
        ("{\"x\":1}{\"x\":2}\n", false),
        ("{\"x\":1} x\n", false),
    ] {
        bodies.push((LINES, body.as_bytes().to_vec(), taken));
    }
    for (body, taken) in [
        ("", false),
        ("\n", false),
        ("z\n1\n", false),
        ("x,x\n1,2\n", false),
        ("x\n1,2\n", false),
        ("x\n\"1\n", false),
        ("x\n\n", !target),
        ("\u{feff}\n", false),
        ("x\n1\0\n", false),
    ] {
        bodies.push((CSV, body.as_bytes().to_vec(), taken));
    }
    for media in [JSON, LINES, CSV] {
        bodies.push((media, vec![0xff, 0xfe, 0x00, 0x01], false));
        bodies.push((media, vec![0; 1000], false));
    }
    for levels in [129, 10_001, 200_000] {
        bodies.push(json(deep(levels)));
        bodies.push(json("[".repeat(levels)));
        bodies.push(json("{\"a\":".repeat(levels)));
        bodies.push(json(format!("{{\"rows\":{}}}", deep(levels))));
        bodies.push(json(format!("{{\"rows\":[{{\"x\":{}{y}}}]}}", deep(levels))));
        bodies.push(json(format!("{{\"interval\":{},\"rows\":[]}}", deep(levels))));
        bodies.push((LINES, format!("{{\"x\":{}{y}}}\n", deep(levels)).into_bytes(), false));
    }
    bodies.push(json(format!("{{\"rows\":[{{\"{}\":1}}]}}", "n".repeat(100_000))));
    bodies.push(json(format!("{{\"rows\":[{{\"x\":1{}{y}}}]}}", "0".repeat(100_000))));
    bodies
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_to_predict_or_to_learn_are_refused_with_a_place_and_change_nothing() {
    let server = models().await;
    let before = state(&server).await;
    for (action, target) in [("predict", false), ("updates", true)] {
        for (media, body, taken) in rows_bodies(target) {
            let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
            let reply = server.post(format!("/v1/models/line/{action}")).typed(media, body).send().await;
            if taken {
                assert_eq!(reply.status, 200, "{action} {media} {shown:?}: {}", reply.text());
                continue;
            }
            assert!(matches!(reply.status, 400 | 413 | 422), "{action} {media} {shown:?}: {} {}", reply.status, reply.text());
            assert!(!reply.pointers().is_empty() || reply.status == 413, "{action} {media} {shown:?}: {}", reply.text());
            assert!(reply.body.len() < 20_000, "{action} {media} {shown:?}: an answer of {} bytes", reply.body.len());
        }
    }
    assert!(state(&server).await == before, "the state has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_at_the_edge_have_finite_answers_or_are_refused() {
    let server = models().await;
    let before = state(&server).await;
    for x in ["1e308", "-1.7976931348623157e308", "5e-324", "-0.0", "1e-400", "123456789012345678901234567890", "0.1e1"] {
        for question in ["", ",\"interval\":{},\"explain\":true", ",\"interval\":{\"kind\":\"confidence\",\"level\":0.999999999999}"] {
            let body = format!("{{\"rows\":[{{\"x\":{x}}}]{question}}}");
            let reply = server.post("/v1/models/line/predict").typed(JSON, body.clone()).send().await;
            assert!(matches!(reply.status, 200 | 422), "{body}: {}", reply.text());
        }
        let reply = server.post("/v1/models/line/predict?interval=prediction").csv(&format!("x\n{x}\n")).send().await;
        assert!(matches!(reply.status, 200 | 422), "{x}: {}", reply.text());
        assert!(!reply.text().contains("inf") && !reply.text().contains("NaN"), "{x}: {}", reply.text());
    }
    assert!(state(&server).await == before, "the state has changed");
    // Learning from them either fails and changes nothing, or leaves a state that answers with finite numbers.
    for (x, y) in [("1e308", "1e308"), ("1e200", "1"), ("1", "1e200"), ("1e154", "1e154"), ("5e-324", "5e-324"), ("-1e308", "1e308")] {
        let document = server.get("/v1/models/line").expect(200).await.body;
        let reply = server.post("/v1/models/line/updates").typed(JSON, format!("{{\"rows\":[{{\"x\":{x},\"y\":{y}}}]}}")).send().await;
        if reply.status != 200 {
            assert_eq!((reply.status, reply.pointers()), (422, vec!["/rows/0".to_owned()]), "{}", reply.text());
            assert_eq!(server.get("/v1/models/line").expect(200).await.body, document);
        }
        server.predict("line", json!({"rows": [{"x": 2}], "interval": {}})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fits_of_hostile_tables_or_specifications_end_in_order() {
    let server = models().await;
    let before = state(&server).await;
    for body in [
        "",
        "[",
        "3",
        "{\"dataset\":\"t\",\"target\":\"y\"",
        "{\"dataset\":\"t\",\"target\":[]}",
        "{\"dataset\":\"t\",\"target\":[[\"y\"]]}",
        "{\"dataset\":{},\"target\":3}",
        "{\"dataset\":\"t\",\"target\":\"y\",\"estimator\":{\"kind\":\"ridge\",\"penalty\":1e400}}",
        "{\"dataset\":\"t\",\"target\":\"y\",\"estimator\":{\"kind\":\"ridge\",\"penalty\":NaN}}",
        "{\"dataset\":\"t\",\"target\":\"y\",\"estimator\":\"ols\"}",
        "{\"dataset\":\"t\",\"target\":\"y\",\"features\":[null,3,[],{}]}",
        "{\"dataset\":\"t\",\"target\":\"y\",\"online\":{\"forgetting_factor\":0}}",
        "{\"dataset\":\"t\",\"target\":\"none\"}",
        "{\"dataset\":\"t\",\"target\":\"y\",\"features\":[\"none\"]}",
        "{\"dataset\":\"../t\",\"target\":\"y\"}",
        "{\"dataset\":\"t\",\"target\":\"y\",\"solver\":\"magic\",\"unseen\":\"magic\"}",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([deep(10_001), format!("{{\"dataset\":\"t\",\"target\":{}}}", deep(10_001)), "{\"online\":".repeat(10_001)])
    {
        let shown = &body[..body.len().min(120)];
        let reply = server.post("/v1/models/new/fits").typed(JSON, body.clone()).send().await;
        assert!(matches!(reply.status, 400 | 422), "{shown}: {}", reply.text());
        assert!(!reply.pointers().is_empty(), "{shown}: {}", reply.text());
    }
    assert!(state(&server).await == before, "the state has changed");
    for csv in [
        "x,y\n",
        "x,y\n1,1\n",
        "x,y\n1,1\n1,1\n",
        "x,y\n0,0\n0,0\n",
        "x,y\n1e308,1\n-1e308,2\n1e308,3\n",
        "x,y\n1,1e308\n2,-1e308\n3,1e308\n",
        "x,y\n5e-324,1\n1e-323,2\n1.5e-323,4\n",
    ] {
        let stored = server.put("/v1/datasets/odd").csv(csv).send().await;
        assert!(matches!(stored.status, 200 | 201 | 400 | 422), "{csv:?}: {}", stored.text());
        if stored.status >= 400 {
            continue;
        }
        for extra in [
            json!({}),
            json!({"intercept": false}),
            json!({"estimator": {"kind": "ridge", "penalty": 1}}),
            json!({"solver": "exact"}),
            json!({"solver": "svd"}),
            json!({"solver": "cholesky"}),
        ] {
            let mut body = json!({"dataset": "odd", "target": "y", "features": ["x"]});
            body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let reply = server.post("/v1/models/odd/fits").json(&body).send().await;
            assert!(matches!(reply.status, 201 | 422), "{csv:?} {body}: {}", reply.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_of_hostile_bytes_end_in_order() {
    let server = models().await;
    let before = state(&server).await;
    let wide = (0..20_000).map(|column| format!("c{column}")).collect::<Vec<_>>().join(",");
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        (CSV, vec![0xff; 5000]),
        (CSV, vec![0; 5000]),
        (CSV, b"\"".to_vec()),
        (CSV, format!("x\n\"{}", "a".repeat(300_000)).into_bytes()),
        (CSV, format!("{wide}\n").into_bytes()),
        (CSV, format!("x\n{}\n", "9".repeat(500_000)).into_bytes()),
        (CSV, b"x\n1e400\n2\n3\n".to_vec()),
        (CSV, b"x\ninf\n1\n2\n".to_vec()),
        (CSV, b"x\nNaN\n1\n".to_vec()),
        (CSV, b"a,b\n\n\n\n1\n".to_vec()),
        (JSON, deep(10_001).into_bytes()),
        (JSON, format!("{{\"rows\":[{{\"x\":{}}}]}}", deep(10_001)).into_bytes()),
        (JSON, b"{\"rows\":[{\"x\":NaN}]}".to_vec()),
        (JSON, b"{\"rows\":[{\"x\":1e400}]}".to_vec()),
        (JSON, b"{\"columns\":[\"x\"],\"data\":[[1],[1,2]]}".to_vec()),
        (JSON, b"{\"rows\":[]}".to_vec()),
        (LINES, format!("{{\"x\":{}}}\n", deep(10_001)).into_bytes()),
        (LINES, b"{\"x\":1e400}\n".to_vec()),
        (LINES, b"\n\n\n".to_vec()),
        (LINES, b"{}\n".to_vec()),
    ];
    for (media, body) in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        for typed in [true, false] {
            let request = server.put("/v1/datasets/odd");
            let reply = if typed { request.typed(media, body.clone()) } else { request.body(body.clone()) }.send().await;
            assert!(matches!(reply.status, 200 | 201 | 400 | 413 | 415 | 422), "{media} {shown:?}: {}", reply.text());
            if reply.status < 300 {
                // What was taken is a table of finite numbers that can be read back.
                let text = server.get("/v1/datasets/odd/rows").header("accept", "text/csv").expect(200).await.text();
                assert!(!text.contains("inf") && !text.contains("NaN"), "{media} {shown:?}: {text}");
                server.delete("/v1/datasets/odd").expect(204).await;
            }
        }
    }
    assert!(state(&server).await == before, "the state has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_cut_off_learns_nothing_and_what_is_not_http_harms_nobody() {
    let server = models().await;
    let before = state(&server).await;
    for request in [
        "POST /v1/models/line/updates HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{\"rows\":[{\"x\":1,\"y\":1}]}",
        "POST /v1/models/line/updates HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-ndjson\r\ncontent-length: 1000\r\n\r\n{\"x\":1,\"y\":1}\n",
        "POST /v1/models/line/updates HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n19\r\n{\"rows\":[{\"x\":1,\"y\":1}]}\r\n",
        "POST /v1/models/line/fits HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n{\"dataset\":\"t\",\"target\":\"y\"}",
        "POST /v1/models/line/updates HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        "POST /v1/models/line/updates HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n{}",
        "GET / HTTP/9.9\r\n\r\n",
        "\u{16}\u{3}\u{1}\r\n\r\n",
        "\r\n\r\n\r\n",
    ] {
        let mut stream = std::net::TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // The server may answer, close or reset; it must not answer with success.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4") || answer.starts_with("HTTP/1.1 505"),
            "{request}: {answer}"
        );
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(state(&server).await == before, "the state has changed");
}
