//! Where a stream is cut into segments: at keyframes, as soon as a segment is long enough. Where latency is to be low,
//! [`super::parts`] cuts instead.
//!
//! Packets are held until their segment is complete, so a cut may be made in hindsight. Sound is cut where it is heard while
//! the picture of the cut is shown; a segment waits [`LATE_SOUND`] for what of it comes late.
//!
//! Of a live playlist the longest segment is promised once and for all, when the first one is complete: as long as was
//! asked for, and the longest group of pictures seen until then. What would become longer is cut at the last keyframe
//! before, and where there is none, in the middle of a group: it then plays, but nobody can begin there.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::early_sound::EarlySound;
use crate::item::{Item, Packet, StreamInfo, Track};
use crate::lease::{Ack, Verdict};
use crate::media::fragment::{Form, Sample};
use crate::time::MediaTime;

/// A segment waits so long, in the stream's own time, for the sound beside its last pictures.
const LATE_SOUND: Duration = Duration::from_secs(1);
/// The longest first segment, in microseconds, where three times the length is less: groups of pictures are often longer
/// than segments are asked to be.
pub(super) const LONGEST_FIRST: i64 = 12_000_000;
/// Segments are shorter than this, in microseconds, only where they are empty.
pub(super) const SHORTEST: i64 = 1000;

/// How a stream is cut.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Microseconds after which the next keyframe begins another segment.
    pub length: i64,
    /// Whether the longest segment is promised before all are known.
    pub promises: bool,
    /// Bytes of packets that are held.
    pub most_bytes: u64,
    /// What segments are: not every track can be a part of them.
    pub form: Form,
}

impl Rules {
    /// Keyframes that should come after exactly the length may be a little early, by rounded times.
    pub(super) fn is_due(self, length: i64) -> bool {
        length >= self.length - self.length / 40
    }
}

/// Whole seconds, rounded up.
pub(super) fn seconds(micros: i64) -> u64 {
    u64::try_from(micros).unwrap_or(0).div_ceil(1_000_000).max(1)
}

/// Microseconds that a segment may last beside this promise: what is promised are rounded seconds.
pub(super) fn longest(target: u64) -> i64 {
    i64::try_from(target).unwrap_or(i64::MAX).saturating_mul(1_000_000).saturating_add(499_999)
}

/// What is made into one segment, or where latency is to be low into one part of it.
#[derive(Debug)]
pub struct Part {
    pub samples: Vec<Sample>,
    pub acks: Vec<Ack>,
    /// For each track when the packet behind its last one here is decoded.
    pub following: Vec<Option<MediaTime>>,
    pub start: MediaTime,
    /// Microseconds.
    pub duration: i64,
    /// Whether something is missing before it, or it is of another format.
    pub is_after_gap: bool,
    /// Whether decoding may begin with it.
    pub is_independent: bool,
    /// Whether it has pictures that are shown before the first one of its segment, as behind the keyframe of an open group:
    /// what came before may be needed for them.
    pub has_leading: bool,
    /// When its first picture was read.
    pub time: SystemTime,
    /// The longest that a segment of the stream is, in seconds; where that is promised.
    pub target: Option<u64>,
    /// The longest that a part of a segment is, in microseconds; `None` for a whole segment.
    pub part_target: Option<i64>,
    /// Whether the segment is complete with it.
    pub completes: bool,
}

/// A packet that waits for its segment.
#[derive(Debug)]
pub(super) struct Held {
    pub packet: Arc<Packet>,
    pub pts: MediaTime,
    pub time: SystemTime,
    pub ack: Ack,
}

impl Held {
    pub fn of(item: &Item, packet: &Arc<Packet>) -> Held {
        Held { packet: packet.clone(), pts: item.pts, time: item.time, ack: item.lease.ack.clone() }
    }

    fn end(&self) -> i64 {
        let length = self.packet.duration.map_or(0, MediaTime::as_micros);
        self.pts.as_micros().saturating_add(length)
    }
}

#[derive(Debug)]
struct Open {
    held: Vec<Held>,
    start: MediaTime,
    time: SystemTime,
    is_after_gap: bool,
    is_independent: bool,
    has_leading: bool,
    /// Microseconds: when the picture that is shown longest is over.
    end: i64,
    /// Microseconds: when the picture that comes last is shown; [`i64::MIN`] where there is none.
    latest: i64,
    /// The latest keyframe, and the longest time between two of them so far, in microseconds.
    key: i64,
    longest_group: Option<i64>,
}

