//! The entries of `features` in a request for a fit.

use serde_json::Value;

use super::fits::unseen;
use super::wire::Fields;
use crate::features::{Encoding, Filling, MOST_COLUMNS, MOST_FREQUENCIES, Part, Season, Waves};
use crate::frame::Fault;
use crate::model::{FeatureSpecification, Form};

/// Powers of a column at the most.
const HIGHEST: u64 = 20;
/// Columns of one product at the most.
const FACTORS: usize = 4;
/// Components of random Fourier features at the most.
const WAVES: u64 = 4096;
/// Edges and knots that are given at the most.
const LONGEST: usize = 1000;
/// Bins and degrees of freedom between quantiles, and waves of a period.
const MOST: u64 = 100;
/// Rows back at the most, and how often a difference is taken.
const FARTHEST: u64 = 10_000;
const DIFFERENCES: u64 = 10;

/// What this version does, for a message.
const KINDS: &str = "this version does `onehot`, `standardise`, `log`, `impute`, `polynomial`, `interaction`, `bins`, `spline`, `calendar`, \
                     `random_fourier`, `lag` and `difference`";

/// An entry of `features`. What is not done yet goes to `later`.
pub(super) fn feature(pointer: String, entry: Value, faults: &mut Vec<Fault>, later: &mut Vec<Fault>) -> Option<FeatureSpecification> {
    let map = match entry {
        Value::String(column) => {
            return Some(FeatureSpecification { columns: vec![column], form: Form::Usual, drop_first: None, unseen: None });
        }
        Value::Object(map) => map,
        _ => {
            faults.push(Fault { pointer, detail: "a feature is a column's name or an object".to_owned() });
            return None;
        }
    };
    let mut fields = Fields::nested(pointer.clone(), map);
    let kind = fields.string("as");
    let several = matches!(kind.as_deref(), Some("interaction" | "random_fourier"));
    let columns =
        if several { columns(&mut fields, kind.as_deref() == Some("interaction")) } else { vec![fields.required_string("column")] };
    let form = match kind.as_deref() {
        None => Form::Usual,
        Some("onehot") => Form::Onehot,
        Some(kind) => match encoding(kind, &mut fields, columns.len()) {
            Some(encoding) => Form::Encoded(encoding),
            None => {
                later.push(Fault { pointer: format!("{pointer}/as"), detail: KINDS.to_owned() });
                return None;
            }
        },
    };
    let (mut drop_first, mut level) = (None, None);
    let category = matches!(form, Form::Usual | Form::Onehot | Form::Encoded(Encoding::Interaction { .. }));
    if category || matches!(form, Form::Encoded(Encoding::Bins { .. } | Encoding::Calendar { .. })) {
        drop_first = fields.boolean("drop_first");
    }
    if category {
        level = unseen(&mut fields);
    }
    faults.extend(fields.into_faults());
    Some(FeatureSpecification { columns, form, drop_first, unseen: level })
}

/// `columns`, each of them once.
fn columns(fields: &mut Fields, product: bool) -> Vec<String> {
    let given = fields.strings("columns");
    let columns = given.unwrap_or_else(|| fields.lacks("columns"));
    let (least, most) = if product { (2, FACTORS) } else { (1, MOST_COLUMNS) };
    if fields.faults.is_empty() && !(least..=most).contains(&columns.len()) {
        fields.fault("columns", format!("`columns` are {least} to {most} columns"));
    }
    if (1..columns.len()).any(|place| columns[..place].contains(&columns[place])) {
        fields.fault("columns", "a column stands twice in `columns`");
    }
    columns
}

/// What is asked of the encoding of that name; nothing where there is none.
fn encoding(kind: &str, fields: &mut Fields, columns: usize) -> Option<Encoding> {
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Some(match kind {
        "standardise" => Encoding::Standardise { mean: f64::NAN, standard_deviation: f64::NAN },
        "log" => Encoding::Log { offset: fields.number("offset").unwrap_or(0.0) },
        "impute" => impute(fields),
        "polynomial" => {
            let degree = fields.whole("degree", 1, HIGHEST).unwrap_or_else(|| fields.lacks("degree"));
            Encoding::Polynomial { degree: small(degree) }
        }
        "interaction" => Encoding::Interaction { factors: Vec::new(), unseen: crate::features::Unseen::default() },
        "bins" => {
            let edges = rising(fields, "edges", 2);
            let quantiles = fields.whole("quantiles", 2, MOST).map(small);
            if edges.is_some() == quantiles.is_some() && fields.faults.is_empty() {
                fields.fault("", "`bins` has either `quantiles`, a number of bins, or `edges`");
            }
            Encoding::Bins { quantiles, edges: edges.unwrap_or_default(), drop_first: false }
        }
        "spline" => {
            let knots = rising(fields, "knots", 1);
            let df = fields.whole("df", 2, MOST).map(small);
            if knots.is_some() == df.is_some() && fields.faults.is_empty() {
                fields.fault("", "`spline` has either `df`, its degrees of freedom, or `knots`");
            }
            Encoding::Spline { df, knots: knots.unwrap_or_default(), boundary: [f64::NAN; 2] }
        }
        "calendar" => calendar(fields),
        "random_fourier" => {
            let components = small(fields.whole("components", 1, WAVES).unwrap_or(100));
            let gamma = match fields.take("gamma") {
                None => None,
                Some(Value::String(word)) if word == "median" => None,
                Some(gamma) if gamma.as_f64().is_some_and(|gamma| gamma > 0.0 && gamma.is_finite()) => gamma.as_f64(),
                Some(_) => {
                    fields.fault("gamma", "`gamma` is a number above 0, or \"median\"");
                    None
                }
            };
            let seed = fields.whole("seed", 0, u64::MAX).unwrap_or(1);
            let standardise = fields.boolean("standardise").unwrap_or(true);
            if columns.saturating_mul(components as usize) > MOST_FREQUENCIES {
                fields.fault("components", format!("`components` times columns is {MOST_FREQUENCIES} at the most"));
            }
            // What is refused draws nothing.
            let drawn = if fields.faults.is_empty() { components } else { 1 };
            Encoding::RandomFourier(Box::new(Waves::asked(columns.clamp(1, MOST_COLUMNS), drawn, gamma, seed, standardise)))
        }
        "lag" => {
            let lags: Vec<u32> = rising(fields, "lags", 1).unwrap_or_else(|| fields.lacks("lags")).into_iter().map(whole).collect();
            if lags.iter().any(|lag| !(1..=small(FARTHEST)).contains(lag)) {
                fields.fault("lags", format!("`lags` are whole numbers of rows from 1 to {FARTHEST}, each above the one before"));
            }
            Encoding::Lag { lags, horizon: horizon(fields) }
        }
        "difference" => {
            let lag = fields.whole("lag", 1, FARTHEST).map_or(0, small);
            let order = fields.whole("order", 1, DIFFERENCES).map_or(1, small);
            let period = fields.whole("period", 1, FARTHEST).map_or(1, small);
            Encoding::Difference { lag, order, period, horizon: horizon(fields) }
        }
        _ => return None,
    })
}

