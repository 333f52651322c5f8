//! Calls between processes on one machine over shared memory.
//!
//! A server listens on a Unix socket; a client connects, both sides show each other sealed memory, and
//! from then on frames go through rings that each side writes and the other can only read. Where shared
//! memory is not wanted the same frames stay on the socket, and nothing else changes.
//!
//! - [`IpcServer`]: routes by kind, inline and async handlers, policy, limits, orderly shutdown.
//! - [`IpcClient`]: calls, one-way messages, statistics, state, orderly disconnect, for tokio.
//! - [`blocking::IpcClient`]: the same without a runtime.
//! - Spans for `tracing`, target `lapwing::calls`, level DEBUG: `lapwing.call` and `lapwing.serve`, with a
//!   [`TraceContext`] where the call belongs to a trace.
//! - [`floor`]: what the machine itself costs, to compare with.
//!
//! # Examples
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use lapwing::{IpcClient, IpcServer};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("shout.sock");
//! let server = IpcServer::builder()
//!     .bind(&path)?
//!     .route_inline(0x0400, "shout", |_caller, request, reply| {
//!         reply.extend(&request.to_ascii_uppercase());
//!         Ok(())
//!     })
//!     .serve()?;
//!
//! let client = IpcClient::connect(&path).await?;
//! assert_eq!(client.call_raw(0x0400, b"hello").await?.bytes(), b"HELLO");
//! client.disconnect().await;
//! server.shutdown().await;
//! # Ok(()) })
//! # }
//! ```
#![forbid(unsafe_code)]

mod ambient;
pub mod blocking;
mod bulk;
mod client;
mod clock;
mod codec;
mod compression;
mod control;
mod endpoint;
pub mod error;
pub mod floor;
mod handshake;
mod link;
mod method;
pub mod methods;
mod payload;
mod peer;
mod platform;
mod server;
mod spans;
mod waking;

pub use bulk::Reserved;
pub use client::{
    CallOptions, ClientOptions, ClientStats, ConnectionState, FrameChecksum, Halves, IpcClient,
    ItemSender, ItemStream, Transport, Upload, WhenFull,
};
pub use codec::{Codec, CodecError, Decode, Encode, Json, Postcard, Raw};
#[cfg(feature = "compression")]
pub use compression::Compression;
#[doc(hidden)]
#[cfg(feature = "hostile")]
pub use compression::expand_payload;
pub use endpoint::endpoint_path;
pub use error::{
    BindError, CallError, Code, ConnectError, Delivered, EndReason, EndpointError, Status,
};
pub use lapwing_proto::{TraceContext, TraceParentError};
pub use lapwing_shm::{CooperativePeers, Spin};
pub use link::Metadata;
pub use method::{ClientStream, Duplex, Method, OneWay, ServerStream, Unary, shape};
pub use payload::Payload;
pub use peer::{PeerCredentials, Policy, SameUser};
pub use schemars;
pub use server::{
    Builder, Call, Caller, Cancellation, Inline, InlineCall, IpcServer, ItemSink, ItemSource,
    Reply, Request, Route, RouteError, ServeError, ServerLimits, ServerStats, Sink, Source,
    TrySendError,
};

/// The programs of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
