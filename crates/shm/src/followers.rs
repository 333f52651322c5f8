//! Threads that wait on one receiving half: whoever holds it leads, and the others follow.

use std::sync::PoisonError;
use std::time::Duration;

use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, Thread, current, park, park_timeout};

/// Threads that are parked or about to be. A leader that leaves calls one of them, and who is called leads, or finds
/// that another one does, or calls the next.
///
/// Two things are the user's. The half is behind a lock that followers only try. And all who follow and all who have just
/// left the half do a read-modify-write of one atomic, with acquire and release: [`Followers::follow`] asks for it as
/// `meet`, and who leaves does it between giving the half back and [`Followers::call_on`]. Then either the one who follows
/// finds the half free, or the one who leaves finds the follower.
#[derive(Debug, Default)]
pub struct Followers {
    /// How many there are.
    count: AtomicUsize,
    list: Mutex<FollowerList>,
}

#[derive(Debug, Default)]
struct FollowerList {
    tickets: u64,
    /// The one that came last stands last.
    followers: Vec<Follower>,
}

#[derive(Debug)]
struct Follower {
    ticket: u64,
    thread: Thread,
    called: bool,
}

/// How a thread that followed comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Followed<T> {
    /// What it waited for.
    Answer(T),
    /// Its time was over first.
    Late,
    /// It may have been called to lead.
    Again,
}

impl Followers {
    /// Parks until it is woken, unless `done` has an answer or the half is free. `done` has registered this thread's waker;
    /// `is_free` may take the half for as long as it looks; `left` is the time that is left, if there is a limit.
    pub fn follow<T>(
        &self,
        meet: impl FnOnce(),
        done: impl Fn() -> Option<T>,
        is_free: impl FnOnce() -> bool,
        mut left: impl FnMut() -> Option<Duration>,
    ) -> Followed<T> {
        let ticket = self.enter();
        meet();
        let mut answer = done();
        let had_half = answer.is_none() && is_free();
        if answer.is_none() && !had_half {
            match left() {
                None => park(),
                Some(left) => park_timeout(left),
            }
            answer = done();
        }
        let was_called = self.leave(ticket);
        let followed = match answer {
            Some(answer) => Followed::Answer(answer),
            None if left().is_some_and(|left| left.is_zero()) => Followed::Late,
            None => return Followed::Again,
        };
        // It was to lead, and does not: another one has to. So does one that found the half taken while this looked whether
        // it is free.
        if was_called || had_half {
            self.call_one();
        }
        followed
    }

    /// Has one of those that follow, if there are any, lead on.
    #[inline]
    pub fn call_on(&self) {
        // Relaxed: who is not seen here sees after its `meet` that the half is free.
        if self.count.load(Ordering::Relaxed) > 0 {
            self.call_one();
        }
    }

    fn enter(&self) -> u64 {
        let mut list = self.lock();
        list.tickets += 1;
        let ticket = list.tickets;
        list.followers.push(Follower { ticket, thread: current(), called: false });
        self.count.store(list.followers.len(), Ordering::Relaxed);
        ticket
    }

    /// Whether it was called meanwhile.
    fn leave(&self, ticket: u64) -> bool {
        let mut list = self.lock();
        let at = list.followers.iter().position(|follower| follower.ticket == ticket);
        let left = list.followers.remove(at.expect("it has entered, and leaves once"));
        self.count.store(list.followers.len(), Ordering::Relaxed);
        left.called
    }

    /// Has the one lead that came last: replies come about in the order of the calls, so it has the longest to wait.
    #[cold]
    fn call_one(&self) {
        let mut list = self.lock();
        if let Some(follower) = list.followers.last_mut() {
            follower.called = true;
            follower.thread.unpark();
        }
    }

    fn lock(&self) -> MutexGuard<'_, FollowerList> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
