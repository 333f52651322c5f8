//! The writing end of a ring.

use crate::layout::{self, COMMIT_BYTES, FIRST_LINE_BODY_BYTES, LINE_BYTES};
use crate::memory::{OwnMemory, PeerMemory};
use crate::sync::Ordering;

/// Lines that [`Producer::fetch_ahead`] takes: a 64-byte payload's second line, and the next
/// record's first.
const LINES_AHEAD: u64 = 2;

/// Writes records into this side's ring. See the module's invariants R1 to R3.
#[derive(Debug)]
pub struct Producer {
    own: OwnMemory,
    peer: PeerMemory,
    mask: u64,
    /// Where the next record starts.
    position: u64,
    /// How far the peer has read, as last seen: looked at first, so that the shared word is read
    /// only when the ring may be full.
    consumed: u64,
}

/// Why a record could not be reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReserveError {
    /// The peer has not read enough yet. Wait for space and try again.
    #[error("the ring is full until the peer reads")]
    Full,
    /// The body is longer than [`layout::body_bytes_max`] of this ring.
    #[error("a record of {body_bytes} bytes does not fit a ring whose records hold {max} at most")]
    TooLong {
        /// The length asked for, in bytes.
        body_bytes: usize,
        /// The most this ring takes, in bytes.
        max: usize,
    },
    /// The peer's `consumed` word is unaligned, went back, or is ahead of what was written.
    #[error("the peer says it has read up to {found}, which cannot be: {seen} to {written} can")]
    BadConsumed {
        /// The word as found.
        found: u64,
        /// The last good value.
        seen: u64,
        /// How far this side has written.
        written: u64,
    },
}

impl Producer {
    /// The writing end of the ring in `own`; the peer's progress is read from `peer`.
    #[must_use]
    pub fn new(own: OwnMemory, peer: PeerMemory) -> Producer {
        let mask = u64::from(own.ring_bytes()) - 1;
        Producer { own, peer, mask, position: 0, consumed: 0 }
    }

    /// Bytes of this side's ring.
    #[must_use]
    pub fn ring_bytes(&self) -> u32 {
        self.own.ring_bytes()
    }

