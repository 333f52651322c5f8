//! Payloads borrowed in the sender's bulk memory: held long, out of order, across await, dropped elsewhere, or never.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapwing::{
    CallError, CallOptions, ClientOptions, Compression, CooperativePeers, IpcClient, IpcServer,
    Payload, Raw, Request, ServerLimits, Status, Unary,
};
use lapwing_testkit::PATIENCE;

const MIB: usize = 1024 * 1024;

const ECHO: u16 = 0x0700;
const KEEP: Unary<Payload, Vec<u8>, Raw> = Unary::new(0x0701, "keep");
const GIVE_UP: u16 = 0x0702;
const MAKE: u16 = 0x0703;

fn token() -> CooperativePeers {
    // SAFETY: both sides of every connection here are this program's own, and keep to the protocol.
    unsafe { CooperativePeers::assume() }
}

struct Fixture {
    _server: IpcServer,
    kept: Arc<Mutex<Vec<Payload>>>,
    client: IpcClient,
    _folder: tempfile::TempDir,
}

/// A server that keeps payloads, and a client with 16 MiB of bulk memory.
async fn serve() -> Fixture {
    serve_with(Compression::Auto).await
}

async fn serve_with(compression: Compression) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("place.sock");
    let kept: Arc<Mutex<Vec<Payload>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let given_up = Arc::clone(&kept);
    let server = IpcServer::builder()
        .in_place(token())
        .compression(compression)
        .bind(&path)
        .unwrap()
        .route_raw(ECHO, "echo", |request: Request| async move {
            // Across an await, and copied into the server's own memory by the reply.
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok::<_, Status>(request.payload)
        })
        .route_raw(KEEP.kind(), KEEP.name(), move |request: Request| {
            let keep = Arc::clone(&keep);
            async move {
                let length = request.payload.len() as u64;
                keep.lock().unwrap().push(request.payload);
                Ok::<_, Status>(length.to_le_bytes().to_vec())
            }
        })
        .route_inline(MAKE, "make", |_, _, reply| {
            reply.extend(&[7; MIB]);
            Ok(())
        })
        .route_inline(GIVE_UP, "give.up", move |_, request, _| {
            let at = usize::from(request[0]);
            let gone = given_up.lock().unwrap().remove(at);
            // On another thread.
            std::thread::spawn(move || drop(gone)).join().unwrap();
            Ok(())
        })
        .serve()
        .unwrap();
    let options = ClientOptions {
        in_place: Some(token()),
        bulk_bytes: 1,
        compression,
        ..ClientOptions::default()
    };
    let client = IpcClient::connect_with(&path, options).await.unwrap();
    Fixture { _server: server, kept, client, _folder: folder }
}

fn pattern(n: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i / 64) as u8 ^ n).collect()
}

#[tokio::test]
async fn borrowed_payloads_are_whole_and_outlive_their_connection() {
    let Fixture { client, _server, _folder, .. } = serve().await;
    let mut replies = Vec::new();
    for n in 0..8 {
        replies.push(client.call_raw(ECHO, &pattern(n, MIB)).await.unwrap());
    }
    client.disconnect().await;
    drop((client, _server));
    for (n, reply) in replies.into_iter().enumerate() {
        assert!(reply.bytes() == pattern(n as u8, MIB), "{n}");
        assert!(reply.into_vec() == pattern(n as u8, MIB));
    }
}

#[tokio::test]
async fn sender_whose_blocks_are_all_held_gets_a_typed_error_at_its_deadline_and_goes_on_later() {
    let Fixture { client, kept, _server, _folder } = serve().await;
    for n in 0..16 {
        client.call(KEEP, &pattern(n, MIB).into()).await.unwrap();
    }
    let soon = CallOptions::default().timeout(Duration::from_millis(50));
    let late = client.call_with(KEEP, &vec![1; MIB].into(), &soon).await.unwrap_err();
    assert!(matches!(late, CallError::DeadlineExceeded), "{late}");
    for (n, payload) in kept.lock().unwrap().iter().enumerate() {
        assert!(payload.bytes() == pattern(n as u8, MIB), "{n}");
    }
    // Out of order, and dropped on another thread while the sender waits.
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call(KEEP, &vec![7; MIB].into()).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!waiting.is_finished());
    client.call_raw(GIVE_UP, &[9]).await.unwrap();
    tokio::time::timeout(PATIENCE, waiting).await.expect("a block came back").unwrap().unwrap();
    assert!(kept.lock().unwrap().last().unwrap().bytes() == [7; MIB]);
    // One is never given back: its sender has one block less, and nothing else happens.
    static NEVER: Mutex<Option<Payload>> = Mutex::new(None);
    *NEVER.lock().unwrap() = Some(kept.lock().unwrap().remove(3));
    kept.lock().unwrap().clear();
    for n in 0..50 {
        let reply = client.call_raw(ECHO, &pattern(n, MIB)).await.unwrap();
        assert!(reply.bytes() == pattern(n, MIB), "{n}");
    }
}

