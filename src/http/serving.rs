//! The addresses and forms of two other servers, for callers that move from them: the scoring server of MLflow (`/invocations`) and the REST API
//! of TensorFlow Serving (`/v1/models/{name}:predict`). Rows and answers are those of `predict`; here is only how they are written. The rows'
//! own forms are read in [`crate::frame::serving`].

use std::collections::BTreeMap;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::answers::{push_predictions, push_rows};
use super::error::{ApiError, Code};
use super::extract::{self, Path};
use super::inference::interval;
use super::predict::{off_thread, stamp};
use super::wire::{not_of_its_form, refuse};
use super::{App, access, operations};
use crate::frame::reply::{push_json_string, push_number};
use crate::frame::rows::{Rows, RowsOptions, parse_csv};
use crate::frame::serving::{Form, parse_served};
use crate::frame::{Fault, escaped};
use crate::model::Document;
use crate::model::prediction::Question;
use crate::service::{Answerer, Caller, Holder, Predicted, ServiceError};

const OPTIONS: RowsOptions = RowsOptions { allow_id: false, max_rows: 10_000_000 };

/// Whose forms are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Mlflow,
    TensorFlow,
}

impl Dialect {
    /// The members that hold rows.
    fn forms(self) -> &'static [Form] {
        match self {
            Self::Mlflow => &[Form::Split, Form::Records, Form::Instances, Form::Inputs],
            Self::TensorFlow => &[Form::Instances, Form::Inputs],
        }
    }

    /// The member beside them.
    fn beside(self) -> &'static str {
        match self {
            Self::Mlflow => "params",
            Self::TensorFlow => "signature_name",
        }
    }
}

/// `POST /invocations`: the model that the settings name, or the only one there is.
pub(super) async fn invocations(State(app): State<App>, holder: Holder, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let name = match &app.default_model {
        Some(name) => {
            access::model(&holder, name)?;
            name.to_string()
        }
        None => {
            let models = app.service.catalogue().all();
            let mut names = models.keys().filter(|name| holder.sees_model(name));
            match (names.next(), names.next()) {
                (Some(name), None) => name.clone(),
                (None, _) => return Err(ApiError::new(Code::ModelNotFound, "there is no model yet")),
                (Some(_), Some(_)) => {
                    let detail =
                        "there are several models: name one, /v1/models/{name}/invocations, or start the server with --default-model";
                    return Err(ApiError::new(Code::ModelNotFound, detail));
                }
            }
        }
    };
    answer(&app, Dialect::Mlflow, name, None, &headers, body).await
}

/// `POST /v1/models/{name}/invocations`
pub(super) async fn invocations_of(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(&app, Dialect::Mlflow, name, None, &headers, body).await
}

/// `POST /v1/models/{name}:predict`. The router knows whole segments only, so the verb is cut off here.
pub(super) async fn predict(
    State(app): State<App>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    match name.strip_suffix(VERB) {
        Some(name) => answer(&app, Dialect::TensorFlow, name.to_owned(), None, &headers, body).await,
        None => Ok(operations::method_not_allowed(uri).await),
    }
}

/// `POST /v1/models/{name}/versions/{version}:predict`
pub(super) async fn predict_version(
    State(app): State<App>,
    Path((name, version)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    match version.strip_suffix(VERB) {
        Some(version) => answer(&app, Dialect::TensorFlow, name, Some(version.to_owned()), &headers, body).await,
        None => Ok(operations::method_not_allowed(uri).await),
    }
}

/// What an address does that shares its route with another, from which a verb tells it apart.
pub(super) fn allowed(path: &str) -> Option<&'static str> {
    let segments: Vec<&str> = path.strip_prefix("/v1/models/")?.split('/').collect();
    let shared = matches!(*segments, [_] | [_, "versions", _]);
    shared.then_some(if path.ends_with(VERB) { "POST" } else { "GET, HEAD, DELETE" })
}

/// What TensorFlow Serving calls predicting.
const VERB: &str = ":predict";

/// `GET /version`
pub(super) async fn version() -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], env!("CARGO_PKG_VERSION")).into_response()
}

async fn answer(
    app: &App,
    dialect: Dialect,
    name: String,
    which: Option<String>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let csv = match extract::media_type(headers, header::CONTENT_TYPE).as_deref() {
        Some("text/csv") if dialect == Dialect::Mlflow => true,
        // TensorFlow Serving does not look at it, and its callers say anything.
        None | Some("application/json" | "application/x-www-form-urlencoded") => false,
        Some(_) if dialect == Dialect::TensorFlow => false,
        Some(_) => return Err(ApiError::new(Code::UnsupportedMediaType, "rows come as application/json or text/csv")),
    };
    let answerer = match which {
        Some(which) => app.service.answerer_of(&name, &which).await?,
        None => app.service.answerer(&name, Caller { key: None, header: &extract::header_of(headers) }).await?,
    };
    let body = extract::whole(body, app.body_limit).await?;
    let large = body.len() > extract::LARGE;
    let service = app.service.clone();
    let work = move || -> Result<Response, ApiError> {
        let asked = if csv { read_csv(&body, &answerer)? } else { read_json(dialect, &body, &answerer)? };
        let predicted = service.predict(answerer, asked.rows, asked.question, false)?;
        Ok(write(dialect, asked.form, &predicted))
    };
    if large { off_thread(work).await } else { work() }
}

