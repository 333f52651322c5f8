//! The streams of a connection as both clients drive them: items in, items out, credit, and what is owed
//! to the server when there is room.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Instant;

use lapwing_proto::{
    Credit, CreditGate, Ended, Flags, Goodbye, Kind, Lookup, MessageId, ReceiveCredit, Status,
    WireError,
};

use super::core::{Call, Core, Lacks, Outbox, Outcome, Room, Started};
use crate::error::CallError;
use crate::link::{Broken, SendError, call_header, connection_header, misbehaved};
use crate::payload::Payload;

/// A call with a stream in one direction at least.
#[derive(Debug)]
pub(super) struct StreamCall {
    pub(super) kind: Kind,
    pub(super) begun: Option<Instant>,
    /// Whether the method has a stream of replies.
    pub(super) gets_items: bool,
    /// Items that have come and were not taken yet: the window bounds them.
    items: VecDeque<Payload>,
    receive: ReceiveCredit,
    pub(super) reader: Option<Waker>,
    pub(super) send: CreditGate<Waker>,
    pub(super) ended: Option<Outcome>,
}

/// A frame that found no room, to be sent when there is some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owed {
    Cancel(MessageId, Kind),
    Credit(MessageId),
    Goodbye,
}

/// What a reader finds.
pub(crate) enum Item {
    Here(Payload),
    /// The call is over, and all its items were taken.
    Over(Outcome),
}

/// Why an item did not go out.
pub(crate) enum ItemError {
    /// No credit: the waker is kept.
    Behind,
    /// No room in the connection.
    Full(Room),
    /// The call is over, or nothing can be sent any more; its reader finds how.
    Over,
    /// As `Over`, before the connection's end was dealt with.
    Broken(Broken),
    Failed(CallError),
}

impl StreamCall {
    pub(super) fn new(kind: Kind, begun: Option<Instant>, gets_items: bool) -> StreamCall {
        StreamCall {
            kind,
            gets_items,
            begun,
            items: VecDeque::new(),
            receive: ReceiveCredit::new(),
            reader: None,
            send: CreditGate::new(),
            ended: None,
        }
    }

    pub(super) fn arrive(&mut self, item: Payload) -> Result<Option<Waker>, Broken> {
        let beyond = || misbehaved(WireError::BadCredit, "an item came without credit for it");
        self.receive.receive(item.len() as u32).map_err(|_| beyond())?;
        self.items.push_back(item);
        Ok(self.reader.take())
    }

    /// The next item, and whether credit is due for those taken so far.
    fn take_item(&mut self) -> Option<(Payload, bool)> {
        let item = self.items.pop_front()?;
        self.receive.take(item.len() as u32);
        Some((item, self.receive.is_due() && self.ended.is_none()))
    }

    /// Credit to give back now. What was owed may have been given with what was due later, and nothing is sent for a call
    /// whose answer was read: the server need not know it any more.
    fn give_back(&mut self) -> Option<Credit> {
        if self.ended.is_some() {
            return None;
        }
        Some(self.receive.give_back()).filter(|credit| *credit != Credit::default())
    }

    pub(super) fn grant(&mut self, credit: Credit) -> Result<Option<Waker>, Broken> {
        let beyond = || misbehaved(WireError::BadCredit, "it granted more than the window holds");
        self.send.grant(credit).map_err(|_| beyond())
    }

    /// The call has ended: who is to see it.
    pub(super) fn wakers(&mut self) -> impl Iterator<Item = Waker> + use<> {
        [self.reader.take(), self.send.end()].into_iter().flatten()
    }
}

impl Core {
    /// The next item if it is here, or how the call ended; otherwise `waker` is woken then.
    pub(crate) fn poll_item(&self, id: MessageId, waker: Option<&Waker>) -> Option<Item> {
        let mut outbox = self.outbox();
        let call = match outbox.calls.find(id) {
            Lookup::Live(Call::Stream(call)) => call,
            _ if self.end().is_none() => {
                // By the other half, whose drop cancels it.
                let status = Status::cancelled("this side gave the call up");
                return Some(Item::Over(Outcome::Status(Box::new(status))));
            }
            _ => return Some(Item::Over(Outcome::Ended)),
        };
        let Some((item, is_due)) = call.take_item() else {
            if call.ended.is_none() {
                keep(&mut call.reader, waker);
                return None;
            }
            let outcome = match self.close_call(&mut outbox, id) {
                Some(Call::Stream(call)) => call.ended.unwrap_or(Outcome::Ended),
                _ => Outcome::Ended,
            };
            drop(outbox);
            self.offer_room();
            return Some(Item::Over(outcome));
        };
        if is_due {
            self.give_credit(&mut outbox, id);
        }
        Some(Item::Here(item))
    }

    /// Whether the call is over, with items that were not taken or without; otherwise `waker` is woken when it is, or when
    /// an item comes.
    pub(crate) fn is_over(&self, id: MessageId, waker: Option<&Waker>) -> bool {
        let mut outbox = self.outbox();
        let Lookup::Live(Call::Stream(call)) = outbox.calls.find(id) else { return true };
        if call.ended.is_none() {
            keep(&mut call.reader, waker);
        }
        call.ended.is_some()
    }

    /// Sends one item of the call's stream of requests. Without room or credit nothing was sent.
    pub(crate) fn send_item(
        &self,
        call: &Started,
        payload: &[u8],
        waker: Option<&Waker>,
    ) -> Result<(), ItemError> {
        let mut outbox = self.outbox();
        let Lookup::Live(Call::Stream(found)) = outbox.calls.find(call.id) else {
            return Err(ItemError::Over);
        };
        let bytes = payload.len() as u32;
        match found.send.take(bytes, |writer| keep(writer, waker)) {
            Ok(true) => {}
            Ok(false) => return Err(ItemError::Behind),
            Err(Ended) => return Err(ItemError::Over),
        }
        let header = call_header(Flags::STREAM, call.kind, call.id);
        let sent = self.send_on(&mut outbox, header, payload);
        if sent.is_err()
            && let Lookup::Live(Call::Stream(found)) = outbox.calls.find(call.id)
        {
            found.send.refund(bytes);
        }
        drop(outbox);
        self.broke(sent)
    }

