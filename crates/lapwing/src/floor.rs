//! What the machine itself costs between two processes: the floors that latencies are compared with.
//!
//! The costs of these machines move by the minute, so a latency means something only beside a floor taken
//! in the same run. One process calls [`Floor::offer`], the other [`Floor::accept`] and [`Floor::serve`], on
//! the two ends of a connected socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use lapwing_shm::floor::{COPY_BYTES_MAX, CopyFloor, LineFloor};
pub use lapwing_shm::sys::pin_to_core;
use lapwing_shm::{Buffer, Doorbell, Poller, Ring};

use crate::platform;

/// The bare things that can be sent to and fro.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bare {
    /// One cache line, both sides looking all the time.
    Line,
    /// An eventfd each way, both sides asleep in `epoll_wait`.
    Bell,
    /// This many bytes over the Unix socket, both sides blocking in `read`. At most 16 MiB.
    Socket(u32),
    /// This many bytes through shared memory and back, both sides looking all the time: the one copies them
    /// in, the other out to its own memory and from there in again, the one out. At most 16 MiB. They carry
    /// their number at both ends, which is looked at where they came back.
    Copy(u32),
}

/// Nanoseconds of the clock that all processes of a machine share.
#[must_use]
#[inline]
pub fn now_ns() -> u64 {
    platform::monotonic_ns()
}

/// One end of the floors.
#[derive(Debug)]
pub struct Floor {
    line: LineFloor,
    copy: CopyFloor,
    /// Watched by `poller`; kept open.
    _bell: Doorbell,
    far_bell: Doorbell,
    poller: Poller,
    socket: UnixStream,
    buffer: Vec<u8>,
    /// What [`Bare::Copy`] brought back.
    copied: Buffer,
    /// Line round trips so far, and those with copies.
    lines: u64,
}

/// The longest message of [`Bare::Socket`] and [`Bare::Copy`], in bytes.
const MESSAGE_BYTES: u32 = COPY_BYTES_MAX as u32;

/// The command that [`Floor::paced`] gives, with the pace in place of a length.
const PACED: u8 = 4;

/// A command: kind, message length, count.
const COMMAND_BYTES: usize = 1 + 4 + 8;

