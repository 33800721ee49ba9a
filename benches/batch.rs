//! How fast many rows are predicted in one request: the release binary answering CSV, NDJSON and Arrow as streams, beside parsers that read the
//! same bytes from memory on one thread and multiply, and beside a socket that takes the bytes and drops them. Not here: any claim that fails a
//! build by the clock; only the memory is judged, since it does not depend on the machine.
//!
//! `cargo bench --bench batch`. The peers take turns within a round, so that a noisy machine is noisy for all of them, and medians are told.
//! `LSQD_BENCH_ROWS` and `LSQD_BENCH_ROUNDS` change the setting.

mod under_test;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Float64Type;
use arrow_array::{Array as _, ArrayRef, Float64Array, RecordBatch};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use under_test::{Outcome, Server, median, setting};

const COLUMNS: usize = 20;
const SEED: u64 = 1809;
/// Most memory that the server may have taken beyond what it began with, in MiB.
const MEMORY: f64 = 96.0;
/// Goal of the time of a stream, in times that of the fastest parser and the multiplication.
const RATIO: f64 = 1.5;
/// Rows of a batch of Arrow.
const BATCH: usize = 65_536;

/// Somebody who reads a body and multiplies; gives the sum of the predictions.
type Peer = (&'static str, fn(&[u8], &[f64]) -> Outcome<f64>);

/// One format: its body, and who reads it.
struct Dialect {
    name: &'static str,
    media: &'static str,
    body: Vec<u8>,
    peers: &'static [Peer],
}

fn main() -> Outcome<()> {
    // What `cargo bench` says to a program; `cargo test --all-targets` starts it too, and must not wait for it.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let rows = setting("LSQD_BENCH_ROWS", 1_000_000)?;
    let rounds = setting("LSQD_BENCH_ROUNDS", 5)?;
    let folder = under_test::folder()?;
    let mut out = std::io::stdout();
    writeln!(out, "{rows} rows x {COLUMNS} random floats in one request, predictions only; {rounds} rounds, medians")?;
    let server = Server::start(&folder.path().join("lsqd.db"), &[])?;
    fit(&server)?;
    let before = server.memory("VmHWM")?;
    let slopes: Vec<f64> = (1..=COLUMNS).map(|column| column as f64).collect();
    for dialect in dialects(rows)? {
        let megabytes = dialect.body.len() as f64 / 1e6;
        writeln!(out, "\n{}, {megabytes:.0} MB", dialect.name)?;
        let mut parsing = vec![Vec::new(); dialect.peers.len()];
        let (mut dropping, mut answering, mut processor) = (Vec::new(), Vec::new(), Vec::new());
        let mut expected = f64::NAN;
        for _ in 0..rounds {
            for ((_, peer), seconds) in dialect.peers.iter().zip(&mut parsing) {
                let begun = Instant::now();
                expected = std::hint::black_box(peer(&dialect.body, &slopes)?);
                seconds.push(begun.elapsed().as_secs_f64());
            }
            dropping.push(drop_bytes(&dialect.body)?);
            let (begun, spent) = (Instant::now(), server.processor_seconds()?);
            let answer = ask(&server, &dialect)?;
            answering.push(begun.elapsed().as_secs_f64());
            processor.push(server.processor_seconds()? - spent);
            check(&dialect, &answer, rows, expected)?;
        }
        let mut line = |what: &str, seconds: f64, rest: String| {
            writeln!(out, "  {what:<52} {seconds:>7.3} s {:>6.0} MB/s  {rest}", megabytes / seconds)
        };
        let mut fastest = f64::INFINITY;
        for ((name, _), seconds) in dialect.peers.iter().zip(&mut parsing) {
            let seconds = median(seconds);
            fastest = fastest.min(seconds);
            line(name, seconds, String::new())?;
        }
        line("a socket that takes the bytes and drops them", median(&mut dropping), String::new())?;
        let seconds = median(&mut answering);
        let ratio = seconds / fastest;
        let judged = if ratio <= RATIO { "within" } else { "past" };
        line(
            "lsqd, from the first byte sent to the last taken",
            seconds,
            format!("{ratio:.2} x the fastest, {judged} the goal of {RATIO:.1} x"),
        )?;
        line("  processor time of the server", median(&mut processor), String::new())?;
        // The most so far, of this format and of those before it.
        writeln!(out, "  memory of the server beyond what it began with {:>12.1} MiB", server.memory("VmHWM")? - before)?;
    }
    let grown = server.memory("VmHWM")? - before;
    let judged = if grown < MEMORY { "pass" } else { "FAIL" };
    writeln!(out, "\nmemory of the server beyond what it began with {grown:.1} MiB  {judged}: less than {MEMORY:.0} MiB is asked for")?;
    Ok(())
}

/// A model of slopes 1, 2, … without an intercept to speak of.
fn fit(server: &Server) -> Outcome<()> {
    let mut random = StdRng::seed_from_u64(SEED);
    let names: Vec<String> = (1..=COLUMNS).map(|column| format!("c{column}")).collect();
    let mut table = format!("{},y\n", names.join(","));
    for _ in 0..200 {
        let row: Vec<f64> = (0..COLUMNS).map(|_| random.random()).collect();
        let sum: f64 = row.iter().zip(1..).map(|(value, column)| value * f64::from(column)).sum();
        row.iter().for_each(|value| table.push_str(&format!("{value},")));
        table.push_str(&format!("{sum}\n"));
    }
    server.request(&format!("PUT /v1/datasets/table HTTP/1.1\r\ncontent-length: {}", table.len()), "201", |stream| {
        stream.write_all(table.as_bytes())
    })?;
    let asked = r#"{"dataset":"table","target":"y"}"#;
    let head = format!("POST /v1/models/model/fits HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}", asked.len());
    server.request(&head, "201", |stream| stream.write_all(asked.as_bytes()))?;
    Ok(())
}

/// The same rows in each format.
fn dialects(rows: usize) -> Outcome<Vec<Dialect>> {
    let mut random = StdRng::seed_from_u64(SEED + 1);
    let names: Vec<String> = (1..=COLUMNS).map(|column| format!("c{column}")).collect();
    let mut csv = names.join(",").into_bytes();
    csv.push(b'\n');
    let mut ndjson = Vec::new();
    let schema = schema();
    let mut arrow = StreamWriter::try_new(Vec::new(), &schema)?;
    let mut columns = vec![Vec::new(); COLUMNS];
    let mut buffer = zmij::Buffer::new();
    for row in 0..rows {
        for (place, column) in columns.iter_mut().enumerate() {
            let value: f64 = random.random();
            column.push(value);
            let text = buffer.format(value).as_bytes();
            csv.extend_from_slice(text);
            csv.push(if place + 1 < COLUMNS { b',' } else { b'\n' });
            ndjson.extend_from_slice(if place == 0 { b"{\"" } else { b",\"" });
            ndjson.extend_from_slice(names[place].as_bytes());
            ndjson.extend_from_slice(b"\":");
            ndjson.extend_from_slice(text);
        }
        ndjson.extend_from_slice(b"}\n");
        if columns[0].len() == BATCH || row + 1 == rows {
            let arrays = columns.iter_mut().map(|column| Arc::new(Float64Array::from(std::mem::take(column))) as ArrayRef).collect();
            arrow.write(&RecordBatch::try_new(schema.clone(), arrays)?)?;
        }
    }
    let csv_peers: &[Peer] =
        &[("arrow-csv, one thread, and the product", arrow_csv), ("a flat scan with fast-float2 (no quotes, no checks)", flat_csv)];
    let ndjson_peers: &[Peer] =
        &[("serde_json into a struct, and the product", serde_lines), ("a flat scan with fast-float2 (no names, no checks)", flat_ndjson)];
    let arrow_peers: &[Peer] = &[("arrow-ipc, and the product", arrow_ipc)];
    Ok(vec![
        Dialect { name: "CSV", media: "text/csv", body: csv, peers: csv_peers },
        Dialect { name: "NDJSON", media: "application/x-ndjson", body: ndjson, peers: ndjson_peers },
        Dialect { name: "Arrow", media: "application/vnd.apache.arrow.stream", body: arrow.into_inner()?, peers: arrow_peers },
    ])
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new((1..=COLUMNS).map(|column| Field::new(format!("c{column}"), DataType::Float64, true)).collect::<Vec<_>>()))
}

