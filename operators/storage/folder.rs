//! A folder of this machine: each object is a file, and is there as a whole or not at all.

use std::collections::HashSet;
use std::io::{self, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::fs;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::error::{Cause, StorageError};
use super::{Body, Object, Storage};
use crate::clock::{Clock, SystemClock};

/// Bytes that are written at a time.
const PART: u64 = 1 << 20;
/// What the name of a file ends in that is not whole yet.
const UNFINISHED: &str = ".part";
/// Unfinished files of a process that is gone are removed when they are so old.
const ABANDONED: Duration = Duration::from_secs(600);

/// Before this process made any file.
static FIRST_USE: LazyLock<SystemTime> = LazyLock::new(|| SystemClock.wall());

/// Objects as files below a folder.
pub struct Folder {
    /// As it was written, for messages.
    written: String,
    root: PathBuf,
    /// Folders in which nothing of processes that are gone lies any more.
    swept: Mutex<HashSet<PathBuf>>,
}

impl Folder {
    /// `written`: the folder as the user wrote it; `root`: where it is. It need not be there yet.
    pub fn new(written: impl Into<String>, root: impl Into<PathBuf>) -> Folder {
        Folder { written: written.into(), root: root.into(), swept: Mutex::default() }
    }

    /// Makes the folder and looks whether it can be written.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn prepare(&self) -> Result<(), StorageError> {
        let failed = |error: io::Error| StorageError::of_system(&self.written, &error);
        std::fs::create_dir_all(&self.root).map_err(failed)?;
        let probe = self.root.join(unfinished_name("probe"));
        std::fs::File::create(&probe).and_then(|_| std::fs::remove_file(&probe)).map_err(failed)
    }

    /// The file of `key`, which may not lead out of the folder.
    fn path(&self, key: &str) -> Result<PathBuf, StorageError> {
        let inside =
            !key.is_empty() && key.split('/').all(|part| !["", ".", ".."].contains(&part)) && !key.contains('\0');
        if !inside {
            let message = format!("`{key}` is no name for a file in `{}`", self.written);
            return Err(StorageError::new(Cause::Final, message).hint("leave out empty parts, `.` and `..`"));
        }
        Ok(self.root.join(key))
    }

    async fn write(&self, path: &Path, body: &Body) -> io::Result<()> {
        let folder = path.parent().unwrap_or(&self.root);
        make_folders(folder).await?;
        if self.swept.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned()) {
            sweep(folder).await;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let unfinished = Unfinished(Some(folder.join(unfinished_name(&name))));
        let mut file = fs::File::create(unfinished.path()).await?;
        let mut written = 0;
        while written < body.len() {
            let end = body.len().min(written + PART);
            file.write_all(&body.read(written..end).await?).await?;
            written = end;
        }
        file.flush().await?;
        // Before the name is right, everything is on the disk; and the name itself before it counts as stored.
        file.sync_all().await?;
        drop(file);
        fs::rename(unfinished.path(), path).await?;
        unfinished.keep();
        sync_folder(folder).await
    }
}

/// A file without its final name; removed when dropped.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    /// It has its final name.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot delete `{}`, which is not whole: {error}", path.display());
        }
    }
}

/// Removes what processes left unfinished in `folder` that are not there any more. What is young may be of a process on
/// another machine. In a container every process has the same number: what is older than this one is not of this one.
async fn sweep(folder: &Path) {
    let Ok(mut entries) = fs::read_dir(folder).await else { return };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name();
        let Some(process) = name.to_str().and_then(process_of) else { continue };
        let Ok(modified) = entry.metadata().await.and_then(|data| data.modified()) else { continue };
        let is_old = modified.elapsed().is_ok_and(|age| age >= ABANDONED);
        let is_gone = match process == std::process::id() {
            true => modified < *FIRST_USE,
            false => !Path::new("/proc").join(process.to_string()).exists(),
        };
        if is_old && is_gone {
            // Another one may have been faster.
            let _ = fs::remove_file(entry.path()).await;
        }
    }
}

/// The process that made an unfinished file of this name.
fn process_of(name: &str) -> Option<u32> {
    let (_, number) = name.strip_prefix('.')?.strip_suffix(UNFINISHED)?.rsplit_once('.')?;
    number.split_once('-')?.0.parse().ok()
}

