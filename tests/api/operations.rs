//! Health, metrics, the contract itself, and what stands around every request.

use serde_json::json;

use crate::client::Server;

#[tokio::test(flavor = "multi_thread")]
async fn health_contract_and_home_are_served() {
    let server = Server::start().await;
    assert_eq!(server.get("/livez").expect(200).await.json(), json!({"live": true}));
    assert_eq!(server.get("/readyz").expect(200).await.json(), json!({"ready": true}));
    assert_eq!(server.get("/openapi.yaml").expect(200).await.text(), include_str!("../../openapi.yaml"));
    assert!(server.get("/").expect(200).await.text().contains("/openapi.yaml"));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_happens() {
    let server = Server::start().await;
    let metric = async |name: &str| {
        let text = server.get("/metrics").expect(200).await.text();
        let lines = text.lines().filter(|line| line.starts_with(name) && line[name.len()..].starts_with([' ', '{']));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    server.get("/metrics").expect(200).await;
    let names = [
        "lsqd_updates_total",
        "lsqd_predictions_total",
        "lsqd_fits_total",
        "lsqd_upload_rows_total",
        "lsqd_commits_total",
        "lsqd_requests_total",
        "lsqd_fit_seconds_count",
    ];
    let mut before = Vec::new();
    for name in names {
        before.push(metric(name).await);
    }
    server.table("t", "x,y\n1,1\n2,2.5\n3,3\n").await;
    server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    server.predict("m", json!({"rows": [{"x": 1}, {"x": 2}]})).await;
    server.learn("m", json!({"rows": [{"x": 1, "y": 2}]})).await;
    // Other tests of this process count too, so the figures are lower limits.
    for ((name, least), before) in names.into_iter().zip([1.0, 2.0, 1.0, 3.0, 3.0, 4.0, 1.0]).zip(before) {
        let now = metric(name).await;
        assert!(now >= before + least, "{name}: {before} and then {now}");
    }
    assert!(metric("lsqd_models").await >= 1.0 && metric("lsqd_datasets").await >= 1.0 && metric("lsqd_connections").await >= 1.0);
    // A route is a label by its pattern, never by the caller's name.
    let text = server.get("/metrics").expect(200).await.text();
    assert!(text.contains("route=\"/v1/models/{name}/predict\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_a_problem() {
    let server = Server::start().await;
    for path in ["/nothing", "/v1", "/v1/models/", "/v1/models/m/", "/v2/health/none", "/v1/models/a/b/c/d/e"] {
        server.get(path).refused(404, "not_found").await;
    }
    for (request, allowed) in [
        (server.delete("/livez"), "GET"),
        (server.post("/v1/datasets/t"), "PUT"),
        (server.put("/v1/models"), "GET"),
        (server.get("/v1/models/m/predict"), "POST"),
    ] {
        let reply = request.refused(405, "method_not_allowed").await;
        assert!(reply.header("allow").is_some_and(|methods| methods.contains(allowed)), "{:?}", reply.header("allow"));
    }
    let problem = server.get("/v1/models/none").refused(404, "model_not_found").await;
    assert_eq!(problem.header("content-type"), Some("application/problem+json"));
    let problem = problem.json();
    assert_eq!((&problem["error"], &problem["type"]), (&problem["detail"], &json!("/docs/problems#model_not_found")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_past_the_limit_is_refused() {
    let server = Server::start().await;
    server.table("t", "x,y\n1,1\n2,2.5\n3,3\n").await;
    server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    let body = vec![b' '; (64 << 20) + 1];
    server.post("/v1/models/m/predict").typed("application/json", body).refused(413, "payload_too_large").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_the_id_it_brought_or_one_of_its_own() {
    let server = Server::start().await;
    let echoed = server.get("/livez").header("x-request-id", "mine-1").expect(200).await;
    assert_eq!(echoed.header("x-request-id"), Some("mine-1"));
    let problem = server.get("/nothing").header("x-request-id", "mine-2").expect(404).await;
    assert_eq!(problem.json()["request_id"], "mine-2");
    let (first, second) = (server.get("/livez").expect(200).await, server.get("/livez").expect(200).await);
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
    for unfit in ["two words", "", &"n".repeat(129)] {
        let reply = server.get("/livez").header("x-request-id", unfit).expect(200).await;
        assert_ne!(reply.header("x-request-id"), Some(unfit));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_reply_tells_browsers_what_it_is_not() {
    let server = Server::start().await;
    server.table("t", "x,y\n1,1\n2,2.5\n3,3\n").await;
    server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    let stranger = ("origin", "https://elsewhere.example");
    for (request, status) in [
        (server.get("/livez"), 200),
        (server.get("/"), 200),
        (server.get("/openapi.yaml"), 200),
        (server.get("/v1/models"), 200),
        (server.post("/v1/models/m/predict").json(&json!({"rows": [{"x": 4}]})), 403),
        (server.post("/v1/models/m/predict").typed("text/csv", "x\n4\n"), 403),
        (server.get("/v1/models/none"), 404),
        (server.get("/nothing"), 404),
        (server.post("/livez"), 403),
        (server.delete("/v1/models/m"), 403),
    ]
    .map(|(request, status)| (request.header(stranger.0, stranger.1), status))
    .into_iter()
    .chain([
        (server.post("/v1/models/m/predict").json(&json!({"rows": [{"x": 4}]})), 200),
        (server.post("/v1/models/m/predict").typed("text/csv", "x\n4\n"), 200),
        (server.post("/v1/models/m/predict").json(&json!({"rows": [{"z": 4}]})), 422),
        (server.post("/livez"), 405),
        (server.delete("/v1/models/m"), 204),
    ]) {
        let reply = request.expect(status).await;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
        ] {
            assert_eq!(reply.header(name), Some(value), "{status}: {}", reply.text());
        }
        // No page of another origin may read what is here, and nobody is told which version answers.
        for name in ["access-control-allow-origin", "access-control-allow-credentials", "server", "strict-transport-security"] {
            assert_eq!(reply.header(name), None, "{status}: {}", reply.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nobody_needs_a_key_other_sites_cannot_use_a_browser_to_get_here() {
    let server = Server::start_with(|config| {
        config.cors_origins = vec!["https://friend.example".to_owned()];
        config.hosts = vec!["lsqd.example.com".to_owned()];
    })
    .await;
    server.table("t", "x,y\n1,1\n2,2.5\n3,3\n").await;
    server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    let own = format!("http://{}", server.address);
    let row = json!({"rows": [{"x": 1, "y": 1}]});
    let asked = || {
        [
            server.put("/v1/datasets/u").csv("x,y\n1,1\n2,2.5\n3,3\n"),
            server.post("/v1/models/m/predict").json(&json!({"rows": [{"x": 4}]})),
            server.post("/v1/models/m/updates").json(&row),
            server.post("/v2/models/m/infer").body("x"),
            server.post("/v1/keys").json(&json!({"scopes": ["admin"]})),
            server.delete("/v1/models/m"),
            server.post("/nothing"),
        ]
    };
    for origin in ["https://elsewhere.example", "http://localhost:1", "null"] {
        for request in asked() {
            let reply = request.header("origin", origin).refused(403, "foreign_origin").await;
            assert_eq!(reply.header("access-control-allow-origin"), None);
        }
        server.get("/v1/models/m").header("origin", origin).expect(200).await;
    }
    for request in asked() {
        request.header("host", "rebound.example").refused(403, "unknown_host").await;
    }
    for path in ["/", "/metrics", "/openapi.yaml", "/v1/models", "/v2", "/v2/models/m", "/version", "/nothing"] {
        server.get(path).header("host", "rebound.example:8080").refused(403, "unknown_host").await;
    }
    // Whoever balances the load asks by whatever name it has.
    for path in ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/ping", "/health"] {
        server.get(path).header("host", "rebound.example").expect(200).await;
    }
    for (name, value) in [("origin", own.as_str()), ("origin", "https://friend.example"), ("host", "lsqd.example.com:80")] {
        server.post("/v1/models/m/updates").header(name, value).json(&row).expect(200).await;
    }
    let (_, key) = server.make_key(None, json!({"scopes": ["admin"]})).await;
    // A page has to be given a key to show one.
    let shown =
        server.post("/v1/models/m/updates").key(&key).header("origin", "https://elsewhere.example").header("host", "rebound.example");
    shown.json(&row).expect(200).await;
    server.post("/v1/models/m/updates").header("origin", "https://elsewhere.example").json(&row).refused(401, "unauthorized").await;
}
