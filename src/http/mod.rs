//! The routes on one screen, and what every request passes through.
//!
//! A handler is: extract → one call on the service → wire struct. Wire structs stand beside their handlers; status codes are known to
//! `error.rs` alone.

mod answers;
mod backup;
mod datasets;
mod diagnostics;
mod entrance;
mod error;
mod extract;
mod fits;
mod headers;
mod inference;
mod inputs;
mod jobs;
mod labels;
mod middleware;
mod models;
mod online;
mod operations;
mod packed;
mod predict;
mod predict_stream;
mod predictions;
mod serving;
mod summary;
mod traffic;
mod updates;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::routing::MethodFilter;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{And, DefaultPredicate, Predicate as _, SizeAbove};

use crate::service::Service;

pub use entrance::Entrance;
pub use error::{ApiError, CODES};
pub use packed::PackedLimits;

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
    /// The model behind `/invocations`; without it, the only one there is.
    pub default_model: Option<Arc<str>>,
    /// Renders the metrics.
    pub metrics: fn() -> String,
}

macro_rules! routes {
    ($($method:ident $path:literal => $handler:path),* $(,)?) => {
        /// Every route: method and path, for the test that compares them with `openapi.yaml`.
        pub const ROUTES: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

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
    PUT    "/v1/datasets/{name}"                    => datasets::put,
    GET    "/v1/datasets/{name}"                    => datasets::describe,
    DELETE "/v1/datasets/{name}"                    => datasets::delete,
    GET    "/v1/datasets"                           => datasets::list,
    POST   "/v1/datasets/{name}/rows"               => datasets::append,
    GET    "/v1/datasets/{name}/rows"               => datasets::rows,
    DELETE "/v1/datasets/{name}/rows"               => datasets::erase_rows,
    DELETE "/v1/datasets/{name}/rows/{row}"         => datasets::erase_row,
    POST   "/v1/models/{name}/fits"                 => fits::create,
    GET    "/v1/jobs/{id}"                          => jobs::show,
    DELETE "/v1/jobs/{id}"                          => jobs::cancel,
    GET    "/v1/jobs/{id}/events"                   => jobs::events,
    GET    "/v1/models"                             => models::list,
    GET    "/v1/models/{name}"                      => models::show,
    DELETE "/v1/models/{name}"                      => models::delete,
    GET    "/v1/models/{name}/versions"             => models::versions,
    GET    "/v1/models/{name}/versions/{version}"   => models::version,
    DELETE "/v1/models/{name}/versions/{version}"   => models::delete_version,
    GET    "/v1/models/{name}/versions/{version}/diagnostics" => diagnostics::show,
    GET    "/v1/models/{name}/aliases"              => models::aliases,
    PUT    "/v1/models/{name}/aliases/{alias}"      => models::set_alias,
    DELETE "/v1/models/{name}/aliases/{alias}"      => models::delete_alias,
    GET    "/v1/models/{name}/traffic"              => traffic::show,
    PUT    "/v1/models/{name}/traffic"              => traffic::set,
    DELETE "/v1/models/{name}/traffic"              => traffic::end,
    POST   "/v1/models/{name}/predict"              => predict::predict,
    GET    "/v1/models/{name}/inputs"               => inputs::show,
    POST   "/v1/models/{name}/predictions"          => predictions::create,
    POST   "/v1/models/{name}/invocations"          => serving::invocations_of,
    POST   "/v1/models/{name}:predict"              => serving::predict,
    POST   "/v1/models/{name}/versions/{version}:predict" => serving::predict_version,
    POST   "/v1/models/{name}/updates"              => updates::learn,
    DELETE "/v1/models/{name}/updates/{sequence}"   => online::erase,
    DELETE "/v1/models/{name}/updates/by-id/{id}"   => online::erase_event,
    GET    "/v1/models/{name}/online"               => online::show,
    GET    "/v1/models/{name}/events"               => online::events,
    GET    "/v2"                                    => inference::json::server,
    GET    "/v2/health/live"                        => inference::json::live,
    GET    "/v2/health/ready"                       => inference::json::ready,
    GET    "/v2/models/{name}"                      => inference::json::model,
    GET    "/v2/models/{name}/ready"                => inference::json::model_ready,
    POST   "/v2/models/{name}/infer"                => inference::json::infer,
    GET    "/v2/models/{name}/versions/{version}"   => inference::json::version,
    GET    "/v2/models/{name}/versions/{version}/ready" => inference::json::version_ready,
    POST   "/v2/models/{name}/versions/{version}/infer" => inference::json::infer_version,
    POST   "/v1/models/{name}/labels"               => labels::learn,
    POST   "/invocations"                           => serving::invocations,
    GET    "/ping"                                  => operations::ready,
    GET    "/health"                                => operations::ready,
    GET    "/version"                               => serving::version,
    POST   "/v1/backup"                             => backup::create,
    GET    "/livez"                                 => operations::live,
    GET    "/readyz"                                => operations::ready,
    GET    "/metrics"                               => operations::metrics,
    GET    "/openapi.yaml"                          => operations::openapi,
    GET    "/"                                      => operations::home,
}

/// The same service over gRPC: the Open Inference Protocol, and nothing else.
pub fn grpc(app: App) -> Router {
    Router::new()
        .fallback(inference::grpc::call)
        .with_state(app)
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(inference::grpc::from_panic))
        .layer(axum::extract::DefaultBodyLimit::disable())
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
