//! Which workers do not answer: nothing on a worker may block, and one that does holds up every stream that lives on it.

use operators::lock::lock;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};

use crossbeam_channel::Receiver;

use super::counters::GraphCounters;

/// A worker that has not answered by so many looks is held up. There are two looks a second. They are counted, and not
/// the time: a process that was held up itself has heard nobody.
const LOOKS: u32 = 4;

/// A worker that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldUp {
    pub worker: usize,
    /// The operator that does not let go of it, and its graph, as far as that is known.
    pub by: Option<String>,
}

impl fmt::Display for HeldUp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "dataflow worker {} does not answer", self.worker)?;
        match &self.by {
            Some(by) => write!(formatter, ": it is busy in {by}"),
            None => Ok(()),
        }
    }
}

/// A question to all workers, and who has not answered it yet.
struct Ping {
    answers: Receiver<usize>,
    missing: BTreeSet<usize>,
    looks: u32,
}

/// What is known of the workers.
#[derive(Default)]
pub struct Pulse {
    ping: Mutex<Option<Ping>>,
    held_up: Mutex<Vec<HeldUp>>,
}

impl Pulse {
    /// Looks who has answered; never waits. Asks all `workers` again by `ask` when all have. `holder` says what a worker is
    /// busy with.
    pub fn look(
        &self,
        workers: usize,
        ask: impl FnOnce() -> Receiver<usize>,
        holder: impl Fn(usize) -> Option<String>,
    ) {
        let mut asked = lock(&self.ping);
        if let Some(ping) = &mut *asked {
            for worker in ping.answers.try_iter() {
                ping.missing.remove(&worker);
            }
            if !ping.missing.is_empty() {
                ping.looks += 1;
                if ping.looks >= LOOKS {
                    self.note(&ping.missing, holder);
                }
                return;
            }
        }
        lock(&self.held_up).clear();
        *asked = Some(Ping { answers: ask(), missing: (0..workers).collect(), looks: 0 });
    }

    fn note(&self, missing: &BTreeSet<usize>, holder: impl Fn(usize) -> Option<String>) {
        let mut known = lock(&self.held_up);
        let held_up = |worker: &usize| {
            // What is busy there is not counted any more once its graph is deleted.
            let before = || known.iter().find(|before| before.worker == *worker).and_then(|before| before.by.clone());
            HeldUp { worker: *worker, by: holder(*worker).or_else(before) }
        };
        *known = missing.iter().map(held_up).collect();
    }

    /// The workers that do not answer.
    pub fn held_up(&self) -> Vec<HeldUp> {
        lock(&self.held_up).clone()
    }
}

/// What worker number `worker` is busy with: the operator that has been at work there for the longest.
pub fn holder(graphs: &[Arc<GraphCounters>], worker: usize) -> Option<String> {
    let mut turns = Vec::new();
    for graph in graphs {
        for node in graph.nodes().into_iter().filter(|node| node.role == "inline") {
            if let Some(since) = node.stands_since(worker) {
                turns.push((since, format!("`{}` of graph `{}`", node.name, graph.name)));
            }
        }
    }
    turns.into_iter().min().map(|(_, by)| by)
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;

    #[test]
    fn a_worker_that_stays_silent_is_named_until_it_answers() {
        let pulse = Pulse::default();
        let (answer, answers) = bounded(2);
        let look = |by: Option<&str>| pulse.look(2, || answers.clone(), |_| by.map(str::to_owned));
        look(None);
        answer.send(0).unwrap();
        for _ in 1..LOOKS {
            look(Some("`sum`"));
            assert_eq!(pulse.held_up(), [], "it may be late once");
        }
        look(Some("`sum`"));
        assert_eq!(pulse.held_up(), [HeldUp { worker: 1, by: Some("`sum`".to_owned()) }]);
        look(None);
        let [held_up] = &pulse.held_up()[..] else { panic!("one") };
        assert_eq!(held_up.to_string(), "dataflow worker 1 does not answer: it is busy in `sum`");
        answer.send(1).unwrap();
        look(None);
        assert_eq!(pulse.held_up(), []);
    }
}
