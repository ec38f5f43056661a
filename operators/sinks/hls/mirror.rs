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

mod copied_playlist;
mod held;
mod hurry;
mod lying;
mod stream_copy;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use held::Held;
use hurry::{Hurried, Hurry};
use lying::Lying;
use stream_copy::{Left, StreamCopy};

use super::owned_task::OwnedTask;
use super::playlist::Kind;
use super::store::Published;
use super::{MOST_UNTOLD, joined};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::error::{FieldError, SinkError, StartError};
use crate::item::{Origin, StreamId};
use crate::lease::Ack;
use crate::operator::{BuildContext, Resource, Trouble};
use crate::sinks::file::identity;
use crate::storage::folder::Folder;
use crate::storage::location::{S3Location, is_s3};
use crate::storage::retry::{BACKOFF, Retry};
use crate::storage::s3::{Access, S3};
use crate::storage::{Storage, runtime};
use crate::template::{Placeholder, Template, Values};

/// What comes in real time is behind by as much as its place is asked too late whether it is back.
const LIVE_BACKOFF: Backoff = Backoff { first: BACKOFF.first, most: Duration::from_secs(4) };
/// Streams that have ended of which it is known what lies there.
const MOST_ENDED: usize = 1024;

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

/// The task of a stream, which may wait for the last time that a segment can be wanted. It ends with the sink: what it
/// stored after that could be in the place of what somebody else stores there by then.
struct Ended {
    task: OwnedTask<Left>,
    hurry: watch::Sender<Hurry>,
}

impl Ended {
    /// What is left when everything is stored, given up or handed over to whoever is in a hurry; `Err`: why that is not
    /// known.
    async fn now(self, hurry: Hurry) -> Result<Left, tokio::task::JoinError> {
        self.hurry.send_replace(hurry);
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
                lacking: BTreeSet::new(),
                former: BTreeSet::new(),
                listed: BTreeSet::new(),
                playlist: None,
                failures: 0,
            };
            let copy = StreamCopy {
                published: published.clone(),
                first: part.number,
                pace: self.pace,
                retry: self.copies.retry.clone(),
                clock: self.copies.clock.clone(),
                tell: self.tell.clone(),
                is_down: false,
                is_stopped: false,
                refused: BTreeSet::new(),
                lying,
            };
            let (hurry, hurried) = watch::channel(Hurry::default());
            let hurried = Hurried::new(hurried, published, self.pace.is_live);
            let mut held = Held::new(published.clone(), self.copies.clock.clone(), self.pace);
            let successor = Hurry::Successor(Arc::downgrade(published));
            let task = OwnedTask::spawn(async move {
                let (mut copy, mut receiver) = (copy, receiver);
                if let Some(before) = before {
                    match held.meanwhile(&mut receiver, None, before.now(successor)).await {
                        Ok(left) => copy.take_over(left, &mut held),
                        // Nobody knows what it left.
                        Err(error) => drop(copy.tell.try_send(broken_off(&copy.lying.stream, &error))),
                    }
                }
                copy.follow(held, receiver, hurried).await
            });
            self.streams.insert(stream.clone(), Following { parts: sender, task: Ended { task, hurry } });
        }
        // Of what comes in real time the task takes everything at once. It ends only with its sender; if it broke off, the
        // acks say that the packets are lost, and what comes next is copied by another one.
        if let Some(following) = self.streams.get(stream)
            && following.parts.send(part).await.is_err()
        {
            self.end(stream);
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
        let mut broken = Vec::new();
        for (stream, ended) in self.ended.drain(..) {
            match ended.now(Hurry::Sink).await {
                Ok(mut left) => left.lying.clean().await,
                Err(error) => broken.push(broken_off(&stream, &error)),
            }
        }
        joined(broken.into_iter().chain(std::iter::from_fn(|| self.untold.try_recv().ok())))
    }
}

fn broken_off(stream: &StreamId, error: &tokio::task::JoinError) -> SinkError {
    let message = format!("storing the copy of stream `{stream}` broke off: {error}");
    SinkError { message, hint: Some("look into the log".to_owned()) }
}

/// What was published of a stream at once.
pub struct PublishedPart {
    /// The segment that it is, or is a part of.
    pub number: u64,
    pub acks: Vec<Ack>,
}

#[cfg(test)]
mod tests;
