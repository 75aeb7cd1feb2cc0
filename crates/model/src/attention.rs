//! Causal attention over packed sequences, and over the KV cache where there is no kernel for it.
//!
//! Two kernels for packed sequences on the CPU, measured on one AVX-512 thread (9 query heads,
//! 3 key/value heads of 64, sequences of 20 to 300 tokens): libtorch's fused kernel is the
//! faster one in f32; in bf16 its backward pass is two to four times slower than plain batched
//! matrix products, which are used there up to [`MAX_PLAIN_TOKENS`] tokens. On CUDA in bf16, the
//! flash kernel takes all sequences of a batch at once.

use plumb_torch::paged::{BLOCK_TOKENS, PagedRows};
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::packed::{Layout, TreeShape};

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

/// Additive masks `[L, L]` of one tree: a branch sees its prompt and itself.
#[derive(Debug)]
pub(crate) struct TreeMasks {
    causal_ll: Tensor,
    /// With the sliding window; the same as `causal_ll` where the tree fits into it.
    window_ll: Tensor,
}

impl TreeMasks {
    pub(crate) fn new(
        shape: &TreeShape,
        window: Option<i64>,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        // The prompt is branch 0; the branches follow it in order.
        let mut branch: Vec<i64> = vec![0; shape.prompt as usize];
        let mut position: Vec<i64> = (0..shape.prompt).collect();
        for (index, &length) in shape.branches.iter().enumerate() {
            branch.extend(std::iter::repeat_n(index as i64 + 1, length as usize));
            position.extend(shape.prompt..shape.prompt + length);
        }
        let branch_l = Tensor::from_slice(&branch).to_device(device);
        let position_l = Tensor::from_slice(&position).to_device(device);
        let distance_ll = position_l.f_unsqueeze(1)?.f_sub(&position_l)?;
        let same_ll = branch_l.f_unsqueeze(1)?.f_eq_tensor(&branch_l)?;
        let seen_ll =
            same_ll.f_logical_or(&branch_l.f_eq(0)?)?.f_logical_and(&distance_ll.f_ge(0)?)?;
        let additive = |seen: &Tensor| -> Result<Tensor> {
            let open = Tensor::f_zeros_like(seen)?.f_to_kind(kind)?;
            Ok(open.f_masked_fill(&seen.f_logical_not()?, f64::NEG_INFINITY)?)
        };
        let causal_ll = additive(&seen_ll)?;
        let window_ll = match window {
            Some(window) => additive(&seen_ll.f_logical_and(&distance_ll.f_lt(window)?)?)?,
            None => causal_ll.shallow_clone(),
        };
        Ok(Self { causal_ll, window_ll })
    }
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
    if let Some(flash) = &layout.flash {
        return Ok(flash.attend(q_nqd, k_nkd, v_nkd, window)?.f_reshape([-1, width])?);
    }
    // One split for all sequences: its backward is one concatenation, where the backward of a
    // slice per sequence would fill a whole `[N, ..]` gradient each.
    let split = |x: &Tensor| x.f_transpose(0, 1)?.f_split_with_sizes(&layout.lengths, 1);
    let (qs, ks, vs) = (split(q_nqd)?, split(k_nkd)?, split(v_nkd)?);
    let mut outputs = Vec::with_capacity(layout.lengths.len());
    let parts = layout.lengths.iter().zip(&layout.trees).zip(&qs).zip(&ks).zip(&vs);
    for ((((&length, tree), q), k), v) in parts {
        if let Some(tree) = tree {
            let mask = if window.is_some() { &tree.window_ll } else { &tree.causal_ll };
            let out_qld = if plain(length, q.kind(), q.device()) {
                plain_attention(q, k, v, mask)?
            } else {
                fused_attention(q, k, v, Some(mask.shallow_clone()))?
            };
            outputs.push(out_qld.f_transpose(0, 1)?.f_reshape([length, width])?);
            continue;
        }
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

/// Stores keys and values `[N, K, D]` in blocks with libtorch's own operations: for devices that
/// have no kernel for it. Layout as in [`plumb_torch::paged`].
pub(crate) fn write_blocks(
    keys: &Tensor,
    values: &Tensor,
    rows: &PagedRows,
    k_nkd: &Tensor,
    v_nkd: &Tensor,
) -> Result<()> {
    let (sequences, positions, table) = places(rows)?;
    let tokens = BLOCK_TOKENS as i64;
    let mut kept = Vec::with_capacity(sequences.len());
    let (mut block_n, mut within_n) = (Vec::new(), Vec::new());
    for (row, (&sequence, &position)) in sequences.iter().zip(&positions).enumerate() {
        if sequence >= 0 {
            kept.push(row as i64);
            block_n.push(table(sequence)[(position / tokens) as usize]);
            within_n.push(position % tokens);
        }
    }
    let device = keys.device();
    let ints = |values: &[i64]| Tensor::f_from_slice(values)?.f_to_device(device);
    let kept = ints(&kept)?;
    let at = [Some(ints(&block_n)?), None, None, Some(ints(&within_n)?)];
    let _ = keys.shallow_clone().f_index_put_(&at, &k_nkd.f_index_select(0, &kept)?, false)?;
    let at = [Some(ints(&block_n)?), None, Some(ints(&within_n)?)];
    let _ = values.shallow_clone().f_index_put_(&at, &v_nkd.f_index_select(0, &kept)?, false)?;
    Ok(())
}

/// Attention of the rows' queries `[N, Q, D]` to their sequences' blocks with libtorch's own
/// operations: each sequence's blocks are gathered first. `[N, Q * D]`; rows of sequence -1 give
/// zeros.
pub(crate) fn over_blocks(
    keys: &Tensor,
    values: &Tensor,
    rows: &PagedRows,
    q_nqd: &Tensor,
    window: Option<i64>,
) -> Result<Tensor> {
    let (sequences, positions, table) = places(rows)?;
    let (device, tokens) = (keys.device(), BLOCK_TOKENS as i64);
    let mut outputs = Vec::new();
    let mut first = 0;
    for run in sequences.chunk_by(|a, b| a == b) {
        let q_tqd = q_nqd.f_narrow(0, first as i64, run.len() as i64)?;
        let own = &positions[first..first + run.len()];
        first += run.len();
        if run[0] < 0 {
            outputs.push(q_tqd.f_zeros_like()?.f_flatten(1, 2)?);
            continue;
        }
        let length = own.iter().copied().max().unwrap_or(0) + 1;
        let blocks = &table(run[0])
            [..length.div_euclid(tokens) as usize + usize::from(length % tokens != 0)];
        let block_w = Tensor::f_from_slice(blocks)?.f_to_device(device)?;
        // [W, K, D, 16] and [W, K, 16, D] to [K, L, D].
        let k_kld = keys.f_index_select(0, &block_w)?.f_permute([1, 0, 3, 2])?.f_flatten(1, 2)?;
        let v_kld = values.f_index_select(0, &block_w)?.f_permute([1, 0, 2, 3])?.f_flatten(1, 2)?;
        let (k_kld, v_kld) = (k_kld.f_narrow(1, 0, length)?, v_kld.f_narrow(1, 0, length)?);
        let column_l = Tensor::f_arange(length, (Kind::Int64, device))?.f_unsqueeze(0)?;
        let row_t1 = Tensor::f_from_slice(own)?.f_to_device(device)?.f_unsqueeze(1)?;
        let mut seen_tl = column_l.f_le_tensor(&row_t1)?;
        if let Some(window) = window {
            seen_tl =
                seen_tl.f_logical_and(&column_l.f_gt_tensor(&row_t1.f_sub_scalar(window)?)?)?;
        }
        let q_qtd = q_tqd.f_transpose(0, 1)?;
        let out_qtd = fused_attention(&q_qtd, &k_kld, &v_kld, Some(seen_tl))?;
        outputs.push(out_qtd.f_transpose(0, 1)?.f_flatten(1, 2)?);
    }
    Ok(Tensor::f_cat(&outputs, 0)?)
}

/// Sequences and positions of the rows as numbers, and each sequence's table.
#[allow(clippy::type_complexity, reason = "three parts of one thing, taken apart at once")]
fn places(rows: &PagedRows) -> Result<(Vec<i64>, Vec<i64>, impl Fn(i64) -> Vec<i64>)> {
    let numbers = |tensor: &Tensor| -> Result<Vec<i64>> {
        Ok(Vec::<i64>::try_from(tensor.f_to_kind(Kind::Int64)?.f_flatten(0, -1)?)?)
    };
    let width = rows.tables_sw.size()[1] as usize;
    let tables = numbers(&rows.tables_sw)?;
    let table = move |sequence: i64| {
        tables[sequence as usize * width..(sequence as usize + 1) * width].to_vec()
    };
    Ok((numbers(&rows.sequence_n)?, numbers(&rows.position_n)?, table))
}

#[cfg(test)]
mod tests {
    use plumb_torch::paged::{self, PagedLayer};

    use super::*;

    #[test]
    fn libtorch_s_operations_and_the_kernel_agree_over_blocks() {
        for dim in [8, 16, 40, 64, 112] {
            agree_over_blocks(dim);
        }
    }

    fn agree_over_blocks(dim: i64) {
        tch::manual_seed(3);
        let options = (Kind::Float, Device::Cpu);
        let cache =
            || (Tensor::zeros([6, 2, dim, 16], options), Tensor::zeros([6, 2, 16, dim], options));
        let (own, other) = (cache(), cache());
        // Sequence 0 has 20 tokens in blocks 4 and 1, sequence 1 has 3 in block 5; then a filler.
        let sequence: Vec<i32> = [vec![0; 20], vec![1; 3], vec![-1]].concat();
        let position: Vec<i32> = (0..20).chain(0..3).chain([0]).collect();
        let rows = PagedRows {
            tables_sw: Tensor::from_slice(&[4i32, 1, 5, 0]).view([2, 2]),
            sequence_n: Tensor::from_slice(&sequence),
            position_n: Tensor::from_slice(&position),
        };
        let draw = |heads: i64| Tensor::randn([24, heads, dim], options);
        let (q, k, v) = (draw(6), draw(2), draw(2));
        paged::write(PagedLayer { keys: &own.0, values: &own.1 }, &rows, &k, &v).unwrap();
        write_blocks(&other.0, &other.1, &rows, &k, &v).unwrap();
        assert!(own.0.equal(&other.0) && own.1.equal(&other.1));
        for window in [None, Some(5)] {
            let layer = PagedLayer { keys: &own.0, values: &own.1 };
            let kernel = paged::attend(layer, &rows, &q, window, (dim as f64).powf(-0.5)).unwrap();
            let plain = over_blocks(&own.0, &own.1, &rows, &q, window).unwrap();
            let worst = (kernel - plain).abs().max().double_value(&[]);
            assert!(worst < 1e-6, "dim {dim}, window {window:?}: {worst}");
        }
    }

    /// Attention and the gradients of its inputs under a fixed incoming gradient, in f32.
    fn with_gradients(
        leaves: &[Tensor; 3],
        grad: &Tensor,
        attend: impl Fn(&[Tensor]) -> Tensor,
    ) -> Vec<Tensor> {
        let inputs: Vec<Tensor> =
            leaves.iter().map(|leaf| leaf.detach().set_requires_grad(true)).collect();
        let out = attend(&inputs);
        let grads = plumb_torch::vjp(&[&out], &inputs, &[grad], false).unwrap();
        let all = std::iter::once(out).chain(grads.into_iter().flatten());
        all.map(|t| t.detach().to_kind(Kind::Float)).collect()
    }

    /// The flash kernel beside one sequence at a time, forward and backward, with grouped heads,
    /// with and without a sliding window.
    #[test]
    fn gpu_flash_attention_agrees_with_one_sequence_at_a_time() {
        if let Err(error) = plumb_torch::cuda::load() {
            println!("skipped: no cuda device here ({error})");
            return;
        }
        let device = Device::Cuda(0);
        let lengths = [1_i64, 130, 7, 64];
        let tokens: i64 = lengths.iter().sum();
        let noise = |heads: i64| Tensor::randn([tokens, heads, 64], (Kind::BFloat16, device));
        let leaves = [noise(6), noise(2), noise(2)];
        let grad = Tensor::randn([tokens, 6 * 64], (Kind::BFloat16, device));
        for window in [None, Some(16)] {
            let layout = |flash| Layout {
                lengths: lengths.to_vec(),
                cos_n1d: Tensor::new(),
                sin_n1d: Tensor::new(),
                causal_ll: None,
                window_ll: window_mask(130, window, Kind::BFloat16, device).unwrap(),
                trees: lengths.iter().map(|_| None).collect(),
                flash,
                kind: Kind::BFloat16,
            };
            let flash = layout(Some(plumb_torch::VarlenAttention::new(&lengths, device)));
            let plain = layout(None);
            let run = |layout: &Layout| {
                with_gradients(&leaves, &grad, |x| {
                    packed(&x[0], &x[1], &x[2], layout, window).unwrap()
                })
            };
            for (ours, theirs) in run(&flash).iter().zip(&run(&plain)) {
                let error = (ours - theirs).abs().max().double_value(&[]);
                let scale = theirs.abs().max().double_value(&[]);
                println!("flash attention, window {window:?}: error {error:.2e} of {scale:.2e}");
                assert!(error < 2e-2 * scale.max(1.0), "{error} of {scale}");
            }
        }
    }
}
