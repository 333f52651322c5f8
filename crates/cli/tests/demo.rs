//! `lapwing demo`, as a new user runs it.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};

use common::{Place, command, eventually, finish, run};

/// The demo on this place, with its sockets' folder as the one for temporary files.
fn demo(place: &Place) -> std::process::Command {
    let mut command = command(&["demo"]);
    command.current_dir(place.root.path()).env("TMPDIR", place.sockets.path());
    command
}

fn left_behind(place: &Place) -> Vec<std::ffi::OsString> {
    fs::read_dir(place.sockets.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn demo_works_on_the_current_directory_and_prints_the_table() {
    let large = "fn main() { /* ü */ }\n".repeat(10_000);
    let place = Place::of(&[("main.rs", &large), ("empty", "")]);
    fs::create_dir(place.root.path().join("folder")).unwrap();
    let output = run(&mut demo(&place)).succeeds();
    for part in [
        "fs.list.page: 2 files in 1 directory, 230 000 bytes; 1 reply",
        "fs.read main.rs\n",
        "230 000 bytes, CRC-32 ",
        ", the same",
        r"fs.search.page \bmain\b: the first 200 lines in 1 file of ",
        "main.rs:1: fn main() { /* ü */ }",
        "fs.read ../secret: PermissionDenied",
        "64-byte round trip  ",
        "p50",
        "p99",
        "over floor",
        "the floor  ",
        "Lapwing: blocking, adaptive, crc32c",
        "bare Unix socket",
        "left nothing behind",
    ] {
        assert!(output.contains(part), "no {part:?} in\n{output}");
    }
    assert!(!output.contains('\u{1b}'), "colours in a pipe\n{output}");
    assert!(output.lines().all(|line| line.chars().count() <= 100), "{output}");
    assert_eq!(left_behind(&place), [""; 0]);
}

#[test]
fn demo_works_on_an_empty_directory_and_finds_nothing() {
    let place = Place::of(&[]);
    let output = run(demo(&place).args(["--pattern", "never"])).succeeds();
    for part in ["0 files in 0 directories", "no file here", "fs.search.page never: 0 lines"] {
        assert!(output.contains(part), "no {part:?} in\n{output}");
    }
}

#[test]
fn demo_reads_what_is_not_text() {
    let place = Place::of(&[]);
    let bytes: Vec<u8> =
        (0..200_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(place.root.path().join("binary"), bytes).unwrap();
    let output = run(&mut demo(&place)).succeeds();
    assert!(output.contains("200 000 bytes, CRC-32 "), "{output}");
}

#[test]
fn demo_says_what_is_wrong_with_its_pattern_and_ends() {
    let place = Place::of(&[]);
    let ended = run(demo(&place).args(["--pattern", "("]));
    ended.fails(5, "fs.search.page failed with InvalidArgument: the search pattern cannot be used");
    assert_eq!(left_behind(&place), [""; 0]);
}

#[test]
fn engine_whose_editor_is_killed_ends_and_leaves_nothing() {
    let place = Place::of(&[]);
    let mut editor = demo(&place).spawn().unwrap();
    let mut stdout = BufReader::new(editor.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("engine") || !line.contains("process") || line.contains("demo:") {
        line.clear();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0);
    }
    assert!(!left_behind(&place).is_empty());
    editor.kill().unwrap();
    eventually("an empty folder", || left_behind(&place).is_empty());
    finish(editor);
}
