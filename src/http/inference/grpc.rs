//! The Open Inference Protocol over gRPC: the service `inference.GRPCInferenceService` as KServe and Triton define it, and the health check of
//! gRPC itself. Every call has one message and one reply, so each is a function from bytes to bytes; tonic does the frames, the packing and
//! the status in the trailers.
//!
//! The numbers of the fields are those of the public protocol
//! (<https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md>); what is not named here is skipped,
//! as the format wants it.

use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use http_body_util::Full;
use serde_json::{Map, Value};
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::super::error::ApiError;
use super::super::overload::{Class, Overload};
use super::super::predict::off_thread;
use super::super::{App, Needs, access, error, extract, middleware, packed};
use super::protobuf::{Field, Fields, Message, NotAMessage, count_varints, varints};
use super::{Answered, Asked, Described, LARGE, NAME, described, malformed, output};
use crate::frame::tensor::{Datatype, Elements, Tensor};
use crate::model::key::{Scope, Scopes};
use crate::service::{Caller, Holder, ServiceError};
use crate::telemetry;

/// Bytes before a message: whether it is packed, and its length.
const PREFIX: usize = 5;
/// The first of them.
const PLAIN: u8 = 0;
const PACKED: u8 = 1;
/// How messages are packed that say that they are.
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
/// Tensors, outputs and parameters of a request, all together: each is some bytes of the message and many more in memory.
const MOST_PARTS: usize = 1 << 16;
/// Extents of a shape.
const MOST_EXTENTS: usize = 16;

/// What can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    ServerLive,
    ServerReady,
    ServerMetadata,
    ModelReady,
    ModelMetadata,
    ModelInfer,
    RepositoryIndex,
    Health,
}

impl Method {
    const ALL: [(&str, Self); 8] = [
        ("/inference.GRPCInferenceService/ServerLive", Self::ServerLive),
        ("/inference.GRPCInferenceService/ServerReady", Self::ServerReady),
        ("/inference.GRPCInferenceService/ServerMetadata", Self::ServerMetadata),
        ("/inference.GRPCInferenceService/ModelReady", Self::ModelReady),
        ("/inference.GRPCInferenceService/ModelMetadata", Self::ModelMetadata),
        ("/inference.GRPCInferenceService/ModelInfer", Self::ModelInfer),
        ("/inference.GRPCInferenceService/RepositoryIndex", Self::RepositoryIndex),
        ("/grpc.health.v1.Health/Check", Self::Health),
    ];

    /// Whether it is about models, which are not there before the server is ready.
    fn needs_models(self) -> bool {
        matches!(self, Self::ModelReady | Self::ModelMetadata | Self::ModelInfer | Self::RepositoryIndex)
    }

    /// What a call takes, if that is limited.
    fn class(self) -> Option<Class> {
        (self == Self::ModelInfer).then_some(Class::Predict)
    }

    /// What a call needs: liveness is everybody's, as over HTTP.
    fn needs(self) -> Needs {
        match self {
            Self::ServerLive | Self::ServerReady | Self::Health => Needs::Nothing,
            Self::ServerMetadata => Needs::OneOf(Scopes::ALL),
            Self::ModelReady | Self::ModelMetadata => Needs::OneOf(Scopes::of(&[Scope::Read, Scope::Predict])),
            Self::ModelInfer => Needs::OneOf(Scopes::of(&[Scope::Predict])),
            Self::RepositoryIndex => Needs::OneOf(Scopes::of(&[Scope::Read])),
        }
    }

