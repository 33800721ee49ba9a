//! Erasing rows of a dataset, and unlearning them: every version that knows them is what it would be had they never been in it.
//!
//! A version knows the rows that came up to the revision of the dataset that it was fitted on and are still there. To unlearn some it is
//! fitted anew without them, its design and the penalty that was chosen as they stand, and learns its log again; so nothing is lost to
//! cancellation, and every figure is that of the rows which are left. That is done while everything goes on. One transaction then puts the
//! chunks, the dataset, and all the versions in their place together. What changed meanwhile makes it begin again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::json;

use super::audit::Changed;
use super::catalogue::Version;
use super::datasets::{self, Description, Landed, Opened};
use super::error::ServiceError;
use super::fit::{Extra, Plan};
use super::jobs::Running;
use super::{Service, erase, estimate, idempotency, learn};
use crate::features::Read;
use crate::frame::{Fault, Schema, Summary, codec, rows_where};
use crate::model::inputs::Inputs;
use crate::model::version::Unlearnt;
use crate::model::{Covariance, Document, Prior, State, Strength, Validation};
use crate::store::{self, Connection};

/// Which rows of a dataset are to be erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The one of this number, from 0.
    One(u64),
    /// Those in which a column has a value.
    Where {
        /// The column.
        column: String,
        /// The value, as text.
        value: String,
    },
}

/// An erasure that is asked for.
#[derive(Clone, Debug)]
pub struct Erasure {
    /// The dataset.
    pub dataset: String,
    /// Its rows.
    pub rows: Rows,
    /// Whether versions that cannot unlearn stay as they are, rather than have it refused.
    pub keep: bool,
    /// ETags of which the dataset must carry one.
    pub if_match: Option<Vec<String>>,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct ErasedRows {
    /// The dataset as it is now.
    pub dataset: Description,
    /// How many rows were erased.
    pub erased: u64,
    /// Versions that have unlearnt them, with their sequences, which do not change.
    pub unlearnt: Vec<(Arc<Version>, u64)>,
    /// Versions that still know them, and why.
    pub kept: Vec<(Arc<Version>, String)>,
}

/// Tries, when the dataset or what is fitted on it changes meanwhile.
const TRIES: usize = 5;

/// What becomes of a version.
struct Change {
    version: Arc<Version>,
    document: Document,
    /// The state as it was fitted, and as it stands, when it unlearns.
    states: Option<(State, State)>,
    /// Why it does not, though it knows a row.
    reason: Option<String>,
}

impl Service {
    /// Erases rows of a dataset, and has every version unlearn them that knows them.
    ///
    /// # Errors
    /// There is no such dataset or row, or it has another ETag; a version cannot unlearn, and is not to be kept; the database. Nothing was
    /// changed then.
    pub async fn erase_rows(self: &Arc<Self>, asked: Erasure) -> Result<ErasedRows, ServiceError> {
        let _alone = self.erasing.lock().await;
        for _ in 0..TRIES {
            let Some(done) = self.try_to_erase(&asked).await? else { continue };
            for (version, _) in &done.unlearnt {
                self.hold_again(version, 0).await?;
            }
            self.writer.checkpoint().await?;
            return Ok(done);
        }
        Err(ServiceError::Conflict("the dataset, or what is fitted on it, went on changing while rows were being erased; try again"))
    }

