//! `/metrics` from outside: it obeys the rules of its format, and says what `/stats` says.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use support::{Engine, Folder, StalledPipe, assert_conserved, get_text};

/// One sample: a name, its labels, its value.
#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// A page, read by the rules of OpenMetrics; any breach of them fails.
struct Page {
    types: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

impl Page {
    fn of(engine: &mut Engine) -> Page {
        let (status, content_type, text) = get_text(&format!("{}/metrics", engine.address()));
        assert_eq!(status, 200);
        assert_eq!(content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        Page::read(&text)
    }

    fn read(text: &str) -> Page {
        assert!(text.ends_with("\n# EOF\n"), "the end is marked: {text}");
        let mut page = Page { types: BTreeMap::new(), samples: Vec::new() };
        let mut helped = BTreeSet::new();
        let mut family = String::new();
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a name and a text");
                assert!(!help.trim().is_empty(), "{line}");
                assert!(helped.insert(name.to_owned()), "a family stands in one place: {line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a type");
                assert!(helped.contains(name), "help comes first: {line}");
                assert!(["counter", "gauge", "histogram", "info"].contains(&kind), "{line}");
                page.types.insert(name.to_owned(), kind.to_owned());
                family = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# UNIT ") {
                let (name, unit) = rest.split_once(' ').expect("a name and a unit");
                assert!(name == family && name.ends_with(&format!("_{unit}")), "{line}");
                assert!(["seconds", "bytes"].contains(&unit), "a base unit: {line}");
            } else {
                let sample = sample(line);
                let suffixes: &[&str] = match page.types[&family].as_str() {
                    "counter" => &["_total"],
                    "info" => &["_info"],
                    "histogram" => &["_sum", "_count", "_bucket"],
                    _ => &[""],
                };
                let belongs = suffixes.iter().any(|suffix| sample.name == format!("{family}{suffix}"));
                assert!(belongs, "`{}` is no sample of `{family}`", sample.name);
                page.samples.push(sample);
            }
        }
        let mut series = BTreeSet::new();
        for sample in &page.samples {
            assert!(series.insert((sample.name.clone(), sample.labels.clone())), "twice: {sample:?}");
            assert!(sample.value >= 0.0, "{sample:?}");
        }
        page.histograms_add_up();
        page
    }

    /// Buckets grow with their bounds, end with `+Inf`, and the last one has all.
    fn histograms_add_up(&self) {
        let histograms = self.types.iter().filter(|(_, kind)| *kind == "histogram");
        for (name, _) in histograms {
            for total in self.named(&format!("{name}_count")) {
                let of_it = |sample: &&Sample| {
                    let mut labels = sample.labels.clone();
                    labels.remove("le");
                    labels == total.labels
                };
                let buckets: Vec<_> = self.named(&format!("{name}_bucket")).filter(of_it).collect();
                let bounds: Vec<f64> =
                    buckets.iter().map(|bucket| bucket.labels["le"].parse().expect("a bound")).collect();
                assert!(bounds.is_sorted() && bounds.last() == Some(&f64::INFINITY), "{bounds:?}");
                assert!(buckets.is_sorted_by_key(|bucket| bucket.value), "{buckets:?}");
                assert_eq!(buckets.last().expect("buckets").value, total.value, "{name}");
                let sums = self.named(&format!("{name}_sum")).filter(of_it).count();
                assert_eq!(sums, 1, "{name}");
            }
        }
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// The only sample with these labels, among others perhaps.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found: Vec<_> = self
            .named(name)
            .filter(|sample| {
                labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|is| is == value))
            })
            .collect();
        let [sample] = found[..] else { panic!("{name} {labels:?}: {found:?}") };
        sample.value
    }

    /// A stream's counts, as `/stats` writes them.
    fn counts(&self, stream: &str) -> Value {
        let of = |name: &str, more: Option<(&str, &str)>| {
            let labels: Vec<_> = [("stream", stream)].into_iter().chain(more).collect();
            self.value(name, &labels) as u64
        };
        let mut counts = serde_json::json!({
            "read": of("engine_items_read_total", None),
            "in_flight": of("engine_items_in_flight", None),
        });
        for verdict in ["delivered", "filtered", "dropped", "rejected", "lost"] {
            counts[verdict] = of("engine_items_total", Some(("verdict", verdict))).into();
        }
        counts
    }
}

