//! Reading and writing memory that two processes see.
//!
//! The rules, stated once:
//!
//! 1. *Own* memory ([`OwnMemory`]) is written by this process alone: the peer's mapping of it is
//!    read-only, which the seals enforce. *Peer* memory ([`PeerMemory`]) is written by the peer at any
//!    time, also while it is being read, whatever the protocol says.
//! 2. A word is read by one atomic load into a local, then checked, then used: never read twice.
//! 3. Bytes of peer memory are copied out before they are looked at. No `&[u8]` to them exists, unless the
//!    application has said by [`CooperativePeers`] that its peers keep their hands off what they have lent.
//! 4. Every access is checked against the mapping's bounds, so no value a peer wrote can reach past
//!    it; seals keep the file from shrinking under the mapping.
//!
//! Under `cfg(loom)` the same two types stand for a model in which every line's first word is a loom
//! atomic and the rest a loom cell that reports data races.

#[cfg(loom)]
pub use model::{OwnMemory, PeerMemory, model_pair};
#[cfg(not(loom))]
pub use real::{CooperativePeers, OwnMemory, PeerMemory};
#[cfg(not(loom))]
pub(crate) use real::{OwnBulk, PeerBulk, PrivateBytes};

#[cfg(not(loom))]
mod real {
    use std::io;
    use std::os::fd::BorrowedFd;
    use std::ptr::NonNull;
    use std::sync::Arc;

    use crate::layout;
    use crate::mapping::{Access, Mapping};
    use crate::sync::{AtomicU64, Ordering};
    use crate::sys;

    /// A mapped segment: where it lies, how long its mapping and its ring are.
    #[derive(Clone, Debug)]
    struct View {
        /// `mapping.base()`, kept here so that the hot path follows no pointer to find it.
        base: NonNull<u8>,
        bytes: usize,
        ring_bytes: u32,
        _mapping: Arc<Mapping>,
    }

    impl View {
        fn new(file: BorrowedFd<'_>, ring_bytes: u32, access: Access) -> io::Result<View> {
            assert!(layout::is_ring_bytes(ring_bytes));
            let mapping = Mapping::doubled(file, layout::RING, ring_bytes as usize, access)?;
            Ok(View {
                base: mapping.base(),
                bytes: mapping.bytes(),
                ring_bytes,
                _mapping: Arc::new(mapping),
            })
        }

        #[inline]
        fn word(&self, offset: usize) -> &AtomicU64 {
            assert!(offset.is_multiple_of(8) && offset < self.bytes);
            let word = self.base.as_ptr().wrapping_add(offset).cast::<AtomicU64>();
            // SAFETY: in bounds and 8-aligned (asserted; the base is page-aligned), mapped while
            // `_mapping` lives, and accessed as a word only through atomics, by either process.
            unsafe { &*word }
        }

