//! Handlers and what they are given: inline ones, run where the frame is read, and async ones.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use lapwing_proto::{Code, Header, Kind, Status, TraceContext};
use lapwing_shm::Buffer;

use super::connection::{Out, too_large};
use super::items::{ItemSink, ItemSource};
use super::running::{About, CallEnd, CallState, Cancellation};
use crate::bulk::Reserved;
use crate::client::lock;
use crate::clock;
use crate::codec::Form;
use crate::link::{CarriedMore, Metadata};
use crate::payload::Payload;
use crate::peer::PeerCredentials;
use crate::spans::CallSpan;

/// The connection a call came in on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// This server's number for the connection.
    pub connection_id: u64,
    /// Who is at the other end, as the kernel attests.
    pub credentials: PeerCredentials,
    /// The client's program, as it says.
    pub program: String,
}

/// The call that a handler serves. One word; clones are of the same call.
#[derive(Clone)]
pub struct Call {
    pub(crate) state: Arc<CallState>,
}

impl Call {
    /// The kind it was sent to.
    #[must_use]
    pub fn kind(&self) -> u16 {
        self.state.about.kind.number()
    }

    /// Who calls.
    #[must_use]
    pub fn caller(&self) -> &Arc<Caller> {
        &self.state.about.caller
    }

    /// When the caller gives up, or up to 10 ms after; with more than a second to go when the call began also up to 10 ms
    /// before. `None` is never. The call is ended on time, whatever this says. Calls that the handler makes from its own task inherit it.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        clock::instant(self.state.about.deadline_ns)
    }

    /// Tells what the handler starts elsewhere that the call is over.
    #[must_use]
    pub fn cancellation(&self) -> Cancellation {
        Cancellation(Arc::clone(&self.state))
    }

    /// The caller's pairs, 8 KiB at most.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.state.about.metadata
    }

    /// The trace that the call belongs to, as its caller sent it. Calls that the handler makes from its own task
    /// belong to it, too; where the call's span is recorded, they carry that span's id as their parent's.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        self.state.about.trace
    }

    /// The longest reply or item the connection takes, in bytes.
    #[must_use]
    pub fn reply_bytes_max(&self) -> usize {
        self.state.about.reply_bytes_max
    }

    pub(crate) fn form(&self) -> Form {
        self.state.about.form
    }

    fn out(&self) -> Option<Arc<Out>> {
        self.state.about.out.upgrade()
    }

    /// Where the items of the reply go, in a method whose shape has them.
    pub(crate) fn sink(&self) -> Option<ItemSink> {
        let out = self.out().filter(|_| self.state.about.has_items)?;
        Some(ItemSink::new(out, Arc::clone(&self.state)))
    }

    /// Where the items of the request come from, in a method whose shape has them.
    pub(crate) fn source(&self) -> Option<ItemSource> {
        let out = self.out().filter(|_| self.state.about.has_items)?;
        Some(ItemSource::new(out, Arc::clone(&self.state)))
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("kind", &self.state.about.kind)
            .field("id", &self.state.about.id)
            .field("caller", self.caller())
            .field("deadline", &self.deadline())
            .finish_non_exhaustive()
    }
}

/// A request as an async handler of bytes gets it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Request {
    /// Its payload.
    pub payload: Payload,
    /// The call that it begins.
    pub call: Call,
}

impl Request {
    /// A request that came over no connection, to try a handler with: it has no deadline and is never cancelled.
    #[must_use]
    pub fn new(kind: u16, payload: Payload, caller: Arc<Caller>) -> Request {
        let max = lapwing_proto::limits::MESSAGE_BYTES as usize;
        let mut about = About::new(caller, Weak::new(), max);
        if let Some(kind) = Kind::new(kind) {
            about.kind = kind;
        }
        Request { payload, call: Call { state: Arc::new(CallState::new(about)) } }
    }

