//! Features through HTTP: what a version says it makes of a row is what it multiplies, in every dialect, and nothing is learnt from rows that
//! are held out.

use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow_ipc::writer::StreamWriter;
use serde_json::{Value, json};

use crate::client::{Noise, Server, agree, coefficients, names, numbers};

const ARROW: &str = "application/vnd.apache.arrow.stream";
const REGIONS: [&str; 3] = ["east", "north", "west"];

/// Rows of a table with a number, a category, a count, a number that may be missing, a moment, and something to predict.
fn rows(count: usize) -> Vec<Value> {
    let mut noise = Noise(7);
    (0..count)
        .map(|row| {
            let (age, region) = (20.0 + 50.0 * noise.next().abs(), REGIONS[row % 3]);
            let income = if row % 5 == 3 { Value::Null } else { json!(1000.0 * (1.0 + noise.next().abs())) };
            let at = format!("2024-{:02}-{:02}T{:02}:30:00Z", 1 + row % 12, 1 + row % 28, row % 24);
            let y = age.sqrt() + (row % 3) as f64 + 0.1 * noise.next();
            json!({"age": age, "region": region, "visits": row % 7, "income": income, "at": at, "y": y})
        })
        .collect()
}

/// Some columns of rows as CSV.
fn csv(rows: &[Value], columns: &[&str]) -> String {
    let cell = |row: &Value, column: &str| match &row[column] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        value => value.to_string(),
    };
    let line = |row: &Value| columns.iter().map(|column| cell(row, column)).collect::<Vec<_>>().join(",");
    std::iter::once(columns.join(",")).chain(rows.iter().map(line)).map(|line| line + "\n").collect()
}

const COLUMNS: [&str; 6] = ["age", "region", "visits", "income", "at", "y"];

async fn server(count: usize) -> (Server, Vec<Value>) {
    let server = Server::start().await;
    let rows = rows(count);
    server.table("t", &csv(&rows, &COLUMNS)).await;
    (server, rows)
}

/// All kinds that there are.
fn all() -> Value {
    json!([
        "age",
        {"column": "age", "as": "standardise"},
        {"column": "age", "as": "polynomial", "degree": 2},
        {"column": "visits", "as": "log", "offset": 1},
        {"column": "income", "as": "impute", "with": "median", "indicator": true},
        "region",
        {"columns": ["age", "region"], "as": "interaction"},
        {"columns": ["age", "visits"], "as": "interaction"},
        {"column": "age", "as": "bins", "quantiles": 3},
        {"column": "age", "as": "spline", "df": 3},
        {"column": "at", "as": "calendar", "parts": ["weekday", "month"], "seasonality": {"period": "1d", "order": 1}},
        {"columns": ["age", "visits"], "as": "random_fourier", "components": 3},
    ])
}

