//! The encoders of an `hls` sink, in front of it: what browsers cannot play is decoded and encoded on a thread for each
//! stream, and the sink behind takes packets as ever.
//!
//! Neither a dataflow worker nor the runtime of the sinks waits for an encoder. What waits for one is held with its lease,
//! so the stream's budget bounds it, and the policy of the sink's input says what becomes of what finds no room.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;

use super::owned_task::OwnedTask;
use super::transcoder::{Rules, Step, Transcoder, plays};
use crate::clock::Clock;
use crate::encoding::{Encoder, Encoding};
use crate::error::SinkError;
use crate::item::{EndReason, Event, Item, StreamId};
use crate::lease::Verdict;
use crate::operator::{SinkWriter, Trouble};

/// Events of a stream that wait for its encoder. Budgets are smaller; with a larger one the sink waits as well.
const LANE: usize = 1024;
/// Steps that wait for the sink.
const QUEUE: usize = 64;
/// What went wrong and was not told yet; more of it is not kept.
const MOST_UNTOLD: usize = 64;

/// What the sink of a graph is made with.
#[derive(Clone)]
pub struct Encoders {
    pub rules: Rules,
    pub encoding: Arc<Encoding>,
    pub clock: Arc<dyn Clock>,
}

/// A sink's writer behind encoders.
pub struct EncodingWriter {
    encoders: Encoders,
    /// Until the first batch, which finds the runtime that it is then served on.
    inner: Option<Box<dyn SinkWriter>>,
    trouble: Option<Trouble>,
    steps: Option<mpsc::Sender<Step>>,
    untold: mpsc::Receiver<SinkError>,
    tell: mpsc::Sender<SinkError>,
    /// Given up with the writer: encoders that find nobody behind them end.
    serving: Option<OwnedTask<()>>,
    lanes: BTreeMap<StreamId, Lane>,
}

/// A stream's way to its encoder.
struct Lane {
    /// `None`: the stream has ended.
    sender: Option<mpsc::Sender<Event>>,
    thread: JoinHandle<()>,
    encoder: Arc<Encoder>,
}

impl EncodingWriter {
    pub fn new(inner: Box<dyn SinkWriter>, encoders: Encoders) -> EncodingWriter {
        let (tell, untold) = mpsc::channel(MOST_UNTOLD);
        let trouble = inner.trouble();
        EncodingWriter {
            encoders,
            inner: Some(inner),
            trouble,
            steps: None,
            untold,
            tell,
            serving: None,
            lanes: BTreeMap::new(),
        }
    }

    /// The way to the sink, which is served from the first call on.
    fn steps(&mut self) -> Option<mpsc::Sender<Step>> {
        if let Some(inner) = self.inner.take() {
            let (sender, receiver) = mpsc::channel(QUEUE);
            self.steps = Some(sender);
            self.serving = Some(OwnedTask::spawn(serve(inner, receiver, self.tell.clone())));
        }
        self.steps.clone()
    }

    /// A stream opens: where browsers cannot play it, it has an encoder from here on.
    fn open_lane(&mut self, stream: &StreamId, steps: &mpsc::Sender<Step>) {
        self.lanes.retain(|_, lane| lane.sender.is_some() || !lane.thread.is_finished());
        // What is left of the stream from before comes first.
        let before = match self.lanes.remove(stream) {
            Some(lane) if lane.sender.is_some() => {
                self.lanes.insert(stream.clone(), lane);
                return;
            }
            before => before.map(|lane| lane.thread),
        };
        let (sender, receiver) = mpsc::channel(LANE);
        let encoder = self.encoders.encoding.open(stream);
        let worker = Worker {
            stream: stream.clone(),
            encoders: self.encoders.clone(),
            encoder: encoder.clone(),
            events: receiver,
            steps: steps.clone(),
        };
        let spawned = std::thread::Builder::new().name("encode".to_owned()).spawn(move || {
            if let Some(before) = before {
                // One that broke off has been told of.
                let _ = before.join();
            }
            worker.run();
        });
        match spawned {
            Ok(thread) => {
                self.lanes.insert(stream.clone(), Lane { sender: Some(sender), thread, encoder });
            }
            Err(error) => {
                self.encoders.encoding.close(stream, &encoder);
                self.fail(stream, &format!("the system gives no thread to encode it on: {error}"));
            }
        }
    }

    /// Hands an event to the encoder of its stream; gives it back where there is none.
    async fn encode(&mut self, event: Event) -> Option<Event> {
        let Some(lane) = self.lanes.get_mut(event.stream()) else { return Some(event) };
        let Some(sender) = &lane.sender else { return Some(event) };
        let is_end = matches!(event, Event::End { .. });
        lane.encoder.waits();
        let broken = sender.send(event).await.err();
        if is_end {
            lane.sender = None;
        }
        if let Some(mpsc::error::SendError(event)) = broken {
            let stream = event.stream().clone();
            self.lanes.remove(&stream);
            self.fail(&stream, "its encoder broke off");
            if let Event::Item(item) = event {
                item.lease.ack.settle(Verdict::Rejected);
                return None;
            }
            return Some(event);
        }
        None
    }

