//! The features that are asked for, against the columns of a dataset: what each is made of, what it is called, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::features::{Design, Encoding, Factor, Feature};
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
        let lags = matches!(&entry.form, Form::Encoded(Encoding::Lag { .. } | Encoding::Difference { .. }));
        let may_be = |column: &Column| !taken.contains(&column.name) || lags && specification.target.contains(&column.name);
        if let Some(column) = columns.iter().find(|column| !may_be(column)) {
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
    check_past(&features, asked, taken, faults);
    features
}

/// Values of past rows at the most, over all columns: every state of the version holds them.
const PAST_VALUES: usize = 1 << 20;

/// What features of past values must have in common.
fn check_past(features: &[Feature], asked: &[FeatureSpecification], taken: &BTreeSet<String>, faults: &mut Vec<Fault>) {
    let horizon = |entry: &FeatureSpecification| if let Form::Encoded(encoding) = &entry.form { encoding.horizon() } else { None };
    let mut horizons = asked.iter().enumerate().filter_map(|(place, entry)| Some((place, horizon(entry)?)));
    let Some((_, first)) = horizons.next() else { return };
    if let Some((place, _)) = horizons.find(|(_, horizon)| *horizon != first) {
        let detail = "all past values of a model have the same `horizon`, 1 where it is not given".to_owned();
        faults.push(Fault { pointer: format!("/features/{place}/horizon"), detail });
    }
    let design = Design::new(features.to_vec());
    let own: Vec<&str> = design.columns()[..design.own_columns()].iter().map(|column| column.name.as_str()).collect();
    for column in &design.columns()[design.own_columns()..] {
        if own.contains(&column.name.as_str()) || design.lagged().contains(&column.name) || taken.contains(&column.name) {
            let detail = format!("column {:?} has the name of a past value that the model takes", column.name);
            faults.push(Fault { pointer: "/features".to_owned(), detail });
        }
    }
    if design.reach().saturating_mul(design.lagged().len()) > PAST_VALUES {
        let detail = format!("the longest lag times the columns of which past values are taken is more than {PAST_VALUES}");
        faults.push(Fault { pointer: "/features".to_owned(), detail });
    }
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
        // The row's own target is what is to be found.
        Encoding::Difference { lag, .. } if *lag == 0 && specification.target.contains(&first.name) => *lag = 1,
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
    if let Some(horizon) = encoding.horizon()
        && encoding.past().iter().any(|(lag, ..)| *lag > 0 && *lag < horizon)
    {
        return Err("a difference of the row's own value takes one that is not known `horizon` rows ahead: give it a `lag`".to_owned());
    }
    Ok(encoding)
}

/// A feature under the name of its columns, or where another has that, with its kind beside it.
fn labelled(columns: Vec<Column>, encoding: Encoding, labels: &mut HashSet<String>) -> Feature {
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let of = names.join(if matches!(encoding, Encoding::RandomFourier(_)) { "," } else { ":" });
    let long = format!("{}({of})", encoding.kind());
    let counted = (2..).map(|count| format!("{long} {count}"));
    // What is made of past values is not what its column is.
    let now = encoding.horizon().is_none();
    let short = (now && columns.len() == 1 || matches!(encoding, Encoding::Interaction { .. })).then(|| of.clone());
    let label = short.into_iter().chain([long.clone()]).chain(counted).find(|label| !labels.contains(label)).unwrap_or_default();
    labels.insert(label.clone());
    match columns.as_slice() {
        [column] if column.name == label => Feature::of(label, column.kind, encoding),
        [column] => Feature { name: label, kind: column.kind, columns, encoding },
        _ => Feature { name: label, kind: ColumnType::Number, columns, encoding },
    }
}
