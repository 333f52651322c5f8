//! What all postcard messages share: bounds, and a refusal of bytes left unread.

use alloc::string::String;
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why the payload of a connection's own frame, or a status, is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageError {
    /// The payload is longer than such a message may be.
    TooLong {
        /// Bytes that came.
        length: usize,
        /// Bytes that are allowed.
        max: usize,
    },
    /// The payload ends early or is no such message.
    Malformed,
    /// Bytes follow the message; holds how many.
    Trailing(usize),
    /// A field has a value that it may not have; says which and why.
    Field(&'static str),
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MessageError::TooLong { length, max } => {
                write!(f, "the message has {length} bytes, at most {max} are allowed")
            }
            MessageError::Malformed => f.write_str("the message cannot be decoded"),
            MessageError::Trailing(count) => write!(f, "{count} bytes follow the message"),
            MessageError::Field(which) => f.write_str(which),
        }
    }
}

impl Error for MessageError {}

/// Encodes a message that is known to be encodable: no maps, no sequences of unknown length.
pub(crate) fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    postcard::to_allocvec(message).expect("plain structs always encode into memory")
}

/// Decodes a message of at most `max` bytes; every byte must belong to it.
pub(crate) fn decode<M: DeserializeOwned>(bytes: &[u8], max: u32) -> Result<M, MessageError> {
    let max = max as usize;
    if bytes.len() > max {
        return Err(MessageError::TooLong { length: bytes.len(), max });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(MessageError::Trailing(rest.len())),
        Err(_) => Err(MessageError::Malformed),
    }
}

/// The longest start of `text` that has at most `max` bytes and ends between characters.
pub(crate) fn clip(text: &str, max: u32) -> String {
    let mut end = text.len().min(max as usize);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    String::from(&text[..end])
}

/// Refuses a name that is too long, or that would forge lines in a log.
pub(crate) fn check_name(name: &str, max: u32, fault: &'static str) -> Result<(), MessageError> {
    if name.len() > max as usize || name.chars().any(char::is_control) {
        return Err(MessageError::Field(fault));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clip_ends_between_characters() {
        assert_eq!(clip("abc", 5), "abc");
        assert_eq!(clip("aé", 2), "a");
        assert_eq!(clip("aé", 3), "aé");
        assert_eq!(clip("é", 0), "");
    }

    #[test]
    fn decode_refuses_bytes_left_unread() {
        assert_eq!(decode::<u8>(&[1], 4), Ok(1));
        assert_eq!(decode::<u8>(&[1, 2], 4), Err(MessageError::Trailing(1)));
        assert_eq!(decode::<u8>(&[], 4), Err(MessageError::Malformed));
        let too_long = MessageError::TooLong { length: 5, max: 4 };
        assert_eq!(decode::<u8>(&[0; 5], 4), Err(too_long));
    }
}
