//! The exit codes are fixed, and every failure is one sentence.

mod common;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use common::{Place, SLOW_PATTERN, Server, command, finish, lapwing, run, signal};
use rustix::process::Signal;

#[test]
fn help_and_version_are_success_and_help_lists_the_codes() {
    let help = lapwing(&["--help"]).succeeds();
    for code in 0..=8 {
        assert!(help.contains(&format!("\n  {code}  ")), "{help}");
    }
    assert!(lapwing(&["--version"]).succeeds().starts_with("lapwing "));
    for subcommand in ["demo", "serve", "ping", "call", "describe", "bench", "completions"] {
        for option in ["-h", "--help"] {
            let help = lapwing(&[subcommand, option]).succeeds();
            assert!(help.contains("EXAMPLES:\n  lapwing "), "{help}");
        }
    }
    assert!(!help.contains("demo-engine") && !help.contains("bench-peer"), "{help}");
    assert_eq!(lapwing(&["help", "bench-peer"]).code, Some(2));
}

/// The words of a line that the next line could have begun with do not fit it, unless a paragraph ends there.
fn assert_well_wrapped(help: &str, width: usize, of: &str) {
    let (_, after) = help.split_once("EXAMPLES:").unwrap();
    // Lists have lines of their own; paragraphs are what else is there.
    let mut is_list = true;
    let mut before = "";
    for line in after.lines() {
        assert!(line.chars().count() <= width, "{of} is wider than {width}: {line}");
        if let Some(heading) = line.strip_suffix(':').filter(|line| *line == line.to_uppercase()) {
            is_list = heading != "SOCKETS";
        } else if !line.is_empty() && !line.starts_with(' ') {
            is_list = false;
        }
        let has_room = |word: &str| before.chars().count() + 1 + word.len() <= width;
        let follows = !is_list && !before.is_empty() && !before.ends_with(':');
        if let Some(word) = line.split_whitespace().next().filter(|_| follows) {
            assert!(!has_room(word), "{of} has a ragged paragraph: {before:?}, {line:?}");
        }
        before = line;
    }
}

#[test]
fn help_is_wrapped_where_the_terminal_ends_and_its_examples_are_not() {
    let examples = |help: &str| {
        let (_, after) = help.split_once("EXAMPLES:\n").unwrap();
        after.lines().take_while(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let all = ["", "demo", "serve", "ping", "call", "describe", "bench", "completions"];
    for subcommand in all {
        let help = |columns: &str| {
            let mut command =
                command(&[subcommand, "--help"][usize::from(subcommand.is_empty())..]);
            run(command.env("COLUMNS", columns)).succeeds()
        };
        let (narrow, wide) = (help("80"), help("120"));
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        assert_well_wrapped(&narrow, 80, subcommand);
        // Lines of more than a hundred characters are no pleasure to read.
        assert_well_wrapped(&wide, 100, subcommand);
        let whole = examples(&narrow);
        assert!(whole.iter().all(|line| line.starts_with("  ")), "{narrow}");
        assert_eq!(whole, examples(&wide));
    }
}

#[test]
fn wrong_command_line_is_2() {
    for args in [
        &[][..],
        &["frobnicate"],
        &["ping", "--frobnicate"],
        &["ping", "-c", "many"],
        &["call"],
        &["serve", "--threads", "0"],
        &["ping", "--socket", "a", "--name", "b"],
        &["bench", "rtt", "--samples", "0"],
        &["bench", "rtt", "--ring", "32768"],
        &["bench", "rtt", "--ring", "134217728"],
        &["bench", "rtt", "--payload", "10485761"],
    ] {
        let ended = lapwing(args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains("--help"), "{args:?}: {ended:?}");
        assert!(args.is_empty() || ended.stderr.starts_with("lapwing: "), "{args:?}: {ended:?}");
    }
    for (args, advice) in [
        (&["call", "a", "--timeout-ms", "x"][..], "give a whole number from 0"),
        (&["bench", "rtt", "--samples", "0"], "give a whole number from 1"),
        (&["bench", "rtt", "--rounds", "4294967296"], "give a whole number from 1"),
    ] {
        let ended = lapwing(args);
        assert!(ended.code == Some(2) && ended.stderr.contains(advice), "{ended:?}");
    }
    lapwing(&["ping", "--name", "."]).fails(2, "and, not first, '.'");
    lapwing(&["ping", "--name", "../up"]).fails(2, "is no endpoint name");
}

#[test]
fn output_that_cannot_be_written_is_1() {
    let place = Place::of(&[]);
    let _server = place.serve();
    for args in [&["describe"][..], &["call", "fs.list.page"], &["ping", "-c", "1"]] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ended = run(place.client(args).stdout(Stdio::from(full)));
        ended.fails(1, "could not write the output");
    }
    let bench =
        ["bench", "rtt", "--samples", "1", "--rounds", "1", "--unpinned", "--spin", "never"];
    for args in [&["--help"][..], &["--version"], &["ping", "-h"], &bench] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ended = run(command(args).stdout(Stdio::from(full)));
        ended.fails(1, "could not write the output");
    }
}

