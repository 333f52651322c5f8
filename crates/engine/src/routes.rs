//! The workspace's methods as routes of a server: JSON in, JSON out, never blocking its threads.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::available_parallelism;

use lapwing::{Builder, Call, Code, Json, Request, Sink, Status};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;

use crate::error::{ErrorClass, WorkspaceError};
use crate::workspace::Workspace;
use crate::{FS_LIST, FS_LIST_STREAM, FS_READ, FS_SEARCH, FS_SEARCH_STREAM};

/// How many calls may block at a time, for each core of the machine; others wait their turn.
const BLOCKING_PER_CORE: usize = 2;

/// Adds `fs.list`, `fs.read` and `fs.search` over this workspace to a server, and `fs.list.stream` and
/// `fs.search.stream`, which answer item by item instead of page by page.
///
/// A request is the JSON of [`ListRequest`](crate::ListRequest), [`ReadRequest`](crate::ReadRequest) or
/// [`SearchRequest`](crate::SearchRequest), and nothing at all stands for `{}`; a reply is the JSON of
/// the type that belongs to it. The work runs on tokio's threads for blocking work, at most two calls
/// for each core at a time. When a call's connection ends, its search stops within milliseconds.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// use lapwing::{IpcClient, IpcServer};
/// use lapwing_engine::{FS_LIST, Workspace, add_routes};
///
/// # let folder = tempfile::tempdir()?;
/// # std::fs::write(folder.path().join("hello.txt"), "hello")?;
/// # let path = folder.path().join("engine.sock");
/// let workspace = Workspace::open(folder.path())?;
/// let server = add_routes(IpcServer::builder().bind(&path)?, workspace).serve()?;
///
/// let client = IpcClient::connect(&path).await?;
/// let reply = client.call_raw(FS_LIST.0, br#"{"recursive": false}"#).await?;
/// let reply: lapwing_engine::ListReply = serde_json::from_slice(&reply)?;
/// assert!(reply.entries.iter().any(|entry| entry.path == "hello.txt"));
/// # server.shutdown().await;
/// # Ok(()) })
/// # }
/// ```
#[must_use]
pub fn add_routes(builder: Builder, workspace: Workspace) -> Builder {
    let cores = available_parallelism().map_or(1, NonZero::get);
    let slots = Arc::new(Semaphore::new(cores * BLOCKING_PER_CORE));
    let rooms = Rooms { workspace, slots };
    let (list, read, search) = (rooms.clone(), rooms.clone(), rooms.clone());
    let (list_stream, search_stream) = (rooms.clone(), rooms);
    builder
        .route_raw(FS_LIST.0, FS_LIST.1, move |request: Request| {
            list.clone().answer(request, |workspace, asked, max, _| workspace.list(asked, max))
        })
        .route_raw(FS_READ.0, FS_READ.1, move |request: Request| {
            read.clone().answer(request, |workspace, asked, max, _| workspace.read(asked, max))
        })
        .route_raw(FS_SEARCH.0, FS_SEARCH.1, move |request: Request| {
            search.clone().answer(request, Workspace::search)
        })
        .route(FS_LIST_STREAM, move |_: Call, asked, entries| {
            list_stream.clone().stream(asked, entries, Workspace::list_each)
        })
        .route(FS_SEARCH_STREAM, move |_: Call, asked, matches| {
            search_stream.clone().stream(asked, matches, Workspace::search_each)
        })
}

/// What every route shares.
#[derive(Clone)]
struct Rooms {
    workspace: Workspace,
    /// One permit for each call that may block. A call keeps its permit until its blocking work has
    /// really ended, also when nobody waits for it any more.
    slots: Arc<Semaphore>,
}

/// The work of one method: the workspace, what is asked, the most bytes of the reply, and whether to
/// stop.
type Work<Q, R> = fn(&Workspace, &Q, usize, &dyn Fn() -> bool) -> Result<R, WorkspaceError>;

/// The work of one method with a stream: what is asked, who takes the items (false: nobody any more), and
/// whether to stop.
type StreamWork<Q, T> =
    fn(&Workspace, &Q, &mut dyn FnMut(T) -> bool, &dyn Fn() -> bool) -> Result<(), WorkspaceError>;

/// Items that may lie between the thread that finds them and the stream that sends them.
const ITEMS_AHEAD: usize = 64;

impl Rooms {
    async fn stream<Q, T>(
        self,
        asked: Q,
        mut items: Sink<T, Json>,
        work: StreamWork<Q, T>,
    ) -> Result<(), Status>
    where
        Q: Send + 'static,
        T: Serialize + Send + 'static,
    {
        let (guard, stopped) = StopGuard::pair();
        let permit = self.slots.acquire_owned().await;
        let permit = permit.map_err(|_| Status::unavailable("the workspace is closing"))?;
        let workspace = self.workspace;
        let (found, mut finds) = mpsc::channel(ITEMS_AHEAD);
        let blocking = spawn_blocking(move || {
            let _permit = permit;
            let _working = workspace.activity().work();
            // A reader that is behind holds the thread here; one that is gone ends the work.
            let mut give = |item| found.blocking_send(item).is_ok();
            work(&workspace, &asked, &mut give, &|| stopped.load(Ordering::Relaxed))
        });
        while let Some(item) = finds.recv().await {
            items.send(&item).await?;
        }
        let ended = blocking.await;
        drop(guard);
        match ended {
            Ok(ended) => Ok(ended?),
            // The server catches it here as it would catch any handler's.
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            Err(_) => Err(Status::unavailable("the server is stopping")),
        }
    }

