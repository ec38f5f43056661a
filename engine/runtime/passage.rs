//! What travels along an edge of a running dataflow: events, and the marks of a cut between two generations of a graph.
//!
//! A reload cuts each stream: items before the cut go through the old dataflow, items after it through the new one. The
//! old dataflow carries a [`Passage::Cut`] behind the last item of the stream, and each node that has seen it on all of
//! its inputs will see no more of the stream: it hands its state over, or ends the stream, and passes the mark on. When
//! all ends of the dataflow have seen it, nothing of the stream is left there, and the new generation, which has held
//! back what came meanwhile, goes on behind a [`Passage::Resume`]. So order holds, and nothing is seen twice.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use crossbeam_channel::Sender;
use operators::item::{Event, StreamId, StreamInfo};
use operators::lock::lock;

#[derive(Clone)]
pub enum Passage {
    Event(Event),
    /// Nothing more of this stream comes through this generation.
    Cut {
        stream: StreamId,
        cut: Arc<Cut>,
    },
    /// From here on this stream comes through this generation.
    Resume {
        stream: StreamId,
        cut: Arc<Cut>,
        /// The format of what comes, where the stream has opened already.
        info: Option<Arc<StreamInfo>>,
    },
}

impl Passage {
    pub fn stream(&self) -> &StreamId {
        match self {
            Passage::Event(event) => event.stream(),
            Passage::Cut { stream, .. } | Passage::Resume { stream, .. } => stream,
        }
    }

    pub fn is_item(&self) -> bool {
        matches!(self, Passage::Event(Event::Item(_)))
    }
}

/// How the streams of one source run through a generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// For each node that they reach, how many of its inputs bring them.
    pub inputs: HashMap<Arc<str>, usize>,
    /// How many ends of the dataflow they reach.
    pub ends: usize,
}

/// One stream's way from one generation into the next.
pub struct Cut {
    stream: StreamId,
    /// Nodes of the old generation whose state goes on in the new one.
    kept: Arc<HashSet<Arc<str>>>,
    books: Mutex<Books>,
    done: Sender<StreamId>,
}

struct Books {
    /// Marks that each node still waits for.
    inputs: HashMap<Arc<str>, usize>,
    ends: usize,
    states: HashMap<Arc<str>, Box<dyn Any + Send>>,
    /// Nodes of the new generation that have been told.
    resumed: HashSet<Arc<str>>,
}

impl Cut {
    /// `done` hears of the stream once all ends of the old generation have seen the cut; it must have room.
    pub fn new(stream: StreamId, course: Course, kept: Arc<HashSet<Arc<str>>>, done: Sender<StreamId>) -> Arc<Cut> {
        let is_through = course.ends == 0;
        let cut = Cut {
            stream,
            kept,
            books: Mutex::new(Books {
                inputs: course.inputs,
                ends: course.ends,
                states: HashMap::new(),
                resumed: HashSet::new(),
            }),
            done,
        };
        if is_through {
            cut.report();
        }
        Arc::new(cut)
    }

    /// One input of `node` has brought the mark; whether it was the last.
    pub fn arrives(&self, node: &Arc<str>) -> bool {
        let mut books = lock(&self.books);
        match books.inputs.get_mut(node) {
            Some(left) => {
                *left = left.saturating_sub(1);
                *left == 0
            }
            None => true,
        }
    }

    /// An end of the old dataflow has seen everything.
    pub fn reaches_end(&self) {
        let is_through = {
            let mut books = lock(&self.books);
            books.ends = books.ends.saturating_sub(1);
            books.ends == 0
        };
        if is_through {
            self.report();
        }
    }

    fn report(&self) {
        // Fails only where nobody waits any more.
        let _ = self.done.try_send(self.stream.clone());
    }

    pub fn keeps(&self, node: &Arc<str>) -> bool {
        self.kept.contains(node)
    }

    /// Leaves the state of `node` for the next generation.
    pub fn hand_over(&self, node: &Arc<str>, state: Box<dyn Any + Send>) {
        lock(&self.books).states.insert(node.clone(), state);
    }

    /// Takes what the old generation left for `node`. `None` the second time that a mark comes: it was told already.
    pub fn take_over(&self, node: &Arc<str>) -> Option<Inheritance> {
        let mut books = lock(&self.books);
        books.resumed.insert(node.clone()).then(|| Inheritance(books.states.remove(node)))
    }
}

/// The state that a node goes on with, if it was kept.
pub struct Inheritance(pub Option<Box<dyn Any + Send>>);

#[cfg(test)]
mod tests {
    use super::*;

    use crossbeam_channel::bounded;

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    #[test]
    fn a_node_waits_for_the_mark_on_each_of_its_inputs() {
        let (done, waiting) = bounded(1);
        let inputs = HashMap::from([(name("merge"), 2), (name("sink"), 1)]);
        let cut = Cut::new(StreamId::new("a").unwrap(), Course { inputs, ends: 1 }, Arc::default(), done);
        assert!(!cut.arrives(&name("merge")));
        assert!(cut.arrives(&name("merge")));
        assert!(cut.arrives(&name("sink")) && waiting.is_empty());
        cut.reaches_end();
        assert_eq!(&*waiting.recv().unwrap(), "a");
    }

    #[test]
    fn a_state_is_taken_over_once() {
        let (done, _waiting) = bounded(1);
        let cut = Cut::new(StreamId::new("a").unwrap(), Course::default(), Arc::default(), done);
        cut.hand_over(&name("count"), Box::new(7u64));
        let state = cut.take_over(&name("count")).and_then(|inheritance| inheritance.0);
        assert_eq!(state.and_then(|state| state.downcast::<u64>().ok()), Some(Box::new(7)));
        assert!(cut.take_over(&name("count")).is_none(), "the mark of another input says nothing new");
    }
}
