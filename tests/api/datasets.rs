//! Uploads: what is stored is what came, or nothing.

use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Request, Server};

const CSV: &str = "size,count,open,region\n1.5,3,true,north\n-2.25,4,false,south\n0.1,5,true,north\n0.2,6,true,south\n";
const NDJSON: &str = concat!(
    "{\"size\":1.5,\"count\":3,\"open\":true,\"region\":\"north\"}\n",
    "{\"size\":-2.25,\"count\":4,\"open\":false,\"region\":\"south\"}\n",
    "{\"size\":0.1,\"count\":5,\"open\":true,\"region\":\"north\"}\n",
    "{\"size\":0.2,\"count\":6,\"open\":true,\"region\":\"south\"}\n",
);
const ROWS: &str = concat!(
    "{\"rows\":[{\"size\":1.5,\"count\":3,\"open\":true,\"region\":\"north\"},{\"size\":-2.25,\"count\":4,\"open\":false,\"region\":\"south\"},",
    "{\"size\":0.1,\"count\":5,\"open\":true,\"region\":\"north\"},{\"size\":0.2,\"count\":6,\"open\":true,\"region\":\"south\"}]}",
);
const COLUMNS: &str = concat!(
    "{\"columns\":[\"size\",\"count\",\"open\",\"region\"],\"data\":[[1.5,3,true,\"north\"],[-2.25,4,false,\"south\"],",
    "[0.1,5,true,\"north\"],[0.2,6,true,\"south\"]]}",
);

/// Name and type of each column of a described dataset.
fn types(description: &Value) -> Vec<(String, String)> {
    let columns = description["columns"].as_array().unwrap().iter();
    columns.map(|column| (column["name"].as_str().unwrap().to_owned(), column["type"].as_str().unwrap().to_owned())).collect()
}

