//! The server: routes, who is let in, connections, an orderly end.

mod accept;
mod ahead;
mod connection;
mod ended;
mod handler;
mod items;
mod router;
mod running;
mod schema;
mod stats;
mod typed;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapwing_proto::{Features, LimitsGranted, MethodShape, ServerOffer, Status, limits};
use lapwing_shm::{CooperativePeers, Spin};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::handler::{AsyncFn, Handler};
pub use self::handler::{Call, Caller, InlineCall, Reply, Request};
pub use self::items::{ItemSink, ItemSource, TrySendError};
pub use self::router::RouteError;
use self::router::Router;
pub use self::running::Cancellation;
#[cfg(test)]
pub(crate) use self::running::{CallEnd, CallState, Taken};
pub use self::stats::ServerStats;
use self::stats::Totals;
pub use self::typed::{Inline, Route, Sink, Source};
use crate::bulk::Account;
use crate::client::{FrameChecksum, checksum_set, lock, program_name};
use crate::codec::{Codec, Raw};
use crate::compression::Compression;
use crate::endpoint::{Listener, endpoint_path};
use crate::error::BindError;
use crate::payload::Payload;
use crate::peer::{PeerCredentials, Policy, SameUser};

/// What a server allows. Each limit has the unit in its name.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Connections at once. Default 1024.
    pub connections: u32,
    /// Connections at once of one user. Default 1024.
    pub connections_per_uid: u32,
    /// Calls in flight on one connection. Default 256, at most 65 536.
    pub calls_in_flight: u32,
    /// The largest message, in bytes. Default 10 MiB, at most 1 GiB.
    pub message_bytes: u32,
    /// Bytes of this side's ring for each connection. Default 256 KiB. Payloads of more than a quarter of it go
    /// through bulk memory.
    pub ring_bytes: u32,
    /// Bulk memory that this side may have on one connection, for replies too long for its ring, in bytes; when
    /// it is used up, replies wait. At least one block for the largest message, at most that or 64 MiB, the
    /// default. 0 is no bulk memory in either direction: then a quarter of the ring is the largest message.
    pub bulk_bytes: u64,
    /// Bulk memory of all connections of one user, both sides', in bytes. Default 4 GiB. Beyond it replies fail
    /// with `ResourceExhausted`, and a client that announces more is cut.
    pub bulk_bytes_per_uid: u64,
    /// How long bulk memory is unused before it is given back. Default 2 s.
    pub bulk_idle: Duration,
    /// How long a handshake may take. Default 5 s.
    pub handshake: Duration,
    /// How long running calls may take when the server stops. Default 10 s.
    pub drain: Duration,
}

impl Default for ServerLimits {
    fn default() -> ServerLimits {
        ServerLimits {
            connections: limits::CONNECTIONS,
            connections_per_uid: limits::CONNECTIONS_PER_UID,
            calls_in_flight: limits::CALLS_IN_FLIGHT,
            message_bytes: limits::MESSAGE_BYTES,
            ring_bytes: limits::RING_BYTES,
            bulk_bytes: limits::BULK_BYTES.into(),
            bulk_bytes_per_uid: limits::BULK_BYTES_PER_UID,
            bulk_idle: Duration::from_millis(limits::BULK_IDLE_MS.into()),
            handshake: Duration::from_millis(limits::HANDSHAKE_MS.into()),
            drain: Duration::from_millis(limits::DRAIN_MS.into()),
        }
    }
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket could not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The routes contradict each other.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The ring length is impossible.
    #[error(
        "a ring of {0} bytes cannot be: it must be a power of two from {min} to {max}",
        min = limits::RING_BYTES_MIN,
        max = limits::RING_BYTES_MAX
    )]
    RingBytes(u32),
    /// The largest message is above what a frame may say, or has no room for an error.
    #[error(
        "messages of {0} bytes cannot be: the largest may be configured from {min} bytes to {max}",
        min = limits::MESSAGE_BYTES_MIN,
        max = limits::MESSAGE_BYTES_MAX
    )]
    MessageBytes(u32),
    /// The number of calls in flight is impossible.
    #[error(
        "{0} calls in flight cannot be: a connection may have from 1 to {max}",
        max = limits::CALLS_IN_FLIGHT_MAX
    )]
    CallsInFlight(u32),
    /// There is no tokio runtime with its I/O and time drivers here.
    #[error("the server needs a tokio runtime with I/O enabled: {0}")]
    Runtime(io::Error),
}

/// A server in the making: see [`IpcServer::builder`].
pub struct Builder {
    listener: Option<Listener>,
    router: Result<Router, RouteError>,
    limits: ServerLimits,
    policy: Box<dyn Policy>,
    spin: Spin,
    checksum: FrameChecksum,
    shared_memory: bool,
    compression: Compression,
    in_place: Option<CooperativePeers>,
    program: String,
}

/// A running server. Dropping it stops it at once; [`IpcServer::shutdown`] lets calls finish.
#[derive(Debug)]
pub struct IpcServer {
    shared: Arc<Shared>,
    path: PathBuf,
    phase: watch::Sender<Phase>,
    accepting: JoinHandle<()>,
}