    /// How far this side has written, in bytes since the connection began.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Reserves a record with a body of `body_bytes`, to be written in place and committed.
    /// Dropping the reservation publishes nothing.
    ///
    /// # Errors
    ///
    /// See [`ReserveError`].
    #[inline]
    pub fn reserve(&mut self, body_bytes: usize) -> Result<Reservation<'_>, ReserveError> {
        let span = self.make_room(body_bytes)?;
        Ok(Reservation { body_bytes, span, producer: self })
    }

    /// Writes and publishes one record in a single burst, the polled line last.
    ///
    /// # Errors
    ///
    /// See [`ReserveError`]; nothing was written then.
    #[inline]
    pub fn push(&mut self, body: &[u8]) -> Result<(), ReserveError> {
        let span = self.make_room(body.len())?;
        let at = self.offset(self.position);
        if let Some((first, later)) = body.split_first_chunk::<FIRST_LINE_BODY_BYTES>() {
            self.own.write(at + LINE_BYTES, later);
            self.clear_next(span);
            self.own.write(at + COMMIT_BYTES, first);
        } else {
            self.clear_next(span);
            self.own.write(at + COMMIT_BYTES, body);
        }
        self.publish(span);
        Ok(())
    }

    /// As [`Producer::push`], of a body that begins with 64-bit words, at most six, stored in this machine's byte order, each
    /// at once.
    ///
    /// # Errors
    ///
    /// See [`ReserveError`]; nothing was written then.
    #[inline(always)]
    pub fn push_words<const N: usize>(
        &mut self,
        head: [u64; N],
        tail: &[u8],
    ) -> Result<(), ReserveError> {
        const { assert!(8 * N < FIRST_LINE_BODY_BYTES) };
        let span = self.make_room(8 * N + tail.len())?;
        let at = self.offset(self.position);
        // Of a constant length where it can be: a few moves instead of a call.
        if let Some((first, later)) = tail.split_at_checked(FIRST_LINE_BODY_BYTES - 8 * N) {
            self.own.write(at + LINE_BYTES, later);
            self.clear_next(span);
            self.own.write(at + COMMIT_BYTES + 8 * N, first);
        } else {
            self.clear_next(span);
            self.own.write(at + COMMIT_BYTES + 8 * N, tail);
        }
        self.own.write_words(at + COMMIT_BYTES, head);
        self.publish(span);
        Ok(())
    }

    /// Whether a record of `body_bytes` would fit now; looks at the peer's word if need be.
    ///
    /// # Errors
    ///
    /// [`ReserveError::BadConsumed`] and [`ReserveError::TooLong`] only; full is `Ok(false)`.
    pub fn has_room(&mut self, body_bytes: usize) -> Result<bool, ReserveError> {
        match self.make_room(body_bytes) {
            Ok(_) => Ok(true),
            Err(ReserveError::Full) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the lines behind the next record's first one back from the peer's cache while there is
    /// time, so that the next burst does not wait for them. Call it when nothing more is to be
    /// published at once. The first line is left alone: the peer polls it.
    #[inline]
    pub fn fetch_ahead(&mut self) {
        for line in 1..=LINES_AHEAD {
            let position = self.position + line * LINE_BYTES as u64;
            if position + LINE_BYTES as u64 - self.consumed > self.mask + 1 {
                return;
            }
            self.own.prefetch_to_write(self.offset(position));
        }
    }

    #[inline(always)]
    fn make_room(&mut self, body_bytes: usize) -> Result<usize, ReserveError> {
        let max = layout::body_bytes_max(self.own.ring_bytes());
        if body_bytes > max {
            return Err(ReserveError::TooLong { body_bytes, max });
        }
        let span = layout::record_span(body_bytes);
        // One line more than the record: the next record's commit word is cleared with it.
        let end = self.position + (span + LINE_BYTES) as u64;
        if end - self.consumed > self.mask + 1 {
            self.look_at_consumed()?;
            if end - self.consumed > self.mask + 1 {
                return Err(ReserveError::Full);
            }
        }
        Ok(span)
    }

    #[cold]
    fn look_at_consumed(&mut self) -> Result<(), ReserveError> {
        // Acquire pairs with the release in `Consumer::publish` (R2).
        let found = self.peer.load(layout::CONSUMED, Ordering::Acquire);
        let plausible = (self.consumed..=self.position).contains(&found);
        if !plausible || !found.is_multiple_of(LINE_BYTES as u64) {
            let (seen, written) = (self.consumed, self.position);
            return Err(ReserveError::BadConsumed { found, seen, written });
        }
        self.consumed = found;
        Ok(())
    }

    #[inline(always)]
    fn offset(&self, position: u64) -> usize {
        layout::RING + (position & self.mask) as usize
    }

    #[inline(always)]
    fn clear_next(&mut self, span: usize) {
        let next = self.offset(self.position + span as u64);
        // Relaxed: the release of this record's commit word orders it (R1).
        self.own.store(next, 0, Ordering::Relaxed);
    }

    #[inline(always)]
    fn publish(&mut self, span: usize) {
        let end = self.position + span as u64;
        // Release pairs with the acquire in `Consumer::peek` (R1).
        self.own.store(self.offset(self.position), end, Ordering::Release);
        self.position = end;
    }
}

/// A record being written in place.
#[derive(Debug)]
#[must_use = "a reservation that is dropped publishes nothing"]
pub struct Reservation<'a> {
    producer: &'a mut Producer,
    body_bytes: usize,
    span: usize,
}

impl Reservation<'_> {
    /// Bytes of the body.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// Writes `bytes` at `at` bytes into the body. What is never written keeps the ring's old bytes.
    ///
    /// # Panics
    ///
    /// If `at + bytes.len()` is past the body.
    #[inline]
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.body_bytes && bytes.len() <= self.body_bytes - at);
        let offset = self.producer.offset(self.producer.position) + COMMIT_BYTES + at;
        self.producer.own.write(offset, bytes);
    }

    /// Publishes the record.
    #[inline]
    pub fn commit(self) {
        self.producer.clear_next(self.span);
        self.producer.publish(self.span);
    }

    /// Gives the reservation up; as dropping it.
    pub fn abort(self) {}
}
