//! The command line as a whole, and what several subcommands share.

use std::env;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use lapwing::{EndpointError, Spin};

use crate::{bench, call, completions, demo, describe, exit, ping, serve};

/// Calls between processes on one machine, over shared memory.
#[derive(Parser, Debug)]
#[command(
    name = "lapwing",
    version,
    max_term_width = 100,
    after_help = "EXAMPLES:
  lapwing demo                      an engine and an editor at work
  lapwing serve --root ~/project    serve a directory
  lapwing call fs.search '{\"pattern\": \"TODO\"}'
  lapwing ping

Long help, with the exit codes: lapwing --help",
    after_long_help = exit::long_help()
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Start an engine, work with it as an editor would, and measure what a call costs.
    Demo(demo::Args),
    /// Serve the files below a directory: list, read, search, watch; --writable to change them.
    Serve(serve::Args),
    /// Measure the time to a server and back.
    Ping(ping::Args),
    /// Call one method and print its reply.
    Call(call::Args),
    /// List the methods of a server, or say what one of them takes and gives.
    Describe(describe::Args),
    /// Measure throughput and latency against what the machine itself costs.
    Bench(bench::Args),
    /// Print the completions of a shell.
    Completions(completions::Args),
}

/// What this program starts itself as. It is no part of [`Cli`]: a hidden subcommand of it would still be completed.
#[derive(Parser, Debug)]
#[command(name = "lapwing")]
pub(crate) enum Own {
    /// The other process of `demo`.
    DemoEngine(demo::EngineArgs),
    /// The other process of `bench`.
    BenchPeer(bench::PeerArgs),
}

impl Own {
    /// Whether the command line is one of these, and what it comes to then.
    pub(crate) fn parse_if_meant() -> Option<Result<Own, clap::Error>> {
        let command = env::args_os().nth(1)?;
        let is_meant = Own::has_subcommand(command.to_str()?);
        is_meant.then(Own::try_parse)
    }
}

/// A mistake on the command line that lies in several options together.
pub(crate) fn misuse(message: &str) -> anyhow::Error {
    Cli::command().error(ErrorKind::ArgumentConflict, message).into()
}

/// Where the server listens.
#[derive(Args, Clone, Debug)]
pub(crate) struct Endpoint {
    /// The server's socket, as a path.
    #[arg(long, value_name = "PATH", conflicts_with = "name")]
    socket: Option<PathBuf>,
    /// The server's name: its socket is NAME.sock in your runtime directory.
    #[arg(long, value_name = "NAME", default_value = "lapwing")]
    name: String,
}

impl Endpoint {
    /// The path of the socket.
    pub(crate) fn path(&self) -> Result<PathBuf, EndpointError> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => lapwing::endpoint_path(&self.name),
        }
    }
}

/// Reads a whole number of at least `min`.
pub(crate) fn from<T: TryFrom<u64>>(min: u64) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| *number >= min);
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| format!("give a whole number from {min}"))
    }
}

/// Who waits by looking, and who by sleeping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum SpinPolicy {
    /// Sleep at once: the least processor time.
    Never,
    /// Look for some microseconds while calls come in quick succession, then sleep.
    Adaptive,
    /// Look all the time: the least latency, one core in full use.
    Always,
}

impl From<SpinPolicy> for Spin {
    fn from(policy: SpinPolicy) -> Spin {
        match policy {
            SpinPolicy::Never => Spin::Never,
            SpinPolicy::Adaptive => Spin::Adaptive,
            SpinPolicy::Always => Spin::Always,
        }
    }
}
