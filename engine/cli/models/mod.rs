//! `engine models`: what models there are, and whether they are sound. Each subcommand is one file here.

mod bench;
mod inspect;
mod list;
mod pull;
mod verify;

use operators::inference::model::{Catalog, ModelError};

use super::{FAILURE, SUCCESS, input};

/// Lists, fetches, verifies, measures and inspects models
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    List(list::Arguments),
    Pull(pull::Arguments),
    Verify(verify::Arguments),
    Bench(bench::Arguments),
    Inspect(inspect::Arguments),
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    match &arguments.command {
        Command::List(arguments) => list::run(arguments),
        Command::Pull(arguments) => pull::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
    }
}

/// The models that were named, or all that there are.
fn chosen(names: &[String], catalog: &Catalog) -> Vec<String> {
    if names.is_empty() { catalog.names().map(str::to_owned).collect() } else { names.to_vec() }
}

fn print_error(message: &str, hint: Option<&str>) {
    let hint = hint.filter(|hint| !hint.is_empty()).map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
    input::print_error(&format!("error: {message}\n{hint}"));
}

fn print_model_error(error: &ModelError) {
    print_error(&error.to_string(), Some(&error.hint()));
}

fn code(failed: bool) -> u8 {
    if failed { FAILURE } else { SUCCESS }
}
