//! Reading a JSON request field by field, so that all its faults are reported together, and writing numbers.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::error::{ApiError, Code};
use crate::frame::{Fault, escaped};
use crate::service::ServiceError;

/// Why JSON is not what it should be: a word that JSON does not have, a value of another kind, or no JSON at all. The caller's values are
/// not repeated.
pub(super) fn not_of_its_form(json: &[u8], error: &serde_json::Error, what: &str) -> ServiceError {
    let (line, column) = (error.line(), error.column());
    let bare = ["NaN", "Infinity"].into_iter().find(|word| json.windows(word.len()).any(|part| part == word.as_bytes()));
    let detail = match bare {
        Some(word) if !error.is_data() => {
            format!(
                "line {line}, column {column}: {word} is not JSON; a missing value is null, or travels in binary where there is such a form"
            )
        }
        _ if error.is_data() => {
            let text = error.to_string();
            let text = text.split(" at line ").next().unwrap_or_default();
            // What was found instead is the caller's.
            let why = text.split_once(", expected ").map_or_else(|| text.to_owned(), |(_, expected)| format!("here belongs {expected}"));
            format!("the body is not {what}: line {line}, column {column}: {why}")
        }
        _ => format!("the body is not JSON: line {line}, column {column}"),
    };
    ServiceError::Syntax(Fault { pointer: String::new(), detail })
}

/// A JSON object being read; what is not asked for is an unknown field in the end.
pub(super) struct Fields {
    pointer: String,
    left: Map<String, Value>,
    pub(super) faults: Vec<Fault>,
}

/// Values, and members, of a document at the most. Read, each takes many times the bytes that it comes in, and a prior of a thousand
/// coefficients has a million numbers.
const VALUES: usize = 1_000_000;
const MEMBERS: usize = 100_000;

/// Faults reported at the most.
const REPORTED: usize = 20;

