use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

#[test]
fn credit_frames_round_trip_and_bad_ones_are_refused() {
    let credit = Credit { items: 3, bytes: 0x0102_0304 };
    assert_eq!(credit.encode(), [3, 0, 0, 0, 4, 3, 2, 1]);
    assert_eq!(Credit::decode(&credit.encode()), Ok(credit));
    for bad in [&[][..], &[1; 7], &[1; 9], &[0; 8]] {
        assert_eq!(Credit::decode(bad), Err(CreditError::Malformed));
    }
}

#[test]
fn window_that_is_granted_twice_or_overflows_is_refused_and_changes_nothing() {
    let mut credit = SendCredit::new();
    for too_much in [
        Credit { items: 1, bytes: 0 },
        Credit { items: 0, bytes: 1 },
        Credit { items: u32::MAX, bytes: u32::MAX },
    ] {
        assert_eq!(credit.grant(too_much), Err(CreditError::Overflow));
        assert_eq!(credit, SendCredit::new());
    }
    assert!(credit.take(10));
    assert_eq!(credit.grant(Credit { items: 1, bytes: 10 }), Ok(()));
    assert_eq!(credit.grant(Credit { items: 1, bytes: 10 }), Err(CreditError::Overflow));
}

#[test]
fn item_longer_than_the_window_passes_alone() {
    let (mut send, mut receive) = (SendCredit::new(), ReceiveCredit::new());
    let long = Credit::WINDOW.bytes + 5;
    assert!(send.take(long) && receive.receive(long).is_ok());
    assert!(!send.take(0), "nothing more until it was taken");
    assert_eq!(receive.receive(0), Err(CreditError::Exceeded));
    receive.take(long);
    assert!(receive.is_due());
    send.grant(receive.give_back()).unwrap();
    assert_eq!(send, SendCredit::new());
    assert_eq!(receive, ReceiveCredit::new());
}

#[test]
fn receiver_that_takes_nothing_stops_its_sender_at_the_window() {
    let mut send = SendCredit::new();
    let sent = (0..1000).take_while(|_| send.take(1)).count();
    assert_eq!(sent, Credit::WINDOW.items as usize);
}

/// One step of a stream whose frames are on the way in order, both ways.
#[derive(Debug, Clone, Copy)]
enum Step {
    Send(u32),
    /// Credit is taken, but the connection has no room for the item.
    SendWithoutRoom(u32),
    Arrive,
    /// The application takes an item.
    Receive,
    GiveBack,
    CreditArrives,
    /// The peer grants what nobody has sent.
    Overgrant(Credit),
    /// The peer sends beyond what it was granted.
    Overrun(u32),
    End(End),
    /// The next stream, in the place of the last.
    Begin,
}

/// How a stream ends before all of it was sent and read.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The reader's side gives up: what it holds and what comes yet is thrown away, and what it has taken
    /// is not given back any more. The writer learns of it.
    Cancelled,
    /// The writer's side ends with an error: its reader still takes what has come and what comes yet.
    Failed,
    /// The reader's half goes while its call goes on: nothing is given back any more, and a writer that
    /// sends on stops at the window.
    ReaderDropped,
    /// The writer's half goes; what it has sent is read.
    WriterDropped,
    /// What is on the way is lost, both ways.
    Disconnected,
}

fn step() -> impl Strategy<Value = Step> {
    let credit = prop_oneof![
        (0..=Credit::WINDOW.items, 0..=Credit::WINDOW.bytes),
        (any::<u32>(), any::<u32>()),
    ]
    .prop_map(|(items, bytes)| Credit { items, bytes });
    let end = prop_oneof![
        Just(End::Cancelled),
        Just(End::Failed),
        Just(End::ReaderDropped),
        Just(End::WriterDropped),
        Just(End::Disconnected),
    ];
    // Long enough runs between two ends that the window is used up, by items and by bytes.
    prop_oneof![
        60 => (0..100_000_u32).prop_map(Step::Send),
        60 => (0..100_u32).prop_map(Step::Send),
        10 => (0..100_000_u32).prop_map(Step::SendWithoutRoom),
        80 => Just(Step::Arrive),
        80 => Just(Step::Receive),
        50 => Just(Step::GiveBack),
        50 => Just(Step::CreditArrives),
        10 => credit.prop_map(Step::Overgrant),
        10 => (0..100_u32).prop_map(Step::Overrun),
        3 => end.prop_map(Step::End),
        4 => Just(Step::Begin),
    ]
}

