//! Calls in JSON of methods whose own codec is another one: every shape, both clients, both transports; and
//! what a server says of its methods.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lapwing::methods::Shape;
use lapwing::schemars::{self, JsonSchema};
use lapwing::{
    Builder, Call, CallError, CallOptions, ClientOptions, ClientStream, Code, Codec, CodecError,
    ConnectError, Decode, Duplex, Encode, IpcClient, IpcServer, Json, OneWay, Payload, Postcard,
    Raw, RouteError, ServeError, ServerLimits, ServerStream, Sink, Source, Status, Transport,
    Unary, blocking,
};
use serde::{Deserialize, Serialize};

/// A part of a text.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema, Debug)]
struct Part {
    /// Where it begins.
    at: u64,
    text: String,
}

#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema, Debug)]
struct Parts {
    parts: Vec<Part>,
}

const JOIN: Unary<Parts, Part> = Unary::new(0x0700, "text.join");
const SPLIT: ServerStream<Part, Part> = ServerStream::new(0x0701, "text.split");
const GATHER: ClientStream<Part, Part> = ClientStream::new(0x0702, "text.gather");
const SHOUT: Duplex<Part, Part> = Duplex::new(0x0703, "text.shout");
const NOTE: OneWay<Part> = OneWay::new(0x0704, "text.note");
const BYTES: Unary<Payload, Payload, Raw> = Unary::new(0x0705, "bytes");
const STATUS: Unary<(), u64> = Unary::new(0x0706, "status");
const TEXT: Unary<Parts, Part, Json> = Unary::new(0x0707, "text.json");
const HANDMADE: Unary<Part, Part, Json> = Unary::new(0x0708, "text.handmade");
const OWN: Unary<u8, u8, Reversed> = Unary::new(0x0709, "own");

/// A codec of the server's own, with no form in JSON.
enum Reversed {}

impl Codec for Reversed {
    const NAME: &'static str = "reversed";
}

impl Encode<u8> for Reversed {
    fn encode(value: &u8, into: &mut Vec<u8>) -> Result<(), CodecError> {
        into.push(!value);
        Ok(())
    }
}

impl Decode<u8> for Reversed {
    fn decode(payload: Payload) -> Result<u8, CodecError> {
        let byte = payload.first().copied();
        byte.map(|byte| !byte)
            .ok_or_else(|| CodecError { path: String::new(), what: "it is empty".into() })
    }
}

fn joined(parts: &[Part]) -> Part {
    let text = parts.iter().map(|part| part.text.as_str()).collect();
    Part { at: parts.first().map_or(0, |part| part.at), text }
}

async fn split(_: Call, part: Part, mut items: Sink<Part, Postcard>) -> Result<(), Status> {
    for (at, text) in part.text.split_inclusive(' ').enumerate() {
        items.send(&Part { at: part.at + at as u64, text: text.to_owned() }).await?;
    }
    Ok(())
}

async fn gather(_: Call, mut items: Source<Part, Postcard>) -> Result<Part, Status> {
    let mut parts = Vec::new();
    while let Some(part) = items.next().await? {
        parts.push(part);
    }
    Ok(joined(&parts))
}

async fn shout(
    _: Call,
    mut items: Source<Part, Postcard>,
    mut out: Sink<Part, Postcard>,
) -> Result<(), Status> {
    while let Some(mut part) = items.next().await? {
        part.text.make_ascii_uppercase();
        // Both ways of sending write in the call's form.
        if out.try_send(&part).is_err() {
            out.send(&part).await?;
        }
    }
    Ok(())
}

struct Fixture {
    server: IpcServer,
    /// The sum of the notes' places.
    noted: Arc<AtomicU64>,
    _folder: tempfile::TempDir,
}