        /// The address of `bytes` bytes at `offset`.
        #[inline]
        fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
            assert!(offset <= self.bytes && bytes <= self.bytes - offset);
            self.base.as_ptr().wrapping_add(offset)
        }
    }

    // SAFETY: `base` points into `_mapping`, which is Send; accesses follow the rules above.
    unsafe impl Send for View {}
    // SAFETY: words are atomics; bytes are written only through `&mut OwnMemory`'s holder, the
    // ring's single producer, and read from peer memory by copying.
    unsafe impl Sync for View {}

    /// This side's segment, mapped for writing. The peer can only read it.
    #[derive(Clone, Debug)]
    pub struct OwnMemory(View);

    impl OwnMemory {
        /// Maps a file of [`layout::segment_bytes`] bytes for reading and writing.
        pub(crate) fn map(file: BorrowedFd<'_>, ring_bytes: u32) -> io::Result<OwnMemory> {
            View::new(file, ring_bytes, Access::ReadWrite).map(OwnMemory)
        }

        /// Asks for the line at `offset` to be brought near, to be written: a hint.
        #[inline]
        pub(crate) fn prefetch_to_write(&self, offset: usize) {
            sys::prefetch_to_write(self.0.at(offset, 0).cast_const());
        }

        /// Bytes of this segment's ring.
        #[must_use]
        pub fn ring_bytes(&self) -> u32 {
            self.0.ring_bytes
        }

        /// Stores one of this side's words.
        #[inline]
        pub(crate) fn store(&self, offset: usize, value: u64, ordering: Ordering) {
            self.0.word(offset).store(value, ordering);
        }

        /// Stores a slot of the returned-block list.
        pub(crate) fn store_slot(&self, n: u64, value: u64) {
            self.store(layout::returned_slot(n), value, Ordering::Relaxed);
        }

        /// Stores words side by side from `offset` on, each at once. As [`OwnMemory::write`].
        #[inline]
        pub(crate) fn write_words<const N: usize>(&mut self, offset: usize, words: [u64; N]) {
            for (n, word) in words.into_iter().enumerate() {
                self.store(offset + 8 * n, word, Ordering::Relaxed);
            }
        }

        /// Writes bytes. Only the ring's producer does, into lines that it has reserved: the peer
        /// does not read them before the commit word is published with release.
        #[inline]
        pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
            let to = self.0.at(offset, bytes.len());
            // SAFETY: `to` is in bounds for `bytes.len()` (checked by `at`) and writable; `bytes` is
            // private memory, so the two do not overlap; `&mut self` excludes another writer here.
            unsafe { bytes.as_ptr().copy_to_nonoverlapping(to, bytes.len()) };
        }
    }

    #[cfg(feature = "hostile")]
    impl OwnMemory {
        /// Stores any word of this side's segment, as a hostile peer of a test would: a multiple of
        /// 8 below [`layout::segment_bytes`].
        pub fn scribble(&self, offset: usize, value: u64) {
            self.store(offset, value, Ordering::Release);
        }
    }

    /// The peer's segment, mapped read-only.
    #[derive(Clone, Debug)]
    pub struct PeerMemory(View);

    impl PeerMemory {
        /// Maps a file whose seals, kind and length the caller has checked.
        pub(crate) fn map(file: BorrowedFd<'_>, ring_bytes: u32) -> io::Result<PeerMemory> {
            View::new(file, ring_bytes, Access::ReadOnly).map(PeerMemory)
        }

        /// Bytes of the peer's ring.
        #[must_use]
        pub fn ring_bytes(&self) -> u32 {
            self.0.ring_bytes
        }

        /// Loads one of the peer's words, once.
        #[inline]
        pub(crate) fn load(&self, offset: usize, ordering: Ordering) -> u64 {
            self.0.word(offset).load(ordering)
        }

        /// Loads a slot of the returned-block list, once.
        pub(crate) fn load_slot(&self, n: u64) -> u64 {
            self.load(layout::returned_slot(n), Ordering::Relaxed)
        }

        /// Asks for the line at `offset` to be brought near: a hint.
        #[inline]
        pub(crate) fn prefetch(&self, offset: usize) {
            sys::prefetch(self.0.at(offset, 0).cast_const());
        }

        /// Loads words that lie side by side from `offset` on, each at once and only once.
        #[inline]
        pub(crate) fn read_words<const N: usize>(&self, offset: usize) -> [u64; N] {
            std::array::from_fn(|n| self.load(offset + 8 * n, Ordering::Relaxed))
        }

        /// Copies bytes out. They are whatever the peer has there while the copy runs.
        #[inline]
        pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
            let from = self.0.at(offset, into.len()).cast_const();
            // SAFETY: in bounds (checked by `at`); `into` is private, so they do not overlap. A peer
            // that writes meanwhile is outside this program's memory model; any byte is a valid u8.
            unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
        }

        /// Copies `bytes` bytes out to the end of `into`, growing it as needed.
        #[inline]
        pub(crate) fn append(&self, offset: usize, bytes: usize, into: &mut Vec<u8>) {
            let from = self.0.at(offset, bytes).cast_const();
            into.reserve(bytes);
            let old = into.len();
            let to = into.spare_capacity_mut().as_mut_ptr().cast::<u8>();
            // SAFETY: `from` is in bounds for `bytes` (checked by `at`), and `to` has room for
            // `bytes` (reserved above); private memory, so they do not overlap.
            unsafe { from.copy_to_nonoverlapping(to, bytes) };
            // SAFETY: the copy above initialized `bytes` bytes behind `old`, within the capacity.
            unsafe { into.set_len(old + bytes) };
        }
    }

    /// Says that peers do not write to a block of bulk memory between lending it and having it back.
    ///
    /// With it, payloads in bulk memory are borrowed in place. Without it they are copied out.
    #[derive(Clone, Copy, Debug)]
    pub struct CooperativePeers(());

    impl CooperativePeers {
        /// Says so.
        ///
        /// # Safety
        ///
        /// Every peer of every connection that this is given to keeps to the protocol: it does not write to a
        /// block that it has lent before the block is returned. A peer that does changes bytes behind a
        /// `&[u8]`, which is undefined behaviour in this process.
        #[must_use]
        pub const unsafe fn assume() -> CooperativePeers {
            CooperativePeers(())
        }
    }

    /// A whole bulk segment of this side's, mapped for writing. The peer can only read it.
    #[derive(Debug)]
    pub(crate) struct OwnBulk(Mapping);

    impl OwnBulk {
        /// Maps the first `bytes` bytes of a file that is as long.
        pub(crate) fn map(file: BorrowedFd<'_>, bytes: usize) -> io::Result<OwnBulk> {
            Mapping::whole(file, bytes, Access::ReadWrite).map(OwnBulk)
        }

        /// The address of a stretch.
        fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
            assert!(offset <= self.0.bytes() && bytes <= self.0.bytes() - offset);
            self.0.base().as_ptr().wrapping_add(offset)
        }

        /// The bytes of a block of which `_whole` is the one and only handle (invariant B1 of
        /// [`crate::bulk`]), which is borrowed for as long.
        pub(crate) fn slice<'a, T>(
            &'a self,
            _whole: &'a T,
            offset: usize,
            bytes: usize,
        ) -> &'a [u8] {
            let from = self.at(offset, bytes).cast_const();
            // SAFETY: in bounds (checked by `at`), mapped while `self` lives, initialized (a memory file
            // begins as zeros). Nobody writes: the peer cannot, and here only the block's one handle could
            // (B1), which is borrowed.
            unsafe { std::slice::from_raw_parts(from, bytes) }
        }

        /// As [`OwnBulk::slice`], for writing.
        pub(crate) fn slice_mut<'a, T>(
            &'a self,
            _whole: &'a mut T,
            offset: usize,
            bytes: usize,
        ) -> &'a mut [u8] {
            let to = self.at(offset, bytes);
            // SAFETY: as in `slice`; the block's one handle (B1) is borrowed exclusively, so no other
            // reference to these bytes exists in this process. The peer may read them at any time, which is
            // outside this program's memory model and changes nothing here.
            unsafe { std::slice::from_raw_parts_mut(to, bytes) }
        }
    }

    /// Anonymous memory of this process alone, zeros at first.
    #[derive(Debug)]
    pub(crate) struct PrivateBytes(Mapping);

    impl PrivateBytes {
        pub(crate) fn map(bytes: usize) -> io::Result<PrivateBytes> {
            Mapping::private(bytes).map(PrivateBytes)
        }

        pub(crate) fn bytes(&self) -> usize {
            self.0.bytes()
        }

        pub(crate) fn slice(&self) -> &[u8] {
            let from = self.0.base().as_ptr().cast_const();
            // SAFETY: the whole mapping, which is this value's own (invariant M), initialized as zeros, and
            // written only through `&mut self`.
            unsafe { std::slice::from_raw_parts(from, self.0.bytes()) }
        }

        pub(crate) fn slice_mut(&mut self) -> &mut [u8] {
            let to = self.0.base().as_ptr();
            // SAFETY: as in `slice`, borrowed exclusively.
            unsafe { std::slice::from_raw_parts_mut(to, self.0.bytes()) }
        }
    }

    /// A whole bulk segment of the peer's, mapped read-only.
    #[derive(Debug)]
    pub(crate) struct PeerBulk(Mapping);

    impl PeerBulk {
        /// Maps a file whose seals, kind and length the caller has checked.
        pub(crate) fn map(file: BorrowedFd<'_>, bytes: usize) -> io::Result<PeerBulk> {
            Mapping::whole(file, bytes, Access::ReadOnly).map(PeerBulk)
        }

        fn at(&self, offset: usize, bytes: usize) -> *const u8 {
            assert!(offset <= self.0.bytes() && bytes <= self.0.bytes() - offset);
            self.0.base().as_ptr().wrapping_add(offset).cast_const()
        }

        /// Copies bytes out. They are whatever the peer has there while the copy runs.
        pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
            let from = self.at(offset, into.len());
            // SAFETY: in bounds (checked by `at`); `into` is private, so they do not overlap. A peer that
            // writes meanwhile is outside this program's memory model; any byte is a valid u8.
            unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
        }

        /// The bytes in place.
        pub(crate) fn slice(&self, _: CooperativePeers, offset: usize, bytes: usize) -> &[u8] {
            // SAFETY: in bounds (checked by `at`), mapped while `self` lives, initialized; that nobody
            // writes meanwhile is what the token's maker has promised.
            unsafe { std::slice::from_raw_parts(self.at(offset, bytes), bytes) }
        }

        /// Takes this process's hold off the pages; the bytes stay with the file.
        pub(crate) fn let_go(&self) {
            self.0.let_go();
        }
    }
}

