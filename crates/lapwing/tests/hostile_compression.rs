//! What a peer gets whose compressed payloads are bombs, lies or garbage, in a client's place and in a server's,
//! on both transports; others are served meanwhile and nothing leaks.

use std::os::fd::AsFd;
use std::time::Duration;

use lapwing::error::WireError;
use lapwing::{
    Builder, Call, CallError, CallOptions, ClientOptions, ClientStream, Compression, IpcClient,
    Payload, Raw, ServerLimits, ServerStream, Source, Status, Transport, blocking,
};
use lapwing_proto::{
    BulkDescriptor, Checksum, Entry, ExtensionBuilder, Features, Flags, Header, Hello, Kind,
    SegmentAnnounced, limits,
};
use lapwing_testkit::frame::RawFrame;
use lapwing_testkit::fuzz_bodies::compress;
use lapwing_testkit::methods::{ECHO, ECHO_ASYNC};
use lapwing_testkit::{
    Heard, RawPeer, RawServer, SEALS, SealFlags, Victim, hello, memory_file, process, test_name,
};

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];
const IDLE: ClientStream<Payload, Vec<u8>, Raw> = ClientStream::new(0x0610, "idle");
const ITEMS: ServerStream<Payload, Payload, Raw> = ServerStream::new(0x0611, "items");

fn compressing(builder: Builder) -> Builder {
    builder.compression(Compression::On).route(IDLE, |_: Call, items: Source<Payload, Raw>| async {
        // Reads nothing, and keeps the stream open.
        let _items = items;
        std::future::pending::<Result<Vec<u8>, Status>>().await
    })
}

fn greet(victim: &Victim, transport: Transport) -> RawPeer {
    let features = Features(Features::COMPRESSION.0 | Features::BULK.0);
    let (peer, ack) = RawPeer::greet_with(victim.path(), &Hello { features, ..hello(transport) });
    assert!(ack.features.contains(Features::COMPRESSION));
    peer
}

/// A payload and what is wrong with it.
struct Bad {
    what: &'static str,
    payload: Vec<u8>,
    error: WireError,
}

fn bad(what: &'static str, error: WireError, payload: impl Into<Vec<u8>>) -> Bad {
    Bad { what, payload: payload.into(), error }
}

/// A zstd frame by hand: its descriptor byte and what follows it, then blocks.
fn raw(head: &[u8], blocks: &[&[u8]]) -> Vec<u8> {
    [&[0x28, 0xB5, 0x2F, 0xFD], head, &blocks.concat()].concat()
}

/// One byte repeated, the last block if `last`. No more than 128 KiB.
fn repeated(last: bool, byte: u8, length: u32) -> [u8; 4] {
    let head = u32::from(last) | 1 << 1 | length << 3;
    let [a, b, c, _] = head.to_le_bytes();
    [a, b, c, byte]
}

/// A length in four bytes, in one segment.
fn claims(length: u32) -> Vec<u8> {
    [&[0xA0][..], &length.to_le_bytes()].concat()
}

/// So many blocks of 128 KiB each, in four bytes a block.
fn bomb(head: &[u8], blocks: usize) -> Vec<u8> {
    let mut bytes = raw(head, &[]);
    for n in 1..=blocks {
        bytes.extend(repeated(n == blocks, 7, 128 * 1024));
    }
    bytes
}

