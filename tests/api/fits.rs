//! Fits: certified values, closed forms, degenerate tables, jobs, versions and aliases.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Noise, Request, Server, agree, coefficients, names};

/// Longley's table (J. W. Longley, JASA 62, 1967), as NIST gives it: employed, then its six predictors.
const LONGLEY: &str = "employed,deflator,gnp,unemployed,forces,population,year
60323,83.0,234289,2356,1590,107608,1947
61122,88.5,259426,2325,1456,108632,1948
60171,88.2,258054,3682,1616,109773,1949
61187,89.5,284599,3351,1650,110929,1950
63221,96.2,328975,2099,3099,112075,1951
63639,98.1,346999,1932,3594,113270,1952
64989,99.0,365385,1870,3547,115094,1953
63761,100.0,363112,3578,3350,116219,1954
66019,101.2,397469,2904,3048,117388,1955
67857,104.6,419180,2822,2857,118734,1956
68169,108.4,442769,2936,2798,120445,1957
66513,110.8,444546,4681,2637,121950,1958
68655,112.6,482704,3813,2552,123366,1959
69564,114.2,502601,3931,2514,125368,1960
69331,115.7,518173,4806,2572,127852,1961
70551,116.9,554894,4007,2827,130081,1962
";
/// NIST's certified estimates, intercept first.
const ESTIMATES: [f64; 7] = [
    -3_482_258.634_595_82,
    15.061_872_271_373_3,
    -0.035_819_179_292_591_0,
    -2.020_229_803_816_83,
    -1.033_226_867_173_59,
    -0.051_104_105_653_580_7,
    1_829.151_464_613_55,
];
/// NIST's certified standard errors.
const STANDARD_ERRORS: [f64; 7] = [
    890_420.383_607_373,
    84.914_925_774_766_9,
    0.033_491_007_772_243_2,
    0.488_399_681_651_699,
    0.214_274_163_161_675,
    0.226_073_200_069_370,
    455.478_499_142_212,
];

