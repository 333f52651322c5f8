//! Medians over rounds, as a table or as JSON.

use std::io::{self, Write};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::Scenario;
use super::burst::Course;
use super::client::Measured;
use super::options::{Api, Options, name};
use crate::output::{StdoutError, counted};

/// What was measured: the same in every round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct About {
    pub(super) system: &'static str,
    /// What was sent through it.
    pub(super) scenario: &'static str,
    pub(super) payload_bytes: Option<u32>,
    pub(super) in_flight: Option<u32>,
    /// Streams that nobody reads on the same connection, where that is the question.
    pub(super) stalled_streams: Option<u32>,
    /// What answers at the server, where that is the question.
    pub(super) handler: Option<&'static str>,
    /// Whether calls have a deadline, where that is the question.
    pub(super) deadline: Option<bool>,
}

impl About {
    /// Round trips, one after the other.
    pub(super) fn of(system: &'static str) -> About {
        About {
            system,
            scenario: "rtt",
            payload_bytes: None,
            in_flight: Some(1),
            stalled_streams: None,
            handler: None,
            deadline: None,
        }
    }

    /// What the table calls it.
    fn label(&self) -> String {
        match (self.stalled_streams, self.in_flight) {
            (Some(0), Some(calls)) => format!("{} x{calls}", self.system),
            (Some(_), Some(calls)) => format!("{} x{calls} stalled", self.system),
            _ => match self.handler {
                Some(handler) => match self.deadline {
                    None => format!("{} raw {handler}", self.system),
                    Some(false) => format!("{} typed {handler}", self.system),
                    Some(true) => format!("{} timed {handler}", self.system),
                },
                None => self.system.to_owned(),
            },
        }
    }

    fn is_lapwing(&self) -> bool {
        self.system == "lapwing"
    }
}

/// One system in one round.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) about: About,
    pub(super) measured: Measured,
}

/// All rounds of one run: each has the same parts in the same order.
pub(super) struct Report<'a> {
    scenario: &'a Scenario,
    options: &'a Options,
    clock_ns: u64,
    rounds: Vec<Vec<Part>>,
}

/// One result. The names are a contract: new ones may come, none changes its meaning.
#[derive(Serialize)]
struct Row {
    scenario: &'static str,
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
    ratio_p50_range: Option<Range>,
    /// Median over rounds of this system's p50 to the bare eventfd's in the same round.
    ratio_to_eventfd: Option<f64>,
    /// Median over rounds of this system's p50 to that of bare copies in the same round.
    ratio_to_copy: Option<f64>,
    /// Least and most of that ratio.
    ratio_to_copy_range: Option<Range>,
    /// Median over rounds of messages in a second to those over the bare socket in the same round.
    rate_to_socket: Option<f64>,
    /// Least and most of that ratio.
    rate_to_socket_range: Option<Range>,
    /// Streams on the same connection that nobody reads; null where that is not the question.
    stalled_streams: Option<u32>,
    /// Median over rounds of this p50 to that without a stalled stream in the same round.
    ratio_to_unstalled: Option<f64>,
    /// Least and most of that ratio.
    ratio_to_unstalled_range: Option<Range>,
    /// The same of p99.
    ratio_p99_to_unstalled: Option<f64>,
    /// `inline` or `async`; null where that is not the question.
    handler: Option<&'static str>,
    /// Median over rounds of the p50 of typed calls to that of calls of bytes to the same sort of handler in the
    /// same round.
    ratio_to_raw: Option<f64>,
    /// Least and most of that ratio.
    ratio_to_raw_range: Option<Range>,
    /// The same of the means of the middle halves.
    ratio_mid_to_raw: Option<f64>,
    /// Least and most of that ratio.
    ratio_mid_to_raw_range: Option<Range>,
    /// Median over rounds of what is left of that mean without the other.
    above_raw_mid_ns: Option<f64>,
    /// Whether these typed calls have a deadline; null where that is not the question.
    deadline: Option<bool>,
    /// Between two items of a stream.
    every_ns: Option<u64>,
    /// Median over rounds of this system's p50, and p99, to those of a bare line at the same pace in the
    /// same round.
    ratio_to_line: Option<f64>,
    ratio_p99_to_line: Option<f64>,
    /// Median over rounds of what is left of this system's p50, and p99, without those of the bare line.
    above_line_p50_ns: Option<f64>,
    above_line_p99_ns: Option<f64>,
    /// From when an item was due, not from when it was sent.
    from_due_p50_ns: Option<u64>,
    from_due_p99_ns: Option<u64>,
    from_due_p999_ns: Option<u64>,
    /// Of a burst, in the round that left most behind: memory before, at the peak, and when it was over for
    /// twice the idle time.
    before_private_kib: Option<u64>,
    before_shared_kib: Option<u64>,
    peak_private_kib: Option<u64>,
    peak_shared_kib: Option<u64>,
    after_private_kib: Option<u64>,
    after_shared_kib: Option<u64>,
    /// From the last reply until private and shared memory were within 1 MiB of what they were before.
    back_after_ms: Option<u64>,
    rounds: usize,
    /// Taken off every sample: what one look at the clock cost.
    clock_ns: u64,
}

