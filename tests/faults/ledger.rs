//! What was acknowledged, and whether a database still says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

/// Something that a reply has said; names are used once, so that it stays true until it is withdrawn.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fact {
    /// A dataset is there, with so many rows.
    Dataset { name: String, rows: i64 },
    /// A dataset is not there any more.
    NoDataset { name: String },
    /// A model has a version.
    Version { model: String, version: i64 },
    /// A model is not there any more.
    NoModel { model: String },
    /// The first version of a model has learnt a row (its numbers as bits) at a sequence.
    Row { model: String, sequence: u64, cells: Vec<u64> },
    /// The first version of a model has unlearnt the row of a sequence, and what the row said is gone.
    Erased { model: String, sequence: u64 },
}

impl Fact {
    /// A row that was learnt.
    pub(crate) fn row(model: &str, sequence: u64, cells: &[f64]) -> Self {
        Self::Row { model: model.to_owned(), sequence, cells: cells.iter().map(|cell| cell.to_bits()).collect() }
    }

    /// What it is about: the name of a dataset or of a model.
    fn subject(&self) -> &str {
        match self {
            Self::Dataset { name, .. } | Self::NoDataset { name } => name,
            Self::Version { model, .. } | Self::NoModel { model } | Self::Row { model, .. } | Self::Erased { model, .. } => model,
        }
    }
}

/// A line of the ledger.
#[derive(Clone, Debug)]
pub(crate) enum Mark {
    /// A reply has said it.
    Acknowledged(Fact),
    /// A request is about to be sent that removes what has this name.
    Withdrawn(String),
    /// A request is about to be sent that erases this row.
    Erasing { model: String, sequence: u64 },
}

/// The facts that have to hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    facts: BTreeSet<Fact>,
}

impl Ledger {
    /// Takes a line in.
    pub(crate) fn enter(&mut self, mark: &Mark) {
        match mark {
            Mark::Acknowledged(fact) => _ = self.facts.insert(fact.clone()),
            Mark::Withdrawn(name) => self.facts.retain(|fact| fact.subject() != name),
            Mark::Erasing { model, sequence } => {
                let erased = (model, sequence);
                self.facts.retain(|fact| !matches!(fact, Fact::Row { model, sequence, .. } if (model, sequence) == erased));
            }
        }
    }

    /// How many facts have to hold.
    pub(crate) fn len(&self) -> usize {
        self.facts.len()
    }

    /// Whether the first version of a model has to be there.
    pub(crate) fn has_version(&self, model: &str) -> bool {
        self.facts.contains(&Fact::Version { model: model.to_owned(), version: 1 })
    }

    /// Whether the database is whole and says all of it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) async fn check(&self, database: &Path) -> Result<(), String> {
        let found =
            look(database).await.map_err(|error| format!("acknowledged, but not there: the database cannot be read: {error}"))??;
        match self.facts.difference(&found.true_of(&self.facts)).next() {
            None => Ok(()),
            Some(fact) => Err(format!("acknowledged, but not there: {fact:?}")),
        }
    }
}

/// What a database holds.
struct Found {
    datasets: BTreeMap<String, i64>,
    versions: BTreeMap<String, BTreeSet<i64>>,
    /// The rows that the first version of a model has learnt, by sequence − 1.
    rows: BTreeMap<String, Vec<Vec<u64>>>,
    erased: BTreeSet<(String, u64)>,
}

impl Found {
    fn true_of(&self, facts: &BTreeSet<Fact>) -> BTreeSet<Fact> {
        let holds = |fact: &&Fact| match fact {
            Fact::Dataset { name, rows } => self.datasets.get(name) == Some(rows),
            Fact::NoDataset { name } => !self.datasets.contains_key(name),
            Fact::Version { model, version } => self.versions.get(model).is_some_and(|versions| versions.contains(version)),
            Fact::NoModel { model } => !self.versions.contains_key(model),
            Fact::Row { model, sequence, cells } => {
                let learnt = self.rows.get(model).and_then(|rows| rows.get(usize::try_from(*sequence).ok()?.checked_sub(1)?));
                // The log keeps a weight after the cells that were sent.
                learnt.is_some_and(|learnt| learnt.starts_with(cells))
            }
            Fact::Erased { model, sequence } => self.erased.contains(&(model.clone(), *sequence)),
        };
        facts.iter().filter(holds).cloned().collect()
    }
}

/// Reads a database and checks that it is whole: SQLite's own checks, checksums, logs without a gap, no event learnt from that is not in
/// the log.
async fn look(database: &Path) -> Result<Result<Found, String>, sqlx::Error> {
    let mut connection = SqliteConnectOptions::new().filename(database).disable_statement_logging().connect().await?;
    let whole: Vec<(String,)> = sqlx::query_as("PRAGMA integrity_check").fetch_all(&mut connection).await?;
    if whole != [("ok".to_owned(),)] {
        return Ok(Err(format!("integrity_check: {whole:?}")));
    }
    let dangling = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut connection).await?.len();
    if dangling > 0 {
        return Ok(Err(format!("{dangling} rows refer to rows that are not there")));
    }
    let datasets: Vec<(String, i64)> = sqlx::query_as("SELECT name, rows FROM datasets").fetch_all(&mut connection).await?;
    let versions: Vec<(String, i64, i64)> =
        sqlx::query_as("SELECT name, version, versions.id FROM versions JOIN models ON models.id = model_id")
            .fetch_all(&mut connection)
            .await?;
    let mut found =
        Found { datasets: datasets.into_iter().collect(), versions: BTreeMap::new(), rows: BTreeMap::new(), erased: BTreeSet::new() };
    for (model, version, id) in versions {
        let records = match lsqd::store::updates::after(&mut connection, id, 0, u32::MAX).await {
            Ok(records) => records,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let counts: Vec<(i64,)> = sqlx::query_as("SELECT rows FROM update_log WHERE version_id = ? ORDER BY first_sequence")
            .bind(id)
            .fetch_all(&mut connection)
            .await?;
        let mut rows: Vec<Vec<u64>> = Vec::new();
        for (record, (count,)) in records.iter().zip(counts) {
            if record.first_sequence != rows.len() as u64 + 1 {
                return Ok(Err(format!("the log of {model} goes on at {} after {}", record.first_sequence, rows.len())));
            }
            let width = record.values.len() / usize::try_from(count).unwrap_or(1).max(1);
            rows.extend(record.values.chunks_exact(width.max(1)).map(|row| row.iter().map(|cell| cell.to_bits()).collect()));
        }
        let (events,): (i64,) = sqlx::query_as("SELECT count(*) FROM events WHERE version_id = ? AND sequence > ?")
            .bind(id)
            .bind(i64::try_from(rows.len()).unwrap_or(i64::MAX))
            .fetch_one(&mut connection)
            .await?;
        if events > 0 {
            return Ok(Err(format!("{events} events of {model} are known that it has not learnt from")));
        }
        for (record, place) in records.iter().flat_map(|record| record.erased.iter().map(move |place| (record, *place))) {
            let sequence = record.first_sequence + u64::from(place);
            let gone = usize::try_from(sequence)
                .ok()
                .and_then(|sequence| rows.get(sequence - 1))
                .is_some_and(|row| row.iter().all(|cell| *cell == 0));
            if !gone {
                return Ok(Err(format!("row {sequence} of {model} is erased, but says something")));
            }
            found.erased.insert((model.clone(), sequence));
        }
        if version == 1 {
            found.rows.insert(model.clone(), rows);
        }
        found.versions.entry(model).or_default().insert(version);
    }
    connection.close().await?;
    Ok(Ok(found))
}
