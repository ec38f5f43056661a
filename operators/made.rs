//! What became of the files that were made of a stream, and how many there were: kept in the books of the stream, beside
//! the counts of its items, for whoever looks and for whoever makes the next.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::lease::Verdict;

/// How many of the latest files are remembered.
const REMEMBERED: usize = 100;
/// Of how many nodes it is remembered which index comes next; a graph that runs may have had many.
const MOST_NODES: usize = 256;

/// One file, and how far it has come.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MadeFile {
    pub name: String,
    /// The node that made it.
    pub node: Arc<str>,
    pub index: u64,
    /// Seconds since the stream's first picture.
    pub start: f64,
    pub end: f64,
    /// 0 until it is complete.
    pub bytes: u64,
    pub state: FileState,
    /// Where it lies, or its id there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far a file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// It waits for whoever takes it to its place.
    Queued,
    Uploading,
    Uploaded,
    Failed,
}

/// The files of one stream, and their number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MadeFiles {
    /// The latest ones, the oldest first.
    pub latest: Vec<MadeFile>,
    pub made: u64,
    pub uploaded: u64,
    pub failed: u64,
    /// Seconds of the stream that were uploaded; where several nodes make files of it, by the one with the fewest.
    pub seconds: f64,
    /// When the last of them was.
    pub last: Option<Instant>,
}

/// The books of the files of one stream.
#[derive(Default)]
pub struct Made(Mutex<Books>);

#[derive(Default)]
struct Books {
    files: VecDeque<(u64, MadeFile)>,
    /// The number of the next file.
    next: u64,
    /// The number of the stream's first file, this time.
    first: u64,
    made: u64,
    uploaded: u64,
    failed: u64,
    /// How far each node has made files, and how much of that was uploaded, in seconds.
    lengths: BTreeMap<Arc<str>, Lengths>,
    last: Option<Instant>,
    cover: Option<Cover>,
    /// How often the stream began anew.
    reading: u64,
    indices: Indices,
}

/// Which index the next file has, by the node that makes it.
pub type Indices = BTreeMap<Arc<str>, NextIndex>;

/// The index of the next file of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextIndex {
    next: u64,
    /// What its stream plays does not come again, so no index does.
    is_live: bool,
}

/// Which reading of a stream somebody numbers files of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading(u64);

#[derive(Clone, Copy, Default)]
struct Lengths {
    made_until: f64,
    uploaded: f64,
}

/// A file in the books, for whoever says what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Entered {
    pub number: u64,
    node: Arc<str>,
    /// Seconds of it that no file before had.
    seconds: f64,
}

/// Covers what is secret in a text.
type Cover = Box<dyn Fn(&str) -> String + Send>;

impl fmt::Debug for Made {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Made({:?})", self.files())
    }
}

impl Made {
    /// From here on, `cover` is what every text goes through before anybody sees it.
    pub fn cover_with(&self, cover: impl Fn(&str) -> String + Send + 'static) {
        self.books().cover = Some(Box::new(cover));
    }

    /// The stream begins anew: so do the indices of files, but for those of a live one.
    pub fn clear(&self) {
        let mut books = self.books();
        let mut indices = std::mem::take(&mut books.indices);
        indices.retain(|_, index| index.is_live);
        // Numbers are not used twice: something of before may still be on its way.
        let (cover, next, reading) = (books.cover.take(), books.next, books.reading + 1);
        *books = Books { cover, next, first: next, reading, indices, ..Books::default() };
    }

    /// Which indices come next.
    pub fn indices(&self) -> Indices {
        self.books().indices.clone()
    }

    /// Indices go on as they were told of the same stream before.
    pub fn go_on_from(&self, indices: Indices) {
        self.books().indices = indices;
    }

    /// The index of the next file that `node` makes, `least` or more. It goes on where the node was changed or has lost its
    /// state. Who asks remembers `reading`, and that nobody else gets an index of it; of a reading that is over, `least` is
    /// all that is known.
    pub(crate) fn next_index(&self, node: &Arc<str>, least: u64, is_live: bool, reading: &mut Option<Reading>) -> u64 {
        let mut books = self.books();
        let Reading(reading) = *reading.get_or_insert(Reading(books.reading));
        if !is_live && reading != books.reading {
            return least;
        }
        let index = books.indices.get(node).map_or(least, |known| known.next.max(least));
        if books.indices.len() >= MOST_NODES && !books.indices.contains_key(node) {
            books.indices.pop_first();
        }
        books.indices.insert(node.clone(), NextIndex { next: index + 1, is_live });
        index
    }

