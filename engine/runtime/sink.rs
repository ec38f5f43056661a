//! Feeds sinks: events go from every worker through one bounded queue to one writer on the io runtime, which
//! acknowledges items once the sink has accepted them. A writer may outlive the generation of the graph that opened it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use operators::encoding::Encoding;
use operators::error::SinkError;
use operators::item::{EndReason, Event};
use operators::lease::{Account, Verdict};
use operators::lock::lock;
use operators::operator::{SinkWriter, Trouble};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::activate::SyncActivator;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::amounts::counted;
use super::counters::{NodeCounters, worth_logging};
use super::entry::{Admission, Entry};
use super::failure::Notice;
use super::node::{Node, is_error};
use super::passage::Passage;
use super::tally::Tally;
use crate::graph::plan::{self, OnError};

/// Events that wait for the writer; behind them the worker's own queue waits, bounded by leases.
const QUEUE: usize = 256;

/// The way from the workers to one sink's writer. It outlives a generation of the graph where the sink does.
pub struct Intake {
    sender: Mutex<Option<Sender<Event>>>,
    /// What the writer reads once everybody who writes to it now has hung up.
    next: Mutex<Next>,
    /// For each worker: whom to wake when there is room again, and whether somebody waits for it.
    room: Vec<(Mutex<Vec<SyncActivator>>, AtomicBool)>,
    /// Errors of the writer end the graph; the youngest generation says so.
    stops: AtomicBool,
    /// What the writer was handed and has not written.
    pub(super) waiting: Tally,
}

#[derive(Default)]
struct Next {
    queues: VecDeque<Receiver<Event>>,
    /// The writer has seen that there is none, and closes.
    is_closed: bool,
}

/// Makes the queue of a sink for `workers` workers. What waits in it is counted in `counters`.
pub fn intake(workers: usize, counters: &Arc<NodeCounters>) -> (Arc<Intake>, Receiver<Event>) {
    let (sender, receiver) = channel(QUEUE);
    let room = (0..workers).map(|_| (Mutex::default(), AtomicBool::new(false))).collect();
    let intake = Intake {
        sender: Mutex::new(Some(sender)),
        next: Mutex::default(),
        room,
        stops: AtomicBool::new(false),
        waiting: Tally::new(counters),
    };
    (Arc::new(intake), receiver)
}

impl Intake {
    /// What errors of the writer mean from here on.
    pub fn set_on_error(&self, on_error: OnError) {
        self.stops.store(on_error == OnError::Stop, Ordering::Release);
    }

    /// No further generation will write: the writer ends when those that do have hung up.
    pub fn seal(&self) {
        lock(&self.sender).take();
    }

    /// Another generation is to write, whether or not the one before has come to its end. `false` where the writer closes
    /// already.
    pub fn reopen(&self) -> bool {
        let mut sender = lock(&self.sender);
        if sender.is_some() {
            return true;
        }
        let mut next = lock(&self.next);
        if next.is_closed {
            return false;
        }
        let (again, queue) = channel(QUEUE);
        *sender = Some(again);
        next.queues.push_back(queue);
        true
    }

    /// For the writer, when everybody has hung up: what it reads next, if anything.
    fn next(&self) -> Option<Receiver<Event>> {
        let mut next = lock(&self.next);
        let queue = next.queues.pop_front();
        next.is_closed = queue.is_none();
        queue
    }

    /// A generation is gone: nobody of it waits for room. The youngest activator of each worker is the one that stays.
    pub fn forget_older(&self) {
        for (wakers, _) in &self.room {
            let mut wakers = lock(wakers);
            let older = wakers.len().saturating_sub(1);
            wakers.drain(..older);
        }
    }

    /// Wakes the workers that wait for room, or for the news that there will be none.
    pub fn wake_waiting(&self) {
        // Pairs with the fence in `push`: either this sees that somebody waits, or that one sees the room.
        fence(Ordering::SeqCst);
        for (wakers, waits) in &self.room {
            if waits.swap(false, Ordering::AcqRel) {
                for waker in lock(wakers).iter() {
                    // Fails only when the worker is gone.
                    let _ = waker.activate();
                }
            }
        }
    }
}

/// A sink's end in one generation.
#[derive(Clone)]
pub struct SinkEnd {
    pub node: Node,
    pub intake: Arc<Intake>,
    pub entry: Option<plan::Entry>,
    pub generation: u64,
    /// Its writer was opened for this generation, and knows of no stream yet.
    pub is_new: bool,
    /// The generation is being taken down: an empty frontier means nothing any more.
    pub frozen: Arc<AtomicBool>,
}

