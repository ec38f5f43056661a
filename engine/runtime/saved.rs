//! A folder that keeps the texts of graphs over a restart.
//!
//! A text is written beside its place, flushed to the disk and then renamed, so that after a crash either the old or the
//! new one is there, whole. One process at a time uses a folder.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use operators::error::StartError;

/// What a saved text is called after its graph.
const ENDING: &str = "toml";
/// The file whose lock says that a process uses the folder.
const LOCK: &str = ".lock";

/// A folder of saved texts.
pub struct Saved {
    folder: PathBuf,
    /// Held as long as the folder is used.
    _lock: File,
}

/// A text on the disk that is not in its place yet. Dropped, it is gone again.
pub struct Prepared<'a> {
    saved: &'a Saved,
    written: PathBuf,
    place: PathBuf,
    is_done: bool,
}

impl Saved {
    /// Opens a folder, which is made where it is not there.
    ///
    /// # Errors
    /// Where it cannot be made or written, or another process uses it.
    pub fn open(folder: &Path) -> Result<Saved, StartError> {
        let cannot = |error: io::Error| {
            StartError::new(format!("cannot save graphs in `{}`: {error}", folder.display()))
                .hint("name a folder that this user may write with `--save`")
        };
        fs::create_dir_all(folder).map_err(cannot)?;
        let lock = File::create(folder.join(LOCK)).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => Ok(Saved { folder: folder.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let message = format!("another engine saves its graphs in `{}`", folder.display());
                Err(StartError::new(message).hint("stop it, or name another folder with `--save`"))
            }
            Err(TryLockError::Error(error)) => Err(cannot(error)),
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names of what is saved, in order, with their files.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == ENDING)
                && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
            {
                found.push((name.to_owned(), path.clone()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Writes the text of a graph beside its place.
    ///
    /// # Errors
    /// Where the disk does not take it.
    pub fn prepare(&self, name: &str, text: &[u8]) -> io::Result<Prepared<'_>> {
        let written = self.folder.join(format!(".{name}.new"));
        let prepared = Prepared { saved: self, written, place: self.place(name), is_done: false };
        let mut file = File::create(&prepared.written)?;
        file.write_all(text)?;
        file.sync_all()?;
        Ok(prepared)
    }

    /// Forgets a text; one that is not there is forgotten already.
    ///
    /// # Errors
    /// Where the disk does not let go of it.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.place(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync(),
        }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.{ENDING}"))
    }

    /// What is in the folder survives a loss of power from here on.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

impl Prepared<'_> {
    /// Puts the text in its place.
    ///
    /// # Errors
    /// Where the disk refuses; the text that was there before still is.
    pub fn commit(mut self) -> io::Result<()> {
        fs::rename(&self.written, &self.place)?;
        self.is_done = true;
        self.saved.sync()
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            // Left over, it is overwritten by the next.
            let _ = fs::remove_file(&self.written);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(saved: &Saved) -> Vec<String> {
        saved.list().unwrap().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_text_is_there_once_it_is_committed() {
        let folder = tempfile::tempdir().unwrap();
        let saved = Saved::open(&folder.path().join("graphs")).unwrap();
        let prepared = saved.prepare("door", b"one").unwrap();
        assert!(names(&saved).is_empty());
        prepared.commit().unwrap();
        drop(saved.prepare("door", b"two").unwrap());
        drop(saved.prepare("yard", b"three").unwrap());
        assert_eq!(names(&saved), ["door"]);
        let [(_, path)] = &saved.list().unwrap()[..] else { panic!("one text") };
        assert_eq!(fs::read(path).unwrap(), b"one");
        assert_eq!(fs::read_dir(saved.folder()).unwrap().count(), 2, "the text and the lock");
        saved.remove("door").unwrap();
        saved.remove("door").unwrap();
        assert!(names(&saved).is_empty());
    }

    #[test]
    fn one_process_at_a_time_saves_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = Saved::open(folder.path()).unwrap();
        let error = Saved::open(folder.path()).map(drop).unwrap_err();
        assert!(error.message.starts_with("another engine saves its graphs in"), "{error}");
        drop(first);
        Saved::open(folder.path()).unwrap();
    }
}
