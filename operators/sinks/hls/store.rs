//! What is published: the playlists of all streams and the files that they list, in memory up to a bound, and behind it in
//! temporary files. Sinks write to it, and the control plane reads.
//!
//! A sink's shelf is there as long as its graph is. What a playlist has listed can be fetched for as long as a player may
//! still want it, which is longer than it is listed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::playlist::{Kind, Listed, Playlist, Window};
use crate::config::format_size;
use crate::item::{Content, Origin, SpilledFile, StreamId};
use crate::tunnel::Tunnels;

/// The playlists of a process.
#[derive(Default)]
pub struct Playlists {
    /// What leads the internet to them, where a sink asks for it.
    pub tunnels: Tunnels,
    shelves: Mutex<Vec<Weak<Shelf>>>,
}

/// What one sink publishes.
pub struct Shelf {
    origin: Origin,
    streams: Mutex<BTreeMap<StreamId, Arc<Published>>>,
}

impl Playlists {
    /// The shelf of a sink: the same for as long as somebody holds it.
    pub fn shelf(&self, origin: &Origin) -> Arc<Shelf> {
        let mut shelves = lock(&self.shelves);
        shelves.retain(|shelf| shelf.strong_count() > 0);
        let mut alive = shelves.iter().filter_map(Weak::upgrade);
        let is_same = |shelf: &Arc<Shelf>| shelf.origin.graph == origin.graph && shelf.origin.node == origin.node;
        if let Some(shelf) = alive.find(is_same) {
            return shelf;
        }
        let shelf = Arc::new(Shelf { origin: origin.clone(), streams: Mutex::default() });
        shelves.push(Arc::downgrade(&shelf));
        shelf
    }

    fn of_graph(&self, graph: &str) -> Vec<Arc<Shelf>> {
        let shelves = lock(&self.shelves);
        shelves.iter().filter_map(Weak::upgrade).filter(|shelf| *shelf.origin.graph == *graph).collect()
    }

    /// What is published of a stream of a graph.
    pub fn find(&self, graph: &str, stream: &str, now: Instant) -> Option<Arc<Published>> {
        let stream = StreamId::new(stream)?;
        self.of_graph(graph).iter().find_map(|shelf| shelf.get(&stream, now))
    }

    /// The streams of a graph that are published.
    pub fn streams(&self, graph: &str, now: Instant) -> Vec<StreamId> {
        let shelves = self.of_graph(graph);
        let mut streams: Vec<_> = shelves.iter().flat_map(|shelf| shelf.streams(now)).collect();
        streams.sort();
        streams
    }

    /// Makes room for a stream on `shelf`. Where its playlist goes on, it answers the longest segment that this promises, in
    /// seconds.
    ///
    /// # Errors
    /// The sink that publishes the same stream of the same graph already.
    pub fn publish(
        &self,
        shelf: &Arc<Shelf>,
        stream: &StreamId,
        terms: &Terms,
        now: Instant,
    ) -> Result<(Writing, Option<u64>), Arc<str>> {
        let others = self.of_graph(&shelf.origin.graph);
        let is_taken = |other: &&Arc<Shelf>| {
            !Arc::ptr_eq(other, shelf) && other.get(stream, now).is_some_and(|published| published.is_written())
        };
        if let Some(other) = others.iter().find(is_taken) {
            return Err(other.origin.node.clone());
        }
        Ok(shelf.publish(stream, terms, now))
    }
}

impl Shelf {
    fn get(&self, stream: &StreamId, now: Instant) -> Option<Arc<Published>> {
        let mut streams = lock(&self.streams);
        streams.retain(|_, published| !published.is_forgotten(now));
        streams.get(stream).cloned()
    }

    fn streams(&self, now: Instant) -> Vec<StreamId> {
        let mut streams = lock(&self.streams);
        streams.retain(|_, published| !published.is_forgotten(now));
        streams.keys().cloned().collect()
    }

    fn publish(&self, stream: &StreamId, terms: &Terms, now: Instant) -> (Writing, Option<u64>) {
        let mut streams = lock(&self.streams);
        streams.retain(|_, published| !published.is_forgotten(now));
        let published = streams.entry(stream.clone()).or_insert_with(|| Arc::new(Published::new(*terms)));
        let (turn, promised) = published.resume(*terms);
        (Writing { published: published.clone(), turn }, promised)
    }
}