#[cfg(loom)]
mod model {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    use crate::layout;
    use crate::sync::{AtomicU64, Ordering};

    /// One 64-byte line: its first word may be a commit word, so it is an atomic; the rest is plain.
    #[derive(Debug)]
    struct Line {
        first: AtomicU64,
        rest: UnsafeCell<[u8; layout::FIRST_LINE_BODY_BYTES]>,
    }

    #[derive(Debug)]
    struct Model {
        consumed: AtomicU64,
        armed: AtomicU64,
        freed: AtomicU64,
        /// The first slots of the returned-block list: no model gives more blocks back. Plain cells, so
        /// that a slot that is read while it is written is reported.
        returned: [UnsafeCell<u64>; 4],
        lines: Vec<Line>,
    }

    impl Model {
        fn line(&self, offset: usize) -> &Line {
            &self.lines[(offset - layout::RING) / layout::LINE_BYTES % self.lines.len()]
        }

        fn word(&self, offset: usize) -> &AtomicU64 {
            match offset {
                layout::CONSUMED => &self.consumed,
                layout::ARMED => &self.armed,
                layout::FREED => &self.freed,
                _ => {
                    assert!(offset % layout::LINE_BYTES == 0);
                    &self.line(offset).first
                }
            }
        }
    }

    /// Calls `piece(line offset, offset within the line, range of the bytes)` for each line touched.
    fn by_line(
        offset: usize,
        bytes: usize,
        mut piece: impl FnMut(usize, usize, core::ops::Range<usize>),
    ) {
        let mut done = 0;
        while done < bytes {
            let within = (offset + done) % layout::LINE_BYTES;
            let end = if within < layout::COMMIT_BYTES {
                layout::COMMIT_BYTES
            } else {
                layout::LINE_BYTES
            };
            let take = (end - within).min(bytes - done);
            piece(offset + done - within, within, done..done + take);
            done += take;
        }
    }