    async fn answer(self, app: &App, holder: &Holder, message: Bytes, headers: &HeaderMap) -> Result<tonic::Response<Vec<u8>>, ApiError> {
        if self.needs_models() && !app.service.is_ready() {
            return Err(ServiceError::Unavailable("the server is starting or stopping; try again in a moment").into());
        }
        let reply = match self {
            Self::ServerLive => Ok(truth(true)),
            Self::ServerReady => Ok(truth(app.service.is_ready())),
            Self::ServerMetadata => Ok(server_metadata()),
            Self::ModelReady => model_ready(app, holder, &message).await,
            Self::ModelMetadata => model_metadata(app, holder, &message).await,
            Self::ModelInfer => return infer(app, holder, message, headers).await,
            Self::RepositoryIndex => Ok(index(app, holder)),
            // 1 is SERVING, 2 NOT_SERVING.
            Self::Health => {
                let mut reply = Message::default();
                reply.integer(1, if app.service.is_ready() { 1 } else { 2 });
                Ok(reply.0)
            }
        };
        reply.map(tonic::Response::new)
    }
}

/// Any call, with its id, its log line and its metrics.
pub(in crate::http) async fn call(State(app): State<App>, mut request: Request) -> Response {
    let begun = Instant::now();
    let id = middleware::request_id(&request);
    let method = Method::ALL.into_iter().find(|(path, _)| *path == request.uri().path());
    let route = method.map_or("unmatched", |(path, _)| path);
    let needs = method.map_or(Needs::OneOf(Scopes::ALL), |(_, method)| method.needs());
    let admitted = access::authorise(&app, request.headers_mut(), needs);
    let key = admitted.as_ref().ok().and_then(Holder::id);
    let mut response = if is_grpc(request.headers()) {
        match &admitted {
            Ok(holder) => unary(&app, holder, method.map(|(_, method)| method), request, id.to_str().unwrap_or_default()).await,
            Err(refusal) => self::status(refusal, id.to_str().unwrap_or_default()).into_http(),
        }
    } else {
        StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response()
    };
    let status = match response.headers().get("grpc-status") {
        Some(code) => format!("{:?}", Code::from_bytes(code.as_bytes())),
        None if response.status() == StatusCode::OK => "OK".to_owned(),
        None => response.status().as_str().to_owned(),
    };
    let seconds = begun.elapsed().as_secs_f64();
    tracing::info!(target: "lsqd::http", request_id = id.to_str().unwrap_or("unknown"), key, method = "gRPC", route, status, seconds, "answered");
    metrics::counter!(telemetry::REQUESTS, "route" => route, "method" => "gRPC", "status" => status).increment(1);
    metrics::histogram!(telemetry::REQUEST_SECONDS, "route" => route).record(seconds);
    response.headers_mut().insert("x-request-id", id);
    response
}

fn is_grpc(headers: &HeaderMap) -> bool {
    extract::media_type(headers, header::CONTENT_TYPE).is_some_and(|media| media.starts_with("application/grpc"))
}

/// A panic in one call is an error of that one.
pub(in crate::http) fn from_panic(panic: Box<dyn std::any::Any + Send + 'static>) -> Response {
    status(&error::of_panic(panic), "unknown").into_http()
}

/// The status of an error, with the stable code in its metadata.
fn status(error: &ApiError, request_id: &str) -> Status {
    error.log(request_id);
    let (status, code, detail) = error.told();
    let kind = match status {
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Code::InvalidArgument,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => Code::FailedPrecondition,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS | StatusCode::INSUFFICIENT_STORAGE => Code::ResourceExhausted,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        _ => Code::Internal,
    };
    let mut status = Status::new(kind, detail);
    status.metadata_mut().insert("lsqd-code", MetadataValue::from_static(code));
    if let Some(seconds) = error.retry_after() {
        // As clients with a retry policy read it.
        status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from(u64::from(seconds) * 1000));
    }
    status
}