/// Replies that wait for a block are given up by their deadlines and by their callers, and then take no place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_wait_for_a_block_end_with_their_calls() {
    const PLACES: u32 = 4;
    const ASYNC: u16 = 0x0704;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("place.sock");
    let server = IpcServer::builder()
        .limits(ServerLimits {
            bulk_bytes: 4 * MIB as u64,
            message_bytes: 4 * MIB as u32,
            calls_in_flight: PLACES,
            ..ServerLimits::default()
        })
        .bind(&path)
        .unwrap()
        .route_inline(MAKE, "make", |_, _, reply| {
            reply.extend(&[7; MIB]);
            Ok(())
        })
        .route_raw(ASYNC, "make.later", |_: Request| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok::<_, Status>(vec![7; MIB])
        })
        .route_inline(ECHO, "echo", |_, request, reply| {
            reply.extend(request);
            Ok(())
        })
        .serve()
        .unwrap();
    let options = ClientOptions { in_place: Some(token()), ..ClientOptions::default() };
    let client = IpcClient::connect_with(&path, options).await.unwrap();
    for make in [MAKE, ASYNC] {
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(client.call_raw(make, b"").await.unwrap());
        }
        let typed = Unary::<Payload, Payload, Raw>::new(make, "make");
        let soon = CallOptions::default().timeout(Duration::from_millis(30));
        for _ in 0..2 * PLACES {
            let late = client.call_with(typed, &Payload::empty(), &soon).await.unwrap_err();
            assert!(matches!(late, CallError::DeadlineExceeded), "{late}");
        }
        for _ in 0..2 * PLACES {
            // Dropped while it waits.
            let given_up = client.call_raw(make, b"");
            assert!(tokio::time::timeout(Duration::from_millis(10), given_up).await.is_err());
        }
        let short = tokio::time::timeout(PATIENCE, client.call_raw(ECHO, b"on"));
        assert_eq!(short.await.expect("there is a place").unwrap().bytes(), b"on");
        // One that still waits has the first block that comes back.
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.call_raw(make, b"").await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        drop(held);
        let made = tokio::time::timeout(PATIENCE, waiting).await.expect("a block came back");
        assert!(made.unwrap().unwrap().bytes() == [7; MIB]);
    }
    // Nobody is left waiting, so the end needs no time to drain.
    let begun = std::time::Instant::now();
    client.disconnect().await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(server.stats().misbehaved, 0);
}

#[tokio::test]
async fn borrowed_request_may_be_the_reply() {
    let Fixture { client, _server, _folder, .. } = serve().await;
    let calls: Vec<_> = (0..24)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move {
                let sent = pattern(n, usize::from(n) * 100_000);
                let mut request = client.reserve(sent.len()).await.unwrap();
                request.copy_from_slice(&sent);
                let reply = client.call_reserved(ECHO, request).await.unwrap();
                assert!(reply.bytes() == sent, "{n}");
            })
        })
        .collect();
    for call in calls {
        tokio::time::timeout(PATIENCE, call).await.expect("it ends").unwrap();
    }
}

/// Bytes that compress to a good half, which is still too long for a ring.
fn halves(n: u8, length: usize) -> Vec<u8> {
    let mut state = u64::from(n) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8 & 0x0F
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn compressed_payload_gives_its_block_back_at_once_however_long_it_is_held() {
    let Fixture { client, kept, _server, _folder } = serve_with(Compression::On).await;
    // Twice what the client has blocks for.
    for n in 0..64 {
        let request = Payload::from(halves(n, MIB));
        let call = client.call(KEEP, &request);
        tokio::time::timeout(PATIENCE, call).await.expect("there is a block").unwrap();
    }
    for (n, payload) in kept.lock().unwrap().iter().enumerate() {
        assert!(payload.bytes() == halves(n as u8, MIB), "{n}");
    }
    let reply = client.call_raw(ECHO, &halves(1, MIB)).await.unwrap();
    assert!(reply.bytes() == halves(1, MIB));
}

#[tokio::test]
async fn caller_that_holds_all_replies_stops_long_ones_and_nothing_else() {
    let Fixture { client, _server, _folder, .. } = serve().await;
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(client.call_raw(MAKE, b"").await.unwrap());
    }
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call_raw(MAKE, b"").await }
    });
    for n in 0..20 {
        let sent = [n];
        let short = client.call_raw(ECHO, &sent);
        let reply = tokio::time::timeout(PATIENCE, short).await.expect("it goes on").unwrap();
        assert_eq!(reply.bytes(), [n]);
    }
    assert!(!waiting.is_finished());
    held.remove(5);
    let made = tokio::time::timeout(PATIENCE, waiting).await.expect("a block came back");
    assert!(made.unwrap().unwrap().bytes() == [7; MIB]);
}
