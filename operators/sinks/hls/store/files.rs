//! The files of one stream: segments in memory up to a bound, and behind it in temporary files, and what players need once
//! for many of them.
//!
//! What a playlist has listed is kept for as long as a player may still want it, which is longer than it is listed.
//!
//! Temporary files have no names, so that a kill leaves none, and stay open. Segments lie in them one behind the other, up
//! to a [`VOLUMES`]th of what a stream may have on the disk in each, so that a stream holds only a few descriptors. A file
//! is gone when the last of its segments is.
//!
//! Nothing is written or removed under the lock of those who read: room is taken first ([`Files::room_for`]), then filled
//! ([`Room::fill`]), then shown ([`Files::insert`]).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::Terms;
use super::published::Refused;
use crate::item::{Content, SpilledFile};
use crate::media::fragment::Form;

/// Of what a stream may have on the disk, so much lies in one file before another one is begun.
const VOLUMES: u64 = 32;

/// A file that is served.
#[derive(Clone)]
pub struct Served {
    content: Arc<Shared>,
    /// Which bytes of the content it is.
    within: Range<u64>,
    /// What makes its `ETag`.
    pub tag: String,
    /// What its address has beside its name, where the name alone may come to mean something else.
    pub version: Option<Arc<str>>,
}

impl Served {
    pub fn new(content: Content, tag: String, version: Option<Arc<str>>) -> Served {
        let within = 0..content.len();
        Served { content: Arc::new(Shared(content)), within, tag, version }
    }

    /// A segment, or a part of one that grows. Its number and its version tell it from all others: nothing is hashed for it.
    pub fn numbered(content: Content, name: impl Display, version: &Arc<str>) -> Served {
        Served::new(content, format!("{name}-{version}"), Some(version.clone()))
    }

    /// Bytes in all.
    pub fn length(&self) -> u64 {
        self.within.end - self.within.start
    }

    /// Some of its bytes, or of a file those of them that are there. May block where the content is in a file.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let place = |position: u64| usize::try_from(position).map_err(|_| io::ErrorKind::FileTooLarge);
        let end = range.end.min(self.length());
        let range = self.within.start + range.start.min(end)..self.within.start + end;
        let (start, end) = (place(range.start)?, place(range.end)?);
        match &**self.content {
            Content::Memory(bytes) => Ok(bytes.slice(start..end)),
            Content::File(file) => {
                let mut bytes = vec![0; end - start];
                file.read_exact_at(&mut bytes, range.start)?;
                Ok(bytes.into())
            }
        }
    }

    /// Whether it lies in a temporary file.
    pub fn is_in_file(&self) -> bool {
        matches!(&**self.content, Content::File(_))
    }
}

/// Content that some hold, and of whom none waits for the disk when the last one lets go of it.
struct Shared(Content);

impl Deref for Shared {
    type Target = Content;

    fn deref(&self) -> &Content {
        &self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if matches!(self.0, Content::File(_)) {
            drop_elsewhere(std::mem::replace(&mut self.0, Content::Memory(Bytes::new())));
        }
    }
}

/// Closing a file without a name frees what it holds of the disk, which takes as long as the disk likes.
fn drop_elsewhere<T: Send + 'static>(what: T) {
    match Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || drop(what))),
        Err(_) => drop(what),
    }
}

/// A temporary file, as far as it is written.
#[derive(Clone)]
pub(super) struct Volume {
    file: Arc<File>,
    end: u64,
}

/// Where a segment has room.
pub(super) enum Room {
    Memory,
    /// Behind what is in this file already, or in one of its own.
    Disk(Option<Volume>),
}

impl Room {
    /// Puts a segment there, of all these pieces. May block.
    ///
    /// # Errors
    /// Where a temporary file cannot be written.
    pub fn fill(self, media: &[Bytes]) -> Result<(Content, Option<Volume>), Refused> {
        match (self, media) {
            (Room::Memory, [whole]) => Ok((Content::Memory(whole.clone()), None)),
            (Room::Memory, pieces) => Ok((Content::Memory(pieces.concat().into()), None)),
            (Room::Disk(volume), pieces) => spilled(volume, pieces)
                .map(|(file, volume)| (Content::File(file), Some(volume)))
                .map_err(|cause| Refused::Spill { folder: std::env::temp_dir().display().to_string(), cause }),
        }
    }
}