    pub fn files(&self) -> MadeFiles {
        let books = self.books();
        MadeFiles {
            latest: books.files.iter().map(|(_, file)| file.clone()).collect(),
            made: books.made,
            uploaded: books.uploaded,
            failed: books.failed,
            seconds: books.lengths.values().map(|lengths| lengths.uploaded).reduce(f64::min).unwrap_or_default(),
            last: books.last,
        }
    }

    /// A file was made; answers where it stands in these books.
    pub(crate) fn add(&self, file: MadeFile) -> Entered {
        let mut books = self.books();
        let lengths = books.lengths.entry(file.node.clone()).or_default();
        let seconds = (file.end - file.start.max(lengths.made_until)).max(0.0);
        lengths.made_until = lengths.made_until.max(file.end);
        let node = file.node.clone();
        let number = books.next;
        books.next += 1;
        books.made += 1;
        books.files.push_back((number, file));
        if books.files.len() > REMEMBERED {
            books.files.pop_front();
        }
        Entered { number, node, seconds }
    }

    /// A file is complete.
    pub(crate) fn sized(&self, number: u64, bytes: u64) {
        self.books().change(number, |file, _| file.bytes = bytes);
    }

    pub(crate) fn begun(&self, number: u64) {
        self.books().change(number, |file, _| {
            if file.state == FileState::Queued {
                file.state = FileState::Uploading;
            }
        });
    }

    pub(crate) fn placed(&self, number: u64, place: &str) {
        self.books().change(number, |file, cover| file.place = Some(cover(place)));
    }

    pub(crate) fn failed(&self, number: u64, why: &str) {
        self.books().change(number, |file, cover| file.error = Some(cover(why)));
    }

