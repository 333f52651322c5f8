//! What the machine itself costs, as the floor that every latency is compared with.
//!
//! [`LineFloor`] hands one cache line to and fro between two processes, by one word that both write: no
//! protocol between two cores can be faster. It is the one place where a word has two writers, and no
//! connection uses it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::mapping::{Access, Mapping};
use crate::sync::Ordering;
use crate::sys;

/// Bytes of the floor's file: a page.
const BYTES: usize = 4096;

/// A word that two processes hand to each other.
#[derive(Debug)]
pub struct LineFloor {
    mapping: Mapping,
}

impl LineFloor {
    /// Makes the shared page. Send the descriptor to the other process for [`LineFloor::open`].
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn create() -> io::Result<(LineFloor, OwnedFd)> {
        let file = sys::memory_file(BYTES)?;
        let mapping = Mapping::whole(file.as_fd(), BYTES, Access::ReadWrite)?;
        Ok((LineFloor { mapping }, file))
    }

    /// Maps the page that the other process made. It must be trusted not to shrink it.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    // By value on purpose: the descriptor is closed here.
    #[expect(clippy::needless_pass_by_value)]
    pub fn open(file: OwnedFd) -> io::Result<LineFloor> {
        let mapping = Mapping::whole(file.as_fd(), BYTES, Access::ReadWrite)?;
        Ok(LineFloor { mapping })
    }

    /// One round trip: hands the line over as `2n + 1` and waits for `2n + 2`. `n` counts up from 0
    /// over the life of the page, on both sides alike.
    #[inline]
    pub fn ping(&self, n: u64) {
        self.mapping.word().store(2 * n + 1, Ordering::Release);
        // No `pause`: it would cost more than the line's way.
        while self.mapping.word().load(Ordering::Acquire) != 2 * n + 2 {}
    }

    /// The other side of [`LineFloor::ping`].
    #[inline]
    pub fn answer(&self, n: u64) {
        while self.mapping.word().load(Ordering::Acquire) != 2 * n + 1 {}
        self.mapping.word().store(2 * n + 2, Ordering::Release);
    }
}
