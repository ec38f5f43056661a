//! Why something could not be stored or read.

use std::io;

use crate::error::{SinkError, SourceError, StartError};

/// What kind of failure it was: what to do about it depends on that alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It may go well the next time: the place cannot be reached, is busy, or is full.
    Temporary,
    /// There is no such object.
    Missing,
    /// The object is another one by now.
    Changed,
    /// It will not go well until somebody changes something: credentials, permissions, the name of the bucket.
    Final,
}

/// A call that failed. The message names the place, and the server's word for why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StorageError {
    pub cause: Cause,
    pub message: String,
    /// What to do next, in one sentence.
    pub hint: Option<String>,
}

impl StorageError {
    pub fn new(cause: Cause, message: impl Into<String>) -> StorageError {
        StorageError { cause, message: message.into(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> StorageError {
        self.hint = Some(hint.into());
        self
    }

    /// Whether trying again may help.
    pub fn is_temporary(&self) -> bool {
        self.cause == Cause::Temporary
    }

    /// What the operating system refused at `place`.
    pub fn of_system(place: &str, error: &io::Error) -> StorageError {
        use io::ErrorKind;
        let (cause, hint) = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                (Cause::Temporary, "make room on that disk, or name a folder on another one")
            }
            ErrorKind::NotFound => (Cause::Missing, "check the path"),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                (Cause::Final, "name a folder that this user may write, or change its permissions")
            }
            ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidFilename => {
                (Cause::Final, "name another folder")
            }
            _ => (Cause::Temporary, "look whether the disk is still there and writable"),
        };
        StorageError::new(cause, format!("`{place}`: {}", words(error))).hint(hint)
    }

    fn with_hint(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}; hint: {hint}", self.message),
            None => self.message.clone(),
        }
    }

    /// The same for whoever starts a node.
    pub fn at_start(&self, what: &str) -> StartError {
        StartError { message: format!("{what} {}", self.message), hint: self.hint.clone() }
    }

    /// The same for whoever reads a stream.
    pub fn of_source(&self) -> SourceError {
        let is_temporary = self.is_temporary();
        SourceError::Input { message: self.message.clone(), hint: self.hint.clone(), is_temporary }
    }

    /// The same for the engine, with what was lost by it in front.
    pub fn of_sink(&self, lost: &str) -> SinkError {
        SinkError { message: format!("{lost}: {}", self.message), hint: self.hint.clone() }
    }
}

impl From<&StorageError> for io::Error {
    fn from(error: &StorageError) -> io::Error {
        io::Error::other(error.with_hint())
    }
}

/// What the operating system said, without the number that nobody reads.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_tried_again_and_a_folder_without_permission_is_not() {
        let full = StorageError::of_system("out/a.jpg", &io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(full.message, "`out/a.jpg`: no space left on device");
        assert!(full.is_temporary() && full.hint.unwrap().contains("make room"));
        let denied = StorageError::of_system("out/a.jpg", &io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(denied.cause, Cause::Final);
    }
}
