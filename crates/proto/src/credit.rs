//! Credit: how many items and bytes a stream may still send in one direction.
//!
//! Each direction of a stream begins with the default window. Who sends takes credit for every item; who
//! reads gives it back, as items are taken by the application, in Credit frames. An item goes when there is
//! credit for one item and for one byte at least: the credit of bytes may fall below zero by the rest of one
//! item, so that an item longer than the window passes.
//!
//! Conserved, for items and for bytes: *available to the sender + on the way + held by the receiver + taken
//! and not yet given back + on the way back = window*.

use core::error::Error;
use core::fmt;

use crate::limits::{STREAM_BYTES, STREAM_ITEMS};

/// What the payload of a Credit frame grants.
///
/// On the wire: `u32` items, `u32` bytes, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Credit {
    /// Items more.
    pub items: u32,
    /// Payload bytes more.
    pub bytes: u32,
}

impl Credit {
    /// The window that each direction of a stream begins with.
    pub const WINDOW: Credit = Credit { items: STREAM_ITEMS, bytes: STREAM_BYTES };

    /// The payload of a Credit frame.
    #[must_use]
    pub fn encode(self) -> [u8; 8] {
        (u64::from(self.items) | u64::from(self.bytes) << 32).to_le_bytes()
    }

    /// Reads the payload of a Credit frame.
    ///
    /// # Errors
    ///
    /// [`CreditError::Malformed`] if it has not 8 bytes or grants nothing.
    pub fn decode(payload: &[u8]) -> Result<Credit, CreditError> {
        let word = u64::from_le_bytes(payload.try_into().map_err(|_| CreditError::Malformed)?);
        let credit = Credit { items: word as u32, bytes: (word >> 32) as u32 };
        if credit == Credit::default() { Err(CreditError::Malformed) } else { Ok(credit) }
    }
}

/// What is wrong with a peer's credit. It ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreditError {
    /// More was granted than the window holds: granted twice, or never used.
    Overflow,
    /// An item came without credit for it.
    Exceeded,
    /// A Credit frame that cannot be read.
    Malformed,
}

impl fmt::Display for CreditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CreditError::Overflow => "a stream was granted more than its window holds",
            CreditError::Exceeded => "a stream's item came without credit for it",
            CreditError::Malformed => "a Credit frame cannot be read",
        })
    }
}

impl Error for CreditError {}

/// The sender's account of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendCredit {
    items: u32,
    /// Below zero by the rest of one item at most.
    bytes: i64,
}

impl SendCredit {
    /// An account with the whole window.
    #[must_use]
    pub const fn new() -> SendCredit {
        SendCredit { items: Credit::WINDOW.items, bytes: Credit::WINDOW.bytes as i64 }
    }

    /// How many items may go, and how many bytes: below zero by the rest of one item at most.
    #[must_use]
    pub const fn available(&self) -> (u32, i64) {
        (self.items, self.bytes)
    }

    /// Whether an item of any length may go now.
    #[inline]
    #[must_use]
    pub const fn may_send(&self) -> bool {
        self.items > 0 && self.bytes > 0
    }

    /// Takes credit for an item of this length; `false`, and nothing taken, if there is none.
    #[inline]
    #[must_use]
    pub fn take(&mut self, bytes: u32) -> bool {
        let may = self.may_send();
        if may {
            self.items -= 1;
            self.bytes -= i64::from(bytes);
        }
        may
    }

    /// Adds what the receiver gives back.
    ///
    /// # Errors
    ///
    /// [`CreditError::Overflow`] if there is more then than the window holds; nothing is added.
    pub fn grant(&mut self, credit: Credit) -> Result<(), CreditError> {
        let items = self.items.checked_add(credit.items).ok_or(CreditError::Overflow)?;
        let bytes = self.bytes + i64::from(credit.bytes);
        if items > Credit::WINDOW.items || bytes > i64::from(Credit::WINDOW.bytes) {
            return Err(CreditError::Overflow);
        }
        (self.items, self.bytes) = (items, bytes);
        Ok(())
    }
}

impl Default for SendCredit {
    fn default() -> SendCredit {
        SendCredit::new()
    }
}

/// The call of a [`CreditGate`] has ended: no further item goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended;

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stream's call has ended")
    }
}

impl Error for Ended {}

/// The sending half of one direction, as its writer shares it with whoever reads the peer's frames: the
/// account, who waits for credit, and whether the call has ended.
///
/// It stands behind a lock, and both clients and the server do the same around it:
///
/// 1. The writer calls [`take`](CreditGate::take) *before* its item goes: the peer may give the credit back
///    as soon as the item is there. If the item does not go after all, it calls
///    [`refund`](CreditGate::refund).
/// 2. Who reads a Credit frame calls [`grant`](CreditGate::grant), and who ends the call
///    [`end`](CreditGate::end). Both give back who waited, to be woken once the lock is free.
///
/// No wakeup is lost: a writer is refused and kept in one step, and whatever changes the refusal takes it
/// out again in one step. There is one writer, so a refund wakes nobody.
///
/// `W` wakes a writer; here it is only kept.
#[derive(Debug)]
pub struct CreditGate<W> {
    credit: SendCredit,
    waiting: Option<W>,
    ended: bool,
}

