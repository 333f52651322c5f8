//! Medians over rounds, as a table or as JSON.

use std::io::{self, Write};

use serde::Serialize;

use super::client::{Load, Measured};
use super::{Api, Scenario, name};

/// Everything measured in one round.
pub(super) struct Round {
    pub(super) line: Measured,
    pub(super) socket: Measured,
    pub(super) bell: Measured,
    pub(super) lapwing: Measured,
    /// Private and shared memory of the server, in KiB.
    pub(super) memory: Option<(u64, u64)>,
}

/// All rounds of one run.
pub(super) struct Report<'a> {
    scenario: &'a Scenario,
    clock_ns: u64,
    rounds: Vec<Round>,
}

/// One result. The names are a contract: new ones may come, none changes its meaning.
#[derive(Serialize)]
struct Row {
    scenario: String,
    system: &'static str,
    api: Option<String>,
    transport: Option<String>,
    spin: Option<String>,
    checksum: Option<&'static str>,
    pinned: bool,
    payload_bytes: Option<u32>,
    in_flight: Option<u32>,
    connections: Option<u32>,
    samples: u64,
    p50_ns: Option<u64>,
    p99_ns: Option<u64>,
    p999_ns: Option<u64>,
    max_ns: Option<u64>,
    per_second: f64,
    bytes_per_second: Option<f64>,
    server_private_kib: Option<u64>,
    server_shared_kib: Option<u64>,
    floor_p50_ns: u64,
    floor_p99_ns: u64,
    cores: usize,
    /// Median over rounds of this system's p50 to the floor's p50 in the same round.
    ratio_p50: Option<f64>,
    /// Least and most of that ratio.
    ratio_p50_range: Option<(f64, f64)>,
    /// Median over rounds of this system's p50 to the bare eventfd's in the same round.
    ratio_to_eventfd: Option<f64>,
    rounds: usize,
    /// Taken off every sample: what one look at the clock cost.
    clock_ns: u64,
}

fn median<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_by(|a, b| a.partial_cmp(b).expect("no figure is NaN"));
    values.get(values.len() / 2).copied()
}

fn quantile(measured: &Measured, q: f64) -> Option<u64> {
    measured.latency.as_ref().map(|latency| latency.value_at_quantile(q))
}

/// A figure of one system in one round.
type Pick = fn(&Round) -> &Measured;