/// How a stream is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub kind: Kind,
    /// Microseconds after which the next keyframe begins another segment.
    pub length: i64,
    pub window: Window,
    /// Whether segments say when their pictures were taken.
    pub dated: bool,
    /// Bytes of segments in memory, and in temporary files.
    pub memory: u64,
    pub disk: u64,
}

/// A segment that is published.
pub struct NewSegment {
    pub init: Bytes,
    pub media: Bytes,
    /// Hexadecimal SHA-256 of both.
    pub sha256: String,
    /// Microseconds.
    pub duration: i64,
    /// The longest segment of the stream, in seconds; of VOD, that follows from all.
    pub target: Option<u64>,
    pub is_discontinuous: bool,
    pub is_independent: bool,
    pub time: SystemTime,
}

/// Why a segment is not published.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{} of segments are kept on the disk already, which is all that `disk` allows", format_size(*.0))]
    Full(u64),
    #[error("another version of the graph publishes the stream already")]
    Superseded,
    #[error("the segment does not fit into `memory`, and cannot be kept in `{folder}`: {cause}")]
    Spill { folder: String, cause: io::Error },
}

/// A file that is served.
#[derive(Clone)]
pub struct Served {
    pub content: Arc<Content>,
    /// What of its content makes its `ETag`.
    pub tag: String,
}

impl Served {
    /// Some of its bytes, or of a file those of them that are there. May block where the content is in a file.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let place = |position: u64| usize::try_from(position).map_err(|_| io::ErrorKind::FileTooLarge);
        let (start, end) = (place(range.start)?, place(range.end.min(self.content.len()))?);
        match &*self.content {
            Content::Memory(bytes) => Ok(bytes.slice(start.min(end)..end)),
            Content::File(file) => {
                let mut bytes = vec![0; end.saturating_sub(start)];
                File::open(&file.path)?.read_exact_at(&mut bytes, range.start)?;
                Ok(bytes.into())
            }
        }
    }
}

/// What is at a name of a stream.
pub enum Found {
    Playlist(Served),
    Init(Served),
    Segment(Served),
    /// The playlist is not complete enough to be shown.
    NotYet(Kind),
    /// It has been there, and nobody can want it any more.
    Over,
    Unknown,
}

/// One stream, published.
pub struct Published {
    state: Mutex<State>,
}

struct Kept {
    served: Served,
    map: u64,
    /// When nobody can want it any more; `None` while it is listed.
    until: Option<Instant>,
}

struct State {
    terms: Terms,
    playlist: Option<Playlist>,
    served: Option<Served>,
    segments: BTreeMap<u64, Kept>,
    maps: BTreeMap<u64, Served>,
    next: Option<u64>,
    next_map: u64,
    /// Whether the next segment does not go on where the one before ended.
    is_broken: bool,
    /// When and at what time of the stream its clock was read: microseconds since then make the dates.
    anchor: Option<(SystemTime, i64)>,
    elapsed: i64,
    memory: u64,
    disk: u64,
    /// When nobody writes it any more.
    left: Option<Instant>,
    /// How often somebody began to write it.
    turn: u64,
    /// The terms of whoever writes it now, until the first segment on them.
    coming: Option<Terms>,
}

/// Clocks of cameras go wrong slowly; dates are set right where they are wrong by so much.
const MOST_DRIFT: Duration = Duration::from_secs(1);

impl Published {
    fn new(terms: Terms) -> Published {
        Published { state: Mutex::new(State::new(terms)) }
    }

    /// Somebody writes it, again where somebody did before: numbers go on. On the same terms so does the playlist, and this
    /// answers the longest segment that it promises, in seconds; else what it listed leaves with the next segment. Until
    /// that comes, whoever wrote before may still add what was under way.
    fn resume(&self, terms: Terms) -> (u64, Option<u64>) {
        let mut state = lock(&self.state);
        state.turn += 1;
        (state.left, state.coming) = (None, Some(terms));
        let goes_on = state.playlist.as_ref().filter(|_| terms.kind != Kind::Vod && state.terms == terms);
        (state.turn, goes_on.map(|playlist| playlist.target))
    }

    fn is_written(&self) -> bool {
        lock(&self.state).left.is_none()
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        let state = lock(&self.state);
        let is_kept = state.terms.kind == Kind::Vod && state.served.is_some();
        !is_kept && state.left.is_some_and(|left| now.saturating_duration_since(left) > state.patience())
    }

