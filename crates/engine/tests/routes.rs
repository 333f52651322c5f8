//! The workspace's methods through a real server and a real client.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::Tree;
use lapwing::{CallError, Code, IpcClient, IpcServer, Payload};
use lapwing_engine::{
    DEPTH_MAX, FS_APPLY_PATCH, FS_LIST, FS_LIST_PAGE, FS_READ, FS_READ_RAW, FS_SEARCH,
    FS_SEARCH_PAGE, FS_WATCH, FS_WRITE, FS_WRITE_STREAM, LINE_BYTES_MAX, ListReply, ListRequest,
    MATCHES_DEFAULT, MATCHES_MAX, REQUEST_KEY, ReadReply, STREAMS_PER_CONNECTION_MAX, SearchReply,
    SearchRequest, TEXT_BYTES_MAX, WriteRequest, add_routes,
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
    let reply = served.call(FS_LIST_PAGE, &json!({})).await.unwrap();
    let reply: ListReply = serde_json::from_slice(&reply).unwrap();
    assert_eq!(reply, served.tree.list(&ListRequest::default()).unwrap());

    let reply = served.call(FS_READ, &json!({"path": "a/x.txt", "offset_bytes": 4})).await;
    let reply: ReadReply = serde_json::from_slice(&reply.unwrap()).unwrap();
    assert_eq!((reply.content.as_str(), reply.end), ("two\n", true));

    let reply = served.call(FS_SEARCH_PAGE, &json!({"pattern": "two"})).await.unwrap();
    let reply: SearchReply = serde_json::from_slice(&reply).unwrap();
    assert_eq!(reply, served.tree.search(&SearchRequest::pattern("two")).unwrap());
    assert_eq!(reply.matches.len(), 2);
}

#[tokio::test]
async fn describe_names_the_methods() {
    let served = Served::of(&[]).await;
    let mut methods: Vec<_> = served.client.describe().await.unwrap();
    methods.sort_by_key(|method| method.kind);
    let named: Vec<_> = methods.iter().map(|method| (method.kind, method.name.as_str())).collect();
    let list = (FS_LIST.kind(), FS_LIST.name());
    let search = (FS_SEARCH.kind(), FS_SEARCH.name());
    let read_raw = (FS_READ_RAW.kind(), FS_READ_RAW.name());
    let write = (FS_WRITE.kind(), FS_WRITE.name());
    let watch = (FS_WATCH.kind(), FS_WATCH.name());
    let reading = [list, FS_READ, FS_LIST_PAGE, read_raw];
    let write_stream = (FS_WRITE_STREAM.kind(), FS_WRITE_STREAM.name());
    let changing = [write, FS_APPLY_PATCH, watch, write_stream];
    assert_eq!(named, [&reading[..], &changing, &[search, FS_SEARCH_PAGE]].concat());
}

#[tokio::test]
async fn describe_tells_the_schemas_of_every_method_in_json_and_they_fit_its_types() {
    let served = Served::of(&[]).await;
    for method in served.client.describe().await.unwrap() {
        let details = served.client.describe_method(method.kind).await.unwrap();
        // A file's content is bytes.
        let bytes = [FS_READ_RAW.kind(), FS_WRITE.kind(), FS_WRITE_STREAM.kind()];
        if bytes.contains(&method.kind) {
            assert!(details.codec.contains("raw"), "{}", method.name);
            continue;
        }
        assert_eq!(details.codec, "json", "{}", method.name);
        for schema in [details.request_schema, details.reply_schema] {
            let schema: Value = serde_json::from_str(&schema.expect("a schema")).unwrap();
            let fields = schema["properties"].as_object().unwrap();
            assert!(!fields.is_empty(), "{}", method.name);
            let told = fields.values().filter(|field| field["description"].is_string());
            assert_eq!(told.count(), fields.len(), "{}: a field is not explained", method.name);
        }
    }
    let search = served.client.describe_method(FS_SEARCH_PAGE.0).await.unwrap();
    let request: Value = serde_json::from_str(&search.request_schema.unwrap()).unwrap();
    assert_eq!(request["required"], json!(["pattern"]));
    assert_eq!(request["properties"]["path"]["default"], ".");
    assert_eq!(request["properties"]["max_matches"]["default"], 200);
    assert_eq!(request["additionalProperties"], false);
}

