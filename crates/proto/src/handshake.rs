//! The messages that open a connection.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::limits::{self, HANDSHAKE_PAYLOAD_BYTES, PROGRAM_NAME_BYTES};
use crate::message::{self, MessageError, check_name, clip};
use crate::{Checksum, ChecksumSet, VERSION};

/// Optional parts of the protocol, one bit each. Unknown bits are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Features(pub u64);

impl Features {
    /// No optional parts.
    pub const NONE: Features = Features(0);

    /// Bulk memory, for payloads that are too long for a ring. Of no effect on a connection on the socket.
    pub const BULK: Features = Features(1);

    /// Calls whose payloads are JSON whatever the method's own codec: the codec entry of requests.
    pub const JSON: Features = Features(2);

    /// Payloads compressed with zstd, in frames of methods.
    pub const COMPRESSION: Features = Features(4);

    /// Both processes read one `CLOCK_MONOTONIC`: one kernel and one time namespace. When a frame was sent means
    /// something to its receiver then.
    pub const CLOCK: Features = Features(8);

    /// What both sides have.
    #[must_use]
    pub const fn common(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }

    /// The features of either.
    #[must_use]
    pub const fn union(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// These but for those of the other.
    #[must_use]
    pub const fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }

    /// Whether every feature of `other` is there.
    #[must_use]
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The limits that the client would like; the server grants the same or less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsWanted {
    /// Largest message either side may send, in payload bytes; at least 1.
    pub message_bytes: u32,
    /// Calls that one side may have in flight; at least 1.
    pub calls_in_flight: u32,
}

impl Default for LimitsWanted {
    fn default() -> LimitsWanted {
        LimitsWanted {
            message_bytes: limits::MESSAGE_BYTES,
            calls_in_flight: limits::CALLS_IN_FLIGHT,
        }
    }
}

/// The limits of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsGranted {
    /// Largest message either side may send, in payload bytes; at least 1.
    pub message_bytes: u32,
    /// Calls that one side may have in flight; at least 1.
    pub calls_in_flight: u32,
}

/// Where the client would like frames to go after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransportWanted {
    /// They stay on the Unix socket; no descriptors come with Hello.
    Socket,
    /// Into rings; two descriptors come with Hello, the client's segment and doorbell.
    SharedMemory {
        /// Length of the ring in the client's own segment, in bytes.
        ring_bytes: u32,
    },
}

/// Where frames go after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransportGranted {
    /// They stay on the Unix socket; no descriptors come with HelloAck.
    Socket,
    /// Into rings; two descriptors come with HelloAck, the server's segment and doorbell.
    SharedMemory {
        /// Length of the ring in the server's own segment, in bytes.
        ring_bytes: u32,
    },
}

/// The client's first frame.
///
/// A decoded one is well-formed: versions in order and not 0, limits not 0, a ring length that a
/// ring may have, a program name within its bound and without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol version that the client speaks.
    pub version_min: u8,
    /// Latest protocol version that the client speaks.
    pub version_max: u8,
    /// Optional parts that the client has.
    pub features: Features,
    /// Limits that the client would like.
    pub limits: LimitsWanted,
    /// The client's program, for people who read lists of connections; not to be trusted.
    pub program: String,
    /// Where the client would like frames to go.
    pub transport: TransportWanted,
    /// Checksums that the client can do.
    pub checksums: ChecksumSet,
}

impl Hello {
    /// A Hello with this version, no features, and the default limits and checksums.
    #[must_use]
    pub fn new(program: &str, transport: TransportWanted) -> Hello {
        Hello {
            version_min: VERSION,
            version_max: VERSION,
            features: Features::NONE,
            limits: LimitsWanted::default(),
            program: clip(program, PROGRAM_NAME_BYTES),
            transport,
            checksums: ChecksumSet::DEFAULT,
        }
    }

    /// The payload of a Hello frame. A program name that is too long is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let program = clip(&self.program, PROGRAM_NAME_BYTES);
        message::encode(&Hello { program, ..*self })
    }

    /// Reads the payload of a Hello frame.
    ///
    /// # Errors
    ///
    /// [`MessageError`] if it is too long, cannot be decoded, has bytes left over, or is not
    /// well-formed.
    pub fn decode(bytes: &[u8]) -> Result<Hello, MessageError> {
        let hello: Hello = message::decode(bytes, HANDSHAKE_PAYLOAD_BYTES)?;
        if hello.version_min == 0 || hello.version_min > hello.version_max {
            return Err(MessageError::Field("the version range is empty or begins with 0"));
        }
        check_limits(hello.limits.message_bytes, hello.limits.calls_in_flight)?;
        check_program(&hello.program)?;
        if let TransportWanted::SharedMemory { ring_bytes } = hello.transport {
            check_ring(ring_bytes)?;
        }
        Ok(hello)
    }
}

/// The server's grant: the connection is open.
///
/// A decoded one is well-formed as [`Hello`] is; whether it grants what was asked is for
/// [`Hello::check`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAck {
    /// The protocol version of all later frames.
    pub version: u8,
    /// Optional parts that both sides have.
    pub features: Features,
    /// The limits of this connection.
    pub limits: LimitsGranted,
    /// The server's number for this connection, for logs of both sides.
    pub connection_id: u64,
    /// Where frames go from now on.
    pub transport: TransportGranted,
    /// What seals all later frames.
    pub checksum: Checksum,
    /// The server's program, for people.
    pub program: String,
}

impl HelloAck {
    /// The payload of a HelloAck frame. A program name that is too long is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let program = clip(&self.program, PROGRAM_NAME_BYTES);
        message::encode(&HelloAck { program, ..*self })
    }

    /// Reads the payload of a HelloAck frame.
    ///
    /// # Errors
    ///
    /// [`MessageError`] if it is too long, cannot be decoded, has bytes left over, or is not
    /// well-formed.
    pub fn decode(bytes: &[u8]) -> Result<HelloAck, MessageError> {
        let ack: HelloAck = message::decode(bytes, HANDSHAKE_PAYLOAD_BYTES)?;
        check_limits(ack.limits.message_bytes, ack.limits.calls_in_flight)?;
        check_program(&ack.program)?;
        if let TransportGranted::SharedMemory { ring_bytes } = ack.transport {
            check_ring(ring_bytes)?;
        }
        Ok(ack)
    }
}

fn check_limits(message_bytes: u32, calls_in_flight: u32) -> Result<(), MessageError> {
    if message_bytes < limits::MESSAGE_BYTES_MIN || calls_in_flight == 0 {
        return Err(MessageError::Field(
            "the largest message is too short, or no calls are allowed",
        ));
    }
    Ok(())
}

fn check_program(program: &str) -> Result<(), MessageError> {
    let fault = "the program name is longer than 128 bytes or has control characters";
    check_name(program, PROGRAM_NAME_BYTES, fault)
}

fn check_ring(ring_bytes: u32) -> Result<(), MessageError> {
    if limits::is_ring_bytes(ring_bytes) {
        return Ok(());
    }
    Err(MessageError::Field("the ring length must be a power of two from 64 KiB to 64 MiB"))
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
