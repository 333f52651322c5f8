//! Routes of typed methods: what a handler of each shape is given.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use lapwing_proto::Status;
use pin_project_lite::pin_project;

use super::Builder;
use super::handler::{AsyncFn, Call, Handler, InlineCall, Request};
use super::items::{ItemSink, ItemSource, TrySendError};
use crate::codec::{Codec, CodecError, Decode, Encode, Form};
use crate::method::{ClientStream, Duplex, OneWay, ServerStream, Unary};
use crate::payload::Payload;

/// Where a handler sends the items of its reply.
#[derive(Debug)]
pub struct Sink<T, C> {
    items: ItemSink,
    form: Form,
    types: PhantomData<fn(T) -> C>,
}

impl<T, C: Encode<T>> Sink<T, C> {
    /// Sends one item, waiting while the reader is behind.
    ///
    /// # Errors
    ///
    /// `Cancelled` or `DeadlineExceeded` when the call is over, `ResourceExhausted` for an item that is
    /// longer than the connection takes, `Internal` for one that cannot be written. Pass it on with `?`.
    ///
    /// # Cancel safety
    ///
    /// The item was sent whole or not at all; it was not when this never completed.
    pub async fn send(&mut self, item: &T) -> Result<(), Status> {
        let (form, number) = (self.form, self.items.number());
        let write = |frame: &mut Vec<u8>| form.encode::<T, C>(item, frame);
        self.items.send_with(|frame| write(frame).map_err(|e| unwritable_item(number, &e))).await
    }

    /// Sends one item if there is room for it now.
    ///
    /// # Errors
    ///
    /// [`TrySendError::Full`] when there is none, and as [`Sink::send`].
    pub fn try_send(&mut self, item: &T) -> Result<(), TrySendError> {
        let (form, number) = (self.form, self.items.number());
        let write = |frame: &mut Vec<u8>| form.encode::<T, C>(item, frame);
        self.items.try_send_with(|frame| write(frame).map_err(|e| unwritable_item(number, &e)))
    }
}

/// Where a handler takes the items of its request from. It ends after the caller's last.
#[derive(Debug)]
pub struct Source<T, C> {
    items: ItemSource,
    form: Form,
    types: PhantomData<fn(C) -> T>,
}

impl<T, C: Decode<T>> Source<T, C> {
    /// The next item, or `None` after the caller's last.
    ///
    /// # Errors
    ///
    /// `Cancelled` or `DeadlineExceeded` when the call is over, `InvalidArgument` for an item that cannot be
    /// read. Pass it on with `?`.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: an item is taken only when this completes.
    pub async fn next(&mut self) -> Result<Option<T>, Status> {
        self.items.next_bytes().await?.map(|item| self.read(item)).transpose()
    }

    fn read(&self, item: Payload) -> Result<T, Status> {
        self.form.decode::<T, C>(item).map_err(|e| unreadable_item(self.items.number(), &e))
    }
}

impl<T, C: Decode<T>> Stream for Source<T, C> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let taken = this.items.poll_next(cx);
        taken.map(|item| match item {
            Ok(item) => item.map(|item| this.read(item)),
            Err(status) => Some(Err(status)),
        })
    }
}

fn unreadable(error: &CodecError) -> Status {
    Status::invalid_argument(format!("the request cannot be read: {error}"))
}

fn unreadable_item(number: u64, error: &CodecError) -> Status {
    Status::invalid_argument(format!("item {number} of the request cannot be read: {error}"))
}

fn unwritable(error: &CodecError) -> Status {
    Status::internal(format!("the reply cannot be written: {error}"))
}

fn unwritable_item(number: u64, error: &CodecError) -> Status {
    Status::internal(format!("item {number} of the reply cannot be written: {error}"))
}

fn written<T, C: Encode<T>>(reply: &T, form: Form) -> Result<Payload, Status> {
    Payload::write(|bytes| form.encode::<T, C>(reply, bytes).map_err(|e| unwritable(&e)))
}

/// A method together with what its handler must be; [`Builder::route`] takes both.
pub trait Route<H> {
    #[doc(hidden)]
    fn add_to(self, builder: Builder, handler: H) -> Builder;
}

