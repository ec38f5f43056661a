//! The limit: the same graph as a plain loop.
//!
//! One thread reads the source, and for each picture runs the operators one after the other on the spot: decode, then
//! preprocess, then infer. No dataflow, no queues, no leases, no other threads. As many such loops as cores, side by
//! side, are what the machine can do at most: they share nothing but the caches and the libraries, like as many
//! processes. (Stages measured alone promise more than can be had, because they slow each other down.)

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use operators::clock::Clock;
use operators::error::{ItemError, SourceError, StartError};
use operators::inference::session::Sessions;
use operators::item::{Frame, Gap, Item, Kind, Payload, StreamId, StreamInfo};
use operators::lease::{Account, Ack, Lease, Verdict};
use operators::operator::{Demand, Emitted, Later, Offered, Outlet, Output, Runner, SourceState, StreamOperator};
use operators::time::MediaTime;
use operators::transforms::preprocess::kernel::Preprocessor;
use operators::transforms::sample::Sampler;

use crate::graph::plan::{Input, Plan, Work};

/// What a loop measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoopResult {
    /// Source pictures a second, after the warm-up.
    pub frames_a_second: f64,
    pub frames: u64,
}

/// What is read at most before the clock starts, so that caches and allocators are warm.
const WARM_UP: u64 = 60;

