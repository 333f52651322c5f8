//! Calls of typed methods, and streams, of the async client.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use futures_core::Stream;
use lapwing_proto::Kind;
use tokio::time::{Sleep, sleep_until};

use super::core::{Again, Brings, Outgoing, Plain, Start, StartError, Started, Travel, Turn};
use super::options::{CallOptions, WhenFull};
use super::streams::{Item, ItemError};
use super::{InTime, IpcClient, NoTimer, Shared, Until};
use crate::ambient::Ambient;
use crate::clock;
use crate::codec::{Decode, Encode, Form};
use crate::error::{CallError, Part, timed};
use crate::link::{Metadata, Written};
use crate::method::{ClientStream, Duplex, Method, OneWay, ServerStream, Shape, Unary};
use crate::payload::Payload;
use crate::spans::{self, CallSpan, code_of};
use crate::waking::let_others_run;

/// The frame of a request, put together with what travels with it.
#[inline]
pub(crate) fn written<S: Shape, Q, R, C: Encode<Q>>(
    method: Method<S, Q, R, C>,
    request: &Q,
    part: Part,
    travel: Option<&Travel<'_>>,
) -> Result<Written, CallError> {
    let begun = match travel {
        None => Written::begin(false, None, &Metadata::NONE, Form::Own),
        Some(Travel { deadline, trace, metadata, form, .. }) => {
            Written::begin(*deadline != Until::Never, *trace, metadata, *form)
        }
    };
    let mut written = begun.map_err(|error| CallError::BadMetadata(error.to_string()))?;
    let failed = |source| CallError::Codec { method: method.name(), part, source };
    let form = travel.map_or(Form::Own, |travel| travel.form);
    form.encode::<Q, C>(request, written.payload_mut()).map_err(failed)?;
    Ok(written)
}

/// Appends a request.
#[inline(always)]
pub(crate) fn write<Q, R, C: Encode<Q>>(
    method: Unary<Q, R, C>,
    request: &Q,
    into: &mut Vec<u8>,
) -> Result<(), CallError> {
    let failed = |source| CallError::Codec { method: method.name(), part: Part::Request, source };
    C::encode(request, into).map_err(failed)
}

pub(crate) fn kind_of<S: Shape, Q, R, C>(method: Method<S, Q, R, C>) -> Kind {
    Kind::application(method.kind()).expect("a method's number was checked when it was made")
}

pub(crate) fn read<T, C: Decode<T>>(
    method: &'static str,
    part: Part,
    payload: Payload,
    form: Form,
) -> Result<T, CallError> {
    form.decode::<T, C>(payload).map_err(|source| CallError::Codec { method, part, source })
}

impl IpcClient {
    /// Calls a method and waits for its reply.
    ///
    /// # Errors
    ///
    /// [`CallError`]; [`CallError::Status`] is the server's own answer.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its first poll it has sent nothing. Dropped later the call is cancelled: the server
    /// drops its handler at the next await.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lapwing::IpcClient) -> Result<(), lapwing::CallError> {
    /// const LENGTH: lapwing::Unary<String, u64> = lapwing::Unary::new(0x0400, "text.length");
    /// assert_eq!(client.call(LENGTH, &"lapwing".to_owned()).await?, 7);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn call<Q, R, C>(&self, method: Unary<Q, R, C>, request: &Q) -> Result<R, CallError>
    where
        C: Encode<Q> + Decode<R>,
    {
        if Ambient::is_here() || spans::are_wanted() {
            return Box::pin(self.call_with(method, request, &CallOptions::default())).await;
        }
        let mut call = Plain::new(kind_of(method), clock::NEVER);
        write(method, request, call.payload_mut())?;
        let reply = self.call_now::<NoTimer>(&mut call).await?;
        read::<R, C>(method.name(), Part::Reply, reply, Form::Own)
    }