impl Builder {
    /// Adds a method with its handler, an async function that takes the [`Call`] and then, by the method's
    /// shape:
    ///
    /// | method | then takes | returns |
    /// |---|---|---|
    /// | [`Unary`] | the request | `Result<Reply, Status>` |
    /// | [`OneWay`] | the message | `Result<(), Status>` |
    /// | [`ServerStream`] | the request and a [`Sink`] | `Result<(), Status>` |
    /// | [`ClientStream`] | a [`Source`] | `Result<Reply, Status>` |
    /// | [`Duplex`] | a [`Source`] and a [`Sink`] | `Result<(), Status>` |
    ///
    /// The handler's future is dropped at its next await when the caller gives the call up, when its
    /// deadline passes, and when the connection ends.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// use lapwing::{Call, IpcClient, IpcServer, Postcard, ServerStream, Sink, Status};
    ///
    /// const COUNT: ServerStream<u32, u32> = ServerStream::new(0x0400, "count");
    ///
    /// async fn count(_call: Call, to: u32, mut items: Sink<u32, Postcard>) -> Result<(), Status> {
    ///     for number in 0..to {
    ///         items.send(&number).await?;
    ///     }
    ///     Ok(())
    /// }
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("count.sock");
    /// let server = IpcServer::builder().bind(&path)?.route(COUNT, count).serve()?;
    /// let client = IpcClient::connect(&path).await?;
    /// let mut numbers = client.stream(COUNT, &1000).await?;
    /// let mut sum = 0;
    /// while let Some(number) = numbers.next().await {
    ///     sum += number?;
    /// }
    /// assert_eq!(sum, 499_500);
    /// # server.shutdown().await;
    /// # Ok(()) })
    /// # }
    /// ```
    ///
    /// A handler of the method's types compiles:
    ///
    /// ```
    /// use lapwing::{Call, IpcServer, Status, Unary};
    ///
    /// const LENGTH: Unary<String, u64> = Unary::new(0x0400, "length");
    /// let builder = IpcServer::builder().route(LENGTH, |_: Call, text: String| async move { Ok::<u64, Status>(1) });
    /// ```
    ///
    /// One that takes another request does not, nor one with another reply, or of another shape:
    ///
    /// ```compile_fail,E0631
    /// use lapwing::{Call, IpcServer, Status, Unary};
    ///
    /// const LENGTH: Unary<String, u64> = Unary::new(0x0400, "length");
    /// let builder = IpcServer::builder().route(LENGTH, |_: Call, text: u32| async move { Ok::<u64, Status>(1) });
    /// ```
    ///
    /// ```compile_fail,E0271
    /// use lapwing::{Call, IpcServer, Status, Unary};
    ///
    /// const LENGTH: Unary<String, u64> = Unary::new(0x0400, "length");
    /// let builder = IpcServer::builder().route(LENGTH, |_: Call, text: String| async move { Ok::<u32, Status>(1) });
    /// ```
    ///
    /// ```compile_fail,E0593
    /// use lapwing::{Call, IpcServer, ServerStream, Status};
    ///
    /// const LENGTH: ServerStream<String, u64> = ServerStream::new(0x0400, "length");
    /// let builder = IpcServer::builder().route(LENGTH, |_: Call, text: String| async move { Ok::<u64, Status>(1) });
    /// ```
    #[must_use]
    pub fn route<M: Route<H>, H>(self, method: M, handler: H) -> Builder {
        method.add_to(self, handler)
    }
}

pin_project! {
    /// A handler's future that was begun, and what makes a payload of what it ends with. It is polled where it lies: a future
    /// that awaits it would move it first.
    struct Served<Fut, W> {
        #[pin]
        running: Option<Fut>,
        // Why it was not begun.
        refused: Option<Box<Status>>,
        write: W,
    }
}

impl<Fut, W> Served<Fut, W> {
    #[inline]
    fn new(begun: Result<Fut, Status>, write: W) -> Served<Fut, W> {
        match begun {
            Ok(running) => Served { running: Some(running), refused: None, write },
            Err(status) => Served { running: None, refused: Some(Box::new(status)), write },
        }
    }
}

impl<Fut, W, R> Future for Served<Fut, W>
where
    Fut: Future<Output = Result<R, Status>>,
    W: Fn(R) -> Result<Payload, Status>,
{
    type Output = Result<Payload, Status>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(running) = this.running.as_mut().as_pin_mut() else {
            let refused = this.refused.take().expect("a future that has ended is not polled");
            return Poll::Ready(Err(*refused));
        };
        let ended = ready!(running.poll(cx));
        // Before the reply is written, as at the end of an await.
        this.running.set(None);
        Poll::Ready(ended.and_then(this.write))
    }
}

/// Adds a route whose handler makes its future of the request at once.
macro_rules! route {
    ($builder:ident, $method:ident, |$request:ident| $begun:expr, |$form:ident| $ended:expr) => {{
        let handle = move |$request: Request| {
            let $form = $request.call.form();
            Served::new($begun, $ended)
        };
        let handler = Handler::Async(Box::new(AsyncFn::new(handle)));
        $builder.add($method.kind(), $method.name(), $method.shape(), C::NAME, handler)
    }};
}

impl<Q, R, C, H, Fut> Route<H> for Unary<Q, R, C>
where
    Q: 'static,
    R: 'static,
    C: Codec + Decode<Q> + Encode<R>,
    H: Fn(Call, Q) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Status>> + Send + 'static,
{
    fn add_to(self, builder: Builder, handler: H) -> Builder {
        route!(
            builder,
            self,
            |request| taken::<Q, C>(request).map(|(call, asked)| handler(call, asked)),
            |form| move |reply| written::<R, C>(&reply, form)
        )
    }
}

impl<Q, C, H, Fut> Route<H> for OneWay<Q, C>
where
    Q: 'static,
    C: Codec + Decode<Q>,
    H: Fn(Call, Q) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Status>> + Send + 'static,
{
    fn add_to(self, builder: Builder, handler: H) -> Builder {
        route!(
            builder,
            self,
            |request| taken::<Q, C>(request).map(|(call, message)| handler(call, message)),
            |_form| |()| Ok(Payload::empty())
        )
    }
}

