//! What a process holds, seen from outside.

use std::fs;

/// Descriptors, mappings, threads and memory of a process at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resources {
    /// Open file descriptors.
    pub descriptors: usize,
    /// Mappings of memory files: segments, its own and its peers', two each.
    pub segment_mappings: usize,
    /// All mappings.
    pub mappings: usize,
    /// Threads.
    pub threads: usize,
    /// Memory that this process alone holds, in KiB.
    pub private_kib: u64,
    /// Memory that others hold, too, in KiB.
    pub shared_kib: u64,
}

impl Resources {
    /// What the process `pid` holds now. With `LAPWING_SANITIZER` set, mappings and memory are 0.
    ///
    /// # Panics
    ///
    /// If there is no such process, or it may not be looked at.
    #[must_use]
    pub fn of(pid: u32) -> Resources {
        let file = |name: &str| {
            fs::read_to_string(format!("/proc/{pid}/{name}")).expect("the process can be looked at")
        };
        let entries = |name: &str| {
            let folder = fs::read_dir(format!("/proc/{pid}/{name}"));
            folder.expect("the process can be looked at").count()
        };
        let maps = file("maps");
        let rollup = file("smaps_rollup");
        let kib = |what: &str| -> u64 {
            let lines = rollup.lines().filter(|line| line.starts_with(what));
            lines
                .map(|line| line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()))
                .map(|number| number.expect("a number of KiB"))
                .sum()
        };
        // A sanitizer's runtime maps and keeps memory of its own as the program runs: not counted then.
        let own = usize::from(std::env::var_os("LAPWING_SANITIZER").is_none());
        let own_kib = |what: &str| own as u64 * kib(what);
        Resources {
            descriptors: entries("fd"),
            segment_mappings: maps.lines().filter(|line| line.contains("/memfd:")).count(),
            mappings: own * maps.lines().count(),
            threads: entries("task"),
            private_kib: own_kib("Private_Clean:") + own_kib("Private_Dirty:"),
            shared_kib: own_kib("Shared_Clean:") + own_kib("Shared_Dirty:"),
        }
    }

    /// What must be the same before and after: descriptors, segments, mappings and threads.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize, usize) {
        (self.descriptors, self.segment_mappings, self.mappings, self.threads)
    }
}

/// Processor time that the process has used, in the kernel's ticks of (mostly) 10 ms.
///
/// # Panics
///
/// If there is no such process.
#[must_use]
pub fn cpu_ticks(pid: u32) -> u64 {
    if std::env::var_os("LAPWING_SANITIZER").is_some() {
        return cpu_ticks_of_own_threads(pid);
    }
    ticks(&format!("/proc/{pid}/stat")).1
}

/// Leaves a sanitizer's own thread out. It is started before `main` and so has the program's name; the
/// program's threads have names of their own, but for the first.
fn cpu_ticks_of_own_threads(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process exists");
    let first = ticks(&format!("/proc/{pid}/stat"));
    let threads = tasks.map(|task| task.expect("a thread").path().join("stat"));
    let others = threads.filter(|stat| !stat.ends_with(format!("{pid}/stat")));
    let own = others
        .map(|stat| ticks(stat.to_str().expect("digits")))
        .filter(|(name, _)| *name != first.0);
    // The ticks of the process's own file are those of all threads: the first one's are in its task.
    ticks(&format!("/proc/{pid}/task/{pid}/stat")).1 + own.map(|(_, used)| used).sum::<u64>()
}

/// The name and the ticks in a stat file.
fn ticks(stat: &str) -> (String, u64) {
    let stat = fs::read_to_string(stat).expect("the process exists");
    // The name may hold anything: it ends at the last bracket. State is field 3.
    let (name, fields) = stat.rsplit_once(") ").expect("a stat line");
    let (_, name) = name.split_once('(').expect("a stat line");
    let field = |n: usize| -> u64 {
        fields.split(' ').nth(n - 3).and_then(|text| text.parse().ok()).expect("a number")
    };
    (name.to_owned(), field(14) + field(15))
}
