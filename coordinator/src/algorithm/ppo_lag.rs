//! PPO-Lag (Dai et al. 2024, safe-rlhf): PPO with two critics under a constraint on the mean cost.
//!
//! ```text
//! J      <- mean of the latest `window` costs, those of this step among them
//! log l  <- min(log l + lr (J - d) l, log max)             from step `delay_steps` on
//! r_t    = clamp(-beta kl_t + [t = last] R),  c_t = clamp(+beta kl_t + [t = last] C)
//! A_r, G_r = GAE(r, V_r);  A_c, G_c = GAE(c, V_c)
//! A      = (A_r - l A_c) / (1 + l)
//! critics: as PPO's, each with its own returns;  policy: clipped ratio with A, then PTX
//! ```
//!
//! The multiplier, the window of costs and `beta` change from step to step.

use std::collections::BTreeMap;

use plumb_algo::AlgoError;
use plumb_algo::constraint::{CostWindow, Multiplier, MultiplierSpec};
use plumb_algo::kl_controller::KlController;
use plumb_config::{LagrangeConfig, Recipe};
use plumb_domain::{Role, StepId};
use plumb_proto::actor::{PolicyLossSpec, TokenAdvantageSpec};
use plumb_telemetry::metric;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Algorithm;
use super::ppo::{CriticParts, follow, kl_controller};
use super::state::Stepwise;
use crate::ports::{Generation, PhaseError, ReferenceLogps, SampleScores, UpdatePlan};

/// PPO-Lag as a recipe sets it.
pub struct PpoLag {
    parts: CriticParts,
    constraint: LagrangeConfig,
    state: Stepwise<State>,
}

/// What changes from step to step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    log_lambda: f64,
    /// The costs of the window, oldest first.
    episode_costs: Vec<f64>,
    kl: KlController,
}

impl PpoLag {
    /// Takes the recipe's `[algorithm]` and `[reward]`; `None` where it has no constraint.
    #[must_use]
    pub fn new(recipe: &Recipe) -> Option<Self> {
        let constraint = recipe.algorithm.lagrange.clone()?;
        let state = State {
            log_lambda: constraint.initial.ln(),
            episode_costs: Vec::new(),
            kl: kl_controller(recipe),
        };
        let state = Stepwise::new(state);
        Some(Self { parts: CriticParts::new(recipe), constraint, state })
    }

    /// The multiplier after this step's costs; extends the window by them.
    fn multiplier(
        &self,
        state: &mut State,
        step: StepId,
        costs: &[f64],
    ) -> Result<(f64, f64), AlgoError> {
        let c = &self.constraint;
        let mut window = CostWindow::new(c.window)?;
        window.extend(&state.episode_costs)?;
        window.extend(costs)?;
        let spec = MultiplierSpec {
            initial: c.initial,
            learning_rate: c.learning_rate,
            max: c.max,
            delay_steps: c.delay_steps,
            threshold: c.threshold,
        };
        let mut multiplier = Multiplier::resumed(spec, state.log_lambda)?;
        let episode_cost = window.mean()?;
        multiplier.update(step.0, episode_cost)?;
        state.log_lambda = multiplier.log_lambda();
        state.episode_costs = window.to_vec();
        Ok((multiplier.lambda(), episode_cost))
    }
}

impl Algorithm for PpoLag {
    fn plan(
        &self,
        step: StepId,
        generation: &Generation,
        scores: &[SampleScores],
        reference: &ReferenceLogps,
    ) -> Result<UpdatePlan, PhaseError> {
        let mut state = self.state.before(step);
        let failed = |error: AlgoError| PhaseError::Failed(format!("step {step}: {error}"));
        // R and C of each sample; a sample that lacks one of them does not count.
        let mut plan = self.parts.rewards.plan(step, generation, scores, reference)?;
        let costs = costs(&self.constraint.cost, scores);
        plan.rewards.retain(|id, _| costs.contains_key(id));
        let costs: BTreeMap<_, _> =
            costs.into_iter().filter(|(id, _)| plan.rewards.contains_key(id)).collect();
        for sample in &mut plan.advantages {
            sample.keep &= costs.contains_key(&sample.sample_id);
        }
        if costs.is_empty() {
            let problem = format!("step {step}: no sample has both a reward and a cost");
            return Err(PhaseError::Failed(problem));
        }
        let samples: Vec<f64> = costs.values().copied().collect();
        let (lambda, episode_cost) = self.multiplier(&mut state, step, &samples).map_err(failed)?;
        let beta = state.kl.coef();
        plan.critics = vec![
            self.parts.critic(Role::Critic, step, &plan.rewards, beta)?,
            self.parts.critic(Role::CostCritic, step, &costs, beta)?,
        ];
        plan.cost_weight = lambda;
        plan.whiten = self.parts.recipe.algorithm.gae.whiten;
        plan.freeze_policy = self.parts.warms_up(step);
        let mean_cost = samples.iter().sum::<f64>() / samples.len() as f64;
        let figures = [
            (metric::COST_MEAN, mean_cost),
            (metric::EPISODE_COST, episode_cost),
            (metric::LAMBDA, lambda),
            (metric::KL_COEF, beta),
        ];
        plan.metrics.extend(figures.map(|(name, value)| (name.to_owned(), value)));
        follow(&mut state.kl, generation, reference)?;
        self.state.after(step, state);
        Ok(plan)
    }

    fn loss(&self) -> PolicyLossSpec {
        self.parts.loss(self.state.planned().kl.coef())
    }

    fn token_advantage(&self) -> TokenAdvantageSpec {
        CriticParts::token_advantage()
    }

    fn state(&self) -> Value {
        serde_json::json!({ "ppo_lag": self.state.now() })
    }

    fn restore(&self, state: &Value) -> Result<(), PhaseError> {
        self.state.restore(state.get("ppo_lag"))
    }
}

/// Sample -> its cost, of those that have one.
fn costs(component: &str, scores: &[SampleScores]) -> BTreeMap<String, f64> {
    let cost = |sample: &SampleScores| {
        let cost = sample.scores.get(component)?.as_ref().ok().filter(|cost| cost.is_finite())?;
        Some((sample.sample_id.clone(), *cost))
    };
    scores.iter().filter_map(cost).collect()
}

#[cfg(test)]
mod tests;
