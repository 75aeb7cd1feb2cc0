//! Causal attention over packed sequences, and over the KV cache.
//!
//! Two kernels for packed sequences on the CPU, measured on one AVX-512 thread (9 query heads,
//! 3 key/value heads of 64, sequences of 20 to 300 tokens): libtorch's fused kernel is the
//! faster one in f32; in bf16 its backward pass is two to four times slower than plain batched
//! matrix products, which are used there up to [`MAX_PLAIN_TOKENS`] tokens.

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::packed::Layout;

/// Longest sequence for which the bf16 CPU path holds all scores `[Q, L, L]` at once.
const MAX_PLAIN_TOKENS: i64 = 512;

fn plain(length: i64, kind: Kind, device: Device) -> bool {
    kind == Kind::BFloat16 && device == Device::Cpu && length <= MAX_PLAIN_TOKENS
}

/// Additive causal mask `[L, L]` for the longest of the sequences that need one.
pub(crate) fn causal_mask(lengths: &[i64], kind: Kind, device: Device) -> Result<Option<Tensor>> {
    let longest = lengths.iter().copied().filter(|&l| plain(l, kind, device)).max();
    longest.map(|l| upper_triangle(l, kind, device)).transpose()
}

/// Additive causal mask `[L, L]` in which a token sees `window` tokens, itself included;
/// `None` where no sequence is longer than the window.
pub(crate) fn window_mask(
    longest: i64,
    window: Option<i64>,
    kind: Kind,
    device: Device,
) -> Result<Option<Tensor>> {
    let Some(window) = window.filter(|&w| w < longest) else { return Ok(None) };
    let causal = upper_triangle(longest, kind, device)?;
    let blocked = Tensor::f_full([longest, longest], f64::NEG_INFINITY, (kind, device))?;
    Ok(Some(causal.f_add(&blocked.f_tril(-window)?)?))
}

fn upper_triangle(length: i64, kind: Kind, device: Device) -> Result<Tensor> {
    Ok(Tensor::f_full([length, length], f64::NEG_INFINITY, (kind, device))?.f_triu(1)?)
}

/// Attention of each sequence to itself: `[N, Q * D]` from `[N, Q, D]`, `[N, K, D]`, `[N, K, D]`.
pub(crate) fn packed(
    q_nqd: &Tensor,
    k_nkd: &Tensor,
    v_nkd: &Tensor,
    layout: &Layout,
    window: Option<i64>,
) -> Result<Tensor> {
    let width = q_nqd.size()[1] * q_nqd.size()[2];
    // One split for all sequences: its backward is one concatenation, where the backward of a
    // slice per sequence would fill a whole `[N, ..]` gradient each.
    let split = |x: &Tensor| x.f_transpose(0, 1)?.f_split_with_sizes(&layout.lengths, 1);
    let (qs, ks, vs) = (split(q_nqd)?, split(k_nkd)?, split(v_nkd)?);
    let mut outputs = Vec::with_capacity(layout.lengths.len());
    for (((&length, q), k), v) in layout.lengths.iter().zip(&qs).zip(&ks).zip(&vs) {
        let corner = |mask: &Tensor| mask.f_narrow(0, 0, length)?.f_narrow(1, 0, length);
        let windowed = window.is_some_and(|w| w < length);
        let window_mask = layout.window_ll.as_ref().filter(|_| windowed);
        let mask = window_mask.map(corner).transpose()?;
        let out_qld = match (mask, &layout.causal_ll) {
            (Some(mask), Some(_)) if plain(length, q.kind(), q.device()) => {
                plain_attention(q, k, v, &mask)?
            }
            (None, Some(causal)) if plain(length, q.kind(), q.device()) => {
                plain_attention(q, k, v, &corner(causal)?)?
            }
            (mask, _) => fused_attention(q, k, v, mask)?,
        };
        outputs.push(out_qld.f_transpose(0, 1)?.f_reshape([length, width])?);
    }
    if outputs.len() == 1 {
        return Ok(outputs.remove(0));
    }
    Ok(Tensor::f_cat(&outputs, 0)?)
}

/// libtorch's fused attention of one sequence, `[Q, L, D]`; causal unless a mask is given.
fn fused_attention(
    q_qld: &Tensor,
    k_kld: &Tensor,
    v_kld: &Tensor,
    mask: Option<Tensor>,
) -> Result<Tensor> {
    let out = Tensor::f_scaled_dot_product_attention(
        &q_qld.f_unsqueeze(0)?,
        &k_kld.f_unsqueeze(0)?,
        &v_kld.f_unsqueeze(0)?,
        mask.as_ref(),
        0.0,
        mask.is_none(),
        None::<f64>,
        true,
    )?;
    Ok(out.f_squeeze_dim(0)?)
}

/// The same by two batched products per key/value head, all scores held at once.
fn plain_attention(
    q_qld: &Tensor,
    k_kld: &Tensor,
    v_kld: &Tensor,
    mask_ll: &Tensor,
) -> Result<Tensor> {
    let (q_size, kv_heads) = (q_qld.size(), k_kld.size()[0]);
    let (q_heads, length, dim) = (q_size[0], q_size[1], q_size[2]);
    let group = q_heads / kv_heads;
    let scale = (dim as f64).powf(-0.5);
    let q_grouped = q_qld.f_reshape([kv_heads, group * length, dim])?;
    let scores = q_grouped.f_bmm(&k_kld.f_transpose(1, 2)?)?.f_mul_scalar(scale)?;
    let scores = scores.f_view([kv_heads, group, length, length])?.f_add(mask_ll)?;
    let weights = scores.f_softmax(-1, None)?.f_view([kv_heads, group * length, length])?;
    Ok(weights.f_bmm(v_kld)?.f_view([q_heads, length, dim])?)
}

/// Attention of one new token per sequence to its cached tokens: `[B, Q * D]` from
/// queries `[B, Q, D]`, cached keys and values `[B * K, L, D]` (any batch stride), and an
/// additive mask `[B * K, 1, L]`.
///
/// The query heads of a key/value head are rows of one small matrix, so keys and values are
/// read once and never expanded.
pub(crate) fn cached(q_bqd: &Tensor, k_rld: &Tensor, v_rld: &Tensor, mask_r1l: &Tensor) -> Result<Tensor> {
    let (q_size, rows) = (q_bqd.size(), k_rld.size()[0]);
    let (batch, q_heads, dim) = (q_size[0], q_size[1], q_size[2]);
    let group = batch * q_heads / rows;
    let scale = (dim as f64).powf(-0.5);
    let q_rgd = q_bqd.f_reshape([rows, group, dim])?;
    let scores = mask_r1l.f_baddbmm(&q_rgd, &k_rld.f_transpose(1, 2)?, 1.0, scale)?;
    Ok(scores.f_softmax(-1, None)?.f_bmm(v_rld)?.f_view([batch, q_heads * dim])?)
}
