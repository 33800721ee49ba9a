//! `POST /v1/models/{name}/predict`: rows straight into a buffer of floats, answers straight into bytes.

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;

use super::error::{ApiError, Code};
use super::extract::Path;
use super::wire::{Fields, refuse};
use super::{App, extract};
use crate::frame::Fault;
use crate::frame::arrow_stream::{Answered, parse_arrow, write_arrow};
use crate::frame::reply::{push_csv_cell, push_json_string, push_number};
use crate::frame::rows::{ParseError, Rows, RowsOptions, parse_csv, parse_document, parse_ndjson};
use crate::model::PredictionId;
use crate::model::prediction::{IntervalKind, Question};
use crate::service::{Answerer, Predicted, ServiceError};

/// Bodies larger than this leave the async threads.
const LARGE: usize = 64 * 1024;

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

/// Members of the answer, so that a caller can ask for less.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    leverage: bool,
    extrapolates: bool,
    interval: bool,
    explain: bool,
    /// Whether the rows are kept for their labels.
    remember: bool,
}

pub(super) async fn predict(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let dialect = Dialect::of(&headers)?;
    let (mut question, mut wanted, mut at) = asked(query.as_deref(), dialect)?;
    let answerer = app.service.answerer(&name).await?;
    let body = extract::whole(body, app.body_limit).await?;
    let large = body.len() > LARGE;
    let mut remember = wanted.remember;
    let parse = move || -> Result<(Answerer, Rows, Question, Option<u64>, bool), ApiError> {
        let inputs = answerer.inputs();
        let mut rows = Rows::default();
        match dialect {
            Dialect::Json => {
                let members = parse_document(&body, inputs, &OPTIONS, &mut rows).map_err(ServiceError::from)?;
                (at, remember) = question_of(&members, &mut question)?;
            }
            Dialect::Ndjson => parse_ndjson(&body, 1, inputs, &OPTIONS, &mut rows).map_err(ServiceError::from)?,
            Dialect::Csv => parse_csv(&body, inputs, &OPTIONS, &mut rows).map_err(ServiceError::from)?,
            Dialect::Arrow => parse_arrow(&body, inputs, &OPTIONS, &mut rows).map_err(ServiceError::from)?,
        }
        Ok((answerer, rows, question, at, remember))
    };
    let (mut answerer, rows, question, at, remember) = if large { off_thread(parse).await? } else { parse()? };
    (wanted.interval, wanted.explain) = (question.interval.is_some(), question.explain);
    if let Some(sequence) = at {
        answerer = app.service.answerer_at(answerer, sequence).await?;
    }
    let mut predicted = app.service.predict(answerer, rows, question, remember)?;
    let ids = app.service.remember(&mut predicted).await?;
    let write = move || -> Result<(Vec<u8>, String), ApiError> {
        let tag = format!("{}-{}", predicted.version.number, predicted.sequence);
        if dialect == Dialect::Arrow {
            return Ok((write_table(&predicted, ids.as_deref(), wanted)?, tag));
        }
        let mut out = Vec::with_capacity(64 + predicted.answer.predictions.len() * 24);
        match dialect {
            Dialect::Json => write_json(&mut out, &predicted, ids.as_deref(), wanted),
            Dialect::Ndjson => write_lines(&mut out, &predicted, ids.as_deref(), wanted),
            Dialect::Csv | Dialect::Arrow => write_csv(&mut out, &predicted, ids.as_deref(), wanted),
        }
        Ok((out, tag))
    };
    let (out, tag) = if large { off_thread(write).await? } else { write()? };
    let mut response = Response::new(Body::from(Bytes::from(out)));
    response.headers_mut().insert(header::CONTENT_TYPE, dialect.media());
    if dialect != Dialect::Json
        && let Ok(tag) = HeaderValue::from_str(&tag)
    {
        // Lines and tables have no place for it.
        response.headers_mut().insert("lsqd-version-sequence", tag);
    }
    Ok(response)
}

const OPTIONS: RowsOptions = RowsOptions { allow_id: false, max_rows: 10_000_000 };

