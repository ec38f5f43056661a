//! `POST /predict` from outside: what models say of single pictures, and how everything that is none is refused.

use std::io::{Cursor, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};
use support::{Engine, Folder, PATIENCE, material, wait_for};

/// A scene that a detector of shapes looks at, and models beside it.
const GRAPH: &str = r#"
    [sources.scene]
    type = "synthetic"
    width = 64
    height = 48

    [operators.shapes]
    type = "detect"
    inputs = ["scene"]
    model = "shapes"

    [sinks.out]
    type = "blackhole"
    inputs = ["shapes"]
    "#;

struct Server {
    engine: Engine,
    address: String,
    folder: Folder,
}

struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: Value,
}

impl Server {
    /// Runs the graph, and waits until its models are warm.
    fn start(arguments: &[&str]) -> Server {
        let folder = Folder::with_graph(GRAPH);
        let mut engine = folder.run(arguments);
        let address = engine.address();
        engine.wait_for("warm models", |_| {
            let (_, stats) = support::get(&format!("{address}/stats"));
            let models = stats["predict"]["models"].as_object()?;
            models.values().all(|state| state == "ready").then_some(())
        });
        Server { engine, address, folder }
    }

    fn post(&self, query: &str, kind: &str, body: &[u8]) -> Answer {
        post(&self.address, query, kind, body)
    }

    /// Asks with a raw body.
    fn ask(&self, query: &str, body: &[u8]) -> Answer {
        self.post(query, "application/octet-stream", body)
    }

    fn refused(&self, query: &str, kind: &str, body: &[u8], status: u16, says: &str) {
        let answer = self.post(query, kind, body);
        let told = format!("{} {}", answer.body["error"], answer.body["hint"]);
        assert_eq!(answer.status, status, "{query} {kind}: {told}");
        assert!(told.contains(says), "{query} {kind}: {told}");
    }
}

fn post(address: &str, query: &str, kind: &str, body: &[u8]) -> Answer {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
    let request = config.build().new_agent().post(format!("{address}/predict{query}"));
    let mut answer = request.header("content-type", kind).send(body).expect("an answer");
    let text = answer.body_mut().read_to_string().expect("text");
    let body = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"));
    Answer { status: answer.status().as_u16(), headers: answer.headers().clone(), body }
}

fn form(name: &str, picture: &[u8]) -> (String, Vec<u8>) {
    let mut body = format!(
        "--limit\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"a.jpg\"\r\ncontent-type: image/jpeg\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(picture);
    body.extend_from_slice(b"\r\n--limit--\r\n");
    ("multipart/form-data; boundary=limit".to_owned(), body)
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).expect("encoded");
    bytes.into_inner()
}

fn picture(material: &Path, name: &str) -> Vec<u8> {
    std::fs::read(material.join("images").join(name)).expect("a picture of the material")
}

fn references(material: &Path) -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(material.join("reference/images.json")).expect("the reference");
    serde_json::from_str(&text).expect("JSON")
}

fn score(answer: &Value, label: &str) -> Option<f64> {
    let predictions = answer["predictions"].as_array().expect("predictions");
    predictions.iter().find(|prediction| prediction["label"] == label)?["score"].as_f64()
}

