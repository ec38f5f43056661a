//! Explains a plan, like a database's EXPLAIN: as text for people and as JSON for programs. Owns no decision; it says
//! what the planner decided.

use std::fmt::Write;

use operators::address::masked;
use operators::config::format_size;
use operators::lease::Limits;
use operators::operator::Batching;
use operators::transforms::sample::Sampling;
use serde::Serialize;

use super::memory::Memory;
use super::plan::{Entry, Input, OnError, Overflow, Plan, Work};
use super::planner::demanded_kinds;
use super::substitute::Secrets;

/// A plan as data. Every text in it is safe to show.
#[derive(Serialize)]
pub struct Explanation {
    graph: String,
    sources: Vec<ExplainedSource>,
    operators: Vec<ExplainedNode>,
    sinks: Vec<ExplainedNode>,
    threads: Threads,
    memory: Memory,
    /// What answering `/predict` may take beside that; absent where no model is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    predict_memory: Option<Memory>,
}

impl Explanation {
    /// Whether the graph has a source of this name.
    pub fn has_source(&self, name: &str) -> bool {
        self.sources.iter().any(|source| source.name == name)
    }
}

#[derive(Serialize)]
struct ExplainedSource {
    name: String,
    #[serde(rename = "type")]
    type_name: &'static str,
    live: bool,
    finite: bool,
    delivers: Vec<&'static str>,
    decoder_threads_per_stream: usize,
    streams: Vec<ExplainedStream>,
    taps: Vec<ExplainedTap>,
}

#[derive(Serialize)]
struct ExplainedStream {
    id: String,
    location: String,
}

#[derive(Serialize)]
struct ExplainedTap {
    kind: &'static str,
    /// The `sample` node that runs on the source's thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pushed_down: Option<String>,
    /// Pictures a second, as a ratio; absent where every picture is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<String>,
    overflow: Overflow,
    limits: Limits,
    consumers: Vec<String>,
}

#[derive(Serialize)]
struct ExplainedNode {
    name: String,
    #[serde(rename = "type")]
    type_name: &'static str,
    runs_on: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// Absent where items run one by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<ExplainedBatch>,
    /// Threads that encode each of its streams; absent where it encodes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoder_threads_per_stream: Option<usize>,
    inputs: Vec<String>,
    on_error: OnError,
    #[serde(skip_serializing_if = "Option::is_none")]
    overflow: Option<Overflow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
}

/// How many items run at once.
#[derive(Serialize)]
struct ExplainedBatch {
    items: usize,
    wait_ms: f64,
}

