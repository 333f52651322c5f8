//! How a connection ends: refused in the handshake, or with Goodbye.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::limits::HANDSHAKE_PAYLOAD_BYTES;
use crate::message::{self, MessageError, clip};
use crate::{VERSION, WireError};

/// Longest sentence in bytes: what is left of the payload after the other fields at their longest
/// (error 3, length of the sentence 2, versions 2).
const SENTENCE_BYTES: u32 = HANDSHAKE_PAYLOAD_BYTES - 7;

/// The server refuses a connection; it closes the socket after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloReject {
    /// Number of a [`WireError`], maybe one that this version does not know.
    pub error: u16,
    /// What a person can do about it. Text from the peer: escape it before it is printed.
    pub sentence: String,
    /// Oldest protocol version that the server speaks.
    pub version_min: u8,
    /// Latest protocol version that the server speaks.
    pub version_max: u8,
}

impl HelloReject {
    /// A refusal with `sentence`, or with the error's own if that is empty.
    #[must_use]
    pub fn new(error: WireError, sentence: &str) -> HelloReject {
        let sentence = if sentence.is_empty() { error.sentence() } else { sentence };
        HelloReject {
            error: error.number(),
            sentence: clip(sentence, SENTENCE_BYTES),
            version_min: VERSION,
            version_max: VERSION,
        }
    }

    /// The error, or `None` if this version does not know its number.
    #[must_use]
    pub const fn wire_error(&self) -> Option<WireError> {
        WireError::from_number(self.error)
    }

    /// The payload of a HelloReject frame. A sentence that is too long is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let sentence = clip(&self.sentence, SENTENCE_BYTES);
        message::encode(&HelloReject { sentence, ..*self })
    }

    /// Reads the payload of a HelloReject frame.
    ///
    /// # Errors
    ///
    /// [`MessageError`] if it is too long, cannot be decoded or has bytes left over.
    pub fn decode(bytes: &[u8]) -> Result<HelloReject, MessageError> {
        message::decode(bytes, HANDSHAKE_PAYLOAD_BYTES)
    }
}

/// The sender starts no calls and takes none from now on; running ones may finish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// Number of a [`WireError`], maybe one that this version does not know; 0 for a planned end.
    pub error: u16,
    /// Why. Text from the peer: escape it before it is printed.
    pub sentence: String,
}

impl Goodbye {
    /// A Goodbye with `sentence`, or with the error's own if that is empty.
    #[must_use]
    pub fn new(error: WireError, sentence: &str) -> Goodbye {
        let sentence = if sentence.is_empty() { error.sentence() } else { sentence };
        Goodbye { error: error.number(), sentence: clip(sentence, SENTENCE_BYTES) }
    }

    /// The error, or `None` if this version does not know its number.
    #[must_use]
    pub const fn wire_error(&self) -> Option<WireError> {
        WireError::from_number(self.error)
    }

    /// The payload of a Goodbye frame. A sentence that is too long is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let sentence = clip(&self.sentence, SENTENCE_BYTES);
        message::encode(&Goodbye { error: self.error, sentence })
    }

    /// Reads the payload of a Goodbye frame.
    ///
    /// # Errors
    ///
    /// [`MessageError`] if it is too long, cannot be decoded or has bytes left over.
    pub fn decode(bytes: &[u8]) -> Result<Goodbye, MessageError> {
        message::decode(bytes, HANDSHAKE_PAYLOAD_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_sentence_is_cut_and_the_payload_stays_within_its_limit() {
        let long = "é".repeat(5000);
        let mut reject = HelloReject::new(WireError::Internal, &long);
        reject.error = u16::MAX;
        let bytes = reject.encode();
        assert!(bytes.len() <= HANDSHAKE_PAYLOAD_BYTES as usize);
        assert_eq!(HelloReject::decode(&bytes), Ok(reject));
        let goodbye = Goodbye { error: u16::MAX, sentence: long };
        assert!(Goodbye::decode(&goodbye.encode()).is_ok());
    }

    #[test]
    fn goodbye_without_a_sentence_says_the_errors_own() {
        let goodbye = Goodbye::new(WireError::Draining, "");
        assert_eq!(goodbye.sentence, WireError::Draining.sentence());
        assert_eq!(Goodbye::decode(&goodbye.encode()), Ok(goodbye));
    }
}
