//! Health, metrics, the contract itself, and what stands at addresses where nothing is.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use super::error::{ApiError, Code};
use super::{App, serving};
use crate::service::Holder;

/// The contract, as it was when this binary was built.
const OPENAPI: &str = include_str!("../../openapi.yaml");

pub(super) async fn live() -> Response {
    Json(json!({"live": true})).into_response()
}

pub(super) async fn ready(State(app): State<App>) -> Response {
    let ready = app.service.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = (status, Json(json!({"ready": ready}))).into_response();
    if !ready {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

pub(super) async fn metrics(State(app): State<App>, holder: Holder) -> Result<Response, ApiError> {
    // Figures of all models stand in them, by name.
    if !holder.sees_all() {
        return Err(ApiError::new(Code::Forbidden, "the metrics tell of every model, and this key shows some"));
    }
    app.service.gauge().await;
    app.overload.gauge();
    let by_model = app.service.model_metrics() + &app.service.input_metrics();
    Ok(text("text/plain; version=0.0.4; charset=utf-8", (app.metrics)() + &by_model))
}

pub(super) async fn openapi() -> Response {
    text("application/yaml", OPENAPI)
}

pub(super) async fn home(State(app): State<App>, holder: Holder) -> Response {
    let models = app.service.catalogue().all().keys().filter(|name| holder.sees_model(name)).count();
    text(
        "text/plain; charset=utf-8",
        format!(
            "lsqd {}: a least-squares prediction service\n\n{models} model(s) here.\n\n\
             GET /openapi.yaml     the whole contract\n\
             GET /v1/datasets      what was uploaded\n\
             GET /v1/models        what was fitted\n\
             GET /readyz           whether it is ready\n\
             GET /metrics          what it is doing\n",
            env!("CARGO_PKG_VERSION")
        ),
    )
}

fn text(media: &'static str, body: impl Into<axum::body::Body>) -> Response {
    ([(HeaderName::from_static("content-type"), HeaderValue::from_static(media))], body.into()).into_response()
}

pub(super) async fn not_found() -> ApiError {
    ApiError::new(Code::NotFound, "there is nothing at this address; GET /openapi.yaml lists what there is")
}

pub(super) async fn method_not_allowed(uri: Uri) -> Response {
    let error = ApiError::new(Code::MethodNotAllowed, "this address does not do that; GET /openapi.yaml lists what it does");
    match serving::allowed(uri.path()) {
        Some(methods) => ([(header::ALLOW, methods)], error).into_response(),
        // The router says it.
        None => error.into_response(),
    }
}
