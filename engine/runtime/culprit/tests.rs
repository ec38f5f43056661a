//! Made-up reports, one for each thing that may be slow.

use super::*;
use crate::cli::live::tests::{graph, stream};
use crate::runtime::stats::{BusyReport, Drops, TapReport};

fn tap(tap: &str, reader: &str, blocked_share: f64) -> TapReport {
    TapReport {
        tap: tap.to_owned(),
        reader: reader.to_owned(),
        blocked_share,
        blocked_seconds: 0.0,
        held_items: 0,
        held_items_limit: 8,
        held_bytes: 0,
        held_bytes_peak: 0,
        held_bytes_limit: 1 << 20,
    }
}

/// A stream at 30 fps that `people` reads, without any trouble.
fn camera(name: &str) -> StreamReport {
    StreamReport {
        rate_in: 30.0,
        rate_delivered: 30.0,
        live: true,
        taps: vec![tap("cameras", "people", 0.0)],
        drops: Vec::new(),
        ..stream(name)
    }
}

fn dropping(name: &str, rate: f64) -> StreamReport {
    let drops = vec![Drops { node: "cameras".to_owned(), reason: "queue full", count: 10, rate }];
    StreamReport { rate_delivered: 30.0 - rate, drops, ..camera(name) }
}

/// `cameras` -> `people` (pool) -> `events` (sse), in which nothing is busy.
fn running(streams: Vec<StreamReport>) -> GraphReport {
    let mut graph = graph(streams);
    graph.state = GraphState::Running;
    for node in &mut graph.nodes {
        (node.rate, node.busy_share) = (30.0, 0.01);
    }
    graph
}

fn node<'g>(graph: &'g mut GraphReport, name: &str) -> &'g mut NodeReport {
    graph.nodes.iter_mut().find(|node| node.name == name).unwrap()
}

const IDLE: Machine = Machine {
    pool_threads: 1,
    pool_busy: 0.01,
    workers: Vec::new(),
    users: Vec::new(),
    workshop_busy: 0.0,
    missed: 0.0,
};

fn named(mut graph: GraphReport, machine: &Machine) -> GraphReport {
    name(&mut graph, machine);
    graph
}

fn told(graph: &GraphReport, machine: &Machine) -> (CulpritKind, String) {
    let culprit = named(graph.clone(), machine).culprit.unwrap();
    (culprit.kind, culprit.text)
}

#[test]
fn nothing_is_slow() {
    let expected = "nothing is slow; the source gives 30 fps";
    assert_eq!(told(&running(vec![camera("door")]), &IDLE), (CulpritKind::Nothing, expected.to_owned()));
    let two = running(vec![camera("door"), camera("yard")]);
    assert_eq!(told(&two, &IDLE).1, "nothing is slow; 2 streams give 60 fps");
}

#[test]
fn a_saturated_pool_behind_a_camera() {
    let mut graph = running(vec![dropping("door", 6.0)]);
    let people = node(&mut graph, "people");
    (people.rate, people.busy_share) = (24.0, 0.984);
    let machine = Machine { pool_busy: 0.99, ..IDLE };
    let culprit = named(graph, &machine).culprit.unwrap();
    assert_eq!(culprit.text, "`people` on stream `door`: inference 41 ms a frame at 30 fps; needs 1.2 cores, has 1");
    assert_eq!((culprit.kind, culprit.node.as_deref()), (CulpritKind::Pool, Some("people")));
    assert_eq!(culprit.streams, ["door"]);
    assert_eq!(culprit.rate, Some(30.0));
    let near = |value: Option<f64>, expected: f64| (value.unwrap() - expected).abs() < 0.01;
    assert!(near(culprit.cost_ms, 41.0) && near(culprit.needs_cores, 1.23) && near(culprit.has_cores, 0.994));
}

#[test]
fn a_saturated_pool_behind_a_file() {
    let mut blocked = camera("clip");
    (blocked.live, blocked.blocked_share, blocked.taps) = (false, 0.85, vec![tap("cameras", "people", 0.85)]);
    let mut graph = running(vec![blocked]);
    let people = node(&mut graph, "people");
    (people.rate, people.busy_share) = (48.0, 1.97);
    let machine = Machine { pool_threads: 2, pool_busy: 1.97, ..IDLE };
    let culprit = named(graph, &machine).culprit.unwrap();
    let expected = "`people` on stream `clip`: inference 41 ms a frame, 48 fps is all that it takes; its source waits \
                    85 % of the time";
    assert_eq!((culprit.text.as_str(), culprit.rate, culprit.needs_cores), (expected, None, None));
}

