//! `POST /v1/models/{name}/predict`: rows straight into a buffer of floats, answers straight into bytes.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use axum::{BoxError, Extension};

use super::answers::{Writer, push_bool, push_contributions, push_list, push_predictions, push_rows};
use super::error::{ApiError, Code};
use super::extract::Path;
use super::middleware::RequestId;
use super::wire::{Fields, refuse};
use super::{App, extract, predict_stream};
use crate::frame::Fault;
use crate::frame::arrow_stream::parse_arrow;
use crate::frame::reply::{push_json_string, push_number, push_whole};
use crate::frame::rows::{ParseError, Rows, RowsOptions, parse_csv, parse_document, parse_ndjson};
use crate::model::answers::MEMBERS;
use crate::model::{IntervalKind, PredictionId, Question, Wanted};
use crate::service::{Answerer, Caller, Predicted, ServiceError};

/// And so do answers that take more multiplications than this: about a millisecond.
pub(super) const MUCH: usize = 1_000_000;

impl From<ParseError> for ServiceError {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::Syntax(fault) => Self::Syntax(fault),
            ParseError::Faults(faults) => Self::Rows(faults),
            ParseError::TooLarge(detail) => Self::TooLarge(detail),
        }
    }
}

/// An Arrow stream.
const ARROW: &str = "application/vnd.apache.arrow.stream";

/// How rows come in and answers go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Json,
    Ndjson,
    Csv,
    Arrow,
}

impl Dialect {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        match extract::media_type(headers, header::CONTENT_TYPE).as_deref() {
            // What curl says by itself is taken for JSON.
            None | Some("application/json" | "application/x-www-form-urlencoded") => Ok(Self::Json),
            Some("application/x-ndjson" | "application/ndjson") => Ok(Self::Ndjson),
            Some("text/csv") => Ok(Self::Csv),
            Some(ARROW) => Ok(Self::Arrow),
            Some(_) => {
                let detail = format!("rows come as application/json, application/x-ndjson, text/csv or {ARROW}");
                Err(ApiError::new(Code::UnsupportedMediaType, detail))
            }
        }
    }

    pub(super) fn media(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => ARROW,
        })
    }
}

/// What the query of a question says.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) question: Question,
    pub(super) wanted: Wanted,
    /// The sequence at which it is to be answered.
    pub(super) at: Option<u64>,
    /// Whether the rows are kept for their labels.
    pub(super) remember: bool,
    /// By what a split of traffic knows the caller.
    pub(super) key: Option<Vec<u8>>,
}

pub(super) async fn predict(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let dialect = Dialect::of(&headers)?;
    let asked = asked(query.as_deref(), dialect)?;
    if predict_stream::is_stream(dialect, &asked, &body) {
        return predict_stream::stream(app, name, dialect, asked, id, headers, body).await;
    }
    held(&app, &name, dialect, asked, &headers, body).await
}

/// Answers a JSON document of rows by the model of that name.
pub(super) async fn document<B>(app: &App, name: &str, query: Option<&str>, headers: &HeaderMap, body: B) -> Result<Response, ApiError>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>>,
{
    held(app, name, Dialect::Json, asked(query, Dialect::Json)?, headers, body).await
}

