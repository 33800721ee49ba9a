//! The walls of the house: which layer may name which. A test, not a review, keeps them.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

/// A layer and what it must not name: a crate (`axum`), a module of ours (`crate::store`), or a text.
const WALLS: &[(&str, &[&str])] = &[
    (
        "lsq",
        &[
            "serde",
            "serde_json",
            "tokio",
            "axum",
            "sqlx",
            "arrow_array",
            "crate::frame",
            "crate::features",
            "crate::model",
            "crate::store",
            "crate::service",
            "crate::http",
            "crate::server",
            "crate::config",
            "crate::telemetry",
        ],
    ),
    ("frame", &["axum", "sqlx", "crate::features", "crate::model", "crate::store", "crate::service", "crate::http"]),
    ("features", &["axum", "sqlx", "crate::model", "crate::store", "crate::service", "crate::http"]),
    ("model", &["axum", "sqlx", "tokio", "crate::store", "crate::service", "crate::http"]),
    ("store", &["axum", "crate::service", "crate::http"]),
    ("service", &["axum", "http", "sqlx", "crate::http", "\"SELECT ", "\"INSERT ", "\"UPDATE ", "\"DELETE "]),
    ("http", &["faer", "sqlx", "crate::store"]),
    ("web", &["faer", "sqlx", "crate::store"]),
];

/// Whether a line of code names `what`, as a path or in a group of a `use`.
fn names(line: &str, what: &str) -> bool {
    if what.starts_with('"') {
        return line.contains(what);
    }
    let word = |character: char| character.is_alphanumeric() || character == '_';
    let (text, name) = match what.strip_prefix("crate::") {
        Some(module) if line.contains("crate::{") => (line.split_once("crate::{").map_or("", |(_, group)| group), module),
        _ => (line, what),
    };
    text.match_indices(name).any(|(place, _)| {
        let before = &text[..place];
        let after = &text[place + name.len()..];
        // `crate::http` is not the crate `http`, and `model::store` is not ours.
        let starts = !before.ends_with(word) && !before.ends_with(':');
        let path = after.starts_with("::")
            || line.trim_start().starts_with("use ")
            || line.trim_start().starts_with("pub use ")
            || what.contains("::");
        starts && path && !after.starts_with(word)
    })
}

/// Every place in a source text at which one of `forbidden` is named.
fn breaches(file: &str, text: &str, forbidden: &[&str]) -> Vec<String> {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.enumerate()
        .flat_map(|(number, line)| {
            forbidden.iter().filter(|what| names(line, what)).map(move |what| format!("{file}:{}: {what}", number + 1))
        })
        .collect()
}

fn visit(directory: &Path, forbidden: &[&str], found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, forbidden, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(breaches(&path.display().to_string(), &fs::read_to_string(&path).unwrap(), forbidden));
        }
    }
}

#[test]
fn no_layer_names_what_lies_above_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for (layer, forbidden) in WALLS {
        visit(&source.join(layer), forbidden, &mut found);
    }
    assert!(found.is_empty(), "the walls are broken:\n{}", found.join("\n"));
}

#[test]
fn only_inference_knows_of_grpc_frames() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    visit(&source, &["tonic"], &mut found);
    let (inside, outside): (Vec<_>, Vec<_>) = found.into_iter().partition(|place| place.contains("src/http/inference/"));
    assert!(!inside.is_empty(), "gRPC is spoken elsewhere now: move this wall");
    assert!(outside.is_empty(), "the wall around gRPC is broken:\n{}", outside.join("\n"));
}

#[test]
fn only_the_server_knows_that_connections_are_encrypted() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    visit(&source, &["tokio_rustls"], &mut found);
    let (inside, outside): (Vec<_>, Vec<_>) = found.into_iter().partition(|place| place.contains("src/server/"));
    assert!(!inside.is_empty(), "connections are encrypted elsewhere now: move this wall");
    assert!(outside.is_empty(), "the wall around TLS is broken:\n{}", outside.join("\n"));
}

#[test]
fn the_walls_bite_on_planted_lines_and_on_nothing_else() {
    for (layer, line, bites) in [
        ("lsq", "use serde::Serialize;", true),
        ("lsq", "    let x = crate::frame::Frame::default();", true),
        ("lsq", "use crate::lsq::gram;", false),
        ("lsq", "// serde::Serialize would be too much here", false),
        ("service", "use axum::Json;", true),
        ("service", "use http::StatusCode;", true),
        ("service", "sqlx::query(\"SELECT 1\")", true),
        ("service", "use crate::store::{self, Store};", false),
        ("http", "use crate::{model, store};", true),
        ("http", "use axum::http::StatusCode;", false),
        ("http", "use crate::service::Service;", false),
        ("model", "use crate::store_like::Thing;", false),
    ] {
        let forbidden = WALLS.iter().find(|(name, _)| *name == layer).map(|(_, forbidden)| *forbidden).unwrap();
        assert_eq!(!breaches("planted", line, forbidden).is_empty(), bites, "{layer}: {line}");
    }
}

/// The crates of this package's dependency tree over some edges, with their features, as `cargo tree` lists them.
fn tree(edges: &str) -> Vec<(String, Vec<String>)> {
    let arguments = ["tree", "--locked", "--offline", "--edges", edges, "--prefix", "none", "--format", "{p}|{f}"];
    let output = std::process::Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let crates = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let (name, features) = line.split_once('|')?;
        let features = features.trim_end_matches(" (*)").split(',').map(str::to_owned).collect();
        Some((name.split(' ').next()?.to_owned(), features))
    };
    crates.lines().filter_map(line).collect()
}

/// Crates that call out over HTTP, and those that do when asked to by a feature.
fn clients(crates: &[(String, Vec<String>)]) -> Vec<&str> {
    let calls_out = |(name, features): &&(String, Vec<String>)| match name.as_str() {
        "attohttpc" | "awc" | "curl" | "hickory-resolver" | "hyper-rustls" | "hyper-tls" | "isahc" | "minreq" | "reqwest" | "surf"
        | "ureq" => true,
        "hyper" | "hyper-util" => features.iter().any(|feature| feature.starts_with("client")),
        "tonic" => features.iter().any(|feature| matches!(feature.as_str(), "channel" | "transport")),
        _ => false,
    };
    crates.iter().filter(calls_out).map(|(name, _)| name.as_str()).collect()
}

#[test]
fn no_http_client_is_built_in() {
    let built_in = tree("normal");
    assert!(built_in.iter().any(|(name, features)| name == "hyper" && features.iter().any(|feature| feature == "server")));
    assert_eq!(clients(&built_in), Vec::<&str>::new());
    // The client of the tests is one, so a tree with it is told from a tree without.
    assert!(clients(&tree("normal,dev")).contains(&"reqwest"));
}
