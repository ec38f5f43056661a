//! What a graph remembers over a restart (`[state] dir = "…"`): which outputs of which inputs are stored, which inputs
//! are finished, and which index comes next.
//!
//! An input that has a version (an object and its ETag, a file and its time) is read again from its beginning, and gives
//! the same outputs under the same indices. A sink writes down each that it has stored; one that is written down already,
//! with the same content, is not stored again. What was begun and not written down as stored may be there or not: it is
//! stored again, over what is there. When everything of an input is stored, the input itself is written down, and its
//! outputs are forgotten.
//!
//! A live input does not come again. Only its indices go on.
//!
//! Keys are hashes: of the input, and of the configuration of all nodes from its source to its sink. So another
//! configuration stores its own outputs, and nothing secret is in the file.

mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redb::ReadableTable;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::{Field, FieldType, Presence};
use crate::item::{Lineage, Origin, Played, Segment, StreamId, Version};

use crate::lock::lock;
pub use store::{FILE, StateError};
use store::{FINISHED, Held, INDICES, NOTES, OUTPUTS, STREAMS, Store};

/// The fields of a graph's table `state`.
pub static FIELDS: [Field; 1] = [Field {
    name: "dir",
    value: FieldType::OutputPath,
    presence: Presence::Required,
    summary: "The folder in which progress is kept: what was stored of which input, and which index comes next. It is made \
              where it is missing; one engine at a time may use it.",
}];

/// What stands in the place of the content of a picture.
const PICTURE: &str = "picture";

/// The progress of one graph.
pub struct State {
    folder: PathBuf,
    held: OnceLock<Held>,
}

impl State {
    /// That which is kept in `folder`; nothing is opened yet.
    pub fn new(folder: PathBuf) -> State {
        State { folder, held: OnceLock::new() }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens it, before anything of the graph starts. The second time does nothing.
    ///
    /// # Errors
    /// Where the folder cannot be made or written, is used by another engine, or what is in it is damaged.
    pub fn open(&self) -> Result<(), StateError> {
        if self.held.get().is_none() {
            let held = Held::open(&self.folder)?;
            // Another thread may have been faster; both hold the same.
            let _ = self.held.set(held);
        }
        Ok(())
    }

    /// `None` where nobody has opened it: a graph that is only looked at remembers nothing.
    fn store(&self) -> Option<&Store> {
        self.held.get().and_then(Held::store)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "State({})", self.folder.display())
    }
}

/// What a node is configured as, with what its items have been through before. Hashes in hexadecimal digits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Of the node alone.
    pub own: String,
    /// Of all nodes from each source to this one, by the source's name.
    pub from: BTreeMap<Arc<str>, Arc<str>>,
    /// Of a source: of everything that its streams run through.
    pub downstream: String,
}

/// What one node may know and write of its graph's progress.
#[derive(Clone, Debug)]
pub struct Progress {
    state: Arc<State>,
    origin: Origin,
    configuration: Arc<Configuration>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extent: Option<Extent>,
    is_done: bool,
    /// The time in its name, in microseconds since 1970: where it tells one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_us: Option<u64>,
}

impl Progress {
    pub fn new(state: Arc<State>, origin: Origin, configuration: Configuration) -> Progress {
        Progress { state, origin, configuration: Arc::new(configuration) }
    }

    /// See [`State::open`].
    ///
    /// # Errors
    /// Those of [`State::open`].
    pub fn open(&self) -> Result<(), StateError> {
        self.state.open()
    }

    pub fn folder(&self) -> &Path {
        self.state.folder()
    }

    /// Whether what streams of this source run through is the same.
    pub fn leads_where(&self, other: &Progress) -> bool {
        self.configuration.downstream == other.configuration.downstream
    }

    /// For a source: what it plays, as `name` and `version` tell it from everything else.
    pub fn played(&self, name: String, version: String) -> Played {
        Played::Version(Arc::new(Version { source: self.origin.node.clone(), name, version }))
    }

    /// For whoever makes something of a stream: what it is made of.
    pub fn lineage(&self, played: &Played) -> Option<Lineage> {
        match played {
            Played::Live => Some(Lineage::Live),
            Played::Anew => None,
            Played::Version(version) => {
                let configuration = self.configuration.from.get(&version.source)?.clone();
                Some(Lineage::Version { version: version.clone(), configuration })
            }
        }
    }

