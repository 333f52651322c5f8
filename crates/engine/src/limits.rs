//! Every limit of the workspace service, with its unit.

/// The longest path a request may carry, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;

/// The longest search pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 4096;

/// The longest cursor accepted, in bytes.
pub const CURSOR_BYTES_MAX: usize = 16 * 1024;

/// How many matches one search reply holds when the request does not say.
pub const MATCHES_DEFAULT: u32 = 200;

/// The most matches one search reply holds; a request for more gets this many.
pub const MATCHES_MAX: u32 = 10_000;

/// The longest excerpt of a line in a match, in bytes of UTF-8.
pub const TEXT_BYTES_MAX: usize = 1024;

/// The longest line a search holds in memory, in bytes; a file with a longer one is skipped from
/// that line on.
pub const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The most memory one compiled pattern may take, in bytes; its lazy automaton may take as much
/// again.
pub const REGEX_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How deep the groups of a pattern may nest.
pub const REGEX_NEST_MAX: u32 = 128;

/// How deep below its start a walk descends, in directories; deeper ones are counted as skipped.
pub const DEPTH_MAX: usize = 256;

/// The most bytes of one ignore file that are read; what follows is not looked at.
pub const IGNORE_FILE_BYTES_MAX: u64 = 256 * 1024;

/// How far from where it says a hunk of a patch may be found, in lines.
pub const HUNK_OFFSET_LINES_MAX: usize = 1000;

/// The longest file that a patch may change, in bytes.
pub const PATCHED_FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The most listings and searches that one connection has open as streams. Each has a thread.
pub const STREAMS_PER_CONNECTION_MAX: usize = 16;

/// The most listings and searches that are open as streams on one server: half of the threads that
/// tokio has for blocking work.
pub const STREAMS_MAX: usize = 256;

/// The most streams of `fs.watch` over one workspace.
pub const WATCHES_MAX: u64 = 32;

/// The most directories that one stream of `fs.watch` watches.
pub const WATCHED_DIRECTORIES_MAX: usize = 100_000;

/// The most changes that wait for the reader of `fs.watch`; more are dropped, and it is told to
/// list again.
pub const WATCH_CHANGES_AHEAD: usize = 4096;

/// The longest file that `fs.write.stream` takes, in bytes: it is put together in memory.
pub const WRITE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The most bytes that all calls of `fs.write.stream` on one server hold together.
pub const WRITE_STREAMS_BYTES_MAX: usize = 2 * WRITE_BYTES_MAX;
