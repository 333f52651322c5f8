//! What one side tells the other about its bulk memory.
//!
//! Both messages go over the Unix socket, also when all other frames go through rings: a segment's
//! descriptor comes with its announcement.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::limits::HANDSHAKE_PAYLOAD_BYTES;
use crate::message::{self, MessageError};

/// Announces a bulk segment, whose descriptor comes with the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentAnnounced {
    /// The sender's number for it: 0 for its first, then one more for each.
    pub segment: u32,
    /// Bytes of each block, as the exponent of a power of two: 16 to 30.
    pub block_bytes_log2: u8,
    /// Blocks: 1 to 1024.
    pub blocks: u32,
}

/// A bulk segment that the sender uses no more. No block of it is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRetired {
    /// The sender's number for it.
    pub segment: u32,
}

impl SegmentAnnounced {
    /// The payload of a Segment frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        message::encode(self)
    }

    /// Reads the payload of a Segment frame.
    ///
    /// # Errors
    ///
    /// [`MessageError`] if it cannot be decoded, has bytes left over, or gives a length or a number of
    /// blocks that cannot be.
    pub fn decode(bytes: &[u8]) -> Result<SegmentAnnounced, MessageError> {
        let announced: SegmentAnnounced = message::decode(bytes, HANDSHAKE_PAYLOAD_BYTES)?;
        if !(16..=30).contains(&announced.block_bytes_log2) {
            return Err(MessageError::Field("a block must have from 64 KiB to 1 GiB"));
        }
        if !(1..=1024).contains(&announced.blocks) {
            return Err(MessageError::Field("a segment must have from 1 to 1024 blocks"));
        }
        Ok(announced)
    }

    /// Bytes of each block.
    #[must_use]
    pub const fn block_bytes(&self) -> u64 {
        1 << self.block_bytes_log2
    }

    /// Bytes of the segment.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.block_bytes() * self.blocks as u64
    }
}

impl SegmentRetired {
    /// The payload of a SegmentRetired frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        message::encode(self)
    }

    /// Reads the payload of a SegmentRetired frame.
    ///
    /// # Errors
    ///
    /// [`MessageError`] if it cannot be decoded or has bytes left over.
    pub fn decode(bytes: &[u8]) -> Result<SegmentRetired, MessageError> {
        message::decode(bytes, HANDSHAKE_PAYLOAD_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcement_round_trips_and_refuses_impossible_shapes() {
        let announced = SegmentAnnounced { segment: 300, block_bytes_log2: 20, blocks: 4 };
        assert_eq!(announced.encode(), [0xAC, 0x02, 20, 4]);
        assert_eq!(SegmentAnnounced::decode(&announced.encode()), Ok(announced));
        assert_eq!(announced.bytes(), 4 << 20);
        for (block_bytes_log2, blocks) in [(15, 1), (31, 1), (255, 1), (16, 0), (16, 1025)] {
            let impossible = SegmentAnnounced { segment: 0, block_bytes_log2, blocks };
            let refused = SegmentAnnounced::decode(&impossible.encode());
            assert!(matches!(refused, Err(MessageError::Field(_))), "{impossible:?}");
        }
        assert!(SegmentAnnounced::decode(&[0, 16, 1, 0]).is_err(), "bytes left over");
        assert!(SegmentAnnounced::decode(&[0, 16]).is_err(), "it ends early");
    }

    #[test]
    fn retirement_round_trips() {
        let retired = SegmentRetired { segment: 300 };
        assert_eq!(SegmentRetired::decode(&retired.encode()), Ok(retired));
        assert!(SegmentRetired::decode(&[1, 1]).is_err(), "bytes left over");
    }
}
