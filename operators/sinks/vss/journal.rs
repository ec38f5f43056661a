//! What is about to be uploaded, and what was: a note for each segment (a small file, or an entry of the graph's progress),
//! written before the upload begins, so that whoever comes after a crash knows what may be there already.
//!
//! Several may upload from one process, so what each has is known to all: nobody claims or deletes the file of another, and
//! files that the server could take for one another are uploaded one behind the other ([`turn`]).

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::OwnedMutexGuard;

use crate::error::StartError;
use crate::item::{Segment, StreamId};
use crate::lock::lock;
use crate::progress::Progress;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// What is uploaded is forgotten so long after it was last met.
const KEPT_MS: u64 = 30 * DAY_MS;
/// Of uploads that nobody remembers on a disk, the files of so many are still known not to be anybody else's.
const LOOSE: usize = 4096;
/// Held by the one process that uses a folder; its content says which.
const LOCK: &str = "lock";

/// What is meant to be uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub stream: String,
    pub name: String,
    pub index: u64,
    pub bytes: u64,
    pub sha256: String,
    /// When its first picture is shown, in microseconds since that of the stream; not known of what is older than this field.
    #[serde(default)]
    pub start_us: Option<i64>,
    /// When the last attempt began, or, of several, when the one that succeeded was answered: in milliseconds since 1970.
    pub attempted_ms: u64,
    /// Those that may have left a file behind.
    pub attempts: u64,
    /// Files of the same name and size that the server had before the first attempt: they are not ours.
    pub before: Vec<String>,
    /// The server's id, once it has said one.
    pub id: Option<String>,
    /// Of several attempts: what there was more than one of is deleted.
    #[serde(default)]
    pub is_reconciled: bool,
    /// What the service's model said of it.
    #[serde(default)]
    pub summary: Option<Summary>,
    /// When it was last met, in milliseconds since 1970; to the day.
    #[serde(default)]
    pub seen_ms: u64,
    /// Which output of the graph it is, whatever its content; `None` where it does not come again.
    #[serde(default)]
    pub output: Option<String>,
    /// Files of the same output with another content (an end had cut it short), which go once this one is there.
    #[serde(default)]
    pub replaces: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub prompt: String,
    pub text: String,
}

impl Intent {
    pub fn of(stream: &StreamId, segment: &Segment, before: Vec<String>) -> Intent {
        Intent {
            stream: stream.to_string(),
            name: segment.name.clone(),
            index: segment.index,
            bytes: segment.content.len(),
            sha256: segment.sha256.clone(),
            start_us: Some(segment.start.as_micros()),
            attempted_ms: 0,
            attempts: 0,
            before,
            id: None,
            is_reconciled: false,
            summary: None,
            seen_ms: 0,
            output: None,
            replaces: Vec::new(),
        }
    }

    /// Whether it is that of this very content.
    pub fn is_of(&self, segment: &Segment) -> bool {
        self.sha256 == segment.sha256
    }

    /// Whether more than one file may be there for it.
    pub fn may_be_there_twice(&self) -> bool {
        self.attempts > 1 && !self.is_reconciled
    }

    fn is_old(&self, now_ms: u64) -> bool {
        let is_done = self.id.is_some() && !self.may_be_there_twice();
        is_done && now_ms.saturating_sub(self.seen_ms.max(self.attempted_ms)) > KEPT_MS
    }

    fn key(stream: &str, name: &str) -> String {
        format!("{stream}__{name}")
    }
}

/// Where intents are kept.
pub enum Place {
    /// They live as long as the upload.
    Nowhere,
    /// One file for each.
    Folder(PathBuf),
    /// In the progress of the graph.
    Progress(Progress),
}

/// The intents of one node.
pub struct Journal {
    kept: Kept,
    /// When old intents were last looked for.
    tidied_ms: Mutex<u64>,
}

enum Kept {
    Nowhere {
        number: u64,
        open: Mutex<HashMap<String, Intent>>,
    },
    /// The lock goes with the file, also where this process is killed.
    Folder {
        folder: PathBuf,
        lock: File,
    },
    Progress(Progress),
}

/// The folders that this process uses: who uses one that is in use shares its journal, as a graph does with its successor.
static FOLDERS: Mutex<Folders> = Mutex::new(Folders(Vec::new()));
static FOLDER_LEFT: Condvar = Condvar::new();

