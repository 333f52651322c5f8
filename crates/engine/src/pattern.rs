//! The pattern of a search, compiled within bounds.

use grep_regex::{ErrorKind, RegexMatcher, RegexMatcherBuilder};

use crate::error::WorkspaceError;
use crate::limits::{PATTERN_BYTES_MAX, REGEX_BYTES_MAX, REGEX_NEST_MAX};
use crate::types::SearchRequest;

/// Compiles the pattern to match within lines that end with `\n` or `\r\n`.
pub(crate) fn compile(request: &SearchRequest) -> Result<RegexMatcher, WorkspaceError> {
    let bad = |problem: String| WorkspaceError::BadPattern { problem };
    if request.pattern.len() > PATTERN_BYTES_MAX {
        return Err(bad(format!("it is longer than {PATTERN_BYTES_MAX} bytes: shorten it")));
    }
    RegexMatcherBuilder::new()
        .case_insensitive(request.case_insensitive)
        .fixed_strings(request.fixed_strings)
        .multi_line(true)
        .crlf(true)
        .ban_byte(Some(b'\0'))
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(REGEX_BYTES_MAX)
        .nest_limit(REGEX_NEST_MAX)
        .build(&request.pattern)
        .map_err(|error| bad(one_sentence(&error)))
}

/// The problem without the picture of the pattern that a syntax error draws over several lines.
fn one_sentence(error: &grep_regex::Error) -> String {
    match error.kind() {
        ErrorKind::NotAllowed(_) => {
            "it asks for a line break, but matches lie within one line: leave it out".to_owned()
        }
        ErrorKind::Banned(_) => {
            "it asks for a NUL byte, but files that have one are not searched: leave it out"
                .to_owned()
        }
        _ => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim();
            let problem = last.strip_prefix("error: ").unwrap_or(last).trim_end_matches('.');
            if problem.contains("size limit") {
                return format!(
                    "it exceeds the size limit of {REGEX_BYTES_MAX} bytes once it is compiled: make \
                     its repetitions shorter"
                );
            }
            format!("{problem}: correct it, or search for plain text with `fixed_strings`")
        }
    }
}
