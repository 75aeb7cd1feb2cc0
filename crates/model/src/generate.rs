//! The forward pass over resident weights: whole sequences, prefill, and one-token decoding.

use tch::{Kind, Tensor};

use crate::attention;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::kv_cache::KvCache;
use crate::packed::Packed;
use crate::resident::Weights;

impl Decoder {
    /// Normalised hidden states `[N, H]` of whole sequences, without gradients or cache.
    ///
    /// # Errors
    /// If ids or lengths do not fit the model.
    pub fn forward(&self, weights: &Weights, packed: &Packed) -> Result<Tensor> {
        self.run(weights, packed, |_, _, _| Ok(()))
    }

    /// Scores `[B]` f32, one per sequence at its last token, by the weights' score head.
    ///
    /// # Errors
    /// If the weights are a language model's, or ids or lengths do not fit.
    pub fn score_sequences(&self, weights: &Weights, packed: &Packed) -> Result<Tensor> {
        let head = weights.score_head()?;
        let _no_grad = tch::no_grad_guard();
        let hidden_nh = self.forward(weights, packed)?;
        let last = packed.last_indices().f_to_device(hidden_nh.device())?;
        self.score(head, weights.head_params(), &hidden_nh.f_index_select(0, &last)?)
    }

    /// Runs new sequences and stores their keys and values in `slots`, one slot per sequence
    /// (from position 0; what the slot held before is overwritten). Returns normalised hidden
    /// states `[N, H]`.
    ///
    /// # Errors
    /// If slots repeat or are out of range, a sequence does not fit its slot, or ids or lengths
    /// do not fit the model.
    pub fn prefill(
        &self,
        weights: &Weights,
        packed: &Packed,
        cache: &mut KvCache,
        slots: &[usize],
    ) -> Result<Tensor> {
        if packed.has_branches() {
            return Err(ModelError::input(
                "a KV slot holds one sequence, and this batch has branches",
            ));
        }
        check_slots(weights, cache, slots, packed.sequences())?;
        let lengths = packed.lengths();
        if let Some(&length) = lengths.iter().find(|&&l| l > cache.capacity_tokens() as i64) {
            return Err(ModelError::input(format!(
                "a sequence of {length} tokens in KV slots of {} tokens",
                cache.capacity_tokens()
            )));
        }
        let slot_n: Vec<i64> = slots
            .iter()
            .zip(&lengths)
            .flat_map(|(&slot, &length)| std::iter::repeat_n(slot as i64, length as usize))
            .collect();
        let at =
            self.cache_index(&Tensor::f_from_slice(&slot_n)?, &packed.position_ids, weights)?;
        self.run(weights, packed, |index, k, v| cache.write(index, &at, k, v))
    }

    /// One token for each of `B` sequences: `ids[b]` at position `positions[b]` of slot
    /// `slots[b]`, whose earlier positions must be in the cache. Returns normalised hidden
    /// states `[B, H]`.
    ///
    /// # Errors
    /// If the slices differ in length, slots repeat, or a value is out of range.
    pub fn decode(
        &self,
        weights: &Weights,
        ids: &[u32],
        positions: &[usize],
        slots: &[usize],
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let step = self.decode_step(weights, ids, positions, slots, cache)?;
        let config = self.config();
        let mut hidden_bh = self.embed(first_block(weights)?, &step.ids_b)?;
        for (index, layer) in weights.layers().iter().enumerate() {
            let (q, k, v) = layer.qkv(config, &hidden_bh, &step.cos_b1d, &step.sin_b1d, None)?;
            cache.write(index, &step.at, &k, &v)?;
            let (k_all, v_all) = cache.layer(index)?;
            let (k_rld, v_rld) = (step.rows(k_all)?, step.rows(v_all)?);
            let windowed = config.windows.get(index).copied().flatten().is_some();
            let mask = match (&step.window_mask_r1l, windowed) {
                (Some(mask), true) => mask,
                _ => &step.mask_r1l,
            };
            let attended = attention::cached(&q, &k_rld, &v_rld, mask)?;
            hidden_bh = layer.finish(config, &hidden_bh, &attended, None)?;
        }
        self.final_norm(weights.head_params(), &hidden_bh)
    }

    /// Logits `[N, V]` in the compute dtype from normalised hidden states.
    ///
    /// # Errors
    /// If the weights have a score head.
    pub fn output(&self, weights: &Weights, hidden_nh: &Tensor) -> Result<Tensor> {
        self.logits(weights.output_weight()?, hidden_nh)
    }