    /// What is at a name.
    pub fn file(&self, name: &str, now: Instant) -> Found {
        let mut state = lock(&self.state);
        state.forget(now);
        if name == "index.m3u8" {
            return state.served.clone().map_or(Found::NotYet(state.terms.kind), Found::Playlist);
        }
        let number = |prefix: &str, suffix: &str| {
            let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
            let is_plain = digits == "0" || !digits.starts_with(['0', '+']);
            digits.parse::<u64>().ok().filter(|_| is_plain)
        };
        if let Some(number) = number("init-", ".mp4") {
            return match state.maps.get(&number) {
                Some(served) => Found::Init(served.clone()),
                None if number < state.next_map => Found::Over,
                None => Found::Unknown,
            };
        }
        let Some(number) = number("", ".m4s") else { return Found::Unknown };
        match state.segments.get(&number) {
            Some(kept) => Found::Segment(kept.served.clone()),
            None if state.next.is_some_and(|next| number < next) => Found::Over,
            None => Found::Unknown,
        }
    }

    /// Bytes that it holds in memory and on the disk.
    pub fn used(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.memory, state.disk)
    }
}

/// The right to write one stream, until somebody else has it.
#[derive(Clone)]
pub struct Writing {
    published: Arc<Published>,
    turn: u64,
}

impl Writing {
    /// What is written.
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// `None` where somebody else has the right by now.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        Some(lock(&self.published.state)).filter(|state| state.turn == self.turn)
    }

    /// Lists another segment.
    ///
    /// # Errors
    /// Where there is no room for it; then the next one is a discontinuity.
    pub fn append(&self, segment: NewSegment, now: Instant) -> Result<(), Refused> {
        let mut state = lock(&self.published.state);
        if state.turn == self.turn {
            state.change_hands(now);
        } else if state.coming.is_none() {
            return Err(Refused::Superseded);
        }
        state.forget(now);
        let content = match state.room_for(&segment.media) {
            Ok(content) => content,
            Err(refused) => {
                state.is_broken = true;
                return Err(refused);
            }
        };
        let target = segment.target.unwrap_or(1);
        let terms = state.terms;
        let map = state.map(&segment.init);
        let has_listed = state.playlist.as_ref().is_some_and(|playlist| playlist.segments.back().is_some());
        let changes_map = state.last_map().is_some_and(|last| last != map);
        let is_discontinuous =
            std::mem::take(&mut state.is_broken) || has_listed && (segment.is_discontinuous || changes_map);
        let number = state.next.unwrap_or_else(|| first_number(terms.kind, segment.time));
        state.next = Some(number + 1);
        let version = (terms.kind == Kind::Vod).then(|| segment.sha256.chars().take(8).collect());
        let time = terms.dated.then(|| state.date(segment.time, is_discontinuous));
        state.elapsed = state.elapsed.saturating_add(segment.duration);
        let listed = Listed { number, duration: segment.duration, map, is_discontinuous, time, version };
        let playlist = state.playlist.get_or_insert_with(|| Playlist::new(terms.kind, terms.window, target));
        if playlist.segments.is_empty() {
            (playlist.kind, playlist.window, playlist.target) = (terms.kind, terms.window, target);
            (playlist.is_over, playlist.is_independent) = (false, true);
        }
        playlist.is_independent &= segment.is_independent;
        let left = playlist.push(listed);
        let tag = format!("{number}-{}", segment.sha256.get(..16).unwrap_or_default());
        let served = Served { content: Arc::new(content), tag };
        state.segments.insert(number, Kept { served, map, until: None });
        let patience = state.patience();
        for gone in left {
            let patience = patience + Duration::from_micros(u64::try_from(gone.duration).unwrap_or(0));
            if let Some(kept) = state.segments.get_mut(&gone.number) {
                kept.until = Some(now + patience);
            }
        }
        if terms.kind != Kind::Vod {
            state.show();
        }
        Ok(())
    }

    /// Something is missing before the next segment.
    pub fn break_off(&self) {
        if let Some(mut state) = self.state()
            && state.playlist.is_some()
        {
            state.is_broken = true;
        }
    }

    /// Nothing more comes.
    pub fn end(&self, now: Instant) {
        let Some(mut state) = self.state() else { return };
        state.left = Some(now);
        let is_vod = state.terms.kind == Kind::Vod;
        if let Some(playlist) = &mut state.playlist {
            playlist.is_over = true;
            if is_vod {
                let longest = playlist.segments.iter().map(|segment| segment.duration).max().unwrap_or_default();
                // Rounded as players round.
                playlist.target = u64::try_from((longest + 500_000) / 1_000_000).unwrap_or(0).max(1);
            }
            state.show();
        }
    }

    /// Nobody writes it any more, and somebody else may go on with it.
    pub fn abandon(&self, now: Instant) {
        if let Some(mut state) = self.state() {
            state.left = Some(now);
        }
    }
}