fn sample(line: &str) -> Sample {
    let (name, rest) = line.split_once(['{', ' ']).expect("a name");
    let is_name = |text: &str| {
        !text.starts_with(|c: char| c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    let value = match line.contains('{') {
        false => rest,
        true => {
            let (inside, value) = rest.rsplit_once("} ").expect("labels end");
            for label in inside.split("\",") {
                let (name, text) = label.split_once("=\"").expect("a label");
                assert!(is_name(name), "{line}");
                labels.insert(name.to_owned(), text.trim_end_matches('"').to_owned());
            }
            value
        }
    };
    Sample { name: name.to_owned(), labels, value: value.parse().unwrap_or_else(|_| panic!("{line}")) }
}

#[test]
fn the_metrics_of_a_finished_graph_are_its_statistics() {
    let folder = Folder::with_graph(
        r#"
        [sources.scene]
        type = "synthetic"
        frames = 90
        realtime = false

        [operators.some]
        type = "sample"
        inputs = ["scene"]
        fps = 5

        [operators.shapes]
        type = "detect"
        inputs = ["some"]
        model = "shapes"

        [operators.sum]
        type = "checksum"
        inputs = ["scene"]

        [sinks.events]
        type = "sse"
        inputs = ["shapes"]

        [sinks.nothing]
        type = "blackhole"
        inputs = ["sum"]
        "#,
    );
    let mut engine = folder.run(&["--stay"]);
    let graph = engine.wait_for_graph("the end of the graph", |graph| graph["state"] == "finished");
    let page = Page::of(&mut engine);

    let (stats, metrics) = (&graph["streams"][0], page.counts("synthetic"));
    assert_conserved(&metrics);
    for (name, count) in metrics.as_object().expect("counts") {
        assert_eq!(&stats[name], count, "{name}");
    }
    assert_eq!(metrics["read"], 90);
    for (name, metric) in [
        ("decoded", "engine_pictures_decoded_total"),
        ("converted", "engine_pictures_converted_total"),
        ("skipped", "engine_pictures_skipped_total"),
    ] {
        assert_eq!(stats[name].as_u64(), Some(page.value(metric, &[]) as u64), "{name}");
    }

    // Every delivered item has an age; every job of the pool took its time.
    let delivered = metrics["delivered"].as_u64().expect("a count") as f64;
    assert!(delivered > 0.0);
    assert_eq!(page.value("engine_result_age_seconds_count", &[("stream", "synthetic")]), delivered);
    assert!(page.value("engine_result_age_seconds_sum", &[("stream", "synthetic")]) > 0.0);
    let shapes = [("graph", "graph"), ("node", "shapes"), ("type", "detect"), ("role", "pool")];
    assert_eq!(page.value("engine_stage_seconds_count", &shapes), 15.0);
    assert_eq!(page.value("engine_node_items_total", &shapes), 15.0);
    let busy = graph["nodes"].as_array().expect("a list").iter().find(|node| node["name"] == "shapes");
    let busy = busy.expect("the node")["busy_ms"].as_f64().expect("a time") / 1000.0;
    assert!((page.value("engine_stage_seconds_sum", &shapes) - busy).abs() < 1e-9);

    // One state at a time.
    for (metric, state) in [("engine_graph_state", "finished"), ("engine_stream_state", "ended")] {
        let states: Vec<_> = page.named(metric).filter(|sample| sample.value == 1.0).collect();
        assert_eq!(states.len(), 1, "{states:?}");
        assert_eq!(states[0].labels["state"], state);
    }
    assert_eq!(page.value("engine_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert!(page.value("process_cpu_seconds_total", &[]) > 0.0);
    assert!(page.value("process_resident_memory_bytes", &[]) > 1e6);
    assert_eq!(page.value("engine_events_published_total", &[]), 15.0);
    engine.terminate().expect(0);
}

/// The items behind a stalled sink are in flight, and what a live source drops meanwhile is named.
#[test]
fn drops_are_named_and_nothing_is_forgotten_while_items_flow() {
    let folder = Folder::with_graph(
        r#"
        [sources.camera]
        type = "synthetic"
        width = 64
        height = 48
        fps = 200

        [operators.sum]
        type = "checksum"
        inputs = ["camera"]

        [sinks.out]
        type = "file"
        inputs = ["sum"]
        path = "out.jsonl"
        overflow = "drop_oldest"
        "#,
    );
    let pipe = StalledPipe::new(folder.file("out.jsonl"));
    let mut engine = folder.run(&[]);
    engine.wait_for_graph("drops", |graph| graph["total"]["dropped"].as_u64() > Some(50));
    let page = Page::of(&mut engine);
    let counts = page.counts("synthetic");
    let number = |name: &str| counts[name].as_u64().expect("a count");
    let settled: u64 = ["delivered", "filtered", "dropped", "rejected", "lost"].into_iter().map(number).sum();
    assert!(number("read") >= settled && number("in_flight") > 0, "{counts}");
    let drops: f64 = page.named("engine_drops_total").map(|sample| sample.value).sum();
    assert!(drops >= number("dropped") as f64, "{counts}, but {drops} drops are named");
    let named: BTreeSet<_> = page.named("engine_drops_total").map(|sample| sample.labels["reason"].as_str()).collect();
    assert_eq!(named, BTreeSet::from(["queue full"]));

    let reader = pipe.drain();
    engine.terminate();
    reader.join().expect("its lines");
}

/// `docs/metrics.md` lists what there is, and nothing else.
#[test]
fn the_documentation_lists_every_metric() {
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = 'synthetic'\nframes = 3\nrealtime = false\n[operators.sum]\ntype = 'checksum'\n\
         inputs = ['scene']\n[sinks.out]\ntype = 'blackhole'\ninputs = ['sum']\n",
    );
    let mut engine = folder.run(&["--stay"]);
    engine.wait_for_graph("the end of the graph", |graph| graph["state"] == "finished");
    let page = Page::of(&mut engine);
    let suffix = |kind: &str| match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    let served: BTreeSet<String> = page.types.iter().map(|(name, kind)| format!("{name}{}", suffix(kind))).collect();
    let text = std::fs::read_to_string(support::repository().join("docs/metrics.md")).expect("the page");
    let documented: BTreeSet<String> =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next()).map(str::to_owned).collect();
    assert_eq!(served, documented);
    engine.terminate().expect(0);
}
