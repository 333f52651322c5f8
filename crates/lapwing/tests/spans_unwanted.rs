//! Where nobody listens at the level of calls there are no spans, and traces pass as they are.

#[path = "spans/seen.rs"]
#[allow(dead_code)] // Each test uses what it needs.
mod seen;

use lapwing::{Call, CallOptions, IpcClient, IpcServer, Payload, Raw, TraceContext, Unary};
use tracing_subscriber::filter::LevelFilter;

const FRONT: Unary<Payload, Payload, Raw> = Unary::new(0x0900, "front");
const BACK: Unary<Payload, Payload, Raw> = Unary::new(0x0901, "back");

#[tokio::test]
async fn trace_passes_unchanged_and_no_span_is_made_below_the_level() {
    seen::listen(LevelFilter::INFO);
    let folder = tempfile::tempdir().unwrap();
    let paths = ["front.sock", "back.sock"].map(|name| folder.path().join(name));
    let back = IpcServer::builder().bind(&paths[1]).unwrap().route(
        BACK,
        |call: Call, _: Payload| async move {
            Ok(Payload::from(call.trace().unwrap().to_string().into_bytes()))
        },
    );
    let _back = back.serve().unwrap();
    let inner = IpcClient::connect(&paths[1]).await.unwrap();
    let front = IpcServer::builder().bind(&paths[0]).unwrap().route(
        FRONT,
        move |_: Call, request: Payload| {
            let inner = inner.clone();
            async move { Ok(inner.call(BACK, &request).await.unwrap()) }
        },
    );
    let _front = front.serve().unwrap();
    let client = IpcClient::connect(&paths[0]).await.unwrap();
    let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace: TraceContext = text.parse().unwrap();
    let options = CallOptions::default().trace(trace);
    let told = client.call_with(FRONT, &Payload::empty(), &options).await.unwrap();
    assert_eq!(std::str::from_utf8(&told).unwrap(), text);
    assert_eq!(seen::count(), 0);
    // The subscriber works.
    drop(tracing::info_span!("own"));
    assert_eq!(seen::count(), 1);
}
