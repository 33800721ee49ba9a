//! What watching the inputs costs: requests to predict, answered by the whole application but for the socket, by a server that watches and by one
//! that does not. Not here: how fast predictions are otherwise.
//!
//! `cargo bench --bench watching`. The two servers take turns request by request, so that a noisy machine is noisy for both, and of each the
//! median request is told; the cost is the ratio of the two, less one, of which the rounds' median and extremes are told. Without a socket the
//! time beside it is shorter than in life, so the share is an upper limit. `LSQD_BENCH_ROUNDS` changes the number of rounds.
//!
//! Exactly, in instructions: `LSQD_BENCH_SIDE=watched` and then `plain` under `perf stat -e instructions:u` answers 1,000 times by one of them.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use http_body_util::BodyExt as _;
use lsqd::http::{App, PackedLimits, router};
use lsqd::service::{Service, Settings};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tower::ServiceExt as _;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const FEATURES: usize = 20;
const SEED: u64 = 1949;
/// Most that watching may cost.
const GOAL: f64 = 0.03;

/// A request that is asked again and again.
struct Case {
    name: &'static str,
    path: &'static str,
    media: &'static str,
    body: String,
    /// Requests of each server in a round.
    times: usize,
}

fn main() -> Outcome<()> {
    // What `cargo bench` says to a program; `cargo test --all-targets` starts it too, and must not wait for it.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    // One thread, so that nothing of a request happens elsewhere but for what large bodies do.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(compare())
}

