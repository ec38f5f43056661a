//! `sample`: passes a picture every so often, by media time.
//!
//! For k = 0, 1, 2 … it passes the first picture with `pts - first pts >= k / fps + phase`, compared as rationals with
//! one microsecond of slack. A picture that serves several k (after a gap) passes once. Right behind a source the
//! planner pushes it into the source's thread, where the same [`Sampler`] also says which packets need no decoding.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration as StdDuration;

use serde::Deserialize;

use crate::config::{self, Duration, Field, FieldType, Presence, Rate};
use crate::error::{FieldError, ItemError};
use crate::item::{Item, Kind, StreamId};
use crate::lease::Verdict;
use crate::operator::{
    BuildContext, Built, Execution, InlineOperator, Output, Produces, Registration, Role, StreamOperator,
};
use crate::time::MediaTime;

/// How often to pass a picture, and how long after the stream's start the first one is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    pub rate: Rate,
    /// `None`: the engine chooses (zero for finite sources, spread over the streams of live ones).
    pub phase: Option<StdDuration>,
}

/// The slack of the comparison: containers round their timestamps.
const SLACK_MICROS: i128 = 1;

/// Decides for one stream which pictures are sampled.
#[derive(Clone, Debug)]
pub struct Sampler {
    rate: Rate,
    phase_micros: i128,
    /// The smallest k that no picture has served yet.
    next: i64,
    /// For each k, the earliest packet seen that could serve it.
    earliest: BTreeMap<i64, MediaTime>,
}

impl Sampler {
    pub fn new(rate: Rate, phase: StdDuration) -> Sampler {
        let phase_micros = i128::try_from(phase.as_micros()).unwrap_or(0);
        Sampler { rate, phase_micros, next: 0, earliest: BTreeMap::new() }
    }

    /// The largest k whose instant `pts` (relative to the first picture) has reached; negative before the first.
    fn reached(&self, pts: MediaTime) -> i64 {
        // k <= (pts - phase + slack) * rate, all as integers: pts in ticks, the others in microseconds.
        let base = pts.base;
        let million = 1_000_000i128;
        let ticks = i128::from(pts.ticks) * i128::from(base.numerator()) * million;
        let shift = (SLACK_MICROS - self.phase_micros) * i128::from(base.denominator());
        // Bounded inputs: 63 + 32 + 20 bits; the rate's parts are at most 32 + 20 bits, so saturate rather than wrap.
        let numerator = (ticks + shift).saturating_mul(i128::from(self.rate.numerator));
        let denominator = i128::from(base.denominator()) * million * i128::from(self.rate.denominator);
        i64::try_from(numerator.div_euclid(denominator)).unwrap_or(if numerator < 0 { i64::MIN } else { i64::MAX })
    }

    /// Whether the picture at `pts` is sampled. Call it once for each decoded picture, in presentation order.
    pub fn offer(&mut self, pts: MediaTime) -> bool {
        let reached = self.reached(pts);
        if reached < self.next {
            return false;
        }
        self.next = reached.saturating_add(1);
        self.earliest = self.earliest.split_off(&self.next);
        true
    }

    /// What was said of packets does not hold any more: their pictures will not come.
    pub fn forget_packets(&mut self) {
        self.earliest.clear();
    }

    /// Whether the picture of a packet at `pts` could be sampled. Call it once for each packet, in decoding order.
    ///
    /// Among the pictures that reach the same k only the earliest can be sampled, so a packet that follows (in time)
    /// one already seen is not wanted. Later packets may turn out earlier (B-frames): then both were wanted, which
    /// costs a picture and is never wrong.
    pub fn could_want(&mut self, pts: MediaTime) -> bool {
        let reached = self.reached(pts);
        if reached < self.next {
            return false;
        }
        match self.earliest.get_mut(&reached) {
            Some(earliest) if pts >= *earliest => false,
            Some(earliest) => {
                *earliest = pts;
                true
            }
            None => {
                self.earliest.insert(reached, pts);
                true
            }
        }
    }
}

#[derive(Deserialize)]
struct Config {
    fps: Option<Rate>,
    every: Option<Duration>,
    phase: Option<Duration>,
}

