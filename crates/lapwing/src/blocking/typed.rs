//! Calls of typed methods, and streams, of the blocking client.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use super::{IpcClient, PendingCall, Shared};
use crate::client::{
    Again, Brings, Core, Item, ItemError, Outgoing, Plain, Start, Started, Turn, Until,
    ended_in_time, in_time, kind_of, read, try_sent, write, written,
};
use crate::codec::{Decode, Encode, Form};
use crate::error::{CallError, Part, timed};
use crate::method::{ClientStream, Duplex, OneWay, ServerStream, Unary};
use crate::payload::Payload;
use crate::spans::{self, CallSpan, code_of};
use crate::{CallOptions, WhenFull};

impl IpcClient {
    /// Calls a method and waits for its reply.
    ///
    /// # Errors
    ///
    /// [`CallError`]; [`CallError::Status`] is the server's own answer.
    pub fn call<Q, R, C>(&self, method: Unary<Q, R, C>, request: &Q) -> Result<R, CallError>
    where
        C: Encode<Q> + Decode<R>,
    {
        self.call_with(method, request, &CallOptions::default())
    }

    /// Calls a method with a time limit, metadata or a trace, in JSON, or only if there is room now.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call`], [`CallError::DeadlineExceeded`] when the time is over, and [`CallError::Full`] under
    /// [`CallOptions::only_with_room`].
    pub fn call_with<Q, R, C>(
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
                self.call_plain(&mut call)?
            }
            _ => {
                let travel = options.travel();
                let mut written = written(method, request, Part::Request, travel.as_ref())?;
                let mut out = Outgoing::written(kind_of(method), &mut written, travel.as_ref());
                self.call_out(&mut out, method.name())?
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
    pub fn try_call<Q, R, C>(&self, method: Unary<Q, R, C>, request: &Q) -> Result<R, CallError>
    where
        C: Encode<Q> + Decode<R>,
    {
        self.call_with(method, request, &CallOptions::default().only_with_room(true))
    }

    /// Calls a method and returns at once, to collect the reply later: many calls in flight from one thread. Waits only
    /// while there is no room. [`IpcClient::submit`] is the same with a number and bytes.
    ///
    /// # Errors
    ///
    /// [`CallError`] when the request was not sent; [`CallError::Full`] under [`CallOptions::only_with_room`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn example(client: lapwing::blocking::IpcClient) -> Result<(), lapwing::CallError> {
    /// use lapwing::{CallOptions, Unary};
    ///
    /// const LENGTH: Unary<String, u64> = Unary::new(0x0400, "text.length");
    /// let none = CallOptions::default();
    /// let texts = ["lap", "wing"].map(str::to_owned);
    /// let pending = texts.each_ref().map(|text| client.submit_call(LENGTH, text, &none));
    /// for (text, call) in texts.iter().zip(pending) {
    ///     assert_eq!(call?.collect()?, text.len() as u64);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit_call<Q, R, C>(
        &self,
        method: Unary<Q, R, C>,
        request: &Q,
        options: &CallOptions,
    ) -> Result<PendingReply<'_, R, C>, CallError>
    where
        C: Encode<Q> + Decode<R>,
    {
        let travel = options.travel();
        let mut written = written(method, request, Part::Request, travel.as_ref())?;
        let out = Outgoing::written(kind_of(method), &mut written, travel.as_ref());
        let call = self.submit_out(out, method.name())?;
        Ok(PendingReply { call, method: method.name(), form: options.form(), types: PhantomData })
    }

    /// Sends a message that has no reply. Waits while there is no room for it.
    ///
    /// # Errors
    ///
    /// [`CallError`]; that it was sent does not say that the server has read it.
    pub fn send<Q, C: Encode<Q>>(
        &self,
        method: OneWay<Q, C>,
        message: &Q,
    ) -> Result<(), CallError> {
        self.send_when(method, message, WhenFull::Wait)
    }

    /// Sends a message that has no reply, and says what to do when there is no room for it.
    ///
    /// # Errors
    ///
    /// [`CallError::Full`] under [`WhenFull::Fail`], and as [`IpcClient::send`].
    pub fn send_when<Q, C: Encode<Q>>(
        &self,
        method: OneWay<Q, C>,
        message: &Q,
        when_full: WhenFull,
    ) -> Result<(), CallError> {
        self.send_when_with(method, message, &CallOptions::default(), when_full)
    }

    /// As [`IpcClient::send`], with a time limit to wait for room and to be begun at the server, metadata, a trace, in JSON, or only if there is room
    /// now.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::send`], [`CallError::DeadlineExceeded`] when there was no room in time, and
    /// [`CallError::Full`] under [`CallOptions::only_with_room`].
    pub fn send_with<Q, C: Encode<Q>>(
        &self,
        method: OneWay<Q, C>,
        message: &Q,
        options: &CallOptions,
    ) -> Result<(), CallError> {
        self.send_when_with(method, message, options, WhenFull::Wait)
    }

