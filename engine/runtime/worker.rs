//! The workers' loop: commands first, then a step of the dataflows, then sleep until somebody wakes us.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use operators::error::StartError;
use operators::lock::lock;
use timely::WorkerConfig;
use timely::communication::WorkerGuards;
use timely::scheduling::activate::SyncActivations;
use timely::worker::Worker;

use super::build::Blueprint;
use super::dataflow_log::DataflowLog;
use super::pulse::{HeldUp, Pulse};

/// What the supervisor tells a worker. Every worker gets the same commands in the same order.
enum Command {
    Install {
        graph: u64,
        blueprint: Arc<Blueprint>,
        done: Sender<usize>,
    },
    /// Sinks ignore frontiers from here on; acknowledged by all workers before any drops.
    Freeze {
        graph: u64,
        done: Sender<usize>,
    },
    Drop {
        graph: u64,
        done: Sender<usize>,
    },
    /// Are you there?
    Ping {
        done: Sender<usize>,
    },
    Shutdown {
        done: Sender<usize>,
    },
}

/// The running workers.
pub struct Workers {
    commands: Vec<Sender<Command>>,
    wakers: Vec<SyncActivations>,
    /// One sender at a time, so that all workers see one order.
    order: Mutex<u64>,
    pulse: Pulse,
    guards: Mutex<Option<WorkerGuards<()>>>,
}

/// How long workers may take to do what they are told, as long as they are not known to be held up.
const ANSWER: Duration = Duration::from_secs(10);
/// How often it is looked meanwhile whether they are; and how long one that is may still take.
const LOOK: Duration = Duration::from_millis(500);

impl Workers {
    /// Starts `count` worker threads (at least one).
    ///
    /// # Errors
    /// Where timely or the system refuses.
    pub fn start(count: usize, log: Option<&Arc<DataflowLog>>) -> Result<Workers, StartError> {
        let count = count.max(1);
        #[expect(
            clippy::disallowed_methods,
            reason = "whoever tells a worker that does not answer must not wait; nothing is installed on one, so what is left to tell it is bounded by the graphs that it has"
        )]
        let (commands, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| unbounded::<Command>()).unzip();
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
        Ok(Workers {
            commands,
            wakers,
            order: Mutex::new(0),
            pulse: Pulse::default(),
            guards: Mutex::new(Some(guards)),
        })
    }

    pub fn count(&self) -> usize {
        self.commands.len()
    }

    /// Builds `blueprint` on all workers and answers the number to drop it by; `None` where a worker does not answer: then
    /// it is dropped wherever it was built, and where it is still to be built as soon as that is done.
    pub fn install(&self, blueprint: &Arc<Blueprint>) -> Option<u64> {
        let (graph, answers) = {
            let mut next = lock(&self.order);
            let graph = *next;
            *next += 1;
            (graph, self.tell(|done| Command::Install { graph, blueprint: blueprint.clone(), done }))
        };
        if self.have_answered(&answers) {
            return Some(graph);
        }
        let _order = lock(&self.order);
        self.tell(|done| Command::Freeze { graph, done });
        self.tell(|done| Command::Drop { graph, done });
        None
    }

    /// Takes a graph out of all workers, finished or not, in two phases. A worker that does not answer does so when it gets
    /// on: it has been told.
    pub fn remove(&self, graph: u64) {
        let freeze = || {
            let _order = lock(&self.order);
            self.tell(|done| Command::Freeze { graph, done })
        };
        let are_frozen = self.have_answered(&freeze());
        let dropped = {
            let _order = lock(&self.order);
            self.tell(|done| Command::Drop { graph, done })
        };
        if are_frozen {
            self.have_answered(&dropped);
        }
    }

    /// Looks which workers answer, and asks them again when all have. To be called twice a second; `holder` says what a
    /// worker is busy with.
    pub fn look(&self, holder: impl Fn(usize) -> Option<String>) {
        self.pulse.look(self.commands.len(), || self.tell(|done| Command::Ping { done }), holder);
    }

    /// The workers that do not answer.
    pub fn held_up(&self) -> Vec<HeldUp> {
        self.pulse.held_up()
    }

    /// Ends the threads of the workers. The second time does nothing.
    ///
    /// # Errors
    /// Where one does not end: it is left behind.
    pub fn stop(&self) -> Result<(), StartError> {
        let Some(guards) = lock(&self.guards).take() else { return Ok(()) };
        if self.have_answered(&self.tell(|done| Command::Shutdown { done })) {
            drop(guards.join());
            return Ok(());
        }
        // Its thread ends with the process, and so does what it is busy with.
        std::mem::forget(guards);
        let held_up = self.held_up();
        let why = held_up.first().map_or_else(|| "a dataflow worker does not end".to_owned(), HeldUp::to_string);
        Err(StartError::new(format!("{why}; it is left behind")))
    }

    /// Tells all workers, and answers where they say that it is done.
    fn tell(&self, command: impl Fn(Sender<usize>) -> Command) -> Receiver<usize> {
        let (done, answers) = bounded(self.commands.len());
        for (sender, waker) in self.commands.iter().zip(&self.wakers) {
            // A worker that is gone has aborted the process.
            let _ = sender.send(command(done.clone()));
            let _ = waker.activate_batch(std::iter::empty());
        }
        answers
    }

    /// Waits until all workers have done what they were told; `false` where one does not answer.
    fn have_answered(&self, answers: &Receiver<usize>) -> bool {
        let (mut missing, mut left) = (self.commands.len(), ANSWER);
        while missing > 0 {
            match answers.recv_timeout(LOOK) {
                Ok(_) => missing -= 1,
                Err(RecvTimeoutError::Timeout) => {
                    left = left.saturating_sub(LOOK);
                    if left.is_zero() || !self.held_up().is_empty() {
                        return false;
                    }
                }
                // All that were there have answered.
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
        true
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!("{error}");
        }
    }
}

fn serve(worker: &mut Worker, commands: &Receiver<Command>) {
    let mut graphs: HashMap<u64, (usize, Arc<Blueprint>)> = HashMap::new();
    // The channel has room for every worker's answer, and whoever asked may have gone.
    let number = worker.index();
    let acknowledge = |done: &Sender<usize>| {
        let _ = done.send(number);
    };
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
                Command::Shutdown { done } => {
                    for (_, (index, _)) in graphs {
                        if worker.installed_dataflows().contains(&index) {
                            worker.drop_dataflow(index);
                        }
                    }
                    acknowledge(&done);
                    return;
                }
            }
        }
        worker.step_or_park(None);
    }
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
