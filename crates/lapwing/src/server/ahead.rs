//! Frames read ahead: those with priority are dispatched before others, and a call that is given up meanwhile never
//! starts.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use lapwing_proto::{Flags, Header, Kind, MessageId};

use crate::link::{Broken, Receiving};
use crate::payload::{Frame, Payload};

/// Frames read ahead, at most. It bounds the memory that waits here: as many as one turn handles.
const FRAMES_AHEAD: usize = 64;

/// Bytes read ahead, at most; one frame more.
const BYTES_AHEAD: usize = 1024 * 1024;

/// The frames of a connection that were read and wait for their turn.
#[derive(Default)]
pub(crate) struct Ahead {
    priority: VecDeque<Waiting>,
    others: VecDeque<Waiting>,
    bytes: usize,
    /// Frames that have waited, or went before one that waits.
    numbered: u64,
    /// The highest number whose turn has come.
    latest: u64,
    /// Whether one that was read after the frame that was taken last had its turn before it.
    overtaken: bool,
    /// How long the frame that was taken last had waited.
    waited: Duration,
    /// Whether its call was given up meanwhile.
    given_up: bool,
}

struct Waiting {
    header: Header,
    frame: Box<Frame>,
    since: Instant,
    /// It rises with the order in which frames are read.
    number: u64,
    /// It is a request whose Cancel has come.
    given_up: bool,
}

/// Whether a frame has no flag but that of its priority.
fn is_word(header: &Header) -> bool {
    header.flags.without(Flags::PRIORITY) == Flags::NONE
}

/// Whether a frame is a one-way message to a method.
fn is_message(header: &Header) -> bool {
    let to_method = header.kind.is_application() && header.id == MessageId::CONNECTION;
    to_method && header.flags.is_one_way()
}

impl Ahead {
    /// Frames with priority do, but not what came before of their own call; and the word that a call is given up, unless
    /// that call still waits here.
    fn overtakes(&self, header: &Header) -> bool {
        let of_call = |other: &&Header| other.id == header.id && other.id != MessageId::CONNECTION;
        let mut before = self.others.iter().map(|waiting| &waiting.header).filter(of_call);
        if header.kind == Kind::CANCEL {
            return !before.any(|other| other.flags.is_request());
        }
        header.flags.contains(Flags::PRIORITY) && before.next().is_none()
    }

    /// Marks the request that waits here and that this frame gives up; whether there is one. A second such frame for it
    /// is none.
    fn is_given_up_by(&mut self, cancel: &Header) -> bool {
        if cancel.kind != Kind::CANCEL || !is_word(cancel) || cancel.length > 0 {
            return false;
        }
        let mut waiting = self.priority.iter_mut().chain(&mut self.others);
        let request = waiting.find(|w| w.header.id == cancel.id && w.header.flags.is_request());
        request.is_some_and(|request| !std::mem::replace(&mut request.given_up, true))
    }

    /// The next frame is not taken from here.
    pub(crate) fn pass(&mut self) {
        (self.waited, self.given_up, self.overtaken) = (Duration::ZERO, false, false);
    }

    /// As [`Ahead::pass`], where others may wait.
    fn pass_others(&mut self) {
        self.pass();
        self.numbered += 1;
        self.latest = self.numbered;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.priority.is_empty() && self.others.is_empty()
    }

    /// How long the frame that was taken last had waited here.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// Whether the frame that was taken last is of a call that was given up.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// Whether nothing that was read after the frame that was taken last had its turn before it, and no request with its
    /// id waits: so what it belongs to has begun, and each call that has was read before it.
    pub(crate) fn is_in_order(&self, id: MessageId) -> bool {
        !self.overtaken && !self.waits(id)
    }

    /// Whether a request with this id waits here.
    fn waits(&self, id: MessageId) -> bool {
        let mut waiting = self.priority.iter().chain(&self.others).map(|waiting| &waiting.header);
        waiting.any(|other| other.id == id && other.flags.is_request())
    }

    /// Whether another frame may be read.
    pub(crate) fn has_room(&self) -> bool {
        self.others.len() + self.priority.len() < FRAMES_AHEAD && self.bytes < BYTES_AHEAD
    }

    /// Whether a frame is of a call that runs: one that no request which waits here began.
    fn is_of_running(&self, header: &Header) -> bool {
        let is_item = header.kind.is_application()
            && header.flags.is_one_way()
            && header.id != MessageId::CONNECTION;
        let of_call = header.kind == Kind::CANCEL || header.kind == Kind::CREDIT;
        (is_item || of_call && is_word(header)) && !self.waits(header.id)
    }

