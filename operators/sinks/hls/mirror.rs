//! A copy of what an `hls` sink publishes, in a folder or a bucket of S3: for web servers and content delivery networks
//! that serve it without the engine.
//!
//! A task for each stream looks at what is published, stores the files that a player needs, and then the playlist, so that
//! no stored playlist lists what is not there. A packet is delivered when its segment lies there too. What has left a live
//! playlist is deleted when no player can want it any more.
//!
//! Names never mean two things: each has the version that is beside it in the address under which the engine publishes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::store::{Asked, Found, Published, Served};
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

/// What went wrong and was not told yet; more of it is not kept.
const MOST_UNTOLD: usize = 64;
/// Segments of a stream that wait to be stored; then the sink waits.
const QUEUE: usize = 256;
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
    pub fn start(&self) -> Result<Mirror, StartError> {
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
        Ok(Mirror { copies: self.clone(), storage, tell, untold, streams: BTreeMap::new(), ending: Vec::new() })
    }
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
    storage: Arc<dyn Storage>,
    tell: mpsc::Sender<SinkError>,
    untold: mpsc::Receiver<SinkError>,
    streams: BTreeMap<StreamId, (mpsc::Sender<PublishedPart>, JoinHandle<()>)>,
    /// Of streams that have ended.
    ending: Vec<(StreamId, JoinHandle<()>)>,
}

impl Mirror {
    /// Another segment, or part of one, is published: its packets are delivered when the copy has the segment too.
    pub async fn store(&mut self, stream: &StreamId, published: &Arc<Published>, part: PublishedPart) {
        if !self.streams.contains_key(stream) {
            let (sender, receiver) = mpsc::channel(QUEUE);
            self.ending.retain(|(_, task)| !task.is_finished());
            // What is left of the stream from before comes first.
            let before = self.ending.iter().position(|(ended, _)| ended == stream);
            let before = before.map(|position| self.ending.swap_remove(position).1);
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
            let copy = Copy {
                stream: stream.clone(),
                prefix: name.trim_matches('/').to_owned(),
                published: published.clone(),
                storage: self.storage.clone(),
                retry: self.copies.retry.clone(),
                clock: self.copies.clock.clone(),
                tell: self.tell.clone(),
                segments: BTreeMap::new(),
                inits: BTreeMap::new(),
                stored: BTreeSet::new(),
                playlist: None,
                next: None,
            };
            let task = tokio::spawn(async move {
                if let Some(before) = before {
                    // One that broke off lost what it had.
                    let _ = before.await;
                }
                copy.follow(receiver).await;
            });
            self.streams.insert(stream.clone(), (sender, task));
        }
        if let Some((sender, _)) = self.streams.get(stream) {
            // The task ends only with its sender; if it broke off, the acks say that the packets are lost.
            let _ = sender.send(part).await;
        }
    }

    /// The stream has ended: what is left is stored, and the playlist for the last time.
    pub fn end(&mut self, stream: &StreamId) {
        if let Some((_, task)) = self.streams.remove(stream) {
            self.ending.push((stream.clone(), task));
        }
    }

