//! One connection of a server: its task, its replies, its end.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use lapwing_proto::{
    Code, Credit, Features, Flags, Goodbye, Header, Kind, MessageId, MethodShape, MethodWanted,
    PeerMisbehaved, Status, TimeLeft, WireError, limits,
};
use lapwing_shm::{Doorbell, SPIN_BOUND, Sleeper, Spin, Spinner, has_kept_buffers, sweep_buffers};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::ahead::Ahead;
use super::ended::EndedStreams;
use super::handler::{
    AsyncHandler, Caller, Handler, InlineCall, LONG_BYTES, Origin, Panicked, Running, TypedFn,
    run_inline, run_typed, served_code,
};
use super::router::Route;
use super::running::{About, CallEnd, CallState, ItemFault};
use super::stats::Tally;
use super::{Phase, Shared};
use crate::ambient::Ambient;
use crate::bulk::{BulkIn, Long, Reserved};
use crate::client::{LINGER, lock};
use crate::clock::{self, Told};
use crate::codec::Form;
use crate::compression::{has_contexts, sweep_contexts};
use crate::link::{
    Broken, Carried, CarriedMore, Link, Metadata, Receiving, SendError, Sending, call_header,
    connection_header, misbehaved, take_extensions,
};
use crate::payload::{Frame, Payload, shrink};
use crate::spans::{self, CallSpan};
use crate::waking::{Bells, Woken, until, yield_to_others};

/// Frames handled in one turn, at most.
const FRAMES_PER_TURN: usize = 64;

/// A frame counts as one more for each of these bytes of payload, expanded, so that a turn does not last long
/// because a few bytes in a ring expand to many.
const BYTES_OF_A_FRAME: usize = 64 * 1024;

/// Of calls that came during a turn that lasted as long some may have been given up: frames are read ahead then, to see
/// which.
const LONG_TURN: Duration = Duration::from_millis(1);

/// Turns before other tasks of the runtime get theirs.
const TURNS: usize = 16;

/// How long a connection looks in place before others get their turn.
const LOOK_IN_PLACE: Duration = Duration::from_micros(4);

/// What the task of a connection and its running calls share.
#[derive(Debug)]
pub(crate) struct Out {
    outbox: Mutex<Outbox>,
    /// Whether anybody waits for room; set under the outbox's lock.
    room_wanted: AtomicBool,
    /// A running call has sent something since the connection's task looked: it may have more to send.
    busy: AtomicBool,
    /// Tells the connection's task, which may be asleep, to watch the socket for room.
    backlog: Notify,
}

#[derive(Debug)]
struct Outbox {
    sending: Sending,
    /// Calls that are running in tasks of their own, by id.
    running: HashMap<u64, RunningCall>,
    /// Those with streams that were answered last.
    ended: EndedStreams,
    /// The peer was told that it misbehaved: nothing follows.
    is_closed: bool,
    /// One-way messages whose handlers are running in tasks of their own.
    running_oneway: usize,
    /// Who waits for room.
    waiting: Vec<Waiting>,
    tickets: u64,
    tally: Tally,
}

/// One who waits for room for so many bytes: a reply, an item, or a block.
#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    bytes: usize,
    waker: Waker,
}

/// The number of one who waits for room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket(u64);

/// A place among those who wait for room, given up on drop.
struct Turn<'a> {
    out: &'a Out,
    ticket: Option<Ticket>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.out.withdraw(&mut self.ticket);
    }
}

/// A call in a task of its own.
#[derive(Debug)]
struct RunningCall {
    kind: Kind,
    shape: MethodShape,
    state: Arc<CallState>,
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Closed,
    Vanished,
    Misbehaved(PeerMisbehaved),
}

/// The task of one connection.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    origin: Origin,
    out: Arc<Out>,
    receiving: Receiving,
    frame: Box<Frame>,
    /// The header of the frame that was read last. Its parts stay here: a copy of the whole would wait until each has reached
    /// the cache.
    header: Header,
    /// Frames that were read ahead.
    ahead: Ahead,
    /// While a frame waits that may overtake others, from the first one with priority on, and after a long turn.
    reads_ahead: bool,
    sees_priority: bool,
    /// When the last turn ended, or the sleep after it.
    turned_at: Instant,
    reply: Vec<u8>,
    /// A long reply, instead of `reply`.
    reply_long: Option<Payload>,
    socket: Arc<UnixStream>,
    doorbell: Option<Arc<Doorbell>>,
    sleeper: Option<Sleeper>,
    spinner: Spinner,
    bells: Bells,
    bulk: Option<Arc<BulkIn>>,
    /// When bulk memory is to be swept, while there is any.
    sweep_at: Option<Instant>,
    calls: JoinSet<()>,
    /// One-way messages that were handled on the spot since they were last counted, and their bytes: to count each would
    /// take a lock.
    messages: (u64, u64),
    /// A frame has given a running call something to do.
    woke: bool,
    /// The place of a call of each route that was over at once, for the next one.
    places: Vec<Option<Box<dyn Running>>>,
    calls_in_flight: usize,
    /// Whether calls in JSON were agreed on.
    takes_json: bool,
    /// Whether both sides read one clock.
    shares_clock: bool,
    /// The time of the call whose frame is handled, if it has one.
    time: Option<Time>,
    phase: watch::Receiver<Phase>,
    /// The client said goodbye: its closing the socket is the end as planned.
    peer_left: bool,
    /// This side said goodbye.
    leaving: bool,
    /// Nothing will come on the socket but what lies there.
    socket_ended: bool,
}

/// What looking in place came to.
enum Looked {
    Found,
    GoOn,
    Glance,
    Sleep,
}

/// What handling frames came to.
enum Progress {
    Frames,
    Nothing,
    /// A reply did not go out for want of room; it is in `reply`.
    Blocked(Header),
    /// As many one-way messages are being handled as there may be, and as many frames wait as may be read ahead.
    Saturated,
}

impl Connection {
    pub(crate) fn new(
        shared: Arc<Shared>,
        caller: Caller,
        link: Link,
        phase: watch::Receiver<Phase>,
    ) -> std::io::Result<Connection> {
        let Link { agreed, sending, receiving, socket, waking, bulk } = link;
        let (sleeper, doorbell) = waking.unzip();
        let doorbell = doorbell.map(Arc::new);
        let bells = Bells::new(&socket, doorbell.as_ref())?;
        let reply_bytes_max = sending.message_max();
        let routes = shared.router.len();
        let calls_in_flight = agreed.limits.calls_in_flight as usize;
        let out = Out::new(sending, calls_in_flight, Tally { accepted: 1, ..Tally::default() });
        let (caller, weak) = (Arc::new(caller), Arc::downgrade(&out));
        Ok(Connection {
            spinner: Spinner::new(shared.spin),
            shared,
            origin: Origin { caller, out: weak, reply_bytes_max },
            out,
            receiving,
            frame: Box::default(),
            header: connection_header(Kind::GOODBYE),
            ahead: Ahead::default(),
            reads_ahead: false,
            sees_priority: false,
            turned_at: Instant::now(),
            reply: Vec::new(),
            reply_long: None,
            socket,
            doorbell,
            sleeper,
            bells,
            bulk,
            sweep_at: None,
            calls: JoinSet::new(),
            messages: (0, 0),
            woke: false,
            places: std::iter::repeat_with(|| None).take(routes).collect(),
            calls_in_flight,
            takes_json: agreed.features.contains(Features::JSON),
            shares_clock: agreed.features.contains(Features::CLOCK),
            time: None,
            phase,
            peer_left: false,
            leaving: false,
            socket_ended: false,
        })
    }

