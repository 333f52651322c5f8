//! Spans of calls, for `tracing`: `lapwing.call` where a call is made, `lapwing.serve` where it is served.
//!
//! Their target is [`TARGET`] and their level DEBUG. While nobody listens at that level a call costs one relaxed
//! load more for each span, and nothing is made or stored. They never hold payloads, texts of errors or values of
//! metadata.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, Hasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};

use lapwing_proto::{Code, Header, Kind, TraceContext};
use tracing::Span;
use tracing::field::{Empty, display};
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing::span::Entered;

use crate::client::Travel;
use crate::error::CallError;
use crate::link::{CarriedMore, Metadata};
use crate::server::Caller;

/// What filters know these spans by.
const TARGET: &str = "lapwing::calls";

/// Whether anybody may listen; whether somebody does, the span itself tells.
#[inline(always)]
pub(crate) fn are_wanted() -> bool {
    STATIC_MAX_LEVEL >= LevelFilter::DEBUG && LevelFilter::current() >= LevelFilter::DEBUG
}

/// The span of one call, until it has ended. A call that is dropped before it has an end was cancelled.
#[derive(Debug)]
pub(crate) struct CallSpan {
    span: Span,
    /// What calls made within it carry, if the call belongs to a trace.
    context: Option<TraceContext>,
    ended: AtomicBool,
}

impl CallSpan {
    fn new(span: Span, context: Option<TraceContext>) -> Option<Box<CallSpan>> {
        let ended = AtomicBool::new(false);
        (!span.is_disabled()).then(|| Box::new(CallSpan { span, context, ended }))
    }

    pub(crate) fn enter(&self) -> Entered<'_> {
        self.span.enter()
    }

    pub(crate) fn context(&self) -> Option<TraceContext> {
        self.context
    }

    /// Says how the call ended, unless that is known.
    pub(crate) fn end(&self, code: Code) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.span.record("code", code.name());
        }
    }
}

impl Drop for CallSpan {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The span of a call that this side serves, if anybody wants it.
#[inline(always)]
pub(crate) fn serving(
    method: &str,
    caller: &Caller,
    header: &Header,
    more: Option<&CarriedMore>,
    left_ns: Option<u64>,
) -> Option<Box<CallSpan>> {
    if are_wanted() { begin_serving(method, caller, header, more, left_ns) } else { None }
}

#[cold]
fn begin_serving(
    method: &str,
    caller: &Caller,
    header: &Header,
    more: Option<&CarriedMore>,
    left_ns: Option<u64>,
) -> Option<Box<CallSpan>> {
    let span = tracing::debug_span!(
        target: TARGET,
        parent: None,
        "lapwing.serve",
        method,
        connection = caller.connection_id,
        call = header.id.get(),
        remaining_us = Empty,
        trace_id = Empty,
        parent_id = Empty,
        span_id = Empty,
        metadata = Empty,
        code = Empty,
    );
    if let Some(left_ns) = left_ns {
        span.record("remaining_us", left_ns / 1_000);
    }
    let Some(more) = more else {
        return CallSpan::new(span, None);
    };
    record_metadata(&span, &more.metadata);
    let context = more.trace.filter(TraceContext::is_valid).map(|trace| {
        record_trace(&span, &trace);
        let own = TraceContext { parent_id: span_id(), ..trace };
        span.record("span_id", display(Hex(&own.parent_id)));
        own
    });
    CallSpan::new(span, context)
}

/// The span of a call that this side makes, if anybody wants it. Its method's name is empty where it is not
/// known.
#[inline(always)]
pub(crate) fn calling(
    kind: Kind,
    method: &'static str,
    connection: u64,
    travel: Option<&Travel<'_>>,
) -> Option<Box<CallSpan>> {
    if are_wanted() { begin_calling(kind, method, connection, travel) } else { None }
}

#[cold]
fn begin_calling(
    kind: Kind,
    method: &'static str,
    connection: u64,
    travel: Option<&Travel<'_>>,
) -> Option<Box<CallSpan>> {
    if !kind.is_application() {
        return None;
    }
    let span = tracing::debug_span!(
        target: TARGET,
        "lapwing.call",
        method = (!method.is_empty()).then_some(method),
        kind = %kind,
        connection,
        trace_id = Empty,
        parent_id = Empty,
        metadata = Empty,
        code = Empty,
    );
    if let Some(travel) = travel {
        record_metadata(&span, travel.metadata);
        if let Some(trace) = travel.trace.filter(TraceContext::is_valid) {
            record_trace(&span, &trace);
        }
    }
    CallSpan::new(span, None)
}

fn record_trace(span: &Span, trace: &TraceContext) {
    span.record("trace_id", display(Hex(&trace.trace_id)));
    span.record("parent_id", display(Hex(&trace.parent_id)));
}

fn record_metadata(span: &Span, metadata: &Metadata) {
    if !metadata.is_empty() {
        // Its `Debug` has the keys alone.
        span.record("metadata", tracing::field::debug(metadata));
    }
}

/// Runs the work of a call within its span, and says how it ended.
pub(crate) async fn observed<T>(
    span: Box<CallSpan>,
    mut work: Pin<&mut impl Future<Output = Result<T, CallError>>>,
) -> Result<T, CallError> {
    let done = poll_fn(|cx| {
        let _entered = span.enter();
        work.as_mut().poll(cx)
    })
    .await;
    span.end(code_of(&done));
    done
}

/// As [`observed`], of work that blocks.
#[inline]
pub(crate) fn observe<T>(
    span: Option<Box<CallSpan>>,
    work: impl FnOnce() -> Result<T, CallError>,
) -> Result<T, CallError> {
    let Some(span) = span else { return work() };
    let entered = span.enter();
    let done = work();
    drop(entered);
    span.end(code_of(&done));
    done
}

/// The code that says best how a call ended.
pub(crate) fn code_of<T>(done: &Result<T, CallError>) -> Code {
    match done {
        Ok(_) => Code::Ok,
        Err(CallError::Status(status)) => status.code,
        Err(CallError::DeadlineExceeded) => Code::DeadlineExceeded,
        Err(CallError::Disconnected { .. }) => Code::Unavailable,
        Err(CallError::Full | CallError::TooLarge { .. }) => Code::ResourceExhausted,
        Err(CallError::BadKind(_) | CallError::BadMetadata(_)) => Code::InvalidArgument,
        Err(CallError::NoJson) => Code::Unimplemented,
        Err(CallError::StreamEnded | CallError::Codec { .. } | CallError::Protocol(_)) => {
            Code::Internal
        }
    }
}

/// Bytes in hexadecimal.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An id for a span: random, and not all zeros.
fn span_id() -> [u8; 8] {
    loop {
        // Each state has random keys of its own.
        let id = RandomState::new().build_hasher().finish();
        if id != 0 {
            return id.to_be_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn span_ids_are_not_repeated() {
        let ids: HashSet<_> = (0..10_000).map(|_| span_id()).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(!ids.contains(&[0; 8]));
    }

    #[test]
    fn hexadecimal_has_two_digits_a_byte() {
        assert_eq!(Hex(&[0, 0x0f, 0xa0]).to_string(), "000fa0");
    }
}
