//! Feeds sinks: events go from every worker through one bounded queue to one writer on the io runtime, which
//! acknowledges items once the sink has accepted them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use operators::item::Event;
use operators::lease::Verdict;
use operators::operator::SinkWriter;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::activate::SyncActivator;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::counters::worth_logging;
use super::entry::{Admission, Entry};
use super::failure::Notice;
use super::node::{Node, is_error};
use crate::graph::plan::{self, OnError};

/// Events that wait for the writer; behind them the worker's own queue waits, bounded by leases.
const QUEUE: usize = 256;
/// The longest that one batch may take, and the longest that closing may take.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// The way from the workers to one sink's writer.
pub struct Intake {
    sender: std::sync::Mutex<Option<Sender<Event>>>,
    /// For each worker: whom to wake when there is room again, and whether somebody waits for it.
    waiting: Vec<(OnceLock<SyncActivator>, AtomicBool)>,
    /// The graph is being torn down: an empty frontier means nothing any more.
    frozen: Arc<AtomicBool>,
}

/// Makes the queue of a sink for `workers` workers.
pub fn intake(workers: usize, frozen: Arc<AtomicBool>) -> (Arc<Intake>, Receiver<Event>) {
    let (sender, receiver) = channel(QUEUE);
    let waiting = (0..workers).map(|_| (OnceLock::new(), AtomicBool::new(false))).collect();
    (Arc::new(Intake { sender: std::sync::Mutex::new(Some(sender)), waiting, frozen }), receiver)
}

impl Intake {
    /// Every worker has its own sender by now; the writer ends when they are gone.
    pub fn seal(&self) {
        super::counters::lock(&self.sender).take();
    }

    /// Wakes the workers that wait for room, or for the news that there will be none.
    pub fn wake_waiting(&self) {
        // Pairs with the fence in `push`: either this sees that somebody waits, or that one sees the room.
        fence(Ordering::SeqCst);
        for (waker, waits) in &self.waiting {
            if waits.swap(false, Ordering::AcqRel)
                && let Some(waker) = waker.get()
            {
                // Fails only when the worker is gone.
                let _ = waker.activate();
            }
        }
    }
}

/// Adds the sink's end to the dataflow. On an empty frontier it hangs up and reports [`Notice::EndReached`].
pub fn sink(input: StreamVec<'_, u64, Event>, intake: Arc<Intake>, entry: Option<plan::Entry>, node: Node) {
    let scope = input.scope();
    let worker = scope.index();
    let mut builder = OperatorBuilder::new(node.origin.node.to_string(), scope);
    let mut input = builder.new_input(input, Pipeline);
    let info = builder.operator_info();
    let mut sender = super::counters::lock(&intake.sender).clone();
    if let Some((waker, _)) = intake.waiting.get(worker) {
        // Set once: a sink is built once on each worker.
        let _ = waker.set(scope.worker().sync_activator_for(info.address.to_vec()));
    }
    // A sink holds no capability, so timely would take it down on an empty frontier, with what still waits for room in
    // the writer's queue: it answers whether it is incomplete.
    builder.build_reschedule(move |_capabilities| {
        let mut entry = Entry::new(entry);
        let mut pending: VecDeque<Event> = VecDeque::new();
        move |frontiers| {
            let before = pending.len();
            let mut items = 0;
            input.for_each(|_time, events| {
                for event in events.drain(..) {
                    items += u64::from(matches!(event, Event::Item(_)));
                    admit(event, entry.as_mut(), &mut pending, &node);
                }
            });
            node.counters.items(worker, items);
            let Some(open) = &sender else { return false };
            push(open, &mut pending, &intake, worker);
            node.counters.queued(pending.len() as i64 - before as i64);
            if frontiers[0].is_empty() && pending.is_empty() && !intake.frozen.load(Ordering::Acquire) {
                sender = None;
                node.notices.send(Notice::EndReached);
            }
            !pending.is_empty()
        }
    });
}

/// Puts an event into the worker's queue, by the entry's policy where the branch has one.
fn admit(event: Event, entry: Option<&mut Entry>, pending: &mut VecDeque<Event>, node: &Node) {
    let (mut item, entry) = match (event, entry) {
        (Event::Item(item), Some(entry)) if !is_error(&item) => (item, entry),
        (event, _) => {
            pending.push_back(event);
            return;
        }
    };
    loop {
        match entry.admit(&mut item) {
            Admission::Admitted => break,
            Admission::TooLarge(error) => {
                let record = node.reject(&item, &error);
                item.lease.ack.release();
                pending.push_back(Event::Item(record));
                return;
            }
            Admission::Full => {}
        }
        // An error record stands for an item that was rejected already: it is not dropped on top.
        let of_stream =
            |event: &Event| matches!(event, Event::Item(oldest) if oldest.stream == item.stream && !is_error(oldest));
        match pending.iter().position(of_stream).and_then(|index| pending.remove(index)) {
            Some(Event::Item(oldest)) => node.drop_item(oldest),
            _ => {
                node.drop_item(item);
                return;
            }
        }
    }
    pending.push_back(Event::Item(item));
}

