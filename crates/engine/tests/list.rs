//! Behaviour of `fs.list.page`.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use common::Tree;
use lapwing_engine::{DEPTH_MAX, EntryKind, ErrorClass, ListRequest, Workspace, WorkspaceError};

fn request(path: &str) -> ListRequest {
    ListRequest { path: path.to_owned(), ..ListRequest::default() }
}

#[test]
fn list_is_sorted_with_directories_before_their_contents() {
    let tree =
        Tree::of(&[("b", b"12"), ("a/z", b""), ("a.x", b"123"), ("a/B/c", b""), ("e/", b"")]);
    let reply = tree.list(&request(".")).unwrap();
    let found: Vec<_> =
        reply.entries.iter().map(|e| (e.path.as_str(), e.kind, e.len_bytes)).collect();
    assert_eq!(
        found,
        [
            ("a", EntryKind::Directory, None),
            ("a/B", EntryKind::Directory, None),
            ("a/B/c", EntryKind::File, Some(0)),
            ("a/z", EntryKind::File, Some(0)),
            ("a.x", EntryKind::File, Some(3)),
            ("b", EntryKind::File, Some(2)),
            ("e", EntryKind::Directory, None),
        ]
    );
    assert_eq!((reply.next, reply.skipped_directories), (None, 0));
}

#[test]
fn list_of_a_subdirectory_names_paths_from_the_root() {
    let tree = Tree::of(&[("a/b/c", b""), ("a/d", b""), ("e", b"")]);
    assert_eq!(tree.paths(&request("a")), ["a/b", "a/b/c", "a/d"]);
    assert_eq!(tree.paths(&request("./x/../a/b/")), ["a/b/c"]);
    let shallow = ListRequest { recursive: false, ..request("a") };
    assert_eq!(tree.paths(&shallow), ["a/b", "a/d"]);
}

#[test]
fn list_of_an_empty_directory_is_empty() {
    let tree = Tree::of(&[("e/", b"")]);
    assert!(tree.paths(&request("e")).is_empty());
}

#[test]
fn list_honours_ignore_files_without_a_repository() {
    let tree = Tree::of(&[
        (".gitignore", b"*.tmp\n/build/\nbad[glob\n!keep.tmp\n"),
        ("a.tmp", b""),
        ("keep.tmp", b""),
        ("build/x", b""),
        ("src/build/y", b""),
        ("src/.gitignore", b"\xef\xbb\xbfsecret\n!b.tmp\r\n"),
        ("src/b.tmp", b""),
        ("src/secret", b""),
        ("src/deep/secret", b""),
        ("secret", b""),
        (".ignore", b"!a.tmp\nsecret\n"),
    ]);
    let found = ["a.tmp", "keep.tmp", "src", "src/b.tmp", "src/build", "src/build/y", "src/deep"];
    assert_eq!(tree.paths(&request(".")), found);
    let below = ["src/b.tmp", "src/build", "src/build/y", "src/deep"];
    assert_eq!(tree.paths(&request("src")), below, "rules of the directories above count");
    assert_eq!(tree.paths(&request("build")), ["build/x"], "the start is not ignored");
}

#[test]
fn list_treats_a_nested_repository_as_git_does() {
    let tree = Tree::of(&[
        (".git/info/exclude", b"private\n"),
        (".gitignore", b"*.o\n"),
        ("a.o", b""),
        ("private", b""),
        ("nested/.git/info/exclude", b"own\n"),
        ("nested/a.o", b""),
        ("nested/private", b""),
        ("nested/own", b""),
    ]);
    assert_eq!(tree.paths(&request(".")), ["nested", "nested/a.o", "nested/private"]);
}

#[test]
fn list_skips_hidden_names_unless_asked_and_git_always() {
    let tree = Tree::of(&[
        (".git/config", b""),
        (".hidden/x", b""),
        (".env", b""),
        ("a", b""),
        ("sub/.git", b"gitdir: ../elsewhere"),
    ]);
    assert_eq!(tree.paths(&request(".")), ["a", "sub"]);
    let all = ListRequest { hidden: true, ..request(".") };
    assert_eq!(tree.paths(&all), [".env", ".hidden", ".hidden/x", "a", "sub"]);
    tree.write(".gitignore", b"!.env\n!.git\n");
    assert_eq!(tree.paths(&request(".")), [".env", "a", "sub"]);
}

