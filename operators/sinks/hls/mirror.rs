//! A copy of what an `hls` sink publishes, in a folder or a bucket of S3: for web servers and content delivery networks
//! that serve it without the engine.
//!
//! A task for each stream looks at what is published, stores the files that a player needs, and then the playlist, so that
//! no stored playlist lists what is not there. A packet is delivered when its own segment lies there too; where the engine
//! forgets that before it could be stored, it is lost. What has left a live playlist is deleted when no player can want it
//! any more.
//!
//! While one file is tried again and again the task goes on to take what is published, so that a place that is down holds
//! no camera up. What is read from a file waits instead: nothing of it has to be lost.
//!
//! Names never mean two things: each has the version that is beside it in the address under which the engine publishes it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::playlist::Kind;
use super::store::{Asked, Found, Published, Served};
use super::{MOST_UNTOLD, joined};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::error::{FieldError, SinkError, StartError};
use crate::item::{Origin, StreamId};
use crate::lease::Ack;
use crate::operator::{BuildContext, Resource, Trouble};
use crate::sinks::file::identity;
use crate::storage::error::StorageError;
use crate::storage::folder::Folder;
use crate::storage::location::{S3Location, is_s3};
use crate::storage::retry::{BACKOFF, Retry};
use crate::storage::s3::{Access, S3};
use crate::storage::{Body, Storage, runtime};
use crate::template::{Placeholder, Template, Values};

/// Segments of a file that wait to be stored; then the sink waits.
const QUEUE: usize = 256;
/// The same where the playlist is a live one: fewer than it lists, so that none is forgotten meanwhile.
const LIVE_QUEUE: usize = 1;
/// Segments of a camera whose packets wait for their verdict: as many as last for an hour where each has four seconds.
const MOST_HELD: usize = 1024;
/// What comes in real time is behind by as much as its place is asked too late whether it is back.
const LIVE_BACKOFF: Backoff = Backoff { first: BACKOFF.first, most: Duration::from_secs(4) };
/// How often somebody looks whether the last segments of a stream that has ended may go.
const LOOK: Duration = Duration::from_secs(5);
/// Streams that have ended of which it is known what lies there.
const MOST_ENDED: usize = 1024;
/// What is at a name stays what it is.
const FOR_EVER: &str = "public, max-age=31536000, immutable";
const ASK_AGAIN: &str = "no-cache";

/// Where copies go.
#[derive(Clone)]
pub enum Place {
    Folder { folder: Arc<Folder>, root: PathBuf },
    Bucket(Arc<S3>),
}

/// How copies are made.
#[derive(Clone)]
pub struct Copies {
    pub place: Place,
    /// The folder of a stream in it.
    pub prefix: Template,
    pub retry: Retry,
    pub origin: Origin,
    pub clock: Arc<dyn Clock>,
}

impl Copies {
    /// Looks whether anything can be stored.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn start(&self, pace: Pace) -> Result<Mirror, StartError> {
        let storage: Arc<dyn Storage> = match &self.place {
            Place::Folder { folder, .. } => {
                folder.prepare().map_err(|error| error.at_start("files cannot be written into"))?;
                folder.clone()
            }
            Place::Bucket(bucket) => {
                let checked = bucket.clone();
                runtime::wait_for(async move { checked.check().await })
                    .map_err(|error| error.at_start("objects cannot be stored:"))?;
                bucket.clone()
            }
        };
        let (tell, untold) = mpsc::channel(MOST_UNTOLD);
        let mut copies = self.clone();
        if pace.is_live {
            copies.retry.backoff = LIVE_BACKOFF;
        }
        Ok(Mirror { copies, pace, storage, tell, untold, streams: BTreeMap::new(), ended: Vec::new() })
    }
}

/// How what is copied comes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Whether it comes in real time: then nobody waits for copies.
    pub is_live: bool,
    pub kind: Kind,
}

impl Copies {
    /// What it owns alone.
    pub fn resource(&self) -> Resource {
        let name = self.prefix.of_node(&self.origin.graph, &self.origin.node);
        match &self.place {
            Place::Folder { root, .. } => Resource::Path(identity(&root.join(name))),
            Place::Bucket(bucket) => Resource::Object(format!("{}/{name}", bucket.identity())),
        }
    }
}

