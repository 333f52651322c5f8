//! What a peer gets that breaks the rules of streams, credit and cancellation, in a client's place and in a
//! server's, on both transports; others are served meanwhile and nothing leaks.

use std::future::Ready;
use std::sync::mpsc;
use std::time::Duration;

use lapwing::error::WireError;
use lapwing::{
    Builder, Call, CallError, CallOptions, ClientOptions, ClientStream, Code, Duplex, EndReason,
    IpcClient, OneWay, Payload, Raw, ServerStream, Sink, Source, Status, Transport, WhenFull,
    blocking,
};
use lapwing_proto::{
    Credit, Features, Flags, Goodbye, Header, Hello, Kind, LimitsWanted, TimeLeft,
};
use lapwing_testkit::frame::RawFrame;
use lapwing_testkit::methods::{ECHO, UNKNOWN};
use lapwing_testkit::{Heard, RawPeer, RawServer, Victim, eventually, hello, test_name};

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];

const FILL: ServerStream<Vec<u8>, Vec<u8>, Raw> = ServerStream::new(0x0600, "fill");
const COUNT: ClientStream<Payload, Vec<u8>, Raw> = ClientStream::new(0x0601, "count");
const MIRROR: Duplex<Payload, Payload, Raw> = Duplex::new(0x0602, "mirror");
const IDLE: ClientStream<Payload, Vec<u8>, Raw> = ClientStream::new(0x0603, "idle");
/// Answers at once, with so many bytes that few such answers have room.
const EARLY: ClientStream<Payload, Vec<u8>, Raw> = ClientStream::new(0x0604, "early");
/// Panics when it is begun.
const BROKEN: ClientStream<Payload, Vec<u8>, Raw> = ClientStream::new(0x0605, "broken");
/// As [`BROKEN`], behind an item.
const BROKEN_LATER: ServerStream<Vec<u8>, Vec<u8>, Raw> = ServerStream::new(0x0606, "broken.later");
/// Keeps its connection's task for a moment, inline, so that what comes meanwhile is read ahead.
const HOLD: u16 = 0x0607;
/// Is handled for a while.
const BUSY: OneWay<Payload, Raw> = OneWay::new(0x0608, "busy");

fn with_streams(builder: Builder) -> Builder {
    builder
        .route_inline(HOLD, "hold", |_, _, _| {
            std::thread::sleep(Duration::from_millis(10));
            Ok(())
        })
        .route(BUSY, |_: Call, _: Payload| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(())
        })
        .route(EARLY, |_: Call, _: Source<Payload, Raw>| async { Ok(vec![0; 15_000]) })
        .route(BROKEN, |_: Call, _: Source<Payload, Raw>| -> Ready<Result<Vec<u8>, Status>> {
            panic!("at its beginning")
        })
        .route(
            BROKEN_LATER,
            |_: Call, item: Vec<u8>, mut items: Sink<Vec<u8>, Raw>| -> Ready<Result<(), Status>> {
                items.try_send(&item).unwrap();
                panic!("behind its item")
            },
        )
        .route(FILL, |_: Call, item: Vec<u8>, mut items: Sink<Vec<u8>, Raw>| async move {
            loop {
                items.send(&item).await?;
            }
        })
        .route(COUNT, |_: Call, mut items: Source<Payload, Raw>| async move {
            let mut count = 0_u64;
            while items.next().await?.is_some() {
                count += 1;
            }
            Ok(count.to_le_bytes().to_vec())
        })
        .route(
            MIRROR,
            |_: Call, mut items: Source<Payload, Raw>, mut out: Sink<Payload, Raw>| async move {
                while let Some(item) = items.next().await? {
                    out.send(&item).await?;
                }
                Ok(())
            },
        )
        .route(IDLE, |_: Call, items: Source<Payload, Raw>| async move {
            // Reads nothing, and keeps the stream open.
            let _items = items;
            std::future::pending::<Result<Vec<u8>, Status>>().await
        })
}

fn credit(id: u64, items: u32, bytes: u32) -> RawFrame {
    raw_credit(id, &Credit { items, bytes }.encode())
}

fn raw_credit(id: u64, payload: &[u8]) -> RawFrame {
    RawFrame::of(Flags::NONE, Kind::CREDIT.number(), id, payload)
}

fn item(kind: u16, id: u64, payload: &[u8]) -> RawFrame {
    RawFrame::of(Flags::STREAM, kind, id, payload)
}

fn last(kind: u16, id: u64) -> RawFrame {
    RawFrame::of(Flags::NONE, kind, id, b"")
}

fn open(peer: &mut RawPeer, kind: u16, id: u64) {
    peer.send_frame(&RawFrame::of(Flags::REQUEST | Flags::STREAM, kind, id, b""));
}

