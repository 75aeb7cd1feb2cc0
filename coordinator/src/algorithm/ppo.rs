//! PPO with a critic (Schulman et al. 2017), as LightRFT, safe-rlhf and verl have it:
//!
//! ```text
//! R     = sum_c w_c s_c                                    the label's mix of components
//! r_t   = clamp(-beta kl_t + [t = last] R)                 beta 0 where the KL is in the loss
//! A, G  = GAE(r, V)                                        A whitened where asked
//! critic: 1/2 agg(max((v - G)^2, (clip(v, V ± c) - G)^2))
//! policy: clipped ratio with A; then one step on coef * LM loss where [algorithm.ptx] is
//! beta  <- beta (1 + clip(kl / target - 1, ±0.2) n / horizon)   where kl.target is
//! ```
//!
//! During `critic.warmup_steps` only the critic learns. `beta` changes from step to step.

use plumb_algo::kl_controller::KlController;
use plumb_config::{KlPlace, Recipe};
use plumb_domain::{Role, StepId};
use plumb_proto::actor::{CriticSignal, PolicyLossSpec, SampleScore, TokenAdvantageSpec};
use plumb_telemetry::metric;
use serde_json::Value;

use super::Algorithm;
use super::grpo::Grpo;
use super::state::Stepwise;
use crate::fleet::critic::critics_of;
use crate::learning_rate::learning_rate;
use crate::ports::{CriticPlan, Generation, PhaseError, ReferenceLogps, SampleScores, UpdatePlan};

/// PPO as a recipe sets it.
pub struct Ppo {
    parts: CriticParts,
    kl: Stepwise<KlController>,
}

impl Ppo {
    /// Takes the recipe's `[algorithm]` and `[reward]`.
    #[must_use]
    pub fn new(recipe: &Recipe) -> Self {
        Self { parts: CriticParts::new(recipe), kl: Stepwise::new(kl_controller(recipe)) }
    }
}

impl Algorithm for Ppo {
    fn plan(
        &self,
        step: StepId,
        generation: &Generation,
        scores: &[SampleScores],
        reference: &ReferenceLogps,
    ) -> Result<UpdatePlan, PhaseError> {
        let mut kl = self.kl.before(step);
        // R of each sample; those without one do not count.
        let mut plan = self.parts.rewards.plan(step, generation, scores, reference)?;
        plan.critics = vec![self.parts.critic(Role::Critic, step, &plan.rewards, kl.coef())?];
        plan.whiten = self.parts.recipe.algorithm.gae.whiten;
        plan.freeze_policy = self.parts.warms_up(step);
        plan.metrics.insert(metric::KL_COEF.to_owned(), kl.coef());
        follow(&mut kl, generation, reference)?;
        self.kl.after(step, kl);
        Ok(plan)
    }

    fn loss(&self) -> PolicyLossSpec {
        self.parts.loss(self.kl.planned().coef())
    }

    fn token_advantage(&self) -> TokenAdvantageSpec {
        CriticParts::token_advantage()
    }

    fn state(&self) -> Value {
        serde_json::json!({ "kl": self.kl.now() })
    }

    fn restore(&self, state: &Value) -> Result<(), PhaseError> {
        self.kl.restore(state.get("kl"))
    }
}

/// What PPO and PPO-Lag have in common.
pub(super) struct CriticParts {
    pub(super) recipe: Recipe,
    /// Mixes scores into rewards: GAE takes them as they are.
    pub(super) rewards: Grpo,
}

impl CriticParts {
    pub(super) fn new(recipe: &Recipe) -> Self {
        Self { recipe: recipe.clone(), rewards: Grpo::new(recipe) }
    }

    /// Whether only critics learn in this step.
    pub(super) fn warms_up(&self, step: StepId) -> bool {
        let critic = self.recipe.algorithm.critic.as_ref();
        critic.is_some_and(|critic| step.0 < critic.warmup_steps)
    }

    /// What a critic learns of samples with these rewards or costs.
    pub(super) fn critic<'a>(
        &self,
        role: Role,
        step: StepId,
        scores: impl IntoIterator<Item = (&'a String, &'a f64)>,
        kl_coef: f64,
    ) -> Result<CriticPlan, PhaseError> {
        let a = &self.recipe.algorithm;
        let critics = critics_of(a);
        let failed =
            |problem: String| PhaseError::Failed(format!("step {step}, {role}: {problem}"));
        let critic = critics.iter().find(|(of, _)| *of == role);
        let (_, critic) = critic.ok_or_else(|| failed("the recipe has none".to_owned()))?;
        let rates = learning_rate(&critic.optimizer, a.steps).map_err(|e| failed(e.to_string()))?;
        let score =
            |(id, score): (&String, &f64)| SampleScore { sample_id: id.clone(), score: *score };
        Ok(CriticPlan {
            role,
            signal: CriticSignal {
                kind: if role == Role::CostCritic { "cost" } else { "reward" }.to_owned(),
                scores: scores.into_iter().map(score).collect(),
                values: Vec::new(),
                kl_coef: if a.kl.place == KlPlace::Reward { kl_coef } else { 0.0 },
                kl_kind: a.kl.kind.as_str().to_owned(),
                clip: a.gae.reward_clip,
                gamma: a.gamma,
                lambda: a.gae.lambda,
            },
            learning_rate: rates.rate(step.0),
        })
    }

    /// The workers lay GAE's advantages on tokens; nothing of a sample's is laid on them.
    pub(super) fn token_advantage() -> TokenAdvantageSpec {
        TokenAdvantageSpec { kl_in_reward_coef: 0.0, kl_kind: String::new(), gamma: 1.0 }
    }

    /// The policy's loss under this KL coefficient.
    pub(super) fn loss(&self, kl_coef: f64) -> PolicyLossSpec {
        let in_loss = self.recipe.algorithm.kl.place == KlPlace::Loss;
        PolicyLossSpec { kl_coef: if in_loss { kl_coef } else { 0.0 }, ..self.rewards.loss() }
    }
}

/// The KL coefficient as it is at the start.
pub(super) fn kl_controller(recipe: &Recipe) -> KlController {
    let kl = &recipe.algorithm.kl;
    match kl.target {
        None => KlController::Fixed { coef: kl.coef },
        Some(target) => KlController::Adaptive { coef: kl.coef, target, horizon: kl.horizon },
    }
}

/// Moves the coefficient by the KL that was measured on the samples.
pub(super) fn follow(
    kl: &mut KlController,
    generation: &Generation,
    reference: &ReferenceLogps,
) -> Result<(), PhaseError> {
    let samples = generation.samples().count();
    kl.update(reference.kl_per_token(), samples)
        .map_err(|error| PhaseError::Failed(error.to_string()))
}

#[cfg(test)]
pub(in crate::algorithm) mod tests;
