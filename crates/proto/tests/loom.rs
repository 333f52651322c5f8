//! The credit of a stream under loom's model of the memory: the shipped [`CreditGate`] and
//! [`ReceiveCredit`] between a writer, a reader and whoever ends the call, through every interleaving
//! (bounded by `LOOM_MAX_PREEMPTIONS`), with lost wakeups reported as deadlocks.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p lapwing-proto --release --test loom`.
#![cfg(loom)]

use std::collections::VecDeque;

use lapwing_proto::{Credit, CreditError, CreditGate, Ended, ReceiveCredit};
use loom::sync::{Arc, Condvar, Mutex, Notify};
use loom::thread;

/// Lengths of the items that are sent; none is like another.
const ITEMS: [u32; 3] = [5, 7, 11];

/// The frames that are on the way to the reader, at most `room` of them.
struct Way {
    room: usize,
    items: VecDeque<u32>,
    /// No further item comes, for one reason or another.
    over: bool,
}

/// One direction of a stream. As in the server, the gate has a lock of its own, so that credit is taken
/// and an item sent in two steps; a client that holds one lock over both has some of these interleavings.
struct Stream {
    gate: Mutex<CreditGate<Arc<Notify>>>,
    way: Mutex<Way>,
    changed: Condvar,
    /// What was taken before the model began, to leave a small window.
    used: Credit,
}

impl Stream {
    /// A stream of whose window this was used, and its reader's account.
    fn with_used(used: Credit, room: usize) -> (Arc<Stream>, ReceiveCredit) {
        let (mut gate, mut receive) = (CreditGate::new(), ReceiveCredit::new());
        for n in 0..used.items {
            let bytes = if n == 0 { used.bytes } else { 0 };
            assert_eq!(gate.take(bytes, |_| unreachable!()), Ok(true));
            receive.receive(bytes).unwrap();
        }
        let way = Mutex::new(Way { room, items: VecDeque::new(), over: false });
        let gate = Mutex::new(gate);
        (Arc::new(Stream { gate, way, changed: Condvar::new(), used }), receive)
    }

    /// The writer: sends all items, or as many as go before the end. Returns how many went.
    fn write(&self) -> usize {
        let asleep = Arc::new(Notify::new());
        for (sent, &bytes) in ITEMS.iter().enumerate() {
            if self.send(bytes, &asleep) == Err(Ended) {
                return sent;
            }
        }
        self.way.lock().unwrap().over = true;
        self.changed.notify_all();
        ITEMS.len()
    }

    fn send(&self, bytes: u32, asleep: &Arc<Notify>) -> Result<(), Ended> {
        loop {
            let taken =
                self.gate.lock().unwrap().take(bytes, |slot| *slot = Some(Arc::clone(asleep)));
            if !taken? {
                asleep.wait();
                continue;
            }
            let mut way = self.way.lock().unwrap();
            if way.items.len() < way.room {
                way.items.push_back(bytes);
                self.changed.notify_all();
                return Ok(());
            }
            drop(way);
            self.gate.lock().unwrap().refund(bytes);
            // Room is the ring's to tell, and is modelled there.
            let mut way = self.way.lock().unwrap();
            while way.items.len() == way.room && !way.over {
                way = self.changed.wait(way).unwrap();
            }
        }
    }

    /// The reader: takes every item until none comes, and gives each back at once. Returns them.
    fn read(&self, receive: &mut ReceiveCredit) -> Vec<u32> {
        let mut read = Vec::new();
        while let Some(bytes) = self.next() {
            receive.receive(bytes).expect("an honest sender has credit");
            receive.take(bytes);
            self.grant(receive.give_back());
            read.push(bytes);
        }
        read
    }

    fn next(&self) -> Option<u32> {
        let mut way = self.way.lock().unwrap();
        while way.items.is_empty() && !way.over {
            way = self.changed.wait(way).unwrap();
        }
        let item = way.items.pop_front();
        self.changed.notify_all();
        item
    }

    fn grant(&self, credit: Credit) {
        let writer = self.gate.lock().unwrap().grant(credit).expect("no more than was taken");
        if let Some(writer) = writer {
            writer.notify();
        }
    }

