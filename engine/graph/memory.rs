//! The worst case of a plan's memory: what budgets, entries and pool threads may hold at once.
//!
//! It bounds media in flight: everything that has a lease, one picture for each stream between its decoder and its
//! taps, what a source keeps for each stream, and what pool threads allocate. It does not cover what the libraries keep for themselves (the decoders' reference
//! pictures, the sessions' weights where an operator does not say so), nor the program.

use operators::item::Kind;
use operators::operator::{ItemSize, Source};
use serde::Serialize;

use super::plan::{Entry, Input, Plan, PlannedTap, Work};

/// One part of the worst case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryTerm {
    /// What holds it, for people.
    pub what: String,
    /// How many there are of it: streams, or threads.
    pub count: u64,
    /// Bytes that each may hold.
    pub each: u64,
    /// `count` times `each`.
    pub bytes: u64,
}

/// All parts of the worst case, and their sum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    pub terms: Vec<MemoryTerm>,
    pub total_bytes: u64,
}

impl Memory {
    /// Adds a term.
    pub fn add(&mut self, what: String, count: u64, each: u64) {
        let bytes = count.saturating_mul(each);
        self.total_bytes = self.total_bytes.saturating_add(bytes);
        self.terms.push(MemoryTerm { what, count, each, bytes });
    }
}

impl Plan {
    /// The worst case of media in flight, with its terms.
    pub fn memory(&self) -> Memory {
        let mut memory = Memory::default();
        for (index, tap) in self.taps.iter().enumerate() {
            let source = &self.sources[tap.source];
            let streams = u64::from(source.planned_streams);
            let what = format!("behind the tap {}", self.tap_name(index));
            memory.add(what, streams, self.tap_bytes(tap));
        }
        for source in &self.sources {
            let decodes =
                self.taps.iter().any(|tap| tap.kind != Kind::Packet && self.sources[tap.source].name == source.name);
            if !decodes {
                continue;
            }
            if let ItemSize::Known(bytes) | ItemSize::Declared(bytes) = source.source.frame_size() {
                let what = format!("pictures of `{}` between decoder and taps", source.name);
                memory.add(what, u64::from(source.planned_streams), bytes);
            }
            if let bytes @ 1.. = source.source.stream_memory() {
                let what = format!("what streams of `{}` keep for themselves", source.name);
                memory.add(what, u64::from(source.planned_streams), bytes);
            }
        }
        let operators = self.operators.iter().map(|node| (&node.name, &node.inputs, node.entry));
        let sinks = self.sinks.iter().map(|node| (&node.name, &node.inputs, node.entry));
        for (name, inputs, entry) in operators.chain(sinks) {
            let Some(entry) = entry else { continue };
            let sources = self.roots(inputs);
            let streams = sources.iter().map(|source| u64::from(self.sources[*source].planned_streams)).sum();
            memory.add(format!("in front of `{name}`"), streams, self.entry_bytes(&entry, &sources));
        }
        for sink in &self.sinks {
            if let bytes @ 1.. = sink.sink.stream_memory() {
                let sources = self.roots(&sink.inputs);
                let streams = sources.iter().map(|source| u64::from(self.sources[*source].planned_streams)).sum();
                memory.add(format!("what `{}` keeps of streams", sink.name), streams, bytes);
            }
        }
        for node in &self.operators {
            match &node.work {
                Work::Pool(operator) => {
                    if let bytes @ 1.. = operator.memory() {
                        memory.add(format!("pool threads, for `{}`", node.name), self.pool_threads as u64, bytes);
                    }
                }
                Work::Inline(operator) => {
                    if let bytes @ 1.. = operator.stream_memory() {
                        let sources = self.roots(&node.inputs);
                        let streams =
                            sources.iter().map(|source| u64::from(self.sources[*source].planned_streams)).sum();
                        memory.add(format!("what `{}` keeps of each stream", node.name), streams, bytes);
                    }
                }
                // What it works on is in the bounds of whoever made it.
                Work::Io(_) => {}
            }
        }
        memory
    }

    /// Bytes that one stream may hold behind a tap.
    pub fn tap_bytes(&self, tap: &PlannedTap) -> u64 {
        if tap.kind == Kind::Packet {
            return tap.limits.bytes;
        }
        bounded(tap.limits.items, tap.limits.bytes, &*self.sources[tap.source].source)
    }

    fn entry_bytes(&self, entry: &Entry, sources: &[usize]) -> u64 {
        let each = sources.iter().map(|s| bounded(entry.limits.items, entry.limits.bytes, &*self.sources[*s].source));
        each.max().unwrap_or(entry.limits.bytes)
    }

    /// The sources that inputs lead back to, as indices in ascending order.
    pub fn roots(&self, inputs: &[Input]) -> Vec<usize> {
        let (mut waiting, mut seen, mut sources) = (inputs.to_vec(), std::collections::HashSet::new(), Vec::new());
        while let Some(input) = waiting.pop() {
            if !seen.insert(input) {
                continue;
            }
            match input {
                Input::Tap(tap) => sources.push(self.taps[tap].source),
                Input::Operator(operator) => waiting.extend(&self.operators[operator].inputs),
            }
        }
        sources.sort_unstable();
        sources.dedup();
        sources
    }

    /// "`cam` -> `twice_a_second`": a tap's source, and its `sample` or else its consumer.
    pub fn tap_name(&self, tap: usize) -> String {
        let tap = &self.taps[tap];
        format!("`{}` -> `{}`", self.sources[tap.source].name, tap.reader)
    }

    /// The nodes that read an input.
    pub fn consumers(&self, input: Input) -> impl Iterator<Item = &std::sync::Arc<str>> {
        let operators = self.operators.iter().map(|node| (&node.name, &node.inputs));
        let sinks = self.sinks.iter().map(|node| (&node.name, &node.inputs));
        operators.chain(sinks).filter(move |(_, inputs)| inputs.contains(&input)).map(|(name, _)| name)
    }
}

fn bounded(items: u32, bytes: u64, source: &dyn Source) -> u64 {
    match source.frame_size() {
        ItemSize::Known(size) => bytes.min(size.saturating_mul(u64::from(items))),
        // A picture that grew may take all that the budget allows.
        ItemSize::Declared(_) | ItemSize::Unknown => bytes,
    }
}
