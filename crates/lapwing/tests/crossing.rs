//! Clients whose frames cross the ends of their calls, in every way and all the time: short streams that are answered
//! early, refused, cancelled, or run out of time, beside others with and without priority. Nobody who keeps to the rules is
//! ever taken for one who sends frames of calls that never were.

use std::time::{Duration, Instant};

use lapwing::{
    Call, CallError, CallOptions, ClientOptions, ClientStream, Code, Duplex, Inline, InlineCall,
    IpcClient, IpcServer, Postcard, ServerLimits, ServerStream, Sink, Source, Status, Transport,
    Unary, blocking,
};
use lapwing_testkit::PATIENCE;

const ECHO: Unary<u64, u64> = Unary::new(0x0500, "echo");
/// Answers after as many items as the first one says, and with so many bytes.
const EARLY: ClientStream<u64, Vec<u8>> = ClientStream::new(0x0501, "early");
/// Gives so many items, or an error for one in five.
const COUNT: ServerStream<u64, u64> = ServerStream::new(0x0502, "count");
/// Gives each item back twice, until one that is 0.
const TWICE: Duplex<u64, u64> = Duplex::new(0x0503, "twice");
/// Keeps the connection's task for so many microseconds.
const HOLD_US: Unary<u64, u64> = Unary::new(0x0504, "hold");
/// What the server takes for something else.
const ECHO_STREAM: ClientStream<u64, u64> = ClientStream::new(0x0500, "echo");
const NOWHERE: Duplex<u64, u64> = Duplex::new(0x0505, "nowhere");

/// Few, so that little is remembered.
const CALLS_IN_FLIGHT: u32 = 3;

/// How long the storm goes on over each transport, in seconds, where it is to be longer than a moment.
const SECONDS: &str = "LAPWING_CROSSING_SECONDS";

fn storm_time() -> Duration {
    let seconds = std::env::var(SECONDS).ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or(0.7))
}

fn serve() -> (IpcServer, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let limits = ServerLimits { calls_in_flight: CALLS_IN_FLIGHT, ..ServerLimits::default() };
    let server = IpcServer::builder()
        .bind(folder.path().join("s.sock"))
        .unwrap()
        .limits(limits)
        .route(ECHO, |_: Call, number: u64| async move { Ok(number) })
        .route(EARLY, |_: Call, mut items: Source<u64, Postcard>| async move {
            let first = items.next().await?.unwrap_or(0);
            for _ in 0..first % 8 {
                items.next().await?;
            }
            Ok(vec![0; first as usize])
        })
        .route(COUNT, |_: Call, to: u64, mut items: Sink<u64, Postcard>| async move {
            for number in 0..to {
                items.send(&number).await?;
            }
            if to % 5 == 4 { Err(Status::aborted("every fifth")) } else { Ok(()) }
        })
        .route(
            TWICE,
            |_: Call, mut items: Source<u64, Postcard>, mut out: Sink<u64, Postcard>| async move {
                while let Some(item) = items.next().await? {
                    if item == 0 {
                        break;
                    }
                    out.send(&item).await?;
                    out.send(&item).await?;
                }
                Ok(())
            },
        )
        .route(
            HOLD_US,
            Inline(|_: &InlineCall<'_>, us: u64| {
                std::thread::sleep(Duration::from_micros(us));
                Ok(us)
            }),
        )
        .serve()
        .unwrap();
    (server, folder)
}

/// A small generator (Knuth's 64-bit constants): the same seed, the same storm.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn options(&mut self) -> CallOptions {
        let options = CallOptions::default().priority(self.roll(4) == 0);
        match self.roll(5) {
            0 => options.timeout(Duration::from_micros(20 + self.roll(1500))),
            _ => options,
        }
    }
}

/// Whether an error is what a storm brings.
#[track_caller]
fn assert_expected(error: &CallError) {
    let expected = match error {
        CallError::DeadlineExceeded | CallError::StreamEnded => true,
        CallError::Status(status) => matches!(
            status.code,
            Code::Aborted
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::InvalidArgument
                | Code::Unimplemented
        ),
        _ => false,
    };
    assert!(expected, "{error:?}");
}