/// One message in, one out.
async fn unary(app: &App, holder: &Holder, method: Option<Method>, request: Request, id: &str) -> Response {
    let Some(method) = method else {
        return Status::unimplemented("there is no such method here").into_http();
    };
    let (mut parts, body) = request.into_parts();
    let class = method.class();
    let arrived = async {
        class.map_or(Ok(()), |class| app.overload.look(class, Instant::now()))?;
        let body = framed(app, &parts.headers, body).await?;
        let slot = class.map(|class| Overload::enter(&*app.overload, class, Instant::now())).transpose()?;
        Ok::<_, ApiError>((body, slot))
    };
    let (body, _slot) = match arrived.await {
        Ok(arrived) => arrived,
        Err(error) => return status(&error, id).into_http(),
    };
    let mut server = tonic::server::Grpc::new(Bare)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Deflate)
        .max_decoding_message_size(app.body_limit);
    // Who packs is answered packed; clients say that they could read it also where it would only cost time.
    server = match parts.headers.get(&ENCODING).map(HeaderValue::as_bytes) {
        Some(b"gzip") => server.send_compressed(CompressionEncoding::Gzip),
        Some(b"deflate") => server.send_compressed(CompressionEncoding::Deflate),
        _ => server,
    };
    if body.first() == Some(&PLAIN) && packed::is_known(&parts.headers, &ENCODING) {
        // It was unpacked already.
        parts.headers.remove(&ENCODING);
    }
    let service = tower::service_fn(|message: tonic::Request<Bytes>| async {
        let (metadata, _, message) = message.into_parts();
        let reply = method.answer(app, holder, message, &metadata.into_headers()).await;
        reply.map_err(|error| status(&error, id))
    });
    server.unary(service, Request::from_parts(parts, Full::new(body))).await.map(Body::new)
}

/// A body that is one frame, as long as it says. A packed message is unpacked, within the limits of any packed body, unless it is packed in a
/// way that is not known here: that one is left to tonic, which says so as the protocol wants it.
async fn framed(app: &App, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let body = extract::whole(body, app.body_limit.saturating_add(PREFIX)).await?;
    let length = body.get(1..PREFIX).and_then(|length| length.first_chunk()).map(|length| u32::from_be_bytes(*length) as usize);
    if length.is_none() || length != body.len().checked_sub(PREFIX) {
        return Err(malformed("", "the body is not one message, or is cut off").into());
    }
    if body[0] != PACKED {
        return Ok(body);
    }
    let Some(unpacked) = packed::message(app, headers, &ENCODING, body.slice(PREFIX..)) else { return Ok(body) };
    let message = extract::whole(unpacked, app.body_limit).await?;
    let length = u32::try_from(message.len()).map_err(|_| ServiceError::TooLarge("the message is larger than 4 GiB".to_owned()))?;
    Ok([&[PLAIN][..], &length.to_be_bytes(), &message].concat().into())
}

/// The codec of messages that are only bytes.
struct Bare;

impl Codec for Bare {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bare {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &message);
        Ok(())
    }
}

impl Decoder for Bare {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = bytes::Buf::remaining(buffer);
        Ok(Some(bytes::Buf::copy_to_bytes(buffer, length)))
    }
}

impl From<NotAMessage> for ApiError {
    fn from(error: NotAMessage) -> Self {
        malformed("", error.to_string()).into()
    }
}

/// A reply whose one member says yes or no.
fn truth(value: bool) -> Vec<u8> {
    let mut reply = Message::default();
    reply.integer(1, value.into());
    reply.0
}

fn server_metadata() -> Vec<u8> {
    let mut reply = Message::default();
    reply.text(1, NAME);
    reply.text(2, env!("CARGO_PKG_VERSION"));
    reply.0
}

/// The name and the version of a model, as `ModelReadyRequest` and `ModelMetadataRequest` have them.
fn named(message: &[u8]) -> Result<(String, String), ApiError> {
    let (mut name, mut version) = (String::new(), String::new());
    for field in Fields::of(message) {
        match field? {
            (1, field) => name = field.text()?.to_owned(),
            (2, field) => version = field.text()?.to_owned(),
            _ => {}
        }
    }
    Ok((name, version))
}