/// The number of a stream's first segment. Of what never ends it is never again that of another one: players and caches
/// may have seen what this process published before it was started anew.
fn first_number(kind: Kind, time: SystemTime) -> u64 {
    match kind {
        Kind::Vod => 0,
        Kind::Live | Kind::Event => time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    }
}

impl State {
    fn new(terms: Terms) -> State {
        State {
            terms,
            playlist: None,
            served: None,
            segments: BTreeMap::new(),
            maps: BTreeMap::new(),
            next: None,
            next_map: 0,
            is_broken: false,
            anchor: None,
            elapsed: 0,
            memory: 0,
            disk: 0,
            left: None,
            turn: 0,
            coming: None,
        }
    }

    /// What comes now is of whoever writes it by now.
    fn change_hands(&mut self, now: Instant) {
        let Some(terms) = self.coming.take() else { return };
        if terms.kind == Kind::Vod {
            *self = State { turn: self.turn, ..State::new(terms) };
            return;
        }
        let is_same = self.terms == terms;
        (self.terms, self.anchor) = (terms, None);
        let patience = self.patience();
        let Some(playlist) = &mut self.playlist else { return };
        self.is_broken = true;
        playlist.is_over = false;
        while !is_same && let Some(left) = playlist.leave() {
            if let Some(kept) = self.segments.get_mut(&left.number) {
                kept.until = Some(now + patience);
            }
        }
    }

    /// How long a player may want what is listed now: until it has played all of it.
    fn patience(&self) -> Duration {
        let Some(playlist) = &self.playlist else { return Duration::ZERO };
        let target = i64::try_from(playlist.target).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        Duration::from_micros(u64::try_from(playlist.longest.saturating_add(target)).unwrap_or(0))
    }

    /// Lets go of what nobody can want any more.
    fn forget(&mut self, now: Instant) {
        let is_over = |kept: &Kept| kept.until.is_some_and(|until| until <= now);
        let over: Vec<u64> =
            self.segments.iter().filter(|(_, kept)| is_over(kept)).map(|(number, _)| *number).collect();
        over.into_iter().for_each(|number| self.remove(number));
    }

    fn remove(&mut self, number: u64) {
        let Some(Kept { served, map, .. }) = self.segments.remove(&number) else { return };
        match &*served.content {
            Content::Memory(bytes) => self.memory -= bytes.len() as u64,
            Content::File(file) => self.disk -= file.bytes,
        }
        let is_last = Some(map) == self.next_map.checked_sub(1);
        if !is_last && !self.segments.values().any(|kept| kept.map == map) {
            self.maps.remove(&map);
        }
    }

    /// Puts a segment where there is room for it.
    fn room_for(&mut self, media: &Bytes) -> Result<Content, Refused> {
        let bytes = media.len() as u64;
        if self.memory + bytes <= self.terms.memory {
            self.memory += bytes;
            return Ok(Content::Memory(media.clone()));
        }
        // What is not listed any more makes room for what is.
        while self.disk + bytes > self.terms.disk
            && let Some((number, _)) = self.segments.iter().find(|(_, kept)| kept.until.is_some())
        {
            let number = *number;
            self.remove(number);
        }
        if self.memory + bytes <= self.terms.memory {
            self.memory += bytes;
            return Ok(Content::Memory(media.clone()));
        }
        if self.disk + bytes > self.terms.disk {
            return Err(Refused::Full(self.disk));
        }
        let content = spilled(media)?;
        self.disk += bytes;
        Ok(content)
    }

