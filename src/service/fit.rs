//! Fits: a specification and a dataset to a new version.
//!
//! The dataset is read again and again, chunk by chunk, only the columns that are needed; a small one is kept in memory after the first pass.
//! The arithmetic runs on a bounded pool of blocking threads. The version, the `served` alias and the job's end are one transaction.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::catalogue::{Model, SERVED, Version};
use super::datasets::Opened;
use super::error::ServiceError;
use super::jobs::{Job, JobState, Running};
use super::{Fingerprint, Replayable, Service};
use crate::features::{self, Block, BlockError, Design, Encoding, Feature, Roles};
use crate::frame::{ColumnType, Fault, Frame, Schema};
use crate::lsq::{self, RowSource};
use crate::model::{Document, FitRecord, Specification, State, name};
use crate::store::{self, Connection};
use crate::telemetry;

/// Cells of a block of X: bounds memory for wide designs.
const BLOCK_CELLS: usize = 512 * 1024;
/// Decoded columns that a fit may keep between passes.
const CACHE_BYTES: usize = 32 << 20;
/// The most design columns: the triangular factor alone takes 8·p² bytes.
const WIDEST: usize = 8192;

/// What a caller of a fit gets: the job, over or not.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Asked {
    job: String,
}

/// The columns that a fit reads, and what they are to it.
struct Plan {
    specification: Specification,
    /// Indices of dataset columns: features, targets, weights.
    columns: Vec<usize>,
    features: Vec<Feature>,
    warnings: Vec<String>,
}

impl Service {
    /// Queues a fit and waits for it at most `wait`. The job tells how far it came.
    ///
    /// # Errors
    /// The specification does not fit the dataset; too many fits are waiting; the database.
    pub async fn fit(
        self: &Arc<Self>,
        model: &str,
        specification: Specification,
        wait: Duration,
        if_match: Option<Vec<String>>,
        idempotency: Option<(String, Fingerprint)>,
    ) -> Result<Replayable<Job>, ServiceError> {
        let model = name::model(model)?;
        let key = idempotency.map(|(key, fingerprint)| fingerprint.key(&key));
        if let Some(key) = &key
            && let Some(replayed) = key.replay::<Asked>(&mut *self.store.read().await?).await?
        {
            return Ok(Replayable { value: self.wait_for(&replayed.value.job, wait).await?, replayed: true });
        }
        // After the look for an earlier reply: the fit that gave it may have moved the tag itself.
        self.check_model_tags(&model, if_match.as_deref())?;
        let opened = self.open_dataset(&specification.dataset).await.map_err(|error| match error {
            ServiceError::DatasetNotFound => ServiceError::FitDatasetNotFound,
            other => other,
        })?;
        let plan = plan(specification, &opened.description.summary.schema)?;
        if self.jobs.active() >= self.fit_queue {
            return Err(ServiceError::QueueFull);
        }
        let id = self.jobs.new_id();
        let (row_id, row_model) = (id.clone(), model.clone());
        let asked = self
            .writer
            .run(
                async move |writer: &mut Connection| {
                    if let Some(key) = &key
                        && let Some(replayed) = key.replay::<Asked>(writer).await?
                    {
                        return Ok(replayed);
                    }
                    store::jobs::create(writer, &row_id, &row_model).await?;
                    let asked = Asked { job: row_id };
                    if let Some(key) = &key {
                        key.remember(writer, &asked).await?;
                    }
                    Ok(Replayable::fresh(asked))
                },
                |_| {},
            )
            .await?;
        if asked.replayed {
            return Ok(Replayable { value: self.wait_for(&asked.value.job, wait).await?, replayed: true });
        }
        let running = self.jobs.insert(&id, &model);
        tokio::spawn(run(self.clone(), running, model, plan, opened));
        Ok(Replayable::fresh(self.wait_for(&id, wait).await?))
    }

    /// The job, when it is over or `wait` has passed.
    async fn wait_for(&self, id: &str, wait: Duration) -> Result<Job, ServiceError> {
        if let Some(mut watch) = self.jobs.watch(id) {
            // Running out of time is an answer here: the job as it stands.
            let _ = tokio::time::timeout(wait, watch.wait_for(|job| job.state.is_over())).await;
        }
        self.jobs.find(&self.store, id).await
    }
}

