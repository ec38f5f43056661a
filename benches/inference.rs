//! One thread's stages of inference: preprocessing a decoded picture, running a model, reading its output.
//!
//! Models come from the usual search path (`ENGINE_MODELS`); those that are missing are left out with a word.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use operators::inference::decode::{Candidate, nms, softmax, yolox};
use operators::inference::manifest::{InputFields, InputSize};
use operators::inference::model::Catalog;
use operators::inference::session::{InputValues, Sessions};
use operators::item::{ColorMatrix, ColorRange, Frame, PictureBuffer, PixelFormat};
use operators::transforms::preprocess::kernel::Preprocessor;

/// Planes as a decoder lays them out, rows aligned to 64 bytes.
struct Planes(Vec<(Vec<u8>, usize)>);

impl PictureBuffer for Planes {
    fn plane(&self, index: usize) -> &[u8] {
        &self.0[index].0
    }

    fn stride(&self, index: usize) -> usize {
        self.0[index].1
    }
}

fn picture(format: PixelFormat, width: u32, height: u32) -> Frame {
    let plane = |index| {
        let (row, rows) = format.plane_size(index, width, height);
        let stride = row.next_multiple_of(64);
        ((0..stride * rows).map(|at| (at % 251) as u8).collect(), stride)
    };
    Frame {
        width,
        height,
        format,
        matrix: ColorMatrix::Bt709,
        range: ColorRange::Limited,
        buffer: Box::new(Planes((0..format.planes()).map(plane).collect())),
        index: None,
        truth: None,
    }
}

const CROP: &str = "width = 224\nheight = 224\nresize = \"crop\"\nshorter_side = 256\n\
                    mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]";
const LETTERBOX: &str = "width = 416\nheight = 416\nresize = \"letterbox\"\nanchor = \"top_left\"\nrange = \"byte\"\n\
                         color = \"bgr\"\nantialias = false";

fn preprocess(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("preprocess 1280x720");
    let nhwc = format!("{CROP}\nlayout = \"nhwc\"");
    for (name, format, text) in [
        ("yuv420p to 224 crop", PixelFormat::Yuv420p, CROP),
        ("yuv420p to 224 crop, nhwc", PixelFormat::Yuv420p, &nhwc),
        ("nv12 to 224 crop", PixelFormat::Nv12, CROP),
        ("rgb24 to 224 crop", PixelFormat::Rgb24, CROP),
        ("yuv420p to 416 letterbox", PixelFormat::Yuv420p, LETTERBOX),
        ("yuv420p to its own size", PixelFormat::Yuv420p, ""),
    ] {
        let fields: InputFields = toml::from_str(text).expect("the fields are sound");
        let mut preprocessor = Preprocessor::new(fields.resolve().expect("the fields are sound"));
        let frame = picture(format, 1280, 720);
        let mut tensor = preprocessor.buffer();
        group.bench_function(name, |bencher| {
            bencher.iter(|| preprocessor.run(black_box(&frame), &mut tensor).expect("the picture is sound"));
        });
    }
    group.finish();
}

fn infer(criterion: &mut Criterion) {
    let catalog = Catalog::open(Catalog::search_path());
    let mut group = criterion.benchmark_group("infer");
    for name in ["mobilenet_v3_small", "mobilenet_v2", "yolox_nano"] {
        let session = catalog
            .get(name)
            .map_err(|error| error.to_string())
            .and_then(|model| Sessions::default().get(&Arc::clone(&model)).map_err(|error| error.to_string()));
        let session = match session {
            Ok(session) => session,
            Err(error) => {
                eprintln!("{name} is left out: {error}");
                continue;
            }
        };
        let input = session.borrow().model().input.clone();
        let InputSize::Fixed { width, height } = input.size else { continue };
        let shape = input.shape(width, height);
        let values = vec![0.5; shape.iter().product()];
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                session
                    .borrow_mut()
                    .run(shape, InputValues::F32(black_box(&values)), |_| Ok(()))
                    .expect("the model runs")
            });
        });
    }
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    let logits: Vec<f32> = (0..1000).map(|index| ((index * 37) % 101) as f32 / 10.0).collect();
    group.bench_function("softmax of 1000, top 5", |bencher| {
        bencher.iter(|| softmax::top(&softmax::softmax(black_box(&logits)), 5));
    });
    let strides = [8, 16, 32];
    let rows = yolox::rows(416, 416, &strides);
    // One cell in twenty is an object.
    let values: Vec<f32> = (0..rows * 85)
        .map(|at| match (at % 85, (at / 85) % 20) {
            (4, 0) => 0.9,
            (4, _) => 0.01,
            (0..4, _) => 0.5,
            (column, _) => (column % 7) as f32 / 10.0,
        })
        .collect();
    group.bench_function("yolox 416x416, 80 classes", |bencher| {
        bencher.iter(|| yolox::decode(black_box(&values), [416, 416], &strides, 80, 0.3));
    });
    let crowd: Vec<Candidate> = (0..300)
        .map(|index| {
            let (x, y) = ((index * 37 % 400) as f32, (index * 53 % 400) as f32);
            Candidate { class: index % 3, score: (index % 97) as f32 / 97.0, bounds: [x, y, x + 40.0, y + 60.0] }
        })
        .collect();
    group.bench_function("suppression of 300 boxes", |bencher| {
        bencher.iter(|| {
            let mut candidates = crowd.clone();
            nms::suppress(&mut candidates, 0.45);
            candidates
        });
    });
    group.finish();
}

criterion_group!(benches, preprocess, infer, decode);
criterion_main!(benches);
