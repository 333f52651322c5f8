//! `lapwing call`.

mod expected;
mod limit;
mod print;
mod request;

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use lapwing::blocking::{IpcClient, ItemSender};
use lapwing::methods::Shape;
use lapwing::{
    CallError, CallOptions, ClientStream, Duplex, Metadata, OneWay, Payload, Raw, ServerStream,
    Unary,
};

use self::expected::Expected;
use self::limit::Limit;
use self::print::{Layout, print};
use self::request::{Form, Items, Json, Source};
use crate::args::{Endpoint, from, misuse};
use crate::exit::{CallFailed, InputError};
use crate::method::{self, Answer, Found};
use crate::output::while_read;

/// Call one method and print its reply.
#[derive(clap::Args, Debug)]
#[command(after_help = "EXAMPLES:
  lapwing call fs.list
  lapwing call fs.list '{\"path\": \"src\", \"recursive\": false}'
  lapwing call fs.read '{\"path\": \"README.md\"}' | jq -r .content
  lapwing call fs.search @query.json
  lapwing call fs.search '{\"pattern\": \"TODO\"}' | head
  lapwing call fs.search.page '{\"pattern\": \"TODO\"}' | jq .next
  echo '{\"pattern\": \"TODO\"}' | lapwing call 0x0310 -
  seq 10 | lapwing call numbers.sum --name calculator
  lapwing call fs.write @draft.md --metadata request='{\"path\": \"notes.md\"}'
  jq -n --rawfile patch fix.diff '{$patch}' | lapwing call fs.apply_patch -

Requests and replies are JSON here, whatever the method's codec; `lapwing describe METHOD` says \
what it takes. Only what it says to be bytes has no JSON: it is sent and printed as it is.

A method that takes a stream is sent each line of its input as an item, while they come and at the \
server's pace; the end of the input ends that stream. Of items in JSON blank lines are none. Items that are not JSON are sent with their \
line ends, so that nothing of the input is lost. One that answers with a stream prints each item on \
a line as it comes, items of bytes as they are.

A reply that is JSON is indented on a terminal and one line elsewhere; other replies are printed as \
they are. When the server answers with an error, the exit code is 5.")]
pub(crate) struct Args {
    /// A name that `lapwing describe` lists, or a number such as 0x0310.
    #[arg(value_name = "METHOD")]
    method: String,
    /// The request: JSON, @FILE to read it from a file, or - for standard input. Without it the
    /// request is empty, one of bytes has to be given, and a method that takes a stream reads its items
    /// from standard input.
    #[arg(value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    request: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    /// Send the request and wait for no reply. The exit code is 0 then, though the call may fail.
    #[arg(long)]
    one_way: bool,
    /// Send the request as it is, JSON or not, in the method's own codec.
    #[arg(long)]
    raw: bool,
    /// Send a pair beside the request, 8 KiB in all; may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// Give the call so long, in milliseconds, from connecting to the end of its reply; then it is
    /// cancelled.
    #[arg(long, value_name = "MS", value_parser = from::<u64>(0))]
    timeout_ms: Option<u64>,
}

