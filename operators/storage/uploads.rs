//! Several puts at once on behalf of a sink, and the fate of the items that are in them.
//!
//! An item is delivered once everything of it is stored, and lost where that failed for good or was given up. What has
//! been handed over is stored or told of; nothing is forgotten when whoever waits for it stops waiting.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::task::JoinSet;

use crate::error::{ItemError, SinkError};
use crate::item::{Item, StreamId};
use crate::lease::{Ack, Credit, Verdict};
use crate::progress::{Output, StateError};

use super::error::{Cause, StorageError};
use super::retry::Retry;
use super::{Body, IfExists, Storage};

/// One object to store.
#[derive(Clone, Debug)]
pub struct Put {
    pub key: String,
    pub body: Body,
    pub media_type: &'static str,
}

/// What is to be stored.
pub enum Work {
    Ready(Vec<Put>),
    /// To be made first, which takes processor time: pictures that have to be encoded.
    Make(Box<dyn FnOnce() -> Result<Vec<Put>, ItemError> + Send>),
    /// As `Make`, under keys that tell `time`: those of the first time, where it was begun before.
    Named {
        time: SystemTime,
        make: Box<dyn FnOnce(SystemTime) -> Result<Vec<Put>, ItemError> + Send>,
    },
}

/// An item whose fate is that of an upload.
#[derive(Debug)]
pub struct Claim {
    pub stream: StreamId,
    ack: Ack,
    /// Kept for as long as what it pays for is in memory.
    _credit: Option<Credit>,
}

impl Claim {
    /// The claim on an item whose payload is still needed: its credit comes back when the upload is over.
    pub fn whole(item: &Item) -> Claim {
        Claim { stream: item.stream.clone(), ack: item.lease.ack.clone(), _credit: item.lease.credit.clone() }
    }

    /// The claim on an item of which a copy was made that somebody else bounds: its credit comes back at once.
    pub fn without_credit(item: &Item) -> Claim {
        Claim { stream: item.stream.clone(), ack: item.lease.ack.clone(), _credit: None }
    }

    /// It ends here, with `verdict`.
    pub fn settle(self, verdict: Verdict) {
        self.ack.settle(verdict);
    }

    /// It ends here: the policy of `node` drops it for `reason`.
    pub fn drop_at(self, node: &Arc<str>, reason: &'static str) {
        self.ack.drop_at(node, reason);
    }
}

/// Objects, stored one behind the other, and the items that are in them.
pub struct Upload {
    /// Of the caller's choice; comes back in [`Finished`].
    pub id: u64,
    pub work: Work,
    pub items: Vec<Claim>,
    /// What is remembered of it, where something is. It is of all its objects together.
    pub output: Option<Output>,
    pub if_exists: IfExists,
}

/// What became of an upload.
#[derive(Debug)]
pub struct Finished {
    /// `None`: one that died.
    pub id: Option<u64>,
    pub result: Result<(), SinkError>,
}

/// Uploads of one sink.
pub struct Uploads {
    storage: Arc<dyn Storage>,
    retry: Retry,
    most: usize,
    running: JoinSet<Result<(), SinkError>>,
    waiting: VecDeque<(Option<u64>, Upload)>,
    /// Uploads that have not ended.
    open: BTreeSet<u64>,
    /// Which upload a task runs.
    tasks: HashMap<tokio::task::Id, u64>,
}

impl Uploads {
    /// At most `most` at once.
    pub fn new(storage: Arc<dyn Storage>, retry: Retry, most: usize) -> Uploads {
        Uploads {
            storage,
            retry,
            most: most.max(1),
            running: JoinSet::new(),
            waiting: VecDeque::new(),
            open: BTreeSet::new(),
            tasks: HashMap::new(),
        }
    }

    /// Begins an upload, or lets it wait for its turn.
    pub fn submit(&mut self, upload: Upload) {
        self.submit_behind(None, upload);
    }

