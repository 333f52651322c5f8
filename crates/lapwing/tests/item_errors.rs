//! An item of a stream that cannot be read or written is named by its number, on both sides and in both clients.

use std::future::poll_fn;
use std::pin::Pin;

use futures_core::Stream;
use lapwing::error::Part;
use lapwing::{
    Call, CallError, CallOptions, ClientStream, Code, Duplex, IpcClient, IpcServer, Json,
    ServerLimits, ServerStream, Sink, Source, Status, TrySendError, blocking,
};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number that is neither written nor read when it is even.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Odd(u64);

impl Serialize for Odd {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(2) {
            Err(S::Error::custom("it is even"))
        } else {
            self.0.serialize(to)
        }
    }
}

impl<'de> Deserialize<'de> for Odd {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Odd, D::Error> {
        let number = u64::deserialize(from)?;
        if number.is_multiple_of(2) { Err(D::Error::custom("it is even")) } else { Ok(Odd(number)) }
    }
}

const NUMBERS: ServerStream<(), u64, Json> = ServerStream::new(0x0500, "test.numbers");
/// The same, believed to bring odd ones alone.
const ODD_NUMBERS: ServerStream<(), Odd, Json> = ServerStream::new(0x0500, "test.numbers");
const WRITES: ServerStream<bool, Odd, Json> = ServerStream::new(0x0501, "test.writes");
const TAKES: ClientStream<Odd, u64, Json> = ClientStream::new(0x0502, "test.takes");
/// The same, with any numbers.
const GIVEN: ClientStream<u64, u64, Json> = ClientStream::new(0x0502, "test.takes");
const POLLS: Duplex<Odd, Odd, Json> = Duplex::new(0x0503, "test.polls");
const POLLED: Duplex<u64, Odd, Json> = Duplex::new(0x0503, "test.polls");
const LONG: ServerStream<(), String, Json> = ServerStream::new(0x0504, "test.long");

const EACH: [u64; 4] = [1, 3, 4, 5];

async fn numbers(_: Call, (): (), mut items: Sink<u64, Json>) -> Result<(), Status> {
    for number in EACH {
        items.send(&number).await?;
    }
    Ok(())
}

async fn writes(_: Call, waits: bool, mut items: Sink<Odd, Json>) -> Result<(), Status> {
    for number in EACH {
        if waits {
            items.send(&Odd(number)).await?;
        } else {
            items.try_send(&Odd(number)).map_err(|error| match error {
                TrySendError::Ended(status) => status,
                TrySendError::Full => Status::internal("there is no room"),
            })?;
        }
    }
    Ok(())
}

async fn takes(_: Call, mut items: Source<Odd, Json>) -> Result<u64, Status> {
    let mut sum = 0;
    while let Some(Odd(number)) = items.next().await? {
        sum += number;
    }
    Ok(sum)
}

async fn polls(
    _: Call,
    mut items: Source<Odd, Json>,
    mut same: Sink<Odd, Json>,
) -> Result<(), Status> {
    while let Some(item) = poll_fn(|cx| Pin::new(&mut items).poll_next(cx)).await {
        same.send(&item?).await?;
    }
    Ok(())
}

async fn long(_: Call, (): (), mut items: Sink<String, Json>) -> Result<(), Status> {
    items.send(&"short".to_owned()).await?;
    items.send(&"l".repeat(2000)).await
}

async fn serve() -> (IpcServer, IpcClient, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    let server = IpcServer::builder().bind(&path).unwrap();
    let limits = ServerLimits { message_bytes: 1000, ..ServerLimits::default() };
    let routes = server.limits(limits).route(NUMBERS, numbers).route(WRITES, writes);
    let routes = routes.route(TAKES, takes).route(POLLS, polls).route(LONG, long);
    let server = routes.serve().unwrap();
    let client = IpcClient::connect(&path).await.unwrap();
    (server, client, folder)
}