/// The error of the Goodbye that comes after items and requests that were on the way.
fn hear_goodbye(peer: &mut RawPeer) -> u16 {
    loop {
        let (header, payload) = peer.hear_frame();
        if header.kind == Kind::GOODBYE {
            return Goodbye::decode(&payload).unwrap().error;
        }
        let expected = header.flags.contains(Flags::STREAM)
            || matches!(header.kind.number(), HOLD)
            || header.kind == Kind::PING;
        assert!(expected, "{header:?}");
    }
}

/// What a peer does to an open connection, and what it is told.
type Case = (&'static str, fn(&mut RawPeer), WireError);

#[test]
fn peer_that_breaks_the_rules_of_streams_is_cut_by_number() {
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    let cases: &[Case] = &[
        (
            "credit beyond the window",
            |p| {
                p.send_frame(&RawFrame::request(FILL.kind(), 2, b"x"));
                p.send_frame(&credit(2, 65, 0));
            },
            WireError::BadCredit,
        ),
        (
            "credit granted twice",
            |p| {
                open(p, MIRROR.kind(), 2);
                p.send_frame(&item(MIRROR.kind(), 2, b"x"));
                p.hear_frame();
                p.send_frame(&credit(2, 1, 1));
                p.send_frame(&credit(2, 1, 1));
            },
            WireError::BadCredit,
        ),
        (
            "credit that overflows",
            |p| {
                p.send_frame(&RawFrame::request(FILL.kind(), 2, b"x"));
                p.send_frame(&credit(2, u32::MAX, u32::MAX));
            },
            WireError::BadCredit,
        ),
        (
            "credit of nothing",
            |p| {
                p.send_frame(&RawFrame::request(FILL.kind(), 2, b"x"));
                p.send_frame(&raw_credit(2, &[0; 8]));
            },
            WireError::BadCredit,
        ),
        ("credit of seven bytes", |p| p.send_frame(&raw_credit(2, &[1; 7])), WireError::BadCredit),
        (
            "credit for a stream the other way",
            |p| {
                open(p, IDLE.kind(), 2);
                p.send_frame(&credit(2, 1, 1));
            },
            WireError::BadCredit,
        ),
        (
            "an item past the window",
            |p| {
                open(p, IDLE.kind(), 2);
                for _ in 0..65 {
                    p.send_frame(&item(IDLE.kind(), 2, b"x"));
                }
            },
            WireError::BadCredit,
        ),
        (
            "an item past the window in bytes",
            |p| {
                open(p, IDLE.kind(), 2);
                for id in 100..132 {
                    p.send_frame(&item(IDLE.kind(), 2, &[0; 8192]));
                    // Answered when the item has been read: the ring holds fewer than the window.
                    p.call(ECHO, id, b"");
                }
                p.send_frame(&item(IDLE.kind(), 2, b"x"));
            },
            WireError::BadCredit,
        ),
        (
            "an item after the last",
            |p| {
                open(p, IDLE.kind(), 2);
                p.send_frame(&last(IDLE.kind(), 2));
                p.send_frame(&item(IDLE.kind(), 2, b"x"));
            },
            WireError::UnexpectedMessage,
        ),
        (
            "two last words",
            |p| {
                open(p, IDLE.kind(), 2);
                p.send_frame(&last(IDLE.kind(), 2));
                p.send_frame(&last(IDLE.kind(), 2));
            },
            WireError::UnexpectedMessage,
        ),
        (
            "an item of another kind",
            |p| {
                open(p, IDLE.kind(), 2);
                p.send_frame(&item(COUNT.kind(), 2, b"x"));
            },
            WireError::BadKind,
        ),
        (
            "an item to a call that takes none",
            |p| {
                p.send_frame(&RawFrame::request(FILL.kind(), 2, b"x"));
                p.send_frame(&item(FILL.kind(), 2, b"x"));
            },
            WireError::BadKind,
        ),
        (
            "an item with an error's flag",
            |p| {
                open(p, IDLE.kind(), 2);
                let flags = Flags::STREAM | Flags::ERROR;
                p.send_frame(&RawFrame::of(flags, IDLE.kind(), 2, b"x"));
            },
            WireError::BadFlags,
        ),
        (
            "a last word with an item",
            |p| {
                open(p, IDLE.kind(), 2);
                p.send_frame(&RawFrame::of(Flags::NONE, IDLE.kind(), 2, b"x"));
            },
            WireError::BadFlags,
        ),
        (
            "a Cancel with a payload",
            |p| p.send_frame(&RawFrame::of(Flags::NONE, Kind::CANCEL.number(), 2, b"x")),
            WireError::BadMessage,
        ),
        (
            "an item of a call that never was",
            |p| p.send_frame(&item(COUNT.kind(), 2, b"x")),
            WireError::UnknownCall,
        ),
        (
            "the last word of a call that never was",
            |p| p.send_frame(&last(COUNT.kind(), 2)),
            WireError::UnknownCall,
        ),
        (
            "credit for a call that never was",
            |p| p.send_frame(&credit(2, 1, 1)),
            WireError::UnknownCall,
        ),
        (
            "an item of a call without streams",
            |p| p.send_frame(&item(ECHO, 1, b"x")),
            WireError::UnknownCall,
        ),
        ("a message with an id", |p| p.send_frame(&last(ECHO, 2)), WireError::UnknownCall),
        (
            "an item of a call that never was, behind one that holds its connection",
            |p| {
                p.send_frame(&RawFrame::request(HOLD, 2, b""));
                p.send_frame(&item(COUNT.kind(), 77, b"x"));
            },
            WireError::UnknownCall,
        ),
        (
            "an item of a call that never was, after frames with priority",
            |p| {
                let flags = Flags::REQUEST | Flags::PRIORITY;
                p.send_frame(&RawFrame::of(flags, ECHO, 2, b""));
                p.hear_frame();
                p.send_frame(&item(COUNT.kind(), 77, b"x"));
            },
            WireError::UnknownCall,
        ),
        (
            "a stream with the id of a running one",
            |p| {
                open(p, IDLE.kind(), 2);
                open(p, IDLE.kind(), 2);
            },
            WireError::BadId,
        ),
    ];
    let misbehaved = victim.stat("misbehaved");
    for transport in BOTH {
        for (what, misbehave, expected) in cases {
            let mut peer = RawPeer::greet(victim.path(), transport);
            assert_eq!(peer.call(ECHO, 1, b"well so far").1, b"well so far");
            misbehave(&mut peer);
            let told = hear_goodbye(&mut peer);
            assert_eq!(told, expected.number(), "{transport:?}, {what}");
        }
        victim.assert_serves_others();
    }
    victim.await_stat("misbehaved", misbehaved + 2 * cases.len() as u64);
    victim.assert_unharmed();
}

/// Sends what a caller may have sent for a call before it read the answer.
fn send_late(peer: &mut RawPeer, kind: u16, id: u64) {
    peer.send_frame(&item(kind, id, b"late"));
    peer.send_frame(&credit(id, 1, 1));
    peer.send_frame(&RawFrame::of(Flags::NONE, Kind::CANCEL.number(), id, b""));
    peer.send_frame(&last(kind, id));
}

#[test]
fn frames_of_calls_that_are_over_are_counted_and_change_nothing() {
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        // Its id is used again after each time.
        for _ in 0..3 {
            open(&mut peer, COUNT.kind(), 2);
            peer.send_frame(&item(COUNT.kind(), 2, b"one"));
            peer.send_frame(&last(COUNT.kind(), 2));
            let (header, reply) = peer.hear_frame();
            assert_eq!((header.flags, &*reply), (Flags::RESPONSE, &1_u64.to_le_bytes()[..]));
            send_late(&mut peer, COUNT.kind(), 2);
            assert_eq!(peer.call(ECHO, 3, b"goes on").1, b"goes on");
        }
        // Calls without streams are not remembered, and may be given up when they are over.
        for id in [3, 77] {
            peer.send_frame(&RawFrame::of(Flags::NONE, Kind::CANCEL.number(), id, b""));
        }
        assert_eq!(peer.call(ECHO, 3, b"goes on").1, b"goes on");
    }
    victim.await_stat("late", 2 * (3 * 4 + 2));
    assert_eq!(victim.stat("misbehaved"), 0);
    victim.assert_unharmed();
}

