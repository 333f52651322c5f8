//! What calls and connections cost: allocations, system calls, memory, processor time, descriptors.
//!
//! Each side runs in a process of its own, and is counted there or from outside.

use std::alloc::System;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapwing::{ClientOptions, IpcClient, IpcServer, Spin, Transport, blocking};
use lapwing_testkit::methods::{ECHO, ECHO_ASYNC};
use lapwing_testkit::process::{self, RoleProcess};
use lapwing_testkit::stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use lapwing_testkit::{Resources, Victim, cpu_ticks, test_name};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BOTH: [Transport; 2] = [Transport::SharedMemory, Transport::Socket];
const SERVER: &str = "LAPWING_TEST_SERVER";

/// Allocations of this process since its start, also those that made an old one longer.
fn allocations() -> usize {
    let stats = ALLOCATOR.stats();
    stats.allocations + stats.reallocations
}

/// A sanitizer's runtime allocates and takes memory of its own. Says so when the test is skipped.
fn is_sanitized(test: &str) -> bool {
    let sanitizer = std::env::var("LAPWING_SANITIZER");
    if let Ok(name) = &sanitizer {
        eprintln!("SKIPPED: {test}: {name} allocates and takes memory of its own");
    }
    sanitizer.is_ok()
}

fn role_at(server: &Path, test: &str, role: &str) -> RoleProcess {
    RoleProcess::start(test, role, &[(SERVER, server.as_os_str())])
}

fn server_path() -> PathBuf {
    process::setting(SERVER).into()
}

fn words(line: &str) -> Vec<usize> {
    line.split(' ').map(|word| word.parse().expect("a number")).collect()
}

fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Takes orders of "client transport kind payload-bytes calls", makes the calls once to warm up and once
/// to count, each when told to, and tells its allocations.
fn play_counting_caller() {
    process::ready();
    let path = server_path();
    let runtime = current_thread();
    while let Some(order) = process::told() {
        let &[client, transport, kind, bytes, calls] = &*words(&order) else { panic!("{order}") };
        let options = ClientOptions { transport: BOTH[transport], ..ClientOptions::default() };
        let (kind, payload) = (kind as u16, vec![7; bytes]);
        if client == 0 {
            let client = blocking::IpcClient::connect_with(&path, &options).unwrap();
            for _ in 0..2 {
                let before = next_turn();
                for _ in 0..calls {
                    assert_eq!(client.call_raw(kind, &payload).unwrap().len(), bytes);
                }
                process::tell(&(allocations() - before).to_string());
            }
            // Its end is not to be counted: the connection stays until the server was asked.
            next_turn();
        } else {
            runtime.block_on(async {
                let client = IpcClient::connect_with(&path, options).await.unwrap();
                for _ in 0..2 {
                    let before = next_turn();
                    for _ in 0..calls {
                        assert_eq!(client.call_raw(kind, &payload).await.unwrap().len(), bytes);
                    }
                    process::tell(&(allocations() - before).to_string());
                }
                next_turn();
            });
        }
        process::tell("done");
    }
}

/// Waits until the parent says to go on; allocations so far.
fn next_turn() -> usize {
    let _ = process::told();
    allocations()
}

/// Allocations of client and server in the calls of `order`, after as many to warm up.
fn measure(victim: &mut Victim, caller: &mut RoleProcess, order: &str) -> (usize, usize) {
    // What being asked costs the server, to be taken off.
    victim.ask("mark");
    let asking: usize = victim.ask("since").parse().unwrap();
    caller.say(order);
    caller.ask("warm up");
    victim.ask("mark");
    let client = caller.ask("count").parse().unwrap();
    let server: usize = victim.ask("since").parse().unwrap();
    assert_eq!(caller.ask("end"), "done");
    victim.await_connections(2);
    (client, server - asking)
}

