//! Learning that forgets, watches itself, and can be undone: windows, adaptive forgetting, drift, prequential figures, the past, unlearning.

use serde_json::{Value, json};

use crate::client::{Noise, Server, agree, coefficients, numbers};

type Row = [f64; 3];

/// A noisy plane of two features; its slopes turn over at row `turn`.
fn plane(rows: usize, turn: usize, seed: u64) -> Vec<Row> {
    let mut noise = Noise(seed);
    (0..rows)
        .map(|row| {
            let (a, b) = (10.0 + noise.next(), 100.0 * noise.next());
            let sign = if row < turn { 1.0 } else { -1.0 };
            [a, b, 5.0 + sign * (3.0 * a + 0.05 * b) + 0.2 * noise.next()]
        })
        .collect()
}

fn csv(rows: &[Row]) -> String {
    let mut text = "a,b,y\n".to_owned();
    rows.iter().for_each(|[a, b, y]| text.push_str(&format!("{a},{b},{y}\n")));
    text
}

/// A model fitted on the first rows, with these online settings.
async fn fitted(server: &Server, model: &str, rows: &[Row], specification: Value) -> Value {
    server.table(model, &csv(rows)).await;
    let mut asked = json!({"dataset": model, "target": "y"});
    asked.as_object_mut().unwrap().extend(specification.as_object().unwrap().clone());
    server.fit(model, asked).await
}

async fn learn(server: &Server, model: &str, rows: &[Row]) -> Value {
    server.post(format!("/v1/models/{model}/updates")).csv(&csv(rows)).expect(200).await.json()
}

async fn document(server: &Server, model: &str) -> Value {
    server.get(format!("/v1/models/{model}")).expect(200).await.json()
}

async fn online(server: &Server, model: &str) -> Value {
    server.get(format!("/v1/models/{model}/online")).expect(200).await.json()
}

