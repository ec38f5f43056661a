//! Graphs that are put, reloaded, checked, saved, watched and deleted while the engine runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::{
    Answer, Engine, Events, Folder, StalledPipe, assert_unbroken, command, get, get_text, run_folder, run_graph, send,
    wait_for,
};

/// A graph of two paced streams that lose nothing, with their sums in a file. `sum` names the operator; `more` follows.
fn sums(streams: &str, sum: &str, file: &str, more: &str) -> String {
    format!(
        "[sources.scene]\ntype = \"synthetic\"\nwidth = 64\nheight = 48\nfps = 100\nstreams = [{streams}]\n\
         overflow = \"block\"\n\
         [operators.{sum}]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
         [sinks.out]\ntype = \"file\"\ninputs = [\"{sum}\"]\npath = \"{file}\"\n{more}"
    )
}

fn put(address: &str, name: &str, text: &str) -> Answer {
    send("PUT", &format!("{address}/graphs/{name}"), &[], text)
}

fn delete(address: &str, name: &str) -> Answer {
    send("DELETE", &format!("{address}/graphs/{name}"), &[], "")
}

fn records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the sink made its file");
    assert!(text.ends_with('\n'), "the last line is whole");
    text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

/// Waits until each stream of a graph has delivered `more` items beyond what it has delivered now.
fn wait_for_items(engine: &mut Engine, graph: &str, more: u64) {
    let address = engine.address();
    let delivered = || -> Option<BTreeMap<String, u64>> {
        let (_, stats) = get(&format!("{address}/stats"));
        let graph = stats["graphs"].as_array()?.iter().find(|one| one["name"] == *graph)?.clone();
        // One that was just put may not run yet.
        let is_read = |stream: &&Value| ["connecting", "running"].iter().any(|state| stream["state"] == *state);
        let streams = graph["streams"].as_array()?.iter().filter(is_read);
        streams.map(|stream| Some((stream["stream"].as_str()?.to_owned(), stream["delivered"].as_u64()?))).collect()
    };
    let before = engine.wait_for("streams", |_| delivered().filter(|streams| !streams.is_empty()));
    engine.wait_for("further items", |_| {
        let now = delivered()?;
        let came = |(stream, before): (&String, &u64)| now.get(stream).is_none_or(|now| *now >= before + more);
        (!now.is_empty() && before.iter().all(came)).then_some(())
    });
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn a_graph_that_is_put_runs_until_it_is_deleted() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    engine.wait_for_log("ready: 0 graphs run");
    let address = engine.address();
    assert_eq!(engine.get("/health").0, 200, "an empty folder is no problem");
    let mut events = Events::listen(&address, "?graph=door", None);

    let text = sums("\"a\", \"b\"", "sum", "out.jsonl", "[sinks.events]\ntype = \"sse\"\ninputs = [\"sum\"]\n");
    let answer = put(&address, "door", &text);
    assert_eq!((answer.header("etag"), answer.header("location")), (Some("\"1\""), Some("/graphs/door")));
    let started = answer.expect(201);
    assert_eq!((&started["result"], &started["generation"]), (&"started".into(), &1.into()), "{started}");
    assert_eq!(events.next().expect("a record").data["graph"], "door");

    let (_, list) = engine.get("/graphs");
    assert_eq!(list["graphs"][0]["graph"], "door");
    assert_eq!(list["graphs"][0]["from"], "http");
    let shown = send("GET", &format!("{address}/graphs/door"), &[], "");
    assert_eq!(shown.header("etag"), Some("\"1\""));
    let shown = shown.expect(200);
    assert_eq!((&shown["text"], &shown["state"]), (&text.clone().into(), &"running".into()));
    assert_eq!(shown["config"]["sources"]["scene"]["fps"], 100);
    let toml = send("GET", &format!("{address}/graphs/door"), &[("accept", "application/toml")], "");
    assert_eq!((toml.status, &toml.text), (200, &text));

    let file = folder.path().join("door.toml");
    std::fs::write(&file, &text).expect("written");
    let planned = command(&["plan", "door.toml"]).current_dir(folder.path()).output().expect("it runs");
    let plan = send("GET", &format!("{address}/graphs/door/plan"), &[("accept", "text/plain")], "");
    assert_eq!((plan.status, plan.text), (200, String::from_utf8(planned.stdout).expect("text")));
    assert_eq!(send("GET", &format!("{address}/graphs/door/plan"), &[], "").expect(200)["graph"], "door");

    wait_for_items(&mut engine, "door", 10);
    let deleted = delete(&address, "door").expect(200);
    assert_eq!((&deleted["stuck"], &deleted["failures"]), (&Value::Array(vec![]), &Value::Array(vec![])));
    assert_unbroken(&records(&folder.path().join("out.jsonl")));
    assert_eq!(engine.get("/graphs/door").0, 404);
    let gone = delete(&address, "door");
    assert_eq!(gone.status, 404, "{}", gone.text);
    engine.terminate().expect(0);
}

#[test]
fn a_reload_loses_and_repeats_nothing() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    put(&address, "door", &sums("\"a\", \"b\"", "sum", "out.jsonl", "")).expect(201);
    let more = "[operators.second]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
                [sinks.hole]\ntype = \"blackhole\"\ninputs = [\"second\"]\n";
    let texts = [
        sums("\"a\", \"b\"", "sum", "out.jsonl", more),
        sums("\"a\", \"b\"", "total", "out.jsonl", more),
        sums("\"a\", \"b\"", "total", "out.jsonl", ""),
        sums("\"a\", \"b\", \"c\"", "sum", "out.jsonl", ""),
        sums("\"a\", \"b\"", "sum", "out.jsonl", ""),
    ];
    for (text, generation) in texts.iter().zip(2..) {
        wait_for_items(&mut engine, "door", 20);
        let reloaded = put(&address, "door", text).expect(200);
        assert_eq!((&reloaded["result"], &reloaded["generation"]), (&"reloaded".into(), &generation.into()));
        assert_eq!(reloaded["lost"], 0, "{reloaded}");
        let has = |list: &str, name: &str| reloaded[list].as_array().is_some_and(|names| names.contains(&name.into()));
        assert!(!has("stuck", "a"), "{reloaded}");
        let kept = reloaded["streams"]["kept"].as_array().expect("a list");
        for stream in ["a", "b"] {
            assert!(kept.contains(&stream.into()), "{stream} goes on untouched: {reloaded}");
        }
        assert!(reloaded["nodes"]["kept"].as_array().expect("a list").contains(&"out".into()), "{reloaded}");
    }
    wait_for_items(&mut engine, "door", 20);
    let graph = engine.wait_for_graph("a running graph", |graph| graph["state"] == "running");
    assert_eq!(graph["generation"], 6);
    engine.wait_until_conserved();
    delete(&address, "door").expect(200);
    let counts = assert_unbroken(&records(&folder.path().join("out.jsonl")));
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(counts["a"] >= 120, "{counts:?}");
    engine.terminate().expect(0);
}

