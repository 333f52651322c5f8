//! The choices of the handshake, with no I/O: what the server grants, what the client believes.

use alloc::format;
use alloc::string::String;

use crate::{
    Checksum, ChecksumSet, Features, Hello, HelloAck, HelloReject, LimitsGranted, PeerMisbehaved,
    TransportGranted, TransportWanted, VERSION, WireError, limits,
};

/// What a server supports, from which it answers any Hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOffer {
    /// Oldest protocol version that the server speaks.
    pub version_min: u8,
    /// Latest protocol version that the server speaks.
    pub version_max: u8,
    /// Optional parts that the server has.
    pub features: Features,
    /// Optional parts that the server has for connections whose frames stay on the socket, and only for those.
    pub socket_features: Features,
    /// The most that the server grants.
    pub limits: LimitsGranted,
    /// Checksums that the server can do. `Off` is never granted to a connection on the socket; take
    /// it out as well when the peer is another user.
    pub checksums: ChecksumSet,
    /// Length of the ring in the server's own segment, in bytes, or `None` without shared memory.
    pub shared_memory: Option<u32>,
    /// Whether frames may stay on the socket: if asked for, or if shared memory is not to be had.
    pub socket: bool,
    /// The server's program, for people.
    pub program: String,
}

impl Default for ServerOffer {
    fn default() -> ServerOffer {
        ServerOffer {
            version_min: VERSION,
            version_max: VERSION,
            features: Features::NONE,
            socket_features: Features::NONE,
            limits: LimitsGranted {
                message_bytes: limits::MESSAGE_BYTES,
                calls_in_flight: limits::CALLS_IN_FLIGHT,
            },
            checksums: ChecksumSet::DEFAULT,
            shared_memory: Some(limits::RING_BYTES),
            socket: true,
            program: String::new(),
        }
    }
}

impl ServerOffer {
    /// Grants what both sides can do: the latest common version, common features, the lesser of
    /// each limit, the wanted transport or the socket instead, the best common checksum.
    ///
    /// # Errors
    ///
    /// The [`HelloReject`] to send, if the two sides share no version, transport or checksum.
    pub fn answer(&self, hello: &Hello, connection_id: u64) -> Result<HelloAck, HelloReject> {
        let version = self.version(hello)?;
        let transport = self.transport(hello)?;
        let checksum = self.checksum(hello, transport)?;
        Ok(HelloAck {
            version,
            features: self.features_over(transport).common(hello.features),
            limits: LimitsGranted {
                message_bytes: self.limits.message_bytes.min(hello.limits.message_bytes),
                calls_in_flight: self.limits.calls_in_flight.min(hello.limits.calls_in_flight),
            },
            connection_id,
            transport,
            checksum,
            program: self.program.clone(),
        })
    }

    fn features_over(&self, transport: TransportGranted) -> Features {
        match transport {
            TransportGranted::Socket => self.features.union(self.socket_features),
            TransportGranted::SharedMemory { .. } => self.features,
        }
    }

    fn version(&self, hello: &Hello) -> Result<u8, HelloReject> {
        let version = self.version_max.min(hello.version_max);
        if version >= self.version_min.max(hello.version_min) {
            return Ok(version);
        }
        let sentence = format!(
            "the client speaks protocol versions {} to {}, this server {} to {}",
            hello.version_min, hello.version_max, self.version_min, self.version_max
        );
        Err(self.reject(WireError::UnsupportedVersion, &sentence))
    }

    fn transport(&self, hello: &Hello) -> Result<TransportGranted, HelloReject> {
        match (hello.transport, self.shared_memory) {
            (TransportWanted::SharedMemory { .. }, Some(ring_bytes)) => {
                Ok(TransportGranted::SharedMemory { ring_bytes })
            }
            _ if self.socket => Ok(TransportGranted::Socket),
            _ => Err(self.reject(WireError::TransportRefused, "")),
        }
    }

    fn checksum(
        &self,
        hello: &Hello,
        transport: TransportGranted,
    ) -> Result<Checksum, HelloReject> {
        let mut ours = self.checksums;
        if transport == TransportGranted::Socket {
            ours.remove(Checksum::Off);
        }
        ChecksumSet::best_common(ours, hello.checksums)
            .ok_or_else(|| self.reject(WireError::NoCommonChecksum, ""))
    }

    fn reject(&self, error: WireError, sentence: &str) -> HelloReject {
        HelloReject {
            version_min: self.version_min,
            version_max: self.version_max,
            ..HelloReject::new(error, sentence)
        }
    }
}

impl Hello {
    /// Whether `ack` grants no more than this Hello asked for.
    ///
    /// The socket is a good answer to a wish for shared memory; a client that insists on shared
    /// memory looks at `ack.transport` itself.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved`] with [`WireError::BadGrant`] for a larger limit, or a version, feature,
    /// checksum or transport that was not offered.
    pub fn check(&self, ack: &HelloAck) -> Result<(), PeerMisbehaved> {
        let shared = matches!(ack.transport, TransportGranted::SharedMemory { .. });
        let detail = if !(self.version_min..=self.version_max).contains(&ack.version) {
            "the granted version was not offered"
        } else if !self.features.contains(ack.features) {
            "a granted feature was not offered"
        } else if ack.limits.message_bytes > self.limits.message_bytes {
            "the granted message limit is larger than was asked for"
        } else if ack.limits.calls_in_flight > self.limits.calls_in_flight {
            "more calls in flight are granted than were asked for"
        } else if !self.checksums.contains(ack.checksum) {
            "the granted checksum was not offered"
        } else if shared && self.transport == TransportWanted::Socket {
            "shared memory was granted and not asked for"
        } else if !shared && ack.checksum == Checksum::Off {
            "no checksum is granted for the socket, where there must be one"
        } else {
            return Ok(());
        };
        Err(PeerMisbehaved { error: WireError::BadGrant, detail })
    }
}
