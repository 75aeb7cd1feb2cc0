//! Top-k, top-p and min-p.

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

/// What is cut off.
pub(super) struct Cut {
    /// Number of best tokens kept, below the vocabulary's size.
    pub(super) top_k: Option<i64>,
    /// Nucleus mass; 1 is off.
    pub(super) top_p: f64,
    /// Least share of the best token's probability; 0 is off.
    pub(super) min_p: f64,
}

/// Truncates tempered logits (`[B, V]` f32) to the `top_k` best, then to the smallest set of best
/// tokens whose share of the remaining mass is at least `top_p`, then to those with at least
/// `min_p` of the best one's.
pub(super) fn truncate(logits_bv: &Tensor, cut: &Cut) -> Kept {
    if let Some(k) = cut.top_k {
        let (logits_bk, token_bk) = logits_bv.topk(k, -1, true, true);
        let mass_bk = cut.keep(&logits_bk.softmax(-1, Kind::Float));
        return Kept { token_bk, mass_bk };
    }
    let vocabulary = logits_bv.size().last().copied().unwrap_or(0);
    let normaliser_b1 = logits_bv.logsumexp(-1, true);
    let mut candidates = FIRST_CANDIDATES.min(vocabulary);
    loop {
        let (logits_bk, token_bk) = logits_bv.topk(candidates, -1, true, true);
        let share_bk = (logits_bk - &normaliser_b1).exp();
        let covered = share_bk.sum_dim_intlist(-1, false, Kind::Double).min().double_value(&[]);
        let last_b = share_bk.select(1, candidates - 1);
        let relative = (last_b / share_bk.select(1, 0)).max().double_value(&[]);
        // A NaN row never covers; the whole vocabulary ends the search and the caller's check of
        // the total names the row.
        let cut_by_mass = cut.top_p < 1.0 && covered >= cut.top_p;
        if cut_by_mass || relative < cut.min_p || candidates == vocabulary {
            return Kept { token_bk, mass_bk: cut.keep(&share_bk) };
        }
        candidates = (candidates * 8).min(vocabulary);
    }
}

impl Cut {
    /// Sets to 0 what top-p and min-p cut off. `share_bk` falls along each row.
    fn keep(&self, share_bk: &Tensor) -> Tensor {
        let mass_bk = nucleus(share_bk, self.top_p);
        if self.min_p <= 0.0 {
            return mass_bk;
        }
        let least_b1 = share_bk.narrow(1, 0, 1) * self.min_p;
        mass_bk.masked_fill(&mass_bk.lt_tensor(&least_b1), 0.0)
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
    // Nothing stands before the first one: it stays whatever top_p is.
    share_bk.masked_fill(&before_bk.ge(top_p.max(f64::MIN_POSITIVE)), 0.0)
}
