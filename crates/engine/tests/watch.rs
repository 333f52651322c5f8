//! Behaviour of `fs.watch`, through a real server.
//!
//! One test at a time: they count this process's threads and descriptors.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Served, Tree, refusal};
use lapwing::{CallError, Code, ItemStream, Json};
use lapwing_engine::{
    Change, ChangeKind, FS_WATCH, WATCH_CHANGES_AHEAD, WATCHES_MAX, WatchRequest, WriteRequest,
};
use tokio::sync::Mutex;

static ALONE: Mutex<()> = Mutex::const_new(());

const PATIENCE: Duration = Duration::from_secs(30);

/// A watch of a tree that is served.
struct Watching {
    served: Served,
    changes: ItemStream<Change, Json>,
}

impl Watching {
    async fn of(files: &[(&str, &[u8])], request: &WatchRequest) -> Watching {
        let served = Served::of(files).await;
        let changes = begin(&served, request).await.unwrap();
        Watching { served, changes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.served.tree.path().join(name)
    }

    async fn next(&mut self) -> Result<Change, CallError> {
        let next = tokio::time::timeout(PATIENCE, self.changes.next()).await;
        next.expect("no change is told").expect("the watch ended without a status")
    }

    /// What is told up to the creation of a file that is made now.
    async fn so_far(&mut self) -> Vec<String> {
        fs::write(self.path("zz-mark"), "").unwrap();
        let mut told = Vec::new();
        loop {
            let text = show(&self.next().await.unwrap());
            if text == "created zz-mark" {
                fs::remove_file(self.path("zz-mark")).unwrap();
                while show(&self.next().await.unwrap()) != "removed zz-mark" {}
                return told;
            }
            // One save may be told as several changes: a file that is made and written, as both.
            let written = text.strip_prefix("modified ");
            let follows_own = told.last().is_some_and(|last: &String| {
                *last == text || written.is_some_and(|w| last.strip_prefix("created ") == Some(w))
            });
            if !follows_own {
                told.push(text);
            }
        }
    }

    /// Waits for a `rescan`, and until nothing more is told.
    async fn rescan(&mut self) {
        while self.next().await.unwrap().change != ChangeKind::Rescan {}
        let quiet = Duration::from_millis(300);
        while tokio::time::timeout(quiet, self.changes.next()).await.is_ok() {}
    }
}

async fn begin(
    served: &Served,
    request: &WatchRequest,
) -> Result<ItemStream<Change, Json>, CallError> {
    let mut changes = served.client.stream(FS_WATCH, request).await?;
    let first = tokio::time::timeout(PATIENCE, changes.next()).await.expect("no first item");
    assert_eq!(first.expect("a first item")?.change, ChangeKind::Watching);
    Ok(changes)
}

fn show(change: &Change) -> String {
    let kind = format!("{:?}", change.change).to_lowercase();
    match (&change.from, &change.path) {
        (Some(from), Some(path)) => format!("{kind} {from} {path}"),
        (_, Some(path)) => format!("{kind} {path}"),
        _ => kind,
    }
}

#[tokio::test]
async fn watch_tells_what_is_made_changed_renamed_and_removed() {
    let _alone = ALONE.lock().await;
    let files: &[(&str, &[u8])] = &[("a.txt", b"1"), ("d/e/f", b"1"), ("d/g", b"1")];
    let mut watching = Watching::of(files, &WatchRequest::default()).await;
    fs::write(watching.path("b.txt"), "1").unwrap();
    assert_eq!(watching.so_far().await, ["created b.txt"]);
    fs::write(watching.path("d/e/f"), "22").unwrap();
    assert_eq!(watching.so_far().await, ["modified d/e/f"]);
    fs::rename(watching.path("a.txt"), watching.path("d/a.txt")).unwrap();
    assert_eq!(watching.so_far().await, ["renamed a.txt d/a.txt"]);
    fs::remove_file(watching.path("d/g")).unwrap();
    assert_eq!(watching.so_far().await, ["removed d/g"]);
    // A directory takes what is below it along, and is watched under its new name.
    fs::rename(watching.path("d"), watching.path("moved")).unwrap();
    assert_eq!(watching.so_far().await, ["renamed d moved"]);
    fs::write(watching.path("moved/e/f"), "333").unwrap();
    assert_eq!(watching.so_far().await, ["modified moved/e/f"]);
    fs::create_dir(watching.path("moved/e/new")).unwrap();
    fs::write(watching.path("moved/e/new/h"), "1").unwrap();
    let told = watching.so_far().await;
    assert_eq!(told.first().map(String::as_str), Some("created moved/e/new"), "{told:?}");
    assert!(told.contains(&"created moved/e/new/h".to_owned()), "{told:?}");
    fs::remove_dir_all(watching.path("moved")).unwrap();
    let told = watching.so_far().await;
    for removed in ["moved/e/new/h", "moved/e/new", "moved/e/f", "moved/e", "moved"] {
        assert!(told.contains(&format!("removed {removed}")), "{removed}: {told:?}");
    }
}

#[tokio::test]
async fn directories_that_return_under_a_name_that_was_told_are_watched_as_what_they_are() {
    let _alone = ALONE.lock().await;
    let files: &[(&str, &[u8])] = &[("d/x", b""), ("e/y/z", b"")];
    let mut watching = Watching::of(files, &WatchRequest::default()).await;
    fs::remove_dir_all(watching.path("d")).unwrap();
    fs::create_dir(watching.path("d")).unwrap();
    let told = watching.so_far().await;
    assert_eq!(told, ["removed d/x", "removed d", "created d"]);
    fs::write(watching.path("d/again"), "").unwrap();
    assert_eq!(watching.so_far().await, ["created d/again"]);

    // Two that take each other's name.
    for (from, to) in [("d", "aside"), ("e", "d"), ("aside", "e")] {
        fs::rename(watching.path(from), watching.path(to)).unwrap();
    }
    let told = watching.so_far().await;
    assert_eq!(told, ["renamed d aside", "renamed e d", "renamed aside e"]);
    fs::remove_file(watching.path("d/y/z")).unwrap();
    fs::remove_file(watching.path("e/again")).unwrap();
    assert_eq!(watching.so_far().await, ["removed d/y/z", "removed e/again"]);
}

/// The names that a reader knows of, by what it was told.
#[derive(Debug, Default)]
struct Known(BTreeSet<PathBuf>);

impl Known {
    /// Takes in what is told until it is the tree as it is. Nothing of the time before comes after that.
    async fn catch_up(&mut self, watching: &mut Watching, mark: &str) {
        fs::write(watching.path(mark), "").unwrap();
        let tree = listed(watching);
        let mut is_marked = false;
        while !is_marked || self.0 != tree {
            let next = tokio::time::timeout(PATIENCE, watching.changes.next()).await;
            let Ok(next) = next else { panic!("known is {:#?}\nand there is {tree:#?}", self.0) };
            let change = next.expect("the watch ended without a status").unwrap();
            if change.change == ChangeKind::Rescan {
                // What happened before the listing may be told behind it.
                let quiet = Duration::from_millis(100);
                while tokio::time::timeout(quiet, watching.changes.next()).await.is_ok() {}
                self.0 = tree;
                return;
            }
            self.take_in(change);
            is_marked |= self.0.contains(Path::new(mark));
        }
    }

