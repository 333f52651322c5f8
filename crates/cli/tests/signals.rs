//! How `lapwing serve` ends at a signal, and what `demo` and `bench` leave behind then.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Place, SLOW_PATTERN, Server, eventually, finish, signal, wait};
use rustix::process::{Pid, Signal, kill_process_group};

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn idle_server_ends_at_each_signal_and_removes_socket_and_lock() {
    let place = Place::of(&[]);
    for stop in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut server = place.serve();
        assert!(place.socket().exists() && place.lock().exists());
        place.lapwing(&["ping", "-c", "1"]).succeeds();
        signal(&server.child, stop);
        let (code, said) = server.end();
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(is_empty(place.sockets.path()));
    }
}

#[test]
fn running_call_is_answered_before_the_server_ends() {
    let place = Place::of(&[]);
    place.fill(2);
    let mut server = place.serve();
    let call = place.client(&["call", "fs.search.page", SLOW_PATTERN]).spawn().unwrap();
    server.until_busy();
    signal(&server.child, Signal::TERM);
    assert!(finish(call).succeeds().contains("\"files_searched\":2"));
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(is_empty(place.sockets.path()));
}

#[test]
fn open_watch_does_not_keep_the_server_from_ending() {
    let place = Place::of(&[]);
    let mut server = place.serve();
    let mut watch = place.client(&["call", "fs.watch"]).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(watch.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first, "{\"change\":\"watching\"}\n");
    signal(&server.child, Signal::TERM);
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
    finish(watch).fails(5, "Unavailable");
    assert!(is_empty(place.sockets.path()));
}

#[test]
fn second_signal_ends_the_server_at_once() {
    let place = Place::of(&[]);
    place.fill(300);
    let mut server = place.serve();
    let call = place.client(&["call", "fs.search.page", SLOW_PATTERN]).spawn().unwrap();
    server.until_busy();
    signal(&server.child, Signal::TERM);
    let line = server.line();
    assert!(line.contains("another signal ends at once"), "{line}");
    signal(&server.child, Signal::TERM);
    let (code, said) = server.end();
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("stopped before running calls had finished"), "{said}");
    finish(call).fails(6, "the server may have executed the call");
    assert!(is_empty(place.sockets.path()));
}

#[test]
fn server_that_was_started_to_ignore_hang_ups_goes_on() {
    let place = Place::of(&[]);
    let mut command = Command::new("nohup");
    let server = place.server_command();
    command.arg(server.get_program()).args(server.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut server = Server::start(&mut command);
    signal(&server.child, Signal::HUP);
    place.lapwing(&["ping", "-c", "1"]).succeeds();
    signal(&server.child, Signal::TERM);
    assert_eq!(server.end().0, Some(0));
}

/// What a command leaves behind in the folder for temporary files when every process of it gets a signal.
fn leaves_nothing(args: &[&str], stop: Signal) {
    let place = Place::of(&[("a", "main\n")]);
    let mut command = common::command(args);
    command.current_dir(place.root.path()).env("TMPDIR", place.sockets.path());
    let mut child = command.process_group(0).spawn().unwrap();
    eventually("a folder for a socket", || !is_empty(place.sockets.path()));
    kill_process_group(Pid::from_child(&child), stop).unwrap();
    assert_eq!(wait(&mut child), None, "{args:?} was not killed by {stop:?}");
    eventually("an empty folder", || is_empty(place.sockets.path()));
    // A child has no one to say anything to.
    assert_eq!(finish(child).stderr, "", "{args:?}, {stop:?}");
}

const BENCH: &[&str] = &["bench", "oneway", "--unpinned", "--spin", "adaptive", "--rounds", "1000"];

#[test]
fn demo_and_bench_leave_nothing_behind_at_any_signal() {
    for stop in [Signal::TERM, Signal::INT, Signal::HUP] {
        leaves_nothing(&["demo"], stop);
        leaves_nothing(BENCH, stop);
    }
}

#[test]
fn bench_that_is_killed_leaves_nothing_behind_and_its_child_says_nothing() {
    let place = Place::of(&[]);
    for _ in 0..3 {
        let mut command = common::command(BENCH);
        let mut child = command.env("TMPDIR", place.sockets.path()).spawn().unwrap();
        eventually("a folder for a socket", || !is_empty(place.sockets.path()));
        child.kill().unwrap();
        eventually("an empty folder", || is_empty(place.sockets.path()));
        assert_eq!(finish(child).stderr, "");
    }
}
