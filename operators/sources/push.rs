//! `push`: pictures that others send, JPEG, PNG or WebP, one by one.
//!
//! Each stream has a thread that decodes what was pushed, in the order in which it came. A picture's time is when it
//! came, counted from the first one; no two have the same. A picture that cannot be decoded has its number and its place,
//! and an error record.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::clock::Clock;
use crate::config::{self, Field, FieldType, Presence, Size};
use crate::error::{FieldError, ItemError, SourceError};
use crate::inlet::{Arrivals, Inlet, InletSettings, Pushed};
use crate::item::{EndReason, Kind, Played, StreamId, StreamInfo, Track, TrackFormat};
use crate::media::still;
use crate::operator::{
    BuildContext, Built, Execution, ItemSize, Outlet, Produces, Registration, Role, Source, SourceState, StreamSpec,
};
use crate::time::{MediaTime, TimeBase};

/// Between two looks at whether to stop.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
#[serde(default)]
struct Config {
    streams: toml::Table,
    answer: Option<String>,
    queue: usize,
    max_bytes: Size,
    max_pixels: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            streams: toml::Table::new(),
            answer: None,
            queue: 4,
            max_bytes: Size(20 << 20),
            // Three bytes each: less than a branch's budget, where that says nothing.
            max_pixels: 20_000_000,
        }
    }
}

struct Push {
    streams: Vec<StreamId>,
    settings: InletSettings,
    max_pixels: u64,
    time_base: TimeBase,
    clock: Arc<dyn Clock>,
    /// Inner ends of streams that are about to be run.
    arrivals: Mutex<HashMap<StreamId, Arrivals>>,
}

/// How far a stream is.
struct Progress {
    seq: u64,
    /// When the first picture came.
    first: Option<Instant>,
    /// Time of the last picture, in ticks.
    last: i64,
    /// Width and height that were announced last.
    size: Option<(u32, u32)>,
}

impl Push {
    fn information(&self, (width, height): (u32, u32)) -> StreamInfo {
        let format = TrackFormat::Video { width, height, frame_rate: None, has_b_frames: false };
        let (codec, time_base) = ("picture".into(), self.time_base);
        let track = Track { index: 0, codec, time_base, format, parameters: None };
        StreamInfo { tracks: vec![track], time_base: self.time_base, duration: None, played: Played::Live }
    }

    fn picture(&self, mut pushed: Pushed, progress: &mut Progress, outlet: &mut dyn Outlet) -> Result<(), SourceError> {
        let first = *progress.first.get_or_insert(pushed.arrived);
        let since = pushed.arrived.saturating_duration_since(first);
        let ticks = i64::try_from(since.as_micros()).unwrap_or(i64::MAX).max(progress.last.saturating_add(1));
        progress.last = ticks;
        let seq = progress.seq;
        progress.seq += 1;
        let size = still::size(&pushed.bytes, self.max_pixels).ok();
        if let Some(size) = size.filter(|size| progress.size != Some(*size)) {
            progress.size = Some(size);
            outlet.open(self.information(size));
        }
        if let Some(watched) = pushed.watched.take() {
            outlet.watch(watched);
        }
        outlet.frame(seq, MediaTime::new(ticks, self.time_base), &mut || {
            still::decode(&pushed.bytes, self.max_pixels)
                .map_err(|error| ItemError::Failed(format!("the picture cannot be used: {error}")))
        })?;
        Ok(())
    }
}

impl Source for Push {
    fn streams(&self) -> Vec<StreamSpec> {
        self.streams.iter().map(|id| StreamSpec { id: id.clone(), location: "pushed".to_owned() }).collect()
    }

    /// Whoever pushes waits, or is told to come back: nothing needs to be dropped.
    fn is_live(&self) -> bool {
        false
    }

    fn is_finite(&self) -> bool {
        false
    }

    fn awaits_streams(&self) -> bool {
        true
    }

    fn has_connection(&self) -> bool {
        false
    }

    fn frame_size(&self) -> ItemSize {
        ItemSize::Unknown
    }

    /// What waits, one more that is in hand, and what decoding that takes.
    fn stream_memory(&self) -> u64 {
        let waiting = self.settings.max_bytes.saturating_mul(self.settings.places as u64 + 1);
        waiting.saturating_add(still::memory(self.max_pixels))
    }

    /// The stream's own thread decodes.
    fn decoder_threads(&self, _cores: usize, _running: usize) -> usize {
        0
    }

    fn answer(&self) -> Option<&str> {
        self.settings.answer.as_deref()
    }

