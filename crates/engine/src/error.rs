//! What can go wrong in a workspace call: one variant, one sentence, one class.

use std::io;

use crate::types::EntryKind;

/// Why a workspace call was refused or failed.
///
/// Each message is one sentence that names the path as the request gave it, relative to the root,
/// and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkspaceError {
    /// Nothing has this name.
    #[error("{path:?} does not exist in the workspace: list its directory to see what does")]
    NotFound {
        /// The path, relative to the root.
        path: String,
    },
    /// The path leads out of the root directory.
    #[error(
        "{path:?} leads outside the workspace: name a file below its root, relative to the root"
    )]
    OutsideRoot {
        /// The path as it was given.
        path: String,
    },
    /// A regular file was needed.
    #[error(
        "{path:?} is {}, not a regular file: {}",
        kind.article_noun(),
        if *kind == EntryKind::Directory { "list it instead" } else { "it cannot be read" }
    )]
    NotAFile {
        /// The path, relative to the root.
        path: String,
        /// What it is.
        kind: EntryKind,
    },
    /// A directory was needed, either at the path or on the way to it.
    #[error("{path:?} is not a directory, or passes through a file: name a directory")]
    NotADirectory {
        /// The path, relative to the root.
        path: String,
    },
    /// The file system refuses access to the user that runs the engine.
    #[error("{path:?} may not be read by the engine's user: change its permissions")]
    PermissionDenied {
        /// The path, relative to the root.
        path: String,
    },
    /// The path cannot be a path.
    #[error("{path:?} is not a valid path, because it {problem}")]
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
        "{path:?} has {total_bytes} bytes, so it cannot be read from byte {offset_bytes}: \
         start at or before its end"
    )]
    OffsetPastEnd {
        /// The path, relative to the root.
        path: String,
        /// Where the read was to start, in bytes.
        offset_bytes: u64,
        /// The length of the file, in bytes.
        total_bytes: u64,
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
    #[error("{path:?} could not be read: {source}")]
    Io {
        /// The path, relative to the root.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
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
            Self::NotFound { .. } => ErrorClass::NotFound,
            Self::OutsideRoot { .. } | Self::PermissionDenied { .. } => {
                ErrorClass::PermissionDenied
            }
            Self::NotAFile { .. } | Self::NotADirectory { .. } | Self::ReplyTooSmall { .. } => {
                ErrorClass::FailedPrecondition
            }
            Self::InvalidPath { .. } | Self::BadPattern { .. } | Self::BadCursor => {
                ErrorClass::InvalidArgument
            }
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
                Self::InvalidPath { path, problem: "has a name that is too long" }
            }
            _ => Self::Io { path, source },
        }
    }

    /// Whether a walk may pass over the file or directory that gave this error: it is private, or
    /// it went or changed since its directory was read. Anything else (no file descriptors left, a
    /// failing disk) ends the call, so that a short answer is never taken for a full one.
    pub(crate) fn is_local(&self) -> bool {
        !matches!(self, Self::Io { .. } | Self::Cancelled)
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
    }
}