/// How a call may begin, and what it is answered.
type Start = (&'static str, u16, fn(&mut RawPeer), Code);

#[test]
fn frames_of_calls_that_ended_early_or_never_began_are_late_whatever_the_reason() {
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    fn with_time(peer: &mut RawPeer, us: u64) {
        let block = [&[11, 0, 1, 8, 0][..], &us.to_le_bytes()].concat();
        let flags = Flags::REQUEST | Flags::STREAM | Flags::EXTENDED;
        peer.send_frame(&RawFrame::of(flags, IDLE.kind(), 2, &block));
    }
    fn cancel(peer: &mut RawPeer) {
        peer.send_frame(&RawFrame::of(Flags::NONE, Kind::CANCEL.number(), 2, b""));
    }
    let starts: &[Start] = &[
        ("answered at once", EARLY.kind(), |p| open(p, EARLY.kind(), 2), Code::Ok),
        (
            "given up",
            IDLE.kind(),
            |p| {
                open(p, IDLE.kind(), 2);
                cancel(p);
            },
            Code::Cancelled,
        ),
        (
            "given up while it is read ahead",
            IDLE.kind(),
            |p| {
                p.send_frame(&RawFrame::request(HOLD, 3, b""));
                open(p, IDLE.kind(), 2);
                cancel(p);
                assert_eq!(p.hear_frame().0.id.get(), 3);
            },
            Code::Cancelled,
        ),
        ("out of time", IDLE.kind(), |p| with_time(p, 1000), Code::DeadlineExceeded),
        ("out of time at once", IDLE.kind(), |p| with_time(p, 0), Code::DeadlineExceeded),
        ("of no method", UNKNOWN, |p| open(p, UNKNOWN, 2), Code::Unimplemented),
        ("of one request", FILL.kind(), |p| open(p, FILL.kind(), 2), Code::InvalidArgument),
        ("of one request, inline", ECHO, |p| open(p, ECHO, 2), Code::InvalidArgument),
        ("that panics", BROKEN.kind(), |p| open(p, BROKEN.kind(), 2), Code::Internal),
        (
            "that panics after an item",
            BROKEN_LATER.kind(),
            |p| {
                p.send_frame(&RawFrame::request(BROKEN_LATER.kind(), 2, b"x"));
                assert_eq!(p.hear_frame().0.flags, Flags::RESPONSE | Flags::STREAM);
            },
            Code::Internal,
        ),
    ];
    for transport in BOTH {
        for (what, kind, start, expected) in starts {
            let mut peer = RawPeer::greet(victim.path(), transport);
            start(&mut peer);
            let (header, reply) = peer.hear_frame();
            let told = match header.flags.contains(Flags::ERROR) {
                true => Status::decode(&reply).unwrap().code,
                false => Code::Ok,
            };
            assert_eq!((header.id.get(), told), (2, *expected), "{transport:?}, {what}");
            send_late(&mut peer, *kind, 2);
            assert_eq!(peer.call(ECHO, 4, b"goes on").1, b"goes on", "{transport:?}, {what}");
        }
    }
    victim.await_stat("late", 2 * 4 * starts.len() as u64);
    assert_eq!(victim.stat("misbehaved"), 0);
    victim.assert_unharmed();
}

fn greet_for(victim: &Victim, transport: Transport, calls_in_flight: u32) -> RawPeer {
    let limits = LimitsWanted { calls_in_flight, ..LimitsWanted::default() };
    RawPeer::greet_with(victim.path(), &Hello { limits, ..hello(transport) }).0
}

#[test]
fn late_frames_of_a_caller_that_keeps_all_its_places_taken_never_cut_it() {
    const PLACES: u64 = 4;
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    for transport in BOTH {
        let mut peer = greet_for(&victim, transport, PLACES as u32);
        let (mut unread, mut opened) = (Vec::new(), 0);
        // Of three kinds: one that answers, one that waits for room with its answer, one that never begins.
        while opened < 1000 || !unread.is_empty() {
            while unread.len() < PLACES as usize && opened < 1000 {
                opened += 1;
                let kind = [COUNT.kind(), EARLY.kind(), UNKNOWN][(opened % 3) as usize];
                open(&mut peer, kind, opened);
                if kind == COUNT.kind() {
                    peer.send_frame(&last(kind, opened));
                }
                unread.push((opened, kind));
            }
            for (id, kind) in &unread {
                if *kind != COUNT.kind() {
                    peer.send_frame(&item(*kind, *id, b"late"));
                }
            }
            let (header, _) = peer.hear_frame();
            assert!(header.flags.is_response(), "{header:?}");
            unread.retain(|(id, _)| *id != header.id.get());
        }
        assert_eq!(peer.call(ECHO, 1, b"goes on").1, b"goes on");
    }
    assert!(victim.stat("late") > 0);
    assert_eq!(victim.stat("misbehaved"), 0);
    victim.assert_unharmed();
}

#[test]
fn frames_of_calls_whose_answers_wait_for_room_are_late_however_many_wait() {
    const CALLS: u64 = 60;
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    for transport in BOTH {
        let mut peer = greet_for(&victim, transport, CALLS as u32 + 1);
        // More than any ring or socket takes.
        (1..=CALLS).for_each(|id| open(&mut peer, EARLY.kind(), id));
        // Its refusal waits for room, too, and nothing is read meanwhile.
        open(&mut peer, UNKNOWN, CALLS + 1);
        for id in 1..=CALLS + 1 {
            let kind = if id > CALLS { UNKNOWN } else { EARLY.kind() };
            peer.send_frame(&item(kind, id, b"late"));
        }
        for _ in 0..=CALLS {
            assert!(peer.hear_frame().0.flags.is_response());
        }
        assert_eq!(peer.call(ECHO, 1, b"goes on").1, b"goes on");
    }
    assert_eq!(victim.stat("misbehaved"), 0);
    victim.assert_unharmed();
}

/// Where frames with priority go first, more calls than are remembered may be begun before a late frame's turn comes, and
/// an item before its own request.
#[test]
fn frames_that_were_overtaken_are_late_and_never_cut() {
    const PLACES: u32 = 2;
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    for transport in BOTH {
        let mut peer = greet_for(&victim, transport, PLACES);
        open(&mut peer, EARLY.kind(), 1);
        peer.hear_frame();
        peer.send_frame(&RawFrame::request(HOLD, 2, b""));
        peer.send_frame(&item(EARLY.kind(), 1, b"late"));
        for id in 3..3 + 2 * u64::from(PLACES) {
            let flags = Flags::REQUEST | Flags::STREAM | Flags::PRIORITY;
            peer.send_frame(&RawFrame::of(flags, UNKNOWN, id, b""));
        }
        for _ in 0..=2 * PLACES {
            assert!(peer.hear_frame().0.flags.is_response());
        }
        assert_eq!(peer.call(ECHO, 100, b"goes on").1, b"goes on");

        peer.send_frame(&RawFrame::request(HOLD, 2, b""));
        open(&mut peer, COUNT.kind(), 50);
        let flags = Flags::STREAM | Flags::PRIORITY;
        peer.send_frame(&RawFrame::of(flags, COUNT.kind(), 50, b"x"));
        peer.send_frame(&last(COUNT.kind(), 50));
        for expected in [2, 50] {
            let (header, _) = peer.hear_frame();
            assert_eq!((header.id.get(), header.flags), (expected, Flags::RESPONSE));
        }
        assert_eq!(peer.call(ECHO, 100, b"goes on").1, b"goes on");
    }
    assert_eq!(victim.stat("misbehaved"), 0);
    victim.assert_unharmed();
}

#[test]
fn item_with_priority_overtakes_neither_its_request_nor_the_items_before_it() {
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        let flags = Flags::STREAM | Flags::PRIORITY;
        for priority in [[true, false], [false, true], [true, true]] {
            peer.send_frame(&RawFrame::request(HOLD, 2, b""));
            open(&mut peer, MIRROR.kind(), 50);
            for (priority, text) in priority.into_iter().zip([b"first", b"other"]) {
                match priority {
                    true => peer.send_frame(&RawFrame::of(flags, MIRROR.kind(), 50, text)),
                    false => peer.send_frame(&item(MIRROR.kind(), 50, text)),
                }
            }
            peer.send_frame(&last(MIRROR.kind(), 50));
            let came =
                [(); 4].map(|()| peer.hear_frame()).map(|(header, text)| (header.id.get(), text));
            let expected = [(2, &b""[..]), (50, b"first"), (50, b"other"), (50, b"")];
            assert_eq!(came, expected.map(|(id, text)| (id, text.to_vec())), "{priority:?}");
        }
    }
    assert_eq!(victim.stat("late"), 0);
    victim.assert_unharmed();
}

