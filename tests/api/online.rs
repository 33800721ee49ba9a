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
        let figure = |document: &Value| document["fit"][figure].as_f64();
        // Some estimators have no R² and no F.
        assert_eq!(figure(one).is_some(), figure(other).is_some());
        agree(figure(one).as_slice(), figure(other).as_slice(), digits);
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
    let mut server = Server::start().await;
    let rows = plane(1500, 10_000, 5);
    fitted(&server, "m", &rows[..50], json!({})).await;
    let (mut errors, mut observed) = (Vec::new(), Vec::new());
    for chunk in rows[50..].chunks(70) {
        errors.extend(numbers(&learn(&server, "m", chunk).await["errors"]));
        observed.extend(chunk.iter().map(|row| row[2]));
    }
    let figures = online(&server, "m").await;
    server.restart().await;
    assert_eq!(online(&server, "m").await, figures, "the same bits when the log is replayed");
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

async fn inputs(server: &Server, model: &str) -> Value {
    server.get(format!("/v1/models/{model}/inputs")).expect(200).await.json()
}

/// A table of two features, a category, a weight and a key, with some cells missing.
fn orders(rows: &[Row]) -> Vec<String> {
    let line = |(place, [a, b, y]): (usize, &Row)| {
        let region = ["north", "south", "west"][place % 3];
        let a = if place % 41 == 7 { String::new() } else { a.to_string() };
        format!("customer {},{a},{b},{region},{},{y}\n", place % 50, 1 + place % 4)
    };
    rows.iter().enumerate().map(line).collect()
}

fn table(lines: &[String]) -> String {
    std::iter::once("customer,a,b,region,w,y\n".to_owned()).chain(lines.iter().cloned()).collect()
}

