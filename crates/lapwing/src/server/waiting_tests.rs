//! Who waits for room on a connection of a server stands in its list once, and not at all any more when it is gone.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Wake;

use lapwing_proto::ServerOffer;

use super::*;
use crate::bulk::BulkTerms;
use crate::client::ClientOptions;
use crate::control::ControlSocket;
use crate::handshake::{ClientHello, ServerHello};
use crate::server::{ItemSink, ItemSource};

/// How often each one is polled that waits, and how often one is dropped and follows another.
const TIMES: usize = 100;
const EACH: usize = 3;
/// A payload of this length goes through bulk memory.
const LONG: usize = 100_000;

struct Nobody;

impl Wake for Nobody {
    fn wake(self: Arc<Self>) {}
}

/// A waker that is like no other.
fn waker() -> Waker {
    Waker::from(Arc::new(Nobody))
}

/// A server's end that has no room left, neither in its ring nor of bulk memory, and the client's.
struct Full {
    out: Arc<Out>,
    client: Link,
    blocks: Vec<Reserved>,
}

impl Full {
    fn new() -> Full {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut near, mut far) =
            (ControlSocket::new(near).unwrap(), ControlSocket::new(far).unwrap());
        let options = ClientOptions::default();
        let awaiting = ClientHello::prepare(options.hello()).unwrap().send(&near).unwrap();
        let hello = ServerHello::receive(far.try_receive().unwrap().unwrap()).unwrap();
        let offer = ServerOffer {
            shared_memory: Some(limits::RING_BYTES_MIN),
            features: Features::BULK,
            ..ServerOffer::default()
        };
        let terms = BulkTerms { own_bytes_max: 0, in_place: None, account: None };
        let server = hello.admit().grant(&far, &offer, 1, &terms).unwrap();
        let ack = near.try_receive().unwrap().unwrap();
        let client = awaiting.receive(&near, ack, &options.bulk_terms()).unwrap();
        let out = Out::new(server.sending, 1, Tally::default());
        let mut full = Full { out, client, blocks: Vec::new() };
        full.fill();
        full
    }

    fn fill(&mut self) {
        let mut outbox = lock(&self.out.outbox);
        while let Ok(block) = outbox.sending.reserve(LONG) {
            self.blocks.push(Reserved::new(block, LONG));
        }
        for bytes in [1000, 0] {
            while outbox.sending.send(reply(), &vec![0; bytes]).is_ok() {}
        }
    }

    /// The client takes what is there; the blocks come back, too.
    fn make_room(&mut self) {
        let mut frame = Frame::default();
        let mut header = connection_header(Kind::GOODBYE);
        while self.client.receiving.next(&mut frame, &mut header).unwrap() {}
        self.blocks.clear();
    }

    fn waiting(&self) -> usize {
        lock(&self.out.outbox).waiting.len()
    }

    fn sink(&self) -> ItemSink {
        let mut state = CallState::alone();
        let about = state.renew();
        (about.kind, about.id) = (reply().kind, reply().id);
        ItemSink::new(Arc::clone(&self.out), Arc::new(state))
    }
}

fn reply() -> Header {
    call_header(Flags::RESPONSE, Kind::application(0x0400).unwrap(), MessageId::new(1))
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(&waker()))
}

/// Polls each again and again, by another task each time.
fn assert_wait<F: Future>(futures: &mut [Pin<Box<F>>]) {
    for _ in 0..TIMES {
        assert!(futures.iter_mut().all(|future| poll(future.as_mut()).is_pending()));
    }
}

#[test]
fn item_that_waits_for_room_stands_in_the_list_once_and_leaves_it_with_its_sink() {
    let full = Full::new();
    let mut sinks = [(); EACH].map(|()| full.sink());
    for _ in 0..TIMES {
        for sink in &mut sinks {
            assert!(sink.try_send_bytes(&[1]).is_err());
            // Another item each time, which is given up.
            let mut sent = pin!(sink.send_bytes(&[1; 10]));
            assert!(poll(sent.as_mut()).is_pending());
            assert!(poll(sent.as_mut()).is_pending());
        }
        assert_eq!(full.waiting(), EACH);
    }
    drop(sinks);
    assert_eq!(full.waiting(), 0);
}

