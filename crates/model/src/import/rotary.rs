//! The order of rows in query and key projections.

/// Undoes the row order of llama.cpp's and Meta's Llama files.
///
/// Those rotate neighbouring pairs of each head `(0, 1), (2, 3), ...`; HF rotates halves
/// `(0, D/2), (1, D/2 + 1), ...`. Row `2 j + s` of a head becomes row `s D/2 + j`, with `s` 0 or 1.
/// `weights` is `[heads * head_dim, columns]`, row-major.
pub(super) fn pairs_to_halves(weights: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let rows = weights.len() / columns.max(1);
    let head_dim = rows / heads.max(1);
    let mut out = Vec::with_capacity(weights.len());
    for head in 0..heads {
        for half in 0..2 {
            for j in 0..head_dim / 2 {
                let row = head * head_dim + 2 * j + half;
                out.extend_from_slice(&weights[row * columns..(row + 1) * columns]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::pairs_to_halves;

    #[test]
    fn neighbouring_pairs_become_halves_head_by_head() {
        // Two heads of four rows, one column.
        let rows = [0., 1., 2., 3., 10., 11., 12., 13.];
        assert_eq!(pairs_to_halves(&rows, 2, 1), [0., 2., 1., 3., 10., 12., 11., 13.]);
    }
}
