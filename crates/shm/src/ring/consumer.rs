//! The reading end of a ring.

use crate::layout::{self, COMMIT_BYTES, LINE_BYTES};
use crate::memory::{OwnMemory, PeerMemory};
use crate::sync::Ordering;

/// Reads records from the peer's ring. See the module's invariants R1 to R3.
#[derive(Debug)]
pub struct Consumer {
    peer: PeerMemory,
    own: OwnMemory,
    mask: u64,
    /// Where the next record is expected.
    position: u64,
    /// The value of this side's `consumed` word.
    published: u64,
}

/// A commit word that no honest producer writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadCommit {
    /// Not a multiple of 64.
    #[error("commit word {commit} at position {position} is not on a line")]
    Unaligned {
        /// Where the word stands.
        position: u64,
        /// The word.
        commit: u64,
    },
    /// At or before its own record.
    #[error("commit word {commit} at position {position} lies behind its own record")]
    Behind {
        /// Where the word stands.
        position: u64,
        /// The word.
        commit: u64,
    },
    /// More than one ring ahead.
    #[error("commit word {commit} at position {position} is more than a lap ahead")]
    LapAhead {
        /// Where the word stands.
        position: u64,
        /// The word.
        commit: u64,
    },
}

impl Consumer {
    /// The reading end of the ring in `peer`; progress is published in `own`.
    #[must_use]
    pub fn new(own: OwnMemory, peer: PeerMemory) -> Consumer {
        let mask = u64::from(peer.ring_bytes()) - 1;
        Consumer { peer, own, mask, position: 0, published: 0 }
    }

    /// How far this side has read, in bytes since the connection began.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether something stands at the next position; nothing is checked. For polling.
    ///
    /// Prefetches the line behind as well: where a record has a second line, it is then on its way to
    /// this core while the first is still being published, instead of after it. Not by a load: the one
    /// that is polled could not retire before it (`docs/memory.md`, section 4).
    #[must_use]
    #[inline]
    pub fn has_record(&self) -> bool {
        let behind = self.position + LINE_BYTES as u64;
        self.peer.prefetch(layout::RING + (behind & self.mask) as usize);
        self.commit_word() != 0
    }

    /// The next record, or `None` when the ring is empty.
    ///
    /// # Errors
    ///
    /// [`BadCommit`] when the commit word cannot be true (R3). The connection must end.
    #[inline(always)]
    pub fn peek(&mut self) -> Result<Option<Record<'_>>, BadCommit> {
        let commit = self.commit_word();
        if commit == 0 {
            return Ok(None);
        }
        let position = self.position;
        let span = commit.wrapping_sub(position);
        // One comparison covers behind (wraps to huge), equal (wraps below) and a lap ahead.
        if span.wrapping_sub(1) > self.mask || !commit.is_multiple_of(LINE_BYTES as u64) {
            return Err(judge(position, commit));
        }
        Ok(Some(Record { span: span as usize, consumer: self }))
    }

    /// Whether one of the next records, at most so many, has a body whose first 64-bit word `holds` says yes to. Nothing
    /// is checked but that commit words go on: a hint, to decide in which order records are read.
    #[must_use]
    pub fn any_ahead(&self, records: usize, mut holds: impl FnMut(u64) -> bool) -> bool {
        let mut position = self.position;
        for _ in 0..records {
            let at = layout::RING + (position & self.mask) as usize;
            // Acquire pairs with the release in `Producer::publish` (R1).
            let commit = self.peer.load(at, Ordering::Acquire);
            let ahead = commit.wrapping_sub(self.position);
            let is_next = commit > position && ahead <= self.mask + 1;
            if !is_next || !commit.is_multiple_of(LINE_BYTES as u64) {
                return false;
            }
            let [first] = self.peer.read_words(at + COMMIT_BYTES);
            if holds(first) {
                return true;
            }
            position = commit;
        }
        false
    }

    /// The peer's words that tell of room: how far it has read, and how many blocks it has given back. Nothing is
    /// checked: who waits for room compares them with what they were, and then looks properly.
    #[must_use]
    #[inline]
    pub fn peer_progress(&self) -> (u64, u64) {
        // Relaxed: `Producer::look_at_consumed` and `Lent::look` load them again, with acquire.
        let word = |offset| self.peer.load(offset, Ordering::Relaxed);
        (word(layout::CONSUMED), word(layout::FREED))
    }

    #[inline]
    fn commit_word(&self) -> u64 {
        // Acquire pairs with the release in `Producer::publish` (R1).
        self.peer.load(self.offset(), Ordering::Acquire)
    }

    #[inline]
    fn offset(&self) -> usize {
        layout::RING + (self.position & self.mask) as usize
    }

    /// Tells the producer how far this side has read, if it does not know yet. Do so before
    /// sleeping; [`Record::release`] does it every quarter of the ring.
    ///
    /// Returns whether anything was published: then look whether the peer sleeps (it may wait for
    /// space).
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.position {
            return false;
        }
        self.published = self.position;
        // Release pairs with the acquire in `Producer::look_at_consumed` (R2).
        self.own.store(layout::CONSUMED, self.position, Ordering::Release);
        true
    }
}