async fn model_ready(app: &App, holder: &Holder, message: &[u8]) -> Result<Vec<u8>, ApiError> {
    let (name, which) = named(message)?;
    if !holder.sees_model(&name) {
        return Ok(truth(false));
    }
    let found = if which.is_empty() { app.service.version(&name).await } else { app.service.version_of(&name, &which).await };
    match found {
        Ok(_) => Ok(truth(true)),
        // Not an error: that is what was asked.
        Err(ServiceError::ModelNotFound | ServiceError::VersionNotFound | ServiceError::AliasNotFound) => Ok(truth(false)),
        Err(error) => Err(error.into()),
    }
}

async fn model_metadata(app: &App, holder: &Holder, message: &[u8]) -> Result<Vec<u8>, ApiError> {
    let (name, which) = named(message)?;
    access::model(holder, &name)?;
    let (versions, version) = if which.is_empty() {
        let (model, version, _) = app.service.version(&name).await?;
        (model.versions.keys().map(u64::to_string).collect::<Vec<_>>(), version)
    } else {
        let (_, version, _) = app.service.version_of(&name, &which).await?;
        (vec![version.number.to_string()], version)
    };
    let mut reply = Message::default();
    reply.text(1, &name);
    versions.iter().for_each(|version| reply.text(2, version));
    reply.text(3, NAME);
    let (inputs, outputs) = described(&version);
    for (number, tensors) in [(4, inputs), (5, outputs)] {
        tensors.iter().for_each(|tensor| reply.bytes(number, &tensor_metadata(tensor)));
    }
    Ok(reply.0)
}

fn tensor_metadata(tensor: &Described) -> Vec<u8> {
    let mut message = Message::default();
    message.text(1, &tensor.name);
    message.text(2, tensor.datatype);
    message.integers(3, &tensor.shape);
    message.0
}

/// Every model, with the version that it serves.
fn index(app: &App, holder: &Holder) -> Vec<u8> {
    let mut reply = Message::default();
    for model in app.service.catalogue().all().values().filter(|model| holder.sees_model(&model.name)) {
        for version in model.versions.keys() {
            let mut entry = Message::default();
            entry.text(1, &model.name);
            entry.text(2, &version.to_string());
            entry.text(3, "READY");
            reply.bytes(1, &entry.0);
        }
    }
    reply.0
}

/// A `ModelInferRequest`, whose tensors still lie in the message.
#[derive(Default)]
struct Inference<'a> {
    model: &'a str,
    version: &'a str,
    id: &'a str,
    parameters: Map<String, Value>,
    inputs: Vec<Input<'a>>,
    outputs: Vec<&'static str>,
    raw: Vec<&'a [u8]>,
}

#[derive(Default)]
struct Input<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: Vec<i64>,
    contents: Option<&'a [u8]>,
}

impl<'a> Inference<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, ApiError> {
        let mut request = Self::default();
        for (count, field) in Fields::of(message).enumerate() {
            if count > MOST_PARTS {
                return Err(malformed("", format!("the message has more than {MOST_PARTS} fields")).into());
            }
            match field? {
                (1, field) => request.model = field.text()?,
                (2, field) => request.version = field.text()?,
                (3, field) => request.id = field.text()?,
                (4, field) => {
                    let (name, value) = parameter(field)?;
                    request.parameters.insert(name, value);
                }
                (5, field) => {
                    let input = Input::parse(field.bytes()?, request.inputs.len())?;
                    request.inputs.push(input);
                }
                (6, field) => {
                    let name = output_name(field.bytes()?)?;
                    let known = output(name, request.outputs.len(), &request.outputs)?;
                    request.outputs.push(known);
                }
                (7, field) => request.raw.push(field.bytes()?),
                _ => {}
            }
        }
        Ok(request)
    }

    /// The tensors; their elements stand after them all, or in each.
    fn tensors(&self) -> Result<Vec<Tensor<'a>>, ApiError> {
        if !self.raw.is_empty() && self.raw.len() != self.inputs.len() {
            let detail = format!("there are {} inputs, and `raw_input_contents` of {}", self.inputs.len(), self.raw.len());
            return Err(malformed("/raw_input_contents", detail).into());
        }
        let mut tensors = Vec::with_capacity(self.inputs.len());
        for (place, input) in self.inputs.iter().enumerate() {
            let at = |member: &str| format!("/inputs/{place}/{member}");
            let datatype = Datatype::parse(input.datatype).ok_or_else(|| malformed(at("datatype"), "there is no such datatype"))?;
            let shape = input.shape.iter().map(|extent| u64::try_from(*extent)).collect::<Result<Vec<_>, _>>();
            let shape = shape.map_err(|_| malformed(at("shape"), "an extent is not negative"))?;
            let elements = match (self.raw.get(place), input.contents) {
                (Some(raw), None) => Elements::Binary(raw),
                (None, Some(contents)) => elements(contents, datatype, &shape, place)?,
                (Some(_), Some(_)) => {
                    let detail = "a tensor's data stand in `contents` or in `raw_input_contents`, not in both";
                    return Err(malformed(at("contents"), detail).into());
                }
                // Of no elements, nothing is written.
                (None, None) => elements(&[], datatype, &shape, place)?,
            };
            tensors.push(Tensor { name: input.name.to_owned(), shape, datatype, elements });
        }
        Ok(tensors)
    }
}

