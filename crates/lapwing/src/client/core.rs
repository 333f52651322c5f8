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

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use lapwing_proto::{
    CallTable, Flags, Goodbye, Header, Kind, Lookup, MessageId, Status, WireError,
};
use lapwing_shm::{Doorbell, Sleeper, Spin, Spinner};

use super::stats::Counters;
use crate::error::{CallError, Delivered, EndReason};
use crate::handshake::plain;
use crate::link::{
    Agreed, Broken, Link, Receiving, SendError, Sending, call_header, connection_header,
    misbehaved, strip_extensions,
};
use crate::payload::Payload;

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

/// A call in the table. `Waiting` until its response comes or the connection ends; `Abandoned` when
/// its caller went away: its slot stays taken until the response comes, as the server counts it too.
#[derive(Debug)]
enum Call {
    Waiting { waker: Option<Waker>, kind: Kind, begun: Option<Instant> },
    Done(Outcome),
    Abandoned,
}

/// The sending half, the table of calls, and who waits for room.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub(crate) sending: Sending,
    calls: CallTable<Call>,
    /// Who waits for room, in order.
    waiting: Vec<(Room, Waker)>,
    said_goodbye: bool,
    /// Who waits for the last call in flight to end.
    drained: Option<Waker>,
}

/// The receiving half and how it waits.
#[derive(Debug)]
pub(crate) struct Inbox {
    receiving: Receiving,
    frame: Vec<u8>,
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
    pub(crate) agreed: Agreed,
    pub(crate) counters: Counters,
    /// Calls in the table, abandoned and retired ones included; written under `outbox`.
    in_flight: AtomicU32,
    /// A call whose caller has its reply and which is still in the table; 0 for none. Invariant T.
    retired: AtomicU64,
    /// Invariant T.
    meeting: AtomicBool,
    /// Somebody waits for the last call in flight to end.
    drain_wanted: AtomicBool,
    /// Whether anybody waits for room; written under `outbox`.
    room_wanted: AtomicBool,
    /// The server said goodbye: no new calls.
    draining: AtomicBool,
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
}

/// A frame to start a call or a one-way message with.
#[derive(Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    pub(crate) kind: Kind,
    pub(crate) payload: &'a [u8],
}

/// A call that was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    pub(crate) id: MessageId,
    kind: Kind,
    /// When, if it is timed.
    begun: Option<Instant>,
}

impl Core {
    pub(crate) fn new(link: Link, spin: Spin) -> Core {
        let Link { agreed, sending, receiving, socket, waking } = link;
        let (sleeper, doorbell) = waking.unzip();
        let calls = CallTable::with_capacity(agreed.limits.calls_in_flight);
        let outbox =
            Outbox { sending, calls, waiting: Vec::new(), said_goodbye: false, drained: None };
        let inbox = Inbox {
            receiving,
            frame: Vec::new(),
            sleeper,
            spinner: Spinner::new(spin),
            delivered: 0,
        };
        Core {
            outbox: Mutex::new(outbox),
            inbox: Mutex::new(inbox),
            socket,
            doorbell: doorbell.map(Arc::new),
            agreed,
            counters: Counters::new(),
            in_flight: AtomicU32::new(0),
            retired: AtomicU64::new(0),
            meeting: AtomicBool::new(false),
            drain_wanted: AtomicBool::new(false),
            room_wanted: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            end: OnceLock::new(),
        }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        let retired = self.retired.load(Ordering::Relaxed) != 0;
        self.in_flight.load(Ordering::Relaxed).saturating_sub(u32::from(retired))
    }

    /// Locks the outbox, and closes the retired call first (invariant T).
    #[inline]
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        let mut outbox = lock(&self.outbox);
        let retired = self.retired.load(Ordering::Acquire);
        if retired != 0 {
            outbox.calls.remove(MessageId::new(retired));
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
        } else if self.drain_wanted.load(Ordering::Relaxed) {
            drop(self.outbox());
        }
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
    pub(crate) fn start_call(&self, out: Outgoing<'_>) -> Result<Started, StartError> {
        let mut outbox = self.outbox();
        self.check_open(&outbox)?;
        let begun = self.counters.begin();
        let call = Call::Waiting { waker: None, kind: out.kind, begun };
        let Ok(id) = outbox.calls.insert(call) else {
            return Err(StartError::Full(Room { bytes: out.payload.len(), place: true }));
        };
        let header = call_header(Flags::REQUEST, out.kind, id);
        if let Err(error) = outbox.sending.send(header, out.payload) {
            outbox.calls.remove(id);
            return Err(self.refused(error, Room { bytes: out.payload.len(), place: true }));
        }
        self.in_flight.store(outbox.calls.len() as u32, Ordering::Relaxed);
        self.counters.sent(out.payload.len());
        if let Err(broken) = outbox.sending.flush() {
            drop(outbox);
            // The frame is out: whether the call runs is open. Its caller finds the end.
            self.finish(&broken);
        }
        Ok(Started { id, kind: out.kind, begun })
    }

