//! What every node of a running graph shares: its names, its counters and what its errors mean.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use operators::clock::Clock;
use operators::error::ItemError;
use operators::item::{Event, Gap, Item, Origin, Payload, RecordBody, StreamId};

use super::counters::{NodeCounters, worth_logging};
use super::failure::{Notice, Notices};
use super::passage::Passage;
use crate::graph::plan::OnError;
use crate::graph::substitute::Secrets;

#[derive(Clone)]
pub struct Node {
    pub origin: Origin,
    pub counters: Arc<NodeCounters>,
    pub on_error: OnError,
    pub notices: Notices,
    pub clock: Arc<dyn Clock>,
    /// Whether this node's errors have stopped the graph.
    pub asked_to_stop: Arc<AtomicBool>,
    pub secrets: Arc<Secrets>,
    /// Whoever watches an item hears of the records that leave this node.
    pub answers: bool,
}

impl Node {
    /// The error record that takes the place of `item`. The item is rejected or lost from here on, as the error says.
    pub fn reject(&self, item: &Item, error: &ItemError) -> Item {
        let why = self.secrets.redact(&error.to_string());
        let message = format!("`{}` failed on stream `{}`, item {}: {why}", self.origin.node, item.stream, item.seq);
        let nth = self.counters.error(&message, self.clock.now());
        if worth_logging(nth) {
            tracing::warn!(node = %self.origin.node, stream = %item.stream, seq = item.seq, errors = nth, "{message}");
        }
        if self.on_error == OnError::Stop {
            self.stop_graph(Some(&item.stream), message.clone());
        }
        item.lease.ack.raise(error.verdict());
        let record = self.origin.record(item, RecordBody::Error { message });
        item.derive(Payload::Record(Arc::new(record)))
    }

    /// Lets whoever watches the item of `passage` know of its record, where this node answers.
    pub fn tell(&self, passage: &Passage) {
        if self.answers
            && let Passage::Event(Event::Item(item)) = passage
            && let Payload::Record(record) = &item.payload
        {
            item.lease.ack.tell(record);
        }
    }

    /// Asks the supervisor to stop the graph because of this node: once, the first reason is enough.
    pub fn stop_graph(&self, stream: Option<&StreamId>, message: String) {
        if !self.asked_to_stop.swap(true, Ordering::AcqRel) {
            let node = self.origin.node.clone();
            self.notices.send(Notice::NodeFailed { node, stream: stream.cloned(), message });
        }
    }

    /// A full entry drops `item`.
    pub fn drop_item(&self, item: Item) {
        item.lease.ack.drop_at(&self.origin.node, "queue full");
    }

    /// The gap that follows a panic: the stream's state in this node is gone.
    pub fn gap_after_panic(&self, stream: &StreamId, seq: Option<u64>) -> Event {
        let reason = format!("`{}` lost its state of this stream in a panic", self.origin.node);
        Event::Gap { stream: stream.clone(), gap: Gap { reason, seq: seq.map(|seq| seq + 1) } }
    }
}

/// Error records travel past operators to the sinks, in the place of the item that failed.
pub fn is_error(item: &Item) -> bool {
    matches!(&item.payload, Payload::Record(record) if matches!(record.body, RecordBody::Error { .. }))
}
