//! A call that an async handler serves: what its connection, its handler and its streams share.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use lapwing_proto::{
    Code, Credit, CreditError, CreditGate, Ended, Kind, MessageId, ReceiveCredit, Status,
    TraceContext,
};

use super::connection::Out;
use super::handler::Caller;
use crate::client::lock;
use crate::clock;
use crate::codec::Form;
use crate::link::Metadata;
use crate::payload::Payload;

/// Why a call ends before its handler does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CallEnd {
    /// The caller gave it up.
    Cancelled,
    /// Its time is over.
    DeadlineExceeded,
    /// Its connection is over.
    Disconnected,
    /// The handler has ended; only what outlives it, as a thread that it started, sees this.
    Over,
}

impl CallEnd {
    pub(crate) fn code(self) -> Code {
        match self {
            CallEnd::DeadlineExceeded => Code::DeadlineExceeded,
            CallEnd::Cancelled | CallEnd::Disconnected | CallEnd::Over => Code::Cancelled,
        }
    }

    pub(crate) fn status(self) -> Status {
        match self {
            CallEnd::Cancelled => Status::cancelled("the caller gave the call up"),
            CallEnd::DeadlineExceeded => {
                Status::deadline_exceeded("the call's time was over before it ended")
            }
            CallEnd::Disconnected => Status::cancelled("the connection has ended"),
            CallEnd::Over => Status::cancelled("the call has ended"),
        }
    }
}

/// What a call came with. It stays as it is while the call lasts, and in its place: handlers are given the call's
/// [`CallState`], which is one word.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) kind: Kind,
    pub(crate) id: MessageId,
    pub(crate) caller: Arc<Caller>,
    /// Weak: a handler may keep its call for longer than the connection lasts. Dangling for a request that came over
    /// none.
    pub(crate) out: Weak<Out>,
    /// The longest reply the connection takes, in bytes.
    pub(crate) reply_bytes_max: usize,
    /// Whether it has items in one direction at least.
    pub(crate) has_items: bool,
    /// When its caller gives up, for the handler to know: see [`clock::deadline_ns`].
    pub(crate) deadline_ns: u64,
    pub(crate) metadata: Metadata,
    pub(crate) trace: Option<TraceContext>,
    pub(crate) form: Form,
}

impl About {
    /// That of a call of nothing.
    pub(crate) fn new(caller: Arc<Caller>, out: Weak<Out>, reply_bytes_max: usize) -> About {
        About {
            kind: Kind::PING,
            id: MessageId::CONNECTION,
            caller,
            out,
            reply_bytes_max,
            has_items: false,
            deadline_ns: clock::NEVER,
            metadata: Metadata::NONE,
            trace: None,
            form: Form::Own,
        }
    }
}

/// One running call. The lock is short: nobody waits or wakes under it.
#[derive(Debug)]
pub(crate) struct CallState {
    pub(crate) about: About,
    inner: Mutex<Inner>,
    /// The call has ended. Set before the lock of the connection's outbox is taken to answer it, so whoever sends an
    /// item under that lock does not send it behind the answer.
    over: AtomicBool,
}

#[derive(Default, Debug)]
struct Inner {
    /// Something of what follows has changed: a call that is over at once leaves it all as it was.
    used: bool,
    end: Option<CallEnd>,
    /// The caller gave the call up after its handler had ended: the reply may still wait for room.
    given_up: Option<CallEnd>,
    /// The call's own task.
    task: Option<Waker>,
    /// Who awaits the end through a [`Cancellation`].
    watchers: Vec<Waker>,
    /// The stream of replies.
    send: CreditGate<Waker>,
    /// The stream of requests: items that have come and were not taken yet.
    receive: ReceiveCredit,
    items: VecDeque<Payload>,
    no_more_items: bool,
    reader: Option<Waker>,
}

/// What a reader of items finds.
pub(crate) enum Taken {
    /// An item, and credit to give back for those taken so far.
    Item(Payload, Option<Credit>),
    /// The caller has sent its last item.
    End,
    Ended(CallEnd),
    /// Nothing yet; the waker is kept.
    Nothing,
}

/// What an arriving item may be.
#[derive(Debug)]
pub(crate) enum ItemFault {
    NoCredit,
    AfterEnd,
}

fn keep(slot: &mut Option<Waker>, waker: &Waker) {
    if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
        *slot = Some(waker.clone());
    }
}

impl CallState {
    pub(crate) fn new(about: About) -> CallState {
        CallState { about, inner: Mutex::default(), over: AtomicBool::new(false) }
    }

    /// Makes it the state of a call that begins, and gives what is to be said about that.
    #[inline]
    pub(crate) fn renew(&mut self) -> &mut About {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if inner.used {
            *inner = Inner::default();
            *self.over.get_mut() = false;
        }
        &mut self.about
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = lock(&self.inner);
        inner.used = true;
        inner
    }

    /// Ends the call for `end`, unless it has ended: its task, its streams and its tokens see it. One whose handler has
    /// ended may still be given up.
    pub(crate) fn end(&self, end: CallEnd) {
        let mut inner = self.lock();
        match inner.end {
            Some(CallEnd::Over) if end != CallEnd::Over => {
                inner.given_up = Some(end);
                let task = inner.task.take();
                drop(inner);
                task.into_iter().for_each(Waker::wake);
                return;
            }
            Some(_) => return,
            None => inner.end = Some(end),
        }
        self.over.store(true, Ordering::Relaxed);
        inner.items.clear();
        let mut woken = std::mem::take(&mut inner.watchers);
        let Inner { task, send, reader, .. } = &mut *inner;
        woken.extend([task.take(), send.end(), reader.take()].into_iter().flatten());
        drop(inner);
        woken.into_iter().for_each(Waker::wake);
    }

