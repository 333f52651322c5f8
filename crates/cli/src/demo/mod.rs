//! `lapwing demo`: an engine process and an editor process at work on real files, and what a call costs.

mod cost;
mod engine;
mod story;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use tokio::runtime;

use self::engine::Engine;
pub(crate) use self::engine::{EngineArgs, run_engine};
use crate::exit::InputError;
use crate::output::{DIM, GOOD, HEADING, NAME, Out, StdoutError, styled};
use crate::serve;

/// Start an engine, work with it as an editor would, and measure what a call costs.
#[derive(clap::Args, Debug)]
#[command(after_help = "EXAMPLES:
  lapwing demo                                on the current directory
  lapwing demo --root ~/project --pattern 'TODO|FIXME'

It changes no file, and leaves none behind. The last part measures for a second or more.")]
pub(crate) struct Args {
    /// The directory to work on.
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// What to search for: a regular expression.
    #[arg(long, value_name = "REGEX", default_value = r"\bmain\b")]
    pattern: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    // Opened and dropped: what is wrong with it is said once, and here.
    drop(serve::open(&args.root)?);
    let root = args.root.canonicalize().map_err(|error| {
        InputError(format!("cannot use the directory {}: {error}", args.root.display()))
    })?;
    let mut screen = Screen { out: Out::lock() };
    screen.out.line(styled(
        HEADING,
        "lapwing demo: an engine process and an editor process, over shared memory",
    ))?;
    screen.out.line("")?;

    let mut engine = Engine::start(&root)?;
    screen.line("engine", format_args!("process {} serves {}", engine.pid(), root.display()))?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("could not start the runtime")?;
    runtime.block_on(story::tell(&mut screen, engine.socket(), &root, &args.pattern))?;
    runtime.shutdown_background();

    cost::measure(&mut screen, &mut engine)?;

    let ended = engine.stop()?;
    ensure!(ended.process.success(), "the engine process failed: {}", ended.process);
    ensure!(ended.nothing_left, "the engine process left its socket behind");
    screen.out.line("")?;
    screen.line("end", styled(GOOD, "the engine process has ended and left nothing behind"))?;
    Ok(())
}

/// What the demo prints to: a word that says which step, then what happened.
struct Screen {
    out: Out,
}

impl Screen {
    fn line(&mut self, step: &str, what: impl std::fmt::Display) -> Result<(), StdoutError> {
        self.out.line(format_args!("  {} {what}", styled(NAME, format_args!("{step:<7}"))))
    }

    /// More on the step of the line above.
    fn more(&mut self, what: impl std::fmt::Display) -> Result<(), StdoutError> {
        self.out.line(format_args!("          {}", styled(DIM, what)))
    }
}
