//! The lease: what bounds memory (credit) and what accounts for every item (ack).
//!
//! timely's queues are unbounded. So a source thread takes a [`Lease`] for each item before it emits it, and the lease
//! travels with the item. Its two halves are independent:
//!
//! - **credit**: a count and a number of bytes out of the stream's [`Budget`]. It comes back when the copy leaves
//!   memory: the bytes when the last holder of the payload drops it, the count when the last item derived from it is
//!   gone. A record keeps the count of the frame that it came from, so a stalled sink stops its source.
//! - **ack**: the item's fate. Every branch that holds a clone gives a [`Verdict`], the worst of them counts, and the
//!   [`Account`] of the stream is settled when the last clone is gone. A clone that is dropped without a verdict is
//!   `lost`: forgetting an item is never silent.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::item::Record;
use crate::lock::lock;
use crate::made::{Entered, Made, MadeFile};

/// How one item ended. The order is the severity: over several branches the worst counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// An operator decided that it is not wanted (sampling, a threshold).
    Filtered = 1,
    /// A sink accepted everything that came of it.
    Delivered = 2,
    /// A declared overflow policy discarded it.
    Dropped = 3,
    /// An operator failed on it, and would again; the error record in its place was delivered.
    Rejected = 4,
    /// A crash, the drain deadline, a failed sink, a failure that may be over the next time, or nobody gave a verdict.
    Lost = 5,
}

impl Verdict {
    pub const ALL: [Verdict; 5] =
        [Verdict::Filtered, Verdict::Delivered, Verdict::Dropped, Verdict::Rejected, Verdict::Lost];

    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Filtered => "filtered",
            Verdict::Delivered => "delivered",
            Verdict::Dropped => "dropped",
            Verdict::Rejected => "rejected",
            Verdict::Lost => "lost",
        }
    }

    const fn index(self) -> usize {
        self as usize - 1
    }

    /// The verdict behind a number; where nobody gave one, the item is lost.
    fn of(worst: u8) -> Verdict {
        Verdict::ALL.into_iter().find(|verdict| *verdict as u8 == worst).unwrap_or(Verdict::Lost)
    }
}

/// The books of one stream of one graph. `read` is raised where the source reads an item, a verdict where the item
/// ends, `in_flight` by the items that are alive: three independent places, so conservation
/// (`read == Σ verdicts + in_flight`) is a check and not a definition.
#[derive(Debug)]
pub struct Account {
    read: AtomicU64,
    in_flight: AtomicU64,
    verdicts: [AtomicU64; 5],
    /// Age in microseconds of delivered items, from decoding to the sink's acceptance.
    ages: Mutex<Histogram<u64>>,
    drops: Mutex<BTreeMap<(Arc<str>, &'static str), u64>>,
    /// How long each node has worked on its items.
    work: Mutex<BTreeMap<Arc<str>, Duration>>,
    /// What became of the files that were made of it.
    pub made: Made,
}

impl Default for Account {
    fn default() -> Self {
        Account {
            read: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            verdicts: Default::default(),
            // One microsecond to an hour, two significant digits: about 20 KB a stream.
            ages: Mutex::new(Histogram::new_with_bounds(1, 3_600_000_000, 2).expect("constant bounds are valid")),
            drops: Mutex::default(),
            work: Mutex::default(),
            made: Made::default(),
        }
    }
}

impl Account {
    /// A source read `count` items.
    pub fn read(&self, count: u64) {
        self.read.fetch_add(count, Ordering::Relaxed);
    }

    /// An item ended that never had a lease (a picture that nobody asked for).
    pub fn settle(&self, verdict: Verdict, count: u64) {
        self.verdicts[verdict.index()].fetch_add(count, Ordering::Relaxed);
    }

    /// Says where and why an item was dropped; its verdict is settled by its ack.
    pub fn dropped_by(&self, node: &Arc<str>, reason: &'static str) {
        *lock(&self.drops).entry((node.clone(), reason)).or_default() += 1;
    }