    /// How the call ended, if it has; otherwise its task is woken when it does.
    pub(crate) fn poll_end(&self, cx: &Context<'_>) -> Option<CallEnd> {
        let mut inner = self.lock();
        if inner.end.is_none() {
            keep(&mut inner.task, cx.waker());
        }
        inner.end
    }

    /// Whether nobody waits for the reply any more of a call whose handler has ended, and why; otherwise its task is
    /// woken when that is so.
    pub(crate) fn poll_given_up(&self, cx: &Context<'_>) -> Option<CallEnd> {
        let mut inner = self.lock();
        // Given up before its end was said to be the handler's, it is given up, too.
        let given_up = inner.end.filter(|end| *end != CallEnd::Over).or(inner.given_up);
        if given_up.is_none() {
            keep(&mut inner.task, cx.waker());
        }
        given_up
    }

    /// Whether it has ended, under the outbox's lock.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        // Relaxed: that lock orders it.
        self.over.load(Ordering::Relaxed)
    }

    pub(crate) fn has_ended(&self) -> Option<CallEnd> {
        self.lock().end
    }

    fn poll_watch(&self, cx: &Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if inner.end.is_some() {
            return Poll::Ready(());
        }
        if !inner.watchers.iter().any(|known| known.will_wake(cx.waker())) {
            inner.watchers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Takes credit for an item that is about to be sent, before it is: the reader may give it back as soon as
    /// the item is there to be read. Without credit nothing is taken, and the waker is kept.
    pub(crate) fn take_credit(&self, bytes: usize, waker: Option<&Waker>) -> Result<bool, CallEnd> {
        let mut inner = self.lock();
        let wait = |writer: &mut Option<Waker>| {
            if let Some(waker) = waker {
                keep(writer, waker);
            }
        };
        // The gate ends with the call, in `end`.
        inner.send.take(bytes as u32, wait).map_err(|Ended| inner.end.unwrap_or(CallEnd::Over))
    }

    /// The item was not sent after all.
    pub(crate) fn refund(&self, bytes: usize) {
        self.lock().send.refund(bytes as u32);
    }

    /// The caller gives credit back.
    pub(crate) fn grant(&self, credit: Credit) -> Result<(), CreditError> {
        let mut inner = self.lock();
        let writer = inner.send.grant(credit)?;
        drop(inner);
        if let Some(waker) = writer {
            waker.wake();
        }
        Ok(())
    }

    /// An item has come from the caller, its last word if `last`.
    pub(crate) fn arrive(&self, item: Option<Payload>, last: bool) -> Result<(), ItemFault> {
        let mut inner = self.lock();
        if inner.no_more_items {
            return Err(ItemFault::AfterEnd);
        }
        if let Some(item) = item {
            inner.receive.receive(item.len() as u32).map_err(|_| ItemFault::NoCredit)?;
            if inner.end.is_none() {
                inner.items.push_back(item);
            }
        }
        inner.no_more_items = last;
        let reader = inner.reader.take();
        drop(inner);
        if let Some(waker) = reader {
            waker.wake();
        }
        Ok(())
    }

    pub(crate) fn take_item(&self, waker: &Waker) -> Taken {
        let mut inner = self.lock();
        if let Some(end) = inner.end {
            return Taken::Ended(end);
        }
        let Some(item) = inner.items.pop_front() else {
            if inner.no_more_items {
                return Taken::End;
            }
            keep(&mut inner.reader, waker);
            return Taken::Nothing;
        };
        inner.receive.take(item.len() as u32);
        let credit = inner.receive.is_due().then(|| inner.receive.give_back());
        Taken::Item(item, credit)
    }
}

#[cfg(test)]
impl CallState {
    /// That of a call that came over no connection.
    pub(crate) fn alone() -> CallState {
        let credentials = crate::peer::PeerCredentials { uid: 1, gid: 1, pid: 1 };
        let caller = Caller { connection_id: 1, credentials, program: String::new() };
        CallState::new(About::new(Arc::new(caller), Weak::new(), 0))
    }

    /// The accounts of the stream of replies and of the stream of requests, and the lengths of the items that have come
    /// and were not taken.
    pub(crate) fn accounts(&self) -> (lapwing_proto::SendCredit, ReceiveCredit, Vec<u32>) {
        let inner = self.lock();
        let held = inner.items.iter().map(|item| item.len() as u32).collect();
        (inner.send.credit(), inner.receive, held)
    }
}

/// Tells a handler that its call is over: the caller gave it up, its deadline has passed, or its connection
/// has ended. An async handler is dropped at its next await then; this is for what it started elsewhere, as
/// on a thread for blocking work.
#[derive(Clone)]
pub struct Cancellation(pub(crate) Arc<CallState>);

impl Cancellation {
    /// Whether the call is over.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.end().is_some()
    }

    fn end(&self) -> Option<CallEnd> {
        self.0.has_ended()
    }

    /// Waits until the call is over.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again at any time.
    pub async fn cancelled(&self) {
        poll_fn(|cx| self.0.poll_watch(cx)).await;
    }
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancellation").field(&self.end()).finish()
    }
}
