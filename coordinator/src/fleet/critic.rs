//! The critics: models that tell the value before every token of an answer. One is of the reward;
//! under a constraint another one is of the cost.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::try_join_all;
use plumb_config::{AlgorithmConfig, CriticConfig, Recipe};
use plumb_domain::Role;
use plumb_proto::actor::{
    CriticSignal, LoadRequest, ScoreHeadSpec, UpdateValuesRequest, ValueLossSpec, ValuesRequest,
};

use super::RoleGroup;
use super::group::CallId;
use super::optimizer::optimizer_spec;
use super::reference::{client, engine_spec, shard_group};
use crate::ports::{
    Answer, CriticPlan, Critics, Generation, PhaseError, PhaseKey, ReferenceLogps, UpdatePlan,
    Values,
};

/// The critics of a stage with their models loaded.
pub struct CriticFleet {
    recipe: Arc<Recipe>,
    critics: Vec<Critic>,
}

struct Critic {
    group: Arc<RoleGroup>,
    config: CriticConfig,
    model: PathBuf,
}

/// The roles of an algorithm's critics, with what they start from and how they learn.
#[must_use]
pub fn critics_of(algorithm: &AlgorithmConfig) -> Vec<(Role, &CriticConfig)> {
    let reward = algorithm.critic.iter().map(|critic| (Role::Critic, critic));
    let cost = algorithm.cost_critic.as_ref().or(algorithm.critic.as_ref());
    let cost = cost.filter(|_| algorithm.lagrange.is_some());
    reward.chain(cost.map(|critic| (Role::CostCritic, critic))).collect()
}

impl CriticFleet {
    /// Takes each critic's group, its keys and the folder that it starts from;
    /// [`CriticFleet::load`] must follow.
    #[must_use]
    pub fn new(recipe: Arc<Recipe>, critics: Vec<(Arc<RoleGroup>, CriticConfig, PathBuf)>) -> Self {
        let critic = |(group, config, model)| Critic { group, config, model };
        Self { recipe, critics: critics.into_iter().map(critic).collect() }
    }

    /// The workers of all critics.
    #[must_use]
    pub fn groups(&self) -> Vec<Arc<RoleGroup>> {
        self.critics.iter().map(|critic| critic.group.clone()).collect()
    }

    /// Loads what every critic starts from, after a loss too: a commit is restored on top of it.
    ///
    /// # Errors
    /// A rank was lost or refused the model.
    pub async fn load(&self) -> Result<(), PhaseError> {
        try_join_all(self.critics.iter().map(|critic| self.load_one(critic))).await?;
        Ok(())
    }

    async fn load_one(&self, critic: &Critic) -> Result<(), PhaseError> {
        let group = &critic.group;
        group.wait_ready().await?;
        let workers = group.workers();
        let name = shard_group(group, &workers).await?;
        let optimizer = optimizer_spec(&critic.config.optimizer);
        let head = ScoreHeadSpec {
            kind: "linear".to_owned(),
            hidden_dims: Vec::new(),
            init_seed: self.recipe.seed,
        };
        let attempt = group.fresh_attempt();
        group
            .call_all(&workers, "load", |worker, shard| {
                let id = CallId { step: 0, phase: "load", shard, attempt };
                let request = LoadRequest {
                    context: Some(group.context(&worker, &id)),
                    model_path: critic.model.display().to_string(),
                    engine: Some(engine_spec(&self.recipe, critic.config.frozen_layers)),
                    optimizer: Some(optimizer.clone()),
                    score_head: Some(head.clone()),
                    group: name.clone(),
                    policy_version: 0,
                    lora: None,
                };
                async move { Ok(client(&worker).load(request).await?.into_inner()) }
            })
            .await?;
        Ok(())
    }

    async fn ask(&self, key: PhaseKey, generation: &Generation) -> Result<Values, PhaseError> {
        let samples = generation.objects();
        let wanted = generation.samples().count();
        let answers = self.critics.iter().map(|critic| async {
            let group = &critic.group;
            let phase = key.phase.as_str();
            let answers = group
                .call_all(&group.workers(), phase, |worker, shard| {
                    let id = CallId { step: key.step.0, phase, shard, attempt: key.attempt };
                    let context = Some(group.context(&worker, &id));
                    let request = ValuesRequest { context, samples: samples.clone() };
                    async move { Ok(client(&worker).values(request).await?.into_inner()) }
                })
                .await?;
            let got: usize = answers.iter().map(|answer| answer.samples as usize).sum();
            if got != wanted {
                let role = group.role();
                let problem = format!("the {role} answered for {got} of {wanted} samples");
                return Err(PhaseError::Failed(problem));
            }
            Ok((group.role(), answers.into_iter().filter_map(|answer| answer.values).collect()))
        });
        Ok(Values { objects: try_join_all(answers).await?.into_iter().collect() })
    }

