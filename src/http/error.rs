//! RFC 9457 problems: the one place that knows status codes.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::frame::Fault;
use crate::service::ServiceError;

/// An error on its way out; the middleware adds the request's id and writes it.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: String,
    errors: Vec<Fault>,
    /// Logged, never sent.
    cause: Option<String>,
    retry_after: Option<u32>,
}

macro_rules! codes {
    ($($name:ident = $status:ident, $code:literal, $title:literal;)*) => {
        #[derive(Clone, Copy, Debug)]
        pub(super) enum Code { $($name),* }
        impl Code {
            fn parts(self) -> (StatusCode, &'static str, &'static str) {
                match self { $(Self::$name => (StatusCode::$status, $code, $title)),* }
            }
        }
        /// Every stable error code, for the test that compares them with `openapi.yaml`.
        pub const CODES: &[&str] = &[$($code),*];
    };
}

codes! {
    BadSyntax = BAD_REQUEST, "bad_syntax", "The body is not of its format";
    BodyCut = BAD_REQUEST, "body_cut", "The body was cut off";
    Timeout = REQUEST_TIMEOUT, "timeout", "The request took too long to arrive";
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "This format is not read here";
    InvalidRequest = UNPROCESSABLE_ENTITY, "invalid_request", "The request cannot be taken";
    InvalidRows = UNPROCESSABLE_ENTITY, "invalid_rows", "Some rows cannot be taken";
    InvalidName = UNPROCESSABLE_ENTITY, "invalid_name", "This is not a name";
    UnknownColumn = UNPROCESSABLE_ENTITY, "unknown_column", "The dataset has no such column";
    UnknownDataset = UNPROCESSABLE_ENTITY, "unknown_dataset", "The request names a dataset that does not exist";
    NotSupported = UNPROCESSABLE_ENTITY, "not_supported", "This version does not do that";
    NotASeries = UNPROCESSABLE_ENTITY, "not_a_series", "The version takes no past values of its target";
    FitFailed = UNPROCESSABLE_ENTITY, "fit_failed", "The data cannot be fitted";
    IdempotencyMismatch = UNPROCESSABLE_ENTITY, "idempotency_mismatch", "The key was used with another request";
    Unauthorized = UNAUTHORIZED, "unauthorized", "A key is needed";
    Forbidden = FORBIDDEN, "forbidden", "The key does not allow that";
    ForeignOrigin = FORBIDDEN, "foreign_origin", "A page of another site asks";
    UnknownHost = FORBIDDEN, "unknown_host", "The server does not answer to this name";
    NotFound = NOT_FOUND, "not_found", "There is nothing at this address";
    DatasetNotFound = NOT_FOUND, "dataset_not_found", "No such dataset";
    ModelNotFound = NOT_FOUND, "model_not_found", "No such model";
    VersionNotFound = NOT_FOUND, "version_not_found", "No such version";
    AliasNotFound = NOT_FOUND, "alias_not_found", "No such alias";
    TrafficNotFound = NOT_FOUND, "traffic_not_found", "No split of traffic";
    RowNotFound = NOT_FOUND, "row_not_found", "No such row";
    UpdateNotFound = NOT_FOUND, "update_not_found", "No such update";
    PredictionNotFound = NOT_FOUND, "prediction_not_found", "No such remembered prediction";
    JobNotFound = NOT_FOUND, "job_not_found", "No such job";
    KeyNotFound = NOT_FOUND, "key_not_found", "No such key";
    MethodNotAllowed = METHOD_NOT_ALLOWED, "method_not_allowed", "The address does not do that";
    Conflict = CONFLICT, "conflict", "Not in the present state";
    Cancelled = CONFLICT, "cancelled", "The job was cancelled";
    PreconditionFailed = PRECONDITION_FAILED, "precondition_failed", "The resource has changed";
    PayloadTooLarge = PAYLOAD_TOO_LARGE, "payload_too_large", "Past a limit";
    QueueFull = TOO_MANY_REQUESTS, "queue_full", "Too many fits are waiting";
    RateLimited = TOO_MANY_REQUESTS, "rate_limited", "Too many requests with this key";
    Interrupted = SERVICE_UNAVAILABLE, "interrupted", "The server stopped before the job was done";
    Unavailable = SERVICE_UNAVAILABLE, "unavailable", "Not now";
    Overloaded = SERVICE_UNAVAILABLE, "overloaded", "Too many requests at the same time";
    Quarantined = SERVICE_UNAVAILABLE, "quarantined", "What is stored there is damaged";
    DiskFull = INSUFFICIENT_STORAGE, "disk_full", "There is no room left";
    Internal = INTERNAL_SERVER_ERROR, "internal", "A fault of the server";
}

