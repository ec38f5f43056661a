//! The `shapes` model as it is shipped: its mean average precision on scenes that it was not trained on is what its
//! manifest says, measured through the same `detect` operator that graphs use.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails where something is missing")]

use std::path::Path;
use std::sync::Arc;

use operators::clock::{Clock, SimulatedClock};
use operators::config::Rate;
use operators::inference::decode::nms::intersection_over_union;
use operators::inference::model::Catalog;
use operators::inference::session::Sessions;
use operators::item::{Detection, Frame, Item, Origin, Payload, RecordBody, StreamId, TrueObject};
use operators::lease::{Account, Ack, Budget, Lease, Limits, Verdict};
use operators::operator::{BuildContext, Built, NoPublisher, Runner};
use operators::sources::scene::{LABELS, Scene};
use operators::time::MediaTime;
use operators::transforms::detect;

/// How far the measured number may lie from the manifest's.
const TOLERANCE: f64 = 0.02;

/// What the manifest's `[evaluation]` says.
struct Evaluation {
    first_seed: u64,
    seeds: u64,
    width: u32,
    height: u32,
    map50: f64,
}

impl Evaluation {
    fn of(model: &operators::inference::model::Model) -> Evaluation {
        let table = model.evaluation.as_ref().expect("the manifest has an [evaluation]");
        let integer = |name: &str| table[name].as_integer().and_then(|value| u64::try_from(value).ok()).unwrap();
        Evaluation {
            first_seed: integer("first_seed"),
            seeds: integer("seeds"),
            width: u32::try_from(integer("width")).unwrap(),
            height: u32::try_from(integer("height")).unwrap(),
            map50: table["map50"].as_float().unwrap(),
        }
    }
}

/// A picture's detections, best first, and its truth.
struct Judged {
    found: Vec<Detection>,
    truth: Vec<TrueObject>,
}

/// Average precision of one label at an IoU of 0.5 or more: the area under the precision of the ranked detections, made
/// monotonic, over their recall (all points, as PASCAL VOC since 2010). A true object counts once.
fn average_precision(pictures: &[Judged], label: &str) -> f64 {
    let mut ranked: Vec<(usize, &Detection)> = pictures
        .iter()
        .enumerate()
        .flat_map(|(index, picture)| picture.found.iter().map(move |found| (index, found)))
        .filter(|(_, found)| &*found.label == label)
        .collect();
    ranked.sort_by(|left, right| right.1.score.total_cmp(&left.1.score));
    let mut open: Vec<Vec<[f32; 4]>> = pictures
        .iter()
        .map(|picture| {
            picture.truth.iter().filter(|object| object.label == label).map(|object| object.bounds).collect()
        })
        .collect();
    let objects = open.iter().map(Vec::len).sum::<usize>() as f64;
    assert!(objects > 0.0, "there is no {label} in the held-out pictures");

    // Precision at each hit, in order of falling score.
    let (mut hits, mut precision) = (0.0, Vec::new());
    for (rank, (picture, found)) in ranked.iter().enumerate() {
        let overlap = |bounds: &[f32; 4]| intersection_over_union(*bounds, found.bounds);
        let best = (0..open[*picture].len())
            .max_by(|left, right| overlap(&open[*picture][*left]).total_cmp(&overlap(&open[*picture][*right])));
        if let Some(best) = best.filter(|best| overlap(&open[*picture][*best]) >= 0.5) {
            open[*picture].swap_remove(best);
            hits += 1.0;
            precision.push(hits / (rank + 1) as f64);
        }
    }
    let mut area = 0.0;
    let mut highest = 0f64;
    for value in precision.iter().rev() {
        highest = highest.max(*value);
        area += highest / objects;
    }
    area
}

fn mean_average_precision(pictures: &[Judged]) -> f64 {
    LABELS.iter().map(|label| average_precision(pictures, label)).sum::<f64>() / LABELS.len() as f64
}

fn detect(runner: &mut dyn Runner, frame: Frame) -> Vec<Detection> {
    let account = Arc::new(Account::default());
    account.read(1);
    let credit = Budget::new(Limits { items: 1, bytes: 1 }).try_acquire(1).unwrap();
    let item = Item {
        stream: StreamId::sanitised("held-out"),
        seq: 0,
        pts: MediaTime::ZERO,
        time: SimulatedClock::default().wall(),
        fallback: false,
        payload: Payload::Frame(Arc::new(frame)),
        lease: Lease::new(credit, Ack::new(&account, SimulatedClock::default().now())),
    };
    let payload = runner.run(&item).unwrap();
    item.lease.ack.settle(Verdict::Delivered);
    match payload {
        Payload::Record(record) => match &record.body {
            RecordBody::Detection { detections, .. } => detections.clone(),
            body => panic!("a detector made a {}", body.kind()),
        },
        other => panic!("a detector made {}", other.kind().plural()),
    }
}

#[test]
fn the_shipped_weights_find_what_the_manifest_says() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let catalog = Arc::new(Catalog::open([models]));
    let model = catalog.get("shapes").unwrap();
    let evaluation = Evaluation::of(&model);
    let context = BuildContext {
        origin: Origin { graph: "test".into(), node: "shapes".into() },
        folder: ".".into(),
        models: catalog,
        clock: Arc::new(SimulatedClock::default()),
        publisher: Arc::new(NoPublisher),
        progress: None,
        playlists: Arc::default(),
    };
    let table = toml::from_str("model = \"shapes\"\nthreshold = 0.01").unwrap();
    let Ok(Built::Pool(operator)) = (detect::REGISTRATION.build)(&context, table) else { panic!("no detector") };
    let mut runner = operator.runner(&mut Sessions::default()).unwrap();

    let rate = Rate { numerator: 30, denominator: 1 };
    let seeds = evaluation.first_seed..evaluation.first_seed + evaluation.seeds;
    let pictures: Vec<Judged> = seeds
        .map(|seed| {
            let frame = Scene::new(seed, evaluation.width, evaluation.height, rate).picture(0);
            let truth = frame.truth.clone().unwrap();
            Judged { found: detect(&mut *runner, frame), truth }
        })
        .collect();
    let measured = mean_average_precision(&pictures);
    assert!(
        (measured - evaluation.map50).abs() <= TOLERANCE,
        "mAP at IoU 0.5 is {measured:.4}, the manifest says {}",
        evaluation.map50
    );
}

#[test]
fn the_measure_itself_is_right() {
    let object = |left: f32| TrueObject { label: "circle", bounds: [left, 0.0, left + 10.0, 10.0] };
    let found = |left: f32, score: f32| Detection {
        label: "circle".into(),
        index: 0,
        score,
        bounds: [left, 0.0, left + 10.0, 10.0],
    };
    // Ranked: hit, miss, hit, a second answer for an object that was found, and one object that nobody found.
    let pictures = [
        Judged { found: vec![found(0.0, 0.9), found(50.0, 0.8), found(1.0, 0.3)], truth: vec![object(0.0)] },
        Judged { found: vec![found(22.0, 0.7)], truth: vec![object(20.0), object(70.0)] },
    ];
    let expected = (1.0 + 2.0 / 3.0) / 3.0;
    assert!((average_precision(&pictures, "circle") - expected).abs() < 1e-9);
}
