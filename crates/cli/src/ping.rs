//! `lapwing ping`.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use lapwing::{ClientOptions, IpcClient};
use tokio::runtime;

use crate::args::{Endpoint, SpinPolicy, from};
use crate::output::{DIM, NAME, Out, StdoutError, counted, duration, plain, styled};
use crate::serve::Stops;

/// Measure the time to a server and back.
#[derive(clap::Args, Debug)]
#[command(after_help = "EXAMPLES:
  lapwing ping                       five round trips
  lapwing ping -c 0                  until Ctrl-C, which prints the summary
  lapwing ping -q -i 0 -c 100000     as fast as they go, the summary alone

The first round trips after a pause include waking both sides up; with -i 0 they stay awake. The \
summary has the percentiles that there are enough round trips for: p90 from 100, p99 from 1000.")]
pub(crate) struct Args {
    /// How many round trips; 0 for no end.
    #[arg(short = 'c', long, value_name = "N", default_value_t = 5, value_parser = from::<u64>(0))]
    count: u64,
    /// Time between two round trips, in milliseconds.
    #[arg(short = 'i', long, value_name = "MS", default_value_t = 200, value_parser = from::<u64>(0))]
    interval_ms: u64,
    /// Print the summary alone.
    #[arg(short, long)]
    quiet: bool,
    /// How to wait for the answer.
    #[arg(long, value_enum, value_name = "POLICY", default_value = "adaptive")]
    spin: SpinPolicy,
    #[command(flatten)]
    endpoint: Endpoint,
}

/// The longest round trip told apart, in nanoseconds: a minute.
const LONGEST_NS: u64 = 60_000_000_000;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let path = args.endpoint.path()?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("could not start the runtime")?.block_on(ping(args, &path))
}

async fn ping(args: &Args, path: &Path) -> anyhow::Result<()> {
    let mut stops = Stops::watch().context("could not watch for signals")?;
    let options = ClientOptions { spin: args.spin.into(), ..ClientOptions::default() };
    let client = IpcClient::connect_with(path, options).await?;
    let mut out = Out::lock();
    let agreed = client.agreement();
    out.line(format_args!(
        "{} {}",
        styled(NAME, path.display()),
        styled(
            DIM,
            format_args!(
                "({}, {}, {})",
                plain(&agreed.server_program),
                if agreed.shared_memory { "shared memory" } else { "socket" },
                agreed.checksum
            )
        )
    ))?;
    let mut times = Histogram::new_with_bounds(1, LONGEST_NS, 3).context("bounds are in order")?;
    let ended = tokio::select! {
        biased;
        () = stops.next() => Ok(()),
        ended = round_trips(args, &client, &mut times, &mut out) => ended,
    };
    summary(&times, &mut out)?;
    ended?;
    client.disconnect().await;
    if times.is_empty() && args.count > 0 {
        bail!("no answer came");
    }
    Ok(())
}

async fn round_trips(
    args: &Args,
    client: &IpcClient,
    times: &mut Histogram<u64>,
    out: &mut Out,
) -> anyhow::Result<()> {
    let mut n = 0;
    while args.count == 0 || n < args.count {
        if n > 0 && args.interval_ms > 0 {
            tokio::time::sleep(Duration::from_millis(args.interval_ms)).await;
        }
        n += 1;
        let took = client.ping().await?;
        let ns = u64::try_from(took.as_nanos()).unwrap_or(LONGEST_NS);
        times.saturating_record(ns.max(1));
        if !args.quiet {
            out.line(format_args!("{n:>4}  {:>8}", duration(ns)))?;
        }
    }
    Ok(())
}

fn summary(times: &Histogram<u64>, out: &mut Out) -> Result<(), StdoutError> {
    let count = counted(times.len(), "round trip", "round trips");
    if times.is_empty() {
        return out.line(count);
    }
    let mut line = format!("{count}: min {}", duration(times.min()));
    for percent in [50, 90, 99] {
        if times.len() >= samples_for(percent) {
            let at = duration(times.value_at_quantile(f64::from(percent) / 100.0));
            let _ = write!(line, ", p{percent} {at}");
        }
    }
    out.line(format_args!("{line}, max {}", duration(times.max())))
}

/// How many samples a percentile wants: as many as leave ten above it, since of fewer it is as good as the
/// largest. The median is the middle of any.
fn samples_for(percent: u32) -> u64 {
    match percent {
        ..=50 => 1,
        _ => 1_000 / u64::from(100 - percent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_want_samples_above_them() {
        assert_eq!([50, 90, 99].map(samples_for), [1, 100, 1_000]);
    }
}
