//! The counts as lines of CloudWatch's embedded metric format: a log that CloudWatch reads metrics from.
//!
//! Each line is one JSON object: `_aws` says which of its members are metrics, with their units and dimensions, the
//! others are their values. Counts are of the time since the line before, everything else is as it is just now.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::runtime::stats::{GraphReport, NodeReport, Report, StreamReport};

/// What CloudWatch files the metrics under.
pub const NAMESPACE: &str = "engine";

/// Writes lines, and remembers what the ones before counted.
#[derive(Default)]
pub struct EmbeddedMetrics {
    before: HashMap<String, f64>,
}

/// One line in the making.
struct Document<'a> {
    memory: &'a mut EmbeddedMetrics,
    /// Tells what is counted here from what is counted elsewhere.
    place: String,
    dimensions: Vec<&'static str>,
    members: Map<String, Value>,
    definitions: Vec<Value>,
}

impl Document<'_> {
    fn dimension(&mut self, name: &'static str, value: &str) {
        self.place.push('/');
        self.place.push_str(value);
        self.dimensions.push(name);
        self.members.insert(name.to_owned(), value.into());
    }

    fn metric(&mut self, name: &str, unit: &str, value: f64) {
        self.definitions.push(json!({ "Name": name, "Unit": unit }));
        self.members.insert(name.to_owned(), value.into());
    }

    /// How much a count has grown since the line before. One that is less than it was has begun anew.
    fn growth(&mut self, name: &str, count: f64) -> f64 {
        let before = self.memory.before.insert(format!("{}:{name}", self.place), count).unwrap_or(0.0);
        if count >= before { count - before } else { count }
    }

    fn count(&mut self, name: &str, count: u64) {
        let growth = self.growth(name, count as f64);
        self.metric(name, "Count", growth);
    }

    /// Something to read beside the metrics.
    fn note(&mut self, name: &str, text: &str) {
        self.members.insert(name.to_owned(), text.into());
    }

    fn line(mut self, time: SystemTime) -> String {
        let milliseconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let directive = json!({
            "Namespace": NAMESPACE,
            "Dimensions": [self.dimensions],
            "Metrics": self.definitions,
        });
        let timestamp = u64::try_from(milliseconds).unwrap_or(u64::MAX);
        self.members.insert("_aws".to_owned(), json!({ "Timestamp": timestamp, "CloudWatchMetrics": [directive] }));
        Value::Object(self.members).to_string()
    }
}

impl EmbeddedMetrics {
    /// The lines of one moment: one for the process, for each graph, for each of its streams, and for each of its
    /// nodes but taps.
    pub fn lines(&mut self, report: &Report, time: SystemTime) -> Vec<String> {
        let mut lines = vec![self.process(report, time)];
        for graph in &report.graphs {
            lines.push(self.graph(graph, time));
            lines.extend(graph.streams.iter().map(|stream| self.stream(graph, stream, time)));
            let nodes = graph.nodes.iter().filter(|node| node.role != "tap");
            lines.extend(nodes.map(|node| self.node(graph, node, time)));
        }
        lines
    }

