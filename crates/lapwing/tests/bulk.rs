//! Payloads that are too long for a ring: whole, in any order, bounded, and gone from memory afterwards.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lapwing::{
    Builder, Call, CallError, CallOptions, ClientOptions, ClientStream, Code, Duplex, IpcClient,
    IpcServer, Metadata, Payload, Raw, Request, ServerLimits, ServerStream, Sink, Source, Spin,
    Status, Transport, Unary, blocking,
};
use lapwing_testkit::{PATIENCE, Resources, Victim, test_name};

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];
const MIB: usize = 1024 * 1024;

const ECHO: u16 = 0x0700;
const MAKE: u16 = 0x0701;
const LENGTH: Unary<Payload, Vec<u8>, Raw> = Unary::new(0x0702, "length");
const LATER: Unary<Payload, Payload, Raw> = Unary::new(0x0703, "bulk.later");
const MIRROR: Duplex<Payload, Payload, Raw> = Duplex::new(0x0704, "mirror");
const TOTAL: ClientStream<Payload, Vec<u8>, Raw> = ClientStream::new(0x0705, "total");
const FILL: ServerStream<Vec<u8>, Vec<u8>, Raw> = ServerStream::new(0x0706, "fill");

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

fn with_bulk(builder: Builder) -> Builder {
    builder
        .route_inline(ECHO, "bulk.echo", |_, request, reply| {
            // In pieces, so that the reply grows.
            request.chunks(100_000).for_each(|piece| reply.extend(piece));
            Ok(())
        })
        .route_raw(MAKE, "make", |request: Request| async move {
            let bytes = number(&request.payload) as usize;
            let mut reply = request.reserve(bytes).await?;
            reply.fill(9);
            Ok::<_, Status>(reply)
        })
        .route(LENGTH, |_: Call, request: Payload| async move {
            Ok((request.len() as u64).to_le_bytes().to_vec())
        })
        .route(LATER, |_: Call, request: Payload| async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
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
        .route(TOTAL, |_: Call, mut items: Source<Payload, Raw>| async move {
            let mut total = 0;
            while let Some(item) = items.next().await? {
                total += item.len() as u64;
            }
            Ok(total.to_le_bytes().to_vec())
        })
        .route(FILL, |_: Call, first: Vec<u8>, mut out: Sink<Vec<u8>, Raw>| async move {
            for n in 0..10_u8 {
                out.send(&vec![n; first.len()]).await?;
            }
            Ok(())
        })
}

struct Fixture {
    _server: IpcServer,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn serve(limits: ServerLimits) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bulk.sock");
    let builder = IpcServer::builder().limits(limits).bind(&path).unwrap();
    Fixture { _server: with_bulk(builder).serve().unwrap(), path, _folder: folder }
}

fn options(transport: Transport) -> ClientOptions {
    ClientOptions { transport, ..ClientOptions::default() }
}

fn pattern(n: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i / 64 * 7 + n * 13) as u8).collect()
}

#[tokio::test]
async fn calls_of_all_lengths_at_once_come_back_whole() {
    for transport in BOTH {
        let fixture = serve(ServerLimits::default());
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let lengths = [100, 70_000, MIB, 5 * MIB, 64 * 1024, 10 * MIB, 1, 200_000];
        let calls: Vec<_> = (0..40)
            .map(|n| {
                let client = client.clone();
                tokio::spawn(async move {
                    let sent = pattern(n, lengths[n % lengths.len()]);
                    let later = client.call(LATER, &Payload::from(&sent[..])).await.unwrap();
                    let echoed = client.call_raw(ECHO, &sent).await.unwrap();
                    assert!(later.bytes() == sent && echoed.bytes() == sent, "{n}");
                })
            })
            .collect();
        for call in calls {
            tokio::time::timeout(PATIENCE, call).await.expect("it ends").unwrap();
        }
        assert_eq!(client.stats().errors, 0);
    }
}

