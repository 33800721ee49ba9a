//! Keys: who may do what, by a table that is made from `openapi.yaml`; and that what a key does not show is nowhere to be seen.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::client::{Reply, Request, Server};
use crate::contract::CONTRACT;
use crate::grpc::{Grpc, asked, field, framed, input};

const SCOPES: [&str; 5] = ["read", "predict", "update", "write", "admin"];
const TABLE: &str = "x,y\n1,1\n2,2.5\n3,3\n4,4.5\n";

/// What a request is about.
#[derive(Clone, Copy)]
struct About<'a> {
    model: &'a str,
    dataset: &'a str,
    job: &'a str,
}

/// A good request of an operation. A route without a row here is a route that nobody thought of: the test fails.
fn request<'a>(server: &'a Server, method: &str, path: &str, about: About<'_>) -> Request<'a> {
    let methods = ["GET", "PUT", "POST", "DELETE"];
    let method = methods.into_iter().find(|known| *known == method).unwrap();
    let address = path
        .replace("/datasets/{name}", &format!("/datasets/{}", about.dataset))
        .replace("/models/{name}", &format!("/models/{}", about.model))
        .replace("/jobs/{id}", &format!("/jobs/{}", about.job))
        .replace("/keys/{id}", "/keys/0000000000000000")
        .replace("/by-id/{id}", "/by-id/e1")
        .replace("{version}", "1")
        .replace("{alias}", "stable")
        .replace("{sequence}", "1")
        .replace("{row}", "0");
    assert!(!address.contains('{'), "{method} {path} has a parameter without a row");
    let plain = server.request(method, address.clone());
    match (method, path) {
        ("GET", _) | ("DELETE", "/v1/datasets/{name}" | "/v1/datasets/{name}/rows/{row}" | "/v1/jobs/{id}" | "/v1/keys/{id}") => plain,
        (
            "DELETE",
            "/v1/models/{name}"
            | "/v1/models/{name}/versions/{version}"
            | "/v1/models/{name}/aliases/{alias}"
            | "/v1/models/{name}/traffic"
            | "/v1/models/{name}/updates/{sequence}"
            | "/v1/models/{name}/updates/by-id/{id}",
        ) => plain,
        ("DELETE", "/v1/datasets/{name}/rows") => server.request(method, format!("{address}?column=x&value=1")),
        ("PUT", "/v1/datasets/{name}") | ("POST", "/v1/datasets/{name}/rows") => plain.csv(TABLE),
        ("POST", "/v1/models/{name}/fits") => plain.json(&json!({"dataset": about.dataset, "target": "y"})),
        ("PUT", "/v1/models/{name}/aliases/{alias}") => plain.json(&json!({"version": 1})),
        ("PUT", "/v1/models/{name}/traffic") => plain.json(&json!({"served": 90, "stable": 10})),
        (
            "POST",
            "/invocations" | "/v1/models/{name}/invocations" | "/v1/models/{name}:predict" | "/v1/models/{name}/versions/{version}:predict",
        ) => plain.json(&json!({"instances": [{"x": 1}]})),
        ("POST", "/v1/models/{name}/predict") => plain.json(&json!({"rows": [{"x": 1}]})),
        // The model is no series, which is found out after the key was good.
        ("POST", "/v1/models/{name}/forecast") => plain.json(&json!({"steps": 1})),
        ("POST", "/v1/models/{name}/predictions") => plain.json(&json!({"dataset": about.dataset, "into": about.dataset})),
        ("POST", "/v1/models/{name}/updates") => plain.json(&json!({"rows": [{"x": 1, "y": 1}]})),
        ("POST", "/v1/models/{name}/labels") => {
            plain.json(&json!({"labels": [{"prediction_id": "01890a5d-ac96-774b-bcce-b302099a8057", "value": 1.0}]}))
        }
        ("POST", "/v2/models/{name}/infer" | "/v2/models/{name}/versions/{version}/infer") => {
            plain.json(&json!({"inputs": [{"name": "input", "datatype": "FP64", "shape": [1, 1], "data": [1.0]}]}))
        }
        ("POST", "/v1/backup") => plain,
        ("POST", "/v1/keys") => plain.json(&json!({"scopes": ["read"]})),
        _ => panic!("{method} {path} has no row"),
    }
}

