//! What the machine itself costs, as the floor that every latency is compared with.
//!
//! [`LineFloor`] hands one cache line to and fro between two processes, or some in one direction, by words that both
//! write: no protocol between two cores can be faster. It is the one place where a word has two writers, and no
//! connection uses it. [`CopyFloor`] is memory that two processes copy bytes through, with nothing around it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::mapping::{Access, Mapping};
use crate::memory::{OwnBulk, PeerBulk};
use crate::sync::Ordering;
use crate::{layout, sys};

/// Bytes of the lines' file: a page.
const BYTES: usize = 4096;

/// Looks at a line, some 30 us, before the core is offered to whoever else wants it. Two processes that the system has put
/// on one core would otherwise each look for their whole time slice at what the other cannot write meanwhile.
const LOOKS: u32 = 1 << 16;

/// Lines that can be on their way at once in [`LineFloor::tell`].
pub const LINES: u64 = layout::PAGE_LINES as u64;

/// Words, a line each, that two processes hand to each other.
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
        self.mapping.line(0).store(2 * n + 1, Ordering::Release);
        self.look(0, |value| value == 2 * n + 2);
    }

    /// The other side of [`LineFloor::ping`].
    #[inline]
    pub fn answer(&self, n: u64) {
        self.wait(n);
        self.hand_back(n);
    }

    /// The first half of [`LineFloor::answer`]: what the other side wrote before its ping can be read then.
    #[inline]
    pub fn wait(&self, n: u64) {
        self.look(0, |value| value == 2 * n + 1);
    }

    /// The second half of [`LineFloor::answer`].
    #[inline]
    pub fn hand_back(&self, n: u64) {
        self.mapping.line(0).store(2 * n + 2, Ordering::Release);
    }

    /// Makes all lines empty, for [`LineFloor::tell`].
    pub fn clear(&self) {
        (0..LINES).for_each(|n| self.mapping.line(n).store(0, Ordering::Release));
    }

    /// Hands over what `value` says, not 0, as the `n`th, in a line of its own, once the other side has taken what was
    /// there: [`LINES`] before. `n` counts up from 0 after [`LineFloor::clear`], on both sides alike.
    #[inline]
    pub fn tell(&self, n: u64, value: impl FnOnce() -> u64) {
        self.look(n, |value| value == 0);
        self.mapping.line(n).store(value(), Ordering::Release);
    }

    /// Takes the `n`th that [`LineFloor::tell`] hands over.
    #[inline]
    pub fn hear(&self, n: u64) -> u64 {
        let value = self.look(n, |value| value != 0);
        self.mapping.line(n).store(0, Ordering::Release);
        value
    }

    /// Looks at the `n`th line until it holds what is wanted; what it holds then.
    #[inline]
    fn look(&self, n: u64, is_wanted: impl Fn(u64) -> bool) -> u64 {
        let line = self.mapping.line(n);
        loop {
            // No `pause`: it would cost more than the line's way.
            for _ in 0..LOOKS {
                let value = line.load(Ordering::Acquire);
                if is_wanted(value) {
                    return value;
                }
            }
            std::thread::yield_now();
        }
    }
}

/// Bytes that one side writes to, at most: as many as the blocks of a steady flow take
/// ([`crate::bulk`]), or one of the longest.
const AREA_BYTES: usize = COPY_BYTES_MAX;

/// What the blocks of a message of at most so many bytes cycle through.
const CYCLE_BYTES: usize = 4 * 1024 * 1024;

/// The longest message that is copied, in bytes.
pub const COPY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Which half of the file a side writes to. It reads the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopySide {
    /// The one that made it.
    Offering,
    /// The one that opened it.
    Accepting,
}

/// Memory of two processes, half of it written by each, with as many blocks in turn as a connection's bulk
/// memory has.
///
/// Who may read and write when is said by a [`LineFloor`]: a message is put before the line is handed
/// over, and taken after it came.
#[derive(Debug)]
pub struct CopyFloor {
    own: OwnBulk,
    peer: PeerBulk,
    side: CopySide,
    /// The right to this side's half, which nobody else writes to.
    whole: (),
}