/// Adds the sink's end to the dataflow. On an empty frontier it hangs up and reports [`Notice::EndReached`].
pub fn sink(input: StreamVec<'_, u64, Passage>, end: SinkEnd) {
    let scope = input.scope();
    let worker = scope.index();
    let mut builder = OperatorBuilder::new(end.node.origin.node.to_string(), scope);
    let mut input = builder.new_input(input, Pipeline);
    let info = builder.operator_info();
    let mut sender = lock(&end.intake.sender).clone();
    if let Some((wakers, _)) = end.intake.room.get(worker) {
        lock(wakers).push(scope.worker().sync_activator_for(info.address.to_vec()));
    }
    // A sink holds no capability, so timely would take it down on an empty frontier, with what still waits for room in
    // the writer's queue: it answers whether it is incomplete.
    builder.build_reschedule(move |_capabilities| {
        let mut entry = Entry::new(end.entry);
        let mut pending: VecDeque<Passage> = VecDeque::new();
        // What waits here when the dataflow is taken down is gone with it.
        let waiting = Tally::new(&end.node.counters);
        move |frontiers| {
            let before = pending.len();
            let mut items = 0;
            input.for_each(|_time, passages| {
                for passage in passages.drain(..) {
                    items += u64::from(passage.is_item());
                    match passage {
                        Passage::Event(event) => admit(event, entry.as_mut(), &mut pending, &end.node),
                        mark => note(mark, &mut pending, &end),
                    }
                }
            });
            end.node.counters.items(worker, items);
            let Some(open) = &sender else { return false };
            let handed = push(open, &mut pending, &end.intake, worker);
            // What the writer has taken over waits until it is written.
            end.intake.waiting.add(handed);
            waiting.add(pending.len() as i64 - before as i64);
            if frontiers[0].is_empty() && pending.is_empty() && !end.frozen.load(Ordering::Acquire) {
                sender = None;
                end.node.notices.send(Notice::EndReached { generation: end.generation });
            }
            !pending.is_empty()
        }
    });
}

/// What the marks of a cut mean to a writer: nothing where it goes on, else that streams end or open.
fn note(mark: Passage, pending: &mut VecDeque<Passage>, end: &SinkEnd) {
    let name = &end.node.origin.node;
    match mark {
        Passage::Cut { stream, cut } => {
            if cut.arrives(name) {
                if !cut.keeps(name) {
                    let over = Event::End { stream: stream.clone(), reason: EndReason::Reload };
                    pending.push_back(Passage::Event(over));
                }
                // Behind everything that came before it: the writer's queue is what the next generation writes to.
                pending.push_back(Passage::Cut { stream, cut });
            }
        }
        // It was opened for this generation, or the stream comes to it by this one alone.
        Passage::Resume { stream, cut, info: Some(info) }
            if (end.is_new || !cut.keeps(name)) && cut.take_over(name).is_some() =>
        {
            pending.push_back(Passage::Event(Event::Open { stream, info }));
        }
        Passage::Resume { .. } | Passage::Event(_) => {}
    }
}

/// Puts an event into the worker's queue, by the entry's policy where the branch has one.
fn admit(event: Event, entry: Option<&mut Entry>, pending: &mut VecDeque<Passage>, node: &Node) {
    let (mut item, entry) = match (event, entry) {
        (Event::Item(item), Some(entry)) if !is_error(&item) => (item, entry),
        (event, _) => {
            pending.push_back(Passage::Event(event));
            return;
        }
    };
    loop {
        match entry.admit(&mut item) {
            Admission::Admitted => break,
            Admission::TooLarge(error) => {
                let record = node.reject(&item, &error);
                item.lease.ack.release();
                pending.push_back(Passage::Event(Event::Item(record)));
                return;
            }
            Admission::Full => {}
        }
        // An error record stands for an item that was rejected already: it is not dropped on top.
        let of_stream = |passage: &Passage| matches!(passage, Passage::Event(Event::Item(oldest)) if oldest.stream == item.stream && !is_error(oldest));
        match pending.iter().position(of_stream).and_then(|index| pending.remove(index)) {
            Some(Passage::Event(Event::Item(oldest))) => node.drop_item(oldest),
            _ => {
                node.drop_item(item);
                return;
            }
        }
    }
    pending.push_back(Passage::Event(Event::Item(item)));
}

