//! What is fuzzed, and what must hold of any bytes: not only that nothing panics, but that what is read in pieces is what is read at once, that
//! what is decoded encodes to the same again, and that what is learnt row by row is what a batch fit of the rows says.
//!
//! One function a target; `fuzz/fuzz_targets` hands them to libFuzzer, `tests/fuzz.rs` to a loop that `cargo test` runs.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Mutex, OnceLock};

use faer::Mat;
use lsqd::frame::arrow_stream::{ArrowPieces, parse_arrow};
use lsqd::frame::rows::{ParseError, Rows, RowsOptions, parse_csv, parse_csv_batch, parse_document, parse_ndjson, parse_ndjson_batch};
use lsqd::frame::tensor::{Datatype, Elements, Tensor, parse_tensors};
use lsqd::frame::{
    Batches, Format, Frame, Full, Input, InputKind, InputSchema, Lines, ReadError, ReadOptions, Reader, Summary, Unseen, codec as stored,
};
use lsqd::lsq::{Gathered, Information, Matrices, Specification, fit};
use lsqd::model::key::{Pattern, Scopes, Token};
use lsqd::model::{State, name};

/// A target by its name.
pub(crate) type Target = fn(&[u8]);

/// All of them.
pub(crate) const TARGETS: [(&str, Target); 10] = [
    ("table", table),
    ("rows", rows),
    ("arrow", arrow),
    ("tensors", tensors),
    ("codec", codec),
    ("state", state),
    ("updates", updates),
    ("names", names),
    ("keys", keys),
    ("bodies", bodies),
];

/// The body, cut into pieces whose lengths its own bytes give.
fn pieces(body: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut found, mut seed) = (body, Vec::new(), body.len());
    while !rest.is_empty() {
        seed = seed.wrapping_mul(31).wrapping_add(usize::from(rest[rest.len() / 2]));
        let (piece, tail) = rest.split_at((seed % 37 + 1).min(rest.len()));
        found.push(piece);
        rest = tail;
    }
    found
}

/// A table, CSV, NDJSON or JSON by the first byte, read at once and in pieces, with heads of different lengths.
pub(crate) fn table(data: &[u8]) {
    let Some((&choice, body)) = data.split_first() else { return };
    let format = [Format::Csv, Format::Ndjson, Format::Json, Format::sniff(body)][usize::from(choice) % 4];
    let options = ReadOptions { head_rows: usize::from(choice / 4 % 8) + 1, frame_rows: 3, ..ReadOptions::default() };
    let read = |pieces: &[&[u8]]| -> Result<(Vec<Frame>, Summary), ReadError> {
        let mut frames = Vec::new();
        let mut emit = |frame: Frame| {
            frames.push(frame);
            Ok(())
        };
        let mut reader = Reader::new(format, options.clone());
        for piece in pieces {
            reader.push(piece, &mut emit)?;
        }
        let summary = reader.finish(&mut emit)?;
        Ok((frames, summary))
    };
    let (whole, parts) = (read(&[body]), read(&pieces(body)));
    match (&whole, &parts) {
        (Ok((frames, summary)), Ok((other, same))) => {
            assert_eq!(summary, same, "what is known of a table depends on how it arrives");
            let columns = |frames: &[Frame]| frames.iter().map(|frame| frame.columns.clone()).collect::<Vec<_>>();
            assert_eq!(columns(frames), columns(other), "a table depends on how it arrives");
            assert_eq!(frames.iter().map(|frame| frame.rows as u64).sum::<u64>(), summary.rows);
            for column in frames.iter().flat_map(|frame| &frame.columns) {
                assert_eq!(&stored::decode(&stored::encode(column)).unwrap(), column, "a column is not what was stored");
            }
        }
        (Err(one), Err(other)) => assert_eq!(one, other, "an error depends on how a table arrives"),
        (one, other) => panic!("at once: {:?}, in pieces: {:?}", one.as_ref().err(), other.as_ref().err()),
    }
}

