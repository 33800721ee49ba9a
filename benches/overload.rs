//! What more requests than can be answered do to those that can: the release binary on one core, the load on another, requests that come when
//! they come and not when the last was answered.
//!
//! `cargo bench --bench overload`. Arrivals are fixed before the server is asked (exponential distances, as of clients that know nothing of
//! each other), and a latency counts from the arrival, whether or not there was a connection to send on. A request is 1,000 rows by a model of
//! a few predictors with limits of a prediction interval: dear to the server, cheap to send. The peak is what a few clients that ask one
//! after the other get. `LSQD_BENCH_SECONDS` (of a load, in tenths) and `LSQD_BENCH_SERVER` (another build's binary) change the setting. Where
//! there is no `taskset`, or one core, load and server share what there is, and the figures of the peak with it.

#[path = "serving/generator.rs"]
#[allow(dead_code)] // the load of the serving benchmark waits for answers; its reading of them is the same
mod generator;
#[path = "under_test/mod.rs"]
mod under_test;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use generator::{hammer, quantile};
use under_test::{Outcome, Server, setting};

/// Rows of a request.
const ROWS: usize = 1000;
/// Connections that the load may have open.
const CONNECTIONS: usize = 1000;
/// A client gives up what was not even sent in that time.
const PATIENCE: Duration = Duration::from_secs(1);
/// Clients that ask one after the other, to see what the most is.
const CLOSED: usize = 16;

/// Goals: share of the peak that is answered in overload, times of the unloaded p99 of what is answered, seconds until it is as before.
const GOODPUT: f64 = 0.9;
const TAIL: f64 = 3.0;
const RECOVERY: f64 = 5.0;

/// Says that this process runs on its core already.
const PINNED: &str = "--pinned";

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // What `cargo bench` says to a program; `cargo test --all-targets` starts it too, and must not wait for it.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let pinned = arguments.iter().any(|argument| argument == PINNED);
    if !pinned && std::thread::available_parallelism()?.get() > 1 {
        let own = std::env::current_exe()?;
        let status = Command::new("taskset").args(["-c", "1"]).arg(own).args(["--bench", PINNED]).status();
        if let Ok(status) = status {
            return if status.success() { Ok(()) } else { Err("the benchmark failed".into()) };
        }
    }
    run(pinned)
}

fn run(pinned: bool) -> Outcome<()> {
    let folder = under_test::folder()?;
    let binary = std::env::var_os("LSQD_BENCH_SERVER").unwrap_or_else(|| env!("CARGO_BIN_EXE_lsqd").into());
    let mut command = Command::new(if pinned { "taskset".into() } else { binary.clone() });
    if pinned {
        command.args(["-c", "0"]).arg(binary);
    }
    command.args(["--listen", "127.0.0.1:0", "--database"]).arg(folder.path().join("lsqd.db"));
    let server = Server::launch(command, "/readyz")?;
    let request = prepare(&server)?;
    let seconds = setting("LSQD_BENCH_SECONDS", 80)? as f64 / 10.0;
    let requests = [request.clone()];
    hammer(&server.address, &requests, CLOSED, 1.0)?;
    let peak = (0..3).map(|_| Ok(hammer(&server.address, &requests, CLOSED, seconds / 4.0)?.rate())).collect::<Outcome<Vec<_>>>()?;
    let peak = peak.into_iter().fold(0.0, f64::max);
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{} thread(s) that serve, {}; requests of {ROWS} rows, {:.1} KB; {CLOSED} clients that ask one after the other get {peak:.0} answers a second",
        server.threads("lsqd-serve")?,
        if pinned { "on a core of their own" } else { "sharing the cores with the load" },
        request.len() as f64 / 1e3,
    )?;
    writeln!(
        out,
        "\n  load           offered/s answered/s of peak  refused/s  unsent/s    p50 ms    p99 ms of calm   health, metrics: slowest"
    )?;
    let mut calm = f64::NAN;
    for (name, share) in [("calm", 0.1), ("half", 0.5), ("three times", 3.0), ("then half", 0.5), ("ten times", 10.0), ("then half", 0.5)] {
        let watching = Watching::start(&server.address);
        let load = offer(&server.address, &request, share * peak, seconds)?;
        let watched = watching.end()?;
        let tail = load.quantile(0.99);
        if share < 0.2 {
            calm = tail;
        }
        let rate = load.latencies.len() as f64 / seconds;
        writeln!(
            out,
            "  {name:<14} {:>9.0} {rate:>10.0} {:>6.0}% {:>10.0} {:>9.0} {:>9.2} {:>9.2} {:>6.1}x   {:.1} ms of {}",
            load.offered as f64 / seconds,
            100.0 * rate / peak,
            load.refused as f64 / seconds,
            load.unsent as f64 / seconds,
            load.quantile(0.5) / 1e3,
            tail / 1e3,
            tail / calm,
            watched.slowest.as_secs_f64() * 1e3,
            watched.answered,
        )?;
        let judge = |well: bool| if well { "meets" } else { "MISSES" };
        if share == 3.0 {
            writeln!(
                out,
                "    goodput {:.0} % {} {:.0} %; p99 {:.1} x {} {TAIL} x",
                100.0 * rate / peak,
                judge(rate >= GOODPUT * peak),
                100.0 * GOODPUT,
                tail / calm,
                judge(tail <= TAIL * calm)
            )?;
        }
        if name.starts_with("then") {
            let recovered = load.recovered(3.0 * calm);
            writeln!(out, "    as before after {recovered:.2} s, which {} {RECOVERY} s", judge(recovered <= RECOVERY))?;
        }
    }
    Ok(())
}