/// Runs `loops` copies of the first source's first stream and everything behind it side by side for `time`; answers
/// their rates added up. `None` for a plan without sources.
///
/// # Errors
/// Where a model does not load or the stream cannot be read.
pub fn limit(
    plan: &Plan,
    with_operators: bool,
    loops: usize,
    time: Duration,
    clock: &Arc<dyn Clock>,
) -> Result<Option<LoopResult>, StartError> {
    let Some(stream) = plan.sources.first().and_then(|source| source.source.streams().into_iter().next()) else {
        return Ok(None);
    };
    let results: Vec<Result<LoopResult, StartError>> = std::thread::scope(|scope| {
        let run = || run_loop(plan, with_operators, &stream.id, time, clock);
        let threads: Vec<_> = (0..loops).map(|_| scope.spawn(run)).collect();
        let died = |_| Err(StartError::new("a loop of the limit panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(died)).collect()
    });
    let mut sum = LoopResult::default();
    for result in results {
        let result = result?;
        sum.frames_a_second += result.frames_a_second;
        sum.frames += result.frames;
    }
    Ok(Some(sum))
}

fn run_loop(
    plan: &Plan,
    with_operators: bool,
    stream: &StreamId,
    time: Duration,
    clock: &Arc<dyn Clock>,
) -> Result<LoopResult, StartError> {
    let mut sessions = Sessions::default();
    let mut steps = Vec::new();
    if with_operators {
        for operator in &plan.operators {
            let work = match &operator.work {
                Work::Inline(inline) => StepWork::Inline(inline.start(stream)),
                Work::Pool(pool) => StepWork::Pool(pool.runner(&mut sessions)?),
                // The limit is one of this machine, and not of those that it talks to.
                Work::Io(_) => StepWork::Nothing,
            };
            steps.push(Step { work, inputs: operator.inputs.clone(), made: Vec::new() });
        }
    }
    let taps = plan.taps.iter().map(|tap| {
        let sampler =
            tap.sample.as_ref().map(|(_, sampling)| Sampler::new(sampling.rate, sampling.phase.unwrap_or_default()));
        (tap.source == 0 && tap.kind == Kind::Frame, sampler)
    });
    let mut outlet = SequentialOutlet {
        clock: clock.clone(),
        stream: stream.clone(),
        steps,
        taps: taps.collect(),
        reached: HashMap::new(),
        read: 0,
        started: None,
        ended: None,
        time,
        account: Arc::default(),
        output: Output::default(),
        error: None,
    };
    let source = &plan.sources[0].source;
    match source.run(stream, &mut outlet) {
        Ok(_) | Err(SourceError::Stopped) => {}
        Err(SourceError::Input { message, hint, .. }) => return Err(StartError { message, hint }),
        Err(SourceError::Interrupted(message)) => return Err(StartError::new(message)),
    }
    if let Some(error) = outlet.error {
        return Err(StartError::new(format!("an operator failed while the limit was measured: {error}")));
    }
    let frames = outlet.read.saturating_sub(WARM_UP);
    let end = outlet.ended.unwrap_or_else(|| clock.now());
    let seconds = outlet.started.map_or(0.0, |start| end.saturating_duration_since(start).as_secs_f64());
    let frames_a_second = if seconds > 0.0 { frames as f64 / seconds } else { 0.0 };
    Ok(LoopResult { frames_a_second, frames })
}

struct Step {
    work: StepWork,
    inputs: Vec<Input>,
    /// What it made of the picture in hand.
    made: Vec<Item>,
}

enum StepWork {
    Inline(Box<dyn StreamOperator>),
    Pool(Box<dyn Runner>),
    Nothing,
}

/// Runs the operators where a tap would queue.
struct SequentialOutlet {
    clock: Arc<dyn Clock>,
    stream: StreamId,
    steps: Vec<Step>,
    /// Whether each tap of the plan is the source's, and how it samples.
    taps: Vec<(bool, Option<Sampler>)>,
    /// The picture in hand, for each tap that wants it.
    reached: HashMap<usize, Item>,
    read: u64,
    started: Option<Instant>,
    ended: Option<Instant>,
    time: Duration,
    account: Arc<Account>,
    output: Output,
    /// The first error of an operator: a loop that does less work is no limit.
    error: Option<ItemError>,
}

impl SequentialOutlet {
    fn count(&mut self, pictures: u64) {
        let before = self.read;
        self.read += pictures;
        let now = self.clock.now();
        if before < WARM_UP && self.read >= WARM_UP {
            self.started = Some(now);
        }
        self.ended = Some(now);
    }

    fn run_steps(&mut self) {
        for index in 0..self.steps.len() {
            let (done, rest) = self.steps.split_at_mut(index);
            let Some(step) = rest.first_mut() else { return };
            step.made.clear();
            for input in &step.inputs {
                let items: &[Item] = match input {
                    Input::Tap(tap) => self.reached.get(tap).map_or(&[], std::slice::from_ref),
                    Input::Operator(operator) => &done[*operator].made,
                };
                for item in items {
                    match &mut step.work {
                        StepWork::Inline(operator) => {
                            let outcome = operator.item(item, &mut self.output);
                            for emitted in self.output.drain() {
                                match emitted {
                                    Emitted::Item(item) => step.made.push(item),
                                    Emitted::Later(Later { item, make }) => match make() {
                                        Ok(payload) => step.made.push(item.with(payload)),
                                        Err(error) => {
                                            item.lease.ack.settle(Verdict::Rejected);
                                            self.error.get_or_insert(error);
                                        }
                                    },
                                }
                            }
                            if let Err(error) = outcome {
                                self.error.get_or_insert(error);
                            }
                        }
                        StepWork::Pool(runner) => match runner.run(item) {
                            Ok(payload) => step.made.push(item.replace(payload)),
                            Err(error) => {
                                self.error.get_or_insert(error);
                            }
                        },
                        StepWork::Nothing => {}
                    }
                }
            }
        }
        for step in &mut self.steps {
            step.made.drain(..).for_each(|item| item.lease.ack.settle(Verdict::Delivered));
        }
        self.reached.drain().for_each(|(_, item)| item.lease.ack.release());
    }
}

impl Outlet for SequentialOutlet {
    fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    fn stopping(&self) -> bool {
        self.started.is_some_and(|start| self.clock.now().saturating_duration_since(start) >= self.time)
    }

    fn decoder_threads(&self) -> usize {
        1
    }

    /// What is measured are pictures.
    fn demand(&self) -> Demand {
        Demand { frames: self.taps.iter().any(|(own, _)| *own), packets: false }
    }

    fn state(&mut self, _state: SourceState) {}

    fn open(&mut self, _info: StreamInfo) {}

    fn gap(&mut self, _gap: Gap) {}

    fn wants_packet(&mut self, pts: MediaTime) -> bool {
        let mut wanted = false;
        for (_, sampler) in self.taps.iter_mut().filter(|(own, _)| *own) {
            wanted |= sampler.as_mut().is_none_or(|sampler| sampler.could_want(pts));
        }
        wanted
    }

    fn skipped(&mut self, count: u64) {
        self.count(count);
    }

    fn frame(
        &mut self,
        seq: u64,
        pts: MediaTime,
        make: &mut dyn FnMut() -> Result<Frame, ItemError>,
    ) -> Result<Offered, SourceError> {
        if self.stopping() {
            return Err(SourceError::Stopped);
        }
        let wanting: Vec<usize> = self
            .taps
            .iter_mut()
            .enumerate()
            .filter(|(_, (own, _))| *own)
            .filter_map(|(index, (_, sampler))| {
                sampler.as_mut().is_none_or(|sampler| sampler.offer(pts)).then_some(index)
            })
            .collect();
        if !wanting.is_empty()
            && let Ok(frame) = make()
        {
            let frame = Arc::new(frame);
            let ack = Ack::new(&self.account, self.clock.now());
            for tap in wanting {
                let item = Item {
                    stream: self.stream.clone(),
                    seq,
                    pts,
                    time: self.clock.wall(),
                    fallback: false,
                    payload: Payload::Frame(frame.clone()),
                    lease: Lease { credit: None, ack: ack.clone() },
                };
                self.reached.insert(tap, item);
            }
            ack.release();
            self.run_steps();
        }
        self.count(1);
        Ok(Offered::Emitted)
    }

    fn repaired(&mut self, _what: &'static str, _detail: &str) {}
}

/// Milliseconds that each pool operator takes for one picture of the first stream when nothing else runs: the median
/// of `rounds`. In the order of the plan; operators that eat what others made get it. One that makes the tensor for its
/// model itself comes in two parts too, `NAME: preprocess` and `NAME: infer`, the second with what is made of the
/// model's outputs.
///
/// # Errors
/// Where a model does not load, the stream cannot be read or an operator fails.
pub fn stages_alone(plan: &Plan, rounds: usize, clock: &Arc<dyn Clock>) -> Result<Vec<(Arc<str>, f64)>, StartError> {
    let Some(source) = plan.sources.first() else { return Ok(Vec::new()) };
    let Some(stream) = source.source.streams().into_iter().next() else { return Ok(Vec::new()) };
    let mut catcher = Catcher { clock: clock.clone(), stream: stream.id.clone(), caught: None };
    match source.source.run(&stream.id, &mut catcher) {
        Ok(_) | Err(SourceError::Stopped) => {}
        Err(SourceError::Input { message, hint, .. }) => return Err(StartError { message, hint }),
        Err(SourceError::Interrupted(message)) => return Err(StartError::new(message)),
    }
    let Some(first) = catcher.caught else { return Ok(Vec::new()) };
    let mut sessions = Sessions::default();
    let mut made: Vec<Option<Item>> = Vec::new();
    let mut stages = Vec::new();
    for operator in &plan.operators {
        let input = match operator.inputs.first() {
            Some(Input::Tap(_)) => Some(&first),
            Some(Input::Operator(index)) => made.get(*index).and_then(Option::as_ref),
            None => None,
        };
        let result = match (&operator.work, input) {
            (Work::Pool(pool), Some(item)) if item.payload.kind() != Kind::Record => {
                let mut runner = pool.runner(&mut sessions)?;
                let (whole, payload) = median(rounds, clock, || runner.run(item))?;
                stages.push((operator.name.clone(), whole));
                if let (Payload::Frame(frame), Some(spec)) = (&item.payload, pool.takes()) {
                    let mut preprocessor = Preprocessor::new(spec.clone());
                    let (alone, tensor) = median(rounds, clock, || preprocessor.tensor(frame))?;
                    stages.push((format!("{}: preprocess", operator.name).into(), alone));
                    let tensor = item.derive(Payload::Tensor(Arc::new(tensor)));
                    let inferred = median(rounds, clock, || runner.run(&tensor));
                    tensor.lease.ack.settle(Verdict::Delivered);
                    stages.push((format!("{}: infer", operator.name).into(), inferred?.0));
                }
                Some(item.replace(payload))
            }
            // Inline operators pass pictures on; what they make of them is not measured here.
            (Work::Inline(_), Some(item)) => Some(item.clone()),
            _ => None,
        };
        made.push(result);
    }
    made.into_iter().flatten().chain([first]).for_each(|item| item.lease.ack.settle(Verdict::Delivered));
    Ok(stages)
}

/// The median of `rounds`, in milliseconds, and what came of the last one.
fn median<T>(
    rounds: usize,
    clock: &Arc<dyn Clock>,
    mut work: impl FnMut() -> Result<T, ItemError>,
) -> Result<(f64, T), StartError> {
    let mut timed = || {
        let start = clock.now();
        let result = work().map_err(|error| StartError::new(error.to_string()))?;
        Ok::<_, StartError>((clock.now().saturating_duration_since(start).as_secs_f64() * 1000.0, result))
    };
    let (first, mut result) = timed()?;
    let mut times = vec![first];
    for _ in 1..rounds {
        let (time, next) = timed()?;
        times.push(time);
        result = next;
    }
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], result))
}