    /// For an operator that numbers what it makes of a live stream: the next number, which nobody gets a second time.
    /// `None` where nothing is remembered.
    ///
    /// # Errors
    /// Where progress cannot be read.
    pub fn next_index(&self, stream: &StreamId) -> Result<Option<u64>, StateError> {
        let Some(store) = self.state.store() else { return Ok(None) };
        let key = live_key(&self.origin, stream);
        let mut next = lock(&store.next);
        let index = match next.get(&key) {
            Some(index) => *index,
            None => store.read(|read| Ok(read.open_table(INDICES)?.get(&*key)?.map_or(0, |index| index.value())))?,
        };
        next.insert(key, index + 1);
        Ok(Some(index))
    }

    /// For a sink: the place of a segment among all outputs; `None` where nothing of it is remembered.
    pub fn output(&self, stream: &StreamId, segment: &Segment) -> Option<Output> {
        self.state.store()?;
        Some(match segment.lineage.as_ref()? {
            Lineage::Live => {
                let key = Key::Live { key: live_key(&segment.origin, stream), index: segment.index };
                Output { state: self.state.clone(), key }
            }
            Lineage::Version { version, configuration } => {
                let content = Fingerprint {
                    sha256: segment.sha256.clone(),
                    extent: Some(Extent { start_us: segment.start.as_micros(), bytes: segment.content.len() }),
                };
                self.version_output(stream, version, configuration, segment.index, content)
            }
        })
    }

    /// For a sink: the place of a picture among all outputs, where its stream is one version of an input. Under its
    /// number it is always the same one. `None` where nothing of it is remembered.
    pub fn picture_output(&self, stream: &StreamId, played: &Played, seq: u64) -> Option<Output> {
        self.state.store()?;
        let Some(Lineage::Version { version, configuration }) = self.lineage(played) else { return None };
        let content = Fingerprint { sha256: PICTURE.to_owned(), extent: None };
        Some(self.version_output(stream, &version, &configuration, seq, content))
    }

    fn version_output(
        &self,
        stream: &StreamId,
        version: &Version,
        configuration: &str,
        number: u64,
        content: Fingerprint,
    ) -> Output {
        let input = self.input(stream, version);
        let sink = hash([&*self.origin.node, &self.configuration.own, configuration]);
        Output { state: self.state.clone(), key: Key::Version { key: format!("{input}/{sink}/{number:020}"), content } }
    }

    /// For a source: whether everything of an input is stored, as the graph is now, but for what was rejected.
    ///
    /// # Errors
    /// Where progress cannot be read.
    pub fn finished(&self, stream: &StreamId, played: &Played) -> Result<Option<Finished>, StateError> {
        let (Some(store), Played::Version(version)) = (self.state.store(), played) else { return Ok(None) };
        let key = self.finished_key(stream, version);
        store.read(|read| {
            let found = read.open_table(FINISHED)?.get(&*key)?;
            // Of what was finished before this was counted, nothing is known.
            Ok(found.map(|rejected| Finished { rejected: rejected.value().parse().unwrap_or(0) }))
        })
    }

    /// Everything of an input is stored but for so many items that were `rejected`; what is known of its outputs is
    /// forgotten.
    ///
    /// # Errors
    /// Where that cannot be written down.
    pub fn finish(&self, stream: &StreamId, version: &Version, rejected: u64) -> Result<(), StateError> {
        let Some(store) = self.state.store() else { return Ok(()) };
        let key = self.finished_key(stream, version);
        let input = self.input(stream, version);
        store.write(|write| {
            write.open_table(FINISHED)?.insert(&*key, &*rejected.to_string())?;
            let (first, behind) = (format!("{input}/"), format!("{input}0"));
            write.open_table(OUTPUTS)?.retain_in(&*first..&*behind, |_, _| false)?;
            Ok(())
        })
    }

    /// For a source that finds its streams: what those are called that it found before, by the keys and versions of what
    /// they play.
    ///
    /// # Errors
    /// Where progress cannot be read.
    pub fn found_streams(&self) -> Result<FoundStreams, StateError> {
        let Some(store) = self.state.store() else { return Ok(FoundStreams::default()) };
        let source = hash([&*self.origin.graph, &self.origin.node]);
        let (first, behind) = (format!("{source}/"), format!("{source}0"));
        let ids = store.read(|read| {
            let table = read.open_table(STREAMS)?;
            let mut ids = BTreeMap::new();
            for entry in table.range(&*first..&*behind)? {
                let (key, id) = entry?;
                ids.extend(StreamId::new(id.value()).map(|id| (key.value().to_owned(), id)));
            }
            Ok(ids)
        })?;
        Ok(FoundStreams { source, ids })
    }

