//! Answers on their way out, row by row: lines of NDJSON, CSV, or an Arrow stream. What comes before the first row, rows in as many parts as
//! they are made in, and what comes after the last. Not here: the one JSON document that answers a JSON question.

use std::sync::Arc;

use super::predict::Dialect;
use crate::frame::arrow_stream::{Answered, AnsweredKind, ArrowWriter};
use crate::frame::reply::{push_csv_cell, push_json_string, push_number};
use crate::model::{Answer, Classifier, Document, Figure, PredictionId, Wanted};
use crate::service::{ServiceError, Version};

/// What is written of each row, and how.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    form: Form,
    version: Arc<Version>,
    sequence: u64,
    wanted: Wanted,
    /// Whether each row has an id under which it is remembered.
    ids: bool,
    /// The columns of a table.
    figures: Vec<Figure>,
}

#[derive(Clone, Debug)]
enum Form {
    Lines,
    /// With the names of the columns.
    Csv(Vec<String>),
    Arrow(ArrowWriter),
}

const UNWRITTEN: ServiceError = ServiceError::Internal("an Arrow stream could not be written");

impl Writer {
    /// A writer of what a version answers at a sequence.
    pub(super) fn new(dialect: Dialect, version: Arc<Version>, sequence: u64, wanted: Wanted, ids: bool) -> Result<Self, ServiceError> {
        let columns = wanted.columns(&version.document);
        let figures = columns.iter().map(|(_, figure)| *figure).collect();
        let ids_column = ids.then(|| "prediction_id".to_owned());
        let form = match dialect {
            Dialect::Json | Dialect::Ndjson => Form::Lines,
            Dialect::Csv => Form::Csv(columns.into_iter().map(|(name, _)| name).chain(ids_column).collect()),
            Dialect::Arrow => {
                let kind = |figure| match figure {
                    Figure::Extrapolates | Figure::Label { boolean: true } => AnsweredKind::Boolean,
                    Figure::Label { boolean: false } => AnsweredKind::Text,
                    Figure::Version | Figure::Sequence => AnsweredKind::Whole,
                    _ => AnsweredKind::Number,
                };
                let columns = columns.into_iter().map(|(name, figure)| (name, kind(figure)));
                let columns = columns.chain(ids_column.map(|name| (name, AnsweredKind::Text)));
                let metadata = [("lsqd-version-sequence".to_owned(), format!("{}-{sequence}", version.number))];
                Form::Arrow(ArrowWriter::new(columns, metadata).map_err(|_| UNWRITTEN)?)
            }
        };
        Ok(Self { form, version, sequence, wanted, ids, figures })
    }

    /// What comes before the first row.
    pub(super) fn head(&self, out: &mut Vec<u8>) {
        match &self.form {
            Form::Lines => {}
            Form::Arrow(writer) => out.extend_from_slice(writer.head()),
            Form::Csv(names) => {
                for (place, name) in names.iter().enumerate() {
                    if place > 0 {
                        out.push(b',');
                    }
                    push_csv_cell(out, name);
                }
                out.push(b'\n');
            }
        }
    }

    /// The rows of an answer.
    pub(super) fn rows(&self, out: &mut Vec<u8>, answer: &Answer, ids: Option<&[PredictionId]>) -> Result<(), ServiceError> {
        let count = answer.estimates().len() / self.responses().len().max(1);
        match &self.form {
            Form::Lines => (0..count).for_each(|row| self.line(out, answer, row, ids)),
            Form::Csv(_) => (0..count).for_each(|row| self.record(out, answer, row, ids)),
            Form::Arrow(writer) => {
                let mut columns: Vec<Answered<'_>> = self.figures.iter().map(|figure| self.column(answer, *figure)).collect();
                if self.ids {
                    columns.push(Answered::Texts(ids.unwrap_or_default().iter().map(ToString::to_string).collect()));
                }
                writer.batch(columns, count, out).map_err(|_| UNWRITTEN)?;
            }
        }
        Ok(())
    }

