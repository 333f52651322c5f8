//! One direction of variable-length records: single producer, single consumer, two processes.
//!
//! Positions are `u64`, count bytes since the connection began and never wrap; the index of a
//! position is `position & (ring_bytes - 1)`. Every position is a multiple of 64.
//!
//! Invariant R1 (publication): a record's commit word is stored with release after every byte of the
//! record and after the *next* record's commit word was cleared. So a consumer that reads it with
//! acquire sees the whole record, and then finds zero, not a stale word, at the next position. The
//! very first commit word is zero because a new segment is.
//!
//! Invariant R2 (space): the producer writes only lines in `position..consumed + ring_bytes`. The
//! consumer stores `consumed` with release after it has copied the bytes out, the producer loads it
//! with acquire; so no line is overwritten while it is read.
//!
//! Invariant R3 (distrust): the consumer uses a commit word only if it lies in
//! `position + 64 ..= position + ring_bytes` and is a multiple of 64; the producer uses `consumed` only
//! if it lies between the last value seen and its own position and is a multiple of 64. Anything else is
//! misbehaviour and ends the connection; nothing is repaired.
//!
//! A producer that dies between any two instructions leaves a whole record or none (R1).

mod consumer;
mod producer;

pub use consumer::{BadCommit, Consumer, Record};
pub use producer::{Producer, Reservation, ReserveError};

#[cfg(all(test, not(loom)))]
mod tests;
