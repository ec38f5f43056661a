//! `/metrics`: what `/stats` says, as a scraper of Prometheus reads it (OpenMetrics text).
//!
//! Everything is read from one [`Report`] at the time of the scrape, so the hot path counts nothing twice, and the two
//! pages agree. `docs/metrics.md` lists the metrics and bounds their number.

use std::fmt;

use operators::lease::Counts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::events::EventReport;
use crate::runtime::histogram::Histogram;
use crate::runtime::predict::PredictReport;
use crate::runtime::stats::{EncoderReport, GraphReport, GraphState, NodeReport, Report, StreamReport, StreamState};

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const SECONDS: Option<&Unit> = Some(&Unit::Seconds);
const BYTES: Option<&Unit> = Some(&Unit::Bytes);

/// The whole page.
///
/// # Errors
/// Never for what is written into memory; the encoder's signature has one.
pub fn page(report: Report, events: EventReport, predict: Option<PredictReport>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Moment { report, events, predict }));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// One reading of everything.
#[derive(Debug)]
struct Moment {
    report: Report,
    events: EventReport,
    predict: Option<PredictReport>,
}

impl Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(&mut encoder);
        self.process(&mut page)?;
        self.predict(&mut page)?;
        self.graphs(&mut page)?;
        self.streams(&mut page)?;
        self.nodes(&mut page)
    }
}