/// Status, headers and body of a reply, without what differs from request to request.
fn told(reply: &Reply) -> (u16, BTreeMap<String, String>, String) {
    let mut headers: BTreeMap<String, String> =
        reply.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let id = headers.remove("x-request-id").unwrap();
    headers.remove("date");
    headers.remove("content-length");
    (reply.status, headers, reply.text().replace(&id, "(id)"))
}

/// The scopes of an operation, of which one is enough; none where it is everybody's.
fn scopes(operation: &Value) -> Vec<&str> {
    operation["x-scopes"].as_array().into_iter().flatten().map(|word| word.as_str().unwrap()).collect()
}

/// Runs the program; what it wrote to stdout.
pub(crate) fn lsqd(server: &Server, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_lsqd")).args(arguments).arg("--database").arg(server.database()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_asks_for_a_key_that_is_good_and_for_its_scope() {
    let server = Server::start().await;
    let (_, admin) = server.make_key(None, json!({"scopes": ["admin"]})).await;
    let (revoked_id, revoked) = server.make_key(Some(&admin), json!({"scopes": SCOPES})).await;
    let soon = (jiff::Timestamp::now() + Duration::from_millis(50)).to_string();
    let (_, expired) = server.make_key(Some(&admin), json!({"scopes": ["admin"], "expires_at": soon})).await;
    server.delete(format!("/v1/keys/{revoked_id}")).key(&admin).expect(204).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let good = admin.as_str();
    let last = if good.ends_with('0') { '1' } else { '0' };
    let bad = [
        "lsqd".to_owned(),
        good[..good.len() - 1].to_owned(),
        format!("{}{last}", &good[..good.len() - 1]),
        format!("lsqd_{:016}.{}", 0, good.split_once('.').unwrap().1),
        revoked,
        expired,
    ];
    let mut by_scope = Vec::new();
    for scope in SCOPES {
        by_scope.push((scope, server.make_key(Some(&admin), json!({"scopes": [scope]})).await.1));
    }
    let (mut open, mut asked) = (Vec::new(), 0);
    for (method, path, operation) in CONTRACT.operations() {
        let needed = scopes(operation);
        let nothing = About { model: "none", dataset: "none", job: "none-0" };
        let without = request(&server, &method, &path, nothing).send().await;
        if needed.is_empty() {
            assert_eq!(without.status, 200, "{method} {path}");
            assert_eq!(request(&server, &method, &path, nothing).key("lsqd").send().await.status, 200, "{method} {path}");
            open.push(path);
            continue;
        }
        assert_eq!((without.status, without.code().as_str()), (401, "unauthorized"), "{method} {path}");
        let mut refused = Vec::new();
        for key in &bad {
            let reply = request(&server, &method, &path, nothing).key(key).send().await;
            assert_eq!((reply.status, reply.code().as_str()), (401, "unauthorized"), "{method} {path} {key}");
            refused.push(told(&reply));
        }
        assert!(refused.iter().all(|reply| *reply == refused[0]), "{method} {path}: one bad key is told from another");
        let twice = request(&server, &method, &path, nothing).key(good).key(good);
        assert_eq!(twice.send().await.status, 401, "{method} {path}");
        for (scope, key) in &by_scope {
            let (model, dataset) = (format!("none-{scope}"), format!("none-{scope}-{asked}"));
            let reply = request(&server, &method, &path, About { model: &model, dataset: &dataset, job: "none-0" }).key(key).send().await;
            if needed.contains(scope) || *scope == "admin" {
                assert!(!matches!(reply.status, 401 | 403), "{method} {path} refuses {scope}: {}", reply.text());
            } else {
                assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"), "{method} {path} takes {scope}");
            }
            asked += 1;
        }
    }
    open.sort_unstable();
    assert_eq!(open, ["/health", "/livez", "/ping", "/readyz", "/v2/health/live", "/v2/health/ready"]);
    assert!(asked > 200, "only {asked} requests were made");
    // What is not there is nobody's business without a key, and of anybody with one.
    server.get("/nothing").refused(401, "unauthorized").await;
    server.get("/nothing").key(&by_scope[1].1).refused(404, "not_found").await;
    server.put("/v1/models").refused(401, "unauthorized").await;
    server.put("/v1/models").key(&by_scope[0].1).refused(405, "method_not_allowed").await;
}

