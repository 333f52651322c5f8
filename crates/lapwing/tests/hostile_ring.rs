//! What a peer gets that breaks the rules of shared memory: bad commit words, bad positions, a sleep
//! word and a doorbell that lie. Against the server, and against both clients.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lapwing::error::WireError;
use lapwing::{
    CallError, CallOptions, ClientOptions, ClientStream, ConnectionState, IpcClient, Payload, Raw,
    Spin, Transport, blocking,
};
use lapwing_proto::{Header, Kind, limits};
use lapwing_shm::layout;
use lapwing_testkit::frame::RawFrame;
use lapwing_testkit::methods::{ECHO, LARGE, LATER, UNKNOWN};
use lapwing_testkit::{
    Heard, RawPeer, RawServer, Resources, Victim, eventually, process, test_name,
};

const RING: u64 = limits::RING_BYTES_MIN as u64;

fn greet(victim: &Victim) -> RawPeer {
    RawPeer::greet(victim.path(), Transport::SharedMemory)
}

/// The commit word that a case says instead of the right one: from where the record begins, where it
/// honestly ends, and the ring's length.
type Commit = fn(u64, u64, u64) -> u64;

/// Impossible commit words, for a record that does not begin at 0.
const COMMITS: &[(&str, Commit, WireError)] = &[
    ("one past a line", |_, end, _| end + 1, WireError::BadRing),
    ("one short of a line", |_, end, _| end - 1, WireError::BadRing),
    ("eight past a line", |_, end, _| end + 8, WireError::BadRing),
    ("its own beginning", |begin, _, _| begin, WireError::BadRing),
    ("a line behind", |begin, _, _| begin - 64, WireError::BadRing),
    ("the first line", |_, _, _| 64, WireError::BadRing),
    ("a line more than a lap ahead", |begin, _, ring| begin + ring + 64, WireError::BadRing),
    ("far ahead", |begin, _, _| begin + (1 << 40), WireError::BadRing),
    ("all ones", |_, _, _| u64::MAX, WireError::BadRing),
    ("the last line there is", |_, _, _| u64::MAX - 63, WireError::BadRing),
    ("the top bit", |_, end, _| end | 1 << 63, WireError::BadRing),
    ("a line more than its header", |_, end, _| end + 64, WireError::BadRing),
    ("a line less than its header", |_, end, _| end - 64, WireError::BadRing),
    ("a lap ahead", |begin, _, ring| begin + ring, WireError::FrameTooLong),
    ("half a lap ahead", |begin, _, ring| begin + ring / 2, WireError::FrameTooLong),
];

/// Publishes `body` with the case's commit word.
fn put(peer: &mut RawPeer, body: &[u8], commit: Commit) {
    let ring = peer.ring();
    let begin = ring.position();
    let end = begin + layout::record_span(body.len()) as u64;
    let word = commit(begin, end, ring.ring_bytes());
    assert_ne!(word, end, "this one would be right");
    ring.put_with_commit(body, word);
}

#[test]
fn honest_raw_peer_is_served_over_many_laps() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let mut peer = greet(&victim);
    let mut sent = 0;
    for id in 1..=2000_u64 {
        let payload = vec![id as u8; (id as usize * 37) % 3000];
        sent += payload.len() as u64;
        assert_eq!(peer.call(ECHO, id, &payload).1, payload);
    }
    assert!(sent > 20 * RING);
    drop(peer);
    victim.assert_unharmed();
}

#[test]
fn commit_word_that_cannot_be_is_cut() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for (what, commit, expected) in COMMITS {
        let mut peer = greet(&victim);
        assert_eq!(peer.call(ECHO, 1, &[1; 200]).1, [1; 200]);
        let body = RawFrame::request(ECHO, 2, &[2; 200]).bytes(peer.checksum());
        put(&mut peer, &body, *commit);
        assert_eq!(peer.hear_goodbye(), *expected, "{what}");
    }
    victim.await_stat("misbehaved", COMMITS.len() as u64);
    victim.assert_unharmed();
}