async fn compare() -> Outcome<()> {
    let rounds = std::env::var("LSQD_BENCH_ROUNDS").map_or(Ok(9), |text| text.parse::<usize>())?.max(1);
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
    let watched = application(&folders[0], true).await?;
    let plain = application(&folders[1], false).await?;
    if let Ok(side) = std::env::var("LSQD_BENCH_SIDE") {
        let side = if side == "watched" { watched } else { plain };
        for case in cases(&mut StdRng::seed_from_u64(SEED)) {
            for _ in 0..1000_usize.min(case.times) {
                ask(&side, &case).await?;
            }
        }
        return Ok(());
    }
    let mut out = std::io::stdout();
    writeln!(out, "{FEATURES} features; {rounds} rounds; the median request of each, and the median of the rounds' costs (least to most)")?;
    let mut worst = f64::NEG_INFINITY;
    for case in cases(&mut StdRng::seed_from_u64(SEED)) {
        let (mut costs, mut medians) = (Vec::new(), [Vec::new(), Vec::new()]);
        for round in 0..rounds {
            let mut times = [Vec::with_capacity(case.times), Vec::with_capacity(case.times)];
            for turn in 0..case.times {
                // Who goes first changes, because the second finds the request's bytes in the cache.
                for side in if (round + turn) % 2 == 0 { [0, 1] } else { [1, 0] } {
                    times[side].push(ask([&watched, &plain][side], &case).await?.as_secs_f64());
                }
            }
            let [watched, plain] = times.map(|mut times| median(&mut times));
            costs.push(watched / plain - 1.0);
            medians[0].push(watched);
            medians[1].push(plain);
        }
        let [watched, plain] = medians.map(|mut medians| 1e6 * median(&mut medians));
        let cost = median(&mut costs);
        worst = worst.max(cost);
        writeln!(
            out,
            "{:<44} {watched:>9.2} us watched, {plain:>9.2} us not: {:>+5.1} % ({:+.1} to {:+.1})",
            case.name,
            100.0 * cost,
            100.0 * costs[0],
            100.0 * costs[costs.len() - 1],
        )?;
    }
    let verdict = if worst < GOAL { "within" } else { "MISSES" };
    writeln!(out, "at the most {:.1} %, {verdict} the goal of {:.0} %", 100.0 * worst, 100.0 * GOAL)?;
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A server's application with a model `m` in it.
async fn application(folder: &tempfile::TempDir, watch_inputs: bool) -> Outcome<Router> {
    let settings = Settings {
        compute_threads: 1,
        readers: 2,
        fit_queue: 8,
        remember_ttl: Duration::from_secs(3600),
        watch_inputs,
        key_rate: None,
        storage_limit: 0,
    };
    let (service, _closing) = Service::open(&folder.path().join("lsqd.db"), settings).await?;
    service.replay().await?;
    let app = router(App {
        service: Arc::clone(&service),
        body_limit: 64 << 20,
        upload_limit: 0,
        packed: PackedLimits { bytes: 0, ratio: 0 },
        overload: Arc::default(),
        default_model: None,
        cors: Arc::default(),
        site: Arc::default(),
        metrics: String::new,
    });
    let mut random = StdRng::seed_from_u64(SEED);
    let mut table = names().join(",") + ",y\n";
    for _ in 0..5000 {
        let row: Vec<f64> = (0..=FEATURES).map(|_| random.random::<f64>()).collect();
        table += &(row.iter().map(f64::to_string).collect::<Vec<_>>().join(",") + "\n");
    }
    let put = Request::put("/v1/datasets/t").header(header::CONTENT_TYPE, "text/csv").body(Body::from(table))?;
    let fit = Request::post("/v1/models/m/fits").header("prefer", "wait=60").body(Body::from(r#"{"dataset": "t", "target": "y"}"#))?;
    for request in [put, fit] {
        let response = app.clone().oneshot(request).await?;
        if response.status() != 201 {
            return Err(format!("{}", response.status()).into());
        }
    }
    Ok(app)
}

fn names() -> Vec<String> {
    (0..FEATURES).map(|feature| format!("x{feature}")).collect()
}

/// Asks and reads all of the answer.
async fn ask(app: &Router, case: &Case) -> Outcome<Duration> {
    let request = Request::post(case.path).header(header::CONTENT_TYPE, case.media).body(Body::from(case.body.clone()))?;
    let begun = Instant::now();
    let response = app.clone().oneshot(request).await?;
    let status = response.status();
    response.into_body().collect().await?;
    let taken = begun.elapsed();
    if status == 200 { Ok(taken) } else { Err(format!("{}: {status}", case.name).into()) }
}

fn cases(random: &mut StdRng) -> Vec<Case> {
    let mut row = || (0..FEATURES).map(|_| random.random::<f64>()).collect::<Vec<_>>();
    let mut json = |rows: usize| {
        let names = names();
        let rows: Vec<String> = (0..rows)
            .map(|_| {
                let cells: Vec<String> = names.iter().zip(row()).map(|(name, cell)| format!("\"{name}\":{cell}")).collect();
                format!("{{{}}}", cells.join(","))
            })
            .collect();
        format!("{{\"rows\":[{}]}}", rows.join(","))
    };
    let (one, eight, hundred) = (json(1), json(8), json(100));
    let mut csv = names().join(",") + "\n";
    for _ in 0..10_000 {
        csv += &(row().iter().map(f64::to_string).collect::<Vec<_>>().join(",") + "\n");
    }
    let (usual, bare) = ("/v1/models/m/predict", "/v1/models/m/predict?fields=predictions");
    let case = |name, path, media, body: &String, times| Case { name, path, media, body: body.clone(), times };
    vec![
        case("one row of JSON", usual, "application/json", &one, 4000),
        case("one row of JSON, predictions alone", bare, "application/json", &one, 4000),
        case("8 rows of JSON", usual, "application/json", &eight, 2000),
        case("8 rows of JSON, predictions alone", bare, "application/json", &eight, 2000),
        case("100 rows of JSON", usual, "application/json", &hundred, 400),
        case("100 rows of JSON, predictions alone", bare, "application/json", &hundred, 400),
        case("10,000 rows of CSV", usual, "text/csv", &csv, 100),
        case("10,000 rows of CSV, predictions alone", bare, "text/csv", &csv, 100),
    ]
}
