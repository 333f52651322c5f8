//! The ring, the doorbell protocol, the wait for space, and who leads and who follows under loom's model of the memory: every
//! interleaving (bounded by `LOOM_MAX_PREEMPTIONS`) of the shipped code, with data races on record bytes
//! and lost wakeups (as deadlocks) reported.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p lapwing-shm --release --test loom`.
#![cfg(loom)]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use lapwing_shm::bulk::{BadFreed, ReturnedBlocks};
use lapwing_shm::memory::model_pair;
use lapwing_shm::{
    Bell, Consumer, Followed, Followers, Producer, ReserveError, Returns, Ring, Sleeper,
};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// An eventfd as seen by an edge-triggered watcher: a ring is kept until it is waited for.
#[derive(Default)]
struct ModelDoorbell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl ModelDoorbell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

struct Shared(Arc<ModelDoorbell>);

impl Ring for Shared {
    type Error = Infallible;

    fn ring(&self) -> Result<(), Infallible> {
        self.0.ring();
        Ok(())
    }
}

/// One side: what it writes with, reads with, and how it sleeps and wakes the other.
struct Side {
    producer: Producer,
    consumer: Consumer,
    sleeper: Sleeper,
    bell: Bell<Shared>,
    doorbell: Arc<ModelDoorbell>,
    returns: Returns,
    list: ReturnedBlocks,
}

fn sides(lines: usize) -> (Side, Side) {
    let (near_own, near_seen) = model_pair(lines);
    let (far_own, far_seen) = model_pair(lines);
    let near_doorbell = Arc::new(ModelDoorbell::default());
    let far_doorbell = Arc::new(ModelDoorbell::default());
    let near = Side {
        producer: Producer::new(near_own.clone(), far_seen.clone()),
        consumer: Consumer::new(near_own.clone(), far_seen.clone()),
        returns: Returns::new(near_own.clone()),
        list: ReturnedBlocks::new(far_seen.clone()),
        sleeper: Sleeper::new(near_own),
        bell: Bell::new(far_seen, Shared(Arc::clone(&far_doorbell))),
        doorbell: near_doorbell.clone(),
    };
    let far = Side {
        producer: Producer::new(far_own.clone(), near_seen.clone()),
        consumer: Consumer::new(far_own.clone(), near_seen.clone()),
        returns: Returns::new(far_own.clone()),
        list: ReturnedBlocks::new(near_seen.clone()),
        sleeper: Sleeper::new(far_own),
        bell: Bell::new(near_seen, Shared(near_doorbell)),
        doorbell: far_doorbell,
    };
    (near, far)
}

/// Bodies of one and of two lines, told apart by number.
fn body(n: u8) -> Vec<u8> {
    vec![n + 1; if n % 2 == 0 { 24 } else { 80 }]
}

/// Publishes as the sending half of a connection does.
fn push(producer: &mut Producer, body: &[u8]) -> Result<(), ReserveError> {
    let word = u64::from_ne_bytes([body[0]; 8]);
    producer.push_words([word; 3], &body[24..])
}

fn check(found: &[u8], n: u8) {
    assert_eq!(found, &body(n)[..], "record {n} torn, lost or twice");
}

impl Side {
    fn take(&mut self, n: u8) -> bool {
        let Some(record) = self.consumer.peek().expect("an honest peer's commit word") else {
            return false;
        };
        let mut found = Vec::new();
        record.append(0, body(n).len(), &mut found);
        if record.release() {
            self.bell.ring_if_asleep().unwrap();
        }
        check(&found, n);
        true
    }

    /// Sleeps until a record is there: arm, look again, sleep.
    fn receive(&mut self, n: u8) {
        while !self.take(n) {
            self.sleeper.arm();
            if !self.consumer.has_record() {
                self.doorbell.wait();
            }
            self.sleeper.disarm();
        }
    }

    /// Sleeps until there is space.
    fn send(&mut self, n: u8) {
        let body = body(n);
        while push(&mut self.producer, &body) == Err(ReserveError::Full) {
            self.sleeper.arm();
            if !self.producer.has_room(body.len()).unwrap() {
                self.doorbell.wait();
            }
            self.sleeper.disarm();
        }
        self.bell.ring_if_asleep().unwrap();
        self.producer.fetch_ahead();
    }
}

/// Publishes three records as there is room for them.
fn write_three(mut near: Side) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for n in 0..3 {
            while push(&mut near.producer, &body(n)) == Err(ReserveError::Full) {
                thread::yield_now();
            }
            near.producer.fetch_ahead();
        }
    })
}

#[test]
fn ring_records_are_whole_and_in_order_over_a_lap() {
    loom::model(|| {
        let (near, mut far) = sides(4);
        let writer = write_three(near);
        for n in 0..3 {
            while !far.take(n) {
                thread::yield_now();
            }
        }
        writer.join().unwrap();
    });
}

