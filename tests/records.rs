//! What the engine writes is what `docs/record.schema.json` and `docs/records.md` say.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use operators::item::{
    Content, Detection, ModelName, Origin, Prediction, Record, RecordBody, Segment, SegmentStatus, StreamId, WallTime,
};
use operators::time::MediaTime;
use serde_json::{Value, json};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn schema() -> jsonschema::Validator {
    let schema: Value = serde_json::from_str(&read("docs/record.schema.json")).unwrap();
    jsonschema::draft202012::meta::validate(&schema).unwrap();
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

fn mistakes(schema: &jsonschema::Validator, record: &Value) -> Vec<String> {
    schema.iter_errors(record).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// One record of each kind, as operators and sinks make them.
fn records() -> Vec<Value> {
    let origin = Origin { graph: "door".into(), node: "people".into() };
    let stream = StreamId::new("front").unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_772_366_400_500);
    let model = || ModelName { name: "yolox_nano".into(), sha256: "0f".repeat(32).into() };
    let result = |body: RecordBody| Record {
        id: "door/people/front/30".to_owned(),
        pts: Some(1.001),
        frame: Some(30),
        width: Some(1920),
        height: Some(1080),
        timing_ms: BTreeMap::from([("infer", 4.4)]),
        ..origin.signal(&stream, Some(30), time, body)
    };
    let detection = Detection { label: "person".into(), index: 0, score: 0.83, bounds: [0.0, 208.25, 590.0, 1003.5] };
    let records = [
        result(RecordBody::Classification {
            model: model(),
            predictions: vec![Prediction { label: "tabby".into(), index: 281, score: 0.7 }],
        }),
        result(RecordBody::Detection {
            model: model(),
            detections: vec![detection],
            counts: BTreeMap::from([("person".into(), 1)]),
            has: BTreeMap::from([("person".into(), true)]),
        }),
        result(RecordBody::Detection {
            model: model(),
            detections: Vec::new(),
            counts: BTreeMap::new(),
            has: BTreeMap::new(),
        }),
        result(RecordBody::Checksum { md5: "0".repeat(32) }),
        Record { fallback: true, ..result(RecordBody::Checksum { md5: "1".repeat(32) }) },
        result(RecordBody::Segment(segment().status("made"))),
        result(RecordBody::Segment(by_wall(time).status("made"))),
        result(RecordBody::Segment(SegmentStatus {
            location: Some("s3://archive/front_chunk_0001.mp4".to_owned()),
            summary: Some("A car arrives.".to_owned()),
            ..segment().status("stored")
        })),
        result(RecordBody::Segment(SegmentStatus {
            vss_id: Some("3f2a".to_owned()),
            code: Some("InvalidFile".to_owned()),
            message: Some("no video".to_owned()),
            ..segment().status("failed")
        })),
        result(RecordBody::Error { message: "panicked".to_owned() }),
        origin.signal(&stream, Some(31), time, RecordBody::Gap { reason: "connection lost".to_owned() }),
        origin.signal(&stream, None, time, RecordBody::Gap { reason: "connection lost".to_owned() }),
        origin.signal(
            &stream,
            None,
            time,
            RecordBody::Status { state: "failed".to_owned(), reason: Some("no such file".to_owned()) },
        ),
        origin.signal(&stream, None, time, RecordBody::Status { state: "running".to_owned(), reason: None }),
    ];
    records.iter().map(|record| serde_json::to_value(record).unwrap()).collect()
}

fn segment() -> Segment {
    Segment {
        origin: Origin { graph: "archive".into(), node: "chunks".into() },
        name: "front_chunk_0001.mp4".to_owned(),
        index: 1,
        media_type: "video/mp4",
        start: MediaTime::from_micros(30_000_000),
        end: MediaTime::from_micros(60_000_000),
        wall: None,
        follows: true,
        sha256: "0".repeat(64),
        lineage: None,
        content: Content::Memory(Bytes::from_static(b"ftyp")),
    }
}

fn by_wall(start: SystemTime) -> Segment {
    Segment { wall: Some(WallTime { start, end: start + Duration::from_secs(30) }), ..segment() }
}

fn kinds_of<'a>(records: impl IntoIterator<Item = &'a Value>) -> BTreeSet<&'a str> {
    records.into_iter().map(|record| record["kind"].as_str().unwrap()).collect()
}

#[test]
fn every_kind_of_record_follows_the_schema() {
    let schema = schema();
    for record in records() {
        assert_eq!(mistakes(&schema, &record), [""; 0], "{record:#}");
    }
    let text: Value = serde_json::from_str(&read("docs/record.schema.json")).unwrap();
    let declared: BTreeSet<_> =
        text["properties"]["kind"]["enum"].as_array().unwrap().iter().map(|kind| kind.as_str().unwrap()).collect();
    assert_eq!(kinds_of(&records()), declared);
}

#[test]
fn the_schema_documents_every_property() {
    let text: Value = serde_json::from_str(&read("docs/record.schema.json")).unwrap();
    for (name, property) in text["properties"].as_object().unwrap() {
        assert!(property["description"].is_string(), "`{name}` has no description");
    }
}

#[test]
fn the_schema_refuses_what_is_no_record() {
    let schema = schema();
    for record in records() {
        for (name, _) in record.as_object().unwrap() {
            let optional = [
                "frame",
                "width",
                "height",
                "timing_ms",
                "has",
                "seq",
                "pts",
                "fallback",
                "location",
                "vss_id",
                "code",
                "summary",
            ]
            .contains(&name.as_str())
                || (record["kind"] == "segment" && name == "message")
                || (record["kind"] == "status" && name == "reason");
            let mut less = record.clone();
            less.as_object_mut().unwrap().remove(name);
            assert!(optional || !schema.is_valid(&less), "valid without `{name}`: {less:#}");
            let mut other = record.clone();
            other[name] = json!([[]]);
            assert!(!schema.is_valid(&other), "`{name}` may be anything: {other:#}");
        }
        let mut more = record.clone();
        more["colour"] = json!("red");
        assert!(!schema.is_valid(&more));
        let mut relabelled = record.clone();
        relabelled["kind"] = json!(if record["kind"] == "gap" { "error" } else { "gap" });
        assert!(!schema.is_valid(&relabelled), "{relabelled:#}");
    }
}

#[test]
fn the_examples_of_the_documentation_follow_the_schema() {
    let schema = schema();
    let text = read("docs/records.md");
    let examples: Vec<Value> = text
        .split("```json\n")
        .skip(1)
        .map(|block| serde_json::from_str(block.split("```").next().unwrap()).unwrap())
        .collect();
    for example in &examples {
        assert_eq!(mistakes(&schema, example), [""; 0], "{example:#}");
        let name = |part: &str| example[part].as_str().unwrap();
        let owner = format!("{}/{}/{}/", name("graph"), name("node"), name("stream"));
        assert!(name("id").starts_with(&owner), "{example:#}");
    }
    assert_eq!(kinds_of(&examples), kinds_of(&records()));
}
