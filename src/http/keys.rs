//! `/v1/keys`: keys are made, listed and revoked by whoever has one of scope `admin`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::error::{ApiError, Code};
use super::extract::{Page, Path};
use super::wire::{Fields, refuse};
use super::{App, extract};
use crate::model::key::{Grant, KeyError, Names, Scopes};
use crate::service::{Holder, Key, Made};

pub(super) async fn create(State(app): State<App>, holder: Holder, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let (body, idempotency) = extract::keyed_body(&holder, &headers, body, app.body_limit, &["keys"]).await?;
    let made = app.service.make_key(grant(Fields::parse(&body)?)?, idempotency).await?;
    let Made { key, token } = made.value;
    let mut view = view(&key);
    view["token"] = json!(token.map(|token| token.reveal()));
    let mut response = (StatusCode::CREATED, Json(view)).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/keys/{}", key.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if made.replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

pub(super) async fn list(State(app): State<App>, page: Page) -> Result<Response, ApiError> {
    let keys = app.service.keys().await?;
    let first = match page.after.as_str() {
        "" => 0,
        after => keys.iter().position(|key| key.id == after).map_or(keys.len(), |place| place + 1),
    };
    let (items, rest) = keys[first..].split_at(keys[first..].len().min(page.limit as usize));
    let next = if rest.is_empty() { None } else { items.last().map(|key| &key.id) };
    Ok(Json(json!({"items": items.iter().map(view).collect::<Vec<_>>(), "next": next})).into_response())
}

pub(super) async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Response, ApiError> {
    Ok(Json(view(&app.service.key(&id).await?)).into_response())
}

pub(super) async fn revoke(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    app.service.revoke_key(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn view(key: &Key) -> Value {
    let state = if key.revoked_at.is_some() {
        "revoked"
    } else if key.grant.has_expired(Timestamp::now()) {
        "expired"
    } else {
        "active"
    };
    json!({
        "id": key.id, "name": key.grant.name, "scopes": key.grant.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>(),
        "models": key.grant.models.patterns(), "datasets": key.grant.datasets.patterns(), "state": state,
        "created_at": key.created_at, "expires_at": key.grant.expires_at.map(|end| end.to_string()), "revoked_at": key.revoked_at,
    })
}

fn grant(mut fields: Fields) -> Result<Grant, ApiError> {
    let name = fields.string("name");
    let scopes = match fields.strings("scopes") {
        Some(words) => Scopes::parse(&words.join(",")).unwrap_or_else(|error| {
            fields.fault("scopes", error.to_string());
            Scopes::default()
        }),
        None => fields.lacks("scopes"),
    };
    let mut names = |field| match fields.strings(field) {
        None => Names::All,
        patterns => Names::new(patterns.as_deref()).unwrap_or_else(|_: KeyError| {
            fields.fault(field, KeyError::Pattern.to_string());
            Names::All
        }),
    };
    let (models, datasets) = (names("models"), names("datasets"));
    let expires_at = fields.string("expires_at").and_then(|text| {
        let end = text.parse::<Timestamp>();
        if end.is_err() {
            fields.fault("expires_at", "`expires_at` is a moment such as 2030-01-31T12:00:00Z");
        }
        end.ok()
    });
    refuse(Code::InvalidRequest, fields.into_faults())?;
    Ok(Grant { name, scopes, models, datasets, expires_at })
}