    /// The same with these pairs, as its caller might send them.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Request {
        self.change(|about| about.metadata = metadata);
        self
    }

    /// The same with this deadline. Nobody ends it then, as it came over no connection.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Request {
        self.change(|about| about.deadline_ns = clock::end(clock::until(deadline)));
        self
    }

    /// The same as part of this trace.
    #[must_use]
    pub fn with_trace(mut self, trace: TraceContext) -> Request {
        self.change(|about| about.trace = Some(trace));
        self
    }

    /// Changes what it says of itself; of one whose call is known elsewhere, that of a copy.
    fn change(&mut self, change: impl FnOnce(&mut About)) {
        let state = &mut self.call.state;
        if Arc::get_mut(state).is_none() {
            *state = Arc::new(CallState::new(state.about.clone()));
        }
        change(Arc::get_mut(state).expect("nobody else has it").renew());
    }

    /// Room for a reply of `bytes` bytes, to be written in place: a long one is not copied when it is sent on
    /// this call's connection. Waits while the server's bulk memory for the connection is used up.
    ///
    /// # Errors
    ///
    /// `ResourceExhausted` for more than the connection takes, or more than its user may have.
    ///
    /// # Cancel safety
    ///
    /// Dropped, nothing is taken.
    pub async fn reserve(&self, bytes: usize) -> Result<Reserved, Status> {
        let About { out, reply_bytes_max, .. } = &self.call.state.about;
        match out.upgrade() {
            Some(out) => out.reserve(bytes).await,
            None if bytes > *reply_bytes_max => Err(too_large(bytes, *reply_bytes_max)),
            // One that came over none, to try a handler with.
            None if Weak::ptr_eq(out, &Weak::new()) => Ok(Reserved::new(None, bytes)),
            None => Err(CallEnd::Disconnected.status()),
        }
    }
}

/// Replies beyond this, in bytes, are put together in memory that goes back to the system afterwards.
pub(crate) const LONG_BYTES: usize = 64 * 1024;

/// Where an inline handler writes its reply. Writing appends; nothing written is an empty reply.
#[derive(Debug)]
pub struct Reply<'a> {
    /// Header's room, then the reply so far.
    frame: &'a mut Vec<u8>,
    /// A long reply, instead.
    long: &'a mut Option<Buffer>,
}

impl<'a> Reply<'a> {
    pub(crate) fn begin(frame: &'a mut Vec<u8>, long: &'a mut Option<Buffer>) -> Reply<'a> {
        frame.clear();
        frame.extend_from_slice(&[0; Header::BYTES]);
        *long = None;
        Reply { frame, long }
    }

    /// Appends bytes.
    #[inline]
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.frame.len() + bytes.len() > LONG_BYTES || self.long.is_some() {
            return self.extend_long(bytes);
        }
        self.frame.extend_from_slice(bytes);
    }

    #[cold]
    fn extend_long(&mut self, bytes: &[u8]) {
        let long = self.long.get_or_insert_default();
        if self.frame.len() > Header::BYTES {
            long.extend(&self.frame[Header::BYTES..]);
            self.frame.truncate(Header::BYTES);
        }
        long.extend(bytes);
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        let long = self.long.as_ref().map_or(0, |long| long.bytes().len());
        self.frame.len() - Header::BYTES + long
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl io::Write for Reply<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type InlineFn = dyn Fn(&Caller, &[u8], &mut Reply<'_>) -> Result<(), Status> + Send + Sync;

/// An inline handler of a typed method: takes the request, appends the reply.
pub(crate) type TypedFn =
    dyn Fn(&InlineCall<'_>, Payload, &mut Vec<u8>) -> Result<(), Status> + Send + Sync;

/// The call that an inline handler of a typed method serves.
#[derive(Clone, Copy, Debug)]
pub struct InlineCall<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) left_ns: Option<u64>,
    pub(crate) more: Option<&'a CarriedMore>,
}

impl<'a> InlineCall<'a> {
    /// Who calls.
    #[must_use]
    pub fn caller(&self) -> &'a Caller {
        self.caller
    }

    /// The time that the caller gave, as of when the handler began. Calls that the handler makes itself inherit what is
    /// left of it; one that makes calls had better be async.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.left_ns.map(Duration::from_nanos)
    }

    /// The caller's pairs, 8 KiB at most.
    #[must_use]
    pub fn metadata(&self) -> &'a Metadata {
        const NONE: &Metadata = &Metadata::NONE;
        self.more.map_or(NONE, |more| &more.metadata)
    }

    /// The trace that the call belongs to. Calls that the handler makes itself belong to it, too.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        self.more.and_then(|more| more.trace)
    }

    #[inline]
    pub(crate) fn form(&self) -> Form {
        self.more.map_or(Form::Own, |more| more.form)
    }
}

/// What a route does.
pub(crate) enum Handler {
    Inline(Box<InlineFn>),
    Typed(Box<TypedFn>),
    Async(Box<dyn AsyncHandler>),
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Handler::Inline(_) => "Inline",
            Handler::Typed(_) => "Typed",
            Handler::Async(_) => "Async",
        })
    }
}

/// A handler panicked: its caller gets `Internal`, the connection goes on.
#[derive(Debug)]
pub(crate) struct Panicked;

