//! The handshake, step by step: each step is a value that the next one consumes, so none repeats.
//!
//! Client: [`ClientHello::prepare`] -> [`ClientHello::send`] -> [`AwaitingAck::receive`] -> [`Link`].
//! Server: [`ServerHello::receive`] -> [`Admitted::grant`] -> [`Link`]; or [`refuse`] at any step.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use lapwing_proto::{
    Flags, Hello, HelloAck, HelloReject, Kind, MessageId, PeerMisbehaved, ServerOffer,
    TransportGranted, TransportWanted, WireError,
};
use lapwing_shm::{Doorbell, OwnMemory, PeerMemory, Segment, SegmentError};

use crate::bulk::BulkTerms;
use crate::control::{ControlError, ControlSocket, Message};
use crate::error::ConnectError;
use crate::link::{Agreed, Link, SharedMemory};

/// This side's half of the shared memory, before the peer's is known.
#[derive(Debug)]
struct OwnHalf {
    memory: OwnMemory,
    doorbell: Doorbell,
}

fn own_half(ring_bytes: u32) -> Result<(OwnHalf, OwnedFd), SegmentError> {
    let (memory, file) = Segment::create(ring_bytes)?.export();
    let doorbell = Doorbell::create()?;
    Ok((OwnHalf { memory, doorbell }, file))
}

/// Step 1 of the client: everything made, nothing sent.
#[derive(Debug)]
pub(crate) struct ClientHello {
    hello: Hello,
    own: Option<(OwnHalf, OwnedFd)>,
}

/// Step 2 of the client: Hello is on its way.
#[derive(Debug)]
pub(crate) struct AwaitingAck {
    hello: Hello,
    own: Option<OwnHalf>,
}

impl ClientHello {
    pub(crate) fn prepare(hello: Hello) -> Result<ClientHello, ConnectError> {
        let own = match hello.transport {
            TransportWanted::SharedMemory { ring_bytes } => Some(own_half(ring_bytes)?),
            TransportWanted::Socket => None,
        };
        Ok(ClientHello { hello, own })
    }

    pub(crate) fn send(self, control: &ControlSocket) -> io::Result<AwaitingAck> {
        let payload = self.hello.encode();
        let sent = match &self.own {
            Some((half, file)) => {
                control.send(Kind::HELLO, &payload, &[file.as_fd(), half.doorbell.as_fd()])
            }
            None => control.send(Kind::HELLO, &payload, &[]),
        };
        match sent {
            // A server that refuses at once may have closed before Hello went out; why it did is there
            // to be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            sent => sent?,
        }
        // The segment's descriptor is closed here: its mapping is all this side needs.
        Ok(AwaitingAck { hello: self.hello, own: self.own.map(|(half, _file)| half) })
    }
}

impl AwaitingAck {
    pub(crate) fn receive(
        self,
        control: &ControlSocket,
        message: Message,
        terms: &BulkTerms,
    ) -> Result<Link, ConnectError> {
        let header = &message.header;
        if header.flags != Flags::NONE || header.id != MessageId::CONNECTION {
            return Err(fault(WireError::BadFlags, "HelloAck has no flags and id 0").into());
        }
        let ack = match header.kind {
            Kind::HELLO_ACK => HelloAck::decode(&message.payload)
                .map_err(|_| fault(WireError::BadMessage, "its HelloAck cannot be read"))?,
            Kind::HELLO_REJECT => return Err(rejection(&message.payload)),
            _ => {
                let detail = "it answered Hello with something else than HelloAck";
                return Err(fault(WireError::UnexpectedMessage, detail).into());
            }
        };
        self.hello.check(&ack)?;
        let memory = match ack.transport {
            TransportGranted::Socket => {
                take_none(&message.descriptors)?;
                None
            }
            TransportGranted::SharedMemory { ring_bytes } => {
                let own = self.own.expect("Hello::check: granted only if asked for");
                Some(join(own, message.descriptors, ring_bytes)?)
            }
        };
        let agreed = Agreed {
            connection_id: ack.connection_id,
            features: ack.features,
            limits: ack.limits,
            checksum: ack.checksum,
            peer_program: plain(&ack.program),
        };
        Ok(Link::new(control.socket().clone(), agreed, memory, terms))
    }
}

/// Text from a peer, on one line and without control characters.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn rejection(payload: &[u8]) -> ConnectError {
    match HelloReject::decode(payload) {
        Ok(reject) => {
            ConnectError::Rejected { error: reject.wire_error(), sentence: plain(&reject.sentence) }
        }
        Err(_) => fault(WireError::BadMessage, "its HelloReject cannot be read").into(),
    }
}

fn fault(error: WireError, detail: &'static str) -> PeerMisbehaved {
    PeerMisbehaved { error, detail }
}

impl From<ControlError> for ConnectError {
    fn from(error: ControlError) -> ConnectError {
        match error {
            ControlError::Misbehaved(peer) => peer.into(),
            ControlError::Ended => ConnectError::Closed,
            ControlError::Io(error) => error.into(),
        }
    }
}

fn take_none(descriptors: &[OwnedFd]) -> Result<(), PeerMisbehaved> {
    if descriptors.is_empty() {
        return Ok(());
    }
    Err(fault(WireError::SurplusDescriptors, "file descriptors came for the socket transport"))
}

