//! Frames put together by hand: right in every field, until a test makes one wrong.

use lapwing_proto::{Checksum, Flags, Header, Kind, MAGIC, VERSION};

/// A frame whose every field can be set to anything.
#[derive(Clone, Debug)]
pub struct RawFrame {
    /// The first four bytes.
    pub magic: [u8; 4],
    /// The version byte.
    pub version: u8,
    /// The flags byte.
    pub flags: u8,
    /// The kind.
    pub kind: u16,
    /// The length in the header, if it is not that of the payload.
    pub length: Option<u32>,
    /// The message id.
    pub id: u64,
    /// The checksum, if it is not the right one.
    pub checksum: Option<u32>,
    /// The payload.
    pub payload: Vec<u8>,
}

impl RawFrame {
    /// A frame of these flags.
    #[must_use]
    pub fn of(flags: Flags, kind: u16, id: u64, payload: &[u8]) -> RawFrame {
        RawFrame {
            magic: MAGIC,
            version: VERSION,
            flags: flags.bits(),
            kind,
            length: None,
            id,
            checksum: None,
            payload: payload.to_vec(),
        }
    }

    /// A request.
    #[must_use]
    pub fn request(kind: u16, id: u64, payload: &[u8]) -> RawFrame {
        RawFrame::of(Flags::REQUEST, kind, id, payload)
    }

    /// A response.
    #[must_use]
    pub fn response(kind: u16, id: u64, payload: &[u8]) -> RawFrame {
        RawFrame::of(Flags::RESPONSE, kind, id, payload)
    }

    /// A message that has no answer.
    #[must_use]
    pub fn one_way(kind: u16, payload: &[u8]) -> RawFrame {
        RawFrame::of(Flags::NONE, kind, 0, payload)
    }

    /// A frame of the connection itself, such as Hello.
    #[must_use]
    pub fn connection(kind: Kind, payload: &[u8]) -> RawFrame {
        RawFrame::of(Flags::NONE, kind.number(), 0, payload)
    }

    /// The bytes on the wire, sealed with `checksum` unless this frame has one of its own.
    #[must_use]
    pub fn bytes(&self, checksum: Checksum) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Header::BYTES + self.payload.len());
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&[self.version, self.flags]);
        bytes.extend_from_slice(&self.kind.to_le_bytes());
        let length = self.length.unwrap_or(self.payload.len() as u32);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.payload);
        let sum = self.checksum.unwrap_or_else(|| checksum.of_frame(&bytes));
        bytes[20..24].copy_from_slice(&sum.to_le_bytes());
        bytes
    }
}
