//! Whole files as bytes, through a real server: `fs.read.raw` and `fs.write`.

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Served, Tree, noise, refusal};
use lapwing::{CallError, CallOptions, ClientOptions, Code, IpcClient, Payload};
use lapwing_engine::{
    FS_READ_RAW, FS_WRITE, FS_WRITE_STREAM, Filled, ReadRequest, WRITE_BYTES_MAX, WorkspaceError,
    WriteMode, WriteReply, WriteRequest,
};

const MIB: usize = 1024 * 1024;

fn whole(path: &str) -> ReadRequest {
    ReadRequest { path: path.into(), offset_bytes: 0, len_bytes: None }
}

async fn write(
    served: &Served,
    request: &WriteRequest,
    content: &[u8],
) -> Result<WriteReply, CallError> {
    served.client.call_with(FS_WRITE, &Payload::from(content), &request.options()).await
}

#[tokio::test]
async fn raw_read_brings_a_whole_file_over_both_transports() {
    let content = noise(10 * MIB);
    let served = Served::of(&[("large", &content), ("empty", b""), ("small", b"a\0b")]).await;
    for (transport, client) in served.clients().await {
        let read = client.call(FS_READ_RAW, &whole("large")).await.unwrap();
        assert!(read.bytes() == content, "{transport:?}");
        let read = client.call(FS_READ_RAW, &whole("empty")).await.unwrap();
        assert_eq!(read.bytes(), b"", "{transport:?}");
        let range = ReadRequest { offset_bytes: 1, len_bytes: Some(9), ..whole("small") };
        assert_eq!(client.call(FS_READ_RAW, &range).await.unwrap().bytes(), b"\0b");
        let range = ReadRequest { offset_bytes: 5, len_bytes: Some(70_000), ..whole("large") };
        let read = client.call(FS_READ_RAW, &range).await.unwrap();
        assert!(read.bytes() == &content[5..70_005], "{transport:?}");
    }
}

#[tokio::test]
async fn raw_read_of_what_cannot_be_one_reply_is_refused() {
    let served = Served::of(&[("large", &vec![7; 10 * MIB + 1]), ("d/", b""), ("f", b"12")]).await;
    let read = |request: ReadRequest| {
        let client = served.client.clone();
        async move { refusal(client.call(FS_READ_RAW, &request).await) }
    };
    let (code, sentence) = read(whole("large")).await;
    assert_eq!(code, Code::ResourceExhausted);
    assert!(sentence.contains("10485761 bytes") && sentence.contains("ranges"), "{sentence}");
    assert_eq!(read(whole("d")).await.0, Code::FailedPrecondition);
    assert_eq!(read(whole("missing")).await.0, Code::NotFound);
    assert_eq!(read(whole("../f")).await.0, Code::PermissionDenied);
    assert_eq!(read(ReadRequest { offset_bytes: 3, ..whole("f") }).await.0, Code::OutOfRange);
    let range = ReadRequest { offset_bytes: 10, ..whole("large") };
    assert_eq!(served.client.call(FS_READ_RAW, &range).await.unwrap().len(), 10 * MIB - 9);

    // The bound is the connection's.
    let options = ClientOptions { message_bytes: MIB as u32, ..ClientOptions::default() };
    let client = IpcClient::connect_with(served.server.path(), options).await.unwrap();
    let (_, sentence) = refusal(client.call(FS_READ_RAW, &range).await);
    assert!(sentence.contains("at most 1048576"), "{sentence}");
}

