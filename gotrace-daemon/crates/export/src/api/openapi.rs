//! `/api/v1/openapi.json`: what the API answers, for programs that write clients.
//!
//! The description is made from answers, and committed (`openapi.json`): a test makes it anew, and holds random requests
//! against it. Every value that an answer has is described as one that may be `null`, which is how gotrace says that it
//! does not know.

use axum::{
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use serde_json::Value as Json;

use super::JSON;

/// Its path.
pub const PATH: &str = "/api/v1/openapi.json";

/// The description (OpenAPI 3.1).
pub const DOCUMENT: &str = include_str!("openapi.json");

pub(super) async fn document() -> Response {
    ([(CONTENT_TYPE, JSON)], DOCUMENT).into_response()
}

/// What of an answer is not as one of the description's schemas has it: places and what is wrong there. For tests.
#[must_use]
pub fn violations(document: &Json, schema: &Json, value: &Json) -> Vec<String> {
    let mut wrong = Vec::new();
    hold(document, schema, value, "", &mut wrong);
    wrong
}

fn hold(document: &Json, schema: &Json, value: &Json, at: &str, wrong: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let named = name.strip_prefix('#').and_then(|path| document.pointer(path));
        match named {
            Some(named) => hold(document, named, value, at, wrong),
            None => wrong.push(format!("{at}: there is no {name}")),
        }
        return;
    }
    let kind = match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(n) if n.is_f64() => "number",
        Json::Number(_) => "integer",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    };
    let is_one = |of: &Json| of == kind || kind == "integer" && of == "number";
    let fits = match &schema["type"] {
        Json::Null => true,
        Json::Array(kinds) => kinds.iter().any(is_one),
        of => is_one(of),
    };
    if !fits {
        wrong.push(format!("{at}: is {kind}, not {}", schema["type"]));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
        if value.as_object().is_some_and(|fields| !fields.contains_key(name)) {
            wrong.push(format!("{at}: has no {name}"));
        }
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        match (schema["properties"].get(name), schema.get("additionalProperties")) {
            (Some(schema), _) => hold(document, schema, value, &format!("{at}.{name}"), wrong),
            (None, Some(Json::Bool(false))) => wrong.push(format!("{at}: {name} is not described")),
            (None, Some(schema)) => hold(document, schema, value, &format!("{at}.{name}"), wrong),
            (None, None) => {}
        }
    }
    for (n, value) in value.as_array().into_iter().flatten().enumerate() {
        hold(document, &schema["items"], value, &format!("{at}[{n}]"), wrong);
    }
}
