//! The one door to atomics: `core::sync::atomic`, or loom's when the model checker runs, so that the
//! checked algorithm is the shipped one.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
