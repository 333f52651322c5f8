//! What may stand in which source file.

use crate::Violation;
use crate::lexer::{Token, tokens};

/// Where `unsafe` may stand: a file, or a folder with its slash.
const UNSAFE: &[&str] = &[
    "crates/shm/src/mapping.rs",
    "crates/shm/src/memory.rs",
    "crates/shm/src/sys/",
    // A program that promises what only a program can: that its peers cooperate.
    "crates/lapwing/tests/bulk_in_place.rs",
    "crates/cli/src/bench/in_place.rs",
    // The foreign edge.
    "bindings/",
];

/// Crates whose roots need no `#![forbid(unsafe_code)]`, because the list above names files of theirs.
const UNSAFE_PACKAGES: &[&str] = &["lapwing-shm", "lapwing-c", "lapwing-node", "lapwing-python"];

/// Crates whose roots say `deny` instead: one file of theirs, named above, allows itself one promise.
const DENY_PACKAGES: &[&str] = &["lapwing-cli"];

/// Where code may differ between platforms.
const PLATFORM: &[&str] = &[
    "crates/shm/src/sys/",
    "crates/lapwing/src/platform.rs",
    "crates/lapwing/src/platform/",
    "bindings/",
];

const PLATFORM_WORDS: &[&str] = &[
    "target_arch",
    "target_env",
    "target_family",
    "target_os",
    "target_vendor",
    "unix",
    "windows",
];

/// The protocol knows no clock, no system, no runtime and no log.
const PROTO_WORDS: &[&str] =
    &["Instant", "SystemTime", "dbg", "eprint", "eprintln", "print", "println", "tokio", "tracing"];
const PROTO_STD: &[&str] = &["env", "fs", "io", "net", "os", "process", "thread", "time"];

/// Checks one file. `is_root` says that it is the first file of a library or a binary.
pub(crate) fn check(file: &str, package: &str, is_root: bool, text: &str) -> Vec<Violation> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    let mut report = |line, rule: String| {
        found.push(Violation { file: file.to_owned(), line, rule });
    };
    if !is_listed(file, UNSAFE) {
        for token in tokens.iter().filter(|token| token.text == "unsafe") {
            report(token.line, format!("`unsafe` may stand only in {UNSAFE:?}"));
        }
    }
    let lint = if DENY_PACKAGES.contains(&package) { "deny" } else { "forbid" };
    if is_root && !UNSAFE_PACKAGES.contains(&package) && !has_unsafe_lint(&tokens, lint) {
        report(1, format!("this crate must begin with `#![{lint}(unsafe_code)]`"));
    }
    if !is_listed(file, PLATFORM) {
        for token in platform_cfgs(&tokens) {
            report(token.line, format!("`cfg({})` may stand only in {PLATFORM:?}", token.text));
        }
    }
    if file.starts_with("crates/proto/src/") {
        for token in impure(&tokens) {
            report(token.line, format!("the protocol must not know `{}`", token.text));
        }
    }
    if package == "lapwing" {
        for pair in tokens.windows(2) {
            if pair[0].text == "*" && matches!(pair[1].text, "const" | "mut") {
                report(pair[0].line, "lapwing must not have raw pointers".to_owned());
            }
        }
    }
    found
}

fn is_listed(file: &str, list: &[&str]) -> bool {
    list.iter()
        .any(|entry| if entry.ends_with('/') { file.starts_with(entry) } else { file == *entry })
}