impl<'a> Input<'a> {
    fn parse(message: &'a [u8], place: usize) -> Result<Self, ApiError> {
        let mut input = Self::default();
        for field in Fields::of(message) {
            match field? {
                (1, field) => input.name = field.text()?,
                (2, field) => input.datatype = field.text()?,
                (3, field) => {
                    if input.shape.len() + count_varints(field) > MOST_EXTENTS {
                        let detail = format!("a shape has at most {MOST_EXTENTS} extents");
                        return Err(malformed(format!("/inputs/{place}/shape"), detail).into());
                    }
                    for extent in varints(field) {
                        input.shape.push(extent? as i64);
                    }
                }
                (5, field) => input.contents = Some(field.bytes()?),
                _ => {}
            }
        }
        Ok(input)
    }
}

fn output_name(message: &[u8]) -> Result<&str, ApiError> {
    let mut name = "";
    for field in Fields::of(message) {
        if let (1, field) = field? {
            name = field.text()?;
        }
    }
    Ok(name)
}

/// An entry of the map of parameters.
fn parameter(entry: Field<'_>) -> Result<(String, Value), ApiError> {
    let (mut name, mut value) = (String::new(), Value::Null);
    for field in Fields::of(entry.bytes()?) {
        match field? {
            (1, field) => name = field.text()?.to_owned(),
            (2, field) => {
                for choice in Fields::of(field.bytes()?) {
                    value = match choice? {
                        (1, field) => Value::Bool(field.varint()? != 0),
                        (2, field) => Value::from(field.varint()? as i64),
                        (3, field) => Value::from(field.text()?),
                        (4, Field::Fixed64(bytes)) => Value::from(f64::from_le_bytes(bytes)),
                        (5, field) => Value::from(field.varint()?),
                        _ => continue,
                    };
                }
            }
            _ => {}
        }
    }
    Ok((name, value))
}

/// The list of `InferTensorContents` in which elements of a type stand.
fn list_of(datatype: Datatype) -> Option<(u32, &'static str)> {
    Some(match datatype {
        Datatype::Bool => (1, "bool_contents"),
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => (2, "int_contents"),
        Datatype::Int64 => (3, "int64_contents"),
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => (4, "uint_contents"),
        Datatype::Uint64 => (5, "uint64_contents"),
        Datatype::Fp32 => (6, "fp32_contents"),
        Datatype::Fp64 => (7, "fp64_contents"),
        Datatype::Bytes => (8, "bytes_contents"),
        Datatype::Fp16 | Datatype::Bf16 => return None,
    })
}