/// Hands as much to the writer as its queue takes; how many events that were.
fn push(sender: &Sender<Event>, pending: &mut VecDeque<Passage>, intake: &Intake, worker: usize) -> i64 {
    let mut handed = 0;
    while let Some(passage) = pending.pop_front() {
        let event = match passage {
            Passage::Event(event) => event,
            Passage::Cut { cut, .. } => {
                cut.reaches_end();
                continue;
            }
            Passage::Resume { .. } => continue,
        };
        match sender.try_send(event) {
            Ok(()) => handed += 1,
            Err(TrySendError::Full(event)) => {
                pending.push_front(Passage::Event(event));
                let Some((_, waits)) = intake.room.get(worker) else { return handed };
                waits.store(true, Ordering::Release);
                fence(Ordering::SeqCst);
                // The writer may have made room before it could see the flag.
                if sender.capacity() == 0 {
                    return handed;
                }
            }
            // The writer died: the item is lost, and the supervisor has been told.
            Err(TrySendError::Closed(event)) => drop(event),
        }
    }
    handed
}

/// Where nothing listens to an operator: its items end here, with `verdict`.
pub fn unheard(
    input: StreamVec<'_, u64, Passage>,
    frozen: Arc<AtomicBool>,
    node: Node,
    generation: u64,
    verdict: Verdict,
) {
    let mut builder = OperatorBuilder::new(format!("{} (nothing listens)", node.origin.node), input.scope());
    let mut input = builder.new_input(input, Pipeline);
    builder.build(move |_capabilities| {
        let mut open = true;
        move |frontiers| {
            input.for_each(|_time, passages| {
                for passage in passages.drain(..) {
                    match passage {
                        Passage::Event(Event::Item(item)) if verdict == Verdict::Delivered => {
                            item.lease.ack.deliver(node.clock.now());
                        }
                        Passage::Event(Event::Item(item)) => item.lease.ack.settle(verdict),
                        // The only input of this end: its node passes the mark on once.
                        Passage::Cut { cut, .. } => cut.reaches_end(),
                        Passage::Event(_) | Passage::Resume { .. } => {}
                    }
                }
            });
            if open && frontiers[0].is_empty() && !frozen.load(Ordering::Acquire) {
                open = false;
                node.notices.send(Notice::EndReached { generation });
            }
        }
    });
}

/// Serves one sink until every worker has hung up, then closes it.
pub async fn write(mut writer: Box<dyn SinkWriter>, mut receiver: Receiver<Event>, intake: Arc<Intake>, node: Node) {
    let mut batch = Vec::with_capacity(QUEUE);
    let (deadline, settles) = (writer.deadline(), writer.settles());
    let most = writer.most_at_once().clamp(1, QUEUE);
    let trouble = writer.trouble();
    if let Some(trouble) = &trouble {
        let secrets = node.secrets.clone();
        trouble.cover_with(move |text| secrets.redact(text));
    }
    node.counters.set_must_get_on(trouble.is_none());
    node.counters.set_trouble(trouble.clone());
    let encoding = writer.encoding();
    if let Some(encoding) = &encoding {
        node.counters.set_encoding(encoding);
    }
    let _told = Told { counters: node.counters.clone(), trouble, encoding };
    let mut is_complete = false;
    loop {
        let taken = tokio::select! {
            biased;
            worked = writer.work() => {
                if let Err(error) = worked {
                    failed(&node, &intake, told(&node, &error));
                }
                None
            }
            count = receiver.recv_many(&mut batch, most) => Some(count),
        };
        match taken {
            Some(0) => match intake.next() {
                Some(next) => receiver = next,
                None => break,
            },
            Some(_) => {
                intake.wake_waiting();
                take(&mut *writer, &mut batch, deadline, settles, (&node, &intake)).await;
            }
            None => {}
        }
        if writer.is_complete() && !std::mem::replace(&mut is_complete, true) {
            node.notices.send(Notice::SinkComplete { sink: node.origin.node.clone() });
        }
    }
    match within(deadline, writer.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if settles => failed(&node, &intake, told(&node, &error)),
        Ok(Err(error)) => {
            let cause = node.secrets.redact(&with_hint(&error.message, error.hint.as_deref()));
            failed(&node, &intake, format!("sink `{}` could not be closed: {cause}", node.origin.node));
        }
        Err(seconds) => {
            failed(&node, &intake, format!("sink `{}` could not be closed within {seconds} s", node.origin.node));
        }
    }
}

/// What a writer tells of itself for as long as it is there, also where it is given up.
struct Told {
    counters: Arc<NodeCounters>,
    trouble: Option<Trouble>,
    encoding: Option<Arc<Encoding>>,
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(trouble) = &self.trouble {
            self.counters.end_trouble(trouble);
        }
        if let Some(encoding) = &self.encoding {
            self.counters.end_encoding(encoding);
        }
    }
}

