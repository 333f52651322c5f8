//! What a sleeping tokio task is woken by: its doorbell and its socket.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use lapwing_shm::Doorbell;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::coop;

/// A connection's doorbell and socket in the runtime's poller, both edge-triggered.
#[derive(Debug)]
pub(crate) struct Bells {
    doorbell: Option<AsyncFd<Shared<Doorbell>>>,
    socket: AsyncFd<Shared<UnixStream>>,
}

/// Something with a descriptor that others hold, too. What it holds is never taken out or replaced, so
/// its descriptor stays open and the same for as long as this lives.
#[derive(Debug)]
pub(crate) struct Shared<T>(Arc<T>);

impl<T: AsRawFd> AsRawFd for Shared<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Registers a descriptor with the current runtime.
#[expect(
    deprecated,
    reason = "the safe constructor is deprecated because a type may lie about its descriptor; this \
              crate forbids unsafe, and Shared keeps what the unsafe one asks for"
)]
pub(crate) fn watch<T: AsRawFd>(
    shared: &Arc<T>,
    interest: Interest,
) -> io::Result<AsyncFd<Shared<T>>> {
    AsyncFd::with_interest(Shared(Arc::clone(shared)), interest)
}

/// What has something new.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Woken {
    Doorbell,
    /// `ended`: nothing will come any more; what came before may still lie there.
    Socket {
        ended: bool,
    },
}

impl Bells {
    /// Registers both with the runtime.
    pub(crate) fn new(
        socket: &Arc<UnixStream>,
        doorbell: Option<&Arc<Doorbell>>,
    ) -> io::Result<Bells> {
        let doorbell = doorbell.map(|bell| watch(bell, Interest::READABLE)).transpose()?;
        let interest = if doorbell.is_some() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let socket = watch(socket, interest)?;
        Ok(Bells { doorbell, socket })
    }

    /// Sleeps until one of them has something new. The caller has looked
    /// at everything before, or readiness that came meanwhile is reported at once.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: readiness is cleared only when this completes.
    pub(crate) async fn wait(&self, writable: bool) -> io::Result<Woken> {
        poll_fn(|cx| {
            if let Some(doorbell) = &self.doorbell
                && let Poll::Ready(ready) = doorbell.poll_read_ready(cx)
            {
                // Never read: the next ring is a new edge.
                ready?.clear_ready();
                return Poll::Ready(Ok(Woken::Doorbell));
            }
            if let Poll::Ready(ready) = self.socket.poll_read_ready(cx) {
                let mut ready = ready?;
                let ended = ready.ready().is_read_closed();
                ready.clear_ready();
                return Poll::Ready(Ok(Woken::Socket { ended }));
            }
            if writable && let Poll::Ready(ready) = self.socket.poll_write_ready(cx) {
                ready?.clear_ready();
                return Poll::Ready(Ok(Woken::Socket { ended: false }));
            }
            Poll::Pending
        })
        .await
    }
}

/// Waits until then; for ever without a time.
pub(crate) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Goes to the back of the runtime's queue. Unlike tokio's own yield this does not poll for I/O each
/// time, which is a system call.
pub(crate) async fn yield_to_others() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Takes one unit of the task's budget, so that a loop of calls lets others run. Unlike tokio's own way of that
/// the runtime does not poll for I/O each time, which is a system call.
pub(crate) async fn let_others_run() {
    if !coop::has_budget_remaining() {
        yield_to_others().await;
    }
    coop::consume_budget().await;
}