    fn document(&mut self, kind: &str) -> Document<'_> {
        Document {
            memory: self,
            place: kind.to_owned(),
            dimensions: Vec::new(),
            members: Map::new(),
            definitions: Vec::new(),
        }
    }

    fn process(&mut self, report: &Report, time: SystemTime) -> String {
        let process = &report.process;
        let mut document = self.document("process");
        document.metric("uptime", "Seconds", process.uptime_seconds);
        let used = document.growth("cpu", process.cpu_seconds);
        document.metric("cpu", "Seconds", used);
        document.metric("resident_memory", "Bytes", process.resident_bytes as f64);
        let threads = process.pool_threads.max(1) as f64;
        document.metric("pool_busy", "Percent", (process.pool_busy / threads * 100.0).min(100.0));
        document.line(time)
    }

    fn graph(&mut self, graph: &GraphReport, time: SystemTime) -> String {
        let mut document = self.document("graph");
        document.dimension("graph", &graph.name);
        document.metric("streams", "Count", graph.streams.len() as f64);
        document.metric("in_flight", "Count", graph.total.in_flight as f64);
        document.note("state", graph.state.name());
        if let Some(reason) = &graph.reason {
            document.note("reason", reason);
        }
        if let Some(culprit) = &graph.culprit {
            document.note("culprit", &culprit.text);
        }
        document.line(time)
    }

    fn stream(&mut self, graph: &GraphReport, stream: &StreamReport, time: SystemTime) -> String {
        let mut document = self.document("stream");
        document.dimension("graph", &graph.name);
        document.dimension("stream", &stream.stream);
        let counts = stream.counts;
        for (name, count) in [
            ("read", counts.read),
            ("delivered", counts.delivered),
            ("filtered", counts.filtered),
            ("dropped", counts.dropped),
            ("rejected", counts.rejected),
            ("lost", counts.lost),
            ("reconnects", stream.reconnects),
        ] {
            document.count(name, count);
        }
        document.metric("in_flight", "Count", counts.in_flight as f64);
        document.metric("rate_in", "Count/Second", stream.rate_in);
        document.metric("rate_delivered", "Count/Second", stream.rate_delivered);
        document.metric("blocked", "Percent", stream.blocked_share * 100.0);
        document.metric("idle", "Milliseconds", stream.idle_ms as f64);
        let results = document.growth("ages", stream.ages.count() as f64);
        let ages = document.growth("age sum", stream.ages.sum);
        // No result has no age: a zero would look like a fast one.
        if results > 0.0 {
            document.metric("result_age", "Milliseconds", ages / results * 1000.0);
        }
        document.note("source", &stream.source);
        document.note("state", stream.state.name());
        if let Some(reason) = &stream.reason {
            document.note("reason", reason);
        }
        document.line(time)
    }

    fn node(&mut self, graph: &GraphReport, node: &NodeReport, time: SystemTime) -> String {
        let mut document = self.document("node");
        document.dimension("graph", &graph.name);
        document.dimension("node", &node.name);
        document.count("items", node.items.iter().sum());
        document.count("errors", node.errors);
        document.metric("queued", "Count", node.queued as f64);
        document.metric("busy_cores", "None", node.busy_share);
        document.metric("oldest_item", "Milliseconds", node.oldest_ms.unwrap_or(0.0));
        document.note("type", &node.type_name);
        document.line(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::live::tests::{graph, stream};
    use crate::runtime::stats::ProcessReport;
    use std::time::Duration;

    fn report() -> Report {
        let process = ProcessReport {
            uptime_seconds: 20.0,
            cpu_seconds: 12.0,
            resident_bytes: 1 << 20,
            peak_resident_bytes: 1,
            threads: 1,
            workers: 1,
            pool_threads: 2,
            pool_busy: 1.0,
            pool_busy_seconds: 20.0,
        };
        Report { graphs: vec![graph(vec![stream("door")])], process }
    }

    fn parsed(metrics: &mut EmbeddedMetrics, report: &Report) -> Vec<Value> {
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        metrics.lines(report, time).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_says_what_its_metrics_are() {
        let lines = parsed(&mut EmbeddedMetrics::default(), &report());
        // The process, the graph, the stream, and two nodes that are no tap.
        assert_eq!(lines.len(), 5);
        let door = &lines[2];
        let directive = &door["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(door["_aws"]["Timestamp"], 1_700_000_000_123_u64);
        assert_eq!(
            (&directive["Namespace"], &directive["Dimensions"]),
            (&json!("engine"), &json!([["graph", "stream"]]))
        );
        assert_eq!(
            (&door["graph"], &door["stream"], &door["source"]),
            (&json!("door"), &json!("door"), &json!("cameras"))
        );
        let metrics: Vec<(&str, &str)> = directive["Metrics"]
            .as_array()
            .unwrap()
            .iter()
            .map(|metric| (metric["Name"].as_str().unwrap(), metric["Unit"].as_str().unwrap()))
            .collect();
        assert!(metrics.contains(&("read", "Count")) && metrics.contains(&("rate_in", "Count/Second")), "{metrics:?}");
        assert!(metrics.iter().all(|(name, _)| door[*name].is_number()), "{door}");
        assert_eq!((&door["read"], &door["rate_in"]), (&json!(600.0), &json!(30.0)));
        assert_eq!(door.get("result_age"), None, "no result has no age");
    }

    #[test]
    fn counts_are_of_the_time_since_the_line_before() {
        let mut metrics = EmbeddedMetrics::default();
        let mut report = report();
        assert_eq!(parsed(&mut metrics, &report)[2]["read"], 600.0);
        report.graphs[0].streams[0].counts.read = 650;
        let lines = parsed(&mut metrics, &report);
        assert_eq!((&lines[2]["read"], &lines[2]["delivered"]), (&json!(50.0), &json!(0.0)));
        assert_eq!(lines[0]["cpu"], 0.0);
        // A graph that was started anew counts from the start.
        report.graphs[0].streams[0].counts.read = 30;
        assert_eq!(parsed(&mut metrics, &report)[2]["read"], 30.0);
    }
}
