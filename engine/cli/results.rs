//! Results as text: the latest records, each summed up in a line, for the live view to show above its lines.
//!
//! Records may come far faster than anybody reads, so only the latest result of each node and stream is kept; gaps,
//! errors and failures are all kept, up to a bound. Taking records never waits for the terminal.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use operators::config::format_size;
use operators::item::{Record, RecordBody, StreamId};
use operators::lock::lock;
use operators::operator::Publisher;

/// Lines of results at each redraw at most.
const RESULT_LINES: usize = 6;
/// Records beside results that wait for the next redraw at most.
const NOTICES: usize = 64;
/// Boxes or predictions of one record that are written out.
const WRITTEN_OUT: usize = 4;

/// The latest results, for the view to show. Give it to the graph as its publisher, beside the hub ([`Publishers`]).
#[derive(Default)]
pub struct Results {
    waiting: Mutex<WaitingResults>,
}

#[derive(Default)]
struct WaitingResults {
    /// The latest result of each node and stream since the last redraw.
    latest: BTreeMap<(Arc<str>, StreamId), Arc<Record>>,
    /// Gaps, errors and the like: each counts.
    notices: VecDeque<Arc<Record>>,
}

impl Results {
    /// Takes the lines to show now: notices first, then the latest result of each stream.
    pub(super) fn take_lines(&self) -> Vec<String> {
        let WaitingResults { latest, notices } = std::mem::take(&mut *lock(&self.waiting));
        notices.iter().chain(latest.values()).take(RESULT_LINES).map(|record| summarise(record)).collect()
    }
}

impl Publisher for Results {
    fn publish(&self, record: &Arc<Record>) {
        let mut waiting = lock(&self.waiting);
        match record.body {
            RecordBody::Classification { .. }
            | RecordBody::Detection { .. }
            | RecordBody::Checksum { .. }
            | RecordBody::Segment(_) => {
                waiting.latest.insert((record.node.clone(), record.stream.clone()), record.clone());
            }
            RecordBody::Gap { .. } | RecordBody::Error { .. } | RecordBody::Status { .. } => {
                if waiting.notices.len() == NOTICES {
                    waiting.notices.pop_front();
                }
                waiting.notices.push_back(record.clone());
            }
        }
    }
}

/// Publishes to each of several.
pub struct Publishers(pub Vec<Arc<dyn Publisher>>);

impl Publisher for Publishers {
    fn publish(&self, record: &Arc<Record>) {
        for publisher in &self.0 {
            publisher.publish(record);
        }
    }
}