impl Open {
    fn begin(first: &Held, is_after_gap: bool) -> Open {
        Open {
            held: Vec::new(),
            start: first.pts,
            time: first.time,
            is_after_gap,
            is_independent: first.packet.is_key,
            has_leading: false,
            end: first.pts.as_micros(),
            latest: i64::MIN,
            key: first.pts.as_micros(),
            longest_group: None,
        }
    }

    fn push(&mut self, held: Held) {
        if held.packet.track == 0 {
            self.end = self.end.max(held.end());
            let pts = held.pts.as_micros();
            self.has_leading |= pts < self.start.as_micros();
            self.latest = self.latest.max(pts);
            if held.packet.is_key && pts > self.key {
                self.longest_group = self.longest_group.max(Some(pts - self.key));
                self.key = pts;
            }
        }
        self.held.push(held);
    }

    fn since_start(&self, micros: i64) -> i64 {
        micros.saturating_sub(self.start.as_micros())
    }

    /// The last keyframe behind its first, and where it is held.
    fn last_key(&self) -> Option<usize> {
        let is_later_key = |held: &Held| held.packet.track == 0 && held.packet.is_key && held.pts > self.start;
        self.held.iter().rposition(is_later_key)
    }
}

/// A segment that lacks only sound.
#[derive(Debug)]
struct Closing {
    open: Open,
    end: MediaTime,
    /// When the first picture behind it is decoded.
    next_picture: MediaTime,
    duration: i64,
    /// For each track whether all of it that belongs here has come.
    complete: Vec<bool>,
}

/// Cuts one stream.
pub struct Segmenter {
    rules: Rules,
    /// For each track whether it can be kept.
    kept: Vec<bool>,
    open: Option<Open>,
    closing: Option<Closing>,
    early: EarlySound,
    /// Of what is held, without early sound.
    bytes: u64,
    is_after_gap: bool,
    has_begun: bool,
    target: Option<u64>,
    /// Segments that no keyframe begins.
    pub forced: u64,
}

impl Segmenter {
    /// `promised` is the longest segment, in seconds, where that has been promised already.
    pub fn new(rules: Rules, promised: Option<u64>) -> Segmenter {
        Segmenter {
            rules,
            kept: Vec::new(),
            open: None,
            closing: None,
            early: EarlySound::default(),
            bytes: 0,
            is_after_gap: false,
            has_begun: false,
            target: promised,
            forced: 0,
        }
    }

    /// The stream opens, or goes on in another format: nothing of it may be held then ([`Segmenter::finish`]).
    pub fn open(&mut self, info: &StreamInfo) {
        self.kept = info.tracks.iter().map(|track: &Track| self.rules.form.plays(track)).collect();
    }

    /// Something is missing here: what is held is complete.
    pub fn gap(&mut self) -> Vec<Part> {
        let parts = self.finish();
        self.is_after_gap = self.has_begun;
        parts
    }

    /// Takes a packet; the segments that are complete by that. What belongs to none is settled.
    pub fn take(&mut self, item: &Item, packet: &Arc<Packet>) -> Vec<Part> {
        let held = Held::of(item, packet);
        let mut out = Vec::new();
        if !self.kept.get(packet.track).copied().unwrap_or(false) {
            held.ack.settle(Verdict::Filtered);
        } else if packet.track == 0 {
            self.picture(held, &mut out);
        } else {
            self.sound(held, &mut out);
        }
        out
    }