    /// `node` has worked on an item for `time`.
    pub fn worked(&self, node: &Arc<str>, time: Duration) {
        let mut work = lock(&self.work);
        match work.get_mut(node) {
            Some(sum) => *sum += time,
            None => drop(work.insert(node.clone(), time)),
        }
    }

    /// How long each node has worked on its items so far.
    pub fn work(&self) -> Vec<(Arc<str>, Duration)> {
        lock(&self.work).iter().map(|(node, time)| (node.clone(), *time)).collect()
    }

    /// Forgets the work of the nodes that are not to be kept: they are gone.
    pub fn keep_work(&self, keep: impl Fn(&str) -> bool) {
        lock(&self.work).retain(|node, _| keep(node));
    }

    pub fn snapshot(&self) -> Counts {
        // Verdicts before `read`: while items flow, a snapshot may show more in flight, never more settled than read.
        let verdict = |which: Verdict| self.verdicts[which.index()].load(Ordering::Acquire);
        let mut counts = Counts {
            filtered: verdict(Verdict::Filtered),
            delivered: verdict(Verdict::Delivered),
            dropped: verdict(Verdict::Dropped),
            rejected: verdict(Verdict::Rejected),
            lost: verdict(Verdict::Lost),
            ..Counts::default()
        };
        counts.in_flight = self.in_flight.load(Ordering::Acquire);
        counts.read = self.read.load(Ordering::Acquire);
        counts
    }

    /// Ages of delivered items so far, in microseconds.
    pub fn ages(&self) -> Histogram<u64> {
        lock(&self.ages).clone()
    }

    /// Forgets the ages seen so far, so that a benchmark's warm-up does not count.
    pub fn reset_ages(&self) {
        lock(&self.ages).reset();
    }

    /// Drops by node and reason.
    pub fn drops(&self) -> Vec<(Arc<str>, &'static str, u64)> {
        lock(&self.drops).iter().map(|((node, reason), count)| (node.clone(), *reason, *count)).collect()
    }
}

/// One reading of an [`Account`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub read: u64,
    pub delivered: u64,
    pub filtered: u64,
    pub dropped: u64,
    pub rejected: u64,
    pub lost: u64,
    pub in_flight: u64,
}

impl Counts {
    /// Whether every item that was read is accounted for. Exact once nothing is running.
    pub fn conserved(&self) -> bool {
        self.read == self.delivered + self.filtered + self.dropped + self.rejected + self.lost + self.in_flight
    }

    pub fn plus(self, other: Counts) -> Counts {
        Counts {
            read: self.read + other.read,
            delivered: self.delivered + other.delivered,
            filtered: self.filtered + other.filtered,
            dropped: self.dropped + other.dropped,
            rejected: self.rejected + other.rejected,
            lost: self.lost + other.lost,
            in_flight: self.in_flight + other.in_flight,
        }
    }
}

/// Hears what becomes of one source item. Called on whichever thread it happens, so it must not block.
pub trait Watch: Send + Sync {
    /// A node that answers made this of the item, or an error record that stands in its place. There may be several,
    /// all of them before the verdict.
    fn record(&self, record: &Arc<Record>);

    /// The item ended. Told once.
    fn ended(&self, verdict: Verdict);
}

/// Somebody's wish to hear of one item. It always ends exactly once: where it is dropped without a verdict, the item
/// is lost.
pub struct Watched(Option<Arc<dyn Watch>>);

impl Watched {
    pub fn new(watch: Arc<dyn Watch>) -> Watched {
        Watched(Some(watch))
    }

    pub fn record(&self, record: &Arc<Record>) {
        if let Some(watch) = &self.0 {
            watch.record(record);
        }
    }

