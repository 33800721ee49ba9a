//! The Rust half of the online benchmark: how many rows a second the kernel learns, row by row and in blocks of 1,000, beside a bare Givens
//! sweep over a triangle of the same size, which keeps no promise but the triangle. `bench/online.py` is the other half and runs River in
//! turn with this; `bench/run-online` runs both.
//!
//! Started without `serve`, as `cargo bench --bench online` does, it prints its own table. One thread. Nothing here judges by the clock.

use std::error::Error;
use std::io::{BufRead as _, Write as _};
use std::time::Instant;

use faer::Mat;
use lsqd::lsq::{Block, Gathered, Information, Matrices, Specification, fit};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn Error>>;

const SEED: u64 = 1795;
/// Rows of a block, and rows that are gone through again and again.
const BLOCK: usize = 1_000;
const PREDICTORS: [usize; 3] = [10, 50, 200];
/// Rows that a fit has seen before learning begins, a predictor.
const FITTED: usize = 4;
const ROUNDS: usize = 7;
/// Seconds of a turn.
const TURN: f64 = 0.15;

fn main() -> Outcome<()> {
    if std::env::args().any(|argument| argument == "serve") { serve() } else { alone() }
}

/// Rows of a linear model with noise.
struct Table {
    predictors: usize,
    /// n×p, row by row.
    design: Vec<f64>,
    response: Vec<f64>,
    /// The same of the first rows as matrices, which is how blocks come.
    block: (Mat<f64>, Mat<f64>),
}

impl Table {
    fn random(rows: usize, predictors: usize) -> Self {
        let mut random = StdRng::seed_from_u64(SEED);
        let mut next = || 2.0 * random.random::<f64>() - 1.0;
        let slopes: Vec<f64> = (0..predictors).map(|_| next()).collect();
        let design: Vec<f64> = (0..rows * predictors).map(|_| next()).collect();
        let response: Vec<f64> =
            design.chunks_exact(predictors).map(|row| row.iter().zip(&slopes).map(|(x, slope)| x * slope).sum::<f64>() + next()).collect();
        let block = (
            Mat::from_fn(BLOCK, predictors, |row, column| design[row * predictors + column]),
            Mat::from_fn(BLOCK, 1, |row, _| response[row]),
        );
        Self { predictors, design, response, block }
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.design[row * self.predictors..(row + 1) * self.predictors]
    }

    /// What a fit of the first rows leaves.
    fn begun(&self) -> Outcome<Information> {
        let rows = FITTED * self.predictors;
        let design = Mat::from_fn(rows, self.predictors, |row, column| self.row(row)[column]);
        let response = Mat::from_fn(rows, 1, |row, _| self.response[row]);
        let mut source = Matrices { design: design.as_ref(), response: response.as_ref(), weights: None };
        Ok(fit(&mut source, &Specification { intercept: true, ..Specification::default() })?.information)
    }
}

/// What is timed.
#[derive(Clone, Copy)]
enum Way {
    /// A Givens sweep over a p×p triangle, square roots and all.
    Givens,
    /// `update`, nothing forgotten.
    Rows,
    /// `update`, λ = 0.999.
    Forgetting,
    /// `update_block`, nothing forgotten.
    Blocks,
    /// `update_block`, λ = 0.999.
    ForgettingBlocks,
    /// `update_block`, and then `raise_maximum_leverage`.
    Leverages,
}

impl Way {
    const ALL: [Self; 6] = [Self::Givens, Self::Rows, Self::Forgetting, Self::Blocks, Self::ForgettingBlocks, Self::Leverages];

    fn name(self) -> &'static str {
        match self {
            Self::Givens => "bare Givens sweep",
            Self::Rows => "row by row",
            Self::Forgetting => "row by row, forgetting",
            Self::Blocks => "blocks of 1,000",
            Self::ForgettingBlocks => "blocks, forgetting",
            Self::Leverages => "blocks, leverages too",
        }
    }
}

