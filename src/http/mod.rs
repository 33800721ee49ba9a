//! The routes on one screen, and what every request passes through.
//!
//! A handler is: extract → one call on the service → wire struct. Wire structs stand beside their handlers; status codes are known to
//! `error.rs` alone.

mod access;
mod answers;
mod audit;
mod backup;
mod datasets;
mod diagnostics;
mod entrance;
mod error;
mod extract;
mod features;
mod fits;
mod forecast;
mod headers;
mod inference;
mod inputs;
mod jobs;
mod keys;
mod labels;
mod middleware;
mod models;
mod online;
mod operations;
mod overload;
mod packed;
mod predict;
mod predict_stream;
mod predictions;
mod serving;
mod site;
mod summary;
mod traffic;
mod updates;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::routing::MethodFilter;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{And, DefaultPredicate, Predicate as _, SizeAbove};

use crate::model::key::{Scope, Scopes};
use crate::service::Service;

pub use access::Needs;
pub use entrance::Entrance;
pub use error::{ApiError, CODES};
pub use headers::Cors;
pub use overload::{Concurrency, Overload};
pub use packed::PackedLimits;
pub use site::Site;

/// What handlers share.
#[derive(Clone, Debug)]
pub struct App {
    /// The use cases.
    pub service: Arc<Service>,
    /// Bytes of a request body that is held in memory.
    pub body_limit: usize,
    /// Bytes of an upload; 0 is no limit.
    pub upload_limit: u64,
    /// What packed bodies are held to.
    pub packed: PackedLimits,
    /// The requests that are under way, by kind.
    pub overload: Arc<Overload>,
    /// The model behind `/invocations`; without it, the only one there is.
    pub default_model: Option<Arc<str>>,
    /// Origins whose pages may read replies.
    pub cors: Arc<Cors>,
    /// How the server is reached.
    pub site: Arc<Site>,
    /// Renders the metrics.
    pub metrics: fn() -> String,
}

/// What a route needs, by the words of its row.
macro_rules! needs {
    (Nothing) => { Needs::Nothing };
    (AnyKey) => { Needs::OneOf(Scopes::ALL) };
    ($($scope:ident)|+) => { Needs::OneOf(Scopes::of(&[$(Scope::$scope),+])) };
}

macro_rules! routes {
    ($($method:ident $path:literal $($scope:ident)|+ => $handler:path),* $(,)?) => {
        /// Every route: method, path and what it needs, for the tests that compare them with `openapi.yaml`.
        pub const ROUTES: &[(&str, &str, Needs)] = &[$((stringify!($method), $path, needs!($($scope)|+))),*];

        fn table() -> Router<App> {
            Router::new()$(.route(segments($path), axum::routing::on(MethodFilter::$method, $handler)))*
        }
    };
}

