//! Puts another plan in the place of a running graph's, without losing, repeating or reordering an item.
//!
//! Everything new is made while the old runs. Then each stream is cut between two pictures: what came before goes
//! through the old generation, what comes after waits in front of the new one until the old has finished with that
//! stream. Nodes that are the same, with everything before them, hand their state over; others are told that the stream
//! ends there, and start anew. Feeds and writers that are the same just go on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, bounded, select};
use operators::error::StartError;
use operators::item::{Kind, Origin, StreamId};
use serde::Serialize;

use super::failure::Notice;
use super::generation::{Generation, Making, OpenSink};
use super::loading::{Open, Prepared};
use super::mailbox::Mailbox;
use super::passage::{Course, Cut, Passage};
use super::streams::{WantedStream, budgets, place};
use super::supervision::RunningGraph;
use super::supervisor::LAST_CALL;
use crate::graph::identity::Identity;
use crate::graph::plan::{Plan, PlannedSink};

/// How long a reload may take at each of its waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For all that takes long, models above all; then nothing is changed.
    pub load: Duration,
    /// For a new sink to open; then nothing is changed.
    pub open: Duration,
    /// For pictures that are on their way into a full tap; then they are given up.
    pub cut: Duration,
    /// For the old generation to finish; then what is in it is lost.
    pub drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            load: Duration::from_secs(300),
            open: Duration::from_secs(10),
            cut: Duration::from_secs(2),
            drain: Duration::from_secs(10),
        }
    }
}

/// Looks in turn whether what was removed is through are this far apart.
const LOOK: Duration = Duration::from_millis(10);

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    pub generation: u64,
    pub nodes: Changes,
    pub streams: Changes,
    /// Items that were lost because the old generation did not finish in time.
    pub lost: u64,
    /// What did not finish in time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stuck: Vec<String>,
    /// Streams that were added before and have no place in the new graph.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
}

/// Names by what became of them, each in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Went on untouched, with their state and connections.
    pub kept: Vec<String>,
    /// Started anew.
    pub rebuilt: Vec<String>,
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

impl Changes {
    fn between(old: &HashMap<String, Identity>, new: &HashMap<String, Identity>) -> Changes {
        let mut changes = Changes::default();
        for (name, identity) in new {
            let list = match old.get(name) {
                Some(before) if before == identity => &mut changes.kept,
                Some(_) => &mut changes.rebuilt,
                None => &mut changes.added,
            };
            list.push(name.clone());
        }
        changes.removed = old.keys().filter(|name| !new.contains_key(*name)).cloned().collect();
        for list in [&mut changes.kept, &mut changes.rebuilt, &mut changes.added, &mut changes.removed] {
            list.sort_unstable();
        }
        changes
    }
}

/// A reload under way: the old generation is still there.
struct Transition {
    old: Generation,
    kept: HashSet<Arc<str>>,
    /// Streams that wait for the old generation to finish with them, and where they wait.
    waiting: HashMap<StreamId, Vec<Arc<Mailbox>>>,
    /// Streams that were told to stop, and may still bring something to the old generation.
    leaving: HashSet<StreamId>,
    /// Pictures that were given up because no room was made for them, each as people read it.
    given_up: Vec<String>,
    done: Sender<StreamId>,
    cuts: Receiver<StreamId>,
}

impl RunningGraph {
    /// What of `plan` is there already: sinks that stay open.
    ///
    /// # Errors
    /// Why it cannot take the place of the one that runs.
    pub fn open_for(&self, plan: &Plan) -> Result<Open, StartError> {
        if self.draining {
            return Err(StartError::new("the graph is ending").hint("start it again under its name"));
        }
        self.refuse_shared(plan)?;
        let open = self.sinks.iter().filter(|sink| !sink.is_closing);
        Ok(open.map(|sink| (sink.name.clone(), sink.identity)).collect())
    }

