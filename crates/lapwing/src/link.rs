//! The two halves of an open connection, over rings or over the socket, behind one interface.
//!
//! Frames are put together and checked in private memory; the transport sees whole frames only.

use std::cell::Cell;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use lapwing_proto::{
    CHECKSUM_RANGE, Checksum, Entry, ExtensionBuilder, ExtensionError, Extensions, Features, Flags,
    FrameError, Header, Kind, LimitsGranted, MessageId, PeerMisbehaved, TimeLeft, TraceContext,
    WireError, limits, take_bulk,
};
use lapwing_shm::{
    BadCommit, Bell, Consumer, Doorbell, KeepBuffers, OwnBlock, OwnMemory, PeerMemory, Producer,
    ReserveError, Sleeper, layout,
};

use crate::bulk::{BulkIn, BulkOut, BulkTerms};
use crate::codec::Form;
use crate::compression::{COMPRESS_MIN, KeepContexts, compress, expand};
use crate::payload::{Frame, Payload, shrink};
use crate::platform;

/// Frames up to this length go out as one contiguous copy; longer ones as header and payload, to
/// save copying the payload twice.
const GATHERED_BYTES: usize = 1024;

/// Room in a ring that a frame with a bulk descriptor needs beside its header and extension block, at least.
const DESCRIPTOR_BYTES: usize = 64;

/// The longest extension block, in bytes, with its own length. Over the socket it does not count for the largest message.
const EXTENSION_BYTES_MAX: u32 = 2 + u16::MAX as u32;

/// Bytes asked of the socket at a time.
const SOCKET_READ_BYTES: usize = 16 * 1024;

/// What both sides agreed on in the handshake.
#[derive(Clone, Debug)]
pub(crate) struct Agreed {
    pub(crate) connection_id: u64,
    pub(crate) features: Features,
    pub(crate) limits: LimitsGranted,
    pub(crate) checksum: Checksum,
    /// The other side's program, as it says.
    pub(crate) peer_program: String,
}

/// An open connection, before it is given to its driver.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) agreed: Agreed,
    pub(crate) sending: Sending,
    pub(crate) receiving: Receiving,
    pub(crate) socket: Arc<UnixStream>,
    /// With shared memory: this side's sleep word and what wakes it.
    pub(crate) waking: Option<(Sleeper, Doorbell)>,
    /// With shared memory: what the socket brings, and the peer's bulk memory.
    pub(crate) bulk: Option<Arc<BulkIn>>,
}

/// Shared memory of both sides, checked and mapped.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    pub(crate) own: OwnMemory,
    pub(crate) own_doorbell: Doorbell,
    pub(crate) peer: PeerMemory,
    pub(crate) peer_doorbell: Doorbell,
}

impl Link {
    pub(crate) fn new(
        socket: Arc<UnixStream>,
        agreed: Agreed,
        memory: Option<SharedMemory>,
        terms: &BulkTerms,
    ) -> Link {
        let message_max = agreed.limits.message_bytes;
        let checksum = agreed.checksum;
        let compresses = agreed.features.contains(Features::COMPRESSION);
        let Some(memory) = memory else {
            let out = Out::Socket { socket: Arc::clone(&socket), backlog: Vec::new(), sent: 0 };
            let source = Arc::clone(&socket);
            let r#in = In::Socket { socket: source, buffer: Vec::new(), start: 0, end: 0 };
            let sending = Sending::new(out, checksum, message_max, message_max, compresses);
            let receiving = Receiving {
                r#in,
                checksum,
                expands: compresses,
                inline_max: message_max,
                message_max,
                bulk: None,
                _buffers: KeepBuffers::new(),
                _contexts: compresses.then(KeepContexts::new),
            };
            return Link { agreed, sending, receiving, socket, waking: None, bulk: None };
        };
        let SharedMemory { own, own_doorbell, peer, peer_doorbell } = memory;
        let bell = Arc::new(Bell::new(peer.clone(), peer_doorbell));
        let has_bulk = agreed.features.contains(Features::BULK);
        let bulk_max = has_bulk.then(|| limits::bulk_max(message_max));
        let bulk =
            BulkIn::new(own.clone(), Arc::clone(&bell), Arc::clone(&socket), bulk_max, terms);
        let bulk = Arc::new(bulk);
        let lends = bulk_max.map(|max| {
            Box::new(BulkOut::new(peer.clone(), &socket, message_max, max, terms, &bulk))
        });
        let out_max = message_max.min(limits::inline_max(own.ring_bytes()));
        let in_max = message_max.min(limits::inline_max(peer.ring_bytes()));
        let producer = Producer::new(own.clone(), peer.clone());
        let out = Out::Ring { producer, bell: Arc::clone(&bell), fresh: false, bulk: lends };
        let r#in = In::Ring { consumer: Consumer::new(own.clone(), peer), bell };
        let sent_max = if has_bulk { message_max } else { out_max };
        let sending = Sending::new(out, checksum, out_max, sent_max, compresses);
        let receiving = Receiving {
            r#in,
            checksum,
            expands: compresses,
            inline_max: in_max,
            message_max,
            bulk: Some(Arc::clone(&bulk)),
            _buffers: KeepBuffers::new(),
            _contexts: compresses.then(KeepContexts::new),
        };
        let waking = Some((Sleeper::new(own), own_doorbell));
        Link { agreed, sending, receiving, socket, waking, bulk: Some(bulk) }
    }
}

/// Why a frame did not go out.
#[derive(Debug)]
pub(crate) enum SendError {
    /// No room now: wait until the peer has read.
    Full,
    /// Longer than the connection takes; the most, in bytes.
    TooLarge(usize),
    /// The user at the other end has all the bulk memory that it may have.
    OverQuota,
    /// The connection is broken.
    Broken(Broken),
}

/// Why a connection cannot go on.
#[derive(Clone, Debug)]
pub(crate) enum Broken {
    /// The peer's fault.
    Misbehaved(PeerMisbehaved),
    /// The socket ended.
    Ended,
    /// The system's. Boxed: results of the hot path carry this type.
    Failed(Box<str>),
}

/// The peer did what the protocol forbids.
pub(crate) fn misbehaved(error: WireError, detail: &'static str) -> Broken {
    Broken::Misbehaved(PeerMisbehaved { error, detail })
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Broken::Ended,
            _ => Broken::Failed(error.to_string().into()),
        }
    }
}