#[test]
fn commit_word_that_changes_while_a_record_is_read_harms_nobody() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for round in 0..20_u64 {
        let mut peer = greet(&victim);
        let ring = peer.ring();
        let words = [64, 128, 0, u64::MAX, round, RING, RING + 64, 192];
        for n in 0..2000 {
            ring.scribble(layout::RING, words[n % words.len()]);
            if n % 50 == 0 {
                ring.wake_peer();
            }
        }
        match peer.hear() {
            Heard::Frame(header, _) => assert_eq!(header.kind, Kind::GOODBYE),
            Heard::End => {}
            // The last words may have left nothing to read: that is an idle connection.
            Heard::Nothing => panic!("a garbled ring is noticed"),
        }
    }
    victim.assert_unharmed();
}

/// Passes over responses; whether the connection then ends, with this error if one is told.
fn assert_cut(peer: &mut RawPeer, expected: WireError, what: &str) {
    loop {
        match peer.hear() {
            Heard::Frame(header, _) if header.flags.is_response() => {}
            Heard::Frame(header, payload) => {
                assert_eq!(header.kind, Kind::GOODBYE);
                let goodbye = lapwing_proto::Goodbye::decode(&payload).unwrap();
                assert_eq!(goodbye.wire_error(), Some(expected), "{what}");
            }
            // Its ring is full, so that the word cannot be sent: the end says it.
            Heard::End => return,
            Heard::Nothing => panic!("{what}: the connection goes on"),
        }
    }
}

/// Makes the server have more to answer than its ring takes.
fn fill(peer: &mut RawPeer, first_id: u64) {
    for id in first_id..first_id + 20 {
        peer.send_frame(&RawFrame::request(LARGE, id, &60_000_u64.to_le_bytes()));
    }
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn consumed_word_that_cannot_be_is_cut_while_a_reply_waits_for_room() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let cases: &[(&str, u64)] = &[
        ("one byte", 1),
        ("not on a line", 60_000),
        ("not on a line by one", 64 * 900 + 63),
        ("a line past what was written", 5 * u64::from(limits::RING_BYTES)),
        ("all ones", u64::MAX),
        ("the last line there is", u64::MAX - 63),
        ("the top bit", 1 << 63),
    ];
    for (what, word) in cases {
        let mut peer = greet(&victim);
        fill(&mut peer, 1);
        peer.ring().say_consumed(*word);
        peer.ring().wake_peer();
        victim.assert_serves_others();
        // Its own reading would say the right word again, so the end is waited for without.
        victim.await_connections(2);
        drop(peer);
        assert!(victim.stat("misbehaved") > 0, "{what}");
    }
    victim.await_stat("misbehaved", cases.len() as u64);
    victim.assert_unharmed();
}

#[test]
fn consumed_word_that_goes_back_is_cut_while_a_reply_waits_for_room() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let mut peer = greet(&victim);
    fill(&mut peer, 1);
    for _ in 0..20 {
        peer.hear_frame();
    }
    // The server has seen how far that was; now it fills up again and is told less.
    fill(&mut peer, 100);
    peer.ring().say_consumed(64);
    peer.ring().wake_peer();
    victim.await_connections(2);
    assert_cut(&mut peer, WireError::BadRing, "going back");
    victim.await_stat("misbehaved", 1);
    victim.assert_unharmed();
}

#[test]
fn sleep_word_toggled_wildly_costs_no_reply() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for spin in 0..3_u64 {
        let mut peer = greet(&victim);
        let mut random = 0x9E37_79B9_7F4A_7C15_u64 | spin;
        for id in 1..=500 {
            // Some words are the same again, some go back, some are odd, some even.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            for word in [random, random | 1, 1, 0, u64::MAX, random >> 40] {
                peer.ring().say_armed(word);
            }
            assert_eq!(peer.call(ECHO, id, &id.to_le_bytes()).1, id.to_le_bytes());
        }
    }
    victim.assert_unharmed();
}