/// Runs calls of the blocking client beside the server.
async fn blocking(server: &IpcServer, calls: impl FnOnce(blocking::IpcClient) + Send + 'static) {
    let path = server.path().to_owned();
    let work = move || calls(blocking::IpcClient::connect(path).unwrap());
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[track_caller]
fn assert_codec(error: &CallError, of: Part, sentence: &str) {
    assert!(matches!(error, CallError::Codec { part, .. } if *part == of), "{error:?}");
    assert_eq!(error.to_string(), sentence);
}

#[track_caller]
fn assert_status(error: &CallError, code: Code, message: &str) {
    let CallError::Status(status) = error else { panic!("{error:?}") };
    assert_eq!((status.code, status.message.as_str()), (code, message));
}

const UNREAD: &str = "item 3 of test.numbers cannot be read: it is even";

#[tokio::test]
async fn item_that_the_client_cannot_read_is_named_and_the_next_one_comes() {
    let (server, client, _folder) = serve().await;
    let mut items = client.stream(ODD_NUMBERS, &()).await.unwrap();
    assert_eq!(items.next().await.unwrap().unwrap(), Odd(1));
    let second = poll_fn(|cx| Pin::new(&mut items).poll_next(cx)).await;
    assert_eq!(second.unwrap().unwrap(), Odd(3));
    assert_codec(&items.next().await.unwrap().unwrap_err(), Part::ItemReceived(3), UNREAD);
    assert_eq!(items.next().await.unwrap().unwrap(), Odd(5));
    assert!(items.next().await.is_none());

    blocking(&server, |client| {
        let items = client.stream(ODD_NUMBERS, &(), &CallOptions::default()).unwrap();
        let items: Vec<_> = items.collect();
        assert_eq!(items.len(), 4);
        assert_codec(items[2].as_ref().unwrap_err(), Part::ItemReceived(3), UNREAD);
        assert_eq!(*items[3].as_ref().unwrap(), Odd(5));
    })
    .await;
}

const UNWRITTEN: &str = "item 3 for test.polls cannot be written: it is even";

#[tokio::test]
async fn item_that_the_client_cannot_write_is_named_and_does_not_count() {
    let (server, client, _folder) = serve().await;
    let (mut sender, mut same) = client.duplex(POLLS, &CallOptions::default()).await.unwrap();
    sender.send(&Odd(1)).await.unwrap();
    sender.try_send(&Odd(3)).unwrap();
    for _ in 0..2 {
        let error = sender.send(&Odd(4)).await.unwrap_err();
        assert_codec(&error, Part::ItemSent(3), UNWRITTEN);
        assert_codec(&sender.try_send(&Odd(4)).unwrap_err(), Part::ItemSent(3), UNWRITTEN);
    }
    sender.finish().await.unwrap();
    assert_eq!(same.next().await.unwrap().unwrap(), Odd(1));
    assert_eq!(same.next().await.unwrap().unwrap(), Odd(3));
    assert!(same.next().await.is_none());

    blocking(&server, |client| {
        let (mut sender, same) = client.duplex(POLLS, &CallOptions::default()).unwrap();
        sender.send(&Odd(1)).unwrap();
        sender.try_send(&Odd(3)).unwrap();
        assert_codec(&sender.send(&Odd(4)).unwrap_err(), Part::ItemSent(3), UNWRITTEN);
        assert_codec(&sender.try_send(&Odd(4)).unwrap_err(), Part::ItemSent(3), UNWRITTEN);
        sender.finish().unwrap();
        assert_eq!(same.count(), 2);
    })
    .await;
}

#[tokio::test]
async fn item_that_the_server_cannot_read_is_named() {
    let (_server, client, _folder) = serve().await;
    let message = "item 3 of the request cannot be read: it is even";
    let mut upload = client.upload(GIVEN, &CallOptions::default()).await.unwrap();
    let (mut sender, mut same) = client.duplex(POLLED, &CallOptions::default()).await.unwrap();
    for number in &EACH[..3] {
        upload.send(number).await.unwrap();
        sender.send(number).await.unwrap();
    }
    assert_status(&upload.finish().await.unwrap_err(), Code::InvalidArgument, message);
    sender.finish().await.unwrap();
    assert_eq!(same.next().await.unwrap().unwrap(), Odd(1));
    assert_eq!(same.next().await.unwrap().unwrap(), Odd(3));
    assert_status(&same.next().await.unwrap().unwrap_err(), Code::InvalidArgument, message);
}

#[tokio::test]
async fn item_that_the_server_cannot_write_or_send_is_named() {
    let (_server, client, _folder) = serve().await;
    for waits in [true, false] {
        let mut items = client.stream(WRITES, &waits).await.unwrap();
        assert_eq!(items.next().await.unwrap().unwrap(), Odd(1));
        assert_eq!(items.next().await.unwrap().unwrap(), Odd(3));
        let error = items.next().await.unwrap().unwrap_err();
        assert_status(&error, Code::Internal, "item 3 of the reply cannot be written: it is even");
    }
    let mut items = client.stream(LONG, &()).await.unwrap();
    assert_eq!(items.next().await.unwrap().unwrap(), "short");
    let message = "item 2 has 2002 bytes, and this connection takes 1000";
    let error = items.next().await.unwrap().unwrap_err();
    assert_status(&error, Code::ResourceExhausted, message);
}
