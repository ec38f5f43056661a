//! What a graph must not destroy, and what it must not tell, from outside.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn engine(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(arguments)
        .current_dir(folder)
        .env("ENGINE_MODELS", folder.join("models"))
        .output()
        .expect("the engine's binary runs")
}

#[test]
fn a_sink_never_overwrites_what_its_graph_reads_or_is_made_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    fs::create_dir(folder.join("models")).expect("made");
    for name in ["clip.mp4", "key", "models/mine.toml"] {
        fs::write(folder.join(name), name).expect("written");
    }
    fs::hard_link(folder.join("clip.mp4"), folder.join("same.mp4")).expect("linked");
    std::os::unix::fs::symlink("clip.mp4", folder.join("link.mp4")).expect("linked");
    let graph = |path: &str| {
        format!(
            "[sources.door]\ntype = \"file\"\npath = \"clip.mp4\"\nbudget = {{ bytes = \"${{file.key}}MiB\" }}\n\
             [operators.sums]\ntype = \"checksum\"\ninputs = [\"door\"]\n\
             [sinks.out]\ntype = \"file\"\ninputs = [\"sums\"]\npath = \"{path}\"\n"
        )
    };
    fs::write(folder.join("key"), "64").expect("written");
    for path in ["clip.mp4", "new/../clip.mp4", "same.mp4", "link.mp4", "door.toml", "key", "models/mine.toml"] {
        let text = graph(path);
        fs::write(folder.join("door.toml"), &text).expect("written");
        let before = fs::read(folder.join(path.trim_start_matches("new/../"))).expect("readable");
        let output = engine(folder, &["run", "door.toml", "--listen", "127.0.0.1:0"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{path}: {stderr}");
        assert!(stderr.contains("error[overwrites-input]"), "{path}: {stderr}");
        let after = fs::read(folder.join(path.trim_start_matches("new/../"))).expect("still there");
        assert_eq!(before, after, "{path} was changed");
    }
}