/// Drops what a panic left, which may panic in turn, and what that leaves.
#[cold]
fn panicked(mut payload: Box<dyn Any + Send>) -> Panicked {
    for _ in 0..PAYLOADS {
        match catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            Ok(()) => return Panicked,
            Err(next) => payload = next,
        }
    }
    // One that goes on and on is better leaked.
    std::mem::forget(payload);
    Panicked
}

/// Panics of panics' payloads that are looked after.
const PAYLOADS: u32 = 8;

/// Runs an inline handler.
#[inline]
pub(crate) fn run_inline(
    handler: &InlineFn,
    caller: &Caller,
    payload: &[u8],
    frame: &mut Vec<u8>,
    long: &mut Option<Buffer>,
) -> Result<Result<(), Status>, Panicked> {
    let mut reply = Reply::begin(frame, long);
    // What a panicking handler leaves behind is the reply alone, which is thrown away.
    catch_unwind(AssertUnwindSafe(|| handler(caller, payload, &mut reply))).map_err(panicked)
}

/// Runs an inline handler of a typed method.
#[inline]
pub(crate) fn run_typed(
    handler: &TypedFn,
    call: &InlineCall<'_>,
    payload: Payload,
    frame: &mut Vec<u8>,
) -> Result<Result<(), Status>, Panicked> {
    frame.clear();
    frame.extend_from_slice(&[0; Header::BYTES]);
    // As above.
    catch_unwind(AssertUnwindSafe(|| handler(call, payload, frame))).map_err(panicked)
}

/// Makes running calls of one async handler.
pub(crate) trait AsyncHandler: Send + Sync {
    /// A place for a call of a connection: one that was given back, or a fresh one.
    fn place(&self, of: &Origin) -> Box<dyn Running>;

    /// Takes the place of a call that is over, for the next one.
    fn give_back(&self, running: Box<dyn Running>);
}

/// Where calls come from.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) caller: Arc<Caller>,
    pub(crate) out: Weak<Out>,
    /// The longest reply, in bytes.
    pub(crate) reply_bytes_max: usize,
}

impl About {
    fn origin(&self) -> Origin {
        let (caller, out) = (Arc::clone(&self.caller), Weak::clone(&self.out));
        Origin { caller, out, reply_bytes_max: self.reply_bytes_max }
    }
}

impl Origin {
    fn state(&self) -> Arc<CallState> {
        let (caller, out) = (Arc::clone(&self.caller), Weak::clone(&self.out));
        Arc::new(CallState::new(About::new(caller, out, self.reply_bytes_max)))
    }
}

/// A call of an async handler in progress. It can be polled until it is ready.
pub(crate) trait Running: Send {
    /// Makes the place that of the next call, and gives what is to be said about that.
    fn renew(&mut self, of: &Origin) -> &mut About;

    /// Begins that call in the place of the future.
    fn set(&mut self, payload: Payload, span: Option<Box<CallSpan>>) -> Result<(), Panicked>;

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Result<Payload, Status>, Panicked>>;

    /// Drops the future and keeps its place.
    fn clear(&mut self) -> Result<(), Panicked>;

    /// What the call shares with its connection and its handler.
    fn state(&self) -> &Arc<CallState>;
}

/// Places of finished calls that a handler keeps.
const PLACES: usize = 64;

/// An async fn as a handler. The places of its futures are reused, so that a call allocates nothing
/// once there have been as many at a time.
pub(crate) struct AsyncFn<F> {
    handler: Arc<F>,
    places: Mutex<Vec<Box<dyn Running>>>,
}

impl<F> AsyncFn<F> {
    pub(crate) fn new(handler: F) -> AsyncFn<F> {
        AsyncFn { handler: Arc::new(handler), places: Mutex::default() }
    }
}

