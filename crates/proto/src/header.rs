//! The 24-byte frame header.

use core::error::Error;
use core::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Flags, Kind, WireError, limits};

/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"LAPC";

/// The protocol version that this crate speaks.
pub const VERSION: u8 = 1;

/// The call that a frame belongs to; a response echoes its request's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(u64);

impl MessageId {
    /// The connection itself: no call.
    pub const CONNECTION: MessageId = MessageId(0);

    /// The id of this number.
    #[inline]
    #[must_use]
    pub const fn new(number: u64) -> MessageId {
        MessageId(number)
    }

    /// The number on the wire.
    #[inline]
    #[must_use]
    #[allow(clippy::should_implement_trait)]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The header as it lies on the wire, little-endian.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireHeader {
    magic: [u8; 4],
    version: u8,
    flags: u8,
    kind: U16,
    length: U32,
    id: U64,
    checksum: U32,
}

const _: () = assert!(size_of::<WireHeader>() == Header::BYTES);

/// What stands before every payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How to read the payload and whether an answer is due.
    pub flags: Flags,
    /// The method, or what the connection is told.
    pub kind: Kind,
    /// Payload bytes that follow.
    pub length: u32,
    /// The call that this frame belongs to.
    pub id: MessageId,
    /// Over header and payload, see [`Checksum`](crate::Checksum); 0 before it is sealed.
    pub checksum: u32,
}

impl Header {
    /// Length on the wire in bytes.
    pub const BYTES: usize = limits::HEADER_BYTES;

    /// The header of a frame of the connection itself, as Hello is: no flags, id 0, checksum 0.
    #[must_use]
    pub const fn connection(kind: Kind, length: u32) -> Header {
        Header { flags: Flags::NONE, kind, length, id: MessageId::CONNECTION, checksum: 0 }
    }

    /// The header's bytes.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; Header::BYTES] {
        zerocopy::transmute!(WireHeader {
            magic: MAGIC,
            version: VERSION,
            flags: self.flags.bits(),
            kind: U16::new(self.kind.number()),
            length: U32::new(self.length),
            id: U64::new(self.id.get()),
            checksum: U32::new(self.checksum),
        })
    }

    /// Reads and checks a header; all but the checksum, which needs the payload.
    ///
    /// `length_max` is the longest payload, in bytes, that the caller has room for.
    ///
    /// # Errors
    ///
    /// A [`FrameError`] names the first field that breaks the protocol. The connection cannot go on
    /// after one: where the next frame begins is unknown.
    #[inline]
    pub fn decode(bytes: &[u8; Header::BYTES], length_max: u32) -> Result<Header, FrameError> {
        let wire: WireHeader = zerocopy::transmute!(*bytes);
        let flags = Flags::from_bits(wire.flags);
        let id = MessageId::new(wire.id.get());
        let length = wire.length.get();
        let expects_id = flags.intersects(Flags::REQUEST.union(Flags::RESPONSE));
        let good = (wire.magic == MAGIC)
            & (wire.version == VERSION)
            & FLAGS_ALLOWED.has(wire.flags)
            & (length <= length_max)
            & (!expects_id | (id != MessageId::CONNECTION));
        match Kind::new(wire.kind.get()) {
            Some(kind) if good => {
                Ok(Header { flags, kind, length, id, checksum: wire.checksum.get() })
            }
            _ => Err(wire.first_fault(length_max)),
        }
    }
}

/// The header as three little-endian 64-bit words.
///
/// Equal in meaning to [`Header::encode`] and [`Header::decode`]. A transport that moves words stores and
/// loads each of them at once, so that nothing behind it waits for narrower stores to be put together.
impl Header {
    /// The header's three words, in the order of the wire.
    #[inline]
    #[must_use]
    pub fn to_words(&self) -> [u64; 3] {
        let magic = u64::from(u32::from_le_bytes(MAGIC));
        let kind = u64::from(self.kind.number());
        let id = self.id.get();
        [
            magic | u64::from(VERSION) << 32 | u64::from(self.flags.bits()) << 40 | kind << 48,
            u64::from(self.length) | id << 32,
            id >> 32 | u64::from(self.checksum) << 32,
        ]
    }

    /// Reads and checks a header, as [`Header::decode`].
    ///
    /// # Errors
    ///
    /// As [`Header::decode`].
    #[inline]
    pub fn from_words(words: [u64; 3], length_max: u32) -> Result<Header, FrameError> {
        let [first, second, third] = words;
        let expected = u64::from(u32::from_le_bytes(MAGIC)) | u64::from(VERSION) << 32;
        let flags = (first >> 40) as u8;
        let length = second as u32;
        let id = second >> 32 | third << 32;
        let expects_id = flags & (Flags::REQUEST.bits() | Flags::RESPONSE.bits()) != 0;
        let good = (first & 0xFF_FFFF_FFFF == expected)
            & FLAGS_ALLOWED.has(flags)
            & (length <= length_max)
            & (!expects_id | (id != 0));
        match Kind::new((first >> 48) as u16) {
            Some(kind) if good => Ok(Header {
                flags: Flags::from_bits(flags),
                kind,
                length,
                id: MessageId::new(id),
                checksum: (third >> 32) as u32,
            }),
            _ => Err(fault_of_words(words, length_max)),
        }
    }
}

