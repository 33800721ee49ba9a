//! Requests that two readers could take for different ones: whatever hides behind the first is never carried out, and nobody waits for bytes
//! that were promised and do not come.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::server::{Client, Server};

/// What an attacker hides behind a request that somebody in front of the server takes for longer or shorter than the server does.
const HIDDEN: &str = "DELETE /v1/models/line HTTP/1.1\r\nhost: x\r\n\r\n";
const BODY: &str = "{\"rows\":[{\"x\":2.5}]}";

/// Sends bytes and reads until the server closes the connection; what it said, and whether it closed within some seconds.
fn exchange(server: &Server, bytes: &[u8]) -> (String, bool) {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    let _ = stream.write_all(bytes);
    let mut said = Vec::new();
    let closed = match stream.read_to_end(&mut said) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    (String::from_utf8_lossy(&said).into_owned(), closed)
}

fn answers(said: &str) -> usize {
    said.matches("HTTP/1.1 ").count()
}

#[test]
fn what_hides_behind_an_ambiguous_request_is_never_carried_out() {
    let server = Server::start(&["--header-timeout", "1s", "--body-timeout", "1s"]);
    let (length, hidden) = (BODY.len(), HIDDEN.len());
    let chunked = format!("{length:x}\r\n{BODY}\r\n0\r\n\r\n");
    for (what, headers, body) in [
        ("a length, and chunks", format!("content-length: {}\r\ntransfer-encoding: chunked", chunked.len() + hidden), chunked.clone()),
        ("chunks, and a length", format!("transfer-encoding: chunked\r\ncontent-length: {}", chunked.len() + hidden), chunked.clone()),
        ("a length of nothing, and chunks", "content-length: 0\r\ntransfer-encoding: chunked".to_owned(), chunked.clone()),
        ("two lengths", format!("content-length: {length}\r\ncontent-length: {}", length + hidden), BODY.to_owned()),
        ("two lengths in one line", format!("content-length: {length}, {}", length + hidden), BODY.to_owned()),
        ("a length with a sign", format!("content-length: +{length}"), BODY.to_owned()),
        ("a length in hexadecimal", format!("content-length: {length:#x}"), BODY.to_owned()),
        ("a length with a space in it", "content-length: 2 0".to_owned(), BODY.to_owned()),
        ("a length past all numbers", "content-length: 18446744073709551637".to_owned(), BODY.to_owned()),
        ("a name before a space", format!("content-length : {length}"), BODY.to_owned()),
        ("a folded line", format!("x: y\r\n content-length: {length}"), BODY.to_owned()),
        ("a folded encoding", "transfer-encoding:\r\n chunked".to_owned(), chunked.clone()),
        ("a line that ends in LF, with another length", format!("content-length: 0\r\nx: y\ncontent-length: {length}"), BODY.to_owned()),
        ("a line that ends in LF, with chunks", format!("content-length: {length}\r\nx: y\ntransfer-encoding: chunked"), chunked.clone()),
        ("a CR within a line", format!("x: y\rcontent-length: {length}"), BODY.to_owned()),
        ("a zero within a line", format!("x: y\0z\r\ncontent-length: {length}"), BODY.to_owned()),
        ("chunks that are something else at last", "transfer-encoding: chunked, identity".to_owned(), chunked.clone()),
        ("chunks by another name", "transfer-encoding: xchunked".to_owned(), chunked.clone()),
        ("chunks behind a control character", "transfer-encoding: \x0bchunked".to_owned(), chunked.clone()),
        ("a chunk of negative length", "transfer-encoding: chunked".to_owned(), "-5\r\n{}\r\n".to_owned()),
        ("a chunk of no length", "transfer-encoding: chunked".to_owned(), "\r\n{}\r\n".to_owned()),
        ("a chunk with a prefix", "transfer-encoding: chunked".to_owned(), format!("0x{length:x}\r\n{BODY}\r\n0\r\n\r\n")),
        ("a chunk past all numbers", "transfer-encoding: chunked".to_owned(), format!("ffffffffffffffff5\r\n{BODY}\r\n0\r\n\r\n")),
        ("a chunk without its end", "transfer-encoding: chunked".to_owned(), format!("{:x}\r\n{BODY}0\r\n\r\n", length - 2)),
        ("an extension that ends in LF", "transfer-encoding: chunked".to_owned(), format!("{length:x};a=b\n{BODY}\r\n0\r\n\r\n")),
        (
            "an extension without an end",
            "transfer-encoding: chunked".to_owned(),
            format!("{length:x};{}\r\n{BODY}\r\n0\r\n\r\n", "a".repeat(100_000)),
        ),
    ] {
        let request = format!("POST /v1/models/line/predict HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n{body}{HIDDEN}");
        let (said, closed) = exchange(&server, request.as_bytes());
        assert!(closed, "{what}: the connection is still open after {said}");
        assert!(answers(&said) <= 1, "{what}: {said}");
        assert!(!said.contains("HTTP/1.1 204") && !said.contains("HTTP/1.1 5"), "{what}: {said}");
        assert!(server.ask("GET /v1/models/line", "", b"").starts_with("HTTP/1.1 200"), "{what}: the model is gone");
    }
    // Where nothing is ambiguous, extensions and trailers of chunks are passed over, and what follows is a request of its own.
    for chunks in [chunked.clone(), format!("{length:x};a=\"b\"\r\n{BODY}\r\n0;c\r\nx: y\r\n\r\n"), format!("000{chunked}")] {
        let next = "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let request = format!("POST /v1/models/line/predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{next}");
        let (said, _) = exchange(&server, request.as_bytes());
        assert!(answers(&said) == 2 && said.matches("HTTP/1.1 200").count() == 2, "{chunks}: {said}");
    }
}