    /// Writes down what streams are called; see [`Progress::found_streams`].
    ///
    /// # Errors
    /// Where that cannot be written down.
    pub fn keep_streams(&self, found: &FoundStreams, new: &[(String, StreamId)]) -> Result<(), StateError> {
        let Some(store) = self.state.store().filter(|_| !new.is_empty()) else { return Ok(()) };
        store.write(|write| {
            let mut table = write.open_table(STREAMS)?;
            for (what, id) in new {
                table.insert(&*found.key(what), &**id)?;
            }
            Ok(())
        })
    }

    /// What this node has noted under `name`.
    ///
    /// # Errors
    /// Where progress cannot be read.
    pub fn note(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let Some(store) = self.state.store() else { return Ok(None) };
        let key = self.note_key(name);
        store.read(|read| Ok(read.open_table(NOTES)?.get(&*key)?.map(|note| note.value().to_vec())))
    }

    /// Notes something under `name`, for this node.
    ///
    /// # Errors
    /// Where that cannot be written down.
    pub fn set_note(&self, name: &str, note: &[u8]) -> Result<(), StateError> {
        let Some(store) = self.state.store() else { return Ok(()) };
        let key = self.note_key(name);
        store.write(|write| {
            write.open_table(NOTES)?.insert(&*key, note)?;
            Ok(())
        })
    }

    /// Goes through the notes of all nodes, each with its key, and forgets those that are not to be kept.
    ///
    /// # Errors
    /// Where progress cannot be read or written.
    pub fn retain_notes(&self, mut keep: impl FnMut(&str, &[u8]) -> bool) -> Result<(), StateError> {
        let Some(store) = self.state.store() else { return Ok(()) };
        store.write(|write| {
            write.open_table(NOTES)?.retain(|key, note| keep(key, note))?;
            Ok(())
        })
    }

    /// Under which key a note of this node is kept.
    pub fn note_key(&self, name: &str) -> String {
        hash([&*self.origin.graph, &self.origin.node, name])
    }

    fn input(&self, stream: &StreamId, version: &Version) -> String {
        hash([&*self.origin.graph, &version.source, &version.name, &version.version, stream])
    }

    fn finished_key(&self, stream: &StreamId, version: &Version) -> String {
        format!("{}/{}", self.input(stream, version), self.configuration.downstream)
    }
}

fn live_key(maker: &Origin, stream: &StreamId) -> String {
    hash([&*maker.graph, &maker.node, stream])
}

/// Of a list of texts; two lists that read the same in one piece differ.
fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..16])
}

/// An input that is not read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Items that came to nothing, and would again.
    pub rejected: u64,
}

impl fmt::Display for Finished {
    /// What the log says of it, behind its name.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("is finished: it was read and stored before")?;
        match self.rejected {
            0 => Ok(()),
            1 => formatter.write_str(", except an item that was rejected"),
            rejected => write!(formatter, ", except {rejected} items that were rejected"),
        }
    }
}

/// What streams that a source found before are called.
#[derive(Clone, Debug, Default)]
pub struct FoundStreams {
    source: String,
    ids: BTreeMap<String, StreamId>,
}

impl FoundStreams {
    /// What the stream is called that plays `what`, a key with its version.
    pub fn id(&self, what: &str) -> Option<&StreamId> {
        self.ids.get(&self.key(what))
    }

    /// Every name that was given.
    pub fn taken(&self) -> BTreeSet<StreamId> {
        self.ids.values().cloned().collect()
    }

    fn key(&self, what: &str) -> String {
        format!("{}/{}", self.source, hash([what]))
    }
}

/// One output of a sink, and what is known of it.
#[derive(Clone, Debug)]
pub struct Output {
    state: Arc<State>,
    key: Key,
}

#[derive(Clone, Debug)]
enum Key {
    Live { key: String, index: u64 },
    Version { key: String, content: Fingerprint },
}

/// What an output holds.
#[derive(Clone, Debug)]
struct Fingerprint {
    sha256: String,
    /// Where it may be cut short.
    extent: Option<Extent>,
}

/// Which part of its input an output holds. Of two under one index that begin alike, the shorter one is a part of the other:
/// where something was dropped in between, they begin elsewhere.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Extent {
    /// When its first picture is shown, in microseconds since that of the stream.
    start_us: i64,
    bytes: u64,
}

impl Fingerprint {
    fn entry(&self, is_done: bool, time_us: Option<u64>) -> Entry {
        Entry { sha256: self.sha256.clone(), extent: self.extent, is_done, time_us }
    }
}

impl Output {
    /// Whether it must be written down before it is stored, whatever is there: a live one takes its index with it.
    pub fn is_live(&self) -> bool {
        matches!(self.key, Key::Live { .. })
    }

