//! Bytes of a message: copied out of the transport, or in a block of bulk memory.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;

use lapwing_proto::Header;
use lapwing_shm::OwnBlock;

use crate::bulk::Long;

/// Frame buffers that a thread keeps for reuse: the window of a stream in items, and a few calls.
const KEPT_BUFFERS: usize = 72;

/// The largest buffer kept, in bytes; larger ones are freed.
const KEPT_BYTES: usize = 80 * 1024;

/// The most that a thread keeps in all, in bytes.
const KEPT_BYTES_IN_ALL: usize = 8 * KEPT_BYTES;

/// Buffers for reuse.
struct Kept {
    buffers: Vec<Vec<u8>>,
    /// Capacities of all.
    bytes: usize,
}

impl Kept {
    #[inline]
    fn take(&mut self) -> Option<Vec<u8>> {
        let buffer = self.buffers.pop()?;
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    #[inline]
    fn keep(&mut self, buffer: Vec<u8>) {
        let bytes = self.bytes + buffer.capacity();
        if self.buffers.len() < KEPT_BUFFERS && bytes <= KEPT_BYTES_IN_ALL {
            self.bytes = bytes;
            self.buffers.push(buffer);
        }
    }
}

thread_local! {
    /// Buffers of payloads that were dropped on this thread. A thread that receives and drops, as a
    /// client's and an inline server's do, allocates nothing; payloads that are dropped elsewhere take
    /// their buffers along.
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept { buffers: Vec::new(), bytes: 0 }) };
}

/// The payload of a request or a reply.
///
/// Its buffer goes back to the thread it is dropped on, so that a steady flow of calls allocates
/// nothing.
///
/// A payload that came through bulk memory holds a copy, or with
/// [`CooperativePeers`](crate::CooperativePeers) the sender's block itself, which goes back to it when the
/// payload is dropped.
pub struct Payload {
    bytes: Vec<u8>,
    /// Bytes in front of the payload: a frame's header, or none.
    start: usize,
    /// Where a long payload is; then `bytes` is empty.
    long: Option<Box<Long>>,
}

impl Payload {
    /// An empty payload.
    #[must_use]
    pub const fn empty() -> Payload {
        Payload { bytes: Vec::new(), start: 0, long: None }
    }

    /// The bytes.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.long {
            None => &self.bytes[self.start..],
            Some(long) => long.bytes(),
        }
    }

    /// The bytes in a vector of their own.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<u8> {
        let whole = self.start == 0 && self.long.is_none();
        if whole { std::mem::take(&mut self.bytes) } else { self.bytes().to_vec() }
    }

    /// An empty buffer of this thread's, for a payload to be made.
    pub(crate) fn buffer() -> Vec<u8> {
        KEPT.try_with(|kept| kept.borrow_mut().take()).ok().flatten().unwrap_or_default()
    }

    pub(crate) fn from_long(long: Long) -> Payload {
        Payload { bytes: Vec::new(), start: 0, long: Some(Box::new(long)) }
    }

    /// What stands behind the room for a header in `frame`, which is left empty but for that room.
    pub(crate) fn behind_header(frame: &mut Vec<u8>) -> Payload {
        let bytes = std::mem::replace(frame, vec![0; Header::BYTES]);
        Payload { bytes, start: Header::BYTES, long: None }
    }

    /// The block of this side's bulk memory that the payload lies in, if it does.
    pub(crate) fn own_block(&mut self) -> Option<&mut OwnBlock> {
        match self.long.as_deref_mut() {
            Some(Long::Own(block)) => Some(block),
            _ => None,
        }
    }
}

/// A frame that was received: its header and what follows, and a long payload apart.
#[derive(Default, Debug)]
pub(crate) struct Frame {
    /// Header, extension block if there is one, and the payload unless `long` has it.
    pub(crate) bytes: Vec<u8>,
    /// Bytes of the extension block, once it was read.
    pub(crate) extension: usize,
    pub(crate) long: Option<Box<Long>>,
}

