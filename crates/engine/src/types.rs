//! The requests and replies, as they appear in JSON.
//!
//! A request with a field that is not listed here is refused with the field's name. What is written on the types
//! and their fields is also what `describe` tells, in any language: it names no constant of this crate, and a
//! test compares its numbers with `limits.rs`.

use std::num::NonZeroU32;

use lapwing::schemars::{self, JsonSchema};
use serde::{Deserialize, Serialize};

/// Asks for the entries of a directory, or of the whole tree below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ListRequest {
    /// The directory, relative to the root; `"."` by default.
    pub path: String,
    /// Whether to list what is below its directories too; `true` by default.
    pub recursive: bool,
    /// Whether to list names that begin with a dot; `false` by default. `.git` is left out
    /// wherever a directory above it is listed.
    pub hidden: bool,
    /// In pages, the `next` of the last reply to this request, or nothing to start; in a stream it counts for nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// The most entries in one page, by default as many as fit; a stream has all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<NonZeroU32>,
}

impl Default for ListRequest {
    fn default() -> Self {
        Self { path: ".".to_owned(), recursive: true, hidden: false, cursor: None, limit: None }
    }
}

/// One page of a listing.
///
/// Entries are sorted by the bytes of their names, a directory before what is in it. On a tree that
/// does not change, following `next` yields each entry once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListReply {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Where to go on: pass it as `cursor`. Absent after the last entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How many directories were listed by name but not entered, because they could not be read or
    /// lie more than 256 directories deep. Each is counted on one page only.
    pub skipped_directories: u64,
}

/// A name in the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Entry {
    /// The path relative to the root, with `/` between names.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// The length of a regular file, in bytes; absent for everything else, and when the file went
    /// while it was listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub len_bytes: Option<u64>,
    /// Whether the real path is not UTF-8: `path` then shows replacement characters and cannot be
    /// used to read the file. Absent means `false`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub path_lossy: bool,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; a walk lists it and does not follow it.
    Symlink,
    /// A FIFO, a socket or a device.
    Other,
}

impl EntryKind {
    pub(crate) fn article_noun(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Directory => "a directory",
            Self::Symlink => "a symbolic link",
            Self::Other => "a FIFO, socket or device",
        }
    }
}

/// Asks for a range of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadRequest {
    /// The file, relative to the root. Symlinks are followed as long as they stay inside the root.
    pub path: String,
    /// Where to start, in bytes from the start of the file; 0 by default.
    #[serde(default)]
    pub offset_bytes: u64,
    /// The most bytes to return; by default as many as fit the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub len_bytes: Option<u64>,
}

/// A range of a file.
///
/// It may be shorter than asked for; go on at `offset_bytes + len_bytes` until `end`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadReply {
    /// The path relative to the root, without `.` and `..`.
    pub path: String,
    /// Where the range starts, in bytes.
    pub offset_bytes: u64,
    /// The length of the range in the file, in bytes (not the length of `content`).
    pub len_bytes: u64,
    /// The length of the file when it was read, in bytes.
    pub total_bytes: u64,
    /// How `content` stands for the bytes.
    pub encoding: Encoding,
    /// The bytes.
    pub content: String,
    /// Whether the range reaches the end of the file.
    pub end: bool,
}

/// How bytes are written in a JSON string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Encoding {
    /// The bytes are UTF-8 without NUL, and the string is the text.
    #[serde(rename = "utf-8")]
    Utf8,
    /// The string is base64 with padding (RFC 4648, the standard alphabet).
    #[serde(rename = "base64")]
    Base64,
}

/// Asks for the lines of the tree that match a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    /// The regular expression, in the syntax of the `regex` crate; it matches within one line.
    pub pattern: String,
    /// The file or directory to search, relative to the root; `"."` by default.
    #[serde(default = "dot")]
    pub path: String,
    /// Whether letters match in either case; `false` by default.
    #[serde(default)]
    pub case_insensitive: bool,
    /// Whether `pattern` is plain text and not an expression; `false` by default.
    #[serde(default)]
    pub fixed_strings: bool,
    /// Whether to search names that begin with a dot; `false` by default. `.git` is left out
    /// wherever a directory above it is searched.
    #[serde(default)]
    pub hidden: bool,
    /// The most matches in one page, 200 by default; more than 10000 count as 10000. A stream has
    /// all.
    #[serde(default = "matches_default")]
    pub max_matches: NonZeroU32,
    /// In pages, the `next` of the last reply to this request, or nothing to start; in a stream it counts for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

impl SearchRequest {
    /// A search for `pattern` in the whole tree, with the defaults for all else.
    #[must_use]
    pub fn pattern(pattern: impl Into<String>) -> Self {
        Self {
            pattern: pattern.into(),
            path: dot(),
            case_insensitive: false,
            fixed_strings: false,
            hidden: false,
            max_matches: matches_default(),
            cursor: None,
        }
    }
}

/// One page of matches, in the order of a listing and then of line numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SearchReply {
    /// The matches: at most one a line.
    pub matches: Vec<Match>,
    /// Where to go on: pass it as `cursor`. Absent after the last match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Whether there are matches after this page: exactly when `next` is there.
    pub truncated: bool,
    /// How many files this call searched.
    pub files_searched: u64,
    /// How many files this call did not search, or not to their end: binary, not readable, or with
    /// a line longer than 16 MiB.
    pub files_skipped: u64,
    /// How many directories this call could not enter.
    pub skipped_directories: u64,
}