/// Another graph has most of the pool: what is left is what this one has.
#[test]
fn a_pool_that_others_use() {
    let mut graph = running(vec![dropping("door", 20.0)]);
    let people = node(&mut graph, "people");
    (people.rate, people.busy_share) = (10.0, 0.41);
    let machine = Machine { pool_threads: 2, pool_busy: 1.95, ..IDLE };
    assert_eq!(
        told(&graph, &machine).1,
        "`people` on stream `door`: inference 41 ms a frame at 30 fps; needs 1.2 cores, has 0.5"
    );
}

fn user(graph: &str, node: &str, role: &'static str, rate: f64, busy_share: f64) -> User {
    let busy_by_worker = vec![0.0, busy_share];
    User {
        graph: graph.to_owned(),
        node: node.to_owned(),
        type_name: "detect".to_owned(),
        role,
        rate,
        busy_share,
        busy_by_worker,
    }
}

/// The graph under test as one of those who share the machine.
fn own(graph: &mut GraphReport) -> User {
    let name = graph.name.clone();
    let node = node(graph, "people");
    User { busy_by_worker: node.busy_by_worker.clone(), ..user(&name, "people", node.role, node.rate, node.busy_share) }
}

#[test]
fn a_pool_that_another_graph_has() {
    let mut graph = running(vec![dropping("door", 20.0)]);
    let people = node(&mut graph, "people");
    (people.rate, people.busy_share) = (10.0, 0.05);
    let users = vec![own(&mut graph), user("yard", "faces", "pool", 22.0, 0.902)];
    let machine = Machine { pool_busy: 0.96, users, ..IDLE };
    let culprit = named(graph.clone(), &machine).culprit.unwrap();
    let expected = "`people` on stream `door`: the pool is full of `faces` of graph `yard`: inference 41 ms a frame, 0.9 of 1 core";
    assert_eq!((culprit.kind, culprit.text.as_str()), (CulpritKind::Pool, expected));
    assert_eq!((culprit.node.as_deref(), culprit.graph.as_deref()), (Some("faces"), Some("yard")));
    assert_eq!(culprit.needs_cores, None, "what it needs itself is not what is missing");

    // Where it gets no turn at all, what waits for one tells as much.
    let people = node(&mut graph, "people");
    (people.rate, people.busy_share, people.queued) = (0.0, 0.0, 2);
    assert_eq!(named(graph.clone(), &machine).culprit.unwrap().graph.as_deref(), Some("yard"));

    // It has more itself than the other one has: then it is the limit itself.
    let people = node(&mut graph, "people");
    (people.rate, people.busy_share) = (12.0, 0.5);
    let users = vec![own(&mut graph), user("yard", "faces", "pool", 11.0, 0.45)];
    let culprit = named(graph, &Machine { pool_busy: 0.96, users, ..IDLE }).culprit.unwrap();
    assert_eq!((culprit.node.as_deref(), culprit.graph), (Some("people"), None));
}

#[test]
fn a_pool_that_requests_have() {
    let mut graph = running(vec![dropping("door", 20.0)]);
    let people = node(&mut graph, "people");
    (people.rate, people.busy_share) = (10.0, 0.05);
    let shared = crate::runtime::watch::Shared { pool_busy: 0.97, ..Default::default() };
    let machine = Machine::of(std::slice::from_ref(&graph), 1, 1, &shared);
    let culprit = named(graph, &machine).culprit.unwrap();
    assert_eq!(culprit.text, "`people` on stream `door`: the pool is full of `/predict`: 0.92 of 1 core");
    assert_eq!((culprit.node.as_deref(), culprit.graph), (Some("/predict"), None));
}

#[test]
fn a_worker_that_another_graph_has() {
    let mut graph = running(vec![dropping("door", 10.0)]);
    let people = node(&mut graph, "people");
    (people.name, people.type_name, people.role) = ("people".to_owned(), "checksum".to_owned(), "inline");
    (people.rate, people.busy_share, people.busy_by_worker) = (20.0, 0.1, vec![0.0, 0.1]);
    let other = User { type_name: "chunk".to_owned(), ..user("yard", "chunks", "inline", 100.0, 0.85) };
    let users = vec![own(&mut graph), other];
    let machine = Machine { workers: vec![0.1, 0.95], users, ..IDLE };
    let expected = "`people` on stream `door`: its worker is full of `chunks` of graph `yard`: chunk 8.5 ms a frame, 0.85 of 1 core";
    assert_eq!(told(&graph, &machine), (CulpritKind::Worker, expected.to_owned()));
    // On another worker it is in nobody's way.
    let other = User { busy_by_worker: vec![0.85, 0.0], ..user("yard", "chunks", "inline", 100.0, 0.85) };
    let users = vec![own(&mut graph), other];
    let machine = Machine { workers: vec![0.95, 0.9], users, ..IDLE };
    assert_eq!(named(graph, &machine).culprit.unwrap().graph, None);
}