impl CopyFloor {
    /// Makes the file. Send the descriptor to the other process for [`CopyFloor::open`].
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn create() -> io::Result<(CopyFloor, OwnedFd)> {
        let file = sys::memory_file(2 * AREA_BYTES)?;
        Ok((CopyFloor::map(&file, CopySide::Offering)?, file))
    }

    /// Maps the file that the other process made. It must be trusted not to shrink it, and to keep to its half.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    // By value on purpose: the descriptor is closed here.
    #[expect(clippy::needless_pass_by_value)]
    pub fn open(file: OwnedFd) -> io::Result<CopyFloor> {
        CopyFloor::map(&file, CopySide::Accepting)
    }

    fn map(file: &OwnedFd, side: CopySide) -> io::Result<CopyFloor> {
        let own = OwnBulk::map(file.as_fd(), 2 * AREA_BYTES)?;
        let peer = PeerBulk::map(file.as_fd(), 2 * AREA_BYTES)?;
        Ok(CopyFloor { own, peer, side, whole: () })
    }

    /// Copies the `n`th message in.
    ///
    /// # Panics
    ///
    /// When it is longer than [`COPY_BYTES_MAX`].
    pub fn put(&mut self, n: u64, message: &[u8]) {
        let at = place(n, message.len()) + area(self.side == CopySide::Accepting);
        self.own.slice_mut(&mut self.whole, at, message.len()).copy_from_slice(message);
    }

    /// Copies the `n`th message of the other side out.
    ///
    /// # Panics
    ///
    /// As [`CopyFloor::put`].
    pub fn take(&self, n: u64, message: &mut [u8]) {
        let at = place(n, message.len()) + area(self.side == CopySide::Offering);
        self.peer.read(at, message);
    }
}

fn area(second: bool) -> usize {
    if second { AREA_BYTES } else { 0 }
}

/// Where the `n`th message stands in its area.
fn place(n: u64, bytes: usize) -> usize {
    assert!(bytes <= COPY_BYTES_MAX);
    let block_bytes = layout::block_bytes(bytes);
    let blocks = (CYCLE_BYTES / block_bytes).max(1);
    n as usize % blocks * block_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_both_sides_keep_apart_and_cycle_through_their_blocks() {
        let (mut near, file) = CopyFloor::create().unwrap();
        let mut far = CopyFloor::open(file).unwrap();
        for bytes in [1, 100_000, 1 << 20, COPY_BYTES_MAX] {
            for n in 0..6 {
                near.put(n, &vec![n as u8 + 1; bytes]);
                far.put(n, &vec![n as u8 + 101; bytes]);
                let mut taken = vec![0; bytes];
                far.take(n, &mut taken);
                assert!(taken == vec![n as u8 + 1; bytes], "{bytes} {n}");
                near.take(n, &mut taken);
                assert!(taken == vec![n as u8 + 101; bytes], "{bytes} {n}");
            }
        }
        assert_eq!((0..5).map(|n| place(n, 1 << 20) >> 20).collect::<Vec<_>>(), [0, 1, 2, 3, 0]);
    }

    #[test]
    fn lines_are_told_without_a_listener_as_far_as_there_are_some() {
        let (near, file) = LineFloor::create().unwrap();
        let far = LineFloor::open(file).unwrap();
        for lap in 0..2 {
            (LINES * lap..LINES * (lap + 1)).for_each(|n| near.tell(n, || n + 1));
            (LINES * lap..LINES * (lap + 1)).for_each(|n| assert_eq!(far.hear(n), n + 1));
        }
        near.tell(2 * LINES, || 1);
        far.clear();
        near.tell(0, || 2);
        assert_eq!(far.hear(0), 2);
    }
}
