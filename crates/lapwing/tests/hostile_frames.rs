//! What bad frames get on an open connection: Goodbye with a number and the end, on both transports,
//! while others are served and nothing leaks; and what the clients make of a bad server.

use std::os::fd::AsFd;
use std::time::Duration;

use lapwing::error::WireError;
use lapwing::{
    CallError, ClientOptions, Code, ConnectionState, Delivered, EndReason, IpcClient, Status,
    Transport, blocking,
};
use lapwing_proto::{
    Checksum, Flags, Goodbye, Header, Hello, Kind, LimitsWanted, TimeLeft, limits,
};
use lapwing_testkit::frame::RawFrame;
use lapwing_testkit::methods::{ECHO, LARGE, LATER, PANIC, UNKNOWN};
use lapwing_testkit::{
    Heard, RawPeer, RawServer, Resources, Victim, doorbell, eventually, hello, process, test_name,
};

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];

/// Long enough to say that nothing comes.
const MOMENT: Duration = Duration::from_millis(50);

/// What a peer does to an open connection, and what it is told.
type Case = (&'static str, fn(&mut RawPeer), WireError);

fn assert_each_is_cut(test: &str, transports: &[Transport], cases: &[Case]) {
    let Some(mut victim) = Victim::start(test, |server| server) else { return };
    let misbehaved = victim.stat("misbehaved");
    for transport in transports {
        for (what, misbehave, expected) in cases {
            let mut peer = RawPeer::greet(victim.path(), *transport);
            let (_, reply) = peer.call(ECHO, 1, b"well so far");
            assert_eq!(reply, b"well so far");
            misbehave(&mut peer);
            assert_eq!(peer.hear_goodbye(), *expected, "{transport:?}, {what}");
        }
        victim.assert_serves_others();
    }
    victim.await_stat("misbehaved", misbehaved + (transports.len() * cases.len()) as u64);
    victim.assert_unharmed();
}

fn send_with(peer: &mut RawPeer, change: impl FnOnce(&mut RawFrame)) {
    let mut frame = RawFrame::request(ECHO, 2, b"misbehaving");
    change(&mut frame);
    peer.send_frame(&frame);
}

#[test]
fn frame_with_a_wrong_header_field_is_cut_by_its_number() {
    let cases: &[Case] = &[
        ("magic", |p| send_with(p, |f| f.magic = *b"HTTP"), WireError::BadMagic),
        ("version 0", |p| send_with(p, |f| f.version = 0), WireError::UnsupportedVersion),
        ("version 2", |p| send_with(p, |f| f.version = 2), WireError::UnsupportedVersion),
        ("reserved flag", |p| send_with(p, |f| f.flags |= 0x02), WireError::BadFlags),
        ("request and response", |p| send_with(p, |f| f.flags = 0x30), WireError::BadFlags),
        ("error of a request", |p| send_with(p, |f| f.flags = 0x50), WireError::BadFlags),
        ("error alone", |p| send_with(p, |f| f.flags = 0x40), WireError::BadFlags),
        ("kind 0", |p| send_with(p, |f| f.kind = 0), WireError::BadKind),
        ("request with id 0", |p| send_with(p, |f| f.id = 0), WireError::BadId),
        ("all ones", |p| p.send_body(&[0xFF; 24]), WireError::BadMagic),
        (
            "length of 4 GiB",
            |p| send_with(p, |f| f.length = Some(u32::MAX)),
            WireError::FrameTooLong,
        ),
        (
            "a checksum of another kind",
            |p| {
                let bytes = RawFrame::request(ECHO, 2, b"x").bytes(Checksum::Crc32);
                assert_eq!(p.checksum(), Checksum::Crc32c);
                p.send_body(&bytes);
            },
            WireError::BadChecksum,
        ),
        ("checksum 0", |p| send_with(p, |f| f.checksum = Some(0)), WireError::BadChecksum),
        (
            "a flipped bit of the payload",
            |p| {
                let mut bytes = RawFrame::request(ECHO, 2, &[0; 2000]).bytes(p.checksum());
                bytes[1500] ^= 1;
                p.send_body(&bytes);
            },
            WireError::BadChecksum,
        ),
    ];
    assert_each_is_cut(test_name!(), &BOTH, cases);
}

fn send_extended(peer: &mut RawPeer, payload: &[u8]) {
    let mut frame = RawFrame::request(ECHO, 7, payload);
    frame.flags |= Flags::EXTENDED.bits();
    peer.send_frame(&frame);
}

/// Pairs of the key `k` and values of these lengths.
fn metadata_block(lengths: &[u16]) -> Vec<u8> {
    let mut block = vec![0, 0];
    for length in lengths {
        block.push(0x04);
        block.extend_from_slice(&(length + 3).to_le_bytes());
        block.extend_from_slice(&[1, 0, b'k']);
        block.resize(block.len() + usize::from(*length), 7);
    }
    let bytes = (block.len() - 2) as u16;
    block[..2].copy_from_slice(&bytes.to_le_bytes());
    block
}

fn bulk_block() -> Vec<u8> {
    let mut block = vec![19, 0, 0x83, 16, 0];
    block.extend_from_slice(&[0; 16]);
    block
}

#[test]
fn extension_entries_that_are_not_critical_are_skipped() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        // A deadline of a second, an unknown entry of two bytes, then what the method sees.
        let mut payload = vec![16, 0, 0x01, 8, 0];
        payload.extend_from_slice(&1_000_000_u64.to_le_bytes());
        payload.extend_from_slice(&[0x7E, 2, 0, 1, 2]);
        payload.extend_from_slice(b"seen");
        send_extended(&mut peer, &payload);
        assert_eq!(peer.hear_frame().1, b"seen", "{transport:?}");
    }
    victim.assert_unharmed();
}