#[test]
fn mistakes_are_answered_all_at_once_and_change_nothing() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    put(&address, "door", &sums("\"a\"", "sum", "out.jsonl", "")).expect(201);
    let wrong = sums("\"a\"", "sum", "out.jsonl", "[operators.x]\ntype = \"checksm\"\ninputs = [\"scen\"]\n");
    std::fs::write(folder.path().join("door.toml"), &wrong).expect("written");
    let checked = command(&["check", "door.toml", "--format", "json"]).current_dir(folder.path()).output();
    let checked: Value = serde_json::from_slice(&checked.expect("it runs").stdout).expect("JSON");
    for answer in [
        put(&address, "door", &wrong),
        send("POST", &format!("{address}/graphs/door/check"), &[], &wrong),
        put(&address, "new", &wrong),
    ] {
        let refused = answer.expect(400);
        assert_eq!(refused["files"][0]["diagnostics"], checked["files"][0]["diagnostics"]);
        assert_eq!(refused["errors"], 2, "{refused}");
        let mistake = &refused["files"][0]["diagnostics"][0];
        assert!(mistake["line"].is_u64() && mistake["column"].is_u64() && mistake["hint"].is_string(), "{mistake}");
    }
    let (_, shown) = engine.get("/graphs/door");
    assert_eq!(shown["generation"], 1);
    assert!(shown["refused"]["error"].as_str().is_some_and(|error| error.contains("2 mistakes")), "{shown}");
    assert_eq!(engine.get("/graphs/new").0, 404);
    assert_eq!(engine.get("/health").0, 200, "whoever sent it was told");
    let sound = send("POST", &format!("{address}/graphs/door/check"), &[], &sums("\"a\"", "sum", "out.jsonl", ""));
    assert_eq!(sound.expect(200)["errors"], 0);
    assert_eq!(engine.get("/graphs/door").1["generation"], 1, "a check changes nothing");
    wait_for_items(&mut engine, "door", 5);
    engine.terminate().expect(0);
}

#[test]
fn an_update_that_somebody_else_has_overtaken_is_refused() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let url = format!("{address}/graphs/door");
    let text = sums("\"a\"", "sum", "out.jsonl", "");
    assert_eq!(send("PUT", &url, &[("if-match", "\"1\"")], &text).status, 412, "there is none yet");
    assert_eq!(send("PUT", &url, &[("if-none-match", "*")], &text).status, 201);
    assert_eq!(send("PUT", &url, &[("if-none-match", "*")], &text).status, 412, "there is one");
    assert_eq!(send("PUT", &url, &[("if-match", "\"1\"")], &text).status, 200);
    let late = send("PUT", &url, &[("if-match", "\"1\"")], &text);
    assert_eq!((late.status, late.header("etag")), (412, Some("\"2\"")), "{}", late.text);
    assert_eq!(send("PUT", &url, &[("if-match", "2")], &text).status, 400, "a generation stands in quotes");
    assert_eq!(send("DELETE", &url, &[("if-match", "\"1\"")], "").status, 412);

    // Two at once, who both know generation 2: one of them wins.
    let both = std::thread::scope(|scope| {
        let one = || send("PUT", &url, &[("if-match", "\"2\"")], &text).status;
        let clients = [scope.spawn(one), scope.spawn(one)];
        clients.map(|client| client.join().expect("no panic"))
    });
    assert!(both == [200, 412] || both == [412, 200], "{both:?}");
    // Two at once, who do not care: one after the other.
    let both = std::thread::scope(|scope| {
        let one = || put(&address, "door", &text).expect(200)["generation"].as_u64();
        let clients = [scope.spawn(one), scope.spawn(one)];
        clients.map(|client| client.join().expect("no panic"))
    });
    assert!(both == [Some(4), Some(5)] || both == [Some(5), Some(4)], "{both:?}");
    assert_eq!(send("DELETE", &url, &[("if-match", "\"5\"")], "").status, 200);
    engine.terminate().expect(0);
}

#[test]
fn a_graph_of_a_file_is_not_changed_over_http() {
    let folder = temporary();
    std::fs::create_dir(folder.path().join("graphs")).expect("a folder");
    let text = sums("\"a\"", "sum", "out.jsonl", "");
    std::fs::write(folder.path().join("graphs/door.toml"), &text).expect("written");
    std::fs::write(folder.path().join("graphs/broken.toml"), "[sources.a]\ntype = \"x\"\n").expect("written");
    let mut engine = run_folder(folder.path(), &[]);
    engine.wait_for_log("ready: 1 graph runs");
    let address = engine.address();
    for name in ["door", "broken"] {
        for answer in [put(&address, name, &text), delete(&address, name)] {
            let refused = answer.expect(409);
            let error = refused["error"].as_str().expect("text");
            assert!(error.contains(&format!("graphs/{name}.toml")), "{refused}");
        }
    }
    // What is wrong with one keeps the other from nothing.
    let (status, health) = engine.get("/health");
    assert_eq!((status, health["problems"].as_array().map(Vec::len)), (503, Some(1)), "{health}");
    assert!(
        health["problems"][0].as_str().is_some_and(|text| text.contains("graph `broken` does not run")),
        "{health}"
    );
    assert_eq!(engine.get("/health/ready").0, 200);
    assert_eq!(engine.get("/graphs").1["refused"][0]["graph"], "broken");
    wait_for_items(&mut engine, "door", 5);
    let ended = engine.terminate().expect(0);
    for line in ["broken.toml:2:8: there is no source of type `x`", "has no sink"] {
        assert!(ended.stderr.contains(line), "every mistake is in the log:\n{}", ended.stderr);
    }
}

