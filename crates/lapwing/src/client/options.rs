//! How a client connects.

use std::env;
use std::time::{Duration, Instant};

use lapwing_proto::{
    Checksum, ChecksumSet, Features, Hello, LimitsWanted, TraceContext, TransportWanted, limits,
};
use lapwing_shm::{CooperativePeers, Spin};

use super::core::Travel;
use crate::ambient::Ambient;
use crate::bulk::BulkTerms;
use crate::compression::Compression;
use crate::link::Metadata;

/// Where the frames of a connection go.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Transport {
    /// Through rings in shared memory, where the server agrees; else over the socket.
    #[default]
    SharedMemory,
    /// Over the Unix socket.
    Socket,
}

/// What guards each frame against corruption.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum FrameChecksum {
    /// The best that both sides have: CRC-32C, or CRC-32.
    #[default]
    Best,
    /// CRC-32 (IEEE 802.3).
    Crc32,
    /// None, where the server agrees and rings are used; else the best.
    Off,
}

/// How a client connects. Every limit is a wish: the server grants the same or less.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Where frames go. Default: shared memory.
    pub transport: Transport,
    /// Who waits by looking, and who by sleeping. Default: adaptive.
    pub spin: Spin,
    /// What guards frames. Default: the best that both sides have.
    pub checksum: FrameChecksum,
    /// Bytes of this side's ring: a power of two from 64 KiB to 64 MiB. Default 256 KiB. Payloads of more than
    /// a quarter of it go through bulk memory.
    pub ring_bytes: u32,
    /// The largest message, in bytes. Default 10 MiB, at most 1 GiB.
    pub message_bytes: u32,
    /// Bulk memory that this side may have for payloads too long for its ring, in bytes; when it is used up,
    /// calls wait. At least one block for the largest message, at most that or 64 MiB, the default. 0 is no
    /// bulk memory in either direction: then a quarter of the ring is the largest message.
    pub bulk_bytes: u64,
    /// How long bulk memory is unused before it is given back. Default 2 s. A blocking client gives it back
    /// when it is dropped, or makes room for other payloads.
    pub bulk_idle: Duration,
    /// Borrow payloads from the server's bulk memory instead of copying them out. Default: no.
    pub in_place: Option<CooperativePeers>,
    /// Whether payloads are compressed, where the server wants it, too. Default: over the socket. With the cargo
    /// feature `compression`.
    #[cfg(feature = "compression")]
    pub compression: Compression,
    /// Calls in flight at once. Default 256.
    pub calls_in_flight: u32,
    /// How long the handshake may take. Default 5 s.
    pub handshake: Duration,
    /// How long [`disconnect`](crate::IpcClient::disconnect) waits for calls in flight. Default 10 s.
    pub drain: Duration,
    /// This program's name, for the server's lists; at most 128 bytes. Default: that of the executable.
    pub program: String,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        let wanted = LimitsWanted::default();
        ClientOptions {
            transport: Transport::default(),
            spin: Spin::default(),
            checksum: FrameChecksum::default(),
            ring_bytes: limits::RING_BYTES,
            message_bytes: wanted.message_bytes,
            bulk_bytes: limits::BULK_BYTES.into(),
            bulk_idle: Duration::from_millis(limits::BULK_IDLE_MS.into()),
            in_place: None,
            #[cfg(feature = "compression")]
            compression: Compression::default(),
            calls_in_flight: wanted.calls_in_flight,
            handshake: Duration::from_millis(limits::HANDSHAKE_MS.into()),
            drain: Duration::from_millis(limits::DRAIN_MS.into()),
            program: program_name(),
        }
    }
}