#[test]
fn metadata_of_exactly_its_cap_is_taken() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for transport in BOTH {
        for lengths in [&[8191][..], &[4095, 4095]] {
            let mut peer = RawPeer::greet(victim.path(), transport);
            let mut payload = metadata_block(lengths);
            payload.extend_from_slice(b"seen");
            send_extended(&mut peer, &payload);
            assert_eq!(peer.hear_frame().1, b"seen", "{transport:?}, {lengths:?}");
        }
    }
    victim.assert_unharmed();
}

#[test]
fn frame_that_was_not_agreed_on_is_cut_by_its_number() {
    let cases: &[Case] = &[
        ("compressed", |p| send_with(p, |f| f.flags |= 0x01), WireError::BadFlags),
        (
            "a stream of no call",
            |p| p.send_frame(&RawFrame::of(Flags::STREAM, ECHO, 0, b"")),
            WireError::BadFlags,
        ),
        (
            "a stream of the connection's own",
            |p| p.send_frame(&RawFrame::of(Flags::REQUEST | Flags::STREAM, 5, 9, b"")),
            WireError::BadFlags,
        ),
        ("a block past its end", |p| send_extended(p, &[9, 0, 1]), WireError::BadExtension),
        ("an entry past its end", |p| send_extended(p, &[3, 0, 1, 8, 0]), WireError::BadExtension),
        ("a critical entry", |p| send_extended(p, &[3, 0, 0xFF, 0, 0]), WireError::BadExtension),
        ("a bulk entry", |p| send_extended(p, &bulk_block()), WireError::BadExtension),
        (
            "metadata over its cap in one pair",
            |p| send_extended(p, &metadata_block(&[8192])),
            WireError::BadExtension,
        ),
        (
            "metadata over its cap in two pairs",
            |p| send_extended(p, &metadata_block(&[4095, 4096])),
            WireError::BadExtension,
        ),
        (
            "a response to no call",
            |p| p.send_frame(&RawFrame::response(ECHO, 9, b"")),
            WireError::UnknownCall,
        ),
        (
            "an error response to no call",
            |p| p.send_frame(&RawFrame::of(Flags::RESPONSE | Flags::ERROR, ECHO, 9, b"")),
            WireError::UnknownCall,
        ),
        (
            "a Pong to no Ping",
            |p| p.send_frame(&RawFrame::response(Kind::PONG.number(), 1, b"")),
            WireError::UnknownCall,
        ),
        (
            "a second Hello",
            |p| {
                let again = hello(Transport::Socket).encode();
                p.send_frame(&RawFrame::connection(Kind::HELLO, &again));
            },
            WireError::UnexpectedMessage,
        ),
        (
            "a HelloAck",
            |p| p.send_frame(&RawFrame::connection(Kind::HELLO_ACK, b"")),
            WireError::UnexpectedMessage,
        ),
        (
            "a HelloReject",
            |p| p.send_frame(&RawFrame::connection(Kind::HELLO_REJECT, b"")),
            WireError::UnexpectedMessage,
        ),
        (
            "a long Ping",
            |p| p.send_frame(&RawFrame::request(Kind::PING.number(), 2, &[0; 65])),
            WireError::FrameTooLong,
        ),
    ];
    assert_each_is_cut(test_name!(), &BOTH, cases);
}

