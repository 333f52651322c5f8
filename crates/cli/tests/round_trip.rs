//! A server and its clients, each a process of its own.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use common::{Place, Server, command, finish, run, signal};
use rustix::process::Signal;
use serde_json::{Value, json};

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
}

#[test]
fn call_lists_reads_and_searches_by_name_and_number() {
    let place = Place::of(&[("a.txt", "one\ntwo\n"), ("b.txt", "two\n")]);
    let _server = place.serve();

    let listed = place.lapwing(&["call", "fs.list.page"]).succeeds();
    assert_eq!(listed.lines().count(), 1, "a pipe gets one line");
    assert_eq!(json_of(&listed)["entries"][1]["path"], "b.txt");

    let read = place.lapwing(&["call", "0x0301", r#"{"path": "a.txt"}"#]).succeeds();
    assert_eq!(json_of(&read)["content"], "one\ntwo\n");

    let found = place.lapwing(&["call", "785", r#"{"pattern": "two"}"#]).succeeds();
    assert_eq!(json_of(&found)["matches"].as_array().unwrap().len(), 2);
}

#[test]
fn call_takes_its_request_from_a_file_and_from_standard_input() {
    let place = Place::of(&[("a.txt", "needle\n")]);
    let _server = place.serve();
    let query = place.sockets.path().join("query.json");
    fs::write(&query, "{\"pattern\":\n \"needle\"}\n").unwrap();

    let file = format!("@{}", query.display());
    let found = place.lapwing(&["call", "fs.search.page", &file]).succeeds();
    assert_eq!(json_of(&found)["matches"][0]["line_number"], 1);

    let mut command = place.client(&["call", "fs.search.page", "-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(br#"{"pattern": "needle"}"#).unwrap();
    assert_eq!(finish(child).succeeds(), found);
}

#[test]
fn call_of_a_stream_prints_an_item_a_line() {
    let place = Place::of(&[("a.txt", "a needle\n"), ("b.txt", "no\nneedles\n")]);
    let _server = place.serve();
    for method in ["fs.search", "0x0310"] {
        let found = place.lapwing(&["call", method, r#"{"pattern": "needle"}"#]).succeeds();
        let lines: Vec<_> = found.lines().map(json_of).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["path"], &lines[0]["line_number"]), (&"a.txt".into(), &1.into()));
        assert_eq!((&lines[1]["path"], &lines[1]["line_number"]), (&"b.txt".into(), &2.into()));
    }
    place.lapwing(&["call", "fs.search", r#"{"pattern": "("}"#]).fails(5, "InvalidArgument");
}

#[test]
fn call_of_a_stream_ends_when_its_reader_goes_though_nothing_comes() {
    let place = Place::of(&[]);
    let _server = place.serve();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = place.client(&["call", "fs.watch"]);
    let child = command.stdout(writer).spawn().unwrap();
    drop(command);
    let mut first = String::new();
    // The buffer and with it the reader go at the end of the statement.
    BufReader::new(reader).read_line(&mut first).unwrap();
    assert_eq!(first, "{\"change\":\"watching\"}\n");
    finish(child).succeeds();
}

#[test]
fn call_one_way_prints_nothing() {
    let place = Place::of(&[]);
    let _server = place.serve();
    assert_eq!(place.lapwing(&["call", "fs.list.page", "--one-way"]).succeeds(), "");
    assert_eq!(place.lapwing(&["call", "0x0302", "--one-way"]).succeeds(), "");
}

#[test]
fn call_one_way_that_the_server_would_drop_is_refused() {
    let place = Place::of(&[]);
    let _server = place.serve();
    let one_way = |method| place.lapwing(&["call", method, "--one-way"]);
    one_way("0x0999").fails(7, "the server has no method 0x0999; `lapwing describe` lists");
    one_way("fs.watch").fails(7, "fs.watch is a stream (server-stream); call it without --one-way");
    one_way("0x0307").fails(7, "0x0307 is a stream (client-stream)");
}

#[test]
fn describe_prints_a_table_and_json() {
    let place = Place::of(&[]);
    let _server = place.serve();
    let table = place.lapwing(&["describe"]).succeeds();
    assert_eq!(
        table,
        "KIND    NAME             SHAPE          CODEC\n\
         0x0300  fs.list          server-stream  json\n\
         0x0301  fs.read          unary          json\n\
         0x0302  fs.list.page     unary          json\n\
         0x0303  fs.read.raw      unary          raw\n\
         0x0304  fs.write         unary          raw/json\n\
         0x0305  fs.apply_patch   unary          json\n\
         0x0306  fs.watch         server-stream  json\n\
         0x0307  fs.write.stream  client-stream  raw/json\n\
         0x0310  fs.search        server-stream  json\n\
         0x0311  fs.search.page   unary          json\n"
    );
    let methods = json_of(&place.lapwing(&["describe", "--json"]).succeeds());
    let search = &methods[9];
    let told = json!([search["kind"], search["name"], search["shape"], search["codec"]]);
    assert_eq!(told, json!([785, "fs.search.page", "unary", "json"]));
    assert_eq!(search["request_schema"]["required"], json!(["pattern"]));
    let search = place.lapwing(&["describe", "fs.search.page"]).succeeds();
    for line in [
        "fs.search.page  0x0311  unary  json",
        "  SearchRequest: object",
        "    path              string          (default \".\") The file or directory to search, relative to the root; `\".\"` by default.",
        "    matches              array of Match  (required) The matches: at most one a line.",
    ] {
        assert!(search.lines().any(|found| found == line), "no {line:?} in {search}");
    }
}

#[test]
fn describe_of_bytes_says_how_to_send_and_to_keep_them() {
    let place = Place::of(&[("a.txt", "one\n")]);
    let _server = Server::start(place.server_command().arg("--writable"));
    let write = place.lapwing(&["describe", "fs.write"]).succeeds();
    for line in [
        "Request",
        "  Bytes, as they are: `lapwing call fs.write @FILE` sends those of a file, `-` in its place \
         those of standard input.",
        "  WriteRequest: object",
        "    path                string     (required) The file, relative to the root. Of a symlink \
         that stays inside the root, what it names is written.",
        "  WriteReply: object",
    ] {
        assert!(write.lines().any(|found| found.starts_with(line)), "no {line:?} in {write}");
    }
    assert!(write.contains(r#"--metadata request='{"path": "notes.md"}'"#), "{write}");
    let read = place.lapwing(&["describe", "fs.read.raw"]).succeeds();
    assert!(read.contains("Request\n  ReadRequest: object\n"), "{read}");
    let reply = "Reply\n  Bytes, as they are: `> FILE` behind the call writes them to a file.\n";
    assert!(read.ends_with(reply), "{read}");

    // The request is JSON, and so it is checked as JSON and nothing stands for `{}`.
    let raw = |request: &[&str]| place.lapwing(&[&["call", "fs.read.raw"], request].concat());
    assert_eq!(raw(&[r#"{"path": "a.txt"}"#]).succeeds(), "one\n");
    raw(&["{"]).fails(7, "the request is not JSON");
    raw(&[]).fails(5, "missing field `path`");
}

#[test]
fn describe_of_the_engine_names_no_constant_of_its_code() {
    let place = Place::of(&[]);
    let _server = place.serve();
    let methods = json_of(&place.lapwing(&["describe", "--json"]).succeeds());
    for method in methods.as_array().unwrap() {
        let told = place.lapwing(&["describe", method["name"].as_str().unwrap()]).succeeds();
        let is_constant = |word: &str| word.contains('_') && word == word.to_uppercase();
        let mut words = told.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        assert!(!words.any(is_constant) && !told.contains("::"), "{told}");
        assert!(!told.contains("does not say"), "{told}");
    }
}

#[test]
fn serve_changes_files_only_when_it_is_told_that_it_may() {
    let place = Place::of(&[("a.txt", "one\ntwo\n")]);
    let patch = json!({"patch": "--- a/a.txt\n+++ b/a.txt\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"});
    let file = place.root.path().join("a.txt");
    {
        let _server = place.serve();
        let refused = place.lapwing(&["call", "fs.apply_patch", &patch.to_string()]);
        refused.fails(5, "start the server with `--writable`");
        refused.fails(5, "`lapwing serve --writable`");
        assert_eq!(fs::read_to_string(&file).unwrap(), "one\ntwo\n");
    }
    let _server = Server::start(place.server_command().arg("--writable"));
    let applied = place.lapwing(&["call", "fs.apply_patch", &patch.to_string()]).succeeds();
    assert_eq!(json_of(&applied)["files"][0]["change"], "modified");
    assert_eq!(fs::read_to_string(&file).unwrap(), "one\nthree\n");
    let again = place.lapwing(&["call", "fs.apply_patch", &patch.to_string()]);
    again.fails(5, "should be \"two\" and is \"three\"");
    let draft = format!("@{}", file.display());
    let request = r#"request={"path": "b.txt"}"#;
    let written = place.lapwing(&["call", "fs.write", &draft, "--metadata", request]).succeeds();
    assert_eq!(json_of(&written)["len_bytes"], 10);
    assert_eq!(fs::read_to_string(place.root.path().join("b.txt")).unwrap(), "one\nthree\n");
    // What was piped in and not asked for empties no file.
    let forgotten = place.lapwing(&["call", "fs.write", "--metadata", request]);
    forgotten
        .fails(7, "no request is given, and it is bytes: give it, @FILE, - for standard input");
    assert_eq!(fs::read_to_string(place.root.path().join("b.txt")).unwrap(), "one\nthree\n");
    let folder = r#"request={"path": "."}"#;
    let folder = place.lapwing(&["call", "fs.write", &draft, "--metadata", folder]);
    folder.fails(
        5,
        "\".\" is a directory, and only a regular file can be written: name a file in it",
    );
    let no_pair = place.lapwing(&["call", "fs.write", &draft, "--metadata", "path"]);
    assert!(no_pair.code == Some(2) && no_pair.stderr.contains("give it as KEY=VALUE"));
    // Of two requests one would be done, and the other not.
    let two = ["--metadata", request, "--metadata", request];
    let two = place.lapwing(&[&["call", "fs.write", &draft][..], &two].concat());
    assert!(two.code == Some(2) && two.stderr.contains("'request' more than once"), "{two:?}");
}

#[test]
fn ping_prints_a_line_for_each_round_trip_and_a_summary() {
    let place = Place::of(&[]);
    let _server = place.serve();
    let pinged = place.lapwing(&["ping", "-c", "3", "-i", "0"]).succeeds();
    let lines: Vec<_> = pinged.lines().collect();
    assert_eq!(lines.len(), 5, "{pinged}");
    assert!(lines[0].contains("shared memory"), "{pinged}");
    assert!(lines[3].trim_start().starts_with("3  "), "{pinged}");
    for part in ["3 round trips: min ", " p50 ", " max "] {
        assert!(lines[4].contains(part), "{pinged}");
    }
    // Three samples have no such percentiles.
    assert!(!lines[4].contains("p90") && !lines[4].contains("p99"), "{pinged}");
    let some = place.lapwing(&["ping", "-q", "-c", "999", "-i", "0"]).succeeds();
    assert!(some.contains(" p90 ") && !some.contains("p99"), "{some}");
    let quiet = place.lapwing(&["ping", "-q", "-c", "1000", "-i", "0"]).succeeds();
    assert_eq!(quiet.lines().count(), 2, "{quiet}");
    assert!(quiet.contains("1 000 round trips"), "{quiet}");
    for part in [": min ", " p50 ", " p90 ", " p99 ", " max "] {
        assert!(quiet.contains(part), "{quiet}");
    }
}

#[test]
fn ping_that_is_interrupted_prints_its_summary() {
    let place = Place::of(&[]);
    let _server = place.serve();
    for interval in ["0", "5"] {
        let mut child = place.client(&["ping", "-c", "0", "-i", interval]).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        for _ in 0..3 {
            line.clear();
            stdout.read_line(&mut line).unwrap();
        }
        signal(&child, Signal::INT);
        let last = stdout.lines().map(Result::unwrap).last().unwrap();
        assert!(last.contains("round trips: min"), "{last}");
        finish(child).succeeds();
    }
}

#[test]
fn server_and_clients_meet_by_default_and_by_name() {
    let place = Place::of(&[("a", "")]);
    for name in [&[][..], &["--name", "other"]] {
        let in_runtime_directory = |args: &[&str]| {
            let mut command = command(args);
            command.args(name).env("XDG_RUNTIME_DIR", place.sockets.path());
            command
        };
        let mut serve = in_runtime_directory(&["serve"]);
        let _server = Server::start(serve.current_dir(place.root.path()));
        let listed = run(&mut in_runtime_directory(&["call", "fs.list.page"])).succeeds();
        assert!(listed.contains(r#""path":"a""#), "{listed}");
        let file = if name.is_empty() { "lapwing.sock" } else { "other.sock" };
        assert!(place.sockets.path().join("lapwing").join(file).exists());
    }
}

#[test]
fn serve_with_several_threads_and_every_policy_answers() {
    let place = Place::of(&[]);
    for options in [["--threads", "3"], ["--spin", "never"], ["--spin", "always"]] {
        let mut server = Server::start(place.server_command().args(options));
        place.lapwing(&["ping", "-c", "2", "-i", "0", "--spin", "never"]).succeeds();
        signal(&server.child, Signal::TERM);
        assert_eq!(server.end().0, Some(0));
    }
}
