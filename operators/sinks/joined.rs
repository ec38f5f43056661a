//! Pictures and what was found in them, which come into a sink by several of its inputs, put together again.
//!
//! Each picture waits for its records, which have its stream and number, in a window of bounded bytes. One whose records
//! do not come in time is dropped; one that has none (it was not sampled) is passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;

use crate::config::{self, Field, FieldType, Presence};
use crate::error::{FieldError, StartError};
use crate::item::{Frame, Item, Kind, Record, RecordBody, StreamId};
use crate::lease::Verdict;
use crate::operator::SinkInput;
use crate::picture::Picture;
use crate::storage::uploads::Claim;

/// Bytes that pictures of one stream may take while they wait, where nothing is said.
pub(super) const WINDOW: u64 = 64 << 20;

pub(super) const WINDOW_FIELD: Field = Field {
    name: "window",
    value: FieldType::Size,
    presence: Presence::Default("\"64MiB\""),
    summary: "What pictures of one stream may take while they wait for their records.",
};

pub(super) const ANNOTATE_FIELD: Field = Field {
    name: "annotate",
    value: FieldType::Boolean,
    presence: Presence::Default("false"),
    summary: "Draw boxes and labels into the pictures: both the pictures and the records flow in, and a picture without \
              records is passed over.",
};

/// The settings of sinks that draw what records say into pictures.
#[derive(Default, Deserialize)]
pub(super) struct Annotation {
    #[serde(default)]
    annotate: bool,
    window: Option<config::Size>,
}

impl Annotation {
    pub fn is_given(&self) -> bool {
        self.annotate
    }

    /// Bytes of pictures that may wait, of each stream; `None` where nothing is drawn.
    ///
    /// # Errors
    /// Where they would wait for nothing.
    pub fn window(&self) -> Result<Option<u64>, FieldError> {
        match (self.annotate, self.window) {
            (true, window) => Ok(Some(window.map_or(WINDOW, |size| size.0))),
            (false, None) => Ok(None),
            (false, Some(_)) => {
                let error = FieldError::new("window", "pictures wait for their records with `annotate = true` alone");
                Err(error.hint("add that, or remove `window`"))
            }
        }
    }
}

/// Along how many inputs the items of one stream come: the same for every stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ways {
    /// At most one.
    pub frames: usize,
    pub records: usize,
}

impl Ways {
    /// # Errors
    /// Where nobody could tell when a picture has all its records.
    pub fn of(inputs: &[SinkInput]) -> Result<Ways, StartError> {
        let sources: BTreeSet<&Arc<str>> = inputs.iter().flat_map(|input| &input.sources).collect();
        let count = |source: &Arc<str>, kind: Kind| {
            inputs.iter().filter(|input| input.kind == kind && input.sources.contains(source)).count()
        };
        let of = |source: &Arc<str>| Ways { frames: count(source, Kind::Frame), records: count(source, Kind::Record) };
        let mut ways = None;
        for source in sources {
            let found = of(source);
            if found.frames > 1 {
                let message = format!("the pictures of `{source}` come to it by {} of its `inputs`", found.frames);
                return Err(StartError::new(message).hint("keep one of them"));
            }
            let (first, expected) = *ways.get_or_insert((source, found));
            if expected != found {
                let message = format!(
                    "of `{first}` come {} pictures and records by its `inputs`, and of `{source}` {}: nobody can tell when a \
                     picture has all its records",
                    expected.told(),
                    found.told()
                );
                return Err(StartError::new(message).hint("write a sink for each of them"));
            }
        }
        Ok(ways.map_or(Ways { frames: 0, records: 0 }, |(_, ways)| ways))
    }

    /// "1 and 2".
    fn told(self) -> String {
        format!("{} and {}", self.frames, self.records)
    }
}

/// What is known of one picture.
pub(super) struct Found {
    pub stream: StreamId,
    pub seq: u64,
    /// Seconds since the stream's first picture.
    pub pts: f64,
    pub time: SystemTime,
    pub fallback: bool,
    pub frame: Option<Arc<Frame>>,
    pub records: Vec<Arc<Record>>,
    pub claims: Vec<Claim>,
}

impl Found {
    /// What an item says by itself.
    pub fn of(item: &Item) -> Found {
        Found {
            stream: item.stream.clone(),
            seq: item.seq,
            pts: item.pts.as_micros() as f64 / 1e6,
            time: item.time,
            fallback: item.fallback,
            frame: None,
            records: Vec::new(),
            claims: Vec::new(),
        }
    }

    /// Whether nobody could look at the picture: each of its records tells of a failure.
    pub fn has_failed(&self) -> bool {
        let is_error = |record: &Arc<Record>| matches!(record.body, RecordBody::Error { .. });
        !self.records.is_empty() && self.records.iter().all(is_error)
    }

    fn bytes(&self) -> u64 {
        self.frame.as_ref().map_or(0, |frame| frame.bytes())
    }

    pub fn settle(self, verdict: Verdict) {
        self.claims.into_iter().for_each(|claim| claim.settle(verdict));
    }
}