#[cold]
fn judge(position: u64, commit: u64) -> BadCommit {
    if !commit.is_multiple_of(LINE_BYTES as u64) {
        BadCommit::Unaligned { position, commit }
    } else if commit <= position {
        BadCommit::Behind { position, commit }
    } else {
        BadCommit::LapAhead { position, commit }
    }
}

/// A record that stands in the peer's ring. Its bytes can only be copied out.
///
/// Dropped without [`Record::release`] it stays the next record.
#[derive(Debug)]
pub struct Record<'a> {
    consumer: &'a mut Consumer,
    span: usize,
}

impl Record<'_> {
    /// Bytes this record takes in the ring, commit word and padding included.
    #[must_use]
    #[inline]
    pub fn span(&self) -> usize {
        self.span
    }

    /// The most the body can hold: the span without the commit word. The true length is said by the
    /// body itself, and must give this very span.
    #[must_use]
    #[inline]
    pub fn body_bytes_max(&self) -> usize {
        self.span - COMMIT_BYTES
    }

    /// Loads words of 64 bits of the body, from the multiple of 8 `at` on, in this machine's byte order, each once.
    ///
    /// # Panics
    ///
    /// If they are not all within the record.
    #[must_use]
    #[inline(always)]
    pub fn read_words<const N: usize>(&self, at: usize) -> [u64; N] {
        assert!(at + 8 * N <= self.body_bytes_max());
        self.consumer.peer.read_words(self.consumer.offset() + COMMIT_BYTES + at)
    }

    /// Copies body bytes from `at` on into `into`.
    ///
    /// # Panics
    ///
    /// If `at + into.len()` is past the record.
    #[inline]
    pub fn read(&self, at: usize, into: &mut [u8]) {
        assert!(at <= self.body_bytes_max() && into.len() <= self.body_bytes_max() - at);
        self.consumer.peer.read(self.consumer.offset() + COMMIT_BYTES + at, into);
    }

    /// Copies `bytes` body bytes from `at` on to the end of `into`.
    ///
    /// # Panics
    ///
    /// If `at + bytes` is past the record.
    #[inline(always)]
    pub fn append(&self, at: usize, bytes: usize, into: &mut Vec<u8>) {
        assert!(at <= self.body_bytes_max() && bytes <= self.body_bytes_max() - at);
        self.consumer.peer.append(self.consumer.offset() + COMMIT_BYTES + at, bytes, into);
    }

    /// Gives the record's space back and goes on to the next. Every quarter of the ring this tells
    /// the producer; then `true` is returned, and the caller looks whether the peer sleeps.
    #[inline(always)]
    pub fn release(self) -> bool {
        let consumer = self.consumer;
        consumer.position += self.span as u64;
        if consumer.position - consumer.published > consumer.mask / 4 {
            return consumer.publish();
        }
        false
    }
}