#[test]
fn the_stream_that_costs_the_most_is_named() {
    let busy = |busy_share: f64| vec![BusyReport { node: "people".to_owned(), busy_share, busy_seconds: 0.0 }];
    let with = |share: f64, stream: StreamReport| StreamReport { busy: busy(share), ..stream };
    let costliest = |shares: [f64; 3]| {
        let [a, b, c] = shares;
        let mut graph =
            running(vec![with(a, dropping("door", 6.0)), with(b, dropping("yard", 6.0)), with(c, camera("hall"))]);
        let people = node(&mut graph, "people");
        (people.rate, people.busy_share) = (24.0, 0.984);
        let culprit = named(graph, &Machine { pool_busy: 0.99, ..IDLE }).culprit.unwrap();
        (culprit.costliest, culprit.text)
    };
    let (stream, text) = costliest([0.2, 0.7, 0.084]);
    assert_eq!(stream.as_deref(), Some("yard"));
    assert!(text.ends_with("cores, has 1; 71 % of that is for stream `yard`"), "{text}");
    assert_eq!(costliest([0.33, 0.33, 0.324]).0, None, "none stands out");
    assert_eq!(costliest([0.984, 0.0, 0.0]).0, None, "nobody else is there");
}

#[test]
fn a_slow_sink() {
    let mut blocked = camera("door");
    (blocked.blocked_share, blocked.taps) = (0.6, vec![tap("cameras", "people", 0.6)]);
    let mut graph = running(vec![blocked]);
    let events = node(&mut graph, "events");
    (events.rate, events.busy_share) = (5.0, 0.98);
    let expected = "`events` on stream `door`: writing 196 ms a frame, 5 fps is all that it takes; its source waits 60 % of the time";
    assert_eq!(told(&graph, &IDLE), (CulpritKind::Sink, expected.to_owned()));

    // Its first batch never ends; the pool has filled up what may be under way, and waits too.
    let events = node(&mut graph, "events");
    (events.rate, events.busy_share, events.oldest_ms) = (0.0, 1.0, Some(12_300.0));
    let machine = Machine { pool_busy: 0.8, ..IDLE };
    let expected = "`events` on stream `door`: writing does not get on, and what it has in hand was decoded 12 s ago";
    assert_eq!(told(&graph, &machine), (CulpritKind::Sink, expected.to_owned()));
}

#[test]
fn an_encoder_that_cannot_keep_up() {
    let encoder = |stream: &str, rate, busy_share| EncoderReport {
        stream: stream.to_owned(),
        threads: 1,
        pictures: 100,
        rate,
        busy_share,
        busy_seconds: 4.0,
        queued: 30,
    };
    let mut graph = running(vec![dropping("door", 10.0), camera("yard")]);
    node(&mut graph, "events").encoders = vec![encoder("door", 20.0, 0.96), encoder("yard", 30.0, 0.9)];
    let told_of_door = "`events` on stream `door`: encoding takes 48 ms a picture on 1 thread, 20 fps is all that it takes; \
                        10 packets a second are dropped in front of it; give `encoder.threads` more, or the source fewer or \
                        smaller pictures";
    let culprit = named(graph.clone(), &IDLE).culprit.unwrap();
    assert_eq!((culprit.kind, &*culprit.text), (CulpritKind::Encoder, told_of_door));
    assert_eq!((culprit.streams, culprit.rate), (vec!["door".to_owned()], Some(30.0)));

    // The other one is as busy, and its stream gets on.
    node(&mut graph, "events").encoders[0].busy_share = 0.2;
    assert_eq!(told(&graph, &IDLE).0, CulpritKind::Budget);

    // A file waits for it.
    let mut graph = running(vec![StreamReport { live: false, blocked_share: 0.8, ..camera("clip") }]);
    node(&mut graph, "events").encoders = vec![encoder("clip", 0.0, 1.0)];
    let (kind, text) = told(&graph, &IDLE);
    assert!(kind == CulpritKind::Encoder && text.contains("encoding does not get on"), "{text}");
    node(&mut graph, "events").encoders[0].rate = 50.0;
    assert!(
        told(&graph, &IDLE)
            .1
            .contains("20 ms a picture on 1 thread, 50 fps is all that it takes; its source waits 80 %")
    );
}

