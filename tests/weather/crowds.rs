//! Connections that take a place and give nothing: they are closed, they cost little, and predictions go on meanwhile.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::server::{Client, Server};
use crate::setting;

/// Predictions a second, on each of some connections, while latencies are measured.
const PACE: f64 = 250.0;
const PACED: usize = 2;
/// How many times its quiet p99 that of predictions may become.
const TAIL: f64 = 1.2;
/// Most MiB of 10,000 idle connections.
const IDLE: f64 = 300.0;

/// Lets this process have as many connections as the system grants; how many that is, about.
fn allow_sockets() -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    maximum.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(200))
}

/// A client whose packets are as small as those of a network, and who has room for few of them.
fn narrow(server: &Server) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_tcp_mss(1460).unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    let address: SocketAddr = server.address.parse().unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// Those who never end their header, those who say nothing, and those who take next to nothing of an answer.
struct Crowd {
    slow: Vec<TcpStream>,
    _silent: Vec<TcpStream>,
    reading: Vec<TcpStream>,
}

impl Crowd {
    fn gather(server: &Server, size: usize) -> Self {
        // A thousand a second: more at once overflow what the system keeps for a listener, and are put off by it for seconds.
        let connect = || {
            std::thread::sleep(Duration::from_millis(1));
            TcpStream::connect(&server.address).unwrap()
        };
        let slow = (0..size * 2 / 3).map(|_| {
            let mut stream = connect();
            stream.write_all(b"POST /v1/models/line/predict HTTP/1.1\r\nhost: x\r\nx-a: ").unwrap();
            stream
        });
        let reading = (0..size / 6).map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            let mut stream = narrow(server);
            stream.write_all(b"GET /openapi.yaml HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            stream
        });
        let crowd = Self { slow: slow.collect(), _silent: (0..size / 6).map(|_| connect()).collect(), reading: reading.collect() };
        for stream in crowd.slow.iter().chain(&crowd.reading) {
            stream.set_nonblocking(true).unwrap();
        }
        crowd
    }

    /// Sends a byte more of each header, and takes a little of each answer: of every so many-th connection, from one of them on.
    fn trickle(&mut self, from: usize, every: usize) {
        // Whoever is closed by now is not told apart; the server's own count says so.
        self.slow.iter_mut().skip(from).step_by(every).for_each(|stream| _ = stream.write(b"a"));
        let mut piece = [0; 64];
        self.reading.iter_mut().skip(from).step_by(every).for_each(|stream| _ = stream.read(&mut piece));
    }
}

/// Predicts at a fixed rate until it is over; the latencies, sorted. A request that is late because the one before it took long counts from
/// when it was due.
fn paced(server: &Server, over: &AtomicBool) -> Vec<Duration> {
    let one = |place: usize| {
        let mut client = Client::connect(server);
        let begun = Instant::now() + Duration::from_secs_f64(place as f64 / PACE / PACED as f64);
        let mut latencies = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let due = begun + Duration::from_secs_f64(latencies.len() as f64 / PACE);
            let late = Instant::now().saturating_duration_since(due);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            latencies.push(late + client.predict());
        }
        latencies
    };
    let mut latencies: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..PACED).map(|place| scope.spawn(move || one(place))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    latencies.sort_unstable();
    latencies
}

fn quantile(sorted: &[Duration], share: f64) -> f64 {
    sorted[(sorted.len() as f64 * share) as usize].as_secs_f64() * 1e6
}

/// In the quick form the server is less patient, so that nobody has to wait for it; in the long form it has its usual settings.
#[test]
fn slow_and_silent_connections_are_closed_and_predictions_go_on() {
    let long = setting("LSQD_CROWD");
    let size = long.unwrap_or(180).min(allow_sockets());
    let flags: &[&str] = if long.is_some() { &[] } else { &["--header-timeout", "3s", "--answer-timeout", "3s"] };
    let (server, patience) = (Server::start(flags), Duration::from_secs(15));
    let (over, quiet) = (AtomicBool::new(false), AtomicBool::new(long.is_none()));
    // Two connections of the clients who predict are there all the time.
    let most = server.files() + PACED;
    let before = std::thread::scope(|scope| {
        let measured = scope.spawn(|| if long.is_some() { paced(&server, &quiet) } else { Vec::new() });
        if long.is_some() {
            std::thread::sleep(Duration::from_secs(12));
            quiet.store(true, Ordering::Relaxed);
        }
        measured.join().unwrap()
    });
    let (during, closed, gathered, memory, there) = std::thread::scope(|scope| {
        let measured = scope.spawn(|| paced(&server, &over));
        let begun = Instant::now();
        let mut crowd = Crowd::gather(&server, size);
        let gathered = begun.elapsed();
        // Not all of them are accepted by now, and some may be closed already.
        let mut there = server.files();
        while there < most + size / 2 && begun.elapsed() < gathered + Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
            there = there.max(server.files());
        }
        let begun = Instant::now();
        let (server, over) = (&server, &over);
        let waiting = scope.spawn(move || {
            let closed = server.waits_for_files(most, patience);
            over.store(true, Ordering::Relaxed);
            closed
        });
        let mut next = begun;
        // Each has its turn once a second, or ten times, and not all at once: those of many clients are spread.
        let turns = if long.is_some() { 200 } else { 20 };
        for turn in (0..turns).cycle() {
            if over.load(Ordering::Relaxed) {
                break;
            }
            next += Duration::from_millis(5);
            crowd.trickle(turn, turns);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        (measured.join().unwrap(), waiting.join().unwrap(), gathered, server.memory("VmHWM:"), there)
    });
    assert!(there >= most + size / 2, "{there} files: the crowd was not there");
    let closed = closed.unwrap_or_else(|| panic!("{} connections are open after {patience:?}", server.files() - most));
    assert!(during.len() > 50, "{} predictions", during.len());
    if long.is_some() {
        let (before, during) = (quantile(&before, 0.99), quantile(&during, 0.99));
        let judged = if during <= TAIL * before { "meets" } else { "MISSES" };
        eprintln!(
            "{size} connections gathered in {:.1} s were closed {:.1} s later; predictions at {:.0} a second: p99 {before:.0} us, and {during:.0} us meanwhile, \
             {:.2} x, which {judged} {TAIL} x; at most {memory:.0} MiB resident",
            gathered.as_secs_f64(),
            closed.as_secs_f64(),
            PACE * PACED as f64,
            during / before,
        );
    }
}

