//! How fast the server learns: updates of one row each over many connections, a long NDJSON body, and a start with many models that have
//! learnt. Each is set beside what it cannot do without, SQLite above all: an update is answered when it is on disk. Not here: any claim
//! that fails a build by the clock.
//!
//! `cargo bench --bench updates`, or only some parts: `-- single`, `-- stream`, `-- models`. The peers take turns within a round, so that a
//! noisy machine is noisy for all of them, and medians are told. `LSQD_BENCH_ROUNDS`, `LSQD_BENCH_CONNECTIONS`, `LSQD_BENCH_ROWS` (of the
//! stream), `LSQD_BENCH_MODELS` and `LSQD_BENCH_FOLDER` (where the files lie; a folder of the system's otherwise) change the setting, and
//! `LSQD_BENCH_SERVER` names another build's binary.

mod under_test;

use std::fmt::Write as _;
use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use faer::Mat;
use lsqd::frame::rows::{Rows, RowsOptions, parse_ndjson};
use lsqd::frame::{Input, InputKind, InputSchema};
use lsqd::lsq::{Matrices, Specification, fit};
use lsqd::model::{Memory, Online, State};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use under_test::{Outcome, Server, median, processor_seconds, setting};

const PREDICTORS: usize = 20;
/// Cells of a logged row: the predictors, the target and the weight.
const WIDTH: usize = PREDICTORS + 2;
const SEED: u64 = 1805;
/// Rows of the table that the models are fitted to.
const FITTED: usize = 200;
/// Seconds that each peer has in a round.
const TURN: f64 = 2.0;
/// Updates of each of many models, and of one request.
const LEARNT: usize = 200;
const AT_ONCE: usize = 50;
/// Connections that make the many models.
const MAKERS: usize = 16;
/// Goals: the share of SQLite's own speed, the times of one commit an update, the times of the bare work of a stream, seconds to readiness.
const SHARE: f64 = 0.5;
const TIMES: f64 = 20.0;
const RATIO: f64 = 2.0;
const READY: f64 = 10.0;

fn main() -> Outcome<()> {
    // What `cargo bench` says to a program; `cargo test --all-targets` starts it too, and must not wait for it.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let all = arguments.iter().all(|argument| argument.starts_with('-'));
    let wanted = |part: &str| all || arguments.iter().any(|argument| argument == part);
    let rounds = setting("LSQD_BENCH_ROUNDS", 5)?;
    let folder = under_test::folder()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if wanted("single") {
        runtime.block_on(single(&folder.path().join("single"), rounds, setting("LSQD_BENCH_CONNECTIONS", 64)?))?;
    }
    if wanted("stream") {
        runtime.block_on(stream(&folder.path().join("stream"), rounds, setting("LSQD_BENCH_ROWS", 200_000)?))?;
    }
    if wanted("models") {
        runtime.block_on(models(&folder.path().join("models"), setting("LSQD_BENCH_MODELS", 10_000)?))?;
    }
    Ok(())
}

fn judged(reached: bool) -> &'static str {
    if reached { "reached" } else { "missed" }
}