impl<W> CreditGate<W> {
    /// A gate with the whole window.
    #[must_use]
    pub const fn new() -> CreditGate<W> {
        CreditGate { credit: SendCredit::new(), waiting: None, ended: false }
    }

    /// Takes credit for an item of this length. Without credit it is `false`, nothing is taken, and `wait`
    /// puts who is to be woken into the place that it is shown, or leaves it.
    ///
    /// # Errors
    ///
    /// [`Ended`] if the call has ended; nothing is taken and nobody kept.
    #[inline]
    pub fn take(&mut self, bytes: u32, wait: impl FnOnce(&mut Option<W>)) -> Result<bool, Ended> {
        if self.ended {
            return Err(Ended);
        }
        let taken = self.credit.take(bytes);
        if !taken {
            wait(&mut self.waiting);
        }
        Ok(taken)
    }

    /// Puts back what was taken for an item of this length that did not go.
    #[inline]
    pub fn refund(&mut self, bytes: u32) {
        let returned = self.credit.grant(Credit { items: 1, bytes });
        debug_assert_eq!(returned, Ok(()), "it was taken before");
    }

    /// Adds what the peer gives back, also when the call has ended meanwhile. Whom to wake comes back.
    ///
    /// # Errors
    ///
    /// [`CreditError::Overflow`] as for [`SendCredit::grant`]; nothing is added and nobody taken out.
    #[inline]
    pub fn grant(&mut self, credit: Credit) -> Result<Option<W>, CreditError> {
        self.credit.grant(credit)?;
        Ok(self.waiting.take())
    }

    /// Ends it. Whom to wake comes back.
    #[must_use = "who waits for credit would wait for ever"]
    pub fn end(&mut self) -> Option<W> {
        self.ended = true;
        self.waiting.take()
    }

    /// What may still go.
    #[must_use]
    pub const fn credit(&self) -> SendCredit {
        self.credit
    }

    /// Who waits for credit.
    #[must_use]
    pub const fn waiting(&self) -> Option<&W> {
        self.waiting.as_ref()
    }
}

impl<W> Default for CreditGate<W> {
    fn default() -> CreditGate<W> {
        CreditGate::new()
    }
}

/// The receiver's account of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveCredit {
    /// What the sender may still send.
    open: SendCredit,
    /// Taken by the application, to be given back.
    taken_items: u32,
    taken_bytes: u32,
}

impl ReceiveCredit {
    /// An account with the whole window granted.
    #[must_use]
    pub const fn new() -> ReceiveCredit {
        ReceiveCredit { open: SendCredit::new(), taken_items: 0, taken_bytes: 0 }
    }

    /// An item has come.
    ///
    /// # Errors
    ///
    /// [`CreditError::Exceeded`] if the sender had no credit for it.
    #[inline]
    pub fn receive(&mut self, bytes: u32) -> Result<(), CreditError> {
        if self.open.take(bytes) { Ok(()) } else { Err(CreditError::Exceeded) }
    }

    /// The application has taken an item that had come.
    #[inline]
    pub fn take(&mut self, bytes: u32) {
        self.taken_items += 1;
        self.taken_bytes = self.taken_bytes.saturating_add(bytes);
    }

    /// What was taken and not yet given back.
    #[must_use]
    pub const fn taken(&self) -> Credit {
        Credit { items: self.taken_items, bytes: self.taken_bytes }
    }

    /// Whether giving back is worth a frame: half of the window has been taken.
    #[inline]
    #[must_use]
    pub const fn is_due(&self) -> bool {
        self.taken_items >= Credit::WINDOW.items / 2 || self.taken_bytes >= Credit::WINDOW.bytes / 2
    }

    /// What to give back now: all that was taken. The frame that says so must be sent.
    #[must_use]
    pub fn give_back(&mut self) -> Credit {
        let credit = Credit { items: self.taken_items, bytes: self.taken_bytes };
        (self.taken_items, self.taken_bytes) = (0, 0);
        // What was taken had been received, so the window cannot overflow.
        let granted = self.open.grant(credit);
        debug_assert_eq!(granted, Ok(()));
        credit
    }
}

impl Default for ReceiveCredit {
    fn default() -> ReceiveCredit {
        ReceiveCredit::new()
    }
}

#[cfg(test)]
#[path = "credit_tests.rs"]
mod tests;