struct Folders(Vec<(PathBuf, Weak<Journal>)>);

impl Journal {
    /// Reads what is there, makes a folder where it is missing, and forgets what is old.
    ///
    /// # Errors
    /// Where the folder cannot be made or read, another process uses it, or a file in it is no intent: the text names it.
    pub fn open(place: Place, now_ms: u64) -> Result<Arc<Journal>, StartError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let journal = match place {
            Place::Nowhere => {
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                Journal::of(Kept::Nowhere { number, open: Mutex::default() })
            }
            Place::Progress(progress) => Journal::of(Kept::Progress(progress)),
            Place::Folder(folder) => return Journal::open_folder(&folder, now_ms),
        };
        journal.tidy(now_ms).map_err(|error| unusable(&error))?;
        Ok(Arc::new(journal))
    }

    fn open_folder(folder: &Path, now_ms: u64) -> Result<Arc<Journal>, StartError> {
        let folder = fs::create_dir_all(folder)
            .and_then(|()| folder.canonicalize())
            .map_err(|error| unusable(&io::Error::new(error.kind(), format!("`{}`: {error}", folder.display()))))?;
        let mut folders = lock(&FOLDERS);
        while let Some((_, journal)) = folders.0.iter().find(|(used, _)| *used == folder) {
            if let Some(journal) = journal.upgrade() {
                return Ok(journal);
            }
            // Its last user is about to leave it.
            folders = FOLDER_LEFT.wait(folders).unwrap_or_else(PoisonError::into_inner);
        }
        let lock = take(&folder)?;
        let journal = Journal::of(Kept::Folder { folder: folder.clone(), lock });
        if let Err(error) = journal.tidy(now_ms) {
            // It would look for itself among the folders when it is dropped.
            drop(folders);
            return Err(unusable(&error));
        }
        let journal = Arc::new(journal);
        folders.0.push((folder, Arc::downgrade(&journal)));
        Ok(journal)
    }

    fn of(kept: Kept) -> Journal {
        Journal { kept, tidied_ms: Mutex::default() }
    }

    /// What was meant before with a segment of this stream and name, whatever its content.
    ///
    /// # Errors
    /// Where what is kept cannot be read.
    pub fn find(&self, stream: &StreamId, segment: &Segment) -> io::Result<Option<Intent>> {
        let key = Intent::key(stream, &segment.name);
        let found = match &self.kept {
            Kept::Progress(progress) => match progress.note(&key).map_err(io::Error::other)? {
                Some(note) => Some(serde_json::from_slice(&note)?),
                None => None,
            },
            Kept::Folder { folder, .. } => {
                let path = folder.join(file_name(&key));
                match fs::read(&path) {
                    Ok(text) => Some(parsed(&path, &text)?),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => return Err(named(&path, error)),
                }
            }
            Kept::Nowhere { open, .. } => lock(open).get(&key).cloned(),
        };
        Ok(found.filter(|intent| intent.stream == **stream && intent.name == segment.name))
    }

    /// Writes an intent down; it is on the disk when this returns.
    ///
    /// # Errors
    /// The file's.
    pub fn keep(&self, intent: &Intent, now_ms: u64) -> io::Result<()> {
        if now_ms.saturating_sub(*lock(&self.tidied_ms)) > DAY_MS {
            self.tidy(now_ms)?;
        }
        let key = Intent::key(&intent.stream, &intent.name);
        match &self.kept {
            Kept::Progress(progress) => {
                progress.set_note(&key, &serde_json::to_vec(intent)?).map_err(io::Error::other)?;
            }
            Kept::Folder { folder, .. } => {
                let place = folder.join(file_name(&key));
                let temporary = place.with_extension("new");
                let mut file = File::create(&temporary)?;
                file.write_all(&serde_json::to_vec(intent)?)?;
                file.sync_all()?;
                fs::rename(&temporary, &place)?;
                File::open(folder)?.sync_all()?;
            }
            Kept::Nowhere { open, .. } => {
                lock(open).insert(key, intent.clone());
            }
        }
        self.claim(intent);
        Ok(())
    }

    /// Nothing more will be done for this intent: where nothing outlives the process, it is not needed any more.
    pub fn close(&self, intent: &Intent) {
        let Kept::Nowhere { open, .. } = &self.kept else { return };
        lock(open).remove(&Intent::key(&intent.stream, &intent.name));
        let Some(id) = &intent.id else { return };
        let mut claims = lock(&CLAIMS);
        claims.loose.push_back(digest(&[id]));
        if claims.loose.len() > LOOSE
            && let Some(oldest) = claims.loose.pop_front()
        {
            claims.owners.remove(&oldest);
        }
    }

    /// Whether a file of the server is that of another segment, as far as this process knows.
    pub fn is_of_another(&self, intent: &Intent, id: &str) -> bool {
        let owner = lock(&CLAIMS).owners.get(&digest(&[id])).copied();
        owner.is_some_and(|owner| owner != self.owner(intent))
    }

    fn claim(&self, intent: &Intent) {
        if let Some(id) = &intent.id {
            lock(&CLAIMS).owners.insert(digest(&[id]), self.owner(intent));
        }
    }

    fn owner(&self, intent: &Intent) -> u128 {
        let key = Intent::key(&intent.stream, &intent.name);
        match &self.kept {
            Kept::Nowhere { number, .. } => digest(&["nowhere", &number.to_string(), &key]),
            Kept::Folder { folder, .. } => digest(&["folder", &folder.to_string_lossy(), &key]),
            Kept::Progress(progress) => of_note(&progress.note_key(&key)),
        }
    }

    /// Goes through everything that is kept: claims the files, forgets what is old, and gives intents of earlier versions
    /// the names that they have now.
    fn tidy(&self, now_ms: u64) -> io::Result<()> {
        *lock(&self.tidied_ms) = now_ms;
        match &self.kept {
            Kept::Nowhere { .. } => Ok(()),
            Kept::Folder { folder, .. } => self.tidy_folder(folder, now_ms),
            Kept::Progress(progress) => {
                let keep = |key: &str, note: &[u8]| {
                    let Ok(intent) = serde_json::from_slice::<Intent>(note) else { return true };
                    keep_claimed(&intent, of_note(key), now_ms)
                };
                progress.retain_notes(keep).map_err(io::Error::other)
            }
        }
    }

    fn tidy_folder(&self, folder: &Path, now_ms: u64) -> io::Result<()> {
        for entry in fs::read_dir(folder).map_err(|error| named(folder, error))? {
            let path = entry.map_err(|error| named(folder, error))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = match fs::read(&path) {
                // Another upload of this process is writing it just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text.map_err(|error| named(&path, error))?,
            };
            let intent = parsed(&path, &text)?;
            if !keep_claimed(&intent, self.owner(&intent), now_ms) {
                fs::remove_file(&path).map_err(|error| named(&path, error))?;
                continue;
            }
            let name = file_name(&Intent::key(&intent.stream, &intent.name));
            if path.file_name() != Some(OsStr::new(&name)) {
                let place = folder.join(name);
                let moved = if place.exists() { fs::remove_file(&path) } else { fs::rename(&path, place) };
                moved.map_err(|error| named(&path, error))?;
            }
        }
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let Kept::Folder { folder, lock: file } = &self.kept else { return };
        // Closing the file would do it too, but only after those who wait are told.
        if let Err(error) = file.unlock() {
            tracing::warn!("`{}` cannot be unlocked: {error}", folder.display());
        }
        lock(&FOLDERS).0.retain(|(used, journal)| used != folder || journal.strong_count() > 0);
        FOLDER_LEFT.notify_all();
    }
}