impl<Q, R, C, H, Fut> Route<H> for ServerStream<Q, R, C>
where
    Q: 'static,
    R: 'static,
    C: Codec + Decode<Q> + Encode<R>,
    H: Fn(Call, Q, Sink<R, C>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Status>> + Send + 'static,
{
    fn add_to(self, builder: Builder, handler: H) -> Builder {
        route!(
            builder,
            self,
            |request| {
                let sink = sink(&request.call);
                taken::<Q, C>(request).and_then(|(call, asked)| Ok(handler(call, asked, sink?)))
            },
            |_form| |()| Ok(Payload::empty())
        )
    }
}

impl<Q, R, C, H, Fut> Route<H> for ClientStream<Q, R, C>
where
    Q: 'static,
    R: 'static,
    C: Codec + Decode<Q> + Encode<R>,
    H: Fn(Call, Source<Q, C>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Status>> + Send + 'static,
{
    fn add_to(self, builder: Builder, handler: H) -> Builder {
        route!(
            builder,
            self,
            |request| source(&request.call).map(|items| handler(request.call, items)),
            |form| move |reply| written::<R, C>(&reply, form)
        )
    }
}

impl<Q, R, C, H, Fut> Route<H> for Duplex<Q, R, C>
where
    Q: 'static,
    R: 'static,
    C: Codec + Decode<Q> + Encode<R>,
    H: Fn(Call, Source<Q, C>, Sink<R, C>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Status>> + Send + 'static,
{
    fn add_to(self, builder: Builder, handler: H) -> Builder {
        route!(
            builder,
            self,
            |request| source(&request.call).and_then(|items| {
                let sink = sink(&request.call)?;
                Ok(handler(request.call, items, sink))
            }),
            |_form| |()| Ok(Payload::empty())
        )
    }
}

/// Makes a handler of a [`Unary`] or [`OneWay`] method run where the request is read, on the connection's own task:
/// for answers within about a microsecond. A handler that takes longer holds its connection up, and
/// neither cancellation nor deadlines interrupt it.
///
/// It is a plain function of the [`InlineCall`] and the request.
///
/// # Examples
///
/// ```
/// use lapwing::{Inline, InlineCall, IpcServer, Unary};
///
/// const LENGTH: Unary<String, u64> = Unary::new(0x0400, "length");
/// let length = |_: &InlineCall<'_>, text: String| Ok(text.len() as u64);
/// let builder = IpcServer::builder().route(LENGTH, Inline(length));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Inline<H>(pub H);

impl<Q, R, C, H> Route<Inline<H>> for Unary<Q, R, C>
where
    Q: 'static,
    R: 'static,
    C: Codec + Decode<Q> + Encode<R> + 'static,
    H: Fn(&InlineCall<'_>, Q) -> Result<R, Status> + Send + Sync + 'static,
{
    fn add_to(self, builder: Builder, Inline(handler): Inline<H>) -> Builder {
        let handle = move |call: &InlineCall<'_>, payload, reply: &mut Vec<u8>| {
            let asked = call.form().decode::<Q, C>(payload).map_err(|e| unreadable(&e))?;
            let answer = handler(call, asked)?;
            call.form().encode::<R, C>(&answer, reply).map_err(|e| unwritable(&e))
        };
        let handler = Handler::Typed(Box::new(handle));
        builder.add(self.kind(), self.name(), self.shape(), C::NAME, handler)
    }
}

impl<Q, C, H> Route<Inline<H>> for OneWay<Q, C>
where
    Q: 'static,
    C: Codec + Decode<Q> + 'static,
    H: Fn(&InlineCall<'_>, Q) -> Result<(), Status> + Send + Sync + 'static,
{
    fn add_to(self, builder: Builder, Inline(handler): Inline<H>) -> Builder {
        let handle = move |call: &InlineCall<'_>, payload, _: &mut Vec<u8>| {
            handler(call, call.form().decode::<Q, C>(payload).map_err(|e| unreadable(&e))?)
        };
        let handler = Handler::Typed(Box::new(handle));
        builder.add(self.kind(), self.name(), self.shape(), C::NAME, handler)
    }
}

fn taken<Q, C: Decode<Q>>(Request { payload, call }: Request) -> Result<(Call, Q), Status> {
    let asked = call.form().decode::<Q, C>(payload).map_err(|e| unreadable(&e))?;
    Ok((call, asked))
}

fn sink<T, C>(call: &Call) -> Result<Sink<T, C>, Status> {
    let items = call.sink().ok_or_else(no_stream)?;
    Ok(Sink { items, form: call.form(), types: PhantomData })
}

fn source<T, C>(call: &Call) -> Result<Source<T, C>, Status> {
    let items = call.source().ok_or_else(no_stream)?;
    Ok(Source { items, form: call.form(), types: PhantomData })
}

fn no_stream() -> Status {
    Status::internal("the call has no stream")
}