    /// Waits until something went wrong.
    pub async fn told(&mut self) -> SinkError {
        match self.untold.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Waits until everything is stored or given up; something that went wrong meanwhile.
    pub async fn finish(&mut self) -> Option<SinkError> {
        let streams: Vec<StreamId> = self.streams.keys().cloned().collect();
        streams.iter().for_each(|stream| self.end(stream));
        for (_, task) in self.ending.drain(..) {
            if let Err(error) = task.await {
                let message = format!("storing a copy broke off: {error}");
                return Some(SinkError { message, hint: Some("look into the log".to_owned()) });
            }
        }
        self.untold.try_recv().ok()
    }
}

/// What was published of a stream at once.
pub struct PublishedPart {
    pub acks: Vec<Ack>,
    /// Whether its segment is complete with it: only then it can be stored.
    pub completes: bool,
}

/// The copy of one stream.
struct Copy {
    stream: StreamId,
    prefix: String,
    published: Arc<Published>,
    storage: Arc<dyn Storage>,
    retry: Retry,
    clock: Arc<dyn Clock>,
    tell: mpsc::Sender<SinkError>,
    /// The names that segments have there, by their number; those that lie there.
    segments: BTreeMap<u64, String>,
    /// The names that initialisations have there, by the names that they are published under.
    inits: BTreeMap<String, String>,
    /// What lies there.
    stored: BTreeSet<String>,
    /// The playlist that lies there.
    playlist: Option<String>,
    /// The number of the next segment.
    next: Option<u64>,
}

impl Copy {
    async fn follow(mut self, mut parts: mpsc::Receiver<PublishedPart>) {
        let mut taken = Vec::new();
        // Packets of the segment that is not complete yet.
        let mut held = Vec::new();
        while parts.recv_many(&mut taken, QUEUE).await > 0 {
            let stored = self.catch_up().await;
            let mut complete = Vec::new();
            for part in taken.drain(..) {
                held.extend(part.acks);
                if part.completes {
                    complete.append(&mut held);
                }
            }
            match stored {
                Ok(()) => self.deliver(complete),
                // What is not complete is tried again with the next part.
                Err(_) if complete.is_empty() => {}
                Err(error) => self.lose(&error, complete),
            }
        }
        // The stream has ended, and its playlist says so.
        match self.catch_up().await {
            Ok(()) => self.deliver(held),
            Err(error) if held.is_empty() => {
                self.fail(&error, &format!("the copy of stream `{}` lacks its end", self.stream));
            }
            Err(error) => self.lose(&error, held),
        }
    }

    fn deliver(&self, acks: Vec<Ack>) {
        let now = self.clock.now();
        acks.into_iter().for_each(|ack| ack.deliver(now));
    }

    /// Dropped, and with that lost.
    fn lose(&self, error: &StorageError, acks: Vec<Ack>) {
        self.fail(error, &format!("the copy lacks {} packets of stream `{}`", acks.len(), self.stream));
    }

    fn fail(&self, error: &StorageError, lost: &str) {
        let _ = self.tell.try_send(error.of_sink(lost));
    }

    /// Stores what is published and not there, then the playlist; and deletes what nobody can want any more.
    async fn catch_up(&mut self) -> Result<(), StorageError> {
        let playlist = match self.published.file("index.m3u8", &Asked::default(), self.clock.now()) {
            Found::Playlist(served) => Some(text(&served)),
            _ => None,
        };
        let first = playlist.as_deref().and_then(first_number);
        let mut number = *self.next.get_or_insert(first.unwrap_or(0));
        // Where so much was missed that it is gone already.
        number = number.max(first.unwrap_or(0));
        let last = playlist.as_deref().map_or(0, last_number);
        loop {
            let Some((name, served)) = self.segment(number) else {
                // What could not be kept is listed without being there.
                if number < last {
                    number += 1;
                    continue;
                }
                break;
            };
            let target = copied_name(&name, &served);
            let media_type = if name.ends_with(".ts") { "video/mp2t" } else { "video/iso.segment" };
            self.put(&target, body(&served).await?, media_type, FOR_EVER).await?;
            self.stored.insert(target.clone());
            self.segments.insert(number, target);
            number += 1;
            self.next = Some(number);
        }
        if let Some(playlist) = playlist {
            self.list(&playlist).await?;
        }
        self.forget().await;
        Ok(())
    }

    /// A segment, and the name that it is published under.
    fn segment(&self, number: u64) -> Option<(String, Served)> {
        ["m4s", "ts"].iter().find_map(|extension| {
            let name = format!("{number}.{extension}");
            match self.published.file(&name, &Asked::default(), self.clock.now()) {
                Found::Segment(served) => Some((name, served)),
                _ => None,
            }
        })
    }

