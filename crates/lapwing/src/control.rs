//! The socket during the handshake, and later for announcements of bulk memory: whole frames, with file
//! descriptors, never read past.

use std::io::{self, ErrorKind};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use lapwing_proto::{
    Checksum, FrameError, Header, Kind, PeerMisbehaved, WireError, limits::HANDSHAKE_PAYLOAD_BYTES,
};

use crate::platform;

/// What seals the frames of the handshake, before anything is agreed.
const CHECKSUM: Checksum = Checksum::Crc32;

/// The most file descriptors that any frame of the handshake carries: a segment and a doorbell. Counted
/// as they come, so that a peer cannot make this side hold more by sending some with every byte.
const DESCRIPTORS_MAX: usize = 2;

/// A socket whose peer is still shaking hands.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    socket: Arc<UnixStream>,
    /// The frame so far.
    frame: Vec<u8>,
    /// How long the frame will be, as far as is known: a header, then what it says.
    wanted: usize,
    descriptors: Vec<OwnedFd>,
}

/// A whole frame of the handshake.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Why no frame will come.
#[derive(Debug)]
pub(crate) enum ControlError {
    Misbehaved(PeerMisbehaved),
    Ended,
    Io(io::Error),
}

impl ControlSocket {
    pub(crate) fn new(socket: UnixStream) -> io::Result<ControlSocket> {
        socket.set_nonblocking(true)?;
        Ok(ControlSocket::over(Arc::new(socket)))
    }

    /// Goes on with a socket whose handshake is over.
    pub(crate) fn over(socket: Arc<UnixStream>) -> ControlSocket {
        // With room for a header: a look at a socket that brings nothing then allocates nothing.
        let frame = Vec::with_capacity(Header::BYTES);
        ControlSocket { socket, frame, wanted: Header::BYTES, descriptors: vec![] }
    }

    pub(crate) fn socket(&self) -> &Arc<UnixStream> {
        &self.socket
    }

    /// Sends one frame of the handshake, with descriptors on its first byte. It is smaller than the
    /// least buffer a socket has, so it goes whole or not at all.
    pub(crate) fn send(
        &self,
        kind: Kind,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let header = Header::connection(kind, payload.len() as u32);
        let mut frame = header.encode().to_vec();
        frame.extend_from_slice(payload);
        CHECKSUM.seal(&mut frame);
        let sent = platform::send_with_descriptors(&self.socket, &frame, descriptors)?;
        if sent == frame.len() {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::WriteZero, "the socket took only part of a handshake frame"))
    }

    /// Reads as far as this frame goes, without waiting. `None`: call again when there is more.
    pub(crate) fn try_receive(&mut self) -> Result<Option<Message>, ControlError> {
        loop {
            let old = self.frame.len();
            self.frame.resize(self.wanted, 0);
            let got = platform::receive_with_descriptors(
                &self.socket,
                &mut self.frame[old..],
                &mut self.descriptors,
            );
            let got = match got {
                Ok(got) => got,
                Err(error) => {
                    self.frame.truncate(old);
                    return match error.kind() {
                        ErrorKind::WouldBlock => Ok(None),
                        ErrorKind::Interrupted => continue,
                        ErrorKind::ConnectionReset => Err(ControlError::Ended),
                        _ => Err(ControlError::Io(error)),
                    };
                }
            };
            self.frame.truncate(old + got.bytes);
            if got.truncated || self.descriptors.len() > DESCRIPTORS_MAX {
                return Err(misbehaved(
                    WireError::SurplusDescriptors,
                    "more file descriptors came than a handshake has",
                ));
            }
            if got.bytes == 0 {
                return Err(ControlError::Ended);
            }
            if self.frame.len() == self.wanted && self.is_whole()? {
                return self.finish().map(Some);
            }
        }
    }

    /// With `wanted` bytes here: whether that was all. The first time it was only the header.
    fn is_whole(&mut self) -> Result<bool, ControlError> {
        if self.wanted > Header::BYTES {
            return Ok(true);
        }
        let header = self.header()?;
        self.wanted += header.length as usize;
        Ok(header.length == 0)
    }

    fn header(&self) -> Result<Header, ControlError> {
        let bytes = self.frame.first_chunk().expect("called with a whole header");
        Header::decode(bytes, HANDSHAKE_PAYLOAD_BYTES).map_err(|error| frame_error(&error))
    }

    fn finish(&mut self) -> Result<Message, ControlError> {
        let header = self.header()?;
        CHECKSUM.check_in_place(&mut self.frame).map_err(|error| frame_error(&error))?;
        let payload = self.frame.split_off(Header::BYTES);
        self.frame.clear();
        self.wanted = Header::BYTES;
        Ok(Message { header, payload, descriptors: std::mem::take(&mut self.descriptors) })
    }
}

pub(crate) fn misbehaved(error: WireError, detail: &'static str) -> ControlError {
    ControlError::Misbehaved(PeerMisbehaved { error, detail })
}

fn frame_error(error: &FrameError) -> ControlError {
    misbehaved(error.wire_error(), "a frame of the handshake is malformed")
}
