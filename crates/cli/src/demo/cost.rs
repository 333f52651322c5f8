//! What a call costs, beside what the machine itself costs between the same two processes.

use std::thread;
use std::time::Instant;

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use lapwing::blocking::IpcClient;
use lapwing::floor::{Bare, pin_to_core};

use super::Screen;
use super::engine::Engine;
use crate::output::{DIM, GOOD, HEADING, duration, styled};

/// Bytes of each request and each reply.
const PAYLOAD_BYTES: usize = 64;

/// Rounds; each measures all three, one after the other.
const ROUNDS: usize = 15;

/// Round trips a round that take well below a microsecond or so.
const QUICK: u64 = 4_000;

/// Round trips a round that go through the system's scheduler, about 30 us each.
const SLOW: u64 = 1_000;

/// Calls before each round's first sample: the engine was asleep.
const WARM_UP: u64 = 500;

/// The core the editor stays on, where there are two.
const CORE: usize = 0;

/// The longest round trip told apart, in nanoseconds.
const LONGEST_NS: u64 = 10_000_000_000;

/// One way to and fro, a figure a round.
#[derive(Default)]
struct Costs {
    p50: Vec<u64>,
    p99: Vec<u64>,
}

impl Costs {
    fn add(&mut self, samples: &Histogram<u64>) {
        self.p50.push(samples.value_at_quantile(0.5));
        self.p99.push(samples.value_at_quantile(0.99));
    }

    /// The median over the rounds of this p50 over that of the floor in the same round.
    fn ratio(&self, floor: &Costs) -> Option<f64> {
        let pairs = self.p50.iter().zip(&floor.p50);
        let mut ratios: Vec<_> = pairs.map(|(own, floor)| *own as f64 / *floor as f64).collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied()
    }
}

fn median(figures: &[u64]) -> u64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Measures in interleaved rounds and prints the table.
pub(super) fn measure(screen: &mut Screen, engine: &mut Engine) -> anyhow::Result<()> {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let pinned = cores > 1 && pin_to_core(CORE).is_ok();
    let client = IpcClient::connect(engine.socket())?;
    let clock_ns = clock_cost_ns()?;
    let (mut line, mut lapwing, mut socket) =
        (Costs::default(), Costs::default(), Costs::default());
    for _ in 0..ROUNDS {
        // With one core two processes that look all the time would wait for each other's time slices.
        if cores > 1 {
            line.add(&bare(engine, Bare::Line, QUICK, clock_ns)?);
        }
        lapwing.add(&calls(&client, clock_ns)?);
        let length = Bare::Socket(PAYLOAD_BYTES as u32);
        socket.add(&bare(engine, length, SLOW, clock_ns)?);
    }
    let checksum = client.agreement().checksum;
    client.disconnect();
    print(screen, checksum, pinned, [&line, &lapwing, &socket])
}

fn print(
    screen: &mut Screen,
    checksum: &str,
    pinned: bool,
    [line, lapwing, socket]: [&Costs; 3],
) -> anyhow::Result<()> {
    let out = &mut screen.out;
    out.line("")?;
    let heading = format!("{PAYLOAD_BYTES}-byte round trip");
    out.line(styled(
        HEADING,
        format_args!("  {heading:<42}{:>9}{:>11}{:>13}", "p50", "p99", "over floor"),
    ))?;
    let rows = [
        ("one cache line over and back: the floor", line),
        (&*format!("Lapwing: blocking, adaptive, {checksum}"), lapwing),
        ("bare Unix socket: read and write", socket),
    ];
    for (name, costs) in rows {
        let (p50, p99) = match costs.p50.is_empty() {
            true => ("-".to_owned(), "-".to_owned()),
            false => (duration(median(&costs.p50)), duration(median(&costs.p99))),
        };
        let ratio = costs.ratio(line).map_or("-".to_owned(), |ratio| format!("{ratio:.1} x"));
        let row = format!("  {name:<42}{p50:>9}{p99:>11}{ratio:>13}");
        if name.starts_with("Lapwing") {
            out.line(styled(GOOD, row))?;
        } else {
            out.line(row)?;
        }
    }
    let place = match (line.p50.is_empty(), pinned) {
        (true, _) => "one core only, so no floor",
        (false, true) => "pinned to two cores",
        (false, false) => "not pinned",
    };
    out.line(styled(
        DIM,
        format_args!(
            "  between the two processes; medians of {ROUNDS} interleaved rounds, {place}"
        ),
    ))?;
    Ok(())
}

/// Times one sample after the other, with one look at the clock for each.
struct Timer {
    samples: Histogram<u64>,
    last: Instant,
    /// What a look at the clock costs; taken off each sample.
    clock_ns: u64,
}

impl Timer {
    fn start(clock_ns: u64) -> anyhow::Result<Timer> {
        let samples =
            Histogram::new_with_bounds(1, LONGEST_NS, 3).context("bounds are in order")?;
        Ok(Timer { samples, last: Instant::now(), clock_ns })
    }

    fn lap(&mut self) {
        let now = Instant::now();
        let took = u64::try_from((now - self.last).as_nanos()).unwrap_or(LONGEST_NS);
        self.last = now;
        self.samples.saturating_record(took.saturating_sub(self.clock_ns).max(1));
    }
}

/// The median time between two looks at the clock, in nanoseconds.
fn clock_cost_ns() -> anyhow::Result<u64> {
    let mut timer = Timer::start(0)?;
    for _ in 0..20_000 {
        timer.lap();
    }
    Ok(timer.samples.value_at_quantile(0.5))
}

fn bare(
    engine: &mut Engine,
    bare: Bare,
    count: u64,
    clock_ns: u64,
) -> anyhow::Result<Histogram<u64>> {
    let mut timer = Timer::start(clock_ns)?;
    let trips = engine.floor()?.round_trips(bare, count, || timer.lap());
    trips.context("the engine process is gone")?;
    Ok(timer.samples)
}

fn calls(client: &IpcClient, clock_ns: u64) -> anyhow::Result<Histogram<u64>> {
    let mut payload: [u8; PAYLOAD_BYTES] = std::array::from_fn(|at| at as u8);
    let mut echo = |n: u64| {
        payload[..8].copy_from_slice(&n.to_le_bytes());
        let reply = client.send_bytes(&payload)?;
        ensure!(reply.bytes() == payload, "the engine's reply is not what was sent");
        Ok(())
    };
    (0..WARM_UP).try_for_each(&mut echo)?;
    let mut timer = Timer::start(clock_ns)?;
    for n in 0..QUICK {
        echo(n)?;
        timer.lap();
    }
    Ok(timer.samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_ratio_are_taken_over_rounds() {
        assert_eq!(median(&[30, 10, 20]), 20);
        assert_eq!(median(&[]), 0);
        let floor = Costs { p50: vec![100, 200, 50], p99: vec![] };
        let own = Costs { p50: vec![400, 300, 300], p99: vec![] };
        assert_eq!(own.ratio(&floor), Some(4.0));
        assert_eq!(own.ratio(&Costs::default()), None);
    }
}
