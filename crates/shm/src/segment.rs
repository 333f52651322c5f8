//! Segments: sealed memory files, made here or taken from a peer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::layout;
use crate::memory::{OwnMemory, PeerMemory};
use crate::sys::{self, SealFault};

/// Why a segment could not be made or taken.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The ring length is no power of two within the bounds of [`layout`].
    #[error(
        "a ring of {0} bytes cannot be: it must be a power of two from {min} to {max}",
        min = layout::RING_BYTES_MIN,
        max = layout::RING_BYTES_MAX
    )]
    RingBytes(u32),
    /// The kernel refuses to seal a file whose pages it holds.
    #[error(
        "the segment could not be sealed because the kernel holds its pages; set \
         /sys/kernel/mm/transparent_hugepage/shmem_enabled to 'never' or 'advise'"
    )]
    SealBusy,
    /// The peer's file is not a memory file.
    #[error("the peer's segment is not a memory file that can be sealed")]
    NotMemoryFile,
    /// The peer's file lacks seals.
    #[error("the peer's segment is not sealed as it must be (missing seals: {0:#x})")]
    Unsealed(u32),
    /// A bulk segment cannot be divided so.
    #[error("blocks must be a power of two from 64 KiB to 1 GiB long, and 1 to 1024 of them")]
    Shape,
    /// The peer's file has not exactly the agreed length.
    #[error("the peer's segment has {found} bytes and must have {expected}")]
    Length {
        /// What it has, in bytes.
        found: u64,
        /// What the agreed ring length asks for, in bytes.
        expected: usize,
    },
    /// The kernel said no.
    #[error("the kernel refused the segment: {0}")]
    Io(#[from] io::Error),
}

/// This side's segment: mapped for writing here, sealed, and ready to be sent to the peer.
#[derive(Debug)]
pub struct Segment {
    memory: OwnMemory,
    file: OwnedFd,
}

impl Segment {
    /// Makes a segment with a ring of `ring_bytes`: created, sized, mapped, then sealed, so that
    /// this mapping stays the only writable one there can ever be.
    ///
    /// # Errors
    ///
    /// [`SegmentError::RingBytes`], [`SegmentError::SealBusy`], or what the kernel says.
    pub fn create(ring_bytes: u32) -> Result<Segment, SegmentError> {
        if !layout::is_ring_bytes(ring_bytes) {
            return Err(SegmentError::RingBytes(ring_bytes));
        }
        let bytes = layout::segment_bytes(ring_bytes);
        let file = sys::memory_file(bytes)?;
        let memory = OwnMemory::map(file.as_fd(), ring_bytes)?;
        sys::seal(file.as_fd()).map_err(|fault| seal_error(fault, bytes))?;
        Ok(Segment { memory, file })
    }

    /// The memory, and the file descriptor to send to the peer. Once it is sent it can be closed.
    #[must_use]
    pub fn export(self) -> (OwnMemory, OwnedFd) {
        (self.memory, self.file)
    }
}

impl PeerMemory {
    /// Maps a segment that a peer sent, after checking its kind, seals and length. The descriptor
    /// is closed; the mapping stays.
    ///
    /// # Errors
    ///
    /// [`SegmentError`] says what is wrong with it.
    // By value on purpose: whatever happens, the descriptor is closed here.
    #[expect(clippy::needless_pass_by_value)]
    pub fn import(file: OwnedFd, ring_bytes: u32) -> Result<PeerMemory, SegmentError> {
        if !layout::is_ring_bytes(ring_bytes) {
            return Err(SegmentError::RingBytes(ring_bytes));
        }
        let bytes = layout::segment_bytes(ring_bytes);
        sys::check_sealed(file.as_fd(), bytes).map_err(|fault| seal_error(fault, bytes))?;
        Ok(PeerMemory::map(file.as_fd(), ring_bytes)?)
    }
}

/// The error for a file that must be `expected` bytes long.
pub(crate) fn seal_error(fault: SealFault, expected: usize) -> SegmentError {
    match fault {
        SealFault::Busy => SegmentError::SealBusy,
        SealFault::NotMemoryFile => SegmentError::NotMemoryFile,
        SealFault::Missing(seals) => SegmentError::Unsealed(seals),
        SealFault::Length(found) => SegmentError::Length { found, expected },
        SealFault::Io(error) => SegmentError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, SealFlags};

    const RING: u32 = 64 * 1024;

    fn plain_file(bytes: u64, seals: SealFlags) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&file, bytes).unwrap();
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        file
    }

    #[test]
    fn exported_segment_imports_and_cannot_be_changed_by_the_peer() {
        let (_own, file) = Segment::create(RING).unwrap().export();
        let copy = file.try_clone().unwrap();
        PeerMemory::import(file, RING).unwrap();
        assert!(rustix::fs::ftruncate(&copy, 0).is_err(), "no shrinking");
        assert!(rustix::fs::ftruncate(&copy, 1 << 30).is_err(), "no growing");
        assert!(rustix::io::write(&copy, b"x").is_err(), "no writing");
        let writable = OwnMemory::map(copy.as_fd(), RING);
        assert!(writable.is_err(), "no second writable mapping");
    }

    #[test]
    fn import_refuses_unsealed_short_oversized_and_foreign_files() {
        let bytes = layout::segment_bytes(RING) as u64;
        let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        let unsealed = plain_file(bytes, SealFlags::empty());
        assert!(matches!(PeerMemory::import(unsealed, RING), Err(SegmentError::Unsealed(_))));
        let shrinkable = plain_file(bytes, all.difference(SealFlags::SHRINK));
        assert!(matches!(PeerMemory::import(shrinkable, RING), Err(SegmentError::Unsealed(2))));
        for wrong in [0, bytes - 1, bytes + 1, bytes * 2] {
            let error = PeerMemory::import(plain_file(wrong, all), RING).unwrap_err();
            assert!(matches!(error, SegmentError::Length { found, .. } if found == wrong));
        }
        let (socket, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let foreign = PeerMemory::import(socket.into(), RING);
        assert!(matches!(foreign, Err(SegmentError::NotMemoryFile)));
    }

    #[test]
    fn ring_length_out_of_bounds_is_refused_before_anything_is_made() {
        assert!(matches!(Segment::create(1000), Err(SegmentError::RingBytes(1000))));
        let file = plain_file(4096, SealFlags::empty());
        assert!(matches!(PeerMemory::import(file, 0), Err(SegmentError::RingBytes(0))));
    }
}
