//! timely's own operator log, summed up: how many events each operator moved on each worker.
//!
//! `engine run --dataflow-log FILE` writes it when the engine stops, one JSON object a line. It is independent of the
//! engine's counters, so tests use it to see that work is really spread over the workers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use operators::error::StartError;
use operators::lock::lock;
use serde::Serialize;
use timely::logging::{TimelyEvent, TimelyEventBuilder};
use timely::worker::Worker;

#[derive(Default)]
struct Observed {
    /// Operator names by address.
    names: HashMap<Vec<usize>, String>,
    channels: HashMap<usize, Channel>,
    received: HashMap<usize, i64>,
    sent: HashMap<usize, i64>,
}

/// The addresses of a channel's two ends.
struct Channel {
    source: Vec<usize>,
    target: Vec<usize>,
}

/// One operator on one worker.
#[derive(Clone, Debug, Serialize)]
pub struct OperatorLine {
    pub worker: usize,
    pub operator: String,
    pub address: Vec<usize>,
    /// Events (items and signals) that came in, and that went out, counted once for each listener.
    pub received: i64,
    pub sent: i64,
}

/// Collects from all workers.
pub struct DataflowLog {
    file: File,
    lines: Mutex<Vec<OperatorLine>>,
}

impl DataflowLog {
    /// Makes the file at once: a path that cannot be written is known before the run, not after it.
    ///
    /// # Errors
    /// Where there is such a file already, which is left alone, or none can be made.
    pub fn create(path: &Path) -> Result<DataflowLog, StartError> {
        let file = File::create_new(path).map_err(|error| {
            let message = format!("cannot create the dataflow log `{}`: {error}", path.display());
            StartError::new(message).hint("remove that file, or name another one after --dataflow-log")
        })?;
        Ok(DataflowLog { file, lines: Mutex::default() })
    }

    /// Registers with `worker`'s log. What was seen is summed up when the worker ends.
    pub fn listen(self: &Arc<Self>, worker: &Worker) {
        let index = worker.index();
        let observed = Rc::new(RefCell::new(Summary { log: self.clone(), worker: index, seen: Observed::default() }));
        if let Some(mut register) = worker.log_register() {
            register.insert::<TimelyEventBuilder, _>("timely", move |_time, data| {
                if let Some(events) = data {
                    let mut observed = observed.borrow_mut();
                    for (_at, event) in events.iter() {
                        observed.seen.note(event);
                    }
                }
            });
        }
    }

    /// Writes what was collected; call it after the workers have ended.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self) -> std::io::Result<()> {
        let mut file = BufWriter::new(&self.file);
        for line in lock(&self.lines).iter() {
            serde_json::to_writer(&mut file, line)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }
}

struct Summary {
    log: Arc<DataflowLog>,
    worker: usize,
    seen: Observed,
}

impl Drop for Summary {
    fn drop(&mut self) {
        let mut lines = lock(&self.log.lines);
        for (address, name) in &self.seen.names {
            let ends_here = |id: &usize, end: fn(&Channel) -> &Vec<usize>| {
                self.seen.channels.get(id).is_some_and(|channel| end(channel) == address)
            };
            let sum = |counts: &HashMap<usize, i64>, end: fn(&Channel) -> &Vec<usize>| {
                counts.iter().filter(|(id, _)| ends_here(id, end)).map(|(_, count)| count).sum()
            };
            lines.push(OperatorLine {
                worker: self.worker,
                operator: name.clone(),
                address: address.clone(),
                received: sum(&self.seen.received, |channel| &channel.target),
                sent: sum(&self.seen.sent, |channel| &channel.source),
            });
        }
    }
}

impl Observed {
    fn note(&mut self, event: &TimelyEvent) {
        match event {
            TimelyEvent::Operates(operates) => {
                self.names.insert(operates.addr.clone(), operates.name.clone());
            }
            TimelyEvent::Channels(channel) => {
                let end = |operator: usize| channel.scope_addr.iter().copied().chain([operator]).collect();
                let channel_ends = Channel { source: end(channel.source.0), target: end(channel.target.0) };
                self.channels.insert(channel.id, channel_ends);
            }
            TimelyEvent::Messages(messages) => {
                let counts = if messages.is_send { &mut self.sent } else { &mut self.received };
                *counts.entry(messages.channel).or_default() += messages.record_count;
            }
            _ => {}
        }
    }
}
