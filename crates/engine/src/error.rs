//! What can go wrong in a workspace call: one variant, one sentence, one class.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

use crate::path::readable;
use crate::types::EntryKind;

/// Why a workspace call was refused or failed.
///
/// Each message is one sentence that names the path as the request gave it, relative to the root,
/// and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkspaceError {
    /// The root of the workspace was removed.
    #[error("the served directory was removed: start the server again on one that exists")]
    RootRemoved,
    /// Nothing has this name.
    #[error(
        "{at} does not exist in the workspace: list its directory to see what does",
        at = shown(path)
    )]
    NotFound {
        /// The path, relative to the root.
        path: String,
    },
    /// The path leads out of the root directory.
    #[error(
        "{at} leads outside the workspace: name a file below its root, relative to the root",
        at = shown(path)
    )]
    OutsideRoot {
        /// The path as it was given.
        path: String,
    },
    /// A regular file was needed.
    #[error(
        "{at} is {}, not a regular file: {}",
        kind.article_noun(),
        if *kind == EntryKind::Directory { "list it instead" } else { "it cannot be read" },
        at = shown(path)
    )]
    NotAFile {
        /// The path, relative to the root.
        path: String,
        /// What it is.
        kind: EntryKind,
    },
    /// A regular file or nothing was needed, where a file is to be written.
    #[error(
        "{at} is {}, and only a regular file can be written: {}",
        kind.article_noun(),
        if *kind == EntryKind::Directory { "name a file in it" } else { "choose another name" },
        at = shown(path)
    )]
    NotReplaceable {
        /// The path, relative to the root.
        path: String,
        /// What it is.
        kind: EntryKind,
    },
    /// Something else than a directory is on the way to the path.
    #[error(
        "{file_at} is no directory, so nothing lies below it: name {file_at} itself, or a path \
         that leads through directories",
        file_at = shown(file)
    )]
    BelowFile {
        /// The path, relative to the root.
        path: String,
        /// What is no directory, relative to the root.
        file: String,
    },
    /// The directory of a file that is to be written is missing.
    #[error(
        "the directory {at} does not exist: make it, or write with `create_directories`",
        at = shown(path)
    )]
    NoDirectory {
        /// The directory, relative to the root.
        path: String,
    },
    /// A directory was needed.
    #[error("{at} is not a directory: name a directory", at = shown(path))]
    NotADirectory {
        /// The path, relative to the root.
        path: String,
    },
    /// The file system refuses access to the user that runs the engine.
    #[error(
        "{at} may not be read or changed by the engine's user: change its permissions",
        at = shown(path)
    )]
    PermissionDenied {
        /// The path, relative to the root.
        path: String,
    },
    /// The path cannot be a path.
    #[error("{at} is not a valid path, because it {problem}", at = shown(path))]
    InvalidPath {
        /// The path as it was given, cut to a readable length.
        path: String,
        /// What is wrong with it, as the end of a sentence.
        problem: &'static str,
    },
    /// The search pattern cannot be used.
    #[error("the search pattern cannot be used: {problem}")]
    BadPattern {
        /// What is wrong with it.
        problem: String,
    },
    /// The cursor was not made by this method for this request.
    #[error(
        "the cursor was not returned for this request: repeat the request unchanged with the \
         `next` of its last reply, or start again without a cursor"
    )]
    BadCursor,
    /// The read starts behind the end of the file.
    #[error(
        "{at} has {total_bytes} bytes, so it cannot be read from byte {offset_bytes}: start at \
         or before its end",
        at = shown(path)
    )]
    OffsetPastEnd {
        /// The path, relative to the root.
        path: String,
        /// Where the read was to start, in bytes.
        offset_bytes: u64,
        /// The length of the file, in bytes.
        total_bytes: u64,
    },
    /// A file or a range is longer than one reply of bytes may be.
    #[error(
        "{len_bytes} bytes of {at} were asked for, and a reply has at most {reply_bytes_max}: \
         read it in ranges, or allow longer messages on both sides",
        at = shown(path)
    )]
    TooLong {
        /// The path, relative to the root.
        path: String,
        /// What was asked for, in bytes.
        len_bytes: u64,
        /// The bound, in bytes.
        reply_bytes_max: usize,
    },
    /// The file grew whenever it was read.
    #[error("{at} grew each time it was read: read it again later, or in ranges", at = shown(path))]
    Unsteady {
        /// The path, relative to the root.
        path: String,
    },
    /// The workspace may not be changed.
    #[error(
        "this workspace is served read-only: start the server with `--writable`, as in `lapwing \
         serve --writable`, or open the workspace as writable, to change files"
    )]
    ReadOnly,
    /// The path leads into `.git`, or is it: git runs programs that are named there.
    #[error("{at} is part of `.git`, which is never written: let git change it", at = shown(path))]
    PartOfGit {
        /// The path, relative to the root.
        path: String,
    },
    /// The file is there and was to be created.
    #[error(
        "{at} exists already: choose another name, or write with the `mode` \"any\" or \
         \"replace\"",
        at = shown(path)
    )]
    Exists {
        /// The path, relative to the root.
        path: String,
    },
    /// The file is not what the caller took it for.
    #[error(
        "{at} was changed by someone else: read it again, and repeat the change on that",
        at = shown(path)
    )]
    Changed {
        /// The path, relative to the root.
        path: String,
        /// The SHA-256 of what is there now, in hexadecimal; `None` when it was not looked at.
        sha256: Option<String>,
    },
    /// A symlink that leads nowhere stands where a file is to be written.
    #[error("{at} is a symbolic link that leads nowhere: name the file itself", at = shown(path))]
    DanglingLink {
        /// The path, relative to the root.
        path: String,
    },
    /// A request contradicts itself, or has a field that cannot be.
    #[error("the request cannot be carried out: {problem}")]
    BadRequest {
        /// What is wrong with it.
        problem: String,
    },
    /// The text is not a unified diff.
    #[error("line {line} of the patch {problem}")]
    BadPatch {
        /// The line of the patch, from 1.
        line: usize,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
    /// A hunk does not fit the file. No file was changed.
    #[error("{0}; no file was changed")]
    HunkFailed(Box<HunkFailure>),
    /// A patch makes a file that is there. No file was changed.
    #[error(
        "the patch makes {at}, which exists already; no file was changed: make the patch \
         against what is there",
        at = shown(path)
    )]
    MakesExisting {
        /// The path, relative to the root.
        path: String,
    },
    /// A patch removes a file and does not say all that is in it. No file was changed.
    #[error(
        "the patch removes {at}, but the file has more lines than the patch says; no file was \
         changed: make the patch again",
        at = shown(path)
    )]
    NotEmptied {
        /// The path, relative to the root.
        path: String,
    },
    /// A patch removes what is a symlink. No file was changed.
    #[error(
        "the patch removes {at}, which is a symbolic link; no file was changed: name the file \
         that it leads to",
        at = shown(path)
    )]
    RemovesLink {
        /// The path, relative to the root.
        path: String,
    },
    /// The machine has no watch left, or the workspace has as many as it may.
    #[error("{at} cannot be watched: {problem}", at = shown(path))]
    NoWatch {
        /// The path, relative to the root.
        path: String,
        /// What is used up, and what to do.
        problem: String,
    },
    /// What was watched is not there any more.
    #[error(
        "{at} was removed or moved away while it was watched: watch what is there now",
        at = shown(path)
    )]
    WatchedRemoved {
        /// The path, relative to the root.
        path: String,
    },
    /// The operating system failed while a file was written. The file is as it was.
    #[error("{at} could not be written and is as it was: {source}", at = shown(path))]
    WriteFailed {
        /// The path, relative to the root.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Not even one item fits the reply.
    #[error(
        "a reply of at most {reply_bytes_max} bytes cannot hold even one item of this call: \
         allow larger replies"
    )]
    ReplyTooSmall {
        /// The bound that was given, in bytes.
        reply_bytes_max: usize,
    },
    /// The caller cancelled the call.
    #[error("the call was cancelled by its caller: call again if its result is still wanted")]
    Cancelled,
    /// The operating system failed in another way.
    #[error("{at} could not be read: {source}", at = shown(path))]
    Io {
        /// The path, relative to the root.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A path as messages show it: quoted, and no longer than can be read.
fn shown(path: &str) -> String {
    const CHARS_MAX: usize = 256;
    format!("{:?}", readable(path, CHARS_MAX))
}

/// Which hunk of a patch does not fit, and why. Goes as JSON in the details of the call's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HunkFailure {
    /// The file, relative to the root.
    pub path: String,
    /// Which hunk of this file, from 1.
    pub hunk: usize,
    /// The line of the patch at which the hunk begins, from 1.
    pub patch_line: usize,
    /// The first line of the file that differs where the hunk says it belongs, from 1; of a hunk that only adds lines
    /// the one behind which they go.
    pub line: usize,
    /// What the patch says is there, without its newline unless the newlines alone differ, cut to a
    /// readable length. Empty of a hunk that only adds.
    pub expected: String,
    /// What is there, likewise; absent behind the end of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// Of a hunk that only adds: how many lines the file has, which are fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_lines: Option<usize>,
}

