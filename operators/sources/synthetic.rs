//! `synthetic`: a rendered scene of moving coloured shapes, with the truth about what is in it.
//!
//! For trying a graph without a camera, for tests, and for training the `shapes` model. Picture n of a stream depends
//! on nothing but the configuration (see [`Scene`]), and is drawn only when somebody wants it.
//!
//! With `realtime` it behaves as a camera: picture n is emitted n / `fps` after the start, never earlier. When it is
//! late (a consumer that blocks, a busy machine), it emits without waiting until it has caught up, at most a second's
//! worth of pictures: a longer delay moves the schedule instead, so that a machine that slept does not get a burst.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::config::{self, Field, FieldType, Presence, Rate};
use crate::error::{FieldError, SourceError};
use crate::item::{EndReason, Frame, Kind, PixelFormat, Played, StreamId, StreamInfo, Track, TrackFormat};
use crate::operator::{
    BuildContext, Built, Execution, ItemSize, Outlet, Produces, Registration, Role, Source, StreamSpec, wait_until,
};
use crate::sources::scene::{Scene, stream_seed};
use crate::time::{MediaTime, TimeBase};

/// How far behind its schedule a paced stream may be and still catch up.
const CATCH_UP: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(default)]
struct Config {
    width: u32,
    height: u32,
    fps: Rate,
    seed: u64,
    realtime: bool,
    frames: Option<u64>,
    streams: Option<Vec<String>>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            width: 640,
            height: 360,
            fps: Rate { numerator: 30, denominator: 1 },
            seed: 0,
            realtime: true,
            frames: None,
            streams: None,
        }
    }
}

struct Synthetic {
    width: u32,
    height: u32,
    rate: Rate,
    time_base: TimeBase,
    realtime: bool,
    frames: Option<u64>,
    /// Each with its seed.
    streams: Vec<(StreamId, u64)>,
}

impl Synthetic {
    fn draw(&self, scene: &Scene, n: u64) -> Frame {
        let mut picture = scene.picture(n);
        picture.index = self.frames.map(|_| n);
        picture
    }

    fn information(&self) -> StreamInfo {
        StreamInfo {
            tracks: vec![Track {
                time_base: self.time_base,
                parameters: None,
                index: 0,
                codec: "rawvideo".into(),
                format: TrackFormat::Video {
                    width: self.width,
                    height: self.height,
                    frame_rate: Some(self.rate.as_f64()),
                    has_b_frames: false,
                },
            }],
            time_base: self.time_base,
            duration: self.frames.map(|frames| frames as f64 / self.rate.as_f64()),
            played: if self.frames.is_some() { Played::Anew } else { Played::Live },
        }
    }
}

impl Source for Synthetic {
    fn streams(&self) -> Vec<StreamSpec> {
        let location = |seed| format!("synthetic:{}x{}@{}?seed={seed}", self.width, self.height, self.rate);
        self.streams.iter().map(|(id, seed)| StreamSpec { id: id.clone(), location: location(seed) }).collect()
    }

    fn is_live(&self) -> bool {
        self.realtime
    }

    fn is_finite(&self) -> bool {
        self.frames.is_some()
    }

    fn frame_size(&self) -> ItemSize {
        ItemSize::Known(PixelFormat::Yuv420p.bytes(self.width, self.height))
    }

    /// The background of its scene, drawn once.
    fn stream_memory(&self) -> u64 {
        PixelFormat::Yuv420p.bytes(self.width, self.height)
    }

    /// Nothing is decoded: the stream's own thread draws.
    fn decoder_threads(&self, _cores: usize, _running: usize) -> usize {
        0
    }

