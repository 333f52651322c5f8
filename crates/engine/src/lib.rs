//! The workspace services that an editor calls, served over Lapwing.
//!
//! A [`Workspace`] opens one root directory and answers [`list`](Workspace::list),
//! [`read`](Workspace::read) and [`search`](Workspace::search); once it is
//! [`writable`](Workspace::writable), also [`write`](Workspace::write) and
//! [`apply_patch`](Workspace::apply_patch). [`FS_WATCH`] streams changes.
//! The functions are synchronous and may block on the disk; [`add_routes`] serves them from threads
//! where blocking is allowed. Requests and replies are plain serde types made for JSON.
//!
//! Four rules hold for every method:
//!
//! - **No path leaves the root.** Every file and directory is opened through one directory handle
//!   with `cap_std`; an absolute path, a `..` that climbs out and a symlink that points out are
//!   refused with [`WorkspaceError::OutsideRoot`], also when they are swapped in while a call runs.
//! - **No call blocks on a file that is not a regular file.** A FIFO, a socket or a device is
//!   refused, and so is one that is called `.gitignore`.
//! - **No reply is larger than asked for.** Each method takes `reply_bytes_max`, the most bytes
//!   that its reply may take as compact JSON, and hands out a cursor (or an offset) to go on from.
//! - **A file is replaced whole or not at all.** What is written goes to a file of its own beside the
//!   old one, onto the disk, and then takes its name.
//!
//! # Examples
//!
//! ```
//! use lapwing_engine::{ListRequest, Workspace};
//!
//! let folder = tempfile::tempdir()?;
//! std::fs::write(folder.path().join("hello.txt"), "hello")?;
//!
//! let workspace = Workspace::open(folder.path())?;
//! let request: ListRequest = serde_json::from_str(r#"{"path": "."}"#)?;
//! let reply = workspace.list(&request, 64 * 1024)?;
//! assert_eq!(reply.entries[0].path, "hello.txt");
//! assert_eq!(reply.entries[0].len_bytes, Some(5));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod activity;
mod codecs;
mod cursor;
mod diff;
mod error;
mod excerpt;
mod held;
mod hunk;
mod interrupt;
mod limits;
mod list;
mod page;
mod patch;
mod path;
mod pattern;
mod read;
mod replace;
mod routes;
mod rules;
mod search;
mod sink;
mod streams;
mod types;
mod walk;
mod watch;
mod watched;
mod workspace;
mod write;

pub use activity::WorkspaceStats;
pub use codecs::{BytesThenJson, JsonThenBytes};
pub use error::{ErrorClass, HunkFailure, WorkspaceError};
use lapwing::{ClientStream, Json, Payload, ServerStream, Unary};
pub use limits::*;
pub use read::{Filled, OpenRange};
pub use routes::add_routes;
pub use types::{
    Change, ChangeKind, Encoding, Entry, EntryKind, ListReply, ListRequest, Match, PatchReply,
    PatchRequest, PatchedFile, ReadReply, ReadRequest, SearchReply, SearchRequest, WatchRequest,
    WriteMode, WriteReply, WriteRequest,
};
pub use workspace::Workspace;

/// The method that lists a directory as a stream: every [`Entry`] as it is found.
pub const FS_LIST: ServerStream<ListRequest, Entry, Json> = ServerStream::new(0x0300, "fs.list");

/// Number and name of the method that lists a directory a page at a time: [`ListRequest`] to [`ListReply`].
pub const FS_LIST_PAGE: (u16, &str) = (0x0302, "fs.list.page");

/// The method that searches the tree as a stream: every [`Match`] as it is found.
pub const FS_SEARCH: ServerStream<SearchRequest, Match, Json> =
    ServerStream::new(0x0310, "fs.search");

/// Number and name of the method that searches the tree a page at a time: [`SearchRequest`] to [`SearchReply`].
pub const FS_SEARCH_PAGE: (u16, &str) = (0x0311, "fs.search.page");

/// Number and name of the method that reads a range of a file: [`ReadRequest`] to [`ReadReply`].
pub const FS_READ: (u16, &str) = (0x0301, "fs.read");

/// The method that reads a file, or a range of it, as bytes that no JSON wraps: [`ReadRequest`] to the
/// bytes. Whole files come through bulk memory in one reply.
pub const FS_READ_RAW: Unary<ReadRequest, Payload, JsonThenBytes> =
    Unary::new(0x0303, "fs.read.raw");

/// The method that writes a whole file: its content to [`WriteReply`], with the [`WriteRequest`] in
/// the call's metadata, as [`WriteRequest::options`] puts it there.
pub const FS_WRITE: Unary<Payload, WriteReply, BytesThenJson> = Unary::new(0x0304, "fs.write");

/// As [`FS_WRITE`], with the content in items, one behind the other: for files that are longer than a
/// message, at most [`WRITE_BYTES_MAX`] bytes.
pub const FS_WRITE_STREAM: ClientStream<Payload, WriteReply, BytesThenJson> =
    ClientStream::new(0x0307, "fs.write.stream");

/// The key of the metadata pair whose value is the JSON of a [`WriteRequest`].
pub const REQUEST_KEY: &str = "request";

/// Number and name of the method that applies a unified diff: [`PatchRequest`] to [`PatchReply`].
pub const FS_APPLY_PATCH: (u16, &str) = (0x0305, "fs.apply_patch");

/// The method that tells of changes below a directory until it is cancelled.
pub const FS_WATCH: ServerStream<WatchRequest, Change, Json> =
    ServerStream::new(0x0306, "fs.watch");
