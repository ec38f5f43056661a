//! `engine bench`: how fast a graph runs, beside what this machine could do at most.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use operators::clock::{Clock, SystemClock};
use operators::config::{format_size, parse_duration};
use operators::error::StartError;
use serde::Serialize;

use super::SUCCESS;
use super::input::{self, Format, Settings, Tell};
use super::live::Terminal;
use super::logging::{self, LogFormat};
use super::plan::Threads;
use super::run::failed;
use crate::bench::measure::{Measured, Window, measure};
use crate::bench::sequential::{limit, stages_alone};
use crate::graph::plan::Plan;
use crate::graph::planner::build_plan;
use crate::runtime::process::cores;

/// Measures a graph: throughput, age of results, processor time and memory, beside the limit of this machine
///
/// The limit is measured in the same run on the same file: as many plain loops of decode, preprocess and infer as
/// there are cores, without dataflow, queues or further threads. Sources that keep their own pace have no limit.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine bench benches/graphs/classify.toml --frames 3000
  engine bench door.toml --seconds 20 --warmup 200 --format json
  engine bench door.toml --seconds 5 --no-limit")]
pub struct Arguments {
    /// The graph file; its own sinks are written to
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Measure this long [default: 10s unless --frames is given]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Measure this many pictures
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    frames: Option<u64>,
    /// Pictures before the clock starts
    #[arg(long, value_name = "N", default_value_t = 100)]
    warmup: u64,
    /// Leave out the limit and the stages alone
    #[arg(long)]
    no_limit: bool,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    settings: Settings,
}

/// Plain seconds, or a length of time.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && (0.0..1e9).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => parse_duration(text),
    }
}

/// The longest that the limit is measured.
const LONGEST_LIMIT: Duration = Duration::from_secs(10);
/// Further above the limit no graph runs: then run and limit were measured under different loads.
const MOST_OF_THE_LIMIT: f64 = 1.1;
/// How often each stage runs alone.
const ROUNDS: usize = 100;

/// What `--format json` prints.
#[derive(Serialize)]
struct BenchResult<'a> {
    graph: &'a str,
    cores: usize,
    workers: usize,
    pool_threads: usize,
    #[serde(flatten)]
    measured: &'a Measured,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Limit>,
    /// Throughput over the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    stages: Vec<Stage>,
    /// Why the numbers may mean less than they say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Clone, Copy, Serialize)]
struct Limit {
    loops: usize,
    fps: f64,
}

