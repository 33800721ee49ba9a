//! Delayed labels: predict and remember, then learn when the label comes; once, and by the version that predicted.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Reply, Server, coefficients, numbers};

const PATH: &str = "/v1/models/line/labels";

/// A line through four points, at sequence 0.
async fn line(server: &Server) {
    server.table("t", "x,y\n1,1\n2,2.5\n3,2.75\n4,4\n").await;
    server.fit("line", json!({"dataset": "t", "target": "y"})).await;
}

/// Predicts and remembers; returns the ids.
async fn remembered(server: &Server, model: &str, rows: Value) -> Vec<String> {
    let answer = server.predict(model, json!({"rows": rows, "remember": true})).await;
    answer["prediction_ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

fn labels(pairs: &[(&String, f64)]) -> Value {
    json!({"labels": pairs.iter().map(|(id, value)| json!({"prediction_id": id, "value": value})).collect::<Vec<_>>()})
}

async fn document(server: &Server, model: &str) -> Vec<u8> {
    server.get(format!("/v1/models/{model}")).expect(200).await.body
}

async fn send(server: &Server, body: &Value) -> Reply {
    server.post(PATH).json(body).expect(200).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_teaches_what_its_row_would_have() {
    let mut server = Server::start().await;
    line(&server).await;
    let ids = remembered(&server, "line", json!([{"x": 5}, {"x": 6}, {"x": -3}])).await;
    assert_eq!(ids.len(), 3);
    assert_eq!(server.get("/v1/models/line").expect(200).await.etag(), "\"1-0\"", "remembering is not learning");
    // Both the row and the model it waits for are there after a restart.
    server.restart().await;
    let reply = send(&server, &labels(&[(&ids[1], 5.75), (&ids[0], 5.5)])).await;
    assert_eq!(reply.etag(), "\"1-2\"");
    let reply = reply.json();
    server.fit("other", json!({"dataset": "t", "target": "y"})).await;
    let mut wanted = server.learn("other", json!({"rows": [{"x": 6, "y": 5.75}, {"x": 5, "y": 5.5}]})).await;
    wanted["model"] = json!("line");
    assert_eq!(reply, wanted, "a label is answered as an update is");
    server.post(PATH).json(&json!({"labels": [{"prediction_id": ids[2], "value": 0, "weight": 0.5}]})).expect(200).await;
    server.restart().await;
    let version = server.get("/v1/models/line").expect(200).await.json();
    assert_eq!((&version["sequence"], &version["fit"]["observations"]), (&json!(3), &json!(7)));
    server.table("w", "x,y,w\n1,1,1\n2,2.5,1\n3,2.75,1\n4,4,1\n6,5.75,1\n5,5.5,1\n-3,0,0.5\n").await;
    let batch = server.fit("batch", json!({"dataset": "w", "target": "y", "weights": "w"})).await;
    crate::client::agree(&coefficients(&version, "estimate"), &coefficients(&batch, "estimate"), 12.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_is_learnt_once() {
    let mut server = Server::start().await;
    line(&server).await;
    let ids = remembered(&server, "line", json!([{"x": 5}, {"x": 6}])).await;
    let body = labels(&[(&ids[0], 5.5)]);
    let first = send(&server, &body).await.json();
    assert_eq!((&first["accepted"], &first["sequence"]), (&json!(1), &json!(1)));
    let before = document(&server, "line").await;
    for _ in 0..2 {
        let again = send(&server, &body).await.json();
        assert_eq!((&again["accepted"], &again["sequence"]), (&json!(0), &json!(1)));
        assert_eq!((&again["predictions"], &again["errors"]), (&first["predictions"], &first["errors"]));
        server.restart().await;
    }
    // Another value or weight is refused by its place, and nothing beside it is learnt.
    for other in [json!({"prediction_id": ids[0], "value": 5.25}), json!({"prediction_id": ids[0], "value": 5.5, "weight": 2})] {
        let body = json!({"labels": [{"prediction_id": ids[1], "value": 6}, other]});
        assert_eq!(server.post(PATH).json(&body).refused(409, "conflict").await.pointers(), ["/labels/1"]);
    }
    assert_eq!(document(&server, "line").await, before);
    // Beside a repeat, what is new is learnt.
    let mixed = send(&server, &labels(&[(&ids[0], 5.5), (&ids[1], 6.0)])).await.json();
    assert_eq!((&mixed["accepted"], &mixed["sequence"], &mixed["predictions"][0]), (&json!(1), &json!(2), &first["predictions"][0]));
    // The error is what the sweep through the triangle finds, and the prediction the observation less that: each rounded once.
    assert!((numbers(&mixed["errors"])[1] - (6.0 - numbers(&mixed["predictions"])[1])).abs() < 1e-14);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_at_once_are_learnt_once() {
    let server = std::sync::Arc::new(Server::start().await);
    line(&server).await;
    let ids = remembered(&server, "line", json!(vec![json!({"x": 5}); 20])).await;
    let mut senders = Vec::new();
    for _ in 0..4 {
        let (server, ids) = (server.clone(), ids.clone());
        senders.push(tokio::spawn(async move {
            let mut accepted = 0;
            for id in &ids {
                accepted += send(&server, &labels(&[(id, 5.5)])).await.json()["accepted"].as_u64().unwrap();
            }
            accepted
        }));
    }
    let mut accepted = 0;
    for sender in senders {
        accepted += sender.await.unwrap();
    }
    assert_eq!((accepted, server.get("/v1/models/line").expect(200).await.json()["sequence"].as_u64()), (20, Some(20)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_labels_is_named_by_item() {
    let server = Server::start().await;
    line(&server).await;
    server.fit("elsewhere", json!({"dataset": "t", "target": "y"})).await;
    let ids = remembered(&server, "line", json!([{"x": 5}, {"x": 6}, {"x": 1e308}])).await;
    let foreign = remembered(&server, "elsewhere", json!([{"x": 5}])).await;
    let unknown = "0190b6a5-7c5e-7a43-9d1c-3f6b2f0e8a55";
    let good = json!({"prediction_id": ids[0], "value": 5.5});
    for (items, status, code, pointers) in [
        (json!([good, {"prediction_id": unknown, "value": 1}]), 404, "prediction_not_found", vec!["/labels/1/prediction_id"]),
        (json!([{"prediction_id": "x", "value": 1}, good]), 404, "prediction_not_found", vec!["/labels/0/prediction_id"]),
        (json!([{"prediction_id": foreign[0], "value": 1}, good]), 404, "prediction_not_found", vec!["/labels/0/prediction_id"]),
        (json!([good, good]), 422, "invalid_request", vec!["/labels/1/prediction_id"]),
        (json!([good, {"value": 1}]), 422, "invalid_request", vec!["/labels/1/prediction_id"]),
        (
            json!([good, {"prediction_id": ids[1]}, {"prediction_id": ids[1], "value": ["a"], "weight": -1, "colour": 3}, 7]),
            422,
            "invalid_request",
            vec!["/labels/1/value", "/labels/2/colour", "/labels/2/value", "/labels/2/weight", "/labels/3"],
        ),
        (json!([good, {"prediction_id": ids[1], "value": {"z": 1}}]), 422, "invalid_request", vec!["/labels/1/value"]),
        (json!([good, {"prediction_id": ids[2], "value": -1e308}]), 422, "invalid_request", vec!["/labels/1"]),
        (json!([]), 422, "invalid_request", vec!["/labels"]),
    ] {
        let mut found = server.post(PATH).json(&json!({"labels": items})).refused(status, code).await.pointers();
        found.sort_unstable();
        assert_eq!(found, pointers, "{items}");
    }
    let many: Vec<Value> = (0..10_001).map(|_| good.clone()).collect();
    server.post(PATH).json(&json!({"labels": many})).refused(413, "payload_too_large").await;
    server.post("/v1/models/none/labels").json(&json!({"labels": [good]})).refused(404, "model_not_found").await;
    server.post("/v1/models/line@2/labels").json(&json!({"labels": [good]})).refused(404, "version_not_found").await;
    server.post(PATH).header("if-match", "\"1-7\"").json(&json!({"labels": [good]})).refused(412, "precondition_failed").await;
    assert_eq!(server.get("/v1/models/line").expect(200).await.json()["sequence"], 0, "something was learnt");
    assert_eq!(
        send(&server, &json!({"labels": [{"prediction_id": ids[0].to_uppercase(), "value": {"y": 5.5}}]})).await.json()["accepted"],
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_go_to_the_version_that_predicted() {
    let server = Server::start().await;
    line(&server).await;
    let old = remembered(&server, "line", json!([{"x": 5}])).await;
    server.fit("line", json!({"dataset": "t", "target": "y"})).await;
    let new = remembered(&server, "line", json!([{"x": 6}])).await;
    let body = labels(&[(&old[0], 5.5), (&new[0], 6.0)]);
    assert_eq!(server.post(PATH).json(&body).refused(409, "conflict").await.pointers(), ["/labels/1"]);
    server.post("/v1/models/line@2/labels").json(&labels(&[(&old[0], 5.5)])).refused(404, "prediction_not_found").await;
    let reply = send(&server, &labels(&[(&old[0], 5.5)])).await.json();
    assert_eq!((&reply["version"], &reply["sequence"]), (&json!(1), &json!(1)));
    let reply = server.post("/v1/models/line@2/labels").json(&labels(&[(&new[0], 6.0)])).expect(200).await.json();
    assert_eq!((&reply["version"], &reply["sequence"]), (&json!(2), &json!(1)));
    // With the version go its predictions.
    let late = remembered(&server, "line@1", json!([{"x": 5}])).await;
    server.delete("/v1/models/line/versions/1").expect(204).await;
    server.post(PATH).json(&labels(&[(&late[0], 5.5)])).refused(404, "prediction_not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_targets_and_every_format_are_remembered() {
    let server = Server::start().await;
    server.table("t", "x,region,y,z\n1,a,1,5\n2,b,2.5,4\n3,a,2.75,4.5\n4,b,4,1\n5,a,4.5,0\n").await;
    server.fit("m", json!({"dataset": "t", "target": ["y", "z"]})).await;
    let path = "/v1/models/m/predict?remember=true&fields=predictions";
    let lines = server.post(path).ndjson("{\"x\":6,\"region\":\"b\"}\n").expect(200).await.json();
    let table = server.post(path).csv("x,region\n6,b\n7,a\n").expect(200).await.text();
    let (header, rows) = table.split_once('\n').unwrap();
    assert_eq!(header, "y_prediction,z_prediction,prediction_id");
    let last = rows.trim().lines().last().unwrap().rsplit(',').next().unwrap();
    let items =
        json!([{"prediction_id": lines["prediction_id"], "value": {"z": -2, "y": 7}}, {"prediction_id": last, "value": {"y": 1, "z": 2}}]);
    let reply = server.post("/v1/models/m/labels").json(&json!({"labels": items})).expect(200).await.json();
    assert_eq!(reply["predictions"][0], lines["prediction"]);
    server.fit("other", json!({"dataset": "t", "target": ["y", "z"]})).await;
    let rows = json!({"rows": [{"x": 6, "region": "b", "y": 7, "z": -2}, {"x": 7, "region": "a", "y": 1, "z": 2}]});
    assert_eq!(server.learn("other", rows).await["errors"], reply["errors"]);
    for value in [json!(1), json!({"y": 1}), json!({"y": 1, "z": 2, "q": 3})] {
        let body = json!({"labels": [{"prediction_id": last, "value": value}]});
        assert_eq!(server.post("/v1/models/m/labels").json(&body).refused(422, "invalid_request").await.pointers(), ["/labels/0/value"]);
    }
    server.post("/v1/models/m/predict?remember=maybe").csv("x,region\n6,b\n").refused(422, "invalid_request").await;
    assert_eq!(server.predict("m", json!({"rows": [], "remember": true})).await["prediction_ids"], json!([]));
    let many = json!({"columns": ["x", "region"], "data": vec![json!([1, "a"]); 10_001], "remember": true});
    server.post("/v1/models/m/predict").json(&many).refused(413, "payload_too_large").await;
    // What does not learn remembers nothing.
    server.fit("robust", json!({"dataset": "t", "target": "y", "features": ["x"], "estimator": {"kind": "huber"}})).await;
    server.post("/v1/models/robust/predict").json(&json!({"rows": [{"x": 1}], "remember": true})).refused(409, "conflict").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_replays_the_reply() {
    let mut server = Server::start().await;
    line(&server).await;
    let ids = remembered(&server, "line", json!([{"x": 5}, {"x": 6}])).await;
    let keyed = async |server: &Server, body: &Value| server.post(PATH).header("idempotency-key", "k").json(body).send().await;
    let first = keyed(&server, &labels(&[(&ids[0], 5.5)])).await;
    send(&server, &labels(&[(&ids[1], 6.0)])).await;
    server.restart().await;
    let again = keyed(&server, &labels(&[(&ids[0], 5.5)])).await;
    assert!(!first.replayed() && again.replayed());
    assert_eq!(first.body, again.body);
    assert_eq!(keyed(&server, &labels(&[(&ids[0], 5.0)])).await.code(), "idempotency_mismatch");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_is_forgotten() {
    let mut server = Server::start_with(|config| config.remember_ttl = Duration::from_millis(1500)).await;
    line(&server).await;
    let ids = remembered(&server, "line", json!([{"x": 5}, {"x": 6}])).await;
    send(&server, &labels(&[(&ids[0], 5.5)])).await;
    tokio::time::sleep(Duration::from_millis(1600)).await;
    for _ in 0..2 {
        for id in &ids {
            server.post(PATH).json(&labels(&[(id, 5.5)])).refused(404, "prediction_not_found").await;
        }
        // The start sweeps them away; what was learnt stays.
        server.restart().await;
    }
    assert_eq!(server.get("/v1/models/line").expect(200).await.json()["sequence"], 1);
}