#[test]
fn item_that_was_woken_waits_anew_at_most_once_and_leaves_the_list_when_it_is_sent() {
    let mut full = Full::new();
    let mut sink = full.sink();
    for told in [true, false].repeat(TIMES / 10) {
        let mut sent = Box::pin(sink.send_bytes(&[1; 10]));
        assert_wait(std::slice::from_mut(&mut sent));
        assert_eq!(full.waiting(), 1);
        full.make_room();
        if told {
            assert!(full.out.offer_room().unwrap(), "there is room");
            assert_eq!(full.waiting(), 0);
            // Others were quicker.
            full.fill();
            assert_wait(std::slice::from_mut(&mut sent));
            assert_eq!(full.waiting(), 1);
            full.make_room();
        }
        assert_eq!(poll(sent.as_mut()), Poll::Ready(Ok(())));
        drop(sent);
        assert_eq!(full.waiting(), 0);
        full.fill();
        // The window, as the caller gives it back.
        sink = full.sink();
    }
}

#[test]
fn credit_that_waits_for_room_stands_in_the_list_once_and_leaves_it_with_its_source() {
    let full = Full::new();
    let mut sources = Vec::new();
    for _ in 0..EACH {
        let state = Arc::new(CallState::alone());
        let mut source = ItemSource::new(Arc::clone(&full.out), Arc::clone(&state));
        for _ in 0..limits::STREAM_ITEMS {
            state.arrive(Some(vec![1].into()), false).unwrap();
            assert!(source.poll_next(&Context::from_waker(&waker())).is_ready());
        }
        sources.push(source);
    }
    for _ in 0..TIMES {
        for source in &mut sources {
            assert!(poll(pin!(source.next_bytes())).is_pending());
        }
        assert_eq!(full.waiting(), EACH);
    }
    drop(sources);
    assert_eq!(full.waiting(), 0);
}

#[test]
fn block_that_is_waited_for_stands_in_the_list_once_and_leaves_it_when_it_is_given_up() {
    let mut full = Full::new();
    let out = Arc::clone(&full.out);
    for _ in 0..TIMES {
        let mut reserved = [(); EACH].map(|()| Box::pin(out.reserve(LONG)));
        assert_wait(&mut reserved);
        assert_eq!(full.waiting(), EACH);
        drop(reserved);
        assert_eq!(full.waiting(), 0);
    }
    let mut reserved = Box::pin(out.reserve(LONG));
    assert_wait(std::slice::from_mut(&mut reserved));
    full.make_room();
    assert!(poll(reserved.as_mut()).is_ready());
    assert_eq!(full.waiting(), 0);
}

#[test]
fn reply_that_waits_for_room_stands_in_the_list_once_and_leaves_it_when_it_is_dropped_or_sent() {
    let mut full = Full::new();
    let out = Arc::clone(&full.out);
    let states = [(); EACH].map(|()| CallState::alone());
    let mut replies = states.each_ref().map(|state| {
        let payload = vec![1; LONG].into();
        Box::pin(out.send_later(reply(), payload, state, None))
    });
    assert_wait(&mut replies);
    assert_eq!(full.waiting(), EACH);
    // What stands for it waits in its place.
    states.iter().for_each(|state| state.end(CallEnd::Cancelled));
    assert_wait(&mut replies);
    assert_eq!(full.waiting(), EACH);
    let [first, others @ ..] = replies;
    drop(others);
    assert_eq!(full.waiting(), 1);
    full.make_room();
    let mut first = first;
    assert!(poll(first.as_mut()).is_ready());
    assert_eq!(full.waiting(), 0);
}
