//! `engine plan`: shows how a graph would run.

use std::path::PathBuf;

use super::input::{self, Format, GraphFile, Settings};
use super::{FAILURE, SUCCESS, USAGE};
use crate::graph::explain::explain;
use crate::graph::planner::{PlanOptions, build_plan};

/// Shows how a graph would run: what each source must deliver, what was pushed down, threads and memory
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine plan graphs/quickstart.toml
  engine plan graphs/quickstart.toml --workers 2 --pool-threads 4
  engine plan door.toml --set threshold=0.7 --format json")]
pub struct Arguments {
    /// The graph file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How to print the plan
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    settings: Settings,
}

/// How many threads, for every command that plans a graph.
#[derive(clap::Args)]
pub struct Threads {
    /// Dataflow workers [default: one for each eight cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// Threads for inference and other heavy work [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub pool_threads: Option<u16>,
}

impl Threads {
    /// With the number of cores of this machine.
    pub fn options(&self) -> PlanOptions {
        PlanOptions {
            workers: self.workers.map(usize::from),
            pool_threads: self.pool_threads.map(usize::from),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    let file = match GraphFile::read(&arguments.file) {
        Ok(file) => file,
        Err(unreadable) => {
            input::print_error(&format!("error: {unreadable}\n"));
            return USAGE;
        }
    };
    let checked = file.check(&arguments.settings.settings, &input::surroundings());
    let Some(graph) = &checked.graph else {
        input::print_error(&file.render(&checked, input::colour(&std::io::stderr())));
        return FAILURE;
    };
    let explanation = explain(&build_plan(graph, arguments.threads.options()), &graph.secrets);
    match arguments.format {
        Format::Text => input::print(&explanation.text()),
        Format::Json => match serde_json::to_string_pretty(&explanation) {
            Ok(json) => input::print(&format!("{json}\n")),
            Err(error) => {
                input::print_error(&format!("error: the plan cannot be written as JSON: {error}\n"));
                return FAILURE;
            }
        },
    }
    SUCCESS
}