/// Numbers, a category of either kind, and one that may be missing.
fn schema() -> InputSchema {
    let levels = |names: &[&str]| names.iter().zip(0..).map(|(name, place)| ((*name).to_owned(), place)).collect::<HashMap<_, _>>();
    let input = |name: &str, kind, required| Input { name: name.to_owned(), kind, required };
    InputSchema::new(vec![
        input("a", InputKind::Number, true),
        input("b", InputKind::Integer, true),
        input("c", InputKind::Boolean, true),
        input("d", InputKind::Category { levels: levels(&["x", "y", "\u{e9}"]), unseen: Unseen::Error }, true),
        input("e", InputKind::Category { levels: levels(&["1", "2"]), unseen: Unseen::Baseline }, false),
        input("f", InputKind::Number, false),
    ])
}

/// What must be so of rows that were taken, or were not.
fn sound(rows: &Rows, schema: &InputSchema, taken: bool) {
    if !taken {
        assert!(rows.values.is_empty() && rows.count == 0, "rows are left of a request that was refused");
        return;
    }
    assert_eq!(rows.values.len(), rows.count * schema.len());
    assert!(rows.ids.is_empty() || rows.ids.len() == rows.count);
    for cells in rows.values.chunks(schema.len()) {
        for (cell, input) in cells.iter().zip(schema.inputs()) {
            assert!(cell.is_finite() || cell.is_nan() && !input.required, "{} is {cell}", input.name);
        }
    }
}

fn same_bits(one: &Rows, other: &Rows) -> bool {
    one.count == other.count && one.values.iter().map(|cell| cell.to_bits()).eq(other.values.iter().map(|cell| cell.to_bits()))
}

/// Rows of a request, as a document, lines or CSV by the first byte; lines also in batches, cut as a stream cuts them.
pub(crate) fn rows(data: &[u8]) {
    let Some((&choice, body)) = data.split_first() else { return };
    let schema = schema();
    let options = RowsOptions { allow_id: choice / 4 % 2 == 0, max_rows: 50 };
    let mut rows = Rows::default();
    match choice % 4 {
        0 | 3 => {
            let taken = parse_document(body, &schema, &options, &mut rows).is_ok();
            sound(&rows, &schema, taken);
        }
        1 => {
            let taken = parse_ndjson(body, 1, &schema, &options, &mut rows);
            sound(&rows, &schema, taken.is_ok());
            in_batches(body, Lines::Plain, &schema, &options, &rows, &taken);
        }
        _ => {
            let taken = parse_csv(body, &schema, &options, &mut rows);
            sound(&rows, &schema, taken.is_ok());
            in_batches(body, Lines::Records, &schema, &options, &rows, &taken);
        }
    }
}

/// The same in batches: as many rows with the same bits, or a fault in some batch where there is one in the whole.
fn in_batches(body: &[u8], lines: Lines, schema: &InputSchema, options: &RowsOptions, whole: &Rows, taken: &Result<(), ParseError>) {
    let mut batches = Batches::new(lines, Full { lines: 2, bytes: 64 });
    let (mut all, mut header, mut failed) = (Rows::default(), None::<(bytes::Bytes, u64)>, false);
    let mut take = |batches: &mut Batches| {
        while let Ok(Some(batch)) = batches.take() {
            let mut rows = Rows::default();
            let result = if lines == Lines::Plain {
                parse_ndjson_batch(&batch.text, batch.first_line, schema, options, &mut rows)
            } else if let Some((head, line)) = &header {
                parse_csv_batch((head, *line), (&batch.text, batch.first_line), schema, options, &mut rows)
            } else {
                if !batch.text.trim_ascii().is_empty() {
                    header = Some((batch.text.clone(), batch.first_line));
                }
                continue;
            };
            sound(&rows, schema, result.is_ok());
            failed |= result.is_err();
            all.count += rows.count;
            all.values.extend(rows.values);
        }
    };
    batches.set_single(lines == Lines::Records);
    for piece in pieces(body) {
        batches.push(piece);
        take(&mut batches);
    }
    batches.end();
    take(&mut batches);
    if taken.is_ok() && !failed && whole.count < options.max_rows {
        assert!(same_bits(&all, whole), "{} rows in batches, {} at once", all.count, whole.count);
    }
    assert!(!(taken.is_ok() && failed), "taken at once, and refused in batches");
}