#[test]
fn connections_that_wait_between_two_requests_cost_little() {
    let count = setting("LSQD_IDLE").unwrap_or(1000);
    let granted = allow_sockets();
    if count > granted {
        eprintln!("{count} connections are more than the system lets this process have: {granted} instead");
    }
    let count = count.min(granted);
    let server = Server::start(&["--max-connections", "20000", "--idle-timeout", "10m"]);
    let (mut client, before) = (Client::connect(&server), server.memory("VmRSS:"));
    let idle: Vec<Client> = (0..count)
        .map(|_| {
            let mut client = Client::connect(&server);
            client.predict();
            client
        })
        .collect();
    assert!(server.files() >= count);
    let now = server.memory("VmRSS:");
    // A start of some MiB is part of the claim about ten thousand; of fewer, their share is asked for.
    let most = if count >= 10_000 { IDLE } else { before + IDLE * count as f64 / 10_000.0 };
    assert!(now < most, "{count} idle connections: {now:.0} MiB, {before:.0} before");
    client.predict();
    eprintln!("{count} idle connections: {now:.0} MiB resident, {before:.0} MiB before");
    drop(idle);
}

#[test]
fn the_limit_of_open_files_is_raised_and_one_that_is_too_low_is_told() {
    let server = Server::start_after("ulimit -Sn 256", &[]);
    let clients: Vec<Client> = (0..400)
        .map(|_| {
            let mut client = Client::connect(&server);
            client.predict();
            client
        })
        .collect();
    assert!(!server.log().contains("fewer open files"), "{}", server.log());
    drop((clients, server));
    let server = Server::start_after("ulimit -n 300", &[]);
    assert!(server.log().contains("fewer open files than --max-connections needs"), "{}", server.log());
}

#[test]
fn an_upload_that_trickles_is_ended_and_a_stream_of_rows_is_not() {
    const PATIENCE: Duration = Duration::from_secs(2);
    let server = Server::start(&["--body-timeout", "2s"]);
    let begin = |what: &str, media: &str| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        write!(stream, "{what} HTTP/1.1\r\nhost: x\r\ncontent-type: {media}\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
        (stream, String::new())
    };
    for attempt in 0.. {
        let mut upload = begin("PUT /v1/datasets/slow", "text/csv");
        let mut rows = begin("POST /v1/models/line/updates", "application/x-ndjson");
        let (begun, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        let mut piece = [0; 4096];
        while begun.elapsed() < PATIENCE * 2 {
            for ((stream, said), chunk) in [(&mut upload, "1\r\n1\r\n"), (&mut rows, "1\r\n \r\n")] {
                let _ = stream.write_all(chunk.as_bytes());
                if let Ok(count) = stream.read(&mut piece) {
                    said.push_str(&String::from_utf8_lossy(&piece[..count]));
                }
            }
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        assert!(upload.1.starts_with("HTTP/1.1 408") && upload.1.contains("\"timeout\""), "{}", upload.1);
        let row = "{\"x\":5,\"y\":5.5}\n";
        let _ = write!(rows.0, "{:x}\r\n{row}\r\n0\r\n\r\n", row.len());
        rows.0.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        while !rows.1.contains("\"accepted\":1") {
            let Ok(count @ 1..) = rows.0.read(&mut piece) else { break };
            rows.1.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        if rows.1.contains("\"accepted\":1") {
            return;
        }
        // Whoever was held up on a busy machine has paused indeed.
        assert!(longest > PATIENCE / 2 && attempt < 5, "after a pause of {longest:?} at most: {}", rows.1);
    }
}