impl fmt::Display for HunkFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, hunk, patch_line, line, expected, found, file_lines } = self;
        write!(f, "hunk {hunk} of {path:?} (line {patch_line} of the patch) does not fit: ")?;
        if let Some(lines) = file_lines {
            return write!(f, "it goes behind line {line}, and the file has {lines}");
        }
        let (bare, is_ended) = match expected.strip_suffix('\n') {
            Some(bare) => (bare, true),
            None => (expected.as_str(), false),
        };
        write!(f, "line {line} of the file should be {bare:?} ")?;
        match found {
            Some(_) if is_ended => f.write_str("with a newline, and has none"),
            Some(found) if found.strip_suffix('\n') == Some(bare) => {
                f.write_str("without a newline, and has one")
            }
            Some(found) => write!(f, "and is {found:?}"),
            None => f.write_str("and is behind the end of the file"),
        }
    }
}

/// The kinds of error that a caller acts on differently; each maps to one gRPC code of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorClass {
    /// What was named does not exist.
    NotFound,
    /// It exists or may exist, but is out of bounds for the caller.
    PermissionDenied,
    /// The request is wrong whatever the state of the workspace is.
    InvalidArgument,
    /// The request starts behind the end of a file.
    OutOfRange,
    /// What was to be created is there.
    AlreadyExists,
    /// Others changed what the request is about: read again and repeat.
    Aborted,
    /// Something that is bounded is used up: length of a message, watches, disk.
    ResourceExhausted,
    /// The request does not fit what is there: not a file, not a directory, too small a reply.
    FailedPrecondition,
    /// The caller cancelled.
    Cancelled,
    /// The machine failed.
    Internal,
}