#[tokio::test]
async fn payloads_written_in_place_arrive_in_both_directions() {
    for transport in BOTH {
        let fixture = serve(ServerLimits::default());
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        for length in [0, 1, 1000, 65_537, MIB, 10 * MIB] {
            let sent = pattern(length, length);
            let mut request = client.reserve(length).await.unwrap();
            request.copy_from_slice(&sent);
            assert!(*request == *sent);
            let reply = client.call_reserved(ECHO, request).await.unwrap();
            assert!(reply.bytes() == sent, "{transport:?} {length}");
            let made = client.call_raw(MAKE, &(length as u64).to_le_bytes()).await.unwrap();
            assert!(made.bytes() == vec![9; length], "{transport:?} {length}");
        }
        let mut shorter = client.reserve(2 * MIB).await.unwrap();
        shorter.fill(5);
        shorter.truncate(70_001);
        assert!(client.call_reserved(ECHO, shorter).await.unwrap().bytes() == [5; 70_001]);
        let too_large = client.reserve(10 * MIB + 1).await.unwrap_err();
        assert!(matches!(too_large, CallError::TooLarge { .. }), "{too_large}");
        let refused = client.call_raw(MAKE, &(11 * MIB as u64).to_le_bytes()).await.unwrap_err();
        assert!(matches!(refused, CallError::Status(s) if s.code == Code::ResourceExhausted));
        // More of them than there can be at a time: what is dropped unsent is free again.
        for _ in 0..100 {
            drop(client.reserve(10 * MIB).await.unwrap());
        }
    }
}

#[tokio::test]
async fn block_reserved_on_one_connection_may_be_sent_on_another() {
    let fixture = serve(ServerLimits::default());
    let one = IpcClient::connect(&fixture.path).await.unwrap();
    let other = IpcClient::connect(&fixture.path).await.unwrap();
    let mut request = one.reserve(MIB).await.unwrap();
    request.fill(3);
    assert!(other.call_reserved(ECHO, request).await.unwrap().bytes() == [3; MIB]);
    let socket = IpcClient::connect_with(&fixture.path, options(Transport::Socket)).await.unwrap();
    let mut request = one.reserve(MIB).await.unwrap();
    request.fill(4);
    assert!(socket.call_reserved(ECHO, request).await.unwrap().bytes() == [4; MIB]);
}

#[test]
fn blocking_threads_reserve_and_call_side_by_side() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = {
        let _entered = runtime.enter();
        serve(ServerLimits::default())
    };
    for (transport, spin) in BOTH.into_iter().flat_map(|t| [(t, Spin::Never), (t, Spin::Adaptive)])
    {
        let options = ClientOptions { transport, spin, ..ClientOptions::default() };
        let client = blocking::IpcClient::connect_with(&fixture.path, &options).unwrap();
        std::thread::scope(|scope| {
            for n in 0..4 {
                let client = client.clone();
                scope.spawn(move || {
                    for round in 0..5 {
                        let sent = pattern(n * 10 + round, 100_000 * (n + 1) * (round + 1));
                        let mut request = client.reserve(sent.len()).unwrap();
                        request.copy_from_slice(&sent);
                        assert!(client.call_reserved(ECHO, request).unwrap().bytes() == sent);
                        assert!(client.call_raw(ECHO, &sent).unwrap().bytes() == sent);
                    }
                });
            }
        });
    }
}

