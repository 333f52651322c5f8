//! The type of JSON that a method takes, as its schema says.
//!
//! A server that reads a struct takes an array for one, too, field by field in the order of its code. Who
//! sends an array there has misread what is wanted, and is told so instead.

use serde_json::Value;

/// What a method takes.
pub(super) struct Expected {
    method: String,
    schema: Value,
}

/// How many references in a row are followed: a schema may have a circle of them.
const REFERENCES_MAX: usize = 16;

/// The most fields that a sentence names.
const NAMES_MAX: usize = 8;

/// A schema that says nothing.
static ANYTHING: Value = Value::Bool(true);

impl Expected {
    /// What this schema of a method's request, or of an item of it, says; `None` where it is no JSON.
    pub(super) fn of(method: &str, schema: &str) -> Option<Expected> {
        let schema = serde_json::from_str(schema).ok()?;
        Some(Expected { method: method.to_owned(), schema })
    }

    /// What is wrong with a request's type, or with an array in it that stands for an object: the rest of a
    /// sentence that begins with where the request is from.
    pub(super) fn mismatch(&self, request: &[u8]) -> Option<String> {
        // What is too deep to be read here is the server's to judge.
        let request: Value = serde_json::from_slice(request).ok()?;
        let schema = self.resolved(&self.schema);
        if let Some(types) = self.types(schema)
            && !types.iter().any(|name| is_of(&request, name))
        {
            let (found, wanted) = (type_of(&request), self.wanted(schema));
            return Some(format!("is {found}, and {} takes {wanted}", self.method));
        }
        self.array_for_object(schema, &request, "")
    }

    fn array_for_object(&self, schema: &Value, value: &Value, path: &str) -> Option<String> {
        let schema = self.resolved(schema);
        match value {
            Value::Array(items) => {
                if self.types(schema).is_some_and(|types| !types.contains(&"array")) {
                    let wanted = self.wanted(schema);
                    let method = &self.method;
                    return Some(format!("has an array at {path}, where {method} takes {wanted}"));
                }
                let (first, others) = (schema.get("prefixItems"), schema.get("items"));
                items.iter().enumerate().find_map(|(at, item)| {
                    let schema = first.and_then(|first| first.get(at)).or(others)?;
                    self.array_for_object(schema, item, &format!("{path}[{at}]"))
                })
            }
            Value::Object(fields) => fields.iter().find_map(|(name, field)| {
                let named = schema.get("properties").and_then(|fields| fields.get(name));
                let schema = named.or_else(|| schema.get("additionalProperties"))?;
                let dot = if path.is_empty() { "" } else { "." };
                self.array_for_object(schema, field, &format!("{path}{dot}{name}"))
            }),
            _ => None,
        }
    }

    /// The schema itself, where it only refers to another; also that of an `Option`, less its null where
    /// the value has a type of its own.
    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        for _ in 0..REFERENCES_MAX {
            let reference = schema.get("$ref").and_then(Value::as_str);
            schema = match (reference, alternatives(schema)) {
                (Some(reference), _) => {
                    let pointer = reference.strip_prefix('#');
                    let found = pointer.and_then(|pointer| self.schema.pointer(pointer));
                    found.unwrap_or(&ANYTHING)
                }
                (None, Some([one, null] | [null, one]))
                    if *null == serde_json::json!({"type": "null"}) =>
                {
                    one
                }
                _ => return schema,
            };
        }
        &ANYTHING
    }

    /// The types that a value may have; `None` where the schema does not say.
    fn types<'a>(&'a self, schema: &'a Value) -> Option<Vec<&'a str>> {
        match schema.get("type") {
            Some(Value::String(name)) => Some(vec![name]),
            Some(Value::Array(names)) => names.iter().map(Value::as_str).collect(),
            _ => {
                let all = alternatives(schema)?.iter().map(|one| one.get("type")?.as_str());
                all.collect()
            }
        }
    }

    /// The types that a value may have, as a part of a sentence.
    fn wanted(&self, schema: &Value) -> String {
        let types = self.types(schema).unwrap_or_default();
        let mut named: Vec<String> = Vec::new();
        for name in types {
            let name = match (name, schema.get("properties")) {
                ("object", Some(Value::Object(fields))) if !fields.is_empty() => {
                    let more = if fields.len() > NAMES_MAX { ", …" } else { "" };
                    let names: Vec<_> = fields.keys().take(NAMES_MAX).map(String::as_str).collect();
                    let fields = if fields.len() == 1 { "field" } else { "fields" };
                    format!("an object with the {fields} {}{more}", names.join(", "))
                }
                (name, _) => with_article(name).to_owned(),
            };
            if !named.contains(&name) {
                named.push(name);
            }
        }
        named.join(" or ")
    }
}

