//! `summary.json`: what a run came to, in figures.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::footprint::Footprint;

/// The figures of a finished run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The recipe's name.
    pub name: String,
    /// `succeeded`.
    pub outcome: String,
    /// The recipe's seed.
    pub seed: u64,
    /// The model that was trained.
    pub model: String,
    /// Held-out measures.
    pub measures: Vec<MeasureResult>,
    /// The leash.
    pub kl: KlSummary,
    /// Stage -> seconds.
    pub stage_seconds: BTreeMap<String, f64>,
    /// Stage -> figures.
    pub stages: BTreeMap<String, BTreeMap<String, f64>>,
    /// Seconds of the whole job.
    pub seconds: f64,
    /// Workers that were lost and restarted.
    pub restarts: u64,
    /// Program versions.
    pub versions: BTreeMap<String, String>,
    /// BLAKE3 of the recipe as it ran, hex.
    pub recipe_digest: String,
    /// What lies where, relative to the run folder.
    pub artefacts: BTreeMap<String, String>,
    /// A few answers before and after.
    pub answers: Vec<AnswerPair>,
    /// Memory of each stage's roles, predicted and measured.
    #[serde(default)]
    pub memory: Vec<Footprint>,
}

/// One held-out measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasureResult {
    /// Its name in the recipe.
    pub name: String,
    /// The label that it is taken over; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Mean over the untrained model's answers.
    pub before: f64,
    /// Mean over the trained model's answers.
    pub after: f64,
    /// Standard error of `after - before`, paired by prompt.
    pub se: f64,
    /// Prompts.
    pub n: usize,
    /// Whether a fall is an improvement.
    #[serde(default)]
    pub lower_is_better: bool,
}

impl MeasureResult {
    /// The improvement in standard errors; positive is better. `None` where the standard error
    /// is 0.
    #[must_use]
    pub fn gain_in_se(&self) -> Option<f64> {
        let gain = if self.lower_is_better { -1.0 } else { 1.0 } * (self.after - self.before);
        (self.se > 0.0).then(|| gain / self.se)
    }
}

/// The leash.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KlSummary {
    /// Mean KL estimate per token to the reference in the last step.
    pub last: f64,
    /// Its largest value over the steps.
    pub max: f64,
    /// The recipe's bound.
    pub bound: f64,
    /// Whether no step went over the bound.
    pub within_bound: bool,
}

/// One held-out prompt with an answer of each model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerPair {
    /// The prompt's label.
    pub label: String,
    /// The prompt's last user message.
    pub question: String,
    /// The untrained model's answer.
    pub before: String,
    /// The trained model's.
    pub after: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fall_is_a_gain_where_lower_is_better() {
        let measure = |lower_is_better, se| MeasureResult {
            name: "over-refusal".into(),
            label: None,
            before: 0.5,
            after: 0.25,
            se,
            n: 4,
            lower_is_better,
        };
        assert_eq!(measure(true, 0.125).gain_in_se(), Some(2.0));
        assert_eq!(measure(false, 0.125).gain_in_se(), Some(-2.0));
        assert_eq!(measure(false, 0.0).gain_in_se(), None);
    }
}