/// The address as the router takes it: it knows whole segments only, so the handler cuts off a verb after the last one.
fn segments(path: &'static str) -> &'static str {
    path.split_once("}:").map_or(path, |(before, _)| &path[..=before.len()])
}

routes! {
    PUT    "/v1/datasets/{name}"                                        Write        => datasets::put,
    GET    "/v1/datasets/{name}"                                        Read         => datasets::describe,
    DELETE "/v1/datasets/{name}"                                        Write        => datasets::delete,
    GET    "/v1/datasets"                                               Read         => datasets::list,
    POST   "/v1/datasets/{name}/rows"                                   Write        => datasets::append,
    GET    "/v1/datasets/{name}/rows"                                   Read         => datasets::rows,
    DELETE "/v1/datasets/{name}/rows"                                   Write        => datasets::erase_rows,
    DELETE "/v1/datasets/{name}/rows/{row}"                             Write        => datasets::erase_row,
    POST   "/v1/models/{name}/fits"                                     Write        => fits::create,
    GET    "/v1/jobs/{id}"                                              Read|Write   => jobs::show,
    DELETE "/v1/jobs/{id}"                                              Write        => jobs::cancel,
    GET    "/v1/jobs/{id}/events"                                       Read|Write   => jobs::events,
    GET    "/v1/models"                                                 Read         => models::list,
    GET    "/v1/models/{name}"                                          Read         => models::show,
    DELETE "/v1/models/{name}"                                          Write        => models::delete,
    GET    "/v1/models/{name}/versions"                                 Read         => models::versions,
    GET    "/v1/models/{name}/versions/{version}"                       Read         => models::version,
    DELETE "/v1/models/{name}/versions/{version}"                       Write        => models::delete_version,
    GET    "/v1/models/{name}/versions/{version}/diagnostics"           Read         => diagnostics::show,
    GET    "/v1/models/{name}/aliases"                                  Read         => models::aliases,
    PUT    "/v1/models/{name}/aliases/{alias}"                          Write        => models::set_alias,
    DELETE "/v1/models/{name}/aliases/{alias}"                          Write        => models::delete_alias,
    GET    "/v1/models/{name}/traffic"                                  Read         => traffic::show,
    PUT    "/v1/models/{name}/traffic"                                  Write        => traffic::set,
    DELETE "/v1/models/{name}/traffic"                                  Write        => traffic::end,
    POST   "/v1/models/{name}/predict"                                  Predict      => predict::predict,
    POST   "/v1/models/{name}/forecast"                                 Predict      => forecast::forecast,
    GET    "/v1/models/{name}/inputs"                                   Read         => inputs::show,
    POST   "/v1/models/{name}/predictions"                              Write        => predictions::create,
    POST   "/v1/models/{name}/invocations"                              Predict      => serving::invocations_of,
    POST   "/v1/models/{name}:predict"                                  Predict      => serving::predict,
    POST   "/v1/models/{name}/versions/{version}:predict"               Predict      => serving::predict_version,
    POST   "/v1/models/{name}/updates"                                  Update       => updates::learn,
    DELETE "/v1/models/{name}/updates/{sequence}"                       Write        => online::erase,
    DELETE "/v1/models/{name}/updates/by-id/{id}"                       Write        => online::erase_event,
    GET    "/v1/models/{name}/online"                                   Read         => online::show,
    GET    "/v1/models/{name}/events"                                   Read         => online::events,
    GET    "/v2"                                                        AnyKey       => inference::json::server,
    GET    "/v2/health/live"                                            Nothing      => inference::json::live,
    GET    "/v2/health/ready"                                           Nothing      => inference::json::ready,
    GET    "/v2/models/{name}"                                          Read|Predict => inference::json::model,
    GET    "/v2/models/{name}/ready"                                    Read|Predict => inference::json::model_ready,
    POST   "/v2/models/{name}/infer"                                    Predict      => inference::json::infer,
    GET    "/v2/models/{name}/versions/{version}"                       Read|Predict => inference::json::version,
    GET    "/v2/models/{name}/versions/{version}/ready"                 Read|Predict => inference::json::version_ready,
    POST   "/v2/models/{name}/versions/{version}/infer"                 Predict      => inference::json::infer_version,
    POST   "/v1/models/{name}/labels"                                   Update       => labels::learn,
    POST   "/invocations"                                               Predict      => serving::invocations,
    GET    "/ping"                                                      Nothing      => operations::ready,
    GET    "/health"                                                    Nothing      => operations::ready,
    GET    "/version"                                                   AnyKey       => serving::version,
    GET    "/v1/keys"                                                   Admin        => keys::list,
    POST   "/v1/keys"                                                   Admin        => keys::create,
    GET    "/v1/keys/{id}"                                              Admin        => keys::show,
    DELETE "/v1/keys/{id}"                                              Admin        => keys::revoke,
    GET    "/v1/audit"                                                  Admin        => audit::list,
    POST   "/v1/backup"                                                 Admin        => backup::create,
    GET    "/livez"                                                     Nothing      => operations::live,
    GET    "/readyz"                                                    Nothing      => operations::ready,
    GET    "/metrics"                                                   Read         => operations::metrics,
    GET    "/openapi.yaml"                                              AnyKey       => operations::openapi,
    GET    "/"                                                          AnyKey       => operations::home,
}

/// The same service over gRPC: the Open Inference Protocol, and nothing else.
pub fn grpc(app: App) -> Router {
    Router::new()
        .fallback(inference::grpc::call)
        .with_state(app)
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(inference::grpc::from_panic))
        .layer(axum::extract::DefaultBodyLimit::disable())
}

/// Health and metrics alone, as the routes answer them.
pub fn watch(app: App) -> Router {
    Router::new()
        .route("/livez", axum::routing::get(operations::live))
        .route("/readyz", axum::routing::get(operations::ready))
        .route("/metrics", axum::routing::get(operations::metrics))
        .fallback(operations::not_found)
        .method_not_allowed_fallback(operations::method_not_allowed)
        .with_state(app.clone())
        .layer(axum::middleware::from_fn_with_state(app, middleware::around))
        .layer(compression())
}

/// The application: the routes, and around them what every request passes through.
pub fn router(app: App) -> Router {
    let packed_in = app.clone();
    table()
        .fallback(operations::not_found)
        .method_not_allowed_fallback(operations::method_not_allowed)
        .with_state(app.clone())
        .layer(axum::middleware::from_fn_with_state(app, middleware::around))
        // Outside: errors are packed too, and what comes in is unpacked before anybody counts its bytes. What is packed goes out whenever
        // nothing more is there to be packed, so that streams stay prompt.
        .layer(axum::middleware::map_request_with_state(packed_in, packed::unpack))
        .layer(compression())
        .layer(axum::extract::DefaultBodyLimit::disable())
}

/// Bytes of an answer that one packet holds: packing less would cost more time than it saves.
const PACKET: u16 = 1400;

/// Packs answers for those who take them packed.
fn compression() -> CompressionLayer<And<DefaultPredicate, SizeAbove>> {
    CompressionLayer::new().compress_when(DefaultPredicate::new().and(SizeAbove::new(PACKET.into())))
}
