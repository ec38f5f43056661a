//! What is about to be uploaded, and what was: a note for each segment (a small file, or an entry of the graph's progress),
//! written before the upload begins, so that whoever comes after a crash knows what may be there already.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::item::{Segment, StreamId};
use crate::progress::Progress;

/// What is meant to be uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub stream: String,
    pub name: String,
    pub index: u64,
    pub bytes: u64,
    pub sha256: String,
    /// When the last attempt began, in milliseconds since 1970.
    pub attempted_ms: u64,
    pub attempts: u64,
    /// Files of the same name and size that the server had before the first attempt: they are not ours.
    pub before: Vec<String>,
    /// The server's id, once it has said one.
    pub id: Option<String>,
}

impl Intent {
    pub fn of(stream: &StreamId, segment: &Segment, before: Vec<String>) -> Intent {
        Intent {
            stream: stream.to_string(),
            name: segment.name.clone(),
            index: segment.index,
            bytes: segment.content.len(),
            sha256: segment.sha256.clone(),
            attempted_ms: 0,
            attempts: 0,
            before,
            id: None,
        }
    }

    fn key(stream: &str, name: &str) -> String {
        format!("{stream}__{name}")
    }
}

/// Where intents are kept.
pub enum Place {
    /// They live as long as the process.
    Nowhere,
    /// One file for each.
    Folder(PathBuf),
    /// In the progress of the graph.
    Progress(Progress),
}

/// The intents of one node.
pub struct Journal {
    place: Place,
    kept: Mutex<BTreeMap<String, Intent>>,
}

impl Journal {
    /// Reads what is in a folder, and makes it where it is missing.
    ///
    /// # Errors
    /// Where the folder cannot be made or read, or a file in it is no intent: the text names it.
    pub fn open(place: Place) -> Result<Journal, String> {
        let mut kept = BTreeMap::new();
        if let Place::Folder(folder) = &place {
            let wrong = |path: &Path, error: &dyn std::fmt::Display| format!("`{}`: {error}", path.display());
            fs::create_dir_all(folder).map_err(|error| wrong(folder, &error))?;
            for entry in fs::read_dir(folder).map_err(|error| wrong(folder, &error))? {
                let path = entry.map_err(|error| wrong(folder, &error))?.path();
                if path.extension().is_none_or(|extension| extension != "json") {
                    continue;
                }
                let text = fs::read(&path).map_err(|error| wrong(&path, &error))?;
                let intent: Intent = serde_json::from_slice(&text).map_err(|error| wrong(&path, &error))?;
                kept.insert(Intent::key(&intent.stream, &intent.name), intent);
            }
        }
        Ok(Journal { place, kept: Mutex::new(kept) })
    }

    /// What was meant with this very segment before: the same stream, name and content.
    ///
    /// # Errors
    /// Where the progress of the graph cannot be read.
    pub fn find(&self, stream: &StreamId, segment: &Segment) -> io::Result<Option<Intent>> {
        let key = Intent::key(stream, &segment.name);
        let found = match &self.place {
            Place::Progress(progress) => match progress.note(&key).map_err(io::Error::other)? {
                Some(note) => Some(serde_json::from_slice(&note)?),
                None => None,
            },
            Place::Nowhere | Place::Folder(_) => {
                self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
            }
        };
        Ok(found.filter(|intent: &Intent| intent.sha256 == segment.sha256))
    }

    /// Writes an intent down; it is on the disk when this returns.
    ///
    /// # Errors
    /// The file's.
    pub fn keep(&self, intent: &Intent) -> io::Result<()> {
        let key = Intent::key(&intent.stream, &intent.name);
        match &self.place {
            Place::Progress(progress) => {
                return progress.set_note(&key, &serde_json::to_vec(intent)?).map_err(io::Error::other);
            }
            Place::Folder(folder) => {
                let place = folder.join(format!("{key}.json"));
                let temporary = folder.join(format!("{key}.new"));
                let mut file = File::create(&temporary)?;
                file.write_all(&serde_json::to_vec(intent)?)?;
                file.sync_all()?;
                fs::rename(&temporary, &place)?;
                File::open(folder)?.sync_all()?;
            }
            Place::Nowhere => {}
        }
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(key, intent.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    use crate::item::{Content, Origin};
    use crate::time::MediaTime;

    fn segment(content: &'static [u8], sha256: &str) -> Segment {
        Segment {
            name: "door_chunk_0000.mp4".to_owned(),
            index: 0,
            media_type: "video/mp4",
            start: MediaTime::from_micros(0),
            end: MediaTime::from_micros(1_000_000),
            follows: false,
            origin: Origin { graph: "door".into(), node: "chunks".into() },
            sha256: sha256.to_owned(),
            lineage: None,
            content: Content::Memory(Bytes::from_static(content)),
        }
    }

    #[test]
    fn what_was_written_down_is_found_by_whoever_comes_after() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("vss/door");
        let door = StreamId::sanitised("door");
        let (one, other) = (segment(b"one", "aa"), segment(b"two", "bb"));
        let journal = Journal::open(Place::Folder(place.clone())).unwrap();
        assert_eq!(journal.find(&door, &one).unwrap(), None);
        let mut intent = Intent::of(&door, &one, vec!["theirs".to_owned()]);
        journal.keep(&intent).unwrap();
        intent.id = Some("ours".to_owned());
        journal.keep(&intent).unwrap();

        let journal = Journal::open(Place::Folder(place.clone())).unwrap();
        assert_eq!(journal.find(&door, &one).unwrap(), Some(intent));
        assert_eq!(journal.find(&door, &other).unwrap(), None, "another content under the same name");
        assert_eq!(journal.find(&StreamId::sanitised("yard"), &one).unwrap(), None);

        fs::write(place.join("door__torn.json"), "{").unwrap();
        let error = Journal::open(Place::Folder(place.clone())).err().unwrap();
        assert!(error.contains("door__torn.json"), "{error}");
    }
}