pub(super) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ServiceError::Internal("a request's work panicked"))?
}

/// The query: `fields` (what is answered), and for CSV and NDJSON `interval`, `level`, `sequence` and `remember`, which JSON carries in its
/// body.
fn asked(query: Option<&str>, dialect: Dialect) -> Result<(Question, Wanted, Option<u64>), ApiError> {
    let mut question = Question { leverage: true, ..Question::default() };
    let mut wanted = Wanted { leverage: true, extrapolates: true, interval: false, explain: false, remember: false };
    let mut faults = Vec::new();
    let (mut kind, mut level, mut at) = (None, 0.95, None);
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "fields" => {
                (wanted.leverage, wanted.extrapolates) = (false, false);
                for field in value.split([',']).flat_map(|part| part.split("%2C")) {
                    match field {
                        "leverage" => wanted.leverage = true,
                        "extrapolates" => wanted.extrapolates = true,
                        "predictions" | "lower" | "upper" | "contributions" | "scores" => {}
                        _ => {
                            faults.push(fault("/fields", "`fields` lists predictions, lower, upper, leverage, extrapolates, contributions"))
                        }
                    }
                }
                question.leverage = wanted.leverage || wanted.extrapolates;
            }
            "interval" if dialect != Dialect::Json => match interval_kind(value) {
                Some(found) => kind = Some(found),
                None => faults.push(fault("/interval", "`interval` is confidence or prediction")),
            },
            "level" if dialect != Dialect::Json => match value.parse::<f64>() {
                Ok(value) if value > 0.0 && value < 1.0 => level = value,
                _ => faults.push(fault("/level", "`level` is between 0 and 1")),
            },
            "sequence" if dialect != Dialect::Json => match value.parse() {
                Ok(sequence) => at = Some(sequence),
                Err(_) => faults.push(fault("/sequence", "`sequence` is the number of an update")),
            },
            "remember" if dialect != Dialect::Json => match value {
                "true" => wanted.remember = true,
                "false" => wanted.remember = false,
                _ => faults.push(fault("/remember", "`remember` is true or false")),
            },
            _ => faults.push(fault("/", "the query has an unknown parameter")),
        }
    }
    refuse(Code::InvalidRequest, faults)?;
    question.interval = kind.map(|kind| (kind, level));
    Ok((question, wanted, at))
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
            ServiceError::Syntax(Fault { pointer: format!("/{}", super::wire::escape(name)), detail: format!("`{name}` is not JSON") })
        })?;
        map.insert(name.clone().into_owned(), value);
    }
    let mut fields = Fields::nested(String::new(), map);
    if let Some(mut interval) = fields.object("interval") {
        let kind = interval.string("kind").unwrap_or_else(|| "prediction".to_owned());
        let level = interval.number("level").unwrap_or(0.95);
        match interval_kind(&kind) {
            Some(kind) => question.interval = Some((kind, level)),
            None => interval.fault("kind", "`kind` is confidence or prediction"),
        }
        if !(level > 0.0 && level < 1.0) {
            interval.fault("level", "`level` is between 0 and 1");
        }
        fields.faults.extend(interval.into_faults());
    }
    question.explain = fields.boolean("explain").unwrap_or(false);
    let remember = fields.boolean("remember").unwrap_or(false);
    let mut at = None;
    if let Some(mut moment) = fields.object("at") {
        at = moment.whole("sequence", 0, u64::MAX);
        if at.is_none() && moment.faults.is_empty() {
            moment.fault("sequence", "`sequence` is required");
        }
        fields.faults.extend(moment.into_faults());
    }
    refuse(Code::InvalidRequest, fields.into_faults())?;
    Ok((at, remember))
}

/// One value a row: a number for one target, an object by target name for several.
pub(super) fn push_row(out: &mut Vec<u8>, targets: &[String], values: &[f64]) {
    if let ([_], [value]) = (targets, values) {
        push_number(out, *value);
        return;
    }
    out.push(b'{');
    for (place, (target, value)) in targets.iter().zip(values).enumerate() {
        if place > 0 {
            out.push(b',');
        }
        push_json_string(out, target);
        out.push(b':');
        push_number(out, *value);
    }
    out.push(b'}');
}