/// Locks a folder for this process.
fn take(folder: &Path) -> Result<File, StartError> {
    let path = folder.join(LOCK);
    let cannot = |error| unusable(&named(&path, error));
    let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
    let mut file = opened.map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut who = String::new();
            // What it says only helps people.
            let _ = (&file).take(100).read_to_string(&mut who);
            let who = if who.trim().is_empty() { "another process" } else { who.trim() };
            let message = format!("`state` is `{}`, which {who} uses for its own uploads", folder.display());
            return Err(StartError::new(message).hint("end that process, or give this sink another folder as `state`"));
        }
        Err(TryLockError::Error(error)) => return Err(cannot(error)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "process {}", std::process::id())).map_err(cannot)?;
    Ok(file)
}

fn unusable(why: &io::Error) -> StartError {
    StartError::new(format!("cannot use the state of earlier uploads: {why}"))
        .hint("give `state` a folder of its own that can be written")
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{}`: {error}", path.display()))
}

fn parsed(path: &Path, text: &[u8]) -> io::Result<Intent> {
    serde_json::from_slice(text).map_err(|error| named(path, error.into()))
}

/// A name has no bound that a file system would accept with a stream's before it: its hash has.
fn file_name(key: &str) -> String {
    format!("{}.json", hex::encode(Sha256::digest(key)))
}

/// The files of servers that this process knows, each with the intent that it belongs to. Hashes, as there may be many.
static CLAIMS: LazyLock<Mutex<Claims>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Claims {
    owners: HashMap<u128, u128>,
    /// Those that nothing on a disk remembers, oldest first.
    loose: VecDeque<u128>,
}

/// Whether an intent is to be kept; what it has is claimed then, and let go otherwise.
fn keep_claimed(intent: &Intent, owner: u128, now_ms: u64) -> bool {
    let is_old = intent.is_old(now_ms);
    if let Some(id) = &intent.id {
        let mut claims = lock(&CLAIMS);
        if is_old {
            claims.owners.remove(&digest(&[id]));
        } else {
            claims.owners.insert(digest(&[id]), owner);
        }
    }
    !is_old
}

fn of_note(key: &str) -> u128 {
    digest(&["progress", key])
}

fn digest(parts: &[&str]) -> u128 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finalize()[..16]);
    u128::from_le_bytes(first)
}

/// What the server could take for one another: where it is, and the name and size of a file.
type Alike = (String, String, u64);
type Turns = HashMap<Alike, Weak<tokio::sync::Mutex<()>>>;

static TURNS: LazyLock<Mutex<Turns>> = LazyLock::new(Mutex::default);

/// Waits until no other upload of this process is under way that the server's list could not tell from this one.
pub async fn turn(server: &str, segment: &Segment) -> OwnedMutexGuard<()> {
    let alike = (server.to_owned(), segment.name.clone(), segment.content.len());
    let line = {
        let mut turns = lock(&TURNS);
        turns.retain(|_, line| line.strong_count() > 0);
        let line = turns.get(&alike).and_then(Weak::upgrade).unwrap_or_default();
        turns.insert(alike, Arc::downgrade(&line));
        line
    };
    line.lock_owned().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    use crate::item::{Content, Origin};
    use crate::time::MediaTime;

    const NOW: u64 = 1_800_000_000_000;

    fn segment(content: &'static [u8], sha256: &str) -> Segment {
        Segment {
            name: "door_chunk_0000.mp4".to_owned(),
            index: 0,
            media_type: "video/mp4",
            start: MediaTime::from_micros(0),
            end: MediaTime::from_micros(1_000_000),
            wall: None,
            follows: false,
            origin: Origin { graph: "door".into(), node: "chunks".into() },
            sha256: sha256.to_owned(),
            lineage: None,
            content: Content::Memory(Bytes::from_static(content)),
        }
    }

    fn open(place: &Path) -> Arc<Journal> {
        Journal::open(Place::Folder(place.to_owned()), NOW).unwrap()
    }

    #[test]
    fn what_was_written_down_is_found_by_whoever_comes_after() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("vss/door");
        let door = StreamId::sanitised("door");
        let (one, other) = (segment(b"one", "aa"), segment(b"two", "bb"));
        let journal = open(&place);
        assert_eq!(journal.find(&door, &one).unwrap(), None);
        let mut intent = Intent::of(&door, &one, vec!["theirs".to_owned()]);
        journal.keep(&intent, NOW).unwrap();
        (intent.attempts, intent.attempted_ms, intent.id) = (1, NOW, Some("ours".to_owned()));
        journal.keep(&intent, NOW).unwrap();
        drop(journal);

        let journal = open(&place);
        assert_eq!(journal.find(&door, &one).unwrap().as_ref(), Some(&intent));
        let found = journal.find(&door, &other).unwrap().unwrap();
        assert!(found == intent && !found.is_of(&other), "another content under the same name");
        assert_eq!(journal.find(&StreamId::sanitised("yard"), &one).unwrap(), None);
        drop(journal);

        fs::write(place.join("door__torn.json"), "{").unwrap();
        let error = Journal::open(Place::Folder(place.clone()), NOW).err().unwrap();
        assert!(error.message.contains("door__torn.json"), "{error}");
        // A start that failed keeps the folder from nobody.
        fs::remove_file(place.join("door__torn.json")).unwrap();
        open(&place);
    }

    #[test]
    fn names_of_any_length_are_kept_and_those_of_earlier_versions_found() {
        let folder = tempfile::tempdir().unwrap();
        let long = StreamId::sanitised(&"s".repeat(128));
        let mut one = segment(b"one", "aa");
        one.name = format!("{}_chunk_0000.mp4", &*long);
        let intent = Intent::of(&long, &one, Vec::new());
        let journal = open(folder.path());
        journal.keep(&intent, NOW).unwrap();
        assert_eq!(journal.find(&long, &one).unwrap(), Some(intent));
        drop(journal);

        let (door, two) = (StreamId::sanitised("door"), segment(b"two", "bb"));
        let text = r#"{"stream":"door","name":"door_chunk_0000.mp4","index":0,"bytes":3,"sha256":"bb","attempted_ms":1,
            "attempts":1,"before":[],"id":null}"#;
        fs::write(folder.path().join("door__door_chunk_0000.mp4.json"), text).unwrap();
        let journal = open(folder.path());
        assert_eq!(journal.find(&door, &two).unwrap().unwrap().attempts, 1);
        assert!(!folder.path().join("door__door_chunk_0000.mp4.json").exists());
    }

    #[test]
    fn what_is_done_is_forgotten_after_thirty_days_and_what_is_open_never() {
        let folder = tempfile::tempdir().unwrap();
        let journal = open(folder.path());
        let intent = |stream: &str, attempts, id: Option<&str>| {
            let mut intent = Intent::of(&StreamId::sanitised(stream), &segment(b"one", "aa"), Vec::new());
            (intent.attempts, intent.attempted_ms, intent.id) = (attempts, NOW, id.map(str::to_owned));
            intent
        };
        let mut seen = intent("seen", 1, Some("a"));
        seen.seen_ms = NOW + 2 * DAY_MS;
        for intent in [intent("done", 1, Some("b")), intent("open", 1, None), intent("twice", 2, Some("c")), seen] {
            journal.keep(&intent, NOW).unwrap();
        }
        // Anything that is written a day later has the others looked at.
        journal.keep(&intent("new", 1, None), NOW + KEPT_MS + DAY_MS).unwrap();
        let is_there = |stream| journal.find(&StreamId::sanitised(stream), &segment(b"one", "aa")).unwrap().is_some();
        assert_eq!(
            ["done", "open", "twice", "seen", "new"].map(is_there),
            [false, true, true, true, true],
            "those that are kept"
        );
    }

    #[test]
    fn without_a_place_nothing_stays_of_what_is_done() {
        let journal = Journal::open(Place::Nowhere, NOW).unwrap();
        let (door, one) = (StreamId::sanitised("door"), segment(b"one", "aa"));
        let mut intent = Intent::of(&door, &one, Vec::new());
        intent.id = Some("nowhere-kept".to_owned());
        journal.keep(&intent, NOW).unwrap();
        assert!(journal.find(&door, &one).unwrap().is_some());
        journal.close(&intent);
        assert_eq!(journal.find(&door, &one).unwrap(), None);
    }

    #[test]
    fn the_file_of_one_is_never_that_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (open(&folder.path().join("a")), open(&folder.path().join("b")));
        let (door, one) = (StreamId::sanitised("door"), segment(b"one", "aa"));
        let mut intent = Intent::of(&door, &one, Vec::new());
        intent.id = Some("file-of-the-first".to_owned());
        first.keep(&intent, NOW).unwrap();
        assert!(!first.is_of_another(&intent, "file-of-the-first"));
        assert!(second.is_of_another(&intent, "file-of-the-first"));
        assert!(!second.is_of_another(&intent, "file-of-nobody"));
    }

    #[test]
    fn a_folder_has_one_journal_in_a_process() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().file_name().unwrap();
        let (one, same) = (open(folder.path()), open(&folder.path().join("..").join(name)));
        assert!(Arc::ptr_eq(&one, &same));
        // Another open file is what another process has.
        let error = take(folder.path()).err().unwrap();
        assert!(error.message.contains(&format!("process {}", std::process::id())), "{error}");
        drop((one, same));
        assert!(take(folder.path()).is_ok());
    }

    #[tokio::test]
    async fn what_looks_alike_waits_for_its_turn() {
        let one = segment(b"one", "aa");
        let first = turn("http://vss", &one).await;
        let second = tokio::spawn(async { turn("http://vss", &segment(b"two", "bb")).await });
        let _elsewhere = turn("http://other", &one).await;
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap();
    }
}
