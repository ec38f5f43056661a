use super::copied_playlist::addresses;
use super::*;

use std::ops::Range;
use std::sync::Mutex;

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::clock::SimulatedClock;
use crate::lease::{Account, Counts};
use crate::media::fragment::Form;
use crate::sinks::hls::playlist::Window;
use crate::sinks::hls::store::{NewSegment, Playlists, Shelf, Terms, Writing};
use crate::storage::error::{Cause, StorageError};
use crate::storage::{Body, Object};

/// Packets of each segment.
const PACKETS: u64 = 5;
/// How long something may take that takes no time.
const DEADLINE: Duration = Duration::from_secs(60);

/// A place that is down when it is told to be.
#[derive(Default)]
struct Bucket(Mutex<Contents>);

#[derive(Default)]
struct Contents {
    is_down: bool,
    /// The next so many deletes fail.
    undeletable: u64,
    /// Names that are refused, once each.
    refused: Vec<String>,
    /// A name that is always refused.
    never_taken: Option<String>,
    /// Whoever stores this name panics.
    deadly: Option<String>,
    /// Where each one that is stored needs leave.
    leave: Option<Arc<Semaphore>>,
    objects: BTreeMap<String, Bytes>,
    /// The segments that were ever there.
    segments: BTreeSet<String>,
    /// Every playlist that was stored.
    playlists: Vec<String>,
    /// What playlists listed when they were stored without that it was there, and playlists that end in the middle.
    wrong: Vec<String>,
    attempts: u64,
}

impl Bucket {
    fn with<T>(&self, look: impl FnOnce(&mut Contents) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn names(&self) -> BTreeSet<String> {
        self.with(|contents| contents.objects.keys().cloned().collect())
    }
}

/// The files that a playlist lists.
fn listed(playlist: &str) -> BTreeSet<String> {
    addresses(playlist).map(|name| format!("door/{name}")).collect()
}

#[async_trait::async_trait]
impl Storage for Bucket {
    fn location(&self, key: &str) -> String {
        key.to_owned()
    }

    async fn put(&self, key: &str, body: &Body, _media_type: &str) -> Result<(), StorageError> {
        let bytes = body.read(0..body.len()).await.unwrap();
        if let Some(leave) = self.with(|contents| contents.leave.clone()) {
            leave.acquire().await.unwrap().forget();
        }
        let is_deadly = self.with(|contents| contents.deadly.as_ref().is_some_and(|deadly| key.contains(deadly)));
        assert!(!is_deadly, "as asked");
        self.with(|contents| {
            contents.attempts += 1;
            if contents.is_down {
                return Err(StorageError::new(Cause::Temporary, "SlowDown (503)"));
            }
            if let Some(place) = contents.refused.iter().position(|refused| key.contains(refused)) {
                contents.refused.remove(place);
                return Err(StorageError::new(Cause::Final, "AccessDenied (403)"));
            }
            if contents.never_taken.as_ref().is_some_and(|name| key.contains(name)) {
                return Err(StorageError::new(Cause::Final, "BadThing (400)"));
            }
            if key == "door/index.m3u8" {
                let text = String::from_utf8(bytes.to_vec()).unwrap();
                contents.wrong.extend(listed(&text).into_iter().filter(|name| !contents.objects.contains_key(name)));
                let last = text.lines().last().unwrap();
                if last.starts_with('#') && last != "#EXT-X-ENDLIST" || text.contains("#EXT-X-PART") {
                    contents.wrong.push(text.clone());
                }
                contents.playlists.push(text);
            } else if key.ends_with(".m4s") {
                contents.segments.insert(key.to_owned());
            }
            contents.objects.insert(key.to_owned(), bytes);
            Ok(())
        })
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        self.with(|contents| {
            if contents.undeletable > 0 {
                contents.undeletable -= 1;
                return Err(StorageError::new(Cause::Temporary, "InternalError (500)"));
            }
            contents.objects.remove(key);
            Ok(())
        })
    }

    async fn get(&self, _key: &str, _range: Range<u64>, _etag: Option<&str>) -> Result<Bytes, StorageError> {
        unreachable!("nothing is read")
    }

    async fn head(&self, _key: &str) -> Result<Object, StorageError> {
        unreachable!("nothing is looked for")
    }

