//! The real binary as a child process, asked by plain sockets: what a client does with its bytes is what is tested here.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The table that the model `line` is fitted on.
const TABLE: &[u8] = b"x,y\n1,1\n2,2.5\n3,2.75\n4,4\n";
pub(crate) const JSON: &str = "application/json";

/// A child process that serves.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: String,
    folder: tempfile::TempDir,
}

impl Server {
    /// Starts one with these flags, on an empty database, and fits a model.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_lsqd")), flags)
    }

    /// Starts one behind a line of the shell, such as one that sets a limit.
    pub(crate) fn start_after(shell: &str, flags: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{shell}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_lsqd")]);
        Self::start_by(command, flags)
    }

    /// Starts one by a command that ends in the binary.
    pub(crate) fn start_by(mut command: Command, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        command.args(["--listen", "127.0.0.1:0", "--database"]).arg(folder.path().join("lsqd.db")).args(flags);
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let address = first.trim_end().rsplit_once("http://").unwrap().1.to_owned();
        let server = Self { child, address, folder };
        let begun = Instant::now();
        while !server.ask("GET /readyz", "", b"").starts_with("HTTP/1.1 200") {
            assert!(begun.elapsed() < Duration::from_secs(30), "the server did not become ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        server.ask("PUT /v1/datasets/t", "text/csv", TABLE);
        server.fit("line", 201);
        server
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(crate) fn fit(&self, model: &str, status: u16) -> String {
        let reply = self.ask(&format!("POST /v1/models/{model}/fits"), JSON, b"{\"dataset\":\"t\",\"target\":\"y\"}");
        assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{model}: {reply}");
        reply
    }

    /// Sends a request of known length on a connection of its own; the whole reply.
    pub(crate) fn ask(&self, what: &str, media: &str, body: &[u8]) -> String {
        self.ask_with(what, &format!("content-type: {media}\r\ncontent-length: {}", body.len()), body)
    }

    /// The same with headers of one's own.
    pub(crate) fn ask_with(&self, what: &str, headers: &str, body: &[u8]) -> String {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        write!(socket, "{what} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n\r\n").unwrap();
        let mut reading = socket.try_clone().unwrap();
        let reply = std::thread::scope(|scope| {
            // Read while the body is being sent: an answer may begin before that ends, and may be long.
            let reader = scope.spawn(move || {
                let mut reply = Vec::new();
                let _ = reading.read_to_end(&mut reply);
                reply
            });
            // A server that has answered takes no more.
            let _ = socket.write_all(body);
            reader.join().unwrap()
        });
        String::from_utf8_lossy(&reply).into_owned()
    }

    /// A figure of the process, in MiB: `VmHWM:` is the largest resident set so far, `VmRSS:` the present one.
    pub(crate) fn memory(&self, field: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0
    }

    /// Lets `VmHWM` begin anew.
    pub(crate) fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").unwrap();
    }

    /// Files that it has open, connections among them.
    pub(crate) fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Waits until no more than so many files are open; how long that took, if it took less than `patience`.
    pub(crate) fn waits_for_files(&self, most: usize, patience: Duration) -> Option<Duration> {
        let begun = Instant::now();
        while self.files() > most {
            if begun.elapsed() > patience {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(begun.elapsed())
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for its end, for so long.
    pub(crate) fn end(&mut self, patience: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if begun.elapsed() > patience => return None,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test that fails must not leave its server behind; one that ended is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection that is kept, with the requests to predict that are sent on it one after the other.
pub(crate) struct Client {
    socket: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(server: &Server) -> Self {
        let socket = TcpStream::connect(&server.address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let body = "{\"rows\":[{\"x\":2.5}]}";
        let request = format!("POST /v1/models/line/predict HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        Self { socket, request: request.into_bytes(), answer: Vec::new() }
    }

    /// Sends one request; from its first byte to the last of a right answer, by a model that has learnt nothing.
    pub(crate) fn predict(&mut self) -> Duration {
        let (took, text) = self.exchange();
        assert!(text.contains("\"predictions\":[2.5"), "{text}");
        took
    }

    /// Sends one request, whatever the model has learnt.
    #[cfg(debug_assertions)]
    pub(crate) fn predict_somehow(&mut self) {
        self.exchange();
    }

    fn exchange(&mut self) -> (Duration, String) {
        let begun = Instant::now();
        self.socket.write_all(&self.request).unwrap();
        self.answer.clear();
        let mut piece = [0; 4096];
        while !self.answer.ends_with(b"}") {
            let count = self.socket.read(&mut piece).unwrap();
            assert!(count > 0, "closed");
            self.answer.extend_from_slice(&piece[..count]);
        }
        let took = begun.elapsed();
        let text = String::from_utf8_lossy(&self.answer).into_owned();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        (took, text)
    }
}
