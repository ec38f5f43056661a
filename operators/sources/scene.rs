//! The rendered scene of the `synthetic` source: coloured circles, squares and triangles that bounce on straight lines
//! over a textured background, with their boxes as ground truth.
//!
//! The picture of frame n is a pure function of (seed, n, width, height, frame rate), in integer arithmetic only, so the
//! same bytes come out on every machine. Lengths are proportions of the picture: a seed shows about the same scene at
//! every size.

use std::ops::Range;

use crate::config::Rate;
use crate::item::{ColorMatrix, ColorRange, Frame, PictureBuffer, PixelFormat, TrueObject};

/// What may be in a scene, in the order of the `shapes` model's classes.
pub const LABELS: [&str; 3] = ["circle", "square", "triangle"];

/// Objects in one scene at most.
const MOST_OBJECTS: u64 = 6;

/// An object of which less than this share of its area is to be seen is not part of the truth.
const VISIBLE_PERCENT: i64 = 40;

/// Geometry is counted in 1/256 of a pixel.
const UNIT: i64 = 256;

/// Saturated colours as Y, U, V (BT.601, limited range). One scene uses each at most once.
const PALETTE: [[u8; 3]; 8] = [
    [81, 90, 240],   // red
    [145, 54, 34],   // green
    [41, 240, 110],  // blue
    [210, 16, 146],  // yellow
    [170, 166, 16],  // cyan
    [106, 202, 222], // magenta
    [146, 53, 193],  // orange
    [235, 128, 128], // white
];

/// A scene of fixed size: where its objects start and how they move, and the background, drawn once.
pub struct Scene {
    width: u32,
    height: u32,
    rate: Rate,
    /// From back to front.
    objects: Vec<Object>,
    background: Planes,
}

impl Scene {
    /// The scene of `seed`, `width` x `height` pixels (both at least 1), `rate` pictures a second.
    pub fn new(seed: u64, width: u32, height: u32, rate: Rate) -> Scene {
        let mut random = Random(seed);
        let texture = random.next();
        let mut colors = PALETTE;
        let count = 1 + random.below(MOST_OBJECTS) as usize;
        let objects = (0..count)
            .map(|index| {
                let unused = (PALETTE.len() - index) as u64;
                colors.swap(index, index + random.below(unused) as usize);
                Object::random(&mut random, colors[index], width, height)
            })
            .collect();
        Scene { width, height, rate, objects, background: background(texture, width, height) }
    }

    /// Draws picture `n`: YUV 4:2:0, BT.601, limited range, with its truth and without an index.
    pub fn picture(&self, n: u64) -> Frame {
        let placed: Vec<Placed> = self.objects.iter().map(|object| object.at(n, self)).collect();
        let mut planes = self.background.clone();
        for object in &placed {
            object.draw(&mut planes);
        }
        let truth = (0..placed.len()).filter_map(|index| self.truth(&placed[index], &placed[index + 1..])).collect();
        Frame {
            width: self.width,
            height: self.height,
            format: PixelFormat::Yuv420p,
            matrix: ColorMatrix::Bt601,
            range: ColorRange::Limited,
            buffer: Box::new(planes),
            index: None,
            truth: Some(truth),
        }
    }

