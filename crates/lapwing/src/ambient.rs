//! What a handler's own calls inherit from the call it serves: the time that is left, and the trace.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::Instant;

use lapwing_proto::TraceContext;

thread_local! {
    /// That of the call whose handler this thread polls.
    static AMBIENT: Cell<Ambient> = const { Cell::new(Ambient::NONE) };
}

/// What calls made here inherit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ambient {
    pub(crate) deadline: Option<Instant>,
    pub(crate) trace: Option<TraceContext>,
}

impl Ambient {
    const NONE: Ambient = Ambient { deadline: None, trace: None };

    /// That of the task that runs: empty if it serves no call, or one that has none.
    #[inline]
    pub(crate) fn here() -> Ambient {
        // A thread that is ending serves nothing.
        AMBIENT.try_with(Cell::get).unwrap_or(Ambient::NONE)
    }

    /// Whether there is any.
    #[inline]
    pub(crate) fn is_here() -> bool {
        AMBIENT.try_with(|ambient| !ambient.get().is_empty()).unwrap_or(false)
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.deadline.is_none() && self.trace.is_none()
    }

    #[inline]
    pub(crate) fn scope<T>(self, run: impl FnOnce() -> T) -> T {
        if self.is_empty() {
            return run();
        }
        let _outer = Outer(AMBIENT.replace(self));
        run()
    }

    pub(crate) async fn around<F: Future>(self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| self.scope(|| future.as_mut().poll(cx))).await
    }
}

/// What was there before a scope, and is there again after it.
struct Outer(Ambient);

impl Drop for Outer {
    #[inline]
    fn drop(&mut self) {
        AMBIENT.set(self.0);
    }
}
