//! The Open Inference Protocol, version 2 (KServe, Triton): health, metadata, and inference with tensors in JSON or in binary after it. Rows and
//! answers are those of `predict`; here is only how they are written.

use std::borrow::Cow;
use std::fmt;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use super::App;
use super::error::ApiError;
use super::extract::{self, Path};
use super::predict::off_thread;
use crate::frame::reply::{push_json_string, push_number};
use crate::frame::rows::{ParseError, Rows};
use crate::frame::tensor::{Datatype, Elements, Tensor, parse_tensors};
use crate::frame::{Fault, InputKind, InputSchema};
use crate::lsq::inference::student_t_quantile;
use crate::model::{IntervalKind, Question};
use crate::service::{Caller, Predicted, ServiceError, Version};

/// How many bytes of the body are JSON; tensors in binary follow.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
/// Rows of a request.
const ROWS: usize = 10_000_000;
/// Bodies larger than this leave the async threads.
const LARGE: usize = 64 * 1024;
/// The name of the tensor of all inputs.
const TABLE: &str = "input";
/// What can be answered.
const OUTPUTS: [&str; 5] = ["predict", "lower", "upper", "std_error", "leverage"];

pub(super) async fn server() -> Response {
    Json(json!({"name": "lsqd", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"]})).into_response()
}

pub(super) async fn live(State(app): State<App>) -> Response {
    Json(json!({"live": true, "ready": app.service.is_ready()})).into_response()
}

pub(super) async fn ready(State(app): State<App>) -> Response {
    let ready = app.service.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"live": true, "ready": ready}))).into_response()
}

pub(super) async fn model_ready(State(app): State<App>, Path(name): Path<String>) -> Result<Response, ApiError> {
    app.service.version(&name).await?;
    Ok(Json(json!({"name": name, "ready": true})).into_response())
}

pub(super) async fn version_ready(State(app): State<App>, Path((name, version)): Path<(String, String)>) -> Result<Response, ApiError> {
    app.service.version_of(&name, &version).await?;
    Ok(Json(json!({"name": name, "ready": true})).into_response())
}

pub(super) async fn model(State(app): State<App>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let (model, version, _) = app.service.version(&name).await?;
    let versions: Vec<String> = model.versions.keys().map(u64::to_string).collect();
    Ok(Json(metadata(&name, versions, &version)).into_response())
}

pub(super) async fn version(State(app): State<App>, Path((name, which)): Path<(String, String)>) -> Result<Response, ApiError> {
    let (_, version, _) = app.service.version_of(&name, &which).await?;
    Ok(Json(metadata(&name, vec![version.number.to_string()], &version)).into_response())
}

fn metadata(name: &str, versions: Vec<String>, version: &Version) -> Value {
    let inputs = version.inputs.inputs();
    let plain = inputs.iter().all(|input| matches!(input.kind, InputKind::Number | InputKind::Integer));
    let inputs: Vec<Value> = if plain && !inputs.is_empty() {
        vec![json!({"name": TABLE, "datatype": "FP64", "shape": [-1, inputs.len()]})]
    } else {
        let datatype = |kind: &InputKind| match kind {
            InputKind::Number => "FP64",
            InputKind::Integer => "INT64",
            InputKind::Boolean => "BOOL",
            InputKind::Category { .. } => "BYTES",
        };
        inputs.iter().map(|input| json!({"name": input.name, "datatype": datatype(&input.kind), "shape": [-1, 1]})).collect()
    };
    let targets = version.document.target.len();
    let outputs: Vec<Value> = OUTPUTS
        .iter()
        .map(|output| {
            let shape = if targets == 1 || *output == "leverage" { json!([-1]) } else { json!([-1, targets]) };
            json!({"name": output, "datatype": "FP64", "shape": shape})
        })
        .collect();
    json!({"name": name, "versions": versions, "platform": "lsqd", "inputs": inputs, "outputs": outputs})
}

/// A request's JSON.
#[derive(serde::Deserialize)]
struct Asked {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<AskedInput>,
    #[serde(default)]
    outputs: Option<Vec<AskedOutput>>,
}

#[derive(serde::Deserialize)]
struct AskedInput {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(default)]
    data: Option<Flat>,
}

#[derive(serde::Deserialize)]
struct AskedOutput {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// The data of a tensor, however deep its lists are.
struct Flat(Elements<'static>);

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut elements = None;
        deserializer.deserialize_seq(Lists(&mut elements))?;
        Ok(Self(elements.unwrap_or(Elements::Numbers(Vec::new()))))
    }
}

/// Takes in lists of lists of elements of one kind.
struct Lists<'a>(&'a mut Option<Elements<'static>>);

const MIXED: &str = "a tensor's elements are all numbers, all booleans or all strings";

