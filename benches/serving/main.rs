//! How fast predictions are served: the release binary with its usual settings, in turns with bare handlers of the same framework and, where
//! bench/run-serving has installed them, with the servers that Python offers. Not here: any claim that fails a build by the clock.
//!
//! `bench/run-serving`, or `cargo bench --bench serving` without the servers in Python; only some parts: `-- single`, `-- hundred`, `-- busy`.
//! `LSQD_BENCH_ROUNDS`, `LSQD_BENCH_SECONDS` (of a turn, in tenths), `LSQD_BENCH_FOLDER` (where the files lie) and `LSQD_BENCH_SERVER`
//! (another build's binary) change the setting; `LSQD_BENCH_FASTAPI` and `LSQD_BENCH_MLSERVER` name Pythons that have these.

mod contenders;
mod generator;
#[path = "../under_test/mod.rs"]
mod under_test;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use generator::{Turn, hammer, pace};
use under_test::{Outcome, Server, median, setting};

const PREDICTORS: usize = 20;
const SEED: u64 = 1809;
/// Rows of the table that the model is fitted to.
const FITTED: usize = 200;
/// Different requests that take turns.
const REQUESTS: usize = 256;
/// Rows of a larger request.
const HUNDRED: usize = 100;
/// Seconds of load before a turn is counted.
const WARMING: f64 = 0.3;

/// Goals: shares of the floor's requests a second, times of its p99, times of the other contenders' requests a second.
const SHARE: f64 = 0.85;
const SHARE_WITH_INTERVAL: f64 = 0.75;
const TAIL: f64 = 1.3;
const PRODUCT: f64 = 1.7;
const PEER: f64 = 12.0;
const PEER_HUNDRED: f64 = 15.0;
const BUSY_TAIL: f64 = 2.0;

/// The busy server: requests a second and the connections they come on, the table that is fitted, updates a second.
const PACE: f64 = 2_000.0;
const PACED: usize = 8;
const TALL: (usize, usize) = (1_000_000, 100);
const UPDATES: f64 = 1_000.0;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == contenders::AS) {
        return contenders::be(&arguments[1..]);
    }
    // What `cargo bench` says to a program; `cargo test --all-targets` starts it too, and must not wait for it.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let all = arguments.iter().all(|argument| argument.starts_with('-'));
    let wanted = |part: &str| all || arguments.iter().any(|argument| argument == part);
    let folder = under_test::folder()?;
    let bench = Bench::prepare(folder.path())?;
    bench.introduce()?;
    if wanted("single") {
        bench.single()?;
    }
    if wanted("hundred") {
        bench.hundred()?;
    }
    if wanted("busy") {
        bench.busy()?;
    }
    Ok(())
}

/// A contender with the requests it is sent.
struct Contender<'s> {
    name: &'static str,
    server: &'s Server,
    requests: Vec<Vec<u8>>,
}

/// Medians over the rounds.
struct Result {
    rate: f64,
    median: f64,
    tail: f64,
    /// Microseconds of processor time a request.
    spent: f64,
}