impl<F, Fut, T> AsyncHandler for AsyncFn<F>
where
    F: Fn(Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, Status>> + Send + 'static,
    T: Into<Payload>,
{
    fn place(&self, of: &Origin) -> Box<dyn Running> {
        let kept = lock(&self.places).pop();
        kept.unwrap_or_else(|| {
            Box::new(Place {
                handler: Arc::clone(&self.handler),
                future: Box::pin(None),
                state: of.state(),
                span: None,
            })
        })
    }

    fn give_back(&self, running: Box<dyn Running>) {
        let mut places = lock(&self.places);
        if places.len() < PLACES {
            places.push(running);
        }
    }
}

/// Room for one future of a handler.
struct Place<F, Fut> {
    handler: Arc<F>,
    future: Pin<Box<Option<Fut>>>,
    state: Arc<CallState>,
    span: Option<Box<CallSpan>>,
}

impl<F, Fut> Drop for Place<F, Fut> {
    /// A call whose task is dropped has ended with its connection; of one that was over before, nobody looks.
    fn drop(&mut self) {
        self.state.end(CallEnd::Disconnected);
    }
}

/// What a handler's end is called in its span.
pub(super) fn served_code<T>(ended: &Result<Result<T, Status>, Panicked>) -> Code {
    match ended {
        Ok(Ok(_)) => Code::Ok,
        Ok(Err(status)) => status.code,
        Err(Panicked) => Code::Internal,
    }
}

impl<F, Fut, T> Running for Place<F, Fut>
where
    F: Fn(Request) -> Fut + Send + Sync,
    Fut: Future<Output = Result<T, Status>> + Send,
    T: Into<Payload>,
{
    fn renew(&mut self, of: &Origin) -> &mut About {
        // What an earlier call of this place left elsewhere may still hold that call's state.
        if Arc::strong_count(&self.state) > 1 || Arc::weak_count(&self.state) > 0 {
            self.state = of.state();
        }
        let about = Arc::get_mut(&mut self.state).expect("nobody else has it").renew();
        // One that was given back may be another connection's.
        if !Weak::ptr_eq(&about.out, &of.out) {
            about.caller = Arc::clone(&of.caller);
            about.out = Weak::clone(&of.out);
            about.reply_bytes_max = of.reply_bytes_max;
        }
        about
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Result<Payload, Status>, Panicked>> {
        let Place { future, span, .. } = self;
        let entered = span.as_deref().map(CallSpan::enter);
        let polled = catch_unwind(AssertUnwindSafe(|| match future.as_mut().as_pin_mut() {
            Some(future) => future.poll(cx).map(|ended| ended.map(Into::into)),
            None => Poll::Ready(Err(Status::internal("the call was polled after its end"))),
        }));
        drop(entered);
        let polled = match polled {
            Ok(polled) => polled.map(Ok),
            Err(payload) => Poll::Ready(Err(panicked(payload))),
        };
        if let (Some(span), Poll::Ready(ended)) = (span, &polled) {
            span.end(served_code(ended));
        }
        polled
    }

    fn set(&mut self, payload: Payload, made: Option<Box<CallSpan>>) -> Result<(), Panicked> {
        let Place { handler, future, state, span } = self;
        let request = Request { payload, call: Call { state: Arc::clone(state) } };
        *span = made;
        // The handler's own code, up to its first await, is foreign, as is the drop of an old future.
        let entered = span.as_deref().map(CallSpan::enter);
        let set = catch_unwind(AssertUnwindSafe(|| future.as_mut().set(Some(handler(request)))));
        drop(entered);
        if let (Some(span), Err(_)) = (&span, &set) {
            span.end(Code::Internal);
        }
        set.map_err(panicked)
    }

    fn clear(&mut self) -> Result<(), Panicked> {
        let Place { future, state, span, .. } = self;
        // Dropped before its end.
        if let Some(span) = span {
            span.end(state.has_ended().map_or(Code::Cancelled, CallEnd::code));
        }
        // Foreign, too.
        let entered = span.as_deref().map(CallSpan::enter);
        let cleared = catch_unwind(AssertUnwindSafe(|| future.as_mut().set(None)));
        drop(entered);
        if let (Some(span), Err(_)) = (&span, &cleared) {
            span.end(Code::Internal);
        }
        *span = None;
        // What the handler started elsewhere sees that nobody waits for it any more.
        if Arc::strong_count(state) > 1 {
            state.end(CallEnd::Over);
        }
        // The next call may be long in coming.
        if !state.about.metadata.is_empty() {
            match Arc::get_mut(state) {
                Some(state) => state.about.metadata = Metadata::NONE,
                None => *state = state.about.origin().state(),
            }
        }
        cleared.map_err(panicked)
    }

    fn state(&self) -> &Arc<CallState> {
        &self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_keeps_nothing_of_a_call_whose_state_is_held_elsewhere() {
        let of = CallState::alone().about.origin();
        let mut place = AsyncFn::new(|_: Request| async { Ok(Payload::empty()) }).place(&of);
        for is_held in [false, true] {
            place.renew(&of).metadata = Metadata::from([("key", "value")]);
            place.set(Payload::empty(), None).unwrap();
            let held = is_held.then(|| Arc::clone(place.state()));
            place.clear().unwrap();
            assert!(place.state().about.metadata.is_empty(), "{is_held}");
            if let Some(held) = held {
                assert_eq!(held.about.metadata.get("key"), Some(&b"value"[..]));
                assert_eq!(held.has_ended(), Some(CallEnd::Over));
            }
        }
    }
}