    pub fn ended(mut self, verdict: Verdict) {
        if let Some(watch) = self.0.take() {
            watch.ended(verdict);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(watch) = self.0.take() {
            watch.ended(Verdict::Lost);
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Watched")
    }
}

#[derive(Debug)]
struct Fate {
    account: Arc<Account>,
    watched: Option<Watched>,
    /// The worst verdict so far; 0 while there is none.
    worst: AtomicU8,
    born: Instant,
    ended: Mutex<Option<Instant>>,
}

impl Fate {
    fn raise(&self, verdict: Verdict) {
        self.worst.fetch_max(verdict as u8, Ordering::AcqRel);
    }

    fn deliver(&self, now: Instant) {
        *lock(&self.ended) = Some(now);
        self.raise(Verdict::Delivered);
    }
}

/// What became of something that was made of many items: their fates are settled when the last branch of it ends.
#[derive(Debug)]
struct Merged {
    parts: Vec<Arc<Fate>>,
    worst: AtomicU8,
    ended: Mutex<Option<Instant>>,
    /// The file that was made of them.
    file: Option<FileClaim>,
}

/// A file in the books of its stream.
#[derive(Debug)]
struct FileClaim {
    account: Arc<Account>,
    file: Entered,
}

impl Drop for Merged {
    fn drop(&mut self) {
        let verdict = Verdict::of(*self.worst.get_mut());
        let ended = *self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        for part in &self.parts {
            match (verdict, ended) {
                (Verdict::Delivered, Some(now)) => part.deliver(now),
                _ => part.raise(verdict),
            }
        }
        // Whoever sees that it is over may look at the books of its items.
        self.parts.clear();
        if let Some(FileClaim { account, file }) = &self.file {
            account.made.ended(file, verdict, ended);
        }
    }
}

/// What an [`Ack`] claims.
#[derive(Clone, Debug)]
enum Claim {
    One(Arc<Fate>),
    Many(Arc<Merged>),
}

impl Claim {
    fn raise(&self, verdict: Verdict) {
        match self {
            Claim::One(fate) => fate.raise(verdict),
            Claim::Many(merged) => drop(merged.worst.fetch_max(verdict as u8, Ordering::AcqRel)),
        }
    }

    fn deliver(&self, now: Instant) {
        match self {
            Claim::One(fate) => fate.deliver(now),
            Claim::Many(merged) => {
                *lock(&merged.ended) = Some(now);
                self.raise(Verdict::Delivered);
            }
        }
    }

    fn parts(&self) -> &[Arc<Fate>] {
        match self {
            Claim::One(fate) => std::slice::from_ref(fate),
            Claim::Many(merged) => &merged.parts,
        }
    }
}

impl Drop for Fate {
    fn drop(&mut self) {
        let verdict = Verdict::of(*self.worst.get_mut());
        if verdict == Verdict::Delivered
            && let Some(ended) = *self.ended.get_mut().unwrap_or_else(PoisonError::into_inner)
        {
            let micros = u64::try_from(ended.saturating_duration_since(self.born).as_micros()).unwrap_or(u64::MAX);
            lock(&self.account.ages).saturating_record(micros.max(1));
        }
        self.account.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.account.settle(verdict, 1);
        // Whoever hears of it may look at the books.
        if let Some(watched) = self.watched.take() {
            watched.ended(verdict);
        }
    }
}

thread_local! {
    /// What becomes of an ack that this thread drops without a verdict.
    static UNSETTLED: Cell<Verdict> = const { Cell::new(Verdict::Lost) };
}

/// Lets `work` drop acks that have no verdict: their items are rejected and not lost, because it is known why they come to
/// nothing.
pub fn rejecting<R>(work: impl FnOnce() -> R) -> R {
    struct Restored(Verdict);
    impl Drop for Restored {
        fn drop(&mut self) {
            UNSETTLED.set(self.0);
        }
    }
    let _restored = Restored(UNSETTLED.replace(Verdict::Rejected));
    work()
}

/// One branch's claim on the fate of a source item. Cloning makes a further branch. Dropping one that was neither
/// settled nor released is the verdict [`Verdict::Lost`], but see [`rejecting`].
#[derive(Debug)]
pub struct Ack {
    claim: Option<Claim>,
}

impl Ack {
    /// Opens the books for a source item that is about to be emitted; `born` is when it was decoded.
    pub fn new(account: &Arc<Account>, born: Instant) -> Ack {
        Ack::watched(account, born, None)
    }

    /// As [`Ack::new`]; `watched` hears of the item.
    pub fn watched(account: &Arc<Account>, born: Instant, watched: Option<Watched>) -> Ack {
        account.in_flight.fetch_add(1, Ordering::AcqRel);
        let worst = AtomicU8::new(0);
        let fate = Fate { account: account.clone(), watched, worst, born, ended: Mutex::new(None) };
        Ack { claim: Some(Claim::One(Arc::new(fate))) }
    }

    /// One claim on the fates of all of these, for something that was made of them: they end as it does.
    pub fn merged(parts: Vec<Ack>) -> Ack {
        Ack::merge(parts, None)
    }

    /// As [`Ack::merged`], for a file that was made of them: what becomes of it is written into the books of their stream.
    pub fn of_file(parts: Vec<Ack>, file: MadeFile) -> Ack {
        Ack::merge(parts, Some(file))
    }

    fn merge(parts: Vec<Ack>, file: Option<MadeFile>) -> Ack {
        let mut fates = Vec::with_capacity(parts.len());
        for mut part in parts {
            match part.claim.take() {
                Some(Claim::One(fate)) => fates.push(fate),
                Some(Claim::Many(merged)) => {
                    fates.extend(merged.parts.iter().cloned());
                    // It has no verdict of its own: the new claim speaks for its parts.
                    merged.worst.fetch_max(Verdict::Filtered as u8, Ordering::AcqRel);
                }
                None => {}
            }
        }
        let account = fates.first().map(|fate| fate.account.clone());
        let file = file.zip(account).map(|(file, account)| FileClaim { file: account.made.add(file), account });
        let merged = Merged { parts: fates, worst: AtomicU8::new(0), ended: Mutex::new(None), file };
        Ack { claim: Some(Claim::Many(Arc::new(merged))) }
    }

    /// Lets whoever watches the item know of a record that was made of it.
    pub fn tell(&self, record: &Arc<Record>) {
        let fates = match &self.claim {
            Some(Claim::One(fate)) => std::slice::from_ref(fate),
            Some(Claim::Many(merged)) => &merged.parts,
            None => &[],
        };
        for watched in fates.iter().filter_map(|fate| fate.watched.as_ref()) {
            watched.record(record);
        }
    }

    /// The file is complete, which this is the claim of, and has so many bytes.
    pub fn sized(&self, bytes: u64) {
        if let Some(file) = self.file() {
            file.account.made.sized(file.file.number, bytes);
        }
    }

    /// Somebody begins to take the file to its place, which this is the claim of.
    pub fn begun(&self) {
        if let Some(file) = self.file() {
            file.account.made.begun(file.file.number);
        }
    }

    /// The file lies at `place`.
    pub fn placed(&self, place: &str) {
        if let Some(file) = self.file() {
            file.account.made.placed(file.file.number, place);
        }
    }

    /// Why the file will not come to its place.
    pub fn failed(&self, why: &str) {
        if let Some(file) = self.file() {
            file.account.made.failed(file.file.number, why);
        }
    }

    fn file(&self) -> Option<&FileClaim> {
        match &self.claim {
            Some(Claim::Many(merged)) => merged.file.as_ref(),
            _ => None,
        }
    }

    /// This branch ends here, with `verdict`.
    pub fn settle(mut self, verdict: Verdict) {
        if let Some(claim) = self.claim.take() {
            claim.raise(verdict);
        }
    }

    /// This branch ends here: a sink accepted it at `now`.
    pub fn deliver(mut self, now: Instant) {
        if let Some(claim) = self.claim.take() {
            claim.deliver(now);
        }
    }

    /// This branch ends here: the policy of `node` dropped it for `reason`.
    pub fn drop_at(mut self, node: &Arc<str>, reason: &'static str) {
        if let Some(claim) = self.claim.take() {
            claim.parts().iter().for_each(|fate| fate.account.dropped_by(node, reason));
            claim.raise(Verdict::Dropped);
        }
    }

    /// Raises the verdict without ending the branch: an error record carries the ack of the item that it stands for.
    pub fn raise(&self, verdict: Verdict) {
        if let Some(claim) = &self.claim {
            claim.raise(verdict);
        }
    }

    /// Lets go without a vote: other branches (what an operator emitted or holds) speak for the item. If there is no
    /// other branch and nobody raised a verdict, the item is lost.
    pub fn release(mut self) {
        self.claim = None;
    }

    /// When the source item was decoded or demuxed; the first of several.
    pub fn born(&self) -> Option<Instant> {
        self.claim.as_ref()?.parts().first().map(|fate| fate.born)
    }

    /// The books of the stream that it belongs to.
    pub fn account(&self) -> Option<&Arc<Account>> {
        self.claim.as_ref()?.parts().first().map(|fate| &fate.account)
    }
}

impl Clone for Ack {
    fn clone(&self) -> Self {
        Ack { claim: self.claim.clone() }
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            // A thread that ends has nothing more to say.
            claim.raise(UNSETTLED.try_with(Cell::get).unwrap_or(Verdict::Lost));
        }
    }
}

/// How much of one stream may be in memory behind one subscription: so many items, so many bytes of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    pub items: u32,
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Used {
    items: u32,
    bytes: u64,
    high_water_bytes: u64,
    /// Threads that wait for credit: a wake-up is a system call, also where nobody sleeps.
    waiting: u32,
    /// Credit of others that is kept back until there is room here.
    parked: Vec<Credit>,
}

/// A stream's credit account: blocks or refuses when what is in memory reaches its [`Limits`].
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    /// Where it is spent, the oldest waiting item makes room for the newest.
    newest_wins: bool,
    used: Mutex<Used>,
    returned: Condvar,
}