    /// The call ends: its writer is woken, and its reader finds the end behind what has come.
    fn end(&self) {
        let writer = self.gate.lock().unwrap().end();
        if let Some(writer) = writer {
            writer.notify();
        }
        self.way.lock().unwrap().over = true;
        self.changed.notify_all();
    }

    /// Credit is conserved: with what is on the way, and what was used before, the sender has the whole
    /// window; and what the reader accounts for is the same.
    fn assert_conserved(&self, mut receive: ReceiveCredit) {
        let mut gate = self.gate.lock().unwrap();
        let mut outstanding = self.used;
        for &bytes in &self.way.lock().unwrap().items {
            outstanding.items += 1;
            outstanding.bytes += bytes;
            receive.receive(bytes).unwrap();
            receive.take(bytes);
        }
        gate.grant(outstanding).unwrap();
        for more in [Credit { items: 1, bytes: 0 }, Credit { items: 0, bytes: 1 }] {
            assert_eq!(gate.grant(more).err(), Some(CreditError::Overflow), "credit was lost");
        }
        let _ = receive.give_back();
        let (_, begun) = Stream::with_used(self.used, 0);
        assert_eq!(receive, begun, "the reader's account differs");
    }
}

const ALL_ITEMS_BUT_ONE: Credit = Credit { items: Credit::WINDOW.items - 1, bytes: 100 };
const ALL_BYTES_BUT_ONE: Credit = Credit { items: 1, bytes: Credit::WINDOW.bytes - 1 };

/// Every item arrives, once and in order, and no wakeup is lost.
fn check_whole_stream(used: Credit, room: usize) {
    loom::model(move || {
        let (stream, mut receive) = Stream::with_used(used, room);
        let writer = {
            let stream = Arc::clone(&stream);
            thread::spawn(move || stream.write())
        };
        let read = stream.read(&mut receive);
        assert_eq!(writer.join().unwrap(), ITEMS.len());
        assert_eq!(read, ITEMS, "an item was lost, torn or came twice");
        stream.assert_conserved(receive);
    });
}

#[test]
fn writer_without_credit_for_an_item_is_woken_by_every_grant() {
    check_whole_stream(ALL_ITEMS_BUT_ONE, ITEMS.len());
}

#[test]
fn writer_without_credit_for_a_byte_is_woken_by_every_grant() {
    check_whole_stream(ALL_BYTES_BUT_ONE, ITEMS.len());
}

/// An item that finds no room is refunded while credit comes back for the one before.
#[test]
fn refund_and_grant_at_once_keep_the_window() {
    let two_left = Credit { items: Credit::WINDOW.items - 2, bytes: 100 };
    check_whole_stream(two_left, 1);
}

/// The call ends at any moment, while its reader reads and its writer sends or waits.
#[test]
fn end_of_the_call_wakes_its_writer_and_loses_no_credit() {
    loom::model(|| {
        let (stream, mut receive) = Stream::with_used(ALL_ITEMS_BUT_ONE, ITEMS.len());
        let writer = {
            let stream = Arc::clone(&stream);
            thread::spawn(move || stream.write())
        };
        let canceller = {
            let stream = Arc::clone(&stream);
            thread::spawn(move || stream.end())
        };
        let read = stream.read(&mut receive);
        canceller.join().unwrap();
        let sent = writer.join().unwrap();
        let late = stream.way.lock().unwrap().items.len();
        assert_eq!(sent, read.len() + late, "an item was lost");
        assert_eq!(read, ITEMS[..read.len()]);
        stream.assert_conserved(receive);
    });
}

/// Nobody reads: only the end of the call can wake the writer.
#[test]
fn end_of_a_call_that_nobody_reads_wakes_its_writer() {
    loom::model(|| {
        let (stream, receive) = Stream::with_used(ALL_ITEMS_BUT_ONE, ITEMS.len());
        let writer = {
            let stream = Arc::clone(&stream);
            thread::spawn(move || stream.write())
        };
        stream.end();
        assert!(writer.join().unwrap() <= 1, "more went than the window holds");
        assert_eq!(stream.gate.lock().unwrap().take(0, |_| unreachable!()), Err(Ended));
        stream.assert_conserved(receive);
    });
}