/// What the tasks of a server share.
pub(crate) struct Shared {
    router: Router,
    limits: ServerLimits,
    offer: ServerOffer,
    policy: Box<dyn Policy>,
    spin: Spin,
    in_place: Option<CooperativePeers>,
    totals: Totals,
    connection_ids: AtomicU64,
    occupancy: Mutex<Occupancy>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Connections at present, handshakes included.
#[derive(Debug, Default)]
struct Occupancy {
    all: u32,
    by_uid: HashMap<u32, User>,
}

/// What one user has at present.
#[derive(Debug)]
struct User {
    connections: u32,
    bulk: Arc<Account>,
}

/// Where a server is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Serving,
    Draining,
}

impl IpcServer {
    /// Begins a server.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use lapwing::{IpcServer, Request, Status};
    ///
    /// let server = IpcServer::builder()
    ///     .bind("/run/user/1000/echo.sock")?
    ///     .route_inline(0x0400, "echo", |_caller, request, reply| {
    ///         reply.extend(request);
    ///         Ok(())
    ///     })
    ///     .route_raw(0x0401, "later", |request: Request| async move {
    ///         tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    ///         Ok::<_, Status>(request.payload)
    ///     })
    ///     .serve()?;
    /// server.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            listener: None,
            router: Ok(Router::new()),
            limits: ServerLimits::default(),
            policy: Box::new(SameUser),
            spin: Spin::default(),
            checksum: FrameChecksum::default(),
            shared_memory: true,
            compression: Compression::default(),
            in_place: None,
            program: program_name(),
        }
    }

    /// The socket it listens on.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        self.shared.totals.snapshot()
    }

    /// Connections at present, handshakes included.
    #[must_use]
    pub fn connections(&self) -> u32 {
        lock(&self.shared.occupancy).all
    }

    /// Stops in order: takes no new connections, tells every client goodbye, lets running calls finish
    /// for at most the drain time, then closes. Returns whether everything finished in time.
    ///
    /// # Cancel safety
    ///
    /// Dropped early it has stopped accepting, and the rest ends at once.
    pub async fn shutdown(mut self) -> bool {
        let _ = self.phase.send(Phase::Draining);
        let drained = tokio::time::timeout(self.shared.limits.drain, &mut self.accepting).await;
        drained.is_ok()
    }
}

impl Drop for IpcServer {
    fn drop(&mut self) {
        // Ends the accepting task, and with it every connection's.
        self.accepting.abort();
    }
}

impl Builder {
    /// Listens on `path`, with the socket mode 0600 and a lock beside it. A dead server's socket is
    /// taken over, a live one's is refused. The directory of an [`endpoint_path`] is made with mode 0700 if it is
    /// missing; another has to be there.
    ///
    /// # Errors
    ///
    /// [`BindError`] says what to do.
    pub fn bind(mut self, path: impl AsRef<Path>) -> Result<Builder, BindError> {
        self.listener = Some(Listener::bind(path.as_ref())?);
        Ok(self)
    }

    /// Adds an async handler: it may wait for anything; each call that does not finish at once gets
    /// a task of its own. Its future is dropped when the connection ends.
    #[must_use]
    pub fn route_raw<F, Fut, T>(self, kind: u16, name: &str, handler: F) -> Builder
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, Status>> + Send + 'static,
        T: Into<Payload> + 'static,
    {
        let handler = Handler::Async(Box::new(AsyncFn::new(handler)));
        self.add(kind, name, MethodShape::Unary, Raw::NAME, handler)
    }

