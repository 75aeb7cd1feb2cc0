//! One decoder layer, but for its attention.

use std::ops::Range;

use tch::{Kind, Tensor};

use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::lora::{LayerAdapter, LoraTarget};
use crate::rope;

/// A layer's parameters, with query, key and value projections fused in one matrix.
///
/// Gate and up stay apart: fused they are no faster (each is large enough), and for widths that
/// are no multiple of 16 the wider product rounds differently from transformers' two.
#[derive(Debug)]
pub(crate) struct LayerParams {
    input_norm: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Option<Tensor>,
    o_weight: Tensor,
    o_bias: Option<Tensor>,
    /// Query and key norms.
    qk_norm: Option<(Tensor, Tensor)>,
    post_norm: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    /// Gate and up biases.
    gate_up_bias: Option<(Tensor, Tensor)>,
    down_weight: Tensor,
    down_bias: Option<Tensor>,
}

impl LayerParams {
    /// From parameters in block order, fusing by concatenation (differentiable). Copying
    /// weights costs far less than a second pass over the activations.
    pub(crate) fn from_params(config: &ModelConfig, params: &[Tensor]) -> Result<Self> {
        Self::new(config, params, |range| Ok(Tensor::f_cat(&params[range], 0)?))
    }

    /// From parameters in block order; `fuse` joins neighbours along their first dimension.
    pub(crate) fn new(
        config: &ModelConfig,
        params: &[Tensor],
        fuse: impl Fn(Range<usize>) -> Result<Tensor>,
    ) -> Result<Self> {
        let expected = 9
            + 3 * usize::from(config.qkv_bias)
            + usize::from(config.o_bias)
            + 2 * usize::from(config.qk_norm)
            + 3 * usize::from(config.mlp_bias);
        if params.len() != expected {
            return Err(ModelError::input(format!(
                "a {} layer takes {expected} parameters, got {}",
                config.architecture.family(),
                params.len()
            )));
        }
        let mut next = 0;
        let mut take = |count: usize| {
            next += count;
            next - count..next
        };
        let one = |range: Range<usize>| params[range.start].shallow_clone();
        Ok(Self {
            input_norm: one(take(1)),
            qkv_weight: fuse(take(3))?,
            qkv_bias: config.qkv_bias.then(|| fuse(take(3))).transpose()?,
            o_weight: one(take(1)),
            o_bias: config.o_bias.then(|| one(take(1))),
            qk_norm: config.qk_norm.then(|| (one(take(1)), one(take(1)))),
            post_norm: one(take(1)),
            gate_weight: one(take(1)),
            up_weight: one(take(1)),
            gate_up_bias: config.mlp_bias.then(|| (one(take(1)), one(take(1)))),
            down_weight: one(take(1)),
            down_bias: config.mlp_bias.then(|| one(take(1))),
        })
    }

    /// Rotated queries `[N, Q, D]`, rotated keys `[N, K, D]` and values `[N, K, D]`.
    pub(crate) fn qkv(
        &self,
        config: &ModelConfig,
        hidden_nh: &Tensor,
        cos_n1d: &Tensor,
        sin_n1d: &Tensor,
        adapter: Option<&LayerAdapter<'_>>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let (q_heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let x_nh = rms_norm(hidden_nh, &self.input_norm, config.rms_norm_eps)?;
        let mut qkv = x_nh.f_linear(&self.qkv_weight, self.qkv_bias.as_ref())?;
        if let Some(delta) = adapter.map(|a| qkv_delta(a, config, &x_nh)).transpose()?.flatten() {
            qkv = qkv.f_add(&delta)?;
        }
        let qkv = qkv.f_view([-1, q_heads + 2 * kv_heads, config.head_dim])?;
        let qk = match &self.qk_norm {
            None => qkv.f_narrow(1, 0, q_heads + kv_heads)?,
            Some((q_norm, k_norm)) => {
                let q = rms_norm(&qkv.f_narrow(1, 0, q_heads)?, q_norm, config.rms_norm_eps)?;
                let k =
                    rms_norm(&qkv.f_narrow(1, q_heads, kv_heads)?, k_norm, config.rms_norm_eps)?;
                Tensor::f_cat(&[q, k], 1)?
            }
        };
        let qk = rope::rotate(&qk, cos_n1d, sin_n1d)?;
        Ok((
            qk.f_narrow(1, 0, q_heads)?,
            qk.f_narrow(1, q_heads, kv_heads)?,
            qkv.f_narrow(1, q_heads + kv_heads, kv_heads)?,
        ))
    }

    /// Output projection of `attended` (`[N, Q * D]`), residuals and the gated MLP.
    pub(crate) fn finish(
        &self,
        config: &ModelConfig,
        hidden_nh: &Tensor,
        attended: &Tensor,
        adapter: Option<&LayerAdapter<'_>>,
    ) -> Result<Tensor> {
        let linear = |x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, target| {
            let y = x.f_linear(weight, bias)?;
            match adapter.map(|adapter| adapter.delta(target, x)).transpose()?.flatten() {
                Some(delta) => Ok::<_, ModelError>(y.f_add(&delta)?),
                None => Ok(y),
            }
        };
        let output = linear(attended, &self.o_weight, self.o_bias.as_ref(), LoraTarget::O)?;
        let hidden = hidden_nh.f_add(&output)?;
        let x_nh = rms_norm(&hidden, &self.post_norm, config.rms_norm_eps)?;
        let biases = self.gate_up_bias.as_ref();
        let (gate_bias, up_bias) = (biases.map(|(gate, _)| gate), biases.map(|(_, up)| up));
        let gate = linear(&x_nh, &self.gate_weight, gate_bias, LoraTarget::Gate)?;
        let up = linear(&x_nh, &self.up_weight, up_bias, LoraTarget::Up)?;
        let gated = gate.f_silu()?.f_mul(&up)?;
        let down = linear(&gated, &self.down_weight, self.down_bias.as_ref(), LoraTarget::Down)?;
        Ok(hidden.f_add(&down)?)
    }
}

/// What an adapter adds to the fused projection, or nothing where it adapts none of the three.
fn qkv_delta(
    adapter: &LayerAdapter<'_>,
    config: &ModelConfig,
    x_nh: &Tensor,
) -> Result<Option<Tensor>> {
    let widths = [config.q_width(), config.kv_width(), config.kv_width()];
    let mut parts = Vec::with_capacity(3);
    let mut adapted = false;
    for (target, width) in [LoraTarget::Q, LoraTarget::K, LoraTarget::V].into_iter().zip(widths) {
        parts.push(match adapter.delta(target, x_nh)? {
            Some(delta) => {
                adapted = true;
                delta
            }
            None => x_nh.f_new_zeros([x_nh.size()[0], width], (x_nh.kind(), x_nh.device()))?,
        });
    }
    Ok(if adapted { Some(Tensor::f_cat(&parts, 1)?) } else { None })
}

/// RMS norm over the last dimension, computed in f32 and rounded to the input's dtype before
/// the weight is applied, as transformers' `LlamaRMSNorm` does.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let width = weight.size();
    let kind = x.kind();
    if kind == Kind::Float {
        return Ok(x.f_rms_norm(width, Some(weight), eps)?);
    }
    let normalised = x.f_to_kind(Kind::Float)?.f_rms_norm(width, None::<&Tensor>, eps)?;
    Ok(normalised.f_to_kind(kind)?.f_mul(weight)?)
}
