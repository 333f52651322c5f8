//! What a handler started elsewhere, and what waits in one, learns of its call's end, however that comes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lapwing::{
    Call, CallOptions, Caller, Cancellation, ClientOptions, Code, IpcClient, IpcServer, Metadata,
    OneWay, Payload, PeerCredentials, Request, ServerLimits, ServerStream, Sink, TraceContext,
    Transport, Unary, blocking,
};
use lapwing_proto::{Hello, LimitsWanted};
use lapwing_testkit::frame::RawFrame;
use lapwing_testkit::{RawPeer, eventually, hello};

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];

/// Runs for ever.
const RUN: Unary<(), ()> = Unary::new(0x0600, "run");
const RUN_ONE_WAY: OneWay<()> = OneWay::new(0x0601, "run.oneway");
/// Ends at once.
const END: Unary<(), ()> = Unary::new(0x0602, "end");
const PANIC: Unary<(), ()> = Unary::new(0x0603, "panic");
const FILL: ServerStream<u32, Vec<u8>, Items> = ServerStream::new(0x0604, "fill");
const ECHO: u16 = 0x0605;

type Items = lapwing::Postcard;

/// Counts one more when it is dropped.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Fixture {
    server: Option<IpcServer>,
    path: std::path::PathBuf,
    /// Of all calls so far.
    tokens: Arc<Mutex<Vec<Cancellation>>>,
    /// Handlers of [`FILL`] that were dropped.
    dropped: Arc<AtomicUsize>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn serve(limits: ServerLimits) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cancel.sock");
        let tokens = Arc::<Mutex<Vec<Cancellation>>>::default();
        let dropped = Arc::<AtomicUsize>::default();
        let keep = |tokens: &Arc<Mutex<Vec<Cancellation>>>| {
            let tokens = Arc::clone(tokens);
            move |call: &Call| tokens.lock().unwrap().push(call.cancellation())
        };
        let (run, one_way, end, panics) =
            (keep(&tokens), keep(&tokens), keep(&tokens), keep(&tokens));
        let count = Arc::clone(&dropped);
        let server = IpcServer::builder()
            .bind(&path)
            .unwrap()
            .limits(limits)
            .route(RUN, move |call: Call, (): ()| {
                run(&call);
                std::future::pending()
            })
            .route(RUN_ONE_WAY, move |call: Call, (): ()| {
                one_way(&call);
                std::future::pending()
            })
            .route(END, move |call: Call, (): ()| {
                end(&call);
                async { Ok(()) }
            })
            .route(PANIC, move |call: Call, (): ()| {
                panics(&call);
                async { panic!("of a test") }
            })
            .route(FILL, move |_: Call, bytes: u32, mut items: Sink<Vec<u8>, Items>| {
                let dropped = Dropped(Arc::clone(&count));
                async move {
                    let _dropped = dropped;
                    let item = vec![0; bytes as usize];
                    loop {
                        items.send(&item).await?;
                    }
                }
            })
            .route_inline(ECHO, "echo", |_, payload, reply| {
                reply.extend(payload);
                Ok(())
            })
            .serve()
            .unwrap();
        Fixture { server: Some(server), path, tokens, dropped, _folder: folder }
    }

    async fn connect(&self, transport: Transport) -> IpcClient {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        IpcClient::connect_with(&self.path, options).await.unwrap()
    }

    async fn begun(&self, calls: usize) {
        wait_until("the calls have begun", || self.tokens.lock().unwrap().len() == calls).await;
    }

    async fn all_fire(&self, case: &str) {
        let all = || self.tokens.lock().unwrap().iter().all(Cancellation::is_cancelled);
        wait_until(case, all).await;
        self.tokens.lock().unwrap().clear();
    }
}