/// The elements of an `InferTensorContents`. As many as the shape says, or none is read: a byte of the message is eight in memory.
fn elements<'a>(contents: &'a [u8], datatype: Datatype, shape: &[u64], place: usize) -> Result<Elements<'a>, ApiError> {
    let pointer = format!("/inputs/{place}/contents");
    let Some((list, name)) = list_of(datatype) else {
        return Err(malformed(pointer, "elements of this datatype travel in `raw_input_contents`").into());
    };
    let (mut there, mut pieces) = (0, Vec::new());
    for field in Fields::of(contents) {
        let (number, field) = field?;
        if number != list {
            return Err(malformed(pointer, format!("elements of this datatype stand in `{name}`, and in no other list")).into());
        }
        there += match (datatype, field) {
            (Datatype::Fp32, Field::Bytes(bytes)) => bytes.len() / 4,
            (Datatype::Fp64, Field::Bytes(bytes)) => bytes.len() / 8,
            (Datatype::Fp32 | Datatype::Fp64 | Datatype::Bytes, _) => 1,
            _ => count_varints(field),
        };
        pieces.push(field);
    }
    let count = shape.iter().try_fold(1_u64, |count, extent| count.checked_mul(*extent));
    if count != Some(there as u64) {
        let said = count.map_or_else(|| "more elements than any machine holds".to_owned(), |count| format!("{count} elements"));
        return Err(malformed(format!("/inputs/{place}/shape"), format!("the shape says {said}, and there are {there}")).into());
    }
    match (datatype, pieces.as_slice()) {
        (Datatype::Fp32 | Datatype::Fp64, [Field::Bytes(packed)]) => return Ok(Elements::Binary(packed)),
        (Datatype::Bytes, _) => {
            let texts = pieces.into_iter().map(Field::bytes).collect::<Result<_, _>>()?;
            return Ok(Elements::Slices(texts));
        }
        _ => {}
    }
    let mut values = Vec::with_capacity(there);
    for piece in pieces {
        match (datatype, piece) {
            (Datatype::Fp32, Field::Fixed32(bytes)) => values.push(f32::from_le_bytes(bytes).into()),
            (Datatype::Fp32, Field::Bytes(bytes)) => {
                values.extend(bytes.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))));
            }
            (Datatype::Fp64, Field::Fixed64(bytes)) => values.push(f64::from_le_bytes(bytes)),
            (Datatype::Fp64, Field::Bytes(bytes)) => values.extend(bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes))),
            (Datatype::Fp32 | Datatype::Fp64, _) => return Err(NotAMessage.into()),
            (_, integers) => {
                for value in varints(integers) {
                    let value = value?;
                    values.push(match datatype {
                        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 | Datatype::Uint64 | Datatype::Bool => value as f64,
                        _ => value as i64 as f64,
                    });
                }
            }
        }
    }
    Ok(Elements::Numbers(values))
}

async fn infer(app: &App, holder: &Holder, message: Bytes, headers: &HeaderMap) -> Result<tonic::Response<Vec<u8>>, ApiError> {
    let (name, which) = {
        let request = Inference::parse(&message)?;
        (request.model.to_owned(), request.version.to_owned())
    };
    access::model(holder, &name)?;
    let answerer = match which.as_str() {
        "" => app.service.answerer(&name, Caller { key: None, header: &extract::header_of(headers) }).await?,
        which => app.service.answerer_of(&name, which).await?,
    };
    let large = message.len() > LARGE;
    let service = app.service.clone();
    let work = move || -> Result<tonic::Response<Vec<u8>>, ApiError> {
        let request = Inference::parse(&message)?;
        let tensors = request.tensors()?;
        let asked = Asked::read(&tensors, request.outputs, &request.parameters, &answerer)?;
        let answered = asked.answer(&service, answerer)?;
        let mut metadata = HeaderMap::new();
        extract::name_arm(&mut metadata, answered.predicted.arm.as_deref());
        let mut response = tonic::Response::new(write(&name, request.id, &answered));
        *response.metadata_mut() = MetadataMap::from_headers(metadata);
        Ok(response)
    };
    if large { off_thread(work).await } else { work() }
}