impl Fields {
    /// Reads a body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        // Those in a text count too, which is as many at the most.
        let more_than = |byte: u8, most: usize| memchr::memchr_iter(byte, body).nth(most).is_some();
        if more_than(b',', VALUES) || more_than(b':', MEMBERS) {
            let detail = format!("the document has more than {VALUES} values, or more than {MEMBERS} names");
            return Err(ServiceError::TooLarge(detail).into());
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(left)) => Ok(Self { pointer: String::new(), left, faults: Vec::new() }),
            Ok(_) => Err(ServiceError::request("", "the body is a JSON object").into()),
            Err(error) => Err(ApiError::from(ServiceError::Syntax(Fault {
                pointer: String::new(),
                // serde_json's text names what it expected and never repeats the caller's values, but only its place is promised.
                detail: format!("the body is not JSON: line {}, column {}", error.line(), error.column()),
            }))),
        }
    }

    /// An object inside another.
    pub(super) fn nested(pointer: String, value: Map<String, Value>) -> Self {
        Self { pointer, left: value, faults: Vec::new() }
    }

    /// Where the object stands.
    pub(super) fn pointer(&self) -> &str {
        &self.pointer
    }

    pub(super) fn fault(&mut self, field: &str, detail: impl Into<String>) {
        let pointer = if field.is_empty() { self.pointer.clone() } else { format!("{}/{}", self.pointer, escaped(field)) };
        self.faults.push(Fault { pointer, detail: detail.into() });
    }

    /// Whether a field is there and not `null`.
    pub(super) fn has(&self, field: &str) -> bool {
        self.left.get(field).is_some_and(|value| !value.is_null())
    }

    /// Takes a field; an explicit `null` is the same as none.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.left.remove(field).filter(|value| !value.is_null())
    }

    pub(super) fn string(&mut self, field: &str) -> Option<String> {
        match self.take(field)? {
            Value::String(text) => Some(text),
            _ => {
                self.fault(field, format!("`{field}` is a string"));
                None
            }
        }
    }

    pub(super) fn required_string(&mut self, field: &str) -> String {
        if self.left.get(field).is_none_or(Value::is_null) {
            self.fault(field, format!("`{field}` is required"));
        }
        self.string(field).unwrap_or_default()
    }

    /// A list of texts.
    pub(super) fn strings(&mut self, field: &str) -> Option<Vec<String>> {
        match self.take(field)? {
            Value::Array(list) if list.iter().all(Value::is_string) => {
                Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            }
            _ => {
                self.fault(field, format!("`{field}` is a list of texts"));
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, field: &str) -> Option<bool> {
        match self.take(field)? {
            Value::Bool(value) => Some(value),
            _ => {
                self.fault(field, format!("`{field}` is true or false"));
                None
            }
        }
    }

    pub(super) fn number(&mut self, field: &str) -> Option<f64> {
        match self.take(field)?.as_f64() {
            Some(value) if value.is_finite() => Some(value),
            _ => {
                self.fault(field, format!("`{field}` is a finite number"));
                None
            }
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn whole(&mut self, field: &str, least: u64, most: u64) -> Option<u64> {
        match self.take(field)?.as_u64() {
            Some(value) if (least..=most).contains(&value) => Some(value),
            _ => {
                let detail = if most == u64::MAX {
                    format!("`{field}` is a whole number of at least {least}")
                } else {
                    format!("`{field}` is a whole number from {least} to {most}")
                };
                self.fault(field, detail);
                None
            }
        }
    }

    /// A number above 0; `otherwise` when it is not given.
    pub(super) fn positive(&mut self, field: &str, otherwise: f64) -> f64 {
        let value = self.number(field).unwrap_or(otherwise);
        if value <= 0.0 {
            self.fault(field, format!("`{field}` is above 0"));
        }
        value
    }

    /// An object of finite numbers.
    pub(super) fn numbers(&mut self, field: &str) -> BTreeMap<String, f64> {
        let Some(inner) = self.object(field) else { return BTreeMap::new() };
        let mut numbers = BTreeMap::new();
        for (name, value) in inner.left {
            match value.as_f64().filter(|value| value.is_finite()) {
                Some(value) => {
                    numbers.insert(name, value);
                }
                None => {
                    let detail = "is not a finite number".to_owned();
                    self.faults.push(Fault { pointer: format!("{}/{}", inner.pointer, escaped(&name)), detail });
                }
            }
        }
        numbers
    }

    /// Notes that a field is missing, unless something else is already said of it; the value stands in until the request is refused.
    pub(super) fn lacks<T: Default>(&mut self, field: &str) -> T {
        let pointer = format!("{}/{}", self.pointer, escaped(field));
        if self.faults.iter().all(|fault| fault.pointer != pointer) {
            self.fault(field, format!("`{field}` is required"));
        }
        T::default()
    }

    pub(super) fn object(&mut self, field: &str) -> Option<Self> {
        match self.take(field)? {
            Value::Object(map) => Some(Self::nested(format!("{}/{}", self.pointer, escaped(field)), map)),
            _ => {
                self.fault(field, format!("`{field}` is an object"));
                None
            }
        }
    }

    /// Takes an object; what is none stays.
    pub(super) fn object_if_one(&mut self, field: &str) -> Option<Self> {
        if self.left.get(field).is_some_and(Value::is_object) { self.object(field) } else { None }
    }

    /// All fields that are left, in their order.
    pub(super) fn into_members(self) -> Map<String, Value> {
        self.left
    }

    /// Every field that nobody asked for is a fault; returns all faults of this object.
    pub(super) fn into_faults(mut self) -> Vec<Fault> {
        // No more are told of, and there may be a million.
        let unknown: Vec<String> = self.left.keys().take(REPORTED).cloned().collect();
        for field in unknown {
            self.fault(&field, "there is no such field");
        }
        self.faults
    }
}

/// Fails with all faults, if there are any.
pub(super) fn refuse(code: Code, mut faults: Vec<Fault>) -> Result<(), ApiError> {
    if faults.is_empty() {
        return Ok(());
    }
    faults.truncate(REPORTED);
    Err(match code {
        Code::NotSupported => ServiceError::NotSupported(faults).into(),
        _ => ServiceError::Request(faults).into(),
    })
}