#[test]
fn doorbell_filled_and_made_blocking_hangs_nobody() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for _ in 0..3 {
        let mut peer = greet(&victim);
        let ring = peer.ring();
        rustix::io::write(ring.doorbell(), &(u64::MAX - 3).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(ring.doorbell(), rustix::fs::OFlags::empty()).unwrap();
        rustix::fs::fcntl_setfl(ring.peer_doorbell(), rustix::fs::OFlags::empty()).unwrap();
        for id in 1..=50 {
            // Asleep in a new epoch each time: the server rings for every reply.
            peer.ring().arm();
            assert_eq!(peer.call(ECHO, id, b"ring").1, b"ring");
        }
        // And the server's own bell, which this side can fill, too.
        rustix::io::write(peer.ring().peer_doorbell(), &(u64::MAX - 3).to_ne_bytes()).unwrap();
        assert_eq!(peer.call(ECHO, 60, b"ring").1, b"ring");
        victim.assert_serves_others();
        // One more, and a completion of the kernel's could make a write block: the server does not ring.
        rustix::io::write(peer.ring().doorbell(), &1_u64.to_ne_bytes()).unwrap();
        peer.ring().arm();
        peer.send_frame(&RawFrame::request(ECHO, 61, b"ring"));
        let end =
            std::iter::repeat_with(|| peer.hear()).find(|heard| !matches!(heard, Heard::Frame(..)));
        assert_eq!(end, Some(Heard::End));
        victim.assert_serves_others();
    }
    victim.assert_unharmed();
}

#[test]
fn doorbell_drained_and_rung_in_a_storm_loses_nothing() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let mut peer = greet(&victim);
    let bell = peer.ring().peer_doorbell().try_clone().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = rustix::io::write(&bell, &1_u64.to_ne_bytes());
                let _ = rustix::io::read(&bell, &mut [0; 8]);
            }
        });
        let until = Instant::now() + Duration::from_millis(300);
        let mut id = 0;
        while Instant::now() < until {
            id += 1;
            assert_eq!(peer.call(ECHO, id, b"storm").1, b"storm");
        }
        victim.assert_serves_others();
        stop.store(true, Ordering::Relaxed);
    });
    drop(peer);
    victim.assert_unharmed();
}

#[test]
fn scribbling_over_every_word_at_random_harms_only_the_scribbler() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let words = layout::segment_bytes(limits::RING_BYTES_MIN) as u64 / 8;
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..40_u64 {
        let mut peer = greet(&victim);
        peer.call(ECHO, 1, b"before");
        for id in 2..2 + round % 5 {
            peer.send_frame(&RawFrame::request(LATER, id, &60_000_u64.to_le_bytes()));
        }
        if round % 3 == 0 {
            fill(&mut peer, 1000);
        }
        for n in 0..3000 {
            // The words at the front and the record that is read next, more often than the rest.
            let ring = peer.ring();
            let at = match next() % 4 {
                0 => next() % 64,
                1 => (layout::RING as u64 + ring.position() % RING) / 8 + next() % 16,
                _ => next() % words,
            };
            let value = if next() % 2 == 0 { next() } else { (next() % (2 * RING)) & !63 };
            ring.scribble(at as usize % words as usize * 8, value);
            if n % 100 == 0 {
                ring.wake_peer();
            }
        }
        if round % 10 == 0 {
            victim.assert_serves_others();
        }
        // Gone, cut or not.
    }
    assert_eq!(victim.stat("panics"), 0);
    victim.assert_unharmed();
}

#[test]
fn ring_full_of_messages_at_once_is_read_to_its_end() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let mut peer = greet(&victim);
    let count = RING / 64 - 2;
    for _ in 0..count {
        peer.send_frame(&RawFrame::one_way(UNKNOWN, b"one line"));
    }
    peer.send_frame(&RawFrame::request(ECHO, 1, b"the last"));
    assert_eq!(peer.hear_frame().1, b"the last");
    victim.await_stat("dropped", count);
    drop(peer);
    victim.assert_unharmed();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A server that answers the first call with a record under a bad commit word.