/// One job from the queue to its end.
async fn run(service: Arc<Service>, running: Arc<Running>, model: String, plan: Plan, opened: Opened) {
    let begun = Instant::now();
    let outcome = fit_and_store(&service, &running, &model, plan, opened).await;
    let id = running.state.borrow().id.clone();
    let (state, version, problem) = match outcome {
        Ok(version) => (JobState::Succeeded, Some(version), None),
        Err(ServiceError::Cancelled) if service.is_stopping() => (JobState::Interrupted, None, Some(ServiceError::Interrupted)),
        Err(ServiceError::Cancelled) => (JobState::Cancelled, None, Some(ServiceError::Cancelled)),
        Err(error) => (JobState::Failed, None, Some(error)),
    };
    if let Some(problem) = &problem {
        if let ServiceError::Store(_) | ServiceError::Internal(_) = problem {
            tracing::error!(error = %problem, job = %id, "a fit failed");
        }
        let text = match problem {
            ServiceError::Store(_) | ServiceError::Internal(_) => "the fit failed by a fault of the server".to_owned(),
            other => other.to_string(),
        };
        let row = id.clone();
        let stored = service
            .writer
            .run(async move |writer: &mut Connection| Ok(store::jobs::finish(writer, &row, state.as_str(), None, Some(&text)).await?), |()| {})
            .await;
        if let Err(error) = stored {
            tracing::error!(%error, job = %id, "the end of a job could not be stored");
        }
    }
    metrics::counter!(telemetry::FITS, "state" => state.as_str()).increment(1);
    metrics::histogram!(telemetry::FIT_SECONDS).record(begun.elapsed().as_secs_f64());
    running.state.send_modify(|job| {
        job.state = state;
        job.version = version;
        job.problem = problem;
        job.stage = "done";
    });
}

async fn fit_and_store(service: &Arc<Service>, running: &Arc<Running>, model: &str, plan: Plan, opened: Opened) -> Result<u64, ServiceError> {
    let permit = {
        let mut watch = running.state.subscribe();
        tokio::select! {
            permit = service.pool.acquire() => permit.map_err(|_| ServiceError::Cancelled)?,
            () = async { while !running.is_cancelled() { if watch.changed().await.is_err() { break; } } } => return Err(ServiceError::Cancelled),
        }
    };
    running.enter(JobState::Running);
    let serve = plan.specification.serve;
    let worker = running.clone();
    let handle = tokio::runtime::Handle::current();
    let (document, state) = tokio::task::spawn_blocking(move || compute(&handle, &worker, plan, Arc::new(opened)))
        .await
        .map_err(|_| ServiceError::Internal("a fit panicked"))??;
    drop(permit);
    if running.is_cancelled() {
        return Err(ServiceError::Cancelled);
    }
    running.progress("storing", 0, 1);
    let text = serde_json::to_string(&document).map_err(|_| ServiceError::Internal("a version does not encode"))?;
    let bytes = state.encode();
    let (name, job) = (model.to_owned(), running.state.borrow().id.clone());
    let publisher = service.clone();
    let added = service
        .writer
        .run(
            async move |writer: &mut Connection| {
                let added = store::models::add_version(writer, &name, &text, bytes).await?;
                if serve {
                    store::models::set_alias(writer, added.model.id, SERVED, added.version.version).await?;
                }
                store::jobs::finish(writer, &job, JobState::Succeeded.as_str(), Some(added.version.version), None).await?;
                let version = Arc::new(Version::new(&name, &added.version, Some(state))?);
                Ok((added.model, version))
            },
            move |(row, version)| {
                publisher.catalogue.change(&row.name, |model| {
                    let mut model = model.unwrap_or_else(|| Model {
                        id: row.id,
                        name: row.name.clone(),
                        created_at: row.created_at.clone(),
                        versions: std::collections::BTreeMap::new(),
                        aliases: std::collections::BTreeMap::new(),
                    });
                    model.versions.insert(version.number, version.clone());
                    if serve {
                        model.aliases.insert(SERVED.to_owned(), version.number);
                    }
                    Some(model)
                });
            },
        )
        .await?;
    Ok(added.1.number)
}