    fn run(&self, stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
        let Some((_, seed)) = self.streams.iter().find(|(id, _)| id == stream) else {
            return Err(SourceError::input(format!("this source has no stream `{stream}`")));
        };
        let scene = Scene::new(*seed, self.width, self.height, self.rate);
        outlet.open(self.information());
        let mut start = outlet.clock().now();
        for n in 0..self.frames.unwrap_or(u64::MAX) {
            let pts = MediaTime::new(i64::try_from(n).unwrap_or(i64::MAX), self.time_base);
            if self.realtime {
                // Media time is at most 2^63 microseconds, which `Instant` can add to any start.
                let due = start + pts.as_duration();
                if !wait_until(outlet, due) {
                    return Ok(EndReason::Stopped);
                }
                let late = outlet.clock().now().saturating_duration_since(due);
                if late > CATCH_UP {
                    start += late;
                }
            } else if outlet.stopping() {
                return Ok(EndReason::Stopped);
            }
            match outlet.frame(n, pts, &mut || Ok(self.draw(&scene, n))) {
                Ok(_) => {}
                Err(SourceError::Stopped) => return Ok(EndReason::Stopped),
                Err(error) => return Err(error),
            }
        }
        Ok(EndReason::Eof)
    }
}

fn build(_context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    // Both parts of a parsed rate fit; a rate from elsewhere may not.
    let time_base = u32::try_from(config.fps.denominator).ok().zip(u32::try_from(config.fps.numerator).ok());
    let Some(time_base) = time_base.and_then(|(length, ticks)| TimeBase::new(length, ticks)) else {
        return Err(vec![FieldError::new("fps", format!("{} is no rate that can be counted", config.fps))]);
    };
    if config.width == 0 || config.height == 0 {
        let field = if config.width == 0 { "width" } else { "height" };
        return Err(vec![FieldError::new(field, "a picture is at least 1 pixel wide and high")]);
    }
    Ok(Built::Source(Arc::new(Synthetic {
        width: config.width,
        height: config.height,
        rate: config.fps,
        time_base,
        realtime: config.realtime,
        frames: config.frames,
        streams: streams(config.seed, config.streams)?,
    })))
}

