//! Linux: memfd with seals, eventfd, epoll.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll};
use rustix::fs::{MemfdFlags, SealFlags, Timespec};
use rustix::io::Errno;
use rustix::thread::CpuSet;

use crate::wakeup::Ring;

/// The seals that make a segment safe to map: its length is fixed, nobody can write to it by a new
/// mapping or by `write`, and no seal can be added or taken away.
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

pub(crate) fn memory_file(bytes: usize) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // NOEXEC_SEAL (Linux 6.3) says that the file is never run; older kernels refuse the flag.
    let file = match rustix::fs::memfd_create("lapwing-segment", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("lapwing-segment", flags)?,
        other => other?,
    };
    rustix::fs::ftruncate(&file, bytes as u64)?;
    Ok(file)
}

/// Why a file could not be sealed, or a peer's file is not fit to be mapped.
#[derive(Debug)]
pub(crate) enum SealFault {
    /// The kernel holds pages of the file (transparent huge pages for shared memory do that).
    Busy,
    /// Not a memory file, or one that cannot have seals.
    NotMemoryFile,
    /// These seals are missing, as bits.
    Missing(u32),
    /// The file has another length, in bytes.
    Length(u64),
    /// The kernel said no.
    Io(io::Error),
}

pub(crate) fn seal(file: BorrowedFd<'_>) -> Result<(), SealFault> {
    match rustix::fs::fcntl_add_seals(file, SEALS) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(SealFault::Busy),
        Err(other) => Err(SealFault::Io(other.into())),
    }
}

pub(crate) fn check_sealed(file: BorrowedFd<'_>, bytes: usize) -> Result<(), SealFault> {
    // Only shared-memory files have seals; any other kind of file answers EINVAL.
    let seals = match rustix::fs::fcntl_get_seals(file) {
        Ok(seals) => seals,
        Err(Errno::INVAL) => return Err(SealFault::NotMemoryFile),
        Err(other) => return Err(SealFault::Io(other.into())),
    };
    if !seals.contains(SEALS) {
        return Err(SealFault::Missing(SEALS.difference(seals).bits()));
    }
    // After the seals: the length cannot change any more.
    let found = rustix::fs::fstat(file).map_err(|error| SealFault::Io(error.into()))?.st_size;
    match u64::try_from(found) {
        Ok(found) if found == bytes as u64 => Ok(()),
        Ok(found) => Err(SealFault::Length(found)),
        Err(_) => Err(SealFault::Length(0)),
    }
}

/// An eventfd that wakes whoever watches it edge-triggered.
///
/// Its counter starts at 1 and never changes: a ring writes 0, which adds nothing but still wakes
/// edge-triggered watchers (`eventfd_write` in the kernel's `fs/eventfd.c` wakes on every write, and
/// a counter above zero is readable). So nobody needs to read it and ringing cannot saturate it.
///
/// A peer shares the open file and can clear its `O_NONBLOCK` and raise its counter. A write of 0 waits
/// only while the counter is `u64::MAX`, which no write can reach, but a completion of the kernel's own
/// (Linux AIO, io_uring) can. So a ring first asks `poll`: a counter from `u64::MAX - 1` on is not writable,
/// and its connection ends. What is left is a peer that brings both about between the two system calls
/// (`docs/threat-model.md`).
#[derive(Debug)]
pub struct Doorbell(OwnedFd);

