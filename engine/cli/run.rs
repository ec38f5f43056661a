//! `engine run`: runs a graph until its streams end, or a folder of graphs until somebody stops it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use operators::clock::SystemClock;
use operators::config::parse_duration;
use operators::error::StartError;
use operators::tunnel::Served;

use super::config::{ProcessArguments, ProcessSettings};
use super::files::{Files, Place};
use super::input::{self, Settings, Tell};
use super::live::{LiveView, Terminal};
use super::logging::{self, LogFormat};
use super::metrics::MetricsArguments;
use super::plan::Threads;
use super::predict::PredictArguments;
use super::results::{Publishers, Results};
use super::summary::summary;
use super::watch::Watch;
use super::{FAILURE, SUCCESS, USAGE};
use crate::control;
use crate::control::events::{EventHub, EventLimits};
use crate::control::predict::Predict;
use crate::graph::check::Surroundings;
use crate::graph::plan::Plan;
use crate::graph::planner::build_plan;
use crate::graph::references::TOML_FILES;
use crate::runtime::graphs::{GRACE, GraphSettings, GraphText, Graphs, Home, LoadError};
use crate::runtime::predict::{Predictor, models as of_plan};
use crate::runtime::reload::Patience;
use crate::runtime::saved::Saved;
use crate::runtime::stats::GraphReport;
use crate::runtime::supervisor::{Engine, Options, Request};

/// Runs a graph, or all graphs of a folder: shows its streams on a terminal, serves its results and its health over HTTP
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine run graphs/quickstart.toml --stay
  engine run door.toml --set threshold=0.7 --listen 127.0.0.1:9000
  engine run door.toml --for 20s --log-format json 2>engine.log
  engine run door.toml --stay --predict-model mobilenet_v3_small
  engine run door.toml --watch
  engine run graphs/ --watch --save /var/lib/engine --allow-env 'CAMERA_*' --allow-host 10.0.0.0/8
  engine run graphs/ --config engine.toml --tls-cert server.pem --tls-key server.key

A folder may be empty: graphs are added over HTTP, with PUT /graphs/NAME. A graph of a folder that has mistakes is left
out, and named by /health. Graphs that come over HTTP name only what --allow-path, --allow-host and --allow-env allow.

Without keys the engine listens on this machine alone: engine key makes one.