impl Frame {
    /// The payload; behind the extension block only once that was read.
    #[inline]
    pub(crate) fn payload(&self) -> &[u8] {
        match &self.long {
            None => &self.bytes[Header::BYTES + self.extension..],
            Some(long) => long.bytes(),
        }
    }

    /// Takes the payload, and leaves an empty buffer.
    #[inline]
    pub(crate) fn take_payload(&mut self) -> Payload {
        let long = self.long.take();
        let bytes = std::mem::replace(&mut self.bytes, Payload::buffer());
        if long.is_some() {
            return Payload { bytes: Vec::new(), start: 0, long };
        }
        Payload { bytes, start: Header::BYTES + self.extension, long }
    }

    /// Gives memory back that only a long payload needed.
    pub(crate) fn shrink(&mut self) {
        shrink(&mut self.bytes);
    }

    /// Makes room for the next one.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.extension = 0;
        self.long = None;
    }
}

/// Frees a buffer that is larger than those that are kept, and not in use.
pub(crate) fn shrink(buffer: &mut Vec<u8>) {
    if buffer.capacity() > KEPT_BYTES {
        *buffer = Vec::new();
    }
}

impl Drop for Payload {
    #[inline]
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() == 0 || bytes.capacity() > KEPT_BYTES {
            return;
        }
        bytes.clear();
        // A thread that is ending keeps nothing.
        let _ = KEPT.try_with(|kept| kept.borrow_mut().keep(bytes));
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes()
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Payload {
        Payload { bytes, start: 0, long: None }
    }
}

impl From<Payload> for Vec<u8> {
    fn from(payload: Payload) -> Vec<u8> {
        payload.into_vec()
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Payload {
        bytes.to_vec().into()
    }
}

impl From<()> for Payload {
    fn from((): ()) -> Payload {
        Payload::empty()
    }
}

impl fmt::Debug for Payload {
    /// Says the length alone: payloads are not for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.bytes().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Frame {
        let mut bytes = vec![0xEE; Header::BYTES];
        bytes.extend_from_slice(payload);
        Frame { bytes, extension: 0, long: None }
    }

    #[test]
    fn payload_of_every_small_length_keeps_its_bytes() {
        for length in 0..300 {
            let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let payload = frame(&bytes).take_payload();
            assert_eq!(payload.bytes(), bytes);
            assert_eq!(payload.into_vec(), bytes);
            assert_eq!(Payload::from(bytes.clone()).into_vec(), bytes);
        }
    }

    #[test]
    fn dropped_payload_gives_its_buffer_to_the_next() {
        let first = frame(&[7; 5000]).take_payload();
        let address = first.bytes().as_ptr();
        drop(first);
        let mut scratch = frame(&[8; 5000]);
        let _second = scratch.take_payload();
        assert_eq!(scratch.bytes.as_ptr().wrapping_add(Header::BYTES), address);
        assert!(scratch.bytes.is_empty());
    }

    #[test]
    fn a_thread_keeps_a_bounded_number_of_bounded_buffers() {
        for _ in 0..100 {
            drop(Payload::from(vec![0; 1000]));
        }
        drop(Payload::from(Vec::with_capacity(KEPT_BYTES + 1)));
        KEPT.with_borrow(|kept| {
            assert_eq!(kept.buffers.len(), KEPT_BUFFERS);
            assert!(kept.buffers.iter().all(|buffer| buffer.capacity() <= KEPT_BYTES));
        });
        while let Some(buffer) = KEPT.with_borrow_mut(Kept::take) {
            drop(buffer);
        }
        for _ in 0..100 {
            drop(Payload::from(vec![0; KEPT_BYTES]));
        }
        KEPT.with_borrow(|kept| {
            assert_eq!(kept.buffers.len(), KEPT_BYTES_IN_ALL / KEPT_BYTES);
            assert_eq!(kept.bytes, KEPT_BYTES_IN_ALL);
        });
    }

    #[test]
    fn debug_output_holds_no_bytes() {
        assert_eq!(format!("{:?}", Payload::from(&b"secret"[..])), "Payload(6 bytes)");
    }
}
