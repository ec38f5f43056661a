//! How workers, sinks and sources tell the supervisor what happened.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use operators::item::{EndReason, StreamId};

/// Something that the supervisor must know.
#[derive(Debug)]
pub enum Notice {
    /// A node whose errors stop the graph had one.
    NodeFailed { node: Arc<str>, stream: Option<StreamId>, message: String },
    /// A stream's thread is done.
    StreamEnded { stream: StreamId, reason: EndReason },
    /// A sink has written and closed everything that reached it.
    SinkClosed { sink: u64 },
    /// A sink has all that it wanted: the graph need not go on.
    SinkComplete { sink: Arc<str> },
    /// An end of the dataflow of a generation on one worker will see nothing more.
    EndReached { generation: u64 },
}

/// The way to the supervisor of one graph.
#[derive(Clone)]
pub struct Notices {
    nodes: Sender<Notice>,
    streams: Sender<Notice>,
}

/// What the supervisor of one graph hears.
pub struct Heard {
    pub nodes: Receiver<Notice>,
    pub streams: Receiver<Notice>,
}

/// What nodes can say before anybody listens: each end of a generation on each worker speaks once, each node and sink
/// once, and two generations are there at most.
const NODES: usize = 4096;
/// Streams that end while the supervisor is busy; the threads of further ones wait, which is no harm to anybody.
const STREAMS: usize = 256;

pub fn notices() -> (Notices, Heard) {
    let (nodes, heard_nodes) = bounded(NODES);
    let (streams, heard_streams) = bounded(STREAMS);
    (Notices { nodes, streams }, Heard { nodes: heard_nodes, streams: heard_streams })
}

impl Notices {
    /// For workers and sinks, which must not wait. Dropped where the graph is gone.
    pub fn send(&self, notice: Notice) {
        let _ = self.nodes.send(notice);
    }

    /// For the threads of streams. Dropped where the graph is gone.
    pub fn stream(&self, notice: Notice) {
        let _ = self.streams.send(notice);
    }
}
