//! `--metrics emf`: every line is what CloudWatch's embedded metric format asks for, and the counts add up.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{Folder, command, run_folder, send};

const GRAPH: &str = r#"
    [sources.scene]
    type = "synthetic"
    width = 64
    height = 48
    frames = 60
    fps = 60

    [operators.sum]
    type = "checksum"
    inputs = ["scene"]
    overflow = "block"
    "#;

/// The rules of the format: a time, directives, and for each name in them a member of the right type.
fn check(line: &Value) {
    let meta = line["_aws"].as_object().expect("metadata");
    assert!(meta["Timestamp"].as_u64() > Some(1_600_000_000_000), "milliseconds: {line}");
    let directives = meta["CloudWatchMetrics"].as_array().expect("a list");
    assert!(!directives.is_empty(), "{line}");
    for directive in directives {
        let members: BTreeSet<&str> = directive.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(members, BTreeSet::from(["Dimensions", "Metrics", "Namespace"]));
        assert_eq!(directive["Namespace"], "engine");
        for set in directive["Dimensions"].as_array().expect("sets") {
            let set = set.as_array().expect("a set");
            assert!(set.len() <= 30);
            for name in set {
                let value = line[name.as_str().expect("a name")].as_str().expect("dimensions are text");
                assert!((1..=1024).contains(&value.len()), "{line}");
            }
        }
        let metrics = directive["Metrics"].as_array().expect("definitions");
        assert!((1..=100).contains(&metrics.len()));
        let mut names = BTreeSet::new();
        for metric in metrics {
            let name = metric["Name"].as_str().expect("a name");
            assert!(names.insert(name), "once: {name}");
            let units = ["Seconds", "Milliseconds", "Bytes", "Percent", "Count", "Count/Second", "None"];
            assert!(units.contains(&metric["Unit"].as_str().expect("a unit")), "{metric}");
            assert!(line[name].is_number(), "`{name}` has a value: {line}");
        }
    }
}

#[test]
fn the_lines_are_well_formed_and_their_counts_add_up_to_the_summary() {
    let folder = Folder::with_graph(&format!("{GRAPH}\n[sinks.out]\ntype = 'blackhole'\ninputs = ['sum']\n"));
    let ended = folder.run(&["--metrics", "emf", "--metrics-interval", "200ms"]).finish().expect(0);
    let lines: Vec<Value> =
        ended.stdout.iter().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
    assert!(!lines.is_empty());
    lines.iter().for_each(check);
    let of_stream: Vec<&Value> = lines.iter().filter(|line| line["stream"] == "synthetic").collect();
    assert!(of_stream.len() > 1, "one set for each interval, and one at the end: {}", lines.len());
    assert!(of_stream.iter().all(|line| line["graph"] == "graph"));
    let sum = |name: &str| of_stream.iter().map(|line| line[name].as_f64().expect("a count")).sum::<f64>();
    assert_eq!((sum("read"), sum("delivered"), sum("lost")), (60.0, 60.0, 0.0));
    let nodes: BTreeSet<&str> = lines.iter().filter_map(|line| line["node"].as_str()).collect();
    assert_eq!(nodes, BTreeSet::from(["out", "sum"]));
    assert!(lines.iter().any(|line| line["resident_memory"].as_f64() > Some(1e6)));
}

#[test]
fn two_that_would_write_to_the_standard_output_are_refused() {
    for path in ["-", "/dev/stdout"] {
        let folder =
            Folder::with_graph(&format!("{GRAPH}\n[sinks.lines]\ntype = 'file'\ninputs = ['sum']\npath = '{path}'\n"));
        let graph = folder.graph();
        let arguments = ["run", graph.to_str().expect("text"), "--listen", "127.0.0.1:0", "--metrics", "emf"];
        let output = command(&arguments).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{path}");
        assert!(output.stdout.is_empty());
        let error = String::from_utf8(output.stderr).expect("text");
        assert!(error.contains("`--metrics` and the sink `lines` would both write to the standard output"), "{error}");
        assert!(error.contains("hint: give the sink's `path` a file"), "{error}");
    }
}

#[test]
fn a_graph_that_is_put_must_leave_the_standard_output_alone_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = run_folder(folder.path(), &["--metrics", "emf", "--metrics-interval", "200ms"]);
    let address = engine.address();
    let with = |path: &str| format!("{GRAPH}\n[sinks.lines]\ntype = 'file'\ninputs = ['sum']\npath = '{path}'\n");
    let put = |path: &str| send("PUT", &format!("{address}/graphs/door"), &[], &with(path));
    let refused = put("-").expect(422);
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("the sink `lines` would both write")));
    assert!(refused["hint"].as_str().is_some_and(|hint| hint.contains("give the sink's `path` a file")), "{refused}");
    put("lines.jsonl").expect(201);
    engine.signal(Signal::SIGTERM);
    let ended = engine.finish().expect(0);
    let lines = ended.stdout.iter().map(|line| serde_json::from_str::<Value>(line).expect("one object a line"));
    lines.for_each(|line| check(&line));
}
