//! Bytes of a message that have been copied out of the transport.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;

use lapwing_proto::Header;

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

/// The payload of a request or a reply. Its bytes are private to this process.
///
/// Its buffer goes back to the thread it is dropped on, so that a steady flow of calls allocates
/// nothing.
pub struct Payload {
    bytes: Vec<u8>,
    /// Bytes in front of the payload: a frame's header, or none.
    start: usize,
}

impl Payload {
    /// An empty payload.
    #[must_use]
    pub const fn empty() -> Payload {
        Payload { bytes: Vec::new(), start: 0 }
    }

    /// The bytes.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The bytes in a vector of their own.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<u8> {
        if self.start == 0 { std::mem::take(&mut self.bytes) } else { self.bytes().to_vec() }
    }

    /// An empty buffer of this thread's, for a payload to be made.
    pub(crate) fn buffer() -> Vec<u8> {
        KEPT.try_with(|kept| kept.borrow_mut().take()).ok().flatten().unwrap_or_default()
    }

    /// Takes the payload of the frame in `frame`, which holds a header and then the payload, and
    /// leaves an empty buffer there.
    #[inline]
    pub(crate) fn take_from(frame: &mut Vec<u8>) -> Payload {
        let bytes = std::mem::replace(frame, Payload::buffer());
        Payload { bytes, start: Header::BYTES }
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
        Payload { bytes, start: 0 }
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

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xEE; Header::BYTES];
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn payload_of_every_small_length_keeps_its_bytes() {
        for length in 0..300 {
            let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let payload = Payload::take_from(&mut frame(&bytes));
            assert_eq!(payload.bytes(), bytes);
            assert_eq!(payload.into_vec(), bytes);
            assert_eq!(Payload::from(bytes.clone()).into_vec(), bytes);
        }
    }

    #[test]
    fn dropped_payload_gives_its_buffer_to_the_next() {
        let first = Payload::take_from(&mut frame(&[7; 5000]));
        let address = first.bytes().as_ptr();
        drop(first);
        let mut scratch = frame(&[8; 5000]);
        let _second = Payload::take_from(&mut scratch);
        assert_eq!(scratch.as_ptr().wrapping_add(Header::BYTES), address);
        assert!(scratch.is_empty());
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