#[test]
fn range_that_changes_while_it_is_read_is_exact_or_told() {
    let tree = Tree::of(&[("f", b"0123456789")]);
    let path = tree.path().join("f");
    let mut range = tree.workspace.open_range(&whole("f"), 100).unwrap();
    assert_eq!(range.len_bytes().unwrap(), 10);
    let mut room = [0; 10];
    assert_eq!(range.fill(&mut room, &|| false).unwrap(), Filled::All(10));
    assert_eq!(&room, b"0123456789");

    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"ab").unwrap();
    assert_eq!(range.fill(&mut room, &|| false).unwrap(), Filled::Grew);
    assert_eq!(range.len_bytes().unwrap(), 12);

    OpenOptions::new().write(true).open(&path).unwrap().set_len(3).unwrap();
    assert_eq!(range.fill(&mut room, &|| false).unwrap(), Filled::All(3));
    assert_eq!(&room[..3], b"012");

    // A range whose length was asked for does not care what follows it.
    let request = ReadRequest { len_bytes: Some(2), ..whole("f") };
    let mut range = tree.workspace.open_range(&request, 100).unwrap();
    assert_eq!(range.fill(&mut room[..2], &|| false).unwrap(), Filled::All(2));
    let stopped = range.fill(&mut room[..2], &|| true).unwrap_err();
    assert!(matches!(stopped, WorkspaceError::Cancelled));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_read_of_a_file_that_grows_is_some_state_of_it() {
    let served = Served::of(&[("log", b"")]).await;
    let path = served.tree.path().join("log");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut log = OpenOptions::new().append(true).open(&path).unwrap();
            let mut number = 0_u32;
            while !done.load(Ordering::Relaxed) && number < 1_000_000 {
                log.write_all(format!("{number:07}\n").as_bytes()).unwrap();
                number += 1;
            }
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                for _ in 0..100 {
                    match served.client.call(FS_READ_RAW, &whole("log")).await {
                        Ok(read) => {
                            let lines = read.bytes().chunks(8).enumerate();
                            lines.for_each(|(n, l)| assert_eq!(l, format!("{n:07}\n").as_bytes()));
                        }
                        Err(error) => assert_eq!(refusal::<()>(Err(error)).0, Code::Aborted),
                    }
                }
            });
        });
        done.store(true, Ordering::Relaxed);
    });
}

#[tokio::test]
async fn write_of_a_whole_message_arrives_over_both_transports() {
    let served = Served::of(&[]).await;
    // On a socket the metadata is part of the message.
    let content = noise(10 * MIB - 128);
    for (transport, client) in served.clients().await {
        let path = format!("{transport:?}");
        for created in [true, false] {
            let options = WriteRequest::path(&path).options();
            let payload = Payload::from(content.clone());
            let reply = client.call_with(FS_WRITE, &payload, &options).await.unwrap();
            assert_eq!((reply.len_bytes, reply.created), (content.len() as u64, created));
            assert!(fs::read(served.tree.path().join(&path)).unwrap() == content);
        }
    }
    let options = WriteRequest::path("exact").options();
    let payload = Payload::from(noise(10 * MIB));
    let reply = served.client.call_with(FS_WRITE, &payload, &options).await.unwrap();
    assert_eq!(reply.len_bytes, 10 * MIB as u64, "in shared memory it is not");
}

#[tokio::test]
async fn write_in_items_may_be_longer_than_a_message_over_both_transports() {
    let served = Served::of(&[]).await;
    let content = noise(21 * MIB);
    for (transport, client) in served.clients().await {
        for bytes in [0, 10 * MIB, content.len()] {
            let options = WriteRequest::path("f").options();
            let mut upload = client.upload(FS_WRITE_STREAM, &options).await.unwrap();
            for item in content[..bytes].chunks(100_000) {
                upload.send(&item.into()).await.unwrap();
            }
            let reply = upload.finish().await.unwrap();
            assert_eq!(reply.len_bytes, bytes as u64, "{transport:?}");
            assert!(fs::read(served.tree.path().join("f")).unwrap() == content[..bytes]);
        }
    }
    let options = WriteRequest::path("g").options();
    let mut upload = served.client.upload(FS_WRITE_STREAM, &options).await.unwrap();
    let item = Payload::from(&content[..200_000]);
    let mut sent = 0;
    while sent <= WRITE_BYTES_MAX && upload.send(&item).await.is_ok() {
        sent += item.len();
    }
    assert_eq!(refusal(upload.finish().await).0, Code::ResourceExhausted);
    assert!(!served.tree.path().join("g").exists());
}

#[tokio::test]
async fn writes_in_items_hold_no_more_than_their_bound_together() {
    let served = Served::of(&[]).await;
    let item = Payload::from(vec![7; MIB]);
    let mut uploads = Vec::new();
    let options: Vec<_> = (0..4).map(|n| WriteRequest::path(format!("f{n}")).options()).collect();
    for options in &options {
        let mut upload = served.client.upload(FS_WRITE_STREAM, options).await.unwrap();
        for _ in 0..WRITE_BYTES_MAX / MIB - 1 {
            if upload.send(&item).await.is_err() {
                break;
            }
        }
        uploads.push(upload);
    }
    let mut refused = 0;
    for upload in uploads {
        if let Err(error) = upload.finish().await {
            let (code, sentence) = refusal::<()>(Err(error));
            assert_eq!(code, Code::ResourceExhausted);
            assert!(sentence.contains("hold 134217728 bytes together"), "{sentence}");
            refused += 1;
        }
    }
    assert!((2..4).contains(&refused), "{refused}: two files of 63 MiB have room");
    // What was held is free again.
    let mut upload = served.client.upload(FS_WRITE_STREAM, &options[3]).await.unwrap();
    for _ in 0..WRITE_BYTES_MAX / MIB {
        upload.send(&item).await.unwrap();
    }
    assert_eq!(upload.finish().await.unwrap().len_bytes, WRITE_BYTES_MAX as u64);
}