    /// What is true of `object` when those `in_front` cover it: nothing where too little is to be seen.
    fn truth(&self, object: &Placed, in_front: &[Placed]) -> Option<TrueObject> {
        let rows = object.rows();
        let area: i64 = rows.clone().map(|y| length(&object.span(y))).sum();
        let (mut visible, mut covers) = (0, Vec::new());
        let (mut left, mut top, mut right, mut bottom) = (i64::MAX, i64::MAX, i64::MIN, i64::MIN);
        for y in clip(&rows, i64::from(self.height)) {
            let span = clip(&object.span(y), i64::from(self.width));
            if span.is_empty() {
                continue;
            }
            (left, right) = (left.min(span.start), right.max(span.end));
            (top, bottom) = (top.min(y), y + 1);
            covers.clear();
            covers.extend(in_front.iter().filter(|other| other.rows().contains(&y)).map(|other| other.span(y)));
            visible += uncovered(&span, &mut covers);
        }
        let enough = visible > 0 && visible * 100 >= area * VISIBLE_PERCENT;
        enough.then(|| TrueObject {
            label: LABELS[object.object.shape as usize],
            bounds: [left, top, right, bottom].map(|edge| edge as f32),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Circle,
    Square,
    /// As wide as high, with a horizontal side.
    Triangle,
}

/// Something that moves. Lengths are in 1/256 of a pixel.
#[derive(Clone, Copy, Debug)]
struct Object {
    shape: Shape,
    /// Triangles: the horizontal side is above.
    upside_down: bool,
    color: [u8; 3],
    /// Half of the side of its bounding square.
    half: i64,
    /// Where the centre would be at frame 0 on an endless line, and its speed along it, a second; per axis.
    start: [i64; 2],
    speed: [i64; 2],
}

impl Object {
    fn random(random: &mut Random, color: [u8; 3], width: u32, height: u32) -> Object {
        let (limits, side) = ([width, height].map(i64::from), i64::from(width.min(height)));
        let shape = [Shape::Circle, Shape::Square, Shape::Triangle][random.below(3) as usize];
        let upside_down = random.below(2) == 1;
        let thousandths = 80 + random.below(271) as i64;
        let half = side * UNIT * thousandths / 2000;
        // Twice the picture's size: the way there and the way back.
        let start = limits.map(|limit| 2 * limit * UNIT * random.below(65_536) as i64 / 65_536);
        let speed = [0; 2].map(|_: i64| side * UNIT * (50 + random.below(451) as i64) / 1000);
        Object { shape, upside_down, color, half, start, speed }
    }

    /// Where it is in frame `n`: its centre stays on the picture.
    fn at(&self, n: u64, scene: &Scene) -> Placed<'_> {
        let limits = [scene.width, scene.height];
        let center = std::array::from_fn(|axis| {
            let travelled = i128::from(self.speed[axis]) * i128::from(n) * i128::from(scene.rate.denominator)
                / i128::from(scene.rate.numerator);
            let limit = i128::from(limits[axis]) * i128::from(UNIT);
            let there_and_back = (i128::from(self.start[axis]) + travelled) % (2 * limit);
            // At most 2 * 2^32 * 256, so it fits.
            if there_and_back > limit { (2 * limit - there_and_back) as i64 } else { there_and_back as i64 }
        });
        Placed { object: self, center }
    }
}

/// An object in one picture.
struct Placed<'a> {
    object: &'a Object,
    center: [i64; 2],
}

impl Placed<'_> {
    /// The rows of pixels whose centres it covers; may reach beyond the picture.
    fn rows(&self) -> Range<i64> {
        pixels(self.center[1] - self.object.half, self.center[1] + self.object.half)
    }

    /// The pixels of row `y` whose centres it covers; may reach beyond the picture.
    fn span(&self, y: i64) -> Range<i64> {
        let half = self.object.half;
        let down = y * UNIT + UNIT / 2 - self.center[1];
        let reach = match self.object.shape {
            Shape::Circle => (half * half - down * down).max(0).isqrt(),
            Shape::Square => half,
            Shape::Triangle if self.object.upside_down => (half - down) / 2,
            Shape::Triangle => (half + down) / 2,
        };
        pixels(self.center[0] - reach, self.center[0] + reach)
    }

    fn draw(&self, planes: &mut Planes) {
        let (rows, [luma, u, v]) = (self.rows(), self.object.color);
        let height = length(&rows);
        let (widths, heights) = (planes.widths, planes.heights);
        for y in clip(&rows, heights[0]) {
            // Lit from above.
            let light = 16 - 40 * (y - rows.start) / height;
            let shade = (i64::from(luma) + light).clamp(16, 235) as u8;
            planes.row(0, y)[index(&clip(&self.span(y), widths[0]))].fill(shade);
        }
        for y in clip(&(half_up(rows.start)..half_up(rows.end)), heights[1]) {
            let span = self.span(2 * y);
            let span = index(&clip(&(half_up(span.start)..half_up(span.end)), widths[1]));
            planes.row(1, y)[span.clone()].fill(u);
            planes.row(2, y)[span].fill(v);
        }
    }
}

/// The pixels whose centres lie in `from..to`, given in 1/256 of a pixel.
fn pixels(from: i64, to: i64) -> Range<i64> {
    let first_centre_at = |position: i64| (position + UNIT / 2 - 1).div_euclid(UNIT);
    first_centre_at(from)..first_centre_at(to)
}