    /// All that was to be done with a file is done.
    pub(crate) fn ended(&self, file: &Entered, verdict: Verdict, at: Option<Instant>) {
        let mut books = self.books();
        let is_there = matches!(verdict, Verdict::Delivered | Verdict::Filtered);
        if is_there {
            books.uploaded += 1;
            // Those of a stream that began anew are others.
            if file.number >= books.first
                && let Some(lengths) = books.lengths.get_mut(&file.node)
            {
                lengths.uploaded += file.seconds;
            }
        } else {
            books.failed += 1;
        }
        books.last = books.last.max(at);
        books.change(file.number, |file, _| {
            file.state = if is_there { FileState::Uploaded } else { FileState::Failed };
            if !is_there && file.error.is_none() {
                file.error = Some(format!("it is {}", verdict.name()));
            }
        });
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Numbers and texts are whole at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    fn change(&mut self, number: u64, change: impl FnOnce(&mut MadeFile, &dyn Fn(&str) -> String)) {
        let Books { files, cover, .. } = self;
        let cover = |text: &str| cover.as_ref().map_or_else(|| text.to_owned(), |cover| cover(text));
        if let Some((_, file)) = files.iter_mut().rev().find(|(other, _)| *other == number) {
            change(file, &cover);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Account, Ack};

    use crate::clock::{Clock, SimulatedClock};

    fn file(index: u64) -> MadeFile {
        MadeFile {
            name: format!("door_chunk_{index:04}.mp4"),
            node: "chunks".into(),
            index,
            start: index as f64,
            end: index as f64 + 1.0,
            bytes: 5,
            state: FileState::Queued,
            place: None,
            error: None,
        }
    }

    #[test]
    fn a_file_is_followed_to_its_place() {
        let now = SimulatedClock::default().now();
        let account = Arc::new(Account::default());
        account.made.cover_with(|text| text.replace("hunter2", "[secret]"));
        let make = |index| {
            account.read(1);
            Ack::of_file(vec![Ack::new(&account, now)], file(index))
        };
        let (first, second, third) = (make(0), make(1), make(2));
        first.sized(17);
        first.begun();
        let state = |index: usize| account.made.files().latest[index].clone();
        assert_eq!((state(0).state, state(1).state), (FileState::Uploading, FileState::Queued));
        assert_eq!((state(0).bytes, state(1).bytes), (17, 5));
        first.placed("s3://hunter2/door_chunk_0000.mp4");
        let other = first.clone();
        first.deliver(now);
        assert_eq!(state(0).state, FileState::Uploading, "another sink has it still");
        other.deliver(now);
        assert_eq!(state(0).place.as_deref(), Some("s3://[secret]/door_chunk_0000.mp4"));
        second.failed("hunter2 is full");
        drop(second);
        third.settle(Verdict::Rejected);
        assert_eq!((state(1).state, state(1).error.as_deref()), (FileState::Failed, Some("[secret] is full")));
        assert_eq!((state(2).state, state(2).error.as_deref()), (FileState::Failed, Some("it is rejected")));
        let files = account.made.files();
        assert_eq!((files.made, files.uploaded, files.failed, files.seconds, files.last), (3, 1, 2, 1.0, Some(now)));
        assert_eq!(account.snapshot().in_flight, 0);
        account.made.clear();
        assert_eq!(account.made.files(), MadeFiles::default());
    }

    #[test]
    fn an_index_goes_on_until_what_is_played_begins_anew() {
        let made = Made::default();
        let (chunks, others): (Arc<str>, Arc<str>) = ("chunks".into(), "others".into());
        let next = |is_live, least, reading: &mut Option<Reading>| made.next_index(&chunks, least, is_live, reading);
        let mut first = None;
        assert_eq!([next(false, 0, &mut first), next(false, 1, &mut first)], [0, 1]);
        // The node was changed, or has lost its state.
        let mut changed = None;
        assert_eq!([next(false, 0, &mut changed), next(false, 3, &mut changed)], [2, 3]);
        assert_eq!(made.next_index(&others, 0, false, &mut None), 0);
        made.clear();
        // What is left of the reading before takes nothing of the next one.
        assert_eq!(next(false, 4, &mut changed), 4);
        assert_eq!(next(false, 0, &mut None), 0);

        let mut live = None;
        assert_eq!([next(true, 0, &mut live), next(true, 7, &mut live)], [1, 7]);
        made.clear();
        assert_eq!([next(true, 8, &mut live), next(true, 0, &mut None)], [8, 9]);
        let told_again = Made::default();
        told_again.go_on_from(made.indices());
        assert_eq!(told_again.next_index(&chunks, 0, true, &mut None), 10);
        for node in 0..2 * MOST_NODES {
            made.next_index(&format!("node{node}").into(), 0, true, &mut None);
        }
        assert_eq!(made.indices().len(), MOST_NODES);
    }

    #[test]
    fn what_is_uploaded_out_of_order_counts_as_what_it_is() {
        let now = SimulatedClock::default().now();
        let account = Arc::new(Account::default());
        let make = |file: MadeFile| {
            account.read(1);
            Ack::of_file(vec![Ack::new(&account, now)], file)
        };
        let mut chunks: Vec<Ack> = (0..4).map(|index| make(file(index))).collect();
        let seconds = || account.made.files().seconds;
        chunks.pop().unwrap().deliver(now);
        assert_eq!(seconds(), 1.0, "the last one alone");
        // Another node is not so far, and what it has made twice counts once.
        let again = [0.0, 0.5].map(|start| make(MadeFile { node: "clips".into(), start, end: start + 1.0, ..file(0) }));
        assert_eq!(seconds(), 0.0);
        again.into_iter().for_each(|clip| clip.deliver(now));
        assert_eq!(seconds(), 1.0);
        chunks.pop().unwrap().deliver(now);
        assert_eq!(seconds(), 1.5);
        chunks.pop().unwrap().deliver(now);
        assert_eq!(seconds(), 1.5, "two clips of a second that overlap by half of it");
        // What is on its way while the stream begins anew is not of the new one.
        account.made.clear();
        let anew = make(file(0));
        chunks.pop().unwrap().deliver(now);
        assert_eq!(seconds(), 0.0);
        anew.deliver(now);
        assert_eq!(seconds(), 1.0);
    }

    #[test]
    fn only_the_latest_files_are_remembered_and_all_are_counted() {
        let now = SimulatedClock::default().now();
        let account = Arc::new(Account::default());
        for index in 0..500 {
            Ack::of_file(vec![Ack::new(&account, now)], file(index)).deliver(now);
        }
        let files = account.made.files();
        assert_eq!((files.latest.len(), files.latest[0].index, files.uploaded), (REMEMBERED, 400, 500));
    }
}