impl From<Broken> for SendError {
    fn from(broken: Broken) -> SendError {
        SendError::Broken(broken)
    }
}

impl From<BadCommit> for Broken {
    fn from(error: BadCommit) -> Broken {
        let detail = match error {
            BadCommit::Unaligned { .. } => "a commit word is not on a line",
            BadCommit::Behind { .. } => "a commit word lies behind its record",
            BadCommit::LapAhead { .. } => "a commit word is more than a lap ahead",
        };
        misbehaved(WireError::BadRing, detail)
    }
}

impl From<FrameError> for Broken {
    fn from(error: FrameError) -> Broken {
        misbehaved(error.wire_error(), "")
    }
}

/// The sending half. Guarded by a short lock; nobody waits under it.
#[derive(Debug)]
pub(crate) struct Sending {
    out: Out,
    checksum: Checksum,
    /// The longest payload that goes into one frame, in bytes.
    inline_max: u32,
    /// The longest payload that goes out without a further look, in bytes: `inline_max`, or less where payloads
    /// are compressed.
    plain_max: u32,
    compresses: bool,
    /// The longest payload, in bytes: longer ones than `inline_max` go through bulk memory.
    message_max: u32,
    /// Room for one gathered frame, made when the first is sent.
    scratch: Box<[u8]>,
}

/// A payload to be sent: bytes, or a block of bulk memory that has been written in place.
#[derive(Debug)]
pub(crate) enum Body<'a> {
    Bytes(&'a [u8]),
    Block(&'a mut OwnBlock),
}

impl Body<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Body::Bytes(bytes) => bytes.len(),
            Body::Block(block) => block.len(),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Body::Bytes(bytes) => bytes,
            Body::Block(block) => block.bytes(),
        }
    }
}

/// A frame that was put together before it is known when it is sent: room for a header, an extension block or
/// none, the payload. Its buffer goes back to the thread it is dropped on.
// One word: moving what was just stored would wait until that is in the cache, and longer where it lies in two lines.
#[derive(Debug)]
pub(crate) struct Written(Option<Box<Parts>>);

#[derive(Default, Debug)]
struct Parts {
    bytes: Vec<u8>,
    /// Where the payload begins.
    front: usize,
    /// Its extension block begins with a deadline.
    timed: bool,
}

thread_local! {
    /// The buffer of the frame that was put together last on this thread: most are sent before the next is begun.
    static WRITTEN: Cell<Option<Box<Parts>>> = const { Cell::new(None) };
}

impl Carried {
    /// How the call's payloads are written.
    #[inline]
    pub(crate) fn form(&self) -> Form {
        self.more.as_ref().map_or(Form::Own, |more| more.form)
    }
}

impl Written {
    /// A frame with this extension block, whose payload is still empty. How much time is left is said when it is
    /// sent.
    #[inline]
    pub(crate) fn begin(
        timed: bool,
        trace: Option<TraceContext>,
        metadata: &Metadata,
        form: Form,
    ) -> Result<Written, ExtensionError> {
        if trace.is_none() && metadata.is_empty() && form == Form::Own {
            return Ok(Written::plain(timed));
        }
        let mut parts = Parts::kept();
        let Parts { bytes, front, timed: is_timed } = &mut *parts;
        bytes.clear();
        bytes.extend_from_slice(&[0; Header::BYTES]);
        put_extensions(bytes, timed.then_some(NO_TIME), trace, metadata, form)?;
        (*front, *is_timed) = (bytes.len(), timed);
        Ok(Written(Some(parts)))
    }

    /// As [`Written::begin`], with nothing in the extension block but the time. What is said when it is sent, header and time,
    /// is left as it stands in the buffer.
    #[inline(always)]
    pub(crate) fn plain(timed: bool) -> Written {
        let mut parts = Parts::kept();
        let front = if timed { TIMED_BYTES } else { Header::BYTES };
        if parts.bytes.len() >= front {
            parts.bytes.truncate(front);
        } else {
            parts.bytes.clear();
            parts.bytes.extend_from_slice(&[0; TIMED_BYTES][..front]);
        }
        (parts.front, parts.timed) = (front, timed);
        Written(Some(parts))
    }

    /// Leaves its buffer to the next one. Nothing is asked of it any more.
    #[inline]
    pub(crate) fn give_back(&mut self) {
        if let Some(mut parts) = self.0.take() {
            shrink(&mut parts.bytes);
            // A thread that is ending keeps nothing.
            let _ = WRITTEN.try_with(|kept| kept.set(Some(parts)));
        }
    }

    #[inline(always)]
    fn parts(&self) -> &Parts {
        self.0.as_deref().expect(NOT_GIVEN_BACK)
    }

    #[inline(always)]
    fn parts_mut(&mut self) -> &mut Parts {
        self.0.as_deref_mut().expect(NOT_GIVEN_BACK)
    }

    /// Where the payload is to be appended.
    #[inline]
    pub(crate) fn payload_mut(&mut self) -> &mut Vec<u8> {
        &mut self.parts_mut().bytes
    }

    #[inline]
    pub(crate) fn payload(&self) -> &[u8] {
        let Parts { bytes, front, .. } = self.parts();
        &bytes[*front..]
    }

    #[inline]
    pub(crate) fn extension_bytes(&self) -> usize {
        self.parts().front - Header::BYTES
    }

    /// Says that this much time is left, in a frame that says so at all.
    #[inline(always)]
    pub(crate) fn set_time(&mut self, time: TimeLeft) {
        let Parts { bytes, front, timed } = self.parts_mut();
        debug_assert!(*timed, "it was put together for a call with a deadline");
        let block = &mut bytes[Header::BYTES..];
        if *front == TIMED_BYTES { put_words(block, time.words()) } else { time.set_in(block) }
    }
}

const NOT_GIVEN_BACK: &str = "a frame is given back once it was sent";

impl Parts {
    /// Those that were given back last, as they are.
    #[inline(always)]
    fn kept() -> Box<Parts> {
        WRITTEN.try_with(Cell::take).ok().flatten().unwrap_or_default()
    }
}

/// What stands in a frame until it is sent.
const NO_TIME: TimeLeft = TimeLeft { remaining_us: 0, sent_at_ns: 0 };