    /// The same, if nothing changes meanwhile.
    async fn try_to_erase(self: &Arc<Self>, asked: &Erasure) -> Result<Option<ErasedRows>, ServiceError> {
        let opened = self.open_dataset(&asked.dataset).await?;
        datasets::check_tags(asked.if_match.as_deref(), Some(&opened.description))?;
        let rows = find(&opened, &asked.rows).await?;
        let erased = rows.len() as u64;
        let places = Arc::new(opened.places(&rows));
        let fitted = self.fitted_on(&opened.description);
        let mut alone = Vec::new();
        for version in fitted.values() {
            alone.push(version.erasing().await);
        }
        let mut changes = Vec::new();
        for version in fitted.values() {
            changes.extend(self.change(version, &opened, &rows, &places).await?);
        }
        let unable = || changes.iter().filter_map(|change| Some((change, change.reason.as_ref()?)));
        if !asked.keep && unable().next().is_some() {
            let faults = unable().map(|(Change { version, .. }, reason)| Fault {
                pointer: format!("/models/{}/versions/{}", version.model, version.number),
                detail: format!("version {} of {:?} cannot unlearn: {reason}", version.number, version.model),
            });
            return Err(ServiceError::CannotUnlearn(faults.take(20).collect()));
        }
        let summary = summed_up(&opened.up_to(i64::MAX, &places)).await?;
        let (service, publisher) = (self.clone(), self.clone());
        let work = async move |writer: &mut Connection| {
            let now = store::datasets::find(writer, &opened.description.row.name).await?;
            let before = &opened.description.row;
            let same = now.is_some_and(|now| (now.id, now.revision) == (before.id, before.revision));
            if !same || !service.fitted_on(&opened.description).keys().eq(fitted.keys()) {
                return Ok(Changed::nothing(None));
            }
            for change in &mut changes {
                commit(writer, change).await?;
            }
            let bytes = rewrite(writer, &opened, &places).await?;
            let text = datasets::encode_summary(&summary)?;
            store::datasets::erase(writer, before.id, erased, bytes, &text).await?;
            let kept = store::idempotency::of_dataset(writer, before.id).await?;
            idempotency::change(writer, kept, |landed: &mut Landed| landed.dataset.summary.clone_from(&text)).await?;
            let row = store::datasets::find(writer, &before.name).await?;
            let row = row.ok_or(ServiceError::Internal("a dataset is not there that was just written"))?;
            let (name, before, after) = (before.name.clone(), datasets::standing(before), datasets::standing(&row));
            Ok(Changed::new(Some((Description { row, summary }, changes)), "dataset.erase", &name, Some(before), Some(after)))
        };
        let publish = move |done: &Option<(Description, Vec<Change>)>| {
            for (dataset, change) in done.iter().flat_map(|(dataset, changes)| changes.iter().map(move |change| (dataset, change))) {
                change.publish(&publisher, &dataset.row.name, erased);
            }
        };
        let Some((dataset, changes)) = self.writer.change_alone(work, publish).await? else { return Ok(None) };
        drop(alone);
        let mut done = ErasedRows { dataset, erased, unlearnt: Vec::new(), kept: Vec::new() };
        for Change { version, states, reason, .. } in changes {
            done.unlearnt.extend(states.map(|(_, now)| (version.clone(), now.sequence())));
            done.kept.extend(reason.map(|reason| (version, reason)));
        }
        Ok(Some(done))
    }

    /// Versions that were fitted on a dataset, by identity.
    fn fitted_on(&self, dataset: &Description) -> BTreeMap<i64, Arc<Version>> {
        let models = self.catalogue.all();
        let of = |version: &&Arc<Version>| {
            let document = &version.document;
            document.refit.is_none() && datasets::in_tag(&document.dataset_tag).is_some_and(|(id, _)| id == dataset.row.id)
        };
        models.values().flat_map(|model| model.versions.values()).filter(of).map(|version| (version.id, version.clone())).collect()
    }

    /// What becomes of a version when rows go; nothing if it has nothing to do with them.
    async fn change(
        &self,
        version: &Arc<Version>,
        opened: &Opened,
        rows: &BTreeSet<u64>,
        places: &Arc<BTreeMap<i64, BTreeSet<usize>>>,
    ) -> Result<Option<Change>, ServiceError> {
        let (document, row) = (&version.document, &opened.description.row);
        let (_, revision) = datasets::in_tag(&document.dataset_tag).ok_or(ServiceError::Internal("a dataset's tag does not decode"))?;
        let known = opened.up_to(revision, &Arc::default()).description.row.rows;
        let first = document.online.window.map_or(0, |window| known.saturating_sub(window).saturating_sub(version.design.reach() as u64));
        let count = rows.range(first..known).count() as u64;
        // A version of the dataset's last revision goes along with it.
        let dataset_tag = if revision == row.revision { datasets::tag(row.id, revision + 1) } else { document.dataset_tag.clone() };
        if count == 0 {
            let mut changed = Document { dataset_tag, ..document.clone() };
            // Rows before a window were never learnt, but they count in what was missing when the inputs were looked at.
            if let (Inputs::Known(inputs), true) = (&mut changed.inputs, rows.range(..known).next().is_some()) {
                let summary = summed_up(&opened.up_to(revision, places)).await?;
                let columns = Read::all_of(&version.design, |name| summary.schema.index_of(name)).flatten();
                inputs.missing.iter_mut().zip(columns).for_each(|(missing, read)| *missing = summary.missing(read.column));
            }
            return Ok((changed != *document).then(|| Change { version: version.clone(), document: changed, states: None, reason: None }));
        }
        let mut unlearnt = document.unlearnt.clone().unwrap_or(Unlearnt { rows: 0, kept: 0, at: String::new() });
        unlearnt.at = store::now();
        let changed = match self.fit_without(version, opened.up_to(revision, places)).await {
            Ok((fitted, states)) => {
                unlearnt.rows += count + std::mem::take(&mut unlearnt.kept);
                let document = document_after(document, fitted, dataset_tag, unlearnt);
                Change { version: version.clone(), document, states: Some(states), reason: None }
            }
            Err(error @ (ServiceError::Store(_) | ServiceError::Internal(_) | ServiceError::Unavailable(_) | ServiceError::Cancelled)) => {
                return Err(error);
            }
            Err(error) => {
                unlearnt.kept += count;
                let mut document = Document { unlearnt: Some(unlearnt), ..document.clone() };
                let warning = "rows of its dataset were erased that this version still knows: fit it again, and delete it";
                if !document.warnings.iter().any(|known| known == warning) {
                    document.warnings.push(warning.to_owned());
                }
                Change { version: version.clone(), document, states: None, reason: Some(error.to_string()) }
            }
        };
        Ok(Some(changed))
    }

