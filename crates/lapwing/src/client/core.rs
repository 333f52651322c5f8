//! What the async and the blocking client share: one connection, its calls, and who delivers.
//!
//! Two short locks, taken in this order where both are needed: `inbox` (the receiving half; whoever
//! holds it delivers frames for every call of the connection), then `outbox` (the sending half and the
//! table of calls). Nobody sleeps under `outbox`.
//!
//! Invariant T (taking without a lock): a caller that delivers its own reply does not lock the outbox to
//! close its call; it leaves the id in `retired`, and whoever locks the outbox next closes it. `retired` is
//! set from zero under `inbox` and set to zero under `outbox`, so there is one at most. Whoever waits for a
//! call to be closed (for a free place, or for the last one) says so and swaps `meeting` before it looks
//! again; a taker swaps `meeting` after it set `retired` and then looks who waits. The later of two swaps
//! sees what the other did before its own, so the two never miss each other.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use lapwing_proto::{
    CallTable, Code, Credit, Features, Flags, Goodbye, Header, Kind, Lookup, MessageId, Status,
    TimeLeft, TraceContext, WireError, limits,
};
use lapwing_shm::{Doorbell, OwnBlock, Sleeper, Spin, Spinner, has_kept_buffers, sweep_buffers};

use super::options::Until;
use super::stats::Counters;
use super::streams::{Owed, StreamCall};
use crate::bulk::{BulkIn, Reserved};
use crate::clock;
use crate::codec::Form;
use crate::compression::{has_contexts, sweep_contexts};
use crate::error::{CallError, Delivered, EndReason};
use crate::handshake::plain;
use crate::link::{
    Agreed, Body, Broken, Link, Metadata, Receiving, SendError, Sending, Written, call_header,
    connection_header, misbehaved, put_extensions, take_extensions,
};
use crate::payload::{Frame, Payload};

/// Milliseconds are a hundred round trips of two sleeping sides.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Locks, also after a panic elsewhere: every critical section leaves its value whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a call ended with, while the connection lasted.
#[derive(Debug)]
pub(crate) enum Outcome {
    Reply(Payload),
    // Boxed: it is rare, and the reply moves through several hands.
    Status(Box<Status>),
    Ended,
}

impl Outcome {
    /// Whether it is the server's answer that the time of a call with a deadline was over: one answer, whichever side
    /// found out first.
    #[inline]
    pub(crate) fn is_late(&self, until: Until) -> bool {
        match self {
            Outcome::Status(status) => {
                status.code == Code::DeadlineExceeded && until != Until::Never
            }
            Outcome::Reply(_) | Outcome::Ended => false,
        }
    }
}

/// A call in the table. `Waiting` until its response comes or the connection ends; `Abandoned` when
/// its caller went away: its slot stays taken until the response comes, as the server counts it too.
#[derive(Debug)]
pub(super) enum Call {
    Waiting { waker: Option<Waker>, kind: Kind, begun: Option<Instant> },
    Done(Outcome),
    Abandoned,
    // Boxed: the other calls are small.
    Stream(Box<StreamCall>),
}

/// An answer to a request of the server's.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

/// The sending half, the table of calls, and who waits for room.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub(crate) sending: Sending,
    pub(super) calls: CallTable<Call>,
    /// A payload with its extension block, while it is put together.
    extended: Vec<u8>,
    /// Frames that found no room; at most one of each sort for a call.
    pub(super) owed: Vec<Owed>,
    /// Answers to the server's own requests that found no room.
    pub(super) answers: VecDeque<Answer>,
    /// Who waits for room, in order: see [`Turn`].
    waiting: VecDeque<Waiting>,
    tickets: u64,
    /// Until then the socket is not looked at before something starts.
    look_again_at: Instant,
    /// Who wait for the end of the connection.
    leaving: Vec<Waker>,
}

/// The receiving half and how it waits.
#[derive(Debug)]
pub(crate) struct Inbox {
    receiving: Receiving,
    frame: Box<Frame>,
    /// The header of the frame that was read last.
    header: Header,
    pub(crate) sleeper: Option<Sleeper>,
    pub(crate) spinner: Spinner,
    /// Frames delivered so far: tells a driver whether anything moved.
    pub(crate) delivered: u64,
}

/// One connection as its client sees it.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) outbox: Mutex<Outbox>,
    pub(crate) inbox: Mutex<Inbox>,
    pub(crate) socket: Arc<UnixStream>,
    pub(crate) doorbell: Option<Arc<Doorbell>>,
    bulk: Option<Arc<BulkIn>>,
    pub(crate) agreed: Agreed,
    pub(crate) counters: Counters,
    /// Calls in the table, abandoned and retired ones included; written under `outbox`.
    in_flight: AtomicU32,
    /// Those of them that are streams and not abandoned; written under `outbox`.
    streams: AtomicU32,
    /// A call whose caller has its reply and which is still in the table; 0 for none. Invariant T.
    retired: AtomicU64,
    /// Invariant T.
    meeting: AtomicBool,
    /// Whether anybody waits for room; written under `outbox`.
    room_wanted: AtomicBool,
    /// The server said goodbye: no new calls.
    draining: AtomicBool,
    /// This side did: no new calls either. Written under `outbox`.
    said_goodbye: AtomicBool,
    /// Who starts something looks at the socket: nobody may watch it while there are no calls, or who watches it had no
    /// turn since.
    looks_first: bool,
    end: OnceLock<EndReason>,
}

/// Why a call or message did not start.
pub(crate) enum StartError {
    /// No room, or too many calls in flight.
    Full(Room),
    Failed(CallError),
}

/// What a frame waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Room for this many bytes of payload.
    pub(crate) bytes: usize,
    /// A place in the table of calls, too.
    pub(crate) place: bool,
    pub(crate) lacks: Lacks,
}

/// What was not there: who lacks one thing does not keep others from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lacks {
    Place,
    /// Room in the ring, or that the socket takes more.
    Ring,
    /// A block of bulk memory.
    Block,
}

/// One who waits for room.
#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    room: Room,
    waker: Waker,
    /// It was woken and has not tried since.
    woken: bool,
}

/// The number of one who waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket(u64);

/// A place among those who wait for room, given up on drop.
///
/// The first of those who lack a place in the table of calls goes before whoever comes later and needs one, and so with
/// room and with blocks; so everybody's turn comes, however busy others are. Whoever is woken stays the first until it has
/// sent, or is gone.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    core: &'a Core,
    ticket: Option<Ticket>,
}

