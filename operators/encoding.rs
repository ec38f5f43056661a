//! What the encoders of a node do, and how long they work for it: encoding costs more than all else that a sink does, so it
//! is counted by itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::busy::BusyTime;
use crate::item::StreamId;

/// The encoders of one node, one for each stream that it encodes.
#[derive(Debug)]
pub struct Encoding {
    threads: usize,
    streams: Mutex<BTreeMap<StreamId, Arc<Encoder>>>,
}

/// What one encoder counts.
#[derive(Debug, Default)]
pub struct Encoder {
    /// How long its thread has decoded and encoded.
    pub busy: BusyTime,
    pictures: AtomicU64,
    waiting: AtomicU64,
}

/// What an encoder said at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncoderReading {
    pub stream: StreamId,
    pub busy: Duration,
    /// Pictures that came out of it.
    pub pictures: u64,
    /// Packets that wait for it.
    pub waiting: u64,
}

impl Encoding {
    /// Of a node whose encoders have so many threads each.
    pub fn new(threads: usize) -> Arc<Encoding> {
        Arc::new(Encoding { threads, streams: Mutex::default() })
    }

    /// Threads that encode one stream.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// A new encoder of a stream.
    pub fn open(&self, stream: &StreamId) -> Arc<Encoder> {
        let encoder = Arc::<Encoder>::default();
        self.streams().insert(stream.clone(), encoder.clone());
        encoder
    }

    /// This encoder of the stream is not needed any more; perhaps another one is.
    pub fn close(&self, stream: &StreamId, encoder: &Arc<Encoder>) {
        let mut streams = self.streams();
        if streams.get(stream).is_some_and(|listed| Arc::ptr_eq(listed, encoder)) {
            streams.remove(stream);
        }
    }

    /// What all of them say at `now`, by stream.
    pub fn readings(&self, now: Instant) -> Vec<EncoderReading> {
        let read = |(stream, encoder): (&StreamId, &Arc<Encoder>)| EncoderReading {
            stream: stream.clone(),
            busy: encoder.busy.total(now),
            pictures: encoder.pictures.load(Ordering::Relaxed),
            waiting: encoder.waiting.load(Ordering::Relaxed),
        };
        self.streams().iter().map(read).collect()
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<StreamId, Arc<Encoder>>> {
        // The map is whole at every step.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Encoder {
    /// So many pictures came out.
    pub fn encoded(&self, pictures: u64) {
        self.pictures.fetch_add(pictures, Ordering::Relaxed);
    }

    /// A packet waits.
    pub fn waits(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// A packet that waited has its turn.
    pub fn begins(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SimulatedClock};

    #[test]
    fn each_stream_is_counted_by_itself_until_it_is_over() {
        let clock = SimulatedClock::default();
        let encoding = Encoding::new(2);
        let (door, yard) = (StreamId::sanitised("door"), StreamId::sanitised("yard"));
        let encoder = encoding.open(&door);
        encoding.open(&yard);
        encoder.waits();
        encoder.waits();
        encoder.begins();
        encoder.busy.begin(clock.now());
        clock.advance(Duration::from_secs(3));
        encoder.encoded(7);
        let readings = encoding.readings(clock.now());
        let expected = EncoderReading { stream: door.clone(), busy: Duration::from_secs(3), pictures: 7, waiting: 1 };
        assert_eq!((readings.len(), &readings[0]), (2, &expected));
        let next = encoding.open(&door);
        encoding.close(&door, &encoder);
        assert_eq!(encoding.readings(clock.now()).len(), 2, "there is another one");
        encoding.close(&door, &next);
        assert_eq!(encoding.readings(clock.now())[0].stream, yard);
    }
}
