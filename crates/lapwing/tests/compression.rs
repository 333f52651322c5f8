//! Compressed payloads: whole in every shape on both transports, only where both sides want them, and
//! to the byte at the limit.

use std::path::PathBuf;
use std::time::Duration;

use lapwing::{
    Builder, Call, CallError, CallOptions, ClientOptions, ClientStream, Code, Compression, Duplex,
    IpcClient, IpcServer, Metadata, OneWay, Payload, Raw, Request, ServerLimits, ServerStream,
    Sink, Source, Status, Transport, Unary, blocking,
};
use lapwing_proto::{Features, Flags, Header, Hello, Kind};
use lapwing_testkit::frame::RawFrame;
use lapwing_testkit::fuzz_bodies::compress;
use lapwing_testkit::{Heard, PATIENCE, RawPeer, RawServer, hello};
use tokio::sync::mpsc;

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];
const MIB: usize = 1024 * 1024;

const ECHO: u16 = 0x0800;
const MAKE: u16 = 0x0801;
const LATER: Unary<Payload, Payload, Raw> = Unary::new(0x0802, "later");
const MIRROR: Duplex<Payload, Payload, Raw> = Duplex::new(0x0803, "mirror");
const JOIN: ClientStream<Payload, Vec<u8>, Raw> = ClientStream::new(0x0804, "join");
const REPEAT: ServerStream<Payload, Payload, Raw> = ServerStream::new(0x0805, "repeat");
const TELL: OneWay<Payload, Raw> = OneWay::new(0x0806, "tell");