fn forging_server(commit: Commit, expected: WireError) -> RawServer {
    RawServer::start(move |greeted| {
        let mut peer = greeted.grant();
        let answer = |peer: &mut RawPeer, call: &Header| {
            RawFrame::response(call.kind.number(), call.id.get(), &[1; 200]).bytes(peer.checksum())
        };
        let (call, _) = peer.hear_frame();
        let good = answer(&mut peer, &call);
        peer.ring().put(&good);
        let (call, _) = peer.hear_frame();
        let bad = answer(&mut peer, &call);
        put(&mut peer, &bad, commit);
        assert_eq!(peer.hear_goodbye(), expected);
    })
}

fn assert_protocol(error: &CallError, expected: WireError, what: &str) {
    assert!(
        matches!(error, CallError::Protocol(peer) if peer.error == expected),
        "{what}: {error:?}"
    );
}

#[test]
fn commit_word_that_cannot_be_is_a_typed_error_of_both_clients_and_leaks_nothing() {
    process::alone(test_name!(), || {
        let runtime = runtime();
        let check = |(what, commit, expected): &(&str, Commit, WireError), spin: Spin| {
            let options = ClientOptions { spin, ..ClientOptions::default() };
            let server = forging_server(*commit, *expected);
            let client = blocking::IpcClient::connect_with(server.path(), &options).unwrap();
            assert_eq!(client.call_raw(ECHO, b"").unwrap().len(), 200);
            assert_protocol(&client.call_raw(ECHO, b"").unwrap_err(), *expected, what);
            assert!(matches!(client.state(), ConnectionState::Closed(_)));
            server.join();
            drop(client);
            let server = forging_server(*commit, *expected);
            runtime.block_on(async {
                let client = IpcClient::connect_with(server.path(), options).await.unwrap();
                assert_eq!(client.call_raw(ECHO, b"").await.unwrap().len(), 200);
                assert_protocol(&client.call_raw(ECHO, b"").await.unwrap_err(), *expected, what);
                assert!(matches!(client.state(), ConnectionState::Closed(_)));
                drop(client);
                tokio::time::sleep(Duration::from_millis(2)).await;
            });
            server.join();
        };
        let held = || {
            let now = Resources::of(std::process::id());
            (now.descriptors, now.segment_mappings)
        };
        check(&COMMITS[0], Spin::Never);
        let before = held();
        for case in COMMITS {
            for spin in [Spin::Never, Spin::Adaptive] {
                check(case, spin);
            }
        }
        eventually("the clients hold nothing", || (held() == before).then_some(()));
    });
}

/// A server that reads nothing until the client's ring is full, and then says a bad position.
fn misreading_server(word: u64) -> RawServer {
    RawServer::start(move |greeted| {
        let mut peer = greeted.grant();
        // The client fills its ring meanwhile and falls asleep over it.
        std::thread::sleep(Duration::from_millis(50));
        peer.ring().say_consumed(word);
        peer.ring().wake_peer();
        eventually("the client closes", || {
            let gone = peer.try_send_with(b"x", &[]).is_err();
            gone.then_some(())
        });
    })
}

#[test]
fn consumed_word_that_cannot_be_ends_both_clients_that_wait_for_room() {
    let runtime = runtime();
    for word in [33, u64::MAX, u64::MAX - 63, 1 << 40] {
        let server = misreading_server(word);
        let client = blocking::IpcClient::connect(server.path()).unwrap();
        let error = (0..1000).find_map(|_| client.send_oneway(ECHO, &[0; 1000]).err());
        assert_closed(&error.expect("the ring is full before a thousand"), word);
        assert!(matches!(client.state(), ConnectionState::Closed(_)));
        drop(client);
        server.join();
        let server = misreading_server(word);
        runtime.block_on(async {
            let client = IpcClient::connect(server.path()).await.unwrap();
            let mut error = None;
            for _ in 0..1000 {
                error = error.or(client.send_oneway(ECHO, &[0; 1000]).await.err());
            }
            assert_closed(&error.expect("the ring is full before a thousand"), word);
            assert!(matches!(client.state(), ConnectionState::Closed(_)));
        });
        server.join();
    }
}