impl<'a> Turn<'a> {
    /// Of one who has not waited yet.
    pub(crate) fn new(core: &'a Core) -> Turn<'a> {
        Turn { core, ticket: None }
    }

    pub(crate) fn ticket(&self) -> Option<Ticket> {
        self.ticket
    }

    /// Has `waker` woken when there is this room and everybody before was served.
    pub(crate) fn wait_for(&mut self, room: Room, waker: &Waker) {
        self.core.wait_for_room(room, waker, &mut self.ticket);
    }

    /// Whether it was woken, or need not wait any more.
    pub(crate) fn has_come(&self) -> bool {
        let outbox = lock(&self.core.outbox);
        let mut waiting = outbox.waiting.iter();
        waiting.find(|waiting| Some(waiting.ticket) == self.ticket).is_none_or(|found| found.woken)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.core.withdraw(ticket);
        }
    }
}

/// What one who had to wait tries again with.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Again {
    /// The deadline, once it had to be worked out.
    pub(crate) settled: Option<Instant>,
    pub(crate) ticket: Option<Ticket>,
}

/// A frame to start a call or a one-way message with.
pub(crate) struct Outgoing<'a> {
    pub(crate) kind: Kind,
    pub(crate) what: What<'a>,
    /// What its extension block carries, if it has one.
    pub(crate) travel: Option<&'a Travel<'a>>,
    /// If it had to wait.
    pub(crate) again: Option<Again>,
}

/// The payload of an [`Outgoing`].
pub(crate) enum What<'a> {
    Bytes(&'a [u8]),
    /// A frame that was put together beforehand, with its extension block.
    Written(&'a mut Written),
    /// A block of bulk memory. Locked only while it is sent.
    Block(&'a Mutex<OwnBlock>),
}

impl<'a> Outgoing<'a> {
    /// Bytes, with nothing beside them.
    #[inline]
    pub(crate) fn plain(kind: Kind, payload: &'a [u8]) -> Outgoing<'a> {
        Outgoing { kind, what: What::Bytes(payload), travel: None, again: None }
    }

    /// A frame that was put together for this travel.
    #[inline]
    pub(crate) fn written(
        kind: Kind,
        written: &'a mut Written,
        travel: Option<&'a Travel<'a>>,
    ) -> Outgoing<'a> {
        Outgoing { what: What::Written(written), travel, ..Outgoing::plain(kind, &[]) }
    }

    /// The same once more, to be tried after it had to wait.
    #[inline(always)]
    pub(crate) fn again(&mut self, again: &Again) -> &mut Outgoing<'a> {
        self.again = Some(*again);
        self
    }

    /// What it waits for. A block has its place in bulk memory already.
    #[inline]
    fn room(&self, place: bool) -> Room {
        let bytes = if matches!(self.what, What::Block(_)) { 0 } else { self.len() };
        Room { bytes, place, lacks: Lacks::Place }
    }

    /// Bytes of the payload.
    #[inline(always)]
    fn len(&self) -> usize {
        match &self.what {
            What::Bytes(bytes) => bytes.len(),
            What::Written(written) => written.payload().len(),
            What::Block(block) => lock(block).len(),
        }
    }

    /// How its payloads are written.
    #[inline]
    pub(crate) fn form(&self) -> Form {
        self.travel.map_or(Form::Own, |travel| travel.form)
    }

    /// The time that is left for it now.
    #[inline(always)]
    fn left(&self) -> Option<TimeLeft> {
        let settled = self.again.as_ref().and_then(|again| again.settled);
        settled.map_or(self.until(), Until::At).left()
    }
}

/// A call before it has started.
pub(crate) trait Start {
    /// When it is given up.
    fn until(&self) -> Until;

    /// Whether it fails instead of waiting for room.
    fn only_with_room(&self) -> bool;

    /// As [`Core::start`]. Where `looks` says so under the outbox's lock, the bell is not looked at: somebody will
    /// call [`Core::flush`] soon, and before he sleeps. So what many tasks send in turn costs one look.
    fn start(&mut self, core: &Core, looks: impl FnOnce() -> bool) -> Result<Started, StartError>;

    /// Tries it again, after it had to wait.
    fn start_again(&mut self, core: &Core, again: &Again) -> Result<Started, StartError>;

    /// It has started: what it was sent from is the next one's.
    fn clear(&mut self) {}
}

impl Start for Outgoing<'_> {
    #[inline]
    fn until(&self) -> Until {
        self.travel.map_or(Until::Never, |travel| travel.deadline)
    }

    #[inline]
    fn only_with_room(&self) -> bool {
        self.travel.is_some_and(|travel| travel.only_with_room)
    }

    #[inline(always)]
    fn start(&mut self, core: &Core, looks: impl FnOnce() -> bool) -> Result<Started, StartError> {
        core.start_with(self, Brings::Reply, looks)
    }

    fn start_again(&mut self, core: &Core, again: &Again) -> Result<Started, StartError> {
        core.start(self.again(again), Brings::Reply)
    }
}

/// A typed call with a time limit at most, as most are: less is to be looked at than of an [`Outgoing`].
// Used where it was made: a move loads what was just stored, in other pieces than it was stored in, and waits for the cache.
#[derive(Debug)]
pub(crate) struct Plain {
    kind: Kind,
    written: Written,
    /// How long it has, in nanoseconds, or [`clock::NEVER`]. Not an [`Until`]: that is moved in other pieces than it was stored.
    limit_ns: u64,
}

impl Plain {
    /// One whose payload is still empty.
    #[inline(always)]
    pub(crate) fn new(kind: Kind, limit_ns: u64) -> Plain {
        Plain { kind, written: Written::plain(limit_ns != clock::NEVER), limit_ns }
    }

    /// Where the payload is to be appended.
    #[inline]
    pub(crate) fn payload_mut(&mut self) -> &mut Vec<u8> {
        self.written.payload_mut()
    }
}

impl Start for Plain {
    #[inline]
    fn until(&self) -> Until {
        match self.limit_ns {
            clock::NEVER => Until::Never,
            limit_ns => Until::In(Duration::from_nanos(limit_ns)),
        }
    }

    #[inline]
    fn only_with_room(&self) -> bool {
        false
    }

