//! Who waits for room has its turn, and nobody else's; what was owed is given once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use lapwing::{
    Call, CallError, CallOptions, ClientOptions, ClientStream, Code, ConnectionState, IpcClient,
    IpcServer, OneWay, ServerLimits, ServerStream, Sink, Source, Spin, Status, Transport, Unary,
    WhenFull, blocking,
};
use lapwing_testkit::PATIENCE;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

const NAP_MS: Unary<u64, ()> = Unary::new(0x0500, "nap");
const NOTE: OneWay<Vec<u8>> = OneWay::new(0x0501, "note");
const COUNT: ServerStream<u64, u64> = ServerStream::new(0x0502, "count");
/// Holds the server's only thread.
const BLOCK_MS: Unary<u64, ()> = Unary::new(0x0503, "block");
/// As [`BLOCK_MS`], until it is let go; whether it was.
const BLOCK: Unary<(), bool> = Unary::new(0x0509, "block.until");
const BOMB: Unary<(), ()> = Unary::new(0x0504, "bomb");
/// Answers when so many notes have come.
const NOTED: Unary<u64, ()> = Unary::new(0x0505, "noted");
/// Answers when as many notes have come as were sent, which is told beside the connection.
const NOTED_ALL: Unary<(), ()> = Unary::new(0x0507, "noted.all");
/// Makes a note, and answers.
const NOTE_CALL: Unary<(), ()> = Unary::new(0x0506, "note.call");

/// Makes a note when it is begun.
const NOTE_STREAM: ServerStream<(), u64> = ServerStream::new(0x050A, "note.stream");

/// Is handled until it is let go.
const HOLD: OneWay<()> = OneWay::new(0x0508, "hold");

/// Panics when it is dropped, unless a panic is under way.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "dropped");
    }
}