/// Updates of one row each.
async fn single(place: &Path, rounds: usize, connections: usize) -> Outcome<()> {
    std::fs::create_dir(place)?;
    let mut out = std::io::stdout();
    let server = Server::start(&place.join("lsqd.db"), &[])?;
    let mut random = StdRng::seed_from_u64(SEED);
    put_table(&server, &mut random)?;
    fit_model(&server, "single")?;
    let requests: Vec<Vec<u8>> = (0..1024)
        .map(|_| {
            let body = format!("{{\"rows\":[{}]}}", json_row(&mut random));
            post(&server, "/v1/models/single/updates", "application/json", &body)
        })
        .collect();
    // Connections and buffers are warm, and the state has left the fit's.
    hammer(&server.address, &requests, connections, 0.5).await?;

    let (mut served, mut groups, mut spent, mut client) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut rows, mut records, mut ones) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let before = Counters::of(&server)?;
        let (server_before, client_before) = (server.processor_seconds()?, processor_seconds("self")?);
        let (updates, seconds) = hammer(&server.address, &requests, connections, TURN).await?;
        let after = Counters::of(&server)?;
        if after.updates - before.updates != updates as f64 {
            return Err("the server counts other updates than those it has acknowledged".into());
        }
        let updates = updates as f64;
        let group = updates / (after.commits - before.commits);
        served.push(updates / seconds);
        groups.push(group);
        spent.push((server.processor_seconds()? - server_before) / updates * 1e6);
        client.push((processor_seconds("self")? - client_before) / updates * 1e6);
        let whole = (group.round() as usize).max(1);
        rows.push(Log::open(&place.join(format!("rows-{round}.db"))).await?.fill(whole, false, TURN).await?);
        records.push(Log::open(&place.join(format!("records-{round}.db"))).await?.fill(whole, true, TURN).await?);
        ones.push(Log::open(&place.join(format!("ones-{round}.db"))).await?.fill(1, false, TURN).await?);
    }

    let (served, group) = (median(&mut served), median(&mut groups));
    let (rows, records, ones) = (median(&mut rows), median(&mut records), median(&mut ones));
    writeln!(
        out,
        "updates of one row of {PREDICTORS} predictors, {connections} connections, all answered after their commit; {rounds} rounds of {TURN} s"
    )?;
    let mut line = |what: &str, rate: f64, rest: String| writeln!(out, "{what:<52} {rate:>9.0} updates/s  {rest}");
    line("lsqd over HTTP", served, format!("{group:.1} a commit"))?;
    line(
        "SQLite alone, as many rows a commit",
        rows,
        format!("lsqd has {:.0} % of it, the goal of {:.0} % is {}", 100.0 * served / rows, 100.0 * SHARE, judged(served >= SHARE * rows)),
    )?;
    line("SQLite alone, the rows of a commit as one record", records, format!("lsqd has {:.0} % of it", 100.0 * served / records))?;
    line(
        "SQLite alone, one row a commit",
        ones,
        format!("lsqd is {:.1} x as fast, the goal of {TIMES:.0} x is {}", served / ones, judged(served >= TIMES * ones)),
    )?;
    writeln!(
        out,
        "  processor time an update: {:.1} us of the server, {:.1} us of the load generator",
        median(&mut spent),
        median(&mut client)
    )?;
    Ok(())
}

