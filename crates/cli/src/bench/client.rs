//! The measuring side.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use lapwing::floor::{Bare, Floor};
use lapwing::{CallOptions, IpcClient, Raw, Unary, blocking};

use super::burst::Course;
use super::in_place;
use super::options::{Api, Options};
use super::peer::{Body, COUNT, ECHO, Items, RETURN, STREAM, TOTAL, TYPED, TYPED_ASYNC};

/// What is sent through Lapwing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Load {
    RoundTrips(Answers),
    OneWay,
    Pipelined,
    /// Round trips of a typed method, with a deadline or none.
    Typed(Answers, Deadline),
    /// One stream of replies.
    Stream,
    /// One-way messages of five lengths in turn.
    Mixed,
    /// Round trips of long messages, copied at every step.
    Echo,
    /// Round trips of long messages that stay where they are.
    InPlace,
    /// One stream of replies at a steady pace, each item of which is timed.
    Chunks,
    /// Long messages at once, then nothing.
    Burst,
}

/// What answers at the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answers {
    /// A plain function, where the frame is read.
    Inline,
    /// An async function.
    Async,
}

/// Whether calls have a deadline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Deadline {
    None,
    Ample,
}

impl Deadline {
    fn options(self) -> CallOptions {
        match self {
            Deadline::None => CallOptions::default(),
            Deadline::Ample => CallOptions::default().timeout(AMPLE),
        }
    }
}

impl Answers {
    fn raw(self) -> u16 {
        match self {
            Answers::Inline => ECHO,
            Answers::Async => RETURN,
        }
    }

    fn typed(self) -> Unary<Body, Body, Raw> {
        match self {
            Answers::Inline => TYPED,
            Answers::Async => TYPED_ASYNC,
        }
    }
}

/// A time that no call of a benchmark takes: what is measured is that there is one.
const AMPLE: Duration = Duration::from_secs(60);

/// One system in one round.
#[derive(Clone, Default, Debug)]
pub(super) struct Measured {
    /// Nanoseconds a sample, where each was timed.
    pub(super) latency: Option<Histogram<u64>>,
    /// The same from when each was due, where that was fixed beforehand.
    pub(super) from_due: Option<Histogram<u64>>,
    /// Messages in `seconds`.
    pub(super) messages: u64,
    pub(super) seconds: f64,
    /// Bytes of their payloads, where those are not of one length.
    pub(super) bytes: Option<u64>,
    /// The checksum that was agreed on, where there is one.
    pub(super) checksum: Option<&'static str>,
    /// Memory of the other process after the load.
    pub(super) memory: Option<Memory>,
    /// Its memory in the course of a burst.
    pub(super) burst: Option<Course>,
}

/// Memory of a process, in KiB.
#[derive(Clone, Copy, PartialEq, PartialOrd, Default, Debug)]
pub(super) struct Memory {
    pub(super) private_kib: u64,
    pub(super) shared_kib: u64,
}

impl Memory {
    pub(super) fn kib(self) -> u64 {
        self.private_kib + self.shared_kib
    }
}

/// The longest sample told apart, in nanoseconds.
const LONGEST_NS: u64 = 10_000_000_000;

pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("bounds are in order")
}

/// Times one sample after the other with one look at the clock for each.
pub(super) struct Timer {
    latency: Histogram<u64>,
    begun: Instant,
    last: Instant,
    clock_ns: u64,
}

impl Timer {
    pub(super) fn start(clock_ns: u64) -> Timer {
        let now = Instant::now();
        Timer { latency: histogram(), begun: now, last: now, clock_ns }
    }

    pub(super) fn lap(&mut self) {
        let now = Instant::now();
        let took = u64::try_from((now - self.last).as_nanos()).unwrap_or(LONGEST_NS);
        self.last = now;
        self.latency.saturating_record(took.saturating_sub(self.clock_ns).max(1));
    }

    pub(super) fn finish(self) -> Measured {
        let messages = self.latency.len();
        let seconds = (self.last - self.begun).as_secs_f64();
        Measured { latency: Some(self.latency), messages, seconds, ..Measured::default() }
    }
}

/// What one look at the clock costs, as the median of many.
pub(super) fn clock_cost_ns() -> u64 {
    let mut costs = histogram();
    let mut last = Instant::now();
    for _ in 0..100_000 {
        let now = Instant::now();
        costs.saturating_record((now - last).as_nanos() as u64);
        last = now;
    }
    costs.value_at_quantile(0.5)
}

/// Measures a bare round trip.
pub(super) fn bare(
    floor: &mut Floor,
    bare: Bare,
    samples: u64,
    clock_ns: u64,
) -> anyhow::Result<Measured> {
    let mut timer = Timer::start(clock_ns);
    floor.round_trips(bare, samples, || timer.lap()).context("the other process is gone")?;
    Ok(timer.finish())
}

