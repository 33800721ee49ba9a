//! Updates as they are asked for: the rows of a request, put in order and handed to the writer.

use std::sync::Arc;

use super::catalogue::Version;
use super::error::ServiceError;
use super::learn::{Reply, UpdateRequest, Waiting};
use super::{IdempotencyKey, Replayable, Service};
use crate::frame::Faults;
use crate::frame::rows::Rows;

/// Rows to learn from, parsed by the version's update schema.
#[derive(Debug)]
pub struct Update {
    /// The version that is to learn.
    pub version: Arc<Version>,
    /// Features, targets and, if the fit had one, the weight.
    pub rows: Rows,
    /// ETags of which the version must carry one.
    pub if_match: Option<Vec<String>>,
    /// The key with the request's fingerprint.
    pub idempotency: Option<IdempotencyKey>,
}

impl Service {
    /// Learns rows in order. When this returns `Ok`, they are on disk and predictions see them.
    ///
    /// # Errors
    /// A weight is negative; the version was deleted or has another ETag; the database. Nothing was learnt then.
    pub async fn update(&self, update: Update) -> Result<Replayable<Reply>, ServiceError> {
        let Update { version, rows, if_match, idempotency } = update;
        check_learns(&version)?;
        let expected_sequence = expected_sequence(if_match.as_deref(), &version)?;
        let cells = with_weights(&version, &rows)?;
        // The writer may have to load the state; better here than while everybody waits.
        version.state(&self.store).await?;
        let (reply, answer) = Waiting::here();
        self.writer
            .update(UpdateRequest { version, cells, events: rows.ids, expected_sequence, idempotency, stream: None, labels: None, reply })
            .await?;
        answer.await.map_err(|_| ServiceError::Unavailable("the server is stopping"))?
    }
}

/// Refuses a version that cannot learn.
pub(super) fn check_learns(version: &Version) -> Result<(), ServiceError> {
    if version.document.estimator.learns() && version.document.constraints.is_empty() {
        return Ok(());
    }
    Err(ServiceError::Conflict("this version does not learn row by row: its estimator is not a plain sum of squares; fit it again"))
}

/// The sequence that `If-Match` asks for; `None` for any.
pub(super) fn expected_sequence(if_match: Option<&[String]>, version: &Version) -> Result<Option<u64>, ServiceError> {
    match if_match {
        None => Ok(None),
        Some(tags) if tags.iter().any(|tag| tag == "*") => Ok(None),
        Some(tags) => tags.iter().find_map(|tag| sequence_in(tag, version.number)).map(Some).ok_or(ServiceError::Precondition),
    }
}

/// The sequence in an ETag of this version.
fn sequence_in(tag: &str, number: u64) -> Option<u64> {
    let (version, sequence) = tag.split_once('-')?;
    (version.parse() == Ok(number)).then(|| sequence.parse().ok()).flatten()
}

/// Rows of features, targets and weight; a weight that is absent is 1.
pub(super) fn with_weights(version: &Version, rows: &Rows) -> Result<Vec<f64>, ServiceError> {
    let width = version.learning_width();
    let weighted = version.document.weights.is_some();
    let own = if weighted { width } else { width - 1 };
    let mut cells = Vec::with_capacity(rows.values.len() / own.max(1) * width);
    let mut faults = Faults::default();
    for (row, values) in rows.values.chunks_exact(own.max(1)).enumerate() {
        cells.extend_from_slice(&values[..width - 1]);
        let weight = if weighted { values[width - 1] } else { 1.0 };
        if weight < 0.0 {
            let name = version.document.weights.as_deref().unwrap_or_default();
            let (place, words) = match rows.lines.get(row) {
                Some(line) => (format!("/lines/{line}"), format!("line {line}")),
                None => (format!("/rows/{row}"), format!("row {}", row + 1)),
            };
            let pointer = || format!("{place}/{}", name.replace('~', "~0").replace('/', "~1"));
            faults.push(pointer, || format!("{words}, column {name:?}: the weight is negative"));
        }
        cells.push(if weight.is_nan() { 1.0 } else { weight });
    }
    if faults.is_empty() { Ok(cells) } else { Err(ServiceError::Rows(faults)) }
}
