//! Many streams and calls at once on one connection, begun, read, left, cancelled and run out of time in random
//! order, by clients that leave in order, go at once or are killed in the middle: afterwards every place is free, no handler
//! runs, and nobody has misbehaved.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapwing::{
    Call, CallError, CallOptions, ClientOptions, ClientStream, Code, Delivered, Duplex, EndReason,
    IpcClient, IpcServer, Postcard, ServerLimits, ServerStats, ServerStream, Sink, Source, Spin,
    Status, Transport, Unary, blocking,
};
use lapwing_testkit::process::{self, RoleProcess};
use lapwing_testkit::test_name;

const ECHO: Unary<u64, u64> = Unary::new(0x0500, "storm.echo");
const COUNT: ServerStream<u64, u64> = ServerStream::new(0x0501, "storm.count");
const SUM: ClientStream<u64, u64> = ClientStream::new(0x0502, "storm.sum");
const DOUBLE: Duplex<u64, u64> = Duplex::new(0x0503, "storm.double");
const NAP: Unary<u64, u64> = Unary::new(0x0504, "storm.nap");

/// Few, so that calls wait for a place now and then.
const CALLS_IN_FLIGHT: u32 = 12;

/// A handler that counts itself among those that run.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(count: &Arc<AtomicUsize>) -> Running {
        count.fetch_add(1, Ordering::SeqCst);
        Running(Arc::clone(count))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Storm {
    server: IpcServer,
    running: Arc<AtomicUsize>,
    _folder: tempfile::TempDir,
}

fn serve() -> Storm {
    let folder = tempfile::tempdir().unwrap();
    let running = Arc::new(AtomicUsize::new(0));
    let [count, sum, double, nap] = std::array::from_fn(|_| Arc::clone(&running));
    let limits = ServerLimits { calls_in_flight: CALLS_IN_FLIGHT, ..ServerLimits::default() };
    let server = IpcServer::builder()
        .bind(folder.path().join("s.sock"))
        .unwrap()
        .limits(limits)
        .route(ECHO, |_: Call, number: u64| async move { Ok(number) })
        .route(COUNT, move |_: Call, to: u64, mut items: Sink<u64, Postcard>| {
            let running = Running::new(&count);
            async move {
                let _running = running;
                for number in 0..to {
                    items.send(&number).await?;
                }
                if to % 5 == 4 { Err(Status::aborted("every fifth")) } else { Ok(()) }
            }
        })
        .route(SUM, move |_: Call, mut items: Source<u64, Postcard>| {
            let running = Running::new(&sum);
            async move {
                let _running = running;
                let mut sum = 0;
                while let Some(number) = items.next().await? {
                    sum += number;
                    if sum > 5000 {
                        // Early, with items on the way.
                        return Ok(sum);
                    }
                }
                Ok(sum)
            }
        })
        .route(
            DOUBLE,
            move |_: Call, mut items: Source<u64, Postcard>, mut out: Sink<u64, Postcard>| {
                let running = Running::new(&double);
                async move {
                    let _running = running;
                    while let Some(number) = items.next().await? {
                        out.send(&(2 * number)).await?;
                    }
                    Ok(())
                }
            },
        )
        .route(NAP, move |_: Call, us: u64| {
            let running = Running::new(&nap);
            async move {
                let _running = running;
                tokio::time::sleep(Duration::from_micros(us)).await;
                Ok(us)
            }
        })
        .serve()
        .unwrap();
    Storm { server, running, _folder: folder }
}

/// A small generator (Knuth's 64-bit constants): the same seed, the same storm.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Whether an error is what a storm brings.
#[track_caller]
fn assert_expected(error: &CallError) {
    let expected = match error {
        CallError::DeadlineExceeded | CallError::StreamEnded | CallError::Full => true,
        CallError::Status(status) => {
            matches!(status.code, Code::Aborted | Code::DeadlineExceeded)
        }
        _ => false,
    };
    assert!(expected, "{error:?}");
}