    /// Serves until the end, then cleans up.
    pub(crate) async fn run(mut self) -> End {
        let drain = self.shared.limits.drain;
        let end = match self.serve().await {
            Ok(()) => End::Closed,
            Err(Broken::Misbehaved(peer)) => {
                self.accuse(&peer);
                End::Misbehaved(peer)
            }
            Err(Broken::Ended | Broken::Failed(_)) => {
                let _ = tokio::time::timeout(drain, self.hear_out()).await;
                if self.peer_left || self.leaving { End::Closed } else { End::Vanished }
            }
        };
        // Handlers of a connection that is gone are dropped at their next await; what they started
        // elsewhere is told.
        let running = std::mem::take(&mut lock(&self.out.outbox).running);
        running.values().for_each(|call| call.state.end(CallEnd::Disconnected));
        if self.peer_left {
            let _ = tokio::time::timeout(drain, self.finish_oneways()).await;
        }
        self.calls.shutdown().await;
        let mut outbox = lock(&self.out.outbox);
        count_messages(&mut outbox.tally, &mut self.messages);
        match end {
            End::Closed => outbox.tally.closed += 1,
            End::Vanished => outbox.tally.vanished += 1,
            End::Misbehaved(_) => outbox.tally.misbehaved += 1,
        }
        self.shared.totals.add(&mut outbox.tally);
        drop(outbox);
        // Counted before: a client that saw the end sees that, too.
        let _ = self.socket.shutdown(Shutdown::Both);
        end
    }

    /// After the socket's end: what the peer sent before it went may still lie unread. Its one-way messages run as if
    /// they had been read in time, and its Goodbye counts. Nobody waits for replies any more, so calls do not start.
    async fn hear_out(&mut self) -> Result<(), Broken> {
        let shared = Arc::clone(&self.shared);
        let mut turn = FRAMES_PER_TURN;
        while !self.peer_left && self.next_frame()? {
            let Header { kind, id, .. } = self.header;
            let is_oneway = kind.is_application() && id == MessageId::CONNECTION;
            if is_oneway || kind == Kind::GOODBYE {
                while self.is_saturated() && self.calls.join_next().await.is_some() {}
                self.handle_apart(&shared).await?;
            }
            turn -= 1;
            if turn == 0 {
                turn = FRAMES_PER_TURN;
                yield_to_others().await;
            }
        }
        Ok(())
    }

    /// The peer has left in order: what it sent one-way needs nobody to wait for it.
    async fn finish_oneways(&mut self) {
        while lock(&self.out.outbox).running_oneway > 0 && self.calls.join_next().await.is_some() {}
    }

    async fn serve(&mut self) -> Result<(), Broken> {
        let mut quiet_since: Option<Instant> = None;
        let mut turns = 0;
        // Once, not for every frame: counting references is a locked instruction.
        let shared = Arc::clone(&self.shared);
        loop {
            let progress = poll_fn(|cx| Poll::Ready(self.handle_frames(&shared, cx))).await?;
            match progress {
                Progress::Frames => {
                    quiet_since = None;
                    turns += 1;
                    if turns == TURNS {
                        turns = 0;
                        self.look_at_phase();
                        self.sweep_if_due()?;
                        yield_to_others().await;
                    }
                    // A full turn may have left frames in a socket's buffer, which no edge tells of.
                    continue;
                }
                Progress::Blocked(header) => {
                    self.send_blocked(&shared, header).await?;
                    continue;
                }
                Progress::Saturated => {
                    self.wait_for_place().await?;
                    continue;
                }
                Progress::Nothing => {}
            }
            if self.is_drained() {
                return Ok(());
            }
            // Calls that have something to do are not kept from it by looking in place.
            if std::mem::take(&mut self.woke) | self.out.take_busy() {
                quiet_since = None;
                yield_to_others().await;
                continue;
            }
            // Before room is looked for: what comes after it is seen.
            let seen = self.out.room_wanted().then(|| self.receiving.peer_progress());
            if seen.is_some() && self.out.offer_room()? {
                yield_to_others().await;
                continue;
            }
            match self.look(&mut quiet_since, seen) {
                // Words that move make no room yet: a peer that moves them for ever keeps nobody from running.
                Looked::Found if seen.is_some() => yield_to_others().await,
                Looked::Found => {}
                Looked::GoOn => yield_to_others().await,
                Looked::Glance => self.glance().await?,
                Looked::Sleep => self.sleep().await?,
            }
        }
    }

    /// Looks in place for a moment, and says what to do then. `quiet_since` is since when nothing
    /// came. `seen` is how far the peer had come, where replies wait for it to go on.
    fn look(&mut self, quiet_since: &mut Option<Instant>, seen: Option<(u64, u64)>) -> Looked {
        let receiving = &self.receiving;
        if self.doorbell.is_none() || !self.spinner.is_warm() {
            *quiet_since = None;
            return Looked::Sleep;
        }
        if let Some(sleeper) = &mut self.sleeper {
            sleeper.disarm();
        }
        let found = match seen {
            None => self.spinner.spin(LOOK_IN_PLACE, || receiving.is_ready()),
            Some(seen) => self
                .spinner
                .spin(LOOK_IN_PLACE, || receiving.is_ready() || receiving.peer_progress() != seen),
        };
        if found {
            *quiet_since = None;
            return Looked::Found;
        }
        let quiet = quiet_since.get_or_insert_with(Instant::now).elapsed();
        if quiet < SPIN_BOUND {
            return Looked::GoOn;
        }
        if self.spinner.policy() != Spin::Always {
            *quiet_since = None;
            return Looked::Sleep;
        }
        if quiet < LINGER {
            return Looked::GoOn;
        }
        *quiet_since = None;
        Looked::Glance
    }

    /// One that never sleeps looks at what else may have happened, now and then.
    async fn glance(&mut self) -> Result<(), Broken> {
        self.receiving.publish()?;
        self.shared.totals.add(&mut lock(&self.out.outbox).tally);
        self.sweep_if_due()?;
        self.out.offer_room()?;
        tokio::select! {
            biased;
            waited = self.wait() => waited,
            () = std::future::ready(()) => Ok(()),
        }
    }

    /// Arms, looks once more, sleeps until something comes.
    async fn sleep(&mut self) -> Result<(), Broken> {
        self.receiving.publish()?;
        self.receiving.shrink();
        self.frame.shrink();
        shrink(&mut self.reply);
        if let Some(sleeper) = &mut self.sleeper {
            sleeper.arm();
        }
        self.shared.totals.add(&mut lock(&self.out.outbox).tally);
        if self.receiving.is_ready() || self.out.offer_room()? {
            return Ok(());
        }
        let since = Instant::now();
        self.wait().await?;
        self.turned_at = Instant::now();
        self.spinner.slept(self.turned_at.duration_since(since));
        Ok(())
    }

    /// While as many one-way messages are handled, and as many frames wait, as may: nothing is read until one of them
    /// has ended, but what is to be sent goes on.
    async fn wait_for_place(&mut self) -> Result<(), Broken> {
        self.receiving.publish()?;
        if let Some(sleeper) = &mut self.sleeper {
            sleeper.arm();
        }
        if self.out.offer_room()? {
            yield_to_others().await;
            return Ok(());
        }
        // Before its calls are seen to have ended: one that ends meanwhile ends the wait.
        if self.is_saturated() {
            self.wait().await?;
        }
        // What lies in a socket behind what waits is all that will come.
        if self.socket_ended && self.doorbell.is_none() { Err(Broken::Ended) } else { Ok(()) }
    }