    /// Puts `plan` in the place of the one that runs. Makes everything ready first, and does nothing else meanwhile: where
    /// somebody waits, [`super::loading::prepare_beside`] does that elsewhere.
    ///
    /// # Errors
    /// Where a model does not load or a sink does not open: then the graph runs on as it was.
    pub fn reload(&mut self, plan: Plan, patience: Patience) -> Result<Reloaded, StartError> {
        let plan = Arc::new(plan);
        let ready =
            self.open_for(&plan).and_then(|open| Prepared::make(&self.engine, &plan, &open, Some(patience.open)));
        let ready = ready.map_err(|error| error.covered(|text| plan.secrets.redact(text)))?;
        self.exchange(plan, ready, patience)
    }

    /// Puts `plan` in the place of the one that runs, of which that is `ready` which takes long.
    ///
    /// # Errors
    /// Where it cannot take its place any more: then the graph runs on as it was.
    pub fn exchange(&mut self, plan: Arc<Plan>, ready: Prepared, patience: Patience) -> Result<Reloaded, StartError> {
        let secrets = plan.secrets.clone();
        self.replace(plan, ready, patience).map_err(|error| error.covered(|text| secrets.redact(text)))
    }

    fn replace(&mut self, plan: Arc<Plan>, ready: Prepared, patience: Patience) -> Result<Reloaded, StartError> {
        // It may have been told to end since it was asked.
        self.open_for(&plan)?;
        let lost_before = self.counters.report().total.lost;
        let streams_before = self.stream_identities();
        let number = self.generation.number + 1;
        let (engine, counters, notices) = (self.engine.clone(), self.counters.clone(), self.notices.clone());
        let making = Making {
            engine: &engine,
            counters: &counters,
            notices: &notices,
            number,
            sinks: &self.sinks,
            // What runs is not watched meanwhile.
            patience: Some(patience.open),
        };
        let installed = making.install(plan, ready);
        if installed.is_err() && self.generation.ends_open == 0 {
            // What was reopened for it is not written to any more after all.
            self.sinks.iter().for_each(|sink| sink.intake.seal());
        }
        let (new, opened) = installed?;
        // The new plan says which streams are read; until it is there, those of the old one still are to be.
        self.restarts.clear();

        let nodes = Changes::between(&identities(&self.generation.plan), &identities(&new.plan));
        let mut transition = self.begin(new, opened, &nodes);
        let (wanted, refused) = self.wanted();
        self.retire_others(&wanted);
        let cut_by = self.engine.clock.now() + patience.cut;
        for stream in self.streams.keys().cloned().collect::<Vec<_>>() {
            let left = cut_by.saturating_duration_since(self.engine.clock.now());
            self.move_stream(&stream, wanted.get(&stream), left, &mut transition);
        }
        for (id, stream) in wanted {
            let has_ended = self.ended.get(&id) == Some(&stream.identity);
            if !self.streams.contains_key(&id) && !has_ended {
                self.start_stream(stream);
            }
        }
        let stuck = self.await_old(transition, patience.drain);
        if let Err(error) = self.look_for_streams() {
            tracing::error!("{error}");
        }
        self.close_finished_sources();
        self.await_retired();
        Ok(Reloaded {
            generation: number,
            nodes,
            streams: Changes::between(&streams_before, &self.stream_identities()),
            lost: self.counters.report().total.lost - lost_before,
            stuck,
            refused,
        })
    }

    /// Puts the new generation in its place; nothing comes to it yet.
    fn begin(&mut self, new: Generation, opened: Vec<OpenSink>, nodes: &Changes) -> Transition {
        let old = std::mem::replace(&mut self.generation, new);
        let plan = self.generation.plan.clone();
        let stays =
            |open: &OpenSink| plan.sinks.iter().any(|sink| sink.name == open.name && sink.identity == open.identity);
        for open in &mut self.sinks {
            open.is_closing = open.is_closing || !stays(open);
        }
        self.sinks.extend(opened);
        let (done, cuts) = bounded(self.streams.len() + 1);
        let kept = nodes.kept.iter().map(|name| Arc::from(name.as_str())).collect();
        Transition { old, kept, waiting: HashMap::new(), leaving: HashSet::new(), given_up: Vec::new(), done, cuts }
    }