struct Sample {
    sampling: Sampling,
}

impl InlineOperator for Sample {
    fn start(&self, _stream: &StreamId) -> Box<dyn StreamOperator> {
        let phase = self.sampling.phase.unwrap_or_default();
        Box::new(SampleStream { sampler: Sampler::new(self.sampling.rate, phase) })
    }

    fn sampling(&self) -> Option<Sampling> {
        Some(self.sampling)
    }
}

struct SampleStream {
    sampler: Sampler,
}

impl StreamOperator for SampleStream {
    fn item(&mut self, item: &Item, out: &mut Output) -> Result<(), ItemError> {
        if self.sampler.offer(item.pts) {
            out.emit(item.clone());
        } else {
            out.settle(item, Verdict::Filtered);
        }
        Ok(())
    }
}

fn build(_context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let rate =
        match (config.fps, config.every) {
            (Some(_), Some(_)) => {
                let error = FieldError::new("every", "`fps` and `every` both say how often");
                return Err(vec![error.hint("keep one of them")]);
            }
            (Some(rate), None) => rate,
            (None, Some(every)) => Rate::from_period(every.0).ok_or_else(|| {
                let error = FieldError::new("every", "a period must be at least a microsecond");
                vec![error.hint(
                    "write how much time lies between two pictures, such as \"500ms\"; leave `sample` out for all",
                )]
            })?,
            (None, None) => {
                let error = FieldError::new("", "`sample` needs to know how often");
                return Err(vec![error.hint("add `fps = 2` or `every = \"500ms\"`")]);
            }
        };
    Ok(Built::Inline(Arc::new(Sample { sampling: Sampling { rate, phase: config.phase.map(|phase| phase.0) } })))
}