/// The copies that `storage` asks for. Relative folders are relative to that of the graph.
///
/// # Errors
/// What is wrong with it.
pub fn copies(
    context: &BuildContext,
    storage: &str,
    access: Access,
    retry_for: Duration,
) -> Result<Copies, Vec<FieldError>> {
    let hint = "write a folder such as \"out/{stream}\", or \"s3://bucket/prefix/{stream}\"";
    let wrong = |message: String| vec![FieldError::new("storage", message).hint(hint)];
    if storage.is_empty() || storage.contains('\0') {
        return Err(wrong("`storage` names no folder".to_owned()));
    }
    let template = |text: &str| -> Result<Template, Vec<FieldError>> {
        let known = &[Placeholder::Graph, Placeholder::Node, Placeholder::Stream];
        let parsed = Template::parse(text, known).map_err(&wrong)?;
        if parsed.has(Placeholder::Stream) {
            return Ok(parsed);
        }
        let text = if text.is_empty() || text.ends_with('/') { text.to_owned() } else { format!("{text}/") };
        Template::parse(&format!("{text}{{stream}}"), known).map_err(&wrong)
    };
    let (place, prefix) = if is_s3(storage) {
        let S3Location { bucket, key } = S3Location::of_field("storage", storage).map_err(|error| vec![error])?;
        (Place::Bucket(Arc::new(S3::new(&bucket, "storage", access)?)), template(&key)?)
    } else if storage.contains("://") {
        return Err(wrong(format!("`{storage}` is no place for files")));
    } else {
        let (written, prefix) = template(storage)?.split_folder();
        let root = context.folder.join(&written);
        (Place::Folder { folder: Arc::new(Folder::new(written, &root)), root }, prefix)
    };
    let retry = Retry {
        retry_for,
        clock: context.clock.clone(),
        trouble: Trouble::default(),
        node: context.origin.node.clone(),
        backoff: BACKOFF,
    };
    Ok(Copies { place, prefix, retry, origin: context.origin.clone(), clock: context.clock.clone() })
}

/// The copies of one sink's streams.
pub struct Mirror {
    copies: Copies,
    pace: Pace,
    storage: Arc<dyn Storage>,
    tell: mpsc::Sender<SinkError>,
    untold: mpsc::Receiver<SinkError>,
    streams: BTreeMap<StreamId, Following>,
    ended: Vec<(StreamId, Ended)>,
}

/// A stream that is copied.
struct Following {
    parts: mpsc::Sender<PublishedPart>,
    task: Ended,
}

/// The task of a stream, which may wait for the last time that a segment can be wanted.
struct Ended {
    task: JoinHandle<Lying>,
    /// Ends that wait.
    hurry: oneshot::Sender<()>,
}

impl Ended {
    /// What lies there when everything is stored or given up; `Err`: why that is not known.
    async fn now(self) -> Result<Lying, tokio::task::JoinError> {
        // One that does not wait any more hears nothing.
        let _ = self.hurry.send(());
        self.task.await
    }
}

impl Mirror {
    /// Another segment, or part of one, is published: its packets are delivered when the copy has the segment too.
    pub async fn store(&mut self, stream: &StreamId, published: &Arc<Published>, part: PublishedPart) {
        if !self.streams.contains_key(stream) {
            let (sender, receiver) = mpsc::channel(1);
            // What is left of the stream from before comes first.
            let before = self.ended.iter().position(|(ended, _)| ended == stream);
            let before = before.map(|position| self.ended.remove(position).1);
            let origin = &self.copies.origin;
            let name = self.copies.prefix.render(&Values {
                graph: &origin.graph,
                node: &origin.node,
                stream,
                name: "",
                index: 0,
                seq: 0,
                time: self.copies.clock.wall(),
            });
            let lying = Lying {
                stream: stream.clone(),
                prefix: name.trim_matches('/').to_owned(),
                storage: self.storage.clone(),
                published: Arc::downgrade(published),
                stored: BTreeSet::new(),
                former: BTreeSet::new(),
                listed: BTreeSet::new(),
                playlist: None,
                failures: 0,
            };
            let copy = Copy {
                published: published.clone(),
                pace: self.pace,
                retry: self.copies.retry.clone(),
                clock: self.copies.clock.clone(),
                tell: self.tell.clone(),
                is_down: false,
                is_refused: false,
                lying,
            };
            let (hurry, hurried) = oneshot::channel();
            let task = tokio::spawn(async move {
                let mut copy = copy;
                // Of one that broke off nobody knows what it left.
                if let Some(before) = before
                    && let Ok(before) = before.now().await
                {
                    copy.lying.take_over(before);
                }
                copy.follow(receiver, hurried).await
            });
            self.streams.insert(stream.clone(), Following { parts: sender, task: Ended { task, hurry } });
        }
        if let Some(following) = self.streams.get(stream) {
            // Of what comes in real time the task takes everything at once. It ends only with its sender; if it broke off,
            // the acks say that the packets are lost.
            let _ = following.parts.send(part).await;
        }
    }

