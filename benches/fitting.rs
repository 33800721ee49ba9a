//! The Rust half of the fitting benchmark: fits data in memory as it is told to over its input, and answers with times. `bench/fitting.py`
//! is the other half; it makes the data and runs the peers in turn with this. `bench/run` runs both.
//!
//! Started without `serve`, as `cargo bench --bench fitting` does, it times a few fits of data of its own and sets them against the machine's
//! matrix-multiply speed. Nothing here judges by the clock.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use lsqd::lsq::{ElasticNet, ElasticPenalty, Fit, Matrices, Robust, Solver, Specification, elastic_net, fit, ridge_path, robust};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn Error>>;

const SEED: u64 = 1805;
const MEBIBYTE: f64 = 1_048_576.0;

fn main() -> Outcome<()> {
    if std::env::args().any(|argument| argument == "serve") { serve() } else { alone() }
}

/// A problem in memory.
struct Table {
    design: Mat<f64>,
    response: Mat<f64>,
}

impl Table {
    fn empty() -> Self {
        Self { design: Mat::new(), response: Mat::new() }
    }

    fn source(&self) -> Matrices<'_> {
        self.first(self.response.nrows())
    }

    /// The first so many rows.
    fn first(&self, rows: usize) -> Matrices<'_> {
        Matrices { design: self.design.subrows(0, rows), response: self.response.subrows(0, rows), weights: None }
    }

    /// Little-endian floats, column by column, the response last.
    fn read(path: &str, rows: usize, columns: usize) -> Outcome<Self> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut table = Self { design: Mat::zeros(rows, columns), response: Mat::zeros(rows, 1) };
        let mut bytes = vec![0; rows * size_of::<f64>()];
        for column in 0..=columns {
            file.read_exact(&mut bytes)?;
            let cells = if column < columns { table.design.col_as_slice_mut(column) } else { table.response.col_as_slice_mut(0) };
            for (cell, bytes) in cells.iter_mut().zip(bytes.as_chunks().0) {
                *cell = f64::from_le_bytes(*bytes);
            }
        }
        Ok(table)
    }

    /// Gaussian columns with a mean offset; a linear response and noise.
    fn random(rows: usize, columns: usize) -> Self {
        let mut random = StdRng::seed_from_u64(SEED);
        let mut gaussian = move || {
            let (one, other): (f64, f64) = (random.random(), random.random());
            (-2.0 * (1.0 - one).ln()).sqrt() * (std::f64::consts::TAU * other).cos()
        };
        let design = Mat::from_fn(rows, columns, |_, column| gaussian() + column as f64);
        let slopes = Mat::from_fn(columns, 1, |row, _| 1.0 + row as f64 / columns as f64);
        let mut response = &design * slopes;
        response.col_as_slice_mut(0).iter_mut().for_each(|value| *value += gaussian());
        Self { design, response }
    }
}

