//! Round trips through the whole stack, on both transports, async and blocking.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapwing::{
    CallError, ClientOptions, Code, ConnectionState, EndReason, IpcClient, IpcServer, Request,
    Spin, Status, Transport, blocking,
};

const ECHO: u16 = 0x0401;
const LATER: u16 = 0x0402;
const COUNT: u16 = 0x0403;
const PANIC: u16 = 0x0404;
const LARGE: u16 = 0x0405;
const COUNT_LATER: u16 = 0x0406;

struct Fixture {
    server: IpcServer,
    counted: Arc<AtomicU64>,
    path: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

fn serve(spin: Spin) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    let counted = Arc::new(AtomicU64::new(0));
    let [counter, later_counter] = [&counted; 2].map(Arc::clone);
    let server = IpcServer::builder()
        .bind(&path)
        .unwrap()
        .spin(spin)
        .route_inline(lapwing::methods::BYTES, "bytes", |_, request, reply| {
            reply.extend(request);
            Ok(())
        })
        .route_inline(ECHO, "echo", |_, request, reply| {
            reply.extend(request);
            Ok(())
        })
        .route_raw(LATER, "later", |request: Request| async move {
            let wait = request.payload.first().copied().unwrap_or(0);
            if wait > 0 {
                tokio::time::sleep(Duration::from_millis(wait.into())).await;
            }
            Ok::<_, Status>(request.payload)
        })
        .route_inline(COUNT, "count", move |_, request, _| {
            counter.fetch_add(request.len() as u64, Ordering::Relaxed);
            Ok(())
        })
        .route_raw(COUNT_LATER, "count.later", move |request: Request| {
            let counter = Arc::clone(&later_counter);
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                counter.fetch_add(request.payload.len() as u64, Ordering::Relaxed);
                Ok::<_, Status>(Vec::new())
            }
        })
        .route_inline(PANIC, "panic", |_, request, _| {
            assert!(request.is_empty(), "as asked");
            Err(Status::not_found("nothing here"))
        })
        .route_inline(LARGE, "large", |_, request, reply| {
            let length = u32::from_le_bytes(request.try_into().unwrap());
            reply.extend(&vec![7; length as usize]);
            Ok(())
        })
        .serve()
        .unwrap();
    Fixture { server, counted, path, _folder: folder }
}

/// A runtime with one worker thread, for servers of blocking clients.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn options(transport: Transport, spin: Spin) -> ClientOptions {
    ClientOptions { transport, spin, ..ClientOptions::default() }
}

/// Around every border: a line, a gathered frame, a quarter of a ring, the largest message.
const LENGTHS: [usize; 18] = [
    0, 1, 31, 32, 33, 64, 102, 103, 1000, 1001, 5000, 60_000, 65_535, 65_536, 65_537, 300_000,
    5_000_000, TEN_MIB,
];

const TEN_MIB: usize = 10 * 1024 * 1024;

fn pattern(n: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + n * 13) as u8).collect()
}

fn every_way() -> impl Iterator<Item = (Transport, Spin)> {
    [Transport::SharedMemory, Transport::Socket].into_iter().flat_map(|transport| {
        [Spin::Never, Spin::Adaptive, Spin::Always].map(move |spin| (transport, spin))
    })
}

#[tokio::test]
async fn async_calls_of_many_lengths_come_back_byte_for_byte() {
    for (transport, spin) in every_way() {
        let fixture = serve(spin);
        let client =
            IpcClient::connect_with(&fixture.path, options(transport, spin)).await.unwrap();
        assert_eq!(client.agreement().shared_memory, transport == Transport::SharedMemory);
        for (n, length) in LENGTHS.into_iter().enumerate() {
            let sent = pattern(n, length);
            for kind in [ECHO, LATER] {
                let mut sent = sent.clone();
                if kind == LATER && length > 0 {
                    sent[0] = (n % 2) as u8;
                }
                let reply = client.call_raw(kind, &sent).await.unwrap();
                assert_eq!(reply.bytes(), sent, "{transport:?} {spin:?} {length}");
            }
        }
        assert_eq!(client.send_bytes(b"bytes").await.unwrap().bytes(), b"bytes");
        let stats = client.stats();
        let calls = 2 * LENGTHS.len() as u64 + 1;
        assert_eq!((stats.sent, stats.received, stats.errors), (calls, calls, 0));
        assert!(stats.avg_latency_us() > 0.0);
        client.disconnect().await;
        assert_eq!(client.state(), ConnectionState::Closed(EndReason::ClosedHere));
        assert!(fixture.server.shutdown().await);
    }
}

