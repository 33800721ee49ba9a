//! Versions in traffic: splits that stick, shadows, comparison by labels, moves under load, and what survives a restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Noise, Reply, Server, agree, numbers};

const PATH: &str = "/v1/models/m/traffic";

/// A table of x, z and y = 1 + 2x + z/2 + noise.
fn table(rows: usize, seed: u64) -> Vec<[f64; 3]> {
    let mut noise = Noise(seed);
    (0..rows)
        .map(|_| {
            let (x, z) = (noise.next(), noise.next());
            // Three uniform deviates are near enough to a normal one.
            [x, z, 1.0 + 2.0 * x + 0.5 * z + 0.3 * (noise.next() + noise.next() + noise.next())]
        })
        .collect()
}

/// Version 1 knows x alone, version 2 knows x and z; aliases `champion` and `challenger`. `served` is version 1.
async fn start() -> Server {
    let server = Server::start().await;
    let lines: Vec<String> = table(200, 7).iter().map(|row| format!("{},{},{}", row[0], row[1], row[2])).collect();
    server.table("t", &format!("x,z,y\n{}\n", lines.join("\n"))).await;
    server.fit("m", json!({"dataset": "t", "target": "y", "features": ["x"]})).await;
    server.fit("m", json!({"dataset": "t", "target": "y", "features": ["x", "z"], "serve": false})).await;
    for (alias, version) in [("champion", 1), ("challenger", 2)] {
        server.put(format!("/v1/models/m/aliases/{alias}")).json(&json!({"version": version})).expect(201).await;
    }
    server
}

async fn split(server: &Server, body: Value) -> Reply {
    let reply = server.put(PATH).json(&body).send().await;
    assert!(matches!(reply.status, 200 | 201), "{}", reply.text());
    reply
}

async fn page(server: &Server) -> Value {
    server.get(PATH).expect(200).await.json()
}

fn rows(table: &[[f64; 3]]) -> Value {
    table.iter().map(|row| json!({"x": row[0], "z": row[1]})).collect()
}

fn labels(answer: &Value, table: &[[f64; 3]]) -> Value {
    let ids = answer["prediction_ids"].as_array().unwrap();
    let items: Vec<Value> = ids.iter().zip(table).map(|(id, row)| json!({"prediction_id": id, "value": row[2]})).collect();
    json!({"labels": items})
}