/// Fits the model; the request, whole.
fn prepare(server: &Server) -> Outcome<Vec<u8>> {
    let mut random = StdRng::seed_from_u64(1809);
    let names: Vec<String> = (0..4).map(|place| format!("x{place}")).collect();
    let mut table = names.join(",") + ",y\n";
    for _ in 0..500 {
        let cells: Vec<f64> = (0..4).map(|_| random.random()).collect();
        let y = cells.iter().sum::<f64>() + random.random::<f64>();
        table.push_str(&cells.iter().map(|cell| format!("{cell:.4},")).collect::<String>());
        table.push_str(&format!("{y:.4}\n"));
    }
    let head = format!("PUT /v1/datasets/t HTTP/1.1\r\ncontent-type: text/csv\r\ncontent-length: {}", table.len());
    server.request(&head, "201", |stream| stream.write_all(table.as_bytes()))?;
    let body = "{\"dataset\":\"t\",\"target\":\"y\"}";
    let head = format!("POST /v1/models/m/fits HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}", body.len());
    server.request(&head, "201", |stream| stream.write_all(body.as_bytes()))?;
    let rows: Vec<String> = (0..ROWS)
        .map(|_| {
            let cells: Vec<String> = (0..4).map(|_| format!("{:.2}", random.random::<f64>())).collect();
            format!("[{}]", cells.join(","))
        })
        .collect();
    let body = format!("{{\"columns\":[\"x0\",\"x1\",\"x2\",\"x3\"],\"data\":[{}],\"interval\":{{}}}}", rows.join(","));
    let path = "/v1/models/m/predict?fields=predictions,lower";
    let (host, length) = (&server.address, body.len());
    Ok(format!("POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes())
}

/// What came of a load.
#[derive(Debug, Default)]
struct Load {
    offered: usize,
    refused: usize,
    unsent: usize,
    /// When each answered request arrived, in seconds from the beginning, and how long its answer took from then, in nanoseconds.
    answers: Vec<(f64, u64)>,
    /// When each request arrived that was refused or not sent.
    failures: Vec<f64>,
    /// Those of the answers, sorted.
    latencies: Vec<u64>,
}

impl Load {
    /// In microseconds.
    fn quantile(&self, share: f64) -> f64 {
        quantile(&self.latencies, share)
    }

    /// Seconds after which nothing was refused any more, and hardly anything took longer than `tail` microseconds.
    fn recovered(&self, tail: f64) -> f64 {
        let refused = self.failures.iter().copied().fold(0.0, f64::max);
        // The last stretch of a quarter of a second in which one in a hundred took longer.
        let mut late = 0.0_f64;
        for stretch in 0..1000 {
            let (from, to) = (f64::from(stretch) * 0.25, f64::from(stretch + 1) * 0.25);
            let within: Vec<u64> = self.answers.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, took)| *took).collect();
            let slow = within.iter().filter(|took| **took as f64 / 1e3 > tail).count();
            if slow * 100 > within.len().max(100) {
                late = late.max(to);
            }
        }
        refused.max(late)
    }
}

/// A connection of the load, and the request that is under way on it.
struct Connection {
    stream: TcpStream,
    sent: usize,
    /// When what is under way arrived.
    due: Option<Instant>,
    answer: Vec<u8>,
}

