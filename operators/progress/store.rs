//! The file in which progress is kept: an embedded database in a folder that one process has at a time.
//!
//! Whatever is written is on the disk when the call returns. After an error of the disk the database is closed and opened
//! anew by the next call, so that a disk that has room again is used again.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use redb::{Builder, Database, Error, ReadTransaction, ReadableDatabase, TableDefinition, WriteTransaction};

use crate::error::{SinkError, SourceError, StartError};
use crate::lock::lock;
use crate::storage;

/// The file in the folder.
pub const FILE: &str = "progress.redb";
/// Bytes of it that are kept in memory.
const CACHE: usize = 4 << 20;

/// What was stored, by input, configuration and index.
pub(super) const OUTPUTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("outputs");
/// Inputs of which everything is stored.
pub(super) const FINISHED: TableDefinition<'_, &str, &str> = TableDefinition::new("finished");
/// The index of the next output of a live stream.
pub(super) const INDICES: TableDefinition<'_, &str, u64> = TableDefinition::new("indices");
/// What streams that a source found are called.
pub(super) const STREAMS: TableDefinition<'_, &str, &str> = TableDefinition::new("streams");
/// Notes that nodes keep for themselves.
pub(super) const NOTES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("notes");

/// Why progress cannot be read or written. The message names the folder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StateError {
    pub message: String,
    /// What to do next, in one sentence.
    pub hint: &'static str,
    /// Whether it may go well later: a disk that is full may have room again.
    pub is_temporary: bool,
}

impl StateError {
    fn of_system(place: &Path, error: &io::Error) -> StateError {
        let place = place.display().to_string();
        let storage::error::StorageError { cause, message, .. } =
            storage::error::StorageError::of_system(&place, error);
        let hint = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                "make room on that disk, or give `dir` of `[state]` a folder on another one"
            }
            _ => "give `dir` of `[state]` a folder that this user may write",
        };
        let is_temporary = cause == storage::error::Cause::Temporary;
        StateError { message: format!("progress cannot be kept in {message}"), hint, is_temporary }
    }

    fn damaged(file: &Path, why: &dyn fmt::Display) -> StateError {
        StateError {
            message: format!("the progress that is kept in `{}` is damaged: {why}", file.display()),
            hint: "move that file away; without it, everything is read and stored again",
            is_temporary: false,
        }
    }

    fn of(file: &Path, error: Error) -> StateError {
        match error {
            Error::DatabaseAlreadyOpen => StateError {
                message: format!("another engine keeps its progress in `{}`", folder_of(file).display()),
                hint: "each engine needs a `dir` of its own for `[state]`; or end the other one",
                is_temporary: false,
            },
            Error::Io(error) if [ErrorKind::InvalidData, ErrorKind::UnexpectedEof].contains(&error.kind()) => {
                StateError::damaged(file, &error)
            }
            Error::Io(error) => StateError::of_system(file, &error),
            Error::Corrupted(why) => StateError::damaged(file, &why),
            Error::UpgradeRequired(version) => {
                StateError::damaged(file, &format_args!("it is of version {version}, which this engine does not know"))
            }
            other => StateError {
                message: format!("progress cannot be kept in `{}`: {other}", file.display()),
                hint: "look whether the disk is still there and writable",
                is_temporary: true,
            },
        }
    }

    /// The same for whoever starts a graph.
    pub fn at_start(self) -> StartError {
        StartError::new(self.message).hint(self.hint)
    }

    /// The same for a sink.
    pub fn of_sink(self) -> SinkError {
        SinkError { message: self.message, hint: Some(self.hint.to_owned()) }
    }

    /// The same for a source.
    pub fn of_source(self) -> SourceError {
        SourceError::input_with_hint(self.message, self.hint)
    }

    /// The same for uploads, which try again what may go well later.
    pub fn of_storage(self) -> storage::error::StorageError {
        use storage::error::{Cause, StorageError};
        let cause = if self.is_temporary { Cause::Temporary } else { Cause::Final };
        StorageError::new(cause, self.message).hint(self.hint)
    }
}

fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(file)
}

/// An open database.
pub(super) struct Store {
    file: PathBuf,
    database: Mutex<Option<Database>>,
    /// Indices of live streams that were given out, by the key of their stream.
    pub next: Mutex<HashMap<String, u64>>,
}

impl Store {
    fn open(folder: &Path) -> Result<Store, StateError> {
        std::fs::create_dir_all(folder).map_err(|error| StateError::of_system(folder, &error))?;
        let file = folder.join(FILE);
        let database = open(&file)?;
        Ok(Store { file, database: Mutex::new(Some(database)), next: Mutex::default() })
    }

    /// Reads with `read`.
    pub fn read<R>(&self, read: impl FnOnce(&ReadTransaction) -> Result<R, Error>) -> Result<R, StateError> {
        self.with(|database| read(&database.begin_read()?))
    }

    /// Changes with `change` all or nothing; on the disk when this returns.
    pub fn write<R>(&self, change: impl FnOnce(&WriteTransaction) -> Result<R, Error>) -> Result<R, StateError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let answer = change(&transaction)?;
            transaction.commit()?;
            Ok(answer)
        })
    }

    fn with<R>(&self, work: impl FnOnce(&Database) -> Result<R, Error>) -> Result<R, StateError> {
        let mut database = lock(&self.database);
        let open = match database.take() {
            Some(open) => open,
            None => open(&self.file)?,
        };
        match work(&open) {
            Ok(answer) => {
                *database = Some(open);
                Ok(answer)
            }
            // It takes nothing any more until it is opened anew.
            Err(error) => Err(StateError::of(&self.file, error)),
        }
    }
}

fn open(file: &Path) -> Result<Database, StateError> {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    // A file that somebody has written into may be read as anything.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let database = builder.create(file)?;
        let transaction = database.begin_write()?;
        // Whoever reads later finds every table.
        for table in [OUTPUTS, NOTES] {
            transaction.open_table(table)?;
        }
        for table in [FINISHED, STREAMS] {
            transaction.open_table(table)?;
        }
        transaction.open_table(INDICES)?;
        transaction.commit()?;
        Ok(database)
    }));
    match opened {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(error)) => Err(StateError::of(file, error)),
        Err(_) => Err(StateError::damaged(file, &"it cannot be read")),
    }
}

/// The databases of this process, by their folders: graphs may share one.
static OPEN: Mutex<BTreeMap<PathBuf, Arc<Store>>> = Mutex::new(BTreeMap::new());

/// A claim on an open database, which is closed when the last one is gone.
pub(super) struct Held {
    folder: PathBuf,
    store: Option<Arc<Store>>,
}

impl Held {
    /// Opens the database in `folder`, which is made where it is missing.
    ///
    /// # Errors
    /// Where it cannot be opened, is damaged, or another process has it.
    pub fn open(folder: &Path) -> Result<Held, StateError> {
        std::fs::create_dir_all(folder).map_err(|error| StateError::of_system(folder, &error))?;
        let folder = folder.canonicalize().map_err(|error| StateError::of_system(folder, &error))?;
        let mut open = lock(&OPEN);
        let store = match open.get(&folder) {
            Some(store) => store.clone(),
            None => {
                let store = Arc::new(Store::open(&folder)?);
                open.insert(folder.clone(), store.clone());
                store
            }
        };
        Ok(Held { folder, store: Some(store) })
    }

    pub fn store(&self) -> Option<&Store> {
        self.store.as_deref()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closed before anybody else can look for it.
        let mut open = lock(&OPEN);
        self.store = None;
        if open.get(&self.folder).is_some_and(|store| Arc::strong_count(store) == 1) {
            open.remove(&self.folder);
        }
    }
}
