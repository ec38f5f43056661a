//! `engine run`: runs a graph until its streams end, or until somebody stops it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use operators::clock::SystemClock;
use operators::config::parse_duration;
use operators::error::StartError;
use operators::inference::model::Catalog;

use super::input::{self, Settings, Tell};
use super::live::{LiveView, Terminal};
use super::logging::{self, LogFormat};
use super::plan::Threads;
use super::predict::PredictArguments;
use super::results::{Publishers, Results};
use super::summary::summary;
use super::{FAILURE, SUCCESS};
use crate::control::events::{EventHub, EventLimits};
use crate::control::predict::Predict;
use crate::control::push::{Push, PushLimits};
use crate::control::{self, ControlConfig};
use crate::graph::plan::Plan;
use crate::graph::planner::build_plan;
use crate::runtime::predict::Predictor;
use crate::runtime::stats::{GraphReport, Observe};
use crate::runtime::supervisor::{Engine, Options, Outcome, Request};

/// Runs a graph: shows its streams on a terminal, serves its results and its health over HTTP
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine run graphs/quickstart.toml --stay
  engine run door.toml --set threshold=0.7 --listen 127.0.0.1:9000
  engine run door.toml --for 20s --log-format json 2>engine.log
  engine run door.toml --stay --predict-model mobilenet_v3_small

Ctrl-C or SIGTERM delivers what is in flight, then ends; a second one ends at once.
Exit status: 0 when all went well (items that were rejected left error records), 1 when the graph or a stream failed,
when items were lost or all were rejected, 2 for a wrong command line.")]
pub struct Arguments {
    /// The graph file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where to serve results, statistics and health; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    listen: String,
    /// Go on serving when every stream has ended
    #[arg(long)]
    stay: bool,
    /// End after this time, such as 20s
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    time: Option<Duration>,
    /// How long to go on delivering what is in flight when asked to end
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    drain_timeout: Duration,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    predict: PredictArguments,
    #[command(flatten)]
    settings: Settings,
    /// How to write the log
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// What to log: a level, or levels by module; the default is what RUST_LOG says, or info
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// Write the dataflow system's own count of events by operator and worker to this new file at the end
    #[arg(long, value_name = "FILE")]
    dataflow_log: Option<PathBuf>,
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    let clock = Arc::new(SystemClock);
    let hub = EventHub::new(&*clock, EventLimits::default());
    let results = Arc::new(Results::default());
    let mut surroundings = input::fetching_surroundings();
    surroundings.publisher = Arc::new(Publishers(vec![hub.clone(), results.clone()]));
    let graph = match input::graph(&arguments.file, &arguments.settings, &surroundings, Tell::Everything) {
        Ok(graph) => graph,
        Err(code) => return code,
    };
    let plan = build_plan(&graph, arguments.threads.options());
    let terminal = Terminal::new(!writes_to_the_terminal(&plan));
    if let Err(error) = logging::start(arguments.log_format, arguments.log.as_deref(), &terminal) {
        return failed(&error);
    }
    match serve(arguments, plan, &surroundings.models, &terminal, hub, results) {
        Ok(true) => SUCCESS,
        Ok(false) => FAILURE,
        Err(error) => match arguments.log_format {
            LogFormat::Text => failed(&error),
            // A log for programs has no other lines.
            LogFormat::Json => {
                tracing::error!(hint = error.hint, "{error}");
                FAILURE
            }
        },
    }
}

