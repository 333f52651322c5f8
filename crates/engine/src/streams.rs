//! What listings and searches as streams may hold: slots only while they work, and a bounded number of
//! threads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapwing::Status;
use tokio::runtime::Handle;
use tokio::select;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::limits::{STREAMS_MAX, STREAMS_PER_CONNECTION_MAX};

/// A thread's slot among those that may block, and where its stream's items go.
pub(crate) struct Turn<T> {
    slots: Arc<Semaphore>,
    /// Nothing only while the thread waits for the reader, or after nobody reads any more.
    permit: Option<OwnedSemaphorePermit>,
    found: mpsc::Sender<T>,
}

impl<T> Turn<T> {
    pub(crate) fn begin(
        slots: Arc<Semaphore>,
        permit: OwnedSemaphorePermit,
        found: mpsc::Sender<T>,
    ) -> Self {
        Self { slots, permit: Some(permit), found }
    }

    /// Hands an item on; false when nobody reads any more. A reader that is behind holds the thread here
    /// without its slot, so that one that never reads stops nobody else.
    ///
    /// # Panics
    ///
    /// Outside of a thread for blocking work of a tokio runtime.
    pub(crate) fn give(&mut self, item: T) -> bool {
        let item = match self.found.try_send(item) {
            Ok(()) => return true,
            Err(TrySendError::Closed(_)) => return false,
            Err(TrySendError::Full(item)) => item,
        };
        self.permit = None;
        let (found, slots) = (&self.found, Arc::clone(&self.slots));
        self.permit = Handle::current().block_on(async {
            found.send(item).await.ok()?;
            select! {
                biased;
                () = found.closed() => None,
                permit = slots.acquire_owned() => permit.ok(),
            }
        });
        self.permit.is_some()
    }
}

/// How many streams are open, of each connection that has any.
///
/// A stream counts until its handler has ended or was dropped. A thread that it leaves behind has a slot,
/// or is about to end: so that threads are bounded, too.
#[derive(Debug, Default)]
pub(crate) struct OpenStreams(Mutex<HashMap<u64, usize>>);

impl OpenStreams {
    /// Counts a stream of a connection until the answer is dropped.
    pub(crate) fn open(self: &Arc<Self>, connection_id: u64) -> Result<OpenStream, Status> {
        let mut open = self.lock();
        if open.get(&connection_id).is_some_and(|count| *count >= STREAMS_PER_CONNECTION_MAX) {
            return Err(Status::resource_exhausted(format!(
                "{STREAMS_PER_CONNECTION_MAX} listings and searches of this connection are open as \
                 streams: read one to its end or drop it, then open another"
            )));
        }
        if open.values().sum::<usize>() >= STREAMS_MAX {
            return Err(Status::resource_exhausted(format!(
                "{STREAMS_MAX} listings and searches are open as streams, of all connections: wait \
                 until some have ended, or ask for pages"
            )));
        }
        *open.entry(connection_id).or_default() += 1;
        Ok(OpenStream { all: Arc::clone(self), connection_id })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        // Nothing that may panic happens between two changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One more open stream, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenStream {
    all: Arc<OpenStreams>,
    connection_id: u64,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = self.all.lock();
        if let Some(count) = open.get_mut(&self.connection_id) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.connection_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::{JoinHandle, spawn_blocking};
    use tokio::time::timeout;

    use super::*;

    /// A thread that gives numbers, up to the first that nobody takes.
    async fn numbers(slots: &Arc<Semaphore>) -> (JoinHandle<u32>, mpsc::Receiver<u32>) {
        let permit = Arc::clone(slots).acquire_owned().await.unwrap();
        let (found, finds) = mpsc::channel(1);
        let mut turn = Turn::begin(Arc::clone(slots), permit, found);
        (spawn_blocking(move || (0..).find(|number| !turn.give(*number)).unwrap()), finds)
    }

    #[tokio::test]
    async fn thread_that_waits_for_its_reader_has_no_slot_and_ends_with_the_reader() {
        let slots = Arc::new(Semaphore::new(1));
        let (thread, mut finds) = numbers(&slots).await;
        // The reader is behind: the slot is free for others.
        let other = timeout(Duration::from_secs(20), Arc::clone(&slots).acquire_owned()).await;
        let other = other.expect("a reader that does not read holds the slot").unwrap();
        // It reads, and the thread has to wait for the slot: one number is under way, no more.
        assert_eq!(finds.recv().await, Some(0));
        assert_eq!(finds.recv().await, Some(1));
        assert!(timeout(Duration::from_millis(50), finds.recv()).await.is_err());
        drop(other);
        assert_eq!(finds.recv().await, Some(2));
        // Also while it waits for the slot, it ends when the reader goes.
        let other = Arc::clone(&slots).acquire_owned().await.unwrap();
        while timeout(Duration::from_millis(50), finds.recv()).await.is_ok() {}
        drop(finds);
        timeout(Duration::from_secs(20), thread).await.expect("the thread waits on").unwrap();
        drop(other);
        assert_eq!(slots.available_permits(), 1);
    }

    #[test]
    fn streams_are_counted_for_each_connection_and_for_all() {
        let streams = Arc::new(OpenStreams::default());
        let open = |connection: u64, count: usize| -> Vec<OpenStream> {
            (0..count).map(|_| streams.open(connection).unwrap()).collect()
        };
        let mut first = open(0, STREAMS_PER_CONNECTION_MAX);
        let refused = streams.open(0).unwrap_err();
        assert!(refused.message.contains("of this connection"), "{}", refused.message);
        first.pop();
        first.extend(open(0, 1));
        let connections = STREAMS_MAX / STREAMS_PER_CONNECTION_MAX;
        let others: Vec<_> = (1..connections as u64)
            .flat_map(|connection| open(connection, STREAMS_PER_CONNECTION_MAX))
            .collect();
        let refused = streams.open(999).unwrap_err();
        assert!(refused.message.contains("of all connections"), "{}", refused.message);
        drop((first, others));
        assert!(streams.lock().is_empty());
    }
}