/// The key under which methods of bytes take what they are to do with them.
const REQUEST: &str = "request";

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("give it as KEY=VALUE".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.metadata.iter().filter(|(key, _)| key == REQUEST).count() > 1 {
        let message = "--metadata gives the key 'request' more than once, of which a method heeds the first \
                       alone; give it once";
        return Err(misuse(message));
    }
    let source = Source::of(args.request.as_deref());
    let limit = Limit::of(args);
    let client = Arc::new(limit.connect(&args.endpoint.path()?)?);
    let answer = {
        let (client, wanted) = (Arc::clone(&client), args.method.clone());
        limit.hold("the server said what it takes", move || method::find(&client, &wanted))?
    };
    if args.one_way {
        check_one_way(&args.method, &answer)?;
    }
    let found = answer.found();
    let codec = found.and_then(Found::codec);
    let form = if args.raw || found.is_some_and(Found::takes_bytes) {
        Form::Bytes
    } else {
        // What is no bytes in a method of bytes is JSON as it stands.
        let own = matches!(codec, Some("json" | "raw"));
        let schema = found.and_then(Found::request_schema);
        Form::Json(Json { own, expected: schema.and_then(|it| Expected::of(&args.method, it)) })
    };
    // In a method of codec JSON nothing has to be said, nor to a server that says nothing itself.
    let says_json = matches!(form, Form::Json(Json { own: false, .. })) && codec.is_some();
    let mut metadata = Metadata::default();
    for (key, value) in &args.metadata {
        metadata.push(key, value.as_bytes());
    }
    let mut options = CallOptions::default().metadata(metadata);
    if let Some(deadline) = limit.deadline {
        options = options.deadline(deadline);
    }
    let call = Call {
        name: args.method.clone(),
        options: options.json(says_json),
        kind: match found {
            Some(found) => found.method.kind,
            // Only of a number the server may say nothing.
            None => method::number(&args.method).transpose()?.unwrap_or_default(),
        },
        client: Arc::clone(&client),
        is_described: found.is_some_and(|found| found.request_schema().is_some()),
        gives_bytes: found.is_some_and(Found::gives_bytes),
        shape: match found {
            _ if args.one_way => Shape::OneWay,
            Some(found) => found.method.shape,
            None => Shape::Unary,
        },
        limit: limit.clone(),
    };
    let bytes_max = client.agreement().request_bytes;
    // Standard input may be long in coming.
    let whole = |source: Source, form| {
        limit.hold("its input had come", move || Ok(source.whole(&form, bytes_max)?))
    };
    match call.shape {
        // Disconnecting would wait until the server has done what it says.
        Shape::OneWay => return call.one_way(&whole(source, form)?),
        Shape::Unary => call.unary(&whole(source, form)?),
        Shape::ServerStream => call.server_stream(&whole(source, form)?),
        Shape::ClientStream => call.client_stream(source.items(form, bytes_max)?),
        Shape::Duplex => call.duplex(source.items(form, bytes_max)?),
    }?;
    client.disconnect();
    Ok(())
}

/// Refuses a message that the server would drop: it says nothing of one that it has no use for.
fn check_one_way(name: &str, answer: &Answer) -> Result<(), InputError> {
    let shape = answer.found().map(|found| found.method.shape);
    match shape {
        None | Some(Shape::Unary | Shape::OneWay) => Ok(()),
        Some(shape @ (Shape::ServerStream | Shape::ClientStream | Shape::Duplex)) => {
            let shape = method::shape_name(shape);
            Err(InputError(format!("{name} is a stream ({shape}); call it without --one-way")))
        }
    }
}

/// A call that is to be made.
struct Call {
    client: Arc<IpcClient>,
    kind: u16,
    name: String,
    options: CallOptions,
    /// Whether the server says what the method takes.
    is_described: bool,
    /// Whether replies are bytes.
    gives_bytes: bool,
    shape: Shape,
    limit: Limit,
}

/// How often a call looks for the server's answer while it waits for input.
const LOOK: Duration = Duration::from_millis(20);

/// Items that are read before the ones ahead of them are sent.
const READ_AHEAD: usize = 4;

impl Call {
    fn failed(&self, source: CallError) -> anyhow::Error {
        if !matches!(source, CallError::DeadlineExceeded) {
            let (method, is_described) = (self.name.clone(), self.is_described);
            return CallFailed { method, source, is_described }.into();
        }
        self.limit.over(match self.shape {
            Shape::Unary | Shape::ClientStream => "its reply came",
            Shape::ServerStream | Shape::Duplex => "its stream ended",
            Shape::OneWay => "there was room for it",
        })
    }

    fn layout(&self, of_json: Layout) -> Layout {
        if self.gives_bytes { Layout::AsIs } else { of_json }
    }