fn routes(builder: Builder, noted: &Arc<AtomicU64>) -> Builder {
    let noted = Arc::clone(noted);
    builder
        .route(JOIN, |_: Call, asked: Parts| async move { Ok(joined(&asked.parts)) })
        .route(SPLIT, split)
        .route(GATHER, gather)
        .route(SHOUT, shout)
        .route(NOTE, move |_: Call, note: Part| {
            noted.fetch_add(note.at, Ordering::SeqCst);
            async { Ok(()) }
        })
        .route(BYTES, |_: Call, bytes: Payload| async move { Ok(bytes) })
        .route(STATUS, |_: Call, ()| async { Ok(7) })
        .route(TEXT, |_: Call, asked: Parts| async move { Ok(joined(&asked.parts)) })
        .route_raw(HANDMADE.kind(), HANDMADE.name(), |request: lapwing::Request| async move {
            Ok::<_, Status>(request.payload)
        })
        .route(OWN, |_: Call, byte: u8| async move { Ok(byte) })
        .schema_of(JOIN)
        .schema_of(SPLIT)
        .schema_of(NOTE)
        .schema_of(HANDMADE)
}

fn serve() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let noted = Arc::new(AtomicU64::new(0));
    let builder = IpcServer::builder().bind(folder.path().join("s.sock")).unwrap();
    let server = routes(builder, &noted).serve().unwrap();
    Fixture { server, noted, _folder: folder }
}

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];

fn options(transport: Transport) -> ClientOptions {
    ClientOptions { transport, ..ClientOptions::default() }
}

fn json() -> CallOptions {
    CallOptions::default().json(true)
}

/// The method as somebody knows it who has its number alone.
fn unary(kind: u16) -> Unary<String, Payload, Raw> {
    Unary::new(kind, "")
}

const PARTS: &str = r#"{"parts": [{"at": 3, "text": "a "}, {"at": 5, "text": "b"}]}"#;