/// Takes the first picture of a stream and stops it.
struct Catcher {
    clock: Arc<dyn Clock>,
    stream: StreamId,
    caught: Option<Item>,
}

impl Outlet for Catcher {
    fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    fn stopping(&self) -> bool {
        self.caught.is_some()
    }

    fn decoder_threads(&self) -> usize {
        1
    }

    fn state(&mut self, _state: SourceState) {}

    fn open(&mut self, _info: StreamInfo) {}

    fn gap(&mut self, _gap: Gap) {}

    fn wants_packet(&mut self, _pts: MediaTime) -> bool {
        true
    }

    fn skipped(&mut self, _count: u64) {}

    fn frame(
        &mut self,
        seq: u64,
        pts: MediaTime,
        make: &mut dyn FnMut() -> Result<Frame, ItemError>,
    ) -> Result<Offered, SourceError> {
        if self.caught.is_some() {
            return Err(SourceError::Stopped);
        }
        let frame = make().map_err(|error| SourceError::input(error.to_string()))?;
        let ack = Ack::new(&Arc::default(), self.clock.now());
        self.caught = Some(Item {
            stream: self.stream.clone(),
            seq,
            pts,
            time: self.clock.wall(),
            fallback: false,
            payload: Payload::Frame(Arc::new(frame)),
            lease: Lease { credit: None, ack },
        });
        Ok(Offered::Emitted)
    }

    fn repaired(&mut self, _what: &'static str, _detail: &str) {}
}
