//! JSON Schema for people: a line a field, with its type, what it stands for and what it is by default.
//!
//! It shows what schemas of Rust types say. What it does not know stands there as JSON; `--json` has all of
//! it. A server may send anything: every text is made plain, and types that are defined aside are shown once
//! each, by name, so that one that holds itself has an end.

use serde_json::{Map, Value};

use crate::output::plain;

type Object = Map<String, Value>;

/// The widest name and type that others are lined up with, in characters.
const NAME_MAX: usize = 24;
const TYPE_MAX: usize = 28;

/// The lines of a schema, without ends.
pub(super) fn lines(schema: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let title = schema.get("title").and_then(Value::as_str).map(plain);
    describe(schema, title.as_deref(), &mut lines);
    push_definitions(schema, &mut lines);
    lines
}

/// The lines of what a schema says beside that it is of bytes.
pub(super) fn beside_bytes(schema: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    push_text(schema, "  ", &mut lines);
    push_definitions(schema, &mut lines);
    lines
}

fn push_definitions(schema: &Value, lines: &mut Vec<String>) {
    if let Some(Value::Object(definitions)) = schema.get("$defs") {
        for (name, definition) in definitions {
            lines.push(String::new());
            describe(definition, Some(&plain(name)), lines);
        }
    }
}

/// A type with what it is for, and its fields or variants.
fn describe(schema: &Value, name: Option<&str>, lines: &mut Vec<String>) {
    let kind = type_of(schema);
    let head = match name {
        Some(name) if name != kind => format!("  {name}: {kind}"),
        _ => format!("  {kind}"),
    };
    lines.push(head);
    push_text(schema, "  ", lines);
    push_fields(schema, "    ", lines);
    push_variants(schema, lines);
}

/// The paragraphs of a description, one a line.
fn push_text(schema: &Value, indent: &str, lines: &mut Vec<String>) {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let paragraphs = text.split("\n\n").map(unwrapped).filter(|paragraph| !paragraph.is_empty());
    lines.extend(paragraphs.map(|paragraph| format!("{indent}{paragraph}")));
}

/// The text on one line, without the targets of links that rustdoc alone can follow.
fn unwrapped(paragraph: &str) -> String {
    let text = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, name, after)) = next_link(rest) {
        shown.push_str(before);
        shown.push_str(name);
        rest = after;
    }
    shown.push_str(rest);
    plain(&shown)
}

/// Splits at the next ``[`name`]``, or ``[`name`](target)``: what is before it, the name, what is after it.
fn next_link(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once("[`")?;
    let (name, after) = rest.split_once("`]")?;
    let target = after.strip_prefix('(').and_then(|target| target.split_once(')'));
    Some((before, name, target.map_or(after, |(_, after)| after)))
}

fn push_fields(schema: &Value, indent: &str, lines: &mut Vec<String>) {
    let Some(Value::Object(fields)) = schema.get("properties") else { return };
    let required: Vec<_> = names(schema.get("required")).collect();
    let mut fields: Vec<_> =
        fields.iter().map(|(name, field)| (plain(name), type_of(field), name, field)).collect();
    fields.sort_by_key(|(_, _, name, _)| !required.contains(&name.as_str()));
    let widest = |lengths: &mut dyn Iterator<Item = usize>, max| {
        lengths.filter(|&length| length <= max).max().unwrap_or_default()
    };
    let name_width = widest(&mut fields.iter().map(|field| field.0.chars().count()), NAME_MAX);
    let type_width = widest(&mut fields.iter().map(|field| field.1.chars().count()), TYPE_MAX);
    for (shown, kind, name, field) in fields {
        let mut notes = Vec::new();
        if required.contains(&name.as_str()) {
            notes.push("required".to_owned());
        }
        // `null` is what is not there: nothing to tell.
        if let Some(default) = field.get("default").filter(|default| !default.is_null()) {
            notes.push(format!("default {}", compact(default)));
        }
        let notes = notes.join(", ");
        let text = unwrapped(field.get("description").and_then(Value::as_str).unwrap_or_default());
        let rest = match (notes.is_empty(), text.is_empty()) {
            (true, _) => text,
            (false, true) => format!("({notes})"),
            (false, false) => format!("({notes}) {text}"),
        };
        let line = format!("{indent}{shown:name_width$}  {kind:type_width$}  {rest}");
        lines.push(line.trim_end().to_owned());
    }
}

/// The variants of a Rust enum, each with its fields.
fn push_variants(schema: &Value, lines: &mut Vec<String>) {
    for key in ["oneOf", "anyOf", "allOf"] {
        let Some(Value::Array(variants)) = schema.get(key) else { continue };
        for variant in variants {
            lines.push(format!("    - {}", type_of(variant)));
            push_text(variant, "      ", lines);
            push_fields(variant, "      ", lines);
        }
    }
}

