//! From logits to tokens.
//!
//! Legend: B rows, V vocabulary, K candidates kept by truncation.
//!
//! Order of operations, as in transformers: what [`Shaping`] does (bias, repetition penalty, tokens
//! that may not be drawn), temperature, top-k, top-p over what top-k left (renormalised), min-p
//! against the best token, then one draw by inverse CDF with the row's own uniform number.
//!
//! vLLM differs in two places: it forbids tokens before it adds the bias and the penalty, which
//! gives the same logits, and it cuts by min-p before top-k and top-p, so that its nucleus is a
//! share of what min-p left and may be smaller than transformers'.
//!
//! The recorded log-prob is that of the distribution that was drawn from: shaped, tempered,
//! truncated and renormalised. Greedy decoding (temperature 0) has no such distribution, so the
//! log-prob of the shaped logits at temperature 1 is recorded for it.

mod inverse_cdf;
mod shaping;
mod truncation;

use tch::{Kind, Tensor};

pub use shaping::Shaping;

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
    /// Tokens below this share of the best token's probability are cut; 0 is off.
    pub min_p: f64,
    /// Most probable tokens reported with each draw.
    pub top_logps: usize,
}

/// The model's own distribution.
impl Default for Distribution {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: None, min_p: 0.0, top_logps: 0 }
    }
}

/// One token per row.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Token ids, `[B]`.
    pub tokens: Vec<u32>,
    /// Log-probs under the sampling distribution, `[B]`, natural logarithm.
    pub logps: Vec<f32>,
    /// The most probable tokens with their log-probs under the same distribution, best first,
    /// `[B]`; fewer than asked for where fewer may be drawn, none where none were asked for.
    pub top: Vec<Vec<(u32, f32)>>,
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
        return greedy(&logits_bv, distribution.top_logps);
    }
    let logits_bv = if distribution.temperature == 1.0 {
        logits_bv
    } else {
        logits_bv / distribution.temperature
    };
    let u_b1 = Tensor::from_slice(uniforms).view([-1, 1]).to_device(logits_bv.device());
    let top_k = distribution.top_k.map(i64::from).filter(|k| *k < vocabulary);
    let whole = top_k.is_none() && distribution.top_p >= 1.0 && distribution.min_p <= 0.0;
    let (token_b1, mass_b1, total_b1, best) = if whole {
        let p_bv = logits_bv.softmax(-1, Kind::Float);
        let (token_b1, mass_b1, total_b1) = inverse_cdf::draw(&p_bv, &u_b1);
        (token_b1, mass_b1, total_b1, best_of(&p_bv, distribution.top_logps))
    } else {
        let cut = truncation::Cut { top_k, top_p: distribution.top_p, min_p: distribution.min_p };
        let kept = truncation::truncate(&logits_bv, &cut);
        let (place_b1, mass_b1, total_b1) = inverse_cdf::draw(&kept.mass_bk, &u_b1);
        let width = kept.token_bk.size().last().copied().unwrap_or(0);
        let n = (distribution.top_logps as i64).min(width);
        let best = (n > 0).then(|| (kept.token_bk.narrow(1, 0, n), kept.mass_bk.narrow(1, 0, n)));
        (kept.token_bk.gather(1, &place_b1, false), mass_b1, total_b1, best)
    };
    let total = to_f64(&total_b1);
    if let Some(row) = total.iter().position(|t| !t.is_finite() || *t <= 0.0) {
        return Err(NotFinite { row });
    }
    let logp = |mass: f64, total: f64| (mass / total).ln().min(0.0) as f32;
    let logps = to_f64(&mass_b1).iter().zip(&total).map(|(m, t)| logp(*m, *t)).collect();
    let top = best.map(|(token_bn, mass_bn)| {
        let n = mass_bn.size().last().map_or(1, |n| *n as usize);
        let (tokens, masses) = (to_tokens(&token_bn), to_f64(&mass_bn));
        let rows = tokens.chunks(n).zip(masses.chunks(n)).zip(&total);
        rows.map(|((tokens, masses), total)| {
            let known = tokens.iter().zip(masses).filter(|(_, mass)| **mass > 0.0);
            known.map(|(token, mass)| (*token, logp(*mass, *total))).collect()
        })
        .collect()
    });
    Ok(Drawn { tokens: to_tokens(&token_b1), logps, top: top.unwrap_or_default() })
}

/// Token and value of the `n` largest entries of each row, `[B, n]`; `None` for no entries.
fn best_of(value_bv: &Tensor, n: usize) -> Option<(Tensor, Tensor)> {
    let n = (n as i64).min(value_bv.size().last().copied().unwrap_or(0));
    if n == 0 {
        return None;
    }
    let (value_bn, token_bn) = value_bv.topk(n, -1, true, true);
    Some((token_bn, value_bn))
}

fn greedy(logits_bv: &Tensor, top_logps: usize) -> Result<Drawn, NotFinite> {
    let normaliser_b = logits_bv.logsumexp(-1, false);
    if let Some(row) = to_f64(&normaliser_b).iter().position(|z| !z.is_finite()) {
        return Err(NotFinite { row });
    }
    let token_b1 = logits_bv.argmax(-1, true);
    let logp_b = logits_bv.gather(1, &token_b1, false).squeeze_dim(1) - &normaliser_b;
    let logps = to_f64(&logp_b).iter().map(|p| p.min(0.0) as f32).collect();
    let top = best_of(logits_bv, top_logps).map(|(token_bn, logit_bn)| {
        let n = logit_bn.size().last().map_or(1, |n| *n as usize);
        let logps = to_f64(&(logit_bn - normaliser_b.unsqueeze(1)));
        let rows = to_tokens(&token_bn);
        let rows = rows.chunks(n).zip(logps.chunks(n));
        rows.map(|(tokens, logps)| {
            let known = tokens.iter().zip(logps).filter(|(_, logp)| logp.is_finite());
            known.map(|(token, logp)| (*token, logp.min(0.0) as f32)).collect()
        })
        .collect()
    });
    Ok(Drawn { tokens: to_tokens(&token_b1), logps, top: top.unwrap_or_default() })
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
mod chi_square_tests;
#[cfg(test)]
mod tests;