/// Answers rows that are held in memory.
async fn held<B>(app: &App, name: &str, dialect: Dialect, asked: Asked, headers: &HeaderMap, body: B) -> Result<Response, ApiError>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>>,
{
    let Asked { mut question, mut wanted, mut at, mut remember, key } = asked;
    let caller = Caller { key: key.as_deref(), header: &extract::header_of(headers) };
    let answerer = app.service.answerer(name, caller).await?;
    let body = extract::whole(body, app.body_limit).await?;
    let large = body.len() > extract::LARGE;
    let parse = move || -> Result<(Answerer, Rows, Question, Option<u64>, bool), ApiError> {
        let inputs = answerer.inputs();
        let refused = |error: ParseError| answerer.refused(error);
        let mut rows = Rows::default();
        match dialect {
            Dialect::Json => {
                let members = parse_document(&body, inputs, &OPTIONS, &mut rows).map_err(refused)?;
                (at, remember) = question_of(&members, &mut question)?;
            }
            Dialect::Ndjson => parse_ndjson(&body, 1, inputs, &OPTIONS, &mut rows).map_err(refused)?,
            Dialect::Csv => parse_csv(&body, inputs, &OPTIONS, &mut rows).map_err(refused)?,
            Dialect::Arrow => parse_arrow(&body, inputs, &OPTIONS, &mut rows).map_err(refused)?,
        }
        Ok((answerer, rows, question, at, remember))
    };
    let (mut answerer, rows, mut question, at, remember) = if large { off_thread(parse).await? } else { parse()? };
    wanted.meet(&mut question, &answerer.version.document);
    if dialect != Dialect::Json {
        something(wanted)?;
    }
    if let Some(sequence) = at {
        answerer = app.service.answerer_at(answerer, sequence).await?;
    }
    let mut predicted = if answerer.work(rows.count, question) > MUCH {
        let service = app.service.clone();
        off_thread(move || Ok(service.predict(answerer, rows, question, remember)?)).await?
    } else {
        app.service.predict(answerer, rows, question, remember)?
    };
    let ids = app.service.remember(&mut predicted).await?;
    let (number, sequence, arm) = (predicted.version.number, predicted.sequence, predicted.arm.clone());
    let write = move || -> Result<Vec<u8>, ApiError> {
        let answer = &predicted.answer;
        let numbers = [
            &answer.predictions,
            &answer.scores,
            &answer.probabilities,
            &answer.lower,
            &answer.upper,
            &answer.leverage,
            &answer.contributions,
        ];
        let numbers: usize = numbers.iter().map(|numbers| numbers.len()).sum();
        // A number has hardly ever more than twenty digits, and a word or a name stands beside some.
        let mut out = Vec::with_capacity(256 + predicted.version.model.len() + 28 * numbers);
        if dialect == Dialect::Json {
            write_json(&mut out, &predicted, ids.as_deref(), wanted);
        } else {
            let writer = Writer::new(dialect, predicted.version.clone(), predicted.sequence, wanted, ids.is_some())?;
            writer.head(&mut out);
            writer.rows(&mut out, &predicted.answer, ids.as_deref())?;
            out.extend_from_slice(writer.end());
        }
        Ok(out)
    };
    let out = if large { off_thread(write).await? } else { write()? };
    let mut response = Response::new(Body::from(Bytes::from(out)));
    response.headers_mut().insert(header::CONTENT_TYPE, dialect.media());
    extract::name_arm(response.headers_mut(), arm.as_deref());
    if dialect != Dialect::Json {
        stamp(&mut response, number, sequence);
    }
    Ok(response)
}

/// Says who answered, for which lines and tables have no place but in each row.
pub(super) fn stamp(response: &mut Response, version: u64, sequence: u64) {
    if let Ok(tag) = HeaderValue::from_str(&format!("{version}-{sequence}")) {
        response.headers_mut().insert("lsqd-version-sequence", tag);
    }
}

const OPTIONS: RowsOptions = RowsOptions { allow_id: false, max_rows: 10_000_000 };

pub(super) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ServiceError::Internal("a request's work panicked"))?
}

/// The query: `fields` (what is answered), `key` (by which a split of traffic knows the caller), and for CSV, NDJSON and Arrow `interval`, `level`,
/// `explain`, `sequence` and `remember`, which JSON carries in its body.
pub(super) fn asked(query: Option<&str>, dialect: Dialect) -> Result<Asked, ApiError> {
    let mut asked = Asked { question: Question::default(), wanted: Wanted::USUAL, at: None, remember: false, key: None };
    let mut faults = Vec::new();
    let (mut kind, mut level) = (None, 0.95);
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "fields" => match Wanted::listed(value.split(',').flat_map(|part| part.split("%2C"))) {
                Some(listed) => asked.wanted = listed,
                None => faults.push(fault("/fields", &format!("`fields` lists {MEMBERS}"))),
            },
            "key" => asked.key = Some(extract::unescaped(value)),
            "interval" if dialect != Dialect::Json => match interval_kind(value) {
                Some(found) => kind = Some(found),
                None => faults.push(fault("/interval", "`interval` is confidence or prediction")),
            },
            "level" if dialect != Dialect::Json => match value.parse::<f64>() {
                Ok(value) if value > 0.0 && value < 1.0 => level = value,
                _ => faults.push(fault("/level", "`level` is between 0 and 1")),
            },
            "sequence" if dialect != Dialect::Json => match value.parse() {
                Ok(sequence) => asked.at = Some(sequence),
                Err(_) => faults.push(fault("/sequence", "`sequence` is the number of an update")),
            },
            "explain" | "remember" if dialect != Dialect::Json => {
                let said = match value {
                    "true" => true,
                    "false" => false,
                    _ => {
                        faults.push(fault(&format!("/{name}"), &format!("`{name}` is true or false")));
                        continue;
                    }
                };
                *(if name == "explain" { &mut asked.question.explain } else { &mut asked.remember }) = said;
            }
            _ => faults.push(fault("/", "the query has an unknown parameter")),
        }
    }
    refuse(Code::InvalidRequest, faults)?;
    asked.question.interval = kind.map(|kind| (kind, level));
    Ok(asked)
}

/// Refuses a table of no columns.
pub(super) fn something(wanted: Wanted) -> Result<(), ApiError> {
    let nothing =
        wanted.is_nothing().then(|| fault("/fields", "`fields` lists nothing that is asked for, so that there is nothing to answer"));
    refuse(Code::InvalidRequest, nothing.into_iter().collect())
}

fn fault(pointer: &str, detail: &str) -> Fault {
    Fault { pointer: pointer.to_owned(), detail: detail.to_owned() }
}

