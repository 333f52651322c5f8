//! The measured side: another process, with the floors on one thread and a server on another.

use std::fs;
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use lapwing::floor::Floor;
use lapwing::{
    Builder, Call, Inline, InlineCall, IpcServer, Payload, Raw, Request, ServerLimits,
    ServerStream, Sink, Status, Unary,
};

use super::client::{self, Memory};
use super::options::{ChecksumArg, Options, name};
use super::{chunks, in_place, mixed, stalled};
use crate::args::SpinPolicy;
use crate::serve::{Stops, until_hung_up};

/// Answers with its request.
pub(super) const ECHO: u16 = 0x0410;

/// Counts messages.
pub(super) const COUNT: u16 = 0x0411;

/// Answers how many messages were counted, as eight bytes.
pub(super) const TOTAL: u16 = 0x0412;

/// Answers with its request, which is not copied on the way through the handler.
pub(super) const RETURN: u16 = 0x0415;

/// Answers with its request, where it is read.
pub(super) const TYPED: Unary<Body, Body, Raw> = Unary::new(0x0413, "bench.typed");

/// Answers with its request, from an async handler.
pub(super) const TYPED_ASYNC: Unary<Body, Body, Raw> = Unary::new(0x041F, "bench.typed.async");

/// What [`TYPED`] takes and gives.
#[derive(Debug)]
pub(super) enum Body {
    /// The caller's own, which are sent again and again as those of calls of bytes are.
    Own(Vec<u8>),
    /// What the other side sent.
    Came(Payload),
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        match self {
            Body::Own(bytes) => bytes,
            Body::Came(payload) => payload.bytes(),
        }
    }
}

impl From<Payload> for Body {
    fn from(payload: Payload) -> Body {
        Body::Came(payload)
    }
}

/// Answers with numbered items.
pub(super) const STREAM: ServerStream<Vec<u8>, Payload, Raw> =
    ServerStream::new(0x0414, "bench.stream");

/// What [`STREAM`] is asked for: on the wire, `u64` items and `u32` bytes of each, little-endian.
#[derive(Clone, Copy, Debug)]
pub(super) struct Items {
    pub(super) count: u64,
    pub(super) bytes: u32,
}

impl From<Items> for Vec<u8> {
    fn from(items: Items) -> Vec<u8> {
        [&items.count.to_le_bytes()[..], &items.bytes.to_le_bytes()].concat()
    }
}

async fn stream(_: Call, wanted: Vec<u8>, mut items: Sink<Payload, Raw>) -> Result<(), Status> {
    let wrong = || Status::invalid_argument("u64 items and u32 bytes of each");
    let (count, bytes) = wanted.split_first_chunk().ok_or_else(wrong)?;
    let count = u64::from_le_bytes(*count);
    let bytes = u32::from_le_bytes(bytes.try_into().map_err(|_| wrong())?);
    let mut item: Vec<u8> = (0..bytes).map(|i| i as u8).collect();
    for n in 0..count {
        client::number(&mut item, n);
        let ready = Payload::from(item);
        items.send(&ready).await?;
        item = ready.into_vec();
    }
    Ok(())
}

/// How the other process of a benchmark is started. Its standard input is a socket to the first one.
#[derive(Parser, Clone, Debug)]
pub(crate) struct PeerArgs {
    #[arg(long, value_enum)]
    spin: SpinPolicy,
    #[arg(long, value_enum)]
    checksum: ChecksumArg,
    /// Bytes of each connection's ring.
    #[arg(long)]
    ring: u32,
    /// Leave long payloads where their sender has them.
    #[arg(long)]
    in_place: bool,
    /// How long bulk memory is unused before it is given back.
    #[arg(long)]
    bulk_idle_ms: u64,
    /// The core to stay on.
    #[arg(long)]
    core: Option<usize>,
}

/// How long the other process may take to end.
const END_BOUND: Duration = Duration::from_secs(5);

/// The other process, as the measuring one holds it. It has made the folder of its socket, and removes it when this one is
/// gone, however it went.
pub(super) struct Peer {
    child: Child,
    /// Gone when the other process is asked to end.
    floor: Option<Floor>,
    pub(super) socket: PathBuf,
}

impl Peer {
    pub(super) fn start(options: &Options) -> anyhow::Result<Peer> {
        let (near, far) = UnixStream::pair()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bench-peer");
        command.args(["--spin", &name(&options.spin), "--checksum", &name(&options.checksum)]);
        command.args(["--ring", &options.ring.to_string()]);
        command.args(["--bulk-idle-ms", &options.bulk_idle_ms.to_string()]);
        if options.in_place {
            command.arg("--in-place");
        }
        if !options.unpinned {
            command.args(["--core", "1"]);
        }
        command.stdin(Stdio::from(OwnedFd::from(far))).stdout(Stdio::piped());
        let mut child = command.spawn().context("could not start the other process")?;
        let said = child.stdout.take().context("the other process has an output")?;
        // From here on a failure ends the other process: it is told by its standard input.
        let mut peer = Peer { child, floor: None, socket: PathBuf::new() };
        peer.floor = Some(Floor::offer(near).context("the other process is gone")?);
        let mut socket = String::new();
        BufReader::new(said).read_line(&mut socket).context("the other process is gone")?;
        if socket.is_empty() {
            bail!("the other process ended before it listened; it has said why");
        }
        peer.socket = PathBuf::from(socket.trim_end_matches('\n'));
        Ok(peer)
    }

