//! Estimators, covariances, validation, priors and constraints through HTTP, each against its closed form for one column.

use serde_json::{Value, json};

use crate::client::{Server, agree, coefficients, names, numbers};

const X: [f64; 7] = [1.0, 2.0, 3.5, 5.0, 6.0, 8.0, 11.0];
const Y: [f64; 7] = [2.25, 2.5, 5.0, 4.75, 8.0, 8.5, 12.0];

/// A simple regression in closed form.
struct Line {
    mean: f64,
    sxx: f64,
    sxy: f64,
    intercept: f64,
    slope: f64,
}

impl Line {
    fn of(x: &[f64], y: &[f64]) -> Self {
        let n = x.len() as f64;
        let (mean, level) = (x.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n);
        let sxx: f64 = x.iter().map(|x| (x - mean).powi(2)).sum();
        let sxy: f64 = x.iter().zip(y).map(|(x, y)| (x - mean) * (y - level)).sum();
        Self { mean, sxx, sxy, intercept: level - sxy / sxx * mean, slope: sxy / sxx }
    }

    /// The intercept that goes with another slope.
    fn with_slope(&self, slope: f64) -> [f64; 2] {
        [self.intercept + (self.slope - slope) * self.mean, slope]
    }
}

fn csv(x: &[f64], y: &[f64]) -> String {
    let rows: String = x.iter().zip(y).map(|(x, y)| format!("{x},{y}\n")).collect();
    format!("x,y\n{rows}")
}

async fn line() -> Server {
    let server = Server::start().await;
    server.table("t", &csv(&X, &Y)).await;
    server
}