fn alternatives(schema: &Value) -> Option<&[Value]> {
    let all = schema.get("anyOf").or_else(|| schema.get("oneOf"))?;
    all.as_array().map(Vec::as_slice)
}

fn is_of(value: &Value, type_name: &str) -> bool {
    match type_name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" | "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        // No type of JSON: the server knows what it means.
        _ => true,
    }
}

fn type_of(value: &Value) -> &'static str {
    with_article(match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "boolean",
        Value::Null => "null",
    })
}

fn with_article(type_name: &str) -> &'static str {
    match type_name {
        "object" => "an object",
        "array" => "an array",
        "string" => "a string",
        "integer" | "number" => "a number",
        "boolean" => "true or false",
        "null" => "null",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mismatch(schema: &Value, request: &Value) -> Option<String> {
        let expected = Expected::of("m", &schema.to_string()).unwrap();
        expected.mismatch(request.to_string().as_bytes())
    }

    fn parts() -> Value {
        json!({
            "type": "object",
            "properties": {
                "parts": { "type": "array", "items": { "$ref": "#/$defs/Part" } },
                "last": { "anyOf": [{ "$ref": "#/$defs/Part" }, { "type": "null" }] },
                "pair": { "type": "array", "prefixItems": [{ "$ref": "#/$defs/Part" }, true] },
                "named": { "type": "object", "additionalProperties": { "$ref": "#/$defs/Part" } },
            },
            "$defs": { "Part": {
                "type": "object",
                "properties": { "at": { "type": "integer" }, "text": { "type": "string" } },
            } },
        })
    }

    #[test]
    fn request_of_another_type_is_told_with_what_is_taken() {
        let one = json!({ "type": "object", "properties": { "parts": { "type": "array" } } });
        assert_eq!(
            mismatch(&one, &json!([[]])).unwrap(),
            "is an array, and m takes an object with the field parts"
        );
        for (schema, request, said) in [
            (parts(), json!("x"), "is a string, and m takes an object with the fields last, named"),
            (json!({ "type": "object" }), json!(null), "is null, and m takes an object"),
            (json!({ "type": "integer" }), json!({}), "is an object, and m takes a number"),
            (
                json!({ "type": ["string", "null"] }),
                json!(7),
                "is a number, and m takes a string or null",
            ),
            (
                json!({ "oneOf": [{ "type": "string", "const": "a" }, { "type": "object" }] }),
                json!(true),
                "is true or false, and m takes a string or an object",
            ),
        ] {
            let told = mismatch(&schema, &request).unwrap();
            assert!(told.starts_with(said), "{told}");
        }
    }

    #[test]
    fn array_for_an_object_is_found_wherever_it_is() {
        for (request, path) in [
            (json!({ "parts": [{ "at": 1, "text": "" }, [2, ""]] }), "parts[1]"),
            (json!({ "last": [2, ""] }), "last"),
            (json!({ "pair": [[2, ""], [3]] }), "pair[0]"),
            (json!({ "named": { "a": [] } }), "named.a"),
        ] {
            let said =
                format!("has an array at {path}, where m takes an object with the fields at, text");
            assert_eq!(mismatch(&parts(), &request), Some(said));
        }
    }

    #[test]
    fn what_the_schema_allows_or_does_not_say_is_the_servers_to_judge() {
        let tuple = json!({ "type": "array", "prefixItems": [{ "type": "integer" }] });
        let circle = json!({ "$ref": "#/$defs/A", "$defs": { "A": { "$ref": "#/$defs/A" } } });
        for (schema, request) in [
            (parts(), json!({ "parts": [{ "at": "x" }], "last": null, "more": [1] })),
            (tuple, json!([1, 2])),
            (circle, json!([1])),
            (json!(true), json!([1])),
            (json!({}), json!([1])),
            (json!("no schema"), json!([1])),
            (json!({ "type": "number" }), json!(1)),
            (json!({ "type": "of its own" }), json!(1)),
            (json!({ "$ref": "elsewhere" }), json!([1])),
            (json!({ "anyOf": [{ "type": "object" }, {}] }), json!([1])),
        ] {
            assert_eq!(mismatch(&schema, &request), None, "{schema} {request}");
        }
    }
}
