//! What a use case can answer instead of a result. Which status code that is belongs to `http`.

use std::sync::Arc;

use crate::frame::{Fault, Faults, ReadError};
use crate::lsq;
use crate::model::name::NameError;
use crate::store::StoreError;

/// The one error type of the use cases.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ServiceError {
    /// The body is not of its format at all.
    #[error("{}", .0.detail)]
    Syntax(Fault),
    /// Rows that cannot be taken, named by row and column.
    #[error("{0}")]
    Rows(Faults),
    /// A request that asks for something that cannot be.
    #[error("{}", summary(.0))]
    Request(Vec<Fault>),
    /// Part of the contract that this version does not do.
    #[error("{}", summary(.0))]
    NotSupported(Vec<Fault>),
    /// A forecast is asked of a version that is no autoregression of one target.
    #[error("{0}")]
    NotASeries(&'static str),
    /// A column that the dataset does not have.
    #[error("{}", summary(.0))]
    UnknownColumn(Vec<Fault>),
    /// A body format that is not read here.
    #[error("{0}")]
    MediaType(&'static str),
    /// Past a limit.
    #[error("{0}")]
    TooLarge(String),
    /// A name that is not one.
    #[error("{0}")]
    Name(#[from] NameError),
    /// No such dataset.
    #[error("there is no dataset of this name")]
    DatasetNotFound,
    /// The dataset that a fit names does not exist.
    #[error("there is no dataset of the name in `dataset`")]
    FitDatasetNotFound,
    /// No such model.
    #[error("there is no model of this name")]
    ModelNotFound,
    /// No such version.
    #[error("the model has no such version")]
    VersionNotFound,
    /// No such alias.
    #[error("the model has no such alias")]
    AliasNotFound,
    /// The model's requests are not shared out.
    #[error("the model has no split of traffic")]
    TrafficNotFound,
    /// No such row in the update log.
    #[error("the update log of this version has no such row")]
    UpdateNotFound,
    /// No such row in a dataset.
    #[error("the dataset has no such row")]
    RowNotFound,
    /// Versions that cannot unlearn rows of their dataset.
    #[error("{}", summary(.0))]
    CannotUnlearn(Vec<Fault>),
    /// No such remembered predictions.
    #[error("{}", summary(.0))]
    PredictionNotFound(Vec<Fault>),
    /// Labels that cannot be learnt beside what was learnt before.
    #[error("{}", summary(.0))]
    LabelConflict(Vec<Fault>),
    /// No such job.
    #[error("there is no job of this id")]
    JobNotFound,
    /// No such key.
    #[error("there is no key of this id")]
    KeyNotFound,
    /// The key of a request that takes long is not good any more.
    #[error("the key of this request was revoked meanwhile, or has expired")]
    KeyEnded,
    /// `If-Match` names another state.
    #[error("the resource has changed: its ETag is not the one in If-Match")]
    Precondition,
    /// The same key came with another request.
    #[error("this Idempotency-Key was used with another request")]
    IdempotencyMismatch,
    /// It cannot be done in the present state.
    #[error("{0}")]
    Conflict(&'static str),
    /// The data cannot be fitted.
    #[error("{0}")]
    Fit(String),
    /// The caller cancelled the job.
    #[error("the job was cancelled")]
    Cancelled,
    /// The server ended before the job did.
    #[error("the server stopped before the job was done; ask again")]
    Interrupted,
    /// Too many fits are waiting.
    #[error("too many fits are waiting; try again later")]
    QueueFull,
    /// The service cannot do it now.
    #[error("{0}")]
    Unavailable(&'static str),
    /// What is stored is not what was written.
    #[error("{0} is damaged; nothing is answered from it. `lsqd check` says more, and a backup has it as it was")]
    Quarantined(&'static str),
    /// There is no room left for what is to be written.
    #[error("there is no room left: the server's disk is full, or its database is as large as it may be")]
    DiskFull,
    /// The body stopped arriving.
    #[error("the body stopped arriving before its end")]
    BodyCut,
    /// The body did not go on arriving in time.
    #[error("the body did not go on arriving in time")]
    BodyTimeout,
    /// The database failed; the cause is logged, never sent.
    #[error("the database failed: {0}")]
    Store(#[from] Arc<StoreError>),
    /// A fault of our own; the cause is logged, never sent.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

fn summary(faults: &[Fault]) -> String {
    match faults {
        [] => "the request cannot be taken".to_owned(),
        [fault] => fault.detail.clone(),
        [fault, rest @ ..] => format!("{}, and {} more", fault.detail, rest.len()),
    }
}

impl ServiceError {
    /// A fit starts from a model that is not there.
    #[must_use]
    pub fn prior_not_found() -> Self {
        Self::request("/prior/model", "there is no such pretrained model or version")
    }

    /// An upload is longer than one may be.
    #[must_use]
    pub fn upload_too_large() -> Self {
        Self::TooLarge("the upload is larger than this server takes".to_owned())
    }

    /// One fault of a request at a JSON pointer.
    pub(crate) fn request(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Request(vec![Fault { pointer: pointer.into(), detail: detail.into() }])
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl ServiceError {
    /// What is damaged, if that is why something failed, and not a disk that cannot be read now.
    pub(crate) fn damage(&self) -> Option<&'static str> {
        match self {
            Self::Quarantined(what) => Some(what),
            Self::Store(error) => match &**error {
                StoreError::Corrupt(what) => Some(what),
                error if error.is_corrupt() => Some("a page of the database"),
                _ => None,
            },
            _ => None,
        }
    }
}

impl ServiceError {
    /// Whether there was no room left for it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::DiskFull => true,
            Self::Store(error) => error.is_full(),
            _ => false,
        }
    }
}

impl From<ReadError> for ServiceError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Faults(faults) => Self::Rows(faults),
            ReadError::Syntax(fault) => Self::Syntax(fault),
            other => Self::TooLarge(other.to_string()),
        }
    }
}

impl From<lsq::Error> for ServiceError {
    fn from(error: lsq::Error) -> Self {
        match error {
            lsq::Error::Interrupted => Self::Cancelled,
            other => Self::Fit(other.to_string()),
        }
    }
}
