//! `/preview` from outside: the next picture of a stream as JPEG, made only while somebody asks.

use support::{Engine, Folder, StalledPipe, get, get_bytes};

/// Width and height in the frame header of a JPEG file.
fn size(file: &[u8]) -> (u32, u32) {
    assert!(file.starts_with(&[0xff, 0xd8]) && file.ends_with(&[0xff, 0xd9]), "a whole JPEG file");
    let mut at = 2;
    loop {
        let &[0xff, marker, high, low] = &file[at..at + 4] else { panic!("no marker at {at}") };
        let side = |at: usize| u32::from(u16::from_be_bytes([file[at], file[at + 1]]));
        if (0xc0..=0xc2).contains(&marker) {
            return (side(at + 7), side(at + 5));
        }
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
    }
}

fn preview(engine: &mut Engine) -> (u64, Vec<u8>) {
    let address = format!("{}/preview?graph=graph&stream=synthetic", engine.address());
    let (headers, body) = engine.wait_for("a picture", |_| {
        let (status, headers, body) = get_bytes(&address);
        // A machine that stands still makes none in time, which is told.
        assert!([200, 503].contains(&status), "{}", String::from_utf8_lossy(&body));
        (status == 200).then_some((headers, body))
    });
    for (name, value) in [
        ("content-type", "image/jpeg"),
        ("cache-control", "no-store"),
        ("x-picture-width", "1280"),
        ("x-picture-height", "720"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    (headers["x-picture-seq"].to_str().expect("text").parse().expect("a number"), body)
}

#[test]
fn a_preview_is_the_next_picture_that_somebody_wants_made_small() {
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = 'synthetic'\nwidth = 1280\nheight = 720\nfps = 30\n
        [operators.some]\ntype = 'sample'\ninputs = ['scene']\nfps = 10\n
        [operators.sum]\ntype = 'checksum'\ninputs = ['some']\n
        [sinks.out]\ntype = 'blackhole'\ninputs = ['sum']\n",
    );
    let mut engine = folder.run(&[]);
    engine.wait_for_graph("pictures", |graph| graph["total"]["delivered"].as_u64() > Some(0));
    let mut last = None;
    for _ in 0..4 {
        let (seq, file) = preview(&mut engine);
        assert_eq!(size(&file), (640, 360));
        assert_eq!(seq % 3, 0, "one of three is sampled, and only those are shown");
        assert!(last.is_none_or(|last| seq > last), "{seq} after {last:?}");
        last = Some(seq);
    }
    // Looking has no picture converted that the graph does not want.
    let graph = engine.wait_for_graph("the statistics", |_| true);
    let stream = &graph["streams"][0];
    let number = |name: &str| stream[name].as_u64().expect("a count");
    assert!(number("converted") <= number("read").div_ceil(3), "{stream}");
    let (status, refusal) = get(&format!("{}/preview?graph=graph&stream=other", engine.address()));
    assert_eq!(status, 404, "{refusal}");
    engine.terminate().expect(0);
}

/// A source that waits for its sink makes no new picture: whoever looks sees the last one, and is not kept waiting when
/// there is none.
#[test]
fn a_stream_that_stands_still_shows_its_last_picture() {
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = 'synthetic'\nwidth = 1280\nheight = 720\nrealtime = false\n
        [operators.sum]\ntype = 'checksum'\ninputs = ['scene']\n
        [sinks.out]\ntype = 'file'\npath = 'out.jsonl'\ninputs = ['sum']\n",
    );
    let pipe = StalledPipe::new(folder.file("out.jsonl"));
    let mut engine = folder.run(&[]);
    engine.wait_for_stall();
    let address = format!("{}/preview?graph=graph&stream=synthetic", engine.address());
    let (status, _, body) = get_bytes(&address);
    let refusal: serde_json::Value = serde_json::from_slice(&body).expect("a reason");
    assert_eq!(
        (status, &refusal["error"]),
        (503, &"graph `graph`, stream `synthetic`: there is no picture yet".into())
    );

    // The question stands: the first picture after the stall answers it.
    let reader = pipe.drain();
    support::wait_for("a picture", || (get_bytes(&address).0 == 200).then_some(()));
    engine.terminate().expect(0);
    reader.join().expect("its lines");
}

#[test]
fn a_stream_that_has_ended_shows_nothing_that_nobody_asked_for() {
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = 'synthetic'\nframes = 3\nrealtime = false\n[operators.sum]\ntype = 'checksum'\n\
         inputs = ['scene']\n[sinks.out]\ntype = 'blackhole'\ninputs = ['sum']\n",
    );
    let mut engine = folder.run(&["--stay"]);
    engine.wait_for_graph("the end of the graph", |graph| graph["state"] == "finished");
    let (status, refusal) = engine.get("/preview?graph=graph&stream=synthetic");
    assert_eq!(status, 503);
    assert!(refusal["hint"].as_str().expect("a hint").contains("/stats"), "{refusal}");
    engine.terminate().expect(0);
}