/// What is done once, with the client's calls made by `$wait`: one shape for both clients.
macro_rules! one {
    ($client:expr, $dice:expr, $stream:ident, $($wait:tt)*) => {{
        let (client, dice) = ($client, $dice);
        let options = dice.options();
        match dice.roll(7) {
            0 => {
                let number = dice.roll(1000);
                assert_eq!(client.call_with(ECHO, &number, &options) $($wait)* ?, number);
            }
            1 => {
                let us = dice.roll(1500);
                client.call_with(HOLD_US, &us, &options) $($wait)* ?;
            }
            2 => {
                let (to, leave) = (dice.roll(120), dice.roll(200));
                let mut items = client.$stream(COUNT, &to, &options) $($wait)* ?;
                for _ in 0..leave {
                    if (items.next() $($wait)*).transpose()?.is_none() {
                        break;
                    }
                }
            }
            3 => {
                // Nothing of it is taken.
                let mut upload = client.upload(ECHO_STREAM, &options) $($wait)* ?;
                for number in 0..dice.roll(30) {
                    upload.send(&number) $($wait)* ?;
                }
                upload.finish() $($wait)* ?;
            }
            4 => {
                let (first, count) = (dice.roll(3000), dice.roll(30));
                let mut upload = client.upload(EARLY, &options) $($wait)* ?;
                for _ in 0..count {
                    match upload.send(&first) $($wait)* {
                        Err(CallError::StreamEnded) => break,
                        sent => sent?,
                    }
                }
                if dice.roll(4) > 0 {
                    upload.finish() $($wait)* ?;
                }
            }
            kind => {
                let (count, end) = (dice.roll(60), dice.roll(100));
                let method = if kind == 5 { TWICE } else { NOWHERE };
                let (mut sender, mut items) = client.duplex(method, &options) $($wait)* ?;
                for number in 1..=count {
                    // Goes on behind the one that ends it.
                    sender.send(if number == end { &0 } else { &number }) $($wait)* ?;
                    if dice.roll(3) == 0 && number < end {
                        (items.next() $($wait)*).transpose()?;
                    }
                }
                if dice.roll(4) > 0 {
                    sender.finish() $($wait)* ?;
                    while (items.next() $($wait)*).transpose()?.is_some() {}
                }
            }
        }
        Ok(())
    }};
}

async fn one(client: &IpcClient, dice: &mut Dice) -> Result<(), CallError> {
    one!(client, dice, stream_with, .await)
}

fn one_blocking(client: &blocking::IpcClient, dice: &mut Dice) -> Result<(), CallError> {
    one!(client, dice, stream,)
}

/// All have left as they should, after frames of theirs have crossed the ends of their calls.
async fn assert_honest(server: &IpcServer) {
    let until = Instant::now() + PATIENCE;
    while server.connections() > 0 {
        assert!(Instant::now() < until, "connections are left");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stats = server.stats();
    assert_eq!((stats.misbehaved, stats.vanished), (0, 0), "{stats:?}");
    assert!(stats.late > 0 && stats.cancelled > 0, "nothing has crossed: {stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn async_client_whose_frames_cross_the_ends_of_its_calls_is_never_cut() {
    let (server, _folder) = serve();
    for (seed, transport) in [(1, Transport::SharedMemory), (2, Transport::Socket)] {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let client = IpcClient::connect_with(server.path(), options).await.unwrap();
        let until = Instant::now() + storm_time();
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let client = client.clone();
                tokio::spawn(async move {
                    let mut dice = Dice(seed * 1000 + task);
                    while Instant::now() < until {
                        let patience = Duration::from_micros(dice.roll(20_000));
                        // Dropped in the middle now and then.
                        let done = tokio::time::timeout(patience, one(&client, &mut dice)).await;
                        if let Ok(Err(error)) = done {
                            assert_expected(&error);
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        client.disconnect().await;
    }
    assert_honest(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_client_whose_frames_cross_the_ends_of_its_calls_is_never_cut() {
    let (server, _folder) = serve();
    for (seed, transport) in [(3, Transport::SharedMemory), (4, Transport::Socket)] {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let path = server.path().to_owned();
        let storm = tokio::task::spawn_blocking(move || {
            let client = blocking::IpcClient::connect_with(&path, &options).unwrap();
            let until = Instant::now() + storm_time();
            std::thread::scope(|scope| {
                for thread in 0..8 {
                    let client = &client;
                    scope.spawn(move || {
                        let mut dice = Dice(seed * 1000 + thread);
                        while Instant::now() < until {
                            if let Err(error) = one_blocking(client, &mut dice) {
                                assert_expected(&error);
                            }
                        }
                    });
                }
            });
            client.disconnect();
        });
        storm.await.unwrap();
    }
    assert_honest(&server).await;
}