struct Bench {
    lsqd: Server,
    floor: Server,
    product: Server,
    /// The servers in Python: what they are, and where requests go.
    peers: Vec<(&'static str, Server)>,
    /// Rows that are predicted.
    rows: Vec<[f64; PREDICTORS]>,
    rounds: usize,
    seconds: f64,
}

impl Bench {
    /// Starts everybody and fits the model.
    fn prepare(folder: &Path) -> Outcome<Self> {
        let mut random = StdRng::seed_from_u64(SEED);
        let mut table = (0..=PREDICTORS).map(name).collect::<Vec<_>>().join(",");
        for _ in 0..FITTED {
            let cells = cells(&mut random);
            let response = random.random::<f64>() + cells.iter().zip(1..).map(|(cell, place)| cell * f64::from(place)).sum::<f64>();
            let cells: Vec<String> = cells.iter().chain([&response]).map(f64::to_string).collect();
            write!(table, "\n{}", cells.join(","))?;
        }
        let path = folder.join("table.csv");
        std::fs::write(&path, &table)?;
        let lsqd = Server::start(&folder.join("lsqd.db"), &[])?;
        put(&lsqd, "table", &mut table.as_bytes(), table.len())?;
        let version = fit(&lsqd, "served", "table", "y")?;
        let version: serde_json::Value = serde_json::from_str(version.split_once("\r\n\r\n").ok_or("a fit without a version")?.1)?;
        let estimates = version["coefficients"].as_array().ok_or("a version without coefficients")?;
        let coefficients: Vec<f64> = estimates.iter().filter_map(|each| each["estimate"].as_f64()).collect();
        let mut peers = Vec::new();
        for (variable, name, what, ready) in [
            ("LSQD_BENCH_FASTAPI", "fastapi", "FastAPI, scikit-learn, two workers", "/readyz"),
            ("LSQD_BENCH_MLSERVER", "mlserver", "MLServer, scikit-learn", "/v2/models/served/ready"),
        ] {
            if let Ok(python) = std::env::var(variable) {
                peers.push((what, contenders::start_peer(&python, name, &path, ready)?));
            }
        }
        let bench = Self {
            floor: contenders::start("floor", &[])?,
            product: contenders::start("product", &coefficients)?,
            lsqd,
            peers,
            rows: (0..REQUESTS * HUNDRED).map(|_| cells(&mut random)).collect(),
            rounds: setting("LSQD_BENCH_ROUNDS", 5)?,
            seconds: setting("LSQD_BENCH_SECONDS", 20)? as f64 / 10.0,
        };
        bench.check(&coefficients)?;
        Ok(bench)
    }

    fn introduce(&self) -> Outcome<()> {
        let cores = std::thread::available_parallelism()?;
        let workers = self.floor.threads("tokio-")?;
        writeln!(
            std::io::stdout(),
            "{cores} cores; lsqd with its usual settings, {} threads that serve; the floor and the product on axum::serve and tokio's usual\n\
             runtime, {workers} threads; one thread of load; medians of {} rounds of {} s in turns",
            self.lsqd.threads("lsqd-serve")?,
            self.rounds,
            self.seconds,
        )?;
        Ok(())
    }

    /// That all contenders say the same of the same rows.
    fn check(&self, coefficients: &[f64]) -> Outcome<()> {
        let expected = coefficients[0] + self.rows[0].iter().zip(&coefficients[1..]).map(|(x, slope)| x * slope).sum::<f64>();
        let mut contenders = vec![self.lsqd("lsqd", 1, ""), self.product(1)];
        contenders.extend(self.peers(1));
        for contender in contenders {
            let request = String::from_utf8(contender.requests[0].clone())?;
            let (head, body) = request.split_once("\r\n\r\n").ok_or("a request without a body")?;
            let (head, _) = head.split_once("\r\nhost:").ok_or("a request without a host")?;
            let head = format!("{head}\r\ncontent-type: application/json\r\ncontent-length: {}", body.len());
            let answer = contender.server.request(&head, "200", |stream| stream.write_all(body.as_bytes()))?;
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let numbers = body.split(['[', ']', ',', ':', '}']).filter_map(|word| word.parse::<f64>().ok());
            if !numbers.into_iter().any(|number| (number - expected).abs() <= 1e-9 * expected.abs()) {
                return Err(format!("{} does not predict {expected}: {answer}", contender.name).into());
            }
        }
        Ok(())
    }

    /// Requests of so many rows each; `rest` are members beside the rows.
    fn lsqd(&self, name: &'static str, rows: usize, rest: &str) -> Contender<'_> {
        let body = |rows: &[[f64; PREDICTORS]]| {
            if let [row] = rows {
                return format!("{{\"rows\":[{}]{rest}}}", object(row));
            }
            let columns = (0..PREDICTORS).map(|place| format!("{:?}", self::name(place))).collect::<Vec<_>>().join(",");
            format!("{{\"columns\":[{columns}],\"data\":{}{rest}}}", arrays(rows))
        };
        Contender { name, server: &self.lsqd, requests: self.requests(&self.lsqd, "/v1/models/served/predict", rows, body) }
    }

    /// The floor, with the requests of another.
    fn floor<'s>(&'s self, like: &Contender<'_>) -> Contender<'s> {
        let head = |request: &Vec<u8>| {
            let text = String::from_utf8_lossy(request);
            text.replacen("/v1/models/served/predict", "/predict", 1).replacen(&like.server.address, &self.floor.address, 1).into_bytes()
        };
        Contender { name: "the floor: axum, a constant", server: &self.floor, requests: like.requests.iter().map(head).collect() }
    }

    fn product(&self, rows: usize) -> Contender<'_> {
        let requests = self.requests(&self.product, "/predict", rows, arrays);
        Contender { name: "axum, serde_json, a product", server: &self.product, requests }
    }