    /// Whether this very content was stored before, or one of which this is a part: an end has cut it short this time, and not
    /// the time before.
    ///
    /// # Errors
    /// Where progress cannot be read.
    pub fn is_done(&self) -> Result<bool, StateError> {
        let (Some(store), Key::Version { key, content }) = (self.state.store(), &self.key) else { return Ok(false) };
        let entry = store.read(|read| entry(&read.open_table(OUTPUTS)?, key))?;
        let is_part = |entry: &Entry| {
            let both = entry.extent.zip(content.extent);
            both.is_some_and(|(whole, part)| whole.start_us == part.start_us && whole.bytes > part.bytes)
        };
        Ok(entry.is_some_and(|entry| entry.is_done && (entry.sha256 == content.sha256 || is_part(&entry))))
    }

    /// Whether it was begun or stored before, in whatever content: then what is in its place is ours. Never of a live one.
    ///
    /// # Errors
    /// Where progress cannot be read.
    pub fn is_begun(&self) -> Result<bool, StateError> {
        let (Some(store), Key::Version { key, .. }) = (self.state.store(), &self.key) else { return Ok(false) };
        store.read(|read| Ok(entry(&read.open_table(OUTPUTS)?, key)?.is_some()))
    }

    /// It is about to be stored: whatever is in its place from here on may be ours.
    ///
    /// # Errors
    /// Where that cannot be written down.
    pub fn begin(&self) -> Result<(), StateError> {
        self.begin_named(None)
    }

    /// As [`Output::begin`], of something whose name tells a time: whenever it is made again, that is its name.
    ///
    /// # Errors
    /// Where that cannot be written down.
    pub fn begin_at(&self, time: SystemTime) -> Result<(), StateError> {
        self.begin_named(Some(time))
    }

    /// The time in the name that it was begun under. Never of a live one.
    ///
    /// # Errors
    /// Where progress cannot be read.
    pub fn named_at(&self) -> Result<Option<SystemTime>, StateError> {
        let (Some(store), Key::Version { key, .. }) = (self.state.store(), &self.key) else { return Ok(None) };
        let entry = store.read(|read| entry(&read.open_table(OUTPUTS)?, key))?;
        Ok(entry.and_then(|entry| entry.time_us).map(|time| UNIX_EPOCH + Duration::from_micros(time)))
    }

    /// What tells it from every other output, whatever its content; `None` for a live one, which does not come again.
    pub fn identity(&self) -> Option<&str> {
        match &self.key {
            Key::Live { .. } => None,
            Key::Version { key, .. } => Some(key),
        }
    }

    fn begin_named(&self, time: Option<SystemTime>) -> Result<(), StateError> {
        let Some(store) = self.state.store() else { return Ok(()) };
        store.write(|write| match &self.key {
            Key::Live { key, index } => {
                let mut table = write.open_table(INDICES)?;
                let next = table.get(&**key)?.map_or(0, |next| next.value());
                table.insert(&**key, next.max(index + 1))?;
                Ok(())
            }
            Key::Version { key, content } => {
                let mut table = write.open_table(OUTPUTS)?;
                let since = time.map(|time| time.duration_since(UNIX_EPOCH).unwrap_or_default());
                let time_us = since.map(|since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
                let begun = match entry(&table, key)? {
                    Some(begun) if time_us.is_none() || begun.time_us.is_some() => return Ok(()),
                    Some(begun) => Entry { time_us, ..begun },
                    None => content.entry(false, time_us),
                };
                table.insert(&**key, &*written(&begun))?;
                Ok(())
            }
        })
    }

    /// It is stored.
    ///
    /// # Errors
    /// Where that cannot be written down.
    pub fn done(&self) -> Result<(), StateError> {
        let (Some(store), Key::Version { key, content }) = (self.state.store(), &self.key) else { return Ok(()) };
        store.write(|write| {
            let mut table = write.open_table(OUTPUTS)?;
            let time_us = entry(&table, key)?.and_then(|begun| begun.time_us);
            table.insert(&**key, &*written(&content.entry(true, time_us)))?;
            Ok(())
        })
    }
}

fn written(entry: &Entry) -> Vec<u8> {
    // Plain fields: this does not fail.
    serde_json::to_vec(entry).unwrap_or_default()
}

fn entry(table: &impl ReadableTable<&'static str, &'static [u8]>, key: &str) -> Result<Option<Entry>, redb::Error> {
    let Some(value) = table.get(key)? else { return Ok(None) };
    let read = serde_json::from_slice(value.value());
    read.map(Some).map_err(|error| redb::Error::Corrupted(format!("an output is not understood: {error}")))
}

#[cfg(test)]
mod tests;