    /// The number of an initialisation: the same for the same bytes, one behind the other.
    fn map(&mut self, init: &Bytes) -> u64 {
        if let Some(last) = self.next_map.checked_sub(1)
            && self
                .maps
                .get(&last)
                .is_some_and(|served| matches!(&*served.content, Content::Memory(bytes) if bytes == init))
        {
            return last;
        }
        let number = self.next_map;
        self.next_map += 1;
        let tag = hex::encode(Sha256::digest(init)).get(..16).unwrap_or_default().to_owned();
        self.maps.insert(number, Served { content: Arc::new(Content::Memory(init.clone())), tag });
        number
    }

    fn last_map(&self) -> Option<u64> {
        self.playlist.as_ref()?.segments.back().map(|listed| listed.map)
    }

    /// When the first picture of the next segment was taken: by the stream's clock, as long as that is right.
    fn date(&mut self, read: SystemTime, is_discontinuous: bool) -> SystemTime {
        let elapsed = self.elapsed;
        let by_stream = self
            .anchor
            .filter(|_| !is_discontinuous)
            .map(|(anchor, at)| anchor + Duration::from_micros(u64::try_from(elapsed.saturating_sub(at)).unwrap_or(0)));
        let is_right = |time: &SystemTime| {
            let drift = read.duration_since(*time).or_else(|_| time.duration_since(read));
            drift.is_ok_and(|drift| drift <= MOST_DRIFT)
        };
        by_stream.filter(is_right).unwrap_or_else(|| {
            self.anchor = Some((read, elapsed));
            read
        })
    }

    /// From here on the playlist is served as it is now.
    fn show(&mut self) {
        let Some(playlist) = &self.playlist else { return };
        let text = playlist.text();
        let tag = hex::encode(Sha256::digest(&text)).get(..16).unwrap_or_default().to_owned();
        self.served = Some(Served { content: Arc::new(Content::Memory(text.into())), tag });
    }
}

