//! Typed methods of every shape, through both clients and both transports: items, credit, half-close,
//! cancellation, deadlines, and what a call carries beside its request.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapwing::{
    Call, CallError, CallOptions, ClientOptions, ClientStream, Code, Duplex, Inline, InlineCall,
    IpcClient, IpcServer, Json, Metadata, OneWay, Postcard, ServerLimits, ServerStream, Sink,
    Source, Status, TraceContext, Transport, Unary, WhenFull, blocking,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
struct Range {
    from: u64,
    to: u64,
    /// Answer with this error after the last item.
    fail: bool,
}

const LENGTH: Unary<String, usize> = Unary::new(0x0500, "test.length");
const COUNT: ServerStream<Range, u64> = ServerStream::new(0x0501, "test.count");
const SUM: ClientStream<u64, u64, Json> = ClientStream::new(0x0502, "test.sum");
const DOUBLE: Duplex<u64, u64> = Duplex::new(0x0503, "test.double");
const NOTE: OneWay<String> = OneWay::new(0x0504, "test.note");
const FOREVER: ServerStream<u64, Vec<u8>> = ServerStream::new(0x0505, "test.forever");
const NAP: Unary<u64, ()> = Unary::new(0x0506, "test.nap");
const CARRIED: Unary<(), Carried> = Unary::new(0x0507, "test.carried");
const FIRST: ClientStream<u64, u64> = ClientStream::new(0x0508, "test.first");
const PANIC: Duplex<u64, u64> = Duplex::new(0x0509, "test.panic");
/// Takes no item and never answers.
const IGNORES: ClientStream<Vec<u8>, u64> = ClientStream::new(0x050A, "test.ignores");
/// Sends back as many items as the first one says, ends then, and fails if that is an even number.
const LEAVES: Duplex<u64, u64> = Duplex::new(0x050B, "test.leaves");
const CARRIED_STREAM: ServerStream<(), Carried> = ServerStream::new(0x050C, "test.carried.stream");
const CARRIED_UPLOAD: ClientStream<u64, Carried> = ClientStream::new(0x050D, "test.carried.upload");
const CARRIED_DUPLEX: Duplex<u64, Carried> = Duplex::new(0x050E, "test.carried.duplex");
const CARRIED_BLOCKING: Unary<(), Carried> = Unary::new(0x050F, "test.carried.blocking");
const CARRIED_INLINE: Unary<(), Carried> = Unary::new(0x04F0, "carried.inline");

#[derive(PartialEq, Serialize, Deserialize, Debug)]
struct Carried {
    tenant: Option<Vec<u8>>,
    trace: Option<[u8; 16]>,
    left_ms: Option<u64>,
}

impl Carried {
    fn by(call: &Call) -> Carried {
        let left = call.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        Carried {
            tenant: call.metadata().get("tenant").map(<[u8]>::to_vec),
            trace: call.trace().map(|trace| trace.trace_id),
            left_ms: left.map(|left| left.as_millis() as u64),
        }
    }
}

/// What the handlers saw.
#[derive(Default)]
struct Seen {
    notes: AtomicUsize,
    /// Handlers that run, counted down when they are dropped, too.
    running: AtomicUsize,
    items: AtomicUsize,
}

struct Running(Arc<Seen>);