    /// As [`Uploads::submit`]; it begins once the upload `earlier` has ended.
    pub fn submit_behind(&mut self, earlier: Option<u64>, upload: Upload) {
        self.open.insert(upload.id);
        self.waiting.push_back((earlier, upload));
        self.begin();
    }

    /// How many are stored at once.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether further ones would have to wait: then take no more items.
    pub fn are_full(&self) -> bool {
        !self.waiting.is_empty() || self.running.len() >= self.most
    }

    pub fn are_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Waits until none is left; what became of each, in the order in which they ended.
    pub async fn finish(&mut self) -> Vec<Finished> {
        let mut finished = Vec::new();
        while !self.are_idle() {
            finished.push(self.next().await);
        }
        finished
    }

    /// Waits for the next one to end, for ever where there is none. May be given up and called again.
    pub async fn next(&mut self) -> Finished {
        let (task, result) = match self.running.join_next_with_id().await {
            Some(Ok((task, result))) => (task, result),
            Some(Err(error)) => {
                let message = format!("an upload died, and its items are lost: {error}");
                (error.id(), Err(SinkError { message, hint: None }))
            }
            None => std::future::pending().await,
        };
        let id = self.tasks.remove(&task);
        if let Some(id) = id {
            self.open.remove(&id);
        }
        self.begin();
        Finished { id, result }
    }

    fn begin(&mut self) {
        while self.running.len() < self.most {
            let may_begin = |(earlier, _): &(Option<u64>, Upload)| earlier.is_none_or(|id| !self.open.contains(&id));
            let Some(position) = self.waiting.iter().position(may_begin) else { break };
            let Some((_, upload)) = self.waiting.remove(position) else { break };
            let id = upload.id;
            let task = self.running.spawn(run(upload, self.storage.clone(), self.retry.clone()));
            self.tasks.insert(task.id(), id);
        }
    }
}

async fn run(upload: Upload, storage: Arc<dyn Storage>, retry: Retry) -> Result<(), SinkError> {
    let Upload { id: _, work, items, output, if_exists } = upload;
    items.iter().for_each(|item| item.ack.begun());
    let result = async {
        if let Some(output) = &output
            && remember(&retry, output, Output::is_done).await?
        {
            return Ok(());
        }
        let mut is_skipped = false;
        let (puts, named_at) = match work {
            Work::Ready(puts) => (puts, None),
            Work::Make(make) => (made(make).await?, None),
            Work::Named { time, make } => {
                let before = match &output {
                    Some(output) => remember(&retry, output, Output::named_at).await?,
                    None => None,
                };
                let time = before.unwrap_or(time);
                (made(move || make(time)).await?, Some(time))
            }
        };
        // What was begun before, and perhaps stored, is ours.
        let is_ours = match &output {
            // Its index must not come again, whatever becomes of it.
            Some(output) if output.is_live() => {
                remember(&retry, output, Output::begin).await?;
                false
            }
            Some(output) if if_exists != IfExists::Overwrite => remember(&retry, output, Output::is_begun).await?,
            _ => false,
        };
        let mut is_begun = false;
        for put in puts {
            if if_exists != IfExists::Overwrite && !is_ours && is_there(&*storage, &retry, &put.key).await? {
                if if_exists == IfExists::Skip {
                    // Somebody else's: nothing is written down, which would make it ours.
                    is_skipped = true;
                    continue;
                }
                let message = format!("`{}` exists already", storage.location(&put.key));
                let hint = "move it away, choose other names, or write `if_exists = \"overwrite\"`";
                return Err(Failed::Lost(StorageError::new(Cause::Final, message).hint(hint)));
            }
            // Only now: nobody else has anything in its place.
            match (output.as_ref().filter(|output| !output.is_live() && !is_begun), named_at) {
                (Some(output), Some(time)) => remember(&retry, output, move |output| output.begin_at(time)).await?,
                (Some(output), None) if if_exists != IfExists::Overwrite => {
                    remember(&retry, output, Output::begin).await?;
                }
                _ => {}
            }
            is_begun = true;
            let stored = storage.put_retried(&retry, &put.key, &put.body, put.media_type).await;
            stored.map_err(Failed::Lost)?;
            items.iter().for_each(|item| item.ack.placed(&storage.location(&put.key)));
        }
        match &output {
            Some(output) if !is_skipped => remember(&retry, output, Output::done).await,
            _ => Ok(()),
        }
    };
    match result.await {
        Ok(()) => {
            let now = retry.clock.now();
            items.into_iter().for_each(|item| item.ack.deliver(now));
            Ok(())
        }
        Err(Failed::Lost(error)) => {
            items.iter().for_each(|item| item.ack.failed(&error.message));
            // Claims that are dropped are lost.
            Err(error.of_sink(&counted(&items, "lost")))
        }
        Err(Failed::Rejected(why)) => {
            let message = format!("{}: {why}", counted(&items, "rejected"));
            items.into_iter().for_each(|item| item.ack.settle(Verdict::Rejected));
            Err(SinkError { message, hint: None })
        }
    }
}

