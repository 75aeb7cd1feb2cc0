//! Batched inverse-CDF draw in two levels.
//!
//! A cumulative sum over a whole vocabulary is serial and slow. The row is cut into chunks
//! instead: the chunk is found in the cumulative sum of the chunk masses, the token in that of one
//! chunk. Both are summed in f64, so that rounding does not move the borders between tokens.

use tch::{Kind, Tensor};

/// Tokens of a chunk: about the square root of the vocabularies in use.
const CHUNK: i64 = 256;

/// Largest fraction of a chunk's mass that is aimed at: below 1 in f64 after multiplication, so
/// that a rounding of the first level never runs over the chunk's end.
const BELOW_ONE: f64 = 1.0 - 1e-12;

/// Draws an index per row of `mass_bv` (`[B, V]` f32, non-negative, not necessarily summing to 1)
/// with `u_b1` (`[B, 1]` f64 in (0, 1)).
///
/// Returns the index (`[B, 1]` i64), its mass (f64) and the row's total mass (f64). The first
/// index whose cumulative mass exceeds `u * total` is taken; an index of mass 0 never is.
pub(super) fn draw(mass_bv: &Tensor, u_b1: &Tensor) -> (Tensor, Tensor, Tensor) {
    let (rows, width) = mass_bv.size2().unwrap_or_default();
    let chunks = (width + CHUNK - 1) / CHUNK;
    let padding = chunks * CHUNK - width;
    let mass_bcn =
        if padding == 0 { mass_bv.contiguous() } else { mass_bv.constant_pad_nd([0, padding]) }
            .view([rows, chunks, CHUNK]);

    let chunk_mass_bc = mass_bcn.sum_dim_intlist(-1, false, Kind::Float).to_kind(Kind::Double);
    let up_to_bc = chunk_mass_bc.cumsum(-1, Kind::Double);
    let total_b1 = up_to_bc.narrow(1, chunks - 1, 1);
    let target_b1 = u_b1 * &total_b1;
    let chunk_b1 = first_above(&up_to_bc, &target_b1);
    let own_b1 = chunk_mass_bc.gather(1, &chunk_b1, false);
    let before_b1 = up_to_bc.gather(1, &chunk_b1, false) - &own_b1;
    let fraction_b1 = ((target_b1 - before_b1) / own_b1).clamp(0.0, BELOW_ONE);

    let of_chunk = chunk_b1.view([rows, 1, 1]).expand([rows, 1, CHUNK], false);
    let token_mass_bn = mass_bcn.gather(1, &of_chunk, false).squeeze_dim(1).to_kind(Kind::Double);
    let up_to_bn = token_mass_bn.cumsum(-1, Kind::Double);
    let place_b1 = first_above(&up_to_bn, &(fraction_b1 * up_to_bn.narrow(1, CHUNK - 1, 1)));
    let mass_b1 = token_mass_bn.gather(1, &place_b1, false);
    (chunk_b1 * CHUNK + place_b1, mass_b1, total_b1)
}

/// Index of the first entry of each non-decreasing row that is greater than the row's target.
fn first_above(up_to_bn: &Tensor, target_b1: &Tensor) -> Tensor {
    let last = up_to_bn.size().last().copied().unwrap_or(1) - 1;
    up_to_bn.le_tensor(target_b1).sum_dim_intlist(-1, true, Kind::Int64).clamp_max(last)
}
