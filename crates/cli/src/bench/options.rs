//! The options of `lapwing bench`: which scenario takes which, and what they come to.

use std::time::Duration;

use clap::ValueEnum;
use lapwing::{ClientOptions, CooperativePeers, FrameChecksum, Transport};

use crate::args::{SpinPolicy, from, misuse};

/// What every scenario takes.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Run {
    /// How both sides wait.
    #[arg(long, value_enum, default_value_t = SpinPolicy::Always)]
    spin: SpinPolicy,
    /// What guards frames.
    #[arg(long, value_enum, default_value_t = ChecksumArg::Best)]
    checksum: ChecksumArg,
    /// Calls or messages in each round.
    #[arg(long, default_value_t = 50_000, value_parser = from::<u64>(1))]
    samples: u64,
    /// Rounds; figures are medians over them.
    #[arg(long, default_value_t = 7, value_parser = from::<u32>(1))]
    rounds: u32,
    /// Bytes of each side's ring.
    #[arg(long, value_name = "BYTES", default_value_t = 256 * 1024, value_parser = ring_bytes)]
    ring: u32,
    /// Leave both processes where the system puts them, instead of on cores 0 and 1.
    #[arg(long)]
    unpinned: bool,
    /// One JSON object a line and result.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Client {
    /// Which client.
    #[arg(long, value_enum, default_value_t = Api::Blocking)]
    api: Api,
}

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Wire {
    /// Where frames go.
    #[arg(long, value_enum, default_value_t = TransportArg::Shm)]
    transport: TransportArg,
}

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Length {
    /// Bytes of each message: of a request and of its reply, or of an item.
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = payload_bytes::<1>)]
    payload: u32,
}

/// Options of messages of one length.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Plain {
    #[command(flatten)]
    client: Client,
    #[command(flatten)]
    wire: Wire,
    #[command(flatten)]
    length: Length,
    #[command(flatten)]
    run: Run,
}

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Pipelined {
    #[command(flatten)]
    plain: Plain,
    /// Calls in flight at once.
    #[arg(long, default_value_t = 64, value_parser = from::<u32>(1))]
    in_flight: u32,
}

/// Options of messages whose lengths are given.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Mixed {
    #[command(flatten)]
    client: Client,
    #[command(flatten)]
    wire: Wire,
    #[command(flatten)]
    run: Run,
}

