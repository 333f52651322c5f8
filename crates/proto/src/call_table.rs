//! The calls in flight: an id finds its call without hashing, and a forged or late id finds none.

use alloc::vec::Vec;
use core::error::Error;
use core::fmt;
use core::mem;

use crate::MessageId;

/// The end of the list of free slots.
const NO_SLOT: u32 = u32::MAX;

/// Calls in flight by message id, at most `capacity` of them.
///
/// An id is `generation << 32 | slot`. Invariants:
/// - A slot's generation starts at 1 and rises by one each time its call ends, so an id is issued
///   once and none is 0.
/// - A free slot's generation is the one that it will issue next; so an id with a lower generation
///   has ended, and one with the same or a higher was never issued.
/// - A slot whose generation cannot rise is retired and never issues again; all its ids have ended.
/// - Free slots form a list, last freed first: a caller that makes one call at a time stays on one
///   warm slot.
///
/// Slots are made when first needed and kept, so that nothing is allocated after warm-up.
#[derive(Debug)]
pub struct CallTable<T> {
    slots: Vec<Slot<T>>,
    first_free: u32,
    live: u32,
    capacity: u32,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    state: State<T>,
}

#[derive(Debug)]
enum State<T> {
    Live(T),
    Free { next: u32 },
    Retired,
}

/// The table is full; gives the refused value back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this connection has all the calls in flight that it allows")
    }
}

impl<T: fmt::Debug> Error for Full<T> {}

/// What an id stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'a, T> {
    /// A call in flight.
    Live(&'a mut T),
    /// A call that has ended: a late response, to be discarded and counted.
    Ended,
    /// No call, ever: a forged response, which is misbehaviour.
    NeverIssued,
}

impl<T> CallTable<T> {
    /// An empty table for at most `capacity` calls at once. Allocates nothing yet.
    #[must_use]
    pub fn with_capacity(capacity: u32) -> CallTable<T> {
        CallTable { slots: Vec::new(), first_free: NO_SLOT, live: 0, capacity }
    }

    /// Puts a call in and gives its id.
    ///
    /// # Errors
    ///
    /// [`Full`] with the value, if `capacity` calls are in flight.
    pub fn insert(&mut self, value: T) -> Result<MessageId, Full<T>> {
        match self.vacancy() {
            Some(vacancy) => Ok(vacancy.fill(value)),
            None => Err(Full(value)),
        }
    }