#[test]
fn unary_call_allocates_nothing_on_either_side_once_warm() {
    const CALLS: [usize; 2] = [10_000, 500];
    if process::role().as_deref() == Some("counting caller") {
        return play_counting_caller();
    }
    if is_sanitized(test_name!()) {
        return;
    }
    let marked = AtomicUsize::new(0);
    let answer = |command: &str| match command {
        "mark" => {
            marked.store(allocations(), Ordering::Relaxed);
            "marked".to_owned()
        }
        _ => format!("{:09}", allocations() - marked.load(Ordering::Relaxed)),
    };
    let started = Victim::start_with(test_name!(), |server| server, answer);
    let Some(mut victim) = started else { return };
    let mut caller = role_at(victim.path(), test_name!(), "counting caller");
    let mut wrong = Vec::new();
    for (client, name) in ["blocking", "tokio"].iter().enumerate() {
        for (transport, way) in BOTH.iter().enumerate() {
            for (kind, route) in [(ECHO, "inline"), (ECHO_ASYNC, "async, ready at once")] {
                for bytes in [64, 5 * 1024] {
                    let calls = CALLS[transport];
                    let order = format!("{client} {transport} {kind} {bytes} {calls}");
                    let counted = measure(&mut victim, &mut caller, &order);
                    let line = format!(
                        "{name} client, {way:?}, {route}, {bytes} B, {calls} calls: {} allocations \
                         in the client, {} in the server",
                        counted.0, counted.1
                    );
                    eprintln!("{line}");
                    // A socket's buffers are given back whenever a side sleeps, and made anew.
                    let allowed = if *way == Transport::Socket { 5 * calls } else { 0 };
                    if counted.0.max(counted.1) > allowed {
                        wrong.push(line);
                    }
                }
            }
        }
    }
    caller.finish();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    victim.assert_unharmed();
}

/// A server on one thread that never sleeps.
fn play_spinning_server() {
    let path = server_path();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        while process::told().is_some() {}
        let _ = stop.send(());
    });
    current_thread().block_on(async {
        let server = IpcServer::builder()
            .bind(&path)
            .unwrap()
            .spin(Spin::Always)
            .route_inline(ECHO, "echo", |_, request, reply| {
                reply.extend(request);
                Ok(())
            })
            .serve()
            .unwrap();
        process::ready();
        let _ = stopped.await;
        server.shutdown().await;
    });
}

/// Calls of one round: short, so that both sides keep their cores through some of the rounds.
const ROUND: usize = 500;
const ROUNDS: usize = 20;

fn play_spinning_caller() {
    process::ready();
    let options = ClientOptions { spin: Spin::Always, ..ClientOptions::default() };
    let client = blocking::IpcClient::connect_with(server_path(), &options).unwrap();
    // Told before and after each round; on a busy machine fewer rounds do.
    let begun = Instant::now();
    for round in 0..=ROUNDS {
        for _ in 0..ROUND {
            assert_eq!(client.call_raw(ECHO, &[1; 64]).unwrap().len(), 64);
        }
        process::tell(&format!("round {round}"));
        if begun.elapsed() > Duration::from_secs(5) {
            break;
        }
    }
    process::tell("done");
    let _ = process::told();
}

/// The times of the system calls in strace's log, in seconds, and of those that say a round's end.
fn system_calls(log: &Path) -> (Vec<f64>, Vec<f64>) {
    let text = std::fs::read_to_string(log).expect("strace wrote its log");
    let (mut all, mut marks) = (Vec::new(), Vec::new());
    for line in text.lines().filter(|line| !line.contains("resumed>")) {
        let time = line.split_whitespace().filter(|word| word.contains('.'));
        let Some(time) = time.filter_map(|word| word.parse::<f64>().ok()).next() else { continue };
        if line.contains("@lapwing round") {
            marks.push(time);
        } else {
            all.push(time);
        }
    }
    (all, marks)
}