/// One long NDJSON body.
async fn stream(place: &Path, rounds: usize, count: usize) -> Outcome<()> {
    std::fs::create_dir(place)?;
    let mut out = std::io::stdout();
    let server = Server::start(&place.join("lsqd.db"), &["--body-limit", "4GiB"])?;
    let mut random = StdRng::seed_from_u64(SEED);
    put_table(&server, &mut random)?;
    fit_model(&server, "stream")?;
    let mut body = String::new();
    for _ in 0..count {
        body.push_str(&json_row(&mut random));
        body.push('\n');
    }
    let fitted = fitted(&mut random)?;

    let (mut served, mut spent) = (Vec::new(), Vec::new());
    let (mut parsing, mut learning, mut writing, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut commits = Vec::new();
    for round in 0..rounds {
        let (before, processor) = (Counters::of(&server)?, server.processor_seconds()?);
        let begun = Instant::now();
        let head =
            format!("POST /v1/models/stream/updates HTTP/1.1\r\ncontent-type: application/x-ndjson\r\ncontent-length: {}", body.len());
        server.request(&head, "200", |stream| stream.write_all(body.as_bytes()))?;
        served.push(begun.elapsed().as_secs_f64());
        spent.push(server.processor_seconds()? - processor);
        let after = Counters::of(&server)?;
        if after.updates - before.updates != count as f64 {
            return Err("the server has not learnt all rows".into());
        }
        let committed = after.commits - before.commits;
        commits.push(committed);

        let begun = Instant::now();
        let rows = parse(&body)?;
        let parsed = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        learn(&fitted, &rows)?;
        let learnt = begun.elapsed().as_secs_f64();
        let mut log = Log::open(&place.join(format!("log-{round}.db"))).await?;
        let group = count.div_ceil(committed as usize);
        let begun = Instant::now();
        let mut left = count;
        while left > 0 {
            log.commit(group.min(left), true).await?;
            left = left.saturating_sub(group);
        }
        let written = begun.elapsed().as_secs_f64();
        parsing.push(parsed);
        learning.push(learnt);
        writing.push(written);
        bare.push(parsed + learnt + written);
    }

    let (served, bare) = (median(&mut served), median(&mut bare));
    writeln!(
        out,
        "one NDJSON body of {count} rows of {PREDICTORS} predictors, {:.0} MB, {:.0} commits; {rounds} rounds",
        body.len() as f64 / 1e6,
        median(&mut commits)
    )?;
    let ratio = served / bare;
    let mut line = |what: &str, seconds: f64, rest: String| writeln!(out, "{what:<52} {seconds:>9.3} s  {rest}");
    line(
        "lsqd takes, learns and answers it, durably",
        served,
        format!("{:.0} rows/s, {ratio:.2} x the bare work, the goal of {RATIO:.1} x is {}", count as f64 / served, judged(ratio <= RATIO)),
    )?;
    line("  processor time of the server", median(&mut spent), String::new())?;
    line("the bare work, one thread", bare, String::new())?;
    line("  lsqd's parser alone", median(&mut parsing), String::new())?;
    line("  lsqd's learning alone", median(&mut learning), String::new())?;
    line("  SQLite alone, in as many commits", median(&mut writing), String::new())?;
    Ok(())
}

/// A start with many models that have learnt.
async fn models(place: &Path, count: usize) -> Outcome<()> {
    std::fs::create_dir(place)?;
    let mut out = std::io::stdout();
    let database = place.join("lsqd.db");
    let server = Server::start(&database, &[])?;
    let mut random = StdRng::seed_from_u64(SEED);
    put_table(&server, &mut random)?;
    let empty = server.memory("VmRSS")?;
    let begun = Instant::now();
    each(&server.address, count, |model| vec![fit_request(&server, &format!("model-{model}"))]).await?;
    let fitting = begun.elapsed().as_secs_f64();
    let after_fits = server.memory("VmRSS")?;
    let bodies: Vec<String> =
        (0..LEARNT / AT_ONCE).map(|_| (0..AT_ONCE).map(|_| format!("{}\n", json_row(&mut random))).collect()).collect();
    let begun = Instant::now();
    each(&server.address, count, |model| {
        let path = format!("/v1/models/model-{model}/updates");
        bodies.iter().map(|body| post(&server, &path, "application/x-ndjson", body)).collect()
    })
    .await?;
    let updating = begun.elapsed().as_secs_f64();
    let after_updates = server.memory("VmRSS")?;
    // Ended without notice, so that the start has a WAL to recover too.
    drop(server);
    let begun = Instant::now();
    let server = Server::start(&database, &[])?;
    let ready = begun.elapsed().as_secs_f64();
    let spent = server.processor_seconds()?;
    let after_start = server.memory("VmRSS")?;
    writeln!(out, "{count} models of {PREDICTORS} predictors, each with {LEARNT} updates after its fit, {AT_ONCE} at once")?;
    let mut line = |what: &str, seconds: f64, rest: String| writeln!(out, "{what:<52} {seconds:>9.1} s  {rest}");
    line("all models fitted", fitting, format!("{:.0} fits/s", count as f64 / fitting))?;
    line("all updates learnt", updating, format!("{:.0} rows/s", (count * LEARNT) as f64 / updating))?;
    line(
        "from start to ready, after a crash",
        ready,
        format!("{:.0} rows/s replayed, the goal of less than {READY:.0} s is {}", (count * LEARNT) as f64 / ready, judged(ready < READY)),
    )?;
    line("  processor time of the server", spent, String::new())?;
    let mut line = |what: &str, memory: f64| {
        writeln!(out, "{what:<52} {memory:>9.1} MiB, {:.1} KiB a model", (memory - empty) * 1024.0 / count as f64)
    };
    line("resident memory after the fits", after_fits)?;
    line("resident memory after the updates", after_updates)?;
    line("resident memory after the start", after_start)?;
    Ok(())
}

/// What the server has counted.
struct Counters {
    commits: f64,
    updates: f64,
}

impl Counters {
    fn of(server: &Server) -> Outcome<Self> {
        let text = server.request("GET /metrics HTTP/1.1", "200", |_| Ok(()))?;
        let counter = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap_or(0.0);
        Ok(Self { commits: counter("lsqd_commits_total "), updates: counter("lsqd_updates_total ") })
    }
}

/// A random row: predictors, and a response that depends on them.
fn cells(random: &mut StdRng) -> [f64; PREDICTORS + 1] {
    let mut cells: [f64; PREDICTORS + 1] = std::array::from_fn(|_| random.random());
    let noise = cells[PREDICTORS];
    cells[PREDICTORS] = noise + (0..PREDICTORS).map(|place| cells[place] * (place + 1) as f64).sum::<f64>();
    cells
}

fn name(place: usize) -> String {
    if place < PREDICTORS { format!("x{}", place + 1) } else { "y".to_owned() }
}

fn json_row(random: &mut StdRng) -> String {
    let members: Vec<String> = cells(random)
        .iter()
        .enumerate()
        .map(|(place, value)| format!("\"{}\":{}", name(place), zmij::Buffer::new().format(*value)))
        .collect();
    format!("{{{}}}", members.join(","))
}

/// Uploads the table that is fitted.
fn put_table(server: &Server, random: &mut StdRng) -> Outcome<()> {
    let mut table = (0..=PREDICTORS).map(name).collect::<Vec<_>>().join(",");
    for _ in 0..FITTED {
        let cells = cells(random).map(|value| value.to_string());
        write!(table, "\n{}", cells.join(","))?;
    }
    let head = format!("PUT /v1/datasets/table HTTP/1.1\r\ncontent-type: text/csv\r\ncontent-length: {}", table.len());
    server.request(&head, "201", |stream| stream.write_all(table.as_bytes()))?;
    Ok(())
}

const FIT: &str = r#"{"dataset":"table","target":"y"}"#;

fn fit_model(server: &Server, model: &str) -> Outcome<()> {
    let head = format!(
        "POST /v1/models/{model}/fits HTTP/1.1\r\nprefer: wait=600\r\ncontent-type: application/json\r\ncontent-length: {}",
        FIT.len()
    );
    server.request(&head, "201", |stream| stream.write_all(FIT.as_bytes()))?;
    Ok(())
}

fn fit_request(server: &Server, model: &str) -> Vec<u8> {
    post(server, &format!("/v1/models/{model}/fits"), "application/json\r\nprefer: wait=600", FIT)
}

/// A request ready to be sent.
fn post(server: &Server, path: &str, content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}", server.address)
        .into_bytes()
}

