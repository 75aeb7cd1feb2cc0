//! A worker group that trains on a data set: supervised, on scores, or on preferences.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plumb_config::{LoraConfig, OptimizerConfig, Recipe, ScoreHeadConfig};
use plumb_proto::actor::{
    AnswerLogProbs, AnswerLogProbsRequest, AnswerPair, Dialogue, EncodeRequest, LoadRequest,
    MeasurePreferencesRequest, MeasureTextsRequest, PairScore, PreferenceLossSpec, ScoreHeadSpec,
    ScorePairsRequest, TargetText, TextPair, TrainPairsRequest, TrainPreferencesRequest,
    TrainTextsRequest,
};
use plumb_proto::worker::CallContext;
use tonic::Status;

use super::RoleGroup;
use super::figures::{Figures, figures};
use super::group::CallId;
use super::optimizer::{adopt_average, optimizer_spec};
use super::policy::export;
use super::reference::{client, engine_spec, lora_spec, shard_group};
use crate::cluster::Worker;
use crate::ports::PhaseError;

/// Dialogues encoded in one call.
const DIALOGUES_PER_CALL: usize = 256;

/// What a trainer starts from and how it steps.
pub struct TrainerSettings<'a> {
    /// Folder of the model.
    pub model: PathBuf,
    /// Absent for a language model.
    pub head: Option<&'a ScoreHeadConfig>,
    /// Layers, from the lowest, that stay as they are.
    pub frozen_layers: u32,
    /// AdamW.
    pub optimizer: &'a OptimizerConfig,
    /// Low-rank adapters; absent: the whole model is trained.
    pub lora: Option<&'a LoraConfig>,
}

/// What a score head learns of pairs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoreLoss {
    /// The worse text scores higher, instead of the better one.
    pub cost: bool,
    /// Of a cost: whether safe texts score below 0 and unsafe ones above.
    pub sign_terms: bool,
    /// Whether the scores of all tokens in which the texts differ count.
    pub token_wise: bool,
    /// Coefficient of the squared scores.
    pub regularization: f64,
}

/// The trainer group with its model loaded.
pub struct Trainer {
    group: Arc<RoleGroup>,
    model: PathBuf,
    /// Whether the ranks keep a moving average.
    averages: bool,
}

impl Trainer {
    /// Loads a model for training.
    ///
    /// # Errors
    /// A rank was lost or refused.
    pub async fn load(
        group: Arc<RoleGroup>,
        recipe: &Recipe,
        settings: TrainerSettings<'_>,
    ) -> Result<Self, PhaseError> {
        let workers = group.workers();
        let name = shard_group(&group, &workers).await?;
        let optimizer = optimizer_spec(settings.optimizer);
        let head = settings.head.map(|head| ScoreHeadSpec {
            kind: head.kind.as_str().to_owned(),
            hidden_dims: head.hidden_dims.clone(),
            init_seed: recipe.seed,
        });
        let averages = settings.optimizer.ema.is_some();
        let trainer = Self { group, model: settings.model, averages };
        let attempt = trainer.group.fresh_attempt();
        let load = |worker: Worker, context| {
            let request = LoadRequest {
                context: Some(context),
                model_path: trainer.model.display().to_string(),
                engine: Some(engine_spec(recipe, settings.frozen_layers)),
                optimizer: Some(optimizer.clone()),
                score_head: head.clone(),
                group: name.clone(),
                policy_version: 0,
                lora: lora_spec(recipe, settings.lora),
            };
            async move { Ok(client(&worker).load(request).await?.into_inner()) }
        };
        trainer.all_ranks(0, "load", attempt, load).await?;
        Ok(trainer)
    }

    /// The workers.
    #[must_use]
    pub fn group(&self) -> &Arc<RoleGroup> {
        &self.group
    }

    /// A group that somebody else has loaded `model` into, to encode with its tokenizer.
    #[must_use]
    pub fn encoder(group: Arc<RoleGroup>, model: PathBuf) -> Self {
        Self { group, model, averages: false }
    }