    /// The writable end of a modelled segment.
    #[derive(Clone, Debug)]
    pub struct OwnMemory(Arc<Model>);

    /// The read-only end of a modelled segment.
    #[derive(Clone, Debug)]
    pub struct PeerMemory(Arc<Model>);

    /// A modelled segment with a ring of `lines` lines (a power of two), as its two ends.
    pub fn model_pair(lines: usize) -> (OwnMemory, PeerMemory) {
        assert!(lines.is_power_of_two());
        let line = || Line { first: AtomicU64::new(0), rest: UnsafeCell::new([0; 56]) };
        let model = Arc::new(Model {
            consumed: AtomicU64::new(0),
            armed: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            returned: std::array::from_fn(|_| UnsafeCell::new(0)),
            lines: (0..lines).map(|_| line()).collect(),
        });
        (OwnMemory(Arc::clone(&model)), PeerMemory(model))
    }

    impl OwnMemory {
        /// Nothing: a hint changes no value.
        pub(crate) fn prefetch_to_write(&self, _offset: usize) {}

        /// Bytes of the modelled ring.
        #[must_use]
        pub fn ring_bytes(&self) -> u32 {
            (self.0.lines.len() * layout::LINE_BYTES) as u32
        }

        pub(crate) fn store(&self, offset: usize, value: u64, ordering: Ordering) {
            self.0.word(offset).store(value, ordering);
        }