/// Rows from the last one that is known to the one that is predicted.
fn horizon(fields: &mut Fields) -> u32 {
    fields.whole("horizon", 1, FARTHEST).map_or(1, |horizon| u32::try_from(horizon).unwrap_or(1))
}

/// A number as a whole one; 0, which is never asked for, where it is none.
fn whole(number: f64) -> u32 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked
    if number.fract() == 0.0 && (0.0..f64::from(u32::MAX)).contains(&number) { number as u32 } else { 0 }
}

fn impute(fields: &mut Fields) -> Encoding {
    let word = fields.string("with");
    let given = fields.number("value");
    let with = match word.as_deref() {
        Some("mean") => Filling::Mean,
        Some("median") => Filling::Median,
        Some("constant") => Filling::Constant,
        _ => {
            fields.fault("with", "`with` is mean, median or constant");
            Filling::Constant
        }
    };
    if fields.faults.is_empty() && given.is_some() != (with == Filling::Constant) {
        fields.fault("value", "`value` goes with `constant`, which needs it");
    }
    Encoding::Impute { with, value: given.unwrap_or(f64::NAN), indicator: fields.boolean("indicator").unwrap_or(false) }
}

fn calendar(fields: &mut Fields) -> Encoding {
    let mut parts: Vec<Part> = Vec::new();
    for name in fields.strings("parts").unwrap_or_default() {
        match Part::parse(&name) {
            Some(part) if !parts.contains(&part) => parts.push(part),
            Some(_) => fields.fault("parts", format!("{name:?} stands twice in `parts`")),
            None => fields.fault("parts", "`parts` are of hour, weekday, month and yearday"),
        }
    }
    let onehot = match fields.string("encode").as_deref() {
        None | Some("onehot") => true,
        Some("number") => false,
        Some(_) => {
            fields.fault("encode", "`encode` is onehot or number");
            true
        }
    };
    let mut seasonality: Vec<Season> = Vec::new();
    let entries = match fields.take("seasonality") {
        None => Vec::new(),
        Some(Value::Array(entries)) => entries,
        Some(entry) => vec![entry],
    };
    for (place, entry) in entries.into_iter().enumerate() {
        let Value::Object(map) = entry else {
            fields.fault("seasonality", "`seasonality` is an object of `period` and `order`, or a list of them");
            continue;
        };
        let mut inner = Fields::nested(format!("{}/seasonality/{place}", fields.pointer()), map);
        let (period, order) = (inner.required_string("period"), inner.whole("order", 1, MOST));
        let order = u32::try_from(order.unwrap_or_else(|| inner.lacks("order"))).unwrap_or_default();
        match Season::parse(&period, order) {
            Some(season) if seasonality.iter().all(|before| before.period != season.period) => seasonality.push(season),
            Some(_) => inner.fault("period", "this period stands twice"),
            None if !period.is_empty() => inner.fault("period", "`period` is a number of days or hours, such as 1d, 365.25d or 12h"),
            None => {}
        }
        fields.faults.extend(inner.into_faults());
    }
    if parts.is_empty() && seasonality.is_empty() && fields.faults.is_empty() {
        fields.fault("", "`calendar` has `parts`, `seasonality` or both");
    }
    Encoding::Calendar { parts, onehot, drop_first: false, seasonality }
}

/// A list of at least so many numbers, each above the one before.
fn rising(fields: &mut Fields, field: &str, least: usize) -> Option<Vec<f64>> {
    let list = fields.take(field)?;
    let numbers: Option<Vec<f64>> = list.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
    match numbers {
        Some(numbers)
            if (least..=LONGEST).contains(&numbers.len())
                && numbers.iter().all(|number| number.is_finite())
                && numbers.windows(2).all(|pair| pair[0] < pair[1]) =>
        {
            Some(numbers)
        }
        _ => {
            fields.fault(field, format!("`{field}` is a list of {least} to {LONGEST} numbers, each above the one before"));
            None
        }
    }
}
