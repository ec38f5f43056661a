//! The queue between a source's thread and a dataflow worker.
//!
//! Its bound is the budget of each stream: an item enters only with a lease. It is a deque under a lock and not a
//! channel, because a full live stream takes its own oldest item back out of the middle, and never a signal.

use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock};

use operators::item::{Event, Item, StreamId};
use timely::scheduling::activate::SyncActivator;

use super::counters::lock;

/// One tap's queue to one worker.
#[derive(Default)]
pub struct Mailbox {
    queue: Mutex<Queue>,
    waker: OnceLock<SyncActivator>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
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

    pub fn push(&self, event: Event) {
        let was_empty = {
            let mut queue = lock(&self.queue);
            if queue.abandoned {
                return;
            }
            queue.events.push_back(event);
            queue.events.len() == 1
        };
        // The drainer activates itself while anything is left, so only the first event needs a wake-up.
        if was_empty {
            self.wake();
        }
    }

    /// Takes the oldest waiting item of `stream` back out.
    pub fn evict(&self, stream: &StreamId) -> Option<Item> {
        let mut queue = lock(&self.queue);
        let is_it = |event: &Event| matches!(event, Event::Item(item) if item.stream == *stream);
        let position = queue.events.iter().position(is_it)?;
        match queue.events.remove(position) {
            Some(Event::Item(item)) => Some(item),
            _ => None,
        }
    }

    /// Moves up to `most` events into `into`.
    pub fn drain(&self, most: usize, into: &mut Vec<Event>) -> Remaining {
        let mut queue = lock(&self.queue);
        let count = queue.events.len().min(most);
        into.extend(queue.events.drain(..count));
        match (queue.events.is_empty(), queue.closed) {
            (false, _) => Remaining::More,
            (true, false) => Remaining::Empty,
            (true, true) => Remaining::Closed,
        }
    }

    /// Nothing more will be pushed.
    pub fn close(&self) {
        lock(&self.queue).closed = true;
        self.wake();
    }

    /// Throws away what waits and what still comes; its items are lost.
    pub fn abandon(&self) {
        let events = {
            let mut queue = lock(&self.queue);
            queue.abandoned = true;
            std::mem::take(&mut queue.events)
        };
        drop(events);
        self.close();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            // Fails only when the worker is gone; then nobody is left to wake.
            let _ = waker.activate();
        }
    }
}