/// The streams by their names, each with a seed of its own; without names, one with the source's seed.
fn streams(seed: u64, names: Option<Vec<String>>) -> Result<Vec<(StreamId, u64)>, Vec<FieldError>> {
    let Some(names) = names else {
        return Ok(vec![(StreamId::sanitised("synthetic"), seed)]);
    };
    if names.is_empty() {
        let error = FieldError::new("streams", "a source needs at least one stream");
        return Err(vec![error.hint("name one, or leave `streams` out")]);
    }
    let (mut streams, mut errors, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for name in &names {
        match StreamId::new(name) {
            None => {
                let error = FieldError::new("streams", format!("`{name}` cannot name a stream"));
                errors.push(error.hint("use 1 to 128 of the characters A-Z a-z 0-9 _ . -"));
            }
            Some(_) if !seen.insert(name) => {
                let error = FieldError::new("streams", format!("there are two streams `{name}`"));
                errors.push(error.hint("give each stream a name of its own"));
            }
            Some(id) => streams.push((id, stream_seed(seed, name))),
        }
    }
    if errors.is_empty() { Ok(streams) } else { Err(errors) }
}

pub static REGISTRATION: Registration = Registration {
    name: "synthetic",
    role: Role::Source,
    summary: "Renders a scene of moving coloured shapes, with the truth about what is in it.",
    execution: Execution::Thread,
    accepts: &[],
    produces: Produces::Kinds(&[Kind::Frame]),
    fields: &[
        Field {
            name: "width",
            value: FieldType::Integer { minimum: 1, maximum: 16_384 },
            presence: Presence::Default("640"),
            summary: "Pixels in a row.",
        },
        Field {
            name: "height",
            value: FieldType::Integer { minimum: 1, maximum: 16_384 },
            presence: Presence::Default("360"),
            summary: "Rows of pixels.",
        },
        Field {
            name: "fps",
            value: FieldType::Rate,
            presence: Presence::Default("30"),
            summary: "Pictures a second of media time.",
        },
        Field {
            name: "seed",
            value: FieldType::Integer { minimum: 0, maximum: i64::MAX },
            presence: Presence::Default("0"),
            summary: "Which scene: the same number gives the same pictures, byte for byte, on every machine.",
        },
        Field {
            name: "realtime",
            value: FieldType::Boolean,
            presence: Presence::Default("true"),
            summary: "Paces the pictures by their timestamps, as a camera does; otherwise they come as fast as they are \
                      taken.",
        },
        Field {
            name: "frames",
            value: FieldType::Integer { minimum: 1, maximum: i64::MAX },
            presence: Presence::Optional,
            summary: "Pictures in each stream, after which it ends. Left out: it goes on for ever.",
        },
        Field {
            name: "streams",
            value: FieldType::List(&FieldType::String),
            presence: Presence::Optional,
            summary: "Names of the streams, each of which shows a scene of its own. Left out: one stream, `synthetic`, \
                      that shows the scene of `seed` itself.",
        },
    ],
    example: "[sources.scene]\ntype = \"synthetic\"\nwidth = 640\nheight = 360\nfps = 30\n",
    build,
};

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::time::SystemTime;

    use super::*;
    use crate::clock::{Clock, SimulatedClock};
    use crate::inference::model::Catalog;
    use crate::item::Origin;
    use crate::operator::NoPublisher;
    use crate::testing::RecordingOutlet;
    use crate::transforms::sample::Sampler;

    fn built(text: &str) -> Result<Arc<dyn Source>, Vec<FieldError>> {
        let context = BuildContext {
            origin: Origin { graph: "test".into(), node: "scene".into() },
            folder: ".".into(),
            models: Arc::new(Catalog::default()),
            clock: Arc::new(SimulatedClock::default()),
            publisher: Arc::new(NoPublisher),
            progress: None,
            playlists: Arc::default(),
        };
        match (REGISTRATION.build)(&context, toml::from_str(text).unwrap())? {
            Built::Source(source) => Ok(source),
            _ => panic!("not a source"),
        }
    }

    fn only_stream(source: &dyn Source) -> StreamId {
        source.streams()[0].id.clone()
    }

    #[test]
    fn says_what_it_is_before_it_runs() {
        let source = built("").unwrap();
        assert!(source.is_live() && !source.is_finite());
        assert_eq!(source.frame_size(), ItemSize::Known(640 * 360 * 3 / 2));
        assert_eq!(&*only_stream(&*source), "synthetic");
        let source = built("realtime = false\nframes = 3\nwidth = 3\nheight = 5").unwrap();
        assert!(!source.is_live() && source.is_finite());
        assert_eq!(source.frame_size(), ItemSize::Known(15 + 2 * 2 * 3));
    }

    #[test]
    fn a_finite_stream_ends_after_its_frames() {
        let source = built("realtime = false\nframes = 4\nwidth = 64\nheight = 36\nfps = \"30000/1001\"").unwrap();
        let mut outlet = RecordingOutlet::default();
        assert_eq!(source.run(&only_stream(&*source), &mut outlet).unwrap(), EndReason::Eof);
        let base = TimeBase::new(1001, 30_000).unwrap();
        assert_eq!(outlet.offered, (0..4).map(|n| (n, MediaTime::new(n as i64, base))).collect::<Vec<_>>());
        assert_eq!(outlet.frames.iter().map(|frame| frame.frame.index).collect::<Vec<_>>(), [0, 1, 2, 3].map(Some));
        assert_eq!(outlet.opens.len(), 1);
        assert_eq!(outlet.opens[0].time_base, base);
        assert_eq!(outlet.opens[0].duration, Some(4.0 * 1001.0 / 30_000.0));
    }

    #[test]
    fn streams_show_scenes_of_their_own() {
        let source = built("realtime = false\nframes = 1\nstreams = [\"a\", \"b\"]").unwrap();
        let pictures: Vec<Vec<u8>> = source
            .streams()
            .iter()
            .map(|stream| {
                let mut outlet = RecordingOutlet::default();
                source.run(&stream.id, &mut outlet).unwrap();
                outlet.frames[0].frame.buffer.plane(0).to_vec()
            })
            .collect();
        assert_eq!(pictures.len(), 2);
        assert_ne!(pictures[0], pictures[1]);
        assert!(source.run(&StreamId::sanitised("c"), &mut RecordingOutlet::default()).is_err());
    }

    #[test]
    fn only_wanted_pictures_are_drawn() {
        let source = built("realtime = false\nframes = 60\nwidth = 64\nheight = 36").unwrap();
        let sampler = Sampler::new(Rate { numerator: 2, denominator: 1 }, Duration::ZERO);
        let mut outlet = RecordingOutlet::default().sampling(sampler);
        source.run(&only_stream(&*source), &mut outlet).unwrap();
        assert_eq!(outlet.frames.iter().map(|frame| frame.seq).collect::<Vec<_>>(), [0, 15, 30, 45]);
        assert_eq!(outlet.offered.len(), 60);
    }

    #[test]
    fn an_endless_stream_stops_when_told() {
        let source = built("realtime = false\nwidth = 16\nheight = 16").unwrap();
        let mut outlet = RecordingOutlet::default().stop_after(5);
        assert_eq!(source.run(&only_stream(&*source), &mut outlet).unwrap(), EndReason::Stopped);
        assert_eq!(outlet.emitted, 5);
    }

    #[test]
    fn a_live_stream_stops_while_it_waits() {
        // One picture an hour, on a clock that stands still: it can only end by being told.
        let source = built("width = 16\nheight = 16\nfps = \"1/3600\"").unwrap();
        let mut outlet = RecordingOutlet::default().stop_after(1);
        assert_eq!(source.run(&only_stream(&*source), &mut outlet).unwrap(), EndReason::Stopped);
        assert_eq!(outlet.offered.len(), 1);
    }

    /// A clock on which a wait takes no time: whoever waits finds the deadline come.
    struct PatientClock(SimulatedClock);

    impl Clock for PatientClock {
        fn now(&self) -> std::time::Instant {
            self.0.now()
        }

        fn wall(&self) -> SystemTime {
            self.0.wall()
        }

        fn wait(&self, deadline: std::time::Instant, _at_most: Duration) {
            self.0.advance(deadline.saturating_duration_since(self.now()));
        }
    }

    /// When each picture of `source` came, in milliseconds since the start, where the consumer of picture n takes
    /// `delays[n]` milliseconds.
    fn paced(source: &dyn Source, delays: &'static [u64]) -> Vec<u128> {
        let time = SimulatedClock::default();
        let start = time.now();
        let (sender, receiver) = sync_channel(1000);
        let observed = time.clone();
        let mut outlet = RecordingOutlet::new(Arc::new(PatientClock(time))).observe(move |n, _, _| {
            sender.send((observed.now() - start).as_millis()).unwrap();
            observed.advance(Duration::from_millis(delays.get(n as usize).copied().unwrap_or(0)));
        });
        source.run(&only_stream(source), &mut outlet).unwrap();
        drop(outlet);
        receiver.iter().collect()
    }

    #[test]
    fn pictures_come_when_they_are_due() {
        let source = built("width = 16\nheight = 16\nfps = 10\nframes = 4").unwrap();
        assert_eq!(paced(&*source, &[]), [0, 100, 200, 300]);
    }

    #[test]
    fn a_short_delay_is_caught_up() {
        let source = built("width = 16\nheight = 16\nfps = 10\nframes = 6").unwrap();
        assert_eq!(paced(&*source, &[0, 250]), [0, 100, 350, 350, 400, 500]);
    }

    #[test]
    fn a_long_delay_moves_the_schedule_instead_of_a_burst() {
        let source = built("width = 16\nheight = 16\nfps = 10\nframes = 5").unwrap();
        assert_eq!(paced(&*source, &[0, 60_000]), [0, 100, 60_100, 60_200, 60_300]);
    }

    #[test]
    fn unusable_streams_are_named() {
        for (text, part) in [
            ("streams = []", "at least one"),
            ("streams = [\"a\", \"b\", \"a\"]", "two streams `a`"),
            ("streams = [\"a b\"]", "`a b` cannot name"),
        ] {
            let Err(errors) = built(text) else { panic!("{text} was accepted") };
            assert_eq!(errors.len(), 1, "{text}");
            assert_eq!(errors[0].field, "streams");
            assert!(errors[0].message.contains(part) && errors[0].hint.is_some(), "{}", errors[0]);
        }
        for (text, field) in [("width = 0", "width"), ("height = 0", "height")] {
            let Err(errors) = built(text) else { panic!("{text} was accepted") };
            assert_eq!(errors[0].field, field);
        }
    }

    #[test]
    fn the_example_of_the_reference_builds() {
        let example: toml::Table = toml::from_str(REGISTRATION.example).unwrap();
        let mut node = example["sources"]["scene"].as_table().unwrap().clone();
        node.remove("type");
        assert!(built(&node.to_string()).is_ok());
    }
}