#[test]
fn payload_over_the_granted_length_is_cut_before_it_is_read() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for transport in BOTH {
        let wanted = Hello {
            limits: LimitsWanted { message_bytes: 1000, calls_in_flight: 4 },
            ..hello(transport)
        };
        let (mut peer, ack) = RawPeer::greet_with(victim.path(), &wanted);
        assert_eq!(ack.limits.message_bytes, 1000);
        assert_eq!(peer.call(ECHO, 1, &[5; 1000]).1, [5; 1000]);
        peer.send_frame(&RawFrame::request(ECHO, 2, &[5; 1001]));
        assert_eq!(peer.hear_goodbye(), WireError::FrameTooLong, "{transport:?}");
    }
    // Over the socket an extension block stands beside the payload, and is no way around the limit.
    let wanted = Hello {
        limits: LimitsWanted { message_bytes: 1000, calls_in_flight: 4 },
        ..hello(Transport::Socket)
    };
    let block = TimeLeft { remaining_us: 60_000_000, sent_at_ns: 0 }.block();
    for (kind, block, bytes, fits) in [
        (ECHO, &block[..], 1000, true),
        (ECHO, &block[..], 1001, false),
        (ECHO, &[0, 0], 1001, false),
        (ECHO, &[0xFF, 0xFF], 1001, false),
        (Kind::DESCRIBE.number(), &[0xFF, 0xFF], 1001, false),
    ] {
        let (mut peer, _) = RawPeer::greet_with(victim.path(), &wanted);
        let payload = [block, &vec![5; bytes]].concat();
        let flags = Flags::REQUEST | Flags::EXTENDED;
        peer.send_frame(&RawFrame::of(flags, kind, 1, &payload));
        if fits {
            assert_eq!(peer.hear_frame().1, vec![5; bytes]);
        } else {
            let told = peer.hear_goodbye();
            // A block that is longer than its frame is no block.
            let expected = if kind == ECHO && block == [0xFF, 0xFF] {
                WireError::BadExtension
            } else {
                WireError::FrameTooLong
            };
            assert_eq!(told, expected, "{kind:#x} {block:?}");
        }
    }
    // Over shared memory a quarter of the sender's ring is the most.
    let mut peer = RawPeer::greet(victim.path(), Transport::SharedMemory);
    let quarter = limits::inline_max(limits::RING_BYTES_MIN) as usize;
    assert_eq!(peer.call(ECHO, 1, &vec![5; quarter]).1.len(), quarter);
    peer.send_frame(&RawFrame::request(ECHO, 2, &vec![5; quarter + 1]));
    assert_eq!(peer.hear_goodbye(), WireError::FrameTooLong);
    victim.assert_unharmed();
}

#[test]
fn errors_that_are_longer_than_any_message_are_told_by_their_code() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let with_limit = |transport, message_bytes| {
        let limits = LimitsWanted { message_bytes, ..LimitsWanted::default() };
        Hello { limits, ..hello(transport) }
    };
    for transport in BOTH {
        for bytes in [4, 8, 30] {
            let (mut peer, _) = RawPeer::greet_with(victim.path(), &with_limit(transport, bytes));
            let later = &60_000_u64.to_le_bytes()[..bytes.min(8) as usize];
            for (kind, payload, expected) in [
                (UNKNOWN, &b"x"[..], Code::Unimplemented),
                (PANIC, b"x", Code::Internal),
                // Given up while it runs; four bytes are no number to it.
                (LATER, later, if bytes < 8 { Code::InvalidArgument } else { Code::Cancelled }),
            ] {
                peer.send_frame(&RawFrame::request(kind, 2, payload));
                if kind == LATER {
                    peer.send_frame(&RawFrame::of(Flags::NONE, Kind::CANCEL.number(), 2, b""));
                }
                let (header, reply) = peer.hear_frame();
                assert_eq!(header.flags, Flags::RESPONSE | Flags::ERROR);
                let told = Status::decode(&reply).unwrap().code;
                assert_eq!(told, expected, "{transport:?}, {bytes} bytes, {kind:#x}");
            }
        }
    }
    // One that has no room for a code is not let in.
    let mut peer = RawPeer::connect(victim.path());
    let hello = with_limit(Transport::Socket, 3).encode();
    peer.send_frame(&RawFrame::connection(Kind::HELLO, &hello));
    assert_eq!(peer.hear_reject().error, WireError::BadMessage.number());
    victim.assert_unharmed();
}

#[test]
fn bytes_on_the_socket_of_a_shared_memory_connection_are_cut() {
    let cases: &[Case] = &[
        ("a byte", |p| p.send(b"x"), WireError::UnexpectedMessage),
        (
            "a frame",
            |p| p.send(&RawFrame::request(ECHO, 2, b"x").bytes(p.checksum())),
            WireError::UnexpectedMessage,
        ),
        (
            "a descriptor",
            |p| p.send_with(b"x", &[doorbell().as_fd()]),
            WireError::UnexpectedMessage,
        ),
    ];
    assert_each_is_cut(test_name!(), &[Transport::SharedMemory], cases);
}