    /// Token ids of dialogues and where the assistant's turns stand in them, in their order.
    ///
    /// # Errors
    /// A rank was lost, or the model's chat template does not take a dialogue.
    pub async fn encode(&self, dialogues: &[Dialogue]) -> Result<Vec<TargetText>, PhaseError> {
        let workers = self.group.workers();
        let worker =
            workers.first().ok_or_else(|| PhaseError::Failed("no trainer rank".to_owned()))?;
        let mut texts = Vec::with_capacity(dialogues.len());
        for part in dialogues.chunks(DIALOGUES_PER_CALL) {
            let attempt = self.group.fresh_attempt();
            let id = CallId { step: 0, phase: "encode", shard: 0, attempt };
            let request = EncodeRequest {
                context: Some(self.group.context(worker, &id)),
                model_path: self.model.display().to_string(),
                dialogues: part.to_vec(),
            };
            let encode = async { Ok(client(worker).encode(request).await?.into_inner()) };
            texts.extend(self.group.call(worker, "encode", encode).await?.texts);
        }
        match texts.len() == dialogues.len() {
            true => Ok(texts),
            false => Err(incomplete("dialogues were encoded", texts.len(), dialogues.len())),
        }
    }

    /// One optimiser step on texts; every rank gets all of them and takes its share.
    ///
    /// # Errors
    /// A rank was lost, or the loss is not finite.
    pub async fn train_texts(
        &self,
        step: u64,
        texts: &[TargetText],
        learning_rate: f64,
    ) -> Result<Figures, PhaseError> {
        let train = |worker: Worker, context| {
            let request = TrainTextsRequest {
                context: Some(context),
                texts: texts.to_vec(),
                learning_rate,
                weight: None,
            };
            async move { Ok(client(&worker).train_texts(request).await?.into_inner().metrics) }
        };
        figures(&training_step(step), self.all_ranks(step, "train_texts", 0, train).await?)
    }

    /// The loss of texts.
    ///
    /// # Errors
    /// As [`Trainer::train_texts`].
    pub async fn measure_texts(
        &self,
        step: u64,
        texts: &[TargetText],
    ) -> Result<Figures, PhaseError> {
        let measure = |worker: Worker, context| {
            let request = MeasureTextsRequest { context: Some(context), texts: texts.to_vec() };
            async move { Ok(client(&worker).measure_texts(request).await?.into_inner().metrics) }
        };
        figures(&training_step(step), self.all_ranks(step, "measure_texts", 0, measure).await?)
    }

    /// Log-probs of answers under the model as it is.
    ///
    /// # Errors
    /// A rank was lost.
    pub async fn answer_log_probs(
        &self,
        pairs: &[AnswerPair],
    ) -> Result<Vec<AnswerLogProbs>, PhaseError> {
        let attempt = self.group.fresh_attempt();
        let ask = |worker: Worker, context| {
            let request = AnswerLogProbsRequest { context: Some(context), pairs: pairs.to_vec() };
            async move { Ok(client(&worker).answer_log_probs(request).await?.into_inner().rows) }
        };
        let shares = self.all_ranks(0, "answer_log_probs", attempt, ask).await?;
        let rows: Vec<_> = shares.into_iter().flatten().collect();
        match rows.len() == pairs.len() {
            true => Ok(rows),
            false => Err(incomplete("pairs have log-probs", rows.len(), pairs.len())),
        }
    }

    /// One optimiser step on pairs of answers.
    ///
    /// # Errors
    /// As [`Trainer::train_texts`].
    pub async fn train_preferences(
        &self,
        step: u64,
        pairs: &[AnswerPair],
        loss: &PreferenceLossSpec,
        learning_rate: f64,
    ) -> Result<Figures, PhaseError> {
        let train = |worker: Worker, context| {
            let request = TrainPreferencesRequest {
                context: Some(context),
                pairs: pairs.to_vec(),
                loss: Some(loss.clone()),
                learning_rate,
            };
            async move { Ok(client(&worker).train_preferences(request).await?.into_inner().metrics) }
        };
        figures(&training_step(step), self.all_ranks(step, "train_preferences", 0, train).await?)
    }

