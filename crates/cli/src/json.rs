//! JSON text for people: indented, with every number and string as it was.

use serde::de::IgnoredAny;

/// Whether these bytes are one JSON value, or what is wrong with them and where.
pub(crate) fn check(bytes: &[u8]) -> Result<(), serde_json::Error> {
    // A string that is not UTF-8 is noticed here too: `IgnoredAny` alone passes over it.
    match std::str::from_utf8(bytes) {
        Ok(text) => serde_json::from_str::<IgnoredAny>(text).map(drop),
        Err(_) => serde_json::from_slice::<serde_json::Value>(bytes).map(drop),
    }
}

/// The field that [`check`] found a fault in, as `parts[1].at`; `None` where it is in none.
pub(crate) fn field_of(bytes: &[u8], fault: &serde_json::Error) -> Option<String> {
    // Read again to find out where: that costs what good requests need not pay.
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let again = serde_path_to_error::deserialize::<_, serde_json::Value>(&mut reader).err()?;
    let at = |error: &serde_json::Error| (error.line(), error.column());
    let path = again.path().to_string();
    // A lone dot stands for the whole, and a question mark for a name that does not come.
    let field = path.strip_suffix('?').unwrap_or(&path).trim_end_matches('.');
    (at(again.inner()) == at(fault) && !field.is_empty()).then(|| field.to_owned())
}

/// The same JSON with one member or element a line. The text must have passed [`check`].
///
/// It works on the text and not on a parsed value, which would sort the members of objects and round
/// long numbers.
pub(crate) fn pretty(json: &str) -> String {
    let mut printer = Printer { out: String::with_capacity(json.len() * 2), depth: 0 };
    let mut rest = json.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' => {
                printer.out.push('"');
                while let Some(c) = rest.next() {
                    push_escaped(&mut printer.out, c);
                    match c {
                        '\\' => printer.out.extend(rest.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '{' | '[' => {
                while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
                match rest.next_if(|c| matches!(c, '}' | ']')) {
                    Some(close) => printer.out.extend([c, close]),
                    None => printer.open(c),
                }
            }
            '}' | ']' => printer.close(c),
            ',' => {
                printer.out.push(',');
                printer.next_line();
            }
            ':' => printer.out.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => printer.out.push(c),
        }
    }
    printer.out
}

/// The same JSON on its line, fit for a terminal.
pub(crate) fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        push_escaped(&mut out, c);
    }
    out
}

/// JSON lets some control characters stand in strings as they are, and a terminal would act on them. Elsewhere
/// it has no others than blanks.
fn push_escaped(out: &mut String, c: char) {
    if c.is_control() && !c.is_ascii_whitespace() {
        out.push_str(&format!("\\u{:04x}", u32::from(c)));
    } else {
        out.push(c);
    }
}

struct Printer {
    out: String,
    depth: usize,
}

impl Printer {
    fn open(&mut self, bracket: char) {
        self.out.push(bracket);
        self.depth += 1;
        self.next_line();
    }

    fn close(&mut self, bracket: char) {
        self.depth = self.depth.saturating_sub(1);
        self.next_line();
        self.out.push(bracket);
    }

    fn next_line(&mut self) {
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n("  ", self.depth));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_steer_terminals_are_escaped() {
        let hostile = "{\"a\":\"\u{9b}31m\u{7f}é\"}";
        assert!(check(hostile.as_bytes()).is_ok());
        assert_eq!(pretty(hostile), "{\n  \"a\": \"\\u009b31m\\u007fé\"\n}");
    }

    #[test]
    fn pretty_text_is_what_serde_writes_in_the_order_it_was() {
        for json in [
            r#"{"a":[1,2,{"b":null}],"c":"x, [y] {z}: \"q\" \\","e":{},"f":[]}"#,
            r#"[[],[[]],{"k":{"k":{}}}]"#,
            "3.5",
            r#""text""#,
        ] {
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(pretty(json), serde_json::to_string_pretty(&value).unwrap());
        }
        assert_eq!(
            pretty("{\"z\" : 12345678901234567890123,\n \"a\":[ ]}"),
            "{\n  \"z\": 12345678901234567890123,\n  \"a\": []\n}"
        );
    }

    #[test]
    fn field_of_a_fault_is_its_path() {
        for (bad, field) in [
            (r#"{"parts": [{"at": 1}, {"at": x}]}"#, Some("parts[1].at")),
            (r#"{"parts": [1, 2"#, Some("parts")),
            (r#"{"a": 1"#, None),
            (r#"{"a": {"b": 1, c: 2}}"#, Some("a")),
            ("[1, x]", Some("[1]")),
            ("x", None),
        ] {
            let fault = check(bad.as_bytes()).unwrap_err();
            assert_eq!(field_of(bad.as_bytes(), &fault).as_deref(), field, "{bad}: {fault}");
        }
    }

    #[test]
    fn check_says_where_the_fault_is() {
        check(br#"{"a": [1, "b"]}"#).unwrap();
        for bad in [&b"{\"a\""[..], b"", b"1 2", b"\xff", b"\"\xff\"", b"{'a': 1}"] {
            assert!(check(bad).unwrap_err().to_string().contains("line"), "{bad:?}");
        }
    }
}