Ctrl-C or SIGTERM delivers what is in flight, then ends; a second one ends at once.
Exit status: 0 when all went well (items that were rejected left error records), 1 when a graph or a stream failed,
when items were lost or all were rejected, 2 for a wrong command line.")]
pub struct Arguments {
    /// The graph file, or a folder with graph files (*.toml)
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
    /// Go on serving when every stream has ended; with a folder always so
    #[arg(long)]
    stay: bool,
    /// Reload a graph when its file changes, and end it when its file is gone; goes on as with --stay
    #[arg(long)]
    watch: bool,
    /// Keep graphs that are put over HTTP in this folder, and load them again at the next start
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// End after this time, such as 20s
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    time: Option<Duration>,
    /// Let graphs break on purpose, as their [chaos] says: for trying what else depends on them
    #[arg(long)]
    chaos: bool,
    /// How long to go on delivering what is in flight when asked to end
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    drain_timeout: Duration,
    #[command(flatten)]
    process: ProcessArguments,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    predict: PredictArguments,
    #[command(flatten)]
    metrics: MetricsArguments,
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

/// What runs first.
enum First {
    /// A graph that was checked, which is what the command is about.
    Graph(GraphText, Box<Plan>),
    Folder(PathBuf),
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    let clock = Arc::new(SystemClock);
    let hub = EventHub::new(&*clock, EventLimits::default());
    let results = Arc::new(Results::default());
    let mut surroundings = input::fetching_surroundings();
    surroundings.publisher = Arc::new(Publishers(vec![hub.clone(), results.clone()]));
    surroundings.chaos = arguments.chaos;
    let log = |terminal: &Terminal| logging::start(arguments.log_format, arguments.log.as_deref(), terminal);
    // A log for programs has no other lines: it begins before there is anything to say of the graph.
    let for_programs = (arguments.log_format == LogFormat::Json).then(|| Terminal::new(false));
    if let Some(Err(error)) = for_programs.as_ref().map(log) {
        return failed(&error);
    }
    let tell = if for_programs.is_some() { Tell::Log } else { Tell::Everything };
    let first = match first(arguments, &surroundings, tell) {
        Ok(first) => first,
        Err(code) => return code,
    };
    let terminal = match for_programs {
        Some(terminal) => terminal,
        None => {
            let terminal = Terminal::new(match &first {
                First::Graph(_, plan) => !writes_to_the_terminal(plan, &arguments.metrics),
                // Graphs come and go, and any of them may write there.
                First::Folder(_) => false,
            });
            if let Err(error) = log(&terminal) {
                return failed(&error);
            }
            terminal
        }
    };
    match serve(arguments, first, surroundings, &terminal, hub, results) {
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

/// The graph of a file, or a folder.
fn first(arguments: &Arguments, surroundings: &Surroundings, tell: Tell) -> Result<First, u8> {
    let path = &arguments.path;
    if path.is_dir() {
        if !arguments.settings.settings.is_empty() {
            input::print_error(
                "error: `--set` sets a parameter of one graph, and this is a folder of them\n\
                 hint: write the value into the `[params]` of the file, or run that file alone\n",
            );
            return Err(USAGE);
        }
        return Ok(First::Folder(path.clone()));
    }
    let (file, graph) = input::graph_of_file(path, &arguments.settings, surroundings, tell)?;
    let plan = build_plan(&graph, arguments.threads.options());
    let text = GraphText { name: file.graph_name(), bytes: file.bytes, home: Home::File(path.clone()) };
    Ok(First::Graph(text, Box::new(plan)))
}

/// Starts everything, watches the graphs, and takes everything down. Whether all went well.
fn serve(
    arguments: &Arguments,
    first: First,
    surroundings: Surroundings,
    terminal: &Terminal,
    hub: Arc<EventHub>,
    results: Arc<Results>,
) -> Result<bool, StartError> {
    if let First::Graph(_, plan) = &first {
        arguments.metrics.check(plan)?;
    }
    let clock = Arc::new(SystemClock);
    let ProcessSettings { control: control_config, mut references } = arguments.process.settings()?;
    let graphs = match &first {
        First::Graph(..) => arguments.path.clone(),
        First::Folder(folder) => folder.join(TOML_FILES),
    };
    references.except(arguments.save.iter().cloned().chain([graphs]));
    let saved = arguments.save.as_deref().map(Saved::open).transpose()?;
    let options = arguments.threads.options();
    let engine = Engine::start(Options {
        workers: options.worker_count(),
        pool_threads: options.pool_thread_count(),
        clock: clock.clone(),
        dataflow_log: arguments.dataflow_log.clone(),
    })?;
    engine.listen_to(hub.clone());
    let of_graph = match &first {
        First::Graph(_, plan) => of_plan(plan),
        First::Folder(_) => Vec::new(),
    };
    let named = arguments.predict.models.iter().map(|name| name.as_str().into());
    let predictor = Arc::new(Predictor::new(engine.pool(), clock.clone(), &surroundings.models, named)?);
    predictor.replace_graph_models(of_graph)?;
    let settings = GraphSettings {
        surroundings,
        settings: arguments.settings.settings.clone(),
        references,
        options,
        drain: arguments.drain_timeout,
        patience: Patience::default(),
        stay: arguments.stays(&first),
        saved,
        refuse: {
            let metrics = arguments.metrics.clone();
            Box::new(move |plan| metrics.check(plan))
        },
        on_models: {
            let predictor = predictor.clone();
            Box::new(move |names| {
                let any = !names.is_empty();
                predictor.serve(names);
                if any {
                    warm_up(&predictor);
                }
            })
        },
    };
    let graphs = Arc::new(Graphs::new(engine.clone(), settings));
    let predict = Predict::new(predictor.clone(), arguments.predict.limits());
    let is_guarded = control_config.access.is_guarded();
    let control_plane =
        control::start(control_config, graphs.clone(), hub, Some(predict), Some(graphs.clone()), clock.clone())?;
    tracing::info!("listening on {}", control_plane.url());
    graphs.playlists().tunnels.serve(Served { url: control_plane.local_url(), is_guarded });
    let requests = requests(arguments.time, LONGEST_DRAIN_END + arguments.drain_timeout)?;
    let metrics = arguments.metrics.start(graphs.clone(), clock.clone())?;
    let view = LiveView::start(terminal, graphs.clone(), clock, Some(results))?;
    let ended = attend(arguments, first, &graphs, &predictor, &requests);
    drop(view);
    if ended.is_err() {
        graphs.close(Request::Drain);
    }
    let all = graphs.finish(&requests);
    if ended.is_ok() {
        all.iter().for_each(|(counters, _)| sum_up(arguments.log_format, &counters.report()));
    }
    drop(metrics);
    control_plane.shutdown(Duration::from_secs(2));
    predictor.close();
    drop(graphs);
    drop(predictor);
    engine.shutdown()?;
    ended.map(|()| all.iter().all(|(_, outcome)| outcome.is_success()))
}

/// Starts what runs first, waits until it is time to end, and waits until everything has ended.
fn attend(
    arguments: &Arguments,
    first: First,
    graphs: &Arc<Graphs>,
    predictor: &Arc<Predictor>,
    requests: &Receiver<Request>,
) -> Result<(), StartError> {
    let stays = arguments.stays(&first);
    let asked = || !requests.is_empty();
    let (mut files, name) = match first {
        First::Graph(text, plan) => {
            let (name, path, bytes) = (text.name.clone(), arguments.path.clone(), text.bytes.clone());
            graphs.start_planned(text, *plan).map_err(not_started)?;
            tracing::info!(graph = %name, "graph `{name}` runs");
            (Files::of_loaded(path, bytes), Some(name))
        }
        First::Folder(path) => (Files::new(Place::Folder(path)), None),
    };
    if name.is_none() {
        files.follow(graphs, asked);
    }
    graphs.load_saved();
    graphs.settle();
    // After the graphs have made their sessions: then most are shared and not made twice.
    warm_up(predictor);
    if name.is_none() {
        let graphs = match graphs.list().len() {
            1 => "1 graph runs".to_owned(),
            count => format!("{count} graphs run"),
        };
        tracing::info!("ready: {graphs}; Ctrl-C ends the engine");
    }
    let watch = if arguments.watch { Some(Watch::start(files, graphs.clone())?) } else { None };
    let ending = name.filter(|_| !stays).and_then(|name| graphs.ending(&name));
    let over = ending.as_ref().map_or_else(never, |ending| ending.over().clone());
    let request = select! {
        recv(over) -> _ => Request::Drain,
        // The sender lives as long as the process listens for signals.
        recv(requests) -> request => request.unwrap_or(Request::Drain),
    };
    graphs.close(request);
    graphs.finish(requests);
    drop(watch);
    Ok(())
}

fn not_started(error: LoadError) -> StartError {
    match error {
        LoadError::Start(error) => error,
        error => StartError::new(error.to_string()).hint(error.hint()),
    }
}

/// Makes models ready to answer `/predict`, on a thread of its own.
fn warm_up(predictor: &Arc<Predictor>) {
    let predictor = predictor.clone();
    let warming = std::thread::Builder::new().name("predict".to_owned()).spawn(move || predictor.warm_up());
    if let Err(error) = warming {
        tracing::error!("`/predict` cannot be made ready: {error}");
    }
}

impl Arguments {
    /// Whether it goes on when what it runs has ended.
    fn stays(&self, first: &First) -> bool {
        self.stay || self.watch || matches!(first, First::Folder(_))
    }
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

/// How long the process may take to end when told to end at once.
const LONGEST_END: Duration = Duration::from_secs(5);
/// How long it may take beside the time that it has to deliver what is in flight: graphs end in it, and then everything
/// that they share.
const LONGEST_DRAIN_END: Duration = LONGEST_END.saturating_add(GRACE);

/// Turns signals and the end of `--for` into requests: the first asks to drain, the second to end at once. The process
/// ends `patience` after the first, whatever hangs.
fn requests(time: Option<Duration>, patience: Duration) -> Result<Receiver<Request>, StartError> {
    let cannot = |error: std::io::Error| StartError::new(format!("cannot listen for signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let (sender, requests) = bounded(4);
    let listen = {
        use tokio::signal::unix::{SignalKind, signal};
        let _entered = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
        let terminate = signal(SignalKind::terminate()).map_err(cannot)?;
        listen(interrupt, terminate, (time, patience), sender)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(listen)).map_err(cannot)?;
    Ok(requests)
}

async fn listen(
    mut interrupt: tokio::signal::unix::Signal,
    mut terminate: tokio::signal::unix::Signal,
    (time, patience): (Option<Duration>, Duration),
    sender: Sender<Request>,
) {
    let mut timer = std::pin::pin!(after(time));
    let mut late = std::pin::pin!(after(None));
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
                    late.set(after(Some(patience)));
                    let _ = sender.try_send(Request::Drain);
                }
                continue;
            }
            () = &mut late => end_now(),
        }
        if asked {
            break;
        }
        asked = true;
        late.set(after(Some(patience)));
        // A full channel already says what there is to say.
        let _ = sender.try_send(Request::Drain);
    }
    let _ = sender.try_send(Request::Abort);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = tokio::time::sleep(LONGEST_END) => {}
    }
    end_now()
}

async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

fn end_now() -> ! {
    input::print_error("error: something does not let go of its thread; the process ends now\n");
    #[expect(clippy::disallowed_methods, reason = "a signal must end the process even where a thread hangs")]
    std::process::exit(i32::from(FAILURE));
}

/// Whether records or metrics go to a standard output that is the terminal itself: lines that move would tear them.
fn writes_to_the_terminal(plan: &Plan, metrics: &MetricsArguments) -> bool {
    use std::io::IsTerminal;
    let mut sinks = plan.sinks.iter();
    std::io::stdout().is_terminal()
        && (metrics.is_wanted() || sinks.any(|sink| sink.type_name == "file" && sink.sink.resources().is_empty()))
}

/// Prints an error of starting.
pub fn failed(error: &StartError) -> u8 {
    let hint = error.hint.as_ref().map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
    input::print_error(&format!("error: {error}\n{hint}"));
    FAILURE
}
