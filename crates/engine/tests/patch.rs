//! Behaviour of `fs.apply_patch`, through a real server.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{Served, Tree};
use lapwing::{CallError, Code, Status};
use lapwing_engine::{
    ChangeKind, FS_APPLY_PATCH, HunkFailure, PatchReply, PatchRequest, WorkspaceError,
};

async fn apply(served: &Served, patch: &str) -> Result<PatchReply, Status> {
    let request = PatchRequest { patch: patch.to_owned(), strip: None, dry_run: false };
    send(served, &request).await
}

async fn send(served: &Served, request: &PatchRequest) -> Result<PatchReply, Status> {
    let request = serde_json::to_vec(request).unwrap();
    match served.client.call_raw(FS_APPLY_PATCH.0, &request).await {
        Ok(reply) => Ok(serde_json::from_slice(&reply).unwrap()),
        Err(CallError::Status(status)) => Err(status),
        Err(other) => panic!("{other}"),
    }
}

/// Every file of the tree with its content.
fn content(tree: &Tree) -> Vec<(String, Vec<u8>)> {
    let names = common::names_below(tree.path()).into_iter();
    names
        .filter(|name| tree.path().join(name).is_file())
        .map(|name| (name.display().to_string(), fs::read(tree.path().join(&name)).unwrap()))
        .collect()
}

fn lines(range: std::ops::RangeInclusive<usize>) -> String {
    range.map(|n| format!("line {n}\n")).collect()
}

const TWO_HUNKS: &str = "--- a/src/x.rs
+++ b/src/x.rs
@@ -2,3 +2,3 @@
 line 2
-line 3
+LINE 3
 line 4
@@ -17,3 +17,4 @@ fn somewhere()
 line 17
 line 18
+line 18 and a half
 line 19
";

#[tokio::test]
async fn patch_of_several_files_changes_makes_and_removes_them() {
    let old = lines(1..=20);
    let served =
        Served::of(&[("src/x.rs", old.as_bytes()), ("gone", b"one\ntwo"), ("kept", b"k")]).await;
    let script = served.tree.path().join("src/x.rs");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o751)).unwrap();
    let patch = format!(
        "From 1234\nSubject: a mail\n\n---\n\n{TWO_HUNKS}\
         diff --git a/gone b/gone\ndeleted file mode 100644\nindex 1..0\n\
         --- a/gone\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-one\n-two\n\\ No newline at end of file\n\
         diff --git a/made/deep/f b/made/deep/f\nnew file mode 100755\nindex 0..1\n\
         --- /dev/null\n+++ b/made/deep/f\n@@ -0,0 +1,2 @@\n+first\n+second\n\
         \\ No newline at end of file\n-- \n2.47.3\n"
    );
    let reply = apply(&served, &patch).await.unwrap();
    let changes: Vec<_> = reply.files.iter().map(|f| (f.path.as_str(), f.change)).collect();
    let wanted = [
        ("src/x.rs", ChangeKind::Modified),
        ("gone", ChangeKind::Removed),
        ("made/deep/f", ChangeKind::Created),
    ];
    assert_eq!(changes, wanted);
    assert_eq!(reply.files[0].offsets_lines, [0, 0]);
    assert_eq!(reply.files[1].sha256, None);
    let new =
        old.replace("line 3\n", "LINE 3\n").replace("line 18\n", "line 18\nline 18 and a half\n");
    let wanted = [
        ("kept".to_owned(), b"k".to_vec()),
        ("made/deep/f".to_owned(), b"first\nsecond".to_vec()),
        ("src/x.rs".to_owned(), new.into_bytes()),
    ];
    assert_eq!(content(&served.tree), wanted);
    let mode = |path| fs::metadata(served.tree.path().join(path)).unwrap().permissions().mode();
    assert_eq!(mode("src/x.rs") & 0o777, 0o751);
    assert_eq!(mode("made/deep/f") & 0o100, 0o100);
}