/// The arm that answers a user, by the header.
async fn arm_of(server: &Server, user: usize) -> String {
    let request =
        server.post("/v1/models/m/predict").header("x-user-id", format!("user-{user}")).json(&json!({"rows": [{"x": 1, "z": 2}]}));
    let reply = request.expect(200).await;
    let answer = reply.json();
    assert_eq!(reply.header("lsqd-arm"), answer["arm"].as_str());
    assert_eq!(answer["version"], if answer["arm"] == "champion" { 1 } else { 2 });
    answer["arm"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_sticks_to_its_arm_and_shares_are_kept() {
    let mut server = start().await;
    let full = |champion: f64, challenger: f64| json!({"split": {"champion": champion, "challenger": challenger}, "sticky": {"header": "X-User-Id"}});
    split(&server, full(80.0, 20.0)).await;
    let users = 800;
    let mut before = Vec::new();
    for user in 0..users {
        before.push(arm_of(&server, user).await);
    }
    let challenged = |arms: &[String]| arms.iter().filter(|arm| *arm == "challenger").count() as f64;
    // One degree of freedom: 10.83 is passed once in a thousand times.
    let expected = users as f64 * 0.2;
    let off = challenged(&before) - expected;
    assert!(off * off / expected + off * off / (users as f64 - expected) < 10.83, "{} of {users}", challenged(&before));
    server.restart().await;
    for user in (0..users).step_by(20) {
        assert_eq!(arm_of(&server, user).await, before[user], "user {user} after a restart");
    }
    // In every dialect, and by a key of the request's own.
    for user in (0..users).step_by(80) {
        let name = format!("user-{user}");
        for request in [
            server.post(format!("/v1/models/m/predict?key={}", name.replace('-', "%2d"))).json(&json!({"rows": [{"x": 1, "z": 2}]})),
            server.post("/v1/models/m/predict").header("x-user-id", &*name).csv("z,x\n2,1\n"),
            server.post("/v1/models/m/predict").header("x-user-id", &*name).ndjson("{\"x\":1,\"z\":2}\n"),
            server.post(format!("/v1/models/m/predict?key={name}")).header("x-user-id", "someone else").csv("z,x\n2,1\n"),
            server.post("/v2/models/m/infer").header("x-user-id", &*name).json(&json!({"inputs": [
                {"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [1]}, {"name": "z", "shape": [1, 1], "datatype": "FP64", "data": [2]},
            ]})),
        ] {
            assert_eq!(request.expect(200).await.header("lsqd-arm"), Some(before[user].as_str()), "user {user}");
        }
    }
    // An arm that grows keeps what it had.
    split(&server, full(60.0, 40.0)).await;
    let mut after = Vec::new();
    for (user, arm) in before.iter().enumerate() {
        after.push(arm_of(&server, user).await);
        assert!(arm == "champion" || after[user] == "challenger", "user {user} left the arm that grew");
    }
    assert!(challenged(&after) > challenged(&before) * 1.5);
    // Without a key the shares are followed closely.
    let mut taken = 0;
    for _ in 0..50 {
        let answer = server.predict("m", json!({"rows": [{"x": 1, "z": 2}]})).await;
        taken += i32::from(answer["arm"] == "challenger");
    }
    assert!((18..=22).contains(&taken), "{taken} of 50");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_with_a_version_is_not_shared_out() {
    let server = start().await;
    let before = server.predict("m", json!({"rows": [{"x": 1}]})).await;
    assert!(before.get("arm").is_none());
    split(&server, json!({"challenger": 1})).await;
    assert_eq!(server.predict("m", json!({"rows": [{"x": 1, "z": 2}]})).await["version"], 2);
    for name in ["m@1", "m@champion", "m@served"] {
        assert_eq!(server.predict(name, json!({"rows": [{"x": 1}]})).await, before, "{name}");
    }
    let reply = server
        .post("/v2/models/m/versions/1/infer")
        .json(&json!({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [1]}]}));
    assert_eq!(reply.expect(200).await.json()["model_version"], "1");
    assert_eq!(server.get("/v1/models/m").expect(200).await.json()["version"], 1, "reading a model is no traffic");
    server.post("/v1/models/m/predict").json(&json!({"rows": [{"x": 1, "z": 2}], "at": {"sequence": 0}})).refused(409, "conflict").await;
    server.delete(PATH).expect(204).await;
    assert_eq!(server.predict("m", json!({"rows": [{"x": 1}]})).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_compare_all_members_on_the_same_rows_once_and_for_good() {
    let mut server = start().await;
    let body = json!({"split": {"champion": 1}, "shadow": ["challenger"]});
    split(&server, body.clone()).await;
    let table = table(60, 11);
    // What each version said when the row was predicted.
    let said = |version: usize| {
        let (server, table) = (&server, &table);
        async move {
            let rows: Value =
                table.iter().map(|row| if version == 1 { json!({"x": row[0]}) } else { json!({"x": row[0], "z": row[1]}) }).collect();
            numbers(&server.predict(&format!("m@{version}"), json!({"rows": rows})).await["predictions"])
        }
    };
    let (champion, challenger) = (said(1).await, said(2).await);
    let answer = server.predict("m", json!({"rows": rows(&table), "remember": true})).await;
    assert_eq!((&answer["arm"], numbers(&answer["predictions"])), (&json!("champion"), champion.clone()));
    let labels = labels(&answer, &table);
    let learnt = server.post("/v1/models/m/labels").json(&labels).expect(200).await.json();
    assert_eq!((&learnt["version"], &learnt["accepted"]), (&json!(1), &json!(60)), "the version that answered learns");
    assert_eq!(server.get("/v1/models/m@2").expect(200).await.json()["sequence"], 0, "and no other");

    let page_now = page(&server).await;
    let squares = |predictions: &[f64]| predictions.iter().zip(&table).map(|(found, row)| (row[2] - found).powi(2)).collect::<Vec<_>>();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (own, other) = (squares(&champion), squares(&challenger));
    for (place, squares, predictions) in [(0, &own, &champion), (1, &other, &challenger)] {
        let arm = &page_now["arms"][place];
        let absolute: Vec<f64> = predictions.iter().zip(&table).map(|(found, row)| (row[2] - found).abs()).collect();
        assert_eq!(arm["labelled"], 60);
        agree(&[arm["rmse"].as_f64().unwrap(), arm["mae"].as_f64().unwrap()], &[mean(squares).sqrt(), mean(&absolute)], 12.0);
    }
    assert_eq!((&page_now["arms"][0]["requests"], &page_now["arms"][0]["rows"]), (&json!(1), &json!(60)));
    let shadow = &page_now["arms"][1];
    assert_eq!((&shadow["requests"], &shadow["rows"], &shadow["role"]), (&json!(0), &json!(60), &json!("shadow")));
    // The textbook's formula, written down once more.
    let differences: Vec<f64> = other.iter().zip(&own).map(|(other, own)| other - own).collect();
    let (n, center) = (60.0_f64, mean(&differences));
    let deviation = (differences.iter().map(|value| (value - center).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    let mixed = 1.0 + n * 0.008;
    let k = (mixed.sqrt() / 0.05).powf(2.0 / n);
    let half = deviation * ((n - 1.0) / n * (k - 1.0) / (1.0 - k / mixed)).sqrt();
    let found = &shadow["against_champion"];
    let limits = ["difference", "lower", "upper"].map(|figure| found["mse"][figure].as_f64().unwrap());
    agree(&limits, &[center, center - half, center + half], 9.0);
    agree(&[found["rmse"]["difference"].as_f64().unwrap()], &[mean(&other).sqrt() - mean(&own).sqrt()], 12.0);

    // A label counts once, however often it is sent, and all of it is there after a restart, to the last bit.
    server.post("/v1/models/m/labels").json(&labels).expect(200).await;
    assert_eq!(page(&server).await["arms"], page_now["arms"]);
    server.restart().await;
    assert_eq!(page(&server).await, page_now);
    // Another share is the same experiment; an end is one, and what was predicted in it does not count in the next.
    let late = server.predict("m", json!({"rows": rows(&table), "remember": true})).await;
    split(&server, json!({"split": {"champion": 3, "2": 1}})).await;
    assert_eq!(page(&server).await["arms"][1]["against_champion"], *found);
    server.delete(PATH).expect(204).await;
    split(&server, body).await;
    server.post("/v1/models/m/labels").json(&self::labels(&late, &table)).expect(200).await;
    let fresh = page(&server).await;
    assert_eq!((&fresh["arms"][0]["labelled"], &fresh["arms"][0]["requests"]), (&json!(0), &json!(0)));
    assert_eq!(fresh["arms"][1]["against_champion"]["mse"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_finds_the_better_version_and_says_so() {
    let server = start().await;
    split(&server, json!({"champion": 50, "challenger": 50})).await;
    let after = server.get("/v1/models/m/events").header("accept", "application/json").expect(200).await.json()["next"]
        .as_str()
        .unwrap()
        .to_owned();
    let table = table(3_000, 23);
    let mut decided = None;
    for (batch, part) in table.chunks(50).enumerate() {
        let answer = server.predict("m", json!({"rows": rows(part), "remember": true})).await;
        server.post("/v1/models/m/labels").json(&labels(&answer, part)).expect(200).await;
        let page = page(&server).await;
        let against = &page["arms"][1]["against_champion"];
        assert_eq!(against["labelled"], (batch + 1) * 50, "whoever answered, both are judged");
        assert_eq!(page["arms"][0]["against_champion"], Value::Null);
        if against["decided"] == true {
            decided = Some((batch + 1, against["better"].clone()));
            assert!(against["rmse"]["upper"].as_f64().unwrap() < 0.0 && against["mse"]["upper"].as_f64().unwrap() < 0.0);
            break;
        }
    }
    let (batches, better) = decided.expect("nothing was decided by 3,000 labels");
    assert_eq!(better, "challenger", "after {batches} batches");
    let events = server.get(format!("/v1/models/m/events?after={after}")).header("accept", "application/json").expect(200).await.json();
    let told: Vec<&Value> = events["items"].as_array().unwrap().iter().filter(|event| event["event"] == "comparison").collect();
    assert_eq!(told.last().unwrap()["data"], json!({"champion": "1", "challenger": "2", "target": 0, "better": "challenger"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_version_under_two_names_is_a_tie() {
    let server = start().await;
    server.put("/v1/models/m/aliases/challenger").json(&json!({"version": 1})).expect(200).await;
    split(&server, json!({"champion": 50, "challenger": 50})).await;
    for part in table(400, 29).chunks(100) {
        let answer =
            server.predict("m", json!({"rows": part.iter().map(|row| json!({"x": row[0]})).collect::<Value>(), "remember": true})).await;
        server.post("/v1/models/m/labels").json(&labels(&answer, part)).expect(200).await;
    }
    let page = page(&server).await;
    assert_eq!((&page["arms"][0]["labelled"], &page["arms"][1]["labelled"]), (&json!(400), &json!(400)));
    assert_eq!(page["arms"][1]["against_champion"]["decided"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_sees_every_row_and_answers_nobody() {
    let server = start().await;
    let plain = server.predict("m", json!({"rows": [{"x": 1}]})).await;
    split(&server, json!({"split": {"served": 100}, "shadow": ["challenger", "1"]})).await;
    let table = table(300, 31);
    for part in table.chunks(10) {
        let answer = server.predict("m", json!({"rows": rows(part)})).await;
        assert_eq!(answer["version"], 1);
    }
    // A row without what only the shadow takes is answered as ever, and the shadow does not see it.
    let mut answer = server.predict("m", json!({"rows": [{"x": 1}]})).await;
    assert_eq!(answer.as_object_mut().unwrap().remove("arm"), Some(json!("served")));
    assert_eq!(answer, plain);
    let mut found = Value::Null;
    for _ in 0..500 {
        found = page(&server).await;
        if found["arms"][2]["rows"] == 301 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (own, shadow, twin) = (&found["arms"][0], &found["arms"][1], &found["arms"][2]);
    assert_eq!((&own["rows"], &own["requests"], &own["share"]), (&json!(301), &json!(31), &json!(1.0)));
    assert_eq!(
        (&shadow["rows"], &shadow["unseen"], &shadow["dropped"], &shadow["requests"]),
        (&json!(300), &json!(1), &json!(0), &json!(0))
    );
    assert_eq!((&twin["rows"], &twin["disagreement"]["rms"]), (&json!(301), &json!(0.0)));
    // Version 2 adds what z is worth: about a half of it, of uniform z the root of 1/12.
    let rms = shadow["disagreement"]["rms"].as_f64().unwrap();
    assert!((0.2..0.4).contains(&rms), "{rms}");
    // A client of tensors, which knows the arm's features alone, is answered too.
    let tensors = json!({"inputs": [{"name": "input", "shape": [2, 1], "datatype": "FP64", "data": [1, 1]}]});
    let inferred = server.post("/v2/models/m/infer").json(&tensors).expect(200).await.json();
    assert_eq!((&inferred["parameters"]["arm"], &inferred["outputs"][0]["data"][0]), (&json!("served"), &plain["predictions"][0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_too_many_for_the_shadows_are_dropped_counted_and_answered() {
    let server = start().await;
    split(&server, json!({"split": {"served": 1}, "shadow": ["1"]})).await;
    // With their answers more cells than may wait.
    let rows = 2_200_000_usize;
    let head = json!({
        "inputs": [{"name": "x", "shape": [rows, 1], "datatype": "FP32", "parameters": {"binary_data_size": rows * 4}}],
        "outputs": [{"name": "predict", "parameters": {"binary_data": true}}],
    });
    let head = head.to_string();
    let mut body = head.clone().into_bytes();
    body.resize(head.len() + rows * 4, 0);
    let request = server.post("/v2/models/m/infer").header("inference-header-content-length", head.len().to_string()).body(body);
    let reply = request.expect(200).await;
    assert_eq!((reply.header("lsqd-arm"), reply.body.len() > rows * 8), (Some("served"), true));
    let page = page(&server).await;
    let (own, shadow) = (&page["arms"][0], &page["arms"][1]);
    assert_eq!((&own["rows"], &shadow["rows"], &shadow["dropped"]), (&json!(rows), &json!(0), &json!(rows)));
    // What waits again is seen again.
    server.predict("m", json!({"rows": [{"x": 1}]})).await;
    for _ in 0..500 {
        if self::page(&server).await["arms"][1]["rows"] == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the shadow sees nothing any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_answered_by_one_arm_and_seen_by_the_shadows() {
    let server = start().await;
    split(&server, json!({"split": {"champion": 50, "challenger": 50}, "shadow": ["served"]})).await;
    let table = table(20_000, 43);
    let lines: Vec<String> = table.iter().map(|row| format!("{},{}", row[0], row[1])).collect();
    let mut versions = std::collections::BTreeSet::new();
    for turn in 0..2 {
        let request = server.post("/v1/models/m/predict?fields=predictions,version").csv(&format!("x,z\n{}\n", lines.join("\n")));
        let reply = request.expect(200).await;
        let version = reply.header("lsqd-version-sequence").unwrap().split('-').next().unwrap().to_owned();
        assert_eq!(reply.header("lsqd-arm"), Some(if version == "1" { "champion" } else { "challenger" }), "turn {turn}");
        let text = reply.text();
        assert_eq!(text.lines().count(), 20_001);
        assert!(text.lines().skip(1).all(|line| line.split(',').nth(1) == Some(&version)), "{:?}", text.lines().nth(1));
        versions.insert(version);
    }
    assert_eq!(versions.len(), 2, "the turn did not change");
    for _ in 0..1000 {
        let shadow = page(&server).await["arms"][2].clone();
        if shadow["rows"].as_u64().unwrap() + shadow["dropped"].as_u64().unwrap() == 40_000 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{}", page(&server).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_does_not_learn_is_compared_all_the_same() {
    let server = start().await;
    server.fit("m", json!({"dataset": "t", "target": "y", "features": ["x"], "estimator": {"kind": "huber"}, "serve": false})).await;
    split(&server, json!({"split": {"3": 1}, "shadow": ["2"], "champion": "3"})).await;
    let table = table(40, 37);
    let answer = server.predict("m", json!({"rows": rows(&table), "remember": true})).await;
    assert_eq!(answer["version"], 3);
    let first = server.post("/v1/models/m/labels").json(&labels(&answer, &table)).expect(200).await.json();
    assert_eq!((&first["accepted"], &first["sequence"], &first["predictions"]), (&json!(0), &json!(0), &answer["predictions"]));
    assert_eq!(server.post("/v1/models/m/labels").json(&labels(&answer, &table)).expect(200).await.json(), first);
    let page = page(&server).await;
    assert_eq!((&page["arms"][0]["labelled"], &page["arms"][1]["labelled"]), (&json!(40), &json!(40)));
    server.delete(PATH).expect(204).await;
    server.post("/v1/models/m@3/predict").json(&json!({"rows": [{"x": 1}], "remember": true})).refused(409, "conflict").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_of_other_features_levels_and_several_targets_share_traffic() {
    let server = Server::start().await;
    server.table("a", "x,c,y,z\n1,p,1,5\n2,q,2.5,4\n3,p,2.75,4.5\n4,q,4,1\n5,p,4.5,0\n6,q,5,1\n").await;
    server.table("b", "x,c,y,z\n1,q,1,5\n2,r,2.5,4\n3,q,2.75,4.5\n4,r,4,1\n5,q,4.5,0\n6,r,5,1\n").await;
    for (dataset, features) in [("a", json!(["c", "x"])), ("b", json!(["x", "c"]))] {
        server.fit("m", json!({"dataset": dataset, "target": ["y", "z"], "features": features})).await;
    }
    split(&server, json!({"split": {"1": 1}, "shadow": ["2"]})).await;
    // q is known to both, under another index; p is not known to the shadow.
    let known = server.predict("m", json!({"rows": [{"x": 2, "c": "q"}, {"x": 2, "c": "p"}], "remember": true})).await;
    let shadow = server.predict("m@2", json!({"rows": [{"x": 2, "c": "q"}]})).await;
    let ids = known["prediction_ids"].as_array().unwrap();
    let items: Vec<Value> = ids.iter().map(|id| json!({"prediction_id": id, "value": {"y": 3, "z": 4}})).collect();
    server.post("/v1/models/m/labels").json(&json!({"labels": items})).expect(200).await;
    let page = page(&server).await;
    let (own, other) = (&page["arms"][0]["targets"], &page["arms"][1]["targets"]);
    assert_eq!(
        (&own[0]["target"], &own[0]["labelled"], &other[1]["target"], &other[1]["labelled"]),
        (&json!("y"), &json!(2), &json!("z"), &json!(1))
    );
    let error = (4.0 - shadow["predictions"][0]["z"].as_f64().unwrap()).abs();
    agree(&[other[1]["rmse"].as_f64().unwrap()], &[error], 12.0);
    assert_eq!(page["arms"][1]["against_champion"]["targets"][0]["labelled"], 1);
    assert_eq!(page["arms"][1]["unseen"], 1);
    // A level that the arm does not know is refused by the arm, whoever else knows it.
    let refused = server.post("/v1/models/m/predict").json(&json!({"rows": [{"x": 2, "c": "r"}]})).refused(422, "invalid_rows").await;
    assert_eq!(refused.pointers(), ["/rows/0/c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_split_is_named_and_changes_nothing() {
    let server = start().await;
    server.get(PATH).refused(404, "traffic_not_found").await;
    server.delete(PATH).refused(404, "traffic_not_found").await;
    server.put("/v1/models/none/traffic").json(&json!({"served": 1})).refused(404, "model_not_found").await;
    server.put("/v1/models/m@1/traffic").json(&json!({"served": 1})).refused(404, "model_not_found").await;
    server.fit("m", json!({"dataset": "t", "target": "x", "features": ["z"], "serve": false})).await;
    server.put(PATH).body("{").refused(400, "bad_syntax").await;
    for (body, pointers) in [
        (json!({}), vec![""]),
        (json!({"champion": 0, "challenger": -1}), vec!["/challenger", "/champion"]),
        (json!({"champion": "all"}), vec!["/champion"]),
        (json!({"champion": 90, "nobody": 10, "7": 1}), vec!["/7", "/nobody"]),
        (json!({"champion": 90, "latest": 10}), vec!["/latest"]),
        (json!({"champion": 90, "3": 10}), vec!["/3"]),
        (
            json!({"split": {"champion": 1}, "shadow": ["champion", "nobody", 3], "sticky": {"cookie": "a"}, "colour": 1}),
            vec!["/colour", "/shadow/0", "/shadow/2", "/sticky/cookie", "/sticky/header"],
        ),
        (json!({"split": {"champion": 1}, "shadow": ["nobody"]}), vec!["/shadow/0"]),
        (json!({"split": {"champion": 1}, "champion": "challenger"}), vec!["/champion"]),
        (json!({"split": {"champion": 1}, "sticky": {"header": "a b"}}), vec!["/sticky/header"]),
    ] {
        let mut found = server.put(PATH).json(&body).refused(422, "invalid_request").await.pointers();
        found.sort_unstable();
        assert_eq!(found, pointers, "{body}");
    }
    server.get(PATH).refused(404, "traffic_not_found").await;

    // What a split names stays; what it does not may go.
    let set = split(&server, json!({"champion": 90, "2": 10})).await;
    assert_eq!((set.status, &set.json()["split"]), (201, &json!({"champion": 90, "2": 10})));
    server.delete("/v1/models/m/aliases/champion").refused(409, "conflict").await;
    server.delete("/v1/models/m/aliases/challenger").expect(204).await;
    server.delete("/v1/models/m/versions/2").refused(409, "conflict").await;
    server.delete("/v1/models/m/versions/3").expect(204).await;
    // One who changes it must have seen it.
    let tag = set.etag();
    assert_eq!(server.get(PATH).expect(200).await.etag(), tag);
    server.put(PATH).header("if-match", "\"1-1\"").json(&json!({"served": 1})).refused(412, "precondition_failed").await;
    let second = server.put(PATH).header("if-match", &*tag).json(&json!({"champion": 50, "2": 50})).expect(200).await;
    assert_ne!(second.etag(), tag);
    server.delete(PATH).header("if-match", &*tag).refused(412, "precondition_failed").await;
    // A key has one effect.
    let keyed = async |body: Value| server.put(PATH).header("idempotency-key", "k").json(&body).send().await;
    let first = keyed(json!({"champion": 1, "2": 2})).await;
    split(&server, json!({"champion": 1})).await;
    let again = keyed(json!({"champion": 1, "2": 2})).await;
    assert!(!first.replayed() && again.replayed());
    assert_eq!((first.etag(), first.body), (again.etag(), again.body));
    assert_eq!(page(&server).await["split"], json!({"champion": 1}), "a repeat changed something");
    assert_eq!(keyed(json!({"champion": 2})).await.code(), "idempotency_mismatch");
    server.delete("/v1/models/m/versions/2").expect(204).await;
    server.delete("/v1/models/m").expect(204).await;
    server.get(PATH).refused(404, "model_not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_follows_its_alias_and_begins_anew() {
    let server = start().await;
    split(&server, json!({"split": {"champion": 1}, "shadow": ["challenger"]})).await;
    let table = table(20, 41);
    let answer = server.predict("m", json!({"rows": rows(&table), "remember": true})).await;
    server.post("/v1/models/m/labels").json(&labels(&answer, &table)).expect(200).await;
    assert_eq!(page(&server).await["arms"][1]["labelled"], 20);
    server.put("/v1/models/m/aliases/challenger").json(&json!({"version": 1, "sequence": 0})).expect(200).await;
    let arm = page(&server).await["arms"][1].clone();
    assert_eq!((&arm["version"], &arm["held_at"], &arm["labelled"], &arm["rows"]), (&json!(1), &json!(0), &json!(0), &json!(0)));
    server.put("/v1/models/m/aliases/champion").json(&json!({"version": 2})).expect(200).await;
    assert_eq!(server.predict("m", json!({"rows": rows(&table[..1])})).await["version"], 2);
}

/// When an alias was moved to what: a move takes hold between its two moments.
struct Move {
    begun: Instant,
    ended: Instant,
    version: u64,
}

/// Whether a version may have been behind the alias at some moment of a request.
fn was_served(moves: &[Move], begun: Instant, ended: Instant, version: u64) -> bool {
    moves.iter().enumerate().any(|(place, one)| {
        let until = moves.get(place + 1).map(|next| next.ended);
        one.version == version && one.begun <= ended && until.is_none_or(|until| begun <= until)
    })
}

#[test]
fn a_version_that_was_not_served_then_is_noticed() {
    let start = Instant::now();
    let at = |millis: u64| start + Duration::from_millis(millis);
    let moves = [(0, 1, 1), (10, 12, 2), (20, 22, 1)].map(|(begun, ended, version)| Move { begun: at(begun), ended: at(ended), version });
    for (begun, ended, version, wanted) in
        [(2, 5, 1, true), (2, 5, 2, false), (2, 10, 2, true), (13, 19, 1, false), (11, 13, 1, true), (23, 30, 2, false), (2, 30, 2, true)]
    {
        assert_eq!(was_served(&moves, at(begun), at(ended), version), wanted, "{begun}..{ended}: {version}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_alias_moves_a_thousand_times_under_load_and_every_reply_is_of_a_version_served_then() {
    let server = Arc::new(start().await);
    // With and without a split: `champion` moves, and `served` of another model with the same versions.
    server.fit("plain", json!({"dataset": "t", "target": "y", "features": ["x"]})).await;
    server.fit("plain", json!({"dataset": "t", "target": "y", "features": ["x"]})).await;
    split(&server, json!({"split": {"champion": 90, "challenger": 10}, "shadow": ["served"]})).await;
    let rows = json!({"rows": [{"x": 1, "z": 2}]});
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for reader in 0..4 {
        let (server, done, rows) = (server.clone(), done.clone(), rows.clone());
        readers.push(tokio::spawn(async move {
            let mut seen = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let (model, rows) = if reader % 2 == 0 { ("m", rows.clone()) } else { ("plain", json!({"rows": [{"x": 1}]})) };
                // A status other than 200 fails here.
                let answer = server.predict(model, rows).await;
                seen.push((model, begun, Instant::now(), answer["version"].as_u64().unwrap(), answer["arm"].as_str().map(str::to_owned)));
            }
            seen
        }));
    }
    let mut moves: BTreeMap<&str, Vec<Move>> = BTreeMap::new();
    let beginning = Instant::now() - Duration::from_secs(1);
    moves.insert("m", vec![Move { begun: beginning, ended: beginning, version: 1 }]);
    moves.insert("plain", vec![Move { begun: beginning, ended: beginning, version: 2 }]);
    for turn in 0..1_000_u64 {
        let (model, alias) = if turn % 2 == 0 { ("m", "champion") } else { ("plain", "served") };
        let version = turn / 2 % 2 + 1;
        let begun = Instant::now();
        server.put(format!("/v1/models/{model}/aliases/{alias}")).json(&json!({"version": version})).expect(200).await;
        moves.get_mut(model).unwrap().push(Move { begun, ended: Instant::now(), version });
    }
    done.store(true, Ordering::Relaxed);
    let (mut checked, mut versions) = (0, std::collections::BTreeSet::new());
    for reader in readers {
        for (model, begun, ended, version, arm) in reader.await.unwrap() {
            versions.insert((model, version));
            checked += 1;
            match arm.as_deref() {
                Some("challenger") => assert_eq!(version, 2),
                Some(_) | None => assert!(was_served(&moves[model], begun, ended, version), "{model}: version {version}"),
            }
        }
    }
    assert!(checked > 500 && versions.len() == 4, "{checked} requests saw {versions:?}");
}
