//! Series through HTTP: what past values are, that a version remembers those that it needs, and forecasts of several steps.

use serde_json::{Value, json};

use crate::client::{Noise, Server, agree, coefficients, names, numbers};

/// Rows of a series with a column beside it: y_t = 3 + 0.6·y_{t−1} − 0.2·y_{t−3} + x_t + 0.5·x_{t−1} + noise.
fn rows(count: usize) -> Vec<[f64; 2]> {
    let mut noise = Noise(11);
    let mut rows: Vec<[f64; 2]> = Vec::new();
    for row in 0..count {
        let back = |lag: usize, column: usize| row.checked_sub(lag).map_or(0.0, |before| rows[before][column]);
        let x = noise.next();
        let y = 3.0 + 0.6 * back(1, 1) - 0.2 * back(3, 1) + x + 0.5 * back(1, 0) + 0.3 * noise.next();
        rows.push([x, y]);
    }
    rows
}

fn csv(rows: &[[f64; 2]]) -> String {
    let lines = rows.iter().enumerate().map(|(time, [x, y])| format!("{time},{x},{y}\n"));
    std::iter::once("time,x,y\n".to_owned()).chain(lines).collect()
}

/// x as it is, and past values of both.
fn features() -> Value {
    json!(["x", {"column": "y", "as": "lag", "lags": [1, 3]}, {"column": "x", "as": "lag", "lags": [1]}])
}

fn asked(dataset: &str) -> Value {
    json!({"dataset": dataset, "target": "y", "features": features()})
}

/// The same design with its past values written out by hand.
fn by_hand(rows: &[[f64; 2]]) -> String {
    let line = |row: usize| format!("{},{},{},{},{}\n", rows[row][0], rows[row - 1][1], rows[row - 3][1], rows[row - 1][0], rows[row][1]);
    std::iter::once("x,y1,y3,x1,y\n".to_owned()).chain((3..rows.len()).map(line)).collect()
}

async fn server(count: usize) -> (Server, Vec<[f64; 2]>) {
    let server = Server::start().await;
    let rows = rows(count);
    server.table("t", &csv(&rows)).await;
    (server, rows)
}

async fn forecast(server: &Server, model: &str, question: Value) -> Value {
    server.post(format!("/v1/models/{model}/forecast")).json(&question).expect(200).await.json()
}

async fn predicted(server: &Server, model: &str, rows: Value) -> Vec<f64> {
    numbers(&server.predict(model, json!({"rows": rows})).await["predictions"])
}

