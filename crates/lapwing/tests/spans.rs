//! Spans of calls on both sides: whose they are, how they end, and what they never say.

#[path = "spans/seen.rs"]
#[allow(dead_code)] // Each test uses what it needs.
mod seen;

use std::path::PathBuf;
use std::time::Duration;

use lapwing::{
    Call, CallOptions, ClientStream, Code, Duplex, IpcClient, IpcServer, Metadata, OneWay, Payload,
    Raw, ServerStream, Sink, Source, Status, TraceContext, Unary, blocking,
};
use lapwing_testkit::eventually;
use seen::{closed, listen, spans, text};
use tracing_subscriber::filter::LevelFilter;

/// What stands in payloads, metadata values and messages, and must not stand in any span or event.
const SECRET: &str = "s3cret";

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";

struct Fixture {
    server: IpcServer,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn serve(routes: impl FnOnce(lapwing::Builder) -> lapwing::Builder) -> Fixture {
    listen(LevelFilter::TRACE);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spans.sock");
    let server = routes(IpcServer::builder().bind(&path).unwrap()).serve().unwrap();
    Fixture { server, path, _folder: folder }
}

fn trace() -> TraceContext {
    TRACE.parse().unwrap()
}

fn traced() -> CallOptions {
    CallOptions::default().trace(trace())
}

fn secret() -> Payload {
    SECRET.as_bytes().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_has_a_span_on_both_sides_with_its_trace_and_keys_without_values() {
    const METHOD: Unary<Payload, Payload, Raw> = Unary::new(0x0900, "spans.both");
    let fixture = serve(|builder| {
        builder.route(METHOD, |call: Call, request: Payload| async move {
            tracing::info!("begun");
            tokio::time::sleep(Duration::from_millis(2)).await;
            tracing::info!("woken");
            assert_eq!(call.metadata().get("token"), Some(SECRET.as_bytes()));
            Ok(request)
        })
    });
    let client = IpcClient::connect(&fixture.path).await.unwrap();
    let options = traced()
        .timeout(Duration::from_secs(20))
        .metadata(Metadata::from([("tenant", SECRET), ("token", SECRET)]));
    let outer = tracing::info_span!("outer");
    let request = secret();
    let call = client.call_with(METHOD, &request, &options);
    let reply = tracing::Instrument::instrument(call, outer).await.unwrap();
    assert_eq!(reply.bytes(), SECRET.as_bytes());

    let called = closed("lapwing.call", "spans.both");
    let served = closed("lapwing.serve", "spans.both");
    for span in [&called, &served] {
        assert_eq!(span.target, "lapwing::calls");
        assert_eq!((span.get("trace_id"), span.get("parent_id")), (TRACE_ID, PARENT_ID));
        assert_eq!(span.get("metadata"), r#"{"tenant", "token"}"#);
        assert_eq!(span.get("code"), "Ok");
        assert_eq!(span.get("connection"), "1");
    }
    assert_eq!(called.get("kind"), "0x0900");
    assert_eq!((called.inside, served.inside), (Some("outer"), None));
    let own = served.get("span_id");
    assert!(own.len() == 16 && own != PARENT_ID && own != "0000000000000000", "{own}");
    let remaining: u64 = served.get("remaining_us").parse().unwrap();
    assert!((1..=20_000_000).contains(&remaining), "{remaining}");
    assert_eq!(served.events, ["begun", "woken"], "it is entered at every poll");
    assert!(!text().contains(SECRET));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nested_call_belongs_to_the_trace_and_its_parent_is_the_span_that_served() {
    const FRONT: Unary<Payload, Payload, Raw> = Unary::new(0x0900, "spans.front");
    const BACK: Unary<Payload, Vec<u8>, Raw> = Unary::new(0x0901, "spans.back");
    let back = serve(|builder| {
        builder.route(BACK, |call: Call, _: Payload| async move {
            Ok(call.trace().unwrap().to_string().into_bytes())
        })
    });
    let inner = IpcClient::connect(&back.path).await.unwrap();
    let front = serve(|builder| {
        builder.route(FRONT, move |call: Call, request: Payload| {
            let inner = inner.clone();
            async move {
                assert_eq!(call.trace(), Some(trace()), "as the caller sent it");
                tokio::time::sleep(Duration::from_millis(1)).await;
                let told = inner.call(BACK, &request).await.unwrap();
                Ok(Payload::from(told))
            }
        })
    });
    let client = IpcClient::connect(&front.path).await.unwrap();
    let told = client.call_with(FRONT, &secret(), &traced()).await.unwrap();
    let told: TraceContext = std::str::from_utf8(&told).unwrap().parse().unwrap();

    let served = closed("lapwing.serve", "spans.front");
    let called = closed("lapwing.call", "spans.back");
    let served_behind = closed("lapwing.serve", "spans.back");
    assert_eq!(served.get("parent_id"), PARENT_ID);
    assert_eq!(told.to_string(), format!("00-{TRACE_ID}-{}-01", served.get("span_id")));
    for span in [&called, &served_behind] {
        assert_eq!(span.get("trace_id"), TRACE_ID);
        assert_eq!(span.get("parent_id"), served.get("span_id"));
    }
    assert_ne!(served_behind.get("span_id"), served.get("span_id"));
    assert_eq!(called.inside, Some("lapwing.serve"), "the handler's own call is in its span");
    assert!(!text().contains(SECRET));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_that_fails_says_its_code_on_both_sides_and_no_message() {
    const FAILS: Unary<Payload, Payload, Raw> = Unary::new(0x0900, "spans.fails");
    const PANICS: Unary<Payload, Payload, Raw> = Unary::new(0x0901, "spans.panics");
    const LATE: Unary<Payload, Payload, Raw> = Unary::new(0x0902, "spans.late");
    const LEFT: Unary<Payload, Payload, Raw> = Unary::new(0x0903, "spans.left");
    const CUT: Unary<Payload, Payload, Raw> = Unary::new(0x0904, "spans.cut");
    let fixture = serve(|builder| {
        let forever = |_: Call, _: Payload| std::future::pending::<Result<Payload, Status>>();
        builder
            .route(FAILS, |_: Call, _: Payload| async {
                Err::<Payload, _>(Status::not_found(SECRET).with_details(SECRET.as_bytes()))
            })
            .route(PANICS, |_: Call, _: Payload| async {
                assert!(SECRET.is_empty(), "as the test wants");
                Ok(Payload::empty())
            })
            .route(LATE, forever)
            .route(LEFT, forever)
            .route(CUT, forever)
    });
    let client = IpcClient::connect(&fixture.path).await.unwrap();
    client.call(FAILS, &secret()).await.unwrap_err();
    client.call(PANICS, &secret()).await.unwrap_err();
    let timeout = CallOptions::default().timeout(Duration::from_millis(20));
    // Its own clock says so, or the server's answer does.
    client.call_with(LATE, &secret(), &timeout).await.unwrap_err();
    let left = tokio::time::timeout(Duration::from_millis(20), client.call(LEFT, &secret())).await;
    assert!(left.is_err());
    let cut = tokio::spawn({
        let client = client.clone();
        async move { client.call(CUT, &secret()).await }
    });
    eventually("it is served", || spans("lapwing.serve", "spans.cut").pop());
    drop(fixture.server);
    cut.await.unwrap().unwrap_err();
    for (method, called, served) in [
        ("spans.fails", Code::NotFound, Code::NotFound),
        ("spans.panics", Code::Internal, Code::Internal),
        ("spans.late", Code::DeadlineExceeded, Code::DeadlineExceeded),
        ("spans.left", Code::Cancelled, Code::Cancelled),
        ("spans.cut", Code::Unavailable, Code::Cancelled),
    ] {
        let is = |name| closed(name, method).get("code").to_owned();
        // The side whose clock is later may hear that the other gave up first.
        let late = method == "spans.late" && is("lapwing.serve") == Code::Cancelled.name();
        assert_eq!(is("lapwing.call"), called.name(), "{method}");
        assert!(late || is("lapwing.serve") == served.name(), "{method}");
        assert_eq!(closed("lapwing.serve", method).get("trace_id"), "", "{method}");
    }
    assert!(!text().contains(SECRET));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn span_of_a_stream_lasts_until_its_end() {
    const ITEMS: ServerStream<Payload, Payload, Raw> = ServerStream::new(0x0900, "spans.items");
    const BROKEN: ServerStream<Payload, Payload, Raw> = ServerStream::new(0x0901, "spans.broken");
    const LEFT: ServerStream<Payload, Payload, Raw> = ServerStream::new(0x0902, "spans.unread");
    const JOIN: ClientStream<Payload, Payload, Raw> = ClientStream::new(0x0903, "spans.join");
    const MIRROR: Duplex<Payload, Payload, Raw> = Duplex::new(0x0904, "spans.mirror");
    let fixture = serve(|builder| {
        builder
            .route(ITEMS, |_: Call, item: Payload, mut out: Sink<Payload, Raw>| async move {
                for _ in 0..200 {
                    out.send(&item).await?;
                }
                Ok(())
            })
            .route(BROKEN, |_: Call, item: Payload, mut out: Sink<Payload, Raw>| async move {
                out.send(&item).await?;
                Err(Status::data_loss(SECRET))
            })
            .route(LEFT, |_: Call, item: Payload, mut out: Sink<Payload, Raw>| async move {
                loop {
                    out.send(&item).await?;
                }
            })
            .route(JOIN, |_: Call, mut items: Source<Payload, Raw>| async move {
                let mut last = Payload::empty();
                while let Some(item) = items.next().await? {
                    last = item;
                }
                Ok(last)
            })
            .route(
                MIRROR,
                |_: Call, mut items: Source<Payload, Raw>, mut out: Sink<Payload, Raw>| async move {
                    while let Some(item) = items.next().await? {
                        out.send(&item).await?;
                    }
                    Ok(())
                },
            )
    });
    let client = IpcClient::connect(&fixture.path).await.unwrap();
    let both = ["lapwing.call", "lapwing.serve"];
    let is_open = |method: &str| {
        for name in both {
            let open = eventually("it is there", || spans(name, method).pop());
            assert!(!open.closed && open.get("code").is_empty(), "{name}, {method}: {open:?}");
        }
    };
    let ended = |method: &str, code: Code| {
        for name in both {
            assert_eq!(closed(name, method).get("code"), code.name(), "{name}, {method}");
        }
    };

    let mut items = client.stream_with(ITEMS, &secret(), &traced()).await.unwrap();
    for _ in 0..100 {
        items.next().await.unwrap().unwrap();
    }
    is_open("spans.items");
    while let Some(item) = items.next().await {
        item.unwrap();
    }
    ended("spans.items", Code::Ok);
    assert_eq!(closed("lapwing.serve", "spans.items").get("trace_id"), TRACE_ID);
    assert!(closed("lapwing.serve", "spans.items").entered > 1, "whenever it went on");

    let mut broken = client.stream(BROKEN, &secret()).await.unwrap();
    broken.next().await.unwrap().unwrap();
    broken.next().await.unwrap().unwrap_err();
    ended("spans.broken", Code::DataLoss);

    let mut left = client.stream(LEFT, &secret()).await.unwrap();
    left.next().await.unwrap().unwrap();
    is_open("spans.unread");
    drop(left);
    ended("spans.unread", Code::Cancelled);

    let mut upload = client.upload(JOIN, &CallOptions::default()).await.unwrap();
    upload.send(&secret()).await.unwrap();
    is_open("spans.join");
    assert_eq!(upload.finish().await.unwrap().bytes(), SECRET.as_bytes());
    ended("spans.join", Code::Ok);

    let (mut sender, mut mirrored) = client.duplex(MIRROR, &CallOptions::default()).await.unwrap();
    sender.send(&secret()).await.unwrap();
    mirrored.next().await.unwrap().unwrap();
    is_open("spans.mirror");
    sender.finish().await.unwrap();
    assert!(mirrored.next().await.is_none());
    ended("spans.mirror", Code::Ok);
    assert!(!text().contains(SECRET));
}

#[test]
fn blocking_calls_inline_handlers_and_messages_have_spans_too() {
    const UNARY: Unary<Payload, Payload, Raw> = Unary::new(0x0901, "spans.blocking");
    const ITEMS: ServerStream<Payload, Payload, Raw> = ServerStream::new(0x0902, "spans.iterator");
    const TELL: OneWay<Payload, Raw> = OneWay::new(0x0903, "spans.tell");
    const TELL_ASYNC: OneWay<Payload, Raw> = OneWay::new(0x0904, "spans.tell.async");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let entered = runtime.enter();
    let fixture = serve(|builder| {
        builder
            .route_inline(0x0900, "spans.inline", |_, request, reply| {
                tracing::info!("inline");
                match request {
                    b"panic" => panic!("as the test wants"),
                    b"fail" => return Err(Status::aborted(SECRET)),
                    other => reply.extend(other),
                }
                Ok(())
            })
            .route(UNARY, |_: Call, request: Payload| async { Ok(request) })
            .route(ITEMS, |_: Call, item: Payload, mut out: Sink<Payload, Raw>| async move {
                out.send(&item).await
            })
            .route(TELL, |_: Call, _: Payload| async { Ok(()) })
            .route(TELL_ASYNC, |_: Call, _: Payload| async { Ok(()) })
    });
    drop(entered);
    let client = blocking::IpcClient::connect(&fixture.path).unwrap();
    client.call_raw(0x0900, SECRET.as_bytes()).unwrap();
    client.call_raw(0x0900, b"panic").unwrap_err();
    client.call_raw(0x0900, b"fail").unwrap_err();
    client.submit(0x0900, SECRET.as_bytes()).unwrap().collect().unwrap();
    drop(client.submit(0x0900, SECRET.as_bytes()).unwrap());
    client.ping().unwrap();
    let codes = |spans: Vec<seen::Span>| -> Vec<String> {
        spans.iter().map(|span| span.get("code").to_owned()).collect()
    };
    let served = eventually("all are served", || {
        let served = spans("lapwing.serve", "spans.inline");
        (served.len() == 5 && served.iter().all(|span| span.closed)).then_some(served)
    });
    assert!(served.iter().all(|span| span.events[0] == "inline"));
    assert_eq!(codes(served), ["Ok", "Internal", "Aborted", "Ok", "Ok"]);
    // Calls by number have no name here; other tests call by name alone.
    let called = spans("lapwing.call", "");
    assert_eq!(codes(called), ["Ok", "Internal", "Aborted", "Ok", "Cancelled"]);

    client.call_with(UNARY, &secret(), &traced()).unwrap();
    assert_eq!(closed("lapwing.call", "spans.blocking").get("trace_id"), TRACE_ID);
    assert_eq!(closed("lapwing.serve", "spans.blocking").get("parent_id"), PARENT_ID);
    let mut items = client.stream(ITEMS, &secret(), &traced()).unwrap();
    items.next().unwrap().unwrap();
    assert!(!spans("lapwing.call", "spans.iterator")[0].closed);
    assert!(items.next().is_none());
    for name in ["lapwing.call", "lapwing.serve"] {
        assert_eq!(closed(name, "spans.iterator").get("code"), "Ok");
    }
    client.send_with(TELL, &secret(), &traced()).unwrap();
    runtime.block_on(async {
        let client = IpcClient::connect(&fixture.path).await.unwrap();
        client.send_with(TELL_ASYNC, &secret(), &traced()).await.unwrap();
    });
    for message in ["spans.tell", "spans.tell.async"] {
        for name in ["lapwing.call", "lapwing.serve"] {
            let span = closed(name, message);
            assert_eq!((span.get("code"), span.get("trace_id")), ("Ok", TRACE_ID), "{message}");
        }
    }
    assert!(!text().contains(SECRET));
}
