//! The workers' loop: commands first, then a step of the dataflows, then sleep until somebody wakes us.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use operators::error::StartError;
use timely::WorkerConfig;
use timely::communication::WorkerGuards;
use timely::scheduling::activate::SyncActivations;
use timely::worker::Worker;

use super::build::Blueprint;
use super::counters::lock;
use super::dataflow_log::DataflowLog;

/// What the supervisor tells a worker. Every worker gets the same commands in the same order.
enum Command {
    Install {
        graph: u64,
        blueprint: Arc<Blueprint>,
        done: Sender<()>,
    },
    /// Sinks ignore frontiers from here on; acknowledged by all workers before any drops.
    Freeze {
        graph: u64,
        done: Sender<()>,
    },
    Drop {
        graph: u64,
        done: Sender<()>,
    },
    /// Are you there?
    Ping {
        done: Sender<()>,
    },
    Shutdown,
}

/// The running workers.
pub struct Workers {
    commands: Vec<Sender<Command>>,
    wakers: Vec<SyncActivations>,
    /// One sender at a time, so that all workers see one order.
    order: Mutex<u64>,
    /// The answers to the last ping, with its time.
    ping: Mutex<Option<(Instant, Receiver<()>)>>,
    guards: Mutex<Option<WorkerGuards<()>>>,
}

/// A worker that has not answered for this long is stuck: nothing on it may block.
const STUCK: Duration = Duration::from_secs(2);

impl Workers {
    /// Starts `count` worker threads (at least one).
    ///
    /// # Errors
    /// Where timely or the system refuses.
    pub fn start(count: usize, log: Option<&Arc<DataflowLog>>) -> Result<Workers, StartError> {
        let count = count.max(1);
        let (commands, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| bounded::<Command>(64)).unzip();
        let receivers = Mutex::new(receivers.into_iter().map(Some).collect::<Vec<_>>());
        let (ready, answers) = bounded(count);
        let log = log.cloned();
        let communication =
            if count == 1 { timely::CommunicationConfig::Thread } else { timely::CommunicationConfig::Process(count) };
        let config = timely::Config { communication, worker: WorkerConfig::default() };
        let guards = timely::execute(config, move |worker| {
            let _abort = AbortOnPanic;
            let commands = lock(&receivers).get_mut(worker.index()).and_then(Option::take);
            if let Some(log) = &log {
                log.listen(worker);
            }
            let waker = worker.activations().borrow().sync();
            if let (Some(commands), Ok(())) = (commands, ready.send((worker.index(), waker))) {
                serve(worker, &commands);
            }
        })
        .map_err(|error| StartError::new(format!("cannot start the dataflow workers: {error}")))?;
        let mut wakers: Vec<(usize, SyncActivations)> = answers.iter().take(count).collect();
        wakers.sort_by_key(|(index, _)| *index);
        let wakers = wakers.into_iter().map(|(_, waker)| waker).collect();
        Ok(Workers { commands, wakers, order: Mutex::new(0), ping: Mutex::default(), guards: Mutex::new(Some(guards)) })
    }

    pub fn count(&self) -> usize {
        self.commands.len()
    }

    /// Builds `blueprint` on all workers and answers the number to drop it by.
    pub fn install(&self, blueprint: &Arc<Blueprint>) -> u64 {
        let mut next = lock(&self.order);
        let graph = *next;
        *next += 1;
        self.broadcast(|done| Command::Install { graph, blueprint: blueprint.clone(), done });
        graph
    }

    /// Takes a graph out of all workers, finished or not, in two phases.
    pub fn remove(&self, graph: u64) {
        let _order = lock(&self.order);
        self.broadcast(|done| Command::Freeze { graph, done });
        self.broadcast(|done| Command::Drop { graph, done });
    }

    /// Whether all workers answered the last ping in time. Never waits: it looks at the last ping and sends the next.
    pub fn answer(&self, now: Instant) -> bool {
        let mut ping = lock(&self.ping);
        if let Some((sent, answers)) = &*ping
            && answers.len() < self.commands.len()
        {
            return now.saturating_duration_since(*sent) < STUCK;
        }
        let (done, answers) = bounded(self.commands.len());
        for (sender, waker) in self.commands.iter().zip(&self.wakers) {
            // A full command queue is a worker that does not answer: the next look will see it.
            let _ = sender.try_send(Command::Ping { done: done.clone() });
            let _ = waker.activate_batch(std::iter::empty());
        }
        *ping = Some((now, answers));
        true
    }

    fn broadcast(&self, command: impl Fn(Sender<()>) -> Command) {
        let (done, answers) = bounded(self.commands.len());
        for (sender, waker) in self.commands.iter().zip(&self.wakers) {
            // A worker that is gone has aborted the process.
            let _ = sender.send(command(done.clone()));
            let _ = waker.activate_batch(std::iter::empty());
        }
        drop(done);
        for () in &answers {}
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (sender, waker) in self.commands.iter().zip(&self.wakers) {
            let _ = sender.send(Command::Shutdown);
            let _ = waker.activate_batch(std::iter::empty());
        }
        if let Some(guards) = lock(&self.guards).take() {
            drop(guards.join());
        }
    }
}

fn serve(worker: &mut Worker, commands: &Receiver<Command>) {
    let mut graphs: HashMap<u64, (usize, Arc<Blueprint>)> = HashMap::new();
    loop {
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Install { graph, blueprint, done } => {
                    let index = blueprint.install(worker);
                    graphs.insert(graph, (index, blueprint));
                    acknowledge(&done);
                }
                Command::Freeze { graph, done } => {
                    if let Some((_, blueprint)) = graphs.get(&graph) {
                        blueprint.frozen.store(true, std::sync::atomic::Ordering::Release);
                    }
                    acknowledge(&done);
                }
                Command::Drop { graph, done } => {
                    if let Some((index, _)) = graphs.remove(&graph)
                        && worker.installed_dataflows().contains(&index)
                    {
                        worker.drop_dataflow(index);
                    }
                    acknowledge(&done);
                }
                Command::Ping { done } => acknowledge(&done),
                Command::Shutdown => {
                    for (_, (index, _)) in graphs {
                        if worker.installed_dataflows().contains(&index) {
                            worker.drop_dataflow(index);
                        }
                    }
                    return;
                }
            }
        }
        worker.step_or_park(None);
    }
}

fn acknowledge(done: &Sender<()>) {
    // The channel has room for every worker's answer.
    let _ = done.send(());
}

/// A worker that dies leaves the others waiting for it for ever, so the process must not live on.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a dataflow worker panicked outside an operator; the process ends at once");
            eprintln!("engine: a dataflow worker panicked outside an operator; please report the message above");
            std::process::abort();
        }
    }
}
