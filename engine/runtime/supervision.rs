//! Watches a graph that runs, drains it and takes it down.
//!
//! A graph is finished when every stream has ended, every end of its dataflow has seen an empty frontier and every sink
//! has closed: nothing is in flight then, and the books balance.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, after, never, select};
use operators::inference::pool::Installed;
use operators::item::{EndReason, StreamId};

use super::counters::GraphCounters;
use super::failure::Notice;
use super::mailbox::Mailbox;
use super::stats::GraphState;
use super::supervisor::{Engine, LAST_CALL};
use super::tap::Stop;

/// What somebody asks of a running graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Take nothing new, deliver what is in flight, then end.
    Drain,
    /// End now; what is in flight is lost.
    Abort,
}

/// How a graph ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why the graph, or streams of it, failed.
    pub failures: Vec<String>,
    /// What had not ended at the drain deadline, or when it was told to end at once.
    pub stuck: Vec<String>,
    /// The last that was asked of it; `None`: it ended by itself.
    pub asked: Option<Request>,
}

impl Outcome {
    pub fn is_success(&self) -> bool {
        self.failures.is_empty() && self.stuck.is_empty()
    }
}

/// A graph that runs. Somebody must [`RunningGraph::supervise`] it.
pub struct RunningGraph<'e> {
    pub(super) engine: &'e Engine,
    pub counters: Arc<GraphCounters>,
    pub(super) notices: Receiver<Notice>,
    pub(super) installed: Vec<Installed>,
    pub(super) dataflow: u64,
    /// For each source, the mailboxes of all its taps.
    pub(super) source_taps: Vec<Vec<Arc<Mailbox>>>,
    pub(super) ends_open: usize,
    pub(super) open_sinks: Vec<Arc<str>>,
    /// The tasks of all sinks.
    pub(super) writing_sinks: Vec<tokio::task::AbortHandle>,
    pub(super) streams: HashMap<(usize, StreamId), JoinHandle<()>>,
    pub(super) stop: Arc<Stop>,
    pub(super) failed_streams: Vec<String>,
}

impl RunningGraph<'_> {
    /// Watches the graph until it has ended. `requests` may ask it to end sooner; from then on it has
    /// `drain_deadline` to deliver what is in flight.
    pub fn supervise(mut self, requests: &Receiver<Request>, drain_deadline: Duration) -> Outcome {
        let mut deadline = never();
        let mut requests = requests.clone();
        let mut stuck = Vec::new();
        let (mut asked, mut draining) = (None, false);
        while !self.is_done() {
            select! {
                recv(self.notices) -> notice => if let Ok(notice) = notice && self.take(notice) && !draining {
                    draining = true;
                    self.drain();
                    deadline = after(drain_deadline);
                },
                recv(requests) -> request => match request {
                    Ok(Request::Drain) => {
                        asked = Some(Request::Drain);
                        if !draining {
                            draining = true;
                            self.drain();
                            deadline = after(drain_deadline);
                        }
                    }
                    Ok(Request::Abort) => {
                        asked = Some(Request::Abort);
                        stuck = self.what_is_open();
                        break;
                    }
                    // Nobody can ask any more; the graph ends by itself.
                    Err(_) => requests = never(),
                },
                recv(deadline) -> _ => {
                    stuck = self.what_is_open();
                    break;
                }
            }
        }
        if !self.is_done() {
            self.abort();
        }
        self.finish(stuck, asked)
    }

    fn is_done(&self) -> bool {
        self.streams.is_empty() && self.ends_open == 0 && self.open_sinks.is_empty()
    }

    /// Notes what happened; `true` when the graph has to stop because of it.
    fn take(&mut self, notice: Notice) -> bool {
        match notice {
            Notice::NodeFailed { node, stream, message } => {
                tracing::error!(node = %node, stream = stream.as_deref().unwrap_or("-"), "the graph stops: {message}");
                self.counters.set_state(GraphState::Failed, Some(message));
                return true;
            }
            Notice::StreamEnded { source, stream, reason } => {
                if let EndReason::Failed(text) = reason {
                    self.failed_streams.push(format!("stream `{stream}`: {text}"));
                }
                if let Some(thread) = self.streams.remove(&(source, stream)) {
                    // Its last act was to send this notice; a panic was caught inside.
                    let _ = thread.join();
                }
                if !self.streams.keys().any(|(other, _)| *other == source) {
                    self.source_taps[source].iter().for_each(|mailbox| mailbox.close());
                }
            }
            Notice::SinkClosed { node } => {
                if let Some(index) = self.open_sinks.iter().position(|open| *open == node) {
                    self.open_sinks.swap_remove(index);
                }
            }
            Notice::EndReached => self.ends_open = self.ends_open.saturating_sub(1),
        }
        false
    }

    fn drain(&self) {
        self.counters.set_state(GraphState::Draining, None);
        self.stop.stop();
    }

    fn what_is_open(&self) -> Vec<String> {
        let mut open: Vec<String> = self.streams.keys().map(|(_, stream)| format!("stream `{stream}`")).collect();
        open.sort();
        open.extend(self.open_sinks.iter().map(|sink| format!("sink `{sink}`")));
        let counts = self.counters.report().total;
        open.push(format!("{} items in flight", counts.in_flight));
        open
    }

    /// Lets go of everything that is in flight: it is lost.
    fn abort(&mut self) {
        self.stop.abort();
        self.source_taps.iter().flatten().for_each(|mailbox| mailbox.abandon());
        self.engine.workers.remove(self.dataflow);
        self.ends_open = 0;
        self.last_call(Self::is_done);
        // What a sink that is stuck has in hand would stay in flight for ever.
        self.writing_sinks.iter().for_each(tokio::task::AbortHandle::abort);
        self.last_call(|graph| graph.open_sinks.is_empty());
    }

    /// Waits for `done`, but not for long.
    fn last_call(&mut self, done: impl Fn(&Self) -> bool) {
        let last_call = after(LAST_CALL);
        while !done(self) {
            select! {
                recv(self.notices) -> notice => match notice {
                    Ok(Notice::EndReached) | Err(_) => {}
                    Ok(notice) => {
                        self.take(notice);
                    }
                },
                recv(last_call) -> _ => return,
            }
        }
    }

    fn finish(self, stuck: Vec<String>, asked: Option<Request>) -> Outcome {
        self.engine.workers.remove(self.dataflow);
        for operator in &self.installed {
            self.engine.pool.remove(*operator);
        }
        let (state, reason) = self.counters.state();
        let mut failures = self.failed_streams;
        if state == GraphState::Failed {
            failures.insert(0, reason.unwrap_or_default());
        }
        let total = self.counters.report().total;
        if failures.is_empty() && total.lost > 0 {
            failures.push(format!("{} items were lost", total.lost));
        }
        if failures.is_empty() && total.rejected > 0 {
            if total.delivered == 0 {
                failures.push(format!("every item was rejected ({}); the error records say why", total.rejected));
            } else {
                tracing::warn!("{} items were rejected; their error records say why", total.rejected);
            }
        }
        self.counters.set_state(GraphState::Finished, None);
        Outcome { failures, stuck, asked }
    }
}