    /// The streams that the new generation reads, and what became of those that it cannot.
    fn wanted(&mut self) -> (HashMap<StreamId, WantedStream>, Vec<String>) {
        let mut wanted: HashMap<StreamId, WantedStream> =
            self.declared().into_iter().map(|stream| (stream.spec.id.clone(), stream)).collect();
        let mut refused = Vec::new();
        for (id, posted) in self.posted.clone() {
            if wanted.contains_key(&id) {
                refused.push(format!("`{id}` is declared by the graph now"));
                self.posted.remove(&id);
                continue;
            }
            match self.built(&id, &posted) {
                Ok(stream) => drop(wanted.insert(id, stream)),
                Err(error) => {
                    refused.push(format!("`{id}` of `{}`: {error}", posted.source));
                    self.posted.remove(&id);
                    self.retired.push(id);
                }
            }
        }
        (wanted, refused)
    }

    /// Cuts a stream that goes on, and stops one that does not, or that is read from elsewhere.
    fn move_stream(
        &mut self,
        id: &StreamId,
        wanted: Option<&WantedStream>,
        patience: Duration,
        transition: &mut Transition,
    ) {
        let Some(running) = self.streams.get_mut(id) else { return };
        let goes_on = wanted.filter(|stream| stream.identity == running.identity);
        let Some(stream) = goes_on else {
            running.feed.stop();
            transition.leaving.insert(id.clone());
            if let Some(stream) = wanted {
                self.restarts.insert(id.clone(), stream.clone());
            }
            return;
        };
        let plan = self.generation.plan.clone();
        let planned = &plan.sources[stream.source_index];
        let course = transition.old.source(&running.source).map(|old| transition.old.course(old)).unwrap_or_default();
        running.source = planned.name.clone();
        let kept = transition.kept_on(&course, &self.generation.course(stream.source_index));
        let cut = Cut::new(id.clone(), course, kept, transition.done.clone());
        let mailboxes = self.generation.mailboxes(stream.source_index, id);
        mailboxes.iter().for_each(|mailbox| mailbox.hold(id));
        let given_up = &mut transition.given_up;
        let is_cut = running.feed.between_pictures(patience, |listener, info, at_keyframe| {
            let mut before = std::mem::take(&mut listener.taps);
            for tap in &before {
                if tap.end.has_lost.load(Ordering::Acquire) {
                    given_up.push(format!("stream `{id}`, of which an item found no room in `{}`", tap.end.name));
                }
                tap.end.mailbox.push(Passage::Cut { stream: id.clone(), cut: cut.clone() });
            }
            listener.taps = self.generation.stream_taps(stream.source_index, id, stream.spread, &mut before);
            for tap in &listener.taps {
                let (stream, cut, info) = (id.clone(), cut.clone(), info.clone());
                let joins_midway = tap.kind == Kind::Packet && info.is_some() && !at_keyframe;
                tap.end.mailbox.push(Passage::Resume { stream, cut, info });
                if joins_midway {
                    tap.end.await_keyframe(id, "the graph was changed between two keyframes");
                }
            }
            listener.origin = Origin { graph: plan.graph.clone(), node: planned.name.clone() };
            listener.secrets = plan.secrets.clone();
            listener.counters.set_budgets(budgets(&listener.taps));
            listener.counters.set_place(place(&plan, planned, &*stream.source, &stream.spec));
        });
        match is_cut {
            Some(()) => drop(transition.waiting.insert(id.clone(), mailboxes)),
            // It has ended, all of it in the old generation.
            None => mailboxes.iter().for_each(|mailbox| mailbox.release(id)),
        }
    }