    /// Sleeps until the doorbell, the socket, a finished call, or the server's end.
    async fn wait(&mut self) -> Result<(), Broken> {
        self.sweep_if_due()?;
        let writable = lock(&self.out.outbox).sending.has_backlog();
        let leaving = self.leaving;
        tokio::select! {
            biased;
            woken = self.bells.wait(writable) => {
                if let Woken::Socket { ended } = woken? {
                    self.socket_ended |= ended;
                    self.bulk.as_ref().map_or(Ok(()), |bulk| bulk.look_at_socket())?;
                }
            }
            _ = self.calls.join_next(), if !self.calls.is_empty() => {}
            _ = self.phase.changed(), if !leaving => self.leave(),
            () = self.out.backlog.notified() => {}
            () = until(self.sweep_at) => self.sweep_if_due()?,
        }
        Ok(())
    }

    /// Gives bulk memory back that was not used for a while.
    fn sweep_if_due(&mut self) -> Result<(), Broken> {
        let bulk = self.bulk.as_ref();
        match self.sweep_at {
            Some(at) if Instant::now() >= at => {
                bulk.inspect(|bulk| bulk.sweep());
                sweep_buffers();
                sweep_contexts();
                lock(&self.out.outbox).sending.sweep()?;
                self.sweep_at = None;
            }
            Some(_) => return Ok(()),
            None => {}
        }
        if has_kept_buffers()
            || has_contexts()
            || bulk.is_some_and(|bulk| bulk.is_in_use())
            || lock(&self.out.outbox).sending.has_bulk()
        {
            self.sweep_at = Instant::now().checked_add(self.shared.limits.bulk_idle);
        }
        Ok(())
    }

    /// One that is never quiet learns here that the server stops.
    fn look_at_phase(&mut self) {
        if !self.leaving && self.phase.has_changed().unwrap_or(true) {
            self.leave();
        }
    }

    fn leave(&mut self) {
        self.leaving = true;
        self.say_goodbye();
    }

    fn say_goodbye(&self) {
        let payload = Goodbye::new(WireError::NoError, "the server is stopping").encode();
        let mut outbox = lock(&self.out.outbox);
        // A full ring keeps the word back; the closing of the socket says it, too.
        let _ = outbox.sending.send(connection_header(Kind::GOODBYE), &payload);
        let _ = outbox.sending.flush();
    }

    fn accuse(&self, peer: &PeerMisbehaved) {
        let payload = Goodbye::new(peer.error, &peer.to_string()).encode();
        let mut outbox = lock(&self.out.outbox);
        outbox.is_closed = true;
        let _ = outbox.sending.send(connection_header(Kind::GOODBYE), &payload);
        let _ = outbox.sending.flush();
    }

    /// Whether an orderly end has come: one side said goodbye, and nothing is left to do.
    fn is_drained(&self) -> bool {
        let quiet = || {
            let outbox = lock(&self.out.outbox);
            outbox.waiting.is_empty() && !outbox.sending.has_backlog()
        };
        let read = self.ahead.is_empty();
        (self.leaving || self.peer_left) && self.calls.is_empty() && read && quiet()
    }

