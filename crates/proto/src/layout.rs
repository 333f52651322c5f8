//! The layout of a segment and of a record, as numbers.
//!
//! ```text
//! segment, RING_AT + ring_bytes long
//!      0  consumed   u64   how far the owner has read its peer's ring, in bytes
//!    128  armed      u64   the owner's sleep epoch; odd = asleep
//!    256  freed      u64   cursor of the returned-block list
//!   4096  returned         ids of bulk blocks given back (reserved, unused yet)
//!  16384  ring             the owner's records, ring_bytes long
//!
//! record, at a position that is a multiple of 64
//!    +0  commit     u64   0 = nothing yet; else the position where the record ends
//!    +8  header           24 bytes
//!   +32  payload          length bytes, then padding up to a multiple of 64
//! ```
//!
//! Only the owner of a segment writes to it. All words are little-endian and naturally aligned. The
//! shared-memory crate keeps its own copy of these numbers (it knows no protocol); a test of the
//! `lapwing` crate holds the two together.

/// Distance between two words of the first page, in bytes: two cache lines of 64.
pub const WORD_LINE_BYTES: usize = 128;
/// Offset of `consumed` in a segment, in bytes.
pub const CONSUMED_AT: usize = 0;
/// Offset of `armed` in a segment, in bytes.
pub const ARMED_AT: usize = 128;
/// Offset of `freed` in a segment, in bytes.
pub const FREED_AT: usize = 256;
/// Offset of the returned-block list in a segment, in bytes.
pub const RETURNED_AT: usize = 4096;
/// Length of the returned-block list, in bytes.
pub const RETURNED_BYTES: usize = RING_AT - RETURNED_AT;
/// Offset of the ring in a segment, in bytes.
pub const RING_AT: usize = 16384;

/// Records begin at multiples of this, in bytes.
pub const RECORD_ALIGN: usize = 64;
/// Offset of the commit word in a record, in bytes.
pub const COMMIT_AT: usize = 0;
/// Offset of the frame header in a record, in bytes.
pub const HEADER_AT: usize = 8;
/// Offset of the payload in a record, in bytes.
pub const PAYLOAD_AT: usize = 32;

const _: () = assert!(HEADER_AT + crate::Header::BYTES == PAYLOAD_AT);

/// Length of a segment with a ring of `ring_bytes`, in bytes.
#[must_use]
pub const fn segment_bytes(ring_bytes: u32) -> u64 {
    RING_AT as u64 + ring_bytes as u64
}

/// Length of a record with `payload_bytes` of payload, in bytes, padding included.
#[must_use]
pub const fn record_bytes(payload_bytes: u32) -> u64 {
    (PAYLOAD_AT as u64 + payload_bytes as u64).next_multiple_of(RECORD_ALIGN as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_of_32_payload_bytes_is_one_line() {
        assert_eq!(record_bytes(0), 64);
        assert_eq!(record_bytes(32), 64);
        assert_eq!(record_bytes(33), 128);
        assert_eq!(record_bytes(u32::MAX), (1 << 32) + 64);
        assert_eq!(segment_bytes(crate::limits::RING_BYTES), 16384 + 262_144);
    }
}