    /// The stream has ended: what is left is stored, and the playlist for the last time.
    pub fn end(&mut self, stream: &StreamId) {
        if let Some(Following { task, .. }) = self.streams.remove(stream) {
            self.ended.push((stream.clone(), task));
            while self.ended.len() > MOST_ENDED
                && let Some(oldest) = self.ended.iter().position(|(_, ended)| ended.task.is_finished())
            {
                self.ended.remove(oldest);
            }
        }
    }

    /// Waits until something went wrong.
    pub async fn told(&mut self) -> SinkError {
        match self.untold.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Waits until everything is stored or given up, and deletes what no playlist there lists; something that went wrong
    /// meanwhile.
    pub async fn finish(&mut self) -> Option<SinkError> {
        let streams: Vec<StreamId> = self.streams.keys().cloned().collect();
        streams.iter().for_each(|stream| self.end(stream));
        for (_, ended) in self.ended.drain(..) {
            match ended.now().await {
                Ok(mut lying) => lying.clean().await,
                Err(error) => {
                    let message = format!("storing a copy broke off: {error}");
                    return Some(SinkError { message, hint: Some("look into the log".to_owned()) });
                }
            }
        }
        joined(std::iter::from_fn(|| self.untold.try_recv().ok()))
    }
}

/// What was published of a stream at once.
pub struct PublishedPart {
    /// The segment that it is, or is a part of.
    pub number: u64,
    pub acks: Vec<Ack>,
}

/// Packets that are published, and not stored yet.
struct Held {
    published: Arc<Published>,
    clock: Arc<dyn Clock>,
    is_live: bool,
    /// Segments that may wait, where the sink can.
    most: usize,
    /// By the number of their segment.
    packets: BTreeMap<u64, Vec<Ack>>,
    /// What is being stored.
    storing: Option<u64>,
    /// Segments that were gone before they could be stored, until it is told.
    missed: Option<Missed>,
    /// Whether something came since this was looked at last.
    is_fresh: bool,
    /// Whether more may come.
    is_open: bool,
}

/// Segments that the copy lacks.
struct Missed {
    segments: u64,
    packets: usize,
    first: u64,
    last: u64,
}

/// What became of a segment that was published.
enum Segment {
    /// The name that it is published under, and its bytes.
    Complete(String, Served),
    Growing,
    /// It could not be kept, or is kept no longer.
    Gone,
}

fn segment(published: &Published, clock: &dyn Clock, number: u64) -> Segment {
    let mut is_gone = false;
    for extension in ["m4s", "ts"] {
        let name = format!("{number}.{extension}");
        match published.file(&name, &Asked::default(), clock.now()) {
            Found::Segment(served) => return Segment::Complete(name, served),
            found => is_gone |= matches!(found, Found::Gap | Found::Over),
        }
    }
    if is_gone { Segment::Gone } else { Segment::Growing }
}

impl Held {
    fn new(copy: &Copy) -> Held {
        Held {
            published: copy.published.clone(),
            clock: copy.clock.clone(),
            is_live: copy.pace.is_live,
            most: if copy.pace.kind == Kind::Live { LIVE_QUEUE } else { QUEUE },
            packets: BTreeMap::new(),
            storing: None,
            missed: None,
            is_fresh: false,
            is_open: true,
        }
    }

    fn segment(&self, number: u64) -> Segment {
        segment(&self.published, &*self.clock, number)
    }