#[tokio::test]
async fn write_that_is_given_up_midway_changes_nothing() {
    let served = Served::of(&[("f", b"old")]).await;
    let options = WriteRequest::path("f").options();
    let mut upload = served.client.upload(FS_WRITE_STREAM, &options).await.unwrap();
    upload.send(&b"half"[..].into()).await.unwrap();
    drop(upload);
    served.client.ping().await.unwrap();
    assert!(served.server.shutdown().await);
    assert_eq!(fs::read(served.tree.path().join("f")).unwrap(), b"old");
    assert_eq!(common::names_below(served.tree.path()).len(), 1);
}

#[tokio::test]
async fn write_mode_decides_what_may_be_there() {
    let served = Served::of(&[("f", b"old"), ("d/", b"")]).await;
    let request = |path: &str, mode| WriteRequest { mode, ..WriteRequest::path(path) };
    for (path, mode, code) in [
        ("f", WriteMode::Create, Code::AlreadyExists),
        ("g", WriteMode::Replace, Code::NotFound),
        ("d", WriteMode::Any, Code::FailedPrecondition),
        (".", WriteMode::Any, Code::FailedPrecondition),
        ("f/g", WriteMode::Any, Code::FailedPrecondition),
        ("no/g", WriteMode::Any, Code::NotFound),
        ("../g", WriteMode::Any, Code::PermissionDenied),
        ("/tmp/g", WriteMode::Any, Code::PermissionDenied),
        ("a\0b", WriteMode::Any, Code::InvalidArgument),
    ] {
        let refused = refusal(write(&served, &request(path, mode), b"new").await);
        assert_eq!(refused.0, code, "{path}: {}", refused.1);
    }
    assert_eq!(fs::read(served.tree.path().join("f")).unwrap(), b"old");
    assert_eq!(served.names().len(), 2, "nothing was made, and nothing is left over");

    assert!(write(&served, &request("g", WriteMode::Create), b"g").await.unwrap().created);
    assert!(!write(&served, &request("f", WriteMode::Replace), b"f").await.unwrap().created);
    let deep =
        WriteRequest { create_directories: true, durable: true, ..WriteRequest::path("x/y/z") };
    let reply = write(&served, &deep, b"").await.unwrap();
    assert_eq!((reply.path.as_str(), reply.created, reply.len_bytes), ("x/y/z", true, 0));
    assert_eq!(fs::read(served.tree.path().join("g")).unwrap(), b"g");
    assert_eq!(fs::read(served.tree.path().join("f")).unwrap(), b"f");
}

#[tokio::test]
async fn write_over_what_was_changed_meanwhile_is_refused() {
    let served = Served::of(&[]).await;
    let first = write(&served, &WriteRequest::path("f"), b"one").await.unwrap();
    // What `sha256sum` prints of "one".
    assert_eq!(first.sha256, "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed");
    let request = |sha256: &str| WriteRequest {
        expected_sha256: Some(sha256.to_owned()),
        ..WriteRequest::path("f")
    };
    let second = write(&served, &request(&first.sha256.to_uppercase()), b"two").await.unwrap();
    let (code, sentence) = refusal(write(&served, &request(&first.sha256), b"three").await);
    assert_eq!(code, Code::Aborted);
    assert!(sentence.contains("read it again"), "{sentence}");
    assert_eq!(fs::read(served.tree.path().join("f")).unwrap(), b"two");
    fs::remove_file(served.tree.path().join("f")).unwrap();
    let gone = refusal(write(&served, &request(&second.sha256), b"three").await);
    assert_eq!(gone.0, Code::NotFound);
    assert_eq!(refusal(write(&served, &request("12"), b"").await).0, Code::InvalidArgument);
    let both = WriteRequest { mode: WriteMode::Create, ..request(&second.sha256) };
    assert_eq!(refusal(write(&served, &both, b"").await).0, Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_guard_with_the_hash_lose_no_update() {
    let served = Served::of(&[("n", b"0")]).await;
    let adders = (0..4).map(|_| {
        let client = served.client.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                loop {
                    let read = client.call(FS_READ_RAW, &whole("n")).await.unwrap();
                    let number: u32 = std::str::from_utf8(&read).unwrap().parse().unwrap();
                    let sha256 = format!("{:x}", Sha(read.bytes()));
                    let request =
                        WriteRequest { expected_sha256: Some(sha256), ..WriteRequest::path("n") };
                    let next = Payload::from((number + 1).to_string().into_bytes());
                    match client.call_with(FS_WRITE, &next, &request.options()).await {
                        Ok(_) => break,
                        Err(error) => assert_eq!(refusal::<()>(Err(error)).0, Code::Aborted),
                    }
                }
            }
        })
    });
    for adder in adders.collect::<Vec<_>>() {
        adder.await.unwrap();
    }
    assert_eq!(fs::read_to_string(served.tree.path().join("n")).unwrap(), "40");
}