#[test]
fn list_pages_hold_every_entry_once() {
    let tree = Tree::of(&[(".gitignore", b"skipped*\n")]);
    for directory in ["a", "a/b", "a/b/c", "a.b", "b", "b/ü", "empty"] {
        for name in ["x", "y\"\n", "z", "skipped1"] {
            tree.write(&format!("{directory}/{name}"), b"");
        }
    }
    let whole = tree.list(&request(".")).unwrap();
    assert_eq!(whole.entries.len(), 7 * 4);
    for max in [260, 300, 400, 700, 2000, 100_000] {
        let pages = tree.list_pages(request("."), max);
        assert!(max > 1000 || pages.len() > 1);
        let entries: Vec<_> = pages.into_iter().flat_map(|page| page.entries).collect();
        assert_eq!(entries, whole.entries, "with pages of {max} bytes");
    }
    for limit in 1..30 {
        let request = ListRequest { limit: NonZeroU32::new(limit), ..request(".") };
        let pages = tree.list_pages(request, 100_000);
        assert_eq!(pages.len(), 28_usize.div_ceil(limit as usize), "and no empty page at the end");
        let entries: Vec<_> = pages.into_iter().flat_map(|page| page.entries).collect();
        assert_eq!(entries, whole.entries, "with pages of {limit} entries");
    }
}

#[test]
fn list_goes_on_when_the_entry_of_the_cursor_is_gone() {
    let tree = Tree::of(&[("a/1", b""), ("a/2", b""), ("a/3", b""), ("b", b"")]);
    let two = ListRequest { limit: NonZeroU32::new(3), ..request(".") };
    let first = tree.list(&two).unwrap();
    assert_eq!(first.entries.last().unwrap().path, "a/2");
    fs::remove_file(tree.path().join("a/2")).unwrap();
    let rest = ListRequest { cursor: first.next, ..request(".") };
    assert_eq!(tree.paths(&rest), ["a/3", "b"]);
    fs::remove_dir_all(tree.path().join("a")).unwrap();
    assert_eq!(tree.paths(&rest), ["b"]);
}

#[test]
fn list_refuses_cursors_of_other_requests() {
    let tree = Tree::of(&[("a/b", b""), ("c", b"")]);
    let first = tree.list(&ListRequest { limit: NonZeroU32::new(1), ..request(".") }).unwrap();
    let cursor = first.next;
    assert!(cursor.is_some());
    for other in [
        ListRequest { hidden: true, cursor: cursor.clone(), ..request(".") },
        ListRequest { recursive: false, cursor: cursor.clone(), ..request(".") },
        ListRequest { cursor, ..request("a") },
        ListRequest { cursor: Some("nonsense!".into()), ..request(".") },
    ] {
        let error = tree.list(&other).unwrap_err();
        assert!(matches!(error, WorkspaceError::BadCursor), "{error}");
        assert_eq!(error.class(), ErrorClass::InvalidArgument);
    }
}

#[test]
fn list_with_too_small_a_bound_says_so() {
    let tree = Tree::of(&[("a", b""), ("e/", b"")]);
    for max in [0, 10, 80] {
        let error = tree.workspace.list(&request("."), max).unwrap_err();
        assert!(matches!(error, WorkspaceError::ReplyTooSmall { .. }), "{error}");
    }
    assert!(tree.workspace.list(&request("e"), 10).is_err());
    assert!(tree.workspace.list(&request("e"), 60).is_ok());
}

#[test]
fn list_of_something_else_is_refused() {
    let tree = Tree::of(&[("file", b"")]);
    tree.fifo("fifo");
    let class = |path| tree.list(&request(path)).unwrap_err().class();
    assert_eq!(class("missing"), ErrorClass::NotFound);
    assert_eq!(class("file"), ErrorClass::FailedPrecondition);
    assert_eq!(class("file/below"), ErrorClass::FailedPrecondition);
    assert_eq!(class("fifo"), ErrorClass::FailedPrecondition);
    let error = Workspace::open(&tree.path().join("file")).unwrap_err();
    assert!(matches!(error, WorkspaceError::NotADirectory { .. }), "{error}");
    let error = Workspace::open(&tree.path().join("missing")).unwrap_err();
    assert!(matches!(error, WorkspaceError::NotFound { .. }), "{error}");
}

#[test]
fn list_names_symlinks_and_others_without_following_them() {
    let tree = Tree::of(&[("d/f", b"")]);
    tree.symlink("/etc", "etc");
    tree.symlink("d", "loop");
    tree.symlink("nowhere", "dangling");
    tree.fifo("fifo");
    let reply = tree.list(&request(".")).unwrap();
    let found: Vec<_> = reply.entries.iter().map(|e| (e.path.as_str(), e.kind)).collect();
    assert_eq!(
        found,
        [
            ("d", EntryKind::Directory),
            ("d/f", EntryKind::File),
            ("dangling", EntryKind::Symlink),
            ("etc", EntryKind::Symlink),
            ("fifo", EntryKind::Other),
            ("loop", EntryKind::Symlink),
        ]
    );
    assert_eq!(tree.paths(&request("loop")), ["loop/f"], "but a start is followed");
}