    /// Waits for something, and takes meanwhile what comes.
    async fn meanwhile<T>(
        &mut self,
        parts: &mut mpsc::Receiver<PublishedPart>,
        storing: Option<u64>,
        work: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(work);
        self.storing = storing;
        let done = loop {
            tokio::select! {
                biased;
                done = &mut work => break done,
                part = parts.recv(), if self.is_open && (self.is_live || self.packets.len() < self.most) => self.take(part),
            }
        };
        self.storing = None;
        done
    }

    fn take(&mut self, part: Option<PublishedPart>) {
        // With the end too, what was refused is tried once more.
        self.is_fresh = true;
        let Some(part) = part else {
            self.is_open = false;
            return;
        };
        self.packets.entry(part.number).or_default().extend(part.acks);
        // Nobody needs to wait for the verdict on what will never be stored; and they may not become ever more.
        while let Some(number) = self.packets.keys().copied().find(|number| Some(*number) != self.storing)
            && (self.packets.len() > MOST_HELD || matches!(self.segment(number), Segment::Gone))
        {
            self.miss(number);
        }
    }

    fn miss(&mut self, number: u64) {
        let Some(acks) = self.packets.remove(&number) else { return };
        let missed = self.missed.get_or_insert(Missed { segments: 0, packets: 0, first: number, last: number });
        missed.segments += 1;
        missed.packets += acks.len();
        (missed.first, missed.last) = (missed.first.min(number), missed.last.max(number));
    }

    fn deliver(&mut self, number: u64) {
        let now = self.clock.now();
        self.packets.remove(&number).into_iter().flatten().for_each(|ack| ack.deliver(now));
    }
}

/// A file that is to be stored.
struct Wanted {
    /// The segment whose packets wait for it.
    number: Option<u64>,
    /// What it is called there.
    name: String,
    served: Served,
    media_type: &'static str,
}

/// What lies in the place of copies of one stream, as far as this sink has put it there.
struct Lying {
    stream: StreamId,
    prefix: String,
    storage: Arc<dyn Storage>,
    /// What it is a copy of.
    published: Weak<Published>,
    /// The names of its files.
    stored: BTreeSet<String>,
    /// Those of what was published before, under the same name.
    former: BTreeSet<String>,
    /// Those that the playlist there lists.
    listed: BTreeSet<String>,
    /// The playlist there, of what is published now.
    playlist: Option<String>,
    /// Files that could not be deleted.
    failures: u64,
}

impl Lying {
    /// Goes on with what was left there.
    fn take_over(&mut self, before: Lying) {
        if Weak::ptr_eq(&self.published, &before.published) {
            *self = before;
            return;
        }
        // Of those that list everything, everything stays.
        if before.playlist.as_deref().is_none_or(is_live) {
            self.former = before.former;
            self.former.extend(before.stored);
        }
        // Its files stay until another playlist is in its place.
        self.listed = before.listed;
    }

    /// What the playlist there does not list.
    fn unlisted(&self) -> Vec<String> {
        self.stored.union(&self.former).filter(|name| !self.listed.contains(*name)).cloned().collect()
    }

    /// Whether a live playlist has come to its end, and files lie there that it does not list.
    fn is_over(&self) -> bool {
        let is_over =
            self.playlist.as_ref().is_some_and(|playlist| playlist.ends_with("#EXT-X-ENDLIST\n") && is_live(playlist));
        is_over && !self.unlisted().is_empty()
    }

    /// Where a live playlist has come to its end, deletes all files that it does not list.
    async fn clean(&mut self) {
        if self.is_over() {
            self.delete(self.unlisted()).await;
        }
    }

    /// Deletes these files. What stays is tried again with the next look, if that may help.
    async fn delete(&mut self, names: Vec<String>) {
        for name in names {
            if let Err(error) = self.storage.delete(&self.key(&name)).await {
                self.failures += 1;
                if self.failures.is_power_of_two() {
                    let failures = self.failures;
                    tracing::warn!(stream = %self.stream, failures, "what no playlist lists any more is not deleted: {error}");
                }
                if error.is_temporary() {
                    return;
                }
            }
            self.stored.remove(&name);
            self.former.remove(&name);
        }
    }

    fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }

    /// A playlist with the names that files have here, as far as those are here; those names, and whether it is the whole.
    /// `None` where nothing that it lists is here.
    fn copied(&self, playlist: &str) -> Option<(String, BTreeSet<String>, bool)> {
        let (mut copied, mut names, mut is_whole) = (String::with_capacity(playlist.len()), BTreeSet::new(), true);
        // What stands before a segment, until it is clear that the segment follows.
        let (mut before, mut map, mut is_gap) = (String::new(), None, false);
        for line in playlist.lines().filter(|line| !IS_LIVE_ONLY.iter().any(|tag| line.starts_with(tag))) {
            if let Some(address) = map_of(line) {
                let name = copied_name(address);
                before.push_str(&format!("#EXT-X-MAP:URI=\"{name}\"\n"));
                map = Some(name);
            } else if line.starts_with('#') {
                let is_of_segment =
                    IS_OF_SEGMENT.iter().any(|tag| line == *tag || line.starts_with(&format!("{tag}:")));
                is_gap |= line == GAP;
                let text = if is_of_segment { &mut before } else { &mut copied };
                text.push_str(line);
                text.push('\n');
            } else {
                let name = copied_name(line);
                let is_here = std::mem::take(&mut is_gap) || self.stored.contains(&name);
                if !is_here || map.as_ref().is_some_and(|map| !self.stored.contains(map)) {
                    is_whole = false;
                    break;
                }
                copied.push_str(&before);
                copied.push_str(&name);
                copied.push('\n');
                before.clear();
                names.extend(map.take().into_iter().chain([name]));
            }
        }
        (!names.is_empty()).then_some((copied, names, is_whole))
    }
}

/// The copy of one stream.
struct Copy {
    published: Arc<Published>,
    pace: Pace,
    retry: Retry,
    clock: Arc<dyn Clock>,
    tell: mpsc::Sender<SinkError>,
    /// Whether the place was tried in vain for as long as it may be: then nothing is tried for long until it is back.
    is_down: bool,
    /// Whether something that only the playlist asks for was refused since something came.
    is_refused: bool,
    lying: Lying,
}

impl Copy {
    /// Stores what is published, until nothing more comes and a moment longer: until what is listed no more can go, or
    /// somebody is in a hurry.
    async fn follow(mut self, mut parts: mpsc::Receiver<PublishedPart>, mut hurried: oneshot::Receiver<()>) -> Lying {
        let mut held = Held::new(&self);
        loop {
            if std::mem::take(&mut held.is_fresh) {
                self.is_refused = false;
            }
            let playlist = self.playlist();
            let wanted = self.next(&mut held, playlist.as_deref());
            if let Some(missed) = held.missed.take() {
                self.tell_of(&missed);
            }
            if let Some(wanted) = wanted {
                let stored = held.meanwhile(&mut parts, wanted.number, self.put(&wanted)).await;
                let is_stored = stored.is_ok();
                self.settle(&mut held, wanted, stored);
                // A live playlist that is behind moves on with each segment.
                if is_stored && self.pace.kind == Kind::Live {
                    self.list_meanwhile(&mut held, &mut parts).await;
                }
                continue;
            }
            let is_over = !held.is_open;
            self.list_meanwhile(&mut held, &mut parts).await;
            if held.is_fresh || is_over == held.is_open {
                continue;
            }
            if is_over {
                break;
            }
            let part = parts.recv().await;
            held.take(part);
        }
        // A segment that grew when another version of the graph took over is stored by that.
        let left: Vec<u64> = held.packets.keys().copied().collect();
        left.into_iter().for_each(|number| held.deliver(number));
        drop(held);
        while self.lying.is_over() && !self.published.is_forgotten(self.clock.now()) {
            tokio::select! {
                _ = &mut hurried => return self.lying,
                () = tokio::time::sleep(LOOK) => self.forget().await,
            }
        }
        self.lying.clean().await;
        self.lying
    }

    async fn list_meanwhile(&mut self, held: &mut Held, parts: &mut mpsc::Receiver<PublishedPart>) {
        let Some(playlist) = self.playlist() else { return };
        let listed = held.meanwhile(parts, None, self.list(&playlist)).await;
        if let Err(error) = listed {
            let stream = &self.lying.stream;
            self.fail(&error, &format!("the playlist of the copy of stream `{stream}` is not up to date"));
        }
    }