impl<'de> Visitor<'de> for Lists<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of elements, or of such lists")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Element(&mut *self.0))?.is_some() {}
        Ok(())
    }
}

struct Element<'a>(&'a mut Option<Elements<'static>>);

impl<'de> serde::de::DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Element<'_> {
    fn number<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        match self.0.get_or_insert_with(|| Elements::Numbers(Vec::new())) {
            Elements::Numbers(values) => {
                values.push(value);
                Ok(())
            }
            _ => Err(E::custom(MIXED)),
        }
    }
}

impl<'de> Visitor<'de> for Element<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a number, a boolean, a string, null, or a list of such")
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.number(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.number(value as f64)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.number(value as f64)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.number(f64::NAN)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        match self.0.get_or_insert_with(|| Elements::Booleans(Vec::new())) {
            Elements::Booleans(values) => {
                values.push(value);
                Ok(())
            }
            _ => Err(E::custom(MIXED)),
        }
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        match self.0.get_or_insert_with(|| Elements::Texts(Vec::new())) {
            Elements::Texts(values) => {
                values.push(value.to_owned());
                Ok(())
            }
            _ => Err(E::custom(MIXED)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<(), A::Error> {
        Lists(self.0).visit_seq(list)
    }
}

/// How an output is to be written.
struct Wanted {
    output: &'static str,
    binary: bool,
}

/// What was asked, read.
struct Inference {
    id: Option<String>,
    wanted: Vec<Wanted>,
    question: Question,
    level: f64,
    rows: Rows,
}

pub(super) async fn infer(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    answer(&app, name, None, &headers, body).await
}

pub(super) async fn infer_version(
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
        let asked = read(&body, head, answerer.inputs(), |error| answerer.refused(error))?;
        let degrees = answerer.degrees_of_freedom();
        let quantile = if degrees > 0.0 { student_t_quantile(asked.level, degrees) } else { f64::NAN };
        let predicted = service.predict(answerer, asked.rows, asked.question, false)?;
        Ok(write(&name, asked.id.as_deref(), &asked.wanted, &predicted, quantile))
    };
    if large { off_thread(work).await } else { work() }
}

fn malformed(pointer: &str, detail: impl Into<String>) -> ServiceError {
    ServiceError::Syntax(Fault { pointer: pointer.to_owned(), detail: detail.into() })
}

/// Whether a parameter says yes; clients write booleans and numbers.
fn says_yes(parameters: &Map<String, Value>, name: &str) -> bool {
    matches!(parameters.get(name), Some(Value::Bool(true))) || parameters.get(name).and_then(Value::as_i64) == Some(1)
}

fn read(body: &Bytes, head: usize, inputs: &InputSchema, refused: impl Fn(ParseError) -> ServiceError) -> Result<Inference, ApiError> {
    let (json, mut binary) = body.split_at(head);
    let asked: Asked = serde_json::from_slice(json).map_err(|error| {
        let bare = ["NaN", "Infinity"].into_iter().find(|word| json.windows(word.len()).any(|part| part == word.as_bytes()));
        let (line, column) = (error.line(), error.column());
        match bare {
            Some(word) => malformed("", format!("{word} is not JSON: a missing value is null, or send the tensor as binary")),
            None if error.is_data() => malformed("", format!("the request is not an inference request: {error}")),
            None => malformed("", format!("the request is not JSON: line {line}, column {column}")),
        }
    })?;
    let mut tensors = Vec::with_capacity(asked.inputs.len());
    for (place, input) in asked.inputs.into_iter().enumerate() {
        let at = |member: &str| format!("/inputs/{place}/{member}");
        let datatype = Datatype::parse(&input.datatype).ok_or_else(|| malformed(&at("datatype"), "there is no such datatype"))?;
        let shape = input.shape.iter().map(|extent| u64::try_from(*extent)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| malformed(&at("shape"), "an extent is not negative"))?;
        let elements = match (input.parameters.get("binary_data_size"), input.data) {
            (Some(size), None) => {
                let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
                let (own, rest) = size.and_then(|size| binary.split_at_checked(size)).ok_or_else(|| {
                    let detail = format!("`binary_data_size` is a number of bytes, at most the {} that are left", binary.len());
                    malformed(&at("parameters"), detail)
                })?;
                binary = rest;
                Elements::Binary(own)
            }
            (None, Some(Flat(elements))) => elements,
            (Some(_), Some(_)) => return Err(malformed(&at("data"), "a tensor's data stand in JSON or in binary, not in both").into()),
            (None, None) => {
                return Err(malformed(&at("data"), "a tensor has `data`, or `binary_data_size` and bytes after the JSON").into());
            }
        };
        tensors.push(Tensor { name: input.name, shape, datatype, elements });
    }
    if !binary.is_empty() {
        return Err(malformed("", format!("{} bytes after the JSON belong to no tensor", binary.len())).into());
    }
    let all_binary = says_yes(&asked.parameters, "binary_data_output");
    let mut wanted = Vec::new();
    for (place, output) in asked.outputs.unwrap_or_default().into_iter().enumerate() {
        let known = OUTPUTS.into_iter().find(|known| *known == output.name);
        let known = known.ok_or_else(|| {
            malformed(&format!("/outputs/{place}/name"), format!("there is no such output; there are {}", OUTPUTS.join(", ")))
        })?;
        let own = output.parameters.contains_key("binary_data").then(|| says_yes(&output.parameters, "binary_data"));
        wanted.push(Wanted { output: known, binary: own.unwrap_or(all_binary) });
    }
    if wanted.is_empty() {
        wanted.push(Wanted { output: "predict", binary: all_binary });
    }
    let (kind, level) = interval(&asked.parameters)?;
    let of = |names: &[&str]| wanted.iter().any(|wanted| names.contains(&wanted.output));
    let question = Question {
        interval: of(&["lower", "upper", "std_error"]).then_some((kind, level)),
        leverage: of(&["leverage"]),
        ..Question::default()
    };
    let mut rows = Rows::default();
    parse_tensors(&tensors, inputs, ROWS, &mut rows).map_err(refused)?;
    Ok(Inference { id: asked.id, wanted, question, level, rows })
}

/// `parameters.interval`: `prediction` or `confidence`, or a level; `parameters.level` beside the word. An object of both is taken too.
fn interval(parameters: &Map<String, Value>) -> Result<(IntervalKind, f64), ServiceError> {
    let (mut kind, mut level) = (Cow::Borrowed("prediction"), parameters.get("level").cloned());
    match parameters.get("interval") {
        None => {}
        Some(Value::String(text)) => kind = Cow::Borrowed(text),
        Some(number @ Value::Number(_)) => level = Some(number.clone()),
        Some(Value::Object(object)) => {
            if let Some(Value::String(text)) = object.get("kind") {
                kind = Cow::Borrowed(text);
            }
            level = object.get("level").cloned().or(level);
        }
        Some(_) => return Err(malformed("/parameters/interval", "`interval` is prediction or confidence, or a level between 0 and 1")),
    }
    let kind = match kind.as_ref() {
        "prediction" => IntervalKind::Prediction,
        "confidence" => IntervalKind::Confidence,
        _ => return Err(malformed("/parameters/interval", "`interval` is prediction or confidence, or a level between 0 and 1")),
    };
    let level = level.map_or(Some(0.95), |level| level.as_f64());
    match level {
        Some(level) if level > 0.0 && level < 1.0 => Ok((kind, level)),
        _ => Err(malformed("/parameters/level", "`level` is between 0 and 1")),
    }
}

fn write(name: &str, id: Option<&str>, wanted: &[Wanted], predicted: &Predicted, quantile: f64) -> Response {
    let (answer, targets) = (&predicted.answer, predicted.version.document.target.len());
    let rows = answer.predictions.len() / targets.max(1);
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
    let mut any = false;
    for (place, wanted) in wanted.iter().enumerate() {
        let derived: Vec<f64>;
        let values: &[f64] = match wanted.output {
            "lower" => &answer.lower,
            "upper" => &answer.upper,
            "leverage" => &answer.leverage,
            "std_error" => {
                derived = answer.upper.iter().zip(&answer.predictions).map(|(upper, value)| (upper - value) / quantile).collect();
                &derived
            }
            _ => &answer.predictions,
        };
        if place > 0 {
            head.push(b',');
        }
        let shape = if targets == 1 || wanted.output == "leverage" { format!("[{rows}]") } else { format!("[{rows},{targets}]") };
        head.extend_from_slice(format!("{{\"name\":\"{}\",\"datatype\":\"FP64\",\"shape\":{shape}", wanted.output).as_bytes());
        if wanted.binary {
            any = true;
            head.extend_from_slice(format!(",\"parameters\":{{\"binary_data_size\":{}}}}}", values.len() * 8).as_bytes());
            binary.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        } else {
            head.extend_from_slice(b",\"data\":[");
            for (place, value) in values.iter().enumerate() {
                if place > 0 {
                    head.push(b',');
                }
                push_number(&mut head, *value);
            }
            head.extend_from_slice(b"]}");
        }
    }
    head.extend_from_slice(b"]}");
    let length = head.len();
    head.append(&mut binary);
    let mut response = Response::new(Body::from(head));
    let media = if any { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    extract::name_arm(response.headers_mut(), predicted.arm.as_deref());
    if any {
        response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(length));
    }
    response
}