#[test]
fn call_between_spinning_sides_makes_no_system_call() {
    match process::role().as_deref() {
        Some("spinning server") => return play_spinning_server(),
        Some("spinning caller") => return play_spinning_caller(),
        _ => {}
    }
    if is_sanitized(test_name!()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.sock");
    let probe = std::process::Command::new("strace")
        .args(["-f", "-o", "/dev/null", "true"])
        .stderr(std::process::Stdio::piped())
        .output();
    match probe {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr);
            return eprintln!("SKIPPED: {}: strace may not trace here: {why}", test_name!());
        }
        Err(error) => {
            return eprintln!("SKIPPED: {}: strace cannot be run: {error}", test_name!());
        }
    }
    let logs = ["server", "caller"].map(|role| folder.path().join(role));
    let start = |log: &Path, role: &str| {
        let wrapper = ["strace", "-f", "-ttt", "-o"].map(OsStr::new);
        let wrapper: Vec<&OsStr> = wrapper.into_iter().chain([log.as_os_str()]).collect();
        let settings = [(SERVER, path.as_os_str())];
        RoleProcess::start_under(&wrapper, test_name!(), role, &settings)
    };
    let server = start(&logs[0], "spinning server");
    let caller = start(&logs[1], "spinning caller");
    while caller.hear() != "done" {}
    caller.finish();
    server.finish();

    let (by_server, _) = system_calls(&logs[0]);
    let (by_client, marks) = system_calls(&logs[1]);
    assert!(marks.len() >= 2, "no round was finished in time");
    let within = |times: &[f64], round: &[f64]| {
        times.iter().filter(|time| (round[0]..round[1]).contains(time)).count()
    };
    let rounds: Vec<(usize, usize)> = marks
        .windows(2)
        .map(|round| (within(&by_client, round), within(&by_server, round)))
        .collect();
    eprintln!("system calls (client, server) in rounds of {ROUND} calls: {rounds:?}");
    // One side may lose its core for a while, and the other then looks at the socket: some rounds are
    // not disturbed. The server's runtime looks for other events every so many turns, not each call.
    let client = rounds.iter().map(|round| round.0).min().unwrap_or(usize::MAX);
    let server = rounds.iter().map(|round| round.1).min().unwrap_or(usize::MAX);
    assert_eq!(client, 0, "the client made system calls in every round");
    assert!(
        server <= ROUND / 25,
        "the server made {server} system calls at least in {ROUND} calls"
    );
}

/// Lets this process have as many descriptors as the system allows; whether that is enough.
fn raise_descriptors(wanted: u64) -> bool {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    maximum.is_none_or(|maximum| maximum >= wanted)
}

/// Takes orders of "transport connections", and holds as many idle ones.
fn play_idle_crowd() {
    process::ready();
    let path = server_path();
    let mut crowd = Vec::new();
    while let Some(order) = process::told() {
        let &[transport, count] = &*words(&order) else { panic!("{order}") };
        let options = ClientOptions { transport: BOTH[transport], ..ClientOptions::default() };
        if !raise_descriptors(4 * count as u64 + 100) {
            process::tell("too few descriptors");
            continue;
        }
        crowd.clear();
        crowd.extend(
            (0..count).map(|_| blocking::IpcClient::connect_with(&path, &options).unwrap()),
        );
        process::tell("connected");
    }
}

#[test]
fn thousand_idle_connections_take_little_memory_and_leave_nothing() {
    const CROWD: usize = 1000;
    if process::role().as_deref() == Some("idle crowd") {
        return play_idle_crowd();
    }
    if is_sanitized(test_name!()) {
        return;
    }
    let configure = |server| {
        // In the server's process: three descriptors for each connection.
        assert!(raise_descriptors(1) || process::role().is_none());
        server
    };
    let Some(mut victim) = Victim::start(test_name!(), configure) else { return };
    for (n, transport) in BOTH.iter().enumerate() {
        let mut crowd = role_at(victim.path(), test_name!(), "idle crowd");
        let before = victim.resources();
        let said = crowd.ask(&format!("{n} {CROWD}"));
        if said != "connected" {
            return eprintln!("SKIPPED: {}: {said} allowed for {CROWD} connections", test_name!());
        }
        victim.await_connections(2 + CROWD as u64);
        std::thread::sleep(Duration::from_millis(100));
        let during = victim.resources();
        let each = |now: u64, then: u64| now.saturating_sub(then) as f64 / CROWD as f64;
        let private = each(during.private_kib, before.private_kib);
        eprintln!(
            "a thousand idle connections, {transport:?}: {private:.1} KiB private, {:.1} KiB shared, \
             {} descriptors, {} segment mappings each",
            each(during.shared_kib, before.shared_kib),
            (during.descriptors - before.descriptors) / CROWD,
            (during.segment_mappings - before.segment_mappings) / CROWD,
        );
        assert!(private <= 24.0, "{transport:?}: {private} KiB of private memory each");
        victim.assert_serves_others();
        crowd.kill();
        victim.await_connections(2);
    }
    victim.assert_unharmed();
}