#[test]
fn records_that_are_looked_at_ahead_are_whole() {
    loom::model(|| {
        let (near, mut far) = sides(4);
        let writer = write_three(near);
        for n in 0..3 {
            let mut next = n + 1;
            let in_order = |word: u64| {
                assert_eq!(word.to_ne_bytes(), [next; 8], "torn, or out of turn");
                next += 1;
                false
            };
            assert!(!far.consumer.any_ahead(3, in_order));
            while !far.take(n) {
                thread::yield_now();
            }
        }
        writer.join().unwrap();
    });
}

#[test]
fn doorbell_sleeping_reader_is_woken_for_every_record() {
    loom::model(|| {
        let (mut near, mut far) = sides(8);
        let writer = thread::spawn(move || {
            near.send(0);
            near.send(1);
        });
        far.receive(0);
        far.receive(1);
        writer.join().unwrap();
    });
}

#[test]
fn space_wait_sleeping_writer_is_woken_when_the_reader_publishes() {
    loom::model(|| {
        let (mut near, mut far) = sides(4);
        let writer = thread::spawn(move || {
            // Four lines: the second two-line record waits for the first to be read.
            near.send(1);
            near.send(3);
        });
        far.receive(1);
        far.receive(3);
        writer.join().unwrap();
    });
}

#[test]
fn bell_shared_by_two_writers_wakes_the_reader_for_both() {
    loom::model(|| {
        let (mut near, mut far) = sides(8);
        let bell = Arc::new(near.bell);
        let first = {
            let bell = Arc::clone(&bell);
            let producer = Arc::new(Mutex::new(near.producer));
            let again = Arc::clone(&producer);
            let other = thread::spawn(move || {
                let _ = push(&mut again.lock().unwrap(), &body(0));
                bell.ring_if_asleep().unwrap();
            });
            (other, producer)
        };
        let _ = push(&mut first.1.lock().unwrap(), &body(0));
        bell.ring_if_asleep().unwrap();
        far.receive(0);
        far.receive(0);
        first.0.join().unwrap();
        near.sleeper.disarm();
    });
}

/// The returned-block list: every block comes back once, in order, and a slot is never read while it is
/// written (the model's slots are cells that report that).
#[test]
fn returned_blocks_arrive_whole_and_once() {
    loom::model(|| {
        let (own, seen) = model_pair(4);
        let mut returns = Returns::new(own);
        let giver = thread::spawn(move || {
            returns.give_back(7, 1);
            returns.give_back(8, 2);
        });
        let mut list = ReturnedBlocks::new(seen);
        let mut found = Vec::new();
        let mut look = |found: &mut Vec<(u32, u32)>| {
            let lent = 2 - found.len() as u64;
            let each = |segment, block| {
                found.push((segment, block));
                Ok::<(), BadFreed>(())
            };
            list.look(lent, each).expect("what was lent");
        };
        look(&mut found);
        look(&mut found);
        giver.join().unwrap();
        look(&mut found);
        assert_eq!(found, [(7, 1), (8, 2)]);
    });
}

/// A sender that waits for a block sleeps and is woken by its return, whenever that happens.
#[test]
fn sender_that_waits_for_a_block_is_woken_by_its_return() {
    loom::model(|| {
        let (near, far) = sides(4);
        let Side { mut sleeper, doorbell, list: near_list, .. } = near;
        let Side { bell, returns: mut far_returns, .. } = far;
        let giver = thread::spawn(move || {
            far_returns.give_back(1, 1);
            bell.ring_if_asleep().unwrap();
        });
        let mut list = near_list;
        let mut came = 0;
        let mut look = || {
            let lent = 1 - came;
            let each = |_, _| {
                came += 1;
                Ok::<(), BadFreed>(())
            };
            list.look(lent, each).expect("what was lent");
            came == 1
        };
        if !look() {
            sleeper.arm();
            if !look() {
                doorbell.wait();
                assert!(look(), "woken for nothing");
            }
        }
        giver.join().unwrap();
    });
}

/// Callers of one connection as in the blocking client: one leads and delivers for all, the others follow.
struct Callers {
    /// Replies that have come, by caller; behind the lock of the receiving half.
    came: Mutex<VecDeque<usize>>,
    doorbell: ModelDoorbell,
    half: Mutex<()>,
    met: AtomicBool,
    followers: Followers,
    /// Whether each caller's reply was delivered, and else whom to wake.
    slots: Mutex<Vec<Slot>>,
}

#[derive(Default)]
struct Slot {
    is_delivered: bool,
    waker: Option<lapwing_shm::Thread>,
}

impl Callers {
    fn new(callers: usize) -> Arc<Callers> {
        let slots = (0..callers).map(|_| Slot::default()).collect();
        Arc::new(Callers {
            came: Mutex::default(),
            doorbell: ModelDoorbell::default(),
            half: Mutex::new(()),
            met: AtomicBool::new(false),
            followers: Followers::default(),
            slots: Mutex::new(slots),
        })
    }

    fn reply(&self, caller: usize) {
        self.came.lock().unwrap().push_back(caller);
        self.doorbell.ring();
    }

    /// Registers the caller, unless its reply was delivered.
    fn done(&self, caller: usize) -> Option<()> {
        let slot = &mut self.slots.lock().unwrap()[caller];
        slot.waker = Some(lapwing_shm::current());
        slot.is_delivered.then_some(())
    }