#[test]
fn a_busy_worker() {
    let mut graph = running(vec![dropping("door", 10.0)]);
    let people = node(&mut graph, "people");
    (people.name, people.type_name, people.role) = ("sum".to_owned(), "checksum".to_owned(), "inline");
    (people.rate, people.busy_share, people.busy_by_worker) = (20.0, 0.8, vec![0.0, 0.8]);
    node(&mut graph, "events").inputs = vec!["sum".to_owned()];
    let machine = Machine { workers: vec![0.1, 0.95], ..IDLE };
    let expected = "`sum` on stream `door`: checksum 40 ms a frame at 30 fps; needs 1.2 cores, has 0.9";
    assert_eq!(told(&graph, &machine), (CulpritKind::Worker, expected.to_owned()));
    // The worker that the node does not run on is none of its business.
    let elsewhere = Machine { workers: vec![0.95, 0.1], ..IDLE };
    assert_eq!(told(&graph, &elsewhere).0, CulpritKind::Budget);
}

#[test]
fn files_that_are_completed_too_slowly() {
    let mut blocked = camera("door");
    (blocked.blocked_share, blocked.taps) = (0.6, vec![tap("cameras", "people", 0.6)]);
    let mut graph = running(vec![blocked]);
    let chunks = node(&mut graph, "people");
    (chunks.name, chunks.type_name, chunks.role) = ("chunks".to_owned(), "chunk".to_owned(), "inline");
    (chunks.rate, chunks.busy_share, chunks.busy_by_worker, chunks.making_share) = (50.0, 1.9, vec![0.1], 1.8);
    node(&mut graph, "events").inputs = vec!["chunks".to_owned()];
    let machine = Machine { workers: vec![0.1], workshop_busy: 1.9, ..IDLE };
    let expected = "`chunks` on stream `door`: completing files 36 ms a frame, 50 fps is all that it takes; its source \
                    waits 60 % of the time";
    assert_eq!(told(&graph, &machine), (CulpritKind::Workshop, expected.to_owned()));
    // One file at a time is not what holds it up.
    let idle = Machine { workers: vec![0.1], workshop_busy: 1.0, ..IDLE };
    assert_eq!(told(&graph, &idle).0, CulpritKind::Budget);
}

#[test]
fn a_source_that_is_the_limit_itself() {
    let clip = StreamReport { live: false, rate_in: 400.0, ..camera("clip") };
    let expected = "`cameras` on stream `clip`: reading and decoding is the limit, 2.5 ms a frame, 400 fps; nothing behind it is slow";
    let graph = running(vec![clip.clone()]);
    assert_eq!(told(&graph, &IDLE), (CulpritKind::Source, expected.to_owned()));
    assert_eq!(named(graph, &IDLE).culprit.unwrap().node.as_deref(), Some("cameras"));
    let silent = running(vec![StreamReport { rate_in: 0.0, ..clip }]);
    assert!(told(&silent, &IDLE).1.contains("it gives nothing just now"));
}

#[test]
fn a_budget_that_is_too_small() {
    let mut blocked = camera("door");
    (blocked.blocked_share, blocked.taps) = (0.5, vec![tap("cameras", "people", 0.5), tap("cameras", "other", 0.1)]);
    let expected = "`people` on stream `door`: no node is at its limit, but so little may be under way that its source \
                    waits 50 % of the time for room; raise `budget`";
    assert_eq!(told(&running(vec![blocked]), &IDLE), (CulpritKind::Budget, expected.to_owned()));
    let graph = running(vec![dropping("door", 3.0)]);
    let expected = "`cameras` on stream `door`: no node is at its limit, but so little may be under way that 3 items a \
                    second are dropped; raise `budget`";
    assert_eq!(told(&graph, &IDLE), (CulpritKind::Budget, expected.to_owned()));
}

#[test]
fn a_slow_subscriber_is_named_where_nothing_else_is_slow() {
    let machine = Machine { missed: 120.0, ..IDLE };
    let expected = "a subscriber of `/events` reads too slowly and loses 120 events a second; that slows nobody else";
    let graph = running(vec![camera("door")]);
    assert_eq!(told(&graph, &machine), (CulpritKind::Subscriber, expected.to_owned()));
    let mut blocked = graph.clone();
    blocked.streams[0].blocked_share = 0.9;
    node(&mut blocked, "events").busy_share = 1.0;
    assert_eq!(told(&blocked, &machine).0, CulpritKind::Sink);
    let mut silent = graph;
    node(&mut silent, "events").type_name = "file".to_owned();
    assert_eq!(told(&silent, &machine).0, CulpritKind::Nothing, "another graph's subscribers are not its own");
}

