//! No path leaves the root.

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{LARGE, Tree};
use lapwing_engine::{
    ErrorClass, ListRequest, ReadRequest, SearchRequest, Workspace, WorkspaceError,
};

fn read(workspace: &Workspace, path: &str) -> Result<String, WorkspaceError> {
    let request = ReadRequest { path: path.to_owned(), offset_bytes: 0, len_bytes: None };
    workspace.read(&request, LARGE).map(|reply| reply.content)
}

/// Every method refuses the path, and says that it is outside.
fn assert_outside(tree: &Tree, path: &str) {
    let list = ListRequest { path: path.to_owned(), ..ListRequest::default() };
    let search = SearchRequest { path: path.to_owned(), ..SearchRequest::pattern("root") };
    for error in [
        read(&tree.workspace, path).unwrap_err(),
        tree.list(&list).unwrap_err(),
        tree.search(&search).unwrap_err(),
    ] {
        assert!(matches!(error, WorkspaceError::OutsideRoot { .. }), "{path}: {error}");
        assert_eq!(error.class(), ErrorClass::PermissionDenied);
        assert!(error.to_string().contains(path));
    }
}

#[test]
fn paths_that_climb_out_are_refused() {
    let tree = Tree::of(&[("a/f", b"")]);
    for path in ["..", "../", "../../etc/passwd", "a/../../x", "/", "/etc/passwd", "a/../.."] {
        assert_outside(&tree, path);
    }
    let own = tree.path().join("a/f");
    assert_outside(&tree, own.to_str().unwrap());
}

#[test]
fn symlinks_that_point_out_are_refused() {
    let outside = Tree::of(&[("f", b"root"), ("d/g", b"root")]);
    let tree = Tree::of(&[("a/", b"")]);
    tree.symlink("/etc/passwd", "absolute");
    tree.symlink("/etc", "etc");
    tree.symlink(outside.path(), "out");
    let up = Path::new("../..").join(outside.path().file_name().unwrap());
    tree.symlink(&up, "a/up");
    tree.symlink("a/up/d", "chained");
    tree.symlink("..", "parent");
    assert!(tree.path().join("a/up/f").exists(), "the links do lead somewhere");
    let paths =
        ["absolute", "etc", "etc/passwd", "out", "out/f", "a/up", "a/up/f", "chained", "parent"];
    for path in paths {
        assert_outside(&tree, path);
    }
    let all = ListRequest { hidden: true, ..ListRequest::default() };
    assert_eq!(tree.paths(&all), ["a", "a/up", "absolute", "chained", "etc", "out", "parent"]);
    assert!(tree.search(&SearchRequest::pattern("root")).unwrap().matches.is_empty());
}

#[test]
fn symlinks_that_stay_inside_are_followed_when_named() {
    let tree = Tree::of(&[("a/f", b"inner"), ("b/", b"")]);
    tree.symlink("a/f", "file");
    tree.symlink("../a", "b/dir");
    assert_eq!(read(&tree.workspace, "file").unwrap(), "inner");
    assert_eq!(read(&tree.workspace, "b/dir/f").unwrap(), "inner");
}

#[test]
fn ignore_files_outside_the_root_are_not_read() {
    let outside = Tree::of(&[("rules", b"seen\n"), ("inner/seen", b"")]);
    fs::write(outside.path().join(".gitignore"), b"seen\n").unwrap();
    let inner = outside.path().join("inner");
    std::os::unix::fs::symlink("../rules", inner.join(".ignore")).unwrap();
    let workspace = Workspace::open(&inner).unwrap();
    let reply = workspace.list(&ListRequest::default(), LARGE).unwrap();
    assert_eq!(reply.entries.len(), 1);
    assert_eq!(reply.entries[0].path, "seen");
}

#[test]
fn a_renamed_root_is_still_the_root() {
    let tree = Tree::of(&[("root/f", b"mine")]);
    let workspace = Workspace::open(&tree.path().join("root")).unwrap();
    fs::rename(tree.path().join("root"), tree.path().join("moved")).unwrap();
    tree.write("root/f", b"not mine");
    assert_eq!(read(&workspace, "f").unwrap(), "mine");
}

/// Swaps names between inside and outside while `look` looks, and runs `look` often.
fn while_swapping(tree: &Tree, names: [&str; 2], look: impl Fn(&Workspace)) {
    let [shown, other] = names.map(|name| tree.path().join(name));
    let spare = tree.path().join("spare");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::rename(&shown, &spare).unwrap();
                fs::rename(&other, &shown).unwrap();
                fs::rename(&spare, &other).unwrap();
            }
        });
        let end = Instant::now() + Duration::from_millis(700);
        while Instant::now() < end {
            let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                look(&tree.workspace);
            }));
            if let Err(panic) = looked {
                done.store(true, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_file_swapped_for_a_symlink_out_is_never_read() {
    let outside = Tree::of(&[("secret", b"outside")]);
    let tree = Tree::of(&[("f", b"inside")]);
    tree.symlink(outside.path().join("secret"), "g");
    let (seen, refused) = (AtomicBool::new(false), AtomicBool::new(false));
    while_swapping(&tree, ["f", "g"], |workspace| match read(workspace, "f") {
        Ok(content) => {
            assert_eq!(content, "inside");
            seen.store(true, Ordering::Relaxed);
        }
        Err(WorkspaceError::OutsideRoot { .. }) => refused.store(true, Ordering::Relaxed),
        Err(error) => assert_eq!(error.class(), ErrorClass::NotFound, "{error}"),
    });
    assert!(seen.into_inner() && refused.into_inner(), "both sides of the swap were met");
}

#[test]
fn a_directory_swapped_for_a_symlink_out_is_never_walked() {
    let outside = Tree::of(&[("secret", b"needle"), (".gitignore", b"inner\n")]);
    let tree = Tree::of(&[("d/inner", b"needle")]);
    tree.symlink(outside.path(), "e");
    while_swapping(&tree, ["d", "e"], |workspace| {
        let reply = workspace.list(&ListRequest::default(), LARGE).unwrap();
        assert!(reply.entries.iter().all(|entry| !entry.path.contains("secret")));
        let found = workspace.search(&SearchRequest::pattern("needle"), LARGE, &|| false).unwrap();
        assert!(found.matches.iter().all(|found| found.path.ends_with("/inner")));
    });
}