    /// Waits until the old generation has finished with every stream, and takes it down. Answers what did not finish.
    fn await_old(&mut self, mut transition: Transition, patience: Duration) -> Vec<String> {
        let closing_by = self.engine.clock.now() + patience;
        let deadline = after(patience);
        let mut is_closed = false;
        let mut stuck = Vec::new();
        loop {
            if !is_closed && transition.waiting.is_empty() && transition.leaving.is_empty() {
                // Streams that ended may still have something in it.
                transition.old.close_all();
                is_closed = true;
            }
            if is_closed && transition.old.ends_open == 0 {
                break;
            }
            select! {
                recv(self.heard.nodes) -> notice => if let Ok(notice) = notice {
                    self.note(notice, &mut transition);
                },
                recv(self.heard.streams) -> notice => if let Ok(notice) = notice {
                    self.note(notice, &mut transition);
                },
                recv(transition.cuts) -> stream => if let Ok(stream) = stream {
                    transition.release(&stream);
                },
                recv(deadline) -> _ => {
                    stuck = self.what_is_left(&transition);
                    break;
                }
            }
        }
        stuck.append(&mut transition.given_up);
        transition.take_down();
        self.sinks.iter().for_each(|sink| sink.intake.forget_older());
        stuck.extend(self.close_sinks(closing_by));
        stuck
    }

    fn note(&mut self, notice: Notice, transition: &mut Transition) {
        match notice {
            Notice::EndReached { generation } if generation == transition.old.number => {
                transition.old.ends_open = transition.old.ends_open.saturating_sub(1);
            }
            Notice::StreamEnded { stream, reason } => {
                transition.leaving.remove(&stream);
                let source = self.streams.get(&stream).map(|running| running.source.clone());
                self.stream_ended(&stream, reason);
                if let Some(wanted) = self.restarts.remove(&stream) {
                    let old = source.and_then(|source| transition.old.source(&source));
                    self.start_behind(wanted, old, transition);
                }
            }
            // The supervisor's own loop stops the graph next.
            other => self.must_stop |= self.take(other),
        }
    }

    /// Reads a stream anew whose last items may still be in the old generation, behind source number `old`.
    fn start_behind(&mut self, wanted: WantedStream, old: Option<usize>, transition: &mut Transition) {
        let id = wanted.spec.id.clone();
        if let Some(old) = old {
            let course = transition.old.course(old);
            let kept = transition.kept_on(&course, &self.generation.course(wanted.source_index));
            let cut = Cut::new(id.clone(), course, kept, transition.done.clone());
            let mailboxes = self.generation.mailboxes(wanted.source_index, &id);
            mailboxes.iter().for_each(|mailbox| mailbox.hold(&id));
            for mailbox in transition.old.mailboxes(old, &id) {
                mailbox.push(Passage::Cut { stream: id.clone(), cut: cut.clone() });
            }
            transition.waiting.insert(id, mailboxes);
        }
        self.start_stream(wanted);
    }

    /// What the old generation has not finished with.
    fn what_is_left(&self, transition: &Transition) -> Vec<String> {
        let mut left: Vec<String> =
            transition.waiting.keys().map(|id| format!("stream `{id}` in the old generation")).collect();
        left.extend(
            self.restarts
                .keys()
                .map(|id| format!("stream `{id}`: what read it has not ended yet, and it is read anew when it has")),
        );
        left.sort_unstable();
        if left.is_empty() {
            left.push("items of streams that ended, in the old generation".to_owned());
        }
        left
    }

    /// Lets the writers that have no place in the new generation end by `deadline`. Answers those that did not, once what
    /// they had in hand is counted as lost.
    fn close_sinks(&mut self, deadline: Instant) -> Vec<String> {
        self.sinks.iter().filter(|sink| sink.is_closing).for_each(|sink| sink.intake.seal());
        // Behind an old generation that needed all the time, a writer still has a moment.
        let left = deadline.saturating_duration_since(self.engine.clock.now()).max(LAST_CALL);
        self.await_closed(left);
        let stuck: Vec<String> = self
            .sinks
            .iter()
            .filter(|sink| sink.is_closing)
            .map(|sink| {
                sink.writing.abort();
                format!("sink `{}`", sink.name)
            })
            .collect();
        // A writer lets go of its items where it waits next, and not where it is told to.
        self.await_closed(LAST_CALL);
        stuck
    }