/// Bytes of a header, and of a block that holds the time and nothing else.
const TIMED_BYTES: usize = Header::BYTES + TimeLeft::BLOCK_BYTES;

impl Drop for Written {
    #[inline]
    fn drop(&mut self) {
        self.give_back();
    }
}

#[derive(Debug)]
enum Out {
    Ring {
        producer: Producer,
        bell: Arc<Bell<Doorbell>>,
        /// Published since the bell was last looked at.
        fresh: bool,
        bulk: Option<Box<BulkOut>>,
    },
    Socket {
        socket: Arc<UnixStream>,
        /// The rest of one frame that the socket did not take whole: `backlog[sent..]`.
        backlog: Vec<u8>,
        sent: usize,
    },
}

impl Sending {
    fn new(
        out: Out,
        checksum: Checksum,
        inline_max: u32,
        message_max: u32,
        compresses: bool,
    ) -> Sending {
        let short_max = COMPRESS_MIN as u32 - 1;
        let plain_max = if compresses { inline_max.min(short_max) } else { inline_max };
        let scratch = Box::default();
        Sending { out, checksum, inline_max, plain_max, compresses, message_max, scratch }
    }

    /// The longest payload of a message, in bytes.
    pub(crate) fn message_max(&self) -> usize {
        self.message_max as usize
    }

    /// Sends one frame or none of it. Call [`Sending::flush`] after the last of a batch.
    #[inline(always)]
    pub(crate) fn send(&mut self, mut header: Header, payload: &[u8]) -> Result<(), SendError> {
        if payload.len() > self.plain_max as usize {
            return self.send_long(
                header.kind,
                header.flags,
                header.id,
                &mut Vec::new(),
                Body::Bytes(payload),
            );
        }
        header.length = payload.len() as u32;
        let length = Header::BYTES + payload.len();
        if length > GATHERED_BYTES {
            header.checksum = self.checksum.of_parts(&header.encode(), payload);
            return self.out.push(header.to_words(), payload);
        }
        if self.scratch.is_empty() {
            self.scratch = vec![0; GATHERED_BYTES].into_boxed_slice();
        }
        let frame = &mut self.scratch[..length];
        put_words(frame, header.to_words());
        frame[Header::BYTES..].copy_from_slice(payload);
        header.checksum = self.checksum.of_zeroed(frame);
        self.out.push(header.to_words(), payload)
    }

    /// As [`Sending::send`], of a frame whose first 24 bytes are kept free for the header.
    #[inline(always)]
    pub(crate) fn send_in_place(
        &mut self,
        mut header: Header,
        frame: &mut [u8],
    ) -> Result<(), SendError> {
        let length = frame.len() - Header::BYTES;
        if length > self.plain_max as usize {
            let payload = Body::Bytes(&frame[Header::BYTES..]);
            return self.send_long(header.kind, header.flags, header.id, &mut Vec::new(), payload);
        }
        header.length = length as u32;
        put_words(frame, header.to_words());
        header.checksum = self.checksum.of_zeroed(frame);
        self.out.push(header.to_words(), &frame[Header::BYTES..])
    }

    /// As [`Sending::send`], of a frame that was put together.
    #[inline(always)]
    pub(crate) fn send_written(
        &mut self,
        mut header: Header,
        written: &mut Written,
    ) -> Result<(), SendError> {
        let Parts { bytes, front, .. } = written.parts_mut();
        if bytes.len() - Header::BYTES > self.plain_max as usize {
            let mut extension = bytes[Header::BYTES..*front].to_vec();
            return self.send_long(
                header.kind,
                header.flags,
                header.id,
                &mut extension,
                Body::Bytes(&bytes[*front..]),
            );
        }
        if *front == Header::BYTES {
            return self.send_in_place(header, bytes);
        }
        header.flags = header.flags | Flags::EXTENDED;
        if *front != TIMED_BYTES {
            return self.send_in_place(header, bytes);
        }
        header.length = (bytes.len() - Header::BYTES) as u32;
        put_words(bytes, header.to_words());
        header.checksum = self.checksum.of_zeroed(bytes);
        let (words, _) = bytes.as_chunks::<8>();
        let block = [3, 4, 5].map(|n| u64::from_le_bytes(words[n]));
        let [first, second, third] = header.to_words();
        let head = [first, second, third, block[0], block[1], block[2]];
        self.out.push(head, &bytes[TIMED_BYTES..])
    }

    /// As [`Sending::send`], with the extension block in `extension`, which may be empty for none and is used
    /// up; and with a payload that may stand in a block.
    #[inline(never)]
    pub(crate) fn send_with(
        &mut self,
        mut header: Header,
        extension: &mut Vec<u8>,
        body: Body<'_>,
    ) -> Result<(), SendError> {
        let lends = matches!(&self.out, Out::Ring { bulk: Some(_), .. });
        let in_block = lends && matches!(body, Body::Block(_));
        if in_block || extension.len() + body.len() > self.plain_max as usize {
            return self.send_long(header.kind, header.flags, header.id, extension, body);
        }
        if !extension.is_empty() {
            header.flags = header.flags | Flags::EXTENDED;
        }
        extension.extend_from_slice(body.bytes());
        self.send(header, extension)
    }

    /// As [`Sending::send`], of a payload that may be in a block.
    pub(crate) fn send_payload(
        &mut self,
        header: Header,
        payload: &mut Payload,
    ) -> Result<(), SendError> {
        match payload.own_block() {
            None => self.send(header, payload),
            Some(block) => self.send_with(header, &mut Vec::new(), Body::Block(block)),
        }
    }

    /// Sends a payload that is longer than `plain_max`.
    // Parts of the header, because a whole one is passed where it lies in memory: so it would lie there for every frame, and
    // wait to be loaded again.
    #[cold]
    fn send_long(
        &mut self,
        kind: Kind,
        flags: Flags,
        id: MessageId,
        extension: &mut Vec<u8>,
        body: Body<'_>,
    ) -> Result<(), SendError> {
        let header = call_header(flags, kind, id);
        if self.compresses {
            return self.send_compressed(header, extension, body);
        }
        self.send_as_it_is(header, extension, body)
    }

