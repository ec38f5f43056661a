//! An object as something to read and seek in, without fetching it whole.
//!
//! It is fetched in blocks. Whoever reads on finds the next ones on their way already; whoever jumps keeps those that it
//! read last, as players do that go back and forth between an index and the pictures. All blocks are of one version of
//! the object.

use std::collections::BTreeMap;
use std::io::{self, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use tokio::task::JoinHandle;

use crate::item::StreamId;
use crate::media::demux::Reader;

use super::error::{Cause, StorageError};
use super::retry::Retry;
use super::{Object, Storage, runtime};

/// Bytes of a block: few enough that the first picture does not wait, many enough that requests are rare.
const BLOCK: u64 = 512 << 10;
/// Blocks on their way in front of whoever reads on.
const AHEAD: u64 = 4;
/// Blocks that are kept, those on their way included.
const KEPT: usize = 12;
/// The most bytes that one of them holds.
pub const MOST_BYTES: u64 = KEPT as u64 * BLOCK;
/// How often a wait looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// Why reading failed, for whoever only hears that it did: libav passes no words on.
#[derive(Clone, Default)]
pub struct Failure(Arc<Mutex<Option<StorageError>>>);

impl Failure {
    fn is(&self, error: &StorageError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
    }

    /// The first error, if any.
    pub fn first(&self) -> Option<StorageError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One version of an object.
pub struct Ranges {
    storage: Arc<dyn Storage>,
    retry: Retry,
    object: Object,
    /// The stream that it is, for the log.
    stream: StreamId,
    failure: Failure,
    at: u64,
    blocks: BTreeMap<u64, Block>,
    /// The block that was read from last.
    last: Option<u64>,
    /// Counts uses, to tell which is the longest ago.
    uses: u64,
}

struct Block {
    content: Content,
    used: u64,
}

enum Content {
    Coming { answer: Receiver<Result<Bytes, StorageError>>, task: JoinHandle<()> },
    Here(Bytes),
}

impl Drop for Content {
    fn drop(&mut self) {
        if let Content::Coming { task, .. } = self {
            task.abort();
        }
    }
}

impl Ranges {
    /// `object`: as it was found; a later version is not read.
    pub fn new(storage: Arc<dyn Storage>, retry: Retry, object: Object, stream: StreamId, failure: Failure) -> Ranges {
        Ranges { storage, retry, object, stream, failure, at: 0, blocks: BTreeMap::new(), last: None, uses: 0 }
    }

    fn failed(&self, error: &StorageError) -> io::Error {
        self.failure.is(error);
        error.into()
    }

    fn block(&mut self, index: u64, stop: &dyn Fn() -> bool) -> io::Result<Bytes> {
        let reads_on = self.last.is_none_or(|last| index == last || index == last + 1);
        self.last = Some(index);
        self.want(index)?;
        // One that jumps about is not followed far.
        let ahead = if reads_on { AHEAD } else { 1 };
        for next in index + 1..=index + ahead {
            if next * BLOCK < self.object.bytes {
                self.want(next)?;
            }
        }
        self.forget();
        self.uses += 1;
        let used = self.uses;
        let Some(block) = self.blocks.get_mut(&index) else { return Err(io::ErrorKind::NotFound.into()) };
        block.used = used;
        let answer = match &block.content {
            Content::Here(bytes) => return Ok(bytes.clone()),
            Content::Coming { answer, .. } => answer.clone(),
        };
        let fetched = loop {
            match answer.recv_timeout(LOOK) {
                Ok(fetched) => break fetched,
                Err(RecvTimeoutError::Timeout) if stop() => return Err(io::Error::other("it was stopped")),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    break Err(StorageError::new(Cause::Final, "the work on it died"));
                }
            }
        };
        match fetched {
            Ok(bytes) => {
                block.content = Content::Here(bytes.clone());
                Ok(bytes)
            }
            Err(error) => {
                self.blocks.remove(&index);
                Err(self.failed(&error))
            }
        }
    }

    /// Has a block fetched, unless it is here or on its way.
    fn want(&mut self, index: u64) -> io::Result<()> {
        self.uses += 1;
        if let Some(block) = self.blocks.get_mut(&index) {
            block.used = self.uses;
            return Ok(());
        }
        let (tell, answer) = bounded(1);
        let (storage, retry, object) = (self.storage.clone(), self.retry.clone(), self.object.clone());
        let stream = self.stream.clone();
        let range = index * BLOCK..object.bytes.min((index + 1) * BLOCK);
        let task = runtime::begin(async move {
            let attempt = || storage.get(&object.key, range.clone(), object.etag.as_deref());
            // Nobody waits any more where the reader has gone.
            let _ = tell.send(retry.run_for(&stream, "cannot read", attempt).await);
        });
        let task = task.map_err(|error| self.failed(&error))?;
        self.blocks.insert(index, Block { content: Content::Coming { answer, task }, used: self.uses });
        Ok(())
    }

    /// Forgets blocks whose use is the longest ago.
    fn forget(&mut self) {
        while self.blocks.len() > KEPT
            && let Some(oldest) = self.blocks.iter().min_by_key(|(_, block)| block.used).map(|(index, _)| *index)
        {
            self.blocks.remove(&oldest);
        }
    }
}

impl Reader for Ranges {
    /// A failure is explained by [`Failure`].
    fn read(&mut self, buffer: &mut [u8], stop: &dyn Fn() -> bool) -> io::Result<usize> {
        if self.at >= self.object.bytes || buffer.is_empty() {
            return Ok(0);
        }
        let index = self.at / BLOCK;
        let bytes = self.block(index, stop)?;
        let within = usize::try_from(self.at % BLOCK).map_err(io::Error::other)?;
        let Some(rest) = bytes.get(within..).filter(|rest| !rest.is_empty()) else {
            let message =
                format!("`{}` was changed while it was read: it is shorter", self.storage.location(&self.object.key));
            return Err(self.failed(&StorageError::new(Cause::Changed, message).hint("start the stream again")));
        };
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Ranges {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(at) => {
                self.at = at;
                return Ok(at);
            }
            SeekFrom::End(offset) => (self.object.bytes, offset),
            SeekFrom::Current(offset) => (self.at, offset),
        };
        self.at = base.checked_add_signed(offset).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use crate::backoff::Backoff;
    use crate::clock::SystemClock;
    use crate::operator::Trouble;
    use crate::storage::Body;

    /// One object in memory that counts what is asked for.
    struct Counting {
        content: Vec<u8>,
        asked: Mutex<Vec<Range<u64>>>,
        is_silent: AtomicBool,
    }

    #[async_trait::async_trait]
    impl Storage for Counting {
        fn location(&self, key: &str) -> String {
            key.to_owned()
        }

        async fn put(&self, _: &str, _: &Body, _: &str) -> Result<(), StorageError> {
            Err(StorageError::new(Cause::Final, "read only"))
        }

        async fn delete(&self, key: &str) -> Result<(), StorageError> {
            panic!("`{key}` is to be deleted")
        }

        async fn get(&self, _: &str, range: Range<u64>, etag: Option<&str>) -> Result<Bytes, StorageError> {
            if self.is_silent.load(Ordering::Relaxed) {
                std::future::pending().await
            }
            if etag != Some("one") {
                return Err(StorageError::new(Cause::Changed, "`video.mp4` was changed while it was read"));
            }
            self.asked.lock().unwrap().push(range.clone());
            let at = |index: u64| usize::try_from(index).unwrap().min(self.content.len());
            Ok(Bytes::copy_from_slice(&self.content[at(range.start)..at(range.end)]))
        }

        async fn head(&self, _: &str) -> Result<Object, StorageError> {
            Err(StorageError::new(Cause::Missing, "nothing"))
        }

        async fn list(&self, _: &str) -> Result<Vec<Object>, StorageError> {
            Ok(Vec::new())
        }
    }

    fn open(bytes: u64, etag: &str) -> (Ranges, Arc<Counting>, Failure) {
        let content = (0..bytes).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let storage = Arc::new(Counting { content, asked: Mutex::default(), is_silent: AtomicBool::new(false) });
        let retry = Retry {
            retry_for: Duration::ZERO,
            clock: Arc::new(SystemClock),
            trouble: Trouble::default(),
            node: "videos".into(),
            backoff: Backoff { first: Duration::from_millis(1), most: Duration::from_millis(1) },
        };
        let object = Object { key: "video.mp4".into(), bytes, etag: Some(etag.into()), modified: None };
        let failure = Failure::default();
        (Ranges::new(storage.clone(), retry, object, StreamId::sanitised("video"), failure.clone()), storage, failure)
    }

    fn read(ranges: &mut Ranges, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut have = 0;
        while have < length {
            let count = ranges.read(&mut bytes[have..], &|| false).unwrap();
            if count == 0 {
                break;
            }
            have += count;
        }
        bytes.truncate(have);
        bytes
    }

    #[test]
    fn reading_through_fetches_each_block_once() {
        let bytes = 5 * BLOCK + 17;
        let (mut ranges, storage, _) = open(bytes, "one");
        assert_eq!(read(&mut ranges, usize::try_from(bytes).unwrap() + 100), storage.content);
        let mut asked = storage.asked.lock().unwrap().clone();
        asked.sort_by_key(|range| range.start);
        let expected: Vec<Range<u64>> = (0..6).map(|index| index * BLOCK..bytes.min((index + 1) * BLOCK)).collect();
        assert_eq!(asked, expected);
    }

    #[test]
    fn going_back_and_forth_keeps_both_places() {
        let (mut ranges, storage, _) = open(40 * BLOCK, "one");
        for _ in 0..50 {
            for place in [0, 30 * BLOCK] {
                ranges.seek(SeekFrom::Start(place + 5)).unwrap();
                let at = usize::try_from(place).unwrap() + 5;
                assert_eq!(read(&mut ranges, 100), storage.content[at..at + 100]);
            }
        }
        assert!(ranges.blocks.len() <= KEPT);
        let asked = storage.asked.lock().unwrap().len();
        assert!(asked <= 8, "{asked} requests for two places");
    }

    #[test]
    fn another_version_is_an_error_that_says_so() {
        let (mut ranges, _, failure) = open(BLOCK, "another");
        assert!(ranges.read(&mut [0; 10], &|| false).is_err());
        assert_eq!(failure.first().map(|error| error.cause), Some(Cause::Changed));
    }

    #[test]
    fn a_wait_can_be_stopped() {
        let (mut ranges, storage, failure) = open(BLOCK, "one");
        storage.is_silent.store(true, Ordering::Relaxed);
        assert!(ranges.read(&mut [0; 10], &|| true).is_err());
        assert_eq!(failure.first(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn any_walk_reads_what_is_there(steps in proptest::collection::vec((0..20 * BLOCK, 1..200_000usize), 1..30)) {
            let (mut ranges, storage, _) = open(16 * BLOCK + 3, "one");
            for (place, length) in steps {
                ranges.seek(SeekFrom::Start(place)).unwrap();
                let start = usize::try_from(place).unwrap().min(storage.content.len());
                let end = (start + length).min(storage.content.len());
                prop_assert_eq!(&read(&mut ranges, length)[..], &storage.content[start..end]);
                prop_assert!(ranges.blocks.len() <= KEPT);
            }
        }
    }
}