/// Options of what needs shared memory.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct InPlace {
    #[command(flatten)]
    client: Client,
    #[command(flatten)]
    length: Length,
    #[command(flatten)]
    run: Run,
}

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Chunks {
    #[command(flatten)]
    plain: Plain,
    /// Nanoseconds from one item to the next.
    #[arg(long, default_value_t = 5_000, value_parser = from::<u64>(0))]
    every_ns: u64,
}

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Stalled {
    #[command(flatten)]
    wire: Wire,
    #[command(flatten)]
    length: Length,
    #[command(flatten)]
    run: Run,
    /// Calls in flight at once, where there are many.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=250))]
    in_flight: u32,
}

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Burst {
    #[command(flatten)]
    plain: Plain,
    /// Calls in flight at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=250))]
    in_flight: u32,
    /// How long bulk memory is unused before it is given back, in milliseconds.
    #[arg(long, default_value_t = 2_000, value_parser = from::<u64>(0))]
    idle_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Api {
    Blocking,
    Tokio,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum TransportArg {
    /// Rings in shared memory.
    Shm,
    /// The Unix socket.
    Socket,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum ChecksumArg {
    Best,
    Crc32,
    Off,
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

/// Of at least `MIN` bytes: what a scenario writes into each message has to fit.
pub(super) fn payload_bytes<const MIN: u32>(text: &str) -> Result<u32, String> {
    let max = ClientOptions::default().message_bytes;
    let bytes = text.parse().ok().filter(|bytes| (MIN..=max).contains(bytes));
    bytes.ok_or_else(|| format!("give {MIN} to {max} bytes, the longest message by default"))
}

fn ring_bytes(text: &str) -> Result<u32, String> {
    let bytes = text
        .parse()
        .ok()
        .filter(|bytes: &u32| bytes.is_power_of_two() && RING_BYTES.contains(bytes));
    bytes.ok_or_else(|| {
        format!("give a power of two from {} to {}", RING_BYTES.start(), RING_BYTES.end())
    })
}

/// What a ring may have, in bytes: docs/protocol.md, section 11.
const RING_BYTES: std::ops::RangeInclusive<u32> = 64 * 1024..=64 * 1024 * 1024;

/// Names as clap and the JSON have them.
pub(super) fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Calls that a connection may have beside those that a scenario has in flight.
const MORE_CALLS: u32 = 4;

/// What the options come to.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) api: Api,
    pub(super) transport: TransportArg,
    pub(super) spin: SpinPolicy,
    pub(super) checksum: ChecksumArg,
    /// Of one message; 0 where there are several lengths.
    pub(super) payload: u32,
    pub(super) samples: u64,
    pub(super) rounds: u32,
    pub(super) in_flight: u32,
    pub(super) ring: u32,
    /// Leave long payloads where their sender has them.
    pub(super) in_place: bool,
    pub(super) bulk_idle_ms: u64,
    /// From one item of a stream to the next, in nanoseconds.
    pub(super) every_ns: u64,
    pub(super) unpinned: bool,
    pub(super) json: bool,
}

impl Options {
    fn of(run: &Run) -> Options {
        Options {
            api: Api::Blocking,
            transport: TransportArg::Shm,
            spin: run.spin,
            checksum: run.checksum,
            payload: 0,
            samples: run.samples,
            rounds: run.rounds,
            in_flight: 64,
            ring: run.ring,
            in_place: false,
            bulk_idle_ms: 2_000,
            every_ns: 0,
            unpinned: run.unpinned,
            json: run.json,
        }
    }

    /// Refuses what would not be heeded.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.checksum == ChecksumArg::Off && self.transport == TransportArg::Socket {
            let message = "frames over the socket always have a checksum: '--checksum off' needs \
                           '--transport shm'";
            return Err(misuse(message));
        }
        Ok(())
    }

    /// How the client connects.
    pub(super) fn client(&self, in_place: Option<CooperativePeers>) -> ClientOptions {
        ClientOptions {
            transport: match self.transport {
                TransportArg::Shm => Transport::SharedMemory,
                TransportArg::Socket => Transport::Socket,
            },
            spin: self.spin.into(),
            checksum: self.checksum.into(),
            ring_bytes: self.ring,
            // A few more, for streams and questions beside them.
            calls_in_flight: self.in_flight + MORE_CALLS,
            in_place,
            bulk_idle: Duration::from_millis(self.bulk_idle_ms),
            ..ClientOptions::default()
        }
    }
}

impl From<&Plain> for Options {
    fn from(args: &Plain) -> Options {
        let Plain { client, wire, length, run } = args;
        Options {
            api: client.api,
            transport: wire.transport,
            payload: length.payload,
            ..Options::of(run)
        }
    }
}

impl From<&Pipelined> for Options {
    fn from(args: &Pipelined) -> Options {
        Options { in_flight: args.in_flight, ..Options::from(&args.plain) }
    }
}

impl From<&Mixed> for Options {
    fn from(args: &Mixed) -> Options {
        let Mixed { client, wire, run } = args;
        Options { api: client.api, transport: wire.transport, ..Options::of(run) }
    }
}

impl From<&Chunks> for Options {
    fn from(args: &Chunks) -> Options {
        Options { every_ns: args.every_ns, ..Options::from(&args.plain) }
    }
}

impl From<&Stalled> for Options {
    fn from(args: &Stalled) -> Options {
        let Stalled { wire, length, run, in_flight } = args;
        Options {
            api: Api::Tokio,
            transport: wire.transport,
            payload: length.payload,
            in_flight: *in_flight,
            ..Options::of(run)
        }
    }
}

impl From<&Burst> for Options {
    fn from(args: &Burst) -> Options {
        let Burst { plain, in_flight, idle_ms } = args;
        Options { in_flight: *in_flight, bulk_idle_ms: *idle_ms, ..Options::from(plain) }
    }
}

impl From<&InPlace> for Options {
    fn from(args: &InPlace) -> Options {
        let InPlace { client, length, run } = args;
        let payload = length.payload;
        Options { api: client.api, payload, in_place: true, ..Options::of(run) }
    }
}
