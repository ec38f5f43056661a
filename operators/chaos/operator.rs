//! Operators that are slow, and that panic.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::{ItemError, StartError};
use crate::inference::manifest::InputSpec;
use crate::inference::session::Sessions;
use crate::item::{EndReason, Gap, Item, Payload, StreamId, StreamInfo};
use crate::operator::{
    Batching, InlineOperator, IoOperator, IoRunner, Output, PoolOperator, Resource, Runner, SinkInput, StreamOperator,
    Trouble,
};

use super::Disturbance;

impl Disturbance {
    /// Holds up the calling thread, whatever else waits for it: as an operator does that takes too long.
    fn hold_up(&self, item: &Item, clock: &dyn Clock) {
        let delay = self.delay(&item.stream, item.seq);
        if !delay.is_zero() {
            clock.wait(clock.now() + delay, delay);
        }
    }

    fn panic_at(&self, item: &Item) {
        assert!(!self.panics(&item.stream, item.seq), "chaos: a panic at item {}", item.seq);
    }
}

/// Waits on `clock` without holding up a thread. Where that clock stands still, so does this.
pub(super) async fn pass(clock: &dyn Clock, delay: Duration) {
    const LOOK: Duration = Duration::from_millis(20);
    let deadline = clock.now() + delay;
    loop {
        let left = deadline.saturating_duration_since(clock.now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

pub(super) struct Inline {
    pub inner: Arc<dyn InlineOperator>,
    pub chaos: Disturbance,
    pub clock: Arc<dyn Clock>,
}

/// A `sample` with chaos stays where it is in the graph, and is not part of its source: only there it can fail.
impl InlineOperator for Inline {
    fn start(&self, stream: &StreamId) -> Box<dyn StreamOperator> {
        let inner = self.inner.start(stream);
        Box::new(InlineState { inner, chaos: self.chaos.clone(), clock: self.clock.clone() })
    }

    fn stream_memory(&self) -> u64 {
        self.inner.stream_memory()
    }

    fn joins(&self) -> bool {
        self.inner.joins()
    }

    fn refuses(&self, inputs: &[SinkInput]) -> Option<(String, String)> {
        self.inner.refuses(inputs)
    }
}

struct InlineState {
    inner: Box<dyn StreamOperator>,
    chaos: Disturbance,
    clock: Arc<dyn Clock>,
}

impl StreamOperator for InlineState {
    fn open(&mut self, info: &Arc<StreamInfo>, out: &mut Output) {
        self.inner.open(info, out);
    }

    fn item(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
        self.chaos.hold_up(item, &*self.clock);
        self.chaos.panic_at(item);
        self.inner.item(item, out)
    }

    fn gap(&mut self, gap: &Gap, out: &mut Output) {
        self.inner.gap(gap, out);
    }

    fn end(&mut self, reason: &EndReason, out: &mut Output) {
        self.inner.end(reason, out);
    }
}

pub(super) struct Pool {
    pub inner: Arc<dyn PoolOperator>,
    pub chaos: Disturbance,
    pub clock: Arc<dyn Clock>,
}

impl PoolOperator for Pool {
    fn runner(&self, sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
        let inner = self.inner.runner(sessions)?;
        Ok(Box::new(PoolRunner { inner, chaos: self.chaos.clone(), clock: self.clock.clone() }))
    }

    fn deadline(&self) -> Duration {
        self.inner.deadline()
    }

    fn batching(&self) -> Option<Batching> {
        self.inner.batching()
    }

    fn memory(&self) -> u64 {
        self.inner.memory()
    }

    fn takes(&self) -> Option<&InputSpec> {
        self.inner.takes()
    }

    fn makes(&self) -> Option<&InputSpec> {
        self.inner.makes()
    }

    fn model(&self) -> Option<Arc<str>> {
        self.inner.model()
    }
}

struct PoolRunner {
    inner: Box<dyn Runner>,
    chaos: Disturbance,
    clock: Arc<dyn Clock>,
}

impl Runner for PoolRunner {
    fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
        self.chaos.hold_up(item, &*self.clock);
        self.chaos.panic_at(item);
        self.inner.run(item)
    }

    /// A panic takes the whole batch with it; the pool then runs each of its items alone.
    fn run_batch(&mut self, items: &[&Item]) -> Vec<Result<Payload, ItemError>> {
        let slowest = items.iter().max_by_key(|item| self.chaos.delay(&item.stream, item.seq));
        if let Some(item) = slowest {
            self.chaos.hold_up(item, &*self.clock);
        }
        items.iter().for_each(|item| self.chaos.panic_at(item));
        self.inner.run_batch(items)
    }
}

pub(super) struct Io {
    pub inner: Arc<dyn IoOperator>,
    pub chaos: Disturbance,
    pub clock: Arc<dyn Clock>,
}

impl IoOperator for Io {
    fn start(&self) -> Result<Arc<dyn IoRunner>, StartError> {
        let inner = self.inner.start()?;
        Ok(Arc::new(DisturbedConversation { inner, chaos: self.chaos.clone(), clock: self.clock.clone() }))
    }

    fn concurrency(&self) -> usize {
        self.inner.concurrency()
    }

    fn resources(&self) -> Vec<Resource> {
        self.inner.resources()
    }
}

struct DisturbedConversation {
    inner: Arc<dyn IoRunner>,
    chaos: Disturbance,
    clock: Arc<dyn Clock>,
}

#[async_trait::async_trait]
impl IoRunner for DisturbedConversation {
    async fn run(&self, item: &Item) -> Result<Payload, ItemError> {
        pass(&*self.clock, self.chaos.delay(&item.stream, item.seq)).await;
        self.chaos.panic_at(item);
        // Some of these stand among the sinks.
        if self.chaos.fails(&item.stream, item.seq) {
            return Err(ItemError::Failed("chaos: the other side fails".to_owned()));
        }
        self.inner.run(item).await
    }

    fn trouble(&self) -> Option<Trouble> {
        self.inner.trouble()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::clock::SystemClock;
    use crate::inference::pool::panic_text;
    use crate::item::Placement;
    use crate::item::{Tensor, TensorData};
    use crate::lease::Verdict;
    use crate::testing::item;
    use crate::time::MediaTime;

    /// Passes everything on.
    struct Passing;

    impl InlineOperator for Passing {
        fn start(&self, _stream: &StreamId) -> Box<dyn StreamOperator> {
            Box::new(Passing)
        }

        fn sampling(&self) -> Option<crate::transforms::sample::Sampling> {
            panic!("a disturbed operator is not pushed down")
        }
    }

    impl StreamOperator for Passing {
        fn item(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
            out.emit(item.clone());
            Ok(())
        }
    }

    impl Runner for Passing {
        fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
            Ok(item.payload.clone())
        }
    }

    fn chaos(text: &str) -> Disturbance {
        Disturbance::read(3, "people", text.parse().unwrap()).unwrap()
    }

    fn numbered(seq: u64) -> Item {
        let placement = Placement { source_width: 1, source_height: 1, scale: [1.0; 2], offset: [0.0; 2] };
        let tensor = Tensor { shape: [1, 1, 1], data: TensorData::U8(vec![0]), placement, index: None };
        item(seq, MediaTime::ZERO, Payload::Tensor(Arc::new(tensor))).0
    }

    #[test]
    fn panics_strike_at_the_same_items_each_time_and_say_that_they_are_chaos() {
        let chaos = chaos("panic = 0.2");
        let operator = Inline { inner: Arc::new(Passing), chaos: chaos.clone(), clock: Arc::new(SystemClock) };
        assert!(operator.sampling().is_none());
        let stream = StreamId::sanitised("test");
        let struck = || -> Vec<u64> {
            let mut state = operator.start(&stream);
            let mut out = Output::default();
            let strikes = |seq: &u64| {
                let item = numbered(*seq);
                let outcome = catch_unwind(AssertUnwindSafe(|| state.item(&item, &mut out)));
                item.lease.ack.settle(Verdict::Delivered);
                if let Err(panic) = &outcome {
                    assert!(panic_text(&**panic).starts_with("chaos: a panic at item"), "{}", panic_text(&**panic));
                }
                outcome.is_err()
            };
            (0..100).filter(strikes).collect()
        };
        let first = struck();
        assert!((8..35).contains(&first.len()), "{first:?}");
        assert_eq!(first, struck());
        let mut runner = PoolRunner { inner: Box::new(Passing), chaos: chaos.clone(), clock: Arc::new(SystemClock) };
        for seq in 0..100 {
            let item = numbered(seq);
            let outcome = catch_unwind(AssertUnwindSafe(|| runner.run(&item).is_ok()));
            assert_eq!(outcome.is_err(), first.contains(&seq), "in the pool as on a worker");
        }
        let items: Vec<Item> = (0..100).map(numbered).collect();
        let items: Vec<&Item> = items.iter().collect();
        assert!(catch_unwind(AssertUnwindSafe(|| runner.run_batch(&items).len())).is_err());
    }
}
