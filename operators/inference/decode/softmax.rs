//! Classifiers: logits or scores to the best classes.

/// Turns logits into scores that sum to 1. A NaN counts as the smallest logit; infinite logits share everything.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().filter(|logit| !logit.is_nan()).fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| {
        if logit == largest {
            1.0
        } else if logit.is_nan() {
            0.0
        } else {
            (logit - largest).exp()
        }
    };
    let weights: Vec<f32> = logits.iter().map(|logit| weight(*logit)).collect();
    let sum: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let sum = if sum > 0.0 { sum } else { 1.0 };
    weights.into_iter().map(|weight| (f64::from(weight) / sum) as f32).collect()
}

/// The `count` best of `scores` as (index, score), the best first, of equal ones the one with the smaller index first.
/// Scores are clamped to 0..1; NaN counts as 0.
pub fn top(scores: &[f32], count: usize) -> Vec<(usize, f32)> {
    let clamped = |score: f32| if score.is_nan() { 0.0 } else { score.clamp(0.0, 1.0) };
    let mut best: Vec<(usize, f32)> = Vec::with_capacity(count.min(scores.len()) + 1);
    for (index, score) in scores.iter().map(|score| clamped(*score)).enumerate() {
        if best.len() == count && best.last().is_none_or(|worst| score <= worst.1) {
            continue;
        }
        let at = best.partition_point(|better| better.1 >= score);
        best.insert(at, (index, score));
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let scores = softmax(&[1.0, 2.0, 3.0]);
        for (score, expected) in scores.iter().zip([0.090_030_57, 0.244_728_48, 0.665_240_94]) {
            assert!((score - expected).abs() < 1e-6);
        }
        assert_eq!(top(&scores, 2), [(2, scores[2]), (1, scores[1])]);
        assert_eq!(top(&[0.5, 0.5, 0.7], 2), [(2, 0.7), (0, 0.5)]);
    }

    #[test]
    fn odd_numbers_are_no_scores() {
        assert_eq!(softmax(&[f32::NAN, f32::INFINITY, 3.0, f32::INFINITY]), [0.0, 0.5, 0.0, 0.5]);
        assert_eq!(softmax(&[f32::NAN, f32::NAN]), [0.0, 0.0]);
        assert_eq!(top(&[f32::NAN, 7.0, f32::NEG_INFINITY], 3), [(1, 1.0), (0, 0.0), (2, 0.0)]);
        assert_eq!(top(&[1.0], 0), []);
    }

    #[test]
    fn any_numbers_give_scores() {
        bolero::check!().with_type::<(Vec<f32>, u8)>().cloned().for_each(|(values, count)| {
            let scores = softmax(&values);
            assert_eq!(scores.len(), values.len());
            let sum: f32 = scores.iter().sum();
            assert!(values.is_empty() || sum == 0.0 || (sum - 1.0).abs() < 1e-3, "{sum}");
            for scores in [&scores, &values] {
                let best = top(scores, usize::from(count));
                assert_eq!(best.len(), scores.len().min(usize::from(count)));
                assert!(best.iter().all(|(_, score)| (0.0..=1.0).contains(score)));
                assert!(best.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            }
        });
    }
}