    /// Adds an inline handler: a plain function run where the frame is read, for answers within a
    /// microsecond or so. While it runs its connection does nothing else.
    #[must_use]
    pub fn route_inline<F>(self, kind: u16, name: &str, handler: F) -> Builder
    where
        F: Fn(&Caller, &[u8], &mut Reply<'_>) -> Result<(), Status> + Send + Sync + 'static,
    {
        self.add(kind, name, MethodShape::Unary, Raw::NAME, Handler::Inline(Box::new(handler)))
    }

    pub(crate) fn add(
        mut self,
        kind: u16,
        name: &str,
        shape: MethodShape,
        codec: &'static str,
        handler: Handler,
    ) -> Builder {
        self.router = self.router.and_then(|mut router| {
            router.add(kind, name, shape, codec, handler)?;
            Ok(router)
        });
        self
    }

    /// Sets the limits.
    #[must_use]
    pub fn limits(mut self, limits: ServerLimits) -> Builder {
        self.limits = limits;
        self
    }

    /// Sets who is let in. Default: [`SameUser`].
    #[must_use]
    pub fn policy(mut self, policy: impl Policy) -> Builder {
        self.policy = Box::new(policy);
        self
    }

    /// Sets who waits by looking, and who by sleeping. Default: adaptive.
    #[must_use]
    pub fn spin(mut self, spin: Spin) -> Builder {
        self.spin = spin;
        self
    }

    /// Sets what guards frames. Default: the best that both sides have.
    #[must_use]
    pub fn checksum(mut self, checksum: FrameChecksum) -> Builder {
        self.checksum = checksum;
        self
    }

    /// Whether clients may have shared memory. Without it every connection stays on the socket.
    #[must_use]
    pub fn shared_memory(mut self, offered: bool) -> Builder {
        self.shared_memory = offered;
        self
    }

    /// Whether payloads are compressed, where a client wants it, too. Default: over the socket. With the cargo
    /// feature `compression`.
    #[cfg(feature = "compression")]
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Builder {
        self.compression = compression;
        self
    }

    /// Lends requests in clients' bulk memory to handlers in place, instead of copying them out.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn example(builder: lapwing::Builder) -> lapwing::Builder {
    /// // SAFETY: the clients are this program's own, built from this same library.
    /// let token = unsafe { lapwing::CooperativePeers::assume() };
    /// builder.in_place(token)
    /// # }
    /// ```
    #[must_use]
    pub fn in_place(mut self, token: CooperativePeers) -> Builder {
        self.in_place = Some(token);
        self
    }

    /// Starts serving, in tasks of the current tokio runtime. Without [`Builder::bind`] the server
    /// listens on the endpoint called like this program.
    ///
    /// # Errors
    ///
    /// [`ServeError`]: the first route that could not be, the socket, or the runtime.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with its I/O and time drivers enabled.
    pub fn serve(self) -> Result<IpcServer, ServeError> {
        let router = self.router?;
        if !limits::is_ring_bytes(self.limits.ring_bytes) {
            return Err(ServeError::RingBytes(self.limits.ring_bytes));
        }
        let ServerLimits { message_bytes, calls_in_flight, .. } = self.limits;
        if !(limits::MESSAGE_BYTES_MIN..=limits::MESSAGE_BYTES_MAX).contains(&message_bytes) {
            return Err(ServeError::MessageBytes(message_bytes));
        }
        if !(1..=limits::CALLS_IN_FLIGHT_MAX).contains(&calls_in_flight) {
            return Err(ServeError::CallsInFlight(calls_in_flight));
        }
        let listener = match self.listener {
            Some(listener) => listener,
            None => Listener::bind(&endpoint_path(&self.program).map_err(BindError::from)?)?,
        };
        let bulk = if self.limits.bulk_bytes > 0 { Features::BULK } else { Features::NONE };
        let offer = ServerOffer {
            limits: LimitsGranted { message_bytes, calls_in_flight },
            checksums: checksum_set(self.checksum),
            shared_memory: self.shared_memory.then_some(self.limits.ring_bytes),
            program: crate::handshake::plain(&self.program),
            features: bulk
                .union(Features::JSON)
                .union(Features::CLOCK)
                .union(self.compression.wanted(false)),
            socket_features: self.compression.wanted(true),
            ..ServerOffer::default()
        };
        let path = listener.path().to_owned();
        let shared = Arc::new(Shared {
            router,
            limits: self.limits,
            offer,
            policy: self.policy,
            spin: self.spin,
            in_place: self.in_place,
            totals: Totals::default(),
            connection_ids: AtomicU64::new(1),
            occupancy: Mutex::default(),
        });
        let (phase, watched) = watch::channel(Phase::Serving);
        let acceptor = accept::Acceptor::new(Arc::clone(&shared), listener, watched)
            .map_err(ServeError::Runtime)?;
        let accepting = tokio::spawn(acceptor.run());
        Ok(IpcServer { shared, path, phase, accepting })
    }
}

/// A place among a server's connections, given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    uid: u32,
    bulk: Arc<Account>,
}

impl Shared {
    /// Takes a place for a connection of this user, or says which limit is reached.
    fn take_place(self: &Arc<Self>, peer: &PeerCredentials) -> Result<Place, String> {
        let mut occupancy = lock(&self.occupancy);
        if occupancy.all >= self.limits.connections {
            return Err(format!("the server has all {} connections it allows", occupancy.all));
        }
        let of_user = occupancy.by_uid.entry(peer.uid).or_insert_with(|| User {
            connections: 0,
            bulk: Arc::new(Account::new(self.limits.bulk_bytes_per_uid)),
        });
        let connections = of_user.connections;
        if connections >= self.limits.connections_per_uid {
            return Err(format!("user {} has all {connections} connections it may have", peer.uid));
        }
        of_user.connections += 1;
        let bulk = Arc::clone(&of_user.bulk);
        occupancy.all += 1;
        Ok(Place { shared: Arc::clone(self), uid: peer.uid, bulk })
    }

    fn next_connection_id(&self) -> u64 {
        self.connection_ids.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut occupancy = lock(&self.shared.occupancy);
        occupancy.all -= 1;
        if let Some(of_user) = occupancy.by_uid.get_mut(&self.uid) {
            of_user.connections -= 1;
            if of_user.connections == 0 {
                occupancy.by_uid.remove(&self.uid);
            }
        }
    }
}