/// The tolerances that the reference gives; pictures come as files and as forms in turn.
#[test]
fn answers_agree_with_the_reference() {
    let Some(material) = material() else { return };
    let models = ["mobilenet_v3_small", "person", "yolox_nano"].map(|model| ["--predict-model", model]);
    let server = Server::start(models.as_flattened());
    for (index, (name, reference)) in references(&material).into_iter().enumerate() {
        let bytes = picture(&material, &name);
        let ask = |query: &str| {
            let answer = if index % 2 == 0 {
                server.ask(query, &bytes)
            } else {
                let (kind, body) = form("file", &bytes);
                server.post(query, &kind, &body)
            };
            assert_eq!(answer.status, 200, "{name}: {}", answer.body);
            let fields: Vec<&String> = answer.body.as_object().expect("an object").keys().collect();
            assert_eq!(fields, ["has_person", "predictions"], "{name}");
            answer.body
        };
        let classified = ask("?model=mobilenet_v3_small");
        let best = &reference["mobilenet_v3_small"][0];
        let label = best["label"].as_str().expect("text").split(',').next().expect("a part");
        let (found, wanted) = (score(&classified, label), best["score"].as_f64().expect("a number"));
        assert_eq!(classified["predictions"].as_array().expect("a list").len(), 5, "{name}");
        assert!(found.is_some_and(|found| (found - wanted).abs() < 0.2), "{name}: {best} in {classified}");
        if wanted >= 0.5 {
            assert_eq!(classified["predictions"][0]["label"], label, "{name}");
        }
        assert_eq!(classified["has_person"], Value::Null);

        // The best person, and whether there is none: 0 or 1.
        let person = ask("?model=person");
        let wanted = reference["person_detector_e2e_person"]["max_score"].as_f64().expect("a number");
        let found = score(&person, "person").expect("a score of `person`");
        let has = person["has_person"].as_bool().expect("yes or no");
        assert_eq!(score(&person, "no_person"), Some(if has { 0.0 } else { 1.0 }), "{name}: {person}");
        assert_eq!(has, found >= 0.6, "{name}: {person}");
        if wanted >= 0.3 {
            assert!((found - wanted).abs() < 0.1, "{name}: {found} for {wanted}");
        }
        if !(0.4..0.7).contains(&wanted) {
            assert_eq!(has, reference["person_detector_e2e_person"]["has_person_at_0.6"], "{name}");
        }

        // Each label once, with its best score.
        let detected = ask("?model=yolox_nano");
        let predictions = detected["predictions"].as_array().expect("a list");
        for wanted in reference["yolox_nano"].as_array().expect("a list") {
            let (label, wanted) =
                (wanted["label"].as_str().expect("text"), wanted["score"].as_f64().expect("a number"));
            let found = score(&detected, label);
            assert!(wanted < 0.4 || found.is_some_and(|found| found > wanted - 0.1), "{name}: {label} in {detected}");
        }
        let mut labels: Vec<&Value> = predictions.iter().map(|prediction| &prediction["label"]).collect();
        let count = labels.len();
        labels.sort_by_key(|label| label.to_string());
        labels.dedup();
        assert_eq!(labels.len(), count, "{name}: {detected}");
        assert!(predictions.is_sorted_by(|left, right| left["score"].as_f64() >= right["score"].as_f64()));
    }
    // Models of the graph answer too, and the graph went on.
    let answer = server.ask("?model=shapes", &encoded(&DynamicImage::new_rgb8(64, 48), ImageFormat::Png));
    assert_eq!((answer.status, answer.body), (200, json!({ "predictions": [], "has_person": null })));
    let mut engine = server.engine;
    let pictures = at_rest(&mut engine);
    assert_eq!(pictures["read"], pictures["delivered"]);
    engine.terminate().expect(0);
}

#[test]
fn every_kind_of_picture_is_taken_and_wishes_count() {
    let server = Server::start(&[]);
    // A red circle on grey, as the scene has them.
    let circle = RgbImage::from_fn(320, 192, |x, y| {
        let (dx, dy) = (i64::from(x) - 160, i64::from(y) - 96);
        if dx * dx + dy * dy < 1600 { Rgb([220, 40, 40]) } else { Rgb([90, 95, 90]) }
    });
    let circle = DynamicImage::from(circle);
    let mut answers = Vec::new();
    for (format, kind) in
        [(ImageFormat::Png, "image/png"), (ImageFormat::WebP, "image/webp"), (ImageFormat::Jpeg, "image/jpeg")]
    {
        // The only model need not be named; what a picture is, its bytes say, whatever is claimed.
        let bytes = encoded(&circle, format);
        for kind in [kind, "application/octet-stream", "image/png"] {
            let answer = server.post("?threshold=0.1", kind, &bytes);
            assert_eq!(answer.status, 200, "{format:?}: {}", answer.body);
            answers.push(answer.body["predictions"][0]["label"].clone());
        }
    }
    assert!(answers.iter().all(|label| *label == "circle"), "{answers:?}");
    let bytes = encoded(&circle, ImageFormat::Png);
    let strict = server.ask("?threshold=1", &bytes);
    assert_eq!(strict.body["predictions"], json!([]), "{}", strict.body);
    // Pictures of one pixel, in colours of any kind.
    for tiny in [DynamicImage::new_rgb8(1, 1), DynamicImage::new_luma8(1, 1), DynamicImage::new_rgba16(1, 1)] {
        let answer = server.ask("", &encoded(&tiny, ImageFormat::Png));
        assert_eq!((answer.status, answer.body), (200, json!({ "predictions": [], "has_person": null })));
    }
    server.engine.terminate().expect(0);
}

