//! Rows in the JSON forms of two other servers: the scoring server of MLflow and TensorFlow Serving.
//!
//! | member | what it holds |
//! |---|---|
//! | `dataframe_split` | `{"columns": […], "data": [[…], …]}` |
//! | `dataframe_records` | a list of objects |
//! | `instances` | rows: a list of objects, of lists in the order of the inputs, or of values for a model of one input |
//! | `inputs` | columns: an object of lists by input, or one list as in `instances` |
//!
//! Where such a server takes tensors, a cell may stand in lists of its own (`{"x": [1.5]}`), and one tensor may hold all inputs. What is
//! simple goes the way of our own rows; what is nested goes the way of tensors. Not here: the members beside the rows.

use super::fault::{Fault, escaped};
use super::input::InputSchema;
use super::nested::{Columns, Nested};
use super::rows::{ParseError, Rows, RowsOptions, parse_arrays, parse_document, parse_objects};
use super::tensor::{Datatype, Tensor, parse_tensors};

/// The member of the body under which the rows stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `dataframe_split`
    Split,
    /// `dataframe_records`
    Records,
    /// `instances`
    Instances,
    /// `inputs`
    Inputs,
}

impl Form {
    /// The member's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Split => "dataframe_split",
            Self::Records => "dataframe_records",
            Self::Instances => "instances",
            Self::Inputs => "inputs",
        }
    }
}

/// Takes the rows of the member `form`, whose text is `json` and known to be JSON.
///
/// # Errors
/// It is not of its form, rows or cells are wrong, or there are too many; `rows` is empty then.
pub fn parse_served(form: Form, json: &[u8], schema: &InputSchema, options: &RowsOptions, rows: &mut Rows) -> Result<(), ParseError> {
    let json = json.trim_ascii();
    let mut starts = json.iter().copied().filter(|byte| !byte.is_ascii_whitespace());
    let (first, second) = (starts.next(), starts.next());
    match (form, first, second) {
        (Form::Split, Some(b'{'), _) => split(json, schema, options, rows),
        (Form::Split, ..) => no(form, "an object of `columns` and `data`"),
        (Form::Records, Some(b'['), _) => parse_objects(json, schema, options, rows).map_err(|error| moved(error, form)),
        (Form::Records, ..) => no(form, "a list of objects"),
        (Form::Instances | Form::Inputs, Some(b'['), Some(b'{' | b']')) if !nests(json) => {
            parse_objects(json, schema, options, rows).map_err(|error| moved(error, form))
        }
        (Form::Instances | Form::Inputs, Some(b'['), Some(b'{')) => {
            let columns = Columns::of_rows(json).map_err(|error| syntax(form, &error))?;
            let count = columns.rows;
            let tensors = columns.columns.into_iter().map(|(name, nested)| {
                let elements = nested.len() as u64;
                // Every row holds as much of the column, or the shape says what it has not.
                let width = elements.checked_div(count).filter(|width| width * count == elements);
                tensor(name, nested, vec![count, width.unwrap_or(1)])
            });
            take(tensors.collect(), form, schema, options, rows)
        }
        (Form::Instances | Form::Inputs, Some(b'['), Some(b'[')) if deep(json) < 3 => {
            parse_arrays(json, schema, options, rows).map_err(|error| moved(error, form))
        }
        (Form::Instances | Form::Inputs, Some(b'['), _) => {
            let nested: Nested = serde_json::from_slice(json).map_err(|error| syntax(form, &error))?;
            let Some(shape) = nested.shape() else { return no(form, "a list whose lists are all of one length") };
            take(vec![tensor(String::new(), nested, shape)], form, schema, options, rows)
        }
        (Form::Inputs, Some(b'{'), _) => {
            let columns = Columns::of_lists(json).map_err(|error| syntax(form, &error))?;
            let mut tensors = Vec::with_capacity(columns.columns.len());
            for (name, nested) in columns.columns {
                let Some(shape) = nested.shape() else { return no(form, "an object of lists whose lists are all of one length") };
                tensors.push(tensor(name, nested, shape));
            }
            take(tensors, form, schema, options, rows)
        }
        (Form::Instances, ..) => no(form, "a list of rows"),
        (Form::Inputs, ..) => no(form, "an object of columns, or a list of rows"),
    }
}

fn no<T>(form: Form, what: &str) -> Result<T, ParseError> {
    Err(ParseError::Syntax(Fault { pointer: format!("/{}", form.name()), detail: format!("`{}` is {what}", form.name()) }))
}