/// Gives a batch to the writer, and each of its items the verdict that comes of it.
async fn take(
    writer: &mut dyn SinkWriter,
    batch: &mut Vec<Event>,
    deadline: Option<Duration>,
    settles: bool,
    (node, intake): (&Node, &Intake),
) {
    let count = batch.len() as i64;
    let start = node.clock.now();
    let turn = Turn::begin(node, start, batch.iter().find_map(born));
    let result = match within(deadline, writer.write(batch)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(with_hint(&error.message, error.hint.as_deref())),
        Err(seconds) => Err(format!("it took nothing for {seconds} s")),
    };
    drop(turn);
    let now = node.clock.now();
    node.counters.took(now.saturating_duration_since(start));
    share_out(batch, node, now.saturating_duration_since(start));
    intake.waiting.add(-count);
    match result {
        Ok(()) => {
            for event in batch.drain(..) {
                match event {
                    Event::Item(item) if !settles => item.lease.ack.deliver(now),
                    event => release(event),
                }
            }
        }
        // What the writer holds of the batch it settles as ever; what it does not is lost when the batch lets go.
        Err(cause) if settles => {
            let cause = node.secrets.redact(&cause);
            failed(node, intake, format!("sink `{}`: {cause}", node.origin.node));
            batch.drain(..).for_each(release);
        }
        Err(cause) => {
            let cause = node.secrets.redact(&cause);
            let lost: Vec<&Event> = batch.iter().filter(|event| matches!(event, Event::Item(_))).collect();
            let streams: BTreeSet<&str> = lost.iter().map(|event| &**event.stream()).collect();
            let streams = streams.into_iter().collect::<Vec<_>>().join(", ");
            let name = &node.origin.node;
            let message = match lost.len() {
                0 => format!("sink `{name}` failed: {cause}"),
                items => format!("sink `{name}` lost {} of stream `{streams}`: {cause}", counted(items as u64)),
            };
            failed(node, intake, message);
            batch.clear();
        }
    }
}

/// A batch that the writer has in hand; it is over when this is dropped, also where the writer is given up.
struct Turn<'a>(&'a Node);

impl Turn<'_> {
    fn begin(node: &Node, now: Instant, oldest: Option<Instant>) -> Turn<'_> {
        node.counters.begin(0, now);
        node.counters.set_oldest(0, oldest);
        Turn(node)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.counters.set_oldest(0, None);
        self.0.counters.rest(0, self.0.clock.now());
    }
}

/// Lets go of what the writer has taken over.
fn release(event: Event) {
    if let Event::Item(item) = event {
        item.lease.ack.release();
    }
}

/// Writes the time of a batch into the books of its streams, by how many of its items are theirs.
fn share_out(batch: &[Event], node: &Node, time: Duration) {
    let mut shares: Vec<(&Arc<Account>, u32)> = Vec::new();
    let items =
        batch.iter().filter_map(|event| if let Event::Item(item) = event { item.lease.ack.account() } else { None });
    for account in items {
        match shares.iter_mut().find(|(other, _)| Arc::ptr_eq(other, account)) {
            Some((_, count)) => *count += 1,
            None => shares.push((account, 1)),
        }
    }
    let all: u32 = shares.iter().map(|(_, count)| count).sum();
    for (account, count) in shares {
        account.worked(&node.origin.node, time * count / all);
    }
}

/// Waits for `work` no longer than `deadline`; the seconds that it had where that was not enough.
async fn within<T>(deadline: Option<Duration>, work: impl Future<Output = T>) -> Result<T, u64> {
    match deadline {
        Some(deadline) => tokio::time::timeout(deadline, work).await.map_err(|_| deadline.as_secs()),
        None => Ok(work.await),
    }
}

/// What a writer that settles items by itself says of those that it lost.
fn told(node: &Node, error: &SinkError) -> String {
    let cause = node.secrets.redact(&with_hint(&error.message, error.hint.as_deref()));
    format!("sink `{}`: {cause}", node.origin.node)
}

/// When the picture behind an event was decoded.
fn born(event: &Event) -> Option<Instant> {
    match event {
        Event::Item(item) => item.lease.ack.born(),
        _ => None,
    }
}

fn failed(node: &Node, intake: &Intake, message: String) {
    let nth = node.counters.error(&message, node.clock.now());
    if worth_logging(nth) {
        tracing::error!(node = %node.origin.node, errors = nth, "{message}");
    }
    if intake.stops.load(Ordering::Acquire) {
        node.stop_graph(None, message);
    }
}

fn with_hint(message: &str, hint: Option<&str>) -> String {
    match hint {
        Some(hint) => format!("{message}; hint: {hint}"),
        None => message.to_owned(),
    }
}