    #[inline(always)]
    fn start(&mut self, core: &Core, looks: impl FnOnce() -> bool) -> Result<Started, StartError> {
        let Plain { kind, written, limit_ns } = self;
        // Before the lock, which takes as long: what is left and since when go together.
        if *limit_ns != clock::NEVER {
            written.set_time(clock::from_now_ns(*limit_ns));
        }
        let room = Room { bytes: written.payload().len(), place: true, lacks: Lacks::Place };
        core.start_frame(*kind, room, None, Brings::Reply, looks, |outbox, header| {
            let bytes = room.bytes;
            let room = Room { bytes: bytes + written.extension_bytes(), ..room };
            let sent = outbox.sending.send_written(header, written);
            sent.map_err(|error| core.refused(error, room))?;
            core.counters.sent(bytes);
            Ok(())
        })
    }

    #[cold]
    fn start_again(&mut self, core: &Core, again: &Again) -> Result<Started, StartError> {
        let travel = Travel::plain(self.until());
        let mut out = Outgoing::written(self.kind, &mut self.written, Some(&travel));
        core.start(out.again(again), Brings::Reply)
    }

    #[inline]
    fn clear(&mut self) {
        self.written.give_back();
    }
}

/// What goes with a call beside its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Travel<'a> {
    pub(crate) deadline: Until,
    pub(crate) trace: Option<TraceContext>,
    pub(crate) metadata: &'a Metadata,
    pub(crate) priority: bool,
    pub(crate) form: Form,
    /// It fails instead of waiting for room.
    pub(crate) only_with_room: bool,
}

impl Travel<'_> {
    /// Nothing but the time.
    fn plain(deadline: Until) -> Travel<'static> {
        const NONE: &Metadata = &Metadata::NONE;
        Travel {
            deadline,
            trace: None,
            metadata: NONE,
            priority: false,
            form: Form::Own,
            only_with_room: false,
        }
    }
}

/// What a call brings: one reply, or streams in one direction or both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Brings {
    Reply,
    /// Items in one direction at least: whether the caller sends some, and whether it gets some.
    Items {
        caller_sends: bool,
        caller_gets: bool,
    },
}

impl Brings {
    pub(crate) const SERVER_STREAM: Brings =
        Brings::Items { caller_sends: false, caller_gets: true };
    pub(crate) const CLIENT_STREAM: Brings =
        Brings::Items { caller_sends: true, caller_gets: false };
    pub(crate) const DUPLEX: Brings = Brings::Items { caller_sends: true, caller_gets: true };
}

/// A call that was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    pub(crate) id: MessageId,
    pub(super) kind: Kind,
    /// When, if it is timed.
    begun: Option<Instant>,
}

impl Core {
    pub(crate) fn new(link: Link, spin: Spin) -> Core {
        let Link { agreed, sending, receiving, socket, waking, bulk } = link;
        let (sleeper, doorbell) = waking.unzip();
        // The socket transport writes to it, and so finds out.
        let looks_first = doorbell.is_some();
        let calls = CallTable::with_capacity(agreed.limits.calls_in_flight);
        let outbox = Outbox {
            sending,
            calls,
            extended: Vec::new(),
            owed: Vec::new(),
            answers: VecDeque::new(),
            waiting: VecDeque::new(),
            tickets: 0,
            look_again_at: Instant::now(),
            leaving: Vec::new(),
        };
        let inbox = Inbox {
            receiving,
            frame: Box::default(),
            header: connection_header(Kind::GOODBYE),
            sleeper,
            spinner: Spinner::new(spin),
            delivered: 0,
        };
        Core {
            outbox: Mutex::new(outbox),
            inbox: Mutex::new(inbox),
            socket,
            doorbell: doorbell.map(Arc::new),
            bulk,
            agreed,
            counters: Counters::new(),
            in_flight: AtomicU32::new(0),
            streams: AtomicU32::new(0),
            retired: AtomicU64::new(0),
            meeting: AtomicBool::new(false),
            room_wanted: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            said_goodbye: AtomicBool::new(false),
            looks_first,
            end: OnceLock::new(),
        }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        let retired = self.retired.load(Ordering::Relaxed) != 0;
        self.in_flight.load(Ordering::Relaxed).saturating_sub(u32::from(retired))
    }

    /// Whether one call alone waits for a reply. Streams beside it may stand still for long: when their items come,
    /// whoever looks in place sees it and stops.
    #[inline]
    pub(crate) fn is_alone(&self) -> bool {
        self.in_flight().wrapping_sub(self.streams.load(Ordering::Relaxed)) == 1
    }