/// Measures a line that the other process hands over at a steady pace. Nothing is taken off.
pub(super) fn paced(floor: &mut Floor, samples: u64, every_ns: u64) -> anyhow::Result<Measured> {
    let every_ns = u32::try_from(every_ns).context("a pace is below 4 s")?;
    let mut latency = histogram();
    let begun = Instant::now();
    let heard = |took: u64| latency.saturating_record(took.max(1));
    floor.paced(samples, every_ns, heard).context("the other process is gone")?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Measured { latency: Some(latency), messages: samples, seconds, ..Measured::default() })
}

/// Connects, sends the load, checks every reply, disconnects.
pub(super) fn run_load(
    socket: &Path,
    options: &Options,
    load: Load,
    server: u32,
    clock_ns: u64,
) -> anyhow::Result<Measured> {
    let connecting = options.client(options.in_place.then(in_place::token));
    match options.api {
        Api::Blocking => {
            let client = blocking::IpcClient::connect_with(socket, &connecting)?;
            let measured = Blocking { client: &client, options, server, clock_ns }.run(load)?;
            let checksum = Some(client.agreement().checksum);
            client.disconnect();
            Ok(Measured { checksum, ..measured })
        }
        Api::Tokio => runtime()?.block_on(async {
            let client = IpcClient::connect_with(socket, connecting).await?;
            let measured = Async { client: &client, options, server, clock_ns }.run(load).await?;
            let checksum = Some(client.agreement().checksum);
            client.disconnect().await;
            Ok(Measured { checksum, ..measured })
        }),
    }
}

/// What an async client runs on.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Messages that were not timed one by one.
pub(super) fn counted(messages: u64, seconds: f64) -> Measured {
    Measured { messages, seconds, ..Measured::default() }
}

/// A payload that tells its number.
pub(super) fn payload(options: &Options) -> Vec<u8> {
    (0..options.payload).map(|i| i as u8).collect()
}

pub(super) fn number(payload: &mut [u8], n: u64) {
    let bytes = n.to_le_bytes();
    let length = payload.len().min(bytes.len());
    payload[..length].copy_from_slice(&bytes[..length]);
}

pub(super) struct Blocking<'a> {
    pub(super) client: &'a blocking::IpcClient,
    pub(super) options: &'a Options,
    /// The process at the other end.
    pub(super) server: u32,
    pub(super) clock_ns: u64,
}

impl Blocking<'_> {
    fn run(&self, load: Load) -> anyhow::Result<Measured> {
        match load {
            Load::RoundTrips(answers) => self.round_trips(answers.raw()),
            Load::OneWay => self.one_way(),
            Load::Pipelined => self.pipelined(self.options.in_flight as usize),
            Load::Typed(answers, deadline) => self.typed(answers.typed(), deadline),
            Load::Stream => self.stream(),
            Load::Mixed => self.mixed(),
            Load::Echo => self.echo(),
            Load::InPlace => self.in_place(),
            Load::Chunks => self.chunks(),
            Load::Burst => self.burst(),
        }
    }

    fn round_trips(&self, echo: u16) -> anyhow::Result<Measured> {
        let mut sent = payload(self.options);
        for n in 0..1000 {
            number(&mut sent, n);
            ensure!(self.client.call_raw(echo, &sent)?.bytes() == sent, "a reply is wrong");
        }
        let mut timer = Timer::start(self.clock_ns);
        for n in 0..self.options.samples {
            number(&mut sent, n);
            let reply = self.client.call_raw(echo, &sent)?;
            ensure!(reply.bytes() == sent, "a reply is wrong");
            timer.lap();
        }
        Ok(timer.finish())
    }

    fn typed(
        &self,
        method: Unary<Body, Body, Raw>,
        deadline: Deadline,
    ) -> anyhow::Result<Measured> {
        let mut sent = Body::Own(payload(self.options));
        let options = deadline.options();
        let mut timer = Timer::start(self.clock_ns);
        for n in 0..self.options.samples {
            if let Body::Own(bytes) = &mut sent {
                number(bytes, n);
            }
            let reply = self.client.call_with(method, &sent, &options)?;
            ensure!(reply.as_ref() == sent.as_ref(), "a reply is wrong");
            timer.lap();
        }
        Ok(timer.finish())
    }

    fn stream(&self) -> anyhow::Result<Measured> {
        let mut expected = payload(self.options);
        let wanted = Items { count: self.options.samples, bytes: self.options.payload };
        let begun = Instant::now();
        let items = self.client.stream(STREAM, &wanted.into(), &CallOptions::default())?;
        let mut count = 0;
        for item in items {
            number(&mut expected, count);
            ensure!(item?.bytes() == expected, "an item is wrong");
            count += 1;
        }
        let seconds = begun.elapsed().as_secs_f64();
        ensure!(count == self.options.samples, "items were lost");
        Ok(counted(count, seconds))
    }

    fn one_way(&self) -> anyhow::Result<Measured> {
        let sent = payload(self.options);
        let before = total(&self.client.call_raw(TOTAL, &[])?)?;
        let begun = Instant::now();
        for _ in 0..self.options.samples {
            self.client.send_oneway(COUNT, &sent)?;
        }
        // Answered after all of them were handled.
        let after = total(&self.client.call_raw(TOTAL, &[])?)?;
        let seconds = begun.elapsed().as_secs_f64();
        ensure!(after - before == self.options.samples, "messages were lost");
        Ok(counted(self.options.samples, seconds))
    }

    fn pipelined(&self, in_flight: usize) -> anyhow::Result<Measured> {
        let mut sent = payload(self.options);
        let mut expected = sent.clone();
        let mut pending = std::collections::VecDeque::with_capacity(in_flight);
        let begun = Instant::now();
        for n in 0..self.options.samples {
            if pending.len() == in_flight {
                let (m, call): (u64, blocking::PendingCall<'_>) =
                    pending.pop_front().expect("as many as in flight");
                number(&mut expected, m);
                ensure!(call.collect()?.bytes() == expected, "a reply is wrong");
            }
            number(&mut sent, n);
            pending.push_back((n, self.client.submit(ECHO, &sent)?));
        }
        for (m, call) in pending {
            number(&mut expected, m);
            ensure!(call.collect()?.bytes() == expected, "a reply is wrong");
        }
        let seconds = begun.elapsed().as_secs_f64();
        Ok(counted(self.options.samples, seconds))
    }
}

