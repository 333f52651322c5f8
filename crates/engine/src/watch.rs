//! `fs.watch`: changes below a directory, as a stream that ends when it is cancelled.
//!
//! One thread of `notify`'s waits for the system and never for anything else: what it hears goes into a
//! queue with a bound. A task of the server takes it from there and looks at the files on a thread for
//! blocking work, a batch at a time. When the call is given up both are dropped, and with them every watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapwing::{Json, Sink, Status};
use notify::Event;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::error::WorkspaceError;
use crate::limits::{WATCH_CHANGES_AHEAD, WATCHES_MAX};
use crate::routes::Rooms;
use crate::types::{Change, ChangeKind, WatchRequest};
use crate::watched::Watched;

/// How many changes are looked at in one go.
const BATCH: usize = 256;

/// How long the first half of a rename waits for the second. The kernel writes one behind the other.
const HALF_RENAME: Duration = Duration::from_millis(20);

/// How often to look whether the root was removed. The kernel does not tell: the workspace holds it open.
const ROOT_LOOK: Duration = Duration::from_secs(1);

impl Rooms {
    pub(crate) async fn watch(
        self,
        asked: WatchRequest,
        changes: Sink<Change, Json>,
    ) -> Result<(), Status> {
        let ended = self.workspace.watches_ended();
        tokio::select! {
            biased;
            () = ended => Err(Status::unavailable("the server is stopping: watch again when it is back")),
            ended = self.tell_changes(asked, changes) => ended,
        }
    }

    async fn tell_changes(
        self,
        asked: WatchRequest,
        mut changes: Sink<Change, Json>,
    ) -> Result<(), Status> {
        let counted = self.workspace.activity().watch(WATCHES_MAX).ok_or_else(|| {
            let problem = format!("{WATCHES_MAX} watches are open already: end one of them");
            WorkspaceError::NoWatch { path: asked.path.clone(), problem }
        })?;
        let (heard, mut events) = Heard::channel();
        let mut watched = self
            .block(move |workspace, stop| {
                Ok(Watched::begin(workspace, &asked, heard, counted, stop)?)
            })
            .await?;
        changes.send(&Change::about_all(ChangeKind::Watching)).await?;
        loop {
            let mut batch = Vec::new();
            let taken = events.recv_many(&mut batch, BATCH);
            let wait = if watched.has_half_rename() { Some(HALF_RENAME) } else { None };
            match wait.or(watched.is_of_root().then_some(ROOT_LOOK)) {
                // The end of the time leaves the batch empty.
                Some(wait) => drop(timeout(wait, taken).await),
                None => drop(taken.await),
            }
            if batch.is_empty() && wait.is_none() {
                watched.check_root()?;
                continue;
            }
            let (returned, told) = self
                .block(move |_, stop| {
                    let told = watched.take(&batch, stop)?;
                    Ok((watched, told))
                })
                .await?;
            watched = returned;
            for change in told {
                changes.send(&change).await?;
            }
        }
    }
}

/// Where `notify` puts what it hears.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    events: mpsc::Sender<Event>,
    /// Something was heard that found no room.
    lost: Arc<AtomicBool>,
}

impl Heard {
    fn channel() -> (Heard, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(WATCH_CHANGES_AHEAD);
        (Heard { events, lost: Arc::default() }, receiver)
    }

    /// Whether something was lost since the last time.
    pub(crate) fn take_lost(&self) -> bool {
        // Relaxed: what was lost carries no memory; the queue's own ordering brings the rest.
        self.lost.swap(false, Ordering::Relaxed)
    }
}

impl notify::EventHandler for Heard {
    fn handle_event(&mut self, event: notify::Result<Event>) {
        let event = match event {
            // That a file was opened or read is no change.
            Ok(event) if event.kind.is_access() => return,
            Ok(event) => event,
            Err(_) => Event::new(notify::EventKind::Other).set_flag(notify::event::Flag::Rescan),
        };
        // The flag first: who takes the event looks at the flag then.
        if event.need_rescan() {
            self.lost.store(true, Ordering::Relaxed);
        }
        if self.events.try_send(event).is_err() {
            self.lost.store(true, Ordering::Relaxed);
        }
    }
}
