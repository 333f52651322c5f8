//! How the command ends: one sentence on standard error, and an exit code that a script can rely on.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anstream::AutoStream;
use lapwing::{BindError, CallError, Code, ConnectError, EndpointError, ServeError};

use crate::output::{StdoutError, say};

macro_rules! exits {
    ($($code:literal $name:ident $meaning:literal;)+) => {
        /// The exit codes. They are fixed: a new one may be added, none changes its meaning.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Exit {
            $(#[doc = concat!("`", stringify!($code), "`: ", $meaning, ".")] $name = $code,)+
        }

        const TABLE: &[(u8, &str)] = &[$(($code, $meaning)),+];
    };
}

exits! {
    0 Success "success; also when the reader of the output went away";
    1 Failure "a failure that is not listed here";
    2 Usage "the command line is wrong";
    3 NoServer "no server can be reached: nothing listens on the socket, or bad path";
    4 Refused "the server refused the connection, or permissions on the way did";
    5 Status "the server answered the call with an error";
    6 Lost "the connection was lost, or the other side broke the protocol";
    7 Input "the input cannot be used: JSON, a file, a method, a directory";
    8 CannotListen "the socket cannot be made: in use, in the way, bad path, permissions";
    9 Late "the call's time was over before it had ended";
}

/// The end of `lapwing --help`.
pub(crate) fn long_help() -> String {
    let mut help = String::from(
        "EXAMPLES:
  lapwing demo                        an engine and an editor at work
  lapwing serve --root ~/project      serve a directory
  lapwing call fs.list | head -c 300  its first entries
  lapwing call fs.search '{\"pattern\": \"TODO\"}'
  lapwing ping -c 3
  lapwing bench rtt                   calls against the cost of the machine

SOCKETS:
  Without --socket and --name a server and its clients meet at lapwing.sock in \
$XDG_RUNTIME_DIR/lapwing where that variable is an absolute path, else in /run/user/UID/lapwing, \
else in lapwing-UID in the folder for temporary files. Only you can connect.

EXIT CODES:
",
    );
    for (code, meaning) in TABLE {
        let _ = writeln!(help, "  {code}  {meaning}");
    }
    help.truncate(help.trim_end().len());
    help
}

/// A call failed: names the method.
#[derive(Debug, thiserror::Error)]
#[error("{method} failed{}{source}", if matches!(source, CallError::Status(_)) { " with " } else { ": " })]
pub(crate) struct CallFailed {
    pub(crate) method: String,
    pub(crate) source: CallError,
    /// Whether the server says what the method takes.
    pub(crate) is_described: bool,
}

impl CallFailed {
    /// Where to read what the server would have taken.
    fn advice(&self) -> Option<String> {
        let refused = matches!(&self.source, CallError::Status(status) if status.code == Code::InvalidArgument);
        let method = &self.method;
        (refused && self.is_described)
            .then(|| format!(" (`lapwing describe {method}` says what it takes)"))
    }
}

/// The time that a call was given is over.
#[derive(Debug, thiserror::Error)]
#[error("{method} failed: the call's time was over before {missing}; give more with --timeout-ms")]
pub(crate) struct Late {
    pub(crate) method: String,
    /// What had not happened, as the rest of a sentence.
    pub(crate) missing: &'static str,
}

/// Input that cannot be used; the sentence says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InputError(pub(crate) String);

/// Says what went wrong, if anything did, and returns the exit code.
pub(crate) fn report(ended: anyhow::Result<()>) -> Exit {
    let Err(error) = ended else { return Exit::Success };
    if let Some(error) = error.downcast_ref() {
        return report_usage(error);
    }
    let exit = classify(&error);
    if exit != Exit::Success {
        say(&sentence(&error));
    }
    exit
}

/// Prints what clap says of a command line that was not taken: help, the version or a mistake.
fn report_usage(error: &clap::Error) -> Exit {
    if !error.use_stderr() {
        let mut out = AutoStream::auto(io::stdout());
        let written = write!(out, "{}", error.render().ansi()).and_then(|()| out.flush());
        return report(written.map_err(|error| StdoutError(error).into()));
    }
    let text = error.render();
    match text.to_string().strip_prefix("error: ") {
        Some(mistake) => say(mistake.trim_end_matches('\n')),
        None => {
            let text = text.ansi().to_string();
            let _ = AutoStream::auto(io::stderr()).write_all(text.as_bytes());
        }
    }
    Exit::Usage
}

