//! Routes of typed methods: what a handler of each shape is given.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_core::Stream;
use lapwing_proto::{Status, TraceContext};

use super::Builder;
use super::handler::{AsyncFn, Caller, Handler, Request};
use super::items::{ItemSink, ItemSource, TrySendError};
use super::running::Cancellation;
use crate::codec::{CodecError, Decode, Encode};
use crate::link::Metadata;
use crate::method::{ClientStream, Duplex, OneWay, ServerStream, Unary};
use crate::payload::Payload;

/// The call that a handler serves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Call {
    /// Who calls.
    pub caller: Arc<Caller>,
    /// When the caller gives up. Calls that the handler makes from its own task inherit it.
    pub deadline: Option<Instant>,
    /// Tells what the handler starts elsewhere that the call is over.
    pub cancellation: Cancellation,
    /// The caller's pairs.
    pub metadata: Metadata,
    /// The trace that the call belongs to, as its caller sent it. Calls that the handler makes from its own task
    /// belong to it, too; where the call's span is recorded, they carry that span's id as their parent's.
    pub trace: Option<TraceContext>,
    /// The longest reply or item the connection takes, in bytes.
    pub reply_bytes_max: usize,
}

impl Call {
    fn of(request: Request) -> Call {
        Call {
            caller: request.caller,
            deadline: request.deadline,
            cancellation: request.cancellation,
            metadata: request.metadata,
            trace: request.trace,
            reply_bytes_max: request.reply_bytes_max,
        }
    }
}

/// Where a handler sends the items of its reply.
#[derive(Debug)]
pub struct Sink<T, C> {
    items: ItemSink,
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
        self.items.send_with(|frame| C::encode(item, frame).map_err(|e| unwritable(&e))).await
    }

    /// Sends one item if there is room for it now.
    ///
    /// # Errors
    ///
    /// [`TrySendError::Full`] when there is none, and as [`Sink::send`].
    pub fn try_send(&mut self, item: &T) -> Result<(), TrySendError> {
        self.items.try_send_with(|frame| C::encode(item, frame).map_err(|e| unwritable(&e)))
    }
}

/// Where a handler takes the items of its request from. It ends after the caller's last.
#[derive(Debug)]
pub struct Source<T, C> {
    items: ItemSource,
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
        self.items
            .next_bytes()
            .await?
            .map(|item| C::decode(item).map_err(|e| unreadable(&e)))
            .transpose()
    }
}

impl<T, C: Decode<T>> Stream for Source<T, C> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let taken = self.get_mut().items.poll_next(cx);
        taken.map(|item| match item {
            Ok(item) => item.map(|item| C::decode(item).map_err(|e| unreadable(&e))),
            Err(status) => Some(Err(status)),
        })
    }
}

fn unreadable(error: &CodecError) -> Status {
    Status::invalid_argument(format!("the request cannot be read: {error}"))
}

fn unwritable(error: &CodecError) -> Status {
    Status::internal(format!("the reply cannot be written: {error}"))
}

fn written<T, C: Encode<T>>(reply: &T) -> Result<Payload, Status> {
    let mut bytes = Payload::buffer();
    C::encode(reply, &mut bytes).map_err(|e| unwritable(&e))?;
    Ok(bytes.into())
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
    /// A handler of other types does not compile:
    ///
    /// ```compile_fail
    /// use lapwing::{Call, IpcServer, Status, Unary};
    ///
    /// const LENGTH: Unary<String, u64> = Unary::new(0x0400, "length");
    /// let builder = IpcServer::builder().route(LENGTH, |_: Call, text: u32| async move { Ok::<u64, Status>(1) });
    /// ```
    #[must_use]
    pub fn route<M: Route<H>, H>(self, method: M, handler: H) -> Builder {
        method.add_to(self, handler)
    }
}

