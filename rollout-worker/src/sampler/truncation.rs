//! Top-k and top-p.

use tch::{Kind, Tensor};

/// Candidates looked at first for top-p alone: a nucleus is nearly always narrower, and a full
/// sort of the vocabulary costs far more.
const FIRST_CANDIDATES: i64 = 1024;

/// Candidates of each row in falling order of probability, those cut off with mass 0.
pub(super) struct Kept {
    /// Token ids, `[B, K]` i64.
    pub(super) token_bk: Tensor,
    /// Unnormalised mass, `[B, K]` f32.
    pub(super) mass_bk: Tensor,
}

/// Truncates tempered logits (`[B, V]` f32) to the `top_k` best and then to the smallest set of
/// best tokens whose share of the remaining mass is at least `top_p`.
pub(super) fn truncate(logits_bv: &Tensor, top_k: Option<i64>, top_p: f64) -> Kept {
    if let Some(k) = top_k {
        let (logits_bk, token_bk) = logits_bv.topk(k, -1, true, true);
        let mass_bk = nucleus(&logits_bk.softmax(-1, Kind::Float), top_p);
        return Kept { token_bk, mass_bk };
    }
    let vocabulary = logits_bv.size().last().copied().unwrap_or(0);
    let normaliser_b1 = logits_bv.logsumexp(-1, true);
    let mut candidates = FIRST_CANDIDATES.min(vocabulary);
    loop {
        let (logits_bk, token_bk) = logits_bv.topk(candidates, -1, true, true);
        let share_bk = (logits_bk - &normaliser_b1).exp();
        let covered = share_bk.sum_dim_intlist(-1, false, Kind::Double).min().double_value(&[]);
        // A NaN row never covers; the whole vocabulary ends the search and the caller's check of
        // the total names the row.
        if covered >= top_p || candidates == vocabulary {
            return Kept { token_bk, mass_bk: nucleus(&share_bk, top_p) };
        }
        candidates = (candidates * 8).min(vocabulary);
    }
}

/// Sets to 0 what lies behind the nucleus. The token that crosses `top_p` is kept, and so is the
/// first one always. `share_bk` falls along each row.
fn nucleus(share_bk: &Tensor, top_p: f64) -> Tensor {
    if top_p >= 1.0 {
        return share_bk.shallow_clone();
    }
    let share_f64_bk = share_bk.to_kind(Kind::Double);
    let before_bk = share_f64_bk.cumsum(-1, Kind::Double) - share_f64_bk;
    share_bk.masked_fill(&before_bk.ge(top_p), 0.0)
}