async fn csv(server: &Server, name: &str) -> String {
    server.get(format!("/v1/datasets/{name}/rows")).header("accept", "text/csv").expect(200).await.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_stores_the_same_table_and_is_told_without_a_header() {
    let server = Server::start().await;
    for (name, media, body) in [
        ("csv", "text/csv", CSV),
        ("ndjson", "application/x-ndjson", NDJSON),
        ("rows", "application/json", ROWS),
        ("columns", "application/json", COLUMNS),
    ] {
        let path = format!("/v1/datasets/{name}");
        let created = server.put(path.clone()).typed(media, body).expect(201).await;
        let replaced = server.put(path.clone()).body(body).expect(200).await;
        server.put(path.clone()).typed("application/x-www-form-urlencoded", body).expect(200).await;
        assert_ne!(created.etag(), replaced.etag());
        let described = server.get(path).expect(200).await.json();
        assert_eq!(described["rows"], 4, "{name}");
        let expected = [("size", "number"), ("count", "integer"), ("open", "boolean"), ("region", "category")];
        assert_eq!(types(&described), expected.map(|(name, kind)| (name.to_owned(), kind.to_owned())), "{name}");
        assert_eq!(csv(&server, name).await, CSV, "{name}");
        let lines = server.get(format!("/v1/datasets/{name}/rows")).header("accept", "application/x-ndjson").expect(200).await;
        assert_eq!(lines.text(), NDJSON, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_summarised() {
    let server = Server::start().await;
    server.table("t", "x,y\n1,0.5\n2,\n3,1.5\n4,4\n").await;
    let described = server.get("/v1/datasets/t").expect(200).await.json();
    let (x, y) = (&described["columns"][0], &described["columns"][1]);
    assert_eq!((&x["missing"], &y["missing"]), (&json!(0), &json!(1)));
    assert_eq!((x["min"].as_f64(), x["max"].as_f64(), x["mean"].as_f64()), (Some(1.0), Some(4.0), Some(2.5)));
    assert_eq!((y["min"].as_f64(), y["max"].as_f64(), y["mean"].as_f64()), (Some(0.5), Some(4.0), Some(2.0)));
    assert!(described["bytes"].as_u64().unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn types_are_forced_by_the_query() {
    let server = Server::start().await;
    let path = "/v1/datasets/t?types=zip:category&types=count:number";
    let described = server.put(path).csv("zip,count\n007,1\n042,2\n").expect(201).await.json();
    assert_eq!(types(&described), [("zip".to_owned(), "category".to_owned()), ("count".to_owned(), "number".to_owned())]);
    assert_eq!(csv(&server, "t").await.lines().nth(1).unwrap().split(',').next(), Some("007"));
    for (query, pointer) in [("types=zip", "/types"), ("types=zip:colour", "/types"), ("kinds=zip:text", "/")] {
        let refused = server.put(format!("/v1/datasets/t?{query}")).csv("zip\n1\n").refused(422, "invalid_request").await;
        assert_eq!(refused.pointers(), [pointer], "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floats_come_back_bitwise() {
    let server = Server::start().await;
    let values = [0.1, -0.0, 5e-324, f64::MIN_POSITIVE, f64::MAX, -1.0 / 3.0, 1e23, 9_007_199_254_740_993.0, 2.5e-310, 123_456.789];
    let rows: Vec<Value> = values.iter().map(|value| json!({"x": value})).collect();
    server.put("/v1/datasets/t").json(&json!({"rows": rows})).expect(201).await;
    let parse = |text: &str| text.parse::<f64>().unwrap().to_bits();
    let wanted: Vec<u64> = values.iter().map(|value| value.to_bits()).collect();
    let from_csv: Vec<u64> = csv(&server, "t").await.lines().skip(1).map(parse).collect();
    assert_eq!(from_csv, wanted);
    let page = server.get("/v1/datasets/t/rows").expect(200).await.json();
    let from_json: Vec<u64> = page["items"].as_array().unwrap().iter().map(|row| row["x"].as_f64().unwrap().to_bits()).collect();
    assert_eq!(from_json, wanted);
    // Through CSV once more.
    let text = csv(&server, "t").await;
    server.table("u", &text).await;
    assert_eq!(csv(&server, "u").await, text);
}

#[tokio::test(flavor = "multi_thread")]
async fn quoted_cells_and_unusual_line_ends_are_read() {
    let server = Server::start().await;
    let body = "\u{feff}\"a \"\"b\"\", c\",n\r\n\"x\r\ny\",1\r\n\"\"\"\",2\r\n";
    let described = server.put("/v1/datasets/t?types=a%20%22b%22%2C%20c:text").csv(body).expect(201).await.json();
    assert_eq!(types(&described)[0], ("a \"b\", c".to_owned(), "text".to_owned()));
    let page = server.get("/v1/datasets/t/rows").expect(200).await.json();
    assert_eq!(page["items"], json!([{"a \"b\", c": "x\r\ny", "n": 1}, {"a \"b\", c": "\"", "n": 2}]));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_appended_whole_and_only_with_the_same_columns() {
    let server = Server::start().await;
    let (rows, path) = ("/v1/datasets/t/rows", "/v1/datasets/t");
    server.post(rows).csv("x,y\n1,2\n").refused(404, "dataset_not_found").await;
    let first = server.put(path).csv("x,y\n1,2.5\n").expect(201).await;
    server.post(rows).ndjson("{\"x\":3,\"y\":4.5}\n").expect(200).await;
    let second = server.post(rows).json(&json!({"columns": ["y", "x"], "data": [[6.5, 5]]})).expect(200).await;
    assert_ne!(first.etag(), second.etag());
    assert_eq!(csv(&server, "t").await, "x,y\n1,2.5\n3,4.5\n5,6.5\n");
    let before = server.get(path).expect(200).await.body;
    for body in ["x\n1\n", "x,y,z\n1,2,3\n", "x,y\n1,north\n", "x,y\n1,2\nnorth,2\n"] {
        let refused = server.post(rows).csv(body).expect(422).await;
        assert!(!refused.pointers().is_empty(), "{body:?}: {}", refused.text());
        assert_eq!(server.get(path).expect(200).await.body, before, "{body:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etags_guard_against_lost_changes() {
    let server = Server::start().await;
    let path = "/v1/datasets/t";
    server.put(path).header("if-match", "*").csv("x\n1\n").refused(412, "precondition_failed").await;
    server.get(path).refused(404, "dataset_not_found").await;
    let old = server.put(path).csv("x\n1\n").expect(201).await.etag();
    let new = server.put(path).header("if-match", format!("\"9-9\", {old}")).csv("x\n2\n").expect(200).await.etag();
    assert_eq!(server.get(path).expect(200).await.etag(), new);
    server.put(path).header("if-match", old.clone()).csv("x\n3\n").refused(412, "precondition_failed").await;
    server.post("/v1/datasets/t/rows").header("if-match", old.clone()).csv("x\n3\n").refused(412, "precondition_failed").await;
    server.delete(path).header("if-match", old).refused(412, "precondition_failed").await;
    assert_eq!(csv(&server, "t").await, "x\n2\n");
    server.delete(path).header("if-match", new).expect(204).await;
    server.get(path).refused(404, "dataset_not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_has_one_effect() {
    let mut server = Server::start().await;
    fn put(server: &Server) -> Request<'_> {
        server.put("/v1/datasets/t").header("idempotency-key", "put").csv("x\n1\n")
    }
    fn append(server: &Server) -> Request<'_> {
        server.post("/v1/datasets/t/rows").header("idempotency-key", "append").csv("x\n2\n")
    }
    let created = put(&server).expect(201).await;
    assert!(!created.replayed());
    let first = append(&server).expect(200).await;
    assert!(!first.replayed());
    // The dataset has another row by now; the reply is that of then.
    let again = put(&server).expect(201).await;
    assert!(again.replayed());
    assert_eq!((&again.body, again.etag()), (&created.body, created.etag()));
    let again = append(&server).expect(200).await;
    assert!(again.replayed());
    assert_eq!(again.body, first.body);
    server.restart().await;
    assert!(append(&server).expect(200).await.replayed());
    assert_eq!(csv(&server, "t").await, "x\n1\n2\n");
    let other = server.post("/v1/datasets/t/rows").header("idempotency-key", "append").csv("x\n3\n");
    other.refused(422, "idempotency_mismatch").await;
    server.post("/v1/datasets/t/rows").header("idempotency-key", "put").csv("x\n1\n").refused(422, "idempotency_mismatch").await;
    let long = server.post("/v1/datasets/t/rows").header("idempotency-key", "k".repeat(256)).csv("x\n3\n");
    assert_eq!(long.refused(422, "invalid_request").await.pointers(), ["/Idempotency-Key"]);
    assert_eq!(csv(&server, "t").await, "x\n1\n2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_rows_are_paged() {
    let server = Server::start().await;
    for name in ["c", "a", "b"] {
        server.table(name, "x\n1\n2\n3\n4\n5\n").await;
    }
    for (path, items) in [("/v1/datasets", vec!["a", "b", "c"]), ("/v1/datasets/a/rows", vec!["1", "2", "3", "4", "5"])] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = server.get(format!("{path}?limit=2&after={after}")).expect(200).await.json();
            let found = page["items"].as_array().unwrap();
            assert!((1..=2).contains(&found.len()));
            seen.extend(found.iter().map(|item| item.get("x").unwrap_or(&item["name"]).to_string().trim_matches('"').to_owned()));
            match page["next"].as_str() {
                Some(next) => next.clone_into(&mut after),
                None => break,
            }
        }
        assert_eq!(seen, items, "{path}");
    }
    assert_eq!(server.get("/v1/datasets/a/rows?after=18446744073709551615").expect(200).await.json(), json!({"items": [], "next": null}));
    for (query, pointer) in [("limit=0", "/limit"), ("limit=1001", "/limit"), ("limit=many", "/limit"), ("before=a", "/before")] {
        for path in ["/v1/datasets", "/v1/datasets/a/rows", "/v1/models"] {
            assert_eq!(server.get(format!("{path}?{query}")).refused(422, "invalid_request").await.pointers(), [pointer], "{path}?{query}");
        }
    }
    server.get("/v1/datasets/a/rows?after=x").refused(422, "invalid_request").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_checked_and_normalised() {
    let server = Server::start().await;
    let long = "n".repeat(129);
    for name in ["a%2Fb", "%07", "%E2%80%A8%00", long.as_str()] {
        server.put(format!("/v1/datasets/{name}")).csv("x\n1\n").refused(422, "invalid_name").await;
    }
    server.put("/v1/datasets/%FF").csv("x\n1\n").refused(400, "bad_syntax").await;
    server.put("/v1/datasets/cafe%CC%81").csv("x\n1\n").expect(201).await;
    assert_eq!(server.get("/v1/datasets/caf%C3%A9").expect(200).await.json()["name"], "caf\u{e9}");
    server.delete("/v1/datasets/cafe%CC%81").expect(204).await;
    server.delete("/v1/datasets/cafe%CC%81").refused(404, "dataset_not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_body_is_named_by_place_and_nothing_is_stored() {
    let server = Server::start().await;
    let force = "?types=x:number&types=y:number";
    // media, query, body, statuses, a pointer among the faults, words of their details
    let cases: &[(&str, &str, &str, &str, &[&str])] = &[
        ("text/csv", force, "x,y\n1,2\n3,north\n", "/rows/1/y", &["line 3", "y"]),
        ("text/csv", force, "x,y\n1,2\n3\n", "/rows/1", &["line 3"]),
        ("text/csv", force, "x,y\n1,2\n3,4,5\n", "/rows/1", &["line 3"]),
        ("text/csv", force, "x,y\n1,2\n\"3,4\n", "", &[]),
        ("text/csv", "", "x,x\n1,2\n", "", &[]),
        ("text/csv", "", "", "", &[]),
        ("application/x-ndjson", force, "{\"x\":1,\"y\":2}\n{\"x\":3,\"y\":\"north\"}\n", "/rows/1/y", &["line 2", "y"]),
        ("application/x-ndjson", "", "{\"x\":1}\n{\"x\":2\n", "", &["line 2"]),
        ("application/x-ndjson", "", "{\"x\":1}\n[1]\n", "", &["line 2"]),
        ("application/json", force, "{\"rows\":[{\"x\":1,\"y\":2},{\"x\":3,\"y\":\"north\"}]}", "/rows/1/y", &["y"]),
        ("application/json", force, "{\"columns\":[\"x\",\"y\"],\"data\":[[1,2],[3]]}", "", &[]),
        ("application/json", "", "{\"rows\":[{\"x\":1}", "", &[]),
        ("application/json", "", "{\"rows\":3}", "", &[]),
        ("application/json", "", "[]", "", &[]),
        ("application/json", "", "{\"rows\":[{\"x\":{\"y\":1}}]}", "", &[]),
    ];
    for (media, query, body, pointer, words) in cases {
        let reply = server.put(format!("/v1/datasets/t{query}")).typed(media, *body).send().await;
        assert!(matches!(reply.status, 400 | 422), "{media} {body:?}: {}", reply.text());
        let pointers = reply.pointers();
        assert!(!pointers.is_empty(), "{media} {body:?}: {}", reply.text());
        assert!(pointer.is_empty() || pointers.iter().any(|found| found.starts_with(pointer)), "{media} {body:?}: {}", reply.text());
        let details = reply.json()["errors"].to_string();
        assert!(words.iter().all(|word| details.contains(word)), "{media} {body:?}: {details}");
        assert!(!details.contains("north"), "the caller's value is echoed: {details}");
        server.get("/v1/datasets/t").refused(404, "dataset_not_found").await;
    }
    for media in ["application/vnd.apache.parquet", "image/png"] {
        server.put("/v1/datasets/t").typed(media, "PAR1").refused(415, "unsupported_media_type").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_faults_of_an_upload_are_reported_together_up_to_twenty() {
    let server = Server::start().await;
    let body = |bad: usize| format!("x\n1\n{}", "north\n".repeat(bad));
    let three = server.put("/v1/datasets/t?types=x:number").csv(&body(3)).refused(422, "invalid_rows").await;
    assert_eq!(three.pointers(), ["/rows/1/x", "/rows/2/x", "/rows/3/x"]);
    let many = server.put("/v1/datasets/t?types=x:number").csv(&body(5000)).refused(422, "invalid_rows").await;
    assert_eq!(many.pointers().len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_cut_off_half_way_changes_nothing() {
    let server = Server::start().await;
    server.table("kept", "x\n1\n").await;
    let before = server.get("/v1/datasets/kept").expect(200).await.body;
    for (verb, path) in [("PUT", "/v1/datasets/new"), ("PUT", "/v1/datasets/kept"), ("POST", "/v1/datasets/kept/rows")] {
        let mut stream = std::net::TcpStream::connect(server.address).unwrap();
        write!(stream, "{verb} {path} HTTP/1.1\r\nhost: a\r\ncontent-type: text/csv\r\ncontent-length: 1000000\r\n\r\nx\n").unwrap();
        stream.write_all("1\n".repeat(50_000).as_bytes()).unwrap();
        stream.flush().unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(stream);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.get("/v1/datasets/new").refused(404, "dataset_not_found").await;
    assert_eq!(server.get("/v1/datasets/kept").expect(200).await.body, before);
    assert_eq!(csv(&server, "kept").await, "x\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_many_chunks_comes_back_as_it_went() {
    let mut server = Server::start().await;
    let mut text = String::from("i,x,s\n");
    for row in 0..150_000 {
        text.push_str(&format!("{row},{:?},level{}\n", f64::from(row) / 7.0, row % 11));
    }
    server.table("t", &text).await;
    server.post("/v1/datasets/t/rows").csv("i,x,s\n150000,1.5,new\n").expect(200).await;
    text.push_str("150000,1.5,new\n");
    server.restart().await;
    assert!(csv(&server, "t").await == text, "the rows differ");
    let page = server.get("/v1/datasets/t/rows?limit=2&after=149999").expect(200).await.json();
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    assert_eq!((&page["items"][1]["s"], &page["next"]), (&json!("new"), &Value::Null));
}
