//! Random graphs under random edits: whatever is changed, each stream comes to each sink by each way that there is, once
//! and in order, as it would in a graph that was always so; and what no edit touches sees no seam.
//!
//! A run is told by its seed. `ENGINE_SEED=7 cargo test random_edits` repeats the one that failed: the same graphs in the
//! same order, though not the same moments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::journal::{Came, Journal};
use super::shape::{Does, LASTING, SAMPLED, Shape};
use super::*;

/// Reloads of one run.
const RELOADS: usize = 20;

/// The seeds of the runs.
fn seeds() -> Vec<u64> {
    if let Some(seed) = std::env::var("ENGINE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return vec![seed];
    }
    let runs = if std::env::var_os("ENGINE_SOAK").is_some() { 50 } else { 5 };
    (1..=runs).collect()
}

/// The shapes that a graph has had, and how far each stream was before and after each change.
struct History {
    seed: u64,
    shapes: Vec<Shape>,
    marks: Vec<(BTreeMap<String, u64>, BTreeMap<String, u64>)>,
}

impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the run with ENGINE_SEED={}, change by change:", self.seed);
            for (number, shape) in self.shapes.iter().enumerate() {
                eprintln!("{}. {}", number + 1, told(shape));
            }
        }
    }
}

/// A shape in one line.
fn told(shape: &Shape) -> String {
    let mut text = String::new();
    for source in &shape.sources {
        let live = if source.live { " live" } else { "" };
        let count = if source.count == ENDLESS { String::new() } else { format!(" x{}", source.count) };
        write!(text, "{}({}{count}{live}) ", source.name, source.streams.join(",")).unwrap();
    }
    for node in &shape.nodes {
        write!(text, "[{}] -> {} {:?}; ", node.inputs.join(" "), node.name, node.does).unwrap();
    }
    for sink in &shape.sinks {
        write!(text, "[{}] -> sink {}; ", sink.inputs.join(" "), sink.label()).unwrap();
    }
    text
}

/// How many runs of equal neighbours there are, without the missing ones.
fn runs<T: PartialEq>(values: impl IntoIterator<Item = Option<T>>) -> u64 {
    let (mut count, mut before) = (0, None);
    for value in values {
        count += u64::from(value.is_some() && value != before);
        before = value;
    }
    count
}

#[test]
fn runs_are_counted() {
    assert_eq!(runs([None, Some(1), Some(1), None, Some(1), Some(2), Some(2)]), 3);
    assert_eq!(runs::<u8>([None, None]), 0);
}

impl History {
    /// The sinks and ways by which each shape brings a stream somewhere; whether it is sampled on the way.
    fn destinations(&self, stream: &str) -> Vec<BTreeMap<(String, String), bool>> {
        let of_shape = |shape: &Shape| {
            let mut ways = shape.ways(stream);
            let sinks = shape.sinks.iter().filter_map(|sink| Some((sink.label(), ways.remove(&sink.label())?)));
            sinks.flat_map(|(label, ways)| ways.into_iter().map(move |(way, is)| ((label.clone(), way), is))).collect()
        };
        self.shapes.iter().map(of_shape).collect()
    }

    /// Which shapes may have had picture number `seq` of a stream, by when it was made.
    fn window(&self, stream: &str, seq: u64) -> (usize, usize) {
        let made = |marks: &BTreeMap<String, u64>| marks.get(stream).copied().unwrap_or(0);
        let first = self.marks.iter().rposition(|(_, after)| seq > made(after)).map_or(0, |change| change + 1);
        let last = self.marks.iter().position(|(before, _)| seq < made(before)).unwrap_or(self.marks.len());
        (first, last)
    }

