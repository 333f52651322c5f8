//! A server driven by hand, against the clients.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use lapwing_proto::{
    Checksum, Features, Hello, HelloAck, Kind, ServerOffer, TransportGranted, TransportWanted,
};

use crate::frame::RawFrame;
use crate::memory::{doorbell, sealed_segment};
use crate::peer::RawPeer;
use crate::ring::RawRing;

/// A socket with a thread behind it that treats one connection as a test wants.
#[derive(Debug)]
pub struct RawServer {
    path: PathBuf,
    serving: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

/// A client whose Hello has come.
#[derive(Debug)]
pub struct Greeted {
    /// The connection.
    pub peer: RawPeer,
    /// What the client said.
    pub hello: Hello,
    /// The descriptors that came with it: none, or segment and doorbell.
    pub descriptors: Vec<OwnedFd>,
    /// What the server has, of which the client is granted what it has, too. None at first.
    pub features: Features,
}

impl RawServer {
    /// Accepts one connection, waits for its Hello, and gives it to `serve` on a thread.
    ///
    /// # Panics
    ///
    /// If there is no place for the socket.
    pub fn start(serve: impl FnOnce(Greeted) + Send + 'static) -> RawServer {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = folder.path().join("raw.sock");
        let listener = UnixListener::bind(&path).expect("the socket can be bound");
        let serving = std::thread::spawn(move || {
            let (socket, _) = listener.accept().expect("a client comes");
            serve(Greeted::of(RawPeer::over(socket)));
        });
        RawServer { path, serving: Some(serving), _folder: folder }
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the thread's end.
    ///
    /// # Panics
    ///
    /// If the thread did.
    pub fn join(mut self) {
        if let Some(serving) = self.serving.take() {
            serving.join().expect("the raw server's own checks hold");
        }
    }
}

impl Greeted {
    fn of(mut peer: RawPeer) -> Greeted {
        let (header, payload) = peer.hear_frame();
        assert_eq!(header.kind, Kind::HELLO);
        let hello = Hello::decode(&payload).expect("a good Hello");
        let descriptors = peer.take_descriptors();
        let shared = matches!(hello.transport, TransportWanted::SharedMemory { .. });
        assert_eq!(descriptors.len(), if shared { 2 } else { 0 });
        Greeted { peer, hello, descriptors, features: Features::NONE }
    }

    /// The grant that an honest server would give.
    ///
    /// # Panics
    ///
    /// If the client's Hello cannot be granted.
    #[must_use]
    pub fn honest_ack(&self) -> HelloAck {
        let features = self.features;
        let offer = ServerOffer { program: "raw".into(), features, ..ServerOffer::default() };
        offer.answer(&self.hello, 7).expect("a grantable Hello")
    }

    /// Sends a frame of the handshake with these descriptors.
    pub fn answer(&self, kind: Kind, payload: &[u8], descriptors: &[OwnedFd]) {
        let frame = RawFrame::connection(kind, payload).bytes(Checksum::Crc32);
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        self.peer.send_with(&frame, &borrowed);
    }

    /// Grants as an honest server does; what comes later is the test's.
    ///
    /// # Panics
    ///
    /// If the client's Hello cannot be granted.
    #[must_use]
    pub fn grant(self) -> RawPeer {
        let ack = self.honest_ack();
        let wanted = self.hello.transport;
        let granted = ack.transport;
        if let (
            TransportWanted::SharedMemory { ring_bytes: theirs },
            TransportGranted::SharedMemory { ring_bytes: ours },
        ) = (wanted, granted)
        {
            let (own, file) = sealed_segment(ours);
            let bell = doorbell();
            let kept = bell.try_clone().expect("a descriptor can be copied");
            self.answer(Kind::HELLO_ACK, &ack.encode(), &[file, bell]);
            let Greeted { mut peer, descriptors, .. } = self;
            let [segment, their_bell] =
                <[OwnedFd; 2]>::try_from(descriptors).expect("two descriptors came");
            peer.set_checksum(ack.checksum);
            peer.enter_rings(RawRing::new(own, kept, segment, their_bell, theirs));
            return peer;
        }
        self.answer(Kind::HELLO_ACK, &ack.encode(), &[]);
        let mut peer = self.peer;
        peer.set_checksum(ack.checksum);
        peer
    }
}