fn classify(error: &anyhow::Error) -> Exit {
    if let Some(StdoutError(cause)) = error.downcast_ref() {
        return if cause.kind() == io::ErrorKind::BrokenPipe {
            Exit::Success
        } else {
            Exit::Failure
        };
    }
    if let Some(error) = error.downcast_ref::<CallFailed>() {
        return of_call(&error.source);
    }
    if error.is::<Late>() {
        return Exit::Late;
    }
    if error.is::<InputError>() {
        return Exit::Input;
    }
    if let Some(error) = error.downcast_ref::<CallError>() {
        return of_call(error);
    }
    if let Some(error) = error.downcast_ref::<ConnectError>() {
        return of_connect(error);
    }
    if let Some(error) = error.downcast_ref::<EndpointError>() {
        return of_endpoint(error);
    }
    match error.downcast_ref::<ServeError>() {
        Some(ServeError::Bind(error)) => of_bind(error),
        Some(_) => Exit::Failure,
        None => error.downcast_ref::<BindError>().map_or(Exit::Failure, of_bind),
    }
}

fn of_call(error: &CallError) -> Exit {
    match error {
        CallError::Status(_) => Exit::Status,
        CallError::Disconnected { .. } | CallError::Protocol(_) => Exit::Lost,
        CallError::TooLarge { .. }
        | CallError::BadKind(_)
        | CallError::BadMetadata(_)
        | CallError::NoJson
        | CallError::Codec { .. } => Exit::Input,
        CallError::DeadlineExceeded => Exit::Late,
        CallError::Full | CallError::StreamEnded => Exit::Failure,
    }
}

fn of_connect(error: &ConnectError) -> Exit {
    match error {
        ConnectError::NotFound { .. }
        | ConnectError::Stale { .. }
        | ConnectError::NotASocket { .. }
        | ConnectError::NotAStream { .. }
        | ConnectError::PathTooLong { .. } => Exit::NoServer,
        ConnectError::NotPermitted { .. } | ConnectError::Rejected { .. } => Exit::Refused,
        ConnectError::HandshakeTimeout { .. }
        | ConnectError::Closed
        | ConnectError::Misbehaved(_) => Exit::Lost,
        ConnectError::Endpoint(error) => of_endpoint(error),
        ConnectError::Segment(_) | ConnectError::Io(_) => Exit::Failure,
    }
}

/// Of a client: it makes no directory.
fn of_endpoint(error: &EndpointError) -> Exit {
    match error {
        EndpointError::BadName(_) => Exit::Usage,
        EndpointError::NotPrivate { .. } | EndpointError::Io { .. } => Exit::Refused,
    }
}

fn of_bind(error: &BindError) -> Exit {
    match error {
        BindError::Endpoint(EndpointError::BadName(_)) => Exit::Usage,
        _ => Exit::CannotListen,
    }
}

/// The error and its causes on one line, and which command helps. A cause that the text names
/// already is not repeated, and control characters, which a server may have sent, do not reach the
/// terminal.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            let _ = write!(text, ": {cause}");
        }
    }
    if let Some(ConnectError::NotFound { .. } | ConnectError::Stale { .. }) = error.downcast_ref() {
        text.push_str(" (`lapwing serve` starts one that serves files)");
    }
    text.extend(error.downcast_ref().and_then(CallFailed::advice));
    crate::output::plain(&text)
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn codes_count_up_from_zero() {
        for (at, (code, meaning)) in TABLE.iter().enumerate() {
            assert_eq!(usize::from(*code), at);
            assert!(long_help().contains(&format!("  {code}  {meaning}")));
        }
    }

    #[test]
    fn broken_pipe_is_success_on_standard_output_alone() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(classify(&StdoutError(pipe()).into()), Exit::Success);
        assert_eq!(classify(&pipe().into()), Exit::Failure);
        let elsewhere = Err::<(), _>(pipe()).context("the other process is gone").unwrap_err();
        assert_eq!(classify(&elsewhere), Exit::Failure);
        assert_eq!(classify(&ConnectError::Io(pipe()).into()), Exit::Failure);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(classify(&StdoutError(full).into()), Exit::Failure);
    }

    #[test]
    fn sentence_names_each_cause_once_and_is_one_plain_line() {
        let cause = io::Error::other("the disk\nis \u{1b}[31mgone");
        let error = anyhow::Error::from(ConnectError::Io(cause)).context("no engine");
        assert_eq!(sentence(&error), r"no engine: could not connect: the disk\nis \u{1b}[31mgone");
    }
}
