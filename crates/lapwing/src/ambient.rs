//! What a handler's own calls inherit from the call it serves: the time that is left, and the trace.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;

use lapwing_proto::TraceContext;

use crate::clock;
use crate::spans::CallSpan;

thread_local! {
    /// The deadline of the call whose handler this thread runs, in nanoseconds of the clock.
    static DEADLINE_NS: Cell<u64> = const { Cell::new(clock::NEVER) };

    /// The trace of that call. Apart, as few have one.
    static TRACE: Cell<Option<TraceContext>> = const { Cell::new(None) };
}

/// What calls made here inherit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ambient {
    /// In nanoseconds of the clock.
    pub(crate) deadline_ns: u64,
    pub(crate) trace: Option<TraceContext>,
}

impl Ambient {
    const NONE: Ambient = Ambient { deadline_ns: clock::NEVER, trace: None };

    /// That of the task that runs: empty if it serves no call, or one that has none.
    #[inline]
    pub(crate) fn here() -> Ambient {
        // A thread that is ending serves nothing.
        let deadline_ns = DEADLINE_NS.try_with(Cell::get).unwrap_or(clock::NEVER);
        Ambient { deadline_ns, trace: TRACE.try_with(Cell::get).unwrap_or(None) }
    }

    /// Whether there is any.
    #[inline]
    pub(crate) fn is_here() -> bool {
        !Ambient::here().is_empty()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.deadline_ns == clock::NEVER && self.trace.is_none()
    }

    /// The same in the span of the call that is served, if there is one: calls made there have it as their parent.
    #[inline]
    pub(crate) fn within(self, span: Option<&CallSpan>) -> Ambient {
        let own = span.and_then(CallSpan::context);
        Ambient { trace: own.or(self.trace), ..self }
    }

    #[inline]
    pub(crate) fn scope<T>(self, run: impl FnOnce() -> T) -> T {
        // Once in the code, whichever it is: it is the handler.
        let _outer = (!self.is_empty()).then(|| Outer::new(self));
        run()
    }

    /// For what serves calls, as long as the guard lives: where that is within another's handler, on its thread, they
    /// inherit nothing of it.
    #[must_use]
    #[inline]
    pub(crate) fn apart() -> Option<Outer> {
        Ambient::is_here().then(|| Outer::new(Ambient::NONE))
    }

    pub(crate) async fn around<F: Future>(self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            let _outer = Ambient::apart();
            self.scope(|| future.as_mut().poll(cx))
        })
        .await
    }
}

/// What was there before a scope, and is there again after it.
pub(crate) struct Outer {
    deadline_ns: u64,
    /// `None`: it was not touched.
    trace: Option<Option<TraceContext>>,
}

impl Outer {
    #[inline]
    fn new(inner: Ambient) -> Outer {
        let touched = inner.trace.is_some() || TRACE.get().is_some();
        let trace = touched.then(|| TRACE.replace(inner.trace));
        Outer { deadline_ns: DEADLINE_NS.replace(inner.deadline_ns), trace }
    }
}

impl Drop for Outer {
    #[inline]
    fn drop(&mut self) {
        DEADLINE_NS.set(self.deadline_ns);
        if let Some(trace) = self.trace {
            TRACE.set(trace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_run_apart_inherits_nothing_of_what_is_around_it_and_leaves_it() {
        let trace = TraceContext { trace_id: [1; 16], parent_id: [2; 8], flags: 0 };
        for outer in [
            Ambient { deadline_ns: 7, trace: None },
            Ambient { deadline_ns: clock::NEVER, trace: Some(trace) },
        ] {
            outer.scope(|| {
                let apart = Ambient::apart();
                assert!(!Ambient::is_here());
                drop(apart);
                let here = Ambient::here();
                assert_eq!((here.deadline_ns, here.trace), (outer.deadline_ns, outer.trace));
            });
            assert!(!Ambient::is_here());
        }
    }
}
