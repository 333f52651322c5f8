//! How a client connects.

use std::env;
use std::time::{Duration, Instant};

use lapwing_proto::{
    Checksum, ChecksumSet, Features, Hello, LimitsWanted, TimeLeft, TraceContext, TransportWanted,
    limits,
};
use lapwing_shm::{CooperativePeers, Spin};

use super::core::Travel;
use crate::ambient::Ambient;
use crate::bulk::BulkTerms;
use crate::clock;
use crate::codec::Form;
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
    /// How long bulk memory is unused before it is given back. Default 2 s. A blocking client has a thread do that, which
    /// ends with it.
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
            message_bytes: self
                .message_bytes
                .clamp(limits::MESSAGE_BYTES_MIN, limits::MESSAGE_BYTES_MAX),
            calls_in_flight: self.calls_in_flight.clamp(1, limits::CALLS_IN_FLIGHT_MAX),
        };
        hello.checksums = checksum_set(self.checksum);
        hello.features = Features::JSON.union(Features::CLOCK);
        if self.bulk_bytes > 0 && self.transport == Transport::SharedMemory {
            hello.features = hello.features.union(Features::BULK);
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

/// The least time limit of which a look at the clock is saved. It is a hundred times what a caller looks for a
/// reply before it looks at the clock, so that such a limit is kept within a hundredth.
const AMPLE: Duration = Duration::from_millis(100);

/// When a call is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Until {
    Never,
    At(Instant),
    /// So long after it was made. Most calls are over before anybody has to know when that is, and a look at the
    /// clock is a twentieth of a call: so it is worked out by the first who waits in earnest.
    In(Duration),
}

impl From<Option<Instant>> for Until {
    fn from(deadline: Option<Instant>) -> Until {
        deadline.map_or(Until::Never, Until::At)
    }
}

impl Until {
    /// The time, worked out now if it was not before. One too far for the clock is none.
    pub(crate) fn settle(&mut self) -> Option<Instant> {
        if let Until::In(left) = *self {
            *self = Instant::now().checked_add(left).into();
        }
        match *self {
            Until::At(at) => Some(at),
            _ => None,
        }
    }

    pub(crate) fn is_over(&mut self) -> bool {
        self.settle().is_some_and(|at| Instant::now() >= at)
    }

    /// The time that is left of a call that is sent now. One that has waited for nothing yet has all of it.
    #[inline]
    pub(crate) fn left(self) -> Option<TimeLeft> {
        match self {
            Until::Never => None,
            Until::At(at) => Some(clock::until(at)),
            Until::In(left) => Some(clock::from_now(left)),
        }
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
    form: Form,
    only_with_room: bool,
}

impl CallOptions {
    /// Gives the call this much time from when it is made; then it is cancelled on both sides. A server does not begin it
    /// when its time is over, nor a one-way message, which is dropped there and counted. Of 100 ms and more the time
    /// that it takes to write the request as bytes does not count, and a call that has waited for all but the last 10 ms
    /// of it may be refused already.
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
    /// makes this one. What belongs into the `tracestate` header of W3C trace context goes as a pair of
    /// [metadata](CallOptions::metadata) of that name; it does not pass on by itself.
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

    /// Makes the call in JSON, whatever codec the server's method has: the request, the reply and all items
    /// are JSON then. With methods of [`Raw`](crate::Raw) this calls any method of any server by its number, as
    /// a bridge or a command does that does not know the types: the bytes are the JSON text.
    ///
    /// A method whose codec is raw at the server, or has no JSON form, takes its own bytes as ever. A server
    /// that is too old for it brings [`CallError::NoJson`](crate::CallError::NoJson).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// use lapwing::{Call, CallOptions, IpcClient, IpcServer, Payload, Raw, Unary};
    ///
    /// // At the server the method is typed, in postcard:
    /// const ADD: Unary<(u32, u32), u64> = Unary::new(0x0400, "add");
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("add.sock");
    /// let server = IpcServer::builder()
    ///     .bind(&path)?
    ///     .route(ADD, |_: Call, (a, b): (u32, u32)| async move { Ok(u64::from(a) + u64::from(b)) })
    ///     .serve()?;
    ///
    /// // The client knows its number alone.
    /// let client = IpcClient::connect(&path).await?;
    /// let add = Unary::<&str, Payload, Raw>::new(0x0400, "");
    /// let json = CallOptions::default().json(true);
    /// let sum = client.call_with(add, &"[2, 40]", &json).await?;
    /// assert_eq!(sum.bytes(), b"42");
    /// # server.shutdown().await;
    /// # Ok(()) })
    /// # }
    /// ```
    #[must_use]
    pub fn json(mut self, json: bool) -> CallOptions {
        self.form = if json { Form::Json } else { Form::Own };
        self
    }

