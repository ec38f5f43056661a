//! The head of FastestDet: one box for each cell of one grid, channels first.
//!
//! The planes of `[5 + classes, rows, columns]` are objectness, tx, ty, tw, th and the class scores (softmax applied).
//! With the cell at (gx, gy): centre = ((gx + tanh(tx)) / columns, (gy + tanh(ty)) / rows), size = (sigmoid(tw),
//! sigmoid(th)), all as shares of the picture; score = objectness^0.6 x class score^0.4 (the authors' own decoder).

use crate::inference::decode::{Candidate, WrongLength, best_class};

/// Planes in front of the class scores.
pub const BOX_PLANES: usize = 5;

/// Pixels of the input to one cell, in both directions.
pub const STRIDE: u32 = 16;

/// Decodes `(5 + classes) x rows x columns` values of an input of `width` x `height` pixels into candidates with a
/// score of `threshold` or more, one at most for each cell: its best class.
pub fn decode(
    values: &[f32],
    [width, height]: [u32; 2],
    classes: usize,
    threshold: f32,
) -> Result<Vec<Candidate>, WrongLength> {
    let (columns, rows) = (width / STRIDE, height / STRIDE);
    let cells = columns as usize * rows as usize;
    WrongLength::check((BOX_PLANES + classes) * cells, values.len())?;
    let mut candidates = Vec::new();
    for (cell, grid) in (0..rows).flat_map(|y| (0..columns).map(move |x| [x, y])).enumerate() {
        let at = |plane: usize| values[plane * cells + cell];
        let objectness = at(0).clamp(0.0, 1.0).powf(0.6);
        // No class score is above 1, so most cells need no look at their classes. NaN compares false.
        if objectness >= threshold {
            let (class, score) = best_class((0..classes).map(|class| at(BOX_PLANES + class)));
            let score = objectness * score.clamp(0.0, 1.0).powf(0.4);
            let centre = std::array::from_fn(|axis| (grid[axis] as f32 + at(1 + axis).tanh()) * STRIDE as f32);
            let size = [sigmoid(at(3)) * width as f32, sigmoid(at(4)) * height as f32];
            candidates.extend(Candidate::centred(class, score, centre, size).filter(|found| found.score >= threshold));
        }
    }
    Ok(candidates)
}

fn sigmoid(value: f32) -> f32 {
    1.0 / (1.0 + (-value).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 32x16 pixels: 2x1 cells, 5 + 2 planes.
    fn planes(cells: [[f32; 7]; 2]) -> Vec<f32> {
        (0..7).flat_map(|plane| cells.map(|cell| cell[plane])).collect()
    }

    #[test]
    fn a_cell_is_decoded_by_the_formula() {
        let second = [0.5, 0.0, 0.5f32.atanh(), 0.0, -(3f32.ln()), 0.25, 0.75];
        let found = decode(&planes([[0.0; 7], second]), [32, 16], 2, 0.3).unwrap();
        let [candidate] = &found[..] else { panic!("{found:?}") };
        // 0.5^0.6 x 0.75^0.4 = 0.659754 x 0.891301.
        assert!((candidate.score - 0.588_039).abs() < 1e-5, "{candidate:?}");
        assert_eq!(candidate.class, 1);
        // Centre (16, 8), width 0.5 of 32, height 1 / (1 + 3) of 16.
        for (side, expected) in candidate.bounds.iter().zip([8.0, 6.0, 24.0, 10.0]) {
            assert!((side - expected).abs() < 1e-4, "{candidate:?}");
        }
        assert_eq!(decode(&planes([[0.0; 7], second]), [32, 16], 2, 0.6).unwrap(), []);
    }

    #[test]
    fn an_output_of_another_size_is_refused() {
        let error = decode(&[0.0; 7], [32, 16], 2, 0.3).unwrap_err();
        assert_eq!(error, WrongLength { expected: 14, actual: 7 });
    }

    #[test]
    fn any_numbers_give_sound_candidates() {
        bolero::check!().with_type::<(Vec<f32>, f32)>().cloned().for_each(|(mut values, threshold)| {
            values.resize(14, f32::NAN);
            for candidate in decode(&values, [32, 16], 2, threshold).unwrap() {
                assert!((0.0..=1.0).contains(&candidate.score) && candidate.class < 2);
                let [x1, y1, x2, y2] = candidate.bounds;
                assert!(candidate.bounds.iter().all(|side| side.is_finite()) && x1 <= x2 && y1 <= y2);
            }
        });
    }
}