    async fn list(&self, _prefix: &str) -> Result<Vec<Object>, StorageError> {
        unreachable!("nothing is looked for")
    }
}

fn stream() -> StreamId {
    StreamId::new("door").unwrap()
}

fn terms(kind: Kind) -> Terms {
    Terms {
        kind,
        form: Form::Mp4,
        length: 2_000_000,
        part: None,
        window: Window::Segments(3),
        dated: true,
        memory: 1 << 20,
        disk: 0,
    }
}

/// A sink with copies, and what it publishes.
struct Bench {
    clock: SimulatedClock,
    playlists: Playlists,
    shelf: Arc<Shelf>,
    terms: Terms,
    writing: Writing,
    bucket: Arc<Bucket>,
    mirror: Mirror,
    account: Arc<Account>,
    init: Bytes,
}

impl Bench {
    fn new(terms: Terms, is_live: bool) -> Bench {
        let (clock, playlists, bucket) = (SimulatedClock::default(), Playlists::default(), Arc::<Bucket>::default());
        let origin = Origin { graph: "yard".into(), node: "watch".into() };
        let shelf = playlists.shelf(&origin);
        let Ok((writing, _)) = playlists.publish(&shelf, &stream(), &terms, clock.now()) else { panic!("taken") };
        let retry = Retry {
            retry_for: Duration::from_secs(1_000_000),
            clock: Arc::new(clock.clone()),
            trouble: Trouble::default(),
            node: origin.node.clone(),
            backoff: Backoff { first: Duration::from_millis(1), most: Duration::from_millis(2) },
        };
        let copies = Copies {
            place: Place::Folder { folder: Arc::new(Folder::new("out", "out")), root: "out".into() },
            prefix: Template::parse("{stream}", &[Placeholder::Stream]).unwrap(),
            retry,
            origin,
            clock: Arc::new(clock.clone()),
        };
        let (tell, untold) = mpsc::channel(MOST_UNTOLD);
        let pace = Pace { is_live, kind: terms.kind };
        let (streams, ended) = Default::default();
        let mirror = Mirror { copies, pace, storage: bucket.clone(), tell, untold, streams, ended };
        let (account, init) = (Arc::default(), Bytes::from_static(b"init"));
        Bench { clock, playlists, shelf, terms, writing, bucket, mirror, account, init }
    }

    /// Two seconds go by, and another segment comes, or half a second and a part of one.
    async fn append(&mut self, completes: bool) -> u64 {
        let writing = self.writing.clone();
        self.append_to(&stream(), &writing, completes).await
    }

    /// As [`Bench::append`], of any stream.
    async fn append_to(&mut self, stream: &StreamId, writing: &Writing, completes: bool) -> u64 {
        let duration = self.terms.part.unwrap_or(2_000_000);
        self.clock.advance(Duration::from_micros(u64::try_from(duration).unwrap()));
        let segment = NewSegment {
            init: self.init.clone(),
            media: Bytes::from_static(b"media"),
            sha256: (self.terms.kind == Kind::Vod).then(|| "0123456789abcdef".repeat(4)),
            duration,
            target: Some(2),
            part_target: self.terms.part,
            completes,
            is_discontinuous: false,
            is_independent: true,
            has_leading: false,
            time: self.clock.wall(),
        };
        let number = writing.append(segment, self.clock.now()).unwrap();
        self.account.read(PACKETS);
        let acks = (0..PACKETS).map(|_| Ack::new(&self.account, self.clock.now())).collect();
        let stored = self.mirror.store(stream, writing.published(), PublishedPart { number, acks });
        tokio::time::timeout(DEADLINE, stored).await.expect("nobody waits for the place for ever");
        number
    }

    /// The stream comes again.
    fn publish_again(&mut self) {
        let published = self.playlists.publish(&self.shelf, &stream(), &self.terms, self.clock.now());
        self.writing = published.unwrap_or_else(|other| panic!("`{other}` has it")).0;
    }

    fn last_playlist(&self) -> String {
        self.bucket.with(|contents| contents.playlists.last().cloned()).unwrap_or_default()
    }

    fn end(&mut self) {
        self.writing.end(self.clock.now());
        self.mirror.end(&stream());
    }

