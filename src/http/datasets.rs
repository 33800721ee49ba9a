//! `/v1/datasets`.

use axum::Json;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::error::{ApiError, Code};
use super::extract::{Page, Path};
use super::packed::streamed;
use super::{App, extract};
use crate::frame::{ColumnType, Fault, Format, write};
use crate::service::{Description, ErasedRows, Erasure, Holder, Origin, RowsToErase, ServiceError, Upload, Version};

pub(super) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    holder: Holder,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let upload = upload(&app, &holder, "put", &name, query.as_deref(), &headers)?;
    refuse_long(&app, &body)?;
    let landed = app.service.put_dataset(upload, extract::stream(body)).await?;
    let status = if landed.value.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(reply(&holder, &landed.value.description()?, status, landed.replayed))
}

pub(super) async fn append(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    holder: Holder,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let upload = upload(&app, &holder, "append", &name, query.as_deref(), &headers)?;
    refuse_long(&app, &body)?;
    let landed = app.service.append_rows(upload, extract::stream(body)).await?;
    Ok(reply(&holder, &landed.value.description()?, StatusCode::OK, landed.replayed))
}

/// Refuses what says itself that it is too long, before anything of it is read.
fn refuse_long(app: &App, body: &Body) -> Result<(), ApiError> {
    if app.upload_limit > 0 && body.size_hint().lower() > app.upload_limit {
        return Err(ServiceError::upload_too_large().into());
    }
    Ok(())
}

pub(super) async fn describe(State(app): State<App>, Path(name): Path<String>, holder: Holder) -> Result<Response, ApiError> {
    Ok(reply(&holder, &app.service.describe_dataset(&name).await?, StatusCode::OK, false))
}

pub(super) async fn list(State(app): State<App>, holder: Holder, page: Page) -> Result<Response, ApiError> {
    let mut items = app.service.list_datasets(&page.after, page.limit + 1, |name| holder.sees_dataset(name)).await?;
    let next = page.cut(&mut items, |last| last.row.name.clone());
    let items: Vec<Value> = items.iter().map(|dataset| view(&holder, dataset)).collect();
    Ok(Json(json!({"items": items, "next": next})).into_response())
}