/// Goes through the rows of a table for some time; rows a second.
fn rate(way: Way, table: &Table) -> Outcome<f64> {
    let mut triangle = Triangle::new(table.predictors);
    let mut information = table.begun()?;
    let (mut innovations, mut leverages) = (vec![0.0; BLOCK], vec![0.0; BLOCK]);
    let begun = Instant::now();
    let mut rows = 0;
    loop {
        match way {
            Way::Givens => (0..BLOCK).for_each(|row| triangle.rotate(table.row(row))),
            Way::Rows | Way::Forgetting => {
                let factor = if matches!(way, Way::Rows) { 1.0 } else { 0.999 };
                for row in 0..BLOCK {
                    leverages[row] =
                        information.update(table.row(row), &table.response[row..=row], 1.0, factor, &mut innovations[row..=row])?;
                }
            }
            Way::Blocks | Way::ForgettingBlocks | Way::Leverages => {
                let factor = if matches!(way, Way::ForgettingBlocks) { 0.999 } else { 1.0 };
                let (design, response) = (table.block.0.as_ref(), table.block.1.as_ref());
                let block = Block { design, design_low: None, response, weights: None };
                information.update_block(&block, factor)?;
                if matches!(way, Way::Leverages) {
                    information.raise_maximum_leverage(&block);
                }
            }
        }
        rows += BLOCK;
        let seconds = begun.elapsed().as_secs_f64();
        if seconds > TURN {
            std::hint::black_box((&triangle.cells, information.leverage(table.row(0), &mut Gathered::default()), &innovations, &leverages));
            return Ok(rows as f64 / seconds);
        }
    }
}

/// R, row by row from its diagonal on, as one writes it down.
struct Triangle {
    width: usize,
    cells: Vec<f64>,
    row: Vec<f64>,
}

impl Triangle {
    fn new(width: usize) -> Self {
        let cells = (0..width).flat_map(|row| (row..width).map(move |column| if row == column { 1.0 } else { 0.0 })).collect();
        Self { width, cells, row: vec![0.0; width] }
    }

    fn rotate(&mut self, x: &[f64]) {
        self.row.copy_from_slice(x);
        pulp::Arch::new().dispatch(Rotate { width: self.width, cells: &mut self.cells, row: &mut self.row });
    }
}

/// A row rotated into a triangle.
struct Rotate<'a> {
    width: usize,
    cells: &'a mut [f64],
    row: &'a mut [f64],
}

impl pulp::WithSimd for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let mut rest = self.cells;
        for place in 0..self.width {
            let (own, behind) = rest.split_at_mut(self.width - place);
            rest = behind;
            let incoming = &mut self.row[place..];
            let radius = own[0].mul_add(own[0], incoming[0] * incoming[0]).sqrt();
            let inverse = radius.recip();
            let (cosine, sine) = (own[0] * inverse, incoming[0] * inverse);
            own[0] = radius;
            for (own, incoming) in own[1..].iter_mut().zip(&mut incoming[1..]) {
                let rotated = cosine.mul_add(*own, sine * *incoming);
                *incoming = cosine.mul_add(*incoming, -(sine * *own));
                *own = rotated;
            }
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Answers requests, one JSON text a line, until there are no more.
fn serve() -> Outcome<()> {
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let answer = answer(&request).unwrap_or_else(|error| json!({ "error": error.to_string() }));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn answer(request: &Value) -> Outcome<Value> {
    let predictors = usize::try_from(request["predictors"].as_u64().ok_or("`predictors` is missing")?)?;
    let table = Table::random(BLOCK.max(FITTED * predictors), predictors);
    let mut found = json!({});
    for way in Way::ALL {
        found[way.name()] = json!(rate(way, &table)?);
    }
    Ok(found)
}

/// Without a driver.
fn alone() -> Outcome<()> {
    let mut out = std::io::stdout();
    writeln!(out, "rows a second on one core, medians of {ROUNDS} rounds in turns")?;
    for predictors in PREDICTORS {
        let table = Table::random(BLOCK.max(FITTED * predictors), predictors);
        let mut rates = vec![Vec::new(); Way::ALL.len()];
        for _ in 0..ROUNDS {
            for (rates, way) in rates.iter_mut().zip(Way::ALL) {
                rates.push(rate(way, &table)?);
            }
        }
        let rates: Vec<f64> = rates.into_iter().map(median).collect();
        writeln!(out, "p = {predictors}")?;
        for (rate, way) in rates.iter().zip(Way::ALL) {
            writeln!(out, "  {:<24} {rate:>12.0}  {:>6.2} x the bare sweep", way.name(), rate / rates[0])?;
        }
    }
    Ok(())
}