/// An Arrow stream, read at once and in pieces.
pub(crate) fn arrow(data: &[u8]) {
    let schema = schema();
    let options = RowsOptions { allow_id: false, max_rows: 10_000 };
    let mut whole = Rows::default();
    let taken = parse_arrow(data, &schema, &options, &mut whole);
    sound(&whole, &schema, taken.is_ok());
    let mut stream = ArrowPieces::new(1 << 20);
    let (mut all, mut failed) = (Rows::default(), false);
    let mut take = |stream: &mut ArrowPieces| -> bool {
        loop {
            match stream.take(&schema) {
                Ok(Some(batch)) => {
                    let mut rows = Rows::default();
                    let result = batch.parse(&schema, &mut rows);
                    sound(&rows, &schema, result.is_ok());
                    failed |= result.is_err();
                    all.count += rows.count;
                    all.values.extend(rows.values);
                }
                Ok(None) => return true,
                Err(_) => {
                    failed = true;
                    return false;
                }
            }
        }
    };
    let mut going = true;
    for piece in pieces(data) {
        stream.push(bytes::Bytes::copy_from_slice(piece));
        going = take(&mut stream);
        if !going {
            break;
        }
    }
    if going {
        stream.end();
        take(&mut stream);
    }
    if taken.is_ok() && !failed {
        assert!(same_bits(&all, &whole), "{} rows in pieces, {} at once", all.count, whole.count);
    }
}

/// Tensors whose names, types, shapes and bytes are the input's; of a first byte each, then as many bytes of elements as it says.
pub(crate) fn tensors(data: &[u8]) {
    const TYPES: [&str; 14] =
        ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES", "BF16"];
    let schema = schema();
    let mut rest = data;
    let mut given = Vec::new();
    while let [kind, rank, extent @ ..] = rest
        && given.len() < 8
    {
        let Some((length, tail)) = extent.split_first_chunk::<4>() else { break };
        let extents = [u64::from(length[0]), u64::from(length[1]), 1, u64::MAX - u64::from(length[0])];
        let shape = (0..usize::from(rank % 4)).map(|place| extents[(usize::from(rank / 4) + place) % 4]).collect();
        let (elements, tail) = tail.split_at(usize::from(u16::from_le_bytes([length[2], length[3]])).min(tail.len()));
        let name = ["a", "b", "c", "d", "e", "f", "input", "g"][usize::from(kind / 16) % 8];
        let datatype = Datatype::parse(TYPES[usize::from(kind % 16).min(13)]).unwrap();
        given.push(Tensor { name: name.to_owned(), shape, datatype, elements: Elements::Binary(elements) });
        rest = tail;
    }
    let mut rows = Rows::default();
    let taken = parse_tensors(&given, &schema, 1_000, &mut rows).is_ok();
    sound(&rows, &schema, taken);
}

/// A stored column.
pub(crate) fn codec(data: &[u8]) {
    if let Ok(column) = stored::decode(data) {
        assert_eq!(stored::decode(&stored::encode(&column)).unwrap().len(), column.len());
    }
}

/// The stored state of a model. What decodes answers, and encodes to what decodes to the same.
pub(crate) fn state(data: &[u8]) {
    let Ok(state) = State::decode(data) else { return };
    let bytes = state.encode();
    assert!(State::decode(&bytes).unwrap().encode() == bytes, "a state is not what was stored");
    let information = state.information();
    let mut predicted = vec![0.0; information.responses()];
    information.predict(vec![0.5; information.predictors()].as_slice(), &mut predicted);
    assert!(!information.leverage(vec![0.5; information.predictors()].as_slice(), &mut Gathered::default()).is_nan());
}

/// A row of the sequence of updates: two values, a response and a weight, of small whole and binary numbers.
#[derive(Clone, Copy)]
struct Learnt {
    x: [f64; 2],
    y: f64,
    weight: f64,
}

