//! `lapwing describe`.

mod schema;

use lapwing::blocking::IpcClient;
use lapwing::methods::{Method, Shape};
use serde::Serialize;
use serde_json::Value;

use crate::args::Endpoint;
use crate::exit::InputError;
use crate::method::{Answer, Found, detailed, find, shape_name};
use crate::output::{self, HEADING, NAME, Out, plain, styled};

/// List the methods of a server, or say what one of them takes and gives.
#[derive(clap::Args, Debug)]
#[command(after_help = "EXAMPLES:
  lapwing describe
  lapwing describe fs.search          what it takes and gives
  lapwing describe --name engine
  lapwing describe --json | jq -r '.[].name'
  lapwing describe fs.search --json | jq .request_schema

What a method takes and gives is known where its server has JSON Schema for it, or where it is \
bytes.")]
pub(crate) struct Args {
    /// One method to say all of: its name, or a number such as 0x0310.
    #[arg(value_name = "METHOD")]
    method: Option<String>,
    #[command(flatten)]
    endpoint: Endpoint,
    /// One JSON array of {kind, name, shape, codec, request_schema, reply_schema} instead of a table; for
    /// one method, such an object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row<'a> {
    kind: u16,
    name: &'a str,
    shape: &'static str,
    codec: Option<&'a str>,
    request_schema: Option<Value>,
    reply_schema: Option<Value>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let client = IpcClient::connect(args.endpoint.path()?)?;
    if let Some(wanted) = &args.method {
        let Answer::Found(found) = find(&client, wanted)? else {
            let message = format!("the server does not say what its method {wanted} is");
            return Err(InputError(message).into());
        };
        client.disconnect();
        return if args.json { print_json(&row(&found)) } else { print_method(&found) };
    }
    let mut methods = all(&client)?;
    client.disconnect();
    methods.sort_by_key(|found| found.method.kind);
    if args.json {
        return print_json(&methods.iter().map(row).collect::<Vec<_>>());
    }
    print_table(&methods)
}

/// Every method with what the server says of it: one question each, until one shows that it is not understood.
fn all(client: &IpcClient) -> anyhow::Result<Vec<Found>> {
    let mut found = Vec::new();
    for method in client.describe()? {
        let silent = found.last().is_some_and(|last: &Found| last.older_server);
        found.push(match silent {
            true => Found::undescribed(method),
            false => detailed(client, method)?,
        });
    }
    Ok(found)
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut json = serde_json::to_vec(value)?;
    json.push(b'\n');
    Ok(output::raw(&[&json])?)
}

fn row(found: &Found) -> Row<'_> {
    // What is no JSON is shown as the text that it is.
    let value =
        |text: &String| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()));
    let schema = |text: Option<&String>| text.map(value);
    let details = found.details.as_ref();
    Row {
        kind: found.method.kind,
        name: &found.method.name,
        shape: shape_name(found.method.shape),
        codec: found.codec(),
        request_schema: schema(details.and_then(|details| details.request_schema.as_ref())),
        reply_schema: schema(details.and_then(|details| details.reply_schema.as_ref())),
    }
}

/// What stands for a codec that an older server does not tell.
const UNKNOWN: &str = "unknown";

fn print_table(methods: &[Found]) -> anyhow::Result<()> {
    let names = methods.iter().map(|found| found.method.name.chars().count());
    let width = names.chain([4]).max().unwrap_or_default();
    let mut out = Out::lock();
    out.line(styled(HEADING, format!("KIND    {:width$}  {:13}  CODEC", "NAME", "SHAPE")))?;
    for found in methods {
        let Method { kind, name, shape } = &found.method;
        let (shape, padded) = (shape_name(*shape), format!("{name:width$}"));
        let codec = found.codec().unwrap_or(UNKNOWN);
        out.line(format_args!("{kind:#06x}  {}  {shape:13}  {codec}", styled(NAME, padded)))?;
    }
    Ok(())
}

fn print_method(found: &Found) -> anyhow::Result<()> {
    let Method { kind, name, shape } = &found.method;
    let row = row(found);
    let mut out = Out::lock();
    let codec = found.codec().unwrap_or(UNKNOWN);
    out.line(format_args!("{}  {kind:#06x}  {}  {codec}", styled(NAME, name), shape_name(*shape)))?;
    let items = |streams: bool| if streams { ", each item" } else { "" };
    let request = items(matches!(shape, Shape::ClientStream | Shape::Duplex));
    let reply = items(matches!(shape, Shape::ServerStream | Shape::Duplex));
    let how = format!(
        "Bytes, as they are: `lapwing call {name} @FILE` sends those of a file, `-` in its place those of \
         standard input."
    );
    let bytes = found.takes_bytes().then_some(how.as_str());
    print_side(&mut out, &format!("Request{request}"), row.request_schema.as_ref(), bytes)?;
    if *shape != Shape::OneWay {
        let how = "Bytes, as they are: `> FILE` behind the call writes them to a file.";
        let bytes = found.gives_bytes().then_some(how);
        print_side(&mut out, &format!("Reply{reply}"), row.reply_schema.as_ref(), bytes)?;
    }
    Ok(())
}

/// What goes one way: `bytes` says how, where it is no JSON.
fn print_side(
    out: &mut Out,
    what: &str,
    schema: Option<&Value>,
    bytes: Option<&str>,
) -> anyhow::Result<()> {
    out.line("")?;
    out.line(styled(HEADING, what))?;
    if let Some(bytes) = bytes {
        out.line(format_args!("  {}", plain(bytes)))?;
    }
    let lines = match (schema, bytes) {
        (Some(schema), Some(_)) => schema::beside_bytes(schema),
        (Some(schema), None) => schema::lines(schema),
        (None, Some(_)) => Vec::new(),
        (None, None) => vec!["  The server does not say.".to_owned()],
    };
    for line in lines {
        out.line(line)?;
    }
    Ok(())
}