/// How many threads of each class.
#[derive(Serialize)]
struct Threads {
    main: usize,
    control: usize,
    workers: usize,
    /// One for each stream.
    sources: usize,
    /// What decoders start beside the source's own thread.
    decoders: usize,
    pool: usize,
    io: usize,
    /// For streams that sinks encode, as far as they need it.
    #[serde(skip_serializing_if = "is_zero")]
    encoders: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Explains a plan. What `secrets` covers is not shown.
pub fn explain(plan: &Plan, secrets: &Secrets) -> Explanation {
    let shown = |text: &str| secrets.redact(text);
    let sources = (0..plan.sources.len()).map(|index| source(plan, index, secrets)).collect();
    let node =
        |name: &str, type_name, runs_on, model, inputs: &[Input], on_error, entry: Option<Entry>| ExplainedNode {
            name: shown(name),
            type_name,
            runs_on,
            model,
            batch: None,
            encoder_threads_per_stream: None,
            inputs: inputs.iter().map(|input| input_name(plan, *input)).map(|name| shown(&name)).collect(),
            on_error,
            overflow: entry.map(|entry| entry.overflow),
            limits: entry.map(|entry| entry.limits),
        };
    let operators = plan.operators.iter().map(|operator| {
        let (runs_on, model) = match &operator.work {
            Work::Inline(_) => ("worker", None),
            Work::Pool(work) => ("pool", work.model().map(|model| shown(&model))),
            Work::Io(_) => ("io", None),
        };
        let batch = match &operator.work {
            Work::Inline(_) | Work::Io(_) => None,
            Work::Pool(work) => work.batching(),
        };
        let (name, type_name) = (&operator.name, operator.type_name);
        let explained = node(name, type_name, runs_on, model, &operator.inputs, operator.on_error, operator.entry);
        let batch = batch.map(|Batching { items, wait }| ExplainedBatch { items, wait_ms: wait.as_secs_f64() * 1e3 });
        ExplainedNode { batch, ..explained }
    });
    let sinks = plan.sinks.iter();
    let sinks = sinks.map(|sink| {
        let encoder_threads_per_stream = sink.sink.encoder_threads();
        let explained = node(&sink.name, sink.type_name, "io", None, &sink.inputs, sink.on_error, sink.entry);
        ExplainedNode { encoder_threads_per_stream, ..explained }
    });
    let streams = |index: usize| plan.sources[index].source.streams().len();
    let threads = Threads {
        main: 1,
        control: 1,
        workers: plan.workers,
        sources: (0..plan.sources.len()).map(streams).sum(),
        decoders: (0..plan.sources.len())
            // A decoder with one thread works on the source's own.
            .map(|index| streams(index) * Some(plan.sources[index].decoder_threads).filter(|n| *n > 1).unwrap_or(0))
            .sum(),
        pool: if plan.operators.iter().any(|node| matches!(node.work, Work::Pool(_))) { plan.pool_threads } else { 0 },
        io: 1,
        encoders: plan
            .sinks
            .iter()
            .filter_map(|sink| {
                let threads = sink.sink.encoder_threads()?;
                let streams: usize = plan.roots(&sink.inputs).into_iter().map(streams).sum();
                // One works on the encoder's own thread; more of them decode, and as many encode.
                Some(streams * (1 + if threads > 1 { 2 * threads } else { 0 }))
            })
            .sum(),
    };
    let mut memory = plan.memory();
    memory.terms.iter_mut().for_each(|term| term.what = shown(&term.what));
    Explanation {
        graph: plan.graph.to_string(),
        sources,
        operators: operators.collect(),
        sinks: sinks.collect(),
        threads,
        memory,
        predict_memory: None,
    }
}

fn source(plan: &Plan, index: usize, secrets: &Secrets) -> ExplainedSource {
    let planned = &plan.sources[index];
    let streams = planned.source.streams();
    let taps = plan.taps.iter().enumerate().filter(|(_, tap)| tap.source == index);
    ExplainedSource {
        name: planned.name.to_string(),
        type_name: planned.type_name,
        live: planned.source.is_live(),
        finite: planned.source.is_finite(),
        delivers: demanded_kinds(plan, index).into_iter().map(|kind| kind.plural()).collect(),
        decoder_threads_per_stream: planned.decoder_threads,
        streams: streams
            .iter()
            .map(|spec| ExplainedStream {
                id: secrets.redact(&spec.id),
                location: masked(&secrets.redact(&spec.location)),
            })
            .collect(),
        taps: taps
            .map(|(number, tap)| ExplainedTap {
                kind: tap.kind.plural(),
                pushed_down: tap.sample.as_ref().map(|(name, _)| name.to_string()),
                rate: tap.sample.as_ref().map(|(_, Sampling { rate, .. })| rate.to_string()),
                overflow: tap.overflow,
                limits: tap.limits,
                consumers: plan.consumers(Input::Tap(number)).map(ToString::to_string).collect(),
            })
            .collect(),
    }
}

/// What a node reads, by the name that the graph file has for it.
fn input_name(plan: &Plan, input: Input) -> String {
    match input {
        Input::Operator(operator) => plan.operators[operator].name.to_string(),
        Input::Tap(tap) => match &plan.taps[tap].sample {
            Some((sample, _)) => format!("{} (of {})", sample, plan.sources[plan.taps[tap].source].name),
            None => plan.sources[plan.taps[tap].source].name.to_string(),
        },
    }
}

impl Explanation {
    /// With what answering `/predict` may take.
    #[must_use]
    pub fn with_predict(self, memory: Option<Memory>) -> Explanation {
        Explanation { predict_memory: memory, ..self }
    }