#[tokio::test]
async fn items_longer_than_a_ring_takes_go_through_streams_of_every_shape() {
    for transport in BOTH {
        let fixture = serve(ServerLimits::default());
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let mut filled = client.stream(FILL, &vec![0; 2 * MIB]).await.unwrap();
        for n in 0..10_u8 {
            let item = filled.next().await.unwrap().unwrap();
            assert!(item == vec![n; 2 * MIB], "{transport:?} {n}");
        }
        assert!(filled.next().await.is_none());
        let mut upload = client.upload(TOTAL, &CallOptions::default()).await.unwrap();
        for n in 1..=10 {
            upload.send(&pattern(n, n * 300_000).into()).await.unwrap();
        }
        assert_eq!(number(&upload.finish().await.unwrap()), 55 * 300_000);
        let (mut sender, mut mirrored) =
            client.duplex(MIRROR, &CallOptions::default()).await.unwrap();
        let sending = tokio::spawn(async move {
            for n in 0..20 {
                sender.send(&pattern(n, 90_000 * n).into()).await.unwrap();
            }
            sender.finish().await.unwrap();
        });
        for n in 0..20 {
            let item = mirrored.next().await.unwrap().unwrap();
            assert!(item.bytes() == pattern(n, 90_000 * n), "{transport:?} {n}");
        }
        assert!(mirrored.next().await.is_none());
        sending.await.unwrap();
    }
}

#[tokio::test]
async fn without_bulk_memory_a_quarter_of_the_ring_is_the_largest_message() {
    let without = |limits, options| async move {
        let fixture = serve(limits);
        let client = IpcClient::connect_with(&fixture.path, options).await.unwrap();
        assert_eq!(client.agreement().request_bytes, 65_536);
        let quarter = client.call_raw(ECHO, &[1; 65_536]).await.unwrap();
        assert!(quarter.bytes() == [1; 65_536]);
        let refused = client.call_raw(ECHO, &[1; 65_537]).await.unwrap_err();
        assert!(matches!(refused, CallError::TooLarge { max: 65_536, .. }), "{refused}");
        let refused = client.call_raw(MAKE, &65_537_u64.to_le_bytes()).await.unwrap_err();
        assert!(matches!(refused, CallError::Status(s) if s.code == Code::ResourceExhausted));
    };
    without(ServerLimits { bulk_bytes: 0, ..ServerLimits::default() }, ClientOptions::default())
        .await;
    without(ServerLimits::default(), ClientOptions { bulk_bytes: 0, ..ClientOptions::default() })
        .await;
}

#[tokio::test]
async fn client_whose_bulk_memory_is_used_up_waits_its_turn_and_no_longer_than_its_deadline() {
    let fixture = serve(ServerLimits::default());
    // One block of 16 MiB is all there is.
    let options = ClientOptions { bulk_bytes: 1, ..ClientOptions::default() };
    let client = IpcClient::connect_with(&fixture.path, options).await.unwrap();
    let held = client.reserve(10 * MIB).await.unwrap();
    let begun = Instant::now();
    let timeout = CallOptions::default().timeout(Duration::from_millis(50));
    let late = client.call_with(LENGTH, &vec![1; MIB].into(), &timeout).await.unwrap_err();
    assert!(matches!(late, CallError::DeadlineExceeded), "{late}");
    let late = client.reserve_with(MIB, &timeout).await.unwrap_err();
    assert!(matches!(late, CallError::DeadlineExceeded), "{late}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    // Short messages need none, and go on.
    assert_eq!(client.call_raw(ECHO, b"short").await.unwrap().bytes(), b"short");
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call(LENGTH, &vec![1; MIB].into()).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!waiting.is_finished());
    assert_eq!(number(&client.call_reserved(LENGTH.kind(), held).await.unwrap()), 10 * MIB as u64);
    let waited = tokio::time::timeout(PATIENCE, waiting).await.expect("its turn has come");
    assert_eq!(number(&waited.unwrap().unwrap()), MIB as u64);
}

