//! Who changed what: every request that changes something leaves its record, and those that leave none are named here with the reason.

use std::collections::BTreeMap;

use lsqd::service::{backup, check};
use serde_json::{Value, json};

use crate::client::{Noise, Reply, Request, Server};
use crate::contract::CONTRACT;
use crate::keys::lsqd;

/// Routes that may change something and leave no record in the audit log, with the reason.
const WITHOUT: [(&str, &str); 12] = [
    ("DELETE /v1/jobs/{id}", "it ends work that has changed nothing yet"),
    ("POST /v1/models/{name}/predict", "a prediction changes nothing, and what is remembered of one is no part of the model"),
    ("POST /v1/models/{name}/forecast", "a prediction"),
    ("POST /v1/models/{name}/invocations", "a prediction"),
    ("POST /v1/models/{name}:predict", "a prediction"),
    ("POST /v1/models/{name}/versions/{version}:predict", "a prediction"),
    ("POST /v2/models/{name}/infer", "a prediction"),
    ("POST /v2/models/{name}/versions/{version}/infer", "a prediction"),
    ("POST /invocations", "a prediction"),
    ("POST /v1/models/{name}/updates", "the rows are in the log of their version, with their moment"),
    ("POST /v1/models/{name}/labels", "as updates"),
    ("POST /v1/backup", "it reads"),
];

/// What is done otherwise than by a request that asks for it: after a drift, and at the command line.
const OTHERWISE: [&str; 3] = ["refit", "restore", "repair"];

/// A server, and what each of its routes that may change something left in the audit log.
struct Walk {
    server: Server,
    last: u64,
    met: BTreeMap<String, Option<String>>,
    /// Who asks: the id and the whole of a key.
    key: Option<(String, String)>,
}

