//! The workspace's methods as routes of a server: JSON in, JSON out, never blocking its threads.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::available_parallelism;

use lapwing::{
    Builder, Call, ClientStream, Code, Decode, Json, Payload, Raw, Request, Reserved, Sink, Source,
    Status, Unary,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_blocking;

use crate::codecs::{BytesThenJson, NewContent};
use crate::error::{ErrorClass, WorkspaceError};
use crate::limits::{WRITE_BYTES_MAX, WRITE_STREAMS_BYTES_MAX};
use crate::read::Filled;
use crate::streams::{OpenStreams, Turn};
use crate::types::{
    ListReply, ListRequest, PatchReply, PatchRequest, ReadReply, ReadRequest, SearchReply,
    SearchRequest, WriteReply, WriteRequest,
};
use crate::workspace::Workspace;
use crate::{
    FS_APPLY_PATCH, FS_LIST, FS_LIST_PAGE, FS_READ, FS_READ_RAW, FS_SEARCH, FS_SEARCH_PAGE,
    FS_WATCH, FS_WRITE, FS_WRITE_STREAM, REQUEST_KEY,
};

/// How many calls may block at a time, for each core of the machine; others wait their turn.
const BLOCKING_PER_CORE: usize = 2;

/// How often a file is read anew that grew while it was read.
const READS_MAX: u32 = 8;

/// Adds the methods over this workspace to a server: the constants of this crate whose names begin with
/// `FS_`. Those that write are refused unless the workspace is [`writable`](Workspace::writable).
///
/// A request is the JSON of the type that the constant names, and nothing at all stands for `{}`; a reply
/// is the JSON of the type that belongs to it; the server describes both as JSON Schema. The content of
/// [`FS_READ_RAW`], [`FS_WRITE`] and [`FS_WRITE_STREAM`] is bytes, and described as such.
///
/// The work runs on tokio's threads for blocking work, at most two calls for each core at a time. When a
/// call is given up its work stops within milliseconds; a file that is being written is then written
/// whole, or not at all. A stream whose reader is behind has a thread that waits and stops nobody else; a
/// connection has at most [`STREAMS_PER_CONNECTION_MAX`](crate::STREAMS_PER_CONNECTION_MAX) of them. A watch
/// has one thread more, which waits for the system.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// use lapwing::{IpcClient, IpcServer};
/// use lapwing_engine::{FS_LIST_PAGE, Workspace, add_routes};
///
/// # let folder = tempfile::tempdir()?;
/// # std::fs::write(folder.path().join("hello.txt"), "hello")?;
/// # let path = folder.path().join("engine.sock");
/// let workspace = Workspace::open(folder.path())?;
/// let server = add_routes(IpcServer::builder().bind(&path)?, workspace).serve()?;
///
/// let client = IpcClient::connect(&path).await?;
/// let reply = client.call_raw(FS_LIST_PAGE.0, br#"{"recursive": false}"#).await?;
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
    let uploads = Arc::new(Semaphore::new(WRITE_STREAMS_BYTES_MAX));
    let rooms = Rooms { workspace, slots, streams: Arc::default(), uploads };
    let (list, read, search) = (rooms.clone(), rooms.clone(), rooms.clone());
    let (list_stream, search_stream, watch) = (rooms.clone(), rooms.clone(), rooms.clone());
    let (read_raw, write, write_stream) = (rooms.clone(), rooms.clone(), rooms.clone());
    let patch = rooms;
    builder
        .route_raw(FS_LIST_PAGE.0, FS_LIST_PAGE.1, move |request: Request| {
            list.clone().answer(request, |workspace, asked, max, _| workspace.list(asked, max))
        })
        .route_raw(FS_READ.0, FS_READ.1, move |request: Request| {
            read.clone().answer(request, |workspace, asked, max, _| workspace.read(asked, max))
        })
        .route_raw(FS_SEARCH_PAGE.0, FS_SEARCH_PAGE.1, move |request: Request| {
            search.clone().answer(request, Workspace::search)
        })
        .route(FS_LIST, move |call: Call, asked, entries| {
            list_stream.clone().stream(call, asked, entries, Workspace::list_each)
        })
        .route(FS_SEARCH, move |call: Call, asked, matches| {
            search_stream.clone().stream(call, asked, matches, Workspace::search_each)
        })
        .route_raw(FS_READ_RAW.kind(), FS_READ_RAW.name(), move |request: Request| {
            read_raw.clone().read_raw(request)
        })
        .route(FS_WRITE, move |call: Call, content| write.clone().write(call, content))
        .route(FS_WRITE_STREAM, move |call: Call, items| {
            write_stream.clone().write_stream(call, items)
        })
        .route_raw(FS_APPLY_PATCH.0, FS_APPLY_PATCH.1, move |request: Request| {
            patch
                .clone()
                .answer(request, |workspace, asked, _, stop| workspace.apply_patch(asked, stop))
        })
        .route(FS_WATCH, move |_: Call, asked, changes| watch.clone().watch(asked, changes))
        .schema_of(Unary::<ListRequest, ListReply, Json>::new(FS_LIST_PAGE.0, FS_LIST_PAGE.1))
        .schema_of(Unary::<ReadRequest, ReadReply, Json>::new(FS_READ.0, FS_READ.1))
        .schema_of(Unary::<SearchRequest, SearchReply, Json>::new(
            FS_SEARCH_PAGE.0,
            FS_SEARCH_PAGE.1,
        ))
        .schema_of(Unary::<PatchRequest, PatchReply, Json>::new(FS_APPLY_PATCH.0, FS_APPLY_PATCH.1))
        .schema_of(FS_LIST)
        .schema_of(FS_WATCH)
        .schema_of(FS_SEARCH)
        .schema_of(Unary::<ReadRequest, Payload, Raw>::new(FS_READ_RAW.kind(), FS_READ_RAW.name()))
        .schema_of(Unary::<NewContent, WriteReply, BytesThenJson>::new(
            FS_WRITE.kind(),
            FS_WRITE.name(),
        ))
        .schema_of(ClientStream::<NewContent, WriteReply, BytesThenJson>::new(
            FS_WRITE_STREAM.kind(),
            FS_WRITE_STREAM.name(),
        ))
}