/// Writes a segment into a temporary file.
fn spilled(volume: Option<Volume>, pieces: &[Bytes]) -> io::Result<(SpilledFile, Volume)> {
    let Volume { file, end: start } = match volume {
        Some(volume) => volume,
        None => Volume { file: Arc::new(SpilledFile::create()?), end: 0 },
    };
    let mut end = start;
    for piece in pieces {
        if let Err(error) = file.write_all_at(piece, end) {
            // Where the disk is full, half a segment only makes it fuller.
            let _ = file.set_len(start);
            return Err(error);
        }
        end += piece.len() as u64;
    }
    Ok((SpilledFile::part_of(file.clone(), start, end - start), Volume { file, end }))
}

struct Kept {
    served: Served,
    form: Form,
    version: Arc<str>,
    /// Where the parts that it consists of end, where those are served by themselves too.
    parts: Vec<u64>,
    map: u64,
    /// When nobody can want it any more; `None` while it is listed.
    until: Option<Instant>,
}

/// The files of one stream.
pub(super) struct Files {
    segments: BTreeMap<u64, Kept>,
    maps: BTreeMap<u64, Served>,
    next_map: u64,
    /// What segments are from here on.
    form: Form,
    /// Bytes that lie in memory and on the disk, and how many may.
    memory: u64,
    disk: u64,
    most_memory: u64,
    most_disk: u64,
    /// Where the next segment on the disk lies.
    volume: Option<Volume>,
}

impl Drop for Files {
    fn drop(&mut self) {
        drop_elsewhere((std::mem::take(&mut self.segments), self.volume.take()));
    }
}

impl Files {
    pub fn new(terms: &Terms) -> Files {
        let (most_memory, most_disk) = (terms.memory, terms.disk);
        let (segments, maps) = Default::default();
        let (memory, disk) = (0, 0);
        Files { segments, maps, next_map: 0, form: terms.form, memory, disk, most_memory, most_disk, volume: None }
    }

    /// What segments are, and may lie where, from here on.
    pub fn change(&mut self, terms: &Terms) {
        self.form = terms.form;
        (self.most_memory, self.most_disk) = (terms.memory, terms.disk);
    }

    /// Bytes in memory and on the disk.
    pub fn used(&self) -> (u64, u64) {
        (self.memory, self.disk)
    }

    pub fn segment(&self, number: u64, form: Form) -> Option<Served> {
        self.segments.get(&number).filter(|kept| kept.form == form).map(|kept| kept.served.clone())
    }

    /// Whether there is a segment of this number, whatever its form.
    pub fn has(&self, number: u64) -> bool {
        self.segments.contains_key(&number)
    }

    /// A part of a segment that is complete.
    pub fn part(&self, number: u64, part: u64) -> Option<Served> {
        let kept = self.segments.get(&number)?;
        let place = usize::try_from(part).ok()?;
        let end = *kept.parts.get(place)?;
        let start = place.checked_sub(1).and_then(|before| kept.parts.get(before)).copied().unwrap_or(0);
        let (tag, version) = (format!("{number}.{part}-{}", kept.version), Some(kept.version.clone()));
        Some(Served { content: kept.served.content.clone(), within: start..end, tag, version })
    }

    pub fn map(&self, number: u64) -> Option<Served> {
        self.maps.get(&number).cloned()
    }

    /// Whether there was an initialisation of this number.
    pub fn had_map(&self, number: u64) -> bool {
        number < self.next_map
    }

    /// The number of an initialisation: the same for the same bytes, one behind the other. Without a `version` its content
    /// makes one.
    pub fn map_of(&mut self, init: &Bytes, version: Option<&Arc<str>>) -> u64 {
        let is_same = |served: &Served| matches!(&**served.content, Content::Memory(bytes) if bytes == init);
        if let Some(last) = self.next_map.checked_sub(1)
            && self.maps.get(&last).is_some_and(is_same)
        {
            return last;
        }
        let number = self.next_map;
        self.next_map += 1;
        let tag = tag(init);
        let version = version.cloned().unwrap_or_else(|| short(&tag));
        self.maps.insert(number, Served::new(Content::Memory(init.clone()), tag, Some(version)));
        number
    }

    /// Keeps a segment in the room that was taken for it.
    pub fn insert(
        &mut self,
        number: u64,
        (content, volume): (Content, Option<Volume>),
        version: &Arc<str>,
        parts: Vec<u64>,
        map: u64,
    ) {
        if volume.is_some() {
            self.volume = volume;
        }
        let served = Served::numbered(content, number, version);
        let version = version.clone();
        self.segments.insert(number, Kept { served, form: self.form, version, parts, map, until: None });
    }

