//! A file of an earlier schema is brought up to date whole, or left as it was, wherever the disk fails or the power is cut on the way.

use std::path::Path;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sqlx::migrate::{Migration, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{Connection as _, SqliteConnection};

use super::disk::{Disk, Fault, Plan};
use super::power::Folder;
use super::server::Server;
use super::{Client, DATABASE, PANICS, STRIDE, cells, copy, setting};

/// What a server says of a file, whatever schema the file was of.
async fn said(database: &Path) -> Result<Vec<Value>, String> {
    let server = Server::start(database).await?;
    let mut said = Vec::new();
    let question = json!({"rows": [{"x": 1.5, "z": -0.25}], "interval": {"kind": "prediction", "level": 0.95}}).to_string();
    said.push(server.ask("POST", "/v1/models/m/predict", Some(question)).await);
    for path in ["/v1/datasets/t/rows", "/v1/datasets/t", "/v1/models/m/versions/1", "/v1/models/m/online"] {
        said.push(server.ask("GET", path, None).await);
    }
    server.stop().await?;
    Ok(said)
}

async fn open(database: &Path, create: bool) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(database).create_if_missing(create).page_size(8192);
    SqliteConnection::connect_with(&options.journal_mode(SqliteJournalMode::Wal).foreign_keys(false)).await.unwrap()
}

/// The schema that a file is of.
async fn schema(database: &Path) -> Vec<i64> {
    let mut connection = open(database, false).await;
    let versions: Vec<(i64,)> =
        sqlx::query_as("SELECT version FROM _sqlx_migrations ORDER BY version").fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    versions.into_iter().map(|(version,)| version).collect()
}

/// Makes a file of an earlier schema that has what `source` has, as far as there was a place for it.
async fn earlier(source: &Path, migrations: &[Migration], database: &Path) {
    let mut connection = open(database, true).await;
    Migrator::with_migrations(migrations.to_vec()).run(&mut connection).await.unwrap();
    sqlx::query("ATTACH ? AS source").bind(source.to_str().unwrap()).execute(&mut connection).await.unwrap();
    let tables = "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT GLOB '_sqlx*' AND name NOT GLOB 'sqlite_*'";
    let tables: Vec<(String,)> = sqlx::query_as(tables).fetch_all(&mut connection).await.unwrap();
    for (table,) in tables {
        let shared = "SELECT name FROM pragma_table_info(?1, 'main') WHERE name IN (SELECT name FROM pragma_table_info(?1, 'source'))";
        let shared: Vec<(String,)> = sqlx::query_as(shared).bind(&table).fetch_all(&mut connection).await.unwrap();
        let shared = shared.into_iter().map(|(column,)| column).collect::<Vec<_>>().join(", ");
        // Of the snapshots of a version the first schema keeps one: the last of these.
        let copy = format!("INSERT OR REPLACE INTO main.{table} ({shared}) SELECT {shared} FROM source.{table}");
        sqlx::query(sqlx::AssertSqlSafe(copy)).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
}

/// One start on a file of an earlier schema, with a disk that fails or not, and a look at what is left: it is of the earlier schema or of the
/// present one, and the next start says of it what is expected.
async fn start(template: &Path, migrations: &[i64], count: usize, expected: &[Value], plan: Option<Plan>) -> std::sync::Arc<Disk> {
    let folder = tempfile::tempdir().unwrap();
    copy(template, folder.path());
    let mut cut = Folder::of(folder.path());
    let disk = Disk::under(folder.path());
    disk.record();
    if let Some(plan) = plan {
        disk.plan(plan);
    }
    let database = folder.path().join(DATABASE);
    if let Ok(server) = Server::start(&database).await {
        let _ = server.stop().await;
    }
    disk.heal();
    let whole = |schema: &[i64]| schema == migrations || schema == &migrations[..count];
    let left = schema(&database).await;
    assert!(whole(&left), "{plan:?} on {count} migrations left {left:?}");
    assert_eq!(said(&database).await.unwrap(), expected, "{plan:?} on {count} migrations");
    if plan.is_none() {
        // The power may be cut after each thing that happened.
        let trace = disk.trace();
        let step = setting("LSQD_FAULT_STRIDE", STRIDE).max(1);
        for (place, event) in trace.iter().enumerate() {
            cut.step(event);
            if place % step > 0 {
                continue;
            }
            let image = tempfile::tempdir().unwrap();
            let _working = Disk::under(image.path());
            cut.cut(place as u64, image.path());
            let database = image.path().join(DATABASE);
            let left = schema(&database).await;
            assert!(whole(&left), "a power cut at {place} on {count} migrations left {left:?}");
            assert_eq!(said(&database).await.unwrap(), expected, "a power cut at {place} on {count} migrations");
        }
    }
    disk
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_schema_is_brought_up_to_date_whole_or_left_as_it_was() {
    std::sync::LazyLock::force(&PANICS);
    let begun = std::time::Instant::now();
    let source = tempfile::tempdir().unwrap();
    let disk = Disk::under(source.path());
    let database = source.path().join(DATABASE);
    let server = Server::start(&database).await.unwrap();
    let client = Client { server: &server, disk: &disk };
    client.upload("t").await;
    client.fit("m").await;
    client.learn("m", &(0..20).map(|number| cells(0, number)).collect::<Vec<_>>(), &[("idempotency-key", "k")]).await.unwrap();
    client.label("m", cells(1, 0)).await;
    server.stop().await.unwrap();
    let expected = said(&database).await.unwrap();
    assert_eq!(expected[0]["sequence"], 21);

    let present = Migrator::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations")).await.unwrap();
    let migrations: Vec<Migration> = present.iter().cloned().collect();
    let versions: Vec<i64> = migrations.iter().map(|migration| migration.version).collect();
    assert_eq!(schema(&database).await, versions);
    let stride = setting("LSQD_FAULT_STRIDE", STRIDE).max(1);
    let mut lives = 0;
    for count in 1..migrations.len() {
        let template = tempfile::tempdir().unwrap();
        earlier(&database, &migrations[..count], &template.path().join(DATABASE)).await;
        let disk = start(template.path(), &versions, count, &expected, None).await;
        let mut plans = Vec::new();
        for fault in Fault::ALL {
            let hits = disk.count(fault);
            // Not each time the same ones.
            for after in (count % stride..hits).step_by(stride) {
                plans.extend([false, true].map(|lasting| Plan { fault, after, lasting }));
            }
        }
        lives += plans.len();
        let (template, versions, expected) = (template.path(), &versions, &expected);
        futures_util::stream::iter(plans)
            .map(|plan| start(template, versions, count, expected, Some(plan)))
            .buffer_unordered(4)
            .for_each(|_| std::future::ready(()))
            .await;
    }
    assert_eq!(PANICS.lock().unwrap().as_slice(), [] as [&str; 0]);
    eprintln!("{} earlier schemas, {lives} starts with a failed operation: {:.1} s", migrations.len() - 1, begun.elapsed().as_secs_f64());
}