#[tokio::test]
async fn describe_tells_bytes_as_bytes_and_what_belongs_to_them_in_json() {
    let served = Served::of(&[]).await;
    let schemas = async |kind| {
        let details = served.client.describe_method(kind).await.unwrap();
        let value = |text: Option<String>| serde_json::from_str(&text.unwrap()).unwrap();
        (value(details.request_schema), value(details.reply_schema))
    };
    let bytes = |schema: &Value| {
        assert_eq!(schema["contentMediaType"], "application/octet-stream");
        assert_eq!(schema["type"], Value::Null);
    };
    let (asked, reply): (Value, Value) = schemas(FS_READ_RAW.kind()).await;
    assert_eq!(asked["required"], json!(["path"]));
    bytes(&reply);
    for kind in [FS_WRITE.kind(), FS_WRITE_STREAM.kind()] {
        let (content, reply) = schemas(kind).await;
        bytes(&content);
        assert_eq!(content["$defs"]["WriteRequest"]["required"], json!(["path"]));
        assert!(reply["properties"]["sha256"].is_object());
    }
}

#[tokio::test]
async fn descriptions_say_the_limits_and_name_no_constant() {
    let served = Served::of(&[]).await;
    let mut all = String::new();
    for method in served.client.describe().await.unwrap() {
        let details = served.client.describe_method(method.kind).await.unwrap();
        all.extend([details.request_schema, details.reply_schema].into_iter().flatten());
    }
    let words = || all.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let constants = words()
        .filter(|word| word.contains('_') && !word.chars().any(|c| c.is_ascii_lowercase()))
        .collect::<Vec<_>>();
    assert_eq!(constants, Vec::<&str>::new());
    assert!(!all.contains("::"), "{all}");
    for limit in [
        format!("{MATCHES_DEFAULT} by default; more than {MATCHES_MAX} count as {MATCHES_MAX}"),
        format!("more than {DEPTH_MAX} directories deep"),
        format!("longer than {} MiB", LINE_BYTES_MAX >> 20),
        format!("at most {TEXT_BYTES_MAX} bytes"),
        format!("metadata pair `{REQUEST_KEY}`"),
    ] {
        // As a doc comment its words may be on two lines.
        assert!(all.replace("\\n", " ").contains(&limit), "no {limit:?} in {all}");
    }
}