    fn playlist(&self) -> Option<String> {
        match self.published.file("index.m3u8", &Asked::default(), self.clock.now()) {
            Found::Playlist(served) => Some(text(&served)),
            _ => None,
        }
    }

    /// What is to be stored next: first what packets wait for, then what else the playlist lists. Packets whose segment is
    /// stored or gone wait no longer.
    fn next(&self, held: &mut Held, playlist: Option<&str>) -> Option<Wanted> {
        for number in held.packets.keys().copied().collect::<Vec<_>>() {
            match held.segment(number) {
                Segment::Complete(name, served) => {
                    let media_type = media_type(&name);
                    let name = with_version(&name, served.version.as_deref());
                    if !self.lying.stored.contains(&name) {
                        return Some(Wanted { number: Some(number), name, served, media_type });
                    }
                    held.deliver(number);
                }
                Segment::Growing => {}
                Segment::Gone => held.miss(number),
            }
        }
        playlist.filter(|_| !self.is_refused).and_then(|playlist| self.first_missing(playlist))
    }

    /// What a playlist lists and is not here, of what is still published.
    fn first_missing(&self, playlist: &str) -> Option<Wanted> {
        let mut is_gap = false;
        playlist.lines().find_map(|line| {
            is_gap |= line == GAP;
            let address = map_of(line).or(Some(line).filter(|line| !line.starts_with('#')))?;
            if map_of(line).is_none() && std::mem::take(&mut is_gap)
                || self.lying.stored.contains(&copied_name(address))
            {
                return None;
            }
            let (name, version) = parts_of(address);
            let asked = Asked { version: version.map(str::to_owned), ..Asked::default() };
            match self.published.file(name, &asked, self.clock.now()) {
                Found::Init(served) | Found::Segment(served) => {
                    Some(Wanted { number: None, name: copied_name(address), served, media_type: media_type(name) })
                }
                _ => None,
            }
        })
    }

    async fn put(&self, wanted: &Wanted) -> Result<(), StorageError> {
        let body = body(&wanted.served).await?;
        self.store(&wanted.name, body, wanted.media_type, FOR_EVER).await
    }

    /// What became of a file, and of the packets that wait for it.
    fn settle(&mut self, held: &mut Held, wanted: Wanted, stored: Result<(), StorageError>) {
        let Err(error) = stored else {
            self.is_down = false;
            self.lying.stored.insert(wanted.name);
            wanted.number.into_iter().for_each(|number| held.deliver(number));
            return;
        };
        self.is_down |= error.is_temporary();
        let Some(number) = wanted.number else {
            self.is_refused = true;
            self.fail(&error, &format!("the copy lacks `{}` of stream `{}`", wanted.name, self.lying.stream));
            return;
        };
        held.miss(number);
        if error.is_temporary() {
            // So does all that waited with it.
            let complete =
                held.packets.keys().copied().filter(|other| !matches!(held.segment(*other), Segment::Growing));
            complete.collect::<Vec<_>>().into_iter().for_each(|other| held.miss(other));
            self.is_refused = true;
        }
        if let Some(missed) = held.missed.take() {
            self.fail(&error, &missed.text(&self.lying.stream));
        }
    }

    fn tell_of(&self, missed: &Missed) {
        let stream = &self.lying.stream;
        let message = format!("{}: they were gone before they could be stored", missed.text(stream));
        let hint = "look why the place was not there or too slow; with a longer `window` a live playlist keeps segments for \
                    longer";
        let _ = self.tell.try_send(SinkError { message, hint: Some(hint.to_owned()) });
    }

    fn fail(&self, error: &StorageError, lost: &str) {
        let _ = self.tell.try_send(error.of_sink(lost));
    }

    /// Stores the playlist, with the names that files have here, once what it lists is here; and deletes what nobody can
    /// want any more.
    async fn list(&mut self, playlist: &str) -> Result<(), StorageError> {
        if let Some((copied, names, is_whole)) = self.lying.copied(playlist)
            // One that is cut short must not take the place of what somebody else knows more of.
            && (is_whole || self.lying.playlist.is_some())
            && self.lying.playlist.as_ref() != Some(&copied)
        {
            let bytes = Body::Bytes(copied.clone().into());
            self.store("index.m3u8", bytes, "application/vnd.apple.mpegurl", ASK_AGAIN).await?;
            (self.lying.playlist, self.lying.listed) = (Some(copied), names);
        }
        self.forget().await;
        Ok(())
    }