#[test]
fn what_one_graph_has_no_other_gets() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    put(&address, "one", &sums("\"a\"", "sum", "out.jsonl", "")).expect(201);
    let refused = put(&address, "two", &sums("\"b\"", "sum", "out.jsonl", "")).expect(409);
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("`out` of the graph `one`")), "{refused}");
    let refused = put(&address, "two", &sums("\"a\"", "sum", "other.jsonl", "")).expect(409);
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("a stream `a`")), "{refused}");
    put(&address, "two", &sums("\"b\"", "sum", "other.jsonl", "")).expect(201);
    assert_eq!(put(&address, "a b".replace(' ', "%20").as_str(), "x").status, 400);
    engine.terminate().expect(0);
}

#[test]
fn a_sink_that_cannot_open_leaves_the_old_graph_running() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    put(&address, "door", &sums("\"a\"", "sum", "out.jsonl", "")).expect(201);
    let refused = put(&address, "door", &sums("\"a\"", "sum", "/proc/none/out.jsonl", ""));
    assert!(matches!(refused.status, 400 | 422), "{}", refused.text);
    assert_eq!(engine.get("/graphs/door").1["generation"], 1);
    let refused = put(&address, "new", &sums("\"n\"", "sum", "/proc/none/out.jsonl", ""));
    assert!(matches!(refused.status, 400 | 422), "{}", refused.text);
    assert_eq!(engine.get("/graphs/new").0, 404, "nothing of it is left");
    assert_eq!(engine.stats()["graphs"].as_array().map(Vec::len), Some(1));
    wait_for_items(&mut engine, "door", 5);
    delete(&address, "door").expect(200);
    assert_unbroken(&records(&folder.path().join("out.jsonl")));
    engine.terminate().expect(0);
}

#[test]
fn deleting_a_graph_ends_whatever_its_sink_does() {
    let folder = temporary();
    let pipe = StalledPipe::new(folder.path().join("stalled.jsonl"));
    let mut engine = run_folder(folder.path(), &["--drain-timeout", "1s"]);
    let address = engine.address();
    let text = sums("\"a\"", "sum", "stalled.jsonl", "").replace("fps = 100", "fps = 1000\nrealtime = false");
    put(&address, "stuck", &text).expect(201);
    engine.wait_for_stall();
    put(&address, "other", &sums("\"b\"", "sum", "out.jsonl", "")).expect(201);
    let deleted = delete(&address, "stuck").expect(200);
    let stuck: Vec<&str> = deleted["stuck"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(stuck.contains(&"sink `out`"), "{deleted}");
    wait_for_items(&mut engine, "other", 5);
    drop(pipe);
    engine.terminate().expect(0);
}

/// Requests that come while a graph is taken down find nobody who could do what they ask for.
#[test]
fn whoever_asks_for_something_of_a_graph_that_is_taken_down_is_answered() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &["--chaos", "--drain-timeout", "3s"]);
    let address = engine.address();
    let stuck = sums("\"a\"", "sum", "out.jsonl", "[chaos.nodes.out]\nlatency = \"1h\"\n");
    put(&address, "stuck", &stuck).expect(201);
    engine.wait_for_stall();
    let deleting = {
        let address = address.clone();
        std::thread::spawn(move || delete(&address, "stuck").expect(200))
    };
    engine.wait_for_graph("its end", |graph| graph["state"] == "draining");
    std::thread::scope(|scope| {
        for (method, path, body) in [("DELETE", "/streams/a", ""), ("PUT", "/graphs/stuck", &stuck)] {
            let (address, deleting) = (&address, &deleting);
            scope.spawn(move || {
                while !deleting.is_finished() {
                    let status = send(method, &format!("{address}{path}"), &[], body).status;
                    assert!([200, 201, 202, 404, 409].contains(&status), "{method} {path}: {status}");
                }
            });
        }
    });
    deleting.join().expect("an answer");
    // Its name, its file and its stream are free again.
    let text = sums("\"a\"", "sum", "out.jsonl", "");
    delete(&address, "stuck");
    put(&address, "next", &text).expect(201);
    wait_for_items(&mut engine, "next", 5);
    engine.terminate().expect(0);
}

/// A graph that ends by itself, because a sink has all that it wanted, while another text is put in its place.
#[test]
fn a_text_that_comes_while_its_graph_ends_by_itself_is_answered_and_the_name_is_free() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &["--chaos", "--drain-timeout", "3s"]);
    let address = engine.address();
    let collects = "[sinks.few]\ntype = \"dataset\"\ninputs = [\"scene\"]\noutput = \"few\"\nmax = 3\n";
    let stuck = sums("\"a\"", "sum", "out.jsonl", &format!("{collects}[chaos.nodes.out]\nlatency = \"1h\"\n"));
    put(&address, "brief", &stuck).expect(201);
    engine.wait_for_graph("its own end", |graph| graph["state"] == "draining");
    let next = sums("\"a\"", "sum", "next.jsonl", "");
    let mut refused = 0;
    let loaded = engine.wait_for("a place for the next text", |_| {
        let answer = put(&address, "brief", &next);
        if answer.status == 409 {
            let answer = answer.json();
            assert_eq!(answer["error"], "the graph is ending", "{answer}");
            assert!(answer["hint"].as_str().is_some_and(|hint| hint.contains("when it has ended")), "{answer}");
            refused += 1;
            return None;
        }
        Some(answer.status)
    });
    assert_eq!(loaded, 201, "it is started anew");
    assert!(refused > 0, "the first came while it ended");
    wait_for_items(&mut engine, "brief", 5);
    delete(&address, "brief").expect(200);
    put(&address, "other", &next).expect(201);
    engine.terminate().expect(0);
}