    fn inlet(&self, stream: &StreamId) -> Option<Arc<Inlet>> {
        self.streams.contains(stream).then(|| {
            let (inlet, arrivals) = Inlet::new(self.settings.clone(), self.clock.clone());
            // What a panic left here is whole: entries come and go as one.
            self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).insert(stream.clone(), arrivals);
            inlet
        })
    }

    fn run(&self, stream: &StreamId, outlet: &mut dyn Outlet) -> Result<EndReason, SourceError> {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).remove(stream);
        let Some(arrivals) = arrivals else {
            return Err(SourceError::input(format!("nothing can be pushed to stream `{stream}`")));
        };
        outlet.state(SourceState::Running);
        let mut progress = Progress { seq: 0, first: None, last: -1, size: None };
        loop {
            let is_stopping = outlet.stopping();
            if is_stopping {
                arrivals.close();
            }
            // What came before the stream was told to stop is still delivered.
            match arrivals.next(if is_stopping { Duration::ZERO } else { LOOK }) {
                Some(pushed) => match self.picture(pushed, &mut progress, outlet) {
                    Ok(()) => {}
                    Err(SourceError::Stopped) => return Ok(EndReason::Stopped),
                    Err(error) => return Err(error),
                },
                None if is_stopping => return Ok(EndReason::Stopped),
                // That nobody pushes is no lack of progress.
                None => outlet.pacing(),
            }
        }
    }
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let (mut streams, mut mistakes) = (Vec::new(), Vec::new());
    for (name, own) in &config.streams {
        let field = format!("streams.{name}");
        match StreamId::new(name) {
            Some(_) if !own.as_table().is_some_and(toml::Table::is_empty) => {
                let error = FieldError::new(field, "a stream that is pushed to has no settings of its own");
                mistakes.push(error.hint(format!("write `streams.{name} = {{}}`; settings stand beside `streams`")));
            }
            Some(id) => streams.push(id),
            None => {
                let error = FieldError::new(field, format!("`{name}` cannot be the name of a stream"));
                mistakes.push(error.hint("use 1 to 128 of the characters A-Z a-z 0-9 _ . -"));
            }
        }
    }
    if config.max_bytes.0 == 0 {
        mistakes.push(FieldError::new("max_bytes", "a picture has at least one byte").hint("write it like \"20MiB\""));
    }
    let Some(time_base) = TimeBase::new(1, 1_000_000) else {
        return Err(vec![FieldError::new("", "microseconds cannot be counted")]);
    };
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    Ok(Built::Source(Arc::new(Push {
        streams,
        settings: InletSettings {
            places: config.queue,
            max_bytes: config.max_bytes.0,
            answer: config.answer.map(Into::into),
        },
        max_pixels: config.max_pixels,
        time_base,
        clock: context.clock.clone(),
        arrivals: Mutex::default(),
    })))
}

