//! What the server says about itself: log lines on stderr, and metrics as Prometheus text.
//!
//! A metric is named here and nowhere else. Labels are few and bounded (a route, a method, a status, a state): never a name that a caller
//! chose, which would grow without end. Counting is done where things happen, not here.

use std::io::IsTerminal as _;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Requests answered, by `route`, `method` and `status`.
pub const REQUESTS: &str = "lsqd_requests_total";
/// Seconds from a request's header to its response's header, by `route`.
pub const REQUEST_SECONDS: &str = "lsqd_request_seconds";
/// Connections that are open.
pub const CONNECTIONS: &str = "lsqd_connections";
/// Rows learnt online.
pub const UPDATES: &str = "lsqd_updates_total";
/// Drifts found.
pub const DRIFTS: &str = "lsqd_drifts_total";
/// Fits that ended, by `state`.
pub const FITS: &str = "lsqd_fits_total";
/// Seconds from the acceptance of a fit to its end.
pub const FIT_SECONDS: &str = "lsqd_fit_seconds";
/// Rows of datasets uploaded.
pub const UPLOAD_ROWS: &str = "lsqd_upload_rows_total";
/// Rows predicted.
pub const PREDICTIONS: &str = "lsqd_predictions_total";
/// Commits of the writer.
pub const COMMITS: &str = "lsqd_commits_total";
/// Models in memory.
pub const MODELS: &str = "lsqd_models";
/// Datasets in the database.
pub const DATASETS: &str = "lsqd_datasets";

/// From a prediction of one row (well under a millisecond) to a fit that was waited for.
const REQUEST_BUCKETS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// From sixteen rows to hundreds of millions.
const FIT_BUCKETS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];

/// How often samples are folded into their buckets, also when nobody looks.
const UPKEEP: Duration = Duration::from_secs(5);

/// One recorder a process: the `metrics` macros know no other.
static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts to count. Any number of calls make one recorder.
pub fn install() {
    HANDLE.get_or_init(|| {
        let mut builder = PrometheusBuilder::new();
        for (name, buckets) in [(REQUEST_SECONDS, REQUEST_BUCKETS), (FIT_SECONDS, FIT_BUCKETS)] {
            // Fails on an empty list of buckets alone, and then the metric is a summary.
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets).unwrap_or_else(|_| PrometheusBuilder::new());
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another recorder of metrics is installed in this process; /metrics stays empty");
        }
        describe();
        handle
    });
}

fn describe() {
    describe_counter!(REQUESTS, "Requests answered, by route, method and status");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "Seconds from a request's header to its response's header, by route");
    describe_gauge!(CONNECTIONS, "Connections that are open");
    describe_counter!(UPDATES, "Rows learnt online");
    describe_counter!(DRIFTS, "Drifts found in the errors of a-priori predictions");
    describe_counter!(FITS, "Fits that ended, by state");
    describe_histogram!(FIT_SECONDS, Unit::Seconds, "Seconds from the acceptance of a fit to its end");
    describe_counter!(UPLOAD_ROWS, "Rows of datasets uploaded");
    describe_counter!(PREDICTIONS, "Rows predicted");
    describe_counter!(COMMITS, "Commits to the database");
    describe_gauge!(MODELS, "Models in memory");
    describe_gauge!(DATASETS, "Datasets in the database");
}

/// The metrics as Prometheus text; empty before [`install`].
#[must_use]
pub fn render() -> String {
    HANDLE.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// Keeps the recorder's memory bounded, for as long as it is polled.
pub async fn upkeep() {
    let mut clock = tokio::time::interval(UPKEEP);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        if let Some(handle) = HANDLE.get() {
            handle.run_upkeep();
        }
    }
}

/// Begins to log on stderr; `filter` is a level or a list such as `info,lsqd::http=warn`. A process that logs already goes on as it does.
///
/// # Errors
/// The filter is not one.
pub fn log(format: LogFormat, filter: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // `try_init` fails when there is a subscriber already, which a test may have installed before.
    let _ = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_counted_is_rendered_once_however_often_it_is_installed() {
        install();
        install();
        metrics::counter!(REQUESTS, "route" => "/telemetry-test", "method" => "GET", "status" => "200").increment(2);
        metrics::histogram!(REQUEST_SECONDS, "route" => "/telemetry-test").record(0.003);
        let text = render();
        let counted = text.lines().find(|line| line.starts_with(REQUESTS) && line.contains("telemetry-test")).unwrap();
        assert!(counted.ends_with(" 2"), "{counted}");
        let bucket = |bound: &str| {
            let bound = format!("le=\"{bound}\"");
            let line = text.lines().find(|line| line.contains("telemetry-test") && line.contains(&bound)).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!((bucket("0.0025").as_str(), bucket("0.005").as_str(), bucket("+Inf").as_str()), ("0", "1", "1"));
        assert!(text.contains("# HELP lsqd_requests_total "), "{text}");
    }

    #[test]
    fn a_filter_that_is_none_is_an_error() {
        assert!(log(LogFormat::Text, "lsqd=loud").is_err());
    }
}
