//! The thread that looks after a blocking client while no other thread does.
//!
//! What a client does without waiting may leave something over: the word that a call was given up, for which there was no
//! room; the rest of a message that a socket took in part; bulk memory that is to be given back when it was unused for a
//! while. The next thread that calls sees to it. This one does when none comes: it is started where something is left
//! over, and ends when nothing is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::{IpcClient, Shared};
use crate::client::lock;

/// How long it pauses before it looks for room again, at first and at most. It does not wait as a caller does: that may
/// look all the time, and would keep callers from leading.
const PAUSE: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// The shortest time between two sweeps: one that is to give memory back at once does not look all the time.
const IDLE_MIN: Duration = Duration::from_millis(10);

/// Whether there is one, and which.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    /// Set before it is started; false once nothing was left, and then it looks once more.
    runs: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Keeper {
    /// Starts it, unless it runs; then it looks at once if it is to. Where the system gives no thread, the next call sees
    /// to what is left.
    #[cold]
    pub(super) fn keep(&self, shared: &Arc<Shared>, at_once: bool) {
        if self.runs.swap(true, Ordering::SeqCst) {
            if at_once {
                self.wake();
            }
            return;
        }
        let shared = Arc::downgrade(shared);
        let named = thread::Builder::new().name("lapwing-keeper".to_owned());
        if named.spawn(move || run(&shared)).is_err() {
            self.runs.store(false, Ordering::SeqCst);
        }
    }

    /// Whether it runs. One that is about to end looks once more for what was left before this was asked.
    pub(super) fn runs(&self) -> bool {
        self.runs.load(Ordering::SeqCst)
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = &*lock(&self.thread) {
            thread.unpark();
        }
    }
}

/// What is left for it to do.
enum Left {
    /// To send something when there is room.
    Rest,
    /// To give memory back when that was unused for so long.
    Bulk(Duration),
    Nothing,
}

fn run(shared: &Weak<Shared>) {
    let mut pause = PAUSE;
    // Held for one step at a time: so the last clone that is dropped elsewhere ends the connection soon.
    while let Some(shared) = shared.upgrade() {
        let client = IpcClient { shared };
        // Before it looks: who wakes it later wakes this one.
        *lock(&client.shared.keeper.thread) = Some(thread::current());
        match client.left() {
            Left::Rest => {
                client.send_rest();
                drop(client);
                thread::park_timeout(pause);
                pause = (2 * pause).min(PAUSE_MAX);
            }
            Left::Bulk(idle) => {
                drop(client);
                pause = PAUSE;
                thread::park_timeout(idle);
            }
            Left::Nothing => {
                let keeper = &client.shared.keeper;
                keeper.runs.store(false, Ordering::SeqCst);
                // Whoever left something before has found that this runs.
                let is_over = matches!(client.left(), Left::Nothing);
                if is_over || keeper.runs.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        }
    }
}

impl IpcClient {
    fn left(&self) -> Left {
        let core = &self.shared.core;
        if core.end().is_some() {
            return Left::Nothing;
        }
        if core.has_rest() {
            return Left::Rest;
        }
        let mut swept = lock(&self.shared.swept);
        if !core.has_bulk() {
            *swept = None;
            return Left::Nothing;
        }
        // The server gives its memory back on the socket, which nobody looks at while nobody calls.
        self.look();
        let idle = self.shared.bulk_idle.max(IDLE_MIN);
        let since = swept.get_or_insert_with(Instant::now).elapsed();
        if since < idle {
            return Left::Bulk(idle - since);
        }
        *swept = Some(Instant::now());
        drop(swept);
        if let Err(broken) = core.sweep_bulk() {
            core.finish(&broken);
        }
        Left::Bulk(idle)
    }

    /// Sends of it what there is room for now.
    fn send_rest(&self) {
        self.look();
        if self.shared.core.doorbell.is_none() {
            // A broken connection was found by the look, or will be.
            let _ = self.push_rest();
        }
        self.shared.core.offer_room();
    }
}
