//! What a sink of records writes for each event: results as they are, and signals as records of their own.
//!
//! | event | record |
//! |---|---|
//! | item | the record that it carries; for a segment, what is told of it, by the node that made it |
//! | gap | `gap`, with the reason and the next sequence number where it is known |
//! | end because the source failed | `status`: state `failed`, with the reason |
//! | open, normal end | none: a finite file gives exactly one line for each result |
//!
//! Records of signals name the sink as their node: the signal passed through every node of the graph on its way.

use std::sync::Arc;

use crate::clock::Clock;
use crate::item::{EndReason, Event, Origin, Payload, Record, RecordBody};

/// Turns events into records, for the sinks of one node.
#[derive(Clone)]
pub struct Records {
    origin: Origin,
    clock: Arc<dyn Clock>,
}

impl Records {
    pub fn new(origin: Origin, clock: Arc<dyn Clock>) -> Records {
        Records { origin, clock }
    }

    /// The record that stands for `event`; `None` where nothing is to be written, and for payloads that are no records.
    pub fn of(&self, event: &Event) -> Option<Arc<Record>> {
        let (stream, seq, body) = match event {
            Event::Item(item) => {
                return match &item.payload {
                    Payload::Record(record) => Some(record.clone()),
                    Payload::Segment(segment) => {
                        let body = RecordBody::Segment(segment.status("made"));
                        Some(Arc::new(segment.origin.record(item, body)))
                    }
                    Payload::Packet(_) | Payload::Frame(_) | Payload::Tensor(_) => None,
                };
            }
            Event::Gap { stream, gap } => (stream, gap.seq, RecordBody::Gap { reason: gap.reason.clone() }),
            Event::End { stream, reason: EndReason::Failed(reason) } => {
                (stream, None, RecordBody::Status { state: "failed".to_owned(), reason: Some(reason.clone()) })
            }
            Event::End { .. } | Event::Open { .. } => return None,
        };
        Some(Arc::new(self.origin.signal(stream, seq, self.clock.wall(), body)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use crate::clock::SimulatedClock;
    use crate::inference::model::Catalog;
    use crate::item::{Gap, Item, StreamId, StreamInfo};
    use crate::lease::{Account, Ack, Budget, Lease, Limits};
    use crate::operator::{BuildContext, NoPublisher};
    use crate::time::{MediaTime, TimeBase};

    /// The surroundings of a node `out` of a graph `door`.
    pub(crate) fn context(folder: &std::path::Path) -> BuildContext {
        BuildContext {
            origin: Origin { graph: "door".into(), node: "out".into() },
            folder: folder.to_owned(),
            models: Arc::new(Catalog::default()),
            clock: Arc::new(SimulatedClock::default()),
            publisher: Arc::new(NoPublisher),
            progress: None,
            playlists: Arc::default(),
        }
    }

    /// A checksum record of stream `cam` as an event.
    pub(crate) fn result(seq: u64) -> Event {
        let clock = SimulatedClock::default();
        let budget = Budget::new(Limits { items: 1, bytes: 1 });
        let ack = Ack::new(&Arc::new(Account::default()), clock.now());
        let origin = Origin { graph: "door".into(), node: "sums".into() };
        let stream = stream();
        let body = RecordBody::Checksum { md5: format!("{seq:032x}") };
        let mut record = origin.signal(&stream, Some(seq), clock.wall(), body);
        record.timing_ms = BTreeMap::from([("checksum", 0.25)]);
        let lease = Lease::new(budget.try_acquire(1).unwrap(), ack);
        Event::Item(Item {
            stream,
            seq,
            pts: MediaTime::from_micros(i64::try_from(seq).unwrap() * 40_000),
            time: clock.wall(),
            fallback: false,
            payload: Payload::Record(Arc::new(record)),
            lease,
        })
    }

    pub(crate) fn stream() -> StreamId {
        StreamId::new("cam").unwrap()
    }

    pub(crate) fn gap() -> Event {
        Event::Gap { stream: stream(), gap: Gap { reason: "the camera went away".to_owned(), seq: Some(7) } }
    }

    #[test]
    fn signals_become_records_where_a_reader_must_know() {
        let context = context(std::path::Path::new("."));
        let records = Records::new(context.origin, context.clock);
        let json = |event: &Event| records.of(event).map(|record| serde_json::to_value(&*record).unwrap());

        let gap = json(&gap()).unwrap();
        assert_eq!(gap["id"], "door/out/cam/gap:7");
        assert_eq!((&gap["kind"], &gap["reason"]), (&"gap".into(), &"the camera went away".into()));

        let failed = EndReason::Failed("no such file".to_owned());
        let failed = json(&Event::End { stream: stream(), reason: failed }).unwrap();
        assert_eq!((&failed["state"], &failed["reason"]), (&"failed".into(), &"no such file".into()));

        let info = StreamInfo {
            tracks: Vec::new(),
            time_base: TimeBase::MICROSECONDS,
            duration: None,
            played: crate::item::Played::Live,
        };
        assert_eq!(json(&Event::Open { stream: stream(), info: Arc::new(info) }), None);
        assert_eq!(json(&Event::End { stream: stream(), reason: EndReason::Eof }), None);
        assert_eq!(json(&Event::End { stream: stream(), reason: EndReason::Stopped }), None);
    }

    #[test]
    fn a_result_is_passed_on_as_it_is() {
        let context = context(std::path::Path::new("."));
        let records = Records::new(context.origin, context.clock);
        let event = result(3);
        let Event::Item(Item { payload: Payload::Record(original), .. }) = &event else { panic!("not a record") };
        assert!(Arc::ptr_eq(original, &records.of(&event).unwrap()));
    }
}
