//! The errors that one side tells the other before it closes: one row gives number, name, sentence.

use core::error::Error;
use core::fmt;

macro_rules! wire_errors {
    ($($number:literal $name:ident $sentence:literal;)+) => {
        /// Why a side ends the connection, as told in Goodbye or HelloReject.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum WireError {
            $(#[doc = concat!("`", stringify!($number), "`: ", $sentence, ".")] $name = $number,)+
        }

        impl WireError {
            /// Every wire error, by number.
            pub const ALL: &[WireError] = &[$(WireError::$name),+];

            /// The error of this number, or `None` if this version knows none.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<WireError> {
                match number {
                    $($number => Some(WireError::$name),)+
                    _ => None,
                }
            }

            /// The name in `docs/protocol.md`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(WireError::$name => stringify!($name),)+
                }
            }

            /// What happened, as a sentence without its full stop.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(WireError::$name => $sentence,)+
                }
            }
        }
    };
}

wire_errors! {
    0 NoError "the connection ends as planned";
    1 BadMagic "a frame does not begin with LAPC";
    2 UnsupportedVersion "the two sides share no protocol version";
    3 BadFlags "a frame's flags contradict each other or set a reserved bit";
    4 BadKind "a frame's kind is 0 or not allowed at this point";
    5 BadId "a request or a response has message id 0, or an id that is in use";
    6 FrameTooLong "a frame is longer than this connection allows";
    7 BadChecksum "a frame's checksum does not match its bytes";
    8 BadExtension "a frame's extension block cannot be read, or needs what this side lacks";
    9 BadMessage "the payload of one of the connection's own frames cannot be read";
    10 UnexpectedMessage "a frame came that does not belong at this point, as a second Hello";
    11 UnknownCall "a frame belongs to no call that was ever made";
    12 TooManyCalls "more calls are in flight than the handshake granted";
    13 BadRing "a commit word or a position in shared memory is impossible";
    14 BadSegment "a segment is unsealed, of the wrong type or of the wrong length";
    15 BadDoorbell "a doorbell is not an eventfd of the kind that is asked for";
    16 SurplusDescriptors "more file descriptors came than the message calls for";
    17 MissingDescriptors "fewer file descriptors came than the message calls for";
    18 HandshakeTimeout "the handshake did not end in time";
    19 NotPermitted "this user may not connect here";
    20 QuotaConnections "the server has all the connections it allows";
    21 TransportRefused "the server does not offer the transport that was asked for";
    22 NoCommonChecksum "the two sides share no checksum";
    23 Draining "the server is stopping and takes no new connections or calls";
    24 Internal "the side that says this has failed; its peer is not to blame";
    25 Truncated "the stream ended within a frame";
    26 BadGrant "the server granted what was not asked for";
    27 BadCredit "a stream was given impossible credit, or sent more than it was granted";
    28 BadBlock "a bulk descriptor or a returned block does not exist";
    29 QuotaBulk "the bulk memory that one side, or one user, may have is used up";
    30 BadCompression "a compressed payload cannot be expanded to the length that it says";
}

impl WireError {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.sentence(), self.name(), self.number())
    }
}

impl Error for WireError {}

/// The peer did what the protocol forbids; the connection ends and the peer alone is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerMisbehaved {
    /// What it is told in Goodbye.
    pub error: WireError,
    /// What exactly it did, for this side's own log.
    pub detail: &'static str,
}

impl fmt::Display for PeerMisbehaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the peer broke the protocol: {}", self.error.sentence())?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

impl Error for PeerMisbehaved {}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn wire_errors_are_numbered_without_gaps_and_found_by_number() {
        for (at, error) in WireError::ALL.iter().enumerate() {
            assert_eq!(usize::from(error.number()), at, "{error:?}");
            assert_eq!(WireError::from_number(error.number()), Some(*error));
            assert!(!error.sentence().ends_with('.'));
        }
        assert_eq!(WireError::from_number(WireError::ALL.len() as u16), None);
    }

    #[test]
    fn peer_misbehaved_says_whose_fault_first() {
        let fault = PeerMisbehaved { error: WireError::BadRing, detail: "commit behind" };
        let said = fault.to_string();
        assert!(said.starts_with("the peer broke the protocol: "), "{said}");
        assert!(said.ends_with("(commit behind)"), "{said}");
    }
}
