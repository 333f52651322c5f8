//! Bulk segments of the peer's, as this side reads them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::BulkShape;
use crate::buffer::Buffer;
use crate::memory::{CooperativePeers, PeerBulk};
use crate::segment::{SegmentError, seal_error};
use crate::sys;

/// A bulk segment that the peer has announced, mapped read-only.
#[derive(Debug)]
pub struct PeerSegment {
    memory: Arc<PeerBulk>,
    shape: BulkShape,
}

/// A payload in a block of the peer's, borrowed in place.
#[derive(Debug)]
pub struct PeerBlock {
    memory: Arc<PeerBulk>,
    token: CooperativePeers,
    at: usize,
    bytes: usize,
}

impl PeerSegment {
    /// Maps a segment that a peer sent, after checking its kind, seals and length. The descriptor is closed;
    /// the mapping stays.
    ///
    /// # Errors
    ///
    /// [`SegmentError`] says what is wrong with it.
    // By value on purpose: whatever happens, the descriptor is closed here.
    #[expect(clippy::needless_pass_by_value)]
    pub fn import(file: OwnedFd, shape: BulkShape) -> Result<PeerSegment, SegmentError> {
        let bytes = shape.bytes().ok_or(SegmentError::Shape)?;
        sys::check_sealed(file.as_fd(), bytes).map_err(|fault| seal_error(fault, bytes))?;
        let memory = Arc::new(PeerBulk::map(file.as_fd(), bytes)?);
        Ok(PeerSegment { memory, shape })
    }

    /// Bytes of the segment.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shape.bytes().unwrap_or(0)
    }

    /// Where a payload of `bytes` bytes in `block` begins.
    fn at(&self, block: u32, bytes: usize) -> Option<usize> {
        let fits = block < self.shape.blocks && bytes <= self.shape.block_bytes;
        fits.then(|| block as usize * self.shape.block_bytes)
    }

    /// Copies a payload out; `None` for a block that is not there, or a payload longer than its block.
    #[must_use]
    pub fn copy_out(&self, block: u32, bytes: usize) -> Option<Buffer> {
        let at = self.at(block, bytes)?;
        let mut copy = Buffer::zeroed(bytes);
        self.memory.read(at, copy.bytes_mut());
        Some(copy)
    }

    /// Borrows a payload in place; `None` as [`PeerSegment::copy_out`].
    #[must_use]
    pub fn borrow(&self, token: CooperativePeers, block: u32, bytes: usize) -> Option<PeerBlock> {
        let at = self.at(block, bytes)?;
        Some(PeerBlock { memory: Arc::clone(&self.memory), token, at, bytes })
    }

    /// Takes this process's hold off the segment's pages: they count as its owner's memory alone then.
    pub fn let_go(&self) {
        self.memory.let_go();
    }
}

impl PeerBlock {
    /// The payload.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.memory.slice(self.token, self.at, self.bytes)
    }
}
