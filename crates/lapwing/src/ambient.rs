//! What a handler's own calls inherit from the call it serves: the time that is left, and the trace.

use std::future::Future;
use std::time::Instant;

use lapwing_proto::TraceContext;

tokio::task_local! {
    static AMBIENT: Ambient;
}

/// What calls made here inherit.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Ambient {
    pub(crate) deadline: Option<Instant>,
    pub(crate) trace: Option<TraceContext>,
}

impl Ambient {
    /// That of the task that runs, if it serves a call that has any.
    #[inline]
    pub(crate) fn here() -> Option<Ambient> {
        AMBIENT.try_with(|ambient| *ambient).ok()
    }

    /// Whether there is any; cheaper than [`Ambient::here`].
    #[inline]
    pub(crate) fn is_here() -> bool {
        AMBIENT.try_with(|_| ()).is_ok()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.deadline.is_none() && self.trace.is_none()
    }

    pub(crate) fn scope<T>(self, run: impl FnOnce() -> T) -> T {
        if self.is_empty() { run() } else { AMBIENT.sync_scope(self, run) }
    }

    pub(crate) async fn around<F: Future>(self, future: F) -> F::Output {
        if self.is_empty() { future.await } else { AMBIENT.scope(self, future).await }
    }
}