/// Answers requests, one JSON text a line, until there are no more.
fn serve() -> Outcome<()> {
    let mut table = Table::empty();
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let answer = answer(&request, &mut table).unwrap_or_else(|error| json!({ "error": error.to_string() }));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn answer(request: &Value, table: &mut Table) -> Outcome<Value> {
    let text = |name: &str| request[name].as_str().ok_or(format!("`{name}` is missing"));
    let count = |name: &str| request[name].as_u64().map(|value| value as usize).ok_or(format!("`{name}` is missing"));
    let number = |name: &str| request[name].as_f64().ok_or(format!("`{name}` is missing"));
    let numbers = |name: &str| -> Vec<f64> { request[name].as_array().into_iter().flatten().filter_map(Value::as_f64).collect() };
    Ok(match text("what")? {
        "load" => {
            // The old one goes first.
            *table = Table::empty();
            *table = Table::read(text("path")?, count("rows")?, count("columns")?)?;
            json!({})
        }
        "peak" => json!({ "flops": peak(), "threads": rayon::current_num_threads() }),
        "least squares" => timed(|| {
            let solver = Solver::parse(request["solver"].as_str().unwrap_or("auto")).ok_or("no such solver")?;
            let mut rows = count("rows").map_or(table.source(), |rows| table.first(rows.min(table.response.nrows())));
            let fit = fit(&mut rows, &Specification { solver, ..Specification::default() })?;
            Ok(json!({ "coefficients": coefficients(&fit), "solver": fit.solver.as_str() }))
        })?,
        "ridge path" => timed(|| {
            let path = ridge_path(&mut table.source(), true, &numbers("penalties"))?;
            let penalty = path.points[path.best].penalty;
            let fit = fit(&mut table.source(), &Specification { penalty, ..Specification::default() })?;
            Ok(json!({ "coefficients": coefficients(&fit), "penalty": penalty }))
        })?,
        "elastic net" => timed(|| {
            let penalty = ElasticPenalty::Auto {
                folds: u32::try_from(count("folds")?)?,
                seed: SEED,
                one_standard_error: false,
                points: count("points")?,
                smallest: number("smallest")?,
            };
            let fit =
                elastic_net(&mut table.source(), &ElasticNet { penalty, l1_ratio: number("l1_ratio")?, intercept: true, positive: false })?;
            Ok(json!({ "penalty": fit.penalty, "duality_gap": fit.duality_gap, "slopes": fit.slopes.col_as_slice(0) }))
        })?,
        "robust" => timed(|| {
            let fit = robust(&mut table.source(), &Robust::default())?;
            Ok(json!({ "intercept": fit.intercept, "slopes": fit.slopes.col_as_slice(0), "scale": fit.scale, "rounds": fit.rounds }))
        })?,
        what => return Err(format!("no such request: {what}").into()),
    })
}

/// The intercept first.
fn coefficients(fit: &Fit) -> Vec<f64> {
    let information = &fit.information;
    information.intercept().iter().chain(information.coefficients().col(0).iter()).copied().collect()
}

/// What came of it, with the seconds it took and the memory, in MiB, by which the resident set grew at the most.
fn timed(work: impl FnOnce() -> Outcome<Value>) -> Outcome<Value> {
    // Linux: the peak begins anew. Elsewhere, memory is not told.
    let before = std::fs::write("/proc/self/clear_refs", "5").ok().and_then(|()| memory("VmRSS:"));
    let begun = Instant::now();
    let mut found = work()?;
    found["seconds"] = json!(begun.elapsed().as_secs_f64());
    found["memory"] = json!(before.and_then(|before| memory("VmHWM:").map(|peak| peak - before)));
    Ok(found)
}

fn memory(field: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()? * 1024.0 / MEBIBYTE)
}

/// Floating-point operations a second of a large matrix product on all threads: the best of some.
fn peak() -> f64 {
    const SIZE: usize = 1536;
    let one = Mat::from_fn(SIZE, SIZE, |row, column| ((row * 7 + column * 3) % 11) as f64);
    let other = one.clone();
    let mut product = Mat::zeros(SIZE, SIZE);
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        let begun = Instant::now();
        matmul(product.as_mut(), Accum::Replace, one.as_ref(), other.as_ref(), 1.0, Par::rayon(0));
        best = best.min(begun.elapsed().as_secs_f64());
        std::hint::black_box(&product);
    }
    2.0 * (SIZE as f64).powi(3) / best
}

/// Without a driver.
fn alone() -> Outcome<()> {
    const ROUNDS: usize = 5;
    let mut out = std::io::stdout();
    writeln!(out, "{} threads; medians of {ROUNDS}; the symmetric half of a Gram product is n*p^2 flops", rayon::current_num_threads())?;
    for (rows, columns) in [(100_000, 20), (1_000_000, 20), (100_000, 100), (500_000, 100), (20_000, 500)] {
        let table = Table::random(rows, columns);
        let peak = peak();
        let mut seconds = Vec::new();
        let mut memory = 0.0_f64;
        for _ in 0..ROUNDS {
            let found = timed(|| {
                std::hint::black_box(fit(&mut table.source(), &Specification::default())?);
                Ok(json!({}))
            })?;
            seconds.push(found["seconds"].as_f64().unwrap_or(f64::NAN));
            memory = memory.max(found["memory"].as_f64().unwrap_or(f64::NAN));
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[ROUNDS / 2];
        let product = rows as f64 * (columns as f64).powi(2) / peak;
        writeln!(
            out,
            "{rows:>8} x {columns:<4} {median:>8.4} s  {:>5.2} x the Gram product at {:.0} Gflop/s  {memory:>6.1} MiB more memory",
            median / product,
            peak / 1e9
        )?;
    }
    Ok(())
}
