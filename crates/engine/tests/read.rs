//! Behaviour of `fs.read`.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{LARGE, Tree};
use lapwing_engine::{Encoding, ErrorClass, ReadReply, ReadRequest, Workspace, WorkspaceError};

fn request(path: &str) -> ReadRequest {
    ReadRequest { path: path.to_owned(), offset_bytes: 0, len_bytes: None }
}

fn bytes(reply: &ReadReply) -> Vec<u8> {
    let bytes = match reply.encoding {
        Encoding::Utf8 => reply.content.clone().into_bytes(),
        Encoding::Base64 => STANDARD.decode(&reply.content).unwrap(),
    };
    assert_eq!(bytes.len() as u64, reply.len_bytes);
    bytes
}

/// Reads to the end in pages; checks the bound, progress and `end` of each.
fn read_pages(workspace: &Workspace, path: &str, len: Option<u64>, max: usize) -> Vec<ReadReply> {
    let mut request = ReadRequest { len_bytes: len, ..request(path) };
    let mut pages = Vec::new();
    loop {
        let reply = workspace.read(&request, max).unwrap();
        assert!(serde_json::to_vec(&reply).unwrap().len() <= max);
        assert!(reply.len_bytes > 0 || reply.end, "no progress");
        assert!(len.is_none_or(|len| reply.len_bytes <= len));
        assert_eq!(reply.offset_bytes, request.offset_bytes);
        request.offset_bytes += reply.len_bytes;
        assert_eq!(reply.end, request.offset_bytes == reply.total_bytes);
        let end = reply.end;
        pages.push(reply);
        if end {
            return pages;
        }
    }
}

#[test]
fn read_of_a_whole_file_and_of_ranges() {
    let tree = Tree::of(&[("a/f", b"hello world")]);
    let reply = tree.workspace.read(&request("a/f"), LARGE).unwrap();
    assert_eq!(
        serde_json::to_string(&reply).unwrap(),
        concat!(
            r#"{"path":"a/f","offset_bytes":0,"len_bytes":11,"total_bytes":11,"#,
            r#""encoding":"utf-8","content":"hello world","end":true}"#
        )
    );
    let range = |offset_bytes, len| {
        let request = ReadRequest { offset_bytes, len_bytes: len, ..request("./a/../a/f") };
        let reply = tree.workspace.read(&request, LARGE).unwrap();
        assert_eq!((reply.path.as_str(), reply.total_bytes), ("a/f", 11));
        (reply.content, reply.end)
    };
    assert_eq!(range(6, None), ("world".into(), true));
    assert_eq!(range(2, Some(3)), ("llo".into(), false));
    assert_eq!(range(6, Some(5)), ("world".into(), true));
    assert_eq!(range(6, Some(u64::MAX)), ("world".into(), true));
    assert_eq!(range(11, None), (String::new(), true));
    assert_eq!(range(3, Some(0)), (String::new(), false));
}

#[test]
fn read_behind_the_end_is_out_of_range() {
    let tree = Tree::of(&[("f", b"abc")]);
    for offset_bytes in [4, u64::MAX] {
        let error =
            tree.workspace.read(&ReadRequest { offset_bytes, ..request("f") }, LARGE).unwrap_err();
        assert_eq!(error.class(), ErrorClass::OutOfRange);
        assert!(error.to_string().contains("3 bytes"), "{error}");
    }
}

#[test]
fn read_of_an_empty_file_is_empty_text_at_its_end() {
    let tree = Tree::of(&[("f", b"")]);
    let reply = tree.workspace.read(&request("f"), LARGE).unwrap();
    assert_eq!((reply.encoding, reply.len_bytes, reply.end), (Encoding::Utf8, 0, true));
}

#[test]
fn read_of_binary_bytes_is_base64() {
    let tree = Tree::of(&[("nul", b"a\0b"), ("latin", b"caf\xe9 au lait")]);
    let reply = tree.workspace.read(&request("nul"), LARGE).unwrap();
    assert_eq!((reply.encoding, reply.content.as_str()), (Encoding::Base64, "YQBi"));
    let reply = tree.workspace.read(&request("latin"), LARGE).unwrap();
    assert_eq!(bytes(&reply), b"caf\xe9 au lait");
    assert_eq!(reply.encoding, Encoding::Base64);
}

#[test]
fn read_pages_of_text_never_split_a_character() {
    let text = "aé€😀\"\\\n\t\u{1}".repeat(40);
    let tree = Tree::of(&[("f", text.as_bytes())]);
    for max in 126..200 {
        let pages = read_pages(&tree.workspace, "f", None, max);
        assert!(pages.len() > 3);
        assert!(pages.iter().all(|page| page.encoding == Encoding::Utf8));
        let joined: String = pages.iter().map(|page| page.content.as_str()).collect();
        assert_eq!(joined, text, "with pages of {max} bytes");
    }
    for len in 4..20 {
        let pages = read_pages(&tree.workspace, "f", Some(len), LARGE);
        assert!(pages.iter().all(|page| page.encoding == Encoding::Utf8));
    }
    // A range that cannot hold its first character still makes progress, as bytes.
    for len in 1..4 {
        let pages = read_pages(&tree.workspace, "f", Some(len), LARGE);
        let joined: Vec<u8> = pages.iter().flat_map(bytes).collect();
        assert_eq!(joined, text.as_bytes());
    }
}

