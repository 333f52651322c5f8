//! What a peer gets that breaks the rules of bulk memory; others are served meanwhile and nothing leaks.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use lapwing::error::WireError;
use lapwing::{CallError, ClientOptions, IpcClient, Transport, blocking};
use lapwing_proto::{
    BulkDescriptor, Checksum, Entry, ExtensionBuilder, Features, Flags, Hello, Kind, MessageId,
    SegmentAnnounced, SegmentRetired,
};
use lapwing_shm::layout;
use lapwing_testkit::frame::RawFrame;
use lapwing_testkit::methods::{ECHO, LARGE};
use lapwing_testkit::{
    Heard, RawPeer, RawServer, SEALS, SealFlags, Victim, doorbell, hello, memory_file, test_name,
};

const KIB: u64 = 1024;
const BLOCK: u64 = 64 * KIB;

fn with_bulk() -> Hello {
    Hello { features: Features::BULK, ..hello(Transport::SharedMemory) }
}

fn greet(victim: &Victim) -> RawPeer {
    let (peer, ack) = RawPeer::greet_with(victim.path(), &with_bulk());
    assert_eq!(ack.features, Features::BULK);
    peer
}

fn announcement(segment: u32, block_bytes_log2: u8, blocks: u32) -> Vec<u8> {
    SegmentAnnounced { segment, block_bytes_log2, blocks }.encode()
}

/// A frame for the socket.
fn told(kind: Kind, payload: &[u8]) -> Vec<u8> {
    RawFrame::connection(kind, payload).bytes(Checksum::Crc32)
}

fn file(bytes: u64) -> OwnedFd {
    memory_file(bytes, SEALS)
}

fn announce(peer: &RawPeer, payload: &[u8], descriptors: &[OwnedFd]) {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    peer.send_with(&told(Kind::SEGMENT, payload), &descriptors);
}

/// Four blocks of 64 KiB of zeros, as segment 0.
fn announce_well(peer: &RawPeer) {
    announce(peer, &announcement(0, 16, 4), &[file(4 * BLOCK)]);
}

fn descriptor_frame(flags: Flags, id: u64, descriptor: BulkDescriptor, behind: &[u8]) -> RawFrame {
    let mut payload = Vec::new();
    ExtensionBuilder::new(&mut payload).push(Entry::Bulk(descriptor)).unwrap();
    payload.extend_from_slice(behind);
    RawFrame::of(flags | Flags::EXTENDED, ECHO, id, &payload)
}

fn ask(peer: &mut RawPeer, segment: u32, block: u32, length: u64) {
    let descriptor = BulkDescriptor { segment, block, length };
    peer.send_frame(&descriptor_frame(Flags::REQUEST, 1, descriptor, b""));
}