/// Checks a specification against the dataset's columns. All faults are reported together.
fn plan(specification: Specification, schema: &Schema) -> Result<Plan, ServiceError> {
    let mut unknown = Vec::new();
    let mut faults = Vec::new();
    let mut warnings = Vec::new();
    let mut seen = BTreeSet::new();
    let mut find = |pointer: String, column: &str| -> Option<usize> {
        let found = schema.index_of(column);
        if found.is_none() {
            unknown.push(Fault { pointer, detail: format!("the dataset has no column {column:?}") });
        }
        found
    };
    let mut targets = Vec::new();
    for (index, target) in specification.target.iter().enumerate() {
        let pointer = if specification.target.len() == 1 { "/target".to_owned() } else { format!("/target/{index}") };
        let Some(column) = find(pointer.clone(), target) else { continue };
        if !seen.insert(target.clone()) {
            faults.push(Fault { pointer: pointer.clone(), detail: format!("column {target:?} is a target twice") });
        }
        match schema.columns[column].kind {
            ColumnType::Number | ColumnType::Integer => targets.push(column),
            kind => faults.push(Fault { pointer, detail: format!("a target is a number here, and {target:?} is of type {}", kind.as_str()) }),
        }
    }
    let weights = specification.weights.as_ref().and_then(|weights| {
        let column = find("/weights".to_owned(), weights)?;
        if !seen.insert(weights.clone()) {
            faults.push(Fault { pointer: "/weights".to_owned(), detail: format!("column {weights:?} is a target and the weights") });
        }
        match schema.columns[column].kind {
            ColumnType::Number | ColumnType::Integer => Some(column),
            kind => {
                let detail = format!("weights are numbers, and {weights:?} is of type {}", kind.as_str());
                faults.push(Fault { pointer: "/weights".to_owned(), detail });
                None
            }
        }
    });
    let mut columns = Vec::new();
    let mut encoded = Vec::new();
    let drop_first = specification.intercept;
    let onehot = |drop_first, unseen| Encoding::Onehot { levels: Vec::new(), drop_first, unseen };
    match &specification.features {
        None => {
            for (index, column) in schema.columns.iter().enumerate().filter(|(_, column)| !seen.contains(&column.name)) {
                let encoding = match column.kind {
                    ColumnType::Number | ColumnType::Integer | ColumnType::Boolean => Encoding::Identity,
                    ColumnType::Category => onehot(drop_first, specification.unseen),
                    kind => {
                        warnings.push(format!("column {:?} of type {} was left out", column.name, kind.as_str()));
                        continue;
                    }
                };
                columns.push(index);
                encoded.push(Feature { name: column.name.clone(), kind: column.kind, encoding });
            }
        }
        Some(features) => {
            let mut used = BTreeSet::new();
            for (place, feature) in features.iter().enumerate() {
                let pointer = format!("/features/{place}");
                let Some(index) = find(pointer.clone(), &feature.column) else { continue };
                let column = &schema.columns[index];
                if seen.contains(&column.name) {
                    faults.push(Fault { pointer, detail: format!("column {:?} is a target or the weights, and cannot be a feature", column.name) });
                    continue;
                }
                if !used.insert(column.name.clone()) {
                    faults.push(Fault { pointer, detail: format!("column {:?} is a feature twice", column.name) });
                    continue;
                }
                let drop = feature.drop_first.unwrap_or(drop_first);
                let unseen = feature.unseen.unwrap_or(specification.unseen);
                let encoding = match (feature.onehot, column.kind) {
                    (None, ColumnType::Number | ColumnType::Integer | ColumnType::Boolean) => Encoding::Identity,
                    (None, ColumnType::Category)
                    | (Some(_), ColumnType::Category | ColumnType::Text | ColumnType::Integer | ColumnType::Boolean) => onehot(drop, unseen),
                    (_, kind) => {
                        let detail = format!("column {:?} of type {} cannot be used so", column.name, kind.as_str());
                        faults.push(Fault { pointer, detail });
                        continue;
                    }
                };
                columns.push(index);
                encoded.push(Feature { name: column.name.clone(), kind: column.kind, encoding });
            }
        }
    }
    if !unknown.is_empty() {
        unknown.extend(faults);
        return Err(ServiceError::UnknownColumn(unknown));
    }
    if faults.is_empty() && encoded.is_empty() && !specification.intercept {
        faults.push(Fault { pointer: "/features".to_owned(), detail: "there is no feature and no intercept: nothing to fit".to_owned() });
    }
    if !faults.is_empty() {
        return Err(ServiceError::Request(faults));
    }
    columns.extend(targets);
    columns.extend(weights);
    Ok(Plan { specification, columns, features: encoded, warnings })
}