    async fn answer<Q, R>(self, request: Request, work: Work<Q, R>) -> Result<Vec<u8>, Status>
    where
        Q: DeserializeOwned + Send + 'static,
        R: Serialize + 'static,
    {
        let asked: Q = parse(&request.payload)?;
        let max = request.reply_bytes_max;
        let (guard, stopped) = StopGuard::pair();
        let Ok(permit) = self.slots.acquire_owned().await else {
            return Err(Status::unavailable("the workspace is closing"));
        };
        let workspace = self.workspace;
        let blocking = spawn_blocking(move || {
            let _permit = permit;
            let stop = || stopped.load(Ordering::Relaxed);
            if stop() {
                return Err(WorkspaceError::Cancelled.into());
            }
            let _working = workspace.activity().work();
            let reply = work(&workspace, &asked, max, &stop)?;
            serde_json::to_vec(&reply)
                .map_err(|error| Status::internal(format!("the reply is no JSON: {error}")))
        });
        let ended = blocking.await;
        drop(guard);
        match ended {
            Ok(reply) => reply,
            // The server catches it here as it would catch any handler's.
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            Err(_) => Err(Status::unavailable("the server is stopping")),
        }
    }
}

/// Says "stop" when it is dropped, which is when the call's future is.
struct StopGuard(Arc<AtomicBool>);

impl StopGuard {
    fn pair() -> (StopGuard, Arc<AtomicBool>) {
        let stopped = Arc::new(AtomicBool::new(false));
        (StopGuard(Arc::clone(&stopped)), stopped)
    }
}

impl Drop for StopGuard {
    fn drop(&mut self) {
        // Relaxed: the flag carries no other memory with it.
        self.0.store(true, Ordering::Relaxed);
    }
}

fn parse<Q: DeserializeOwned>(payload: &[u8]) -> Result<Q, Status> {
    let payload = if payload.is_empty() { b"{}" } else { payload };
    serde_json::from_slice(payload)
        .map_err(|error| Status::invalid_argument(format!("the request is wrong: {error}")))
}

impl From<ErrorClass> for Code {
    fn from(class: ErrorClass) -> Code {
        match class {
            ErrorClass::NotFound => Code::NotFound,
            ErrorClass::PermissionDenied => Code::PermissionDenied,
            ErrorClass::InvalidArgument => Code::InvalidArgument,
            ErrorClass::OutOfRange => Code::OutOfRange,
            ErrorClass::FailedPrecondition => Code::FailedPrecondition,
            ErrorClass::Cancelled => Code::Cancelled,
            ErrorClass::Internal => Code::Internal,
        }
    }
}

impl From<WorkspaceError> for Status {
    fn from(error: WorkspaceError) -> Status {
        Status::new(error.class().into(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lapwing::{Caller, Payload, PeerCredentials};

    use super::*;

    fn rooms(folder: &std::path::Path) -> Rooms {
        let workspace = Workspace::open(folder).unwrap();
        Rooms { workspace, slots: Arc::new(Semaphore::new(1)) }
    }

    fn request() -> Request {
        let credentials = PeerCredentials { uid: 0, gid: 0, pid: 1 };
        let caller = Caller { connection_id: 1, credentials, program: String::new() };
        Request::new(FS_LIST.0, Payload::empty(), Arc::new(caller))
    }

    fn until_stopped(
        _: &Workspace,
        _: &serde_json::Value,
        _: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), WorkspaceError> {
        while !stop() {
            std::thread::yield_now();
        }
        Err(WorkspaceError::Cancelled)
    }

    #[tokio::test]
    async fn dropped_call_stops_its_work_and_frees_its_slot() {
        let folder = tempfile::tempdir().unwrap();
        let rooms = rooms(folder.path());
        let mut call = Box::pin(rooms.clone().answer(request(), until_stopped));
        let waited = tokio::time::timeout(Duration::from_millis(20), &mut call).await;
        assert!(waited.is_err());
        assert_eq!(rooms.slots.available_permits(), 0);
        drop(call);
        let freed = tokio::time::timeout(Duration::from_secs(20), rooms.slots.acquire()).await;
        drop(freed.expect("the work goes on although nobody waits for it").unwrap());
    }

    #[tokio::test]
    async fn call_without_a_slot_waits_and_is_dropped_without_working() {
        let folder = tempfile::tempdir().unwrap();
        let rooms = rooms(folder.path());
        let held = Arc::clone(&rooms.slots).acquire_owned().await.unwrap();
        let call = rooms.clone().answer(request(), |_, _: &serde_json::Value, _, _| Ok(1));
        let mut call = Box::pin(call);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut call).await.is_err());
        drop(held);
        assert_eq!(call.await.unwrap(), b"1");
        assert_eq!(rooms.slots.available_permits(), 1);
    }
}