    /// Calls a method with a time limit, metadata or a trace, in JSON, or only if there is room now.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call`], [`CallError::DeadlineExceeded`] when the time is over, and [`CallError::Full`] under
    /// [`CallOptions::only_with_room`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::call`].
    pub async fn call_with<Q, R, C>(
        &self,
        method: Unary<Q, R, C>,
        request: &Q,
        options: &CallOptions,
    ) -> Result<R, CallError>
    where
        C: Encode<Q> + Decode<R>,
    {
        let reply = match options.only_time() {
            Some(limit_ns) if !spans::are_wanted() => {
                let mut call = Plain::new(kind_of(method), limit_ns);
                write(method, request, call.payload_mut())?;
                self.call_now::<InTime>(&mut call).await?
            }
            _ => {
                let travel = options.travel();
                let mut written = written(method, request, Part::Request, travel.as_ref())?;
                let out = Outgoing::written(kind_of(method), &mut written, travel.as_ref());
                self.call_with_travel(out, method.name()).await?
            }
        };
        read::<R, C>(method.name(), Part::Reply, reply, options.form())
    }

    /// Calls a method if there is room for another call now. With options it is [`IpcClient::call_with`] under
    /// [`CallOptions::only_with_room`].
    ///
    /// # Errors
    ///
    /// [`CallError::Full`] when there is none, and as [`IpcClient::call`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::call`].
    pub async fn try_call<Q, R, C>(
        &self,
        method: Unary<Q, R, C>,
        request: &Q,
    ) -> Result<R, CallError>
    where
        C: Encode<Q> + Decode<R>,
    {
        self.call_with(method, request, &CallOptions::default().only_with_room(true)).await
    }

    /// Sends a message that has no reply. Waits while there is no room for it.
    ///
    /// # Errors
    ///
    /// [`CallError`]; that it was sent does not say that the server has read it.
    ///
    /// # Cancel safety
    ///
    /// The message was sent whole or not at all; it was not when this never completed.
    pub async fn send<Q, C: Encode<Q>>(
        &self,
        method: OneWay<Q, C>,
        message: &Q,
    ) -> Result<(), CallError> {
        self.send_when(method, message, WhenFull::Wait).await
    }

    /// Sends a message that has no reply, and says what to do when there is no room for it.
    ///
    /// # Errors
    ///
    /// [`CallError::Full`] under [`WhenFull::Fail`], and as [`IpcClient::send`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::send`].
    pub async fn send_when<Q, C: Encode<Q>>(
        &self,
        method: OneWay<Q, C>,
        message: &Q,
        when_full: WhenFull,
    ) -> Result<(), CallError> {
        self.send_when_with(method, message, &CallOptions::default(), when_full).await
    }

    /// As [`IpcClient::send`], with a time limit to wait for room and to be begun at the server, metadata, a trace, in JSON, or only if there is room
    /// now.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::send`], [`CallError::DeadlineExceeded`] when there was no room in time, and
    /// [`CallError::Full`] under [`CallOptions::only_with_room`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::send`].
    pub async fn send_with<Q, C: Encode<Q>>(
        &self,
        method: OneWay<Q, C>,
        message: &Q,
        options: &CallOptions,
    ) -> Result<(), CallError> {
        self.send_when_with(method, message, options, WhenFull::Wait).await
    }

