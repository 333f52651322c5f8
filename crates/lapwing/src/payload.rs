//! Bytes of a message: copied out of the transport, or in a block of bulk memory.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Deref;

use lapwing_proto::{Header, TimeLeft};
use lapwing_shm::OwnBlock;

use crate::bulk::Long;

/// Frame buffers that a thread keeps for reuse: the window of a stream in items, and a few calls.
const KEPT_BUFFERS: usize = 72;

/// The largest buffer kept, in bytes; larger ones are freed.
const KEPT_BYTES: usize = 80 * 1024;

/// The most that a thread keeps in all, in bytes, beside the two frames that come next.
const KEPT_BYTES_IN_ALL: usize = 8 * KEPT_BYTES;

/// Frames for reuse, in their boxes: so they are handed on by their address.
#[derive(Default)]
#[expect(
    clippy::vec_box,
    reason = "a frame stays in its box when it is kept, and is handed on with it"
)]
struct Kept {
    /// With buffers.
    frames: Vec<Box<Frame>>,
    /// Without: their buffers were taken.
    shells: Vec<Box<Frame>>,
    /// Capacities of all buffers.
    bytes: usize,
}

impl Kept {
    const NONE: Kept = Kept { frames: Vec::new(), shells: Vec::new(), bytes: 0 };

    #[inline]
    fn take(&mut self) -> Option<Box<Frame>> {
        let frame = self.frames.pop()?;
        self.bytes -= frame.bytes.capacity();
        Some(frame)
    }

    #[inline]
    fn keep(&mut self, frame: Box<Frame>) {
        let capacity = frame.bytes.capacity();
        if capacity == 0 {
            return self.keep_shell(frame);
        }
        let bytes = self.bytes + capacity;
        if self.frames.len() < KEPT_BUFFERS && bytes <= KEPT_BYTES_IN_ALL {
            self.bytes = bytes;
            self.frames.push(frame);
        }
    }

    fn keep_shell(&mut self, shell: Box<Frame>) {
        if self.shells.len() < KEPT_BUFFERS {
            self.shells.push(shell);
        }
    }
}

thread_local! {
    /// Frames of payloads that were dropped on this thread. A thread that receives and drops, as a
    /// client's and an inline server's do, allocates nothing; payloads that are dropped elsewhere take
    /// their buffers along.
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept::NONE) };

    /// Two more, with buffers: for one call after the other a request and a reply are enough, and nothing is counted.
    static NEXT: [Cell<Option<Box<Frame>>>; 2] = const { [const { Cell::new(None) }; 2] };
}

/// The payload of a request or a reply.
///
/// Its buffer goes back to the thread it is dropped on, so that a steady flow of calls allocates
/// nothing.
///
/// A payload that came through bulk memory holds a copy, or with
/// [`CooperativePeers`](crate::CooperativePeers) the sender's block itself, which goes back to it when the
/// payload is dropped.
// One word: it goes through many hands, and what is larger is copied at each.
pub struct Payload(Option<Box<Frame>>);

impl Payload {
    /// An empty payload.
    #[must_use]
    pub const fn empty() -> Payload {
        Payload(None)
    }

    /// The bytes.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |frame| frame.payload())
    }

    /// The bytes in a vector of their own.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<u8> {
        match &mut self.0 {
            Some(frame) if frame.front == 0 && frame.long.is_none() => {
                std::mem::take(&mut frame.bytes)
            }
            _ => self.bytes().to_vec(),
        }
    }

    /// A payload that is appended to an empty buffer of this thread's.
    #[inline]
    pub(crate) fn write<E>(
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Payload, E> {
        let mut frame = Frame::kept();
        write(&mut frame.bytes)?;
        Ok(Payload(Some(frame)))
    }

    /// The payload of a frame, which goes along with it.
    #[inline]
    pub(crate) fn of(frame: Box<Frame>) -> Payload {
        Payload(Some(frame))
    }

    pub(crate) fn from_long(long: Long) -> Payload {
        let mut frame = Frame::shell();
        frame.long = Some(Box::new(long));
        Payload(Some(frame))
    }

    /// What stands behind the room for a header in `frame`, which is left empty but for that room.
    pub(crate) fn behind_header(frame: &mut Vec<u8>) -> Payload {
        let mut shell = Frame::shell();
        shell.bytes = std::mem::replace(frame, vec![0; Header::BYTES]);
        shell.front = Header::BYTES;
        Payload(Some(shell))
    }

    /// The block of this side's bulk memory that the payload lies in, if it does.
    pub(crate) fn own_block(&mut self) -> Option<&mut OwnBlock> {
        match self.0.as_deref_mut()?.long.as_deref_mut() {
            Some(Long::Own(block)) => Some(block),
            _ => None,
        }
    }
}

/// A frame that was received or is put together: its header and what follows, and a long payload apart.
#[derive(Default, Debug)]
pub(crate) struct Frame {
    /// Header, extension block if there is one, and the payload unless `long` has it.
    pub(crate) bytes: Vec<u8>,
    /// Bytes in front of the payload: the header, and the extension block once it was read.
    pub(crate) front: usize,
    pub(crate) long: Option<Box<Long>>,
    /// What an extension block says that was read already, because it holds this and nothing else.
    pub(crate) time: Option<TimeLeft>,
}