#[tokio::test]
async fn user_over_its_quota_of_bulk_memory_gets_a_status_or_is_cut_and_nobody_else_is() {
    let limits = ServerLimits { bulk_bytes_per_uid: 20 * MIB as u64, ..ServerLimits::default() };
    let fixture = serve(limits);
    let client = IpcClient::connect(&fixture.path).await.unwrap();
    let other = IpcClient::connect(&fixture.path).await.unwrap();
    let length = |bytes: usize| (bytes as u64).to_le_bytes();
    // The server's own segment of 16 MiB for this reply leaves room for one of 4 MiB.
    let made = client.call_raw(MAKE, &length(10 * MIB)).await.unwrap();
    assert_eq!(made.len(), 10 * MIB);
    let refused = other.call_raw(MAKE, &length(10 * MIB)).await.unwrap_err();
    assert!(matches!(&refused, CallError::Status(s) if s.code == Code::ResourceExhausted));
    assert_eq!(other.call_raw(MAKE, &length(MIB)).await.unwrap().len(), MIB);
    let cut = other.call_raw(ECHO, &vec![1; 10 * MIB]).await.unwrap_err();
    assert!(matches!(cut, CallError::Disconnected { .. }), "{cut}");
    assert_eq!(client.call_raw(MAKE, &length(10 * MIB)).await.unwrap().len(), 10 * MIB);
}