    /// As [`IpcClient::send_with`], and says what to do when there is no room for the message.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::send_with`], and [`CallError::Full`] under [`WhenFull::Fail`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::send`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: lapwing::IpcClient) -> Result<(), lapwing::CallError> {
    /// use lapwing::{CallOptions, Metadata, OneWay, WhenFull};
    ///
    /// const MOVED: OneWay<(u32, u32)> = OneWay::new(0x0401, "cursor.moved");
    /// // The next one says all that this one does.
    /// let window = CallOptions::default().metadata(Metadata::from([("window", "3")]));
    /// client.send_when_with(MOVED, &(17, 4), &window, WhenFull::DropAndCount).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn send_when_with<Q, C: Encode<Q>>(
        &self,
        method: OneWay<Q, C>,
        message: &Q,
        options: &CallOptions,
        when_full: WhenFull,
    ) -> Result<(), CallError> {
        let travel = options.travel();
        let mut written = written(method, message, Part::Message, travel.as_ref())?;
        let out = Outgoing::written(kind_of(method), &mut written, travel.as_ref());
        self.send_out(out, method.name(), when_full).await
    }

    /// Calls a method that answers with a stream.
    ///
    /// # Errors
    ///
    /// [`CallError`] when the request was not sent; what goes wrong later is an item of the stream.
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::call`].
    pub async fn stream<Q, R, C>(
        &self,
        method: ServerStream<Q, R, C>,
        request: &Q,
    ) -> Result<ItemStream<R, C>, CallError>
    where
        C: Encode<Q>,
    {
        self.stream_with(method, request, &CallOptions::default()).await
    }

    /// As [`IpcClient::stream`], with a time limit for the whole stream, metadata or a trace, in JSON, or only if there is
    /// room for another call now.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::stream`], and [`CallError::Full`] under [`CallOptions::only_with_room`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::call`].
    pub async fn stream_with<Q, R, C>(
        &self,
        method: ServerStream<Q, R, C>,
        request: &Q,
        options: &CallOptions,
    ) -> Result<ItemStream<R, C>, CallError>
    where
        C: Encode<Q>,
    {
        let travel = options.travel();
        let mut written = written(method, request, Part::Request, travel.as_ref())?;
        let out = Outgoing::written(kind_of(method), &mut written, travel.as_ref());
        let call = self.open(out, method.name(), Brings::SERVER_STREAM).await?;
        Ok(ItemStream::new(call, method.name()))
    }

    /// Calls a method that takes a stream and answers once.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::stream_with`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::call`].
    pub async fn upload<Q, R, C>(
        &self,
        method: ClientStream<Q, R, C>,
        options: &CallOptions,
    ) -> Result<Upload<Q, R, C>, CallError> {
        let travel = options.travel();
        let out = Outgoing { travel: travel.as_ref(), ..Outgoing::plain(kind_of(method), &[]) };
        let call = self.open(out, method.name(), Brings::CLIENT_STREAM).await?;
        let sender = ItemSender::new(Arc::new(call), method.name());
        Ok(Upload { sender, types: PhantomData })
    }

    /// Calls a method with a stream in each direction.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::stream_with`].
    ///
    /// # Cancel safety
    ///
    /// As [`IpcClient::call`].
    pub async fn duplex<Q, R, C>(
        &self,
        method: Duplex<Q, R, C>,
        options: &CallOptions,
    ) -> Result<Halves<Q, R, C>, CallError> {
        let travel = options.travel();
        let out = Outgoing { travel: travel.as_ref(), ..Outgoing::plain(kind_of(method), &[]) };
        let call = Arc::new(self.open(out, method.name(), Brings::DUPLEX).await?);
        let sender = ItemSender::new(Arc::clone(&call), method.name());
        Ok((sender, ItemStream::of(call, method.name())))
    }

    async fn open(
        &self,
        mut out: Outgoing<'_>,
        method: &'static str,
        brings: Brings,
    ) -> Result<OpenCall, CallError> {
        let core = &self.shared.core;
        let deadline = out.until().settle();
        let until = Until::from(deadline);
        let (span, form) = (self.span(&out, method), out.form());
        let only_with_room = out.only_with_room();
        let start = |again: &Again| core.start(out.again(again), brings);
        let started = self.start(until, only_with_room, start).await;
        if let (Some(span), Err(_)) = (&span, &started) {
            span.end(code_of(&started));
        }
        let call = started?;
        self.sent();
        Ok(OpenCall { shared: Arc::clone(&self.shared), call, deadline, form, span })
    }
}

/// The two directions of a duplex call: what is sent, and what comes.
pub type Halves<Q, R, C> = (ItemSender<Q, C>, ItemStream<R, C>);

/// A call with a stream. It is given up when it is dropped before its end.
#[derive(Debug)]
struct OpenCall {
    shared: Arc<Shared>,
    call: Started,
    deadline: Option<std::time::Instant>,
    form: Form,
    span: Option<Box<CallSpan>>,
}

impl OpenCall {
    /// How the call ended, for its caller and its span.
    fn ended<T>(&self, how: Result<T, CallError>) -> Result<T, CallError> {
        let how = timed(self.deadline.into(), how);
        if let Some(span) = &self.span {
            span.end(code_of(&how));
        }
        how
    }

    fn give_up(&self) {
        self.shared.core.abandon(self.call.id);
        self.shared.sent();
    }

    fn poll_item(&self, waker: &Waker) -> Poll<Item> {
        match self.shared.core.poll_item(self.call.id, Some(waker)) {
            Some(item) => {
                // It may have given credit back.
                self.shared.sent();
                Poll::Ready(item)
            }
            None => {
                // What is here already costs no turn of the driver's.
                if self.shared.core.deliver_what_is_here()
                    && let Some(item) = self.shared.core.poll_item(self.call.id, Some(waker))
                {
                    return Poll::Ready(item);
                }
                self.shared.kick();
                Poll::Pending
            }
        }
    }

