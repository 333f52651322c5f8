//! `lapwing completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::output;

/// Print the completions of a shell.
#[derive(clap::Args, Debug)]
#[command(after_help = "EXAMPLES:
  lapwing completions bash > ~/.local/share/bash-completion/completions/lapwing
  lapwing completions zsh > ~/.zfunc/_lapwing
  lapwing completions fish > ~/.config/fish/completions/lapwing.fish")]
pub(crate) struct Args {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lapwing", &mut script);
    Ok(output::raw(&[&script])?)
}