/// Both sides of one direction and what is between them.
struct Direction {
    gate: CreditGate<()>,
    receive: ReceiveCredit,
    way: VecDeque<u32>,
    held: VecDeque<u32>,
    back: VecDeque<Credit>,
    /// Thrown away by either side without being given back.
    discarded: (u32, i64),
    /// The writer was refused and has not been woken since.
    waits: bool,
    sends: bool,
    reads: bool,
}

impl Direction {
    fn new() -> Direction {
        Direction {
            gate: CreditGate::new(),
            receive: ReceiveCredit::new(),
            way: VecDeque::new(),
            held: VecDeque::new(),
            back: VecDeque::new(),
            discarded: (0, 0),
            waits: false,
            sends: true,
            reads: true,
        }
    }

    fn discard(&mut self, items: u32, bytes: i64) {
        self.discarded.0 += items;
        self.discarded.1 += bytes;
    }

    /// Takes credit as a writer does that waits without it.
    fn take(&mut self, bytes: u32) -> Result<bool, TestCaseError> {
        let expected = if self.sends { Ok(self.gate.credit.may_send()) } else { Err(Ended) };
        let before = self.gate.credit;
        let taken = self.gate.take(bytes, |writer| *writer = Some(()));
        prop_assert_eq!(taken, expected);
        if taken != Ok(true) {
            prop_assert_eq!(self.gate.credit, before, "refused, nothing is taken");
        }
        self.waits |= taken == Ok(false);
        Ok(taken == Ok(true))
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Send(bytes) => {
                if self.take(bytes)? {
                    self.way.push_back(bytes);
                }
            }
            Step::SendWithoutRoom(bytes) => {
                let before = self.gate.credit;
                if self.take(bytes)? {
                    self.gate.refund(bytes);
                }
                prop_assert_eq!(self.gate.credit, before);
            }
            Step::Arrive => self.arrive()?,
            Step::Receive => {
                if let Some(bytes) = self.held.pop_front() {
                    self.receive.take(bytes);
                }
            }
            Step::GiveBack => {
                if self.reads && self.receive.is_due() {
                    self.back.push_back(self.receive.give_back());
                }
            }
            Step::CreditArrives => {
                if let Some(credit) = self.back.pop_front() {
                    let woken = self.gate.grant(credit);
                    prop_assert_eq!(woken, Ok(self.waits.then_some(())), "a wakeup was lost");
                    self.waits = false;
                }
            }
            Step::Overgrant(credit) => self.overgrant(credit)?,
            Step::Overrun(bytes) => {
                if !self.receive.open.may_send() {
                    let before = self.receive;
                    prop_assert_eq!(self.receive.receive(bytes), Err(CreditError::Exceeded));
                    prop_assert_eq!(self.receive, before);
                }
            }
            Step::End(end) => self.end(end)?,
            Step::Begin => {
                *self = Direction::new();
                let whole = SendCredit::new();
                prop_assert_eq!((self.gate.credit, self.receive.open), (whole, whole));
            }
        }
        self.assert_conserved()
    }

    /// An item comes; a reader that has ended still accounts for it, and throws it away.
    fn arrive(&mut self) -> Result<(), TestCaseError> {
        if let Some(bytes) = self.way.pop_front() {
            prop_assert_eq!(self.receive.receive(bytes), Ok(()), "an honest sender is refused");
            if self.reads {
                self.held.push_back(bytes);
            } else {
                self.discard(1, i64::from(bytes));
            }
        }
        Ok(())
    }

    fn overgrant(&mut self, credit: Credit) -> Result<(), TestCaseError> {
        let SendCredit { items, bytes } = self.gate.credit;
        let beyond = u64::from(items) + u64::from(credit.items) > u64::from(Credit::WINDOW.items)
            || bytes + i64::from(credit.bytes) > i64::from(Credit::WINDOW.bytes);
        if beyond {
            prop_assert_eq!(self.gate.grant(credit), Err(CreditError::Overflow));
            prop_assert_eq!(self.gate.credit, SendCredit { items, bytes });
            prop_assert_eq!(self.gate.waiting().is_some(), self.waits, "nobody is woken");
        }
        Ok(())
    }

    fn end(&mut self, end: End) -> Result<(), TestCaseError> {
        let (sends, reads) = match end {
            End::Cancelled | End::Disconnected => (false, false),
            End::ReaderDropped => (self.sends, false),
            End::Failed | End::WriterDropped => (false, self.reads),
        };
        if self.sends && !sends {
            prop_assert_eq!(self.gate.end(), self.waits.then_some(()), "a wakeup was lost");
            (self.sends, self.waits) = (false, false);
        }
        if self.reads && !reads {
            self.reads = false;
            for bytes in std::mem::take(&mut self.held) {
                self.discard(1, i64::from(bytes));
            }
        }
        if matches!(end, End::Disconnected) {
            for bytes in std::mem::take(&mut self.way) {
                self.discard(1, i64::from(bytes));
            }
            for credit in std::mem::take(&mut self.back) {
                self.discard(credit.items, i64::from(credit.bytes));
            }
        }
        Ok(())
    }

    fn assert_conserved(&self) -> Result<(), TestCaseError> {
        let Direction { gate, receive, way, held, back, discarded, .. } = self;
        let sum = |queue: &VecDeque<u32>| queue.iter().map(|&bytes| i64::from(bytes)).sum::<i64>();
        let items = gate.credit.items
            + (way.len() + held.len()) as u32
            + receive.taken_items
            + back.iter().map(|credit| credit.items).sum::<u32>()
            + discarded.0;
        let bytes = gate.credit.bytes
            + sum(way)
            + sum(held)
            + i64::from(receive.taken_bytes)
            + back.iter().map(|credit| i64::from(credit.bytes)).sum::<i64>()
            + discarded.1;
        prop_assert_eq!(items, Credit::WINDOW.items);
        prop_assert_eq!(bytes, i64::from(Credit::WINDOW.bytes));
        prop_assert_eq!(gate.waiting().is_some(), self.waits);
        Ok(())
    }
}