/// Connects, calls and drops as often as told, and tells what it holds before and after.
fn play_cycler() {
    process::ready();
    let path = server_path();
    let runtime = current_thread();
    let cycle = |transport: Transport| {
        let options = ClientOptions { transport, ..ClientOptions::default() };
        let client = blocking::IpcClient::connect_with(&path, &options).unwrap();
        assert_eq!(client.call_raw(ECHO, b"cycle").unwrap().bytes(), b"cycle");
        drop(client);
        runtime.block_on(async {
            let client = IpcClient::connect_with(&path, options).await.unwrap();
            assert_eq!(client.call_raw(ECHO, b"cycle").await.unwrap().bytes(), b"cycle");
            client.disconnect().await;
            drop(client);
            // The driver's task ends in its next turn.
            tokio::time::sleep(Duration::from_millis(1)).await;
        });
    };
    while let Some(order) = process::told() {
        for _ in 0..order.parse().unwrap() {
            BOTH.into_iter().for_each(cycle);
        }
        process::tell(&format!("{:?}", Resources::of(std::process::id()).counts()));
    }
}

#[test]
fn hundred_connect_use_drop_cycles_leak_no_descriptor_mapping_or_file() {
    if process::role().as_deref() == Some("cycler") {
        return play_cycler();
    }
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let mut cycler = role_at(victim.path(), test_name!(), "cycler");
    let files = || std::fs::read_dir(victim.path().parent().unwrap()).unwrap().count();
    let files_before = files();
    // Twice to warm up; then the client's own descriptors and mappings do not move.
    cycler.ask("2");
    let before = cycler.ask("2");
    let after = cycler.ask("100");
    assert_eq!(before, after, "descriptors, segments, mappings, threads of the client");
    assert_eq!(files(), files_before, "files beside the socket");
    cycler.finish();
    victim.assert_unharmed();
}

/// Ten async connections, busy first, then idle.
fn play_idler() {
    let path = server_path();
    let runtime = current_thread();
    let clients: Vec<_> = runtime.block_on(async {
        let mut clients = Vec::new();
        for n in 0..10 {
            let options = ClientOptions { transport: BOTH[n % 2], ..ClientOptions::default() };
            let client = IpcClient::connect_with(&path, options).await.unwrap();
            for _ in 0..200 {
                client.call_raw(ECHO, b"busy").await.unwrap();
            }
            clients.push(client);
        }
        clients
    });
    process::ready();
    // The runtime goes on: drivers that would spin are seen.
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        while process::told().is_some() {}
        let _ = stop.send(());
    });
    let _ = runtime.block_on(stopped);
    drop(clients);
}

#[test]
fn idle_connections_that_were_busy_use_no_processor_time() {
    if process::role().as_deref() == Some("idler") {
        return play_idler();
    }
    let Some(mut victim) = Victim::start(test_name!(), |server| server) else { return };
    let idler = role_at(victim.path(), test_name!(), "idler");
    let idle: Vec<_> = (0..10).map(|n| victim.client(BOTH[n % 2])).collect();
    for client in &idle {
        for _ in 0..200 {
            client.call_raw(ECHO, b"busy").unwrap();
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    let pids = [victim.pid(), idler.pid()];
    let before = pids.map(cpu_ticks);
    std::thread::sleep(Duration::from_secs(2));
    let used: Vec<u64> =
        pids.iter().zip(before).map(|(pid, then)| cpu_ticks(*pid) - then).collect();
    // Of 200, which is what a side that spins would use.
    assert_eq!(used, [0, 0], "ticks of the server and of an async client's process in 2 s");
    for client in &idle {
        assert_eq!(client.call_raw(ECHO, b"awake").unwrap().bytes(), b"awake");
    }
    drop(idle);
    idler.finish();
    victim.assert_unharmed();
}
