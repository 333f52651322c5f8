//! What a workspace is doing, as plain numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a workspace has done, and is doing now. Clones of a workspace share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkspaceStats {
    /// Calls whose work is running on a thread for blocking work. A call that was given up counts
    /// until its thread has really stopped.
    pub working: u64,
    /// Names that listings and searches have looked at.
    pub names_visited: u64,
    /// Bytes that searches have read, in bytes.
    pub searched_bytes: u64,
    /// Streams of `fs.watch` that are open.
    pub watches: u64,
}

/// The counters behind [`WorkspaceStats`]. Relaxed throughout: they carry no other memory with them.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    working: AtomicU64,
    names_visited: AtomicU64,
    searched_bytes: AtomicU64,
    watches: AtomicU64,
}

impl Activity {
    pub(crate) fn stats(&self) -> WorkspaceStats {
        WorkspaceStats {
            working: self.working.load(Relaxed),
            names_visited: self.names_visited.load(Relaxed),
            searched_bytes: self.searched_bytes.load(Relaxed),
            watches: self.watches.load(Relaxed),
        }
    }

    pub(crate) fn name_visited(&self) {
        self.names_visited.fetch_add(1, Relaxed);
    }

    pub(crate) fn searched(&self, bytes: usize) {
        self.searched_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts a call as working until the answer is dropped.
    pub(crate) fn work(self: &Arc<Self>) -> Counted {
        Counted::on(self, |activity| &activity.working)
    }

    /// Counts a watch until the answer is dropped; `None` when there are `max` of them.
    pub(crate) fn watch(self: &Arc<Self>, max: u64) -> Option<Counted> {
        let counted = Counted::on(self, |activity| &activity.watches);
        (self.watches.load(Relaxed) <= max).then_some(counted)
    }
}

/// One more on a counter, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    activity: Arc<Activity>,
    which: fn(&Activity) -> &AtomicU64,
}

impl Counted {
    fn on(activity: &Arc<Activity>, which: fn(&Activity) -> &AtomicU64) -> Self {
        which(activity).fetch_add(1, Relaxed);
        Self { activity: Arc::clone(activity), which }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.which)(&self.activity).fetch_sub(1, Relaxed);
    }
}
