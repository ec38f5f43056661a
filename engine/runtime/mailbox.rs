//! The queue between a source's thread and a dataflow worker.
//!
//! Its bound is the budget of each stream: an item enters only with a lease. It is a deque under a lock and not a
//! channel, because a full live stream takes its own oldest item back out of the middle, and never a signal; and because
//! a stream may be held back until an older generation of the graph has finished with it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use operators::item::{Event, Item, StreamId};
use operators::lock::lock;
use timely::scheduling::activate::SyncActivator;

use super::passage::Passage;

/// One tap's queue to one worker.
#[derive(Default)]
pub struct Mailbox {
    queue: Mutex<Queue>,
    waker: OnceLock<SyncActivator>,
}

#[derive(Default)]
struct Queue {
    passages: VecDeque<Passage>,
    /// What waits for its stream to be released.
    held: HashMap<StreamId, VecDeque<Passage>>,
    closed: bool,
    /// What comes now is lost.
    abandoned: bool,
}

/// What is left after [`Mailbox::drain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remaining {
    More,
    Empty,
    /// Empty, and nothing will come any more.
    Closed,
}

impl Mailbox {
    /// Tells whom to wake. Called once, by the worker that drains it.
    pub fn wake_by(&self, activator: SyncActivator) {
        // A second call would come from a second dataflow on the same mailbox, which `build` never makes.
        let _ = self.waker.set(activator);
    }

    pub fn push(&self, passage: Passage) {
        let was_empty = {
            let mut queue = lock(&self.queue);
            if queue.abandoned {
                return;
            }
            if let Some(held) = queue.held.get_mut(passage.stream()) {
                held.push_back(passage);
                return;
            }
            queue.passages.push_back(passage);
            queue.passages.len() == 1
        };
        // The drainer activates itself while anything is left, so only the first passage needs a wake-up.
        if was_empty {
            self.wake();
        }
    }

    /// Keeps what comes of `stream` back from here on.
    pub fn hold(&self, stream: &StreamId) {
        lock(&self.queue).held.entry(stream.clone()).or_default();
    }

    /// Lets go what was held back, and what comes of `stream` from here on.
    pub fn release(&self, stream: &StreamId) {
        {
            let mut queue = lock(&self.queue);
            let Some(held) = queue.held.remove(stream) else { return };
            queue.passages.extend(held);
        }
        self.wake();
    }

    /// Takes the oldest waiting item of `stream` back out.
    pub fn evict(&self, stream: &StreamId) -> Option<Item> {
        let mut queue = lock(&self.queue);
        let Queue { passages, held, .. } = &mut *queue;
        // What is held back is younger than what is not.
        [Some(passages), held.get_mut(stream)].into_iter().flatten().find_map(|passages| take_oldest(passages, stream))
    }

    /// Moves up to `most` passages into `into`.
    pub fn drain(&self, most: usize, into: &mut Vec<Passage>) -> Remaining {
        let mut queue = lock(&self.queue);
        let count = queue.passages.len().min(most);
        into.extend(queue.passages.drain(..count));
        match (queue.passages.is_empty(), queue.closed && queue.held.is_empty()) {
            (false, _) => Remaining::More,
            (true, false) => Remaining::Empty,
            (true, true) => Remaining::Closed,
        }
    }

    /// How many items wait, those that are held back included, and when the oldest was decoded.
    pub fn waiting(&self) -> (u64, Option<Instant>) {
        let queue = lock(&self.queue);
        let mut count = 0;
        let mut oldest: Option<Instant> = None;
        for passage in queue.passages.iter().chain(queue.held.values().flatten()) {
            if let Passage::Event(Event::Item(item)) = passage {
                count += 1;
                oldest = [oldest, item.lease.ack.born()].into_iter().flatten().min();
            }
        }
        (count, oldest)
    }

    /// Nothing more will be pushed.
    pub fn close(&self) {
        lock(&self.queue).closed = true;
        self.wake();
    }

    /// Throws away what waits and what still comes; its items are lost.
    pub fn abandon(&self) {
        let lost = {
            let mut queue = lock(&self.queue);
            queue.abandoned = true;
            (std::mem::take(&mut queue.passages), std::mem::take(&mut queue.held))
        };
        drop(lost);
        self.close();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            // Fails only when the worker is gone; then nobody is left to wake.
            let _ = waker.activate();
        }
    }
}

fn take_oldest(passages: &mut VecDeque<Passage>, stream: &StreamId) -> Option<Item> {
    let is_it = |passage: &Passage| matches!(passage, Passage::Event(Event::Item(item)) if item.stream == *stream);
    let position = passages.iter().position(is_it)?;
    match passages.remove(position) {
        Some(Passage::Event(Event::Item(item))) => Some(item),
        _ => None,
    }
}
