//! What the server says about itself: log lines on stderr, and metrics as Prometheus text.
//!
//! A metric is named here and nowhere else. Labels are few and bounded (a route, a method, a status, a state): never a name that a caller
//! chose, which would grow without end. The one exception is how models fare and what is asked of them, told when it is asked for as [`Lines`]:
//! of so many models, targets and features and no more, and gone with the model. Counting is done where things happen, not here.

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
/// When the certificate that connections are encrypted with is over, in seconds since 1970.
pub const CERTIFICATE_END: &str = "lsqd_tls_certificate_not_after_seconds";
/// Whether what is in the files of certificate and key now cannot be used.
pub const CERTIFICATE_REFUSED: &str = "lsqd_tls_certificate_refused";
/// Requests of a `class` that are under way.
pub const UNDER_WAY: &str = "lsqd_requests_under_way";
/// Requests that were refused because too many of their `class` were under way.
pub const SHED: &str = "lsqd_requests_shed_total";
/// Bytes of the database.
pub const DATABASE_BYTES: &str = "lsqd_database_bytes";
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
/// Requests answered by a version that a split of traffic chose.
pub const SPLIT_REQUESTS: &str = "lsqd_traffic_requests_total";
/// Rows that shadows predicted.
pub const SHADOW_ROWS: &str = "lsqd_traffic_shadow_rows_total";
/// Rows that shadows did not see because too many waited.
pub const SHADOW_DROPPED: &str = "lsqd_traffic_shadow_dropped_rows_total";
/// Labels by which members of a split were compared.
pub const SPLIT_LABELS: &str = "lsqd_traffic_labels_total";
/// Commits of the writer.
pub const COMMITS: &str = "lsqd_commits_total";
/// Rows that a version was asked to predict, by `model` and `version`.
pub const INPUT_ROWS: Family = Family { name: "lsqd_input_rows_total", kind: "counter", help: "Rows that a version predicted" };
/// Requests to predict that were refused for their rows.
pub const INPUT_REFUSED: Family =
    Family { name: "lsqd_input_refused_total", kind: "counter", help: "Requests to predict that were refused for their rows" };
/// The population stability index of one of the first features, with `feature`.
pub const INPUT_PSI: Family =
    Family { name: "lsqd_input_psi", kind: "gauge", help: "Population stability index of a feature in the last hour, less its noise" };
/// The largest index of any feature.
pub const INPUT_PSI_LARGEST: Family =
    Family { name: "lsqd_input_psi_max", kind: "gauge", help: "The largest such index of any feature of the version" };
/// The largest share of missing values.
pub const INPUT_MISSING: Family = Family {
    name: "lsqd_input_missing_ratio_max",
    kind: "gauge",
    help: "The largest share of missing values of any feature, in the last hour",
};
/// The largest share of unseen categories.
pub const INPUT_UNSEEN: Family = Family {
    name: "lsqd_input_unseen_ratio_max",
    kind: "gauge",
    help: "The largest share of categories unseen in training of any feature, in the last hour",
};
/// Features that have shifted.
pub const INPUTS_SHIFTED: Family =
    Family { name: "lsqd_inputs_shifted", kind: "gauge", help: "Features whose values are no longer as in training" };
/// The share of rows that lie outside of training.
pub const INPUT_EXTRAPOLATING: Family = Family {
    name: "lsqd_input_extrapolating_ratio",
    kind: "gauge",
    help: "Share of rows that lie farther out than any row of training, in the last hour",
};
/// The version that is served, by `model`.
pub const MODEL_VERSION: Family = Family { name: "lsqd_model_version", kind: "gauge", help: "The version that is served" };
/// Rows that it has learnt.
pub const MODEL_SEQUENCE: Family =
    Family { name: "lsqd_model_sequence", kind: "gauge", help: "Rows that the served version has learnt since its fit" };
/// Rows that it remembers.
pub const MODEL_ROWS: Family =
    Family { name: "lsqd_model_effective_rows", kind: "gauge", help: "Rows that the served version still remembers" };
/// Drifts of it.
pub const MODEL_DRIFTS: Family =
    Family { name: "lsqd_model_drifts", kind: "gauge", help: "Drifts found since the fit of the served version" };
/// The share of right labels among the latest, by `model`, of classifiers.
pub const MODEL_ACCURACY: Family = Family {
    name: "lsqd_model_accuracy",
    kind: "gauge",
    help: "Share of right labels given before their row was learnt, over the latest 1000 rows",
};
/// √ of the mean squared error of the latest predictions, by `model` and `target`.
pub const MODEL_RMSE: Family = Family {
    name: "lsqd_model_rmse",
    kind: "gauge",
    help: "Root mean squared error of predictions made before their row was learnt, over the latest 1000 rows",
};
/// The share of them inside their interval.
pub const MODEL_COVERAGE: Family =
    Family { name: "lsqd_model_coverage", kind: "gauge", help: "Share of the latest 1000 rows inside their 95% prediction interval" };