/// A PNG whose header claims a size, and whose data is a few bytes of zeros.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    let whole = encoded(&DynamicImage::new_rgb8(1, 1), ImageFormat::Png);
    let mut header = b"IHDR".to_vec();
    header.extend_from_slice(&width.to_be_bytes());
    header.extend_from_slice(&height.to_be_bytes());
    header.extend_from_slice(&[8, 2, 0, 0, 0]);
    let sum = checksum(&header);
    [&whole[..12], &header, &sum.to_be_bytes(), &whole[33..]].concat()
}

/// CRC-32 as PNG has it (ISO/IEC 15948, annex D).
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 * (sum & 1)))
    })
}

#[test]
fn what_is_no_picture_is_refused_with_a_reason() {
    let server = Server::start(&["--predict-max-bytes", "100kB", "--predict-max-pixels", "1000000"]);
    let noise = RgbImage::from_fn(300, 200, |x, y| {
        let value = x.wrapping_mul(2_654_435_761).wrapping_add(y.wrapping_mul(40_503)).wrapping_mul(x ^ (y << 3));
        Rgb([(value >> 8) as u8, (value >> 16) as u8, (value >> 24) as u8])
    });
    let jpeg = encoded(&DynamicImage::from(noise.clone()), ImageFormat::Jpeg);
    let png = encoded(&DynamicImage::new_rgb8(40, 30), ImageFormat::Png);
    let raw = "application/octet-stream";

    server.refused("", "image/jpeg", b"", 422, "0 bytes");
    server.refused("", "text/html", &png, 415, "text/html");
    server.refused("", raw, b"GIF89a and so on", 415, "neither JPEG nor PNG nor WebP");
    server.refused("", "image/png", &png[..png.len() - 20], 422, "broken");
    server.refused("", "image/jpeg", &jpeg[..300], 422, "broken");
    // The bomb is small on the wire and never unpacked.
    server.refused("", "image/png", &bomb(60_000, 60_000), 413, "60000 x 60000 pixels");
    let lossless = encoded(&DynamicImage::from(noise), ImageFormat::Png);
    assert!(lossless.len() > 100_000);
    server.refused("", raw, &lossless, 413, "--predict-max-bytes");
    let (kind, body) = form("file", &lossless);
    server.refused("", &kind, &body, 413, "more than 100000 bytes");
    let (kind, body) = form("picture", &png);
    server.refused("", &kind, &body, 400, "only `picture`");
    server.refused("", "multipart/form-data", &body, 400, "boundary");
    server.refused("", &kind, b"no form at all", 400, "the form cannot be read");
    server.refused("?model=shape", raw, &png, 404, "did you mean `shapes`?");
    server.refused("?modle=shapes", raw, &png, 400, "did you mean `model`?");
    server.refused("?top_k=none", raw, &png, 400, "1 to 1000");

    for method in ["GET", "PUT", "DELETE"] {
        let (status, headers, body) = plain(&server.address, method, "/predict", "");
        assert_eq!(status, 405, "{method}: {body}");
        assert!(headers.contains("allow: POST, OPTIONS"), "{headers}");
    }
    let (status, headers, _) = plain(&server.address, "OPTIONS", "/predict", "");
    assert_eq!(status, 204);
    assert!(headers.contains("access-control-allow-methods: POST, OPTIONS"), "{headers}");

    // After all that, a picture is still answered, and no picture is in flight.
    assert_eq!(server.ask("", &png).status, 200);
    let mut engine = server.engine;
    at_rest(&mut engine);
    engine.terminate().expect(0);
}

/// The counts of the pictures, when none is in flight: an answer may be heard a moment before.
fn at_rest(engine: &mut Engine) -> Value {
    let address = engine.address();
    engine.wait_for("nothing in flight", |_| {
        let (_, mut stats) = support::get(&format!("{address}/stats"));
        let pictures = stats["predict"]["pictures"].take();
        (support::is_conserved(&pictures) && pictures["in_flight"] == 0).then_some(pictures)
    })
}

/// Status, head and body of a request that is written by hand.
fn plain(address: &str, method: &str, path: &str, body: &str) -> (u16, String, String) {
    let mut client = connect(address);
    write!(
        client,
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("sent");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, head.to_owned(), body.to_owned())
}

fn connect(address: &str) -> TcpStream {
    let client = TcpStream::connect(address.trim_start_matches("http://")).expect("connected");
    client.set_read_timeout(Some(PATIENCE)).expect("set");
    client
}

