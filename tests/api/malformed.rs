//! Tensors that are not what they say, the same ones over HTTP and gRPC: each is refused with a message, and takes no memory for what it
//! claims to be.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::client::Server;
use crate::grpc::{Grpc, asked, field, input, varint};

const TABLE: &str = "a,b,y\n1,2,3.5\n2,1,4\n3,5,9.25\n4,3,8\n5,9,16.5\n";

/// A tensor whose elements stand in binary, and a word of the message that refuses it.
struct Lie {
    shape: Vec<i64>,
    datatype: &'static str,
    bytes: Vec<u8>,
    word: &'static str,
}

/// Tensors that lie, for a model of two numbers.
fn lies() -> Vec<Lie> {
    let lie = |shape: &[i64], datatype, length: usize, word| Lie { shape: shape.to_vec(), datatype, bytes: vec![0; length], word };
    let texts = |bytes: &[u8], word| Lie { shape: vec![1, 2], datatype: "BYTES", bytes: bytes.to_vec(), word };
    vec![
        // Sizes that lie.
        lie(&[2, 2], "FP64", 16, "shape"),
        lie(&[1, 2], "FP64", 32, "shape"),
        lie(&[1, 2], "FP64", 15, "shape"),
        lie(&[1, 2], "FP64", 0, "shape"),
        lie(&[1, 2], "FP16", 3, "shape"),
        lie(&[1, 2], "BOOL", 16, "shape"),
        lie(&[1 << 24, 2], "FP64", 16, "shape"),
        lie(&[1 << 40, 2], "FP64", 16, "shape"),
        lie(&[1 << 40, 2], "BYTES", 16, "shape"),
        lie(&[1 << 40, 0], "FP64", 0, "shape"),
        lie(&[0, 1 << 40], "FP64", 0, "shape"),
        // Shapes that overflow.
        lie(&[1 << 62, 2], "FP64", 16, "shape"),
        lie(&[i64::MAX, 2], "FP64", 16, "shape"),
        lie(&[i64::MAX, i64::MAX], "UINT8", 16, "shape"),
        lie(&[1 << 32, 1 << 32], "FP64", 0, "shape"),
        lie(&[1 << 32, 1 << 32, 2], "BYTES", 0, "shape"),
        // Shapes that are none of a table.
        lie(&[-1, 2], "FP64", 16, "negative"),
        lie(&[i64::MIN, i64::MIN], "FP64", 16, "negative"),
        lie(&[], "FP64", 8, "shape"),
        lie(&[1, 1, 2], "FP64", 16, "shape"),
        lie(&[1, 3], "FP64", 24, "shape"),
        lie(&[2; 40], "FP64", 16, "shape"),
        // Datatypes that are none, or are others.
        lie(&[1, 2], "FP128", 16, "datatype"),
        lie(&[1, 2], "", 16, "datatype"),
        lie(&[1, 2], "fp64", 16, "datatype"),
        // Texts whose lengths lie or are cut.
        texts(&[0xff; 8], "bytes"),
        texts(&[0, 0, 0], "end within"),
        texts(&[1, 0, 0, 0, b'x', 9, 0, 0, 0, b'y'], "bytes"),
        texts(&[0; 12], "shape"),
    ]
}

/// The tensor as HTTP has it: the body, and how many bytes of it are JSON.
fn over_http(lie: &Lie, size: &Value) -> (Vec<u8>, usize) {
    let tensor = json!({"name": "input", "shape": lie.shape, "datatype": lie.datatype, "parameters": {"binary_data_size": size}});
    let head = json!({"inputs": [tensor]}).to_string().into_bytes();
    let length = head.len();
    ([head, lie.bytes.clone()].concat(), length)
}

fn over_grpc(lie: &Lie) -> Vec<u8> {
    asked("plane", &[input("input", lie.datatype, &lie.shape, &[]), field(7, &lie.bytes)])
}