    /// Sends a message that has no answer.
    pub(crate) fn start_oneway(&self, out: Outgoing<'_>) -> Result<(), StartError> {
        let mut outbox = self.outbox();
        self.check_open(&outbox)?;
        let header = call_header(Flags::NONE, out.kind, MessageId::CONNECTION);
        let sent = outbox.sending.send(header, out.payload);
        let room = Room { bytes: out.payload.len(), place: false };
        sent.map_err(|error| self.refused(error, room))?;
        self.counters.sent(out.payload.len());
        let flushed = outbox.sending.flush();
        drop(outbox);
        if let Err(broken) = flushed {
            self.finish(&broken);
        }
        Ok(())
    }

    fn check_open(&self, outbox: &Outbox) -> Result<(), StartError> {
        if let Some(reason) = self.end.get() {
            return Err(StartError::Failed(reason.error(Delivered::Never)));
        }
        if outbox.said_goodbye {
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
            SendError::Broken(broken) => StartError::Failed(self.broken_error(&broken)),
        }
    }

    fn broken_error(&self, broken: &Broken) -> CallError {
        self.record_end(broken).error(Delivered::Never)
    }

    /// Registers who is woken when there is this room.
    pub(crate) fn wait_for_room(&self, room: Room, waker: &Waker) {
        let mut outbox = self.outbox();
        if !outbox.waiting.iter().any(|(_, known)| known.will_wake(waker)) {
            outbox.waiting.push((room, waker.clone()));
        }
        self.room_wanted.store(true, Ordering::Relaxed);
        drop(outbox);
        self.meet();
    }

    /// Whether `waker` is still registered as waiting for room.
    pub(crate) fn waits_for_room(&self, waker: &Waker) -> bool {
        lock(&self.outbox).waiting.iter().any(|(_, known)| known.will_wake(waker))
    }