pub static REGISTRATION: Registration = Registration {
    name: "sample",
    role: Role::Operator,
    summary: "Passes a picture every so often, by media time.",
    execution: Execution::Inline,
    accepts: &[Kind::Frame],
    produces: Produces::SameAsInput,
    fields: &[
        Field {
            name: "fps",
            value: FieldType::Rate,
            presence: Presence::Optional,
            summary: "Pictures a second of media time; this or `every`.",
        },
        Field {
            name: "every",
            value: FieldType::Duration,
            presence: Presence::Optional,
            summary: "Media time from one picture to the next; this or `fps`.",
        },
        Field {
            name: "phase",
            value: FieldType::Duration,
            presence: Presence::Optional,
            summary: "Media time after the stream's start at which the first picture is due. Left out: zero for \
                      finite sources, spread over the node's streams for live ones.",
        },
    ],
    example: "[operators.twice_a_second]\ntype = \"sample\"\ninputs = [\"cameras\"]\nfps = 2\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::TimeBase;
    use proptest::prelude::*;

    fn rate(numerator: u64, denominator: u64) -> Rate {
        Rate { numerator, denominator }
    }

    fn sampled(sampler: &mut Sampler, times: impl IntoIterator<Item = MediaTime>) -> Vec<usize> {
        times.into_iter().enumerate().filter(|(_, time)| sampler.offer(*time)).map(|(index, _)| index).collect()
    }

    #[test]
    fn two_a_second_of_thirty() {
        let base = TimeBase::new(1, 30).unwrap();
        let mut sampler = Sampler::new(rate(2, 1), StdDuration::ZERO);
        assert_eq!(sampled(&mut sampler, (0..61).map(|n| MediaTime::new(n, base))), [0, 15, 30, 45, 60]);
    }

    #[test]
    fn a_picture_after_a_gap_serves_several_instants_once() {
        let mut sampler = Sampler::new(rate(2, 1), StdDuration::ZERO);
        let times = [0, 100_000, 1_600_000, 1_700_000, 2_000_000].map(MediaTime::from_micros);
        assert_eq!(sampled(&mut sampler, times), [0, 2, 4]);
    }

    #[test]
    fn a_microsecond_too_early_is_close_enough() {
        let mut sampler = Sampler::new(rate(2, 1), StdDuration::ZERO);
        assert_eq!(sampled(&mut sampler, [0, 499_998, 499_999].map(MediaTime::from_micros)), [0, 2]);
    }

    #[test]
    fn packets_that_were_lost_do_not_stand_in_the_way_of_those_that_come() {
        let mut sampler = Sampler::new(rate(1, 1), StdDuration::ZERO);
        let [early, late] = [1_000_000, 1_500_000].map(MediaTime::from_micros);
        assert!(sampler.offer(MediaTime::ZERO) && sampler.could_want(early) && !sampler.could_want(late));
        sampler.forget_packets();
        assert!(sampler.could_want(late) && sampler.offer(late));
    }

    #[test]
    fn a_period_too_short_is_told_with_a_way_out() {
        for every in ["0s", "1ns"] {
            let table = toml::from_str(&format!("every = '{every}'")).unwrap();
            let context = crate::transforms::reference::context(std::path::Path::new(""));
            let mistakes = build(&context, table).err().unwrap();
            assert_eq!(mistakes[0].message, "a period must be at least a microsecond");
            assert!(mistakes[0].hint.as_deref().is_some_and(|hint| hint.contains("500ms")));
        }
    }

    #[test]
    fn a_phase_delays_the_first_picture() {
        let mut sampler = Sampler::new(rate(1, 1), StdDuration::from_millis(300));
        assert_eq!(sampled(&mut sampler, [0, 300_000, 900_000, 1_300_000].map(MediaTime::from_micros)), [1, 3]);
    }

    proptest! {
        /// The definition, in so many words, against the implementation.
        #[test]
        fn equals_its_definition(
            steps in proptest::collection::vec(1i64..5_000, 1..200),
            numerator in 1u64..60_000,
            denominator in 1u64..2_000,
            ticks_a_second in prop::sample::select(vec![1000u32, 12_800, 90_000, 30_000]),
        ) {
            prop_assume!(numerator <= denominator * 1000);
            let base = TimeBase::new(1, ticks_a_second).unwrap();
            let times: Vec<i64> = std::iter::once(0).chain(steps.iter().scan(0, |t, s| { *t += s; Some(*t) })).collect();
            let mut sampler = Sampler::new(rate(numerator, denominator), StdDuration::ZERO);
            let got = sampled(&mut sampler, times.iter().map(|t| MediaTime::new(*t, base)));
            let mut expected = Vec::new();
            let mut k: i128 = 0;
            let last = *times.last().unwrap();
            // pts + 1 µs >= k / rate, multiplied out.
            let reached = |t: i64, k: i128| (i128::from(t) * 1_000_000 + i128::from(ticks_a_second)) * i128::from(numerator)
                >= k * i128::from(denominator) * i128::from(ticks_a_second) * 1_000_000;
            while reached(last, k) {
                let index = times.iter().position(|t| reached(*t, k)).unwrap();
                if expected.last() != Some(&index) { expected.push(index); }
                k += 1;
                if k > 100_000 { break; }
            }
            prop_assume!(k <= 100_000);
            prop_assert_eq!(got, expected);
        }

        /// However packets are reordered, a picture that is sampled was wanted as a packet.
        #[test]
        fn a_sampled_picture_was_always_wanted(
            steps in proptest::collection::vec(1i64..200_000, 1..100),
            swaps in proptest::collection::vec((0usize..100, 1usize..4), 0..60),
            fps in 1u64..40,
        ) {
            let times: Vec<i64> = std::iter::once(0).chain(steps.iter().scan(0, |t, s| { *t += s; Some(*t) })).collect();
            let mut decoding = times.clone();
            for (at, distance) in swaps {
                let other = at + distance;
                if other < decoding.len() { decoding.swap(at, other); }
            }
            let mut packets = Sampler::new(rate(fps, 1), StdDuration::ZERO);
            let wanted: Vec<i64> =
                decoding.into_iter().filter(|t| packets.could_want(MediaTime::from_micros(*t))).collect();
            let mut pictures = Sampler::new(rate(fps, 1), StdDuration::ZERO);
            for time in times {
                if pictures.offer(MediaTime::from_micros(time)) {
                    prop_assert!(wanted.contains(&time));
                }
            }
        }
    }
}
