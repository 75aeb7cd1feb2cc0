//! Keys of low-rank adapters.

use serde::{Deserialize, Serialize};

/// Low-rank adapters (LoRA). The model's own parameters stay as they are, in `model.dtype`; a
/// score head is trained whole beside the adapters. Rollouts get the merged weights, and the policy
/// with its adapters switched off is the reference. A stage that trains on a data set leaves the
/// merged model in `models/STAGE` and a PEFT folder in `adapters/STAGE`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of each adapted matrix' difference, at least 1.
    pub rank: u32,
    /// The difference is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Share of an adapter's inputs that are zeroed in training, in [0, 1).
    #[serde(default)]
    pub dropout: f64,
    /// Adapted matrices of each layer: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`,
    /// `up_proj`, `down_proj`. Absent: all of them.
    #[serde(default = "all_targets")]
    pub targets: Vec<LoraTarget>,
    /// PEFT folder to start from, of the same rank, alpha and targets; absent: fresh adapters
    /// from the recipe's seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}

/// An adapted matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraTarget {
    /// Queries.
    QProj,
    /// Keys.
    KProj,
    /// Values.
    VProj,
    /// Output of the attention.
    OProj,
    /// Gate of the MLP.
    GateProj,
    /// Input of the MLP.
    UpProj,
    /// Output of the MLP.
    DownProj,
}

impl LoraTarget {
    /// The module's name in checkpoints and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }
}

fn all_targets() -> Vec<LoraTarget> {
    use LoraTarget::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
    vec![QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj]
}