/// What a value is, in a few words.
fn type_of(schema: &Value) -> String {
    let object = match schema {
        Value::Bool(true) => return "anything".to_owned(),
        Value::Bool(false) => return "nothing".to_owned(),
        Value::Object(object) => object,
        other => return compact(other),
    };
    if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
        return plain(reference.rsplit('/').next().unwrap_or(reference));
    }
    if let Some(value) = object.get("const") {
        return compact(value);
    }
    if let Some(Value::Array(values)) = object.get("enum") {
        return values.iter().map(compact).collect::<Vec<_>>().join(" | ");
    }
    match object.get("type") {
        Some(Value::String(name)) => one_type(name, object),
        Some(types @ Value::Array(_)) => {
            // An `Option` is a type or null; that a field may be left out is said by its not being required.
            let names = names(Some(types)).filter(|name| *name != "null");
            names.map(|name| one_type(name, object)).collect::<Vec<_>>().join(" | ")
        }
        _ => alternatives(object),
    }
}

fn one_type(name: &str, object: &Object) -> String {
    let format = object.get("format").and_then(Value::as_str).map(plain);
    match (name, format) {
        ("array", _) => match (object.get("prefixItems"), object.get("items")) {
            (Some(Value::Array(items)), _) => {
                format!("[{}]", items.iter().map(type_of).collect::<Vec<_>>().join(", "))
            }
            (_, Some(item)) => format!("array of {}", type_of(item)),
            _ => "array".to_owned(),
        },
        ("object", _) => match object.get("additionalProperties") {
            Some(values @ Value::Object(_)) if !object.contains_key("properties") => {
                format!("object of {}", type_of(values))
            }
            _ => "object".to_owned(),
        },
        // A width is of no use to who writes JSON, a date is.
        ("string", Some(format)) => format!("string ({format})"),
        ("integer", _) => match object.get("minimum") {
            Some(least) => format!("integer from {}", compact(least)),
            None => "integer".to_owned(),
        },
        (name, _) => plain(name),
    }
}

fn alternatives(object: &Object) -> String {
    for key in ["oneOf", "anyOf", "allOf"] {
        let Some(Value::Array(all)) = object.get(key) else { continue };
        let types = all.iter().filter(|one| one.get("type") != Some(&Value::from("null")));
        let types: Vec<_> = types.map(type_of).collect();
        let short = types.iter().map(String::len).sum::<usize>() < 60;
        return if short { types.join(" | ") } else { "one of".to_owned() };
    }
    match object.keys().any(|key| !key.starts_with('$') && key != "title" && key != "description") {
        true => compact(&Value::Object(object.clone())),
        false => "anything".to_owned(),
    }
}

/// The strings of a list.
fn names(list: Option<&Value>) -> impl Iterator<Item = &str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn compact(value: &Value) -> String {
    plain(&value.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn object_is_shown_a_field_a_line_with_what_is_defined_aside_after_it() {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Query",
            "description": "Asks for\nlines.\n\nAll of them.",
            "type": "object",
            "properties": {
                "limit": { "type": ["integer", "null"], "format": "uint32", "default": 200, "minimum": 1 },
                "kind": { "$ref": "#/$defs/Kind", "description": "Which: [`Kind`], [`MAX`](crate::MAX) of [them]." },
                "paths": { "type": "array", "items": { "type": "string" }, "default": null },
                "next": { "anyOf": [{ "$ref": "#/$defs/Query" }, { "type": "null" }] }
            },
            "required": ["kind"],
            "$defs": { "Kind": { "oneOf": [
                { "const": "file", "type": "string", "description": "A regular file." },
                { "const": "directory", "type": "string" }
            ] } }
        });
        let expected = [
            "  Query: object",
            "  Asks for lines.",
            "  All of them.",
            "    kind   Kind             (required) Which: Kind, MAX of [them].",
            "    limit  integer from 1   (default 200)",
            "    next   Query",
            "    paths  array of string",
            "",
            "  Kind: \"file\" | \"directory\"",
            "    - \"file\"",
            "      A regular file.",
            "    - \"directory\"",
        ];
        assert_eq!(lines(&schema), expected);
    }

    #[test]
    fn types_without_fields_are_one_line() {
        for (schema, shown) in [
            (json!(true), "  anything"),
            (json!({"type": "integer", "title": "u8", "minimum": 0}), "  u8: integer from 0"),
            (json!({"type": "integer", "format": "int32"}), "  integer"),
            (json!({"type": "string", "format": "date-time"}), "  string (date-time)"),
            (
                json!({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}),
                "  [integer, string]",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "boolean"}}),
                "  object of boolean",
            ),
            (json!({"not": {"type": "null"}}), "  {\"not\":{\"type\":\"null\"}}"),
            (json!("a text that is no JSON"), "  \"a text that is no JSON\""),
        ] {
            assert_eq!(lines(&schema), [shown]);
        }
    }

    #[test]
    fn hostile_schema_is_shown_without_what_steers_a_terminal() {
        let evil = "\u{1b}[2J\u{9b}";
        let schema = json!({
            "title": evil,
            "description": evil,
            "type": evil,
            "properties": { evil: { "type": evil, "description": evil, "default": evil, "enum": [evil] } },
            "required": [evil, 7],
            "oneOf": [{ "$ref": evil }, { "const": evil }],
            "$defs": { evil: { "type": [evil, 3] } }
        });
        let lines = lines(&schema);
        assert!(lines.len() > 5);
        assert!(lines.iter().all(|line| !line.chars().any(char::is_control)), "{lines:?}");
    }
}
