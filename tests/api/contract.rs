//! `openapi.yaml` as a judge: every reply that the test client gets is checked against it.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use jsonschema::Validator;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

/// The contract, read once.
pub(crate) static CONTRACT: LazyLock<Contract> = LazyLock::new(|| {
    let document: Value = serde_saphyr::from_str(include_str!("../../openapi.yaml")).unwrap();
    Contract { document, validators: Mutex::default() }
});

/// The parsed document and its compiled schemas.
pub(crate) struct Contract {
    document: Value,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

impl Contract {
    /// The document.
    pub(crate) fn document(&self) -> &Value {
        &self.document
    }

    /// Every method and path in it.
    pub(crate) fn operations(&self) -> Vec<(String, String, &Value)> {
        let paths = self.document["paths"].as_object().unwrap();
        let methods = ["get", "put", "post", "delete", "patch"];
        paths
            .iter()
            .flat_map(|(path, item)| {
                let item = item.as_object().unwrap();
                let found = item.iter().filter(|(method, _)| methods.contains(&method.as_str()));
                found.map(|(method, operation)| (method.to_uppercase(), path.clone(), operation))
            })
            .collect()
    }

    /// What a reference stands for.
    pub(crate) fn resolve<'a>(&'a self, mut value: &'a Value) -> &'a Value {
        while let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            value = self.document.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference} leads nowhere"));
        }
        value
    }

    /// The faults of a value under a schema of the document.
    pub(crate) fn faults(&self, schema: &Value, value: &Value) -> Vec<String> {
        let mut validators = self.validators.lock().unwrap();
        let validator = validators.entry(schema.to_string()).or_insert_with(|| {
            // References lead from the root, so the components stand there too.
            let root = json!({"components": self.document["components"], "allOf": [schema]});
            Arc::new(jsonschema::draft202012::options().build(&root).unwrap())
        });
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }

    /// The operation that a request meets; a literal segment goes before a parameter.
    fn operation(&self, method: &str, path: &str) -> Option<&Value> {
        let path = path.split('?').next().unwrap_or_default();
        let fits = |template: &str| {
            let (mut left, mut right) = (template.split('/'), path.split('/'));
            loop {
                match (left.next(), right.next()) {
                    (None, None) => return true,
                    (Some(template), Some(given)) if template == given || stands_for(template, given) => {}
                    _ => return false,
                }
            }
        };
        self.operations().into_iter().find(|(verb, template, _)| verb == method && fits(template)).map(|(_, _, operation)| operation)
    }

    /// Panics unless the reply is one that the contract promises.
    pub(crate) fn check(&self, method: &str, path: &str, status: u16, headers: &HeaderMap, body: &[u8]) {
        let place = format!("{method} {path} -> {status}");
        let shown = String::from_utf8_lossy(&body[..body.len().min(2000)]);
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        assert!(text("x-request-id").is_some_and(|id| !id.is_empty()), "{place}: no x-request-id");
        let media = text("content-type").unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
        let parsed = || serde_json::from_slice::<Value>(body).unwrap_or_else(|error| panic!("{place}: not JSON ({error}): {shown}"));
        if media == "application/problem+json" {
            let problem = parsed();
            assert_eq!(problem["status"], status, "{place}: {shown}");
            assert_eq!(problem["error"], problem["detail"], "{place}: {shown}");
            assert_eq!(problem["request_id"], text("x-request-id").unwrap(), "{place}: {shown}");
        }
        let Some(operation) = self.operation(method, path) else {
            assert!(matches!(status, 401 | 403 | 404 | 405), "{place}: neither in the contract nor refused");
            assert_eq!(media, "application/problem+json", "{place}: {shown}");
            let faults = self.faults(&json!({"$ref": "#/components/schemas/Problem"}), &parsed());
            assert!(faults.is_empty(), "{place}: {faults:?}: {shown}");
            return;
        };
        let response = operation["responses"].get(status.to_string()).unwrap_or_else(|| panic!("{place} is not documented: {shown}"));
        let response = self.resolve(response);
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            let header = self.resolve(header);
            let given = text(name);
            assert!(given.is_some() || header["required"] != true, "{place}: no header {name}");
            if let Some(given) = given {
                let number = header["schema"]["type"] == "integer";
                let value = if number { json!(given.parse::<i64>().unwrap()) } else { json!(given) };
                let faults = self.faults(&header["schema"], &value);
                assert!(faults.is_empty(), "{place}: header {name}: {faults:?}");
            }
        }
        for name in ["etag", "location", "retry-after", "idempotent-replayed", "lsqd-version-sequence"] {
            let documented =
                response["headers"].as_object().is_some_and(|headers| headers.keys().any(|key| key.eq_ignore_ascii_case(name)));
            assert!(documented || text(name).is_none(), "{place}: header {name} is not documented");
        }
        let Some(content) = response.get("content") else {
            assert!(body.is_empty(), "{place}: a body where none is promised: {shown}");
            return;
        };
        let schema = content.get(&media).unwrap_or_else(|| panic!("{place}: {media:?} is not documented: {shown}"));
        let value = if media == "application/json" || media == "application/problem+json" {
            parsed()
        } else if matches!(media.as_str(), "application/octet-stream" | "application/vnd.apache.arrow.stream" | "application/vnd.sqlite3") {
            Value::String(String::from_utf8_lossy(body).into_owned())
        } else {
            Value::String(String::from_utf8(body.to_vec()).unwrap())
        };
        let faults = self.faults(&schema["schema"], &value);
        assert!(faults.is_empty(), "{place}: {faults:?}: {shown}");
    }
}