#[cold]
fn fault_of_words(words: [u64; 3], length_max: u32) -> FrameError {
    let wire: WireHeader = zerocopy::transmute!(words.map(U64::new));
    wire.first_fault(length_max)
}

impl WireHeader {
    /// Which field is wrong, in the order of the wire. Called only when one is.
    #[cold]
    fn first_fault(&self, length_max: u32) -> FrameError {
        let flags = Flags::from_bits(self.flags);
        let length = self.length.get();
        if self.magic != MAGIC {
            FrameError::BadMagic(self.magic)
        } else if self.version != VERSION {
            FrameError::Version { theirs: self.version, ours: VERSION }
        } else if flags.intersects(Flags::ENCRYPTED) {
            FrameError::FlagsReserved(self.flags)
        } else if !FLAGS_ALLOWED.has(self.flags) {
            FrameError::FlagsConflict(self.flags)
        } else if self.kind.get() == 0 {
            FrameError::KindZero
        } else if length > length_max {
            FrameError::TooLong { length, max: length_max }
        } else {
            FrameError::IdZero
        }
    }
}

/// One bit for each of the 256 flag bytes: whether version 1 allows it. Makes the check a load.
struct FlagsAllowed([u32; 8]);

static FLAGS_ALLOWED: FlagsAllowed = FlagsAllowed::of_version_1();

impl FlagsAllowed {
    const fn of_version_1() -> FlagsAllowed {
        let mut allowed = [0; 8];
        let mut bits = 0;
        while bits < 256 {
            let flags = Flags::from_bits(bits as u8);
            let both = flags.contains(Flags::REQUEST.union(Flags::RESPONSE));
            let stray_error = flags.contains(Flags::ERROR)
                && !flags.intersects(Flags::RESPONSE.union(Flags::STREAM));
            if !flags.contains(Flags::ENCRYPTED) && !both && !stray_error {
                allowed[bits / 32] |= 1 << (bits % 32);
            }
            bits += 1;
        }
        FlagsAllowed(allowed)
    }

    #[inline]
    const fn has(&self, bits: u8) -> bool {
        self.0[(bits / 32) as usize] >> (bits % 32) & 1 == 1
    }
}

/// Why a frame is refused. It is always the peer's fault and ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The first four bytes are not "LAPC".
    BadMagic([u8; 4]),
    /// The frame is of a version that this side does not speak.
    Version {
        /// The version in the frame.
        theirs: u8,
        /// The version this side speaks.
        ours: u8,
    },
    /// A flag is set that must be zero in version 1; holds the flags byte.
    FlagsReserved(u8),
    /// The flags contradict each other; holds the flags byte.
    FlagsConflict(u8),
    /// The kind is 0, which is never.
    KindZero,
    /// A request or a response has id 0, which is the connection's.
    IdZero,
    /// The payload is longer than allowed.
    TooLong {
        /// Payload bytes announced.
        length: u32,
        /// Payload bytes allowed.
        max: u32,
    },
    /// The frame's bytes are not those that were sealed.
    Checksum {
        /// The checksum of the bytes that came.
        expected: u32,
        /// The checksum in the header.
        found: u32,
    },
    /// Fewer bytes came than a header, or than the header announced.
    Truncated {
        /// Bytes that came.
        length: usize,
        /// Bytes that the frame needs.
        needed: usize,
    },
}

impl FrameError {
    /// What the peer is told in Goodbye or HelloReject.
    #[must_use]
    pub const fn wire_error(&self) -> WireError {
        match self {
            FrameError::BadMagic(_) => WireError::BadMagic,
            FrameError::Version { .. } => WireError::UnsupportedVersion,
            FrameError::FlagsReserved(_) | FrameError::FlagsConflict(_) => WireError::BadFlags,
            FrameError::KindZero => WireError::BadKind,
            FrameError::IdZero => WireError::BadId,
            FrameError::TooLong { .. } => WireError::FrameTooLong,
            FrameError::Checksum { .. } => WireError::BadChecksum,
            FrameError::Truncated { .. } => WireError::Truncated,
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            FrameError::BadMagic(magic) => {
                write!(f, "the frame begins with {magic:02x?}, not with \"LAPC\"")
            }
            FrameError::Version { theirs, ours } => {
                write!(f, "the frame is of protocol version {theirs}, this side speaks {ours}")
            }
            FrameError::FlagsReserved(bits) => write!(
                f,
                "the flags {bits:#04x} have a bit set that must be zero in protocol version 1"
            ),
            FrameError::FlagsConflict(bits) => {
                write!(f, "the flags {:?} do not go together", Flags::from_bits(bits))
            }
            FrameError::KindZero => f.write_str("the frame's kind is 0, which is never used"),
            FrameError::IdZero => {
                f.write_str("the frame is a request or a response and its message id is 0")
            }
            FrameError::TooLong { length, max } => {
                write!(f, "the frame's payload has {length} bytes, at most {max} are allowed here")
            }
            FrameError::Checksum { expected, found } => {
                write!(f, "the frame's checksum is {found:#010x}, its bytes give {expected:#010x}")
            }
            FrameError::Truncated { length, needed } => {
                write!(f, "the frame has {length} bytes where it needs {needed}")
            }
        }
    }
}

impl Error for FrameError {}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
