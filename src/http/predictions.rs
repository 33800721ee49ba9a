//! `POST /v1/models/{name}/predictions`: a stored dataset to a new one, as a job.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::error::{ApiError, Code};
use super::extract::Path;
use super::predict::{interval_of, moment_of};
use super::wire::{Fields, refuse};
use super::{App, datasets, extract, jobs, models};
use crate::model::answers::MEMBERS;
use crate::model::{Question, Wanted};
use crate::service::{DatasetQuestion, Holder, JobState, ServiceError};

pub(super) async fn create(
    State(app): State<App>,
    Path(name): Path<String>,
    holder: Holder,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (body, idempotency) = extract::keyed_body(&holder, &headers, body, app.body_limit, &["predictions", &name]).await?;
    let asked = read(name, &body, extract::if_match(&headers))?;
    if !holder.sees_dataset(&asked.dataset) {
        return Err(ServiceError::FitDatasetNotFound.into());
    }
    if !holder.sees_dataset(&asked.into) {
        return Err(ApiError::new(Code::Forbidden, "this key does not show datasets of the name in `into`"));
    }
    let wait = extract::wait(&headers);
    let predicted = app.service.predict_dataset(asked, wait, idempotency).await?;
    let job = predicted.value;
    let mut response = match (job.state, job.problem.clone(), job.kind.dataset()) {
        (_, Some(problem), _) if !wait.is_zero() => ApiError::from(problem).into_response(),
        (JobState::Succeeded, None, Some(dataset)) if !wait.is_zero() => {
            let mut response = datasets::reply(&holder, &app.service.describe_dataset(dataset).await?, StatusCode::CREATED, false);
            if let Ok(location) = HeaderValue::from_str(&format!("/v1/datasets/{}", models::path_segment(dataset))) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            response
        }
        // Who does not wait is told of the job, even if it is over by now.
        _ => jobs::accepted(&job),
    };
    if predicted.replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn read(reference: String, body: &[u8], if_match: Option<Vec<String>>) -> Result<DatasetQuestion, ApiError> {
    let mut fields = Fields::parse(body)?;
    let (dataset, into) = (fields.required_string("dataset"), fields.required_string("into"));
    let columns = fields.strings("columns").unwrap_or_default();
    let wanted = match fields.strings("fields") {
        None => Wanted::USUAL,
        Some(names) => Wanted::listed(names.iter().map(String::as_str)).unwrap_or_else(|| {
            fields.fault("fields", format!("`fields` lists {MEMBERS}"));
            Wanted::USUAL
        }),
    };
    let question =
        Question { interval: interval_of(&mut fields), explain: fields.boolean("explain").unwrap_or(false), ..Question::default() };
    let at = moment_of(&mut fields);
    let skip_missing = match fields.string("missing").as_deref() {
        None | Some("error") => false,
        Some("blank") => true,
        Some(_) => {
            fields.fault("missing", "`missing` is error or blank");
            false
        }
    };
    refuse(Code::InvalidRequest, fields.into_faults())?;
    Ok(DatasetQuestion { reference, dataset, into, columns, question, wanted, at, skip_missing, if_match })
}