    /// Whether a frame may be handled before those that wait, of which the first is a one-way message.
    fn passes_messages(&self, header: &Header) -> bool {
        let has_priority = header.flags.contains(Flags::PRIORITY);
        let overtakes = || self.is_empty() || has_priority && self.overtakes(header);
        // Nor before its own request, in whichever queue that is.
        let passes = || !is_message(header) && !self.waits(header.id) && overtakes();
        self.is_of_running(header) || passes()
    }

    /// As [`Ahead::next`], while no one-way message may be begun: a call that comes before any, or a frame of a call
    /// that runs. The others wait here in their order, as far as there is room, and are not read beyond that.
    #[cold]
    pub(crate) fn next_but_messages(
        &mut self,
        receiving: &mut Receiving,
        frame: &mut Box<Frame>,
        header: &mut Header,
    ) -> Result<bool, Broken> {
        let first = |queue: &VecDeque<Waiting>| {
            let begins = queue.front().is_some_and(|waiting| !is_message(&waiting.header));
            if begins { Some(0) } else { self.first_of_running(queue) }
        };
        let at = (first(&self.priority), first(&self.others));
        self.next_that(at, receiving, frame, header, Ahead::passes_messages)
    }

    /// As [`Ahead::next`], while nothing may be begun: a frame of a call that runs. The others wait here in their order, as
    /// far as there is room, and are not read beyond that.
    #[cold]
    pub(crate) fn next_of_running(
        &mut self,
        receiving: &mut Receiving,
        frame: &mut Box<Frame>,
        header: &mut Header,
    ) -> Result<bool, Broken> {
        let at = (self.first_of_running(&self.priority), self.first_of_running(&self.others));
        self.next_that(at, receiving, frame, header, Ahead::is_of_running)
    }

    /// Where the first frame of a call that runs waits.
    fn first_of_running(&self, queue: &VecDeque<Waiting>) -> Option<usize> {
        queue.iter().position(|waiting| self.is_of_running(&waiting.header))
    }

    /// The frame that waits at one of these places, or the next that is read and `passes` those that wait.
    fn next_that(
        &mut self,
        (priority, other): (Option<usize>, Option<usize>),
        receiving: &mut Receiving,
        frame: &mut Box<Frame>,
        header: &mut Header,
        passes: fn(&Ahead, &Header) -> bool,
    ) -> Result<bool, Broken> {
        let taken = match (priority, other) {
            (Some(at), _) => self.priority.remove(at),
            (None, Some(at)) => self.others.remove(at),
            (None, None) => None,
        };
        if let Some(waiting) = taken {
            *header = self.take(waiting, frame);
            return Ok(true);
        }
        while self.has_room() && receiving.next(frame, header)? {
            if self.is_given_up_by(header) {
                continue;
            }
            if passes(self, header) {
                self.pass_others();
                return Ok(true);
            }
            self.keep(*header, frame);
        }
        Ok(false)
    }

    /// Lets a frame wait behind those that it does not overtake.
    fn keep(&mut self, header: Header, frame: &mut Box<Frame>) {
        self.bytes += header.length as usize;
        let overtakes = self.overtakes(&header);
        let frame = std::mem::replace(frame, Frame::kept());
        let queue = if overtakes { &mut self.priority } else { &mut self.others };
        self.numbered += 1;
        let (since, number) = (Instant::now(), self.numbered);
        queue.push_back(Waiting { header, frame, since, number, given_up: false });
    }

    /// What a frame holds whose turn has come.
    fn take(&mut self, waiting: Waiting, frame: &mut Box<Frame>) -> Header {
        let Waiting { header, frame: taken, since, number, given_up } = waiting;
        self.bytes -= header.length as usize;
        (self.waited, self.given_up) = (since.elapsed(), given_up);
        self.overtaken = number < self.latest;
        self.latest = self.latest.max(number);
        // The buffer that is given up goes back to this thread's.
        drop(Payload::of(std::mem::replace(frame, taken)));
        header
    }

    /// Reads what is there, and takes the frame whose turn it is into `frame`.
    #[inline(never)]
    pub(crate) fn next(
        &mut self,
        receiving: &mut Receiving,
        frame: &mut Box<Frame>,
        header: &mut Header,
    ) -> Result<bool, Broken> {
        while self.has_room() {
            match receiving.next(frame, header) {
                Ok(true) => {}
                Ok(false) => break,
                // What came before the end has its turn first; the end is found again then.
                Err(Broken::Ended) if !self.is_empty() => break,
                Err(broken) => return Err(broken),
            }
            // One that comes alone need not wait, nor room be made where it could.
            if self.is_empty() && receiving.has_no_more() {
                self.pass();
                return Ok(true);
            }
            if self.is_given_up_by(header) {
                continue;
            }
            self.keep(*header, frame);
        }
        match self.priority.pop_front().or_else(|| self.others.pop_front()) {
            Some(waiting) => {
                *header = self.take(waiting, frame);
                Ok(true)
            }
            None => {
                self.pass();
                Ok(false)
            }
        }
    }
}
