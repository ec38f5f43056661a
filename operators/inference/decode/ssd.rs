//! The raw heads of SSD: offsets from anchors, and scores, before NMS.
//!
//! Each layer has a grid of cells and some sizes; every cell has an anchor of each size round its centre. Anchors stand
//! layer after layer, row-major over the cells, and of one cell in the order of the sizes. With the anchor (ax, ay, aw,
//! ah) and the variances v: centre = (ax + tx v0 aw, ay + ty v1 ah), size = (aw exp(tw v2), ah exp(th v3))
//! (Liu et al., "SSD: Single Shot MultiBox Detector", 2016, section 2.2).

use serde::Deserialize;

use crate::inference::decode::{Candidate, WrongLength, best_class, softmax};

/// One layer of anchors, as a manifest writes it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Columns and rows of cells.
    pub grid: [u32; 2],
    /// Width and height of each anchor of a cell, in pixels of the input.
    pub sizes: Vec<[f32; 2]>,
}

/// Order of the four offsets of a box.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Offsets {
    /// tx, ty, tw, th
    #[default]
    Xywh,
    /// ty, tx, th, tw (TensorFlow)
    Yxhw,
}

/// What still has to be done to the scores of an anchor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    #[default]
    Softmax,
    Sigmoid,
    None,
}

/// How the heads are read.
#[derive(Clone, Debug, PartialEq)]
pub struct Heads<'a> {
    pub layers: &'a [Layer],
    pub offsets: Offsets,
    pub variances: [f32; 4],
    pub activation: Activation,
    /// Whether the first score of each anchor is that of "nothing is here", which has no label.
    pub background: bool,
}

/// How many anchors `layers` have.
pub fn anchors(layers: &[Layer]) -> usize {
    layers.iter().map(|layer| layer.grid[0] as usize * layer.grid[1] as usize * layer.sizes.len()).sum()
}

/// Decodes `boxes` (`anchors x 4`) and `scores` (`anchors x classes`, one more with a background) of an input of
/// `width` x `height` pixels into candidates with a score of `threshold` or more, one at most for each anchor: its best
/// class.
pub fn decode(
    boxes: &[f32],
    scores: &[f32],
    [width, height]: [u32; 2],
    heads: &Heads<'_>,
    classes: usize,
    threshold: f32,
) -> Result<Vec<Candidate>, WrongLength> {
    let (anchors, skip) = (anchors(heads.layers), usize::from(heads.background));
    WrongLength::check(anchors * 4, boxes.len())?;
    WrongLength::check(anchors * (classes + skip), scores.len())?;
    let mut rows = boxes.as_chunks::<4>().0.iter().zip(scores.chunks_exact(classes + skip));
    let mut candidates = Vec::new();
    for layer in heads.layers {
        let [columns, down] = layer.grid;
        for (y, x) in (0..down).flat_map(|y| (0..columns).map(move |x| (y, x))) {
            let cell =
                [(x as f32 + 0.5) * width as f32 / columns as f32, (y as f32 + 0.5) * height as f32 / down as f32];
            for (size, (offsets, scores)) in layer.sizes.iter().zip(rows.by_ref()) {
                let (class, score) = match heads.activation {
                    Activation::Softmax => best_class(softmax::softmax(scores).into_iter().skip(skip)),
                    Activation::Sigmoid => {
                        let (class, score) = best_class(scores.iter().copied().skip(skip));
                        (class, 1.0 / (1.0 + (-score).exp()))
                    }
                    Activation::None => best_class(scores.iter().copied().skip(skip)),
                };
                // NaN compares false.
                if score >= threshold && score >= 0.0 {
                    candidates.extend(placed(cell, *size, *offsets, heads, class, score));
                }
            }
        }
    }
    candidates.retain(|candidate| candidate.score >= threshold);
    Ok(candidates)
}

