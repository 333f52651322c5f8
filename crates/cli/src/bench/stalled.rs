//! Calls beside a stream whose reader does not read, and without it: what the one costs the others.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use lapwing::{Builder, Call, IpcClient, Payload, Raw, ServerStream, Sink, Status};

use super::client::{Measured, histogram, number, payload, runtime};
use super::options::Options;
use super::peer::ECHO;

/// Answers with numbered items without end.
const ENDLESS: ServerStream<Vec<u8>, Payload, Raw> = ServerStream::new(0x041A, "bench.endless");

/// Answers how many items of [`ENDLESS`] were sent, as eight bytes.
const SENT: u16 = 0x041B;

/// How long a stream that is looked at twice must have stood still.
const STILL: Duration = Duration::from_millis(5);

pub(super) fn with_stalled(builder: Builder) -> Builder {
    let sent = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&sent);
    let endless = move |_: Call, bytes: Vec<u8>, mut items: Sink<Payload, Raw>| {
        let sent = Arc::clone(&sent);
        async move {
            sent.store(0, Ordering::Relaxed);
            let mut item = bytes;
            for n in 0.. {
                number(&mut item, n);
                let ready = Payload::from(item);
                items.send(&ready).await?;
                sent.store(n + 1, Ordering::Relaxed);
                item = ready.into_vec();
            }
            Ok::<(), Status>(())
        }
    };
    builder.route(ENDLESS, endless).route_inline(SENT, "bench.sent", move |_, _, reply| {
        reply.extend(&told.load(Ordering::Relaxed).to_le_bytes());
        Ok(())
    })
}

/// Calls of one connection: one after the other, and many at a time.
pub(super) struct Calls {
    pub(super) one: Measured,
    pub(super) many: Measured,
}

/// Measures calls on a connection of their own; with `stalled`, beside a stream that nobody reads.
pub(super) fn run(
    socket: &Path,
    options: &Options,
    stalled: bool,
    clock_ns: u64,
) -> anyhow::Result<Calls> {
    runtime()?.block_on(async {
        let client = IpcClient::connect_with(socket, options.client(None)).await?;
        let mut calls = match stalled {
            false => calls(&client, options, clock_ns).await?,
            true => beside_a_stream(&client, options, clock_ns).await?,
        };
        let checksum = Some(client.agreement().checksum);
        (calls.one.checksum, calls.many.checksum) = (checksum, checksum);
        client.disconnect().await;
        Ok(calls)
    })
}

async fn beside_a_stream(
    client: &IpcClient,
    options: &Options,
    clock_ns: u64,
) -> anyhow::Result<Calls> {
    let mut stream = client.stream(ENDLESS, &payload(options)).await?;
    let window = stand_still(client).await?;
    let calls = calls(client, options, clock_ns).await?;
    ensure!(sent(client).await? == window, "the stream went on though nobody read it");
    // It stood, and lost nothing: what was in its window comes, and then the rest.
    let mut expected = payload(options);
    for n in 0..2 * window {
        let item = stream.next().await.context("the stream is over")??;
        number(&mut expected, n);
        ensure!(item.bytes() == expected, "an item is wrong");
    }
    Ok(calls)
}

/// Waits until the stream has filled its window; how many items that is.
async fn stand_still(client: &IpcClient) -> anyhow::Result<u64> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut before = 0;
    loop {
        tokio::time::sleep(STILL).await;
        let now = sent(client).await?;
        if now > 0 && now == before {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "the stream goes on though nobody reads it");
        before = now;
    }
}

async fn sent(client: &IpcClient) -> anyhow::Result<u64> {
    let reply = client.call_raw(SENT, &[]).await?;
    Ok(u64::from_le_bytes(reply.bytes().try_into().context("a number has 8 bytes")?))
}

async fn calls(client: &IpcClient, options: &Options, clock_ns: u64) -> anyhow::Result<Calls> {
    Ok(Calls {
        one: in_flight(client, options, 1, clock_ns).await?,
        many: in_flight(client, options, options.in_flight, clock_ns).await?,
    })
}

/// As many tasks as calls in flight, each with one call at a time, all of them timed.
async fn in_flight(
    client: &IpcClient,
    options: &Options,
    tasks: u32,
    clock_ns: u64,
) -> anyhow::Result<Measured> {
    let each = (options.samples / u64::from(tasks)).max(1);
    let begun = Instant::now();
    let tasks: Vec<_> = (0..tasks)
        .map(|task| {
            let (client, sent) = (client.clone(), payload(options));
            tokio::spawn(calls_of_one(client, sent, task, each, clock_ns))
        })
        .collect();
    let mut latency = histogram();
    for task in tasks {
        latency.add(task.await??)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let messages = latency.len();
    Ok(Measured { latency: Some(latency), messages, seconds, ..Measured::default() })
}

async fn calls_of_one(
    client: IpcClient,
    mut sent: Vec<u8>,
    task: u32,
    count: u64,
    clock_ns: u64,
) -> anyhow::Result<Histogram<u64>> {
    let mut latency = histogram();
    for n in 0..count {
        number(&mut sent, u64::from(task) << 32 | n);
        let begun = Instant::now();
        let reply = client.call_raw(ECHO, &sent).await?;
        let took = begun.elapsed().as_nanos() as u64;
        ensure!(reply.bytes() == sent, "a reply is wrong");
        latency.saturating_record(took.saturating_sub(clock_ns).max(1));
    }
    Ok(latency)
}
