//! Diagnostics of a version, gradient descent with its events, and regression on principal components.

use serde_json::{Value, json};

use crate::client::{Noise, Server, agree, coefficients};

fn table(rows: usize) -> (String, Vec<[f64; 3]>) {
    let mut noise = Noise(5);
    let rows: Vec<[f64; 3]> = (0..rows)
        .map(|_| {
            let (a, b) = (noise.next() * 3.0 + 10.0, noise.next());
            [a, b, 2.0 + 0.5 * a - b + 0.1 * noise.next()]
        })
        .collect();
    let lines: Vec<String> = rows.iter().map(|[a, b, y]| format!("{a},{b},{y}")).collect();
    (format!("a,b,y\n{}\n", lines.join("\n")), rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn leverages_sum_to_the_rank_and_residuals_are_those_of_predictions() {
    let server = Server::start().await;
    let (csv, rows) = table(60);
    server.table("t", &csv).await;
    server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    let (mut leverage, mut after, mut items) = (0.0, String::new(), Vec::new());
    loop {
        let page = server.get(format!("/v1/models/m/versions/1/diagnostics?limit=25{after}")).expect(200).await.json();
        items.extend(page["items"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else {
            assert_eq!(page["rows"], 60);
            let target = &page["targets"][0];
            let quantiles = target["residual_quantiles"].as_array().unwrap();
            assert_eq!(quantiles.len(), 7);
            assert!((1.0..3.0).contains(&target["durbin_watson"].as_f64().unwrap()));
            assert!(target["jarque_bera"]["p"].as_f64().unwrap() > 0.0);
            assert_eq!(page["leverages"][0]["row"].as_u64().unwrap() - 1, largest(&items, |item| item["leverage"].as_f64().unwrap()));
            let cook = |item: &Value| item["targets"][0]["cooks_distance"].as_f64().unwrap();
            assert_eq!(target["cooks_distances"][0]["row"].as_u64().unwrap() - 1, largest(&items, cook));
            break;
        };
        after = format!("&after={next}");
    }
    assert_eq!(items.len(), 60);
    let asked: Vec<Value> = rows.iter().map(|[a, b, _]| json!({"a": a, "b": b})).collect();
    let answer = server.predict("m", json!({"rows": asked})).await;
    for (place, item) in items.iter().enumerate() {
        assert_eq!(item["row"], place + 1);
        leverage += item["leverage"].as_f64().unwrap();
        agree(&[item["leverage"].as_f64().unwrap()], &[answer["leverage"][place].as_f64().unwrap()], 9.0);
        let residual = rows[place][2] - answer["predictions"][place].as_f64().unwrap();
        assert!((item["targets"][0]["residual"].as_f64().unwrap() - residual).abs() < 1e-12);
    }
    assert!((leverage - 3.0).abs() < 1e-10);
    // Other rows under the same name are not the rows that were fitted.
    server.table("t", "a,b,y\n1,2,3\n2,1,4\n3,3,3\n5,4,1\n").await;
    server.get("/v1/models/m/versions/1/diagnostics").refused(409, "conflict").await;
    server.delete("/v1/datasets/t").expect(204).await;
    server.get("/v1/models/m/versions/1/diagnostics").refused(409, "conflict").await;
}

fn largest(items: &[Value], figure: impl Fn(&Value) -> f64) -> u64 {
    let mut best = 0;
    for place in 0..items.len() {
        if figure(&items[place]) > figure(&items[best]) {
            best = place;
        }
    }
    best as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn descent_ends_at_least_squares_and_a_rate_too_large_is_named() {
    let server = Server::start().await;
    server.table("t", &table(80).0).await;
    let exact = server.fit("exact", json!({"dataset": "t", "target": "y"})).await;
    let found = server.fit("m", json!({"dataset": "t", "target": "y", "estimator": {"kind": "gradient", "tolerance": 1e-12}})).await;
    assert_eq!(found["descent"]["converged"], true);
    agree(&coefficients(&found, "estimate"), &coefficients(&exact, "estimate"), 9.0);
    let losses = found["descent"]["losses"].as_array().unwrap();
    assert!(losses.len() > 1 && losses.first().unwrap().as_f64() > losses.last().unwrap().as_f64());
    // A pretrained model is where it starts: nothing is left to do.
    let tuned = json!({"dataset": "t", "target": "y", "prior": {"model": "m", "strength": 0}, "estimator": {"kind": "gradient", "epochs": 5, "tolerance": 1e-6}});
    let tuned = server.fit("tuned", tuned).await;
    assert!(tuned["descent"]["epochs"].as_u64().unwrap() <= 5 && tuned["descent"]["converged"] == true, "{}", tuned["descent"]);
    let wild = json!({"dataset": "t", "target": "y", "estimator": {"kind": "gradient", "learning_rate": 10.0}});
    let refused = server.post("/v1/models/w/fits").json(&wild).refused(422, "fit_failed").await;
    assert!(refused.json()["detail"].as_str().unwrap().contains("learning rate"), "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_components_are_least_squares_and_fewer_are_fewer_parameters() {
    let server = Server::start().await;
    server.table("t", &table(80).0).await;
    let exact = server.fit("exact", json!({"dataset": "t", "target": "y"})).await;
    let all =
        server.fit("all", json!({"dataset": "t", "target": "y", "estimator": {"kind": "pca", "components": 2, "standardise": true}})).await;
    agree(&coefficients(&all, "estimate"), &coefficients(&exact, "estimate"), 10.0);
    agree(&coefficients(&all, "std_error"), &coefficients(&exact, "std_error"), 9.0);
    let one = server.fit("one", json!({"dataset": "t", "target": "y", "estimator": {"kind": "pca", "components": 1}})).await;
    assert_eq!(one["fit"]["degrees_of_freedom"], 78);
    assert!(one["fit"]["r2"].as_f64() < exact["fit"]["r2"].as_f64());
    // It is not a sum of squares in its own coefficients: rows are not learnt one by one.
    server.post("/v1/models/one/updates").json(&json!({"rows": [{"a": 1, "b": 1, "y": 1}]})).refused(409, "conflict").await;
}
