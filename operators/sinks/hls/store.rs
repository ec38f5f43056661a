//! What is published: the playlists of all streams and the files that they list. Sinks write to it, and the control plane
//! reads.
//!
//! A sink's shelf is there as long as its graph is. Each stream on it ([`published`]) has a playlist and the files of its
//! segments ([`files`]).

pub mod files;
pub mod published;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use tokio::sync::Semaphore;

use super::playlist::{Kind, Window};
use crate::item::{Origin, StreamId};
use crate::lock::lock;
use crate::media::fragment::Form;
use crate::tunnel::Tunnels;
pub use files::Served;
pub use published::{Asked, Found, Lost, NewSegment, Published, Refused, Writing};

/// Requests of a process that may wait at once for what comes next of a playlist.
pub const MOST_WAITING: usize = 512;

/// The playlists of a process.
pub struct Playlists {
    /// What leads the internet to them, where a sink asks for it.
    pub tunnels: Tunnels,
    shelves: Mutex<Vec<Weak<Shelf>>>,
    waiting: Arc<Semaphore>,
}

impl Default for Playlists {
    fn default() -> Playlists {
        Playlists {
            tunnels: Tunnels::default(),
            shelves: Mutex::default(),
            waiting: Arc::new(Semaphore::new(MOST_WAITING)),
        }
    }
}

/// What one sink publishes.
pub struct Shelf {
    origin: Origin,
    streams: Mutex<BTreeMap<StreamId, Arc<Published>>>,
}

impl Playlists {
    /// Places for those who wait for what comes next, [`MOST_WAITING`] of them.
    pub fn waiting(&self) -> &Arc<Semaphore> {
        &self.waiting
    }

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

    /// Makes room for a stream on `shelf`. Where its playlist goes on, it answers what that promises.
    ///
    /// # Errors
    /// The sink that publishes the same stream of the same graph already.
    pub fn publish(
        &self,
        shelf: &Arc<Shelf>,
        stream: &StreamId,
        terms: &Terms,
        now: Instant,
    ) -> Result<(Writing, Option<Promise>), Arc<str>> {
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

impl Drop for Shelf {
    fn drop(&mut self) {
        // Whoever waits looks again, and finds nothing.
        lock(&self.streams).values().for_each(|published| published.tell());
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

    fn publish(&self, stream: &StreamId, terms: &Terms, now: Instant) -> (Writing, Option<Promise>) {
        let mut streams = lock(&self.streams);
        streams.retain(|_, published| !published.is_forgotten(now));
        let published = streams.entry(stream.clone()).or_insert_with(|| Arc::new(Published::new(*terms)));
        Published::resume(published, *terms)
    }
}

/// What a playlist has promised once and for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The longest segment, in seconds.
    pub target: u64,
    /// The longest part, in microseconds, where segments go on to have such parts.
    pub part: Option<i64>,
}

/// How a stream is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub kind: Kind,
    pub form: Form,
    /// Microseconds after which the next keyframe begins another segment.
    pub length: i64,
    /// Microseconds that a part of a segment should last; `None` for segments that are published in one piece.
    pub part: Option<i64>,
    pub window: Window,
    /// Whether segments say when their pictures were taken.
    pub dated: bool,
    /// Bytes of segments in memory, and in temporary files.
    pub memory: u64,
    pub disk: u64,
}

impl Terms {
    /// Whether what is published on these terms can stand behind what was published on others, in one playlist.
    fn go_on(&self, before: &Terms) -> bool {
        let what = |terms: &Terms| (terms.kind, terms.form, terms.part);
        self.kind != Kind::Vod && what(self) == what(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use bytes::Bytes;

    use crate::clock::{Clock, SimulatedClock};

    const TERMS: Terms = Terms {
        kind: Kind::Live,
        form: Form::Mp4,
        length: 2_000_000,
        part: None,
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
            sha256: None,
            duration: 2_000_000,
            target: Some(2),
            part_target: None,
            completes: true,
            is_discontinuous: false,
            is_independent: true,
            has_leading: false,
            time: clock.wall(),
        }
    }

    fn name(address: &str) -> &str {
        address.split('?').next().unwrap_or_default()
    }

    fn number(address: &str) -> u64 {
        name(address).split('.').next().unwrap_or_default().parse().unwrap()
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
            self.writing.append(segment(self.next, bytes, &self.clock), self.clock.now()).map(drop)
        }

        fn text(&self) -> String {
            let Found::Playlist(served) = self.published.file("index.m3u8", &Asked::default(), self.clock.now()) else {
                panic!("none")
            };
            String::from_utf8(served.read(0..u64::MAX).unwrap().to_vec()).unwrap()
        }

        fn listed(&self) -> Vec<String> {
            self.text().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        }

        /// What is at an address as playlists have it.
        fn look(&self, address: &str, asked: Asked) -> Found {
            let version = address.split_once("?v=").map(|(_, version)| version.to_owned());
            self.published.file(name(address), &Asked { version, ..asked }, self.clock.now())
        }

        fn has(&self, address: &str) -> bool {
            matches!(self.look(address, Asked::default()), Found::Segment(_) | Found::Init(_))
        }
    }