#[test]
fn error_status_is_5_and_names_its_code() {
    let place = Place::of(&[]);
    let _server = place.serve();
    let read = |request| place.lapwing(&["call", "fs.read", request]);
    read(r#"{"path": "missing"}"#).fails(5, "fs.read failed with NotFound: \"missing\" does not");
    read(r#"{"path": "../x"}"#).fails(5, "PermissionDenied");
    read(r#"{"paths": "x"}"#).fails(5, "unknown field `paths`");
    read(r#"{"paths": "x"}"#).fails(5, " (`lapwing describe fs.read` says what it takes)");
    place.lapwing(&["call", "fs.write", "x"]).fails(5, "(`lapwing describe fs.write` says what");
    assert!(!read(r#"{"path": "missing"}"#).stderr.contains("describe"));
}

#[test]
fn time_that_is_over_is_9() {
    let place = Place::of(&[]);
    let _server = place.serve();
    let late = |args: &[&str]| place.lapwing(&[&["call"], args].concat());
    late(&["fs.list.page", "--timeout-ms", "0"])
        .fails(9, "fs.list.page failed: the call's time was over before ");
    late(&["fs.watch", "--timeout-ms", "300"])
        .fails(9, "time was over before its stream ended; give more with --timeout-ms");
}

#[test]
fn time_that_is_over_while_the_server_stands_still_is_9() {
    let place = Place::of(&[]);
    let server = place.serve();
    signal(&server.child, Signal::STOP);
    let begun = Instant::now();
    let late = place.lapwing(&["call", "fs.list.page", "--timeout-ms", "200"]);
    late.fails(9, "time was over before the server answered the handshake; give more with");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn time_that_is_over_while_input_is_awaited_is_9() {
    let place = Place::of(&[]);
    let _server = Server::start(place.server_command().arg("--writable"));
    let request = "request={\"path\": \"a\"}";
    for (method, metadata) in [("fs.list.page", "a=b"), ("fs.write.stream", request)] {
        let args = ["call", method, "-", "--metadata", metadata, "--timeout-ms", "300"];
        let mut child = place.client(&args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"{}\n").unwrap();
        finish(child).fails(9, "time was over before its input");
    }
    assert!(!place.root.path().join("a").exists(), "a part of a file was written");
}

#[test]
fn input_that_cannot_be_used_is_7() {
    let place = Place::of(&[]);
    let _server = place.serve();
    let call = |args: &[&str]| place.lapwing(&[&["call"], args].concat());
    call(&["fs.list.page", "{\"path\""])
        .fails(7, "not JSON: EOF while parsing an object at line 1");
    call(&["fs.list.page", "@/no/such/file"]).fails(7, "cannot read /no/such/file");
    call(&["fs.move"]).fails(
        7,
        "no method 'fs.move'; it has fs.apply_patch, fs.list, fs.list.page, fs.read, fs.read.raw, \
         fs.search, fs.search.page, fs.watch, fs.write, fs.write.stream",
    );
    call(&["0x00FF"]).fails(7, "use 0x0100 to 0xFFFF");
    call(&["0x0999"]).fails(7, "the server has no method 0x0999; `lapwing describe` lists those");
    for large in ["0x10000", "70000"] {
        call(&[large])
            .fails(7, &format!("{large} is no method's number: a number is at most 0xFFFF"));
    }
    call(&["fs.list.page", "--raw", "{"]).fails(5, "InvalidArgument");
    let large = place.sockets.path().join("large.json");
    std::fs::write(&large, format!("\"{}\"", "x".repeat(10 << 20))).unwrap();
    call(&["fs.list.page", &format!("@{}", large.display())])
        .fails(7, "longer than this connection takes");
    lapwing(&["serve", "--root", "/no/such/directory"]).fails(7, "/no/such/directory");
    lapwing(&["demo", "--root", "/dev/null"]).fails(7, "cannot serve the directory /dev/null");
}

#[test]
fn file_of_a_request_that_cannot_be_read_is_7_and_says_why() {
    let place = Place::of(&[]);
    let _server = place.serve();
    let folder = place.root.path().to_str().unwrap();
    // One request, and items of a stream.
    for (method, metadata) in
        [("fs.search.page", "a=b"), ("fs.write.stream", "request={\"path\": \"a\"}")]
    {
        let call = |file: &str| {
            place.lapwing(&["call", method, &format!("@{file}"), "--metadata", metadata])
        };
        call("").fails(7, "no file is named behind the @: give @FILE, or - for standard input");
        call("/no/such").fails(7, "cannot read /no/such: there is no such file; check the path");
        call(folder).fails(7, &format!("cannot read {folder}: it is a directory; name a file"));
    }
}

#[test]
fn directory_that_cannot_be_served_is_said_without_a_word_of_workspaces() {
    for (root, why) in [
        ("/no/such/directory", "there is no such directory; make it, or name another"),
        ("/dev/null", "it is not a directory; name one"),
    ] {
        for command in ["serve", "demo"] {
            let ended = lapwing(&[command, "--root", root]);
            ended.fails(7, &format!("cannot serve the directory {root}: {why}"));
            assert!(!ended.stderr.contains("workspace"), "{ended:?}");
        }
    }
}

#[test]
fn request_that_is_not_json_is_advised_to_be_raw_only_where_that_can_help() {
    let place = Place::of(&[]);
    let _server = place.serve();
    let wrong = place.lapwing(&["call", "fs.list.page", "{\"path\": 1"]);
    wrong.fails(7, "the request is not JSON: EOF while parsing an object at line 1 column");
    assert!(wrong.stderr.ends_with("; mend it\n"), "{wrong:?}");
    // As of {"path": 1} without quotes around it.
    let unquoted = place.lapwing(&["call", "fs.list.page", "{path: 1}"]);
    unquoted.fails(7, "key must be a string at line 1 column 2; a shell takes quotes away: put");
    let half = place.lapwing(&["call", "fs.list.page", "{path: \"a\"}"]);
    half.fails(7, "at line 1 column 2; put names in double quotes, as in {\"a\": 1}");
}

#[test]
fn connection_that_is_lost_is_6() {
    let place = Place::of(&[]);
    place.fill(300);
    let server = place.serve();
    let waiting = place.client(&["call", "fs.search.page", SLOW_PATTERN]).spawn().unwrap();
    server.until_busy();
    server.kill();
    finish(waiting).fails(6, "the server is gone; the server may have executed the call");
}

#[test]
fn server_that_hangs_up_or_talks_nonsense_is_6() {
    let place = Place::of(&[]);
    let listener = UnixListener::bind(place.socket()).unwrap();
    let server = thread::spawn(move || {
        drop(listener.accept().unwrap());
        let (mut socket, _) = listener.accept().unwrap();
        io::Write::write_all(&mut socket, &[b'?'; 64]).unwrap();
        // Stays open until the client has read that.
        let _ = io::copy(&mut socket, &mut io::sink());
    });
    place.lapwing(&["describe"]).fails(6, "");
    place.lapwing(&["describe"]).fails(6, "");
    server.join().unwrap();
}

#[test]
fn nothing_but_the_reply_is_written() {
    let place = Place::of(&[]);
    let _server = place.serve();
    // Also where a terminal is pretended, as far as that goes.
    let ended = run(place.client(&["describe"]).env("CLICOLOR_FORCE", "1"));
    assert!(ended.succeeds().contains("\u{1b}[1m"));
    let ended = run(place.client(&["describe"]).env("NO_COLOR", "1").env("CLICOLOR_FORCE", "1"));
    assert!(!ended.succeeds().contains('\u{1b}'));
}

#[test]
fn completions_are_there_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = lapwing(&["completions", shell]).succeeds();
        assert!(script.contains("describe") && script.lines().count() > 20, "{shell}");
        assert!(!script.contains("demo-engine") && !script.contains("bench-peer"), "{shell}");
    }
    assert_eq!(lapwing(&["completions", "cobol"]).code, Some(2));
}

#[test]
fn broken_pipe_is_success_without_a_word() {
    let place = Place::of(&[("a", "")]);
    let _server = place.serve();
    let unread = |command: &mut std::process::Command| {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        run(command.stdout(writer)).succeeds();
    };
    for args in [&["call", "fs.list.page"][..], &["describe"], &["describe", "--json"], &["ping"]] {
        unread(&mut place.client(args));
    }
    for args in [&["completions", "bash"][..], &["--help"], &["demo"]] {
        unread(command(args).current_dir(place.root.path()));
    }
}
