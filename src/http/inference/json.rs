//! The Open Inference Protocol over HTTP: health, metadata, and inference with tensors in JSON or in binary after it.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Map, Value, json};

use super::super::App;
use super::super::error::ApiError;
use super::super::extract::{self, Path};
use super::super::predict::off_thread;
use super::super::wire::not_of_its_form;
use super::{Answered, Asked, Described, LARGE, NAME, described, malformed, output};
use crate::frame::nested::Nested;
use crate::frame::reply::push_json_string;
use crate::frame::tensor::{Datatype, Elements, Tensor};
use crate::service::{Answerer, Caller, Version};

/// How many bytes of the body are JSON; tensors in binary follow.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

pub(in crate::http) async fn server() -> Response {
    Json(json!({"name": NAME, "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"]})).into_response()
}

pub(in crate::http) async fn live(State(app): State<App>) -> Response {
    Json(json!({"live": true, "ready": app.service.is_ready()})).into_response()
}

pub(in crate::http) async fn ready(State(app): State<App>) -> Response {
    let ready = app.service.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"live": true, "ready": ready}))).into_response()
}

pub(in crate::http) async fn model_ready(State(app): State<App>, Path(name): Path<String>) -> Result<Response, ApiError> {
    app.service.version(&name).await?;
    Ok(Json(json!({"name": name, "ready": true})).into_response())
}

pub(in crate::http) async fn version_ready(
    State(app): State<App>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    app.service.version_of(&name, &version).await?;
    Ok(Json(json!({"name": name, "ready": true})).into_response())
}

pub(in crate::http) async fn model(State(app): State<App>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let (model, version, _) = app.service.version(&name).await?;
    let versions: Vec<String> = model.versions.keys().map(u64::to_string).collect();
    Ok(Json(metadata(&name, versions, &version)).into_response())
}

pub(in crate::http) async fn version(State(app): State<App>, Path((name, which)): Path<(String, String)>) -> Result<Response, ApiError> {
    let (_, version, _) = app.service.version_of(&name, &which).await?;
    Ok(Json(metadata(&name, vec![version.number.to_string()], &version)).into_response())
}

