//! What the machine itself costs between two processes: the floors that latencies are compared with.
//!
//! The costs of these machines move by the minute, so a latency means something only beside a floor taken
//! in the same run. One process calls [`Floor::offer`], the other [`Floor::accept`] and [`Floor::serve`], on
//! the two ends of a connected socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

pub use lapwing_shm::sys::pin_to_core;
use lapwing_shm::{Doorbell, Poller, Ring};

use lapwing_shm::floor::LineFloor;

use crate::platform;

/// The bare things that can be sent to and fro.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bare {
    /// One cache line, both sides looking all the time.
    Line,
    /// An eventfd each way, both sides asleep in `epoll_wait`.
    Bell,
    /// This many bytes over the Unix socket, both sides blocking in `read`. At most 65 536.
    Socket(u32),
}

/// One end of the floors.
#[derive(Debug)]
pub struct Floor {
    line: LineFloor,
    /// Watched by `poller`; kept open.
    _bell: Doorbell,
    far_bell: Doorbell,
    poller: Poller,
    socket: UnixStream,
    buffer: Vec<u8>,
    /// Line round trips so far.
    lines: u64,
}

/// The longest message of [`Bare::Socket`], in bytes.
const SOCKET_BYTES: u32 = 65_536;

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
        let (bell, far_bell) = (Doorbell::create()?, Doorbell::create()?);
        let fds = [page.as_fd(), far_bell.as_fd(), bell.as_fd()];
        platform::send_with_descriptors(&socket, &[0], &fds)?;
        Floor::new(line, bell, far_bell, socket)
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
        let foreign = |_| io::Error::other("the floors take a page and two doorbells");
        let [page, bell, far_bell] = <[OwnedFd; 3]>::try_from(fds).map_err(foreign)?;
        let import = |fd| Doorbell::import(fd).map_err(io::Error::other);
        Floor::new(LineFloor::open(page)?, import(bell)?, import(far_bell)?, socket)
    }

    fn new(
        line: LineFloor,
        bell: Doorbell,
        far_bell: Doorbell,
        socket: UnixStream,
    ) -> io::Result<Floor> {
        socket.set_nonblocking(false)?;
        let poller = Poller::new(Some(&bell), socket.as_fd())?;
        // The doorbell's first edge is its count of 1.
        poller.wait(Some(std::time::Duration::ZERO))?;
        Ok(Floor { line, _bell: bell, far_bell, poller, socket, buffer: Vec::new(), lines: 0 })
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
            Bare::Socket(length) => (2, length.min(SOCKET_BYTES)),
        };
        let mut command = vec![kind];
        command.extend_from_slice(&length.to_le_bytes());
        command.extend_from_slice(&count.to_le_bytes());
        self.socket.write_all(&command)?;
        self.buffer.resize(length as usize, 0);
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
            }
            each();
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
            let length = u32::from_le_bytes([l0, l1, l2, l3]).min(SOCKET_BYTES);
            self.buffer.resize(length as usize, 0);
            for _ in 0..u64::from_le_bytes(count) {
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
            _ => {
                self.socket.read_exact(&mut self.buffer)?;
                self.socket.write_all(&self.buffer)
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
