//! `POST /v1/backup` as a client sees it. Backups under updates, and restores, are in `tests/crash`.

use serde_json::json;

use crate::client::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_a_database_that_says_where_its_versions_stand() {
    let server = Server::start().await;
    server.table("t", "x,y\n1,1\n2,2.5\n3,3\n").await;
    server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    server.learn("m", json!({"rows": [{"x": 4, "y": 4.5}, {"x": 5, "y": 5}]})).await;
    server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    let reply = server.post("/v1/backup").expect(200).await;
    assert_eq!(reply.header("content-type"), Some("application/vnd.sqlite3"));
    assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    assert!(reply.header("content-disposition").is_some_and(|name| name.starts_with("attachment; filename=\"lsqd-2")));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup.db");
    std::fs::write(&path, &reply.body).unwrap();
    let mut copy = lsqd::store::backup::look(&path).await.unwrap();
    let label = lsqd::store::backup::read_label(&mut copy).await.unwrap().unwrap();
    let standing = |version, sequence| lsqd::service::backup::Standing { model: "m".to_owned(), version, sequence };
    assert_eq!(label.versions, [standing(1, 2), standing(2, 0)]);
    assert!(lsqd::service::check::check(&path).await.unwrap().is_whole());
    // A name of a file, a query, a body: nothing of that is looked at.
    server.post("/v1/backup?to=/etc/passwd").json(&json!({"to": "/etc/passwd"})).expect(200).await;
    server.get("/v1/backup").refused(405, "method_not_allowed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_that_is_not_what_was_written_is_answered_by_nobody() {
    use sqlx::{ConnectOptions as _, Connection as _};
    let mut server = Server::start().await;
    server.table("t", "x,y\n1,1\n2,2.5\n3,3\n").await;
    for _ in 0..2 {
        server.fit("m", json!({"dataset": "t", "target": "y"})).await;
    }
    server.put("/v1/models/m/aliases/a").json(&json!({"version": 2})).expect(201).await;
    let rows = json!({"rows": [{"x": 1}]});
    assert_eq!(server.predict("m@a", rows.clone()).await["version"], 2);
    let mut connection = sqlx::sqlite::SqliteConnectOptions::new().filename(server.database()).connect().await.unwrap();
    sqlx::query("UPDATE aliases SET version = 1 WHERE alias = 'a'").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let report = lsqd::service::check::check(&server.database()).await.unwrap();
    assert_eq!(report.findings.len(), 1, "{report}");
    assert_eq!(report.findings[0].fault, "the alias \"a\" is not what was written");
    server.restart().await;
    server.post("/v1/models/m@a/predict").json(&rows).refused(503, "quarantined").await;
    // The others are answered, and the alias is again once it is set anew.
    assert_eq!(server.predict("m", rows.clone()).await["version"], 2);
    assert_eq!(server.predict("m@1", rows.clone()).await["version"], 1);
    server.put("/v1/models/m/aliases/a").json(&json!({"version": 1})).expect(200).await;
    assert_eq!(server.predict("m@a", rows).await["version"], 1);
    assert!(lsqd::service::check::check(&server.database()).await.unwrap().is_whole());
}