#[tokio::test]
async fn failed_hunk_changes_no_file_and_says_which_and_why() {
    let second = lines(1..=20).replace("line 18\n", "line eighteen\n");
    let served = Served::of(&[("first", b"a\nb\nc\n"), ("src/x.rs", second.as_bytes())]).await;
    let before = content(&served.tree);
    let patch = format!(
        "--- a/first\n+++ b/first\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n\
         --- /dev/null\n+++ b/fresh/f\n@@ -0,0 +1 @@\n+new\n{TWO_HUNKS}"
    );
    let status = apply(&served, &patch).await.unwrap_err();
    assert_eq!(status.code, Code::FailedPrecondition);
    assert_eq!(
        status.message,
        "hunk 2 of \"src/x.rs\" (line 19 of the patch) does not fit: line 18 of the file should be \
         \"line 18\" and is \"line eighteen\"; no file was changed"
    );
    let failure: HunkFailure = serde_json::from_slice(&status.details).unwrap();
    assert_eq!((failure.hunk, failure.patch_line, failure.line), (2, 19, 18));
    assert_eq!(failure.found.as_deref(), Some("line eighteen"));
    assert_eq!(content(&served.tree), before);
    assert_eq!(served.names().len(), 3, "nothing was made: {:?}", served.names());

    let shorter = lines(1..=17);
    fs::write(served.tree.path().join("src/x.rs"), shorter).unwrap();
    let status = apply(&served, TWO_HUNKS).await.unwrap_err();
    assert!(status.message.contains("is behind the end of the file"), "{}", status.message);

    let behind = "--- a/first\n+++ b/first\n@@ -9,0 +10,1 @@\n+one\n";
    let status = apply(&served, behind).await.unwrap_err();
    let says = "(line 3 of the patch) does not fit: it goes behind line 9, and the file has 3";
    assert!(status.message.contains(says), "{}", status.message);
    let failure: HunkFailure = serde_json::from_slice(&status.details).unwrap();
    assert_eq!((failure.line, failure.file_lines), (9, Some(3)));
    assert_eq!((failure.expected.as_str(), failure.found), ("", None), "the patch says of no line");
}

#[tokio::test]
async fn patch_that_makes_a_file_and_a_directory_of_one_name_changes_no_file() {
    let served = Served::of(&[("a", b"1\n")]).await;
    let make = "@@ -0,0 +1 @@\n+2\n";
    let patch = format!(
        "--- a/a\n+++ b/a\n@@ -1 +1 @@\n-1\n+2\n--- /dev/null\n+++ b/n\n{make}\
         --- /dev/null\n+++ b/n/m\n{make}"
    );
    apply(&served, &patch).await.unwrap_err();
    assert_eq!(content(&served.tree), [("a".to_owned(), b"1\n".to_vec())]);
}

#[tokio::test]
async fn patch_that_does_not_go_with_what_is_there_has_the_code_of_its_reason() {
    let outside = Tree::of(&[("f", b"1\n")]);
    let served = Served::of(&[("f", b"1\n2\n"), ("d/", b"")]).await;
    served.tree.symlink(outside.path().join("f"), "out");
    served.tree.symlink("f", "link");
    let hunk = "@@ -1 +1 @@\n-1\n+2\n";
    let make = "@@ -0,0 +1 @@\n+2\n";
    for (patch, code, part) in [
        (format!("--- a/no\n+++ b/no\n{hunk}"), Code::NotFound, "\"no\""),
        (format!("--- a/d\n+++ b/d\n{hunk}"), Code::FailedPrecondition, "directory"),
        (format!("--- a/out\n+++ b/out\n{hunk}"), Code::PermissionDenied, "\"out\""),
        (format!("--- a/../f\n+++ b/../f\n{hunk}"), Code::PermissionDenied, "outside"),
        (format!("--- /dev/null\n+++ b/f\n{make}"), Code::AlreadyExists, "\"f\""),
        (format!("--- /dev/null\n+++ b/out\n{make}"), Code::AlreadyExists, "\"out\""),
        (
            "--- a/link\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-1\n-2\n".into(),
            Code::FailedPrecondition,
            "symbolic link",
        ),
        (
            "--- a/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-1\n".into(),
            Code::FailedPrecondition,
            "more lines",
        ),
        (
            format!("--- a/f\n+++ b/f\n{hunk}--- a/f\n+++ b/f\n{hunk}"),
            Code::InvalidArgument,
            "second",
        ),
        ("--- a/f\n+++ b/f\n@@ -1 +1 @@\n-1\n".into(), Code::InvalidArgument, "line 4"),
    ] {
        let status = apply(&served, &patch).await.unwrap_err();
        assert_eq!(status.code, code, "{patch:?}: {}", status.message);
        assert!(status.message.contains(part), "{patch:?}: {}", status.message);
    }
    assert_eq!(fs::read(served.tree.path().join("f")).unwrap(), b"1\n2\n");
    assert_eq!(fs::read(outside.path().join("f")).unwrap(), b"1\n");
    assert_eq!(served.names().len(), 4);
}

