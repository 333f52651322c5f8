//! What `lapwing` asks of the system beyond `std` and `lapwing-shm`: peer credentials, sockets with
//! file descriptors, modes and locks. The one module of this crate that a port replaces.

use std::fs::{self, File, Metadata};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sockopt,
};

use crate::peer::PeerCredentials;

/// The longest path a Unix socket can have, in bytes (`sun_path` less its ending zero).
pub(crate) const SOCKET_PATH_BYTES: usize = 107;

/// File descriptors a control message may carry before it counts as truncated. Two are expected;
/// the rest of the room is there to see surplus ones and close them.
const DESCRIPTORS_SEEN: usize = 4;

/// Connections the kernel queues before `connect` waits.
const BACKLOG: i32 = 1024;

pub(crate) fn peer_credentials(socket: &UnixStream) -> io::Result<PeerCredentials> {
    let found = sockopt::socket_peercred(socket)?;
    Ok(PeerCredentials {
        uid: found.uid.as_raw(),
        gid: found.gid.as_raw(),
        pid: found.pid.as_raw_nonzero().get(),
    })
}

/// The user this process acts as.
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Connects without waiting: `WouldBlock` while the server has not accepted the connections before.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Binds and listens, with the socket file readable and writable by its owner alone from its first
/// instant: Linux gives the file the mode of the unbound socket, less the umask, so no other thread's
/// umask is touched.
pub(crate) fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Opens (or makes, mode 0600) a lock file without following a symbolic link.
pub(crate) fn open_lock_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Takes the advisory lock; `false` when another process holds it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(other) => Err(other.into()),
    }
}

/// The process that holds this lock, where the system says it.
pub(crate) fn holder_of_lock(lock: &Metadata) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(lock.dev()), rustix::fs::minor(lock.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", lock.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // "1: FLOCK  ADVISORY  WRITE 708 fd:01:1310 0 EOF"
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", process, found, ..] = words[..] else { return None };
        process.parse().ok().filter(|_| found == file)
    })
}

/// Whether a connection failed because the socket there is of another type than a stream's.
pub(crate) fn is_other_socket_type(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error())
}

/// Sends `bytes` with `descriptors` attached to the first byte, without waiting and without SIGPIPE.
pub(crate) fn send_with_descriptors(
    socket: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_SEEN))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many file descriptors for one message"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?)
}

/// Nanoseconds of the monotonic clock, which is one for all processes.
#[inline]
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Neither is ever negative.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The longest time from one tick to the next: that of a kernel with 100 a second.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// As [`monotonic_ns`], at the last tick: less than [`TICK`] ago.
#[inline]
pub(crate) fn monotonic_tick_ns() -> u64 {
    let tick = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    tick.tv_sec as u64 * 1_000_000_000 + tick.tv_nsec as u64
}

/// Whether that process of this machine reads the same monotonic clock: whether it is in the same time namespace
/// (`time_namespaces(7)`). One that this process may not look at does not.
pub(crate) fn shares_clock(pid: i32) -> bool {
    match rustix::fs::stat("/proc/self/ns/time") {
        Ok(own) => rustix::fs::stat(format!("/proc/{pid}/ns/time"))
            .is_ok_and(|other| (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino)),
        // A kernel without such namespaces has one clock.
        Err(Errno::NOENT) => rustix::fs::stat("/proc/self/ns").is_ok(),
        Err(_) => false,
    }
}

/// What one receive brought.
pub(crate) struct Received {
    pub(crate) bytes: usize,
    /// The control message had more descriptors than there was room for; the kernel closed those.
    pub(crate) truncated: bool,
}

/// Receives without waiting; descriptors are close-on-exec and appended to `descriptors`.
pub(crate) fn receive_with_descriptors(
    socket: &UnixStream,
    into: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_SEEN))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    Ok(Received { bytes: got.bytes, truncated: got.flags.contains(ReturnFlags::CTRUNC) })
}

/// Sends without waiting and without SIGPIPE.
pub(crate) fn send(socket: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// Receives without waiting. Descriptors that come along are closed by the kernel.
pub(crate) fn receive(socket: &UnixStream, into: &mut [u8]) -> io::Result<usize> {
    let (bytes, _) = rustix::net::recv(socket, into, RecvFlags::DONTWAIT)?;
    Ok(bytes)
}

/// Waits until `socket` can be read, for at most `limit`; `false` when the time is over.
pub(crate) fn wait_readable(socket: &UnixStream, limit: std::time::Duration) -> io::Result<bool> {
    let poller = lapwing_shm::Poller::new(None, socket.as_fd())?;
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        if poller.wait(Some(left))?.socket {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}
