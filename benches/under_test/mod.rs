//! What the benchmarks of the server share: the release binary as a child process, settings from the environment, medians.
//! Not a benchmark itself.

#![allow(dead_code)] // each benchmark uses a part of it

use std::error::Error;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

pub(crate) fn setting(name: &str, usual: usize) -> Outcome<usize> {
    Ok(match std::env::var(name) {
        Ok(text) => text.parse::<usize>()?.max(1),
        Err(_) => usual,
    })
}

/// Where the files of a benchmark lie: `LSQD_BENCH_FOLDER`, a folder of the system's otherwise.
pub(crate) fn folder() -> Outcome<tempfile::TempDir> {
    Ok(match std::env::var_os("LSQD_BENCH_FOLDER") {
        Some(path) => tempfile::tempdir_in(path)?,
        None => tempfile::tempdir()?,
    })
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// A server; ended when dropped.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: String,
}

impl Server {
    /// Starts the binary of this build, or that of `LSQD_BENCH_SERVER`, and waits until it is ready.
    pub(crate) fn start(database: &Path, arguments: &[&str]) -> Outcome<Self> {
        let binary = std::env::var_os("LSQD_BENCH_SERVER").unwrap_or_else(|| env!("CARGO_BIN_EXE_lsqd").into());
        let mut command = Command::new(binary);
        command.args(["--listen", "127.0.0.1:0", "--database"]).arg(database).args(arguments);
        Self::launch(command, "/readyz")
    }

    /// Starts a server that says its address at the end of the first line of its output, and waits until it answers at `ready`.
    pub(crate) fn launch(mut command: Command, ready: &str) -> Outcome<Self> {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut first = String::new();
        let read = process.stdout.take().map(|banner| BufReader::new(banner).read_line(&mut first)).transpose();
        let mut server = Self { process, address: String::new() };
        read?;
        let (_, address) = first.trim_end().rsplit_once("http://").ok_or("the server did not say where it listens")?;
        address.clone_into(&mut server.address);
        let begun = Instant::now();
        let ask = format!("GET {ready} HTTP/1.1");
        while server.request(&ask, "200", |_| Ok(())).is_err() {
            if begun.elapsed() > Duration::from_secs(120) {
                return Err("the server did not become ready".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Sends a request, whose body `body` writes, on a connection of its own; the answer must be of that status.
    pub(crate) fn request(&self, head: &str, status: &str, body: impl FnOnce(&mut TcpStream) -> std::io::Result<()>) -> Outcome<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        let mut answers = stream.try_clone()?;
        let answer = std::thread::scope(|scope| -> Outcome<String> {
            // Read while the body is being sent: an answer may begin before the body ends.
            let reader = scope.spawn(move || {
                let mut answer = String::new();
                answers.read_to_string(&mut answer).map(|_| answer)
            });
            write!(stream, "{head}\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address)?;
            body(&mut stream)?;
            Ok(reader.join().map_err(|_| "the reader of the answer panicked")??)
        })?;
        let (first, _) = head.split_once("\r\n").unwrap_or((head, ""));
        if answer.split(' ').nth(1) == Some(status) { Ok(answer) } else { Err(format!("{first}: {answer}").into()) }
    }

    /// A figure of the process, in MiB: `VmHWM` is the largest resident set so far, `VmRSS` the present one.
    pub(crate) fn memory(&self, field: &str) -> Outcome<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).ok_or("the system does not tell the memory of a process")?;
        Ok(line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
    }

    /// Threads whose name begins so.
    pub(crate) fn threads(&self, name: &str) -> Outcome<usize> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id()))?;
        let named = |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task?.path().join("comm"));
        Ok(tasks.map(named).filter(|comm| comm.as_ref().is_ok_and(|comm| comm.starts_with(name))).count())
    }

    /// Whether the work is done by other processes, whose processor time is not told.
    pub(crate) fn has_children(&self) -> Outcome<bool> {
        let process = self.process.id();
        Ok(!std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?.trim().is_empty())
    }

    /// Seconds of processor time so far.
    pub(crate) fn processor_seconds(&self) -> Outcome<f64> {
        processor_seconds(&self.process.id().to_string())
    }
}

/// Seconds of processor time of a process so far, of all threads, in user and system mode; ticks are hundredths on every Linux.
pub(crate) fn processor_seconds(process: &str) -> Outcome<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = status.rsplit_once(')').ok_or("the system does not tell processor time")?;
    let mut ticks = 0.0;
    for field in fields.split_whitespace().skip(11).take(2) {
        ticks += field.parse::<f64>()?;
    }
    Ok(ticks / 100.0)
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its database goes with the folder; there is nothing to be ended in order.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
