//! Keys of the policy loss.

use serde::{Deserialize, Serialize};

/// The policy loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// `ppo_clip` (clipped ratio of each token), `gspo` (of the whole sequence), `cispo` (the
    /// clipped ratio as a weight), `sapo` (a soft gate), `geo_mean` (geometric mean of clipped
    /// ratios), `gpg` (no ratio) or `cpg` (the log-prob, bounded). docs/algorithms.md has the
    /// equations.
    pub kind: LossKind,
    /// The ratio is cut below 1 - this (`geo_mean`: the log ratio below minus this). Not with
    /// `sapo` and `gpg`. GSPO's authors take 0.0003, GMPO's 0.4.
    pub clip_low: f64,
    /// The ratio is cut above 1 + this (`geo_mean`: the log ratio above this). With `cpg` the same
    /// as `clip_low`. GSPO's authors take 0.0004, GMPO's 0.4.
    pub clip_high: f64,
    /// Bound of the loss for negative advantages (above 1); 0 is off. With `ppo_clip` only.
    pub dual_clip: f64,
    /// Steepness of the gate of `sapo` for positive advantages.
    pub tau_pos: f64,
    /// Steepness of the gate of `sapo` for the others.
    pub tau_neg: f64,
    /// `token-mean`, `seq-mean-token-sum`, `seq-mean-token-mean` or `seq-mean-token-sum-norm`. With
    /// `geo_mean` only `seq-mean-token-mean`.
    pub aggregation: String,
    /// Divisor of `seq-mean-token-sum-norm`, tokens; 0 elsewhere.
    pub norm_tokens: f64,
    /// Coefficient of the entropy bonus; 0 is off.
    pub entropy_coef: f64,
    /// Clamp log ratios (`ppo_clip`, `cispo` to 20; `gspo` to 10) and k3 to 10, as verl does.
    pub verl_clamps: bool,
    /// Correction for what the sampler's log-probs differ from the trainer's.
    pub importance: ImportanceConfig,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            kind: LossKind::PpoClip,
            clip_low: 0.2,
            clip_high: 0.2,
            dual_clip: 0.0,
            tau_pos: 1.0,
            tau_neg: 1.05,
            aggregation: "seq-mean-token-mean".to_owned(),
            norm_tokens: 0.0,
            entropy_coef: 0.0,
            verl_clamps: false,
            importance: ImportanceConfig::default(),
        }
    }
}

/// Which policy loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Clipped ratio of each token.
    #[default]
    PpoClip,
    /// Clipped ratio of the whole sequence.
    Gspo,
    /// Clipped ratio as a weight.
    Cispo,
    /// Soft gate.
    Sapo,
    /// Geometric mean of clipped ratios.
    GeoMean,
    /// No ratio.
    Gpg,
    /// The log-prob, bounded.
    Cpg,
}

impl LossKind {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PpoClip => "ppo_clip",
            Self::Gspo => "gspo",
            Self::Cispo => "cispo",
            Self::Sapo => "sapo",
            Self::GeoMean => "geo_mean",
            Self::Gpg => "gpg",
            Self::Cpg => "cpg",
        }
    }
}

/// Importance weights from the trainer's and the sampler's log-probs; needs `old_logps` other than
/// `rollout`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImportanceConfig {
    /// `off`, `truncated_token` or `truncated_sequence` (the ratio of a token or of the sequence,
    /// at most `cap`), `icepop` (a token's ratio within `low` to `high`, else 0) or
    /// `sequence_mask` (1 where the geometric mean of a sequence is within the band, else 0).
    pub kind: ImportanceKind,
    /// Bound of the truncated kinds; 0 elsewhere.
    pub cap: f64,
    /// Lower end of the band of `icepop` and `sequence_mask`; 0 elsewhere.
    pub low: f64,
    /// Upper end of the band; 0 elsewhere.
    pub high: f64,
}

impl Default for ImportanceConfig {
    fn default() -> Self {
        Self { kind: ImportanceKind::Off, cap: 0.0, low: 0.0, high: 0.0 }
    }
}

/// Which importance correction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImportanceKind {
    /// None.
    #[default]
    Off,
    /// A token's ratio, bounded.
    #[serde(rename = "truncated_token")]
    TruncatedToken,
    /// The sequence's ratio, bounded.
    #[serde(rename = "truncated_sequence")]
    TruncatedSequence,
    /// A token's ratio within a band.
    IcePop,
    /// Sequences within a band.
    #[serde(rename = "sequence_mask")]
    SequenceMask,
}

impl ImportanceKind {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::TruncatedToken => "truncated_token",
            Self::TruncatedSequence => "truncated_sequence",
            Self::IcePop => "icepop",
            Self::SequenceMask => "sequence_mask",
        }
    }
}
