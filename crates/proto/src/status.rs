//! How a call ended, with gRPC's codes.

use alloc::string::String;
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{MESSAGE_BYTES_MAX, STATUS_MESSAGE_BYTES};
use crate::message::{self, MessageError, clip};

macro_rules! codes {
    ($($number:literal $name:ident $constructor:ident $sentence:literal;)+) => {
        /// How a call ended; gRPC's numbers and meanings.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Code {
            $(#[doc = concat!("`", stringify!($number), "`: ", $sentence, ".")] $name = $number,)+
        }

        impl Code {
            /// Every code, by number.
            pub const ALL: &[Code] = &[$(Code::$name),+];

            /// The code of this number, or `None` if this version knows none.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Code> {
                match number {
                    $($number => Some(Code::$name),)+
                    _ => None,
                }
            }

            /// The name in `docs/protocol.md`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Code::$name => stringify!($name),)+
                }
            }

            /// What it means, as a sentence without its full stop.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Code::$name => $sentence,)+
                }
            }
        }

        impl Status {
            $(#[doc = concat!("A status with [`Code::", stringify!($name), "`]: ", $sentence, ".")]
            #[must_use]
            pub fn $constructor(message: impl Into<String>) -> Status {
                Status::new(Code::$name, message)
            })+
        }
    };
}

codes! {
    0 Ok ok "the call succeeded";
    1 Cancelled cancelled "the caller gave the call up";
    2 Unknown unknown "the call failed for a reason that has no code";
    3 InvalidArgument invalid_argument "the request makes no sense, whatever the state";
    4 DeadlineExceeded deadline_exceeded "the deadline passed before the call ended";
    5 NotFound not_found "what was asked for does not exist";
    6 AlreadyExists already_exists "what was to be made exists already";
    7 PermissionDenied permission_denied "this caller may not do this";
    8 ResourceExhausted resource_exhausted "a limit or a quota is used up";
    9 FailedPrecondition failed_precondition "the state does not allow this now";
    10 Aborted aborted "the call lost against another one that ran at the same time";
    11 OutOfRange out_of_range "the request reaches past what there is";
    12 Unimplemented unimplemented "the server has no such method";
    13 Internal internal "the server failed";
    14 Unavailable unavailable "the server cannot do this now; try again";
    15 DataLoss data_loss "bytes are lost or corrupt beyond repair";
    16 Unauthenticated unauthenticated "the caller did not show who it is";
}

impl Code {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a call failed: the payload of an error frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Which kind of failure.
    pub code: Code,
    /// What happened, for a person; cut to 4096 bytes when encoded.
    pub message: String,
    /// More for a program, in a form that the method defines.
    pub details: Vec<u8>,
    /// When the same call may be tried again, in milliseconds from now.
    pub retry_after_ms: Option<u32>,
}

/// The fields as postcard sees them; the code is one raw byte.
#[derive(Serialize, Deserialize)]
struct WireStatus {
    code: u8,
    message: String,
    details: Vec<u8>,
    retry_after_ms: Option<u32>,
}

impl Status {
    /// A status with this code and message, and nothing more.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Status {
        Status { code, message: message.into(), details: Vec::new(), retry_after_ms: None }
    }

    /// The same with these details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<Vec<u8>>) -> Status {
        self.details = details.into();
        self
    }

    /// The same with this time until a retry, in milliseconds.
    #[must_use]
    pub fn with_retry_after_ms(mut self, retry_after_ms: u32) -> Status {
        self.retry_after_ms = Some(retry_after_ms);
        self
    }

    /// The payload of an error frame. A message that is too long is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        message::encode(&WireStatus {
            code: self.code.number(),
            message: clip(&self.message, STATUS_MESSAGE_BYTES),
            details: self.details.clone(),
            retry_after_ms: self.retry_after_ms,
        })
    }

    /// Reads the payload of an error frame. Its length is bounded by the frame it came in. A code
    /// that this version does not know is read as [`Code::Unknown`].
    ///
    /// # Errors
    ///
    /// [`MessageError`] if it cannot be decoded, has bytes left over, or its message is too long.
    pub fn decode(bytes: &[u8]) -> Result<Status, MessageError> {
        let wire: WireStatus = message::decode(bytes, MESSAGE_BYTES_MAX)?;
        if wire.message.len() > STATUS_MESSAGE_BYTES as usize {
            return Err(MessageError::Field("the status message is longer than 4096 bytes"));
        }
        Ok(Status {
            code: Code::from_number(wire.code).unwrap_or(Code::Unknown),
            message: wire.message,
            details: wire.details,
            retry_after_ms: wire.retry_after_ms,
        })
    }
}

impl From<Code> for Status {
    fn from(code: Code) -> Status {
        Status::new(code, code.sentence())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        match self.retry_after_ms {
            Some(ms) => write!(f, " (try again in {ms} ms)"),
            None => Ok(()),
        }
    }
}

impl Error for Status {}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec;

    use super::*;

    #[test]
    fn codes_are_grpcs_and_found_by_number() {
        assert_eq!(Code::ALL.len(), 17);
        for (at, code) in Code::ALL.iter().enumerate() {
            assert_eq!(usize::from(code.number()), at);
            assert_eq!(Code::from_number(code.number()), Some(*code));
        }
        assert_eq!(Code::from_number(17), None);
    }

    #[test]
    fn status_returns_from_its_bytes() {
        let status = Status::unavailable("later").with_details([1, 2]).with_retry_after_ms(250);
        assert_eq!(Status::decode(&status.encode()), Ok(status.clone()));
        assert_eq!(status.to_string(), "Unavailable: later (try again in 250 ms)");
    }

    #[test]
    fn status_with_a_long_message_is_cut_when_encoded_and_refused_when_decoded() {
        let status = Status::internal("é".repeat(3000));
        assert_eq!(Status::decode(&status.encode()).unwrap().message.len(), 4096);
        let wire = WireStatus {
            code: 13,
            message: "a".repeat(4097),
            details: vec![],
            retry_after_ms: None,
        };
        assert!(matches!(Status::decode(&message::encode(&wire)), Err(MessageError::Field(_))));
    }

    #[test]
    fn status_with_an_unknown_code_is_unknown_and_trailing_bytes_are_refused() {
        let mut bytes = Status::aborted("x").encode();
        bytes[0] = 99;
        assert_eq!(Status::decode(&bytes).unwrap().code, Code::Unknown);
        bytes.push(0);
        assert_eq!(Status::decode(&bytes), Err(MessageError::Trailing(1)));
    }
}
