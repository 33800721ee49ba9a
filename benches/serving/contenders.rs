//! What lsqd is held against, as processes of their own: two bare axum handlers out of this program, and the servers of bench/serving.py.

use std::io::Write as _;
use std::process::Command;

use axum::Router;
use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::routing::{get, post};

use crate::under_test::{Outcome, Server};

/// As long as what lsqd answers to one row.
const CONSTANT: &str = "{\"model\":\"served\",\"version\":1,\"sequence\":0,\"predictions\":[123.45678901234567],\"lower\":null,\"upper\":null,\
                        \"leverage\":[0.12345678901234568],\"extrapolates\":[false],\"contributions\":null,\"prediction_ids\":null}";

/// What this program is told to be one of them.
pub(crate) const AS: &str = "--contender";

/// Starts this program again as the contender of that name; the coefficients, the intercept first, go with it.
pub(crate) fn start(name: &str, coefficients: &[f64]) -> Outcome<Server> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([AS, name]).args(coefficients.iter().map(f64::to_string));
    Server::launch(command, "/readyz")
}

/// Starts a peer of bench/serving.py.
pub(crate) fn start_peer(python: &str, name: &str, table: &std::path::Path, ready: &str) -> Outcome<Server> {
    let mut command = Command::new(python);
    command.arg("bench/serving.py").arg(name).arg(table);
    Server::launch(command, ready)
}

/// Is one: serves until it is killed, as `axum::serve` in tokio's usual runtime does.
pub(crate) fn be(arguments: &[String]) -> Outcome<()> {
    let name = arguments.first().ok_or("which contender?")?;
    let coefficients = arguments[1..].iter().map(|text| Ok(text.parse()?)).collect::<Outcome<Vec<f64>>>()?;
    let json = [(header::CONTENT_TYPE, "application/json")];
    let answer = match name.as_str() {
        // The floor: reads the body, answers a constant.
        "floor" => post(async move |body: Bytes| {
            std::hint::black_box(body);
            (json, CONSTANT)
        }),
        // What is written in an afternoon: parses a vector of vectors, multiplies, writes a vector.
        "product" => post(async move |body: Bytes| {
            let rows: Vec<Vec<f64>> = serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
            let predict = |row: &Vec<f64>| coefficients[0] + row.iter().zip(&coefficients[1..]).map(|(x, slope)| x * slope).sum::<f64>();
            let predictions: Vec<f64> = rows.iter().map(predict).collect();
            serde_json::to_vec(&predictions).map(|text| (json, text)).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
        }),
        _ => return Err("there is no such contender".into()),
    };
    let app = Router::new().route("/predict", answer).route("/readyz", get(async || StatusCode::OK));
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        writeln!(std::io::stdout(), "http://{}", listener.local_addr()?)?;
        axum::serve(listener, app).await?;
        Ok(())
    })
}