    /// Every picture came by every way of the shape that it went through, once; and shapes follow one another.
    fn assert_delivered(&self, journal: &Journal, stream: &str, places: &[u64]) {
        let mut got: Vec<BTreeSet<(String, String)>> = vec![BTreeSet::new(); places.len()];
        for ((sink, of), came) in lock(&journal.came).iter() {
            let mut last: BTreeMap<&str, u64> = BTreeMap::new();
            for came in came.iter().filter(|_| of == stream) {
                let Came::Item { way, seq } = came else { continue };
                let before = last.insert(way, *seq);
                assert!(before.is_none_or(|before| before < *seq), "{stream} at {sink}: {seq} behind {before:?}");
                let index = usize::try_from(*seq).unwrap();
                assert!(index < places.len(), "{stream} at {sink}: {seq} was never made");
                got[index].insert((sink.clone(), way.to_string()));
            }
        }
        let destinations = self.destinations(stream);
        let lossless: Vec<bool> =
            self.shapes.iter().map(|shape| shape.source_of(stream).is_none_or(|source| !source.live)).collect();
        let (mut shape, mut off_grid) = (0, 0);
        for (seq, (got, place)) in got.iter().zip(places).enumerate() {
            let is_sampled = place % SAMPLED == 0;
            let fits = |shape: usize| {
                let there = &destinations[shape];
                let whole = || there.iter().all(|(way, sampled)| got.contains(way) || *sampled && !is_sampled);
                got.iter().all(|way| there.contains_key(way)) && (!lossless[shape] || whole())
            };
            let (first, last) = self.window(stream, seq as u64);
            let before = shape;
            shape = shape.max(first);
            while shape < self.shapes.len() && !fits(shape) {
                shape += 1;
            }
            assert!(
                shape <= last,
                "picture {seq} of `{stream}` came by {got:?}\nwhich no shape from {} to {} brings about; the one before went through shape {}",
                first.max(before) + 1,
                last + 1,
                before + 1,
            );
            off_grid += u64::from(!is_sampled && got.iter().any(|way| destinations[shape].get(way) == Some(&true)));
        }
        // A sampler that begins passes the first picture that it sees.
        let samplers: BTreeSet<&str> = self
            .shapes
            .iter()
            .flat_map(|shape| shape.nodes.iter().filter(|node| node.does == Does::Sample))
            .map(|node| &*node.name)
            .collect();
        let begun: u64 = samplers
            .into_iter()
            .map(|name| runs(self.shapes.iter().map(|shape| self.begins(shape, stream, name))))
            .sum();
        assert!(
            off_grid <= begun,
            "`{stream}`: {off_grid} pictures are sampled beside the grid, with {begun} samplers"
        );
    }

    /// What a sampler's state of a stream depends on.
    fn begins(&self, shape: &Shape, stream: &str, sampler: &str) -> Option<(u64, bool, u64)> {
        let node = shape.nodes.iter().find(|node| node.name == sampler && node.does == Does::Sample)?;
        let source = shape.source_of(stream).filter(|source| source.name == node.inputs[0])?;
        shape.identity_of(stream).filter(|_| source.streams.contains(&stream))
    }

    /// A node that counts began anew only where it, or what is before it, or the stream was changed.
    fn assert_seamless(&self, journal: &Journal) {
        for ((element, stream), counts) in lock(&journal.counted).iter() {
            let node = |shape: &Shape| shape.elements().get(element).map(|node| (*node).clone());
            let by_several_ways = self.shapes.iter().any(|shape| {
                node(shape).is_some_and(|node| node.does != Does::Join && shape.branches_into(stream, &node.inputs) > 1)
            });
            if by_several_ways {
                continue;
            }
            let lives = |shape: &Shape| {
                let reached = node(shape).is_some_and(|node| shape.branches_into(stream, &node.inputs) > 0);
                shape.identity_of(stream).filter(|_| reached)
            };
            let most = runs(self.shapes.iter().map(lives));
            let starts = counts.iter().filter(|count| **count == 0).count() as u64;
            assert!(starts <= most, "`{element}` began {starts} times with `{stream}`, and was there {most} times");
            let whole = counts.windows(2).all(|pair| pair[1] == pair[0] + 1 || pair[1] == 0);
            assert!(whole, "`{element}` lost its state of `{stream}` in the middle");
        }
    }

    /// Sinks hear of formats before items, and of each end.
    fn assert_signals(&self, journal: &Journal) {
        for ((sink, stream), came) in lock(&journal.came).iter() {
            let mut is_open = false;
            for (index, what) in came.iter().enumerate() {
                match what {
                    Came::Open => is_open = true,
                    Came::Item { seq, .. } => assert!(is_open, "`{sink}` got picture {seq} of `{stream}` unopened"),
                    Came::End(reason) => {
                        // What comes by several ways ends by each of them.
                        let more = came[index + 1..].iter().take_while(|what| **what != Came::Open);
                        let ends = more.filter(|what| matches!(what, Came::End(_))).count();
                        is_open = is_open && (*reason != EndReason::Reload || ends > 0);
                    }
                }
            }
            let last = came.iter().rev().find(|what| !matches!(what, Came::Item { .. }));
            assert!(matches!(last, Some(Came::End(_))), "`{sink}` was not told of the end of `{stream}`: {last:?}");
        }
    }