#[test]
fn descriptors_on_an_open_socket_connection_are_closed_and_it_goes_on() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let mut peer = RawPeer::greet(victim.path(), Transport::Socket);
    let bells: Vec<_> = (0..10).map(|_| doorbell()).collect();
    let borrowed: Vec<_> = bells.iter().map(AsFd::as_fd).collect();
    for id in 1..=20 {
        let frame = RawFrame::request(ECHO, id, b"with more").bytes(peer.checksum());
        peer.send_with(&frame, &borrowed);
        let (header, reply) = peer.hear_frame();
        assert_eq!((header.id.get(), &*reply), (id, &b"with more"[..]));
    }
    let now = victim.resources().descriptors;
    assert_eq!(now, victim.before().descriptors + 1, "the connection's socket alone");
    drop(peer);
    victim.assert_unharmed();
}

#[test]
fn request_cut_at_any_byte_ends_its_connection_alone() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let length = RawFrame::request(ECHO, 2, b"a request").bytes(Checksum::Crc32c).len();
    for cut in 0..length {
        let mut peer = RawPeer::greet(victim.path(), Transport::Socket);
        let bytes = RawFrame::request(ECHO, 2, b"a request").bytes(peer.checksum());
        peer.send(&bytes[..cut]);
        match cut % 3 {
            // Closed for good, as by a crash; or with the reading half open, to hear what is said.
            0 => drop(peer),
            _ if cut == 0 => unreachable!(),
            _ => {
                peer.hang_up();
                assert_eq!(peer.hear_goodbye(), WireError::Truncated, "{cut} bytes");
            }
        }
    }
    // Between two frames it is an end as any other.
    let mut peer = RawPeer::greet(victim.path(), Transport::Socket);
    peer.call(ECHO, 1, b"whole");
    peer.hang_up();
    assert_eq!(peer.hear(), Heard::End);
    victim.assert_unharmed();
}

#[test]
fn request_in_pieces_is_put_together() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let mut peer = RawPeer::greet(victim.path(), Transport::Socket);
    let mut bytes = RawFrame::request(ECHO, 1, b"in pieces").bytes(peer.checksum());
    bytes.extend(RawFrame::request(ECHO, 2, &[3; 5000]).bytes(peer.checksum()));
    for piece in bytes.chunks(7).take(20) {
        peer.send(piece);
        std::thread::sleep(Duration::from_micros(300));
    }
    peer.send(&bytes[140..]);
    assert_eq!(peer.hear_frame().1, b"in pieces");
    assert_eq!(peer.hear_frame().1, [3; 5000]);
    drop(peer);
    victim.assert_unharmed();
}

fn status(header: &Header, payload: &[u8]) -> Status {
    assert_eq!(header.flags, Flags::RESPONSE | Flags::ERROR);
    Status::decode(payload).expect("a good status")
}

#[test]
fn request_of_an_unknown_kind_is_unimplemented_and_a_message_is_counted() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let dropped = victim.stat("dropped");
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        for (id, kind) in [(1, UNKNOWN), (2, 0xFFFF), (3, 0x0100), (4, 0x00FF), (5, 0x0080)] {
            let (header, payload) = peer.call(kind, id, b"who");
            assert_eq!(header.kind.number(), kind);
            assert_eq!(status(&header, &payload).code, Code::Unimplemented);
        }
        for kind in [UNKNOWN, 0x00FF] {
            peer.send_frame(&RawFrame::one_way(kind, b"anybody"));
        }
        assert_eq!(peer.hear_within(MOMENT), Heard::Nothing, "one-way messages have no answer");
        assert_eq!(peer.call(ECHO, 9, b"goes on").1, b"goes on");
    }
    victim.await_stat("dropped", dropped + 4);
    victim.assert_unharmed();
}

#[test]
fn ping_is_given_back_and_describe_lists_the_methods() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        let (header, payload) = peer.call(Kind::PING.number(), 3, &[9; 64]);
        assert_eq!((header.kind, payload), (Kind::PONG, vec![9; 64]));
        let (header, payload) = peer.call(Kind::DESCRIBE.number(), 4, b"");
        assert_eq!(header.kind, Kind::DESCRIBE);
        let description = lapwing_proto::Description::decode(&payload).unwrap();
        assert!(description.methods.iter().any(|method| method.kind == ECHO));
    }
    victim.assert_unharmed();
}

#[test]
fn handler_that_panics_is_internal_and_its_connection_goes_on() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        let (header, payload) = peer.call(PANIC, 1, b"");
        assert_eq!(status(&header, &payload).code, Code::Internal);
        assert_eq!(peer.call(ECHO, 2, b"goes on").1, b"goes on");
    }
    victim.await_stat("panics", 2);
    victim.assert_unharmed();
}

