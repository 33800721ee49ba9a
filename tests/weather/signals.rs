//! SIGTERM under load, again and again: what was sent before it is answered, whole, and the process ends well and soon.
//!
//! A request counts as accepted once the server has begun to read it. Nobody but the server sees that moment, so more is asked for here:
//! whatever was handed to the system before the signal was sent is answered, accepted or not. Of what was sent afterwards, a whole answer
//! comes or not a byte; in the latter case the connection was closed between two requests, as HTTP has it, and the client may ask again
//! elsewhere (RFC 9112, section 9.5).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::server::Server;
use crate::setting;

/// Rounds unless `LSQD_SIGNALS` says otherwise.
const ROUNDS: usize = 5;
/// Clients of each kind.
const CLIENTS: usize = 3;
/// How long an end may take.
const PATIENCE: Duration = Duration::from_secs(25);

/// How a request ended.
#[derive(Debug)]
enum Ended {
    /// Whether the answer says that the connection ends with it.
    Answered { last: bool },
    /// Not a byte came.
    Unheard,
    /// A part of an answer came, or one that is none.
    Torn(String),
}

/// Bytes that an answer has in all, once its header is there.
fn length(answer: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(answer);
    let (head, _) = text.split_once("\r\n\r\n")?;
    let length =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(|rest| rest.trim().parse::<usize>()));
    Some(head.len() + 4 + length?.ok()?)
}

/// Sends a request; when that was done, and how it ended.
fn exchange(stream: &mut TcpStream, request: &[u8]) -> (Option<Instant>, Ended) {
    if stream.write_all(request).is_err() {
        return (None, Ended::Unheard);
    }
    let sent = Instant::now();
    let mut answer = Vec::new();
    let mut piece = [0; 16384];
    loop {
        match stream.read(&mut piece) {
            Ok(count @ 1..) => answer.extend_from_slice(&piece[..count]),
            _ if answer.is_empty() => return (Some(sent), Ended::Unheard),
            _ => return (Some(sent), Ended::Torn(String::from_utf8_lossy(&answer).into_owned())),
        }
        if length(&answer).is_some_and(|length| answer.len() >= length) {
            // 503 is how an update is told that it was not taken any more.
            let whole = answer.starts_with(b"HTTP/1.1 200") || answer.starts_with(b"HTTP/1.1 503");
            let text = String::from_utf8_lossy(&answer);
            let last = text.to_ascii_lowercase().contains("\r\nconnection: close\r\n");
            return (Some(sent), if whole { Ended::Answered { last } } else { Ended::Torn(text.into_owned()) });
        }
    }
}

/// Asks again and again, on one connection or on a new one each time, until it is told nothing any more; all that it sent and how that ended.
fn ask(address: &str, request: &[u8], kept: bool, over: &AtomicBool) -> Vec<(Option<Instant>, Ended)> {
    let mut ended = Vec::new();
    let mut open = None;
    while !over.load(Ordering::Relaxed) {
        let stream = match open.take() {
            Some(stream) => Some(stream),
            None => TcpStream::connect(address).ok(),
        };
        let Some(mut stream) = stream else { break };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        ended.push(exchange(&mut stream, request));
        let Some((_, Ended::Answered { last })) = ended.last() else { break };
        open = (kept && !last).then_some(stream);
    }
    ended
}

/// A load, a signal, an end; requests that were answered, and those that were unheard.
fn round(seed: u64) -> (usize, usize, Duration) {
    let mut server = Server::start(&["--log-level", "warn"]);
    let mut random = StdRng::seed_from_u64(seed);
    let request = |what: &str, rows: String| {
        let body = format!("{{\"rows\":[{rows}]}}");
        format!("POST /v1/models/line/{what} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let short = request("predict", "{\"x\":2.5}".to_owned());
    let learn = request("updates", "{\"x\":2.5,\"y\":2.5}".to_owned());
    // Longer than what a thread of the connections answers by itself.
    let long = request("predict", vec!["{\"x\":2.5}"; 10_000].join(","));
    let over = AtomicBool::new(false);
    let (signalled, took, ended) = std::thread::scope(|scope| {
        let (address, over) = (server.address.clone(), &over);
        let mut clients = Vec::new();
        for (request, kept) in [(&short, true), (&short, false), (&learn, true), (&long, true)] {
            for _ in 0..CLIENTS {
                let address = address.clone();
                clients.push(scope.spawn(move || ask(&address, request, kept, over)));
            }
        }
        std::thread::sleep(Duration::from_micros(random.random_range(20_000..120_000)));
        let signalled = Instant::now();
        server.terminate();
        let status = server.end(PATIENCE);
        let took = signalled.elapsed();
        over.store(true, Ordering::Relaxed);
        let ended: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        let status = status.unwrap_or_else(|| panic!("round {seed}: it has not ended after {PATIENCE:?}"));
        assert!(status.success(), "round {seed}: {status}: {}", server.log());
        (signalled, took, ended)
    });
    let (mut answered, mut unheard) = (0, 0);
    for (sent, end) in ended {
        match end {
            Ended::Answered { .. } => answered += 1,
            Ended::Unheard => {
                unheard += 1;
                let before = sent.filter(|sent| *sent < signalled).map(|sent| signalled - sent);
                assert_eq!(before, None, "round {seed}: a request that was sent before the signal was not answered");
            }
            Ended::Torn(answer) => panic!("round {seed}: {answer:?}"),
        }
    }
    assert!(answered > 0, "round {seed}");
    (answered, unheard, took)
}

#[test]
fn a_signal_under_load_resets_no_request_and_ends_in_order() {
    let rounds = setting("LSQD_SIGNALS").unwrap_or(ROUNDS);
    let begun = Instant::now();
    let (mut answered, mut unheard, mut slowest) = (0, 0, Duration::ZERO);
    for seed in 0..rounds {
        let (round_answered, round_unheard, took) = round(seed as u64);
        answered += round_answered;
        unheard += round_unheard;
        slowest = slowest.max(took);
    }
    eprintln!(
        "{rounds} signals, {answered} requests answered, {unheard} sent too late and not heard, none torn; the slowest end took {:.2} s, exit code 0 each \
         time: {:.1} s",
        slowest.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
}