/// A connection that is kept; of the answers, only what tells whether and where they end is looked at.
struct KeptAlive {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl KeptAlive {
    async fn open(address: &str) -> Outcome<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(1 << 14) })
    }

    /// Sends a request and waits for its answer, which must be a success.
    async fn exchange(&mut self, request: &[u8]) -> Outcome<()> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                let head = std::str::from_utf8(&self.buffer[..end])?;
                if !head.starts_with("HTTP/1.1 2") {
                    return Err(String::from_utf8_lossy(&self.buffer).into());
                }
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).ok_or("an answer of unknown length")?;
                if self.buffer.len() >= end + 4 + length.parse::<usize>()? {
                    return Ok(());
                }
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the server closed the connection".into());
            }
        }
    }
}

/// Runs tasks at the same time on this thread, and adds up what they return.
async fn together(tasks: impl Iterator<Item = impl Future<Output = Outcome<u64>>>) -> Outcome<u64> {
    Ok(futures_util::future::try_join_all(tasks).await?.into_iter().sum())
}

/// Sends requests over so many connections, one after the other on each, for so many seconds; how many were answered, in how many seconds.
async fn hammer(address: &str, requests: &[Vec<u8>], connections: usize, seconds: f64) -> Outcome<(u64, f64)> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(KeptAlive::open(address).await?);
    }
    let begun = Instant::now();
    let until = begun + Duration::from_secs_f64(seconds);
    let answered = together(open.iter_mut().enumerate().map(|(place, connection)| async move {
        let mut answered = 0;
        for request in requests.iter().cycle().skip(place * 16) {
            if Instant::now() >= until {
                break;
            }
            connection.exchange(request).await?;
            answered += 1;
        }
        Ok(answered)
    }))
    .await?;
    Ok((answered, begun.elapsed().as_secs_f64()))
}

/// Sends the requests of each of so many models, the models shared out between some connections.
async fn each(address: &str, count: usize, requests: impl Fn(usize) -> Vec<Vec<u8>>) -> Outcome<()> {
    let requests = &requests;
    together((0..MAKERS).map(|maker| async move {
        let mut connection = KeptAlive::open(address).await?;
        for model in (maker..count).step_by(MAKERS) {
            for request in requests(model) {
                connection.exchange(&request).await?;
            }
        }
        Ok(0)
    }))
    .await?;
    Ok(())
}