/// A line that matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Match {
    /// The file, relative to the root, with `/` between names.
    pub path: String,
    /// The line, from 1.
    #[schemars(range(min = 1))]
    pub line_number: u64,
    /// Where in the line the first match begins, in bytes, from 1.
    #[schemars(range(min = 1))]
    pub column: u64,
    /// The length of the first match, in bytes of the line.
    pub match_len_bytes: u64,
    /// The line without its terminator; what is not UTF-8 is replaced. A long line is cut to at
    /// most 1024 bytes around the start of the match.
    pub text: String,
    /// Where in the line `text` begins, in bytes, from 1; 1 unless the line is cut.
    #[schemars(range(min = 1))]
    pub text_column: u64,
    /// Whether `text` is not the whole line. Absent means `false`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub text_cut: bool,
    /// Whether the real path is not UTF-8, as in an entry of a listing. Absent means `false`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub path_lossy: bool,
}

/// Asks for a file to be written as a whole. The content is the payload of the call, and this the
/// JSON of its metadata pair `request`. A file that is longer than a message goes by `fs.write.stream`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteRequest {
    /// The file, relative to the root. Of a symlink that stays inside the root, what it names is
    /// written. `.git` and what is in it are never written.
    pub path: String,
    /// What may be there before; anything by default.
    #[serde(default)]
    pub mode: WriteMode,
    /// The SHA-256 of what the caller takes to be there, as 64 hexadecimal digits: if something
    /// else is there, nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_sha256: Option<String>,
    /// Whether to make the directories on the way to the file; `false` by default.
    #[serde(default)]
    pub create_directories: bool,
    /// Whether the reply waits until the file's name, too, is on the disk; `false` by default. The
    /// content always is before the name stands for it.
    #[serde(default)]
    pub durable: bool,
}

impl WriteRequest {
    /// A request to write the file, whatever was there, with the defaults for all else.
    #[must_use]
    pub fn path(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            mode: WriteMode::Any,
            expected_sha256: None,
            create_directories: false,
            durable: false,
        }
    }
}

/// What may be at a path before a file is written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WriteMode {
    /// A file or nothing.
    #[default]
    Any,
    /// Nothing.
    Create,
    /// A file.
    Replace,
}

/// A file was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WriteReply {
    /// The path relative to the root, without `.` and `..`.
    pub path: String,
    /// The length of what was written, in bytes.
    pub len_bytes: u64,
    /// Whether nothing was there before.
    pub created: bool,
    /// The SHA-256 of what was written, in hexadecimal: the next write's `expected_sha256`.
    pub sha256: String,
}

/// Asks for a unified diff to be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchRequest {
    /// The diff, of one or several files; `.git` and what is in it are never patched.
    pub patch: String,
    /// How many leading names to take off the paths of the diff, as `patch -p` does. By default
    /// one where they are `a/…` and `b/…`, as git writes them, and none otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strip: Option<u32>,
    /// Whether to change nothing and only say what would be; `false` by default.
    #[serde(default)]
    pub dry_run: bool,
}

/// A patch was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PatchReply {
    /// What became of each file, in the order of the patch.
    pub files: Vec<PatchedFile>,
}

/// What a patch did to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PatchedFile {
    /// The file, relative to the root.
    pub path: String,
    /// What was done.
    #[schemars(with = "PatchedKind")]
    pub change: ChangeKind,
    /// For each hunk, how many lines behind (or, if negative, before) the place that it says it
    /// was found.
    pub offsets_lines: Vec<i64>,
    /// The SHA-256 of the file's content now, in hexadecimal; absent for one that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// The kinds of change that a patch can make, for its description.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "no value is made of it: its schema is what is wanted")]
enum PatchedKind {
    /// The file was made.
    Created,
    /// Its content is another.
    Modified,
    /// It is gone.
    Removed,
}

/// Asks to be told of changes below a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WatchRequest {
    /// The directory, relative to the root; `"."` by default.
    pub path: String,
    /// Whether to watch what is below its directories too; `true` by default.
    pub recursive: bool,
    /// Whether to tell of names that begin with a dot; `false` by default. `.git` is left out
    /// wherever a directory above it is watched.
    pub hidden: bool,
}

impl Default for WatchRequest {
    fn default() -> Self {
        Self { path: ".".to_owned(), recursive: true, hidden: false }
    }
}

/// One change below a directory that is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// What happened.
    pub change: ChangeKind,
    /// What it happened to, relative to the root; of a rename the name it has now. Absent in
    /// `watching` and `rescan`, which are about the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The name before, of a rename.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whether a real path is not UTF-8, as in an entry of a listing. Absent means `false`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub path_lossy: bool,
}

/// What happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The first item of a watch: from here on every change is told.
    Watching,
    /// The name is there now. It may have been before, if a file that was not told of, hidden or from
    /// elsewhere, was moved over it, as editors do when they save.
    Created,
    /// Content or metadata changed.
    Modified,
    /// The name is gone, and all below it.
    Removed,
    /// It has another name, and so has all below it. What was at that name before is gone, and not
    /// told as removed.
    Renamed,
    /// Changes were lost, or ignore files changed: list again. Later changes are told as before.
    Rescan,
}

fn dot() -> String {
    ".".to_owned()
}

fn matches_default() -> NonZeroU32 {
    NonZeroU32::new(crate::MATCHES_DEFAULT).unwrap_or(NonZeroU32::MIN)
}

// The signature is serde's: `skip_serializing_if` passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !*value
}
