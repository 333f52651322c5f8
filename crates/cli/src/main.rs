//! The `lapwing` command.
//!
//! Every subcommand returns an error or nothing; [`exit`] alone turns errors into sentences and exit
//! codes.
// One promise is made, that the peers of `bench in-place` cooperate, and it allows itself.
#![deny(unsafe_code)]

mod args;
mod bench;
mod call;
mod completions;
mod demo;
mod describe;
mod exit;
mod json;
mod method;
mod output;
mod ping;
mod serve;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command, Own};

fn main() -> ExitCode {
    let ended = match Own::parse_if_meant() {
        Some(own) => own.map_err(Into::into).and_then(run_own),
        None => Cli::try_parse().map_err(Into::into).and_then(|cli| run(cli.command)),
    };
    exit::report(ended).into()
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Ping(args) => ping::run(&args),
        Command::Call(args) => call::run(&args),
        Command::Describe(args) => describe::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}

fn run_own(own: Own) -> anyhow::Result<()> {
    match own {
        Own::DemoEngine(args) => demo::run_engine(&args),
        Own::BenchPeer(args) => bench::run_peer(&args),
    }
}
