//! Fits: a specification and a dataset to a new version.
//!
//! The dataset is read again and again, chunk by chunk, only the columns that are needed; a small one is kept in memory after the first pass.
//! The arithmetic runs on a bounded pool of blocking threads. The version, the `served` alias and the job's end are one transaction.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::aside::aside;
use super::audit::{self, Changed};
use super::catalogue::{Model, SERVED, Target, Version};
use super::datasets::Opened;
use super::error::ServiceError;
use super::estimate::{self, Pretrained};
use super::jobs::{Job, JobKind, JobState, Running};
use super::{IdempotencyKey, Replayable, Service, columns};
use crate::features::{Design, Feature, Read};
use crate::frame::{ColumnType, Fault, Schema};
use crate::model::{Classifier, Covariance, Document, Estimator, Specification, Validation, name};
use crate::planted;
use crate::store::{self, Connection};

/// The columns that a fit reads, and what they are to it.
pub(super) struct Plan {
    pub(super) specification: Specification,
    /// Dataset columns, so many rows back: those of the design, targets, weights, and the one that `extra` tells of.
    pub(super) columns: Vec<Read>,
    pub(super) features: Vec<Feature>,
    pub(super) warnings: Vec<String>,
    pub(super) pretrained: Option<Pretrained>,
    /// The classes of the target, if it has some; none of them yet where the rows are to say.
    pub(super) classifier: Option<Classifier>,
    pub(super) extra: Extra,
    /// The version that is fitted anew without some rows: its design stays, and so does the penalty that was chosen.
    pub(super) before: Option<Document>,
}

/// What a column beside features, targets and weights is for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extra {
    /// Groups of rows whose errors go together.
    pub(super) cluster: bool,
    /// The order of rows.
    pub(super) time: bool,
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
        key: Option<IdempotencyKey>,
    ) -> Result<Replayable<Job>, ServiceError> {
        let model = name::model(model)?;
        if let Some(replayed) = self.replayed_job(key.as_ref(), wait).await? {
            return Ok(replayed);
        }
        // After the look for an earlier reply: the fit that gave it may have moved the tag itself.
        self.check_model_tags(&model, if_match.as_deref())?;
        let opened = self.open_dataset(&specification.dataset).await.map_err(|error| match error {
            ServiceError::DatasetNotFound => ServiceError::FitDatasetNotFound,
            other => other,
        })?;
        let pretrained = self.pretrained(&specification).await?;
        let plan = plan(specification, pretrained, &opened.description.summary.schema)?;
        let name = model.clone();
        self.begin_job(JobKind::Fit, &model, key, wait, move |service, running| async move {
            fit_and_store(&service, &running, &name, plan, opened).await
        })
        .await
    }

    /// The pretrained model that a specification names.
    async fn pretrained(&self, specification: &Specification) -> Result<Option<Pretrained>, ServiceError> {
        let Some(prior) = &specification.prior else { return Ok(None) };
        let reference = prior.version.map_or_else(|| prior.model.clone(), |version| format!("{}@{version}", prior.model));
        let (_, version, state) = self.version(&reference).await.map_err(|_| ServiceError::prior_not_found())?;
        Ok(Some(Pretrained { version, state }))
    }
}

async fn fit_and_store(
    service: &Arc<Service>,
    running: &Arc<Running>,
    model: &str,
    plan: Plan,
    opened: Opened,
) -> Result<u64, ServiceError> {
    let serve = plan.specification.serve;
    let read = (opened.description.row.id, opened.description.row.revision);
    let (worker, named) = (running.clone(), model.to_owned());
    let handle = tokio::runtime::Handle::current();
    let (document, state) = aside(
        move || {
            planted::stumble(&named, "fitting");
            estimate::compute(&handle, &worker, plan, Arc::new(opened))
        },
        "a fit panicked",
    )
    .await?;
    if running.is_cancelled() {
        return Err(ServiceError::Cancelled);
    }
    running.progress("storing", 0, 1);
    let text = serde_json::to_string(&document).map_err(|_| ServiceError::Internal("a version does not encode"))?;
    let bytes = state.encode();
    let (name, job) = (model.to_owned(), running.state.borrow().id.clone());
    let publisher = service.clone();
    let events = service.catalogue.channel(model);
    let added = service
        .writer
        .change(
            async move |writer: &mut Connection| {
                if store::datasets::erased_since(writer, read.0, read.1).await? {
                    return Err(ServiceError::Conflict("rows of the dataset were erased while it was being fitted; fit it again"));
                }
                let added = store::models::add_version(writer, &name, &text, bytes).await?;
                let before = audit::served(writer, added.model.id).await?;
                if serve {
                    store::models::set_alias(writer, added.model.id, SERVED, added.version.version, None).await?;
                }
                store::jobs::finish(writer, &job, JobState::Succeeded.as_str(), Some(added.version.version), None).await?;
                let version = Arc::new(Version::new(&name, &added.version, Some(state), events)?);
                let after = audit::fitted(version.number, serve);
                Ok(Changed::new((added.model, version), "fit", &name, before, Some(after)))
            },
            move |(row, version)| {
                publisher.catalogue.change(&row.name, |model| {
                    let mut model = model.unwrap_or_else(|| Model {
                        id: row.id,
                        name: row.name.clone(),
                        created_at: row.created_at.clone(),
                        versions: std::collections::BTreeMap::new(),
                        aliases: std::collections::BTreeMap::new(),
                        traffic: None,
                        lost: std::collections::BTreeMap::new(),
                        damage: None,
                    });
                    model.versions.insert(version.number, version.clone());
                    if serve {
                        model.aliases.insert(SERVED.to_owned(), Target::of(version.number));
                    }
                    Some(model)
                });
                version.events.send("version", &serde_json::json!({"version": version.number, "served": serve}));
            },
        )
        .await?;
    Ok(added.1.number)
}