pub(super) async fn delete(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Result<StatusCode, ApiError> {
    app.service.delete_dataset(&name, extract::if_match(&headers)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn erase_row(
    State(app): State<App>,
    Path((name, row)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    holder: Holder,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let row = row.parse::<u64>().map_err(|_| ServiceError::RowNotFound)?;
    let Chosen { keep, .. } = chosen(query.as_deref(), false)?;
    let asked = Erasure { dataset: name, rows: RowsToErase::One(row), keep, if_match: extract::if_match(&headers) };
    erased(&holder, app.service.erase_rows(asked).await)
}

pub(super) async fn erase_rows(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    holder: Holder,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Chosen { column, value, keep } = chosen(query.as_deref(), true)?;
    let asked = Erasure { dataset: name, rows: RowsToErase::Where { column, value }, keep, if_match: extract::if_match(&headers) };
    erased(&holder, app.service.erase_rows(asked).await)
}

/// The query of an erasure.
#[derive(Default)]
struct Chosen {
    column: String,
    value: String,
    keep: bool,
}

/// `unable=keep`, and where rows are chosen by a value, `column` and `value`.
fn chosen(query: Option<&str>, by_value: bool) -> Result<Chosen, ApiError> {
    let (mut chosen, mut column, mut value, mut faults) = (Chosen::default(), None, None, Vec::new());
    let mut fault = |pointer: &str, detail: &str| faults.push(Fault { pointer: pointer.to_owned(), detail: detail.to_owned() });
    for (name, given) in extract::pairs(query)? {
        match (name.as_str(), given.as_str()) {
            ("column", _) if by_value => column = Some(given),
            ("value", _) if by_value => value = Some(given),
            ("unable", "keep") => chosen.keep = true,
            ("unable", "refuse") => chosen.keep = false,
            ("unable", _) => fault("/unable", "`unable` is `refuse` or `keep`"),
            _ => fault("/", "the query has an unknown parameter"),
        }
    }
    for (name, given) in [("column", &column), ("value", &value)] {
        if by_value && given.is_none() {
            fault(&format!("/{name}"), "the rows to erase are named by `column` and `value`");
        }
    }
    super::wire::refuse(Code::InvalidRequest, faults)?;
    Ok(Chosen { column: column.unwrap_or_default(), value: value.unwrap_or_default(), ..chosen })
}

/// What was erased; of models that are not there for them it is not told which unlearnt, or could not.
fn erased(holder: &Holder, done: Result<ErasedRows, ServiceError>) -> Result<Response, ApiError> {
    let mut done = done.map_err(|error| match error {
        ServiceError::CannotUnlearn(faults) => ServiceError::CannotUnlearn(faults.into_iter().map(|fault| veiled(holder, fault)).collect()),
        other => other,
    })?;
    done.unlearnt.retain(|(version, _)| holder.sees_model(&version.model));
    done.kept.retain(|(version, _)| holder.sees_model(&version.model));
    let named = |version: &Version| json!({"model": version.model, "version": version.number});
    let unlearnt = done.unlearnt.iter().map(|(version, sequence)| {
        let mut entry = named(version);
        entry["sequence"] = json!(sequence);
        entry
    });
    let kept = done.kept.iter().map(|(version, reason)| {
        let mut entry = named(version);
        entry["detail"] = json!(reason);
        entry
    });
    let mut response = Json(json!({
        "name": done.dataset.row.name, "rows": done.dataset.row.rows, "erased": done.erased,
        "unlearnt": unlearnt.collect::<Vec<_>>(), "kept": kept.collect::<Vec<_>>(),
    }))
    .into_response();
    response.headers_mut().insert(header::ETAG, extract::etag(&done.dataset.tag()));
    Ok(response)
}

/// A fault of a version, `/models/{name}/versions/{version}`, without its name where that is not there for them.
fn veiled(holder: &Holder, fault: Fault) -> Fault {
    let model = fault.pointer.strip_prefix("/models/").and_then(|rest| rest.rsplit_once("/versions/"));
    match model {
        Some((model, _)) if !holder.sees_model(model) => {
            Fault { pointer: "/models".to_owned(), detail: "a version of a model that this key does not show cannot unlearn".to_owned() }
        }
        _ => fault,
    }
}

pub(super) async fn rows(State(app): State<App>, Path(name): Path<String>, page: Page, headers: HeaderMap) -> Result<Response, ApiError> {
    if extract::accepts(&headers, "text/csv") {
        return all(&app, &name, "text/csv; charset=utf-8", write::csv_header, write::csv_rows).await;
    }
    if extract::accepts(&headers, "application/x-ndjson") {
        return all(&app, &name, "application/x-ndjson", |_, _| {}, write::ndjson_rows).await;
    }
    let first = match page.after.as_str() {
        "" => 0,
        text => text.parse::<u64>().map_err(|_| ServiceError::request("/after", "`after` is the `next` of an earlier page"))?,
    };
    let (description, frames) = app.service.rows_page(&name, first, page.limit as usize).await?;
    let mut body = b"{\"items\":[".to_vec();
    let mut count = 0;
    for (frame, range) in &frames {
        for row in range.clone() {
            if count > 0 {
                body.push(b',');
            }
            write::json_row(&mut body, &description.summary.schema, frame, row);
            count += 1;
        }
    }
    let end = first.saturating_add(count);
    let next = if end < description.row.rows { format!("\"{end}\"") } else { "null".to_owned() };
    body.extend_from_slice(format!("],\"next\":{next}}}").as_bytes());
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}

/// The whole set, streamed frame by frame.
async fn all(
    app: &App,
    name: &str,
    media: &'static str,
    head: fn(&mut Vec<u8>, &crate::frame::Schema),
    rows: fn(&mut Vec<u8>, &crate::frame::Schema, &crate::frame::Frame),
) -> Result<Response, ApiError> {
    let (description, frames) = app.service.all_rows(name).await?;
    let tag = extract::etag(&description.tag());
    let schema = description.summary.schema;
    let mut first = Vec::new();
    head(&mut first, &schema);
    let first = futures_util::stream::iter((!first.is_empty()).then(|| Ok(Bytes::from(first))));
    let rest = frames.map(move |frame| {
        let mut text = Vec::new();
        rows(&mut text, &schema, &frame?);
        Ok::<_, ServiceError>(Bytes::from(text))
    });
    let mut response = Response::new(streamed(first.chain(rest)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

pub(super) fn reply(holder: &Holder, description: &Description, status: StatusCode, replayed: bool) -> Response {
    let mut response = (status, Json(view(holder, description))).into_response();
    response.headers_mut().insert(header::ETAG, extract::etag(&description.tag()));
    if replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    response
}

fn view(holder: &Holder, description: &Description) -> Value {
    let row = &description.row;
    let seen = |origin: &Origin| holder.sees_model(&origin.model) && holder.sees_dataset(&origin.dataset);
    let origin = description.origin().filter(seen).map(|origin| {
        json!({
            "model": origin.model, "version": origin.version, "sequence": origin.sequence,
            "dataset": origin.dataset, "dataset_tag": origin.dataset_tag,
        })
    });
    json!({
        "name": row.name, "rows": row.rows, "bytes": row.bytes, "created_at": row.created_at, "origin": origin, "erased": row.erased,
        "columns": description.summary.columns_json(),
    })
}

fn upload(app: &App, holder: &Holder, route: &str, name: &str, query: Option<&str>, headers: &HeaderMap) -> Result<Upload, ApiError> {
    Ok(Upload {
        name: name.to_owned(),
        format: format(headers)?,
        types: types(query)?,
        if_match: extract::if_match(headers),
        idempotency: extract::idempotency(holder, headers, &[route, name, query.unwrap_or_default()])?,
        limit: app.upload_limit,
    })
}

/// The format that `Content-Type` names. What curl says by itself says nothing.
fn format(headers: &HeaderMap) -> Result<Option<Format>, ApiError> {
    let Some(media) = extract::media_type(headers, header::CONTENT_TYPE) else { return Ok(None) };
    match media.as_str() {
        "text/csv" | "application/csv" => Ok(Some(Format::Csv)),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" => Ok(Some(Format::Ndjson)),
        "application/json" => Ok(Some(Format::Json)),
        "application/octet-stream" | "application/x-www-form-urlencoded" | "text/plain" => Ok(None),
        _ => Err(ApiError::new(Code::UnsupportedMediaType, "a dataset comes as text/csv, application/x-ndjson or application/json")),
    }
}

/// `?types=column:type`, repeated. Nothing else is asked for in the query.
fn types(query: Option<&str>) -> Result<Vec<(String, ColumnType)>, ApiError> {
    let pairs: Vec<(String, String)> = match query {
        None => Vec::new(),
        Some(query) => axum::extract::Query::<Vec<(String, String)>>::try_from_uri(
            &axum::http::Uri::builder().path_and_query(format!("/?{query}")).build().unwrap_or_default(),
        )
        .map(|axum::extract::Query(pairs)| pairs)
        .map_err(|_| ServiceError::request("", "the query cannot be read"))?,
    };
    let mut types = Vec::new();
    let mut faults = Vec::new();
    for (name, value) in pairs {
        match (name.as_str(), value.rsplit_once(':')) {
            ("types", Some((column, kind))) if ColumnType::parse(kind).is_some() => {
                types.extend(ColumnType::parse(kind).map(|kind| (column.to_owned(), kind)));
            }
            ("types", _) => faults.push(Fault {
                pointer: "/types".to_owned(),
                detail: "`types` is column:type, and a type is number, integer, boolean, category, text or timestamp".to_owned(),
            }),
            _ => faults
                .push(Fault { pointer: "/".to_owned(), detail: "the query has an unknown parameter; `types` is the only one".to_owned() }),
        }
    }
    if faults.is_empty() { Ok(types) } else { Err(ServiceError::Request(faults).into()) }
}