/// Least and most.
type Range = (f64, f64);

fn median<T: PartialOrd + Copy>(values: impl IntoIterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_by(|a, b| a.partial_cmp(b).expect("no figure is NaN"));
    values.get(values.len() / 2).copied()
}

fn range(values: &[f64]) -> Option<Range> {
    let least = values.iter().copied().reduce(f64::min)?;
    Some((least, values.iter().copied().reduce(f64::max)?))
}

/// The times of one part in one round.
type Pick = fn(&Measured) -> Option<&Histogram<u64>>;

fn latency(measured: &Measured) -> Option<&Histogram<u64>> {
    measured.latency.as_ref()
}

fn from_due(measured: &Measured) -> Option<&Histogram<u64>> {
    measured.from_due.as_ref()
}

/// The mean of the middle half of the samples, from the first to the third quartile, in nanoseconds: a median that lies
/// between the steps of the clock, which may be wider than the differences that are looked for.
fn mid_mean(histogram: &Histogram<u64>) -> f64 {
    let samples = histogram.len() as f64;
    let (from, to) = (samples * 0.25, samples * 0.75);
    let (mut before, mut sum) = (0.0, 0.0);
    for step in histogram.iter_recorded() {
        let behind = before + step.count_at_value() as f64;
        sum += step.value_iterated_to() as f64 * (behind.min(to) - f64::max(before, from)).max(0.0);
        before = behind;
    }
    sum / (to - from).max(1.0)
}

/// What a burst left behind, in KiB.
fn left_kib(course: &Course) -> u64 {
    course.after.kib().saturating_sub(course.before.kib())
}

fn rate(measured: &Measured) -> f64 {
    measured.messages as f64 / measured.seconds
}

