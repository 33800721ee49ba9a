//! The Open Inference Protocol, version 2, by its bytes. Stock clients speak it in `tests/clients`.

use serde_json::{Value, json};

use crate::client::{Reply, Server, agree, numbers};

/// A plane with a category, and one of two numbers.
pub(crate) async fn models() -> Server {
    let server = Server::start().await;
    server.table("p", "a,b,y\n1,2,3.5\n2,1,4\n3,5,9.25\n4,3,8\n5,9,16.5\n").await;
    server.fit("plane", json!({"dataset": "p", "target": "y"})).await;
    server
        .table(
            "m",
            "x,region,flag,y\n1,north,true,1\n2,south,false,3\n3,north,false,2.5\n4,south,true,6\n5,north,true,5\n6,south,false,7\n",
        )
        .await;
    server.fit("mixed", json!({"dataset": "m", "target": "y"})).await;
    server.fit("two", json!({"dataset": "p", "target": ["y", "b"], "features": ["a"]})).await;
    server
}

fn outputs(reply: &Reply) -> Vec<(String, Vec<f64>)> {
    let value = reply.json();
    let listed = value["outputs"].as_array().unwrap();
    listed.iter().map(|output| (output["name"].as_str().unwrap().to_owned(), numbers(&output["data"]))).collect()
}

async fn infer(server: &Server, model: &str, asked: Value) -> Reply {
    server.post(format!("/v2/models/{model}/infer")).json(&asked).expect(200).await
}

