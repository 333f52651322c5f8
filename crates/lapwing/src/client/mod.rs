//! The async client: tokio tasks that await also drain the ring.
//!
//! # Who waits how
//!
//! A task that awaits a reply delivers for everybody while it looks. When it is alone in its
//! connection it looks in place, for at most [`lapwing_shm::SPIN_BOUND`]; when several calls are in
//! flight the connection's *driver* task looks, yielding between two looks so that the others go on
//! sending. When nothing comes the sleep word is armed and the driver sleeps in the runtime's poller.
//!
//! Invariant D: while the sleep word is not armed, somebody looks: a task in place, the driver in its
//! looking mode, or the driver within [`LINGER`], after which it arms. So a task that looked in place and
//! went away leaves nobody waiting for longer than that.

mod core;
mod driver;
mod options;
mod stats;
mod streams;
mod typed;

use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use lapwing_proto::{Description, Kind, MessageId, MethodDetails, MethodWanted};
use lapwing_shm::SPIN_BOUND;
use tokio::io::Interest;
use tokio::sync::Notify;

pub(crate) use self::core::{
    Again, Brings, Core, Inbox, Lacks, Outcome, Outgoing, Plain, Room, Start, StartError, Started,
    Travel, Turn, What, lock,
};
use self::driver::Driver;
pub use self::options::{CallOptions, ClientOptions, FrameChecksum, Transport, WhenFull};
pub(crate) use self::options::{Until, checksum_set, program_name};
pub use self::stats::ClientStats;
pub(crate) use self::streams::{Item, ItemError};
pub use self::typed::{Halves, ItemSender, ItemStream, Upload};
pub(crate) use self::typed::{
    at_once, ended_in_time, in_time, kind_of, read, try_sent, write, written,
};
use crate::ambient::Ambient;
use crate::bulk::Reserved;
use crate::control::ControlSocket;
use crate::endpoint;
use crate::error::{CallError, ConnectError, EndReason};
use crate::handshake::ClientHello;
use crate::methods;
use crate::payload::Payload;
use crate::spans::{self, CallSpan, observed};
use crate::waking::{let_others_run, watch};

/// How long nobody may look before the driver arms the sleep word.
pub(crate) const LINGER: Duration = Duration::from_millis(1);

/// Calls that go without asking again whether other tasks of the runtime want to send meanwhile.
const CALLS_BETWEEN_PROBES: u32 = 128;

/// State of a connection, as [`IpcClient::state`] tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConnectionState {
    /// Calls go through.
    Connected,
    /// The server said goodbye: calls in flight finish, new ones are refused.
    Draining,
    /// It is over, and why.
    Closed(EndReason),
}

/// A connection to a server, for tokio. Clones are cheap and share the connection.
///
/// The connection is closed when the last clone is dropped; [`IpcClient::disconnect`] lets calls in
/// flight finish first.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = lapwing::IpcClient::connect("/run/user/1000/lapwing/engine.sock").await?;
/// let reply = client.call_raw(0x0400, b"hello").await?;
/// assert_eq!(reply.bytes(), b"hello");
/// client.disconnect().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct IpcClient {
    shared: Arc<Shared>,
}

/// What the clones of a client share. The driver holds the core alone, so that dropping the last
/// clone ends it.
#[derive(Debug)]
struct Shared {
    core: Arc<Core>,
    kick: Arc<Kick>,
    drain: Duration,
    /// Calls left until the next probe: see [`IpcClient::may_look_in_place`].
    alone: AtomicU32,
}

/// How tasks reach the driver.
#[derive(Debug, Default)]
pub(crate) struct Kick {
    pub(crate) notify: Notify,
    /// The driver is in its looking mode, so needs no kick, and flushes in its next turn. Set to false before the
    /// outbox is locked to flush for the last time; so who sees it set under that lock is flushed for.
    pub(crate) looking: std::sync::atomic::AtomicBool,
}