/// Adds a route whose handler makes its future of the request at once.
macro_rules! route {
    ($builder:ident, $method:ident, |$request:ident| $begun:expr, $ended:expr) => {{
        let handle = move |$request: Request| {
            let begun = $begun;
            async move {
                match begun {
                    Ok(running) => running.await.and_then($ended),
                    Err(status) => Err(status),
                }
            }
        };
        let handler = Handler::Async(Box::new(AsyncFn::new(handle)));
        $builder.add($method.kind(), $method.name(), $method.shape(), handler)
    }};
}

impl<Q, R, C, H, Fut> Route<H> for Unary<Q, R, C>
where
    Q: 'static,
    R: 'static,
    C: Decode<Q> + Encode<R> + 'static,
    H: Fn(Call, Q) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Status>> + Send + 'static,
{
    fn add_to(self, builder: Builder, handler: H) -> Builder {
        route!(
            builder,
            self,
            |request| taken::<Q, C>(request).map(|(call, asked)| handler(call, asked)),
            |reply| written::<R, C>(&reply)
        )
    }
}

impl<Q, C, H, Fut> Route<H> for OneWay<Q, C>
where
    Q: 'static,
    C: Decode<Q> + 'static,
    H: Fn(Call, Q) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Status>> + Send + 'static,
{
    fn add_to(self, builder: Builder, handler: H) -> Builder {
        route!(
            builder,
            self,
            |request| taken::<Q, C>(request).map(|(call, message)| handler(call, message)),
            |()| Ok(Payload::empty())
        )
    }
}

impl<Q, R, C, H, Fut> Route<H> for ServerStream<Q, R, C>
where
    Q: 'static,
    R: 'static,
    C: Decode<Q> + Encode<R> + 'static,
    H: Fn(Call, Q, Sink<R, C>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Status>> + Send + 'static,
{
    fn add_to(self, builder: Builder, handler: H) -> Builder {
        route!(
            builder,
            self,
            |request| {
                let sink = sink(&request);
                taken::<Q, C>(request).and_then(|(call, asked)| Ok(handler(call, asked, sink?)))
            },
            |()| Ok(Payload::empty())
        )
    }
}

impl<Q, R, C, H, Fut> Route<H> for ClientStream<Q, R, C>
where
    Q: 'static,
    R: 'static,
    C: Decode<Q> + Encode<R> + 'static,
    H: Fn(Call, Source<Q, C>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Status>> + Send + 'static,
{
    fn add_to(self, builder: Builder, handler: H) -> Builder {
        route!(
            builder,
            self,
            |request| source(&request).map(|items| handler(Call::of(request), items)),
            |reply| written::<R, C>(&reply)
        )
    }
}

impl<Q, R, C, H, Fut> Route<H> for Duplex<Q, R, C>
where
    Q: 'static,
    R: 'static,
    C: Decode<Q> + Encode<R> + 'static,
    H: Fn(Call, Source<Q, C>, Sink<R, C>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Status>> + Send + 'static,
{
    fn add_to(self, builder: Builder, handler: H) -> Builder {
        route!(
            builder,
            self,
            |request| source(&request).and_then(|items| {
                let sink = sink(&request)?;
                Ok(handler(Call::of(request), items, sink))
            }),
            |()| Ok(Payload::empty())
        )
    }
}

fn taken<Q, C: Decode<Q>>(mut request: Request) -> Result<(Call, Q), Status> {
    let payload = std::mem::replace(&mut request.payload, Payload::empty());
    let asked = C::decode(payload).map_err(|e| unreadable(&e))?;
    Ok((Call::of(request), asked))
}

fn sink<T, C>(request: &Request) -> Result<Sink<T, C>, Status> {
    let items = request.sink().ok_or_else(no_stream)?;
    Ok(Sink { items, types: PhantomData })
}

fn source<T, C>(request: &Request) -> Result<Source<T, C>, Status> {
    let items = request.source().ok_or_else(no_stream)?;
    Ok(Source { items, types: PhantomData })
}

fn no_stream() -> Status {
    Status::internal("the call has no stream")
}