fn item(at: u64) -> String {
    format!(r#"{{"at":{at},"text":"x{at}"}}"#)
}

fn text(payload: &[u8]) -> &str {
    std::str::from_utf8(payload).unwrap()
}

fn status(error: CallError) -> Status {
    match error {
        CallError::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

async fn until_noted(fixture: &Fixture, sum: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while fixture.noted.load(Ordering::SeqCst) != sum {
        assert!(Instant::now() < deadline, "the note does not come");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_of_every_shape_take_json_through_the_async_client() {
    let fixture = serve();
    for (round, transport) in BOTH.into_iter().enumerate() {
        let client =
            IpcClient::connect_with(fixture.server.path(), options(transport)).await.unwrap();
        let joined = client.call_with(unary(JOIN.kind()), &PARTS.into(), &json()).await.unwrap();
        assert_eq!(text(&joined), r#"{"at":3,"text":"a b"}"#);

        let split = ServerStream::<&str, Payload, Raw>::new(SPLIT.kind(), "");
        let request = &r#"{"at": 1, "text": "a b"}"#;
        let mut items = client.stream_with(split, request, &json()).await.unwrap();
        assert_eq!(text(&items.next().await.unwrap().unwrap()), r#"{"at":1,"text":"a "}"#);
        assert_eq!(text(&items.next().await.unwrap().unwrap()), r#"{"at":2,"text":"b"}"#);
        assert!(items.next().await.is_none());

        let gather = ClientStream::<String, Payload, Raw>::new(GATHER.kind(), "");
        let mut upload = client.upload(gather, &json()).await.unwrap();
        for at in 0..200 {
            upload.send(&item(at)).await.unwrap();
        }
        let reply = upload.finish().await.unwrap();
        assert!(text(&reply).starts_with(r#"{"at":0,"text":"x0x1x2"#), "{}", text(&reply));

        let shout = Duplex::<String, Payload, Raw>::new(SHOUT.kind(), "");
        let (mut sender, mut items) = client.duplex(shout, &json()).await.unwrap();
        for at in 0..200 {
            sender.send(&item(at)).await.unwrap();
            let shouted = items.next().await.unwrap().unwrap();
            assert_eq!(text(&shouted), format!(r#"{{"at":{at},"text":"X{at}"}}"#));
        }
        sender.finish().await.unwrap();
        assert!(items.next().await.is_none());

        let note = OneWay::<String, Raw>::new(NOTE.kind(), "");
        client.send_with(note, &item(5), &json()).await.unwrap();
        until_noted(&fixture, 5 * (round as u64 + 1)).await;

        // The same call without it is what it was.
        let part = client.call(JOIN, &serde_json::from_str(PARTS).unwrap()).await.unwrap();
        assert_eq!(part, Part { at: 3, text: "a b".into() });
    }
}

#[test]
fn methods_of_every_shape_take_json_through_the_blocking_client() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = runtime.block_on(async { serve() });
    for (round, transport) in BOTH.into_iter().enumerate() {
        let path = fixture.server.path();
        let client = blocking::IpcClient::connect_with(path, &options(transport)).unwrap();
        let joined = client.call_with(unary(JOIN.kind()), &PARTS.into(), &json()).unwrap();
        assert_eq!(text(&joined), r#"{"at":3,"text":"a b"}"#);

        let split = ServerStream::<&str, Payload, Raw>::new(SPLIT.kind(), "");
        let items = client.stream(split, &r#"{"at": 1, "text": "a b"}"#, &json()).unwrap();
        let items: Vec<String> = items.map(|item| text(&item.unwrap()).to_owned()).collect();
        assert_eq!(items, [r#"{"at":1,"text":"a "}"#, r#"{"at":2,"text":"b"}"#]);

        let gather = ClientStream::<String, Payload, Raw>::new(GATHER.kind(), "");
        let mut upload = client.upload(gather, &json()).unwrap();
        (0..200).for_each(|at| upload.send(&item(at)).unwrap());
        let reply = upload.finish().unwrap();
        assert!(text(&reply).starts_with(r#"{"at":0,"text":"x0x1x2"#), "{}", text(&reply));

        let shout = Duplex::<String, Payload, Raw>::new(SHOUT.kind(), "");
        let (mut sender, mut items) = client.duplex(shout, &json()).unwrap();
        for at in 0..200 {
            sender.send(&item(at)).unwrap();
            let shouted = items.next().unwrap().unwrap();
            assert_eq!(text(&shouted), format!(r#"{{"at":{at},"text":"X{at}"}}"#));
        }
        sender.finish().unwrap();
        assert!(items.next().is_none());

        let note = OneWay::<String, Raw>::new(NOTE.kind(), "");
        client.send_with(note, &item(5), &json()).unwrap();
        runtime.block_on(until_noted(&fixture, 5 * (round as u64 + 1)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typed_methods_called_in_json_return_their_values() {
    let fixture = serve();
    let client = IpcClient::connect(fixture.server.path()).await.unwrap();
    // Long enough for bulk memory, which such a call goes through as any other.
    let long = Parts { parts: vec![Part { at: 1, text: "long ".repeat(100_000) }] };
    let reply = client.call_with(JOIN, &long, &json()).await.unwrap();
    assert_eq!(reply, long.parts[0]);
    let mut items = client.stream_with(SPLIT, &long.parts[0], &json()).await.unwrap();
    let mut count = 0;
    while let Some(item) = items.next().await {
        assert_eq!(item.unwrap(), Part { at: 1 + count, text: "long ".into() });
        count += 1;
    }
    assert_eq!(count, 100_000);
    let (mut sender, mut items) = client.duplex(SHOUT, &json()).await.unwrap();
    sender.send(&Part { at: 9, text: "a".into() }).await.unwrap();
    assert_eq!(items.next().await.unwrap().unwrap(), Part { at: 9, text: "A".into() });

    // Beside the form a call carries what it carried before.
    let nothing = json().timeout(Duration::ZERO);
    let error = client.call_with(JOIN, &long, &nothing).await.unwrap_err();
    assert!(matches!(error, CallError::DeadlineExceeded), "{error}");

    // Codecs with no form in JSON, raw bytes among them, keep their own.
    let bytes = Payload::from(vec![0xFF, 0x00]);
    assert_eq!(client.call_with(BYTES, &bytes, &json()).await.unwrap().bytes(), [0xFF, 0x00]);
    assert_eq!(client.call_with(OWN, &7, &json()).await.unwrap(), 7);
    assert_eq!(client.call_raw(OWN.kind(), &[!7]).await.unwrap().bytes(), [!7]);
    let reply = client.call_with(unary(TEXT.kind()), &PARTS.into(), &json()).await.unwrap();
    assert_eq!(text(&reply), r#"{"at":3,"text":"a b"}"#);
    let empty = client.call_with(unary(STATUS.kind()), &String::new(), &json()).await.unwrap();
    assert_eq!(text(&empty), "7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_invalid_arguments_with_the_field_s_path() {
    let fixture = serve();
    let client = IpcClient::connect(fixture.server.path()).await.unwrap();
    for (request, message) in [
        (
            r#"{"parts": [{"at": 1, "text": "a"}, {"at": "x", "text": "b"}]}"#,
            "the request cannot be read: at parts[1].at: invalid type: string \"x\", expected u64 at line 1 column 45",
        ),
        (
            r#"{"parts": [{"at": 1}]}"#,
            "the request cannot be read: at parts[0]: missing field `text` at line 1 column 20",
        ),
        (
            "{\"parts\": [\n{\"at\"",
            "the request cannot be read: at parts[0]: EOF while parsing an object at line 2 column 5",
        ),
        (
            "",
            "the request cannot be read: missing field `parts` at line 1 column 2; it is empty, which stands for {}",
        ),
        (
            r#"{"parts": []} {}"#,
            "the request cannot be read: trailing characters at line 1 column 15",
        ),
    ] {
        let error = client.call_with(unary(JOIN.kind()), &request.into(), &json()).await;
        let status = status(error.unwrap_err());
        assert_eq!((status.code, status.message.as_str()), (Code::InvalidArgument, message));
    }

    // An item that cannot be read ends its stream; and the same in postcard, by place.
    let gather = ClientStream::<String, Payload, Raw>::new(GATHER.kind(), "");
    let mut upload = client.upload(gather, &json()).await.unwrap();
    upload.send(&item(1)).await.unwrap();
    upload.send(&r#"{"at": -1, "text": ""}"#.into()).await.unwrap();
    let refused = status(upload.finish().await.unwrap_err());
    assert_eq!(refused.code, Code::InvalidArgument);
    let part = "item 2 of the request cannot be read: at at: invalid value: integer `-1`";
    assert!(refused.message.contains(part), "{}", refused.message);

    let refused = status(client.call_raw(JOIN.kind(), &[1, 3, 9, b'a']).await.unwrap_err());
    assert_eq!(refused.code, Code::InvalidArgument);
    let part = "the request cannot be read: at [0][0][1]: ";
    assert!(refused.message.starts_with(part), "{}", refused.message);
}

fn schema(text: Option<String>) -> serde_json::Value {
    serde_json::from_str(&text.expect("a schema")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_are_described_with_codec_and_schemas() {
    let fixture = serve();
    for transport in BOTH {
        let client =
            IpcClient::connect_with(fixture.server.path(), options(transport)).await.unwrap();
        let method = client.describe_method(SPLIT.kind()).await.unwrap();
        let named = (method.kind, method.name.as_str(), method.shape, method.codec.as_str());
        assert_eq!(named, (0x0701, "text.split", Shape::ServerStream, "postcard"));
        let request = schema(method.request_schema);
        assert_eq!(request["title"], "Part");
        assert_eq!(request["description"], "A part of a text.");
        assert_eq!(request["properties"]["at"]["description"], "Where it begins.");
        assert_eq!(request["required"], serde_json::json!(["at", "text"]));
        assert_eq!(schema(method.reply_schema)["title"], "Part");

        // What is one-way has no reply; what nobody gave schemas has none; bytes may be said to be JSON.
        let note = client.describe_method(NOTE.kind()).await.unwrap();
        assert!(note.request_schema.is_some() && note.reply_schema.is_none());
        let gather = client.describe_method(GATHER.kind()).await.unwrap();
        assert_eq!((gather.request_schema, gather.reply_schema), (None, None));
        for (kind, codec) in [
            (BYTES.kind(), "raw"),
            (HANDMADE.kind(), "json"),
            (TEXT.kind(), "json"),
            (OWN.kind(), "reversed"),
        ] {
            assert_eq!(client.describe_method(kind).await.unwrap().codec, codec);
        }
        let missing = status(client.describe_method(0x0999).await.unwrap_err());
        assert_eq!(
            (missing.code, missing.message.as_str()),
            (Code::NotFound, "there is no method 0x0999")
        );
        assert_eq!(client.describe().await.unwrap().len(), 10);
    }
    let path = fixture.server.path().to_owned();
    let blocking = tokio::task::spawn_blocking(move || {
        let client = blocking::IpcClient::connect(path).unwrap();
        client.describe_method(JOIN.kind()).unwrap()
    });
    assert_eq!(schema(blocking.await.unwrap().request_schema)["title"], "Parts");
}

/// A type whose schema has as many bytes as one wants.
struct Described<const BYTES: usize>;

impl<const BYTES: usize> JsonSchema for Described<BYTES> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Described".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "description": "x".repeat(BYTES) })
    }
}

fn building(folder: &Path, add: impl FnOnce(Builder) -> Builder) -> Result<IpcServer, ServeError> {
    add(IpcServer::builder().bind(folder.join("s.sock")).unwrap()).serve()
}

#[tokio::test]
async fn schemas_too_long_or_without_their_route_keep_a_server_from_being_built() {
    const LONG: Unary<Described<70_000>, (), Json> = Unary::new(0x0700, "long");
    let folder = tempfile::tempdir().unwrap();
    let raw = |builder: Builder| builder.route_raw(0x0700, "long", |r| async { Ok(r.payload) });
    let error = building(folder.path(), |b| raw(b).schema_of(LONG)).unwrap_err();
    assert!(matches!(error, ServeError::Route(RouteError::SchemaTooLong { .. })), "{error}");
    let error = building(folder.path(), |b| raw(b.schema_of(JOIN))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the schemas of 'text.join' (0x0700) have no route: before them, add one of this number, name, shape and codec"
    );
}

#[tokio::test]
async fn description_longer_than_the_connection_takes_is_refused_and_others_are_not() {
    const LONG: Unary<Described<60_000>, Described<60_000>, Json> = Unary::new(0x0700, "long");
    let folder = tempfile::tempdir().unwrap();
    let limits = ServerLimits { bulk_bytes: 0, ..ServerLimits::default() };
    let server = building(folder.path(), |builder| {
        builder
            .limits(limits)
            .route_raw(0x0700, "long", |request| async { Ok(request.payload) })
            .route_raw(0x0708, "text.handmade", |request| async { Ok(request.payload) })
            .schema_of(LONG)
            .schema_of(HANDMADE)
    });
    let server = server.unwrap();
    let client = IpcClient::connect(server.path()).await.unwrap();
    let refused = status(client.describe_method(0x0700).await.unwrap_err());
    assert_eq!(refused.code, Code::ResourceExhausted);
    assert!(client.describe_method(0x0708).await.unwrap().reply_schema.is_some());
    // The socket takes longer messages.
    let options = options(Transport::Socket);
    let client = IpcClient::connect_with(server.path(), options).await.unwrap();
    assert!(client.describe_method(0x0700).await.unwrap().reply_schema.is_some());
}

/// It goes through bulk memory, as long replies of methods do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn description_longer_than_the_ring_takes_comes_all_the_same() {
    const LONG: Unary<Described<60_000>, Described<60_000>, Json> = Unary::new(0x0700, "long");
    let folder = tempfile::tempdir().unwrap();
    let methods = 700;
    let server = building(folder.path(), |builder| {
        let raw = |builder: Builder, kind: u16, name: &str| {
            builder.route_raw(kind, name, |request| async { Ok(request.payload) })
        };
        let builder = raw(builder, 0x0700, "long").schema_of(LONG);
        (1..methods).fold(builder, |builder, n| {
            raw(builder, 0x0700 + n, &format!("{}{n}", "n".repeat(110)))
        })
    });
    let server = server.unwrap();
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let client = IpcClient::connect_with(server.path(), options(transport)).await.unwrap();
        assert!(client.describe_method(0x0700).await.unwrap().reply_schema.is_some());
        assert_eq!(client.describe().await.unwrap().len(), usize::from(methods));
        let connected = tokio::task::block_in_place(|| {
            let client = blocking::IpcClient::connect_with(server.path(), &options(transport))?;
            assert!(client.describe_method(0x0700).unwrap().reply_schema.is_some());
            assert_eq!(client.describe().unwrap().len(), usize::from(methods));
            Ok::<_, ConnectError>(())
        });
        connected.unwrap();
    }
}
