//! The fuzz targets without a fuzzer: seeds, mutations of them, and whatever once went wrong.
//!
//! `fuzz/run` goes on from the same seeds with libFuzzer; what it finds is kept in `fuzz/regressions/{target}`, and played here.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use faer::Mat;
use lsqd::frame::codec;
use lsqd::lsq::{Matrices, Specification, fit};
use lsqd::model::{History, State};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use targets::TARGETS;

/// Mutations of each seed unless `LSQD_FUZZ_MUTATIONS` says otherwise.
const MUTATIONS: u64 = 300;

fn with(first: u8, text: &str) -> Vec<u8> {
    [&[first], text.as_bytes()].concat()
}

/// What a target begins from.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "table" => {
            let csv = "a,\"b \"\"q\"\"\",c,t\n1,x,true,2026-01-01T00:00:00Z\n2.5,\"y\nz\",false,2026-01-02\n,NA,,\n-1e-3,x,true,\n";
            let ndjson = "{\"a\":1,\"b\":\"x\"}\n{\"a\":2.5,\"b\":null}\n\n{\"b\":\"\\u00e9\",\"a\":-1e3}\n";
            let json = "{\"rows\":[{\"a\":1,\"b\":true},{\"a\":2,\"b\":false}]}";
            let columns = "{\"columns\":[\"a\",\"b\"],\"data\":[[1,\"x\"],[2,null]]}";
            let mut seeds = Vec::new();
            for head in [0, 4, 28] {
                seeds.extend([with(head, csv), with(head + 1, ndjson), with(head + 2, json), with(head + 2, columns), with(head + 3, csv)]);
            }
            seeds.push(with(0, "a;b\n1,5;2\n"));
            seeds.push(with(3, "\u{feff}a\tb\n1\t2\n"));
            seeds
        }
        "rows" => {
            let row = r#"{"a":1.5,"b":2,"c":true,"d":"x","e":1,"f":null}"#;
            let document =
                format!("{{\"rows\":[{row},{{\"f\":-1e-300,\"e\":\"2\",\"d\":\"é\",\"c\":0,\"b\":7,\"a\":0.1}}],\"explain\":true}}");
            let table = r#"{"columns":["a","b","c","d","_id"],"data":[[1,2,true,"x","k"],[3.25,4,false,"y",null]]}"#;
            let lines = format!("{row}\n\n{{\"_id\":\"k\",\"a\":1e5,\"b\":2,\"c\":1,\"d\":\"y\"}}\n");
            let csv = "d,a,b,c,f\r\n\"x\",1.5,2,true,\r\ny,-0.25,3,false,\"1e3\"\r\n\"é\",7,4,1,NA\r\n";
            vec![with(0, &document), with(0, table), with(1, &lines), with(5, &lines), with(2, csv), with(6, csv)]
        }
        "arrow" => vec![stream(1), stream(3)],
        "tensors" => {
            let doubles = |kind: u8, values: &[f64]| {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                let length = u16::try_from(bytes.len()).unwrap().to_le_bytes();
                [&[kind << 4 | 11, 1, 2, 1, length[0], length[1]][..], &bytes].concat()
            };
            let texts = [&[3 << 4 | 12, 1, 2, 1, 10, 0][..], &[1, 0, 0, 0, b'x', 1, 0, 0, 0, b'y']].concat();
            let booleans = [&[2 << 4, 1, 2, 1, 2, 0][..], &[0, 1]].concat();
            vec![[doubles(0, &[1.5, 2.5]), doubles(1, &[1.0, 2.0]), booleans, texts].concat(), doubles(6, &[1.0; 12])]
        }
        "codec" => columns().iter().map(codec::encode).collect(),
        "state" => vec![state(1).encode(), state(2).encode(), series().encode()],
        "updates" => {
            let mut random = StdRng::seed_from_u64(1);
            [24, 120, 600].map(|length| (0..length).map(|_| random.random()).collect()).to_vec()
        }
        "names" => {
            ["sales", "caf\u{65}\u{301}", "a b", "..", "x@y", "12", "\u{1100}\u{1161}"].map(|name| name.as_bytes().to_vec()).to_vec()
        }
        "keys" => {
            let token = format!("lsqd_{}.{}", "0123456789abcdef", "0123456789abcdef".repeat(4));
            [token.as_str(), "read,predict", "update, admin", "sales-*\nsales-2026", "*a?b*\nxxaxbxx", "caf?\ncaf\u{e9}"]
                .map(|text| text.as_bytes().to_vec())
                .to_vec()
        }
        "bodies" => {
            let infer = r#"{"inputs":[{"name":"x","shape":[2,1],"datatype":"FP64","data":[1.5,2]},{"name":"region","shape":[2,1],"datatype":"BYTES","data":["north","south"]}]}"#;
            let fit = r#"{"dataset":"t","target":"y","features":["x",{"column":"region","as":"onehot"}],"estimator":{"kind":"ridge","penalty":"auto"},"validation":{"kind":"kfold","folds":3,"seed":1},"covariance":"hc3"}"#;
            let shaped = r#"{"dataset":"t","target":"y","features":[{"column":"x","as":"spline","df":3},{"columns":["x","region"],"as":"interaction"}],"estimator":{"kind":"huber","threshold":1.5},"online":{"window":20}}"#;
            vec![
                with(0, r#"{"rows":[{"x":1.5,"region":"north"}],"interval":{"kind":"prediction","level":0.9},"explain":true}"#),
                with(0, r#"{"columns":["x","region"],"data":[[1,"south"],[2,"east"]],"remember":true}"#),
                with(1, r#"{"rows":[{"x":1.5,"region":"north","y":2.5,"_id":"a"}]}"#),
                with(2, fit),
                with(2, shaped),
                with(
                    2,
                    r#"{"dataset":"t","target":["y","x"],"estimator":{"kind":"gradient","epochs":20},"weights":null,"intercept":false}"#,
                ),
                with(3, infer),
                with(4, r#"{"labels":[{"prediction_id":"0123456789abcdef","value":1.0}]}"#),
                with(5, r#"{"version":1}"#),
                with(6, r#"{"instances":[{"x":1.5,"region":"north"}]}"#),
                with(7, r#"{"dataframe_split":{"columns":["x","region"],"data":[[1,"south"]]}}"#),
                with(7, r#"{"dataframe_records":[{"x":1,"region":"east"}]}"#),
                with(8, r#"{"rows":[{"x":1.5,"region":"north","y":2.5}]}"#),
                with(9, r#"{"columns":["a","b"],"data":[[1,"x"],[2,null]]}"#),
                with(10, r#"{"split":{"served":1},"shadow":[]}"#),
                with(11, r#"{"dataset":"t"}"#),
                with(12, r#"{"inputs":[[1.5,"north"]]}"#),
                with(13, infer),
            ]
        }
        _ => panic!("{target} has no seeds"),
    }
}

fn columns() -> [ArrayRef; 5] {
    let categories: arrow_array::DictionaryArray<arrow_array::types::Int32Type> =
        [Some("x"), None, Some("y"), Some("x")].into_iter().collect();
    [
        Arc::new(Float64Array::from(vec![Some(1.5), None, Some(-0.0), Some(1e300)])),
        Arc::new(Int64Array::from(vec![Some(1), Some(i64::MIN), None, Some(7)])),
        Arc::new(BooleanArray::from(vec![Some(true), Some(false), None, Some(true)])),
        Arc::new(StringArray::from(vec![Some("é"), Some(""), None, Some("z")])),
        Arc::new(categories),
    ]
}

/// A stream of batches of rows that the schema of the targets takes.
fn stream(batches: usize) -> Vec<u8> {
    let columns: [(&str, ArrayRef); 6] = [
        ("a", Arc::new(Float64Array::from(vec![1.5, -2.0]))),
        ("b", Arc::new(Int64Array::from(vec![3, 4]))),
        ("c", Arc::new(BooleanArray::from(vec![true, false]))),
        ("d", Arc::new(StringArray::from(vec!["x", "\u{e9}"]))),
        ("e", Arc::new([Some("1"), Some("3")].into_iter().collect::<arrow_array::DictionaryArray<arrow_array::types::Int32Type>>())),
        ("f", Arc::new(Float32Array::from(vec![Some(0.5), None]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    (0..batches).for_each(|_| writer.write(&batch).unwrap());
    writer.into_inner().unwrap()
}

/// The state of a model of two predictors.
fn state(responses: usize) -> State {
    let design = Mat::from_fn(7, 2, |row, column| ((row * (3 + column) + column) % 5) as f64);
    let response = Mat::from_fn(7, responses, |row, column| (row + column) as f64 * 0.5 + (row % 2) as f64);
    let fit = fit(&mut Matrices { design: design.as_ref(), response: response.as_ref(), weights: None }, &Specification::default());
    State::of(&fit.unwrap())
}

/// The same with the last rows that later ones take values of.
fn series() -> State {
    state(1).with_history(Some(History::of(2, 3, |column, back| (column + back) as f64)))
}

/// Another body: bytes changed, cut out, doubled, or put in from another seed.
fn mutated(seed: &[u8], other: &[u8], random: &mut StdRng) -> Vec<u8> {
    const WORDS: [&[u8]; 10] =
        [b"\"", b"\n", b",", b"{", b"]", b"1e999", b"null", b"\xff\xff\xff\xff", b"\0\0\0\0\0\0\xf0\x7f", b"\xef\xbb\xbf"];
    let mut bytes = seed.to_vec();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=bytes.len());
        let end = (at + random.random_range(0..9)).min(bytes.len());
        match random.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = random.random(),
            2 => _ = bytes.drain(at..end),
            3 => bytes.truncate(at),
            4 => _ = bytes.splice(at..at, WORDS[random.random_range(0..WORDS.len())].iter().copied()),
            _ if !other.is_empty() => {
                let from = random.random_range(0..other.len());
                let to = (from + random.random_range(0..32)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ => {}
        }
    }
    bytes
}

#[test]
fn seeds_and_mutations_of_them_hold_what_is_promised() {
    let mutations = std::env::var("LSQD_FUZZ_MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(MUTATIONS);
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        for (place, seed) in seeds.iter().enumerate() {
            target(seed);
            for number in 0..mutations {
                let mut random = StdRng::seed_from_u64(number << 8 | place as u64);
                let other = &seeds[random.random_range(0..seeds.len())];
                let bytes = mutated(seed, other, &mut random);
                let result = std::panic::catch_unwind(|| target(&bytes));
                assert!(result.is_ok(), "{name}, seed {place}, mutation {number}: {:?}", String::from_utf8_lossy(&bytes));
            }
        }
    }
}

#[test]
fn what_once_went_wrong_does_not_again() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions");
    let mut played = 0;
    for (name, target) in TARGETS {
        let Ok(folder) = std::fs::read_dir(root.join(name)) else { continue };
        for file in folder {
            target(&std::fs::read(file.unwrap().path()).unwrap());
            played += 1;
        }
    }
    assert!(played > 0, "there are no regressions in {}", root.display());
}

/// Seeds as files, for the fuzzer: into the folder that `LSQD_FUZZ_SEEDS` names.
#[test]
fn seeds_are_written_where_they_are_asked_for() {
    let own = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("LSQD_FUZZ_SEEDS").map_or_else(|| own.path().to_owned(), Into::into);
    for (name, _) in TARGETS {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        for (place, seed) in seeds(name).iter().enumerate() {
            std::fs::write(folder.join(name).join(format!("seed-{place}")), seed).unwrap();
        }
        assert!(std::fs::read_dir(folder.join(name)).unwrap().count() > 0);
    }
}