/// `[row, row, …]`.
pub(super) fn push_rows(out: &mut Vec<u8>, targets: &[String], values: &[f64]) {
    push_list(out, values.chunks_exact(targets.len().max(1)), |out, row| push_row(out, targets, row));
}

fn push_list<T>(out: &mut Vec<u8>, items: impl Iterator<Item = T>, push: impl Fn(&mut Vec<u8>, T)) {
    out.push(b'[');
    for (place, item) in items.enumerate() {
        if place > 0 {
            out.push(b',');
        }
        push(out, item);
    }
    out.push(b']');
}

/// The contributions of one row: by feature for one target, by target and feature for several.
fn push_contributions(out: &mut Vec<u8>, predicted: &Predicted, row: &[f64]) {
    let document = &predicted.version.document;
    let each = document.features.len() + 1;
    let one = |out: &mut Vec<u8>, parts: &[f64]| {
        out.extend_from_slice(b"{\"(baseline)\":");
        push_number(out, parts[0]);
        for (feature, part) in document.features.iter().zip(&parts[1..]) {
            out.push(b',');
            push_json_string(out, &feature.name);
            out.push(b':');
            push_number(out, *part);
        }
        out.push(b'}');
    };
    if let [_] = document.target.as_slice() {
        one(out, row);
        return;
    }
    out.push(b'{');
    for (place, (target, parts)) in document.target.iter().zip(row.chunks_exact(each)).enumerate() {
        if place > 0 {
            out.push(b',');
        }
        push_json_string(out, target);
        out.push(b':');
        one(out, parts);
    }
    out.push(b'}');
}

fn push_bool(out: &mut Vec<u8>, value: bool) {
    out.extend_from_slice(if value { b"true" } else { b"false" });
}