fn metadata(name: &str, versions: Vec<String>, version: &Version) -> Value {
    let (inputs, outputs) = described(version);
    let listed = |tensors: Vec<Described>| -> Vec<Value> {
        tensors.iter().map(|tensor| json!({"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape})).collect()
    };
    json!({"name": name, "versions": versions, "platform": NAME, "inputs": listed(inputs), "outputs": listed(outputs)})
}

/// A request's JSON.
#[derive(serde::Deserialize)]
struct Written {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<WrittenInput>,
    #[serde(default)]
    outputs: Option<Vec<WrittenOutput>>,
}

#[derive(serde::Deserialize)]
struct WrittenInput {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(default)]
    data: Option<Nested>,
}

#[derive(serde::Deserialize)]
struct WrittenOutput {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// What was asked, read, and how it is to be answered.
struct Inference {
    id: Option<String>,
    asked: Asked,
    /// Whether each output is wanted in binary.
    binary: Vec<bool>,
}

pub(in crate::http) async fn infer(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(&app, name, None, &headers, body).await
}

pub(in crate::http) async fn infer_version(
    State(app): State<App>,
    Path((name, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(&app, name, Some(version), &headers, body).await
}

async fn answer(app: &App, name: String, which: Option<String>, headers: &HeaderMap, body: Body) -> Result<Response, ApiError> {
    let answerer = match which {
        Some(which) => app.service.answerer_of(&name, &which).await?,
        None => app.service.answerer(&name, Caller { key: None, header: &extract::header_of(headers) }).await?,
    };
    let body = extract::whole(body, app.body_limit).await?;
    let head = match headers.get(&HEADER_LENGTH) {
        None => body.len(),
        Some(length) => {
            let length = length.to_str().ok().and_then(|text| text.trim().parse::<usize>().ok());
            length.filter(|length| *length <= body.len()).ok_or_else(|| {
                let detail = format!("Inference-Header-Content-Length is a number of bytes, at most the body's {}", body.len());
                malformed("", detail)
            })?
        }
    };
    let large = body.len() > LARGE;
    let service = app.service.clone();
    let work = move || -> Result<Response, ApiError> {
        let Inference { id, asked, binary } = read(&body, head, &answerer)?;
        let answered = asked.answer(&service, answerer)?;
        Ok(write(&name, id.as_deref(), &answered, &binary))
    };
    if large { off_thread(work).await } else { work() }
}

/// Whether a parameter says yes; clients write booleans and numbers.
fn says_yes(parameters: &Map<String, Value>, name: &str) -> bool {
    matches!(parameters.get(name), Some(Value::Bool(true))) || parameters.get(name).and_then(Value::as_i64) == Some(1)
}

fn read(body: &Bytes, head: usize, answerer: &Answerer) -> Result<Inference, ApiError> {
    let (json, mut binary) = body.split_at(head);
    let asked: Written = serde_json::from_slice(json).map_err(|error| not_of_its_form(json, &error, "an inference request"))?;
    let mut tensors = Vec::with_capacity(asked.inputs.len());
    for (place, input) in asked.inputs.into_iter().enumerate() {
        let at = |member: &str| format!("/inputs/{place}/{member}");
        let datatype = Datatype::parse(&input.datatype).ok_or_else(|| malformed(at("datatype"), "there is no such datatype"))?;
        let shape = input.shape.iter().map(|extent| u64::try_from(*extent)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| malformed(at("shape"), "an extent is not negative"))?;
        let elements = match (input.parameters.get("binary_data_size"), input.data) {
            (Some(size), None) => {
                let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
                let (own, rest) = size.and_then(|size| binary.split_at_checked(size)).ok_or_else(|| {
                    let detail = format!("`binary_data_size` is a number of bytes, at most the {} that are left", binary.len());
                    malformed(at("parameters"), detail)
                })?;
                binary = rest;
                Elements::Binary(own)
            }
            (None, Some(nested)) => nested.into_elements(),
            (Some(_), Some(_)) => return Err(malformed(at("data"), "a tensor's data stand in JSON or in binary, not in both").into()),
            (None, None) => {
                return Err(malformed(at("data"), "a tensor has `data`, or `binary_data_size` and bytes after the JSON").into());
            }
        };
        tensors.push(Tensor { name: input.name, shape, datatype, elements });
    }
    if !binary.is_empty() {
        return Err(malformed("", format!("{} bytes after the JSON belong to no tensor", binary.len())).into());
    }
    let all_binary = says_yes(&asked.parameters, "binary_data_output");
    let (mut outputs, mut all) = (Vec::new(), Vec::new());
    for (place, asked) in asked.outputs.unwrap_or_default().into_iter().enumerate() {
        outputs.push(output(&asked.name, place, &outputs)?);
        let own = asked.parameters.contains_key("binary_data").then(|| says_yes(&asked.parameters, "binary_data"));
        all.push(own.unwrap_or(all_binary));
    }
    if outputs.is_empty() {
        all.push(all_binary);
    }
    let read = Asked::read(&tensors, outputs, &asked.parameters, answerer)?;
    Ok(Inference { id: asked.id, asked: read, binary: all })
}

fn write(name: &str, id: Option<&str>, answered: &Answered, in_binary: &[bool]) -> Response {
    let predicted = &answered.predicted;
    let mut head = b"{\"model_name\":".to_vec();
    push_json_string(&mut head, name);
    head.extend_from_slice(format!(",\"model_version\":\"{}\"", predicted.version.number).as_bytes());
    if let Some(id) = id {
        head.extend_from_slice(b",\"id\":");
        push_json_string(&mut head, id);
    }
    head.extend_from_slice(format!(",\"parameters\":{{\"sequence\":{}", predicted.sequence).as_bytes());
    if let Some(arm) = &predicted.arm {
        head.extend_from_slice(b",\"arm\":");
        push_json_string(&mut head, arm);
    }
    head.extend_from_slice(b"},\"outputs\":[");
    let mut binary = Vec::new();
    for (place, (output, in_binary)) in answered.outputs.iter().zip(in_binary).enumerate() {
        if place > 0 {
            head.push(b',');
        }
        let (Described { datatype, shape, .. }, elements) = (answered.describe(output), answered.elements(output));
        head.extend_from_slice(format!("{{\"name\":\"{output}\",\"datatype\":\"{datatype}\",\"shape\":{shape:?}").as_bytes());
        if *in_binary {
            head.extend_from_slice(format!(",\"parameters\":{{\"binary_data_size\":{}}}}}", elements.size()).as_bytes());
            elements.push_binary(&mut binary);
        } else {
            head.extend_from_slice(b",\"data\":");
            elements.push_json(&mut head);
            head.push(b'}');
        }
    }
    head.extend_from_slice(b"]}");
    let length = head.len();
    head.append(&mut binary);
    let mut response = Response::new(Body::from(head));
    let any = in_binary.contains(&true);
    let media = if any { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    extract::name_arm(response.headers_mut(), predicted.arm.as_deref());
    if any {
        response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(length));
    }
    response
}