fn bad_payloads() -> Vec<Bad> {
    use WireError::{BadCompression, FrameTooLong};
    let good = compress(&[7; 5000]);
    let huge = (limits::MESSAGE_BYTES + 1).to_le_bytes();
    let most = limits::MESSAGE_BYTES;
    vec![
        bad("nothing", BadCompression, b""),
        bad("no zstd frame", BadCompression, *b"not compressed at all"),
        bad("a magic alone", BadCompression, raw(&[], &[])),
        bad("cut within the header", BadCompression, &good[..5]),
        bad("cut within a block", BadCompression, &good[..good.len() - 1]),
        bad("a byte behind it", BadCompression, [&good[..], b"x"].concat()),
        bad("two frames", BadCompression, [&good[..], &good].concat()),
        bad("a skippable frame", BadCompression, *b"\x50\x2A\x4D\x18\x01\0\0\0x"),
        bad(
            "a skippable frame first",
            BadCompression,
            [b"\x50\x2A\x4D\x18\x01\0\0\0x", &good[..]].concat(),
        ),
        bad("no content size", BadCompression, raw(&[0, 0x58], &[&repeated(true, 7, 100)])),
        bad("a dictionary id", BadCompression, raw(&[0x21, 7, 100], &[&repeated(true, 7, 100)])),
        bad("a reserved bit", BadCompression, raw(&[0x28, 100], &[&repeated(true, 7, 100)])),
        bad(
            "a window of 9 MiB",
            BadCompression,
            raw(&[0x40, 0x69, 0, 0], &[&repeated(true, 7, 256)]),
        ),
        bad(
            "a window of 3.75 TiB",
            BadCompression,
            raw(&[0x40, 0xFF, 0, 0], &[&repeated(true, 7, 256)]),
        ),
        bad("a reserved block", BadCompression, raw(&[0x20, 1], &[&[0b1111, 0, 0]])),
        bad("a wrong content checksum", BadCompression, {
            raw(&[0x24, 100], &[&repeated(true, 7, 100), &[1, 2, 3, 4]])
        }),
        bad("claims little, brings 10 MiB", BadCompression, bomb(&claims(300), 80)),
        bad("claims all but one byte", BadCompression, bomb(&claims(most - 1), 80)),
        bad("claims a byte more", BadCompression, bomb(&claims(most), 79)),
        bad("claims little, brings 500 MiB", BadCompression, bomb(&claims(300), 4000)),
        bad("claims 10 MiB, brings nothing", BadCompression, raw(&claims(most), &[&[1, 0, 0]])),
        bad("claims 10 MiB, brings garbage", BadCompression, raw(&claims(most), &[&[0xFF; 900]])),
        bad("an honest bomb of 10 MiB and a byte", FrameTooLong, {
            let head = [&[0xA0][..], &huge].concat();
            [bomb(&head, 80), vec![]].concat()
        }),
        bad("claims 4 GiB", FrameTooLong, bomb(&claims(u32::MAX), 1)),
        bad("claims all there is", FrameTooLong, raw(&[&[0xE0][..], &[0xFF; 8]].concat(), &[])),
        bad(
            "claims 2^32 and a byte, which is a byte in 32 bits",
            FrameTooLong,
            raw(&[0xE0, 1, 0, 0, 0, 1, 0, 0, 0], &[&repeated(true, 7, 1)]),
        ),
    ]
}

const COMPRESSED_REQUEST: Flags = Flags::REQUEST.union(Flags::COMPRESSED);

#[test]
fn compressed_payload_that_lies_is_cut_by_number_whatever_carries_it() {
    let Some(mut victim) = Victim::start(test_name!(), compressing) else { return };
    let mut cut = victim.stat("misbehaved");
    for transport in BOTH {
        for Bad { what, payload, error } in bad_payloads() {
            for kind in [ECHO, ECHO_ASYNC] {
                let mut peer = greet(&victim, transport);
                let (_, reply) = peer.call(kind, 1, b"well so far");
                assert_eq!(reply, b"well so far");
                peer.send_frame(&RawFrame::of(COMPRESSED_REQUEST, kind, 2, &payload));
                assert_eq!(peer.hear_goodbye(), error, "{transport:?}, {what}");
                cut += 1;
            }
            let mut peer = greet(&victim, transport);
            peer.send_frame(&RawFrame::of(Flags::COMPRESSED, ECHO, 0, &payload));
            assert_eq!(peer.hear_goodbye(), error, "{transport:?}, one-way, {what}");
            let mut peer = greet(&victim, transport);
            let opening = Flags::REQUEST | Flags::STREAM;
            peer.send_frame(&RawFrame::of(opening, IDLE.kind(), 1, b""));
            let item = Flags::STREAM | Flags::COMPRESSED;
            peer.send_frame(&RawFrame::of(item, IDLE.kind(), 1, &payload));
            assert_eq!(peer.hear_goodbye(), error, "{transport:?}, an item, {what}");
            cut += 2;
        }
        victim.assert_serves_others();
    }
    victim.await_stat("misbehaved", cut);
    victim.assert_unharmed();
}

