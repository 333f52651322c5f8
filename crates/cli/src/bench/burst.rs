//! Many long messages at once, then nothing: what the server's memory comes to, and whether it goes back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lapwing::floor::{is_numbered, number};
use lapwing::{IpcClient, Payload};

use super::client::{Async, Blocking, Measured, Memory, payload};
use super::options::Options;
use super::peer::{RETURN, memory_of};

/// Memory of the server in the course of a burst.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub(super) struct Course {
    pub(super) before: Memory,
    /// `None` when the thread that watches never got its turn, as beside one that spins with real-time priority.
    pub(super) peak: Option<Memory>,
    pub(super) after: Memory,
    /// From the last reply until it was within [`NEAR_KIB`] of what it was, if it came to that.
    pub(super) back_after_ms: Option<u64>,
}

/// So near to what it was before counts as back.
const NEAR_KIB: u64 = 1024;

/// Between two looks at the server's memory.
const LOOK: Duration = Duration::from_millis(2);

/// Memory is given back when it was not used for the idle time, which is looked at once in an idle time: so it
/// takes two of them at most, and a little.
fn settling(options: &Options) -> Duration {
    Duration::from_millis(2 * options.bulk_idle_ms + 500)
}

fn memory(server: u32) -> anyhow::Result<Memory> {
    memory_of(server).context("the other process is gone")
}

/// Looks at the server's memory until told that the burst is over; the most that was seen.
fn watch(server: u32, over: &AtomicBool) -> Option<Memory> {
    let mut peak = None::<Memory>;
    while !over.load(Ordering::Relaxed) {
        let now = memory_of(server);
        peak = peak.into_iter().chain(now).max_by_key(|memory| memory.kib());
        thread::sleep(LOOK);
    }
    peak
}

/// Waits until the memory should be given back: what it is then, and when it was near `before`.
fn settle(server: u32, options: &Options, before: Memory) -> anyhow::Result<(Memory, Option<u64>)> {
    let begun = Instant::now();
    let mut back = None;
    while begun.elapsed() < settling(options) {
        thread::sleep(10 * LOOK);
        if back.is_none() && memory(server)?.kib() <= before.kib() + NEAR_KIB {
            back = Some(begun.elapsed().as_millis() as u64);
        }
    }
    Ok((memory(server)?, back))
}

/// Runs `send`, which is over with its last reply, and watches the server's memory then and afterwards.
fn watched(
    server: u32,
    options: &Options,
    send: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Measured> {
    let before = memory(server)?;
    let over = AtomicBool::new(false);
    let (sent, seconds, peak) = thread::scope(|scope| {
        let watching = scope.spawn(|| watch(server, &over));
        let begun = Instant::now();
        let sent = send();
        let seconds = begun.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        (sent, seconds, watching.join().expect("watching does not panic"))
    });
    sent?;
    let (after, back_after_ms) = settle(server, options, before)?;
    let burst = Some(Course { before, peak, after, back_after_ms });
    Ok(Measured { messages: options.samples, seconds, burst, ..Measured::default() })
}

fn check(reply: &Payload, n: u64, options: &Options) -> anyhow::Result<()> {
    let right = reply.len() == options.payload as usize && is_numbered(reply, n);
    ensure!(right, "a reply is wrong");
    Ok(())
}

impl Blocking<'_> {
    pub(super) fn burst(&self) -> anyhow::Result<Measured> {
        ensure!(self.client.call_raw(RETURN, b"before")?.bytes() == b"before", "a reply is wrong");
        watched(self.server, self.options, || self.send_burst())
    }

    fn send_burst(&self) -> anyhow::Result<()> {
        let mut sent = payload(self.options);
        let mut pending = VecDeque::new();
        for n in 0..self.options.samples {
            if pending.len() == self.options.in_flight as usize {
                let (m, call): (u64, lapwing::blocking::PendingCall<'_>) =
                    pending.pop_front().expect("as many as in flight");
                check(&call.collect()?, m, self.options)?;
            }
            number(&mut sent, n);
            pending.push_back((n, self.client.submit(RETURN, &sent)?));
        }
        pending.into_iter().try_for_each(|(m, call)| check(&call.collect()?, m, self.options))
    }
}

impl Async<'_> {
    pub(super) async fn burst(&self) -> anyhow::Result<Measured> {
        let first = self.client.call_raw(RETURN, b"before").await?;
        ensure!(first.bytes() == b"before", "a reply is wrong");
        let before = memory(self.server)?;
        let over = std::sync::Arc::new(AtomicBool::new(false));
        let watching = {
            let (server, over) = (self.server, std::sync::Arc::clone(&over));
            thread::spawn(move || watch(server, &over))
        };
        let begun = Instant::now();
        let sent = self.send_burst().await;
        let seconds = begun.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        let peak = watching.join().expect("watching does not panic");
        sent?;
        let (server, options) = (self.server, self.options.clone());
        // This runtime goes on meanwhile: the client gives its own memory back, too.
        let settled = tokio::task::spawn_blocking(move || settle(server, &options, before));
        let (after, back_after_ms) = settled.await??;
        let burst = Some(Course { before, peak, after, back_after_ms });
        Ok(Measured { messages: self.options.samples, seconds, burst, ..Measured::default() })
    }

    /// As many tasks as calls in flight; the `n`th sends every message whose turn it is.
    async fn send_burst(&self) -> anyhow::Result<()> {
        let tasks: Vec<_> = (0..self.options.in_flight)
            .map(|task| {
                tokio::spawn(send_share(self.client.clone(), self.options.clone(), u64::from(task)))
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    }
}

async fn send_share(client: IpcClient, options: Options, first: u64) -> anyhow::Result<()> {
    let mut sent = payload(&options);
    for n in (first..options.samples).step_by(options.in_flight as usize) {
        number(&mut sent, n);
        check(&client.call_raw(RETURN, &sent).await?, n, &options)?;
    }
    Ok(())
}