    /// Sends a payload compressed where that is worth it, else as it is. A block that was written in place is sent
    /// as it is.
    fn send_compressed(
        &mut self,
        header: Header,
        extension: &mut Vec<u8>,
        body: Body<'_>,
    ) -> Result<(), SendError> {
        let message_max = self.message_max();
        if body.len() > message_max {
            return Err(SendError::TooLarge(message_max));
        }
        let in_place = match (&body, &self.out) {
            (Body::Block(block), Out::Ring { bulk: Some(bulk), .. }) => bulk.owns(block),
            _ => false,
        };
        if in_place || !header.kind.is_application() {
            return self.send_as_it_is(header, extension, body);
        }
        // Before any work is done. What waits for room waits for this much, too.
        if !self.has_room(extension.len() + body.len())? {
            return Err(SendError::Full);
        }
        if let Some(shorter) = compress(body.bytes()) {
            let before = extension.clone();
            let flags = header.flags | Flags::COMPRESSED;
            let sent =
                self.send_as_it_is(Header { flags, ..header }, extension, Body::Bytes(&shorter));
            // All blocks of the shorter length may be lent while one of the whole length is not.
            if !matches!(sent, Err(SendError::Full)) {
                return sent;
            }
            *extension = before;
        }
        self.send_as_it_is(header, extension, body)
    }

    /// Sends a payload in a frame if it fits, else in a block.
    fn send_as_it_is(
        &mut self,
        mut header: Header,
        extension: &mut Vec<u8>,
        body: Body<'_>,
    ) -> Result<(), SendError> {
        let (in_block, frame_bytes) = match &self.out {
            Out::Ring { bulk, .. } => {
                (bulk.is_some() && matches!(body, Body::Block(_)), extension.len() + body.len())
            }
            // The extension block stands beside the message.
            Out::Socket { .. } => (false, body.len()),
        };
        if in_block || frame_bytes > self.inline_max as usize {
            return self.send_in_block(header, extension, body);
        }
        let mut payload = body.bytes();
        if !extension.is_empty() {
            header.flags = header.flags | Flags::EXTENDED;
            extension.extend_from_slice(payload);
            payload = extension;
        }
        header.length = payload.len() as u32;
        header.checksum = self.checksum.of_parts(&header.encode(), payload);
        self.out.push(header.to_words(), payload)
    }

    /// Sends a payload through bulk memory: a copy of the bytes, or the block itself.
    fn send_in_block(
        &mut self,
        mut header: Header,
        extension: &mut Vec<u8>,
        mut body: Body<'_>,
    ) -> Result<(), SendError> {
        let length = body.len();
        let message_max = self.message_max();
        let Out::Ring { producer, bulk: Some(bulk), .. } = &mut self.out else {
            return Err(SendError::TooLarge(message_max));
        };
        if length > message_max {
            return Err(SendError::TooLarge(message_max));
        }
        // Before anything is copied.
        if !producer.has_room(Header::BYTES + extension.len() + DESCRIPTOR_BYTES)? {
            return Err(SendError::Full);
        }
        let mut copy;
        let block = match &mut body {
            Body::Block(block) if bulk.owns(block) => &mut **block,
            body => {
                copy = bulk.take(length)?;
                copy.bytes_mut().copy_from_slice(body.bytes());
                &mut copy
            }
        };
        let descriptor = bulk.lend(block).ok_or(SendError::TooLarge(0))?;
        if extension.is_empty() {
            extension.extend_from_slice(&[0, 0]);
        }
        let told = ExtensionBuilder::go_on(extension, 0)
            .and_then(|mut entries| entries.push(Entry::Bulk(descriptor)).map(drop));
        debug_assert!(told.is_ok(), "an extension block of this side's own");
        header.flags = header.flags | Flags::EXTENDED;
        header.length = extension.len() as u32;
        header.checksum = self.checksum.of_parts(&header.encode(), extension);
        let sent = self.out.push(header.to_words(), extension);
        if sent.is_err()
            && let Out::Ring { bulk: Some(bulk), .. } = &mut self.out
        {
            bulk.unlend(block);
        }
        sent
    }