#[test]
fn item_with_priority_waits_for_its_request_behind_messages_that_have_no_place() {
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    for transport in BOTH {
        let mut peer = greet_for(&victim, transport, 1);
        (0..2).for_each(|_| peer.send_frame(&RawFrame::one_way(BUSY.kind(), b"")));
        open(&mut peer, MIRROR.kind(), 50);
        let flags = Flags::STREAM | Flags::PRIORITY;
        peer.send_frame(&RawFrame::of(flags, MIRROR.kind(), 50, b"first"));
        peer.send_frame(&item(MIRROR.kind(), 50, b"other"));
        peer.send_frame(&last(MIRROR.kind(), 50));
        let came = [(); 3].map(|()| peer.hear_frame().1);
        assert_eq!(came, [b"first".to_vec(), b"other".to_vec(), vec![]], "{transport:?}");
    }
    assert_eq!(victim.stat("late"), 0);
    victim.assert_unharmed();
}

/// What a caller sends for a call whose answer it read long ago, against the rule, may end its connection.
#[test]
fn item_of_a_call_that_twice_as_many_have_followed_is_cut_and_of_one_fewer_is_late() {
    const PLACES: u64 = 3;
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    for transport in BOTH {
        let mut peer = greet_for(&victim, transport, PLACES as u32);
        for id in 1..=2 * PLACES {
            open(&mut peer, EARLY.kind(), id);
            peer.hear_frame();
            peer.send_frame(&item(EARLY.kind(), 1, b"late"));
            assert_eq!(peer.call(ECHO, 100, b"goes on").1, b"goes on");
        }
        open(&mut peer, EARLY.kind(), 2 * PLACES + 1);
        peer.hear_frame();
        peer.send_frame(&item(EARLY.kind(), 1, b"too late"));
        assert_eq!(hear_goodbye(&mut peer), WireError::UnknownCall.number());
        victim.assert_serves_others();
    }
    victim.await_stat("late", 2 * 2 * PLACES);
    victim.await_stat("misbehaved", 2);
    victim.assert_unharmed();
}

