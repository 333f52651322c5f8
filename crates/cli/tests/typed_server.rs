//! `describe` and `call` against a server whose methods have every shape and codec, in a process of this
//! test: what `lapwing serve` has not.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Ended, command, eventually, finish, run};
use lapwing::schemars::{self, JsonSchema};
use lapwing::{
    Call, ClientStream, Duplex, IpcServer, OneWay, Payload, Postcard, Raw, ServerStream, Sink,
    Source, Status, Unary,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A part of a text.
#[derive(Clone, Serialize, Deserialize, JsonSchema, Debug)]
struct Part {
    /// Where it begins.
    at: u64,
    text: String,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Parts {
    parts: Vec<Part>,
}

const JOIN: Unary<Parts, Part> = Unary::new(0x0700, "text.join");
const SPLIT: ServerStream<Part, Part> = ServerStream::new(0x0701, "text.split");
const SUM: ClientStream<u64, u64> = ClientStream::new(0x0702, "numbers.sum");
const DOUBLE: Duplex<u64, u64> = Duplex::new(0x0703, "numbers.double");
const NOTE: OneWay<Part> = OneWay::new(0x0704, "note");
const ECHO: Unary<Payload, Payload, Raw> = Unary::new(0x0705, "bytes.echo");
const COUNT: ClientStream<Payload, Vec<u8>, Raw> = ClientStream::new(0x0706, "bytes.count");
const STATUS: Unary<(), u64> = Unary::new(0x0707, "status");
const FIRST: ClientStream<u64, u64> = ClientStream::new(0x0708, "numbers.first");
const REFUSE: Duplex<u64, u64> = Duplex::new(0x0709, "numbers.refuse");

const SWAP: Unary<(u64, String), (String, u64)> = Unary::new(0x070A, "pair.swap");
const GATHER: ClientStream<Part, String> = ClientStream::new(0x070B, "text.gather");

/// A server in this process, for commands in theirs.
struct Typed {
    noted: Arc<AtomicU64>,
    /// Handlers of `numbers.double` and `numbers.sum` that run.
    running: Arc<AtomicU64>,
    sockets: TempDir,
    _server: IpcServer,
    _runtime: Runtime,
}

struct Running(Arc<AtomicU64>);

impl Running {
    fn one(counter: &Arc<AtomicU64>) -> Running {
        counter.fetch_add(1, Ordering::SeqCst);
        Running(Arc::clone(counter))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn split(_: Call, part: Part, mut items: Sink<Part, Postcard>) -> Result<(), Status> {
    for (at, text) in part.text.split_inclusive(' ').enumerate() {
        items.send(&Part { at: part.at + at as u64, text: text.to_owned() }).await?;
    }
    if part.at == 99 { Err(Status::data_loss("the rest is gone")) } else { Ok(()) }
}

async fn sum(_: Call, mut numbers: Source<u64, Postcard>) -> Result<u64, Status> {
    let mut sum = 0;
    while let Some(number) = numbers.next().await? {
        sum += number;
    }
    Ok(sum)
}

async fn refuse(
    _: Call,
    mut numbers: Source<u64, Postcard>,
    mut out: Sink<u64, Postcard>,
) -> Result<(), Status> {
    let first = numbers.next().await?.unwrap_or_default();
    out.send(&first).await?;
    Err(Status::failed_precondition("one is enough"))
}

impl Typed {
    fn serve() -> Typed {
        let runtime = Runtime::new().unwrap();
        let sockets = tempfile::tempdir().unwrap();
        let (noted, running) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let notes = Arc::clone(&noted);
        let (doubling, summing) = (Arc::clone(&running), Arc::clone(&running));
        let double =
            move |_: Call, mut numbers: Source<u64, Postcard>, mut out: Sink<u64, Postcard>| {
                let running = Running::one(&doubling);
                async move {
                    let _running = running;
                    while let Some(number) = numbers.next().await? {
                        out.send(&(number * 2)).await?;
                    }
                    Ok(())
                }
            };
        let join = |_: Call, asked: Parts| async move {
            let text = asked.parts.iter().map(|part| part.text.as_str()).collect();
            Ok(Part { at: asked.parts.len() as u64, text })
        };
        let count = |_: Call, mut items: Source<Payload, Raw>| async move {
            let mut lengths = Vec::new();
            while let Some(item) = items.next().await? {
                lengths.push(item.len().to_string());
            }
            Ok(lengths.join(" ").into_bytes())
        };
        let server = runtime.block_on(async {
            let builder = IpcServer::builder().bind(sockets.path().join("s.sock")).unwrap();
            builder
                .route(JOIN, join)
                .route(SPLIT, split)
                .route(SUM, move |call: Call, numbers: Source<u64, Postcard>| {
                    let running = Running::one(&summing);
                    async move {
                        let _running = running;
                        sum(call, numbers).await
                    }
                })
                .route(DOUBLE, double)
                .route(NOTE, move |_: Call, note: Part| {
                    notes.fetch_add(note.at, Ordering::SeqCst);
                    async { Ok(()) }
                })
                .route(ECHO, |_: Call, bytes: Payload| async move { Ok(bytes) })
                .route(COUNT, count)
                .route(STATUS, |_: Call, ()| async { Ok(7) })
                .route(FIRST, |_: Call, mut numbers: Source<u64, Postcard>| async move {
                    Ok(numbers.next().await?.unwrap_or_default())
                })
                .route(REFUSE, refuse)
                .route(SWAP, |_: Call, (number, text)| async move { Ok((text, number)) })
                .route(GATHER, |_: Call, mut parts: Source<Part, Postcard>| async move {
                    let mut text = String::new();
                    while let Some(part) = parts.next().await? {
                        text += &part.text;
                    }
                    Ok(text)
                })
                .schema_of(JOIN)
                .schema_of(SPLIT)
                .schema_of(NOTE)
                .schema_of(SWAP)
                .schema_of(GATHER)
                .serve()
                .unwrap()
        });
        Typed { noted, running, sockets, _server: server, _runtime: runtime }
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = command(args);
        command.arg("--socket").arg(self.sockets.path().join("s.sock"));
        command
    }

    fn lapwing(&self, args: &[&str]) -> Ended {
        run(&mut self.command(args))
    }

    fn fed(&self, args: &[&str], input: &str) -> Ended {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        // Who has enough may be gone before all of it is read.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        finish(child)
    }
}

#[test]
fn describe_prints_codecs_and_one_method_field_by_field() {
    let typed = Typed::serve();
    assert_eq!(
        typed.lapwing(&["describe"]).succeeds(),
        "KIND    NAME            SHAPE          CODEC\n\
         0x0700  text.join       unary          postcard\n\
         0x0701  text.split      server-stream  postcard\n\
         0x0702  numbers.sum     client-stream  postcard\n\
         0x0703  numbers.double  duplex         postcard\n\
         0x0704  note            one-way        postcard\n\
         0x0705  bytes.echo      unary          raw\n\
         0x0706  bytes.count     client-stream  raw\n\
         0x0707  status          unary          postcard\n\
         0x0708  numbers.first   client-stream  postcard\n\
         0x0709  numbers.refuse  duplex         postcard\n\
         0x070a  pair.swap       unary          postcard\n\
         0x070b  text.gather     client-stream  postcard\n"
    );
    assert_eq!(
        typed.lapwing(&["describe", "text.join"]).succeeds(),
        "text.join  0x0700  unary  postcard\n\
         \n\
         Request\n\
         \u{20} Parts: object\n\
         \u{20}   parts  array of Part  (required)\n\
         \n\
         \u{20} Part: object\n\
         \u{20} A part of a text.\n\
         \u{20}   at    integer from 0  (required) Where it begins.\n\
         \u{20}   text  string          (required)\n\
         \n\
         Reply\n\
         \u{20} Part: object\n\
         \u{20} A part of a text.\n\
         \u{20}   at    integer from 0  (required) Where it begins.\n\
         \u{20}   text  string          (required)\n"
    );
    let split = typed.lapwing(&["describe", "0x0701"]).succeeds();
    assert!(split.contains("\nRequest\n") && split.contains("\nReply, each item\n"), "{split}");
    let note = typed.lapwing(&["describe", "note"]).succeeds();
    assert!(!note.contains("Reply"), "{note}");
    assert_eq!(
        typed.lapwing(&["describe", "numbers.sum"]).succeeds(),
        "numbers.sum  0x0702  client-stream  postcard\n\n\
         Request, each item\n  The server does not say.\n\nReply\n  The server does not say.\n"
    );
    assert_eq!(
        typed.lapwing(&["describe", "bytes.echo"]).succeeds(),
        "bytes.echo  0x0705  unary  raw\n\n\
         Request\n\
         \u{20} Bytes, as they are: `lapwing call bytes.echo @FILE` sends those of a file, `-` in its place \
         those of standard input.\n\n\
         Reply\n\
         \u{20} Bytes, as they are: `> FILE` behind the call writes them to a file.\n"
    );
    typed
        .lapwing(&["describe", "text.joins"])
        .fails(7, "no method 'text.joins'; it has bytes.count");
    typed.lapwing(&["describe", "0x0999"]).fails(7, "no method 0x0999");
}

#[test]
fn describe_json_has_everything() {
    let typed = Typed::serve();
    let all = typed.lapwing(&["describe", "--json"]).succeeds();
    let all: Value = serde_json::from_str(&all).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 12);
    let one = typed.lapwing(&["describe", "text.join", "--json"]).succeeds();
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(one, all[0]);
    let kept = json!([one["kind"], one["name"], one["shape"], one["codec"]]);
    assert_eq!(kept, json!([0x0700, "text.join", "unary", "postcard"]));
    assert_eq!(one["request_schema"]["properties"]["parts"]["items"]["$ref"], "#/$defs/Part");
    assert_eq!(one["reply_schema"]["title"], "Part");
    assert_eq!(all[2]["request_schema"], Value::Null);
}

#[test]
fn call_takes_and_prints_json_for_a_postcard_method() {
    let typed = Typed::serve();
    let request = r#"{"parts": [{"at": 1, "text": "a"}, {"at": 2, "text": "ß"}]}"#;
    let joined = typed.lapwing(&["call", "text.join", request]).succeeds();
    assert_eq!(joined, "{\"at\":2,\"text\":\"aß\"}\n");
    assert_eq!(typed.lapwing(&["call", "0x0700", request]).succeeds(), joined);
    assert_eq!(typed.lapwing(&["call", "status"]).succeeds(), "7\n");

    let split = typed.lapwing(&["call", "text.split", r#"{"at": 5, "text": "a b"}"#]).succeeds();
    assert_eq!(split, "{\"at\":5,\"text\":\"a \"}\n{\"at\":6,\"text\":\"b\"}\n");
    // Items that came before an error are printed.
    let lossy = typed.lapwing(&["call", "text.split", r#"{"at": 99, "text": "a"}"#]);
    assert_eq!(lossy.stdout, "{\"at\":99,\"text\":\"a\"}\n");
    lossy.fails(5, "text.split failed with DataLoss: the rest is gone");

    let note = ["call", "note", r#"{"at": 41, "text": "x"}"#];
    assert_eq!(typed.lapwing(&note).succeeds(), "");
    eventually("the note", || typed.noted.load(Ordering::SeqCst) == 41);

    // Its own codec, for who has such bytes: a number of parts, their places and their texts.
    let file = typed.sockets.path().join("postcard");
    std::fs::write(&file, [1, 9, 1, b'z']).unwrap();
    let from_file = format!("@{}", file.display());
    let joined = typed.lapwing(&["call", "text.join", "--raw", &from_file]).succeeds();
    assert_eq!(joined, "\u{1}\u{1}z");
}

#[test]
fn call_says_which_field_of_a_request_is_wrong() {
    let typed = Typed::serve();
    let wrong = |request| typed.lapwing(&["call", "text.join", request]);
    wrong(r#"{"parts": [{"at": 1, "text": "a"}, {"at": "x", "text": "b"}]}"#).fails(
        5,
        "text.join failed with InvalidArgument: the request cannot be read: at parts[1].at: invalid type: string \"x\"",
    );
    wrong("{\"parts\"")
        .fails(7, "the request is not JSON: EOF while parsing an object at line 1 column 8");
    wrong("\"x").fails(7, "; mend it, or send bytes of the method's own codec with --raw");
    wrong("x").fails(7, "; a shell takes quotes away: put the request in single quotes, as in");
    wrong("")
        .fails(5, "missing field `parts` at line 1 column 2; it is empty, which stands for {}");
}

#[test]
fn call_with_another_type_than_the_schema_says_is_refused_before_it_is_sent() {
    let typed = Typed::serve();
    let wrong = |method, request| typed.lapwing(&["call", method, request]);
    let parts = "text.join takes an object with the field parts";
    wrong("text.join", r#"[[{"at": 1, "text": "a"}]]"#)
        .fails(7, &format!("the request is an array, and {parts}"));
    wrong("text.join", "7").fails(7, &format!("the request is a number, and {parts}"));
    wrong("text.join", r#"{"parts": [{"at": 1, "text": "a"}, [2, "b"]]}"#).fails(
        7,
        "the request has an array at parts[1], where text.join takes an object with the fields at, text",
    );
    wrong("note", r#"[41, "x"]"#).fails(7, "the request is an array, and note takes an object");
    assert_eq!(typed.noted.load(Ordering::SeqCst), 0);
    wrong("pair.swap", r#"[1, "a"]"#).succeeds();
    wrong("pair.swap", "{}").fails(7, "is an object, and pair.swap takes an array");
    // What the server has no schema of is its own to judge.
    wrong("numbers.sum", "[1]").fails(5, "InvalidArgument");

    typed
        .fed(&["call", "text.gather"], "{\"at\": 1, \"text\": \"a\"}\n[2, \"b\"]\n")
        .fails(7, "line 2 of standard input is an array, and text.gather takes an object");
}

#[test]
fn call_says_in_which_field_a_request_is_not_json() {
    let typed = Typed::serve();
    let wrong = typed.lapwing(&["call", "text.join", r#"{"parts": [{"at": x}]}"#]);
    wrong.fails(7, "not JSON: expected value at line 1 column 19, in parts[0].at; mend it");
    typed
        .fed(&["call", "text.gather"], "{\"at\": 1, \"text\": b}\n")
        .fails(7, "line 1 of standard input is not JSON: expected value at column 19, in text;");
}

#[test]
fn call_of_a_client_stream_sends_a_line_an_item_from_every_source() {
    let typed = Typed::serve();
    let call = ["call", "numbers.sum"];
    assert_eq!(typed.fed(&call, "1\n2\n\n 39 \n").succeeds(), "42\n");
    assert_eq!(typed.fed(&["call", "numbers.sum", "-"], "1\n2").succeeds(), "3\n");
    assert_eq!(typed.fed(&call, "").succeeds(), "0\n");
    assert_eq!(typed.lapwing(&["call", "numbers.sum", "40\n2"]).succeeds(), "42\n");
    // More than any window, at the server's pace.
    let many: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    let file = typed.sockets.path().join("many");
    std::fs::write(&file, &many).unwrap();
    let from_file = format!("@{}", file.display());
    assert_eq!(typed.lapwing(&["call", "numbers.sum", &from_file]).succeeds(), "200010000\n");
    assert_eq!(typed.fed(&call, &many).succeeds(), "200010000\n");
    // A server that has enough answers before the end.
    assert_eq!(typed.fed(&["call", "numbers.first"], &many).succeeds(), "1\n");

    // Also to who waits for more to send.
    let mut child =
        typed.command(&["call", "numbers.first"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    say(&mut stdin, "4\n");
    assert_eq!(finish(child).succeeds(), "4\n");
    drop(stdin);

    typed
        .fed(&call, "1\ntwo\n3\n")
        .fails(7, "line 2 of standard input is not JSON: expected ident at column 2");
    let refused = typed.fed(&call, "1\n-2\n");
    // Of what the server does not say there is nothing to read.
    assert!(!refused.stderr.contains("describe"), "{refused:?}");
    refused.fails(5, "numbers.sum failed with InvalidArgument: item 2 of the request cannot be read: invalid value: integer `-2`");
    typed.lapwing(&["call", "numbers.sum", "@/no/such"]).fails(7, "cannot read /no/such");
}

fn say(stdin: &mut ChildStdin, line: &str) {
    stdin.write_all(line.as_bytes()).unwrap();
    stdin.flush().unwrap();
}

#[test]
fn call_of_a_duplex_prints_replies_while_lines_come() {
    let typed = Typed::serve();
    let mut child =
        typed.command(&["call", "numbers.double"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for number in 1..=3 {
        say(&mut stdin, &format!("{number}\n"));
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, format!("{}\n", number * 2));
    }
    // The end of the input is the end of the stream, and its last line needs no end.
    say(&mut stdin, "10");
    drop(stdin);
    let rest: Vec<_> = stdout.lines().map(Result::unwrap).collect();
    assert_eq!(rest, ["20"]);
    finish(child).succeeds();

    let many: String = (0..20_000).map(|number| format!("{number}\n")).collect();
    let doubled = typed.fed(&["call", "numbers.double"], &many).succeeds();
    let expected: String = (0..20_000).map(|number| format!("{}\n", number * 2)).collect();
    assert!(doubled == expected, "{} bytes", doubled.len());
}

#[test]
fn call_of_a_duplex_ends_with_what_went_wrong_first() {
    let typed = Typed::serve();
    let bad = typed.fed(&["call", "numbers.double"], "1\nx\n2\n");
    bad.fails(
        7,
        "line 2 of standard input is not JSON: expected value at column 1; each line is one item",
    );
    eventually("the call is given up", || typed.running.load(Ordering::SeqCst) == 0);
    typed.fed(&["call", "numbers.double"], "1\n\"x\"\n").fails(5, "InvalidArgument");

    // A server that ends the call is not waited for to read the rest of the input.
    let mut child =
        typed.command(&["call", "numbers.refuse"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    say(&mut stdin, "4\n");
    let ended = finish(child);
    assert_eq!(ended.stdout, "4\n");
    ended.fails(5, "numbers.refuse failed with FailedPrecondition: one is enough");
    drop(stdin);
}

#[test]
fn call_of_a_duplex_whose_reader_or_user_goes_is_given_up() {
    let typed = Typed::serve();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = typed.command(&["call", "numbers.double"]);
    let mut child = command.stdin(Stdio::piped()).stdout(writer).spawn().unwrap();
    drop(command);
    let stdin = child.stdin.take();
    // Also where it would have had nothing to read.
    eventually("the call runs", || typed.running.load(Ordering::SeqCst) == 1);
    drop(reader);
    finish(child).succeeds();
    drop(stdin);
    eventually("the call is given up", || typed.running.load(Ordering::SeqCst) == 0);

    let mut command = typed.command(&["call", "numbers.double"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    eventually("the call runs", || typed.running.load(Ordering::SeqCst) == 1);
    common::signal(&child, rustix::process::Signal::INT);
    assert_eq!(common::wait(&mut child), None, "killed by the signal");
    eventually("the call is given up", || typed.running.load(Ordering::SeqCst) == 0);
}

#[test]
fn call_of_a_client_stream_whose_server_goes_is_6_without_waiting_for_input() {
    let typed = Typed::serve();
    let mut command = typed.command(&["call", "numbers.sum"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    eventually("the call runs", || typed.running.load(Ordering::SeqCst) == 1);
    drop(typed);
    // It may have had the time to say goodbye.
    finish(child).fails(6, "numbers.sum failed: the server ");
    drop(stdin);
}

#[test]
fn call_of_a_duplex_whose_server_goes_is_6_without_waiting_for_input() {
    let typed = Typed::serve();
    let mut command = typed.command(&["call", "numbers.double"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    eventually("the call runs", || typed.running.load(Ordering::SeqCst) == 1);
    drop(typed);
    finish(child).fails(6, "numbers.double failed: the server ");
    drop(stdin);
}

#[test]
fn call_of_a_raw_method_takes_and_prints_bytes() {
    let typed = Typed::serve();
    for raw in [&["--raw"][..], &[]] {
        let echo = |request: &str| typed.lapwing(&[&["call", "bytes.echo", request], raw].concat());
        assert_eq!(echo("not JSON").succeeds(), "not JSON");
        // Not even a line end is added.
        assert_eq!(echo("{\"a\": 1}").succeeds(), "{\"a\": 1}");
    }
    let file = typed.sockets.path().join("bytes");
    std::fs::write(&file, "a\0b\n").unwrap();
    let from_file = format!("@{}", file.display());
    assert_eq!(typed.lapwing(&["call", "bytes.echo", &from_file]).succeeds(), "a\0b\n");
    assert_eq!(typed.fed(&["call", "bytes.count"], "one\n\nthree\r\n").succeeds(), "4 1 7");
}
