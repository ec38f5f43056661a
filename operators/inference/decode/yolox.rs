//! The head of YOLOX: one box for each cell of each stride's grid.
//!
//! Rows stand stride after stride, row-major over the grid of `width / stride` x `height / stride` cells. Columns:
//! tx, ty, tw, th, objectness, class scores (sigmoid applied). With the cell at (gx, gy) and the stride s:
//! centre = ((tx + gx) s, (ty + gy) s), size = (exp(tw) s, exp(th) s), score = objectness x class score
//! (Ge et al., "YOLOX: Exceeding YOLO Series in 2021", section 2.1).

use crate::inference::decode::{Candidate, WrongLength, best_class};

/// Columns in front of the class scores.
pub const BOX_COLUMNS: usize = 5;

/// Rows that a model of that input and those strides gives.
pub fn rows(width: u32, height: u32, strides: &[u32]) -> usize {
    strides.iter().map(|stride| (width / stride) as usize * (height / stride) as usize).sum()
}

/// Decodes `rows x (5 + classes)` values into candidates with a score of `threshold` or more, one at most for each
/// cell: its best class.
pub fn decode(
    values: &[f32],
    [width, height]: [u32; 2],
    strides: &[u32],
    classes: usize,
    threshold: f32,
) -> Result<Vec<Candidate>, WrongLength> {
    let columns = BOX_COLUMNS + classes;
    WrongLength::check(rows(width, height, strides) * columns, values.len())?;
    let mut candidates = Vec::new();
    let mut rows = values.chunks_exact(columns);
    for stride in strides {
        let (across, down) = (width / stride, height / stride);
        let cells = (0..down).flat_map(|y| (0..across).map(move |x| (x, y)));
        for ((x, y), row) in cells.zip(rows.by_ref()) {
            // Class scores are at most 1, so most cells need no look at their classes. NaN compares false.
            if row[4] >= threshold
                && let Some(candidate) = cell(row, [x as f32, y as f32], *stride as f32)
                && candidate.score >= threshold
            {
                candidates.push(candidate);
            }
        }
    }
    Ok(candidates)
}

fn cell(row: &[f32], grid: [f32; 2], stride: f32) -> Option<Candidate> {
    let (class, score) = best_class(row[BOX_COLUMNS..].iter().copied());
    let score = (row[4].clamp(0.0, 1.0) * score.min(1.0)).max(0.0);
    let centre = std::array::from_fn(|axis| (row[axis] + grid[axis]) * stride);
    let size = std::array::from_fn(|axis| row[2 + axis].exp() * stride);
    Candidate::centred(class, score, centre, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_decoded_by_the_formula() {
        // 32x16 pixels, strides 8 and 16: 4x2 + 2x1 rows of 5 + 2 columns.
        let mut values = vec![0.0; 10 * 7];
        let row = |index: usize| index * 7..index * 7 + 7;
        values[row(6)].copy_from_slice(&[0.5, 0.25, 2f32.ln(), 0.0, 0.8, 0.1, 0.5]);
        values[row(9)].copy_from_slice(&[0.5, 0.5, 0.0, 0.0, 1.0, 0.9, 0.2]);
        let found = decode(&values, [32, 16], &[8, 16], 2, 0.3).unwrap();
        assert_eq!(found.len(), 2);
        // Row 6 is the cell (2, 1) of stride 8: centre (20, 10), size (16, 8).
        assert_eq!((found[0].class, found[0].score), (1, 0.4));
        for (side, expected) in found[0].bounds.iter().zip([12.0, 6.0, 28.0, 14.0]) {
            assert!((side - expected).abs() < 1e-4, "{:?}", found[0].bounds);
        }
        // Row 9 is the cell (1, 0) of stride 16.
        assert_eq!(found[1], Candidate { class: 0, score: 0.9, bounds: [16.0, 0.0, 32.0, 16.0] });
    }

    #[test]
    fn an_output_of_another_size_is_refused() {
        let error = decode(&[0.0; 84], [32, 16], &[8], 2, 0.3).unwrap_err();
        assert_eq!(error, WrongLength { expected: 56, actual: 84 });
    }

    #[test]
    fn a_cell_without_a_sound_box_is_no_candidate() {
        for row in [
            [f32::NAN, 0.0, 0.0, 0.0, 1.0, 1.0],
            [0.0, 0.0, 1e30, 0.0, 1.0, 1.0],
            [0.0, 0.0, 0.0, 0.0, f32::NAN, 1.0],
            [0.0, 0.0, 0.0, 0.0, 1.0, f32::NAN],
        ] {
            assert_eq!(decode(&row, [8, 8], &[8], 1, 0.1).unwrap(), []);
        }
        let confident = decode(&[0.0, 0.0, 0.0, 0.0, f32::INFINITY, 5.0], [8, 8], &[8], 1, 0.1).unwrap();
        assert_eq!(confident[0].score, 1.0);
    }

    #[test]
    fn any_numbers_give_sound_candidates() {
        bolero::check!().with_type::<(Vec<f32>, f32)>().cloned().for_each(|(mut values, threshold)| {
            values.resize(rows(32, 16, &[8, 16]) * 7, f32::NAN);
            for candidate in decode(&values, [32, 16], &[8, 16], 2, threshold).unwrap() {
                assert!((0.0..=1.0).contains(&candidate.score) && candidate.class < 2);
                let [x1, y1, x2, y2] = candidate.bounds;
                assert!(candidate.bounds.iter().all(|side| side.is_finite()) && x1 <= x2 && y1 <= y2);
            }
        });
    }
}