fn parse(body: &str) -> Outcome<Rows> {
    let schema =
        InputSchema::new((0..=PREDICTORS).map(|place| Input { name: name(place), kind: InputKind::Number, required: true }).collect());
    let mut rows = Rows::default();
    parse_ndjson(body.as_bytes(), 1, &schema, &RowsOptions { allow_id: true, max_rows: usize::MAX }, &mut rows)?;
    Ok(rows)
}

/// The state that a fit of a table like the server's leaves.
fn fitted(random: &mut StdRng) -> Outcome<State> {
    let (mut design, mut response) = (Mat::zeros(FITTED, PREDICTORS), Mat::zeros(FITTED, 1));
    for row in 0..FITTED {
        let cells = cells(random);
        (0..PREDICTORS).for_each(|column| design[(row, column)] = cells[column]);
        response[(row, 0)] = cells[PREDICTORS];
    }
    let mut source = Matrices { design: design.as_ref(), response: response.as_ref(), weights: None };
    Ok(State::of(&fit(&mut source, &Specification::default())?))
}

fn learn(fitted: &State, rows: &Rows) -> Outcome<()> {
    let (mut state, online, mut innovations) = (fitted.clone(), Online::default(), [0.0]);
    for cells in rows.values.chunks_exact(PREDICTORS + 1) {
        let (row, response) = cells.split_at(PREDICTORS);
        state.learn(row.into(), response, 1.0, Memory { online: &online, penalty: 0.0 }, &mut innovations)?;
    }
    std::hint::black_box(&state);
    Ok(())
}

/// SQLite by itself, with the server's settings and the server's log.
struct Log {
    connection: SqliteConnection,
    sequence: i64,
    noise: Vec<u8>,
}

impl Log {
    async fn open(path: &Path) -> Outcome<Self> {
        let mut connection = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .page_size(8192)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("trusted_schema", "OFF")
            .pragma("cell_size_check", "ON")
            .pragma("secure_delete", "ON")
            .pragma("journal_size_limit", "67108864")
            .pragma("wal_autocheckpoint", "4000")
            .disable_statement_logging()
            .connect()
            .await?;
        sqlx::query(
            "CREATE TABLE update_log (version_id INTEGER NOT NULL, first_sequence INTEGER NOT NULL, rows INTEGER NOT NULL,
             payload BLOB NOT NULL, created_at TEXT NOT NULL, PRIMARY KEY (version_id, first_sequence)) STRICT, WITHOUT ROWID",
        )
        .execute(&mut connection)
        .await?;
        let mut noise = vec![0; 1 << 16];
        StdRng::seed_from_u64(SEED).fill(&mut noise[..]);
        Ok(Self { connection, sequence: 1, noise })
    }

    /// Commits the bytes of some rows, as one record or as one each, in a single statement.
    async fn commit(&mut self, rows: usize, whole: bool) -> Outcome<()> {
        let (records, each) = if whole { (1, rows) } else { (rows, 1) };
        // The checksum is four bytes.
        let bytes = each * WIDTH * size_of::<f64>() + 4;
        while self.noise.len() < bytes {
            self.noise.extend_from_within(..);
        }
        let mut text = "INSERT INTO update_log (version_id, first_sequence, rows, payload, created_at) VALUES (?, ?, ?, ?, ?)".to_owned();
        text.push_str(&", (?, ?, ?, ?, ?)".repeat(records - 1));
        let mut transaction = self.connection.begin().await?;
        let mut query = sqlx::query(sqlx::AssertSqlSafe(text));
        for _ in 0..records {
            query = query.bind(1).bind(self.sequence).bind(i64::try_from(each)?);
            query = query.bind(&self.noise[..bytes]).bind("2026-11-25T12:00:00.000000Z");
            self.sequence += i64::try_from(each)?;
        }
        query.execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Commits rows for so many seconds; rows a second.
    async fn fill(mut self, rows: usize, whole: bool, seconds: f64) -> Outcome<f64> {
        let begun = Instant::now();
        let mut committed = 0;
        while begun.elapsed().as_secs_f64() < seconds {
            self.commit(rows, whole).await?;
            committed += rows;
        }
        let rate = committed as f64 / begun.elapsed().as_secs_f64();
        self.connection.close().await?;
        Ok(rate)
    }
}
