//! The measured side: another process, with the floors on one thread and a server on another.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Where to listen.
    #[arg(long)]
    socket: PathBuf,
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

/// The other process, as the measuring one holds it.
pub(super) struct Peer {
    child: Child,
    pub(super) floor: Floor,
    pub(super) socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Peer {
    pub(super) fn start(options: &Options) -> anyhow::Result<Peer> {
        let folder = tempfile::tempdir().context("no folder for a socket")?;
        let socket = folder.path().join("bench.sock");
        let (near, far) = UnixStream::pair()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bench-peer").arg("--socket").arg(&socket);
        command.args(["--spin", &name(&options.spin), "--checksum", &name(&options.checksum)]);
        command.args(["--ring", &options.ring.to_string()]);
        command.args(["--bulk-idle-ms", &options.bulk_idle_ms.to_string()]);
        if options.in_place {
            command.arg("--in-place");
        }
        if !options.unpinned {
            command.args(["--core", "1"]);
        }
        command.stdin(Stdio::from(OwnedFd::from(far)));
        let child = command.spawn().context("could not start the other process")?;
        let floor = Floor::offer(near)?;
        let mut peer = Peer { child, floor, socket, _folder: folder };
        peer.wait_for_socket()?;
        Ok(peer)
    }

    fn wait_for_socket(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.socket.exists() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the other process ended early: {status}");
            }
            if Instant::now() > deadline {
                bail!("the other process did not listen within 10 s");
            }
            // Its socket appearing is all there is to wait for, once, before anything is measured.
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
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
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the other process of a benchmark until the first one closes its end.
///
/// # Errors
///
/// When it cannot listen, or its standard input is not a benchmark's socket.
pub(crate) fn run_peer(args: &PeerArgs) -> anyhow::Result<()> {
    if let Some(core) = args.core {
        lapwing::floor::pin_to_core(core)
            .with_context(|| format!("could not stay on core {core}; try --unpinned"))?;
    }
    let stdin = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned()?;
    let floor = Floor::accept(UnixStream::from(stdin)).context("this is bench's own command")?;
    let served = args.clone();
    // Threads spawned now stay on the same core.
    thread::spawn(move || serve(&served));
    let rival = mixed::Rival::bind(&args.socket)?;
    thread::spawn(move || rival.serve());
    floor.serve()?;
    Ok(())
}

fn serve(args: &PeerArgs) -> anyhow::Result<()> {
    let limits = ServerLimits {
        ring_bytes: args.ring,
        bulk_idle: Duration::from_millis(args.bulk_idle_ms),
        ..ServerLimits::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let builder = IpcServer::builder()
            .limits(limits)
            .spin(args.spin.into())
            .checksum(args.checksum.into());
        let mut builder = with_counts(with_echoes(builder)).route(STREAM, stream);
        builder = stalled::with_stalled(chunks::with_chunks(mixed::with_mixed(builder)));
        if args.in_place {
            builder = in_place::with_in_place(builder);
        }
        let _server = builder.bind(&args.socket)?.serve()?;
        std::future::pending().await
    })
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
