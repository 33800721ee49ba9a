//! `/v1/jobs`.

use std::convert::Infallible;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::extract::Path;
use crate::service::{Holder, Job, JobState, ServiceError};

/// A job as the contract shows it.
fn view(job: &Job) -> Value {
    let problem = job.problem.clone().map(|problem| {
        let error = ApiError::from(problem);
        serde_json::to_value(error.problem(&job.id)).unwrap_or_default()
    });
    json!({
        "id": job.id, "kind": job.kind.as_str(), "state": job.state.as_str(),
        "progress": {"stage": job.stage, "done": job.done, "total": job.total, "loss": job.loss},
        "model": job.model, "version": job.version, "dataset": job.kind.dataset(), "problem": problem,
    })
}

/// `202`, with where to look.
pub(super) fn accepted(job: &Job) -> Response {
    let mut response = (StatusCode::ACCEPTED, Json(view(job))).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/jobs/{}", job.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// A job of what is not there for them is not there either.
fn seen(holder: &Holder, job: &Job) -> Result<(), ServiceError> {
    let sees = holder.sees_model(&job.model) && job.kind.dataset().is_none_or(|dataset| holder.sees_dataset(dataset));
    if sees { Ok(()) } else { Err(ServiceError::JobNotFound) }
}

pub(super) async fn show(State(app): State<App>, Path(id): Path<String>, holder: Holder) -> Result<Response, ApiError> {
    let job = app.service.job(&id).await?;
    seen(&holder, &job)?;
    let mut response = Json(view(&job)).into_response();
    if !job.state.is_over() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    Ok(response)
}

pub(super) async fn cancel(State(app): State<App>, Path(id): Path<String>, holder: Holder) -> Result<Response, ApiError> {
    seen(&holder, &app.service.job(&id).await?)?;
    let job = app.service.cancel_job(&id).await?;
    let status = if job.state.is_over() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = (status, Json(view(&job))).into_response();
    if status == StatusCode::ACCEPTED {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    Ok(response)
}

/// Server-sent events: the job now and after each change, until it is over.
pub(super) async fn events(State(app): State<App>, Path(id): Path<String>, holder: Holder) -> Result<Response, ApiError> {
    let (job, watch) = app.service.watch_job(&id).await?;
    seen(&holder, &job)?;
    let event = |job: &Job| {
        let name = if matches!(job.state, JobState::Queued | JobState::Running) { "progress" } else { job.state.as_str() };
        Ok::<_, Infallible>(Bytes::from(format!("event: {name}\ndata: {}\n\n", view(job))))
    };
    let over = job.state.is_over();
    let first = futures_util::stream::iter([event(&job)]);
    let rest = futures_util::stream::unfold((watch, over), async move |(watch, over)| {
        let mut watch = watch?;
        if over || watch.changed().await.is_err() {
            return None;
        }
        let job = watch.borrow_and_update().clone();
        Some((job.clone(), (Some(watch), job.state.is_over())))
    })
    .map(move |job| event(&job));
    let mut response = Response::new(Body::from_stream(first.chain(rest)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