/// Starts everything, watches the graph, and takes everything down. Whether all went well.
fn serve(
    arguments: &Arguments,
    plan: Plan,
    models: &Arc<Catalog>,
    terminal: &Terminal,
    hub: Arc<EventHub>,
    results: Arc<Results>,
) -> Result<bool, StartError> {
    let clock = Arc::new(SystemClock);
    let engine = Engine::start(Options {
        workers: plan.workers,
        pool_threads: plan.pool_threads,
        clock: clock.clone(),
        dataflow_log: arguments.dataflow_log.clone(),
    })?;
    let observe: Arc<dyn Observe> = engine.clone();
    let config = ControlConfig { listen: arguments.listen.clone(), ..ControlConfig::default() };
    let named = &arguments.predict.models;
    let predictor = Arc::new(Predictor::new(engine.pool(), clock.clone(), models, &plan, named)?);
    let predict = Predict::new(predictor.clone(), arguments.predict.limits());
    let push = Push::new(engine.inlets(), observe.clone(), PushLimits::default());
    let control_plane = control::start(config, observe.clone(), hub, Some(predict), Some(push))?;
    tracing::info!("listening on http://{}", control_plane.address());
    let requests = requests(arguments.time)?;
    let view = LiveView::start(terminal, observe, clock, Some(results))?;
    let name = plan.graph.clone();
    let (outcome, counters) = match engine.run(plan) {
        Ok(graph) => {
            tracing::info!(graph = %name, "graph `{name}` runs");
            let counters = graph.counters.clone();
            // After the graph has made its sessions: then most are shared and not made twice.
            let predictor = predictor.clone();
            let warming = std::thread::Builder::new().name("predict".to_owned()).spawn(move || predictor.warm_up());
            if let Err(error) = warming {
                tracing::error!("`/predict` cannot be made ready: {error}");
            }
            (Ok(graph.supervise(&requests, arguments.drain_timeout)), Some(counters))
        }
        Err(error) => (Err(error), None),
    };
    if let (Ok(outcome), Some(counters)) = (&outcome, &counters) {
        log_outcome(outcome);
        // A graph that failed is still there to be looked at; one that was told to end is not waited for again.
        if arguments.stay && outcome.asked.is_none() {
            tracing::info!(graph = %name, "graph `{name}` has ended; Ctrl-C ends the engine");
            // The sender lives as long as the process listens for signals.
            let _ = requests.recv();
        }
        drop(view);
        sum_up(arguments.log_format, &counters.report());
    }
    control_plane.shutdown(Duration::from_secs(2));
    drop(predictor);
    engine.shutdown()?;
    outcome.map(|outcome| outcome.is_success())
}

/// Tells how the graph ended: as a table for people, or in a log for programs as a line of that log.
fn sum_up(format: LogFormat, report: &GraphReport) {
    match format {
        LogFormat::Text => input::print_error(&summary(report)),
        LogFormat::Json => match serde_json::to_string(report) {
            Ok(json) => tracing::info!(graph = %report.name, report = json, "summary"),
            Err(error) => tracing::error!(%error, "the summary cannot be written as JSON"),
        },
    }
}

fn log_outcome(outcome: &Outcome) {
    for failure in &outcome.failures {
        tracing::error!("{failure}");
    }
    if !outcome.stuck.is_empty() {
        let why = match outcome.asked {
            Some(Request::Abort) => "told to end at once",
            Some(Request::Drain) | None => "the time to drain is over",
        };
        tracing::error!("{why}; still open: {}", outcome.stuck.join(", "));
    }
}

/// How long the process may take to end when told to end at once.
const LONGEST_END: Duration = Duration::from_secs(5);

/// Turns signals and the end of `--for` into requests: the first asks to drain, the second to end at once.
fn requests(time: Option<Duration>) -> Result<Receiver<Request>, StartError> {
    let cannot = |error: std::io::Error| StartError::new(format!("cannot listen for signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let (sender, requests) = bounded(4);
    let listen = {
        use tokio::signal::unix::{SignalKind, signal};
        let _entered = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
        let terminate = signal(SignalKind::terminate()).map_err(cannot)?;
        listen(interrupt, terminate, time, sender)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(listen)).map_err(cannot)?;
    Ok(requests)
}

async fn listen(
    mut interrupt: tokio::signal::unix::Signal,
    mut terminate: tokio::signal::unix::Signal,
    time: Option<Duration>,
    sender: Sender<Request>,
) {
    let mut timer = std::pin::pin!(async {
        match time {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    });
    let mut asked = false;
    let mut timed_out = false;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = &mut timer, if !timed_out => {
                timed_out = true;
                // Somebody who asked already decides alone what becomes of what is in flight.
                if !asked {
                    asked = true;
                    let _ = sender.try_send(Request::Drain);
                }
                continue;
            }
        }
        if asked {
            break;
        }
        asked = true;
        // A full channel already says what there is to say.
        let _ = sender.try_send(Request::Drain);
    }
    let _ = sender.try_send(Request::Abort);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = tokio::time::sleep(LONGEST_END) => {}
    }
    input::print_error("error: something does not let go of its thread; the process ends now\n");
    #[expect(clippy::disallowed_methods, reason = "a second signal must end the process even where a thread hangs")]
    std::process::exit(i32::from(FAILURE));
}

/// Whether a sink writes records to a standard output that is the terminal itself: lines that move would tear them.
fn writes_to_the_terminal(plan: &Plan) -> bool {
    use std::io::IsTerminal;
    std::io::stdout().is_terminal()
        && plan.sinks.iter().any(|sink| sink.type_name == "file" && sink.sink.resources().is_empty())
}

/// Prints an error of starting.
pub fn failed(error: &StartError) -> u8 {
    let hint = error.hint.as_ref().map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
    input::print_error(&format!("error: {error}\n{hint}"));
    FAILURE
}