pub static REGISTRATION: Registration = Registration {
    name: "push",
    role: Role::Source,
    summary: "Takes pictures that others send over HTTP: `POST /streams/ID/frames` and `POST /infer`.",
    execution: Execution::Thread,
    accepts: &[],
    produces: Produces::Kinds(&[Kind::Frame]),
    fields: &[
        Field {
            name: "streams",
            value: FieldType::Map(&FieldType::Table(&[])),
            presence: Presence::Optional,
            summary: "The streams that may be pushed to, each `streams.ID = {}`. Left out: none, until some are added \
                      while the graph runs.",
        },
        Field {
            name: "answer",
            value: FieldType::String,
            presence: Presence::Optional,
            summary: "The operator whose record of a picture answers whoever pushed it and waits. Left out: whoever \
                      waits is told the verdict alone.",
        },
        Field {
            name: "queue",
            value: FieldType::Integer { minimum: 1, maximum: 10_000 },
            presence: Presence::Default("4"),
            summary: "Encoded pictures that may wait in front of the stream's thread; whoever pushes more is told to \
                      come back.",
        },
        Field {
            name: "max_bytes",
            value: FieldType::Size,
            presence: Presence::Default("\"20MiB\""),
            summary: "Bytes of an encoded picture.",
        },
        Field {
            name: "max_pixels",
            value: FieldType::Integer { minimum: 1, maximum: 1_000_000_000 },
            presence: Presence::Default("20000000"),
            summary: "Pixels of a picture; nothing is allocated for one that claims more. Three bytes each count \
                      against the budget.",
        },
    ],
    example: "[sources.door]\ntype = \"push\"\nstreams.door = {}\n",
    build,
};

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageFormat, RgbImage};

    use super::*;
    use crate::clock::SimulatedClock;
    use crate::inference::model::Catalog;
    use crate::inlet::PushError;
    use crate::item::Origin;
    use crate::operator::NoPublisher;
    use crate::testing::RecordingOutlet;

    fn built(clock: &SimulatedClock, text: &str) -> Result<Arc<dyn Source>, Vec<FieldError>> {
        let context = BuildContext {
            origin: Origin { graph: "test".into(), node: "door".into() },
            folder: ".".into(),
            models: Arc::new(Catalog::default()),
            clock: Arc::new(clock.clone()),
            publisher: Arc::new(NoPublisher),
            progress: None,
            playlists: Arc::default(),
        };
        match (REGISTRATION.build)(&context, toml::from_str(text).unwrap())? {
            Built::Source(source) => Ok(source),
            _ => panic!("not a source"),
        }
    }

    fn picture(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::new(width, height).write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn pictures_come_in_order_with_times_that_grow_and_sizes_that_are_announced() {
        let clock = SimulatedClock::default();
        let source = built(&clock, "streams.door = {}\nmax_pixels = 100").unwrap();
        let door = StreamId::new("door").unwrap();
        let inlet = source.inlet(&door).unwrap();
        let push = |bytes: Vec<u8>| inlet.try_place().unwrap().push(bytes, None);
        push(picture(4, 3));
        push(picture(4, 3));
        clock.advance(Duration::from_millis(5));
        push(b"no picture".to_vec());
        push(picture(8, 3));
        assert_eq!(inlet.try_place().err(), Some(PushError::Full(4)));
        let mut outlet = RecordingOutlet::default().stop_after(3);
        assert_eq!(source.run(&door, &mut outlet).unwrap(), EndReason::Stopped);
        let offered: Vec<_> = outlet.offered.iter().map(|(seq, pts)| (*seq, pts.as_micros())).collect();
        assert_eq!(offered, [(0, 0), (1, 1), (2, 5000), (3, 5001)]);
        assert_eq!(outlet.frames.iter().map(|frame| frame.seq).collect::<Vec<_>>(), [0, 1, 3]);
        assert_eq!(outlet.opens.len(), 2, "another size is a new format");
        assert_eq!(outlet.failures.len(), 1);
        assert!(outlet.failures[0].to_string().contains("neither JPEG nor PNG nor WebP"), "{}", outlet.failures[0]);
        assert_eq!(outlet.states, [SourceState::Running]);
        assert_eq!(inlet.try_place().err(), Some(PushError::Ending), "it has ended");
    }

    #[test]
    fn a_picture_beyond_the_limit_is_an_error_in_its_place() {
        let source = built(&SimulatedClock::default(), "streams.door = {}\nmax_pixels = 11").unwrap();
        let door = StreamId::new("door").unwrap();
        let inlet = source.inlet(&door).unwrap();
        inlet.try_place().unwrap().push(picture(4, 3), None);
        inlet.try_place().unwrap().push(picture(2, 3), None);
        let mut outlet = RecordingOutlet::default().stop_after(1);
        source.run(&door, &mut outlet).unwrap();
        assert!(outlet.failures[0].to_string().contains("4 x 3 pixels, more than the 11"), "{}", outlet.failures[0]);
        assert_eq!(outlet.frames[0].seq, 1);
    }

    #[test]
    fn says_what_it_is_before_it_runs() {
        let source = built(&SimulatedClock::default(), "queue = 2\nmax_bytes = \"1MiB\"\nanswer = \"people\"").unwrap();
        assert!(!source.is_live() && !source.is_finite() && source.awaits_streams());
        assert_eq!(source.streams(), []);
        assert_eq!(source.answer(), Some("people"));
        assert!(source.stream_memory() > 2 << 20);
        assert!(source.inlet(&StreamId::new("door").unwrap()).is_none(), "there is no such stream");
        assert!(source.run(&StreamId::new("door").unwrap(), &mut RecordingOutlet::default()).is_err());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, field) in [
            ("streams.\"a b\" = {}", "streams.a b"),
            ("streams.a = { url = \"x\" }", "streams.a"),
            ("max_bytes = 0", "max_bytes"),
        ] {
            let Err(errors) = built(&SimulatedClock::default(), text) else { panic!("{text} was accepted") };
            assert_eq!((errors.len(), errors[0].field.as_str()), (1, field), "{errors:?}");
            assert!(errors[0].hint.is_some(), "{text}");
        }
    }

    #[test]
    fn the_example_of_the_reference_builds() {
        let example: toml::Table = toml::from_str(REGISTRATION.example).unwrap();
        let mut node = example["sources"]["door"].as_table().unwrap().clone();
        node.remove("type");
        assert!(built(&SimulatedClock::default(), &node.to_string()).is_ok());
    }
}
