//! Detectors with NMS in the graph (Faster R-CNN, SSD): boxes, labels and scores, ready to read.

use crate::inference::decode::{Candidate, WrongLength, keep_best};
use crate::inference::model::Labels;

/// Reads `boxes` (`[n, 4]`: x1, y1, x2, y2 in pixels of the input), `ids` (`[n]`, the model's own numbers) and
/// `scores` (`[n]`). What has no label, no sound box or a score under `threshold` is left out; the best come first.
pub fn decode(
    boxes: &[f32],
    ids: &[i64],
    scores: &[f32],
    labels: &Labels,
    threshold: f32,
) -> Result<Vec<Candidate>, WrongLength> {
    WrongLength::check(scores.len(), ids.len())?;
    WrongLength::check(scores.len() * 4, boxes.len())?;
    let mut candidates = Vec::new();
    for ((bounds, id), score) in boxes.chunks_exact(4).zip(ids).zip(scores) {
        let Some(class) = labels.position_of_id(*id) else { continue };
        let sound = bounds.iter().all(|side| side.is_finite()) && bounds[0] <= bounds[2] && bounds[1] <= bounds[3];
        // NaN compares false.
        if sound && *score >= threshold && *score >= 0.0 {
            let score = score.min(1.0);
            candidates.push(Candidate { class, score, bounds: [bounds[0], bounds[1], bounds[2], bounds[3]] });
        }
    }
    keep_best(&mut candidates);
    Ok(candidates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Labels {
        Labels::new(["cat", "dog"])
    }

    #[test]
    fn unknown_labels_and_low_scores_are_left_out() {
        let boxes = [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 9.0, 9.0, 5.0, 5.0, 6.0, 6.0, 5.0, 5.0, 6.0, 6.0];
        let found = decode(&boxes, &[1, 0, 7, 0], &[0.9, 0.95, 0.9, 0.1], &labels(), 0.3).unwrap();
        let first = Candidate { class: 0, score: 0.95, bounds: [0.0, 0.0, 9.0, 9.0] };
        let second = Candidate { class: 1, score: 0.9, bounds: [1.0, 2.0, 3.0, 4.0] };
        assert_eq!(found, [first, second]);
    }

    #[test]
    fn outputs_that_do_not_fit_together_are_refused() {
        assert!(decode(&[0.0; 4], &[0, 0], &[1.0], &labels(), 0.3).is_err());
        assert!(decode(&[0.0; 5], &[0], &[1.0], &labels(), 0.3).is_err());
        assert_eq!(decode(&[], &[], &[], &labels(), 0.3).unwrap(), []);
    }

    #[test]
    fn a_score_that_is_no_number_is_left_out() {
        assert_eq!(decode(&[0.0; 4], &[0], &[f32::NAN], &labels(), 0.0).unwrap(), []);
        assert_eq!(decode(&[0.0; 4], &[0], &[2.0], &labels(), 0.0).unwrap()[0].score, 1.0);
    }

    #[test]
    fn any_numbers_give_sound_candidates() {
        let labels = labels();
        bolero::check!().with_type::<(Vec<(f32, f32, f32, f32, i8, f32)>, f32)>().for_each(|(rows, threshold)| {
            let boxes: Vec<f32> = rows.iter().flat_map(|row| [row.0, row.1, row.2, row.3]).collect();
            let ids: Vec<i64> = rows.iter().map(|row| i64::from(row.4)).collect();
            let scores: Vec<f32> = rows.iter().map(|row| row.5).collect();
            for candidate in decode(&boxes, &ids, &scores, &labels, *threshold).unwrap() {
                assert!((0.0..=1.0).contains(&candidate.score) && candidate.class < 2);
                assert!(candidate.bounds.iter().all(|side| side.is_finite()));
            }
        });
    }
}
