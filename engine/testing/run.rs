//! Runs one test: its graph on an engine of its own, with a deadline.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use operators::clock::Clock;
use operators::error::StartError;
use operators::inference::model::ModelError;

use super::collector::Collector;
use super::compare::{Difference, compare, results};
use crate::graph::cases::Case;
use crate::graph::check::{self, Graph, Surroundings};
use crate::graph::diagnostics::{Code, Diagnostic, Severity};
use crate::graph::planner::{PlanOptions, build_plan};
use crate::graph::substitute::Setting;
use crate::runtime::stats::{GraphReport, GraphState, StreamState};
use crate::runtime::supervisor::{Engine, Options, Outcome, Request};

/// What tests are run with.
pub struct Bench<'a> {
    pub settings: &'a [Setting],
    pub surroundings: &'a Surroundings,
    pub options: PlanOptions,
    pub clock: Arc<dyn Clock>,
}

/// What came of a test.
pub enum Verdict {
    Passed,
    /// It could not run here, and why.
    Skipped(String),
    Failed(Vec<Difference>),
    /// Its graph has mistakes with its inputs.
    Mistaken(Vec<Diagnostic>),
}

/// A test that was run.
pub struct Tested {
    pub verdict: Verdict,
    /// Records that were looked at.
    pub records: usize,
}

impl Tested {
    fn unrun(verdict: Verdict) -> Tested {
        Tested { verdict, records: 0 }
    }
}

/// Runs a test of the graph file `bytes`, whose graph is called `name`.
pub fn run(name: &str, bytes: &[u8], case: &Case, bench: &Bench<'_>) -> Tested {
    let collector = Arc::new(Collector::default());
    let surroundings = Surroundings { publisher: collector.clone(), ..bench.surroundings.clone() };
    let checked = check::check_test(name, bytes, case, bench.settings, &surroundings);
    let Some(graph) = checked.graph else {
        let mut mistakes = checked.diagnostics;
        mistakes.retain(|diagnostic| diagnostic.severity() == Severity::Error);
        return Tested::unrun(match missing(&mistakes, bytes, &surroundings) {
            Some(why) => Verdict::Skipped(why),
            None => Verdict::Mistaken(mistakes),
        });
    };
    let ended = match play(&graph, case.timeout, bench) {
        Ok(ended) => ended,
        Err(error) => {
            let difference = Difference::new("start", "the graph starts", error.to_string());
            return Tested::unrun(Verdict::Failed(vec![difference]));
        }
    };
    let records = collector.take();
    let mut differences = misfortunes(&ended, case);
    // What is missing of a run that was cut off says nothing.
    if ended.outcome.asked.is_none() {
        differences.extend(compare(&case.node.name, &case.expected, &records));
    }
    let looked_at = results(&case.node.name, &case.expected, &records).len();
    let verdict = if differences.is_empty() { Verdict::Passed } else { Verdict::Failed(differences) };
    Tested { verdict, records: looked_at }
}

/// Why a test cannot run on this machine, where that is all that is wrong with it.
fn missing(mistakes: &[Diagnostic], bytes: &[u8], surroundings: &Surroundings) -> Option<String> {
    let absent = |mistake: &Diagnostic| match mistake.code {
        Code::UnsetEnvironment => true,
        Code::UnusableModel => {
            let written = mistake.span.clone().and_then(|span| bytes.get(span)).unwrap_or_default();
            let name = String::from_utf8_lossy(written);
            let name = name.trim_matches(['"', '\'']);
            matches!(surroundings.models.get(name), Err(ModelError::FileMissing { .. }))
        }
        _ => false,
    };
    let first = mistakes.first()?;
    mistakes.iter().all(absent).then(|| first.message.clone())
}

struct Ended {
    outcome: Outcome,
    report: GraphReport,
}

fn play(graph: &Graph, timeout: Duration, bench: &Bench<'_>) -> Result<Ended, StartError> {
    let plan = build_plan(graph, bench.options);
    let engine = Engine::start(Options {
        workers: plan.workers,
        pool_threads: plan.pool_threads,
        clock: bench.clock.clone(),
        dataflow_log: None,
    })?;
    let (ask, requests) = bounded(1);
    let (done, waiting) = bounded::<()>(0);
    std::thread::Builder::new()
        .name("deadline".to_owned())
        .spawn(move || end_after(timeout, &waiting, &ask))
        .map_err(|error| StartError::new(format!("cannot start a thread: {error}")))?;
    let running = match engine.run(plan) {
        Ok(running) => running,
        Err(error) => {
            engine.shutdown()?;
            return Err(error);
        }
    };
    let counters = running.counters.clone();
    let outcome = running.supervise(&requests, timeout);
    drop(done);
    let report = counters.report();
    if outcome.asked.is_none() {
        engine.shutdown()?;
    } else {
        // A thread that hangs must not hold up the other tests: what can end ends beside them.
        std::thread::Builder::new()
            .name("shutdown".to_owned())
            .spawn(move || engine.shutdown())
            .map_err(|error| StartError::new(format!("cannot start a thread: {error}")))?;
    }
    Ok(Ended { outcome, report })
}

/// Ends the run when its time is over, unless `done` was dropped before.
fn end_after(timeout: Duration, done: &Receiver<()>, ask: &Sender<Request>) {
    if done.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
        // Nobody listens any more where it ended at this moment.
        let _ = ask.try_send(Request::Abort);
    }
}

/// What went wrong with the run itself.
fn misfortunes(ended: &Ended, case: &Case) -> Vec<Difference> {
    let Ended { outcome, report } = ended;
    if outcome.asked.is_some() {
        let expected = format!("ends within {}", humantime::format_duration(case.timeout));
        // The test's own sink is none of the user's nodes.
        let open: Vec<&str> =
            outcome.stuck.iter().map(String::as_str).filter(|open| !open.starts_with("sink ")).collect();
        return vec![Difference::new("timeout", expected, format!("still open: {}", open.join(", ")))];
    }
    let mut differences = Vec::new();
    let streams_failed = report.streams.iter().any(|stream| stream.state == StreamState::Failed);
    let failed = report.state == GraphState::Failed || streams_failed || report.total.lost > 0;
    // Otherwise all that can have failed are items: their error records are compared.
    if failed {
        let expected = "every stream ends well, and nothing is lost";
        differences.extend(outcome.failures.iter().map(|failure| Difference::new("run", expected, failure.clone())));
    }
    if report.total.dropped > 0 {
        differences.push(Difference::new("run", "nothing is dropped", format!("{} dropped", report.total.dropped)));
    }
    if !report.total.conserved() {
        let got = "the counts do not add up: please report this as a mistake of the engine";
        differences.push(Difference::new("run", "every picture is accounted for", got));
    }
    differences
}