    /// Handles what is here, up to a turn's worth, and looks at the peer's bell once.
    fn handle_frames(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Result<Progress, Broken> {
        let _outer = Ambient::apart();
        let mut progress = Progress::Nothing;
        let (mut left, mut looked) = (FRAMES_PER_TURN, false);
        while left > 0 {
            // Where one has come alone, as most do, there is nothing to look at.
            if matches!(progress, Progress::Frames) && !looked && !self.receiving.has_no_more() {
                looked = true;
                self.reads_ahead |= self.receiving.has_urgent(FRAMES_PER_TURN);
            }
            let saturated = self.calls.len() >= self.calls_in_flight && self.is_saturated();
            let came = if saturated { self.next_but_messages()? } else { self.next_frame()? };
            if !came {
                if saturated && matches!(progress, Progress::Nothing) && !self.ahead.has_room() {
                    progress = Progress::Saturated;
                }
                break;
            }
            progress = Progress::Frames;
            left = left.saturating_sub(1 + self.header.length as usize / BYTES_OF_A_FRAME);
            if self.header.flags.contains(Flags::PRIORITY) {
                (self.sees_priority, self.reads_ahead) = (true, true);
            }
            if let Some(blocked) = self.handle(shared, cx)? {
                progress = Progress::Blocked(blocked);
                break;
            }
        }
        // One that ended behind the look at the places is left for the wait for them to find.
        if matches!(progress, Progress::Frames | Progress::Blocked(_)) {
            let mut outbox = lock(&self.out.outbox);
            count_messages(&mut outbox.tally, &mut self.messages);
            outbox.sending.flush()?;
            drop(outbox);
            while !self.calls.is_empty() && self.calls.try_join_next().is_some() {}
            let now = Instant::now();
            let was_long = now.duration_since(self.turned_at) >= LONG_TURN;
            self.reads_ahead = self.sees_priority || was_long;
            self.turned_at = now;
        }
        Ok(progress)
    }

    /// Handles the frame that was read beside the turns.
    async fn handle_apart(&mut self, shared: &Shared) -> Result<Option<Header>, Broken> {
        poll_fn(|cx| {
            let _outer = Ambient::apart();
            Poll::Ready(self.handle(shared, cx))
        })
        .await
    }

    #[inline(always)]
    fn next_frame(&mut self) -> Result<bool, Broken> {
        let Self { ahead, receiving, frame, header, reads_ahead, .. } = self;
        if *reads_ahead || !ahead.is_empty() {
            return ahead.next(receiving, frame, header);
        }
        ahead.pass();
        receiving.next(frame, header)
    }

    /// The next frame that begins no one-way message.
    fn next_but_messages(&mut self) -> Result<bool, Broken> {
        self.ahead.next_but_messages(&mut self.receiving, &mut self.frame, &mut self.header)
    }

    /// The next frame of a call that runs. The end is found again when everything before it had its turn.
    fn next_of_running(&mut self) -> Result<bool, Broken> {
        match self.ahead.next_of_running(&mut self.receiving, &mut self.frame, &mut self.header) {
            Err(Broken::Ended) if !self.ahead.is_empty() => Ok(false),
            next => next,
        }
    }

    /// Whether as many one-way messages are being handled as there may be.
    fn is_saturated(&self) -> bool {
        lock(&self.out.outbox).running_oneway >= self.calls_in_flight
    }

    /// Handles the frame that was read. A header that comes back is of a reply that found no room.
    #[inline(always)]
    fn handle(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Result<Option<Header>, Broken> {
        let flags = self.header.flags;
        self.time = None;
        if flags.intersects(UNSUPPORTED) {
            return Err(misbehaved(WireError::BadFlags, "a flag that was not agreed on"));
        }
        if flags.is_response() {
            return Err(misbehaved(WireError::UnknownCall, "this side makes no calls"));
        }
        if flags.contains(Flags::STREAM)
            && (self.header.kind.is_connection() || self.header.id == MessageId::CONNECTION)
        {
            return Err(misbehaved(WireError::BadFlags, "a stream belongs to a method's call"));
        }
        if self.header.kind.is_connection() {
            return self.handle_connection_frame();
        }
        if flags.is_one_way() && self.header.id != MessageId::CONNECTION {
            return self.handle_item();
        }
        let mut more = None;
        let told = match self.frame.time {
            _ if !flags.contains(Flags::EXTENDED) => None,
            Some(time) => Some(self.told(time)),
            None => self.take_carried(&mut more)?,
        };
        // What its way and its queues have left of it.
        self.time = told.map(|told| Time { told, left_ns: clock::left_ns(told.ends_at_ns) });
        let Some(route) = shared.router.find(self.header.kind) else {
            let status = Status::unimplemented(format!("there is no method {}", self.header.kind));
            return self.fail(&status);
        };
        if self.leaving && flags.is_request() {
            return self.fail(&Status::unavailable("the server is stopping"));
        }
        if flags.contains(Flags::STREAM) && !sends_items(route.shape) {
            let message = format!("{} takes one request, not a stream", route.name);
            return self.fail(&Status::invalid_argument(message));
        }
        if self.ahead.is_given_up() {
            let mut outbox = lock(&self.out.outbox);
            // The word that it is given up.
            outbox.tally.received += 1;
            outbox.tally.cancelled += 1;
            drop(outbox);
            return self.fail(&CallEnd::Cancelled.status());
        }
        if let Some(Time { left_ns: 0, .. }) = self.time {
            return self.fail(&CallEnd::DeadlineExceeded.status());
        }
        match &route.handler {
            Handler::Inline(handler) => {
                let mut long = None;
                let payload = self.frame.payload();
                let (caller, reply) = (&*self.origin.caller, &mut self.reply);
                let run = || run_inline(handler, caller, payload, reply, &mut long);
                let ran =
                    served(&route.name, caller, &self.header, more.as_deref(), &self.time, run);
                self.reply_long = long.map(|long| Payload::from_long(Long::Buffer(long)));
                match ran {
                    Ok(Ok(())) => self.answer(),
                    Ok(Err(status)) => self.fail(&status),
                    Err(Panicked) => self.fail_for_panic(route),
                }
            }
            Handler::Typed(handler) => self.serve_typed(route, handler, more.as_deref()),
            Handler::Async(handler) => self.begin(cx, route, handler.as_ref(), more),
        }
    }

    /// When the caller gives the call up whose frame is handled. `None` is never, or too far for the clock.
    fn given_up_at(&self) -> Option<Instant> {
        self.time.and_then(|time| clock::enforced(time.told))
    }

    /// What a frame tells of its call's time, which was sent with it.
    #[inline(always)]
    fn told(&self, time: TimeLeft) -> Told {
        if self.shares_clock { Told::sent(time) } else { self.told_apart(time.remaining_us) }
    }

    /// As [`Connection::told`], where nothing says when it was sent: it has begun when the frame was read.
    #[cold]
    fn told_apart(&self, remaining_us: u64) -> Told {
        Told::now(Duration::from_micros(remaining_us).saturating_sub(self.ahead.waited()))
    }

    /// What an extension block carries that holds more than the time.
    #[cold]
    fn take_carried(
        &mut self,
        more: &mut Option<Box<CarriedMore>>,
    ) -> Result<Option<Told>, Broken> {
        let detail = "an extension block cannot be understood";
        let taken = take_extensions(&mut self.frame);
        let carried = taken.map_err(|_| misbehaved(WireError::BadExtension, detail))?;
        if carried.form() == Form::Json && !self.takes_json {
            return Err(misbehaved(WireError::BadExtension, "calls in JSON were not agreed on"));
        }
        let Carried { remaining_us, sent_at_ns, more: carried } = carried;
        *more = carried;
        Ok(remaining_us.map(|remaining_us| match sent_at_ns {
            Some(sent_at_ns) => self.told(TimeLeft { remaining_us, sent_at_ns }),
            None => self.told_apart(remaining_us),
        }))
    }

    /// Serves a call of an inline handler of a typed method.
    #[inline(always)]
    fn serve_typed(
        &mut self,
        route: &Route,
        handler: &TypedFn,
        more: Option<&CarriedMore>,
    ) -> Result<Option<Header>, Broken> {
        let caller = &*self.origin.caller;
        let call = InlineCall { caller, left_ns: self.time.as_ref().map(Time::left_ns), more };
        let payload = self.frame.take_payload();
        let reply = &mut self.reply;
        let run = || run_typed(handler, &call, payload, reply);
        match served(&route.name, caller, &self.header, more, &self.time, run) {
            Ok(Ok(())) => {
                if self.reply.len() > Header::BYTES + LONG_BYTES {
                    self.reply_long = Some(Payload::behind_header(&mut self.reply));
                }
                self.answer()
            }
            Ok(Err(status)) => self.fail(&status),
            Err(Panicked) => self.fail_for_panic(route),
        }
    }

    /// Begins a call of an async handler, and polls it once.
    #[inline(never)]
    fn begin(
        &mut self,
        cx: &mut Context<'_>,
        route: &Route,
        handler: &dyn AsyncHandler,
        more: Option<Box<CarriedMore>>,
    ) -> Result<Option<Header>, Broken> {
        // Before anything of it is done. Those that run are fewer than the tasks.
        if self.header.flags.is_request() && self.calls.len() >= self.calls_in_flight {
            self.check_in_flight(&lock(&self.out.outbox))?;
        }
        let left_ns = self.time.as_ref().map(Time::left_ns);
        let caller = &self.origin.caller;
        let span = spans::serving(&route.name, caller, &self.header, more.as_deref(), left_ns);
        let ambient = ambient(more.as_deref(), &self.time).within(span.as_deref());
        let has_items = is_stream(route.shape);
        let place = self.places[route.index].take();
        let mut call = place.unwrap_or_else(|| handler.place(&self.origin));
        let about = call.renew(&self.origin);
        (about.kind, about.id, about.has_items) = (self.header.kind, self.header.id, has_items);
        about.deadline_ns = ambient.deadline_ns;
        match more {
            None => {
                (about.trace, about.metadata, about.form) = (None, Metadata::NONE, Form::Own);
            }
            Some(more) => {
                (about.trace, about.metadata, about.form) = (more.trace, more.metadata, more.form);
            }
        }
        if has_items {
            return self.begin_stream(route, call, span, ambient);
        }
        let payload = self.frame.take_payload();
        let begun = ambient.scope(|| {
            call.set(payload, span)?;
            Ok((call.poll(cx), call))
        });
        match begun {
            Ok((Poll::Ready(ended), call)) => self.finish_at_once(route, ended, call),
            Ok((Poll::Pending, call)) => self.go_on_alone(route, call, ambient),
            Err(Panicked) => self.fail_for_panic(route),
        }
    }

    /// A method with a stream runs in its own task from the beginning: its items need its place among the
    /// running calls.
    #[inline(never)]
    fn begin_stream(
        &mut self,
        route: &Route,
        mut call: Box<dyn Running>,
        span: Option<Box<CallSpan>>,
        ambient: Ambient,
    ) -> Result<Option<Header>, Broken> {
        if !self.header.flags.is_request() {
            return self.fail(&Status::invalid_argument("a stream is not one-way"));
        }
        let payload = self.frame.take_payload();
        match ambient.scope(|| call.set(payload, span)) {
            Ok(()) => {
                if !self.header.flags.contains(Flags::STREAM) {
                    let ended = call.state().arrive(None, true);
                    debug_assert!(ended.is_ok(), "nothing has come before");
                }
                self.go_on_alone(route, call, ambient)
            }
            Err(Panicked) => self.fail_for_panic(route),
        }
    }

    /// A frame of a stream from the caller: an item, or its last word.
    #[inline(never)]
    fn handle_item(&mut self) -> Result<Option<Header>, Broken> {
        let mut outbox = lock(&self.out.outbox);
        tally_received(&mut outbox.tally, &self.header);
        let Some(call) = outbox.running.get(&self.header.id.get()) else {
            return self.take_as_late(outbox);
        };
        if call.kind != self.header.kind || !sends_items(call.shape) {
            let detail = "an item is of another kind than its stream";
            return Err(misbehaved(WireError::BadKind, detail));
        }
        let state = Arc::clone(&call.state);
        drop(outbox);
        let more = self.header.flags.contains(Flags::STREAM);
        if self.header.flags.intersects(Flags::EXTENDED | Flags::ERROR)
            || !more && self.header.length > 0
        {
            let detail = "an item carries no extension, and the last word no item";
            return Err(misbehaved(WireError::BadFlags, detail));
        }
        self.woke = true;
        let item = more.then(|| self.frame.take_payload());
        state.arrive(item, !more).map_err(|fault| match fault {
            ItemFault::NoCredit => {
                misbehaved(WireError::BadCredit, "an item came without credit for it")
            }
            ItemFault::AfterEnd => {
                misbehaved(WireError::UnexpectedMessage, "an item came after the stream's end")
            }
        })?;
        Ok(None)
    }

    /// The caller of a running call gives it up, or gives its stream credit.
    fn handle_call_frame(&mut self) -> Result<Option<Header>, Broken> {
        let mut outbox = lock(&self.out.outbox);
        tally_received(&mut outbox.tally, &self.header);
        let payload = self.frame.payload();
        let credit = match self.header.kind {
            Kind::CREDIT => match Credit::decode(payload) {
                Ok(credit) => Some(credit),
                Err(_) => return Err(misbehaved(WireError::BadCredit, "it cannot be read")),
            },
            _ if !payload.is_empty() => {
                return Err(misbehaved(WireError::BadMessage, "a Cancel carries nothing"));
            }
            _ => None,
        };
        let Some(call) = outbox.running.get(&self.header.id.get()) else {
            return self.take_as_late(outbox);
        };
        let (state, shape) = (Arc::clone(&call.state), call.shape);
        if credit.is_none() {
            outbox.tally.cancelled += 1;
        }
        drop(outbox);
        match credit {
            Some(_) if !gets_items(shape) => {
                Err(misbehaved(WireError::BadCredit, "the call has no stream of replies"))
            }
            Some(credit) => match state.grant(credit) {
                Ok(()) => {
                    self.woke = true;
                    Ok(None)
                }
                Err(_) => Err(misbehaved(WireError::BadCredit, "more than the window holds")),
            },
            None => {
                state.end(CallEnd::Cancelled);
                self.woke = true;
                Ok(None)
            }
        }
    }

    /// A frame of a call that does not run: it was sent before the caller knew that the call was over. One whose call
    /// never was ends the connection, where that is certain: not of a Cancel, as calls without streams are not
    /// remembered, nor of a frame that calls which were read after it have overtaken.
    #[cold]
    fn take_as_late(&self, mut outbox: MutexGuard<'_, Outbox>) -> Result<Option<Header>, Broken> {
        let known = self.header.kind == Kind::CANCEL || outbox.ended.contains(self.header.id.get());
        if !known && self.ahead.is_in_order(self.header.id) {
            let detail = "an item or credit is of a call that was never opened";
            return Err(misbehaved(WireError::UnknownCall, detail));
        }
        outbox.tally.late += 1;
        Ok(None)
    }

    /// An async handler that was done at its first poll: no task, no allocation.
    fn finish_at_once(
        &mut self,
        route: &Route,
        ended: Result<Result<Payload, Status>, Panicked>,
        mut call: Box<dyn Running>,
    ) -> Result<Option<Header>, Broken> {
        match call.clear() {
            Ok(()) => self.places[route.index] = Some(call),
            Err(Panicked) => self.out.count_panic(route),
        }
        match ended {
            Ok(Ok(payload)) => {
                self.reply.clear();
                self.reply.resize(Header::BYTES, 0);
                if payload.len() > LONG_BYTES {
                    self.reply_long = Some(payload);
                } else {
                    self.reply.extend_from_slice(&payload);
                }
                self.answer()
            }
            Ok(Err(status)) => self.fail(&status),
            Err(Panicked) => self.fail_for_panic(route),
        }
    }

    /// Gives a call that waits a task of its own.
    fn go_on_alone(
        &mut self,
        route: &Route,
        mut call: Box<dyn Running>,
        ambient: Ambient,
    ) -> Result<Option<Header>, Broken> {
        let is_request = self.header.flags.is_request();
        let state = Arc::clone(call.state());
        {
            let mut outbox = lock(&self.out.outbox);
            tally_received(&mut outbox.tally, &self.header);
            outbox.running_oneway += usize::from(!is_request);
        }
        if is_request {
            let (kind, shape, state) = (self.header.kind, route.shape, Arc::clone(&state));
            self.enter(self.header.id, RunningCall { kind, shape, state })?;
        }
        self.woke = true;
        let (shared, out, header) = (Arc::clone(&self.shared), Arc::clone(&self.out), self.header);
        let until = self.given_up_at();
        self.calls.spawn(async move {
            let work = poll_fn(|cx| match state.poll_end(cx) {
                Some(end) => Poll::Ready(Ok(Err(end.status()))),
                None => call.poll(cx),
            });
            let ended = ambient.around(within(until, work)).await;
            // What the handler started elsewhere sees that nobody waits for it any more.
            let end = if ended.is_err() { CallEnd::DeadlineExceeded } else { CallEnd::Over };
            state.end(end);
            let ended = ended.unwrap_or_else(|end| Ok(Err(end.status())));
            let route = shared.router.find(header.kind).expect("routes do not change");
            match (call.clear(), &route.handler) {
                (Ok(()), Handler::Async(handler)) => handler.give_back(call),
                (Ok(()), _) => {}
                (Err(Panicked), _) => out.count_panic(route),
            }
            out.finish(&header, route, ended, &state, until).await;
        });
        Ok(None)
    }

    /// Sends the reply that stands in `reply`, if one is expected.
    #[inline(always)]
    fn answer(&mut self) -> Result<Option<Header>, Broken> {
        if !self.header.flags.is_request() {
            self.messages.0 += 1;
            self.messages.1 += u64::from(self.header.length);
            return Ok(None);
        }
        let mut outbox = lock(&self.out.outbox);
        tally_received(&mut outbox.tally, &self.header);
        let response =
            call_header(Flags::RESPONSE, response_kind(self.header.kind), self.header.id);
        let bytes = reply_bytes(&self.reply, self.reply_long.as_ref());
        let Self { reply, reply_long, .. } = self;
        match send_reply(&mut outbox.sending, response, reply, reply_long) {
            Ok(()) => {
                outbox.tally.sent += 1;
                outbox.tally.sent_bytes += bytes as u64;
                Ok(None)
            }
            Err(SendError::Full) if reply_long.is_some() || outbox.sending.is_long(bytes) => {
                drop(outbox);
                self.answer_later(response)
            }
            Err(SendError::Full) => Ok(Some(response)),
            Err(SendError::TooLarge(max)) => {
                drop(outbox);
                self.fail_again(&too_large(bytes, max))
            }
            Err(SendError::OverQuota) => {
                drop(outbox);
                self.fail_again(&over_quota())
            }
            Err(SendError::Broken(broken)) => Err(broken),
        }
    }

    /// A long reply waits for a block in a task of its own: a caller that holds all that there are stops what needs
    /// one, and nothing else of its connection.
    #[cold]
    fn answer_later(&mut self, response: Header) -> Result<Option<Header>, Broken> {
        let until = self.given_up_at();
        let long = self.reply_long.take();
        let payload = long.unwrap_or_else(|| Payload::behind_header(&mut self.reply));
        let Origin { caller, out, reply_bytes_max } = &self.origin;
        let about = About::new(Arc::clone(caller), Weak::clone(out), *reply_bytes_max);
        let state = Arc::new(CallState::new(about));
        state.end(CallEnd::Over);
        let (kind, shape) = (response.kind, MethodShape::Unary);
        self.enter(response.id, RunningCall { kind, shape, state: Arc::clone(&state) })?;
        let out = Arc::clone(&self.out);
        self.calls.spawn(async move { out.send_later(response, payload, &state, until).await });
        Ok(None)
    }

    /// Whether another call may run.
    fn check_in_flight(&self, outbox: &Outbox) -> Result<(), Broken> {
        if outbox.running.len() >= self.calls_in_flight {
            return Err(misbehaved(WireError::TooManyCalls, ""));
        }
        Ok(())
    }

    /// Enters a call among the running ones.
    fn enter(&self, id: MessageId, running: RunningCall) -> Result<(), Broken> {
        let mut outbox = lock(&self.out.outbox);
        self.check_in_flight(&outbox)?;
        match outbox.running.entry(id.get()) {
            Entry::Vacant(place) => place.insert(running),
            Entry::Occupied(_) => {
                return Err(misbehaved(WireError::BadId, "a request has the id of a running one"));
            }
        };
        Ok(())
    }

    #[cold]
    fn fail(&mut self, status: &Status) -> Result<Option<Header>, Broken> {
        tally_received(&mut lock(&self.out.outbox).tally, &self.header);
        self.fail_again(status)
    }

    /// As `fail`, for a frame that has been counted.
    fn fail_again(&mut self, status: &Status) -> Result<Option<Header>, Broken> {
        let mut outbox = lock(&self.out.outbox);
        if !self.header.flags.is_request() {
            outbox.tally.dropped += 1;
            return Ok(None);
        }
        outbox.tally.errors += 1;
        let flags = Flags::RESPONSE | Flags::ERROR;
        let response = call_header(flags, response_kind(self.header.kind), self.header.id);
        self.reply_long = None;
        self.reply.clear();
        self.reply.resize(Header::BYTES, 0);
        self.reply.extend_from_slice(&status.encode());
        let sent = outbox.sending.send_in_place(response, &mut self.reply);
        if matches!(sent, Ok(()) | Err(SendError::Full)) && self.has_stream() {
            outbox.ended.remember(self.header.id.get());
        }
        match sent {
            Ok(()) => {
                outbox.tally.sent += 1;
                Ok(None)
            }
            Err(SendError::Full) => Ok(Some(response)),
            // A status is within 4 KiB and details; one that still does not fit loses its details.
            Err(SendError::TooLarge(_) | SendError::OverQuota) => {
                drop(outbox);
                self.fail_again(&Status::new(status.code, ""))
            }
            Err(SendError::Broken(broken)) => Err(broken),
        }
    }

    /// Whether items or credit may be on their way for a request that is answered without having run: the caller says
    /// so, or the method takes or gives some.
    fn has_stream(&self) -> bool {
        let route = self.shared.router.find(self.header.kind);
        self.header.flags.contains(Flags::STREAM)
            || route.is_some_and(|route| is_stream(route.shape))
    }

    #[cold]
    fn fail_for_panic(&mut self, route: &Route) -> Result<Option<Header>, Broken> {
        self.out.count_panic(route);
        self.fail(&panic_status(route))
    }

    fn handle_connection_frame(&mut self) -> Result<Option<Header>, Broken> {
        match (self.header.kind, self.header.flags.is_request()) {
            (Kind::PING, true) => {
                let payload = self.frame.payload();
                if payload.len() > limits::PING_PAYLOAD_BYTES as usize {
                    return Err(misbehaved(
                        WireError::FrameTooLong,
                        "a Ping carries 64 bytes at most",
                    ));
                }
                self.reply.clear();
                self.reply.extend_from_slice(&self.frame.bytes);
                self.answer()
            }
            (Kind::DESCRIBE, true) => {
                self.reply.clear();
                self.reply.resize(Header::BYTES, 0);
                self.reply.extend_from_slice(&self.shared.router.describe().encode());
                self.answer()
            }
            (Kind::DESCRIBE_METHOD, true) => self.describe_method(),
            (Kind::GOODBYE, false) => {
                tally_received(&mut lock(&self.out.outbox).tally, &self.header);
                if Goodbye::decode(self.frame.payload()).is_err() {
                    return Err(misbehaved(WireError::BadMessage, "its Goodbye cannot be read"));
                }
                self.peer_left = true;
                Ok(None)
            }
            (Kind::CANCEL | Kind::CREDIT, false) => self.handle_call_frame(),
            (Kind::HELLO | Kind::HELLO_ACK | Kind::HELLO_REJECT, _) => {
                Err(misbehaved(WireError::UnexpectedMessage, "the handshake is over"))
            }
            _ => {
                let status =
                    Status::unimplemented(format!("{} is not understood", self.header.kind));
                self.fail(&status)
            }
        }
    }

    fn describe_method(&mut self) -> Result<Option<Header>, Broken> {
        let Ok(MethodWanted { kind }) = MethodWanted::decode(self.frame.payload()) else {
            let message = "the number of the method cannot be read";
            return self.fail(&Status::invalid_argument(message));
        };
        let details = Kind::new(kind).and_then(|kind| self.shared.router.details(kind));
        let Some(details) = details else {
            let status = Status::not_found(format!("there is no method {kind:#06x}"));
            return self.fail(&status);
        };
        self.reply.clear();
        self.reply.resize(Header::BYTES, 0);
        self.reply.extend_from_slice(&details.encode());
        self.answer()
    }

    /// Waits for room for the reply in `reply`. Nothing more is begun meanwhile: the peer's own slowness in reading is
    /// what stops it. What calls that run are to be told reaches them.
    async fn send_blocked(&mut self, shared: &Shared, mut response: Header) -> Result<(), Broken> {
        loop {
            while self.next_of_running()? {
                let blocked = self.handle_apart(shared).await?;
                debug_assert!(blocked.is_none(), "such frames have no answer");
            }
            let bytes = reply_bytes(&self.reply, self.reply_long.as_ref());
            let own = self.reply_long.as_mut().is_some_and(|payload| payload.own_block().is_some());
            let needed = if own { 0 } else { bytes };
            // Before it is tried: room that comes after that is seen.
            let seen = self.receiving.peer_progress();
            {
                let Self { out, reply, reply_long, .. } = &mut *self;
                let mut outbox = lock(&out.outbox);
                match send_reply(&mut outbox.sending, response, reply, reply_long) {
                    Ok(()) => {
                        outbox.tally.sent += 1;
                        outbox.tally.sent_bytes += bytes as u64;
                        return outbox.sending.flush();
                    }
                    Err(SendError::Full) => {}
                    Err(SendError::TooLarge(_)) => unreachable!("it was found to fit before"),
                    // The quota was used up meanwhile.
                    Err(SendError::OverQuota) => {
                        reply.truncate(Header::BYTES);
                        reply.extend_from_slice(&over_quota().encode());
                        *reply_long = None;
                        let flags = Flags::RESPONSE | Flags::ERROR;
                        response = call_header(flags, response.kind, response.id);
                        continue;
                    }
                    Err(SendError::Broken(broken)) => return Err(broken),
                }
            }
            self.receiving.publish()?;
            let (receiving, reads) = (&self.receiving, self.ahead.has_room());
            let came = || receiving.peer_progress() != seen || reads && receiving.is_ready();
            if self.sleeper.is_some() && self.spinner.spin(SPIN_BOUND, came) {
                yield_to_others().await;
                continue;
            }
            if let Some(sleeper) = &mut self.sleeper {
                sleeper.arm();
            }
            let is_here = reads && self.receiving.is_ready();
            if !is_here && !lock(&self.out.outbox).sending.has_room(needed)? {
                self.wait().await?;
            }
            self.out.offer_room()?;
        }
    }
}

/// Flags that need something this version has not agreed on.
const UNSUPPORTED: Flags = Flags::COMPRESSED;

fn is_stream(shape: MethodShape) -> bool {
    sends_items(shape) || gets_items(shape)
}

/// Whether the caller sends a stream.
fn sends_items(shape: MethodShape) -> bool {
    matches!(shape, MethodShape::ClientStream | MethodShape::Duplex)
}

/// Whether the caller gets a stream.
fn gets_items(shape: MethodShape) -> bool {
    matches!(shape, MethodShape::ServerStream | MethodShape::Duplex)
}

/// The future's output, unless the deadline comes first. What is late already is not polled.
async fn within<F: Future>(deadline: Option<Instant>, work: F) -> Result<F::Output, CallEnd> {
    match deadline {
        None => Ok(work.await),
        Some(at) if Instant::now() >= at => Err(CallEnd::DeadlineExceeded),
        Some(at) => {
            tokio::time::timeout_at(at.into(), work).await.map_err(|_| CallEnd::DeadlineExceeded)
        }
    }
}

/// The time of a call whose turn has come.
#[derive(Clone, Copy)]
struct Time {
    told: Told,
    /// What is left of it, in nanoseconds.
    left_ns: u64,
}

impl Time {
    fn left_ns(&self) -> u64 {
        self.left_ns
    }
}

/// What calls inherit that the handler of a call makes which has this time, and carries this.
#[inline]
fn ambient(more: Option<&CarriedMore>, time: &Option<Time>) -> Ambient {
    let deadline_ns = match time {
        None => clock::NEVER,
        Some(Time { told, left_ns }) => clock::deadline_ns(*told, *left_ns),
    };
    Ambient::new(deadline_ns, more.and_then(|more| more.trace))
}

/// Runs an inline handler: in the span of its call, if anybody wants that.
#[inline(always)]
fn served<T>(
    method: &str,
    caller: &Caller,
    header: &Header,
    more: Option<&CarriedMore>,
    time: &Option<Time>,
    run: impl FnOnce() -> Result<Result<T, Status>, Panicked>,
) -> Result<Result<T, Status>, Panicked> {
    let left_ns = time.as_ref().map(Time::left_ns);
    let span = spans::serving(method, caller, header, more, left_ns);
    let entered = span.as_deref().map(CallSpan::enter);
    let ran = ambient(more, time).within(span.as_deref()).scope(run);
    drop(entered);
    if let Some(span) = span {
        span.end(served_code(&ran));
    }
    ran
}

fn response_kind(kind: Kind) -> Kind {
    if kind == Kind::PING { Kind::PONG } else { kind }
}

fn reply_bytes(reply: &[u8], long: Option<&Payload>) -> usize {
    long.map_or(reply.len() - Header::BYTES, |payload| payload.len())
}

/// Sends the reply that was made, whichever of the two it is.
#[inline(always)]
fn send_reply(
    sending: &mut Sending,
    response: Header,
    reply: &mut [u8],
    long: &mut Option<Payload>,
) -> Result<(), SendError> {
    let Some(payload) = long else { return sending.send_in_place(response, reply) };
    sending.send_payload(response, payload)?;
    *long = None;
    Ok(())
}

pub(crate) fn over_quota() -> Status {
    let message = "this user has all the bulk memory that it may have here; ask for less, or later";
    Status::resource_exhausted(message)
}

pub(crate) fn too_large(bytes: usize, max: usize) -> Status {
    let message =
        format!("the reply has {bytes} bytes, and this connection takes {max}; ask for less");
    Status::resource_exhausted(message)
}

/// The same error, in as few bytes as may be.
fn without_words(status: &[u8]) -> Status {
    let code = Status::decode(status).map_or(Code::Unknown, |status| status.code);
    Status::new(code, "")
}

fn panic_status(route: &Route) -> Status {
    Status::internal(format!("the handler of {} panicked", route.name))
}

fn count_messages(tally: &mut Tally, messages: &mut (u64, u64)) {
    let (frames, bytes) = std::mem::take(messages);
    tally.received += frames;
    tally.received_bytes += bytes;
}

#[inline]
fn tally_received(tally: &mut Tally, header: &Header) {
    tally.received += 1;
    tally.received_bytes += u64::from(header.length);
}

impl Out {
    fn new(sending: Sending, calls_in_flight: usize, tally: Tally) -> Arc<Out> {
        let outbox = Outbox {
            sending,
            running: HashMap::new(),
            ended: EndedStreams::new(calls_in_flight),
            is_closed: false,
            running_oneway: 0,
            waiting: Vec::new(),
            tickets: 0,
            tally,
        };
        Arc::new(Out {
            outbox: Mutex::new(outbox),
            room_wanted: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            backlog: Notify::new(),
        })
    }

    /// Wakes the replies for which there is room now; whether any was.
    fn offer_room(&self) -> Result<bool, Broken> {
        let mut outbox = lock(&self.outbox);
        if outbox.waiting.is_empty() {
            self.room_wanted.store(false, Ordering::Relaxed);
            // What the socket did not take before may go now.
            outbox.sending.flush()?;
            return Ok(false);
        }
        let Outbox { sending, waiting, .. } = &mut *outbox;
        let mut woken = Vec::new();
        let mut fault = None;
        waiting.retain(|waiting| match sending.has_room(waiting.bytes) {
            Ok(false) => true,
            Ok(true) => {
                woken.push(waiting.waker.clone());
                false
            }
            Err(broken) => {
                fault = Some(broken);
                true
            }
        });
        self.room_wanted.store(!waiting.is_empty(), Ordering::Relaxed);
        drop(outbox);
        let any = !woken.is_empty();
        woken.into_iter().for_each(Waker::wake);
        fault.map_or(Ok(any), Err)
    }

    #[inline]
    fn take_busy(&self) -> bool {
        // Relaxed, and not at once: a call that says so in between is seen the next time.
        let busy = self.busy.load(Ordering::Relaxed);
        if busy {
            self.busy.store(false, Ordering::Relaxed);
        }
        busy
    }

    fn room_wanted(&self) -> bool {
        self.room_wanted.load(Ordering::Relaxed)
    }

    /// Wakes `waker` when there is this much room.
    fn wait_for_room(
        &self,
        outbox: &mut Outbox,
        bytes: usize,
        waker: &Waker,
        ticket: &mut Option<Ticket>,
    ) {
        match outbox.waiting.iter_mut().find(|waiting| Some(waiting.ticket) == *ticket) {
            Some(known) => {
                known.bytes = bytes;
                known.waker.clone_from(waker);
            }
            None => {
                outbox.tickets += 1;
                let fresh = Ticket(outbox.tickets);
                *ticket = Some(fresh);
                outbox.waiting.push(Waiting { ticket: fresh, bytes, waker: waker.clone() });
            }
        }
        self.room_wanted.store(true, Ordering::Relaxed);
    }

    /// One who waited is served, or gone.
    #[inline]
    pub(crate) fn withdraw(&self, ticket: &mut Option<Ticket>) {
        if let Some(ticket) = ticket.take() {
            lock(&self.outbox).waiting.retain(|waiting| waiting.ticket != ticket);
        }
    }

    #[cold]
    fn count_panic(&self, route: &Route) {
        lock(&self.outbox).tally.panics += 1;
        tracing::error!(method = route.name, "a handler panicked");
    }

    /// Answers a call that ran in a task of its own.
    async fn finish(
        &self,
        header: &Header,
        route: &Route,
        ended: Result<Result<Payload, Status>, Panicked>,
        state: &CallState,
        until: Option<Instant>,
    ) {
        if let Err(Panicked) = ended {
            self.count_panic(route);
        }
        if !header.flags.is_request() {
            let mut outbox = lock(&self.outbox);
            outbox.running_oneway -= 1;
            outbox.tally.dropped += u64::from(!matches!(ended, Ok(Ok(_))));
            return;
        }
        let (flags, payload) = match ended {
            Ok(Ok(payload)) => (Flags::RESPONSE, payload),
            Ok(Err(status)) => (Flags::RESPONSE | Flags::ERROR, status.encode().into()),
            Err(Panicked) => (Flags::RESPONSE | Flags::ERROR, panic_status(route).encode().into()),
        };
        let response = call_header(flags, header.kind, header.id);
        self.send_later(response, payload, state, until).await;
    }

    /// Sends a reply as soon as there is room. One that is given up first, or whose time is over, is replaced by the word
    /// of that, which needs no block: so what the caller holds keeps none of its places taken.
    async fn send_later(
        &self,
        mut response: Header,
        mut payload: Payload,
        state: &CallState,
        until: Option<Instant>,
    ) {
        let mut turn = Turn { out: self, ticket: None };
        let ticket = &mut turn.ticket;
        let mut send = |cx: &Context<'_>, response: &mut Header, payload: &mut Payload| {
            self.poll_send(cx, response, payload, ticket)
        };
        let at_once = poll_fn(|cx| Poll::Ready(send(cx, &mut response, &mut payload)));
        if at_once.await.is_ready() {
            return;
        }
        let sent = poll_fn(|cx| match state.poll_given_up(cx) {
            Some(end) => Poll::Ready(Err(end)),
            None => send(cx, &mut response, &mut payload).map(Ok),
        });
        let (Ok(Err(end)) | Err(end)) = within(until, sent).await else { return };
        response.flags = Flags::RESPONSE | Flags::ERROR;
        payload = end.status().encode().into();
        poll_fn(|cx| send(cx, &mut response, &mut payload)).await;
    }

    /// Room for a payload of a reply, to be written in place.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Reserved, Status> {
        let mut turn = Turn { out: self, ticket: None };
        poll_fn(|cx| {
            let mut outbox = lock(&self.outbox);
            let status = match outbox.sending.reserve(bytes) {
                Ok(block) => return Poll::Ready(Ok(Reserved::new(block, bytes))),
                Err(SendError::Full) => {
                    self.wait_for_room(&mut outbox, bytes, cx.waker(), &mut turn.ticket);
                    return Poll::Pending;
                }
                Err(SendError::TooLarge(max)) => too_large(bytes, max),
                Err(SendError::OverQuota) => over_quota(),
                Err(SendError::Broken(_)) => CallEnd::Disconnected.status(),
            };
            Poll::Ready(Err(status))
        })
        .await
    }