/// Why no credit was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCredit {
    /// Everything is lent out just now.
    Exhausted,
    /// The item alone is larger than the whole budget: waiting cannot help.
    TooLarge,
}

impl Budget {
    pub fn new(limits: Limits) -> Arc<Budget> {
        Arc::new(Budget { limits, newest_wins: false, used: Mutex::default(), returned: Condvar::new() })
    }

    /// As [`Budget::new`], for a stream whose newest item matters most: where it is spent, whoever has an older one that
    /// has only waited so far is asked to drop it ([`Credit::is_last`]).
    pub fn of_newest(limits: Limits) -> Arc<Budget> {
        Arc::new(Budget { limits, newest_wins: true, used: Mutex::default(), returned: Condvar::new() })
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Items and bytes lent out just now, and the most bytes that ever were.
    pub fn used(&self) -> (u32, u64, u64) {
        let used = lock(&self.used);
        (used.items, used.bytes, used.high_water_bytes)
    }

    /// Takes credit for one item of `bytes`, at once or not at all.
    pub fn try_acquire(self: &Arc<Self>, bytes: u64) -> Result<Credit, NoCredit> {
        self.take(&mut lock(&self.used), bytes)
    }

    /// As [`Budget::try_acquire`], but waits up to `at_most` (of real time) for credit to come back.
    pub fn acquire_within(self: &Arc<Self>, bytes: u64, at_most: Duration) -> Result<Credit, NoCredit> {
        let mut used = lock(&self.used);
        if !self.fits(&used, bytes) && bytes <= self.limits.bytes {
            used.waiting += 1;
            used = self
                .returned
                .wait_timeout_while(used, at_most, |used| !self.fits(used, bytes))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            used.waiting -= 1;
        }
        self.take(&mut used, bytes)
    }

    /// Takes credit for one item of `bytes` that is there already, also beyond the limits: whoever makes such items
    /// stops what they are made of with [`Budget::park`].
    pub fn overdraw(self: &Arc<Self>, bytes: u64) -> Credit {
        let mut used = lock(&self.used);
        used.items += 1;
        used.bytes += bytes;
        used.high_water_bytes = used.high_water_bytes.max(used.bytes);
        self.credit(bytes)
    }

    /// Where this budget is spent, keeps `credit` of another back until it has room again: so a source waits
    /// for what an operator has made of its items, though it has its own back at once otherwise.
    pub fn park(&self, credit: Credit) {
        let mut used = lock(&self.used);
        if self.is_spent(&used) {
            used.parked.push(credit);
        }
    }

    fn give_back(&self, items: u32, bytes: u64) {
        let parked = {
            let mut used = lock(&self.used);
            used.items -= items;
            used.bytes -= bytes;
            if used.waiting > 0 {
                self.returned.notify_one();
            }
            if self.is_spent(&used) { Vec::new() } else { std::mem::take(&mut used.parked) }
        };
        // Returned outside of the lock: it belongs to another budget, which may be waited for.
        drop(parked);
    }

    fn is_spent(&self, used: &Used) -> bool {
        used.items >= self.limits.items || used.bytes >= self.limits.bytes
    }

    fn fits(&self, used: &Used, bytes: u64) -> bool {
        used.items < self.limits.items && used.bytes + bytes <= self.limits.bytes
    }

    fn take(self: &Arc<Self>, used: &mut Used, bytes: u64) -> Result<Credit, NoCredit> {
        if bytes > self.limits.bytes {
            return Err(NoCredit::TooLarge);
        }
        if !self.fits(used, bytes) {
            return Err(NoCredit::Exhausted);
        }
        used.items += 1;
        used.bytes += bytes;
        used.high_water_bytes = used.high_water_bytes.max(used.bytes);
        Ok(self.credit(bytes))
    }

    fn credit(self: &Arc<Self>, bytes: u64) -> Credit {
        Credit {
            count: Arc::new(CountCredit { budget: self.clone() }),
            bytes: Some(Arc::new(ByteCredit { budget: self.clone(), bytes })),
        }
    }
}

#[derive(Debug)]
struct CountCredit {
    budget: Arc<Budget>,
}

impl Drop for CountCredit {
    fn drop(&mut self) {
        self.budget.give_back(1, 0);
    }
}

#[derive(Debug)]
struct ByteCredit {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for ByteCredit {
    fn drop(&mut self) {
        self.budget.give_back(0, self.bytes);
    }
}

/// Credit that was taken for one item. Clones share it; it returns when the last one is gone.
#[derive(Clone, Debug)]
pub struct Credit {
    count: Arc<CountCredit>,
    #[expect(dead_code, reason = "returns the bytes when dropped")]
    bytes: Option<Arc<ByteCredit>>,
}

impl Credit {
    /// Whether this is the last credit of a budget that is for the newest: without room, the next item will be dropped.
    pub fn is_last(&self) -> bool {
        let budget = &self.count.budget;
        budget.newest_wins && lock(&budget.used).items >= budget.limits.items
    }
}

/// What an item carries: its share of memory and its claim on a fate.
#[derive(Clone, Debug)]
pub struct Lease {
    pub credit: Option<Credit>,
    pub ack: Ack,
}

impl Lease {
    pub fn new(credit: Credit, ack: Ack) -> Lease {
        Lease { credit: Some(credit), ack }
    }