/// The chroma sample that belongs to luma sample `position`, or the next one.
fn half_up(position: i64) -> i64 {
    (position + 1).div_euclid(2)
}

fn clip(range: &Range<i64>, limit: i64) -> Range<i64> {
    range.start.clamp(0, limit)..range.end.clamp(0, limit)
}

fn length(range: &Range<i64>) -> i64 {
    (range.end - range.start).max(0)
}

/// A clipped range as an index; an inverted one is empty.
fn index(range: &Range<i64>) -> Range<usize> {
    range.start as usize..range.end.max(range.start) as usize
}

/// How much of `span` none of `covers` covers; sorts `covers`.
fn uncovered(span: &Range<i64>, covers: &mut [Range<i64>]) -> i64 {
    covers.sort_unstable_by_key(|cover| cover.start);
    let (mut position, mut free) = (span.start, 0);
    for cover in covers.iter() {
        free += (cover.start.min(span.end) - position).max(0);
        position = position.max(cover.end);
    }
    free + (span.end - position).max(0)
}

/// The three planes of a picture, one behind the other, without padding.
#[derive(Clone)]
struct Planes {
    data: Vec<u8>,
    offsets: [usize; 4],
    widths: [i64; 3],
    heights: [i64; 3],
}

impl Planes {
    fn new(width: u32, height: u32) -> Planes {
        let size = |plane| PixelFormat::Yuv420p.plane_size(plane, width, height);
        let mut offsets = [0; 4];
        for plane in 0..3 {
            offsets[plane + 1] = offsets[plane] + size(plane).0 * size(plane).1;
        }
        Planes {
            data: vec![0; offsets[3]],
            offsets,
            widths: std::array::from_fn(|plane| size(plane).0 as i64),
            heights: std::array::from_fn(|plane| size(plane).1 as i64),
        }
    }

    fn row(&mut self, plane: usize, y: i64) -> &mut [u8] {
        let width = self.widths[plane] as usize;
        let start = self.offsets[plane] + y as usize * width;
        &mut self.data[start..start + width]
    }
}

impl PictureBuffer for Planes {
    fn plane(&self, index: usize) -> &[u8] {
        &self.data[self.offsets[index]..self.offsets[index + 1]]
    }

    fn stride(&self, index: usize) -> usize {
        self.widths[index] as usize
    }
}

/// Draws the background: soft blobs of two sizes over a base colour, and in luma also a gradient and grain.
fn background(seed: u64, width: u32, height: u32) -> Planes {
    let mut random = Random(seed);
    let side = width.min(height) as usize;
    let mut planes = Planes::new(width, height);
    for plane in 0..3 {
        let luma = plane == 0;
        let base = if luma { 80 + random.below(70) as i32 } else { 112 + random.below(33) as i32 };
        let [across, down] = [0; 2].map(|_: i32| if luma { random.below(81) as i32 - 40 } else { 0 });
        let (columns, rows) = (planes.widths[plane] as usize, planes.heights[plane] as usize);
        let cell = |fraction: usize| (side / if luma { fraction } else { 2 * fraction }).max(1);
        let coarse = Noise::new(&mut random, cell(4), columns, rows, if luma { 50 } else { 30 });
        let fine = Noise::new(&mut random, cell(14), columns, rows, if luma { 30 } else { 20 });
        let (mut first, mut second) = (vec![0; columns], vec![0; columns]);
        let (lowest, highest) = if luma { (16, 235) } else { (16, 240) };
        for y in 0..rows {
            coarse.row(y, &mut first);
            fine.row(y, &mut second);
            let slope = base + down * (2 * y as i32 - rows as i32) / rows as i32 - across;
            let step = ((2 * across) << 16) / columns as i32;
            let mut gradient = slope << 16;
            for ((sample, a), b) in planes.row(plane, y as i64).iter_mut().zip(&first).zip(&second) {
                let grain = if luma { (random.next() >> 61) as i32 - 4 } else { 0 };
                *sample = ((gradient >> 16) + a + b + grain).clamp(lowest, highest) as u8;
                gradient += step;
            }
        }
    }
    planes
}

/// Value noise: random values on a grid, bilinear in between.
struct Noise {
    cell: usize,
    columns: usize,
    grid: Vec<i32>,
}