#[test]
fn lengths_that_are_lies_and_chunks_without_an_end_are_ended() {
    let server = Server::start(&["--body-timeout", "1s", "--body-limit", "128KiB", "--upload-limit", "256KiB"]);
    let before = server.memory("VmHWM:");
    // More is promised than comes: it is waited for, and not for long. Memory for it is not taken.
    for (what, length) in
        [("POST /v1/models/line/predict", 60_000), ("POST /v1/models/line/updates", 128 << 10), ("PUT /v1/datasets/u", 256 << 10)]
    {
        let begun = Instant::now();
        let request =
            format!("{what} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{{\"rows\":[");
        let (said, closed) = exchange(&server, request.as_bytes());
        assert!(said.starts_with("HTTP/1.1 408") && closed, "{what}: {said}");
        assert!(begun.elapsed() < Duration::from_secs(4), "{what}: {:?}", begun.elapsed());
    }
    // More is promised than is allowed.
    for what in ["POST /v1/models/line/predict", "POST /v1/models/line/updates", "POST /v1/models/line/fits", "PUT /v1/datasets/u"] {
        let length = u64::MAX / 4;
        let request =
            format!("{what} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{{\"rows\":[");
        let (said, closed) = exchange(&server, request.as_bytes());
        assert!(said.starts_with("HTTP/1.1 413") && closed, "{what}: {said}");
    }
    // Chunks without an end: large ones, and ones of a byte, which are dear to read: they come one by one.
    for (what, media) in [
        ("POST /v1/models/line/predict", "application/json"),
        ("POST /v1/models/line/updates", "application/json"),
        ("PUT /v1/datasets/u", "text/csv"),
    ] {
        for chunk in [format!("10000\r\n{}\r\n", " 1,2 \n".repeat(20_000).split_at(0x10000).0), "1\r\n \r\n".repeat(10_000)] {
            let mut stream = TcpStream::connect(&server.address).unwrap();
            let head = format!("{what} HTTP/1.1\r\nhost: x\r\ncontent-type: {media}\r\ntransfer-encoding: chunked\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            let mut reading = stream.try_clone().unwrap();
            let reader = std::thread::spawn(move || {
                let mut said = Vec::new();
                let _ = reading.read_to_end(&mut said);
                String::from_utf8_lossy(&said).into_owned()
            });
            // Who was answered is listened to for two seconds more, to get to read that.
            let begun = Instant::now();
            while stream.write_all(chunk.as_bytes()).is_ok() {
                assert!(begun.elapsed() < Duration::from_secs(20), "{what}: it is still being read");
                std::thread::sleep(Duration::from_millis(1));
            }
            let said = reader.join().unwrap();
            assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{what}: {said}");
        }
    }
    // Not a connection from before, which has said nothing for too long by now.
    Client::connect(&server).predict();
    let grown = server.memory("VmHWM:") - before;
    assert!(grown < 64.0, "it took {grown} MiB more");
}