/// Models that learn and are not among those.
pub const MODELS_LEFT_OUT: Family =
    Family { name: "lsqd_models_left_out", kind: "gauge", help: "Models that learn and have no figures here, because there are too many" };
/// Models of which something is damaged.
pub const QUARANTINED: &str = "lsqd_models_quarantined";
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
    describe_gauge!(CERTIFICATE_END, Unit::Seconds, "When the certificate that connections are encrypted with is over, since 1970");
    describe_gauge!(CERTIFICATE_REFUSED, "1 while the files hold a certificate and a key that cannot be used, and earlier ones are");
    describe_gauge!(UNDER_WAY, "Requests under way, by what they take");
    describe_counter!(SHED, "Requests refused because too many of their kind were under way");
    describe_gauge!(DATABASE_BYTES, Unit::Bytes, "Bytes of the database, with what it has let go of and may use again");
    describe_counter!(UPDATES, "Rows learnt online");
    describe_counter!(DRIFTS, "Drifts found in the errors of a-priori predictions");
    describe_counter!(FITS, "Fits that ended, by state");
    describe_histogram!(FIT_SECONDS, Unit::Seconds, "Seconds from the acceptance of a fit to its end");
    describe_counter!(UPLOAD_ROWS, "Rows of datasets uploaded");
    describe_counter!(PREDICTIONS, "Rows predicted");
    describe_counter!(SPLIT_REQUESTS, "Requests answered by a version that a split of traffic chose");
    describe_counter!(SHADOW_ROWS, "Rows that shadows predicted");
    describe_counter!(SHADOW_DROPPED, "Rows that shadows did not see because too many waited");
    describe_counter!(SPLIT_LABELS, "Labels by which members of a split were compared");
    describe_counter!(COMMITS, "Commits to the database");
    describe_gauge!(MODELS, "Models in memory");
    describe_gauge!(QUARANTINED, "Models of which something stored is damaged, so that it is not answered from");
    describe_gauge!(DATASETS, "Datasets in the database");
}

/// The metrics as Prometheus text; empty before [`install`].
#[must_use]
pub fn render() -> String {
    HANDLE.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// A metric whose lines are written when they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

/// Lines of metrics, each family's together, as the format wants them.
#[derive(Debug, Default)]
pub struct Lines {
    families: Vec<(Family, String)>,
}

impl Lines {
    /// Adds a sample; its labels are names of ours and values of anybody's.
    pub fn push(&mut self, family: Family, labels: &[(&str, &str)], value: f64) {
        let place = self.families.iter().position(|(known, _)| *known == family).unwrap_or_else(|| {
            self.families.push((family, String::new()));
            self.families.len() - 1
        });
        let lines = &mut self.families[place].1;
        lines.push_str(family.name);
        for (place, (label, text)) in labels.iter().enumerate() {
            lines.push(if place == 0 { '{' } else { ',' });
            lines.push_str(label);
            lines.push_str("=\"");
            for character in text.chars() {
                match character {
                    '\\' => lines.push_str("\\\\"),
                    '"' => lines.push_str("\\\""),
                    '\n' => lines.push_str("\\n"),
                    other => lines.push(other),
                }
            }
            lines.push('"');
        }
        lines.push_str(if labels.is_empty() { " " } else { "} " });
        lines.push_str(&value.to_string());
        lines.push('\n');
    }

    /// All of them.
    #[must_use]
    pub fn into_text(self) -> String {
        let families = self.families.into_iter();
        families.map(|(Family { name, kind, help }, lines)| format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}\n")).collect()
    }
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
    fn lines_stand_by_family_and_their_labels_are_escaped() {
        let mut lines = Lines::default();
        for model in ["a\"b\\c", "d"] {
            lines.push(INPUT_PSI_LARGEST, &[("model", model), ("version", "1")], 0.25);
            lines.push(INPUTS_SHIFTED, &[("model", model), ("version", "1")], 2.0);
        }
        let text = lines.into_text();
        let own: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(own.len(), 8);
        assert_eq!(own[1], "# TYPE lsqd_input_psi_max gauge");
        assert_eq!(
            own[2..4],
            [r#"lsqd_input_psi_max{model="a\"b\\c",version="1"} 0.25"#, r#"lsqd_input_psi_max{model="d",version="1"} 0.25"#]
        );
        assert_eq!(own[6], r#"lsqd_inputs_shifted{model="a\"b\\c",version="1"} 2"#);
    }

    #[test]
    fn a_filter_that_is_none_is_an_error() {
        assert!(log(LogFormat::Text, "lsqd=loud").is_err());
    }
}
