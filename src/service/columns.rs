//! The features that are asked for, against the columns of a dataset: what each is made of, what it is called, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::features::{Encoding, Factor, Feature};
use crate::frame::{Column, ColumnType, Fault, Schema};
use crate::model::{FeatureSpecification, Form, Specification};

/// Looks a column up, and notes where it was asked for if there is none.
pub(super) type Find<'f> = dyn FnMut(String, &str) -> Option<usize> + 'f;

/// The features of a specification. `taken` are the columns of targets and weights.
pub(super) fn encoded(
    specification: &Specification,
    schema: &Schema,
    taken: &BTreeSet<String>,
    find: &mut Find<'_>,
    faults: &mut Vec<Fault>,
    warnings: &mut Vec<String>,
) -> Vec<Feature> {
    let Some(asked) = &specification.features else { return every_other(specification, schema, taken, warnings) };
    let terms = terms(asked);
    let mut features: Vec<Feature> = Vec::new();
    let mut labels = HashSet::new();
    let mut roles: BTreeMap<&str, bool> = BTreeMap::new();
    for (place, entry) in asked.iter().enumerate() {
        let pointer = format!("/features/{place}");
        let mut fault = |detail: String| faults.push(Fault { pointer: pointer.clone(), detail });
        let found: Vec<Option<usize>> = entry.columns.iter().map(|column| find(pointer.clone(), column)).collect();
        let Some(found) = found.into_iter().collect::<Option<Vec<usize>>>() else { continue };
        let columns: Vec<&Column> = found.iter().map(|column| &schema.columns[*column]).collect();
        if let Some(column) = columns.iter().find(|column| taken.contains(&column.name)) {
            fault(format!("column {:?} is a target or the weights, and cannot be a feature", column.name));
            continue;
        }
        let encoding = match encoding(specification, entry, &columns, &terms) {
            Ok(encoding) => encoding,
            Err(detail) => {
                fault(detail);
                continue;
            }
        };
        let mut good = true;
        for (part, column) in columns.iter().enumerate() {
            let category = encoding.levels(part).is_some();
            if *roles.entry(&column.name).or_insert(category) != category {
                fault(format!("column {:?} is a category in one feature and a number in another", column.name));
                good = false;
            }
        }
        let own: Vec<Column> = columns.into_iter().cloned().collect();
        let same = |before: &Feature| {
            let sources = before.sources().map(|(name, _)| name);
            before.encoding == encoding && sources.eq(own.iter().map(|column| column.name.as_str()))
        };
        if features.iter().any(same) {
            fault(format!("column {:?} is a feature twice, in the same way", entry.columns.join(", ")));
            good = false;
        }
        if good {
            features.push(labelled(own, encoding, &mut labels));
        }
    }
    features
}

/// All columns that are nothing else, as their types have it.
fn every_other(specification: &Specification, schema: &Schema, taken: &BTreeSet<String>, warnings: &mut Vec<String>) -> Vec<Feature> {
    let mut features = Vec::new();
    for column in schema.columns.iter().filter(|column| !taken.contains(&column.name)) {
        match column.kind {
            ColumnType::Number | ColumnType::Integer | ColumnType::Boolean => {
                features.push(Feature::of(&column.name, column.kind, Encoding::Identity));
            }
            ColumnType::Category => features.push(Feature::of(&column.name, column.kind, onehot(specification, None))),
            kind => warnings.push(format!("column {:?} of type {} was left out", column.name, kind.as_str())),
        }
    }
    features
}

fn onehot(specification: &Specification, entry: Option<&FeatureSpecification>) -> Encoding {
    Encoding::Onehot {
        levels: Vec::new(),
        drop_first: entry.and_then(|entry| entry.drop_first).unwrap_or(specification.intercept),
        unseen: entry.and_then(|entry| entry.unseen).unwrap_or(specification.unseen),
    }
}

/// The columns, or sets of them, that enter the design as products: what says which level of a product's category needs no column.
fn terms(asked: &[FeatureSpecification]) -> BTreeSet<BTreeSet<&str>> {
    let linear = |entry: &&FeatureSpecification| match &entry.form {
        Form::Usual | Form::Onehot => true,
        Form::Encoded(encoding) => {
            matches!(encoding, Encoding::Polynomial { .. } | Encoding::Standardise { .. } | Encoding::Interaction { .. })
        }
    };
    asked.iter().filter(linear).map(|entry| entry.columns.iter().map(String::as_str).collect()).collect()
}

/// What an entry makes of its columns, or why it cannot.
fn encoding(
    specification: &Specification,
    entry: &FeatureSpecification,
    columns: &[&Column],
    terms: &BTreeSet<BTreeSet<&str>>,
) -> Result<Encoding, String> {
    let first = columns.first().ok_or_else(|| "a feature is made of at least one column".to_owned())?;
    let mut encoding = match &entry.form {
        Form::Usual if first.kind == ColumnType::Category => onehot(specification, Some(entry)),
        Form::Usual => Encoding::Identity,
        Form::Onehot => onehot(specification, Some(entry)),
        Form::Encoded(encoding) => encoding.clone(),
    };
    if let Some(column) = columns.iter().find(|column| !encoding.fits(column.kind)) {
        return Err(format!("column {:?} of type {} cannot be used as `{}`", column.name, column.kind.as_str(), encoding.kind()));
    }
    match &mut encoding {
        Encoding::Bins { drop_first, .. } | Encoding::Calendar { drop_first, .. } => {
            *drop_first = entry.drop_first.unwrap_or(specification.intercept);
        }
        Encoding::Interaction { factors, unseen } => {
            *unseen = entry.unseen.unwrap_or(specification.unseen);
            *factors = columns
                .iter()
                .map(|column| {
                    let category = matches!(column.kind, ColumnType::Category | ColumnType::Text);
                    // The products with all levels add up to what the other columns make alone: where that is in the design, one is too many.
                    let others: BTreeSet<&str> =
                        columns.iter().filter(|other| other.name != column.name).map(|other| other.name.as_str()).collect();
                    let drop_first = category && entry.drop_first.unwrap_or_else(|| terms.contains(&others));
                    Factor { levels: category.then(Vec::new), drop_first }
                })
                .collect();
        }
        _ => {}
    }
    Ok(encoding)
}

/// A feature under the name of its columns, or where another has that, with its kind beside it.
fn labelled(columns: Vec<Column>, encoding: Encoding, labels: &mut HashSet<String>) -> Feature {
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let of = names.join(if matches!(encoding, Encoding::RandomFourier(_)) { "," } else { ":" });
    let long = format!("{}({of})", encoding.kind());
    let counted = (2..).map(|count| format!("{long} {count}"));
    let short = (columns.len() == 1 || matches!(encoding, Encoding::Interaction { .. })).then(|| of.clone());
    let label = short.into_iter().chain([long.clone()]).chain(counted).find(|label| !labels.contains(label)).unwrap_or_default();
    labels.insert(label.clone());
    match columns.as_slice() {
        [column] if column.name == label => Feature::of(label, column.kind, encoding),
        [column] => Feature { name: label, kind: column.kind, columns, encoding },
        _ => Feature { name: label, kind: ColumnType::Number, columns, encoding },
    }
}
