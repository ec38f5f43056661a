//! The `dataset` sink from outside: captures, training sets of what a model found, to folders and to S3.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::bucket::{Fault, clips, objects, with_credentials};
use support::{Counts, Engine, Folder, command, material, repository, run_graph};

const VIDEO: &str = "videos/asl-again.mkv";

/// The entries in files of a data set, by the name that picture and description share. Fails where one is not whole.
fn entries(files: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for (name, bytes) in files.iter().filter(|(name, _)| name.ends_with(".json")) {
        let entry: Value = serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let base = name.strip_suffix(".json").expect("an ending");
        let (folder, _) = base.rsplit_once('/').expect("a date");
        if let Some(file) = entry["picture"]["file"].as_str() {
            let picture = &files[&format!("{folder}/{file}")];
            let decoded = image::load_from_memory_with_format(picture, image::ImageFormat::Jpeg).expect("a picture");
            assert_eq!(entry["picture"]["width"], decoded.width());
            assert_eq!(entry["picture"]["height"], decoded.height());
            assert!(file.starts_with(base.rsplit('/').next().expect("a name")), "{file} and {name}");
        }
        let date: Vec<&str> = folder.rsplit('/').take(3).collect();
        let time = entry["time"].as_str().expect("a time");
        assert_eq!(time[..10], format!("{}-{}-{}", date[2], date[1], date[0]));
        found.insert(base.to_owned(), entry);
    }
    let pictures = files.keys().filter(|name| name.ends_with(".jpg")).count();
    let with_picture = found.values().filter(|entry| entry.get("picture").is_some()).count();
    assert_eq!((files.len(), pictures), (found.len() + pictures, with_picture), "{:?}", files.keys());
    found
}

fn in_folder(folder: &Path) -> BTreeMap<String, Value> {
    entries(&objects(folder.parent().expect("a folder"), folder.file_name().expect("a name").to_str().expect("text")))
}

#[test]
fn a_capture_needs_no_model_and_ends_by_itself() {
    let Some(material) = material() else { return };
    let folder = Folder::with_graph("");
    let out = folder.file("dataset");
    let sets = [
        format!("video={}", material.join(VIDEO).display()),
        format!("output={}", out.display()),
        "fps=10".to_owned(),
        "max=5".to_owned(),
    ];
    let arguments: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let finished = run_graph(&repository().join("graphs/capture.toml"), &arguments, |_| {}).finish().expect(0);
    let found = in_folder(&out);
    assert_eq!(found.len(), 5);
    for entry in found.values() {
        assert_eq!((&entry["graph"], &entry["stream"]), (&"capture".into(), &"asl-again".into()));
        assert_eq!(entry["records"][0]["kind"], "checksum");
        assert_eq!(entry["records"][0]["seq"], entry["seq"]);
        assert_eq!(entry["picture"]["of"], "source");
    }
    let counts = finished.counts("asl-again");
    assert_eq!((counts.delivered, counts.lost, counts.rejected), (5, 0, 0), "{counts:?}");
}

#[test]
fn a_camera_that_never_ends_is_captured_until_there_is_enough() {
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = \"synthetic\"\nwidth = 64\nheight = 36\nfps = 100\nstreams = [\"a\", \"b\"]\n\
         [sinks.training]\ntype = \"dataset\"\ninputs = [\"scene\"]\noutput = \"out\"\nevery = 2\nmax = 7\n",
    );
    let finished = folder.run(&[]).finish().expect(0);
    assert!(finished.stderr.contains("`training` has all that it wanted"), "{}", finished.stderr);
    let found = in_folder(&folder.file("out"));
    assert_eq!(found.len(), 7);
    let of = |stream: &str| finished.counts(stream).delivered;
    assert_eq!(of("a") + of("b"), 7);
    assert_eq!(finished.counts("a").lost + finished.counts("b").lost, 0);
}

