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

/// Brownlee's plant that oxidises ammonia to nitric acid, 21 days in order: the loss by air flow, water temperature and acid concentration.
const STACK_LOSS: &str = "loss,air,water,acid
42,80,27,89
37,80,27,88
37,75,25,90
28,62,24,87
18,62,22,87
18,62,23,87
19,62,24,93
20,62,24,93
15,58,23,87
14,58,18,80
14,58,18,89
13,58,17,88
11,58,18,82
12,58,19,93
8,50,18,89
7,50,18,86
8,50,19,72
8,50,19,79
9,50,20,80
15,56,20,82
15,70,20,91
";

/// The diagnostics of version 1, all rows on one page.
async fn diagnosed(server: &Server, model: &str) -> Value {
    server.get(format!("/v1/models/{model}/versions/1/diagnostics?limit=1000")).expect(200).await.json()
}

fn figure(page: &Value, row: usize, name: &str) -> f64 {
    page["items"][row - 1]["targets"][0][name].as_f64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn effects_of_rows_on_coefficients_are_those_of_statsmodels() {
    let server = Server::start().await;
    server.table("stack", STACK_LOSS).await;
    server.fit("m", json!({"dataset": "stack", "target": "loss"})).await;
    let page = diagnosed(&server, "m").await;
    // OLSInfluence(OLS(loss, [1, air, water, acid]).fit()).dfbetas and .dffits of statsmodels 0.15.
    let expected: [(usize, [f64; 5]); 3] = [
        (1, [-0.08511854274750782, 0.4002336262620948, 0.10331686343867062, -0.20967315935648387, 0.7947205126436564]),
        (4, [-0.12178092697995685, -0.41494873321805353, 0.6187948469548032, 0.027112936580214443, 0.7878844455896705]),
        (21, [0.40159543503714884, -1.6238263051708894, 1.6419272744301538, -0.36331697966469023, -2.100296352899706]),
    ];
    for (row, [intercept, air, water, acid, dffits]) in expected {
        let effects = &page["items"][row - 1]["targets"][0]["dfbetas"];
        assert_eq!(effects.as_object().unwrap().len(), 4);
        let found = ["(intercept)", "air", "water", "acid"].map(|name| effects[name].as_f64().unwrap());
        agree(&found, &[intercept, air, water, acid], 11.0);
        agree(&[figure(&page, row, "dffits")], &[dffits], 11.0);
    }
    assert!(page.get("weights").is_none() && page["items"][0].get("weight").is_none());
    // A page has the effects of its own rows.
    let later = server.get("/v1/models/m/versions/1/diagnostics?limit=5&after=18").expect(200).await.json();
    assert_eq!(later["items"].as_array().unwrap()[..], page["items"].as_array().unwrap()[18..]);
    // Of two targets each has its own.
    let two = json!({"dataset": "stack", "target": ["acid", "loss"], "features": ["air", "water"], "intercept": false});
    server.fit("two", two).await;
    server.fit("one", json!({"dataset": "stack", "target": "loss", "features": ["air", "water"], "intercept": false})).await;
    let (two, one) = (diagnosed(&server, "two").await, diagnosed(&server, "one").await);
    for row in 0..21 {
        let (both, alone) = (&two["items"][row]["targets"][1]["dfbetas"], &one["items"][row]["targets"][0]["dfbetas"]);
        assert_eq!(alone.as_object().unwrap().keys().collect::<Vec<_>>(), ["air", "water"]);
        for name in ["air", "water"] {
            agree(&[both[name].as_f64().unwrap()], &[alone[name].as_f64().unwrap()], 9.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_robust_fit_says_what_it_left_of_each_row() {
    let server = Server::start().await;
    server.table("stack", STACK_LOSS).await;
    // RLM(loss, [1, air, water, acid], M=HuberT(1.345) or TukeyBiweight(4.685)).fit(tol=1e-13) of statsmodels 0.15: weights, resid, sresid;
    // and the hat matrix of WLS with those weights.
    type Expected = (&'static str, f64, [(usize, [f64; 4]); 4]);
    let expected: [Expected; 2] = [
        (
            "huber",
            2.440536091720995,
            [
                (1, [1.0, 3.0503290172569706, 1.2498602366933107, 0.327494918510722]),
                (3, [0.7858129803798124, 4.177229347596608, 1.711603184958821, 0.15481965795893426]),
                (4, [0.5048671960226574, 6.501751488757243, 2.6640669280872618, 0.0712494634645778]),
                (21, [0.36809168216635774, -8.917672423473743, -3.653980964971208, 0.13071270793503223]),
            ],
        ),
        (
            "bisquare",
            2.281881334951085,
            [
                (1, [0.8928701451075799, 2.5090380914919663, 1.099548014641064, 0.3290642612493525]),
                (3, [0.7904498209461993, 3.5605932334890866, 1.5603761593349519, 0.17865963941501334]),
                (4, [0.3358027972402945, 6.932556655152382, 3.0380881551410694, 0.051413425171942286]),
                (21, [0.002220389967594765, -10.435698562870815, -4.5732871394447505, 0.0009442026208049891]),
            ],
        ),
    ];
    for (kind, scale, rows) in expected {
        let version = server.fit(kind, json!({"dataset": "stack", "target": "loss", "estimator": {"kind": kind}})).await;
        let page = diagnosed(&server, kind).await;
        agree(&[version["fit"]["residual_std"].as_f64().unwrap()], &[scale], 9.0);
        for (row, [weight, residual, standardised, leverage]) in rows {
            let item = &page["items"][row - 1];
            let found = [item["weight"].as_f64().unwrap(), item["leverage"].as_f64().unwrap()];
            // Near the bisquare's end a weight is the square of a small difference: two digits less than what it is a difference of.
            agree(&found, &[weight, leverage], 7.0);
            agree(&[figure(&page, row, "residual"), figure(&page, row, "standardised")], &[residual, standardised], 9.0);
            assert!(["studentised", "cooks_distance", "dffits", "dfbetas"].iter().all(|name| item["targets"][0][*name].is_null()));
        }
        assert_eq!([&page["weights"][0]["row"], &page["weights"][1]["row"]], [21, 4]);
        assert_eq!(page["weights"][0]["value"], page["items"][20]["weight"]);
        // Past the last row the figures of the whole are the same.
        let past = server.get(format!("/v1/models/{kind}/versions/1/diagnostics?after=21")).expect(200).await.json();
        assert_eq!((&past["weights"], &past["items"], &past["targets"]), (&page["weights"], &json!([]), &page["targets"]));
        let total: f64 = page["items"].as_array().unwrap().iter().map(|item| item["leverage"].as_f64().unwrap()).sum();
        assert!((total - 4.0).abs() < 1e-10, "{total}");
        assert!(page["targets"][0]["press"].is_null() && page["targets"][0]["cooks_distances"].as_array().unwrap().is_empty());
        let largest = page["targets"][0]["residual_quantiles"][6]["value"].as_f64().unwrap();
        agree(&[largest], &[figure(&page, 4, "residual")], 14.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_weight_two_is_two_rows_of_a_robust_fit() {
    let server = Server::start().await;
    let lines: Vec<&str> = STACK_LOSS.lines().collect();
    let weighted: Vec<String> = lines
        .iter()
        .enumerate()
        .map(|(index, line)| format!("{line},{}", if index == 0 { "w" } else { ["1", "2", "0"][index % 3] }))
        .collect();
    let repeated: Vec<&str> = lines[1..].iter().zip(1..).flat_map(|(line, index): (_, usize)| vec![*line; [1, 2, 0][index % 3]]).collect();
    server.table("weighted", &weighted.join("\n")).await;
    server.table("repeated", &format!("{}\n{}\n", lines[0], repeated.join("\n"))).await;
    let asked =
        |dataset: &str| json!({"dataset": dataset, "target": "loss", "features": ["air", "water", "acid"], "estimator": {"kind": "huber"}});
    let mut with = asked("weighted");
    with["weights"] = json!("w");
    server.fit("weighted", with).await;
    server.fit("repeated", asked("repeated")).await;
    let (one, other) = (diagnosed(&server, "weighted").await, diagnosed(&server, "repeated").await);
    let mut place = 0;
    for index in 1..=21 {
        let count = [1, 2, 0][index % 3];
        let item = &one["items"][index - 1];
        if count == 0 {
            assert_eq!(item["leverage"], 0.0);
            continue;
        }
        let same = &other["items"][place];
        agree(&[item["weight"].as_f64().unwrap()], &[same["weight"].as_f64().unwrap()], 8.0);
        agree(&[item["leverage"].as_f64().unwrap()], &[same["leverage"].as_f64().unwrap() * f64::from(count as u8)], 8.0);
        agree(&[figure(&one, index, "standardised")], &[figure(&other, place + 1, "standardised")], 7.0);
        place += count;
    }
    assert_eq!(place, other["items"].as_array().unwrap().len());
    assert!(one["weights"].as_array().unwrap().iter().all(|entry| entry["row"].as_u64().unwrap() % 3 != 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_end_the_reweighting() {
    let server = Server::start().await;
    server.table("stack", STACK_LOSS).await;
    let asked = |estimator: Value| json!({"dataset": "stack", "target": "loss", "estimator": estimator});
    let usual = server.fit("usual", asked(json!({"kind": "bisquare"}))).await;
    assert_eq!(usual["estimator"], json!({"kind": "bisquare", "threshold": 4.685, "rounds": 50}));
    let warned = |version: &Value| {
        version["warnings"].as_array().unwrap().iter().any(|text| text.as_str().unwrap().contains("not settled after 2 rounds"))
    };
    let two = server.fit("two", asked(json!({"kind": "bisquare", "rounds": 2}))).await;
    assert!(warned(&two) && !warned(&usual), "{} {}", two["warnings"], usual["warnings"]);
    assert_eq!(two["estimator"]["rounds"], 2);
    assert_ne!(two["coefficients"], usual["coefficients"]);
    // The rows are held against the fit as it was made, not against a finished one.
    let answer = server.predict("two", json!({"rows": [{"air": 70, "water": 20, "acid": 91}]})).await;
    let residual = figure(&diagnosed(&server, "two").await, 21, "residual");
    assert!((residual - (15.0 - answer["predictions"][0].as_f64().unwrap())).abs() < 1e-10);
    for rounds in [json!(0), json!(10_001), json!(1.5), json!("many")] {
        let refused =
            server.post("/v1/models/w/fits").json(&asked(json!({"kind": "huber", "rounds": rounds}))).refused(422, "invalid_request").await;
        assert_eq!(refused.pointers(), ["/estimator/rounds"]);
    }
    let refused = server.post("/v1/models/w/fits").json(&asked(json!({"kind": "ols", "rounds": 5}))).refused(422, "invalid_request").await;
    assert_eq!(refused.pointers(), ["/estimator/rounds"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prior_is_part_of_the_fit_that_is_judged() {
    let server = Server::start().await;
    server.table("stack", STACK_LOSS).await;
    let (head, last) = STACK_LOSS.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(last, "15,70,20,91");
    server.table("without", &format!("{head}\n")).await;
    server.table("base", "air,water,loss\n60,20,18\n70,24,30\n55,19,9\n80,26,41\n").await;
    server.fit("base", json!({"dataset": "base", "target": "loss"})).await;
    // One column that the base knows and one that it does not.
    let asked = |dataset: &str| json!({"dataset": dataset, "target": "loss", "features": ["air", "acid"], "prior": {"model": "base", "strength": 40}});
    server.fit("all", asked("stack")).await;
    server.fit("without", asked("without")).await;
    // What the base learns afterwards is not what was pulled towards.
    server.learn("base", json!({"rows": [{"air": 90, "water": 20, "loss": 500}]})).await;
    let page = diagnosed(&server, "all").await;
    let row = json!({"rows": [{"air": 70, "acid": 91}]});
    let error = |answer: &Value| 15.0 - answer["predictions"][0].as_f64().unwrap();
    let (with, without) = (error(&server.predict("all", row.clone()).await), error(&server.predict("without", row).await));
    agree(&[figure(&page, 21, "residual")], &[with], 11.0);
    // Without the row, its error is residual/(1 − leverage): true only if prior and penalty are those of the fit.
    agree(&[with / (1.0 - page["items"][20]["leverage"].as_f64().unwrap())], &[without], 11.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn fits_without_such_figures_are_refused() {
    let server = Server::start().await;
    server.table("stack", STACK_LOSS).await;
    server.fit("base", json!({"dataset": "stack", "target": "loss"})).await;
    let asks = [
        json!({"estimator": {"kind": "lasso", "penalty": 0.1}}),
        json!({"estimator": {"kind": "nnls"}}),
        json!({"estimator": {"kind": "pca", "components": 2}}),
        json!({"constraints": [{"coefficients": {"air": 1, "water": -1}, "value": 0}]}),
        json!({"prior": {"model": "base", "strength": {"kind": "information"}}}),
    ];
    for (index, mut asked) in asks.into_iter().enumerate() {
        (asked["dataset"], asked["target"]) = (json!("stack"), json!("loss"));
        server.fit(&format!("m{index}"), asked).await;
        let refused = server.get(format!("/v1/models/m{index}/versions/1/diagnostics")).refused(409, "conflict").await;
        assert!(refused.json()["detail"].as_str().unwrap().contains("diagnostics"), "{}", refused.text());
    }
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