    /// A place for a call, or `None` if `capacity` calls are in flight.
    #[inline(always)]
    pub fn vacancy(&mut self) -> Option<Vacancy<'_, T>> {
        if self.live >= self.capacity {
            return None;
        }
        let index = match self.first_free {
            NO_SLOT => self.grow()?,
            index => index,
        };
        let CallTable { slots, first_free, live, .. } = self;
        Some(Vacancy { slot: slots.get_mut(index as usize)?, first_free, live, index })
    }

    /// What `id` stands for.
    #[inline]
    pub fn find(&mut self, id: MessageId) -> Lookup<'_, T> {
        let (index, generation) = parts_of(id);
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return Lookup::NeverIssued;
        };
        match &mut slot.state {
            State::Live(value) if slot.generation == generation => Lookup::Live(value),
            State::Live(_) | State::Free { .. } if generation >= slot.generation => {
                Lookup::NeverIssued
            }
            _ if generation == 0 => Lookup::NeverIssued,
            _ => Lookup::Ended,
        }
    }

    /// Ends the call with this id and gives its value back, or `None` if it is not in flight.
    #[inline]
    pub fn remove(&mut self, id: MessageId) -> Option<T> {
        let (index, generation) = parts_of(id);
        let slot = self.slots.get_mut(index as usize)?;
        if slot.generation != generation || !matches!(slot.state, State::Live(_)) {
            return None;
        }
        Some(self.end(index))
    }

    /// Ends the call with this id and drops its value where it stands; whether it was in flight.
    #[inline(always)]
    pub fn discard(&mut self, id: MessageId) -> bool {
        let (index, generation) = parts_of(id);
        let Some(slot) = self.slots.get_mut(index as usize) else { return false };
        if slot.generation != generation || !slot.is_live() {
            return false;
        }
        slot.state = after(&mut slot.generation, &mut self.first_free, index);
        self.live -= 1;
        true
    }

    /// Calls in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live as usize
    }

    /// Whether no call is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The most calls that may be in flight.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Ends every call and gives their ids and values. Those not taken when the iterator is dropped
    /// stay in flight.
    pub fn drain(&mut self) -> impl Iterator<Item = (MessageId, T)> {
        let mut index = 0;
        core::iter::from_fn(move || {
            while let Some(slot) = self.slots.get(index as usize) {
                let (at, generation) = (index, slot.generation);
                index += 1;
                if self.slots[at as usize].is_live() {
                    return Some((id_of(at, generation), self.end(at)));
                }
            }
            None
        })
    }

    /// The calls in flight, by slot.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (MessageId, &mut T)> {
        self.slots.iter_mut().zip(0..).filter_map(|(slot, index)| match &mut slot.state {
            State::Live(value) => Some((id_of(index, slot.generation), value)),
            State::Free { .. } | State::Retired => None,
        })
    }

    /// Makes one more slot, outside the list of free ones; `None` if slot numbers are used up.
    #[cold]
    fn grow(&mut self) -> Option<u32> {
        let index = u32::try_from(self.slots.len()).ok().filter(|&index| index != NO_SLOT)?;
        self.slots.push(Slot { generation: 1, state: State::Free { next: NO_SLOT } });
        Some(index)
    }

    /// Ends the call of a live slot.
    #[inline]
    fn end(&mut self, index: u32) -> T {
        let slot = &mut self.slots[index as usize];
        let after = after(&mut slot.generation, &mut self.first_free, index);
        self.live -= 1;
        match mem::replace(&mut slot.state, after) {
            State::Live(value) => value,
            State::Free { .. } | State::Retired => unreachable!("the caller saw a live slot"),
        }
    }
}

/// What a slot is after its call: free, or never again.
#[inline(always)]
fn after<T>(generation: &mut u32, first_free: &mut u32, index: u32) -> State<T> {
    match generation.checked_add(1) {
        Some(next) => {
            *generation = next;
            State::Free { next: mem::replace(first_free, index) }
        }
        None => State::Retired,
    }
}

/// A place that is free. Values are large to be moved: this is for one that is made where it stays.
#[derive(Debug)]
pub struct Vacancy<'a, T> {
    slot: &'a mut Slot<T>,
    first_free: &'a mut u32,
    live: &'a mut u32,
    index: u32,
}

impl<T> Vacancy<'_, T> {
    /// Puts a call in and gives its id.
    #[inline(always)]
    pub fn fill(self, value: T) -> MessageId {
        let Vacancy { slot, first_free, live, index } = self;
        if let State::Free { next } = slot.state {
            *first_free = next;
        }
        // Nothing is lost: the slot is free. Where the old state could be dropped first, the value would be put
        // together elsewhere and copied.
        mem::forget(mem::replace(&mut slot.state, State::Live(value)));
        *live += 1;
        id_of(index, slot.generation)
    }
}

impl<T> Slot<T> {
    #[inline]
    fn is_live(&self) -> bool {
        matches!(self.state, State::Live(_))
    }
}

#[inline]
fn id_of(index: u32, generation: u32) -> MessageId {
    MessageId::new(u64::from(generation) << 32 | u64::from(index))
}

#[inline]
fn parts_of(id: MessageId) -> (u32, u32) {
    (id.get() as u32, (id.get() >> 32) as u32)
}

#[cfg(test)]
#[path = "call_table_tests.rs"]
mod tests;