/// The verdicts, as labels and in the counts.
type Fate = (&'static str, fn(&Counts) -> u64);
const FATES: [Fate; 5] = [
    ("delivered", |counts| counts.delivered),
    ("filtered", |counts| counts.filtered),
    ("dropped", |counts| counts.dropped),
    ("rejected", |counts| counts.rejected),
    ("lost", |counts| counts.lost),
];

type Labels<const N: usize> = [(&'static str, String); N];

impl Moment {
    fn process(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let process = &self.report.process;
        page.info("engine_build", "Version of the engine", &[("version", env!("CARGO_PKG_VERSION").to_owned())])?;
        page.gauge("engine_uptime", SECONDS, "Time since the engine started", process.uptime_seconds)?;
        page.gauge("engine_workers", None, "Dataflow workers", process.workers as f64)?;
        page.gauge("engine_pool_threads", None, "Threads of the inference pool", process.pool_threads as f64)?;
        let help = "Time that the threads of the inference pool worked, together";
        page.family("engine_pool_busy", SECONDS, help, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&process.pool_busy_seconds, None)?;
        page.family("process_cpu", SECONDS, "User and system time of the process", MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&process.cpu_seconds, None)?;
        let resident = process.resident_bytes as f64;
        page.gauge("process_resident_memory", BYTES, "Resident memory of the process", resident)?;
        page.gauge("process_threads", None, "Threads of the process", process.threads as f64)?;
        page.family("engine_events_published", None, "Server-sent events published", MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&self.events.published, None)?;
        let help = "Server-sent events that subscribers lost because they read too slowly";
        page.family("engine_events_missed", None, help, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(&self.events.missed, None)?;
        let subscribers = self.events.subscribers as f64;
        page.gauge("engine_event_subscribers", None, "Connections that listen to /events", subscribers)
    }

    fn predict(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let help = "Pictures that /predict read";
        let mut family = page.family("engine_predict_pictures_read", None, help, MetricType::Counter)?;
        if let Some(predict) = &self.predict {
            family.encode_counter::<NoLabelSet, _, f64>(&predict.pictures.read, None)?;
        }
        let help = "Pictures that /predict read, by what became of them";
        let mut family = page.family("engine_predict_pictures", None, help, MetricType::Counter)?;
        if let Some(predict) = &self.predict {
            for (fate, value) in FATES {
                count(&mut family, &[("verdict", fate)], value(&predict.pictures))?;
            }
        }
        Ok(())
    }

    fn graphs(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let help = "1 for the state that the graph is in, 0 for the others";
        let mut family = page.family("engine_graph_state", None, help, MetricType::Gauge)?;
        for graph in self.latest() {
            for state in GraphState::ALL {
                let labels = [("graph", graph.name.clone()), ("state", state.name().to_owned())];
                family.encode_family(&labels)?.encode_gauge(&u64::from(graph.state == state))?;
            }
        }
        let help = "1 for what limits the graph just now, with the node that does";
        let mut family = page.family("engine_culprit", None, help, MetricType::Gauge)?;
        for graph in self.latest() {
            if let Some(culprit) = &graph.culprit {
                let node = match (&culprit.node, &culprit.graph) {
                    (Some(node), Some(other)) => format!("{other}/{node}"),
                    (node, _) => node.clone().unwrap_or_default(),
                };
                let labels = [("graph", graph.name.clone()), ("kind", culprit.kind.name().to_owned()), ("node", node)];
                family.encode_family(&labels)?.encode_gauge(&1_u64)?;
            }
        }
        Ok(())
    }

    fn streams(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        type Count = (&'static str, &'static str, fn(&StreamReport) -> u64);
        const COUNTERS: [Count; 6] = [
            ("engine_items_read", "Items that the source read", |stream| stream.counts.read),
            ("engine_stream_reconnects", "Inputs that came back after they were lost", |stream| stream.reconnects),
            ("engine_pictures_decoded", "Pictures that came out of the decoder", |stream| stream.decoded),
            ("engine_pictures_converted", "Pictures that were converted for somebody", |stream| stream.converted),
            ("engine_pictures_skipped", "Pictures that were never decoded", |stream| stream.skipped),
            ("engine_packets_demuxed", "Packets that were passed on as they are", |stream| stream.packets),
        ];
        type Level = (&'static str, Option<&'static Unit>, &'static str, fn(&StreamReport) -> f64);
        let levels: [Level; 5] = [
            ("engine_items_in_flight", None, "Items without a fate yet", |stream| stream.counts.in_flight as f64),
            ("engine_held_items", None, "Items in memory behind the stream's taps", |stream| stream.held_items as f64),
            ("engine_held", BYTES, "Media in memory behind the stream's taps", |stream| stream.held_bytes as f64),
            ("engine_held_limit", BYTES, "Budget of the stream's taps", |stream| stream.held_bytes_limit as f64),
            ("engine_stream_idle", SECONDS, "Time since the source last made progress", |stream| {
                stream.idle_ms as f64 / 1000.0
            }),
        ];

        let help = "1 for the state that the stream is in, 0 for the others";
        let mut family = page.family("engine_stream_state", None, help, MetricType::Gauge)?;
        for (stream, labels) in self.each_stream() {
            for state in StreamState::ALL {
                let labels = with(labels.clone(), [("state", state.name().to_owned())]);
                family.encode_family(&labels)?.encode_gauge(&u64::from(stream.state == state))?;
            }
        }
        for (name, help, value) in COUNTERS {
            let mut family = page.family(name, None, help, MetricType::Counter)?;
            for (stream, labels) in self.each_stream() {
                count(&mut family, &labels, value(stream))?;
            }
        }
        let help = "Items by how they ended; with those in flight they are what was read";
        let mut family = page.family("engine_items", None, help, MetricType::Counter)?;
        for (stream, labels) in self.each_stream() {
            for (fate, value) in FATES {
                let labels = with(labels.clone(), [("verdict", fate.to_owned())]);
                count(&mut family, &labels, value(&stream.counts))?;
            }
        }
        let help = "Time that the source waited for room, by the node that reads the tap";
        let mut family = page.family("engine_stream_blocked", SECONDS, help, MetricType::Counter)?;
        for (stream, labels) in self.each_stream() {
            for tap in &stream.taps {
                let labels = with(labels.clone(), [("node", tap.reader.clone())]);
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&tap.blocked_seconds, None)?;
            }
        }
        let help = "Time that a node worked on items of the stream";
        let mut family = page.family("engine_stream_busy", SECONDS, help, MetricType::Counter)?;
        for (stream, labels) in self.each_stream() {
            for busy in &stream.busy {
                let labels = with(labels.clone(), [("node", busy.node.clone())]);
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&busy.busy_seconds, None)?;
            }
        }
        let mut family = page.family("engine_drops", None, "Drops by node and reason", MetricType::Counter)?;
        for (stream, labels) in self.each_stream() {
            for drops in &stream.drops {
                let why = [("node", drops.node.clone()), ("reason", drops.reason.to_owned())];
                count(&mut family, &with(labels.clone(), why), drops.count)?;
            }
        }
        let help = "Repairs of timestamps and of damaged input, by what was wrong";
        let mut family = page.family("engine_repairs", None, help, MetricType::Counter)?;
        for (stream, labels) in self.each_stream() {
            for (what, repairs) in &stream.repaired {
                count(&mut family, &with(labels.clone(), [("what", (*what).to_owned())]), *repairs)?;
            }
        }
        for (name, unit, help, value) in levels {
            let mut family = page.family(name, unit, help, MetricType::Gauge)?;
            for (stream, labels) in self.each_stream() {
                family.encode_family(&labels)?.encode_gauge(&value(stream))?;
            }
        }
        let help = "Age of results, from decoding to acceptance by the sink";
        let mut family = page.family("engine_result_age", SECONDS, help, MetricType::Histogram)?;
        for (stream, labels) in self.each_stream() {
            histogram(&mut family, &labels, &stream.ages)?;
        }
        Ok(())
    }

    fn nodes(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let mut family = page.family("engine_node_items", None, "Items that came into a node", MetricType::Counter)?;
        for (node, labels) in self.each_node() {
            count(&mut family, &labels, node.items.iter().sum())?;
        }
        let mut family = page.family("engine_node_errors", None, "Errors of a node", MetricType::Counter)?;
        for (node, labels) in self.each_node() {
            count(&mut family, &labels, node.errors)?;
        }
        let mut family = page.family("engine_node_queued", None, "Items that wait for a node", MetricType::Gauge)?;
        for (node, labels) in self.each_node() {
            family.encode_family(&labels)?.encode_gauge(&node.queued)?;
        }
        let help = "Age since decoding of the oldest item that waits for a node or is worked on; 0 for none";
        let mut family = page.family("engine_node_oldest_item", SECONDS, help, MetricType::Gauge)?;
        for (node, labels) in self.each_node() {
            family.encode_family(&labels)?.encode_gauge(&(node.oldest_ms.unwrap_or(0.0) / 1000.0))?;
        }
        let help = "Time that a node worked, turns that are not over included";
        let mut family = page.family("engine_node_busy", SECONDS, help, MetricType::Counter)?;
        for (node, labels) in self.each_node().filter(|(node, _)| node.role != "tap") {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&node.busy_seconds, None)?;
        }
        let help = "Time that an encoder decoded and encoded, turns that are not over included";
        let mut family = page.family("engine_encoder_busy", SECONDS, help, MetricType::Counter)?;
        for (encoder, labels) in self.each_encoder() {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&encoder.busy_seconds, None)?;
        }
        let mut family = page.family("engine_encoder_pictures", None, "Pictures encoded", MetricType::Counter)?;
        for (encoder, labels) in self.each_encoder() {
            count(&mut family, &labels, encoder.pictures)?;
        }
        let help = "Packets that wait for an encoder";
        let mut family = page.family("engine_encoder_queued", None, help, MetricType::Gauge)?;
        for (encoder, labels) in self.each_encoder() {
            family.encode_family(&labels)?.encode_gauge(&encoder.queued)?;
        }
        let help = "Turns of work: a job of the pool, a batch of an inline node or of a sink";
        let mut family = page.family("engine_stage", SECONDS, help, MetricType::Histogram)?;
        // A tap works on the thread of its source and takes no turns.
        for (node, labels) in self.each_node().filter(|(node, _)| node.role != "tap") {
            histogram(&mut family, &labels, &node.stages)?;
        }
        Ok(())
    }

    /// The graphs; of several of one name, the one that started last: a series must not appear twice.
    fn latest(&self) -> impl Iterator<Item = &GraphReport> {
        let graphs = &self.report.graphs;
        let is_latest = |index: usize| !graphs[index + 1..].iter().any(|later| later.name == graphs[index].name);
        graphs.iter().enumerate().filter(move |(index, _)| is_latest(*index)).map(|(_, graph)| graph)
    }

    fn each_stream(&self) -> impl Iterator<Item = (&StreamReport, Labels<3>)> {
        self.latest().flat_map(|graph| {
            graph.streams.iter().map(|stream| {
                let (graph, source) = (graph.name.clone(), stream.source.clone());
                (stream, [("graph", graph), ("source", source), ("stream", stream.stream.clone())])
            })
        })
    }

    fn each_node(&self) -> impl Iterator<Item = (&NodeReport, Labels<4>)> {
        self.latest().flat_map(|graph| {
            graph.nodes.iter().map(|node| {
                let (name, type_name, role) = (node.name.clone(), node.type_name.clone(), node.role.to_owned());
                (node, [("graph", graph.name.clone()), ("node", name), ("type", type_name), ("role", role)])
            })
        })
    }
}

impl Moment {
    fn each_encoder(&self) -> impl Iterator<Item = (&EncoderReport, Labels<3>)> {
        self.latest().flat_map(|graph| {
            graph.nodes.iter().flat_map(|node| {
                node.encoders.iter().map(|encoder| {
                    let (graph, name) = (graph.name.clone(), node.name.clone());
                    (encoder, [("graph", graph), ("node", name), ("stream", encoder.stream.clone())])
                })
            })
        })
    }
}

fn with<const N: usize, const M: usize>(labels: Labels<N>, more: Labels<M>) -> Vec<(&'static str, String)> {
    labels.into_iter().chain(more).collect()
}

fn count(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)
}

