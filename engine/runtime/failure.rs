//! How workers, sinks and sources tell the supervisor what happened.

use std::sync::Arc;

use crossbeam_channel::Sender;
use operators::item::{EndReason, StreamId};

/// Something that the supervisor must know.
#[derive(Debug)]
pub enum Notice {
    /// A node whose errors stop the graph had one.
    NodeFailed { node: Arc<str>, stream: Option<StreamId>, message: String },
    /// A stream's thread is done.
    StreamEnded { source: usize, stream: StreamId, reason: EndReason },
    /// A sink has written and closed everything that reached it.
    SinkClosed { node: Arc<str> },
    /// An end of the dataflow on one worker will see nothing more.
    EndReached,
}

/// The way to the supervisor of one graph.
#[derive(Clone)]
pub struct Notices(pub Sender<Notice>);

impl Notices {
    /// Never waits: the channel has room for everything that can happen to the graph. Dropped where the graph is gone.
    pub fn send(&self, notice: Notice) {
        let _ = self.0.send(notice);
    }
}