impl WorkspaceError {
    /// The class of this error, for a status code.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::RootRemoved
            | Self::NotFound { .. }
            | Self::NoDirectory { .. }
            | Self::WatchedRemoved { .. } => ErrorClass::NotFound,
            Self::OutsideRoot { .. }
            | Self::PermissionDenied { .. }
            | Self::ReadOnly
            | Self::PartOfGit { .. } => ErrorClass::PermissionDenied,
            Self::NotAFile { .. }
            | Self::NotReplaceable { .. }
            | Self::NotADirectory { .. }
            | Self::BelowFile { .. }
            | Self::ReplyTooSmall { .. }
            | Self::DanglingLink { .. }
            | Self::HunkFailed(_)
            | Self::NotEmptied { .. }
            | Self::RemovesLink { .. } => ErrorClass::FailedPrecondition,
            Self::InvalidPath { .. }
            | Self::BadPattern { .. }
            | Self::BadCursor
            | Self::BadRequest { .. }
            | Self::BadPatch { .. } => ErrorClass::InvalidArgument,
            Self::Exists { .. } | Self::MakesExisting { .. } => ErrorClass::AlreadyExists,
            Self::Changed { .. } | Self::Unsteady { .. } => ErrorClass::Aborted,
            Self::TooLong { .. } | Self::NoWatch { .. } => ErrorClass::ResourceExhausted,
            Self::WriteFailed { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    ErrorClass::ResourceExhausted
                }
                _ => ErrorClass::Internal,
            },
            Self::OffsetPastEnd { .. } => ErrorClass::OutOfRange,
            Self::Cancelled => ErrorClass::Cancelled,
            Self::Io { .. } => ErrorClass::Internal,
        }
    }

    /// Names the path of a failed system call and sorts the failure.
    pub(crate) fn from_io(path: &str, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            io::ErrorKind::NotADirectory => Self::NotADirectory { path },
            io::ErrorKind::IsADirectory => Self::NotAFile { path, kind: EntryKind::Directory },
            io::ErrorKind::CrossesDevices => Self::OutsideRoot { path },
            // cap-std reports an escape as `PermissionDenied` without a system error number.
            io::ErrorKind::PermissionDenied if source.raw_os_error().is_none() => {
                Self::OutsideRoot { path }
            }
            io::ErrorKind::PermissionDenied => Self::PermissionDenied { path },
            io::ErrorKind::InvalidFilename => {
                Self::InvalidPath { path, problem: "has a name that is too long: shorten it" }
            }
            _ => Self::Io { path, source },
        }
    }

    /// As [`from_io`](Self::from_io), of a call that writes.
    pub(crate) fn from_write(path: &str, source: io::Error) -> Self {
        match (source.kind(), Self::from_io(path, source)) {
            (io::ErrorKind::AlreadyExists, _) => Self::Exists { path: path.to_owned() },
            (io::ErrorKind::ReadOnlyFilesystem, _) => {
                Self::PermissionDenied { path: path.to_owned() }
            }
            (_, Self::Io { path, source }) => Self::WriteFailed { path, source },
            (_, Self::NotAFile { path, kind }) => Self::NotReplaceable { path, kind },
            (_, sorted) => sorted,
        }
    }

    /// Whether a walk may pass over the file or directory that gave this error: it is private, or
    /// it went or changed since its directory was read. Anything else (no file descriptors left, a
    /// failing disk) ends the call, so that a short answer is never taken for a full one.
    pub(crate) fn is_local(&self) -> bool {
        !matches!(
            self,
            Self::Io { .. } | Self::Cancelled | Self::NoWatch { .. } | Self::RootRemoved
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_are_sorted() {
        let class = |source| WorkspaceError::from_io("a", source).class();
        assert_eq!(class(io::Error::from_raw_os_error(2)), ErrorClass::NotFound);
        assert_eq!(class(io::Error::from_raw_os_error(13)), ErrorClass::PermissionDenied);
        assert_eq!(class(io::Error::from_raw_os_error(20)), ErrorClass::FailedPrecondition);
        assert_eq!(class(io::Error::from_raw_os_error(24)), ErrorClass::Internal);
        assert!(matches!(
            WorkspaceError::from_io("a", io::Error::from_raw_os_error(13)),
            WorkspaceError::PermissionDenied { .. }
        ));
        assert!(!WorkspaceError::from_io("a", io::Error::from_raw_os_error(24)).is_local());
    }

    #[test]
    fn messages_are_one_line_and_escape_the_path() {
        let error = WorkspaceError::NotFound { path: "a\nb\u{1b}[31m".to_owned() };
        let text = error.to_string();
        assert!(!text.contains('\n') && !text.contains('\u{1b}'), "{text}");
        let error = WorkspaceError::NotAFile { path: "p".into(), kind: EntryKind::Directory };
        assert_eq!(error.to_string(), "\"p\" is a directory, not a regular file: list it instead");
        let error = WorkspaceError::from_write("p", io::Error::from_raw_os_error(21));
        let said =
            "\"p\" is a directory, and only a regular file can be written: name a file in it";
        assert_eq!(
            (error.to_string().as_str(), error.class()),
            (said, ErrorClass::FailedPrecondition)
        );
    }
}