#[test]
fn more_calls_than_granted_are_cut() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for transport in BOTH {
        let wanted = Hello {
            limits: LimitsWanted { message_bytes: 4096, calls_in_flight: 4 },
            ..hello(transport)
        };
        let (mut peer, ack) = RawPeer::greet_with(victim.path(), &wanted);
        assert_eq!(ack.limits.calls_in_flight, 4);
        let long = 60_000_u64.to_le_bytes();
        for id in 1..=4 {
            peer.send_frame(&RawFrame::request(LATER, id, &long));
        }
        assert_eq!(peer.hear_within(MOMENT), Heard::Nothing, "four are granted");
        peer.send_frame(&RawFrame::request(LATER, 5, &long));
        assert_eq!(peer.hear_goodbye(), WireError::TooManyCalls, "{transport:?}");
        // Again and again: calls that end with it might send their word behind the Goodbye.
        for _ in 0..30 {
            let (mut peer, _) = RawPeer::greet_with(victim.path(), &wanted);
            (1..=5).for_each(|id| peer.send_frame(&RawFrame::request(LATER, id, &long)));
            assert_eq!(peer.hear_goodbye(), WireError::TooManyCalls, "{transport:?}");
        }
    }
    victim.assert_unharmed();
}

#[test]
fn id_of_a_running_call_is_cut_and_that_of_a_finished_one_is_free() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        for _ in 0..3 {
            assert_eq!(peer.call(LATER, 7, &1_u64.to_le_bytes()).1, 1_u64.to_le_bytes());
        }
        for _ in 0..2 {
            peer.send_frame(&RawFrame::request(LATER, 7, &60_000_u64.to_le_bytes()));
        }
        assert_eq!(peer.hear_goodbye(), WireError::BadId, "{transport:?}");
    }
    victim.assert_unharmed();
}

#[test]
fn header_that_announces_megabytes_and_brings_none_costs_the_server_nothing() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let before = victim.resources().private_kib;
    let peers: Vec<RawPeer> = (0..20)
        .map(|_| {
            let mut peer = RawPeer::greet(victim.path(), Transport::Socket);
            let mut frame = RawFrame::request(ECHO, 1, b"a few bytes");
            frame.length = Some(limits::MESSAGE_BYTES);
            peer.send_frame(&frame);
            peer
        })
        .collect();
    victim.assert_serves_others();
    let more = victim.resources().private_kib.saturating_sub(before);
    assert!(more < 20 * 64, "{more} KiB for twenty connections");
    drop(peers);
    victim.assert_unharmed();
}

#[test]
fn peer_that_reads_no_replies_is_bounded_and_gets_them_all_when_it_reads() {
    const CALLS: u64 = 150;
    const BYTES: u64 = 60_000;
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let before = victim.resources().private_kib;
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        // So few and short that all of them fit a ring, and a socket's buffer (where each small message
        // counts for most of a KiB), that the server does not read on from.
        for id in 1..=CALLS {
            peer.send_frame(&RawFrame::request(LARGE, id, &BYTES.to_le_bytes()));
        }
        std::thread::sleep(MOMENT);
        victim.assert_serves_others();
        let more = victim.resources().private_kib.saturating_sub(before);
        assert!(more < 2048, "{transport:?}: {more} KiB for 9 MB of replies");
        for id in 1..=CALLS {
            let (header, reply) = peer.hear_frame();
            assert_eq!((header.id.get(), reply.len() as u64), (id, BYTES), "{transport:?}");
            assert!(reply.iter().all(|byte| *byte == 7));
        }
        assert_eq!(peer.call(ECHO, CALLS + 1, b"good again").1, b"good again");
    }
    victim.assert_unharmed();
}

#[test]
fn peer_that_reads_no_replies_of_waiting_handlers_is_bounded_too() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let before = victim.resources().private_kib;
    for transport in BOTH {
        let mut peer = RawPeer::greet(victim.path(), transport);
        // Fills the way back, then has handlers end that cannot answer.
        for id in 1..=8 {
            peer.send_frame(&RawFrame::request(LATER, id, &20_u64.to_le_bytes()));
        }
        for id in 9..=40 {
            peer.send_frame(&RawFrame::request(LARGE, id, &60_000_u64.to_le_bytes()));
        }
        std::thread::sleep(2 * MOMENT);
        victim.assert_serves_others();
        let more = victim.resources().private_kib.saturating_sub(before);
        assert!(more < 2048, "{transport:?}: {more} KiB");
        let mut seen: Vec<u64> = (1..=40).map(|_| peer.hear_frame().0.id.get()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (1..=40).collect::<Vec<_>>());
    }
    victim.assert_unharmed();
}

