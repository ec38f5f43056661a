//! Where pictures are pushed into running streams, by the id of the stream. An inlet is here from when its stream starts
//! to be read until it has ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use operators::inlet::Inlet;
use operators::item::StreamId;

use super::counters::lock;

/// A stream that is pushed to.
#[derive(Clone)]
pub struct OpenInlet {
    pub graph: Arc<str>,
    pub stream: StreamId,
    pub inlet: Arc<Inlet>,
}

/// The streams of a process that are pushed to.
#[derive(Default)]
pub struct Inlets(Mutex<BTreeMap<String, OpenInlet>>);

impl Inlets {
    pub fn get(&self, stream: &str) -> Option<OpenInlet> {
        lock(&self.0).get(stream).cloned()
    }

    /// All of them, by the id of the stream.
    pub fn list(&self) -> Vec<OpenInlet> {
        lock(&self.0).values().cloned().collect()
    }

    pub(super) fn open(&self, graph: &Arc<str>, stream: &StreamId, inlet: Arc<Inlet>) {
        let open = OpenInlet { graph: graph.clone(), stream: stream.clone(), inlet };
        lock(&self.0).insert(stream.to_string(), open);
    }

    /// A stream of a graph has ended.
    pub(super) fn close(&self, graph: &Arc<str>, stream: &StreamId) {
        lock(&self.0).retain(|_, open| open.stream != *stream || open.graph != *graph);
    }

    /// A graph has ended.
    pub(super) fn close_all(&self, graph: &Arc<str>) {
        lock(&self.0).retain(|_, open| open.graph != *graph);
    }
}