impl Running {
    fn new(seen: &Arc<Seen>) -> Running {
        seen.running.fetch_add(1, Ordering::SeqCst);
        Running(Arc::clone(seen))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Fixture {
    server: IpcServer,
    seen: Arc<Seen>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

async fn count(_: Call, range: Range, mut items: Sink<u64, Postcard>) -> Result<(), Status> {
    for number in range.from..range.to {
        items.send(&number).await?;
    }
    if range.fail { Err(Status::data_loss("no more")) } else { Ok(()) }
}

async fn sum(_: Call, mut items: Source<u64, Json>) -> Result<u64, Status> {
    let mut sum = 0;
    while let Some(number) = items.next().await? {
        sum += number;
    }
    Ok(sum)
}

async fn double(
    _: Call,
    mut numbers: Source<u64, Postcard>,
    mut doubles: Sink<u64, Postcard>,
) -> Result<(), Status> {
    while let Some(number) = numbers.next().await? {
        doubles.send(&(number * 2)).await?;
    }
    Ok(())
}

async fn panic_after_items(
    _: Call,
    mut numbers: Source<u64, Postcard>,
    mut same: Sink<u64, Postcard>,
) -> Result<(), Status> {
    while let Some(number) = numbers.next().await? {
        same.send(&number).await?;
    }
    panic!("as asked");
}

async fn leave_early(
    _: Call,
    mut numbers: Source<u64, Postcard>,
    mut same: Sink<u64, Postcard>,
) -> Result<(), Status> {
    let first =
        numbers.next().await?.ok_or_else(|| Status::invalid_argument("there was no item"))?;
    for _ in 0..first {
        same.send(&first).await?;
    }
    if first % 2 == 0 { Err(Status::aborted("early")) } else { Ok(()) }
}

async fn carried_duplex(
    call: Call,
    _: Source<u64, Postcard>,
    mut items: Sink<Carried, Postcard>,
) -> Result<(), Status> {
    items.send(&Carried::by(&call)).await
}

fn serve(limits: ServerLimits) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    let seen = Arc::new(Seen::default());
    let (noted, forever, napping) = (Arc::clone(&seen), Arc::clone(&seen), Arc::clone(&seen));
    let server = IpcServer::builder()
        .bind(&path)
        .unwrap()
        .limits(limits)
        .route(LENGTH, |_: Call, text: String| async move { Ok(text.len()) })
        .route(COUNT, count)
        .route(SUM, sum)
        .route(DOUBLE, double)
        .route(NOTE, move |_: Call, _: String| {
            noted.notes.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        })
        .route(FOREVER, move |_: Call, bytes: u64, mut items: Sink<Vec<u8>, Postcard>| {
            let running = Running::new(&forever);
            async move {
                let item = vec![7; bytes as usize];
                loop {
                    items.send(&item).await?;
                    running.0.items.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
        .route(NAP, move |_: Call, ms: u64| {
            let running = Running::new(&napping);
            async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                drop(running);
                Ok(())
            }
        })
        .route(CARRIED, |call: Call, (): ()| async move { Ok(Carried::by(&call)) })
        .route(
            CARRIED_STREAM,
            |call: Call, (): (), mut items: Sink<Carried, Postcard>| async move {
                items.send(&Carried::by(&call)).await
            },
        )
        .route(CARRIED_UPLOAD, |call: Call, _: Source<u64, Postcard>| async move {
            Ok(Carried::by(&call))
        })
        .route(CARRIED_DUPLEX, carried_duplex)
        .route(IGNORES, |_: Call, _items: Source<Vec<u8>, Postcard>| std::future::pending())
        .route(LEAVES, leave_early)
        .route(FIRST, |_: Call, mut items: Source<u64, Postcard>| async move {
            items.next().await?.ok_or_else(|| Status::invalid_argument("there was no item"))
        })
        .route(PANIC, panic_after_items)
        .serve()
        .unwrap();
    Fixture { server, seen, path, _folder: folder }
}

fn options(transport: Transport) -> ClientOptions {
    ClientOptions { transport, ..ClientOptions::default() }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];

const WHOLE: Range = Range { from: 0, to: 5000, fail: false };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_of_every_shape_work_through_the_async_client() {
    let fixture = serve(ServerLimits::default());
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        assert_eq!(client.call(LENGTH, &"lapwing".to_owned()).await.unwrap(), 7);

        let mut numbers = client.stream(COUNT, &WHOLE).await.unwrap();
        let mut expected = 0;
        while let Some(number) = numbers.next().await {
            assert_eq!(number.unwrap(), expected);
            expected += 1;
        }
        assert_eq!(expected, 5000);
        assert!(numbers.next().await.is_none(), "the end stays the end");

        let mut upload = client.upload(SUM, &CallOptions::default()).await.unwrap();
        for number in 0..1000 {
            upload.send(&number).await.unwrap();
        }
        assert_eq!(upload.finish().await.unwrap(), 499_500);

        let (mut sender, mut doubles) =
            client.duplex(DOUBLE, &CallOptions::default()).await.unwrap();
        let sending = tokio::spawn(async move {
            for number in 0..1000 {
                sender.send(&number).await.unwrap();
            }
            sender.finish().await.unwrap();
        });
        for number in 0..1000 {
            assert_eq!(doubles.next().await.unwrap().unwrap(), number * 2);
        }
        assert!(doubles.next().await.is_none());
        sending.await.unwrap();
        client.disconnect().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_of_every_shape_work_through_the_blocking_client() {
    let fixture = serve(ServerLimits::default());
    let path = fixture.path.clone();
    let work = move || {
        for transport in BOTH {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let none = CallOptions::default();
            assert_eq!(client.call(LENGTH, &"lapwing".to_owned()).unwrap(), 7);

            let numbers = client.stream(COUNT, &WHOLE, &none).unwrap();
            let numbers: Vec<u64> = numbers.map(Result::unwrap).collect();
            assert!(numbers.into_iter().eq(0..5000));

            let mut upload = client.upload(SUM, &none).unwrap();
            for number in 0..1000 {
                upload.send(&number).unwrap();
            }
            assert_eq!(upload.finish().unwrap(), 499_500);

            let (mut sender, doubles) = client.duplex(DOUBLE, &none).unwrap();
            let sending = std::thread::spawn(move || {
                for number in 0..1000 {
                    sender.send(&number).unwrap();
                }
                sender.finish().unwrap();
            });
            let doubles: Vec<u64> = doubles.map(Result::unwrap).collect();
            assert!(doubles.into_iter().eq((0..1000).map(|number| number * 2)));
            sending.join().unwrap();
            client.disconnect();
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_may_end_with_an_error_after_its_items() {
    const FAILS: Range = Range { from: 0, to: 3, fail: true };
    let is_its_own =
        |error: &CallError| matches!(error, CallError::Status(s) if s.code == Code::DataLoss);
    let fixture = serve(ServerLimits::default());
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let mut numbers = client.stream(COUNT, &FAILS).await.unwrap();
        for expected in 0..3 {
            assert_eq!(numbers.next().await.unwrap().unwrap(), expected);
        }
        assert!(is_its_own(&numbers.next().await.unwrap().unwrap_err()));
        assert!(numbers.next().await.is_none());

        let path = fixture.path.clone();
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let mut numbers = client.stream(COUNT, &FAILS, &CallOptions::default()).unwrap();
            for expected in 0..3 {
                assert_eq!(numbers.next().unwrap().unwrap(), expected);
            }
            assert!(is_its_own(&numbers.next().unwrap().unwrap_err()));
            assert!(numbers.next().is_none());
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}

#[tokio::test]
async fn handler_that_panics_after_items_is_internal_and_its_connection_goes_on() {
    let fixture = serve(ServerLimits { calls_in_flight: 2, ..ServerLimits::default() });
    for (transport, panics) in BOTH.into_iter().zip([4, 8]) {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        // More than there are places: each gives its own back.
        for _ in 0..4 {
            let none = CallOptions::default();
            let (mut sender, mut same) = client.duplex(PANIC, &none).await.unwrap();
            for number in 0..3 {
                sender.send(&number).await.unwrap();
                assert_eq!(same.next().await.unwrap().unwrap(), number);
            }
            sender.finish().await.unwrap();
            let error = same.next().await.unwrap().unwrap_err();
            assert!(matches!(&error, CallError::Status(status) if status.code == Code::Internal));
            assert!(same.next().await.is_none());
        }
        assert_eq!(client.call(LENGTH, &"on".to_owned()).await.unwrap(), 2);
        client.disconnect().await;
        eventually("they are counted", || fixture.server.stats().panics == panics).await;
    }
}

/// At once, later, and when its future is dropped.
#[tokio::test]
async fn every_panic_is_counted_also_that_of_a_message() {
    struct PanicsInDrop;
    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "as asked");
        }
    }
    const TELL: OneWay<String> = OneWay::new(0x0600, "tell");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    let server = IpcServer::builder()
        .bind(&path)
        .unwrap()
        .route(TELL, |_: Call, when: String| async move {
            let (mut guard, later) = (None, Duration::from_millis(1));
            match when.as_str() {
                "dropped" => guard = Some(PanicsInDrop),
                "later" => tokio::time::sleep(later).await,
                _ => {}
            }
            assert!(guard.is_some(), "as asked");
            Ok(())
        })
        .serve()
        .unwrap();
    for transport in BOTH {
        for when in ["now", "later", "dropped"] {
            let before = server.stats();
            let client = IpcClient::connect_with(&path, options(transport)).await.unwrap();
            client.send(TELL, &when.to_owned()).await.unwrap();
            client.disconnect().await;
            eventually("it is counted", || server.stats().panics > before.panics).await;
            let stats = server.stats();
            let counted = (stats.panics - before.panics, stats.dropped - before.dropped);
            assert_eq!(counted, (1, 1), "{transport:?} {when}");
        }
    }
}

#[tokio::test]
async fn reader_that_never_reads_stops_its_own_stream_and_nobody_else() {
    let fixture = serve(ServerLimits::default());
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let before = fixture.seen.items.load(Ordering::SeqCst);
        let unread = client.stream(FOREVER, &1000).await.unwrap();
        for _ in 0..200 {
            assert_eq!(client.call(LENGTH, &"x".to_owned()).await.unwrap(), 1);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let sent = fixture.seen.items.load(Ordering::SeqCst) - before;
        assert_eq!(sent, 64, "the window of a stream, in items");
        drop(unread);
        client.disconnect().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn window_in_bytes_stops_a_stream_of_long_items() {
    let fixture = serve(ServerLimits::default());
    let items = || fixture.seen.items.load(Ordering::SeqCst);
    // 256 KiB hold four of them and a part of the fifth.
    let stops_at_five = async |before: usize, transport: Transport| {
        eventually("five items go", || items() >= before + 5).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(items(), before + 5, "{transport:?}");
    };
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let before = items();
        let mut stream = client.stream(FOREVER, &60_000).await.unwrap();
        stops_at_five(before, transport).await;
        // Half of the window is given back when three were taken, and three more go.
        for _ in 0..3 {
            assert_eq!(stream.next().await.unwrap().unwrap().len(), 60_000);
        }
        eventually("three more go", || items() >= before + 8).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(items(), before + 8, "{transport:?}");
        drop(stream);
        client.disconnect().await;

        let (path, seen) = (fixture.path.clone(), Arc::clone(&fixture.seen));
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let items = || seen.items.load(Ordering::SeqCst);
            let before = items();
            // Items come while a thread waits for something.
            let stops_at = |count: usize| {
                let until = Instant::now() + Duration::from_secs(20);
                while items() < before + count {
                    assert!(Instant::now() < until, "{count} items go");
                    client.ping().unwrap();
                }
                for _ in 0..50 {
                    std::thread::sleep(Duration::from_millis(1));
                    client.ping().unwrap();
                }
                assert_eq!(items(), before + count, "{transport:?}");
            };
            let mut stream = client.stream(FOREVER, &60_000, &CallOptions::default()).unwrap();
            stops_at(5);
            for _ in 0..3 {
                assert_eq!(stream.next().unwrap().unwrap().len(), 60_000);
            }
            stops_at(8);
            drop(stream);
            client.disconnect();
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}

/// The same in the other direction: a server that takes nothing stops who sends to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn window_in_bytes_stops_who_sends_long_items() {
    let fixture = serve(ServerLimits::default());
    let item = vec![7; 60_000];
    // Whichever side finds out first that the time is over: who waits for credit hears that.
    let limited = CallOptions::default().timeout(Duration::from_secs(1));
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let mut upload = client.upload(IGNORES, &limited).await.unwrap();
        for _ in 0..5 {
            upload.send(&item).await.unwrap();
        }
        assert!(is_full(&upload.try_send(&item)), "{transport:?}");
        let late = upload.send(&item).await.unwrap_err();
        assert!(is_late(&late), "{transport:?}: {late:?}");
        drop(upload);
        client.disconnect().await;

        let (path, item, limited) = (fixture.path.clone(), item.clone(), limited.clone());
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let mut upload = client.upload(IGNORES, &limited).unwrap();
            for _ in 0..5 {
                upload.send(&item).unwrap();
            }
            let refused = upload.try_send(&item);
            assert!(is_full(&refused), "{transport:?}: {refused:?}");
            let late = upload.send(&item).unwrap_err();
            assert!(is_late(&late), "{transport:?}: {late:?}");
            drop(upload);
            client.disconnect();
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}

#[tokio::test]
async fn dropped_streams_and_calls_are_cancelled_at_the_server() {
    let fixture = serve(ServerLimits::default());
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let cancelled = fixture.server.stats().cancelled;
        let running = || fixture.seen.running.load(Ordering::SeqCst);
        let mut stream = client.stream(FOREVER, &10).await.unwrap();
        assert!(stream.next().await.is_some());
        assert_eq!(running(), 1);
        // Its handler waits for credit, which nobody will give.
        drop(stream);
        eventually("the stream's handler is dropped", || running() == 0).await;

        let call = client.call(NAP, &60_000);
        assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
        eventually("the call's handler is dropped", || running() == 0).await;

        // Their places among the calls in flight are free again.
        client.disconnect().await;
        eventually("both are counted", || fixture.server.stats().cancelled >= cancelled + 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_blocking_streams_and_calls_are_cancelled_at_the_server() {
    let fixture = serve(ServerLimits::default());
    let path = fixture.path.clone();
    let work = move || {
        for transport in BOTH {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let mut stream = client.stream(FOREVER, &10, &CallOptions::default()).unwrap();
            assert_eq!(stream.next().unwrap().unwrap(), [7; 10]);
            drop(stream);
            drop(client.submit(NAP.kind(), &[0xFF, 0xFF, 3]).unwrap());
            let begun = Instant::now();
            client.disconnect();
            assert!(begun.elapsed() < Duration::from_secs(5), "nothing is left to wait for");
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap();
    let seen = &fixture.seen;
    eventually("all handlers are dropped", || seen.running.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn halves_dropped_in_any_state_give_their_place_back() {
    let fixture = serve(ServerLimits { calls_in_flight: 2, ..ServerLimits::default() });
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let none = CallOptions::default();
        for state in (0..8).cycle().take(40) {
            let opened =
                tokio::time::timeout(Duration::from_secs(20), client.duplex(DOUBLE, &none));
            let (mut sender, mut doubles) = opened.await.expect("a place is free").unwrap();
            match state {
                0 => drop(sender),
                1 => drop(doubles),
                2 => {
                    sender.send(&1).await.unwrap();
                    drop(doubles);
                    let error = sender.send(&2).await.unwrap_err();
                    assert!(matches!(error, CallError::StreamEnded), "{error:?}");
                }
                3 => {
                    sender.send(&1).await.unwrap();
                    drop(sender);
                }
                4 => {
                    sender.send(&1).await.unwrap();
                    sender.finish().await.unwrap();
                    assert_eq!(doubles.next().await.unwrap().unwrap(), 2);
                }
                5 => {
                    // Both windows are full: nobody reads.
                    while sender.try_send(&1).is_ok() {}
                    let error = sender.try_send(&1).unwrap_err();
                    assert!(matches!(error, CallError::Full), "{error:?}");
                }
                6 => {
                    let mut upload = client.upload(SUM, &none).await.unwrap();
                    upload.send(&1).await.unwrap();
                    let finish = upload.finish();
                    let _ = tokio::time::timeout(Duration::ZERO, finish).await;
                }
                _ => drop(client.upload(SUM, &none).await.unwrap()),
            }
        }
        client.disconnect().await;
    }
    eventually("all is over", || fixture.server.connections() == 0).await;
    assert_eq!(fixture.server.stats().misbehaved, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_that_waits_while_the_other_is_dropped_sees_the_end() {
    let fixture = serve(ServerLimits::default());
    let seconds = Duration::from_secs(20);
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let none = CallOptions::default();

        let (mut sender, doubles) = client.duplex(DOUBLE, &none).await.unwrap();
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        let writer = tokio::spawn(async move {
            loop {
                if let Err(error) = sender.send(&1).await {
                    return error;
                }
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        // Nobody reads the replies: both windows fill, and the writer waits for credit.
        let mut before = 0;
        while before == 0 || before != sent.load(Ordering::SeqCst) {
            before = sent.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(doubles);
        let error = tokio::time::timeout(seconds, writer).await.expect("woken").unwrap();
        assert!(matches!(error, CallError::StreamEnded), "{error:?}");

        let (sender, mut doubles) = client.duplex(DOUBLE, &none).await.unwrap();
        let reader = tokio::spawn(async move { doubles.next().await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(sender);
        let last = tokio::time::timeout(seconds, reader).await.expect("woken").unwrap();
        assert!(!matches!(last, Some(Ok(_))), "{last:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_end_calls_on_both_sides() {
    let fixture = serve(ServerLimits::default());
    let short = CallOptions::default().timeout(Duration::from_millis(30));
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let error = client.call_with(NAP, &60_000, &short).await.unwrap_err();
        assert!(is_late(&error), "{error:?}");
        let mut stream = client.stream_with(FOREVER, &10, &short).await.unwrap();
        let error = loop {
            match stream.next().await.unwrap() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(is_late(&error), "{error:?}");
        assert!(stream.next().await.is_none());

        let path = fixture.path.clone();
        let short = short.clone();
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let error = client.call_with(NAP, &60_000, &short).unwrap_err();
            assert!(is_late(&error), "{error:?}");
            let stream = client.stream(FOREVER, &10, &short).unwrap();
            let error = stream.last().unwrap().unwrap_err();
            assert!(is_late(&error), "{error:?}");
            client.disconnect();
        };
        tokio::task::spawn_blocking(work).await.unwrap();
        let seen = &fixture.seen;
        eventually("all handlers are dropped", || seen.running.load(Ordering::SeqCst) == 0).await;
    }
}

/// A server that does nothing any more enforces nothing: its caller does, whether items still come or go, or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_of_streams_are_kept_without_the_server() {
    let fixture = serve(ServerLimits::default());
    let short = CallOptions::default().timeout(Duration::from_secs(1));
    // The passing of time is what is tested; nothing else tells that the deadline is over.
    let rest = Duration::from_millis(1100);
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        // All items and the end come in time, but for the last ones, which wait for credit.
        let mut few = client.stream_with(FOREVER, &10, &short).await.unwrap();
        few.next().await.unwrap().unwrap();
        let mut upload = client.upload(SUM, &short).await.unwrap();
        upload.send(&1).await.unwrap();
        upload.try_send(&1).unwrap();
        // No task of this runtime's other threads is told: the items lie here, and the deadline passes.
        std::thread::sleep(rest);
        assert!(is_late(&few.next().await.unwrap().unwrap_err()));
        assert!(few.next().await.is_none());
        for sent in [upload.try_send(&1), upload.send(&1).await] {
            let error = sent.unwrap_err();
            assert!(is_late(&error), "{error:?}");
        }
        let error = upload.finish().await.unwrap_err();
        assert!(is_late(&error), "{error:?}");

        let (path, short) = (fixture.path.clone(), short.clone());
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let mut few = client.stream(FOREVER, &10, &short).unwrap();
            few.next().unwrap().unwrap();
            let mut upload = client.upload(SUM, &short).unwrap();
            upload.send(&1).unwrap();
            upload.try_send(&1).unwrap();
            std::thread::sleep(rest);
            assert!(is_late(&few.next().unwrap().unwrap_err()));
            assert!(few.next().is_none());
            for sent in [upload.try_send(&1), upload.send(&1)] {
                let error = sent.unwrap_err();
                assert!(is_late(&error), "{error:?}");
            }
            let error = upload.finish().unwrap_err();
            assert!(is_late(&error), "{error:?}");
            client.disconnect();
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}

/// One answer, whichever side noticed first.
fn is_late(error: &CallError) -> bool {
    matches!(error, CallError::DeadlineExceeded)
}

#[tokio::test]
async fn call_whose_time_is_over_is_not_sent() {
    let fixture = serve(ServerLimits::default());
    let client = IpcClient::connect(&fixture.path).await.unwrap();
    let over = CallOptions::default().timeout(Duration::ZERO);
    let error = client.call_with(NAP, &1, &over).await.unwrap_err();
    assert!(matches!(error, CallError::DeadlineExceeded), "{error:?}");
    client.disconnect().await;
    eventually("the connection's counts are in", || fixture.server.stats().closed == 1).await;
    assert_eq!(fixture.server.stats().received, 1, "the Goodbye");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_carry_metadata_trace_and_the_time_that_is_left() {
    let fixture = serve(ServerLimits::default());
    let nothing = Carried { tenant: None, trace: None, left_ms: None };
    let carries = CallOptions::default()
        .timeout(Duration::from_secs(60))
        .metadata(Metadata::from([("tenant", "blue")]))
        .trace(TraceContext { trace_id: [3; 16], parent_id: [4; 8], flags: 1 });
    let much = CallOptions::default().metadata(Metadata::from([("key", vec![0; 9000])]));
    let assert_carried = |carried: &Carried| {
        assert_eq!(carried.tenant.as_deref(), Some(&b"blue"[..]));
        assert_eq!(carried.trace, Some([3; 16]));
        let left = carried.left_ms.unwrap();
        assert!((1..60_000).contains(&left), "{left} ms");
    };
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        assert_eq!(client.call(CARRIED, &()).await.unwrap(), nothing);
        assert_carried(&client.call_with(CARRIED, &(), &carries).await.unwrap());
        // Streams of every shape, too.
        let mut stream = client.stream_with(CARRIED_STREAM, &(), &carries).await.unwrap();
        assert_carried(&stream.next().await.unwrap().unwrap());
        assert!(stream.next().await.is_none());
        let upload = client.upload(CARRIED_UPLOAD, &carries).await.unwrap();
        assert_carried(&upload.finish().await.unwrap());
        let (sender, mut items) = client.duplex(CARRIED_DUPLEX, &carries).await.unwrap();
        assert_carried(&items.next().await.unwrap().unwrap());
        drop(sender);
        let error = client.call_with(CARRIED, &(), &much).await.unwrap_err();
        assert!(error.to_string().contains("8192 are allowed"), "{error}");
        assert_eq!(client.call(CARRIED, &()).await.unwrap(), nothing, "the connection goes on");

        let (path, carries, much) = (fixture.path.clone(), carries.clone(), much.clone());
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let nothing = Carried { tenant: None, trace: None, left_ms: None };
            assert_eq!(client.call(CARRIED, &()).unwrap(), nothing);
            assert_carried(&client.call_with(CARRIED, &(), &carries).unwrap());
            let mut stream = client.stream(CARRIED_STREAM, &(), &carries).unwrap();
            assert_carried(&stream.next().unwrap().unwrap());
            assert!(stream.next().is_none());
            let upload = client.upload(CARRIED_UPLOAD, &carries).unwrap();
            assert_carried(&upload.finish().unwrap());
            let (sender, mut items) = client.duplex(CARRIED_DUPLEX, &carries).unwrap();
            assert_carried(&items.next().unwrap().unwrap());
            drop(sender);
            let error = client.call_with(CARRIED, &(), &much).unwrap_err();
            assert!(error.to_string().contains("8192 are allowed"), "{error}");
            assert_eq!(client.call(CARRIED, &()).unwrap(), nothing, "the connection goes on");
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handler_s_own_calls_inherit_the_time_that_is_left_and_the_trace() {
    for transport in BOTH {
        let inner = serve(ServerLimits::default());
        let through = IpcClient::connect_with(&inner.path, options(transport)).await.unwrap();
        let inner_path = inner.path.clone();
        let connect = move || blocking::IpcClient::connect_with(inner_path, &options(transport));
        let blocking = tokio::task::spawn_blocking(connect).await.unwrap().unwrap();
        let from_inline = blocking.clone();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outer.sock");
        let internal = |error: CallError| Status::internal(error.to_string());
        let _outer = IpcServer::builder()
            .bind(&path)
            .unwrap()
            .route(CARRIED, move |_: Call, (): ()| {
                let client = through.clone();
                async move {
                    // Past its first await it runs in a task of its own.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    client.call(CARRIED, &()).await.map_err(internal)
                }
            })
            .route(
                CARRIED_INLINE,
                Inline(move |_: &InlineCall<'_>, (): ()| {
                    let called = tokio::task::block_in_place(|| from_inline.call(CARRIED, &()));
                    called.map_err(internal)
                }),
            )
            .route(CARRIED_BLOCKING, move |_: Call, (): ()| {
                let client = blocking.clone();
                async move {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    tokio::task::block_in_place(|| client.call(CARRIED, &())).map_err(internal)
                }
            })
            .serve()
            .unwrap();
        let client = IpcClient::connect_with(&path, options(transport)).await.unwrap();
        let carries = CallOptions::default().timeout(Duration::from_secs(60)).trace(TraceContext {
            trace_id: [9; 16],
            parent_id: [1; 8],
            flags: 0,
        });
        for outer in [CARRIED, CARRIED_BLOCKING, CARRIED_INLINE] {
            let carried = client.call_with(outer, &(), &carries).await.unwrap();
            assert_eq!(carried.trace, Some([9; 16]));
            assert!((1..60_000).contains(&carried.left_ms.unwrap()));
            let carried = client.call(outer, &()).await.unwrap();
            assert_eq!(carried, Carried { tenant: None, trace: None, left_ms: None });
        }
    }
}

/// Whichever way it makes them: what is a call's own is not told from what it inherits.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn every_plain_call_and_message_of_a_handler_inherits() {
    const ASK: Unary<(), ()> = Unary::new(0x0600, "ask");
    const TELL: OneWay<()> = OneWay::new(0x0601, "tell");
    let folder = tempfile::tempdir().unwrap();
    let [inner_path, outer_path] =
        ["inner.sock", "outer.sock"].map(|name| folder.path().join(name));
    let (seen, mut came) = tokio::sync::mpsc::unbounded_channel();
    let note = move |call: &Call| {
        let _ = seen.send((call.trace().map(|trace| trace.trace_id), call.deadline().is_some()));
    };
    let note_too = note.clone();
    let _inner = IpcServer::builder()
        .bind(&inner_path)
        .unwrap()
        .route(ASK, move |call: Call, (): ()| {
            note(&call);
            async { Ok(()) }
        })
        .route(TELL, move |call: Call, (): ()| {
            note_too(&call);
            async { Ok(()) }
        })
        .serve()
        .unwrap();
    let client = IpcClient::connect(&inner_path).await.unwrap();
    let blocking = tokio::task::block_in_place(|| blocking::IpcClient::connect(&inner_path));
    let blocking = blocking.unwrap();
    let _outer = IpcServer::builder()
        .bind(&outer_path)
        .unwrap()
        .route(ASK, move |_: Call, (): ()| {
            let (client, blocking) = (client.clone(), blocking.clone());
            async move {
                let work = async {
                    client.call(ASK, &()).await?;
                    client.try_call(ASK, &()).await?;
                    client.call_raw(ASK.kind(), b"").await?;
                    client.send(TELL, &()).await?;
                    client.send_when(TELL, &(), WhenFull::Fail).await?;
                    client.send_oneway(TELL.kind(), b"").await?;
                    tokio::task::block_in_place(|| {
                        blocking.call(ASK, &())?;
                        blocking.try_call(ASK, &())?;
                        blocking.call_raw(ASK.kind(), b"")?;
                        blocking.submit(ASK.kind(), b"")?.collect()?;
                        blocking.submit_call(ASK, &(), &CallOptions::default())?.collect()?;
                        blocking.send(TELL, &())?;
                        blocking.send_when(TELL, &(), WhenFull::Fail)?;
                        blocking.send_oneway(TELL.kind(), b"")
                    })
                };
                work.await.map_err(|error: CallError| Status::internal(error.to_string()))
            }
        })
        .serve()
        .unwrap();
    let client = IpcClient::connect(&outer_path).await.unwrap();
    let trace = TraceContext { trace_id: [9; 16], parent_id: [1; 8], flags: 0 };
    let options = CallOptions::default().timeout(Duration::from_secs(60)).trace(trace);
    client.call_with(ASK, &(), &options).await.unwrap();
    for n in 0..14 {
        assert_eq!(came.recv().await.unwrap(), (Some([9; 16]), true), "the {n}th to come");
    }
    client.call(ASK, &()).await.unwrap();
    for n in 0..14 {
        assert_eq!(came.recv().await.unwrap(), (None, false), "the {n}th to come");
    }
}

/// What a handler asks a connection itself is asked in the time that is left, and nothing travels with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn handler_with_a_deadline_and_a_trace_pings_and_describes() {
    const ASK: Unary<(), ()> = Unary::new(0x0600, "ask");
    let inner = serve(ServerLimits::default());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outer.sock");
    let asynchronous = IpcClient::connect(&inner.path).await.unwrap();
    let connected = tokio::task::block_in_place(|| blocking::IpcClient::connect(&inner.path));
    let blocking = connected.unwrap();
    let _outer = IpcServer::builder()
        .bind(&path)
        .unwrap()
        .route(ASK, move |_: Call, (): ()| {
            let (client, blocking) = (asynchronous.clone(), blocking.clone());
            async move {
                let work = async {
                    client.ping().await?;
                    client.describe().await?;
                    let one = client.describe_method(LENGTH.kind()).await?;
                    assert_eq!(one.name, LENGTH.name());
                    tokio::task::block_in_place(|| {
                        blocking.ping()?;
                        blocking.describe()?;
                        let one = blocking.describe_method(LENGTH.kind())?;
                        assert_eq!(one.name, LENGTH.name());
                        Ok(())
                    })
                };
                work.await.map_err(|error: CallError| Status::internal(error.to_string()))
            }
        })
        .serve()
        .unwrap();
    let client = IpcClient::connect(&path).await.unwrap();
    let trace = TraceContext { trace_id: [9; 16], parent_id: [1; 8], flags: 0 };
    for options in [
        CallOptions::default(),
        CallOptions::default().timeout(Duration::from_secs(60)),
        CallOptions::default().trace(trace),
    ] {
        client.call_with(ASK, &(), &options).await.unwrap();
    }
}

#[tokio::test]
async fn deadline_ends_calls_two_hops_away() {
    let last = serve(ServerLimits::default());
    let mut path = last.path.clone();
    let mut hops = Vec::new();
    for _ in 0..2 {
        let next = IpcClient::connect(&path).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        path = folder.path().join("hop.sock");
        let builder = IpcServer::builder().bind(&path).unwrap();
        let hop = builder.route(NAP, move |_: Call, ms: u64| {
            let next = next.clone();
            async move {
                // The caller's own deadline is all that it has.
                next.call(NAP, &ms).await.map_err(|error| Status::internal(error.to_string()))
            }
        });
        hops.push((hop.serve().unwrap(), folder));
    }
    let client = IpcClient::connect(&path).await.unwrap();
    let short = CallOptions::default().timeout(Duration::from_millis(300));
    let call = tokio::spawn(async move { client.call_with(NAP, &60_000, &short).await });
    let running = || last.seen.running.load(Ordering::SeqCst);
    eventually("it runs two hops away", || running() == 1).await;
    let error = call.await.unwrap().unwrap_err();
    // Whoever of the three noticed first; a hop's own error is in its words.
    let told =
        matches!(&error, CallError::Status(status) if status.message.contains("time was over"));
    assert!(is_late(&error) || told, "{error:?}");
    eventually("it is dropped there", || running() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_answers_early_ends_the_upload_and_its_answer_stays() {
    let is_invalid = |error: &CallError| matches!(error, CallError::Status(s) if s.code == Code::InvalidArgument);
    let fixture = serve(ServerLimits::default());
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let none = CallOptions::default();
        let mut upload = client.upload(FIRST, &none).await.unwrap();
        let ended = loop {
            match upload.send(&42).await {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(ended, CallError::StreamEnded), "{ended:?}");
        assert!(matches!(upload.try_send(&42), Err(CallError::StreamEnded)));
        assert_eq!(upload.finish().await.unwrap(), 42);
        assert_eq!(client.call(LENGTH, &"on".to_owned()).await.unwrap(), 2);

        let empty = client.upload(FIRST, &none).await.unwrap();
        assert!(is_invalid(&empty.finish().await.unwrap_err()));

        let path = fixture.path.clone();
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let none = CallOptions::default();
            let mut upload = client.upload(FIRST, &none).unwrap();
            let ended = loop {
                match upload.send(&42) {
                    Ok(()) => {}
                    Err(error) => break error,
                }
            };
            assert!(matches!(ended, CallError::StreamEnded), "{ended:?}");
            assert!(matches!(upload.try_send(&42), Err(CallError::StreamEnded)));
            assert_eq!(upload.finish().unwrap(), 42);
            assert_eq!(client.call(LENGTH, &"on".to_owned()).unwrap(), 2);

            let empty = client.upload(FIRST, &none).unwrap();
            assert!(is_invalid(&empty.finish().unwrap_err()));
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_to_an_upload_is_seen_by_who_sends_nothing() {
    const SOON: Duration = Duration::from_secs(20);
    let fixture = serve(ServerLimits { drain: Duration::ZERO, ..ServerLimits::default() });
    let none = CallOptions::default();
    let (mut lost, mut blocking_and_lost) = (Vec::new(), Vec::new());
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let mut upload = client.upload(FIRST, &none).await.unwrap();
        // It is not answered, and who stops waiting for that has lost nothing.
        let waits = tokio::time::timeout(Duration::from_millis(20), upload.answered()).await;
        assert!(waits.is_err(), "{transport:?}");
        upload.send(&42).await.unwrap();
        for _ in 0..2 {
            tokio::time::timeout(SOON, upload.answered()).await.expect("an answer");
        }
        assert!(matches!(upload.send(&43).await, Err(CallError::StreamEnded)));
        assert_eq!(upload.finish().await.unwrap(), 42);

        let soon = CallOptions::default().timeout(Duration::from_millis(20));
        let mut late = client.upload(IGNORES, &soon).await.unwrap();
        tokio::time::timeout(SOON, late.answered()).await.expect("the call's time ends");
        assert!(matches!(late.send(&Vec::new()).await, Err(CallError::DeadlineExceeded)));
        assert!(matches!(late.finish().await, Err(CallError::DeadlineExceeded)));

        let path = fixture.path.clone();
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let none = CallOptions::default();
            let mut upload = client.upload(FIRST, &none).unwrap();
            assert!(!upload.is_answered());
            upload.send(&42).unwrap();
            wait_for("the answer", || upload.is_answered());
            assert!(upload.is_answered());
            assert!(matches!(upload.send(&43), Err(CallError::StreamEnded)));
            assert_eq!(upload.finish().unwrap(), 42);

            let soon = CallOptions::default().timeout(Duration::from_millis(20));
            let late = client.upload(IGNORES, &soon).unwrap();
            wait_for("the call's end", || late.is_answered());
            assert!(matches!(late.finish(), Err(CallError::DeadlineExceeded)));
            let lost = client.upload(IGNORES, &none).unwrap();
            assert!(!lost.is_answered());
            (client, lost)
        };
        blocking_and_lost.push(tokio::task::spawn_blocking(work).await.unwrap());
        lost.push(client.upload(IGNORES, &none).await.unwrap());
    }
    fixture.server.shutdown().await;
    for mut lost in lost {
        tokio::time::timeout(SOON, lost.answered()).await.expect("the connection ends");
        let error = lost.finish().await.unwrap_err();
        assert!(
            matches!(error, CallError::Disconnected { .. } | CallError::Status(_)),
            "{error:?}"
        );
    }
    let work = move || {
        for (_client, lost) in blocking_and_lost {
            wait_for("the connection's end", || lost.is_answered());
            let error = lost.finish().unwrap_err();
            let ended = matches!(error, CallError::Disconnected { .. } | CallError::Status(_));
            assert!(ended, "{error:?}");
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

/// Looks until something is so.
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "never came to be: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Also while it is sent to: its items come whole, then its end, and the sender learns of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_ends_a_duplex_early_ends_both_directions_and_its_items_stay() {
    let is_early =
        |error: &CallError| matches!(error, CallError::Status(s) if s.code == Code::Aborted);
    let fixture = serve(ServerLimits::default());
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        for (wanted, fails) in [(3, false), (4, true)] {
            let none = CallOptions::default();
            let (mut sender, mut same) = client.duplex(LEAVES, &none).await.unwrap();
            let ended = loop {
                match sender.send(&wanted).await {
                    Ok(()) => {}
                    Err(error) => break error,
                }
            };
            assert!(matches!(ended, CallError::StreamEnded), "{ended:?}");
            for _ in 0..wanted {
                assert_eq!(same.next().await.unwrap().unwrap(), wanted);
            }
            match same.next().await {
                None => assert!(!fails),
                Some(last) => assert!(fails && is_early(&last.unwrap_err())),
            }
            assert!(same.next().await.is_none());
            // That the call has ended is no error of the last word.
            sender.finish().await.unwrap();
        }
        assert_eq!(client.call(LENGTH, &"on".to_owned()).await.unwrap(), 2);

        let path = fixture.path.clone();
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            for (wanted, fails) in [(3, false), (4, true)] {
                let (mut sender, mut same) =
                    client.duplex(LEAVES, &CallOptions::default()).unwrap();
                let ended = loop {
                    match sender.send(&wanted) {
                        Ok(()) => {}
                        Err(error) => break error,
                    }
                };
                assert!(matches!(ended, CallError::StreamEnded), "{ended:?}");
                for _ in 0..wanted {
                    assert_eq!(same.next().unwrap().unwrap(), wanted);
                }
                match same.next() {
                    None => assert!(!fails),
                    Some(last) => assert!(fails && is_early(&last.unwrap_err())),
                }
                assert!(same.next().is_none());
                sender.finish().unwrap();
            }
            assert_eq!(client.call(LENGTH, &"on".to_owned()).unwrap(), 2);
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
    assert_eq!(fixture.server.stats().misbehaved, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_connection_is_visible_and_chosen() {
    let limits = ServerLimits { calls_in_flight: 2, ..ServerLimits::default() };
    let fixture = serve(limits);
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let naps: Vec<_> = (0..2)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.call(NAP, &300).await })
            })
            .collect();
        eventually("both run", || fixture.seen.running.load(Ordering::SeqCst) == 2).await;
        let error = client.try_call(LENGTH, &"x".to_owned()).await.unwrap_err();
        assert!(matches!(error, CallError::Full), "{error:?}");
        // One that waits its turn.
        assert_eq!(client.call(LENGTH, &"xy".to_owned()).await.unwrap(), 2);
        for nap in naps {
            nap.await.unwrap().unwrap();
        }
        assert_eq!(client.try_call(LENGTH, &"x".to_owned()).await.unwrap(), 1);

        let path = fixture.path.clone();
        let connect = move || blocking::IpcClient::connect_with(&path, &options(transport));
        let client = tokio::task::spawn_blocking(connect).await.unwrap().unwrap();
        let naps = [client.clone(), client.clone()]
            .map(|client| std::thread::spawn(move || client.call(NAP, &300)));
        eventually("both run", || fixture.seen.running.load(Ordering::SeqCst) == 2).await;
        let work = move || {
            let error = client.try_call(LENGTH, &"x".to_owned()).unwrap_err();
            assert!(matches!(error, CallError::Full), "{error:?}");
            assert_eq!(client.call(LENGTH, &"xy".to_owned()).unwrap(), 2);
            for nap in naps {
                nap.join().unwrap().unwrap();
            }
            assert_eq!(client.try_call(LENGTH, &"x".to_owned()).unwrap(), 1);
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}

fn is_full<T>(started: &Result<T, CallError>) -> bool {
    matches!(started, Err(CallError::Full))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_only_with_room_fails_at_once_in_every_shape() {
    let fixture = serve(ServerLimits { calls_in_flight: 2, ..ServerLimits::default() });
    let (none, now) = (CallOptions::default(), CallOptions::default().only_with_room(true));
    let (text, few) = ("x".to_owned(), Range { from: 0, to: 3, fail: false });
    for transport in BOTH {
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        // Nobody reads them, so they hold both places until they are dropped.
        let held = [
            client.stream_with(FOREVER, &10, &now).await.unwrap(),
            client.stream_with(FOREVER, &10, &now).await.unwrap(),
        ];
        assert!(is_full(&client.call_with(LENGTH, &text, &now).await), "{transport:?}");
        assert!(is_full(&client.stream_with(COUNT, &few, &now).await), "{transport:?}");
        assert!(is_full(&client.upload(SUM, &now).await), "{transport:?}");
        assert!(is_full(&client.duplex(DOUBLE, &now).await), "{transport:?}");
        let request = client.reserve_with(10, &now).await.unwrap();
        assert!(is_full(&client.call_reserved_with(LENGTH.kind(), request, &now).await));
        // A message needs no place.
        client.send_with(NOTE, &text, &now).await.unwrap();
        drop(held);
        // One that waits has its turn; then there is room for one at a time.
        assert_eq!(client.call(LENGTH, &text).await.unwrap(), 1);
        assert_eq!(client.call_with(LENGTH, &text, &now).await.unwrap(), 1);
        let mut numbers = client.stream_with(COUNT, &few, &now).await.unwrap();
        for expected in 0..3 {
            assert_eq!(numbers.next().await.unwrap().unwrap(), expected);
        }
        assert!(numbers.next().await.is_none());
        let mut upload = client.upload(SUM, &now).await.unwrap();
        upload.send(&3).await.unwrap();
        assert_eq!(upload.finish().await.unwrap(), 3);
        let (mut sender, mut doubles) = client.duplex(DOUBLE, &now).await.unwrap();
        sender.send(&4).await.unwrap();
        assert_eq!(doubles.next().await.unwrap().unwrap(), 8);
        drop((sender, doubles));

        let (path, none, now) = (fixture.path.clone(), none.clone(), now.clone());
        let (text, few) = (text.clone(), few.clone());
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let held = [(); 2].map(|()| client.stream(FOREVER, &10, &now).unwrap());
            assert!(is_full(&client.call_with(LENGTH, &text, &now)), "{transport:?}");
            assert!(is_full(&client.submit_call(LENGTH, &text, &now)), "{transport:?}");
            assert!(is_full(&client.stream(COUNT, &few, &now)), "{transport:?}");
            assert!(is_full(&client.upload(SUM, &now)), "{transport:?}");
            assert!(is_full(&client.duplex(DOUBLE, &now)), "{transport:?}");
            let request = client.reserve_with(10, &now).unwrap();
            assert!(is_full(&client.call_reserved_with(LENGTH.kind(), request, &now)));
            client.send_with(NOTE, &text, &now).unwrap();
            drop(held);
            assert_eq!(client.call(LENGTH, &text).unwrap(), 1);
            assert_eq!(client.call_with(LENGTH, &text, &now).unwrap(), 1);
            assert_eq!(client.submit_call(LENGTH, &text, &now).unwrap().collect().unwrap(), 1);
            let numbers: Vec<u64> =
                client.stream(COUNT, &few, &now).unwrap().map(Result::unwrap).collect();
            assert_eq!(numbers, [0, 1, 2]);
            let mut upload = client.upload(SUM, &now).unwrap();
            upload.send(&3).unwrap();
            assert_eq!(upload.finish().unwrap(), 3);
            let (mut sender, mut doubles) = client.duplex(DOUBLE, &now).unwrap();
            sender.send(&4).unwrap();
            assert_eq!(doubles.next().unwrap().unwrap(), 8);
            drop((sender, doubles));
            // The default is to wait.
            assert_eq!(client.call_with(LENGTH, &text, &none).unwrap(), 1);
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
    let seen = &fixture.seen;
    eventually("all messages arrive", || seen.notes.load(Ordering::SeqCst) == 4).await;
}

#[tokio::test]
async fn reservation_only_with_room_fails_while_bulk_memory_is_used_up() {
    let fixture = serve(ServerLimits::default());
    let now = CallOptions::default().only_with_room(true);
    const BYTES: usize = 10 << 20;
    // One block is all there is.
    let options = ClientOptions { bulk_bytes: 1, ..ClientOptions::default() };
    let client = IpcClient::connect_with(&fixture.path, options.clone()).await.unwrap();
    let held = client.reserve_with(BYTES, &now).await.unwrap();
    assert!(is_full(&client.reserve_with(BYTES, &now).await));
    drop(held);
    client.reserve_with(BYTES, &now).await.unwrap();

    let path = fixture.path.clone();
    let work = move || {
        let client = blocking::IpcClient::connect_with(&path, &options).unwrap();
        let held = client.reserve_with(BYTES, &now).unwrap();
        assert!(is_full(&client.reserve_with(BYTES, &now)));
        drop(held);
        client.reserve_with(BYTES, &now).unwrap();
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submitted_calls_carry_their_options_and_keep_their_deadlines() {
    let fixture = serve(ServerLimits::default());
    for transport in BOTH {
        let path = fixture.path.clone();
        let work = move || {
            let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
            let none = CallOptions::default();
            let nothing = Carried { tenant: None, trace: None, left_ms: None };
            let carries = CallOptions::default()
                .timeout(Duration::from_secs(60))
                .metadata(Metadata::from([("tenant", "blue")]))
                .trace(TraceContext { trace_id: [3; 16], parent_id: [4; 8], flags: 1 });
            let pending = [&none, &carries, &none, &carries]
                .map(|options| client.submit_call(CARRIED, &(), options).unwrap());
            for (n, pending) in pending.into_iter().enumerate() {
                let carried = pending.collect().unwrap();
                if n % 2 == 0 {
                    assert_eq!(carried, nothing);
                } else {
                    assert_eq!(carried.tenant.as_deref(), Some(&b"blue"[..]));
                    assert_eq!(carried.trace, Some([3; 16]));
                    assert!((1..60_000).contains(&carried.left_ms.unwrap()), "{carried:?}");
                }
            }
            let json = CallOptions::default().json(true);
            let length = client.submit_call(LENGTH, &"lapwing".to_owned(), &json).unwrap();
            assert_eq!(length.collect().unwrap(), 7);

            // Its time runs from when it is sent; nothing else tells that it is over.
            for short in [30, 150].map(Duration::from_millis) {
                let limited = CallOptions::default().timeout(short);
                let late = client.submit_call(NAP, &60_000, &limited).unwrap();
                std::thread::sleep(short);
                let begun = Instant::now();
                assert!(is_late(&late.collect().unwrap_err()));
                assert!(begun.elapsed() < Duration::from_secs(20));
            }
            drop(client.submit_call(NAP, &60_000, &none).unwrap());
            client.disconnect();
        };
        tokio::task::spawn_blocking(work).await.unwrap();
        let seen = &fixture.seen;
        eventually("all handlers are dropped", || seen.running.load(Ordering::SeqCst) == 0).await;
    }
}

/// The server's one thread is kept busy, so that nobody reads while the ring fills.
#[test]
fn one_way_messages_wait_fail_or_are_dropped_and_counted() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fixture = runtime.block_on(async { serve(ServerLimits::default()) });
    let connecting = {
        let path = fixture.path.clone();
        std::thread::spawn(move || blocking::IpcClient::connect(path).unwrap())
    };
    let client = runtime.block_on(async {
        while !connecting.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        connecting.join().unwrap()
    });
    // The runtime stands still from here on.
    let note = "n".repeat(1000);
    let mut sent = 0;
    while client.send_when(NOTE, &note, WhenFull::Fail).is_ok() {
        sent += 1;
    }
    assert!(sent > 0);
    let error = client.send_when(NOTE, &note, WhenFull::Fail).unwrap_err();
    assert!(matches!(error, CallError::Full), "{error:?}");
    for dropped in 0..5 {
        assert_eq!(client.stats().dropped, dropped);
        client.send_when(NOTE, &note, WhenFull::DropAndCount).unwrap();
    }
    let now = CallOptions::default().only_with_room(true);
    assert!(is_full(&client.send_with(NOTE, &note, &now)));
    assert!(is_full(&client.send_when_with(NOTE, &note, &now, WhenFull::Wait)));
    let json = CallOptions::default().json(true);
    assert!(is_full(&client.send_when_with(NOTE, &note, &json, WhenFull::Fail)));
    client.send_when_with(NOTE, &note, &now.json(true), WhenFull::DropAndCount).unwrap();
    assert_eq!(client.stats().dropped, 6);
    let waiting = {
        let client = client.clone();
        std::thread::spawn(move || client.send(NOTE, &note))
    };
    runtime.block_on(async {
        let seen = &fixture.seen;
        eventually("what was sent arrives", || seen.notes.load(Ordering::SeqCst) == sent + 1).await;
    });
    waiting.join().unwrap().unwrap();
    assert_eq!(client.stats().dropped, 6);
}

/// As above, through the async client and both transports: one task holds the server's only thread.
#[tokio::test]
async fn async_one_way_messages_wait_fail_or_are_dropped_and_counted() {
    for transport in BOTH {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let fixture = {
            let _entered = runtime.enter();
            serve(ServerLimits::default())
        };
        let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
        let (go_on, held) = std::sync::mpsc::channel::<()>();
        let holding = runtime.spawn(async move { held.recv().unwrap_err() });
        let note = "n".repeat(1000);
        let mut sent = 0;
        // What is on its way when the thread is held may still be read.
        for _ in 0..3 {
            while client.send_when(NOTE, &note, WhenFull::Fail).await.is_ok() {
                sent += 1;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let error = client.send_when(NOTE, &note, WhenFull::Fail).await.unwrap_err();
        assert!(matches!(error, CallError::Full), "{error:?}");
        for dropped in 0..5 {
            assert_eq!(client.stats().dropped, dropped);
            client.send_when(NOTE, &note, WhenFull::DropAndCount).await.unwrap();
        }
        let now = CallOptions::default().only_with_room(true);
        assert!(is_full(&client.send_with(NOTE, &note, &now).await));
        assert!(is_full(&client.send_when_with(NOTE, &note, &now, WhenFull::Wait).await));
        let json = CallOptions::default().json(true);
        assert!(is_full(&client.send_when_with(NOTE, &note, &json, WhenFull::Fail).await));
        let dropped = now.json(true);
        client.send_when_with(NOTE, &note, &dropped, WhenFull::DropAndCount).await.unwrap();
        assert_eq!(client.stats().dropped, 6);
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.send(NOTE, &note).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished(), "{transport:?}");
        drop(go_on);
        waiting.await.unwrap().unwrap();
        let seen = &fixture.seen;
        eventually("what was sent arrives", || seen.notes.load(Ordering::SeqCst) == sent + 1).await;
        assert_eq!(client.stats().dropped, 6);
        holding.await.unwrap();
        runtime.shutdown_background();
    }
}

#[tokio::test]
async fn requests_that_cannot_be_read_are_answered_with_the_field() {
    let fixture = serve(ServerLimits::default());
    let client = IpcClient::connect(&fixture.path).await.unwrap();
    let error = client.call_raw(LENGTH.kind(), &[5, b'x']).await.unwrap_err();
    let CallError::Status(status) = &error else { panic!("{error:?}") };
    assert_eq!(status.code, Code::InvalidArgument);
    assert!(status.message.starts_with("the request cannot be read"), "{status}");
    // The same method, believed to answer with text.
    const WRONG: Unary<String, String> = Unary::new(0x0500, "test.length");
    let error = client.call(WRONG, &"abc".to_owned()).await.unwrap_err();
    assert!(error.to_string().starts_with("the reply of test.length cannot be read: "), "{error}");
}

#[tokio::test]
async fn describe_tells_every_method_s_shape() {
    let fixture = serve(ServerLimits::default());
    let client = IpcClient::connect(&fixture.path).await.unwrap();
    let methods = client.describe().await.unwrap();
    let shape = |kind| methods.iter().find(|method| method.kind == kind).unwrap().shape;
    use lapwing::methods::Shape;
    assert_eq!(shape(LENGTH.kind()), Shape::Unary);
    assert_eq!(shape(NOTE.kind()), Shape::OneWay);
    assert_eq!(shape(COUNT.kind()), Shape::ServerStream);
    assert_eq!(shape(SUM.kind()), Shape::ClientStream);
    assert_eq!(shape(DOUBLE.kind()), Shape::Duplex);
}

#[tokio::test]
async fn server_s_end_ends_its_streams_with_the_reason() {
    let limits = ServerLimits { drain: Duration::from_millis(50), ..ServerLimits::default() };
    let fixture = serve(limits);
    let client = IpcClient::connect(&fixture.path).await.unwrap();
    let mut stream = client.stream(FOREVER, &10).await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    assert!(!fixture.server.shutdown().await, "the stream does not end by itself");
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CallError::Disconnected { .. }), "{error:?}");
    assert_eq!(fixture.seen.running.load(Ordering::SeqCst), 0);
}

#[test]
fn calls_with_priority_overtake_those_that_wait() {
    const SLOW: u16 = 0x0510;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (slow, quick) = (Arc::clone(&order), Arc::clone(&order));
    let _entered = runtime.enter();
    let _server = IpcServer::builder()
        .bind(&path)
        .unwrap()
        .route_inline(SLOW, "slow", move |_, request, _| {
            std::thread::sleep(Duration::from_millis(u64::from(request[0])));
            slow.lock().unwrap().push("slow");
            Ok(())
        })
        .route(LENGTH, move |_: Call, text: String| {
            quick.lock().unwrap().push("quick");
            async move { Ok(text.len()) }
        })
        .serve()
        .unwrap();
    let soon = CallOptions::default().priority(true);
    for transport in BOTH {
        let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
        order.lock().unwrap().clear();
        // While the first holds the connection the others gather behind it.
        let waiting: Vec<_> =
            [250, 1, 1, 1, 1].map(|ms| client.submit(SLOW, &[ms]).unwrap()).into();
        assert_eq!(client.call_with(LENGTH, &"xy".to_owned(), &soon).unwrap(), 2);
        for call in waiting {
            call.collect().unwrap();
        }
        let order = order.lock().unwrap();
        let place = order.iter().position(|what| *what == "quick").unwrap();
        assert!(place < 3, "{order:?}");
        assert_eq!(order.len(), 6);
    }
}

#[test]
fn call_whose_time_ends_while_it_waits_never_begins() {
    const SLOW: u16 = 0x0510;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&begun);
    let _entered = runtime.enter();
    let _server = IpcServer::builder()
        .bind(&path)
        .unwrap()
        .route_inline(SLOW, "slow", |_, request, _| {
            std::thread::sleep(Duration::from_millis(u64::from(request[0])));
            Ok(())
        })
        .route(LENGTH, move |_: Call, text: String| {
            counted.fetch_add(1, Ordering::SeqCst);
            async move { Ok(text.len()) }
        })
        .serve()
        .unwrap();
    let client = blocking::IpcClient::connect(&path).unwrap();
    let soon = CallOptions::default().priority(true);
    client.call_with(LENGTH, &"x".to_owned(), &soon).unwrap();
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    // Two that hold the connection, so that what is sent meanwhile is read between them and waits.
    let held = [150, 150].map(|ms| client.submit(SLOW, &[ms]).unwrap());
    let short = CallOptions::default().timeout(Duration::from_millis(50));
    let error = client.call_with(LENGTH, &"late".to_owned(), &short).unwrap_err();
    assert!(is_late(&error), "{error:?}");
    for call in held {
        call.collect().unwrap();
    }
    client.disconnect();
    assert_eq!(begun.load(Ordering::SeqCst), 1, "it never began");
}

/// A server that grants and then reads nothing, on a socket whose buffers are soon full.
#[test]
fn blocking_client_gives_a_server_that_stops_reading_no_more_than_its_time() {
    use lapwing_testkit::RawServer;
    const LONG: Unary<lapwing::Payload, lapwing::Payload, lapwing::Raw> =
        Unary::new(0x0520, "long");
    let (done, waiting) = std::sync::mpsc::channel::<()>();
    let server = RawServer::start(move |greeted| {
        let _peer = greeted.grant();
        let _ = waiting.recv();
    });
    let client =
        blocking::IpcClient::connect_with(server.path(), &options(Transport::Socket)).unwrap();
    let short = CallOptions::default().timeout(Duration::from_millis(100));
    let begun = Instant::now();
    let mut stream = client.stream(FOREVER, &10, &short).unwrap();
    for _ in 0..2 {
        let long = lapwing::Payload::from(vec![1; 3 << 20]);
        let error = client.call_with(LONG, &long, &short).unwrap_err();
        assert!(is_late(&error), "{error:?}");
    }
    assert!(is_late(&stream.next().unwrap().unwrap_err()));
    drop(stream);
    let mut upload = client.upload(SUM, &short).err();
    assert!(upload.take().is_none_or(|error| is_late(&error)));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop(done);
    drop(client);
    server.join();
}

/// An answer that lies unread behind a connection that is over is the call's answer all the same: an item that goes nowhere
/// says that the stream has ended, and not how the connection did.
#[test]
fn item_to_a_server_that_answered_and_went_leaves_the_answer_to_be_had() {
    use lapwing_testkit::RawServer;
    use lapwing_testkit::frame::RawFrame;
    const TAKES: ClientStream<Vec<u8>, lapwing::Payload, lapwing::Raw> =
        ClientStream::new(0x0521, "takes");
    fn check_sent(sent: Result<(), CallError>) -> bool {
        match sent {
            Ok(()) => false,
            Err(CallError::StreamEnded) => true,
            Err(error) => panic!("{error:?}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let answers_and_goes = || {
            let (gone, waiting) = std::sync::mpsc::channel();
            let server = RawServer::start(move |greeted| {
                let mut peer = greeted.grant();
                let (header, _) = peer.hear_frame();
                peer.send_frame(&RawFrame::response(TAKES.kind(), header.id.get(), b"answer"));
                drop(peer);
                gone.send(()).unwrap();
            });
            (server, waiting)
        };
        let (server, gone) = answers_and_goes();
        let client = blocking::IpcClient::connect_with(server.path(), &options(transport)).unwrap();
        let mut upload = client.upload(TAKES, &CallOptions::default()).unwrap();
        gone.recv().unwrap();
        let over = (0..3).any(|item| check_sent(upload.send(&vec![item])));
        assert!(over || transport == Transport::SharedMemory, "the socket is closed");
        assert_eq!(&*upload.finish().unwrap(), b"answer", "{transport:?}");
        server.join();

        let (server, gone) = answers_and_goes();
        runtime.block_on(async {
            let client = IpcClient::connect_with(server.path(), options(transport)).await.unwrap();
            let mut upload = client.upload(TAKES, &CallOptions::default()).await.unwrap();
            // Nothing is read from here on until the answer is asked for.
            gone.recv().unwrap();
            let over = (0..3).any(|item| check_sent(upload.try_send(&vec![item])));
            assert!(over || transport == Transport::SharedMemory, "the socket is closed");
            assert_eq!(&*upload.finish().await.unwrap(), b"answer", "{transport:?}");
        });
        server.join();
    }
}
