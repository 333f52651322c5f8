//! A search that is cancelled stops its work. The time is taken at the server's side: from the moment the
//! client drops the stream to the moment its thread has left the search.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Served, Tree};
use lapwing_engine::{FS_SEARCH, FS_SEARCH_PAGE, SearchRequest, WorkspaceStats};

/// What the work should take to stop. The tests print what it took, and fail far above, because the
/// machine may be busy with other things.
const GOAL: Duration = Duration::from_millis(10);
const BOUND: Duration = Duration::from_millis(500);

/// How often each search is cancelled.
const ROUNDS: usize = 20;

impl Served {
    fn stats(&self) -> WorkspaceStats {
        self.tree.workspace.stats()
    }

    async fn until(&self, what: &str, mut is_so: impl FnMut(WorkspaceStats) -> bool) {
        let begun = Instant::now();
        while !is_so(self.stats()) {
            assert!(begun.elapsed() < Duration::from_secs(30), "never: {what}: {:?}", self.stats());
            // Asleep: who looks all the time takes a processor from those who are to stop.
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    }

    /// Cancels searches in their middle, each a little further on, and shows that they stop.
    async fn cancel(
        &self,
        what: &str,
        request: &SearchRequest,
        progress: fn(WorkspaceStats) -> u64,
    ) {
        let mut times = Vec::new();
        for round in 0..ROUNDS {
            let before = progress(self.stats());
            let matches = self.client.stream(FS_SEARCH, request).await.unwrap();
            let is_far = |now| progress(now) - before >= (round as u64).min(progress(now));
            self.until("the search is at work", |now| now.working == 1 && is_far(now)).await;
            let begun = Instant::now();
            drop(matches);
            self.until("the search has stopped", |now| now.working == 0).await;
            times.push(begun.elapsed());

            // Nothing goes on behind the counter's back.
            let stopped = self.stats();
            tokio::time::sleep(GOAL).await;
            assert_eq!(self.stats(), stopped, "the search goes on");
        }
        report(what, times);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_search_of_a_large_tree_stops() {
    let tree = Tree::of(&[]);
    let text = "the quick brown fox jumps over the lazy dog\n".repeat(20);
    for directory in 0..60 {
        let path = tree.path().join(format!("d{directory}"));
        fs::create_dir(&path).unwrap();
        for file in 0..200 {
            fs::write(path.join(format!("f{file}.txt")), &text).unwrap();
        }
    }
    let served = Served::tree(tree).await;
    let request = SearchRequest::pattern("nowhere to be found");
    served.cancel("a search of 12000 files", &request, |now| now.names_visited).await;

    // The search was cut: it had not gone through the tree.
    let visited = served.stats().names_visited;
    assert!(visited < 12_060 * ROUNDS as u64, "{visited} names are all of them each time");
    let whole =
        served.client.call_raw(FS_SEARCH_PAGE.0, br#"{"pattern": "nowhere to be found"}"#).await;
    assert!(whole.is_ok(), "and a search that nobody cancels goes through it: {whole:?}");
    assert_eq!(served.stats().names_visited - visited, 12_060);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_search_within_a_huge_file_with_a_slow_pattern_stops() {
    // Nothing to jump to, and too many states to keep: some hundred nanoseconds for each byte.
    let mut request = SearchRequest::pattern(r"(a|b)*[abc]{3}(b|a){9}c");
    let line = format!("{}\n", "abaab".repeat(40));
    let served = Served::of(&[("huge.txt", line.repeat(500_000).as_bytes())]).await;
    served.cancel("a slow search within 100 MB", &request, |now| now.searched_bytes).await;
    request.pattern = r"[a-b]{1,60}(a[ab]{40}b|b[ab]{45}a){1,3}[ab]{70}c".to_owned();
    served.cancel("a very slow search within 100 MB", &request, |now| now.searched_bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_search_in_a_directory_of_very_many_names_stops() {
    let tree = Tree::of(&[]);
    for file in 0..30_000 {
        fs::write(tree.path().join(format!("f{file}")), "").unwrap();
    }
    let served = Served::tree(tree).await;
    let request = SearchRequest::pattern("x");
    served.cancel("a search of one directory", &request, |_| 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_page_of_a_search_stops_too() {
    let line = format!("{}\n", "abaab".repeat(40));
    let served = Served::of(&[("huge.txt", line.repeat(200_000).as_bytes())]).await;
    let request = br#"{"pattern": "(a|b)*[abc]{3}(b|a){9}c"}"#;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut call = Box::pin(served.client.call_raw(FS_SEARCH_PAGE.0, request));
        let waited = tokio::time::timeout(Duration::from_millis(20), &mut call).await;
        assert!(waited.is_err(), "the search is over before it was cancelled");
        served.until("the search is at work", |now| now.working == 1).await;
        let begun = Instant::now();
        drop(call);
        served.until("the search has stopped", |now| now.working == 0).await;
        times.push(begun.elapsed());
    }
    report("a page of a search", times);
}

/// Prints how long stopping took, and fails far above the goal.
fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let (median, worst) = (times[ROUNDS / 2], times[ROUNDS - 1]);
    eprintln!("cancel of {what}: stopped after {median:?} (median), {worst:?} (worst of {ROUNDS})");
    assert!(worst < BOUND, "{what}: {worst:?}; the goal is {GOAL:?}");
}