#[test]
fn a_watched_file_that_changes_while_its_graph_ends_is_loaded_when_it_has() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &["--watch", "--chaos", "--drain-timeout", "3s"]);
    engine.wait_for_log("ready: 0 graphs run");
    let collects = "[sinks.few]\ntype = \"dataset\"\ninputs = [\"scene\"]\noutput = \"few\"\nmax = 3\n";
    let stuck = sums("\"a\"", "sum", "out.jsonl", &format!("{collects}[chaos.nodes.out]\nlatency = \"1h\"\n"));
    write_graph(folder.path(), "brief", &stuck);
    engine.wait_for_graph("its own end", |graph| graph["state"] == "draining");
    write_graph(folder.path(), "brief", &sums("\"a\"", "sum", "next.jsonl", ""));
    engine.wait_for_log("is left out; what runs, runs on: the graph is ending");
    let address = engine.address();
    engine.wait_for("the next text", |_| {
        let (_, graph) = get(&format!("{address}/graphs/brief"));
        (graph["generation"] == 2 && graph["state"] == "running").then_some(())
    });
    wait_for_items(&mut engine, "brief", 5);
    engine.terminate();
}

#[test]
fn saved_graphs_are_there_again_after_a_kill() {
    let folder = temporary();
    let text = sums("\"a\"", "sum", "out.jsonl", "");
    let mut engine = run_folder(folder.path(), &["--save", "saved"]);
    let address = engine.address();
    put(&address, "door", &text).expect(201);
    put(&address, "yard", &sums("\"y\"", "sum", "yard.jsonl", "")).expect(201);
    assert_eq!(put(&address, "door", "no TOML").status, 400, "a text that is refused is not saved");
    delete(&address, "yard").expect(200);
    engine.signal(Signal::SIGKILL);
    engine.finish();

    let mut engine = run_folder(folder.path(), &["--save", "saved"]);
    engine.wait_for_log("ready: 1 graph runs");
    let (_, shown) = engine.get("/graphs/door");
    assert_eq!((&shown["text"], &shown["from"]), (&text.into(), &"http".into()));
    wait_for_items(&mut engine, "door", 5);
    let second = run_folder(folder.path(), &["--save", "saved"]).finish().expect(1);
    assert!(second.stderr.contains("another engine saves its graphs in `saved`"), "{}", second.stderr);
    delete(&engine.address(), "door").expect(200);
    engine.terminate().expect(0);
    assert!(!folder.path().join("saved/door.toml").exists());

    // Whoever broke a file of the folder is told where.
    std::fs::write(folder.path().join("saved/door.toml"), "[sources]\nscene\n").expect("written");
    let mut engine = run_folder(folder.path(), &["--save", "saved"]);
    engine.wait_for_log("ready: 0 graphs run");
    let (status, health) = engine.get("/health");
    let problem = health["problems"][0].as_str().expect("text");
    assert_eq!(status, 503);
    for part in ["graph `door` does not run: ", "(line 2, column ", "; hint: ", "saved/door.toml"] {
        assert!(problem.contains(part), "{part} is missing: {problem}");
    }
    engine.terminate().expect(0);
}

#[test]
fn a_watched_folder_is_followed() {
    let folder = temporary();
    let file = folder.path().join("graphs/door.toml");
    let mut engine = run_folder(folder.path(), &["--watch"]);
    engine.wait_for_log("ready: 0 graphs run");
    let write = |text: &str| {
        // As editors do: another file, renamed.
        let draft = folder.path().join("graphs/.door.toml.draft");
        std::fs::write(&draft, text).expect("written");
        std::fs::rename(&draft, &file).expect("renamed");
    };
    let address = engine.address();
    let text = sums("\"a\"", "sum", "out.jsonl", "");
    write(&text);
    let shown = |engine: &mut Engine, what: &str, is_so: &dyn Fn(&Value) -> bool| {
        engine.wait_for(what, |_| {
            let (status, graph) = get(&format!("{address}/graphs/door"));
            (status == 200 && is_so(&graph)).then_some(graph)
        })
    };
    shown(&mut engine, "the new graph", &|graph| graph["generation"] == 1);
    write(&text.replace("[operators.sum]", "[operators.total]"));
    shown(&mut engine, "the refusal", &|graph| graph["refused"]["error"].is_string() && graph["generation"] == 1);
    let (status, health) = engine.get("/health");
    assert_eq!(status, 503);
    let problem = health["problems"][0].as_str().expect("text");
    assert!(problem.starts_with("graph `door` runs on as it was before its file was changed"), "{problem}");
    engine.wait_for_log("door.toml:13:11: there is no source or operator `sum`");
    write(&sums("\"a\", \"b\"", "sum", "out.jsonl", ""));
    shown(&mut engine, "the reload", &|graph| graph["generation"] == 2 && graph["refused"].is_null());
    assert_eq!(engine.get("/health").0, 200);
    wait_for_items(&mut engine, "door", 5);
    std::fs::remove_file(&file).expect("removed");
    engine.wait_for("its end", |_| (get(&format!("{address}/graphs/door")).0 == 404).then_some(()));
    assert_unbroken(&records(&folder.path().join("out.jsonl")));
    engine.terminate().expect(0);
}

