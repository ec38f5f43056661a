//! The quick start, as its first user sees it: records on the standard output and over HTTP, health, statistics, and
//! an end that says what happened.

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{Engine, Events, assert_conserved, get, repository, run_graph};

fn quickstart(arguments: &[&str]) -> Engine {
    run_graph(&repository().join("graphs/quickstart.toml"), arguments, |_| {})
}

fn record(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn boxes_arrive_on_the_standard_output_and_over_http() {
    let mut engine = quickstart(&["--stay"]);
    let address = engine.address();
    let lines = engine.wait_for("six records", |engine| {
        let lines = engine.stdout();
        (lines.len() >= 6).then_some(lines)
    });
    let mut last = None;
    for line in &lines {
        let record = record(line);
        let seq = record["seq"].as_u64().expect("a number");
        assert!(seq.is_multiple_of(6) && last.is_none_or(|last| last < seq), "five of thirty pictures a second: {seq}");
        assert_eq!(record["id"], format!("quickstart/shapes/synthetic/{seq}"));
        last = Some(seq);
        assert_eq!(
            (&record["kind"], &record["width"], &record["height"]),
            (&"detection".into(), &640.into(), &360.into())
        );
        assert!(!record["detections"].as_array().expect("a list").is_empty(), "the scene has shapes: {record}");
    }
    let (status, health) = get(&format!("{address}/health"));
    assert_eq!((status, &health["ok"]), (200, &true.into()), "{health}");

    // The last four events again, then those that come.
    let mut events = Events::listen(&address, "", None);
    let first: Vec<_> = events.by_ref().take(4).collect();
    assert!(first.iter().all(|event| event.kind == "detection"), "{first:?}");
    let resumed: Vec<_> = Events::listen(&address, "", Some(&first[0].id)).take(4).collect();
    assert_eq!(resumed[..3], first[1..], "an event after the last one that was seen");
    assert!(!first.contains(&resumed[3]));
    let by_query: Vec<_> = Events::listen(&address, &format!("?last_event_id={}", first[0].id), None).take(3).collect();
    assert_eq!(by_query[..], first[1..]);

    // From the first event of this run on, so that the filter has something to leave out.
    let (boot, _) = first[0].id.split_once('.').expect("boot and counter");
    let all: Vec<_> = Events::listen(&address, "", Some(&format!("{boot}.0"))).take(8).collect();
    let standard_output: Vec<Value> = engine.stdout().iter().take(6).map(|line| record(line)).collect();
    assert_eq!(all.iter().take(6).map(|event| event.data.clone()).collect::<Vec<_>>(), standard_output);
    let has = |event: &support::SentEvent, label: &str| event.data["counts"].get(label).is_some();
    let label = ["circle", "square", "triangle"]
        .into_iter()
        .min_by_key(|label| all.iter().filter(|event| has(event, label)).count())
        .expect("a label");
    let expected: Vec<_> = all.iter().filter(|event| has(event, label)).cloned().collect();
    let filtered = Events::listen(
        &address,
        &format!("?label={label}&stream=synthetic&node=shapes&graph=quickstart"),
        Some(&format!("{boot}.0")),
    );
    assert_eq!(filtered.take(expected.len()).collect::<Vec<_>>(), expected, "only events with a {label}");
    let (status, refusal) = get(&format!("{address}/events?steam=a"));
    assert_eq!(status, 400);
    assert!(refusal["hint"].as_str().expect("a hint").contains("stream"), "{refusal}");

    let stats = engine.stats();
    assert_eq!(stats["graphs"][0]["name"], "quickstart");
    assert!(stats["events"]["published"].as_u64().expect("a count") >= 8, "{stats}");

    let ended = engine.terminate().expect(0);
    assert_eq!(events.map(|event| event.kind).filter(|kind| kind != "detection").count(), 0, "the answer ends");
    let counts = ended.counts("synthetic");
    assert_eq!(counts.delivered, ended.stdout.len() as u64, "every record was written");
    // A live source drops where the machine stands still.
    assert_eq!(counts.read, counts.delivered + counts.filtered + counts.dropped, "nothing is lost: {counts:?}");
    assert!(ended.stderr.contains("graph `quickstart` finished"), "{}", ended.stderr);
}

#[test]
fn a_time_limit_ends_it_by_itself() {
    for arguments in [&["--for", "2s"][..], &["--for", "2s", "--stay"]] {
        let ended = quickstart(arguments).finish().expect(0);
        let counts = ended.counts("synthetic");
        assert_eq!(counts.delivered, ended.stdout.len() as u64, "{arguments:?}");
        assert!(counts.delivered > 0 && counts.lost == 0, "{counts:?}");
    }
}

#[test]
fn an_interrupt_ends_it_as_well() {
    let mut engine = quickstart(&[]);
    let graph = engine.wait_for_graph("a delivered record", |graph| graph["total"]["delivered"].as_u64() > Some(0));
    assert_eq!(graph["state"], "running");
    engine.signal(Signal::SIGINT);
    engine.finish().expect(0);
}

#[test]
fn its_books_balance_while_the_control_plane_stays() {
    let set = tempfile::tempdir().expect("a folder");
    let graph = set.path().join("finite.toml");
    let text = std::fs::read_to_string(repository().join("graphs/quickstart.toml")).expect("the quick start");
    let finite = text.replacen("seed = 3", "seed = 3\nframes = 90\nrealtime = false", 1);
    assert_ne!(finite, text);
    std::fs::write(&graph, finite).expect("written");
    let mut engine = run_graph(&graph, &["--stay"], |_| {});
    let report = engine.wait_for_graph("the end of the graph", |graph| graph["state"] == "finished");
    assert_conserved(&report["total"]);
    assert_conserved(&report["streams"][0]);
    assert_eq!((&report["total"]["delivered"], &report["total"]["filtered"]), (&15.into(), &75.into()));
    assert_eq!(report["total"]["in_flight"], 0);
    let ended = engine.terminate().expect(0);
    assert_eq!(ended.stdout.len(), 15);
}