fn interval_kind(text: &str) -> Option<IntervalKind> {
    match text {
        "confidence" => Some(IntervalKind::Confidence),
        "prediction" => Some(IntervalKind::Prediction),
        _ => None,
    }
}

/// The members of a JSON body beside its rows: the sequence to predict at, and whether the rows are to be remembered.
fn question_of(members: &[(std::borrow::Cow<'_, str>, &[u8])], question: &mut Question) -> Result<(Option<u64>, bool), ApiError> {
    let mut map = serde_json::Map::new();
    for (name, raw) in members {
        let value = serde_json::from_slice(raw).map_err(|_| {
            ServiceError::Syntax(Fault { pointer: format!("/{}", crate::frame::escaped(name)), detail: format!("`{name}` is not JSON") })
        })?;
        map.insert(name.clone().into_owned(), value);
    }
    let mut fields = Fields::nested(String::new(), map);
    question.interval = interval_of(&mut fields);
    question.explain = fields.boolean("explain").unwrap_or(false);
    let remember = fields.boolean("remember").unwrap_or(false);
    let at = moment_of(&mut fields);
    refuse(Code::InvalidRequest, fields.into_faults())?;
    Ok((at, remember))
}

/// `"interval": {"kind", "level"}`.
pub(super) fn interval_of(fields: &mut Fields) -> Option<(IntervalKind, f64)> {
    let mut interval = fields.object("interval")?;
    let kind = interval_kind(&interval.string("kind").unwrap_or_else(|| "prediction".to_owned()));
    let level = interval.number("level").unwrap_or(0.95);
    if kind.is_none() {
        interval.fault("kind", "`kind` is confidence or prediction");
    }
    if !(level > 0.0 && level < 1.0) {
        interval.fault("level", "`level` is between 0 and 1");
    }
    fields.faults.extend(interval.into_faults());
    Some((kind?, level))
}

/// `"at": {"sequence"}`.
pub(super) fn moment_of(fields: &mut Fields) -> Option<u64> {
    let mut moment = fields.object("at")?;
    let at = moment.whole("sequence", 0, u64::MAX);
    if at.is_none() && moment.faults.is_empty() {
        moment.fault("sequence", "`sequence` is required");
    }
    fields.faults.extend(moment.into_faults());
    at
}

fn write_json(out: &mut Vec<u8>, predicted: &Predicted, ids: Option<&[PredictionId]>, wanted: Wanted) {
    let document = &predicted.version.document;
    let (responses, answer) = (document.responses(), &predicted.answer);
    out.extend_from_slice(b"{\"model\":");
    push_json_string(out, &predicted.version.model);
    out.extend_from_slice(b",\"version\":");
    push_whole(out, predicted.version.number);
    out.extend_from_slice(b",\"sequence\":");
    push_whole(out, predicted.sequence);
    out.extend_from_slice(b",\"predictions\":");
    if wanted.predictions {
        push_predictions(out, document, &answer.predictions);
    } else {
        out.extend_from_slice(b"null");
    }
    let own = usize::from(document.classifier.is_none()) * 2;
    let members = [
        (&b",\"scores\":"[..], &answer.scores, wanted.scores),
        (b",\"probabilities\":", &answer.probabilities, wanted.probabilities),
        (b",\"lower\":", &answer.lower, wanted.lower),
        (b",\"upper\":", &answer.upper, wanted.upper),
    ];
    // The first two are a classifier's.
    for (name, values, wanted) in &members[own..] {
        out.extend_from_slice(name);
        if *wanted {
            push_rows(out, responses, values);
        } else {
            out.extend_from_slice(b"null");
        }
    }
    out.extend_from_slice(b",\"leverage\":");
    if wanted.leverage {
        push_list(out, answer.leverage.iter(), |out, value| push_number(out, *value));
    } else {
        out.extend_from_slice(b"null");
    }
    out.extend_from_slice(b",\"extrapolates\":");
    if wanted.extrapolates {
        push_list(out, answer.extrapolates.iter(), |out, value| push_bool(out, *value));
    } else {
        out.extend_from_slice(b"null");
    }
    out.extend_from_slice(b",\"contributions\":");
    if wanted.contributions {
        let each = (document.features.len() + 1) * responses.len();
        push_list(out, answer.contributions.chunks_exact(each), |out, row| push_contributions(out, &predicted.version, row));
    } else {
        out.extend_from_slice(b"null");
    }
    out.extend_from_slice(b",\"prediction_ids\":");
    match ids {
        Some(ids) => push_list(out, ids.iter(), |out, id| out.extend_from_slice(format!("\"{id}\"").as_bytes())),
        None => out.extend_from_slice(b"null"),
    }
    if let Some(arm) = &predicted.arm {
        out.extend_from_slice(b",\"arm\":");
        push_json_string(out, arm);
    }
    out.push(b'}');
}
