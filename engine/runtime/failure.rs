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
    /// Never blocks for long: the supervisor does nothing but read these. Dropped where the graph is gone already.
    pub fn send(&self, notice: Notice) {
        let _ = self.0.send(notice);
    }

    /// Reports a failing node once; a full channel already holds enough reasons to stop.
    pub fn node_failed(&self, node: &Arc<str>, stream: Option<&StreamId>, message: String) {
        let _ = self.0.try_send(Notice::NodeFailed { node: node.clone(), stream: stream.cloned(), message });
    }
}
