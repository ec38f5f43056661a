//! The task that copies one stream: segments as they are published, and the playlist behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;

use super::copied_playlist::{addresses, copied_name, map_of, media_type, number_of, parts_of, with_version};
use super::held::{Held, Missed, Segment};
use super::hurry::{Hurried, Word};
use super::lying::Lying;
use super::{Pace, PublishedPart};
use crate::clock::Clock;
use crate::error::SinkError;
use crate::lease::Ack;
use crate::sinks::hls::playlist::Kind;
use crate::sinks::hls::store::{Asked, Found, Published, Served};
use crate::storage::Body;
use crate::storage::error::{Cause, StorageError};
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
    /// The first segment that came to this copy.
    pub first: u64,
    pub pace: Pace,
    pub retry: Retry,
    pub clock: Arc<dyn Clock>,
    pub tell: mpsc::Sender<SinkError>,
    /// Whether the place was tried in vain for as long as it may be: then nothing is tried for long until it is back.
    pub is_down: bool,
    /// Whether that was found since something came: then nothing is asked for but what packets wait for.
    pub is_stopped: bool,
    /// What was refused for good since something came.
    pub refused: BTreeSet<String>,
    pub lying: Lying,
}

/// What a copy leaves to the next one of the same stream.
pub struct Left {
    pub lying: Lying,
    /// Packets that wait for their segments.
    packets: BTreeMap<u64, Vec<Ack>>,
    first: u64,
    is_down: bool,
}

/// The next copy of the stream goes on with what is under way.
struct HandedOver;

impl StreamCopy {
    /// Goes on with what another copy of the stream has left.
    pub fn take_over(&mut self, left: Left, held: &mut Held) {
        // What another publication has found out of the place is too old, or was cut short.
        if Weak::ptr_eq(&left.lying.published, &self.lying.published) {
            (self.first, self.is_down) = (left.first, left.is_down);
        }
        self.lying.take_over(left.lying);
        held.inherit(left.packets);
    }