#[test]
fn a_graph_that_was_put_has_nothing_to_do_with_a_file_of_its_name() {
    let folder = temporary();
    let file = folder.path().join("graphs/door.toml");
    let mut engine = run_folder(folder.path(), &["--watch"]);
    engine.wait_for_log("ready: 0 graphs run");
    let address = engine.address();
    let text = |stream: &str| {
        format!(
            "[sources.scene]\ntype = \"synthetic\"\nfps = 20\nstreams = [\"{stream}\"]\n\
             [sinks.hole]\ntype = \"blackhole\"\ninputs = [\"scene\"]\n"
        )
    };
    put(&address, "door", &text("put")).expect(201);
    let shown = |engine: &mut Engine, what: &str, is_so: &dyn Fn(&Value) -> bool| {
        engine.wait_for(what, |_| {
            let (status, graph) = get(&format!("{address}/graphs/door"));
            (status == 200 && is_so(&graph)).then_some(graph)
        })
    };
    let is_refused = |graph: &Value| graph["refused"]["error"].to_string().contains("was put over HTTP");
    std::fs::write(&file, text("written")).expect("written");
    shown(&mut engine, "the refusal of the file", &is_refused);
    let (status, health) = engine.get("/health");
    let problem = health["problems"][0].as_str().expect("text");
    assert!(status == 503 && problem.starts_with("a file is left out beside the graph `door`: "), "{problem}");
    std::fs::remove_file(&file).expect("removed");
    let graph = shown(&mut engine, "a file that is gone", &|graph| graph["refused"].is_null());
    assert_eq!((&graph["state"], &graph["from"]), (&"running".into(), &"http".into()), "{graph}");

    std::fs::write(&file, text("written")).expect("written");
    shown(&mut engine, "the refusal of the file", &is_refused);
    delete(&address, "door").expect(200);
    let graph = shown(&mut engine, "the graph of the file", &|graph| graph["state"] == "running");
    assert_eq!(graph["from"], "file", "{graph}");
    assert_eq!(engine.get("/streams/written").0, 200);
    engine.terminate().expect(0);
}

#[test]
fn a_text_is_shown_with_its_own_generation() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let text = |generation: u64| format!("# generation {generation}\n{}", sums("\"a\"", "sum", "out.jsonl", ""));
    put(&address, "door", &text(1)).expect(201);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let accept = [("accept", "application/toml")];
            while !is_over.load(Ordering::Relaxed) {
                let answer = send("GET", &format!("{address}/graphs/door"), &accept, "");
                let generation = answer.header("etag").expect("a generation").trim_matches('"').to_owned();
                let first = answer.text.lines().next().unwrap_or_default().to_owned();
                assert_eq!(first, format!("# generation {generation}"));
            }
        });
        for generation in 2..=100 {
            put(&address, "door", &text(generation)).expect(200);
        }
        is_over.store(true, Ordering::Relaxed);
        reader.join().expect("every text has its generation");
    });
    engine.terminate().expect(0);
}

/// A server that takes connections and never says anything.
#[test]
fn a_sink_that_does_not_open_holds_nobody_else_up() {
    let folder = temporary();
    let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = mute.local_addr().expect("an address").port();
    let mut command = command(&["run", "graphs", "--listen", "127.0.0.1:0", "--drain-timeout", "1s"]);
    command.args(["--allow-host", "127.0.0.1", "--allow-host", "archive"]).current_dir(folder.path());
    std::fs::create_dir(folder.path().join("graphs")).expect("a folder");
    let mut engine = Engine::start(command);
    let address = engine.address();
    let scene = |stream: &str, sink: &str| {
        format!(
            "[sources.scene]\ntype = \"synthetic\"\nfps = 20\nstreams = [\"{stream}\"]\n\
             [operators.sum]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
             [sinks.out]\ninputs = [\"sum\"]\n{sink}"
        )
    };
    let s3 = format!(
        "type = \"s3\"\nbucket = \"archive\"\nendpoint = \"http://127.0.0.1:{port}\"\nanonymous = true\n\
         timeout = \"300s\"\nkey = \"{{stream}}/{{seq}}.jsonl\"\n"
    );
    let slow = scene("slow", &s3);
    // Hosts are all that it names: no path has to be allowed.
    let checked = send("POST", &format!("{address}/graphs/slow/check"), &[], &slow).expect(200);
    assert_eq!(checked["errors"], 0, "{checked}");
    let putting = {
        let address = address.clone();
        std::thread::spawn(move || {
            let config = ureq::Agent::config_builder().http_status_as_error(false).build();
            config.new_agent().put(format!("{address}/graphs/slow")).send(slow).is_ok()
        })
    };
    let _connection = mute.accept().expect("the sink asks");
    let hole = "type = \"blackhole\"\n";
    put(&address, "other", &scene("other", hole)).expect(201);
    put(&address, "other", &scene("another", hole)).expect(200);
    delete(&address, "other").expect(200);
    let refused = put(&address, "slow", &scene("slow", hole)).expect(409);
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("another change")), "{refused}");
    let refused = delete(&address, "slow").expect(409);
    assert!(refused["hint"].as_str().is_some_and(|hint| hint.contains("does not open")), "{refused}");
    let finished = engine.terminate();
    assert!(finished.stderr.contains("graph `slow` is left behind"), "{}", finished.stderr);
    putting.join().expect("no panic");
}

/// A graph with a sink that does not open for a long time.
fn never_opens(port: u16) -> String {
    format!(
        "[sources.scene]\ntype = \"synthetic\"\nstreams = [\"slow\"]\n\
         [operators.sum]\ntype = \"checksum\"\ninputs = [\"scene\"]\n\
         [sinks.out]\ninputs = [\"sum\"]\ntype = \"s3\"\nbucket = \"archive\"\nanonymous = true\n\
         endpoint = \"http://127.0.0.1:{port}\"\ntimeout = \"300s\"\nkey = \"{{stream}}/{{seq}}.jsonl\"\n"
    )
}

#[test]
fn one_signal_ends_the_process_though_a_graph_does_not_start() {
    let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let folder = Folder::with_graph(&never_opens(mute.local_addr().expect("an address").port()));
    let engine = folder.run(&["--drain-timeout", "100ms"]);
    let _connection = mute.accept().expect("the sink asks");
    let finished = engine.terminate().expect(1);
    assert!(finished.stderr.contains("something does not let go of its thread"), "{}", finished.stderr);
}

