//! One end of a connection, driven by hand.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use lapwing::Transport;
use lapwing_proto::{
    Checksum, Goodbye, Header, Hello, HelloAck, HelloReject, Kind, TransportGranted,
    TransportWanted, WireError, limits,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::PATIENCE;
use crate::frame::RawFrame;
use crate::memory::{doorbell, sealed_segment};
use crate::ring::RawRing;

/// The most descriptors Linux takes in one message.
const DESCRIPTORS_MAX: usize = 253;

/// What came from the peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    /// A whole frame with a good checksum.
    Frame(Header, Vec<u8>),
    /// The peer closed, between two frames.
    End,
    /// Nothing came in the time given.
    Nothing,
}

/// One end of a connection that does nothing by itself: a client, or the server's place.
#[derive(Debug)]
pub struct RawPeer {
    socket: UnixStream,
    /// Bytes of the socket that are no whole frame yet.
    buffer: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    checksum: Checksum,
    ring: Option<RawRing>,
}

/// A good Hello for `transport`, with the shortest ring.
#[must_use]
pub fn hello(transport: Transport) -> Hello {
    let wanted = match transport {
        Transport::Socket => TransportWanted::Socket,
        Transport::SharedMemory => {
            TransportWanted::SharedMemory { ring_bytes: limits::RING_BYTES_MIN }
        }
    };
    Hello::new("raw", wanted)
}

impl RawPeer {
    /// Connects to a server and says nothing.
    ///
    /// # Panics
    ///
    /// If nothing listens there.
    #[must_use]
    pub fn connect(path: &Path) -> RawPeer {
        RawPeer::over(UnixStream::connect(path).expect("the server listens"))
    }

    /// An end of a connection that is open already.
    #[must_use]
    pub fn over(socket: UnixStream) -> RawPeer {
        let checksum = Checksum::Crc32;
        RawPeer { socket, buffer: Vec::new(), descriptors: Vec::new(), checksum, ring: None }
    }

    /// Connects and shakes hands as it should be done.
    ///
    /// # Panics
    ///
    /// If the server does not grant the transport.
    #[must_use]
    pub fn greet(path: &Path, transport: Transport) -> RawPeer {
        RawPeer::greet_with(path, &hello(transport)).0
    }

    /// As [`RawPeer::greet`] with a Hello of the test's own, and the server's grant.
    ///
    /// # Panics
    ///
    /// If the server does not grant.
    #[must_use]
    pub fn greet_with(path: &Path, hello: &Hello) -> (RawPeer, HelloAck) {
        let mut peer = RawPeer::connect(path);
        let frame = RawFrame::connection(Kind::HELLO, &hello.encode()).bytes(Checksum::Crc32);
        let TransportWanted::SharedMemory { ring_bytes } = hello.transport else {
            peer.send(&frame);
            let ack = peer.hear_ack();
            return (peer, ack);
        };
        let (own, file) = sealed_segment(ring_bytes);
        let bell = doorbell();
        peer.send_with(&frame, &[file.as_fd(), bell.as_fd()]);
        let ack = peer.hear_ack();
        let TransportGranted::SharedMemory { ring_bytes: theirs } = ack.transport else {
            panic!("shared memory was not granted");
        };
        let descriptors = peer.take_descriptors();
        let [segment, their_bell] =
            <[OwnedFd; 2]>::try_from(descriptors).expect("HelloAck brings two descriptors");
        peer.enter_rings(RawRing::new(own, bell, segment, their_bell, theirs));
        (peer, ack)
    }

    /// Waits for HelloAck and takes its checksum into use.
    ///
    /// # Panics
    ///
    /// If something else comes.
    pub fn hear_ack(&mut self) -> HelloAck {
        let (header, payload) = self.hear_frame();
        assert_eq!(header.kind, Kind::HELLO_ACK, "{}", told(&header, &payload));
        let ack = HelloAck::decode(&payload).expect("a good HelloAck");
        self.checksum = ack.checksum;
        ack
    }

    /// From now on frames go through the rings.
    pub fn enter_rings(&mut self, ring: RawRing) {
        self.ring = Some(ring);
    }

    /// What seals frames from now on.
    pub fn set_checksum(&mut self, checksum: Checksum) {
        self.checksum = checksum;
    }

    /// What seals frames.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// The rings.
    ///
    /// # Panics
    ///
    /// If the connection is on the socket.
    pub fn ring(&mut self) -> &mut RawRing {
        self.ring.as_mut().expect("a connection over shared memory")
    }

    /// Whether the connection has rings.
    #[must_use]
    pub fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// Sends bytes on the socket. A peer that has closed already is no fault of this side's.
    ///
    /// # Panics
    ///
    /// If the peer does not take them in [`PATIENCE`].
    pub fn send(&self, bytes: &[u8]) {
        self.send_with(bytes, &[]);
    }