    /// A segment has left the playlist, and is kept until then.
    pub fn leave(&mut self, number: u64, until: Instant) {
        if let Some(kept) = self.segments.get_mut(&number) {
            kept.until = Some(until);
        }
    }

    /// Lets go of what nobody can want any more.
    pub fn forget(&mut self, now: Instant) {
        let is_over = |kept: &Kept| kept.until.is_some_and(|until| until <= now);
        let over: Vec<u64> =
            self.segments.iter().filter(|(_, kept)| is_over(kept)).map(|(number, _)| *number).collect();
        over.into_iter().for_each(|number| self.remove(number));
    }

    fn remove(&mut self, number: u64) {
        let Some(Kept { served, map, .. }) = self.segments.remove(&number) else { return };
        match &**served.content {
            Content::Memory(bytes) => self.memory -= bytes.len() as u64,
            Content::File(_) => self.disk -= served.content.len(),
        }
        let is_last = Some(map) == self.next_map.checked_sub(1);
        if !is_last && !self.segments.values().any(|kept| kept.map == map) {
            self.maps.remove(&map);
        }
    }

    /// Takes room for a segment of so many bytes.
    ///
    /// # Errors
    /// Where there is none.
    pub fn room_for(&mut self, bytes: u64) -> Result<Room, Refused> {
        if self.memory + bytes <= self.most_memory {
            self.memory += bytes;
            return Ok(Room::Memory);
        }
        // What is not listed any more makes room for what is.
        while self.disk + bytes > self.most_disk
            && let Some((number, _)) = self.segments.iter().find(|(_, kept)| kept.until.is_some())
        {
            let number = *number;
            self.remove(number);
        }
        if self.memory + bytes <= self.most_memory {
            self.memory += bytes;
            return Ok(Room::Memory);
        }
        if self.disk + bytes > self.most_disk {
            return Err(Refused::Full(self.disk));
        }
        self.disk += bytes;
        Ok(Room::Disk(self.volume.clone().filter(|volume| volume.end < self.most_disk / VOLUMES)))
    }

    /// Room on the disk could not be filled.
    pub fn give_back(&mut self, bytes: u64) {
        self.disk -= bytes;
    }
}

/// What makes the `ETag` of bytes.
pub(super) fn tag(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes)).get(..16).unwrap_or_default().to_owned()
}

/// What of a hash is in an address.
pub(super) fn short(hash: &str) -> Arc<str> {
    hash.get(..8).unwrap_or(hash).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeSet;
    use std::os::unix::fs::MetadataExt;

    use crate::clock::{Clock, SystemClock};

    #[test]
    fn temporary_files_have_no_names_and_are_few() {
        let (kind, window) = (super::super::Kind::Live, super::super::Window::Segments(3));
        let (memory, disk, form) = (0, 64_000, Form::Mp4);
        let terms = Terms { kind, form, length: 1, part: None, window, dated: false, memory, disk };
        let (mut files, now, version) = (Files::new(&terms), SystemClock.now(), Arc::from("a"));
        let mut inodes = BTreeSet::new();
        for number in 0..640_u64 {
            // Two pieces, one behind the other.
            let pieces = [number.to_be_bytes(), (!number).to_be_bytes()].map(|piece| Bytes::from(piece.repeat(25)));
            let (content, volume) = files.room_for(400).unwrap().fill(&pieces).unwrap();
            let file = volume.as_ref().unwrap().file.metadata().unwrap();
            assert_eq!(file.nlink(), 0);
            inodes.insert(file.ino());
            files.insert(number, (content, volume), &version, Vec::new(), 0);
            files.leave(number, now);
            let oldest = *files.segments.keys().next().unwrap();
            for number in [oldest, number] {
                let read = files.segment(number, Form::Mp4).unwrap().read(0..u64::MAX).unwrap();
                assert!(
                    read[..200] == number.to_be_bytes().repeat(25) && read[200..] == (!number).to_be_bytes().repeat(25)
                );
            }
            let open: BTreeSet<_> = files.segments.values().map(|kept| kept.served.file()).collect();
            assert!(open.len() as u64 <= VOLUMES + 2, "{}", open.len());
        }
        assert!(inodes.len() > 3 && files.used() == (0, 64_000), "{inodes:?} {:?}", files.used());
        files.forget(now);
        assert!(files.used() == (0, 0) && files.segments.is_empty());
    }

    impl Served {
        fn file(&self) -> *const File {
            match &**self.content {
                Content::File(file) => file.shared(),
                Content::Memory(_) => std::ptr::null(),
            }
        }
    }
}