    async fn learn(
        &self,
        key: PhaseKey,
        generation: &Generation,
        reference: &ReferenceLogps,
        values: &Values,
        plan: &UpdatePlan,
    ) -> Result<BTreeMap<String, f64>, PhaseError> {
        let signals = signals(&plan.critics, values)?;
        let updates = plan.critics.iter().zip(signals).map(|(plan, signal)| {
            let critic = self.critics.iter().find(|critic| critic.group.role() == plan.role);
            self.learn_one(key, critic, plan, signal, (generation, reference))
        });
        Ok(try_join_all(updates).await?.into_iter().flatten().collect())
    }

    async fn learn_one(
        &self,
        key: PhaseKey,
        critic: Option<&Critic>,
        plan: &CriticPlan,
        signal: CriticSignal,
        (generation, reference): (&Generation, &ReferenceLogps),
    ) -> Result<BTreeMap<String, f64>, PhaseError> {
        let role = plan.role;
        let failed = |problem: String| Err(PhaseError::Failed(problem));
        let Some(critic) = critic else {
            return failed(format!("the algorithm trains a {role}, and the stage has none"));
        };
        let (group, phase) = (&critic.group, key.phase.as_str());
        let (config, a) = (&critic.config, &self.recipe.algorithm);
        let loss = ValueLossSpec {
            clip: config.value_clip,
            aggregation: config.aggregation.clone(),
            norm_tokens: 0.0,
        };
        let samples = generation.objects();
        let answers = group
            .call_all(&group.workers(), phase, |worker, shard| {
                let id = CallId { step: key.step.0, phase, shard, attempt: key.attempt };
                let request = UpdateValuesRequest {
                    context: Some(group.context(&worker, &id)),
                    samples: samples.clone(),
                    reference_logps: reference.objects.clone(),
                    signal: Some(signal.clone()),
                    loss: Some(loss.clone()),
                    mini_batches: config.mini_batches.unwrap_or(a.mini_batches),
                    epochs: config.epochs.unwrap_or(a.epochs),
                    learning_rate: plan.learning_rate,
                };
                async move { Ok(client(&worker).update_values(request).await?.into_inner()) }
            })
            .await?;
        let metrics = answers.into_iter().next().map(|a| a.metrics).unwrap_or_default();
        if let Some((name, value)) = metrics.iter().find(|(_, value)| !value.is_finite()) {
            let step = key.step;
            return failed(format!("the {role}'s update of step {step} gave {name} = {value}"));
        }
        Ok(metrics.into_iter().map(|(name, value)| (format!("{role}/{name}"), value)).collect())
    }
}

/// The signals of a plan, with the critics' values in them.
pub(super) fn signals(
    plans: &[CriticPlan],
    values: &Values,
) -> Result<Vec<CriticSignal>, PhaseError> {
    let signal = |plan: &CriticPlan| match values.objects.get(&plan.role) {
        Some(objects) => Ok(CriticSignal { values: objects.clone(), ..plan.signal.clone() }),
        None => Err(PhaseError::Failed(format!("no {} has told values", plan.role))),
    };
    plans.iter().map(signal).collect()
}

impl Critics for CriticFleet {
    fn values<'a>(&'a self, key: PhaseKey, generation: &'a Generation) -> Answer<'a, Values> {
        Box::pin(self.ask(key, generation))
    }

    fn update<'a>(
        &'a self,
        key: PhaseKey,
        generation: &'a Generation,
        reference: &'a ReferenceLogps,
        values: &'a Values,
        plan: &'a UpdatePlan,
    ) -> Answer<'a, BTreeMap<String, f64>> {
        Box::pin(self.learn(key, generation, reference, values, plan))
    }
}

#[cfg(test)]
mod tests {
    use plumb_proto::object::ObjectRef;

    use super::*;

    #[test]
    fn an_algorithm_has_the_critics_that_its_tables_say() {
        let mut algorithm = AlgorithmConfig::default();
        assert!(critics_of(&algorithm).is_empty());
        let critic = |rate: f64| -> CriticConfig {
            toml::from_str(&format!("optimizer = {{ learning_rate = {rate:?} }}")).unwrap()
        };
        algorithm.critic = Some(critic(1.0));
        let roles = |a: &AlgorithmConfig| -> Vec<(Role, f64)> {
            critics_of(a).iter().map(|(role, c)| (*role, c.optimizer.learning_rate)).collect()
        };
        assert_eq!(roles(&algorithm), [(Role::Critic, 1.0)]);
        algorithm.lagrange = Some(toml::from_str("cost = 'harm'").unwrap());
        assert_eq!(roles(&algorithm), [(Role::Critic, 1.0), (Role::CostCritic, 1.0)]);
        algorithm.cost_critic = Some(critic(2.0));
        assert_eq!(roles(&algorithm)[1], (Role::CostCritic, 2.0));
    }

    #[test]
    fn a_signal_gets_its_own_critics_values() {
        let plan = |role| CriticPlan { role, signal: CriticSignal::default(), learning_rate: 0.1 };
        let object = ObjectRef { id: "v".into(), ..ObjectRef::default() };
        let values = Values { objects: [(Role::Critic, vec![object.clone()])].into() };
        assert_eq!(signals(&[plan(Role::Critic)], &values).unwrap()[0].values, [object]);
        let error = signals(&[plan(Role::CostCritic)], &values).unwrap_err().to_string();
        assert_eq!(error, "no cost_critic has told values");
    }
}