/// What a thread waits at, and not for ever.
#[derive(Default)]
struct Latch {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Latch {
    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    /// Whether it was opened.
    fn wait(&self) -> bool {
        let closed = self.is_open.lock().unwrap();
        let waited = self.opened.wait_timeout_while(closed, PATIENCE, |is_open| !*is_open);
        *waited.unwrap().0
    }
}

struct Fixture {
    runtime: Runtime,
    server: IpcServer,
    path: std::path::PathBuf,
    notes: Arc<AtomicUsize>,
    /// A permit for each [`HOLD`] that is let go, which makes a note then.
    gate: Arc<Semaphore>,
    /// Lets [`BLOCK`] go.
    latch: Arc<Latch>,
    /// See [`NOTED_ALL`].
    sent: Arc<AtomicUsize>,
    _folder: tempfile::TempDir,
}

/// A server on one thread that takes so many calls at a time.
fn serve(calls_in_flight: u32) -> Fixture {
    serve_on(1, ServerLimits { calls_in_flight, ..ServerLimits::default() })
}

fn serve_on(threads: usize, limits: ServerLimits) -> Fixture {
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("turns.sock");
    let notes = Arc::new(AtomicUsize::new(0));
    let [noted, called, streamed, kept, all] = std::array::from_fn(|_| Arc::clone(&notes));
    let sent = Arc::new(AtomicUsize::new(usize::MAX));
    let wanted = Arc::clone(&sent);
    let gate = Arc::new(Semaphore::new(0));
    let (held, hold_notes) = (Arc::clone(&gate), Arc::clone(&notes));
    let latch = Arc::<Latch>::default();
    let blocking = Arc::clone(&latch);
    let entered = runtime.enter();
    let server = IpcServer::builder()
        .bind(&path)
        .unwrap()
        .limits(limits)
        .route(NAP_MS, |_: Call, ms: u64| async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok(())
        })
        .route(NOTE, move |_: Call, _: Vec<u8>| {
            notes.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        })
        .route(COUNT, |_: Call, to: u64, mut items: Sink<u64, lapwing::Postcard>| async move {
            for n in 0..to {
                items.send(&n).await?;
            }
            Ok(())
        })
        .route(NOTE_STREAM, move |_: Call, (): (), mut items: Sink<u64, lapwing::Postcard>| {
            let notes = Arc::clone(&streamed);
            async move {
                notes.fetch_add(1, Ordering::SeqCst);
                items.send(&1).await
            }
        })
        .route(BLOCK_MS, |_: Call, ms: u64| async move {
            std::thread::sleep(Duration::from_millis(ms));
            Ok(())
        })
        .route(BLOCK, move |_: Call, (): ()| {
            let latch = Arc::clone(&blocking);
            async move { Ok(latch.wait()) }
        })
        .route(NOTE_CALL, move |_: Call, (): ()| {
            called.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        })
        .route(HOLD, move |_: Call, (): ()| {
            let (gate, notes) = (Arc::clone(&held), Arc::clone(&hold_notes));
            async move {
                gate.acquire().await.expect("it is never closed").forget();
                notes.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        })
        .route(BOMB, |_: Call, (): ()| async {
            std::panic::panic_any(Bomb);
            #[allow(unreachable_code)]
            Ok::<(), Status>(())
        })
        .route(NOTED, move |_: Call, wanted: u64| {
            let noted = Arc::clone(&noted);
            async move {
                while (noted.load(Ordering::SeqCst) as u64) < wanted {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(())
            }
        })
        .route(NOTED_ALL, move |_: Call, (): ()| {
            let (all, wanted) = (Arc::clone(&all), Arc::clone(&wanted));
            async move {
                while all.load(Ordering::SeqCst) < wanted.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(())
            }
        })
        .serve()
        .unwrap();
    drop(entered);
    Fixture { runtime, server, path, notes: kept, gate, latch, sent, _folder: folder }
}

fn options(transport: Transport) -> ClientOptions {
    ClientOptions { transport, ..ClientOptions::default() }
}

/// Nobody has made much fewer calls than anybody else.
fn assert_fair(made: &[usize], what: &str) {
    let (least, most) = (made.iter().min().unwrap(), made.iter().max().unwrap());
    assert!(*least > 0 && most - least <= 2 + most / 4, "{what}: {made:?}");
}

#[test]
fn tasks_that_share_a_few_places_take_turns() {
    const TASKS: usize = 12;
    let fixture = serve(8);
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let made = runtime.block_on(async {
            let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
            let made: Arc<[AtomicUsize; TASKS]> = Arc::default();
            let tasks: Vec<_> = (0..TASKS)
                .map(|n| {
                    let (client, made) = (client.clone(), Arc::clone(&made));
                    tokio::spawn(async move {
                        loop {
                            client.call(NAP_MS, &1).await.unwrap();
                            made[n].fetch_add(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(500)).await;
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
            made.iter().map(|made| made.load(Ordering::SeqCst)).collect::<Vec<_>>()
        });
        assert_fair(&made, &format!("{transport:?}"));
    }
}

#[test]
fn threads_that_share_one_place_take_turns_and_wake_a_leader_that_sleeps() {
    let fixture = serve(1);
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let client = blocking::IpcClient::connect_with(&fixture.path, &options(transport)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (client, stop) = (client.clone(), Arc::clone(&stop));
                std::thread::spawn(move || {
                    let mut made = 0;
                    while !stop.load(Ordering::SeqCst) {
                        client.call(NAP_MS, &5).unwrap();
                        made += 1;
                    }
                    made
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::SeqCst);
        let made: Vec<usize> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert_fair(&made, &format!("{transport:?}"));
    }
}

/// A call is given up, and a message sent, while the transport is full; then the client does nothing more.
#[test]
fn what_found_no_room_goes_though_its_blocking_client_calls_no_more() {
    const KEPT: ClientStream<u64, u64> = ClientStream::new(0x0600, "kept");
    const COUNTED: OneWay<Vec<u8>> = OneWay::new(0x0601, "counted");
    struct Running(Arc<AtomicUsize>);
    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let eventually = |what: &str, holds: &dyn Fn() -> bool| {
        let until = std::time::Instant::now() + PATIENCE;
        while !holds() {
            assert!(std::time::Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rest.sock");
        let [running, counted] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let (begun, came) = (Arc::clone(&running), Arc::clone(&counted));
        let latch = Arc::<Latch>::default();
        let block = Arc::clone(&latch);
        let entered = runtime.enter();
        let server = IpcServer::builder()
            .bind(&path)
            .unwrap()
            .route(KEPT, move |_: Call, _items: Source<u64, lapwing::Postcard>| {
                begun.fetch_add(1, Ordering::SeqCst);
                let running = Running(Arc::clone(&begun));
                async move {
                    let _running = running;
                    std::future::pending().await
                }
            })
            .route(COUNTED, move |_: Call, _: Vec<u8>| {
                came.fetch_add(1, Ordering::SeqCst);
                async { Ok(()) }
            })
            .route(BLOCK, move |_: Call, (): ()| {
                let latch = Arc::clone(&block);
                async move { Ok(latch.wait()) }
            })
            .serve()
            .unwrap();
        drop(entered);
        let client = blocking::IpcClient::connect_with(&path, &options(transport)).unwrap();
        let upload = client.upload(KEPT, &CallOptions::default()).unwrap();
        eventually("it is begun", &|| running.load(Ordering::SeqCst) == 1);
        let other = blocking::IpcClient::connect(&path).unwrap();
        let held = std::thread::spawn(move || other.call(BLOCK, &()).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        let mut sent = 0;
        for length in [30_000, 0] {
            while client.send_when(COUNTED, &vec![0; length], WhenFull::Fail).is_ok() {
                sent += 1;
            }
        }
        drop(upload);
        latch.open();
        assert!(held.join().unwrap(), "it waited for the server");
        eventually("the call is cancelled", &|| running.load(Ordering::SeqCst) == 0);
        eventually("all messages arrive", &|| counted.load(Ordering::SeqCst) == sent);
        drop(client);
        eventually("the connection is over", &|| server.connections() == 0);
        assert_eq!(server.stats().misbehaved, 0);
    }
}

/// Whoever only looks at the state takes the receiving half for a moment, and gives it on.
#[test]
fn threads_that_look_at_the_state_leave_nobody_waiting() {
    const ROUNDS: usize = 5000;
    let fixture = serve(64);
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let options = ClientOptions { spin: Spin::Never, ..options(transport) };
        let client = blocking::IpcClient::connect_with(&fixture.path, &options).unwrap();
        // Each looks once, at about the time when the other thread begins to wait.
        let round = Arc::new(AtomicUsize::new(0));
        let looking = std::thread::spawn({
            let (client, round) = (client.clone(), Arc::clone(&round));
            move || {
                for n in 1..=ROUNDS {
                    while round.load(Ordering::SeqCst) < n {
                        std::hint::spin_loop();
                    }
                    assert_eq!(client.state(), ConnectionState::Connected);
                }
            }
        });
        let in_time = CallOptions::default().timeout(PATIENCE);
        for n in 1..=ROUNDS {
            round.store(n, Ordering::SeqCst);
            client.call_with(NOTE_CALL, &(), &in_time).unwrap();
        }
        looking.join().unwrap();
    }
}

#[test]
fn two_that_wait_in_one_task_are_both_woken() {
    const NOTES: usize = 3000;
    let fixture = serve(1);
    fixture.runtime.block_on(async {
        let client = IpcClient::connect(&fixture.path).await.unwrap();
        let first = tokio::spawn({
            let client = client.clone();
            async move { client.call(NOTED, &(NOTES as u64)).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        // The call waits for the one place, which is free once all the notes have come.
        let note = vec![1; 4000];
        let notes = async {
            for _ in 0..NOTES {
                client.send(NOTE, &note).await.unwrap();
            }
        };
        let both = async { tokio::join!(client.call(NAP_MS, &1), notes) };
        let (called, ()) = tokio::time::timeout(PATIENCE, both).await.expect("both go on");
        called.unwrap();
        first.await.unwrap().unwrap();
    });
}

#[test]
fn credit_that_was_owed_is_given_once() {
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let fixture = serve(64);
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
            let mut numbers = client.stream(COUNT, &1000).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let block = tokio::spawn({
                let client = client.clone();
                async move { client.call(BLOCK_MS, &200).await }
            });
            tokio::time::sleep(Duration::from_millis(20)).await;
            // No room is left, so that the credit that is due after half of the window is owed.
            while client.send_when(NOTE, &vec![1; 1000], WhenFull::Fail).await.is_ok() {}
            while client.send_when(NOTE, &vec![], WhenFull::Fail).await.is_ok() {}
            let mut count = 0;
            for _ in 0..32 {
                assert_eq!(numbers.next().await.unwrap().unwrap(), count);
                count += 1;
            }
            // The server reads on meanwhile, and this runtime does not.
            std::thread::sleep(Duration::from_millis(400));
            while let Some(number) = numbers.next().await {
                assert_eq!(number.unwrap(), count, "{transport:?}");
                count += 1;
            }
            assert_eq!(count, 1000);
            block.await.unwrap().unwrap();
            client.disconnect().await;
        });
        let _entered = fixture.runtime.enter();
        assert_eq!(fixture.server.stats().misbehaved, 0, "{transport:?}");
    }
}

#[test]
fn message_that_is_not_to_wait_does_not_wait_for_a_socket() {
    let fixture = serve(64);
    let other = blocking::IpcClient::connect(&fixture.path).unwrap();
    let socket = options(Transport::Socket);
    let client = blocking::IpcClient::connect_with(&fixture.path, &socket).unwrap();
    let held = std::thread::spawn(move || other.call(BLOCK, &()).unwrap());
    std::thread::sleep(Duration::from_millis(50));
    let note = vec![1; 1000];
    let full = loop {
        if let Err(error) = client.send_when(NOTE, &note, WhenFull::Fail) {
            break error;
        }
    };
    assert!(matches!(full, CallError::Full), "{full}");
    let now = lapwing::CallOptions::default().only_with_room(true);
    let full = client.send_with(NOTE, &note, &now).unwrap_err();
    assert!(matches!(full, CallError::Full), "{full}");
    client.send_when(NOTE, &note, WhenFull::DropAndCount).unwrap();
    assert_eq!(client.stats().dropped, 1);
    // All that while the server's thread was held.
    fixture.latch.open();
    assert!(held.join().unwrap(), "it waited for the server");
}

/// The rest of a message that the socket took only in part goes also when nobody sends any more: a thread that waits for a
/// reply of another call sends it, whether it waits already or only afterwards.
#[test]
fn message_that_was_sent_in_part_arrives_while_a_thread_waits_for_a_reply() {
    for waits_before in [true, false] {
        let fixture = serve(64);
        let other = blocking::IpcClient::connect(&fixture.path).unwrap();
        let socket = options(Transport::Socket);
        let client = blocking::IpcClient::connect_with(&fixture.path, &socket).unwrap();
        let pending = client.submit_call(NOTED_ALL, &(), &CallOptions::default()).unwrap();
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let collect = move || tell.send(pending.collect()).unwrap();
            let sent = Arc::clone(&fixture.sent);
            let fill = || {
                // The call is read before the server's only thread is held.
                client.call(NAP_MS, &0).unwrap();
                let held = std::thread::spawn(move || other.call(BLOCK_MS, &300).unwrap());
                std::thread::sleep(Duration::from_millis(50));
                let mut notes = 0;
                while client.send_when(NOTE, &vec![1; 1000], WhenFull::Fail).is_ok() {
                    notes += 1;
                }
                sent.store(notes, Ordering::SeqCst);
                held.join().unwrap();
            };
            if waits_before {
                scope.spawn(collect);
                std::thread::sleep(Duration::from_millis(50));
                fill();
            } else {
                fill();
                scope.spawn(collect);
            }
            let noted = told.recv_timeout(PATIENCE);
            if noted.is_err() {
                // Ends the thread that waits.
                client.disconnect();
            }
            noted.expect("all messages arrive").unwrap();
        });
    }
}

#[test]
fn message_only_with_room_does_not_wait_for_the_rest_of_it_to_go() {
    let fixture = serve(64);
    let other = blocking::IpcClient::connect(&fixture.path).unwrap();
    let socket = options(Transport::Socket);
    let client = blocking::IpcClient::connect_with(&fixture.path, &socket).unwrap();
    let held = std::thread::spawn(move || other.call(BLOCK, &()).unwrap());
    std::thread::sleep(Duration::from_millis(50));
    let now = lapwing::CallOptions::default().only_with_room(true);
    // Not of a length that fills a socket without a rest.
    let note = vec![1; 100_001];
    let full = loop {
        if let Err(error) = client.send_with(NOTE, &note, &now) {
            break error;
        }
    };
    assert!(matches!(full, CallError::Full), "{full}");
    fixture.latch.open();
    assert!(held.join().unwrap(), "it waited for the server");
    client.call(NAP_MS, &0).unwrap();
}

#[test]
fn panic_whose_payload_panics_when_dropped_is_internal_and_the_connection_goes_on() {
    let fixture = serve(16);
    let client = blocking::IpcClient::connect(&fixture.path).unwrap();
    for _ in 0..2 {
        let error = client.call(BOMB, &()).unwrap_err();
        assert!(matches!(&error, CallError::Status(s) if s.code == Code::Internal), "{error}");
    }
    client.call(NAP_MS, &0).unwrap();
}

#[test]
fn call_whose_time_is_over_before_the_server_reads_it_never_starts() {
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let fixture = serve(64);
        let client = blocking::IpcClient::connect_with(&fixture.path, &options(transport)).unwrap();
        std::thread::scope(|scope| {
            // It holds up its connection: what comes behind it is not read.
            let busy = scope.spawn(|| client.call(BLOCK_MS, &300));
            let until = std::time::Instant::now() + PATIENCE;
            while client.stats().sent == 0 {
                assert!(std::time::Instant::now() < until, "it is not sent");
                std::thread::yield_now();
            }
            let late = lapwing::CallOptions::default().timeout(Duration::from_millis(20));
            let noted = client.call_with(NOTE_CALL, &(), &late);
            assert!(matches!(noted, Err(CallError::DeadlineExceeded)), "{noted:?}");
            let in_time = lapwing::CallOptions::default().timeout(PATIENCE);
            client.call_with(NOTED, &0, &in_time).unwrap();
            busy.join().unwrap().unwrap();
        });
        // No note was made by the one that was late, and one is by one that is not.
        client.call(NOTE_CALL, &()).unwrap();
        client.call(NOTED, &1).unwrap();
        assert_eq!(fixture.notes.load(Ordering::SeqCst), 1, "{transport:?}");
        client.disconnect();
        let until = std::time::Instant::now() + PATIENCE;
        while fixture.server.connections() > 0 {
            assert!(std::time::Instant::now() < until, "the connection is left");
            std::thread::sleep(Duration::from_millis(1));
        }
        let stats = fixture.server.stats();
        // That it is given up was seen before its turn came, or after it had been answered.
        assert_eq!((stats.cancelled + stats.late, stats.misbehaved), (1, 0), "{stats:?}");
    }
}

/// More than are read ahead.
const MANY: usize = 200;

#[test]
fn whatever_waits_past_its_deadline_never_starts_however_much_waits_and_wherever() {
    for transport in [Transport::SharedMemory, Transport::Socket] {
        for own_connection in [true, false] {
            late_ones_never_start(transport, own_connection);
        }
    }
}

/// Calls and messages wait behind a call that holds the server's only thread, on the same connection or another one.
fn late_ones_never_start(transport: Transport, own_connection: bool) {
    let fixture = serve(256);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connect = || IpcClient::connect_with(&fixture.path, options(transport));
        let client = connect().await.unwrap();
        let other = connect().await.unwrap();
        let holder = if own_connection { client.clone() } else { other };
        client.call(NAP_MS, &0).await.unwrap();
        let block = tokio::spawn(async move { holder.call(BLOCK_MS, &400).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let late = lapwing::CallOptions::default().timeout(Duration::from_millis(20));
        for _ in 0..MANY {
            client.send_with(NOTE, &vec![1], &late).await.unwrap();
        }
        let calls: Vec<_> = (0..MANY)
            .map(|_| {
                let (client, late) = (client.clone(), late.clone());
                tokio::spawn(async move { client.call_with(NOTE_CALL, &(), &late).await })
            })
            .collect();
        for call in calls {
            let noted = call.await.unwrap();
            assert!(matches!(noted, Err(CallError::DeadlineExceeded)), "{noted:?}");
        }
        assert!(!block.is_finished(), "they did not wait");
        block.await.unwrap().unwrap();
        // Behind all of them.
        client.call(NAP_MS, &0).await.unwrap();
        let case = format!("{transport:?} {own_connection}");
        assert_eq!(fixture.notes.load(Ordering::SeqCst), 0, "{case}");
        let in_time = lapwing::CallOptions::default().timeout(PATIENCE);
        client.send_with(NOTE, &vec![1], &in_time).await.unwrap();
        client.call_with(NOTE_CALL, &(), &in_time).await.unwrap();
        assert_eq!(fixture.notes.load(Ordering::SeqCst), 2, "{case}");
        client.disconnect().await;
    });
    let _entered = fixture.runtime.enter();
    let until = std::time::Instant::now() + PATIENCE;
    while fixture.server.connections() > 0 {
        assert!(std::time::Instant::now() < until, "the connection is left");
        std::thread::sleep(Duration::from_millis(1));
    }
    let stats = fixture.server.stats();
    assert_eq!((stats.dropped, stats.misbehaved), (MANY as u64, 0), "{stats:?}");
}

/// It has been read in time, and the task that is to handle it has not run yet.
#[test]
fn stream_whose_time_is_over_before_its_task_runs_never_begins() {
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let fixture = serve(256);
        let client = blocking::IpcClient::connect_with(&fixture.path, &options(transport)).unwrap();
        let none = CallOptions::default();
        let first = client.submit_call(BLOCK_MS, &50, &none).unwrap();
        let late = none.clone().timeout(Duration::from_millis(90));
        let mut stream = client.stream(NOTE_STREAM, &(), &late).unwrap();
        // Read in the same turn, and handled at once.
        let second = client.submit_call(BLOCK_MS, &250, &none).unwrap();
        second.collect().unwrap();
        assert!(matches!(stream.next(), Some(Err(CallError::DeadlineExceeded))));
        first.collect().unwrap();
        client.call(NAP_MS, &0).unwrap();
        assert_eq!(fixture.notes.load(Ordering::SeqCst), 0, "{transport:?}");
        let in_time = none.timeout(PATIENCE);
        let mut stream = client.stream(NOTE_STREAM, &(), &in_time).unwrap();
        assert_eq!(stream.next().unwrap().unwrap(), 1);
        assert_eq!(fixture.notes.load(Ordering::SeqCst), 1, "{transport:?}");
    }
}

#[test]
fn messages_that_have_no_room_to_be_handled_stop_no_call_that_runs() {
    const PLACES: usize = 8;
    for (transport, messages) in [
        (Transport::SharedMemory, PLACES),
        (Transport::SharedMemory, PLACES + 20),
        (Transport::Socket, PLACES + 20),
    ] {
        let fixture = serve(PLACES as u32);
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = IpcClient::connect_with(&fixture.path, options(transport)).await.unwrap();
            let mut numbers = client.stream(COUNT, &1000).await.unwrap();
            assert_eq!(numbers.next().await.unwrap().unwrap(), 0);
            let napping = client.call(NAP_MS, &60_000);
            let mut napping = Box::pin(napping);
            assert!(tokio::time::timeout(Duration::from_millis(20), &mut napping).await.is_err());
            for _ in 0..messages {
                client.send(HOLD, &()).await.unwrap();
            }
            // A call waits for the messages that wait before it, and for none that is being handled.
            let waits = messages > PLACES;
            let mut behind = Box::pin(client.call(NOTE_CALL, &()));
            let patience = if waits { Duration::from_millis(20) } else { PATIENCE };
            assert_eq!(tokio::time::timeout(patience, &mut behind).await.is_err(), waits);
            // Its credit passes what waits.
            let all = async {
                for n in 1..1000 {
                    assert_eq!(numbers.next().await.unwrap().unwrap(), n);
                }
                assert!(numbers.next().await.is_none());
            };
            tokio::time::timeout(PATIENCE, all).await.expect("the stream stands");
            // So does the word that a call is given up.
            drop(napping);
            let until = std::time::Instant::now() + PATIENCE;
            while fixture.server.stats().cancelled == 0 {
                assert!(std::time::Instant::now() < until, "the call is not cancelled");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(fixture.notes.load(Ordering::SeqCst), usize::from(!waits));
            fixture.gate.add_permits(messages);
            if waits {
                behind.await.unwrap();
            }
            client.call(NOTED, &(messages as u64 + 1)).await.unwrap();
            client.disconnect().await;
        });
        let _entered = fixture.runtime.enter();
        let stats = fixture.server.stats();
        assert_eq!((stats.dropped, stats.misbehaved, stats.vanished), (0, 0, 0), "{stats:?}");
    }
}

/// More than are handled at a time and read ahead together.
const BEYOND: usize = 8 + 100;

fn hold(client: &blocking::IpcClient, messages: usize) {
    (0..messages).for_each(|_| client.send(HOLD, &()).unwrap());
}

fn await_notes(fixture: &Fixture, notes: usize) {
    let until = std::time::Instant::now() + PATIENCE;
    while fixture.notes.load(Ordering::SeqCst) != notes {
        assert!(std::time::Instant::now() < until, "{notes} notes do not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn await_no_connection(fixture: &Fixture) {
    let until = std::time::Instant::now() + PATIENCE;
    let _entered = fixture.runtime.enter();
    while fixture.server.connections() > 0 {
        assert!(std::time::Instant::now() < until, "the connection is left");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn messages_beyond_all_room_are_handled_one_by_one_as_others_end() {
    for transport in [Transport::SharedMemory, Transport::Socket] {
        // Two threads: handlers end while the connection looks.
        let fixture = serve_on(2, ServerLimits { calls_in_flight: 8, ..ServerLimits::default() });
        let client = blocking::IpcClient::connect_with(&fixture.path, &options(transport)).unwrap();
        hold(&client, BEYOND);
        for done in 0..BEYOND {
            fixture.gate.add_permits(1);
            await_notes(&fixture, done + 1);
        }
        client.call(NAP_MS, &0).unwrap();
        client.disconnect();
        assert_eq!(fixture.server.stats().dropped, 0, "{transport:?}");
    }
}

#[test]
fn messages_that_wait_are_handled_though_their_client_has_left() {
    for transport in [Transport::SharedMemory, Transport::Socket] {
        for messages in [12, BEYOND] {
            let fixture = serve(8);
            let client =
                blocking::IpcClient::connect_with(&fixture.path, &options(transport)).unwrap();
            hold(&client, messages);
            // Time to read them as far as there is room.
            std::thread::sleep(Duration::from_millis(20));
            drop(client);
            std::thread::sleep(Duration::from_millis(20));
            fixture.gate.add_permits(messages);
            await_notes(&fixture, messages);
            await_no_connection(&fixture);
            let stats = fixture.server.stats();
            let ends = (stats.closed, stats.vanished, stats.dropped);
            assert_eq!(ends, (1, 0, 0), "{transport:?} {messages}: {stats:?}");
        }
    }
}

#[test]
fn connection_whose_messages_never_end_ends_with_its_client() {
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let drain = Duration::from_millis(100);
        let fixture =
            serve_on(1, ServerLimits { calls_in_flight: 8, drain, ..ServerLimits::default() });
        let client = blocking::IpcClient::connect_with(&fixture.path, &options(transport)).unwrap();
        hold(&client, BEYOND);
        std::thread::sleep(Duration::from_millis(20));
        drop(client);
        await_no_connection(&fixture);
        assert_eq!(fixture.notes.load(Ordering::SeqCst), 0, "{transport:?}");
    }
}
