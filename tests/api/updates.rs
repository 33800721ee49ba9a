//! Learning row by row: test then train, the same as a batch fit, once and whole.

use serde_json::{Value, json};

use crate::client::{Noise, Request, Server, agree, coefficients, numbers};

/// A noisy plane of three features, as CSV rows without a header.
fn plane(rows: usize) -> Vec<[f64; 4]> {
    let mut noise = Noise(42);
    (0..rows)
        .map(|_| {
            let (a, b, c) = (10.0 * noise.next(), 100.0 + noise.next(), noise.next());
            [a, b, c, 3.0 + 2.0 * a - 0.5 * b + 7.0 * c + 0.3 * noise.next()]
        })
        .collect()
}

fn csv(rows: &[[f64; 4]]) -> String {
    let mut text = "a,b,c,y\n".to_owned();
    rows.iter().for_each(|[a, b, c, y]| text.push_str(&format!("{a},{b},{c},{y}\n")));
    text
}

/// A line through four points, at sequence 0.
async fn line() -> Server {
    let server = Server::start().await;
    server.table("t", "x,y\n1,1\n2,2.5\n3,2.75\n4,4\n").await;
    server.fit("line", json!({"dataset": "t", "target": "y"})).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn forgetting_factor_one_equals_the_batch_fit() {
    let mut server = Server::start().await;
    let rows = plane(400);
    server.table("all", &csv(&rows)).await;
    let batch = server.fit("batch", json!({"dataset": "all", "target": "y"})).await;
    // From many rows, and from fewer than there are coefficients.
    for (model, known) in [("many", 50), ("few", 2)] {
        server.table(model, &csv(&rows[..known])).await;
        server.fit(model, json!({"dataset": model, "target": "y", "online": {"forgetting_factor": 1}})).await;
        let path = format!("/v1/models/{model}/updates");
        let (first, rest) = rows[known..].split_at(100);
        server.post(path.clone()).csv(&csv(first)).expect(200).await;
        for chunk in rest.chunks(7) {
            server.post(path.clone()).csv(&csv(chunk)).expect(200).await;
        }
        server.restart().await;
        let online = server.get(format!("/v1/models/{model}")).expect(200).await.json();
        assert_eq!(online["sequence"], 400 - known);
        assert_eq!((&online["fit"]["observations"], &online["fit"]["rank"]), (&json!(400), &json!(4)));
        for figure in ["estimate", "std_error", "t", "lower", "upper"] {
            agree(&coefficients(&online, figure), &coefficients(&batch, figure), 10.0);
        }
        for figure in ["residual_std", "r2", "adjusted_r2", "f", "aic", "bic", "log_likelihood", "degrees_of_freedom"] {
            agree(&[online["fit"][figure].as_f64().unwrap()], &[batch["fit"][figure].as_f64().unwrap()], 10.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forgetting_follows_its_closed_form() {
    let server = Server::start().await;
    // A mean with forgetting factor 1/2: each row halves the weight of all before it.
    server.table("t", "y\n4\n8\n").await;
    server.fit("m", json!({"dataset": "t", "target": "y", "features": [], "online": {"forgetting_factor": 0.5}})).await;
    server.learn("m", json!({"rows": [{"y": 10}, {"y": 2}]})).await;
    let wanted = ((4.0 + 8.0) * 0.25 + 10.0 * 0.5 + 2.0) / (2.0 * 0.25 + 0.5 + 1.0);
    // To the size of the rows that keep forgotten directions alive, 1e-6 of the information.
    agree(&coefficients(&server.get("/v1/models/m").expect(200).await.json(), "estimate"), &[wanted], 6.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_predicted_before_they_are_learnt() {
    let server = line().await;
    let before = server.get("/v1/models/line").expect(200).await;
    for (sequence, (x, y)) in [(5.0, 5.5), (6.0, 5.75), (-3.0, 0.0)].into_iter().enumerate() {
        let said = numbers(&server.predict("line", json!({"rows": [{"x": x}]})).await["predictions"])[0];
        let learnt = server.learn("line", json!({"rows": [{"x": x, "y": y}]})).await;
        agree(&numbers(&learnt["predictions"]), &[said], 14.0);
        assert!((numbers(&learnt["errors"])[0] - (y - said)).abs() < 1e-13);
        assert_eq!((&learnt["sequence"], &learnt["accepted"]), (&json!(sequence + 1), &json!(1)));
        assert_eq!(server.predict("line", json!({"rows": [{"x": x}]})).await["sequence"], json!(sequence + 1));
    }
    let after = server.get("/v1/models/line").expect(200).await;
    assert_eq!((before.etag().as_str(), after.etag().as_str()), ("\"1-0\"", "\"1-3\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_learnt_from_once() {
    let mut server = line().await;
    let rows = json!({"rows": [{"x": 5, "y": 5.5, "_id": "a"}, {"x": 6, "y": 5, "_id": "b"}]});
    let first = server.learn("line", rows.clone()).await;
    let document = server.get("/v1/models/line").expect(200).await.body;
    let again = server.learn("line", rows.clone()).await;
    assert_eq!((&again["accepted"], &again["sequence"]), (&json!(0), &json!(2)));
    assert_eq!((&again["predictions"], &again["errors"]), (&first["predictions"], &first["errors"]));
    server.restart().await;
    assert_eq!(server.learn("line", rows).await["accepted"], 0);
    assert_eq!(server.get("/v1/models/line").expect(200).await.body, document);
    // Within one request, and in part.
    let mixed = server
        .learn("line", json!({"rows": [{"x": 7, "y": 8, "_id": "c"}, {"x": 7, "y": 8, "_id": "c"}, {"x": 1, "y": 1, "_id": "a"}]}))
        .await;
    assert_eq!((&mixed["accepted"], &mixed["sequence"]), (&json!(1), &json!(3)));
    assert_eq!(mixed["predictions"][0], mixed["predictions"][1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_learns_once_and_its_reply_is_kept() {
    let mut server = line().await;
    fn send(server: &Server, y: f64) -> Request<'_> {
        server.post("/v1/models/line/updates").header("idempotency-key", "k").json(&json!({"rows": [{"x": 5, "y": y}]}))
    }
    let first = send(&server, 5.5).expect(200).await;
    server.learn("line", json!({"rows": [{"x": 0, "y": 1}]})).await;
    let again = send(&server, 5.5).expect(200).await;
    assert!(!first.replayed() && again.replayed());
    assert_eq!(first.body, again.body);
    server.restart().await;
    assert_eq!(send(&server, 5.5).expect(200).await.body, first.body);
    send(&server, 6.0).refused(422, "idempotency_mismatch").await;
    assert_eq!(server.get("/v1/models/line").expect(200).await.json()["sequence"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_row_rejects_all() {
    let mut server = line().await;
    let before = server.get("/v1/models/line").expect(200).await;
    fn post(server: &Server) -> Request<'_> {
        server.post("/v1/models/line/updates")
    }
    for (row, pointer) in [
        (json!({"x": 5}), "/rows/1/y"),
        (json!({"y": 5}), "/rows/1/x"),
        (json!({"x": 5, "y": "north"}), "/rows/1/y"),
        (json!({"x": 5, "y": null}), "/rows/1/y"),
        (json!({"x": 5, "y": 5, "z": 1}), "/rows/1/z"),
        (json!({"x": 5, "y": 5, "_id": ""}), "/rows/1/_id"),
        (json!({"x": 5, "y": 5, "_id": [7]}), "/rows/1/_id"),
    ] {
        let reply = post(&server).json(&json!({"rows": [{"x": 9, "y": 9, "_id": "q"}, row]})).refused(422, "invalid_rows").await;
        assert_eq!(reply.pointers(), [pointer], "{row}");
    }
    // A row that is well formed and cannot be learnt: its square is not a finite number.
    let reply = post(&server).json(&json!({"rows": [{"x": 9, "y": 9, "_id": "q"}, {"x": 1e308, "y": -1e308}]})).send().await;
    assert_eq!((reply.status, reply.pointers()), (422, vec!["/rows/1".to_owned()]), "{}", reply.text());
    let lines = post(&server).ndjson("{\"x\":5,\"y\":5}\n{\"x\":6,\"y\":\"north\"}\n").refused(422, "invalid_rows").await;
    assert!(lines.json()["detail"].as_str().unwrap().contains("2"), "{}", lines.text());
    assert_eq!(
        post(&server).json(&json!({"rows": [{"x": 1, "y": 1}], "colour": 1})).refused(422, "invalid_request").await.pointers(),
        ["/colour"]
    );
    assert_eq!(server.get("/v1/models/line").expect(200).await.body, before.body);
    server.restart().await;
    assert_eq!(server.get("/v1/models/line").expect(200).await.body, before.body);
    // The event of a rejected request is still to be learnt.
    assert_eq!(server.learn("line", json!({"rows": [{"x": 9, "y": 9, "_id": "q"}]})).await["accepted"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn if_match_guards_the_sequence() {
    let server = line().await;
    let send = |tag: &str| server.post("/v1/models/line/updates").header("if-match", tag).json(&json!({"rows": [{"x": 5, "y": 5.5}]}));
    let first = send("\"1-0\"").expect(200).await;
    assert_eq!(first.etag(), "\"1-1\"");
    for tag in ["\"1-0\"", "\"2-1\"", "\"nonsense\"", "W/\"1-1\""] {
        send(tag).refused(412, "precondition_failed").await;
    }
    send("*").expect(200).await;
    send("\"1-2\"").expect(200).await;
    assert_eq!(server.get("/v1/models/line").expect(200).await.json()["sequence"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_teaches_the_same() {
    let server = line().await;
    let body = json!({"dataset": "t", "target": "y"});
    let bodies = [
        ("application/json", "{\"rows\":[{\"x\":5,\"y\":5.5},{\"y\":6,\"x\":6.25}]}"),
        ("application/json", "{\"columns\":[\"y\",\"x\"],\"data\":[[5.5,5],[6,6.25]]}"),
        ("application/x-ndjson", "{\"x\":5,\"y\":5.5}\n{\"y\":6,\"x\":6.25}\n"),
        ("text/csv", "y,x\n5.5,5\n6,6.25\n"),
    ];
    let mut replies = Vec::new();
    for (place, (media, text)) in bodies.into_iter().enumerate() {
        server.fit("m", body.clone()).await;
        let mut reply = server.post(format!("/v1/models/m@{}/updates", place + 1)).typed(media, text).expect(200).await.json();
        reply["version"] = Value::Null;
        replies.push((reply, server.get("/v1/models/m").expect(200).await.json()["coefficients"].clone()));
    }
    assert!(replies.windows(2).all(|pair| pair[0] == pair[1]), "{replies:?}");
    assert_eq!(server.learn("m", json!({"rows": []})).await["accepted"], 0);
    server.post("/v1/models/m/updates").typed("image/png", "x").refused(415, "unsupported_media_type").await;
    server.post("/v1/models/none/updates").json(&json!({"rows": []})).refused(404, "model_not_found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_count_and_are_one_when_absent() {
    let server = Server::start().await;
    server.table("w", "x,y,w\n1,1,1\n2,2.5,2\n3,2.75,1\n4,4,0.5\n5,4,3\n6,7,1\n").await;
    let batch = server.fit("batch", json!({"dataset": "w", "target": "y", "weights": "w"})).await;
    server.table("known", "x,y,w\n1,1,1\n2,2.5,2\n3,2.75,1\n").await;
    server.fit("m", json!({"dataset": "known", "target": "y", "weights": "w"})).await;
    server.learn("m", json!({"rows": [{"x": 4, "y": 4, "w": 0.5}, {"x": 5, "y": 4, "w": 3}, {"x": 6, "y": 7}]})).await;
    let online = server.get("/v1/models/m").expect(200).await.json();
    agree(&coefficients(&online, "estimate"), &coefficients(&batch, "estimate"), 12.0);
    agree(&coefficients(&online, "std_error"), &coefficients(&batch, "std_error"), 12.0);
    let negative = server.post("/v1/models/m/updates").json(&json!({"rows": [{"x": 4, "y": 4}, {"x": 5, "y": 4, "w": -3}]}));
    assert_eq!(negative.refused(422, "invalid_rows").await.pointers(), ["/rows/1/w"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_targets_and_categories_are_learnt() {
    let server = Server::start().await;
    let rows = "x,region,y,z\n1,a,1,5\n2,b,2.5,4\n3,a,2.75,4.5\n4,b,4,1\n5,a,4.5,0\n6,b,7,-2\n";
    server.table("all", rows).await;
    let batch = server.fit("batch", json!({"dataset": "all", "target": ["y", "z"]})).await;
    server.table("known", &rows.lines().take(5).map(|line| format!("{line}\n")).collect::<String>()).await;
    server.fit("m", json!({"dataset": "known", "target": ["y", "z"]})).await;
    let learnt =
        server.learn("m", json!({"rows": [{"x": 5, "region": "a", "y": 4.5, "z": 0}, {"x": 6, "region": "b", "y": 7, "z": -2}]})).await;
    assert!(learnt["errors"][1]["z"].is_number());
    let online = server.get("/v1/models/m").expect(200).await.json();
    agree(&coefficients(&online, "estimate"), &coefficients(&batch, "estimate"), 11.0);
    agree(&coefficients(&online, "std_error"), &coefficients(&batch, "std_error"), 11.0);
    let unseen = server.post("/v1/models/m/updates").json(&json!({"rows": [{"x": 5, "region": "c", "y": 4.5, "z": 0}]}));
    assert_eq!(unseen.refused(422, "invalid_rows").await.pointers(), ["/rows/0/region"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_at_once_lose_nothing() {
    let server = std::sync::Arc::new(line().await);
    let mut writers = Vec::new();
    for writer in 0..8 {
        let server = server.clone();
        writers.push(tokio::spawn(async move {
            let mut sequences = Vec::new();
            for round in 0..25 {
                let row = json!({"x": f64::from(round), "y": f64::from(writer)});
                sequences.push(server.learn("line", json!({"rows": [row]})).await["sequence"].as_u64().unwrap());
            }
            sequences
        }));
    }
    let mut all = Vec::new();
    for writer in writers {
        let sequences = writer.await.unwrap();
        assert!(sequences.windows(2).all(|pair| pair[0] < pair[1]));
        all.extend(sequences);
    }
    all.sort_unstable();
    assert_eq!(all, (1..=200).collect::<Vec<u64>>());
    assert_eq!(server.get("/v1/models/line").expect(200).await.json()["fit"]["observations"], 204);
}