/// What is to be stored, made beside what waits.
async fn made(make: impl FnOnce() -> Result<Vec<Put>, ItemError> + Send + 'static) -> Result<Vec<Put>, Failed> {
    match tokio::task::spawn_blocking(make).await {
        Ok(Ok(puts)) => Ok(puts),
        Ok(Err(error)) => Err(Failed::Rejected(error.to_string())),
        Err(error) => Err(Failed::Rejected(error.to_string())),
    }
}

/// Looks into what is remembered of an output, or changes it; a full disk is waited for.
async fn remember<T: Send + 'static>(
    retry: &Retry,
    output: &Output,
    work: impl Fn(&Output) -> Result<T, StateError> + Copy + Send + Sync + 'static,
) -> Result<T, Failed> {
    let attempt = || async {
        let output = output.clone();
        let done = tokio::task::spawn_blocking(move || work(&output)).await;
        match done {
            Ok(done) => done.map_err(StateError::of_storage),
            Err(error) => Err(StorageError::new(Cause::Final, format!("progress cannot be kept: {error}"))),
        }
    };
    retry.run("cannot go on:", attempt).await.map_err(Failed::Lost)
}

/// Whether there is something under a key.
async fn is_there(storage: &dyn Storage, retry: &Retry, key: &str) -> Result<bool, Failed> {
    let attempt = || async {
        match storage.head(key).await {
            Ok(_) => Ok(true),
            Err(error) if error.cause == Cause::Missing => Ok(false),
            Err(error) => Err(error),
        }
    };
    retry.run("cannot look at", attempt).await.map_err(Failed::Lost)
}

enum Failed {
    Lost(StorageError),
    /// It could not be made.
    Rejected(String),
}

