//! A stored dataset predicted into a new one.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Noise, Server};

/// A model of a number, a boolean and a category, and a table to be predicted.
async fn models() -> Server {
    let server = Server::start().await;
    server.table("train", "size,open,region,y,z\n1.5,true,north,3,1\n2,false,south,5,2\n3.5,true,east,4,2.5\n5,true,north,8,1\n6,false,south,9,0\n7.5,true,east,9.5,4\n8,false,north,12,-1\n").await;
    server.fit("mixed", json!({"dataset": "train", "target": "y", "features": ["size", "open", "region"]})).await;
    server.fit("both", json!({"dataset": "train", "target": ["y", "z"], "features": ["size", "open", "region"]})).await;
    let mut noise = Noise(3);
    let mut text = "region,id,size,open,note\n".to_owned();
    for row in 0..20_000 {
        let region = ["north", "south", "east"][row % 3];
        text.push_str(&format!("{region},row {row},{},{},\n", noise.next() * 5.0, row % 2 == 0));
    }
    server.table("new", &text).await;
    server
}

async fn csv(server: &Server, dataset: &str) -> Vec<String> {
    let reply = server.get(format!("/v1/datasets/{dataset}/rows")).header("accept", "text/csv").expect(200).await;
    reply.text().lines().map(str::to_owned).collect()
}

