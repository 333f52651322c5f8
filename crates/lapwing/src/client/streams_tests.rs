//! Both ends of a call with streams, as client and server have them, frame by frame without a connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;
use crate::server::{CallEnd, CallState, Taken};

#[derive(Debug, Clone, Copy)]
enum Side {
    Client,
    Server,
}

use Side::{Client, Server};

#[derive(Debug, Clone, Copy)]
enum Step {
    Send(Side, u32),
    /// Credit is taken, but the connection has no room for the item.
    SendWithoutRoom(Side, u32),
    /// The next frame that is on its way to this side arrives.
    Arrive(Side),
    /// The application takes an item; credit that is due goes at once if there is room for it.
    Take(Side, bool),
    /// Credit that was owed goes.
    Pay(Side),
    /// The client sends its last word.
    Finish,
    /// The handler is done.
    Answer,
    /// The server ends the call, and its handler is not yet dropped.
    End(CallEnd),
    /// The client drops its half, or both.
    GiveUp,
    /// What is on the way is lost, both ways.
    Disconnect,
    /// The next call, with the server's state used again.
    Begin,
}

fn step() -> impl Strategy<Value = Step> {
    let side = || prop_oneof![Just(Client), Just(Server)];
    // Long enough runs between two ends that the window is used up, by items and by bytes.
    prop_oneof![
        60 => (side(), 0..100_000_u32).prop_map(|(side, bytes)| Step::Send(side, bytes)),
        60 => (side(), 0..100_u32).prop_map(|(side, bytes)| Step::Send(side, bytes)),
        10 => (side(), 0..100_000_u32).prop_map(|(side, bytes)| Step::SendWithoutRoom(side, bytes)),
        120 => side().prop_map(Step::Arrive),
        100 => (side(), any::<bool>()).prop_map(|(side, room)| Step::Take(side, room)),
        20 => side().prop_map(Step::Pay),
        1 => Just(Step::Finish),
        1 => Just(Step::Answer),
        1 => Just(Step::End(CallEnd::Cancelled)),
        1 => Just(Step::End(CallEnd::DeadlineExceeded)),
        1 => Just(Step::GiveUp),
        1 => Just(Step::Disconnect),
        4 => Just(Step::Begin),
    ]
}

#[derive(Debug)]
enum Frame {
    Item(u32),
    Credit(Credit),
    /// The client's last word, or the server's answer.
    Last,
    Cancel,
}

/// One who waits, and how often it was woken.
#[derive(Default)]
struct Waits {
    woken: Arc<Count>,
    /// How often it had been woken when it began.
    since: Option<usize>,
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Waits {
    fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.woken))
    }

    fn begin(&mut self) {
        self.since = Some(self.woken.0.load(Ordering::Relaxed));
    }

    /// What it waits for has come.
    fn over(&mut self) -> Result<(), TestCaseError> {
        if let Some(before) = self.since.take() {
            prop_assert!(self.woken.0.load(Ordering::Relaxed) > before, "a wakeup was lost");
        }
        Ok(())
    }
}

/// What has become of the credit of one direction, in items and bytes.
#[derive(Default)]
struct Direction {
    /// Items that went, refunded ones not counted.
    sent: (u32, i64),
    /// Given back to the sender.
    granted: (u32, i64),
    /// Thrown away by either side without being given back.
    lost: (u32, i64),
    /// Lengths of the items that went and were not taken yet, in order.
    untaken: VecDeque<u32>,
    writer: Waits,
    reader: Waits,
}

fn add(sum: &mut (u32, i64), items: u32, bytes: u32) {
    sum.0 += items;
    sum.1 += i64::from(bytes);
}

struct Ends {
    client: StreamCall,
    server: CallState,
    to_client: VecDeque<Frame>,
    to_server: VecDeque<Frame>,
    requests: Direction,
    replies: Direction,
    /// Nobody looks at the client's half any more: what comes is counted as late.
    left: bool,
    finished: bool,
    /// The server has answered, and knows the call no more.
    answered: bool,
    client_owes: bool,
    server_owes: Credit,
}