/// Whether a segment of an address is that of a template: a parameter, perhaps with a verb behind it.
fn stands_for(template: &str, given: &str) -> bool {
    let verb = template.strip_prefix('{').and_then(|rest| rest.split_once('}')).map(|(_, verb)| verb);
    verb.and_then(|verb| given.strip_suffix(verb)).is_some_and(|value| !value.is_empty())
}

/// Values inside a JSON document, with the pointers that lead to them.
fn walk(value: &Value, pointer: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(pointer, value);
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| walk(value, &format!("{pointer}/{key}"), visit)),
        Value::Array(list) => list.iter().enumerate().for_each(|(index, value)| walk(value, &format!("{pointer}/{index}"), visit)),
        _ => {}
    }
}

#[test]
fn routes_and_contract_agree_both_ways() {
    let mut routes: Vec<String> = lsqd::http::ROUTES.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
    let mut documented: Vec<String> = CONTRACT.operations().iter().map(|(method, path, _)| format!("{method} {path}")).collect();
    routes.sort_unstable();
    documented.sort_unstable();
    assert_eq!(routes, documented);
}

#[test]
fn scopes_of_routes_and_contract_agree() {
    let documented: HashMap<(String, String), &Value> =
        CONTRACT.operations().into_iter().map(|(method, path, operation)| ((method, path), operation)).collect();
    for (method, path, needs) in lsqd::http::ROUTES {
        let operation = documented[&((*method).to_owned(), (*path).to_owned())];
        let words = needs.words();
        if words.is_empty() {
            assert_eq!(operation["security"], json!([]), "{method} {path} is everybody's");
            assert!(operation.get("x-scopes").is_none(), "{method} {path}");
        } else {
            assert_eq!(operation["x-scopes"], json!(words), "{method} {path}");
            assert!(operation.get("security").is_none(), "{method} {path}");
        }
    }
}

#[test]
fn error_codes_and_contract_agree() {
    assert_eq!(json!(lsqd::http::CODES), CONTRACT.document()["components"]["schemas"]["Code"]["enum"]);
}

#[test]
fn references_lead_somewhere_and_every_component_is_used() {
    let mut used = std::collections::BTreeSet::new();
    walk(CONTRACT.document(), "", &mut |_, value| {
        // Ways to say who asks are named and not referred to.
        for way in value.get("security").and_then(Value::as_array).into_iter().flatten() {
            used.extend(way.as_object().unwrap().keys().map(|name| format!("securitySchemes/{name}")));
        }
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            CONTRACT.resolve(value);
            used.insert(reference.trim_start_matches("#/components/").to_owned());
        }
    });
    for (family, members) in CONTRACT.document()["components"].as_object().unwrap() {
        for name in members.as_object().unwrap().keys() {
            assert!(used.contains(&format!("{family}/{name}")), "{family}/{name} is not used");
        }
    }
}

#[test]
fn examples_obey_their_schemas() {
    let mut checked = 0;
    walk(CONTRACT.document(), "", &mut |pointer, value| {
        let inside_example = pointer.contains("/example/") || pointer.contains("/examples/") || pointer.contains("/properties/");
        if inside_example || !value.is_object() {
            return;
        }
        let schema = value.get("schema").unwrap_or(value);
        let named =
            value.get("examples").and_then(Value::as_object).into_iter().flat_map(|examples| examples.values().map(|one| &one["value"]));
        let listed = value.get("examples").and_then(Value::as_array).into_iter().flatten();
        for example in value.get("example").into_iter().chain(named).chain(listed) {
            let faults = CONTRACT.faults(schema, example);
            assert!(faults.is_empty(), "{pointer}: {faults:?}");
            checked += 1;
        }
    });
    assert!(checked > 20, "only {checked} examples were found");
}

#[test]
fn every_operation_has_an_id_of_its_own_and_an_id_header_on_all_replies() {
    let mut ids = std::collections::BTreeSet::new();
    for (method, path, operation) in CONTRACT.operations() {
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{method} {path}");
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert!(CONTRACT.resolve(response)["headers"].get("x-request-id").is_some(), "{method} {path} {status}");
        }
    }
}