type Fault = (&'static str, fn(&mut RawPeer), WireError);

#[test]
fn wrong_descriptors_and_announcements_are_cut() {
    let faults: &[Fault] = &[
        ("a segment never announced", |p| ask(p, 0, 0, 1), WireError::BadBlock),
        (
            "another segment",
            |p| {
                announce_well(p);
                ask(p, 7, 0, 1);
            },
            WireError::BadBlock,
        ),
        (
            "a block out of range",
            |p| {
                announce_well(p);
                ask(p, 0, 4, 1);
            },
            WireError::BadBlock,
        ),
        (
            "a length beyond its block",
            |p| {
                announce_well(p);
                ask(p, 0, 0, BLOCK + 1);
            },
            WireError::BadBlock,
        ),
        (
            "a length beyond the largest message",
            |p| {
                announce_well(p);
                ask(p, 0, 0, u64::MAX);
            },
            WireError::FrameTooLong,
        ),
        (
            "bytes behind the descriptor",
            |p| {
                announce_well(p);
                let descriptor = BulkDescriptor { segment: 0, block: 0, length: 1 };
                p.send_frame(&descriptor_frame(Flags::REQUEST, 1, descriptor, b"more"));
            },
            WireError::BadExtension,
        ),
        (
            "a block of a retired segment",
            |p| {
                // In one piece: a frame in the ring must not come between the two.
                let mut told_twice = told(Kind::SEGMENT, &announcement(0, 16, 4));
                let retired = SegmentRetired { segment: 0 }.encode();
                told_twice.extend(told(Kind::SEGMENT_RETIRED, &retired));
                p.send_with(&told_twice, &[file(4 * BLOCK).as_fd()]);
                ask(p, 0, 0, 1);
            },
            WireError::BadBlock,
        ),
        (
            "a number out of turn",
            |p| announce(p, &announcement(1, 16, 4), &[file(4 * BLOCK)]),
            WireError::BadSegment,
        ),
        (
            "a number twice",
            |p| {
                announce_well(p);
                announce_well(p);
            },
            WireError::BadSegment,
        ),
        (
            "an unsealed file",
            |p| {
                let unsealed = memory_file(4 * BLOCK, SealFlags::SHRINK);
                announce(p, &announcement(0, 16, 4), &[unsealed]);
            },
            WireError::BadSegment,
        ),
        (
            "a shorter file",
            |p| announce(p, &announcement(0, 16, 4), &[file(3 * BLOCK)]),
            WireError::BadSegment,
        ),
        (
            "something else than a memory file",
            |p| announce(p, &announcement(0, 16, 4), &[doorbell()]),
            WireError::BadSegment,
        ),
        (
            "no descriptor",
            |p| announce(p, &announcement(0, 16, 4), &[]),
            WireError::MissingDescriptors,
        ),
        (
            "two descriptors",
            |p| announce(p, &announcement(0, 16, 4), &[file(4 * BLOCK), file(4 * BLOCK)]),
            WireError::SurplusDescriptors,
        ),
        (
            "blocks that are too short",
            |p| announce(p, &announcement(0, 15, 4), &[file(2 * BLOCK)]),
            WireError::BadMessage,
        ),
        (
            "no blocks",
            |p| announce(p, &announcement(0, 16, 0), &[file(BLOCK)]),
            WireError::BadMessage,
        ),
        (
            "more than one side may have",
            |p| announce(p, &announcement(0, 26, 2), &[file(2 << 26)]),
            WireError::QuotaBulk,
        ),
        (
            "more than one side may have, piece by piece",
            |p| {
                for n in 0..5 {
                    announce(p, &announcement(n, 24, 1), &[file(1 << 24)]);
                }
            },
            WireError::QuotaBulk,
        ),
        (
            "the end of a segment that is not there",
            |p| p.send(&told(Kind::SEGMENT_RETIRED, &SegmentRetired { segment: 3 }.encode())),
            WireError::BadSegment,
        ),
        (
            "another frame on the socket",
            |p| p.send(&told(Kind::GOODBYE, b"")),
            WireError::UnexpectedMessage,
        ),
        ("no frame on the socket", |p| p.send(&[b'x'; 24]), WireError::BadMagic),
    ];
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for (what, fault, error) in faults {
        eprintln!("{what}");
        let mut peer = greet(&victim);
        fault(&mut peer);
        assert_eq!(peer.hear_goodbye(), *error, "{what}");
        victim.assert_unharmed();
    }
    victim.await_stat("misbehaved", faults.len() as u64);
}

#[test]
fn descriptor_where_bulk_memory_was_not_agreed_on_is_cut() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let mut peer = RawPeer::greet(victim.path(), transport);
        ask(&mut peer, 0, 0, 1);
        assert_eq!(peer.hear_goodbye(), WireError::BadExtension, "{transport:?}");
    }
    victim.assert_unharmed();
}

#[test]
fn payload_in_a_block_is_served_and_the_block_comes_back() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let mut peer = greet(&victim);
    announce_well(&peer);
    for (id, block) in [(1, 3), (2, 0), (3, 3)] {
        let descriptor = BulkDescriptor { segment: 0, block, length: 1000 };
        peer.send_frame(&descriptor_frame(Flags::REQUEST, id, descriptor, b""));
        let (header, reply) = peer.hear_frame();
        assert_eq!((header.id, reply), (MessageId::new(id), vec![0; 1000]));
    }
    drop(peer);
    victim.assert_unharmed();
}