fn float(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

/// What a feature of a version makes of a row, by the formulas and from nothing but the version's document.
fn made(feature: &Value, row: &Value) -> Vec<f64> {
    let first = match feature["columns"].as_array() {
        None => feature["name"].as_str().unwrap(),
        Some(columns) => columns[0]["name"].as_str().unwrap(),
    };
    let indicator = |levels: &[Value], is: &dyn Fn(&Value) -> bool, drop: bool| -> Vec<f64> {
        levels.iter().skip(usize::from(drop)).map(|level| f64::from(u8::from(is(level)))).collect()
    };
    let drop = |of: &Value| of["drop_first"].as_bool().unwrap();
    let list = |name: &str| numbers(&feature[name]);
    match feature["as"].as_str().unwrap() {
        "identity" => vec![float(&row[first])],
        "polynomial" => (1..=feature["degree"].as_i64().unwrap()).map(|power| float(&row[first]).powi(power as i32)).collect(),
        "onehot" => indicator(feature["levels"].as_array().unwrap(), &|level| *level == row[first], drop(feature)),
        "standardise" => vec![(float(&row[first]) - float(&feature["mean"])) / float(&feature["standard_deviation"])],
        "log" => vec![(float(&row[first]) + float(&feature["offset"])).ln()],
        "impute" if row[first].is_null() => vec![float(&feature["value"]), 1.0],
        "impute" => vec![float(&row[first]), 0.0],
        "interaction" => {
            let factors = feature["factors"].as_array().unwrap().iter().zip(feature["columns"].as_array().unwrap());
            factors.fold(vec![1.0], |product, (factor, column)| {
                let cell = &row[column["name"].as_str().unwrap()];
                let own = match factor["levels"].as_array() {
                    Some(levels) => indicator(levels, &|level| level == cell, drop(factor)),
                    None => vec![float(cell)],
                };
                product.iter().flat_map(|before| own.iter().map(move |own| before * own)).collect()
            })
        }
        "bins" => {
            let (x, edges) = (float(&row[first]), list("edges"));
            let bins = (0..edges.len() - 1).map(|bin| {
                let (low, high) = (bin == 0 || x >= edges[bin], bin == edges.len() - 2 || x < edges[bin + 1]);
                f64::from(u8::from(low && high))
            });
            bins.skip(usize::from(drop(feature))).collect()
        }
        "spline" => {
            let (boundary, inner) = (list("boundary"), list("knots"));
            let scaled = |x: f64| (x - boundary[0]) / (boundary[1] - boundary[0]);
            let knots: Vec<f64> = [boundary[0]].iter().chain(&inner).chain(&[boundary[1]]).map(|knot| scaled(*knot)).collect();
            let (u, last) = (scaled(float(&row[first])), knots.len() - 1);
            let d = |k: usize| ((u - knots[k]).max(0.0).powi(3) - (u - knots[last]).max(0.0).powi(3)) / (knots[last] - knots[k]);
            std::iter::once(u).chain((0..last - 1).map(|k| d(k) - d(last - 1))).collect()
        }
        "random_fourier" => {
            let columns: Vec<&str> = feature["columns"].as_array().unwrap().iter().map(|column| column["name"].as_str().unwrap()).collect();
            let (centre, scale) = (list("centre"), list("scale"));
            let x: Vec<f64> = (0..columns.len()).map(|place| (float(&row[columns[place]]) - centre[place]) / scale[place]).collect();
            let wave = |(frequencies, phase): (&[f64], f64)| {
                let angle: f64 = frequencies.iter().zip(&x).map(|(frequency, x)| frequency * x).sum();
                (2.0 / float(&feature["components"])).sqrt() * (angle + phase).cos()
            };
            list("frequencies").chunks(columns.len()).zip(list("phases")).map(wave).collect()
        }
        kind => panic!("there is no formula of {kind} here"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn predict_is_transform_then_multiply() {
    let (server, rows) = server(240).await;
    // The calendar has a test of its own.
    let features: Vec<Value> = all().as_array().unwrap().iter().filter(|feature| feature["as"] != "calendar").cloned().collect();
    let asked = json!({"dataset": "t", "target": "y", "features": features, "estimator": {"kind": "ridge", "penalty": 0.01}});
    let version = server.fit("m", asked).await;
    let labels: Vec<&str> = version["features"].as_array().unwrap().iter().map(|feature| feature["name"].as_str().unwrap()).collect();
    assert_eq!(
        labels,
        [
            "age",
            "standardise(age)",
            "polynomial(age)",
            "visits",
            "income",
            "region",
            "age:region",
            "age:visits",
            "bins(age)",
            "spline(age)",
            "random_fourier(age,visits)"
        ]
    );
    let named = names(&version);
    let expected = [
        "(intercept)",
        "age",
        "standardise(age)",
        "polynomial(age)[age]",
        "age^2",
        "log(visits+1)",
        "income",
        "income:missing",
        "region=north",
        "region=west",
        "age:region=north",
        "age:region=west",
        "age:visits",
    ];
    assert_eq!(named[..expected.len()], expected);
    assert!(named[expected.len()].starts_with("age[") && named.last().unwrap() == "random_fourier(age,visits):3", "{named:?}");
    let estimates = coefficients(&version, "estimate");
    let mut some: Vec<Value> = rows[..12].to_vec();
    // Beyond the training rows, too.
    some[1]["age"] = json!(95.5);
    some[2]["age"] = json!(-3);
    some.iter_mut().for_each(|row| {
        for unknown in ["at", "y"] {
            row.as_object_mut().unwrap().remove(unknown);
        }
    });
    let predicted = server.predict("m", json!({"rows": some, "explain": true, "interval": {"kind": "prediction"}})).await;
    for (place, row) in some.iter().enumerate() {
        let x: Vec<f64> = version["features"].as_array().unwrap().iter().flat_map(|feature| made(feature, row)).collect();
        assert_eq!(x.len() + 1, estimates.len());
        let terms: Vec<f64> = x.iter().zip(&estimates[1..]).map(|(x, estimate)| x * estimate).collect();
        let (sum, size) = (estimates[0] + terms.iter().sum::<f64>(), terms.iter().map(|term| term.abs()).sum::<f64>());
        let found = float(&predicted["predictions"][place]);
        // A sum of products rounds by a few parts in 10¹⁶ of its largest terms.
        assert!((found - sum).abs() < 1e-12 * size.max(1.0), "{found} is not {sum}");
        let parts = predicted["contributions"][place].as_object().unwrap();
        assert_eq!(parts.keys().skip(1).collect::<Vec<_>>(), labels);
        assert!((parts.values().map(float).sum::<f64>() - found).abs() < 1e-12 * size.max(1.0));
        assert!(float(&predicted["lower"][place]) < found && found < float(&predicted["upper"][place]));
    }
    // The same through CSV and as tensors, missing cells and all.
    let columns = ["region", "income", "visits", "age"];
    let reply = server.post("/v1/models/m/predict").csv(&csv(&some, &columns)).expect(200).await.text();
    let found: Vec<f64> = reply.lines().skip(1).map(|line| line.split(',').next().unwrap().parse().unwrap()).collect();
    assert_eq!(found, numbers(&predicted["predictions"]));
    let complete: Vec<&Value> = some.iter().filter(|row| !row["income"].is_null()).collect();
    let tensor = |name: &str, datatype: &str| {
        let data: Vec<&Value> = complete.iter().map(|row| &row[name]).collect();
        json!({"name": name, "datatype": datatype, "shape": [data.len()], "data": data})
    };
    let asked = json!({"inputs": [tensor("age", "FP64"), tensor("visits", "INT64"), tensor("income", "FP64"), tensor("region", "BYTES")]});
    let tensors = server.post("/v2/models/m/infer").json(&asked).expect(200).await.json();
    let expected = server.predict("m", json!({"rows": complete})).await;
    assert_eq!(numbers(&tensors["outputs"][0]["data"]), numbers(&expected["predictions"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn moments_are_read_alike_in_all_dialects_and_named_by_the_calendar() {
    let (server, rows) = server(240).await;
    let features = json!([
        {"column": "at", "as": "calendar", "parts": ["weekday", "month"], "seasonality": [{"period": "1d", "order": 2}]},
        {"column": "at", "as": "calendar", "parts": ["hour", "yearday"], "encode": "number"},
    ]);
    let version = server.fit("m", json!({"dataset": "t", "target": "y", "features": features})).await;
    let named = names(&version);
    assert_eq!(named.len(), 1 + 6 + 11 + 4 + 2);
    let some =
        ["at:weekday=tuesday", "at:weekday=sunday", "at:month=february", "at:month=december", "at:sin1(1d)", "at:cos2(1d)", "at:hour"];
    assert!(some.iter().all(|name| named.contains(&(*name).to_owned())), "{named:?}");
    let estimates = coefficients(&version, "estimate");
    let of = |name: &str| estimates[named.iter().position(|known| known == name).unwrap()];
    // 2025-12-02 was a Tuesday, the 336th day of its year; 06:00 is a quarter of a day.
    let at = "2025-12-02T08:00:00+02:00";
    let expected = of("(intercept)") + of("at:weekday=tuesday") + of("at:month=december") + of("at:sin1(1d)") - of("at:cos2(1d)")
        + 6.0 * of("at:hour")
        + 336.0 * of("at:yearday");
    let predicted = numbers(&server.predict("m", json!({"rows": [{"at": at}]})).await["predictions"]);
    agree(&predicted, &[expected], 10.0);
    let reply = server.post("/v1/models/m/predict").csv(&format!("at\n{at}\n2025-12-02 06:00\n")).expect(200).await.text();
    let found: Vec<f64> = reply.lines().skip(1).map(|line| line.split(',').next().unwrap().parse().unwrap()).collect();
    assert_eq!(found, [predicted[0]; 2]);
    let asked = json!({"inputs": [{"name": "at", "datatype": "BYTES", "shape": [1], "data": [at]}]});
    let tensors = server.post("/v2/models/m/infer").json(&asked).expect(200).await.json();
    assert_eq!(numbers(&tensors["outputs"][0]["data"]), predicted);
    let milliseconds = 1_764_655_200_000;
    for column in [
        Arc::new(TimestampMillisecondArray::from(vec![milliseconds]).with_timezone("UTC")) as ArrayRef,
        Arc::new(StringArray::from(vec![at])) as ArrayRef,
    ] {
        let batch = RecordBatch::try_from_iter([("at", column)]).unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        let reply = server.post("/v1/models/m/predict?fields=predictions").typed(ARROW, writer.into_inner().unwrap()).expect(200).await;
        let batch = arrow_ipc::reader::StreamReader::try_new(&reply.body[..], None).unwrap().next().unwrap().unwrap();
        let found = batch.column(0).as_any().downcast_ref::<Float64Array>().unwrap();
        assert_eq!(found.values().to_vec(), predicted);
    }
    let learnt = server.learn("m", json!({"rows": [{"at": at, "y": 9}]})).await;
    // It is told as y − (y − ŷ), which rounds twice.
    agree(&numbers(&learnt["predictions"]), &predicted, 15.0);
    for wrong in [json!("noon"), json!(1_764_655_200), json!(true), json!(null)] {
        let reply = server.post("/v1/models/m/predict").json(&json!({"rows": [{"at": wrong}]})).refused(422, "invalid_rows").await;
        assert_eq!(reply.pointers(), ["/rows/0/at"]);
    }
    // A table of moments is predicted as its rows are.
    server.table("later", &csv(&rows[..3], &["at"])).await;
    let asked = json!({"dataset": "later", "into": "answers"});
    server.post("/v1/models/m/predictions").header("prefer", "wait=60").json(&asked).expect(201).await;
    let stored = server.get("/v1/datasets/answers/rows").expect(200).await.json();
    let found: Vec<f64> = stored["items"].as_array().unwrap().iter().map(|row| float(&row["prediction"])).collect();
    let some: Vec<Value> = rows[..3].iter().map(|row| json!({"at": row["at"]})).collect();
    assert_eq!(found, numbers(&server.predict("m", json!({"rows": some})).await["predictions"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_after_a_spline_is_the_refit_with_the_same_knots() {
    let mut server = Server::start().await;
    let mut rows = rows(200);
    // The extremes are among the first rows, so that both fits have the same boundary.
    (rows[0]["age"], rows[1]["age"]) = (json!(10), json!(80));
    server.table("first", &csv(&rows[..80], &COLUMNS)).await;
    server.table("all", &csv(&rows, &COLUMNS)).await;
    let features = json!([
        {"column": "age", "as": "spline", "knots": [25, 40, 55.5]},
        {"column": "income", "as": "impute", "with": "constant", "value": 1500, "indicator": true},
        {"columns": ["visits", "region"], "as": "interaction"},
    ]);
    let fit = |dataset: &str| json!({"dataset": dataset, "target": "y", "features": features});
    server.fit("online", fit("first")).await;
    let batch = server.fit("batch", fit("all")).await;
    let without: Vec<Value> = rows[80..]
        .iter()
        .map(|row| json!({"age": row["age"], "region": row["region"], "visits": row["visits"], "income": row["income"], "y": row["y"]}))
        .collect();
    for chunk in without.chunks(17) {
        server.learn("online", json!({"rows": chunk})).await;
    }
    server.restart().await;
    let online = server.get("/v1/models/online").expect(200).await.json();
    assert_eq!(online["features"], batch["features"]);
    for figure in ["estimate", "std_error"] {
        agree(&coefficients(&online, figure), &coefficients(&batch, figure), 9.0);
    }
    // And without a row, as if it had never been there.
    let erased = server.delete("/v1/datasets/all/rows/150").expect(200).await.json();
    assert_eq!(erased["unlearnt"].as_array().unwrap().len(), 1, "{erased}");
    let mut left = rows.clone();
    left.remove(150);
    server.table("left", &csv(&left, &COLUMNS)).await;
    let never = server.fit("never", fit("left")).await;
    let unlearnt = server.get("/v1/models/batch").expect(200).await.json();
    assert_eq!(unlearnt["features"], never["features"]);
    agree(&coefficients(&unlearnt, "estimate"), &coefficients(&never, "estimate"), 9.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_accepted_where_a_feature_fills_it_in_and_nowhere_else() {
    let (server, rows) = server(100).await;
    let known: Vec<f64> = rows.iter().filter_map(|row| row["income"].as_f64()).collect();
    let impute = json!({"column": "income", "as": "impute", "with": "mean", "indicator": true});
    let version = server.fit("m", json!({"dataset": "t", "target": "y", "features": ["age", impute]})).await;
    assert_eq!(version["fit"]["observations"], 100);
    agree(&[float(&version["features"][1]["value"])], &[known.iter().sum::<f64>() / known.len() as f64], 13.0);
    let filled = json!({"age": 30, "income": version["features"][1]["value"]});
    let found = numbers(&server.predict("m", json!({"rows": [{"age": 30}, {"age": 30, "income": null}, filled]})).await["predictions"]);
    assert_eq!(found[0], found[1]);
    agree(&[found[0] - found[2]], &[coefficients(&version, "estimate")[3]], 9.0);
    server.learn("m", json!({"rows": [{"age": 30, "income": null, "y": 5}]})).await;
    // A table with gaps, of which those in another column still leave rows out.
    server.table("gaps", "age,income\n30,\n,1000\n30,1000\n").await;
    let asked = json!({"dataset": "gaps", "into": "answers", "missing": "blank"});
    server.post("/v1/models/m/predictions").header("prefer", "wait=60").json(&asked).expect(201).await;
    let stored = server.get("/v1/datasets/answers/rows").expect(200).await.json();
    let answered: Vec<bool> = stored["items"].as_array().unwrap().iter().map(|row| row["prediction"].is_number()).collect();
    assert_eq!(answered, [true, false, true]);
    // One feature that fills in does not speak for another of the same column.
    let both = json!([impute, "income"]);
    let version = server.fit("both", json!({"dataset": "t", "target": "y", "features": both})).await;
    assert_eq!(version["fit"]["observations"], 80);
    let reply = server.post("/v1/models/both/predict").json(&json!({"rows": [{"income": null}]})).refused(422, "invalid_rows").await;
    assert_eq!(reply.pointers(), ["/rows/0/income"]);
    // Inputs are watched by the columns that rows hold.
    let watched = server.get("/v1/models/both/inputs").expect(200).await.json();
    let watched: Vec<&Value> = watched["features"].as_array().unwrap().iter().map(|feature| &feature["name"]).collect();
    assert_eq!(watched, ["income"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fold_learns_from_rows_that_are_held_out() {
    let server = Server::start().await;
    let mut noise = Noise(5);
    // What is held out lies far from what is not: a mean or a quantile of all rows would be another.
    let mut text = "when,x,z,y\n".to_owned();
    let mut rows = Vec::new();
    for row in 0..90 {
        let x = noise.next() + if row < 60 { 0.0 } else { 25.0 };
        let z = if row % 4 == 0 { Value::Null } else { json!(noise.next() + if row < 60 { 2.0 } else { -40.0 }) };
        let y = x + noise.next();
        text.push_str(&format!("{row},{x},{},{y}\n", if z.is_null() { String::new() } else { z.to_string() }));
        rows.push(json!({"x": x, "z": z, "y": y}));
    }
    server.table("all", &text).await;
    let before: String = text.lines().take(61).map(|line| format!("{line}\n")).collect();
    server.table("before", &before).await;
    let features = json!([
        {"column": "x", "as": "standardise"},
        {"column": "x", "as": "spline", "df": 3},
        {"column": "z", "as": "impute", "with": "median", "indicator": true},
    ]);
    let asked = |dataset: &str| {
        let estimator = json!({"kind": "ridge", "penalty": 3});
        json!({"dataset": dataset, "target": "y", "features": features, "estimator": estimator})
    };
    let mut validated = asked("all");
    validated["validation"] = json!({"kind": "time", "column": "when", "folds": 2});
    let version = server.fit("validated", validated.clone()).await;
    let apart = server.fit("apart", asked("before")).await;
    assert_ne!(version["features"], apart["features"]);
    let held_out: Vec<Value> = rows[60..].iter().map(|row| json!({"x": row["x"], "z": row["z"]})).collect();
    let predicted = numbers(&server.predict("apart", json!({"rows": held_out})).await["predictions"]);
    let squares: f64 = predicted.iter().zip(&rows[60..]).map(|(predicted, row)| (predicted - float(&row["y"])).powi(2)).sum();
    agree(&[float(&version["validation"]["folds"][1])], &[(squares / 30.0).sqrt()], 10.0);
    // What is stored was learnt from all rows, as without a validation.
    let plain = server.fit("plain", asked("all")).await;
    assert_eq!((&version["features"], &version["coefficients"]), (&plain["features"], &plain["coefficients"]));
    validated["validation"] = json!({"kind": "loo"});
    let reply = server.post("/v1/models/validated/fits").header("prefer", "wait=60").json(&validated).refused(422, "invalid_request").await;
    assert_eq!(reply.pointers(), ["/validation/kind"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feature_that_cannot_be_made_is_named_with_its_reason() {
    let (server, _) = server(60).await;
    server.table("constant", "x,y\n5,1\n5,2\n5,4\n").await;
    for (dataset, feature, code, place, reason) in [
        ("t", json!({"column": "colour", "as": "log"}), "unknown_column", "", "no column \"colour\""),
        ("t", json!({"columns": ["age", "colour"], "as": "interaction"}), "unknown_column", "", "no column \"colour\""),
        ("t", json!({"column": "region", "as": "log"}), "invalid_request", "", "type category cannot be used as `log`"),
        ("t", json!({"column": "age", "as": "calendar", "parts": ["hour"]}), "invalid_request", "", "type number"),
        ("t", json!({"column": "at", "as": "spline", "df": 3}), "invalid_request", "", "type timestamp"),
        ("t", json!({"columns": ["age", "at"], "as": "interaction"}), "invalid_request", "", "type timestamp"),
        ("t", json!({"column": "y", "as": "log"}), "invalid_request", "", "is a target"),
        ("t", json!({"column": "visits", "as": "log"}), "invalid_request", "", "row 1, column \"visits\""),
        ("t", json!({"column": "age", "as": "polynomial", "degree": 0}), "invalid_request", "/degree", "from 1 to 20"),
        ("t", json!({"column": "age", "as": "polynomial", "degree": 21}), "invalid_request", "/degree", "from 1 to 20"),
        ("t", json!({"column": "age", "as": "polynomial"}), "invalid_request", "/degree", "required"),
        ("t", json!({"column": "age", "as": "spline", "knots": [30, 500]}), "invalid_request", "", "within the data"),
        ("t", json!({"column": "age", "as": "spline", "knots": [40, 30]}), "invalid_request", "/knots", "above the one before"),
        ("t", json!({"column": "age", "as": "spline", "df": 1}), "invalid_request", "/df", "from 2 to 100"),
        ("t", json!({"column": "visits", "as": "spline", "df": 30}), "invalid_request", "", "too many"),
        ("t", json!({"column": "age", "as": "spline"}), "invalid_request", "", "either"),
        ("t", json!({"column": "age", "as": "bins", "edges": [3, 3]}), "invalid_request", "/edges", "above the one before"),
        ("t", json!({"column": "age", "as": "bins", "quantiles": 3, "edges": [1, 2]}), "invalid_request", "", "either"),
        ("t", json!({"column": "age", "as": "standardise", "degree": 2}), "invalid_request", "/degree", ""),
        ("t", json!({"column": "age", "as": "impute", "with": "mode"}), "invalid_request", "/with", "mean, median or constant"),
        ("t", json!({"column": "age", "as": "impute", "with": "constant"}), "invalid_request", "/value", "needs it"),
        ("t", json!({"columns": ["age"], "as": "interaction"}), "invalid_request", "/columns", "2 to 4"),
        ("t", json!({"columns": ["age", "age"], "as": "interaction"}), "invalid_request", "/columns", "twice"),
        ("t", json!({"column": "at", "as": "calendar"}), "invalid_request", "", "`parts`"),
        ("t", json!({"column": "at", "as": "calendar", "parts": ["minute"]}), "invalid_request", "/parts", "hour"),
        (
            "t",
            json!({"column": "at", "as": "calendar", "seasonality": {"period": "1 fortnight", "order": 1}}),
            "invalid_request",
            "/seasonality/0/period",
            "365.25d",
        ),
        ("t", json!({"columns": ["age"], "as": "random_fourier", "gamma": 0}), "invalid_request", "/gamma", "above 0"),
        ("t", json!({"column": "age", "as": "tfidf"}), "not_supported", "/as", "`spline`"),
        ("constant", json!({"column": "x", "as": "standardise"}), "invalid_request", "", "one value"),
        ("constant", json!({"column": "x", "as": "bins", "quantiles": 4}), "invalid_request", "", "one value"),
        ("constant", json!({"columns": ["x"], "as": "random_fourier"}), "invalid_request", "", "one value"),
    ] {
        let asked = json!({"dataset": dataset, "target": "y", "features": [feature]});
        let reply = server.post("/v1/models/m/fits").header("prefer", "wait=60").json(&asked).send().await;
        assert_eq!((reply.status, reply.code().as_str()), (422, code), "{feature}: {}", reply.text());
        assert_eq!(reply.pointers(), [format!("/features/0{place}")], "{feature}");
        assert!(reply.text().replace("\\\"", "\"").contains(reason), "{feature}: {}", reply.text());
    }
    // The same column in two roles, and the same feature twice.
    for features in [json!(["age", "age"]), json!(["region", {"column": "region", "as": "onehot"}])] {
        let asked = json!({"dataset": "t", "target": "y", "features": features});
        let reply = server.post("/v1/models/m/fits").json(&asked).refused(422, "invalid_request").await;
        assert_eq!(reply.pointers(), ["/features/1"]);
    }
    let asked = json!({"dataset": "t", "target": "y", "features": ["visits", {"column": "visits", "as": "onehot"}]});
    let reply = server.post("/v1/models/m/fits").json(&asked).refused(422, "invalid_request").await;
    assert!(reply.text().contains("a category in one feature and a number in another"), "{}", reply.text());
    // A row to predict has a logarithm, or is named.
    let asked = json!({"dataset": "t", "target": "y", "features": [{"column": "visits", "as": "log", "offset": 1}]});
    server.fit("m", asked).await;
    let reply =
        server.post("/v1/models/m/predict").json(&json!({"rows": [{"visits": 0}, {"visits": -1}]})).refused(422, "invalid_rows").await;
    assert_eq!(reply.pointers(), ["/rows/1/visits"]);
    let reply = server.post("/v1/models/m/predict").csv("visits\n-0.5\n-7\n").refused(422, "invalid_rows").await;
    assert_eq!(reply.pointers(), ["/rows/1/visits"]);
}