/// What a peer sent before it went is read after its call has ended without an answer that could be sent.
#[test]
fn item_of_a_call_whose_answer_went_nowhere_is_late() {
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    let peer = greet_for(&victim, Transport::Socket, 3);
    let message = |kind| RawFrame::of(Flags::NONE, kind, 0, b"");
    let opened = RawFrame::of(Flags::REQUEST | Flags::STREAM, EARLY.kind(), 1, b"");
    // The peer is gone when the first one is over. The others are as many turns as the server takes before the call has its.
    let others = std::iter::repeat_with(|| message(ECHO)).take(1200);
    let frames = [message(HOLD), opened].into_iter().chain(others);
    let frames = frames.chain([item(EARLY.kind(), 1, b"late")]);
    peer.send(&frames.flat_map(|frame| frame.bytes(peer.checksum())).collect::<Vec<u8>>());
    drop(peer);
    victim.await_stat("late", 1);
    victim.await_stat("vanished", 1);
    assert_eq!(victim.stat("misbehaved"), 0);
    victim.assert_unharmed();
}

#[test]
fn stream_to_a_method_that_takes_one_request_is_refused_and_the_connection_goes_on() {
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        open(&mut peer, FILL.kind(), 2);
        let (header, reply) = peer.hear_frame();
        assert!(header.flags.contains(Flags::ERROR));
        assert_eq!(Status::decode(&reply).unwrap().code, Code::InvalidArgument);
        // A stream cannot be one-way: dropped and counted.
        peer.send_frame(&RawFrame::one_way(FILL.kind(), b"x"));
        assert_eq!(peer.call(ECHO, 3, b"goes on").1, b"goes on");
    }
    victim.await_stat("dropped", 2);
    victim.assert_unharmed();
}

