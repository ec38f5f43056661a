//! What the outputs of models mean: pure functions from slices to predictions and boxes.
//!
//! Whatever the numbers are (NaN, infinities, any bytes), nothing here panics, scores that come out are finite and in
//! 0..1, and boxes are finite.

pub mod boxes_labels_scores;
pub mod fastestdet;
pub mod nms;
pub mod softmax;
pub mod ssd;
pub mod yolo;
pub mod yolox;

/// A box that a detector proposes, in pixels of the model's input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Position of the label.
    pub class: usize,
    /// 0..1
    pub score: f32,
    /// `[x1, y1, x2, y2]`, finite, x1 <= x2 and y1 <= y2.
    pub bounds: [f32; 4],
}

impl Candidate {
    /// A box round a centre; `None` where score or box are no finite numbers, or the size is negative.
    fn centred(class: usize, score: f32, [x, y]: [f32; 2], [width, height]: [f32; 2]) -> Option<Candidate> {
        let bounds = [x - width / 2.0, y - height / 2.0, x + width / 2.0, y + height / 2.0];
        let sound = score.is_finite() && bounds.iter().all(|side| side.is_finite()) && width >= 0.0 && height >= 0.0;
        sound.then_some(Candidate { class, score: score.clamp(0.0, 1.0), bounds })
    }
}

/// The best of the scores of one cell and its position, of equal ones the first. NaN is never the best.
fn best_class(scores: impl IntoIterator<Item = f32>) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (class, score) in scores.into_iter().enumerate() {
        if score > best.1 {
            best = (class, score);
        }
    }
    best
}

/// Most candidates of one picture that are looked at; of more, the best scores count. It bounds the work of NMS, which
/// grows with the square.
pub const MOST_CANDIDATES: usize = 1000;

/// Sorts by score, the best first, and keeps [`MOST_CANDIDATES`]. The order of equal scores stays.
fn keep_best(candidates: &mut Vec<Candidate>) {
    candidates.sort_by(|left, right| right.score.total_cmp(&left.score));
    candidates.truncate(MOST_CANDIDATES);
}

/// An output does not have the size that it must have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the output has {actual} values where {expected} were expected")]
pub struct WrongLength {
    pub expected: usize,
    pub actual: usize,
}

impl WrongLength {
    fn check(expected: usize, actual: usize) -> Result<(), WrongLength> {
        if expected == actual { Ok(()) } else { Err(WrongLength { expected, actual }) }
    }
}