    fn meet(&self) {
        self.met.swap(true, Ordering::AcqRel);
    }

    fn deliver(&self, caller: usize) {
        let slot = &mut self.slots.lock().unwrap()[caller];
        slot.is_delivered = true;
        if let Some(waker) = slot.waker.take() {
            waker.unpark();
        }
    }

    /// Delivers until its own reply has come, and then no further; or, without patience, what is there.
    fn lead(&self, caller: usize, is_patient: bool) -> Option<()> {
        loop {
            loop {
                let next = self.came.lock().unwrap().pop_front();
                match next {
                    Some(of) if of == caller => return Some(()),
                    Some(of) => self.deliver(of),
                    None => break,
                }
            }
            if self.done(caller).is_some() {
                return Some(());
            }
            if !is_patient {
                return None;
            }
            self.doorbell.wait();
        }
    }

    /// Waits as the blocking client does. Whether the reply came; without patience it may not have.
    fn wait_for(&self, caller: usize, is_patient: bool) -> Option<()> {
        loop {
            if let Some(answer) = self.try_to_lead(caller, is_patient) {
                return answer;
            }
            match self.follow(caller, is_patient) {
                Followed::Answer(()) => return Some(()),
                Followed::Late => return None,
                Followed::Again => {}
            }
        }
    }

    fn try_to_lead(&self, caller: usize, is_patient: bool) -> Option<Option<()>> {
        let half = self.half.try_lock().ok()?;
        let answer = self.lead(caller, is_patient);
        drop(half);
        self.meet();
        self.followers.call_on();
        Some(answer)
    }

    fn follow(&self, caller: usize, is_patient: bool) -> Followed<()> {
        let is_free = || {
            let tried = self.half.try_lock();
            // For the model, which lets nobody in between two operations on one lock.
            self.met.load(Ordering::Relaxed);
            tried.is_ok()
        };
        let left = || (!is_patient).then_some(Duration::ZERO);
        self.followers.follow(|| self.meet(), || self.done(caller), is_free, left)
    }

    fn spawn(callers: &Arc<Callers>, caller: usize) -> thread::JoinHandle<()> {
        let callers = Arc::clone(callers);
        thread::spawn(move || assert!(callers.wait_for(caller, true).is_some()))
    }

    /// One that has found the half taken.
    fn spawn_follower(
        callers: &Arc<Callers>,
        caller: usize,
        is_patient: bool,
    ) -> thread::JoinHandle<()> {
        let callers = Arc::clone(callers);
        thread::spawn(move || {
            let answer = match callers.follow(caller, is_patient) {
                Followed::Answer(()) => Some(()),
                Followed::Late => None,
                Followed::Again => callers.wait_for(caller, is_patient),
            };
            assert!(answer.is_some() || !is_patient, "it waits as long as it takes");
        })
    }
}

/// Replies come in either order, while they are waited for.
#[test]
fn callers_that_lead_and_follow_all_have_their_replies() {
    for order in [[0, 1], [1, 0]] {
        loom::model(move || {
            let callers = Callers::new(2);
            let waiting = [0, 1].map(|caller| Callers::spawn(&callers, caller));
            order.iter().for_each(|caller| callers.reply(*caller));
            waiting.into_iter().for_each(|waiting| waiting.join().unwrap());
        });
    }
}

/// A leader that has its own reply leaves those of others where they are.
#[test]
fn three_callers_that_hand_on_the_lead_all_have_their_replies() {
    loom::model(|| {
        let callers = Callers::new(3);
        (0..3).for_each(|caller| callers.reply(caller));
        let waiting = [0, 1].map(|caller| Callers::spawn(&callers, caller));
        assert!(callers.wait_for(2, true).is_some());
        waiting.into_iter().for_each(|waiting| waiting.join().unwrap());
    });
}

/// A leader leaves while two follow, and calls the one that came last: that has its reply already, or gives up.
#[test]
fn follower_that_is_called_and_does_not_lead_calls_the_other() {
    for has_reply in [true, false] {
        loom::model(move || {
            let callers = Callers::new(3);
            callers.reply(0);
            let half = callers.half.lock().unwrap();
            let patient = Callers::spawn_follower(&callers, 0, true);
            let other = Callers::spawn_follower(&callers, 1, has_reply);
            if has_reply {
                callers.deliver(1);
            }
            drop(half);
            callers.meet();
            callers.followers.call_on();
            patient.join().unwrap();
            other.join().unwrap();
        });
    }
}

/// Both have found the half taken, by a leader that has left it since; who looks whether it is free has it for a moment.
#[test]
fn follower_that_gives_up_after_it_found_the_half_free_leaves_nobody_asleep() {
    loom::model(|| {
        let callers = Callers::new(2);
        callers.reply(0);
        let waiting = Callers::spawn_follower(&callers, 0, true);
        assert_eq!(callers.follow(1, false), Followed::Late);
        waiting.join().unwrap();
    });
}