pub(crate) fn program_name() -> String {
    let name = env::current_exe().ok().and_then(|path| path.file_name().map(ToOwned::to_owned));
    name.map_or_else(|| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
}

pub(crate) fn checksum_set(choice: FrameChecksum) -> ChecksumSet {
    let mut offered = ChecksumSet::DEFAULT;
    match choice {
        FrameChecksum::Best => {}
        FrameChecksum::Crc32 => offered = ChecksumSet::only(Checksum::Crc32),
        FrameChecksum::Off => offered.insert(Checksum::Off),
    }
    offered
}

impl ClientOptions {
    pub(crate) fn hello(&self) -> Hello {
        let transport = match self.transport {
            Transport::SharedMemory => {
                TransportWanted::SharedMemory { ring_bytes: self.ring_bytes }
            }
            Transport::Socket => TransportWanted::Socket,
        };
        let mut hello = Hello::new(&crate::handshake::plain(&self.program), transport);
        hello.limits = LimitsWanted {
            message_bytes: self.message_bytes.clamp(1, limits::MESSAGE_BYTES_MAX),
            calls_in_flight: self.calls_in_flight.clamp(1, limits::CALLS_IN_FLIGHT_MAX),
        };
        hello.checksums = checksum_set(self.checksum);
        if self.bulk_bytes > 0 && self.transport == Transport::SharedMemory {
            hello.features = Features::BULK;
        }
        let compression = self.compression().wanted(self.transport == Transport::Socket);
        hello.features = hello.features.union(compression);
        hello
    }

    fn compression(&self) -> Compression {
        #[cfg(feature = "compression")]
        return self.compression;
        #[cfg(not(feature = "compression"))]
        Compression::default()
    }

    pub(crate) fn bulk_terms(&self) -> BulkTerms {
        BulkTerms { own_bytes_max: self.bulk_bytes, in_place: self.in_place, account: None }
    }
}

/// What goes with one call beside its request.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let options = lapwing::CallOptions::default().timeout(Duration::from_millis(200));
/// ```
#[derive(Clone, Default, Debug)]
pub struct CallOptions {
    timeout: Option<Duration>,
    deadline: Option<Instant>,
    trace: Option<TraceContext>,
    metadata: Metadata,
    priority: bool,
}

impl CallOptions {
    /// Gives the call this much time from when it is made; then it is cancelled on both sides.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> CallOptions {
        self.timeout = Some(timeout);
        self
    }

    /// Gives the call until this time. The earlier of this and [`CallOptions::timeout`] counts.
    #[must_use]
    pub fn deadline(mut self, deadline: Instant) -> CallOptions {
        self.deadline = Some(deadline);
        self
    }

    /// The trace that the call belongs to, and the span that makes it. Default: the trace of the call whose handler
    /// makes this one.
    #[must_use]
    pub fn trace(mut self, trace: TraceContext) -> CallOptions {
        self.trace = Some(trace);
        self
    }

    /// Pairs for the handler, 8 KiB at most.
    #[must_use]
    pub fn metadata(mut self, metadata: Metadata) -> CallOptions {
        self.metadata = metadata;
        self
    }

    /// Lets the call overtake those without priority that wait at the server. A connection's first such
    /// call tells the server to read ahead; later ones overtake up to 64 frames.
    #[must_use]
    pub fn priority(mut self, priority: bool) -> CallOptions {
        self.priority = priority;
        self
    }

    /// All that goes with a call that is made here and now, if anything does.
    pub(crate) fn travel(&self) -> Option<Travel<'_>> {
        let ambient = Ambient::here().unwrap_or_default();
        // A time too long for the clock is none.
        let timeout = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let deadline = [self.deadline, timeout, ambient.deadline].into_iter().flatten().min();
        let trace = self.trace.or(ambient.trace);
        let Self { metadata, priority, .. } = self;
        let some = deadline.is_some() || trace.is_some() || !metadata.is_empty() || *priority;
        some.then_some(Travel { deadline, trace, metadata, priority: *priority })
    }
}

/// What a one-way message does when there is no room for it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum WhenFull {
    /// It waits.
    #[default]
    Wait,
    /// It fails with [`CallError::Full`](crate::CallError::Full).
    Fail,
    /// It is dropped, and [`ClientStats::dropped`](crate::ClientStats) counts it.
    DropAndCount,
}