fn without(lines: &[String], gone: &[usize]) -> Vec<String> {
    lines.iter().enumerate().filter(|(place, _)| !gone.contains(place)).map(|(_, line)| line.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_row_that_is_unlearnt_was_never_seen() {
    let mut server = Server::start().await;
    let lines = orders(&plane(160, 1000, 43));
    let later = plane(90, 1000, 44);
    let learn = async |server: &Server, model: &str, rows: &[Row]| {
        let weighted = document(server, model).await["weights"].is_string();
        let row = |(place, [a, b, y]): (usize, &Row)| {
            let mut row = json!({"a": a, "b": b, "region": if place % 2 == 0 { "west" } else { "north" }, "y": y});
            if weighted {
                row["w"] = json!(1 + place % 3);
            }
            row
        };
        server.learn(model, json!({"rows": rows.iter().enumerate().map(row).collect::<Vec<_>>()})).await;
    };
    let features = json!(["a", "b", "region"]);
    let kinds = [
        ("plain", json!({})),
        ("weighted", json!({"weights": "w", "validation": {"kind": "loo"}})),
        ("forgetful", json!({"online": {"forgetting_factor": 0.97}, "validation": {"kind": "kfold", "folds": 4, "seed": 3}})),
        ("window", json!({"online": {"window": 50}, "weights": "w"})),
        ("ridge", json!({"estimator": {"kind": "ridge", "penalty": 2.5}, "online": {"drift": {"action": "reset"}, "adaptive": true}})),
        ("clustered", json!({"covariance": {"kind": "cluster", "column": "customer"}})),
        ("robust", json!({"estimator": {"kind": "huber", "threshold": 1.345}})),
        ("sparse", json!({"estimator": {"kind": "lasso", "penalty": 0.05}})),
    ];
    // Of the window, the first of the two lies in it and the other before it.
    let gone = [131, 17];
    for (model, settings) in &kinds {
        let mut asked = json!({"target": "y", "features": features});
        asked.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let learns = !matches!(*model, "robust" | "sparse");
        let (with, never) = (format!("{model}-with"), format!("{model}-never"));
        for (name, lines) in [(&with, lines[..140].to_vec()), (&never, without(&lines[..140], &gone))] {
            server.table(name, &table(&lines)).await;
            asked["dataset"] = json!(name);
            server.fit(name, asked.clone()).await;
            if learns {
                learn(&server, name, &later[..60]).await;
            }
        }
        // What is appended after the fit is not known to it, neither before nor after.
        server.post(format!("/v1/datasets/{with}/rows")).csv(&table(&lines[140..])).expect(200).await;
        let sequence = document(&server, &with).await["sequence"].clone();
        for row in gone {
            let erased = server.delete(format!("/v1/datasets/{with}/rows/{row}")).expect(200).await.json();
            // What lies before a window was never in it.
            let knows = *model != "window" || row == 131;
            let unlearnt = if knows { json!([{"model": with, "version": 1, "sequence": sequence}]) } else { json!([]) };
            assert_eq!((&erased["erased"], &erased["unlearnt"], &erased["kept"]), (&json!(1), &unlearnt, &json!([])), "{model}");
        }
        for restarted in [false, true] {
            if restarted {
                let before = (document(&server, &with).await, online(&server, &with).await);
                server.restart().await;
                assert_eq!((document(&server, &with).await, online(&server, &with).await), before, "{model}: the same bits");
            }
            let (own, other) = (document(&server, &with).await, document(&server, &never).await);
            same_fit(&own, &other, 9.0);
            // What rows to predict are compared with is what is left, too: quantiles, levels, and the shares that are missing.
            let (own_inputs, other_inputs) = (inputs(&server, &with).await, inputs(&server, &never).await);
            assert_eq!(own_inputs["features"], other_inputs["features"], "{model}");
            assert_eq!((&own_inputs["training"], &own_inputs["watched"]), (&other_inputs["training"], &json!(true)), "{model}");
            if other["validation"].is_object() {
                agree(&[own["validation"]["mean"].as_f64().unwrap()], &[other["validation"]["mean"].as_f64().unwrap()], 9.0);
            }
            let condition = |document: &Value| document["fit"]["condition_number"].as_f64();
            agree(condition(&own).as_slice(), condition(&other).as_slice(), 7.0);
            if learns {
                let figures = |figures: Value| {
                    let figures = &figures["prequential"];
                    ["mae", "rmse", "r2"].map(|name| figures[name].as_f64().unwrap())
                };
                agree(&figures(online(&server, &with).await), &figures(online(&server, &never).await), 8.0);
                let question = json!({"rows": [{"a": 11.0, "b": 3.0, "region": "west"}], "at": {"sequence": 31}});
                let (own, other) = (server.predict(&with, question.clone()).await, server.predict(&never, question).await);
                agree(&numbers(&own["predictions"]), &numbers(&other["predictions"]), 9.0);
            }
        }
        if learns {
            learn(&server, &with, &later[60..]).await;
            learn(&server, &never, &later[60..]).await;
            same_fit(&document(&server, &with).await, &document(&server, &never).await, 9.0);
        }
        let unlearnt = document(&server, &with).await["unlearnt"].clone();
        assert_eq!((&unlearnt["rows"], &unlearnt["kept"]), (&json!(if *model == "window" { 1 } else { 2 }), &json!(0)));
    }
    // The table is as if the rows had never been in it, and what describes it too.
    let (set, rest) = ("plain-with", without(&lines, &gone));
    server.table("never", &table(&rest)).await;
    let rows = async |name: &str| server.get(format!("/v1/datasets/{name}/rows")).header("accept", "text/csv").expect(200).await.text();
    assert_eq!(rows(set).await, rows("never").await);
    let describe = async |name: &str| server.get(format!("/v1/datasets/{name}")).expect(200).await.json();
    let (own, never) = (describe(set).await, describe("never").await);
    assert_eq!((&own["rows"], &own["erased"], &never["erased"]), (&json!(158), &json!(2), &json!(0)));
    for (own, never) in own["columns"].as_array().unwrap().iter().zip(never["columns"].as_array().unwrap()) {
        for figure in ["name", "type", "missing", "distinct", "min", "max", "sample"] {
            assert_eq!(own[figure], never[figure], "{figure} of {}", own["name"]);
        }
        for figure in ["mean", "std"].into_iter().filter(|figure| never[*figure].is_number()) {
            agree(&[own[figure].as_f64().unwrap()], &[never[figure].as_f64().unwrap()], 12.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_erased_by_their_key_and_every_version_that_knew_them_is_named() {
    let server = Server::start().await;
    let lines = orders(&plane(120, 1000, 47));
    server.table("t", &table(&lines[..100])).await;
    let asked = json!({"dataset": "t", "target": "y", "features": ["a", "b"]});
    server.fit("first", asked.clone()).await;
    server
        .fit(
            "tuned",
            json!({"dataset": "t", "target": "y", "features": ["a", "b"],
        "prior": {"model": "first", "strength": {"kind": "information"}}}),
        )
        .await;
    server.post("/v1/datasets/t/rows").csv(&table(&lines[100..])).expect(200).await;
    server.fit("second", asked.clone()).await;
    server.table("other", &table(&lines)).await;
    server.fit("elsewhere", json!({"dataset": "other", "target": "y", "features": ["a", "b"]})).await;
    let elsewhere = document(&server, "elsewhere").await;

    let path = "/v1/datasets/t/rows?column=customer&value=customer%2013";
    let before = (document(&server, "first").await, document(&server, "second").await);
    let refused = server.delete(path).refused(409, "conflict").await;
    assert_eq!(refused.pointers(), ["/models/tuned/versions/1"]);
    assert_eq!((document(&server, "first").await, document(&server, "second").await), before, "nothing was changed");
    let erased = server.delete(format!("{path}&unable=keep")).expect(200).await;
    let tag = erased.header("etag").unwrap().to_owned();
    let erased = erased.json();
    // Rows 13, 63 and 113, of which the first fit knew two.
    assert_eq!((&erased["rows"], &erased["erased"]), (&json!(117), &json!(3)));
    let named = |list: &Value| list.as_array().unwrap().iter().map(|entry| entry["model"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(
        (named(&erased["unlearnt"]), named(&erased["kept"])),
        (vec!["first".to_owned(), "second".to_owned()], vec!["tuned".to_owned()])
    );
    let unlearnt = |document: Value| (document["unlearnt"]["rows"].clone(), document["unlearnt"]["kept"].clone());
    assert_eq!(unlearnt(document(&server, "first").await), (json!(2), json!(0)));
    assert_eq!(unlearnt(document(&server, "second").await), (json!(3), json!(0)));
    assert_eq!(unlearnt(document(&server, "tuned").await), (json!(0), json!(2)));
    assert!(document(&server, "tuned").await["warnings"].to_string().contains("still knows"));
    assert_eq!(document(&server, "elsewhere").await, elsewhere);
    server.table("never", &table(&without(&lines, &[13, 63, 113]))).await;
    same_fit(
        &document(&server, "second").await,
        &server.fit("never", json!({"dataset": "never", "target": "y", "features": ["a", "b"]})).await,
        10.0,
    );
    // The newest version's dataset is the one it stands on: its diagnostics are there still.
    server.get("/v1/models/second/versions/1/diagnostics").expect(200).await;

    server.delete(path).refused(404, "row_not_found").await;
    server.delete("/v1/datasets/t/rows/117?unable=keep").refused(404, "row_not_found").await;
    server.delete("/v1/datasets/none/rows/1").refused(404, "dataset_not_found").await;
    server.delete("/v1/datasets/t/rows?column=nobody&value=1").refused(422, "unknown_column").await;
    assert_eq!(
        server.delete("/v1/datasets/t/rows?unable=so").refused(422, "invalid_request").await.pointers(),
        ["/unable", "/column", "/value"]
    );
    server.delete("/v1/datasets/t/rows/0?unable=keep").header("if-match", "\"1-1\"").refused(412, "precondition_failed").await;
    server.delete("/v1/datasets/t/rows/0?unable=keep").header("if-match", tag).expect(200).await;
    // What is left would be no fit, and so it is not made; the row stays.
    server.table("few", "x,y\n1,2\n").await;
    server.fit("few", json!({"dataset": "few", "target": "y"})).await;
    server.delete("/v1/datasets/few/rows/0").refused(409, "conflict").await;
    assert_eq!(server.get("/v1/datasets/few").expect(200).await.json()["rows"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_to_an_erased_row_is_erased_wherever_it_is_kept() {
    let mut server = Server::start().await;
    fitted(&server, "m", &plane(30, 100, 53), json!({})).await;
    let event = |id: &str, a: f64| json!({"_id": id, "a": a, "b": 4.0, "y": 30.25});
    let send = async |server: &Server, key: &str, rows: Value| {
        server.post("/v1/models/m/updates").header("idempotency-key", key).json(&json!({"rows": rows})).expect(200).await.json()
    };
    let requests =
        [("one", json!([event("p", 10.5), event("q", 11.5)])), ("two", json!([event("r", 9.0), event("p", 10.5), event("s", 9.5)]))];
    let mut replies = Vec::new();
    for (key, rows) in &requests {
        replies.push(send(&server, key, rows.clone()).await);
    }
    assert_eq!(replies[1]["predictions"][1], replies[0]["predictions"][0], "a known row is answered as it was");
    let question = json!({"rows": [{"a": 10.25, "b": 7.0}], "remember": true});
    let id = server.predict("m", question).await["prediction_ids"][0].as_str().unwrap().to_owned();
    let label = json!({"labels": [{"prediction_id": id, "value": 33.5}]});
    let labelled =
        async |server: &Server| server.post("/v1/models/m/labels").header("idempotency-key", "three").json(&label).expect(200).await.json();
    assert_eq!(labelled(&server).await["sequence"], 5);

    server.delete("/v1/models/m/updates/by-id/p").expect(200).await;
    server.delete("/v1/models/m/updates/5").expect(200).await;
    for restarted in [false, true] {
        if restarted {
            server.restart().await;
        }
        for (place, erased) in [(0, 0), (1, 1)] {
            let again = send(&server, requests[place].0, requests[place].1.clone()).await;
            for list in ["predictions", "errors"] {
                let mut known = replies[place][list].clone();
                known[erased] = Value::Null;
                assert_eq!(again[list], known);
            }
            assert_eq!(again["accepted"], replies[place]["accepted"]);
        }
        assert_eq!(labelled(&server).await["predictions"], json!([null]), "by its key");
        let again = server.post("/v1/models/m/labels").json(&label).expect(200).await.json();
        assert_eq!((&again["accepted"], &again["predictions"], &again["errors"]), (&json!(0), &json!([null]), &json!([null])), "by its id");
        // Whose value it was is not known any more, so another one is no conflict either; it is not learnt.
        let other = json!({"labels": [{"prediction_id": id, "value": 1.0}]});
        assert_eq!(server.post("/v1/models/m/labels").json(&other).expect(200).await.json()["accepted"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_row_is_nowhere_in_the_file() {
    let server = Server::start().await;
    let mut lines = orders(&plane(60, 1000, 59));
    // A text, and numbers that no rounding makes of others.
    lines[21] = "nobody else,123.4567890123,-98.7654321098,only here,2,77.1234567891\n".to_owned();
    server.put("/v1/datasets/t").header("idempotency-key", "upload").csv(&table(&lines)).expect(201).await;
    let features = json!(["a", "b", "region"]);
    for model in ["plain", "window"] {
        let online = if model == "window" { json!({"window": 50}) } else { json!({}) };
        server.fit(model, json!({"dataset": "t", "target": "y", "features": features, "online": online})).await;
        server.learn(model, json!({"rows": [{"_id": "x", "a": 10.111222333444, "b": 3.0, "region": "west", "y": 9.111222333444}]})).await;
    }
    server.delete("/v1/datasets/t/rows/21").expect(200).await;
    server.delete("/v1/models/plain/updates/1").expect(200).await;
    server.delete("/v1/models/window/updates/1").expect(200).await;
    let read = server.bytes_of_the_database();
    for text in ["nobody else", "123.4567890123", "98.7654321098", "77.1234567891"] {
        assert!(!read.windows(text.len()).any(|window| window == text.as_bytes()), "{text}");
    }
    for number in [123.456_789_012_3_f64, -98.765_432_109_8, 77.123_456_789_1, 10.111_222_333_444, 9.111_222_333_444] {
        assert!(!read.windows(8).any(|window| window == number.to_le_bytes()), "{number}");
    }
    // The level's name is the design's, and stays until the next fit.
    let warnings = document(&server, "plain").await["warnings"].to_string();
    assert!(warnings.contains("region=only here"), "{warnings}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_made_anew_is_not_taken_for_the_one_that_was_deleted() {
    let server = Server::start().await;
    let rows = plane(40, 1000, 61);
    fitted(&server, "m", &rows[..30], json!({})).await;
    let tag = server.put("/v1/datasets/m").csv(&csv(&rows[..30])).expect(200).await.header("etag").unwrap().to_owned();
    server.delete("/v1/datasets/m").expect(204).await;
    let reply = server.put("/v1/datasets/m").csv(&csv(&rows)).expect(201).await;
    assert_ne!(reply.header("etag").unwrap().split('-').next(), tag.split('-').next());
    let before = document(&server, "m").await;
    let erased = server.delete("/v1/datasets/m/rows/3").expect(200).await.json();
    assert_eq!(erased["unlearnt"], json!([]), "it was fitted on another dataset of this name");
    assert_eq!(document(&server, "m").await, before);
    server.get("/v1/models/m/versions/1/diagnostics").refused(409, "conflict").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_how_a_model_fares_for_as_long_as_there_is_one() {
    let server = Server::start().await;
    let rows = plane(300, 1000, 67);
    server.table("t", &csv(&rows[..100])).await;
    server.fit("m%20%221%22", json!({"dataset": "t", "target": "y"})).await;
    let metric = async |name: &str| {
        let text = server.get("/metrics").expect(200).await.text();
        let start = format!("lsqd_model_{name}{{model=\"m \\\"1\\\"\"");
        text.lines().find(|line| line.starts_with(&start)).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
    };
    assert_eq!(metric("sequence").await, None, "it has not learnt yet");
    learn(&server, "m%20%221%22", &rows[100..]).await;
    let figures = online(&server, "m%20%221%22").await;
    let latest = &figures["prequential"]["window"];
    assert_eq!((metric("version").await, metric("sequence").await, metric("drifts").await), (Some(1.0), Some(200.0), Some(0.0)));
    assert_eq!(metric("effective_rows").await, Some(300.0));
    assert_eq!((metric("rmse").await, metric("coverage").await), (latest["rmse"].as_f64(), latest["coverage"]["share"].as_f64()));
    let text = server.get("/metrics").expect(200).await.text();
    assert!(text.lines().any(|line| line == "lsqd_models_left_out 0"), "{text}");
    server.delete("/v1/models/m%20%221%22").expect(204).await;
    assert_eq!(metric("sequence").await, None);
}
