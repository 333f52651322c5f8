//! What a server says of a root that was removed, and of `.git`.

mod common;

use std::fs;

use common::{Served, refusal};
use lapwing::{CallError, Code, IpcClient, Payload};
use lapwing_engine::{
    Entry, FS_APPLY_PATCH, FS_LIST, FS_LIST_PAGE, FS_READ, FS_READ_RAW, FS_SEARCH, FS_SEARCH_PAGE,
    FS_WATCH, FS_WRITE, FS_WRITE_STREAM, ListRequest, PatchRequest, ReadRequest, SearchRequest,
    WatchRequest, WriteReply, WriteRequest,
};
use serde_json::{Value, json};

async fn call(client: &IpcClient, method: (u16, &str), request: Value) -> Result<(), CallError> {
    client.call_raw(method.0, request.to_string().as_bytes()).await.map(drop)
}

async fn write(client: &IpcClient, request: &WriteRequest) -> Result<WriteReply, CallError> {
    client.call_with(FS_WRITE, &Payload::from(&b"x"[..]), &request.options()).await
}

async fn write_stream(client: &IpcClient, request: &WriteRequest) -> Result<WriteReply, CallError> {
    let options = request.options();
    let mut upload = client.upload(FS_WRITE_STREAM, &options).await?;
    // It may be refused before it has come.
    let _ = upload.send(&Payload::from(&b"x"[..])).await;
    upload.finish().await
}

#[tokio::test]
async fn removed_root_is_told_by_every_method_before_any_item() {
    let served = Served::of(&[("a", b"1")]).await;
    let client = &served.client;
    fs::remove_dir_all(served.tree.path()).unwrap();
    let make = "--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+1\n";
    let file = ReadRequest { path: "a".into(), offset_bytes: 0, len_bytes: None };
    let deep = WriteRequest { create_directories: true, ..WriteRequest::path("d/f") };
    let mut list = client.stream(FS_LIST, &ListRequest::default()).await.unwrap();
    let mut search = client.stream(FS_SEARCH, &SearchRequest::pattern("1")).await.unwrap();
    let mut watch = client.stream(FS_WATCH, &WatchRequest::default()).await.unwrap();
    for (method, answer) in [
        ("fs.list", list.next().await.expect("no status").map(drop)),
        ("fs.search", search.next().await.expect("no status").map(drop)),
        ("fs.watch", watch.next().await.expect("no status").map(drop)),
        ("fs.list.page", call(client, FS_LIST_PAGE, json!({})).await),
        ("fs.search.page", call(client, FS_SEARCH_PAGE, json!({"pattern": "1"})).await),
        ("fs.read", call(client, FS_READ, json!({"path": "a"})).await),
        ("fs.read.raw", client.call(FS_READ_RAW, &file).await.map(drop)),
        ("fs.write", write(client, &WriteRequest::path("f")).await.map(drop)),
        ("fs.write", write(client, &deep).await.map(drop)),
        ("fs.write.stream", write_stream(client, &deep).await.map(drop)),
        ("fs.apply_patch", call(client, FS_APPLY_PATCH, json!({"patch": make})).await),
    ] {
        let (code, sentence) = refusal(answer);
        assert_eq!(code, Code::NotFound, "{method}: {sentence}");
        assert!(sentence.contains("the served directory was removed"), "{method}: {sentence}");
    }
}

#[tokio::test]
async fn git_directory_is_read_when_it_is_named_and_never_written() {
    let files: &[(&str, &[u8])] = &[(".git/config", b"1\n"), ("d/.git/hooks/", b""), ("f", b"1\n")];
    let served = Served::of(files).await;
    served.tree.symlink(".git", "link");
    served.tree.symlink("d/.git/hooks", "hooks");
    served.tree.symlink(".git/config", "config");
    let client = &served.client;
    let before = served.names();

    let request = ListRequest { path: ".git".into(), ..ListRequest::default() };
    let mut listed = client.stream(FS_LIST, &request).await.unwrap();
    let entry: Entry = listed.next().await.unwrap().unwrap();
    assert_eq!(entry.path, ".git/config");
    call(client, FS_READ, json!({"path": ".git/config"})).await.unwrap();

    for path in [
        ".git",
        ".git/config",
        ".git/hooks/pre-commit",
        "d/.git/hooks/pre-commit",
        "fresh/.git/config",
        "fresh/.GIT",
        "link/config",
        "link/a/b",
        "hooks/pre-commit",
        "config",
    ] {
        let request = WriteRequest { create_directories: true, ..WriteRequest::path(path) };
        let make = format!("--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+1\n");
        let change = format!("--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-1\n+2\n");
        let mut answers = vec![write(client, &request).await, write_stream(client, &request).await];
        for patch in [make, change] {
            // A file that is there is not made anew, wherever it leads.
            if path == "config" && patch.starts_with("--- /dev/null") {
                continue;
            }
            for dry_run in [true, false] {
                let request = PatchRequest { patch: patch.clone(), strip: None, dry_run };
                let answer = call(client, FS_APPLY_PATCH, json!(request)).await;
                answers.push(answer.map(|()| unreachable!("{path}")));
            }
        }
        for answer in answers {
            let (code, sentence) = refusal(answer);
            assert_eq!(code, Code::PermissionDenied, "{path}: {sentence}");
            assert!(sentence.contains("let git change it"), "{path}: {sentence}");
        }
    }
    assert_eq!(served.names(), before, "nothing was made, no directory either");
    for path in [".gitignore", "x.git/config", "f"] {
        let request = WriteRequest { create_directories: true, ..WriteRequest::path(path) };
        write(client, &request).await.unwrap();
    }
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let served = Served::of(&[("a.txt", b"1\n"), ("d/", b"")]).await;
    let client = &served.client;
    let long = "l/".repeat(2047) + "l";
    let make = |path: &str| format!("--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+1\n");
    let search = |pattern: &str| json!({"pattern": pattern});
    for (answer, part) in [
        (call(client, FS_READ, json!({"path": "a.txt/x/y"})).await, "\"a.txt\" is no directory"),
        (call(client, FS_READ, json!({"path": "a.txt/"})).await, "leave the slash out"),
        (call(client, FS_READ, json!({"path": "a\0b"})).await, "leave it out"),
        (call(client, FS_READ, json!({"path": long})).await, "…\""),
        (write(client, &WriteRequest::path("a.txt/x")).await.map(drop), "name \"a.txt\" itself"),
        (write(client, &WriteRequest::path("x/")).await.map(drop), "leave the slash out"),
        (write(client, &WriteRequest::path("no/x")).await.map(drop), "`create_directories`"),
        (call(client, FS_APPLY_PATCH, json!({"patch": make("a.txt")})).await, "what is there"),
        (
            call(client, FS_APPLY_PATCH, json!({"patch": make("x"), "strip": 3})).await,
            "lower `strip`",
        ),
        (call(client, FS_SEARCH_PAGE, search("(")).await, "unclosed group: correct it"),
        (call(client, FS_SEARCH_PAGE, search("\\w{9999}{9}")).await, "repetitions shorter"),
    ] {
        let (_, sentence) = refusal(answer);
        assert!(sentence.contains(part), "{part}: {sentence}");
        assert!(sentence.len() < 600 && !sentence.contains('\n'), "{sentence}");
    }
    assert_eq!(served.names().len(), 2);
}
