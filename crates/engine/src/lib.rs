//! The workspace services that an editor calls, served over Lapwing.
//!
//! The first rooms are read-only: a [`Workspace`] opens one root directory and answers
//! [`list`](Workspace::list), [`read`](Workspace::read) and [`search`](Workspace::search).
//! The functions are synchronous and may block on the disk; [`add_routes`] serves them from threads
//! where blocking is allowed. Requests and replies are plain serde types made for JSON.
//!
//! Three rules hold for every method:
//!
//! - **No path leaves the root.** Every file and directory is opened through one directory handle
//!   with `cap_std`; an absolute path, a `..` that climbs out and a symlink that points out are
//!   refused with [`WorkspaceError::OutsideRoot`], also when they are swapped in while a call runs.
//! - **No call blocks on a file that is not a regular file.** A FIFO, a socket or a device is
//!   refused, and so is one that is called `.gitignore`.
//! - **No reply is larger than asked for.** Each method takes `reply_bytes_max`, the most bytes
//!   that its reply may take as compact JSON, and hands out a cursor (or an offset) to go on from.
//!
//! # Examples
//!
//! ```
//! use lapwing_engine::{ListRequest, Workspace};
//!
//! let directory = std::env::temp_dir().join("lapwing-engine-example");
//! std::fs::create_dir_all(&directory)?;
//! std::fs::write(directory.join("hello.txt"), "hello")?;
//!
//! let workspace = Workspace::open(&directory)?;
//! let request: ListRequest = serde_json::from_str(r#"{"path": "."}"#)?;
//! let reply = workspace.list(&request, 64 * 1024)?;
//! assert_eq!(reply.entries[0].path, "hello.txt");
//! assert_eq!(reply.entries[0].len_bytes, Some(5));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod activity;
mod cursor;
mod error;
mod excerpt;
mod interrupt;
mod limits;
mod list;
mod page;
mod path;
mod pattern;
mod read;
mod routes;
mod rules;
mod search;
mod sink;
mod types;
mod walk;
mod workspace;

pub use activity::WorkspaceStats;
pub use error::{ErrorClass, WorkspaceError};
use lapwing::{Json, ServerStream};
pub use limits::*;
pub use routes::add_routes;
pub use types::{
    Encoding, Entry, EntryKind, ListReply, ListRequest, Match, ReadReply, ReadRequest, SearchReply,
    SearchRequest,
};
pub use workspace::Workspace;

/// Number and name of the method that lists a directory: [`ListRequest`] to [`ListReply`].
pub const FS_LIST: (u16, &str) = (0x0300, "fs.list");

/// The method that lists a directory as a stream: every [`Entry`] as it is found.
pub const FS_LIST_STREAM: ServerStream<ListRequest, Entry, Json> =
    ServerStream::new(0x0302, "fs.list.stream");

/// The method that searches the tree as a stream: every [`Match`] as it is found.
pub const FS_SEARCH_STREAM: ServerStream<SearchRequest, Match, Json> =
    ServerStream::new(0x0311, "fs.search.stream");

/// Number and name of the method that reads a range of a file: [`ReadRequest`] to [`ReadReply`].
pub const FS_READ: (u16, &str) = (0x0301, "fs.read");

/// Number and name of the method that searches the tree: [`SearchRequest`] to [`SearchReply`].
pub const FS_SEARCH: (u16, &str) = (0x0310, "fs.search");
