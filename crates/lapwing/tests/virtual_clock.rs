//! The times of the handshake and of draining, on a clock that jumps: whole seconds pass in none.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use lapwing::error::ConnectError;
use lapwing::{
    CallError, ClientOptions, ConnectionState, Delivered, IpcClient, IpcServer, Request,
    ServerLimits, Status, Transport,
};
use lapwing_proto::{Header, HelloReject, Kind, WireError};
use tokio::time::{Instant, sleep};

const HANG: u16 = 0x0400;

fn serve(folder: &tempfile::TempDir, limits: ServerLimits) -> (IpcServer, PathBuf) {
    let path = folder.path().join("s.sock");
    let server = IpcServer::builder()
        .bind(&path)
        .unwrap()
        .limits(limits)
        .route_raw(HANG, "hang", |_: Request| std::future::pending::<Result<Vec<u8>, Status>>())
        .serve()
        .unwrap();
    (server, path)
}

/// Seconds since `begun`, to the tenth.
fn tenths(begun: Instant) -> u64 {
    begun.elapsed().as_millis() as u64 / 100
}

#[tokio::test(start_paused = true)]
async fn client_that_says_nothing_is_refused_after_five_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, path) = serve(&folder, ServerLimits::default());
    let mut silent = UnixStream::connect(&path).unwrap();
    silent.set_nonblocking(true).unwrap();
    let begun = Instant::now();
    let mut heard = Vec::new();
    while silent.read_to_end(&mut heard).is_err() {
        assert!(tenths(begun) < 60, "nothing was said");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(tenths(begun), 50);
    let (head, payload) = heard.split_at(Header::BYTES);
    let header = Header::decode(head.try_into().unwrap(), 4096).unwrap();
    assert_eq!(header.kind, Kind::HELLO_REJECT);
    let reject = HelloReject::decode(payload).unwrap();
    assert_eq!(reject.wire_error(), Some(WireError::HandshakeTimeout));
}

#[tokio::test(start_paused = true)]
async fn server_that_says_nothing_is_given_up_after_five_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    let _silent = UnixListener::bind(&path).unwrap();
    let begun = Instant::now();
    let error = IpcClient::connect(&path).await.unwrap_err();
    assert_eq!(tenths(begun), 50);
    assert!(matches!(error, ConnectError::HandshakeTimeout { .. }), "{error:?}");
    let says = "the server did not answer the handshake within 5 s";
    assert!(error.to_string().starts_with(says), "{error}");
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_ten_seconds_for_a_call_that_hangs_and_no_longer() {
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let folder = tempfile::tempdir().unwrap();
        let (server, path) = serve(&folder, ServerLimits::default());
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let client = IpcClient::connect_with(&path, options).await.unwrap();
        let calling = {
            let client = client.clone();
            tokio::spawn(async move { client.call_raw(HANG, b"").await })
        };
        sleep(Duration::from_millis(10)).await;
        let begun = Instant::now();
        assert!(!server.shutdown().await, "the call does not end by itself");
        assert_eq!(tenths(begun), 100);
        let error = calling.await.unwrap().unwrap_err();
        let maybe = matches!(error, CallError::Disconnected { delivered: Delivered::Maybe, .. });
        assert!(maybe, "{error:?}");
        assert!(matches!(client.state(), ConnectionState::Closed(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn disconnect_waits_its_time_for_a_call_that_hangs_and_no_longer() {
    for transport in [Transport::SharedMemory, Transport::Socket] {
        let folder = tempfile::tempdir().unwrap();
        let (_server, path) = serve(&folder, ServerLimits::default());
        let drain = Duration::from_secs(3);
        let options = ClientOptions { transport, drain, ..ClientOptions::default() };
        let client = IpcClient::connect_with(&path, options).await.unwrap();
        let calling = {
            let client = client.clone();
            tokio::spawn(async move { client.call_raw(HANG, b"").await })
        };
        sleep(Duration::from_millis(10)).await;
        let begun = Instant::now();
        client.disconnect().await;
        assert_eq!(tenths(begun), 30);
        let error = calling.await.unwrap().unwrap_err();
        let maybe = matches!(error, CallError::Disconnected { delivered: Delivered::Maybe, .. });
        assert!(maybe, "{error:?}");
    }
}
