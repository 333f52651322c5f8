//! `lapwing bench`: measures round trips, one-way messages, pipelined calls and streams between two real
//! processes, interleaved with what the machine itself costs.
//!
//! Every round measures the floor (a cache line handed to and fro between the same two pinned processes),
//! a bare socket and a bare eventfd, and then Lapwing, each over a new connection, so that the server
//! does nothing while the floors are taken. The cost of reading the clock, measured in the same run, is
//! taken off every sample of all of them.

mod client;
mod peer;
mod report;

use std::fmt;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use lapwing::floor::Bare;
use lapwing::{ClientOptions, FrameChecksum, Transport};

use self::client::Load;
pub(crate) use self::peer::{PeerArgs, run_peer};
use self::report::{Report, Round};
use crate::args::SpinPolicy;

/// What to measure, and how.
#[derive(Parser, Debug)]
#[command(after_help = "EXAMPLES:
  lapwing bench rtt                                  64-byte calls, blocking, spinning
  lapwing bench rtt --api tokio --spin adaptive      the same from tokio, adaptive
  lapwing bench rtt --spin never --json              sleeping sides, one JSON object a line
  lapwing bench oneway --payload 64                  messages without a reply
  lapwing bench pipelined --in-flight 64             many calls in flight
  lapwing bench typed                                typed calls with a deadline, to an async handler
  lapwing bench stream                               items of one reply

Figures are medians over rounds; ratios are to the floor taken in the same round.")]
pub(crate) struct Args {
    /// What to send.
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand, Clone, Debug)]
enum Scenario {
    /// One call at a time: request, reply, next.
    Rtt(Options),
    /// Messages without a reply, counted by the server.
    Oneway(Options),
    /// Many calls in flight at once.
    Pipelined(Options),
    /// As rtt, of a typed method with an async handler, each call with a deadline.
    Typed(Options),
    /// The items of one stream of replies; --samples is how many.
    Stream(Options),
}

#[derive(clap::Args, Clone, Debug)]
struct Options {
    /// Which client.
    #[arg(long, value_enum, default_value_t = Api::Blocking)]
    api: Api,
    /// Where frames go.
    #[arg(long, value_enum, default_value_t = TransportArg::Shm)]
    transport: TransportArg,
    /// Who waits by looking, and who by sleeping: both sides.
    #[arg(long, value_enum, default_value_t = SpinPolicy::Always)]
    spin: SpinPolicy,
    /// What guards frames.
    #[arg(long, value_enum, default_value_t = ChecksumArg::Best)]
    checksum: ChecksumArg,
    /// Payload of request and reply, in bytes.
    #[arg(long, default_value_t = 64)]
    payload: u32,
    /// Calls or messages in each round.
    #[arg(long, default_value_t = 50_000)]
    samples: u64,
    /// Rounds; figures are medians over them.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Calls in flight at once (pipelined).
    #[arg(long, default_value_t = 64)]
    in_flight: u32,
    /// Bytes of each side's ring.
    #[arg(long, default_value_t = 256 * 1024)]
    ring: u32,
    /// Leave both processes where the system puts them, instead of on cores 0 and 1.
    #[arg(long)]
    unpinned: bool,
    /// One JSON object a line and result.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Api {
    Blocking,
    Tokio,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum TransportArg {
    /// Rings in shared memory.
    Shm,
    /// The Unix socket.
    Socket,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum ChecksumArg {
    Best,
    Crc32,
    Off,
}

/// Names as clap and the JSON have them.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl From<ChecksumArg> for FrameChecksum {
    fn from(checksum: ChecksumArg) -> FrameChecksum {
        match checksum {
            ChecksumArg::Best => FrameChecksum::Best,
            ChecksumArg::Crc32 => FrameChecksum::Crc32,
            ChecksumArg::Off => FrameChecksum::Off,
        }
    }
}

impl Options {
    fn client(&self) -> ClientOptions {
        ClientOptions {
            transport: match self.transport {
                TransportArg::Shm => Transport::SharedMemory,
                TransportArg::Socket => Transport::Socket,
            },
            spin: self.spin.into(),
            checksum: self.checksum.into(),
            ring_bytes: self.ring,
            calls_in_flight: self.in_flight.max(1),
            ..ClientOptions::default()
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scenario::Rtt(_) => "rtt",
            Scenario::Oneway(_) => "oneway",
            Scenario::Pipelined(_) => "pipelined",
            Scenario::Typed(_) => "typed",
            Scenario::Stream(_) => "stream",
        })
    }
}

impl Scenario {
    fn options(&self) -> &Options {
        match self {
            Scenario::Rtt(options)
            | Scenario::Oneway(options)
            | Scenario::Pipelined(options)
            | Scenario::Typed(options)
            | Scenario::Stream(options) => options,
        }
    }

    fn load(&self) -> Load {
        match self {
            Scenario::Rtt(_) => Load::RoundTrips,
            Scenario::Oneway(_) => Load::OneWay,
            Scenario::Pipelined(options) => Load::Pipelined(options.in_flight.max(1)),
            Scenario::Typed(_) => Load::Typed,
            Scenario::Stream(_) => Load::Stream,
        }
    }
}

/// Floor samples in each round: enough for a p99.
const FLOOR_SAMPLES: u64 = 20_000;

/// Samples of what sleeps, about 50 us each.
const SLEEPING_SAMPLES: u64 = 2_000;

/// Runs the benchmark and prints what it found.
///
/// # Errors
///
/// When the other process cannot be started, a reply is wrong, or fewer than two cores are there for
/// pinned processes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let options = args.scenario.options();
    let mut peer = peer::Peer::start(options)?;
    if !options.unpinned {
        lapwing::floor::pin_to_core(0).context("could not stay on core 0; try --unpinned")?;
    }
    let clock_ns = client::clock_cost_ns();
    let mut report = Report::new(&args.scenario, clock_ns);
    // The first round warms both processes up and is thrown away.
    for n in 0..=options.rounds {
        let line = client::bare(&mut peer.floor, Bare::Line, FLOOR_SAMPLES, clock_ns)?;
        let socket = Bare::Socket(options.payload);
        let socket = client::bare(&mut peer.floor, socket, SLEEPING_SAMPLES, clock_ns)?;
        let bell = client::bare(&mut peer.floor, Bare::Bell, SLEEPING_SAMPLES, clock_ns)?;
        let lapwing = client::run_load(&peer.socket, options, args.scenario.load(), clock_ns)?;
        if n > 0 {
            let memory = peer.memory_kib();
            report.add(Round { line, socket, bell, lapwing, memory });
        }
    }
    report.print(options.json)
}
