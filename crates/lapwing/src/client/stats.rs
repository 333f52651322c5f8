//! What a client counts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::core::lock;

/// Every call is timed until there have been this many; later one in [`SAMPLED`]: reading the clock
/// twice costs as much as a fifth of a fast round trip. Rarer than one in a hundred, so that timing calls is
/// not what their own p99 shows.
const TIMED_FIRST: u64 = 1024;

/// See [`TIMED_FIRST`].
const SAMPLED: u64 = 128;

/// The longest round trip told apart, in nanoseconds: a minute.
const LONGEST_NS: u64 = 60_000_000_000;

/// Counters of a connection. Each has its writers under one lock (the outbox's for what is sent, the
/// inbox's for what is received), so plain loads and stores do; readers read at any time.
#[derive(Debug)]
pub(crate) struct Counters {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    errors: AtomicU64,
    late: AtomicU64,
    dropped: AtomicU64,
    unserved: AtomicU64,
    calls: AtomicU64,
    latency: Mutex<Histogram<u64>>,
    since: Instant,
}

#[inline]
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn new() -> Counters {
        let latency = Histogram::new_with_bounds(1, LONGEST_NS, 2).expect("bounds are in order");
        Counters {
            sent: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            received: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            late: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            unserved: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            latency: Mutex::new(latency),
            since: Instant::now(),
        }
    }

    /// A call begins: the time, if this one is timed. Under the outbox's lock.
    #[inline]
    pub(crate) fn begin(&self) -> Option<Instant> {
        let calls = self.calls.load(Ordering::Relaxed);
        add(&self.calls, 1);
        (calls < TIMED_FIRST || calls.is_multiple_of(SAMPLED)).then(Instant::now)
    }

    /// Under the outbox's lock.
    #[inline]
    pub(crate) fn sent(&self, bytes: usize) {
        add(&self.sent, 1);
        add(&self.sent_bytes, bytes as u64);
    }

    /// Under the inbox's lock.
    #[inline]
    pub(crate) fn received(&self, bytes: usize, begun: Option<Instant>) {
        add(&self.received, 1);
        add(&self.received_bytes, bytes as u64);
        if let Some(begun) = begun {
            let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(LONGEST_NS);
            lock(&self.latency).saturating_record(took);
        }
    }

    #[cold]
    pub(crate) fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    #[cold]
    pub(crate) fn late(&self) {
        self.late.fetch_add(1, Ordering::Relaxed);
    }

    #[cold]
    pub(crate) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    #[cold]
    pub(crate) fn unserved(&self) {
        self.unserved.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> ClientStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ClientStats {
            sent: read(&self.sent),
            sent_bytes: read(&self.sent_bytes),
            received: read(&self.received),
            received_bytes: read(&self.received_bytes),
            errors: read(&self.errors),
            late: read(&self.late),
            dropped: read(&self.dropped),
            unserved: read(&self.unserved),
            elapsed: self.since.elapsed(),
            latency: lock(&self.latency).clone(),
        }
    }
}

/// What a client has done so far.
#[derive(Clone, Debug)]
pub struct ClientStats {
    /// Requests and one-way messages sent.
    pub sent: u64,
    /// Payload bytes sent.
    pub sent_bytes: u64,
    /// Responses received, errors included.
    pub received: u64,
    /// Payload bytes received.
    pub received_bytes: u64,
    /// Calls that ended with an error: a status, a refusal to send, or a lost connection.
    pub errors: u64,
    /// Responses that came after their caller had gone away.
    pub late: u64,
    /// One-way messages that were dropped because there was no room and they were not to wait.
    pub dropped: u64,
    /// One-way messages of the server's, which a client does not serve.
    pub unserved: u64,
    /// Time since the connection was made.
    pub elapsed: Duration,
    latency: Histogram<u64>,
}

impl ClientStats {
    /// Mean round trip, in microseconds; 0 when no call was timed. The first 1024 calls are timed,
    /// then one in 128.
    #[must_use]
    pub fn avg_latency_us(&self) -> f64 {
        self.latency.mean() / 1000.0
    }

    /// The round trip that `percentile` percent of the timed calls did not exceed, within 1 %.
    #[must_use]
    pub fn latency(&self, percentile: f64) -> Duration {
        Duration::from_nanos(self.latency.value_at_percentile(percentile))
    }

    /// Calls whose round trip was timed.
    #[must_use]
    pub fn timed(&self) -> u64 {
        self.latency.len()
    }

    /// Messages sent per second since the connection was made.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        self.sent as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}
