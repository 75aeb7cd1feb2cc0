//! GRPO and its relatives: the answers to one prompt are compared with one another.
//!
//! - scores: the label's mix of components, `R = sum w_c s_c` (SafeWork-R1);
//! - advantages: as the recipe's `algorithm.advantage` says ([`estimator`]);
//! - loss: clipped ratio, KL to the reference in the loss or in the reward.
//!
//! Nothing here changes from step to step.

mod estimator;

use std::collections::BTreeMap;

use plumb_algo::advantage::Estimator;
use plumb_algo::group::Groups;
use plumb_algo::mix::{Mix, MixError};
use plumb_config::{ImportanceConfig, ImportanceKind, Recipe};
use plumb_domain::StepId;
use plumb_proto::actor::{ImportanceSpec, PolicyLossSpec, SampleAdvantage, TokenAdvantageSpec};
use plumb_telemetry::metric;

use super::Algorithm;
use crate::learning_rate::learning_rate;
use crate::ports::{Generation, PhaseError, ReferenceLogps, SampleScores, UpdatePlan};

/// GRPO as a recipe sets it.
pub struct Grpo {
    recipe: Recipe,
    estimator: Estimator,
    mix: Mix,
}

/// One sample with its reward.
struct Rewarded<'a> {
    sample_id: &'a str,
    group: usize,
    label: &'a str,
    reward: f64,
    scores: BTreeMap<String, f64>,
    tokens: u32,
}

impl Grpo {
    /// Takes the recipe's `[algorithm]` and `[reward]`.
    #[must_use]
    pub fn new(recipe: &Recipe) -> Self {
        let estimator = estimator::estimator(&recipe.algorithm);
        Self { recipe: recipe.clone(), estimator, mix: mix(recipe) }
    }

    /// Mixes each sample's scores; samples whose reward failed are left out and told.
    fn rewards<'a>(
        &self,
        generation: &'a Generation,
        scores: &[SampleScores],
    ) -> Result<(Vec<Rewarded<'a>>, Vec<MixError>), PhaseError> {
        let by_id: BTreeMap<&str, &SampleScores> =
            scores.iter().map(|s| (s.sample_id.as_str(), s)).collect();
        let (mut rewarded, mut failed) = (Vec::new(), Vec::new());
        for (group, prompt) in generation.groups.iter().enumerate() {
            for sample in &prompt.samples {
                let scores = by_id.get(sample.sample_id.as_str());
                let score = |component: &str| match scores.and_then(|s| s.scores.get(component)) {
                    Some(score) => score.clone(),
                    None => Err("the reward worker returned none".to_owned()),
                };
                match self.mix.reward(&prompt.label, score) {
                    Ok(mixed) => rewarded.push(Rewarded {
                        sample_id: &sample.sample_id,
                        group,
                        label: &prompt.label,
                        reward: mixed.total,
                        scores: mixed.scores,
                        tokens: sample.response_tokens,
                    }),
                    Err(error @ MixError::UnknownLabel { .. }) => {
                        return Err(PhaseError::Failed(error.to_string()));
                    }
                    Err(error) => failed.push(error),
                }
            }
        }
        Ok((rewarded, failed))
    }
}

/// The recipe's mixes as the algorithm crate has them.
#[must_use]
pub fn mix(recipe: &Recipe) -> Mix {
    Mix { labels: recipe.reward.mix.clone(), ..Mix::default() }
}

