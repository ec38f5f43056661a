//! `engine plan`: shows how a graph would run.

use std::path::PathBuf;

use super::input::{self, Settings, Tell};
use super::predict::PredictArguments;
use super::run::failed;
use super::{FAILURE, SUCCESS};
use crate::graph::check::Surroundings;
use crate::graph::diagram::Diagram;
use crate::graph::explain::explain;
use crate::graph::planner::{PlanOptions, build_plan};

/// The format of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum PlanFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// A drawing for Graphviz.
    Dot,
    /// A drawing for Markdown pages that render Mermaid.
    Mermaid,
}

/// Shows how a graph would run: what each source must deliver, what was pushed down, threads and memory
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine plan graphs/quickstart.toml
  engine plan graphs/quickstart.toml --workers 2 --pool-threads 4
  engine plan door.toml --set threshold=0.7 --format json
  engine plan door.toml --predict-model person --predict-max-pixels 8000000
  engine plan door.toml --format dot | dot -Tsvg > door.svg
  engine plan door.toml --format mermaid")]
pub struct Arguments {
    /// The graph file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How to print the plan
    #[arg(long, value_enum, default_value_t)]
    format: PlanFormat,
    /// Take a [chaos] as `engine run --chaos` does
    #[arg(long)]
    chaos: bool,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    predict: PredictArguments,
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
    let surroundings = Surroundings { chaos: arguments.chaos, ..input::surroundings() };
    let graph = match input::graph(&arguments.file, &arguments.settings, &surroundings, Tell::Mistakes) {
        Ok(graph) => graph,
        Err(code) => return code,
    };
    let plan = build_plan(&graph, arguments.threads.options());
    let predict_memory = match arguments.predict.memory(&plan, &surroundings.models) {
        Ok(memory) => memory,
        Err(error) => return failed(&error),
    };
    let explained = || explain(&plan, &graph.secrets).with_predict(predict_memory.clone());
    match arguments.format {
        PlanFormat::Text => input::print(&explained().text()),
        PlanFormat::Json => match serde_json::to_string_pretty(&explained()) {
            Ok(json) => input::print(&format!("{json}\n")),
            Err(error) => {
                input::print_error(&format!("error: the plan cannot be written as JSON: {error}\n"));
                return FAILURE;
            }
        },
        PlanFormat::Dot => input::print(&Diagram::new(&plan, &graph.secrets).dot()),
        PlanFormat::Mermaid => input::print(&Diagram::new(&plan, &graph.secrets).mermaid()),
    }
    SUCCESS
}