    /// As [`IpcClient::send_with`], and says what to do when there is no room for the message.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::send_with`], and [`CallError::Full`] under [`WhenFull::Fail`].
    pub fn send_when_with<Q, C: Encode<Q>>(
        &self,
        method: OneWay<Q, C>,
        message: &Q,
        options: &CallOptions,
        when_full: WhenFull,
    ) -> Result<(), CallError> {
        let travel = options.travel();
        let mut written = written(method, message, Part::Message, travel.as_ref())?;
        let out = Outgoing::written(kind_of(method), &mut written, travel.as_ref());
        self.send_out(out, method.name(), when_full)
    }

    /// Calls a method that answers with a stream.
    ///
    /// # Errors
    ///
    /// [`CallError`] when the request was not sent, [`CallError::Full`] under [`CallOptions::only_with_room`]; what goes
    /// wrong later is an item of the stream.
    pub fn stream<Q, R, C>(
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
        let call = self.open(out, method.name(), Brings::SERVER_STREAM)?;
        Ok(ItemStream::new(Arc::new(call), method.name()))
    }

    /// Calls a method that takes a stream and answers once.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::stream`].
    pub fn upload<Q, R, C>(
        &self,
        method: ClientStream<Q, R, C>,
        options: &CallOptions,
    ) -> Result<Upload<Q, R, C>, CallError> {
        let travel = options.travel();
        let out = Outgoing { travel: travel.as_ref(), ..Outgoing::plain(kind_of(method), &[]) };
        let call = self.open(out, method.name(), Brings::CLIENT_STREAM)?;
        let sender = ItemSender::new(Arc::new(call), method.name());
        Ok(Upload { sender, types: PhantomData })
    }

    /// Calls a method with a stream in each direction. The two halves may be used by two threads.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::stream`].
    pub fn duplex<Q, R, C>(
        &self,
        method: Duplex<Q, R, C>,
        options: &CallOptions,
    ) -> Result<Halves<Q, R, C>, CallError> {
        let travel = options.travel();
        let out = Outgoing { travel: travel.as_ref(), ..Outgoing::plain(kind_of(method), &[]) };
        let call = Arc::new(self.open(out, method.name(), Brings::DUPLEX)?);
        let sender = ItemSender::new(Arc::clone(&call), method.name());
        Ok((sender, ItemStream::new(call, method.name())))
    }

    fn open(
        &self,
        mut out: Outgoing<'_>,
        method: &'static str,
        brings: Brings,
    ) -> Result<OpenCall, CallError> {
        let mut until = out.until();
        let (span, form) = (self.span(&out, method), out.form());
        let only_with_room = out.only_with_room();
        let start = |core: &Core, again: &Again| core.start(out.again(again), brings);
        let started = self.start(&mut until, only_with_room, start);
        if let (Some(span), Err(_)) = (&span, &started) {
            span.end(code_of(&started));
        }
        let (call, deadline) = (started?, until.settle());
        let client = IpcClient { shared: Arc::clone(&self.shared) };
        Ok(OpenCall { client, call, deadline, form, span })
    }
}

/// A call that was submitted, and its reply's type. Dropping it gives the reply up and cancels the call.
#[derive(Debug)]
#[must_use = "a pending reply that is dropped is given up"]
pub struct PendingReply<'a, R, C> {
    call: PendingCall<'a>,
    method: &'static str,
    form: Form,
    types: PhantomData<fn(C) -> R>,
}

impl<R, C: Decode<R>> PendingReply<'_, R, C> {
    /// Waits for the reply.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call_with`].
    pub fn collect(self) -> Result<R, CallError> {
        read::<R, C>(self.method, Part::Reply, self.call.collect()?, self.form)
    }
}

/// The two directions of a duplex call: what is sent, and what comes.
pub type Halves<Q, R, C> = (ItemSender<Q, C>, ItemStream<R, C>);

/// A call with a stream. It is given up when it is dropped before its end.
#[derive(Debug)]
struct OpenCall {
    client: IpcClient,
    call: Started,
    deadline: Option<Instant>,
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

    fn shared(&self) -> &Shared {
        &self.client.shared
    }

    fn until(&self) -> Until {
        self.deadline.into()
    }

    fn give_up(&self) {
        // Does nothing for a call that has ended.
        self.shared().core.abandon(self.call.id);
        self.client.leave_rest();
    }

    fn item(&self) -> Result<Item, CallError> {
        let core = &self.shared().core;
        let item = match core.poll_item(self.call.id, None) {
            Some(item) => Some(item),
            None => self
                .client
                .wait_until(&mut self.until(), |waker| core.poll_item(self.call.id, Some(waker))),
        };
        // What has come is no reason to go on past the deadline: there may be no end to it.
        if let Some(Item::Here(_)) = item {
            // It may have given credit back.
            self.client.leave_rest();
            in_time(self.deadline)?;
        }
        item.ok_or(CallError::DeadlineExceeded)
    }

