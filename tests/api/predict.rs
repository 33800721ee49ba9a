//! Predictions: every form of a question, intervals by the textbook, faults by place.

use serde_json::{Value, json};

use crate::client::{Server, agree, coefficients, numbers};

const X: [f64; 6] = [1.0, 2.0, 4.0, 5.0, 7.0, 11.0];
const Y: [f64; 6] = [2.5, 3.0, 6.5, 6.0, 9.5, 13.0];

/// A simple regression, a two-way model with a category, and one of two targets.
async fn models() -> Server {
    let server = Server::start().await;
    let mut csv = "x,y\n".to_owned();
    X.iter().zip(Y).for_each(|(x, y)| csv.push_str(&format!("{x},{y}\n")));
    server.table("simple", &csv).await;
    server.fit("simple", json!({"dataset": "simple", "target": "y"})).await;
    server.table("mixed", "size,open,region,y,z\n1.5,true,north,3,1\n2,false,south,5,2\n3.5,true,east,4,2.5\n5,true,north,8,1\n6,false,south,9,0\n7.5,true,east,9.5,4\n8,false,north,12,-1\n").await;
    for (model, target, unseen) in
        [("mixed", json!("y"), "error"), ("lenient", json!("y"), "baseline"), ("both", json!(["y", "z"]), "error")]
    {
        server.fit(model, json!({"dataset": "mixed", "target": target, "features": ["size", "open", "region"], "unseen": unseen})).await;
    }
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_a_question_has_the_same_answer() {
    let server = models().await;
    let rows = json!({"rows": [{"size": 2.5, "open": true, "region": "north"}, {"region": "east", "size": 4, "open": false}]});
    let answer = server.predict("mixed", rows).await;
    let columns = json!({"columns": ["open", "region", "size"], "data": [[true, "north", 2.5], [false, "east", 4]]});
    assert_eq!(server.predict("mixed", columns).await, answer);
    let predictions = numbers(&answer["predictions"]);
    let csv = "region,size,open\nnorth,2.5,true\neast,4,false\n";
    let reply = server.post("/v1/models/mixed/predict").csv(csv).expect(200).await;
    assert_eq!((reply.header("content-type"), reply.header("lsqd-version-sequence")), (Some("text/csv; charset=utf-8"), Some("1-0")));
    let text = reply.text();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("prediction,leverage,extrapolates"));
    let found: Vec<f64> = lines.map(|line| line.split(',').next().unwrap().parse().unwrap()).collect();
    assert_eq!(found, predictions);
    let ndjson = "{\"size\":2.5,\"open\":true,\"region\":\"north\"}\n\n{\"region\":\"east\",\"size\":4,\"open\":false}\n";
    let reply = server.post("/v1/models/mixed/predict?interval=confidence&level=0.9").ndjson(ndjson).expect(200).await;
    let lines: Vec<Value> = reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<f64> = lines.iter().map(|line| line["prediction"].as_f64().unwrap()).collect();
    assert_eq!(found, predictions);
    assert_eq!(lines[0]["leverage"], answer["leverage"][0]);
    let wanted = server
        .predict("mixed", json!({"columns": ["open", "region", "size"], "data": [[true, "north", 2.5]], "interval": {"kind": "confidence", "level": 0.9}}))
        .await;
    assert_eq!((&lines[0]["lower"], &lines[0]["upper"]), (&wanted["lower"][0], &wanted["upper"][0]));
    // What curl sends by itself is JSON here.
    let bare =
        server.post("/v1/models/simple/predict").typed("application/x-www-form-urlencoded", "{\"rows\":[{\"x\":3}]}").expect(200).await;
    assert_eq!(bare.json(), server.predict("simple", json!({"rows": [{"x": 3}]})).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn intervals_leverage_and_extrapolation_follow_the_textbook() {
    let server = models().await;
    let version = server.get("/v1/models/simple").expect(200).await.json();
    let estimates = coefficients(&version, "estimate");
    let s = version["fit"]["residual_std"].as_f64().unwrap();
    // The version's own confidence limits tell the Student quantile of its degrees of freedom.
    let t = (coefficients(&version, "upper")[1] - estimates[1]) / coefficients(&version, "std_error")[1];
    let n = X.len() as f64;
    let mean = X.iter().sum::<f64>() / n;
    let sxx: f64 = X.iter().map(|x| (x - mean).powi(2)).sum();
    let points = [0.0, 3.0, mean, 11.0, 25.0];
    let rows: Vec<Value> = points.iter().map(|x| json!({"x": x})).collect();
    for (kind, own) in [("confidence", 0.0), ("prediction", 1.0)] {
        let answer = server.predict("simple", json!({"rows": rows, "interval": {"kind": kind, "level": 0.95}})).await;
        let (mut fitted, mut lower, mut upper, mut leverage) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for x in points {
            let h = 1.0 / n + (x - mean).powi(2) / sxx;
            let (y, half) = (estimates[0] + estimates[1] * x, t * s * (own + h).sqrt());
            fitted.push(y);
            lower.push(y - half);
            upper.push(y + half);
            leverage.push(h);
        }
        agree(&numbers(&answer["predictions"]), &fitted, 13.0);
        agree(&numbers(&answer["lower"]), &lower, 12.0);
        agree(&numbers(&answer["upper"]), &upper, 12.0);
        agree(&numbers(&answer["leverage"]), &leverage, 12.0);
        assert_eq!(answer["extrapolates"], json!([false, false, false, false, true]));
    }
    // The kind and the level have defaults.
    let usual = server.predict("simple", json!({"rows": rows, "interval": {}})).await;
    let said = server.predict("simple", json!({"rows": rows, "interval": {"kind": "prediction", "level": 0.95}})).await;
    assert_eq!(usual, said);
}

#[tokio::test(flavor = "multi_thread")]
async fn contributions_add_up_to_the_prediction() {
    let server = models().await;
    let rows = json!([{"size": 2.5, "open": true, "region": "north"}, {"size": 40, "open": false, "region": "east"}]);
    let answer = server.predict("mixed", json!({"rows": rows, "explain": true})).await;
    let sum = |parts: &Value| parts.as_object().unwrap().values().map(|part| part.as_f64().unwrap()).sum::<f64>();
    for (place, prediction) in numbers(&answer["predictions"]).into_iter().enumerate() {
        let parts = &answer["contributions"][place];
        assert_eq!(parts.as_object().unwrap().keys().collect::<Vec<_>>(), ["(baseline)", "size", "open", "region"]);
        agree(&[sum(parts)], &[prediction], 12.0);
    }
    let both = server.predict("both", json!({"rows": rows, "explain": true, "interval": {}})).await;
    for target in ["y", "z"] {
        let prediction = both["predictions"][1][target].as_f64().unwrap();
        agree(&[sum(&both["contributions"][1][target])], &[prediction], 11.0);
        assert!(both["lower"][1][target].as_f64().unwrap() < prediction && prediction < both["upper"][1][target].as_f64().unwrap());
    }
    let csv = "size,open,region\n2.5,true,north\n";
    let text = server.post("/v1/models/both/predict?interval=prediction").csv(csv).expect(200).await.text();
    assert_eq!(text.lines().next(), Some("y_prediction,z_prediction,y_lower,z_lower,y_upper,z_upper,leverage,extrapolates"));
    assert_eq!(server.predict("mixed", json!({"rows": rows})).await["contributions"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_limit_the_answer() {
    let server = models().await;
    let ask = async |query: &str| {
        server.post(format!("/v1/models/simple/predict{query}")).json(&json!({"rows": [{"x": 3}]})).expect(200).await.json()
    };
    let full = ask("").await;
    let less = ask("?fields=predictions").await;
    assert_eq!((&less["predictions"], &less["leverage"], &less["extrapolates"]), (&full["predictions"], &Value::Null, &Value::Null));
    let one = ask("?fields=predictions,leverage").await;
    assert_eq!((&one["leverage"], &one["extrapolates"]), (&full["leverage"], &Value::Null));
    assert_eq!(ask("?fields=predictions%2Cextrapolates").await["extrapolates"], json!([false]));
    let text = server.post("/v1/models/simple/predict?fields=predictions").csv("x\n3\n").expect(200).await.text();
    assert_eq!(text.lines().next(), Some("prediction"));
    // What is listed is answered and nothing else, in every dialect.
    let interval = json!({"rows": [{"x": 3}], "interval": {}, "explain": true});
    let less = server.post("/v1/models/simple/predict?fields=upper,version").json(&interval).expect(200).await.json();
    for member in ["predictions", "lower", "leverage", "extrapolates", "contributions"] {
        assert_eq!(less[member], Value::Null, "{member}");
    }
    assert!(less["upper"][0].is_number() && less["version"] == 1);
    let send = |media: &str, text: &str, query: &str| {
        server.post(format!("/v1/models/simple/predict?interval=prediction&explain=true&fields={query}")).typed(media, text)
    };
    let line = send("application/x-ndjson", "{\"x\":3}\n", "predictions").expect(200).await.json();
    assert_eq!(line, json!({"prediction": full["predictions"][0]}));
    let line = send("application/x-ndjson", "{\"x\":3}\n", "lower,contributions,version").expect(200).await.json();
    assert_eq!(line.as_object().unwrap().keys().collect::<Vec<_>>(), ["lower", "contributions", "version", "sequence"]);
    agree(
        &[numbers(&json!([line["contributions"]["(baseline)"], line["contributions"]["x"]])).iter().sum()],
        &numbers(&full["predictions"]),
        13.0,
    );
    let text = send("text/csv", "x\n3\n", "upper,predictions,version,contributions,scores").expect(200).await.text();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("prediction,upper,(baseline)_contribution,x_contribution,version,sequence"));
    assert!(lines.next().unwrap().ends_with(",1,0"), "{text}");
    assert_eq!(send("text/csv", "x\n3\n", "scores").refused(422, "invalid_request").await.pointers(), ["/fields"]);
    for (query, pointer) in [("fields=colour", "/fields"), ("interval=prediction", "/"), ("colour=red", "/")] {
        let reply = server
            .post(format!("/v1/models/simple/predict?{query}"))
            .json(&json!({"rows": [{"x": 3}]}))
            .refused(422, "invalid_request")
            .await;
        assert_eq!(reply.pointers(), [pointer], "{query}");
    }
    for (query, pointer) in [("interval=wide", "/interval"), ("level=2", "/level")] {
        let reply = server.post(format!("/v1/models/simple/predict?{query}")).csv("x\n3\n").refused(422, "invalid_request").await;
        assert_eq!(reply.pointers(), [pointer], "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_rows_are_named_by_row_and_column() {
    let server = models().await;
    let good = json!({"size": 1, "open": true, "region": "north"});
    let with = |column: &str, value: Value| {
        let mut row = good.clone();
        row[column] = value;
        row
    };
    let mut missing = good.clone();
    missing.as_object_mut().unwrap().remove("size");
    let cases = [
        (missing, "size"),
        (with("size", Value::Null), "size"),
        (with("size", json!("large")), "size"),
        (with("size", json!([1])), "size"),
        (with("open", json!("maybe")), "open"),
        (with("region", json!("west")), "region"),
        (with("region", json!(null)), "region"),
        (with("colour", json!("red")), "colour"),
    ];
    for (row, column) in &cases {
        let reply = server.post("/v1/models/mixed/predict").json(&json!({"rows": [good, row]})).refused(422, "invalid_rows").await;
        assert_eq!(reply.pointers(), [format!("/rows/1/{column}")], "{row}");
        let detail = reply.json()["errors"][0]["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("row 2") && detail.contains(column), "{detail}");
        assert!(!["large", "maybe", "west", "red"].iter().any(|value| detail.contains(value)), "a value is echoed: {detail}");
    }
    // All together.
    let rows: Vec<Value> = cases.iter().map(|(row, _)| row.clone()).collect();
    let reply = server.post("/v1/models/mixed/predict").json(&json!({"rows": rows})).refused(422, "invalid_rows").await;
    let mut wanted: Vec<String> = cases.iter().enumerate().map(|(index, (_, column))| format!("/rows/{index}/{column}")).collect();
    let mut found = reply.pointers();
    found.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
    let many: Vec<Value> = (0..500).map(|_| cases[2].0.clone()).collect();
    assert_eq!(
        server.post("/v1/models/mixed/predict").json(&json!({"rows": many})).refused(422, "invalid_rows").await.pointers().len(),
        20
    );

    for (csv, words) in
        [("size,open,region\n1,true,north\nlarge,true,north\n", ["line 3", "size"]), ("size,open,region\n1,true,\n", ["line 2", "region"])]
    {
        let reply = server.post("/v1/models/mixed/predict").csv(csv).refused(422, "invalid_rows").await;
        let detail = reply.json()["errors"][0]["detail"].as_str().unwrap().to_owned();
        assert!(words.iter().all(|word| detail.contains(word)) || detail.contains("row "), "{detail}");
    }
    for csv in ["size,open\n1,true\n", "size,open,region,colour\n1,true,north,red\n"] {
        let reply = server.post("/v1/models/mixed/predict").csv(csv).expect(422).await;
        assert!(!reply.pointers().is_empty(), "{csv}: {}", reply.text());
    }
    for (question, pointers) in [
        (json!({"rows": [good], "interval": {"kind": "wide", "level": 1}}), vec!["/interval/kind", "/interval/level"]),
        (json!({"rows": [good], "interval": "wide", "explain": 1, "colour": 2}), vec!["/colour", "/explain", "/interval"]),
    ] {
        let mut found = server.post("/v1/models/mixed/predict").json(&question).refused(422, "invalid_request").await.pointers();
        found.sort_unstable();
        assert_eq!(found, pointers, "{question}");
    }
    server.post("/v1/models/none/predict").json(&json!({"rows": []})).refused(404, "model_not_found").await;
    server.post("/v1/models/mixed/predict").typed("image/png", "x").refused(415, "unsupported_media_type").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unseen_category_is_the_baseline_where_the_version_says_so() {
    let server = models().await;
    let ask = async |region: &str| {
        numbers(&server.predict("lenient", json!({"rows": [{"size": 3, "open": true, "region": region}]})).await["predictions"])
    };
    assert_eq!(ask("atlantis").await, ask("east").await);
    assert_ne!(ask("atlantis").await, ask("north").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_rows_have_an_empty_answer() {
    let server = models().await;
    let answer = server.predict("simple", json!({"rows": []})).await;
    assert_eq!((&answer["predictions"], &answer["leverage"]), (&json!([]), &json!([])));
    assert_eq!(server.post("/v1/models/simple/predict").csv("x\n").expect(200).await.text(), "prediction,leverage,extrapolates\n");
    assert_eq!(server.post("/v1/models/simple/predict").ndjson("").expect(200).await.text(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_without_degrees_of_freedom_has_no_interval() {
    let server = Server::start().await;
    server.table("t", "x,y\n1,1\n2,3\n").await;
    server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    let answer = server.predict("m", json!({"rows": [{"x": 3}], "interval": {}})).await;
    agree(&numbers(&answer["predictions"]), &[5.0], 14.0);
    assert_eq!((&answer["lower"], &answer["upper"]), (&json!([null]), &json!([null])));
    let text = server.post("/v1/models/m/predict?interval=prediction").csv("x\n3\n").expect(200).await.text();
    assert!(text.lines().nth(1).unwrap().contains(",,,"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rows_are_answered_in_order() {
    let server = models().await;
    let mut csv = "x\n".to_owned();
    (0..50_000).for_each(|x| csv.push_str(&format!("{x}\n")));
    let text = server.post("/v1/models/simple/predict?fields=predictions").csv(&csv).expect(200).await.text();
    let found: Vec<f64> = text.lines().skip(1).map(|line| line.parse().unwrap()).collect();
    assert_eq!(found.len(), 50_000);
    assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
}