/// The chunks of a dataset as a source of blocks; reads ahead of the arithmetic.
struct Source<'a> {
    runtime: &'a tokio::runtime::Handle,
    running: &'a Running,
    dataset: Arc<Opened>,
    columns: Vec<usize>,
    design: Design,
    targets: usize,
    weighted: bool,
    /// All frames, once a pass has shown that they are small.
    cache: Option<Vec<Frame>>,
    passes: u64,
    skipped: u64,
}

impl Source<'_> {
    fn total_rows(&self) -> u64 {
        self.dataset.description.row.rows
    }

    /// Every frame in order.
    fn frames(&mut self, mut visit: impl FnMut(&Frame, u64) -> Result<(), ServiceError>) -> Result<(), ServiceError> {
        self.passes += 1;
        let total = self.total_rows();
        let stage = if self.passes == 1 { "reading" } else { "solving" };
        let mut done = 0;
        let mut advance = |frame: &Frame| -> Result<(), ServiceError> {
            if self.running.is_cancelled() {
                return Err(ServiceError::Cancelled);
            }
            visit(frame, done)?;
            done += frame.rows as u64;
            self.running.progress(stage, done, total);
            Ok(())
        };
        if let Some(frames) = &self.cache {
            return frames.iter().try_for_each(advance);
        }
        let bytes = usize::try_from(total).unwrap_or(usize::MAX).saturating_mul(8 * self.columns.len());
        let mut kept = (bytes <= CACHE_BYTES).then(Vec::new);
        let (sender, mut receiver) = mpsc::channel(2);
        let (dataset, columns) = (self.dataset.clone(), self.columns.clone());
        self.runtime.spawn(async move {
            for chunk in &dataset.chunks {
                let frame = dataset.frame(chunk, &columns).await;
                let failed = frame.is_err();
                if sender.send(frame).await.is_err() || failed {
                    return;
                }
            }
        });
        while let Some(frame) = receiver.blocking_recv() {
            let frame = frame?;
            advance(&frame)?;
            if let Some(kept) = &mut kept {
                kept.push(frame);
            }
        }
        self.cache = kept;
        Ok(())
    }

    /// First pass, when there are categories: the levels that occur in complete rows, sorted (numbers by size, texts by code point).
    fn find_levels(&mut self, features: &mut [Feature]) -> Result<(), ServiceError> {
        let categorical = |feature: &Feature| matches!(feature.encoding, Encoding::Onehot { .. });
        if !features.iter().any(categorical) {
            return Ok(());
        }
        let mut found = vec![BTreeSet::new(); features.len()];
        let kinds: Vec<bool> = features.iter().map(categorical).collect();
        self.frames(|frame, _| {
            for (index, levels) in found.iter_mut().enumerate().filter(|(index, _)| kinds[*index]) {
                features::levels_of_complete_rows(&frame.columns, index, levels).map_err(block_error)?;
            }
            Ok(())
        })?;
        for (feature, found) in features.iter_mut().zip(found) {
            if let Encoding::Onehot { levels, .. } = &mut feature.encoding {
                *levels = found.into_iter().collect();
                if feature.kind == ColumnType::Integer {
                    levels.sort_by_key(|level| level.parse::<i64>().unwrap_or(i64::MAX));
                }
            }
        }
        Ok(())
    }
}

fn block_error(error: BlockError) -> ServiceError {
    match error {
        BlockError::NegativeWeight(_) => ServiceError::Fit(error.to_string()),
        BlockError::Type | BlockError::Level => ServiceError::Internal("a stored dataset changed under a fit"),
    }
}