/// What serde_json says of JSON that is not of its form; its texts name what was expected, and values of the caller's only by their type.
fn syntax(form: Form, error: &serde_json::Error) -> ParseError {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default().split(", expected ").nth(1);
    let detail = match what {
        Some(what) => format!("`{}` holds something else where {what} belongs", form.name()),
        None if text.starts_with("recursion") => format!("`{}` holds lists within lists without end", form.name()),
        None => format!("`{}` mixes numbers, booleans and strings in one tensor", form.name()),
    };
    ParseError::Syntax(Fault { pointer: format!("/{}", form.name()), detail })
}

/// `{"columns": […], "data": [[…], …]}`, and the `index` that pandas writes beside them.
fn split(json: &[u8], schema: &InputSchema, options: &RowsOptions, rows: &mut Rows) -> Result<(), ParseError> {
    let members = parse_document(json, schema, options, rows).map_err(|error| moved(error, Form::Split))?;
    match members.iter().find(|(name, _)| name != "index") {
        None => Ok(()),
        Some(_) => no(Form::Split, "an object of `columns`, `data` and perhaps `index`, and of nothing else"),
    }
}

/// Whether a cell of the first object stands in a list.
fn nests(json: &[u8]) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    for byte in json.iter().skip_while(|byte| **byte != b'{').skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' if !quoted => return true,
            b'}' if !quoted => return false,
            _ => {}
        }
    }
    false
}

/// How many lists open before the first element.
fn deep(json: &[u8]) -> usize {
    json.iter().filter(|byte| !byte.is_ascii_whitespace()).take_while(|byte| **byte == b'[').count()
}

fn tensor(name: String, nested: Nested, shape: Vec<u64>) -> Tensor<'static> {
    let datatype = if nested.is_text() {
        Datatype::Bytes
    } else if nested.is_boolean() {
        Datatype::Bool
    } else {
        Datatype::Fp64
    };
    // A tensor that is named as no input is holds all of them.
    Tensor { name, shape, datatype, elements: nested.into_elements() }
}

fn take(tensors: Vec<Tensor<'static>>, form: Form, schema: &InputSchema, options: &RowsOptions, rows: &mut Rows) -> Result<(), ParseError> {
    parse_tensors(&tensors, schema, options.max_rows, rows).map_err(|error| match error {
        ParseError::Syntax(fault) => {
            let place = fault.pointer.split('/').nth(2).and_then(|place| place.parse::<usize>().ok());
            let name = place.and_then(|place| tensors.get(place)).filter(|tensor| !tensor.name.is_empty());
            let pointer = name.map_or_else(|| format!("/{}", form.name()), |tensor| format!("/{}/{}", form.name(), escaped(&tensor.name)));
            ParseError::Syntax(Fault { pointer, detail: fault.detail })
        }
        other => moved(other, form),
    })
}