#[test]
fn returns_of_blocks_that_were_not_lent_are_cut_when_they_are_seen() {
    type Returned = fn(&RawPeer, &mut dyn FnMut(usize, u64));
    let cases: [(&str, Returned); 4] = [
        ("a block never lent", |_, scribble| {
            scribble(layout::returned_slot(0), layout::returned_word(9, 9));
            scribble(layout::FREED, 1);
        }),
        ("a block twice", |_, scribble| {
            for n in 0..2 {
                scribble(layout::returned_slot(n), layout::returned_word(0, 0));
            }
            scribble(layout::FREED, 2);
        }),
        ("more than were ever lent", |_, scribble| scribble(layout::FREED, 5000)),
        ("less than before", |_, scribble| scribble(layout::FREED, u64::MAX)),
    ];
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    for (what, returned) in cases {
        let mut peer = greet(&victim);
        // More replies than one segment has blocks, so that the server has to look for some to come back.
        for id in 1..=40_u64 {
            peer.send_frame(&RawFrame::request(LARGE, id, &(100 * KIB).to_le_bytes()));
            if id == 5 {
                let mut stores = Vec::new();
                returned(&peer, &mut |offset, value| stores.push((offset, value)));
                for (offset, value) in stores {
                    peer.ring().scribble(offset, value);
                }
            }
        }
        assert_eq!(peer.hear_goodbye(), WireError::BadBlock, "{what}");
        victim.assert_unharmed();
    }
}

#[test]
fn peer_that_gives_no_block_back_stops_at_the_cap_of_its_own_connection() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let mut peer = greet(&victim);
    for id in 1..=100_u64 {
        peer.send_frame(&RawFrame::request(LARGE, id, &(1024 * KIB).to_le_bytes()));
    }
    let mut heard = 0;
    while matches!(peer.hear_within(Duration::from_millis(300)), Heard::Frame(..)) {
        heard += 1;
    }
    assert_eq!(heard, 64, "blocks of 1 MiB in 64 MiB");
    victim.assert_serves_others();
    // One comes back, and one more goes out.
    let ring = peer.ring();
    ring.scribble(layout::returned_slot(0), layout::returned_word(0, 0));
    ring.scribble(layout::FREED, 1);
    ring.wake_peer();
    assert!(matches!(peer.hear(), Heard::Frame(..)));
    assert_eq!(peer.hear_within(Duration::from_millis(100)), Heard::Nothing);
    drop(peer);
    victim.assert_unharmed();
}

/// A server that lends a client what is not there.
#[test]
fn reply_in_a_block_that_is_not_there_is_a_typed_error_of_both_clients() {
    let serve = || {
        RawServer::start(|mut greeted| {
            greeted.features = Features::BULK;
            let mut peer = greeted.grant();
            let (call, _) = peer.hear_frame();
            let descriptor = BulkDescriptor { segment: 0, block: 0, length: 1 };
            peer.send_frame(&descriptor_frame(Flags::RESPONSE, call.id.get(), descriptor, b""));
            assert_eq!(peer.hear_goodbye(), WireError::BadBlock);
        })
    };
    let is_typed = |error: CallError| {
        let CallError::Protocol(fault) = error else { panic!("{error}") };
        assert_eq!(fault.error, WireError::BadBlock);
    };
    let server = serve();
    let client = blocking::IpcClient::connect(server.path()).unwrap();
    is_typed(client.call_raw(ECHO, b"call").unwrap_err());
    drop(client);
    server.join();
    let server = serve();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = ClientOptions::default();
        let client = IpcClient::connect_with(server.path(), options).await.unwrap();
        is_typed(client.call_raw(ECHO, b"call").await.unwrap_err());
    });
    drop(runtime);
    server.join();
}