impl RowSource for Source<'_> {
    fn predictors(&self) -> usize {
        self.design.width()
    }

    fn responses(&self) -> usize {
        self.targets
    }

    fn pass(&mut self, visit: &mut dyn FnMut(&lsq::Block<'_>) -> Result<(), lsq::Error>) -> Result<(), lsq::Error> {
        let design = self.design.clone();
        let roles = Roles { design: &design, targets: self.targets, weighted: self.weighted };
        let rows_at_once = (BLOCK_CELLS / design.width().max(1)).clamp(64, 8192);
        let mut block = Block::default();
        let mut skipped = 0;
        let mut refused = None;
        let outcome = self.frames(|frame, first_row| {
            let mut begin = 0;
            while begin < frame.rows {
                let end = frame.rows.min(begin + rows_at_once);
                skipped += features::assemble(roles, &frame.columns, begin..end, &mut block).map_err(|error| match error {
                    BlockError::NegativeWeight(row) => ServiceError::Fit(format!("row {}: the weight is negative", first_row + row as u64 + 1)),
                    other => block_error(other),
                })? as u64;
                begin = end;
                if block.rows() == 0 {
                    continue;
                }
                let rows = lsq::Block { design: block.design(), design_low: block.design_low(), response: block.response(), weights: block.weights() };
                if let Err(error) = visit(&rows) {
                    refused = Some(error);
                    return Err(ServiceError::Cancelled);
                }
            }
            Ok(())
        });
        self.skipped = skipped;
        match (refused, outcome) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => Ok(()),
            (None, Err(ServiceError::Cancelled)) => Err(lsq::Error::Interrupted),
            (None, Err(error)) => Err(lsq::Error::Source(error.to_string())),
        }
    }
}

/// The arithmetic of a fit, on a thread of the pool.
fn compute(runtime: &tokio::runtime::Handle, running: &Running, plan: Plan, dataset: Arc<Opened>) -> Result<(Document, State), ServiceError> {
    let begun = Instant::now();
    let Plan { specification, columns, mut features, mut warnings } = plan;
    let targets = specification.target.len();
    let mut source = Source {
        runtime,
        running,
        dataset,
        columns,
        design: Design::default(),
        targets,
        weighted: specification.weights.is_some(),
        cache: None,
        passes: 0,
        skipped: 0,
    };
    source.find_levels(&mut features)?;
    source.design = Design::new(features);
    if source.design.width() > WIDEST {
        return Err(ServiceError::TooLarge(format!("the design has {} columns, more than {WIDEST}", source.design.width())));
    }
    let fit = lsq::fit(
        &mut source,
        &lsq::Specification {
            intercept: specification.intercept,
            penalty: specification.estimator.penalty(),
            solver: specification.solver,
            ..lsq::Specification::default()
        },
    )?;
    warnings.extend(warnings_of(&fit, &source, &specification));
    let document = Document {
        dataset: specification.dataset,
        estimator: specification.estimator,
        solver: fit.solver.as_str().to_owned(),
        target: specification.target,
        features: source.design.features().to_vec(),
        intercept: specification.intercept,
        weights: specification.weights,
        online: specification.online,
        variance_inflation: fit.variance_inflation.iter().map(|factor| crate::model::version::finite(*factor)).collect(),
        fit: FitRecord::of(&fit),
        warnings,
        fit_seconds: begun.elapsed().as_secs_f64(),
    };
    Ok((document, State::of(&fit)))
}

/// What a reader must know before trusting the fit, in plain words.
fn warnings_of(fit: &lsq::Fit, source: &Source<'_>, specification: &Specification) -> Vec<String> {
    let names = source.design.column_names();
    let named = |columns: &[usize]| {
        columns.iter().map(|column| names.get(*column).map_or("the intercept", String::as_str)).collect::<Vec<_>>().join(", ")
    };
    let mut warnings = Vec::new();
    if source.skipped > 0 {
        warnings.push(format!("{} of {} rows were left out because a value is missing in them", source.skipped, source.total_rows()));
    }
    if !fit.constant.is_empty() && specification.intercept {
        warnings.push(format!("these columns do not vary, so they tell nothing that the intercept does not: {}", named(&fit.constant)));
    }
    for group in &fit.collinear {
        warnings.push(format!(
            "the design is rank deficient: these columns are linear combinations of one another, and share their effect by the minimum-norm solution: {}",
            named(group)
        ));
    }
    if fit.degrees_of_freedom <= 0.0 {
        warnings.push("there are no degrees of freedom left: standard errors, tests and intervals are not defined".to_owned());
    }
    for (target, exact) in specification.target.iter().zip(&fit.exact_fit) {
        if *exact {
            warnings.push(format!("the fit of {target} is exact to rounding: its residuals are zero, so F is infinite and tests mean nothing"));
        }
    }
    if fit.digits < 6.0 {
        warnings.push(format!("the problem is so ill-conditioned that only about {:.0} digits of the worst coefficient can be trusted", fit.digits.max(0.0)));
    }
    warnings
}