fn has_unsafe_lint(tokens: &[Token<'_>], lint: &str) -> bool {
    let attribute = ["#", "!", "[", lint, "(", "unsafe_code", ")", "]"];
    tokens
        .windows(attribute.len())
        .any(|window| window.iter().zip(attribute).all(|(token, expected)| token.text == expected))
}

/// The words inside `cfg(…)`, `cfg!(…)` and `cfg_attr(…)` that tell platforms apart.
fn platform_cfgs<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut found = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        if !matches!(token.text, "cfg" | "cfg_attr") {
            continue;
        }
        let mut after = &tokens[index + 1..];
        if after.first().is_some_and(|token| token.text == "!") {
            after = &after[1..];
        }
        let mut depth = 0;
        for token in after {
            match token.text {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ if depth > 0 && PLATFORM_WORDS.contains(&token.text) => found.push(*token),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

/// What the protocol must not name: the words themselves, `std::fs` and `use std::{fs, …}`.
fn impure<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut found = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        if PROTO_WORDS.contains(&token.text) {
            found.push(*token);
        }
        let [first, second, third, ..] = &tokens[index + 1..] else { continue };
        if token.text != "std" || first.text != ":" || second.text != ":" {
            continue;
        }
        if third.text != "{" {
            found.extend(PROTO_STD.contains(&third.text).then_some(*third));
            continue;
        }
        let mut depth = 0;
        for pair in tokens[index + 3..].windows(2) {
            match pair[0].text {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            let begins_a_path = depth == 1 && matches!(pair[0].text, "{" | ",");
            if begins_a_path && PROTO_STD.contains(&pair[1].text) {
                found.push(pair[1]);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of what a file of `package` is refused for.
    fn lines(file: &str, package: &str, text: &str) -> Vec<usize> {
        check(file, package, false, text).iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn unsafe_outside_its_files_is_refused() {
        let text = "fn f() {\n    unsafe { g() }\n}\nunsafe impl Send for X {}\n";
        assert_eq!(lines("crates/shm/src/ring/producer.rs", "lapwing-shm", text), [2, 4]);
        assert_eq!(lines("crates/lapwing/src/client.rs", "lapwing", text), [2, 4]);
        assert_eq!(lines("crates/lapwing/tests/other.rs", "lapwing", text), [2, 4]);
        assert_eq!(lines("crates/shm/src/mapping_more.rs", "lapwing-shm", text), [2, 4]);
        for file in ["mapping.rs", "memory.rs", "sys/linux.rs"] {
            assert!(lines(&format!("crates/shm/src/{file}"), "lapwing-shm", text).is_empty());
        }
    }

    #[test]
    fn unsafe_in_comments_strings_and_lint_names_is_allowed() {
        let text =
            "#![forbid(unsafe_code)]\n// unsafe\n/// `unsafe`\nconst X: &str = \"unsafe\";\n";
        assert!(lines("crates/engine/src/lib.rs", "lapwing-engine", text).is_empty());
    }

    #[test]
    fn root_that_does_not_forbid_unsafe_is_refused() {
        let root = |package, text| check("crates/x/src/lib.rs", package, true, text).len();
        assert_eq!(root("lapwing", "#![forbid(unsafe_code)]\n"), 0);
        assert_eq!(root("lapwing", "#![deny(unsafe_code)]\n"), 1);
        assert_eq!(root("lapwing", "// #![forbid(unsafe_code)]\n"), 1);
        assert_eq!(root("lapwing-shm", ""), 0);
        assert_eq!(root("lapwing-cli", "#![deny(unsafe_code)]\n"), 0);
        assert_eq!(root("lapwing-cli", "#![allow(unsafe_code)]\n"), 1);
    }

    #[test]
    fn platform_cfg_outside_its_modules_is_refused() {
        let text = "#[cfg(all(test, target_os = \"linux\"))]\nmod a;\n#[cfg_attr(unix, path = \"b.rs\")]\n\
                    mod b;\nfn c() -> bool {\n    cfg!(windows)\n}\n";
        assert_eq!(lines("crates/shm/src/ring.rs", "lapwing-shm", text), [1, 3, 6]);
        assert_eq!(lines("crates/cli/src/main.rs", "lapwing-cli", text), [1, 3, 6]);
        assert!(lines("crates/shm/src/sys/mod.rs", "lapwing-shm", text).is_empty());
        assert!(lines("crates/lapwing/src/platform.rs", "lapwing", text).is_empty());
    }

    #[test]
    fn cfg_of_anything_but_a_platform_and_the_word_unix_elsewhere_are_allowed() {
        let text =
            "#[cfg(all(test, not(loom)))]\nuse std::os::unix::net::UnixStream;\nlet unix = 1;\n";
        assert!(lines("crates/lapwing/src/endpoint.rs", "lapwing", text).is_empty());
    }

    #[test]
    fn clock_system_runtime_or_log_in_the_protocol_is_refused() {
        let text = "use std::time::Duration;\nuse std::{vec, fs, os::fd};\nlet now = Instant::now();\n\
                    println!(\"x\");\ntracing::debug!(\"x\");\ntokio::spawn(f);\n";
        assert_eq!(lines("crates/proto/src/call.rs", "lapwing-proto", text), [1, 2, 2, 3, 4, 5, 6]);
        assert!(lines("crates/lapwing/src/call.rs", "lapwing", text).is_empty());
        let pure =
            "use core::time::Duration;\nuse std::{string::String, vec};\nlet rest = a.rest;\n";
        assert!(lines("crates/proto/src/call.rs", "lapwing-proto", pure).is_empty());
    }

    #[test]
    fn raw_pointer_in_lapwing_is_refused() {
        let text = "fn f(p: *const u8,\n     q: *mut u8) {}\nlet x = a * b;\n";
        assert_eq!(lines("crates/lapwing/src/payload.rs", "lapwing", text), [1, 2]);
        assert!(lines("crates/testkit/src/payload.rs", "lapwing-testkit", text).is_empty());
    }
}