    /// What was not changed was opened once.
    fn assert_opened(&self, journal: &Journal) {
        for (stream, times) in lock(&journal.opened).iter() {
            let wanted = runs(self.shapes.iter().map(|shape| shape.identity_of(stream)));
            let is_endless = |shape: &Shape| shape.source_of(stream).is_none_or(|source| source.count == ENDLESS);
            let fits = if self.shapes.iter().all(is_endless) { *times == wanted } else { (1..=wanted).contains(times) };
            assert!(fits, "`{stream}` was opened {times} times, and was wanted {wanted} times");
        }
        for (label, times) in lock(&journal.started).iter() {
            let is_there = |shape: &Shape| shape.sinks.iter().any(|sink| sink.label() == *label).then_some(());
            assert_eq!(*times, runs(self.shapes.iter().map(is_there)), "sink `{label}` was opened too often");
        }
    }
}

fn run(seed: u64) {
    println!("ENGINE_SEED={seed}");
    let dice = Dice(AtomicU64::new(seed));
    let journal = Arc::new(Journal::default());
    let mut shape = Shape::new();
    let running = Running::of(Arc::default(), 1 + usize::try_from(dice.roll(3)).unwrap(), shape.plan(&journal, false));
    let mut history = History { seed, shapes: vec![shape.clone()], marks: Vec::new() };
    let (stream, node, sink) = LASTING;
    for _ in 0..RELOADS {
        for _ in 0..=dice.roll(3) {
            shape.edit(&dice);
        }
        if dice.roll(8) == 0 {
            let last = history.shapes.last().unwrap();
            let plan = last.plan(&journal, true);
            let error = running.change(move |graph| graph.reload(plan, PATIENCE)).unwrap_err();
            assert_eq!(error.to_string(), "`refuses` cannot start: as told");
        }
        let plan = shape.plan(&journal, false);
        let before = journal.marks();
        history.shapes.push(shape.clone());
        let reloaded = running.change(move |graph| graph.reload(plan, PATIENCE)).unwrap();
        history.marks.push((before, journal.marks()));
        assert!(reloaded.stuck.is_empty() && reloaded.lost == 0, "{reloaded:?}");
        assert_eq!(reloaded.generation, history.shapes.len() as u64);
        let kept = |names: &[String], name: &str| names.iter().any(|kept| kept == name);
        assert!(kept(&reloaded.nodes.kept, node) && kept(&reloaded.nodes.kept, sink), "{reloaded:?}");
        for stream in shape.streams() {
            let earlier = &history.shapes[history.shapes.len() - 2];
            let is_endless = shape.source_of(stream).is_some_and(|source| source.count == ENDLESS);
            let is_same = is_endless && earlier.identity_of(stream) == shape.identity_of(stream);
            assert!(!is_same || kept(&reloaded.streams.kept, stream), "`{stream}` is not kept: {reloaded:?}");
        }
        if dice.roll(3) == 0 {
            let label = format!("{sink}#0");
            let arrived = journal.arrived(&label, stream);
            eventually(|| journal.arrived(&label, stream) > arrived + 5);
        }
    }
    let (outcome, _, counters) = running.end();
    assert!(outcome.is_success(), "{outcome:?}");
    assert_eq!(counters.report().total.lost, 0);
    let mistakes = lock(&journal.mistakes).clone();
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    for (stream, places) in lock(&journal.made).iter() {
        history.assert_delivered(&journal, stream, places);
    }
    history.assert_opened(&journal);
    history.assert_seamless(&journal);
    history.assert_signals(&journal);
    assert_eq!(lock(&journal.opened)[stream], 1, "nothing has touched it");
    assert_eq!(lock(&journal.started).iter().filter(|(label, _)| label.starts_with("out#")).count(), 1);
    let made = lock(&journal.made)[stream].len() as u64;
    let lasting: Vec<u64> = lock(&journal.counted)
        .iter()
        .find(|((element, of), _)| element.starts_with(node) && of == stream)
        .map(|(_, counts)| counts.clone())
        .unwrap();
    assert!(lasting.into_iter().eq(0..made), "nothing has touched it");
}

#[test]
fn random_edits_of_random_graphs_lose_and_repeat_nothing() {
    for seed in seeds() {
        run(seed);
    }
}
