//! Lapwing's wire protocol with no I/O: frames, calls, handshake messages, status codes, limits.
//!
//! This crate turns values into bytes and bytes into values or typed errors. It knows no clock, no
//! file descriptor and no transport, keeps no log, and never panics on what a peer sent. Its driver
//! (the `lapwing` crate) goes through it in this order:
//!
//! 1. [`Hello`] out, [`HelloAck`] or [`HelloReject`] in; on the other side [`ServerOffer::answer`].
//!    [`Hello::check`] is what the client does with a grant before it believes it.
//! 2. Per frame in: [`Header::decode`] (bounds the length before anything is allocated), then
//!    [`Checksum::check`], then, if [`Flags::EXTENDED`], [`Extensions::parse`].
//! 3. Per frame out: [`Header::encode`], payload, [`Checksum::seal`].
//! 4. Per call: [`CallTable::insert`] gives the id, [`CallTable::find`] tells a response that is
//!    late from one that is forged.
//!
//! The whole protocol is specified in `docs/protocol.md`; `vectors/` holds test vectors for clients
//! in any language.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
extern crate std;

mod bulk;
mod call_table;
mod checksum;
mod compression;
mod credit;
mod describe;
mod extension;
mod flags;
mod goodbye;
mod handshake;
mod header;
mod kind;
pub mod layout;
pub mod limits;
mod message;
mod negotiate;
mod status;
mod trace;
mod wire_error;

pub use bulk::{SegmentAnnounced, SegmentRetired};
pub use call_table::{CallTable, Full, Lookup};
pub use checksum::{CHECKSUM_RANGE, Checksum, ChecksumSet};
pub use compression::{CompressionError, expanded_length};
pub use credit::{Credit, CreditError, CreditGate, Ended, ReceiveCredit, SendCredit};
pub use describe::{Description, MethodDescription, MethodDetails, MethodShape, MethodWanted};
pub use extension::{
    BulkDescriptor, Entry, ExtensionBuilder, ExtensionError, Extensions, TimeLeft, TraceContext,
    take_bulk,
};
pub use flags::Flags;
pub use goodbye::{Goodbye, HelloReject};
pub use handshake::{
    Features, Hello, HelloAck, LimitsGranted, LimitsWanted, TransportGranted, TransportWanted,
};
pub use header::{FrameError, Header, MAGIC, MessageId, VERSION};
pub use kind::Kind;
pub use message::MessageError;
pub use negotiate::ServerOffer;
pub use status::{Code, Status};
pub use trace::TraceParentError;
pub use wire_error::{PeerMisbehaved, WireError};