#[test]
fn peer_that_never_gives_credit_has_its_window_and_no_more() {
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        peer.send_frame(&RawFrame::request(FILL.kind(), 2, b"x"));
        for _ in 0..64 {
            let (header, payload) = peer.hear_frame();
            assert_eq!(header.flags, Flags::RESPONSE | Flags::STREAM);
            assert_eq!(payload, b"x");
        }
        assert_eq!(peer.hear_within(Duration::from_millis(50)), Heard::Nothing);
        peer.send_frame(&credit(2, 1, 1));
        assert_eq!(peer.hear_frame().1, b"x");
        assert_eq!(peer.hear_within(Duration::from_millis(50)), Heard::Nothing);
        // Cancelled while its handler waits for credit.
        peer.send_frame(&RawFrame::of(Flags::NONE, Kind::CANCEL.number(), 2, b""));
        let (header, reply) = peer.hear_frame();
        assert_eq!(header.flags, Flags::RESPONSE | Flags::ERROR);
        assert_eq!(Status::decode(&reply).unwrap().code, Code::Cancelled);
        assert_eq!(peer.call(ECHO, 3, b"goes on").1, b"goes on");
    }
    victim.await_stat("cancelled", 2);
    victim.assert_unharmed();
}

#[test]
fn deadline_of_nothing_is_answered_and_the_call_never_begins() {
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        // Block of 11 bytes: entry 1, 8 bytes of zero.
        let mut payload = vec![11, 0, 1, 8, 0];
        payload.extend_from_slice(&[0; 8]);
        payload.extend_from_slice(b"never seen");
        for kind in [ECHO, FILL.kind()] {
            let flags = Flags::REQUEST | Flags::EXTENDED;
            peer.send_frame(&RawFrame::of(flags, kind, 2, &payload));
            let (header, reply) = peer.hear_frame();
            assert_eq!(header.flags, Flags::RESPONSE | Flags::ERROR);
            assert_eq!(Status::decode(&reply).unwrap().code, Code::DeadlineExceeded);
        }
    }
    victim.assert_unharmed();
}

