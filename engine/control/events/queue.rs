//! What waits for one subscriber of server-sent events, and what it has lost.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use operators::lock::lock;
use serde::Serialize;

use super::filter::Filter;
use super::{EventLimits, Published};

/// What is missing before a subscriber's next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// So many events; of all kinds, or already `filtered` to those that the subscriber asked for.
    Counted { events: u64, filtered: bool },
    /// The subscriber continues from an id that this process does not know.
    Unknown,
}

impl Lost {
    fn merge(earlier: Option<Lost>, later: Option<Lost>) -> Option<Lost> {
        match (earlier, later) {
            (Some(Lost::Counted { events: a, filtered: x }), Some(Lost::Counted { events: b, filtered: y })) => {
                Some(Lost::Counted { events: a + b, filtered: x && y })
            }
            (Some(Lost::Unknown), _) | (_, Some(Lost::Unknown)) => Some(Lost::Unknown),
            (lost, None) | (None, lost) => lost,
        }
    }

    /// The event that tells the subscriber.
    pub fn wire(self) -> String {
        #[derive(Serialize)]
        struct Notice {
            kind: &'static str,
            lost: Option<u64>,
            reason: &'static str,
        }
        let (lost, reason) = match self {
            Lost::Counted { events, filtered: true } => (Some(events), "this subscriber read too slowly"),
            Lost::Counted { events, filtered: false } => {
                (Some(events), "these events, counted before filtering, are no longer kept")
            }
            Lost::Unknown => (None, "the last event id is not of this run of the engine"),
        };
        // A struct of plain values always serialises.
        let json = serde_json::to_string(&Notice { kind: "gap", lost, reason }).unwrap_or_default();
        format!("event: gap\ndata: {json}\n\n")
    }
}

/// One subscriber's share of the hub.
pub struct Queue {
    pub filter: Filter,
    /// Events up to this one were considered when it joined.
    pub after: u64,
    pub waiting: Mutex<Waiting>,
}

#[derive(Default)]
pub struct Waiting {
    /// Each with what is missing right before it.
    pub events: VecDeque<(Option<Lost>, Arc<Published>)>,
    pub bytes: usize,
    /// What is missing after the last of them.
    pub lost: Option<Lost>,
    /// Up to this event everything was considered for this subscriber.
    pub position: u64,
    pub closed: bool,
    pub reader: Option<Waker>,
}

impl Waiting {
    /// Answers how many older ones it had to let go for it.
    pub fn push(&mut self, event: &Arc<Published>, limits: EventLimits) -> u64 {
        let mut gone = 0;
        self.bytes += event.bytes();
        self.events.push_back((self.lost.take(), event.clone()));
        while self.events.len() > limits.events || (self.bytes > limits.bytes && self.events.len() > 1) {
            let Some((before, oldest)) = self.events.pop_front() else { break };
            gone += 1;
            self.bytes -= oldest.bytes();
            let lost = Lost::merge(before, Some(Lost::Counted { events: 1, filtered: true }));
            let next = self.events.front_mut().map_or(&mut self.lost, |(before, _)| before);
            *next = Lost::merge(lost, *next);
        }
        gone
    }

    pub fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Queue {
    /// Takes what it wants of `batch`, whose last event is `latest`; `missed` went by before the hub could look. Answers
    /// how many events the subscriber has lost by that.
    pub fn offer(&self, missed: u64, batch: &[Arc<Published>], latest: u64, limits: EventLimits) -> u64 {
        let mut gone = 0;
        let mut waiting = lock(&self.waiting);
        if missed > 0 {
            // Those from before it joined are none of its business.
            let first = batch.first().map_or(latest, |event| event.counter.saturating_sub(1));
            let concerned = missed.min(first.saturating_sub(self.after));
            if concerned > 0 {
                let lost = Lost::Counted { events: concerned, filtered: false };
                waiting.lost = Lost::merge(waiting.lost, Some(lost));
                gone += concerned;
            }
        }
        for event in batch {
            if event.counter > self.after && self.filter.wants(&event.record) {
                gone += waiting.push(event, limits);
            }
        }
        waiting.position = waiting.position.max(latest);
        if waiting.lost.is_some() || !waiting.events.is_empty() {
            waiting.wake();
        }
        gone
    }
}