#[test]
fn peer_that_goes_while_replies_wait_for_room_leaves_nothing() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for transport in BOTH {
        for _ in 0..5 {
            let mut peer = RawPeer::greet(victim.path(), transport);
            peer.send_frame(&RawFrame::request(LATER, 1000, &5_u64.to_le_bytes()));
            peer.send_frame(&RawFrame::request(LATER, 1001, &60_000_u64.to_le_bytes()));
            for id in 1..=50 {
                peer.send_frame(&RawFrame::request(LARGE, id, &60_000_u64.to_le_bytes()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    victim.assert_unharmed();
}

#[test]
fn flood_of_messages_does_not_keep_others_from_being_served() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let path = victim.path().to_owned();
    std::thread::scope(|scope| {
        let flood = scope.spawn(move || {
            let mut peer = RawPeer::greet(&path, Transport::Socket);
            let frame = RawFrame::one_way(UNKNOWN, b"again").bytes(peer.checksum());
            let many = frame.repeat(1000);
            for _ in 0..100 {
                peer.send(&many);
            }
            assert_eq!(peer.call(ECHO, 1, b"after all of it").1, b"after all of it");
        });
        while !flood.is_finished() {
            victim.assert_serves_others();
        }
        flood.join().unwrap();
    });
    victim.await_stat("dropped", 100_000);
    victim.assert_unharmed();
}

/// What a hostile server does with the first call, and what the call and the server get.
struct Treatment {
    what: &'static str,
    transports: &'static [Transport],
    treat: fn(&mut RawPeer, &Header),
    expected: fn(&CallError) -> bool,
    /// What the client says before it closes, if anything.
    told: Option<WireError>,
}

fn protocol(error: &CallError, expected: WireError) -> bool {
    matches!(error, CallError::Protocol(peer) if peer.error == expected)
}

fn vanished(error: &CallError) -> bool {
    let maybe = Delivered::Maybe;
    matches!(error, CallError::Disconnected { delivered, reason: EndReason::Vanished } if *delivered == maybe)
}

fn reply_with(peer: &mut RawPeer, call: &Header, change: impl FnOnce(&mut RawFrame)) {
    let mut frame = RawFrame::response(call.kind.number(), call.id.get(), b"reply");
    change(&mut frame);
    peer.send_frame(&frame);
}

/// A treatment for which the server alone is to blame, and is told so.
macro_rules! blamed {
    ($what:literal, $transports:expr, $error:ident, $treat:expr) => {
        Treatment {
            what: $what,
            transports: $transports,
            treat: $treat,
            expected: |error| protocol(error, WireError::$error),
            told: Some(WireError::$error),
        }
    };
}

fn treatments() -> Vec<Treatment> {
    let both: &'static [Transport] = &BOTH;
    vec![
        blamed!("an id never issued", both, UnknownCall, |p, h| {
            reply_with(p, h, |f| f.id ^= 0xFF00_0000_0000);
        }),
        blamed!("the next id", both, UnknownCall, |p, h| reply_with(p, h, |f| f.id += 1)),
        blamed!("id 0", both, BadId, |p, h| reply_with(p, h, |f| f.id = 0)),
        blamed!("another kind", both, BadKind, |p, h| reply_with(p, h, |f| f.kind += 1)),
        blamed!("kind 0", both, BadKind, |p, h| reply_with(p, h, |f| f.kind = 0)),
        blamed!("a bad magic", both, BadMagic, |p, h| reply_with(p, h, |f| f.magic[0] = 0)),
        blamed!("a version", both, UnsupportedVersion, |p, h| {
            reply_with(p, h, |f| f.version = 7);
        }),
        blamed!("a reserved flag", both, BadFlags, |p, h| reply_with(p, h, |f| f.flags |= 2)),
        blamed!("a compressed reply", both, BadFlags, |p, h| reply_with(p, h, |f| f.flags |= 1)),
        blamed!("a stream", both, BadFlags, |p, h| reply_with(p, h, |f| f.flags |= 4)),
        blamed!("a bad checksum", both, BadChecksum, |p, h| {
            reply_with(p, h, |f| f.checksum = Some(1));
        }),
        blamed!("a length over the limit", both, FrameTooLong, |p, h| {
            reply_with(p, h, |f| f.length = Some(limits::MESSAGE_BYTES + 1));
        }),
        blamed!("a status that cannot be read", both, BadMessage, |p, h| {
            reply_with(p, h, |f| {
                f.flags |= Flags::ERROR.bits();
                f.payload = vec![0xFF; 7];
            });
        }),
        blamed!("a Ping that is too long", both, FrameTooLong, |p, _| {
            p.send_frame(&RawFrame::request(Kind::PING.number(), 9, &[0; 65]));
        }),
        blamed!("a second HelloAck", both, UnexpectedMessage, |p, _| {
            p.send_frame(&RawFrame::connection(Kind::HELLO_ACK, b""));
        }),
        blamed!("a Goodbye that cannot be read", both, BadMessage, |p, _| {
            p.send_frame(&RawFrame::connection(Kind::GOODBYE, b"\xFF\xFF\xFF\xFF"));
        }),
        blamed!("bytes on the socket", &[Transport::SharedMemory], UnexpectedMessage, |p, _| {
            p.send(b"x");
        }),
        blamed!("the end within a reply", &[Transport::Socket], Truncated, |p, h| {
            let bytes =
                RawFrame::response(h.kind.number(), h.id.get(), b"reply").bytes(p.checksum());
            p.send(&bytes[..26]);
            p.hang_up();
        }),
        Treatment {
            what: "the end",
            transports: both,
            treat: |p, _| p.hang_up(),
            expected: vanished,
            told: None,
        },
        Treatment {
            what: "an accusation",
            transports: both,
            treat: |p, _| {
                let payload = Goodbye::new(WireError::BadKind, "you\u{1b}[2J").encode();
                p.send_frame(&RawFrame::connection(Kind::GOODBYE, &payload));
                p.hang_up();
            },
            expected: |error| {
                matches!(error, CallError::Disconnected {
                    delivered: Delivered::Maybe,
                    reason: EndReason::Accused(sentence),
                } if sentence == "you [2J")
            },
            told: None,
        },
        Treatment {
            what: "Goodbye and the end, with the call unanswered",
            transports: both,
            treat: |p, _| {
                let payload = Goodbye::new(WireError::NoError, "").encode();
                p.send_frame(&RawFrame::connection(Kind::GOODBYE, &payload));
                p.hang_up();
            },
            expected: |error| {
                matches!(
                    error,
                    CallError::Disconnected {
                        delivered: Delivered::Maybe,
                        reason: EndReason::Goodbye,
                    }
                )
            },
            told: None,
        },
    ]
}

/// A server that treats the first call so, and checks what it is told before the client closes.
fn treating_server(treatment: &Treatment) -> RawServer {
    let Treatment { treat, told, .. } = *treatment;
    RawServer::start(move |greeted| {
        let mut peer = greeted.grant();
        let (call, payload) = peer.hear_frame();
        assert_eq!((call.flags, &*payload), (Flags::REQUEST, &b"call"[..]));
        treat(&mut peer, &call);
        match told {
            Some(error) => assert_eq!(peer.hear_goodbye(), error),
            None => assert_eq!(peer.hear(), Heard::End),
        }
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn held() -> (usize, usize) {
    let now = Resources::of(std::process::id());
    (now.descriptors, now.segment_mappings)
}

#[test]
fn bad_reply_is_a_typed_error_of_both_clients_and_leaks_nothing() {
    process::alone(test_name!(), || {
        let runtime = runtime();
        let check = |treatment: &Treatment, transport: Transport| {
            let what = format!("{transport:?}, {}", treatment.what);
            let options = ClientOptions { transport, ..ClientOptions::default() };
            let server = treating_server(treatment);
            let client = blocking::IpcClient::connect_with(server.path(), &options).unwrap();
            let error = client.call_raw(ECHO, b"call").unwrap_err();
            assert!((treatment.expected)(&error), "blocking, {what}: {error:?}");
            assert!(matches!(client.state(), ConnectionState::Closed(_)), "{what}");
            assert!(client.call_raw(ECHO, b"after").is_err(), "{what}");
            server.join();
            drop(client);

            let server = treating_server(treatment);
            runtime.block_on(async {
                let client = IpcClient::connect_with(server.path(), options).await.unwrap();
                let error = client.call_raw(ECHO, b"call").await.unwrap_err();
                assert!((treatment.expected)(&error), "async, {what}: {error:?}");
                assert!(matches!(client.state(), ConnectionState::Closed(_)), "{what}");
                assert!(client.call_raw(ECHO, b"after").await.is_err(), "{what}");
                drop(client);
                // The driver's task ends in its next turn.
                tokio::time::sleep(Duration::from_millis(2)).await;
            });
            server.join();
        };
        let treatments = treatments();
        check(&treatments[0], Transport::SharedMemory);
        let before = held();
        for treatment in &treatments {
            treatment.transports.iter().for_each(|transport| check(treatment, *transport));
        }
        eventually("the clients hold nothing", || (held() == before).then_some(()));
    });
}

#[test]
fn second_reply_to_one_call_is_counted_as_late_and_the_connection_goes_on() {
    for transport in BOTH {
        let serve = |greeted: lapwing_testkit::Greeted| {
            let mut peer = greeted.grant();
            for _ in 0..3 {
                let (call, _) = peer.hear_frame();
                for payload in [&b"first"[..], b"second"] {
                    peer.send_frame(&RawFrame::response(
                        call.kind.number(),
                        call.id.get(),
                        payload,
                    ));
                }
            }
            while let Heard::Frame(header, _) = peer.hear() {
                assert_eq!(header.kind, Kind::GOODBYE);
            }
        };
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let server = RawServer::start(serve);
        let client = blocking::IpcClient::connect_with(server.path(), &options).unwrap();
        for _ in 0..3 {
            assert_eq!(client.call_raw(ECHO, b"").unwrap().bytes(), b"first");
        }
        eventually("the second replies are seen", || {
            let _ = client.state();
            (client.stats().late == 3).then_some(())
        });
        assert_eq!(client.state(), ConnectionState::Connected);
        drop(client);
        server.join();

        let server = RawServer::start(serve);
        runtime().block_on(async {
            let client = IpcClient::connect_with(server.path(), options).await.unwrap();
            for _ in 0..3 {
                assert_eq!(client.call_raw(ECHO, b"").await.unwrap().bytes(), b"first");
            }
            while client.stats().late < 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(client.state(), ConnectionState::Connected);
        });
        server.join();
    }
}

#[test]
fn status_of_an_unknown_code_reads_as_unknown() {
    for transport in BOTH {
        let server = RawServer::start(|greeted| {
            let mut peer = greeted.grant();
            let (call, _) = peer.hear_frame();
            // Code 200, a message of two bytes, no details, no retry.
            let mut frame =
                RawFrame::response(call.kind.number(), call.id.get(), b"\xC8\x02no\0\0");
            frame.flags |= Flags::ERROR.bits();
            peer.send_frame(&frame);
            while let Heard::Frame(..) = peer.hear() {}
        });
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let client = blocking::IpcClient::connect_with(server.path(), &options).unwrap();
        let Err(CallError::Status(status)) = client.call_raw(ECHO, b"") else { panic!() };
        assert_eq!((status.code, &*status.message), (Code::Unknown, "no"));
        drop(client);
        server.join();
    }
}

/// Calls its client before it answers, says that it is draining, and answers all the same.
fn serve_and_call(greeted: lapwing_testkit::Greeted) {
    let mut peer = greeted.grant();
    let (call, _) = peer.hear_frame();
    peer.send_frame(&RawFrame::request(Kind::PING.number(), 7, b"there?"));
    let (header, payload) = peer.hear_frame();
    assert_eq!((header.kind, header.id.get()), (Kind::PONG, 7));
    assert_eq!((header.flags, &*payload), (Flags::RESPONSE, &b"there?"[..]));
    for kind in [ECHO, Kind::DESCRIBE.number(), 0x0077] {
        peer.send_frame(&RawFrame::request(kind, 8, b"x"));
        let (header, payload) = peer.hear_frame();
        assert_eq!((header.kind.number(), header.id.get()), (kind, 8));
        assert_eq!(header.flags, Flags::RESPONSE | Flags::ERROR);
        assert_eq!(Status::decode(&payload).unwrap().code, Code::Unimplemented);
    }
    peer.send_frame(&RawFrame::one_way(ECHO, b"nobody serves this"));
    peer.send_frame(&RawFrame::one_way(0x0077, b""));
    let payload = Goodbye::new(WireError::Draining, "stopping").encode();
    peer.send_frame(&RawFrame::connection(Kind::GOODBYE, &payload));
    peer.send_frame(&RawFrame::response(call.kind.number(), call.id.get(), b"answer"));
    while let Heard::Frame(header, _) = peer.hear() {
        assert_eq!(header.kind, Kind::GOODBYE);
    }
}

#[test]
fn server_that_calls_its_client_is_answered_and_one_that_drains_finishes_its_calls() {
    for transport in BOTH {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let server = RawServer::start(serve_and_call);
        let client = blocking::IpcClient::connect_with(server.path(), &options).unwrap();
        assert_eq!(client.call_raw(ECHO, b"").unwrap().bytes(), b"answer");
        assert_eq!(client.state(), ConnectionState::Draining);
        assert_eq!(client.stats().unserved, 2);
        drop(client);
        server.join();

        let server = RawServer::start(serve_and_call);
        runtime().block_on(async {
            let client = IpcClient::connect_with(server.path(), options).await.unwrap();
            assert_eq!(client.call_raw(ECHO, b"").await.unwrap().bytes(), b"answer");
            assert_eq!(client.state(), ConnectionState::Draining);
            assert_eq!(client.stats().unserved, 2);
        });
        server.join();
    }
}
