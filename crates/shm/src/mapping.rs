//! Mapped memory: the only place that calls `mmap` and `munmap`.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::mm::{self, MapFlags, ProtFlags};

use crate::layout;
use crate::sync::AtomicU64;

/// A stretch of address space that is unmapped on drop.
///
/// Invariant M: `base..base + bytes` is reserved by this value alone and mapped, with the access
/// that its constructor says, from construction to drop; nothing else unmaps or remaps any of it.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping is plain address space with no thread affinity; `Mapping` itself offers no
// access to the bytes, which `memory.rs` does under its own rules.
unsafe impl Send for Mapping {}
// SAFETY: as above; the two accessors return copies of plain values.
unsafe impl Sync for Mapping {}

/// How a file is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

impl Mapping {
    /// Maps `head + ring` bytes of `file`, then its `ring` bytes at offset `head` a second time
    /// right behind, so that a record that crosses the ring's end is contiguous in addresses.
    ///
    /// `head` and `ring` are multiples of the page length and not zero; the file has at least
    /// `head + ring` bytes and cannot shrink (the caller has checked or set the seals).
    pub(crate) fn doubled(
        file: BorrowedFd<'_>,
        head: usize,
        ring: usize,
        access: Access,
    ) -> io::Result<Mapping> {
        let reserved = Mapping::reserve(head + 2 * ring)?;
        reserved.place(0, file, 0, head + ring, access)?;
        reserved.place(head + ring, file, head, ring, access)?;
        Ok(reserved)
    }

    /// Maps the first `bytes` of `file`, once. Same conditions as [`Mapping::doubled`].
    pub(crate) fn whole(file: BorrowedFd<'_>, bytes: usize, access: Access) -> io::Result<Mapping> {
        let reserved = Mapping::reserve(bytes)?;
        reserved.place(0, file, 0, bytes, access)?;
        Ok(reserved)
    }

    /// Maps `bytes` bytes of this process's own, readable and writable, zeros at first.
    pub(crate) fn private(bytes: usize) -> io::Result<Mapping> {
        Mapping::anonymous(bytes, ProtFlags::READ | ProtFlags::WRITE)
    }

    fn reserve(bytes: usize) -> io::Result<Mapping> {
        Mapping::anonymous(bytes, ProtFlags::empty())
    }

    fn anonymous(bytes: usize, protection: ProtFlags) -> io::Result<Mapping> {
        // SAFETY: a new anonymous mapping at an address the kernel picks touches no existing memory.
        let base =
            unsafe { mm::mmap_anonymous(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE)? };
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(Mapping { base, bytes })
    }

    fn place(
        &self,
        at: usize,
        file: BorrowedFd<'_>,
        offset: usize,
        bytes: usize,
        access: Access,
    ) -> io::Result<()> {
        assert!(at + bytes <= self.bytes);
        let protection = match access {
            Access::ReadOnly => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        let address = self.base.as_ptr().wrapping_add(at).cast();
        // SAFETY: `address..address + bytes` lies inside this value's own reservation (asserted
        // above, invariant M), so FIXED replaces only memory that nobody else uses.
        unsafe { mm::mmap(address, bytes, protection, flags, file, offset as u64)? };
        Ok(())
    }

    /// The first word of one of the first page's [`layout::PAGE_LINES`] lines, for the floor; lines are counted around.
    #[inline]
    pub(crate) fn line(&self, n: u64) -> &AtomicU64 {
        let at = n as usize % layout::PAGE_LINES * layout::LINE_BYTES;
        // SAFETY: a mapping is at least a page long, and `at` is within it.
        let line = unsafe { self.base.byte_add(at) };
        // SAFETY: on a line, mapped while `self` lives (invariant M), and accessed only as an atomic by either process.
        unsafe { line.cast::<AtomicU64>().as_ref() }
    }

    /// Takes this process's hold off the pages of a mapping that is read-only, so that they no longer count
    /// as its memory. The bytes stay with the file and are mapped again when they are looked at.
    pub(crate) fn let_go(&self) {
        let base = self.base.as_ptr().cast();
        // SAFETY: the range is mapped and this value's own (invariant M), and shared with a file: dropping
        // its page-table entries changes no byte that anybody reads. A failure only keeps the pages.
        let _ = unsafe { mm::madvise(base, self.bytes, mm::Advice::LinuxDontNeed) };
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: invariant M: the range is this value's own, and no reference into it outlives it
        // (`memory.rs` keeps the mapping alive by an `Arc` for as long as it hands out references).
        let unmapped = unsafe { mm::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of an own range cannot fail");
    }
}
