//! Sinks that are slow, and that fail to take what comes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::encoding::Encoding;
use crate::error::{SinkError, StartError};
use crate::item::{Event, Kind};
use crate::lease::Verdict;
use crate::operator::{Resource, Sink, SinkInput, SinkWriter, Trouble};

use super::Disturbance;
use super::operator::pass;

/// What items that were not taken are counted under.
const NOT_TAKEN: &str = "chaos: the sink failed";

pub(super) struct Disturbed {
    pub inner: Arc<dyn Sink>,
    pub chaos: Disturbance,
    pub clock: Arc<dyn Clock>,
}

impl Disturbed {
    fn wrapped(&self, inner: Box<dyn SinkWriter>) -> Box<dyn SinkWriter> {
        let inner_settles = inner.settles();
        let (chaos, clock) = (self.chaos.clone(), self.clock.clone());
        Box::new(DisturbedWriter { inner, inner_settles, chaos, clock, error: None })
    }
}

impl Sink for Disturbed {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        Ok(self.wrapped(self.inner.start()?))
    }

    fn refuses(&self, kind: Kind) -> Option<(String, String)> {
        self.inner.refuses(kind)
    }

    fn start_with(&self, inputs: &[SinkInput]) -> Result<Box<dyn SinkWriter>, StartError> {
        Ok(self.wrapped(self.inner.start_with(inputs)?))
    }

    fn shares_with_successor(&self) -> bool {
        self.inner.shares_with_successor()
    }

    fn depends_on_inputs(&self) -> bool {
        self.inner.depends_on_inputs()
    }

    fn resources(&self) -> Vec<Resource> {
        self.inner.resources()
    }

    fn stream_memory(&self) -> u64 {
        self.inner.stream_memory()
    }

    fn encoder_threads(&self) -> Option<usize> {
        self.inner.encoder_threads()
    }

    fn writes_to_standard_output(&self) -> bool {
        self.inner.writes_to_standard_output()
    }
}

/// Settles items by itself: those that it keeps from the sink must not count as the others in their batch do.
struct DisturbedWriter {
    inner: Box<dyn SinkWriter>,
    inner_settles: bool,
    chaos: Disturbance,
    clock: Arc<dyn Clock>,
    /// What is to be told next.
    error: Option<SinkError>,
}

impl DisturbedWriter {
    fn fails(&self, event: &Event) -> bool {
        matches!(event, Event::Item(item) if self.chaos.fails(&item.stream, item.seq))
    }

    /// What the sink itself takes of a batch.
    async fn pass_on(&mut self, batch: &[Event]) {
        if batch.is_empty() {
            return;
        }
        let taken = self.inner.write(batch).await;
        let items = batch.iter().filter_map(|event| match event {
            Event::Item(item) => Some(item),
            _ => None,
        });
        match taken {
            Ok(()) if self.inner_settles => {}
            Ok(()) => {
                let now = self.clock.now();
                items.for_each(|item| item.lease.ack.clone().deliver(now));
            }
            Err(error) => {
                if !self.inner_settles {
                    items.for_each(|item| item.lease.ack.raise(Verdict::Lost));
                }
                self.error = Some(error);
            }
        }
    }
}