async fn fit(server: &Server, extra: Value) -> Value {
    let mut body = json!({"dataset": "t", "target": "y", "features": ["x"]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    server.fit("m", body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lasso_and_elastic_net_threshold_softly() {
    let server = line().await;
    let line = Line::of(&X, &Y);
    let n = X.len() as f64;
    for (penalty, l1_ratio) in [(0.5, 1.0), (1.5, 1.0), (0.75, 0.25), (0.75, 0.5)] {
        let kind = if l1_ratio == 1.0 {
            json!({"kind": "lasso", "penalty": penalty})
        } else {
            json!({"kind": "elastic_net", "penalty": penalty, "l1_ratio": l1_ratio})
        };
        let version = fit(&server, json!({"estimator": kind})).await;
        let slope = (line.sxy / n - penalty * l1_ratio) / (line.sxx / n + penalty * (1.0 - l1_ratio));
        agree(&coefficients(&version, "estimate"), &line.with_slope(slope), 8.0);
    }
    // Past the largest correlation nothing is left.
    let none = fit(&server, json!({"estimator": {"kind": "lasso", "penalty": line.sxy / n + 1.0}})).await;
    assert_eq!(coefficients(&none, "estimate")[1], 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn coefficients_keep_within_their_bounds() {
    let server = line().await;
    let line = Line::of(&X, &Y);
    let free = fit(&server, json!({"estimator": {"kind": "nnls"}})).await;
    agree(&coefficients(&free, "estimate"), &[line.intercept, line.slope], 10.0);
    let capped = fit(&server, json!({"estimator": {"kind": "nnls", "upper": {"x": 0.5}}})).await;
    agree(&coefficients(&capped, "estimate"), &line.with_slope(0.5), 10.0);
    let falling: Vec<f64> = Y.iter().map(|y| -y).collect();
    server.table("t", &csv(&X, &falling)).await;
    let zero = fit(&server, json!({"estimator": {"kind": "nnls"}})).await;
    assert_eq!(coefficients(&zero, "estimate")[1], 0.0);
    agree(&coefficients(&zero, "estimate")[..1], &[-Y.iter().sum::<f64>() / 7.0], 10.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_outlier_moves_a_robust_line_little() {
    let server = Server::start().await;
    let x: Vec<f64> = (0..30).map(f64::from).collect();
    let mut y: Vec<f64> = x.iter().map(|x| 1.0 + 2.0 * x + 0.1 * (x * 1.7).sin()).collect();
    y[27] = -500.0;
    server.table("t", &csv(&x, &y)).await;
    let slope = |version: &Value| coefficients(version, "estimate")[1];
    assert!((slope(&fit(&server, json!({})).await) - 2.0).abs() > 1.0);
    for kind in ["huber", "bisquare"] {
        let version = fit(&server, json!({"estimator": {"kind": kind}})).await;
        assert!((slope(&version) - 2.0).abs() < 0.02, "{kind}: {}", slope(&version));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heteroscedastic_standard_errors_have_their_closed_form() {
    let server = line().await;
    let line = Line::of(&X, &Y);
    let n = X.len() as f64;
    let error = |kind: &str| {
        let meat: f64 = X
            .iter()
            .zip(Y)
            .map(|(x, y)| {
                let residual = y - line.intercept - line.slope * x;
                let leverage = 1.0 / n + (x - line.mean).powi(2) / line.sxx;
                let factor = match kind {
                    "hc1" => n / (n - 2.0),
                    "hc2" => 1.0 / (1.0 - leverage),
                    "hc3" => (1.0 - leverage).powi(-2),
                    _ => 1.0,
                };
                (x - line.mean).powi(2) * residual.powi(2) * factor
            })
            .sum();
        meat.sqrt() / line.sxx
    };
    for kind in ["hc0", "hc1", "hc2", "hc3"] {
        let version = fit(&server, json!({"covariance": kind})).await;
        agree(&coefficients(&version, "std_error")[1..], &[error(kind)], 10.0);
        agree(&coefficients(&version, "estimate"), &[line.intercept, line.slope], 13.0);
        assert_eq!(version["covariance"], kind);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_one_out_is_what_its_formula_says() {
    let server = line().await;
    let line = Line::of(&X, &Y);
    let n = X.len() as f64;
    let squares: f64 = X
        .iter()
        .zip(Y)
        .map(|(x, y)| {
            let leverage = 1.0 / n + (x - line.mean).powi(2) / line.sxx;
            ((y - line.intercept - line.slope * x) / (1.0 - leverage)).powi(2)
        })
        .sum();
    let version = fit(&server, json!({"validation": {"kind": "loo"}})).await;
    agree(&[version["validation"]["pooled"]["rmse"].as_f64().unwrap()], &[(squares / n).sqrt()], 11.0);
    for plan in [
        json!({"kind": "kfold", "folds": 3, "seed": 7}),
        json!({"kind": "holdout", "fraction": 0.3, "seed": 7}),
        json!({"kind": "time", "column": "x", "folds": 2}),
    ] {
        let first = fit(&server, json!({"validation": plan})).await;
        assert!(first["validation"]["mean"].as_f64().unwrap() > 0.0, "{plan}");
        assert_eq!(
            first["validation"],
            fit(&server, json!({"validation": plan})).await["validation"],
            "{plan}: a seed gives another answer"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chosen_penalty_is_the_best_of_those_tried() {
    let server = line().await;
    let version = fit(&server, json!({"estimator": {"kind": "ridge", "penalty": "auto", "penalties": [0.01, 0.1, 1, 10, 1000]}})).await;
    let selection = &version["selection"];
    let path = selection["path"].as_array().unwrap();
    assert_eq!(path.len(), 5);
    let best = path.iter().min_by(|left, right| left["score"].as_f64().unwrap().total_cmp(&right["score"].as_f64().unwrap())).unwrap();
    assert_eq!(selection["penalty"], best["penalty"]);
    let line = Line::of(&X, &Y);
    let slope = line.sxy / (line.sxx + best["penalty"].as_f64().unwrap());
    agree(&coefficients(&version, "estimate"), &line.with_slope(slope), 11.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prior_pulls_towards_the_pretrained_model() {
    let server = line().await;
    let (old_x, old_y) = ([0.0, 1.0, 2.0, 4.0], [1.0, 4.0, 6.5, 13.0]);
    server.table("old", &csv(&old_x, &old_y)).await;
    let old = server.fit("old", json!({"dataset": "old", "target": "y"})).await;
    let line = Line::of(&X, &Y);
    for strength in [0.0, 2.5, 1e6] {
        let version = fit(&server, json!({"prior": {"model": "old", "strength": strength}})).await;
        let slope = (line.sxy + strength * coefficients(&old, "estimate")[1]) / (line.sxx + strength);
        agree(&coefficients(&version, "estimate"), &line.with_slope(slope), 10.0);
    }
    // The pretrained model's own information is its rows.
    let version = fit(&server, json!({"prior": {"model": "old", "version": 1, "strength": {"kind": "information"}}})).await;
    let all = Line::of(&[&X[..], &old_x].concat(), &[&Y[..], &old_y].concat());
    agree(&coefficients(&version, "estimate"), &[all.intercept, all.slope], 11.0);
    let unknown = json!({"dataset": "t", "target": "y", "prior": {"model": "none", "strength": 1}});
    let refused = server.post("/v1/models/m/fits").json(&unknown).send().await;
    assert!(matches!(refused.status, 404 | 422), "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn constraints_are_kept() {
    let server = line().await;
    let through_origin = fit(&server, json!({"constraints": [{"coefficients": {"(intercept)": 1}, "value": 0}]})).await;
    let slope = X.iter().zip(Y).map(|(x, y)| x * y).sum::<f64>() / X.iter().map(|x| x * x).sum::<f64>();
    let estimates = coefficients(&through_origin, "estimate");
    assert!(estimates[0].abs() < 1e-12, "{estimates:?}");
    agree(&estimates[1..], &[slope], 11.0);
    let refused = server
        .post("/v1/models/m/fits")
        .json(&json!({"dataset": "t", "target": "y", "constraints": [{"coefficients": {"colour": 1}, "value": 0}]}))
        .send()
        .await;
    assert_eq!(refused.status, 422, "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn powers_are_named_and_predicted_from_the_column() {
    let server = Server::start().await;
    let x: Vec<f64> = (0..9).map(|index| f64::from(index) - 2.5).collect();
    let y: Vec<f64> = x.iter().map(|x| 1.0 - 2.0 * x + 0.5 * x * x * x).collect();
    server.table("t", &csv(&x, &y)).await;
    let version = fit(&server, json!({"features": [{"column": "x", "as": "polynomial", "degree": 3}]})).await;
    assert_eq!(names(&version), ["(intercept)", "x", "x^2", "x^3"]);
    let estimates = coefficients(&version, "estimate");
    agree(&[estimates[0], estimates[1], estimates[3]], &[1.0, -2.0, 0.5], 12.0);
    assert!(estimates[2].abs() < 1e-12, "{estimates:?}");
    agree(&numbers(&server.predict("m", json!({"rows": [{"x": 10}]})).await["predictions"]), &[481.0], 11.0);
}
