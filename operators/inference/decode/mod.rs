//! What the outputs of models mean: pure functions from slices to predictions and boxes.
//!
//! Whatever the numbers are (NaN, infinities, any bytes), nothing here panics, scores that come out are finite and in
//! 0..1, and boxes are finite.

pub mod boxes_labels_scores;
pub mod nms;
pub mod softmax;
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