    /// Wakes those for whom there is room now. Returns whether anybody was woken.
    pub(crate) fn offer_room(&self) -> bool {
        if !self.room_wanted() {
            return false;
        }
        let mut outbox = self.outbox();
        let places = outbox.calls.len() < outbox.calls.capacity() as usize;
        let ended = self.end.get().is_some();
        let mut woken = Vec::new();
        let Outbox { waiting, sending, .. } = &mut *outbox;
        waiting.retain(|(room, waker)| {
            let has_place = places || !room.place;
            let has_room = has_place && sending.has_room(room.bytes).unwrap_or(true);
            if has_room || ended {
                woken.push(waker.clone());
            }
            !(has_room || ended)
        });
        self.room_wanted.store(!waiting.is_empty(), Ordering::Relaxed);
        outbox.wake_drained();
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
            Lookup::Live(_) => match self.close_call(&mut outbox, id) {
                Some(Call::Done(outcome)) => Some(outcome),
                _ => Some(Outcome::Ended),
            },
            Lookup::Ended | Lookup::NeverIssued => Some(Outcome::Ended),
        }
    }

    fn close_call(&self, outbox: &mut Outbox, id: MessageId) -> Option<Call> {
        let call = outbox.calls.remove(id);
        self.closed_one(outbox);
        call
    }

    #[inline]
    fn closed_one(&self, outbox: &mut Outbox) {
        self.in_flight.store(outbox.calls.len() as u32, Ordering::Relaxed);
        outbox.wake_drained();
    }

    /// On a socket: sends what it takes of the frame that it did not take whole.
    pub(crate) fn push_backlog(&self) -> Result<(), Broken> {
        let mut outbox = self.outbox();
        outbox.sending.flush()?;
        outbox.wake_drained();
        Ok(())
    }

    /// Whether no call is in flight and all is sent, or the connection is over; otherwise `waker` is
    /// woken then.
    pub(crate) fn poll_drained(&self, waker: &Waker) -> bool {
        self.drain_wanted.store(true, Ordering::Relaxed);
        self.meet();
        let mut outbox = self.outbox();
        if outbox.is_drained() || self.end.get().is_some() {
            return true;
        }
        outbox.drained = Some(waker.clone());
        false
    }

    /// The caller went away before the response came.
    pub(crate) fn abandon(&self, id: MessageId) {
        let mut outbox = self.outbox();
        match outbox.calls.find(id) {
            Lookup::Live(call @ Call::Waiting { .. }) => *call = Call::Abandoned,
            Lookup::Live(_) => {
                self.close_call(&mut outbox, id);
            }
            Lookup::Ended | Lookup::NeverIssued => return,
        }
        drop(outbox);
        self.offer_room();
    }

    /// Anybody who waits, for a response or for room, to take over delivering.
    pub(crate) fn any_waiting(&self) -> Option<Waker> {
        let mut outbox = self.outbox();
        let Outbox { calls, waiting, .. } = &mut *outbox;
        let waiting_call = calls.iter_mut().find_map(|(_, call)| match call {
            Call::Waiting { waker, .. } => waker.clone(),
            _ => None,
        });
        waiting_call.or_else(|| waiting.first().map(|(_, waker)| waker.clone()))
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

    /// Says goodbye: no new calls from here on. Calls in flight go on.
    pub(crate) fn say_goodbye(&self) {
        let mut outbox = self.outbox();
        if outbox.said_goodbye || self.end.get().is_some() {
            return;
        }
        outbox.said_goodbye = true;
        let payload = Goodbye::new(WireError::NoError, "").encode();
        // A full ring keeps the word back; the closing of the socket says it, too.
        let _ = outbox.sending.send(connection_header(Kind::GOODBYE), &payload);
        let _ = outbox.sending.flush();
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

    fn record_end(&self, broken: &Broken) -> &EndReason {
        let reason = match broken {
            Broken::Misbehaved(peer) => EndReason::Misbehaved(*peer),
            Broken::Failed(what) => EndReason::Failed(what.to_string()),
            Broken::Ended if self.is_draining() => EndReason::Goodbye,
            Broken::Ended => EndReason::Vanished,
        };
        let reason = self.end.get_or_init(|| reason);
        let _ = self.socket.shutdown(Shutdown::Both);
        reason
    }

    fn wake_all(&self) {
        let mut outbox = self.outbox();
        let mut woken: Vec<Waker> = outbox.waiting.drain(..).map(|(_, waker)| waker).collect();
        woken.extend(outbox.drained.take());
        let mut failed = 0;
        for (_, call) in outbox.calls.iter_mut() {
            if let Call::Waiting { waker, .. } = call {
                woken.extend(waker.take());
                *call = Call::Done(Outcome::Ended);
                failed += 1;
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
        while let Some(header) = inbox.receiving.next(&mut inbox.frame)? {
            inbox.delivered += 1;
            if header.flags.is_response() {
                let outcome = self.deliver_response(&header, &mut inbox.frame, mine)?;
                if outcome.is_some() {
                    return Ok(outcome);
                }
            } else {
                self.handle_connection_frame(&header, &inbox.frame)?;
            }
        }
        Ok(None)
    }

    #[inline(always)]
    fn deliver_response(
        &self,
        header: &Header,
        frame: &mut Vec<u8>,
        mine: Option<&Started>,
    ) -> Result<Option<Outcome>, Broken> {
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

    #[inline(always)]
    fn outcome(&self, header: &Header, frame: &mut Vec<u8>) -> Result<Outcome, Broken> {
        if header.flags.intersects(UNSUPPORTED) {
            return Err(misbehaved(WireError::BadFlags, "a flag that was not agreed on"));
        }
        if header.flags.contains(Flags::EXTENDED) && strip_extensions(frame).is_err() {
            let detail = "a response's extension block cannot be understood";
            return Err(misbehaved(WireError::BadExtension, detail));
        }
        if header.flags.contains(Flags::ERROR) {
            self.counters.failed();
            let status = Status::decode(&frame[Header::BYTES..])
                .map_err(|_| misbehaved(WireError::BadMessage, "its status cannot be read"))?;
            return Ok(Outcome::Status(Box::new(status)));
        }
        Ok(Outcome::Reply(Payload::take_from(frame)))
    }

    #[cold]
    fn handle_connection_frame(&self, header: &Header, frame: &[u8]) -> Result<(), Broken> {
        if header.kind != Kind::GOODBYE {
            let detail = "a server sends responses and Goodbye only";
            return Err(misbehaved(WireError::UnexpectedMessage, detail));
        }
        let goodbye = Goodbye::decode(&frame[Header::BYTES..])
            .map_err(|_| misbehaved(WireError::BadMessage, "its Goodbye cannot be read"))?;
        if goodbye.error != WireError::NoError.number() {
            let _ = self.end.set(EndReason::Accused(plain(&goodbye.sentence)));
            return Err(Broken::Ended);
        }
        self.draining.store(true, Ordering::Relaxed);
        Ok(())
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
const UNSUPPORTED: Flags = Flags::COMPRESSED.union(Flags::STREAM);

/// A response has its request's kind; Pong answers Ping.
#[inline]
fn check_kind(asked: Kind, answered: Kind) -> Result<(), Broken> {
    if answered == asked || asked == Kind::PING && answered == Kind::PONG {
        return Ok(());
    }
    Err(misbehaved(WireError::BadKind, "a response has another kind than its request"))
}

impl Outbox {
    fn is_drained(&self) -> bool {
        self.calls.is_empty() && !self.sending.has_backlog()
    }

    #[inline]
    fn wake_drained(&mut self) {
        if self.drained.is_some()
            && self.is_drained()
            && let Some(waker) = self.drained.take()
        {
            waker.wake();
        }
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

    /// Says that this side is about to sleep; whether there is nothing to do but that.
    pub(crate) fn arm(&mut self) -> Result<bool, Broken> {
        self.receiving.publish()?;
        self.receiving.shrink();
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