async fn job(server: &Server, id: &str) -> Value {
    let begun = Instant::now();
    loop {
        let job = server.get(format!("/v1/jobs/{id}")).expect(200).await.json();
        if !matches!(job["state"].as_str(), Some("queued" | "running")) {
            return job;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{job}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_is_predicted_as_its_rows_are() {
    let mut server = models().await;
    server.learn("mixed", json!({"rows": [{"size": 4, "open": true, "region": "north", "y": 7}]})).await;
    let asked = json!({"dataset": "new", "into": "answers", "columns": ["id", "size"], "interval": {"level": 0.8}, "explain": true});
    let reply = server.post("/v1/models/mixed/predictions").header("prefer", "wait=60").json(&asked).expect(201).await;
    assert_eq!(reply.header("location"), Some("/v1/datasets/answers"));
    let made = reply.json();
    let tag = server.get("/v1/datasets/new").expect(200).await.etag();
    assert_eq!(
        made["origin"],
        json!({"model": "mixed", "version": 1, "sequence": 1, "dataset": "new", "dataset_tag": tag.trim_matches('"')})
    );
    assert_eq!(made["rows"], 20_000);
    let names: Vec<&str> = made["columns"].as_array().unwrap().iter().map(|column| column["name"].as_str().unwrap()).collect();
    let parts = ["(baseline)_contribution", "size_contribution", "open_contribution", "region_contribution"];
    assert_eq!(names[..7], ["id", "size", "prediction", "lower", "upper", "leverage", "extrapolates"]);
    assert_eq!(names[7..], parts);
    let kinds: Vec<&str> = made["columns"].as_array().unwrap().iter().map(|column| column["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..7], ["text", "number", "number", "number", "number", "number", "boolean"]);
    // Bit for bit what the rows are answered by themselves.
    let rows: Vec<String> = csv(&server, "new").await;
    let mut question = "region,size,open\n".to_owned();
    for row in &rows[1..] {
        let cells: Vec<&str> = row.split(',').collect();
        question.push_str(&format!("{},{},{}\n", cells[0], cells[2], cells[3]));
    }
    let reply = server.post("/v1/models/mixed/predict?interval=prediction&level=0.8&explain=true").csv(&question).expect(200).await.text();
    let stored = csv(&server, "answers").await;
    for (answer, stored) in reply.lines().zip(&stored) {
        assert_eq!(stored.splitn(3, ',').nth(2), Some(answer));
    }
    assert_eq!(stored.len(), 20_001);
    // The description is that of the same rows uploaded, and all of it is there after a restart.
    server.table("again", &(stored.join("\n") + "\n")).await;
    let again = server.get("/v1/datasets/again").expect(200).await.json();
    assert_eq!(again["columns"].as_array().unwrap()[2], made["columns"].as_array().unwrap()[2]);
    assert_eq!(again["columns"].as_array().unwrap()[6], made["columns"].as_array().unwrap()[6]);
    assert_eq!(again["origin"], Value::Null);
    server.restart().await;
    assert_eq!(server.get("/v1/datasets/answers").expect(200).await.json(), made);
    // Appending makes it somebody else's.
    let row = stored[1].clone();
    let appended = server.post("/v1/datasets/answers/rows").csv(&format!("{}\n{row}\n", stored[0])).expect(200).await.json();
    assert_eq!((&appended["origin"], &appended["rows"]), (&Value::Null, &json!(20_001)));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_job_like_a_fit() {
    let server = models().await;
    let asked = json!({"dataset": "new", "into": "a", "fields": ["predictions", "version"], "at": {"sequence": 0}});
    let send = |asked: &Value| server.post("/v1/models/both/predictions").header("idempotency-key", "once").json(asked);
    let first = send(&asked).header("prefer", "respond-async").expect(202).await;
    let begun = first.json();
    assert_eq!((&begun["kind"], &begun["model"], &begun["dataset"]), (&json!("predictions"), &json!("both"), &json!("a")));
    let id = begun["id"].as_str().unwrap().to_owned();
    assert_eq!(first.header("location"), Some(format!("/v1/jobs/{id}").as_str()));
    let over = job(&server, &id).await;
    assert_eq!((&over["state"], &over["version"], &over["problem"]), (&json!("succeeded"), &json!(1), &Value::Null), "{over}");
    let events = server.get(format!("/v1/jobs/{id}/events")).expect(200).await.text();
    assert!(events.starts_with("event: succeeded\n"), "{events}");
    // The same again is the same job; another body is refused.
    let again = send(&asked).expect(201).await;
    assert!(again.replayed());
    let tag = again.etag();
    send(&json!({"dataset": "new", "into": "b"})).refused(422, "idempotency_mismatch").await;
    assert_eq!(csv(&server, "a").await[0], "y_prediction,z_prediction,version,sequence");
    assert!(csv(&server, "a").await[1].ends_with(",1,0"));
    let predict = |asked: Value| server.post("/v1/models/both/predictions").json(&asked);
    predict(json!({"dataset": "new", "into": "a"})).header("if-match", "\"0-0\"").refused(412, "precondition_failed").await;
    assert_eq!(server.get("/v1/datasets/a").expect(200).await.etag(), tag, "what fails changes nothing");
    predict(json!({"dataset": "new", "into": "a"})).header("if-match", tag).expect(201).await;
    // A dataset may be replaced by its own predictions.
    predict(json!({"dataset": "new", "into": "new", "columns": ["id"]})).expect(201).await;
    assert_eq!(server.get("/v1/datasets/new").expect(200).await.json()["origin"]["dataset"], "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_predicted_is_refused_before_or_named_by_its_row() {
    let server = models().await;
    let ask = |asked: Value| server.post("/v1/models/mixed/predictions").json(&asked);
    ask(json!({"dataset": "none", "into": "a"})).refused(422, "unknown_dataset").await;
    server.post("/v1/models/none/predictions").json(&json!({"dataset": "new", "into": "a"})).refused(404, "model_not_found").await;
    let reply = ask(json!({"dataset": "new", "into": "a", "columns": ["colour", "id", "id"]})).refused(422, "unknown_column").await;
    assert_eq!(reply.pointers(), ["/columns/0", "/columns/2"]);
    let reply = ask(json!({"into": "a", "missing": "perhaps", "fields": ["colour"], "x": 1})).refused(422, "invalid_request").await;
    let mut pointers = reply.pointers();
    pointers.sort_unstable();
    assert_eq!(pointers, ["/dataset", "/fields", "/missing", "/x"]);
    server.table("narrow", "size,open\n1,true\n").await;
    let reply = ask(json!({"dataset": "narrow", "into": "a"})).refused(422, "unknown_column").await;
    assert!(reply.json()["detail"].as_str().unwrap().contains("region"), "{}", reply.text());
    server.table("other", "size,open,region,prediction\nlarge,true,north,1\nhuge,false,south,2\n").await;
    let reply = ask(json!({"dataset": "other", "into": "a", "columns": ["prediction"]})).refused(422, "invalid_request").await;
    assert_eq!(reply.pointers(), ["/dataset", "/columns/0"]);
    // What only the rows show is named, and nothing is made.
    let rows = "1,true,north\n2,false,south\n,true,east\n4,,south\n5,true,north\n";
    server.table("gaps", &format!("size,open,region\n{rows}")).await;
    let reply = ask(json!({"dataset": "gaps", "into": "a"})).refused(422, "invalid_rows").await;
    let mut pointers = reply.pointers();
    pointers.sort_unstable();
    assert_eq!(pointers, ["/rows/2/size", "/rows/3/open"]);
    server.table("strange", &format!("size,open,region\n{}", rows.replace("5,true,north", "5,true,west"))).await;
    let reply = ask(json!({"dataset": "strange", "into": "a", "missing": "blank"})).refused(422, "invalid_rows").await;
    assert_eq!(reply.pointers(), ["/rows/4/region"]);
    server.get("/v1/datasets/a").refused(404, "dataset_not_found").await;
    // A job that failed says so for good.
    let begun = ask(json!({"dataset": "gaps", "into": "a"})).header("prefer", "respond-async").expect(202).await.json();
    let failed = job(&server, begun["id"].as_str().unwrap()).await;
    assert_eq!((&failed["state"], &failed["problem"]["code"]), (&json!("failed"), &json!("invalid_rows")), "{failed}");
    // Or their rows are blank.
    ask(json!({"dataset": "gaps", "into": "a", "columns": ["size"], "missing": "blank", "interval": {}})).expect(201).await;
    let stored = csv(&server, "a").await;
    let said = server
        .predict(
            "mixed",
            json!({"columns": ["size", "open", "region"], "data": [[1, true, "north"], [2, false, "south"], [5, true, "north"]]}),
        )
        .await;
    for (row, place) in [(1, 0), (2, 1), (5, 2)] {
        let prediction: f64 = stored[row].split(',').nth(1).unwrap().parse().unwrap();
        assert_eq!(prediction, said["predictions"][place].as_f64().unwrap());
    }
    assert_eq!((stored[3].as_str(), stored[4].as_str()), (",,,,,", "4,,,,,"));
    let columns = server.get("/v1/datasets/a").expect(200).await.json()["columns"].clone();
    assert!(columns.as_array().unwrap().iter().skip(1).all(|column| column["missing"] == 2), "{columns}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_makes_nothing() {
    let server = models().await;
    let text: String = (0..400_000).map(|row| format!("{row},true,north\n")).collect();
    server.table("long", &format!("size,open,region\n{text}")).await;
    let asked = json!({"dataset": "long", "into": "a", "explain": true, "interval": {}});
    let begun = server.post("/v1/models/mixed/predictions").header("prefer", "respond-async").json(&asked).expect(202).await.json();
    let id = begun["id"].as_str().unwrap();
    server.delete(format!("/v1/jobs/{id}")).send().await;
    assert_eq!(job(&server, id).await["state"], "cancelled");
    server.get("/v1/datasets/a").refused(404, "dataset_not_found").await;
}