/// Hands as much to the writer as its queue takes.
fn push(sender: &Sender<Event>, pending: &mut VecDeque<Event>, intake: &Intake, worker: usize) {
    while let Some(event) = pending.pop_front() {
        match sender.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(event)) => {
                pending.push_front(event);
                let Some((_, waits)) = intake.waiting.get(worker) else { return };
                waits.store(true, Ordering::Release);
                fence(Ordering::SeqCst);
                // The writer may have made room before it could see the flag.
                if sender.capacity() == 0 {
                    return;
                }
            }
            // The writer died: the item is lost, and the supervisor has been told.
            Err(TrySendError::Closed(event)) => drop(event),
        }
    }
}

/// Where nothing listens to an operator: its items end here, filtered.
pub fn unheard(input: StreamVec<'_, u64, Event>, frozen: Arc<AtomicBool>, node: Node) {
    let mut builder = OperatorBuilder::new(format!("{} (nothing listens)", node.origin.node), input.scope());
    let mut input = builder.new_input(input, Pipeline);
    builder.build(move |_capabilities| {
        let mut open = true;
        move |frontiers| {
            input.for_each(|_time, events| {
                for event in events.drain(..) {
                    if let Event::Item(item) = event {
                        item.lease.ack.settle(Verdict::Filtered);
                    }
                }
            });
            if open && frontiers[0].is_empty() && !frozen.load(Ordering::Acquire) {
                open = false;
                node.notices.send(Notice::EndReached);
            }
        }
    });
}

/// Serves one sink until every worker has hung up, then closes it.
pub async fn write(mut writer: Box<dyn SinkWriter>, mut receiver: Receiver<Event>, intake: Arc<Intake>, node: Node) {
    let mut batch = Vec::with_capacity(QUEUE);
    while receiver.recv_many(&mut batch, QUEUE).await > 0 {
        intake.wake_waiting();
        let start = node.clock.now();
        let result = match tokio::time::timeout(WRITE_DEADLINE, writer.write(&batch)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(with_hint(&error.message, error.hint.as_deref())),
            Err(_) => Err(format!("it took nothing for {} s", WRITE_DEADLINE.as_secs())),
        };
        let now = node.clock.now();
        node.counters.busy(now.saturating_duration_since(start));
        match result {
            Ok(()) => {
                for event in batch.drain(..) {
                    if let Event::Item(item) = event {
                        item.lease.ack.deliver(now);
                    }
                }
            }
            Err(cause) => {
                let cause = node.secrets.redact(&cause);
                let lost: Vec<&Event> = batch.iter().filter(|event| matches!(event, Event::Item(_))).collect();
                let streams: BTreeSet<&str> = lost.iter().map(|event| &**event.stream()).collect();
                let streams = streams.into_iter().collect::<Vec<_>>().join(", ");
                let name = &node.origin.node;
                let message = match lost.len() {
                    0 => format!("sink `{name}` failed: {cause}"),
                    items => format!("sink `{name}` lost {items} items of stream `{streams}`: {cause}"),
                };
                failed(&node, message);
                batch.clear();
            }
        }
    }
    match tokio::time::timeout(WRITE_DEADLINE, writer.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let cause = node.secrets.redact(&with_hint(&error.message, error.hint.as_deref()));
            failed(&node, format!("sink `{}` could not be closed: {cause}", node.origin.node));
        }
        Err(_) => {
            let seconds = WRITE_DEADLINE.as_secs();
            failed(&node, format!("sink `{}` could not be closed within {seconds} s", node.origin.node));
        }
    }
}

fn failed(node: &Node, message: String) {
    let nth = node.counters.error(&message, node.clock.now());
    if worth_logging(nth) {
        tracing::error!(node = %node.origin.node, errors = nth, "{message}");
    }
    if node.on_error == OnError::Stop {
        node.stop_graph(None, message);
    }
}

fn with_hint(message: &str, hint: Option<&str>) -> String {
    match hint {
        Some(hint) => format!("{message}; hint: {hint}"),
        None => message.to_owned(),
    }
}
