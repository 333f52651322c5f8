//! Bytes of a message that have been copied out of the transport.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use lapwing_proto::Header;

/// Payloads up to this many bytes are kept inside [`Payload`] itself.
const INLINE_BYTES: usize = 102;

/// Buffers a pool keeps for reuse.
const POOLED_BUFFERS: usize = 16;

/// The largest buffer a pool keeps, in bytes; larger ones are freed.
const POOLED_BYTES: usize = 80 * 1024;

/// The payload of a request or a reply. Its bytes are private to this process.
///
/// Small payloads are held in place; larger ones in a buffer that goes back to the connection's pool
/// on drop, so that a steady flow of calls allocates nothing.
pub struct Payload(Repr);

enum Repr {
    Inline { length: u8, bytes: [u8; INLINE_BYTES] },
    Owned(Vec<u8>),
    Pooled { frame: Vec<u8>, pool: Arc<BufferPool> },
}

impl Payload {
    /// An empty payload.
    #[must_use]
    pub const fn empty() -> Payload {
        Payload(Repr::Inline { length: 0, bytes: [0; INLINE_BYTES] })
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { length, bytes } => &bytes[..usize::from(*length)],
            Repr::Owned(bytes) => bytes,
            Repr::Pooled { frame, .. } => &frame[Header::BYTES..],
        }
    }

    /// The bytes in a vector of their own.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<u8> {
        match &mut self.0 {
            Repr::Owned(bytes) => std::mem::take(bytes),
            _ => self.bytes().to_vec(),
        }
    }

    /// Takes the payload of the frame in `frame`, which holds a header and then the payload. A
    /// small one is copied and `frame` stays; else `frame` is swapped for one of the pool's.
    pub(crate) fn take_from(frame: &mut Vec<u8>, pool: &Arc<BufferPool>) -> Payload {
        let payload = &frame[Header::BYTES..];
        if payload.len() <= INLINE_BYTES {
            return Payload::inline(payload);
        }
        let frame = std::mem::replace(frame, pool.take());
        Payload(Repr::Pooled { frame, pool: Arc::clone(pool) })
    }

    fn inline(payload: &[u8]) -> Payload {
        let mut bytes = [0; INLINE_BYTES];
        bytes[..payload.len()].copy_from_slice(payload);
        Payload(Repr::Inline { length: payload.len() as u8, bytes })
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if let Repr::Pooled { frame, pool } = &mut self.0 {
            pool.give_back(std::mem::take(frame));
        }
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
        Payload(Repr::Owned(bytes))
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Payload {
        if bytes.len() <= INLINE_BYTES { Payload::inline(bytes) } else { bytes.to_vec().into() }
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

/// Frame buffers of one connection, kept for reuse within bounds.
#[derive(Debug, Default)]
pub(crate) struct BufferPool(Mutex<Vec<Vec<u8>>>);

impl BufferPool {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() > POOLED_BYTES {
            return;
        }
        buffer.clear();
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < POOLED_BUFFERS {
            buffers.push(buffer);
        }
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
        let pool = Arc::new(BufferPool::default());
        for length in 0..300 {
            let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let payload = Payload::take_from(&mut frame(&bytes), &pool);
            assert_eq!(payload.bytes(), bytes);
            assert_eq!(payload.into_vec(), bytes);
            assert_eq!(Payload::from(&bytes[..]).bytes(), bytes);
        }
    }

    #[test]
    fn large_payload_gives_its_buffer_back_and_the_next_uses_it() {
        let pool = Arc::new(BufferPool::default());
        let mut scratch = frame(&[7; 5000]);
        let first = Payload::take_from(&mut scratch, &pool);
        assert_eq!(scratch.capacity(), 0, "the pool was empty");
        let address = first.bytes().as_ptr();
        drop(first);
        scratch = frame(&[8; 5000]);
        let _second = Payload::take_from(&mut scratch, &pool);
        assert_eq!(scratch.as_ptr().wrapping_add(Header::BYTES), address);
        assert!(scratch.is_empty());
    }

    #[test]
    fn pool_keeps_a_bounded_number_of_bounded_buffers() {
        let pool = BufferPool::default();
        for _ in 0..100 {
            pool.give_back(Vec::with_capacity(1000));
        }
        assert_eq!(pool.0.lock().unwrap().len(), POOLED_BUFFERS);
        let pool = BufferPool::default();
        pool.give_back(Vec::with_capacity(POOLED_BYTES + 1));
        assert!(pool.0.lock().unwrap().is_empty());
    }

    #[test]
    fn debug_output_holds_no_bytes() {
        assert_eq!(format!("{:?}", Payload::from(&b"secret"[..])), "Payload(6 bytes)");
    }
}