#[test]
fn read_pages_of_any_bytes_are_the_file() {
    let mut state = 0x9e37_79b9_u32;
    let mut random = move |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    let pieces: [&[u8]; 9] = [
        b"text ",
        b"\n",
        "é".as_bytes(),
        "😀".as_bytes(),
        b"\xff",
        b"\xf0\x9f",
        b"\0",
        b"\"",
        b"\x02",
    ];
    for round in 0..150 {
        // Some files have only text, some have everything.
        let kinds = if round % 3 == 0 { 4 } else { 9 };
        let count = random(200);
        let mut file = Vec::new();
        for _ in 0..count {
            file.extend_from_slice(pieces[random(kinds) as usize]);
        }
        let tree = Tree::of(&[("f", &file)]);
        let max = 128 + random(400) as usize;
        let len = (round % 2 == 0).then(|| u64::from(1 + random(60)));
        let pages = read_pages(&tree.workspace, "f", len, max);
        let joined: Vec<u8> = pages.iter().flat_map(bytes).collect();
        assert_eq!(joined, file, "round {round}, pages of {max} bytes, ranges of {len:?}");
    }
}

#[test]
fn read_with_too_small_a_bound_says_so() {
    let tree = Tree::of(&[("f", "é".as_bytes())]);
    for max in [0, 50, 100] {
        let error = tree.workspace.read(&request("f"), max).unwrap_err();
        assert!(matches!(error, WorkspaceError::ReplyTooSmall { .. }), "{error}");
    }
}

#[test]
fn read_refuses_what_is_not_a_regular_file_without_blocking() {
    let tree = Tree::of(&[("d/", b"")]);
    tree.fifo("fifo");
    tree.symlink("fifo", "link");
    let socket = std::os::unix::net::UnixListener::bind(tree.path().join("socket")).unwrap();
    for path in ["d", ".", "fifo", "link", "socket"] {
        let workspace = tree.workspace.clone();
        let error =
            common::without_blocking(move || workspace.read(&request(path), LARGE)).unwrap_err();
        assert!(matches!(error, WorkspaceError::NotAFile { .. }), "{error}");
        assert!(error.to_string().contains(path), "{error}");
    }
    drop(socket);
    let devices = Workspace::open(std::path::Path::new("/dev")).unwrap();
    let error = devices.read(&request("zero"), LARGE).unwrap_err();
    assert!(matches!(error, WorkspaceError::NotAFile { .. }), "{error}");
}

#[test]
fn read_of_an_unreadable_file_says_so() {
    let tree = Tree::of(&[("f", b"secret")]);
    let path = tree.path().join("f");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    let answer = tree.workspace.read(&request("f"), LARGE);
    if fs::File::open(&path).is_ok() {
        assert_eq!(answer.unwrap().content, "secret", "permissions do not bind this user");
        return;
    }
    let error = answer.unwrap_err();
    assert!(matches!(error, WorkspaceError::PermissionDenied { .. }), "{error}");
    assert!(error.to_string().contains("\"f\""));
}

#[test]
fn read_of_missing_and_impossible_paths() {
    let tree = Tree::of(&[("f", b"")]);
    tree.symlink("nowhere", "dangling");
    tree.symlink("loop", "loop");
    let error = |path: &str| tree.workspace.read(&request(path), LARGE).unwrap_err();
    assert_eq!(error("missing").class(), ErrorClass::NotFound);
    assert_eq!(error("dangling").class(), ErrorClass::NotFound);
    assert_eq!(error("f/below").class(), ErrorClass::FailedPrecondition);
    assert!(matches!(error("loop"), WorkspaceError::Io { .. }));
    assert!(matches!(error("a\0b"), WorkspaceError::InvalidPath { .. }));
    assert!(matches!(error(""), WorkspaceError::InvalidPath { .. }));
    assert!(matches!(error(&"n".repeat(300)), WorkspaceError::InvalidPath { .. }));
    assert!(matches!(error(&"n/".repeat(3000)), WorkspaceError::InvalidPath { .. }));
}

#[test]
fn read_requests_name_their_unknown_fields() {
    let error = serde_json::from_str::<ReadRequest>(r#"{"path":"a","offset":3}"#).unwrap_err();
    assert!(error.to_string().contains("`offset`"), "{error}");
    assert!(serde_json::from_str::<ReadRequest>("{}").is_err(), "a path is needed");
    let minimal: ReadRequest = serde_json::from_str(r#"{"path":"f"}"#).unwrap();
    assert_eq!(minimal, request("f"));
}