impl Shared {
    /// A socket may have taken only part of it: the driver then watches for room.
    fn sent(&self) {
        if self.core.doorbell.is_none() {
            self.kick.notify.notify_one();
        }
    }

    fn kick(&self) {
        // Relaxed: a driver that is just leaving its looking mode arms and looks once more itself.
        if !self.kick.looking.load(Ordering::Relaxed) {
            self.kick.notify.notify_one();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.core.close();
        self.kick.notify.notify_one();
    }
}

impl IpcClient {
    /// Connects to the server that listens on `path`, with default options.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] says what to do.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with its I/O and time drivers enabled.
    pub async fn connect(path: impl AsRef<Path>) -> Result<IpcClient, ConnectError> {
        IpcClient::connect_with(path, ClientOptions::default()).await
    }

    /// Connects with these options.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::connect`].
    ///
    /// # Panics
    ///
    /// As [`IpcClient::connect`].
    pub async fn connect_with(
        path: impl AsRef<Path>,
        options: ClientOptions,
    ) -> Result<IpcClient, ConnectError> {
        let limit = options.handshake;
        match tokio::time::timeout(limit, open(path.as_ref(), &options)).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectError::HandshakeTimeout { limit }),
        }
    }

    /// Sends a request to the method `kind` and waits for its reply.
    ///
    /// # Errors
    ///
    /// [`CallError`]; [`CallError::Status`] is the server's own answer.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its first poll it has sent nothing. Dropped later the call is cancelled: the server
    /// drops its handler at the next await, and its place among the calls in flight is free again when the
    /// server has said so.
    pub async fn call_raw(&self, kind: u16, payload: &[u8]) -> Result<Payload, CallError> {
        let kind = Kind::application(kind).ok_or(CallError::BadKind(kind))?;
        self.call_kind(kind, payload).await
    }

    /// Sends bytes to the server's bytes route ([`methods::BYTES`]) and waits for its reply.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::call_raw`].
    pub async fn send_bytes(&self, bytes: &[u8]) -> Result<Payload, CallError> {
        self.call_raw(methods::BYTES, bytes).await
    }

    /// Sends a message that has no reply. Waits while there is no room for it.
    ///
    /// # Errors
    ///
    /// [`CallError`]; that it was sent does not say that the server has read it.
    ///
    /// # Cancel safety
    ///
    /// The message was sent whole or not at all; it was not when this never completed.
    pub async fn send_oneway(&self, kind: u16, payload: &[u8]) -> Result<(), CallError> {
        let kind = Kind::application(kind).ok_or(CallError::BadKind(kind))?;
        let options = CallOptions::default();
        let travel = if Ambient::is_here() { options.travel() } else { None };
        let out = Outgoing { travel: travel.as_ref(), ..Outgoing::plain(kind, payload) };
        self.send_out(out, "", WhenFull::Wait).await
    }

    /// Room for a request of `bytes` bytes, to be written in place and sent by
    /// [`IpcClient::call_reserved`]. Waits while this side's bulk memory is used up.
    ///
    /// # Errors
    ///
    /// [`CallError::TooLarge`] for more than a message may have, or what ended the connection.
    ///
    /// # Cancel safety
    ///
    /// Dropped, nothing is taken.
    pub async fn reserve(&self, bytes: usize) -> Result<Reserved, CallError> {
        self.reserve_with(bytes, &CallOptions::default()).await
    }

    /// As [`IpcClient::reserve`], for at most the time that the options give, or only if there is a block now.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::reserve`], [`CallError::DeadlineExceeded`] when no block came back in time, and
    /// [`CallError::Full`] under [`CallOptions::only_with_room`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::reserve`].
    pub async fn reserve_with(
        &self,
        bytes: usize,
        options: &CallOptions,
    ) -> Result<Reserved, CallError> {
        let (until, only_with_room) = match options.travel() {
            None => (Until::Never, false),
            Some(travel) => (travel.deadline, travel.only_with_room),
        };
        let reserve = |again: &Again| self.shared.core.reserve(bytes, again);
        self.start(until, only_with_room, reserve).await
    }

    /// As [`IpcClient::call_raw`], with a request that was written in place: a long one is not copied.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::call_raw`].
    pub async fn call_reserved(&self, kind: u16, request: Reserved) -> Result<Payload, CallError> {
        self.call_reserved_with(kind, request, &CallOptions::default()).await
    }

    /// As [`IpcClient::call_reserved`], with a time limit, metadata or a trace.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`], and [`CallError::DeadlineExceeded`] when the time is over.
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::call_raw`].
    pub async fn call_reserved_with(
        &self,
        kind: u16,
        request: Reserved,
        options: &CallOptions,
    ) -> Result<Payload, CallError> {
        let kind = Kind::application(kind).ok_or(CallError::BadKind(kind))?;
        let travel = options.travel();
        let (block, payload) = match request.into_parts() {
            Ok(block) => (Some(Mutex::new(block)), Vec::new()),
            Err(bytes) => (None, bytes),
        };
        let what = block.as_ref().map_or(What::Bytes(&payload), What::Block);
        let travel = travel.as_ref();
        let out = Outgoing { what, travel, ..Outgoing::plain(kind, &[]) };
        self.call_with_travel(out, "").await
    }

    /// Asks the connection itself for an answer, past every route; the time it took.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::call_raw`].
    pub async fn ping(&self) -> Result<Duration, CallError> {
        let begun = Instant::now();
        self.call_kind(Kind::PING, &[]).await?;
        Ok(begun.elapsed())
    }

    /// Asks the server which methods it has.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::call_raw`].
    pub async fn describe(&self) -> Result<Vec<methods::Method>, CallError> {
        let reply = self.call_kind(Kind::DESCRIBE, &[]).await?;
        methods::from_description(Description::decode(&reply))
    }

    /// Asks the server for one method in full: its codec, and its schemas if it has some.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`]: a status `NotFound` for a kind without a method, and `Unimplemented` from a
    /// server that is too old to say.
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::call_raw`].
    pub async fn describe_method(&self, kind: u16) -> Result<methods::MethodDetails, CallError> {
        let wanted = MethodWanted { kind }.encode();
        let reply = self.call_kind(Kind::DESCRIBE_METHOD, &wanted).await?;
        methods::from_details(kind, MethodDetails::decode(&reply))
    }

    /// What this connection has done so far.
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        self.shared.core.counters.snapshot()
    }

    /// Whether the connection lasts.
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        state_of(&self.shared.core)
    }

    /// What the handshake agreed on.
    #[must_use]
    pub fn agreement(&self) -> methods::Agreement {
        methods::agreement(&self.shared.core)
    }

    /// Ends the connection: no new calls, calls in flight and one-way messages that were sent finish or meet the
    /// drain time, then it is closed, for all clones.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, new calls are refused already and the connection stays open until the last
    /// clone is gone.
    pub async fn disconnect(&self) {
        let core = &self.shared.core;
        core.say_goodbye();
        self.shared.kick.notify.notify_one();
        // The server closes when nothing of this connection is left to do.
        let over =
            poll_fn(|cx| if core.poll_end(cx.waker()) { Poll::Ready(()) } else { Poll::Pending });
        let _ = tokio::time::timeout(self.shared.drain, over).await;
        core.close();
        self.shared.kick.notify.notify_one();
    }

    /// `method` is its name, empty where that is not known.
    async fn send_out(
        &self,
        out: Outgoing<'_>,
        method: &'static str,
        when_full: WhenFull,
    ) -> Result<(), CallError> {
        match self.span(&out, method) {
            None => self.send_now(out, when_full).await,
            Some(span) => observed(span, pin!(self.send_now(out, when_full))).await,
        }
    }

    async fn send_now(&self, mut out: Outgoing<'_>, when_full: WhenFull) -> Result<(), CallError> {
        let core = &self.shared.core;
        match when_full {
            WhenFull::Wait => {
                let (until, only_with_room) = (out.until(), out.only_with_room());
                let start = |again: &Again| core.start_oneway(out.again(again));
                self.start(until, only_with_room, start).await?;
            }
            WhenFull::Fail => at_once(core.start_oneway(&mut out))?,
            WhenFull::DropAndCount => match core.start_oneway(&mut out) {
                Err(StartError::Full(_)) => core.counters.dropped(),
                sent => at_once(sent)?,
            },
        }
        self.sent();
        Ok(())
    }

    /// Calls with what the task's own call passes on, if it serves one.
    async fn call_kind(&self, kind: Kind, payload: &[u8]) -> Result<Payload, CallError> {
        if Ambient::is_here() || spans::are_wanted() {
            return Box::pin(self.call_inheriting(kind, payload)).await;
        }
        self.call_now::<NoTimer>(&mut Outgoing::plain(kind, payload)).await
    }

    async fn call_inheriting(&self, kind: Kind, payload: &[u8]) -> Result<Payload, CallError> {
        let options = CallOptions::default();
        let travel = options.travel();
        let out = Outgoing { travel: travel.as_ref(), ..Outgoing::plain(kind, payload) };
        self.call_with_travel(out, "").await
    }

    /// `method` is its name, empty where that is not known.
    fn span(&self, out: &Outgoing<'_>, method: &'static str) -> Option<Box<CallSpan>> {
        spans::calling(out.kind, method, self.shared.core.agreed.connection_id, out.travel)
    }

    /// Calls within the time that the travel gives.
    async fn call_with_travel(
        &self,
        mut out: Outgoing<'_>,
        method: &'static str,
    ) -> Result<Payload, CallError> {
        match self.span(&out, method) {
            None => self.call_now::<InTime>(&mut out).await,
            Some(span) => {
                // In its place before it is handed on: it is large to be moved.
                let work = pin!(self.call_now::<InTime>(&mut out));
                observed(span, work).await
            }
        }
    }

    async fn call_now<T: Timer>(&self, call: &mut impl Start) -> Result<Payload, CallError> {
        let core = &*self.shared.core;
        let_others_run().await;
        let mut guard = CallGuard { shared: &self.shared, id: None };
        // The guard is there before the request is sent: a drop between the two cannot leak the slot.
        // The driver flushes in its next turn. In a moment this task waits, and lets it run.
        let mut deferred = false;
        let looks = || {
            deferred = core.doorbell.is_some() && self.shared.kick.looking.load(Ordering::Relaxed);
            deferred
        };
        let started = call.start(core, looks);
        let mut until = call.until();
        let started = match started {
            Err(StartError::Full(_)) if !call.only_with_room() => {
                // One time for both, the wait for room and that for the reply.
                until = until.settle().into();
                let start = |again: &Again| call.start_again(core, again);
                within(until, pin!(self.poll_start(until, start))).await?
            }
            started => at_once(started)?,
        };
        call.clear();
        guard.id = Some(started.id);
        self.sent();
        let (mut yielded, mut timer) = (false, pin!(T::default()));
        let outcome = poll_fn(|cx| {
            // Alone it does not let the driver run.
            if std::mem::take(&mut deferred)
                && core.is_alone()
                && let Err(broken) = core.flush()
            {
                core.finish(&broken);
            }
            match self.poll_reply(cx, &started, &mut yielded) {
                Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
                Poll::Pending if timer.as_mut().is_over(&mut until, cx) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        // The guard gives it up.
        let outcome = outcome.ok_or(CallError::DeadlineExceeded)?;
        guard.id = None;
        core.taken();
        if outcome.is_late(until) {
            return Err(CallError::DeadlineExceeded);
        }
        core.conclude(outcome)
    }

    /// Starts something, if it has to wait within its time; or now or not at all.
    async fn start<T>(
        &self,
        until: Until,
        only_with_room: bool,
        mut start: impl FnMut(&Again) -> Result<T, StartError>,
    ) -> Result<T, CallError> {
        if only_with_room {
            return at_once(start(&Again::default()));
        }
        within(until, pin!(self.poll_start(until, start))).await
    }

    /// Starts something, waiting for its turn and for room as often as it takes.
    async fn poll_start<T>(
        &self,
        mut until: Until,
        mut start: impl FnMut(&Again) -> Result<T, StartError>,
    ) -> Result<T, CallError> {
        let mut turn = Turn::new(&self.shared.core);
        let mut again = Again::default();
        poll_fn(|cx| {
            for _ in 0..2 {
                again.ticket = turn.ticket();
                match start(&again) {
                    Ok(started) => return Poll::Ready(Ok(started)),
                    Err(StartError::Failed(error)) => return Poll::Ready(Err(error)),
                    // Registered first, then tried once more: room that came in between is seen.
                    Err(StartError::Full(room)) => turn.wait_for(room, cx.waker()),
                }
                again.settled = until.settle();
            }
            self.kick();
            Poll::Pending
        })
        .await
    }

    fn sent(&self) {
        self.shared.sent();
    }

    fn kick(&self) {
        self.shared.kick();
    }

    fn poll_reply(
        &self,
        cx: &mut Context<'_>,
        call: &Started,
        yielded: &mut bool,
    ) -> Poll<Outcome> {
        let core = &*self.shared.core;
        if core.is_alone() && self.may_look_in_place(yielded) {
            match self.look_in_place(call) {
                Looked::Found(outcome) => return Poll::Ready(outcome),
                // The driver is asleep and armed, or on its way there: the reply rings for it.
                Looked::Slept | Looked::Cold => return self.register(cx, call.id),
                Looked::Busy => {}
            }
        }
        if let Poll::Ready(outcome) = self.register(cx, call.id) {
            return Poll::Ready(outcome);
        }
        if !std::mem::replace(yielded, true) && core.is_alone() {
            // Let others send first; then look whether this call is alone.
            cx.waker().wake_by_ref();
        } else {
            self.kick();
        }
        Poll::Pending
    }

    fn register(&self, cx: &Context<'_>, id: MessageId) -> Poll<Outcome> {
        match self.shared.core.poll_call(id, Some(cx.waker())) {
            Some(outcome) => Poll::Ready(outcome),
            None => Poll::Pending,
        }
    }

    /// Looking in place keeps this thread from running the tasks that would send meanwhile. So every
    /// few calls the task first goes to the back of the runtime's queue once; if it is alone in flight
    /// after that, it takes itself to be for the next calls, too.
    fn may_look_in_place(&self, yielded: &mut bool) -> bool {
        let alone = &self.shared.alone;
        let left = alone.load(Ordering::Relaxed);
        if left > 0 {
            alone.store(left - 1, Ordering::Relaxed);
            return true;
        }
        if *yielded {
            alone.store(CALLS_BETWEEN_PROBES, Ordering::Relaxed);
        }
        *yielded
    }

    fn look_in_place(&self, call: &Started) -> Looked {
        let core = &*self.shared.core;
        let Ok(mut inbox) = core.inbox.try_lock() else {
            return Looked::Busy;
        };
        if core.doorbell.is_none() || !inbox.spinner.is_warm() {
            return Looked::Cold;
        }
        if inbox.is_armed() {
            inbox.disarm();
            // Invariant D: from here on the driver lingers.
            self.shared.kick.notify.notify_one();
        }
        let mut begun = None;
        let delivered = inbox.delivered;
        loop {
            match core.deliver(&mut inbox, Some(call)) {
                Ok(Some(outcome)) => return Looked::Found(outcome),
                Ok(None) => {}
                Err(broken) => {
                    drop(inbox);
                    core.finish(&broken);
                    return Looked::Slept;
                }
            }
            // The driver may have delivered it before this task held the inbox. While nothing has come
            // yet this costs no time that would not be waited anyway.
            if let Some(outcome) = core.poll_call(call.id, None) {
                return Looked::Found(outcome);
            }
            core.offer_room();
            if inbox.delivered != delivered {
                // Something came for others, as an item of a stream: they get their turn.
                return Looked::Busy;
            }
            if inbox.spin(SPIN_BOUND) {
                continue;
            }
            let begun = *begun.get_or_insert_with(Instant::now);
            if inbox.spinner.policy() == lapwing_shm::Spin::Always && begun.elapsed() < LINGER {
                continue;
            }
            match inbox.arm() {
                Ok(true) => return Looked::Slept,
                Ok(false) => inbox.disarm(),
                Err(broken) => {
                    drop(inbox);
                    core.finish(&broken);
                    return Looked::Slept;
                }
            }
        }
    }
}

/// What looking in place came to.
enum Looked {
    Found(Outcome),
    /// Nothing came; the sleep word is armed.
    Slept,
    /// The policy says to sleep, or there is no ring to look at.
    Cold,
    /// Somebody else looks.
    Busy,
}

/// Gives the call up when its future is dropped.
struct CallGuard<'a> {
    shared: &'a Shared,
    id: Option<MessageId>,
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shared.core.abandon(id);
            self.shared.sent();
        }
    }
}

/// The work's result, unless the deadline comes first.
async fn within<T>(
    mut until: Until,
    mut work: Pin<&mut impl Future<Output = Result<T, CallError>>>,
) -> Result<T, CallError> {
    if until == Until::Never {
        return work.await;
    }
    let mut timer = pin!(InTime::default());
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Pending if timer.as_mut().is_over(&mut until, cx) => {
            Poll::Ready(Err(CallError::DeadlineExceeded))
        }
        polled => polled,
    })
    .await
}

/// What a wait looks at the time with.
trait Timer: Default {
    /// Whether that time is over; otherwise the task is woken when it is.
    fn is_over(self: Pin<&mut Self>, until: &mut Until, cx: &mut Context<'_>) -> bool;
}

/// For a wait without an end: it takes no place.
#[derive(Default)]
struct NoTimer;

impl Timer for NoTimer {
    fn is_over(self: Pin<&mut Self>, _: &mut Until, _: &mut Context<'_>) -> bool {
        false
    }
}

/// The runtime's own. It learns of the time once that has to be waited for.
type InTime = Option<tokio::time::Sleep>;

impl Timer for InTime {
    fn is_over(mut self: Pin<&mut Self>, until: &mut Until, cx: &mut Context<'_>) -> bool {
        if *until == Until::Never {
            return false;
        }
        if self.is_none() {
            self.set(until.settle().map(|at| tokio::time::sleep_until(at.into())));
        }
        self.as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready())
    }
}

pub(crate) fn state_of(core: &Core) -> ConnectionState {
    match core.end() {
        Some(reason) => ConnectionState::Closed(reason.clone()),
        None if core.is_draining() => ConnectionState::Draining,
        None => ConnectionState::Connected,
    }
}

async fn open(path: &Path, options: &ClientOptions) -> Result<IpcClient, ConnectError> {
    endpoint::check_connect_path(path)?;
    let socket = loop {
        match endpoint::try_connect(path)? {
            Some(socket) => break socket,
            None => tokio::time::sleep(endpoint::CONNECT_AGAIN).await,
        }
    };
    let mut control = ControlSocket::new(socket)?;
    let awaiting = ClientHello::prepare(options.hello())?.send(&control)?;
    let watched = watch(control.socket(), Interest::READABLE)?;
    let message = loop {
        let mut ready = watched.readable().await?;
        match control.try_receive()? {
            Some(message) => break message,
            None => ready.clear_ready(),
        }
    };
    drop(watched);
    let link = awaiting.receive(&control, message, &options.bulk_terms())?;
    let core = Arc::new(Core::new(link, options.spin));
    let kick = Arc::new(Kick::default());
    let driver = Driver::new(Arc::clone(&core), Arc::clone(&kick), options.bulk_idle)?;
    tokio::spawn(driver.run());
    let shared = Shared { core, kick, drain: options.drain, alone: AtomicU32::new(0) };
    Ok(IpcClient { shared: Arc::new(shared) })
}