impl ApiError {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        let (status, code, title) = code.parts();
        let retry_after = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS).then_some(1);
        Self { status, code, title, detail: detail.into(), errors: Vec::new(), cause: None, retry_after }
    }

    fn with(mut self, errors: Vec<Fault>) -> Self {
        self.errors = errors;
        self
    }

    /// The same, to be tried again after so long.
    pub(super) fn after(mut self, wait: Duration) -> Self {
        // Whole seconds, as the header wants them, and never too early.
        self.retry_after = Some(u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1));
        self
    }

    /// Seconds until it may be tried again.
    pub(super) fn retry_after(&self) -> Option<u32> {
        self.retry_after
    }

    /// The problem as a value, for a job that failed.
    pub(super) fn problem(&self, request_id: &str) -> Problem<'_> {
        Problem {
            r#type: format!("/docs/problems#{}", self.code),
            title: self.title,
            status: self.status.as_u16(),
            detail: clipped(&self.detail),
            code: self.code,
            request_id: request_id.to_owned(),
            errors: self.errors.iter().map(Named::of).collect(),
            error: clipped(&self.detail),
        }
    }

    /// Logs what is never sent.
    pub(super) fn log(&self, request_id: &str) {
        if let Some(cause) = &self.cause {
            tracing::error!(request_id, cause, "a request failed by a fault of the server");
        }
    }

    /// The status, the stable code, and what is told, for protocols that have other statuses.
    pub(super) fn told(&self) -> (StatusCode, &'static str, &str) {
        (self.status, self.code, clipped(&self.detail))
    }

    /// The whole response, with the request's id.
    pub(super) fn render(&self, request_id: &str) -> Response {
        self.log(request_id);
        // A struct of strings and numbers always encodes.
        let body = serde_json::to_vec(&self.problem(request_id)).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"lsqd\""));
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Characters of a text in a problem. What is wrong may be a name of megabytes, and is told in part.
const TOLD: usize = 1000;

fn clipped(text: &str) -> &str {
    text.char_indices().nth(TOLD).map_or(text, |(end, _)| &text[..end])
}

/// The body of an error.
#[derive(Debug, Serialize)]
pub(super) struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    request_id: String,
    errors: Vec<Named<'a>>,
    /// Open Inference clients read only this member.
    error: &'a str,
}

#[derive(Debug, Serialize)]
struct Named<'a> {
    pointer: &'a str,
    /// In a stream, where faults are named by line.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    detail: &'a str,
}