    fn fail(&self, stream: &StreamId, what: &str) {
        let message = format!("stream `{stream}`: {what}");
        // Where so much is untold, this makes no difference.
        let _ = self.tell.try_send(SinkError { message, hint: Some("look into the log".to_owned()) });
    }
}

#[async_trait::async_trait]
impl SinkWriter for EncodingWriter {
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        let Some(steps) = self.steps() else { return Ok(()) };
        for event in batch {
            if let Event::Open { stream, info } = event
                && info.tracks.first().is_some_and(|track| !plays(track))
            {
                self.open_lane(stream, &steps);
            }
            if let Some(event) = self.encode(event.clone()).await {
                // It ends only with its task, and with that the items.
                let _ = steps.send(Step::Event(event)).await;
            }
        }
        Ok(())
    }

    fn settles(&self) -> bool {
        true
    }

    async fn work(&mut self) -> Result<(), SinkError> {
        match self.untold.recv().await {
            Some(error) => Err(error),
            None => std::future::pending().await,
        }
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        let Some(steps) = self.steps() else { return Ok(()) };
        for stream in self.lanes.keys().cloned().collect::<Vec<_>>() {
            if self.lanes.get(&stream).is_some_and(|lane| lane.sender.is_some()) {
                let over = Event::End { stream: stream.clone(), reason: EndReason::Stopped };
                if let Some(event) = self.encode(over).await {
                    let _ = steps.send(Step::Event(event)).await;
                }
            }
        }
        // The sink closes when the last encoder has let go of the way to it.
        (self.steps, self.lanes) = (None, BTreeMap::new());
        drop(steps);
        if let Some(serving) = self.serving.take()
            && let Err(error) = serving.await
        {
            let message = format!("it broke off: {error}");
            return Err(SinkError { message, hint: Some("look into the log".to_owned()) });
        }
        self.untold.try_recv().map_or(Ok(()), Err)
    }

    /// An encoder takes as long as it takes: what waits for it is bounded. The sink behind takes what it gets.
    fn deadline(&self) -> Option<Duration> {
        None
    }

    fn trouble(&self) -> Option<Trouble> {
        self.trouble.clone()
    }

    fn encoding(&self) -> Option<Arc<Encoding>> {
        Some(self.encoders.encoding.clone())
    }
}

/// What an encoder's thread works with.
struct Worker {
    stream: StreamId,
    encoders: Encoders,
    encoder: Arc<Encoder>,
    events: mpsc::Receiver<Event>,
    steps: mpsc::Sender<Step>,
}

impl Worker {
    fn run(mut self) {
        let mut transcoder = Transcoder::new(self.stream.clone(), self.encoders.rules);
        while let Some(event) = self.events.blocking_recv() {
            self.encoder.begins();
            self.encoder.busy.begin(self.encoders.clock.now());
            transcoder.take(event);
            let (steps, pictures) = transcoder.drain();
            self.encoder.encoded(pictures);
            self.encoder.busy.end(self.encoders.clock.now());
            for step in steps {
                if self.steps.blocking_send(step).is_err() {
                    return;
                }
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.encoders.encoding.close(&self.stream, &self.encoder);
    }
}

/// Serves the sink behind the encoders until all of them, and the writer in front, have let go of the way to it.
async fn serve(mut writer: Box<dyn SinkWriter>, mut steps: mpsc::Receiver<Step>, tell: mpsc::Sender<SinkError>) {
    let mut taken = Vec::with_capacity(QUEUE);
    let mut batch = Vec::with_capacity(QUEUE);
    loop {
        tokio::select! {
            biased;
            worked = writer.work() => {
                if let Err(error) = worked {
                    let _ = tell.try_send(error);
                }
                continue;
            }
            count = steps.recv_many(&mut taken, QUEUE) => {
                if count == 0 {
                    break;
                }
            }
        }
        for step in taken.drain(..) {
            match step {
                Step::Event(event) => batch.push(event),
                Step::Failed(error) => drop(tell.try_send(error)),
            }
        }
        if let Err(error) = writer.write(&batch).await {
            // As the engine does: they are lost.
            batch.clear();
            let _ = tell.try_send(error);
        }
        for event in batch.drain(..) {
            if let Event::Item(Item { lease, .. }) = event {
                lease.ack.release();
            }
        }
    }
    if let Err(error) = writer.close().await {
        let _ = tell.try_send(error);
    }
}