/// A server with models and datasets of two parties, and a key of each: everything, and what is called `mine-…`.
async fn two_parties() -> (Server, String, String, String) {
    let server = Server::start().await;
    let (_, admin) = server.make_key(None, json!({"scopes": ["admin"]})).await;
    let grant = json!({"scopes": ["read", "predict", "update", "write"], "models": ["mine-*"], "datasets": ["mine-*"]});
    let (_, mine) = server.make_key(Some(&admin), grant).await;
    let mut job = String::new();
    for (model, dataset) in [("mine-a", "mine-t"), ("theirs", "theirs-t"), ("a-theirs", "a-theirs-t"), ("mine-b", "mine-t")] {
        server.put(format!("/v1/datasets/{dataset}")).key(&admin).csv(TABLE).send().await;
        let fit = server.post(format!("/v1/models/{model}/fits")).key(&admin).header("prefer", "respond-async");
        let begun = fit.json(&json!({"dataset": dataset, "target": "y"})).expect(202).await.json();
        let id = begun["id"].as_str().unwrap().to_owned();
        let over = async || server.get(format!("/v1/jobs/{id}")).key(&admin).expect(200).await.json()["state"] == "succeeded";
        while !over().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if model == "theirs" {
            job = id;
        }
    }
    (server, admin, mine, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_does_not_show_is_answered_as_what_is_not_there() {
    let (server, admin, mine, job) = two_parties().await;
    let before = server.get("/v1/models/theirs").key(&admin).expect(200).await;
    let rows = server.get("/v1/datasets/theirs-t").key(&admin).expect(200).await;
    let theirs = About { model: "theirs", dataset: "theirs-t", job: &job };
    let nobodys = About { model: "nobodys", dataset: "nobodys", job: "nobodys-0" };
    let (mut compared, mut made) = (0, Vec::new());
    for (method, path, operation) in CONTRACT.operations() {
        let scopes = scopes(operation);
        if scopes.is_empty() || scopes == ["admin"] {
            continue;
        }
        let reply = request(&server, &method, &path, theirs).key(&mine).send().await;
        if !path.contains("{name}") && !path.contains("/jobs/") {
            assert!(!reply.text().contains("theirs"), "{method} {path}: {}", reply.text());
            continue;
        }
        assert_eq!(reply.status, 404, "{method} {path}: {}", reply.text());
        let wanted = told(&reply);
        assert_eq!(told(&request(&server, &method, &path, nobodys).key(&mine).send().await), wanted, "{method} {path}");
        // By whichever of its versions it is named.
        for model in ["theirs@1", "theirs@served", "theirs%401"] {
            let of_version = request(&server, &method, &path, About { model, ..theirs }).key(&mine).send().await;
            assert_eq!(told(&of_version), wanted, "{method} {path} of {model}");
        }
        let none = format!("mine-none-{compared}");
        let missing = About { model: &none, dataset: &none, job: "nobodys-0" };
        let of_mine = request(&server, &method, &path, missing).key(&mine).send().await;
        if of_mine.status == 404 {
            assert_eq!(told(&of_mine), wanted, "{method} {path}");
        } else {
            made.push(format!("{method} {path}"));
        }
        compared += 1;
    }
    assert!(compared > 30, "only {compared} operations were compared");
    made.sort_unstable();
    assert_eq!(made, ["POST /v1/models/{name}/fits", "PUT /v1/datasets/{name}"], "what makes what is not there");
    let after = server.get("/v1/models/theirs").key(&admin).expect(200).await;
    assert_eq!((after.etag(), after.text()), (before.etag(), before.text()));
    assert_eq!(server.get("/v1/datasets/theirs-t").key(&admin).expect(200).await.text(), rows.text());
    server.get("/v1/models/nobodys").key(&admin).refused(404, "model_not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_bodies_and_replies_are_only_those_that_the_key_shows() {
    let (server, admin, mine, _) = two_parties().await;
    // In bodies.
    let same = async |path: &'static str, body: fn(&str) -> Value| {
        let ask = async |name: &str| told(&server.post(path).key(&mine).json(&body(name)).send().await);
        let refused = ask("theirs").await;
        assert!(matches!(refused.0, 403 | 422), "{refused:?}");
        assert_eq!(ask("nobodys").await, refused, "{path}");
        (refused, ask("mine-none").await)
    };
    server.table_with(&admin, "theirs", TABLE).await;
    let (hidden, missing) = same("/v1/models/mine-a/fits", |name| json!({"dataset": name, "target": "y"})).await;
    assert_eq!(hidden, missing);
    let fit = |name: &str| json!({"dataset": "mine-t", "target": "y", "prior": {"model": name, "strength": 1}});
    let (hidden, missing) = same("/v1/models/mine-a/fits", fit).await;
    assert_eq!(hidden, missing);
    let (hidden, missing) = same("/v1/models/mine-a/predictions", |name| json!({"dataset": name, "into": "mine-p"})).await;
    assert_eq!(hidden, missing);
    let (hidden, _) = same("/v1/models/mine-a/predictions", |name| json!({"dataset": "mine-t", "into": name})).await;
    assert_eq!(hidden.0, 403);

    // In lists, page by page.
    for (path, wanted) in [("/v1/models", &["mine-a", "mine-b"][..]), ("/v1/datasets", &["mine-none", "mine-t"])] {
        let mut names = Vec::new();
        let mut after = String::new();
        loop {
            let page = server.get(format!("{path}?limit=1&after={after}")).key(&mine).expect(200).await.json();
            names.extend(page["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => after = next.to_owned(),
                None => break,
            }
        }
        if path == "/v1/datasets" {
            names.retain(|name| name != "mine-none" && name != "mine-p");
            assert_eq!(names, wanted[1..]);
        } else {
            assert_eq!(names, wanted);
        }
    }
    assert!(server.get("/").key(&mine).expect(200).await.text().contains("2 model(s)"));
    assert!(server.get("/").key(&admin).expect(200).await.text().contains("4 model(s)"));
    server.get("/metrics").key(&mine).refused(403, "forbidden").await;

    // In what a model says of itself.
    let fit = json!({"dataset": "theirs-t", "target": "y", "prior": {"model": "theirs", "strength": 1}});
    let fitted = server.post("/v1/models/mine-c/fits").key(&admin).json(&fit).expect(201).await.json();
    assert_eq!((&fitted["dataset"], &fitted["prior"]["model"]), (&json!("theirs-t"), &json!("theirs")));
    let shown = server.get("/v1/models/mine-c").key(&mine).expect(200).await;
    assert_eq!((&shown.json()["dataset"], &shown.json()["prior"]), (&Value::Null, &Value::Null));
    assert!(!shown.text().contains("theirs"));
    let table = server.get("/v1/models/mine-c").key(&mine).header("accept", "text/plain").expect(200).await.text();
    assert!(table.contains("dataset -") && !table.contains("theirs"), "{table}");

    // In what made a dataset, and in what an erasure did.
    let predict = json!({"dataset": "theirs-t", "into": "mine-q"});
    server.post("/v1/models/theirs/predictions").key(&admin).json(&predict).expect(201).await;
    assert_eq!(server.get("/v1/datasets/mine-q").key(&mine).expect(200).await.json()["origin"], Value::Null);
    server.post("/v1/models/theirs/fits").key(&admin).json(&json!({"dataset": "mine-t", "target": "y"})).expect(201).await;
    let erased = server.delete("/v1/datasets/mine-t/rows/0").key(&mine).expect(200).await;
    assert!(!erased.text().contains("theirs") && erased.text().contains("mine-b"), "{}", erased.text());
    let news = server.get("/v1/models/theirs/events?after=0-0").key(&admin).header("accept", "application/json").expect(200).await.json();
    assert!(news.to_string().contains("mine-t") || news["items"].as_array().unwrap().is_empty());
    for row in 0..3 {
        let refused = server.delete("/v1/datasets/mine-t/rows/0").key(&mine).send().await;
        assert!(!refused.text().contains("theirs"), "{row}: {}", refused.text());
    }
    // A label of a prediction of theirs is not there in a model of one's own.
    let asked = json!({"rows": [{"x": 1}], "remember": true});
    let remembered = server.post("/v1/models/theirs/predict").key(&admin).json(&asked).expect(200).await.json();
    let label = json!({"labels": [{"prediction_id": remembered["prediction_ids"][0], "value": 1.0}]});
    server.post("/v1/models/mine-a/labels").key(&mine).json(&label).refused(404, "prediction_not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_open_until_its_first_key_and_never_again() {
    let mut server = Server::start().await;
    server.table("t", TABLE).await;
    let (id, key) = server.make_key(None, json!({"scopes": ["admin"], "name": "the only one"})).await;
    server.get("/v1/models").refused(401, "unauthorized").await;
    let listed = server.get("/v1/keys").key(&key).expect(200).await;
    assert_eq!((&listed.json()["items"][0]["id"], &listed.json()["items"][0]["name"]), (&json!(id), &json!("the only one")));
    let secret = key.split_once('.').unwrap().1;
    assert!(!listed.text().contains(secret) && !listed.text().contains("token"));
    assert!(!server.get(format!("/v1/keys/{id}")).key(&key).expect(200).await.text().contains(secret));
    server.delete(format!("/v1/keys/{id}")).key(&key).expect(204).await;
    server.get("/v1/models").key(&key).refused(401, "unauthorized").await;
    server.get("/v1/models").refused(401, "unauthorized").await;
    server.restart().await;
    server.get("/v1/models").key(&key).refused(401, "unauthorized").await;
    server.get("/v1/models").refused(401, "unauthorized").await;
    server.get("/readyz").expect(200).await;
    let bytes = server.bytes_of_the_database();
    assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "the secret is in the database");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_the_command_line_count_in_a_running_server_within_a_second() {
    let server = Server::start().await;
    server.get("/v1/models").expect(200).await;
    let within = async |key: Option<&str>, status: u16| {
        let begun = Instant::now();
        loop {
            let request = server.get("/v1/models");
            let reply = if let Some(key) = key { request.key(key) } else { request }.send().await;
            if reply.status == status {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(1), "after a second it still is {}", reply.status);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let first = lsqd(&server, &["key", "create", "--scopes", "read,predict", "--models", "sales-*", "--name", "first"]);
    let first = first.trim_end();
    within(None, 401).await;
    within(Some(first), 200).await;
    let second = lsqd(&server, &["key", "create", "--scopes", "read", "--expires", "1h"]);
    let second = second.trim_end();
    within(Some(second), 200).await;
    // Two are good at once, so that one can take the other's place.
    server.get("/v1/models").key(first).expect(200).await;
    let id = first.strip_prefix("lsqd_").unwrap().split_once('.').unwrap().0;
    lsqd(&server, &["key", "revoke", id]);
    within(Some(first), 401).await;
    server.get("/v1/models").key(second).expect(200).await;
    let listed = lsqd(&server, &["key", "list"]);
    assert!(listed.contains("revoked") && listed.contains("sales-*") && listed.contains("first"), "{listed}");
    assert!(!listed.contains(first.split_once('.').unwrap().1), "{listed}");
    let unknown = Command::new(env!("CARGO_BIN_EXE_lsqd")).args(["key", "revoke", "none", "--database"]).arg(server.database()).output();
    assert_eq!(unknown.unwrap().status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_ends_when_its_key_does() {
    let server = Server::start().await;
    server.table("t", TABLE).await;
    server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    let (_, admin) = server.make_key(None, json!({"scopes": ["admin"]})).await;
    let (id, key) = server.make_key(Some(&admin), json!({"scopes": ["read", "update", "predict", "write"]})).await;
    let client = reqwest::Client::new();
    let begin = |method: &str, path: &str| {
        let url = format!("http://{}{path}", server.address);
        client.request(method.parse().unwrap(), url).header("authorization", format!("Bearer {key}"))
    };
    let events = begin("GET", "/v1/models/m/events").send().await.unwrap();
    assert_eq!(events.status(), 200);
    let mut events = events.bytes_stream();
    assert!(String::from_utf8_lossy(&events.next().await.unwrap().unwrap()).contains("open"));
    // A stream that learns, one that is answered and an upload, each with a part of its body on the way.
    let mut parts = Vec::new();
    let mut stream = |method: &str, path: &str, media: &str| {
        let (send, receive) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(4);
        parts.push(send);
        let body = futures_util::stream::unfold(receive, async |mut receive| receive.recv().await.map(|piece| (piece, receive)));
        tokio::spawn(begin(method, path).header("content-type", media).body(reqwest::Body::wrap_stream(body)).send())
    };
    let learning = stream("POST", "/v1/models/m/updates", "application/x-ndjson");
    let answered = stream("POST", "/v1/models/m/predict", "application/x-ndjson");
    let uploading = stream("PUT", "/v1/datasets/u", "text/csv");
    for (part, text) in parts.iter().zip(["{\"x\":1,\"y\":1}\n", "{\"x\":1}\n", "x\n1\n"]) {
        part.send(Ok(text.as_bytes().to_vec())).await.unwrap();
    }
    let sequence = async || server.get("/v1/models/m").key(&admin).expect(200).await.json()["sequence"].clone();
    let begun = Instant::now();
    while sequence().await != 1 {
        assert!(begun.elapsed() < Duration::from_secs(5), "nothing was learnt");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.delete(format!("/v1/keys/{id}")).key(&admin).expect(204).await;
    for (part, text) in parts.iter().zip(["{\"x\":2,\"y\":2}\n", "{\"x\":2}\n", "2\n"]) {
        // Who has hung up already hears nothing.
        let _ = part.send(Ok(text.as_bytes().to_vec())).await;
    }
    drop(parts);
    let begun = Instant::now();
    while let Some(Ok(_)) = events.next().await {}
    assert!(begun.elapsed() < Duration::from_secs(2), "events went on for {:?}", begun.elapsed());
    assert_eq!(uploading.await.unwrap().unwrap().status(), 401);
    for reply in [learning, answered] {
        let Ok(reply) = reply.await.unwrap() else { continue };
        let text = reply.text().await.unwrap_or_default();
        assert!(!text.contains("\"last_line\":2,\"predictions\""), "{text}");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(sequence().await, 1, "a row was learnt for a key that was revoked");
    server.get("/v1/datasets/u").key(&admin).refused(404, "dataset_not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_keys_are_the_holders_own() {
    let server = Server::start().await;
    let (_, admin) = server.make_key(None, json!({"scopes": ["admin"]})).await;
    let (_, first) = server.make_key(Some(&admin), json!({"scopes": ["update", "write"]})).await;
    let (_, second) = server.make_key(Some(&admin), json!({"scopes": ["update", "write"]})).await;
    server.table_with(&admin, "t", TABLE).await;
    server.post("/v1/models/m/fits").key(&admin).json(&json!({"dataset": "t", "target": "y"})).expect(201).await;
    let learn = async |key: &str, y: f64| {
        let request = server.post("/v1/models/m/updates").key(key).header("idempotency-key", "one");
        let reply = request.json(&json!({"rows": [{"x": 1, "y": y}]})).expect(200).await;
        (reply.replayed(), reply.json()["sequence"].clone())
    };
    assert_eq!(learn(&first, 1.0).await, (false, json!(1)));
    assert_eq!(learn(&second, 2.0).await, (false, json!(2)), "another's key was in the way");
    assert_eq!(learn(&first, 1.0).await, (true, json!(1)));
    assert_eq!(learn(&second, 2.0).await, (true, json!(2)));
    // A key that is made again under the same is the same key, and its secret is not kept to be told again.
    let make = async || {
        let request = server.post("/v1/keys").key(&admin).header("idempotency-key", "one").json(&json!({"scopes": ["read"]}));
        request.expect(201).await
    };
    let (made, again) = (make().await, make().await);
    assert_eq!((made.replayed(), again.replayed()), (false, true));
    assert_eq!((&made.json()["id"], &again.json()["token"]), (&again.json()["id"], &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_make_no_sense_are_refused_with_the_place() {
    let server = Server::start().await;
    for (grant, pointers) in [
        (json!({}), &["/scopes"][..]),
        (json!({"scopes": []}), &["/scopes"]),
        (json!({"scopes": ["reed"], "models": ["a/b"], "expires_at": "soon"}), &["/scopes", "/models", "/expires_at"]),
        (json!({"scopes": ["admin"], "models": ["a*"]}), &["/scopes"]),
        (json!({"scopes": ["read"], "models": []}), &["/models"]),
        (json!({"scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"}), &["/expires_at"]),
        (json!({"scopes": ["read"], "name": ""}), &["/name"]),
        (json!({"scopes": ["read"], "secret": "x"}), &["/secret"]),
    ] {
        assert_eq!(server.post("/v1/keys").json(&grant).refused(422, "invalid_request").await.pointers(), pointers, "{grant}");
    }
    server.delete("/v1/keys/none").refused(404, "key_not_found").await;
    assert_eq!(server.get("/v1/keys").expect(200).await.json()["items"], json!([]), "the server is open, and has no key");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_address_without_keys_is_not_served_unless_that_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lsqd.db");
    let open = async |insecure: bool| {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let mut config = lsqd::config::Config::with_database(&path).unwrap();
        config.insecure = insecure;
        lsqd::server::Server::open(config, listener).await
    };
    let served = async |server: lsqd::server::Server| server.run(std::future::ready(())).await.unwrap();
    let refused = open(false).await.unwrap_err().to_string();
    assert!(refused.contains("lsqd key create") && refused.contains("--insecure") && refused.contains("0.0.0.0:"), "{refused}");
    served(open(true).await.unwrap()).await;
    let make =
        lsqd::config::KeyCommand::Create { scopes: "read".to_owned(), models: Vec::new(), datasets: Vec::new(), name: None, expires: None };
    lsqd::command::key(&path, &make).await.unwrap();
    served(open(false).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_origins_that_are_named_may_ask_and_read() {
    let server = Server::start_with(|config| config.cors_origins = vec!["https://here.example".to_owned()]).await;
    let (_, key) = server.make_key(None, json!({"scopes": ["read"]})).await;
    let client = reqwest::Client::new();
    let preflight = async |origin: &str| {
        let url = format!("http://{}/v1/models", server.address);
        let asking = client.request(reqwest::Method::OPTIONS, url).header("origin", origin);
        asking
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", "authorization")
            .send()
            .await
            .unwrap()
    };
    let allowed = preflight("https://here.example").await;
    assert_eq!(
        (allowed.status().as_u16(), &allowed.headers()["access-control-allow-origin"]),
        (204, &"https://here.example".parse().unwrap())
    );
    assert_eq!(allowed.headers()["access-control-allow-headers"], "authorization");
    let other = preflight("https://there.example").await;
    assert!(other.status() == 401 && !other.headers().contains_key("access-control-allow-origin"));
    for (origin, told) in [("https://here.example", Some("https://here.example")), ("https://there.example", None)] {
        for (key, status) in [(Some(&key), 200), (None, 401)] {
            let request = server.get("/v1/models").header("origin", origin);
            let reply = if let Some(key) = key { request.key(key) } else { request }.expect(status).await;
            assert_eq!((reply.header("access-control-allow-origin"), reply.header("vary").is_some()), (told, true));
            assert_eq!(reply.header("access-control-allow-credentials"), None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_grpc_need_what_the_same_needs_over_http() {
    let (server, admin, mine, _) = two_parties().await;
    let grpc = Grpc::connect(server.grpc).await;
    let call = async |method: &str, key: Option<&str>, message: &[u8]| {
        let bearer = key.map(|key| format!("Bearer {key}"));
        let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        grpc.send(&format!("/inference.GRPCInferenceService/{method}"), &headers, framed(0, message)).await
    };
    let (_, reader) = server.make_key(Some(&admin), json!({"scopes": ["update"]})).await;
    let infer = |model: &str| asked(model, &[input("input", "FP64", &[1, 1], &field(7, &1.0_f64.to_le_bytes()))]);
    for method in ["ServerLive", "ServerReady"] {
        assert_eq!(call(method, None, &[]).await.status, 0, "{method}");
    }
    for (method, message) in [
        ("ServerMetadata", Vec::new()),
        ("ModelReady", field(1, b"mine-a")),
        ("ModelMetadata", field(1, b"mine-a")),
        ("ModelInfer", infer("mine-a")),
        ("RepositoryIndex", Vec::new()),
    ] {
        for bad in [None, Some("lsqd"), Some(&mine[..mine.len() - 1])] {
            let refused = call(method, bad, &message).await;
            assert_eq!((refused.status, refused.code.as_str()), (16, "unauthorized"), "{method}: {refused:?}");
        }
        let forbidden = call(method, Some(&reader), &message).await;
        let wanted = if method == "ServerMetadata" { (0, "") } else { (7, "forbidden") };
        assert_eq!((forbidden.status, forbidden.code.as_str()), wanted, "{method}: {forbidden:?}");
        assert_eq!(call(method, Some(&mine), &message).await.status, 0, "{method}");
        if method.starts_with("Model") {
            let of = async |model: &str| {
                let message = if method == "ModelInfer" { infer(model) } else { field(1, model.as_bytes()) };
                let ended = call(method, Some(&mine), &message).await;
                (ended.status, ended.code, ended.detail, ended.message)
            };
            let hidden = of("theirs").await;
            assert_eq!((&of("nobodys").await, &of("mine-none").await), (&hidden, &hidden), "{method}");
            assert_eq!(of("theirs@1").await, hidden, "{method}");
            let ready = method == "ModelReady";
            assert_eq!((hidden.0, hidden.1.as_str()), if ready { (0, "") } else { (5, "model_not_found") }, "{method}");
        }
    }
    let index = String::from_utf8_lossy(&call("RepositoryIndex", Some(&mine), &[]).await.message).into_owned();
    assert!(index.contains("mine-a") && !index.contains("theirs"), "{index:?}");
}