#[tokio::test(flavor = "multi_thread")]
async fn longley_has_twelve_certified_digits() {
    let server = Server::start().await;
    server.table("longley", LONGLEY).await;
    for solver in ["auto", "qr", "exact"] {
        let version = server.fit("employment", json!({"dataset": "longley", "target": "employed", "solver": solver})).await;
        assert_eq!(names(&version), ["(intercept)", "deflator", "gnp", "unemployed", "forces", "population", "year"]);
        agree(&coefficients(&version, "estimate"), &ESTIMATES, 12.0);
        agree(&coefficients(&version, "std_error"), &STANDARD_ERRORS, 12.0);
        let fit = &version["fit"];
        assert_eq!((&fit["observations"], &fit["rank"], &fit["degrees_of_freedom"]), (&json!(16), &json!(7), &json!(9)));
        let figures = ["residual_std", "r2", "f"].map(|name| fit[name].as_f64().unwrap());
        agree(&figures, &[304.854_073_561_965, 0.995_479_004_577_296, 330.285_339_234_588], 11.0);
        assert!(fit["digits"].as_f64().unwrap() > 6.0);
        assert_eq!(version["warnings"], json!([]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_through_points_on_it_is_that_line() {
    let server = Server::start().await;
    server.table("t", "x,y\n1,1\n2,2\n3,3\n4,4\n").await;
    let version = server.fit("line", json!({"dataset": "t", "target": "y"})).await;
    assert_eq!(names(&version), ["(intercept)", "x"]);
    let estimates = coefficients(&version, "estimate");
    assert!(estimates[0].abs() < 1e-14, "{estimates:?}");
    agree(&estimates[1..], &[1.0], 15.0);
    assert_eq!(version["fit"]["rank"], 2);
    assert!(version["warnings"].to_string().contains("exact"), "{}", version["warnings"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn proportional_columns_share_their_effect_by_the_minimum_norm() {
    let server = Server::start().await;
    server.table("t", "a,b,y\n1,2,1\n2,4,2\n3,6,3\n4,8,4\n").await;
    let version = server.fit("m", json!({"dataset": "t", "target": "y", "intercept": false})).await;
    assert_eq!(version["fit"]["rank"], 1);
    agree(&coefficients(&version, "estimate"), &[0.2, 0.4], 14.0);
    let warnings = version["warnings"].as_array().unwrap();
    assert!(
        warnings.iter().any(|warning| warning.as_str().is_some_and(|text| text.contains('a') && text.contains(": a, b"))),
        "{warnings:?}"
    );
    assert_eq!(version["fit"]["condition_number"], Value::Null);
}

/// Weighted simple regression in closed form: intercept, slope, Sxx.
fn simple(points: &[(f64, f64, f64)], penalty: f64) -> (f64, f64, f64) {
    let total: f64 = points.iter().map(|point| point.2).sum();
    let mean = |pick: fn(&(f64, f64, f64)) -> f64| points.iter().map(|point| point.2 * pick(point)).sum::<f64>() / total;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let sxx: f64 = points.iter().map(|point| point.2 * (point.0 - x).powi(2)).sum();
    let sxy: f64 = points.iter().map(|point| point.2 * (point.0 - x) * (point.1 - y)).sum();
    let slope = sxy / (sxx + penalty);
    (y - slope * x, slope, sxx)
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_and_ridge_agree_with_their_closed_forms() {
    let server = Server::start().await;
    let points = [(1.0, 2.25, 1.0), (2.0, 1.5, 0.5), (4.0, 5.0, 2.0), (7.0, 6.5, 3.0), (9.0, 9.25, 0.25)];
    let mut csv = "x,y,w\n".to_owned();
    points.iter().for_each(|(x, y, w)| csv.push_str(&format!("{x},{y},{w}\n")));
    server.table("t", &csv).await;

    let (intercept, slope, sxx) = simple(&points, 0.0);
    let version = server.fit("weighted", json!({"dataset": "t", "target": "y", "weights": "w"})).await;
    assert_eq!(names(&version), ["(intercept)", "x"]);
    agree(&coefficients(&version, "estimate"), &[intercept, slope], 13.0);
    let rss: f64 = points.iter().map(|(x, y, w)| w * (y - intercept - slope * x).powi(2)).sum();
    agree(&[version["fit"]["residual_std"].as_f64().unwrap()], &[(rss / 3.0).sqrt()], 12.0);
    agree(&coefficients(&version, "std_error")[1..], &[(rss / 3.0 / sxx).sqrt()], 12.0);

    for penalty in [0.5, 100.0] {
        let unweighted = points.map(|(x, y, _)| (x, y, 1.0));
        let (intercept, slope, _) = simple(&unweighted, penalty);
        let estimator = json!({"kind": "ridge", "penalty": penalty});
        let version = server.fit("ridge", json!({"dataset": "t", "target": "y", "features": ["x"], "estimator": estimator})).await;
        agree(&coefficients(&version, "estimate"), &[intercept, slope], 13.0);
        assert_eq!(version["estimator"], json!({"kind": "ridge", "penalty": penalty}));
    }
    // Two columns without an intercept: (XᵀX + penalty·I)⁻¹Xᵀy by Cramer's rule.
    let (a, b, y) = ([1.0, 2.0, 3.0, 5.0], [2.0, -1.0, 0.5, 4.0], [3.0, 1.0, 4.0, 1.5]);
    let dot = |left: [f64; 4], right: [f64; 4]| left.iter().zip(right).map(|(left, right)| left * right).sum::<f64>();
    let (aa, bb, ab, ay, by) = (dot(a, a) + 0.75, dot(b, b) + 0.75, dot(a, b), dot(a, y), dot(b, y));
    let determinant = aa * bb - ab * ab;
    let mut csv = "a,b,y\n".to_owned();
    (0..4).for_each(|row| csv.push_str(&format!("{},{},{}\n", a[row], b[row], y[row])));
    server.table("u", &csv).await;
    let estimator = json!({"kind": "ridge", "penalty": 0.75});
    let version = server.fit("ridge", json!({"dataset": "u", "target": "y", "intercept": false, "estimator": estimator})).await;
    agree(&coefficients(&version, "estimate"), &[(ay * bb - by * ab) / determinant, (by * aa - ay * ab) / determinant], 13.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn categories_become_named_indicators() {
    let server = Server::start().await;
    server.table("t", "region,y\nnorth,1\nsouth,2\neast,4\nnorth,3\nsouth,4\neast,6\n").await;
    let version = server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    assert_eq!(names(&version), ["(intercept)", "region=north", "region=south"]);
    agree(&coefficients(&version, "estimate"), &[5.0, -3.0, -2.0], 13.0);
    assert_eq!(version["features"][0]["levels"], json!(["east", "north", "south"]));
    let all = server
        .fit("m", json!({"dataset": "t", "target": "y", "intercept": false, "features": [{"column": "region", "as": "onehot"}]}))
        .await;
    assert_eq!(names(&all), ["region=east", "region=north", "region=south"]);
    agree(&coefficients(&all, "estimate"), &[5.0, 2.0, 3.0], 13.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_targets_are_fitted_as_each_alone() {
    let server = Server::start().await;
    server.table("t", "x,y,z\n1,2.5,1\n2,3.5,0\n3,6,2\n5,7.25,-3\n").await;
    let both = server.fit("both", json!({"dataset": "t", "target": ["y", "z"], "features": ["x"]})).await;
    let mut estimates = Vec::new();
    for (place, target) in ["y", "z"].into_iter().enumerate() {
        let alone = server.fit("alone", json!({"dataset": "t", "target": target, "features": ["x"]})).await;
        estimates.extend(coefficients(&alone, "estimate"));
        for figure in ["residual_std", "r2", "f", "aic", "log_likelihood"] {
            agree(&[both["fit"]["targets"][place][figure].as_f64().unwrap()], &[alone["fit"][figure].as_f64().unwrap()], 13.0);
        }
    }
    agree(&coefficients(&both, "estimate"), &estimates, 14.0);
    assert_eq!((&both["fit"]["r2"], &both["fit"]["targets"][1]["target"]), (&Value::Null, &json!("z")));
}

#[tokio::test(flavor = "multi_thread")]
async fn degenerate_tables_have_defined_answers() {
    let server = Server::start().await;
    let fit = async |csv: &str, mut specification: Value| {
        server.table("t", csv).await;
        specification["dataset"] = json!("t");
        server.post("/v1/models/m/fits").json(&specification).send().await
    };
    let target = || json!({"target": "y"});

    // More columns than rows: rank is the number of rows, the fit is exact, nothing is left to judge it by.
    let wide = fit("a,b,c,d,y\n1,0,2,5,1\n0,1,1,-3,2\n", target()).await.json();
    assert_eq!((&wide["fit"]["rank"], &wide["fit"]["degrees_of_freedom"]), (&json!(2), &json!(0)));
    assert!(coefficients(&wide, "std_error").iter().all(|error| error.is_nan()), "{}", wide["coefficients"]);
    assert!(wide["warnings"].to_string().contains("degrees of freedom"));

    // A constant column tells nothing beside the intercept.
    let constant = fit("x,c,y\n1,7,1\n2,7,3\n3,7,2\n", target()).await.json();
    assert_eq!(constant["fit"]["rank"], 2);
    assert!(constant["warnings"].to_string().contains(": c"), "{}", constant["warnings"]);
    agree(&coefficients(&constant, "estimate")[1..2], &[0.5], 13.0);

    // A duplicate shares the effect of the column it repeats.
    let twins = fit("x,again,y\n1,1,1\n2,2,3\n3,3,2\n", target()).await.json();
    assert_eq!(twins["fit"]["rank"], 2);
    agree(&coefficients(&twins, "estimate")[1..], &[0.25, 0.25], 13.0);
    assert!(twins["warnings"].to_string().contains(": x, again"), "{}", twins["warnings"]);

    // One row: its response is all that is known.
    let single = fit("x,y\n2,5\n", target()).await;
    assert_eq!(single.status, 201, "{}", single.text());
    agree(&crate::client::numbers(&server.predict("m", json!({"rows": [{"x": 2}]})).await["predictions"]), &[5.0], 14.0);

    // An intercept alone is the mean.
    let mean = fit("y\n1\n2\n6\n", json!({"target": "y", "features": []})).await.json();
    agree(&coefficients(&mean, "estimate"), &[3.0], 15.0);
    let predicted = server.predict("m", json!({"rows": [{}, {}]})).await;
    agree(&crate::client::numbers(&predicted["predictions"]), &[3.0, 3.0], 15.0);

    // Missing cells leave their rows out, and a warning counts them.
    let holes = fit("x,y\n1,1\n,9\n2,2\n3,\n4,4.5\n", target()).await.json();
    assert_eq!(holes["fit"]["observations"], 3);
    assert!(holes["warnings"].to_string().contains("2 of 5 rows"), "{}", holes["warnings"]);

    // A constant response is fitted exactly.
    let flat = fit("x,y\n1,3\n2,3\n3,3\n", target()).await.json();
    agree(&coefficients(&flat, "estimate")[..1], &[3.0], 14.0);
    assert!(coefficients(&flat, "estimate")[1].abs() < 1e-14);

    for (csv, specification, code) in [
        ("x,y\n,1\n2,\n", target(), "fit_failed"),
        ("x,y\n1e200,1\n2,1e200\n-1e200,4\n", target(), ""),
        ("x,y,w\n1,1,-1\n2,2,1\n", json!({"target": "y", "weights": "w"}), "fit_failed"),
        ("x,y,w\n1,1,0\n2,2,0\n", json!({"target": "y", "weights": "w"}), "fit_failed"),
    ] {
        let reply = fit(csv, specification).await;
        assert!(if code.is_empty() { matches!(reply.status, 201 | 422) } else { reply.code() == code }, "{csv}: {}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_fit_cannot_take_is_named_by_pointer() {
    let server = Server::start().await;
    server.table("t", "x,y,name,at\n1,1,north,2024-01-01\n2,2,south,2024-01-02\n").await;
    let fit = |body: Value| server.post("/v1/models/m/fits").json(&body);
    let cases = [
        (json!({}), "invalid_request", vec!["/dataset", "/target"]),
        (json!({"dataset": "none", "target": "y"}), "unknown_dataset", vec!["/dataset"]),
        (json!({"dataset": "t", "target": "z"}), "unknown_column", vec!["/target"]),
        (
            json!({"dataset": "t", "target": ["y", "z"], "features": ["x", "q"], "weights": "v"}),
            "unknown_column",
            vec!["/target/1", "/weights", "/features/1"],
        ),
        (json!({"dataset": "t", "target": ["y", "name"]}), "invalid_request", vec!["/target/1"]),
        (json!({"dataset": "t", "target": "at"}), "invalid_request", vec!["/target"]),
        (json!({"dataset": "t", "target": "y", "features": ["y", "x", "x"]}), "invalid_request", vec!["/features/0", "/features/2"]),
        (json!({"dataset": "t", "target": "y", "colour": 1, "intercept": 3}), "invalid_request", vec!["/intercept", "/colour"]),
        (json!({"dataset": "t", "target": "y", "estimator": {"kind": "magic"}}), "invalid_request", vec!["/estimator/kind"]),
        (
            json!({"dataset": "t", "target": "y", "estimator": {"kind": "ridge", "penalty": -1}}),
            "invalid_request",
            vec!["/estimator/penalty"],
        ),
        (json!({"dataset": "t", "target": "y", "estimator": {"kind": "lasso"}}), "invalid_request", vec!["/estimator/penalty"]),
        (json!({"dataset": "t", "target": "y", "estimator": {"kind": "stack", "models": ["m"]}}), "not_supported", vec!["/estimator/kind"]),
        (
            json!({"dataset": "t", "target": "y", "online": {"forgetting_factor": 1.5}}),
            "invalid_request",
            vec!["/online/forgetting_factor"],
        ),
        (
            json!({"dataset": "t", "target": "y", "online": {"window": true, "drift": 5}}),
            "invalid_request",
            vec!["/online/drift", "/online/window"],
        ),
        (
            json!({"dataset": "t", "target": "y", "validation": {"kind": "kfold", "folds": 1}, "prior": {"model": "m"}, "covariance": "hc9"}),
            "invalid_request",
            vec!["/prior/strength", "/validation/folds", "/covariance"],
        ),
        (json!({"dataset": "t", "target": "y", "features": [{"column": "x", "as": "tfidf"}]}), "not_supported", vec!["/features/0/as"]),
        (json!({"dataset": "t", "target": "y", "intercept": false, "features": []}), "invalid_request", vec!["/features"]),
    ];
    for (body, code, pointers) in cases {
        let reply = fit(body.clone()).refused(422, code).await;
        let mut found = reply.pointers();
        found.sort_unstable();
        let mut pointers: Vec<String> = pointers.into_iter().map(str::to_owned).collect();
        pointers.sort_unstable();
        assert_eq!(found, pointers, "{body}");
    }
    fit(json!([])).refused(422, "invalid_request").await;
    server.post("/v1/models/m/fits").typed("application/json", "{\"dataset\":").refused(400, "bad_syntax").await;
    for model in ["a@b", "a%2Fb", "%07"] {
        server.post(format!("/v1/models/{model}/fits")).json(&json!({"dataset": "t", "target": "y"})).refused(422, "invalid_name").await;
    }
    server.get("/v1/models/m").refused(404, "model_not_found").await;
}

/// Waits until a job is over.
async fn over(server: &Server, location: &str) -> Value {
    let begun = Instant::now();
    loop {
        let reply = server.get(location).expect(200).await;
        let job = reply.json();
        if !matches!(job["state"].as_str(), Some("queued" | "running")) {
            return job;
        }
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert!(begun.elapsed() < Duration::from_secs(60), "{job}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A table whose fit by the exact solver takes long enough to be watched.
async fn large(server: &Server) {
    let (rows, columns) = (6000, 40);
    let mut noise = Noise(7);
    let mut csv = (0..columns).map(|column| format!("x{column},")).collect::<String>() + "y\n";
    for _ in 0..rows {
        for _ in 0..columns {
            csv.push_str(&format!("{:.6},", noise.next()));
        }
        csv.push_str(&format!("{:.6}\n", noise.next()));
    }
    server.table("large", &csv).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_accepted_watched_and_ends_with_a_version() {
    let mut server = Server::start().await;
    server.table("t", LONGLEY).await;
    let body = json!({"dataset": "t", "target": "employed"});
    let accepted = server.post("/v1/models/m/fits").header("prefer", "respond-async").json(&body).expect(202).await;
    let location = accepted.header("location").unwrap().to_owned();
    let events = server.get(format!("{location}/events")).expect(200).await.text();
    let last = events.trim_end().rsplit("\n\n").next().unwrap();
    let (name, data) = last.split_once('\n').unwrap();
    assert_eq!(name, "event: succeeded");
    let told: Value = serde_json::from_str(data.trim_start_matches("data: ")).unwrap();
    let job = over(&server, &location).await;
    assert_eq!((&job["state"], &job["version"], &job["model"]), (&json!("succeeded"), &json!(1), &json!("m")));
    assert_eq!(told["version"], job["version"]);
    server.get("/v1/models/m/versions/1").expect(200).await;
    assert_eq!(server.delete(location.clone()).expect(200).await.json()["state"], "succeeded");
    server.restart().await;
    assert_eq!(server.get(location.clone()).expect(200).await.json()["state"], "succeeded");
    assert!(server.get(format!("{location}/events")).expect(200).await.text().starts_with("event: succeeded\n"));
    server.get("/v1/jobs/none").refused(404, "job_not_found").await;

    server.table("bad", "x,y\n,1\n").await;
    let body = json!({"dataset": "bad", "target": "y"});
    let accepted = server.post("/v1/models/n/fits").header("prefer", "respond-async").json(&body).expect(202).await;
    let job = over(&server, accepted.header("location").unwrap()).await;
    assert_eq!((&job["state"], &job["problem"]["code"]), (&json!("failed"), &json!("fit_failed")));
    server.get("/v1/models/n").refused(404, "model_not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_leaves_no_version() {
    let server = Server::start().await;
    large(&server).await;
    let body = json!({"dataset": "large", "target": "y", "solver": "exact"});
    let mut locations = Vec::new();
    // More than the pool computes at once: some are cancelled while they wait, some while they run.
    for _ in 0..6 {
        let accepted = server.post("/v1/models/m/fits").header("prefer", "respond-async").json(&body).expect(202).await;
        locations.push(accepted.header("location").unwrap().to_owned());
    }
    for location in &locations {
        let reply = server.delete(location.clone()).send().await;
        assert!(matches!(reply.status, 200 | 202), "{}", reply.text());
    }
    let mut cancelled = 0;
    for location in &locations {
        let job = over(&server, location).await;
        cancelled += usize::from(job["state"] == "cancelled");
        assert!(job["state"] == "succeeded" || job["problem"]["code"] == "cancelled", "{job}");
    }
    assert!(cancelled >= 3, "only {cancelled} of {} jobs were cancelled", locations.len());
    let versions = server.get("/v1/models").expect(200).await.json()["items"][0]["versions"].as_u64().unwrap_or(0);
    assert_eq!(versions as usize, locations.len() - cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fit_under_an_idempotency_key_is_done_once() {
    let mut server = Server::start().await;
    server.table("t", "x,y\n1,1\n2,2.5\n3,2\n").await;
    fn fit<'a>(server: &'a Server, key: &str, dataset: &str) -> Request<'a> {
        server.post("/v1/models/m/fits").header("idempotency-key", key).json(&json!({"dataset": dataset, "target": "y"}))
    }
    fit(&server, "k", "t").header("if-match", "\"0-0\"").refused(412, "precondition_failed").await;
    let first = fit(&server, "k", "t").expect(201).await;
    let again = fit(&server, "k", "t").expect(201).await;
    assert!(!first.replayed() && again.replayed());
    assert_eq!(first.body, again.body);
    server.restart().await;
    let restarted = fit(&server, "k", "t").expect(201).await;
    assert!(restarted.replayed());
    assert_eq!(first.body, restarted.body);
    server
        .post("/v1/models/m/fits")
        .header("idempotency-key", "k")
        .json(&json!({"dataset": "t", "target": "x"}))
        .refused(422, "idempotency_mismatch")
        .await;
    assert_eq!(server.get("/v1/models/m/versions").expect(200).await.json()["items"].as_array().unwrap().len(), 1);

    // With If-Match too: the fit itself moves the tag, and its repeat is still the same request.
    let tag = first.etag();
    assert_eq!(fit(&server, "guarded", "t").header("if-match", tag.clone()).expect(201).await.json()["version"], 2);
    let again = fit(&server, "guarded", "t").header("if-match", tag).expect(201).await;
    assert!(again.replayed());
    assert_eq!(again.json()["version"], 2);
    // A fit that failed fails again, and says that it is the same.
    server.table("bad", "x,y\n,1\n").await;
    assert!(!fit(&server, "f", "bad").refused(422, "fit_failed").await.replayed());
    assert!(fit(&server, "f", "bad").refused(422, "fit_failed").await.replayed());
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_aliases_and_the_served_one() {
    let mut server = Server::start().await;
    server.table("t", "x,y,z\n1,1,5\n2,2.5,4\n3,2,4.5\n").await;
    let fit = |target: &str, serve: bool| json!({"dataset": "t", "target": target, "features": ["x"], "serve": serve});
    let first = server.fit("m", fit("y", true)).await;
    assert_eq!((&first["version"], &first["aliases"]), (&json!(1), &json!(["latest", "served"])));
    let second = server.fit("m", fit("z", false)).await;
    assert_eq!((&second["version"], &second["aliases"]), (&json!(2), &json!(["latest"])));
    assert_eq!(server.get("/v1/models/m").expect(200).await.json()["version"], 1);
    let third = server.fit("m", fit("z", true)).await;
    assert_eq!(third["aliases"], json!(["latest", "served"]));
    assert_eq!(server.get("/v1/models/m").expect(200).await.json()["version"], 3);

    let alias = "/v1/models/m/aliases/steady";
    server.put(alias).json(&json!({"version": 1})).expect(201).await;
    server.put(alias).json(&json!({"version": 2})).expect(200).await;
    server.put(alias).json(&json!({"version": 9})).refused(404, "version_not_found").await;
    assert_eq!(server.put(alias).json(&json!({"version": "2", "x": 1})).refused(422, "invalid_request").await.pointers().len(), 2);
    server.put("/v1/models/m/aliases/latest").json(&json!({"version": 1})).refused(409, "conflict").await;
    server.put("/v1/models/m/aliases/12").json(&json!({"version": 1})).refused(422, "invalid_name").await;
    server.put("/v1/models/none/aliases/a").json(&json!({"version": 1})).refused(404, "model_not_found").await;
    server
        .put("/v1/models/m/aliases/served")
        .header("if-match", "\"1-0\"")
        .json(&json!({"version": 1}))
        .refused(412, "precondition_failed")
        .await;
    server.put("/v1/models/m/aliases/served").header("if-match", "\"3-0\"").json(&json!({"version": 1})).expect(200).await;
    server.restart().await;
    let aliases = server.get("/v1/models/m/aliases").expect(200).await.json();
    assert_eq!(
        aliases["items"],
        json!([{"alias": "served", "version": 1, "sequence": null}, {"alias": "steady", "version": 2, "sequence": null}])
    );
    for (path, version) in [
        ("/v1/models/m", 1),
        ("/v1/models/m@steady", 2),
        ("/v1/models/m@latest", 3),
        ("/v1/models/m@3", 3),
        ("/v1/models/m/versions/2", 2),
        ("/v1/models/m/versions/latest", 3),
        ("/v1/models/m/versions/served", 1),
    ] {
        assert_eq!(server.get(path).expect(200).await.json()["version"], version, "{path}");
    }
    assert_eq!(server.predict("m@steady", json!({"rows": [{"x": 1}]})).await["version"], 2);
    for (path, code) in [
        ("/v1/models/none", "model_not_found"),
        ("/v1/models/m@9", "version_not_found"),
        ("/v1/models/m@none", "alias_not_found"),
        ("/v1/models/m/versions/9", "version_not_found"),
        ("/v1/models/none/versions", "model_not_found"),
        ("/v1/models/none/aliases", "model_not_found"),
    ] {
        server.get(path).refused(404, code).await;
    }

    let mut listed = Vec::new();
    let mut after = String::new();
    while listed.len() < 10 {
        let page = server.get(format!("/v1/models/m/versions?limit=2&after={after}")).expect(200).await.json();
        listed.extend(page["items"].as_array().unwrap().iter().map(|item| item["version"].as_u64().unwrap()));
        let Some(next) = page["next"].as_str() else { break };
        next.clone_into(&mut after);
    }
    assert_eq!(listed, [1, 2, 3]);
    let beyond = server.get("/v1/models/m/versions?after=18446744073709551615").expect(200).await.json();
    assert_eq!(beyond, json!({"items": [], "next": null}));
    let models = server.get("/v1/models").expect(200).await.json();
    assert_eq!(
        (&models["items"][0]["served"], &models["items"][0]["latest"], &models["items"][0]["versions"]),
        (&json!(1), &json!(3), &json!(3))
    );

    server.delete("/v1/models/m/versions/1").refused(409, "conflict").await;
    server.delete("/v1/models/m/versions/3").expect(204).await;
    server.get("/v1/models/m/versions/3").refused(404, "version_not_found").await;
    assert_eq!(server.get("/v1/models/m@latest").expect(200).await.json()["version"], 2);
    server.delete("/v1/models/m/aliases/served").refused(409, "conflict").await;
    server.delete(alias).expect(204).await;
    server.delete(alias).refused(404, "alias_not_found").await;
    // A number is never given out twice.
    assert_eq!(server.fit("m", fit("y", false)).await["version"], 4);
    server.delete("/v1/models/m").header("if-match", "\"9-9\"").refused(412, "precondition_failed").await;
    server.delete("/v1/models/m").expect(204).await;
    server.delete("/v1/models/m").refused(404, "model_not_found").await;
    server.restart().await;
    server.get("/v1/models/m").refused(404, "model_not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_reads_as_a_table_for_people() {
    let server = Server::start().await;
    server.table("t", LONGLEY).await;
    server.fit("m", json!({"dataset": "t", "target": "employed"})).await;
    let table = server.get("/v1/models/m").header("accept", "text/plain").expect(200).await.text();
    for word in ["(intercept)", "gnp", "std. error", "0.995479", "304.854", "degrees of freedom 9"] {
        assert!(table.contains(word), "{word} is not in\n{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fit_is_bitwise_the_same_each_time() {
    let mut server = Server::start().await;
    large(&server).await;
    let body = json!({"dataset": "large", "target": "y"});
    let first = server.fit("m", body.clone()).await;
    server.restart().await;
    let second = server.fit("m", body).await;
    assert_eq!(first["coefficients"], second["coefficients"]);
    assert_eq!(first["fit"], second["fit"]);
    assert_eq!(server.get("/v1/models/m/versions/1").expect(200).await.json()["coefficients"], first["coefficients"]);
}