fn write_json(out: &mut Vec<u8>, predicted: &Predicted, ids: Option<&[PredictionId]>, wanted: Wanted) {
    let targets = &predicted.version.document.target;
    let answer = &predicted.answer;
    out.extend_from_slice(b"{\"model\":");
    push_json_string(out, &predicted.version.model);
    out.extend_from_slice(
        format!(",\"version\":{},\"sequence\":{},\"predictions\":", predicted.version.number, predicted.sequence).as_bytes(),
    );
    push_rows(out, targets, &answer.predictions);
    for (name, values) in [("lower", &answer.lower), ("upper", &answer.upper)] {
        out.extend_from_slice(format!(",\"{name}\":").as_bytes());
        if wanted.interval {
            push_rows(out, targets, values);
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
    if wanted.explain {
        let each = (predicted.version.document.features.len() + 1) * targets.len();
        push_list(out, answer.contributions.chunks_exact(each), |out, row| push_contributions(out, predicted, row));
    } else {
        out.extend_from_slice(b"null");
    }
    out.extend_from_slice(b",\"prediction_ids\":");
    match ids {
        Some(ids) => push_list(out, ids.iter(), |out, id| out.extend_from_slice(format!("\"{id}\"").as_bytes())),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
}

/// One object a line, in the order of the rows.
fn write_lines(out: &mut Vec<u8>, predicted: &Predicted, ids: Option<&[PredictionId]>, wanted: Wanted) {
    let targets = &predicted.version.document.target;
    let answer = &predicted.answer;
    for (row, values) in answer.predictions.chunks_exact(targets.len().max(1)).enumerate() {
        out.extend_from_slice(b"{\"prediction\":");
        push_row(out, targets, values);
        if !answer.lower.is_empty() {
            let range = row * targets.len()..(row + 1) * targets.len();
            out.extend_from_slice(b",\"lower\":");
            push_row(out, targets, &answer.lower[range.clone()]);
            out.extend_from_slice(b",\"upper\":");
            push_row(out, targets, &answer.upper[range]);
        }
        if wanted.leverage {
            out.extend_from_slice(b",\"leverage\":");
            push_number(out, answer.leverage[row]);
        }
        if wanted.extrapolates {
            out.extend_from_slice(b",\"extrapolates\":");
            push_bool(out, answer.extrapolates[row]);
        }
        if let Some(id) = ids.and_then(|ids| ids.get(row)) {
            out.extend_from_slice(format!(",\"prediction_id\":\"{id}\"").as_bytes());
        }
        out.extend_from_slice(b"}\n");
    }
}

/// A column a figure; with several targets each carries the target's name.
fn write_table(predicted: &Predicted, ids: Option<&[PredictionId]>, wanted: Wanted) -> Result<Vec<u8>, ServiceError> {
    let (answer, targets) = (&predicted.answer, &predicted.version.document.target);
    let count = targets.len().max(1);
    let rows = answer.predictions.len() / count;
    let mut owned = Vec::new();
    for (name, values) in [("prediction", &answer.predictions), ("lower", &answer.lower), ("upper", &answer.upper)] {
        if values.is_empty() && name != "prediction" {
            continue;
        }
        for (place, target) in targets.iter().enumerate() {
            let name = if count == 1 { name.to_owned() } else { format!("{target}_{name}") };
            owned.push((name, values.iter().skip(place).step_by(count).copied().collect::<Vec<f64>>()));
        }
    }
    let mut columns: Vec<(String, Answered<'_>)> = owned.iter().map(|(name, values)| (name.clone(), Answered::Numbers(values))).collect();
    if wanted.leverage {
        columns.push(("leverage".to_owned(), Answered::Numbers(&answer.leverage)));
    }
    if wanted.extrapolates {
        columns.push(("extrapolates".to_owned(), Answered::Booleans(&answer.extrapolates)));
    }
    if let Some(ids) = ids {
        columns.push(("prediction_id".to_owned(), Answered::Texts(ids.iter().map(ToString::to_string).collect())));
    }
    let metadata = [("lsqd-version-sequence".to_owned(), format!("{}-{}", predicted.version.number, predicted.sequence))];
    write_arrow(columns, rows, metadata).map_err(|_| ServiceError::Internal("an Arrow stream could not be written"))
}

/// A header and one line a row; with several targets each column carries the target's name.
fn write_csv(out: &mut Vec<u8>, predicted: &Predicted, ids: Option<&[PredictionId]>, wanted: Wanted) {
    let targets = &predicted.version.document.target;
    let answer = &predicted.answer;
    let groups: Vec<(&str, &[f64])> = [("prediction", &answer.predictions), ("lower", &answer.lower), ("upper", &answer.upper)]
        .into_iter()
        .filter(|(name, _)| wanted.interval || *name == "prediction")
        .map(|(name, values)| (name, values.as_slice()))
        .collect();
    let mut first = true;
    let mut comma = |out: &mut Vec<u8>| {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
    };
    for (name, _) in &groups {
        for target in targets {
            comma(out);
            if targets.len() == 1 {
                out.extend_from_slice(name.as_bytes());
            } else {
                push_csv_cell(out, &format!("{target}_{name}"));
            }
        }
    }
    if wanted.leverage {
        comma(out);
        out.extend_from_slice(b"leverage");
    }
    if wanted.extrapolates {
        comma(out);
        out.extend_from_slice(b"extrapolates");
    }
    if ids.is_some() {
        comma(out);
        out.extend_from_slice(b"prediction_id");
    }
    out.push(b'\n');
    let count = targets.len().max(1);
    for row in 0..answer.predictions.len() / count {
        let mut first = true;
        let mut comma = |out: &mut Vec<u8>| {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
        };
        for (_, values) in &groups {
            for value in &values[row * count..(row + 1) * count] {
                comma(out);
                if value.is_finite() {
                    push_number(out, *value);
                }
            }
        }
        if wanted.leverage {
            comma(out);
            push_number(out, answer.leverage[row]);
        }
        if wanted.extrapolates {
            comma(out);
            push_bool(out, answer.extrapolates[row]);
        }
        if let Some(id) = ids.and_then(|ids| ids.get(row)) {
            comma(out);
            out.extend_from_slice(id.to_string().as_bytes());
        }
        out.push(b'\n');
    }
}