/// A SHA-256 that is written as hexadecimal.
struct Sha<'a>(&'a [u8]);

impl std::fmt::LowerHex for Sha<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use sha2::Digest;
        sha2::Sha256::digest(self.0).iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[tokio::test]
async fn write_keeps_permissions_and_replaces_the_file_whole() {
    let served = Served::of(&[("f", b"old"), ("other", b"x")]).await;
    let path = served.tree.path().join("f");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
    fs::hard_link(&path, served.tree.path().join("link")).unwrap();
    let before = fs::metadata(&path).unwrap();
    let open = fs::File::open(&path).unwrap();
    write(&served, &WriteRequest::path("f"), b"new content").await.unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!(after.mode() & 0o7777, 0o750);
    assert_ne!(after.ino(), before.ino(), "another file has the name");
    assert_eq!(std::io::read_to_string(open).unwrap(), "old", "who has the old one open keeps it");
    assert_eq!(fs::read(served.tree.path().join("link")).unwrap(), b"old");
    assert_eq!(served.names().len(), 3, "{:?}", served.names());
}

#[tokio::test]
async fn write_through_symlinks_stays_inside() {
    let outside = Tree::of(&[("secret", b"outside")]);
    let served = Served::of(&[("real/f", b"old")]).await;
    served.tree.symlink("real/f", "inside");
    served.tree.symlink("real", "directory");
    served.tree.symlink("nowhere", "dangling");
    served.tree.symlink(outside.path().join("secret"), "out");
    served.tree.symlink(outside.path(), "outer");
    served.tree.fifo("fifo");
    write(&served, &WriteRequest::path("inside"), b"one").await.unwrap();
    assert_eq!(fs::read(served.tree.path().join("real/f")).unwrap(), b"one");
    assert!(fs::symlink_metadata(served.tree.path().join("inside")).unwrap().is_symlink());
    write(&served, &WriteRequest::path("directory/f"), b"two").await.unwrap();
    assert_eq!(fs::read(served.tree.path().join("real/f")).unwrap(), b"two");
    for (path, code) in [
        ("dangling", Code::FailedPrecondition),
        ("fifo", Code::FailedPrecondition),
        ("out", Code::PermissionDenied),
        ("outer/secret", Code::PermissionDenied),
        ("outer/fresh", Code::PermissionDenied),
    ] {
        for create_directories in [false, true] {
            let request = WriteRequest { create_directories, ..WriteRequest::path(path) };
            let refused = refusal(write(&served, &request, b"leaked").await);
            assert_eq!(refused.0, code, "{path}: {}", refused.1);
        }
    }
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"outside");
    assert_eq!(common::names_below(outside.path()).len(), 1);
}

#[tokio::test]
async fn write_without_its_request_or_permission_says_what_to_do() {
    let served = Served::of(&[]).await;
    let content = Payload::from(&b"x"[..]);
    let bare = served.client.call_with(FS_WRITE, &content, &CallOptions::default()).await;
    let (code, sentence) = refusal(bare);
    assert_eq!(code, Code::InvalidArgument);
    assert!(sentence.contains("metadata pair \"request\""), "{sentence}");

    let workspace = served.tree.workspace.clone();
    let error = workspace.write(&WriteRequest::path("f"), b"").unwrap_err();
    assert!(matches!(error, WorkspaceError::ReadOnly), "{error}");
    assert!(error.to_string().contains("--writable"));
    assert!(served.names().is_empty());
}
