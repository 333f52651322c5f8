//! What the thread costs that looks after a blocking client: counted on that thread, while a server stands still and
//! while the client is busy.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lapwing::{
    Call, CallOptions, ClientOptions, ClientStream, IpcServer, OneWay, Payload, Raw, Source, Spin,
    Transport, Unary, WhenFull, blocking,
};
use lapwing_testkit::{PATIENCE, eventually};
use tokio::runtime::{Builder, Runtime};

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];

const NOTE: OneWay<Vec<u8>> = OneWay::new(0x0601, "note");
const KEPT: ClientStream<u64, u64> = ClientStream::new(0x0602, "kept");
/// Holds the server's only thread until it is let go; whether it was.
const BLOCK: Unary<(), bool> = Unary::new(0x0603, "block");
const ECHO: Unary<Payload, Payload, Raw> = Unary::new(0x0604, "echo");

/// How long a keeper is watched.
const WATCHED: Duration = Duration::from_secs(1);

/// Keepers are found by their name: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The only keeper of this process, by its folder in `/proc`.
struct Keeper(PathBuf);

impl Keeper {
    fn here() -> Option<Keeper> {
        let threads = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
        let mut keepers = threads.filter(|thread| {
            // One that has ended meanwhile is none.
            fs::read_to_string(thread.join("comm")).is_ok_and(|name| name == "lapwing-keeper\n")
        });
        let first = keepers.next()?;
        assert!(keepers.next().is_none(), "one client has one keeper");
        Some(Keeper(first))
    }

    fn find() -> Keeper {
        eventually("a keeper runs", Keeper::here)
    }

    /// Processor time it has used so far.
    fn used(&self) -> Duration {
        let text = fs::read_to_string(self.0.join("schedstat")).expect("it runs");
        let ns = text.split(' ').next().and_then(|ns| ns.parse().ok());
        Duration::from_nanos(ns.expect("nanoseconds come first"))
    }

    /// How often it has slept so far.
    fn sleeps(&self) -> u64 {
        let text = fs::read_to_string(self.0.join("status")).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|count| count.trim().parse().ok()).expect("the system counts them")
    }

    /// Watches it do nothing much: so many sleeps at most, and hardly any processor time.
    fn assert_rests(&self, sleeps_max: u64, what: &str) {
        let (used, sleeps) = (self.used(), self.sleeps());
        thread::sleep(WATCHED);
        let (used, sleeps) = (self.used() - used, self.sleeps() - sleeps);
        eprintln!("{what}: {used:?} of processor time and {sleeps} sleeps in {WATCHED:?}");
        assert!(used < WATCHED / 10, "{what}: it used {used:?} in {WATCHED:?}");
        assert!(sleeps <= sleeps_max, "{what}: it slept {sleeps} times in {WATCHED:?}");
    }
}

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

    fn wait(&self) -> bool {
        let closed = self.is_open.lock().unwrap();
        let waited = self.opened.wait_timeout_while(closed, 3 * PATIENCE, |is_open| !*is_open);
        *waited.unwrap().0
    }
}

struct Fixture {
    path: PathBuf,
    latch: Arc<Latch>,
    _server: IpcServer,
    _runtime: Runtime,
    _folder: tempfile::TempDir,
}

/// A server on one thread, so that it stands still as a whole.
fn serve() -> Fixture {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keeper.sock");
    let latch = Arc::<Latch>::default();
    let blocking = Arc::clone(&latch);
    let entered = runtime.enter();
    let server = IpcServer::builder()
        .bind(&path)
        .unwrap()
        .route(NOTE, |_: Call, _: Vec<u8>| async { Ok(()) })
        .route(KEPT, |_: Call, _: Source<u64, lapwing::Postcard>| std::future::pending())
        .route(BLOCK, move |_: Call, (): ()| {
            let latch = Arc::clone(&blocking);
            async move { Ok(latch.wait()) }
        })
        .route(ECHO, |_: Call, bytes: Payload| async move { Ok(bytes) })
        .serve()
        .unwrap();
    drop(entered);
    Fixture { path, latch, _server: server, _runtime: runtime, _folder: folder }
}

impl Fixture {
    fn client(&self, options: &ClientOptions) -> blocking::IpcClient {
        blocking::IpcClient::connect_with(&self.path, options).unwrap()
    }

    /// Has the server stand still until the latch is opened.
    fn hold(&self) -> JoinHandle<bool> {
        let other = self.client(&ClientOptions::default());
        let held = thread::spawn(move || other.call(BLOCK, &()).unwrap());
        thread::sleep(Duration::from_millis(50));
        held
    }
}

/// A call is given up for which there is no room; the policy says to look all the time, which is for callers.
#[test]
fn keeper_beside_a_server_that_stands_still_rests() {
    let _alone = alone();
    for transport in BOTH {
        let fixture = serve();
        let client = fixture.client(&ClientOptions {
            transport,
            spin: Spin::Always,
            ..ClientOptions::default()
        });
        let upload = client.upload(KEPT, &CallOptions::default()).unwrap();
        let held = fixture.hold();
        for length in [10_000, 0] {
            while client.send_when(NOTE, &vec![0; length], WhenFull::Fail).is_ok() {}
        }
        drop(upload);
        let keeper = Keeper::find();
        // Pauses of 1, 2, 4 ms and so on, then ten a second.
        keeper.assert_rests(60, &format!("{transport:?}"));
        fixture.latch.open();
        assert!(held.join().unwrap(), "it waited for the server");
        eventually("the keeper ends when nothing is left", || {
            Keeper::here().is_none().then_some(())
        });
        client.ping().unwrap();
    }
}

/// Memory that is in use has time: a thread that sleeps until it is to be swept need not know of each call.
#[test]
fn keeper_of_a_client_busy_with_bulk_memory_is_not_woken_by_its_calls() {
    const CALLS: u64 = 500;
    let _alone = alone();
    let fixture = serve();
    let bulk_idle = Duration::from_secs(3600);
    let client = fixture.client(&ClientOptions { bulk_idle, ..ClientOptions::default() });
    let payload = vec![7; 256 * 1024];
    let call = || assert_eq!(client.call_raw(ECHO.kind(), &payload).unwrap().len(), payload.len());
    call();
    let keeper = Keeper::find();
    let before = keeper.sleeps();
    for _ in 0..CALLS {
        call();
        // Whoever was woken may run, and sleep again, before the next call.
        thread::yield_now();
    }
    let sleeps = keeper.sleeps() - before;
    eprintln!("{sleeps} sleeps of the keeper in {CALLS} calls");
    assert!(sleeps <= CALLS / 20, "it was woken {sleeps} times by {CALLS} calls");
    drop(client);
    eventually("the keeper ends with its client", || Keeper::here().is_none().then_some(()));
}

/// The shortest time that memory may be unused is none.
#[test]
fn keeper_that_gives_memory_back_at_once_rests_while_some_is_in_use() {
    let _alone = alone();
    let fixture = serve();
    let bulk_idle = Duration::ZERO;
    let client = fixture.client(&ClientOptions { bulk_idle, ..ClientOptions::default() });
    let in_use = client.reserve(256 * 1024).unwrap();
    let keeper = Keeper::find();
    // One each 10 ms.
    keeper.assert_rests(300, "memory in use");
    drop(in_use);
    eventually("the keeper ends when all was given back", || {
        Keeper::here().is_none().then_some(())
    });
}