    /// The floors between the two processes.
    pub(super) fn floor(&mut self) -> anyhow::Result<&mut Floor> {
        self.floor.as_mut().context("the other process is ending")
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Memory of the other process.
    pub(super) fn memory(&self) -> Option<Memory> {
        memory_of(self.id())
    }
}

/// Private and shared memory of a process.
pub(super) fn memory_of(process: u32) -> Option<Memory> {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
    let sum = |prefix: &str| {
        let lines = rollup.lines().filter(|line| line.starts_with(prefix));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    };
    Some(Memory { private_kib: sum("Private_"), shared_kib: sum("Shared_") })
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.floor.take());
        // Beside one that spins with real-time priority it may get no turn.
        let deadline = Instant::now() + END_BOUND;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                let _ = self.socket.parent().map(fs::remove_dir_all);
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Runs the other process of a benchmark until the first one closes its end.
///
/// # Errors
///
/// When it cannot listen, or its standard input is not a benchmark's socket.
pub(crate) fn run_peer(args: &PeerArgs) -> anyhow::Result<()> {
    let first = UnixStream::from(stdin().as_fd().try_clone_to_owned()?);
    let (watched, ends) = (first.try_clone()?, first.try_clone()?);
    let floor = Floor::accept(first).context("this is bench's own command")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before there is anything to leave behind: signals come to this process as to the first one.
    let stops = runtime.block_on(async { Stops::watch() });
    let stops = stops.context("could not watch for signals")?;
    let folder = tempfile::tempdir().context("no folder for a socket")?;
    let socket = folder.path().join("bench.sock");
    let left = folder.path().to_owned();
    // What is still being made cannot be removed.
    let made = Arc::new(Mutex::new(()));
    let (making, all_made) = (made.lock().expect("no holder panics"), Arc::clone(&made));
    // On any core, and not the floor's thread: that may look at a cache line for ever when the first process is killed.
    thread::spawn(move || {
        until_hung_up(&watched);
        let _all_made = all_made.lock();
        let _ = fs::remove_dir_all(left);
        process::exit(0)
    });
    if let Some(core) = args.core {
        lapwing::floor::pin_to_core(core)
            .with_context(|| format!("could not stay on core {core}; try --unpinned"))?;
    }
    let rival = mixed::Rival::bind(&socket)?;
    let server = {
        let _within = runtime.enter();
        bind(args, &socket)?.serve()?
    };
    drop(making);
    // Threads spawned now stay on the same core.
    thread::spawn(move || rival.serve());
    thread::spawn(move || runtime.block_on(serve(server, stops, &ends)));
    // However these end, the first process is gone, and with it this one.
    if writeln!(stdout(), "{}", socket.display()).is_ok() {
        let _ = floor.serve();
    }
    loop {
        thread::park();
    }
}

/// Serves until a signal comes, which is as if the first process had closed its end.
async fn serve(_server: IpcServer, mut stops: Stops, ends: &UnixStream) {
    stops.next().await;
    let _ = ends.shutdown(Shutdown::Both);
    std::future::pending::<()>().await;
}

fn bind(args: &PeerArgs, socket: &Path) -> anyhow::Result<Builder> {
    let limits = ServerLimits {
        ring_bytes: args.ring,
        bulk_idle: Duration::from_millis(args.bulk_idle_ms),
        ..ServerLimits::default()
    };
    let builder =
        IpcServer::builder().limits(limits).spin(args.spin.into()).checksum(args.checksum.into());
    let mut builder = with_counts(with_echoes(builder)).route(STREAM, stream);
    builder = stalled::with_stalled(chunks::with_chunks(mixed::with_mixed(builder)));
    if args.in_place {
        builder = in_place::with_in_place(builder);
    }
    Ok(builder.bind(socket)?)
}

fn with_echoes(builder: Builder) -> Builder {
    builder
        .route_inline(ECHO, "bench.echo", |_, request, reply| {
            reply.extend(request);
            Ok(())
        })
        .route_raw(RETURN, "bench.return", |request: Request| async move {
            Ok::<_, Status>(request.payload)
        })
        .route(TYPED, Inline(|_: &InlineCall<'_>, body: Body| Ok(body)))
        .route(TYPED_ASYNC, |_: Call, body: Body| async move { Ok(body) })
}

fn with_counts(builder: Builder) -> Builder {
    let counted = Arc::new(AtomicU64::new(0));
    let total = Arc::clone(&counted);
    builder
        .route_inline(COUNT, "bench.count", move |_, _, _| {
            // The server has one thread. An addition that is atomic takes a tenth of a message's time.
            counted.store(counted.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            Ok(())
        })
        .route_inline(TOTAL, "bench.total", move |_, _, reply| {
            reply.extend(&total.load(Ordering::Relaxed).to_le_bytes());
            Ok(())
        })
}