#[test]
fn one_signal_ends_the_process_though_a_watched_file_does_not_come_to_run() {
    let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &["--watch", "--drain-timeout", "100ms"]);
    engine.wait_for_log("ready: 0 graphs run");
    write_graph(folder.path(), "slow", &never_opens(mute.local_addr().expect("an address").port()));
    let _connection = mute.accept().expect("the sink asks");
    let finished = engine.terminate();
    assert!(finished.stderr.contains("graph `slow` is left behind"), "{}", finished.stderr);
    assert!(finished.stderr.contains("what watches the graph files is left behind"), "{}", finished.stderr);
}

#[test]
fn what_the_errors_of_a_file_sink_mean_can_be_changed_while_it_is_open() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let text = sums("\"a\"", "sum", "out.jsonl", "");
    put(&address, "door", &text).expect(201);
    wait_for_items(&mut engine, "door", 5);
    let changed = text.replace("path = \"out.jsonl\"", "path = \"out.jsonl\"\non_error = \"stop\"");
    let reloaded = put(&address, "door", &changed).expect(200);
    assert!(reloaded["nodes"]["kept"].as_array().expect("a list").contains(&"out".into()), "{reloaded}");
    wait_for_items(&mut engine, "door", 5);
    delete(&address, "door").expect(200);
    assert_unbroken(&records(&folder.path().join("out.jsonl")));
    engine.terminate().expect(0);
}

#[test]
fn of_very_many_mistakes_the_first_are_told() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let mut text = sums("\"a\"", "sum", "out.jsonl", "");
    (0..24_000).for_each(|number| text.push_str(&format!("wrong_{number} = {number}\n")));
    let refused = put(&address, "door", &text).expect(400);
    assert_eq!((&refused["errors"], &refused["files"][0]["left_out"]), (&24_000.into(), &23_900.into()));
    assert_eq!(refused["files"][0]["diagnostics"].as_array().map(Vec::len), Some(100));
    engine.terminate().expect(0);
}

#[test]
fn texts_that_are_being_sent_are_bounded() {
    use std::io::Write;
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let text = sums("\"a\"", "sum", "out.jsonl", "");
    let held: Vec<_> = (0..32)
        .map(|_| {
            let mut client =
                std::net::TcpStream::connect(address.strip_prefix("http://").expect("a URL")).expect("connected");
            let head = "POST /graphs/door/check HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nx = 1\n";
            client.write_all(head.as_bytes()).expect("sent");
            client
        })
        .collect();
    let check = || send("POST", &format!("{address}/graphs/door/check"), &[], &text);
    let refused = wait_for("a refusal", || Some(check()).filter(|answer| answer.status == 503));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.text.contains("32 texts of graphs"), "{}", refused.text);
    drop(held);
    wait_for("room again", || (check().status == 200).then_some(()));
    engine.terminate().expect(0);
}

#[test]
fn a_watched_file_is_followed_and_waited_for() {
    let folder = temporary();
    let file = folder.path().join("door.toml");
    std::fs::write(&file, sums("\"a\"", "sum", "out.jsonl", "")).expect("written");
    let mut engine = run_graph(&file, &["--watch"], |_| {});
    engine.wait_for_graph("the first", |graph| graph["generation"] == 1 && graph["state"] == "running");
    std::fs::write(&file, sums("\"a\", \"b\"", "sum", "out.jsonl", "")).expect("written");
    engine.wait_for_graph("the second", |graph| graph["generation"] == 2);
    std::fs::remove_file(&file).expect("removed");
    engine.wait_for_log("is gone");
    std::fs::write(&file, sums("\"c\"", "sum", "out.jsonl", "")).expect("written");
    engine.wait_for_graph("the third", |graph| graph["streams"][0]["stream"] == "c");
    engine.terminate().expect(0);
}

#[test]
fn texts_over_http_name_only_what_is_allowed() {
    let folder = temporary();
    std::fs::create_dir(folder.path().join("keys")).expect("a folder");
    std::fs::write(folder.path().join("keys/door"), "5ecret-key").expect("written");
    let run = |arguments: &[&str]| {
        std::fs::create_dir_all(folder.path().join("graphs")).expect("a folder");
        let mut command = command(&["run", "graphs", "--listen", "127.0.0.1:0"]);
        command.args(arguments).current_dir(folder.path());
        command.env("CAMERA_PASSWORD", "hunter2-planted").env("OTHER", "x");
        Engine::start(command)
    };
    let text = |value: &str| {
        format!(
            "[sources.camera]\ntype = \"rtsp\"\nstreams.door = \"rtsp://admin:{value}@127.0.0.1:9/x\"\n\
             [operators.sum]\ntype = \"checksum\"\ninputs = [\"camera\"]\n\
             [sinks.out]\ntype = \"blackhole\"\ninputs = [\"sum\"]\n"
        )
    };
    let code = |refused: Value| refused["files"][0]["diagnostics"][0]["code"].as_str().map(str::to_owned);
    let mut engine = run(&[]);
    let address = engine.address();
    for reference in ["${env.CAMERA_PASSWORD}", "${env.CAMERA_PASSWORD:-none}", "${file.keys/door}"] {
        let refused = put(&address, "door", &text(reference)).expect(400);
        assert_eq!(code(refused).as_deref(), Some("forbidden-reference"), "{reference}");
    }
    // What stands there in its place is no path that anybody named.
    let written = text("x").replace("\"blackhole\"", "\"file\"\npath = \"${env.OTHER}\"").replace(":x@", "@");
    let refused = put(&address, "door", &written).expect(400);
    let found = refused["files"][0]["diagnostics"].as_array().expect("a list");
    let about: Vec<&str> = found.iter().filter_map(|found| found["message"].as_str()).collect();
    assert!(about.iter().any(|message| message.contains("the environment variable `OTHER`")), "{about:?}");
    assert!(!about.iter().any(|message| message.contains("the path")), "{about:?}");
    engine.terminate().expect(0);

    let mut engine = run(&["--allow-env", "CAMERA_*", "--allow-path", "keys", "--allow-host", "127.0.0.1"]);
    let address = engine.address();
    put(&address, "door", &text("${env.CAMERA_PASSWORD}")).expect(201);
    put(&address, "door", &text("${file.keys/door}")).expect(200);
    let refused = put(&address, "door", &text("${env.OTHER}")).expect(400);
    assert_eq!(code(refused).as_deref(), Some("forbidden-reference"));
    put(&address, "door", &text("written-out")).expect(200);
    let paths = ["/graphs", "/graphs/door", "/graphs/door/plan", "/streams", "/streams/door", "/stats", "/health"];
    for path in paths {
        let (_, _, text) = get_text(&format!("{address}{path}"));
        for secret in ["hunter2", "5ecret", "written-out"] {
            assert!(!text.contains(secret), "{path}: {text}");
        }
    }
    let shown = send("GET", &format!("{address}/graphs/door"), &[("accept", "application/toml")], "");
    assert!(shown.text.contains("rtsp://*****:***********@127.0.0.1:9/x"), "{}", shown.text);
    let refused = put(&address, "door", &shown.text).expect(400);
    assert_eq!(code(refused).as_deref(), Some("covered-secret"), "what was shown is not what was written");
    let ended = engine.terminate();
    for secret in ["hunter2", "5ecret", "written-out"] {
        assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
    }
}

