//! What a model is asked to predict beside what it was fitted on: shifts, refusals, leverage, and that every dialect counts.

use serde_json::{Value, json};

use crate::client::{Noise, Server};

/// Rows of a number, another number and a category, of which `shift` is added to the second number.
fn rows(count: usize, shift: f64, seed: u64) -> Vec<(f64, f64, &'static str)> {
    let mut noise = Noise(seed);
    (0..count)
        .map(|_| (10.0 * noise.next(), noise.next() + shift, ["east", "north", "west"][((noise.next() + 1.0) * 1.5) as usize]))
        .collect()
}

fn csv(rows: &[(f64, f64, &str)], target: bool) -> String {
    let mut text = if target { "a,b,region,y\n" } else { "a,b,region\n" }.to_owned();
    for (a, b, region) in rows {
        let y = 3.0 * a - b + if *region == "west" { 5.0 } else { 0.0 };
        text.push_str(&if target { format!("{a},{b},{region},{y}\n") } else { format!("{a},{b},{region}\n") });
    }
    text
}

fn question(rows: &[(f64, f64, &str)]) -> Value {
    json!({"rows": rows.iter().map(|(a, b, region)| json!({"a": a, "b": b, "region": region})).collect::<Vec<_>>()})
}

async fn fitted(server: &Server, specification: Value) {
    server.table("t", &csv(&rows(2000, 0.0, 1), true)).await;
    let mut asked = json!({"dataset": "t", "target": "y"});
    asked.as_object_mut().unwrap().extend(specification.as_object().unwrap().clone());
    server.fit("m", asked).await;
}

async fn inputs(server: &Server, model: &str) -> Value {
    server.get(format!("/v1/models/{model}/inputs")).expect(200).await.json()
}