impl Ends {
    fn new(server: CallState) -> Ends {
        Ends {
            client: StreamCall::new(
                Kind::application(0x0500).expect("an application's"),
                None,
                true,
            ),
            server,
            to_client: VecDeque::new(),
            to_server: VecDeque::new(),
            requests: Direction::default(),
            replies: Direction::default(),
            left: false,
            finished: false,
            answered: false,
            client_owes: false,
            server_owes: Credit::default(),
        }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Send(side, bytes) => self.send(side, bytes, true)?,
            Step::SendWithoutRoom(side, bytes) => self.send(side, bytes, false)?,
            Step::Arrive(Client) => self.arrive_at_client()?,
            Step::Arrive(Server) => self.arrive_at_server()?,
            Step::Take(Client, room) => self.take_at_client(room)?,
            Step::Take(Server, room) => self.take_at_server(room)?,
            Step::Pay(Client) => self.pay_of_client(),
            Step::Pay(Server) => self.pay_of_server(),
            Step::Finish => {
                if !self.left && !self.finished && self.client.ended.is_none() {
                    self.finished = true;
                    self.to_server.push_back(Frame::Last);
                }
            }
            Step::Answer => {
                if !self.answered {
                    self.end_server(CallEnd::Over)?;
                    self.answered = true;
                    self.to_client.push_back(Frame::Last);
                }
            }
            Step::End(end) => {
                if !self.answered {
                    self.end_server(end)?;
                }
            }
            Step::GiveUp => {
                if !self.left && self.client.ended.is_none() {
                    self.to_server.push_back(Frame::Cancel);
                }
                self.leave()?;
            }
            Step::Disconnect => self.disconnect()?,
            Step::Begin => {
                let mut server = std::mem::replace(&mut self.server, CallState::alone());
                server.renew();
                *self = Ends::new(server);
            }
        }
        self.assert_conserved()
    }

    fn send(&mut self, side: Side, bytes: u32, room: bool) -> Result<(), TestCaseError> {
        let taken = match side {
            Client if self.left || self.finished => return Ok(()),
            Client => {
                let waker = self.requests.writer.waker();
                let taken = self.client.send.take(bytes, |writer| *writer = Some(waker));
                prop_assert_eq!(taken.is_err(), self.client.ended.is_some());
                taken.ok()
            }
            Server => {
                let waker = self.replies.writer.waker();
                let taken = self.server.take_credit(bytes as usize, Some(&waker));
                prop_assert_eq!(taken.err(), self.server.has_ended());
                taken.ok()
            }
        };
        let direction = match side {
            Client => &mut self.requests,
            Server => &mut self.replies,
        };
        match taken {
            None => return Ok(()),
            Some(false) => {
                direction.writer.begin();
                return Ok(());
            }
            Some(true) => {}
        }
        if room {
            add(&mut direction.sent, 1, bytes);
            direction.untaken.push_back(bytes);
        }
        match (side, room) {
            (Client, true) => self.to_server.push_back(Frame::Item(bytes)),
            (Client, false) => self.client.send.refund(bytes),
            (Server, true) => self.to_client.push_back(Frame::Item(bytes)),
            (Server, false) => self.server.refund(bytes as usize),
        }
        Ok(())
    }

    fn arrive_at_client(&mut self) -> Result<(), TestCaseError> {
        let Some(frame) = self.to_client.pop_front() else { return Ok(()) };
        match frame {
            Frame::Item(bytes) if self.left => add(&mut self.replies.lost, 1, bytes),
            Frame::Item(bytes) => {
                let reader = self.client.arrive(payload(bytes));
                let reader =
                    reader.map_err(|_| TestCaseError::fail("an honest item is refused"))?;
                reader.into_iter().for_each(Waker::wake);
                self.replies.reader.over()?;
            }
            Frame::Credit(credit) if self.left => {
                add(&mut self.requests.lost, credit.items, credit.bytes);
            }
            Frame::Credit(credit) => {
                let writer = self.client.grant(credit);
                let writer = writer.map_err(|_| TestCaseError::fail("honest credit is refused"))?;
                writer.into_iter().for_each(Waker::wake);
                add(&mut self.requests.granted, credit.items, credit.bytes);
                self.requests.writer.over()?;
            }
            Frame::Last if self.left => {}
            Frame::Last => self.end_client()?,
            Frame::Cancel => unreachable!("a server cancels nothing"),
        }
        Ok(())
    }

    fn arrive_at_server(&mut self) -> Result<(), TestCaseError> {
        let Some(frame) = self.to_server.pop_front() else { return Ok(()) };
        match frame {
            // It knows the call no more.
            Frame::Item(bytes) if self.answered => add(&mut self.requests.lost, 1, bytes),
            Frame::Credit(credit) if self.answered => {
                add(&mut self.replies.lost, credit.items, credit.bytes);
            }
            Frame::Last | Frame::Cancel if self.answered => {}
            Frame::Item(bytes) => {
                let arrived = self.server.arrive(Some(payload(bytes)), false);
                prop_assert!(arrived.is_ok(), "an honest item is refused: {arrived:?}");
                if self.server.has_ended().is_some() {
                    add(&mut self.requests.lost, 1, bytes);
                }
                self.requests.reader.over()?;
            }
            Frame::Last => {
                prop_assert!(self.server.arrive(None, true).is_ok());
                self.requests.reader.over()?;
            }
            Frame::Credit(credit) => {
                prop_assert_eq!(self.server.grant(credit), Ok(()));
                add(&mut self.replies.granted, credit.items, credit.bytes);
                self.replies.writer.over()?;
            }
            Frame::Cancel => self.end_server(CallEnd::Cancelled)?,
        }
        Ok(())
    }

    fn take_at_client(&mut self, room: bool) -> Result<(), TestCaseError> {
        if self.left {
            return Ok(());
        }
        match self.client.take_item() {
            Some((item, is_due)) => {
                prop_assert_eq!(self.replies.untaken.pop_front(), Some(item.len() as u32));
                self.client_owes |= is_due;
                if is_due && room {
                    self.pay_of_client();
                }
            }
            None if self.client.ended.is_some() => {
                // It has seen the end, after all items.
                prop_assert_eq!(self.client.items.len(), 0);
                self.leave()?;
            }
            None => {
                self.client.reader = Some(self.replies.reader.waker());
                self.replies.reader.begin();
            }
        }
        Ok(())
    }

    fn take_at_server(&mut self, room: bool) -> Result<(), TestCaseError> {
        match self.server.take_item(&self.requests.reader.waker()) {
            Taken::Item(item, credit) => {
                prop_assert_eq!(self.requests.untaken.pop_front(), Some(item.len() as u32));
                let Credit { items, bytes } = credit.unwrap_or_default();
                self.server_owes.items += items;
                self.server_owes.bytes += bytes;
                if room {
                    self.pay_of_server();
                }
            }
            Taken::End => {
                prop_assert!(self.finished);
                prop_assert!(self.requests.untaken.is_empty(), "an item was lost before the end");
            }
            Taken::Ended(end) => prop_assert_eq!(Some(end), self.server.has_ended()),
            Taken::Nothing => self.requests.reader.begin(),
        }
        Ok(())
    }

    fn pay_of_client(&mut self) {
        if std::mem::take(&mut self.client_owes)
            && !self.left
            && let Some(credit) = self.client.give_back()
        {
            self.to_server.push_back(Frame::Credit(credit));
        }
    }

    fn pay_of_server(&mut self) {
        let credit = std::mem::take(&mut self.server_owes);
        if credit == Credit::default() {
            return;
        }
        if self.server.is_over() {
            add(&mut self.requests.lost, credit.items, credit.bytes);
        } else {
            self.to_client.push_back(Frame::Credit(credit));
        }
    }

    /// The server's call ends, if it has not: what it holds is thrown away.
    fn end_server(&mut self, end: CallEnd) -> Result<(), TestCaseError> {
        let (_, _, held) = self.server.accounts();
        let ended_before = self.server.has_ended();
        prop_assert!(ended_before.is_none() || held.is_empty());
        self.server.end(end);
        prop_assert_eq!(self.server.has_ended(), ended_before.or(Some(end)), "the first one stays");
        held.into_iter().for_each(|bytes| add(&mut self.requests.lost, 1, bytes));
        self.replies.writer.over()?;
        self.requests.reader.over()
    }

    fn end_client(&mut self) -> Result<(), TestCaseError> {
        if self.client.ended.is_none() {
            self.client.ended = Some(Outcome::Ended);
            self.client.wakers().for_each(Waker::wake);
        }
        self.requests.writer.over()?;
        self.replies.reader.over()
    }

    /// The client's half goes: what it holds is thrown away, and its other half sees the end.
    fn leave(&mut self) -> Result<(), TestCaseError> {
        self.left = true;
        self.client.wakers().for_each(Waker::wake);
        for item in self.client.items.drain(..) {
            add(&mut self.replies.lost, 1, item.len() as u32);
        }
        self.requests.writer.over()?;
        self.replies.reader.over()
    }

    fn disconnect(&mut self) -> Result<(), TestCaseError> {
        let Ends { requests, replies, .. } = self;
        lose(&mut self.to_client, &mut replies.lost, &mut requests.lost);
        lose(&mut self.to_server, &mut requests.lost, &mut replies.lost);
        self.answered = true;
        self.end_server(CallEnd::Disconnected)?;
        self.end_client()
    }

    /// Each item and each byte is in one place.
    fn assert_conserved(&self) -> Result<(), TestCaseError> {
        let (reply_credit, request_account, held_requests) = self.server.accounts();
        let held_replies = self.client.items.iter().map(|item| item.len() as u32).collect();
        let owed = self.server_owes;
        for (what, direction, available, way, back, held, taken) in [
            (
                "requests",
                &self.requests,
                self.client.send.credit(),
                &self.to_server,
                &self.to_client,
                held_requests,
                [request_account.taken(), owed],
            ),
            (
                "replies",
                &self.replies,
                reply_credit,
                &self.to_client,
                &self.to_server,
                held_replies,
                [self.client.receive.taken(), Credit::default()],
            ),
        ] {
            let mut in_flight = (0, 0);
            let on_the_way = way.iter().filter_map(|frame| match frame {
                Frame::Item(bytes) => Some(*bytes),
                _ => None,
            });
            let held: Vec<u32> = held;
            on_the_way.chain(held).for_each(|bytes| add(&mut in_flight, 1, bytes));
            let on_the_way_back = back.iter().filter_map(|frame| match frame {
                Frame::Credit(credit) => Some(*credit),
                _ => None,
            });
            for Credit { items, bytes } in on_the_way_back.chain(taken) {
                add(&mut in_flight, items, bytes);
            }
            let available = available.available();
            let window = (Credit::WINDOW.items, i64::from(Credit::WINDOW.bytes));
            let Direction { sent, granted, lost, .. } = direction;
            let sum = (available.0 + in_flight.0 + lost.0, available.1 + in_flight.1 + lost.1);
            prop_assert_eq!(sum, window, "{}: {:?} on the way", what, in_flight);
            let used = (available.0 + sent.0, available.1 + sent.1);
            let given = (window.0 + granted.0, window.1 + granted.1);
            prop_assert_eq!(used, given, "{}: what was sent and what may go was granted", what);
        }
        Ok(())
    }
}

/// Loses what is on its way: items of one direction, and credit of the other.
fn lose(way: &mut VecDeque<Frame>, items: &mut (u32, i64), credit: &mut (u32, i64)) {
    for frame in way.drain(..) {
        match frame {
            Frame::Item(bytes) => add(items, 1, bytes),
            Frame::Credit(Credit { items, bytes }) => add(credit, items, bytes),
            Frame::Last | Frame::Cancel => {}
        }
    }
}

fn payload(bytes: u32) -> Payload {
    Payload::from(vec![0; bytes as usize])
}

proptest! {
    /// Whatever both ends do in whatever order: no credit is lost or made, no item is lost or changes places before the
    /// end, and whoever waits is woken.
    #[test]
    fn credit_is_conserved_between_a_client_s_call_and_its_server_s(
        steps in prop::collection::vec(step(), 0..600),
    ) {
        let mut ends = Ends::new(CallState::alone());
        for step in steps {
            ends.step(step)?;
        }
    }
}
