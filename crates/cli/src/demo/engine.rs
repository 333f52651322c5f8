//! The engine process: how the editor starts and ends it, and what it does.
//!
//! The two share a socket pair, which is the engine's standard input. The floors are measured over it,
//! and its end is the editor's end: an engine whose editor vanished, however it did, drains, removes its
//! socket and the folder around it, and ends.

use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lapwing::floor::{Floor, pin_to_core};
use lapwing::{IpcServer, methods};
use lapwing_engine::{Workspace, add_routes};
use tokio::runtime;
use tokio::sync::oneshot;

use crate::serve::{self, Stops, until_hung_up};

/// How long the engine may take to end.
const END_BOUND: Duration = Duration::from_secs(15);

/// The engine as the editor has it.
pub(super) struct Engine {
    child: Child,
    /// Gone when the engine is asked to end.
    floor: Option<Floor>,
    socket: PathBuf,
}

/// How the engine ended.
pub(super) struct Ended {
    pub(super) process: ExitStatus,
    /// Whether its socket and folder are gone.
    pub(super) nothing_left: bool,
}

impl Engine {
    pub(super) fn start(root: &Path) -> anyhow::Result<Engine> {
        let (near, far) = UnixStream::pair().context("could not make a socket pair")?;
        let program = std::env::current_exe().context("could not find this program's file")?;
        let mut child = Command::new(program)
            .arg("demo-engine")
            .arg(root)
            .stdin(Stdio::from(OwnedFd::from(far)))
            .stdout(Stdio::piped())
            .spawn()
            .context("could not start the engine process")?;
        let said = child.stdout.take().context("the engine has an output")?;
        // From here on a failure ends the engine: it is told by its standard input.
        let mut engine = Engine { child, floor: None, socket: PathBuf::new() };
        engine.floor = Some(Floor::offer(near).context("the engine process is gone")?);
        let mut socket = String::new();
        BufReader::new(said).read_line(&mut socket).context("the engine process is gone")?;
        if socket.is_empty() {
            bail!("the engine process ended before it listened; it has said why");
        }
        engine.socket = PathBuf::from(socket.trim_end_matches('\n'));
        Ok(engine)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The floors between this process and the engine.
    pub(super) fn floor(&mut self) -> anyhow::Result<&mut Floor> {
        self.floor.as_mut().context("the engine is ending")
    }

    /// Asks the engine to end and waits until it has.
    pub(super) fn stop(mut self) -> anyhow::Result<Ended> {
        let process = self.end()?;
        let nothing_left = self.socket.parent().is_none_or(|folder| !folder.exists());
        Ok(Ended { process, nothing_left })
    }

    fn end(&mut self) -> anyhow::Result<ExitStatus> {
        drop(self.floor.take());
        let deadline = Instant::now() + END_BOUND;
        loop {
            if let Some(status) = self.child.try_wait().context("lost the engine process")? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.child.kill().context("could not end the engine process")?;
                self.child.wait().context("lost the engine process")?;
                bail!("the engine process did not end within {} s", END_BOUND.as_secs());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // After `stop` this finds the status that was collected there.
        let _ = self.end();
    }
}

/// What the engine process is started with.
#[derive(clap::Args, Debug)]
pub(crate) struct EngineArgs {
    /// The directory to serve.
    root: PathBuf,
}

/// The core the engine stays on, where there are two.
const CORE: usize = 1;

/// Runs the engine process.
pub(crate) fn run_engine(args: &EngineArgs) -> anyhow::Result<()> {
    if thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) {
        // For the measurement at the end; where it may not be, the system places it.
        let _ = pin_to_core(CORE);
    }
    let editor = stdin().as_fd().try_clone_to_owned().context("this is the demo's own command")?;
    let editor = UnixStream::from(editor);
    let watched = editor.try_clone().context("this is the demo's own command")?;
    let floor = Floor::accept(editor);
    let floor = floor.context("this is the demo's own command: run `lapwing demo`")?;
    let workspace = serve::open(&args.root)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("could not start the runtime")?;
    // Before there is anything to leave behind: signals come to this process as to the editor's.
    let stops = runtime.block_on(async { Stops::watch() });
    let stops = stops.context("could not watch for signals")?;
    let folder = tempfile::Builder::new().prefix("lapwing-").tempdir();
    let folder = folder.context("could not make a folder for the socket")?;
    let socket = folder.path().join("engine.sock");
    let (ended, editor_gone) = oneshot::channel();
    // The floor's own thread may look at a cache line for ever when the editor is killed.
    thread::spawn(move || floor.serve());
    thread::spawn(move || {
        until_hung_up(&watched);
        let _ = ended.send(());
    });
    let served = runtime.block_on(serve(workspace, &socket, stops, editor_gone));
    runtime.shutdown_background();
    served
}

async fn serve(
    workspace: Workspace,
    socket: &Path,
    mut stops: Stops,
    editor_gone: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let builder = IpcServer::builder().bind(socket)?;
    let builder = builder.route_inline(methods::BYTES, "bytes", |_caller, request, reply| {
        reply.extend(request);
        Ok(())
    });
    let server = add_routes(builder, workspace).serve()?;
    // An editor that is gone needs no word of it.
    if writeln!(stdout(), "{}", socket.display()).is_err() {
        return Ok(());
    }
    tokio::select! {
        _ = editor_gone => {}
        () = stops.next() => {}
    }
    server.shutdown().await;
    Ok(())
}