    /// Waits for the call's end, and takes nothing of it.
    fn poll_over(&self, waker: &Waker) -> Poll<()> {
        let is_over = || self.shared.core.is_over(self.call.id, Some(waker));
        if is_over() || self.shared.core.deliver_what_is_here() && is_over() {
            return Poll::Ready(());
        }
        self.shared.kick();
        Poll::Pending
    }

    /// Sends an item, or without one the last word.
    fn poll_send(
        &self,
        cx: &Context<'_>,
        item: Option<&[u8]>,
        turn: &mut Turn<'_>,
    ) -> Poll<Result<(), CallError>> {
        let core = &self.shared.core;
        for _ in 0..2 {
            let sent = match item {
                Some(item) => core.send_item(&self.call, item, Some(cx.waker())),
                None => core.end_items(&self.call),
            };
            match sent {
                Ok(()) => {
                    self.shared.sent();
                    return Poll::Ready(Ok(()));
                }
                Err(ItemError::Behind) => break,
                // Registered first, then tried once more: room that came in between is seen.
                Err(ItemError::Full(room)) => turn.wait_for(room, cx.waker()),
                Err(ItemError::Over | ItemError::Broken(_)) => {
                    return Poll::Ready(Err(CallError::StreamEnded));
                }
                Err(ItemError::Failed(error)) => return Poll::Ready(Err(error)),
            }
        }
        self.shared.kick();
        Poll::Pending
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        // Does nothing for a call that has ended.
        self.give_up();
    }
}

/// The stream that a method answers with: items, and at its end maybe one error. Dropping it before its end
/// cancels the call.
#[derive(Debug)]
#[must_use = "a stream that is dropped is cancelled"]
pub struct ItemStream<T, C> {
    /// `None` after its end.
    call: Option<Arc<OpenCall>>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Items that have come.
    taken: u64,
    method: &'static str,
    types: PhantomData<fn(C) -> T>,
}

impl<T, C> ItemStream<T, C> {
    fn new(call: OpenCall, method: &'static str) -> ItemStream<T, C> {
        ItemStream::of(Arc::new(call), method)
    }

    fn of(call: Arc<OpenCall>, method: &'static str) -> ItemStream<T, C> {
        let timer = call.deadline.map(|at| Box::pin(sleep_until(at.into())));
        ItemStream { call: Some(call), timer, taken: 0, method, types: PhantomData }
    }

    fn end(&mut self) {
        if let Some(call) = self.call.take() {
            call.give_up();
        }
    }

    #[cold]
    fn end_with<I>(&mut self, error: CallError) -> Result<I, CallError> {
        let call = self.call.take().expect("only a stream that has not ended fails");
        let ended = call.ended(Err(error));
        call.give_up();
        ended
    }
}

impl<T, C: Decode<T>> ItemStream<T, C> {
    /// The next item, or `None` after the last.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call`]; nothing follows an error but of one item that could not be read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: an item is taken only when this completes.
    pub async fn next(&mut self) -> Option<Result<T, CallError>> {
        let_others_run().await;
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, CallError>>> {
        let Some(call) = &self.call else {
            return Poll::Ready(None);
        };
        match call.poll_item(cx.waker()) {
            // What has come is no reason to go on past the deadline: there may be no end to it.
            Poll::Ready(Item::Here(item)) => match in_time(call.deadline) {
                Ok(()) => {
                    self.taken += 1;
                    let part = Part::ItemReceived(self.taken);
                    Poll::Ready(Some(read::<T, C>(self.method, part, item, call.form)))
                }
                Err(error) => Poll::Ready(Some(self.end_with(error))),
            },
            Poll::Ready(Item::Over(outcome)) => {
                let ended = call.ended(call.shared.core.conclude(outcome));
                self.call = None;
                Poll::Ready(ended.err().map(Err))
            }
            Poll::Pending => {
                let timer = self.timer.as_mut();
                if timer.is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
                    return Poll::Ready(Some(self.end_with(CallError::DeadlineExceeded)));
                }
                Poll::Pending
            }
        }
    }
}

