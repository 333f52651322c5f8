//! Descriptors to send to a peer: good ones, and every wrong kind.

use std::io::Write;
use std::os::fd::OwnedFd;

use lapwing_shm::{OwnMemory, Segment, layout};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;
pub use rustix::fs::SealFlags;
use rustix::pipe::{PipeFlags, pipe_with};

/// The seals a segment must have.
pub const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// Bytes of a segment's file with a ring of `ring_bytes`.
#[must_use]
pub fn segment_bytes(ring_bytes: u32) -> u64 {
    layout::segment_bytes(ring_bytes) as u64
}

/// A good segment: its memory, and the file to send.
#[must_use]
pub fn sealed_segment(ring_bytes: u32) -> (OwnMemory, OwnedFd) {
    Segment::create(ring_bytes).expect("a segment can be made").export()
}

/// A memory file of any length with any seals.
#[must_use]
pub fn memory_file(bytes: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("lapwing-test", flags).expect("a memory file can be made");
    rustix::fs::ftruncate(&file, bytes).expect("it can be sized");
    rustix::fs::fcntl_add_seals(&file, seals).expect("it can be sealed");
    file
}

/// A good doorbell.
#[must_use]
pub fn doorbell() -> OwnedFd {
    eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd can be made")
}

/// A file on disk without a name, of this many bytes.
#[must_use]
pub fn regular_file(bytes: u64) -> OwnedFd {
    let mut file = tempfile::tempfile().expect("a temporary file can be made");
    file.write_all(b"not memory").expect("it can be written");
    file.set_len(bytes).expect("it can be sized");
    file.into()
}

/// The two ends of a pipe: for reading, for writing.
#[must_use]
pub fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).expect("a pipe can be made")
}
