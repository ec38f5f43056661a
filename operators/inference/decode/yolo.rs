//! The heads of YOLOv5 and YOLOv8 as their exporters write them: boxes are decoded in the graph of the model, into
//! centre and size in pixels of the input; sigmoid is applied to all scores.
//!
//! YOLOv5 (also v7): rows `[boxes, 5 + classes]` of cx, cy, w, h, objectness, class scores; score = objectness x class
//! score. YOLOv8 (also v9, v11): the columns of `[4 + classes, boxes]` are boxes, without objectness; score = class
//! score.

use crate::inference::decode::{Candidate, WrongLength, best_class};

/// Columns of a row of YOLOv5 in front of the class scores.
pub const V5_COLUMNS: usize = 5;
/// Planes of YOLOv8 in front of the class scores.
pub const V8_PLANES: usize = 4;

/// Decodes rows of YOLOv5 into candidates with a score of `threshold` or more, one at most for each row: its best
/// class.
pub fn decode_v5(values: &[f32], classes: usize, threshold: f32) -> Result<Vec<Candidate>, WrongLength> {
    let columns = V5_COLUMNS + classes;
    WrongLength::check(values.len().next_multiple_of(columns), values.len())?;
    let decode = |row: &[f32]| {
        // Class scores are at most 1, so most rows need no look at their classes. NaN compares false.
        let promising = row[4] >= threshold;
        let (class, score) = promising.then(|| best_class(row[V5_COLUMNS..].iter().copied()))?;
        let score = (row[4].clamp(0.0, 1.0) * score.min(1.0)).max(0.0);
        Candidate::centred(class, score, [row[0], row[1]], [row[2], row[3]]).filter(|found| found.score >= threshold)
    };
    Ok(values.chunks_exact(columns).filter_map(decode).collect())
}

/// Decodes the planes of YOLOv8 into candidates with a score of `threshold` or more, one at most for each box: its
/// best class.
pub fn decode_v8(values: &[f32], classes: usize, threshold: f32) -> Result<Vec<Candidate>, WrongLength> {
    let planes = V8_PLANES + classes;
    WrongLength::check(values.len().next_multiple_of(planes), values.len())?;
    let boxes = values.len() / planes;
    // Class by class, so that memory is read in its own order.
    let mut best = vec![(0, f32::NEG_INFINITY); boxes];
    for class in 0..classes {
        let scores = &values[(V8_PLANES + class) * boxes..][..boxes];
        for (best, score) in best.iter_mut().zip(scores) {
            if *score > best.1 {
                *best = (class, *score);
            }
        }
    }
    let decode = |(index, (class, score)): (usize, (usize, f32))| {
        let at = |plane: usize| values[plane * boxes + index];
        let promising = score >= threshold;
        let found = promising.then(|| Candidate::centred(class, score, [at(0), at(1)], [at(2), at(3)]))??;
        Some(found).filter(|found| found.score >= threshold)
    };
    Ok(best.into_iter().enumerate().filter_map(decode).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_v5_is_decoded_by_the_formula() {
        let values = [
            [100.0, 50.0, 40.0, 20.0, 0.5, 0.2, 0.8],
            [10.0, 10.0, 4.0, 4.0, 0.9, 0.3, 0.1],
            [10.0, 10.0, 4.0, 4.0, 0.2, 1.0, 1.0],
        ]
        .concat();
        let found = decode_v5(&values, 2, 0.25).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((found[0].class, found[0].bounds), (1, [80.0, 40.0, 120.0, 60.0]));
        assert!((found[0].score - 0.4).abs() < 1e-6 && (found[1].score - 0.27).abs() < 1e-6, "{found:?}");
        assert_eq!((found[1].class, found[1].bounds), (0, [8.0, 8.0, 12.0, 12.0]));
    }

    #[test]
    fn the_planes_of_v8_are_decoded_by_the_formula() {
        // Three boxes, two classes: cx, cy, w, h, first class, second class.
        let planes = [
            [100.0, 10.0, 5.0],
            [50.0, 10.0, 5.0],
            [40.0, 4.0, 2.0],
            [20.0, 4.0, 2.0],
            [0.1, 0.7, 0.2],
            [0.6, 0.7, 0.1],
        ];
        let found = decode_v8(&planes.concat(), 2, 0.5).unwrap();
        let first = Candidate { class: 1, score: 0.6, bounds: [80.0, 40.0, 120.0, 60.0] };
        // Of two equal scores the first class counts.
        let second = Candidate { class: 0, score: 0.7, bounds: [8.0, 8.0, 12.0, 12.0] };
        assert_eq!(found, [first, second]);
    }

    #[test]
    fn outputs_of_another_size_are_refused() {
        assert_eq!(decode_v5(&[0.0; 8], 2, 0.3).unwrap_err(), WrongLength { expected: 14, actual: 8 });
        assert_eq!(decode_v8(&[0.0; 8], 2, 0.3).unwrap_err(), WrongLength { expected: 12, actual: 8 });
        assert_eq!(decode_v5(&[], 2, 0.3).unwrap(), []);
        assert_eq!(decode_v8(&[], 2, 0.3).unwrap(), []);
    }

    #[test]
    fn a_box_turned_inside_out_is_no_candidate() {
        assert_eq!(decode_v5(&[1.0, 1.0, -4.0, 2.0, 1.0, 1.0], 1, 0.1).unwrap(), []);
        assert_eq!(decode_v8(&[1.0, 1.0, 4.0, f32::NAN, 1.0], 1, 0.1).unwrap(), []);
    }

    #[test]
    fn any_numbers_give_sound_candidates() {
        bolero::check!().with_type::<(Vec<f32>, f32)>().cloned().for_each(|(mut values, threshold)| {
            values.truncate(values.len() / 42 * 42);
            for found in [decode_v5(&values, 2, threshold), decode_v8(&values, 2, threshold)] {
                for candidate in found.unwrap() {
                    assert!((0.0..=1.0).contains(&candidate.score) && candidate.class < 2);
                    let [x1, y1, x2, y2] = candidate.bounds;
                    assert!(candidate.bounds.iter().all(|side| side.is_finite()) && x1 <= x2 && y1 <= y2);
                }
            }
        });
    }
}