impl Floor {
    /// Makes the floors and shows them to the process at the other end of `socket`.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn offer(socket: UnixStream) -> io::Result<Floor> {
        let (line, page) = LineFloor::create()?;
        let (copy, area) = CopyFloor::create()?;
        let (bell, far_bell) = (Doorbell::create()?, Doorbell::create()?);
        let fds = [page.as_fd(), area.as_fd(), far_bell.as_fd(), bell.as_fd()];
        platform::send_with_descriptors(&socket, &[0], &fds)?;
        Floor::new(line, copy, [bell, far_bell], socket)
    }

    /// Takes the floors that the other process offers.
    ///
    /// # Errors
    ///
    /// What the system says, or that something else came.
    pub fn accept(socket: UnixStream) -> io::Result<Floor> {
        platform::wait_readable(&socket, std::time::Duration::from_secs(10))?;
        let mut fds = Vec::new();
        platform::receive_with_descriptors(&socket, &mut [0], &mut fds)?;
        let foreign = |_| io::Error::other("the floors take two memory files and two doorbells");
        let [page, area, bell, far_bell] = <[OwnedFd; 4]>::try_from(fds).map_err(foreign)?;
        let import = |fd| Doorbell::import(fd).map_err(io::Error::other);
        let bells = [import(bell)?, import(far_bell)?];
        Floor::new(LineFloor::open(page)?, CopyFloor::open(area)?, bells, socket)
    }

    fn new(
        line: LineFloor,
        copy: CopyFloor,
        [bell, far_bell]: [Doorbell; 2],
        socket: UnixStream,
    ) -> io::Result<Floor> {
        socket.set_nonblocking(false)?;
        let poller = Poller::new(Some(&bell), socket.as_fd())?;
        // The doorbell's first edge is its count of 1.
        poller.wait(Some(std::time::Duration::ZERO))?;
        Ok(Floor {
            line,
            copy,
            _bell: bell,
            far_bell,
            poller,
            socket,
            buffer: Vec::new(),
            copied: Buffer::new(),
            lines: 0,
        })
    }

    /// Makes `count` round trips; `each` is called after each one.
    ///
    /// # Errors
    ///
    /// What the system says; the other process may be gone.
    pub fn round_trips(
        &mut self,
        bare: Bare,
        count: u64,
        mut each: impl FnMut(),
    ) -> io::Result<()> {
        let (kind, length) = match bare {
            Bare::Line => (0, 0),
            Bare::Bell => (1, 0),
            Bare::Socket(length) => (2, length.min(MESSAGE_BYTES)),
            Bare::Copy(length) => (3, length.min(MESSAGE_BYTES)),
        };
        self.command(kind, length, count)?;
        self.make_room(length);
        for _ in 0..count {
            match bare {
                Bare::Line => {
                    self.line.ping(self.lines);
                    self.lines += 1;
                }
                Bare::Bell => {
                    self.far_bell.ring()?;
                    self.wait_for_bell()?;
                }
                Bare::Socket(_) => {
                    self.socket.write_all(&self.buffer)?;
                    self.socket.read_exact(&mut self.buffer)?;
                }
                Bare::Copy(_) => self.copy_there_and_back()?,
            }
            each();
        }
        Ok(())
    }

    /// Has the other process hand over a cache line `count` times, once each `every_ns`, or as soon as there is one of the
    /// 64 that this one has emptied; `each` is told how many nanoseconds it took from the other process's look
    /// at the shared clock until this one has looked, too. So when one of the two pauses, what comes meanwhile waits, as
    /// the items of a stream do.
    ///
    /// # Errors
    ///
    /// As [`Floor::round_trips`].
    pub fn paced(
        &mut self,
        count: u64,
        every_ns: u32,
        mut each: impl FnMut(u64),
    ) -> io::Result<()> {
        self.line.clear();
        self.command(PACED, every_ns, count)?;
        for n in 0..count {
            let told = self.line.hear(n);
            each(now_ns().saturating_sub(told));
        }
        Ok(())
    }

    fn command(&mut self, kind: u8, length: u32, count: u64) -> io::Result<()> {
        let mut command = vec![kind];
        command.extend_from_slice(&length.to_le_bytes());
        command.extend_from_slice(&count.to_le_bytes());
        self.socket.write_all(&command)
    }

    fn answer_paced(&self, count: u64, every_ns: u32) {
        let first = now_ns();
        for n in 0..count {
            let due = first + n * u64::from(every_ns);
            while now_ns() < due {}
            self.line.tell(n, now_ns);
        }
    }

    fn make_room(&mut self, length: u32) {
        let length = length as usize;
        self.buffer.resize(length, 0);
        if self.copied.bytes().len() != length {
            self.copied = Buffer::zeroed(length);
        }
    }

    fn copy_there_and_back(&mut self) -> io::Result<()> {
        let n = self.lines;
        self.lines += 1;
        number(&mut self.buffer, n);
        self.copy.put(n, &self.buffer);
        self.line.ping(n);
        self.copy.take(n, self.copied.bytes_mut());
        if !is_numbered(self.copied.bytes(), n) {
            return Err(io::Error::other("other bytes came back"));
        }
        Ok(())
    }

    /// Answers round trips until the other process closes its end.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn serve(mut self) -> io::Result<()> {
        loop {
            let mut command = [0; COMMAND_BYTES];
            match self.socket.read_exact(&mut command) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            }
            let [kind, l0, l1, l2, l3, count @ ..] = command;
            let (length, count) = (u32::from_le_bytes([l0, l1, l2, l3]), u64::from_le_bytes(count));
            if kind == PACED {
                self.answer_paced(count, length);
                continue;
            }
            self.make_room(length.min(MESSAGE_BYTES));
            for _ in 0..count {
                self.answer(kind)?;
            }
        }
    }

    fn answer(&mut self, kind: u8) -> io::Result<()> {
        match kind {
            0 => {
                self.line.answer(self.lines);
                self.lines += 1;
                Ok(())
            }
            1 => {
                self.wait_for_bell()?;
                self.far_bell.ring()
            }
            2 => {
                self.socket.read_exact(&mut self.buffer)?;
                self.socket.write_all(&self.buffer)
            }
            _ => {
                let n = self.lines;
                self.lines += 1;
                self.line.wait(n);
                self.copy.take(n, self.copied.bytes_mut());
                self.copy.put(n, self.copied.bytes());
                self.line.hand_back(n);
                Ok(())
            }
        }
    }

    fn wait_for_bell(&self) -> io::Result<()> {
        loop {
            let wake = self.poller.wait(None)?;
            if wake.doorbell {
                return Ok(());
            }
            if wake.socket {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Writes `n` into the first and the last eight bytes, as far as there are some.
pub fn number(message: &mut [u8], n: u64) {
    let bytes = n.to_le_bytes();
    let length = message.len().min(bytes.len());
    let last = message.len() - length;
    message[..length].copy_from_slice(&bytes[..length]);
    message[last..].copy_from_slice(&bytes[..length]);
}

/// Whether [`number`] wrote `n` here.
#[must_use]
pub fn is_numbered(message: &[u8], n: u64) -> bool {
    let bytes = n.to_le_bytes();
    let length = message.len().min(bytes.len());
    let last = message.len() - length;
    message[last..] == bytes[..length] && (last < length || message[..length] == bytes[..length])
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn number_is_found_in_messages_of_every_length_and_no_other_is() {
        for length in 0..40 {
            let mut message = vec![0xEE; length];
            number(&mut message, 0x0123_4567_89AB_CDEF);
            assert!(is_numbered(&message, 0x0123_4567_89AB_CDEF), "{length}");
            assert!(length == 0 || !is_numbered(&message, 7), "{length}");
        }
    }

    #[test]
    fn every_bare_round_trip_comes_back() {
        let (near, far) = UnixStream::pair().unwrap();
        let far = thread::spawn(|| Floor::accept(far)?.serve());
        let mut near = Floor::offer(near).unwrap();
        let all =
            [Bare::Line, Bare::Bell, Bare::Socket(100_000), Bare::Copy(1 << 20), Bare::Copy(9)];
        for bare in all.into_iter().chain([Bare::Line]) {
            let mut count = 0;
            near.round_trips(bare, 7, || count += 1).unwrap();
            assert_eq!(count, 7, "{bare:?}");
        }
        let mut heard = Vec::new();
        near.paced(7, 1_000, |took| heard.push(took)).unwrap();
        assert_eq!(heard.len(), 7);
        near.round_trips(Bare::Line, 3, || ()).unwrap();
        drop(near);
        far.join().unwrap().unwrap();
    }

    #[test]
    fn shared_clock_goes_on_with_the_process_own() {
        let (begun, own) = (now_ns(), std::time::Instant::now());
        thread::sleep(std::time::Duration::from_millis(2));
        let (passed, own) = (now_ns() - begun, own.elapsed().as_nanos() as u64);
        assert!(passed >= 2_000_000 && passed <= own + 1_000_000, "{passed} {own}");
    }
}
