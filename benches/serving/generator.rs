//! The load: requests over connections that are kept, one at a time on each, from one thread that waits for all of them at once. The same
//! for every contender. Of an answer it looks at the status and at where it ends, and at nothing else.

use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::under_test::Outcome;

/// How long nothing may happen before a contender is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a turn gave.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// Requests answered.
    pub(crate) answered: usize,
    /// Seconds it took.
    pub(crate) seconds: f64,
    /// From the first byte of a request to the last of its answer, sorted, in nanoseconds.
    latencies: Vec<u64>,
}

impl Turn {
    pub(crate) fn rate(&self) -> f64 {
        self.answered as f64 / self.seconds
    }

    /// The latency that so much of the requests did not exceed, in microseconds.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        quantile(&self.latencies, share)
    }
}

/// Of sorted nanoseconds, in microseconds.
pub(crate) fn quantile(sorted: &[u64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).map_or(f64::NAN, |nanoseconds| *nanoseconds as f64 / 1e3)
}

/// A connection and the request that is under way on it.
struct Connection {
    stream: TcpStream,
    /// The request's place in the list, and how much of it was sent.
    request: usize,
    sent: usize,
    begun: Instant,
    answer: Vec<u8>,
    /// Bytes of the whole answer, once its header is there.
    length: Option<usize>,
}

impl Connection {
    fn begin(&mut self, requests: &[Vec<u8>]) -> io::Result<()> {
        self.request = (self.request + 1) % requests.len();
        self.sent = 0;
        self.answer.clear();
        self.length = None;
        self.begun = Instant::now();
        self.send(requests)
    }

    fn send(&mut self, requests: &[Vec<u8>]) -> io::Result<()> {
        let request = &requests[self.request];
        while self.sent < request.len() {
            match self.stream.write(&request[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what is there; whether the answer is complete.
    fn receive(&mut self, piece: &mut [u8]) -> Outcome<bool> {
        loop {
            match self.stream.read(piece) {
                Ok(0) => return Err("the contender closed the connection".into()),
                Ok(count) => {
                    self.answer.extend_from_slice(&piece[..count]);
                    if self.length.is_none() {
                        self.length = whole_length(&self.answer)?;
                    }
                    if self.length.is_some_and(|length| self.answer.len() >= length) {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Bytes of an answer with its header, if that is there; anything but a success is an error.
pub(crate) fn whole_length(answer: &[u8]) -> Outcome<Option<usize>> {
    let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") else { return Ok(None) };
    let head = &answer[..end];
    if !head.starts_with(b"HTTP/1.1 2") {
        return Err(String::from_utf8_lossy(answer).into());
    }
    const NAME: &[u8] = b"content-length:";
    for line in head.split(|byte| *byte == b'\n') {
        if line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)) {
            let length = std::str::from_utf8(&line[NAME.len()..])?.trim().parse::<usize>()?;
            return Ok(Some(end + 4 + length));
        }
    }
    Err("an answer of unknown length".into())
}

/// Sends requests over so many connections for so many seconds.
pub(crate) fn hammer(address: &str, requests: &[Vec<u8>], connections: usize, seconds: f64) -> Outcome<Turn> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(connections);
    let mut open = Vec::with_capacity(connections);
    for place in 0..connections {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(place), Interest::READABLE | Interest::WRITABLE)?;
        let request = place * requests.len() / connections;
        open.push(Connection { stream, request, sent: 0, begun: Instant::now(), answer: Vec::new(), length: None });
    }
    let mut piece = vec![0; 64 << 10];
    let mut turn = Turn { latencies: Vec::with_capacity(1 << 18), ..Turn::default() };
    let begun = Instant::now();
    let until = begun + Duration::from_secs_f64(seconds);
    for connection in &mut open {
        connection.begin(requests)?;
    }
    let mut busy = connections;
    while busy > 0 {
        poll.poll(&mut events, Some(PATIENCE))?;
        if events.is_empty() {
            return Err("a contender does not answer".into());
        }
        for event in &events {
            let connection = &mut open[event.token().0];
            if event.is_writable() {
                connection.send(requests)?;
            }
            if event.is_readable() && connection.receive(&mut piece)? {
                let now = Instant::now();
                turn.answered += 1;
                turn.latencies.push(u64::try_from((now - connection.begun).as_nanos())?);
                if now < until {
                    connection.begin(requests)?;
                } else {
                    busy -= 1;
                }
            }
        }
    }
    turn.seconds = begun.elapsed().as_secs_f64();
    turn.latencies.sort_unstable();
    Ok(turn)
}

/// Sends requests at a fixed rate, shared out between some connections with a thread each, for so many seconds. A request that is late
/// because its connection waits for the answer before it counts from when it was due.
pub(crate) fn pace(address: &str, requests: &[Vec<u8>], connections: usize, rate: f64, seconds: f64) -> Outcome<Turn> {
    let begun = Instant::now() + Duration::from_millis(10);
    let each = |place: usize| -> Result<Vec<u64>, String> {
        let mut stream = std::net::TcpStream::connect(address).map_err(|error| error.to_string())?;
        let mut latencies = Vec::new();
        let mut piece = vec![0; 64 << 10];
        let mut free = begun;
        for slot in (place..(rate * seconds) as usize).step_by(connections) {
            let due = begun + Duration::from_secs_f64(slot as f64 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let from = if free > due { due } else { Instant::now() };
            let mut exchange = || -> Outcome<()> {
                stream.write_all(&requests[slot % requests.len()])?;
                let mut answer = Vec::new();
                loop {
                    let count = stream.read(&mut piece)?;
                    answer.extend_from_slice(&piece[..count]);
                    if count == 0 {
                        return Err("the contender closed the connection".into());
                    }
                    if whole_length(&answer)?.is_some_and(|length| answer.len() >= length) {
                        return Ok(());
                    }
                }
            };
            exchange().map_err(|error| error.to_string())?;
            free = Instant::now();
            latencies.push((free - from).as_nanos() as u64);
        }
        Ok(latencies)
    };
    let mut latencies = Vec::new();
    std::thread::scope(|scope| -> Outcome<()> {
        let threads: Vec<_> = (0..connections).map(|place| scope.spawn(move || each(place))).collect();
        for thread in threads {
            latencies.extend(thread.join().map_err(|_| "a sender panicked")??);
        }
        Ok(())
    })?;
    latencies.sort_unstable();
    Ok(Turn { answered: latencies.len(), seconds: begun.elapsed().as_secs_f64(), latencies })
}