/// Why a file descriptor from a peer is no doorbell.
#[derive(Debug, thiserror::Error)]
pub enum DoorbellError {
    /// It is something else than an eventfd.
    #[error("the doorbell must be an eventfd, but it is {0}")]
    NotEventfd(String),
    /// The kernel said no.
    #[error("the doorbell could not be examined: {0} (is /proc mounted?)")]
    Io(#[from] io::Error),
}

impl Doorbell {
    /// A new doorbell, close-on-exec.
    ///
    /// # Errors
    ///
    /// When this process or the system has no file descriptor left.
    pub fn create() -> io::Result<Doorbell> {
        Ok(Doorbell(eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Takes a doorbell that a peer sent.
    ///
    /// # Errors
    ///
    /// [`DoorbellError::NotEventfd`] when it is something else.
    pub fn import(fd: OwnedFd) -> Result<Doorbell, DoorbellError> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let target = fs::read_link(path)?;
        if target.as_os_str() == "anon_inode:[eventfd]" {
            Ok(Doorbell(fd))
        } else {
            Err(DoorbellError::NotEventfd(kind_of(&target.to_string_lossy())))
        }
    }
}

/// What a `/proc/self/fd` link points to, without telling a path of the peer's.
fn kind_of(target: &str) -> String {
    match target.split_once(':') {
        Some((kind, _)) if !kind.contains('/') => format!("a {kind}"),
        _ => "a file".to_owned(),
    }
}

impl Ring for Doorbell {
    type Error = io::Error;

    fn ring(&self) -> io::Result<()> {
        let mut asked = [PollFd::new(&self.0, PollFlags::OUT)];
        poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if !asked[0].revents().contains(PollFlags::OUT) {
            return Err(io::Error::other("the peer has filled its doorbell's counter"));
        }
        match rustix::io::write(&self.0, &0u64.to_ne_bytes()) {
            // EAGAIN: the counter is at its very end, so the watcher has its edge already.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(other) => Err(other.into()),
        }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// What ended a sleep.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Wake {
    /// The doorbell rang.
    pub doorbell: bool,
    /// The socket has bytes, or its peer is gone.
    pub socket: bool,
    /// The socket takes bytes again (only when asked for).
    pub writable: bool,
}

const DOORBELL: u64 = 0;
const SOCKET: u64 = 1;

/// Sleeps on a doorbell, edge-triggered, and a socket, level-triggered, at once.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// Watches `socket` for reading and end, and `doorbell` if there is one.
    ///
    /// # Errors
    ///
    /// When this process or the system has no file descriptor or watch left.
    pub fn new(doorbell: Option<&Doorbell>, socket: BorrowedFd<'_>) -> io::Result<Poller> {
        let poller = Poller { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? };
        if let Some(doorbell) = doorbell {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&poller.epoll, doorbell, epoll::EventData::new_u64(DOORBELL), flags)?;
        }
        epoll::add(&poller.epoll, socket, epoll::EventData::new_u64(SOCKET), interest(false))?;
        Ok(poller)
    }

    /// Also wakes when `socket` takes bytes again, or no longer does.
    ///
    /// # Errors
    ///
    /// As the kernel says; not for a socket that was given to [`Poller::new`].
    pub fn want_writable(&self, socket: BorrowedFd<'_>, wanted: bool) -> io::Result<()> {
        let data = epoll::EventData::new_u64(SOCKET);
        Ok(epoll::modify(&self.epoll, socket, data, interest(wanted))?)
    }

    /// Sleeps until one of them has something, or for `limit`. A signal ends the sleep early with
    /// nothing said.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<Wake> {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 2];
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let (ready, _) = match epoll::wait(&self.epoll, &mut events, limit.as_ref()) {
            Ok(ready) => ready,
            Err(Errno::INTR) => return Ok(Wake::default()),
            Err(other) => return Err(other.into()),
        };
        let mut wake = Wake::default();
        for event in ready {
            let (data, flags) = (event.data, event.flags);
            let readable = epoll::EventFlags::IN
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::HUP
                | epoll::EventFlags::ERR;
            wake.doorbell |= data.u64() == DOORBELL;
            wake.socket |= data.u64() == SOCKET && flags.intersects(readable);
            wake.writable |= data.u64() == SOCKET && flags.contains(epoll::EventFlags::OUT);
        }
        Ok(wake)
    }
}

fn interest(writable: bool) -> epoll::EventFlags {
    let read = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
    if writable { read | epoll::EventFlags::OUT } else { read }
}

/// Cores that this process may run on, or, when it was pinned to one, cores that are online: a
/// pinned process has its peer elsewhere.
#[must_use]
pub fn online_cores() -> usize {
    let allowed = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count() as usize);
    if allowed > 1 {
        return allowed;
    }
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    count_ranges(&online).max(1)
}

/// Counts the numbers in a list such as `0-3,8,10-11`.
fn count_ranges(list: &str) -> usize {
    let count = |range: &str| -> Option<usize> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first).map(|more| more + 1)
    };
    list.trim().split(',').filter_map(count).sum()
}

/// Keeps the calling thread on one core, for measurements.
///
/// # Errors
///
/// When there is no such core or this thread may not run there.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut set = CpuSet::new();
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_counted() {
        assert_eq!(count_ranges("0-1\n"), 2);
        assert_eq!(count_ranges("0-3,8,10-11"), 7);
        assert_eq!(count_ranges(""), 0);
        assert_eq!(count_ranges("3-1"), 0);
    }

    type Pair = (std::os::unix::net::UnixStream, std::os::unix::net::UnixStream);

    fn watched() -> (Doorbell, Poller, Pair) {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let doorbell = Doorbell::create().unwrap();
        let poller = Poller::new(Some(&doorbell), near.as_fd()).unwrap();
        (doorbell, poller, (near, far))
    }

    #[test]
    fn doorbell_wakes_once_per_ring_and_is_never_read() {
        let (doorbell, poller, _sockets) = watched();
        let short = Some(Duration::from_millis(1));
        assert!(poller.wait(short).unwrap().doorbell, "the count of 1 is the first edge");
        assert_eq!(poller.wait(short).unwrap(), Wake::default());
        for _ in 0..3 {
            doorbell.ring().unwrap();
            assert!(poller.wait(Some(Duration::from_secs(5))).unwrap().doorbell);
            assert_eq!(poller.wait(short).unwrap(), Wake::default());
        }
    }

    #[test]
    fn doorbell_filled_and_made_blocking_by_peer_refuses_without_blocking() {
        let (doorbell, poller, _sockets) = watched();
        poller.wait(Some(Duration::from_millis(1))).unwrap();
        // What a hostile holder of the descriptor can do: raise the counter, clear O_NONBLOCK.
        rustix::io::write(&doorbell, &(u64::MAX - 3).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(&doorbell, rustix::fs::OFlags::empty()).unwrap();
        poller.wait(Some(Duration::from_millis(1))).unwrap();
        doorbell.ring().unwrap();
        assert!(poller.wait(Some(Duration::from_secs(5))).unwrap().doorbell);
        rustix::io::write(&doorbell, &1u64.to_ne_bytes()).unwrap();
        assert!(doorbell.ring().is_err(), "one completion away from blocking a write");
    }

    #[test]
    fn import_refuses_what_is_no_eventfd() {
        let file = memory_file(4096).unwrap();
        assert!(matches!(Doorbell::import(file), Err(DoorbellError::NotEventfd(_))));
        let (socket, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let error = Doorbell::import(socket.into()).unwrap_err();
        assert_eq!(error.to_string(), "the doorbell must be an eventfd, but it is a socket");
        let doorbell = Doorbell::create().unwrap();
        assert!(Doorbell::import(doorbell.0.try_clone().unwrap()).is_ok());
    }

    #[test]
    fn poller_sees_the_socket_end() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let poller = Poller::new(None, near.as_fd()).unwrap();
        assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap(), Wake::default());
        drop(far);
        assert!(poller.wait(Some(Duration::from_secs(5))).unwrap().socket);
    }
}