async fn one(client: &IpcClient, dice: &mut Dice) -> Result<(), CallError> {
    let mut options = CallOptions::default();
    if dice.roll(4) == 0 {
        options = options.timeout(Duration::from_micros(50 + dice.roll(3000)));
    }
    match dice.roll(6) {
        0 => {
            let number = dice.roll(1000);
            assert_eq!(client.call_with(ECHO, &number, &options).await?, number);
        }
        1 => {
            let (to, leave) = (dice.roll(400), dice.roll(600));
            let mut items = client.stream_with(COUNT, &to, &options).await?;
            for expected in 0..leave {
                match items.next().await.transpose()? {
                    Some(number) => assert_eq!(number, expected),
                    None => {
                        assert_eq!(expected, to, "the stream is whole");
                        break;
                    }
                }
            }
        }
        2 => {
            let (count, each) = (dice.roll(300), dice.roll(40));
            let mut upload = client.upload(SUM, &options).await?;
            let mut sum = 0;
            for _ in 0..count {
                match upload.send(&each).await {
                    Ok(()) => sum += each,
                    Err(CallError::StreamEnded) => break,
                    Err(error) => return Err(error),
                }
            }
            if dice.roll(4) > 0 {
                let answer = upload.finish().await?;
                assert!(answer == sum || answer > 5000, "{answer} of {sum}");
            }
        }
        3 => {
            let count = dice.roll(200);
            let (mut sender, mut items) = client.duplex(DOUBLE, &options).await?;
            for number in 0..count {
                sender.send(&number).await?;
                if dice.roll(50) > 0 {
                    assert_eq!(items.next().await.transpose()?, Some(2 * number));
                } else {
                    // Leaves one unread, and all after it with it.
                    return Ok(());
                }
            }
            sender.finish().await?;
            assert_eq!(items.next().await.transpose()?, None);
        }
        4 => {
            let us = dice.roll(2000);
            let call = client.call_with(NAP, &us, &options);
            let patience = Duration::from_micros(dice.roll(2500));
            // Dropped in the middle as often as not.
            if let Ok(answer) = tokio::time::timeout(patience, call).await {
                answer?;
            }
        }
        _ => {
            client.try_call(ECHO, &7).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn storm_of_async_streams_leaves_nothing_behind() {
    let storm = serve();
    for (seed, transport) in [(1, Transport::SharedMemory), (2, Transport::Socket)] {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let client = IpcClient::connect_with(storm.server.path(), options).await.unwrap();
        let tasks: Vec<_> = (0..16)
            .map(|task| {
                let client = client.clone();
                tokio::spawn(async move {
                    let mut dice = Dice(seed * 1000 + task);
                    for _ in 0..60 {
                        if let Err(error) = one(&client, &mut dice).await {
                            assert_expected(&error);
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            let finished = tokio::time::timeout(Duration::from_secs(60), task).await;
            finished.expect("no task hangs").unwrap();
        }
        // Every place is free again: as many calls as there may be run at once.
        let naps = (0..CALLS_IN_FLIGHT).map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.call(NAP, &2000).await })
        });
        for nap in naps.collect::<Vec<_>>() {
            assert_eq!(nap.await.unwrap().unwrap(), 2000);
        }
        let begun = Instant::now();
        client.disconnect().await;
        assert!(begun.elapsed() < Duration::from_secs(5), "nothing is left to wait for");
    }
    settle(&storm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn storm_of_blocking_streams_leaves_nothing_behind() {
    let storm = serve();
    for (seed, transport) in [(3, Transport::SharedMemory), (4, Transport::Socket)] {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let client = blocking::IpcClient::connect_with(storm.server.path(), &options).unwrap();
        let work = move || {
            let threads: Vec<_> = (0..16)
                .map(|thread| {
                    let client = client.clone();
                    std::thread::spawn(move || {
                        let mut dice = Dice(seed * 1000 + thread);
                        for _ in 0..40 {
                            if let Err(error) = one_blocking(&client, &mut dice) {
                                assert_expected(&error);
                            }
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            let begun = Instant::now();
            client.disconnect();
            assert!(begun.elapsed() < Duration::from_secs(5), "nothing is left to wait for");
        };
        // Not one of the runtime's threads: it would wait for one that hangs.
        let (over, finished) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            work();
            let _ = over.send(());
        });
        let finished = tokio::time::timeout(Duration::from_secs(60), finished).await;
        finished.expect("no thread hangs").expect("no thread fails");
    }
    settle(&storm).await;
}

fn one_blocking(client: &blocking::IpcClient, dice: &mut Dice) -> Result<(), CallError> {
    let mut options = CallOptions::default();
    if dice.roll(4) == 0 {
        options = options.timeout(Duration::from_micros(50 + dice.roll(3000)));
    }
    match dice.roll(4) {
        0 => {
            let number = dice.roll(1000);
            assert_eq!(client.call_with(ECHO, &number, &options)?, number);
        }
        1 => {
            let (to, leave) = (dice.roll(400), dice.roll(600));
            let mut expected = 0;
            for item in client.stream(COUNT, &to, &options)?.take(leave as usize) {
                assert_eq!(item?, expected);
                expected += 1;
            }
            assert_eq!(expected, to.min(leave), "the stream is whole");
        }
        2 => {
            let (count, each) = (dice.roll(300), dice.roll(40));
            let mut upload = client.upload(SUM, &options)?;
            let mut sum = 0;
            for _ in 0..count {
                match upload.send(&each) {
                    Ok(()) => sum += each,
                    Err(CallError::StreamEnded) => break,
                    Err(error) => return Err(error),
                }
            }
            if dice.roll(4) > 0 {
                let answer = upload.finish()?;
                assert!(answer == sum || answer > 5000, "{answer} of {sum}");
            }
        }
        _ => {
            let count = dice.roll(200);
            let (mut sender, mut items) = client.duplex(DOUBLE, &options)?;
            for number in 0..count {
                sender.send(&number)?;
                if dice.roll(50) == 0 {
                    return Ok(());
                }
                assert_eq!(items.next().transpose()?, Some(2 * number));
            }
            sender.finish()?;
            assert_eq!(items.next().transpose()?, None);
        }
    }
    Ok(())
}

async fn settle(storm: &Storm) {
    let stats = settle_after_departures(storm).await;
    assert_eq!(stats.vanished, 0, "{stats:?}");
}

/// As [`settle`], where clients may have gone without a word.
async fn settle_after_departures(storm: &Storm) -> ServerStats {
    let until = Instant::now() + Duration::from_secs(20);
    while storm.running.load(Ordering::SeqCst) > 0 || storm.server.connections() > 0 {
        assert!(Instant::now() < until, "handlers or connections are left");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stats = storm.server.stats();
    assert_eq!((stats.misbehaved, stats.panics), (0, 0), "{stats:?}");
    assert_eq!(stats.accepted, stats.closed + stats.vanished, "each has ended once: {stats:?}");
    assert!(stats.cancelled > 0, "some were given up: {stats:?}");
    stats
}

/// Whether an error says that this side takes no new calls any more; until then it is what a storm brings. A call that
/// has begun goes on to its end.
#[track_caller]
fn is_left(error: &CallError) -> bool {
    let left = matches!(
        error,
        CallError::Disconnected { delivered: Delivered::Never, reason: EndReason::ClosedHere }
    );
    if !left {
        assert_expected(error);
    }
    left
}

/// Which of the storms, and when it ends.
fn departures() -> impl Iterator<Item = (u64, Transport, Duration)> {
    let mut dice = Dice(11);
    (0..12).map(move |round| {
        let transport = if round % 2 == 0 { Transport::SharedMemory } else { Transport::Socket };
        (round, transport, Duration::from_micros(dice.roll(30_000)))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn storm_of_async_streams_whose_client_disconnects_ends_every_call() {
    let storm = serve();
    for (round, transport, after) in departures() {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let client = IpcClient::connect_with(storm.server.path(), options).await.unwrap();
        let tasks: Vec<_> = (0..16)
            .map(|task| {
                let client = client.clone();
                tokio::spawn(async move {
                    let mut dice = Dice(round * 1000 + task);
                    loop {
                        match one(&client, &mut dice).await {
                            Err(error) if is_left(&error) => break,
                            _ => {}
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(after).await;
        let begun = Instant::now();
        client.disconnect().await;
        assert!(begun.elapsed() < Duration::from_secs(5), "all that has begun ends");
        for task in tasks {
            let finished = tokio::time::timeout(Duration::from_secs(60), task).await;
            finished.expect("no task hangs").unwrap();
        }
    }
    settle(&storm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn storm_of_blocking_streams_whose_client_disconnects_ends_every_call() {
    let storm = serve();
    for (round, transport, after) in departures() {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let client = blocking::IpcClient::connect_with(storm.server.path(), &options).unwrap();
        let (over, finished) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            std::thread::scope(|scope| {
                for thread in 0..16 {
                    let client = &client;
                    scope.spawn(move || {
                        let mut dice = Dice(round * 1000 + thread);
                        loop {
                            match one_blocking(client, &mut dice) {
                                Err(error) if is_left(&error) => break,
                                _ => {}
                            }
                        }
                    });
                }
                std::thread::sleep(after);
                let begun = Instant::now();
                client.disconnect();
                assert!(begun.elapsed() < Duration::from_secs(5), "all that has begun ends");
            });
            let _ = over.send(());
        });
        let finished = tokio::time::timeout(Duration::from_secs(60), finished).await;
        finished.expect("no thread hangs").expect("no thread fails");
    }
    settle(&storm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn storm_whose_client_is_dropped_at_once_ends_every_handler() {
    let storm = serve();
    for (round, transport, after) in departures() {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let client = IpcClient::connect_with(storm.server.path(), options).await.unwrap();
        let tasks: Vec<_> = (0..16)
            .map(|task| {
                let client = client.clone();
                tokio::spawn(async move {
                    let mut dice = Dice(round * 1000 + task);
                    loop {
                        if let Err(error) = one(&client, &mut dice).await {
                            assert_expected(&error);
                        }
                    }
                })
            })
            .collect();
        drop(client);
        tokio::time::sleep(after).await;
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        for task in tasks {
            let ended = tokio::time::timeout(Duration::from_secs(60), task).await;
            let error = ended.expect("no task hangs").unwrap_err();
            assert!(error.is_cancelled(), "{error}");
        }
    }
    // Its Goodbye may have found no room.
    settle_after_departures(&storm).await;
}

const SERVER: &str = "LAPWING_TEST_SERVER";
const FAILED: &str = "LAPWING_TEST_FAILED";

/// Storms in every way at once until it is killed. Leaves a file if something fails.
fn play_stormer() {
    let failed = PathBuf::from(process::setting(FAILED));
    std::panic::set_hook(Box::new(move |panic| {
        let _ = std::fs::write(&failed, panic.to_string());
    }));
    process::ready();
    let path = PathBuf::from(process::setting(SERVER));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    std::thread::scope(|scope| {
        for (seed, transport) in [(5, Transport::SharedMemory), (6, Transport::Socket)] {
            let options = ClientOptions { transport, ..ClientOptions::default() };
            let client = blocking::IpcClient::connect_with(&path, &options).unwrap();
            for thread in 0..4 {
                let client = client.clone();
                scope.spawn(move || {
                    let mut dice = Dice(seed * 1000 + thread);
                    loop {
                        if let Err(error) = one_blocking(&client, &mut dice) {
                            assert_expected(&error);
                        }
                    }
                });
            }
            let client = runtime.block_on(IpcClient::connect_with(&path, options)).unwrap();
            for task in 0..8 {
                let client = client.clone();
                runtime.spawn(async move {
                    let mut dice = Dice(seed * 2000 + task);
                    loop {
                        if let Err(error) = one(&client, &mut dice).await {
                            assert_expected(&error);
                        }
                    }
                });
            }
        }
    });
}

fn stormer(test: &str, server: &Path, failed: &Path) -> RoleProcess {
    let settings = [(SERVER, server.as_os_str()), (FAILED, failed.as_os_str())];
    RoleProcess::start(test, "stormer", &settings)
}

#[test]
fn storm_of_clients_killed_in_the_middle_ends_every_handler() {
    if process::role().as_deref() == Some("stormer") {
        return play_stormer();
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let storm = runtime.block_on(async { serve() });
    let folder = tempfile::tempdir().unwrap();
    let failed = folder.path().join("failed");
    let mut dice = Dice(13);
    for round in 1..=8 {
        let mut client = stormer(test_name!(), storm.server.path(), &failed);
        // At work, on all four connections, before its moment comes: one that is killed in its handshake is refused.
        let until = Instant::now() + Duration::from_secs(20);
        while storm.server.stats().accepted < 4 * round && !failed.exists() {
            assert!(Instant::now() < until, "it does not connect");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(dice.roll(50_000)));
        client.kill();
        let failure = std::fs::read_to_string(&failed).unwrap_or_default();
        assert_eq!(failure, "", "a stormer failed");
        let until = Instant::now() + Duration::from_secs(20);
        while storm.server.connections() > 0 {
            assert!(Instant::now() < until, "a connection of the dead is left");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let stats = runtime.block_on(settle_after_departures(&storm));
    assert_eq!((stats.accepted, stats.vanished), (32, 32), "{stats:?}");
    // Others are served.
    let client = blocking::IpcClient::connect(storm.server.path()).unwrap();
    assert_eq!(client.call(ECHO, &7).unwrap(), 7);
}

/// A leader that leaves calls another thread to lead. One that runs out of time at that very moment has to pass that on,
/// or the third waits for ever.
#[test]
fn threads_that_run_out_of_time_leave_nobody_waiting() {
    const ROUNDS: u64 = 500;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let storm = runtime.block_on(async { serve() });
    let options = ClientOptions { spin: Spin::Never, ..ClientOptions::default() };
    let client = blocking::IpcClient::connect_with(storm.server.path(), &options).unwrap();
    let (over, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut dice = Dice(7);
        for _ in 0..ROUNDS {
            let nap = 200 + dice.roll(100);
            let limited = CallOptions::default().timeout(Duration::from_micros(nap));
            std::thread::scope(|scope| {
                let first = scope.spawn(|| client.call(NAP, &nap));
                for _ in 0..3 {
                    scope.spawn(|| client.call_with(NAP, &10_000, &limited));
                }
                assert_eq!(client.call(NAP, &2000).unwrap(), 2000);
                assert_eq!(first.join().unwrap().unwrap(), nap);
            });
        }
        let _ = over.send(());
    });
    finished.recv_timeout(Duration::from_secs(60)).expect("no thread hangs or fails");
}