/// What a peer does to an open connection, and what it is told.
type Case = (&'static str, fn(&mut RawPeer), WireError);

fn send(peer: &mut RawPeer, flags: Flags, kind: Kind, id: u64, payload: &[u8]) {
    peer.send_frame(&RawFrame::of(flags | Flags::COMPRESSED, kind.number(), id, payload));
}

fn echo_kind() -> Kind {
    Kind::application(ECHO).unwrap()
}

#[test]
fn compressed_frame_that_may_not_be_is_cut() {
    let Some(mut victim) = Victim::start(test_name!(), compressing) else { return };
    let cases: &[Case] = &[
        (
            "a Ping",
            |p| send(p, Flags::REQUEST, Kind::PING, 2, &compress(b"there?")),
            WireError::BadFlags,
        ),
        (
            "Describe",
            |p| send(p, Flags::REQUEST, Kind::DESCRIBE, 2, &compress(b"")),
            WireError::BadFlags,
        ),
        ("a Cancel", |p| send(p, Flags::NONE, Kind::CANCEL, 2, b""), WireError::BadFlags),
        (
            "Credit",
            |p| send(p, Flags::NONE, Kind::CREDIT, 2, &compress(&[1, 0, 0, 0, 1, 0, 0, 0])),
            WireError::BadFlags,
        ),
        (
            "a Goodbye",
            |p| send(p, Flags::NONE, Kind::GOODBYE, 0, &compress(&[0, 0])),
            WireError::BadFlags,
        ),
        (
            "an unknown kind of the connection's own",
            |p| send(p, Flags::REQUEST, Kind::new(0x77).unwrap(), 2, &compress(b"")),
            WireError::BadFlags,
        ),
        (
            "a block that was compressed, too",
            |p| {
                let mut payload = Vec::new();
                let deadline = Entry::Deadline { remaining_us: 1_000_000 };
                ExtensionBuilder::new(&mut payload).push(deadline).unwrap();
                let flags = Flags::REQUEST | Flags::EXTENDED;
                send(p, flags, echo_kind(), 2, &compress(&payload));
            },
            WireError::BadExtension,
        ),
        (
            "a last word that brings an item",
            |p| {
                let opening = Flags::REQUEST | Flags::STREAM;
                p.send_frame(&RawFrame::of(opening, IDLE.kind(), 1, b""));
                let kind = Kind::application(IDLE.kind()).unwrap();
                send(p, Flags::NONE, kind, 1, &compress(b"item"));
            },
            WireError::BadFlags,
        ),
        (
            "items beyond the window, which are few bytes compressed",
            |p| {
                let opening = Flags::REQUEST | Flags::STREAM;
                p.send_frame(&RawFrame::of(opening, IDLE.kind(), 1, b""));
                let kind = Kind::application(IDLE.kind()).unwrap();
                for _ in 0..3 {
                    send(p, Flags::STREAM, kind, 1, &compress(&[0; 200_000]));
                }
            },
            WireError::BadCredit,
        ),
    ];
    for transport in BOTH {
        for (what, misbehave, expected) in cases {
            let mut peer = greet(&victim, transport);
            misbehave(&mut peer);
            assert_eq!(peer.hear_goodbye(), *expected, "{transport:?}, {what}");
        }
        victim.assert_serves_others();
    }
    victim.await_stat("misbehaved", 2 * cases.len() as u64);
    victim.assert_unharmed();
}

#[test]
fn compressed_frame_where_it_was_not_agreed_on_is_cut_whether_good_or_bad() {
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    // The server's own choice is the socket alone, and there for those who ask.
    for (transport, features) in [
        (Transport::SharedMemory, Features::COMPRESSION),
        (Transport::SharedMemory, Features::NONE),
        (Transport::Socket, Features::NONE),
    ] {
        for payload in [compress(b"hello"), b"garbage".to_vec(), bomb(&claims(300), 80)] {
            let wanted = Hello { features, ..hello(transport) };
            let (mut peer, ack) = RawPeer::greet_with(victim.path(), &wanted);
            assert_eq!(ack.features, Features::NONE);
            peer.send_frame(&RawFrame::of(COMPRESSED_REQUEST, ECHO, 2, &payload));
            assert_eq!(peer.hear_goodbye(), WireError::BadFlags, "{transport:?}");
        }
    }
    victim.assert_unharmed();
}

#[test]
fn compressed_payload_in_a_block_is_served_or_cut_as_anywhere() {
    let Some(mut victim) = Victim::start(test_name!(), compressing) else { return };
    let in_block = |payload: &[u8]| {
        let mut peer = greet(&victim, Transport::SharedMemory);
        let announced = SegmentAnnounced { segment: 0, block_bytes_log2: 16, blocks: 4 }.encode();
        let file = memory_file(4 * 65_536, SealFlags::empty());
        rustix::io::pwrite(&file, payload, 65_536).unwrap();
        rustix::fs::fcntl_add_seals(&file, SEALS).unwrap();
        let frame = RawFrame::connection(Kind::SEGMENT, &announced).bytes(Checksum::Crc32);
        peer.send_with(&frame, &[file.as_fd()]);
        let length = payload.len() as u64;
        let bulk = Entry::Bulk(BulkDescriptor { segment: 0, block: 1, length });
        let deadline = Entry::Deadline { remaining_us: 20_000_000 };
        let mut block = Vec::new();
        let mut entries = ExtensionBuilder::new(&mut block);
        entries.push(bulk).unwrap().push(deadline).unwrap();
        let flags = COMPRESSED_REQUEST | Flags::EXTENDED;
        peer.send_frame(&RawFrame::of(flags, ECHO, 2, &block));
        peer
    };
    let text = [7; 50_000];
    let mut peer = in_block(&compress(&text));
    let (header, reply) = peer.hear_frame();
    assert!(header.flags.contains(Flags::RESPONSE | Flags::COMPRESSED));
    assert_eq!(lapwing::expand_payload(&reply, 50_000).as_deref(), Ok(&text[..]));
    drop(peer);
    for Bad { what, payload, error } in bad_payloads() {
        if payload.len() <= 65_536 {
            assert_eq!(in_block(&payload).hear_goodbye(), error, "{what}");
        }
    }
    victim.assert_unharmed();
}

/// Many at once, each the longest message in a few hundred bytes: every one is within what was granted.
#[test]
fn honest_bombs_take_the_memory_of_the_messages_that_they_are_and_others_are_served() {
    let Some(mut victim) = Victim::start(test_name!(), |server| {
        let limits =
            ServerLimits { bulk_idle: Duration::from_millis(100), ..ServerLimits::default() };
        compressing(server).limits(limits)
    }) else {
        return;
    };
    let before = victim.resources();
    let bomb = bomb(&claims(limits::MESSAGE_BYTES), 80);
    assert!(bomb.len() < 400);
    for transport in BOTH {
        let mut peer = greet(&victim, transport);
        for id in 1..=10 {
            for _ in 0..20 {
                peer.send_frame(&RawFrame::of(Flags::COMPRESSED, ECHO, 0, &bomb));
            }
            victim.assert_serves_others();
            assert_eq!(peer.call(ECHO, id, b"after them").1, b"after them", "{transport:?}");
        }
        let held = victim.resources().private_kib;
        let most = before.private_kib + 64 * 1024;
        assert!(held < most, "{held} KiB after 2000 MiB of messages, at first {before:?}");
    }
    victim.assert_unharmed();
}

/// A server that answers the first call so, and hears what it is told.
fn answering(flags: Flags, kind: Option<Kind>, payload: Vec<u8>, told: WireError) -> RawServer {
    RawServer::start(move |mut greeted| {
        greeted.features = Features(Features::COMPRESSION.0 | Features::BULK.0);
        let mut peer = greeted.grant();
        let (call, _) = peer.hear_frame();
        let (number, id) = (kind.unwrap_or(call.kind).number(), call.id.get());
        peer.send_frame(&RawFrame::of(flags | Flags::COMPRESSED, number, id, &payload));
        assert_eq!(peer.hear_goodbye(), told);
    })
}

fn options(transport: Transport) -> ClientOptions {
    ClientOptions { transport, compression: Compression::On, ..ClientOptions::default() }
}

#[track_caller]
fn assert_blamed(error: &CallError, expected: WireError, what: &str) {
    let CallError::Protocol(peer) = error else { panic!("{what}: {error:?}") };
    assert_eq!(peer.error, expected, "{what}");
}

#[test]
fn compressed_reply_or_item_that_lies_is_a_typed_error_of_both_clients() {
    process::alone(test_name!(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for transport in BOTH {
            for Bad { what, payload, error } in bad_payloads() {
                let more = [Flags::NONE, Flags::ERROR];
                for flags in more.map(|more| Flags::RESPONSE | more) {
                    let server = answering(flags, None, payload.clone(), error);
                    let options = options(transport);
                    let client =
                        blocking::IpcClient::connect_with(server.path(), &options).unwrap();
                    let blamed = client.call_raw(ECHO, b"call").unwrap_err();
                    assert_blamed(&blamed, error, what);
                    drop(client);
                    server.join();
                }
                let item = Flags::RESPONSE | Flags::STREAM;
                let server = answering(item, None, payload.clone(), error);
                let path = server.path().to_owned();
                runtime.block_on(async {
                    let client = IpcClient::connect_with(path, options(transport)).await.unwrap();
                    let mut items = client.stream(ITEMS, &Payload::empty()).await.unwrap();
                    let blamed = items.next().await.unwrap().unwrap_err();
                    assert!(
                        matches!(&blamed, CallError::Protocol(peer) if peer.error == error),
                        "{what}: {blamed:?}"
                    );
                    drop((items, client));
                    tokio::time::sleep(Duration::from_millis(2)).await;
                });
                server.join();
            }
        }
    });
}

#[test]
fn compressed_frame_that_a_server_may_not_send_is_a_typed_error() {
    let credit = compress(&[1, 0, 0, 0, 1, 0, 0, 0]);
    let cases = [
        ("Credit", Flags::NONE, Kind::CREDIT, credit),
        ("a Ping", Flags::REQUEST, Kind::PING, compress(b"there?")),
        ("a Pong", Flags::RESPONSE, Kind::PONG, compress(b"here")),
        ("a Goodbye", Flags::NONE, Kind::GOODBYE, compress(&[0, 0])),
    ];
    for transport in BOTH {
        for (what, flags, kind, payload) in cases.clone() {
            let server = answering(flags, Some(kind), payload, WireError::BadFlags);
            let client =
                blocking::IpcClient::connect_with(server.path(), &options(transport)).unwrap();
            let blamed = client.call_raw(ECHO, b"call").unwrap_err();
            assert_blamed(&blamed, WireError::BadFlags, what);
            drop(client);
            server.join();
        }
    }
}

#[test]
fn items_of_a_server_beyond_the_window_are_counted_as_they_are_when_expanded() {
    for transport in BOTH {
        let server = RawServer::start(|mut greeted| {
            greeted.features = Features::COMPRESSION;
            let mut peer = greeted.grant();
            let (call, _): (Header, _) = peer.hear_frame();
            let flags = Flags::RESPONSE | Flags::STREAM | Flags::COMPRESSED;
            let item = compress(&[0; 200_000]);
            for _ in 0..3 {
                peer.send_frame(&RawFrame::of(flags, call.kind.number(), call.id.get(), &item));
            }
            // The client may have given credit back for the first ones before it looked further.
            while let Heard::Frame(header, payload) = peer.hear() {
                if header.kind == Kind::GOODBYE {
                    let goodbye = lapwing_proto::Goodbye::decode(&payload).unwrap();
                    assert_eq!(goodbye.wire_error(), Some(WireError::BadCredit));
                    return;
                }
            }
            panic!("it said nothing");
        });
        let client = blocking::IpcClient::connect_with(server.path(), &options(transport)).unwrap();
        let mut items = client.stream(ITEMS, &Payload::empty(), &CallOptions::default()).unwrap();
        // Nothing is taken, so that no credit is given back, while a call of its own makes the client look.
        let blamed = client.call_raw(ECHO, b"look").unwrap_err();
        assert_blamed(&blamed, WireError::BadCredit, "items");
        while let Some(Ok(_)) = items.next() {}
        drop(items);
        drop(client);
        server.join();
    }
}
