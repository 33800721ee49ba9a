//! `GET /v1/audit`: who changed what.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::extract::Page;
use crate::service::ServiceError;
use crate::service::audit::Entry;

pub(super) async fn list(State(app): State<App>, page: Page) -> Result<Response, ApiError> {
    let after = match page.after.as_str() {
        "" => 0,
        text => text.parse::<u64>().map_err(|_| ServiceError::request("/after", "`after` is the `next` of an earlier page"))?,
    };
    let mut entries = app.service.audit(after, page.limit + 1).await?;
    let next = page.cut(&mut entries, |last| last.id.to_string());
    let items: Vec<Value> = entries.iter().map(view).collect();
    Ok(Json(json!({"items": items, "next": next})).into_response())
}

fn view(entry: &Entry) -> Value {
    let figures = |text: &Option<String>| text.as_deref().map(|text| serde_json::from_str::<Value>(text).unwrap_or_default());
    let said = |text: &String| (!text.is_empty()).then(|| text.clone());
    json!({
        "id": entry.id, "at": entry.at, "who": entry.who, "request_id": said(&entry.request), "action": entry.action,
        "subject": said(&entry.subject), "before": figures(&entry.before), "after": figures(&entry.after),
        "seal": entry.seal.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
    })
}