impl<T, C: Decode<T>> Stream for ItemStream<T, C> {
    type Item = Result<T, CallError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll(cx)
    }
}

impl<T, C> Drop for ItemStream<T, C> {
    fn drop(&mut self) {
        self.end();
    }
}

/// The stream that a method takes. Dropping it before [`ItemSender::finish`] cancels the call.
#[derive(Debug)]
#[must_use = "a sender that is dropped before it is finished cancels its call"]
pub struct ItemSender<T, C> {
    call: Arc<OpenCall>,
    finished: bool,
    /// Items that went out.
    sent: u64,
    method: &'static str,
    types: PhantomData<fn(T) -> C>,
}

impl<T, C> ItemSender<T, C> {
    fn new(call: Arc<OpenCall>, method: &'static str) -> ItemSender<T, C> {
        ItemSender { call, finished: false, sent: 0, method, types: PhantomData }
    }

    /// Says that no item follows. The stream of replies goes on.
    ///
    /// # Errors
    ///
    /// [`CallError`]; a call that has ended meanwhile is none: the stream of replies says how.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it completes the call is cancelled.
    pub async fn finish(mut self) -> Result<(), CallError> {
        self.end().await
    }

    async fn end(&mut self) -> Result<(), CallError> {
        let mut turn = Turn::new(&self.call.shared.core);
        let work = poll_fn(|cx| self.call.poll_send(cx, None, &mut turn));
        let ended = match super::within(self.call.deadline.into(), pin!(work)).await {
            Err(CallError::StreamEnded) => Ok(()),
            ended => ended,
        };
        self.finished = ended.is_ok();
        ended
    }
}

impl<T, C: Encode<T>> ItemSender<T, C> {
    /// Sends one item, waiting while the server is behind.
    ///
    /// # Errors
    ///
    /// [`CallError::StreamEnded`] when the call is over: its reply says how. [`CallError::DeadlineExceeded`] when its
    /// time is.
    ///
    /// # Cancel safety
    ///
    /// The item was sent whole or not at all; it was not when this never completed.
    pub async fn send(&mut self, item: &T) -> Result<(), CallError> {
        let item = self.write(item)?;
        let_others_run().await;
        in_time(self.call.deadline)?;
        let mut turn = Turn::new(&self.call.shared.core);
        let work = poll_fn(|cx| self.call.poll_send(cx, Some(&item), &mut turn));
        let sent = super::within(self.call.deadline.into(), pin!(work)).await;
        ended_in_time(self.call.deadline, sent)?;
        self.sent += 1;
        Ok(())
    }

    /// Sends one item if there is room for it now.
    ///
    /// # Errors
    ///
    /// [`CallError::Full`] when there is none, and as [`ItemSender::send`].
    pub fn try_send(&mut self, item: &T) -> Result<(), CallError> {
        let item = self.write(item)?;
        in_time(self.call.deadline)?;
        let sent = self.call.shared.core.send_item(&self.call.call, &item, None);
        self.call.shared.sent();
        ended_in_time(self.call.deadline, try_sent(sent))?;
        self.sent += 1;
        Ok(())
    }

    fn write(&self, item: &T) -> Result<Payload, CallError> {
        let part = Part::ItemSent(self.sent + 1);
        let failed = |source| CallError::Codec { method: self.method, part, source };
        Payload::write(|bytes| self.call.form.encode::<T, C>(item, bytes).map_err(failed))
    }
}

/// Fails once the deadline has passed. A stream that never waits looks at no timer.
#[inline]
pub(crate) fn in_time(deadline: Option<Instant>) -> Result<(), CallError> {
    match deadline {
        Some(at) if Instant::now() >= at => Err(CallError::DeadlineExceeded),
        _ => Ok(()),
    }
}

/// Of an item of a call whose time is over it is one answer that it did not go for that, whichever side found out first.
#[inline]
pub(crate) fn ended_in_time(
    deadline: Option<Instant>,
    sent: Result<(), CallError>,
) -> Result<(), CallError> {
    match sent {
        Err(CallError::StreamEnded) => in_time(deadline).and(sent),
        sent => sent,
    }
}