/// "3 items of stream `cam` are lost".
fn counted(items: &[Claim], fate: &str) -> String {
    let mut streams: Vec<&str> = items.iter().map(|item| &*item.stream).collect();
    streams.sort_unstable();
    streams.dedup();
    let streams = streams.join(", ");
    match items.len() {
        0 => "no item is touched, but something is not stored".to_owned(),
        1 => format!("an item of stream `{streams}` is {fate}"),
        count => format!("{count} items of stream `{streams}` are {fate}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;
    use std::sync::Mutex;
    use std::time::Duration;

    use bytes::Bytes;

    use crate::backoff::Backoff;
    use crate::clock::SystemClock;
    use crate::item::Payload;
    use crate::lease::Counts;
    use crate::operator::Trouble;
    use crate::sinks::records::tests::result;
    use crate::storage::Object;
    use crate::time::MediaTime;

    /// Refuses each key as often as it was told to, and remembers what it took.
    #[derive(Default)]
    struct Moody {
        refusals: Mutex<std::collections::BTreeMap<String, (u32, Option<Cause>)>>,
        stored: Mutex<Vec<String>>,
        /// What somebody else has put there.
        foreign: Mutex<BTreeSet<String>>,
    }

    #[async_trait::async_trait]
    impl Storage for Moody {
        fn location(&self, key: &str) -> String {
            key.to_owned()
        }

        async fn put(&self, key: &str, _body: &Body, _media_type: &str) -> Result<(), StorageError> {
            if let Some((left, cause)) = self.refusals.lock().unwrap().get_mut(key)
                && *left > 0
            {
                *left -= 1;
                return Err(StorageError::new(cause.unwrap_or(Cause::Temporary), format!("`{key}`: no")));
            }
            self.stored.lock().unwrap().push(key.to_owned());
            Ok(())
        }

        async fn delete(&self, key: &str) -> Result<(), StorageError> {
            panic!("`{key}` is to be deleted")
        }

        async fn get(&self, _: &str, _: Range<u64>, _: Option<&str>) -> Result<Bytes, StorageError> {
            Err(StorageError::new(Cause::Missing, "nothing"))
        }

        async fn head(&self, key: &str) -> Result<Object, StorageError> {
            let (stored, foreign) = (self.stored.lock().unwrap(), self.foreign.lock().unwrap());
            match foreign.contains(key) || stored.iter().any(|stored| stored == key) {
                true => Ok(Object { key: key.to_owned(), bytes: 1, etag: None, modified: None }),
                false => Err(StorageError::new(Cause::Missing, "nothing")),
            }
        }

        async fn list(&self, _: &str) -> Result<Vec<Object>, StorageError> {
            Ok(Vec::new())
        }
    }

    fn uploads(storage: &Arc<Moody>, most: usize, trouble: &Trouble) -> Uploads {
        let retry = Retry {
            retry_for: Duration::from_secs(3600),
            clock: Arc::new(SystemClock),
            trouble: trouble.clone(),
            node: "out".into(),
            backoff: Backoff { first: Duration::from_millis(1), most: Duration::from_millis(1) },
        };
        Uploads::new(storage.clone(), retry, most)
    }

    fn upload(id: u64, item: &Item) -> Upload {
        let put = Put { key: format!("key{id}"), body: Body::Bytes(Bytes::new()), media_type: "text/plain" };
        let items = vec![Claim::whole(item)];
        Upload { id, work: Work::Ready(vec![put]), items, output: None, if_exists: IfExists::Overwrite }
    }

    fn item() -> (Item, Arc<crate::lease::Account>) {
        let crate::item::Event::Item(record) = result(0) else { panic!("a record") };
        let Payload::Record(record) = record.payload else { panic!("a record") };
        crate::testing::item(0, MediaTime::from_micros(0), Payload::Record(record))
    }

    #[tokio::test]
    async fn an_item_is_delivered_once_it_is_stored_and_lost_where_that_failed_for_good() {
        let storage = Arc::new(Moody::default());
        storage.refusals.lock().unwrap().insert("key0".into(), (3, None));
        storage.refusals.lock().unwrap().insert("key1".into(), (1, Some(Cause::Final)));
        let mut uploads = uploads(&storage, 1, &Trouble::default());
        let (first, first_account) = item();
        let (second, second_account) = item();
        uploads.submit(upload(0, &first));
        assert!(uploads.are_full());
        uploads.submit(upload(1, &second));
        first.lease.ack.release();
        second.lease.ack.release();
        assert_eq!(first_account.snapshot().in_flight, 1);
        let finished = uploads.next().await;
        assert!(finished.id == Some(0) && finished.result.is_ok());
        assert_eq!(first_account.snapshot(), Counts { read: 1, delivered: 1, ..Counts::default() });
        let finished = uploads.next().await;
        let error = finished.result.unwrap_err();
        assert_eq!(error.message, "an item of stream `test` is lost: `key1`: no");
        assert_eq!(second_account.snapshot(), Counts { read: 1, lost: 1, ..Counts::default() });
        assert!(uploads.are_idle());
        assert_eq!(*storage.stored.lock().unwrap(), ["key0"]);
    }

    #[tokio::test]
    async fn what_cannot_be_made_is_rejected_and_what_is_given_up_is_lost() {
        let storage = Arc::new(Moody::default());
        let trouble = Trouble::default();
        let mut uploads = uploads(&storage, 4, &trouble);
        let (broken, account) = item();
        let make = Box::new(|| Err(ItemError::Failed("it has no pixels".into())));
        let items = vec![Claim::whole(&broken)];
        let work = Work::Make(make);
        uploads.submit(Upload { id: 0, work, items, output: None, if_exists: IfExists::Overwrite });
        broken.lease.ack.release();
        let error = uploads.next().await.result.unwrap_err();
        assert_eq!(error.message, "an item of stream `test` is rejected: it has no pixels");
        assert_eq!(account.snapshot().rejected, 1);

        storage.refusals.lock().unwrap().insert("key1".into(), (u32::MAX, None));
        let (waiting, account) = item();
        uploads.submit(upload(1, &waiting));
        waiting.lease.ack.release();
        while trouble.now().is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(account.snapshot().in_flight, 1, "it is tried again");
        drop(uploads);
        while account.snapshot().in_flight > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(account.snapshot().lost, 1);
    }

    /// Stores what `output` stands for once; what became of it.
    async fn store(storage: &Arc<Moody>, if_exists: IfExists, output: &Output) -> Counts {
        let mut uploads = uploads(storage, 1, &Trouble::default());
        let (item, account) = item();
        uploads.submit(Upload { output: Some(output.clone()), if_exists, ..upload(0, &item) });
        item.lease.ack.release();
        // Whether it failed is in the books.
        let _ = uploads.next().await;
        account.snapshot()
    }

    #[tokio::test]
    async fn what_somebody_else_has_there_is_not_ours_the_next_time() {
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(crate::progress::State::new(folder.path().to_owned()));
        let origin = crate::item::Origin { graph: "door".into(), node: "out".into() };
        let from = std::collections::BTreeMap::from([(Arc::from("out"), Arc::from("as it is"))]);
        let configuration = crate::progress::Configuration { from, ..Default::default() };
        let progress = crate::progress::Progress::new(state, origin, configuration);
        progress.open().unwrap();
        let played = progress.played("door.mp4".into(), "one".into());
        let output = progress.picture_output(&StreamId::new("door").unwrap(), &played, 7).unwrap();
        let storage = Arc::new(Moody::default());
        storage.foreign.lock().unwrap().insert("key0".into());
        for _ in 0..2 {
            assert_eq!(store(&storage, IfExists::Error, &output).await.lost, 1);
            assert_eq!(store(&storage, IfExists::Skip, &output).await.delivered, 1);
            assert!(!output.is_begun().unwrap() && storage.stored.lock().unwrap().is_empty());
        }
        // Begun and not done, as after a kill: what is there by now is ours.
        storage.foreign.lock().unwrap().clear();
        storage.refusals.lock().unwrap().insert("key0".into(), (1, Some(Cause::Final)));
        assert_eq!(store(&storage, IfExists::Error, &output).await.lost, 1);
        assert!(output.is_begun().unwrap() && !output.is_done().unwrap());
        storage.foreign.lock().unwrap().insert("key0".into());
        assert_eq!(store(&storage, IfExists::Error, &output).await.delivered, 1);
        assert!(output.is_done().unwrap());
        assert_eq!(store(&storage, IfExists::Error, &output).await.delivered, 1);
        assert_eq!(*storage.stored.lock().unwrap(), ["key0"], "once");
    }
}