fn routes(builder: Builder, told: mpsc::UnboundedSender<Vec<u8>>) -> Builder {
    builder
        .route_inline(ECHO, "echo", |_, request, reply| {
            request.chunks(100_000).for_each(|piece| reply.extend(piece));
            Ok(())
        })
        .route_raw(MAKE, "make", |request: Request| async move {
            let bytes = u64::from_le_bytes(request.payload[..].try_into().unwrap());
            let mut reply = request.reserve(bytes as usize).await?;
            reply.fill(9);
            Ok::<_, Status>(reply)
        })
        .route(LATER, |call: Call, request: Payload| async move {
            assert_eq!(call.metadata().get("key"), Some(&b"value"[..]));
            assert!(call.deadline().is_some());
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(request)
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
        .route(JOIN, |_: Call, mut items: Source<Payload, Raw>| async move {
            let mut joined = Vec::new();
            while let Some(item) = items.next().await? {
                joined.extend_from_slice(&item);
            }
            Ok(joined)
        })
        .route(REPEAT, |_: Call, item: Payload, mut out: Sink<Payload, Raw>| async move {
            for _ in 0..10 {
                out.send(&item).await?;
            }
            Ok(())
        })
        .route(TELL, move |_: Call, message: Payload| {
            let told = told.clone();
            async move {
                told.send(message.into_vec()).unwrap();
                Ok(())
            }
        })
}

struct Fixture {
    _server: IpcServer,
    path: PathBuf,
    told: mpsc::UnboundedReceiver<Vec<u8>>,
    _folder: tempfile::TempDir,
}

fn serve(compression: Compression, limits: ServerLimits) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("compression.sock");
    let builder = IpcServer::builder().limits(limits).compression(compression);
    let (tell, told) = mpsc::unbounded_channel();
    let server = routes(builder.bind(&path).unwrap(), tell).serve().unwrap();
    Fixture { _server: server, path, told, _folder: folder }
}

fn on(transport: Transport) -> ClientOptions {
    ClientOptions { transport, compression: Compression::On, ..ClientOptions::default() }
}

/// Bytes that compress well, and are different everywhere.
fn text(length: usize) -> Vec<u8> {
    let lines = (0_u64..).flat_map(|n| format!("line {n} of a file\n").into_bytes());
    lines.take(length).collect()
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Around every bound that there is on the way.
const LENGTHS: [usize; 15] = [
    0,
    1,
    1023,
    1024,
    1025,
    16_384,
    65_535,
    65_536,
    65_537,
    100_000,
    262_144,
    262_145,
    MIB,
    10 * MIB - 1,
    10 * MIB,
];

#[tokio::test]
async fn payloads_of_all_lengths_come_back_whole_from_handlers_of_every_sort() {
    for transport in BOTH {
        let fixture = serve(Compression::On, ServerLimits::default());
        let client = IpcClient::connect_with(&fixture.path, on(transport)).await.unwrap();
        let travelling = CallOptions::default()
            .timeout(PATIENCE)
            .metadata(Metadata::from([("key", &b"value"[..])]));
        for length in LENGTHS {
            for sent in [text(length), noise(length), vec![0; length]] {
                let echoed = client.call_raw(ECHO, &sent).await.unwrap();
                assert!(echoed.bytes() == sent, "{transport:?}, {length}");
                if length > 10 * MIB - 100 {
                    // On the socket an extension block counts for the length of a frame.
                    continue;
                }
                let payload = Payload::from(&sent[..]);
                let later = client.call_with(LATER, &payload, &travelling).await.unwrap();
                assert!(later.bytes() == sent, "{transport:?}, {length}");
            }
            let mut request = client.reserve(length).await.unwrap();
            request.copy_from_slice(&text(length));
            let echoed = client.call_reserved(ECHO, request).await.unwrap();
            assert!(echoed.bytes() == text(length), "{transport:?}, {length}, in place");
            let made = client.call_raw(MAKE, &(length as u64).to_le_bytes()).await.unwrap();
            assert!(made.bytes() == vec![9; length], "{transport:?}, {length}, made in place");
        }
        assert_eq!(client.stats().errors, 0);
    }
}

#[tokio::test]
async fn messages_and_streams_of_every_shape_arrive_whole() {
    for transport in BOTH {
        let mut fixture = serve(Compression::On, ServerLimits::default());
        let client = IpcClient::connect_with(&fixture.path, on(transport)).await.unwrap();
        for item in [text(3000), noise(3000), text(200_000), text(2 * MIB), vec![]] {
            let payload = Payload::from(&item[..]);
            client.send(TELL, &payload).await.unwrap();
            assert!(fixture.told.recv().await.unwrap() == item);
            let mut repeated = client.stream(REPEAT, &payload).await.unwrap();
            for _ in 0..10 {
                assert!(repeated.next().await.unwrap().unwrap().bytes() == item, "{transport:?}");
            }
            assert!(repeated.next().await.is_none());
            let mut upload = client.upload(JOIN, &CallOptions::default()).await.unwrap();
            for _ in 0..4 {
                upload.send(&payload).await.unwrap();
            }
            assert!(upload.finish().await.unwrap() == item.repeat(4), "{transport:?}");
            let (mut sender, mut mirrored) =
                client.duplex(MIRROR, &CallOptions::default()).await.unwrap();
            let sent = item.clone();
            let sending = tokio::spawn(async move {
                for _ in 0..100 {
                    sender.send(&Payload::from(&sent[..])).await.unwrap();
                }
                sender.finish().await.unwrap();
            });
            for _ in 0..100 {
                assert!(mirrored.next().await.unwrap().unwrap().bytes() == item, "{transport:?}");
            }
            assert!(mirrored.next().await.is_none());
            sending.await.unwrap();
        }
    }
}

#[test]
fn blocking_threads_call_side_by_side_with_payloads_that_shrink_and_that_do_not() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = {
        let _entered = runtime.enter();
        serve(Compression::On, ServerLimits::default())
    };
    for transport in BOTH {
        // One block of 16 MiB is all there is, so that some wait.
        let options = ClientOptions { bulk_bytes: 1, ..on(transport) };
        let client = blocking::IpcClient::connect_with(&fixture.path, &options).unwrap();
        std::thread::scope(|scope| {
            for n in 1..=4 {
                let client = client.clone();
                scope.spawn(move || {
                    for round in 1..=10 {
                        for sent in [text(10_000 * n * round), noise(30_000 * n * round)] {
                            assert!(client.call_raw(ECHO, &sent).unwrap().bytes() == sent);
                        }
                    }
                });
            }
        });
    }
}

/// Whether the server compresses its reply to a peer that says it can.
fn is_compressed(server: Compression, transport: Transport, features: Features) -> bool {
    let fixture = serve(server, ServerLimits::default());
    let hello = Hello { features, ..hello(transport) };
    let (mut peer, ack) = RawPeer::greet_with(&fixture.path, &hello);
    let (header, reply) = peer.call(ECHO, 1, &text(10_000));
    let compressed = header.flags.contains(Flags::COMPRESSED);
    assert_eq!(ack.features.contains(Features::COMPRESSION), compressed);
    assert_eq!(reply == text(10_000), !compressed);
    assert_eq!(reply.len() < 5000, compressed);
    compressed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reply_is_compressed_only_where_the_server_wants_it_and_the_client_asked() {
    use Compression::{Auto, Off, On};
    use Transport::{SharedMemory, Socket};
    let check = |server, transport, features| {
        tokio::task::block_in_place(|| is_compressed(server, transport, features))
    };
    let asks = Features::COMPRESSION;
    for (server, transport, expected) in [
        (Auto, Socket, true),
        (Auto, SharedMemory, false),
        (On, Socket, true),
        (On, SharedMemory, true),
        (Off, Socket, false),
        (Off, SharedMemory, false),
    ] {
        assert_eq!(check(server, transport, asks), expected, "{server:?}, {transport:?}");
        assert!(!check(server, transport, Features::NONE), "{server:?}, {transport:?}");
    }
}

#[test]
fn request_is_compressed_only_where_the_client_wants_it_and_the_server_grants_it() {
    use Compression::{Auto, Off, On};
    use Transport::{SharedMemory, Socket};
    for (compression, transport, granted, expected) in [
        (Auto, Socket, true, true),
        (Auto, Socket, false, false),
        (Auto, SharedMemory, true, false),
        (On, Socket, true, true),
        (On, SharedMemory, true, true),
        (On, SharedMemory, false, false),
        (Off, Socket, true, false),
    ] {
        let what = format!("{compression:?}, {transport:?}, {granted}");
        let said = what.clone();
        let server = RawServer::start(move |mut greeted| {
            greeted.features = if granted { Features::COMPRESSION } else { Features::NONE };
            let mut peer = greeted.grant();
            let (header, payload) = peer.hear_frame();
            assert_eq!(header.flags.contains(Flags::COMPRESSED), expected, "{said}");
            assert_eq!(payload == text(10_000), !expected, "{said}");
            // Too short to be worth it, and the connection's own.
            let answer = |peer: &mut RawPeer, header: Header, payload: &[u8]| {
                let kind = if header.kind == Kind::PING { Kind::PONG } else { header.kind };
                peer.send_frame(&RawFrame::response(kind.number(), header.id.get(), payload));
            };
            answer(&mut peer, header, b"first");
            for _ in 0..2 {
                let (header, payload) = peer.hear_frame();
                assert_eq!(header.flags, Flags::REQUEST, "{said}");
                answer(&mut peer, header, &payload);
            }
            while let Heard::Frame(..) = peer.hear() {}
        });
        let options = ClientOptions { transport, compression, ..ClientOptions::default() };
        let client = blocking::IpcClient::connect_with(server.path(), &options).unwrap();
        assert_eq!(client.call_raw(ECHO, &text(10_000)).unwrap().bytes(), b"first", "{what}");
        assert_eq!(client.call_raw(ECHO, &text(1023)).unwrap().bytes(), text(1023), "{what}");
        client.ping().unwrap();
        drop(client);
        server.join();
    }
}

#[test]
fn compressed_reply_error_and_items_of_a_foreign_server_are_understood() {
    for transport in BOTH {
        let server = RawServer::start(|mut greeted| {
            greeted.features = Features::COMPRESSION;
            let mut peer = greeted.grant();
            let with = |peer: &mut RawPeer, header: &Header, more: Flags, payload: &[u8]| {
                let flags = Flags::RESPONSE | Flags::COMPRESSED | more;
                let (kind, id) = (header.kind.number(), header.id.get());
                peer.send_frame(&RawFrame::of(flags, kind, id, &compress(payload)));
            };
            let (call, _) = peer.hear_frame();
            // Shorter than this library would ever compress.
            with(&mut peer, &call, Flags::NONE, b"short");
            let (call, _) = peer.hear_frame();
            with(&mut peer, &call, Flags::ERROR, &Status::not_found("no such").encode());
            let (call, _) = peer.hear_frame();
            with(&mut peer, &call, Flags::STREAM, b"item");
            with(&mut peer, &call, Flags::STREAM, b"");
            with(&mut peer, &call, Flags::NONE, b"");
            while let Heard::Frame(..) = peer.hear() {}
        });
        let client = blocking::IpcClient::connect_with(server.path(), &on(transport)).unwrap();
        assert_eq!(client.call_raw(ECHO, b"").unwrap().bytes(), b"short");
        let Err(CallError::Status(status)) = client.call_raw(ECHO, b"") else { panic!() };
        assert_eq!((status.code, &*status.message), (Code::NotFound, "no such"));
        let mut items = client.stream(REPEAT, &Payload::empty(), &CallOptions::default()).unwrap();
        assert_eq!(items.next().unwrap().unwrap().bytes(), b"item");
        assert_eq!(items.next().unwrap().unwrap().bytes(), b"");
        assert!(items.next().is_none());
        drop(items);
        drop(client);
        server.join();
    }
}

#[tokio::test]
async fn limit_on_messages_is_that_of_the_expanded_payload_in_both_directions() {
    for transport in BOTH {
        let limits = ServerLimits { message_bytes: 300_000, ..ServerLimits::default() };
        let fixture = serve(Compression::On, limits);
        let client = IpcClient::connect_with(&fixture.path, on(transport)).await.unwrap();
        let most = text(300_000);
        assert!(client.call_raw(ECHO, &most).await.unwrap().bytes() == most);
        let refused = client.call_raw(ECHO, &text(300_001)).await.unwrap_err();
        assert!(matches!(refused, CallError::TooLarge { max: 300_000, .. }), "{refused}");
        let length = |bytes: u64| bytes.to_le_bytes();
        let made = client.call_raw(MAKE, &length(300_000)).await.unwrap();
        assert!(made.bytes() == vec![9; 300_000], "{transport:?}");
        let refused = client.call_raw(MAKE, &length(300_001)).await.unwrap_err();
        assert!(
            matches!(&refused, CallError::Status(s) if s.code == Code::ResourceExhausted),
            "{transport:?}: {refused}"
        );
    }
}