#[test]
fn time_of_sending_counts_where_one_clock_was_agreed_on_and_nowhere_else() {
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    let now_ns = lapwing::floor::now_ns;
    let answers = |transport, features, sent_at_ns| {
        let hello = Hello { features, ..hello(transport) };
        let (mut peer, ack) = RawPeer::greet_with(victim.path(), &hello);
        assert_eq!(ack.features, features);
        let mut payload = TimeLeft { remaining_us: 20_000_000, sent_at_ns }.block().to_vec();
        payload.extend_from_slice(b"seen");
        peer.send_frame(&RawFrame::of(Flags::REQUEST | Flags::EXTENDED, ECHO, 2, &payload));
        let (header, reply) = peer.hear_frame();
        if header.flags == Flags::RESPONSE {
            assert_eq!(reply, b"seen");
            return true;
        }
        assert_eq!(Status::decode(&reply).unwrap().code, Code::DeadlineExceeded);
        false
    };
    for transport in BOTH {
        let half_an_age_ago = now_ns() - 10_000_000_000;
        for at in [now_ns(), half_an_age_ago, u64::MAX] {
            assert!(answers(transport, Features::CLOCK, at), "{transport:?} {at}");
        }
        for at in [0, now_ns() - 20_000_000_001] {
            assert!(!answers(transport, Features::CLOCK, at), "{transport:?} {at}");
            assert!(answers(transport, Features::NONE, at), "{transport:?} {at}");
        }
    }
    victim.assert_unharmed();
}

#[test]
fn peer_that_dies_with_streams_open_leaves_nothing_behind() {
    let Some(mut victim) = Victim::start(test_name!(), with_streams) else { return };
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        peer.send_frame(&RawFrame::request(FILL.kind(), 2, &[1; 4000]));
        open(&mut peer, IDLE.kind(), 3);
        open(&mut peer, MIRROR.kind(), 4);
        peer.send_frame(&item(MIRROR.kind(), 4, b"x"));
        peer.hear_frame();
        drop(peer);
    }
    victim.assert_unharmed();
}

/// What a server does to a client's call of a stream, and what the client says of it.
type Treatment = (&'static str, fn(&mut RawPeer, u64), WireError);

const TREATMENTS: &[Treatment] = &[
    (
        "an item past the window",
        |p, id| {
            for _ in 0..65 {
                p.send_frame(&RawFrame::of(Flags::RESPONSE | Flags::STREAM, FILL.kind(), id, b"x"));
            }
        },
        WireError::BadCredit,
    ),
    (
        "an item of another kind",
        |p, id| {
            p.send_frame(&RawFrame::of(Flags::RESPONSE | Flags::STREAM, 0x0777, id, b"x"));
        },
        WireError::BadKind,
    ),
    (
        "an item of a call that never was",
        |p, _| {
            let flags = Flags::RESPONSE | Flags::STREAM;
            p.send_frame(&RawFrame::of(flags, FILL.kind(), u64::MAX, b"x"));
        },
        WireError::UnknownCall,
    ),
    (
        "an item with an error's flag",
        |p, id| {
            let flags = Flags::RESPONSE | Flags::STREAM | Flags::ERROR;
            p.send_frame(&RawFrame::of(flags, FILL.kind(), id, b"x"));
        },
        WireError::BadFlags,
    ),
    ("credit beyond the window", |p, id| p.send_frame(&credit(id, 1, 1)), WireError::BadCredit),
    (
        "credit that cannot be read",
        |p, id| p.send_frame(&raw_credit(id, b"x")),
        WireError::BadCredit,
    ),
    (
        "credit for a call that never was",
        |p, _| p.send_frame(&credit(u64::MAX, 1, 1)),
        WireError::UnknownCall,
    ),
];

/// A server that treats the first call so, and hears what it is told for that.
fn breaking(treatment: &'static Treatment) -> RawServer {
    let (what, treat, expected) = treatment;
    RawServer::start(move |greeted| {
        let mut peer = greeted.grant();
        let (header, _) = peer.hear_frame();
        treat(&mut peer, header.id.get());
        assert_eq!(hear_goodbye(&mut peer), expected.number(), "{what}");
    })
}

#[test]
fn client_cuts_a_server_that_breaks_the_rules_of_streams() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for transport in BOTH {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        for treatment in TREATMENTS {
            let (what, _, expected) = treatment;
            let server = breaking(treatment);
            let client = blocking::IpcClient::connect_with(server.path(), &options).unwrap();
            let stream = client.stream(FILL, &b"x".to_vec(), &CallOptions::default()).unwrap();
            // Nothing is read before it has been told, so that the window stays as it is.
            let error = client.ping().unwrap_err();
            assert!(is_misbehaved(&error, *expected), "{transport:?}, {what}: {error:?}");
            let error = stream.last().unwrap().unwrap_err();
            assert!(is_misbehaved(&error, *expected), "{transport:?}, {what}: {error:?}");
            server.join();

            let server = breaking(treatment);
            runtime.block_on(async {
                let connecting = IpcClient::connect_with(server.path(), options.clone());
                let client = connecting.await.unwrap();
                let mut stream = client.stream(FILL, &b"x".to_vec()).await.unwrap();
                let error = client.ping().await.unwrap_err();
                assert!(is_misbehaved(&error, *expected), "{transport:?}, {what}: {error:?}");
                let error = loop {
                    // Those that came before.
                    match stream.next().await.unwrap() {
                        Ok(item) => assert_eq!(item, b"x"),
                        Err(error) => break error,
                    }
                };
                assert!(is_misbehaved(&error, *expected), "{transport:?}, {what}: {error:?}");
                assert!(stream.next().await.is_none());
            });
            server.join();
        }
    }
}