/// Checks a specification against the dataset's columns. All faults are reported together.
fn plan(mut specification: Specification, pretrained: Option<Pretrained>, schema: &Schema) -> Result<Plan, ServiceError> {
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
    let (mut targets, mut classifier) = (Vec::new(), None);
    for (index, target) in specification.target.iter().enumerate() {
        let pointer = if specification.target.len() == 1 { "/target".to_owned() } else { format!("/target/{index}") };
        let Some(column) = find(pointer.clone(), target) else { continue };
        if !seen.insert(target.clone()) {
            faults.push(Fault { pointer: pointer.clone(), detail: format!("column {target:?} is a target twice") });
        }
        match schema.columns[column].kind {
            ColumnType::Number | ColumnType::Integer => targets.push(column),
            ColumnType::Category | ColumnType::Boolean if specification.target.len() > 1 => {
                let detail = format!("{target:?} has classes: a classifier has one target; fit a model for each");
                faults.push(Fault { pointer, detail });
            }
            kind @ (ColumnType::Category | ColumnType::Boolean) => {
                targets.push(column);
                classifier = Some(Classifier { classes: Vec::new(), boolean: kind == ColumnType::Boolean, calibrator: None });
            }
            kind => {
                let detail = format!("a target is a number, a category or a boolean, and {target:?} is of type {}", kind.as_str());
                faults.push(Fault { pointer, detail });
            }
        }
    }
    match &classifier {
        Some(_) => check_classifier(&specification, &mut faults),
        None if specification.calibration.is_some() && !targets.is_empty() => {
            let detail = "`calibration` is for a target that is a category or a boolean".to_owned();
            faults.push(Fault { pointer: "/calibration".to_owned(), detail });
        }
        None => {}
    }
    if pretrained.as_ref().is_some_and(|pretrained| pretrained.version.document.classifier.is_some() != classifier.is_some()) {
        let detail = "one of the two models is a classifier, and the other is not".to_owned();
        faults.push(Fault { pointer: "/prior/model".to_owned(), detail });
    }
    if specification.calibration.is_some() && specification.validation.is_none() {
        specification.validation = Some(Validation::usual());
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
    let encoded = columns::encoded(&specification, schema, &seen, &mut find, &mut faults, &mut warnings);
    let mut extra = Extra::default();
    let mut beside = None;
    if let Covariance::Cluster { column } = &specification.covariance {
        extra.cluster = true;
        beside = find("/covariance/column".to_owned(), column);
    }
    if let Some(Validation::Time { column: Some(column), .. }) = &specification.validation {
        extra.time = true;
        let place = find("/validation/column".to_owned(), column);
        if let Some(place) = place
            && !matches!(schema.columns[place].kind, ColumnType::Number | ColumnType::Integer | ColumnType::Timestamp)
        {
            let detail = "rows are ordered by a column of numbers or timestamps".to_owned();
            faults.push(Fault { pointer: "/validation/column".to_owned(), detail });
        }
        if extra.cluster && place != beside {
            let detail = "one fit takes either a column of groups or one of time, or both from the same column".to_owned();
            faults.push(Fault { pointer: "/validation/column".to_owned(), detail });
        }
        beside = place;
    }
    if !unknown.is_empty() {
        unknown.extend(faults);
        return Err(ServiceError::UnknownColumn(unknown));
    }
    if faults.is_empty() && encoded.is_empty() && !specification.intercept {
        faults.push(Fault { pointer: "/features".to_owned(), detail: "there is no feature and no intercept: nothing to fit".to_owned() });
    }
    let design = Design::new(encoded.clone());
    let shuffled = specification.validation.as_ref().is_some_and(|validation| !matches!(validation, Validation::Time { .. }));
    if shuffled && !design.past().is_empty() {
        let detail =
            "a model of past values is judged by rows later than those it learns from, which are past values of theirs: ask for `time`";
        faults.push(Fault { pointer: "/validation/kind".to_owned(), detail: detail.to_owned() });
    }
    let of_target = design.lagged().iter().any(|column| specification.target.contains(column));
    if let Some(Validation::Time { steps: Some(_), .. }) = &specification.validation
        && !of_target
    {
        let detail = "`steps` are of a model that takes past values of its target".to_owned();
        faults.push(Fault { pointer: "/validation/steps".to_owned(), detail });
    }
    if !faults.is_empty() {
        return Err(ServiceError::Request(faults));
    }
    let mut columns: Vec<Read> = Read::all_of(&design, |name| schema.index_of(name)).flatten().collect();
    columns.extend(targets.into_iter().chain(weights).chain(beside).map(Read::from));
    Ok(Plan { specification, columns, features: encoded, warnings, pretrained, classifier, extra, before: None })
}

/// Whether what is asked can be done with one response a class.
fn check_classifier(specification: &Specification, faults: &mut Vec<Fault>) {
    let estimator = &specification.estimator;
    if !estimator.takes_several_responses() {
        let kind = estimator.name();
        let (pointer, detail) = match estimator {
            Estimator::Lasso { .. } | Estimator::ElasticNet { .. } => (
                "/estimator/penalty",
                format!("a classifier fits a response for each class, and `{kind}` chooses a penalty for one: give a number"),
            ),
            _ => (
                "/estimator/kind",
                format!("a classifier fits a response for each class, and `{kind}` fits one: `ridge` and `ols` fit several"),
            ),
        };
        faults.push(Fault { pointer: pointer.to_owned(), detail });
    }
}