/// A name that nothing else has, beside that of the whole file. Hidden, so that a glob passes it over.
fn unfinished_name(name: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    LazyLock::force(&FIRST_USE);
    let kept: String = name.chars().take(64).collect();
    format!(".{kept}.{}-{}{UNFINISHED}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Makes `folder` and those above it, each on the disk before what lies in it.
async fn make_folders(folder: &Path) -> io::Result<()> {
    if fs::metadata(folder).await.is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    let mut missing = Vec::new();
    let mut at = Some(folder);
    while let Some(path) = at.filter(|path| !path.as_os_str().is_empty()) {
        if fs::metadata(path).await.is_ok() {
            break;
        }
        missing.push(path);
        at = path.parent();
    }
    fs::create_dir_all(folder).await?;
    for made in missing.into_iter().rev() {
        if let Some(above) = made.parent() {
            sync_folder(above).await?;
        }
    }
    Ok(())
}

async fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    fs::File::open(folder).await?.sync_all().await
}

/// What is told of a file.
fn object(key: String, data: &std::fs::Metadata) -> Object {
    let modified = data.modified().ok();
    let nanos = modified.and_then(|time| Some(time.duration_since(UNIX_EPOCH).ok()?.as_nanos())).unwrap_or(0);
    Object { key, bytes: data.len(), etag: Some(format!("{:x}-{nanos:x}", data.len())), modified }
}

#[async_trait::async_trait]
impl Storage for Folder {
    fn location(&self, key: &str) -> String {
        match &*self.written {
            "" => key.to_owned(),
            written => format!("{}/{key}", written.trim_end_matches('/')),
        }
    }

    async fn put(&self, key: &str, body: &Body, _media_type: &str) -> Result<(), StorageError> {
        let path = self.path(key)?;
        self.write(&path, body).await.map_err(|error| StorageError::of_system(&self.location(key), &error))
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        match fs::remove_file(self.path(key)?).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StorageError::of_system(&self.location(key), &error))
            }
            _ => Ok(()),
        }
    }

    async fn get(&self, key: &str, range: Range<u64>, etag: Option<&str>) -> Result<Bytes, StorageError> {
        let failed = |error: io::Error| StorageError::of_system(&self.location(key), &error);
        let mut file = fs::File::open(self.path(key)?).await.map_err(failed)?;
        let found = object(key.to_owned(), &file.metadata().await.map_err(failed)?);
        if etag.is_some_and(|etag| found.etag.as_deref() != Some(etag)) {
            let message = format!("`{}` was changed while it was read", self.location(key));
            return Err(StorageError::new(Cause::Changed, message).hint("start the stream again"));
        }
        file.seek(SeekFrom::Start(range.start)).await.map_err(failed)?;
        let mut part = Vec::new();
        file.take(range.end.saturating_sub(range.start)).read_to_end(&mut part).await.map_err(failed)?;
        Ok(part.into())
    }

    async fn head(&self, key: &str) -> Result<Object, StorageError> {
        let found = fs::metadata(self.path(key)?).await;
        let found = found.map_err(|error| StorageError::of_system(&self.location(key), &error))?;
        if !found.is_file() {
            return Err(StorageError::new(Cause::Missing, format!("`{}` is no file", self.location(key))));
        }
        Ok(object(key.to_owned(), &found))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Object>, StorageError> {
        let mut found = Vec::new();
        let mut waiting = vec![(self.root.clone(), String::new())];
        while let Some((folder, above)) = waiting.pop() {
            let failed = |error: io::Error| StorageError::of_system(&folder.display().to_string(), &error);
            let mut entries = match fs::read_dir(&folder).await {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            while let Some(entry) = entries.next_entry().await.map_err(failed)? {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let key = format!("{above}{name}");
                // It may be gone meanwhile.
                let Ok(data) = fs::metadata(entry.path()).await else { continue };
                if data.is_dir() {
                    waiting.push((entry.path(), format!("{key}/")));
                } else if key.starts_with(prefix) && !name.ends_with(UNFINISHED) {
                    found.push(object(key, &data));
                }
            }
        }
        found.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Body {
        Body::Bytes(Bytes::from_static(text.as_bytes()))
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn what_is_put_is_there_as_a_whole_and_in_the_place_of_what_was() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Folder::new("out", folder.path());
        storage.put("2026/03/a.txt", &bytes("first"), "text/plain").await.unwrap();
        storage.put("2026/03/a.txt", &bytes("second"), "text/plain").await.unwrap();
        storage.put("2026/b.txt", &bytes(""), "text/plain").await.unwrap();
        assert_eq!(names(&folder.path().join("2026/03")), ["a.txt"], "nothing unfinished is left");
        assert_eq!(storage.get("2026/03/a.txt", 1..4, None).await.unwrap(), "eco");
        assert_eq!(storage.get("2026/03/a.txt", 3..400, None).await.unwrap(), "ond");
        assert_eq!(storage.head("2026/03/a.txt").await.unwrap().bytes, 6);
        let keys = |objects: Vec<Object>| objects.into_iter().map(|object| object.key).collect::<Vec<_>>();
        assert_eq!(keys(storage.list("").await.unwrap()), ["2026/03/a.txt", "2026/b.txt"]);
        assert_eq!(keys(storage.list("2026/0").await.unwrap()), ["2026/03/a.txt"]);
        assert_eq!(storage.location("2026/b.txt"), "out/2026/b.txt");
    }

    #[tokio::test]
    async fn another_version_is_not_what_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Folder::new("out", folder.path());
        storage.put("a", &bytes("first"), "text/plain").await.unwrap();
        let etag = storage.head("a").await.unwrap().etag;
        assert_eq!(storage.get("a", 0..5, etag.as_deref()).await.unwrap(), "first");
        storage.put("a", &bytes("longer than that"), "text/plain").await.unwrap();
        assert_eq!(storage.get("a", 0..5, etag.as_deref()).await.unwrap_err().cause, Cause::Changed);
        assert_eq!(storage.head("b").await.unwrap_err().cause, Cause::Missing);
    }

    #[tokio::test]
    async fn what_a_process_left_unfinished_that_is_gone_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemClock.wall();
        let long_ago = now - 2 * ABANDONED;
        // No process has the largest number.
        for (name, age) in [(".a.4194999-0.part", long_ago), (".b.4194999-1.part", now)] {
            std::fs::File::create(folder.path().join(name)).unwrap().set_modified(age).unwrap();
        }
        // One of this process, and one of a process before that had the same number, as in a container.
        let own = unfinished_name("c");
        for (name, age) in [(&own, now), (&unfinished_name("d"), long_ago)] {
            std::fs::File::create(folder.path().join(name)).unwrap().set_modified(age).unwrap();
        }
        let storage = Folder::new("out", folder.path());
        storage.put("x", &bytes("x"), "text/plain").await.unwrap();
        assert_eq!(names(folder.path()), [".b.4194999-1.part", &own, "x"]);
    }

    #[tokio::test]
    async fn no_key_leads_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Folder::new("out", folder.path().join("inner"));
        for key in ["../a", "/etc/a", "a/../../b", "", "a//b", "a\0"] {
            let error = storage.put(key, &bytes("x"), "text/plain").await.unwrap_err();
            assert_eq!(error.cause, Cause::Final, "{key:?}");
        }
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_cannot_be_written_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("taken"), "").unwrap();
        let storage = Folder::new("out", folder.path());
        let error = storage.put("taken/a", &bytes("x"), "text/plain").await.unwrap_err();
        assert!(error.message.starts_with("`out/taken/a`: "), "{error}");
        // A folder in the place of the file: everything was written but the name.
        std::fs::create_dir(folder.path().join("b")).unwrap();
        assert!(storage.put("b", &bytes("x"), "text/plain").await.is_err());
        assert_eq!(names(folder.path()), ["b", "taken"]);
    }

    #[test]
    fn a_folder_that_cannot_be_made_says_so_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Folder::new("new", folder.path().join("new/er")).prepare(), Ok(()));
        std::fs::write(folder.path().join("taken"), "").unwrap();
        let error = Folder::new("taken", folder.path().join("taken")).prepare().unwrap_err();
        assert!(error.message.starts_with("`taken`: "), "{error}");
    }
}
