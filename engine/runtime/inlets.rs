//! Where pictures are pushed into running streams, by the id of the stream. An inlet is here from when its stream starts
//! to be read until it has ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use operators::inlet::Inlet;
use operators::item::StreamId;
use operators::lock::lock;

/// A stream that is pushed to.
#[derive(Clone)]
pub struct OpenInlet {
    pub graph: Arc<str>,
    pub stream: StreamId,
    pub inlet: Arc<Inlet>,
}

/// The streams of a process that are pushed to.
#[derive(Default)]
pub struct Inlets {
    open: Mutex<BTreeMap<String, OpenInlet>>,
    /// Those that are read anew, from when they have ended until they are open again, each with its graph.
    returning: Mutex<BTreeMap<String, Arc<str>>>,
}

impl Inlets {
    pub fn get(&self, stream: &str) -> Option<OpenInlet> {
        lock(&self.open).get(stream).cloned()
    }

    /// Whether a stream is about to be open again.
    pub fn is_returning(&self, stream: &str) -> bool {
        lock(&self.returning).contains_key(stream)
    }

    /// All of them, by the id of the stream.
    pub fn list(&self) -> Vec<OpenInlet> {
        lock(&self.open).values().cloned().collect()
    }

    pub(super) fn open(&self, graph: &Arc<str>, stream: &StreamId, inlet: Arc<Inlet>) {
        let open = OpenInlet { graph: graph.clone(), stream: stream.clone(), inlet };
        let (mut all, mut returning) = (lock(&self.open), lock(&self.returning));
        all.insert(stream.to_string(), open);
        returning.remove(&**stream);
    }

    /// A stream of a graph has ended; `returns`: it is about to be read anew.
    pub(super) fn close(&self, graph: &Arc<str>, stream: &StreamId, returns: bool) {
        let (mut open, mut returning) = (lock(&self.open), lock(&self.returning));
        let is_open = open.get(&**stream).is_some_and(|open| open.graph == *graph);
        if is_open && returns {
            returning.insert(stream.to_string(), graph.clone());
        } else if !returns && returning.get(&**stream).is_some_and(|of| of == graph) {
            returning.remove(&**stream);
        }
        if is_open {
            open.remove(&**stream);
        }
    }

    /// A graph has ended.
    pub(super) fn close_all(&self, graph: &Arc<str>) {
        lock(&self.open).retain(|_, open| open.graph != *graph);
        lock(&self.returning).retain(|_, of| of != graph);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use operators::clock::SimulatedClock;
    use operators::inlet::InletSettings;

    #[test]
    fn a_stream_that_is_read_anew_returns() {
        let inlets = Inlets::default();
        let [yard, other]: [Arc<str>; 2] = ["yard".into(), "other".into()];
        let stream = StreamId::new("cam").unwrap();
        let settings = InletSettings { places: 1, max_bytes: 1, answer: None };
        let open = || inlets.open(&yard, &stream, Inlet::new(settings.clone(), Arc::new(SimulatedClock::default())).0);
        open();
        inlets.close(&other, &stream, true);
        assert!(inlets.get("cam").is_some() && !inlets.is_returning("cam"), "it is another graph's");
        inlets.close(&yard, &stream, true);
        assert!(inlets.get("cam").is_none() && inlets.is_returning("cam"));
        open();
        assert!(inlets.get("cam").is_some() && !inlets.is_returning("cam"));
        inlets.close(&yard, &stream, false);
        assert!(!inlets.is_returning("cam"));
        open();
        inlets.close(&yard, &stream, true);
        inlets.close(&yard, &stream, false);
        assert!(!inlets.is_returning("cam"), "it could not be read anew");
        open();
        inlets.close(&yard, &stream, true);
        inlets.close_all(&yard);
        assert!(!inlets.is_returning("cam"), "its graph has ended");
    }
}
