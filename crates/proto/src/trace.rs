//! Trace context as W3C's `traceparent` text.

use core::error::Error;
use core::fmt;
use core::str::FromStr;

use crate::TraceContext;

/// Characters of a `traceparent` of version 00.
const LENGTH: usize = 55;

/// Why a text is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceParentError {
    /// It is not `00-`, 32 digits, `-`, 16 digits, `-` and 2 digits, all of them lower-case hexadecimal.
    Malformed,
    /// It is of version `ff`, which is none.
    Version,
    /// The trace id is all zeros.
    NoTrace,
    /// The parent id is all zeros.
    NoParent,
}

impl fmt::Display for TraceParentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TraceParentError::Malformed => {
                "the trace context is not like 00-<32 digits>-<16 digits>-<2 digits> in lower-case hexadecimal"
            }
            TraceParentError::Version => "the trace context is of version ff, which is none",
            TraceParentError::NoTrace => "the trace id is all zeros",
            TraceParentError::NoParent => "the parent id is all zeros",
        })
    }
}

impl Error for TraceParentError {}

impl TraceContext {
    /// Whether both ids are ids: neither is all zeros.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.trace_id != [0; 16] && self.parent_id != [0; 8]
    }
}

/// The text of W3C's `traceparent` header, version 00.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.parent_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

/// Reads the text of W3C's `traceparent` header. Of a later version than 00 what this one has is taken, as W3C asks.
impl FromStr for TraceContext {
    type Err = TraceParentError;

    fn from_str(text: &str) -> Result<TraceContext, TraceParentError> {
        let bytes = text.as_bytes();
        let head: &[u8; LENGTH] = bytes.first_chunk().ok_or(TraceParentError::Malformed)?;
        let [version] = digits(&head[..2])?;
        let parted = [2, 35, 52].iter().all(|at| head[*at] == b'-');
        let ends = bytes.len() == LENGTH || version > 0 && bytes[LENGTH] == b'-';
        if !parted || !ends {
            return Err(TraceParentError::Malformed);
        }
        let trace_id = digits(&head[3..35])?;
        let parent_id = digits(&head[36..52])?;
        let [flags] = digits(&head[53..])?;
        if version == 0xFF {
            Err(TraceParentError::Version)
        } else if trace_id == [0; 16] {
            Err(TraceParentError::NoTrace)
        } else if parent_id == [0; 8] {
            Err(TraceParentError::NoParent)
        } else {
            Ok(TraceContext { trace_id, parent_id, flags })
        }
    }
}

/// The bytes that twice `N` digits stand for.
fn digits<const N: usize>(text: &[u8]) -> Result<[u8; N], TraceParentError> {
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

fn digit(character: u8) -> Result<u8, TraceParentError> {
    match character {
        b'0'..=b'9' => Ok(character - b'0'),
        b'a'..=b'f' => Ok(character - b'a' + 10),
        _ => Err(TraceParentError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::{String, ToString};

    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn text_of_the_recommendation_is_read_and_written_again() {
        let context: TraceContext = TEXT.parse().unwrap();
        assert_eq!(context.trace_id[..4], [0x4b, 0xf9, 0x2f, 0x35]);
        assert_eq!(context.parent_id, [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert_eq!(context.flags, 1);
        assert!(context.is_valid());
        assert_eq!(context.to_string(), TEXT);
    }

    #[test]
    fn flags_that_this_version_does_not_know_are_kept() {
        let text = format!("{}ff", &TEXT[..53]);
        let context: TraceContext = text.parse().unwrap();
        assert_eq!((context.flags, context.to_string()), (0xFF, text));
    }

    #[test]
    fn later_version_is_read_as_far_as_this_one_goes() {
        let expected: TraceContext = TEXT.parse().unwrap();
        for text in [format!("01{}", &TEXT[2..]), format!("fe{}-more", &TEXT[2..])] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn text_with_any_fault_is_refused_with_its_reason() {
        let with = |at: usize, other: &str| -> String {
            format!("{}{other}{}", &TEXT[..at], &TEXT[at + other.len()..])
        };
        for (text, expected) in [
            (with(0, "ff"), TraceParentError::Version),
            (with(3, &"0".repeat(32)), TraceParentError::NoTrace),
            (with(36, &"0".repeat(16)), TraceParentError::NoParent),
            (with(0, "0x"), TraceParentError::Malformed),
            (with(0, "-1"), TraceParentError::Malformed),
            (with(3, "4B"), TraceParentError::Malformed),
            (with(3, "4g"), TraceParentError::Malformed),
            (with(2, "_"), TraceParentError::Malformed),
            (with(35, "0"), TraceParentError::Malformed),
            (with(52, " "), TraceParentError::Malformed),
            (with(53, "+1"), TraceParentError::Malformed),
            (format!("{TEXT}-more"), TraceParentError::Malformed),
            (format!("{TEXT} "), TraceParentError::Malformed),
            (format!(" {TEXT}"), TraceParentError::Malformed),
            (format!("01{}more", &TEXT[2..]), TraceParentError::Malformed),
            (with(3, "\u{e9}"), TraceParentError::Malformed),
        ] {
            assert_eq!(text.parse::<TraceContext>(), Err(expected), "{text}");
            assert!(!expected.to_string().is_empty());
        }
        for cut in 0..TEXT.len() {
            let error = TEXT[..cut].parse::<TraceContext>();
            assert_eq!(error, Err(TraceParentError::Malformed), "{cut}");
        }
    }

    #[test]
    fn context_of_zeros_is_not_valid() {
        let context: TraceContext = TEXT.parse().unwrap();
        assert!(!TraceContext { trace_id: [0; 16], ..context }.is_valid());
        assert!(!TraceContext { parent_id: [0; 8], ..context }.is_valid());
    }
}
