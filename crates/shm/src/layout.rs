//! Where everything stands in a segment and in a record. Ring code holds no numbers of its own.
//!
//! ```text
//! segment   0        128      256      384        4096                  16384            16384+ring
//!           | consumed | armed | freed | (zero)    | returned-block list | ring              |
//!           one line of 128 bytes for each word of the owner; each word has one writer, the owner
//!
//! record    0          8                                         64         128
//!           | commit   | body: up to 56 bytes in the first line  | body ...  |
//!           starts on a 64-byte line; commit = position of the record's end, written last
//! ```

/// Bytes of a cache line, the unit in which records are aligned and positions advance.
pub const LINE_BYTES: usize = 64;

/// Lines of a page.
pub const PAGE_LINES: usize = 4096 / LINE_BYTES;

/// Bytes of the commit word in front of each record's body.
pub const COMMIT_BYTES: usize = 8;

/// Body bytes that share the record's first line with the commit word.
pub const FIRST_LINE_BODY_BYTES: usize = LINE_BYTES - COMMIT_BYTES;

/// Offset of `consumed`: how far the owner has read the peer's ring, as a position.
pub const CONSUMED: usize = 0;

/// Offset of `armed`: the owner's sleep epoch; odd while it sleeps or is about to.
pub const ARMED: usize = 128;

/// Offset of `freed`: the owner's cursor of its returned-block list.
pub const FREED: usize = 256;

/// Offset of the returned-block list.
pub const RETURNED: usize = 4096;

/// Slots of the returned-block list, of 8 bytes each; a power of two. At most so many blocks are lent at a
/// time, so that a slot is read before it is written again.
pub const RETURNED_SLOTS: usize = 1024;

/// Offset of the ring.
pub const RING: usize = 16384;

/// Smallest block of bulk memory, in bytes.
pub const BLOCK_BYTES_MIN: usize = 64 * 1024;

/// Largest block of bulk memory, in bytes.
pub const BLOCK_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// Whether blocks of `block_bytes` can be: a power of two between the two bounds.
#[must_use]
pub const fn is_block_bytes(block_bytes: usize) -> bool {
    block_bytes.is_power_of_two()
        && block_bytes >= BLOCK_BYTES_MIN
        && block_bytes <= BLOCK_BYTES_MAX
}

/// Bytes of the smallest block that holds `bytes`.
#[must_use]
pub const fn block_bytes(bytes: usize) -> usize {
    if bytes <= BLOCK_BYTES_MIN { BLOCK_BYTES_MIN } else { bytes.next_power_of_two() }
}

/// What stands in a slot of the returned-block list.
#[must_use]
pub const fn returned_word(segment: u32, block: u32) -> u64 {
    (segment as u64) << 32 | block as u64
}

/// Offset of the slot for the `n`-th block that its owner gives back.
#[must_use]
pub const fn returned_slot(n: u64) -> usize {
    RETURNED + 8 * (n as usize % RETURNED_SLOTS)
}

/// Smallest ring a segment may have, in bytes.
pub const RING_BYTES_MIN: u32 = 64 * 1024;

/// Largest ring a segment may have, in bytes.
pub const RING_BYTES_MAX: u32 = 64 * 1024 * 1024;

/// Whether a ring of this many bytes can be laid out: a power of two between the two bounds.
#[must_use]
pub const fn is_ring_bytes(ring_bytes: u32) -> bool {
    ring_bytes.is_power_of_two() && ring_bytes >= RING_BYTES_MIN && ring_bytes <= RING_BYTES_MAX
}

/// Bytes of the file behind a segment whose ring has `ring_bytes`.
#[must_use]
pub const fn segment_bytes(ring_bytes: u32) -> usize {
    RING + ring_bytes as usize
}

/// Bytes a record with a body of `body_bytes` takes in the ring: whole lines.
#[must_use]
#[inline]
pub const fn record_span(body_bytes: usize) -> usize {
    (COMMIT_BYTES + body_bytes).next_multiple_of(LINE_BYTES)
}

/// The longest body a record may have in a ring of `ring_bytes`: half the ring, less the commit word.
///
/// Half, because the consumer may hold back up to a quarter of the ring before it says what it has
/// read, and a producer that waits for space must be able to get it from what is left.
#[must_use]
pub const fn body_bytes_max(ring_bytes: u32) -> usize {
    ring_bytes as usize / 2 - COMMIT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_span_counts_commit_and_rounds_to_lines() {
        assert_eq!(record_span(0), 64);
        assert_eq!(record_span(56), 64);
        assert_eq!(record_span(57), 128);
        assert_eq!(record_span(88), 128);
    }

    #[test]
    fn ring_bytes_must_be_a_power_of_two_within_bounds() {
        assert!(is_ring_bytes(256 * 1024));
        assert!(!is_ring_bytes(0));
        assert!(!is_ring_bytes(32 * 1024));
        assert!(!is_ring_bytes(100_000));
        assert!(!is_ring_bytes(128 * 1024 * 1024));
    }
}
