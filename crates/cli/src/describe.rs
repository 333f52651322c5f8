//! `lapwing describe`.

use lapwing::blocking::IpcClient;
use lapwing::methods::{Method, Shape};
use serde::Serialize;

use crate::args::Endpoint;
use crate::output::{self, HEADING, NAME, Out, styled};

/// List the methods of a server.
#[derive(clap::Args, Debug)]
#[command(after_help = "EXAMPLES:
  lapwing describe
  lapwing describe --name engine
  lapwing describe --json | jq -r '.[].name'")]
pub(crate) struct Args {
    #[command(flatten)]
    endpoint: Endpoint,
    /// One JSON array of {kind, name, shape} instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row<'a> {
    kind: u16,
    name: &'a str,
    shape: &'static str,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let client = IpcClient::connect(args.endpoint.path()?)?;
    let mut methods = client.describe()?;
    client.disconnect();
    methods.sort_by_key(|method| method.kind);
    if args.json {
        let row = |m| -> Row<'_> { row(m) };
        let mut json = serde_json::to_vec(&methods.iter().map(row).collect::<Vec<_>>())?;
        json.push(b'\n');
        return Ok(output::raw(&[&json])?);
    }
    print_table(&methods)
}

fn row(method: &Method) -> Row<'_> {
    let shape = match method.shape {
        Shape::Unary => "unary",
        Shape::OneWay => "one-way",
        Shape::ServerStream => "server-stream",
        Shape::ClientStream => "client-stream",
        Shape::Duplex => "duplex",
    };
    Row { kind: method.kind, name: &method.name, shape }
}

fn print_table(methods: &[Method]) -> anyhow::Result<()> {
    let names = methods.iter().map(|method| method.name.chars().count());
    let width = names.chain([4]).max().unwrap_or_default();
    let mut out = Out::lock();
    out.line(styled(HEADING, format!("KIND    {:width$}  SHAPE", "NAME")))?;
    for method in methods {
        let Row { kind, name, shape } = row(method);
        let padded = format!("{name:width$}");
        out.line(format_args!("{kind:#06x}  {}  {shape}", styled(NAME, padded)))?;
    }
    Ok(())
}