#[async_trait::async_trait]
impl SinkWriter for DisturbedWriter {
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        let delays = batch.iter().filter_map(|event| match event {
            Event::Item(item) => Some(self.chaos.delay(&item.stream, item.seq)),
            _ => None,
        });
        let delay = delays.max().unwrap_or_default();
        pass(&*self.clock, delay).await;
        let (mut failed, mut streams) = (0, BTreeSet::new());
        let mut rest = batch;
        while let Some(at) = rest.iter().position(|event| self.fails(event)) {
            self.pass_on(&rest[..at]).await;
            if let Event::Item(item) = &rest[at] {
                item.lease.ack.clone().drop_at(&self.chaos.node, NOT_TAKEN);
                failed += 1;
                streams.insert(&*item.stream);
            }
            rest = &rest[at + 1..];
        }
        self.pass_on(rest).await;
        if failed > 0 && self.error.is_none() {
            let streams = streams.into_iter().collect::<Vec<_>>().join(", ");
            let message = match failed {
                1 => format!("chaos: it failed on an item of stream `{streams}`, which is dropped"),
                failed => format!("chaos: it failed on {failed} items of stream `{streams}`, which are dropped"),
            };
            self.error = Some(SinkError { message, hint: None });
        }
        Ok(())
    }

    fn settles(&self) -> bool {
        true
    }

    fn most_at_once(&self) -> usize {
        self.inner.most_at_once()
    }

    async fn work(&mut self) -> Result<(), SinkError> {
        match self.error.take() {
            Some(error) => Err(error),
            None => self.inner.work().await,
        }
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        self.inner.close().await
    }

    fn deadline(&self) -> Option<Duration> {
        self.inner.deadline().map(|deadline| deadline + self.chaos.latency)
    }

    fn trouble(&self) -> Option<Trouble> {
        self.inner.trouble()
    }

    fn encoding(&self) -> Option<Arc<Encoding>> {
        self.inner.encoding()
    }

    fn is_complete(&self) -> bool {
        self.inner.is_complete()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::clock::SystemClock;
    use crate::item::{Origin, Payload, RecordBody};
    use crate::lease::{Account, Counts};
    use crate::testing::item;
    use crate::time::MediaTime;

    /// Keeps the numbers of what it took.
    #[derive(Clone, Default)]
    struct Keeping(Arc<Mutex<Vec<u64>>>);

    impl Sink for Keeping {
        fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
            Ok(Box::new(self.clone()))
        }
    }

    #[async_trait::async_trait]
    impl SinkWriter for Keeping {
        async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
            let items = batch.iter().filter_map(|event| match event {
                Event::Item(item) => Some(item.seq),
                _ => None,
            });
            self.0.lock().unwrap().extend(items);
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_fails_is_dropped_by_name_and_the_rest_is_taken_once_and_in_order() {
        let chaos = Disturbance::read(5, "out", "fail = 0.3".parse().unwrap()).unwrap();
        let kept = Keeping::default();
        let sink = Disturbed { inner: Arc::new(kept.clone()), chaos: chaos.clone(), clock: Arc::new(SystemClock) };
        let mut writer = sink.start_with(&[]).unwrap();
        assert!(writer.settles());
        let mut total = Counts::default();
        let mut accounts: Vec<Arc<Account>> = Vec::new();
        for batch in 0..20 {
            let events: Vec<Event> = (batch * 10..batch * 10 + 10)
                .map(|seq| {
                    let origin = Origin { graph: "g".into(), node: "n".into() };
                    let stream = crate::item::StreamId::sanitised("test");
                    let body = RecordBody::Gap { reason: "none".to_owned() };
                    let record = origin.signal(&stream, Some(seq), std::time::SystemTime::UNIX_EPOCH, body);
                    let (item, account) = item(seq, MediaTime::ZERO, Payload::Record(Arc::new(record)));
                    accounts.push(account);
                    Event::Item(item)
                })
                .collect();
            writer.write(&events).await.unwrap();
            let failed = events.iter().any(|event| matches!(event, Event::Item(item) if chaos.fails("test", item.seq)));
            if failed {
                let told = writer.work().await.unwrap_err();
                assert!(told.message.starts_with("chaos: it failed on"), "{told}");
            }
            for event in events {
                if let Event::Item(item) = event {
                    item.lease.ack.release();
                }
            }
        }
        accounts.iter().for_each(|account| total = total.plus(account.snapshot()));
        let taken: Vec<u64> = (0..200).filter(|seq| !chaos.fails("test", *seq)).collect();
        assert_eq!(*kept.0.lock().unwrap(), taken);
        let (delivered, dropped) = (taken.len() as u64, 200 - taken.len() as u64);
        assert!((30..90).contains(&dropped), "{dropped}");
        assert_eq!(total, Counts { read: 200, delivered, dropped, ..Counts::default() });
        let reasons: Vec<_> = accounts.iter().flat_map(|account| account.drops()).collect();
        assert!(reasons.iter().all(|(node, reason, _)| &**node == "out" && *reason == NOT_TAKEN));
        assert_eq!(reasons.len() as u64, dropped);
    }
}