#[tokio::test]
async fn quota_of_a_user_is_free_again_when_its_connections_end() {
    let limits = ServerLimits { bulk_bytes_per_uid: 40 * MIB as u64, ..ServerLimits::default() };
    let fixture = serve(limits);
    let length = (10 * MIB as u64).to_le_bytes();
    for n in 0..20 {
        let client = IpcClient::connect(&fixture.path).await.unwrap();
        // A segment of 16 MiB on either side. The server may still see the end of the last connection.
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = client.call_raw(MAKE, &length).await {
            assert!(matches!(&error, CallError::Status(s) if s.code == Code::ResourceExhausted));
            assert!(Instant::now() < deadline, "{n}: nothing came back");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let sent = vec![n; 10 * MIB];
        assert!(client.call_raw(ECHO, &sent).await.unwrap().bytes() == sent, "{n}");
        // In order, or by going without a word.
        if n % 2 == 0 {
            client.disconnect().await;
        }
    }
}

#[tokio::test]
async fn message_of_the_longest_length_passes_and_one_byte_more_is_refused() {
    for transport in BOTH {
        let fixture = serve(ServerLimits::default());
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let sent = pattern(1, 10 * MIB);
        assert!(client.call_raw(ECHO, &sent).await.unwrap().bytes() == sent);
        let refused = client.call_raw(ECHO, &vec![1; 10 * MIB + 1]).await.unwrap_err();
        assert!(matches!(refused, CallError::TooLarge { .. }), "{transport:?}: {refused}");
        let length = |bytes: usize| (bytes as u64).to_le_bytes();
        let made = client.call_raw(MAKE, &length(10 * MIB)).await.unwrap();
        assert_eq!(made.len(), 10 * MIB);
        let refused = client.call_raw(MAKE, &length(10 * MIB + 1)).await.unwrap_err();
        let is_status =
            matches!(&refused, CallError::Status(s) if s.code == Code::ResourceExhausted);
        assert!(is_status, "{transport:?}: {refused}");
        assert!(client.call_raw(ECHO, &sent).await.unwrap().bytes() == sent, "it goes on");

        let path = fixture.path.clone();
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            assert!(client.call_raw(ECHO, &sent).unwrap().bytes() == sent);
            let refused = client.call_raw(ECHO, &vec![1; 10 * MIB + 1]).unwrap_err();
            assert!(matches!(refused, CallError::TooLarge { .. }), "{transport:?}: {refused}");
            let made = client.call_raw(MAKE, &length(10 * MIB)).unwrap();
            assert_eq!(made.len(), 10 * MIB);
            let refused = client.call_raw(MAKE, &length(10 * MIB + 1)).unwrap_err();
            let is_status =
                matches!(&refused, CallError::Status(s) if s.code == Code::ResourceExhausted);
            assert!(is_status, "{transport:?}: {refused}");
            let mut request = client.reserve(10 * MIB).unwrap();
            request.copy_from_slice(&sent);
            assert!(client.call_reserved(ECHO, request).unwrap().bytes() == sent, "it goes on");
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}

/// What travels with it takes nothing away from the largest message.
#[tokio::test]
async fn message_of_the_longest_length_passes_with_a_deadline_and_metadata() {
    let echo = Unary::<Vec<u8>, Payload, Raw>::new(ECHO, "echo");
    let fixture = serve(ServerLimits::default());
    // Of bytes that no compression makes shorter.
    let mut state = 1_u64;
    let sent: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(10 * MIB)
    .collect();
    let longer = [&sent[..], &[1]].concat();
    let carries = CallOptions::default()
        .timeout(Duration::from_secs(60))
        .metadata(Metadata::from([("tenant", vec![7_u8; 8000])]));
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        assert!(client.call_with(echo, &sent, &carries).await.unwrap().bytes() == sent);
        let refused = client.call_with(echo, &longer, &carries).await.unwrap_err();
        assert!(matches!(refused, CallError::TooLarge { .. }), "{transport:?}: {refused}");
        let (path, sent, carries) = (fixture.path.clone(), sent.clone(), carries.clone());
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let mut request = client.reserve(10 * MIB).unwrap();
            request.copy_from_slice(&sent);
            let reply = client.call_reserved_with(ECHO, request, &carries).unwrap();
            assert!(reply.bytes() == sent);
            assert!(client.call_with(echo, &sent, &carries).unwrap().bytes() == sent);
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}

/// Given up before it is sent, while it waits for a block, while it is handled, while its reply comes.
#[tokio::test]
async fn calls_given_up_at_any_moment_leave_every_block_free() {
    for transport in BOTH {
        let fixture = serve(ServerLimits::default());
        // One block of 16 MiB, or a few shorter ones.
        let options = ClientOptions { bulk_bytes: 1, ..options(transport) };
        let client = IpcClient::connect_with(&fixture.path, options).await.unwrap();
        let given_up: Vec<_> = (0..120_u64)
            .map(|n| {
                let client = client.clone();
                let sent = Payload::from(vec![n as u8; (n as usize % 12 + 1) * 300_000]);
                let patience = Duration::from_micros(n * 331);
                tokio::spawn(async move {
                    let call = async {
                        match n % 3 {
                            0 => {
                                let soon = CallOptions::default().timeout(patience);
                                let _ = client.call_with(LATER, &sent, &soon).await;
                            }
                            1 => drop(client.call(LATER, &sent).await),
                            _ => {
                                let request = client.reserve(sent.len()).await.unwrap();
                                let _ = client.call_reserved(ECHO, request).await;
                            }
                        }
                    };
                    let patience = if n % 3 == 0 { PATIENCE } else { patience };
                    let _ = tokio::time::timeout(patience, call).await;
                })
            })
            .collect();
        for call in given_up {
            tokio::time::timeout(PATIENCE, call).await.expect("it ends").unwrap();
        }
        for n in 0..3 {
            // It takes all that there is.
            let sent = pattern(n, 10 * MIB);
            let echoed = tokio::time::timeout(PATIENCE, client.call_raw(ECHO, &sent)).await;
            assert!(echoed.expect("a block is missing").unwrap().bytes() == sent);
        }
    }
}

#[tokio::test]
async fn messages_of_a_gibibyte_go_through_where_configured() {
    const GIB: u32 = 1024 * MIB as u32;
    let available = std::fs::read_to_string("/proc/meminfo").unwrap();
    let available = available.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let available_kib: u64 = available.trim().trim_end_matches(" kB").parse().unwrap();
    if available_kib < 8 * 1024 * 1024 || std::env::var_os("LAPWING_SANITIZER").is_some() {
        return eprintln!("SKIPPED: messages of 1 GiB: they take 6 GiB of free memory here");
    }
    for transport in BOTH {
        let fixture = serve(ServerLimits { message_bytes: GIB, ..ServerLimits::default() });
        let options = ClientOptions { message_bytes: GIB, transport, ..ClientOptions::default() };
        let client = IpcClient::connect_with(&fixture.path, options).await.unwrap();
        let mut request = client.reserve(GIB as usize).await.unwrap();
        request[GIB as usize - 1] = 1;
        let reply = client.call_reserved(LENGTH.kind(), request).await.unwrap();
        assert_eq!(number(&reply), u64::from(GIB), "{transport:?}");
        let refused = client.reserve(GIB as usize + 1).await.unwrap_err();
        assert!(matches!(refused, CallError::TooLarge { .. }));
        let made = client.call_raw(MAKE, &u64::from(GIB).to_le_bytes()).await.unwrap();
        assert_eq!((made.len(), made.last()), (GIB as usize, Some(&9)), "{transport:?}");
        // Shorter blocks find room once the long one is unused.
        let sent = pattern(1, 3 * MIB);
        let shorter = tokio::time::timeout(PATIENCE, client.call_raw(ECHO, &sent)).await;
        assert!(shorter.expect("a block").unwrap().bytes() == sent, "{transport:?}");
        drop(made);
        client.disconnect().await;

        let path = fixture.path.clone();
        let options = ClientOptions { message_bytes: GIB, transport, ..ClientOptions::default() };
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options).unwrap();
            let mut request = client.reserve(GIB as usize).unwrap();
            request[GIB as usize - 1] = 1;
            let reply = client.call_reserved(LENGTH.kind(), request).unwrap();
            assert_eq!(number(&reply), u64::from(GIB), "{transport:?}");
            let refused = client.reserve(GIB as usize + 1).unwrap_err();
            assert!(matches!(refused, CallError::TooLarge { .. }));
            let made = client.call_raw(MAKE, &u64::from(GIB).to_le_bytes()).unwrap();
            assert_eq!((made.len(), made.last()), (GIB as usize, Some(&9)), "{transport:?}");
            let soon = CallOptions::default().timeout(PATIENCE);
            let shorter = client.call_with(LATER, &Payload::from(&sent[..]), &soon).unwrap();
            assert!(shorter.bytes() == sent, "{transport:?}");
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}

/// After a burst of long messages the server's memory, private and shared, is what it was.
#[test]
fn memory_after_a_burst_of_long_messages_is_what_it_was() {
    let idle = Duration::from_millis(100);
    let Some(victim) = Victim::start(test_name!(), |server| {
        let limits = ServerLimits { bulk_idle: idle, ..ServerLimits::default() };
        with_bulk(server).limits(limits)
    }) else {
        return;
    };
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let options = ClientOptions {
            transport,
            spin: Spin::Never,
            bulk_idle: idle,
            ..ClientOptions::default()
        };
        let client = blocking::IpcClient::connect_with(victim.path(), &options).unwrap();
        let small =
            |n: u8| assert_eq!(client.call_raw(ECHO, &[n; 1000]).unwrap().bytes(), [n; 1000]);
        (0..200).for_each(small);
        let used = |now: Resources| now.private_kib + now.shared_kib;
        // Bytes of memory files that the server has mapped, its own and the client's.
        let mapped = || {
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", victim.pid())).unwrap();
            let address = |text: &str| u64::from_str_radix(text, 16).unwrap();
            let bytes = |line: &str| {
                let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
                address(to) - address(from)
            };
            maps.lines().filter(|line| line.contains("memfd:")).map(bytes).sum::<u64>()
        };
        let mapped_before = mapped();
        let before = victim.resources();
        let sent = pattern(1, 5_000_000);
        for _ in 0..100 {
            assert!(client.call_raw(ECHO, &sent).unwrap().bytes() == sent);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let after = victim.resources();
            // The client, too, gives back what it has lent, though it calls no more.
            let (now, then) = (mapped(), mapped_before);
            if used(after) <= used(before) + 1024 && now <= then {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{transport:?}: before {before:?}, after {after:?}; mapped {then}, then {now}"
            );
            std::thread::sleep(idle);
        }
        // It goes on afterwards, with new memory.
        assert!(client.call_raw(ECHO, &sent).unwrap().bytes() == sent);
    }
}
