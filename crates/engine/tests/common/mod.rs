//! What the tests share: trees to work on, and paging to the end.

#![allow(dead_code)] // Each test program uses a part.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use lapwing::{CallError, ClientOptions, Code, IpcClient, IpcServer, Transport};
use lapwing_engine::{
    ListReply, ListRequest, Match, SearchReply, SearchRequest, Workspace, WorkspaceError,
    add_routes,
};
use tempfile::TempDir;

pub(crate) const LARGE: usize = 1024 * 1024;

/// A directory with a workspace open on it.
pub(crate) struct Tree {
    pub(crate) dir: TempDir,
    pub(crate) workspace: Workspace,
}

impl Tree {
    /// Makes files with these contents; a name that ends in `/` makes an empty directory.
    pub(crate) fn of(files: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::open(dir.path()).unwrap();
        let tree = Self { dir, workspace };
        for (name, content) in files {
            tree.write(name, content);
        }
        tree
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        let path = self.path().join(name);
        if name.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    pub(crate) fn symlink(&self, target: impl AsRef<Path>, name: &str) {
        std::os::unix::fs::symlink(target, self.path().join(name)).unwrap();
    }

    pub(crate) fn fifo(&self, name: &str) {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, self.path().join(name), FileType::Fifo, Mode::RWXU, 0).unwrap();
    }

    pub(crate) fn list(&self, request: &ListRequest) -> Result<ListReply, WorkspaceError> {
        self.workspace.list(request, LARGE)
    }

    /// The paths of a listing in one page.
    pub(crate) fn paths(&self, request: &ListRequest) -> Vec<String> {
        let reply = self.list(request).unwrap();
        assert_eq!(reply.next, None);
        reply.entries.into_iter().map(|entry| entry.path).collect()
    }

    pub(crate) fn search(&self, request: &SearchRequest) -> Result<SearchReply, WorkspaceError> {
        self.workspace.search(request, LARGE, &|| false)
    }

    /// Follows the cursors of a listing to its end, and checks each page against the bound.
    pub(crate) fn list_pages(&self, mut request: ListRequest, max: usize) -> Vec<ListReply> {
        let mut pages = Vec::new();
        loop {
            let reply = self.workspace.list(&request, max).unwrap();
            assert!(serde_json::to_vec(&reply).unwrap().len() <= max);
            request.cursor.clone_from(&reply.next);
            assert!(!reply.entries.is_empty() || reply.next.is_none());
            pages.push(reply);
            assert!(pages.len() < 10_000, "paging does not end");
            if request.cursor.is_none() {
                return pages;
            }
        }
    }

    /// Follows the cursors of a search to its end, and checks each page against the bound.
    pub(crate) fn search_pages(&self, mut request: SearchRequest, max: usize) -> Vec<Match> {
        let mut matches = Vec::new();
        for _ in 0..10_000 {
            let reply = self.workspace.search(&request, max, &|| false).unwrap();
            assert!(serde_json::to_vec(&reply).unwrap().len() <= max);
            assert!(reply.matches.len() <= request.max_matches.get() as usize);
            assert_eq!(reply.truncated, reply.next.is_some());
            assert!(!reply.matches.is_empty() || reply.next.is_none());
            request.cursor = reply.next;
            matches.extend(reply.matches);
            if request.cursor.is_none() {
                return matches;
            }
        }
        panic!("paging does not end");
    }
}

/// A tree that is served writable, and a client of it.
pub(crate) struct Served {
    pub(crate) tree: Tree,
    pub(crate) server: IpcServer,
    pub(crate) client: IpcClient,
    sockets: TempDir,
}

impl Served {
    pub(crate) async fn of(files: &[(&str, &[u8])]) -> Served {
        Served::tree(Tree::of(files)).await
    }

    pub(crate) async fn tree(tree: Tree) -> Served {
        let sockets = tempfile::tempdir().unwrap();
        let builder = IpcServer::builder().bind(sockets.path().join("s")).unwrap();
        let workspace = tree.workspace.clone().writable();
        let server = add_routes(builder, workspace).serve().unwrap();
        let client = IpcClient::connect(server.path()).await.unwrap();
        Served { tree, server, client, sockets }
    }

    /// A client over each transport.
    pub(crate) async fn clients(&self) -> Vec<(Transport, IpcClient)> {
        let mut clients = Vec::new();
        for transport in [Transport::SharedMemory, Transport::Socket] {
            let options = ClientOptions { transport, ..ClientOptions::default() };
            let client = IpcClient::connect_with(self.server.path(), options).await.unwrap();
            clients.push((transport, client));
        }
        clients
    }

    /// Every name below the root, temporary and hidden ones included.
    pub(crate) fn names(&self) -> Vec<PathBuf> {
        names_below(self.tree.path())
    }
}

/// Every name below a directory, sorted.
pub(crate) fn names_below(directory: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
            names.push(entry.path().strip_prefix(directory).unwrap().to_owned());
        }
    }
    names.sort();
    names
}

/// The code and the sentence of a call that was refused.
#[track_caller]
pub(crate) fn refusal<T: std::fmt::Debug>(answer: Result<T, CallError>) -> (Code, String) {
    match answer {
        Err(CallError::Status(status)) => (status.code, status.message),
        other => panic!("not refused: {other:?}"),
    }
}

/// Bytes in no order that compresses or repeats.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Runs a call that must not block, and fails after some seconds if it does.
pub(crate) fn without_blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(call()));
    receiver.recv_timeout(Duration::from_secs(20)).expect("the call blocks")
}
