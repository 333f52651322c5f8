//! `lapwing bench`: measures round trips, one-way messages, pipelined calls, streams and long messages between two
//! real processes, interleaved with what the machine itself costs.
//!
//! Every round measures the floor (a cache line handed to and fro between the same two pinned processes),
//! what else the scenario is compared with, and then Lapwing, each over a new connection, so that the server
//! does nothing while the floors are taken. The cost of reading the clock, measured in the same run, is
//! taken off every sample of all of them.

mod burst;
mod chunks;
mod client;
mod echo;
mod in_place;
mod mixed;
mod options;
mod peer;
mod report;
mod stalled;

use std::fmt;

use anyhow::Context;
use clap::{Parser, Subcommand};
use lapwing::floor::Bare;

use self::client::{Answers, Deadline, Load, Measured};
use self::options::{
    Burst, Chunks, InPlace, Mixed, Options, Pipelined, Plain, Stalled, payload_bytes,
};
use self::peer::Peer;
pub(crate) use self::peer::{PeerArgs, run_peer};
use self::report::{About, Part, Report};

/// What to measure, and how.
#[derive(Parser, Debug)]
#[command(after_help = "EXAMPLES:
  lapwing bench rtt                              64-byte calls, blocking
  lapwing bench rtt --api tokio --spin adaptive  the same from tokio
  lapwing bench rtt --spin never --json          both sides sleep; JSON lines
  lapwing bench oneway --payload 64              messages without a reply
  lapwing bench pipelined --in-flight 64         many calls in flight
  lapwing bench typed                            typed calls with a deadline
  lapwing bench stream                           items of one reply
  lapwing bench mixed --ring 4194304             messages of 100 B to 100 KB
  lapwing bench echo                             1 MiB there and back, copied
  lapwing bench in-place                         the same, copied by nobody
  lapwing bench chunks --every-ns 5000           how long an item is on its way
  lapwing bench stalled                          calls beside a stalled stream
  lapwing bench burst                            memory after 100 times 5 MB

Figures are medians over rounds; ratios are to what was taken in the same round.")]
pub(crate) struct Args {
    /// What to send.
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand, Clone, Debug)]
enum Scenario {
    /// One call at a time: request, reply, next.
    Rtt(Plain),
    /// Messages without a reply, counted by the server.
    Oneway(Plain),
    /// Many calls in flight at once.
    Pipelined(Pipelined),
    /// As rtt, of typed methods, each call with a deadline, beside calls of bytes: inline and async handlers.
    Typed(Plain),
    /// The items of one stream of replies; --samples is how many.
    Stream(Plain),
    /// One-way messages of 100 B, 1 KB, 10 KB, 50 KB and 100 KB in turn, handled and checked in order.
    #[command(mut_arg("samples", |arg| arg.default_value("100000")))]
    #[command(mut_arg("rounds", |arg| arg.default_value("5")))]
    Mixed(Mixed),
    /// Long messages there and back, copied at every step, against the same bare copies.
    #[command(mut_arg("payload", |arg| arg.default_value("1048576")))]
    #[command(mut_arg("samples", |arg| arg.default_value("1000")))]
    Echo(Plain),
    /// Long messages there and back in place: shared memory, both sides trusting each other.
    #[command(mut_arg("payload", |arg| {
        arg.default_value("1048576").value_parser(payload_bytes::<{ in_place::NUMBER_BYTES }>)
    }))]
    InPlace(InPlace),
    /// A stream of short items at a steady pace: from the server's `send` to the reader.
    #[command(mut_arg("payload", |arg| {
        arg.default_value("200").value_parser(payload_bytes::<{ chunks::STAMPS_BYTES as u32 }>)
    }))]
    #[command(mut_arg("samples", |arg| arg.default_value("20000")))]
    #[command(mut_arg("rounds", |arg| arg.default_value("15")))]
    Chunks(Chunks),
    /// Calls from tokio, one and many in flight, beside a stream that nobody reads and without it.
    Stalled(Stalled),
    /// Many long messages at once: the server's memory before, at its peak, and after the idle time.
    #[command(mut_arg("payload", |arg| arg.default_value("5000000")))]
    #[command(mut_arg("samples", |arg| arg.default_value("100")))]
    #[command(mut_arg("rounds", |arg| arg.default_value("2")))]
    Burst(Burst),
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Scenario {
    fn name(&self) -> &'static str {
        match self {
            Scenario::Rtt(_) => "rtt",
            Scenario::Oneway(_) => "oneway",
            Scenario::Pipelined(_) => "pipelined",
            Scenario::Typed(_) => "typed",
            Scenario::Stream(_) => "stream",
            Scenario::Mixed(_) => "mixed",
            Scenario::Echo(_) => "echo",
            Scenario::InPlace(_) => "in-place",
            Scenario::Chunks(_) => "chunks",
            Scenario::Stalled(_) => "stalled",
            Scenario::Burst(_) => "burst",
        }
    }

    fn options(&self) -> Options {
        match self {
            Scenario::Rtt(args)
            | Scenario::Oneway(args)
            | Scenario::Typed(args)
            | Scenario::Stream(args)
            | Scenario::Echo(args) => args.into(),
            Scenario::Pipelined(args) => args.into(),
            Scenario::Mixed(args) => args.into(),
            Scenario::InPlace(args) => args.into(),
            Scenario::Chunks(args) => args.into(),
            Scenario::Stalled(args) => args.into(),
            Scenario::Burst(args) => args.into(),
        }
    }

    /// What one connection carries; `None` where it takes several.
    fn load(&self) -> Option<Load> {
        Some(match self {
            Scenario::Rtt(_) => Load::RoundTrips(Answers::Inline),
            Scenario::Oneway(_) => Load::OneWay,
            Scenario::Pipelined(_) => Load::Pipelined,
            Scenario::Stream(_) => Load::Stream,
            Scenario::Mixed(_) => Load::Mixed,
            Scenario::Echo(_) => Load::Echo,
            Scenario::InPlace(_) => Load::InPlace,
            Scenario::Chunks(_) => Load::Chunks,
            Scenario::Burst(_) => Load::Burst,
            Scenario::Typed(_) | Scenario::Stalled(_) => return None,
        })
    }

    /// Calls that wait for a reply at a time; `None` where none does.
    fn in_flight(&self, options: &Options) -> Option<u32> {
        match self {
            Scenario::Oneway(_)
            | Scenario::Stream(_)
            | Scenario::Mixed(_)
            | Scenario::Chunks(_) => None,
            Scenario::Pipelined(_) | Scenario::Stalled(_) | Scenario::Burst(_) => {
                Some(options.in_flight)
            }
            Scenario::Rtt(_) | Scenario::Typed(_) | Scenario::Echo(_) | Scenario::InPlace(_) => {
                Some(1)
            }
        }
    }

    /// Whether a first round is thrown away. What memory a first burst leaves behind is worth knowing.
    fn warms_up(&self) -> bool {
        !matches!(self, Scenario::Burst(_))
    }
}

