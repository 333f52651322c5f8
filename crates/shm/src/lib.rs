//! Shared memory and wakeups: sealed segments, rings, doorbells and waiters.
//!
//! This is the one library of Lapwing with `unsafe` in it, confined to `mapping.rs`, `memory.rs` and
//! `sys/`. It knows nothing of frames, calls or sockets: a record is opaque bytes to it.
//!
//! # How the parts fit
//!
//! Each side of a connection creates one [`Segment`], seals it and hands its file descriptor to the
//! peer, which maps it read-only with [`PeerMemory::import`]. From `(own, peer)` each side builds:
//!
//! - a [`Producer`], which writes records into its own segment's ring;
//! - a [`Consumer`], which reads records from the peer's;
//! - a [`BlockPool`], which lends blocks of this side's bulk memory to the peer, and [`Returns`], by which
//!   the peer's blocks are given back: see [`bulk`];
//! - a [`Sleeper`], which tells the peer that this side is about to sleep, and a [`Bell`], which
//!   wakes the peer if it sleeps.
//!
//! Threads of one process that wait on the same consumer share it through [`Followers`].
//!
//! After any number of commits call [`Bell::ring_if_asleep`] once. Before sleeping call
//! [`Sleeper::arm`], look at the ring once more, and only then block on the own [`Doorbell`].
//!
//! # What is absent
//!
//! No named objects, no locks in shared memory, no shared word with two writers, no trust in any
//! word that a peer wrote: see [`ring`] for the checks and [`memory`] for the rules of reading.
#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(not(loom))]
mod buffer;
pub mod bulk;
#[cfg(not(loom))]
pub mod floor;
mod followers;
pub mod layout;
#[cfg(not(loom))]
mod mapping;
pub mod memory;
pub mod ring;
#[cfg(not(loom))]
mod segment;
mod sync;
#[cfg(not(loom))]
pub mod sys;
#[cfg(not(loom))]
mod waiter;
mod wakeup;

#[cfg(not(loom))]
pub use buffer::{Buffer, KeepBuffers, has_kept_buffers, sweep_buffers};
pub use bulk::Returns;
#[cfg(not(loom))]
pub use bulk::{BlockPool, BulkShape, FreshSegment, OwnBlock, PeerBlock, PeerSegment, TakeError};
pub use followers::{Followed, Followers};
#[cfg(not(loom))]
pub use memory::CooperativePeers;
pub use memory::{OwnMemory, PeerMemory};
pub use ring::{BadCommit, Consumer, Producer, Record, Reservation, ReserveError};
#[cfg(not(loom))]
pub use segment::{Segment, SegmentError};
#[cfg(loom)]
pub use sync::{Thread, current};
#[cfg(not(loom))]
pub use sys::{Doorbell, DoorbellError, Poller, Wake};
#[cfg(not(loom))]
pub use waiter::{SPIN_BOUND, Spin, Spinner, spin_cores};
pub use wakeup::{Bell, Ring, Sleeper};