/// The same error, its pointers leading through the member.
fn moved(error: ParseError, form: Form) -> ParseError {
    let pointer = |pointer: &str| match form {
        Form::Split => format!("/{}{pointer}", form.name()),
        Form::Records | Form::Instances | Form::Inputs => {
            let rest = pointer.strip_prefix("/rows").or_else(|| pointer.strip_prefix("/data")).unwrap_or(pointer);
            format!("/{}{rest}", form.name())
        }
    };
    match error {
        ParseError::Syntax(fault) => ParseError::Syntax(Fault { pointer: pointer(&fault.pointer), detail: fault.detail }),
        ParseError::Faults(faults) => ParseError::Faults(faults.moved(pointer)),
        ParseError::TooLarge(detail) => ParseError::TooLarge(detail),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::input::{Input, InputKind, Unseen};
    use super::*;

    const OPTIONS: RowsOptions = RowsOptions { allow_id: false, max_rows: 100 };

    fn mixed() -> InputSchema {
        let levels = [("north", 0), ("south", 1)].map(|(level, index)| (level.to_owned(), index)).into();
        let input = |name: &str, kind| Input { name: name.to_owned(), kind, required: true };
        InputSchema::new(vec![input("x", InputKind::Number), input("region", InputKind::Category { levels, unseen: Unseen::Error })])
    }

    fn numbers(names: &[&str]) -> InputSchema {
        let input = |name: &&str| Input { name: (*name).to_owned(), kind: InputKind::Number, required: true };
        InputSchema::new(names.iter().map(input).collect())
    }

    fn taken(form: Form, json: &str, schema: &InputSchema) -> Result<Vec<f64>, ParseError> {
        serde_json::from_str::<serde_json::Value>(json).unwrap();
        let mut rows = Rows::default();
        parse_served(form, json.as_bytes(), schema, &OPTIONS, &mut rows).map(|()| rows.values)
    }

    #[test]
    fn every_form_gives_the_same_rows() {
        let expected = [1.5, 1.0, 2.0, 0.0];
        for (form, json) in [
            (Form::Split, r#"{"index": [0, 1], "columns": ["region", "x"], "data": [["south", 1.5], ["north", 2]]}"#),
            (Form::Split, r#"{"data": [["south", 1.5], ["north", 2]], "columns": ["region", "x"]}"#),
            (Form::Records, r#"[{"region": "south", "x": 1.5}, {"x": 2, "region": "north"}]"#),
            (Form::Instances, r#" [ {"region": "south", "x": 1.5}, {"x": 2, "region": "north"}]"#),
            (Form::Instances, r#"[{"region": ["south"], "x": [1.5]}, {"x": [2], "region": ["north"]}]"#),
            (Form::Instances, r#"[{"region": "south", "x": [1.5]}, {"x": [2], "region": "north"}]"#),
            (Form::Instances, r#"[[1.5, "south"], [2, "north"]]"#),
            (Form::Inputs, r#"{"x": [1.5, 2], "region": ["south", "north"]}"#),
            (Form::Inputs, r#"{"x": [[1.5], [2]], "region": [["south"], ["north"]]}"#),
            (Form::Inputs, r#"[[1.5, "south"], [2, "north"]]"#),
        ] {
            assert_eq!(taken(form, json, &mixed()).unwrap(), expected, "{json}");
        }
        let plane = numbers(&["a", "b"]);
        for (form, json) in [
            (Form::Instances, "[[1, 2], [3, 4]]"),
            (Form::Instances, r#"[{"dense_input": [1, 2]}, {"dense_input": [3, 4]}]"#),
            (Form::Inputs, r#"{"dense_input": [[1, 2], [3, 4]]}"#),
            (Form::Inputs, "[[1, 2], [3, 4]]"),
        ] {
            assert_eq!(taken(form, json, &plane).unwrap(), [1.0, 2.0, 3.0, 4.0], "{json}");
        }
        for (form, json) in [
            (Form::Instances, "[1, 2.5]"),
            (Form::Instances, "[[1], [2.5]]"),
            (Form::Inputs, "[1, 2.5]"),
            (Form::Inputs, r#"{"a": [1, 2.5]}"#),
        ] {
            assert_eq!(taken(form, json, &numbers(&["a"])).unwrap(), [1.0, 2.5], "{json}");
        }
        assert_eq!(taken(Form::Instances, "[]", &plane).unwrap(), [0.0; 0]);
        assert_eq!(taken(Form::Records, "[]", &plane).unwrap(), [0.0; 0]);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place_in_the_body() {
        for (form, json, pointer) in [
            (Form::Split, "[]", "/dataframe_split"),
            (Form::Split, r#"{"columns": ["x", "region"], "data": [[1, "east"]]}"#, "/dataframe_split/data/0/1"),
            (Form::Split, r#"{"columns": ["x"], "data": [[1]]}"#, "/dataframe_split/columns"),
            (Form::Split, r#"{"columns": ["x", "region"], "data": [], "other": 1}"#, "/dataframe_split"),
            (Form::Records, "{}", "/dataframe_records"),
            (Form::Records, r#"[{"x": 1, "region": "north"}, {"x": null, "region": "north"}]"#, "/dataframe_records/1/x"),
            (Form::Instances, r#"[{"x": [1], "region": ["east"]}]"#, "/instances/0/region"),
            (Form::Instances, r#"[{"x": [1], "region": ["north"]}, {"x": [1]}]"#, "/instances/region"),
            (Form::Instances, r#"[{"x": [1], "region": ["north"]}, 3]"#, "/instances"),
            (Form::Instances, r#"[[1, "north"], [1]]"#, "/instances/1"),
            (Form::Instances, "{}", "/instances"),
            (Form::Instances, "[[[1]]]", "/instances"),
            (Form::Inputs, r#"{"x": [1, 2], "region": ["north"]}"#, "/inputs/region"),
            (Form::Inputs, r#"{"x": [1, "a"], "region": ["north"]}"#, "/inputs"),
            (Form::Inputs, r#"{"x": [[1], [2, 3]], "region": ["north"]}"#, "/inputs"),
            (Form::Inputs, r#"{"x": ["a"], "region": ["north"]}"#, "/inputs/0/x"),
            (Form::Inputs, r#"{"x": 1, "region": "north"}"#, "/inputs/x"),
            (Form::Inputs, r#"{}"#, "/inputs"),
            (Form::Inputs, "7", "/inputs"),
        ] {
            let pointers = match taken(form, json, &mixed()) {
                Err(ParseError::Syntax(fault)) => vec![fault.pointer],
                Err(ParseError::Faults(faults)) => faults.into_vec().into_iter().map(|fault| fault.pointer).collect(),
                other => panic!("{json}: {other:?}"),
            };
            assert_eq!(pointers, [pointer], "{json}");
        }
    }
}