impl<'a> Report<'a> {
    pub(super) fn new(
        scenario: &'a Scenario,
        options: &'a Options,
        clock_ns: u64,
        rounds: Vec<Vec<Part>>,
    ) -> Report<'a> {
        Report { scenario, options, clock_ns, rounds }
    }

    fn parts(&self) -> &[Part] {
        self.rounds.first().map_or(&[], Vec::as_slice)
    }

    /// Which part is of this system.
    fn find(&self, system: &str) -> Option<usize> {
        self.parts().iter().position(|part| part.about.system == system)
    }

    /// The part that this one is compared with for what stalled streams cost.
    fn find_unstalled(&self, part: usize) -> Option<usize> {
        let about = &self.parts()[part].about;
        about.stalled_streams?;
        let unstalled = About { stalled_streams: Some(0), ..about.clone() };
        self.parts().iter().position(|part| part.about == unstalled)
    }

    /// The `part`th part in every round.
    fn each(&self, part: usize) -> impl Iterator<Item = &Measured> {
        self.rounds.iter().map(move |round| &round[part].measured)
    }

    /// The calls of bytes that these typed ones are compared with.
    fn find_raw(&self, part: usize) -> Option<usize> {
        let about = &self.parts()[part].about;
        about.handler.filter(|_| about.scenario == "typed")?;
        let raw = About { scenario: "rtt", deadline: None, ..about.clone() };
        self.parts().iter().position(|part| part.about == raw)
    }

    fn over_rounds(&self, part: usize, pick: Pick, q: f64) -> Option<u64> {
        median(self.each(part).filter_map(|measured| Some(pick(measured)?.value_at_quantile(q))))
    }

    /// In every round, this part's quantile to that of another.
    fn ratios(&self, part: usize, to: Option<usize>, q: f64) -> Vec<f64> {
        self.pairs(part, to, q).map(|(this, to)| this / to.max(1.0)).collect()
    }

    /// In every round, how many nanoseconds this part's latency is above the other's.
    fn above(&self, part: usize, other: Option<usize>, q: f64) -> Vec<f64> {
        self.pairs(part, other, q).map(|(this, other)| this - other).collect()
    }

    /// In every round, the means of the middle halves of this part's latencies and the other's, where both have some.
    fn mids(&self, part: usize, other: Option<usize>) -> Vec<(f64, f64)> {
        let mid = |measured| Some(mid_mean(latency(measured)?));
        let each = other.map(|other| self.each(part).zip(self.each(other)));
        let pairs = each.into_iter().flatten();
        pairs.filter_map(|(this, other)| Some((mid(this)?, mid(other)?))).collect()
    }

    /// In every round, this part's latency and the other's, where both have one.
    fn pairs(&self, part: usize, other: Option<usize>, q: f64) -> impl Iterator<Item = (f64, f64)> {
        let at = move |measured| Some(latency(measured)?.value_at_quantile(q) as f64);
        let each = other.map(|other| self.each(part).zip(self.each(other)));
        each.into_iter().flatten().filter_map(move |(this, other)| Some((at(this)?, at(other)?)))
    }

    /// In every round, this part's messages in a second to the bare socket's, where both sent the same.
    fn rates_to_socket(&self, part: usize) -> Vec<f64> {
        let sent = |part: usize| self.parts()[part].about.scenario;
        match self.find("bare-socket").filter(|socket| sent(*socket) == sent(part)) {
            Some(socket) if latency(&self.parts()[socket].measured).is_none() => {
                let pairs = self.each(part).zip(self.each(socket));
                pairs.map(|(this, socket)| rate(this) / rate(socket)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn row(&self, part: usize) -> Row {
        let about = &self.parts()[part].about;
        let options = self.options;
        let of_lapwing = |value: String| about.is_lapwing().then_some(value);
        let floor = self.find("floor");
        let ratios = self.ratios(part, floor, 0.5);
        let to_eventfd = self.ratios(part, self.find("bare-eventfd"), 0.5);
        let to_copy = self.ratios(part, self.find("bare-copy"), 0.5);
        let to_socket = self.rates_to_socket(part);
        let to_unstalled = self.ratios(part, self.find_unstalled(part), 0.5);
        let to_raw = self.ratios(part, self.find_raw(part), 0.5);
        let mids = self.mids(part, self.find_raw(part));
        let ratios_of_mids: Vec<f64> = mids.iter().map(|(this, raw)| this / raw.max(1.0)).collect();
        let worst = self.each(part).filter_map(|m| m.burst).max_by_key(left_kib);
        let backs = self.each(part).map(|m| m.burst.and_then(|burst| burst.back_after_ms));
        let memory = median(self.each(part).filter_map(|measured| measured.memory));
        let per_second = median(self.each(part).map(rate)).unwrap_or(0.0);
        let of_floor = |q| floor.and_then(|floor| self.over_rounds(floor, latency, q)).unwrap_or(0);
        let bytes_per_second = match about.payload_bytes {
            Some(bytes) => Some(per_second * f64::from(bytes)),
            None => median(self.each(part).filter_map(|m| Some(m.bytes? as f64 / m.seconds))),
        };
        Row {
            scenario: about.scenario,
            system: about.system,
            api: of_lapwing(name(&options.api)),
            transport: of_lapwing(name(&options.transport)),
            spin: of_lapwing(name(&options.spin)),
            checksum: self.each(part).find_map(|measured| measured.checksum),
            pinned: !options.unpinned,
            payload_bytes: about.payload_bytes,
            in_flight: about.in_flight,
            connections: about.is_lapwing().then_some(1),
            samples: self.each(part).map(|measured| measured.messages).sum(),
            p50_ns: self.over_rounds(part, latency, 0.5),
            p99_ns: self.over_rounds(part, latency, 0.99),
            p999_ns: self.over_rounds(part, latency, 0.999),
            max_ns: self.each(part).filter_map(|m| Some(latency(m)?.max())).max(),
            per_second,
            bytes_per_second,
            server_private_kib: memory.map(|memory| memory.private_kib),
            server_shared_kib: memory.map(|memory| memory.shared_kib),
            floor_p50_ns: of_floor(0.5),
            floor_p99_ns: of_floor(0.99),
            cores: std::thread::available_parallelism().map_or(1, usize::from).max(cores()),
            ratio_p50: median(ratios.iter().copied()),
            ratio_p50_range: range(&ratios),
            ratio_to_eventfd: median(to_eventfd),
            ratio_to_copy: median(to_copy.iter().copied()),
            ratio_to_copy_range: range(&to_copy),
            rate_to_socket: median(to_socket.iter().copied()),
            rate_to_socket_range: range(&to_socket),
            stalled_streams: about.stalled_streams,
            ratio_to_unstalled: median(to_unstalled.iter().copied()),
            ratio_to_unstalled_range: range(&to_unstalled),
            ratio_p99_to_unstalled: median(self.ratios(part, self.find_unstalled(part), 0.99)),
            handler: about.handler,
            ratio_to_raw: median(to_raw.iter().copied()),
            ratio_to_raw_range: range(&to_raw),
            ratio_mid_to_raw: median(ratios_of_mids.iter().copied()),
            ratio_mid_to_raw_range: range(&ratios_of_mids),
            above_raw_mid_ns: median(mids.iter().map(|(this, raw)| this - raw)),
            deadline: about.deadline,
            every_ns: (about.is_lapwing() && options.every_ns > 0).then_some(options.every_ns),
            ratio_to_line: median(self.ratios(part, self.find("bare-line"), 0.5)),
            ratio_p99_to_line: median(self.ratios(part, self.find("bare-line"), 0.99)),
            above_line_p50_ns: median(self.above(part, self.find("bare-line"), 0.5)),
            above_line_p99_ns: median(self.above(part, self.find("bare-line"), 0.99)),
            from_due_p50_ns: self.over_rounds(part, from_due, 0.5),
            from_due_p99_ns: self.over_rounds(part, from_due, 0.99),
            from_due_p999_ns: self.over_rounds(part, from_due, 0.999),
            before_private_kib: worst.map(|course| course.before.private_kib),
            before_shared_kib: worst.map(|course| course.before.shared_kib),
            peak_private_kib: worst.and_then(|course| Some(course.peak?.private_kib)),
            peak_shared_kib: worst.and_then(|course| Some(course.peak?.shared_kib)),
            after_private_kib: worst.map(|course| course.after.private_kib),
            after_shared_kib: worst.map(|course| course.after.shared_kib),
            // The longest, and none at all when one round did not come to it.
            back_after_ms: backs.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max()),
            rounds: self.rounds.len(),
            clock_ns: self.clock_ns,
        }
    }

    pub(super) fn print(&self) -> Result<(), StdoutError> {
        let mut out = io::stdout().lock();
        self.print_to(&mut out).and_then(|()| out.flush()).map_err(StdoutError)
    }

    fn print_to(&self, out: &mut impl Write) -> io::Result<()> {
        let rows: Vec<Row> = (0..self.parts().len()).map(|part| self.row(part)).collect();
        if self.options.json {
            for row in &rows {
                writeln!(out, "{}", serde_json::to_string(row)?)?;
            }
            return Ok(());
        }
        self.print_heading(out)?;
        for (row, part) in rows.iter().zip(self.parts()) {
            print_row(out, row, &part.about.label())?;
        }
        for row in rows.iter().filter(|row| row.system == "lapwing") {
            print_notes(out, row)?;
        }
        Ok(())
    }

    fn print_heading(&self, out: &mut impl Write) -> io::Result<()> {
        let options = self.options;
        let api = match options.api {
            Api::Blocking => "blocking client",
            Api::Tokio => "tokio client, one thread",
        };
        let pinned = if options.unpinned { "not pinned" } else { "pinned to cores 0 and 1" };
        let length = match options.payload {
            0 => "100 to 102400".to_owned(),
            payload => payload.to_string(),
        };
        let checksum = self.rounds.iter().flatten().find_map(|part| part.measured.checksum);
        writeln!(
            out,
            "{} of {length} bytes: two processes {pinned}, {api}, {} transport, spin {}, checksum {}, \
             {} of {}",
            self.scenario,
            name(&options.transport),
            name(&options.spin),
            checksum.unwrap_or("-"),
            counted(self.rounds.len() as u64, "round", "rounds"),
            options.samples,
        )?;
        writeln!(
            out,
            "{:<20} {:>10} {:>10} {:>10} {:>12} {:>10} {:>8} {:>14}",
            "system", "p50", "p99", "p99.9", "per second", "MB/s", "x floor", "(range)"
        )
    }
}

/// Cores of the machine; this process may be pinned to one.
fn cores() -> usize {
    std::fs::read_to_string("/proc/cpuinfo")
        .map_or(1, |text| text.lines().filter(|line| line.starts_with("processor")).count())
}

fn print_row(out: &mut impl Write, row: &Row, label: &str) -> io::Result<()> {
    let ns = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |ns| format!("{ns} ns"));
    let (ratio, range) = match (row.ratio_p50, row.ratio_p50_range) {
        (Some(ratio), Some((least, most))) => {
            (format!("{ratio:.2}"), format!("{least:.2}-{most:.2}"))
        }
        _ => ("-".to_owned(), "-".to_owned()),
    };
    let megabytes = row.bytes_per_second.map(|bytes| format!("{:.1}", bytes / 1e6));
    writeln!(
        out,
        "{:<20} {:>10} {:>10} {:>10} {:>12.0} {:>10} {:>8} {:>14}",
        label,
        ns(row.p50_ns),
        ns(row.p99_ns),
        ns(row.p999_ns),
        row.per_second,
        megabytes.as_deref().unwrap_or("-"),
        ratio,
        range,
    )
}

/// What a scenario is about, where the table does not say it.
fn print_notes(out: &mut impl Write, row: &Row) -> io::Result<()> {
    if let (Some(ratio), Some((least, most))) = (row.ratio_to_copy, row.ratio_to_copy_range) {
        writeln!(out, "lapwing takes {ratio:.2} x the bare copies ({least:.2}-{most:.2})")?;
    }
    if let (Some(ratio), Some((least, most))) = (row.rate_to_socket, row.rate_to_socket_range) {
        writeln!(
            out,
            "lapwing moves {ratio:.2} x the messages of the bare socket ({least:.2}-{most:.2})"
        )?;
    }
    if let (Some(ratio), Some((least, most)), Some(above), Some(handler)) =
        (row.ratio_mid_to_raw, row.ratio_mid_to_raw_range, row.above_raw_mid_ns, row.handler)
    {
        let with = if row.deadline == Some(true) { "with a" } else { "without" };
        writeln!(
            out,
            "typed, {handler} handler, {with} deadline: {ratio:.2} x the same of bytes \
             ({least:.2}-{most:.2}), {above:+.0} ns"
        )?;
    }
    if let (Some(ratio), Some(p50), Some(p99)) =
        (row.ratio_to_line, row.above_line_p50_ns, row.above_line_p99_ns)
    {
        writeln!(
            out,
            "lapwing takes {ratio:.2} x a bare line at this pace: p50 {p50:+.0} ns, p99 {p99:+.0} ns"
        )?;
    }
    if let (Some(p50), Some(p99), Some(p999)) =
        (row.from_due_p50_ns, row.from_due_p99_ns, row.from_due_p999_ns)
    {
        writeln!(out, "from when an item was due: p50 {p50} ns, p99 {p99} ns, p99.9 {p999} ns")?;
    }
    if let (Some(1..), Some(p50), Some((least, most)), Some(p99), Some(calls)) = (
        row.stalled_streams,
        row.ratio_to_unstalled,
        row.ratio_to_unstalled_range,
        row.ratio_p99_to_unstalled,
        row.in_flight,
    ) {
        writeln!(
            out,
            "{calls} in flight beside a stalled stream: p50 {p50:.2} x ({least:.2}-{most:.2}), p99 {p99:.2} x \
             without"
        )?;
    }
    print_burst(out, row)
}

fn print_burst(out: &mut impl Write, row: &Row) -> io::Result<()> {
    let moments = [
        ("before", row.before_private_kib, row.before_shared_kib),
        ("peak", row.peak_private_kib, row.peak_shared_kib),
        ("after", row.after_private_kib, row.after_shared_kib),
    ];
    for (when, private, shared) in moments {
        if let (Some(private), Some(shared)) = (private, shared) {
            writeln!(out, "server {when:<6} {private:>8} KiB private {shared:>8} KiB shared")?;
        } else if row.before_private_kib.is_some() {
            writeln!(out, "server {when:<6} not seen: who watches got no turn")?;
        }
    }
    match row.back_after_ms {
        Some(ms) => writeln!(out, "within 1 MiB of what it was after {ms} ms at most"),
        None if row.before_private_kib.is_some() => {
            writeln!(out, "not within 1 MiB of what it was when twice the idle time had passed")
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[(u64, u64)]) -> Histogram<u64> {
        let mut histogram = super::super::client::histogram();
        for (value, count) in values {
            histogram.record_n(*value, *count).unwrap();
        }
        histogram
    }

    #[test]
    fn mean_of_the_middle_half_lies_between_the_steps_of_the_clock() {
        let mid = |values: &[_]| mid_mean(&of(values));
        assert_eq!(mid(&[(200, 50), (210, 50)]), 205.0);
        assert_eq!(mid(&[(200, 10), (210, 30), (220, 20)]), (25.0 * 210.0 + 5.0 * 220.0) / 30.0);
        assert_eq!(mid(&[(100, 25), (200, 40), (210, 10), (900, 25)]), 202.0);
        assert_eq!(mid(&[(300, 4)]), 300.0);
        assert_eq!(mid(&[]), 0.0);
    }
}