/// A request whose body never comes, on a connection that stays open.
fn dawdle(address: &str, sent: &[u8]) -> TcpStream {
    let mut client = connect(address);
    write!(client, "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 5000\r\n\r\n")
        .expect("sent");
    client.write_all(sent).expect("sent");
    client
}

#[test]
fn clients_that_dawdle_or_go_away_take_no_place_for_ever() {
    let server = Server::start(&["--predict-max-requests", "2"]);
    let png = encoded(&DynamicImage::new_rgb8(40, 30), ImageFormat::Png);
    let busy = || server.ask("", &png);
    // Two requests that never end take both slots; a third is told to come back.
    let slow = [dawdle(&server.address, b""), dawdle(&server.address, &png[..20])];
    let answer = wait_for("a refusal", || Some(busy()).filter(|answer| answer.status == 503));
    assert_eq!(answer.headers["retry-after"], "1");
    assert!(answer.body["error"].as_str().expect("text").contains("2 requests"), "{}", answer.body);
    // The control plane answers everything else meanwhile.
    assert_eq!(support::get(&format!("{}/health", server.address)).0, 200);
    // Who says nothing is given up and told so; what it took is free then.
    for mut client in slow {
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("no more of the body came"), "{answer}");
    }
    wait_for("free slots", || (busy().status == 200).then_some(()));

    // Whoever goes away while its picture is in work gives its place back as well.
    for _ in 0..20 {
        let mut client = connect(&server.address);
        let head = format!(
            "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: {}\r\n\r\n",
            png.len()
        );
        client.write_all(&[head.as_bytes(), &png].concat()).expect("sent");
        drop(client);
    }
    wait_for("free slots", || (busy().status == 200).then_some(()));
    let mut engine = server.engine;
    at_rest(&mut engine);
    engine.terminate().expect(0);
}

/// Many at once: each one gets an answer or is told to come back, and nothing is forgotten.
#[test]
fn a_hundred_at_once_are_all_answered() {
    let server = Server::start(&["--predict-max-requests", "8"]);
    let png = encoded(&DynamicImage::new_rgb8(640, 480), ImageFormat::Png);
    let start = std::sync::Barrier::new(100);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let ask = |index: usize| {
            start.wait();
            let answer = if index.is_multiple_of(2) {
                server.ask("", &png)
            } else {
                let (kind, body) = form("file", &png);
                server.post("", &kind, &body)
            };
            assert!(answer.status == 200 || answer.headers["retry-after"] == "1", "{}", answer.body);
            answer.status
        };
        let asking: Vec<_> = (0..100).map(|index| scope.spawn(move || ask(index))).collect();
        asking.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    let answered = statuses.iter().filter(|status| **status == 200).count() as u64;
    assert!(answered > 0 && statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    let mut engine = server.engine;
    let pictures = at_rest(&mut engine);
    assert_eq!(pictures["delivered"], answered, "{pictures}");
    engine.terminate().expect(0);
}

/// What `engine plan` prints for `/predict` is not exceeded by as many pictures of the costly kind as may be there at once.
#[test]
fn memory_stays_below_the_bound_of_the_plan() {
    let flags = ["--predict-max-requests", "4", "--predict-max-bytes", "1MiB", "--predict-max-pixels", "8000000"];
    let flags: Vec<&str> = flags.into_iter().chain(["--pool-threads", "2"]).collect();
    let server = Server::start(&flags);
    let bound = support::plan(&server.folder.graph(), &flags)["predict_memory"]["total_bytes"].as_u64();
    let bound = bound.expect("the plan counts it");
    // Samples of 16 bits with transparency: eight bytes a pixel, and small on the wire.
    let costly = encoded(&DynamicImage::new_rgba16(4000, 2000), ImageFormat::Png);
    assert!(costly.len() < 1 << 20);
    let tiny = encoded(&DynamicImage::new_rgb8(1, 1), ImageFormat::Png);
    assert_eq!(server.ask("", &tiny).status, 200);
    let peak = |server: &Server| {
        let (_, stats) = support::get(&format!("{}/stats", server.address));
        stats["process"]["peak_resident_bytes"].as_u64().expect("bytes")
    };
    let before = peak(&server);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..3 {
                    assert!([200, 503].contains(&server.ask("", &costly).status));
                }
            });
        }
    });
    let most = peak(&server);
    println!("{before} bytes before, {most} at most, {bound} of the plan");
    assert!(most > before + 8 * 8_000_000, "the pictures were decoded");
    assert!(most <= before + bound, "{most} bytes are more than {before} and the {bound} of the plan");
    server.engine.terminate().expect(0);
}