impl Walk {
    fn with_key<'r>(&self, request: Request<'r>) -> Request<'r> {
        match &self.key {
            Some((_, key)) => request.key(key),
            None => request,
        }
    }

    /// Records since the last look.
    async fn fresh(&mut self) -> Vec<Value> {
        let page = self.with_key(self.server.get(format!("/v1/audit?limit=1000&after={}", self.last))).expect(200).await.json();
        assert_eq!(page["next"], Value::Null);
        let items = page["items"].as_array().unwrap().clone();
        for item in &items {
            self.last += 1;
            assert_eq!(item["id"], self.last, "the log has a gap");
        }
        items
    }

    /// Sends a request that succeeds, and looks what it left: one record of this action, or none.
    async fn step(&mut self, route: &str, make: impl FnOnce(&Server) -> Request<'_>, action: Option<&str>) -> (Reply, Value) {
        self.fresh().await;
        let id = format!("step-{}", self.met.len());
        let reply = self.with_key(make(&self.server).header("x-request-id", &id)).send().await;
        assert!(reply.status < 300, "{route}: {}", reply.text());
        let who = self.key.as_ref().map_or("anonymous", |(id, _)| id).to_owned();
        if let Some(key) = serde_json::from_slice::<Value>(&reply.body)
            .ok()
            .and_then(|made| Some((made["id"].as_str()?.to_owned(), made["token"].as_str()?.to_owned())))
        {
            // From the first key on nobody is served without one.
            self.key.get_or_insert(key);
        }
        let records = self.fresh().await;
        let Some(action) = action else {
            assert!(WITHOUT.iter().any(|(known, _)| *known == route), "{route} leaves no record: say why");
            assert!(records.is_empty(), "{route}: {records:?}");
            self.met.insert(route.to_owned(), None);
            return (reply, Value::Null);
        };
        assert_eq!(records.len(), 1, "{route}: {records:?}");
        let record = records[0].clone();
        assert_eq!((&record["action"], &record["who"], &record["request_id"]), (&json!(action), &json!(who), &json!(id)), "{route}");
        self.met.insert(route.to_owned(), Some(action.to_owned()));
        (reply, record)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_that_changes_something_leaves_one_record() {
    let mut walk = Walk { server: Server::start().await, last: 0, met: BTreeMap::new(), key: None };
    let csv = |rows: std::ops::Range<u32>| -> String { rows.map(|x| format!("{x},{}\n", f64::from(x) * 1.5 + f64::from(x % 3))).collect() };
    let table = format!("x,y\n{}", csv(0..12));
    let more = format!("x,y\n{}", csv(12..15));

    let (_, record) = walk.step("PUT /v1/datasets/{name}", |server| server.put("/v1/datasets/t").csv(&table), Some("dataset.put")).await;
    assert_eq!((&record["subject"], &record["before"], &record["after"]["rows"]), (&json!("t"), &Value::Null, &json!(12)));
    let (_, record) =
        walk.step("POST /v1/datasets/{name}/rows", |server| server.post("/v1/datasets/t/rows").csv(&more), Some("dataset.append")).await;
    assert_eq!((&record["before"]["rows"], &record["after"]["rows"]), (&json!(12), &json!(15)));

    // A fit outlives its request when nobody waits; its record names the request all the same.
    let fit = json!({"dataset": "t", "target": "y"});
    let (_, record) = walk.step("POST /v1/models/{name}/fits", |server| asked_of(server, &fit), Some("fit")).await;
    assert_eq!((&record["before"], &record["after"]), (&Value::Null, &json!({"version": 1, "served": true})));
    for _ in 0..2 {
        asked_of(&walk.server, &fit).expect(201).await;
    }
    let records = walk.fresh().await;
    assert_eq!(records[1]["before"], json!({"served": 2, "sequence": null}));
    let job = walk.server.post("/v1/models/other/fits").header("prefer", "respond-async").json(&fit).expect(202).await.json();
    while walk.server.get(format!("/v1/jobs/{}", job["id"].as_str().unwrap())).expect(200).await.json()["state"] != "succeeded" {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(walk.fresh().await.len(), 1);
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    walk.step("DELETE /v1/jobs/{id}", |server| server.delete(path), None).await;

    let rows = json!({"rows": [{"x": 5}], "remember": true});
    let (reply, _) = walk.step("POST /v1/models/{name}/predict", |server| server.post("/v1/models/m/predict").json(&rows), None).await;
    let prediction = reply.json()["prediction_ids"][0].clone();
    let split = json!({"dataframe_split": {"columns": ["x"], "data": [[5]]}});
    let instances = json!({"instances": [[5]]});
    let tensor = json!({"inputs": [{"name": "input", "datatype": "FP64", "shape": [1, 1], "data": [5]}]});
    for (route, path, body) in [
        ("POST /v1/models/{name}/invocations", "/v1/models/m/invocations", &split),
        ("POST /v1/models/{name}:predict", "/v1/models/m:predict", &instances),
        ("POST /v1/models/{name}/versions/{version}:predict", "/v1/models/m/versions/1:predict", &instances),
        ("POST /v2/models/{name}/infer", "/v2/models/m/infer", &tensor),
        ("POST /v2/models/{name}/versions/{version}/infer", "/v2/models/m/versions/1/infer", &tensor),
    ] {
        walk.step(route, |server| server.post(path).json(body), None).await;
    }
    let series = json!({"dataset": "t", "target": "y", "features": [{"column": "y", "as": "lag", "lags": [1]}]});
    walk.server.post("/v1/models/series/fits").header("prefer", "wait=60").json(&series).expect(201).await;
    let steps = json!({"steps": 2});
    walk.step("POST /v1/models/{name}/forecast", |server| server.post("/v1/models/series/forecast").json(&steps), None).await;
    // Its rows could not be erased while it knows them.
    walk.server.delete("/v1/models/series").expect(204).await;
    let into = json!({"dataset": "t", "into": "answers"});
    let (_, record) =
        walk.step("POST /v1/models/{name}/predictions", |server| predicted_by(server, &into), Some("dataset.predictions")).await;
    assert_eq!((&record["subject"], &record["after"]["rows"]), (&json!("answers"), &json!(15)));
    predicted_by(&walk.server, &into).expect(201).await;
    assert_eq!(walk.fresh().await[0]["before"]["rows"], 15);

    let update = json!({"rows": [{"x": 5, "y": 7, "_id": "e"}, {"x": 6, "y": 8}]});
    walk.step("POST /v1/models/{name}/updates", |server| server.post("/v1/models/m/updates").json(&update), None).await;
    let labels = json!({"labels": [{"prediction_id": prediction, "value": 7.5}]});
    walk.step("POST /v1/models/{name}/labels", |server| server.post("/v1/models/m/labels").json(&labels), None).await;
    let (_, record) = walk
        .step("DELETE /v1/models/{name}/updates/{sequence}", |server| server.delete("/v1/models/m/updates/2"), Some("update.erase"))
        .await;
    assert_eq!((&record["subject"], &record["before"]), (&json!("m"), &json!({"version": 3, "sequence": 2})));
    walk.step("DELETE /v1/models/{name}/updates/by-id/{id}", |server| server.delete("/v1/models/m/updates/by-id/e"), Some("update.erase"))
        .await;
    let (_, record) =
        walk.step("DELETE /v1/datasets/{name}/rows/{row}", |server| server.delete("/v1/datasets/t/rows/3"), Some("dataset.erase")).await;
    assert_eq!((&record["before"]["rows"], &record["after"]["rows"]), (&json!(15), &json!(14)));
    walk.step("DELETE /v1/datasets/{name}/rows", |server| server.delete("/v1/datasets/t/rows?column=x&value=7"), Some("dataset.erase"))
        .await;

    let to = json!({"version": 2});
    let aliased = "PUT /v1/models/{name}/aliases/{alias}";
    let (_, record) = walk.step(aliased, |server| server.put("/v1/models/m/aliases/a").json(&to), Some("alias.set")).await;
    assert_eq!((&record["before"], &record["after"]["version"]), (&Value::Null, &json!(2)));
    let held = json!({"version": 3, "sequence": 1});
    let (_, record) = walk.step(aliased, |server| server.put("/v1/models/m/aliases/a").json(&held), Some("alias.set")).await;
    assert_eq!((&record["before"]["version"], &record["after"]["sequence"]), (&json!(2), &json!(1)));
    walk.step("DELETE /v1/models/{name}/aliases/{alias}", |server| server.delete("/v1/models/m/aliases/a"), Some("alias.delete")).await;
    let shares = json!({"2": 50, "3": 50});
    walk.step("PUT /v1/models/{name}/traffic", |server| server.put("/v1/models/m/traffic").json(&shares), Some("traffic.set")).await;
    let (_, record) =
        walk.step("DELETE /v1/models/{name}/traffic", |server| server.delete("/v1/models/m/traffic"), Some("traffic.end")).await;
    assert_eq!((&record["before"]["revision"], &record["after"]), (&json!(1), &Value::Null));

    walk.step("POST /v1/backup", |server| server.post("/v1/backup"), None).await;

    walk.step("DELETE /v1/models/{name}/versions/{version}", |server| server.delete("/v1/models/m/versions/1"), Some("version.delete"))
        .await;
    walk.server.delete("/v1/models/other").expect(204).await;
    // The default model is the only one now.
    walk.step("POST /invocations", |server| server.post("/invocations").json(&split), None).await;
    let (_, record) = walk.step("DELETE /v1/models/{name}", |server| server.delete("/v1/models/m"), Some("model.delete")).await;
    assert_eq!(record["before"], json!({"versions": [2, 3]}));
    walk.step("DELETE /v1/datasets/{name}", |server| server.delete("/v1/datasets/t"), Some("dataset.delete")).await;

    // Keys: the first is anybody's to make, the second and its end are of who has the first.
    let made = "POST /v1/keys";
    let admin = json!({"scopes": ["admin"]});
    walk.step(made, |server| server.post("/v1/keys").json(&admin), Some("key.make")).await;
    let readers = json!({"scopes": ["read"], "models": ["sales-*"]});
    let (reply, record) = walk.step(made, |server| server.post("/v1/keys").json(&readers), Some("key.make")).await;
    let second = reply.json()["id"].as_str().unwrap().to_owned();
    assert_eq!((&record["subject"], &record["after"]["models"]), (&json!(second), &json!(["sales-*"])));
    assert!(!record.to_string().contains(reply.json()["token"].as_str().unwrap().split_once('.').unwrap().1), "a secret was written down");
    let path = format!("/v1/keys/{second}");
    let (_, record) = walk.step("DELETE /v1/keys/{id}", |server| server.delete(path), Some("key.revoke")).await;
    assert_eq!((&record["subject"], &record["before"]["scopes"]), (&json!(second), &json!("read")));

    let changing: Vec<String> =
        lsqd::http::ROUTES.iter().filter(|(method, ..)| *method != "GET").map(|(method, path, _)| format!("{method} {path}")).collect();
    for route in &changing {
        let left = walk.met.get(route).unwrap_or_else(|| panic!("{route} may change something, and nobody looked what it leaves"));
        let excused = WITHOUT.iter().any(|(known, reason)| known == route && !reason.is_empty());
        assert!(left.is_some() != excused, "{route} leaves {left:?}");
    }
    assert_eq!(walk.met.len(), changing.len());
    // Every kind of record that the contract names was met, but for what no request asks for.
    let mut actions: Vec<&str> = walk.met.values().flatten().map(String::as_str).collect();
    actions.extend(OTHERWISE);
    actions.sort_unstable();
    actions.dedup();
    let named = &CONTRACT.document()["components"]["schemas"]["AuditRecord"]["properties"]["action"]["enum"];
    let mut named: Vec<&str> = named.as_array().unwrap().iter().map(|action| action.as_str().unwrap()).collect();
    named.sort_unstable();
    assert_eq!(actions, named);
}

fn asked_of<'s>(server: &'s Server, fit: &Value) -> Request<'s> {
    server.post("/v1/models/m/fits").header("prefer", "wait=60").json(fit)
}