    /// Nothing more comes for what is held.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut out = Vec::new();
        self.early.let_go();
        self.finish_closing(&mut out);
        if let Some(open) = self.open.take() {
            let duration = open.since_start(open.end);
            self.emit(open, duration, None, &mut out);
        }
        self.bytes = 0;
        out
    }

    fn sound(&mut self, held: Held, out: &mut Vec<Part>) {
        let track = held.packet.track;
        let Some(open) = &mut self.open else {
            self.early.push(held, self.rules.most_bytes);
            return;
        };
        self.bytes += held.packet.data.len() as u64;
        match &mut self.closing {
            Some(closing) if held.packet.dts < closing.end => closing.open.held.push(held),
            closing => {
                if let Some(complete) = closing.as_mut().and_then(|closing| closing.complete.get_mut(track)) {
                    *complete = true;
                }
                open.push(held);
            }
        }
        self.finish_closing_if_complete(out);
        if self.bytes > self.rules.most_bytes {
            // No picture has come for so long that there is nothing to cut at.
            out.extend(self.gap());
        }
    }

    fn picture(&mut self, held: Held, out: &mut Vec<Part>) {
        let decoded = held.packet.dts;
        let is_late = |closing: &Closing| {
            decoded.as_micros().saturating_sub(closing.end.as_micros()) >= LATE_SOUND.as_micros() as i64
        };
        if self.closing.as_ref().is_some_and(is_late) {
            self.finish_closing(out);
        }
        let bytes = held.packet.data.len() as u64;
        let Some(open) = &mut self.open else {
            if !held.packet.is_key {
                // Nothing can be decoded before the first keyframe.
                held.ack.settle(Verdict::Filtered);
                return;
            }
            self.bytes += bytes;
            self.begin(held);
            return;
        };
        self.bytes += bytes;
        let (pts, length) = (held.pts.as_micros(), open.since_start(held.pts.as_micros()));
        if held.packet.is_key {
            open.longest_group = open.longest_group.max(Some(pts - open.key).filter(|group| *group > 0));
            if self.rules.is_due(length) {
                self.cut(None, held.pts, &held, out);
            }
        }
        // Pictures that are shown before others are no place to cut.
        if self.open.as_ref().is_some_and(|open| pts > open.latest) && self.is_too_much(held.end()) {
            self.cut_short(&held, out);
        }
        if let Some(open) = &mut self.open {
            open.push(held);
        }
    }

    /// Whether the open segment cannot last until `end`.
    fn is_too_much(&self, end: i64) -> bool {
        let Some(open) = &self.open else { return false };
        let limit = match self.target {
            _ if !self.rules.promises => i64::MAX,
            Some(seconds) => i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000),
            None => self.rules.length.saturating_mul(3).max(LONGEST_FIRST),
        };
        // A quarter is left for the sound that comes before the next picture.
        open.since_start(end) > limit || self.bytes > self.rules.most_bytes / 4 * 3
    }

    /// Cuts where no keyframe is due: at the last one that is held, or else right before `next`.
    fn cut_short(&mut self, next: &Held, out: &mut Vec<Part>) {
        self.finish_closing(out);
        if !self.is_too_much(next.end()) {
            return;
        }
        if !next.packet.is_key
            && let Some(open) = &self.open
            && let Some(place) = open.last_key()
        {
            let pts = open.held[place].pts;
            self.cut(Some(place), pts, next, out);
            if !self.is_too_much(next.end()) {
                return;
            }
        }
        if self.open.as_ref().is_none_or(|open| open.latest == i64::MIN) {
            return;
        }
        self.forced += u64::from(!next.packet.is_key);
        self.cut(None, next.pts, next, out);
    }

    /// Ends the open segment at `pts`, and begins another with the picture that is held at `place`, or with `next`.
    fn cut(&mut self, place: Option<usize>, pts: MediaTime, next: &Held, out: &mut Vec<Part>) {
        self.finish_closing(out);
        let Some(mut before) = self.open.take() else { return };
        let first = place.map_or(next, |place| &before.held[place]);
        let (mut open, next_picture) = (Open::begin(first, false), first.packet.dts);
        let tracks = self.kept.len();
        let (mut complete, mut heard) = (vec![false; tracks], vec![false; tracks]);
        let mut stays = Vec::new();
        for (index, held) in std::mem::take(&mut before.held).into_iter().enumerate() {
            let track = held.packet.track;
            let goes_on = if track == 0 { place.is_some_and(|place| index >= place) } else { held.packet.dts >= pts };
            heard[track] = true;
            if goes_on {
                complete[track] = true;
                open.push(held);
            } else {
                stays.push(held);
            }
        }
        before.held = stays;
        // A track that is silent is not waited for.
        for (track, complete) in complete.iter_mut().enumerate() {
            *complete |= track == 0 || !heard[track];
        }
        let promised = self.target.filter(|_| self.rules.promises);
        let shown = before.since_start(pts.as_micros());
        let content = before.held.iter().filter(|held| held.packet.track == 0).map(Held::end).max();
        let content = before.since_start(content.unwrap_or(before.end)).min(shown);
        // A hole that nobody has announced.
        let is_hole = promised.is_some_and(|target| shown > longest(target));
        let duration = if is_hole { content } else { shown };
        open.is_after_gap = is_hole;
        self.open = Some(open);
        self.closing = Some(Closing { open: before, end: pts, next_picture, duration, complete });
        self.finish_closing_if_complete(out);
    }

    fn begin(&mut self, first: Held) {
        let is_after_gap = std::mem::take(&mut self.is_after_gap);
        let mut open = Open::begin(&first, is_after_gap);
        for sound in self.early.beside(&first, self.has_begun) {
            self.bytes += sound.packet.data.len() as u64;
            open.push(sound);
        }
        open.push(first);
        self.has_begun = true;
        self.open = Some(open);
    }

    fn finish_closing_if_complete(&mut self, out: &mut Vec<Part>) {
        if self.closing.as_ref().is_some_and(|closing| closing.complete.iter().all(|complete| *complete)) {
            self.finish_closing(out);
        }
    }

    fn finish_closing(&mut self, out: &mut Vec<Part>) {
        if let Some(Closing { open, duration, next_picture, .. }) = self.closing.take() {
            self.emit(open, duration, Some(next_picture), out);
        }
    }

    fn emit(&mut self, open: Open, duration: i64, next_picture: Option<MediaTime>, out: &mut Vec<Part>) {
        let mut duration = duration.max(SHORTEST);
        if self.rules.promises {
            let group = open.longest_group.unwrap_or(self.rules.length);
            let promise = || seconds(self.rules.length.saturating_add(group).max(duration));
            let target = *self.target.get_or_insert_with(promise);
            duration = duration.min(longest(target));
        }
        let following = |track: usize| {
            let held = self.open.as_ref()?.held.iter().find(|held| held.packet.track == track)?;
            Some(held.packet.dts)
        };
        let following: Vec<_> =
            (0..self.kept.len()).map(|track| if track == 0 { next_picture } else { following(track) }).collect();
        let (mut samples, mut acks) = (Vec::with_capacity(open.held.len()), Vec::with_capacity(open.held.len()));
        for held in open.held {
            self.bytes = self.bytes.saturating_sub(held.packet.data.len() as u64);
            samples.push(Sample { packet: held.packet, pts: held.pts });
            acks.push(held.ack);
        }
        out.push(Part {
            samples,
            acks,
            following,
            start: open.start,
            duration,
            is_after_gap: open.is_after_gap,
            is_independent: open.is_independent,
            has_leading: open.has_leading,
            time: open.time,
            target: self.target,
            part_target: None,
            completes: true,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use bytes::Bytes;
    use proptest::prelude::*;

    use crate::item::Payload;
    use crate::lease::{Account, Counts};
    use crate::testing::item;

    const SECOND: i64 = 1_000_000;

    /// A segmenter of pictures and sound.
    fn segmenter(rules: Rules) -> Segmenter {
        Segmenter { kept: vec![true, true], ..Segmenter::new(rules, None) }
    }

    const RULES: Rules = Rules { length: 2 * SECOND, promises: true, most_bytes: 1 << 20, form: Form::Mp4 };

    /// Gives it a packet and lets go of it, as the engine does.
    fn give(
        segmenter: &mut Segmenter,
        track: usize,
        pts: i64,
        is_key: bool,
        bytes: usize,
    ) -> (Vec<Part>, Arc<Account>) {
        let time = MediaTime::from_micros(pts);
        let data = Bytes::from(vec![0; bytes]);
        let packet = Arc::new(Packet { track, is_key, dts: time, duration: None, data });
        let (item, account) = item(0, time, Payload::Packet(packet.clone()));
        let parts = segmenter.take(&item, &packet);
        item.lease.ack.release();
        (parts, account)
    }

    /// Ten pictures a second, those at `keys` tenths of a second with a keyframe.
    fn pictures(segmenter: &mut Segmenter, tenths: std::ops::Range<i64>, keys: &[i64]) -> Vec<Part> {
        tenths.flat_map(|tenth| give(segmenter, 0, tenth * SECOND / 10, keys.contains(&tenth), 10).0).collect()
    }

    fn lengths(parts: &[Part]) -> Vec<(f64, bool)> {
        parts.iter().map(|part| (part.duration as f64 / 1e6, part.is_independent)).collect()
    }

    #[test]
    fn segments_end_at_the_first_keyframe_behind_their_length() {
        let mut segmenter = segmenter(RULES);
        let mut parts = pictures(&mut segmenter, 0..60, &[0, 15, 30, 45, 50]);
        assert_eq!(lengths(&parts), [(3.0, true), (2.0, true)]);
        assert_eq!(parts[0].target, Some(4), "two seconds, and a group of a second and a half, rounded up");
        assert_eq!(parts[0].following[0], Some(MediaTime::from_micros(3 * SECOND)));
        parts.extend(segmenter.finish());
        assert_eq!(parts.iter().map(|part| part.samples.len()).sum::<usize>(), 60);
        assert_eq!(segmenter.forced, 0);
    }

    #[test]
    fn what_would_be_longer_than_promised_is_cut_at_the_last_keyframe_before() {
        let mut segmenter = segmenter(RULES);
        // Groups of a second, then one of three seconds behind a keyframe that was not due.
        let keys = [0, 10, 20, 30, 35, 70, 80];
        let parts = pictures(&mut segmenter, 0..100, &keys);
        assert_eq!(parts[0].target, Some(3));
        // The long one is more than three seconds with what is before it, and by itself too: that is cut in the middle.
        assert_eq!(lengths(&parts), [(2.0, true), (1.5, true), (3.1, true), (1.4, false)]);
        assert!(parts.iter().all(|part| part.duration <= longest(3)));
    }

    #[test]
    fn without_a_keyframe_in_time_a_segment_begins_in_the_middle() {
        let mut segmenter = segmenter(RULES);
        let parts = pictures(&mut segmenter, 0..120, &[0, 10, 20, 110]);
        assert!(segmenter.forced > 0);
        assert!(parts.iter().any(|part| !part.is_independent));
        assert!(parts.iter().all(|part| part.duration <= longest(3)), "{:?}", lengths(&parts));
        // Where all are known before the playlist is shown, nothing has to be cut.
        let mut patient =
            Segmenter { kept: vec![true, true], ..Segmenter::new(Rules { promises: false, ..RULES }, None) };
        let parts = pictures(&mut patient, 0..120, &[0, 10, 20, 110]);
        assert_eq!(lengths(&parts), [(2.0, true), (9.0, true)]);
    }

    #[test]
    fn pictures_that_are_shown_before_the_keyframe_are_told() {
        let mut segmenter = segmenter(RULES);
        let mut parts = Vec::new();
        // In the order of decoding: the second group is open, the third is closed.
        let shown =
            [(0, true), (10, false), (20, true), (18, false), (19, false), (30, false), (40, true), (50, false)];
        for (tenth, is_key) in shown {
            parts.extend(give(&mut segmenter, 0, tenth * SECOND / 10, is_key, 10).0);
        }
        parts.extend(segmenter.finish());
        let told: Vec<_> = parts.iter().map(|part| (part.is_independent, part.has_leading)).collect();
        assert_eq!(told, [(true, false), (true, true), (true, false)]);
    }

    #[test]
    fn sound_is_cut_where_it_is_heard() {
        let mut segmenter = segmenter(RULES);
        give(&mut segmenter, 0, 0, true, 10);
        give(&mut segmenter, 1, 0, true, 1);
        // Ahead of the pictures.
        give(&mut segmenter, 1, 1_900_000, true, 1);
        give(&mut segmenter, 1, 2_000_000, true, 1);
        give(&mut segmenter, 0, 1_000_000, false, 10);
        let (parts, _) = give(&mut segmenter, 0, 2_000_000, true, 10);
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].samples.iter().filter(|sample| sample.packet.track == 1).count(), 2);
        assert_eq!(parts[0].following[1], Some(MediaTime::from_micros(2 * SECOND)));
        // Behind them: the segment waits for it.
        let (parts, _) = give(&mut segmenter, 0, 4_000_000, true, 10);
        assert!(parts.is_empty());
        give(&mut segmenter, 1, 3_900_000, true, 1);
        let (parts, _) = give(&mut segmenter, 1, 4_100_000, true, 1);
        assert_eq!(parts[0].samples.iter().filter(|sample| sample.packet.track == 1).count(), 2);
        // But not for ever.
        let (parts, _) = give(&mut segmenter, 0, 6_000_000, true, 10);
        assert!(parts.is_empty());
        let (parts, _) = give(&mut segmenter, 0, 7_000_000, false, 10);
        assert_eq!(parts.len(), 1);
    }

    #[test]
    fn sound_without_pictures_is_bounded() {
        let mut segmenter = segmenter(Rules { most_bytes: 100, ..RULES });
        give(&mut segmenter, 0, 0, true, 10);
        let parts: Vec<Part> =
            (1..40).flat_map(|tenth| give(&mut segmenter, 1, tenth * SECOND / 10, true, 10).0).collect();
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].samples.len(), 11);
        assert!(segmenter.bytes <= 100);
    }

    #[test]
    fn nothing_begins_before_a_keyframe_and_behind_a_gap() {
        let mut segmenter = segmenter(RULES);
        let (_, before) = give(&mut segmenter, 0, 0, false, 10);
        assert_eq!(before.snapshot(), Counts { read: 1, filtered: 1, ..Counts::default() });
        let (_, early) = give(&mut segmenter, 1, 0, true, 1);
        assert!(pictures(&mut segmenter, 20..30, &[20]).is_empty());
        assert_eq!(early.snapshot().filtered, 1, "long before the first picture");
        let parts = segmenter.gap();
        assert_eq!((parts.len(), parts[0].is_after_gap), (1, false));
        assert!(pictures(&mut segmenter, 50..52, &[51]).is_empty());
        let parts = segmenter.finish();
        assert_eq!((parts.len(), parts[0].samples.len(), parts[0].is_after_gap), (1, 1, true));
    }

    #[test]
    fn a_hole_that_nobody_announces_is_no_part_of_a_segment() {
        let mut segmenter = segmenter(RULES);
        let mut parts = pictures(&mut segmenter, 0..45, &[0, 10, 20, 30, 40]);
        parts.extend(pictures(&mut segmenter, 300..330, &[300, 310, 320]));
        parts.extend(segmenter.finish());
        assert!(parts.iter().all(|part| part.duration <= longest(3)), "{:?}", lengths(&parts));
        let after: Vec<bool> = parts.iter().map(|part| part.is_after_gap).collect();
        assert_eq!(after.iter().filter(|after| **after).count(), 1, "{after:?}");
    }

    proptest! {
        /// Whatever comes: every packet is in one segment, in order, and none is longer than promised.
        #[test]
        fn every_packet_is_in_one_segment(
            groups in proptest::collection::vec((1i64..60, any::<bool>(), 0i64..40), 1..40),
            promises: bool,
            most_bytes in prop_oneof![Just(1u64 << 20), Just(2_000)],
        ) {
            let mut segmenter = segmenter(Rules { promises, most_bytes, ..RULES });
            let (mut now, mut given, mut parts) = (0i64, 0, Vec::new());
            for (pictures, gap, sound_lag) in groups {
                if gap {
                    parts.extend(segmenter.gap());
                }
                for picture in 0..pictures {
                    now += SECOND / 10;
                    parts.extend(give(&mut segmenter, 0, now, picture == 0, 50).0);
                    given += 1;
                    let heard = now - sound_lag * SECOND / 100;
                    if heard > 0 {
                        parts.extend(give(&mut segmenter, 1, heard, true, 5).0);
                    }
                }
            }
            parts.extend(segmenter.finish());
            let pictures: Vec<i64> = parts
                .iter()
                .flat_map(|part| &part.samples)
                .filter(|sample| sample.packet.track == 0)
                .map(|sample| sample.pts.as_micros())
                .collect();
            prop_assert_eq!(pictures.len(), given);
            prop_assert!(pictures.windows(2).all(|pair| pair[0] < pair[1]));
            for part in &parts {
                let first = part.samples.iter().find(|sample| sample.packet.track == 0).unwrap();
                prop_assert_eq!(part.is_independent, first.packet.is_key);
                prop_assert_eq!(part.target.is_some(), promises);
                if let Some(target) = part.target {
                    prop_assert_eq!(Some(target), parts[0].target);
                    prop_assert!((part.duration as f64 / 1e6).round() as u64 <= target);
                }
                prop_assert!(part.acks.len() == part.samples.len());
            }
            prop_assert_eq!(segmenter.bytes, 0);
        }
    }
}