    /// Takes a block of bulk memory for a payload of this length, to be written in place. `None` where it would
    /// not be sent in one.
    pub(crate) fn reserve(&mut self, bytes: usize) -> Result<Option<OwnBlock>, SendError> {
        if bytes > self.message_max() {
            return Err(SendError::TooLarge(self.message_max()));
        }
        match &mut self.out {
            Out::Ring { bulk: Some(bulk), .. } if bytes > self.inline_max as usize => {
                bulk.take(bytes).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Gives bulk memory back that was not used since the last time.
    pub(crate) fn sweep(&mut self) -> Result<(), Broken> {
        match &mut self.out {
            Out::Ring { bulk: Some(bulk), .. } => bulk.sweep(),
            _ => Ok(()),
        }
    }

    /// Whether there is bulk memory to be swept.
    pub(crate) fn has_bulk(&self) -> bool {
        matches!(&self.out, Out::Ring { bulk: Some(bulk), .. } if bulk.is_in_use())
    }

    /// Wakes the peer if it sleeps and something was sent since; on a socket, sends what is left
    /// over if it takes more. Once for a batch.
    #[inline]
    pub(crate) fn flush(&mut self) -> Result<(), Broken> {
        match &mut self.out {
            Out::Ring { producer, bell, fresh, .. } => {
                if std::mem::take(fresh) {
                    bell.ring_if_asleep()?;
                    producer.fetch_ahead();
                }
                Ok(())
            }
            Out::Socket { socket, backlog, sent } => drain_backlog(socket, backlog, sent).map(drop),
        }
    }

    /// Whether the peer seems to sleep: then it is better woken now than in a moment.
    #[inline]
    pub(crate) fn peer_seems_asleep(&self) -> bool {
        match &self.out {
            Out::Ring { bell, .. } => bell.seems_asleep(),
            Out::Socket { .. } => true,
        }
    }

    /// Whether a payload of this length goes through bulk memory.
    pub(crate) fn is_long(&self, bytes: usize) -> bool {
        matches!(self.out, Out::Ring { bulk: Some(_), .. }) && bytes > self.inline_max as usize
    }

    /// Whether a payload of this length would go out now.
    pub(crate) fn has_room(&mut self, payload_bytes: usize) -> Result<bool, Broken> {
        match &mut self.out {
            Out::Ring { producer, bulk, .. } => {
                let long = payload_bytes > self.inline_max as usize;
                let inline = if long { DESCRIPTOR_BYTES } else { payload_bytes };
                let room = match producer.has_room(Header::BYTES + inline) {
                    Ok(room) => room,
                    // Sending it will say so.
                    Err(ReserveError::TooLong { .. }) => true,
                    Err(error) => return Err(broken_ring(error)),
                };
                match bulk {
                    Some(bulk) if long && room => bulk.has_room(payload_bytes),
                    _ => Ok(room),
                }
            }
            Out::Socket { socket, backlog, sent } => drain_backlog(socket, backlog, sent),
        }
    }

    /// Whether the socket should be watched for room.
    pub(crate) fn has_backlog(&self) -> bool {
        matches!(&self.out, Out::Socket { backlog, .. } if !backlog.is_empty())
    }
}

impl Out {
    #[inline(always)]
    fn push<const N: usize>(&mut self, head: [u64; N], tail: &[u8]) -> Result<(), SendError> {
        match self {
            Out::Ring { producer, fresh, .. } => {
                producer.push_words(head.map(u64::to_le), tail)?;
                *fresh = true;
                Ok(())
            }
            Out::Socket { socket, backlog, sent } => {
                let mut frame = Vec::with_capacity(8 * N + tail.len());
                frame.resize(8 * N, 0);
                put_words(&mut frame, head);
                frame.extend_from_slice(tail);
                send_on_socket(socket, backlog, sent, &frame)
            }
        }
    }
}

/// Writes words to the front of a frame, each at once: what reads them next does not have
/// to wait for narrower stores.
#[inline(always)]
fn put_words<const N: usize>(frame: &mut [u8], words: [u64; N]) {
    for (bytes, word) in frame.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

impl From<ReserveError> for SendError {
    fn from(error: ReserveError) -> SendError {
        match error {
            ReserveError::Full => SendError::Full,
            ReserveError::TooLong { max, .. } => SendError::TooLarge(max - Header::BYTES),
            ReserveError::BadConsumed { .. } => SendError::Broken(broken_ring(error)),
        }
    }
}

fn broken_ring(_: ReserveError) -> Broken {
    let detail = "the position it says it has read to is impossible";
    misbehaved(WireError::BadRing, detail)
}

/// Sends `frame`; what the socket does not take of it becomes the backlog.
fn send_on_socket(
    socket: &UnixStream,
    backlog: &mut Vec<u8>,
    sent: &mut usize,
    frame: &[u8],
) -> Result<(), SendError> {
    if !drain_backlog(socket, backlog, sent).map_err(SendError::Broken)? {
        return Err(SendError::Full);
    }
    let taken = match platform::send(socket, frame) {
        Ok(taken) => taken,
        // It waits as the backlog, one frame at most: that is what says to watch the socket for room.
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) if error.kind() == ErrorKind::Interrupted => 0,
        Err(error) => return Err(SendError::Broken(error.into())),
    };
    if taken < frame.len() {
        backlog.extend_from_slice(&frame[taken..]);
    }
    Ok(())
}

/// Sends of the backlog what the socket takes; whether it is all gone.
fn drain_backlog(
    socket: &UnixStream,
    backlog: &mut Vec<u8>,
    sent: &mut usize,
) -> Result<bool, Broken> {
    while *sent < backlog.len() {
        match platform::send(socket, &backlog[*sent..]) {
            Ok(taken) => *sent += taken,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !backlog.is_empty() {
        *backlog = Vec::new();
        *sent = 0;
    }
    Ok(true)
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Receiving {
    r#in: In,
    checksum: Checksum,
    /// The longest payload of one frame, in bytes.
    inline_max: u32,
    /// The longest payload, in bytes.
    message_max: u32,
    /// Compressed payloads were agreed on.
    expands: bool,
    bulk: Option<Arc<BulkIn>>,
    /// As long as the connection lasts.
    _buffers: KeepBuffers,
    _contexts: Option<KeepContexts>,
}

#[derive(Debug)]
enum In {
    Ring {
        consumer: Consumer,
        bell: Arc<Bell<Doorbell>>,
    },
    Socket {
        socket: Arc<UnixStream>,
        /// Bytes read and not yet taken: `buffer[start..end]`.
        buffer: Vec<u8>,
        start: usize,
        end: usize,
    },
}

impl Receiving {
    /// Takes the next whole frame into `frame` (header, its checksum field zero, and payload) and its header into `header`,
    /// checked; whether there is one yet. A payload in bulk memory is there, too, and the header says its
    /// length.
    #[inline(always)]
    pub(crate) fn next(&mut self, frame: &mut Frame, header: &mut Header) -> Result<bool, Broken> {
        frame.clear();
        let came = match &mut self.r#in {
            In::Ring { consumer, bell } => {
                take_record(consumer, bell, self.inline_max, frame, header)?
            }
            In::Socket { socket, buffer, start, end } => {
                let max = self.inline_max;
                take_from_socket(socket, buffer, start, end, max, &mut frame.bytes, header)?
            }
        };
        if !came {
            return Ok(false);
        }
        if header.length > self.message_max {
            self.check_length(header, &frame.bytes)?;
        }
        let expected = self.checksum.of_zeroed(&frame.bytes);
        if expected != header.checksum {
            return Err(FrameError::Checksum { expected, found: header.checksum }.into());
        }
        if header.flags.intersects(UNFOLDED)
            && (header.kind.is_application() || header.flags.is_response())
        {
            let block = || TimeLeft::read_block(&frame.bytes[Header::BYTES..]);
            match frame.time.or_else(block) {
                Some(time) if !header.flags.contains(Flags::COMPRESSED) => {
                    frame.time = Some(time);
                    frame.front = TIMED_BYTES;
                }
                _ => {
                    frame.time = None;
                    *header = self.unfold(*header, frame)?;
                }
            }
        }
        Ok(true)
    }

    /// Checks a frame from the socket that is longer than a message: its extension block may be what is too much.
    #[cold]
    fn check_length(&self, header: &Header, frame: &[u8]) -> Result<(), Broken> {
        let block =
            frame[Header::BYTES..].first_chunk().map_or(0, |length| u16::from_le_bytes(*length));
        let beside = 2 + u32::from(block);
        if header.length.saturating_sub(beside) > self.message_max {
            return Err(FrameError::TooLong { length: header.length, max: self.message_max }.into());
        }
        Ok(())
    }

    /// Puts the payload in its place: it may lie in bulk memory, and it may be compressed. A compressed one stays as
    /// it is where that was not agreed on, and its flag with it.
    #[cold]
    fn unfold(&self, header: Header, frame: &mut Frame) -> Result<Header, Broken> {
        let header = match header.flags.contains(Flags::EXTENDED) {
            true => self.with_bulk(header, frame)?,
            false => header,
        };
        if self.expands && header.kind.is_application() && header.flags.contains(Flags::COMPRESSED)
        {
            return expand(header, frame, self.message_max);
        }
        Ok(header)
    }

    /// Finds the payload of a frame that may have it in bulk memory.
    fn with_bulk(&self, mut header: Header, frame: &mut Frame) -> Result<Header, Broken> {
        let Some(bulk) = &self.bulk else { return Ok(header) };
        let taken = take_bulk(&mut frame.bytes, Header::BYTES);
        let detail = "an extension block cannot be understood";
        let taken = taken.map_err(|_| misbehaved(WireError::BadExtension, detail))?;
        let Some(descriptor) = taken else { return Ok(header) };
        if descriptor.length > self.message_max.into() {
            return Err(misbehaved(WireError::FrameTooLong, "a bulk payload is too long"));
        }
        frame.long = Some(Box::new(bulk.payload(descriptor)?));
        if frame.bytes.len() == Header::BYTES {
            header.flags = header.flags.without(Flags::EXTENDED);
        }
        header.length = (frame.bytes.len() - Header::BYTES) as u32 + descriptor.length as u32;
        Ok(header)
    }

    /// Whether [`Receiving::next`] has something to look at: one load, on a ring.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        match &self.r#in {
            In::Ring { consumer, .. } => consumer.has_record(),
            In::Socket { .. } => false,
        }
    }

    /// Whether [`Receiving::next`] would find nothing. Of a socket that is not known without a system call.
    #[inline]
    pub(crate) fn has_no_more(&self) -> bool {
        match &self.r#in {
            In::Ring { consumer, .. } => !consumer.has_record(),
            In::Socket { .. } => false,
        }
    }

    /// Whether a frame among the next, at most so many, may go before others: one with priority, or the word that a call
    /// is given up. A hint: nothing is checked, and of a socket only what one more read brings is looked at.
    #[inline(never)]
    pub(crate) fn has_urgent(&mut self, frames: usize) -> bool {
        match &mut self.r#in {
            In::Ring { consumer, .. } => {
                consumer.any_ahead(frames, |word| is_urgent(u64::from_le(word)))
            }
            In::Socket { socket, buffer, start, end } => {
                // A fault or the end is found again when its turn comes.
                let _ = read_more(socket, buffer, start, end, SOCKET_READ_BYTES);
                let mut here = &buffer[*start..*end];
                for _ in 0..frames {
                    let Some((head, rest)) = here.split_first_chunk::<{ Header::BYTES }>() else {
                        return false;
                    };
                    let (words, _) = head.as_chunks();
                    if is_urgent(u64::from_le_bytes(words[0])) {
                        return true;
                    }
                    let length = u64::from_le_bytes(words[1]) as u32;
                    here = rest.get(length as usize..).unwrap_or_default();
                }
                false
            }
        }
    }

    /// What changes when the peer makes room; nothing on a socket.
    #[inline]
    pub(crate) fn peer_progress(&self) -> (u64, u64) {
        match &self.r#in {
            In::Ring { consumer, .. } => consumer.peer_progress(),
            In::Socket { .. } => (0, 0),
        }
    }

