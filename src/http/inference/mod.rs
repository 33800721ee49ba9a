//! The Open Inference Protocol, version 2 (KServe, Triton): what its two forms share. Rows and answers are those of `predict`; here is what
//! tensors a model takes and gives, and what may be asked beside them. How they are written: [`json`] over HTTP, [`grpc`] over gRPC.

pub(super) mod grpc;
pub(super) mod json;
mod protobuf;

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::answers::{push_bool, push_list};
use super::error::ApiError;
use crate::frame::reply::{push_json_string, push_number};
use crate::frame::rows::Rows;
use crate::frame::tensor::{Tensor, parse_tensors};
use crate::frame::{Fault, InputKind};
use crate::lsq::inference::student_t_quantile;
use crate::model::{IntervalKind, Question};
use crate::service::{Answerer, Predicted, Service, ServiceError, Version};

/// The name of the server.
const NAME: &str = "lsqd";
/// Rows of a request.
const ROWS: usize = 10_000_000;
/// Bodies larger than this leave the async threads.
const LARGE: usize = 64 * 1024;
/// The name of the tensor of all inputs.
const TABLE: &str = "input";
/// What can be answered, the last two by classifiers.
const OUTPUTS: [&str; 7] = ["predict", "lower", "upper", "std_error", "leverage", SCORES, PROBABILITIES];
const SCORES: &str = "scores";
const PROBABILITIES: &str = "probabilities";

fn malformed(pointer: impl Into<String>, detail: impl Into<String>) -> ServiceError {
    ServiceError::Syntax(Fault { pointer: pointer.into(), detail: detail.into() })
}

/// A tensor as the metadata describe it.
struct Described {
    name: String,
    datatype: &'static str,
    shape: Vec<i64>,
}

/// The tensors that a version takes, and those that it gives.
fn described(version: &Version) -> (Vec<Described>, Vec<Described>) {
    let inputs = version.inputs.inputs();
    let plain = inputs.iter().all(|input| matches!(input.kind, InputKind::Number | InputKind::Integer | InputKind::Above(_)));
    let taken = if plain && !inputs.is_empty() {
        vec![Described { name: TABLE.to_owned(), datatype: "FP64", shape: vec![-1, inputs.len() as i64] }]
    } else {
        let datatype = |kind: &InputKind| match kind {
            InputKind::Number | InputKind::Above(_) => "FP64",
            InputKind::Integer => "INT64",
            InputKind::Boolean => "BOOL",
            InputKind::Category { .. } | InputKind::Timestamp => "BYTES",
        };
        inputs.iter().map(|input| Described { name: input.name.clone(), datatype: datatype(&input.kind), shape: vec![-1, 1] }).collect()
    };
    let given = OUTPUTS.iter().filter(|output| is_given(output, version)).map(|output| describe(output, -1, version));
    (taken, given.collect())
}

/// Whether a version has an output.
fn is_given(output: &str, version: &Version) -> bool {
    let classifier = version.document.classifier.as_ref();
    match output {
        SCORES => classifier.is_some(),
        PROBABILITIES => classifier.is_some_and(|classifier| classifier.calibrator.is_some()),
        _ => true,
    }
}

/// An output of so many rows.
fn describe(output: &str, rows: i64, version: &Version) -> Described {
    let datatype = match &version.document.classifier {
        Some(classifier) if output == "predict" => {
            if classifier.boolean {
                "BOOL"
            } else {
                "BYTES"
            }
        }
        _ => "FP64",
    };
    Described { name: output.to_owned(), datatype, shape: output_shape(output, rows, version) }
}

/// The extents of an output of so many rows.
fn output_shape(output: &str, rows: i64, version: &Version) -> Vec<i64> {
    let document = &version.document;
    let targets = if output == "predict" { document.target.len() } else { document.responses().len() };
    if targets == 1 || output == "leverage" { vec![rows] } else { vec![rows, targets as i64] }
}