/// Checks and maps the peer's half: exactly two descriptors, segment then doorbell.
fn join(
    own: OwnHalf,
    descriptors: Vec<OwnedFd>,
    peer_ring_bytes: u32,
) -> Result<SharedMemory, PeerMisbehaved> {
    let [segment, doorbell] = <[OwnedFd; 2]>::try_from(descriptors).map_err(|other| {
        if other.len() < 2 {
            fault(WireError::MissingDescriptors, "shared memory takes a segment and a doorbell")
        } else {
            fault(WireError::SurplusDescriptors, "shared memory takes a segment and a doorbell")
        }
    })?;
    let peer = PeerMemory::import(segment, peer_ring_bytes).map_err(|error| {
        let detail = match error {
            SegmentError::RingBytes(_) => "its ring length is impossible",
            SegmentError::NotMemoryFile => "its segment is not a memory file",
            SegmentError::Unsealed(_) => "its segment lacks seals",
            SegmentError::Length { .. } | SegmentError::Shape => "its segment has the wrong length",
            SegmentError::SealBusy | SegmentError::Io(_) => "its segment could not be mapped",
        };
        fault(WireError::BadSegment, detail)
    })?;
    let peer_doorbell = Doorbell::import(doorbell)
        .map_err(|_| fault(WireError::BadDoorbell, "its doorbell is not an eventfd"))?;
    Ok(SharedMemory { own: own.memory, own_doorbell: own.doorbell, peer, peer_doorbell })
}

/// Step 1 of the server: a well-formed Hello has come.
#[derive(Debug)]
pub(crate) struct ServerHello {
    hello: Hello,
    descriptors: Vec<OwnedFd>,
}

/// Step 2 of the server: this client may have a connection.
#[derive(Debug)]
pub(crate) struct Admitted(ServerHello);

impl ServerHello {
    pub(crate) fn receive(message: Message) -> Result<ServerHello, HelloReject> {
        if message.header.kind != Kind::HELLO {
            return Err(HelloReject::new(
                WireError::UnexpectedMessage,
                "the first frame of a connection must be Hello",
            ));
        }
        let header = &message.header;
        if header.flags != Flags::NONE || header.id != MessageId::CONNECTION {
            return Err(HelloReject::new(WireError::BadFlags, "Hello has no flags and id 0"));
        }
        let hello = Hello::decode(&message.payload).map_err(|error| {
            HelloReject::new(WireError::BadMessage, &format!("Hello cannot be read: {error}"))
        })?;
        Ok(ServerHello { hello, descriptors: message.descriptors })
    }

    /// The policy and the quotas said yes.
    pub(crate) fn admit(self) -> Admitted {
        Admitted(self)
    }
}

impl Admitted {
    /// Checks what came with Hello, makes this side's half, answers HelloAck.
    pub(crate) fn grant(
        self,
        control: &ControlSocket,
        offer: &ServerOffer,
        connection_id: u64,
        terms: &BulkTerms,
    ) -> Result<Link, HelloReject> {
        let ServerHello { hello, descriptors } = self.0;
        let ack = offer.answer(&hello, connection_id)?;
        let wanted = hello.transport;
        let (memory, file) = match (wanted, ack.transport) {
            (
                TransportWanted::SharedMemory { ring_bytes: theirs },
                TransportGranted::SharedMemory { ring_bytes: ours },
            ) => {
                let (own, file) = own_half(ours).map_err(|error| no_memory(&error))?;
                (Some(join(own, descriptors, theirs).map_err(reject)?), Some(file))
            }
            (TransportWanted::Socket, _) => {
                take_none(&descriptors).map_err(reject)?;
                (None, None)
            }
            // Wanted shared memory, gets the socket: what came is closed unused.
            (TransportWanted::SharedMemory { .. }, TransportGranted::Socket) => (None, None),
        };
        let payload = ack.encode();
        let sent = match (&memory, &file) {
            (Some(memory), Some(file)) => {
                let fds = [file.as_fd(), memory.own_doorbell.as_fd()];
                control.send(Kind::HELLO_ACK, &payload, &fds)
            }
            _ => control.send(Kind::HELLO_ACK, &payload, &[]),
        };
        sent.map_err(|error| HelloReject::new(WireError::Internal, &error.to_string()))?;
        let agreed = Agreed {
            connection_id,
            features: ack.features,
            limits: ack.limits,
            checksum: ack.checksum,
            peer_program: plain(&hello.program),
        };
        Ok(Link::new(control.socket().clone(), agreed, memory, terms))
    }
}

fn reject(peer: PeerMisbehaved) -> HelloReject {
    let sentence = format!("{}: {}", peer.error.sentence(), peer.detail);
    HelloReject::new(peer.error, &sentence)
}

fn no_memory(error: &SegmentError) -> HelloReject {
    let sentence = format!("the server could not make its segment: {error}");
    HelloReject::new(WireError::Internal, &sentence)
}

/// Tells the client why not. Best effort: it may be gone, or not read.
pub(crate) fn refuse(control: &ControlSocket, reject: &HelloReject) {
    let _ = control.send(Kind::HELLO_REJECT, &reject.encode(), &[]);
}

/// What a client is told whose first frame is not even one.
pub(crate) fn control_reject(error: &ControlError) -> Option<HelloReject> {
    match error {
        ControlError::Misbehaved(peer) => Some(reject(*peer)),
        ControlError::Ended | ControlError::Io(_) => None,
    }
}