fn predicted_by<'s>(server: &'s Server, into: &Value) -> Request<'s> {
    server.post("/v1/models/m/predictions").header("prefer", "wait=60").json(into)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_nothing_leaves_no_record_and_pages_follow() {
    let mut server = Server::start().await;
    for _ in 0..3 {
        let keyed = server.put("/v1/datasets/t").header("idempotency-key", "k");
        keyed.csv("x,y\n1,1\n2,2.5\n3,3\n").send().await;
    }
    // Refusals, and a fit that cannot be.
    server.put("/v1/datasets/t").header("if-match", "\"none\"").csv("x,y\n1,1\n").refused(412, "precondition_failed").await;
    server.put("/v1/datasets/u").csv("x,y\n1\n").refused(422, "invalid_rows").await;
    server.delete("/v1/models/none").refused(404, "model_not_found").await;
    server.post("/v1/models/m/fits").json(&json!({"dataset": "t", "target": "none"})).refused(422, "unknown_column").await;
    let all = server.get("/v1/audit").expect(200).await.json();
    assert_eq!(all["items"].as_array().unwrap().len(), 1, "{all}");
    for _ in 0..4 {
        server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    }
    let all = server.get("/v1/audit").expect(200).await.json();
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = server.get(format!("/v1/audit?limit=2&after={after}")).expect(200).await.json();
        seen.extend(page["items"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        after = next.to_owned();
    }
    assert_eq!(json!(seen), all["items"]);
    assert_eq!(server.get("/v1/audit?after=99").expect(200).await.json(), json!({"items": [], "next": null}));
    server.get("/v1/audit?after=x").refused(422, "invalid_request").await;
    server.restart().await;
    assert_eq!(server.get("/v1/audit").expect(200).await.json(), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_does_by_itself_it_says_so() {
    let server = Server::start().await;
    let mut noise = Noise(5);
    let mut row = |slope: f64| {
        let x = noise.next() * 5.0;
        json!({"x": x, "y": slope * x + noise.next() * 0.2})
    };
    let table: String = (0..100).map(|_| row(2.0)).map(|row| format!("{},{}\n", row["x"], row["y"])).collect();
    server.table("t", &format!("x,y\n{table}")).await;
    server.fit("m", json!({"dataset": "t", "target": "y", "online": {"drift": {"action": "refit"}}})).await;
    let rows: Vec<Value> = (0..300).map(|_| row(2.0)).collect();
    server.learn("m@1", json!({"rows": rows})).await;
    // The slope turns round.
    for _ in 0..20 {
        let rows: Vec<Value> = (0..10).map(|_| row(-3.0)).collect();
        server.learn("m@1", json!({"rows": rows})).await;
    }
    let begun = std::time::Instant::now();
    loop {
        let records = server.get("/v1/audit").expect(200).await.json();
        if let Some(record) = records["items"].as_array().unwrap().iter().find(|record| record["action"] == "refit") {
            assert_eq!((&record["who"], &record["request_id"], &record["subject"]), (&json!("lsqd"), &Value::Null, &json!("m")));
            break;
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "no drift led to a refit");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_at_the_command_line_leaves_records_too() {
    let server = Server::start().await;
    server.table("t", "x,y\n1,1\n2,2.5\n3,3\n").await;
    let admin = lsqd(&server, &["key", "create", "--scopes", "admin", "--name", "first"]);
    let second = lsqd(&server, &["key", "create", "--scopes", "read,predict", "--models", "sales-*"]);
    let [admin, second] = [&admin, &second].map(|key| key.trim_end());
    let parts =
        |key: &str| key.strip_prefix("lsqd_").unwrap().split_once('.').map(|(id, secret)| (id.to_owned(), secret.to_owned())).unwrap();
    let (second_id, second_secret) = parts(second);
    for _ in 0..2 {
        // The second time nothing is changed.
        lsqd(&server, &["key", "revoke", &second_id]);
    }
    let asked = async || server.get("/v1/audit").key(admin).send().await;
    let begun = std::time::Instant::now();
    while asked().await.status != 200 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(2), "the key is not known");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let text = asked().await.text();
    for secret in [parts(admin).1, second_secret] {
        assert!(!text.contains(&secret), "a secret was written down");
    }
    let records = serde_json::from_str::<Value>(&text).unwrap();
    let records = records["items"].as_array().unwrap();
    let told: Vec<_> = records.iter().map(|record| (record["action"].as_str().unwrap(), &record["who"], &record["request_id"])).collect();
    let (by_hand, nobody) = (json!("local"), Value::Null);
    assert_eq!((told.len(), told[0].0), (4, "dataset.put"));
    assert_eq!(told[1..], ["key.make", "key.make", "key.revoke"].map(|action| (action, &by_hand, &nobody)));
    assert_eq!((&records[3]["subject"], &records[3]["before"]["scopes"]), (&json!(second_id), &json!("read,predict")));
    // Who makes a key over HTTP goes on in the same log.
    server.post("/v1/keys").key(admin).json(&json!({"scopes": ["read"]})).expect(201).await;

    // A database that was restored says so, whatever was in the place.
    let folder = tempfile::tempdir().unwrap();
    let [copy, restored] = ["copy.db", "restored.db"].map(|name| folder.path().join(name));
    backup::write(&server.database(), &copy, false).await.unwrap();
    for replaced in [false, true] {
        backup::restore(&copy, &restored, replaced).await.unwrap();
        let records = records_of(&restored).await;
        assert_eq!(records.len(), 6, "{records:?}");
        assert_eq!((records[5].who.as_str(), records[5].action.as_str(), records[5].subject.as_str()), ("local", "restore", ""));
        let after: Value = serde_json::from_str(records[5].after.as_ref().unwrap()).unwrap();
        assert!(after["replaced"] == replaced && after["made_at"].is_string(), "{after}");
        assert_eq!(records_of(&copy).await.len(), 5, "the backup was written to");
    }
    // What was mended is no secret either.
    assert!(check::repair(&restored).await.unwrap().is_whole());
    assert_eq!(records_of(&restored).await.len(), 6, "nothing was mended");
    tamper(&restored, &["UPDATE datasets SET rows = 99"]).await;
    let report = check::repair(&restored).await.unwrap();
    assert!(report.is_whole() && report.findings.len() == 1, "{report}");
    let records = records_of(&restored).await;
    let after: Value = serde_json::from_str(records[6].after.as_ref().unwrap()).unwrap();
    assert_eq!((records[6].action.as_str(), after), ("repair", json!({"mended": 1, "left": 0})));
    assert!(check::check(&restored).await.unwrap().is_whole());
}

/// The whole audit log of a database.
async fn records_of(database: &std::path::Path) -> Vec<lsqd::store::audit::Entry> {
    let mut connection = lsqd::store::backup::look(database).await.unwrap();
    lsqd::store::audit::list(&mut connection, 0, 1000).await.unwrap()
}

/// Does something to a database behind lsqd's back.
async fn tamper(database: &std::path::Path, statements: &[&'static str]) {
    use sqlx::{ConnectOptions as _, Connection as _};
    let mut connection = sqlx::sqlite::SqliteConnectOptions::new().filename(database).connect().await.unwrap();
    for statement in statements {
        sqlx::query(*statement).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_names_records_that_are_not_what_was_written() {
    let server = Server::start().await;
    for _ in 0..6 {
        server.table("t", "x,y\n1,1\n2,2.5\n3,3\n").await;
    }
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.db");
    let without = ["DROP TRIGGER audit_is_not_changed", "DROP TRIGGER audit_is_not_shortened"];
    for (statements, named) in [
        (&["UPDATE audit SET who = 'somebody else' WHERE id = 2"][..], &["record 2 is not what was written"][..]),
        (&["DELETE FROM audit WHERE id = 3"], &["record 3 is not there"]),
        (&["DELETE FROM audit WHERE id IN (1, 2, 5)"], &["records 1 to 2 are not there", "record 5 is not there"]),
        (
            &["UPDATE audit SET id = 9 WHERE id = 3", "UPDATE audit SET id = 3 WHERE id = 4", "UPDATE audit SET id = 4 WHERE id = 9"],
            &["record 3 is not", "record 4 is not", "record 5 is not"],
        ),
    ] {
        backup::write(&server.database(), &copy, true).await.unwrap();
        let whole = check::check(&copy).await.unwrap();
        assert!(whole.is_whole() && whole.looked.audited == 6, "{whole}");
        tamper(&copy, &without).await;
        tamper(&copy, statements).await;
        let report = check::check(&copy).await.unwrap();
        assert!(!report.is_whole());
        assert_eq!(report.findings.len(), named.len(), "{report}");
        for (finding, named) in report.findings.iter().zip(named) {
            assert!(finding.place == "the audit log" && finding.fault.starts_with(named), "{report}");
        }
        // It cannot be mended, and it is not put in a database's place.
        assert!(!check::repair(&copy).await.unwrap().is_whole());
        let restored = backup::restore(&copy, &folder.path().join("restored.db"), false).await.unwrap();
        assert!(matches!(restored, backup::Restored::Damaged(_)), "{restored:?}");
    }
}