    /// Waits, but not longer than `patience`, until no writer is closing any more.
    fn await_closed(&mut self, patience: Duration) {
        let late = after(patience);
        while self.sinks.iter().any(|sink| sink.is_closing) {
            let notice = select! {
                recv(self.heard.nodes) -> notice => notice,
                recv(self.heard.streams) -> notice => notice,
                recv(late) -> _ => return,
            };
            if let Ok(notice) = notice {
                self.must_stop |= self.take(notice);
            }
        }
    }

    /// Waits until streams that were removed are through, so that their ids are free for other graphs when the reload is
    /// answered; but not for long: what a slow sink has of them it may go on with.
    fn await_retired(&mut self) {
        let late = after(LAST_CALL);
        loop {
            self.unlist_retired();
            if self.retired.is_empty() {
                return;
            }
            select! {
                recv(late) -> _ => return,
                recv(after(LOOK)) -> _ => {}
            }
        }
    }

    /// A new sink may not open what a running one has open.
    fn refuse_shared(&self, plan: &Plan) -> Result<(), StartError> {
        let old = &self.generation.plan.sinks;
        let is_same = |one: &PlannedSink, other: &PlannedSink| one.name == other.name && one.identity == other.identity;
        for sink in plan.sinks.iter().filter(|sink| !old.iter().any(|other| is_same(sink, other))) {
            for resource in sink.sink.resources() {
                let Some(owner) = old.iter().find(|other| other.sink.resources().contains(&resource)) else { continue };
                // What it was before the change.
                if owner.name == sink.name && owner.sink.shares_with_successor() && sink.sink.shares_with_successor() {
                    continue;
                }
                let message = format!(
                    "`{}` would write `{resource}`, which `{}` of the running graph has open",
                    sink.name, owner.name
                );
                return Err(StartError::new(message).hint("give it another path, or delete the graph first"));
            }
        }
        Ok(())
    }

    fn stream_identities(&self) -> HashMap<String, Identity> {
        self.streams.iter().map(|(id, stream)| (id.to_string(), stream.identity)).collect()
    }
}

impl Transition {
    /// The nodes that go on with a stream that has run through the one generation and runs through the other: those that
    /// are the same, and that it reaches in both. A sink may have got other inputs, and sources that read alike may have
    /// changed places.
    fn kept_on(&self, before: &Course, after: &Course) -> Arc<HashSet<Arc<str>>> {
        let in_both = |name: &&Arc<str>| before.inputs.contains_key(*name) && after.inputs.contains_key(*name);
        Arc::new(self.kept.iter().filter(in_both).cloned().collect())
    }

    /// The old generation has finished with a stream: the new one goes on with it.
    fn release(&mut self, stream: &StreamId) {
        for mailbox in self.waiting.remove(stream).unwrap_or_default() {
            mailbox.release(stream);
        }
    }

    /// Ends the old generation. What is still in it is lost, and the new one does not wait for it any more.
    fn take_down(mut self) {
        self.old.abandon();
        self.old.take_down();
        for (stream, mailboxes) in self.waiting {
            mailboxes.iter().for_each(|mailbox| mailbox.release(&stream));
        }
    }
}

/// What each node of a plan is.
fn identities(plan: &Plan) -> HashMap<String, Identity> {
    let sources = plan.sources.iter().map(|source| (source.name.to_string(), source.identity));
    let operators = plan.operators.iter().map(|operator| (operator.name.to_string(), operator.identity));
    let sinks = plan.sinks.iter().map(|sink| (sink.name.to_string(), sink.identity));
    sources.chain(operators).chain(sinks).collect()
}

#[cfg(test)]
mod tests;
