//! What can go wrong, one enum for each operation.

use std::io;
use std::path::PathBuf;

pub use lapwing_proto::{Code, PeerMisbehaved, Status, WireError};

use crate::client::Until;
use crate::platform::{SOCKET_PATH_BYTES, own_uid};

/// Why an endpoint's path could not be worked out.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The name cannot be a file name.
    #[error(
        "'{0}' is no endpoint name: use letters, digits, '_', '-' and, not first, '.', or give a path"
    )]
    BadName(String),
    /// The directory for sockets is not private, or no directory.
    #[error(
        "{path}{} must belong to you and be a directory with mode 0700, but {}; {}",
        below(*variable),
        match *is_directory {
            false => "it is a file or a link".to_owned(),
            true if *uid == own_uid() => format!("its mode is {mode:04o}"),
            true => format!("it belongs to uid {uid} with mode {mode:04o}"),
        },
        match *is_directory && *uid == own_uid() {
            true => elsewhere(&format!("`chmod 700 {}`", path.display()), *variable),
            false => elsewhere("change it", *variable),
        }
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
        /// Whether it is a directory at all; a link to one is not.
        is_directory: bool,
        /// The environment variable that it was taken from, if it was.
        variable: Option<&'static str>,
    },
    /// The directory could not be made or looked at.
    #[error(
        "the directory {path}{} for sockets could not be made: {source}; {}",
        below(*variable),
        elsewhere("make the directory that it lies in", *variable)
    )]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
        /// The environment variable that it was taken from, if it was.
        variable: Option<&'static str>,
    },
}

fn below(variable: Option<&str>) -> String {
    variable.map(|variable| format!(" (below {variable})")).unwrap_or_default()
}

fn elsewhere(first: &str, variable: Option<&str>) -> String {
    match variable {
        Some(variable) => format!(
            "{first}, set {variable} to a directory of yours, or give a socket path elsewhere"
        ),
        None => format!("{first}, or give a socket path elsewhere"),
    }
}

/// Why a server could not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path does not fit a socket address.
    #[error(
        "the socket path {path} has {length} bytes and may have {SOCKET_PATH_BYTES}; use a shorter one"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length, in bytes.
        length: usize,
    },
    /// A live server listens there.
    #[error("another server is listening on {path}; stop it or use another path")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// A live server holds the lock of this path, and its socket was removed.
    #[error(
        "the server {}that holds {lock} lives, but its socket {path} was removed; stop that server or use another path",
        process.map(|process| format!("(process {process}) ")).unwrap_or_default()
    )]
    SocketRemoved {
        /// The path.
        path: PathBuf,
        /// The lock.
        lock: PathBuf,
        /// The server's process, where the system says it.
        process: Option<u32>,
    },
    /// Something that is no server's socket stands there.
    #[error("{path} exists and is not a stream socket; move it away or use another path")]
    FileInTheWay {
        /// The path.
        path: PathBuf,
    },
    /// The directory is missing.
    #[error("there is no directory {path}; make it or use another path")]
    NoDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// No right to make the socket or its lock there.
    #[error("no permission to listen on {path}; use a path in a directory of yours")]
    NotPermitted {
        /// The path.
        path: PathBuf,
    },
    /// The endpoint's directory is not fit.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Anything else the system said.
    #[error("could not listen on {path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a client could not connect.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing stands at the path.
    #[error("nothing listens on {path}: there is no such file; start the server or check the path")]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// The path does not fit a socket address.
    #[error(
        "the socket path {path} has {length} bytes and may have {SOCKET_PATH_BYTES}; use a shorter one"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length, in bytes.
        length: usize,
    },
    /// A socket whose server is gone.
    #[error("nothing listens on {path}: its server is gone; start it again")]
    Stale {
        /// The path.
        path: PathBuf,
    },
    /// Something that is no socket.
    #[error("{path} is not a socket but {found}; give the path of a server's socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What it is, with its article.
        found: &'static str,
    },
    /// A socket that takes no connections.
    #[error("{path} is not a stream socket; give the path of a server's socket")]
    NotAStream {
        /// The path.
        path: PathBuf,
    },
    /// The socket's modes keep this user out.
    #[error(
        "no permission to connect to {path}: its modes, or those of a directory on the way, keep you out; ask its owner or check the path"
    )]
    NotPermitted {
        /// The path.
        path: PathBuf,
    },
    /// The server said no, and why.
    #[error("the server refused the connection: {sentence}")]
    Rejected {
        /// Which of the protocol's errors, if this version knows it.
        error: Option<WireError>,
        /// The server's sentence.
        sentence: String,
    },
    /// The server did not answer within the handshake's time.
    #[error(
        "the server did not answer the handshake within {} s: it is busy, hangs or is no Lapwing server; try again, or restart it",
        limit.as_secs_f64()
    )]
    HandshakeTimeout {
        /// The limit.
        limit: std::time::Duration,
    },
    /// The server hung up in the middle of the handshake.
    #[error(
        "the server closed the connection during the handshake: it is shutting down, or is no Lapwing server; try again, or check the path"
    )]
    Closed,
    /// The server broke the protocol.
    #[error("what listens there is no Lapwing server, or a faulty one; check the path: {0}")]
    Misbehaved(#[from] PeerMisbehaved),
    /// A segment or doorbell could not be made, or the server's is not fit.
    #[error("shared memory could not be set up: {0}")]
    Segment(#[from] lapwing_shm::SegmentError),
    /// The directory for sockets, which the path lies in, is not this user's alone.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Anything else the system said.
    #[error("could not connect: {0}")]
    Io(#[from] io::Error),
}

/// Whether a peer that vanished may have executed a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivered {
    /// It never saw it: safe to repeat.
    Never,
    /// It may have.
    Maybe,
}

/// Why a call brought no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The server answered with an error.
    #[error(transparent)]
    Status(#[from] Status),
    /// The connection ended.
    #[error("{}", disconnected(*.delivered, .reason))]
    Disconnected {
        /// Whether the server may have executed the call.
        delivered: Delivered,
        /// Why the connection ended.
        reason: EndReason,
    },
    /// The call's time was over before its reply had come, as this side's clock says or the server's answer. It was
    /// cancelled at the server.
    #[error("the call's time was over before its reply came")]
    DeadlineExceeded,
    /// The server has ended the stream, or is gone, and takes no more items; the call's reply says how it ended.
    #[error("the stream is over and takes no more items")]
    StreamEnded,
    /// There is no room now, and the call was not to wait for any.
    #[error("the connection has no room for another call now; try again later")]
    Full,
    /// What was to be sent cannot be written, or what has come cannot be read as the method's type.
    #[error("{}: {source}", part.failed(method))]
    Codec {
        /// The method's name.
        method: &'static str,
        /// What of the call it is.
        part: Part,
        /// What is wrong, and where.
        source: crate::codec::CodecError,
    },
    /// The metadata is longer than 8 KiB, or has an empty key.
    #[error("{0}")]
    BadMetadata(String),
    /// A call in JSON to a server that is too old for such calls.
    #[error(
        "the server is too old for calls in JSON; update it, or call the method in its own codec"
    )]
    NoJson,
    /// The message is longer than this connection takes.
    #[error(
        "a message of {length} bytes is longer than this connection takes ({max}); send it in parts"
    )]
    TooLarge {
        /// Its length, in bytes.
        length: usize,
        /// The most, in bytes.
        max: usize,
    },
    /// No such kind: below 0x0100 they belong to the connection.
    #[error("kind {0:#06x} is not an application's: use 0x0100 to 0xFFFF")]
    BadKind(u16),
    /// The server broke the protocol, and the connection was closed for it.
    #[error(transparent)]
    Protocol(#[from] PeerMisbehaved),
}

