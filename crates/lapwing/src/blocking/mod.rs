//! The blocking client: a second driver over the same protocol, with no runtime inside.
//!
//! Threads that wait share the work: whoever holds the receiving half leads, looks or sleeps, and
//! delivers for all; the others park. A leader that has what it wanted wakes one of the others to lead.

mod keeper;
mod typed;

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use lapwing_proto::{Description, Kind, MethodDetails, MethodWanted};
use lapwing_shm::{Doorbell, Followed, Followers, Poller, Ring, Spin};

use self::keeper::Keeper;
pub use self::typed::{Halves, ItemSender, ItemStream, PendingReply, Upload};
use crate::ambient::Ambient;
use crate::bulk::Reserved;
use crate::client::{
    Again, Core, Inbox, LINGER, Lacks, Outcome, Outgoing, Plain, Room, Start, StartError, Started,
    Turn, Until, What, WhenFull, at_once, lock, state_of,
};
use crate::control::ControlSocket;
use crate::endpoint;
use crate::error::{CallError, ConnectError};
use crate::handshake::ClientHello;
use crate::link::Broken;
use crate::payload::Payload;
use crate::spans::{self, CallSpan, code_of, observe};
use crate::{CallOptions, ClientOptions, ClientStats, ConnectionState, methods, platform};

/// A connection to a server, for threads. Clones are cheap and share the connection; every thread may
/// call at the same time.
///
/// The connection is closed when the last clone is dropped; [`IpcClient::disconnect`] lets calls in
/// flight finish first.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = lapwing::blocking::IpcClient::connect("/run/user/1000/lapwing/engine.sock")?;
/// let reply = client.call_raw(0x0400, b"hello")?;
/// assert_eq!(reply.bytes(), b"hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct IpcClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    core: Core,
    poller: Poller,
    nudge: Arc<Nudge>,
    followers: Followers,
    /// Whether the poller watches the socket for room; written under the outbox's lock.
    watches_room: AtomicBool,
    keeper: Keeper,
    /// When bulk memory was swept last, while there is some.
    swept: Mutex<Option<Instant>>,
    bulk_idle: Duration,
    drain: Duration,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.core.close();
        self.keeper.wake();
    }
}

impl IpcClient {
    /// Connects to the server that listens on `path`, with default options.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] says what to do.
    pub fn connect(path: impl AsRef<Path>) -> Result<IpcClient, ConnectError> {
        IpcClient::connect_with(path, &ClientOptions::default())
    }

    /// Connects with these options.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::connect`].
    pub fn connect_with(
        path: impl AsRef<Path>,
        options: &ClientOptions,
    ) -> Result<IpcClient, ConnectError> {
        let path = path.as_ref();
        endpoint::check_connect_path(path)?;
        // A time too long for the clock is a year.
        let deadline = Instant::now().checked_add(options.handshake).unwrap_or_else(far_away);
        let left = || deadline.saturating_duration_since(Instant::now());
        let late = || ConnectError::HandshakeTimeout { limit: options.handshake };
        let socket = loop {
            match endpoint::try_connect(path)? {
                Some(socket) => break socket,
                None if left().is_zero() => return Err(late()),
                None => thread::sleep(endpoint::CONNECT_AGAIN),
            }
        };
        let mut control = ControlSocket::new(socket)?;
        let awaiting = ClientHello::prepare(options.hello())?.send(&control)?;
        let message = loop {
            if let Some(message) = control.try_receive()? {
                break message;
            }
            if left().is_zero() || !platform::wait_readable(control.socket(), left())? {
                return Err(late());
            }
        };
        let link = awaiting.receive(&control, message, &options.bulk_terms())?;
        let core = Core::new(link, options.spin);
        let doorbell = match &core.doorbell {
            Some(doorbell) => Arc::clone(doorbell),
            None => Arc::new(Doorbell::create()?),
        };
        let poller = Poller::new(Some(&doorbell), core.socket.as_fd())?;
        let nudge = Arc::new(Nudge { asleep: AtomicBool::new(false), doorbell });
        let shared = Shared {
            core,
            poller,
            nudge,
            followers: Followers::default(),
            watches_room: AtomicBool::new(false),
            keeper: Keeper::default(),
            swept: Mutex::new(None),
            bulk_idle: options.bulk_idle,
            drain: options.drain,
        };
        Ok(IpcClient { shared: Arc::new(shared) })
    }