/// One line of text for a record: `12.40 s demo: 2 circle, 1 square | circle 0.98 [10 20 42 52], …`.
pub fn summarise(record: &Record) -> String {
    let mut line = match record.pts {
        Some(pts) => format!("{pts:.2} s {}: ", record.stream),
        None => format!("{}: ", record.stream),
    };
    if record.fallback {
        line.push_str("(fallback) ");
    }
    let more =
        |count: usize| if count > WRITTEN_OUT { format!(", {} more", count - WRITTEN_OUT) } else { String::new() };
    // Writing to a string does not fail.
    let _ = match &record.body {
        RecordBody::Detection { detections, .. } if detections.is_empty() => write!(line, "nothing"),
        RecordBody::Detection { detections, counts, .. } => {
            let counts: Vec<_> = counts.iter().map(|(label, count)| format!("{count} {label}")).collect();
            let boxes: Vec<_> = detections
                .iter()
                .take(WRITTEN_OUT)
                .map(|found| {
                    let [x1, y1, x2, y2] = found.bounds.map(f32::round);
                    format!("{} {:.2} [{x1} {y1} {x2} {y2}]", found.label, found.score)
                })
                .collect();
            write!(line, "{} | {}{}", counts.join(", "), boxes.join(", "), more(detections.len()))
        }
        RecordBody::Classification { predictions, .. } => {
            let guesses: Vec<_> = predictions
                .iter()
                .take(WRITTEN_OUT)
                .map(|guess| format!("{} {:.2}", guess.label, guess.score))
                .collect();
            write!(line, "{}{}", guesses.join(", "), more(predictions.len()))
        }
        RecordBody::Checksum { md5 } => write!(line, "md5 {md5}"),
        RecordBody::Segment(segment) => {
            let size = format_size(segment.bytes);
            let _ = write!(line, "{} {}, {size}, {:.2} s", segment.name, segment.state, segment.duration);
            match &segment.message {
                Some(message) => write!(line, ": {message}"),
                None => Ok(()),
            }
        }
        RecordBody::Gap { reason } => write!(line, "gap: {reason}"),
        RecordBody::Error { message } => write!(line, "error in `{}`: {message}", record.node),
        RecordBody::Status { state, reason: Some(reason) } => write!(line, "{state}: {reason}"),
        RecordBody::Status { state, reason: None } => write!(line, "{state}"),
    };
    line
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use operators::clock::{Clock, SimulatedClock};
    use operators::item::{Detection, ModelName, Origin, Prediction};

    pub(crate) fn record(seq: u64, body: RecordBody) -> Record {
        let origin = Origin { graph: "door".into(), node: "people".into() };
        let time = SimulatedClock::default().wall();
        let mut record = origin.signal(&StreamId::new("demo").unwrap(), Some(seq), time, body);
        record.pts = Some(seq as f64 * 0.04);
        record
    }

    pub(crate) fn detections(labels: &[&str]) -> RecordBody {
        let mut counts = BTreeMap::new();
        for label in labels {
            *counts.entry(Arc::from(*label)).or_default() += 1;
        }
        let found = |label: &&str| Detection {
            label: Arc::from(*label),
            index: 0,
            score: 0.987,
            bounds: [10.4, 20.0, 41.6, 52.2],
        };
        let model = ModelName { name: "shapes".into(), sha256: "0".into() };
        RecordBody::Detection { model, detections: labels.iter().map(found).collect(), counts, has: BTreeMap::new() }
    }

    #[test]
    fn a_record_is_one_line() {
        let guess = |label: &str, score| Prediction { label: label.into(), index: 0, score };
        let model = ModelName { name: "mobilenet".into(), sha256: "0".into() };
        let predictions = vec![guess("tabby cat", 0.914), guess("tiger cat", 0.05)];
        let lines = [
            summarise(&record(310, detections(&["circle", "square", "circle"]))),
            summarise(&record(311, detections(&["circle"; 7]))),
            summarise(&record(312, detections(&[]))),
            summarise(&record(0, RecordBody::Classification { model, predictions })),
            summarise(&record(1, RecordBody::Checksum { md5: "d41d8cd9".to_owned() })),
            summarise(&Record {
                pts: None,
                ..record(2, RecordBody::Gap { reason: "the camera went away".to_owned() })
            }),
            summarise(&record(3, RecordBody::Error { message: "gave no answer within 30s".to_owned() })),
            summarise(&Record {
                pts: None,
                ..record(4, RecordBody::Status { state: "failed".to_owned(), reason: Some("no such file".to_owned()) })
            }),
        ];
        insta::assert_snapshot!(lines.join("\n"), @r#"
        12.40 s demo: 2 circle, 1 square | circle 0.99 [10 20 42 52], square 0.99 [10 20 42 52], circle 0.99 [10 20 42 52]
        12.44 s demo: 7 circle | circle 0.99 [10 20 42 52], circle 0.99 [10 20 42 52], circle 0.99 [10 20 42 52], circle 0.99 [10 20 42 52], 3 more
        12.48 s demo: nothing
        0.00 s demo: tabby cat 0.91, tiger cat 0.05
        0.04 s demo: md5 d41d8cd9
        demo: gap: the camera went away
        0.12 s demo: error in `people`: gave no answer within 30s
        demo: failed: no such file
        "#);
    }

    #[test]
    fn a_flood_of_results_shows_the_latest_and_every_notice() {
        let results = Results::default();
        for seq in 0..1000 {
            results.publish(&Arc::new(record(seq, detections(&["circle"]))));
        }
        results.publish(&Arc::new(record(7, RecordBody::Gap { reason: "gone".to_owned() })));
        let lines = results.take_lines();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains("gap: gone") && lines[1].starts_with("39.96 s demo: 1 circle"), "{lines:?}");
        assert_eq!(results.take_lines(), [""; 0]);
        for seq in 0..1000 {
            results.publish(&Arc::new(record(seq, RecordBody::Gap { reason: "gone".to_owned() })));
        }
        assert_eq!(lock(&results.waiting).notices.len(), NOTICES);
        assert_eq!(results.take_lines().len(), RESULT_LINES);
    }
}