    /// The plan as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "graph {}", self.graph)?;
        for source in &self.sources {
            let nature = match (source.live, source.finite) {
                (true, _) => "paced by time",
                (false, true) => "finite, as fast as consumers take it",
                (false, false) => "endless, as fast as consumers take it",
            };
            writeln!(out, "\nsource {} ({}): {nature}", source.name, source.type_name)?;
            writeln!(out, "  must deliver {}", source.delivers.join(" and "))?;
            write_streams(out, &source.streams)?;
            // Zero: nothing is decoded, the source makes its pictures itself.
            if source.decoder_threads_per_stream > 0 {
                let threads = plural(source.decoder_threads_per_stream, "decoder thread");
                writeln!(out, "  {threads} for each stream")?;
            }
            for tap in &source.taps {
                let demand = match &tap.rate {
                    Some(rate) => format!("{} at {rate} a second", tap.kind),
                    None => format!("all {}", tap.kind),
                };
                writeln!(out, "  tap: {demand} -> {}", tap.consumers.join(", "))?;
                if let Some(sample) = &tap.pushed_down {
                    writeln!(out, "    pushed down: {sample} runs on the source's thread")?;
                }
                writeln!(out, "    {}", bound(tap.overflow, tap.limits))?;
            }
        }
        for (role, nodes) in [("operator", &self.operators), ("sink", &self.sinks)] {
            for node in nodes {
                let on = match node.runs_on {
                    "worker" => "on the dataflow workers",
                    "pool" => "in the pool",
                    _ => "on the io runtime",
                };
                writeln!(out, "\n{role} {} ({}): {on}", node.name, node.type_name)?;
                writeln!(out, "  reads {}", node.inputs.join(", "))?;
                if let Some(model) = &node.model {
                    writeln!(out, "  model {model}")?;
                }
                if let Some(ExplainedBatch { items, wait_ms }) = &node.batch {
                    writeln!(out, "  runs up to {items} items at once; the first waits {wait_ms} ms for others")?;
                }
                if let Some(threads) = node.encoder_threads_per_stream {
                    let threads = plural(threads, "encoder thread");
                    writeln!(out, "  encodes what browsers cannot play: {threads} for each stream")?;
                }
                if let (Some(overflow), Some(limits)) = (node.overflow, node.limits) {
                    writeln!(out, "  entry: {}", bound(overflow, limits))?;
                }
                if node.on_error == OnError::Stop {
                    writeln!(out, "  an error stops the graph")?;
                }
            }
        }
        let t = &self.threads;
        writeln!(out, "\nthreads: {} main, {} control, {}", t.main, t.control, plural(t.workers, "worker"))?;
        write!(out, "  {} (one for each stream), {}", plural(t.sources, "source"), plural(t.decoders, "decoder"))?;
        write!(out, ", {} pool, {} io", t.pool, t.io)?;
        if t.encoders > 0 {
            write!(out, ", up to {} for encoders", t.encoders)?;
        }
        writeln!(out)?;
        writeln!(out, "\nmemory: at most {} of media in flight", format_size(self.memory.total_bytes))?;
        write_terms(out, &self.memory)?;
        if let Some(predict) = &self.predict_memory {
            writeln!(out, "  for `/predict` at most {} more", format_size(predict.total_bytes))?;
            write_terms(out, predict)?;
        }
        let coders = if t.encoders > 0 { "the decoders' and encoders'" } else { "the decoders'" };
        writeln!(out, "  beside it: the program, the models' weights and {coders} own pictures")
    }
}

fn write_terms(out: &mut String, memory: &Memory) -> std::fmt::Result {
    for term in &memory.terms {
        let size = format_size(term.bytes);
        writeln!(out, "  {size:>8}  {}: {} x {}", term.what, term.count, format_size(term.each))?;
    }
    Ok(())
}

fn write_streams(out: &mut String, streams: &[ExplainedStream]) -> std::fmt::Result {
    const MOST: usize = 10;
    writeln!(out, "  {}", plural(streams.len(), "stream"))?;
    for stream in streams.iter().take(MOST) {
        writeln!(out, "    {}: {}", stream.id, stream.location)?;
    }
    if streams.len() > MOST {
        writeln!(out, "    and {} more", streams.len() - MOST)?;
    }
    Ok(())
}

fn bound(overflow: Overflow, limits: Limits) -> String {
    let then = match overflow {
        Overflow::Block => "then the source waits",
        Overflow::DropOldest => "then the oldest is dropped",
        Overflow::DropGop => "then video is dropped until the next keyframe",
    };
    format!("at most {} and {} a stream, {then}", plural(limits.items as usize, "item"), format_size(limits.bytes))
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
