//! Frames read ahead, so that those with priority are dispatched before others.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use lapwing_proto::{Flags, Header, Kind};

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
    /// How long the frame that was taken last had waited.
    waited: Duration,
}

struct Waiting {
    header: Header,
    frame: Box<Frame>,
    since: Instant,
}

impl Ahead {
    /// Frames with priority, and the word that a call is given up, unless that call still waits here.
    fn overtakes(&self, header: &Header) -> bool {
        let mut waiting = self.others.iter().map(|waiting| &waiting.header);
        let waits = |other: &Header| other.id == header.id && other.flags.is_request();
        header.flags.contains(Flags::PRIORITY) || header.kind == Kind::CANCEL && !waiting.any(waits)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.priority.is_empty() && self.others.is_empty()
    }

    /// How long the frame that was taken last had waited here.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// Reads what is there, and takes the frame whose turn it is into `frame`.
    #[inline(never)]
    pub(crate) fn next(
        &mut self,
        receiving: &mut Receiving,
        frame: &mut Box<Frame>,
    ) -> Result<Option<Header>, Broken> {
        while self.others.len() + self.priority.len() < FRAMES_AHEAD && self.bytes < BYTES_AHEAD {
            let Some(header) = receiving.next(frame)? else {
                break;
            };
            self.bytes += header.length as usize;
            let overtakes = self.overtakes(&header);
            let since = Instant::now();
            let frame = std::mem::replace(frame, Frame::kept());
            let queue = if overtakes { &mut self.priority } else { &mut self.others };
            queue.push_back(Waiting { header, frame, since });
        }
        let next = self.priority.pop_front().or_else(|| self.others.pop_front());
        let Some(Waiting { header, frame: taken, since }) = next else {
            return Ok(None);
        };
        self.bytes -= header.length as usize;
        self.waited = since.elapsed();
        // The buffer that is given up goes back to this thread's.
        drop(Payload::of(std::mem::replace(frame, taken)));
        Ok(Some(header))
    }
}