    /// Deletes what the engine itself has forgotten, and what was published before.
    async fn forget(&mut self) {
        let now = self.clock.now();
        let is_kept = |name: &String| {
            let Some((stem, extension)) = name.rsplit_once('.') else { return false };
            let found = |published: String, version: Option<String>| {
                let asked = Asked { version, ..Asked::default() };
                matches!(self.published.file(&published, &asked, now), Found::Segment(_) | Found::Init(_))
            };
            match stem.rsplit_once('-').filter(|(stem, _)| *stem != "init") {
                Some((stem, version)) => found(format!("{stem}.{extension}"), Some(version.to_owned())),
                None => found(name.clone(), None),
            }
        };
        if self.lying.playlist.is_none() {
            // The playlist there is that of somebody else.
            return;
        }
        let over = self.lying.unlisted().into_iter().filter(|name| !is_kept(name)).collect();
        self.lying.delete(over).await;
    }

    async fn store(&self, name: &str, body: Body, media_type: &str, cache: &'static str) -> Result<(), StorageError> {
        let key = self.lying.key(name);
        let storage = &self.lying.storage;
        let mut retry = self.retry.clone();
        if self.is_down {
            retry.retry_for = Duration::ZERO;
        }
        retry.run("cannot store", || storage.put_cached(&key, &body, media_type, cache)).await
    }
}

impl Missed {
    fn text(&self, stream: &StreamId) -> String {
        let Missed { segments, packets, first, last } = self;
        match segments {
            1 => format!("the copy lacks segment {first} of stream `{stream}` ({packets} packets)"),
            _ => format!(
                "the copy lacks {segments} segments of stream `{stream}`, {first} to {last} ({packets} packets)"
            ),
        }
    }
}

/// What a playlist says to those who ask the engine itself.
const IS_LIVE_ONLY: [&str; 5] =
    ["#EXT-X-PART", "#EXT-X-PRELOAD-HINT", "#EXT-X-SERVER-CONTROL", "#EXT-X-RENDITION-REPORT", "#EXT-X-SKIP"];
/// What it says of the segment that follows.
const IS_OF_SEGMENT: [&str; 4] = ["#EXT-X-DISCONTINUITY", "#EXT-X-PROGRAM-DATE-TIME", "#EXTINF", GAP];
const GAP: &str = "#EXT-X-GAP";

fn is_live(playlist: &str) -> bool {
    !playlist.contains("#EXT-X-PLAYLIST-TYPE")
}

/// The address of an initialisation, in the line that names it.
fn map_of(line: &str) -> Option<&str> {
    line.strip_prefix("#EXT-X-MAP:URI=\"")?.split('"').next()
}

/// The name of a file, and its version.
fn parts_of(address: &str) -> (&str, Option<&str>) {
    match address.split_once("?v=") {
        Some((name, version)) => (name, Some(version)),
        None => (address, None),
    }
}

/// The name that a file has in the copy: with its version, since a web server of files does not look at queries.
fn copied_name(address: &str) -> String {
    let (name, version) = parts_of(address);
    with_version(name, version)
}

fn with_version(name: &str, version: Option<&str>) -> String {
    match (name.rsplit_once('.'), version) {
        (Some((stem, extension)), Some(version)) => format!("{stem}-{version}.{extension}"),
        _ => name.to_owned(),
    }
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "ts")) => "video/mp2t",
        Some((_, "mp4")) => "video/mp4",
        _ => "video/iso.segment",
    }
}

/// A playlist, which is always in memory.
fn text(served: &Served) -> String {
    served.read(0..served.length()).map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// All bytes of a file, which may lie on the disk.
async fn body(served: &Served) -> Result<Body, StorageError> {
    let all = 0..served.length();
    let read = if served.is_in_file() {
        let served = served.clone();
        let read = tokio::task::spawn_blocking(move || served.read(all)).await;
        read.unwrap_or_else(|error| Err(std::io::Error::other(error)))
    } else {
        served.read(all)
    };
    read.map(Body::Bytes).map_err(|error| StorageError::of_system("a segment in a temporary file", &error))
}

#[cfg(test)]
mod tests;