    #[test]
    fn what_was_listed_is_there_until_nobody_can_want_it() {
        let mut bench = Bench::new(TERMS);
        assert!(matches!(
            bench.published.file("index.m3u8", &Asked::default(), bench.clock.now()),
            Found::NotYet(Kind::Live)
        ));
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
        assert!(matches!(bench.look(first, Asked::default()), Found::Over), "{first}");
        assert!(matches!(bench.published.file("1.m4s", &Asked::default(), bench.clock.now()), Found::Over));
        for name in ["99999999999.m4s", "init-7.mp4", "index.m3u", "0x1.m4s", "+1.m4s", "01.m4s", "", ".."] {
            assert!(
                matches!(bench.published.file(name, &Asked::default(), bench.clock.now()), Found::Unknown),
                "{name}"
            );
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
        assert_eq!(listed.len(), 6);
        assert!(matches!(bench.look(&listed[4], Asked::default()), Found::Gap));
        for (number, name) in listed.iter().enumerate().filter(|(number, _)| *number != 4) {
            let Found::Segment(served) = bench.look(name, Asked::default()) else { panic!("{name}") };
            let expected = [1, 2, 3, 4, 5, 6][number];
            assert_eq!(served.read(0..3).unwrap(), vec![expected; 3], "{name}");
        }
        // The lost one is not passed over in silence, and what follows is at its time.
        assert!(bench.text().contains(&format!("#EXT-X-GAP\n#EXTINF:2.000000,\n{}\n", listed[4])), "{}", bench.text());
        assert!(!bench.text().contains("#EXT-X-DISCONTINUITY\n"), "{}", bench.text());
        let Found::Segment(served) = bench.look(&listed[3], Asked::default()) else { panic!("it is listed") };
        assert!(served.is_in_file());
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
        // Another kind of a playlist lists nothing of what was, but keeps what was promised.
        let promise = Some(Promise { target: 2, part: None });
        assert_eq!(resume(&mut bench, &Terms { kind: Kind::Event, ..TERMS }), promise);
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
    fn an_address_of_another_publication_is_that_of_no_file() {
        // The clock says the same to both, as it may after a restart.
        let mut benches = [Bench::new(PARTS), Bench::new(PARTS)];
        for bench in &mut benches {
            for _ in 0..6 {
                bench.append_part(100).unwrap();
            }
        }
        let addresses = benches.each_ref().map(|bench| {
            let map = bench.text().split("#EXT-X-MAP:URI=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
            let part = bench.text().split("URI=\"").nth(2).unwrap().split('"').next().unwrap().to_owned();
            [map, part, bench.listed()[0].clone(), bench.hint()]
        });
        for place in 0..4 {
            let [own, other] = addresses.each_ref().map(|addresses| &addresses[place]);
            assert!(own != other && name(own) == name(other), "{own} {other}");
            let is_there = |address: &str| {
                matches!(benches[0].look(address, Asked::default()), Found::Coming) || benches[0].has(address)
            };
            assert!(is_there(own) && is_there(name(own)), "{own}");
            for wrong in [other.clone(), format!("{}?v=", name(own)), format!("{own}0")] {
                assert!(matches!(benches[0].look(&wrong, Asked::default()), Found::Over), "{wrong}");
            }
        }
    }

    #[test]
    fn on_other_terms_of_the_same_kind_a_playlist_keeps_what_it_promised() {
        let mut bench = Bench::new(TERMS);
        for _ in 0..3 {
            bench.append(10).unwrap();
        }
        let before = bench.listed();
        bench.writing.abandon(bench.clock.now());
        let terms = Terms { length: 5_000_000, window: Window::Segments(4), ..TERMS };
        let resumed = bench.playlists.publish(&bench.shelf, &stream(), &terms, bench.clock.now());
        let (again, promised) = resumed.unwrap_or_else(|other| panic!("`{other}` has it"));
        assert_eq!(promised, Some(Promise { target: 2, part: None }));
        bench.writing = again;
        bench.append(10).unwrap();
        assert_eq!(bench.listed()[..3], before, "{}", bench.text());
        assert!(bench.text().contains("#EXT-X-TARGETDURATION:2\n") && bench.text().contains("#EXT-X-DISCONTINUITY\n"));
        // Parts of another length are promised anew, and segments are not.
        let terms = Terms { part: Some(200_000), ..terms };
        bench.writing.abandon(bench.clock.now());
        let resumed = bench.playlists.publish(&bench.shelf, &stream(), &terms, bench.clock.now());
        assert_eq!(resumed.ok().and_then(|(_, promised)| promised), promised);
    }

    const FINISHED: Terms = Terms { kind: Kind::Vod, dated: false, ..TERMS };

    impl Bench {
        /// Another segment of VOD, all of these bytes.
        fn append_finished(&mut self, byte: u8, bytes: usize) -> Result<(), Refused> {
            let media = Bytes::from(vec![byte; bytes]);
            let sha256 = Some(files::tag(&media));
            let segment = NewSegment { media, sha256, target: None, ..segment(0, 1, &self.clock) };
            self.writing.append(segment, self.clock.now()).map(drop)
        }

        /// The stream is published anew.
        fn begin_anew(&mut self, terms: &Terms) {
            self.writing.abandon(self.clock.now());
            let resumed = self.playlists.publish(&self.shelf, &stream(), terms, self.clock.now());
            self.writing = resumed.unwrap_or_else(|other| panic!("`{other}` has it")).0;
        }
    }

    #[test]
    fn what_is_finished_stays_until_what_takes_its_place_is_finished() {
        let mut bench = Bench::new(FINISHED);
        for byte in 0..3 {
            bench.append_finished(byte, 100).unwrap();
        }
        bench.writing.end(bench.clock.now());
        let (text, listed) = (bench.text(), bench.listed());
        assert!(text.contains("#EXT-X-MEDIA-SEQUENCE:0\n") && text.ends_with("#EXT-X-ENDLIST\n"), "{text}");
        let content = |bench: &Bench| -> Vec<_> { listed.iter().map(|address| bench.bytes(address)).collect() };
        let before = content(&bench);
        // One that breaks off leaves nothing behind.
        bench.begin_anew(&FINISHED);
        bench.append_finished(7, 100).unwrap();
        assert_eq!((bench.text(), content(&bench)), (text.clone(), before.clone()));
        bench.begin_anew(&FINISHED);
        for byte in 10..14 {
            bench.append_finished(byte, 100).unwrap();
            assert_eq!((bench.text(), content(&bench)), (text.clone(), before.clone()));
        }
        assert_eq!(bench.published.used(), (700, 0));
        bench.writing.end(bench.clock.now());
        let after = bench.listed();
        assert!(after.len() == 4 && bench.text().ends_with("#EXT-X-ENDLIST\n"), "{}", bench.text());
        assert!(after.iter().all(|address| bench.has(address) && !listed.contains(address)), "{after:?}");
        assert!(!bench.text().contains("DISCONTINUITY\n"), "{}", bench.text());
        // Whoever plays the first may play it to its end.
        bench.clock.advance(Duration::from_secs(6));
        assert_eq!(content(&bench), before);
        bench.clock.advance(Duration::from_secs(6));
        assert!(listed.iter().all(|address| matches!(bench.look(address, Asked::default()), Found::Over)));
        assert_eq!(bench.published.used(), (400, 0));
        assert!(bench.playlists.find("yard", "door", bench.clock.now()).is_some());
    }

    #[test]
    fn what_is_finished_makes_room_for_what_takes_its_place() {
        let mut bench = Bench::new(Terms { memory: 1000, disk: 0, ..FINISHED });
        for byte in 0..3 {
            bench.append_finished(byte, 250).unwrap();
        }
        bench.writing.end(bench.clock.now());
        let listed = bench.listed();
        bench.begin_anew(&Terms { memory: 1000, disk: 0, ..FINISHED });
        bench.append_finished(10, 250).unwrap();
        assert!(listed.iter().all(|address| bench.has(address)));
        bench.append_finished(11, 250).unwrap();
        assert!(matches!(bench.look("index.m3u8", Asked::default()), Found::NotYet(Kind::Vod)));
        assert!(!listed.iter().any(|address| bench.has(address)));
        bench.writing.end(bench.clock.now());
        assert!(bench.listed().len() == 2 && bench.listed().iter().all(|address| bench.has(address)));
    }

    #[test]
    fn a_live_playlist_ends_where_a_finished_one_takes_its_place_and_the_other_way_round() {
        let mut bench = Bench::new(TERMS);
        for _ in 0..3 {
            bench.append(10).unwrap();
        }
        let live = bench.listed();
        bench.begin_anew(&FINISHED);
        bench.append_finished(1, 10).unwrap();
        assert!(bench.listed() == live && bench.text().ends_with("#EXT-X-ENDLIST\n"), "{}", bench.text());
        bench.writing.end(bench.clock.now());
        let finished = bench.listed();
        assert!(finished.len() == 1 && bench.text().contains("PLAYLIST-TYPE:VOD"), "{}", bench.text());
        bench.begin_anew(&TERMS);
        bench.append(10).unwrap();
        assert!(!bench.text().contains("PLAYLIST-TYPE") && bench.listed().len() == 1, "{}", bench.text());
        for address in live.iter().chain(&finished).chain(&bench.listed()) {
            assert!(bench.has(address), "{address}");
        }
        let map = bench.text().split("#EXT-X-MAP:URI=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        assert!(bench.has(&map), "{map}");
    }

    #[test]
    fn segments_are_only_said_to_be_independent_where_all_are() {
        let bench = Bench::new(PARTS);
        for place in 0..8 {
            bench.clock.advance(Duration::from_millis(500));
            let part = NewSegment {
                duration: 500_000,
                part_target: Some(500_000),
                completes: place % 4 == 3,
                is_independent: place % 4 == 0,
                // Some of the pictures behind the keyframe are decoded with the next part.
                has_leading: place == 5,
                ..segment(place, 10, &bench.clock)
            };
            bench.writing.append(part, bench.clock.now()).unwrap();
            if place >= 3 {
                let text = bench.text();
                assert_eq!(text.contains("#EXT-X-INDEPENDENT-SEGMENTS\n"), place < 5, "{text}");
                // Players may begin there all the same.
                assert!(text.contains("INDEPENDENT=YES"), "{text}");
            }
        }
    }

    #[test]
    fn segments_of_another_form_have_other_names() {
        let mut bench = Bench::new(TERMS);
        for _ in 0..3 {
            bench.append(10).unwrap();
        }
        let before = bench.listed();
        let terms = Terms { form: Form::Transport, ..TERMS };
        let resumed = bench.playlists.publish(&bench.shelf, &stream(), &terms, bench.clock.now());
        bench.writing = resumed.unwrap_or_else(|other| panic!("`{other}` has it")).0;
        bench.append(10).unwrap();
        let after = bench.listed();
        assert!(after.len() == 1 && name(&after[0]).ends_with(".ts") && bench.has(&after[0]), "{after:?}");
        assert!(!bench.has(&after[0].replace(".ts", ".m4s")) && !bench.has(&before[0].replace(".m4s", ".ts")));
        // Players may still want them, and they are what they were.
        assert!(before.iter().all(|name| bench.has(name)));
        assert!(!bench.text().contains("EXT-X-MAP"), "{}", bench.text());
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
        assert_eq!(promised, Some(Promise { target: 2, part: None }));
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

    /// Half a second of a segment of two seconds.
    const PARTS: Terms = Terms { part: Some(500_000), ..TERMS };

    impl Bench {
        /// Half a second goes by, and another part comes; the fourth one of each segment completes it.
        fn append_part(&mut self, bytes: usize) -> Result<(), Refused> {
            self.clock.advance(Duration::from_millis(500));
            self.next += 1;
            let part = NewSegment {
                duration: 500_000,
                part_target: Some(500_000),
                completes: self.next.is_multiple_of(4),
                is_independent: self.next % 4 == 1,
                ..segment(self.next, bytes, &self.clock)
            };
            self.writing.append(part, self.clock.now()).map(drop)
        }

        fn bytes(&self, name: &str) -> Option<Vec<u8>> {
            match self.look(name, Asked::default()) {
                Found::Segment(served) => Some(served.read(0..u64::MAX).unwrap().to_vec()),
                _ => None,
            }
        }

        fn hint(&self) -> String {
            let text = self.text();
            let hint = text.lines().find_map(|line| line.strip_prefix("#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\""));
            hint.unwrap_or_else(|| panic!("{text}")).trim_end_matches('"').to_owned()
        }
    }

    #[test]
    fn a_segment_is_its_parts_and_the_next_one_is_told() {
        // Some of them lie in files.
        let mut bench = Bench::new(Terms { memory: 1500, ..PARTS });
        let mut known: BTreeMap<String, (Vec<u8>, String)> = BTreeMap::new();
        for _ in 0..4 {
            assert!(matches!(bench.look("index.m3u8", Asked::default()), Found::NotYet(Kind::Live)));
            bench.append_part(100).unwrap();
        }
        let version = format!("?v={}", bench.hint().split_once("?v=").unwrap().1);
        for count in 0..60 {
            let hint = bench.hint();
            assert!(matches!(bench.look(&hint, Asked::default()), Found::Coming), "{hint}");
            bench.append_part(100 + count).unwrap();
            assert!(bench.bytes(&hint).is_some(), "{hint} was told");
            let text = bench.text();
            for line in text.lines().filter(|line| line.starts_with("#EXT-X-PART:")) {
                let name = line.split("URI=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
                let Found::Segment(served) = bench.look(name, Asked::default()) else { panic!("{name} is listed") };
                let part = (served.read(0..u64::MAX).unwrap().to_vec(), served.tag);
                // Also once its segment is complete.
                assert_eq!(known.entry(name.to_owned()).or_insert_with(|| part.clone()), &part, "{name}");
                assert!(name.ends_with(&version), "{name}");
            }
            // Those of three target durations are listed, and no more.
            assert!(text.matches("#EXT-X-PART:").count() <= 4 * 4, "{text}");
        }
        let mut in_files = 0;
        for name in bench.listed() {
            let number = number(&name);
            let parts = (0..4).map(|part| known[&format!("{number}.{part}.m4s{version}")].0.clone());
            let parts: Vec<u8> = parts.flatten().collect();
            assert!(bench.bytes(&name).unwrap() == parts, "{name}");
            let Found::Segment(served) = bench.look(&name, Asked::default()) else { panic!("{name}") };
            in_files += usize::from(served.is_in_file());
            for wrong in [format!("{number}.4.m4s"), format!("{number}.01.m4s"), format!("{number}..m4s")] {
                assert!(matches!(bench.look(&wrong, Asked::default()), Found::Unknown), "{wrong}");
            }
        }
        assert!(in_files > 0);
        let first = known.keys().next().unwrap();
        assert!(matches!(bench.look(first, Asked::default()), Found::Over), "{first}");
    }

    #[test]
    fn whoever_asks_for_what_comes_waits_until_it_is_listed() {
        let mut bench = Bench::new(PARTS);
        for _ in 0..6 {
            bench.append_part(100).unwrap();
        }
        let first = number(&bench.listed()[0]);
        let look = |bench: &Bench, sequence: u64, part: Option<u64>| {
            bench.look("index.m3u8", Asked { sequence: Some(first + sequence), part, ..Asked::default() })
        };
        // One segment is complete, and of the next one there are two parts.
        for (sequence, part) in [(0, None), (0, Some(3)), (0, Some(9)), (1, Some(0)), (1, Some(1))] {
            assert!(matches!(look(&bench, sequence, part), Found::Playlist(_)), "{sequence} {part:?}");
        }
        for (sequence, part) in [(1, None), (1, Some(2)), (1, Some(7)), (2, None), (2, Some(0)), (2, Some(5))] {
            assert!(matches!(look(&bench, sequence, part), Found::Coming), "{sequence} {part:?}");
        }
        for (sequence, part) in [(3, None), (3, Some(0)), (1, Some(8)), (2, Some(6)), (2, Some(500)), (1000, None)] {
            assert!(matches!(look(&bench, sequence, part), Found::TooFar), "{sequence} {part:?}");
        }
        let mut changes = bench.published.changes();
        assert!(!changes.has_changed().unwrap());
        bench.append_part(100).unwrap();
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert!(matches!(look(&bench, 1, Some(2)), Found::Playlist(_)));
        bench.append_part(100).unwrap();
        // Behind the last part comes the first one of the next segment.
        assert!(matches!(look(&bench, 1, None), Found::Playlist(_)));
        assert!(matches!(look(&bench, 1, Some(4)), Found::Coming));
        bench.writing.end(bench.clock.now());
        assert!(changes.has_changed().unwrap());
        // Nothing more comes: nobody waits for it.
        assert!(matches!(look(&bench, 2, Some(0)), Found::Playlist(_)));
        assert!(!bench.text().contains("PRELOAD-HINT") && bench.text().ends_with("#EXT-X-ENDLIST\n"));
    }

    #[test]
    fn after_other_terms_whoever_waits_gets_what_was_asked_for() {
        let mut bench = Bench::new(PARTS);
        for _ in 0..8 {
            bench.append_part(100).unwrap();
        }
        let (before, next) = (bench.text(), number(&bench.listed()[1]) + 1);
        bench.begin_anew(&Terms { part: Some(250_000), ..PARTS });
        let asked = [(Some(next), None), (Some(next), Some(0)), (Some(next + 1), None)]
            .map(|(sequence, part)| [false, true].map(|skips| Asked { sequence, part, skips, ..Asked::default() }));
        for part in 0..3 {
            bench.append_part(100).unwrap();
            // There is no whole segment of what is to be listed, so what was listed before is shown, and nobody is told
            // that it is what comes next.
            for asked in asked.iter().flatten() {
                assert!(matches!(bench.look("index.m3u8", asked.clone()), Found::Coming), "{part} {asked:?}");
            }
            assert_eq!(bench.text(), before);
            let Found::Playlist(served) = bench.look("index.m3u8", Asked { skips: true, ..Asked::default() }) else {
                panic!("it is shown")
            };
            assert!(served.read(0..u64::MAX).unwrap() == before.as_bytes());
        }
        bench.append_part(100).unwrap();
        let Found::Playlist(served) = bench.look("index.m3u8", asked[0][0].clone()) else { panic!("it has come") };
        let text = String::from_utf8(served.read(0..u64::MAX).unwrap().to_vec()).unwrap();
        assert!(text.contains(&format!("\n{next}.m4s")), "{text}");
    }

    #[test]
    fn whoever_waits_hears_that_a_sink_is_gone() {
        let mut bench = Bench::new(PARTS);
        for _ in 0..6 {
            bench.append_part(100).unwrap();
        }
        let mut changes = bench.published.changes();
        bench.writing.abandon(bench.clock.now());
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert!(bench.playlists.find("yard", "door", bench.clock.now()).is_some());
        let Bench { clock, playlists, shelf, published: _published, .. } = bench;
        drop(shelf);
        assert!(changes.has_changed().unwrap() && playlists.find("yard", "door", clock.now()).is_none());
    }

    #[test]
    fn nobody_who_reads_waits_for_the_disk() {
        let mut bench = Bench::new(Terms { kind: Kind::Event, memory: 0, disk: 4 << 30, ..TERMS });
        bench.append(1000).unwrap();
        let published = bench.published.clone();
        let saw_it_written = (0..50).any(|_| {
            let (before, listed, now) = (published.used().1, bench.listed().len(), bench.clock.now());
            std::thread::scope(|scope| {
                let writing = scope.spawn(|| bench.append(32 << 20).unwrap());
                let mut saw = false;
                while !writing.is_finished() && !saw {
                    let has_room = published.used().1 > before;
                    let Found::Playlist(served) = published.file("index.m3u8", &Asked::default(), now) else {
                        panic!("none")
                    };
                    let text = String::from_utf8(served.read(0..u64::MAX).unwrap().to_vec()).unwrap();
                    // Its room was taken, and it was not there yet afterwards.
                    saw = has_room && text.lines().filter(|line| !line.starts_with('#')).count() == listed;
                }
                saw
            })
        });
        assert!(saw_it_written);
    }

    #[test]
    fn an_update_and_what_is_known_are_the_whole_playlist() {
        let mut bench = Bench::new(Terms { window: Window::Segments(20), ..PARTS });
        let mut known: Vec<String> = Vec::new();
        let mut skipped_once = false;
        let lines = |served: &Served| -> Vec<String> {
            let text = String::from_utf8(served.read(0..u64::MAX).unwrap().to_vec()).unwrap();
            text.lines().map(str::to_owned).collect()
        };
        for _ in 0..3 {
            bench.append_part(100).unwrap();
        }
        for _ in 0..150 {
            bench.append_part(100).unwrap();
            let Found::Playlist(update) = bench.look("index.m3u8", Asked { skips: true, ..Asked::default() }) else {
                panic!("none")
            };
            let Found::Playlist(whole) = bench.look("index.m3u8", Asked::default()) else { panic!("none") };
            let (update, whole) = (lines(&update), lines(&whole));
            // What a player does: segments of which it knows the numbers take the place of those that are skipped.
            let sequence = |lines: &[String]| -> u64 {
                lines.iter().find_map(|line| line.strip_prefix("#EXT-X-MEDIA-SEQUENCE:")).unwrap().parse().unwrap()
            };
            let place = update.iter().position(|line| line.starts_with("#EXT-X-SKIP:SKIPPED-SEGMENTS="));
            let put_together = match place {
                None => update.clone(),
                Some(place) => {
                    skipped_once = true;
                    let skipped: u64 = update[place].rsplit('=').next().unwrap().parse().unwrap();
                    let first = sequence(&update);
                    let known_segments = segments(&known);
                    let mut put = update[..place].to_vec();
                    for number in first..first + skipped {
                        // The first of a playlist says again what it is initialised by.
                        let mut lines = known_segments[&number].clone();
                        lines.retain(|line| !line.starts_with("#EXT-X-PART:") && !line.starts_with("#EXT-X-MAP:"));
                        if number == first {
                            lines.insert(0, whole.iter().find(|line| line.starts_with("#EXT-X-MAP:")).unwrap().clone());
                        }
                        put.extend(lines);
                    }
                    put.extend_from_slice(&update[place + 1..]);
                    put
                }
            };
            assert_eq!(put_together, whole);
            known = whole;
        }
        assert!(skipped_once);
    }

    /// The lines of each complete segment of a playlist.
    fn segments(lines: &[String]) -> BTreeMap<u64, Vec<String>> {
        let (mut segments, mut own) = (BTreeMap::new(), Vec::new());
        let heads = ["#EXT-X-MAP", "#EXT-X-PROGRAM", "#EXT-X-DISCONTINUITY", "#EXT-X-GAP", "#EXT-X-PART:", "#EXTINF"];
        for line in lines {
            if heads.iter().any(|head| line.starts_with(head)) && !line.starts_with("#EXT-X-DISCONTINUITY-SEQUENCE") {
                own.push(line.clone());
            } else if !line.starts_with('#') && !line.is_empty() {
                own.push(line.clone());
                segments.insert(number(line), std::mem::take(&mut own));
            }
        }
        segments
    }

    #[test]
    fn a_segment_that_cannot_be_kept_is_a_gap_without_parts() {
        let mut bench = Bench::new(Terms { kind: Kind::Event, memory: 500, disk: 0, ..PARTS });
        for _ in 0..7 {
            bench.append_part(100).unwrap();
        }
        assert!(matches!(bench.append_part(100), Err(Refused::Full(0))));
        let text = bench.text();
        assert_eq!((text.matches("#EXT-X-GAP\n").count(), text.matches("#EXT-X-PART:").count()), (1, 4), "{text}");
        assert!(matches!(bench.look(&bench.listed()[1], Asked::default()), Found::Gap));
        assert_eq!(name(&bench.hint()), format!("{}.0.m4s", number(&bench.listed()[1]) + 1));
    }

    #[test]
    fn what_breaks_off_ends_the_segment_that_grows() {
        let mut bench = Bench::new(PARTS);
        for _ in 0..6 {
            bench.append_part(100).unwrap();
        }
        bench.writing.break_off();
        bench.append_part(100).unwrap();
        let text = bench.text();
        assert_eq!(bench.listed().len(), 2, "{text}");
        let behind = text.split("#EXT-X-DISCONTINUITY\n").nth(1).unwrap_or_else(|| panic!("{text}"));
        assert_eq!(behind.matches("#EXT-X-PART:").count(), 1, "{text}");
        assert!(text.contains("#EXTINF:1.000000,\n"), "{text}");
    }

    #[test]
    fn what_is_lost_on_the_way_is_a_gap() {
        let mut bench = Bench::new(TERMS);
        let lost = |bench: &Bench| Lost { duration: 2_000_000, is_discontinuous: false, time: bench.clock.wall() };
        // Nothing tells how it was coded.
        bench.writing.lose(&lost(&bench), bench.clock.now());
        bench.append(10).unwrap();
        bench.clock.advance(Duration::from_secs(2));
        bench.writing.lose(&lost(&bench), bench.clock.now());
        bench.append(10).unwrap();
        let text = bench.text();
        assert_eq!((text.matches("#EXT-X-GAP\n").count(), bench.listed().len()), (1, 3), "{text}");
        assert!(!text.contains("#EXT-X-DISCONTINUITY\n"), "{text}");
    }
}
