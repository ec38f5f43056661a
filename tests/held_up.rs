//! A dataflow worker that something blocks: it is named, it holds up no other change for ever, and the process ends.

use serde_json::Value;
use support::{Engine, Folder, get, run_folder, send};

/// An operator that takes hours for its first picture.
const BLOCKED: &str = r#"
    [sources.scene]
    type = "synthetic"
    width = 64
    height = 64
    streams = ["door"]

    [operators.slow]
    type = "sample"
    inputs = ["scene"]
    fps = 5

    [sinks.nowhere]
    type = "blackhole"
    inputs = ["slow"]

    [chaos.nodes.slow]
    latency = "3h"
    "#;

const OTHER: &str = "[sources.scene]\ntype = 'synthetic'\nwidth = 64\nheight = 64\nstreams = ['yard']\n\
                     [sinks.nowhere]\ntype = 'blackhole'\ninputs = ['scene']\n";

const HELD_UP: &str = "dataflow worker 0 does not answer: it is busy in `slow` of graph `blocked`";

/// Of the one graph of `engine run`.
const HELD_UP_ALONE: &str = "dataflow worker 0 does not answer: it is busy in `slow`";

fn put(address: &str, name: &str, text: &str) -> support::Answer {
    send("PUT", &format!("{address}/graphs/{name}"), &[], text)
}

/// Whether the operator has its first picture, and does not let go of it.
fn is_at_work(graph: &Value) -> bool {
    let mut nodes = graph["nodes"].as_array().into_iter().flatten();
    nodes.any(|node| node["name"] == "slow" && node["busy_share"].as_f64() > Some(0.5))
}

/// What `/health` names, once it names something.
fn problems(engine: &mut Engine) -> Vec<String> {
    let address = engine.address();
    engine.wait_for("a failing health", |_| {
        let (status, health) = get(&format!("{address}/health"));
        let problems = health["problems"].as_array()?.iter().filter_map(Value::as_str).map(str::to_owned);
        (status == 503 && health["status"] == "failing").then(|| problems.collect())
    })
}

/// Workers sleep in all of these and nothing else is to do, so they are done side by side.
#[test]
fn a_worker_that_is_held_up_is_named_and_holds_up_nothing_else() {
    std::thread::scope(|scope| {
        scope.spawn(a_worker_that_does_not_answer_is_named_and_lets_others_know);
        scope.spawn(what_keeps_a_worker_is_named_at_the_end);
        a_worker_that_gets_on_again_is_as_it_should_be();
    });
}

fn a_worker_that_does_not_answer_is_named_and_lets_others_know() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = run_folder(folder.path(), &["--chaos", "--workers", "1", "--drain-timeout", "1s"]);
    let address = engine.address();
    put(&address, "blocked", BLOCKED).expect(201);
    engine.wait_for_graph("a blocked worker", is_at_work);
    // Whether or not it is known by then: it is answered.
    let refused = put(&address, "other", OTHER).expect(503);
    assert_eq!(refused["error"], HELD_UP, "{refused}");
    assert!(refused["hint"].as_str().is_some_and(|hint| hint.contains("start the engine again")), "{refused}");
    assert_eq!(engine.get("/graphs/other").0, 404, "nothing is left of it");
    assert!(problems(&mut engine).iter().any(|problem| problem == HELD_UP));
    let refused = put(&address, "blocked", OTHER).expect(503);
    assert_eq!(refused["error"], HELD_UP, "{refused}");

    let ended = send("DELETE", &format!("{address}/graphs/blocked"), &[], "").expect(200);
    let stuck: Vec<&str> = ended["stuck"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(stuck.contains(&"`slow`, which is at work"), "{ended}");
    assert!(stuck.iter().any(|stuck| stuck.ends_with(" in flight")), "{ended}");
    assert_eq!(problems(&mut engine), [HELD_UP], "also when its graph is not there any more");
    engine.terminate().expect(1);
}

fn what_keeps_a_worker_is_named_at_the_end() {
    let folder = Folder::with_graph(BLOCKED);
    let mut engine = folder.run(&["--chaos", "--workers", "1", "--drain-timeout", "1s"]);
    engine.wait_for_graph("a blocked worker", is_at_work);
    let ended = engine.terminate().expect(1);
    for part in ["still open: ", "`slow`, which is at work", "in flight", HELD_UP_ALONE] {
        assert!(ended.stderr.contains(part), "{part} is missing: {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("the process ends now"), "{}", ended.stderr);
}

/// One that gets on again has everything done to it that it was told meanwhile.
fn a_worker_that_gets_on_again_is_as_it_should_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = run_folder(folder.path(), &["--chaos", "--workers", "2", "--drain-timeout", "1s"]);
    let address = engine.address();
    put(&address, "blocked", &BLOCKED.replace("3h", "5s")).expect(201);
    let named = problems(&mut engine);
    assert!(named.iter().any(|problem| problem.ends_with("busy in `slow` of graph `blocked`")), "{named:?}");
    put(&address, "other", OTHER).expect(503);
    send("DELETE", &format!("{address}/graphs/blocked"), &[], "").expect(200);
    engine.wait_for("a worker that answers", |_| (get(&format!("{address}/health")).0 == 200).then_some(()));
    put(&address, "other", OTHER).expect(201);
    put(&address, "blocked", OTHER).expect(409);
    put(&address, "blocked", &BLOCKED.replace("3h", "1ms")).expect(201);
    engine.wait_for("pictures of both graphs", |_| {
        let (_, stats) = get(&format!("{address}/stats"));
        let graphs = stats["graphs"].as_array()?;
        (graphs.len() == 2 && graphs.iter().all(|graph| graph["total"]["delivered"].as_u64() > Some(5))).then_some(())
    });
    engine.wait_until_conserved();
    engine.terminate().expect(0);
}