/// Floor samples in each round, at most: enough for a p99.
const FLOOR_SAMPLES: u64 = 20_000;

/// Floor samples for each one that was asked for, at most: a short run stays short where two processes share a core.
const FLOOR_SAMPLES_EACH: u64 = 20;

/// Samples of what sleeps, about 50 us each.
const SLEEPING_SAMPLES: u64 = 2_000;

/// Samples of what sends long messages.
const LONG_SAMPLES: u64 = 500;

/// A run: what is measured, with what, and what a look at the clock costs.
struct Bench {
    scenario: Scenario,
    options: Options,
    peer: Peer,
    clock_ns: u64,
}

impl Bench {
    /// Everything once. Lapwing comes first in the answer, and is measured last.
    fn round(&mut self, n: u32) -> anyhow::Result<Vec<Part>> {
        let Options { payload, samples, .. } = self.options;
        let lines = samples.saturating_mul(FLOOR_SAMPLES_EACH).min(FLOOR_SAMPLES);
        let mut rivals = vec![self.bare("floor", Bare::Line, lines)?];
        match self.scenario {
            Scenario::Mixed(_) => rivals.push(self.mixed_rival()?),
            Scenario::Echo(_) => {
                rivals.push(self.bare("bare-copy", Bare::Copy(payload), LONG_SAMPLES)?);
                rivals.push(self.bare("bare-socket", Bare::Socket(payload), LONG_SAMPLES)?);
            }
            Scenario::Chunks(_) => rivals.push(self.paced_line()?),
            Scenario::InPlace(_) | Scenario::Stalled(_) | Scenario::Burst(_) => {}
            Scenario::Rtt(_)
            | Scenario::Oneway(_)
            | Scenario::Pipelined(_)
            | Scenario::Typed(_)
            | Scenario::Stream(_) => {
                let long = payload > 64 * 1024;
                let samples = if long { LONG_SAMPLES } else { SLEEPING_SAMPLES };
                rivals.push(self.bare("bare-socket", Bare::Socket(payload), samples)?);
                rivals.push(self.bare("bare-eventfd", Bare::Bell, SLEEPING_SAMPLES)?);
            }
        }
        let mut parts = match self.scenario.load() {
            Some(load) => vec![self.lapwing(load)?],
            None if matches!(self.scenario, Scenario::Typed(_)) => self.typed(n)?,
            None => self.stalled(n)?,
        };
        parts.append(&mut rivals);
        Ok(parts)
    }