    /// Before sleeping: tells the peer how far this side has read, and wakes it if it waits for
    /// that.
    pub(crate) fn publish(&mut self) -> Result<(), Broken> {
        if let In::Ring { consumer, bell } = &mut self.r#in
            && consumer.publish()
        {
            bell.ring_if_asleep()?;
        }
        Ok(())
    }

    /// Gives memory back that only busy connections need.
    pub(crate) fn shrink(&mut self) {
        if let In::Socket { buffer, start, end, .. } = &mut self.r#in
            && start == end
        {
            *buffer = Vec::new();
            (*start, *end) = (0, 0);
        }
    }
}

/// Whether a frame whose header begins with this word may go before others.
fn is_urgent(word: u64) -> bool {
    let [.., flags, kind_low, kind_high] = word.to_le_bytes();
    flags & Flags::PRIORITY.bits() != 0
        || u16::from_le_bytes([kind_low, kind_high]) == Kind::CANCEL.number()
}

#[inline(always)]
fn take_record(
    consumer: &mut Consumer,
    bell: &Bell<Doorbell>,
    payload_max: u32,
    frame: &mut Frame,
    header: &mut Header,
) -> Result<bool, Broken> {
    let Some(record) = consumer.peek()? else {
        return Ok(false);
    };
    let span = record.span();
    if span > layout::record_span(Header::BYTES + payload_max as usize) {
        return Err(misbehaved(WireError::FrameTooLong, "a record is too long"));
    }
    // Each word of the header is loaded once; then the copy alone is looked at.
    let words = record.read_words(0).map(u64::from_le);
    let Header { flags, kind, length, id, checksum } = Header::from_words(words, payload_max)?;
    (header.flags, header.kind, header.length) = (flags, kind, length);
    (header.id, header.checksum) = (id, checksum);
    let length = Header::BYTES + length as usize;
    if layout::record_span(length) != span {
        let detail = "a commit word disagrees with its frame's length";
        return Err(misbehaved(WireError::BadRing, detail));
    }
    let [first, second, third] = words;
    let third = third & u64::from(u32::MAX);
    let Frame { bytes, time, .. } = frame;
    let mut front = Header::BYTES;
    if flags.contains(Flags::EXTENDED) && length >= TIMED_BYTES {
        // As the header is: most blocks are these words.
        front = TIMED_BYTES;
        let block = record.read_words(Header::BYTES).map(u64::from_le);
        *time = TimeLeft::of_words(block);
        bytes.extend_from_slice(&[0; TIMED_BYTES]);
        put_words(bytes, [first, second, third, block[0], block[1], block[2]]);
    } else {
        bytes.extend_from_slice(&[0; Header::BYTES]);
        put_words(bytes, [first, second, third]);
    }
    record.append(front, length - front, bytes);
    if record.release() {
        bell.ring_if_asleep()?;
    }
    Ok(true)
}