#[tokio::test(flavor = "multi_thread")]
async fn past_values_are_those_of_the_rows_before() {
    let (server, rows) = server(120).await;
    server.table("hand", &by_hand(&rows)).await;
    let version = server.fit("m", asked("t")).await;
    let hand = server.fit("hand", json!({"dataset": "hand", "target": "y", "features": ["x", "y1", "y3", "x1"]})).await;
    assert_eq!(names(&version), ["(intercept)", "x", "y:lag1", "y:lag3", "x:lag1"]);
    for figure in ["estimate", "std_error"] {
        assert_eq!(coefficients(&version, figure), coefficients(&hand, figure), "{figure}");
    }
    assert_eq!(version["fit"]["observations"], 117);
    let diagnosed =
        async |model: &str| server.get(format!("/v1/models/{model}/versions/1/diagnostics")).expect(200).await.json()["rows"].clone();
    assert_eq!(diagnosed("m").await, diagnosed("hand").await);
    assert_eq!(version["warnings"], json!(["the first 3 rows were left out: the past values that they take are before the first row"]));
    let labels: Vec<&str> = version["features"].as_array().unwrap().iter().map(|feature| feature["name"].as_str().unwrap()).collect();
    assert_eq!(labels, ["x", "lag(y)", "lag(x)"]);

    // The next row needs its own columns alone; past values that it gives go before those that are known.
    let (last, estimates) = (rows.len(), coefficients(&version, "estimate"));
    let expected =
        |x: f64, past: [f64; 3]| estimates[0] + estimates[1] * x + estimates[2] * past[0] + estimates[3] * past[1] + estimates[4] * past[2];
    let past = [rows[last - 1][1], rows[last - 3][1], rows[last - 1][0]];
    let asked = json!([{"x": 0.25}, {"x": 0.25, "y:lag1": null}, {"x": -1, "y:lag1": 7.5}]);
    let found = predicted(&server, "m", asked.clone()).await;
    agree(&found, &[expected(0.25, past), expected(0.25, past), expected(-1.0, [7.5, past[1], past[2]])], 12.0);
    // However it is asked: rows do not see one another.
    for (place, row) in asked.as_array().unwrap().iter().enumerate() {
        assert_eq!(predicted(&server, "m", json!([row])).await, [found[place]]);
    }
    let reply = server.post("/v1/models/m/predict?fields=predictions").csv("x,y:lag1\n0.25,\n-1,7.5\n").expect(200).await.text();
    let lines: Vec<f64> = reply.lines().skip(1).map(|line| line.parse().unwrap()).collect();
    assert_eq!(lines, [found[0], found[2]]);
    let reply = server.post("/v1/models/m/predict").ndjson("{\"x\":0.25}\n").expect(200).await.json();
    assert_eq!(reply["prediction"], found[0]);
    let tensor = json!({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [0.25]}]});
    let reply = server.post("/v2/models/m/infer").json(&tensor).expect(200).await.json();
    assert_eq!(numbers(&reply["outputs"][0]["data"]), [found[0]]);
    let matrix = json!({"inputs": [{"name": "input", "datatype": "FP64", "shape": [1, 1], "data": [0.25]}]});
    let reply = server.post("/v2/models/m/infer").json(&matrix).expect(200).await.json();
    assert_eq!(numbers(&reply["outputs"][0]["data"]), [found[0]]);
    let explained = server.predict("m", json!({"rows": [{"x": 0.25}], "explain": true})).await;
    let parts = explained["contributions"][0].as_object().unwrap();
    assert_eq!(parts.keys().collect::<Vec<_>>(), ["(baseline)", "x", "lag(y)", "lag(x)"]);
    // Inputs are watched by the columns that rows hold.
    let watched = server.get("/v1/models/m/inputs").expect(200).await.json();
    assert_eq!(watched["features"].as_array().unwrap().len(), 1);

    // A row that lacks something is a row all the same: what it lacks is missing in the rows after it.
    let mut gap: Vec<String> = csv(&rows).lines().map(str::to_owned).collect();
    gap[50] = format!("49,{},", rows[49][0]);
    server.table("gap", &(gap.join("\n") + "\n")).await;
    let version = server.fit("gap", json!({"dataset": "gap", "target": "y", "features": features()})).await;
    assert_eq!(version["fit"]["observations"], 117 - 3);
    let last = version["warnings"].as_array().unwrap().last().unwrap();
    assert_eq!(last, "3 of 120 rows were left out because a value is missing in them");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_the_refit_with_the_same_rows_and_survives_a_restart() {
    let (mut server, rows) = server(160).await;
    server.table("first", &csv(&rows[..70])).await;
    server.fit("online", asked("first")).await;
    let batch = server.fit("batch", asked("t")).await;
    let row = |row: &[f64; 2]| json!({"x": row[0], "y": row[1]});
    let mut at = 70;
    for size in [1, 2, 30, 1, 17] {
        let chunk: Vec<Value> = rows[at..at + size].iter().map(row).collect();
        server.learn("online", json!({"rows": chunk})).await;
        at += size;
    }
    let lines: String = rows[at..159].iter().map(|own| format!("{}\n", row(own))).collect();
    server.post("/v1/models/online/updates").header("accept", "application/x-ndjson").ndjson(&lines).expect(200).await;
    let next = predicted(&server, "online", json!([{"x": rows[159][0]}])).await;
    let learnt = server.learn("online", json!({"rows": [row(&rows[159])]})).await;
    // It is told as y − (y − ŷ), which rounds twice.
    agree(&numbers(&learnt["predictions"]), &next, 14.0);
    let question = json!({"steps": 4, "rows": [{"x": 0}, {"x": 1}, {"x": 0}, {"x": 0}], "interval": {}});
    let before = server.get("/v1/models/online").expect(200).await.json();
    let said = forecast(&server, "online", question.clone()).await;
    for figure in ["estimate", "std_error"] {
        agree(&coefficients(&before, figure), &coefficients(&batch, figure), 9.0);
    }
    let of_batch = forecast(&server, "batch", question.clone()).await;
    for figure in ["predictions", "lower", "upper"] {
        agree(&numbers(&said[figure]), &numbers(&of_batch[figure]), 9.0);
    }
    server.restart().await;
    assert_eq!(server.get("/v1/models/online").expect(200).await.json()["coefficients"], before["coefficients"]);
    assert_eq!(forecast(&server, "online", question).await, said);
    // As it stood after an earlier update, with the last rows of that time.
    let earlier = json!({"steps": 1, "rows": [{"x": rows[100][0]}], "at": {"sequence": 30}});
    let then = json!({"rows": [{"x": rows[100][0]}], "at": {"sequence": 30}});
    let (one, other) = (forecast(&server, "online", earlier).await, server.predict("online", then).await);
    assert_eq!((&one["predictions"], &one["sequence"]), (&other["predictions"], &json!(30)));

    // One bad row of several: nothing is learnt, and nothing remembered.
    let before = server.get("/v1/models/online").expect(200).await;
    let bad = json!({"rows": [{"x": 1, "y": 2}, {"x": 1, "y": 1e308}, {"x": 1e200, "y": 1}]});
    let reply = server.post("/v1/models/online/updates").json(&bad).send().await;
    assert_eq!(reply.status, 422, "{}", reply.text());
    assert_eq!(server.get("/v1/models/online").expect(200).await.text(), before.text());
    assert_eq!(predicted(&server, "online", json!([{"x": 0}])).await[0], numbers(&said["predictions"])[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn forecasts_feed_themselves_and_their_limits_widen() {
    let (server, rows) = server(200).await;
    let version = server.fit("m", asked("t")).await;
    let b = coefficients(&version, "estimate");
    let s = version["fit"]["residual_std"].as_f64().unwrap();
    let ahead = [0.5, -0.25, 1.0, 0.0, 0.125, -1.0];
    let given: Vec<Value> = ahead.iter().map(|x| json!({"x": x})).collect();
    let (mut path, mut psi) = (rows.clone(), vec![1.0]);
    let mut expected = Vec::new();
    for (step, x) in ahead.into_iter().enumerate() {
        let last = path.len();
        let y = b[0] + b[1] * x + b[2] * path[last - 1][1] + b[3] * path[last - 3][1] + b[4] * path[last - 1][0];
        path.push([x, y]);
        expected.push(y);
        psi.push(b[2] * psi[step] + if step >= 2 { b[3] * psi[step - 2] } else { 0.0 });
    }
    let errors: Vec<f64> = (1..=6).map(|count| s * psi[..count].iter().map(|weight| weight * weight).sum::<f64>().sqrt()).collect();
    let found = forecast(&server, "m", json!({"steps": 6, "rows": given, "interval": {"level": 0.9}})).await;
    agree(&numbers(&found["predictions"]), &expected, 12.0);
    agree(&numbers(&found["std_error"]), &errors, 12.0);
    assert!(errors.windows(2).all(|pair| pair[0] < pair[1]));
    // Student's t of 192 degrees of freedom at 90 %.
    let t = 1.652_828_589;
    let limits: Vec<f64> = expected.iter().zip(&errors).map(|(mean, error)| mean - t * error).collect();
    agree(&numbers(&found["lower"]), &limits, 7.0);
    let middle: Vec<f64> =
        numbers(&found["lower"]).iter().zip(numbers(&found["upper"])).map(|(lower, upper)| (lower + upper) / 2.0).collect();
    agree(&middle, &expected, 12.0);
    // The first step is the prediction of the next row; without an interval there is none.
    let short = forecast(&server, "m", json!({"steps": 1, "columns": ["x"], "data": [[0.5]]})).await;
    assert_eq!((&short["lower"], &short["upper"], &short["target"]), (&Value::Null, &Value::Null, &json!("y")));
    assert_eq!(numbers(&short["predictions"]), predicted(&server, "m", json!([{"x": 0.5}])).await);

    // Alone, without a column beside it.
    server.fit("alone", json!({"dataset": "t", "target": "y", "features": [{"column": "y", "as": "lag", "lags": [1, 2]}]})).await;
    let alone = forecast(&server, "alone", json!({"steps": 50, "rows": null})).await;
    assert_eq!(numbers(&alone["predictions"])[0], predicted(&server, "alone", json!([{}])).await[0]);
    let stretch = numbers(&alone["std_error"]);
    assert!(stretch[49] > stretch[0] && stretch[49] - stretch[48] < 1e-6, "{stretch:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_which_only_past_values_are_taken_is_learnt_and_not_asked_for() {
    let (server, rows) = server(100).await;
    let features = json!([{"column": "y", "as": "lag", "lags": [1]}, {"column": "x", "as": "lag", "lags": [1, 2]}]);
    let version = server.fit("m", json!({"dataset": "t", "target": "y", "features": features})).await;
    assert_eq!(predicted(&server, "m", json!([{}])).await.len(), 1);
    server.post("/v1/models/m/predict").json(&json!({"rows": [{"x": 1}]})).refused(422, "invalid_rows").await;
    let reply = server.post("/v1/models/m/updates").json(&json!({"rows": [{"y": 1}]})).refused(422, "invalid_rows").await;
    assert_eq!(reply.pointers(), ["/rows/0/x"]);
    server.learn("m", json!({"rows": [{"x": 0.75, "y": 4}]})).await;
    let b = coefficients(&server.get("/v1/models/m").expect(200).await.json(), "estimate");
    let first = b[0] + b[1] * 4.0 + b[2] * 0.75 + b[3] * rows[99][0];
    agree(&predicted(&server, "m", json!([{}])).await, &[first], 12.0);
    // Forecasts need it from the first step to the last but one.
    let found = forecast(&server, "m", json!({"steps": 3, "rows": [{"x": 2}, {"x": -1}, {}]})).await;
    let second = b[0] + b[1] * first + b[2] * 2.0 + b[3] * 0.75;
    let third = b[0] + b[1] * second - b[2] + b[3] * 2.0;
    agree(&numbers(&found["predictions"]), &[first, second, third], 12.0);
    let question = json!({"steps": 3, "rows": [{"x": 2}, {}, {}]});
    let reply = server.post("/v1/models/m/forecast").json(&question).refused(422, "invalid_rows").await;
    assert_eq!(reply.pointers(), ["/rows/1/x"]);
    assert!(reply.text().contains("step 3"), "{}", reply.text());
    assert_eq!(names(&version), ["(intercept)", "y:lag1", "x:lag1", "x:lag2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_are_of_the_row_itself_and_of_the_target_of_rows_before() {
    let (server, rows) = server(90).await;
    let features = json!([
        {"column": "x", "as": "difference"},
        {"column": "x", "as": "difference", "order": 2, "period": 3, "lag": 2},
        {"column": "y", "as": "difference"},
    ]);
    let version = server.fit("m", json!({"dataset": "t", "target": "y", "features": features})).await;
    assert_eq!(names(&version), ["(intercept)", "difference(x)", "difference(x:lag2,order=2,period=3)", "difference(y:lag1)"]);
    // Eight rows back is the farthest.
    assert_eq!(version["fit"]["observations"], 82);
    let b = coefficients(&version, "estimate");
    let x = |back: usize| rows[90 - back][0];
    let expected = b[0] + b[1] * (0.5 - x(1)) + b[2] * (x(2) - 2.0 * x(5) + x(8)) + b[3] * (rows[89][1] - rows[88][1]);
    agree(&predicted(&server, "m", json!([{"x": 0.5}])).await, &[expected], 11.0);
    // Its past values are the ones that a row may give.
    let given = json!([{"x": 0.5, "x:lag1": 0.5, "y:lag1": 1, "y:lag2": 1}]);
    agree(&predicted(&server, "m", given).await, &[b[0] + b[2] * (x(2) - 2.0 * x(5) + x(8))], 11.0);
    // What of the target is fed back: φ₁ = b, φ₂ = −b.
    let found = forecast(&server, "m", json!({"steps": 3, "rows": [{"x": 0}, {"x": 0}, {"x": 0}]})).await;
    let s = version["fit"]["residual_std"].as_f64().unwrap();
    let psi = [1.0, b[3], b[3] * b[3] - b[3]];
    let expected: Vec<f64> = (1..=3).map(|count| s * psi[..count].iter().map(|weight| weight * weight).sum::<f64>().sqrt()).collect();
    agree(&numbers(&found["std_error"]), &expected, 12.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_horizon_the_row_that_is_predicted_lies_that_far_ahead() {
    let (server, rows) = server(150).await;
    let features = json!([{"column": "y", "as": "lag", "lags": [1, 2], "horizon": 3}]);
    let version = server.fit("m", json!({"dataset": "t", "target": "y", "features": features})).await;
    assert_eq!(names(&version), ["(intercept)", "y:lag3", "y:lag4"]);
    assert_eq!(version["features"][0]["horizon"], 3);
    let b = coefficients(&version, "estimate");
    let third = b[0] + b[1] * rows[149][1] + b[2] * rows[148][1];
    agree(&predicted(&server, "m", json!([{}])).await, &[third], 12.0);
    let found = forecast(&server, "m", json!({"steps": 5})).await;
    let first = b[0] + b[1] * rows[147][1] + b[2] * rows[146][1];
    let predictions = numbers(&found["predictions"]);
    agree(&[predictions[0], predictions[2]], &[first, third], 12.0);
    // Up to the horizon nothing is fed back, and every step is as uncertain as the first.
    let errors = numbers(&found["std_error"]);
    assert!(errors[0] == errors[2] && errors[2] < errors[3], "{errors:?}");
    // An update is the next row, and no other.
    let learnt = server.learn("m", json!({"rows": [{"y": 5}]})).await;
    agree(&numbers(&learnt["predictions"]), &[first], 12.0);
    let features = json!([{"column": "y", "as": "lag", "lags": [1], "horizon": 3}, {"column": "x", "as": "lag", "lags": [3]}]);
    let reply = server.post("/v1/models/n/fits").json(&json!({"dataset": "t", "target": "y", "features": features}));
    assert_eq!(reply.refused(422, "invalid_request").await.pointers(), ["/features/1/horizon"]);
    let own = json!([{"column": "x", "as": "difference", "horizon": 2}]);
    let reply = server.post("/v1/models/n/fits").json(&json!({"dataset": "t", "target": "y", "features": own}));
    assert_eq!(reply.refused(422, "invalid_request").await.pointers(), ["/features/0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_origin_judges_forecasts_beside_the_last_value() {
    let (server, rows) = server(120).await;
    let mut specification = asked("t");
    specification["validation"] = json!({"kind": "time", "column": "time", "folds": 2, "steps": 3});
    let version = server.fit("m", specification.clone()).await;
    let validation = &version["validation"];
    // 117 rows with past values: three segments of 39, the model of each fold fitted on those before.
    let mut squares = [[0.0; 2]; 3];
    let mut counts = [0; 3];
    for (fold, end) in [(0, 3 + 39), (1, 3 + 78)] {
        server.table("before", &csv(&rows[..end])).await;
        let b = coefficients(&server.fit("before", asked("before")).await, "estimate");
        for origin in end - 1..end + 38 {
            let mut path = rows[..=origin].to_vec();
            for step in 0..3 {
                let row = origin + 1 + step;
                if row >= end + 39 {
                    break;
                }
                let x = rows[row][0];
                let y = b[0] + b[1] * x + b[2] * path[row - 1][1] + b[3] * path[row - 3][1] + b[4] * path[row - 1][0];
                path.push([x, y]);
                squares[step][0] += (y - rows[row][1]).powi(2);
                squares[step][1] += (rows[origin][1] - rows[row][1]).powi(2);
                counts[step] += 1;
            }
        }
        assert_eq!(validation["rows"][fold], 39);
    }
    assert_eq!(counts, [78, 76, 74]);
    for (step, squares) in squares.into_iter().enumerate() {
        let found = &validation["steps"][step];
        assert_eq!((&found["step"], &found["rows"]), (&json!(step + 1), &json!(counts[step])));
        let expected = squares.map(|squares| (squares / f64::from(counts[step])).sqrt());
        agree(&[found["rmse"].as_f64().unwrap(), found["last_value"]["rmse"].as_f64().unwrap()], &expected, 10.0);
    }
    agree(&[validation["pooled"]["rmse"].as_f64().unwrap()], &[validation["steps"][0]["rmse"].as_f64().unwrap()], 12.0);
    assert!(validation["steps"][0]["rmse"].as_f64() < validation["steps"][0]["last_value"]["rmse"].as_f64());
    // In the order of the dataset it is the same; a feature that learns of rows does so in each fold.
    specification["validation"] = json!({"kind": "time", "folds": 2, "steps": 3});
    let same = server.fit("m", specification.clone()).await;
    assert_eq!((&same["validation"]["steps"], &same["validation"]["folds"]), (&validation["steps"], &validation["folds"]));
    specification["features"][0] = json!({"column": "x", "as": "standardise"});
    let learnt = server.fit("m", specification.clone()).await;
    for step in 0..3 {
        let rmse = |version: &Value| version["validation"]["steps"][step]["rmse"].as_f64().unwrap();
        agree(&[rmse(&learnt)], &[rmse(&same)], 9.0);
    }
    // Rows that are drawn would be past values of rows that are learnt from.
    for kind in ["kfold", "loo", "holdout"] {
        let mut asked = asked("t");
        asked["validation"] = json!({"kind": kind});
        let reply = server.post("/v1/models/m/fits").json(&asked).refused(422, "invalid_request").await;
        assert_eq!(reply.pointers(), ["/validation/kind"]);
    }
    let mut text: Vec<String> = csv(&rows).lines().map(str::to_owned).collect();
    text.swap(20, 21);
    server.table("shuffled", &(text.join("\n") + "\n")).await;
    let mut shuffled = asked("shuffled");
    shuffled["validation"] = json!({"kind": "time", "column": "time"});
    let reply = server.post("/v1/models/m/fits").header("prefer", "wait=60").json(&shuffled).refused(422, "invalid_request").await;
    assert_eq!(reply.pointers(), ["/validation/column"]);
    assert!(reply.text().contains("row 21 of"), "{}", reply.text());
    let plain = json!({"dataset": "t", "target": "y", "features": ["x"], "validation": {"kind": "time", "folds": 2, "steps": 3}});
    let reply = server.post("/v1/models/m/fits").json(&plain).refused(422, "invalid_request").await;
    assert_eq!(reply.pointers(), ["/validation/steps"]);
    // Other models are judged in the order of the dataset too.
    let plain = json!({"dataset": "t", "target": "y", "features": ["x"], "validation": {"kind": "time", "folds": 2}});
    let by_column = json!({"dataset": "t", "target": "y", "features": ["x"], "validation": {"kind": "time", "column": "time", "folds": 2}});
    let (one, other) = (server.fit("m", plain).await, server.fit("m", by_column).await);
    assert_eq!(one["validation"]["folds"], other["validation"]["folds"]);
    assert!(one["validation"].get("steps").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_predicted_from_its_own_rows() {
    let (server, rows) = server(80).await;
    let version = server.fit("m", asked("t")).await;
    let b = coefficients(&version, "estimate");
    let other: Vec<[f64; 2]> = rows[30..60].to_vec();
    server.table("other", &csv(&other)).await;
    let question = json!({"dataset": "other", "into": "answers", "missing": "blank"});
    server.post("/v1/models/m/predictions").header("prefer", "wait=60").json(&question).expect(201).await;
    let stored = server.get("/v1/datasets/answers/rows").expect(200).await.json();
    let found: Vec<Option<f64>> = stored["items"].as_array().unwrap().iter().map(|row| row["prediction"].as_f64()).collect();
    assert_eq!(found[..3], [None; 3]);
    let at = |row: usize| b[0] + b[1] * other[row][0] + b[2] * other[row - 1][1] + b[3] * other[row - 3][1] + b[4] * other[row - 1][0];
    agree(&found[3..].iter().map(|found| found.unwrap()).collect::<Vec<_>>(), &(3..30).map(at).collect::<Vec<_>>(), 12.0);
    let question = json!({"dataset": "other", "into": "answers"});
    let reply = server.post("/v1/models/m/predictions").header("prefer", "wait=60").json(&question).refused(422, "invalid_rows").await;
    assert_eq!(reply.pointers()[0], "/rows/0/y:lag1");
    server.table("without", "x\n1\n2\n").await;
    let question = json!({"dataset": "without", "into": "answers"});
    server.post("/v1/models/m/predictions").json(&question).refused(422, "unknown_column").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_series_cannot_do_is_refused_and_changes_nothing() {
    let (server, rows) = server(60).await;
    server.fit("m", asked("t")).await;
    server.fit("plain", json!({"dataset": "t", "target": "y", "features": ["x"]})).await;
    server.fit("beside", json!({"dataset": "t", "target": "y", "features": [{"column": "x", "as": "lag", "lags": [1]}]})).await;
    let lags = json!([{"column": "y", "as": "lag", "lags": [1]}]);
    server.fit("several", json!({"dataset": "t", "target": ["y", "x"], "features": lags})).await;
    server.learn("m", json!({"rows": [{"x": 1, "y": 2}]})).await;
    let before = server.get("/v1/models/m").expect(200).await.text();
    let forecasts = [
        ("plain", json!({"steps": 2}), "not_a_series", None),
        ("beside", json!({"steps": 2}), "not_a_series", None),
        ("several", json!({"steps": 2}), "not_a_series", None),
        ("m", json!({}), "invalid_request", Some("/steps")),
        ("m", json!({"steps": 0}), "invalid_request", Some("/steps")),
        ("m", json!({"steps": 10_001}), "invalid_request", Some("/steps")),
        ("m", json!({"steps": 2, "times": 3}), "invalid_request", Some("/times")),
        ("m", json!({"steps": 2}), "invalid_request", Some("/rows")),
        ("m", json!({"steps": 2, "rows": [{"x": 1}]}), "invalid_request", Some("/rows")),
        ("m", json!({"steps": 1, "rows": [{"x": "much"}]}), "invalid_rows", Some("/rows/0/x")),
        ("m", json!({"steps": 1, "rows": [{}]}), "invalid_rows", Some("/rows/0/x")),
        ("m", json!({"steps": 1, "rows": [{"x": 1, "y": 2}]}), "invalid_rows", Some("/rows/0/y")),
        ("m", json!({"steps": 1, "rows": [{"x": 1, "y:lag1": 2}]}), "invalid_rows", Some("/rows/0/y:lag1")),
        ("m", json!({"steps": 1, "rows": [{"x": 1}], "interval": {"kind": "confidence"}}), "invalid_request", Some("/interval/kind")),
        ("m", json!({"steps": 1, "rows": [{"x": 1}], "interval": {"level": 1}}), "invalid_request", Some("/interval/level")),
        ("m", json!({"steps": 1, "rows": [{"x": 1}], "at": {"sequence": 9}}), "invalid_request", Some("/at/sequence")),
    ];
    for (model, question, code, pointer) in forecasts {
        let reply = server.post(format!("/v1/models/{model}/forecast")).json(&question).refused(422, code).await;
        if let Some(pointer) = pointer {
            assert_eq!(reply.pointers(), [pointer], "{question}");
        }
        assert!(!reply.text().contains("much"));
    }
    server.post("/v1/models/none/forecast").json(&json!({"steps": 1})).refused(404, "model_not_found").await;
    for (feature, place) in [
        (json!({"column": "y", "as": "lag"}), "/lags"),
        (json!({"column": "y", "as": "lag", "lags": []}), "/lags"),
        (json!({"column": "y", "as": "lag", "lags": [0]}), "/lags"),
        (json!({"column": "y", "as": "lag", "lags": [2, 1]}), "/lags"),
        (json!({"column": "y", "as": "lag", "lags": [1.5]}), "/lags"),
        (json!({"column": "y", "as": "lag", "lags": [1, 10_001]}), "/lags"),
        (json!({"column": "y", "as": "lag", "lags": [1], "horizon": 0}), "/horizon"),
        (json!({"column": "y", "as": "difference", "lag": 0}), "/lag"),
        (json!({"column": "y", "as": "difference", "order": 11}), "/order"),
        (json!({"column": "y", "as": "standardise"}), ""),
    ] {
        let asked = json!({"dataset": "t", "target": "y", "features": [feature]});
        let reply = server.post("/v1/models/new/fits").json(&asked).refused(422, "invalid_request").await;
        assert_eq!(reply.pointers(), [format!("/features/0{place}")], "{feature}");
    }
    // More lags than rows leave none.
    let asked = json!({"dataset": "t", "target": "y", "features": [{"column": "y", "as": "lag", "lags": [60]}]});
    server.post("/v1/models/new/fits").header("prefer", "wait=60").json(&asked).refused(422, "fit_failed").await;
    server.table("named", "y:lag1,y\n1,2\n3,1\n4,4\n5,5\n").await;
    let features = json!(["y:lag1", {"column": "y", "as": "lag", "lags": [1]}]);
    let asked = json!({"dataset": "named", "target": "y", "features": features});
    let reply = server.post("/v1/models/new/fits").json(&asked).refused(422, "invalid_request").await;
    assert_eq!(reply.pointers(), ["/features"]);
    let features = json!([{"column": "y", "as": "lag", "lags": [1]}]);
    let asked = json!({"dataset": "named", "target": "y:lag1", "features": features});
    let reply = server.post("/v1/models/new/fits").json(&asked).refused(422, "invalid_request").await;
    assert_eq!(reply.pointers(), ["/features"]);

    // A row is a past value of those after it: it is not unlearnt, nor learnt from a label out of its turn.
    server.delete("/v1/models/m/updates/1").refused(409, "conflict").await;
    server.delete("/v1/datasets/t/rows/5").refused(409, "conflict").await;
    let reply = server.post("/v1/models/m/predict").json(&json!({"rows": [{"x": 1}], "remember": true}));
    assert_eq!(reply.refused(422, "invalid_request").await.pointers(), ["/remember"]);
    assert_eq!(server.get("/v1/models/m").expect(200).await.text(), before);

    // What the last row lacks is asked for, and an update that gives it goes on.
    server.table("open", &format!("{}60,0.5,\n", csv(&rows))).await;
    server.fit("open", json!({"dataset": "open", "target": "y", "features": features_of_y()})).await;
    let reply = server.post("/v1/models/open/predict").json(&json!({"rows": [{}]})).refused(422, "invalid_request").await;
    assert_eq!(reply.pointers(), ["/rows/0"]);
    assert!(reply.json()["detail"].as_str().unwrap().contains("\"y:lag1\""), "{}", reply.text());
    server.post("/v1/models/open/forecast").json(&json!({"steps": 2})).refused(422, "invalid_request").await;
    let lines = "{\"y\":3,\"y:lag1\":4}\n{\"y\":5}\n";
    let before = server.get("/v1/models/open").expect(200).await.text();
    let reply = server.post("/v1/models/open/updates").header("accept", "application/x-ndjson").ndjson("{\"y\":3}\n");
    let reply = reply.refused(422, "invalid_request").await;
    assert!(reply.text().contains("line 1: the rows before do not hold the past value \\\"y:lag1\\\""), "{}", reply.text());
    assert_eq!(server.get("/v1/models/open").expect(200).await.text(), before);
    server.post("/v1/models/open/updates").json(&json!({"rows": [{"y": 3}]})).refused(422, "invalid_request").await;
    assert_eq!(server.predict("open", json!({"rows": [{"y:lag1": 4}]})).await["predictions"].as_array().unwrap().len(), 1);
    server.post("/v1/models/open/updates").ndjson(lines).expect(200).await;
    forecast(&server, "open", json!({"steps": 2})).await;
}

fn features_of_y() -> Value {
    json!([{"column": "y", "as": "lag", "lags": [1]}])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_a_split_and_a_refit_after_a_drift_keep_their_past() {
    let (server, rows) = server(140).await;
    let mut windowed = asked("t");
    windowed["online"] = json!({"window": 50});
    server.fit("window", windowed).await;
    // The rows before the window are the past of its first.
    server.table("end", &csv(&rows[87..])).await;
    let end = server.fit("end", asked("end")).await;
    let version = server.get("/v1/models/window").expect(200).await.json();
    assert_eq!((&version["fit"]["observations"], &version["warnings"]), (&json!(50), &json!([])));
    agree(&coefficients(&version, "estimate"), &coefficients(&end, "estimate"), 10.0);
    // A shadow that takes no past values, and one that does: each has its own.
    server.fit("split", asked("t")).await;
    server.fit("split", json!({"dataset": "t", "target": "y", "features": ["x"], "serve": false})).await;
    let alone = (predicted(&server, "split@1", json!([{"x": 1}])).await, predicted(&server, "split@2", json!([{"x": 1}])).await);
    server.put("/v1/models/split/traffic").json(&json!({"1": 50, "2": 50})).expect(201).await;
    for key in 0..20 {
        let answer =
            server.post(format!("/v1/models/split/predict?key=k{key}")).json(&json!({"rows": [{"x": 1}]})).expect(200).await.json();
        let wanted = if answer["version"] == 1 { &alone.0 } else { &alone.1 };
        assert_eq!(&numbers(&answer["predictions"]), wanted);
    }
    // After a drift the new version goes on from the rows that the old one knew.
    let mut drifting = asked("t");
    drifting["online"] = json!({"drift": {"detector": "page_hinkley", "threshold": 5, "action": "refit"}});
    server.fit("drift", drifting).await;
    for row in 0..60 {
        let y = 30.0 + f64::from(row % 7);
        server.learn("drift@1", json!({"rows": [{"x": rows[row as usize][0], "y": y}]})).await;
    }
    let mut version = 1;
    for _ in 0..400 {
        version = server.get("/v1/models/drift").expect(200).await.json()["version"].as_u64().unwrap();
        if version > 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(version > 1, "no drift was found");
    let fitted = server.get("/v1/models/drift").expect(200).await.json();
    let last = fitted["refit"]["last_sequence"].as_i64().unwrap();
    let past = |back: i64| 30.0 + ((last - back) % 7) as f64;
    let b = coefficients(&fitted, "estimate");
    let expected = b[0] + b[2] * past(1) + b[3] * past(3) + b[4] * rows[usize::try_from(last - 1).unwrap()][0];
    agree(&predicted(&server, "drift", json!([{"x": 0}])).await, &[expected], 9.0);
}

/// A class of past values: what a classifier and a series keep are in one state.
#[tokio::test(flavor = "multi_thread")]
async fn a_classifier_of_past_values_learns_as_it_is_refitted_and_remembers_after_a_restart() {
    let (mut server, rows) = server(120).await;
    let class = |row: &[f64; 2]| if row[1] > 5.0 { "high" } else { "low" };
    let table = |rows: &[[f64; 2]]| {
        let lines = rows.iter().map(|row| format!("{},{}\n", row[0], class(row)));
        std::iter::once("x,c\n".to_owned()).chain(lines).collect::<String>()
    };
    let asked = |dataset: &str| {
        let features = json!(["x", {"column": "x", "as": "lag", "lags": [1, 2]}]);
        json!({"dataset": dataset, "target": "c", "features": features, "validation": {"kind": "time", "folds": 3}})
    };
    server.table("all", &table(&rows)).await;
    server.table("first", &table(&rows[..60])).await;
    server.fit("online", asked("first")).await;
    let batch = server.fit("batch", asked("all")).await;
    assert_eq!((&batch["validation"]["metric"], &batch["classes"]), (&json!("accuracy"), &json!(["high", "low"])));
    for part in [&rows[60..61], &rows[61..120]] {
        let learnt: Vec<Value> = part.iter().map(|row| json!({"x": row[0], "c": class(row)})).collect();
        server.learn("online", json!({"rows": learnt})).await;
    }
    let before = server.get("/v1/models/online").expect(200).await.json();
    agree(&coefficients(&before, "estimate"), &coefficients(&batch, "estimate"), 9.0);
    let question = json!({"rows": [{"x": 0.25}, {"x": -2}]});
    let said = server.predict("online", question.clone()).await;
    let of_batch = server.predict("batch", question.clone()).await;
    assert_eq!(said["predictions"], of_batch["predictions"]);
    for row in 0..2 {
        for name in ["high", "low"] {
            let (one, other) = (&said["scores"][row][name], &of_batch["scores"][row][name]);
            agree(&[one.as_f64().unwrap()], &[other.as_f64().unwrap()], 9.0);
        }
    }
    server.restart().await;
    assert_eq!(server.predict("online", question).await, said);
    assert_eq!(server.get("/v1/models/online").expect(200).await.json()["coefficients"], before["coefficients"]);
    server.post("/v1/models/online/forecast").json(&json!({"steps": 2})).refused(422, "not_a_series").await;
}