    fn peers(&self, rows: usize) -> Vec<Contender<'_>> {
        let each = |(name, server): &'_ (&'static str, Server)| {
            let requests = if name.starts_with("MLServer") {
                self.requests(server, "/v2/models/served/infer", rows, |rows| {
                    format!(
                        "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[{},{PREDICTORS}],\"datatype\":\"FP64\",\"data\":{}}}]}}",
                        rows.len(),
                        arrays(rows)
                    )
                })
            } else {
                self.requests(server, "/predict", rows, |rows| format!("{{\"data\":{}}}", arrays(rows)))
            };
            (*name, requests)
        };
        self.peers
            .iter()
            .map(|peer| {
                let (name, requests) = each(peer);
                Contender { name, server: &peer.1, requests }
            })
            .collect()
    }

    fn requests(&self, server: &Server, path: &str, rows: usize, body: impl Fn(&[[f64; PREDICTORS]]) -> String) -> Vec<Vec<u8>> {
        self.rows.chunks_exact(rows).take(REQUESTS).map(|rows| post(server, path, &body(rows))).collect()
    }

    /// Each contender in turn, round by round.
    fn measure(&self, contenders: &[Contender<'_>], connections: usize) -> Outcome<Vec<Result>> {
        let mut turns: Vec<Vec<(Turn, f64)>> = contenders.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.rounds {
            for (contender, turns) in contenders.iter().zip(&mut turns) {
                let address = &contender.server.address;
                hammer(address, &contender.requests, connections, WARMING)?;
                let before = contender.server.processor_seconds()?;
                let turn = hammer(address, &contender.requests, connections, self.seconds)?;
                let spent = contender.server.processor_seconds()? - before;
                let each = spent / turn.answered as f64 * 1e6;
                turns.push((turn, each));
            }
        }
        let of = |turns: &Vec<(Turn, f64)>, figure: &dyn Fn(&(Turn, f64)) -> f64| median(&mut turns.iter().map(figure).collect::<Vec<_>>());
        let result = |turns: &Vec<(Turn, f64)>| Result {
            rate: of(turns, &|turn| turn.0.rate()),
            median: of(turns, &|turn| turn.0.quantile(0.5)),
            tail: of(turns, &|turn| turn.0.quantile(0.99)),
            spent: of(turns, &|turn| turn.1),
        };
        Ok(turns.iter().map(result).collect())
    }

    /// Prints a line for each contender; the second of the lists says what is said of it beside its figures.
    fn print(contenders: &[Contender<'_>], results: &[Result], judgements: &[String]) -> Outcome<()> {
        let mut out = std::io::stdout();
        for ((contender, result), judgement) in contenders.iter().zip(results).zip(judgements) {
            let spent = if contender.server.has_children()? { "".to_owned() } else { format!("{:>6.1}", result.spent) };
            writeln!(
                out,
                "  {:<36} {:>8.0} {:>8.0} {:>8.0} {spent:>6}  {judgement}",
                contender.name, result.rate, result.median, result.tail
            )?;
        }
        Ok(())
    }

    fn head(what: &str) -> Outcome<()> {
        writeln!(std::io::stdout(), "\n{what:<38} {:>8} {:>8} {:>8} {:>6}", "req/s", "p50 us", "p99 us", "cpu us")?;
        Ok(())
    }

    /// Requests of one row.
    fn single(&self) -> Outcome<()> {
        for connections in [1, 16, 64] {
            let lsqd = self.lsqd("lsqd", 1, "");
            let mut contenders = vec![self.floor(&lsqd), lsqd, self.lsqd("lsqd, with interval", 1, ",\"interval\":{}"), self.product(1)];
            if connections == 64 {
                contenders.extend(self.peers(1));
            }
            let results = self.measure(&contenders, connections)?;
            Self::head(&format!("one row of {PREDICTORS}, {connections} connections"))?;
            let (floor, own) = (&results[0], &results[1]);
            let share = |result: &Result, goal: f64| {
                let (share, tail) = (result.rate / floor.rate, result.tail / floor.tail);
                format!("{}; p99 {}", judged_share(share, goal), judged_times(tail, TAIL, true))
            };
            let mut judgements =
                vec![String::new(), share(own, SHARE), judged_share(results[2].rate / floor.rate, SHARE_WITH_INTERVAL), String::new()];
            judgements.extend(results[4..].iter().map(|peer| {
                format!("lsqd is {}; the floor itself {:.1} x", judged_times(own.rate / peer.rate, PEER, false), floor.rate / peer.rate)
            }));
            Self::print(&contenders, &results, &judgements)?;
        }
        Ok(())
    }

    /// Requests of many rows.
    fn hundred(&self) -> Outcome<()> {
        for connections in [16, 64] {
            let lsqd = self.lsqd("lsqd", HUNDRED, "");
            let mut contenders = vec![self.floor(&lsqd), lsqd, self.product(HUNDRED)];
            let bytes = contenders[1].requests[0].len();
            if connections == 64 {
                contenders.extend(self.peers(HUNDRED));
            }
            let results = self.measure(&contenders, connections)?;
            Self::head(&format!("{HUNDRED} rows, {:.0} KB, {connections} connections", bytes as f64 / 1e3))?;
            let (floor, own, product) = (&results[0], &results[1], &results[2]);
            let of_floor = |result: &Result| format!("{:.0} % of the floor", 100.0 * result.rate / floor.rate);
            let mut judgements = vec![
                String::new(),
                of_floor(own),
                format!("{}; lsqd is {}", of_floor(product), judged_times(own.rate / product.rate, PRODUCT, false)),
            ];
            judgements
                .extend(results[3..].iter().map(|peer| format!("lsqd is {}", judged_times(own.rate / peer.rate, PEER_HUNDRED, false))));
            Self::print(&contenders, &results, &judgements)?;
        }
        Ok(())
    }

    /// Predictions at a fixed rate, while nothing else is done, and while fits run and updates arrive.
    fn busy(&self) -> Outcome<()> {
        let (rows, columns) = (setting("LSQD_BENCH_ROWS", TALL.0)?, TALL.1);
        let table = tall(rows, columns);
        put(&self.lsqd, "tall", &mut table.as_slice(), table.len())?;
        drop(table);
        let target = name(columns - 1);
        fit(&self.lsqd, "tall", "tall", &target)?;
        fit(&self.lsqd, "learning", "table", "y")?;
        let requests = self.lsqd("lsqd", 1, "").requests;
        let row = |row: &[f64; PREDICTORS]| format!("{{\"rows\":[{}]}}", object(row).replace('}', ",\"y\":1.5}"));
        let updates: Vec<Vec<u8>> =
            self.rows[..REQUESTS].iter().map(|each| post(&self.lsqd, "/v1/models/learning/updates", &row(each))).collect();
        let (mut idle, mut busy, mut learnt) = (Vec::new(), Vec::new(), Vec::new());
        let fits = AtomicU64::new(0);
        for _ in 0..self.rounds {
            idle.push(pace(&self.lsqd.address, &requests, PACED, PACE, self.seconds)?);
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| -> Outcome<()> {
                let fitting = scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        fit(&self.lsqd, "tall", "tall", &target).map_err(|error| error.to_string())?;
                        fits.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, String>(())
                });
                let learning = scope.spawn(|| {
                    pace(&self.lsqd.address, &updates, PACED, UPDATES, self.seconds + WARMING).map_err(|error| error.to_string())
                });
                std::thread::sleep(std::time::Duration::from_secs_f64(WARMING));
                busy.push(pace(&self.lsqd.address, &requests, PACED, PACE, self.seconds)?);
                over.store(true, Ordering::Relaxed);
                learnt.push(learning.join().map_err(|_| "the sender of updates panicked")??);
                fitting.join().map_err(|_| "the sender of fits panicked")??;
                Ok(())
            })?;
        }
        let of = |turns: &[Turn], figure: &dyn Fn(&Turn) -> f64| median(&mut turns.iter().map(figure).collect::<Vec<_>>());
        Self::head(&format!("one row at {PACE:.0} requests a second"))?;
        let mut out = std::io::stdout();
        let mut line = |what: String, turns: &[Turn], judgement: String| {
            let (rate, half, tail) =
                (of(turns, &Turn::rate), of(turns, &|turn| turn.quantile(0.5)), of(turns, &|turn| turn.quantile(0.99)));
            writeln!(out, "  {what:<36} {rate:>8.0} {half:>8.0} {tail:>8.0} {:>6}  {judgement}", "").map(|()| tail)
        };
        let quiet = line("while nothing else is done".to_owned(), &idle, String::new())?;
        let tail = of(&busy, &|turn| turn.quantile(0.99));
        line(format!("while {rows} x {columns} is fitted"), &busy, format!("p99 {}", judged_times(tail / quiet, BUSY_TAIL, true)))?;
        let fits = fits.load(Ordering::Relaxed) as f64 / (self.rounds as f64 * (self.seconds + WARMING));
        line("  and updates of one row arrive".to_owned(), &learnt, format!("{fits:.1} fits a second"))?;
        Ok(())
    }
}