/// The predictions of a batch, summed.
fn product(batch: &RecordBatch, slopes: &[f64]) -> f64 {
    let mut predictions = vec![0.0; batch.num_rows()];
    for (column, slope) in batch.columns().iter().zip(slopes) {
        for (prediction, value) in predictions.iter_mut().zip(column.as_primitive::<Float64Type>().values()) {
            *prediction += slope * value;
        }
    }
    predictions.iter().sum()
}

fn arrow_csv(body: &[u8], slopes: &[f64]) -> Outcome<f64> {
    let mut reader = arrow_csv::ReaderBuilder::new(schema()).with_header(true).with_batch_size(8192).build_buffered(body)?;
    reader.try_fold(0.0, |sum, batch| Ok(sum + product(&batch?, slopes)))
}

fn flat_csv(body: &[u8], slopes: &[f64]) -> Outcome<f64> {
    let mut rest = &body[memchr::memchr(b'\n', body).ok_or("no header")? + 1..];
    let mut sum = 0.0;
    while !rest.is_empty() {
        for slope in slopes {
            let (value, length) = fast_float2::parse_partial::<f64, _>(rest)?;
            sum += slope * value;
            rest = rest.get(length + 1..).unwrap_or_default();
        }
    }
    Ok(sum)
}

/// A row as serde reads it.
#[derive(serde::Deserialize)]
struct Row {
    c1: f64,
    c2: f64,
    c3: f64,
    c4: f64,
    c5: f64,
    c6: f64,
    c7: f64,
    c8: f64,
    c9: f64,
    c10: f64,
    c11: f64,
    c12: f64,
    c13: f64,
    c14: f64,
    c15: f64,
    c16: f64,
    c17: f64,
    c18: f64,
    c19: f64,
    c20: f64,
}