/// Messages that only gRPC can be sent, and a word of the message that refuses each.
fn bent_messages() -> Vec<(Vec<u8>, &'static str)> {
    let one = || input("input", "FP64", &[1, 2], &[]);
    let listed = |datatype, contents: &[u8]| asked("plane", &[input("input", datatype, &[1, 2], contents)]);
    let plane = |bytes: &[u8]| [field(1, b"plane"), bytes.to_vec()].concat();
    let huge = |number: u64, length: u64| plane(&[varint(number << 3 | 2), varint(length), vec![0; 16]].concat());
    let deep = (0..2000).fold(Vec::new(), |inside: Vec<u8>, _| field(2, &inside));
    vec![
        (asked("plane", &[one(), field(7, &[0; 16]), field(7, &[0; 16])]), "raw_input_contents"),
        (asked("plane", &[one(), one(), field(7, &[0; 16])]), "raw_input_contents"),
        (asked("plane", &[field(7, &[0; 16])]), "raw_input_contents"),
        (asked("plane", &[input("input", "FP64", &[1, 2], &field(7, &[0; 16])), field(7, &[0; 16])]), "not in both"),
        (listed("FP64", &field(6, &[0; 16])), "fp64_contents"),
        (listed("FP32", &field(7, &[0; 16])), "fp32_contents"),
        (listed("FP16", &field(2, &[0; 2])), "raw_input_contents"),
        (listed("FP64", &field(7, &[0; 8])), "shape"),
        (listed("INT64", &field(3, &[0x80; 2])), "shape"),
        (listed("INT64", &field(3, &[[0xff; 12].to_vec(), vec![0, 0]].concat())), "Protocol Buffers"),
        (asked("plane", &[input("input", "INT64", &[1 << 40, 2], &field(3, &[0, 0]))]), "shape"),
        (asked("plane", &[input("input", "INT64", &[i64::MAX, 4], &field(3, &[0, 0]))]), "shape"),
        (asked("plane", &[]), "input"),
        (huge(7, 1 << 40), "Protocol Buffers"),
        (huge(5, u64::MAX), "Protocol Buffers"),
        (huge(1 << 40, 4), "Protocol Buffers"),
        (plane(&[7 << 3 | 2]), "Protocol Buffers"),
        (plane(&[5 << 3 | 3, 5 << 3 | 4]), "Protocol Buffers"),
        (plane(&[0, 1]), "Protocol Buffers"),
        (plane(&[0x80; 30]), "Protocol Buffers"),
        (plane(&[5 << 3, 1]), "Protocol Buffers"),
        (plane(&field(5, &field(1, b"\xff\xfe"))), "Protocol Buffers"),
        (field(1, b"\xff"), "Protocol Buffers"),
        (plane(&field(5, &[]).repeat(70_000)), "fields"),
        (plane(&field(4, &[]).repeat(70_000)), "fields"),
        (plane(&field(5, &field(3, &[1; 1 << 20]))), "extents"),
        (plane(&field(4, &field(2, &deep))), "Protocol Buffers"),
        (plane(&field(99, &deep)), "input"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_that_lie_are_refused_with_a_message_by_both_transports() {
    let server = Server::start().await;
    server.table("p", TABLE).await;
    server.fit("plane", json!({"dataset": "p", "target": "y"})).await;
    let grpc = Grpc::connect(server.grpc).await;
    for lie in lies() {
        let what = format!("{:?} {} {:?}", lie.shape, lie.datatype, &lie.bytes[..lie.bytes.len().min(20)]);
        let (body, head) = over_http(&lie, &json!(lie.bytes.len()));
        let request = server.post("/v2/models/plane/infer").header("inference-header-content-length", head.to_string());
        let reply = request.body(body).send().await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_syntax"), "{what}: {}", reply.text());
        let said = reply.json()["error"].as_str().unwrap().to_owned();
        assert!(said.contains(lie.word), "{what}: {said}");
        let refused = grpc.infer(&over_grpc(&lie)).await;
        assert_eq!((refused.status, refused.code.as_str()), (3, "bad_syntax"), "{what}: {refused:?}");
        // But for what is refused before it is a tensor, the words are the same.
        assert!(refused.detail.contains(lie.word), "{what}: {refused:?}");
    }
    for size in [json!(1_u64 << 40), json!(u64::MAX), json!(-16), json!(17), json!(15), json!(1.5), json!("16"), json!(null)] {
        let lie = Lie { shape: vec![1, 2], datatype: "FP64", bytes: vec![0; 16], word: "" };
        let (body, head) = over_http(&lie, &size);
        let request = server.post("/v2/models/plane/infer").header("inference-header-content-length", head.to_string());
        let refused = request.body(body).refused(400, "bad_syntax").await;
        assert!(!refused.json()["error"].as_str().unwrap().is_empty(), "{size}");
    }
    for (place, (message, word)) in bent_messages().into_iter().enumerate() {
        let refused = grpc.infer(&message).await;
        assert_eq!((refused.status, refused.code.as_str()), (3, "bad_syntax"), "message {place}: {refused:?}");
        assert!(refused.detail.contains(word), "message {place}: {refused:?}");
    }
    assert_eq!(grpc.infer(&over_grpc(&Lie { shape: vec![1, 2], datatype: "FP64", bytes: vec![0; 16], word: "" })).await.status, 0);
}

/// The program by itself, so that its memory is its own.
#[cfg(target_os = "linux")]
struct Program {
    child: std::process::Child,
    http: SocketAddr,
    grpc: SocketAddr,
}

#[cfg(target_os = "linux")]
impl Program {
    async fn start(database: &std::path::Path) -> Self {
        use std::io::BufRead as _;
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lsqd"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LSQD_")) {
            command.env_remove(name);
        }
        command.args(["--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--log-level", "off", "--database"]).arg(database);
        command.current_dir(database.parent().unwrap()).stdout(std::process::Stdio::piped()).stdin(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address = || lines.next().unwrap().unwrap().rsplit([' ', '/']).next().unwrap().parse().unwrap();
        let (http, grpc) = (address(), address());
        let program = Self { child, http, grpc };
        for _ in 0..2000 {
            if reqwest::get(format!("http://{http}/readyz")).await.is_ok_and(|reply| reply.status() == 200) {
                return program;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("the server did not become ready");
    }

    /// The most memory that it ever held, in bytes.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> u16 {
        let mut request = reqwest::Client::new().post(format!("http://{}{path}", self.http));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body).send().await.unwrap().status().as_u16()
    }
}

#[cfg(target_os = "linux")]
impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Among the lies are claims of 2⁴⁰ elements and of more than there are addresses; a server that made room for the least of the large claims
/// would hold 256 MiB.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn tensors_that_lie_take_no_memory() {
    const ROOM: u64 = 16 << 20;
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(&directory.path().join("lsqd.db")).await;
    let put = reqwest::Client::new().put(format!("http://{}/v1/datasets/p", program.http)).header("content-type", "text/csv").body(TABLE);
    assert!(put.send().await.unwrap().status().is_success());
    let fit = json!({"dataset": "p", "target": "y"}).to_string().into_bytes();
    assert_eq!(program.post("/v1/models/plane/fits", &[("prefer", "wait=60")], fit).await, 201);
    let grpc = Grpc::connect(program.grpc).await;
    let all = async || {
        for lie in lies() {
            let (body, head) = over_http(&lie, &json!(lie.bytes.len()));
            let length = head.to_string();
            let status = program.post("/v2/models/plane/infer", &[("inference-header-content-length", &length)], body).await;
            assert_eq!(status, 400, "{:?}", lie.shape);
            assert_eq!(grpc.infer(&over_grpc(&lie)).await.status, 3, "{:?}", lie.shape);
        }
        for (message, _) in bent_messages() {
            assert_eq!(grpc.infer(&message).await.status, 3);
        }
    };
    // What honest requests of the size of the longest of these take is there before.
    let rows = 1 << 16;
    let honest = Lie { shape: vec![rows, 2], datatype: "FP64", bytes: vec![0; rows as usize * 16], word: "" };
    assert_eq!(grpc.infer(&over_grpc(&honest)).await.status, 0);
    let (body, head) = over_http(&honest, &json!(honest.bytes.len()));
    assert_eq!(program.post("/v2/models/plane/infer", &[("inference-header-content-length", &head.to_string())], body).await, 200);
    let before = program.peak();
    for _ in 0..5 {
        all().await;
    }
    let grown = program.peak() - before;
    assert!(grown < ROOM, "it grew by {grown} bytes");
}