#[test]
fn pages_of_others_change_and_read_nothing() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let text = sums("\"a\"", "sum", "out.jsonl", "");
    let url = format!("{address}/graphs/door");
    for origin in ["http://elsewhere.example", "null"] {
        assert_eq!(send("PUT", &url, &[("origin", origin)], &text).status, 403, "{origin}");
        let check = format!("{address}/streams/check");
        assert_eq!(send("POST", &check, &[("origin", origin)], "{}").status, 403, "{origin}");
    }
    assert_eq!(send("PUT", &url, &[("origin", &address)], &text).status, 201, "its own page may");
    let shown = send("GET", &url, &[("origin", "http://elsewhere.example")], "");
    assert_eq!((shown.status, shown.header("access-control-allow-origin")), (200, None));
    let wrong = send("POST", &url, &[], &text);
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET, HEAD, PUT, DELETE, OPTIONS")));
    engine.terminate().expect(0);
}

#[test]
fn a_graph_of_a_file_goes_beside_those_that_are_put() {
    let folder = support::Folder::with_graph(&sums("\"a\"", "sum", "out.jsonl", ""));
    let mut engine = folder.run(&["--allow-path", "."]);
    let address = engine.address();
    engine.wait_for_graph("a running graph", |graph| graph["state"] == "running");
    put(&address, "beside", &sums("\"b\"", "sum", "beside.jsonl", "")).expect(201);
    wait_for_items(&mut engine, "beside", 5);
    let ended = engine.terminate().expect(0);
    for graph in ["graph `graph` finished", "graph `beside` finished"] {
        assert!(ended.stderr.contains(graph), "{}", ended.stderr);
    }
    assert_unbroken(&folder.records("out.jsonl"));
    assert_unbroken(&folder.records("beside.jsonl"));
}

#[test]
fn a_graph_that_has_ended_is_started_anew_and_counts_on() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    let text = sums("\"a\"", "sum", "out.jsonl", "").replace("overflow", "frames = 10\noverflow");
    put(&address, "short", &text).expect(201);
    engine.wait_for_graph("its end", |graph| graph["state"] == "finished");
    assert_eq!(put(&address, "short", "no TOML").status, 400);
    assert_eq!(engine.get("/graphs/short").1["state"], "finished", "a mistake does not forget it");
    let again = put(&address, "short", &text);
    assert_eq!(again.header("etag"), Some("\"2\""), "generations go on");
    assert_eq!(again.expect(201)["result"], "started");
    engine.wait_for_graph("its second end", |graph| graph["state"] == "finished" && graph["generation"] == 2);
    engine.terminate().expect(0);
}

/// `/predict` answers with the models of the graphs that there are.
#[test]
fn a_model_goes_with_the_last_graph_that_has_it() {
    let folder = Folder::with_graph("");
    let graphs = folder.file("graphs");
    std::fs::create_dir(&graphs).expect("a folder");
    let mut engine = run_folder(&graphs, &[]);
    let address = engine.address();
    engine.wait_for_log("ready: 0 graphs run");
    let text = "[sources.scene]\ntype = \"synthetic\"\n[operators.shapes]\ntype = \"detect\"\ninputs = [\"scene\"]\n\
                model = \"shapes\"\n[sinks.nowhere]\ntype = \"blackhole\"\ninputs = [\"shapes\"]\n";
    let other = text.replace("[sources.scene]\n", "[sources.scene]\nstreams = [\"other\"]\n");
    let ask = || send("POST", &format!("{address}/predict?model=shapes"), &[], "no picture").status;
    assert_eq!(ask(), 404, "no graph has it yet");
    assert_eq!(send("PUT", &format!("{address}/graphs/one"), &[], text).status, 201);
    assert_eq!(send("PUT", &format!("{address}/graphs/two"), &[], &other).status, 201);
    wait_for("a model that answers", || (ask() == 415).then_some(()));
    assert_eq!(send("DELETE", &format!("{address}/graphs/one"), &[], "").status, 200);
    assert_eq!(ask(), 415, "the other graph has it still");
    assert_eq!(send("DELETE", &format!("{address}/graphs/two"), &[], "").status, 200);
    assert_eq!(ask(), 404);
    engine.terminate().expect(0);
}

