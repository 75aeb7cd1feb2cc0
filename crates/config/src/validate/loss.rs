//! Contradictions in the policy loss.

use super::Findings;
use crate::schema::OldLogps;
use crate::{ImportanceConfig, ImportanceKind, LossConfig, LossKind, Recipe};

const MODES: [&str; 4] =
    ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"];

impl Recipe {
    pub(super) fn check_loss(&self, found: &mut Findings) {
        let loss = &self.algorithm.loss;
        aggregation(loss, found);
        clip(loss, found);
        gate(loss, found);
        found.require(
            loss.entropy_coef.is_finite(),
            "algorithm.loss.entropy_coef",
            loss.entropy_coef.to_string(),
            "write a finite number",
        );
        importance(&loss.importance, found);
        found.require(
            loss.importance.kind == ImportanceKind::Off
                || self.algorithm.old_logps != OldLogps::Rollout,
            "algorithm.loss.importance.kind",
            "the old log-probs are the rollout's own, so every weight is 1",
            "write algorithm.old_logps = \"recompute\" (or \"current\"), or leave the correction off",
        );
    }
}

fn aggregation(loss: &LossConfig, found: &mut Findings) {
    found.require(
        MODES.contains(&loss.aggregation.as_str()),
        "algorithm.loss.aggregation",
        format!("{:?}", loss.aggregation),
        "write token-mean, seq-mean-token-sum, seq-mean-token-mean or seq-mean-token-sum-norm",
    );
    found.require(
        (loss.aggregation == "seq-mean-token-sum-norm") == (loss.norm_tokens > 0.0),
        "algorithm.loss.norm_tokens",
        format!("{} with aggregation {:?}", loss.norm_tokens, loss.aggregation),
        "give it a positive value with seq-mean-token-sum-norm, and leave it out elsewhere",
    );
    found.require(
        loss.kind != LossKind::GeoMean || loss.aggregation == "seq-mean-token-mean",
        "algorithm.loss.aggregation",
        format!("{:?} with kind = \"geo_mean\", whose loss is one of sequences", loss.aggregation),
        "write seq-mean-token-mean",
    );
}

fn clip(loss: &LossConfig, found: &mut Findings) {
    let (low, high) = (loss.clip_low, loss.clip_high);
    let usual = LossConfig::default();
    let values = format!("clip_low {low} and clip_high {high}");
    let bounds = |value: f64| value.is_finite() && value >= 0.0;
    found.require(
        bounds(low) && bounds(high),
        "algorithm.loss.clip_low",
        &values,
        "write two numbers >= 0; a clip_low of 1 or more is no lower bound",
    );
    let unused = matches!(loss.kind, LossKind::Sapo | LossKind::Gpg);
    found.require(
        !unused || (low, high) == (usual.clip_low, usual.clip_high),
        "algorithm.loss.clip_low",
        format!("{values}, which kind = {:?} does not use", loss.kind.as_str()),
        "leave both out",
    );
    found.require(
        loss.kind != LossKind::Cpg || (low == high && low <= 1.0),
        "algorithm.loss.clip_low",
        format!("{values} with kind = \"cpg\", which has one bound in [0, 1]"),
        "write the same number for both",
    );
    found.require(
        loss.dual_clip == 0.0 || loss.dual_clip > 1.0,
        "algorithm.loss.dual_clip",
        loss.dual_clip.to_string(),
        "write 0 (off) or more than 1, for example 3.0",
    );
    found.require(
        loss.dual_clip == 0.0 || loss.kind == LossKind::PpoClip,
        "algorithm.loss.dual_clip",
        format!("{} with kind = {:?}", loss.dual_clip, loss.kind.as_str()),
        "leave it out: only ppo_clip has a dual clip",
    );
}

fn gate(loss: &LossConfig, found: &mut Findings) {
    let (pos, neg) = (loss.tau_pos, loss.tau_neg);
    let usual = LossConfig::default();
    let positive = |tau: f64| tau.is_finite() && tau > 0.0;
    found.require(
        positive(pos) && positive(neg),
        "algorithm.loss.tau_pos",
        format!("tau_pos {pos} and tau_neg {neg}"),
        "write two numbers > 0",
    );
    found.require(
        loss.kind == LossKind::Sapo || (pos, neg) == (usual.tau_pos, usual.tau_neg),
        "algorithm.loss.tau_pos",
        format!("tau_pos {pos} and tau_neg {neg} with kind = {:?}", loss.kind.as_str()),
        "leave both out: only sapo has a gate",
    );
}

fn importance(spec: &ImportanceConfig, found: &mut Findings) {
    const KEY: &str = "algorithm.loss.importance.kind";
    let ImportanceConfig { kind, cap, low, high } = *spec;
    let values = format!("{:?} with cap {cap}, low {low} and high {high}", kind.as_str());
    let band = low == 0.0 && high == 0.0;
    let (holds, fix) = match kind {
        ImportanceKind::Off => (band && cap == 0.0, "leave cap, low and high out"),
        ImportanceKind::TruncatedToken | ImportanceKind::TruncatedSequence => {
            (band && cap > 0.0 && cap.is_finite(), "write cap > 0, and no low or high")
        }
        ImportanceKind::IcePop | ImportanceKind::SequenceMask => (
            cap == 0.0 && low >= 0.0 && high > low && high.is_finite(),
            "write 0 <= low < high, and no cap",
        ),
    };
    found.require(holds, KEY, values, fix);
}