/// The output of that name, which stands at `place` in the request, after `before`. None stands twice: a small request would have a large
/// answer.
fn output(name: &str, place: usize, before: &[&'static str]) -> Result<&'static str, ServiceError> {
    let pointer = || format!("/outputs/{place}/name");
    let known = OUTPUTS.into_iter().find(|known| *known == name);
    let known = known.ok_or_else(|| malformed(pointer(), format!("there is no such output; there are {}", OUTPUTS.join(", "))))?;
    if before.contains(&known) { Err(malformed(pointer(), "this output stands twice")) } else { Ok(known) }
}

/// What is asked, but for how it is to be written.
struct Asked {
    outputs: Vec<&'static str>,
    kind: IntervalKind,
    level: f64,
    rows: Rows,
}

impl Asked {
    /// Reads tensors into rows. Without outputs, `predict` is one.
    fn read(
        tensors: &[Tensor<'_>],
        mut outputs: Vec<&'static str>,
        parameters: &Map<String, Value>,
        answerer: &Answerer,
    ) -> Result<Self, ApiError> {
        if outputs.is_empty() {
            outputs.push("predict");
        }
        let version = &answerer.version;
        if let Some(place) = outputs.iter().position(|output| !is_given(output, version)) {
            let given: Vec<&str> = OUTPUTS.into_iter().filter(|output| is_given(output, version)).collect();
            let detail = format!("this model has no such output; there are {}", given.join(", "));
            return Err(malformed(format!("/outputs/{place}/name"), detail).into());
        }
        // Of a class there are no others.
        let usual = if version.document.classifier.is_some() { IntervalKind::Confidence } else { IntervalKind::Prediction };
        let (kind, level) = interval(parameters, "/parameters")?.unwrap_or((usual, 0.95));
        let mut rows = Rows::default();
        parse_tensors(tensors, answerer.inputs(), ROWS, &mut rows).map_err(|error| answerer.refused(error))?;
        Ok(Self { outputs, kind, level, rows })
    }

    fn answer(self, service: &Service, answerer: Answerer) -> Result<Answered, ApiError> {
        let of = |names: &[&str]| self.outputs.iter().any(|output| names.contains(output));
        let question = Question {
            interval: of(&["lower", "upper", "std_error"]).then_some((self.kind, self.level)),
            leverage: of(&["leverage"]),
            probabilities: of(&[PROBABILITIES]),
            ..Question::default()
        };
        let degrees = answerer.degrees_of_freedom();
        let quantile = if degrees > 0.0 { student_t_quantile(self.level, degrees) } else { f64::NAN };
        let predicted = service.predict(answerer, self.rows, question, false)?;
        Ok(Answered { outputs: self.outputs, predicted, quantile })
    }
}

/// Rows answered.
struct Answered {
    outputs: Vec<&'static str>,
    predicted: Predicted,
    /// Student's, of the level that was asked for.
    quantile: f64,
}

impl Answered {
    /// The rows.
    fn rows(&self) -> usize {
        self.predicted.answer.predictions.len() / self.predicted.version.document.target.len().max(1)
    }

    fn describe(&self, output: &str) -> Described {
        describe(output, self.rows() as i64, &self.predicted.version)
    }

    /// The elements of an output, row by row.
    fn elements(&self, output: &str) -> Elements<'_> {
        match &self.predicted.version.document.classifier {
            Some(classifier) if output == "predict" => {
                let labels = &self.predicted.answer.predictions;
                if classifier.boolean {
                    Elements::Booleans(labels.iter().map(|label| *label == 1.0).collect())
                } else {
                    Elements::Texts(labels.iter().map(|label| classifier.name(*label)).collect())
                }
            }
            _ => Elements::Numbers(self.values(output)),
        }
    }

    /// The numbers of an output, row by row; NaN is what is not known.
    fn values(&self, output: &str) -> Cow<'_, [f64]> {
        let answer = &self.predicted.answer;
        match output {
            SCORES => Cow::Borrowed(&answer.scores),
            PROBABILITIES => Cow::Borrowed(&answer.probabilities),
            "lower" => Cow::Borrowed(&answer.lower),
            "upper" => Cow::Borrowed(&answer.upper),
            "leverage" => Cow::Borrowed(&answer.leverage),
            "std_error" => answer.upper.iter().zip(answer.estimates()).map(|(upper, value)| (upper - value) / self.quantile).collect(),
            _ => Cow::Borrowed(&answer.predictions),
        }
    }
}

/// The elements of an output.
enum Elements<'a> {
    Numbers(Cow<'a, [f64]>),
    Texts(Vec<&'a str>),
    Booleans(Vec<bool>),
}

impl Elements<'_> {
    /// How many bytes [`Elements::push_binary`] adds.
    fn size(&self) -> usize {
        match self {
            Self::Numbers(values) => values.len() * 8,
            Self::Texts(texts) => texts.iter().map(|text| 4 + text.len()).sum(),
            Self::Booleans(values) => values.len(),
        }
    }

    /// As the binary extension has them: little-endian floats, texts behind their length in four bytes, booleans as a byte each.
    fn push_binary(&self, out: &mut Vec<u8>) {
        match self {
            Self::Numbers(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::Texts(texts) => {
                for text in texts {
                    // A class is no longer than a cell of a table.
                    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
                    out.extend_from_slice(text.as_bytes());
                }
            }
            Self::Booleans(values) => out.extend(values.iter().map(|value| u8::from(*value))),
        }
    }

    fn push_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Numbers(values) => push_list(out, values.iter(), |out, value| push_number(out, *value)),
            Self::Texts(texts) => push_list(out, texts.iter(), |out, text| push_json_string(out, text)),
            Self::Booleans(values) => push_list(out, values.iter(), |out, value| push_bool(out, *value)),
        }
    }
}

/// `interval` (`prediction` or `confidence`, or a level, or an object of `kind` and `level`) and `level` among the parameters that stand at
/// `pointer`; `None` where neither is.
pub(super) fn interval(parameters: &Map<String, Value>, pointer: &str) -> Result<Option<(IntervalKind, f64)>, ServiceError> {
    let no_interval = || malformed(format!("{pointer}/interval"), "`interval` is prediction or confidence, or a level between 0 and 1");
    let (mut kind, mut level) = (None, parameters.get("level"));
    match parameters.get("interval") {
        None if level.is_none() => return Ok(None),
        None => {}
        Some(Value::String(text)) => kind = Some(text.as_str()),
        Some(number @ Value::Number(_)) => level = Some(number),
        Some(Value::Object(object)) => {
            kind = match object.get("kind") {
                None => None,
                Some(Value::String(text)) => Some(text.as_str()),
                Some(_) => return Err(no_interval()),
            };
            level = object.get("level").or(level);
        }
        Some(_) => return Err(no_interval()),
    }
    let kind = match kind {
        None | Some("prediction") => IntervalKind::Prediction,
        Some("confidence") => IntervalKind::Confidence,
        Some(_) => return Err(no_interval()),
    };
    match level.map_or(Some(0.95), Value::as_f64) {
        Some(level) if level > 0.0 && level < 1.0 => Ok(Some((kind, level))),
        _ => Err(malformed(format!("{pointer}/level"), "`level` is between 0 and 1")),
    }
}