/// A call whose item finds that the connection cannot go on ends with it, though nothing else would tell.
#[test]
fn consumed_word_that_cannot_be_ends_the_stream_of_a_client_that_waits_for_room() {
    const TAKES: ClientStream<Vec<u8>, Payload, Raw> = ClientStream::new(0x0500, "takes");
    // It says nothing on the socket, and keeps that open.
    let misreads = || {
        let (done, waiting) = std::sync::mpsc::channel::<()>();
        let server = RawServer::start(move |greeted| {
            let mut peer = greeted.grant();
            std::thread::sleep(Duration::from_millis(50));
            peer.ring().say_consumed(33);
            peer.ring().wake_peer();
            let _ = waiting.recv();
        });
        (server, done)
    };
    let options =
        || ClientOptions { ring_bytes: limits::RING_BYTES_MIN, ..ClientOptions::default() };
    let (server, done) = misreads();
    let client = blocking::IpcClient::connect_with(server.path(), &options()).unwrap();
    let mut upload = client.upload(TAKES, &CallOptions::default()).unwrap();
    let error = (0..60).find_map(|_| upload.send(&vec![0; 1500]).err());
    assert!(matches!(error, Some(CallError::StreamEnded)), "{error:?}");
    assert_protocol(&upload.finish().unwrap_err(), WireError::BadRing, "blocking");
    drop(done);
    server.join();

    let (server, done) = misreads();
    runtime().block_on(async {
        let client = IpcClient::connect_with(server.path(), options()).await.unwrap();
        let mut upload = client.upload(TAKES, &CallOptions::default()).await.unwrap();
        let mut error = None;
        for _ in 0..60 {
            error = error.or(upload.send(&vec![0; 1500]).await.err());
        }
        assert!(matches!(error, Some(CallError::StreamEnded)), "{error:?}");
        assert_protocol(&upload.finish().await.unwrap_err(), WireError::BadRing, "async");
    });
    drop(done);
    server.join();
}

/// Either the position was seen first, or the byte that the raw server sends until the client is gone.
fn assert_closed(error: &CallError, word: u64) {
    let CallError::Protocol(peer) = error else { panic!("{word}: {error:?}") };
    assert!(matches!(peer.error, WireError::BadRing | WireError::UnexpectedMessage), "{peer}");
}

#[test]
fn server_whose_doorbell_is_full_and_blocking_hangs_no_client() {
    let serve = |greeted: lapwing_testkit::Greeted| {
        let mut peer = greeted.grant();
        let bell = peer.ring().doorbell().as_fd();
        rustix::io::write(bell, &(u64::MAX - 3).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(bell, rustix::fs::OFlags::empty()).unwrap();
        peer.ring().arm();
        while let Heard::Frame(call, payload) = peer.hear() {
            peer.ring().arm();
            if call.kind != Kind::GOODBYE {
                let reply = RawFrame::response(call.kind.number(), call.id.get(), &payload);
                peer.send_frame(&reply);
            }
        }
    };
    let server = RawServer::start(serve);
    let client = blocking::IpcClient::connect(server.path()).unwrap();
    for _ in 0..50 {
        assert_eq!(client.call_raw(ECHO, b"ring").unwrap().bytes(), b"ring");
    }
    drop(client);
    server.join();
    let server = RawServer::start(serve);
    runtime().block_on(async {
        let client = IpcClient::connect(server.path()).await.unwrap();
        for _ in 0..50 {
            assert_eq!(client.call_raw(ECHO, b"ring").await.unwrap().bytes(), b"ring");
        }
    });
    server.join();
}
