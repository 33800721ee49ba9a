//! The forms of MLflow's scoring server and of TensorFlow Serving, by their bytes; in `tests/clients` a caller of theirs sends them.

use serde_json::{Value, json};

use crate::client::{Reply, Server, numbers};

/// A plane of two numbers, one with a category, and one of two targets.
async fn models() -> Server {
    let server = Server::start().await;
    server.table("p", "a,b,y\n1,2,3.5\n2,1,4\n3,5,9.25\n4,3,8\n5,9,16.5\n").await;
    server.fit("plane", json!({"dataset": "p", "target": "y"})).await;
    server.table("m", "x,region,y\n1,north,1\n2,south,3\n3,north,2.5\n4,south,6\n5,north,5\n6,south,7\n").await;
    server.fit("mixed", json!({"dataset": "m", "target": "y"})).await;
    server.fit("two", json!({"dataset": "p", "target": ["y", "b"], "features": ["a"]})).await;
    server
}

async fn invoke(server: &Server, model: &str, asked: Value) -> Reply {
    server.post(format!("/v1/models/{model}/invocations")).json(&asked).expect(200).await
}

async fn served(server: &Server, model: &str, asked: Value) -> Reply {
    server.post(format!("/v1/models/{model}:predict")).json(&asked).expect(200).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_mlflow_is_answered_as_predict_answers() {
    let server = models().await;
    let rows = json!([{"x": 2.5, "region": "south"}, {"x": 7, "region": "north"}]);
    let own = numbers(&server.predict("mixed", json!({"rows": rows})).await["predictions"]);
    for asked in [
        json!({"dataframe_split": {"index": [0, 1], "columns": ["region", "x"], "data": [["south", 2.5], ["north", 7]]}}),
        json!({"dataframe_records": rows}),
        json!({"dataframe_records": rows, "params": {}}),
        json!({"dataframe_records": rows, "params": null}),
        json!({"instances": rows}),
        json!({"instances": [[2.5, "south"], [7, "north"]]}),
        json!({"inputs": {"region": ["south", "north"], "x": [2.5, 7]}}),
        json!({"inputs": {"region": [["south"], ["north"]], "x": [[2.5], [7]]}}),
    ] {
        let reply = invoke(&server, "mixed", asked.clone()).await;
        assert_eq!(reply.json(), json!({"predictions": own}), "{asked}");
        assert_eq!(reply.header("lsqd-version-sequence"), Some("1-0"));
    }
    let csv = || server.post("/v1/models/mixed/invocations");
    let reply = csv().csv("region,x\nsouth,2.5\nnorth,7\n").expect(200).await;
    assert_eq!(numbers(&reply.json()["predictions"]), own);
    let reply = csv().typed("text/csv; charset=utf-8", "x,region\n2.5,south\n7,north\n").expect(200).await;
    assert_eq!(numbers(&reply.json()["predictions"]), own);
    assert_eq!(invoke(&server, "mixed", json!({"dataframe_records": []})).await.json(), json!({"predictions": []}));

    let question = json!({"rows": [{"a": 2, "b": 3}], "interval": {"kind": "confidence", "level": 0.9}});
    let own = server.predict("plane", question).await;
    for params in [json!({"interval": "confidence", "level": 0.9}), json!({"interval": {"kind": "confidence", "level": 0.9}})] {
        let reply = invoke(&server, "plane", json!({"dataframe_records": [{"a": 2, "b": 3}], "params": params})).await.json();
        assert_eq!(reply, json!({"predictions": own["predictions"], "lower": own["lower"], "upper": own["upper"]}));
    }
    let two = invoke(&server, "two", json!({"instances": [[2]]})).await.json();
    assert_eq!(two["predictions"], server.predict("two", json!({"rows": [{"a": 2}]})).await["predictions"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_without_a_model_means_the_default_or_the_only_one() {
    let server = Server::start().await;
    let asked = json!({"dataframe_records": [{"a": 2, "b": 3}]});
    let invoke = || server.post("/invocations").json(&asked);
    let refused = invoke().refused(404, "model_not_found").await;
    assert!(refused.json()["detail"].as_str().unwrap().contains("no model yet"), "{}", refused.text());
    server.table("p", "a,b,y\n1,2,3.5\n2,1,4\n3,5,9.25\n4,3,8\n5,9,16.5\n").await;
    server.fit("plane", json!({"dataset": "p", "target": "y"})).await;
    let own = server.predict("plane", json!({"rows": [{"a": 2, "b": 3}]})).await["predictions"].clone();
    assert_eq!(invoke().expect(200).await.json()["predictions"], own);
    server.fit("other", json!({"dataset": "p", "target": "y", "features": ["a"]})).await;
    let refused = invoke().refused(404, "model_not_found").await;
    assert!(refused.json()["detail"].as_str().unwrap().contains("--default-model"), "{}", refused.text());
    assert_eq!(server.get("/ping").expect(200).await.json(), json!({"ready": true}));
    assert_eq!(server.get("/health").expect(200).await.json(), json!({"ready": true}));
    assert_eq!(server.get("/version").expect(200).await.text(), env!("CARGO_PKG_VERSION"));

    let server = Server::start_with(|config| config.default_model = Some("plane@1".to_owned())).await;
    server.table("p", "a,b,y\n1,2,3.5\n2,1,4\n3,5,9.25\n4,3,8\n5,9,16.5\n").await;
    server.fit("other", json!({"dataset": "p", "target": "y", "features": ["a"]})).await;
    server.post("/invocations").json(&asked).refused(404, "model_not_found").await;
    server.fit("plane", json!({"dataset": "p", "target": "y"})).await;
    assert_eq!(server.post("/invocations").json(&asked).expect(200).await.json()["predictions"], own);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_columns_of_tensorflow_serving_are_answered_in_kind() {
    let server = models().await;
    let own = numbers(
        &server.predict("mixed", json!({"rows": [{"x": 2.5, "region": "south"}, {"x": 7, "region": "north"}]})).await["predictions"],
    );
    for instances in [
        json!([{"x": 2.5, "region": "south"}, {"x": 7, "region": "north"}]),
        json!([{"x": [2.5], "region": ["south"]}, {"region": ["north"], "x": [7]}]),
        json!([[2.5, "south"], [7, "north"]]),
    ] {
        let reply = served(&server, "mixed", json!({"signature_name": "serving_default", "instances": instances})).await;
        assert_eq!(reply.json(), json!({"predictions": own}), "{instances}");
        assert_eq!(reply.header("lsqd-version-sequence"), Some("1-0"));
    }
    for inputs in [json!({"x": [2.5, 7], "region": ["south", "north"]}), json!({"x": [[2.5], [7]], "region": [["south"], ["north"]]})] {
        assert_eq!(served(&server, "mixed", json!({"inputs": inputs})).await.json(), json!({"outputs": own}), "{inputs}");
    }
    let plane = numbers(&server.predict("plane", json!({"rows": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]})).await["predictions"]);
    for asked in [json!({"instances": [[1, 2], [3, 4]]}), json!({"instances": [{"dense_input": [1, 2]}, {"dense_input": [3, 4]}]})] {
        assert_eq!(served(&server, "plane", asked.clone()).await.json(), json!({"predictions": plane}), "{asked}");
    }
    assert_eq!(served(&server, "plane", json!({"inputs": [[1, 2], [3, 4]]})).await.json(), json!({"outputs": plane}));
    let two = server.predict("two", json!({"rows": [{"a": 2}, {"a": 3}]})).await["predictions"].clone();
    assert_eq!(served(&server, "two", json!({"instances": [2, 3]})).await.json(), json!({"predictions": two}));
    let columns = served(&server, "two", json!({"inputs": {"a": [2, 3]}})).await.json();
    assert_eq!(columns, json!({"outputs": {"y": [two[0]["y"], two[1]["y"]], "b": [two[0]["b"], two[1]["b"]]}}));

    // Names may hold a colon, and a version has its address.
    for path in ["/v1/models/plane/versions/1:predict", "/v1/models/plane@served:predict", "/v1/models/plane/versions/served:predict"] {
        assert_eq!(
            numbers(&server.post(path).json(&json!({"instances": [[1, 2], [3, 4]]})).expect(200).await.json()["predictions"]),
            plane
        );
    }
    let untyped = server.post("/v1/models/plane:predict").typed("text/plain", "{\"instances\": [[1, 2], [3, 4]]}").expect(200).await;
    assert_eq!(numbers(&untyped.json()["predictions"]), plane);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_in_the_member_that_each_client_reads() {
    let server = models().await;
    for (path, asked, status, pointer) in [
        ("invocations", json!({"dataframe_records": [{"x": 1, "region": "east"}]}), 422, "/dataframe_records/0/region"),
        ("invocations", json!({"dataframe_split": {"columns": ["x"], "data": [[1]]}}), 422, "/dataframe_split/columns"),
        (
            "invocations",
            json!({"dataframe_split": {"columns": ["x", "region"], "data": [[1, "north"], [null, "north"]]}}),
            422,
            "/dataframe_split/data/1/0",
        ),
        ("invocations", json!({"dataframe_records": [], "instances": []}), 422, "/instances"),
        ("invocations", json!({"dataframe_records": [], "other": 1}), 422, "/other"),
        ("invocations", json!({"dataframe_records": [], "params": {"temperature": 1}}), 422, "/params/temperature"),
        ("invocations", json!({"dataframe_records": [], "params": {"level": 2}}), 400, "/params/level"),
        ("invocations", json!({"dataframe_records": {}}), 400, "/dataframe_records"),
        ("invocations", json!({}), 422, ""),
        (":predict", json!({"instances": [{"x": 1, "region": "east"}]}), 422, "/instances/0/region"),
        (":predict", json!({"instances": [{"x": 1, "region": "north"}, {"x": 1}]}), 422, "/instances/1/region"),
        (":predict", json!({"inputs": {"x": [1, 2], "region": ["north"]}}), 400, "/inputs/region"),
        (":predict", json!({"instances": [], "inputs": {}}), 422, "/inputs"),
        (":predict", json!({"instances": [], "signature_name": 3}), 422, "/signature_name"),
        (":predict", json!({"dataframe_records": []}), 422, "/dataframe_records"),
        (":predict", json!({"instances": 3}), 400, "/instances"),
    ] {
        let path = if path == ":predict" { "/v1/models/mixed:predict".to_owned() } else { format!("/v1/models/mixed/{path}") };
        let reply = server.post(path).json(&asked).expect(status).await;
        let pointers = reply.pointers();
        assert!(pointers.iter().any(|found| found == pointer), "{asked}: {pointers:?}");
        assert!(!reply.json()["error"].as_str().unwrap().is_empty(), "{asked}");
    }
    for body in ["", "{", "[]", "{\"instances\": [NaN]}", "{\"instances\": [1}"] {
        server.post("/v1/models/mixed:predict").body(body).refused(400, "bad_syntax").await;
        server.post("/v1/models/mixed/invocations").body(body).refused(400, "bad_syntax").await;
    }
    let deep = format!("{{\"instances\": {}}}", "[".repeat(100_000));
    server.post("/v1/models/mixed:predict").body(deep).refused(400, "bad_syntax").await;
    let rows = json!({"instances": []});
    server.post("/v1/models/mixed/invocations").typed("application/xml", "<rows/>").refused(415, "unsupported_media_type").await;
    server.post("/v1/models/mixed/invocations").csv("x\n1\n").refused(422, "invalid_rows").await;
    server.post("/v1/models/none/invocations").json(&rows).refused(404, "model_not_found").await;
    server.post("/v1/models/none:predict").json(&rows).refused(404, "model_not_found").await;
    server.post("/v1/models/mixed/versions/9:predict").json(&rows).refused(404, "version_not_found").await;
    for (path, allowed) in [
        ("/v1/models/mixed", "GET, HEAD, DELETE"),
        ("/v1/models/mixed/versions/1", "GET, HEAD, DELETE"),
        ("/v1/models/mixed:predict", "POST"),
        ("/v1/models/mixed/versions/1:predict", "POST"),
    ] {
        let refused = server.put(path).json(&rows).refused(405, "method_not_allowed").await;
        assert_eq!(refused.header("allow"), Some(allowed), "{path}");
    }
    for path in ["/v1/models/mixed", "/v1/models/mixed:classify", "/v1/models/mixed/versions/1", "/v1/models/:predict"] {
        let reply = server.post(path).json(&rows).send().await;
        assert!(
            matches!((reply.status, reply.code().as_str()), (405, "method_not_allowed") | (404, "model_not_found")),
            "{path}: {}",
            reply.text()
        );
    }
}