impl Noise {
    /// Noise in `-amplitude..=amplitude` over `width` x `height` samples, one grid value every `cell` samples.
    fn new(random: &mut Random, cell: usize, width: usize, height: usize, amplitude: i32) -> Noise {
        let (columns, rows) = (width / cell + 2, height / cell + 2);
        let value = |_| random.below(2 * amplitude as u64 + 1) as i32 - amplitude;
        Noise { cell, columns, grid: (0..columns * rows).map(value).collect() }
    }

    fn row(&self, y: usize, out: &mut [i32]) {
        let (above, part, cell) = (y / self.cell * self.columns, (y % self.cell) as i32, self.cell as i32);
        // In 1/65536, so that steps along the row add up without visible error.
        let at = |column: usize| {
            let (a, b) = (self.grid[above + column], self.grid[above + self.columns + column]);
            ((a * (cell - part) + b * part) << 16) / cell
        };
        for (column, samples) in out.chunks_mut(self.cell).enumerate() {
            let (mut value, step) = (at(column), (at(column + 1) - at(column)) / cell);
            for sample in samples {
                *sample = value >> 16;
                value += step;
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number under `limit`, which is small: the bias is under `limit` / 2^64.
    fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The seed of a named stream of a source that has several: other streams of the same `seed` show other scenes.
pub fn stream_seed(seed: u64, stream: &str) -> u64 {
    stream.bytes().fold(mix(seed ^ 0x7374_7265_616d), |state, byte| mix(state ^ u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use md5::{Digest, Md5};
    use proptest::prelude::*;

    const RATE: Rate = Rate { numerator: 30, denominator: 1 };

    fn md5(picture: &Frame) -> String {
        let mut hash = Md5::new();
        for plane in 0..3 {
            picture.rows(plane).for_each(|row| hash.update(row));
        }
        hex::encode(hash.finalize())
    }

    fn truth(picture: &Frame) -> &[TrueObject] {
        picture.truth.as_deref().unwrap()
    }

    /// A scene with these objects alone, on a background of zeros, so that every drawn sample stands out.
    fn bare(width: u32, height: u32, objects: Vec<Object>) -> Scene {
        Scene { width, height, rate: RATE, objects, background: Planes::new(width, height) }
    }

    fn still(shape: Shape, side: i64, center: [i64; 2]) -> Object {
        let start = center.map(|pixels| pixels * UNIT);
        Object { shape, upside_down: false, color: PALETTE[0], half: side * UNIT / 2, start, speed: [0; 2] }
    }

    /// The box round every luma sample that was drawn on a bare scene.
    fn drawn(picture: &Frame) -> [f32; 4] {
        let mut bounds = [f32::MAX, f32::MAX, f32::MIN, f32::MIN];
        for (y, row) in picture.rows(0).enumerate() {
            for (x, _) in row.iter().enumerate().filter(|(_, sample)| **sample != 0) {
                let (x, y) = (x as f32, y as f32);
                bounds = [bounds[0].min(x), bounds[1].min(y), bounds[2].max(x + 1.0), bounds[3].max(y + 1.0)];
            }
        }
        bounds
    }

    #[test]
    fn the_same_seed_and_number_give_the_same_bytes_on_every_machine() {
        let digests = [(0, 640, 360, 0), (0, 640, 360, 1000), (7, 641, 361, 1 << 40), (1, 1, 1, 3)]
            .map(|(seed, width, height, n)| md5(&Scene::new(seed, width, height, RATE).picture(n)));
        assert_eq!(
            digests,
            [
                "703be708b6d59449508e666d6f8141b8",
                "c4b51e31c052783c49d5093743fd4dd6",
                "a35399a5de5f9a29fc60652743afec39",
                "8309d5c6659aee62c813577836972181"
            ]
        );
    }

    #[test]
    fn pictures_do_not_depend_on_which_were_drawn_before() {
        let scene = Scene::new(3, 320, 180, RATE);
        let late = md5(&scene.picture(500));
        scene.picture(2);
        assert_eq!(md5(&scene.picture(500)), late);
        assert_ne!(md5(&scene.picture(501)), late);
    }

    #[test]
    fn other_seeds_show_other_scenes() {
        let digests: std::collections::HashSet<String> =
            (0..50).map(|seed| md5(&Scene::new(seed, 64, 36, RATE).picture(0))).collect();
        assert_eq!(digests.len(), 50);
        assert_ne!(stream_seed(0, "a"), stream_seed(0, "b"));
        assert_ne!(stream_seed(0, "a"), stream_seed(1, "a"));
    }

    #[test]
    fn motion_depends_on_time_alone() {
        let slow = Scene::new(5, 320, 180, RATE).picture(300);
        let fast = Scene::new(5, 320, 180, Rate { numerator: 60, denominator: 1 }).picture(600);
        assert_eq!(md5(&slow), md5(&fast));
    }

    #[test]
    fn a_box_encloses_exactly_what_was_drawn() {
        for shape in [Shape::Circle, Shape::Square, Shape::Triangle] {
            for (side, center) in [(20, [50, 40]), (21, [49, 33]), (30, [0, 40]), (30, [97, 70]), (13, [60, 2])] {
                let picture = bare(100, 80, vec![still(shape, side, center)]).picture(0);
                let [object] = truth(&picture) else { panic!("{shape:?} {side} {center:?}: {picture:?}") };
                assert_eq!(object.bounds, drawn(&picture), "{shape:?} {side} {center:?}");
                assert_eq!(object.label, LABELS[shape as usize]);
            }
        }
    }

    #[test]
    fn shapes_have_their_area() {
        let area = |shape| {
            let picture = bare(200, 200, vec![still(shape, 100, [100, 100])]).picture(0);
            picture.rows(0).flatten().filter(|sample| **sample != 0).count() as f64
        };
        assert_eq!(area(Shape::Square), 10_000.0);
        assert!((area(Shape::Triangle) - 5_000.0).abs() < 60.0);
        assert!((area(Shape::Circle) - std::f64::consts::PI * 2_500.0).abs() < 60.0);
    }

    #[test]
    fn colours_cover_their_shape_in_every_plane() {
        let picture = bare(100, 80, vec![still(Shape::Square, 20, [50, 40])]).picture(0);
        for (plane, color) in [(1, PALETTE[0][1]), (2, PALETTE[0][2])] {
            let samples: Vec<u8> = picture.rows(plane).flatten().copied().filter(|sample| *sample != 0).collect();
            assert_eq!(samples, vec![color; 100], "plane {plane}");
        }
    }

    #[test]
    fn what_is_mostly_hidden_is_not_part_of_the_truth() {
        let front = still(Shape::Square, 40, [50, 40]);
        let labels = |back: Object| {
            let picture = bare(100, 80, vec![back, front]).picture(0);
            truth(&picture).iter().map(|object| object.label).collect::<Vec<_>>()
        };
        assert_eq!(labels(still(Shape::Circle, 20, [50, 40])), ["square"], "behind the square");
        assert_eq!(labels(still(Shape::Circle, 20, [70, 40])), ["circle", "square"], "half behind the square");
        assert_eq!(labels(still(Shape::Circle, 20, [90, 40])), ["circle", "square"], "beside the square");
        assert_eq!(labels(still(Shape::Circle, 20, [100, 80])), ["square"], "three quarters outside");
    }

    #[test]
    fn covers_that_overlap_count_once() {
        assert_eq!(uncovered(&(0..10), &mut [4..6, 2..5, -3..1, 9..20]), 1 + 3);
        assert_eq!(uncovered(&(0..10), &mut []), 10);
        assert_eq!(uncovered(&(0..10), &mut [-5..4, 2..30]), 0);
        assert_eq!(uncovered(&(3..7), &mut [0..2, 8..9]), 4);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_picture_is_legal(
            seed: u64,
            n: u64,
            width in 1u32..130,
            height in 1u32..130,
            numerator in 1u64..60_000,
            denominator in 1u64..2_000,
        ) {
            let picture = Scene::new(seed, width, height, Rate { numerator, denominator }).picture(n);
            prop_assert_eq!(picture.bytes(), PixelFormat::Yuv420p.bytes(width, height));
            for plane in 0..3 {
                let highest = if plane == 0 { 235 } else { 240 };
                prop_assert!(picture.rows(plane).flatten().all(|sample| (16..=highest).contains(sample)));
            }
            for object in truth(&picture) {
                let [x1, y1, x2, y2] = object.bounds;
                prop_assert!(0.0 <= x1 && x1 < x2 && x2 <= width as f32);
                prop_assert!(0.0 <= y1 && y1 < y2 && y2 <= height as f32);
            }
        }
    }
}