/// What an attempt to send without waiting came to.
pub(crate) fn try_sent(sent: Result<(), ItemError>) -> Result<(), CallError> {
    sent.map_err(|error| match error {
        ItemError::Behind | ItemError::Full(_) => CallError::Full,
        ItemError::Over | ItemError::Broken(_) => CallError::StreamEnded,
        ItemError::Failed(error) => error,
    })
}

impl<T, C> Drop for ItemSender<T, C> {
    fn drop(&mut self) {
        if !self.finished {
            self.call.give_up();
        }
    }
}

/// A call that takes a stream and answers once. Dropping it before [`Upload::finish`] cancels it.
#[derive(Debug)]
#[must_use = "an upload that is dropped is cancelled"]
pub struct Upload<T, R, C> {
    sender: ItemSender<T, C>,
    types: PhantomData<fn() -> R>,
}

impl<T, R, C: Encode<T> + Decode<R>> Upload<T, R, C> {
    /// As [`ItemSender::send`].
    ///
    /// # Errors
    ///
    /// [`CallError::StreamEnded`] when the server has answered already: [`Upload::finish`] has its answer.
    ///
    /// # Cancel safety
    ///
    /// As [`ItemSender::send`].
    pub async fn send(&mut self, item: &T) -> Result<(), CallError> {
        self.sender.send(item).await
    }

    /// As [`ItemSender::try_send`].
    ///
    /// # Errors
    ///
    /// As [`ItemSender::try_send`].
    pub fn try_send(&mut self, item: &T) -> Result<(), CallError> {
        self.sender.try_send(item)
    }

    /// Waits until the call has ended: the server has answered, maybe before it had all items, the call's time
    /// is over, or the connection is. [`Upload::finish`] says at once which.
    ///
    /// An item that is sent afterwards goes nowhere, and [`Upload::send`] fails with [`CallError::StreamEnded`] or
    /// [`CallError::DeadlineExceeded`]. Whether the server has read what was sent before, its answer alone can say.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the answer stays for [`Upload::finish`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(
    /// #     client: lapwing::IpcClient,
    /// #     mut lines: tokio::sync::mpsc::Receiver<String>,
    /// # ) -> Result<(), lapwing::CallError> {
    /// use lapwing::{CallError, CallOptions, ClientStream};
    ///
    /// const STORE: ClientStream<String, u64> = ClientStream::new(0x0402, "lines.store");
    /// let mut upload = client.upload(STORE, &CallOptions::default()).await?;
    /// loop {
    ///     let line = tokio::select! {
    ///         line = lines.recv() => line,
    ///         // It has enough, or cannot go on: no need to wait for another line.
    ///         () = upload.answered() => None,
    ///     };
    ///     let Some(line) = line else { break };
    ///     match upload.send(&line).await {
    ///         Err(CallError::StreamEnded) => break,
    ///         sent => sent?,
    ///     }
    /// }
    /// println!("{} lines are stored", upload.finish().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn answered(&mut self) {
        let call = &self.sender.call;
        let over = poll_fn(|cx| call.poll_over(cx.waker()).map(Ok));
        // A time that is over is an end.
        let _ = super::within(call.deadline.into(), pin!(over)).await;
    }

    /// Says that no item follows, and waits for the reply.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call`].
    ///
    /// # Cancel safety
    ///
    /// Dropped before it completes the call is cancelled.
    pub async fn finish(mut self) -> Result<R, CallError> {
        let finished = self.sender.end().await;
        let call = &self.sender.call;
        finished.or_else(|error| call.ended(Err(error)))?;
        let over = poll_fn(|cx| {
            loop {
                match call.poll_item(cx.waker()) {
                    Poll::Ready(Item::Over(outcome)) => return Poll::Ready(Ok(outcome)),
                    // Such a method has no stream of replies.
                    Poll::Ready(Item::Here(_)) => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        let outcome = super::within(call.deadline.into(), pin!(over)).await;
        let reply = call.ended(outcome.and_then(|outcome| call.shared.core.conclude(outcome)))?;
        read::<R, C>(self.sender.method, Part::Reply, reply, call.form)
    }
}

/// What a start that must not wait came to.
pub(crate) fn at_once<T>(started: Result<T, StartError>) -> Result<T, CallError> {
    started.map_err(|error| match error {
        StartError::Full(_) => CallError::Full,
        StartError::Failed(error) => error,
    })
}