impl Algorithm for Grpo {
    fn plan(
        &self,
        step: StepId,
        generation: &Generation,
        scores: &[SampleScores],
        _: &ReferenceLogps,
    ) -> Result<UpdatePlan, PhaseError> {
        let (rewarded, failed) = self.rewards(generation, scores)?;
        let (rewarded, alone) = match self.estimator.compares_within_group() {
            true => without_lone_samples(rewarded),
            false => (rewarded, 0),
        };
        if rewarded.is_empty() {
            let cause = failed.first().map_or_else(String::new, |e| format!(": {e}"));
            let samples = generation.samples().count();
            return Err(PhaseError::Failed(format!(
                "step {step}: none of {samples} samples has a reward to compare{cause}"
            )));
        }
        let rewards: Vec<f64> = rewarded.iter().map(|r| r.reward).collect();
        let groups = Groups::by_key(&rewarded.iter().map(|r| r.group).collect::<Vec<_>>());
        let advantages = estimator::advantages(&self.estimator, &self.mix, &rewarded, &groups)
            .map_err(|error| PhaseError::Failed(format!("step {step}: {error}")))?;
        let equal = in_equal_group(&rewards, &groups);
        let skip = self.recipe.algorithm.skip_equal_groups && equal.iter().any(|e| !e);
        let mut plan: Vec<SampleAdvantage> = rewarded
            .iter()
            .zip(advantages)
            .zip(&equal)
            .map(|((r, advantage), equal)| SampleAdvantage {
                sample_id: r.sample_id.to_owned(),
                advantage,
                keep: !(skip && *equal),
            })
            .collect();
        // Samples without a reward are told to the policy too, as not to be used.
        let known: Vec<&str> = rewarded.iter().map(|r| r.sample_id).collect();
        for sample in generation.samples().filter(|s| !known.contains(&s.sample_id.as_str())) {
            plan.push(SampleAdvantage {
                sample_id: sample.sample_id.clone(),
                advantage: 0.0,
                keep: false,
            });
        }
        let mut metrics = reward_metrics(&rewarded);
        let samples = generation.samples().count() as f64;
        let share = (failed.len() + alone) as f64 / samples;
        metrics.insert(metric::REWARD_FAILED.to_owned(), share);
        let equal_share = equal.iter().filter(|e| **e).count() as f64 / equal.len() as f64;
        metrics.insert(metric::EQUAL_GROUPS.to_owned(), equal_share);
        if let Some(error) = failed.first() {
            tracing::warn!(step = step.0, failed = failed.len(), %error, "rewards failed");
        }
        let algorithm = &self.recipe.algorithm;
        let rates = learning_rate(&algorithm.optimizer, algorithm.steps)
            .map_err(|error| PhaseError::Failed(format!("step {step}: {error}")))?;
        Ok(UpdatePlan {
            advantages: plan,
            learning_rate: rates.rate(step.0),
            metrics,
            rewards: rewarded.iter().map(|r| (r.sample_id.to_owned(), r.reward)).collect(),
            ..UpdatePlan::default()
        })
    }

    fn loss(&self) -> PolicyLossSpec {
        let a = &self.recipe.algorithm;
        PolicyLossSpec {
            kind: a.loss.kind.as_str().to_owned(),
            clip_low: a.loss.clip_low,
            clip_high: a.loss.clip_high,
            dual_clip: a.loss.dual_clip,
            kl_coef: self.recipe.kl_in_loss(),
            kl_kind: a.kl.kind.as_str().to_owned(),
            verl_clamps: a.loss.verl_clamps,
            aggregation: a.loss.aggregation.clone(),
            norm_tokens: a.loss.norm_tokens,
            entropy_coef: a.loss.entropy_coef,
            tau_pos: a.loss.tau_pos,
            tau_neg: a.loss.tau_neg,
            importance: importance(&a.loss.importance),
        }
    }

    fn token_advantage(&self) -> TokenAdvantageSpec {
        let a = &self.recipe.algorithm;
        TokenAdvantageSpec {
            kl_in_reward_coef: self.recipe.kl_in_reward(),
            kl_kind: a.kl.kind.as_str().to_owned(),
            gamma: a.gamma,
        }
    }
}

/// The correction on the wire; none where it is off.
fn importance(config: &ImportanceConfig) -> Option<ImportanceSpec> {
    (config.kind != ImportanceKind::Off).then(|| ImportanceSpec {
        kind: config.kind.as_str().to_owned(),
        cap: config.cap,
        low: config.low,
        high: config.high,
    })
}

/// Leaves out samples whose group has no other sample left; returns how many there were.
fn without_lone_samples(rewarded: Vec<Rewarded<'_>>) -> (Vec<Rewarded<'_>>, usize) {
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    for r in &rewarded {
        *sizes.entry(r.group).or_default() += 1;
    }
    let before = rewarded.len();
    let kept: Vec<_> = rewarded.into_iter().filter(|r| sizes[&r.group] > 1).collect();
    let alone = before - kept.len();
    (kept, alone)
}

/// For each sample, whether all rewards of its group are equal.
fn in_equal_group(rewards: &[f64], groups: &Groups) -> Vec<bool> {
    let mut equal = vec![false; rewards.len()];
    for members in groups.iter() {
        let all = members.windows(2).all(|w| rewards[w[0]] == rewards[w[1]]);
        for member in members {
            equal[*member] = all;
        }
    }
    equal
}

/// Mean reward, by label, and each component, over all labels and by label.
fn reward_metrics(rewarded: &[Rewarded<'_>]) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    let mut add = |name: String, value: f64| {
        let entry = sums.entry(name).or_default();
        *entry = (entry.0 + value, entry.1 + 1.0);
    };
    for r in rewarded {
        add(metric::REWARD_MEAN.to_owned(), r.reward);
        add(metric::label_reward(r.label), r.reward);
        for (component, score) in &r.scores {
            add(metric::component(component, None), *score);
            add(metric::component(component, Some(r.label)), *score);
        }
    }
    sums.into_iter().map(|(name, (sum, n))| (name, sum / n)).collect()
}

#[cfg(test)]
mod tests;