/// What was asked.
struct Asked {
    form: Form,
    question: Question,
    rows: Rows,
}

fn read_csv(body: &Bytes, answerer: &Answerer) -> Result<Asked, ApiError> {
    let mut rows = Rows::default();
    parse_csv(body, answerer.inputs(), &OPTIONS, &mut rows).map_err(|error| answerer.refused(error))?;
    Ok(Asked { form: Form::Records, question: Question::default(), rows })
}

fn read_json(dialect: Dialect, body: &Bytes, answerer: &Answerer) -> Result<Asked, ApiError> {
    let mut members: BTreeMap<String, &RawValue> =
        serde_json::from_slice(body).map_err(|error| not_of_its_form(body, &error, "an object with rows"))?;
    let listed = || dialect.forms().iter().map(|form| format!("`{}`", form.name())).collect::<Vec<_>>().join(", ");
    let mut found = None;
    let mut faults = Vec::new();
    for form in dialect.forms() {
        if let Some(value) = members.remove(form.name())
            && found.replace((*form, value)).is_some()
        {
            faults.push(Fault { pointer: format!("/{}", form.name()), detail: format!("the rows stand in one of {}", listed()) });
        }
    }
    let beside = members.remove(dialect.beside()).filter(|value| value.get() != "null");
    for name in members.keys().take(20) {
        let shown = if name.len() <= 128 { name.as_str() } else { "" };
        faults.push(Fault {
            pointer: format!("/{}", escaped(shown)),
            detail: format!("there is no such member; there are {} and `{}`", listed(), dialect.beside()),
        });
    }
    if found.is_none() {
        faults.push(Fault { pointer: String::new(), detail: format!("the body has no rows: they stand in one of {}", listed()) });
    }
    let question = match (dialect, beside) {
        (Dialect::Mlflow, Some(params)) => question(params, &mut faults)?,
        // Any signature: a model has one.
        (Dialect::TensorFlow, Some(signature)) if !signature.get().starts_with('"') => {
            faults.push(Fault { pointer: "/signature_name".to_owned(), detail: "`signature_name` is a string".to_owned() });
            Question::default()
        }
        _ => Question::default(),
    };
    refuse(Code::InvalidRequest, faults)?;
    let mut rows = Rows::default();
    let Some((form, value)) = found else { return Err(ServiceError::Internal("a body without rows was taken").into()) };
    parse_served(form, value.get().as_bytes(), answerer.inputs(), &OPTIONS, &mut rows).map_err(|error| answerer.refused(error))?;
    Ok(Asked { form, question, rows })
}

/// `params`, of which `interval` and `level` are known.
fn question(params: &RawValue, faults: &mut Vec<Fault>) -> Result<Question, ApiError> {
    let Ok(params) = serde_json::from_str::<Map<String, Value>>(params.get()) else {
        faults.push(Fault { pointer: "/params".to_owned(), detail: "`params` is an object".to_owned() });
        return Ok(Question::default());
    };
    for name in params.keys().filter(|name| !matches!(name.as_str(), "interval" | "level")).take(20) {
        let shown = if name.len() <= 128 { name.as_str() } else { "" };
        let detail = "there is no such parameter; there are `interval` and `level`".to_owned();
        faults.push(Fault { pointer: format!("/params/{}", escaped(shown)), detail });
    }
    Ok(Question { interval: interval(&params, "/params")?, ..Question::default() })
}

/// `{"predictions": […]}`, with `lower` and `upper` where they were asked for; TensorFlow Serving answers `inputs` with `outputs`, which are an
/// object of columns where a model has several targets.
fn write(dialect: Dialect, form: Form, predicted: &Predicted) -> Response {
    let (answer, document) = (&predicted.answer, &predicted.version.document);
    let mut out = Vec::with_capacity(64 + answer.predictions.len() * 24);
    if dialect == Dialect::TensorFlow && form == Form::Inputs {
        out.extend_from_slice(b"{\"outputs\":");
        push_columns(&mut out, document, &answer.predictions);
    } else {
        out.extend_from_slice(b"{\"predictions\":");
        push_predictions(&mut out, document, &answer.predictions);
    }
    for (name, values) in [("lower", &answer.lower), ("upper", &answer.upper)] {
        if !values.is_empty() {
            out.extend_from_slice(format!(",\"{name}\":").as_bytes());
            push_rows(&mut out, document.responses(), values);
        }
    }
    out.push(b'}');
    let mut response = Response::new(Body::from(out));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // These forms have no place for who answered.
    stamp(&mut response, predicted.version.number, predicted.sequence);
    extract::name_arm(response.headers_mut(), predicted.arm.as_deref());
    response
}

/// A list for one target, an object of lists by target for several.
fn push_columns(out: &mut Vec<u8>, document: &Document, values: &[f64]) {
    let targets = document.target.as_slice();
    if let [_] = targets {
        return push_predictions(out, document, values);
    }
    for (place, target) in targets.iter().enumerate() {
        out.push(if place == 0 { b'{' } else { b',' });
        push_json_string(out, target);
        out.extend_from_slice(b":[");
        for (row, value) in values.iter().skip(place).step_by(targets.len()).enumerate() {
            if row > 0 {
                out.push(b',');
            }
            push_number(out, *value);
        }
        out.push(b']');
    }
    out.push(b'}');
}