#[tokio::test]
async fn descriptions_allow_what_can_come_and_no_more() {
    let served = Served::of(&[("a", b"x")]).await;
    let schema = async |kind| -> Value {
        let details = served.client.describe_method(kind).await.unwrap();
        serde_json::from_str(&details.reply_schema.unwrap()).unwrap()
    };
    let found = schema(FS_SEARCH.kind()).await;
    for field in ["line_number", "column", "text_column"] {
        assert_eq!(found["properties"][field]["minimum"], json!(1), "{field}: {found}");
    }
    let patched = schema(FS_APPLY_PATCH.0).await.to_string();
    assert!(patched.contains("\"removed\"") && !patched.contains("rescan"), "{patched}");
    for (method, request) in [
        (FS_LIST_PAGE, json!({"cursor": null, "limit": null})),
        (FS_READ, json!({"path": "a", "len_bytes": null})),
        (FS_SEARCH_PAGE, json!({"pattern": "x", "cursor": null})),
    ] {
        served.call(method, &request).await.unwrap();
    }
    let refused = served.refusal(FS_READ, br#"{"path": "a", "offset_bytes": null}"#).await;
    assert_eq!(refused.0, Code::InvalidArgument);
}

#[tokio::test]
async fn empty_request_stands_for_an_empty_object() {
    let served = Served::of(&[("a", b"")]).await;
    let reply = served.client.call_raw(FS_LIST_PAGE.0, b"").await.unwrap();
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
        (b"{\"path\": \"a\", \"offset_bytes\": -1}", "read: at offset_bytes: invalid value"),
        (b"{\"path\": \"a\"} x", "trailing characters"),
    ] {
        let (code, sentence) = served.refusal(FS_READ, request).await;
        assert_eq!(code, Code::InvalidArgument, "{sentence}");
        assert!(sentence.contains(part), "{sentence}");
    }
    let deep = [b'['; 20_000];
    assert_eq!(served.refusal(FS_LIST_PAGE, &deep).await.0, Code::InvalidArgument);
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
        (FS_LIST_PAGE, json!({"path": "f"}), Code::FailedPrecondition),
        (FS_LIST_PAGE, json!({"cursor": "mine"}), Code::InvalidArgument),
        (FS_SEARCH_PAGE, json!({"pattern": "("}), Code::InvalidArgument),
    ] {
        let refused = served.refusal(method, &serde_json::to_vec(&request).unwrap()).await;
        assert_eq!(refused.0, code, "{request}: {}", refused.1);
    }
}

#[tokio::test]
async fn replies_fit_the_connection_and_page() {
    let content = "x".repeat(12_000_000);
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
    assert_eq!(offset, 12_000_000);
    assert!(pages > 1, "a reply was larger than the connection takes");
}

