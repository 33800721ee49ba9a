//! `lsqd check`: whether every stored thing is what was written, and mending what can be made anew.
//!
//! Looked at are SQLite's own structure, what points at nothing, the checksum and the form of every model, snapshot, record of the log and
//! column chunk, whether sequences are dense, and whether what a dataset says of itself is so. What is made of other stored things can be
//! mended: an index from its table, a snapshot from the one before it and the log, a dataset's description from its chunks. Answers that are
//! kept for repeats are dropped. What cannot be made anew is named, and left as it is.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::catalogue::Version;
use super::{audit, datasets, learn};
use crate::frame::Summary;
use crate::model::State;
use crate::store::audit::Broken;
use crate::store::check::{self as stored, Kept, Logged};
use crate::store::datasets::DatasetRow;
use crate::store::models::{ModelRow, VersionRow};
use crate::store::{self, Connection, StoreError, backup};

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is: a model's version, a dataset, the file.
    pub place: String,
    /// What is wrong with it.
    pub fault: String,
    /// What was done about it, if something was.
    pub repair: Option<String>,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Looked {
    /// Bytes of the database.
    pub bytes: u64,
    /// Versions of models.
    pub versions: u64,
    /// Snapshots of their states.
    pub snapshots: u64,
    /// Records of their logs.
    pub records: u64,
    /// Rows in those.
    pub rows: u64,
    /// Datasets.
    pub datasets: u64,
    /// Column chunks of theirs.
    pub chunks: u64,
    /// Answers that are kept for repeats and labels.
    pub answers: u64,
    /// Records of the audit log.
    pub audited: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What is wrong, or was.
    pub findings: Vec<Finding>,
    /// How much was looked at.
    pub looked: Looked,
}

impl Report {
    /// Whether nothing is wrong, or everything that was is mended.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.findings.iter().all(|finding| finding.repair.is_some())
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> String {
        json!({"whole": self.is_whole(), "findings": self.findings, "looked_at": self.looked}).to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { place, fault, repair } in &self.findings {
            writeln!(formatter, "{place}: {fault}")?;
            if let Some(repair) = repair {
                writeln!(formatter, "  mended: {repair}")?;
            }
        }
        let Looked { bytes, versions, snapshots, records, rows, datasets, chunks, answers, audited } = self.looked;
        writeln!(
            formatter,
            "looked at {bytes} bytes: {versions} version(s), {snapshots} snapshot(s), {records} record(s) of {rows} row(s) learnt, \
             {datasets} dataset(s) of {chunks} column chunk(s), {answers} kept answer(s), {audited} record(s) of the audit log"
        )?;
        let mended = self.findings.iter().filter(|finding| finding.repair.is_some()).count();
        match self.findings.len() {
            0 => write!(formatter, "everything is as it was written"),
            faults => write!(formatter, "{faults} fault(s), {mended} of them mended"),
        }
    }
}

/// Looks at a database, whether its server runs or not, as it stands at one moment.
///
/// # Errors
/// It cannot be opened as a database of lsqd at all, or was written by another version of it.
pub async fn check(database: &Path) -> Result<Report, StoreError> {
    let mut connection = backup::look(database).await?;
    store::begin_reading(&mut connection).await?;
    let report = Check { connection: &mut connection, repair: false, report: Report::default() }.all().await?;
    store::rollback(&mut connection).await?;
    Ok(report)
}

/// Looks at a database whose server does not run, and mends what can be mended, in one transaction.
///
/// # Errors
/// As [`check`], and when a server has the database.
pub async fn repair(database: &Path) -> Result<Report, StoreError> {
    let _lock = store::lock(database)?;
    drop(backup::look(database).await?);
    let mut connection = stored::open(database).await?;
    store::begin(&mut connection).await?;
    let checked = Check { connection: &mut connection, repair: true, report: Report::default() }.all().await;
    match checked {
        Ok(mut report) => {
            record(&mut connection, &mut report).await?;
            store::commit(&mut connection).await?;
            store::close_writer(connection).await?;
            Ok(report)
        }
        Err(error) => {
            // The rollback's own failure says nothing new.
            let _ = store::rollback(&mut connection).await;
            Err(error)
        }
    }
}

