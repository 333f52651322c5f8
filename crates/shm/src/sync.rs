//! The one door to atomics, and to the locks and threads that wait with them: `core::sync::atomic` and `std`, or loom's
//! when the model checker runs, so that the checked algorithm is the shipped one.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::thread::{Thread, current, park, park_timeout};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(loom)]
pub use model::{Thread, current};
#[cfg(loom)]
pub(crate) use model::{park, park_timeout};

/// Loom's own threads are unparked from locks that they wait at, too, which it then takes for a fault.
#[cfg(loom)]
mod model {
    use core::time::Duration;

    use loom::sync::{Arc, Notify};

    /// A thread that can be woken.
    #[derive(Clone, Debug)]
    pub struct Thread(Arc<Notify>);

    impl Thread {
        /// Wakes it, now or as soon as it parks.
        pub fn unpark(&self) {
            self.0.notify();
        }
    }

    loom::thread_local! {
        static CURRENT: Thread = Thread(Arc::new(Notify::new()));
    }

    /// The thread that asks.
    #[must_use]
    pub fn current() -> Thread {
        CURRENT.with(Clone::clone)
    }

    pub(crate) fn park() {
        current().0.wait();
    }

    /// The model has no clock: a time limit is over at once.
    pub(crate) fn park_timeout(_left: Duration) {}
}