#[tokio::test]
async fn many_calls_at_once_are_all_answered() {
    let served = Served::of(&[("a", b"needle\n")]).await;
    let calls = (0..100).map(|_| {
        let client = served.client.clone();
        tokio::spawn(
            async move { client.call_raw(FS_SEARCH_PAGE.0, br#"{"pattern":"needle"}"#).await },
        )
    });
    for call in calls.collect::<Vec<_>>() {
        let reply = call.await.unwrap().unwrap();
        let reply: SearchReply = serde_json::from_slice(&reply).unwrap();
        assert_eq!(reply.matches.len(), 1);
    }
    assert!(served.server.shutdown().await);
}

#[tokio::test]
async fn streams_bring_what_the_pages_bring() {
    let files: Vec<(String, Vec<u8>)> = (0..300)
        .map(|n| (format!("d{}/f{n}.txt", n % 7), format!("a{n}\nneedle {n}\n").into_bytes()))
        .collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(p, c)| (p.as_str(), &c[..])).collect();
    let served = Served::of(&files).await;

    let mut listed = Vec::new();
    let mut entries = served.client.stream(FS_LIST, &ListRequest::default()).await.unwrap();
    while let Some(entry) = entries.next().await {
        listed.push(entry.unwrap());
    }
    assert_eq!(listed, served.tree.list(&ListRequest::default()).unwrap().entries);

    let request = SearchRequest::pattern("needle");
    let mut found = Vec::new();
    let mut matches = served.client.stream(FS_SEARCH, &request).await.unwrap();
    while let Some(item) = matches.next().await {
        found.push(item.unwrap());
    }
    assert_eq!(found.len(), 300);
    let whole = SearchRequest { max_matches: 1000.try_into().unwrap(), ..request };
    assert_eq!(found, served.tree.search(&whole).unwrap().matches);

    let bad = SearchRequest::pattern("(");
    let mut matches = served.client.stream(FS_SEARCH, &bad).await.unwrap();
    let error = matches.next().await.unwrap().unwrap_err();
    assert!(matches!(&error, CallError::Status(status) if status.code == Code::InvalidArgument));
    assert!(matches.next().await.is_none());
}

#[tokio::test]
async fn write_in_items_on_a_read_only_server_is_refused_before_its_content() {
    let served = Served::of(&[]).await;
    let options = WriteRequest::path("f").options();
    let mut upload = served.client.upload(FS_WRITE_STREAM, &options).await.unwrap();
    let item = Payload::from(vec![7; 1 << 20]);
    let mut sent = 0;
    while sent < 60 && upload.send(&item).await.is_ok() {
        sent += 1;
    }
    assert!(sent < 20, "{sent} MiB were taken");
    match upload.finish().await {
        Err(CallError::Status(status)) => {
            assert_eq!(status.code, Code::PermissionDenied);
            assert!(status.message.contains("--writable"), "{}", status.message);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn streams_that_nobody_reads_stop_nobody_else() {
    let served = Served::of(&[]).await;
    for name in 0..1500 {
        std::fs::write(served.tree.path().join(format!("f{name}")), "needle\n").unwrap();
    }
    let cores = std::thread::available_parallelism().unwrap().get();
    let (mut clients, mut unread) = (Vec::new(), Vec::new());
    // More than may block at a time, and more than one connection may have.
    while unread.len() <= 2 * cores || clients.len() < 2 {
        let client = IpcClient::connect(served.server.path()).await.unwrap();
        for _ in 0..STREAMS_PER_CONNECTION_MAX {
            let mut entries = client.stream(FS_LIST, &ListRequest::default()).await.unwrap();
            let first = tokio::time::timeout(Duration::from_secs(20), entries.next()).await;
            first.expect("streams that nobody reads hold every slot").unwrap().unwrap();
            unread.push(entries);
        }
        clients.push(client);
    }
    // One more of a connection is refused, with what to do; and everything else is answered.
    let search = SearchRequest::pattern("needle");
    let mut matches = clients[0].stream(FS_SEARCH, &search).await.unwrap();
    let error = matches.next().await.unwrap().unwrap_err();
    let CallError::Status(status) = error else { panic!("{error}") };
    assert_eq!(status.code, Code::ResourceExhausted);
    assert!(status.message.contains("drop it"), "{}", status.message);
    for client in [&served.client, &clients[0]] {
        let read = client.call_raw(FS_READ.0, br#"{"path": "f0"}"#);
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        read.expect("streams that nobody reads hold every slot").unwrap();
    }

    // Those that stood still go on where they were, and those that are dropped end.
    let mut last = unread.pop().unwrap();
    let mut entries = 1;
    while let Some(entry) = last.next().await {
        entry.unwrap();
        entries += 1;
    }
    assert_eq!(entries, 1500);
    drop(unread);
    let begun = Instant::now();
    while served.tree.workspace.stats().working > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "threads wait on");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut matches = clients[0].stream(FS_SEARCH, &search).await.unwrap();
    matches.next().await.unwrap().expect("there is room for another");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_search_stops_its_work_at_once() {
    // One file that takes seconds to search, and in which nothing is found after the first line.
    let mut long = b"needle\n".to_vec();
    while long.len() < 64 << 20 {
        long.extend_from_slice(b"the quick brown fox jumps over the lazy dog 0123456789\n");
    }
    let files: Vec<(String, &[u8])> = (0..2).map(|n| (format!("long{n}.txt"), &long[..])).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(p, c)| (p.as_str(), *c)).collect();
    let served = Served::of(&files).await;
    let request = SearchRequest::pattern("needle|(a|b|c|d|e)+xyz");
    for _ in 0..3 {
        let mut matches = served.client.stream(FS_SEARCH, &request).await.unwrap();
        assert_eq!(matches.next().await.unwrap().unwrap().line_number, 1);
        assert!(holds_open(served.tree.path()), "the search is at work");
        let begun = Instant::now();
        drop(matches);
        while holds_open(served.tree.path()) {
            assert!(begun.elapsed() < Duration::from_secs(10), "the search goes on");
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        eprintln!("the search stopped {:?} after its stream was dropped", begun.elapsed());
    }
}

/// Whether this process has a file of the tree open, as a search does that is at work on it.
fn holds_open(tree: &Path) -> bool {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .any(|target| target.starts_with(tree) && target.extension().is_some())
}