fn take_from_socket(
    socket: &UnixStream,
    buffer: &mut Vec<u8>,
    start: &mut usize,
    end: &mut usize,
    payload_max: u32,
    frame: &mut Vec<u8>,
    header: &mut Header,
) -> Result<bool, Broken> {
    loop {
        let here = &buffer[*start..*end];
        let mut wanted = Header::BYTES;
        if let Some(head) = here.first_chunk() {
            *header = Header::decode(head, payload_max.saturating_add(EXTENSION_BYTES_MAX))?;
            let may_be_longer =
                header.flags.contains(Flags::EXTENDED) && header.kind.is_application();
            if header.length > payload_max && !may_be_longer {
                return Err(FrameError::TooLong { length: header.length, max: payload_max }.into());
            }
            wanted += header.length as usize;
            if here.len() >= wanted {
                frame.extend_from_slice(&here[..wanted]);
                frame[CHECKSUM_RANGE].fill(0);
                *start += wanted;
                return Ok(true);
            }
        }
        match read_more(socket, buffer, start, end, wanted) {
            Ok(0) if *end == 0 => return Err(Broken::Ended),
            Ok(0) => return Err(FrameError::Truncated { length: *end, needed: wanted }.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads once from the socket behind what is in the buffer, of which the next frame takes `wanted` bytes.
fn read_more(
    socket: &UnixStream,
    buffer: &mut Vec<u8>,
    start: &mut usize,
    end: &mut usize,
    wanted: usize,
) -> io::Result<usize> {
    // Move the beginning of the frame to the front and make room for the rest of it.
    buffer.copy_within(*start..*end, 0);
    *end -= *start;
    *start = 0;
    // Grow by what has come, not by what the header claims: a peer that announces much and
    // sends nothing costs nothing.
    let room = wanted.min(2 * *end).max(SOCKET_READ_BYTES);
    if buffer.len() < room {
        buffer.resize(room, 0);
    }
    let got = platform::receive(socket, &mut buffer[*end..])?;
    *end += got;
    Ok(got)
}

/// The header of a frame that belongs to the connection, such as Goodbye.
pub(crate) fn connection_header(kind: lapwing_proto::Kind) -> Header {
    Header::connection(kind, 0)
}

/// The header of a frame of one call; the length and checksum are filled in when it is sent.
pub(crate) fn call_header(
    flags: lapwing_proto::Flags,
    kind: lapwing_proto::Kind,
    id: MessageId,
) -> Header {
    Header { flags, kind, length: 0, id, checksum: 0 }
}

/// Pairs that travel with a call beside its payload: keys of text, values of bytes.
///
/// # Examples
///
/// ```
/// let metadata = lapwing::Metadata::from([("tenant", b"blue")]);
/// assert_eq!(metadata.get("tenant"), Some(&b"blue"[..]));
/// assert_eq!(metadata.get("other"), None);
/// ```
#[derive(Clone, PartialEq, Eq, Default)]
// One word, and mostly none: it goes through many hands with each call. Never an empty list.
pub struct Metadata(Option<Box<Pairs>>);

type Pairs = Vec<(String, Vec<u8>)>;

impl Metadata {
    /// No pairs.
    pub(crate) const NONE: Metadata = Metadata(None);

    /// The value of the first pair with this key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.iter().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// Adds a pair. Keys may stand more than once.
    pub fn push(&mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) {
        let pair = (key.into(), value.into());
        self.0.get_or_insert_default().push(pair);
    }

    /// All pairs, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.pairs().iter().map(|(key, value)| (key.as_str(), value.as_slice()))
    }

    /// Whether there is no pair.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn pairs(&self) -> &[(String, Vec<u8>)] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl fmt::Debug for Metadata {
    /// Says the keys alone: values are not for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.pairs().iter().map(|(key, _)| key)).finish()
    }
}

impl<K: Into<String>, V: Into<Vec<u8>>, const N: usize> From<[(K, V); N]> for Metadata {
    fn from(pairs: [(K, V); N]) -> Metadata {
        let pairs: Pairs =
            pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Metadata((!pairs.is_empty()).then(|| Box::new(pairs)))
    }
}

/// What a frame's extension block carries.
#[derive(Default, Debug)]
pub(crate) struct Carried {
    /// What was left of the call's time when it was sent, in microseconds.
    pub(crate) remaining_us: Option<u64>,
    /// When that was, in nanoseconds of the clock that both sides may have.
    pub(crate) sent_at_ns: Option<u64>,
    /// What is rarer.
    pub(crate) more: Option<Box<CarriedMore>>,
}

/// See [`Carried`].
#[derive(Default, Debug)]
pub(crate) struct CarriedMore {
    pub(crate) trace: Option<TraceContext>,
    pub(crate) metadata: Metadata,
    /// Whether the call's payloads are JSON.
    pub(crate) form: Form,
}

/// Reads the extension block of a frame whose header announces one; the payload is behind it then. Entries
/// that this version does not know are skipped.
///
/// # Errors
///
/// What keeps the frame from being understood; it is as it was then.
#[inline]
pub(crate) fn take_extensions(frame: &mut Frame) -> Result<Carried, ExtensionError> {
    // Not read yet where it came with a payload that was unfolded.
    let read = || TimeLeft::read_block(&frame.bytes[Header::BYTES..]);
    let Some(TimeLeft { remaining_us, sent_at_ns }) = frame.time.or_else(read) else {
        return take_any_extensions(frame);
    };
    frame.front = TIMED_BYTES;
    Ok(Carried { remaining_us: Some(remaining_us), sent_at_ns: Some(sent_at_ns), more: None })
}

#[cold]
fn take_any_extensions(frame: &mut Frame) -> Result<Carried, ExtensionError> {
    let (extensions, rest) = Extensions::parse(&frame.bytes[Header::BYTES..])?;
    let (mut remaining_us, mut sent_at_ns) = (None, None);
    let mut more = Box::<CarriedMore>::default();
    for entry in extensions.iter() {
        match entry {
            Entry::Deadline { remaining_us: left } => remaining_us = Some(left),
            Entry::Sent { at_ns } => sent_at_ns = Some(at_ns),
            Entry::Trace(trace) => more.trace = Some(trace),
            Entry::Metadata { key, value } => more.metadata.push(key, value),
            Entry::Json => more.form = Form::Json,
            _ => return Err(ExtensionError::UnknownCritical(BULK)),
        }
    }
    frame.front = frame.bytes.len() - rest.len();
    Ok(Carried { remaining_us, sent_at_ns, more: Some(more) })
}

/// Appends an extension block.
///
/// # Errors
///
/// More metadata than there may be, or an empty key.
pub(crate) fn put_extensions(
    into: &mut Vec<u8>,
    time: Option<TimeLeft>,
    trace: Option<TraceContext>,
    metadata: &Metadata,
    form: Form,
) -> Result<(), ExtensionError> {
    if let Some(time) = time
        && trace.is_none()
        && metadata.is_empty()
        && form == Form::Own
    {
        into.extend_from_slice(&time.block());
        return Ok(());
    }
    let mut block = ExtensionBuilder::new(into);
    // First, where `TimeLeft::set_in` finds them.
    if let Some(TimeLeft { remaining_us, sent_at_ns }) = time {
        block.push(Entry::Deadline { remaining_us })?.push(Entry::Sent { at_ns: sent_at_ns })?;
    }
    if let Some(trace) = trace {
        block.push(Entry::Trace(trace))?;
    }
    if form == Form::Json {
        block.push(Entry::Json)?;
    }
    for (key, value) in metadata.iter() {
        block.push(Entry::Metadata { key, value })?;
    }
    Ok(())
}

/// Flags of frames whose payload is not all that follows the header.
const UNFOLDED: Flags = Flags::EXTENDED.union(Flags::COMPRESSED);

/// The type of a bulk descriptor, which has no meaning on the socket.
const BULK: u8 = 0x83;

#[cfg(test)]
mod tests {
    use lapwing_proto::layout as protocol;

    use super::*;

    #[test]
    fn debug_output_of_metadata_holds_keys_and_no_values() {
        let metadata = Metadata::from([("tenant", "blue"), ("token", "secret")]);
        assert_eq!(format!("{metadata:?}"), r#"{"tenant", "token"}"#);
    }

    #[test]
    fn memory_layout_is_the_same_in_the_protocol_and_in_shared_memory() {
        assert_eq!(protocol::CONSUMED_AT, layout::CONSUMED);
        assert_eq!(protocol::ARMED_AT, layout::ARMED);
        assert_eq!(protocol::FREED_AT, layout::FREED);
        assert_eq!(protocol::RETURNED_AT, layout::RETURNED);
        assert_eq!(protocol::RING_AT, layout::RING);
        assert_eq!(protocol::RECORD_ALIGN, layout::LINE_BYTES);
        assert_eq!(protocol::HEADER_AT, layout::COMMIT_BYTES);
        assert_eq!(protocol::PAYLOAD_AT, layout::COMMIT_BYTES + Header::BYTES);
        assert_eq!(limits::RING_BYTES_MIN, layout::RING_BYTES_MIN);
        assert_eq!(limits::RING_BYTES_MAX, layout::RING_BYTES_MAX);
        for ring_bytes in [limits::RING_BYTES_MIN, limits::RING_BYTES, limits::RING_BYTES_MAX] {
            assert_eq!(
                protocol::segment_bytes(ring_bytes),
                layout::segment_bytes(ring_bytes) as u64
            );
            let longest = limits::inline_max(ring_bytes);
            assert!(Header::BYTES + longest as usize <= layout::body_bytes_max(ring_bytes));
        }
        for payload in [0, 24, 25, 32, 33, 64, 65_536] {
            let span = layout::record_span(Header::BYTES + payload as usize);
            assert_eq!(protocol::record_bytes(payload), span as u64);
        }
    }

    /// A sending and a receiving half, on a socket.
    fn halves() -> (Sending, Receiving) {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let out = Out::Socket { socket: Arc::new(near), backlog: Vec::new(), sent: 0 };
        let r#in = In::Socket { socket: Arc::new(far), buffer: Vec::new(), start: 0, end: 0 };
        let (checksum, max) = (Checksum::Crc32c, 65_536);
        let receiving = Receiving {
            r#in,
            checksum,
            inline_max: max,
            message_max: max,
            expands: false,
            bulk: None,
            _buffers: KeepBuffers::new(),
            _contexts: None,
        };
        (Sending::new(out, checksum, max, max, false), receiving)
    }

    #[test]
    fn frame_says_nothing_of_the_one_whose_buffer_it_was_put_together_in() {
        let (mut sending, mut receiving) = halves();
        let kind = Kind::application(0x0400).unwrap();
        let trace = Some(TraceContext { trace_id: [1; 16], parent_id: [2; 8], flags: 1 });
        let tenant = Metadata::from([("tenant", "blue")]);
        let mut received = Box::<Frame>::default();
        let mut header = connection_header(Kind::GOODBYE);
        for n in 0..600_usize {
            let timed = n % 2 == 0;
            let (trace, metadata) = match n % 5 {
                3 => (trace, &Metadata::NONE),
                4 => (None, &tenant),
                _ => (None, &Metadata::NONE),
            };
            let payload = vec![0xE0 | n as u8; n * 7 % 131];
            let time = TimeLeft { remaining_us: n as u64 + 1, sent_at_ns: u64::MAX - n as u64 };
            let mut written = Written::begin(timed, trace, metadata, Form::Own).unwrap();
            written.payload_mut().extend_from_slice(&payload);
            if timed {
                written.set_time(time);
            }
            let id = MessageId::new(n as u64 + 1);
            sending.send_written(call_header(Flags::REQUEST, kind, id), &mut written).unwrap();
            drop(written);

            assert!(receiving.next(&mut received, &mut header).unwrap(), "{n}");
            let more = trace.is_some() || !metadata.is_empty();
            assert_eq!(header.id, id);
            assert_eq!(header.flags.contains(Flags::EXTENDED), timed || more, "{n}");
            assert_eq!(received.time.is_some(), timed && !more, "{n}");
            let carried = if timed || more {
                take_extensions(&mut received).unwrap()
            } else {
                Carried::default()
            };
            assert_eq!(carried.remaining_us, timed.then_some(time.remaining_us), "{n}");
            assert_eq!(carried.sent_at_ns, timed.then_some(time.sent_at_ns), "{n}");
            let said = carried.more.unwrap_or_default();
            assert_eq!((said.trace, &said.metadata), (trace, metadata), "{n}");
            assert_eq!(received.payload(), payload, "{n}");
        }
    }
}