impl Frame {
    /// An empty one with a buffer of this thread's, if it keeps some. Its payload stands at the front.
    #[inline]
    pub(crate) fn kept() -> Box<Frame> {
        match NEXT.try_with(|[first, second]| first.take().or_else(|| second.take())) {
            Ok(Some(frame)) => frame,
            _ => Frame::kept_among_others(),
        }
    }

    #[inline(never)]
    fn kept_among_others() -> Box<Frame> {
        let kept = KEPT.try_with(|kept| kept.borrow_mut().take());
        kept.ok().flatten().unwrap_or_else(Frame::shell)
    }

    /// An empty one without a buffer.
    #[cold]
    fn shell() -> Box<Frame> {
        let kept = KEPT.try_with(|kept| kept.borrow_mut().shells.pop());
        kept.ok().flatten().unwrap_or_default()
    }

    /// Leaves an empty one to this thread.
    #[inline]
    fn keep(self: Box<Frame>) {
        if self.bytes.capacity() == 0 {
            return self.keep_among_others();
        }
        // A thread that is ending keeps nothing.
        let before = NEXT.try_with(|[first, second]| {
            let before = first.replace(Some(self));
            before.and_then(|before| second.replace(Some(before)))
        });
        if let Ok(Some(before)) = before {
            before.keep_among_others();
        }
    }

    #[inline(never)]
    fn keep_among_others(self: Box<Frame>) {
        let _ = KEPT.try_with(|kept| kept.borrow_mut().keep(self));
    }

    /// The payload; behind the extension block only once that was read.
    #[inline]
    pub(crate) fn payload(&self) -> &[u8] {
        match &self.long {
            None => &self.bytes[self.front..],
            Some(long) => long.bytes(),
        }
    }

    /// Takes the payload, and leaves an empty frame.
    #[inline]
    pub(crate) fn take_payload(self: &mut Box<Frame>) -> Payload {
        Payload::of(std::mem::replace(self, Frame::kept()))
    }

    /// Gives memory back that only a long payload needed.
    pub(crate) fn shrink(&mut self) {
        shrink(&mut self.bytes);
    }

    /// Makes room for the next one.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.front = Header::BYTES;
        self.time = None;
        self.drop_long();
    }

    #[inline]
    fn drop_long(&mut self) {
        // Few have one: the others are spared the call.
        if self.long.is_some() {
            self.long = None;
        }
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
        let Some(mut frame) = self.0.take() else { return };
        frame.bytes.clear();
        frame.front = 0;
        frame.drop_long();
        shrink(&mut frame.bytes);
        frame.keep();
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
        let mut frame = Frame::shell();
        frame.bytes = bytes;
        Payload(Some(frame))
    }
}

impl From<Payload> for Vec<u8> {
    fn from(payload: Payload) -> Vec<u8> {
        payload.into_vec()
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Payload {
        let mut frame = Frame::kept();
        frame.bytes.extend_from_slice(bytes);
        Payload(Some(frame))
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

    fn frame(payload: &[u8]) -> Box<Frame> {
        let mut frame = Frame::kept();
        frame.clear();
        frame.bytes.extend_from_slice(&[0xEE; Header::BYTES]);
        frame.bytes.extend_from_slice(payload);
        frame
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
        let second = frame(&[8; 5000]).take_payload();
        assert_eq!(second.bytes().as_ptr(), address);
    }

    #[test]
    fn a_thread_keeps_a_bounded_number_of_bounded_buffers() {
        let drop_all = |bytes: &dyn Fn() -> Vec<u8>| {
            drop((0..100).map(|_| Payload::from(bytes())).collect::<Vec<_>>());
        };
        drop_all(&|| vec![0; 1000]);
        drop(Payload::from(Vec::with_capacity(KEPT_BYTES + 1)));
        KEPT.with_borrow(|kept| {
            assert_eq!(kept.frames.len(), KEPT_BUFFERS);
            assert!(kept.frames.iter().all(|frame| frame.bytes.capacity() <= KEPT_BYTES));
        });
        let next = || NEXT.with(|next| next.each_ref().map(Cell::take));
        assert!(next().into_iter().flatten().all(|frame| frame.bytes.capacity() <= KEPT_BYTES));
        while let Some(frame) = KEPT.with_borrow_mut(Kept::take) {
            drop(frame);
        }
        drop_all(&|| vec![0; KEPT_BYTES]);
        KEPT.with_borrow(|kept| {
            assert_eq!(kept.frames.len(), KEPT_BYTES_IN_ALL / KEPT_BYTES);
            assert_eq!(kept.bytes, KEPT_BYTES_IN_ALL);
        });
        assert!(next().iter().all(Option::is_some));
        drop_all(&Vec::new);
        assert!(next().iter().all(Option::is_none), "they have no buffer");
        KEPT.with_borrow(|kept| assert_eq!(kept.shells.len(), KEPT_BUFFERS));
    }

    #[test]
    fn debug_output_holds_no_bytes() {
        assert_eq!(format!("{:?}", Payload::from(&b"secret"[..])), "Payload(6 bytes)");
    }
}
