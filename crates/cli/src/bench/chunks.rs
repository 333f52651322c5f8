//! A stream of short items at a steady pace: how long each takes from the server's `send` to the reader.
//!
//! When an item is due is fixed beforehand, whatever became of the ones before: an item that comes late, because
//! the stream had no room or the machine paused, counts from when it was due, too.
//!
//! A first stream goes once around the ring, as fast as it can, and is not counted: what a page of a connection's
//! ring costs when it is first touched (about 4 us, both sides together) is another question.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Instant;

use anyhow::ensure;
use hdrhistogram::Histogram;
use lapwing::floor::now_ns;
use lapwing::{Builder, Call, CallOptions, IpcClient, Payload, Raw, ServerStream, Sink, Status};

use super::client::{Async, Blocking, Measured, histogram, payload};
use super::options::Options;

/// Answers with items, each at its time.
const CHUNKS: ServerStream<Vec<u8>, Payload, Raw> = ServerStream::new(0x0419, "bench.chunks");

/// What an item begins with: its number, when it was due and when it was handed to `send`.
pub(super) const STAMPS_BYTES: usize = 24;

/// From the request to the first item, in nanoseconds: the reader waits then.
const AHEAD_NS: u64 = 200_000;

/// The options of the stream that goes before.
fn first(options: &Options) -> Options {
    let record_bytes = options.payload.max(64);
    let samples = u64::from(options.ring.div_ceil(record_bytes));
    Options { samples, every_ns: 0, ..options.clone() }
}

/// `u64` items, nanoseconds from one to the next, bytes of each.
fn request(options: &Options) -> Vec<u8> {
    words(&[options.samples, options.every_ns, u64::from(options.payload)])
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn word(bytes: &[u8], n: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(8 * n..)?.first_chunk()?))
}

pub(super) fn with_chunks(builder: Builder) -> Builder {
    builder.route(CHUNKS, chunks)
}

async fn chunks(_: Call, wanted: Vec<u8>, mut items: Sink<Payload, Raw>) -> Result<(), Status> {
    let (Some(count), Some(every_ns), Some(bytes)) =
        (word(&wanted, 0), word(&wanted, 1), word(&wanted, 2))
    else {
        return Err(Status::invalid_argument("u64 items, nanoseconds between, bytes of each"));
    };
    let mut item: Vec<u8> = (0..bytes.max(STAMPS_BYTES as u64)).map(|i| i as u8).collect();
    let first = now_ns() + AHEAD_NS;
    for n in 0..count {
        let due = first + n * every_ns;
        // The connection goes on meanwhile.
        while now_ns() < due {
            others().await;
        }
        item[..16].copy_from_slice(&words(&[n, due]));
        item[16..STAMPS_BYTES].copy_from_slice(&now_ns().to_le_bytes());
        let ready = Payload::from(item);
        items.send(&ready).await?;
        item = ready.into_vec();
    }
    Ok(())
}

/// Lets the other tasks of this thread have a turn each. Tokio's own `yield_now` waits for its driver's
/// turn, too, which comes once in 61 tasks' turns while some task always wants another: here after 250 us.
async fn others() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What the reader has seen.
struct Seen {
    expected: Vec<u8>,
    items: u64,
    from_send: Histogram<u64>,
    from_due: Histogram<u64>,
    begun: Instant,
}

impl Seen {
    fn begin(options: &Options) -> Seen {
        Seen {
            expected: payload(options),
            items: 0,
            from_send: histogram(),
            from_due: histogram(),
            begun: Instant::now(),
        }
    }

    fn take(&mut self, item: &[u8]) -> anyhow::Result<()> {
        let now = now_ns();
        let right = word(item, 0) == Some(self.items)
            && item.get(STAMPS_BYTES..) == self.expected.get(STAMPS_BYTES..);
        let (Some(due), Some(sent), true) = (word(item, 1), word(item, 2), right) else {
            anyhow::bail!("an item is wrong");
        };
        self.from_send.saturating_record(now.saturating_sub(sent).max(1));
        self.from_due.saturating_record(now.saturating_sub(due).max(1));
        self.items += 1;
        Ok(())
    }

    fn finish(self, options: &Options) -> anyhow::Result<Measured> {
        ensure!(self.items == options.samples, "items were lost");
        Ok(Measured {
            latency: Some(self.from_send),
            from_due: Some(self.from_due),
            messages: self.items,
            seconds: self.begun.elapsed().as_secs_f64(),
            ..Measured::default()
        })
    }
}

impl Blocking<'_> {
    pub(super) fn chunks(&self) -> anyhow::Result<Measured> {
        self.read(&first(self.options))?;
        self.read(self.options)
    }

    fn read(&self, options: &Options) -> anyhow::Result<Measured> {
        let mut seen = Seen::begin(options);
        for item in self.client.stream(CHUNKS, &request(options), &CallOptions::default())? {
            seen.take(&item?)?;
        }
        seen.finish(options)
    }
}

impl Async<'_> {
    /// In a task of its own: what a runtime is given to block on gets a turn only after 61 of its tasks.
    pub(super) async fn chunks(&self) -> anyhow::Result<Measured> {
        let (client, options) = (self.client.clone(), self.options.clone());
        let reading = tokio::spawn(async move {
            read(&client, &first(&options)).await?;
            read(&client, &options).await
        });
        reading.await?
    }
}

async fn read(client: &IpcClient, options: &Options) -> anyhow::Result<Measured> {
    let mut seen = Seen::begin(options);
    let mut items = client.stream(CHUNKS, &request(options)).await?;
    while let Some(item) = items.next().await {
        seen.take(&item?)?;
    }
    seen.finish(options)
}