    /// Sends one frame of a stream; the header's place is free at its beginning. Without room the waker is
    /// woken when there is. Nothing is sent behind the call's end: whoever asks the call finds it.
    pub(crate) fn send_item(
        &self,
        state: &CallState,
        header: Header,
        frame: &mut [u8],
        waker: Option<&Waker>,
        ticket: &mut Option<Ticket>,
    ) -> Result<bool, SendError> {
        let bytes = frame.len() - Header::BYTES;
        let mut outbox = lock(&self.outbox);
        if state.is_over() || outbox.is_closed {
            return Ok(false);
        }
        match outbox.sending.send_in_place(header, frame) {
            Ok(()) => {
                self.busy.store(true, Ordering::Relaxed);
                outbox.tally.sent += 1;
                outbox.tally.sent_bytes += bytes as u64;
                let flushed = outbox.sending.flush().map_err(SendError::Broken);
                if outbox.sending.has_backlog() {
                    self.backlog.notify_one();
                }
                flushed.map(|()| true)
            }
            Err(SendError::Full) => {
                if let Some(waker) = waker {
                    self.wait_for_room(&mut outbox, bytes, waker, ticket);
                }
                Err(SendError::Full)
            }
            Err(other) => Err(other),
        }
    }

    fn poll_send(
        &self,
        cx: &Context<'_>,
        response: &mut Header,
        payload: &mut Payload,
        ticket: &mut Option<Ticket>,
    ) -> Poll<()> {
        let mut outbox = lock(&self.outbox);
        if outbox.is_closed {
            return Poll::Ready(());
        }
        // Before it is sent: the client may use the id again as soon as it has the reply.
        let id = response.id.get();
        let running = outbox.running.remove(&id);
        let mut sent = outbox.sending.send_payload(*response, payload);
        // A reply that does not go becomes the word of that, and an error that is too long its code alone, which fits.
        for _ in 0..2 {
            let status = match sent {
                Err(SendError::TooLarge(_)) if response.flags.contains(Flags::ERROR) => {
                    without_words(payload)
                }
                Err(SendError::TooLarge(max)) => too_large(payload.len(), max),
                Err(SendError::OverQuota) => over_quota(),
                _ => break,
            };
            response.flags = Flags::RESPONSE | Flags::ERROR;
            *payload = status.encode().into();
            sent = outbox.sending.send(*response, payload);
        }
        let bytes = payload.len();
        if !matches!(sent, Err(SendError::Full))
            && running.as_ref().is_some_and(|call| is_stream(call.shape))
        {
            // Also if it went nowhere: what the caller sent before it was gone is still to be read.
            outbox.ended.remember(id);
        }
        match sent {
            Ok(()) => {
                outbox.tally.sent += 1;
                outbox.tally.sent_bytes += bytes as u64;
                outbox.tally.errors += u64::from(response.flags.contains(Flags::ERROR));
                // A broken bell or socket shows at the connection's own task, too.
                let _ = outbox.sending.flush();
                if outbox.sending.has_backlog() {
                    self.backlog.notify_one();
                }
                Poll::Ready(())
            }
            Err(SendError::Full) => {
                if let Some(running) = running {
                    outbox.running.insert(id, running);
                }
                let needed = if payload.own_block().is_some() { 0 } else { bytes };
                self.wait_for_room(&mut outbox, needed, cx.waker(), ticket);
                Poll::Pending
            }
            Err(SendError::TooLarge(_) | SendError::OverQuota | SendError::Broken(_)) => {
                Poll::Ready(())
            }
        }
    }
}

#[cfg(test)]
#[path = "waiting_tests.rs"]
mod waiting_tests;