fn placed(
    cell: [f32; 2],
    size: [f32; 2],
    offsets: [f32; 4],
    heads: &Heads<'_>,
    class: usize,
    score: f32,
) -> Option<Candidate> {
    let [tx, ty, tw, th] = match heads.offsets {
        Offsets::Xywh => offsets,
        Offsets::Yxhw => [offsets[1], offsets[0], offsets[3], offsets[2]],
    };
    let [vx, vy, vw, vh] = heads.variances;
    let centre = [cell[0] + tx * vx * size[0], cell[1] + ty * vy * size[1]];
    Candidate::centred(class, score, centre, [size[0] * (tw * vw).exp(), size[1] * (th * vh).exp()])
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIANCES: [f32; 4] = [0.1, 0.1, 0.2, 0.2];

    fn layers() -> Vec<Layer> {
        vec![
            Layer { grid: [2, 1], sizes: vec![[10.0, 10.0], [20.0, 5.0]] },
            Layer { grid: [1, 1], sizes: vec![[40.0, 20.0]] },
        ]
    }

    fn heads(layers: &[Layer]) -> Heads<'_> {
        Heads { layers, offsets: Offsets::Xywh, variances: VARIANCES, activation: Activation::None, background: true }
    }

    #[test]
    fn an_anchor_is_moved_by_the_formula() {
        let layers = layers();
        assert_eq!(anchors(&layers), 5);
        // 40x20 pixels: cells of 20x20 with centres (10, 10) and (30, 10), and one with the centre (20, 10).
        let mut boxes = [[0.0; 4]; 5];
        let mut scores = [[1.0, 0.0, 0.0]; 5];
        boxes[3] = [1.0, -2.0, 0.0, 5.0 * 2f32.ln()];
        scores[3] = [0.1, 0.2, 0.7];
        scores[4] = [0.0, 0.9, 0.1];
        let found = decode(&boxes.concat(), &scores.concat(), [40, 20], &heads(&layers), 2, 0.5).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        // Anchor 3 is the second of cell (1, 0), 20x5: centre (30 + 0.1 x 20, 10 - 0.2 x 5), size (20, 5 x 2).
        assert_eq!((found[0].class, found[0].score), (1, 0.7));
        for (side, expected) in found[0].bounds.iter().zip([22.0, 4.0, 42.0, 14.0]) {
            assert!((side - expected).abs() < 1e-4, "{found:?}");
        }
        assert_eq!(found[1], Candidate { class: 0, score: 0.9, bounds: [0.0, 0.0, 40.0, 20.0] });

        let turned = Heads { offsets: Offsets::Yxhw, ..heads(&layers) };
        boxes[3] = [-2.0, 1.0, 5.0 * 2f32.ln(), 0.0];
        let again = decode(&boxes.concat(), &scores.concat(), [40, 20], &turned, 2, 0.5).unwrap();
        assert_eq!(again, found);
    }

    #[test]
    fn scores_are_activated_as_the_manifest_says() {
        let layers = [Layer { grid: [1, 1], sizes: vec![[8.0, 8.0]] }];
        let score = |activation: Activation, background: bool, scores: &[f32]| {
            let heads = Heads { activation, background, ..heads(&layers) };
            let classes = scores.len() - usize::from(background);
            decode(&[0.0; 4], scores, [8, 8], &heads, classes, 0.0).unwrap()[0]
        };
        // e^3 / (e^1 + e^2 + e^3), e^2 / the same where the last is the background's neighbour.
        let soft = score(Activation::Softmax, true, &[1.0, 2.0, 3.0]);
        assert!(soft.class == 1 && (soft.score - 0.665_240_94).abs() < 1e-6, "{soft:?}");
        let soft = score(Activation::Softmax, true, &[3.0, 2.0, 1.0]);
        assert!(soft.class == 0 && (soft.score - 0.244_728_48).abs() < 1e-6, "{soft:?}");
        let sigmoid = score(Activation::Sigmoid, false, &[0.0, 3f32.ln()]);
        assert!(sigmoid.class == 1 && (sigmoid.score - 0.75).abs() < 1e-6, "{sigmoid:?}");
    }

    #[test]
    fn outputs_of_another_size_are_refused() {
        let layers = layers();
        assert!(decode(&[0.0; 19], &[0.0; 15], [40, 20], &heads(&layers), 2, 0.5).is_err());
        assert!(decode(&[0.0; 20], &[0.0; 10], [40, 20], &heads(&layers), 2, 0.5).is_err());
    }

    #[test]
    fn any_numbers_give_sound_candidates() {
        let layers = layers();
        bolero::check!().with_type::<(Vec<f32>, f32)>().cloned().for_each(|(mut values, threshold)| {
            values.resize(35, f32::NAN);
            for activation in [Activation::Softmax, Activation::Sigmoid, Activation::None] {
                let heads = Heads { activation, ..heads(&layers) };
                for candidate in decode(&values[..20], &values[20..], [40, 20], &heads, 2, threshold).unwrap() {
                    assert!((0.0..=1.0).contains(&candidate.score) && candidate.class < 2);
                    let [x1, y1, x2, y2] = candidate.bounds;
                    assert!(candidate.bounds.iter().all(|side| side.is_finite()) && x1 <= x2 && y1 <= y2);
                }
            }
        });
    }
}