    /// Says that no item follows.
    pub(crate) fn end_items(&self, call: &Started) -> Result<(), ItemError> {
        let mut outbox = self.outbox();
        match outbox.calls.find(call.id) {
            Lookup::Live(Call::Stream(found)) if found.ended.is_none() => {}
            _ => return Err(ItemError::Over),
        }
        let sent = self.send_on(&mut outbox, call_header(Flags::NONE, call.kind, call.id), &[]);
        drop(outbox);
        self.broke(sent)
    }

    /// What an attempt came to: the end of the connection, too. A peer that misbehaved ends it here. Else the answer may
    /// have come before the end and lie unread: who reads finds that, or how the connection ended.
    fn broke(&self, sent: Result<(), ItemError>) -> Result<(), ItemError> {
        let Err(ItemError::Broken(broken)) = sent else { return sent };
        if matches!(broken, Broken::Misbehaved(_)) {
            self.finish(&broken);
        }
        Err(ItemError::Over)
    }

    fn send_on(
        &self,
        outbox: &mut Outbox,
        header: lapwing_proto::Header,
        payload: &[u8],
    ) -> Result<(), ItemError> {
        if self.end().is_some() {
            return Err(ItemError::Over);
        }
        match outbox.sending.send(header, payload).and_then(|()| Ok(outbox.sending.flush()?)) {
            Ok(()) => {
                self.counters.sent(payload.len());
                Ok(())
            }
            Err(SendError::Full) => {
                let room = Room { bytes: payload.len(), place: false, lacks: Lacks::Ring };
                Err(ItemError::Full(outbox.lacking(room)))
            }
            Err(SendError::TooLarge(max)) => {
                Err(ItemError::Failed(CallError::TooLarge { length: payload.len(), max }))
            }
            Err(SendError::OverQuota) => {
                let status = Status::resource_exhausted(WireError::QuotaBulk.sentence());
                Err(ItemError::Failed(status.into()))
            }
            Err(SendError::Broken(broken)) => Err(ItemError::Broken(broken)),
        }
    }

    /// Gives back the credit that is due, now or when there is room.
    fn give_credit(&self, outbox: &mut Outbox, id: MessageId) {
        let has_room = outbox.sending.has_room(8).unwrap_or(true);
        if !has_room {
            return self.owe(outbox, Owed::Credit(id));
        }
        let Lookup::Live(Call::Stream(call)) = outbox.calls.find(id) else { return };
        let Some(credit) = call.give_back() else { return };
        let header = call_header(Flags::NONE, Kind::CREDIT, id);
        // A broken connection is its driver's to find.
        let sent = outbox.sending.send(header, &credit.encode());
        debug_assert!(!matches!(sent, Err(SendError::Full)), "there was room");
        let _ = outbox.sending.flush();
    }

    /// Tells the server that nobody waits for this call any more, now or when there is room.
    pub(super) fn cancel(&self, outbox: &mut Outbox, id: MessageId, kind: Kind) {
        if !kind.is_application() || self.end().is_some() {
            return;
        }
        let header = call_header(Flags::NONE, Kind::CANCEL, id);
        match outbox.sending.send(header, &[]) {
            Err(SendError::Full) => self.owe(outbox, Owed::Cancel(id, kind)),
            // A broken connection is its driver's to find.
            _ => drop(outbox.sending.flush()),
        }
    }

    pub(super) fn send_goodbye(&self, outbox: &mut Outbox) {
        let payload = Goodbye::new(WireError::NoError, "").encode();
        match outbox.sending.send(connection_header(Kind::GOODBYE), &payload) {
            Err(SendError::Full) => self.owe(outbox, Owed::Goodbye),
            // A broken connection is its driver's to find.
            _ => drop(outbox.sending.flush()),
        }
    }

    fn owe(&self, outbox: &mut Outbox, owed: Owed) {
        if !outbox.owed.contains(&owed) {
            outbox.owed.push(owed);
        }
        self.want_room();
    }

    /// Sends what was owed, as far as there is room; whether all went.
    pub(super) fn pay(&self, outbox: &mut Outbox) -> bool {
        for owed in std::mem::take(&mut outbox.owed) {
            match owed {
                Owed::Cancel(id, kind) => {
                    // A call that has ended meanwhile needs no word.
                    if matches!(outbox.calls.find(id), Lookup::Live(_)) {
                        self.cancel(outbox, id, kind);
                    }
                }
                Owed::Credit(id) => self.give_credit(outbox, id),
                Owed::Goodbye => self.send_goodbye(outbox),
            }
        }
        let Outbox { answers, sending, .. } = outbox;
        while let Some(answer) = answers.front() {
            // A broken connection is its driver's to find.
            if matches!(sending.send(answer.header, &answer.payload), Err(SendError::Full)) {
                break;
            }
            answers.pop_front();
            let _ = sending.flush();
        }
        outbox.owed.is_empty() && outbox.answers.is_empty()
    }
}

fn keep(slot: &mut Option<Waker>, waker: Option<&Waker>) {
    if let Some(waker) = waker
        && !slot.as_ref().is_some_and(|known| known.will_wake(waker))
    {
        *slot = Some(waker.clone());
    }
}

#[cfg(test)]
#[path = "streams_tests.rs"]
mod tests;
