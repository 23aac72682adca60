//! Checks JSON against the schemas of `openapi.json`: what tests of the server and its clients use.
//!
//! Knows the keywords of JSON Schema (2020-12) that the document uses, and panics at any other, so
//! that nothing in there goes unchecked.

use serde_json::{Map, Value};

use crate::api::OPENAPI;

/// The document, parsed.
///
/// # Panics
/// When it is no JSON.
#[must_use]
pub fn openapi() -> Value {
    serde_json::from_str(OPENAPI).expect("openapi.json is JSON")
}

/// Checks `value` against the document's schema of this name.
///
/// # Errors
/// The first place where it differs, and how.
pub fn check(name: &str, value: &Value) -> Result<(), String> {
    let document = openapi();
    Checker { document: &document }.named(name, value, name)
}

struct Checker<'a> {
    document: &'a Value,
}

impl Checker<'_> {
    fn named(&self, name: &str, value: &Value, at: &str) -> Result<(), String> {
        let schema = &self.document["components"]["schemas"][name];
        assert!(schema.is_object(), "no schema {name}");
        self.schema(schema, value, at)
    }

    fn schema(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = schema.as_object().expect("a schema is an object");
        for (keyword, rule) in schema {
            let kept = match keyword.as_str() {
                "description" | "default" | "examples" => true,
                "$ref" => {
                    let name = rule.as_str().unwrap_or_default();
                    let name = name.strip_prefix("#/components/schemas/").expect("a local schema");
                    self.named(name, value, at)?;
                    true
                }
                "oneOf" => {
                    let options = rule.as_array().expect("a list");
                    let fit = |option: &&Value| self.schema(option, value, at).is_ok();
                    options.iter().filter(fit).count() == 1
                }
                "type" => has_type(rule.as_str().expect("one type"), value),
                "enum" => rule.as_array().expect("a list").contains(value),
                "const" => rule == value,
                "minimum" => value.as_i64().is_none_or(|v| v >= rule.as_i64().expect("a number")),
                "maximum" => value.as_i64().is_none_or(|v| v <= rule.as_i64().expect("a number")),
                "minLength" => value.as_str().is_none_or(|v| v.len() as u64 >= count(rule)),
                "maxLength" => value.as_str().is_none_or(|v| v.len() as u64 <= count(rule)),
                "maxItems" => value.as_array().is_none_or(|v| v.len() as u64 <= count(rule)),
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.schema(rule, item, &format!("{at}[{index}]"))?;
                    }
                    true
                }
                "properties" | "required" | "additionalProperties" => {
                    self.object(schema, value, at)?;
                    true
                }
                other => panic!("{at}: the keyword {other} is not known here"),
            };
            if !kept {
                return Err(format!("{at}: {value} breaks {keyword} {rule}"));
            }
        }
        Ok(())
    }

    fn object(&self, schema: &Map<String, Value>, value: &Value, at: &str) -> Result<(), String> {
        let Some(object) = value.as_object() else { return Ok(()) };
        let properties = schema["properties"].as_object().expect("properties");
        for (key, value) in object {
            match properties.get(key) {
                Some(schema) => self.schema(schema, value, &format!("{at}.{key}"))?,
                None => return Err(format!("{at}.{key}: the schema has no such property")),
            }
        }
        let required = schema.get("required").and_then(Value::as_array);
        for key in required.into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(key) {
                return Err(format!("{at}.{key}: missing"));
            }
        }
        Ok(())
    }
}

fn has_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("the type {other} is not known here"),
    }
}

fn count(rule: &Value) -> u64 {
    rule.as_u64().expect("a count")
}