#[test]
fn list_does_not_block_on_an_ignore_file_that_is_a_fifo() {
    let tree = Tree::of(&[("a", b""), ("sub/b", b""), (".git/info/", b"")]);
    tree.fifo(".gitignore");
    tree.fifo("sub/.ignore");
    tree.fifo(".git/info/exclude");
    let workspace = tree.workspace.clone();
    let reply = common::without_blocking(move || workspace.list(&request("."), 4096)).unwrap();
    assert_eq!(reply.entries.len(), 3);
}

#[test]
fn list_shows_names_that_are_not_utf8_and_pages_over_them() {
    let tree = Tree::of(&[("a", b""), ("z", b"")]);
    for name in [&b"m\xff"[..], b"m\xfe", b"m\xff\xff"] {
        let directory = tree.path().join(OsStr::from_bytes(name));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("inner"), b"").unwrap();
    }
    let pages = tree.list_pages(ListRequest { limit: NonZeroU32::new(1), ..request(".") }, 4096);
    let found: Vec<_> = pages
        .iter()
        .flat_map(|page| &page.entries)
        .map(|entry| (entry.path.as_str(), entry.path_lossy))
        .collect();
    assert_eq!(
        found,
        [
            ("a", false),
            ("m\u{fffd}", true),
            ("m\u{fffd}/inner", true),
            ("m\u{fffd}", true),
            ("m\u{fffd}/inner", true),
            ("m\u{fffd}\u{fffd}", true),
            ("m\u{fffd}\u{fffd}/inner", true),
            ("z", false),
        ]
    );
}

#[test]
fn list_counts_directories_that_are_too_deep_once() {
    let tree = Tree::of(&[]);
    let mut path = tree.path().to_owned();
    for _ in 0..DEPTH_MAX + 3 {
        path.push("d");
        fs::create_dir(&path).unwrap();
    }
    tree.write("z", b"");
    for limit in [1, 7, 100_000] {
        let request = ListRequest { limit: NonZeroU32::new(limit), ..request(".") };
        let pages = tree.list_pages(request, 1 << 20);
        let entries: usize = pages.iter().map(|page| page.entries.len()).sum();
        let skipped: u64 = pages.iter().map(|page| page.skipped_directories).sum();
        assert_eq!((entries, skipped), (DEPTH_MAX + 1, 1));
    }
}

#[test]
fn list_counts_directories_that_may_not_be_read() {
    let tree = Tree::of(&[("closed/x", b""), ("open", b"")]);
    let closed = tree.path().join("closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let privileged = fs::read_dir(&closed).is_ok();
    let reply = tree.list(&request("."));
    let direct = tree.list(&request("closed"));
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let reply = reply.unwrap();
    if privileged {
        assert_eq!(reply.entries.len(), 3, "permissions do not bind this user");
        return;
    }
    assert_eq!((reply.entries.len(), reply.skipped_directories), (2, 1));
    assert!(matches!(direct, Err(WorkspaceError::PermissionDenied { .. })));
}

#[test]
fn list_requests_have_defaults_and_no_unknown_fields() {
    let empty: ListRequest = serde_json::from_str("{}").unwrap();
    assert_eq!(empty, ListRequest::default());
    assert_eq!((empty.path.as_str(), empty.recursive, empty.hidden), (".", true, false));
    let error = serde_json::from_str::<ListRequest>(r#"{"recursiv": true}"#).unwrap_err();
    assert!(error.to_string().contains("recursiv"), "{error}");
    assert!(serde_json::from_str::<ListRequest>(r#"{"limit": 0}"#).is_err());
}

#[test]
fn list_replies_have_the_documented_shape() {
    let tree = Tree::of(&[("a", b"xy"), ("d/", b"")]);
    let reply = tree.list(&request(".")).unwrap();
    assert_eq!(
        serde_json::to_string(&reply).unwrap(),
        concat!(
            r#"{"entries":[{"path":"a","kind":"file","len_bytes":2},"#,
            r#"{"path":"d","kind":"directory"}],"skipped_directories":0}"#
        )
    );
}

#[test]
fn list_as_a_stream_does_not_look_at_the_cursor() {
    let tree = Tree::of(&[("a", b""), ("b", b"")]);
    let first = ListRequest { limit: NonZeroU32::new(1), ..request(".") };
    for cursor in [tree.list(&first).unwrap().next, Some("nonsense!".into())] {
        let mut listed = Vec::new();
        let mut give = |entry: lapwing_engine::Entry| {
            listed.push(entry.path);
            true
        };
        let request = ListRequest { cursor, ..request(".") };
        tree.workspace.list_each(&request, &mut give, &|| false).unwrap();
        assert_eq!(listed, ["a", "b"]);
    }
}