/// Writes into the audit log what was mended, if that can be: a log that is itself damaged keeps nobody from mending the rest.
async fn record(connection: &mut Connection, report: &mut Report) -> Result<(), StoreError> {
    let mended = report.findings.iter().filter(|finding| finding.repair.is_some()).count();
    if mended == 0 {
        return Ok(());
    }
    let left = report.findings.len() - mended;
    match audit::by_hand(connection, "repair", json!({"mended": mended, "left": left})).await {
        Err(error) if error.is_corrupt() => {
            let (place, fault) = ("the audit log".to_owned(), format!("what was mended cannot be written into it: {error}"));
            report.findings.push(Finding { place, fault, repair: None });
            Ok(())
        }
        other => other,
    }
}

struct Check<'c> {
    connection: &'c mut Connection,
    repair: bool,
    report: Report,
}

/// A version of a model as a finding names it.
fn name(model: &str, version: u64) -> String {
    format!("model {model:?}, version {version}")
}

impl Check<'_> {
    async fn all(mut self) -> Result<Report, StoreError> {
        if let Some(schema) = stored::older_schema(self.connection).await? {
            return Err(StoreError::Older(schema));
        }
        self.report.looked.bytes = stored::length(self.connection).await?;
        let structure = stored::structure(self.connection).await;
        self.structure(structure).await?;
        match stored::dangling(self.connection).await {
            Ok(faults) => faults.into_iter().for_each(|fault| self.found("the database", fault)),
            Err(error) => self.unreadable("what belongs to what", &error)?,
        }
        if let Err(error) = self.models().await {
            self.unreadable("the models", &error)?;
        }
        if let Err(error) = self.datasets().await {
            self.unreadable("the datasets", &error)?;
        }
        match stored::kept(self.connection).await {
            Ok((looked, damaged)) => {
                self.report.looked.answers = looked;
                for kept in damaged {
                    self.kept(&kept).await?;
                }
            }
            Err(error) => self.unreadable("the kept answers", &error)?,
        }
        match store::audit::verify(self.connection).await {
            Ok((audited, broken)) => {
                self.report.looked.audited = audited;
                for place in broken {
                    let fault = match place {
                        Broken::Missing(first, last) if first == last => format!("record {first} is not there"),
                        Broken::Missing(first, last) => format!("records {first} to {last} are not there"),
                        Broken::Changed(record) => format!("record {record} is not what was written, or not in its place"),
                    };
                    self.found("the audit log", fault);
                }
            }
            Err(error) => self.unreadable("the audit log", &error)?,
        }
        Ok(self.report)
    }

    fn found(&mut self, place: impl Into<String>, fault: impl Into<String>) {
        self.report.findings.push(Finding { place: place.into(), fault: fault.into(), repair: None });
    }

    fn mended(&mut self, place: impl Into<String>, fault: impl Into<String>, repair: impl Into<String>) {
        self.report.findings.push(Finding { place: place.into(), fault: fault.into(), repair: Some(repair.into()) });
    }

    /// A part that SQLite cannot read, so that the rest can still be looked at.
    fn unreadable(&mut self, place: &str, error: &StoreError) -> Result<(), StoreError> {
        if error.is_storage_failure() && !error.is_corrupt() {
            return Err(StoreError::Unreadable(error.to_string()));
        }
        self.found(place, format!("cannot be read to their end: {error}"));
        Ok(())
    }

    async fn structure(&mut self, found: Result<Vec<String>, StoreError>) -> Result<(), StoreError> {
        let faults = match found {
            Ok(faults) => faults,
            Err(error) => return self.unreadable("the structure of the file", &error),
        };
        let of_an_index = |fault: &String| fault.contains(" index ");
        let mendable =
            self.repair && !faults.is_empty() && faults.iter().all(of_an_index) && stored::reindex(self.connection).await.is_ok();
        let mended = mendable && stored::structure(self.connection).await.is_ok_and(|faults| faults.is_empty());
        for fault in faults {
            match mended {
                true => self.mended("the structure of the file", fault, "the indexes were made anew from their tables"),
                false => self.found("the structure of the file", fault),
            }
        }
        Ok(())
    }

    async fn models(&mut self) -> Result<(), StoreError> {
        let models = store::models::all(self.connection).await?;
        let versions = store::models::all_versions(self.connection).await?;
        for row in &versions {
            let Some(model) = models.iter().find(|model| model.id == row.model) else { continue };
            self.report.looked.versions += 1;
            if let Err(error) = self.version(model, row).await {
                self.unreadable(&name(&model.name, row.version), &error)?;
            }
        }
        for alias in store::models::all_aliases(self.connection).await? {
            let Some(model) = models.iter().find(|model| model.id == alias.model) else { continue };
            if alias.damaged {
                self.found(format!("model {:?}", model.name), format!("the alias {:?} is not what was written", alias.alias));
            }
            let version = versions.iter().find(|version| version.model == alias.model && version.version == alias.version);
            let standing = match version {
                Some(version) => backup::standing_of(self.connection, version.id).await?,
                None => {
                    self.found(
                        format!("model {:?}", model.name),
                        format!("the alias {:?} points at a version that is not there", alias.alias),
                    );
                    continue;
                }
            };
            if alias.sequence.is_some_and(|sequence| sequence > standing) {
                self.found(
                    name(&model.name, alias.version),
                    format!("the alias {:?} holds it at a sequence it has not reached", alias.alias),
                );
            }
        }
        Ok(())
    }

    async fn version(&mut self, model: &ModelRow, row: &VersionRow) -> Result<(), StoreError> {
        let place = name(&model.name, row.version);
        let version = Version::new(&model.name, row, None, Arc::default()).ok();
        if version.is_none() {
            self.found(&place, "what was fitted and how does not decode");
        }
        match stored::state(self.connection, row.id).await? {
            Err(error) => self.found(&place, error.to_string()),
            Ok(bytes) if !State::decode(&bytes).is_ok_and(|state| state.sequence() == 0) => {
                self.found(&place, "the state as it was fitted does not decode");
            }
            Ok(_) => {}
        }
        self.log(&place, row.id, version.as_ref()).await?;
        for sequence in stored::snapshots(self.connection, row.id).await? {
            self.report.looked.snapshots += 1;
            let fault = match stored::snapshot(self.connection, row.id, sequence).await? {
                Err(_) => format!("the checksum of the snapshot at {sequence} does not agree"),
                Ok(bytes) if !State::decode(&bytes).is_ok_and(|state| state.sequence() == sequence) => {
                    format!("the snapshot at {sequence} does not decode")
                }
                Ok(_) => continue,
            };
            let remade = match (&version, self.repair) {
                (Some(version), true) => self.remake(version, sequence).await?,
                _ => false,
            };
            match remade {
                true => self.mended(&place, fault, "made anew from the state before it and the log"),
                false => self.found(&place, fault),
            }
        }
        Ok(())
    }

    /// The log of a version: checksums, widths, and whether it goes on from the fit or from a snapshot without a gap.
    async fn log(&mut self, place: &str, id: i64, version: Option<&Version>) -> Result<(), StoreError> {
        let snapshots = stored::snapshots(self.connection, id).await?;
        let erased = stored::erasures(self.connection, id).await?;
        let width = version.map(Version::learning_width);
        let (mut next, mut begun, mut faults, mut gone) = (1, None, Vec::new(), Vec::new());
        let (mut records, mut total) = (0, 0);
        let look = |Logged { first, rows, record }: Logged| {
            records += 1;
            total += rows;
            // Of a log that is not kept for ever the beginning may be gone, up to a snapshot.
            let trimmed = begun.is_none() && snapshots.iter().any(|snapshot| first <= snapshot + 1);
            if first != next && !trimmed {
                faults.push(format!("the log goes on at {first} and not at {next}"));
            }
            begun.get_or_insert(first);
            next = first.saturating_add(rows);
            match record {
                Err(_) => faults.push(format!("the checksum of the log's record of {first} to {} does not agree", next.saturating_sub(1))),
                Ok(record) => {
                    let cells = usize::try_from(rows).ok().zip(width).map(|(rows, width)| rows.saturating_mul(width));
                    if rows == 0 || cells.is_some_and(|cells| cells != record.values.len()) {
                        faults.push(format!("the log's record at {first} has not as many cells as rows"));
                    }
                    gone.extend(record.erased.iter().map(|place| first + u64::from(*place)));
                }
            }
        };
        stored::log(self.connection, id, look).await?;
        let newest = snapshots.last().copied().unwrap_or(0);
        if begun.is_some() && next <= newest {
            faults.push(format!("the log ends at {} and a snapshot stands at {newest}", next - 1));
        }
        gone.sort_unstable();
        let begun = begun.unwrap_or(u64::MAX);
        if !gone.iter().eq(erased.iter().filter(|sequence| **sequence >= begun)) {
            faults.push("the rows that were erased are not those that the log passes over".to_owned());
        }
        self.report.looked.records += records;
        self.report.looked.rows += total;
        faults.into_iter().for_each(|fault| self.found(place, fault));
        Ok(())
    }

    /// Makes a snapshot anew; whether that could be done.
    async fn remake(&mut self, version: &Version, sequence: u64) -> Result<bool, StoreError> {
        let Some(mut state) = self.before(version, sequence).await? else { return Ok(false) };
        while state.sequence() < sequence {
            // A record of it that is damaged is named where the log is looked at.
            let Ok(records) = store::updates::after(self.connection, version.id, state.sequence(), 256).await else { return Ok(false) };
            if records.is_empty() {
                return Ok(false);
            }
            for record in records.iter().take_while(|record| record.first_sequence <= sequence) {
                if learn::replay(version, &mut state, record, sequence).is_err() {
                    return Ok(false);
                }
            }
        }
        store::updates::set_snapshot(self.connection, version.id, sequence, state.encode()).await?;
        Ok(true)
    }

    /// The newest state before a sequence that is as it was written.
    async fn before(&mut self, version: &Version, sequence: u64) -> Result<Option<State>, StoreError> {
        for earlier in stored::snapshots(self.connection, version.id).await?.into_iter().rev().filter(|earlier| *earlier < sequence) {
            if let Ok(bytes) = stored::snapshot(self.connection, version.id, earlier).await?
                && let Ok(state) = State::decode(&bytes)
                && state.sequence() == earlier
            {
                return Ok(Some(state));
            }
        }
        let fitted = stored::state(self.connection, version.id).await?;
        Ok(fitted.ok().and_then(|bytes| State::decode(&bytes).ok()).filter(|state| state.sequence() == 0))
    }

    async fn datasets(&mut self) -> Result<(), StoreError> {
        for row in stored::all_datasets(self.connection).await? {
            self.report.looked.datasets += 1;
            if let Err(error) = self.dataset(&row).await {
                self.unreadable(&format!("dataset {:?}", row.name), &error)?;
            }
        }
        Ok(())
    }

    async fn dataset(&mut self, row: &DatasetRow) -> Result<(), StoreError> {
        let place = format!("dataset {:?}", row.name);
        let Ok(summary) = serde_json::from_str::<Summary>(&row.summary) else {
            self.found(place, "its description does not decode");
            return Ok(());
        };
        let width = summary.schema.columns.len();
        let columns: Vec<usize> = (0..width).collect();
        let (mut counted, mut rows, mut bytes, mut whole) = (Summary::empty(summary.schema.clone()), 0, 0, true);
        let chunks = stored::chunks(self.connection, row.id).await?;
        let mut in_segment = (0, 0);
        for (number, chunk) in chunks.iter().enumerate() {
            let mut faults = Vec::new();
            if number == 0 || chunks[number - 1].segment != chunk.segment {
                in_segment = (0, 0);
            }
            if chunk.first_row != in_segment.1 {
                faults.push("does not begin where the one before it ends");
            }
            in_segment = (chunk.position + 1, in_segment.1 + chunk.rows);
            let last = chunks.get(number + 1).is_none_or(|next| next.segment != chunk.segment);
            if last && in_segment.1 != chunk.segment_rows {
                faults.push("ends before or after its segment");
            }
            if usize::try_from(chunk.columns) != Ok(width) {
                faults.push("has not as many columns as its dataset");
            }
            self.report.looked.chunks += chunk.columns.unsigned_abs();
            rows += chunk.rows.unsigned_abs();
            let payloads = match store::datasets::payloads(self.connection, chunk.id, &columns).await {
                Ok(payloads) => payloads.unwrap_or_default(),
                Err(StoreError::Corrupt(_)) => Vec::new(),
                Err(error) => return Err(error),
            };
            bytes += payloads.iter().map(|payload| payload.len() as u64).sum::<u64>();
            match datasets::decode(&payloads, usize::try_from(chunk.rows).unwrap_or(usize::MAX)) {
                Ok(frame) if frame.columns.len() == width => counted.add_rows(&frame),
                _ => faults.push("has a column whose checksum or form does not agree"),
            }
            whole &= faults.is_empty();
            for fault in faults {
                self.found(&place, format!("chunk {number} {fault}"));
            }
        }
        // Of damaged chunks nothing can be counted.
        if !whole || (rows == row.rows && summary.rows == rows && bytes == row.bytes && agree(&summary, &counted)) {
            return Ok(());
        }
        let fault = "what it says of itself is not what its chunks hold";
        if self.repair
            && let Ok(text) = datasets::encode_summary(&counted)
        {
            stored::set_dataset(self.connection, row.id, rows, bytes, &text).await?;
            self.mended(place, fault, "counted anew");
        } else {
            self.found(place, fault);
        }
        Ok(())
    }

    async fn kept(&mut self, kept: &Kept) -> Result<(), StoreError> {
        let (place, repair) = match kept {
            Kept::Event(..) => ("the answer to an event", "dropped; the event stays known"),
            Kept::Prediction(_) => ("a remembered prediction", "dropped"),
            Kept::Reply(_) => ("the reply behind an Idempotency-Key", "dropped"),
        };
        let fault = "is not what was written";
        if self.repair {
            stored::drop_kept(self.connection, kept).await?;
            self.mended(place, fault, repair);
        } else {
            self.found(place, fault);
        }
        Ok(())
    }
}

/// Whether a description says the same of every column as what was counted, as far as it is exact: missing values and extremes.
fn agree(said: &Summary, counted: &Summary) -> bool {
    let (said, counted) = (said.columns_json(), counted.columns_json());
    let exact = |column: &Value| ["missing", "min", "max"].map(|figure| column[figure].clone());
    let same = |said: &Value, counted: &Value| match (said.as_f64(), counted.as_f64()) {
        (Some(said), Some(counted)) => said == counted,
        _ => said == counted,
    };
    let (Some(said), Some(counted)) = (said.as_array(), counted.as_array()) else { return false };
    said.len() == counted.len()
        && said
            .iter()
            .zip(counted)
            .all(|(said, counted)| exact(said).iter().zip(&exact(counted)).all(|(said, counted)| same(said, counted)))
}
