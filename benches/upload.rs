//! How fast a table goes in: the release binary, from the first byte of a `PUT` to the `201` that says it is on disk, beside a CSV parser
//! that only parses, and beside the disk itself. Then a fit of that table, and the server's peak memory. Not here: any claim that fails a
//! build by the clock; only the memory is judged, since it does not depend on the machine.
//!
//! `cargo bench --bench upload`. The peers take turns within a round, so that a noisy machine is noisy for all of them, and medians are told.
//! `LSQD_BENCH_ROWS`, `LSQD_BENCH_ROUNDS` and `LSQD_BENCH_FOLDER` (where the files lie; a folder of the system's otherwise) change the setting.

mod under_test;

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _};

use under_test::{Outcome, Server, median, setting};

const COLUMNS: usize = 20;
const SEED: u64 = 1805;
/// Most memory that the server may have taken, in MiB.
const MEMORY: f64 = 256.0;
/// Goal of an upload's time, in times that of parsing.
const RATIO: f64 = 2.0;
/// Bytes of a blob, and blobs of a commit, when SQLite writes by itself.
const BLOB: usize = 64 << 10;
const BLOBS: usize = 32;

fn main() -> Outcome<()> {
    // What `cargo bench` says to a program; `cargo test --all-targets` starts it too, and must not wait for it.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let rows = setting("LSQD_BENCH_ROWS", 1_000_000)?;
    let rounds = setting("LSQD_BENCH_ROUNDS", 3)?;
    let folder = under_test::folder()?;
    let mut out = std::io::stdout();
    let table = folder.path().join("table.csv");
    write_table(&table, rows)?;
    let megabytes = std::fs::metadata(&table)?.len() as f64 / 1e6;
    let stored = rows * COLUMNS * size_of::<f64>();
    writeln!(
        out,
        "{rows} rows x {COLUMNS} random floats: {megabytes:.0} MB of CSV, {:.0} MB of floats; {rounds} rounds",
        stored as f64 / 1e6
    )?;

    let mut parsing = Vec::new();
    let mut uploading = Vec::new();
    let mut uploading_cpu = Vec::new();
    let mut fitting = Vec::new();
    let mut fitting_cpu = Vec::new();
    let mut blobs = Vec::new();
    let mut file = Vec::new();
    let (mut after_upload, mut after_fit) = (0.0_f64, 0.0_f64);
    for round in 0..rounds {
        let place = folder.path().join(format!("round-{round}"));
        std::fs::create_dir(&place)?;
        parsing.push(parse(&table, rows)?);
        let server = Server::start(&place.join("lsqd.db"), &[])?;
        let (begun, spent) = (Instant::now(), server.processor_seconds()?);
        server.request(
            &format!("PUT /v1/datasets/table HTTP/1.1\r\ncontent-length: {}", std::fs::metadata(&table)?.len()),
            "201",
            |stream| std::io::copy(&mut File::open(&table)?, stream).map(drop),
        )?;
        uploading.push(begun.elapsed().as_secs_f64());
        uploading_cpu.push(server.processor_seconds()? - spent);
        after_upload = after_upload.max(server.memory("VmHWM")?);
        let fit = format!(r#"{{"dataset":"table","target":"c{COLUMNS}"}}"#);
        let head = "POST /v1/models/model/fits HTTP/1.1\r\nprefer: wait=600\r\ncontent-type: application/json";
        let (begun, spent) = (Instant::now(), server.processor_seconds()?);
        server.request(&format!("{head}\r\ncontent-length: {}", fit.len()), "201", |stream| stream.write_all(fit.as_bytes()))?;
        fitting.push(begun.elapsed().as_secs_f64());
        fitting_cpu.push(server.processor_seconds()? - spent);
        after_fit = after_fit.max(server.memory("VmHWM")?);
        drop(server);
        blobs.push(write_blobs(&place.join("blobs.db"), stored)?);
        file.push(write_file(&place.join("file"), stored)?);
        std::fs::remove_dir_all(&place)?;
    }

    let parse_median = median(&mut parsing);
    let upload_median = median(&mut uploading);
    let mut line = |what: &str, seconds: f64, rest: String| writeln!(out, "{what:<44} {seconds:>8.3} s  {rest}");
    line("arrow-csv parses the file, one thread", parse_median, format!("{:.0} MB/s", megabytes / parse_median))?;
    let ratio = upload_median / parse_median;
    let judged = if ratio <= RATIO { "within" } else { "past" };
    line(
        "lsqd takes it, durably (PUT to 201)",
        upload_median,
        format!("{:.0} MB/s, {ratio:.2} x the parser, {judged} the goal of {RATIO:.1} x", megabytes / upload_median),
    )?;
    line("  processor time of the server", median(&mut uploading_cpu), String::new())?;
    line("lsqd fits it (POST to 201)", median(&mut fitting), format!("{} predictors and an intercept", COLUMNS - 1))?;
    line("  processor time of the server", median(&mut fitting_cpu), String::new())?;
    line(
        "SQLite writes as many bytes as blobs",
        median(&mut blobs),
        format!("{} KiB each, {BLOBS} a commit, every commit synced", BLOB >> 10),
    )?;
    line("a plain file of as many bytes, synced once", median(&mut file), String::new())?;
    for (when, peak) in [("upload", after_upload), ("fit", after_fit)] {
        let judged = if peak < MEMORY { "pass" } else { "FAIL" };
        writeln!(out, "peak memory of the server after the {when:<8} {peak:>8.1} MiB  {judged}: less than {MEMORY:.0} MiB is asked for")?;
    }
    Ok(())
}

/// Floats of full precision, uniform in [0, 1); the last column is a linear function of the others and noise.
fn write_table(path: &Path, rows: usize) -> Outcome<()> {
    let mut random = StdRng::seed_from_u64(SEED);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let names: Vec<String> = (1..=COLUMNS).map(|column| format!("c{column}")).collect();
    writeln!(out, "{}", names.join(","))?;
    let mut buffer = zmij::Buffer::new();
    for _ in 0..rows {
        let mut sum = 0.0;
        for column in 1..COLUMNS {
            let value: f64 = random.random();
            sum += value * column as f64;
            out.write_all(buffer.format(value).as_bytes())?;
            out.write_all(b",")?;
        }
        let noise: f64 = random.random();
        out.write_all(buffer.format((sum + noise) / (COLUMNS * COLUMNS) as f64).as_bytes())?;
        out.write_all(b"\n")?;
    }
    // On disk before anything is timed, so that nobody's sync waits for it.
    out.into_inner()?.sync_all()?;
    Ok(())
}

/// Seconds that arrow-csv needs to infer the schema and parse the file.
fn parse(path: &Path, rows: usize) -> Outcome<f64> {
    let begun = Instant::now();
    let mut file = File::open(path)?;
    let format = arrow_csv::reader::Format::default().with_header(true);
    let (schema, _) = format.infer_schema(BufReader::new(&mut file), Some(8192))?;
    file.rewind()?;
    let reader = arrow_csv::ReaderBuilder::new(Arc::new(schema))
        .with_format(format)
        .with_batch_size(8192)
        .build_buffered(BufReader::with_capacity(1 << 20, file))?;
    let mut parsed = 0;
    for batch in reader {
        let batch = std::hint::black_box(batch?);
        if batch.columns().iter().any(|column| column.data_type() != &arrow_schema::DataType::Float64) {
            return Err("arrow-csv took a column for something else than floats".into());
        }
        parsed += batch.num_rows();
    }
    if parsed == rows { Ok(begun.elapsed().as_secs_f64()) } else { Err("arrow-csv read another number of rows".into()) }
}

/// Seconds that SQLite needs to store that many bytes durably.
fn write_blobs(path: &Path, bytes: usize) -> Outcome<f64> {
    let mut blob = vec![0; BLOB];
    StdRng::seed_from_u64(SEED).fill(&mut blob[..]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connection = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .page_size(8192)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .disable_statement_logging()
            .connect()
            .await?;
        sqlx::query("CREATE TABLE blobs (id INTEGER PRIMARY KEY, payload BLOB NOT NULL)").execute(&mut connection).await?;
        let begun = Instant::now();
        let mut left = bytes.div_ceil(BLOB);
        while left > 0 {
            let mut transaction = connection.begin().await?;
            for _ in 0..BLOBS.min(left) {
                sqlx::query("INSERT INTO blobs (payload) VALUES (?)").bind(blob.as_slice()).execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
            left = left.saturating_sub(BLOBS);
        }
        let seconds = begun.elapsed().as_secs_f64();
        connection.close().await?;
        Ok(seconds)
    })
}

/// Seconds that the disk needs to take that many bytes.
fn write_file(path: &Path, bytes: usize) -> Outcome<f64> {
    let mut blob = vec![0; BLOB];
    StdRng::seed_from_u64(SEED).fill(&mut blob[..]);
    let begun = Instant::now();
    let mut file = File::create(path)?;
    for _ in 0..bytes.div_ceil(BLOB) {
        file.write_all(&blob)?;
    }
    file.sync_all()?;
    Ok(begun.elapsed().as_secs_f64())
}
