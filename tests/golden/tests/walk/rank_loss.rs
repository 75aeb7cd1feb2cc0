//! Rank-GRPO: the loss with a ratio for each item of a list.

use plumb_golden::{Case, Failure, encode};
use plumb_loss::aggregate::{Aggregation, Denominators, Layout};
use plumb_loss::kl;
use plumb_loss::policy::{
    Batch, KlTerm, LevelClip, Objective, PolicyTerm, RatioLevel, policy_loss,
};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::tensors::{gradient, leaf, nested, tensor};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[("rank_grpo/rank_grpo_loss", Check::Result(loss))];

fn loss(case: &Case) -> Result<Value, Failure> {
    let logp = leaf(&case.inputs, "per_token_logps")?;
    let optional = |key: &str| case.inputs.has(key).then(|| tensor(&case.inputs, key)).transpose();
    let mask = match optional("item_token_mask")? {
        Some(mask) => mask,
        None => optional("completion_mask")?.unwrap_or_else(|| logp.ones_like()),
    };
    let old_logp = optional("old_per_token_logps")?.unwrap_or_else(|| logp.detach());
    let ref_logp = optional("ref_per_token_logps")?;
    let items = optional("item_seg_ids")?.map(|ids: Tensor| ids.to_kind(Kind::Int64));
    let mut advantage = tensor(&case.inputs, "advantages")?;
    if advantage.dim() == 1 {
        advantage = advantage.unsqueeze(-1).expand_as(&logp);
    }
    let batch = Batch {
        ref_logp: ref_logp.as_ref(),
        items: items.as_ref(),
        ..Batch::new(&logp, &old_logp, &advantage, &mask, Layout::Padded)
    };
    let ours = policy_loss(&objective(case)?, &batch, &counts(case, &mask)?);
    let ours = ours.map_err(Failure::refused)?;
    // The reference holds the share of clipped tokens as float32, and no KL without its term.
    let clipped = ours.sums.clipped as f32 / (ours.sums.tokens as f32).max(1.0);
    let with_kl = case.params.number("beta")? != 0.0;
    Ok(json!({
        "loss": encode(ours.sums.loss),
        "grad_per_token_logps": nested(&gradient(&ours.loss, &logp)),
        "kl": with_kl.then(|| encode(ours.sums.reference_kl_mean())).into_iter().collect::<Vec<_>>(),
        "clip_ratio_region": [f64::from(clipped)],
    }))
}

fn objective(case: &Case) -> Result<Objective, Failure> {
    let params = &case.params;
    let clip_low = params.number_or("epsilon_low", 0.2)?;
    let has_cap = params.has("delta");
    let level = params.text("importance_sampling_level")?;
    let level = RatioLevel::named(level, params.number_or("rec_num", 0.0)? as i64);
    let policy = PolicyTerm::LevelClip(LevelClip {
        level: level.map_err(Failure::refused)?,
        clip_low,
        clip_high: params.number_or("epsilon_high", clip_low)?,
        ratio_cap: has_cap.then(|| params.number("delta")).transpose()?,
    });
    let coef = params.number("beta")?;
    let (kind, clamps, gradient) = (kl::Kind::K3, kl::Clamps::Off, kl::Gradient::Estimate);
    Ok(Objective {
        policy,
        aggregation: Aggregation::from_trl(params.text("loss_type")?).map_err(Failure::refused)?,
        kl: (coef != 0.0).then_some(KlTerm { coef, kind, clamps, gradient }),
        entropy_coef: 0.0,
    })
}

fn counts(case: &Case, mask: &Tensor) -> Result<Denominators, Failure> {
    let rows = mask.size().first().map_or(0, |rows| *rows as usize);
    let longest = case.params.number_or("max_completion_length", 1.0)?;
    let counts = Denominators::from_mask(mask, Layout::Padded, rows as f64 * longest);
    Ok(counts.map_err(Failure::refused)?.with_all_sequences(rows).with_floor(1.0))
}