/// Rows learnt, taken back, and stored in between, beside a batch fit of the rows that are left.
pub(crate) fn updates(data: &[u8]) {
    let number = |byte: u8| f64::from(i16::from(byte) - 128) / 8.0;
    let row = |bytes: &[u8]| Learnt {
        x: [number(bytes[0]), number(bytes[1])],
        y: number(bytes[2]),
        weight: [1.0, 0.25, 4.0, 0.5][usize::from(bytes[3]) % 4],
    };
    let mut operations = data.chunks_exact(4);
    let mut known: Vec<Learnt> = operations.by_ref().take(5).map(row).collect();
    if known.len() < 5 {
        return;
    }
    let batch = |rows: &[Learnt]| {
        let design = Mat::from_fn(rows.len(), 2, |place, column| rows[place].x[column]);
        let response = Mat::from_fn(rows.len(), 1, |place, _| rows[place].y);
        let weights: Vec<f64> = rows.iter().map(|row| row.weight).collect();
        fit(&mut Matrices { design: design.as_ref(), response: response.as_ref(), weights: Some(&weights) }, &Specification::default())
    };
    let mut information = batch(&known).unwrap().information;
    for operation in operations.take(200) {
        match operation[3] / 4 {
            // The oldest row is taken back, as a window does, unless that loses more digits than are asked for.
            0..=7 if known.len() > 5 => {
                let gone = known[0];
                let before = information.clone();
                let taken = information.downdate(gone.x.as_slice(), &[gone.y], gone.weight, 1.0);
                if taken.is_err() || information.removal_loss() > 1e-9 {
                    information = before;
                } else {
                    known.remove(0);
                }
            }
            8 => information = Information::decode(&information.encode()).unwrap(),
            _ => {
                let new = row(operation);
                let mut innovation = [0.0];
                information.update(new.x.as_slice(), &[new.y], new.weight, 1.0, &mut innovation).unwrap();
                assert!(innovation[0].is_finite());
                known.push(new);
            }
        }
    }
    let whole = batch(&known).unwrap();
    // Where the rows leave a direction open, or nearly so, there is nothing to agree on.
    if whole.rank < 3 || whole.condition_number > 1e5 {
        return;
    }
    let size = known.iter().map(|row| row.y.abs()).fold(1.0, f64::max);
    for row in &known {
        let (mut own, mut other) = ([0.0], [0.0]);
        information.predict(row.x.as_slice(), &mut own);
        whole.information.predict(row.x.as_slice(), &mut other);
        assert!((own[0] - other[0]).abs() <= 1e-7 * size, "learnt row by row {}, at once {}", own[0], other[0]);
    }
    let (own, other) = (information.residual_variance()[0], whole.information.residual_variance()[0]);
    assert!((own - other).abs() <= 1e-7 * (other + size * size), "variance learnt row by row {own}, at once {other}");
}

/// Names of datasets and models: what is taken is taken again as it was made, and goes into a path.
pub(crate) fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for take in [name::dataset, name::model, name::alias] {
        let Ok(taken) = take(text) else { continue };
        assert_eq!(take(&taken).as_ref(), Ok(&taken), "{text:?} is taken as a name that is none");
        assert!(!["", ".", ".."].contains(&taken.as_str()), "{taken:?}");
        assert!(!taken.contains(|character: char| character == '/' || character.is_control()), "{taken:?}");
    }
}

/// Keys as they come in a header, scopes and patterns as they come in a request, and a pattern against a name.
pub(crate) fn keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(token) = Token::parse(text) {
        assert_eq!(token.reveal(), text, "a key is taken for another");
        assert!(!format!("{token:?}").contains(text.rsplit('.').next().unwrap()), "a secret is shown");
    }
    if let Ok(scopes) = Scopes::parse(text) {
        let again: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
        assert_eq!(Scopes::parse(&again.join(",")), Ok(scopes), "scopes are not what they say");
    }
    let (pattern, name) = text.split_once('\n').unwrap_or((text, text));
    if let Ok(taken) = Pattern::new(pattern) {
        assert_eq!(taken.matches(name), matches_slowly(taken.as_str(), name), "{pattern:?} and {name:?}");
    }
}

/// Whether a pattern, in which `*` stands for any text and `?` for one character, matches a name: by trying all there is.
fn matches_slowly(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    // Whether what was read of the pattern matches the first so many characters of the name.
    let mut ends = vec![false; name.len() + 1];
    ends[0] = true;
    for wanted in pattern.chars() {
        let before = ends.clone();
        for end in 0..=name.len() {
            ends[end] = match wanted {
                '*' => before[..=end].contains(&true),
                '?' => end > 0 && before[end - 1],
                _ => end > 0 && before[end - 1] && name[end - 1] == wanted,
            };
        }
    }
    ends[name.len()]
}

/// A server of this process, and a connection to it.
struct Asked {
    address: std::net::SocketAddr,
    open: Mutex<Option<TcpStream>>,
}