/// What waits of one stream.
#[derive(Default)]
struct Window {
    waiting: BTreeMap<u64, Found>,
    bytes: u64,
    /// Ways along which the stream has ended.
    ended: usize,
}

/// Puts pictures and their records together.
pub(super) struct Joiner {
    node: Arc<str>,
    ways: Ways,
    /// Bytes of pictures that may wait, of each stream.
    most: u64,
    streams: BTreeMap<StreamId, Window>,
    has_warned: bool,
}

impl Joiner {
    /// `most`: bytes of pictures that may wait, of each stream.
    pub fn new(node: Arc<str>, ways: Ways, most: u64) -> Joiner {
        Joiner { node, ways, most, streams: BTreeMap::new(), has_warned: false }
    }

    pub fn ways(&self) -> Ways {
        self.ways
    }

    /// A picture has come; those that are complete now.
    pub fn frame(&mut self, item: &Item, frame: &Arc<Frame>) -> Vec<Found> {
        let found = self.found(item);
        found.frame = Some(frame.clone());
        // The window pays for it: without that, pictures that wait would keep the source from bringing their records.
        found.claims.push(Claim::without_credit(item));
        if let Some(window) = self.streams.get_mut(&item.stream) {
            window.bytes += frame.bytes();
        }
        self.make_room(&item.stream);
        self.complete(&item.stream, item.seq)
    }

    /// A record has come; the pictures that are complete now.
    pub fn record(&mut self, item: &Item, record: &Arc<Record>) -> Vec<Found> {
        let found = self.found(item);
        found.records.push(record.clone());
        found.claims.push(Claim::without_credit(item));
        self.complete(&item.stream, item.seq)
    }

    /// The stream has ended along one way; along the others records may still come. When it has along all of them:
    /// what is left.
    pub fn ended(&mut self, stream: &StreamId) -> Option<Vec<Found>> {
        let window = self.streams.entry(stream.clone()).or_default();
        window.ended += 1;
        if window.ended < self.ways.frames + self.ways.records {
            return None;
        }
        let over = self.streams.remove(stream)?;
        Some(whole_ones(over.waiting))
    }

    /// Nothing more comes of any stream: what is left.
    pub fn finish(&mut self) -> Vec<Found> {
        std::mem::take(&mut self.streams).into_values().flat_map(|window| whole_ones(window.waiting)).collect()
    }

    fn found(&mut self, item: &Item) -> &mut Found {
        let window = self.streams.entry(item.stream.clone()).or_default();
        window.waiting.entry(item.seq).or_insert_with(|| Found::of(item))
    }

    /// Where the picture has all its records: then no more come for those before it.
    fn complete(&mut self, stream: &StreamId, seq: u64) -> Vec<Found> {
        let Some(window) = self.streams.get_mut(stream) else { return Vec::new() };
        let is_whole = |found: &Found| found.frame.is_some() && found.records.len() >= self.ways.records;
        if !window.waiting.get(&seq).is_some_and(is_whole) {
            return Vec::new();
        }
        let later = window.waiting.split_off(&(seq + 1));
        let over = std::mem::replace(&mut window.waiting, later);
        window.bytes -= over.values().map(Found::bytes).sum::<u64>();
        whole_ones(over)
    }

    /// Drops the oldest pictures that wait, where they are too many.
    fn make_room(&mut self, stream: &StreamId) {
        let Some(window) = self.streams.get_mut(stream) else { return };
        while window.bytes > self.most
            && window.waiting.len() > 1
            && let Some((seq, found)) = window.waiting.pop_first()
        {
            window.bytes -= found.bytes();
            for claim in found.claims {
                claim.drop_at(&self.node, "no record in time");
            }
            if !std::mem::replace(&mut self.has_warned, true) {
                let node = &self.node;
                tracing::warn!(%node, %stream, seq, "`{node}` drops pictures of stream `{stream}` whose records did not come in time: let its pictures and its records come from one `sample`, or raise `window`");
            }
        }
    }
}

/// Of those for which nothing more comes, the ones with a picture and a record; the others end here.
fn whole_ones(over: BTreeMap<u64, Found>) -> Vec<Found> {
    let is_whole = |found: &Found| found.frame.is_some() && !found.records.is_empty();
    let (whole, others): (Vec<Found>, Vec<Found>) = over.into_values().partition(is_whole);
    others.into_iter().for_each(|found| found.settle(Verdict::Filtered));
    whole
}

/// Draws what records say into their picture.
pub(super) fn annotate(picture: &mut Picture, records: &[Arc<Record>]) {
    for record in records {
        match &record.body {
            RecordBody::Detection { detections, .. } => {
                for found in detections {
                    picture.mark(found.bounds, &format!("{} {:.2}", found.label, found.score), found.index);
                }
            }
            RecordBody::Classification { predictions, .. } => {
                if let Some(best) = predictions.first() {
                    picture.caption(&format!("{} {:.2}", best.label, best.score));
                }
            }
            _ => {}
        }
    }
}
