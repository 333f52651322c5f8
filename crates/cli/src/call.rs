//! `lapwing call`.

use std::fs::File;
use std::io::{self, Read};

use anyhow::bail;
use lapwing::blocking::IpcClient;
use lapwing::methods::{Method, Shape};
use lapwing::{CallError, CallOptions, Payload, Raw, ServerStream};

use crate::args::Endpoint;
use crate::exit::{CallFailed, InputError};
use crate::{json, output};

/// Call one method and print its reply.
#[derive(clap::Args, Debug)]
#[command(after_help = "EXAMPLES:
  lapwing call fs.list
  lapwing call fs.list '{\"path\": \"src\", \"recursive\": false}'
  lapwing call fs.read '{\"path\": \"README.md\"}' | jq -r .content
  lapwing call fs.search @query.json
  lapwing call fs.search.stream '{\"pattern\": \"TODO\"}' | head
  echo '{\"pattern\": \"TODO\"}' | lapwing call 0x0310 -

A reply that is JSON is indented on a terminal and one line elsewhere; other replies are printed as
they are. A method that answers with a stream prints each item on a line as it comes. When the server answers with an error, the exit code is 5.")]
pub(crate) struct Args {
    /// A name that `lapwing describe` lists, or a number such as 0x0310.
    #[arg(value_name = "METHOD")]
    method: String,
    /// The request: JSON, @FILE to read it from a file, or - for standard input. Without it the
    /// request is empty.
    #[arg(value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    request: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    /// Send the request and wait for no reply.
    #[arg(long)]
    one_way: bool,
    /// Send the request as it is, JSON or not.
    #[arg(long)]
    raw: bool,
}

/// The longest request that is read, in bytes: no server can be set to take a longer one.
const REQUEST_BYTES_MAX: u64 = 1 << 30;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let request = args.request()?;
    let client = IpcClient::connect(args.endpoint.path()?)?;
    let (kind, shape) = match number(&args.method) {
        Some(kind) if args.one_way => (kind, Shape::OneWay),
        // A server that does not describe itself may still have it.
        Some(kind) => {
            (kind, described(&client, |method| method.kind == kind)?.unwrap_or(Shape::Unary))
        }
        None => {
            let method = find(&client, &args.method)?;
            (method.kind, if args.one_way { Shape::OneWay } else { method.shape })
        }
    };
    let failed = |source| CallFailed { method: args.method.clone(), source };
    if shape == Shape::ServerStream {
        if kind < 0x0100 {
            return Err(failed(CallError::BadKind(kind)).into());
        }
        let method = ServerStream::<Vec<u8>, Payload, Raw>::new(kind, "");
        let items = client.stream(method, &request, &CallOptions::default()).map_err(failed)?;
        for item in items {
            print(&item.map_err(failed)?, Layout::Line)?;
        }
        client.disconnect();
        return Ok(());
    }
    if shape == Shape::OneWay {
        client.send_oneway(kind, &request).map_err(failed)?;
        client.disconnect();
        return Ok(());
    }
    let reply = client.call_raw(kind, &request).map_err(failed)?;
    client.disconnect();
    print(&reply, Layout::Indented)
}

/// How JSON is printed on a terminal. Elsewhere it is one line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Indented,
    Line,
}

fn described(
    client: &IpcClient,
    wanted: impl Fn(&Method) -> bool,
) -> Result<Option<Shape>, CallError> {
    match client.describe() {
        Ok(methods) => Ok(methods.into_iter().find(wanted).map(|method| method.shape)),
        Err(CallError::Status(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Args {
    fn request(&self) -> anyhow::Result<Vec<u8>> {
        let (bytes, source) = match self.request.as_deref() {
            None => return Ok(Vec::new()),
            Some("-") => (read(io::stdin().lock()), "standard input"),
            Some(text) => match text.strip_prefix('@') {
                Some(file) => (File::open(file).and_then(read), file),
                None => (Ok(text.as_bytes().to_vec()), "the request"),
            },
        };
        let bytes = bytes.map_err(|error| InputError(format!("cannot read {source}: {error}")))?;
        if !self.raw && !bytes.is_empty() {
            json::check(&bytes).map_err(|error| {
                InputError(format!("{source} is not JSON: {error}; mend it, or send it with --raw"))
            })?;
        }
        Ok(bytes)
    }
}

fn read(source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(REQUEST_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > REQUEST_BYTES_MAX {
        return Err(io::Error::other("it is longer than 1 GiB, which no server takes"));
    }
    Ok(bytes)
}

/// The method as a number, if that is how it was given.
fn number(method: &str) -> Option<u16> {
    let (digits, radix) = match method.strip_prefix("0x").or_else(|| method.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (method, 10),
    };
    // A sign, which the parser would take, makes it a name.
    let plain = digits.chars().all(|digit| digit.is_digit(radix));
    u16::from_str_radix(digits, radix).ok().filter(|_| plain)
}

fn find(client: &IpcClient, name: &str) -> anyhow::Result<Method> {
    let mut methods = client.describe()?;
    let Some(at) = methods.iter().position(|method| method.name == name) else {
        let mut names: Vec<_> = methods.into_iter().map(|method| method.name).collect();
        names.sort_unstable();
        names.truncate(20);
        let known = match names.is_empty() {
            true => "it has none".to_owned(),
            false => format!("it has {}", names.join(", ")),
        };
        bail!(InputError(format!("the server has no method '{name}'; {known}")));
    };
    let method = methods.swap_remove(at);
    if matches!(method.shape, Shape::ClientStream | Shape::Duplex) {
        let message =
            format!("'{name}' takes a stream of requests, which this command cannot send");
        bail!(InputError(message));
    }
    Ok(method)
}

fn print(reply: &[u8], layout: Layout) -> anyhow::Result<()> {
    let text = std::str::from_utf8(reply).ok();
    let json = text.filter(|_| json::check(reply).is_ok());
    match (json, text) {
        (Some(json), _) if output::is_terminal() => {
            let text = match layout {
                Layout::Indented => json::pretty(json),
                Layout::Line => json::escaped(json),
            };
            output::raw(&[text.as_bytes(), b"\n"])?;
        }
        (Some(json), _) => output::raw(&[json.as_bytes(), b"\n"])?,
        (None, _) if !output::is_terminal() => output::raw(&[reply])?,
        (None, Some(text)) => {
            // Line by line, so that nothing in it steers the terminal.
            let lines: Vec<_> = text.lines().map(output::plain).collect();
            output::raw(&[lines.join("\n").as_bytes(), b"\n"])?;
        }
        (None, None) => {
            let count = output::counted(reply.len() as u64, "byte", "bytes");
            let line =
                format!("({count} that are not text; send the output to a file to have them)");
            output::raw(&[line.as_bytes(), b"\n"])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_numbers_in_hexadecimal_or_decimal_and_names_otherwise() {
        assert_eq!(number("0x0310"), Some(0x310));
        assert_eq!(number("0XFFFF"), Some(0xFFFF));
        assert_eq!(number("784"), Some(784));
        for name in ["fs.search", "0x", "0x10000", "65536", "-1", "", "+784", "0x+1f"] {
            assert_eq!(number(name), None, "{name}");
        }
    }
}