impl<'a> Report<'a> {
    pub(super) fn new(scenario: &'a Scenario, clock_ns: u64) -> Report<'a> {
        Report { scenario, clock_ns, rounds: Vec::new() }
    }

    pub(super) fn add(&mut self, round: Round) {
        self.rounds.push(round);
    }

    fn over_rounds(&self, pick: Pick, q: f64) -> Option<u64> {
        median(self.rounds.iter().filter_map(|round| quantile(pick(round), q)))
    }

    fn ratios(&self, pick: Pick, to: Pick) -> Vec<f64> {
        let ratio = |round| {
            Some(quantile(pick(round), 0.5)? as f64 / quantile(to(round), 0.5)?.max(1) as f64)
        };
        self.rounds.iter().filter_map(ratio).collect()
    }

    fn row(&self, system: &'static str, pick: Pick, payload_bytes: Option<u32>) -> Row {
        let options = self.scenario.options();
        let lapwing = system == "lapwing";
        let ratios = self.ratios(pick, |round| &round.line);
        let range = |ratios: &[f64]| {
            let least = ratios.iter().copied().reduce(f64::min)?;
            Some((least, ratios.iter().copied().reduce(f64::max)?))
        };
        let per_second = median(self.rounds.iter().map(|round| {
            let measured = pick(round);
            measured.messages as f64 / measured.seconds
        }));
        let per_second = per_second.unwrap_or(0.0);
        let memory = median(self.rounds.iter().filter_map(|round| round.memory));
        let of_lapwing = |value: String| lapwing.then_some(value);
        let in_flight = match self.scenario.load() {
            Load::Pipelined(in_flight) if lapwing => Some(in_flight),
            Load::OneWay | Load::Stream if lapwing => None,
            _ => Some(1),
        };
        Row {
            scenario: if lapwing { self.scenario.to_string() } else { "rtt".to_owned() },
            system,
            api: of_lapwing(name(&options.api)),
            transport: of_lapwing(name(&options.transport)),
            spin: of_lapwing(name(&options.spin)),
            checksum: self.rounds.iter().find_map(|round| pick(round).checksum),
            pinned: !options.unpinned,
            payload_bytes,
            in_flight,
            connections: lapwing.then_some(1),
            samples: self.rounds.iter().map(|round| pick(round).messages).sum(),
            p50_ns: self.over_rounds(pick, 0.5),
            p99_ns: self.over_rounds(pick, 0.99),
            p999_ns: self.over_rounds(pick, 0.999),
            max_ns: self.rounds.iter().filter_map(|round| quantile(pick(round), 1.0)).max(),
            per_second,
            bytes_per_second: payload_bytes.map(|bytes| per_second * f64::from(bytes)),
            server_private_kib: memory.filter(|_| lapwing).map(|memory| memory.0),
            server_shared_kib: memory.filter(|_| lapwing).map(|memory| memory.1),
            floor_p50_ns: self.over_rounds(|round| &round.line, 0.5).unwrap_or(0),
            floor_p99_ns: self.over_rounds(|round| &round.line, 0.99).unwrap_or(0),
            cores: std::thread::available_parallelism().map_or(1, usize::from).max(cores()),
            ratio_p50: median(ratios.iter().copied()),
            ratio_p50_range: range(&ratios),
            ratio_to_eventfd: median(self.ratios(pick, |round| &round.bell).into_iter()),
            rounds: self.rounds.len(),
            clock_ns: self.clock_ns,
        }
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        let payload = Some(self.scenario.options().payload);
        let rows = [
            self.row("lapwing", |round| &round.lapwing, payload),
            self.row("floor", |round| &round.line, Some(8)),
            self.row("bare-socket", |round| &round.socket, payload),
            self.row("bare-eventfd", |round| &round.bell, None),
        ];
        let mut out = io::stdout().lock();
        if json {
            for row in &rows {
                writeln!(out, "{}", serde_json::to_string(row)?)?;
            }
            return Ok(());
        }
        self.print_heading(&mut out)?;
        for row in &rows {
            print_row(&mut out, row)?;
        }
        Ok(())
    }

    fn print_heading(&self, out: &mut impl Write) -> io::Result<()> {
        let options = self.scenario.options();
        let api = match options.api {
            Api::Blocking => "blocking client",
            Api::Tokio => "tokio client, one thread",
        };
        let pinned = if options.unpinned { "not pinned" } else { "pinned to cores 0 and 1" };
        writeln!(
            out,
            "{} of {} bytes: two processes {pinned}, {api}, {} transport, spin {}, checksum {}, \
             {} rounds of {}",
            self.scenario,
            options.payload,
            name(&options.transport),
            name(&options.spin),
            self.rounds.iter().find_map(|round| round.lapwing.checksum).unwrap_or("-"),
            self.rounds.len(),
            options.samples,
        )?;
        writeln!(
            out,
            "{:<14} {:>10} {:>10} {:>10} {:>12} {:>8} {:>14}",
            "system", "p50", "p99", "p99.9", "per second", "x floor", "(range)"
        )
    }
}

/// Cores of the machine; this process may be pinned to one.
fn cores() -> usize {
    std::fs::read_to_string("/proc/cpuinfo")
        .map_or(1, |text| text.lines().filter(|line| line.starts_with("processor")).count())
}

fn print_row(out: &mut impl Write, row: &Row) -> io::Result<()> {
    let ns = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |ns| format!("{ns} ns"));
    let (ratio, range) = match (row.ratio_p50, row.ratio_p50_range) {
        (Some(ratio), Some((least, most))) => {
            (format!("{ratio:.2}"), format!("{least:.2}-{most:.2}"))
        }
        _ => ("-".to_owned(), "-".to_owned()),
    };
    writeln!(
        out,
        "{:<14} {:>10} {:>10} {:>10} {:>12.0} {:>8} {:>14}",
        row.system,
        ns(row.p50_ns),
        ns(row.p99_ns),
        ns(row.p999_ns),
        row.per_second,
        ratio,
        range,
    )
}
