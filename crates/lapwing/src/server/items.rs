//! The two directions of a stream as its handler sees them: items of bytes in, items of bytes out.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use lapwing_proto::{Credit, Flags, Header, Kind, Status};

use super::connection::{Out, Ticket, over_quota};
use super::running::{CallEnd, CallState, Taken};
use crate::link::{SendError, call_header};
use crate::payload::Payload;
use crate::waking::let_others_run;

/// The longest item, in bytes, whose buffer is kept for the next one.
const KEPT_ITEM_BYTES: usize = 128 * 1024;

/// Where a handler sends the items of its reply.
#[derive(Debug)]
pub struct ItemSink {
    out: Arc<Out>,
    state: Arc<CallState>,
    /// Room for the header, then the item.
    frame: Vec<u8>,
    /// Items that went out.
    sent: u64,
    /// Its place among those who wait for room, until it is dropped or has sent.
    ticket: Option<Ticket>,
}

/// Why an item was not taken without waiting.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TrySendError {
    /// The reader is behind, or the connection has no room: send again later.
    #[error("the stream has no room for another item now")]
    Full,
    /// The stream is over.
    #[error(transparent)]
    Ended(#[from] Status),
}

impl Drop for ItemSink {
    fn drop(&mut self) {
        self.out.withdraw(&mut self.ticket);
    }
}

impl ItemSink {
    pub(crate) fn new(out: Arc<Out>, state: Arc<CallState>) -> ItemSink {
        ItemSink { out, state, frame: Vec::new(), sent: 0, ticket: None }
    }

    /// The number of the item that is sent next. The first is 1.
    pub(crate) fn number(&self) -> u64 {
        self.sent + 1
    }

    /// Sends one item, waiting while the reader is behind.
    ///
    /// # Errors
    ///
    /// `Cancelled` or `DeadlineExceeded` when the call is over, `ResourceExhausted` for an item that is
    /// longer than the connection takes. Pass it on with `?`.
    ///
    /// # Cancel safety
    ///
    /// The item was sent whole or not at all; it was not when this never completed.
    pub async fn send_bytes(&mut self, item: &[u8]) -> Result<(), Status> {
        self.send_with(|frame| {
            frame.extend_from_slice(item);
            Ok(())
        })
        .await
    }

    /// Sends one item if there is room for it now.
    ///
    /// # Errors
    ///
    /// [`TrySendError::Full`] when there is none, and as [`ItemSink::send_bytes`].
    pub fn try_send_bytes(&mut self, item: &[u8]) -> Result<(), TrySendError> {
        self.try_send_with(|frame| {
            frame.extend_from_slice(item);
            Ok(())
        })
    }

    pub(crate) async fn send_with(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), Status>,
    ) -> Result<(), Status> {
        self.begin(write)?;
        // A handler that never has to wait lets others run, too.
        let_others_run().await;
        poll_fn(|cx| self.poll_send(Some(cx))).await
    }

    pub(crate) fn try_send_with(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), Status>,
    ) -> Result<(), TrySendError> {
        self.begin(write)?;
        match self.poll_send(None) {
            Poll::Ready(sent) => Ok(sent?),
            Poll::Pending => Err(TrySendError::Full),
        }
    }

    fn begin(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), Status>,
    ) -> Result<(), Status> {
        self.frame.clear();
        self.frame.resize(Header::BYTES, 0);
        write(&mut self.frame)
    }

    fn poll_send(&mut self, cx: Option<&Context<'_>>) -> Poll<Result<(), Status>> {
        let waker = cx.map(|cx| cx.waker());
        let bytes = self.frame.len() - Header::BYTES;
        match self.state.take_credit(bytes, waker) {
            Ok(true) => {}
            Ok(false) => return Poll::Pending,
            Err(end) => return Poll::Ready(Err(end.status())),
        }
        let (out, about) = (&self.out, &self.state.about);
        let header = call_header(Flags::RESPONSE | Flags::STREAM, about.kind, about.id);
        let sent = out.send_item(&self.state, header, &mut self.frame, waker, &mut self.ticket);
        let error = match sent {
            Ok(false) => {
                let end = self.state.has_ended().unwrap_or(CallEnd::Over);
                return Poll::Ready(Err(end.status()));
            }
            Ok(true) => {
                out.withdraw(&mut self.ticket);
                if self.frame.capacity() > KEPT_ITEM_BYTES {
                    self.frame = Vec::new();
                }
                self.sent += 1;
                return Poll::Ready(Ok(()));
            }
            Err(error) => error,
        };
        self.state.refund(bytes);
        match error {
            SendError::Full => Poll::Pending,
            SendError::TooLarge(max) => {
                let number = self.number();
                let message =
                    format!("item {number} has {bytes} bytes, and this connection takes {max}");
                Poll::Ready(Err(Status::resource_exhausted(message)))
            }
            SendError::OverQuota => Poll::Ready(Err(over_quota())),
            SendError::Broken(_) => Poll::Ready(Err(CallEnd::Disconnected.status())),
        }
    }
}

/// Where a handler takes the items of its request from.
#[derive(Debug)]
pub struct ItemSource {
    out: Arc<Out>,
    state: Arc<CallState>,
    /// Items that were taken.
    taken: u64,
    /// Credit that found no room yet.
    owed: Credit,
    /// As an [`ItemSink`]'s, for that credit.
    ticket: Option<Ticket>,
}

impl Drop for ItemSource {
    fn drop(&mut self) {
        self.out.withdraw(&mut self.ticket);
    }
}

impl ItemSource {
    pub(crate) fn new(out: Arc<Out>, state: Arc<CallState>) -> ItemSource {
        ItemSource { out, state, taken: 0, owed: Credit::default(), ticket: None }
    }

    /// The number of the item that was taken last. The first is 1.
    pub(crate) fn number(&self) -> u64 {
        self.taken
    }

    /// The next item, or `None` after the caller's last.
    ///
    /// # Errors
    ///
    /// `Cancelled` or `DeadlineExceeded` when the call is over.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: an item is taken only when this completes.
    pub async fn next_bytes(&mut self) -> Result<Option<Payload>, Status> {
        let_others_run().await;
        poll_fn(|cx| self.poll_next(cx)).await
    }

    pub(crate) fn poll_next(&mut self, cx: &Context<'_>) -> Poll<Result<Option<Payload>, Status>> {
        self.pay(cx);
        match self.state.take_item(cx.waker()) {
            Taken::Item(item, credit) => {
                self.taken += 1;
                if let Some(Credit { items, bytes }) = credit {
                    self.owed.items += items;
                    self.owed.bytes += bytes;
                    self.pay(cx);
                }
                Poll::Ready(Ok(Some(item)))
            }
            Taken::End => Poll::Ready(Ok(None)),
            Taken::Ended(end) => Poll::Ready(Err(end.status())),
            Taken::Nothing => Poll::Pending,
        }
    }

    /// Gives credit back; without room for that this task is woken when there is.
    fn pay(&mut self, cx: &Context<'_>) {
        if self.owed == Credit::default() {
            return;
        }
        let out = &self.out;
        let mut frame = vec![0; Header::BYTES];
        frame.extend_from_slice(&self.owed.encode());
        let header = call_header(Flags::NONE, Kind::CREDIT, self.state.about.id);
        let waker = Some(cx.waker());
        let sent = out.send_item(&self.state, header, &mut frame, waker, &mut self.ticket);
        if !matches!(sent, Err(SendError::Full)) {
            out.withdraw(&mut self.ticket);
            self.owed = Credit::default();
        }
    }
}