async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    tokio::task::block_in_place(|| eventually(what, || done().then_some(())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_fires_however_its_call_ends() {
    for transport in BOTH {
        let limits = ServerLimits { drain: Duration::from_millis(50), ..ServerLimits::default() };
        let mut fixture = Fixture::serve(limits);
        let client = fixture.connect(transport).await;
        client.call(END, &()).await.unwrap();
        client.call(PANIC, &()).await.unwrap_err();
        fixture.all_fire("calls that end at once").await;

        let timeout = CallOptions::default().timeout(Duration::from_millis(20));
        client.call_with(RUN, &(), &timeout).await.unwrap_err();
        fixture.all_fire("a call past its deadline").await;

        let task = tokio::spawn({
            let client = client.clone();
            async move { client.call(RUN, &()).await }
        });
        client.send(RUN_ONE_WAY, &()).await.unwrap();
        fixture.begun(2).await;
        assert!(fixture.tokens.lock().unwrap().iter().all(|token| !token.is_cancelled()));
        task.abort();
        drop((client, task));
        fixture.all_fire("the connection ends").await;

        let client = fixture.connect(transport).await;
        client.send(RUN_ONE_WAY, &()).await.unwrap();
        let task = tokio::spawn(async move { client.call(RUN, &()).await });
        fixture.begun(2).await;
        fixture.server.take().unwrap().shutdown().await;
        fixture.all_fire("the server stops before they are over").await;
        task.await.unwrap().unwrap_err();
    }
}

/// A thread that such a peer's calls have left behind would stay for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_fire_for_a_peer_that_is_cut_and_no_call_too_many_begins() {
    let fixture = Fixture::serve(ServerLimits::default());
    for transport in BOTH {
        for ids in [vec![1, 2, 3], vec![1, 1]] {
            let hello = hello(transport);
            let limits = LimitsWanted { calls_in_flight: 2, ..hello.limits };
            let (mut peer, _) = RawPeer::greet_with(&fixture.path, &Hello { limits, ..hello });
            for id in &ids {
                peer.send_frame(&RawFrame::request(RUN.kind(), *id, b""));
            }
            tokio::task::block_in_place(|| peer.hear_goodbye());
            // Of two with one id the second has begun.
            assert_eq!(fixture.tokens.lock().unwrap().len(), 2, "{ids:?}");
            fixture.all_fire("a peer that is cut").await;
        }
    }
}

/// A reply that has no room keeps nothing from the calls that run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_dropped_end_though_a_reply_waits_for_room() {
    const STREAMS: usize = 4;
    for transport in BOTH {
        let fixture = Fixture::serve(ServerLimits::default());
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let done = Arc::clone(&fixture.dropped);
        let (path, server) = (fixture.path.clone(), fixture.server.as_ref().unwrap());
        tokio::task::block_in_place(|| {
            let client = blocking::IpcClient::connect_with(path, &options).unwrap();
            let none = CallOptions::default();
            let open = |()| client.stream(FILL, &4000, &none).unwrap();
            let streams = [(); STREAMS].map(open);
            let sent = || server.stats().sent;
            // All that there is room for was sent.
            eventually("the streams stand still", || {
                let before = sent();
                std::thread::sleep(Duration::from_millis(20));
                (before > 0 && sent() == before).then_some(())
            });
            let call = client.submit(ECHO, &[7; 30_000]).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            drop(streams);
            // The client does nothing more.
            eventually("the handlers are dropped", || {
                (done.load(Ordering::SeqCst) == STREAMS).then_some(())
            });
            assert_eq!(call.collect().unwrap().bytes(), [7; 30_000]);
            assert_eq!(client.call_raw(ECHO, b"goes on").unwrap().bytes(), b"goes on");
        });
    }
}

#[test]
fn request_to_try_a_handler_with_says_what_it_was_given() {
    let credentials = PeerCredentials { uid: 1, gid: 1, pid: 1 };
    let caller = Caller { connection_id: 1, credentials, program: String::new() };
    let trace = TraceContext { trace_id: [1; 16], parent_id: [2; 8], flags: 1 };
    let deadline = Instant::now() + Duration::from_secs(5);
    let request = Request::new(0x0400, Payload::empty(), Arc::new(caller))
        .with_metadata(Metadata::from([("tenant", b"blue")]))
        .with_trace(trace)
        .with_deadline(deadline);
    let call = &request.call;
    assert_eq!((call.kind(), call.caller().connection_id, call.trace()), (0x0400, 1, Some(trace)));
    assert_eq!(call.metadata().get("tenant"), Some(&b"blue"[..]));
    let apart = |at: Instant| at.duration_since(deadline).max(deadline.duration_since(at));
    assert!(apart(call.deadline().unwrap()) < Duration::from_millis(1));
    assert!(!call.cancellation().is_cancelled());
    let max = call.reply_bytes_max();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(runtime.block_on(request.reserve(1000)).is_ok());
    assert_eq!(
        runtime.block_on(request.reserve(max + 1)).unwrap_err().code,
        Code::ResourceExhausted
    );
}