    fn take_in(&mut self, change: Change) {
        match (change.change, change.path) {
            (ChangeKind::Created, Some(path)) => drop(self.0.insert(path.into())),
            (ChangeKind::Removed, Some(path)) => drop(self.take(&path)),
            (ChangeKind::Renamed, Some(path)) => {
                let moved = self.take(&change.from.unwrap());
                self.take(&path);
                self.0.extend(moved.iter().map(|rest| Path::new(&path).join(rest)));
                self.0.insert(path.into());
            }
            _ => {}
        }
    }

    /// Forgets a name and all below it: how they go on behind it.
    fn take(&mut self, path: &str) -> Vec<PathBuf> {
        let all = std::mem::take(&mut self.0);
        let (gone, left) = all.into_iter().partition(|known| known.starts_with(path));
        self.0 = left;
        let gone: BTreeSet<PathBuf> = gone;
        let rest = |gone: &PathBuf| gone.strip_prefix(path).unwrap().to_owned();
        gone.iter().map(rest).filter(|rest| !rest.as_os_str().is_empty()).collect()
    }
}

fn listed(watching: &Watching) -> BTreeSet<PathBuf> {
    common::names_below(watching.served.tree.path()).into_iter().collect()
}

#[tokio::test]
async fn directory_that_is_renamed_as_soon_as_it_is_made_is_told_with_all_below_it() {
    let _alone = ALONE.lock().await;
    let mut watching = Watching::of(&[], &WatchRequest::default()).await;
    let mut known = Known::default();
    for round in 0..200 {
        let path = |name: &str| watching.path(&format!("{name}-{round}"));
        let [p, y, z] = ["p", "y", "z"].map(path);
        fs::create_dir_all(p.join("q/r")).unwrap();
        fs::write(p.join("q/r/f"), "").unwrap();
        match round % 5 {
            0 => {}
            1 => fs::rename(p.join("q"), p.join("w")).unwrap(),
            // To where it is told already, and into what is itself not told yet.
            2 => {
                fs::create_dir_all(y.join("a")).unwrap();
                fs::rename(p.join("q"), y.join("a/q")).unwrap();
            }
            3 => {
                fs::rename(&p, &y).unwrap();
                fs::create_dir(&p).unwrap();
                fs::rename(&y, p.join("q")).unwrap();
            }
            _ => {
                fs::rename(&p, &y).unwrap();
                fs::create_dir(&p).unwrap();
                fs::remove_file(y.join("q/r/f")).unwrap();
                fs::rename(y.join("q"), p.join("q")).unwrap();
            }
        }
        fs::rename(&p, &z).unwrap();
        fs::write(z.join("last"), "").unwrap();
        if round % 3 > 0 {
            known.catch_up(&mut watching, &format!("mark-{round}")).await;
        }
    }
}

#[tokio::test]
async fn names_that_are_told_are_those_of_the_tree_whatever_is_moved_and_removed() {
    let _alone = ALONE.lock().await;
    let mut watching = Watching::of(&[], &WatchRequest::default()).await;
    let mut known = Known::default();
    let random = common::noise(100_000);
    let mut random = random.iter().map(|byte| usize::from(*byte));
    for round in 0..150 {
        for _ in 0..20 {
            let mut path = || {
                let names = (0..=random.next().unwrap() % 3).map(|_| random.next().unwrap() % 4);
                let names: Vec<String> = names.map(|name| name.to_string()).collect();
                watching.path(&names.join("/"))
            };
            let (path, other) = (path(), path());
            // Many of these fail, because something is there or is not.
            let _ = match random.next().unwrap() % 8 {
                0 | 1 => fs::create_dir_all(&path),
                2 => fs::write(&path, "1"),
                3 => fs::remove_file(&path),
                4 => fs::remove_dir_all(&path),
                _ => fs::rename(&path, &other),
            };
        }
        known.catch_up(&mut watching, &format!("mark-{round}")).await;
    }
}

#[tokio::test]
async fn watch_tells_what_a_listing_would_show() {
    let _alone = ALONE.lock().await;
    let outside = Tree::of(&[("x", b"1")]);
    let files: &[(&str, &[u8])] = &[
        (".gitignore", b"target/\n*.log\n"),
        ("target/t", b""),
        (".git/HEAD", b""),
        (".hidden/h", b""),
        ("s/f", b"1"),
    ];
    let mut watching = Watching::of(files, &WatchRequest::default()).await;
    watching.served.tree.symlink(outside.path(), "link");
    assert_eq!(watching.so_far().await, ["created link"]);
    for ignored in ["target/t", "a.log", ".git/HEAD", ".dot", ".hidden/h", "link/x"] {
        fs::write(watching.path(ignored), "2").unwrap();
    }
    fs::create_dir_all(watching.path("s/target/deep")).unwrap();
    fs::write(watching.path("s/target/deep/f"), "2").unwrap();
    assert_eq!(watching.so_far().await, Vec::<String>::new());
    // A save by renaming from a hidden name; and out of sight.
    fs::write(watching.path("s/.f.tmp"), "2").unwrap();
    fs::rename(watching.path("s/.f.tmp"), watching.path("s/f")).unwrap();
    assert_eq!(watching.so_far().await, ["created s/f"]);
    fs::rename(watching.path("s/f"), watching.path("s/f.log")).unwrap();
    assert_eq!(watching.so_far().await, ["removed s/f"]);
    // Other rules, other names.
    fs::write(watching.path(".gitignore"), "target/\n").unwrap();
    watching.rescan().await;
    fs::write(watching.path("a.log"), "3").unwrap();
    assert_eq!(watching.so_far().await, ["modified a.log"]);
}

#[tokio::test]
async fn watch_of_one_directory_and_of_hidden_names_tells_as_asked() {
    let _alone = ALONE.lock().await;
    let request = WatchRequest { path: "d".into(), recursive: false, hidden: true };
    let mut watching = Watching::of(&[("d/e/f", b"1"), ("g", b"1")], &request).await;
    fs::write(watching.path("d/e/f"), "2").unwrap();
    fs::write(watching.path("g"), "2").unwrap();
    fs::create_dir(watching.path("d/h")).unwrap();
    fs::write(watching.path("d/h/i"), "2").unwrap();
    fs::write(watching.path("d/.dot"), "2").unwrap();
    let mut told = Vec::new();
    while told.last().is_none_or(|last| last != "created d/.dot") {
        told.push(show(&watching.next().await.unwrap()));
    }
    assert_eq!(told, ["created d/h", "created d/.dot"]);
}

#[tokio::test]
async fn writes_of_the_engine_are_told_as_one_change() {
    let _alone = ALONE.lock().await;
    let mut watching = Watching::of(&[("f", b"1")], &WatchRequest::default()).await;
    let workspace = watching.served.tree.workspace.clone().writable();
    workspace.write(&WriteRequest::path("f"), b"2").unwrap();
    assert_eq!(watching.so_far().await, ["created f"]);
    workspace.write(&WriteRequest::path("g"), b"2").unwrap();
    assert_eq!(watching.so_far().await, ["created g"]);
}

#[tokio::test]
async fn watch_of_what_is_removed_or_moved_ends_with_a_status() {
    let _alone = ALONE.lock().await;
    for step in ["remove", "move", "move above"] {
        let request = WatchRequest { path: "a/d".into(), ..WatchRequest::default() };
        let mut watching = Watching::of(&[("a/d/f", b"")], &request).await;
        match step {
            "remove" => fs::remove_dir_all(watching.path("a/d")).unwrap(),
            "move" => fs::rename(watching.path("a/d"), watching.path("a/e")).unwrap(),
            _ => {
                fs::rename(watching.path("a"), watching.path("b")).unwrap();
                fs::write(watching.path("b/d/f"), "2").unwrap();
            }
        }
        assert_ended(&mut watching, "\"a/d\" was removed or moved").await;
    }
    let mut watching = Watching::of(&[("f", b"")], &WatchRequest::default()).await;
    fs::remove_dir_all(watching.served.tree.path()).unwrap();
    assert_ended(&mut watching, "the served directory was removed").await;
}

async fn assert_ended(watching: &mut Watching, part: &str) {
    loop {
        match watching.next().await {
            Ok(change) => assert_eq!(change.change, ChangeKind::Removed, "{change:?}"),
            Err(error) => {
                let (code, sentence) = refusal::<()>(Err(error));
                assert_eq!(code, Code::NotFound);
                assert!(sentence.contains(part), "{sentence}");
                return;
            }
        }
    }
}

#[tokio::test]
async fn watch_of_what_is_no_directory_inside_is_refused() {
    let _alone = ALONE.lock().await;
    let served = Served::of(&[("f", b"")]).await;
    served.tree.symlink("/tmp", "out");
    for (path, code) in [
        ("f", Code::FailedPrecondition),
        ("missing", Code::NotFound),
        ("out", Code::PermissionDenied),
        ("..", Code::PermissionDenied),
    ] {
        let request = WatchRequest { path: path.into(), ..WatchRequest::default() };
        let refused = refusal(begin(&served, &request).await.map(|_| ()));
        assert_eq!(refused.0, code, "{path}: {}", refused.1);
    }
    assert_eq!(served.tree.workspace.stats().watches, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_is_never_on_a_directory_that_is_swapped_for_a_symlink_out() {
    let _alone = ALONE.lock().await;
    let outside = Tree::of(&[("secret/deep/f", b"")]);
    let mut watching = Watching::of(&[("d/secret/inner", b"")], &WatchRequest::default()).await;
    watching.served.tree.symlink(outside.path(), "e");
    let [shown, other, spare] = ["d", "e", "spare"].map(|name| watching.path(name));
    let end = std::time::Instant::now() + Duration::from_millis(1500);
    let swapping = std::thread::spawn(move || {
        let mut number = 0;
        while std::time::Instant::now() < end {
            fs::rename(&shown, &spare).unwrap();
            fs::rename(&other, &shown).unwrap();
            fs::rename(&spare, &other).unwrap();
            for place in ["", "secret", "secret/deep"] {
                fs::write(outside.path().join(place).join(format!("out-{number}")), "").unwrap();
            }
            number += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        number
    });
    let mut renamed = 0;
    while !swapping.is_finished() {
        let Ok(change) = tokio::time::timeout(Duration::from_millis(50), watching.next()).await
        else {
            continue;
        };
        let change = change.unwrap();
        renamed += u32::from(change.change == ChangeKind::Renamed);
        assert!(!change.path.unwrap_or_default().contains("out-"), "told of what is outside");
    }
    assert!(swapping.join().unwrap() > 20 && renamed > 20);
}

#[tokio::test]
async fn slow_reader_is_told_to_list_again_and_nothing_grows() {
    let _alone = ALONE.lock().await;
    let mut watching = Watching::of(&[("d/f", b"")], &WatchRequest::default()).await;
    // Far more than the queue, the stream's window and a batch hold together.
    for n in 0..2 * WATCH_CHANGES_AHEAD {
        fs::write(watching.path(&format!("d/{n}")), "").unwrap();
    }
    let mut told = 0;
    while watching.next().await.unwrap().change != ChangeKind::Rescan {
        told += 1;
    }
    assert!(told < 2 * WATCH_CHANGES_AHEAD, "{told}");
    while tokio::time::timeout(Duration::from_millis(300), watching.changes.next()).await.is_ok() {}
    // What happens from then on is told again, also where something new was made meanwhile.
    fs::create_dir(watching.path("d/new")).unwrap();
    assert_eq!(watching.so_far().await, ["created d/new"]);
    fs::write(watching.path("d/new/f"), "").unwrap();
    assert_eq!(watching.so_far().await, ["created d/new/f"]);
}

#[tokio::test]
async fn cancelled_watch_leaves_no_watch_descriptor_or_thread() {
    let _alone = ALONE.lock().await;
    let served = Served::of(&[("a/b/c", b""), ("d/e", b"")]).await;
    settle(0).await;
    for _ in 0..5 {
        let first = begin(&served, &WatchRequest::default()).await.unwrap();
        let second = begin(&served, &WatchRequest::default()).await.unwrap();
        settle(2).await;
        assert_eq!(inotify_watches(), 2 * 4, "the root and three directories, twice");
        assert_eq!(served.tree.workspace.stats().watches, 2);
        drop(first);
        settle(1).await;
        assert_eq!(inotify_watches(), 4);
        drop(second);
        settle(0).await;
        assert_eq!(served.tree.workspace.stats().watches, 0);
    }
    // The reader's end is the connection's, too.
    let watch = begin(&served, &WatchRequest::default()).await.unwrap();
    settle(1).await;
    served.client.disconnect().await;
    settle(0).await;
    drop(watch);
}

#[tokio::test]
async fn server_that_stops_ends_its_watches_first() {
    let _alone = ALONE.lock().await;
    let served = Served::of(&[("f", b"")]).await;
    let mut watch = begin(&served, &WatchRequest::default()).await.unwrap();
    served.tree.workspace.end_watches();
    let (code, _) = refusal(watch.next().await.unwrap());
    assert_eq!(code, Code::Unavailable);
    let again = refusal(begin(&served, &WatchRequest::default()).await.map(|_| ()));
    assert_eq!(again.0, Code::Unavailable);
    assert!(served.server.shutdown().await, "nothing had to be cut");
    settle(0).await;
}

#[tokio::test]
async fn one_watch_more_than_may_be_is_refused() {
    let _alone = ALONE.lock().await;
    let served = Served::of(&[("f", b"")]).await;
    let mut watches = Vec::new();
    for _ in 0..WATCHES_MAX {
        watches.push(begin(&served, &WatchRequest::default()).await.unwrap());
    }
    let refused = refusal(begin(&served, &WatchRequest::default()).await.map(|_| ()));
    assert_eq!(refused.0, Code::ResourceExhausted, "{}", refused.1);
    watches.pop();
    settle(watches.len()).await;
    watches.push(begin(&served, &WatchRequest::default()).await.unwrap());
    drop(watches);
    settle(0).await;
}

/// Waits until this process has so many inotify descriptors, and as many threads that read them.
async fn settle(watches: usize) {
    let begun = std::time::Instant::now();
    while (inotify_descriptors(), inotify_threads()) != (watches, watches) {
        let found = (inotify_descriptors(), inotify_threads());
        assert!(begun.elapsed() < PATIENCE, "{found:?} descriptors and threads, not {watches}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn inotify_descriptors() -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter(|target| target.to_string_lossy().contains("inotify"))
        .count()
}

/// Watches in the kernel, of all inotify descriptors of this process.
fn inotify_watches() -> usize {
    let open = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    open.filter_map(|fd| fs::read_to_string(fd.path()).ok())
        .map(|info| info.lines().filter(|line| line.starts_with("inotify ")).count())
        .sum()
}

fn inotify_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .filter(|name| name.starts_with("notify-rs"))
        .count()
}