#[test]
fn call_that_ends_wakes_its_writer_once_and_refuses_it_from_then_on() {
    let mut gate = CreditGate::new();
    while gate.take(1, |writer| *writer = Some("the writer")).unwrap() {}
    assert_eq!(gate.waiting(), Some(&"the writer"));
    assert_eq!(gate.end(), Some("the writer"));
    assert_eq!(gate.end(), None);
    assert_eq!(gate.take(1, |_| unreachable!("it cannot wait")), Err(Ended));
    assert_eq!(gate.grant(Credit { items: 1, bytes: 1 }), Ok(None), "late credit is no fault");
}

proptest! {
    /// Whatever happens in whatever order, each item and each byte is in one place.
    #[test]
    fn credit_is_conserved_over_every_interleaving(steps in prop::collection::vec(step(), 0..600)) {
        let mut direction = Direction::new();
        for step in steps {
            direction.step(step)?;
        }
    }

    #[test]
    fn stream_whose_reader_reads_never_stalls(lengths in prop::collection::vec(0..400_000_u32, 1..200)) {
        let (mut send, mut receive) = (SendCredit::new(), ReceiveCredit::new());
        let mut passed = Vec::new();
        for &bytes in &lengths {
            prop_assert!(send.take(bytes), "there is credit whenever all that came was taken");
            receive.receive(bytes).unwrap();
            receive.take(bytes);
            if receive.is_due() {
                send.grant(receive.give_back()).unwrap();
            }
            passed.push(bytes);
        }
        prop_assert_eq!(passed, lengths);
    }
}
