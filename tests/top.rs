//! `engine top` against engines that run, and against what is none.

use std::net::TcpListener;
use std::process::Output;

use support::{Folder, command};

fn top(arguments: &[&str]) -> Output {
    command(&[&["top"], arguments].concat()).output().expect("it runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn one_frame_of_a_running_engine() {
    let folder = Folder::with_graph(
        r#"
        [sources.camera]
        type = "synthetic"
        width = 64
        height = 48
        fps = 20
        streams = ["door", "yard"]

        [operators.sum]
        type = "checksum"
        inputs = ["camera"]

        [sinks.out]
        type = "blackhole"
        inputs = ["sum"]
        "#,
    );
    let mut engine = folder.run(&[]);
    let address = engine.address();
    engine.wait_for_graph("a judgement", |graph| graph["culprit"]["text"].is_string());
    let output = top(&[&address, "--once", "--sort", "name"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let frame = text(&output.stdout);
    assert!(frame.starts_with(&format!("engine at {address}   up ")), "{frame}");
    let at = |wanted: &str| frame.find(wanted).unwrap_or_else(|| panic!("`{wanted}` is missing:\n{frame}"));
    assert!(at("graph `graph`   running (generation 1)") < at("  door "), "{frame}");
    assert!(at("  door ") < at("  yard ") && at("  yard ") < at("  sum "), "{frame}");
    assert!(at("  sum ") < at("  out "), "{frame}");
    let row: Vec<&str> =
        frame.lines().find(|line| line.starts_with("  sum ")).expect("a row").split_whitespace().collect();
    assert_eq!((row[1], row[2], &row[row.len() - 3..]), ("checksum", "pool", &["camera", "->", "sum"][..]), "{frame}");
    assert!(row[3].parse::<f64>().expect("a rate") > 0.0, "{frame}");

    // No terminal, no screen: it prints one frame without being asked to. The scheme may be left out.
    let piped = top(&[address.trim_start_matches("http://")]);
    assert!(piped.status.success() && text(&piped.stdout).contains("graph `graph`"), "{}", text(&piped.stdout));
    assert!(!text(&piped.stdout).contains('\u{1b}'), "nothing that only terminals understand");
    engine.terminate().expect(0);
}

#[test]
fn what_is_no_engine_is_said_with_what_to_do() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let output = top(&[&format!("http://user:planted@{free}"), "--once"]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.starts_with("error: no engine answers at http://") && error.contains("refused"), "{error}");
    assert!(error.contains("hint: start one with `engine run GRAPH`") && !error.contains("planted"), "{error}");
    assert_eq!(text(&output.stdout), "");

    // Something answers there, but not as an engine does.
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = 'synthetic'\n[sinks.out]\ntype = 'blackhole'\ninputs = ['scene']\n",
    );
    let mut engine = folder.run(&[]);
    let output = top(&[&format!("{}/health", engine.address()), "--once"]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("is no engine: `/stats` is answered with status 404"), "{error}");
    engine.terminate().expect(0);
}