/// What a stage costs.
#[derive(Serialize)]
struct Stage {
    stage: String,
    /// For one picture, when nothing else runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    alone_ms: Option<f64>,
    /// For one item, in the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    busy_ms: Option<f64>,
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    let surroundings = input::surroundings();
    let graph = match input::graph(&arguments.file, &arguments.settings, &surroundings, Tell::Mistakes) {
        Ok(graph) => graph,
        Err(code) => return code,
    };
    let terminal = Terminal::new(false);
    if let Err(error) = logging::start(LogFormat::Text, Some("warn"), &terminal) {
        return failed(&error);
    }
    let plan = || build_plan(&graph, arguments.threads.options());
    match bench(arguments, &plan) {
        Ok(text) => {
            input::print(&text);
            SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn bench(arguments: &Arguments, plan: &dyn Fn() -> Plan) -> Result<String, StartError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let the_plan = plan();
    let window = Window {
        warm_up: arguments.warmup,
        frames: arguments.frames,
        time: arguments.seconds.or(arguments.frames.is_none().then_some(Duration::from_secs(10))),
    };
    let (graph, workers, pool_threads) = (the_plan.graph.clone(), the_plan.workers, the_plan.pool_threads);
    let has_limit = !arguments.no_limit && the_plan.sources.first().is_some_and(|source| !source.source.is_live());
    drop(the_plan);
    let measured = measure(plan(), window, &clock)?;
    let time = Duration::from_secs_f64(measured.seconds).clamp(Duration::from_secs(1), LONGEST_LIMIT);
    let (mut the_limit, mut stages) = (None, Vec::new());
    if has_limit {
        let plan = plan();
        let loops = cores();
        the_limit = limit(&plan, true, loops, time, &clock)?.map(|sum| Limit { loops, fps: sum.frames_a_second });
        let decode = limit(&plan, false, 1, time.min(Duration::from_secs(3)), &clock)?;
        let alone_ms = decode.filter(|result| result.frames > 0).map(|result| 1000.0 / result.frames_a_second);
        stages.push(Stage { stage: "decode".into(), alone_ms, busy_ms: None });
        for (name, alone) in stages_alone(&plan, ROUNDS, &clock)? {
            let busy_ms = measured.busy_ms.get(&*name).copied();
            stages.push(Stage { stage: name.to_string(), alone_ms: Some(alone), busy_ms });
        }
    }
    for (name, busy) in &measured.busy_ms {
        if !stages.iter().any(|stage| stage.stage == *name) {
            stages.push(Stage { stage: name.clone(), alone_ms: None, busy_ms: Some(*busy) });
        }
    }
    let ratio = the_limit.filter(|limit| limit.fps > 0.0).map(|limit| measured.throughput_fps / limit.fps);
    let warnings = ratio.and_then(doubt).into_iter().collect();
    let result = BenchResult {
        warnings,
        graph: &graph,
        cores: cores(),
        workers,
        pool_threads,
        measured: &measured,
        limit: the_limit,
        ratio,
        stages,
    };
    match arguments.format {
        Format::Text => Ok(text(&result)),
        Format::Json => serde_json::to_string_pretty(&result)
            .map(|json| format!("{json}\n"))
            .map_err(|error| StartError::new(format!("the result cannot be written as JSON: {error}"))),
    }
}

/// What to say where a graph seems to have outrun its limit.
fn doubt(ratio: f64) -> Option<String> {
    (ratio > MOST_OF_THE_LIMIT).then(|| {
        format!(
            "the graph ran at {ratio:.2} of the limit, which cannot be: the limit is measured after the run, and the \
             machine was busier then; measure again on a machine with nothing else to do"
        )
    })
}

fn text(result: &BenchResult<'_>) -> String {
    let measured = result.measured;
    let mut text = format!(
        "graph `{}`: {} pictures in {:.2} s on {} cores ({} workers, {} pool threads)\n\n",
        result.graph, measured.counts.read, measured.seconds, result.cores, result.workers, result.pool_threads
    );
    let mut line = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<28}{value}");
    };
    line("throughput", format!("{:.1} pictures/s, {:.1} results/s", measured.throughput_fps, measured.delivered_fps));
    if let (Some(limit), Some(ratio)) = (result.limit, result.ratio) {
        line("limit", format!("{:.1} pictures/s ({} plain loops side by side)", limit.fps, limit.loops));
        line("of the limit", format!("{ratio:.3}"));
    }
    let age = measured.age_ms;
    line(
        "age of results",
        format!("p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms", age.p50, age.p90, age.p99, age.max),
    );
    line(
        "processor time",
        format!("{:.2} s, {:.3} s for 1000 pictures", measured.cpu_seconds, measured.cpu_seconds_per_1000_frames),
    );
    line("peak memory", format_size(measured.peak_resident_bytes));
    let counts = measured.counts;
    line("dropped, rejected, lost", format!("{}, {}, {}", counts.dropped, counts.rejected, counts.lost));
    text.push_str("\nstage                       alone ms   in the run ms\n");
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
    for stage in &result.stages {
        let _ = writeln!(text, "{:<28}{:>8}   {:>13}", stage.stage, number(stage.alone_ms), number(stage.busy_ms));
    }
    for warning in &result.warnings {
        let _ = writeln!(text, "\nwarning: {warning}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_that_cannot_be_is_doubted() {
        assert_eq!(doubt(1.05), None);
        assert!(doubt(1.11).is_some_and(|doubt| doubt.contains("1.11 of the limit")));
    }
}
