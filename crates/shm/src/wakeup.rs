//! Who sleeps, and who wakes it: the sleep word `armed` and the bell that answers it.
//!
//! Invariant W (no lost wakeup): a sleeper stores an odd epoch in `armed`, fences, and looks at what it
//! waits for once more before it blocks; a waker publishes, fences, and looks at `armed`. Both fences are
//! sequentially consistent, so at least one of the two sees the other: the sleeper sees what was
//! published, or the waker sees it asleep and rings. A bell rings once for each epoch.
//!
//! The same word serves a consumer that waits for records and a producer that waits for space.

use crate::layout;
use crate::memory::{OwnMemory, PeerMemory};
use crate::sync::{AtomicU64, Ordering, fence};

/// This side's own sleep word.
#[derive(Debug)]
pub struct Sleeper {
    own: OwnMemory,
    epoch: u64,
}

impl Sleeper {
    /// Awake, at epoch 0.
    #[must_use]
    pub fn new(own: OwnMemory) -> Sleeper {
        Sleeper { own, epoch: 0 }
    }

    /// Says that this side is about to sleep, in a new epoch even when armed already: a bell rings
    /// once for an epoch, and the last one may be used up. Then look at the ring once more, and only
    /// then sleep (invariant W).
    pub fn arm(&mut self) {
        self.epoch += if self.is_armed() { 2 } else { 1 };
        self.own.store(layout::ARMED, self.epoch, Ordering::Relaxed);
        // Parts the store of `armed` from the loads of commit and `consumed` that the caller does
        // next; pairs with the fence in `Bell::ring_if_asleep`.
        fence(Ordering::SeqCst);
    }

    /// Says that this side is awake and looks by itself.
    pub fn disarm(&mut self) {
        if self.is_armed() {
            self.epoch += 1;
            // Relaxed: a waker that still sees the old epoch rings once too often, nothing else.
            self.own.store(layout::ARMED, self.epoch, Ordering::Relaxed);
        }
    }

    /// Whether the last word was [`Sleeper::arm`].
    #[must_use]
    #[inline]
    pub fn is_armed(&self) -> bool {
        !self.epoch.is_multiple_of(2)
    }
}

/// Something that wakes the peer: a doorbell, or its model.
pub trait Ring {
    /// What can go wrong.
    type Error;

    /// Wakes whoever sleeps on it; returns at once.
    ///
    /// # Errors
    ///
    /// As the implementation says.
    fn ring(&self) -> Result<(), Self::Error>;
}

/// Wakes the peer, if it sleeps. Shared by everything in this process that publishes to that peer.
#[derive(Debug)]
pub struct Bell<D> {
    peer: PeerMemory,
    doorbell: D,
    /// The last epoch rung for.
    rung: AtomicU64,
}

impl<D: Ring> Bell<D> {
    /// A bell for the peer whose memory is `peer` and whose doorbell is `doorbell`.
    #[must_use]
    pub fn new(peer: PeerMemory, doorbell: D) -> Bell<D> {
        Bell { peer, doorbell, rung: AtomicU64::new(0) }
    }

    /// Rings if the peer sleeps and nobody has rung for this sleep yet. Call it after publishing
    /// records or `consumed`, once for a batch. Returns whether it rang.
    ///
    /// # Errors
    ///
    /// What the doorbell returns.
    #[inline]
    pub fn ring_if_asleep(&self) -> Result<bool, D::Error> {
        // Parts what was published before from the load of `armed`; pairs with `Sleeper::arm`.
        fence(Ordering::SeqCst);
        let armed = self.peer.load(layout::ARMED, Ordering::Relaxed);
        if armed.is_multiple_of(2) {
            return Ok(false);
        }
        self.ring_for(armed)
    }

    /// Whether the peer seemed to sleep, without the fence that would make it certain.
    #[must_use]
    #[inline]
    pub fn seems_asleep(&self) -> bool {
        !self.peer.load(layout::ARMED, Ordering::Relaxed).is_multiple_of(2)
    }

    #[cold]
    fn ring_for(&self, armed: u64) -> Result<bool, D::Error> {
        // Relaxed: the word only saves a second ring; a race rings twice.
        if self.rung.swap(armed, Ordering::Relaxed) == armed {
            return Ok(false);
        }
        self.doorbell.ring()?;
        Ok(true)
    }
}