fn judged_share(share: f64, goal: f64) -> String {
    let judged = if share >= goal { "meets" } else { "MISSES" };
    format!("{:.0} % of the floor {judged} the goal of {:.0} %", 100.0 * share, 100.0 * goal)
}

/// A ratio against its goal, which is the most or the least that it may be.
fn judged_times(times: f64, goal: f64, most: bool) -> String {
    let judged = if (times <= goal) == most { "meets" } else { "MISSES" };
    format!("{times:.2} x {judged} the goal of {goal} x")
}

fn cells(random: &mut StdRng) -> [f64; PREDICTORS] {
    std::array::from_fn(|_| random.random())
}

/// The name of a column; the last one of the small table is `y`.
fn name(place: usize) -> String {
    if place == PREDICTORS { "y".to_owned() } else { format!("x{}", place + 1) }
}

/// A row as JSON.
fn object(row: &[f64; PREDICTORS]) -> String {
    let members: Vec<String> =
        row.iter().enumerate().map(|(place, value)| format!("{:?}:{}", name(place), zmij::Buffer::new().format(*value))).collect();
    format!("{{{}}}", members.join(","))
}

/// Rows as arrays.
fn arrays(rows: &[[f64; PREDICTORS]]) -> String {
    let row = |row: &[f64; PREDICTORS]| {
        let values: Vec<String> = row.iter().map(|value| zmij::Buffer::new().format(*value).to_owned()).collect();
        format!("[{}]", values.join(","))
    };
    format!("[{}]", rows.iter().map(row).collect::<Vec<_>>().join(","))
}