    fn lapwing(&self, load: Load) -> anyhow::Result<Part> {
        let Bench { options, peer, clock_ns, .. } = self;
        let server = peer.id();
        let measured = client::run_load(&peer.socket, options, load, server, *clock_ns)?;
        Ok(self.part(measured))
    }

    fn part(&self, mut measured: Measured) -> Part {
        let Bench { scenario, options, peer, .. } = self;
        measured.memory = peer.memory();
        let about = About {
            scenario: scenario.name(),
            payload_bytes: (options.payload > 0).then_some(options.payload),
            in_flight: scenario.in_flight(options),
            ..About::of("lapwing")
        };
        Part { about, measured }
    }

    /// Calls of bytes, and typed ones without and with a deadline, each first in turn.
    fn typed(&self, n: u32) -> anyhow::Result<Vec<Part>> {
        let mut parts = Vec::new();
        for (answers, handler) in [(Answers::Inline, "inline"), (Answers::Async, "async")] {
            let loads = [
                (Load::RoundTrips(answers), "rtt", None),
                (Load::Typed(answers, Deadline::None), "typed", Some(false)),
                (Load::Typed(answers, Deadline::Ample), "typed", Some(true)),
            ];
            let mut round = Vec::new();
            for at in 0..loads.len() {
                let at = (at + n as usize) % loads.len();
                let (load, scenario, deadline) = loads[at];
                let mut part = self.lapwing(load)?;
                part.about = About { scenario, handler: Some(handler), deadline, ..part.about };
                round.push((at, part));
            }
            round.sort_by_key(|(at, _)| *at);
            parts.extend(round.into_iter().map(|(_, part)| part));
        }
        Ok(parts)
    }

    /// Calls without a stalled stream and beside one, each first in turn.
    fn stalled(&self, n: u32) -> anyhow::Result<Vec<Part>> {
        let Bench { options, peer, clock_ns, .. } = self;
        let run = |stalled| stalled::run(&peer.socket, options, stalled, *clock_ns);
        let (without, beside) = if n.is_multiple_of(2) {
            let without = run(false)?;
            (without, run(true)?)
        } else {
            let beside = run(true)?;
            (run(false)?, beside)
        };
        let mut parts = Vec::new();
        for (stalled_streams, calls) in [(0, without), (1, beside)] {
            for (in_flight, measured) in [(1, calls.one), (options.in_flight, calls.many)] {
                let mut part = self.part(measured);
                part.about.in_flight = Some(in_flight);
                part.about.stalled_streams = Some(stalled_streams);
                parts.push(part);
            }
        }
        Ok(parts)
    }

    fn bare(&mut self, system: &'static str, bare: Bare, samples: u64) -> anyhow::Result<Part> {
        let measured = client::bare(self.peer.floor()?, bare, samples, self.clock_ns)?;
        let payload_bytes = match bare {
            Bare::Line => Some(8),
            Bare::Bell => None,
            Bare::Socket(bytes) | Bare::Copy(bytes) => Some(bytes),
        };
        Ok(Part { about: About { payload_bytes, ..About::of(system) }, measured })
    }

    fn paced_line(&mut self) -> anyhow::Result<Part> {
        let Options { samples, every_ns, .. } = self.options;
        let measured = client::paced(self.peer.floor()?, samples, every_ns)?;
        let scenario = self.scenario.name();
        let about =
            About { scenario, payload_bytes: Some(8), in_flight: None, ..About::of("bare-line") };
        Ok(Part { about, measured })
    }

    fn mixed_rival(&self) -> anyhow::Result<Part> {
        let measured: Measured = mixed::run_rival(&self.peer.socket, self.options.samples)?;
        let scenario = self.scenario.name();
        Ok(Part {
            about: About { scenario, in_flight: None, ..About::of("bare-socket") },
            measured,
        })
    }
}

/// Runs the benchmark and prints what it found.
///
/// # Errors
///
/// When the other process cannot be started, a reply is wrong, or fewer than two cores are there for
/// pinned processes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let options = args.scenario.options();
    options.check()?;
    let peer = Peer::start(&options)?;
    if !options.unpinned {
        lapwing::floor::pin_to_core(0).context("could not stay on core 0; try --unpinned")?;
    }
    let clock_ns = client::clock_cost_ns();
    let mut bench = Bench { scenario: args.scenario.clone(), options, peer, clock_ns };
    if bench.scenario.warms_up() {
        bench.round(0)?;
    }
    let rounds =
        (1..=bench.options.rounds).map(|n| bench.round(n)).collect::<anyhow::Result<_>>()?;
    Ok(Report::new(&bench.scenario, &bench.options, clock_ns, rounds).print()?)
}