    /// Sends a request to the method `kind` and waits for its reply.
    ///
    /// # Errors
    ///
    /// [`CallError`]; [`CallError::Status`] is the server's own answer.
    pub fn call_raw(&self, kind: u16, payload: &[u8]) -> Result<Payload, CallError> {
        let kind = Kind::application(kind).ok_or(CallError::BadKind(kind))?;
        self.call_kind(kind, payload)
    }

    /// Sends bytes to the server's bytes route ([`methods::BYTES`]) and waits for its reply.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`].
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<Payload, CallError> {
        self.call_raw(methods::BYTES, bytes)
    }

    /// Sends a request and returns at once, to collect the reply later: many calls in flight from
    /// one thread. Waits only while there is no room.
    ///
    /// # Errors
    ///
    /// [`CallError`] when the request was not sent.
    #[inline]
    pub fn submit(&self, kind: u16, payload: &[u8]) -> Result<PendingCall<'_>, CallError> {
        let kind = Kind::application(kind).ok_or(CallError::BadKind(kind))?;
        if Ambient::is_here() {
            let options = CallOptions::default();
            let travel = options.travel();
            let out = Outgoing { travel: travel.as_ref(), ..Outgoing::plain(kind, payload) };
            return self.submit_out(out, "");
        }
        self.submit_out(Outgoing::plain(kind, payload), "")
    }

    #[inline]
    fn submit_out(
        &self,
        mut out: Outgoing<'_>,
        method: &'static str,
    ) -> Result<PendingCall<'_>, CallError> {
        let span = if spans::are_wanted() { self.span(&out, method) } else { None };
        let mut until = Until::Never;
        let started = self.start_call(&mut out, &mut until);
        if let (Some(span), Err(_)) = (&span, &started) {
            span.end(code_of(&started));
        }
        // Its time runs from here, and not from when somebody waits for it.
        until.settle();
        Ok(PendingCall { client: self, call: Some(started?), until, span })
    }

    /// Sends a message that has no reply. Waits while there is no room for it.
    ///
    /// # Errors
    ///
    /// [`CallError`]; that it was sent does not say that the server has read it.
    pub fn send_oneway(&self, kind: u16, payload: &[u8]) -> Result<(), CallError> {
        let kind = Kind::application(kind).ok_or(CallError::BadKind(kind))?;
        let options = CallOptions::default();
        let travel = if Ambient::is_here() { options.travel() } else { None };
        let out = Outgoing { travel: travel.as_ref(), ..Outgoing::plain(kind, payload) };
        self.send_out(out, "", WhenFull::Wait)
    }

    /// Room for a request of `bytes` bytes, to be written in place and sent by
    /// [`IpcClient::call_reserved`]. Waits while this side's bulk memory is used up.
    ///
    /// # Errors
    ///
    /// [`CallError::TooLarge`] for more than a message may have, or what ended the connection.
    pub fn reserve(&self, bytes: usize) -> Result<Reserved, CallError> {
        self.reserve_with(bytes, &CallOptions::default())
    }

    /// As [`IpcClient::reserve`], for at most the time that the options give, or only if there is a block now.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::reserve`], [`CallError::DeadlineExceeded`] when no block came back in time, and
    /// [`CallError::Full`] under [`CallOptions::only_with_room`].
    pub fn reserve_with(&self, bytes: usize, options: &CallOptions) -> Result<Reserved, CallError> {
        let (mut until, only_with_room) = match options.travel() {
            None => (Until::Never, false),
            Some(travel) => (travel.deadline, travel.only_with_room),
        };
        let reserve = |core: &Core, again: &Again| core.reserve(bytes, again);
        self.start(&mut until, only_with_room, reserve)
    }

    /// As [`IpcClient::call_raw`], with a request that was written in place: a long one is not copied.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`].
    pub fn call_reserved(&self, kind: u16, request: Reserved) -> Result<Payload, CallError> {
        self.call_reserved_with(kind, request, &CallOptions::default())
    }

    /// As [`IpcClient::call_reserved`], with a time limit, metadata or a trace.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`], and [`CallError::DeadlineExceeded`] when the time is over.
    pub fn call_reserved_with(
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
        self.call_out(&mut Outgoing { what, travel, ..Outgoing::plain(kind, &[]) }, "")
    }

    /// Asks the connection itself for an answer, past every route; the time it took.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`].
    pub fn ping(&self) -> Result<Duration, CallError> {
        let begun = Instant::now();
        self.call_kind(Kind::PING, &[])?;
        Ok(begun.elapsed())
    }

    /// Asks the server which methods it has.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`].
    pub fn describe(&self) -> Result<Vec<methods::Method>, CallError> {
        let reply = self.call_kind(Kind::DESCRIBE, &[])?;
        methods::from_description(Description::decode(&reply))
    }

    /// Asks the server for one method in full: its codec, and its schemas if it has some.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`]: a status `NotFound` for a kind without a method, and `Unimplemented` from a
    /// server that is too old to say.
    pub fn describe_method(&self, kind: u16) -> Result<methods::MethodDetails, CallError> {
        let wanted = MethodWanted { kind }.encode();
        let reply = self.call_kind(Kind::DESCRIBE_METHOD, &wanted)?;
        methods::from_details(kind, MethodDetails::decode(&reply))
    }

    /// What this connection has done so far.
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        self.shared.core.counters.snapshot()
    }

    /// Whether the connection lasts. A server that vanished while nobody called is seen here.
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        self.look();
        state_of(&self.shared.core)
    }

    /// Takes what is here, unless somebody else is at it.
    fn look(&self) {
        let core = &self.shared.core;
        if core.end().is_some() {
            return;
        }
        let Ok(mut inbox) = core.inbox.try_lock() else { return };
        let looked = core.deliver(&mut inbox, None).and_then(|_| core.look_at_socket());
        if let Err(broken) = looked {
            core.end_with(&mut inbox, &broken);
        }
        drop(inbox);
        // One that wanted to lead meanwhile follows, and waits to be called.
        self.call_on();
    }

    /// What the handshake agreed on.
    #[must_use]
    pub fn agreement(&self) -> methods::Agreement {
        methods::agreement(&self.shared.core)
    }

    /// Ends the connection: no new calls, calls in flight of other threads and one-way messages that were sent
    /// finish or meet the drain time, then it is closed, for all clones.
    pub fn disconnect(&self) {
        let core = &self.shared.core;
        core.say_goodbye();
        self.leave_rest();
        let mut until = Instant::now().checked_add(self.shared.drain).into();
        // The server closes when nothing of this connection is left to do.
        let over = |waker: &Waker| core.poll_end(waker).then_some(());
        let _ = self.wait_until(&mut until, over);
        core.close();
    }

    /// `method` is its name, empty where that is not known.
    #[inline]
    fn send_out(
        &self,
        out: Outgoing<'_>,
        method: &'static str,
        when_full: WhenFull,
    ) -> Result<(), CallError> {
        if spans::are_wanted() {
            return observe(self.span(&out, method), || self.send_now(out, when_full));
        }
        self.send_now(out, when_full)
    }

    fn send_now(&self, mut out: Outgoing<'_>, when_full: WhenFull) -> Result<(), CallError> {
        let core = &self.shared.core;
        match when_full {
            WhenFull::Wait => {
                let (mut until, only_with_room) = (out.until(), out.only_with_room());
                let start = |core: &Core, again: &Again| core.start_oneway(out.again(again));
                return self.start(&mut until, only_with_room, start);
            }
            WhenFull::Fail => at_once(core.start_oneway(&mut out))?,
            WhenFull::DropAndCount => match core.start_oneway(&mut out) {
                Err(StartError::Full(_)) => core.counters.dropped(),
                sent => at_once(sent)?,
            },
        }
        // This was not to wait.
        self.leave_rest();
        Ok(())
    }

    /// Calls with what the task's own call passes on, if it serves one.
    fn call_kind(&self, kind: Kind, payload: &[u8]) -> Result<Payload, CallError> {
        if Ambient::is_here() {
            let options = CallOptions::default();
            let travel = options.travel();
            let mut out = Outgoing { travel: travel.as_ref(), ..Outgoing::plain(kind, payload) };
            return self.call_out(&mut out, "");
        }
        self.call_out(&mut Outgoing::plain(kind, payload), "")
    }

    #[inline]
    fn call_out(&self, out: &mut Outgoing<'_>, method: &'static str) -> Result<Payload, CallError> {
        if spans::are_wanted() {
            return self.call_observed(out, method);
        }
        self.call_now(out)
    }

    #[cold]
    fn call_observed(
        &self,
        out: &mut Outgoing<'_>,
        method: &'static str,
    ) -> Result<Payload, CallError> {
        observe(self.span(out, method), || self.call_now(out))
    }

    /// `method` is its name, empty where that is not known.
    fn span(&self, out: &Outgoing<'_>, method: &'static str) -> Option<Box<CallSpan>> {
        spans::calling(out.kind, method, self.shared.core.agreed.connection_id, out.travel)
    }

    #[inline]
    fn call_now(&self, out: &mut Outgoing<'_>) -> Result<Payload, CallError> {
        let mut until = Until::Never;
        let call = self.start_call(out, &mut until)?;
        self.collect(&call, &mut until)
    }

    fn call_plain(&self, call: &mut Plain) -> Result<Payload, CallError> {
        let mut until = Until::Never;
        let started = self.start_call(call, &mut until)?;
        call.clear();
        self.collect(&started, &mut until)
    }

    #[inline(always)]
    fn start_call(&self, call: &mut impl Start, until: &mut Until) -> Result<Started, CallError> {
        let started = call.start(&self.shared.core, || false);
        // Only now: the request is on its way.
        *until = call.until();
        let only_with_room = call.only_with_room();
        self.go_on(started, until, only_with_room, |core, again| call.start_again(core, again))
    }

    #[inline]
    fn collect(&self, call: &Started, until: &mut Until) -> Result<Payload, CallError> {
        match self.wait_for(call, until) {
            Some(outcome) if outcome.is_late(*until) => Err(CallError::DeadlineExceeded),
            Some(outcome) => self.shared.core.conclude(outcome),
            None => {
                self.shared.core.abandon(call.id);
                self.leave_rest();
                Err(CallError::DeadlineExceeded)
            }
        }
    }

    /// On a socket, which may have taken only part of a frame: sends the rest, until the deadline. What is
    /// left then is left as by [`IpcClient::leave_rest`].
    #[inline]
    fn sent(&self, until: &mut Until) {
        if self.shared.core.doorbell.is_none() {
            self.push_backlog(until);
        } else if self.shared.core.took_bulk() {
            self.keep();
        }
    }

    /// Leaves what found no room, or the rest of a frame that a socket took in part, to whoever leads, or sends or waits
    /// next; to the keeper, if nobody does. So it is with all that is not to wait, and with the connection's own small
    /// frames.
    #[inline]
    fn leave_rest(&self) {
        let core = &self.shared.core;
        let is_left = match &core.doorbell {
            // A broken connection is its next reader's to find.
            None => matches!(self.push_rest(), Ok(true)) || core.room_wanted(),
            Some(_) => core.took_bulk() || core.room_wanted(),
        };
        if is_left {
            self.keep();
        }
    }

    /// See [`Keeper`].
    #[cold]
    fn keep(&self) {
        let core = &self.shared.core;
        let (keeper, has_rest) = (&self.shared.keeper, core.has_rest());
        // Memory has time: a thread that sweeps it already is not woken by each call.
        if has_rest || !keeper.runs() && core.has_bulk() {
            keeper.keep(&self.shared, has_rest);
        }
    }

    /// Sends of the rest what the socket takes; whether something is left. Then the poller watches for room, also for
    /// a leader that sleeps already.
    fn push_rest(&self) -> Result<bool, Broken> {
        let shared = &*self.shared;
        let mut outbox = lock(&shared.core.outbox);
        outbox.sending.flush()?;
        let is_left = outbox.sending.has_backlog();
        let watched = shared.watches_room.load(Ordering::Relaxed);
        if watched != is_left {
            shared.poller.want_writable(shared.core.socket.as_fd(), is_left)?;
            shared.watches_room.store(is_left, Ordering::Relaxed);
        }
        drop(outbox);
        if watched && !is_left {
            // Those that wait for it would not hear of it from the poller any more.
            shared.core.offer_room();
        }
        Ok(is_left)
    }

    /// Starts something, waiting for its turn and for room as often as it takes; or now or not at all.
    #[inline]
    fn start<T>(
        &self,
        until: &mut Until,
        only_with_room: bool,
        mut start: impl FnMut(&Core, &Again) -> Result<T, StartError>,
    ) -> Result<T, CallError> {
        let started = start(&self.shared.core, &Again::default());
        self.go_on(started, until, only_with_room, start)
    }

    /// As [`IpcClient::start`], after the first try.
    #[inline]
    fn go_on<T>(
        &self,
        started: Result<T, StartError>,
        until: &mut Until,
        only_with_room: bool,
        start: impl FnMut(&Core, &Again) -> Result<T, StartError>,
    ) -> Result<T, CallError> {
        match started {
            Ok(started) => {
                if only_with_room {
                    self.leave_rest();
                } else {
                    self.sent(until);
                }
                Ok(started)
            }
            Err(StartError::Full(room)) if !only_with_room => {
                let started = self.start_again(room, until, start)?;
                self.sent(until);
                Ok(started)
            }
            Err(refused) => at_once(Err(refused)),
        }
    }

    /// Waits for its turn and for room as often as it takes.
    #[cold]
    fn start_again<T>(
        &self,
        mut room: Room,
        until: &mut Until,
        mut start: impl FnMut(&Core, &Again) -> Result<T, StartError>,
    ) -> Result<T, CallError> {
        let core = &self.shared.core;
        let mut turn = Turn::new(core);
        let settled = until.settle();
        loop {
            if !self.wait_for_room(room, &mut turn, until) {
                return Err(CallError::DeadlineExceeded);
            }
            match start(core, &Again { settled, ticket: turn.ticket() }) {
                Err(StartError::Full(more)) => room = more,
                started => return at_once(started),
            }
        }
    }

    /// A socket may have taken only part of a frame: waits until it has the rest.
    fn push_backlog(&self, until: &mut Until) {
        // Who leads looks for room for everybody.
        if matches!(self.push_rest(), Ok(true)) {
            let mut turn = Turn::new(&self.shared.core);
            let room = Room { bytes: 0, place: false, lacks: Lacks::Ring };
            let _ = self.wait_for_room(room, &mut turn, until);
        }
    }

    /// The call's outcome, or `None` when the deadline came first.
    fn wait_for(&self, call: &Started, until: &mut Until) -> Option<Outcome> {
        let core = &self.shared.core;
        loop {
            if let Ok(mut inbox) = core.inbox.try_lock() {
                let done = || core.poll_call(call.id, None);
                let outcome = self.lead(&mut inbox, Some(call), |found| found, done, until);
                drop(inbox);
                self.hand_over();
                return outcome;
            }
            let waker = thread_waker(&self.shared.nudge);
            let done = || core.poll_call(call.id, Some(&waker));
            match self.follow(done, until) {
                Followed::Answer(outcome) => {
                    core.taken();
                    return Some(outcome);
                }
                Followed::Late => return None,
                Followed::Again => {}
            }
        }
    }

    /// Waits until `done` has an answer, which registers the waker it is given; `None` when the deadline came
    /// first.
    fn wait_until<T>(&self, until: &mut Until, done: impl Fn(&Waker) -> Option<T>) -> Option<T> {
        let core = &self.shared.core;
        let waker = thread_waker(&self.shared.nudge);
        loop {
            if let Ok(mut inbox) = core.inbox.try_lock() {
                let never = |_| unreachable!("no call of its own was given");
                let answer = self.lead(&mut inbox, None, never, || done(&waker), until);
                drop(inbox);
                self.hand_over();
                return answer;
            }
            match self.follow(|| done(&waker), until) {
                Followed::Answer(answer) => return Some(answer),
                Followed::Late => return None,
                Followed::Again => {}
            }
        }
    }

    /// Whether there was room before the deadline.
    #[cold]
    fn wait_for_room(&self, room: Room, turn: &mut Turn<'_>, until: &mut Until) -> bool {
        turn.wait_for(room, &thread_waker(&self.shared.nudge));
        self.leave_rest();
        self.wait_until(until, |_| turn.has_come().then_some(())).is_some()
    }

    /// Parks until woken, unless `done` has an answer or nobody leads any more. `done` has
    /// registered this thread's waker.
    fn follow<T>(&self, done: impl Fn() -> Option<T>, until: &mut Until) -> Followed<T> {
        let core = &self.shared.core;
        let is_free = || core.inbox.try_lock().is_ok();
        let left = || until.settle().map(|at| at.saturating_duration_since(Instant::now()));
        // As in invariant T of the core.
        self.shared.followers.follow(|| core.meet(), done, is_free, left)
    }

    /// A leader has left: one of the others leads on, or the keeper sees to what is left.
    #[inline]
    fn hand_over(&self) {
        self.call_on();
        let core = &self.shared.core;
        if core.took_bulk() || core.room_wanted() {
            self.keep();
        }
    }

    /// Somebody who had the receiving half has left it: one of those that wait leads on.
    #[inline]
    fn call_on(&self) {
        self.shared.core.taken();
        self.shared.followers.call_on();
    }

    /// Delivers for everybody until `done` has an answer; the outcome of the call `mine` is handed
    /// to `found` straight away.
    fn lead<T>(
        &self,
        inbox: &mut Inbox,
        mine: Option<&Started>,
        found: impl Fn(Outcome) -> T,
        done: impl Fn() -> Option<T>,
        until: &mut Until,
    ) -> Option<T> {
        let core = &self.shared.core;
        loop {
            match core.deliver(inbox, mine) {
                Ok(Some(outcome)) => return Some(found(outcome)),
                Ok(None) => {}
                Err(broken) => core.end_with(inbox, &broken),
            }
            // Before room is looked for: what comes after it is seen.
            let seen = core.room_wanted().then(|| inbox.peer_progress());
            core.offer_room();
            // Delivered by another leader before, or the connection is over. While nothing has come
            // yet this costs no time that would not be waited anyway.
            if let Some(answer) = done() {
                return Some(answer);
            }
            inbox.disarm();
            let came = match seen {
                None => inbox.spin(LINGER),
                // A peer that moves its words for ever, and makes no room, is no reason to wait longer.
                Some(seen) => inbox.spin_for_room(LINGER, seen) && !until.is_over(),
            };
            if came {
                continue;
            }
            // Looked for up to a millisecond: a deadline is not worth a look at the clock before.
            if until.is_over() {
                return None;
            }
            let rested = if inbox.spinner.policy() == Spin::Always && core.doorbell.is_some() {
                core.look_at_socket()
            } else {
                let asleep = &self.shared.nudge.asleep;
                asleep.store(true, Ordering::SeqCst);
                if let Some(answer) = done() {
                    asleep.store(false, Ordering::SeqCst);
                    return Some(answer);
                }
                let slept = self.sleep(inbox, until);
                asleep.store(false, Ordering::SeqCst);
                slept
            };
            if let Err(broken) = rested {
                core.end_with(inbox, &broken);
            }
        }
    }

    /// Arms, looks once more, sleeps until something comes.
    fn sleep(&self, inbox: &mut Inbox, until: &mut Until) -> Result<(), Broken> {
        let core = &self.shared.core;
        let quiet = inbox.arm()?;
        // Armed before this look: room that comes later rings.
        if !quiet || core.offer_room() {
            return Ok(());
        }
        if core.doorbell.is_none() {
            self.push_rest()?;
        }
        let since = Instant::now();
        let wake = self
            .shared
            .poller
            .wait(until.settle().map(|at| at.saturating_duration_since(since)))?;
        inbox.spinner.slept(since.elapsed());
        if wake.socket { core.look_at_socket() } else { Ok(()) }
    }
}

fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

/// A call that was submitted. Dropping it gives the reply up.
#[derive(Debug)]
#[must_use = "a pending call that is dropped gives its reply up"]
pub struct PendingCall<'a> {
    client: &'a IpcClient,
    call: Option<Started>,
    until: Until,
    span: Option<Box<CallSpan>>,
}

impl PendingCall<'_> {
    /// Waits for the reply.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_raw`].
    #[inline]
    pub fn collect(mut self) -> Result<Payload, CallError> {
        let call = self.call.take().expect("collected or dropped once");
        let (span, mut until) = (self.span.take(), self.until);
        if span.is_none() {
            return self.client.collect(&call, &mut until);
        }
        observe(span, || self.client.collect(&call, &mut until))
    }
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.call {
            self.client.shared.core.abandon(call.id);
            self.client.leave_rest();
        }
    }
}

/// Wakes a leader that sleeps on the doorbell. What it waits for may come from another thread of this side, as a place
/// in the table of calls does, and not from the peer.
///
/// Nothing is missed: a leader says that it sleeps, and looks once more whether it need not; who wakes it has done what
/// it waits for before, and looks at `asleep` after. Both go through the outbox's lock in between.
#[derive(Debug)]
struct Nudge {
    asleep: AtomicBool,
    /// This side's own doorbell, which the peer rings; over a socket, one for this alone.
    doorbell: Arc<Doorbell>,
}

