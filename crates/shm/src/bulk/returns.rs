//! The returned-block list: how blocks go back to the side that lent them.

use crate::layout;
use crate::memory::{OwnMemory, PeerMemory};
use crate::sync::Ordering;

/// Gives the peer's blocks back. One for each connection: it is the only writer of the list.
#[derive(Debug)]
pub struct Returns {
    own: OwnMemory,
    /// Blocks given back since the connection began.
    freed: u64,
}

impl Returns {
    /// The list in `own`, which is empty.
    #[must_use]
    pub fn new(own: OwnMemory) -> Returns {
        Returns { own, freed: 0 }
    }

    /// Gives a block back. Then look whether the peer sleeps: it may wait for the block.
    pub fn give_back(&mut self, segment: u32, block: u32) {
        self.own.store_slot(self.freed, layout::returned_word(segment, block));
        self.freed += 1;
        // Release pairs with the acquire in `ReturnedBlocks::look` (B2).
        self.own.store(layout::FREED, self.freed, Ordering::Release);
    }
}

/// The cursor of the returned-block list went back, or ahead of what was lent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the peer says it has given {found} blocks back, which cannot be: {seen} were seen")]
pub struct BadFreed {
    /// The cursor as found.
    pub found: u64,
    /// The last good value.
    pub seen: u64,
}

/// Reads the returned-block list of the peer.
#[derive(Debug)]
pub struct ReturnedBlocks {
    peer: PeerMemory,
    seen: u64,
}

impl ReturnedBlocks {
    /// The list in `peer`, which is empty.
    #[must_use]
    pub fn new(peer: PeerMemory) -> ReturnedBlocks {
        ReturnedBlocks { peer, seen: 0 }
    }

    /// Hands segment and block of everything that came back since the last look to `each`, at most `lent`
    /// blocks. What `each` refuses ends the look.
    ///
    /// # Errors
    ///
    /// [`BadFreed`], or what `each` says.
    pub fn look<E: From<BadFreed>>(
        &mut self,
        lent: u64,
        mut each: impl FnMut(u32, u32) -> Result<(), E>,
    ) -> Result<(), E> {
        // Acquire pairs with the release in `Returns::give_back` (B2).
        let found = self.peer.load(layout::FREED, Ordering::Acquire);
        let fresh = found.wrapping_sub(self.seen);
        if fresh > lent {
            return Err(BadFreed { found, seen: self.seen }.into());
        }
        while self.seen != found {
            let word = self.peer.load_slot(self.seen);
            self.seen += 1;
            each((word >> 32) as u32, word as u32)?;
        }
        Ok(())
    }
}