fn post(server: &Server, path: &str, body: &str) -> Vec<u8> {
    let (host, length) = (&server.address, body.len());
    format!("POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

fn put(server: &Server, dataset: &str, table: &mut impl std::io::Read, length: usize) -> Outcome<()> {
    let head = format!("PUT /v1/datasets/{dataset} HTTP/1.1\r\ncontent-type: text/csv\r\ncontent-length: {length}");
    server.request(&head, "201", |stream| std::io::copy(table, stream).map(drop))?;
    Ok(())
}

fn fit(server: &Server, model: &str, dataset: &str, target: &str) -> Outcome<String> {
    let body = format!("{{\"dataset\":{dataset:?},\"target\":{target:?}}}");
    let length = body.len();
    let head =
        format!("POST /v1/models/{model}/fits HTTP/1.1\r\nprefer: wait=600\r\ncontent-type: application/json\r\ncontent-length: {length}");
    server.request(&head, "201", |stream| stream.write_all(body.as_bytes()))
}

/// A table of short numbers, the last column a sum of some others and noise.
fn tall(rows: usize, columns: usize) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(SEED);
    let mut text = (0..columns).map(name).collect::<Vec<_>>().join(",").into_bytes();
    text.reserve(rows * columns * 7);
    for _ in 0..rows {
        text.push(b'\n');
        let mut sum = 0;
        for column in 0..columns {
            let value = if column + 1 < columns { random.random_range(0..10_000_u32) } else { (sum / 8) % 10_000 };
            sum += if column % 8 == 0 { value } else { 0 };
            text.extend_from_slice(b"0.");
            let digits = [1_000, 100, 10, 1].map(|unit| b'0' + (value / unit % 10) as u8);
            text.extend_from_slice(&digits);
            text.push(b',');
        }
        text.pop();
    }
    text.push(b'\n');
    text
}