/// Forms that are broken in one way or another: each is refused with a reason, and the next one is answered.
#[test]
fn broken_forms_are_refused() {
    let server = Server::start(&["--predict-max-bytes", "200kB"]);
    let png = encoded(&DynamicImage::new_rgb8(40, 30), ImageFormat::Png);
    let kind = "multipart/form-data; boundary=limit";
    let part = "--limit\r\ncontent-disposition: form-data; name=\"file\"";
    let endless = format!("{part}; filename=\"{}", "a".repeat(150_000));
    let headers = format!("{part}\r\n{}\r\n\r\nx\r\n--limit--\r\n", "x-more: 1\r\n".repeat(5000));
    let unfinished = [part.as_bytes(), b"\r\n\r\n", &png].concat();
    let nameless = "--limit\r\ncontent-disposition: form-data\r\n\r\nx\r\n--limit--\r\n";
    let empty = format!("{part}\r\n\r\n\r\n--limit--\r\n");
    for (form, status) in [
        (endless.as_bytes(), 400),
        (headers.as_bytes(), 400),
        (&unfinished, 400),
        (nameless.as_bytes(), 400),
        (empty.as_bytes(), 422),
        (&[0; 100_000], 400),
        (b"--limit", 400),
        (b"--limit--\r\n", 400),
    ] {
        let answer = server.post("", kind, form);
        assert_eq!(answer.status, status, "{}", answer.body);
        for told in ["error", "hint"] {
            assert!(answer.body[told].as_str().is_some_and(|text| !text.is_empty()), "{}", answer.body);
        }
    }
    // Of two pictures the first counts, whatever else is in the form.
    let other = "--limit\r\ncontent-disposition: form-data; name=\"note\"\r\n\r\nhello\r\n".repeat(500);
    let picture = [part.as_bytes(), b"\r\n\r\n", &png, b"\r\n"].concat();
    let whole = [other.as_bytes(), &picture, part.as_bytes(), b"\r\n\r\nno picture\r\n--limit--\r\n"].concat();
    assert_eq!(server.post("", kind, &whole).status, 200);
    server.engine.terminate().expect(0);
}

#[test]
fn until_models_are_warm_callers_are_told_to_wait() {
    let folder = Folder::with_graph(GRAPH);
    let mut engine = folder.run(&["--predict-model", "person"]);
    let address = engine.address();
    let png = encoded(&DynamicImage::new_rgb8(40, 30), ImageFormat::Png);
    // However late this looks, it sees only what may be: loading for a while, then an answer.
    wait_for("an answer", || {
        let answer = post(&address, "?model=person", "image/png", &png);
        match answer.status {
            200 => Some(()),
            503 => {
                assert_eq!(answer.headers["retry-after"], "1");
                assert!(answer.body["error"].as_str().expect("text").contains("is being loaded"), "{}", answer.body);
                None
            }
            status => panic!("{status}: {}", answer.body),
        }
    });
    let unnamed = post(&address, "", "image/png", &png);
    assert_eq!(unnamed.status, 400);
    assert!(unnamed.body["hint"].as_str().expect("text").contains("person, shapes"), "{}", unnamed.body);
    engine.terminate().expect(0);
}

#[test]
fn a_model_that_is_not_there_is_named_at_the_start() {
    let ended = Folder::with_graph(GRAPH).run(&["--predict-model", "shaeps"]).finish().expect(1);
    assert!(ended.stderr.contains("there is no model `shaeps`"), "{}", ended.stderr);
    assert!(ended.stderr.contains("did you mean `shapes`?"), "{}", ended.stderr);
}

#[test]
fn without_any_model_the_answer_says_how_to_get_one() {
    let folder = Folder::with_graph(
        "[sources.scene]\ntype = 'synthetic'\nwidth = 64\nheight = 48\n[operators.sum]\ntype = 'checksum'\n\
         inputs = ['scene']\n[sinks.out]\ntype = 'blackhole'\ninputs = ['sum']\n",
    );
    let mut engine = folder.run(&[]);
    let answer = post(&engine.address(), "", "image/png", b"x");
    assert_eq!(answer.status, 404);
    assert!(answer.body["hint"].as_str().expect("text").contains("--predict-model"), "{}", answer.body);
    engine.terminate().expect(0);
}