        /// Stores a slot of the returned-block list.
        pub(crate) fn store_slot(&self, n: u64, value: u64) {
            self.0.returned[n as usize % 4].with_mut(|slot| {
                // SAFETY: loom reports any concurrent access to the cell before this runs.
                unsafe { *slot = value };
            });
        }

        pub(crate) fn write_words<const N: usize>(&mut self, offset: usize, words: [u64; N]) {
            for (n, word) in words.into_iter().enumerate() {
                self.write(offset + 8 * n, &word.to_le_bytes());
            }
        }

        pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
            by_line(offset, bytes.len(), |line, within, range| {
                let line = self.0.line(line);
                if within < layout::COMMIT_BYTES {
                    let mut word = line.first.load(Ordering::Relaxed).to_le_bytes();
                    word[within..within + range.len()].copy_from_slice(&bytes[range]);
                    line.first.store(u64::from_le_bytes(word), Ordering::Relaxed);
                } else {
                    let at = within - layout::COMMIT_BYTES;
                    line.rest.with_mut(|rest| {
                        // SAFETY: loom reports any concurrent access to the cell before this runs.
                        let rest = unsafe { &mut *rest };
                        rest[at..at + range.len()].copy_from_slice(&bytes[range]);
                    });
                }
            });
        }
    }

    impl PeerMemory {
        /// Nothing: a hint changes no value.
        pub(crate) fn prefetch(&self, _offset: usize) {}

        /// Bytes of the modelled ring.
        #[must_use]
        pub fn ring_bytes(&self) -> u32 {
            (self.0.lines.len() * layout::LINE_BYTES) as u32
        }

        pub(crate) fn load(&self, offset: usize, ordering: Ordering) -> u64 {
            self.0.word(offset).load(ordering)
        }

        /// Loads a slot of the returned-block list.
        pub(crate) fn load_slot(&self, n: u64) -> u64 {
            self.0.returned[n as usize % 4].with(|slot| {
                // SAFETY: loom reports any concurrent write to the cell before this runs.
                unsafe { *slot }
            })
        }

        pub(crate) fn read_words<const N: usize>(&self, offset: usize) -> [u64; N] {
            std::array::from_fn(|n| {
                let mut word = [0; 8];
                self.read(offset + 8 * n, &mut word);
                u64::from_le_bytes(word)
            })
        }

        pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
            by_line(offset, into.len(), |line, within, range| {
                let line = self.0.line(line);
                if within < layout::COMMIT_BYTES {
                    let word = line.first.load(Ordering::Relaxed).to_le_bytes();
                    into[range.clone()].copy_from_slice(&word[within..within + range.len()]);
                } else {
                    let at = within - layout::COMMIT_BYTES;
                    line.rest.with(|rest| {
                        // SAFETY: loom reports any concurrent write to the cell before this runs.
                        let rest = unsafe { &*rest };
                        into[range.clone()].copy_from_slice(&rest[at..at + range.len()]);
                    });
                }
            });
        }

        pub(crate) fn append(&self, offset: usize, bytes: usize, into: &mut Vec<u8>) {
            let old = into.len();
            into.resize(old + bytes, 0);
            self.read(offset, &mut into[old..]);
        }
    }
}
