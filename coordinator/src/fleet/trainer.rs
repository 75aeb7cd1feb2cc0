//! Reward-model training by the reward trainer group.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plumb_config::{Recipe, RewardModelStage};
use plumb_proto::actor::{
    LoadRequest, OptimizerSpec, PairScore, ScoreHeadSpec, ScorePairsRequest, TextPair,
    TrainPairsRequest,
};

use super::RoleGroup;
use super::group::CallId;
use super::policy::export;
use super::reference::{client, engine_spec, shard_group};
use crate::ports::PhaseError;

/// The trainer group with backbone and score head loaded.
pub struct Trainer {
    group: Arc<RoleGroup>,
}

impl Trainer {
    /// Loads `model` with a score head.
    ///
    /// # Errors
    /// A rank was lost or refused.
    pub async fn load(
        group: Arc<RoleGroup>,
        recipe: &Recipe,
        stage: &RewardModelStage,
        model: PathBuf,
    ) -> Result<Self, PhaseError> {
        let workers = group.workers();
        let name = shard_group(&group, &workers).await?;
        let o = &stage.optimizer;
        let optimizer = OptimizerSpec {
            learning_rate: o.learning_rate,
            beta1: o.betas[0],
            beta2: o.betas[1],
            eps: o.eps,
            weight_decay: o.weight_decay,
            max_grad_norm: o.max_grad_norm,
        };
        let head = ScoreHeadSpec {
            kind: stage.head.kind.as_str().to_owned(),
            hidden_dims: stage.head.hidden_dims.clone(),
            init_seed: recipe.seed,
        };
        let attempt = group.fresh_attempt();
        group
            .call_all(&workers, "load", |worker, shard| {
                let id = CallId { step: 0, phase: "load", shard, attempt };
                let request = LoadRequest {
                    context: Some(group.context(&worker, &id)),
                    model_path: model.display().to_string(),
                    engine: Some(engine_spec(recipe, stage.frozen_layers)),
                    optimizer: Some(optimizer),
                    score_head: Some(head.clone()),
                    group: name.clone(),
                    policy_version: 0,
                };
                async move { Ok(client(&worker).load(request).await?.into_inner()) }
            })
            .await?;
        Ok(Self { group })
    }

    /// One optimiser step; every rank gets all pairs and takes its share. Returns its figures.
    ///
    /// # Errors
    /// A rank was lost, or the loss is not finite.
    pub async fn train(
        &self,
        step: u64,
        pairs: &[TextPair],
        learning_rate: f64,
        regularization: f64,
    ) -> Result<BTreeMap<String, f64>, PhaseError> {
        let workers = self.group.workers();
        let answers = self
            .group
            .call_all(&workers, "train_pairs", |worker, shard| {
                let id = CallId { step, phase: "train_pairs", shard, attempt: 0 };
                let request = TrainPairsRequest {
                    context: Some(self.group.context(&worker, &id)),
                    pairs: pairs.to_vec(),
                    learning_rate,
                    regularization,
                };
                async move { Ok(client(&worker).train_pairs(request).await?.into_inner()) }
            })
            .await?;
        let metrics: BTreeMap<String, f64> =
            answers.into_iter().next().map(|a| a.metrics.into_iter().collect()).unwrap_or_default();
        match metrics.iter().find(|(_, value)| !value.is_finite()) {
            Some((name, value)) => {
                Err(PhaseError::Failed(format!("reward model step {step} gave {name} = {value}")))
            }
            None => Ok(metrics),
        }
    }

    /// End scores of pairs, without gradients.
    ///
    /// # Errors
    /// A rank was lost.
    pub async fn score(&self, step: u64, pairs: &[TextPair]) -> Result<Vec<PairScore>, PhaseError> {
        let workers = self.group.workers();
        let answers = self
            .group
            .call_all(&workers, "score_pairs", |worker, shard| {
                let id = CallId { step, phase: "score_pairs", shard, attempt: 0 };
                let request = ScorePairsRequest {
                    context: Some(self.group.context(&worker, &id)),
                    pairs: pairs.to_vec(),
                };
                async move { Ok(client(&worker).score_pairs(request).await?.into_inner()) }
            })
            .await?;
        Ok(answers.into_iter().flat_map(|a| a.scores).collect())
    }

    /// Writes the reward model as a Hugging Face folder.
    ///
    /// # Errors
    /// A rank was lost, or the disk refused.
    pub async fn export(&self, folder: &Path, dtype: &str) -> Result<u64, PhaseError> {
        export(&self.group, folder, dtype).await
    }
}