fn histogram(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, values: &Histogram) -> fmt::Result {
    let mut family = family.encode_family(labels)?;
    family.encode_histogram::<NoLabelSet>(values.sum, values.count(), &values.buckets, None)
}

/// Writes one family after the other.
struct Page<'p, 'e>(&'p mut DescriptorEncoder<'e>);

impl Page<'_, '_> {
    /// Begins a family.
    fn family(
        &mut self,
        name: &'static str,
        unit: Option<&'static Unit>,
        help: &str,
        metric_type: MetricType,
    ) -> Result<MetricEncoder<'_>, fmt::Error> {
        self.0.encode_descriptor(name, help, unit, metric_type)
    }

    fn gauge(&mut self, name: &'static str, unit: Option<&'static Unit>, help: &str, value: f64) -> fmt::Result {
        self.family(name, unit, help, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn info(&mut self, name: &'static str, help: &str, labels: &Labels<1>) -> fmt::Result {
        self.family(name, None, help, MetricType::Info)?.encode_info(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::live::tests::{graph, stream};
    use crate::runtime::stats::ProcessReport;

    #[test]
    fn states_have_the_names_of_the_statistics() {
        for state in StreamState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
        for state in GraphState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }

    #[test]
    fn of_two_graphs_of_one_name_the_later_counts() {
        let mut later = graph(vec![stream("door")]);
        later.streams[0].counts.read = 7;
        let process = ProcessReport {
            uptime_seconds: 1.0,
            cpu_seconds: 1.0,
            resident_bytes: 1,
            peak_resident_bytes: 1,
            threads: 1,
            workers: 1,
            pool_threads: 1,
            pool_busy: 0.5,
            pool_busy_seconds: 1.5,
        };
        let events = EventReport { subscribers: 0, published: 0, missed: 0, kept: 0, kept_bytes: 0 };
        let report = Report { graphs: vec![graph(vec![stream("door")]), later], process };
        let text = page(report, events, None).unwrap();
        let read: Vec<_> = text.lines().filter(|line| line.starts_with("engine_items_read_total")).collect();
        assert_eq!(read, [r#"engine_items_read_total{graph="door",source="cameras",stream="door"} 7"#]);
    }
}
