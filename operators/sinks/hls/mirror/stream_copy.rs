//! The task that copies one stream: segments as they are published, and the playlist behind them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::copied_playlist::{GAP, copied_name, map_of, media_type, parts_of, with_version};
use super::held::{Held, Missed, Segment};
use super::lying::Lying;
use super::{Pace, PublishedPart};
use crate::clock::Clock;
use crate::error::SinkError;
use crate::sinks::hls::playlist::Kind;
use crate::sinks::hls::store::{Asked, Found, Published, Served};
use crate::storage::Body;
use crate::storage::error::StorageError;
use crate::storage::retry::Retry;

/// How often somebody looks whether the last segments of a stream that has ended may go.
const LOOK: Duration = Duration::from_secs(5);
/// What is at a name stays what it is.
const FOR_EVER: &str = "public, max-age=31536000, immutable";
const ASK_AGAIN: &str = "no-cache";

/// A file that is to be stored.
struct Wanted {
    /// The segment whose packets wait for it.
    number: Option<u64>,
    /// What it is called there.
    name: String,
    served: Served,
    media_type: &'static str,
}

/// The copy of one stream.
pub struct StreamCopy {
    pub published: Arc<Published>,
    pub pace: Pace,
    pub retry: Retry,
    pub clock: Arc<dyn Clock>,
    pub tell: mpsc::Sender<SinkError>,
    /// Whether the place was tried in vain for as long as it may be: then nothing is tried for long until it is back.
    pub is_down: bool,
    /// Whether something that only the playlist asks for was refused since something came.
    pub is_refused: bool,
    pub lying: Lying,
}

impl StreamCopy {
    /// Stores what is published, until nothing more comes and a moment longer: until what is listed no more can go, or
    /// somebody is in a hurry.
    pub async fn follow(
        mut self,
        mut parts: mpsc::Receiver<PublishedPart>,
        mut hurried: oneshot::Receiver<()>,
    ) -> Lying {
        let mut held = Held::new(self.published.clone(), self.clock.clone(), self.pace);
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