#[test]
fn client_cuts_a_server_that_sends_items_for_a_call_with_one_reply() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answers = || {
        RawServer::start(|greeted| {
            let mut peer = greeted.grant();
            let (header, _) = peer.hear_frame();
            // The last word.
            peer.hear_frame();
            let (kind, id) = (COUNT.kind(), header.id.get());
            peer.send_frame(&RawFrame::of(Flags::RESPONSE | Flags::STREAM, kind, id, b"x"));
            peer.send_frame(&RawFrame::response(kind, id, b"answer"));
            assert_eq!(hear_goodbye(&mut peer), WireError::BadFlags.number());
        })
    };
    for transport in BOTH {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let server = answers();
        let client = blocking::IpcClient::connect_with(server.path(), &options).unwrap();
        let upload = client.upload(COUNT, &CallOptions::default()).unwrap();
        let error = upload.finish().unwrap_err();
        assert!(is_misbehaved(&error, WireError::BadFlags), "{transport:?}: {error:?}");
        server.join();

        let server = answers();
        runtime.block_on(async {
            let client = IpcClient::connect_with(server.path(), options).await.unwrap();
            let upload = client.upload(COUNT, &CallOptions::default()).await.unwrap();
            let error = upload.finish().await.unwrap_err();
            assert!(is_misbehaved(&error, WireError::BadFlags), "{transport:?}: {error:?}");
        });
        server.join();
    }
}

/// Credit that was owed when the answer came is not sent any more: the server need not know the call.
#[test]
fn credit_that_is_owed_when_the_answer_comes_is_never_sent() {
    const NOTE: OneWay<Vec<u8>, Raw> = OneWay::new(0x0608, "note");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for transport in BOTH {
        let (go_on, wait) = mpsc::channel();
        let server = RawServer::start(move |greeted| {
            let mut peer = greeted.grant();
            let (Header { id, .. }, _) = peer.hear_frame();
            let send = |peer: &mut RawPeer, flags| {
                peer.send_frame(&RawFrame::of(flags, FILL.kind(), id.get(), b""));
            };
            (0..40).for_each(|_| send(&mut peer, Flags::RESPONSE | Flags::STREAM));
            wait.recv().unwrap();
            send(&mut peer, Flags::RESPONSE);
            wait.recv().unwrap();
            loop {
                let (header, payload) = peer.hear_frame();
                assert_ne!(header.kind, Kind::CREDIT, "{transport:?}");
                if header.kind == Kind::PING {
                    let kind = Kind::PONG.number();
                    peer.send_frame(&RawFrame::response(kind, header.id.get(), &payload));
                    break;
                }
            }
        });
        runtime.block_on(async {
            let options = ClientOptions { transport, ..ClientOptions::default() };
            let client = IpcClient::connect_with(server.path(), options).await.unwrap();
            let mut items = client.stream(FILL, &b"x".to_vec()).await.unwrap();
            // The request was read, and nothing after it is.
            items.next().await.unwrap().unwrap();
            while client.send_when(NOTE, &vec![1; 1000], WhenFull::Fail).await.is_ok() {}
            while client.send_when(NOTE, &vec![], WhenFull::Fail).await.is_ok() {}
            for _ in 1..32 {
                items.next().await.unwrap().unwrap();
            }
            go_on.send(()).unwrap();
            eventually("the answer is read", || (client.stats().received > 40).then_some(()));
            go_on.send(()).unwrap();
            client.ping().await.unwrap();
            for _ in 32..40 {
                items.next().await.unwrap().unwrap();
            }
            assert!(items.next().await.is_none());
        });
        server.join();
    }
}

fn is_misbehaved(error: &CallError, expected: WireError) -> bool {
    match error {
        CallError::Protocol(peer) => peer.error == expected,
        CallError::Disconnected { reason: EndReason::Misbehaved(peer), .. } => {
            peer.error == expected
        }
        _ => false,
    }
}