/// A stream that a reload takes out of a graph is not there any more: its id is free, and nothing is listed of it.
#[test]
fn a_stream_that_a_reload_removes_is_gone() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &[]);
    let address = engine.address();
    put(&address, "a", &sums("\"p\", \"m\"", "sum", "a.jsonl", "")).expect(201);
    wait_for_items(&mut engine, "a", 10);
    let taken = put(&address, "b", &sums("\"m\"", "sum", "b.jsonl", "")).expect(409);
    assert_eq!(taken["error"], "the graph 'a' has a stream 'm' already".replace('\'', "`"));
    let reloaded = put(&address, "a", &sums("\"p\"", "sum", "a.jsonl", "")).expect(200);
    assert_eq!(reloaded["streams"]["removed"], Value::Array(vec!["m".into()]), "{reloaded}");
    put(&address, "b", &sums("\"m\"", "sum", "b.jsonl", "")).expect(201);
    engine.wait_for("the stream in the other graph", |_| {
        let (_, m) = get(&format!("{address}/streams/m"));
        (m["graph"] == "b" && m["state"] == "running").then_some(())
    });
    delete(&address, "b").expect(200);

    // What it counted is still in the total, which never gets less.
    let total = |engine: &mut Engine| {
        engine.wait_until_conserved();
        let graph = engine.stats()["graphs"][0].take();
        (graph["total"]["read"].as_u64().expect("a count"), graph["streams"].as_array().expect("a list").len())
    };
    let lines = || get_text(&format!("{address}/metrics")).2.lines().count();
    put(&address, "a", &sums("\"p\", \"guest-0\"", "sum", "a.jsonl", "")).expect(200);
    wait_for_items(&mut engine, "a", 10);
    let (mut read, streams) = total(&mut engine);
    assert_eq!(streams, 2);
    let lines_before = lines();
    for round in 1..=12 {
        put(&address, "a", &sums(&format!("\"p\", \"guest-{round}\""), "sum", "a.jsonl", "")).expect(200);
        let (now, streams) = total(&mut engine);
        assert!(now >= read, "round {round}: {now} after {read}");
        assert_eq!(streams, 2, "round {round}");
        read = now;
    }
    wait_for_items(&mut engine, "a", 10);
    assert!(lines() <= lines_before, "{} lines after {lines_before}", lines());
    engine.terminate().expect(0);
}

/// Writes a graph file of a watched folder as editors do: another file, renamed.
fn write_graph(folder: &Path, name: &str, text: &str) {
    let draft = folder.join(format!("graphs/.{name}.draft"));
    std::fs::write(&draft, text).expect("written");
    std::fs::rename(&draft, folder.join(format!("graphs/{name}.toml"))).expect("renamed");
}

#[test]
fn a_file_that_another_is_in_the_way_of_is_loaded_once_that_is_gone() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &["--watch"]);
    engine.wait_for_log("ready: 0 graphs run");
    let address = engine.address();
    let runs = |engine: &mut Engine, name: &str| {
        engine.wait_for(&format!("graph `{name}`"), |_| {
            let (status, graph) = get(&format!("{address}/graphs/{name}"));
            (status == 200 && graph["state"] == "running" && graph["refused"].is_null()).then_some(())
        });
    };
    write_graph(folder.path(), "a", &sums("\"x\"", "sum", "a.jsonl", ""));
    runs(&mut engine, "a");
    write_graph(folder.path(), "b", &sums("\"x\"", "sum", "b.jsonl", ""));
    let refusal = engine.wait_for_log("b.toml` is left out");
    assert!(refusal.contains("the graph `a` has a stream `x` already"), "{refusal}");
    // It is tried again and again, and that is not told each time.
    write_graph(folder.path(), "c", &sums("\"y\"", "sum", "a.jsonl", ""));
    let refusal = engine.wait_for_log("c.toml` is left out");
    assert!(refusal.contains("of the graph `a` has open"), "{refusal}");
    std::fs::remove_file(folder.path().join("graphs/a.toml")).expect("removed");
    runs(&mut engine, "b");
    runs(&mut engine, "c");
    let told = |name: &str| engine.stderr().matches(&format!("{name}.toml` is left out")).count();
    assert_eq!((told("b"), told("c")), (1, 1), "{}", engine.stderr());
    assert_eq!(engine.get("/health").0, 200);

    // A stream moves from one file to the other, and the file that gets it is saved first.
    write_graph(folder.path(), "c", &sums("\"y\", \"x\"", "sum", "a.jsonl", ""));
    engine.wait_for("the refusal", |_| {
        get(&format!("{address}/graphs/c")).1["refused"]["error"].is_string().then_some(())
    });
    assert_eq!(engine.get("/health").0, 503);
    write_graph(folder.path(), "b", &sums("\"z\"", "sum", "b.jsonl", ""));
    runs(&mut engine, "c");
    let (_, x) = engine.get("/streams/x");
    assert_eq!(x["graph"], "c", "{x}");
    assert_eq!(engine.get("/health").0, 200);
    engine.terminate().expect(0);
}

/// What is stored as files of its own may be stored otherwise from one picture to the next.
#[test]
fn a_sink_of_pictures_is_changed_where_it_is() {
    let folder = temporary();
    let mut engine = run_folder(folder.path(), &["--drain-timeout", "30s"]);
    let address = engine.address();
    let text = |quality: u32| {
        format!(
            "[sources.scene]\ntype = \"synthetic\"\nwidth = 64\nheight = 48\nfps = 50\nstreams = [\"a\"]\n\
             overflow = \"block\"\n[sinks.out]\ntype = \"file\"\ninputs = [\"scene\"]\n\
             path = \"out/{{stream}}-{{seq:06}}.jpg\"\nquality = {quality}\n"
        )
    };
    put(&address, "door", &text(90)).expect(201);
    wait_for_items(&mut engine, "door", 20);
    let changed = put(&address, "door", &text(10)).expect(200);
    assert_eq!((&changed["result"], &changed["lost"]), (&"reloaded".into(), &0.into()), "{changed}");
    wait_for_items(&mut engine, "door", 20);
    let ended = delete(&address, "door").expect(200);
    assert_eq!(ended["stuck"], serde_json::json!([]), "{ended}");
    let mut files: Vec<(String, u64)> = std::fs::read_dir(folder.path().join("out"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| (entry.file_name().into_string().expect("text"), entry.metadata().expect("there").len()))
        .collect();
    files.sort();
    let numbered = (0..files.len()).map(|number| format!("a-{number:06}.jpg"));
    assert!(files.iter().map(|(name, _)| name.clone()).eq(numbered), "{files:?}");
    assert!(files.len() >= 40 && files[0].1 > 2 * files[files.len() - 1].1, "smaller at the end: {files:?}");
}