fn states(inputs: &Value) -> Vec<&str> {
    inputs["features"].as_array().unwrap().iter().map(|feature| feature["state"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shift_is_seen_told_and_measured() {
    let server = Server::start().await;
    fitted(&server, json!({})).await;
    let fresh = inputs(&server, "m").await;
    assert_eq!((&fresh["watched"], &fresh["state"]), (&json!(true), &json!("too_few_rows")));
    assert_eq!(fresh["training"], json!({"rows": 2000, "sampled": 2000}));
    // As it was: two rows a request, so that each counts.
    let usual = rows(1200, 0.0, 2);
    for some in usual.chunks(2) {
        server.predict("m", question(some)).await;
    }
    let calm = inputs(&server, "m").await;
    assert_eq!(states(&calm), ["steady"; 3], "{calm}");
    for span in ["total", "window"] {
        assert_eq!((&calm[span]["rows"], &calm[span]["counted"]), (&json!(1200), &json!(1200)));
        let leverage = &calm["leverage"][span];
        assert_eq!(leverage["counted"], 1200);
        // Of rows like those of training, as many are farther out than any as chance has it.
        assert!(leverage["extrapolates"].as_f64().unwrap() < 0.01);
        for quantile in ["p50", "p90", "p99"] {
            let ratio = leverage[quantile].as_f64().unwrap() / calm["leverage"]["training"][quantile].as_f64().unwrap();
            assert!((0.8..1.25).contains(&ratio), "{quantile}: {ratio}");
        }
    }
    let bins = calm["features"][0]["bins"].as_array().unwrap();
    assert_eq!(bins.len(), 10);
    for of in ["training", "total", "window"] {
        let sum: f64 = bins.iter().map(|bin| bin[of].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{of}: {sum}");
    }
    let levels: Vec<&str> = calm["features"][2]["bins"].as_array().unwrap().iter().map(|bin| bin["level"].as_str().unwrap()).collect();
    assert_eq!(levels, ["east", "north", "west"]);
    // The second number moves by half of its range.
    for some in rows(1200, 1.0, 3).chunks(2) {
        server.predict("m", question(some)).await;
    }
    let shifted = inputs(&server, "m").await;
    assert_eq!(states(&shifted), ["steady", "shifted", "steady"], "{shifted}");
    assert_eq!(shifted["state"], "shifted");
    let figures = &shifted["features"][1]["window"];
    assert!(figures["psi"].as_f64() > figures["critical"].as_f64() && figures["psi_adjusted"].as_f64() > Some(0.1), "{figures}");
    let outside = figures["outside"].as_f64().unwrap();
    assert!((outside - 0.25).abs() < 0.03, "half of half of the rows: {outside}");
    // As an event, once, and as metrics.
    let events = server.get("/v1/models/m/events?after=0-0").header("accept", "application/json").expect(200).await.json();
    let told: Vec<&Value> = events["items"].as_array().unwrap().iter().filter(|event| event["event"] == "inputs").collect();
    assert_eq!(told.len(), 1, "{events}");
    assert_eq!((&told[0]["data"]["feature"], &told[0]["data"]["state"]), (&json!("b"), &json!("shifted")));
    let metrics = server.get("/metrics").expect(200).await.text();
    let value = |line: &str| {
        metrics.lines().find_map(|text| text.strip_prefix(line)).unwrap_or_else(|| panic!("{line}: {metrics}")).trim().parse::<f64>()
    };
    assert_eq!(value("lsqd_input_rows_total{model=\"m\",version=\"1\"}"), Ok(2400.0));
    assert_eq!(value("lsqd_inputs_shifted{model=\"m\",version=\"1\"}"), Ok(1.0));
    assert_eq!(value("lsqd_input_psi{model=\"m\",version=\"1\",feature=\"b\"}"), Ok(figures["psi_adjusted"].as_f64().unwrap()));
    assert_eq!(value("lsqd_input_psi_max{model=\"m\",version=\"1\"}"), Ok(figures["psi_adjusted"].as_f64().unwrap()));
    for line in metrics.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok() && name.starts_with(|first: char| first.is_ascii_alphabetic()), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_dialect_counts_and_rows_to_learn_from_do_not() {
    let server = Server::start().await;
    fitted(&server, json!({"features": ["a", "b"]})).await;
    let some = rows(2, 0.0, 4);
    server.predict("m", json!({"columns": ["a", "b"], "data": some.iter().map(|row| json!([row.0, row.1])).collect::<Vec<_>>()})).await;
    let text = some.iter().fold("a,b\n".to_owned(), |text, row| format!("{text}{},{}\n", row.0, row.1));
    server.post("/v1/models/m/predict").csv(&text).expect(200).await;
    let lines = some.iter().fold(String::new(), |text, row| format!("{text}{}\n", json!({"a": row.0, "b": row.1})));
    server.post("/v1/models/m/predict").ndjson(&lines).expect(200).await;
    let data: Vec<f64> = some.iter().flat_map(|row| [row.0, row.1]).collect();
    let tensors = json!({"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP64", "data": data}]});
    server.post("/v2/models/m/infer").json(&tensors).expect(200).await;
    server.post("/v1/models/m/predict?fields=predictions").csv(&text).expect(200).await;
    let now = inputs(&server, "m").await;
    assert_eq!(now["total"]["counted"], 10);
    // Of the four that did not ask for leverage none or some are of those for which it is worked out all the same.
    assert!((6..=8).contains(&now["leverage"]["total"]["counted"].as_u64().unwrap()), "{now}");
    server.learn("m", json!({"rows": [{"a": 1, "b": 1, "y": 2}]})).await;
    assert_eq!(inputs(&server, "m").await["total"]["counted"], 10);
    // A stream, of which each batch counts as a request does.
    let many = rows(20_000, 0.0, 8);
    let text = many.iter().fold("a,b\n".to_owned(), |text, row| format!("{text}{},{}\n", row.0, row.1));
    assert!(text.len() > 256 << 10);
    server.post("/v1/models/m/predict").csv(&text).expect(200).await;
    let now = inputs(&server, "m").await;
    assert_eq!(now["total"]["rows"], 20_010);
    let counted = now["total"]["counted"].as_u64().unwrap() - 10;
    assert!((2500..3500).contains(&counted), "{counted}");
    // Its first line is refused.
    server.post("/v1/models/m/predict").csv(&text.replacen("a,b\n", "a,b\n1,\n", 1)).expect(422).await;
    let now = inputs(&server, "m").await;
    assert!(now["total"]["refused_requests"].as_u64() >= Some(1), "{now}");
    assert_eq!(now["features"][1]["total"]["refused_cells"], json!({"missing": 1, "unseen": 0}));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unseen_or_missing_is_told_whether_it_is_refused_or_not() {
    let server = Server::start().await;
    fitted(&server, json!({"unseen": "baseline"})).await;
    let mut some = rows(400, 0.0, 5);
    some.iter_mut().step_by(4).for_each(|row| row.2 = "south");
    for some in some.chunks(2) {
        server.predict("m", question(some)).await;
    }
    let now = inputs(&server, "m").await;
    assert_eq!(now["features"][2]["window"]["unseen"], 0.25);
    assert_eq!(states(&now), ["steady", "steady", "shifted"], "{now}");
    assert_eq!(now["features"][0]["window"]["unseen"], Value::Null);
    // The default refuses; so does any model what is missing.
    fitted(&server, json!({})).await;
    for (row, status) in [
        (json!({"a": 1, "b": 0, "region": "south"}), 422),
        (json!({"a": 1, "region": "west"}), 422),
        (json!({"a": 1, "b": null, "region": "south"}), 422),
        (json!({"a": 1, "b": "x", "region": "west"}), 422),
        (json!({"a": 1, "b": 0, "region": "west"}), 200),
    ] {
        server.post("/v1/models/m/predict").json(&json!({"rows": [row]})).expect(status).await;
    }
    let now = inputs(&server, "m").await;
    assert_eq!((&now["version"], &now["total"]["refused_requests"], &now["total"]["rows"]), (&json!(2), &json!(4), &json!(1)));
    let cells = |feature: usize| &now["features"][feature]["total"]["refused_cells"];
    assert_eq!(*cells(0), json!({"missing": 0, "unseen": 0}));
    assert_eq!(*cells(1), json!({"missing": 2, "unseen": 0}));
    assert_eq!(*cells(2), json!({"missing": 0, "unseen": 2}));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_the_same_time_lose_no_counts() {
    let server = Server::start().await;
    fitted(&server, json!({})).await;
    let body = question(&rows(2, 0.0, 6));
    futures_util::future::join_all((0..16).map(async |_| {
        for _ in 0..25 {
            server.predict("m", body.clone()).await;
        }
    }))
    .await;
    let now = inputs(&server, "m").await;
    assert_eq!((&now["total"]["rows"], &now["total"]["counted"]), (&json!(800), &json!(800)));
    assert!(now["features"].as_array().unwrap().iter().all(|feature| feature["total"]["counted"] == 800));
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_can_be_off_and_says_so() {
    let server = Server::start_with(|config| config.watch_inputs = false).await;
    fitted(&server, json!({})).await;
    server.predict("m", question(&rows(3, 0.0, 7))).await;
    let now = inputs(&server, "m").await;
    assert_eq!((&now["watched"], &now["state"], &now["features"]), (&json!(false), &Value::Null, &json!([])));
    assert!(now["reason"].as_str().unwrap().contains("--watch-inputs"), "{now}");

    let mut server = Server::start().await;
    fitted(&server, json!({"watch_inputs": false})).await;
    server.predict("m", question(&rows(3, 0.0, 7))).await;
    assert!(inputs(&server, "m").await["reason"].as_str().unwrap().contains("watch_inputs"));
    // A version of its own is watched; after a restart its counts begin anew, and its reference is there.
    fitted(&server, json!({})).await;
    server.predict("m", question(&rows(3, 0.0, 7))).await;
    let before = inputs(&server, "m").await;
    assert_eq!(before["total"]["rows"], 3);
    server.restart().await;
    let after = inputs(&server, "m@2").await;
    assert_eq!((&after["total"]["rows"], &after["training"]), (&json!(0), &before["training"]));
    server.get("/v1/models/none/inputs").refused(404, "model_not_found").await;
}
