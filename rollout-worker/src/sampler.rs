//! From logits to tokens.
//!
//! Legend: B rows, V vocabulary, K candidates kept by truncation.
//!
//! Order of operations, as in transformers and vLLM: temperature, then top-k, then top-p over what
//! top-k left (renormalised), then one draw by inverse CDF with the row's own uniform number. The
//! recorded log-prob is that of the distribution that was drawn from: tempered, truncated and
//! renormalised. Greedy decoding (temperature 0) has no such distribution, so the model's own
//! log-prob at temperature 1 is recorded for it.

mod inverse_cdf;
mod truncation;

use tch::{Kind, Tensor};

/// How the rows of a batch are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distribution {
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus mass in (0, 1]; 1 is off.
    pub top_p: f64,
    /// Number of most probable tokens kept; `None` is off. Exactly this many are kept: of equal
    /// logits at the border, those that the sort puts first.
    pub top_k: Option<u32>,
}

/// One token per row.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Token ids, `[B]`.
    pub tokens: Vec<u32>,
    /// Log-probs under the sampling distribution, `[B]`, natural logarithm.
    pub logps: Vec<f32>,
}

/// Logits that nothing can be drawn from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("logits of row {row} are not finite")]
pub struct NotFinite {
    /// Row of the batch.
    pub row: usize,
}

/// Draws one token for each row of `logits_bv` (`[B, V]`, any float type).
///
/// `uniforms` holds one number in (0, 1) per row; greedy decoding does not read it.
///
/// # Errors
/// [`NotFinite`] names the first row with a NaN or infinite normaliser.
///
/// # Panics
/// When `uniforms` is not of length B: a bug of the caller.
pub fn draw(
    logits_bv: &Tensor,
    distribution: Distribution,
    uniforms: &[f64],
) -> Result<Drawn, NotFinite> {
    let _no_grad = tch::no_grad_guard();
    let (rows, vocabulary) = logits_bv.size2().unwrap_or_default();
    assert_eq!(rows as usize, uniforms.len(), "one uniform number per row of logits");
    let logits_bv = logits_bv.to_kind(Kind::Float);
    if distribution.temperature == 0.0 {
        return greedy(&logits_bv);
    }
    let logits_bv = if distribution.temperature == 1.0 {
        logits_bv
    } else {
        logits_bv / distribution.temperature
    };
    let u_b1 = Tensor::from_slice(uniforms).view([-1, 1]).to_device(logits_bv.device());
    let top_k = distribution.top_k.map(i64::from).filter(|k| *k < vocabulary);
    let (token_b1, mass_b1, total_b1) = if top_k.is_none() && distribution.top_p >= 1.0 {
        let p_bv = logits_bv.softmax(-1, Kind::Float);
        inverse_cdf::draw(&p_bv, &u_b1)
    } else {
        let kept = truncation::truncate(&logits_bv, top_k, distribution.top_p);
        let (place_b1, mass_b1, total_b1) = inverse_cdf::draw(&kept.mass_bk, &u_b1);
        (kept.token_bk.gather(1, &place_b1, false), mass_b1, total_b1)
    };
    let total = to_f64(&total_b1);
    if let Some(row) = total.iter().position(|t| !t.is_finite() || *t <= 0.0) {
        return Err(NotFinite { row });
    }
    let logps =
        to_f64(&mass_b1).iter().zip(&total).map(|(m, t)| (m / t).ln().min(0.0) as f32).collect();
    Ok(Drawn { tokens: to_tokens(&token_b1), logps })
}

fn greedy(logits_bv: &Tensor) -> Result<Drawn, NotFinite> {
    let normaliser_b = logits_bv.logsumexp(-1, false);
    if let Some(row) = to_f64(&normaliser_b).iter().position(|z| !z.is_finite()) {
        return Err(NotFinite { row });
    }
    let token_b1 = logits_bv.argmax(-1, true);
    let logp_b = logits_bv.gather(1, &token_b1, false).squeeze_dim(1) - normaliser_b;
    let logps = to_f64(&logp_b).iter().map(|p| p.min(0.0) as f32).collect();
    Ok(Drawn { tokens: to_tokens(&token_b1), logps })
}

fn to_f64(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_kind(Kind::Double).to_device(tch::Device::Cpu).contiguous().view([-1]);
    let mut values = vec![0.0; flat.numel()];
    flat.copy_data(&mut values, flat.numel());
    values
}

fn to_tokens(token_b1: &Tensor) -> Vec<u32> {
    let flat = token_b1.to_kind(Kind::Int64).to_device(tch::Device::Cpu).contiguous().view([-1]);
    let mut ids = vec![0i64; flat.numel()];
    flat.copy_data(&mut ids, flat.numel());
    ids.into_iter().map(|id| id as u32).collect()
}

#[cfg(test)]
mod tests;