impl Row {
    fn dot(&self, slopes: &[f64]) -> f64 {
        let cells = [
            self.c1, self.c2, self.c3, self.c4, self.c5, self.c6, self.c7, self.c8, self.c9, self.c10, self.c11, self.c12, self.c13,
            self.c14, self.c15, self.c16, self.c17, self.c18, self.c19, self.c20,
        ];
        cells.iter().zip(slopes).map(|(cell, slope)| cell * slope).sum()
    }
}

fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

fn serde_lines(body: &[u8], slopes: &[f64]) -> Outcome<f64> {
    let mut sum = 0.0;
    for line in lines(body) {
        sum += serde_json::from_slice::<Row>(line)?.dot(slopes);
    }
    Ok(sum)
}

fn flat_ndjson(body: &[u8], slopes: &[f64]) -> Outcome<f64> {
    let mut rest = body;
    let mut sum = 0.0;
    while rest.len() > 1 {
        for slope in slopes {
            rest = &rest[memchr::memchr(b':', rest).ok_or("no cell")? + 1..];
            let (value, length) = fast_float2::parse_partial::<f64, _>(rest)?;
            sum += slope * value;
            rest = &rest[length..];
        }
        rest = rest.get(2..).unwrap_or_default();
    }
    Ok(sum)
}

fn arrow_ipc(body: &[u8], slopes: &[f64]) -> Outcome<f64> {
    StreamReader::try_new(body, None)?.try_fold(0.0, |sum, batch| Ok(sum + product(&batch?, slopes)))
}

/// Seconds that a socket needs to take the bytes.
fn drop_bytes(body: &[u8]) -> Outcome<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let begun = Instant::now();
    std::thread::scope(|scope| -> Outcome<()> {
        let taking = scope.spawn(move || {
            let mut piece = vec![0; 256 << 10];
            while receiver.read(&mut piece).is_ok_and(|count| count > 0) {}
        });
        sender.write_all(body)?;
        drop(sender);
        taking.join().map_err(|_| "the receiver panicked")?;
        Ok(())
    })?;
    Ok(begun.elapsed().as_secs_f64())
}

/// The answer to a body that is sent while it is read, without what HTTP puts around it.
fn ask(server: &Server, dialect: &Dialect) -> Outcome<Vec<u8>> {
    let mut stream = TcpStream::connect(&server.address)?;
    let mut answers = stream.try_clone()?;
    std::thread::scope(|scope| -> Outcome<Vec<u8>> {
        let reader = scope.spawn(move || {
            let mut answer = Vec::new();
            answers.read_to_end(&mut answer).map(|_| answer)
        });
        write!(
            stream,
            "POST /v1/models/model/predict?fields=predictions HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n",
            server.address,
            dialect.media,
            dialect.body.len()
        )?;
        stream.write_all(&dialect.body)?;
        Ok(reader.join().map_err(|_| "the reader of the answer panicked")??)
    })
}

/// Fails unless the answer is one of all rows, whose predictions add up.
fn check(dialect: &Dialect, answer: &[u8], rows: usize, expected: f64) -> Outcome<()> {
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or("no end of the header")?;
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        return Err(String::from_utf8_lossy(&answer[..answer.len().min(1000)]).into());
    }
    let (mut rest, mut body) = (&answer[head + 4..], Vec::new());
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n").ok_or("a chunk without its length")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line])?, 16)?;
        if length == 0 {
            break;
        }
        body.extend_from_slice(rest.get(line + 2..line + 2 + length).ok_or("a chunk that is cut off")?);
        rest = rest.get(line + 2 + length + 2..).ok_or("an answer that is cut off")?;
    }
    let (mut sum, mut count) = (0.0, 0);
    if dialect.name == "Arrow" {
        for batch in StreamReader::try_new(&body[..], None)? {
            let column = batch?.column(0).clone();
            sum += column.as_primitive::<Float64Type>().values().iter().sum::<f64>();
            count += column.len();
        }
    } else {
        for line in body.split(|byte| *byte == b'\n').filter(|line| line.last().is_some_and(|byte| byte.is_ascii_digit() || *byte == b'}'))
        {
            let text = line.strip_prefix(b"{\"prediction\":").unwrap_or(line);
            sum += fast_float2::parse::<f64, _>(text.strip_suffix(b"}").unwrap_or(text))?;
            count += 1;
        }
    }
    if count == rows && ((sum - expected) / expected).abs() < 1e-9 {
        Ok(())
    } else {
        Err(format!("{}: {count} rows, {sum}, not {expected}", dialect.name).into())
    }
}
