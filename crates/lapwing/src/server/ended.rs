//! The calls with streams that a connection has answered last: what tells a frame that crossed its call's answer from
//! one of a call that never was.
//!
//! A caller may have *N* calls without a response, and sends nothing for a call whose response it has read. Let a frame of
//! a call X come when X has been answered, and when no frame that was read after it has been handled. Then every call that was
//! answered after X was opened before that frame was sent, and its response stands behind that of X. As the caller had
//! not read that, all these calls were open to it, as X was: there are fewer than N. A response that waits for room is counted
//! before it stands in its place, and responses of calls that run may go before it: fewer than N again, for nothing is
//! begun meanwhile. So X is among the last 2 N. A response that cannot be sent because the caller is gone counts as the others: what it
//! sent before is still to be read.

/// The ids of the last calls with streams that were answered. Without such calls it has no memory.
#[derive(Debug)]
pub(crate) struct EndedStreams {
    ids: Vec<u64>,
    capacity: usize,
    /// Where the next id goes once as many are there as may be: the place of the oldest one.
    oldest: usize,
}

impl EndedStreams {
    /// For a connection on which the caller may have this many calls in flight.
    pub(crate) fn new(calls_in_flight: usize) -> EndedStreams {
        EndedStreams { ids: Vec::new(), capacity: 2 * calls_in_flight, oldest: 0 }
    }

    /// A call is answered; the oldest one is forgotten if need be. An id that was used again stands here twice.
    pub(crate) fn remember(&mut self, id: u64) {
        if self.ids.len() < self.capacity {
            self.ids.push(id);
            return;
        }
        self.ids[self.oldest] = id;
        self.oldest = (self.oldest + 1) % self.capacity;
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        self.ids.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_as_many_are_remembered_as_may_be_in_flight() {
        for calls_in_flight in [1, 2, 7] {
            let mut ended = EndedStreams::new(calls_in_flight);
            for id in 1..=50 {
                assert!(!ended.contains(id));
                ended.remember(id);
                let first = id.saturating_sub(2 * calls_in_flight as u64) + 1;
                for other in 1..=50 {
                    assert_eq!(ended.contains(other), (first..=id).contains(&other), "{other}");
                }
            }
        }
    }

    #[test]
    fn id_that_is_used_again_is_remembered_from_its_last_use() {
        let mut ended = EndedStreams::new(2);
        [1, 2, 1, 3, 4, 5].into_iter().for_each(|id| ended.remember(id));
        assert_eq!([1, 2, 3, 4, 5].map(|id| ended.contains(id)), [true, false, true, true, true]);
        ended.remember(6);
        assert!(!ended.contains(1));
    }

    #[test]
    fn nothing_is_allocated_before_the_first_stream() {
        assert_eq!(EndedStreams::new(65_536).ids.capacity(), 0);
    }
}