    /// Stores the playlist, with the names that files have here, once all that it lists is here.
    async fn list(&mut self, playlist: &str) -> Result<(), StorageError> {
        let mut copied = String::with_capacity(playlist.len());
        let mut is_gap = false;
        for line in playlist.lines() {
            if IS_LIVE_ONLY.iter().any(|tag| line.starts_with(tag)) {
                continue;
            }
            if let Some(rest) = line.strip_prefix("#EXT-X-MAP:URI=\"") {
                let published = rest.split(['"', '?']).next().unwrap_or_default();
                let name = self.init(published).await?;
                copied.push_str(&format!("#EXT-X-MAP:URI=\"{name}\"\n"));
            } else if line.starts_with('#') || line.is_empty() || std::mem::take(&mut is_gap) {
                is_gap |= line == "#EXT-X-GAP";
                copied.push_str(line);
                copied.push('\n');
            } else {
                let number = line.split('.').next().and_then(|number| number.parse().ok());
                match number.and_then(|number: u64| self.segments.get(&number)) {
                    Some(name) => {
                        copied.push_str(name);
                        copied.push('\n');
                    }
                    // It comes with the next look.
                    None => return Ok(()),
                }
            }
        }
        if self.playlist.as_ref() != Some(&copied) {
            let bytes = Body::Bytes(copied.clone().into());
            self.put("index.m3u8", bytes, "application/vnd.apple.mpegurl", ASK_AGAIN).await?;
            self.playlist = Some(copied);
        }
        Ok(())
    }

    /// The name that an initialisation has here, where it is stored unless it is there.
    async fn init(&mut self, published: &str) -> Result<String, StorageError> {
        if let Some(name) = self.inits.get(published) {
            return Ok(name.clone());
        }
        let Found::Init(served) = self.published.file(published, &Asked::default(), self.clock.now()) else {
            return Ok(published.to_owned());
        };
        let name = copied_name(published, &served);
        if !self.stored.contains(&name) {
            self.put(&name, body(&served).await?, "video/mp4", FOR_EVER).await?;
            self.stored.insert(name.clone());
        }
        self.inits.insert(published.to_owned(), name.clone());
        Ok(name)
    }

    /// Deletes the segments that the engine itself has forgotten.
    async fn forget(&mut self) {
        let now = self.clock.now();
        let is_over = |number: u64| {
            let names = ["m4s", "ts"].map(|extension| format!("{number}.{extension}"));
            !names.iter().any(|name| matches!(self.published.file(name, &Asked::default(), now), Found::Segment(_)))
        };
        let over: Vec<u64> = self.segments.keys().copied().filter(|number| is_over(*number)).collect();
        for number in over {
            let Some(name) = self.segments.remove(&number) else { continue };
            self.stored.remove(&name);
            if let Err(error) = self.storage.delete(&self.key(&name)).await {
                tracing::warn!(stream = %self.stream, "what no playlist lists any more is not deleted: {error}");
            }
        }
    }

    fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }

    async fn put(&self, name: &str, body: Body, media_type: &str, cache: &'static str) -> Result<(), StorageError> {
        let key = self.key(name);
        self.retry.run("cannot store", || self.storage.put_cached(&key, &body, media_type, cache)).await
    }
}

/// What a playlist says to those who ask the engine itself.
const IS_LIVE_ONLY: [&str; 5] =
    ["#EXT-X-PART", "#EXT-X-PRELOAD-HINT", "#EXT-X-SERVER-CONTROL", "#EXT-X-RENDITION-REPORT", "#EXT-X-SKIP"];

/// The name that a file has in the copy: with its version, since a web server of files does not look at queries.
fn copied_name(name: &str, served: &Served) -> String {
    match (name.rsplit_once('.'), &served.version) {
        (Some((stem, extension)), Some(version)) => format!("{stem}-{version}.{extension}"),
        _ => name.to_owned(),
    }
}

/// A playlist, which is always in memory.
fn text(served: &Served) -> String {
    served.read(0..served.length()).map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn first_number(playlist: &str) -> Option<u64> {
    playlist.lines().find_map(|line| line.strip_prefix("#EXT-X-MEDIA-SEQUENCE:")?.parse().ok())
}

/// The number of the last segment that is listed.
fn last_number(playlist: &str) -> u64 {
    let listed = playlist.lines().rev().filter(|line| !line.starts_with('#'));
    listed.filter_map(|line| line.split('.').next()?.parse().ok()).next().unwrap_or(0)
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
