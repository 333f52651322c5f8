//! What `lapwing serve` holds while one client is connected and silent.

mod common;

use std::fs;

use common::Place;
use lapwing::blocking::IpcClient;

/// The most memory of its own that the idle server may have. A debug build was seen with 708 KiB.
const OWN_KIB: u64 = 2048;

/// The number in the line of this name in `/proc/PID/status`: KiB for memory.
fn status(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect(name)
}

#[test]
fn idle_server_with_one_connection_has_little_memory_and_one_thread() {
    let place = Place::of(&[("a.txt", "one\n")]);
    let server = place.serve();
    let client = IpcClient::connect(place.socket()).unwrap();
    assert!(client.agreement().shared_memory);
    client.ping().unwrap();

    let pid = server.child.id();
    let (own, resident) = (status(pid, "RssAnon"), status(pid, "VmRSS"));
    eprintln!(
        "lapwing serve with one idle connection: {own} KiB of its own, {resident} KiB resident"
    );
    // Pages of the program and of the C library are not counted: how many of those are mapped is up to the
    // linker and the kernel, and a debug build has many more. docs/benchmarks.md measures them.
    assert!(own <= OWN_KIB, "{own} KiB");
    assert_eq!(status(pid, "Threads"), 1);

    client.ping().unwrap();
}