#[tokio::test]
async fn patch_that_names_one_file_by_two_names_is_refused() {
    let served = Served::of(&[("real", b"1\n2\n3\n"), ("d/f", b"1\n2\n3\n")]).await;
    served.tree.symlink("real", "link");
    served.tree.symlink("d", "e");
    let change = |path: &str, line: u32| {
        format!("--- a/{path}\n+++ b/{path}\n@@ -{line} +{line} @@\n-{line}\n+{line}{line}\n")
    };
    let make = |path: &str| format!("--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+1\n");
    for patch in [
        change("real", 1) + &change("link", 3),
        change("link", 1) + &change("real", 3),
        change("d/f", 1) + &change("e/f", 3),
        make("d/g") + &make("e/g"),
        make("d/x/y/g") + &make("e/x/y/g"),
    ] {
        for dry_run in [true, false] {
            let request = PatchRequest { patch: patch.clone(), strip: None, dry_run };
            let status = send(&served, &request).await.unwrap_err();
            assert_eq!(status.code, Code::InvalidArgument, "{patch:?}: {}", status.message);
            assert!(status.message.contains("from before"), "{patch:?}: {}", status.message);
        }
    }
    assert_eq!(served.names().len(), 5, "nothing was made: {:?}", served.names());
    assert_eq!(fs::read(served.tree.path().join("real")).unwrap(), b"1\n2\n3\n");
    assert_eq!(fs::read(served.tree.path().join("d/f")).unwrap(), b"1\n2\n3\n");

    // Hard links are two files for whoever replaces one of them.
    let other = served.tree.path().join("other");
    fs::hard_link(served.tree.path().join("real"), &other).unwrap();
    apply(&served, &(change("real", 1) + &change("other", 3))).await.unwrap();
    assert_eq!(fs::read(served.tree.path().join("real")).unwrap(), b"11\n2\n3\n");
    assert_eq!(fs::read(other).unwrap(), b"1\n2\n33\n");
}

#[tokio::test]
async fn dry_run_says_what_would_be_and_changes_nothing() {
    let moved = format!("// new\n{}", lines(1..=20));
    let served = Served::of(&[("src/x.rs", moved.as_bytes())]).await;
    let request = PatchRequest { patch: TWO_HUNKS.into(), strip: None, dry_run: true };
    let reply = send(&served, &request).await.unwrap();
    assert_eq!(reply.files[0].offsets_lines, [1, 1]);
    assert_eq!(content(&served.tree)[0].1, moved.as_bytes());
    let real = send(&served, &PatchRequest { dry_run: false, ..request }).await.unwrap();
    assert_eq!(real, reply);
    let deep = PatchRequest { patch: TWO_HUNKS.into(), strip: Some(9), dry_run: true };
    assert_eq!(send(&served, &deep).await.unwrap_err().code, Code::InvalidArgument);
}

#[test]
fn patch_that_is_given_up_before_its_first_file_changes_none() {
    let tree = Tree::of(&[("src/x.rs", lines(1..=20).as_bytes())]);
    let workspace = tree.workspace.clone().writable();
    let request = PatchRequest { patch: TWO_HUNKS.into(), strip: None, dry_run: false };
    let looks = std::cell::Cell::new(0);
    let mut allowed = 0;
    loop {
        looks.set(0);
        let stop = || looks.replace(looks.get() + 1) >= allowed;
        match workspace.apply_patch(&request, &stop) {
            Err(WorkspaceError::Cancelled) => {}
            applied => break drop(applied.unwrap()),
        }
        assert_eq!(content(&tree)[0].1, lines(1..=20).as_bytes());
        assert_eq!(content(&tree).len(), 1);
        allowed += 1;
    }
    assert!(allowed > 5, "it looked {allowed} times");
}

#[test]
fn patch_on_a_read_only_workspace_is_refused() {
    let tree = Tree::of(&[("src/x.rs", lines(1..=20).as_bytes())]);
    let request = PatchRequest { patch: TWO_HUNKS.into(), strip: None, dry_run: false };
    let error = tree.workspace.apply_patch(&request, &|| false).unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
}

#[test]
fn patch_that_fails_leaves_no_directory_that_it_made() {
    let tree = Tree::of(&[("f", b"1\n"), ("there/", b"")]);
    let workspace = tree.workspace.clone().writable();
    let before = common::names_below(tree.path());
    let make = |path: &str| format!("--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+1\n");
    let long = "n".repeat(300);
    let patch = make("there/fresh/deep/g") + &make("other/g") + &make(&format!("x/y/{long}"));
    let request = PatchRequest { patch, strip: None, dry_run: false };
    workspace.apply_patch(&request, &|| false).unwrap_err();
    assert_eq!(common::names_below(tree.path()), before);

    let request = lapwing_engine::WriteRequest {
        create_directories: true,
        ..lapwing_engine::WriteRequest::path(format!("a/b/{long}"))
    };
    workspace.write(&request, b"1").unwrap_err();
    assert_eq!(common::names_below(tree.path()), before);
}