/// A `ModelInferResponse`, its elements in `raw_output_contents`, where every client looks first.
fn write(name: &str, id: &str, answered: &Answered) -> Vec<u8> {
    let predicted = &answered.predicted;
    let mut reply = Message::default();
    reply.text(1, name);
    reply.text(2, &predicted.version.number.to_string());
    reply.text(3, id);
    let mut parameter = |name: &[u8], value: &Message| {
        let mut entry = Message::default();
        entry.bytes(1, name);
        entry.bytes(2, &value.0);
        reply.bytes(4, &entry.0);
    };
    let mut sequence = Message::default();
    // Also when it is 0: which member is there says what it is.
    sequence.plain(2 << 3);
    sequence.plain(predicted.sequence);
    parameter(b"sequence", &sequence);
    if let Some(name) = &predicted.arm {
        let mut arm = Message::default();
        arm.bytes(3, name.as_bytes());
        parameter(b"arm", &arm);
    }
    for name in &answered.outputs {
        reply.bytes(5, &tensor_metadata(&answered.describe(name)));
    }
    for name in &answered.outputs {
        let elements = answered.elements(name);
        reply.begin(6, elements.size());
        elements.push_binary(&mut reply.0);
    }
    reply.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn contents(number: u32, bytes: &[u8]) -> Vec<u8> {
        let mut message = Message::default();
        message.bytes(number, bytes);
        message.0
    }

    #[test]
    fn elements_are_read_from_the_list_of_their_type_packed_or_not() {
        let shape = [2];
        let doubles = contents(7, &[1.5_f64.to_le_bytes(), (-2.0_f64).to_le_bytes()].concat());
        let packed = [1.5_f64.to_le_bytes(), (-2.0_f64).to_le_bytes()].concat();
        assert_eq!(elements(&doubles, Datatype::Fp64, &shape, 0).unwrap(), Elements::Binary(&packed));
        let single: Vec<u8> = [1.5_f64, -2.0].iter().flat_map(|value| [&[7 << 3 | 1][..], &value.to_le_bytes()].concat()).collect();
        assert_eq!(elements(&single, Datatype::Fp64, &shape, 0).unwrap(), Elements::Numbers(vec![1.5, -2.0]));
        let mut integers = Message::default();
        integers.integers(2, &[-3, 4]);
        assert_eq!(elements(&integers.0, Datatype::Int16, &shape, 0).unwrap(), Elements::Numbers(vec![-3.0, 4.0]));
        let texts = [contents(8, b"north"), contents(8, b"")].concat();
        assert_eq!(elements(&texts, Datatype::Bytes, &shape, 0).unwrap(), Elements::Slices(vec![b"north", b""]));
        assert_eq!(elements(&contents(1, &[1, 0]), Datatype::Bool, &shape, 0).unwrap(), Elements::Numbers(vec![1.0, 0.0]));
        assert_eq!(elements(&[], Datatype::Fp64, &[0], 0).unwrap(), Elements::Numbers(vec![]));
    }

    #[test]
    fn elements_that_are_not_what_the_tensor_says_are_refused() {
        for (message, datatype, shape) in [
            (contents(6, &[0; 8]), Datatype::Fp64, vec![1]),
            (contents(7, &[0; 8]), Datatype::Fp64, vec![2]),
            (contents(7, &[0; 8]), Datatype::Fp64, vec![1 << 40, 1 << 40]),
            (contents(7, &[0; 8]), Datatype::Fp16, vec![1]),
            (contents(2, &[0xff]), Datatype::Int32, vec![0]),
            (contents(2, &[0x80; 11]), Datatype::Int32, vec![1]),
            (vec![7 << 3, 1], Datatype::Fp64, vec![1]),
            (vec![8 << 3, 1], Datatype::Bytes, vec![1]),
            (vec![0xff], Datatype::Int64, vec![0]),
        ] {
            assert!(elements(&message, datatype, &shape, 0).is_err(), "{message:?}");
        }
    }
}
