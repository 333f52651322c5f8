//! `lapwing serve`.

use std::fs;
use std::future::pending;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use lapwing::{BindError, IpcServer};
use lapwing_engine::{Workspace, WorkspaceError, add_routes};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

use crate::args::{Endpoint, SpinPolicy};
use crate::exit::InputError;
use crate::output::say;

/// Serve the files below a directory to an editor: list, read, search, watch, and change if you say so.
#[derive(clap::Args, Debug)]
#[command(after_help = "EXAMPLES:
  lapwing serve                               the current directory
  lapwing serve --root ~/project --name project
  lapwing serve --root ~/project --writable   clients may also change files
  lapwing serve --socket ~/.engine.sock --spin never

SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a closed terminal, but not under nohup) let running calls \
finish, for at most 10 s, and then remove the socket; a second one ends the server at once. A \
socket that a killed server left behind is taken over.")]
pub(crate) struct Args {
    /// The directory to serve. Nothing outside it can be reached.
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// Let clients change the files: fs.write and fs.apply_patch. Without it both are refused.
    #[arg(long)]
    writable: bool,
    #[command(flatten)]
    endpoint: Endpoint,
    /// How to wait for requests.
    #[arg(long, value_enum, value_name = "POLICY", default_value = "adaptive")]
    spin: SpinPolicy,
    /// Threads that serve connections. Work on files has threads of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .with_writer(io::stderr)
        .with_target(false)
        .compact()
        .init();
    let workspace = match (open(&args.root)?, args.writable) {
        (workspace, true) => workspace.writable(),
        (workspace, false) => workspace,
    };
    let socket = args.endpoint.path().map_err(BindError::Endpoint)?;
    let runtime = build_runtime(args.threads).context("could not start the runtime")?;
    let served = runtime.block_on(serve(args, &socket, workspace));
    // Blocking work that nobody waits for any more must not delay the end; the server's tasks, and
    // with them the socket, go here.
    runtime.shutdown_background();
    served
}

/// Opens the directory that is to be served.
pub(crate) fn open(root: &Path) -> anyhow::Result<Workspace> {
    Ok(Workspace::open(root).map_err(|error| {
        // The engine's own sentences are about paths below a root.
        let why = match error {
            WorkspaceError::NotFound { .. } => {
                "there is no such directory; make it, or name another".to_owned()
            }
            WorkspaceError::NotADirectory { .. } => "it is not a directory; name one".to_owned(),
            WorkspaceError::PermissionDenied { .. } => {
                "you may not read it; change its permissions, or name another".to_owned()
            }
            WorkspaceError::Io { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        InputError(format!("cannot serve the directory {}: {why}", root.display()))
    })?)
}

fn build_runtime(threads: u16) -> io::Result<Runtime> {
    // A runtime of one thread keeps the stacks and queues of others out of memory.
    let mut builder = match threads {
        1 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads.into());
    }
    builder.enable_all().build()
}

async fn serve(args: &Args, socket: &Path, workspace: Workspace) -> anyhow::Result<()> {
    // Before the socket appears: who sees it may send a signal.
    let mut stops = Stops::watch().context("could not watch for signals")?;
    let builder = IpcServer::builder().spin(args.spin.into()).bind(socket)?;
    let server = add_routes(builder, workspace.clone()).serve()?;
    let root = args.root.canonicalize().unwrap_or_else(|_| args.root.clone());
    let writable = if args.writable { ", writable," } else { "" };
    say(&format!("serving {}{writable} on {}", root.display(), server.path().display()));
    stops.next().await;
    // A watch ends when its client ends it, and not because it is finished.
    workspace.end_watches();
    say("finishing running calls; another signal ends at once");
    tokio::select! {
        drained = server.shutdown() => match drained {
            true => Ok(()),
            false => bail!("some calls had not finished in time and were cut"),
        },
        () = stops.next() => bail!("stopped before running calls had finished"),
    }
}

/// The signals that ask a process to stop.
pub(crate) struct Stops {
    terminate: Signal,
    interrupt: Signal,
    /// `None` where it was ignored from the start, as under nohup: then it asks for nothing.
    hang_up: Option<Signal>,
}

impl Stops {
    /// Within a runtime.
    pub(crate) fn watch() -> io::Result<Stops> {
        let hang_up = if ignores_hang_up() { None } else { Some(signal(SignalKind::hangup())?) };
        let terminate = signal(SignalKind::terminate())?;
        Ok(Stops { terminate, interrupt: signal(SignalKind::interrupt())?, hang_up })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        let Stops { terminate, interrupt, hang_up } = self;
        let hang_up = async {
            match hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => None,
            }
        };
        let came = tokio::select! {
            Some(()) = terminate.recv() => Some(()),
            Some(()) = interrupt.recv() => Some(()),
            Some(()) = hang_up => Some(()),
            else => None,
        };
        if came.is_none() {
            // No signal can come any more.
            pending::<()>().await;
        }
    }
}

/// Waits until the process at the other end of this socket has closed it, or is gone. What that one sends wakes nobody here.
pub(crate) fn until_hung_up(socket: &UnixStream) {
    // That is told without being asked for.
    while let Err(Errno::INTR) = poll(&mut [PollFd::new(socket, PollFlags::empty())], None) {}
}

/// Whether this process was started with SIGHUP ignored.
fn ignores_hang_up() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The first bit is that of signal 1.
    mask.is_some_and(|mask| mask & 1 != 0)
}
