//! How `lapwing serve` ends.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;

use common::{Place, SLOW_PATTERN, finish, signal};
use rustix::process::Signal;

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn idle_server_ends_at_either_signal_and_removes_socket_and_lock() {
    let place = Place::of(&[]);
    for stop in [Signal::TERM, Signal::INT] {
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
