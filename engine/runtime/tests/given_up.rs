//! What is asked of a graph that is taken down, and what is left of a node's counters where its work is given up.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use operators::operator::{IoOperator, IoRunner};

use super::*;
use crate::runtime::counters::{GraphCounters, NodeCounters};
use crate::runtime::graphs::ask;
use crate::runtime::reload::Patience;
use crate::runtime::supervision::RunningGraph;

/// A runner that never answers.
struct Waiting(Arc<AtomicUsize>);

impl IoOperator for Waiting {
    fn start(&self) -> Result<Arc<dyn IoRunner>, StartError> {
        Ok(Arc::new(Waiting(self.0.clone())))
    }

    fn concurrency(&self) -> usize {
        2
    }
}

#[async_trait::async_trait]
impl IoRunner for Waiting {
    async fn run(&self, _item: &Item) -> Result<Payload, ItemError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::future::pending().await
    }
}

/// A sink that never takes anything more than this one batch.
fn stalled() -> (Collecting, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    (Collecting { gate: Some(gate.clone()), ..Collecting::default() }, gate)
}

fn endless(sinks: Vec<PlannedSink>) -> Plan {
    plan(source(&["a"], u64::MAX), vec![tap(Overflow::Block, 8)], Vec::new(), sinks)
}

fn node(counters: &GraphCounters, name: &str) -> Arc<NodeCounters> {
    counters.nodes().into_iter().find(|node| &*node.name == name).unwrap()
}

fn queued(counters: &GraphCounters, name: &str) -> u64 {
    counters.report().nodes.iter().find(|node| node.name == name).unwrap().queued
}

fn is_at_work(counters: &GraphCounters, name: &str) -> bool {
    let node = node(counters, name);
    (0..node.workers()).any(|worker| node.stands_since(worker).is_some())
}

/// Supervises a graph until it has ended, which it is told to after `meanwhile`; it has no time to drain.
fn abandon(graph: RunningGraph, meanwhile: impl FnOnce()) -> Outcome {
    let (requests, inbox) = bounded(1);
    std::thread::scope(|scope| {
        let supervised = scope.spawn(move || graph.supervise(&inbox, Duration::from_millis(10)));
        // It ends also where the test has failed.
        let went_well = catch_unwind(AssertUnwindSafe(meanwhile));
        requests.send(Request::Drain).unwrap();
        let outcome = supervised.join().unwrap();
        went_well.unwrap_or_else(|panic| resume_unwind(panic));
        outcome
    })
}

/// Whoever asks holds a way to the graph while they wait: that alone must not keep their question.
#[test]
fn whoever_asks_a_graph_that_is_taken_down_gets_an_answer() {
    let engine = start(1);
    let (stuck, gate) = stalled();
    let graph = engine.run(endless(vec![sink("stuck", &stuck, &[Input::Tap(0)])])).unwrap();
    let changes = graph.changes();
    // One question after the other, until nobody answers any more: some come while it is taken down.
    let asking: Vec<JoinHandle<()>> = (0..4)
        .map(|_| {
            let changes = changes.clone();
            std::thread::spawn(move || while ask(&changes, |_| ()).is_some() {})
        })
        .collect();
    let outcome = abandon(graph, || eventually(|| stuck.batches.load(Ordering::Relaxed) > 0));
    assert!(outcome.stuck.iter().any(|what| what == "sink `stuck`"), "{outcome:?}");
    eventually(|| asking.iter().all(JoinHandle::is_finished));
    assert!(ask(&changes, |_| ()).is_none(), "nobody is there any more");
    gate.open();
    engine.shutdown().unwrap();
}

#[test]
fn what_a_sink_was_given_and_has_not_written_waits_no_more_when_it_is_given_up() {
    let engine = start(2);
    let (stuck, gate) = stalled();
    let names: Vec<String> = (0..120).map(|index| format!("s{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let sinks = vec![sink("stuck", &stuck, &[Input::Tap(0)])];
    let graph = engine.run(plan(source(&names, u64::MAX), vec![tap(Overflow::Block, 8)], Vec::new(), sinks)).unwrap();
    let counters = graph.counters.clone();
    // More than its batch and its queue hold: some of it waits with the workers.
    let outcome = abandon(graph, || eventually(|| queued(&counters, "stuck") > 600));
    assert!(!outcome.is_success());
    eventually(|| queued(&counters, "stuck") == 0 && !is_at_work(&counters, "stuck"));
    assert_eq!(counters.report().nodes.iter().find(|node| node.name == "stuck").unwrap().oldest_ms, None);
    gate.open();
    engine.shutdown().unwrap();
}

#[test]
fn a_conversation_that_is_given_up_is_no_work_any_more() {
    let engine = start(1);
    let (begun, collected) = (Arc::<AtomicUsize>::default(), Collecting::default());
    let operators = vec![operator("talks", Work::Io(Arc::new(Waiting(begun.clone()))), Input::Tap(0))];
    let sinks = vec![sink("out", &collected, &[Input::Operator(0)])];
    let graph = engine.run(plan(source(&["a"], u64::MAX), vec![tap(Overflow::Block, 8)], operators, sinks)).unwrap();
    let counters = graph.counters.clone();
    abandon(graph, || eventually(|| begun.load(Ordering::Relaxed) == 2 && queued(&counters, "talks") > 2));
    eventually(|| queued(&counters, "talks") == 0 && !is_at_work(&counters, "talks"));
    engine.shutdown().unwrap();
}

/// The sink that takes its place has the same name, and so the same counters.
#[test]
fn a_sink_that_is_given_up_leaves_nothing_behind_in_the_next_of_its_name() {
    let engine = start(1);
    let (stuck, gate) = stalled();
    let before = Collecting { trouble: Some(Trouble::default()), ..stuck.clone() };
    let after = Collecting { trouble: Some(Trouble::default()), ..Collecting::default() };
    let graph = engine.run(endless(vec![sink("out", &before, &[Input::Tap(0)])])).unwrap();
    let (counters, changes) = (graph.counters.clone(), graph.changes());
    let patience = Patience { drain: Duration::from_millis(10), ..Patience::default() };
    abandon(graph, || {
        eventually(|| stuck.batches.load(Ordering::Relaxed) > 0 && queued(&counters, "out") > 0);
        before.trouble.as_ref().unwrap().is("cannot write");
        assert_eq!(node(&counters, "out").trouble().as_deref(), Some("cannot write"));
        let another =
            PlannedSink { identity: Identity::of_texts(["another"]), ..sink("out", &after, &[Input::Tap(0)]) };
        let reloaded = ask(&changes, move |graph| graph.reload(endless(vec![another]), patience)).unwrap().unwrap();
        assert!(reloaded.stuck.iter().any(|what| what == "sink `out`") && reloaded.lost > 0, "{reloaded:?}");
        assert_eq!(node(&counters, "out").trouble(), None, "what took no more has gone");
        after.trouble.as_ref().unwrap().is("cannot store");
        eventually(|| node(&counters, "out").trouble().as_deref() == Some("cannot store"));
        // It works alone now: what is in hand comes and goes.
        eventually(|| queued(&counters, "out") == 0);
        eventually(|| !is_at_work(&counters, "out"));
    });
    eventually(|| node(&counters, "out").trouble().is_none());
    gate.open();
    engine.shutdown().unwrap();
}