    fn stream_ended(&self) {
        // Under the outbox's lock, as all that write it.
        self.streams.store(self.streams.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    /// Locks the outbox, and closes the retired call first (invariant T).
    #[inline]
    pub(super) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        let mut outbox = lock(&self.outbox);
        let retired = self.retired.load(Ordering::Acquire);
        if retired != 0 {
            outbox.calls.discard(MessageId::new(retired));
            self.closed_one(&mut outbox);
            self.retired.store(0, Ordering::Release);
        }
        outbox
    }

    /// A taker has left, or a waiter has said what it waits for (invariant T).
    #[inline]
    pub(crate) fn meet(&self) {
        self.meeting.swap(true, Ordering::AcqRel);
    }

    /// After a call brought its reply: wakes those who wait for its place or its end.
    #[inline]
    pub(crate) fn taken(&self) {
        self.meet();
        if self.room_wanted() {
            self.offer_room();
        }
    }

    /// Under the outbox's lock, so that who clears it sees what is owed.
    pub(super) fn want_room(&self) {
        self.room_wanted.store(true, Ordering::Relaxed);
    }

    pub(crate) fn room_wanted(&self) -> bool {
        self.room_wanted.load(Ordering::Relaxed)
    }

    pub(crate) fn end(&self) -> Option<&EndReason> {
        self.end.get()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Sends a request and enters its call, or neither. The peer's bell has been looked at.
    #[inline(always)]
    pub(crate) fn start(
        &self,
        out: &mut Outgoing<'_>,
        brings: Brings,
    ) -> Result<Started, StartError> {
        self.start_with(out, brings, || false)
    }

    /// Looks at the peer's bell, if something was sent since the last time.
    pub(crate) fn flush(&self) -> Result<(), Broken> {
        self.outbox().sending.flush()
    }

    #[inline(always)]
    fn start_with(
        &self,
        out: &mut Outgoing<'_>,
        brings: Brings,
        looks: impl FnOnce() -> bool,
    ) -> Result<Started, StartError> {
        let (kind, room, again, bytes) = (out.kind, out.room(true), out.again, out.len());
        self.start_frame(kind, room, again.as_ref(), brings, looks, |outbox, header| {
            self.send_out(outbox, header, out, room)?;
            self.counters.sent(bytes);
            Ok(())
        })
    }

    /// Enters a call and sends its request with `send`, which counts it, or neither. `room` is what the request takes
    /// without its extension block.
    #[inline(always)]
    fn start_frame(
        &self,
        kind: Kind,
        room: Room,
        again: Option<&Again>,
        brings: Brings,
        looks: impl FnOnce() -> bool,
        send: impl FnOnce(&mut Outbox, Header) -> Result<(), StartError>,
    ) -> Result<Started, StartError> {
        let mut outbox = self.open_outbox()?;
        let begun = self.counters.begin();
        if !outbox.waiting.is_empty() {
            outbox.take_turn(room, again)?;
        }
        let Some(place) = outbox.calls.vacancy() else {
            return Err(StartError::Full(room));
        };
        let id = match brings {
            Brings::Reply => place.fill(Call::Waiting { waker: None, kind, begun }),
            Brings::Items { caller_gets, .. } => {
                place.fill(Call::Stream(Box::new(StreamCall::new(kind, begun, caller_gets))))
            }
        };
        let flags = match brings {
            Brings::Items { caller_sends: true, .. } => Flags::REQUEST | Flags::STREAM,
            _ => Flags::REQUEST,
        };
        if let Err(error) = send(&mut outbox, call_header(flags, kind, id)) {
            outbox.calls.discard(id);
            return Err(outbox.refusal(error));
        }
        self.in_flight.store(outbox.calls.len() as u32, Ordering::Relaxed);
        if matches!(brings, Brings::Items { .. }) {
            self.streams.store(self.streams.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        if (!looks() || outbox.sending.peer_seems_asleep())
            && let Err(broken) = outbox.sending.flush()
        {
            drop(outbox);
            // The frame is out: whether the call runs is open. Its caller finds the end.
            self.finish(&broken);
        }
        Ok(Started { id, kind, begun })
    }

    #[inline(always)]
    fn send_out(
        &self,
        outbox: &mut Outbox,
        header: Header,
        out: &mut Outgoing<'_>,
        room: Room,
    ) -> Result<(), StartError> {
        match (&out.what, out.travel) {
            (What::Bytes(bytes), travel) if travel.is_none() || out.kind.is_connection() => {
                // The connection's own kinds carry nothing beside their payload: their time is kept here.
                outbox.sending.send(header, bytes).map_err(|e| self.refused(e, room))
            }
            (What::Written(_), _) => self.send_written(outbox, header, out, room),
            _ => self.send_extended(outbox, header, out, room),
        }
    }

    /// A frame that was put together, with the time that is left now.
    #[inline(always)]
    fn send_written(
        &self,
        outbox: &mut Outbox,
        mut header: Header,
        out: &mut Outgoing<'_>,
        room: Room,
    ) -> Result<(), StartError> {
        let left = out.left();
        let What::Written(written) = &mut out.what else { unreachable!("the caller has looked") };
        if let Some(travel) = out.travel {
            if let Some(left) = left {
                self.check_left(left)?;
                written.set_time(left);
            }
            self.check_form(travel.form)?;
            if travel.priority {
                header.flags = header.flags | Flags::PRIORITY;
            }
        }
        let room = Room { bytes: room.bytes + written.extension_bytes(), ..room };
        outbox.sending.send_written(header, written).map_err(|error| self.refused(error, room))
    }

    fn check_left(&self, left: TimeLeft) -> Result<(), StartError> {
        if left.remaining_us == 0 {
            self.counters.failed();
            return Err(StartError::Failed(CallError::DeadlineExceeded));
        }
        Ok(())
    }

    #[inline]
    fn check_form(&self, form: Form) -> Result<(), StartError> {
        if form == Form::Json && !self.agreed.features.contains(Features::JSON) {
            self.counters.failed();
            return Err(StartError::Failed(CallError::NoJson));
        }
        Ok(())
    }

    #[inline(never)]
    fn send_extended(
        &self,
        outbox: &mut Outbox,
        mut header: Header,
        out: &Outgoing<'_>,
        room: Room,
    ) -> Result<(), StartError> {
        let Outbox { sending, extended, .. } = outbox;
        extended.clear();
        if let Some(travel) = out.travel {
            // What is left now: it may have waited for room.
            let time = out.left();
            time.map_or(Ok(()), |left| self.check_left(left))?;
            self.check_form(travel.form)?;
            if travel.priority {
                header.flags = header.flags | Flags::PRIORITY;
            }
            put_extensions(extended, time, travel.trace, travel.metadata, travel.form)
                .map_err(|error| StartError::Failed(CallError::BadMetadata(error.to_string())))?;
        }
        let room = Room { bytes: room.bytes + extended.len(), ..room };
        let sent = match &out.what {
            What::Bytes(bytes) => sending.send_with(header, extended, Body::Bytes(bytes)),
            What::Block(block) => {
                sending.send_with(header, extended, Body::Block(&mut lock(block)))
            }
            What::Written(_) => unreachable!("it has its extension block already"),
        };
        if extended.capacity() > 64 * 1024 {
            *extended = Vec::new();
        }
        sent.map_err(|error| self.refused(error, room))
    }

    /// Room for a payload to be written in place.
    pub(crate) fn reserve(&self, bytes: usize, again: &Again) -> Result<Reserved, StartError> {
        let mut outbox = self.open_outbox()?;
        let room = outbox.lacking(Room { bytes, place: false, lacks: Lacks::Block });
        if !outbox.waiting.is_empty() {
            outbox.take_turn(room, Some(again))?;
        }
        match outbox.sending.reserve(bytes) {
            Ok(block) => Ok(Reserved::new(block, bytes)),
            Err(error) => Err(self.refused(error, room)),
        }
    }

    /// With shared memory: takes what has come on the socket, which may be its end.
    pub(crate) fn look_at_socket(&self) -> Result<(), Broken> {
        self.bulk.as_ref().map_or(Ok(()), |bulk| bulk.look_at_socket())
    }

    /// Whether there is bulk memory that should be swept in a while.
    pub(crate) fn has_bulk(&self) -> bool {
        has_kept_buffers()
            || has_contexts()
            || self.bulk.as_ref().is_some_and(|bulk| bulk.is_in_use())
            || lock(&self.outbox).sending.has_bulk()
    }

    /// Whether bulk memory was used since the last time that somebody asked.
    #[inline]
    pub(crate) fn took_bulk(&self) -> bool {
        self.bulk.as_ref().is_some_and(|bulk| bulk.take_touched())
    }

    /// Whether something is left to be sent that nobody waits for: what found no room, or the rest of a frame that a
    /// socket did not take whole.
    pub(crate) fn has_rest(&self) -> bool {
        let outbox = lock(&self.outbox);
        let owes = !outbox.owed.is_empty() || !outbox.answers.is_empty();
        self.end.get().is_none() && (owes || outbox.sending.has_backlog())
    }

    /// Gives bulk memory back that was not used since the last time.
    pub(crate) fn sweep_bulk(&self) -> Result<(), Broken> {
        if let Some(bulk) = &self.bulk {
            bulk.sweep();
        }
        sweep_buffers();
        sweep_contexts();
        self.outbox().sending.sweep()
    }

    /// Sends a message that has no answer.
    pub(crate) fn start_oneway(&self, out: &mut Outgoing<'_>) -> Result<(), StartError> {
        let mut outbox = self.open_outbox()?;
        let header = call_header(Flags::NONE, out.kind, MessageId::CONNECTION);
        let room = out.room(false);
        if !outbox.waiting.is_empty() {
            outbox.take_turn(room, out.again.as_ref())?;
        }
        let bytes = out.len();
        self.send_out(&mut outbox, header, out, room).map_err(|e| outbox.refusal(e))?;
        self.counters.sent(bytes);
        let flushed = outbox.sending.flush();
        drop(outbox);
        if let Err(broken) = flushed {
            self.finish(&broken);
        }
        Ok(())
    }

    /// The outbox of a connection on which something may start.
    #[inline(always)]
    fn open_outbox(&self) -> Result<MutexGuard<'_, Outbox>, StartError> {
        let outbox = self.outbox();
        self.check_open()?;
        // One that is awake is alive; one that died asleep seems to sleep for ever.
        if self.looks_first && outbox.sending.peer_seems_asleep() {
            return self.look_first(outbox);
        }
        Ok(outbox)
    }

    /// Looks at the socket before something starts, now and then: what goes to a server that is gone already is known
    /// to have gone nowhere.
    #[cold]
    fn look_first<'a>(
        &'a self,
        mut outbox: MutexGuard<'a, Outbox>,
    ) -> Result<MutexGuard<'a, Outbox>, StartError> {
        let now = Instant::now();
        if now < outbox.look_again_at {
            return Ok(outbox);
        }
        outbox.look_again_at = now + LOOK_AGAIN;
        drop(outbox);
        match self.look_at_socket() {
            Ok(()) => {
                // Under the lock again: a call that is entered behind the end would find nobody to tell it.
                let outbox = self.outbox();
                self.check_open()?;
                Ok(outbox)
            }
            Err(broken) => {
                if let Ok(mut inbox) = self.inbox.try_lock() {
                    self.end_with(&mut inbox, &broken);
                }
                let reason = self.end.get().cloned().unwrap_or_else(|| self.reason(&broken));
                Err(StartError::Failed(reason.error(Delivered::Never)))
            }
        }
    }

    /// Called under the outbox's lock.
    fn check_open(&self) -> Result<(), StartError> {
        if let Some(reason) = self.end.get() {
            return Err(StartError::Failed(reason.error(Delivered::Never)));
        }
        if self.said_goodbye.load(Ordering::Relaxed) {
            let reason = EndReason::ClosedHere;
            return Err(StartError::Failed(reason.error(Delivered::Never)));
        }
        if self.draining.load(Ordering::Relaxed) {
            return Err(StartError::Failed(EndReason::Goodbye.error(Delivered::Never)));
        }
        Ok(())
    }

    #[cold]
    fn refused(&self, error: SendError, room: Room) -> StartError {
        match error {
            SendError::Full => StartError::Full(room),
            SendError::TooLarge(max) => {
                self.counters.failed();
                StartError::Failed(CallError::TooLarge { length: room.bytes, max })
            }
            SendError::OverQuota => {
                let status = Status::resource_exhausted(WireError::QuotaBulk.sentence());
                StartError::Failed(status.into())
            }
            SendError::Broken(broken) => StartError::Failed(self.broken_error(&broken)),
        }
    }

    fn broken_error(&self, broken: &Broken) -> CallError {
        self.record_end(broken).error(Delivered::Never)
    }

    /// Registers who is woken when there is this room, at its place if it has a ticket, else behind all others.
    fn wait_for_room(&self, room: Room, waker: &Waker, ticket: &mut Option<Ticket>) {
        let mut outbox = self.outbox();
        let known = outbox.waiting.iter_mut().find(|waiting| Some(waiting.ticket) == *ticket);
        if let Some(known) = known {
            known.room = room;
            known.woken = false;
            known.waker.clone_from(waker);
        } else {
            outbox.tickets += 1;
            let fresh = Ticket(outbox.tickets);
            *ticket = Some(fresh);
            let waker = waker.clone();
            outbox.waiting.push_back(Waiting { ticket: fresh, room, waker, woken: false });
        }
        self.room_wanted.store(true, Ordering::Relaxed);
        drop(outbox);
        self.meet();
    }

    /// One who waited is served, or gone: the next one's turn comes.
    fn withdraw(&self, ticket: Ticket) {
        self.outbox().waiting.retain(|waiting| waiting.ticket != ticket);
        self.offer_room();
    }

    /// Wakes the first who wait, if there is room for them now. Returns whether anybody was woken.
    pub(crate) fn offer_room(&self) -> bool {
        if !self.room_wanted() {
            return false;
        }
        let mut outbox = self.outbox();
        let places = outbox.calls.len() < outbox.calls.capacity() as usize;
        let ended = self.end.get().is_some();
        let mut woken = Vec::new();
        let paid = self.pay(&mut outbox);
        let Outbox { waiting, sending, .. } = &mut *outbox;
        let mut first = [true; 3];
        for waiting in waiting.iter_mut() {
            let Room { bytes, place, lacks } = waiting.room;
            let is_first = std::mem::replace(&mut first[lacks as usize], false);
            if waiting.woken || !(is_first || ended) {
                continue;
            }
            let has_place = places || !place;
            if ended || has_place && sending.has_room(bytes).unwrap_or(true) {
                waiting.woken = true;
                woken.push(waiting.waker.clone());
            }
        }
        self.room_wanted.store(!(waiting.is_empty() && paid), Ordering::Relaxed);
        drop(outbox);
        let any = !woken.is_empty();
        woken.into_iter().for_each(Waker::wake);
        any
    }

    /// The call's outcome if it has one; otherwise `waker` is woken when it does.
    pub(crate) fn poll_call(&self, id: MessageId, waker: Option<&Waker>) -> Option<Outcome> {
        let mut outbox = self.outbox();
        match outbox.calls.find(id) {
            Lookup::Live(Call::Waiting { waker: known, .. }) => {
                if let Some(waker) = waker
                    && !known.as_ref().is_some_and(|known| known.will_wake(waker))
                {
                    *known = Some(waker.clone());
                }
                None
            }
            Lookup::Live(Call::Done(outcome)) => {
                let outcome = std::mem::replace(outcome, Outcome::Ended);
                outbox.calls.discard(id);
                self.closed_one(&mut outbox);
                Some(outcome)
            }
            Lookup::Live(_) => {
                self.close_call(&mut outbox, id);
                Some(Outcome::Ended)
            }
            Lookup::Ended | Lookup::NeverIssued => Some(Outcome::Ended),
        }
    }

    pub(super) fn close_call(&self, outbox: &mut Outbox, id: MessageId) -> Option<Call> {
        let call = outbox.calls.remove(id);
        if matches!(call, Some(Call::Stream(_))) {
            self.stream_ended();
        }
        self.closed_one(outbox);
        call
    }

    #[inline]
    fn closed_one(&self, outbox: &mut Outbox) {
        self.in_flight.store(outbox.calls.len() as u32, Ordering::Relaxed);
    }

    /// On a socket: sends what it takes of the frame that it did not take whole.
    pub(crate) fn push_backlog(&self) -> Result<(), Broken> {
        let mut outbox = self.outbox();
        outbox.sending.flush()?;
        Ok(())
    }

    /// Whether the connection is over; otherwise `waker` is woken when it is.
    pub(crate) fn poll_end(&self, waker: &Waker) -> bool {
        // Under the lock, so that who sets the end afterwards finds the waker.
        let mut outbox = self.outbox();
        if self.end.get().is_some() {
            return true;
        }
        if !outbox.leaving.iter().any(|known| known.will_wake(waker)) {
            outbox.leaving.push(waker.clone());
        }
        false
    }

    /// The caller went away before the response came.
    pub(crate) fn abandon(&self, id: MessageId) {
        let mut woken = Vec::new();
        let mut outbox = self.outbox();
        match outbox.calls.find(id) {
            Lookup::Live(call @ Call::Waiting { .. }) => {
                let Call::Waiting { kind, .. } = *call else { unreachable!("it was just matched") };
                *call = Call::Abandoned;
                self.cancel(&mut outbox, id, kind);
            }
            Lookup::Live(Call::Stream(stream)) if stream.ended.is_none() => {
                let kind = stream.kind;
                // The other half may wait, for credit or for an item, in another task.
                woken.extend(stream.wakers());
                if let Lookup::Live(call) = outbox.calls.find(id) {
                    *call = Call::Abandoned;
                }
                self.stream_ended();
                self.cancel(&mut outbox, id, kind);
            }
            // By the other half of a stream: its place is taken until the server has answered.
            Lookup::Live(Call::Abandoned) => return,
            Lookup::Live(_) => {
                self.close_call(&mut outbox, id);
            }
            Lookup::Ended | Lookup::NeverIssued => return,
        }
        drop(outbox);
        woken.into_iter().for_each(Waker::wake);
        self.offer_room();
    }

    /// Turns an outcome into what the caller gets.
    pub(crate) fn conclude(&self, outcome: Outcome) -> Result<Payload, CallError> {
        match outcome {
            Outcome::Reply(payload) => Ok(payload),
            Outcome::Status(status) => Err((*status).into()),
            Outcome::Ended => {
                let reason = self.end.get().cloned().unwrap_or(EndReason::Vanished);
                Err(reason.error(Delivered::Maybe))
            }
        }
    }

    /// Says goodbye: no new calls from here on. Calls in flight go on, and when they are done the server closes.
    pub(crate) fn say_goodbye(&self) {
        let mut outbox = self.outbox();
        if self.said_goodbye.load(Ordering::Relaxed) || self.end.get().is_some() {
            return;
        }
        self.said_goodbye.store(true, Ordering::Relaxed);
        self.send_goodbye(&mut outbox);
    }

    /// Ends the connection for everybody, telling the peer when it is to blame.
    pub(crate) fn finish(&self, broken: &Broken) {
        // Once: who sees the end later finds the bad frame still standing there.
        if let Broken::Misbehaved(peer) = broken
            && self.end.get().is_none()
        {
            let mut outbox = self.outbox();
            let payload = Goodbye::new(peer.error, peer.detail).encode();
            let _ = outbox.sending.send(connection_header(Kind::GOODBYE), &payload);
            let _ = outbox.sending.flush();
        }
        self.record_end(broken);
        self.wake_all();
    }

    /// Ends the connection from this side.
    pub(crate) fn close(&self) {
        self.say_goodbye();
        let _ = self.end.set(EndReason::ClosedHere);
        let _ = self.socket.shutdown(Shutdown::Both);
        self.wake_all();
    }

    fn reason(&self, broken: &Broken) -> EndReason {
        match broken {
            Broken::Misbehaved(peer) => EndReason::Misbehaved(*peer),
            _ if self.said_goodbye.load(Ordering::Relaxed) => EndReason::ClosedHere,
            Broken::Failed(what) => EndReason::Failed(what.to_string()),
            Broken::Ended if self.is_draining() => EndReason::Goodbye,
            Broken::Ended => EndReason::Vanished,
        }
    }

    fn record_end(&self, broken: &Broken) -> &EndReason {
        let reason = self.reason(broken);
        let reason = self.end.get_or_init(|| reason);
        let _ = self.socket.shutdown(Shutdown::Both);
        reason
    }

    fn wake_all(&self) {
        let mut outbox = self.outbox();
        let mut woken: Vec<Waker> = outbox.waiting.drain(..).map(|waiting| waiting.waker).collect();
        woken.append(&mut outbox.leaving);
        let mut failed = 0;
        for (_, call) in outbox.calls.iter_mut() {
            match call {
                Call::Waiting { waker, .. } => {
                    woken.extend(waker.take());
                    *call = Call::Done(Outcome::Ended);
                    failed += 1;
                }
                Call::Stream(stream) => {
                    woken.extend(stream.wakers());
                    if stream.ended.is_none() {
                        stream.ended = Some(Outcome::Ended);
                        failed += 1;
                    }
                }
                Call::Done(_) | Call::Abandoned => {}
            }
        }
        self.room_wanted.store(false, Ordering::Relaxed);
        drop(outbox);
        (0..failed).for_each(|_| self.counters.failed());
        woken.into_iter().for_each(Waker::wake);
    }

    /// Delivers every frame that is here. Returns the outcome of the call `mine` as soon as it is
    /// seen, without going through the table.
    #[inline(always)]
    pub(crate) fn deliver(
        &self,
        inbox: &mut Inbox,
        mine: Option<&Started>,
    ) -> Result<Option<Outcome>, Broken> {
        let Inbox { receiving, frame, header, delivered, .. } = inbox;
        while receiving.next(frame, header)? {
            *delivered += 1;
            if header.flags.is_response() {
                let outcome = self.deliver_response(header, frame, mine)?;
                if outcome.is_some() {
                    return Ok(outcome);
                }
            } else {
                self.handle_connection_frame(header, &frame.bytes)?;
            }
        }
        Ok(None)
    }

    /// Delivers what is in the ring, unless somebody else is at it; whether anything was.
    pub(crate) fn deliver_what_is_here(&self) -> bool {
        let Ok(mut inbox) = self.inbox.try_lock() else { return false };
        if !inbox.receiving.is_ready() {
            return false;
        }
        let delivered = self.deliver(&mut inbox, None);
        drop(inbox);
        if let Err(broken) = delivered {
            self.finish(&broken);
        }
        true
    }

    #[inline(always)]
    fn deliver_response(
        &self,
        header: &Header,
        frame: &mut Box<Frame>,
        mine: Option<&Started>,
    ) -> Result<Option<Outcome>, Broken> {
        if header.flags.contains(Flags::STREAM) {
            return self.deliver_item(header, frame).map(|()| None);
        }
        let outcome = self.outcome(header, frame)?;
        if let Some(mine) = mine
            && mine.id == header.id
        {
            check_kind(mine.kind, header.kind)?;
            self.counters.received(header.length as usize, mine.begun);
            if self.retired.load(Ordering::Relaxed) == 0 {
                self.retired.store(header.id.get(), Ordering::Release);
            } else {
                self.close_call(&mut self.outbox(), header.id);
            }
            return Ok(Some(outcome));
        }
        let mut outbox = self.outbox();
        let call = match outbox.calls.find(header.id) {
            Lookup::Live(call) => call,
            Lookup::Ended => {
                self.counters.late();
                return Ok(None);
            }
            Lookup::NeverIssued => return Err(misbehaved(WireError::UnknownCall, "")),
        };
        let waker = match call {
            Call::Waiting { waker, kind, begun } => {
                check_kind(*kind, header.kind)?;
                self.counters.received(header.length as usize, *begun);
                waker.take()
            }
            Call::Stream(stream) => {
                check_kind(stream.kind, header.kind)?;
                self.counters.received(header.length as usize, stream.begun);
                if stream.ended.is_some() {
                    self.counters.late();
                    return Ok(None);
                }
                stream.ended = Some(outcome);
                let woken: Vec<Waker> = stream.wakers().collect();
                drop(outbox);
                woken.into_iter().for_each(Waker::wake);
                return Ok(None);
            }
            // A second response: the call has ended, whether its caller has looked yet or not.
            Call::Done(_) => {
                self.counters.late();
                return Ok(None);
            }
            Call::Abandoned => {
                self.close_call(&mut outbox, header.id);
                drop(outbox);
                self.counters.late();
                self.offer_room();
                return Ok(None);
            }
        };
        *call = Call::Done(outcome);
        drop(outbox);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(None)
    }

    /// An item of a stream of replies.
    #[inline(never)]
    fn deliver_item(&self, header: &Header, frame: &mut Box<Frame>) -> Result<(), Broken> {
        if header.flags.intersects(UNSUPPORTED | Flags::ERROR | Flags::EXTENDED) {
            return Err(misbehaved(WireError::BadFlags, "an item carries a flag that it may not"));
        }
        let mut outbox = self.outbox();
        let stream = match outbox.calls.find(header.id) {
            Lookup::Live(Call::Stream(stream)) => stream,
            Lookup::Live(Call::Abandoned) | Lookup::Ended => {
                self.counters.late();
                return Ok(());
            }
            Lookup::Live(_) => {
                let detail = "an item came for a call that has no stream";
                return Err(misbehaved(WireError::BadFlags, detail));
            }
            Lookup::NeverIssued => return Err(misbehaved(WireError::UnknownCall, "")),
        };
        check_kind(stream.kind, header.kind)?;
        if !stream.gets_items {
            let detail = "an item came for a call that has one reply";
            return Err(misbehaved(WireError::BadFlags, detail));
        }
        if stream.ended.is_some() {
            let detail = "an item came after the stream's end";
            return Err(misbehaved(WireError::UnexpectedMessage, detail));
        }
        self.counters.received(header.length as usize, None);
        let reader = stream.arrive(frame.take_payload())?;
        drop(outbox);
        if let Some(waker) = reader {
            waker.wake();
        }
        Ok(())
    }

    /// Credit for a stream of requests.
    fn deliver_credit(&self, header: &Header, frame: &[u8]) -> Result<(), Broken> {
        let credit = Credit::decode(&frame[Header::BYTES..])
            .map_err(|_| misbehaved(WireError::BadCredit, "a Credit frame cannot be read"))?;
        let mut outbox = self.outbox();
        let writer = match outbox.calls.find(header.id) {
            Lookup::Live(Call::Stream(stream)) => stream.grant(credit)?,
            Lookup::Live(Call::Abandoned) | Lookup::Ended => {
                self.counters.late();
                return Ok(());
            }
            Lookup::Live(_) => {
                let detail = "it gave credit to a call that has no stream";
                return Err(misbehaved(WireError::BadCredit, detail));
            }
            Lookup::NeverIssued => return Err(misbehaved(WireError::UnknownCall, "")),
        };
        drop(outbox);
        if let Some(waker) = writer {
            waker.wake();
        }
        Ok(())
    }

    #[inline(always)]
    fn outcome(&self, header: &Header, frame: &mut Box<Frame>) -> Result<Outcome, Broken> {
        if header.flags.intersects(UNSUPPORTED) {
            return Err(misbehaved(WireError::BadFlags, "a flag that was not agreed on"));
        }
        if header.flags.contains(Flags::EXTENDED)
            && !take_extensions(frame).is_ok_and(|carried| carried.form() == Form::Own)
        {
            let detail = "a response's extension block cannot be understood";
            return Err(misbehaved(WireError::BadExtension, detail));
        }
        if header.flags.contains(Flags::ERROR) {
            self.counters.failed();
            let status = Status::decode(frame.payload())
                .map_err(|_| misbehaved(WireError::BadMessage, "its status cannot be read"))?;
            return Ok(Outcome::Status(Box::new(status)));
        }
        Ok(Outcome::Reply(frame.take_payload()))
    }

    #[cold]
    fn handle_connection_frame(&self, header: &Header, frame: &[u8]) -> Result<(), Broken> {
        if header.flags.intersects(UNSUPPORTED) {
            return Err(misbehaved(WireError::BadFlags, "a flag that was not agreed on"));
        }
        if header.kind == Kind::CREDIT && header.flags.is_one_way() {
            return self.deliver_credit(header, frame);
        }
        if matches!(header.kind, Kind::HELLO | Kind::HELLO_ACK | Kind::HELLO_REJECT) {
            return Err(misbehaved(WireError::UnexpectedMessage, "the handshake is over"));
        }
        if header.flags.is_request() {
            return self.answer_request(header, &frame[Header::BYTES..]);
        }
        if header.kind != Kind::GOODBYE {
            // A message that nobody here serves.
            self.counters.unserved();
            return Ok(());
        }
        let goodbye = Goodbye::decode(&frame[Header::BYTES..])
            .map_err(|_| misbehaved(WireError::BadMessage, "its Goodbye cannot be read"))?;
        let planned = [WireError::NoError, WireError::Draining].map(WireError::number);
        if !planned.contains(&goodbye.error) {
            let _ = self.end.set(EndReason::Accused(plain(&goodbye.sentence)));
            return Err(Broken::Ended);
        }
        self.draining.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The server calls: Ping has an answer, and no client serves any method.
    fn answer_request(&self, header: &Header, payload: &[u8]) -> Result<(), Broken> {
        let answer = if header.kind == Kind::PING {
            if payload.len() > limits::PING_PAYLOAD_BYTES as usize {
                let detail = "a Ping carries 64 bytes at most";
                return Err(misbehaved(WireError::FrameTooLong, detail));
            }
            let header = call_header(Flags::RESPONSE, Kind::PONG, header.id);
            Answer { header, payload: payload.to_vec() }
        } else {
            let status = Status::unimplemented("a client serves no methods");
            let header = call_header(Flags::RESPONSE | Flags::ERROR, header.kind, header.id);
            Answer { header, payload: status.encode() }
        };
        let mut outbox = self.outbox();
        if outbox.answers.len() >= self.agreed.limits.calls_in_flight as usize {
            return Err(misbehaved(WireError::TooManyCalls, "and reads none of the answers"));
        }
        outbox.answers.push_back(answer);
        if !self.pay(&mut outbox) {
            self.want_room();
        }
        Ok(())
    }

    /// Ends the connection; if the socket has ended, with what the peer sent before it went, which is still in the ring.
    #[cold]
    pub(crate) fn end_with(&self, inbox: &mut Inbox, broken: &Broken) {
        if matches!(broken, Broken::Ended) {
            self.deliver_last(inbox);
        } else {
            self.finish(broken);
        }
    }

    /// After the socket ended: what the peer sent before it went is still in the ring.
    pub(crate) fn deliver_last(&self, inbox: &mut Inbox) {
        let broken = match self.deliver(inbox, None) {
            Ok(_) => Broken::Ended,
            Err(broken) => broken,
        };
        self.finish(&broken);
    }
}

/// Flags that need something this version has not agreed on.
const UNSUPPORTED: Flags = Flags::COMPRESSED;

/// A response has its request's kind; Pong answers Ping.
#[inline]
fn check_kind(asked: Kind, answered: Kind) -> Result<(), Broken> {
    if answered == asked || asked == Kind::PING && answered == Kind::PONG {
        return Ok(());
    }
    Err(misbehaved(WireError::BadKind, "a response has another kind than its request"))
}

impl Outbox {
    /// Refuses one who would overtake somebody that waits; not the one with this ticket, whose turn it is.
    #[cold]
    fn take_turn(&self, room: Room, again: Option<&Again>) -> Result<(), StartError> {
        let ticket = again.and_then(|again| again.ticket);
        let long = self.sending.is_long(room.bytes);
        let mut before = self.waiting.iter().filter(|waiting| match waiting.room.lacks {
            Lacks::Place => room.place,
            Lacks::Ring => !long,
            Lacks::Block => long,
        });
        match before.next() {
            Some(first) if Some(first.ticket) != ticket => {
                Err(StartError::Full(Room { lacks: first.room.lacks, ..room }))
            }
            _ => Ok(()),
        }
    }

    /// Whoever found no room waits for that, and not for a place.
    #[cold]
    fn refusal(&self, error: StartError) -> StartError {
        match error {
            StartError::Full(room) => StartError::Full(self.lacking(room)),
            failed @ StartError::Failed(_) => failed,
        }
    }

    /// The same room, of one who has a place or needs none.
    pub(super) fn lacking(&self, room: Room) -> Room {
        let long = self.sending.is_long(room.bytes);
        Room { lacks: if long { Lacks::Block } else { Lacks::Ring }, ..room }
    }
}

impl Inbox {
    /// Looks for up to `limit` as the spin policy says; whether something came.
    #[inline]
    pub(crate) fn spin(&mut self, limit: Duration) -> bool {
        let receiving = &self.receiving;
        // A socket shows nothing without a system call.
        self.sleeper.is_some() && self.spinner.spin(limit, || receiving.is_ready())
    }

    /// What changes when the peer makes room.
    #[inline]
    pub(crate) fn peer_progress(&self) -> (u64, u64) {
        self.receiving.peer_progress()
    }

    /// As [`Inbox::spin`], also until the peer has made room since it had come to `seen`.
    #[cold]
    pub(crate) fn spin_for_room(&mut self, limit: Duration, seen: (u64, u64)) -> bool {
        let receiving = &self.receiving;
        let moved = || receiving.is_ready() || receiving.peer_progress() != seen;
        self.sleeper.is_some() && self.spinner.spin(limit, moved)
    }

    /// Says that this side is about to sleep; whether there is nothing to do but that.
    pub(crate) fn arm(&mut self) -> Result<bool, Broken> {
        self.receiving.publish()?;
        self.receiving.shrink();
        self.frame.shrink();
        if let Some(sleeper) = &mut self.sleeper {
            sleeper.arm();
        }
        Ok(!self.receiving.is_ready())
    }

    #[inline]
    pub(crate) fn disarm(&mut self) {
        if let Some(sleeper) = &mut self.sleeper {
            sleeper.disarm();
        }
    }

    pub(crate) fn is_armed(&self) -> bool {
        self.sleeper.as_ref().is_some_and(Sleeper::is_armed)
    }
}