impl<'a> Named<'a> {
    fn of(fault: &'a Fault) -> Self {
        let line = fault.pointer.strip_prefix("/lines/").and_then(|rest| rest.split('/').next()).and_then(|line| line.parse().ok());
        Self { pointer: clipped(&fault.pointer), line, detail: clipped(&fault.detail) }
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let detail = error.to_string();
        let plain = |code| Self::new(code, detail.clone());
        // A disk that spoils what it keeps is no fault of the request, nor one that another try mends.
        if let Some(what) = error.damage() {
            let mut quarantined = Self::new(Code::Quarantined, ServiceError::Quarantined(what).to_string());
            quarantined.cause = Some(detail);
            return quarantined;
        }
        if error.is_full() {
            return Self::new(Code::DiskFull, ServiceError::DiskFull.to_string());
        }
        match error {
            ServiceError::Syntax(fault) => plain(Code::BadSyntax).with(vec![fault]),
            ServiceError::Rows(faults) => plain(Code::InvalidRows).with(faults.into_vec()),
            ServiceError::Request(faults) => plain(Code::InvalidRequest).with(faults),
            ServiceError::NotSupported(faults) => plain(Code::NotSupported).with(faults),
            ServiceError::NotASeries(_) => plain(Code::NotASeries),
            ServiceError::UnknownColumn(faults) => plain(Code::UnknownColumn).with(faults),
            ServiceError::FitDatasetNotFound => {
                let fault = Fault { pointer: "/dataset".to_owned(), detail: detail.clone() };
                plain(Code::UnknownDataset).with(vec![fault])
            }
            ServiceError::MediaType(_) => plain(Code::UnsupportedMediaType),
            ServiceError::TooLarge(_) => plain(Code::PayloadTooLarge),
            ServiceError::Name(_) => plain(Code::InvalidName),
            ServiceError::DatasetNotFound => plain(Code::DatasetNotFound),
            ServiceError::ModelNotFound => plain(Code::ModelNotFound),
            ServiceError::VersionNotFound => plain(Code::VersionNotFound),
            ServiceError::AliasNotFound => plain(Code::AliasNotFound),
            ServiceError::TrafficNotFound => plain(Code::TrafficNotFound),
            ServiceError::RowNotFound => plain(Code::RowNotFound),
            ServiceError::CannotUnlearn(faults) => plain(Code::Conflict).with(faults),
            ServiceError::UpdateNotFound => plain(Code::UpdateNotFound),
            ServiceError::PredictionNotFound(faults) => plain(Code::PredictionNotFound).with(faults),
            ServiceError::LabelConflict(faults) => plain(Code::Conflict).with(faults),
            ServiceError::JobNotFound => plain(Code::JobNotFound),
            ServiceError::KeyNotFound => plain(Code::KeyNotFound),
            ServiceError::KeyEnded => plain(Code::Unauthorized),
            ServiceError::Precondition => plain(Code::PreconditionFailed),
            ServiceError::IdempotencyMismatch => plain(Code::IdempotencyMismatch),
            ServiceError::Conflict(_) => plain(Code::Conflict),
            ServiceError::Fit(_) => plain(Code::FitFailed),
            ServiceError::Cancelled => plain(Code::Cancelled),
            ServiceError::Interrupted => plain(Code::Interrupted),
            ServiceError::QueueFull => plain(Code::QueueFull),
            ServiceError::Unavailable(_) => plain(Code::Unavailable),
            ServiceError::Quarantined(_) => plain(Code::Quarantined),
            ServiceError::DiskFull => plain(Code::DiskFull),
            ServiceError::BodyCut => plain(Code::BodyCut),
            ServiceError::BodyTimeout => plain(Code::Timeout),
            ServiceError::Store(_) | ServiceError::Internal(_) => internal(detail),
        }
    }
}

fn internal(cause: String) -> ApiError {
    let mut error = ApiError::new(Code::Internal, "the server failed to answer; its log says why, under this request's id");
    error.cause = Some(cause);
    error
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// For a request whose answer was given up half-way; nobody is there to read it but a client that stayed while the server ended.
pub(super) fn gone() -> Response {
    ApiError::new(Code::Unavailable, "the server is stopping").render("unknown")
}

/// A panic in one request is a 500 for that one.
pub(super) fn from_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
    of_panic(panic).into_response()
}

/// What is told of a panic: nothing; what is logged: its message.
pub(super) fn of_panic(panic: Box<dyn Any + Send + 'static>) -> ApiError {
    let cause = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic without a message".to_owned());
    internal(cause)
}
