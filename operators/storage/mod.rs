//! Where files go to and come from: a folder of this machine, or a bucket of S3.
//!
//! | file | owns |
//! |---|---|
//! | `error.rs` | why something could not be stored or read, and whether trying again may help |
//! | `folder.rs`, `s3.rs` | the two places |
//! | `location.rs` | `s3://BUCKET/KEY` and folders, as people write them |
//! | `retry.rs` | trying again, with what is wrong told meanwhile |
//! | `uploads.rs` | several puts at once on behalf of a sink, and the fate of their items |
//! | `ranges.rs` | an object as something to read and seek in |
//! | `runtime.rs` | waiting for all this on a plain thread |

pub mod error;
pub mod folder;
pub mod location;
pub mod ranges;
pub mod retry;
pub mod runtime;
pub mod s3;
pub mod uploads;

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::Deserialize;

use crate::item::{Content, Segment};
use error::StorageError;
use retry::Retry;

/// What is known of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Relative to the place; its parts are separated by `/`.
    pub key: String,
    pub bytes: u64,
    /// Changes with the content. Of a folder: made of length and time of change.
    pub etag: Option<String>,
    pub modified: Option<SystemTime>,
}

/// What happens where something else is in the place of what is to be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IfExists {
    /// It stays, and what was to be stored is lost.
    Error,
    /// It is gone.
    #[default]
    #[serde(alias = "replace")]
    Overwrite,
    /// It stays, and counts as what was to be stored.
    Skip,
}

/// Bytes that are to be stored. A clone shares them.
#[derive(Clone, Debug)]
pub enum Body {
    Bytes(Bytes),
    Segment(Arc<Segment>),
}

impl Body {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Segment(segment) => segment.content.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of `range`, which lies within it.
    ///
    /// # Errors
    /// Where a segment outside of memory cannot be read.
    pub async fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        let index = |at: u64| usize::try_from(at).map_err(std::io::Error::other);
        let bytes = match self {
            Body::Bytes(bytes) => bytes,
            Body::Segment(segment) => match &segment.content {
                Content::Memory(bytes) => bytes,
                Content::File(_) => {
                    let (segment, length) = (segment.clone(), index(range.end.saturating_sub(range.start))?);
                    let read = move || {
                        let Content::File(spilled) = &segment.content else { return Ok(Bytes::new()) };
                        let mut part = vec![0; length];
                        spilled.read_exact_at(&mut part, range.start)?;
                        Ok(part.into())
                    };
                    return tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other)?;
                }
            },
        };
        let part = index(range.start)?..index(range.end)?;
        if part.end > bytes.len() || part.start > part.end {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes.slice(part))
    }
}

/// A place for objects. Each call is one attempt; [`retry`] repeats it.
#[async_trait::async_trait]
pub trait Storage: Send + Sync {
    /// Where the object `key` lies, for people: `s3://BUCKET/KEY`, or a path.
    fn location(&self, key: &str) -> String;

    /// Stores an object under `key`, in the place of one that is there. Whoever reads finds all of it or what was there
    /// before. `media_type`: such as `image/jpeg`.
    ///
    /// # Errors
    /// Nothing of it is there then.
    async fn put(&self, key: &str, body: &Body, media_type: &str) -> Result<(), StorageError>;

    /// As [`Storage::put`]; what lies between here and those who fetch it over HTTP is told how to keep it (`cache`: a
    /// `Cache-Control`), where the place can remember that.
    ///
    /// # Errors
    /// As [`Storage::put`].
    async fn put_cached(
        &self,
        key: &str,
        body: &Body,
        media_type: &str,
        _cache: &'static str,
    ) -> Result<(), StorageError> {
        self.put(key, body, media_type).await
    }

    /// Stores an object as [`Storage::put`] does, and tries again as `retry` says. Where a large object goes up in parts,
    /// each part is tried again by itself, for as long.
    ///
    /// # Errors
    /// That of the last attempt.
    async fn put_retried(&self, retry: &Retry, key: &str, body: &Body, media_type: &str) -> Result<(), StorageError> {
        retry.run("cannot store", || self.put(key, body, media_type)).await
    }

    /// Removes the object, if it is there.
    ///
    /// # Errors
    /// Where it stays.
    async fn delete(&self, key: &str) -> Result<(), StorageError>;

    /// Bytes of the object; fewer than asked for where it ends before. With `etag`: only of that version.
    ///
    /// # Errors
    /// [`error::Cause::Changed`] where there is another version by now.
    async fn get(&self, key: &str, range: Range<u64>, etag: Option<&str>) -> Result<Bytes, StorageError>;

    /// What there is under `key`.
    ///
    /// # Errors
    /// [`error::Cause::Missing`] where there is nothing.
    async fn head(&self, key: &str) -> Result<Object, StorageError>;

    /// All objects whose keys begin with `prefix`, by key.
    ///
    /// # Errors
    /// Where the place cannot be looked into.
    async fn list(&self, prefix: &str) -> Result<Vec<Object>, StorageError>;
}