/// One camera is fine, one only has a path through the slow node.
#[test]
fn streams_differ() {
    let mut graph = running(vec![camera("yard"), dropping("door", 6.0)]);
    let people = node(&mut graph, "people");
    (people.rate, people.busy_share) = (24.0, 0.984);
    let graph = named(graph, &Machine { pool_busy: 0.99, ..IDLE });
    assert_eq!(graph.culprit.unwrap().streams, ["door"]);
    let of_yard = graph.streams[0].culprit.as_ref().unwrap();
    assert_eq!((of_yard.kind, &of_yard.streams[..]), (CulpritKind::Nothing, &["yard".to_owned()][..]));
    assert_eq!(graph.streams[1].culprit, None, "its graph says it");
}

/// A busy sink behind another source does not limit this one.
#[test]
fn only_what_a_stream_runs_through_can_limit_it() {
    let mut blocked = camera("door");
    (blocked.blocked_share, blocked.taps) = (0.6, vec![tap("elsewhere", "other", 0.6)]);
    let mut graph = running(vec![blocked]);
    node(&mut graph, "events").busy_share = 1.0;
    assert_eq!(told(&graph, &IDLE).0, CulpritKind::Budget);
}

#[test]
fn what_does_not_run_is_not_judged() {
    let young = GraphReport { running_seconds: 1.0, ..running(vec![camera("door")]) };
    assert_eq!(named(young, &IDLE).culprit, None);
    let over = GraphReport { state: GraphState::Finished, ..running(vec![camera("door")]) };
    assert_eq!(named(over, &IDLE).culprit, None);
    let lost = running(vec![StreamReport { state: StreamState::Retrying, ..camera("door") }]);
    assert_eq!(named(lost, &IDLE).culprit, None);
    // Told to stop, with something in flight behind a sink that is stuck.
    let mut stopped = camera("door");
    (stopped.state, stopped.counts.in_flight) = (StreamState::Stopped, 8);
    let mut graph = running(vec![stopped]);
    graph.state = GraphState::Draining;
    let events = node(&mut graph, "events");
    (events.rate, events.busy_share) = (0.0, 1.0);
    assert_eq!(
        told(&graph, &IDLE),
        (CulpritKind::Sink, "`events` on stream `door`: writing does not get on".to_owned())
    );
}

#[test]
fn numbers_as_people_write_them() {
    let texts: Vec<String> = [1234.5, 41.2, 9.96, 2.5, 1.0, 0.25, 0.0].into_iter().map(number).collect();
    assert_eq!(texts, ["1234", "41", "10", "2.5", "1", "0.25", "0"]);
    assert_eq!(apart(1.23, 1.0), ("1.2".to_owned(), "1".to_owned()));
    assert_eq!(apart(1.04, 1.0), ("1.04".to_owned(), "1".to_owned()));
    assert_eq!(apart(12.0, 10.0), ("12".to_owned(), "10".to_owned()));
}

/// What comes before a sink whose server is down gets on for as long as there is room: nothing waits yet.
#[test]
fn a_sink_that_something_keeps_from_getting_on() {
    let mut graph = running(vec![camera("door")]);
    node(&mut graph, "events").trouble = Some("cannot reach `http://search`: connection refused".to_owned());
    assert_eq!(told(&graph, &IDLE).0, CulpritKind::Nothing, "it gets on all the same");
    node(&mut graph, "events").queued = 3;
    let expected = "`events` on stream `door` cannot reach `http://search`: connection refused";
    assert_eq!(told(&graph, &IDLE), (CulpritKind::Sink, expected.to_owned()));
    let culprit = named(graph.clone(), &IDLE).culprit.unwrap();
    assert_eq!((culprit.node.as_deref(), culprit.streams), (Some("events"), vec!["door".to_owned()]));
    // As a budget that is too small is not to blame for it.
    let mut blocked = camera("clip");
    (blocked.live, blocked.blocked_share, blocked.taps) = (false, 0.85, vec![tap("cameras", "people", 0.85)]);
    graph.streams = vec![blocked];
    assert_eq!(told(&graph, &IDLE).0, CulpritKind::Sink);
    // What is at its limit beside it is what limits.
    let people = node(&mut graph, "people");
    (people.rate, people.busy_share) = (24.0, 0.984);
    assert_eq!(told(&graph, &Machine { pool_busy: 0.99, ..IDLE }).0, CulpritKind::Pool);
}