    fn run(
        &self,
        weights: &Weights,
        packed: &Packed,
        mut keep: impl FnMut(usize, &Tensor, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let packed = packed.to_device(weights.device());
        let layout = self.layout(&packed, weights.kind())?;
        let mut hidden_nh = self.embed(first_block(weights)?, &packed.input_ids)?;
        for (index, layer) in weights.layers().iter().enumerate() {
            let keep = |k: &Tensor, v: &Tensor| keep(index, k, v);
            hidden_nh = self.packed_layer(index, layer, None, &hidden_nh, &layout, keep)?;
        }
        self.final_norm(weights.head_params(), &hidden_nh)
    }

    /// Index tensors of cache entries, broadcasting to `[N, K]`.
    fn cache_index(
        &self,
        slot_n: &Tensor,
        position_n: &Tensor,
        weights: &Weights,
    ) -> Result<[Option<Tensor>; 3]> {
        let device = weights.device();
        let heads = Tensor::f_arange(self.config().num_key_value_heads, (Kind::Int64, device))?;
        Ok([
            Some(slot_n.f_to_device(device)?.f_unsqueeze(1)?),
            Some(heads.f_unsqueeze(0)?),
            Some(position_n.f_to_device(device)?.f_unsqueeze(1)?),
        ])
    }

    /// What all layers of one decode step share.
    fn decode_step(
        &self,
        weights: &Weights,
        ids: &[u32],
        positions: &[usize],
        slots: &[usize],
        cache: &KvCache,
    ) -> Result<DecodeStep> {
        check_slots(weights, cache, slots, ids.len())?;
        if positions.len() != ids.len() {
            return Err(ModelError::input(format!(
                "{} positions for {} tokens",
                positions.len(),
                ids.len()
            )));
        }
        for &id in ids {
            self.check_id(id)?;
        }
        let last = positions.iter().copied().max().unwrap_or(0);
        self.check_position(last as i64)?;
        if last >= cache.capacity_tokens() {
            return Err(ModelError::input(format!(
                "position {last} in KV slots of {} tokens",
                cache.capacity_tokens()
            )));
        }
        let (kind, device) = cache.options();
        let to_tensor = |values: Vec<i64>| Tensor::f_from_slice(&values)?.f_to_device(device);
        let position_b = to_tensor(positions.iter().map(|&p| p as i64).collect())?;
        let slot_b = to_tensor(slots.iter().map(|&s| s as i64).collect())?;
        let (cos_b1d, sin_b1d) = self.rope_tables(&position_b, kind)?;
        let tokens = last as i64 + 1;
        let config = self.config();
        let mask =
            |window| decode_mask(&position_b, tokens, config.num_key_value_heads, window, kind);
        let window = config.windows.iter().flatten().next().copied().filter(|&w| w < tokens);
        Ok(DecodeStep {
            ids_b: to_tensor(ids.iter().map(|&id| i64::from(id)).collect())?,
            at: self.cache_index(&slot_b, &position_b, weights)?,
            mask_r1l: mask(None)?,
            window_mask_r1l: window.map(|w| mask(Some(w))).transpose()?,
            contiguous_from: contiguous_from(slots),
            slot_b,
            cos_b1d,
            sin_b1d,
            tokens,
        })
    }
}

/// Tensors that every layer of one decode step uses.
struct DecodeStep {
    ids_b: Tensor,
    slot_b: Tensor,
    cos_b1d: Tensor,
    sin_b1d: Tensor,
    /// Where the new keys and values go.
    at: [Option<Tensor>; 3],
    /// Additive mask `[B * K, 1, L]`: 0 up to each sequence's position, -inf after it.
    mask_r1l: Tensor,
    window_mask_r1l: Option<Tensor>,
    /// First slot, when the slots are consecutive.
    contiguous_from: Option<i64>,
    /// L, cached tokens to look at.
    tokens: i64,
}

impl DecodeStep {
    /// The cached tokens of this step's sequences, `[B * K, L, D]`: a view when the slots are
    /// consecutive, a copy otherwise.
    fn rows(&self, cached: &Tensor) -> Result<Tensor> {
        let cached = cached.f_narrow(2, 0, self.tokens)?;
        let rows = match self.contiguous_from {
            Some(first) => cached.f_narrow(0, first, self.slot_b.size()[0])?,
            None => cached.f_index_select(0, &self.slot_b)?,
        };
        Ok(rows.f_flatten(0, 1)?)
    }
}

fn decode_mask(
    position_b: &Tensor,
    tokens: i64,
    kv_heads: i64,
    window: Option<i64>,
    kind: Kind,
) -> Result<Tensor> {
    let device = position_b.device();
    let column = Tensor::f_arange(tokens, (Kind::Int64, device))?.f_unsqueeze(0)?;
    let position = position_b.f_unsqueeze(1)?;
    let mut blocked = column.f_gt_tensor(&position)?;
    if let Some(window) = window {
        let too_old = column.f_le_tensor(&position.f_sub_scalar(window)?)?;
        blocked = blocked.f_logical_or(&too_old)?;
    }
    let batch = position_b.size()[0];
    let mask = Tensor::f_zeros([batch, tokens], (kind, device))?
        .f_masked_fill(&blocked, f64::NEG_INFINITY)?;
    Ok(mask.f_unsqueeze(1)?.f_expand([batch, kv_heads, tokens], false)?.f_reshape([
        batch * kv_heads,
        1,
        tokens,
    ])?)
}

fn first_block(weights: &Weights) -> Result<&[Tensor]> {
    weights
        .blocks
        .first()
        .map(Vec::as_slice)
        .ok_or_else(|| ModelError::input("weights without blocks"))
}

/// The first slot if `slots` are consecutive and ascending.
fn contiguous_from(slots: &[usize]) -> Option<i64> {
    let ascending = slots.windows(2).all(|pair| pair[1] == pair[0] + 1);
    slots.first().filter(|_| ascending).map(|&slot| slot as i64)
}

fn check_slots(
    weights: &Weights,
    cache: &KvCache,
    slots: &[usize],
    sequences: usize,
) -> Result<()> {
    if slots.is_empty() || slots.len() != sequences {
        return Err(ModelError::input(format!("{} slots for {sequences} sequences", slots.len())));
    }
    if cache.options() != (weights.kind(), weights.device()) {
        return Err(ModelError::input(format!(
            "KV cache of {:?} for weights of {:?}",
            cache.options(),
            (weights.kind(), weights.device())
        )));
    }
    let mut seen = vec![false; cache.slots()];
    for &slot in slots {
        cache.check_slot(slot)?;
        if std::mem::replace(&mut seen[slot], true) {
            return Err(ModelError::input(format!("slot {slot} is given twice")));
        }
    }
    Ok(())
}
