//! Names of metrics. A name that stands in a file or a plot stands here first.

/// Mean mixed reward of a step's samples.
pub const REWARD_MEAN: &str = "reward/mean";
/// Share of samples whose reward failed.
pub const REWARD_FAILED: &str = "reward/failed";
/// Share of groups whose rewards are all equal.
pub const EQUAL_GROUPS: &str = "reward/equal_groups";
/// KL estimate per token to the reference.
pub const KL_PER_TOKEN: &str = "kl/per_token";
/// Coefficient of the KL, where a controller may move it.
pub const KL_COEF: &str = "kl/coef";
/// Mean cost of a step's samples, under a constraint.
pub const COST_MEAN: &str = "constraint/cost";
/// Mean cost of the latest samples, which the constraint is on.
pub const EPISODE_COST: &str = "constraint/episode_cost";
/// Multiplier of the constraint.
pub const LAMBDA: &str = "constraint/lambda";
/// Response tokens of a step.
pub const RESPONSE_TOKENS: &str = "rollout/response_tokens";
/// Mean tokens of a response.
pub const RESPONSE_LENGTH: &str = "rollout/response_length";
/// Share of responses cut off at their longest.
pub const TRUNCATED: &str = "rollout/truncated";
/// Response tokens generated in a second.
pub const GENERATED_PER_SECOND: &str = "rollout/tokens_per_second";
/// Tokens (prompt and response) of a step over all its seconds.
pub const TOKENS_PER_SECOND: &str = "step/tokens_per_second";
/// Seconds of a step.
pub const STEP_SECONDS: &str = "step/seconds";
/// Learning rate.
pub const LEARNING_RATE: &str = "policy/learning_rate";

/// Mean score of one component: over all samples that have it, or one label's.
#[must_use]
pub fn component(name: &str, label: Option<&str>) -> String {
    label.map_or_else(|| format!("reward/{name}"), |label| format!("reward/{label}/{name}"))
}

/// Mean mixed reward of one label.
#[must_use]
pub fn label_reward(label: &str) -> String {
    format!("reward/{label}/mean")
}

/// Seconds of one phase.
#[must_use]
pub fn phase_seconds(phase: &str) -> String {
    format!("seconds/{phase}")
}

/// A figure that the policy update reports.
#[must_use]
pub fn policy(name: &str) -> String {
    format!("policy/{name}")
}