    /// What comes after the last row.
    pub(super) fn end(&self) -> &'static [u8] {
        if let Form::Arrow(_) = self.form { ArrowWriter::end() } else { &[] }
    }

    fn responses(&self) -> &[String] {
        self.version.document.responses()
    }

    /// Parts of the contributions of a row: for each response the baseline and the features.
    fn parts(&self) -> usize {
        (self.version.document.features.len() + 1) * self.responses().len()
    }

    /// One object, with the end of its line.
    fn line(&self, out: &mut Vec<u8>, answer: &Answer, row: usize, ids: Option<&[PredictionId]>) {
        let responses = self.responses();
        let mut separator = b'{';
        let mut member = |out: &mut Vec<u8>, name: &str| {
            out.push(std::mem::replace(&mut separator, b','));
            out.push(b'"');
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
        };
        let wanted = self.wanted;
        let label = self.version.document.classifier.as_ref().filter(|_| wanted.predictions);
        if let Some(classifier) = label {
            member(out, "prediction");
            push_label(out, classifier, answer.predictions[row]);
        }
        for (wanted, name, values) in [
            (wanted.predictions && label.is_none(), "prediction", &answer.predictions),
            (wanted.scores, "scores", &answer.scores),
            (wanted.probabilities, "probabilities", &answer.probabilities),
            (wanted.lower, "lower", &answer.lower),
            (wanted.upper, "upper", &answer.upper),
        ] {
            if wanted {
                member(out, name);
                push_row(out, responses, &values[row * responses.len()..(row + 1) * responses.len()]);
            }
        }
        if wanted.leverage {
            member(out, "leverage");
            push_number(out, answer.leverage[row]);
        }
        if wanted.extrapolates {
            member(out, "extrapolates");
            push_bool(out, answer.extrapolates[row]);
        }
        if wanted.contributions {
            member(out, "contributions");
            push_contributions(out, &self.version, &answer.contributions[row * self.parts()..(row + 1) * self.parts()]);
        }
        if wanted.version {
            member(out, "version");
            out.extend_from_slice(format!("{},\"sequence\":{}", self.version.number, self.sequence).as_bytes());
        }
        if let Some(id) = ids.and_then(|ids| ids.get(row)) {
            member(out, "prediction_id");
            out.extend_from_slice(format!("\"{id}\"").as_bytes());
        }
        out.extend_from_slice(if separator == b'{' { b"{}\n" } else { b"}\n" });
    }

    /// One line of CSV.
    fn record(&self, out: &mut Vec<u8>, answer: &Answer, row: usize, ids: Option<&[PredictionId]>) {
        for (place, figure) in self.figures.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            match (answer.numbers(*figure, self.responses().len(), self.parts()), figure) {
                (Some((values, first, step)), _) => {
                    let value = values[first + row * step];
                    // What is not defined is an empty cell.
                    if value.is_finite() {
                        push_number(out, value);
                    }
                }
                (None, Figure::Extrapolates) => push_bool(out, answer.extrapolates[row]),
                (None, Figure::Label { .. }) => push_csv_cell(out, self.label(answer.predictions[row])),
                (None, Figure::Version) => out.extend_from_slice(self.version.number.to_string().as_bytes()),
                (None, _) => out.extend_from_slice(self.sequence.to_string().as_bytes()),
            }
        }
        if let Some(id) = ids.and_then(|ids| ids.get(row)) {
            if !self.figures.is_empty() {
                out.push(b',');
            }
            out.extend_from_slice(id.to_string().as_bytes());
        }
        out.push(b'\n');
    }

    /// The name of the class at a place.
    fn label(&self, place: f64) -> &str {
        self.version.document.classifier.as_ref().map_or("", |classifier| classifier.name(place))
    }

    /// A column of a table.
    fn column<'a>(&self, answer: &'a Answer, figure: Figure) -> Answered<'a> {
        match (answer.numbers(figure, self.responses().len(), self.parts()), figure) {
            (Some((values, 0, 1)), _) => Answered::Numbers(values.into()),
            (Some((values, first, step)), _) => Answered::Numbers(values.iter().skip(first).step_by(step).copied().collect()),
            (None, Figure::Extrapolates) => Answered::Booleans(answer.extrapolates.as_slice().into()),
            (None, Figure::Label { boolean: true }) => Answered::Booleans(answer.predictions.iter().map(|label| *label == 1.0).collect()),
            (None, Figure::Label { .. }) => Answered::Texts(answer.predictions.iter().map(|label| self.label(*label).to_owned()).collect()),
            (None, Figure::Version) => Answered::Whole(self.version.number),
            (None, _) => Answered::Whole(self.sequence),
        }
    }
}