impl Connection {
    fn open(address: &str, poll: &Poll, token: usize) -> Outcome<Self> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(token), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { stream, sent: 0, due: None, answer: Vec::new() })
    }

    /// Sends what can be sent; whether the connection is still good.
    fn send(&mut self, request: &[u8]) -> bool {
        while self.due.is_some() && self.sent < request.len() {
            match self.stream.write(&request[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }

    /// Reads what is there; `None` when the connection is over.
    fn receive(&mut self, piece: &mut [u8]) -> Option<()> {
        loop {
            match self.stream.read(piece) {
                Ok(0) => return None,
                Ok(count) => self.answer.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(()),
                Err(_) => return None,
            }
        }
    }

    /// The status of the answer, if all of it is there.
    fn status(&self) -> Option<u16> {
        let end = memchr::memmem::find(&self.answer, b"\r\n\r\n")?;
        let head = std::str::from_utf8(&self.answer[..end]).ok()?.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?.trim().parse::<usize>().ok()?;
        if self.answer.len() < end + 4 + length { None } else { head.get(9..12)?.parse().ok() }
    }
}

/// Offers so many requests a second for some seconds.
fn offer(address: &str, request: &[u8], rate: f64, seconds: f64) -> Outcome<Load> {
    let mut random = StdRng::seed_from_u64(rate as u64);
    let mut arrivals = Vec::new();
    let mut at = 0.0;
    while at < seconds {
        at -= (1.0 - random.random::<f64>()).ln() / rate;
        arrivals.push(Duration::from_secs_f64(at));
    }
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(CONNECTIONS);
    let mut open: Vec<Connection> = Vec::new();
    let mut idle: Vec<usize> = Vec::new();
    let mut waiting: VecDeque<Instant> = VecDeque::new();
    let mut load = Load { offered: arrivals.len(), ..Load::default() };
    let mut piece = vec![0; 64 << 10];
    let (begun, mut next, mut busy) = (Instant::now(), 0, 0);
    loop {
        let now = Instant::now();
        while next < arrivals.len() && begun + arrivals[next] <= now {
            waiting.push_back(begun + arrivals[next]);
            next += 1;
        }
        while let Some(due) = waiting.front().copied() {
            if now - due > PATIENCE {
                load.unsent += 1;
                load.failures.push((due - begun).as_secs_f64());
                waiting.pop_front();
                continue;
            }
            let place = match idle.pop() {
                Some(place) => place,
                None if open.len() < CONNECTIONS => {
                    open.push(Connection::open(address, &poll, open.len())?);
                    open.len() - 1
                }
                None => break,
            };
            waiting.pop_front();
            let connection = &mut open[place];
            (connection.due, connection.sent) = (Some(due), 0);
            connection.answer.clear();
            busy += 1;
            // One that was closed in the meantime is noticed when it is read from.
            connection.send(request);
        }
        if next == arrivals.len() && busy == 0 && waiting.is_empty() {
            break;
        }
        let until = arrivals.get(next).map_or(Duration::from_millis(100), |arrival| (begun + *arrival).saturating_duration_since(now));
        poll.poll(&mut events, Some(until))?;
        if now - begun > Duration::from_secs_f64(seconds + 30.0) {
            return Err("the server does not answer".into());
        }
        for event in &events {
            let place = event.token().0;
            let connection = &mut open[place];
            let well = connection.send(request);
            let over = connection.receive(&mut piece).is_none();
            let status = connection.status();
            if (status.is_some() || over)
                && let Some(due) = connection.due.take()
            {
                busy -= 1;
                match status {
                    Some(200) => {
                        let took = u64::try_from((Instant::now() - due).as_nanos())?;
                        load.answers.push(((due - begun).as_secs_f64(), took));
                    }
                    Some(503) => {
                        load.refused += 1;
                        load.failures.push((due - begun).as_secs_f64());
                    }
                    // Closed before the answer: sent again by whoever wants, and counted as refused.
                    None => {
                        load.refused += 1;
                        load.failures.push((due - begun).as_secs_f64());
                    }
                    Some(_) => return Err(String::from_utf8_lossy(&connection.answer).into()),
                }
                if !over {
                    idle.push(place);
                }
            }
            if over || !well {
                idle.retain(|other| *other != place);
                open[place] = Connection::open(address, &poll, place)?;
                idle.push(place);
            }
        }
    }
    load.latencies = load.answers.iter().map(|(_, took)| *took).collect();
    load.latencies.sort_unstable();
    Ok(load)
}

/// Somebody who asks for health and metrics all the time.
struct Watching {
    over: std::sync::Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Watched, String>>,
}

#[derive(Debug, Default)]
struct Watched {
    answered: usize,
    slowest: Duration,
}

impl Watching {
    fn start(address: &str) -> Self {
        let over = std::sync::Arc::new(AtomicBool::new(false));
        let (ended, address) = (over.clone(), address.to_owned());
        let thread = std::thread::spawn(move || {
            let mut watched = Watched::default();
            while !ended.load(Ordering::Relaxed) {
                for path in ["/livez", "/readyz", "/metrics"] {
                    let begun = Instant::now();
                    let mut said = String::new();
                    let mut ask = || -> std::io::Result<()> {
                        let mut stream = std::net::TcpStream::connect(&address)?;
                        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
                        stream.read_to_string(&mut said).map(drop)
                    };
                    ask().map_err(|error| format!("{path}: {error}"))?;
                    if !said.starts_with("HTTP/1.1 200") {
                        return Err(format!("{path}: {said}"));
                    }
                    watched.answered += 1;
                    watched.slowest = watched.slowest.max(begun.elapsed());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(watched)
        });
        Self { over, thread }
    }

    fn end(self) -> Outcome<Watched> {
        self.over.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| "the watcher panicked")??)
    }
}
