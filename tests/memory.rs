//! Memory is bounded: a sink that stalls stops its source below the bound that `engine plan` prints, and many pictures
//! take no more than few.

use support::{Counts, Folder, StalledPipe, plan, soak};

fn graph(width: u32, height: u32, sink: &str) -> Folder {
    Folder::with_graph(&format!(
        r#"
        [sources.scene]
        type = "synthetic"
        width = {width}
        height = {height}
        realtime = false
        frames = 800
        streams = ["a", "b"]

        [operators.sum]
        type = "checksum"
        inputs = ["scene"]

        [sinks.out]
        {sink}
        inputs = ["sum"]
        "#
    ))
}

/// What the program itself may take more from one moment to the next of a run: allocators keep what they have. Less
/// than a leak of a byte in eight of each small picture would be.
const NOISE: u64 = 8 << 20;

#[test]
fn a_stalled_sink_stays_below_the_bound_of_the_plan() {
    // The program itself: the same graph on pictures that weigh nothing.
    let weightless = graph(16, 16, "type = \"blackhole\"");
    let mut engine = weightless.run(&["--stay"]);
    engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    let baseline = engine.stats()["process"]["peak_resident_bytes"].as_u64().expect("bytes");
    engine.terminate().expect(0);

    let folder = graph(1920, 1080, "type = \"file\"\npath = \"out.jsonl\"");
    let plan = plan(&folder.graph(), &[]);
    let bound = plan["memory"]["total_bytes"].as_u64().expect("bytes");
    let items = plan["sources"][0]["taps"][0]["limits"]["items"].as_u64().expect("a count");
    let pipe = StalledPipe::new(folder.file("out.jsonl"));
    let mut engine = folder.run(&[]);
    let blocked = engine.wait_for_stall();
    for stream in blocked["streams"].as_array().expect("a list") {
        assert_eq!(stream["blocked_by"], "scene -> sum", "the source says what it waits for: {stream}");
    }
    let read = blocked["total"]["read"].as_u64().expect("a count");
    assert!(read < 800, "the sink has stalled early: {blocked}");
    let stats = engine.stats();
    let again = &stats["graphs"][0];
    assert_eq!(again["total"]["read"], read, "nothing more is read");
    for stream in again["streams"].as_array().expect("a list") {
        assert!(stream["held_bytes_peak"].as_u64() <= stream["held_bytes_limit"].as_u64(), "{stream}");
        assert!(stream["held_items"].as_u64() <= Some(items), "{stream}");
        // One more was read, and waits for credit.
        assert_eq!(stream["in_flight"], items + 1, "{stream}");
    }
    let resident = stats["process"]["peak_resident_bytes"].as_u64().expect("bytes");
    println!("{baseline} bytes at the start, {bound} of the plan, {resident} at most");
    // The counts above are exact. This one says that they count real memory: it allows for what an allocator keeps for
    // the next picture, and for pages of 2 MiB, and is far below the 5 GB of a source without a bound.
    assert!(
        resident <= baseline + 2 * bound,
        "{resident} bytes are more than {baseline} at the start and twice the {bound} of the plan"
    );

    let reader = pipe.drain();
    let ended = engine.finish().expect(0);
    for stream in ["a", "b"] {
        assert_eq!(ended.counts(stream), Counts::all_delivered(800));
    }
    assert_eq!(reader.join().expect("its lines").len(), 1600);
}

#[test]
fn many_pictures_take_no_more_than_few() {
    let frames: u64 = if soak() { 100_000 } else { 20_000 };
    let folder = Folder::with_graph(&format!(
        r#"
        [sources.scene]
        type = "synthetic"
        width = 64
        height = 48
        realtime = false
        frames = {frames}

        [operators.sum]
        type = "checksum"
        inputs = ["scene"]

        [sinks.out]
        type = "file"
        inputs = ["sum"]
        path = "out.jsonl"
        "#
    ));
    let mut engine = folder.run(&["--stay"]);
    engine.wait_for_graph("a tenth", |graph| graph["total"]["delivered"].as_u64() >= Some(frames / 10));
    let early = engine.stats()["process"]["resident_bytes"].as_u64().expect("bytes");
    engine.wait_for_graph("the end", |graph| graph["state"] == "finished");
    let late = engine.stats()["process"]["resident_bytes"].as_u64().expect("bytes");
    println!("{early} bytes after a tenth, {late} at the end");
    assert!(late <= early + NOISE, "{early} bytes after a tenth, {late} after {frames} pictures");
    let ended = engine.terminate().expect(0);
    assert_eq!(ended.counts("synthetic"), Counts::all_delivered(frames));
    assert_eq!(folder.records("out.jsonl").len() as u64, frames);
}
