//! The files of one stream: segments in memory up to a bound, and behind it in temporary files, and what players need once
//! for many of them.
//!
//! What a playlist has listed is kept for as long as a player may still want it, which is longer than it is listed.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Write as _};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::Terms;
use super::published::Refused;
use crate::item::{Content, SpilledFile};
use crate::media::fragment::Form;

/// A file that is served.
#[derive(Clone)]
pub struct Served {
    content: Arc<Content>,
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
        Served { content: Arc::new(content), within, tag, version }
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
        match &*self.content {
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
        matches!(&*self.content, Content::File(_))
    }
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
}

impl Files {
    pub fn new(terms: &Terms) -> Files {
        let (most_memory, most_disk) = (terms.memory, terms.disk);
        let (segments, maps) = Default::default();
        Files { segments, maps, next_map: 0, form: terms.form, memory: 0, disk: 0, most_memory, most_disk }
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
        let is_same = |served: &Served| matches!(&*served.content, Content::Memory(bytes) if bytes == init);
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

    /// Keeps a segment where there is room for it.
    ///
    /// # Errors
    /// Where there is none.
    pub fn keep(
        &mut self,
        number: u64,
        media: &Bytes,
        version: &Arc<str>,
        parts: Vec<u64>,
        map: u64,
    ) -> Result<(), Refused> {
        let served = Served::numbered(self.room_for(media)?, number, version);
        let version = version.clone();
        self.segments.insert(number, Kept { served, form: self.form, version, parts, map, until: None });
        Ok(())
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
        match &*served.content {
            Content::Memory(bytes) => self.memory -= bytes.len() as u64,
            Content::File(_) => self.disk -= served.content.len(),
        }
        let is_last = Some(map) == self.next_map.checked_sub(1);
        if !is_last && !self.segments.values().any(|kept| kept.map == map) {
            self.maps.remove(&map);
        }
    }

    fn room_for(&mut self, media: &Bytes) -> Result<Content, Refused> {
        let bytes = media.len() as u64;
        if self.memory + bytes <= self.most_memory {
            self.memory += bytes;
            return Ok(Content::Memory(media.clone()));
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
            return Ok(Content::Memory(media.clone()));
        }
        if self.disk + bytes > self.most_disk {
            return Err(Refused::Full(self.disk));
        }
        let content = spilled(media)?;
        self.disk += bytes;
        Ok(content)
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

/// Puts a segment into a temporary file, which goes when it does.
fn spilled(media: &Bytes) -> Result<Content, Refused> {
    let write = || {
        let (mut file, path) = tempfile::Builder::new().prefix("engine-").suffix(".m4s").tempfile()?.into_parts();
        file.write_all(media)?;
        // More of them than a process may have open.
        Ok(Content::File(SpilledFile::named(path, media.len() as u64)))
    };
    write().map_err(|cause| Refused::Spill { folder: std::env::temp_dir().display().to_string(), cause })
}