/// One person signs, in all of the video's 2.6 seconds.
#[test]
fn what_a_model_found_is_kept_with_its_picture_as_the_model_saw_it() {
    let Some(material) = material() else { return };
    let graph = |more: &str| {
        Folder::with_graph(&format!(
            "[sources.video]\ntype = \"file\"\npath = \"{}\"\n\
             [operators.some]\ntype = \"sample\"\ninputs = [\"video\"]\nfps = 2\n\
             [operators.people]\ntype = \"detect\"\ninputs = [\"some\"]\nmodel = \"yolox_nano\"\n\
             [sinks.training]\ntype = \"dataset\"\ninputs = [\"some\", \"people\"]\noutput = \"out\"\n{more}",
            material.join(VIDEO).display()
        ))
    };
    let folder = graph("labels = [\"person\"]\nabove = 0.6\npicture = \"model_input\"\nmodel = \"yolox_nano\"\n");
    folder.run(&[]).finish().expect(0);
    let found = in_folder(&folder.file("out"));
    assert_eq!(found.len(), 6, "at 0, 0.5, … 2.5 s");
    for entry in found.values() {
        assert_eq!((&entry["picture"]["width"], &entry["picture"]["of"]), (&416.into(), &"model_input".into()));
        let record = &entry["records"][0];
        assert_eq!(record["seq"], entry["seq"]);
        assert!(record["detections"].as_array().expect("a list").iter().any(|found| found["label"] == "person"));
    }
    let nobody = graph("labels = [\"giraffe\"]\n");
    let finished = nobody.run(&[]).finish().expect(0);
    assert!(in_folder(&nobody.file("out")).is_empty());
    let counts = finished.counts("asl-again");
    assert_eq!(counts.read, counts.filtered, "{counts:?}");
}

#[test]
fn a_data_set_in_s3_is_whole_although_the_server_stumbles() {
    let (root, bucket) = clips();
    bucket.fail_next(
        "PUT",
        &[Fault::Refuse(503, "SlowDown"), Fault::CutBeforeAnswer, Fault::Refuse(500, "InternalError")],
    );
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = \"synthetic\"\nwidth = 64\nheight = 36\nrealtime = false\nframes = 20\n\
         [sinks.training]\ntype = \"dataset\"\ninputs = [\"scene\"]\noutput = \"s3://clips/sets/door\"\n",
    );
    let endpoint = bucket.endpoint();
    let finished = folder
        .run_with(&[], |command| {
            with_credentials(command);
            command.env("AWS_ENDPOINT_URL", endpoint);
        })
        .finish()
        .expect(0);
    assert_eq!(finished.counts("synthetic"), Counts::all_delivered(20));
    assert!(bucket.has_failed_enough());
    let found = objects(root.path(), "clips");
    assert!(found.keys().all(|key| key.starts_with("sets/door/2")), "{:?}", found.keys());
    assert_eq!(entries(&found).len(), 20);
}

/// A limit on the size of files stands in for a full disk: both are errors of writing.
#[test]
fn a_full_disk_is_named_and_leaves_nothing_half_written() {
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = \"synthetic\"\nwidth = 640\nheight = 360\nrealtime = false\nframes = 3\n\
         [sinks.training]\ntype = \"dataset\"\ninputs = [\"scene\"]\noutput = \"out\"\nquality = 100\nretry_for = \"1s\"\n",
    );
    let engine = command(&["run", "graph.toml", "--listen", "127.0.0.1:0"]);
    let mut limited = Command::new("bash");
    // 4 blocks of 1 KiB; the signal that would end the process is ignored, so that writing fails.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "bash"]).arg(engine.get_program());
    limited.args(engine.get_args()).current_dir(folder.path());
    for (name, value) in engine.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let finished = Engine::start(limited).finish().expect(1);
    assert_eq!(finished.counts("synthetic"), Counts { read: 3, lost: 3, ..Counts::default() });
    for part in ["file too large", "make room on that disk", "is tried again", "given up after"] {
        assert!(finished.stderr.contains(part), "{part}: {}", finished.stderr);
    }
    assert_eq!(objects(folder.path(), "out").keys().collect::<Vec<_>>(), Vec::<&String>::new());
}