    /// The loss of pairs of answers.
    ///
    /// # Errors
    /// As [`Trainer::train_texts`].
    pub async fn measure_preferences(
        &self,
        step: u64,
        pairs: &[AnswerPair],
        loss: &PreferenceLossSpec,
    ) -> Result<Figures, PhaseError> {
        let measure = |worker: Worker, context| {
            let request = MeasurePreferencesRequest {
                context: Some(context),
                pairs: pairs.to_vec(),
                loss: Some(loss.clone()),
            };
            async move { Ok(client(&worker).measure_preferences(request).await?.into_inner().metrics) }
        };
        figures(
            &training_step(step),
            self.all_ranks(step, "measure_preferences", 0, measure).await?,
        )
    }

    /// One optimiser step of a score head on pairs of texts.
    ///
    /// # Errors
    /// As [`Trainer::train_texts`].
    pub async fn train_pairs(
        &self,
        step: u64,
        pairs: &[TextPair],
        loss: ScoreLoss,
        learning_rate: f64,
    ) -> Result<Figures, PhaseError> {
        let train = |worker: Worker, context| {
            let request = TrainPairsRequest {
                context: Some(context),
                pairs: pairs.to_vec(),
                learning_rate,
                regularization: loss.regularization,
                loss: if loss.cost { "cost" } else { "reward" }.to_owned(),
                sign_terms: loss.sign_terms,
                token_wise: loss.token_wise,
            };
            async move { Ok(client(&worker).train_pairs(request).await?.into_inner().metrics) }
        };
        figures(&training_step(step), self.all_ranks(step, "train_pairs", 0, train).await?)
    }

    /// End scores of pairs, without gradients.
    ///
    /// # Errors
    /// A rank was lost.
    pub async fn score_pairs(
        &self,
        step: u64,
        pairs: &[TextPair],
    ) -> Result<Vec<PairScore>, PhaseError> {
        let score = |worker: Worker, context| {
            let request = ScorePairsRequest { context: Some(context), pairs: pairs.to_vec() };
            async move { Ok(client(&worker).score_pairs(request).await?.into_inner().scores) }
        };
        let shares = self.all_ranks(step, "score_pairs", 0, score).await?;
        let scores: Vec<_> = shares.into_iter().flatten().collect();
        match scores.len() == pairs.len() {
            true => Ok(scores),
            false => Err(incomplete("pairs were scored", scores.len(), pairs.len())),
        }
    }

    /// Puts the moving average, if the recipe asks for one, in the place of the weights: what is
    /// measured and written from now on is the average.
    ///
    /// # Errors
    /// A rank was lost.
    pub async fn adopt_average(&self) -> Result<(), PhaseError> {
        match self.averages {
            true => adopt_average(&self.group).await,
            false => Ok(()),
        }
    }

    /// Writes the model as a Hugging Face folder.
    ///
    /// # Errors
    /// A rank was lost, or the disk refused.
    pub async fn export(&self, folder: &Path, dtype: &str) -> Result<u64, PhaseError> {
        export(&self.group, folder, dtype, false).await
    }

    /// Writes the adapters alone as a PEFT folder.
    ///
    /// # Errors
    /// As [`Trainer::export`]; a model without adapters.
    pub async fn export_adapter(&self, folder: &Path, dtype: &str) -> Result<u64, PhaseError> {
        export(&self.group, folder, dtype, true).await
    }

    /// The same call to every rank, each with its own context.
    async fn all_ranks<T, F>(
        &self,
        step: u64,
        phase: &'static str,
        attempt: u32,
        call: impl Fn(Worker, CallContext) -> F,
    ) -> Result<Vec<T>, PhaseError>
    where
        F: Future<Output = Result<T, Status>> + Send,
    {
        let workers = self.group.workers();
        self.group
            .call_all(&workers, phase, |worker, shard| {
                let context = self.group.context(&worker, &CallId { step, phase, shard, attempt });
                call(worker, context)
            })
            .await
    }
}

fn training_step(step: u64) -> String {
    format!("training step {step}")
}

fn incomplete(what: &str, got: usize, wanted: usize) -> PhaseError {
    PhaseError::Failed(format!("{got} of {wanted} {what}"))
}