/// Puts a segment into a temporary file, which goes when it does.
fn spilled(media: &Bytes) -> Result<Content, Refused> {
    let write = || {
        let (mut file, path) = tempfile::Builder::new().prefix("engine-").suffix(".m4s").tempfile()?.into_parts();
        file.write_all(media)?;
        let path = path.keep().map_err(|error| error.error)?;
        Ok(Content::File(SpilledFile { path, bytes: media.len() as u64 }))
    };
    write().map_err(|cause| Refused::Spill { folder: std::env::temp_dir().display().to_string(), cause })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::clock::{Clock, SimulatedClock};

    const TERMS: Terms = Terms {
        kind: Kind::Live,
        length: 2_000_000,
        window: Window::Segments(3),
        dated: true,
        memory: 1 << 20,
        disk: 1 << 20,
    };

    fn origin(node: &str) -> Origin {
        Origin { graph: "yard".into(), node: node.into() }
    }

    fn stream() -> StreamId {
        StreamId::new("door").unwrap()
    }

    fn segment(number: u64, bytes: usize, clock: &dyn Clock) -> NewSegment {
        NewSegment {
            init: Bytes::from_static(b"init"),
            media: Bytes::from(vec![u8::try_from(number % 251).unwrap(); bytes]),
            sha256: format!("{number:064x}"),
            duration: 2_000_000,
            target: Some(2),
            is_discontinuous: false,
            is_independent: true,
            time: clock.wall(),
        }
    }

    struct Bench {
        clock: SimulatedClock,
        playlists: Playlists,
        shelf: Arc<Shelf>,
        published: Arc<Published>,
        writing: Writing,
        next: u64,
    }

    impl Bench {
        fn new(terms: Terms) -> Bench {
            let (clock, playlists) = (SimulatedClock::default(), Playlists::default());
            let shelf = playlists.shelf(&origin("watch"));
            let Ok((writing, None)) = playlists.publish(&shelf, &stream(), &terms, clock.now()) else {
                panic!("taken")
            };
            let published = writing.published.clone();
            Bench { clock, playlists, shelf, published, writing, next: 0 }
        }

        /// Two seconds go by, and another segment comes.
        fn append(&mut self, bytes: usize) -> Result<(), Refused> {
            self.clock.advance(Duration::from_secs(2));
            self.next += 1;
            self.writing.append(segment(self.next, bytes, &self.clock), self.clock.now())
        }

        fn text(&self) -> String {
            let Found::Playlist(served) = self.published.file("index.m3u8", self.clock.now()) else { panic!("none") };
            String::from_utf8(served.read(0..u64::MAX).unwrap().to_vec()).unwrap()
        }

        fn listed(&self) -> Vec<String> {
            self.text().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        }

        fn has(&self, name: &str) -> bool {
            matches!(self.published.file(name, self.clock.now()), Found::Segment(_) | Found::Init(_))
        }
    }

    #[test]
    fn what_was_listed_is_there_until_nobody_can_want_it() {
        let mut bench = Bench::new(TERMS);
        assert!(matches!(bench.published.file("index.m3u8", bench.clock.now()), Found::NotYet(Kind::Live)));
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..40 {
            bench.append(1000).unwrap();
            for name in bench.listed() {
                assert!(bench.has(&name), "{name}");
                seen.insert(name, bench.clock.now());
            }
            for (name, last) in &seen {
                let age = bench.clock.now() - *last;
                // The longest playlist and the segment itself.
                assert!(age > Duration::from_secs(6 + 2) || bench.has(name), "{name} is gone after {age:?}");
            }
        }
        let first = seen.keys().next().unwrap();
        assert!(matches!(bench.published.file(first, bench.clock.now()), Found::Over), "{first}");
        assert!(matches!(bench.published.file("1.m4s", bench.clock.now()), Found::Over));
        for name in ["99999999999.m4s", "init-7.mp4", "index.m3u", "0x1.m4s", "+1.m4s", "01.m4s", "", ".."] {
            assert!(matches!(bench.published.file(name, bench.clock.now()), Found::Unknown), "{name}");
        }
        assert!(bench.has("init-0.mp4"));
        // Memory is bounded by what is kept: three listed, and those of ten seconds more.
        assert!(bench.published.used().0 <= 10 * 1000, "{:?}", bench.published.used());
    }

    #[test]
    fn what_does_not_fit_into_memory_lies_in_files_and_what_fits_nowhere_is_refused() {
        let mut bench = Bench::new(Terms { kind: Kind::Event, memory: 2500, disk: 2500, ..TERMS });
        for _ in 0..4 {
            bench.append(1000).unwrap();
        }
        assert_eq!(bench.published.used(), (2000, 2000));
        assert!(matches!(bench.append(1000), Err(Refused::Full(2000))));
        bench.append(400).unwrap();
        let listed = bench.listed();
        assert_eq!(listed.len(), 5);
        for (number, name) in listed.iter().enumerate() {
            let Found::Segment(served) = bench.published.file(name, bench.clock.now()) else { panic!("{name}") };
            let expected = [1, 2, 3, 4, 6][number];
            assert_eq!(served.read(0..3).unwrap(), vec![expected; 3], "{name}");
        }
        // The lost one is not passed over in silence.
        assert_eq!(bench.text().matches("#EXT-X-DISCONTINUITY\n").count(), 1, "{}", bench.text());
        let Found::Segment(served) = bench.published.file(&listed[3], bench.clock.now()) else {
            panic!("it is listed")
        };
        let Content::File(file) = &*served.content else { panic!("in memory") };
        let path = file.path.clone();
        assert!(path.exists());
        drop((served, bench));
        assert!(!path.exists(), "it goes with the graph");
    }

    #[test]
    fn old_segments_make_room_before_new_ones_are_lost() {
        let mut bench = Bench::new(Terms { memory: 0, disk: 4000, ..TERMS });
        for _ in 0..20 {
            bench.append(1000).unwrap();
            assert!(bench.listed().iter().all(|name| bench.has(name)));
            assert!(bench.published.used().1 <= 4000);
        }
    }

    #[test]
    fn another_writer_goes_on_with_the_next_numbers() {
        let mut bench = Bench::new(TERMS);
        for _ in 0..4 {
            bench.append(10).unwrap();
        }
        let before = bench.listed();
        let number = |name: &String| name.trim_end_matches(".m4s").parse::<u64>().unwrap();
        let mut earlier = None;
        let mut resume = |bench: &mut Bench, terms: &Terms| {
            bench.writing.abandon(bench.clock.now());
            let resumed = bench.playlists.publish(&bench.shelf, &stream(), terms, bench.clock.now());
            let (again, promised) = resumed.unwrap_or_else(|other| panic!("`{other}` has it"));
            assert!(Arc::ptr_eq(&again.published, &bench.published));
            let before_that = std::mem::replace(&mut bench.writing, again);
            before_that.end(bench.clock.now());
            assert!(bench.published.is_written(), "whoever was superseded ends nothing");
            assert!(before.iter().all(|name| bench.has(name)) && bench.listed() == before, "until there is more");
            // What was under way when it was superseded.
            before_that.append(segment(0, 10, &bench.clock), bench.clock.now()).unwrap();
            earlier = Some(before_that);
            promised
        };
        // On other terms what was listed leaves.
        assert_eq!(resume(&mut bench, &Terms { length: 1_000_000, ..TERMS }), None);
        bench.append(10).unwrap();
        let after = bench.listed();
        assert_eq!(after.len(), 1);
        assert_eq!(number(&after[0]), number(&before[2]) + 2);
        let late = earlier.unwrap().append(segment(0, 10, &bench.clock), bench.clock.now());
        assert!(matches!(late, Err(Refused::Superseded)));
        assert!(bench.text().contains("#EXT-X-DISCONTINUITY\n"));
        assert!(before.iter().all(|name| bench.has(name)));
    }

    #[test]
    fn on_the_same_terms_a_playlist_goes_on() {
        let mut bench = Bench::new(TERMS);
        for _ in 0..3 {
            bench.append(10).unwrap();
        }
        let before = bench.listed();
        bench.writing.end(bench.clock.now());
        assert!(bench.text().ends_with("#EXT-X-ENDLIST\n"));
        let resumed = bench.playlists.publish(&bench.shelf, &stream(), &TERMS, bench.clock.now());
        let (again, promised) = resumed.unwrap_or_else(|other| panic!("`{other}` has it"));
        assert_eq!(promised, Some(2));
        bench.writing = again;
        bench.append(10).unwrap();
        assert_eq!(bench.listed()[..2], before[1..]);
        assert!(!bench.text().contains("#EXT-X-ENDLIST") && bench.text().contains("#EXT-X-DISCONTINUITY\n"));
    }

    #[test]
    fn a_stream_has_one_sink_and_is_forgotten_with_it() {
        let bench = Bench::new(TERMS);
        let other = bench.playlists.shelf(&origin("again"));
        let now = bench.clock.now();
        assert_eq!(bench.playlists.publish(&other, &stream(), &TERMS, now).err().as_deref(), Some("watch"));
        assert!(bench.playlists.find("yard", "door", now).is_some());
        assert!(
            bench.playlists.find("other", "door", now).is_none() && bench.playlists.find("yard", "..", now).is_none()
        );
        assert_eq!(bench.playlists.streams("yard", now), [stream()]);
        let Bench { playlists, shelf, .. } = bench;
        drop(shelf);
        assert!(playlists.find("yard", "door", now).is_none());
    }

    #[test]
    fn a_live_stream_that_has_ended_is_forgotten_and_a_finished_one_stays() {
        for (kind, stays) in [(Kind::Live, false), (Kind::Vod, true)] {
            let mut bench = Bench::new(Terms { kind, ..TERMS });
            bench.append(10).unwrap();
            bench.writing.end(bench.clock.now());
            assert!(bench.text().ends_with("#EXT-X-ENDLIST\n"));
            bench.clock.advance(Duration::from_secs(3));
            assert!(bench.playlists.find("yard", "door", bench.clock.now()).is_some(), "{kind:?}");
            bench.clock.advance(Duration::from_secs(60));
            assert_eq!(bench.playlists.find("yard", "door", bench.clock.now()).is_some(), stays, "{kind:?}");
        }
    }

    #[test]
    fn dates_follow_the_clock_of_the_stream_as_long_as_that_is_right() {
        let mut bench = Bench::new(Terms { window: Window::Segments(100), ..TERMS });
        let dates = |bench: &Bench| -> Vec<String> {
            let text = bench.text();
            text.lines().filter_map(|line| line.strip_prefix("#EXT-X-PROGRAM-DATE-TIME:")).map(str::to_owned).collect()
        };
        bench.append(10).unwrap();
        // Half a second late: by the stream's clock it is not.
        bench.clock.advance(Duration::from_millis(500));
        bench.append(10).unwrap();
        // Too late to be right.
        bench.clock.advance(Duration::from_secs(5));
        bench.append(10).unwrap();
        let dates: Vec<jiff::Timestamp> = dates(&bench).iter().map(|date| date.parse().unwrap()).collect();
        let between = |a: usize, b: usize| dates[b].duration_since(dates[a]).as_millis();
        assert_eq!((between(0, 1), between(0, 2)), (2000, 9500));
    }
}