    fn one_way(&self, message: &Vec<u8>) -> anyhow::Result<()> {
        let method = OneWay::<Vec<u8>, Raw>::new(self.kind, "");
        let sent = self.client.send_with(method, message, &self.options);
        sent.map_err(|error| self.failed(error))
    }

    fn unary(&self, request: &Vec<u8>) -> anyhow::Result<()> {
        let method = Unary::<Vec<u8>, Payload, Raw>::new(self.kind, "");
        let reply = self.client.call_with(method, request, &self.options);
        print(&reply.map_err(|error| self.failed(error))?, self.layout(Layout::Indented))
    }

    fn server_stream(self, request: &Vec<u8>) -> anyhow::Result<()> {
        let method = ServerStream::<Vec<u8>, Payload, Raw>::new(self.kind, "");
        let items = self.client.stream(method, request, &self.options);
        let items = items.map_err(|error| self.failed(error))?;
        while_read(move || self.print_each(items))
    }

    fn client_stream(&self, items: Items) -> anyhow::Result<()> {
        let method = ClientStream::<Vec<u8>, Payload, Raw>::new(self.kind, "");
        let upload = self.client.upload(method, &self.options);
        let mut upload = upload.map_err(|error| self.failed(error))?;
        let read = read_each(items);
        loop {
            match read.recv_timeout(LOOK) {
                Ok(item) => match upload.send(&item?) {
                    Ok(()) => {}
                    // The server has answered already, and its reply says how.
                    Err(CallError::StreamEnded) => break,
                    Err(error) => return Err(self.failed(error)),
                },
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    // What is dropped unfinished is cancelled: a part of the input is not the whole.
                    self.limit.check("its input ended")?;
                    if upload.is_answered() {
                        break;
                    }
                }
            }
        }
        let reply = upload.finish().map_err(|error| self.failed(error))?;
        print(&reply, self.layout(Layout::Indented))
    }

    fn duplex(self, items: Items) -> anyhow::Result<()> {
        let method = Duplex::<Vec<u8>, Payload, Raw>::new(self.kind, "");
        let halves = self.client.duplex(method, &self.options);
        let (sender, replies) = halves.map_err(|error| self.failed(error))?;
        let (told, ended) = mpsc::channel();
        // It may wait for input when the stream of replies is over. Nobody waits for it then.
        thread::spawn(move || send_each(sender, items, &told));
        let printed = while_read(move || self.print_each(replies));
        // Input that cannot be used ends the call: it, and not the call's end, is what went wrong.
        match ended.try_recv() {
            Ok(error) if !error.is::<CallError>() => Err(error),
            _ => printed,
        }
    }

    fn print_each(
        &self,
        items: impl Iterator<Item = Result<Payload, CallError>>,
    ) -> anyhow::Result<()> {
        for item in items {
            print(&item.map_err(|error| self.failed(error))?, self.layout(Layout::Line))?;
        }
        Ok(())
    }
}

/// Reads items in a thread of its own, which may wait for them when nobody waits for it any more. The channel ends
/// with the items.
fn read_each(mut items: Items) -> mpsc::Receiver<anyhow::Result<Vec<u8>>> {
    let (told, read) = mpsc::sync_channel(READ_AHEAD);
    thread::spawn(move || {
        while let Some(item) = items.next().transpose() {
            let is_last = item.is_err();
            if told.send(item).is_err() || is_last {
                break;
            }
        }
    });
    read
}

/// Sends items while they come. What keeps it from that is told before the call is given up for it.
fn send_each(
    mut sender: ItemSender<Vec<u8>, Raw>,
    mut items: Items,
    told: &mpsc::Sender<anyhow::Error>,
) {
    let sent = (|| -> anyhow::Result<()> {
        while let Some(item) = items.next()? {
            sender.send(&item)?;
        }
        Ok(())
    })();
    match sent {
        // A call that failed or ended says so itself, in its replies.
        Ok(()) => drop(sender.finish()),
        Err(error) => {
            let _ = told.send(error);
        }
    }
}
