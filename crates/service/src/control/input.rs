//! What a request says: path, query and body, read with errors that name the field.

use serde_json::{Map, Value};

use crate::api::ApiError;
use crate::{FunctionName, Place, Qualifier};

/// A request of a tenant.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) tenant: String,
    /// What addresses of this service begin with, as the caller reaches it.
    pub(crate) base: String,
    /// What varies in the path.
    pub(crate) path: Vec<String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) body: Map<String, Value>,
}

impl Input {
    /// Reads a body, which must be an object or nothing.
    ///
    /// # Errors
    /// Invalid content.
    pub(crate) fn body(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Map::new());
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(fields)) => Ok(fields),
            Ok(_) => Err(ApiError::invalid_content("Could not parse request body into json: it is no object")),
            Err(error) => Err(ApiError::invalid_content(format!("Could not parse request body into json: {error}"))),
        }
    }

    pub(crate) fn parameter(&self, at: usize) -> Result<&str, ApiError> {
        self.path.get(at).map(String::as_str).ok_or_else(|| ApiError::invalid("the path is too short"))
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find_map(|(found, value)| (found == name && !value.is_empty()).then_some(value.as_str()))
    }

    /// The function that the path names, with what the query says of its code.
    pub(crate) fn function(&self, place: &Place) -> Result<FunctionName, ApiError> {
        FunctionName::parse(self.parameter(0)?, place)?.qualified(self.query("Qualifier"))
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, ApiError> {
        text(&self.body, name)
    }

    pub(crate) fn needed(&self, name: &str) -> Result<String, ApiError> {
        self.text(name)?.ok_or_else(|| missing(name))
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.body.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(wrong(name, "true or false", other)),
        }
    }

    /// A number within bounds.
    pub(crate) fn number(&self, name: &str, least: u32, most: u32) -> Result<Option<u32>, ApiError> {
        number(&self.body, name, least, most)
    }

    pub(crate) fn object(&self, name: &str) -> Result<Option<&Map<String, Value>>, ApiError> {
        match self.body.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(fields)),
            Some(other) => Err(wrong(name, "an object", other)),
        }
    }

    /// A page of a list: what begins after the marker, and the marker for the next.
    pub(crate) fn page<T>(&self, all: Vec<T>, default: usize) -> Result<(Vec<T>, Option<String>), ApiError> {
        let bad = |name: &str, value: &str| {
            ApiError::invalid(format!("{name} {value:?}: expected what the page before gave"))
        };
        let start = match self.query("Marker") {
            None => 0,
            Some(marker) => marker.parse::<usize>().map_err(|_| bad("Marker", marker))?,
        };
        let most = match self.query("MaxItems") {
            None => default,
            Some(most) => {
                let most = most.parse::<usize>().ok().filter(|most| (1..=10_000).contains(most));
                most.ok_or_else(|| ApiError::invalid("MaxItems must be 1 to 10000"))?.min(default)
            }
        };
        let length = all.len();
        let page: Vec<T> = all.into_iter().skip(start).take(most).collect();
        let next = start + page.len();
        Ok((page, (next < length).then(|| next.to_string())))
    }
}

pub(super) fn missing(name: &str) -> ApiError {
    ApiError::invalid(format!("{name} is missing"))
}

fn wrong(name: &str, expected: &str, found: &Value) -> ApiError {
    let found = found.to_string().chars().take(100).collect::<String>();
    ApiError::invalid(format!("{name} is {found}: expected {expected}"))
}

pub(super) fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, ApiError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(wrong(name, "text", other)),
    }
}

pub(super) fn number(fields: &Map<String, Value>, name: &str, least: u32, most: u32) -> Result<Option<u32>, ApiError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            let number = number.filter(|number| (least..=most).contains(number));
            number.map(Some).ok_or_else(|| wrong(name, &format!("a number from {least} to {most}"), value))
        }
    }
}

/// Texts by names.
pub(super) fn texts(
    fields: &Map<String, Value>,
    what: &str,
) -> Result<std::collections::BTreeMap<String, String>, ApiError> {
    let text = |(name, value): (&String, &Value)| match value {
        Value::String(text) => Ok((name.clone(), text.clone())),
        other => Err(wrong(&format!("{what} {name}"), "text", other)),
    };
    fields.iter().map(text).collect()
}

/// A version's number, as text.
pub(super) fn version(text: &str) -> Result<Qualifier, ApiError> {
    match Qualifier::parse(text)? {
        Qualifier::Alias(_) => Err(ApiError::invalid(format!("{text:?} is no version: expected a number or $LATEST"))),
        qualifier => Ok(qualifier),
    }
}