/// One value a row: a number for one target, an object by target name for several.
pub(super) fn push_row(out: &mut Vec<u8>, targets: &[String], values: &[f64]) {
    if let ([_], [value]) = (targets, values) {
        push_number(out, *value);
        return;
    }
    out.push(b'{');
    for (place, (target, value)) in targets.iter().zip(values).enumerate() {
        if place > 0 {
            out.push(b',');
        }
        push_json_string(out, target);
        out.push(b':');
        push_number(out, *value);
    }
    out.push(b'}');
}

/// The label at a place among the classes: a text, or `true` or `false`; null for the label of a row that was erased.
pub(super) fn push_label(out: &mut Vec<u8>, classifier: &Classifier, place: f64) {
    match classifier.name(place) {
        _ if place.is_nan() => out.extend_from_slice(b"null"),
        name if classifier.boolean => out.extend_from_slice(name.as_bytes()),
        name => push_json_string(out, name),
    }
}

/// One prediction a row: of a classifier a label, otherwise as [`push_row`] has it.
pub(super) fn push_predictions(out: &mut Vec<u8>, document: &Document, values: &[f64]) {
    match &document.classifier {
        Some(classifier) => push_list(out, values.iter(), |out, place| push_label(out, classifier, *place)),
        None => push_rows(out, &document.target, values),
    }
}

/// `[row, row, …]`.
pub(super) fn push_rows(out: &mut Vec<u8>, targets: &[String], values: &[f64]) {
    push_list(out, values.chunks_exact(targets.len().max(1)), |out, row| push_row(out, targets, row));
}

/// `[item, item, …]`.
pub(super) fn push_list<T>(out: &mut Vec<u8>, items: impl Iterator<Item = T>, push: impl Fn(&mut Vec<u8>, T)) {
    out.push(b'[');
    for (place, item) in items.enumerate() {
        if place > 0 {
            out.push(b',');
        }
        push(out, item);
    }
    out.push(b']');
}

/// The contributions of one row: by feature for one response, by response and feature for several.
pub(super) fn push_contributions(out: &mut Vec<u8>, version: &Version, row: &[f64]) {
    let document = &version.document;
    let each = document.features.len() + 1;
    let one = |out: &mut Vec<u8>, parts: &[f64]| {
        out.extend_from_slice(b"{\"(baseline)\":");
        push_number(out, parts[0]);
        for (feature, part) in document.features.iter().zip(&parts[1..]) {
            out.push(b',');
            push_json_string(out, &feature.name);
            out.push(b':');
            push_number(out, *part);
        }
        out.push(b'}');
    };
    if let [_] = document.responses() {
        one(out, row);
        return;
    }
    out.push(b'{');
    for (place, (target, parts)) in document.responses().iter().zip(row.chunks_exact(each)).enumerate() {
        if place > 0 {
            out.push(b',');
        }
        push_json_string(out, target);
        out.push(b':');
        one(out, parts);
    }
    out.push(b'}');
}

pub(super) fn push_bool(out: &mut Vec<u8>, value: bool) {
    out.extend_from_slice(if value { b"true" } else { b"false" });
}
