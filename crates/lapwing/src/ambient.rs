//! What a handler's own calls inherit from the call it serves: the time that is left, and the trace.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;

use lapwing_proto::TraceContext;

use crate::clock;
use crate::spans::CallSpan;

thread_local! {
    /// The deadline of the call whose handler this thread runs, in nanoseconds of the clock.
    static DEADLINE_NS: Cell<u64> = const { Cell::new(clock::NEVER) };

    /// Whether there is a trace of that call.
    static IS_TRACED: Cell<bool> = const { Cell::new(false) };

    /// That trace. Apart, as few have one.
    static TRACE: RefCell<Option<Arc<TraceContext>>> = const { RefCell::new(None) };
}

/// What calls made here inherit.
// Two words: what is larger is moved through memory.
#[derive(Clone, Debug)]
pub(crate) struct Ambient {
    /// In nanoseconds of the clock.
    pub(crate) deadline_ns: u64,
    trace: Option<Arc<TraceContext>>,
}

impl Ambient {
    const NONE: Ambient = Ambient { deadline_ns: clock::NEVER, trace: None };

    #[inline]
    pub(crate) fn new(deadline_ns: u64, trace: Option<TraceContext>) -> Ambient {
        Ambient { deadline_ns, trace: trace.map(Arc::new) }
    }

    /// That of the task that runs: empty if it serves no call, or one that has none.
    #[inline]
    pub(crate) fn here() -> Ambient {
        // A thread that is ending serves nothing.
        let trace = || TRACE.try_with(|trace| trace.borrow().clone()).ok().flatten();
        Ambient { deadline_ns: DEADLINE_NS.get(), trace: is_traced().then(trace).flatten() }
    }

    /// Whether there is any.
    #[inline]
    pub(crate) fn is_here() -> bool {
        is_traced() || DEADLINE_NS.get() != clock::NEVER
    }

    #[inline]
    pub(crate) fn trace(&self) -> Option<TraceContext> {
        self.trace.as_deref().copied()
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.deadline_ns == clock::NEVER && self.trace.is_none()
    }

    /// The same in the span of the call that is served, if there is one: calls made there have it as their parent.
    #[inline]
    pub(crate) fn within(self, span: Option<&CallSpan>) -> Ambient {
        match span.and_then(CallSpan::context) {
            None => self,
            Some(own) => Ambient::new(self.deadline_ns, Some(own)),
        }
    }

    #[inline]
    pub(crate) fn scope<T>(&self, run: impl FnOnce() -> T) -> T {
        // Once in the code, whichever it is: it is the handler.
        let _outer = (!self.is_empty()).then(|| Outer::new(self));
        run()
    }

    /// For what serves calls, as long as the guard lives: where that is within another's handler, on its thread, they
    /// inherit nothing of it.
    #[must_use]
    #[inline]
    pub(crate) fn apart() -> Option<Outer> {
        Ambient::is_here().then(|| Outer::new(&Ambient::NONE))
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

#[inline]
fn is_traced() -> bool {
    IS_TRACED.get()
}

/// The trace from here on; what was there before.
#[cold]
fn replace_trace(trace: Option<Arc<TraceContext>>) -> Option<Arc<TraceContext>> {
    IS_TRACED.set(trace.is_some());
    TRACE.try_with(|kept| kept.replace(trace)).ok().flatten()
}

/// What was there before a scope, and is there again after it.
pub(crate) struct Outer {
    deadline_ns: u64,
    /// `None`: it was not touched.
    trace: Option<Option<Arc<TraceContext>>>,
}

impl Outer {
    #[inline]
    fn new(inner: &Ambient) -> Outer {
        let touched = inner.trace.is_some() || is_traced();
        let trace = touched.then(|| replace_trace(inner.trace.clone()));
        Outer { deadline_ns: DEADLINE_NS.replace(inner.deadline_ns), trace }
    }
}

impl Drop for Outer {
    #[inline]
    fn drop(&mut self) {
        DEADLINE_NS.set(self.deadline_ns);
        if let Some(trace) = self.trace.take() {
            replace_trace(trace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_run_apart_inherits_nothing_of_what_is_around_it_and_leaves_it() {
        let trace = TraceContext { trace_id: [1; 16], parent_id: [2; 8], flags: 0 };
        for outer in [Ambient::new(7, None), Ambient::new(clock::NEVER, Some(trace))] {
            outer.scope(|| {
                let apart = Ambient::apart();
                assert!(!Ambient::is_here());
                drop(apart);
                let here = Ambient::here();
                assert_eq!((here.deadline_ns, here.trace()), (outer.deadline_ns, outer.trace()));
            });
            assert!(!Ambient::is_here());
        }
    }
}