    /// Makes a call, of whatever shape, only if there is room for it now: else it fails at once with
    /// [`CallError::Full`](crate::CallError::Full). There is none while the connection has as many calls in flight as it
    /// may have, while its ring or socket is full, and while others wait for their turn. Default: it waits.
    ///
    /// This is about the start: a stream that has begun has its own
    /// [`try_send`](crate::ItemSender::try_send). A one-way message is sent as under
    /// [`WhenFull::Fail`]; what is to be dropped goes by
    /// [`send_when_with`](crate::IpcClient::send_when_with).
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// use lapwing::{
    ///     Call, CallError, CallOptions, IpcClient, IpcServer, Postcard, ServerLimits, ServerStream, Sink,
    /// };
    ///
    /// const COUNT: ServerStream<u64, u64> = ServerStream::new(0x0400, "count");
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("count.sock");
    /// let server = IpcServer::builder()
    ///     .bind(&path)?
    ///     .limits(ServerLimits { calls_in_flight: 1, ..ServerLimits::default() })
    ///     .route(COUNT, |_: Call, to: u64, mut items: Sink<u64, Postcard>| async move {
    ///         for number in 0..to {
    ///             items.send(&number).await?;
    ///         }
    ///         Ok(())
    ///     })
    ///     .serve()?;
    ///
    /// let client = IpcClient::connect(&path).await?;
    /// let now = CallOptions::default().only_with_room(true);
    /// let mut first = client.stream_with(COUNT, &3, &now).await?;
    /// let second = client.stream_with(COUNT, &3, &now).await;
    /// assert!(matches!(second, Err(CallError::Full)));
    ///
    /// while first.next().await.transpose()?.is_some() {}
    /// client.stream_with(COUNT, &3, &now).await?;
    /// # drop(client);
    /// # server.shutdown().await;
    /// # Ok(()) })
    /// # }
    /// ```
    #[must_use]
    pub fn only_with_room(mut self, only_with_room: bool) -> CallOptions {
        self.only_with_room = only_with_room;
        self
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// How long a call that is made here and now has, in nanoseconds, or [`clock::NEVER`], if it has nothing else to carry and
    /// its time is worth no look at the clock: as most have it.
    #[inline]
    pub(crate) fn only_time(&self) -> Option<u64> {
        let Self { timeout, deadline, trace, metadata, priority, form, only_with_room } = self;
        let plain = deadline.is_none()
            && trace.is_none()
            && metadata.is_empty()
            && !*priority
            && *form == Form::Own
            && !*only_with_room
            && !Ambient::is_here();
        match timeout {
            _ if !plain => None,
            None => Some(clock::NEVER),
            // The longest is some 584 years.
            Some(timeout) => {
                (*timeout >= AMPLE).then(|| clock::nanos(*timeout).min(clock::NEVER - 1))
            }
        }
    }

    /// All that goes with a call that is made here and now, if anything does.
    pub(crate) fn travel(&self) -> Option<Travel<'_>> {
        let ambient = Ambient::here();
        let inherited = clock::instant(ambient.deadline_ns);
        let deadline = match (self.timeout, self.deadline, inherited) {
            (None, None, None) => Until::Never,
            (Some(timeout), None, None) if timeout >= AMPLE => Until::In(timeout),
            (timeout, given, inherited) => {
                // A time too long for the clock is none.
                let timeout = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
                [given, inherited, timeout].into_iter().flatten().min().into()
            }
        };
        let trace = self.trace.or_else(|| ambient.trace());
        let Self { metadata, priority, form, only_with_room, .. } = self;
        let some = deadline != Until::Never
            || trace.is_some()
            || !metadata.is_empty()
            || *priority
            || *form == Form::Json
            || *only_with_room;
        some.then_some(Travel {
            deadline,
            trace,
            metadata,
            priority: *priority,
            form: *form,
            only_with_room: *only_with_room,
        })
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