    /// Everything that went wrong, in the end.
    async fn finish(&mut self) -> Vec<String> {
        self.writing.end(self.clock.now());
        let told = self.mirror.finish().await.map(|error| error.message).unwrap_or_default();
        let told = told.split("; ").filter(|told| !told.is_empty()).map(str::to_owned).collect();
        assert!(self.counts().conserved() && self.counts().in_flight == 0, "{:?}", self.counts());
        self.bucket.with(|contents| assert!(contents.wrong.is_empty(), "{:?}", contents.wrong));
        told
    }

    fn counts(&self) -> Counts {
        self.account.snapshot()
    }

    async fn wait_for(&self, what: &str, is_so: impl Fn(&Bench) -> bool) {
        let so = async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(DEADLINE, so).await.unwrap_or_else(|_| panic!("{what}: {:?}", self.counts()));
    }

    /// What lies there is what the playlist lists, and the playlist.
    fn assert_tidy(&self) {
        let last = self.bucket.with(|contents| contents.playlists.last().cloned()).unwrap();
        let mut names = listed(&last);
        names.insert("door/index.m3u8".to_owned());
        assert_eq!(self.bucket.names(), names, "{last}");
    }
}

#[tokio::test]
async fn a_place_that_is_down_holds_no_camera_up_and_what_is_gone_meanwhile_is_lost_and_told() {
    let mut bench = Bench::new(terms(Kind::Live), true);
    for _ in 0..4 {
        bench.append(true).await;
    }
    bench.wait_for("four segments", |bench| bench.counts().delivered == 4 * PACKETS).await;
    bench.bucket.with(|contents| contents.is_down = true);
    for _ in 0..600 {
        bench.append(true).await;
    }
    // Nobody waits for the verdict until the place is back.
    bench.wait_for("a verdict", |bench| bench.counts().lost > 500 * PACKETS).await;
    bench.bucket.with(|contents| contents.is_down = false);
    let told = bench.finish().await;
    let counts = bench.counts();
    assert!(counts.lost > 0 && counts.read == 604 * PACKETS, "{counts:?}");
    let stored = bench.bucket.with(|contents| contents.segments.len() as u64);
    assert_eq!(counts.delivered, stored * PACKETS, "delivered is what was stored");
    let lost = counts.lost / PACKETS;
    let expected = format!("the copy lacks {lost} segments of stream `door`, ");
    assert!(told.len() == 1 && told[0].starts_with(&expected), "{told:?}");
    assert!(told[0].contains(&format!("({} packets)", counts.lost)), "{told:?}");
    bench.assert_tidy();
    let last = bench.bucket.with(|contents| contents.playlists.last().cloned()).unwrap();
    assert!(last.ends_with("#EXT-X-ENDLIST\n") && last.matches("#EXTINF").count() >= 3, "{last}");
}

#[tokio::test]
async fn a_file_waits_for_its_copy_and_loses_nothing() {
    for kind in [Kind::Live, Kind::Event] {
        let mut bench = Bench::new(terms(kind), false);
        bench.bucket.with(|contents| contents.is_down = true);
        let bucket = bench.bucket.clone();
        let back = tokio::spawn(async move {
            while bucket.with(|contents| contents.attempts < 20) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            bucket.with(|contents| contents.is_down = false);
        });
        for _ in 0..300 {
            bench.append(true).await;
        }
        assert_eq!(bench.finish().await, Vec::<String>::new());
        back.await.unwrap();
        assert_eq!(bench.counts().delivered, 300 * PACKETS, "{kind:?}: {:?}", bench.counts());
        assert_eq!(bench.bucket.with(|contents| contents.segments.len()), 300, "{kind:?}");
    }
}

#[tokio::test]
async fn what_is_refused_for_good_takes_nothing_with_it() {
    let mut bench = Bench::new(terms(Kind::Event), true);
    bench.append(true).await;
    bench.wait_for("a segment", |bench| bench.counts().delivered == PACKETS).await;
    let first: u64 = {
        let names = bench.bucket.names();
        let name = names.iter().find(|name| name.ends_with(".m4s")).unwrap();
        name.trim_start_matches("door/").split('-').next().unwrap().parse().unwrap()
    };
    // Once because its packets wait for it, and once because the playlist lists it.
    bench.bucket.with(|contents| contents.refused = vec![format!("/{}-", first + 2); 2]);
    for _ in 0..5 {
        bench.append(true).await;
    }
    let told = bench.finish().await;
    let lacks = format!("the copy lacks segment {} of stream `door` (5 packets): AccessDenied (403)", first + 2);
    assert!(told.len() == 2 && told.contains(&lacks), "{told:?}");
    assert_eq!((bench.counts().delivered, bench.counts().lost), (5 * PACKETS, PACKETS));
    // With what comes next, or with the end, the playlist asks for it again.
    assert_eq!(bench.bucket.with(|contents| contents.segments.len()), 6);
    bench.assert_tidy();
}

#[tokio::test]
async fn what_is_not_stored_in_time_is_lost_and_the_rest_is_stored_when_the_place_is_back() {
    let mut bench = Bench::new(terms(Kind::Event), true);
    bench.mirror.copies.retry.retry_for = Duration::ZERO;
    bench.bucket.with(|contents| contents.is_down = true);
    for _ in 0..3 {
        bench.append(true).await;
    }
    bench.wait_for("a verdict", |bench| bench.counts().lost == 3 * PACKETS).await;
    bench.bucket.with(|contents| contents.is_down = false);
    for _ in 0..3 {
        bench.append(true).await;
    }
    let told = bench.finish().await;
    assert!(told.iter().any(|told| told.contains(" not stored in time: ")), "{told:?}");
    assert!(told.iter().all(|told| told.ends_with("SlowDown (503)")), "{told:?}");
    assert_eq!(bench.counts().delivered, 3 * PACKETS);
    assert_eq!(bench.bucket.with(|contents| contents.segments.len()), 6);
    bench.assert_tidy();
}

#[tokio::test]
async fn a_stream_that_comes_again_takes_away_what_it_left() {
    let mut bench = Bench::new(terms(Kind::Live), true);
    for _ in 0..8 {
        bench.append(true).await;
    }
    bench.end();
    bench.wait_for("all segments", |bench| bench.counts().delivered == 8 * PACKETS).await;
    bench.clock.advance(Duration::from_secs(60));
    assert!(bench.playlists.find("yard", "door", bench.clock.now()).is_none(), "it is forgotten");
    bench.publish_again();
    for _ in 0..4 {
        bench.append(true).await;
    }
    assert_eq!(bench.finish().await, Vec::<String>::new());
    assert_eq!(bench.counts().delivered, 12 * PACKETS);
    bench.assert_tidy();
}

#[tokio::test]
async fn initialisations_go_with_their_segments_and_what_is_not_deleted_is_tried_again() {
    let mut bench = Bench::new(terms(Kind::Live), true);
    bench.bucket.with(|contents| contents.undeletable = 7);
    for round in 0..40_u64 {
        bench.init = Bytes::from(format!("init {}", round / 2));
        bench.append(true).await;
        bench.wait_for("it is stored", |bench| bench.counts().delivered == (round + 1) * PACKETS).await;
    }
    let inits = |bench: &Bench| bench.bucket.names().iter().filter(|name| name.contains("init-")).count();
    // Of those that are listed, and those that somebody may still want.
    bench.wait_for("only some are there", |bench| inits(bench) <= 6).await;
    assert_eq!(bench.finish().await, Vec::<String>::new());
    bench.assert_tidy();
}

#[tokio::test]
async fn a_copy_of_low_latency_has_whole_segments_and_one_playlist_for_each() {
    let mut bench = Bench::new(Terms { part: Some(500_000), ..terms(Kind::Live) }, true);
    for part in 1..=24_u64 {
        bench.append(part.is_multiple_of(4)).await;
        let complete = part / 4 * 4;
        bench.wait_for("it is stored", |bench| bench.counts().delivered == complete * PACKETS).await;
        let is_listed = |bench: &Bench| bench.bucket.with(|contents| contents.playlists.len() as u64) == part / 4;
        bench.wait_for("it is listed", is_listed).await;
    }
    // What grows when it ends is a segment too.
    bench.append(false).await;
    assert_eq!(bench.finish().await, Vec::<String>::new());
    assert_eq!(bench.bucket.with(|contents| contents.playlists.len()), 7);
    assert_eq!(bench.counts().delivered, 25 * PACKETS);
    bench.assert_tidy();
}

#[tokio::test]
async fn a_stream_that_comes_again_while_the_place_is_down_holds_nobody_up_and_loses_nothing() {
    let mut bench = Bench::new(terms(Kind::Event), true);
    bench.bucket.with(|contents| contents.is_down = true);
    let mut segments = 0;
    for _ in 0..3 {
        for _ in 0..4 {
            bench.append(true).await;
            segments += 1;
        }
        let tried = bench.bucket.with(|contents| contents.attempts);
        bench.wait_for("it is tried", |bench| bench.bucket.with(|contents| contents.attempts > tried)).await;
        bench.end();
        bench.publish_again();
    }
    bench.append(true).await;
    assert_eq!(bench.counts().in_flight, (segments + 1) * PACKETS);
    bench.bucket.with(|contents| contents.is_down = false);
    assert_eq!(bench.finish().await, Vec::<String>::new());
    assert_eq!(bench.counts().delivered, (segments + 1) * PACKETS);
    bench.assert_tidy();
}

#[tokio::test]
async fn what_is_left_of_a_stream_that_comes_again_as_another_is_given_up() {
    let mut bench = Bench::new(terms(Kind::Live), true);
    bench.bucket.with(|contents| contents.is_down = true);
    for _ in 0..2 {
        bench.append(true).await;
    }
    bench.wait_for("it is tried", |bench| bench.bucket.with(|contents| contents.attempts > 0)).await;
    bench.end();
    bench.clock.advance(Duration::from_secs(60));
    assert!(bench.playlists.find("yard", "door", bench.clock.now()).is_none(), "it is forgotten");
    bench.publish_again();
    for _ in 0..3 {
        bench.append(true).await;
    }
    // However long the place is down, at most one former publication is kept for it.
    bench.wait_for("a verdict", |bench| bench.counts().lost == 2 * PACKETS).await;
    bench.bucket.with(|contents| contents.is_down = false);
    let told = bench.finish().await;
    assert!(told.iter().any(|told| told.contains("because the stream has come again")), "{told:?}");
    assert_eq!(bench.counts().delivered, 3 * PACKETS);
    bench.assert_tidy();
}

#[tokio::test]
async fn copies_end_with_their_sink_and_what_they_held_is_lost_at_once() {
    for comes_again in [false, true] {
        let mut bench = Bench::new(terms(Kind::Live), true);
        bench.bucket.with(|contents| contents.is_down = true);
        for _ in 0..3 {
            bench.append(true).await;
        }
        bench.wait_for("it is tried", |bench| bench.bucket.with(|contents| contents.attempts > 0)).await;
        if comes_again {
            // The place does not answer: the former copy has not ended.
            bench.bucket.with(|contents| contents.leave = Some(Arc::new(Semaphore::new(0))));
            bench.end();
            bench.clock.advance(Duration::from_secs(60));
            bench.publish_again();
            bench.append(true).await;
            tokio::task::yield_now().await;
        }
        let Bench { mirror, account, bucket, .. } = bench;
        drop(mirror);
        let counts = account.snapshot();
        assert!(counts.lost == counts.read && counts.in_flight == 0, "{counts:?}");
        assert_eq!(Arc::strong_count(&bucket), 1, "nobody is there who could store anything");
    }
}

#[tokio::test]
async fn a_playlist_goes_on_without_what_is_refused_for_good() {
    for kind in [Kind::Live, Kind::Event, Kind::Vod] {
        let mut bench = Bench::new(terms(kind), kind != Kind::Vod);
        let first = bench.append(true).await;
        bench.bucket.with(|contents| contents.never_taken = Some(format!("/{}-", first + 2)));
        for place in 1..6 {
            let number = bench.append(true).await;
            if kind != Kind::Vod && place != 2 {
                let is_listed = |bench: &Bench| bench.last_playlist().contains(&format!("\n{number}-"));
                bench.wait_for("it is listed at once", is_listed).await;
            }
        }
        let told = bench.finish().await;
        let lacks = format!("the copy lacks segment {} of stream `door` (5 packets): BadThing (400)", first + 2);
        // Of its packets, and of the file where that is asked for before they come: each once, however often it is refused.
        assert!(told.contains(&lacks) && told.len() <= 2, "{kind:?}: {told:?}");
        assert_eq!((bench.counts().delivered, bench.counts().lost), (5 * PACKETS, PACKETS), "{kind:?}");
        let last = bench.last_playlist();
        assert!(last.ends_with("#EXT-X-ENDLIST\n"), "{last}");
        if kind != Kind::Live {
            let gap = format!("#EXT-X-GAP\n{}-", first + 2);
            assert!(last.contains(&gap) && last.matches("#EXTINF").count() == 6, "{last}");
        }
        bench.assert_tidy();
    }
}

#[tokio::test]
async fn segments_without_their_initialisation_are_gaps() {
    let mut bench = Bench::new(terms(Kind::Event), true);
    bench.bucket.with(|contents| contents.never_taken = Some("/init-1-".to_owned()));
    for round in 0..6_u64 {
        bench.init = Bytes::from(format!("init {}", round / 2));
        bench.append(true).await;
    }
    let told = bench.finish().await;
    assert!(told.len() == 1 && told[0].starts_with("the copy lacks `init-1-"), "{told:?}");
    assert_eq!(bench.counts().delivered, 6 * PACKETS);
    let last = bench.last_playlist();
    assert_eq!((last.matches("#EXT-X-GAP").count(), last.matches("#EXTINF").count()), (2, 6), "{last}");
    assert!(last.matches("#EXT-X-MAP").count() == 2 && !last.contains("init-1-"), "{last}");
}

#[tokio::test]
async fn an_event_is_listed_while_storing_is_behind() {
    let mut bench = Bench::new(terms(Kind::Event), true);
    let leave = Arc::new(Semaphore::new(0));
    bench.bucket.with(|contents| contents.leave = Some(leave.clone()));
    for _ in 0..4 {
        bench.append(true).await;
    }
    // Its initialisation, a segment, and the playlist.
    leave.add_permits(3);
    bench.wait_for("a playlist", |bench| bench.last_playlist().matches("#EXTINF").count() == 1).await;
    for _ in 0..3 {
        bench.append(true).await;
    }
    leave.add_permits(2);
    bench.wait_for("the next one", |bench| bench.last_playlist().matches("#EXTINF").count() == 2).await;
    leave.add_permits(1000);
    assert_eq!(bench.finish().await, Vec::<String>::new());
    assert_eq!(bench.counts().delivered, 7 * PACKETS);
    bench.assert_tidy();
}

#[tokio::test]
async fn a_copy_that_breaks_off_takes_no_other_with_it() {
    let mut bench = Bench::new(terms(Kind::Event), true);
    bench.bucket.with(|contents| contents.deadly = Some("door/".to_owned()));
    let gate = StreamId::new("gate").unwrap();
    let published = bench.playlists.publish(&bench.shelf, &gate, &bench.terms, bench.clock.now());
    let writing = published.unwrap_or_else(|other| panic!("`{other}` has it")).0;
    bench.append(true).await;
    bench.wait_for("it breaks off", |bench| bench.counts().lost == PACKETS).await;
    bench.bucket.with(|contents| contents.is_down = true);
    for _ in 0..2 {
        bench.append_to(&gate, &writing, true).await;
    }
    writing.end(bench.clock.now());
    let bucket = bench.bucket.clone();
    let back = tokio::spawn(async move {
        while bucket.with(|contents| contents.attempts < 20) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bucket.with(|contents| contents.is_down = false);
    });
    let told = bench.finish().await;
    back.await.unwrap();
    assert!(told.iter().any(|told| told.contains("the copy of stream `door` broke off")), "{told:?}");
    assert_eq!((bench.counts().delivered, bench.counts().lost), (2 * PACKETS, PACKETS));
}

#[tokio::test]
async fn a_copy_that_broke_off_begins_anew() {
    let mut bench = Bench::new(terms(Kind::Event), true);
    bench.bucket.with(|contents| contents.deadly = Some("door/".to_owned()));
    bench.append(true).await;
    bench.wait_for("it breaks off", |bench| bench.counts().lost == PACKETS).await;
    bench.bucket.with(|contents| contents.deadly = None);
    for _ in 0..3 {
        bench.append(true).await;
    }
    let told = bench.finish().await;
    assert!(told.iter().any(|told| told.contains("the copy of stream `door` broke off")), "{told:?}");
    // One finds that it broke off.
    assert_eq!((bench.counts().delivered, bench.counts().lost), (2 * PACKETS, 2 * PACKETS));
    assert_eq!(bench.bucket.with(|contents| contents.segments.len()), 4);
    bench.assert_tidy();
}
