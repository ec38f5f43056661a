//! The command line. Each subcommand is one file here and one line in [`Command`].

pub mod bench;
pub mod check;
pub mod completions;
pub mod config;
pub mod fetch;
pub mod files;
pub mod input;
pub mod key;
pub mod list;
pub mod live;
pub mod logging;
pub mod man;
pub mod metrics;
pub mod models;
pub mod plan;
pub mod predict;
pub mod probe;
pub mod results;
pub mod run;
pub mod summary;
pub mod test;
pub mod top;
pub mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything is fine.
pub const SUCCESS: u8 = 0;
/// Mistakes were found, or something failed.
pub const FAILURE: u8 = 1;
/// The command line is wrong, or a file cannot be read. `clap` exits with the same.
pub const USAGE: u8 = 2;

/// A dataflow engine for live video and audio, driven by declarative graph files.
#[derive(Parser)]
#[command(name = "engine", version, after_help = "Each command has examples: engine COMMAND --help")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<run::Arguments>),
    Check(check::Arguments),
    Plan(plan::Arguments),
    List(list::Arguments),
    Test(test::Arguments),
    Bench(bench::Arguments),
    Probe(probe::Arguments),
    Top(top::Arguments),
    Key(key::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
    Models(models::Arguments),
}

/// Reads the process's arguments and does what they say.
pub fn main() -> ExitCode {
    let code = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Probe(arguments) => probe::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Key(arguments) => key::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
        Command::Models(arguments) => models::run(&arguments),
    };
    ExitCode::from(input::exit_code(code))
}