impl Nudge {
    fn wake_leader(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // One that does not ring leaves the leader to its deadline; the system has failed then.
            let _ = self.doorbell.ring();
        }
    }
}

/// Wakes one who waits for something of one connection: parked, or leading and asleep.
struct WakeThread {
    thread: Thread,
    /// Weak: a thread keeps its waker longer than the connection lasts.
    nudge: Weak<Nudge>,
}

impl Wake for WakeThread {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.thread.unpark();
        if let Some(nudge) = self.nudge.upgrade() {
            nudge.wake_leader();
        }
    }
}

thread_local! {
    /// This thread's waker for the connection that it waited for last.
    static WAKER: RefCell<Option<(Weak<Nudge>, Waker)>> = const { RefCell::new(None) };
}

fn thread_waker(nudge: &Arc<Nudge>) -> Waker {
    WAKER.with_borrow_mut(|kept| {
        if let Some((known, waker)) = kept
            && std::ptr::eq(known.as_ptr(), Arc::as_ptr(nudge))
        {
            return waker.clone();
        }
        let woken = WakeThread { thread: thread::current(), nudge: Arc::downgrade(nudge) };
        let waker = Waker::from(Arc::new(woken));
        *kept = Some((Arc::downgrade(nudge), waker.clone()));
        waker
    })
}
