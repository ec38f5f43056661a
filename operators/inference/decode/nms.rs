//! Non-maximum suppression: of boxes of one class that overlap, the best stays.

use crate::inference::decode::{Candidate, keep_best};

/// Intersection over union of two boxes `[x1, y1, x2, y2]`; 0 where either has no area.
pub fn intersection_over_union(a: [f32; 4], b: [f32; 4]) -> f32 {
    // In f64, so that areas of huge boxes do not overflow.
    let side = |low: f32, high: f32| (f64::from(high) - f64::from(low)).max(0.0);
    let area = |c: [f32; 4]| side(c[0], c[2]) * side(c[1], c[3]);
    let intersection = side(a[0].max(b[0]), a[2].min(b[2])) * side(a[1].max(b[1]), a[3].min(b[3]));
    let union = area(a) + area(b) - intersection;
    if union > 0.0 { (intersection / union) as f32 } else { 0.0 }
}

/// Greedy suppression per class: sorts by score, the best first, and removes every box that overlaps a better one of
/// its class by more than `threshold` (IoU).
pub fn suppress(candidates: &mut Vec<Candidate>, threshold: f32) {
    keep_best(candidates);
    let mut kept = 0;
    for index in 0..candidates.len() {
        let candidate = candidates[index];
        let overlaps = |better: &Candidate| {
            better.class == candidate.class && intersection_over_union(better.bounds, candidate.bounds) > threshold
        };
        if !candidates[..kept].iter().any(overlaps) {
            candidates[kept] = candidate;
            kept += 1;
        }
    }
    candidates.truncate(kept);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(class: usize, score: f32, bounds: [f32; 4]) -> Candidate {
        Candidate { class, score, bounds }
    }

    #[test]
    fn overlap_is_measured_by_area() {
        assert_eq!(intersection_over_union([0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]), 1.0 / 3.0);
        assert_eq!(intersection_over_union([0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 3.0, 2.0]), 0.0);
        assert_eq!(intersection_over_union([1.0; 4], [1.0; 4]), 0.0);
    }

    #[test]
    fn the_best_of_its_class_stays() {
        let mut candidates = vec![
            candidate(0, 0.5, [0.0, 0.0, 10.0, 10.0]),
            candidate(0, 0.9, [1.0, 0.0, 11.0, 10.0]),
            candidate(1, 0.4, [0.0, 0.0, 10.0, 10.0]),
            candidate(0, 0.3, [20.0, 0.0, 30.0, 10.0]),
        ];
        suppress(&mut candidates, 0.45);
        let left: Vec<(usize, f32)> = candidates.iter().map(|kept| (kept.class, kept.score)).collect();
        assert_eq!(left, [(0, 0.9), (1, 0.4), (0, 0.3)]);
    }

    proptest! {
        /// What stays is sorted, comes from the input, and does not overlap; what goes overlaps something better.
        #[test]
        fn suppression_is_what_it_says(
            boxes in proptest::collection::vec((0usize..3, 0f32..1.0, 0f32..50.0, 0f32..50.0, 0f32..30.0, 0f32..30.0), 0..60),
            threshold in 0f32..1.0,
        ) {
            let all: Vec<Candidate> =
                boxes.into_iter().map(|(class, score, x, y, w, h)| candidate(class, score, [x, y, x + w, y + h])).collect();
            let mut kept = all.clone();
            suppress(&mut kept, threshold);
            prop_assert!(kept.windows(2).all(|pair| pair[0].score >= pair[1].score));
            let beats = |better: &Candidate, other: &Candidate| {
                better.class == other.class && better.score >= other.score
                    && intersection_over_union(better.bounds, other.bounds) > threshold
            };
            for (index, one) in kept.iter().enumerate() {
                prop_assert!(all.contains(one));
                prop_assert!(!kept[..index].iter().any(|better| beats(better, one)));
            }
            for one in &all {
                prop_assert!(kept.contains(one) || kept.iter().any(|better| beats(better, one)));
            }
        }
    }
}