fn same_fit(one: &Value, other: &Value, digits: f64) {
    for figure in ["estimate", "std_error", "lower", "upper"] {
        agree(&coefficients(one, figure), &coefficients(other, figure), digits);
    }
    for figure in ["residual_std", "r2", "f", "degrees_of_freedom", "observations"] {
        agree(&[one["fit"][figure].as_f64().unwrap()], &[other["fit"][figure].as_f64().unwrap()], digits);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_is_the_fit_of_its_rows() {
    let mut server = Server::start().await;
    let rows = plane(300, 1000, 3);
    for (model, estimator) in [("ols", json!("ols")), ("ridge", json!({"kind": "ridge", "penalty": 2.5}))] {
        let estimator = if estimator.is_string() { json!({"kind": "ols"}) } else { estimator };
        // The dataset holds more rows than the window: only its last ones count.
        fitted(&server, model, &rows[..60], json!({"estimator": estimator, "online": {"window": 40}})).await;
        for end in [60, 61, 75, 130, 300] {
            let known = document(&server, model).await["sequence"].as_u64().unwrap() as usize + 60;
            if end > known {
                learn(&server, model, &rows[known..end]).await;
            }
            let batch = fitted(&server, "batch", &rows[end - 40..end], json!({"estimator": estimator})).await;
            same_fit(&document(&server, model).await, &batch, 9.0);
            assert_eq!(online(&server, model).await["window_rows"], 40);
        }
        let before = document(&server, model).await;
        server.restart().await;
        assert_eq!(document(&server, model).await, before, "the same bits after a restart");
    }
    // A window that the dataset does not fill yet.
    fitted(&server, "growing", &rows[..10], json!({"online": {"window": 30}})).await;
    learn(&server, "growing", &rows[10..25]).await;
    same_fit(&document(&server, "growing").await, &fitted(&server, "batch", &rows[..25], json!({})).await, 10.0);
    learn(&server, "growing", &rows[25..45]).await;
    same_fit(&document(&server, "growing").await, &fitted(&server, "batch", &rows[15..45], json!({})).await, 9.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn prequential_figures_are_those_of_the_replies() {
    let server = Server::start().await;
    let rows = plane(1500, 10_000, 5);
    fitted(&server, "m", &rows[..50], json!({})).await;
    let (mut errors, mut observed) = (Vec::new(), Vec::new());
    for chunk in rows[50..].chunks(70) {
        errors.extend(numbers(&learn(&server, "m", chunk).await["errors"]));
        observed.extend(chunk.iter().map(|row| row[2]));
    }
    let figures = online(&server, "m").await;
    let check = |figures: &Value, errors: &[f64], observed: &[f64]| {
        let n = errors.len() as f64;
        let mean = observed.iter().sum::<f64>() / n;
        let squares: f64 = errors.iter().map(|error| error * error).sum();
        let spread: f64 = observed.iter().map(|value| (value - mean).powi(2)).sum();
        assert_eq!(figures["rows"], errors.len());
        let mae = errors.iter().map(|error| error.abs()).sum::<f64>() / n;
        agree(&[figures["mae"].as_f64().unwrap(), figures["rmse"].as_f64().unwrap()], &[mae, (squares / n).sqrt()], 11.0);
        agree(&[figures["r2"].as_f64().unwrap()], &[1.0 - squares / spread], 11.0);
        let share = figures["coverage"]["share"].as_f64().unwrap();
        assert!((0.93..=1.0).contains(&share), "the noise is uniform: its 95% intervals cover no less: {share}");
    };
    let prequential = &figures["prequential"];
    check(prequential, &errors, &observed);
    let latest = usize::try_from(prequential["window"]["rows"].as_u64().unwrap()).unwrap();
    assert!((1000..=1100).contains(&latest));
    check(&prequential["window"], &errors[errors.len() - latest..], &observed[observed.len() - latest..]);
    let path = &figures["path"];
    let points = path["sequences"].as_array().unwrap();
    assert!((32..=64).contains(&points.len()));
    assert_eq!(path["coefficients"].as_object().unwrap().len(), 3);
    assert!(path["coefficients"].as_object().unwrap().values().all(|list| list.as_array().unwrap().len() == points.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_break_is_found_and_each_action_does_what_it_says() {
    let server = Server::start().await;
    let rows = plane(1400, 700, 11);
    let mut rmse = std::collections::BTreeMap::new();
    for (model, watch) in [
        ("warn", json!({"detector": "adwin", "action": "warn"})),
        ("reset", json!({"detector": "adwin", "action": "reset"})),
        ("hinkley", json!({"detector": "page_hinkley", "action": "reset", "threshold": 30})),
    ] {
        fitted(&server, model, &rows[..100], json!({"online": {"drift": watch}})).await;
        learn(&server, model, &rows[100..700]).await;
        assert_eq!(online(&server, model).await["drift"]["found"], 0, "{model}: a false alarm");
        for chunk in rows[700..900].chunks(10) {
            learn(&server, model, chunk).await;
        }
        let drift = online(&server, model).await["drift"].clone();
        assert!(drift["found"].as_u64().unwrap() >= 1, "{model}: {drift}");
        let first = &drift["marks"][0];
        let sequence = first["sequence"].as_u64().unwrap();
        assert!((601..=664).contains(&sequence), "{model} found the break of row 601 at {sequence}");
        let errors = numbers(&learn(&server, model, &rows[900..]).await["errors"]);
        rmse.insert(model, (errors.iter().map(|error| error * error).sum::<f64>() / errors.len() as f64).sqrt());
    }
    // The noise has a standard deviation of 0.115.
    assert!(rmse["warn"] > 5.0, "{rmse:?}");
    assert!(rmse["reset"] < 0.2 && rmse["hinkley"] < 0.2, "{rmse:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refit_is_a_new_version_on_the_rows_since_the_break() {
    let mut server = Server::start().await;
    let rows = plane(900, 400, 13);
    fitted(&server, "m", &rows[..100], json!({"online": {"drift": {"action": "refit"}}})).await;
    learn(&server, "m", &rows[100..400]).await;
    for chunk in rows[400..600].chunks(10) {
        server.post("/v1/models/m@1/updates").csv(&csv(chunk)).expect(200).await;
    }
    let mut served = Value::Null;
    for _ in 0..500 {
        served = document(&server, "m").await;
        if served["version"] != 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let refit = &served["refit"];
    assert_eq!(refit["version"], 1, "{served}");
    let (first, last) = (refit["first_sequence"].as_u64().unwrap() as usize, refit["last_sequence"].as_u64().unwrap() as usize);
    assert!(first >= 290 && last >= first);
    let batch = fitted(&server, "batch", &rows[99 + first..100 + last], json!({})).await;
    let refitted = server.get(format!("/v1/models/m/versions/{}", served["version"])).expect(200).await.json();
    if refitted["sequence"] == 0 {
        same_fit(&refitted, &batch, 12.0);
    }
    server.restart().await;
    assert_eq!(document(&server, "m").await["refit"], *refit);
    server.get(format!("/v1/models/m/versions/{}/diagnostics", served["version"])).refused(409, "conflict").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn adaptive_forgetting_follows_a_break_and_is_quiet_without_one() {
    let server = Server::start().await;
    let rows = plane(1200, 600, 17);
    fitted(&server, "m", &rows[..100], json!({"online": {"adaptive": true}})).await;
    fitted(&server, "plain", &rows[..100], json!({})).await;
    for model in ["m", "plain"] {
        learn(&server, model, &rows[100..600]).await;
    }
    let quiet = online(&server, "m").await;
    assert!(quiet["forgetting_factor"].as_f64().unwrap() > 0.99, "{quiet}");
    assert!(quiet["effective_rows"].as_f64().unwrap() > 300.0);
    let mut rmse = Vec::new();
    for model in ["m", "plain"] {
        learn(&server, model, &rows[600..700]).await;
        let errors = numbers(&learn(&server, model, &rows[700..]).await["errors"]);
        rmse.push((errors.iter().map(|error| error * error).sum::<f64>() / errors.len() as f64).sqrt());
    }
    assert!(rmse[0] < 0.2 && rmse[1] > 5.0, "{rmse:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unlearnt_was_never_seen() {
    let mut server = Server::start().await;
    let rows = plane(200, 1000, 19);
    let wild = [9.0, -300.0, 1e4];
    let place = 130;
    for (model, settings) in [
        ("plain", json!({})),
        ("forgetful", json!({"online": {"forgetting_factor": 0.97}})),
        ("window", json!({"online": {"window": 50}})),
        ("watched", json!({"online": {"drift": {"action": "reset"}, "adaptive": true}})),
    ] {
        fitted(&server, model, &rows[..60], settings.clone()).await;
        fitted(&server, &format!("{model}-never"), &rows[..60], settings).await;
        let mut with = rows[60..].to_vec();
        with.insert(place - 60, wild);
        for chunk in with.chunks(9) {
            learn(&server, model, chunk).await;
        }
        for chunk in rows[60..].chunks(13) {
            learn(&server, &format!("{model}-never"), chunk).await;
        }
        let sequence = place - 60 + 1;
        let path = format!("/v1/models/{model}/updates/{sequence}");
        let erased = server.delete(path.clone()).expect(200).await.json();
        assert_eq!((&erased["erased"], &erased["sequence"]), (&json!(sequence), &json!(141)));
        let never = document(&server, &format!("{model}-never")).await;
        same_fit(&document(&server, model).await, &never, 9.0);
        let figures =
            |figures: Value| (figures["prequential"].clone(), figures["drift"]["found"].clone(), figures["effective_rows"].clone());
        let (own, others) = (online(&server, model).await, online(&server, &format!("{model}-never")).await);
        assert_eq!(own["log"]["erased"], 1);
        assert_eq!(figures(own).0["rows"], figures(others.clone()).0["rows"]);
        server.delete(path.clone()).refused(409, "conflict").await;
        server.delete(format!("/v1/models/{model}/updates/142")).refused(404, "update_not_found").await;
        server.delete(format!("/v1/models/{model}/updates/0")).refused(404, "update_not_found").await;
        server.restart().await;
        same_fit(&document(&server, model).await, &never, 9.0);
        // It learns on as if nothing had been.
        learn(&server, model, &rows[..20]).await;
        learn(&server, &format!("{model}-never"), &rows[..20]).await;
        same_fit(&document(&server, model).await, &document(&server, &format!("{model}-never")).await, 9.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_unlearnt_by_its_id_and_stays_unlearnt() {
    let server = Server::start().await;
    fitted(&server, "m", &plane(30, 100, 23), json!({})).await;
    let before = document(&server, "m").await;
    let row = json!({"rows": [{"_id": "sale/17 a", "a": 10.5, "b": 4.0, "y": 30.25}]});
    server.learn("m", row.clone()).await;
    server.delete("/v1/models/m/updates/by-id/none").refused(404, "update_not_found").await;
    let erased = server.delete("/v1/models/m/updates/by-id/sale%2F17%20a").expect(200).await.json();
    assert_eq!(erased["erased"], 1);
    let after = document(&server, "m").await;
    assert_eq!((&after["coefficients"], &after["fit"]), (&before["coefficients"], &before["fit"]));
    let again = server.learn("m", row).await;
    assert_eq!((&again["accepted"], &again["sequence"], &again["predictions"]), (&json!(0), &json!(1), &json!([null])));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_answers_as_it_did() {
    let mut server = Server::start().await;
    let rows = plane(25_000, 100_000, 29);
    fitted(&server, "m", &rows[..20], json!({"online": {"forgetting_factor": 0.999}})).await;
    let question = json!({"rows": [{"a": 11.0, "b": -3.0}]});
    let mut then = vec![(0, server.predict("m", question.clone()).await)];
    for chunk in rows[20..].chunks(3_571) {
        learn(&server, "m", chunk).await;
        let answer = server.predict("m", question.clone()).await;
        then.push((answer["sequence"].as_u64().unwrap(), answer));
    }
    for restarted in [false, true] {
        if restarted {
            server.restart().await;
        }
        for (sequence, answer) in &then {
            let mut asked = question.clone();
            asked["at"] = json!({"sequence": sequence});
            assert_eq!(&server.predict("m", asked).await, answer);
        }
    }
    let last = then.last().unwrap().0;
    let mut asked = question.clone();
    asked["at"] = json!({"sequence": last + 1});
    server.post("/v1/models/m/predict").json(&asked).refused(422, "invalid_request").await;
    let lines = server.post("/v1/models/m/predict?sequence=3571").ndjson("{\"a\":11,\"b\":-3}\n").expect(200).await;
    assert_eq!(lines.header("lsqd-version-sequence"), Some("1-3571"));

    // An alias that holds it there, and a rollback of the served one.
    let place = server.put("/v1/models/m/aliases/stable").json(&json!({"version": 1, "sequence": 3571})).expect(201).await.json();
    assert_eq!(place["sequence"], 3571);
    server.put("/v1/models/m/aliases/none").json(&json!({"version": 1, "sequence": last + 1})).refused(422, "invalid_request").await;
    for restarted in [false, true] {
        if restarted {
            server.restart().await;
        }
        assert_eq!(server.predict("m@stable", question.clone()).await, then[1].1);
        server.post("/v1/models/m@stable/updates").csv(&csv(&rows[..1])).refused(409, "conflict").await;
    }
    server.put("/v1/models/m/aliases/served").json(&json!({"version": 1, "sequence": 3571})).expect(200).await;
    assert_eq!(server.predict("m", question.clone()).await, then[1].1);
    server.put("/v1/models/m/aliases/served").json(&json!({"version": 1})).expect(200).await;
    assert_eq!(server.predict("m", question.clone()).await, then.last().unwrap().1);

    // What is unlearnt is gone from the past too, and from what is held.
    server.delete("/v1/models/m/updates/2000").expect(200).await;
    let held = server.predict("m@stable", question.clone()).await;
    let mut asked = question.clone();
    asked["at"] = json!({"sequence": 3571});
    assert_eq!(server.predict("m", asked).await["predictions"], held["predictions"]);
    assert_ne!(held["predictions"], then[1].1["predictions"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_lets_go_of_the_log_and_says_so() {
    let mut server = Server::start().await;
    let rows = plane(25_000, 100_000, 31);
    fitted(&server, "m", &rows[..20], json!({"online": {"retention": {"rows": 1000}}})).await;
    for chunk in rows[20..].chunks(900) {
        learn(&server, "m", chunk).await;
    }
    let before = document(&server, "m").await;
    let first = online(&server, "m").await["log"]["first_sequence"].as_u64().unwrap();
    assert!(first > 15_000, "{first}");
    server.post("/v1/models/m/predict").json(&json!({"rows": [{"a": 1, "b": 1}], "at": {"sequence": 5}})).refused(409, "conflict").await;
    server.delete("/v1/models/m/updates/5").refused(409, "conflict").await;
    server.delete(format!("/v1/models/m/updates/{}", first - 1)).refused(409, "conflict").await;
    server.restart().await;
    assert_eq!(document(&server, "m").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_told_by_polling_and_as_a_stream() {
    let server = Server::start().await;
    fitted(&server, "m", &plane(30, 100, 37), json!({})).await;
    let poll = async |after: &str| {
        let path = format!("/v1/models/m/events?after={after}");
        server.get(path).header("accept", "application/json").expect(200).await.json()
    };
    let start = server.get("/v1/models/m/events").header("accept", "application/json").expect(200).await.json();
    assert_eq!(start["items"], json!([]));
    learn(&server, "m", &plane(3, 100, 1)).await;
    server.put("/v1/models/m/aliases/best").json(&json!({"version": 1})).expect(201).await;
    server.delete("/v1/models/m/updates/2").expect(200).await;
    let told = poll(start["next"].as_str().unwrap()).await;
    let kinds: Vec<&str> = told["items"].as_array().unwrap().iter().map(|item| item["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["updates", "alias", "erased"]);
    assert_eq!((&told["items"][0]["data"]["first_sequence"], &told["items"][0]["data"]["sequence"]), (&json!(1), &json!(3)));
    assert_eq!(poll("1-1").await["gap"], true);

    // The stream gives what was missed first, and ends with the model.
    let path = format!("/v1/models/m/events?after={}", start["next"].as_str().unwrap());
    let (stream, ()) = tokio::join!(server.get(path).expect(200), async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        learn(&server, "m", &plane(2, 100, 2)).await;
        server.delete("/v1/models/m").expect(204).await;
    });
    let text = stream.text();
    let named: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(named, ["updates", "alias", "erased", "updates", "deleted"], "{text}");
    assert!(text.starts_with(&format!("id: {}\n", told["items"][0]["id"].as_str().unwrap())));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_online_is_refused() {
    let server = Server::start().await;
    server.table("t", &csv(&plane(30, 100, 41))).await;
    for (online, pointer) in [
        (json!({"window": 1}), "/online/window"),
        (json!({"window": 10, "forgetting_factor": 0.9}), "/online"),
        (json!({"window": 10, "adaptive": true}), "/online"),
        (json!({"drift": {"detector": "guess"}}), "/online/drift/detector"),
        (json!({"drift": {"action": "panic"}}), "/online/drift/action"),
        (json!({"drift": {"delta": 2}}), "/online/drift/delta"),
        (json!({"drift": {"detector": "page_hinkley", "threshold": 0}}), "/online/drift/threshold"),
        (json!({"retention": {}}), "/online/retention"),
        (json!({"retention": {"rows": 0}}), "/online/retention/rows"),
        (json!({"memory": 3}), "/online/memory"),
    ] {
        let asked = json!({"dataset": "t", "target": "y", "online": online});
        let refused = server.post("/v1/models/m/fits").json(&asked).refused(422, "invalid_request").await;
        assert_eq!(refused.pointers(), [pointer], "{online}");
    }
    let asked = json!({"dataset": "t", "target": "y", "estimator": {"kind": "gradient"}, "online": {"window": 10}});
    assert_eq!(server.post("/v1/models/m/fits").json(&asked).refused(422, "invalid_request").await.pointers(), ["/online"]);
}