impl Asked {
    /// One that has a table of numbers and categories and a model of it; it ends with the process.
    fn start() -> Self {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let config = lsqd::config::Config::with_database(&folder.path().join("lsqd.db")).unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                lsqd::run(config, listener, std::future::pending()).await.unwrap();
            });
        });
        let asked = Self { address: receiver.recv().unwrap(), open: Mutex::default() };
        let mut table = "x,region,y\n".to_owned();
        for row in 0..24 {
            table += &format!("{},{},{}\n", row % 7, ["north", "south", "east"][row % 3], row * row % 11);
        }
        while asked.ask("GET /readyz", "", b"").0 != 200 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(asked.ask("PUT /v1/datasets/t", "content-type: text/csv\r\n", table.as_bytes()).0, 201);
        let fit = br#"{"dataset":"t","target":"y","features":["x",{"column":"region","as":"onehot"}]}"#;
        assert_eq!(asked.ask("POST /v1/models/m/fits", JSON, fit).0, 201);
        asked
    }

    /// Status, head and body of the answer.
    fn ask(&self, what: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut open = self.open.lock().unwrap();
        let stream = open.get_or_insert_with(|| {
            let stream = TcpStream::connect(self.address).unwrap();
            stream.set_nodelay(true).unwrap();
            stream
        });
        let mut request = format!("{what} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {}\r\n\r\n", body.len()).into_bytes();
        request.extend_from_slice(body);
        stream.write_all(&request).unwrap();
        let (mut answer, mut piece) = (Vec::new(), [0; 16384]);
        loop {
            let count = stream.read(&mut piece).unwrap();
            assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..count]);
            let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let text = String::from_utf8(answer[..head].to_vec()).unwrap().to_ascii_lowercase();
            let length =
                text.lines().find_map(|line| line.strip_prefix("content-length:")).map_or(0, |length| length.trim().parse().unwrap());
            let chunked = text.contains("transfer-encoding: chunked");
            if if chunked { answer.ends_with(b"0\r\n\r\n") } else { answer.len() >= head + 4 + length } {
                let status = text.split(' ').nth(1).unwrap().parse().unwrap();
                if text.contains("connection: close") {
                    *open = None;
                }
                return (status, text, answer[head + 4..].to_vec());
            }
        }
    }
}

const JSON: &str = "content-type: application/json\r\n";

/// The body of a request of the kind that the first byte says, to a server that has a model.
pub(crate) fn bodies(data: &[u8]) {
    static ASKED: OnceLock<Asked> = OnceLock::new();
    const KINDS: [&str; 14] = [
        "POST /v1/models/m/predict",
        "POST /v1/models/m/updates",
        "POST /v1/models/f/fits",
        "POST /v2/models/m/infer",
        "POST /v1/models/m/labels",
        "PUT /v1/models/m/aliases/a",
        "POST /v1/models/m:predict",
        "POST /invocations",
        "POST /v1/datasets/t/rows",
        "PUT /v1/datasets/u",
        "PUT /v1/models/m/traffic",
        "POST /v1/models/m/predictions",
        "POST /v1/models/m/invocations",
        "POST /v2/models/m/infer",
    ];
    let Some((&choice, body)) = data.split_first() else { return };
    let asked = ASKED.get_or_init(Asked::start);
    let kind = usize::from(choice) % KINDS.len();
    // Under the last of them a part of the body is tensors, in binary.
    let headers =
        if kind + 1 == KINDS.len() { format!("inference-header-content-length: {}\r\n", body.len() / 2) } else { JSON.to_owned() };
    let (status, head, answer) = asked.ask(KINDS[kind], &headers, body);
    assert!(status < 500, "{}: {status}: {}", KINDS[kind], String::from_utf8_lossy(&answer));
    if head.contains("content-type: application/json") || head.contains("content-type: application/problem+json") {
        let said: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        assert!(status < 400 || said["error"].is_string(), "{}: {status}: {said}", KINDS[kind]);
    }
    // What was made by this does not add up.
    match (kind, status) {
        (2, 201 | 202) => drop(asked.ask("DELETE /v1/models/f", "", b"")),
        (9, 200 | 201) => drop(asked.ask("DELETE /v1/datasets/u", "", b"")),
        _ => {}
    }
}