    /// A version fitted on what is left, and its state as it was fitted and as it stands.
    async fn fit_without(&self, version: &Arc<Version>, mut left: Opened) -> Result<(Document, (State, State)), ServiceError> {
        let plan = plan(&version.document, &left.description.summary.schema)?;
        let now = version.state(&self.store).await?.sequence();
        // Of the rows that are left, too, the shares that are missing: the inputs are compared with them.
        left.description.summary = summed_up(&left).await?;
        let permit = self.pool.acquire().await.map_err(|_| ServiceError::Cancelled)?;
        let handle = tokio::runtime::Handle::current();
        let (document, fitted) =
            tokio::task::spawn_blocking(move || estimate::compute(&handle, &Running::nameless(), plan, Arc::new(left)))
                .await
                .map_err(|_| ServiceError::Internal("a fit panicked"))??;
        drop(permit);
        let mut state = fitted.clone();
        erase::learn_again(&mut *self.store.read().await?, version, &mut state, None).await?;
        if state.sequence() < now {
            return Err(ServiceError::Conflict("the update log is no longer kept, and cannot be learnt again"));
        }
        Ok((document, (fitted, state)))
    }
}

impl Change {
    /// Makes it what is read. Only after it is on disk.
    fn publish(&self, service: &Service, dataset: &str, erased: u64) {
        let version = &self.version;
        if let Some((_, now)) = &self.states {
            now.information().settle();
            version.forget_past();
            version.events.send("erased", &json!({"version": version.number, "dataset": dataset, "rows": erased}));
            version.publish(now.clone());
        }
        let changed = Arc::new(version.with_document(self.document.clone()));
        service.catalogue.change(&version.model, |model| {
            model.map(|mut model| {
                model.versions.insert(changed.number, changed);
                model
            })
        });
    }
}

/// Writes down what becomes of a version, the rows learnt that came meanwhile.
async fn commit(writer: &mut Connection, change: &mut Change) -> Result<(), ServiceError> {
    let version = &change.version;
    let text = serde_json::to_string(&change.document).map_err(|_| ServiceError::Internal("a version does not encode"))?;
    let fitted = change.states.as_ref().map(|(fitted, _)| fitted.encode());
    store::models::set_fit(writer, version.id, &text, fitted).await?;
    if let Some((_, state)) = &mut change.states {
        erase::learn_again(writer, version, state, None).await?;
        if state.sequence() != version.state_in(writer).await?.sequence() {
            return Err(ServiceError::Internal("a log that was learnt again has another end"));
        }
        store::updates::drop_snapshots(writer, version.id, 0).await?;
        if state.sequence() > 0 {
            learn::snapshot(writer, version, state).await?;
        }
    }
    Ok(())
}

/// What is to be said of the rows that are left.
async fn summed_up(left: &Opened) -> Result<Summary, ServiceError> {
    let mut summary = Summary::empty(left.description.summary.schema.clone());
    let columns: Vec<usize> = (0..summary.schema.columns.len()).collect();
    for chunk in &left.chunks {
        let frame = left.frame(chunk, &columns).await?;
        summary = tokio::task::spawn_blocking(move || {
            summary.add_rows(&frame);
            summary
        })
        .await
        .map_err(|_| ServiceError::Internal("summing up a dataset panicked"))?;
    }
    Ok(summary)
}

/// Puts what is left of them in the place of the chunks that rows go from; returns the bytes of all chunks then.
async fn rewrite(writer: &mut Connection, opened: &Opened, places: &BTreeMap<i64, BTreeSet<usize>>) -> Result<u64, ServiceError> {
    let columns: Vec<usize> = (0..opened.description.summary.schema.columns.len()).collect();
    let mut bytes = opened.description.row.bytes;
    for chunk in opened.chunks.iter().filter(|chunk| places.contains_key(&chunk.id)) {
        let stored = store::datasets::payloads(writer, chunk.id, &columns).await?;
        let stored = stored.ok_or(ServiceError::Internal("a chunk is gone though its dataset has not changed"))?;
        let frame = datasets::decode(&stored, usize::try_from(chunk.rows).unwrap_or(usize::MAX))?.without(&places[&chunk.id]);
        let payloads: Vec<Vec<u8>> = frame.columns.iter().map(codec::encode).collect();
        let before: usize = stored.iter().map(|payload| payload.len()).sum();
        let after: usize = if frame.rows == 0 { 0 } else { payloads.iter().map(Vec::len).sum() };
        bytes = bytes.saturating_sub(before as u64) + after as u64;
        store::datasets::replace_chunk(writer, chunk.id, frame.rows as u64, payloads).await?;
    }
    Ok(bytes)
}

/// The numbers of the rows that are meant.
async fn find(opened: &Opened, rows: &Rows) -> Result<BTreeSet<u64>, ServiceError> {
    let mut found = BTreeSet::new();
    match rows {
        Rows::One(row) => found.extend((*row < opened.description.row.rows).then_some(*row)),
        Rows::Where { column, value } => {
            let missing = || {
                let detail = format!("the dataset has no column {column:?}");
                ServiceError::UnknownColumn(vec![Fault { pointer: "/column".to_owned(), detail }])
            };
            let column = opened.description.summary.schema.index_of(column).ok_or_else(missing)?;
            for chunk in &opened.chunks {
                let frame = opened.frame(chunk, &[column]).await?;
                found.extend(frame.columns.iter().flat_map(|cells| rows_where(cells, value)).map(|row| chunk.first_row + row as u64));
            }
        }
    }
    if found.is_empty() { Err(ServiceError::RowNotFound) } else { Ok(found) }
}

/// What a version's fit reads and does when it is made anew.
fn plan(document: &Document, schema: &Schema) -> Result<Plan, ServiceError> {
    if let Some(Prior { strength: Strength::Information { .. }, .. }) = &document.prior {
        return Err(ServiceError::Conflict(
            "it began with the information of another model, as that stood then; erase the row with `unable=keep`, fit anew, and delete it",
        ));
    }
    let design = document.design();
    if !design.past().is_empty() {
        return Err(ServiceError::Conflict(erase::PAST));
    }
    let mut extra = Extra::default();
    let mut beside = None;
    if let Covariance::Cluster { column } = &document.covariance {
        (extra.cluster, beside) = (true, Some(column));
    }
    if let Some(Validation::Time { column: Some(column), .. }) = document.validation.as_ref().map(|validation| &validation.plan) {
        (extra.time, beside) = (true, Some(column));
    }
    let names = design.columns().iter().map(|column| &column.name).chain(&document.target).chain(&document.weights).chain(beside);
    Ok(Plan {
        specification: document.specification(),
        columns: columns_of(names, schema)?.into_iter().map(Read::from).collect(),
        features: document.features.clone(),
        warnings: Vec::new(),
        pretrained: None,
        classifier: document.classifier.clone(),
        extra,
        before: Some(document.clone()),
    })
}

/// Where columns of a version are in its dataset.
fn columns_of<'a>(names: impl Iterator<Item = &'a String>, schema: &Schema) -> Result<Vec<usize>, ServiceError> {
    names.map(|name| schema.index_of(name).ok_or(ServiceError::Internal("a version's column is not in its dataset"))).collect()
}

/// A version's document when it has unlearnt rows.
fn document_after(before: &Document, fitted: Document, dataset_tag: String, unlearnt: Unlearnt) -> Document {
    let of_rows = |warning: &String| warning.ends_with("because a value is missing in them") || warning.contains(" of its dataset were ");
    let mut warnings: Vec<String> = before.warnings.iter().filter(|warning| !of_rows(warning)).cloned().collect();
    for warning in fitted.warnings {
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    let rows = unlearnt.rows;
    let chosen = if before.selection.is_some() { ", the penalty that was chosen" } else { "" };
    warnings.push(format!("{rows} rows of its dataset were unlearnt: the columns of the design, their levels and what its features fixed{chosen} and the prior stay"));
    // What the penalties that were tried scored was scored with the rows.
    let selection = before.selection.clone().map(|selection| crate::model::Selection { path: Vec::new(), ..selection });
    Document {
        dataset_tag,
        warnings,
        selection,
        unlearnt: Some(unlearnt),
        fit_seconds: before.fit_seconds,
        estimator: before.estimator.clone(),
        ..fitted
    }
}