#[test]
fn blocking_calls_of_many_lengths_come_back_byte_for_byte() {
    let runtime = runtime();
    for (transport, spin) in every_way() {
        let fixture = {
            let _entered = runtime.enter();
            serve(spin)
        };
        let client =
            blocking::IpcClient::connect_with(&fixture.path, &options(transport, spin)).unwrap();
        for n in 0..200 {
            let sent = pattern(n, n * 311 % 65_000);
            assert_eq!(client.call_raw(ECHO, &sent).unwrap().bytes(), sent);
        }
        let pending: Vec<_> =
            (0..64).map(|n| client.submit(ECHO, &pattern(n, n)).unwrap()).collect();
        for (n, pending) in pending.into_iter().enumerate().rev() {
            assert_eq!(pending.collect().unwrap().bytes(), pattern(n, n));
        }
        client.disconnect();
        assert!(runtime.block_on(fixture.server.shutdown()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_tasks_of_a_hundred_calls_each_get_their_own_replies() {
    for (transport, spin) in every_way() {
        let fixture = serve(spin);
        let client =
            IpcClient::connect_with(&fixture.path, options(transport, spin)).await.unwrap();
        let tasks = (0..10).map(|task| {
            let client = client.clone();
            tokio::spawn(async move {
                for n in 0..100 {
                    let mut sent = pattern(task * 1000 + n, 8 + (n * 97) % 3000);
                    sent[0] = u8::from(n % 10 == 0);
                    let kind = if n % 2 == 0 { ECHO } else { LATER };
                    let reply = client.call_raw(kind, &sent).await.unwrap();
                    assert_eq!(reply.bytes(), sent);
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    }
}

#[test]
fn blocking_threads_share_one_connection_and_lead_in_turn() {
    let runtime = runtime();
    for (transport, spin) in every_way() {
        let fixture = {
            let _entered = runtime.enter();
            serve(spin)
        };
        let client =
            blocking::IpcClient::connect_with(&fixture.path, &options(transport, spin)).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let client = client.clone();
                scope.spawn(move || {
                    for n in 0..100 {
                        let mut sent = pattern(thread * 1000 + n, 8 + n * 13);
                        sent[0] = u8::from(n % 20 == 0);
                        assert_eq!(client.call_raw(LATER, &sent).unwrap().bytes(), sent);
                    }
                });
            }
        });
    }
}

#[tokio::test]
async fn oneway_messages_all_arrive_also_past_a_full_ring() {
    for (transport, spin) in every_way() {
        let fixture = serve(spin);
        let client =
            IpcClient::connect_with(&fixture.path, options(transport, spin)).await.unwrap();
        for _ in 0..5000 {
            client.send_oneway(COUNT, &[1; 500]).await.unwrap();
        }
        // A call behind them is answered after them.
        client.call_raw(ECHO, b"").await.unwrap();
        assert_eq!(fixture.counted.load(Ordering::Relaxed), 5000 * 500, "{transport:?} {spin:?}");
    }
}

#[test]
fn blocking_oneway_messages_all_arrive_also_past_a_full_ring() {
    let runtime = runtime();
    for (transport, spin) in every_way() {
        let fixture = {
            let _entered = runtime.enter();
            serve(spin)
        };
        let client =
            blocking::IpcClient::connect_with(&fixture.path, &options(transport, spin)).unwrap();
        for _ in 0..5000 {
            client.send_oneway(COUNT, &[1; 500]).unwrap();
        }
        client.call_raw(ECHO, b"").unwrap();
        assert_eq!(fixture.counted.load(Ordering::Relaxed), 5000 * 500, "{transport:?} {spin:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_longer_than_a_socket_s_buffer_go_through_whole() {
    const BYTES: usize = 3_000_000;
    for spin in [Spin::Never, Spin::Adaptive, Spin::Always] {
        let fixture = serve(spin);
        let options = options(Transport::Socket, spin);
        let sent = pattern(3, BYTES);
        let client = IpcClient::connect_with(&fixture.path, options.clone()).await.unwrap();
        for _ in 0..3 {
            let reply = client.call_raw(ECHO, &sent).await.unwrap();
            assert!(reply.bytes() == sent, "{spin:?}");
        }
        for _ in 0..5 {
            client.send_oneway(COUNT, &sent).await.unwrap();
        }
        // All of it is sent before the connection closes.
        client.disconnect().await;
        let path = fixture.path.clone();
        let counted = Arc::clone(&fixture.counted);
        tokio::task::spawn_blocking(move || {
            let client = blocking::IpcClient::connect_with(&path, &options).unwrap();
            for _ in 0..3 {
                let reply = client.call_raw(ECHO, &sent).unwrap();
                assert!(reply.bytes() == sent, "{spin:?}");
            }
            for _ in 0..5 {
                client.send_oneway(COUNT, &sent).unwrap();
            }
            client.disconnect();
            eventually(|| counted.load(Ordering::Relaxed) == 10 * BYTES as u64);
        })
        .await
        .unwrap();
    }
}

#[test]
fn blocking_calls_longer_than_a_socket_s_buffer_fill_the_table_and_come_back() {
    let runtime = runtime();
    let fixture = {
        let _entered = runtime.enter();
        serve(Spin::Never)
    };
    let options = ClientOptions {
        transport: Transport::Socket,
        calls_in_flight: 2,
        ..ClientOptions::default()
    };
    let client = blocking::IpcClient::connect_with(&fixture.path, &options).unwrap();
    let sent = [pattern(1, 1_000_000), pattern(2, 2_000_000)];
    for _ in 0..5 {
        let pending = sent.each_ref().map(|sent| client.submit(ECHO, sent).unwrap());
        for (pending, sent) in pending.into_iter().zip(&sent) {
            assert!(pending.collect().unwrap().bytes() == *sent);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnect_waits_for_what_was_sent_one_way() {
    for (transport, spin) in every_way() {
        let fixture = serve(spin);
        let counted = Arc::clone(&fixture.counted);
        let client =
            IpcClient::connect_with(&fixture.path, options(transport, spin)).await.unwrap();
        for _ in 0..10 {
            client.send_oneway(COUNT_LATER, &[1; 10]).await.unwrap();
        }
        // Clones may disconnect at once: all of them wait.
        let disconnects = [client.clone(), client.clone()].map(|client| {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                client.disconnect().await;
                counted.load(Ordering::Relaxed)
            })
        });
        for disconnect in disconnects {
            assert_eq!(disconnect.await.unwrap(), 100, "{transport:?} {spin:?}");
        }
        assert_eq!(client.state(), ConnectionState::Closed(EndReason::ClosedHere));
        let path = fixture.path.clone();
        tokio::task::spawn_blocking(move || {
            let client =
                blocking::IpcClient::connect_with(&path, &options(transport, spin)).unwrap();
            for _ in 0..10 {
                client.send_oneway(COUNT_LATER, &[1; 10]).unwrap();
            }
            client.disconnect();
            assert_eq!(counted.load(Ordering::Relaxed), 200, "{transport:?} {spin:?}");
            assert_eq!(client.state(), ConnectionState::Closed(EndReason::ClosedHere));
        })
        .await
        .unwrap();
        let stats = fixture.server.stats();
        assert_eq!((stats.closed, stats.vanished), (2, 0), "{stats:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_client_that_is_dropped_at_once_arrive() {
    const ROUNDS: u64 = 50;
    let send = |n: u64| if n.is_multiple_of(2) { COUNT } else { COUNT_LATER };
    for (transport, spin) in every_way() {
        let fixture = serve(spin);
        let path = fixture.path.clone();
        for _ in 0..ROUNDS {
            let client = IpcClient::connect_with(&path, options(transport, spin)).await.unwrap();
            for n in 0..10 {
                client.send_oneway(send(n), &[1; 10]).await.unwrap();
            }
        }
        let blocking = tokio::task::spawn_blocking(move || {
            for _ in 0..ROUNDS {
                let client =
                    blocking::IpcClient::connect_with(&path, &options(transport, spin)).unwrap();
                for n in 0..10 {
                    client.send_oneway(send(n), &[1; 10]).unwrap();
                }
            }
        });
        blocking.await.unwrap();
        let Fixture { server, counted, .. } = &fixture;
        let ended = || {
            let stats = server.stats();
            stats.closed + stats.vanished + stats.misbehaved == 2 * ROUNDS
        };
        tokio::task::block_in_place(|| eventually(ended));
        assert_eq!(counted.load(Ordering::Relaxed), 2 * ROUNDS * 100, "{transport:?} {spin:?}");
        let stats = server.stats();
        assert_eq!((stats.closed, stats.vanished), (2 * ROUNDS, 0), "{transport:?} {stats:?}");
    }
}

/// Waits for something that comes without anything to await.
fn eventually(is_so: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test]
async fn errors_are_typed_and_the_connection_lives_on() {
    let fixture = serve(Spin::Adaptive);
    let client = IpcClient::connect(&fixture.path).await.unwrap();
    let status = |error| match error {
        CallError::Status(status) => status.code,
        other => panic!("{other}"),
    };
    let unknown = client.call_raw(0x7777, b"").await.unwrap_err();
    assert_eq!(status(unknown), Code::Unimplemented);
    let refused = client.call_raw(PANIC, b"").await.unwrap_err();
    assert_eq!(status(refused), Code::NotFound);
    let panicked = client.call_raw(PANIC, b"x").await.unwrap_err();
    assert_eq!(status(panicked), Code::Internal);
    let reply_too_large =
        client.call_raw(LARGE, &(TEN_MIB as u32 + 1).to_le_bytes()).await.unwrap_err();
    assert_eq!(status(reply_too_large), Code::ResourceExhausted);
    let too_large = client.call_raw(ECHO, &vec![0; TEN_MIB + 1]).await.unwrap_err();
    assert!(matches!(too_large, CallError::TooLarge { length, max } if length == max + 1));
    assert!(matches!(client.call_raw(0x00FF, b"").await, Err(CallError::BadKind(0x00FF))));
    assert_eq!(client.call_raw(ECHO, b"still here").await.unwrap().bytes(), b"still here");
    assert_eq!(client.stats().errors, 5);
}

#[tokio::test]
async fn dropped_calls_give_their_places_back_when_the_replies_come() {
    let fixture = serve(Spin::Adaptive);
    let options = ClientOptions { calls_in_flight: 4, ..ClientOptions::default() };
    let client = IpcClient::connect_with(&fixture.path, options).await.unwrap();
    for _ in 0..50 {
        let call = client.call_raw(LATER, &[3]);
        assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
    }
    assert_eq!(client.call_raw(ECHO, b"after").await.unwrap().bytes(), b"after");
    client.disconnect().await;
    assert_eq!(client.stats().late, 50);
}

#[tokio::test]
async fn describe_and_ping_are_answered_by_the_connection() {
    let fixture = serve(Spin::Adaptive);
    let client = IpcClient::connect(&fixture.path).await.unwrap();
    client.ping().await.unwrap();
    let methods = client.describe().await.unwrap();
    let names: Vec<_> = methods.iter().map(|method| &*method.name).collect();
    assert_eq!(names, ["bytes", "echo", "later", "count", "count.later", "panic", "large"]);
}

#[tokio::test]
async fn shutdown_lets_running_calls_finish_and_says_goodbye() {
    for (transport, spin) in every_way() {
        let fixture = serve(spin);
        let client =
            IpcClient::connect_with(&fixture.path, options(transport, spin)).await.unwrap();
        let running = client.call_raw(LATER, &[50]);
        let (reply, clean) = tokio::join!(running, async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            fixture.server.shutdown().await
        });
        assert_eq!(reply.unwrap().bytes(), [50], "{transport:?} {spin:?}");
        assert!(clean);
        let refused = client.call_raw(ECHO, b"").await.unwrap_err();
        assert!(matches!(refused, CallError::Disconnected { .. }), "{refused}");
        assert!(!fixture.path.exists(), "the socket is gone");
    }
}