    /// The lease of something small that was derived from this item (a record): it keeps the count, so that the
    /// source stops when derived items pile up, and gives up the claim on the payload's bytes.
    pub fn derived(&self) -> Lease {
        let credit = self.credit.as_ref().map(|credit| Credit { count: credit.count.clone(), bytes: None });
        Lease { credit, ack: self.ack.clone() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "ages are not under test here")]

    use std::time::SystemTime;

    use super::*;
    use crate::item::{Origin, RecordBody, StreamId};
    use proptest::prelude::*;

    fn opened(account: &Arc<Account>) -> Ack {
        account.read(1);
        Ack::new(account, Instant::now())
    }

    #[test]
    fn an_item_without_a_verdict_is_lost() {
        let account = Arc::new(Account::default());
        drop(opened(&account));
        opened(&account).release();
        assert_eq!(account.snapshot(), Counts { read: 2, lost: 2, ..Counts::default() });
    }

    #[test]
    fn what_is_dropped_for_a_known_reason_is_rejected() {
        let account = Arc::new(Account::default());
        let (held, delivered) = (vec![opened(&account), opened(&account)], opened(&account));
        rejecting(|| {
            drop(held);
            delivered.deliver(Instant::now());
        });
        // A panic on the way does not change what comes after.
        let panicking = opened(&account);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            rejecting(|| {
                drop(panicking);
                panic!("while it was dropped");
            });
        }));
        assert!(panicked.is_err());
        drop(opened(&account));
        let counts = Counts { read: 5, rejected: 3, delivered: 1, lost: 1, ..Counts::default() };
        assert_eq!(account.snapshot(), counts);
    }

    #[test]
    fn an_item_in_hand_is_in_flight() {
        let account = Arc::new(Account::default());
        let ack = opened(&account);
        assert_eq!(account.snapshot(), Counts { read: 1, in_flight: 1, ..Counts::default() });
        ack.deliver(Instant::now());
        assert_eq!(account.snapshot(), Counts { read: 1, delivered: 1, ..Counts::default() });
        assert_eq!(account.ages().len(), 1);
    }

    #[test]
    fn forgetting_an_item_breaks_conservation_visibly() {
        let account = Arc::new(Account::default());
        std::mem::forget(opened(&account));
        assert_eq!(account.snapshot().in_flight, 1, "a leaked item stays in flight for ever");
    }

    #[test]
    fn bytes_return_with_the_payload_and_the_count_with_the_last_record() {
        let account = Arc::new(Account::default());
        let budget = Budget::new(Limits { items: 1, bytes: 100 });
        let lease = Lease::new(budget.try_acquire(100).unwrap(), opened(&account));
        assert_eq!(budget.try_acquire(1).unwrap_err(), NoCredit::Exhausted);
        let record = lease.derived();
        lease.ack.release();
        drop(lease.credit);
        assert_eq!(budget.used(), (1, 0, 100));
        record.ack.settle(Verdict::Delivered);
        drop(record.credit);
        assert_eq!(budget.used(), (0, 0, 100));
    }

    #[test]
    fn what_is_made_of_many_items_ends_for_all_of_them() {
        let account = Arc::new(Account::default());
        let acks: Vec<Ack> = (0..3).map(|_| opened(&account)).collect();
        // A second branch of the first item, which is filtered: the worse verdict of the merged branch counts.
        acks[0].clone().settle(Verdict::Filtered);
        let merged = Ack::merged(acks);
        let (kept, sent) = (merged.clone(), merged);
        sent.deliver(Instant::now());
        assert_eq!(account.snapshot().in_flight, 3, "another branch still holds them");
        kept.release();
        assert_eq!(account.snapshot(), Counts { read: 3, delivered: 3, ..Counts::default() });
        assert_eq!(account.ages().len(), 3);

        let acks = (0..2).map(|_| opened(&account)).collect();
        drop(Ack::merged(acks));
        let twice = Ack::merged(vec![Ack::merged(vec![opened(&account)]), opened(&account)]);
        twice.settle(Verdict::Dropped);
        assert_eq!(account.snapshot(), Counts { read: 7, delivered: 3, dropped: 2, lost: 2, ..Counts::default() });
    }

    #[test]
    fn credit_that_is_parked_returns_when_what_was_made_leaves() {
        let source = Budget::new(Limits { items: 2, bytes: 10 });
        let made = Budget::new(Limits { items: 1, bytes: 100 });
        made.park(source.try_acquire(1).unwrap());
        assert_eq!(source.used().0, 0, "there is room: it goes back at once");
        let (first, second) = (made.overdraw(60), made.overdraw(60));
        made.park(source.try_acquire(1).unwrap());
        assert_eq!((source.used().0, made.used().0), (1, 2));
        drop(first);
        assert_eq!(source.used().0, 1, "still spent");
        made.park(source.try_acquire(1).unwrap());
        assert_eq!(source.used().0, 2);
        drop(second);
        assert_eq!((source.used().0, made.used()), (0, (0, 0, 120)));
    }

    #[test]
    fn an_item_larger_than_the_budget_is_refused_at_once() {
        let budget = Budget::new(Limits { items: 8, bytes: 10 });
        assert_eq!(budget.acquire_within(11, Duration::from_secs(3600)).unwrap_err(), NoCredit::TooLarge);
    }

    /// What was heard, in order.
    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Watch for Heard {
        fn record(&self, record: &Arc<Record>) {
            lock(&self.0).push(record.id.clone());
        }

        fn ended(&self, verdict: Verdict) {
            lock(&self.0).push(verdict.name().to_owned());
        }
    }

    #[test]
    fn whoever_watches_an_item_hears_its_records_and_its_verdict_once() {
        let account = Arc::new(Account::default());
        account.read(2);
        let heard = Arc::new(Heard::default());
        let ack = Ack::watched(&account, Instant::now(), Some(Watched::new(heard.clone())));
        let origin = Origin { graph: "g".into(), node: "n".into() };
        let body = RecordBody::Gap { reason: "none".into() };
        let record = origin.signal(&StreamId::sanitised("s"), Some(0), SystemTime::UNIX_EPOCH, body);
        let branch = ack.clone();
        ack.tell(&Arc::new(record));
        ack.settle(Verdict::Delivered);
        assert_eq!(lock(&heard.0).len(), 1, "a branch is left");
        branch.settle(Verdict::Rejected);
        assert_eq!(*lock(&heard.0), ["g/n/s/gap:0", "rejected"]);
        drop(Ack::watched(&account, Instant::now(), Some(Watched::new(heard.clone()))));
        drop(Watched::new(heard.clone()));
        Watched::new(heard.clone()).ended(Verdict::Filtered);
        assert_eq!(lock(&heard.0)[2..], ["lost", "lost", "filtered"]);
        assert!(account.snapshot().conserved());
    }

    proptest! {
        #[test]
        fn the_worst_branch_counts_in_any_order(mut verdicts in proptest::collection::vec(1u8..=5, 1..8)) {
            let account = Arc::new(Account::default());
            let ack = opened(&account);
            let branches: Vec<_> = verdicts.iter().map(|_| ack.clone()).collect();
            ack.release();
            for (branch, verdict) in branches.into_iter().zip(&verdicts) {
                let verdict = Verdict::ALL[usize::from(*verdict) - 1];
                if verdict == Verdict::Lost { drop(branch) } else { branch.settle(verdict) }
            }
            verdicts.sort_unstable();
            let worst = Verdict::ALL[usize::from(*verdicts.last().unwrap()) - 1];
            prop_assert_eq!(account.verdicts[worst.index()].load(Ordering::Relaxed), 1);
            prop_assert!(account.snapshot().conserved());
            prop_assert_eq!(account.snapshot().in_flight, 0);
        }
    }
}