    /// Stores what is published, until nothing more comes and a moment longer: until what is listed no more can go, or
    /// somebody is in a hurry.
    pub async fn follow(
        mut self,
        mut held: Held,
        mut parts: mpsc::Receiver<PublishedPart>,
        mut hurried: Hurried,
    ) -> Left {
        loop {
            if std::mem::take(&mut held.is_fresh) {
                self.is_stopped = false;
                self.refused.clear();
            }
            let playlist = self.playlist();
            let wanted = self.next(&mut held, playlist.as_deref());
            if let Some(missed) = held.missed.take() {
                self.tell_of(&missed);
            }
            if let Some(wanted) = wanted {
                let put = hurried.unless(self.put(&wanted));
                let stored = match held.meanwhile(&mut parts, wanted.number, put).await {
                    Ok(stored) => stored,
                    Err(Word::GiveUp) => Err(given_up()),
                    Err(Word::HandOver) => return self.hand_over(held, parts).await,
                };
                let is_stored = stored.is_ok();
                self.settle(&mut held, wanted, stored);
                // A playlist that is behind moves on with each segment.
                if is_stored
                    && self.pace.kind != Kind::Vod
                    && self.list_meanwhile(&mut held, &mut parts, &mut hurried).await.is_err()
                {
                    return self.hand_over(held, parts).await;
                }
                continue;
            }
            let is_over = !held.is_open;
            if is_over {
                self.go_without(playlist.as_deref());
            }
            if self.list_meanwhile(&mut held, &mut parts, &mut hurried).await.is_err() {
                return self.hand_over(held, parts).await;
            }
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
                () = hurried.any() => return self.left(BTreeMap::new()),
                () = tokio::time::sleep(LOOK) => self.forget().await,
            }
        }
        self.lying.clean().await;
        self.left(BTreeMap::new())
    }

    /// Leaves what is under way to the next copy of the stream.
    async fn hand_over(self, mut held: Held, mut parts: mpsc::Receiver<PublishedPart>) -> Left {
        // Nothing is sent any more: this is what was not received yet.
        while let Some(part) = parts.recv().await {
            held.take(Some(part));
        }
        if let Some(missed) = held.missed.take() {
            self.tell_of(&missed);
        }
        self.left(held.packets)
    }

    fn left(self, packets: BTreeMap<u64, Vec<Ack>>) -> Left {
        Left { lying: self.lying, packets, first: self.first, is_down: self.is_down }
    }

    async fn list_meanwhile(
        &mut self,
        held: &mut Held,
        parts: &mut mpsc::Receiver<PublishedPart>,
        hurried: &mut Hurried,
    ) -> Result<(), HandedOver> {
        let Some(playlist) = self.playlist() else { return Ok(()) };
        let listed = match held.meanwhile(parts, None, hurried.unless(self.list(&playlist))).await {
            Ok(listed) => listed,
            Err(Word::GiveUp) => Err(given_up()),
            Err(Word::HandOver) => return Err(HandedOver),
        };
        if let Err(error) = listed {
            self.is_down |= error.is_temporary();
            let stream = &self.lying.stream;
            self.fail(&error, &format!("the playlist of the copy of stream `{stream}` is not up to date"));
        }
        Ok(())
    }

    fn playlist(&self) -> Option<String> {
        match self.published.file("index.m3u8", &Asked::default(), self.clock.now()) {
            Found::Playlist(served) => Some(text(&served)),
            _ => None,
        }
    }

    /// What is to be stored next: first the initialisations, without which nothing can be listed, then what packets wait
    /// for, then what else the playlist lists. Packets whose segment is stored or gone wait no longer.
    fn next(&self, held: &mut Held, playlist: Option<&str>) -> Option<Wanted> {
        let segment = self.waited_for(held);
        let playlist = playlist.filter(|_| !self.is_stopped).unwrap_or_default();
        let map = || playlist.lines().filter_map(map_of).find_map(|address| self.missing(address));
        map().or(segment).or_else(|| addresses(playlist).find_map(|address| self.missing(address)))
    }

    fn waited_for(&self, held: &mut Held) -> Option<Wanted> {
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
                Segment::Gone => held.miss(number, true),
            }
        }
        None
    }

    /// What is published at an address, where it is not here and may be tried.
    fn missing(&self, address: &str) -> Option<Wanted> {
        let name = copied_name(address);
        if self.lying.stored.contains(&name) || self.refused.contains(&name) {
            return None;
        }
        let (published, version) = parts_of(address);
        let asked = Asked { version: version.map(str::to_owned), ..Asked::default() };
        match self.published.file(published, &asked, self.clock.now()) {
            Found::Init(served) | Found::Segment(served) => {
                Some(Wanted { number: None, name, served, media_type: media_type(published) })
            }
            _ => None,
        }
    }

    /// Nothing more comes, and everything was tried: the playlist goes on without what is not here.
    fn go_without(&mut self, playlist: Option<&str>) {
        let names = addresses(playlist.unwrap_or_default()).map(copied_name);
        let missing: Vec<String> = names.filter(|name| !self.lying.stored.contains(name)).collect();
        self.lying.lacking.extend(missing);
    }

    async fn put(&self, wanted: &Wanted) -> Result<(), StorageError> {
        let body = body(&wanted.served).await?;
        self.store(&wanted.name, body, wanted.media_type, FOR_EVER).await
    }

    /// What became of a file, and of the packets that wait for it.
    fn settle(&mut self, held: &mut Held, wanted: Wanted, stored: Result<(), StorageError>) {
        let stream = &self.lying.stream;
        let Err(error) = stored else {
            self.is_down = false;
            if self.lying.lacking.remove(&wanted.name) {
                tracing::info!(%stream, "the copy of stream `{stream}` has `{}` after all", wanted.name);
            }
            self.lying.stored.insert(wanted.name);
            wanted.number.into_iter().for_each(|number| held.deliver(number));
            return;
        };
        let is_temporary = error.is_temporary();
        let text = if is_temporary {
            (self.is_down, self.is_stopped) = (true, true);
            format!("`{}` of stream `{stream}` was not stored in time", wanted.name)
        } else {
            format!("the copy lacks `{}` of stream `{stream}`", wanted.name)
        };
        if !is_temporary {
            self.refused.insert(wanted.name.clone());
        }
        // What is refused again and again is told once.
        let is_told = !is_temporary && !self.lying.lacking.insert(wanted.name);
        let Some(number) = wanted.number else {
            if !is_told {
                self.fail(&error, &text);
            }
            return;
        };
        held.miss(number, !is_temporary);
        if is_temporary {
            // So does all that waited with it.
            let complete =
                held.packets.keys().copied().filter(|other| !matches!(held.segment(*other), Segment::Growing));
            complete.collect::<Vec<_>>().into_iter().for_each(|other| held.miss(other, false));
        }
        if let Some(missed) = held.missed.take() {
            self.fail(&error, &missed.text(&self.lying.stream));
        }
    }

    fn tell_of(&self, missed: &Missed) {
        let message = format!("{}: {}", missed.text(&self.lying.stream), missed.cause());
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
            && (is_whole || self.lying.playlist.is_some() || self.is_new(&names))
            && self.lying.playlist.as_ref() != Some(&copied)
        {
            let bytes = Body::Bytes(copied.clone().into());
            self.store("index.m3u8", bytes, "application/vnd.apple.mpegurl", ASK_AGAIN).await?;
            (self.lying.playlist, self.lying.listed) = (Some(copied), names);
        }
        self.forget().await;
        Ok(())
    }

    /// Whether a playlist of these has something that nobody but this copy knows, and so all that came before.
    fn is_new(&self, names: &BTreeSet<String>) -> bool {
        let mut numbers = names.iter().filter_map(|name| number_of(name));
        self.pace.kind != Kind::Vod && numbers.any(|number| number >= self.first)
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
        self.lying.lacking.retain(&is_kept);
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

/// Why something is not tried any longer.
fn given_up() -> StorageError {
    StorageError::new(Cause::Temporary, "it was given up, because the stream has come again meanwhile")
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
