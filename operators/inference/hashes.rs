//! SHA-256 of files, computed once and remembered: by path, size and modification time, in the process and in the
//! user's cache folder. A cache that cannot be read or written only costs time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::inference::download::CACHE_VARIABLE;

/// Remembers the hashes of files.
#[derive(Debug, Default)]
pub struct HashCache {
    /// Where it is kept between processes; `None`: nowhere.
    file: Option<PathBuf>,
    known: Mutex<BTreeMap<PathBuf, Entry>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    sha256: String,
}

impl HashCache {
    /// A cache that is kept in `file`.
    pub fn open(file: Option<PathBuf>) -> HashCache {
        let read = |file: &PathBuf| serde_json::from_slice(&fs::read(file).ok()?).ok();
        let known = file.as_ref().and_then(read).unwrap_or_default();
        HashCache { file, known: Mutex::new(known) }
    }

    /// Where the cache of this user is kept.
    pub fn user_file() -> Option<PathBuf> {
        Some(user_cache()?.join("model-hashes.json"))
    }

    /// Hexadecimal SHA-256 of the file at `path`.
    pub fn sha256(&self, path: &Path) -> io::Result<String> {
        let metadata = fs::metadata(path)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let modified = u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX);
        let key = fs::canonicalize(path)?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(entry) = known
            && (entry.bytes, entry.modified) == (metadata.len(), modified)
        {
            return Ok(entry.sha256);
        }
        let sha256 = hash(path)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(key, Entry { bytes: metadata.len(), modified, sha256: sha256.clone() });
        if let Err(error) = self.save(&known) {
            tracing::debug!(%error, "the hashes of model files are not remembered");
        }
        Ok(sha256)
    }

    /// Writes beside the file and renames, so that a reader never sees half of it.
    fn save(&self, known: &BTreeMap<PathBuf, Entry>) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let Some(folder) = file.parent() else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let temporary = folder.join(format!("model-hashes.{}.json", std::process::id()));
        fs::write(&temporary, serde_json::to_vec(known)?)?;
        fs::rename(&temporary, file).inspect_err(|_| drop(fs::remove_file(&temporary)))
    }
}

/// The folder of this user for what only saves time: `$ENGINE_CACHE`, `engine` in `$XDG_CACHE_HOME`, or
/// `~/.cache/engine`.
pub fn user_cache() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    folder(CACHE_VARIABLE).or_else(|| {
        let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
        Some(cache.join("engine"))
    })
}

/// Hexadecimal SHA-256 of the file at `path`, read anew.
pub(super) fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(digest.finalize())),
            count => digest.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of `abc`: FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_hash_is_remembered_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (file, cache) = (folder.path().join("model"), folder.path().join("cache/hashes.json"));
        fs::write(&file, "abc").unwrap();
        let hashes = HashCache::open(Some(cache.clone()));
        assert_eq!(hashes.sha256(&file).unwrap(), ABC);

        // What another process finds is what was remembered, not what is in the file: only size and time are looked at.
        let text = fs::read_to_string(&cache).unwrap().replace(ABC, "remembered");
        fs::write(&cache, text).unwrap();
        assert_eq!(HashCache::open(Some(cache.clone())).sha256(&file).unwrap(), "remembered");

        fs::write(&file, "abcd").unwrap();
        assert_ne!(HashCache::open(Some(cache)).sha256(&file).unwrap(), "remembered");
    }

    #[test]
    fn a_cache_that_cannot_be_kept_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model");
        fs::write(&file, "abc").unwrap();
        for cache in [None, Some(file.join("below/a/file.json"))] {
            assert_eq!(HashCache::open(cache).sha256(&file).unwrap(), ABC);
        }
        let garbage = folder.path().join("garbage.json");
        fs::write(&garbage, "{").unwrap();
        assert_eq!(HashCache::open(Some(garbage)).sha256(&file).unwrap(), ABC);
    }
}
