//! The workspace's methods through a real server and a real client.

mod common;

use common::Tree;
use lapwing::{CallError, Code, IpcClient, IpcServer};
use lapwing_engine::{
    FS_LIST, FS_READ, FS_SEARCH, ListReply, ListRequest, ReadReply, SearchReply, SearchRequest,
    add_routes,
};
use serde_json::{Value, json};

/// A tree that is served, and a client of it.
struct Served {
    tree: Tree,
    server: IpcServer,
    client: IpcClient,
    _sockets: tempfile::TempDir,
}

impl Served {
    async fn of(files: &[(&str, &[u8])]) -> Served {
        let tree = Tree::of(files);
        let sockets = tempfile::tempdir().unwrap();
        let builder = IpcServer::builder().bind(sockets.path().join("s")).unwrap();
        let server = add_routes(builder, tree.workspace.clone()).serve().unwrap();
        let client = IpcClient::connect(server.path()).await.unwrap();
        Served { tree, server, client, _sockets: sockets }
    }

    async fn call(&self, method: (u16, &str), request: &Value) -> Result<Vec<u8>, CallError> {
        let request = serde_json::to_vec(request).unwrap();
        Ok(self.client.call_raw(method.0, &request).await?.into_vec())
    }

    /// The code and the sentence of a call that must fail.
    async fn refusal(&self, method: (u16, &str), request: &[u8]) -> (Code, String) {
        match self.client.call_raw(method.0, request).await {
            Err(CallError::Status(status)) => (status.code, status.message),
            other => panic!("{} answered {other:?}", method.1),
        }
    }
}

#[tokio::test]
async fn methods_answer_through_a_server_as_they_do_directly() {
    let served = Served::of(&[("a/x.txt", b"one\ntwo\n"), ("b.txt", b"two\n")]).await;
    let reply = served.call(FS_LIST, &json!({})).await.unwrap();
    let reply: ListReply = serde_json::from_slice(&reply).unwrap();
    assert_eq!(reply, served.tree.list(&ListRequest::default()).unwrap());

    let reply = served.call(FS_READ, &json!({"path": "a/x.txt", "offset_bytes": 4})).await;
    let reply: ReadReply = serde_json::from_slice(&reply.unwrap()).unwrap();
    assert_eq!((reply.content.as_str(), reply.end), ("two\n", true));

    let reply = served.call(FS_SEARCH, &json!({"pattern": "two"})).await.unwrap();
    let reply: SearchReply = serde_json::from_slice(&reply).unwrap();
    assert_eq!(reply, served.tree.search(&SearchRequest::pattern("two")).unwrap());
    assert_eq!(reply.matches.len(), 2);
}

#[tokio::test]
async fn describe_names_the_three_methods() {
    let served = Served::of(&[]).await;
    let mut methods: Vec<_> = served.client.describe().await.unwrap();
    methods.sort_by_key(|method| method.kind);
    let named: Vec<_> = methods.iter().map(|method| (method.kind, method.name.as_str())).collect();
    assert_eq!(named, [FS_LIST, FS_READ, FS_SEARCH]);
}

#[tokio::test]
async fn empty_request_stands_for_an_empty_object() {
    let served = Served::of(&[("a", b"")]).await;
    let reply = served.client.call_raw(FS_LIST.0, b"").await.unwrap();
    let reply: ListReply = serde_json::from_slice(&reply).unwrap();
    assert_eq!(reply.entries[0].path, "a");
    let (code, sentence) = served.refusal(FS_READ, b"").await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(sentence.contains("missing field `path`"), "{sentence}");
}

#[tokio::test]
async fn malformed_requests_are_invalid_arguments_that_say_where() {
    let served = Served::of(&[("a", b"")]).await;
    for (request, part) in [
        (&b"{\"path\": \"a\","[..], "line 1 column 13"),
        (b"\xff", "line 1 column 1"),
        (b"[1", "line 1"),
        (b"{\"path\": \"a\", \"lenght\": 3}", "unknown field `lenght`"),
        (b"{\"path\": \"a\", \"offset_bytes\": -1}", "line 1"),
        (b"{\"path\": \"a\"} x", "trailing characters"),
    ] {
        let (code, sentence) = served.refusal(FS_READ, request).await;
        assert_eq!(code, Code::InvalidArgument, "{sentence}");
        assert!(sentence.contains(part), "{sentence}");
    }
    let deep = [b'['; 20_000];
    assert_eq!(served.refusal(FS_LIST, &deep).await.0, Code::InvalidArgument);
    // The connection has borne all that.
    served.call(FS_READ, &json!({"path": "a"})).await.unwrap();
}

#[tokio::test]
async fn errors_have_the_code_of_their_class() {
    let served = Served::of(&[("d/", b""), ("f", b"123")]).await;
    for (method, request, code) in [
        (FS_READ, json!({"path": "missing"}), Code::NotFound),
        (FS_READ, json!({"path": "../f"}), Code::PermissionDenied),
        (FS_READ, json!({"path": "/etc/passwd"}), Code::PermissionDenied),
        (FS_READ, json!({"path": "d"}), Code::FailedPrecondition),
        (FS_READ, json!({"path": "f", "offset_bytes": 9}), Code::OutOfRange),
        (FS_READ, json!({"path": "a\0b"}), Code::InvalidArgument),
        (FS_LIST, json!({"path": "f"}), Code::FailedPrecondition),
        (FS_LIST, json!({"cursor": "mine"}), Code::InvalidArgument),
        (FS_SEARCH, json!({"pattern": "("}), Code::InvalidArgument),
    ] {
        let refused = served.refusal(method, &serde_json::to_vec(&request).unwrap()).await;
        assert_eq!(refused.0, code, "{request}: {}", refused.1);
    }
}

#[tokio::test]
async fn replies_fit_the_connection_and_page() {
    let content = "x".repeat(300_000);
    let served = Served::of(&[("large", content.as_bytes())]).await;
    let (mut offset, mut pages) = (0, 0);
    loop {
        let asked = json!({"path": "large", "offset_bytes": offset});
        let reply = served.call(FS_READ, &asked).await.unwrap();
        let reply: ReadReply = serde_json::from_slice(&reply).unwrap();
        assert_eq!(reply.content, content[offset as usize..][..reply.len_bytes as usize]);
        offset += reply.len_bytes;
        pages += 1;
        if reply.end {
            break;
        }
    }
    assert_eq!(offset, 300_000);
    assert!(pages > 1, "a reply was larger than a quarter of the ring");
}

#[tokio::test]
async fn many_calls_at_once_are_all_answered() {
    let served = Served::of(&[("a", b"needle\n")]).await;
    let calls = (0..100).map(|_| {
        let client = served.client.clone();
        tokio::spawn(async move { client.call_raw(FS_SEARCH.0, br#"{"pattern":"needle"}"#).await })
    });
    for call in calls.collect::<Vec<_>>() {
        let reply = call.await.unwrap().unwrap();
        let reply: SearchReply = serde_json::from_slice(&reply).unwrap();
        assert_eq!(reply.matches.len(), 1);
    }
    assert!(served.server.shutdown().await);
}