/// What of a call a [`CallError::Codec`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Part {
    /// Its request.
    Request,
    /// Its reply.
    Reply,
    /// A one-way message.
    Message,
    /// An item that was to be sent. The first is 1, and one that was not sent does not count.
    ItemSent(u64),
    /// An item that has come. The first is 1.
    ItemReceived(u64),
}

impl Part {
    fn failed(self, method: &str) -> String {
        match self {
            Part::Request => format!("the request for {method} cannot be written"),
            Part::Reply => format!("the reply of {method} cannot be read"),
            Part::Message => format!("the message for {method} cannot be written"),
            Part::ItemSent(number) => format!("item {number} for {method} cannot be written"),
            Part::ItemReceived(number) => format!("item {number} of {method} cannot be read"),
        }
    }
}

fn disconnected(delivered: Delivered, reason: &EndReason) -> String {
    let executed = match delivered {
        Delivered::Never => "the call was not sent and may be repeated",
        Delivered::Maybe => "the server may have executed the call: look before you repeat it",
    };
    format!("{reason}; {executed}")
}

/// Why a connection ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EndReason {
    /// This side disconnected.
    #[error("the connection was closed by this side")]
    ClosedHere,
    /// The server said goodbye and closed.
    #[error("the server said goodbye")]
    Goodbye,
    /// The server vanished.
    #[error("the server is gone")]
    Vanished,
    /// The server closed the connection and said what this side did wrong.
    #[error("the server cut the connection: {0}")]
    Accused(String),
    /// The server broke the protocol.
    #[error("{0}")]
    Misbehaved(PeerMisbehaved),
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Failed(String),
}

impl EndReason {
    pub(crate) fn error(&self, delivered: Delivered) -> CallError {
        match self {
            EndReason::Misbehaved(peer) => CallError::Protocol(*peer),
            reason => CallError::Disconnected { delivered, reason: reason.clone() },
        }
    }
}

/// Of a call with a deadline it is one answer that its time was over, whichever side found out first.
pub(crate) fn timed<T>(until: Until, done: Result<T, CallError>) -> Result<T, CallError> {
    match done {
        Err(CallError::Status(status))
            if status.code == Code::DeadlineExceeded && until != Until::Never =>
        {
            Err(CallError::DeadlineExceeded)
        }
        done => done,
    }
}