    /// Sends bytes on the socket, with descriptors on the first of them.
    ///
    /// # Panics
    ///
    /// As [`RawPeer::send`].
    pub fn send_with(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut sent = 0;
        let deadline = Instant::now() + PATIENCE;
        while sent < bytes.len() {
            let with = if sent == 0 { descriptors } else { &[] };
            match self.try_send_with(&bytes[sent..], with) {
                Ok(more) => sent += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "the peer takes no bytes");
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(_) => return,
            }
        }
    }

    /// Sends what the socket takes now.
    ///
    /// # Errors
    ///
    /// As the kernel says; `WouldBlock` when it takes nothing.
    pub fn try_send_with(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags)?)
    }

    /// Sends a frame over the connection's transport, sealed as agreed.
    pub fn send_frame(&mut self, frame: &RawFrame) {
        let bytes = frame.bytes(self.checksum);
        self.send_body(&bytes);
    }

    /// Sends the bytes of a frame over the connection's transport.
    pub fn send_body(&mut self, bytes: &[u8]) {
        match &mut self.ring {
            Some(ring) => ring.put(bytes),
            None => self.send(bytes),
        }
    }

    /// Closes this side's sending half of the socket.
    pub fn hang_up(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// The next frame, or the end, within `limit`.
    ///
    /// # Panics
    ///
    /// If what comes is no good frame.
    pub fn hear_within(&mut self, limit: Duration) -> Heard {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(frame) = self.next_frame() {
                return frame;
            }
            let ended = self.read_socket();
            // What was said before the end comes first.
            if let Some(frame) = self.next_frame() {
                return frame;
            }
            if ended {
                // Beside rings the socket carries announcements, which nobody here reads.
                let cut = self.ring.is_none() && !self.buffer.is_empty();
                assert!(!cut, "the peer closed within a frame");
                return Heard::End;
            }
            if Instant::now() >= deadline {
                return Heard::Nothing;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The next frame, or the end, within [`PATIENCE`].
    pub fn hear(&mut self) -> Heard {
        self.hear_within(PATIENCE)
    }

    /// The next frame.
    ///
    /// # Panics
    ///
    /// If none comes.
    pub fn hear_frame(&mut self) -> (Header, Vec<u8>) {
        match self.hear() {
            Heard::Frame(header, payload) => (header, payload),
            other => panic!("a frame was expected, and there was {other:?}"),
        }
    }

    /// The error that the peer says goodbye with, after which it must close. Responses that come before
    /// are passed over.
    ///
    /// # Panics
    ///
    /// If it does not say goodbye or does not close.
    pub fn hear_goodbye(&mut self) -> WireError {
        loop {
            let (header, payload) = self.hear_frame();
            if header.kind != Kind::GOODBYE {
                assert!(header.flags.is_response(), "{header:?}");
                continue;
            }
            let goodbye = Goodbye::decode(&payload).expect("a good Goodbye");
            assert!(!goodbye.sentence.is_empty());
            assert_eq!(self.hear(), Heard::End, "after Goodbye comes the end");
            return goodbye.wire_error().expect("a known error");
        }
    }

    /// The refusal, after which the server must close.
    ///
    /// # Panics
    ///
    /// If something else comes.
    pub fn hear_reject(&mut self) -> HelloReject {
        let (header, payload) = self.hear_frame();
        assert_eq!(header.kind, Kind::HELLO_REJECT, "{}", told(&header, &payload));
        let reject = HelloReject::decode(&payload).expect("a good HelloReject");
        assert!(!reject.sentence.is_empty());
        assert_eq!(self.hear(), Heard::End, "after HelloReject comes the end");
        assert!(self.descriptors.is_empty(), "a refusal brings no descriptors");
        reject
    }

    /// Makes an echo call and checks its answer.
    ///
    /// # Panics
    ///
    /// If the answer is another.
    pub fn call(&mut self, kind: u16, id: u64, payload: &[u8]) -> (Header, Vec<u8>) {
        self.send_frame(&RawFrame::request(kind, id, payload));
        let (header, reply) = self.hear_frame();
        assert!(header.flags.is_response() && header.id.get() == id, "{}", told(&header, &reply));
        (header, reply)
    }

    /// The descriptors that came so far.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    fn next_frame(&mut self) -> Option<Heard> {
        let mut bytes = match &mut self.ring {
            Some(ring) => ring.take()?,
            None => std::mem::take(&mut self.buffer),
        };
        let Some(head) = bytes.first_chunk() else {
            self.buffer = bytes;
            return None;
        };
        let header = Header::decode(head, limits::MESSAGE_BYTES_MAX).expect("a good header");
        let length = Header::BYTES + header.length as usize;
        if bytes.len() < length {
            assert!(self.ring.is_none(), "a record that holds less than its frame");
            self.buffer = bytes;
            return None;
        }
        let rest = bytes.split_off(length);
        if self.ring.is_none() {
            self.buffer = rest;
        }
        self.checksum.check(&bytes).expect("a good checksum");
        Some(Heard::Frame(header, bytes.split_off(Header::BYTES)))
    }

    /// Reads what is there; whether the peer has closed.
    fn read_socket(&mut self) -> bool {
        let mut bytes = [0; 64 * 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let slices = &mut [IoSliceMut::new(&mut bytes)];
        let got = match rustix::net::recvmsg(&self.socket, slices, &mut control, flags) {
            Ok(got) => got.bytes,
            Err(error) => return io::Error::from(error).kind() == ErrorKind::ConnectionReset,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.descriptors.extend(fds);
            }
        }
        self.buffer.extend_from_slice(&bytes[..got]);
        got == 0
    }
}

/// What a frame says, for the message of an assertion.
fn told(header: &Header, payload: &[u8]) -> String {
    match header.kind {
        Kind::HELLO_REJECT => format!("{:?}", HelloReject::decode(payload)),
        Kind::GOODBYE => format!("{:?}", Goodbye::decode(payload)),
        _ => format!("{header:?}"),
    }
}