/// What every route shares.
#[derive(Clone)]
pub(crate) struct Rooms {
    pub(crate) workspace: Workspace,
    /// One permit for each call that may block. A call keeps its permit until its blocking work has
    /// really ended, also when nobody waits for it any more. Only a stream gives it up between, while it
    /// waits for its reader.
    slots: Arc<Semaphore>,
    streams: Arc<OpenStreams>,
    /// One permit for each byte that the calls of `fs.write.stream` may hold together.
    uploads: Arc<Semaphore>,
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
        call: Call,
        asked: Q,
        mut items: Sink<T, Json>,
        work: StreamWork<Q, T>,
    ) -> Result<(), Status>
    where
        Q: Send + 'static,
        T: Serialize + Send + 'static,
    {
        let _open = self.streams.open(call.caller().connection_id)?;
        let (guard, stopped) = StopGuard::pair();
        let permit = Arc::clone(&self.slots).acquire_owned().await;
        let permit = permit.map_err(|_| Status::unavailable("the workspace is closing"))?;
        let workspace = self.workspace;
        let (found, mut finds) = mpsc::channel(ITEMS_AHEAD);
        let mut turn = Turn::begin(self.slots, permit, found);
        let blocking = spawn_blocking(move || {
            let _working = workspace.activity().work();
            let mut give = |item| turn.give(item);
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
        let max = request.call.reply_bytes_max();
        let asked: Q = parse(request.payload)?;
        self.block(move |workspace, stop| {
            let reply = work(workspace, &asked, max, stop)?;
            serde_json::to_vec(&reply)
                .map_err(|error| Status::internal(format!("the reply is no JSON: {error}")))
        })
        .await
    }

    /// The file's bytes are read into the memory that the reply is sent from.
    async fn read_raw(self, mut request: Request) -> Result<Reserved, Status> {
        let asked = std::mem::replace(&mut request.payload, Payload::empty());
        let asked: ReadRequest = parse(asked)?;
        let max = request.call.reply_bytes_max();
        let open = move |workspace: &Workspace| workspace.open_range(&asked, max);
        let mut range = self.block(move |workspace, _| Ok(open(workspace)?)).await?;
        for _ in 0..READS_MAX {
            let mut room = request.reserve(range.len_bytes()?).await?;
            let (room, filled, again) = self
                .block(move |_, stop| {
                    let filled = range.fill(&mut room, stop)?;
                    Ok((room, filled, range))
                })
                .await?;
            match filled {
                Filled::All(bytes) => {
                    let mut room = room;
                    room.truncate(bytes);
                    return Ok(room);
                }
                Filled::Grew => range = again,
            }
        }
        Err(range.unsteady().into())
    }

    async fn write(self, call: Call, content: Payload) -> Result<WriteReply, Status> {
        let asked = write_request(&call)?;
        self.block(move |workspace, _| Ok(workspace.write(&asked, &content)?)).await
    }

    async fn write_stream(
        self,
        call: Call,
        mut items: Source<Payload, BytesThenJson>,
    ) -> Result<WriteReply, Status> {
        // Before anything is kept of what would be refused at the end.
        self.workspace.must_be_writable()?;
        let asked = write_request(&call)?;
        let (mut content, mut held) = (Vec::new(), None::<OwnedSemaphorePermit>);
        while let Some(item) = items.next().await? {
            if content.len() + item.len() > WRITE_BYTES_MAX {
                let problem = format!(
                    "`fs.write.stream` writes files of at most {WRITE_BYTES_MAX} bytes: divide this one"
                );
                return Err(Status::resource_exhausted(problem));
            }
            let more = self.upload_room(item.len())?;
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
            content.extend_from_slice(&item);
        }
        self.block(move |workspace, _| {
            let _held = held;
            Ok(workspace.write(&asked, &content)?)
        })
        .await
    }

    /// Room for so many bytes of a file that comes in items.
    fn upload_room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.uploads).try_acquire_many_owned(bytes).map_err(|_| {
            Status::resource_exhausted(format!(
                "files that are sent in items hold {WRITE_STREAMS_BYTES_MAX} bytes together until \
                 they are written: send this one again when others are done"
            ))
        })
    }

    /// Runs work that may block, when it is its turn. The work is told to stop when nobody waits for it
    /// any more.
    pub(crate) async fn block<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Workspace, &dyn Fn() -> bool) -> Result<R, Status> + Send + 'static,
    ) -> Result<R, Status> {
        let (guard, stopped) = StopGuard::pair();
        let permit = Arc::clone(&self.slots).acquire_owned().await;
        let permit = permit.map_err(|_| Status::unavailable("the workspace is closing"))?;
        let workspace = self.workspace.clone();
        let blocking = spawn_blocking(move || {
            let _permit = permit;
            let stop = || stopped.load(Ordering::Relaxed);
            if stop() {
                return Err(WorkspaceError::Cancelled.into());
            }
            let _working = workspace.activity().work();
            work(&workspace, &stop)
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

/// What a call that writes has in its metadata.
fn write_request(call: &Call) -> Result<WriteRequest, Status> {
    let asked = call.metadata().get(REQUEST_KEY).ok_or_else(|| {
        Status::invalid_argument(format!(
            "the call has no metadata pair {REQUEST_KEY:?}: put the JSON of the request there, and \
             the file's content in the payload"
        ))
    })?;
    parse(asked.into())
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

fn parse<Q: DeserializeOwned>(payload: Payload) -> Result<Q, Status> {
    // As the typed routes read it: the error names the field.
    Json::decode(payload)
        .map_err(|error| Status::invalid_argument(format!("the request cannot be read: {error}")))
}

impl From<ErrorClass> for Code {
    fn from(class: ErrorClass) -> Code {
        match class {
            ErrorClass::NotFound => Code::NotFound,
            ErrorClass::PermissionDenied => Code::PermissionDenied,
            ErrorClass::InvalidArgument => Code::InvalidArgument,
            ErrorClass::OutOfRange => Code::OutOfRange,
            ErrorClass::AlreadyExists => Code::AlreadyExists,
            ErrorClass::Aborted => Code::Aborted,
            ErrorClass::ResourceExhausted => Code::ResourceExhausted,
            ErrorClass::FailedPrecondition => Code::FailedPrecondition,
            ErrorClass::Cancelled => Code::Cancelled,
            ErrorClass::Internal => Code::Internal,
        }
    }
}

impl From<WorkspaceError> for Status {
    fn from(error: WorkspaceError) -> Status {
        let status = Status::new(error.class().into(), error.to_string());
        match &error {
            WorkspaceError::HunkFailed(failure) => {
                status.with_details(serde_json::to_vec(failure).unwrap_or_default())
            }
            _ => status,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lapwing::{Caller, PeerCredentials};

    use super::*;

    fn rooms(folder: &std::path::Path) -> Rooms {
        let workspace = Workspace::open(folder).unwrap();
        let slots = Arc::new(Semaphore::new(1));
        Rooms { workspace, slots, streams: Arc::default(), uploads: Arc::new(Semaphore::new(0)) }
    }

    fn request() -> Request {
        let credentials = PeerCredentials { uid: 0, gid: 0, pid: 1 };
        let caller = Caller { connection_id: 1, credentials, program: String::new() };
        Request::new(FS_LIST_PAGE.0, Payload::empty(), Arc::new(caller))
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