    /// Sends an item, or without one the last word.
    fn send(&self, item: Option<&[u8]>) -> Result<(), CallError> {
        let core = &self.shared().core;
        let attempt = |waker: Option<&std::task::Waker>| match item {
            Some(item) => core.send_item(&self.call, item, waker),
            None => core.end_items(&self.call),
        };
        loop {
            match attempt(None) {
                Err(ItemError::Behind) => {
                    let sent = self.client.wait_until(&mut self.until(), |waker| {
                        match attempt(Some(waker)) {
                            Err(ItemError::Behind) => None,
                            sent => Some(sent),
                        }
                    });
                    match sent.ok_or(CallError::DeadlineExceeded)? {
                        Err(ItemError::Full(room)) => self.room(room)?,
                        sent => break try_sent(sent),
                    }
                }
                Err(ItemError::Full(room)) => self.room(room)?,
                sent => break try_sent(sent),
            }
        }?;
        self.client.sent(&mut self.until());
        Ok(())
    }

    fn room(&self, room: crate::client::Room) -> Result<(), CallError> {
        let mut turn = Turn::new(&self.shared().core);
        let had = self.client.wait_for_room(room, &mut turn, &mut self.until());
        if had { Ok(()) } else { Err(CallError::DeadlineExceeded) }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// The stream that a method answers with, as an iterator: items, and at its end maybe one error. Dropping
/// it before its end cancels the call.
#[derive(Debug)]
#[must_use = "a stream that is dropped is cancelled"]
pub struct ItemStream<T, C> {
    /// `None` after its end.
    call: Option<Arc<OpenCall>>,
    /// Items that have come.
    taken: u64,
    method: &'static str,
    types: PhantomData<fn(C) -> T>,
}

impl<T, C> ItemStream<T, C> {
    fn new(call: Arc<OpenCall>, method: &'static str) -> ItemStream<T, C> {
        ItemStream { call: Some(call), taken: 0, method, types: PhantomData }
    }
}

impl<T, C: Decode<T>> Iterator for ItemStream<T, C> {
    type Item = Result<T, CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        let call = self.call.as_ref()?;
        match call.item() {
            Ok(Item::Here(item)) => {
                self.taken += 1;
                let part = Part::ItemReceived(self.taken);
                Some(read::<T, C>(self.method, part, item, call.form))
            }
            Ok(Item::Over(outcome)) => {
                let ended = call.ended(call.shared().core.conclude(outcome));
                self.call = None;
                ended.err().map(Err)
            }
            Err(error) => {
                let ended = call.ended(Err(error));
                call.give_up();
                self.call = None;
                Some(ended)
            }
        }
    }
}

impl<T, C> Drop for ItemStream<T, C> {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            call.give_up();
        }
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
    pub fn finish(mut self) -> Result<(), CallError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), CallError> {
        let ended = match self.call.send(None) {
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
    pub fn send(&mut self, item: &T) -> Result<(), CallError> {
        let item = self.write(item)?;
        in_time(self.call.deadline)?;
        ended_in_time(self.call.deadline, self.call.send(Some(&item)))?;
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
        let sent = self.call.shared().core.send_item(&self.call.call, &item, None);
        self.call.client.leave_rest();
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
    pub fn send(&mut self, item: &T) -> Result<(), CallError> {
        self.sender.send(item)
    }

    /// As [`ItemSender::try_send`].
    ///
    /// # Errors
    ///
    /// As [`ItemSender::try_send`].
    pub fn try_send(&mut self, item: &T) -> Result<(), CallError> {
        self.sender.try_send(item)
    }

    /// Whether the call has ended already: the server has answered, maybe before it had all items, the call's
    /// time is over, or the connection is. [`Upload::finish`] says at once which. It looks and does not wait.
    ///
    /// An item that is sent afterwards goes nowhere, and [`Upload::send`] fails with [`CallError::StreamEnded`] or
    /// [`CallError::DeadlineExceeded`]. Whether the server has read what was sent before, its answer alone can say.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        let call = &self.sender.call;
        let is_over = || call.shared().core.is_over(call.call.id, None);
        if in_time(call.deadline).is_err() || is_over() {
            return true;
        }
        call.client.look();
        is_over()
    }

    /// Says that no item follows, and waits for the reply.
    ///
    /// # Errors
    ///
    /// As [`IpcClient::call`].
    pub fn finish(mut self) -> Result<R, CallError> {
        let finished = self.sender.end();
        let call = &self.sender.call;
        finished.or_else(|error| call.ended(Err(error)))?;
        loop {
            let item = call.item().or_else(|error| call.ended(Err(error)))?;
            if let Item::Over(outcome) = item {
                let reply = call.ended(call.shared().core.conclude(outcome))?;
                return read::<R, C>(self.sender.method, Part::Reply, reply, call.form);
            }
            // Such a method has no stream of replies.
        }
    }
}