#[tokio::test(flavor = "multi_thread")]
async fn json_tensors_are_answered_as_predict_answers() {
    let server = models().await;
    let asked = json!({"rows": [{"a": 2.5, "b": 4}, {"a": 7, "b": -1}], "interval": {"kind": "confidence", "level": 0.9}});
    let predicted = server.predict("plane", asked).await;
    let wanted = ["predict", "lower", "upper", "std_error", "leverage"].map(|name| json!({"name": name}));
    for (name, data) in [("input", json!([[2.5, 4], [7, -1]])), ("anything", json!([2.5, 4, 7, -1]))] {
        let reply = infer(
            &server,
            "plane",
            json!({"id": "17", "inputs": [{"name": name, "shape": [2, 2], "datatype": "FP64", "data": data}], "outputs": wanted,
                   "parameters": {"interval": "confidence", "level": 0.9}}),
        )
        .await;
        let value = reply.json();
        assert_eq!((&value["id"], &value["model_version"], &value["parameters"]["sequence"]), (&json!("17"), &json!("1"), &json!(0)));
        assert_eq!(value["outputs"][0]["shape"], json!([2]));
        let found = outputs(&reply);
        for (place, member) in [(0, "predictions"), (1, "lower"), (2, "upper"), (4, "leverage")] {
            assert_eq!(found[place].1, numbers(&predicted[member]), "{member}");
        }
        let half: Vec<f64> = found[2].1.iter().zip(&found[0].1).map(|(upper, value)| upper - value).collect();
        // Student's quantile at 90% with two degrees of freedom.
        agree(&found[3].1.iter().map(|error| error * 2.919_985_580_353_725_5).collect::<Vec<_>>(), &half, 9.0);
    }
    let plain = infer(&server, "plane", json!({"inputs": [{"name": "input", "shape": [1, 2], "datatype": "INT32", "data": [2, 4]}]})).await;
    assert_eq!(outputs(&plain).len(), 1);
    let none = infer(&server, "plane", json!({"inputs": [{"name": "input", "shape": [0, 2], "datatype": "FP32", "data": []}]})).await;
    assert_eq!(none.json()["outputs"][0], json!({"name": "predict", "datatype": "FP64", "shape": [0], "data": []}));
    let two = infer(&server, "two", json!({"inputs": [{"name": "a", "shape": [3], "datatype": "FP64", "data": [1, 2, 3]}]})).await;
    assert_eq!(two.json()["outputs"][0]["shape"], json!([3, 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tensor_a_feature_takes_categories_and_booleans() {
    let server = models().await;
    let rows = json!([{"x": 2, "region": "south", "flag": true}, {"x": 3.5, "region": "north", "flag": false}]);
    let predicted = server.predict("mixed", json!({"rows": rows})).await;
    let inputs = json!([
        {"name": "region", "shape": [2, 1], "datatype": "BYTES", "data": ["south", "north"]},
        {"name": "x", "shape": [2], "datatype": "FP64", "data": [2, 3.5]},
        {"name": "flag", "shape": [2, 1], "datatype": "BOOL", "data": [true, false]},
    ]);
    let reply = infer(&server, "mixed", json!({"inputs": inputs})).await;
    assert_eq!(outputs(&reply)[0].1, numbers(&predicted["predictions"]));
    let mut unseen = inputs.clone();
    unseen[0]["data"][1] = json!("east");
    let refused = server.post("/v2/models/mixed/infer").json(&json!({"inputs": unseen})).refused(422, "invalid_rows").await;
    assert_eq!(refused.pointers(), ["/rows/1/region"]);
    assert!(refused.json()["error"].as_str().unwrap().contains("region"));
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_tensors_come_and_go_after_the_json() {
    let server = models().await;
    let predicted = server.predict("plane", json!({"rows": [{"a": 2.5, "b": 4}, {"a": 7, "b": -1}]})).await;
    let data: Vec<u8> = [2.5_f64, 4.0, 7.0, -1.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let head = json!({
        "inputs": [{"name": "input", "shape": [2, 2], "datatype": "FP64", "parameters": {"binary_data_size": 32}}],
        "parameters": {"binary_data_output": true},
        "outputs": [{"name": "predict"}, {"name": "leverage", "parameters": {"binary_data": false}}],
    })
    .to_string();
    let body = [head.as_bytes(), &data].concat();
    // No content type, as Triton's client sends none.
    let request = || server.post("/v2/models/plane/versions/1/infer").header("inference-header-content-length", head.len().to_string());
    let reply = request().body(body.clone()).expect(200).await;
    let length: usize = reply.header("inference-header-content-length").unwrap().parse().unwrap();
    let value: Value = serde_json::from_slice(&reply.body[..length]).unwrap();
    assert_eq!(value["outputs"][0]["parameters"]["binary_data_size"], 16);
    let values: Vec<f64> = reply.body[length..].as_chunks().0.iter().map(|word| f64::from_le_bytes(*word)).collect();
    assert_eq!(values, numbers(&predicted["predictions"]));
    assert_eq!(numbers(&value["outputs"][1]["data"]), numbers(&predicted["leverage"]));

    // Bodies that lie about their sizes.
    for cut in [0, 1, 31, 32 + 1] {
        let short = &body[..body.len() - cut.min(body.len())];
        if cut > 0 {
            request().body(short).refused(400, "bad_syntax").await;
        }
    }
    request().body([body.as_slice(), b"x"].concat()).refused(400, "bad_syntax").await;
    for length in ["-1", "x", "999999", "18446744073709551616"] {
        let lying = server.post("/v2/models/plane/infer").header("inference-header-content-length", length);
        lying.body(body.clone()).refused(400, "bad_syntax").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_inference_request_is_a_400_that_says_why() {
    let server = models().await;
    let tensor = json!({"name": "input", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]});
    let with = |member: &str, value: Value| {
        let mut tensor = tensor.clone();
        tensor[member] = value;
        json!({"inputs": [tensor]})
    };
    for asked in [
        json!([]),
        json!({}),
        json!({"inputs": []}),
        json!({"inputs": [7]}),
        with("datatype", json!("FP128")),
        with("shape", json!([-1, 2])),
        with("shape", json!([2, 2])),
        with("shape", json!([4_611_686_018_427_387_904_u64, 4])),
        with("shape", json!([1, 1, 2])),
        with("data", json!(["a", "b"])),
        with("data", json!([1, "b"])),
        with("data", json!({"a": 1})),
        with("data", Value::Null),
        with("parameters", json!({"binary_data_size": 16})),
        json!({"inputs": [tensor], "outputs": [{"name": "score"}]}),
        json!({"inputs": [tensor], "parameters": {"interval": "wide"}}),
        json!({"inputs": [tensor], "parameters": {"level": 2}}),
    ] {
        let refused = server.post("/v2/models/plane/infer").json(&asked).refused(400, "bad_syntax").await;
        assert!(!refused.json()["error"].as_str().unwrap().is_empty(), "{asked}");
    }
    let bare = server
        .post("/v2/models/plane/infer")
        .body("{\"inputs\":[{\"name\":\"i\",\"shape\":[1,2],\"datatype\":\"FP64\",\"data\":[NaN,1]}]}");
    let refused = bare.refused(400, "bad_syntax").await;
    assert!(refused.json()["error"].as_str().unwrap().contains("NaN"), "{}", refused.text());
    server.post("/v2/models/none/infer").json(&with("shape", json!([1, 2]))).refused(404, "model_not_found").await;
    server.post("/v2/models/plane/versions/9/infer").json(&with("shape", json!([1, 2]))).refused(404, "version_not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metadata_are_told() {
    let server = models().await;
    assert_eq!(server.get("/v2/health/live").expect(200).await.json(), json!({"live": true, "ready": true}));
    assert_eq!(server.get("/v2/health/ready").expect(200).await.json(), json!({"live": true, "ready": true}));
    assert_eq!(server.get("/v2").expect(200).await.json()["name"], "lsqd");
    assert_eq!(server.get("/v2/models/plane/ready").expect(200).await.json(), json!({"name": "plane", "ready": true}));
    assert_eq!(server.get("/v2/models/plane/versions/1/ready").expect(200).await.json()["ready"], true);
    server.get("/v2/models/none/ready").refused(404, "model_not_found").await;
    let plane = server.get("/v2/models/plane").expect(200).await.json();
    assert_eq!(plane["inputs"], json!([{"name": "input", "datatype": "FP64", "shape": [-1, 2]}]));
    assert_eq!((&plane["versions"], &plane["outputs"][0]["shape"]), (&json!(["1"]), &json!([-1])));
    let mixed = server.get("/v2/models/mixed/versions/1").expect(200).await.json();
    let kinds: Vec<&str> = mixed["inputs"].as_array().unwrap().iter().map(|input| input["datatype"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["INT64", "BYTES", "BOOL"]);
    assert_eq!(server.get("/v2/models/two").expect(200).await.json()["outputs"][0]["shape"], json!([-1, 2]));
}