pub(super) struct Async<'a> {
    pub(super) client: &'a IpcClient,
    pub(super) options: &'a Options,
    /// The process at the other end.
    pub(super) server: u32,
    pub(super) clock_ns: u64,
}

impl Async<'_> {
    async fn run(&self, load: Load) -> anyhow::Result<Measured> {
        match load {
            Load::RoundTrips(answers) => self.round_trips(answers.raw()).await,
            Load::OneWay => self.one_way().await,
            Load::Pipelined => self.pipelined(self.options.in_flight).await,
            Load::Typed(answers, deadline) => self.typed(answers.typed(), deadline).await,
            Load::Stream => self.stream().await,
            Load::Mixed => self.mixed().await,
            Load::Echo => self.echo().await,
            Load::InPlace => self.in_place().await,
            Load::Chunks => self.chunks().await,
            Load::Burst => self.burst().await,
        }
    }

    async fn round_trips(&self, echo: u16) -> anyhow::Result<Measured> {
        let mut sent = payload(self.options);
        let mut timer = Timer::start(self.clock_ns);
        for n in 0..self.options.samples {
            number(&mut sent, n);
            let reply = self.client.call_raw(echo, &sent).await?;
            ensure!(reply.bytes() == sent, "a reply is wrong");
            timer.lap();
        }
        Ok(timer.finish())
    }

    async fn typed(
        &self,
        method: Unary<Body, Body, Raw>,
        deadline: Deadline,
    ) -> anyhow::Result<Measured> {
        let mut sent = Body::Own(payload(self.options));
        let options = deadline.options();
        let mut timer = Timer::start(self.clock_ns);
        for n in 0..self.options.samples {
            if let Body::Own(bytes) = &mut sent {
                number(bytes, n);
            }
            let reply = self.client.call_with(method, &sent, &options).await?;
            ensure!(reply.as_ref() == sent.as_ref(), "a reply is wrong");
            timer.lap();
        }
        Ok(timer.finish())
    }

    async fn stream(&self) -> anyhow::Result<Measured> {
        let mut expected = payload(self.options);
        let wanted = Items { count: self.options.samples, bytes: self.options.payload };
        let begun = Instant::now();
        let mut items = self.client.stream(STREAM, &wanted.into()).await?;
        let mut count = 0;
        while let Some(item) = items.next().await {
            number(&mut expected, count);
            ensure!(item?.bytes() == expected, "an item is wrong");
            count += 1;
        }
        let seconds = begun.elapsed().as_secs_f64();
        ensure!(count == self.options.samples, "items were lost");
        Ok(counted(count, seconds))
    }

    async fn one_way(&self) -> anyhow::Result<Measured> {
        let sent = payload(self.options);
        let before = total(&self.client.call_raw(TOTAL, &[]).await?)?;
        let begun = Instant::now();
        for _ in 0..self.options.samples {
            self.client.send_oneway(COUNT, &sent).await?;
        }
        let after = total(&self.client.call_raw(TOTAL, &[]).await?)?;
        let seconds = begun.elapsed().as_secs_f64();
        ensure!(after - before == self.options.samples, "messages were lost");
        Ok(counted(self.options.samples, seconds))
    }

    /// As many tasks as calls in flight, each with one call at a time.
    async fn pipelined(&self, in_flight: u32) -> anyhow::Result<Measured> {
        let each = self.options.samples / u64::from(in_flight);
        let begun = Instant::now();
        let tasks: Vec<_> = (0..in_flight)
            .map(|task| {
                let client = self.client.clone();
                let mut sent = payload(self.options);
                tokio::spawn(async move {
                    for n in 0..each {
                        number(&mut sent, u64::from(task) << 32 | n);
                        let reply = client.call_raw(ECHO, &sent).await?;
                        ensure!(reply.bytes() == sent, "a reply is wrong");
                    }
                    Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let messages = each * u64::from(in_flight);
        Ok(counted(messages, seconds))
    }
}

fn total(reply: &[u8]) -> anyhow::Result<u64> {
    Ok(u64::from_le_bytes(reply.try_into().context("a total has 8 bytes")?))
}
