//! Bulk memory: blocks for payloads that are too long for a ring.
//!
//! A side that sends owns its blocks. They stand in *bulk segments*, memory files of their own that are made
//! on demand, sealed, and mapped read-only by the peer. All blocks of a segment have one length, a power of
//! two. Which block is free is private to the owner ([`BlockPool`]); the peer gives a block back by writing
//! its number into the returned-block list of *its own* segment ([`Returns`]).
//!
//! Invariant B1 (one handle): a block is free, or has exactly one [`OwnBlock`], or is lent to the peer. Only the
//! [`OwnBlock`] gives access to its bytes here, and lending ends that access.
//!
//! Invariant B2 (return): a slot of the returned-block list is written before the cursor `freed` is stored with
//! release, and read after it was loaded with acquire. At most [`layout::RETURNED_SLOTS`] blocks are lent at
//! a time, so a slot has been read before it is written again: its number stands for a block that is lent
//! anew only after the reading.
//!
//! Invariant B3 (distrust): a number in the list is believed only if it is of a block that is lent. Anything
//! else is misbehaviour and ends the connection. A peer that never returns blocks uses up its own side's
//! cap, nothing more.

#[cfg(not(loom))]
mod peer;
#[cfg(not(loom))]
mod pool;
mod returns;

#[cfg(not(loom))]
pub use peer::{PeerBlock, PeerSegment};
#[cfg(not(loom))]
pub use pool::{BlockPool, FreshSegment, OwnBlock, TakeError};
pub use returns::{BadFreed, ReturnedBlocks, Returns};

#[cfg(not(loom))]
use crate::layout;

/// How a bulk segment is divided: what its announcement says.
#[cfg(not(loom))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BulkShape {
    /// Bytes of each block: see [`layout::is_block_bytes`].
    pub block_bytes: usize,
    /// Blocks: 1 to [`layout::RETURNED_SLOTS`].
    pub blocks: u32,
}

#[cfg(not(loom))]
impl BulkShape {
    /// Bytes of the segment, if there can be one like this.
    #[must_use]
    pub fn bytes(&self) -> Option<usize> {
        let blocks = self.blocks as usize;
        let fits = (1..=layout::RETURNED_SLOTS).contains(&blocks);
        let fits = fits && layout::is_block_bytes(self.block_bytes);
        if fits { self.block_bytes.checked_mul(blocks) } else { None }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
